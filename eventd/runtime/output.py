"""What workers print: drained always, so that no handler ever blocks on us, and kept only up to a limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from eventd.ports import OutputChunk

READ = 65_536
"""The capacity of a pipe: what a run printed before its answer is at most this, so two reads always reach it."""
TAIL = 4_096
LINE = 16_384
"""A line longer than this is handed on in pieces."""


class Drain:
    """The reading end of one pipe. Fair: one read per turn of the loop, unless asked to catch up."""

    __slots__ = ("_fd", "_loop", "_printed", "_stream")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, stream: str, printed: Callable[[str, bytes], None]) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._stream = stream
        self._printed = printed
        loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """True when there may be more at once."""
        try:
            data = os.read(self._fd, READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._printed(self._stream, data)
        return len(data) == READ

    def catch_up(self, most: int = 2) -> None:
        """Read what has been printed by now. Bounded, because a thread of the handler's may print all the time."""
        while self._fd >= 0 and most > 0 and self._read():
            most -= 1

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)


class Captured:
    """Output of one run, or of the time between two: cut into whole lines for the history, counted, capped, its tail kept."""

    __slots__ = ("_emit", "_function", "_kept", "_limit", "_open", "bytes", "run", "tail", "truncated")

    def __init__(self, function: str, run: str, limit: int, emit: Callable[[OutputChunk], None]) -> None:
        self._function = function
        self._emit = emit
        self._limit = limit
        self._kept = 0
        self._open: dict[str, bytes] = {}
        self.run = run
        self.bytes = 0
        self.truncated = False
        self.tail = b""

    def add(self, stream: str, data: bytes) -> None:
        self.bytes += len(data)
        self.tail = data[-TAIL:] if len(data) >= TAIL else (self.tail + data)[-TAIL:]
        if self._kept >= self._limit:
            self.truncated = True
            return
        if self._kept + len(data) > self._limit:
            data = data[: self._limit - self._kept]
            self.truncated = True
        self._kept += len(data)
        data = self._open.pop(stream, b"") + data
        end = data.rfind(b"\n") + 1
        if len(data) - end > LINE:
            end = len(data)
        if end:
            self._hand_on(stream, data[:end])
        if end < len(data):
            self._open[stream] = data[end:]
        if self.truncated:
            self.end()

    def end(self) -> None:
        """Hand on what has no line end yet."""
        for stream, data in self._open.items():
            self._hand_on(stream, data)
        self._open.clear()

    def _hand_on(self, stream: str, data: bytes) -> None:
        self._emit(OutputChunk(self._function, self.run, stream, int(time.time() * 1000), data))
