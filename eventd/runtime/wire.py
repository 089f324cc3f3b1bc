"""Frames between the daemon and a resident worker, without any I/O.

    frame  = u32 big-endian length of what follows | u8 kind | body

    daemon -> worker   S  start     body = JSON settings of the worker (Python only; Node gets them in its environment)
                       I  invoke    body = u32 length of meta | meta JSON | event JSON
                       Q  quit      body empty
    worker -> daemon   R  ready     body = meta JSON
                       F  failed    init failed: body = u32 length of meta | meta JSON | Lambda's error JSON; the worker then exits
                       O  ok        body = u32 length of meta | meta JSON | result JSON
                       E  error     like O, with Lambda's error JSON

The worker's side lives in `bootstrap/` and shares no code with this module, for it runs under other interpreters.
"""

from __future__ import annotations

from struct import Struct as Packer
from typing import Final

import msgspec
from msgspec import Struct

MAX_PAYLOAD: Final = 6 * 1024 * 1024 + 100
"""Bytes of a result. Lambda's true limit is 6 MiB and 100 bytes (lambda.md 1.5)."""
MAX_META: Final = 64 * 1024
MAX_FRAME: Final = 1 + 4 + MAX_META + MAX_PAYLOAD

READY: Final = "R"
FAILED: Final = "F"
OK: Final = "O"
ERROR: Final = "E"
TOO_LARGE: Final = "!"
"""Not on the wire: the parser's word for a frame over MAX_FRAME or with a payload over MAX_PAYLOAD; its bytes are skipped."""
BROKEN: Final = "?"
"""Not on the wire: what came is no frame. The last thing a parser ever says."""

_U32 = Packer(">I")
_KINDS = {ord(READY): READY, ord(FAILED): FAILED, ord(OK): OK, ord(ERROR): ERROR}


class Meta(Struct, frozen=True, gc=False):
    """What a worker says about a run or its init. `n` is the run counter of the INVOKE it answers; times in ms, memory in MiB.

    `ms` is the handler's own duration, `init_ms` that of loading the code, `max_mb` the peak of the worker's life, `fork` the
    number of left-over child processes that the worker ended after the run.
    """

    n: int = 0
    ms: float = 0.0
    init_ms: float = 0.0
    cpu_ms: float = 0.0
    max_mb: int = 0
    fork: int = 0


class Frame(Struct, frozen=True, gc=False):
    """One frame of a worker, or the parser's TOO_LARGE or BROKEN (then `body` is a sentence)."""

    kind: str
    meta: Meta
    body: bytes


_NOTHING = Meta()
_decode_meta = msgspec.json.Decoder(Meta).decode
_encode = msgspec.json.Encoder().encode


class Invoke(Struct, frozen=True, gc=False):
    """The meta of an INVOKE: run counter, request id, deadline in epoch ms, invoked ARN, X-Ray header, client context (JSON text).

    `deadline` 0: the run was handed over before the worker was ready, and ends `timeout` ms after its handler is called.
    """

    n: int
    id: str
    deadline: int
    arn: str
    trace: str = ""
    client: str = ""
    timeout: int = 0


def encode_invoke(meta: Invoke, event: bytes) -> bytes:
    """An INVOKE frame. `event` is sent as it is: it must be JSON."""
    head = _encode(meta)
    return b"".join((_U32.pack(5 + len(head) + len(event)), b"I", _U32.pack(len(head)), head, event))


def encode_start(settings: object) -> bytes:
    """A START frame: the worker's settings as JSON."""
    body = _encode(settings)
    return _U32.pack(1 + len(body)) + b"S" + body


QUIT: Final = _U32.pack(1) + b"Q"


class Parser:
    """Bytes of a worker in, frames out. Never raises, never holds more than MAX_FRAME bytes and one read.

    A frame that is too large is skipped while it arrives and reported once. After BROKEN the parser is deaf.
    """

    __slots__ = ("_broken", "_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0
        self._broken = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order."""
        if self._broken:
            return []
        if not self._buffer and not self._skip and len(data) >= 5 and _U32.unpack_from(data)[0] + 4 == len(data) <= MAX_FRAME:
            return [self._frame(data, 4)]  # the usual case: one read, one frame
        frames: list[Frame] = []
        buffer = self._buffer
        buffer += data
        while not self._broken:
            if self._skip:
                gone = min(self._skip, len(buffer))
                del buffer[:gone]
                self._skip -= gone
                if self._skip:
                    break
                frames.append(Frame(TOO_LARGE, _NOTHING, b"the frame is over the limit"))
            if len(buffer) < 5:
                break
            (length,) = _U32.unpack_from(buffer)
            if length == 0 or buffer[4] not in _KINDS:
                frames.append(self._break("an unknown kind of frame"))
            elif length > MAX_FRAME:
                self._skip = 4 + length
            elif len(buffer) < 4 + length:
                break
            else:
                frames.append(self._frame(bytes(buffer[: 4 + length]), 4))
                del buffer[: 4 + length]
        return frames

    def _frame(self, data: bytes, at: int) -> Frame:
        """The frame whose kind stands at `at` and which ends with `data`."""
        kind = _KINDS.get(data[at], BROKEN)
        try:
            if kind == READY:
                return Frame(kind, _decode_meta(data[at + 1 :]), b"")
            if kind == BROKEN:
                return self._break("an unknown kind of frame")
            if len(data) < at + 5:
                return self._break("a frame without meta")
            (size,) = _U32.unpack_from(data, at + 1)
            end = at + 5 + size
            if size > MAX_META or end > len(data):
                return self._break("a frame whose meta is longer than the frame or its limit")
            meta = _decode_meta(data[at + 5 : end])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._break(f"meta that is not what it should be ({error})")
        if len(data) - end > MAX_PAYLOAD:
            return Frame(TOO_LARGE, meta, b"the payload is over the limit")
        return Frame(kind, meta, data[end:])

    def _break(self, why: str) -> Frame:
        self._broken = True
        self._buffer.clear()
        return Frame(BROKEN, _NOTHING, why.encode())
