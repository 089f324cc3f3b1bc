"""The front door on real sockets: order, limits, deadlines, leaving, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import anyio
import pytest
from http_harness import Client, Seen, port_of, serving, settings, statuses, until

from eventd.errors import EventdError
from eventd.http import Request, Response, Route
from eventd.http.router import Router
from eventd.http.server import HttpServer, Limits

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
FAST = Limits(idle=0.1, write=0.1, linger=0.1, sweep=0.01)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


def post(path: str, body: bytes, *headers: str) -> bytes:
    extra = "".join(f"{header}\r\n" for header in headers)
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


# --- one request after another ---


@pytest.mark.anyio
async def test_a_connection_is_kept_and_each_request_answered() -> None:
    seen = Seen()
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        for number in range(3):
            await client.send(post(f"/{number}?q=%20", b"x" * number))
            status, headers, body = await client.answer()
            assert (status, body) == (200, f"POST /{number} {number}".encode())
            assert set(headers) == {"content-length", "date"}
        assert seen.requests[1].query == "q=%20"
        assert (seen.requests[1].peer, seen.requests[1].port, seen.requests[1].scheme) == ("127.0.0.1", port_of(server), "http")
        assert server.counts.connections == 1


@pytest.mark.anyio
async def test_pipelined_requests_are_answered_in_order_though_answers_come_late() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        await client.send(b"".join(post(f"/{number}", b"b") for number in range(50)))
        for number in range(50):
            await until(lambda number=number: len(seen.requests) == number + 1)  # type: ignore[misc]
            seen.requests[number].respond(Response(200, str(number).encode()))
            assert (await client.answer())[2] == str(number).encode()


@pytest.mark.anyio
async def test_a_long_pipeline_of_quick_requests_is_answered_whole() -> None:
    seen = Seen()
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        await client.send(GET * 500 + b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert statuses(await client.rest()) == [200] * 501
        assert seen.requests[-1].path == "/last"


@pytest.mark.anyio
async def test_reading_stops_while_a_request_is_handled_and_goes_on_after() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen, max_body=64 * 1024**2) as server:
        client = await Client.to(server)
        sending = asyncio.ensure_future(client.send(GET + post("/b", b"x" * 30_000_000)))
        await until(lambda: seen.requests)
        await asyncio.sleep(0.05)
        assert not sending.done(), "30 MB were taken while nothing was read"
        seen.hold = False
        seen.requests[0].respond(Response(200))
        await client.answer()
        assert (await client.answer(10))[2] == b"POST /b 30000000"
        await sending


@pytest.mark.anyio
@pytest.mark.parametrize("extra", [b"", b"Connection: keep-alive\r\n"])
async def test_after_http_1_0_the_connection_ends(extra: bytes) -> None:
    async with serving(handler=Seen()) as server:
        client = await Client.to(server)
        await client.send(b"GET /a HTTP/1.0\r\n" + extra + b"\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b""


@pytest.mark.anyio
async def test_head_has_the_length_and_no_body_and_204_has_neither() -> None:
    def answer(request: Request) -> None:
        request.respond(Response(204 if request.path == "/none" else 200, b"hello"))

    async with serving(handler=answer) as server:
        client = await Client.to(server)
        for line in (b"HEAD /a", b"HEAD /none", b"GET /none", b"GET /a"):
            await client.send(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, _ = await client.answer(head=True)
        assert (status, headers["content-length"]) == (200, "5")
        for _ in range(2):
            status, headers, _ = await client.answer(head=True)
            assert (status, headers.get("content-length")) == (204, None)
        assert (await client.answer())[2] == b"hello"


@pytest.mark.anyio
async def test_no_route_404_other_method_405_and_the_connection_goes_on() -> None:
    seen = Seen()
    async with serving(Route("/only", seen, ("PUT", "DELETE"))) as server:
        client = await Client.to(server)
        await client.send(post("/nope", b"body") + post("/only", b"body") + b"PUT /only HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, body = await client.answer()
        assert (status, headers["content-type"], body) == (404, "application/json", b'{"message":"Not Found"}')
        status, headers, body = await client.answer()
        assert (status, headers["allow"], body) == (405, "DELETE, PUT", b'{"message":"Method Not Allowed"}')
        assert (await client.answer())[0] == 200


@pytest.mark.anyio
async def test_a_handler_that_raises_is_a_500_and_a_second_answer_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> None:
        if request.path == "/twice":
            request.respond(Response(200, b"first"))
            request.respond(Response(200, b"second"))
        raise RuntimeError("planted")

    async with serving(handler=broken) as server:
        client = await Client.to(server)
        await client.send(GET)
        assert (await client.answer())[::2] == (500, b'{"message":"Internal Server Error"}')
        await client.send(b"GET /twice HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        raw = await client.rest()
        assert statuses(raw) == [200]
        assert raw.endswith(b"first")
    assert "planted" in caplog.text


@pytest.mark.anyio
async def test_a_late_second_answer_does_not_answer_the_next_request() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        await client.send(GET)
        await until(lambda: len(seen.requests) == 1)
        seen.requests[0].respond(Response(200, b"one"))
        await client.answer()
        await client.send(GET)
        await until(lambda: len(seen.requests) == 2)
        seen.requests[0].respond(Response(200, b"again"))
        seen.requests[1].respond(Response(200, b"two"))
        assert (await client.answer())[2] == b"two"


@pytest.mark.anyio
async def test_an_answer_cannot_break_the_framing(caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        Response(200, b"", [("x", "a\r\nset-cookie: evil=1")]),
        Response(200, b"", [("x\r\ny", "a")]),
        Response(200, b"", [("x", "a\0")]),
        Response(100),
        Response(700),
        Response(200, None),  # type: ignore[arg-type]
    ]

    def answer(request: Request) -> None:
        request.respond(bad[int(request.path[1:])])

    async with serving(handler=answer) as server:
        client = await Client.to(server)
        for number in range(len(bad)):
            await client.send(f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            status, headers, _ = await client.answer()
            assert (status, "set-cookie" in headers) == (502, False)


@pytest.mark.anyio
async def test_the_server_owns_length_date_and_connection() -> None:
    said = [("Content-Length", "99"), ("Transfer-Encoding", "chunked"), ("Connection", "close"), ("Date", "x")]
    said += [("X", "kept"), ("set-cookie", "é€")]
    async with serving(handler=lambda request: request.respond(Response(200, b"hi", said))) as server:
        client = await Client.to(server)
        await client.send(GET)
        _, headers, body = await client.answer()
        assert (body, headers["x"], headers["content-length"]) == (b"hi", "kept", "2")
        assert "connection" not in headers
        assert "transfer-encoding" not in headers
        assert headers["date"].endswith("GMT")
        assert headers["set-cookie"].encode("latin-1").decode() == "é€"


# --- bodies and limits ---


@pytest.mark.anyio
async def test_chunks_are_joined_and_trailers_dropped() -> None:
    seen = Seen()
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"5\r\nhello\r\n1;x=y\r\n \r\n5\r\nwor")
        await until(lambda: server.held > 0)
        await client.send(b"ld\r\n0\r\nX-Trailer: dropped\r\n\r\n" + GET)
        assert (await client.answer())[2] == b"POST /a 11"
        assert (await client.answer())[2] == b"GET /a 0"
        assert seen.requests[0].body == b"hello world"
        assert not any(name == "x-trailer" for request in seen.requests for name, _ in request.headers)
        assert server.held == 0


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    seen = Seen()
    async with serving(Route("/small", seen, max_body=10), Route("/big", seen, max_body=5000), max_body=100) as server:
        cases = (("/small", 10, 200), ("/small", 11, 413), ("/big", 5000, 200), ("/big", 5001, 413), ("/other", 101, 413))
        for path, size, status in cases:
            client = await Client.to(server)
            await client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
            if status == 200:
                await client.send(b"x" * size)
            found, headers, _ = await client.answer()
            assert (path, size, found) == (path, size, status)
            assert headers.get("connection") == ("close" if status == 413 else None)
            await client.close()
        client = await Client.to(server)
        await client.send(b"POST /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsix...\r\n5\r\n")
        assert (await client.answer())[0] == 413
        assert await client.rest() == b""


@pytest.mark.anyio
async def test_heads_over_the_limits() -> None:
    async with serving(handler=Seen(), max_headers=16_384) as server:
        many = b"".join(b"x-%d: y\r\n" % number for number in range(100))
        long = b"x: " + b"y" * 1000 + b"\r\n"
        cases = (
            (b"GET /a HTTP/1.1\r\nHost: a\r\n" + long * 15 + b"\r\n", 200),
            (b"GET /a HTTP/1.1\r\nHost: a\r\n" + long * 17 + b"\r\n", 431),
            (b"GET /a HTTP/1.1\r\nHost: a\r\n" + long * 17, 431),
            (b"GET /a HTTP/1.1\r\nHost: a\r\n" + many + b"\r\n", 431),
            (b"GET /" + b"a" * 8100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET /" + b"a" * 20_000, 414),
            (b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + long * 17 + b"\r\n", 431),
            (b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300 + b"\r\na\r\n0\r\n\r\n", 400),
        )
        for number, (raw, status) in enumerate(cases):
            client = await Client.to(server)
            await client.send(raw)
            assert (number, (await client.answer())[0]) == (number, status)
            await client.close()


@pytest.mark.anyio
async def test_a_body_of_tiny_chunks_is_refused_in_the_end() -> None:
    async with serving(handler=Seen()) as server:
        client = await Client.to(server)
        await client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 65_537)
        assert (await client.answer())[0] == 400


@pytest.mark.anyio
async def test_expect_is_answered_early() -> None:
    seen = Seen()
    async with serving(Route("/a", seen), max_body=100) as server:
        client = await Client.to(server)
        head = "POST {} HTTP/1.1\r\nHost: a\r\nExpect: {}\r\nContent-Length: {}\r\n\r\n"
        await client.send(head.format("/a", "100-Continue", 5).encode())
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.answer())[2] == b"POST /a 5"
        await client.send(head.format("/a", "100-continue", 5).encode() + b"hello")
        assert (await client.answer())[0] == 200, "no 100 when the body is there already"
        for path, expect, length, status in (("/a", "100-continue", 101, 413), ("/b", "100-continue", 5, 404), ("/a", "more", 5, 417)):
            client = await Client.to(server)
            await client.send(head.format(path, expect, length).encode())
            assert (await client.answer())[0] == status
            assert await client.rest() == b""


@pytest.mark.anyio
async def test_incomplete_bodies_of_all_connections_together_are_bounded() -> None:
    async with serving(handler=Seen(), limits=Limits(held=250_000)) as server:
        clients = [await Client.to(server) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
            if number < 2:
                await until(lambda number=number: server.held == 100_000 * (number + 1))  # type: ignore[misc]
        assert (await clients[2].answer())[0] == 503
        assert server.held == 200_000
        await clients[1].close()
        await until(lambda: server.held == 100_000)
        await clients[0].send(b"x" * 100_000)
        assert (await clients[0].answer())[2] == b"POST /a 200000"
        assert server.held == 0


# --- deadlines ---


@pytest.mark.anyio
async def test_an_unfinished_head_gets_408_and_a_silent_client_is_closed() -> None:
    async with serving(handler=Seen(), limits=Limits(sweep=0.01), header_timeout_ms=100) as server:
        silent, slow, kept = [await Client.to(server) for _ in range(3)]
        await slow.send(b"GET /a HTTP/1.1\r\nHo")
        await kept.send(GET)
        assert (await kept.answer())[0] == 200
        await kept.send(b"GET /b")
        assert await silent.rest() == b""
        assert statuses(await slow.rest()) == [408]
        assert statuses(await kept.rest()) == [408]
        assert server.counts.timeouts == 2


@pytest.mark.anyio
async def test_bytes_that_trickle_do_not_move_the_deadline() -> None:
    async with serving(handler=Seen(), limits=FAST, header_timeout_ms=150, body_timeout_ms=150) as server:

        async def trickle(client: Client, data: bytes) -> None:
            for at in range(len(data)):
                client.writer.write(data[at : at + 1])
                await asyncio.sleep(0.02)

        for start, rest in ((b"", GET * 5), (b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n", b"x" * 500)):
            client = await Client.to(server)
            begun = time.monotonic()
            await client.send(start)
            task = asyncio.ensure_future(trickle(client, rest.replace(b"\r\n\r\n", b"\r\n")))
            assert statuses(await client.rest()) == [408]
            assert time.monotonic() - begun < 2
            task.cancel()
            await client.close()
        await until(lambda: server.open == 0)


@pytest.mark.anyio
async def test_an_idle_connection_is_closed_and_a_handler_has_all_the_time() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen, limits=FAST, header_timeout_ms=50, body_timeout_ms=50) as server:
        client = await Client.to(server)
        await client.send(GET)
        await until(lambda: seen.requests)
        await asyncio.sleep(0.3)
        assert seen.gone == []
        seen.requests[0].respond(Response(200, b"late"))
        assert (await client.answer())[2] == b"late"
        assert await client.rest() == b""
        assert server.open == 0


@pytest.mark.anyio
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
async def test_a_client_that_does_not_read_its_answer_is_cut_off(close: bytes) -> None:
    big = b"x" * 20_000_000

    async with serving(handler=lambda request: request.respond(Response(200, big)), limits=FAST) as server:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port_of(server)))
        await loop.sock_sendall(sock, b"GET /a HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
        await until(lambda: server.counts.requests == 1)
        connection = next(iter(server._connections))
        assert connection.deadline - loop.time() > 1000, "a big answer has the time that its size needs"
        connection.deadline = 0.0
        await until(lambda: server.open == 0)
        assert server.counts.timeouts == 1
        sock.close()


@pytest.mark.anyio
async def test_a_slow_reader_gets_its_big_answer_whole_and_the_next_request_waits_for_it() -> None:
    big = os.urandom(8_000_000)
    seen = Seen()

    def answer(request: Request) -> None:
        seen.requests.append(request)
        request.respond(Response(200, big if request.path == "/big" else b"small"))

    async with serving(handler=answer) as server:
        client = await Client.to(server)
        await client.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        await until(lambda: seen.requests)
        await asyncio.sleep(0.05)
        assert len(seen.requests) == 1, "the second is not handled while the first answer is stuck"
        assert (await client.answer(10))[2] == big
        assert (await client.answer())[2] == b"small"


# --- clients that leave ---


@pytest.mark.anyio
async def test_a_client_that_leaves_is_told_of_and_its_answer_goes_nowhere() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        await client.send(GET)
        await until(lambda: seen.requests)
        await client.close()
        await until(lambda: seen.gone)
        seen.requests[0].respond(Response(200))
        assert (seen.gone, server.counts.gone, server.open) == (seen.requests, 1, 0)


@pytest.mark.anyio
async def test_a_reset_and_a_callback_that_raises_hurt_nobody(caplog: pytest.LogCaptureFixture) -> None:
    held: list[Request] = []

    def handle(request: Request) -> None:
        def gone() -> None:
            raise RuntimeError("planted")

        request.on_gone = gone
        held.append(request)

    async with serving(handler=handle) as server:
        client = await Client.to(server)
        sock = client.writer.get_extra_info("socket")
        await client.send(GET)
        await until(lambda: held)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.writer.transport.abort()
        await until(lambda: server.open == 0)
        held[0].respond(Response(200))
        other = await Client.to(server)
        await other.send(GET)
        await until(lambda: len(held) == 2)
        held[1].respond(Response(200, b"fine"))
        assert (await other.answer())[2] == b"fine"
    assert "planted" in caplog.text


# --- many connections ---


@pytest.mark.anyio
async def test_a_newcomer_takes_the_place_of_who_waits_longest_without_a_request() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen, max_connections=3) as server:
        busy, kept, silent = [await Client.to(server) for _ in range(3)]
        await busy.send(GET)
        await kept.send(GET)
        await until(lambda: len(seen.requests) == 2)
        seen.requests[1].respond(Response(200))
        await kept.answer()
        await until(lambda: server.open == 3)
        for victim in (silent, kept):
            newcomer = await Client.to(server)
            await newcomer.send(GET)
            assert await victim.rest() == b""
        await until(lambda: len(seen.requests) == 4)
        refused = await Client.to(server)
        status, headers, body = await refused.answer()
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert b"too many connections" in body
        assert server.counts.evicted == 2
        seen.requests[0].respond(Response(200, b"still here"))
        assert (await busy.answer())[2] == b"still here"


@pytest.mark.anyio
async def test_far_over_the_limit_connections_are_dropped() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen, max_connections=1, limits=Limits(spare=2)) as server:
        busy = await Client.to(server)
        await busy.send(GET)
        await until(lambda: seen.requests)
        more = [await Client.to(server) for _ in range(8)]
        answers = [statuses(await client.rest()) for client in more]
        assert answers == [[503]] * 2 + [[]] * 6
        assert server.counts.dropped == 6


# --- proxies ---


@pytest.mark.anyio
async def test_forwarded_headers_count_only_from_trusted_proxies() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.1.1.1\r\nX-Forwarded-Proto: https\r\n\r\n"
    plain = ("127.0.0.1", "http")
    for trusted, expected in (((), plain), (("127.0.0.0/8", "10.0.0.0/8"), ("9.9.9.9", "https")), (("8.0.0.0/8",), plain)):
        seen = Seen()
        async with serving(handler=seen, trusted_proxies=trusted) as server:
            client = await Client.to(server)
            await client.send(raw)
            await client.answer()
            assert (seen.requests[0].peer, seen.requests[0].scheme) == expected
            assert seen.requests[0].port == (443 if expected[1] == "https" else port_of(server))


def test_a_trusted_proxy_that_is_no_network_is_an_error() -> None:
    with pytest.raises(EventdError, match="E-CONFIG") as raised:
        HttpServer(settings(trusted_proxies=("nonsense",)), Router(), log=__import__("logging").getLogger("x"))
    assert "nonsense" in raised.value.message


# --- listening ---


@pytest.mark.anyio
async def test_unix_sockets_ipv6_and_port_0(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    seen = Seen()
    async with serving(handler=seen, listen=("127.0.0.1:0", "[::1]:0", f"unix:{path}")) as server:
        assert [address.rpartition(":")[0] for address in server.addresses] == ["127.0.0.1", "[::1]", "unix"]
        for at in range(3):
            client = await Client.to(server, at)
            await client.send(GET)
            assert (await client.answer())[0] == 200
        assert [request.peer for request in seen.requests] == ["127.0.0.1", "::1", "127.0.0.1"]
    assert not path.exists()


@pytest.mark.anyio
async def test_a_dead_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with serving(handler=Seen(), listen=(f"unix:{path}",)) as server:
        assert (await Client.to(server)) is not None
        with pytest.raises(EventdError) as raised:
            async with serving(listen=(f"unix:{path}",)):
                pass
        assert raised.value.code == "E-LISTEN"
        assert str(path) in raised.value.message
        assert "Another program" in raised.value.hint
        # asyncio of Python 3.11 loses a client that it accepts in the very turn in which its listener closes.
        await until(lambda: server.counts.connections == 2)


@pytest.mark.anyio
async def test_an_address_that_cannot_be_listened_on_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    async with serving(handler=Seen()) as server:
        taken = server.addresses[0]
        free = tmp_path / "free.sock"
        with pytest.raises(EventdError) as raised:
            async with serving(listen=(f"unix:{free}", taken)):
                pass
        assert (raised.value.code, taken in raised.value.message) == ("E-LISTEN", True)
        assert not free.exists()
    for wrong in ("8080", "a:b", "127.0.0.1:70000", "unix:", "unix:" + "x" * 108, f"unix:{tmp_path}/no/such", "[::1:80"):
        with pytest.raises(EventdError) as raised:
            async with serving(listen=(wrong,)):
                pass
        assert raised.value.code == "E-LISTEN"
        assert wrong in raised.value.message
        assert raised.value.hint


@pytest.mark.anyio
async def test_relisten_opens_before_it_closes_and_keeps_the_old_on_error() -> None:
    async with serving(handler=Seen()) as server:
        first = server.addresses
        client = await Client.to(server)
        with pytest.raises(EventdError):
            await server.relisten(("127.0.0.1:0", "nonsense"))
        assert server.addresses == first
        await server.relisten(("[::1]:0",))
        assert [address[:5] for address in server.addresses] == ["[::1]"]
        await client.send(GET)
        assert (await client.answer())[0] == 200, "an open connection outlives its listener"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(first[0].rpartition(":")[2]))


@pytest.mark.anyio
async def test_reconfigure_changes_the_limits_of_later_requests() -> None:
    async with serving(handler=Seen(), max_body=10) as server:
        client = await Client.to(server)
        await client.send(post("/a", b"x" * 10))
        assert (await client.answer())[0] == 200
        server.reconfigure(settings(max_body=20))
        await client.send(post("/a", b"x" * 20))
        assert (await client.answer())[0] == 200


# --- leaving ---


@pytest.mark.anyio
async def test_drain_finishes_what_it_has_and_takes_nothing_new() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen) as server:
        busy, idle, reading, piped = [await Client.to(server) for _ in range(4)]
        await busy.send(GET)
        await idle.send(GET)
        await piped.send(GET + GET)
        await reading.send(b"POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
        await until(lambda: len(seen.requests) == 3 and server.held == 2)
        answered = seen.requests[1]
        answered.respond(Response(200, b"before"))
        assert (await idle.answer())[2] == b"before"
        port = port_of(server)
        server.stop_accepting()
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert server.addresses == ()
        await reading.send(b"llo")
        await until(lambda: len(seen.requests) == 4)
        for request in seen.requests:
            request.respond(Response(200, b"done"))
        for client in (busy, reading):
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"done")
        assert (await piped.answer())[0] == 200
        assert await piped.rest() == b"", "what was piped behind the answer is not run"
        await until(lambda: server.open == 0)
        await server.start()
        again = await Client.to(server)
        await again.send(GET)
        await until(lambda: len(seen.requests) == 5)


@pytest.mark.anyio
async def test_a_request_that_was_on_its_way_at_the_drain_gets_503() -> None:
    seen = Seen()
    async with serving(handler=seen) as server:
        client = await Client.to(server)
        await client.send(b"GET /a HTTP/1.1\r\n")
        await until(lambda: any(connection._buffer for connection in server._connections))
        server.stop_accepting()
        await client.send(b"Host: a\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"], "retry-after" in headers) == (503, "close", True)
        assert seen.requests == []


@pytest.mark.anyio
async def test_aclose_waits_for_answers_but_not_beyond_its_deadline() -> None:
    seen = Seen(hold=True)
    async with serving(handler=seen) as server:
        one, two = await Client.to(server), await Client.to(server)
        await one.send(GET)
        await two.send(GET)
        await until(lambda: len(seen.requests) == 2)
        async with anyio.create_task_group() as group:
            group.start_soon(server.aclose, 0.3)
            await until(lambda: server.draining)
            seen.requests[0].respond(Response(200, b"in time"))
            assert (await one.answer())[2] == b"in time"
        assert seen.gone == [seen.requests[1]]
        assert server.open == 0
        assert await two.rest() == b""


@pytest.mark.anyio
async def test_sockets_of_systemd_are_lent_not_owned(tmp_path: Path) -> None:
    path = tmp_path / "given.sock"
    given = [socket.socket(), socket.socket(socket.AF_UNIX)]
    given[0].bind(("127.0.0.1", 0))
    given[1].bind(str(path))
    for sock in given:
        sock.listen(16)
    router = Router()
    router.add(Route("/a", Seen()))
    for _ in range(2):
        server = HttpServer(settings(), router, log=__import__("logging").getLogger("x"))
        await server.start(given)
        assert server.addresses == (f"127.0.0.1:{given[0].getsockname()[1]}", f"unix:{path}")
        await server.relisten(("127.0.0.1:0",))
        assert len(server.addresses) == 2
        for at in range(2):
            client = await Client.to(server, at)
            await client.send(GET)
            assert (await client.answer())[0] == 200
            await client.close()
        await server.aclose(0)
        assert path.exists()
        waiting = socket.create_connection(given[0].getsockname(), timeout=1)
        waiting.close()
    for sock in given:
        sock.close()
