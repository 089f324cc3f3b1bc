"""The simulation world: the real dispatcher, engine, intake and the journal's contract, with everything around them scripted.

One seed decides it all: which events come, how long runs take and how they end, when commits happen, when the process dies
and how much of the waiting batch had reached the disk by then. A world has virtual time and no thread; the same seed gives
the same history, line by line. `check` holds the promises of design.md section 8 against what happened.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct

from eventd.core import signals as s
from eventd.daemon.engine import Engine
from eventd.daemon.intake import Bound, Intake
from eventd.errors import EventdError
from eventd.journal.memory import MemoryJournal
from eventd.model import BindingSettings, End, FunctionSettings, Outcome, Retry, RunRecord
from eventd.ports import OutputChunk, Ran, Task
from eventd.sdk import Event, Receipt

START_MS = 1_790_000_000_000
POISON = b'"poison"'


class Crash(BaseException):
    """The process dies here. Not an Exception: nothing in the daemon may catch it."""


class Plan(Struct, frozen=True):
    """How rough a world is. Probabilities are per event of that kind."""

    events: int = 40
    crashes: int = 6
    crash_at_commit: float = 0.03
    crash_at_effect: float = 0.03
    fail: float = 0.15
    duplicate: float = 0.15
    poison: float = 0.0
    horizon_ms: int = 60_000
    concurrency: int = 4
    caps: tuple[int, ...] = (1, 2, 3)
    batch: int = 1


class VirtualLoop:
    """`call_later` over virtual time, and futures that a trampoline resumes."""

    def __init__(self, world: World) -> None:
        self._world = world

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> Handle:
        return self._world.at(self._world.now + max(0, round(delay * 1000)), call, *args)

    def create_future(self) -> Future:
        return Future()


class Future:
    """What `await` needs and nothing more: the trampoline in `World.finish` asks again until it is done."""

    def __init__(self) -> None:
        self._result: Any = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any) -> None:
        self._result, self._done = result, True

    def __await__(self) -> Any:
        while not self._done:
            yield
        return self._result


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class SeededDice:
    """Ids that count up, so that a history reads the same twice."""

    def __init__(self, chance: random.Random, prefix: str) -> None:
        self._chance = chance
        self._prefix = prefix
        self._count = 0

    def uniform(self) -> float:
        return self._chance.random()

    def id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"


class Sink:
    """A history that remembers direct records."""

    def record(self, record: RunRecord) -> None:
        return None

    def output(self, chunk: OutputChunk) -> None:
        return None


class Quiet:
    """An observer that counts nothing."""

    def finished(self, record: RunRecord) -> None:
        return None

    def throttled(self, function: str) -> None:
        return None

    def accepted(self, trigger: str) -> None:
        return None

    def duplicate(self, trigger: str) -> None:
        return None

    def filtered(self, binding: str) -> None:
        return None


class World:
    """One seeded run of a daemon's life, through crashes, to its end."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.plan = plan
        self.chance = random.Random(seed)
        self.now = START_MS
        self.history: list[str] = []
        self.problems: list[str] = []
        self.journal = MemoryJournal()
        self.boots = 0
        self.crashes_left = plan.crashes
        self.calm = False
        self._agenda: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...], Handle]] = []
        self._number = 0
        self._names = [f"f{number}" for number in range(len(plan.caps))]
        self.functions = {
            name: FunctionSettings(name, concurrency=cap, retry=Retry(3, (1_000, 2_000))) for name, cap in zip(self._names, plan.caps, strict=True)
        }
        self.bindings = [BindingSettings(f"web/{name}", "web", name) for name in self._names[:2]]
        self.tick_binding = BindingSettings("tick/f2", "tick", self._names[-1])
        # what the outside world knows
        self.acknowledged: dict[str, int] = {}
        self.offered: dict[str, bytes] = {}
        self.ticks_owed = 0
        self.began: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.ends: dict[str, list[tuple[str, str | None]]] = {}
        self.event_of: dict[str, tuple[str, str]] = {}
        self.settled_events: Counter[str] = Counter()
        self.lost_at_boot: dict[str, int] = {}
        self.running: dict[str, Task] = {}
        self.boot()
        for number in range(plan.events):
            self.at(START_MS + self.chance.randrange(plan.horizon_ms), self.send, f"e{number}", True)
        for number in range(plan.horizon_ms // 5_000):
            self.at(START_MS + 5_000 * (number + 1), self.tick)

    # --- time ---

    def at(self, when: int, call: Callable[..., None], *args: Any, alive: bool = True) -> Handle:
        """Do something at a time. With `alive` it belongs to nobody's process; the daemon's own timers die with it."""
        handle = Handle()
        self._number += 1
        heapq.heappush(self._agenda, (when, self._number, self.boots, call, args, handle))
        return handle

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    def note(self, line: str) -> None:
        self.history.append(f"{self.now - START_MS} {line}")

    def blame(self, promise: str, what: str) -> None:
        self.problems.append(f"promise {promise} at {self.now - START_MS} ms: {what}")

    # --- a life ---

    def boot(self) -> None:
        self.boots += 1
        self.note(f"boot {self.boots}")
        self.journal.on_owed = lambda row: self.at(self.now, self.settled, row.seq, row.event) and None
        self.running = {}
        self.engine = Engine(
            journal=self.journal, pool=self, history=Sink(), clock=self, observer=Quiet(), boot=f"b{self.boots}",
            dice=SeededDice(self.chance, f"b{self.boots}"), loop=VirtualLoop(self),  # type: ignore[arg-type]
        )  # fmt: skip
        known = self.finish(self.journal.load())
        self.intake = Intake(self.engine, Quiet(), next_event=known.next_event, next_invocation=known.next_invocation)
        self.engine.functions = self.functions
        rules = s.Rules(
            self.plan.concurrency,
            {f.name: s.FunctionRule(f.name, f.concurrency, retry=f.retry) for f in self.functions.values()},
            {b.name: s.BindingRule(b.name, b.trigger, b.function, batch_size=self.plan.batch) for b in (*self.bindings, self.tick_binding)},
            {"web": 0, "tick": 0},
        )
        self.engine.tell(s.Configured(rules))
        self.lost_at_boot = {row.id: self.now for row, _, _ in known.running if row.lost + 1 < 2}
        self.finish(self.engine.start(known))
        self.next_tick = int((self.finish(self.journal.ledger_get("tick", b"next")) or b"0").decode())
        for row in known.owed:
            self.settled(row.seq, row.event)

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of the daemon to its end, committing whenever it waits."""
        try:
            while True:
                work.send(None)
                self.journal.commit()
        except StopIteration as done:
            return done.value

    def die(self, keep: int) -> None:
        self.note(f"crash, {keep} of {self.journal.waiting} waiting calls durable")
        self.crashes_left -= 1
        self.journal.crash(keep)
        self.drain_outbox(self.journal)
        self.journal = self.journal.reopen()
        self.boot()

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    def crash_point(self, probability: float) -> None:
        if self.crashes_left > 0 and not self.calm and self.maybe(probability):
            raise Crash

    # --- events from outside ---

    def send(self, id: str, first: bool) -> None:
        body = self.offered.get(id)
        if body is None:
            poison = self.maybe(self.plan.poison)
            body = self.offered[id] = POISON if poison else f'{{"n":"{id}"}}'.encode()
        self.note(f"offer {id}")
        bound = tuple(Bound(binding) for binding in self.bindings)
        event = Event(data=__import__("msgspec").Raw(body), id=id, notify=self.maybe(0.3) if first else False)

        def done(answer: Receipt | EventdError) -> None:
            if isinstance(answer, EventdError):
                self.note(f"refused {id} {answer.code}")
            else:
                self.note(f"ack {id}{' duplicate' if answer.duplicate else ''}")
                self.acknowledged.setdefault(id, self.now)

        self.intake.offer("web", event, bound, done, None)
        if first and self.maybe(self.plan.duplicate):
            self.at(self.now + self.chance.randrange(5_000), self.send, id, False)

    def tick(self) -> None:
        """A schedule's source: every tick up to now that the ledger does not have, cursor and event in one transaction."""
        due = (self.now - START_MS) // 5_000
        while self.next_tick < due:
            number = self.next_tick + 1
            self.next_tick = number
            event = Event(data={"tick": number}, id=f"tick-{number}", key="tick")

            def done(answer: Receipt | EventdError, number: int = number) -> None:
                self.note(f"tick {number} {'stored' if isinstance(answer, Receipt) else answer.code}")
                self.acknowledged.setdefault(f"tick-{number}", self.now)

            self.intake.offer("tick", event, (Bound(self.tick_binding),), done, {b"next": str(number).encode()})

    def settled(self, owed: int, event: str) -> None:
        self.settled_events[event] += 1
        from eventd.core.facts import Acknowledged  # noqa: PLC0415

        self.engine.journal.append([Acknowledged(owed, "web")], lambda: None)

    # --- Pool ---

    def run(self, task: Task, done: Callable[[Ran], None]) -> None:
        self.crash_point(self.plan.crash_at_effect)
        self.running[task.run] = task
        self.began[task.invocation] += 1
        self.lost_at_boot.pop(task.invocation, None)
        self.note(f"start {task.function} {task.invocation}")
        here = sum(1 for other in self.running.values() if other.function == task.function)
        if here > self.functions[task.function].concurrency:
            self.blame("caps", f"{here} runs of {task.function} at once")
        if len(self.running) > self.plan.concurrency:
            self.blame("caps", f"{len(self.running)} runs at once")
        if POISON in task.event and not self.calm:
            self.at(self.now + 1 + self.chance.randrange(20), self._kill)
            return
        outcome = self.chance.choice((Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED)) if self.maybe(self.plan.fail) else Outcome.SUCCEEDED
        took = self.chance.randrange(1, 400)
        self.at(self.now + took, self._ran, task, outcome, done, self.boots)

    def _kill(self) -> None:
        raise Crash

    def _ran(self, task: Task, outcome: Outcome, done: Callable[[Ran], None], boot: int) -> None:
        if boot != self.boots or task.run not in self.running:
            return
        self.crash_point(self.plan.crash_at_effect)
        del self.running[task.run]
        self.note(f"end {task.invocation} {outcome}")
        self.succeeded[task.invocation] += outcome is Outcome.SUCCEEDED
        done(Ran(outcome=outcome))
        self.crash_point(self.plan.crash_at_effect)

    def stop(self, run: str, outcome: Outcome) -> None:
        return None

    # --- the run of the world ---

    def play(self, until: int | None = None) -> None:
        """Live through the agenda; then faults end, and everything open must come to its end."""
        self._play(START_MS + self.plan.horizon_ms)
        self.calm = True
        self.note("calm")
        self.tick()
        self._play(START_MS + self.plan.horizon_ms * 3)
        self.journal.commit()
        self.drain_outbox(self.journal)

    def _play(self, until: int) -> None:
        while self._agenda and self._agenda[0][0] <= until:
            when, _, boot, call, args, handle = heapq.heappop(self._agenda)
            if handle.cancelled:
                continue
            mine = getattr(call, "__self__", None) is self
            if not mine and boot != self.boots:
                continue  # a timer of a process that is gone
            self.now = max(self.now, when)
            try:
                call(*args)
                self.commit()
            except Crash:
                self.die(self.chance.randrange(self.journal.waiting + 1))

    def commit(self) -> None:
        """The writer thread: sometimes now, sometimes with the next event; a crash may come before, halfway and after."""
        if not self.journal.waiting or (not self.calm and self.maybe(0.2)):
            return
        self.crash_point(self.plan.crash_at_commit)
        while self.journal.waiting:
            self.journal.commit(None if self.calm else self.chance.randrange(1, self.journal.waiting + 1))
            self.crash_point(self.plan.crash_at_commit / 2)
        self.drain_outbox(self.journal)
        for invocation, since in list(self.lost_at_boot.items()):
            if self.now - since > 1_000 and self.engine.state.running < self.plan.concurrency:
                self.lost_at_boot.pop(invocation)

    def drain_outbox(self, journal: MemoryJournal) -> None:
        """What the run history would be told. Copying twice is allowed; an end told twice with different words is not."""
        for row in list(journal.tables.outgoing.values()):
            if row.ended is not None:
                ended = row.ended
                for told in ended["invocations"] if "invocations" in ended else (ended,):
                    self._ended(told["invocation"], str(ended.get("event")), told["binding"], str(told["end"]), told["reason"])
        if journal.tables.outgoing:
            upto = max(journal.tables.outgoing)
            journal.tables.drop_outbox(upto)

    def _ended(self, invocation: str, event: str, binding: str, end: str, reason: str | None) -> None:
        self.ends.setdefault(invocation, []).append((end, reason))
        self.event_of[invocation] = (event, binding)

    # --- promises ---

    def check(self) -> list[str]:
        """What was broken; empty when every promise held."""
        tables = self.journal.tables
        for kept in tables.kept.values():
            if kept.end is End.DEAD:
                meta = tables.events[kept.event][0]
                self._ended(kept.id, meta.id, kept.binding or "", "dead", str(kept.reason))
            else:
                self.blame("2", f"invocation {kept.id} is still {kept.state} at the end of the world")
        for invocation, ends in self.ends.items():
            if len(ends) != 1:
                self.blame("2", f"invocation {invocation} has {len(ends)} ends: {ends}")
        by_event: dict[str, list[str]] = {}
        for invocation, (event, binding) in self.event_of.items():
            by_event.setdefault(event, []).append(f"{binding}:{invocation}")
        for event in self.acknowledged:
            wanted = 1 if event.startswith("tick-") else len(self.bindings)
            found = len(by_event.get(event, ()))
            if found != wanted:
                self.blame("1" if found < wanted else "5", f"event {event} was acknowledged and has {found} of {wanted} invocations")
        for event, invocations in by_event.items():
            bindings = [text.partition(":")[0] for text in invocations]
            if len(set(bindings)) != len(bindings):
                self.blame("5", f"event {event} has two invocations of one binding: {invocations}")
        last = (self.now - START_MS) // 5_000
        for number in range(1, min(last, self.plan.horizon_ms // 5_000) + 1):
            if f"tick-{number}" not in by_event:
                self.blame("5", f"tick {number} has no invocation")
        for invocation, ends in self.ends.items():
            event = self.event_of[invocation][0]
            poison = self.offered.get(event) == POISON
            if ends[0][1] == "quarantined" and not poison and self.plan.poison and not self.plan.crash_at_commit:
                self.blame("10", f"innocent {event} was quarantined")
            if ends[0] == ("succeeded", None) and not self.succeeded[invocation] and self.plan.batch == 1:
                self.blame("2", f"invocation {invocation} is recorded as succeeded and never was")
            if self.began[invocation] > 3 + self.interruptions and self.plan.batch == 1:
                self.blame("attempts", f"invocation {invocation} began {self.began[invocation]} times")
        if tables.owing:
            self.blame("owed", f"settlements never told: {sorted(tables.owing)}")
        return self.problems

    interruptions = 0


def live(seed: int, plan: Plan) -> World:
    """A world from its birth to its end, checked."""
    world = World(seed, plan)
    world.play()
    world.check()
    return world
