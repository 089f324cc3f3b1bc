"""Many clients that are slow on purpose: all are closed at their deadline, and an honest one is served meanwhile."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest
from http_harness import Client, Seen, serving, until

from eventd.http.server import HttpServer, Limits

MANY = 300


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 4 * MANY
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096) if hard > 0 else 4096), hard))


async def honest(server: HttpServer) -> float:
    """How long one honest request takes on a connection of its own."""
    begun = time.monotonic()
    client = await Client.to(server)
    await client.send(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (await client.answer())[0] == 200
    await client.close()
    return time.monotonic() - begun


STARTS = {
    "nothing": b"",
    "a head": b"GET /a HTTP/1.1\r\nHost: a\r\nX: ",
    "a body": b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx",
    "chunks": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
}


@pytest.mark.anyio
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
async def test_slow_clients_are_closed_and_honest_ones_served(start: bytes) -> None:
    limits = Limits(linger=0.1, sweep=0.02)
    async with serving(handler=Seen(), limits=limits, header_timeout_ms=600, body_timeout_ms=600) as server:
        slow = [await Client.to(server) for _ in range(MANY)]
        begun = time.monotonic()
        for client in slow:
            client.writer.write(start)
        await until(lambda: server.open == MANY)
        while server.open > 1 and time.monotonic() - begun < 0.5:
            assert await honest(server) < 1
            for client in slow:
                if not client.writer.is_closing():
                    client.writer.write(b"x" if start else b"")
        ends = await asyncio.gather(*(client.rest() for client in slow))
        assert time.monotonic() - begun < 5
        assert {end[:12] for end in ends} <= {b"HTTP/1.1 408", b"HTTP/1.1 400", b""}
        await until(lambda: server.open == 0)
        assert server.held == 0


@pytest.mark.anyio
async def test_more_slow_clients_than_places_do_not_keep_honest_ones_out() -> None:
    async with serving(handler=Seen(), max_connections=50, header_timeout_ms=60_000) as server:
        slow = [await Client.to(server) for _ in range(MANY)]
        for client in slow:
            client.writer.write(STARTS["a head"])
        await until(lambda: server.counts.connections == MANY)
        for _ in range(20):
            assert await honest(server) < 1
        assert server.open <= 50 + 1
        assert server.counts.evicted >= MANY - 50
        assert server.counts.dropped == 0
