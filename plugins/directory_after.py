"""What is done with a file when its event is settled (D11): delete it, move it, or leave it. Blocking; for worker threads.

The file must still be the version of the event, and between looking and acting a newer one could take its name. So it is
first renamed to a scratch name that only its event has, looked at once more there, and then deleted or moved. Every step
can be repeated: after a crash the settlement comes again and goes on from where the names say it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
from enum import Enum
from hashlib import blake2b
from typing import Final, NamedTuple

from eventd_plugins.directory_files import (
    is_gone,
    is_regular,
    open_beneath,
    open_file,
    open_root,
    rename_noreplace,
    version_of_stat,
)
from eventd_plugins.directory_rules import SCRATCH, Version, split, taken_name

_BLOCK: Final = 1_048_576
_MOST_NAMES: Final = 1_000


class Left(Enum):
    """How an order ended."""

    DONE = 1
    ABSENT = 2
    """Nothing there: done before a crash, or somebody else took the file."""
    CHANGED = 3
    """Another version is there, or (for `keep`) the file is back at its place."""


class Leave(NamedTuple):
    """What to do with one file. `target` is the folder to move to; the file keeps its relative path below it.

    `action` keep only undoes what an earlier, interrupted action left behind.
    """

    root: str
    path: bytes
    event: str
    version: Version
    action: str
    target: str | None
    sequencer: int


def leave(order: Leave) -> Left:
    """Carry it out. Durable on return.

    Raises OSError when it cannot be done now; then the file is at its place as before, or will be found by the next call.
    """
    folder, name = split(order.path)
    scratch = SCRATCH + blake2b(order.event.encode(), digest_size=12).hexdigest().encode()
    try:
        root_fd = open_root(order.root)
        try:
            fd = open_beneath(root_fd, folder)
        finally:
            os.close(root_fd)
    except OSError as error:
        if is_gone(error):
            return Left.ABSENT
        raise
    try:
        if not _take(fd, name, scratch, order):
            return Left.CHANGED if _exists(fd, name) else Left.ABSENT
        try:
            match order.action:
                case "delete":
                    os.unlink(scratch, dir_fd=fd)
                case "move" if order.target is not None:
                    _move(fd, scratch, name, folder, order, order.target)
                case _:
                    _put_back(fd, scratch, name, order)
        except OSError:
            _put_back(fd, scratch, name, order)
            raise
        os.fsync(fd)
        return Left.CHANGED if order.action == "keep" else Left.DONE
    finally:
        os.close(fd)


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _take(fd: int, name: bytes, scratch: bytes, order: Leave) -> bool:
    """Bring the file under its scratch name. False when there is nothing of this version to act on."""
    if _is(fd, scratch, order.version):
        return True
    # Something else under the scratch name: a newer version, taken in the instant before a crash.
    _put_back(fd, scratch, name, order)
    if order.action == "keep" or not _is(fd, name, order.version):
        return False
    os.rename(name, scratch, src_dir_fd=fd, dst_dir_fd=fd)
    if _is(fd, scratch, order.version):
        return True
    # A newer version took the name in this very moment: give it back, unseen by anyone.
    _put_back(fd, scratch, name, order)
    return False


def _is(fd: int, name: bytes, version: Version) -> bool:
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return is_regular(status) and version_of_stat(status) == version


def _put_back(fd: int, scratch: bytes, name: bytes, order: Leave) -> None:
    """Give the file its name again, or a name beside it if there is a newer file of that name. Nothing is overwritten."""
    try:
        _place(fd, scratch, fd, name, order)
    except FileNotFoundError:
        return


def _place(src_fd: int, src: bytes, dst_fd: int, name: bytes, order: Leave, *, copied: bool = False) -> None:
    """Rename to `name`, or where that is taken to `-SEQUENCER` before the suffix. `copied`: the same file may be there already."""
    for candidate in (name, *(taken_name(name, order.sequencer + more) for more in range(_MOST_NAMES))):
        if copied and _same_content(dst_fd, candidate, order.version):
            os.unlink(src, dir_fd=src_fd)
            return
        try:
            rename_noreplace(src, candidate, src_fd=src_fd, dst_fd=dst_fd)
        except FileExistsError:
            continue
        return
    raise OSError(errno.EEXIST, "every name for the file is taken", os.fsdecode(name))


def _move(fd: int, scratch: bytes, name: bytes, folder: bytes, order: Leave, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    target_fd = open_root(target)
    try:
        to = open_beneath(target_fd, folder, create=True)
    finally:
        os.close(target_fd)
    try:
        try:
            _place(fd, scratch, to, name, order)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            part = _copy(fd, scratch, to, order)
            _place(to, part, to, name, order, copied=True)
            os.fsync(to)
            os.unlink(scratch, dir_fd=fd)
        else:
            os.fsync(to)
    finally:
        os.close(to)


def _same_content(fd: int, name: bytes, version: Version) -> bool:
    """Whether a copy made before a crash is there already: a copy keeps size and mtime."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return is_regular(status) and (status.st_size, status.st_mtime_ns) == (version.size, version.mtime_ns)


def _copy(fd: int, scratch: bytes, to: int, order: Leave) -> bytes:
    """Copy to a scratch name at the other file system, with mode and times, on disk when it returns."""
    part = scratch + b".part"
    source = open_file(scratch, fd)
    try:
        status = os.fstat(source)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=to)
        copy = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=to)
        try:
            try:
                while block := os.read(source, _BLOCK):
                    view = memoryview(block)
                    while view:
                        view = view[os.write(copy, view) :]
                if os.geteuid() == 0:
                    os.fchown(copy, status.st_uid, status.st_gid)
                os.fchmod(copy, status.st_mode & 0o777)
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(copy)
            except OSError:
                os.unlink(part, dir_fd=to)
                raise
        finally:
            os.close(copy)
    finally:
        os.close(source)
    return part
