"""The journal's contract in memory, with the semantics of a crash: for the simulation and for tests. No thread, no clock, no chance.

Two parts, as with a real disk: `MemoryTables` is what is durable, `MemoryJournal` is one process's hold on it. Calls wait until
`commit`; `crash` forgets what waited, except for a prefix that may have reached the disk although nobody was told; `reopen` is
the next process. With `auto=True` a commit follows each call on the running event loop, as from a writer thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eventd.core.facts import Accepted, EventRow, Fact, InvocationRow
from eventd.errors import EventdError, Overloaded
from eventd.journal import apply
from eventd.journal.codec import format_cursor, parse_cursor, unstorable
from eventd.journal.memory_tables import MemoryTables
from eventd.journal.ops import AcceptOp, AppendOp
from eventd.model import JournalSettings
from eventd.ports import Boot, JournalStats, Json, OutboxRow, OwedRow, Page, Query, Stored

T = TypeVar("T")


class _ReadOp:
    def __init__(self, call: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.call = call
        self.done = done


class MemoryJournal:
    """`ports.Journal` and `ports.JournalReads` over `tables`.

    The awaited reads never wait: with `auto` they first commit what waits, else they see what is durable at that moment.
    """

    failed: Callable[[EventdError], None]
    on_owed: Callable[[OwedRow], None]

    def __init__(self, settings: JournalSettings | None = None, *, tables: MemoryTables | None = None, auto: bool = False) -> None:
        self.settings = settings or JournalSettings()
        self.tables = tables or MemoryTables()
        self.failed = _raise
        self.on_owed = _nobody
        self.overloaded = ""
        """Set it to a reason to refuse events, as a full disk would."""
        self._auto = auto
        self._scheduled = False
        self._waiting: list[AcceptOp | AppendOp | _ReadOp] = []
        self._error: EventdError | None = None
        self._gone = False

    # --- ports.Journal ---

    def accept(self, fact: Accepted, done: Callable[[Stored | EventdError], None]) -> None:
        refusal = unstorable(fact)
        if refusal is not None:
            self._submit(_ReadOp(lambda: refusal, done))
        else:
            self._submit(AcceptOp(fact, done, len(fact.event.data)))

    def append(self, facts: Sequence[Fact], done: Callable[[], None]) -> None:
        self._submit(AppendOp(tuple(facts), done, 0))

    def page(
        self,
        binding: str | None,
        function: str,
        after: tuple[int, int],
        upto_due: int,
        limit: int,
        done: Callable[[Sequence[InvocationRow], int | None], None],
    ) -> None:
        self._submit(_ReadOp(lambda: self.tables.page(binding, function, after, upto_due, limit), lambda found: done(*found)))

    def event(self, seq: int, done: Callable[[EventRow], None]) -> None:
        self._submit(_ReadOp(lambda: self.tables.whole_event(seq), done))

    # --- the disk, as the simulation sees it ---

    @property
    def waiting(self) -> int:
        """How many calls wait for a commit."""
        return len(self._waiting)

    def commit(self, n: int | None = None) -> int:
        """Make the first `n` waiting calls (all by default) durable, then call them back in order. Returns how many."""
        self._scheduled = False
        batch = self._take(n)
        owed: list[OwedRow] = []
        try:
            answers = self._apply(batch, owed)
        except EventdError as error:
            self.fail(error)
            return 0
        for done, args in [*answers, *((self.on_owed, (row,)) for row in owed)]:
            if self._gone or self._error is not None:  # a callback may crash the process it stands for
                break
            done(*args)
        return len(batch)

    def crash(self, keep: int = 0) -> None:
        """The process dies. The first `keep` waiting calls are durable all the same, but nobody is called back, ever."""
        self._apply(self._take(keep), [])
        self._waiting.clear()
        self._gone = True

    def reopen(self) -> MemoryJournal:
        """The next process: a new journal over what is durable. The old one is dead."""
        if not self._gone:
            self.crash()
        return MemoryJournal(self.settings, tables=self.tables, auto=self._auto)

    def fail(self, error: EventdError) -> None:
        """Storage fails now: `failed` once, and no callback after it."""
        if not self._gone and self._error is None:
            self._error = error
            self._waiting.clear()
            self.failed(error)

    def _take(self, n: int | None) -> list[AcceptOp | AppendOp | _ReadOp]:
        if self._gone or self._error is not None:
            return []
        batch, self._waiting = self._waiting[:n], self._waiting[n:] if n is not None else []
        return batch

    def _apply(
        self, batch: Sequence[AcceptOp | AppendOp | _ReadOp], owed: list[OwedRow]
    ) -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
        answers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        window = self.settings.dedup_window_ms
        for op in batch:
            if isinstance(op, _ReadOp):
                answers.append((op.done, (op.call(),)))
            elif isinstance(op, AppendOp):
                for fact in op.facts:
                    apply.append(self.tables, fact, window, owed)
                answers.append((op.done, ()))
            elif why := self._refusal():
                answers.append((op.done, (Overloaded(f"the journal in memory takes no events: {why}."),)))
            else:
                answers.append((op.done, (apply.accept(self.tables, op.fact, window, owed),)))
        return answers

    def _refusal(self) -> str:
        return self.overloaded or ("it is over its limit" if self.tables.size >= self.settings.limit else "")

    def _submit(self, op: AcceptOp | AppendOp | _ReadOp) -> None:
        if self._gone or self._error is not None:
            return
        self._waiting.append(op)
        if self._auto and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.commit)

    # --- ports.JournalReads ---

    async def load(self) -> Boot:
        return self._now(self.tables.load)

    async def events(self, query: Query) -> Page:
        after = parse_cursor(query.cursor, 1)
        return self._page(*self._now(lambda: self.tables.events_slice(query, query.limit, after)))

    async def dead(self, query: Query) -> Page:
        after = parse_cursor(query.cursor, 2)
        return self._page(*self._now(lambda: self.tables.dead_slice(query, query.limit, after)))

    async def dead_seqs(self, query: Query, limit: int) -> Sequence[InvocationRow]:
        return self._now(lambda: self.tables.dead_seqs(query, limit))

    async def invocations(self, ids: Sequence[str]) -> Sequence[InvocationRow]:
        return self._now(lambda: self.tables.by_ids(ids))

    async def ledger_get(self, trigger: str, key: bytes) -> bytes | None:
        return self._now(lambda: self.tables.ledgers.get((trigger, key)))

    async def ledger_page(self, trigger: str, prefix: bytes, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]:
        return self._now(lambda: self.tables.ledger_page(trigger, prefix, after, limit))

    async def owed(self, trigger: str, after: int, limit: int) -> Sequence[OwedRow]:
        return self._now(lambda: [row for row in self.tables.owed_rows() if row.trigger == trigger and row.seq > after][:limit])

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        return self._now(lambda: self.tables.outbox_rows()[:limit])

    async def expired_dead(self, before: int, limit: int) -> Sequence[InvocationRow]:
        return self._now(lambda: self.tables.expired_dead(before, limit))

    def stats(self) -> JournalStats:
        return JournalStats(self.tables.size, self.settings.limit, 0, self._refusal())

    async def aclose(self) -> None:
        self.commit()
        self._gone = True

    def _now(self, call: Callable[[], T]) -> T:
        if self._auto:
            self.commit()
        if self._error is not None:
            raise self._error
        if self._gone:
            raise EventdError("E-DRAINING", "the journal is closed.")
        return call()

    @staticmethod
    def _page(rows: Sequence[Json], after: tuple[int, ...] | None) -> Page:
        return Page(rows, None if after is None else format_cursor(*after))


def _nobody(row: OwedRow) -> None:
    return None


def _raise(error: EventdError) -> None:
    raise error
