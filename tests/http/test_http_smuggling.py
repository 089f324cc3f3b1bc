"""No bytes that two programs could read differently ever reach a handler or are answered as two requests."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from http_harness import Client, Seen, play, serving, statuses

NEXT = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"


class Case(NamedTuple):
    name: str
    status: int
    raw: bytes


def _cases() -> Iterator[Case]:
    name, status, raw = "", 0, b""
    for line in (Path(__file__).parent / "smuggling.corpus").read_text("ascii").splitlines():
        if line.startswith("= ") or not line:
            if name:
                yield Case(name, status, raw)
            name, raw = "", b""
        if line.startswith("= "):
            _, code, name = line.split(" ", 2)
            status = int(code)
        elif name:
            raw += re.sub(rb"\\(r|n|t|0|x([0-9a-f]{2}))", _unescape, line.encode())
    if name:
        yield Case(name, status, raw)


def _unescape(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[2], 16)]) if found[2] else {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}[found[1]]


CASES = list(_cases())
by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


def test_the_corpus_is_whole() -> None:
    assert len(CASES) > 140
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.status for case in CASES} == {400, 413, 417, 505}


@by_name
def test_one_refusal_and_the_end(case: Case) -> None:
    seen = Seen()
    wire = play([case.raw + NEXT], seen)
    assert statuses(wire.written) == [case.status]
    assert wire.ended
    assert b"connection: close" in wire.written
    assert seen.requests == []


@by_name
def test_one_refusal_however_the_bytes_are_cut(case: Case) -> None:
    raw = case.raw + NEXT
    dice = random.Random(case.name)
    cuts = [[raw[at : at + 1] for at in range(len(raw))]]
    for _ in range(10):
        places = sorted(dice.sample(range(1, len(raw)), min(4, len(raw) - 1)))
        cuts.append([raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)])
    for parts in cuts:
        seen = Seen()
        wire = play(parts, seen)
        assert statuses(wire.written) == [case.status], parts
        assert wire.ended
        assert seen.requests == []


@pytest.mark.anyio
async def test_on_real_sockets_each_is_told_and_closed() -> None:
    seen = Seen()
    async with serving(handler=seen) as server:
        for case in CASES:
            client = await Client.to(server)
            await client.send(case.raw + NEXT)
            assert statuses(await client.rest()) == [case.status], case.name
            await client.close()
        assert seen.requests == []
        assert server.counts.refused == len(CASES)


def test_a_case_mended_is_accepted() -> None:
    """The corpus refuses what it names, not everything: the same requests without their fault are answered, both of them."""
    for raw in (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:chunked\r\n\r\n5;a=b;c\r\nhello\r\n0\r\nX: y\r\nZ:\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\t 5 \t\r\n\r\nhello",
        b"GET http://a/ HTTP/1.1\r\nHost: other\r\nContent-Length: 5\r\n\r\nhello",
        b"\r\nPOST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\n\r\nhello\r\n",
        b"POST / HTTP/1.1\r\nHost:\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    ):
        seen = Seen()
        wire = play([raw + NEXT], seen)
        assert statuses(wire.written) == [200, 200], raw
        assert [(one.path, one.body) for one in seen.requests] == [("/", b"hello"), ("/second", b"")]
