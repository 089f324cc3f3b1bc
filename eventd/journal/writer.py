"""The writer thread: it owns the one connection, commits everything that waits as one transaction, and answers once it is durable.

The durable steps of a commit have names (`STEPS`), announced through `Writer.step`, so that each can be broken once.

A full disk is not a storage error. The acceptances of the batch are refused, the reserve is given back to the file system and
the rest is tried again; if even that fails, the facts wait in order, with bounded backoff, until there is room. Any other error
is final: no commit is tried again, because after a failed fsync a second one proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, assert_never

import apsw

from eventd.errors import EventdError, Overloaded
from eventd.journal import apply, schema
from eventd.journal.faults import DiskFull, explain, is_full
from eventd.journal.folder import Folder
from eventd.journal.maintenance import Maintenance
from eventd.journal.ops import AcceptOp, Answer, AppendOp, CloseOp, Op, ReadOp
from eventd.journal.reads import Reads
from eventd.journal.tables import SqliteTables
from eventd.model import JournalSettings
from eventd.ports import JournalStats, OwedRow

BATCH_OPS: Final = 2_000
BATCH_BYTES: Final = 16 * 1024**2
STEPS: Final = (
    "before-begin",
    "after-begin",
    "after-apply",
    "before-commit",
    "after-commit",
    "before-answer",
    "checkpoint",
    "reserve",
    "close",
)
FULL: Final = "the disk is full"
_FULL_PAUSE: Final = 0.1
_BACKOFF_MAX: Final = 2.0
_SPACE_EVERY: Final = 0.1
_MEASURE_EVERY: Final = 0.02
_MEASURE_BYTES: Final = 64 * 1024
"""What may be stored between two measurements, so that the limit is not overrun by much more."""
_CLOSE_PATIENCE: Final = 5.0


class Writer(threading.Thread):
    """See the module. The loop's side talks to it only through `queue`; it talks back only through `deliver` and `broke`."""

    def __init__(
        self,
        folder: Folder,
        settings: JournalSettings,
        *,
        program: str,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[Answer], int, int, Sequence[OwedRow]], None],
        closed: Callable[[], None],
        broke: Callable[[EventdError], None],
        opened: Callable[[EventdError | None], None],
    ) -> None:
        super().__init__(name="eventd-journal", daemon=True)
        self.queue: SimpleQueue[Op] = SimpleQueue()
        self.step: Callable[[str], None] = _no_step
        self.on_commit: Callable[[float], None] = _no_commit
        """Told how long each group commit took, fsync included; on the writer's thread."""
        self.stats = JournalStats(0, settings.limit, 0, "")
        self.commit_seconds = 0.0
        self.commits = 0
        self._folder = folder
        self._settings = settings
        self._program = program
        self._loop = loop
        self._deliver = deliver
        self._closed = closed
        self._broke = broke
        self._opened = opened
        self._waiting: deque[Op] = deque()
        self._full_until = 0.0
        self._backoff = 0.0
        self._retry_at = 0.0
        self._space_at = 0.0
        self._measure_at = 0.0
        self._unmeasured = 0
        self._free = 0
        self._wal_frames = 0
        self._applied_accepts = 0
        self._closing_since: float | None = None

    # --- life ---

    def run(self) -> None:
        try:
            self._open()
        except BaseException as error:
            self._post(self._opened, explain(error))
            return
        self._post(self._opened, None)
        try:
            while self._turn():
                pass
            self._close()
        except BaseException as error:
            # The connection closes without a checkpoint (NO_CKPT_ON_CLOSE): the WAL stays as it is for the next start.
            with contextlib.suppress(apsw.Error):
                self._connection.close()
            self._post(self._broke, explain(error))

    def _post(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    def _open(self) -> None:
        clean = self._folder.take_clean_mark()
        self._folder.create_journal()
        self._connection = apsw.Connection(str(self._folder.journal), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            try:
                self._load(clean)
            except apsw.FullError:
                if not self._folder.use_reserve():
                    raise
                self._load(clean)
        except BaseException:
            self._connection.close()
            raise

    def _load(self, clean: bool) -> None:
        connection = self._connection
        schema.configure(connection)
        # The hook replaces SQLite's automatic checkpoint and tells how long the WAL is.
        connection.set_wal_hook(self._on_wal)
        if not clean:
            # Frames that a failed fsync left in the page cache look clean to the kernel. Copying them into the database and
            # syncing that makes what this start sees durable again before anything is built on it. On a full disk it must wait.
            with contextlib.suppress(apsw.FullError):
                connection.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        schema.prepare(connection, self._folder.journal, self._program)
        self._tables = SqliteTables(connection)
        self._reads = Reads(connection, self._tables)
        self._maintenance = Maintenance(connection, self._folder, self._reads)
        if not clean:
            self._maintenance.check_after_unclean_stop()
        self._folder.make_reserve()
        self._measure()

    def _on_wal(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._wal_frames = pages
        return 0

    def _close(self) -> None:
        self.step("close")
        try:
            self._connection.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_TRUNCATE)
            clean = True
        except apsw.FullError:
            clean = False  # everything is durable in the WAL
        self._connection.close()
        if clean:
            self._folder.leave_clean_mark()
        self._post(self._closed)

    # --- the loop ---

    def _turn(self) -> bool:
        """Gather what waits and commit one batch of it. False when it is time to close."""
        stuck = self._backoff > 0
        self._gather(stuck)
        if stuck and time.monotonic() < self._retry_at:
            return True
        batch: list[Op] = []
        size = 0
        closing = False
        while self._waiting and len(batch) < BATCH_OPS and size < BATCH_BYTES:
            if isinstance(self._waiting[0], CloseOp):
                closing = not batch
                break
            op = self._waiting.popleft()
            batch.append(op)
            size += op.size
        if batch:
            self._commit(batch)
            if self._maintenance.overdue() and not self._backoff:
                self._maintenance.slice()
        elif not closing:
            self._maintenance.slice()
            self._measure()
        return not closing

    def _gather(self, stuck: bool) -> None:
        """Move what is queued into `_waiting`; block when there is nothing to do. While stuck, acceptances are refused at once."""
        waiting, get = self._waiting, self.queue.get_nowait
        try:
            if stuck:
                timeout: float | None = max(0.0, self._retry_at - time.monotonic())
                waiting.append(self.queue.get(timeout=timeout))
            elif not waiting:
                try:
                    waiting.append(get())
                except Empty:
                    waiting.append(self.queue.get(timeout=self._idle_seconds()))
            while len(waiting) < BATCH_OPS or stuck:
                waiting.append(get())
        except Empty:
            pass
        if stuck:
            refused = [op for op in waiting if isinstance(op, AcceptOp)]
            if refused:
                self._waiting = deque(op for op in waiting if not isinstance(op, AcceptOp))
                self._refuse(refused)
            if self._closing_since is None and any(isinstance(op, CloseOp) for op in self._waiting):
                self._closing_since = time.monotonic()
            if self._closing_since is not None and time.monotonic() - self._closing_since > _CLOSE_PATIENCE:
                raise EventdError(
                    "E-STORAGE",
                    f"{self._folder.journal}: the disk stayed full, so the last {len(self._waiting) - 1} changes were not stored.",
                    "Make room on the disk before the next start; runs that were going on then count as lost.",
                )

    def _idle_seconds(self) -> float | None:
        return self._maintenance.idle_seconds() or (1.0 if self.stats.overloaded else None)

    def _refuse(self, ops: Sequence[AcceptOp]) -> None:
        error = Overloaded(f"the journal in {self._folder.path} takes no events: {FULL}.", "Make room on the disk.")
        answers: list[Answer] = [(op.done, (error,)) for op in ops]
        self._post(self._deliver, answers, len(ops), sum(op.size for op in ops), ())

    # --- one commit ---

    def _commit(self, batch: list[Op]) -> None:
        started = time.perf_counter()
        try:
            answers, owed = self._attempt(batch)
        except DiskFull:
            self._on_full(batch)
            return
        if self._backoff:
            self._backoff = 0.0
            self._maintenance.wake()
        self.step("before-answer")
        size = sum(op.size for op in batch)
        self._post(self._deliver, answers, len(batch), size, owed)
        if any(not isinstance(op, ReadOp) for op in batch):
            seconds = time.perf_counter() - started
            self.commit_seconds += seconds
            self.commits += 1
            self.on_commit(seconds)
            self._after_commit(size)

    def _on_full(self, batch: list[Op]) -> None:
        """Refuse the acceptances, free the reserve, and put the rest back to the front of what waits."""
        self._full_until = time.monotonic() + _FULL_PAUSE
        refused = [op for op in batch if isinstance(op, AcceptOp)]
        rest = [op for op in batch if not isinstance(op, AcceptOp)]
        self._measure()
        if refused:
            self._refuse(refused)
        self._waiting.extendleft(reversed(rest))
        self.step("reserve")
        self._maintenance.wake()
        if not rest or self._applied_accepts or self._folder.use_reserve():
            return  # at once again, without acceptances; then with the reserve's room
        self._backoff = min(_BACKOFF_MAX, self._backoff * 2 or 0.05)
        self._measure()
        self._retry_at = time.monotonic() + self._backoff

    def _attempt(self, batch: list[Op]) -> tuple[list[Answer], list[OwedRow]]:
        """One transaction over the batch. Raises DiskFull (nothing stored) or what ends the journal."""
        writes = any(not isinstance(op, ReadOp) for op in batch)
        connection = self._connection
        try:
            if not writes:
                return self._apply(batch, []), []
            owed: list[OwedRow] = []
            self.step("before-begin")
            connection.execute("BEGIN IMMEDIATE")
            self.step("after-begin")
            answers = self._apply(batch, owed)
            self._tables.write_counters()
            self.step("before-commit")
            connection.execute("COMMIT")
            self._tables.committed()
            self.step("after-commit")
        except (apsw.FullError, apsw.IOError) as error:
            if not is_full(error, connection):
                raise
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._tables.rolled_back()
            raise DiskFull from error
        return answers, owed

    def _apply(self, batch: list[Op], owed: list[OwedRow]) -> list[Answer]:
        answers: list[Answer] = []
        tables, window = self._tables, self._settings.dedup_window_ms
        refusal = self._refusal()
        room = self._settings.limit - self.stats.bytes
        self._applied_accepts = 0
        for op in batch:
            match op:
                case AcceptOp():
                    room -= op.size
                    if refusal or room < 0:
                        answers.append((op.done, (self._overloaded(refusal or "it is over its limit"),)))
                        continue
                    self._applied_accepts += 1
                    answers.append((op.done, (apply.accept(tables, op.fact, window, owed),)))
                case AppendOp():
                    for fact in op.facts:
                        apply.append(tables, fact, window, owed)
                    answers.append((op.done, ()))
                case ReadOp():
                    answers.append((op.done, (op.call(self._reads),)))
                case CloseOp():  # never part of a batch
                    raise EventdError("E-INTERNAL", "the journal's close was batched.")
                case _:
                    assert_never(op)
        if self._applied_accepts:
            tables.forget_expired(self._applied_accepts + 16)
        self.step("after-apply")
        return answers

    # --- room ---

    def _refusal(self) -> str:
        """Empty, or why events are refused now."""
        now = time.monotonic()
        if now < self._full_until:
            return FULL
        if now >= self._space_at:
            self._folder.check_same()
            self._free = self._folder.free_bytes()
            self._space_at = now + _SPACE_EVERY
        if self._free < self._settings.min_free:
            return "the disk is nearly full"
        if self.stats.bytes >= self._settings.limit:
            return "it is over its limit"
        return ""

    def _overloaded(self, why: str) -> Overloaded:
        stats = self.stats
        return Overloaded(
            f"the journal in {self._folder.path} takes no events: {why}"
            f" ({stats.bytes >> 20} of {stats.limit >> 20} MiB used, {self._free >> 20} MiB of disk free)."
        )

    def _measure(self) -> None:
        """Refresh what `stats` tells. Bytes are what a smaller journal would give back: used pages and the WAL."""
        pragma = self._connection.pragma
        wal = self._folder.wal_bytes()
        used = (int(pragma("page_count")) - int(pragma("freelist_count"))) * 4096 + wal
        self.stats = JournalStats(used, self._settings.limit, wal, "")
        why = FULL if self._backoff else self._refusal()
        if why:
            self.stats = JournalStats(used, self._settings.limit, wal, why)

    def _after_commit(self, size: int) -> None:
        """Checkpoint when the WAL is long, or when only its size makes the journal seem full; then measure."""
        self._maintenance.wake()
        now = time.monotonic()
        tight = self.stats.bytes > self._settings.limit * 0.8
        self._unmeasured += size
        if tight or now >= self._measure_at or self._unmeasured > _MEASURE_BYTES:
            # not after every commit: two pragmas and a stat are a good part of a small one
            self._measure_at, self._unmeasured = now + _MEASURE_EVERY, 0
            self._measure()
        over = self.stats.bytes >= self._settings.limit and self.stats.wal_bytes > schema.WAL_KEEP // 8
        if self._maintenance.checkpoint_due(self._wal_frames, self.stats.wal_bytes, force=over):
            self.step("checkpoint")
            self._maintenance.checkpoint(truncate=over or self.stats.wal_bytes > self._maintenance.WAL_LIMIT)
            self._wal_frames = 0
            self._measure()


def _no_step(name: str) -> None:
    return None


def _no_commit(seconds: float) -> None:
    return None
