"""A disk that fails on demand: an apsw VFS over the real one, the default VFS while it is in use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import apsw

Rule = Callable[[str, str, int], Exception | None]
"""(operation, file name, how many of this operation came before) -> the error to raise, or None."""


class Disk(apsw.VFS):  # type: ignore[misc]
    def __init__(self) -> None:
        self.rule: Rule = lambda operation, name, count: None
        self.counts: dict[str, int] = {}
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        return File(self, name, flags)

    def arm(self, rule: Rule) -> None:
        self.counts.clear()
        self.rule = rule

    def calm(self) -> None:
        self.rule = lambda operation, name, count: None

    def check(self, operation: str, name: str) -> None:
        count = self.counts.get(operation, 0)
        self.counts[operation] = count + 1
        error = self.rule(operation, name, count)
        if error is not None:
            raise error


class File(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        text = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._name = text.rsplit("/", 1)[-1]
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.check("write", self._name)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.check("sync", self._name)
        super().xSync(flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.check("read", self._name)
        data: bytes = super().xRead(amount, offset)
        return data

    def xTruncate(self, size: int) -> None:
        self._disk.check("truncate", self._name)
        super().xTruncate(size)


@contextlib.contextmanager
def faulty_disk() -> Iterator[Disk]:
    disk = Disk()
    try:
        yield disk
    finally:
        disk.calm()
        disk.unregister()


def full() -> Exception:
    return apsw.FullError("no room")


def eio(extended: int = apsw.SQLITE_IOERR_FSYNC) -> Exception:
    error = apsw.IOError("input/output error")
    error.extendedresult = extended
    return error
