"""Reading a function's code from the handlers folder: what belongs to it, when it stands still, its digest, its copy.

Used by the code store only (`code.py`, which has the rules). Everything here blocks on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from hashlib import sha256

from msgspec import Struct

from eventd.errors import EventdError
from eventd.model import FunctionSettings
from eventd.runtime.deps_spec import Requirements

LIMIT = 250 * 1024**2
"""Lambda's limit for unpacked code, in bytes."""
MAX_FILES = 100_000
MAX_DEPTH = 64
SETTLE_S = 0.2
PATIENCE_S = 10.0

_SKIPPED = frozenset({"__pycache__", ".git"})
_SKIPPED_ENDS = ("~", ".swp", ".swx")
_HELPERS = {"python": (".py",), "node": (".js", ".mjs", ".cjs")}


class BrokenCode(EventdError):
    """A handler that cannot be loaded. `error_type` is Lambda's name for it, for the runs that meet it."""

    def __init__(self, message: str, hint: str = "", error_type: str = "Runtime.InvalidEntrypoint") -> None:
        super().__init__("E-HANDLER", message, hint)
        self.error_type = error_type


class Item(Struct, frozen=True):
    """One file or folder of the tree as it was seen: `name` is its path in the copy, `path` where it is read from."""

    name: bytes
    path: str
    folder: bool
    executable: bool
    mode: int
    size: int
    stamp: tuple[int, int, int, int]


class Changed(Exception):
    """A file was not the same before and after it was read."""


def still(function: FunctionSettings, started: float) -> list[Item]:
    """The tree, once nothing in it has changed for 200 ms. Old files need no wait."""
    items = _tree(function)
    while True:
        youngest = max((max(item.stamp[2], item.stamp[3]) for item in items), default=0)
        # A date in the future says nothing about rest, so such a tree is compared with itself instead.
        if 0 <= youngest <= time.time_ns() - int(SETTLE_S * 1e9):
            return items
        time.sleep(SETTLE_S)
        again = _tree(function)
        if again == items:
            return items
        items = again
        if time.monotonic() - started > PATIENCE_S:
            raise restless(function)


def restless(function: FunctionSettings) -> BrokenCode:
    return BrokenCode(
        f"function {function.name}: {function.source} has been changing for {PATIENCE_S:.0f} s and is never still for 200 ms.",
        "Do not let programs write into a function's folder; it is loaded when the writing stops.",
    )


def _tree(function: FunctionSettings) -> list[Item]:
    if not function.source:
        return []
    try:
        if os.path.isdir(function.source):
            return scan(function.source, f"function {function.name}")
        return _scan_single(function)
    except FileNotFoundError as gone:
        raise BrokenCode(
            f"function {function.name}: {gone.filename} does not exist (or is a link to nothing).", "Create it, or remove the link."
        ) from None
    except PermissionError as denied:
        raise BrokenCode(f"function {function.name}: {denied.filename} cannot be read.", "Let the daemon's user read it.") from None


def _scan_single(function: FunctionSettings) -> list[Item]:
    who = f"function {function.name}"
    folder, main = os.path.split(function.source)
    _check_open(who, os.path.realpath(folder), os.stat(folder))
    scan = _Scan(who)
    scan.add(function.source, main, 0, ())
    ends = _HELPERS.get(function.runtime, ())
    for name in sorted(names_in(folder)) if ends else ():
        path = os.path.join(folder, name)
        helper = name.startswith("_") and name != main and not _skipped(name)
        if helper and (name.endswith(ends) or os.path.isdir(path)):
            scan.add(path, name, 0, ())
    if function.runtime == "node" and os.path.isfile(package := os.path.join(folder, "package.json")):
        scan.add(package, "package.json", 0, ())
    return sorted(scan.items, key=lambda item: item.name)


def scan(root: str, who: str) -> list[Item]:
    scan = _Scan(who)
    status = os.stat(root)
    _check_open(who, root, status)
    scan.inside(root, "", 0, ((status.st_dev, status.st_ino),))
    return sorted(scan.items, key=lambda item: item.name)


class _Scan:
    """One walk over a tree, with its bounds."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.items: list[Item] = []
        self._bytes = 0

    def inside(self, path: str, name: str, depth: int, chain: tuple[tuple[int, int], ...]) -> None:
        for child in sorted(os.listdir(path)):
            if not _skipped(child):
                self.add(os.path.join(path, child), os.path.join(name, child), depth + 1, chain)

    def add(self, path: str, name: str, depth: int, chain: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(path)
        if depth > MAX_DEPTH or (stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) in chain):
            raise BrokenCode(f"{self.who}: {path} leads back into itself or lies deeper than {MAX_DEPTH} folders.", "Remove the link.")
        _check_open(self.who, path, status)
        if os.path.islink(path):
            parent = os.path.dirname(os.path.realpath(path))
            _check_open(self.who, parent, os.stat(parent))
        folder = stat.S_ISDIR(status.st_mode)
        if not folder and not stat.S_ISREG(status.st_mode):
            raise BrokenCode(f"{self.who}: {path} is not a file or folder but a socket, pipe or device.", "Remove it from the folder.")
        size = 0 if folder else status.st_size
        self._bytes += size
        if self._bytes > LIMIT or len(self.items) >= MAX_FILES:
            raise BrokenCode(
                f"{self.who}: the code is larger than {LIMIT // 1024**2} MiB or {MAX_FILES} files (at {path}).",
                "Keep data outside the function's folder and read it from there.",
            )
        self.items.append(
            Item(
                name=os.fsencode(name),
                path=path,
                folder=folder,
                executable=bool(status.st_mode & stat.S_IXUSR),
                mode=stat.S_IMODE(status.st_mode),
                size=size,
                stamp=_stamp(status),
            )
        )
        if folder:
            self.inside(path, name, depth, (*chain, (status.st_dev, status.st_ino)))


def digest_of(items: list[Item], requirements: Requirements | None, into: str | None) -> str:
    """The digest of a tree; with `into`, the tree is copied there on the way. Raises Changed when a file moves underneath."""
    total = sha256()
    for item in items:
        if item.folder:
            total.update(b"d%d:%b" % (len(item.name), item.name))
            if into is not None:
                os.mkdir(os.path.join(into, os.fsdecode(item.name)), 0o755)
        else:
            content = _read(item, None if into is None else os.path.join(into, os.fsdecode(item.name)))
            total.update(b"%c%d:%b%b" % (b"x" if item.executable else b"f", len(item.name), item.name, content))
    if requirements is not None:
        total.update(b"r" + requirements.digest())
    return total.hexdigest()[:12]


def _read(item: Item, target: str | None) -> bytes:
    """The content's digest; with `target`, the content is written there, read-only and on disk."""
    content = sha256()
    # O_NONBLOCK: the file may have become a pipe since it was looked at, and opening a pipe would wait for a writer.
    source = os.open(item.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    out = -1
    try:
        if _stamp(os.fstat(source)) != item.stamp:
            raise Changed
        if target is not None:
            out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        left = item.size
        while chunk := os.read(source, min(1 << 20, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise Changed
            content.update(chunk)
            view = memoryview(chunk)
            while out >= 0 and view:
                view = view[os.write(out, view) :]
        if left or _stamp(os.fstat(source)) != item.stamp:
            raise Changed
        if out >= 0:
            os.fchmod(out, (item.mode & 0o555) | 0o400)
    finally:
        os.close(source)
        if out >= 0:
            os.close(out)
    return content.digest()


def node_modules(function: FunctionSettings) -> str | None:
    """The `node_modules` folder beside a Node function, which is shared and used where it lies; None when there is none."""
    path = os.path.join(os.path.dirname(function.source), "node_modules")
    if function.runtime != "node" or not function.source or not os.path.isdir(path):
        return None
    _check_open(f"function {function.name}", path, os.stat(path))
    return os.path.realpath(path)


def point(link: str, target: str | None) -> None:
    """Make `link` a symbolic link to `target`, or (None) no link at all; a reader sees the old or the new."""
    if target is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
    elif not os.path.islink(link) or os.readlink(link) != target:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link + ".new")
        os.symlink(target, link + ".new")
        os.rename(link + ".new", link)


def _check_open(who: str, path: str, status: os.stat_result) -> None:
    if status.st_mode & stat.S_IWOTH:
        raise BrokenCode(f"{who}: {path} is writable by others, so anyone here could change what runs.", f"Run: chmod o-w {path}")


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _skipped(name: str) -> bool:
    return name in _SKIPPED or name.endswith(_SKIPPED_ENDS)


# --- small helpers over the disk ---


def sync_tree(root: str, items: list[Item]) -> None:
    """Put a finished copy on disk. Many small files are cheaper to flush all at once than one by one."""
    if len(items) > 500:
        os.sync()
        return
    for item in items:
        fsync(os.path.join(root, os.fsdecode(item.name)))
    fsync(root)


def fsync(path: str) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def names_in(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:  # gone, no folder, or a handler's odd modes
        return []


def mtime_of(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def remove(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
