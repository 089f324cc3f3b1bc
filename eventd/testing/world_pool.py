"""The simulated workers: how long a run takes and how it ends is drawn by the seed; what must hold when it starts is checked."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from eventd.model import Lane, Outcome, State
from eventd.ports import Ran, Task
from eventd.testing.world_audit import Known

if TYPE_CHECKING:
    from eventd.testing.world import World

POISON = b'"poison"'
GRACE_MS = 50
OLD_MS = 200
SETTLE_MS = 1_000
"""A change of the rules is allowed this long to reach runs that were decided before it."""
BYPASS = 3
"""Runs of one other function that may start while a function with room and old ready work waits for its turn."""
FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.OUT_OF_MEMORY)


class Going:
    """A run in a worker."""

    __slots__ = ("done", "ended", "members", "of_files", "task")

    def __init__(self, task: Task, members: tuple[Known, ...], done: Callable[[Ran], None], of_files: bool) -> None:
        self.task = task
        self.of_files = of_files
        """Whether it came through the trigger that has a cap of its own."""
        self.members = members
        self.done = done
        self.ended = False


class SimPool:
    """`ports.Pool` as far as the engine uses it. One for each process: when it dies, so do the workers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.running: dict[str, Going] = {}
        self.busy: Counter[str] = Counter()
        self.starts: dict[str, deque[int]] = {}
        self.passed: dict[str, Counter[str]] = {}
        self.called: set[str] = set()
        """Direct calls that were run."""

    def run(self, task: Task, done: Callable[[Ran], None]) -> None:
        world = self.world
        world.point("before start")
        members = self._members(task) if task.lane is Lane.DURABLE else ()
        of_files = members[0].binding == world.files.name if members else task.invocation in world.asks.of_files
        going = self.running[task.run] = Going(task, members, done, of_files)
        self.busy[task.function] += 1
        world.note(f"start {task.function} {task.run} {' '.join(known.id for known in members) or task.invocation}")
        self._check(task, members)
        if world.people.interrupted:
            world.blame("drain", f"run {task.run} starts after everything was interrupted")
        if task.lane is Lane.DIRECT:
            if task.invocation in self.called:
                world.blame("calls", f"{task.invocation} is run twice")
            self.called.add(task.invocation)
        for known in members:
            world.audit.give(known, task.run)
            world.lost.pop(known.seq, None)
        if POISON in task.event and not (world.calm and not world.plan.poison):
            world.daemon(1 + world.chance.randrange(20), world.kill)
            return
        outcome = world.chance.choice(FAILURES) if world.maybe(world.plan.fail) else Outcome.SUCCEEDED
        if world.maybe(world.plan.inline):
            self.end(going, outcome)
        else:
            world.daemon(world.chance.randrange(1, world.plan.longest_ms), self.end, going, outcome)
            world.point("after start")

    def stop(self, run: str, outcome: Outcome) -> None:
        world = self.world
        world.point("before stop")
        world.note(f"stop {run} {outcome}")
        going = self.running.get(run)
        if going is None:
            world.blame("pool", f"run {run} is to be stopped and is not going on")
            return
        world.daemon(world.chance.randrange(GRACE_MS), self.end, going, outcome)
        world.point("after stop")

    def end(self, going: Going, outcome: Outcome) -> None:
        if going.ended:
            return
        going.ended = True
        world, task = self.world, going.task
        world.point("before end")
        del self.running[task.run]
        self.busy[task.function] -= 1
        world.note(f"end {task.run} {outcome}")
        if outcome is Outcome.SUCCEEDED:
            for known in going.members:
                known.succeeded = True
        going.done(Ran(outcome=outcome, error_type=None if outcome is Outcome.SUCCEEDED else "Sim.Error"))
        world.point("after end")

    @property
    def files(self) -> int:
        """Runs at this moment that count against the cap of their trigger."""
        return sum(going.of_files for going in self.running.values())

    # --- what must hold when a run starts ---

    def _members(self, task: Task) -> tuple[Known, ...]:
        """The invocations of a durable run: on disk they are running, as this run."""
        world = self.world
        members = []
        for seq in world.began[task.run]:
            kept, known = world.tables.kept.get(seq), world.audit.known.get(seq)
            if kept is None or known is None or kept.state is not State.RUNNING or kept.run != task.run:
                world.blame("1", f"run {task.run} starts and its beginning is not durable (invocation {seq})")
            if known is not None:
                members.append(known)
        if len(members) == 1 and kept is not None and task.event != world.tables.events[kept.event][1]:
            world.blame("1", f"run {task.run} is given another event's payload")
        elif len(members) > 1 and len(msgspec.json.decode(task.event)["Records"]) != len(members):
            world.blame("1", f"run {task.run} has {len(members)} members and other records")
        return tuple(members)

    def _check(self, task: Task, members: tuple[Known, ...]) -> None:
        world, name = self.world, task.function
        if self.busy[name] > world.rules.most_of(name):
            world.blame("caps", f"{self.busy[name]} runs of {name} at once, {world.rules.most_of(name)} are allowed")
        if len(self.running) > world.plan.concurrency:
            world.blame("caps", f"{len(self.running)} runs at once, {world.plan.concurrency} are allowed")
        if 0 < world.plan.trigger_cap < self.files:
            world.blame("caps", f"{self.files} runs of one trigger at once, {world.plan.trigger_cap} are allowed")
        self._check_rate(name)
        since = world.rules.held_since(members[0].binding if members else None, name)
        if since is not None and world.now - since > SETTLE_MS:
            world.blame("hold", f"{task.invocation} runs although its function or binding is paused, gone or building")
        for known in members:
            if known.key is not None:
                self._check_key(known, task.run)
        if world.plan.fair:
            self._check_turns(name)

    def _check_rate(self, name: str) -> None:
        if (rate := self.world.rules.rates.get(name)) is None:
            return
        starts = self.starts.setdefault(name, deque())
        starts.append(self.world.now)
        if len(starts) > rate.count and self.world.now - starts.popleft() < rate.per_ms - COMMIT_LAG_MS:
            self.world.blame("rate", f"{rate.count + 1} runs of {name} started within {rate.per_ms} ms")

    def _check_key(self, known: Known, run: str) -> None:
        world = self.world
        for other in world.audit.alive[known.function].values():
            if other is known or other.key != known.key or other.binding != known.binding:
                continue
            if other.state is State.RUNNING:
                world.blame("keys", f"{known.id} and {other.id} run at once, and share the key {known.key}")
            elif known.serial and other.state is State.RETRYING:
                world.blame("keys", f"{known.id} runs before {other.id} is settled, and they are serial")

    def _check_turns(self, name: str) -> None:
        """D9: while a function with room and ready work waits, every other one may have its turn, but not turn after turn."""
        world = self.world
        self.passed.pop(name, None)
        for other, rows in world.audit.alive.items():
            old = self.busy[other] < world.rules.most_of(other) and any(
                known.state is State.WAITING and known.ready_at + OLD_MS < world.now for known in rows.values()
            )
            if other == name or not old:
                self.passed.pop(other, None) if not old else None
                continue
            passed = self.passed.setdefault(other, Counter())
            passed[name] += 1
            if passed[name] > BYPASS:
                world.blame("fairness", f"{name} had {passed[name]} turns while {other} had room and waited")


COMMIT_LAG_MS = 120
"""A run is counted where it is decided, and starts when its beginning is durable."""
