"""The system calls a directory trigger needs beyond `os`: opening beneath a folder without following links, a test for
writers, a rename that never replaces, and the kind of file system.

Everything here may block; callers use worker threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
from typing import Final

from eventd_plugins.directory_rules import Version

_libc: Final = ctypes.CDLL(None, use_errno=True)
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOREPLACE: Final = 1
LONGEST_PATH: Final = 4095
"""PATH_MAX without the NUL: no handler could open what is longer."""
REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "lustre", "virtiofs", "vboxsf", "ncpfs", "coda"}
)
"""File systems on which changes made by another machine give no notice here."""


def open_root(path: str) -> int:
    """Open the watched folder itself; only here is a symlink followed, for the administrator wrote the path."""
    return os.open(path, _FOLDER)


def open_beneath(root_fd: int, folder: bytes, *, create: bool = False) -> int:
    """Open a folder below `root_fd`, part by part, following no symlink at any of them. The caller closes it.

    A link in place of a folder raises ENOTDIR or ELOOP. `create` makes what is missing.
    """
    fd = os.open(b".", _FOLDER, dir_fd=root_fd)
    for part in folder.split(b"/") if folder else ():
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def open_file(name: bytes, dir_fd: int) -> int:
    """Open a file for reading: no link is followed, and neither a FIFO nor a device blocks or is disturbed for long."""
    return os.open(name, _FILE, dir_fd=dir_fd)


def version_of_stat(found: os.stat_result) -> Version:
    return Version(found.st_ino, found.st_size, found.st_mtime_ns)


def is_gone(error: OSError) -> bool:
    """Whether the error says that there is nothing of that name (a link in place of a folder counts as nothing)."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def has_writer(fd: int) -> bool | None:
    """Whether some process has the file open for writing; None when the kernel will not tell.

    A read lease is granted only where there is no writer (fcntl(2), F_SETLEASE). It needs to be our file or CAP_LEASE,
    and a file system with leases. The lease is given back at once; should a writer come in that instant, the kernel
    tells us by a signal, which is set to SIGURG, because that one is ignored by default and SIGIO would end the process.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):  # closing the descriptor gives it back too
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def rename_noreplace(src: bytes, dst: bytes, *, src_fd: int, dst_fd: int) -> None:
    """Rename; FileExistsError when the name is taken. Atomic by renameat2(2) where the file system has it."""
    ctypes.set_errno(0)
    function = getattr(_libc, "renameat2", None)
    if function is not None:
        if function(src_fd, src, dst_fd, dst, _NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code), os.fsdecode(dst))
    try:
        os.stat(dst, dir_fd=dst_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(dst))


def is_regular(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def remote_kind(device: int) -> str | None:
    """The type of the file system with this device number if it is a remote or user-space one, from /proc/self/mountinfo."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            for line in lines:
                before, _, after = line.partition(b" - ")
                if before.split(b" ")[2:3] == [wanted]:
                    kind = after.split(b" ", 1)[0].decode(errors="replace")
                    return kind if kind in REMOTE or kind == "fuse" or kind.startswith("fuse.") else None
    except OSError:
        return None
    return None
