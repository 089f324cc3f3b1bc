"""The writing side of the run history: batches, retention, lines from chunks, and what to do when the file fails.

WAL and `synchronous=FULL`: four commits a second cost nothing, and `store` must be durable before the journal forgets its copy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
from msgspec import Struct

from eventd.errors import EventdError
from eventd.journal.codec import clean_record, rfc3339
from eventd.journal.faults import extended, is_full
from eventd.journal.history_rows import (
    CREATE,
    HISTORY_SCHEMA,
    INSERT_ENDED,
    INSERT_OUTPUT,
    INSERT_RUN,
    OUTPUT_OVERHEAD,
    RUN_COLUMNS,
    Stamps,
)
from eventd.model import HistorySettings, RunRecord
from eventd.ports import OutboxRow, OutputChunk

_KEEP_RECORDS: Final = 100_000
_KEEP_OUTPUT: Final = 16 * 1024**2
_PIECE: Final = 16 * 1024
_PARTS: Final = 4_096
_BATCH: Final = 500
_ROUNDS: Final = 20
_SUFFIXES: Final = ("", "-wal", "-shm")


class StoreJob(Struct, gc=False):
    """Outbox rows to copy (none: only a flush). `done` is called in the history's thread, with the error or None."""

    rows: Sequence[OutboxRow]
    done: Callable[[EventdError | None], None]


class Telling(Struct):
    """News for the event loop."""

    error: EventdError | None = None
    dropped: int = 0


class HistoryWriter:
    """Used by one thread. `batch` never raises."""

    def __init__(
        self,
        path: Path,
        settings: HistorySettings,
        *,
        now_ms: Callable[[], int],
        on_records: Callable[[list[RunRecord]], None] | None,
        tell: Callable[[Telling], None],
    ) -> None:
        self.in_trouble = False
        self._path = path
        self._settings = settings
        self._now_ms = now_ms
        self._on_records = on_records
        self._tell = tell
        self._stamps = Stamps()
        self._connection: apsw.Connection | None = None
        self._records: list[RunRecord] = []
        self._rows: list[tuple[str, str, str, str, bytes]] = []
        self._rows_bytes = 0
        self._parts: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        self._output_bytes = 0
        self._told_hook = False

    @property
    def pending(self) -> bool:
        return bool(self._records or self._rows or self._parts)

    def batch(self, records: list[RunRecord], chunks: Sequence[OutputChunk], jobs: Sequence[StoreJob], *, closing: bool) -> None:
        """Write everything handed over now and before, in one transaction; answer the jobs; then keep the limits."""
        self._records += records
        had_parts = set(self._parts)
        self._cut_lines(chunks)
        # A line without its end waits for it until the next batch, or until somebody asks.
        self._end_parts(set(self._parts) if jobs or closing else had_parts)
        self._bound()
        try:
            new = self._write(jobs)
        except Exception as error:
            if not self._mended(error):
                self._trouble(error, jobs)
                return
            try:
                new = self._write(jobs)
            except Exception as second:
                self._trouble(second, jobs)
                return
        self.in_trouble = False
        for job in jobs:
            job.done(None)
        self._hook(new)
        try:
            self._retain()
        except Exception as error:
            if not self._mended(error):
                self._trouble(error, ())

    def close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except apsw.Error as error:
                self._tell(Telling(_error(self._path, error)))
            self._connection = None

    # --- one batch ---

    def _write(self, jobs: Sequence[StoreJob]) -> list[RunRecord]:
        """One transaction. What waited is given up only after the commit. The records that were new."""
        connection = self._open()
        if not (self._records or self._rows or any(job.rows for job in jobs)):
            return []
        stored: list[RunRecord] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            insert = connection.cursor()
            for job in jobs:
                for row in job.rows:
                    if row.record is not None:
                        insert.execute(INSERT_RUN, self._run(row.record))
                        if connection.changes():
                            stored.append(row.record)
                    if row.ended is not None:
                        insert.execute(INSERT_ENDED, self._stamps.ended(row.ended))
            if self._records:
                insert.executemany(INSERT_RUN, map(self._run, self._records))
            output_bytes = self._output_bytes
            if self._rows:
                insert.executemany(INSERT_OUTPUT, self._rows)
                output_bytes += self._rows_bytes
                insert.execute("UPDATE meta SET value = ? WHERE key = 'output_bytes'", (output_bytes,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        new = stored + self._records
        self._records, self._rows, self._rows_bytes, self._output_bytes = [], [], 0, output_bytes
        return new

    def _run(self, record: RunRecord) -> tuple[Any, ...]:
        if record.error_message is None or record.error_message.isascii():
            return self._stamps.run(record)
        return self._stamps.run(clean_record(record))

    def _hook(self, new: list[RunRecord]) -> None:
        if not new or self._on_records is None:
            return
        try:
            self._on_records(new)
        except Exception as error:
            if not self._told_hook:
                self._told_hook = True
                self._tell(Telling(EventdError("E-INTERNAL", f"what follows each batch of run records failed: {error!r}.")))

    # --- output ---

    def _cut_lines(self, chunks: Sequence[OutputChunk]) -> None:
        """Chunks become rows of whole lines; the rest of a line waits in `_parts` (bounded in number and length)."""
        for chunk in chunks:
            key = (chunk.function, chunk.run, chunk.stream)
            at, data = self._parts.pop(key, (chunk.at, b""))
            data += chunk.data
            end = data.rfind(b"\n") + 1
            if len(data) - end > _PIECE or len(self._parts) >= _PARTS:
                end = len(data)
            if end:
                self._row(key, at, data[:end])
                at = chunk.at
            if end < len(data):
                self._parts[key] = (at, data[end:])

    def _end_parts(self, keys: set[tuple[str, str, str]]) -> None:
        for key in keys:
            if key in self._parts:
                self._row(key, *self._parts.pop(key))

    def _row(self, key: tuple[str, str, str], at: int, data: bytes) -> None:
        self._rows.append((self._stamps(at), *key, data))
        self._rows_bytes += len(data) + OUTPUT_OVERHEAD

    def _bound(self) -> None:
        """Drop the oldest of what waits when the file has not taken it for long."""
        dropped = max(0, len(self._records) - _KEEP_RECORDS)
        del self._records[:dropped]
        cut = 0
        while self._rows_bytes > _KEEP_OUTPUT and cut < len(self._rows) - 1:
            self._rows_bytes -= len(self._rows[cut][-1]) + OUTPUT_OVERHEAD
            cut += 1
        del self._rows[:cut]
        if dropped + cut:
            self._tell(Telling(dropped=dropped + cut))

    # --- limits ---

    def _retain(self) -> None:
        """Forget the oldest, a few hundred rows at a time and boundedly per batch: what waits next must not wait long."""
        connection = self._open()
        settings = self._settings
        for _ in range(_ROUNDS):
            excess = self._output_bytes - settings.output
            if excess <= 0:
                break
            rows: list[tuple[Any, ...]] = connection.execute(
                "SELECT id, length(data) FROM output ORDER BY id LIMIT ?", (_BATCH,)
            ).fetchall()
            upto = freed = 0
            for id, size in rows:
                upto, freed = id, freed + size + OUTPUT_OVERHEAD
                if freed >= excess:
                    break
            left = self._output_bytes - freed if rows else 0
            with connection:
                connection.execute("DELETE FROM output WHERE id <= ?", (upto,))
                connection.execute("UPDATE meta SET value = ? WHERE key = 'output_bytes'", (left,))
            self._output_bytes = left
        before = rfc3339(self._now_ms() - settings.runs_ms)
        for _ in range(_ROUNDS):
            over = self._runs_bytes() > settings.runs_limit
            bound, args = ("", (_BATCH,)) if over else ("WHERE {} < ? ", (before, _BATCH))
            gone = 0
            for table, column in (("runs", "ended_at"), ("ended", "settled_at")):
                where = bound.format(column)
                connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} {where}ORDER BY {column} LIMIT ?)",  # noqa: S608
                    args,
                )
                gone += connection.changes()
            if gone < _BATCH and not over:
                break
        if int(connection.pragma("freelist_count")) > 2_048:
            connection.execute("PRAGMA incremental_vacuum(512)").fetchall()

    def _runs_bytes(self) -> int:
        pragma = self._open().pragma
        return (int(pragma("page_count")) - int(pragma("freelist_count"))) * 4096 - self._output_bytes

    # --- the file ---

    def _open(self) -> apsw.Connection:
        if self._connection is None or not self._path.exists():
            self.close()
            try:
                self._connection = self._connect()
            except _NotOurs:
                aside = self._move_aside()
                self._tell(Telling(EventdError("E-SCHEMA", f"{self._path} has other tables than this eventd's; it is now {aside}.")))
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> apsw.Connection:
        # Only a file that nobody can have open yet: closing any descriptor of it would drop SQLite's locks in this process.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL", "busy_timeout = 2000", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            version = int(connection.pragma("user_version"))
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                for statement in CREATE:
                    connection.execute(statement).fetchall()
                connection.execute("COMMIT")
            columns = tuple(str(row[1]) for row in connection.execute("PRAGMA table_info(runs)").fetchall())
            if version not in (0, HISTORY_SCHEMA) or columns != RUN_COLUMNS:
                raise _NotOurs
            rows: list[tuple[Any, ...]] = connection.execute("SELECT value FROM meta WHERE key = 'output_bytes'").fetchall()
            self._output_bytes = int(rows[0][0]) if rows else 0
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self) -> Path:
        """The damaged or foreign file becomes runs.db.damaged; an older one of that name is replaced, so they cannot pile up."""
        self.close()
        aside = self._path.with_name(self._path.name + ".damaged")
        for suffix in _SUFFIXES:
            old = self._path.with_name(self._path.name + suffix)
            if old.exists():
                os.replace(old, aside.with_name(aside.name + suffix))
            else:
                aside.with_name(aside.name + suffix).unlink(missing_ok=True)
        return aside

    def _mended(self, error: Exception) -> bool:
        """A file that is damaged or fails is moved aside and told, so that the batch can be tried on a new one."""
        damaged = isinstance(error, (apsw.CorruptError, apsw.NotADBError))
        failing = isinstance(error, apsw.IOError) and self._connection is not None and not is_full(error, self._connection)
        if not damaged and (not failing or self.in_trouble):
            return False
        try:
            aside = self._move_aside()
        except OSError:
            return False
        self._tell(
            Telling(
                EventdError("E-STORAGE", f"{self._path} failed ({error}); it is now {aside}, and a new one was begun.", "Check the disk.")
            )
        )
        return True

    def _trouble(self, error: Exception, jobs: Sequence[StoreJob]) -> None:
        """The batch goes on waiting; tell once, and ask the jobs to come again."""
        if not isinstance(error, (apsw.FullError, apsw.BusyError)):
            self.close()
        told = _error(self._path, error)
        if not self.in_trouble:
            self.in_trouble = True
            self._tell(Telling(told))
        refusal = EventdError("E-OVERLOADED", f"{self._path} takes no rows now: {told.message}", "Try again in a moment.")
        for job in jobs:
            job.done(refusal)


class _NotOurs(Exception):
    """A database with other tables: an older or newer eventd's, or a stranger's."""


def _error(path: Path, error: Exception) -> EventdError:
    if isinstance(error, apsw.Error):
        name = apsw.mapping_extended_result_codes.get(extended(error), type(error).__name__)
        return EventdError("E-STORAGE", f"{path}: {name}: {error}.", "Runs go on; their records wait in memory, the oldest may be dropped.")
    if isinstance(error, OSError):
        return EventdError("E-STORAGE", f"{path}: {error}.", "Runs go on; their records wait in memory, the oldest may be dropped.")
    return EventdError("E-INTERNAL", f"{path}: {type(error).__name__}: {error}", "Please report this.")
