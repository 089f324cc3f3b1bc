"""The journal on SQLite: what the event loop sees of the writer thread (`ports.Journal` and `ports.JournalReads`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import anyio.to_thread

from eventd import __version__
from eventd.core.facts import Accepted, EventRow, Fact, InvocationRow
from eventd.errors import EventdError, Overloaded
from eventd.journal.codec import format_cursor, parse_cursor, unstorable
from eventd.journal.folder import Folder
from eventd.journal.ops import AcceptOp, Answer, AppendOp, CloseOp, Op, ReadOp
from eventd.journal.reads import PAYLOADS, Reads, Slice
from eventd.journal.writer import Writer
from eventd.model import JournalSettings
from eventd.ports import Boot, JournalStats, OutboxRow, OwedRow, Page, Query, Stored

PENDING_OPS: Final = 65_536
PENDING_BYTES: Final = 128 * 1024**2
"""What may wait for the writer thread. Beyond either an acceptance is refused; facts are never refused, they are bounded by
the runs that can be going on at once."""
_SLICES: Final = 400
_ROW_OVERHEAD: Final = 512

T = TypeVar("T")
SliceRead = Callable[[Reads, Query, int, tuple[int, ...] | None], Slice]


async def open_journal(
    state_dir: str, settings: JournalSettings, *, boot: str, loop: asyncio.AbstractEventLoop | None = None
) -> SqliteJournal:
    """Take the state folder, open or create its journal.db, and start the writer thread.

    Raises E-LOCKED (another daemon, its pid named), E-SCHEMA (written by a newer eventd), E-STORAGE, E-DAMAGED; then nothing is
    held. When it returns, everything it found is durable. Cancelling it while it opens leaves the folder locked until the
    process ends.
    """
    loop = loop or asyncio.get_running_loop()
    folder = Folder.hold(state_dir, boot)
    journal = SqliteJournal(folder, settings, loop)
    try:
        await journal.start()
    except EventdError:
        folder.release()
        raise
    return journal


class SqliteJournal:
    """See `ports.Journal`. Not thread-safe: call it on the event loop it was opened on.

    Callbacks come in the order of the calls, with one exception: a refusal for want of room (Overloaded) may overtake.
    """

    failed: Callable[[EventdError], None]
    """Called once, on the loop, when storage fails; no callback follows, and waiting reads raise the same error."""
    on_owed: Callable[[OwedRow], None]
    """Called on the loop for each settlement that became owed, after the callbacks of the commit that made it durable."""

    def __init__(self, folder: Folder, settings: JournalSettings, loop: asyncio.AbstractEventLoop) -> None:
        self.failed = self._unheard
        self.on_owed = _nobody
        self.writer = Writer(
            folder,
            settings,
            program=__version__,
            loop=loop,
            deliver=self._deliver,
            closed=self._closed,
            broke=self._broke,
            opened=self._opened,
        )
        self._folder = folder
        self._loop = loop
        self._opening: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._asking: set[asyncio.Future[Any]] = set()
        self._pending = 0
        self._pending_bytes = 0
        self._error: EventdError | None = None
        self._closing = False

    # --- ports.Journal ---

    def accept(self, fact: Accepted, done: Callable[[Stored | EventdError], None]) -> None:
        """Store an acceptance; `done` gets Stored after the fsync, or Overloaded, Conflict or E-USAGE, and then nothing was stored."""
        if self._error is not None:
            return
        refusal = unstorable(fact)
        if self._closing:
            refusal = EventdError("E-DRAINING", "the journal is closed.", "Send the event again when the daemon is back.")
        elif self._pending >= PENDING_OPS or self._pending_bytes >= PENDING_BYTES:
            refusal = Overloaded(f"the journal takes no events: {self._pending} changes wait to be written.", "Try again in a moment.")
        if refusal is not None:
            self._loop.call_soon(done, refusal)
            return
        size = len(fact.event.data) + _ROW_OVERHEAD * (1 + len(fact.invocations))
        self._submit(AcceptOp(fact, done, size))

    def append(self, facts: Sequence[Fact], done: Callable[[], None]) -> None:
        """Store facts in one transaction; `done` after the fsync. On a full disk they wait, in order, until there is room."""
        if self._error is not None:
            return
        if self._closing:
            raise EventdError("E-INTERNAL", "facts were appended to a journal that is closed.")
        size = _ROW_OVERHEAD * len(facts)
        for fact in facts:
            if isinstance(fact, Accepted):
                size += len(fact.event.data)
        self._submit(AppendOp(tuple(facts), done, size))

    def page(
        self,
        binding: str | None,
        function: str,
        after: tuple[int, int],
        upto_due: int,
        limit: int,
        done: Callable[[Sequence[InvocationRow], int | None], None],
    ) -> None:
        if self._error is None:
            self._submit(ReadOp(lambda reads: reads.page(binding, function, after, upto_due, limit), lambda found: done(*found)))

    def event(self, seq: int, done: Callable[[EventRow], None]) -> None:
        if self._error is None:
            self._submit(ReadOp(lambda reads: reads.whole_event(seq), done))

    # --- ports.JournalReads ---

    async def load(self) -> Boot:
        """What the journal knows at start. `owed` holds the oldest 4,096 at most; ask `owed()` for what follows them."""
        return await self._ask(Reads.load)

    async def events(self, query: Query) -> Page:
        return await self._listing(Reads.events_slice, query, 1)

    async def dead(self, query: Query) -> Page:
        return await self._listing(Reads.dead_slice, query, 2)

    async def dead_seqs(self, query: Query, limit: int) -> Sequence[InvocationRow]:
        rows: list[InvocationRow] = []
        after: tuple[int, ...] | None = None
        while len(rows) < limit:
            room, start = limit - len(rows), after
            found, after = await self._ask(partial(Reads.dead_seqs_slice, query=query, room=room, after=start))
            rows += found
            if after is None:
                break
        return rows

    async def invocations(self, ids: Sequence[str]) -> Sequence[InvocationRow]:
        return await self._ask(lambda reads: reads.invocations(ids))

    async def ledger_get(self, trigger: str, key: bytes) -> bytes | None:
        return await self._ask(lambda reads: reads.ledger_get(trigger, key))

    async def ledger_page(self, trigger: str, prefix: bytes, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]:
        return await self._ask(lambda reads: reads.ledger_page(trigger, prefix, after, limit))

    async def owed(self, trigger: str, after: int, limit: int) -> Sequence[OwedRow]:
        return await self._ask(lambda reads: reads.owed(trigger, after, limit))

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        return await self._ask(lambda reads: reads.outbox(limit))

    async def expired_dead(self, before: int, limit: int) -> Sequence[InvocationRow]:
        return await self._ask(lambda reads: reads.expired_dead(before, limit))

    def stats(self) -> JournalStats:
        return self.writer.stats

    async def aclose(self) -> None:
        """Everything appended before is durable when this returns; then a checkpoint, then the lock is released.

        Raises the storage error if that could not be done. On cancel the closing goes on by itself. Repeating it does nothing.
        """
        if not self._closing:
            self._closing = True
            if self._error is None:
                self.writer.queue.put(CloseOp())
        await asyncio.shield(self._ended)
        await anyio.to_thread.run_sync(self.writer.join)

    # --- inside ---

    async def start(self) -> None:
        """Start the writer thread and wait until it has opened the database."""
        self.writer.start()
        await asyncio.shield(self._opening)

    def _submit(self, op: Op) -> None:
        self._pending += 1
        self._pending_bytes += op.size
        self.writer.queue.put(op)

    async def _ask(self, call: Callable[[Reads], T]) -> T:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise EventdError("E-DRAINING", "the journal is closed.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._asking.add(future)
        future.add_done_callback(self._asking.discard)

        def answer(found: T) -> None:
            if not future.done():
                future.set_result(found)

        self._submit(ReadOp(call, answer))
        return await future

    async def _listing(self, read: SliceRead, query: Query, parts: int) -> Page:
        after = parse_cursor(query.cursor, parts)
        rows: list[dict[str, Any]] = []
        for _ in range(_SLICES):
            room, start = query.limit - len(rows), after
            found, after = await self._ask(partial(_slice, read, query, room, start))
            rows += found
            enough = query.payload and sum(row["bytes"] for row in rows) > PAYLOADS
            if after is None or len(rows) >= query.limit or enough:
                break
        return Page(rows, None if after is None else format_cursor(*after))

    def _opened(self, error: EventdError | None) -> None:
        if self._opening.done():
            return
        if error is None:
            self._opening.set_result(None)
        else:
            self._error = error
            self._opening.set_exception(error)

    def _deliver(self, answers: list[Answer], count: int, size: int, owed: Sequence[OwedRow]) -> None:
        self._pending -= count
        self._pending_bytes -= size
        if self._error is not None:
            return
        for done, args in answers:
            try:
                done(*args)
            except Exception as error:
                self._mistake(done, error)
        for row in owed:
            try:
                self.on_owed(row)
            except Exception as error:
                self._mistake(self.on_owed, error)

    def _mistake(self, call: object, error: Exception) -> None:
        """A callback must not raise; one that does must not keep the others from their answers."""
        self._loop.call_exception_handler({"message": f"journal callback {call!r} raised", "exception": error})

    def _broke(self, error: EventdError) -> None:
        if self._error is not None:
            return
        self._error = error
        for future in list(self._asking):
            if not future.done():
                future.set_exception(error)
        if self._closing:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
        self._folder.release()
        self.failed(error)

    def _closed(self) -> None:
        self._folder.release()
        if not self._ended.done():
            self._ended.set_result(None)

    def _unheard(self, error: EventdError) -> None:
        self._loop.call_exception_handler({"message": "the journal failed and nobody listens", "exception": error})


def _slice(read: SliceRead, query: Query, room: int, after: tuple[int, ...] | None, reads: Reads) -> Slice:
    return read(reads, query, room, after)


def _nobody(row: OwedRow) -> None:
    return None
