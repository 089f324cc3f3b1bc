"""Change notices from the kernel (inotify), as bytes, without interpretation.

A notice only wakes a scan; the scan is the truth. Used directly instead of through watchfiles because three things
matter here that it hides: an overflow of the queue (dropped without a word), the difference between a file renamed in
and one written in place (IN_MOVED_TO), and names that are no UTF-8 (an error for the whole watcher). And a folder's watch can
be set before the folder is listed, so that nothing made in between is missed.
"""

from __future__ import annotations

import ctypes
import os
from struct import Struct as Packed
from typing import Final, NamedTuple

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ISDIR: Final = 0x40000000
_ONLYDIR: Final = 0x01000000
_EXCL_UNLINK: Final = 0x04000000
_BASE: Final = ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR | _EXCL_UNLINK
_HEAD: Final = Packed("iIII")
_BUFFER: Final = 65_536


class Notice(NamedTuple):
    """`folder` is relative to the root; `name` is empty for a notice about the folder itself, or an overflow."""

    mask: int
    folder: bytes
    name: bytes


class Notices:
    """One inotify instance. `add` is called in the scanning thread, everything else on the event loop.

    Making one raises OSError (EMFILE: too many instances). The kernel's queue is the only buffer.
    """

    def __init__(self, *, writes: bool) -> None:
        """`writes`: also tell of every write, not only of the close after it."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = libc.inotify_add_watch
        self._remove = libc.inotify_rm_watch
        self._mask = _BASE | (MODIFY if writes else 0)
        self.fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._folders: dict[int, bytes] = {}
        self._watches: dict[bytes, int] = {}

    def add(self, dir_fd: int, folder: bytes) -> None:
        """Watch an open folder (again, if it is watched: harmless). Raises OSError: ENOSPC when the user's watches are used up."""
        # The magic link leads to the very folder that is open, whatever the name has become.
        watch = self._add(self.fd, b"/proc/self/fd/%d" % dir_fd, self._mask)
        if watch < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fsdecode(folder))
        self._folders[watch] = folder
        self._watches[folder] = watch

    def watched(self, folder: bytes) -> bool:
        return folder in self._watches

    def forget(self, folder: bytes) -> None:
        """Stop watching a folder that was moved away, and all below it."""
        for path in [one for one in list(self._watches) if one == folder or one.startswith(folder + b"/")]:
            watch = self._watches.pop(path)
            if self._folders.get(watch) == path:
                del self._folders[watch]
                self._remove(self.fd, watch)

    def read(self) -> list[Notice]:
        """What is waiting, at most one buffer of it; empty when there is nothing. Never blocks."""
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return []
        notices: list[Notice] = []
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            if mask & Q_OVERFLOW:
                notices.append(Notice(mask, b"", b""))
                continue
            folder = self._folders.get(watch)
            if folder is None:
                # Added by the thread this very moment, or forgotten: the listing that follows sees what this would tell.
                continue
            if mask & IGNORED:
                del self._folders[watch]
                if self._watches.get(folder) == watch:
                    del self._watches[folder]
                continue
            notices.append(Notice(mask, folder, name))
        return notices

    def close(self) -> None:
        os.close(self.fd)
