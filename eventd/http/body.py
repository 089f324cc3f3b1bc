"""The body of a request out of a stream of bytes: of a length told beforehand, or in chunks. Sans I/O, linear in the bytes fed.

Both readers have `feed(data)`: how many bytes of `data` were taken, or why the body is refused. What is not taken must be
fed again with more behind it. `done` says that the body is complete in `body`.
"""

from __future__ import annotations

import re

from eventd.http.strict import Refused, fault_of_trailers

MAX_CHUNKS = 65_536
"""Chunks in one body: bounds the work that a body of one-byte chunks can ask of the loop."""
MAX_CHUNK_LINE = 256

_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;" + _VALUE + rb"*+)?\r\n")
_CHUNK_SO_FAR = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:;" + _VALUE + rb"*+)?\r?)?")


class FixedBody:
    """A body of `length` bytes."""

    __slots__ = ("_left", "body", "done")

    def __init__(self, length: int) -> None:
        self.body = bytearray()
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int | Refused:
        part = data if len(data) <= self._left else data[: self._left]
        self.body += part
        self._left -= len(part)
        self.done = self._left == 0
        return len(part)


_SIZE = -2
_END_OF_CHUNK = -1


class ChunkedBody:
    """A chunked body, strictly: plain hexadecimal sizes, exact line ends, extensions passed over, trailers checked and dropped.

    Refuses over `max_body` bytes as soon as a chunk announces them. Leaves at most one line, or the trailers, untaken.
    """

    __slots__ = ("_chunks", "_ended", "_left", "_max_body", "_max_trailers", "body", "done", "size")

    def __init__(self, max_body: int, max_trailers: int) -> None:
        self.body = bytearray()
        self.size = 0
        self.done = False
        self._max_body = max_body
        self._max_trailers = max_trailers
        self._left = _SIZE
        self._ended = False
        self._chunks = 0

    def feed(self, data: bytes) -> int | Refused:
        at = 0
        end = len(data)
        while not self.done:
            if self._ended:
                return self._trailers(data, at)
            if self._left > 0:
                if at == end:
                    break
                part = data[at : at + self._left]
                self.body += part
                at += len(part)
                self._left -= len(part)
                if self._left == 0:
                    self._left = _END_OF_CHUNK
            elif self._left == _END_OF_CHUNK:
                if end - at < 2 and b"\r\n".startswith(data[at:end]):
                    break
                if data[at : at + 2] != b"\r\n":
                    return Refused(400, "a chunk does not end where it said")
                at += 2
                self._left = _SIZE
            else:
                line = _CHUNK.match(data, at, at + MAX_CHUNK_LINE)
                if line is None:
                    if fault := _fault_of_chunk_line(data[at : at + MAX_CHUNK_LINE]):
                        return fault
                    break
                at = line.end()
                self._left = int(line[1], 16)
                self._chunks += 1
                self.size += self._left
                if self.size > self._max_body:
                    return Refused(413, "Content Too Large")
                if self._chunks > MAX_CHUNKS:
                    return Refused(400, "the body has too many chunks")
                self._ended = self._left == 0
        return at

    def _trailers(self, data: bytes, at: int) -> int | Refused:
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        block = data[at : end + 4] if end >= 0 else data[at:]
        fault = fault_of_trailers(block, end >= 0, self._max_trailers)
        if fault is not None:
            return fault
        self.done = end >= 0
        return end + 4 if self.done else at


def _fault_of_chunk_line(line: bytes) -> Refused | None:
    """Why an incomplete chunk line can never be one; None while it can."""
    if len(line) >= MAX_CHUNK_LINE or not _CHUNK_SO_FAR.fullmatch(line):
        return Refused(400, "a chunk size is malformed")
    return None
