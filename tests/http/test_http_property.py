"""However bytes are cut the meaning is one, and no bytes raise or hang."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from http_harness import Seen, play, statuses
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from eventd.http import head
from eventd.http.body import ChunkedBody
from eventd.http.strict import Refused

quick = profile(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

token = st.text("abcXYZ-_.!09", min_size=1, max_size=8)
value = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f" + "".join(map(chr, range(0x80, 0xA0)))), max_size=12
)
reserved = {"host", "content-length", "transfer-encoding", "expect", "connection", "upgrade", "content_length", "transfer_encoding"}
fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in reserved), value), max_size=6)
bodies = st.binary(max_size=300)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]))
    target = "/" + draw(st.text("ab/%2F?&=+", max_size=20))
    lines = [f"{method} {target} HTTP/1.1", "Host: a", *(f"{name}:{text}" for name, text in draw(fields))]
    body = draw(bodies)
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "none":
        raw = b""
    elif kind == "length":
        lines.append(f"Content-Length: {len(body)}")
        raw = body
    else:
        lines.append("Transfer-Encoding: chunked")
        raw = b""
        while body:
            size = draw(st.integers(1, len(body)))
            raw += b"%x%s\r\n%s\r\n" % (size, draw(st.sampled_from([b"", b";a=b"])), body[:size])
            body = body[size:]
        raw += b"0\r\n" + draw(st.sampled_from([b"", b"X-T: 1\r\n"])) + b"\r\n"
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + raw


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(at)]


@quick
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_of_requests_means_the_same_however_it_is_cut(stream: list[bytes], places: list[int]) -> None:
    raw = b"".join(stream)
    whole, parted, single = Seen(), Seen(), Seen()
    first = play([raw], whole)
    assert len(whole.requests) == len(stream)
    assert play(cut(raw, places), parted).written == first.written
    assert play([raw[at : at + 1] for at in range(len(raw))], single).written == first.written
    assert whole.summary == parted.summary == single.summary


@quick
@given(st.lists(st.one_of(requests(), st.binary(max_size=60)), max_size=4), st.lists(st.integers(0, 5000), max_size=8))
def test_garbage_never_raises_and_is_refused_once(pieces: list[bytes], places: list[int]) -> None:
    raw = b"".join(pieces)
    seen = Seen()
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("eventd.test.http")
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        wire = play(cut(raw, places), seen)
    finally:
        logger.removeHandler(handler)
    assert records == [], "a callback raised"
    if not any(one.method == "HEAD" for one in seen.requests):
        answers = statuses(wire.written)
        assert len(answers) in (len(seen.requests), len(seen.requests) + 1)
        assert all(status == 200 for status in answers[: len(seen.requests)])
    assert wire.ended == (b"connection: close" in wire.written)


@quick
@given(requests(), st.integers(0, 2000), st.binary(min_size=1, max_size=2))
def test_a_request_with_a_planted_fault_is_never_two(raw: bytes, place: int, planted: bytes) -> None:
    place %= len(raw) + 1
    seen = Seen()
    wire = play([raw[:place] + planted + raw[place:]], seen)
    assert len(seen.requests) <= 1, wire.written


@quick
@given(st.binary(max_size=80), st.lists(st.integers(0, 100), max_size=6))
def test_chunks_are_read_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    def read(parts: list[bytes]) -> tuple[object, ...]:
        body = ChunkedBody(1000, 1000)
        buffer, total = b"", 0
        for part in parts:
            buffer += part
            took = body.feed(buffer)
            if isinstance(took, Refused):
                return ("refused",)
            total += took
            buffer = buffer[took:]
            if body.done:
                return (bytes(body.body), total)
        return ("more",)

    data = data.replace(b"\x00", b"0\r\n").replace(b"\x01", b"1\r\na\r\n").replace(b"\x02", b"\r\n")
    assert read([data]) == read(cut(data, places)) == read([data[at : at + 1] for at in range(len(data))])


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_a_whole_head_is_read_from_any_prefix_length(size: int) -> None:
    raw = b"GET /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    seen = Seen()
    play([raw[at : at + size] for at in range(0, len(raw), size)], seen)
    assert seen.summary == [("GET", "/a", "b", b"", [("host", "a"), ("x", "y")])]


@quick
@given(st.binary(max_size=200))
def test_reading_a_head_is_total(raw: bytes) -> None:
    for text in (raw, b"GET / HTTP/1.1\r\n" + raw + b"\r\n\r\n", b"GET /" + raw + b" HTTP/1.1\r\nHost: a\r\n\r\n"):
        assert isinstance(head.read(text, 16_384), (head.Head, Refused))
