"""The state folder: whose it is, what kind of file system it lies on, and the small files beside the journal.

`lock` is locked (flock) for the daemon's life and holds its pid. `clean` exists only between a clean stop and the next start.
`reserve` is disk space set aside, so that work that is already accepted can be settled on a full disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from eventd.errors import EventdError

RESERVE_BYTES: Final = 4 * 1024**2

# f_type of statfs(2), from linux/magic.h and the file systems' own headers. Locks and fsync on these are not to be trusted.
NETWORK_TYPES: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9P",
    0x73757245: "Coda",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x47504653: "GPFS",
    0x564C: "NCP",
}


def storage_error(
    doing: str, error: OSError, hint: str = "Check that the disk is healthy and that eventd's user owns the folder."
) -> EventdError:
    return EventdError("E-STORAGE", f"{doing}: {error.strerror or error}.", hint)


def filesystem_type(path: str) -> int:
    """`f_type` of statfs(2), which Python does not show. 0 when the C library has no such call."""
    try:
        statfs = ctypes.CDLL(None, use_errno=True).statfs
    except (OSError, AttributeError):
        return 0
    buffer = ctypes.create_string_buffer(512)  # struct statfs is 120 bytes on x86-64; f_type is its first word everywhere
    if statfs(os.fsencode(path), buffer) != 0:
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


class Folder:
    """A state folder that this process holds. Open with `Folder.hold`, let go with `release`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.journal = path / "journal.db"
        self.wal = path / "journal.db-wal"
        self._lock = lock
        self._file: tuple[int, int] | None = None

    @classmethod
    def hold(cls, state_dir: str, boot: str) -> Folder:
        """Create the folder (0700) when missing, refuse network file systems, and take the lock.

        Raises E-LOCKED at once when another process holds it, E-STORAGE when the folder cannot be used.
        """
        path = Path(os.path.abspath(state_dir))
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.stat().st_mode & 0o077:
                path.chmod(0o700)
        except OSError as error:
            raise storage_error(f"state folder {path} cannot be created or made private", error) from error
        kind = NETWORK_TYPES.get(filesystem_type(str(path)))
        if kind is not None:
            raise EventdError(
                "E-STORAGE",
                f"state folder {path} is on a network file system ({kind}), where locks and fsync cannot be trusted.",
                "Set [daemon] state to a folder on a local disk.",
            )
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(f"lock file {path}/lock cannot be opened", error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 64, 0).split(b"\n")[0].decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise storage_error(f"lock file {path}/lock cannot be locked", error) from error
            raise EventdError(
                "E-LOCKED",
                f"another eventd (pid {holder}) holds the state folder {path}.",
                "Stop it first, or give this one a [daemon] state of its own.",
            ) from error
        folder = cls(path, lock)
        folder._sign(boot)
        return folder

    def _sign(self, boot: str) -> None:
        """Write pid and boot id into the lock file. On a full disk the lock still holds; only the name is missing."""
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n{boot}\n".encode(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self.release()
                raise storage_error(f"lock file {self.path}/lock cannot be written", error) from error

    def release(self) -> None:
        """Let the lock go. The file stays: removing it would let two daemons lock two files of one name."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def create_journal(self) -> None:
        """Make an empty journal.db (0600) whose name survives a power cut. Before SQLite opens it: a later open would drop its locks."""
        try:
            os.close(os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if self.journal.stat().st_mode & 0o077:
                self.journal.chmod(0o600)
            self.sync()
        except OSError as error:
            raise storage_error(f"{self.journal} cannot be created", error) from error

    def sync(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- the mark of a clean stop ---

    def take_clean_mark(self) -> bool:
        """Whether the last stop was clean; the mark is gone, durably, when this returns."""
        try:
            os.unlink(self.path / "clean")
        except FileNotFoundError:
            return False
        self.sync()
        return True

    def leave_clean_mark(self) -> None:
        """Best effort: without the mark the next start only checks more."""
        try:
            fd = os.open(self.path / "clean", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fsync(fd)
            os.close(fd)
            self.sync()
        except OSError:
            return

    # --- the reserve ---

    @property
    def has_reserve(self) -> bool:
        return (self.path / "reserve").exists()

    def free_bytes(self) -> int:
        """What an ordinary user may still write here."""
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    def make_reserve(self) -> bool:
        """Set the reserve aside when there is room for it and as much again; False when there is not."""
        path = self.path / "reserve"
        try:
            if self.has_reserve:
                return True
            if self.free_bytes() < 2 * RESERVE_BYTES:
                return False
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            self.use_reserve()
            return False
        return True

    def use_reserve(self) -> bool:
        """Give the reserve's space back to the file system. True when there was one."""
        try:
            os.unlink(self.path / "reserve")
        except OSError:
            return False
        return True

    def check_same(self) -> None:
        """The journal's file is still where it was opened. Raises E-STORAGE: events stored in a deleted file are lost at the end."""
        try:
            there = os.stat(self.journal)
        except FileNotFoundError:
            there = None
        found = (there.st_dev, there.st_ino) if there is not None else None
        if self._file is None:
            self._file = found
        elif found != self._file:
            raise EventdError(
                "E-STORAGE",
                f"{self.journal} was deleted or replaced while the daemon had it open.",
                "Put it back if you moved it; then start the daemon again.",
            )

    def wal_bytes(self) -> int:
        try:
            return os.stat(self.wal).st_size
        except FileNotFoundError:
            return 0
