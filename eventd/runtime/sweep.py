"""Measuring what a busy worker and everything below it take, cheaply and often (D31, measured.md 5).

Best effort by nature: a process is looked at every 20 ms, so one that allocates fast overshoots before it is caught, and what it
shares with its template is told apart only by the slow measure (PSS). Exact accounting is what cgroups are for.
"""

from __future__ import annotations

import contextlib
import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
_WIDE_EVERY = 16
_MOST = 4_096


class MemoryWatch:
    """One worker's memory. Holds two descriptors until `close`."""

    __slots__ = ("_children", "_looks", "_pid", "_statm")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looks = 0
        self._statm = _open(f"/proc/{pid}/statm")
        self._children = _open(f"/proc/{pid}/task/{pid}/children")

    def quick(self) -> int:
        """Resident bytes of the tree, pages shared with others included: never less than what it really takes.

        Children that a second thread made are looked for only now and then.
        """
        total = _resident(self._statm)
        self._looks += 1
        if self._looks % _WIDE_EVERY == 0:
            below = descendants(self._pid)
        else:
            try:
                below = descendants(self._pid) if self._children >= 0 and os.pread(self._children, 16, 0) else []
            except OSError:
                below = []
        return total + sum(resident(pid) for pid in below)

    def exact(self) -> int:
        """Proportional bytes (PSS) of the tree: a page shared by n processes counts as 1/n."""
        return sum(proportional(pid) for pid in (self._pid, *descendants(self._pid)))

    def close(self) -> None:
        for fd in (self._statm, self._children):
            if fd >= 0:
                os.close(fd)
        self._statm = self._children = -1


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _resident(fd: int) -> int:
    try:
        return int(os.pread(fd, 128, 0).split()[1]) * _PAGE if fd >= 0 else 0
    except (OSError, IndexError, ValueError):
        return 0


def resident(pid: int) -> int:
    """Resident bytes of one process; 0 when it is gone."""
    fd = _open(f"/proc/{pid}/statm")
    try:
        return _resident(fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _rollup(pid: int, *names: bytes) -> int | None:
    total = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(names):
                    total += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return total


def proportional(pid: int) -> int:
    """PSS in bytes; resident bytes where the kernel does not tell; 0 when it is gone."""
    found = _rollup(pid, b"Pss:")
    return resident(pid) if found is None else found


def private(pid: int) -> int:
    """Bytes that no other process shares; 0 when it is gone."""
    return _rollup(pid, b"Private_Clean:", b"Private_Dirty:") or 0


def descendants(pid: int) -> list[int]:
    """Everything below a process, over all its threads. Bounded; what vanishes meanwhile is left out."""
    found: dict[int, None] = {}
    queue = [pid]
    while queue and len(found) < _MOST:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                    for child in map(int, file.read().split()):
                        if child not in found:
                            found[child] = None
                            queue.append(child)
    return list(found)
