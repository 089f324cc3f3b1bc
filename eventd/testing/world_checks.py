"""The promises, held against a simulated world: while it lives (`Watch`) and at its end (`at_the_end`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventd.model import End, State
from eventd.testing.world_audit import Known
from eventd.testing.world_people import RETRY, STEPS_MS
from eventd.testing.world_pool import POISON
from eventd.testing.world_sources import Web

if TYPE_CHECKING:
    from eventd.testing.world import World

LOOK_MS = 500
SLACK_MS = 1_500
"""The clock is looked at once a second, and a commit takes its time."""
SUSPECT = 2
"""Lost runs in a row after which an invocation has to wait for others like it."""
AT_ONCE_MS = 1_000


class Watch:
    """Looks at a living daemon."""

    def __init__(self, world: World) -> None:
        self.world = world
        for number in range((world.plan.horizon_ms + world.plan.calm_ms) // LOOK_MS):
            world.at(LOOK_MS * number, self.look)

    def balance(self) -> None:
        """Whenever nothing is on its way to the disk, the dispatcher's counters are the journal's rows."""
        world = self.world
        world.audit.committed()
        if not world.up or world.journal.waiting:
            return
        state, audit = world.engine.state, world.audit
        for name, function in state.functions.items():
            if (function.open, function.dead) != (audit.open[name], audit.dead[name]):
                told = f"{function.open} open and {function.dead} dead"
                world.blame("2", f"{name} has {told} by the dispatcher, {audit.open[name]} and {audit.dead[name]} on disk")
                raise Broken
            if function.running != world.pool.busy[name]:
                world.blame("caps", f"{name} has {function.running} runs by the dispatcher and {world.pool.busy[name]} in workers")
                raise Broken
        if not any(queue.in_flight for queue in state.queues.values()):
            on_disk = sum(queue.rest for queue in state.queues.values())
            if on_disk + len(state.nodes) != sum(audit.open.values()):
                world.blame("2", f"{on_disk} rows left on disk and {len(state.nodes)} in memory, {sum(audit.open.values())} open")
                raise Broken

    def look(self) -> None:
        """D9: where there is room, ready work waits for nothing of another function."""
        world = self.world
        if not world.up or world.engine.state.running >= world.plan.concurrency or not world.engine.state.starts_allowed:
            return
        # a wait counts again from a clock set back; rows on disk may come late until the window has room for them
        quiet_since = max(world.rules.changed_at, world.booted_at) + RETRY.waits_ms[-1]
        if world.plan.window:
            quiet_since = max(quiet_since, world.rules.stepped_at + STEPS_MS[0])
        for name, rows in world.audit.alive.items():
            if name in world.rules.rates or name in world.rules.gone or self.taken(name) >= world.rules.caps[name]:
                continue
            for known in rows.values():
                if known.state is not State.RUNNING and world.now > max(known.ready_at, quiet_since) + SLACK_MS and not self.excused(known):
                    world.blame("fairness", f"invocation {known.id} of {name} could run since {known.ready_at} and does not")
                    raise Broken

    def excused(self, known: Known) -> bool:
        """Whether something of its own keeps an invocation waiting: a hold, its key, its trigger's cap, or suspicion."""
        world = self.world
        if world.rules.held_since(known.binding, known.function) is not None or known.lost >= SUSPECT:
            return True
        if not {("function", known.function), ("binding", known.binding or "")}.isdisjoint(world.tables.paused):
            return True
        node = world.engine.state.nodes.get(known.seq)
        if node is not None and node.run is not None:
            return True
        if (
            world.plan.trigger_cap
            and known.binding == world.files.name
            and (world.journal.waiting or world.pool.files >= world.plan.trigger_cap)
        ):
            return True
        return known.key is not None and any(
            other is not known and other.key == known.key and other.binding == known.binding
            for other in world.audit.alive[known.function].values()
        )

    def taken(self, name: str) -> int:
        """Slots of a function that are given away, whether the run has started yet or not."""
        function = self.world.engine.state.functions.get(name)
        return function.running if function is not None else 0

    def boot_over(self) -> None:
        """Promise 9, one second after a boot."""
        world = self.world
        lost, world.lost = world.lost, {}
        state = world.engine.state
        for known in lost.values():
            room = self.taken(known.function) < world.rules.caps[known.function] and state.running < world.plan.concurrency
            waits = known.state in (State.WAITING, State.RETRYING) and not known.redriven
            rated = known.function in world.rules.rates
            if room and waits and state.starts_allowed and not rated and not self.excused(known):
                world.blame("9", f"invocation {known.id} was lost, and has not started {AT_ONCE_MS} ms after the boot")


class Broken(Exception):
    """The world is wrong; going on would only say so again and again."""


def at_the_end(world: World) -> None:
    """After the last fault and a stretch of calm: what was promised has been done."""
    audit, plan = world.audit, world.plan
    for rows in audit.alive.values():
        for known in rows.values():
            world.blame("2", f"invocation {known.id} of {known.function} is still {known.state} {plan.calm_ms} ms after the last fault")
    _acknowledged(world)
    for happened in audit.events.values():
        for known in happened.members:
            if known.end is None and known.state is State.SETTLED:
                world.blame("2", f"invocation {known.id} has no end")
    if world.tables.owing:
        world.blame("owed", f"settlements never acknowledged: {sorted(world.tables.owing)}")
    for id in sorted(world.files.there.keys() - world.files.moved):
        event = audit.by_identity.get(("files", id))
        world.blame("owed", f"the settlement of {id} was never told ({'' if event else 'never '}accepted)")
    if world.up:
        for run in sorted(audit.started - audit.recorded.keys()):
            world.blame("records", f"run {run} has no record")
    if plan.ticks and world.ticks.next < world.ticks.seen - 1:
        world.blame("5", f"the schedule stands at tick {world.ticks.next}, {world.ticks.seen} are due")
    if plan.poison:
        _poison(world)


def _acknowledged(world: World) -> None:
    """Promises 1, 5 and 6: each acknowledged event has its invocations, each exactly once (the audit holds the second half)."""
    for source, id in world.acknowledged:
        event = world.audit.by_identity.get((source, id))
        found = world.audit.skipped[source, id] + (len(event.members) if event is not None else 0)
        if source != "web":
            wanted = 1
        elif event is not None:
            wanted = Web.wanted(event.data)
        else:
            wanted = 0 if id in world.web.others else 1
        if found != wanted:
            world.blame("1", f"event {source}/{id} was acknowledged and has {found} of {wanted} invocations")
    last = int(world.tables.ledgers.get(("tick", b"next"), b"0").decode())
    for number in range(1, last + 1):
        found = world.audit.skipped["tick", f"t{number}"] + len(getattr(world.audit.by_identity.get(("tick", f"t{number}")), "members", ()))
        if found != 1:
            world.blame("5", f"tick {number} has {found} invocations")


def _poison(world: World) -> None:
    """Promise 10, where nothing but poison kills the daemon."""
    guilty = {known.seq for known in world.audit.quarantined}
    for happened in world.audit.events.values():
        for known in happened.members:
            poison = POISON in happened.data
            if poison and (known.seq not in guilty or known.runs != 3):
                world.blame("10", f"poison {known.id} ended as {known.end} after {known.runs} runs")
            elif not poison and known.seq in guilty:
                world.blame("10", f"innocent {known.id} was quarantined")
            elif not poison and known.end is not End.SUCCEEDED and not world.plan.fail:
                world.blame("10", f"innocent {known.id} ended as {known.end}")
