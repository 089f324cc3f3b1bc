"""Run history in runs.db: a database of its own that may be deleted at any time. One supervised thread writes it in batches.

Trouble here never touches the journal. On a full disk what was recorded waits in bounded buffers, oldest dropped and counted; a
damaged file is moved aside (`runs.db.damaged`) and a new one begun; both are told through `on_failed`, once each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from eventd.errors import EventdError
from eventd.journal.history_reads import HistoryReads
from eventd.journal.history_writer import HistoryWriter, StoreJob, Telling
from eventd.model import HistorySettings, RunRecord
from eventd.ports import Json, OutboxRow, OutputChunk, Page, Query

FLUSH_SECONDS: Final = 0.25
FLUSH_ROWS: Final = 2_000
PENDING_RECORDS: Final = 100_000
PENDING_OUTPUT: Final = 16 * 1024**2
_RETRY_SECONDS: Final = 1.0

T = TypeVar("T")


async def open_history(
    state_dir: str,
    settings: HistorySettings,
    *,
    now_ms: Callable[[], int],
    on_failed: Callable[[EventdError], None],
    on_records: Callable[[list[RunRecord]], None] | None = None,
) -> SqliteHistory:
    """Open or create runs.db in a state folder that this process holds, and start its thread.

    `on_failed` runs on the event loop. `on_records` runs in the history's thread after each batch is on disk, with the records
    that were new; it may block for a moment. `now_ms` is asked for retention, also in the thread. Raises nothing for a
    damaged or unwritable file: that is told through `on_failed`.
    """
    history = SqliteHistory(state_dir, settings, now_ms=now_ms, on_failed=on_failed, on_records=on_records)
    await history.start()
    return history


class SqliteHistory:
    """See `ports.History`. Call it on the event loop it was opened on."""

    def __init__(
        self,
        state_dir: str,
        settings: HistorySettings,
        *,
        now_ms: Callable[[], int],
        on_failed: Callable[[EventdError], None],
        on_records: Callable[[list[RunRecord]], None] | None,
    ) -> None:
        path = Path(state_dir).absolute() / "runs.db"
        self.dropped = 0
        """Records and chunks of output given up because the disk did not take them in time."""
        self._loop = asyncio.get_running_loop()
        self._on_failed = on_failed
        self._records: deque[RunRecord] = deque()
        self._output: deque[OutputChunk] = deque()
        self._output_bytes = 0
        self._jobs: deque[StoreJob] = deque()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._closing = False
        self._writer = HistoryWriter(path, settings, now_ms=now_ms, on_records=on_records, tell=self._tell)
        self._reads = HistoryReads(path)
        self._limiter = anyio.CapacityLimiter(2)
        self._thread = threading.Thread(target=self._run, name="eventd-history", daemon=True)

    async def start(self) -> None:
        """Start the thread; runs.db is there when this returns, unless the disk is full."""
        self._thread.start()
        with contextlib.suppress(EventdError):  # told through on_failed
            await self.flush()

    # --- ports.HistorySink: the hot path ---

    def record(self, record: RunRecord) -> None:
        records = self._records
        records.append(record)
        waiting = len(records)
        if waiting == 1:
            self._wake.set()
        elif waiting == FLUSH_ROWS:
            self._urgent.set()
        elif waiting > PENDING_RECORDS:
            records.popleft()
            self.dropped += 1

    def output(self, chunk: OutputChunk) -> None:
        output = self._output
        output.append(chunk)
        self._output_bytes += len(chunk.data)
        if len(output) == 1:
            self._wake.set()
        if self._output_bytes > PENDING_OUTPUT // 4:
            self._urgent.set()
            while self._output_bytes > PENDING_OUTPUT:
                try:
                    self._output_bytes -= len(output.popleft().data)
                    self.dropped += 1
                except IndexError:  # the thread was quicker; its reckoning follows
                    break

    # --- ports.History ---

    async def flush(self) -> None:
        """Everything recorded before is on disk when this returns. Raises E-OVERLOADED when the disk does not take it."""
        await self._do(())

    async def store(self, rows: Sequence[OutboxRow]) -> None:
        """Copy outbox rows; durable when it returns, and repeating it changes nothing. Raises E-OVERLOADED: try again later."""
        await self._do(tuple(rows))

    async def runs(self, query: Query) -> Page:
        return await self._read(partial(self._reads.runs, query))

    async def run(self, run: str) -> Json | None:
        return await self._read(partial(self._reads.run, run))

    async def ended(self, query: Query) -> Page:
        return await self._read(partial(self._reads.ended, query))

    async def stats(self, query: Query) -> Sequence[Json]:
        return await self._read(partial(self._reads.stats, query))

    async def logs(self, query: Query, lines: int, run: str | None) -> Sequence[Json]:
        return (await self.logs_after(query, lines, run))[0]

    async def logs_after(self, query: Query, lines: int, run: str | None) -> tuple[Sequence[Json], str]:
        """`logs` and the cursor to ask with for what comes after; with `query.cursor` the first lines after it."""
        return await self._read(partial(self._reads.logs, query, lines, run))

    async def aclose(self) -> None:
        """Write what is pending, as far as the disk takes it, and end the thread. Repeating it does nothing."""
        self._closing = True
        self._urgent.set()
        self._wake.set()
        await anyio.to_thread.run_sync(self._thread.join)

    # --- inside ---

    async def _do(self, rows: Sequence[OutboxRow]) -> None:
        if self._closing:
            raise EventdError("E-DRAINING", "the run history is closed.")
        future: asyncio.Future[None] = self._loop.create_future()
        self._jobs.append(StoreJob(rows, partial(self._post, _answer, future)))
        self._urgent.set()
        self._wake.set()
        await future

    async def _read(self, call: Callable[[], T]) -> T:
        """Show what is pending too; if it cannot be written, show what there is."""
        try:
            await self.flush()
        except EventdError as error:
            if error.code != "E-OVERLOADED":
                raise
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)

    def _post(self, call: Callable[..., Any], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return  # the loop is closed

    def _tell(self, telling: Telling) -> None:
        self._post(self._told, telling)

    def _told(self, telling: Telling) -> None:
        self.dropped += telling.dropped
        if telling.error is not None:
            self._on_failed(telling.error)

    def _run(self) -> None:
        """The thread. It cannot die: the writer turns every error into something told and something to retry."""
        while True:
            self._wake.wait()
            if not self._closing:
                self._urgent.wait(_RETRY_SECONDS if self._writer.in_trouble else FLUSH_SECONDS)
            closing = self._closing
            self._wake.clear()
            self._urgent.clear()
            records = [self._records.popleft() for _ in range(min(len(self._records), PENDING_RECORDS))]
            chunks: list[OutputChunk] = []
            while self._output:
                try:
                    chunk = self._output.popleft()
                except IndexError:
                    break
                chunks.append(chunk)
            taken = sum(len(chunk.data) for chunk in chunks)
            if taken:
                self._post(self._took, taken)
            jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
            self._writer.batch(records, chunks, jobs, closing=closing)
            if closing:
                self._writer.close()
                return
            if self._writer.pending or self._records or self._output or self._jobs:
                self._wake.set()

    def _took(self, size: int) -> None:
        self._output_bytes -= size


def _answer(future: asyncio.Future[None], error: EventdError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
