"""The simulation world: the real dispatcher, engine, intake and the journal's contract, with everything around them scripted.

One seed decides it all: which events come, how long runs take and how they end, when commits happen, when the process dies
and how much of the waiting batch had reached the disk by then. A world has virtual time and no thread; the same seed gives
the same history, line by line. The promises of design.md section 8 are held against it while it lives and at its end.

    python -m eventd.testing.world SEED [PLAN]      lives through one world again and prints its history
    python -m eventd.testing.world suite            lives through all worlds of the suite, up to the first that goes wrong
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import math
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from eventd.core import step
from eventd.core.facts import Began, Ended, Fact
from eventd.daemon.engine import Engine
from eventd.daemon.intake import Intake
from eventd.model import State
from eventd.ports import OwedRow
from eventd.testing.world_audit import Audit, AuditedTables, Known
from eventd.testing.world_checks import AT_ONCE_MS, SUSPECT, Broken, Watch, at_the_end
from eventd.testing.world_parts import POINTS, START_MS, Book, Crash, Handle, SeededDice, SimJournal, VirtualLoop
from eventd.testing.world_people import People, SimRules
from eventd.testing.world_plans import PLANS, SUITE, Plan
from eventd.testing.world_pool import SimPool
from eventd.testing.world_sources import Asks, Files, Ticks, Web

__all__ = ["PLANS", "SUITE", "Plan", "World", "live", "suite"]

DOWN_MS = (0, 0, 100, 2_000)
"""How long a dead daemon stays down."""
AT_A_PLACE = 0.4
SHOWN = 40
"""Lines of history before the first problem that a report shows."""
MOST_STEPS = 400_000


class World:
    """One seeded run of a daemon's life, through crashes, to its end. `problems` is what was broken."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.chance = random.Random(f"{seed}")
        self.now = 0
        """Virtual milliseconds since the birth of the world: the clock that is never set."""
        self.offset = START_MS
        self.history: list[str] = []
        self.problems: list[str] = []
        self.points: Counter[str] = Counter()
        self.died_at: Counter[str] = Counter()
        self.calm = False
        self.up = False
        self.boots = 0
        self.booted_at = 0
        self.overloaded = ""
        self._crashes = plan.crashes
        self._fuse, self._place = self._draw()
        self._agenda: list[tuple[int, int, int, Callable[..., object], tuple[Any, ...], Handle]] = []
        self._number = 0
        self.audit = Audit(self.blame, lambda: self.now, self.now_ms)
        self.tables = AuditedTables(self.audit)
        self.began: dict[str, tuple[int, ...]] = {}
        self.lost: dict[int, Known] = {}
        self.acknowledged: dict[tuple[str, str], bool] = {}
        self.told_settled: dict[int, int] = {}
        self.burst_at = self.chance.randrange(plan.horizon_ms // 2)
        self.web, self.ticks, self.files, self.asks = Web(self), Ticks(self), Files(self), Asks(self)
        self.rules, self.people, self.watch = SimRules(self), People(self), Watch(self)
        self.audit.most = {name: function.retry.attempts for name, function in self.rules.settings().items()}
        self.at(0, self.boot)

    # --- time, chance and the end of a process ---

    def at(self, when: int, call: Callable[..., object], *args: Any) -> Handle:
        """Do something at a virtual time, whoever lives then."""
        return self._put(when, -1, call, args)

    def daemon(self, ms: int, call: Callable[..., object], *args: Any) -> Handle:
        """A timer of the process that lives now."""
        return self._put(self.now + ms, self.boots, call, args)

    def _put(self, when: int, boot: int, call: Callable[..., object], args: tuple[Any, ...]) -> Handle:
        handle = Handle()
        self._number += 1
        heapq.heappush(self._agenda, (when, self._number, boot, call, args, handle))
        return handle

    def now_ms(self) -> int:
        return self.now + self.offset

    def monotonic(self) -> float:
        return self.now / 1000

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    def _draw(self) -> tuple[int, str]:
        """When the next death comes: after so many crash points, a few as likely as many; or when a certain one comes up first."""
        far = self.maybe(AT_A_PLACE)
        fuse = int(math.exp(self.chance.random() * math.log(self.plan.spread)))
        return (4 * self.plan.spread, self.chance.choice(POINTS)) if far else (fuse, "")

    def point(self, kind: str) -> None:
        """A place where the process may die."""
        self.points[kind] += 1
        if self._crashes <= 0 or self.calm:
            return
        self._fuse -= 1
        if self._fuse <= 0 or kind == self._place:
            self._crashes -= 1
            self._fuse, self._place = self._draw()
            self.died_at[kind] += 1
            self.note(f"dies {kind}")
            raise Crash

    def kill(self) -> None:
        """Poison has had its effect."""
        self.note("dies of poison")
        raise Crash

    def note(self, line: str) -> None:
        self.history.append(f"{self.now} {line}")

    def blame(self, promise: str, what: str) -> None:
        self.problems.append(f"promise {promise} at {self.now} ms: {what}")
        self.note(f"PROBLEM {promise}: {what}")

    def appended(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, Began):
                self.began[fact.run] = fact.seqs
            elif isinstance(fact, Ended) and fact.record is not None:
                self.audit.moves_after(fact.record, fact.moves)

    # --- a process ---

    def boot(self) -> None:
        self.boots += 1
        self.booted_at = self.now
        self.note(f"boot {self.boots}")
        self.journal = SimJournal(self, self.tables)
        self.journal.overloaded = self.overloaded
        self.journal.on_owed = self._owed
        self.pool, self.book = SimPool(self), Book()
        self.engine = Engine(
            journal=self.journal, pool=self.pool, history=self.book, clock=self, observer=self.book, boot=f"b{self.boots}",  # type: ignore[arg-type]
            dice=SeededDice(self.chance, f"b{self.boots}"), loop=VirtualLoop(self),  # type: ignore[arg-type]
        )  # fmt: skip
        self.point("before load")
        known = self.finish(self.journal.load())
        self.intake = Intake(self.engine, self.book, next_event=known.next_event, next_invocation=known.next_invocation)
        self.rules.booted()
        self.engine.functions = self.rules.settings()
        self.engine.tell(self.rules.signal())
        self.lost = {row.seq: self.audit.known[row.seq] for row, _, _ in known.running if row.lost + 1 < SUSPECT}
        self.finish(self.engine.start(known))
        self.point("after boot")
        self.up = True
        self.people.booted()
        self.ticks.booted()
        self.asks.booted()
        self.files.booted()
        self.daemon(AT_ONCE_MS, self.watch.boot_over)

    def _owed(self, row: OwedRow) -> None:
        self.daemon(0, self.files.tell_all)

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of the daemon to its end, committing whenever it waits."""
        try:
            while True:
                work.send(None)
                self.journal.commit()
        except StopIteration as done:
            return done.value
        finally:
            work.close()

    def die(self) -> None:
        """The process is gone; of what waited for a commit, some may have reached the disk."""
        keep = self.chance.randrange(self.journal.waiting + 1)
        self.note(f"crash, {keep} of {self.journal.waiting} waiting calls durable")
        self.journal.crash(keep)
        self._gone()

    def end_of_process(self) -> None:
        """A clean end: nothing is lost, and each run that was counted has its record."""
        self.note("stopped")
        rows = [kept.id for kept in self.tables.kept.values() if kept.state is State.RUNNING]
        if rows:
            self.blame("drain", f"after a clean stop these still count as running, and would be lost: {rows}")
        recorded = {run for run, record in self.audit.recorded.items() if record.boot == self.engine.boot}
        counted = set(self.book.counted) - {record.run for record in self.book.direct}
        if recorded != counted:
            self.blame("records", f"counted and recorded runs differ: {sorted(recorded ^ counted)}")
        self.engine.close()
        self.journal.crash(0)
        self._gone()

    def _gone(self) -> None:
        self.up = False
        self.boots += 1  # the timers of this process are gone
        self.at(self.now + self.chance.choice(DOWN_MS), self.boot)

    # --- the run of the world ---

    def play(self) -> None:
        """Live through the agenda; then faults end, and everything open must come to its end."""
        with windows(self.plan.window):
            try:
                self._play(self.plan.horizon_ms)
                self.calm = True
                self.note("calm")
                if self.up:
                    self.people.go()
                self._play(self.plan.horizon_ms + self.plan.calm_ms)
                at_the_end(self)
            except Broken:
                pass
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.blame("0", f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})")

    def _play(self, until: int) -> None:
        steps = 0
        while self._agenda and self._agenda[0][0] <= until:
            when, _, boot, call, args, handle = heapq.heappop(self._agenda)
            if handle.cancelled or (boot >= 0 and boot != self.boots):
                continue
            self.now = when
            steps += 1
            if steps > MOST_STEPS:
                self.blame("0", "the world does not come to rest")
                raise Broken
            try:
                call(*args)
            except Crash:
                self.die()
            self.watch.balance()
            if self.calm and call == self.boot and not self.problems:
                self.people.go()

    @property
    def digest(self) -> str:
        """Of the whole history: two lives of one seed have the same."""
        return hashlib.blake2b("\n".join(self.history).encode(), digest_size=16).hexdigest()

    def report(self, plan: str) -> str:
        """What a failing test shows: the problem, what led to it, and how to see it again."""
        first = next((number for number, line in enumerate(self.history) if " PROBLEM " in line), len(self.history))
        lines = "\n".join(self.history[max(0, first - SHOWN) : first + 1])
        problems = "\n".join(self.problems[:5])
        command = f"python -m eventd.testing.world {self.seed} {plan}"
        return f"{lines}\n\n{problems}\n\nseed {self.seed} of plan '{plan}'; to see it again: {command}"


@contextmanager
def windows(rows: int) -> Iterator[None]:
    """Fewer rows of a queue in memory, so that a small backlog is paged like a large one; and no log lines."""
    names = vars(step)
    before = {name: names[name] for name in ("WINDOW", "LOW")}
    disabled = logging.root.manager.disable
    logging.disable()
    if rows:
        names.update(WINDOW=rows, LOW=max(1, rows // 2))
    try:
        yield
    finally:
        names.update(before)
        logging.disable(disabled)


def live(seed: int, plan: Plan) -> World:
    """A world from its birth to its end, checked."""
    world = World(seed, plan)
    world.play()
    return world


def suite() -> Iterator[tuple[int, str]]:
    """(seed, plan) of every world of the suite, the plans taking turns."""
    for seed in range(max(SUITE.values())):
        for name, seeds in SUITE.items():
            if seed < seeds:
                yield seed, name


def live_all() -> int:
    """Every world of the suite until one goes wrong; its report, and 1, if one does."""
    print(f"the code of {os.path.dirname(step.__file__)}")
    count = 0
    for seed, name in suite():
        count += 1
        world = live(seed, PLANS[name])
        if world.problems:
            print(world.report(name))
            return 1
    print(f"every promise held in {count} worlds")
    return 0


def main(arguments: Sequence[str]) -> int:
    """`SEED [PLAN]`: the history of one world on stdout, its problems last; 1 if there are any. `suite`: all worlds."""
    if list(arguments) == ["suite"]:
        return live_all()
    name = arguments[1] if len(arguments) > 1 else "mixed"
    if len(arguments) not in (1, 2) or not arguments[0].isdigit() or name not in PLANS:
        print(f"usage: python -m eventd.testing.world SEED [{' | '.join(PLANS)}] | suite", file=sys.stderr)
        return 2
    world = live(int(arguments[0]), PLANS[name])
    print("\n".join(world.history))
    print("\n".join(["", *(world.problems or ["every promise held"])]))
    return 1 if world.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
