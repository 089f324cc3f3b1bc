"""What the writer does between commits: checkpoints, giving space back, the reserve, and the scrub after an unclean stop.

The scrub. After an unclean stop a journal of up to `CHECK_BYTES` gets SQLite's `quick_check` before the start goes on. A larger
one would hold the start up for seconds, so its rows' digests are checked in idle moments instead, `SLICE` rows at a time; every
row is checked again whenever it is read, so nothing damaged is run in the meantime.
"""

from __future__ import annotations

import time
from typing import Final

import apsw

from eventd.errors import EventdError
from eventd.journal import schema
from eventd.journal.folder import Folder
from eventd.journal.reads import Reads

CHECK_BYTES: Final = 32 * 1024**2
SLICE: Final = 256
_IDLE: Final = 0.05
_OVERDUE: Final = 0.5
_VACUUM_PAGES: Final = 256
_SPARE_PAGES: Final = 1024
_CHECKPOINT_FRAMES: Final = 4096
_RESERVE_EVERY: Final = 1.0


class Maintenance:
    """Owned by the writer thread. `slice` does one small piece; `idle_seconds` says how soon it wants the next."""

    WAL_LIMIT: Final = 64 * 1024**2

    def __init__(self, connection: apsw.Connection, folder: Folder, reads: Reads) -> None:
        self._connection = connection
        self._folder = folder
        self._reads = reads
        self._scrub: tuple[str, int] | None = None
        self._awake = True
        self._reserve_at = 0.0
        self._checkpoint_at = 0.0
        self._sliced_at = time.monotonic()

    @property
    def scrubbing(self) -> bool:
        return self._scrub is not None

    def wake(self) -> None:
        """Something was written: look for work in the next idle moment."""
        self._awake = True

    def idle_seconds(self) -> float | None:
        """How long the thread may wait for work before calling `slice`; None when there is nothing to do until then."""
        if self._scrub is not None or self._awake:
            return _IDLE
        return None if self._folder.has_reserve else _RESERVE_EVERY

    def overdue(self) -> bool:
        """Whether a busy journal has put the work off for so long that a piece of it is done between two commits."""
        return (self._scrub is not None or self._awake) and time.monotonic() - self._sliced_at > _OVERDUE

    def check_after_unclean_stop(self) -> None:
        """Raises E-STORAGE when SQLite finds the file unsound."""
        pages = int(self._connection.pragma("page_count"))
        if pages * 4096 <= CHECK_BYTES:
            finding = schema.quick_check(self._connection)
            if finding:
                raise EventdError(
                    "E-STORAGE",
                    f"{self._folder.journal} is damaged: {finding}.",
                    "Check the disk and restore the state folder from a backup.",
                )
        self._scrub = ("events", 0)

    def slice(self) -> None:
        """One bounded piece of work; goes to sleep when there is none. Raises E-DAMAGED, or apsw errors that end the journal."""
        self._sliced_at = time.monotonic()
        if self._scrub is not None:
            table, after = self._scrub
            last = self._reads.scrub(table, after, SLICE)
            if last is not None:
                self._scrub = (table, last)
            else:
                self._scrub = ("invocations", 0) if table == "events" else None
            return
        now = time.monotonic()
        if not self._folder.has_reserve and now >= self._reserve_at:
            self._folder.make_reserve()
            self._reserve_at = now + _RESERVE_EVERY
        if not self._vacuum():
            self._awake = False

    def _vacuum(self) -> bool:
        """Give some free pages back. A small stock stays, because pages in use and pages free take turns."""
        free = int(self._connection.pragma("freelist_count"))
        if free <= max(_SPARE_PAGES, int(self._connection.pragma("page_count")) // 4):
            return False
        try:
            self._connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        except apsw.FullError:
            return False
        return True

    def checkpoint_due(self, frames: int, wal_bytes: int, *, force: bool) -> bool:
        if frames >= _CHECKPOINT_FRAMES or wal_bytes > self.WAL_LIMIT:
            return True
        return force and time.monotonic() >= self._checkpoint_at

    def checkpoint(self, *, truncate: bool) -> None:
        """Copy the WAL into the database. A full disk leaves it for later; any other error ends the journal."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        self._checkpoint_at = time.monotonic() + _RESERVE_EVERY
        try:
            self._connection.wal_checkpoint(None, mode)
        except apsw.FullError:
            return
