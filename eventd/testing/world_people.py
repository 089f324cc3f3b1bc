"""People at the simulated daemon: they pause, cancel, redrive, discard, reload, set the clock, drain, stop and fill the disk.

They ask as `eventd.daemon.desk` does: rows are read from the journal and named to the dispatcher, which may know better by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eventd.core import signals as s
from eventd.model import FunctionSettings, Rate, Retry, State
from eventd.ports import Query

if TYPE_CHECKING:
    from eventd.testing.world import World

RETRY = Retry(3, (1_000, 2_000))
LAG_MS = 1_000
"""What was decided under the rules before is allowed this long to start."""
STOP_MS = 3_000
SEEN_MS = 2_500
"""The daemon looks at the clock once a second while it lives, and it may be down for two."""
STEPS_MS = (20_000, 3_000, -3_000, -20_000, -365 * 86_400_000)


class SimRules:
    """The configuration in force, and what is held by it."""

    def __init__(self, world: World) -> None:
        self.world = world
        plan = world.plan
        self.caps = {f"f{number}": cap for number, cap in enumerate(plan.caps)}
        self.before: dict[str, tuple[int, int]] = {}
        """function -> (the cap before, until when runs decided under it may start)."""
        self.gone: dict[str, int] = {}
        self.building: dict[str, int] = {}
        self.paused: dict[tuple[str, str], int] = {}
        """What is durably paused, since when. Held as well: no such function, or its dependencies are built."""
        self.rates = {"f1": Rate(*plan.rate)} if plan.rate else {}
        self.changed_at = 0
        self.stepped_at = -STEPS_MS[0]

    def most_of(self, name: str) -> int:
        cap, until = self.before.get(name, (0, -1))
        return max(self.caps[name], cap if self.world.now <= until else 0)

    def cap(self, name: str, cap: int) -> None:
        self.before[name] = (max(self.caps[name], 1), self.world.now + LAG_MS)
        self.caps[name] = cap

    def held_since(self, binding: str | None, name: str) -> int | None:
        since = [
            table[name] for table in (self.gone, self.building) if name in table
        ] + [self.paused[item] for item in (("function", name), ("binding", binding or "")) if item in self.paused]  # fmt: skip
        return min(since, default=None)

    def settings(self) -> dict[str, FunctionSettings]:
        return {name: FunctionSettings(name, concurrency=cap, retry=RETRY) for name, cap in self.caps.items() if name not in self.gone}

    def signal(self) -> s.Configured:
        world, plan = self.world, self.world.plan
        functions = {
            name: s.FunctionRule(name, cap, retry=RETRY, rate=self.rates.get(name), max_event_age_ms=plan.max_age_ms if name == "f0" else 0)
            for name, cap in self.caps.items()
            if name not in self.gone
        }
        bindings = {
            b.name: s.BindingRule(b.name, b.trigger, b.function)
            for b in (*world.web.bindings, world.ticks.binding)
        }  # fmt: skip
        files = world.files.binding
        bindings[files.name] = s.BindingRule(
            files.name, "files", files.function, batch_size=plan.batch, batch_window_ms=plan.batch_window_ms if plan.batch > 1 else 0
        )
        bindings = {name: rule for name, rule in bindings.items() if rule.function not in self.gone}
        return s.Configured(s.Rules(plan.concurrency, functions, bindings, {"web": 0, "tick": 0, "files": plan.trigger_cap}))

    def booted(self) -> None:
        """A new process: nothing is building, and what was decided before is no more."""
        self.building.clear()
        self.before.clear()
        self.changed_at = self.world.now

    def apply(self) -> None:
        self.changed_at = self.world.now
        if self.world.up:
            self.world.engine.functions = self.settings()
            self.world.engine.tell(self.signal())


class People:
    """What they do, at times drawn by the seed."""

    def __init__(self, world: World) -> None:
        self.world = world
        plan = world.plan
        self.draining = self.interrupted = False
        deeds: tuple[tuple[int, Callable[[], None]], ...] = (
            (plan.pauses, self.pause), (plan.cancels, self.cancel), (plan.redrives, self.redrive), (plan.discards, self.discard),
            (plan.reloads, self.reload), (plan.clock_steps, self.step), (plan.drains, self.drain), (plan.stops, self.stop_soon),
            (plan.overloads, self.overload),
        )  # fmt: skip
        for count, deed in deeds:
            for _ in range(count):
                world.at(world.chance.randrange(plan.horizon_ms), self.do, deed)

    def do(self, deed: Callable[[], None]) -> None:
        if self.world.up and not self.world.calm:
            deed()

    # --- holding ---

    def pause(self) -> None:
        chance = self.world.chance
        item = chance.choice((("function", "f0"), ("function", "f1"), ("function", "f3"), ("binding", "web/f1"), ("binding", "tick/f2")))
        self.ask_pause(item, True)
        self.world.at(self.world.now + chance.randrange(200, 6_000), self.resume, item)

    def resume(self, item: tuple[str, str]) -> None:
        self.ask_pause(item, False)

    def ask_pause(self, item: tuple[str, str], paused: bool) -> None:
        world = self.world
        if not world.up:
            return
        world.note(f"{'pause' if paused else 'resume'} {item[0]}:{item[1]}")
        if not paused:
            world.rules.paused.pop(item, None)
        world.engine.tell(s.PauseAsked(*item, paused))
        world.rules.changed_at = world.now

        def stored() -> None:
            if paused and item in world.tables.paused:
                world.rules.paused.setdefault(item, world.now)

        world.journal.append([], stored)

    # --- single invocations ---

    def cancel(self) -> None:
        world = self.world
        ids = [known.id for rows in world.audit.alive.values() for known in rows.values()]
        if not ids:
            return
        chosen = world.chance.sample(ids, min(len(ids), world.chance.choice((1, 1, 3))))
        self.twice(lambda: self.ask_cancel(chosen))

    def ask_cancel(self, ids: list[str]) -> None:
        world = self.world
        rows = tuple(row for row in world.finish(world.journal.invocations(ids)) if row.state is not State.SETTLED)
        world.note(f"cancel {' '.join(f'{row.id}={row.state}' for row in rows)}")
        world.engine.tell(s.CancelAsked(rows))
        waiting = [row for row in rows if row.state in (State.WAITING, State.RETRYING)]
        world.daemon(LAG_MS, self.cancelled, [row.seq for row in waiting])

    def cancelled(self, seqs: list[int]) -> None:
        """What waited when it was cancelled has ended by now, or is being stopped."""
        for seq in seqs:
            known = self.world.audit.known.get(seq)
            if known is not None and known.state in (State.WAITING, State.RETRYING) and not known.redriven:
                self.world.blame("cancel", f"invocation {known.id} was cancelled and goes on")

    def redrive(self) -> None:
        self.twice(self.ask_redrive)

    def ask_redrive(self) -> None:
        world = self.world
        rows = tuple(world.finish(world.journal.dead_seqs(Query(), world.chance.choice((1, 3, 100)))))
        world.note(f"redrive {' '.join(row.id for row in rows)}")
        world.engine.tell(s.RedriveAsked(rows))

    def discard(self) -> None:
        self.twice(self.ask_discard)

    def ask_discard(self) -> None:
        world = self.world
        rows = tuple(world.finish(world.journal.dead_seqs(Query(), 2)))
        world.note(f"discard {' '.join(row.id for row in rows)}")
        world.engine.tell(s.DiscardAsked(rows) if world.maybe(0.5) else s.ExpireAsked(rows))

    def twice(self, ask: Callable[[], None]) -> None:
        """Two people may ask at the same moment, and neither knows of the other."""
        ask()
        if self.world.maybe(0.3):
            self.world.chance.choice((ask, self.ask_redrive, self.ask_discard))()

    # --- configuration and clock ---

    def reload(self) -> None:
        world, rules = self.world, self.world.rules
        busy = sorted(name for name, count in world.pool.busy.items() if count)
        name = world.chance.choice(busy if busy and world.maybe(0.5) else sorted(rules.caps))
        back = world.now + world.chance.randrange(100, 5_000)
        match world.chance.randrange(4):
            case 0 if name != "f2":  # a tick of a function that is gone would wait, and the next ones be skipped: also right
                rules.gone[name] = world.now
                world.at(back, self.restore, name, world.plan.caps[int(name[1:])])
            case 1:
                rules.building[name] = world.now
                world.engine.tell(s.Available(name, False))
                world.daemon(back - world.now, self.built, name)
            case 2:
                rules.cap(name, 0)
                world.at(back, self.restore, name, world.plan.caps[int(name[1:])])
            case _:
                rules.cap(name, world.chance.randrange(1, 4))
        world.note(f"reload {name} {rules.caps[name]} gone {sorted(rules.gone)} building {sorted(rules.building)}")
        rules.apply()

    def restore(self, name: str, cap: int) -> None:
        self.world.rules.gone.pop(name, None)
        self.world.rules.cap(name, cap)
        self.world.note(f"restore {name}")
        self.world.rules.apply()

    def built(self, name: str) -> None:
        self.world.rules.building.pop(name, None)
        self.world.rules.changed_at = self.world.now
        self.world.note(f"built {name}")
        self.world.engine.tell(s.Available(name, True))

    def step(self) -> None:
        world = self.world
        if world.rules.gone or world.now < world.rules.stepped_at + SEEN_MS:
            return  # the waits of a function that is gone are not known; two steps within a second look like one, or none
        step = world.chance.choice(STEPS_MS)
        world.note(f"clock {step}")
        world.offset += step
        world.rules.changed_at = world.rules.stepped_at = world.now

    def overload(self) -> None:
        self.world.overloaded = "the simulated disk is full"
        self.world.journal.overloaded = self.world.overloaded
        self.world.note("overloaded")
        self.world.at(self.world.now + self.world.chance.randrange(500, 4_000), self.relieve)

    def relieve(self) -> None:
        self.world.overloaded = self.world.journal.overloaded = ""
        self.world.note("relieved")

    # --- drain and stop ---

    def drain(self) -> None:
        world = self.world
        if self.draining:
            return
        queue = world.maybe(0.5)
        world.note(f"drain {'queue' if queue else ''}")
        world.intake.open = False
        world.engine.tell(s.StartsAllowed(queue, False))
        world.daemon(world.chance.randrange(100, 3_000), self.undrain)

    def undrain(self) -> None:
        if self.draining:
            return
        self.world.note("undrain")
        self.world.intake.open = True
        self.world.rules.changed_at = self.world.now
        self.world.engine.tell(s.StartsAllowed(True, True))

    def stop_soon(self) -> None:
        """Often when something is just about to start."""
        if self.world.maybe(0.5):
            self.world.asks.invoke(f"s{self.world.now}")
        self.world.daemon(self.world.chance.randrange(4), self.stop)

    def stop(self) -> None:
        """SIGTERM (D15): intake stops, runs get until the deadline, the rest is interrupted, and the process ends."""
        world = self.world
        if self.draining:
            return
        self.draining = True
        world.note("stop")
        world.intake.open = False
        world.engine.tell(s.StartsAllowed(False, False))
        world.daemon(world.chance.choice((0, 0, 5, 300)), self.interrupt, world.now + STOP_MS)

    def interrupt(self, deadline: int) -> None:
        self.interrupted = True
        self.world.engine.interrupt_all()
        self.quiet(deadline)

    def quiet(self, deadline: int) -> None:
        world = self.world
        if not world.engine.state.running and not world.journal.waiting:
            world.end_of_process()
        elif world.now > deadline:
            world.blame("drain", f"{world.engine.state.running} runs are still going on after the drain")
        else:
            world.daemon(5, self.quiet, deadline)

    def booted(self) -> None:
        self.draining = self.interrupted = False
        if self.world.plan.cancels and self.world.maybe(0.4):  # while the first pages are on their way
            self.world.daemon(self.world.chance.randrange(4), self.do, self.cancel)

    def go(self) -> None:
        """Everybody goes home: what they held is let go."""
        world = self.world
        for item in sorted(set(world.rules.paused) | set(world.tables.paused)):
            self.ask_pause(item, False)
        for name in sorted(world.rules.building):
            self.built(name)
        world.rules.gone.clear()
        for number, cap in enumerate(world.plan.caps):
            world.rules.cap(f"f{number}", cap)
        world.rules.apply()
        self.relieve()
        if not self.draining:
            self.undrain()
