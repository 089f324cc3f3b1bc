"""What a simulated daemon stands on: virtual time, counted chance, a journal whose every step may be the last one.

Nothing here waits, and nothing asks the machine for the time or for chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eventd.core.facts import Accepted, EventRow, Fact, InvocationRow
from eventd.errors import EventdError
from eventd.journal.memory import MemoryJournal
from eventd.journal.memory_tables import MemoryTables
from eventd.model import RunRecord
from eventd.ports import OutputChunk, Stored

START_MS = 1_790_000_000_000
"""The wall clock at the birth of a world."""
COMMIT_MS = (0, 0, 0, 1, 2, 20)
"""How long the writer thread takes to come round to what waits."""
_CALLS = (
    "accept", "append Acknowledged", "append Began", "append Discarded", "append Ended", "append Expired", "append PauseSet",
    "append nothing", "event", "page",
)  # fmt: skip
POINTS: tuple[str, ...] = (
    *(f"{when} {call}" for call in _CALLS for when in ("before", "after", "before told", "after told")),
    "before commit", "halfway commit", "after commit",
    *(f"{when} {effect}" for effect in ("start", "stop", "end", "ack", "answer", "settle", "acknowledge") for when in ("before", "after")),
    "before load", "after boot",
)  # fmt: skip
"""Every place where a simulated process may die. `told` is the journal's answer to a call."""


class Crash(BaseException):
    """The process dies here. Not an Exception: nothing in the daemon may catch it."""


class Ground(Protocol):
    """What the parts need of the world."""

    @property
    def calm(self) -> bool: ...
    @property
    def chance(self) -> random.Random: ...
    def point(self, kind: str) -> None:
        """A place where the process may die. Raises Crash when this is the one."""
        ...

    def daemon(self, ms: int, call: Callable[..., object], *args: Any) -> Handle:
        """A timer of the process that lives now; it dies with it."""
        ...

    def appended(self, facts: Sequence[Fact]) -> None: ...


class Handle:
    """A timer that can be cancelled."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


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


class VirtualLoop:
    """The part of an event loop that the engine uses, over virtual time."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Handle:
        return self._ground.daemon(max(0, round(delay * 1000)), call, *args)

    def call_soon(self, call: Callable[..., object], *args: Any) -> Handle:
        return self._ground.daemon(0, call, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    def create_future(self) -> Future:
        return Future()


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


class Book:
    """The observer and the history of one process: what it counted and which direct runs it recorded."""

    def __init__(self) -> None:
        self.counted: list[str] = []
        self.direct: list[RunRecord] = []

    def record(self, record: RunRecord) -> None:
        self.direct.append(record)

    def output(self, chunk: OutputChunk) -> None:
        return None

    def finished(self, record: RunRecord) -> None:
        self.counted.append(record.run)

    def throttled(self, function: str) -> None:
        return None

    def accepted(self, trigger: str) -> None:
        return None

    def duplicate(self, trigger: str) -> None:
        return None

    def filtered(self, binding: str) -> None:
        return None


class SimJournal(MemoryJournal):
    """One process's hold on the tables, with a place to die before and after each call, each answer and each commit.

    Commits come when the writer thread comes round, often for a part of what waits. A death halfway through a commit is one
    that leaves a prefix of the waiting calls durable and nobody told: `World.die` draws how many for every death.
    """

    def __init__(self, ground: Ground, tables: MemoryTables) -> None:
        super().__init__(tables=tables)
        self._ground = ground
        self._writing = False

    def accept(self, fact: Accepted, done: Callable[[Stored | EventdError], None]) -> None:
        self._ground.point("before accept")
        super().accept(fact, self._told("accept", done))
        self._ground.point("after accept")

    def append(self, facts: Sequence[Fact], done: Callable[[], None]) -> None:
        kind = type(facts[0]).__name__ if facts else "nothing"
        self._ground.point(f"before append {kind}")
        self._ground.appended(facts)
        super().append(facts, self._told(f"append {kind}", done))
        self._ground.point(f"after append {kind}")

    def page(
        self,
        binding: str | None,
        function: str,
        after: tuple[int, int],
        upto_due: int,
        limit: int,
        done: Callable[[Sequence[InvocationRow], int | None], None],
    ) -> None:
        self._ground.point("before page")
        super().page(binding, function, after, upto_due, limit, self._told("page", done))
        self._ground.point("after page")

    def event(self, seq: int, done: Callable[[EventRow], None]) -> None:
        self._ground.point("before event")
        super().event(seq, self._told("event", done))
        self._ground.point("after event")

    def write(self) -> None:
        """The writer thread has come round."""
        self._writing = False
        ground, waiting = self._ground, self.waiting
        if not waiting:
            return
        part = waiting if ground.calm or ground.chance.random() < 0.7 else ground.chance.randrange(1, waiting + 1)
        ground.point("before commit")
        ground.point("halfway commit")
        self.commit(part)
        ground.point("after commit")
        if self.waiting:
            self._wake()

    def _told(self, kind: str, done: Callable[..., None]) -> Callable[..., None]:
        def told(*answer: Any) -> None:
            self._ground.point(f"before told {kind}")
            done(*answer)
            self._ground.point(f"after told {kind}")

        return told

    def _submit(self, op: Any) -> None:
        super()._submit(op)
        self._wake()

    def _wake(self) -> None:
        if not self._writing:
            self._writing = True
            self._ground.daemon(self._ground.chance.choice(COMMIT_MS), self.write)
