"""The frame parser: whatever arrives, in whatever pieces, it never raises and never holds more than its bound."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventd.runtime import wire


def frame(kind: bytes, meta: object, payload: bytes | None = None) -> bytes:
    head = json.dumps(meta).encode()
    body = head if payload is None else struct.pack(">I", len(head)) + head + payload
    return struct.pack(">I", 1 + len(body)) + kind + body


READY = frame(b"R", {"init_ms": 1.5, "cpu_ms": 1, "max_mb": 9})
OK = frame(b"O", {"n": 3, "ms": 0.25, "cpu_ms": 0.2, "max_mb": 10, "fork": 0}, b'{"a":1}')
ERROR = frame(b"E", {"n": 4}, b'{"errorType":"ValueError"}')
FAILED = frame(b"F", {}, b'{"errorType":"Runtime.ImportModuleError"}')
STREAM = READY + OK + ERROR + FAILED


def test_one_frame_in_one_read() -> None:
    (only,) = wire.Parser().feed(OK)
    assert (only.kind, only.body) == (wire.OK, b'{"a":1}')
    assert only.meta == wire.Meta(n=3, ms=0.25, cpu_ms=0.2, max_mb=10)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_any_cut_gives_the_same_frames(cuts: list[int]) -> None:
    whole = wire.Parser().feed(STREAM)
    assert [it.kind for it in whole] == ["R", "O", "E", "F"]
    parser, at, pieces = wire.Parser(), 0, []
    for cut in [*cuts, len(STREAM)]:
        pieces += parser.feed(STREAM[at : at + cut])
        at += cut
    assert pieces == whole


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_never_raises_and_is_said_once(chunks: list[bytes]) -> None:
    parser = wire.Parser()
    frames = [it for chunk in chunks for it in parser.feed(chunk)]
    broken = [it for it in frames if it.kind == wire.BROKEN]
    assert len(broken) <= 1
    if broken:
        assert frames[-1] is broken[0]
        assert parser.feed(STREAM) == []


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
def test_one_damaged_byte_never_raises(at: int, value: int) -> None:
    data = bytearray(STREAM)
    data[at] = value
    parser = wire.Parser()
    for byte in data:
        parser.feed(bytes((byte,)))


def test_a_frame_over_the_limit_is_skipped_without_being_held() -> None:
    parser = wire.Parser()
    size = wire.MAX_FRAME + 5_000_000
    frames = parser.feed(struct.pack(">I", size) + b"O")
    left = size - 1
    while left:
        step = min(left, 1_000_000)
        frames += parser.feed(b"x" * step)
        assert len(parser._buffer) <= 1_000_000
        left -= step
    frames += parser.feed(OK)
    assert [it.kind for it in frames] == [wire.TOO_LARGE, wire.OK]


@pytest.mark.parametrize(("size", "kind"), [(wire.MAX_PAYLOAD, wire.OK), (wire.MAX_PAYLOAD + 1, wire.TOO_LARGE)])
def test_the_payload_limit_is_lambdas_to_the_byte(size: int, kind: str) -> None:
    (only,) = wire.Parser().feed(frame(b"O", {"n": 1}, b"1" * size))
    assert only.kind == kind


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0) + b"O",
        struct.pack(">I", 3) + b"O\0\0",
        struct.pack(">I", 9) + b"O" + struct.pack(">I", 900) + b"{}{}",
        frame(b"Z", {}),
        frame(b"O", [1], b"null"),
        frame(b"O", {"n": "one"}, b"null"),
        struct.pack(">I", 4) + b"R\xff\xfe{",
    ],
)
def test_what_is_no_frame(data: bytes) -> None:
    assert wire.Parser().feed(data)[-1].kind == wire.BROKEN


def test_invoke_and_start_as_the_worker_reads_them() -> None:
    data = wire.encode_invoke(wire.Invoke(7, "id", 1234, "arn:x", "Root=1", '{"custom":{}}'), b'{"k":1}')
    (length,) = struct.unpack_from(">I", data)
    assert length == len(data) - 4
    assert data[4:5] == b"I"
    (size,) = struct.unpack_from(">I", data, 5)
    assert json.loads(data[9 : 9 + size]) == {
        "n": 7, "id": "id", "deadline": 1234, "arn": "arn:x", "trace": "Root=1", "client": '{"custom":{}}', "timeout": 0,
    }  # fmt: skip
    assert data[9 + size :] == b'{"k":1}'
    start = wire.encode_start({"env": {"A": "ü"}})
    assert json.loads(start[5:]) == {"env": {"A": "ü"}}
