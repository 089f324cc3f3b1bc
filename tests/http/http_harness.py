"""What the tests of the front door share: a served router, raw clients, and a connection without a socket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

from eventd.http import Request, Response, Route
from eventd.http.protocol import Connection
from eventd.http.router import Router
from eventd.http.server import HttpServer, Limits
from eventd.model import HttpSettings

LOG = logging.getLogger("eventd.test.http")


class Seen:
    """A handler that remembers its requests and answers what it saw; `hold` keeps the requests unanswered."""

    def __init__(self, *, hold: bool = False) -> None:
        self.requests: list[Request] = []
        self.hold = hold
        self.gone: list[Request] = []

    def __call__(self, request: Request) -> None:
        self.requests.append(request)
        request.on_gone = lambda: self.gone.append(request)
        if not self.hold:
            request.respond(Response(200, f"{request.method} {request.path} {len(request.body)}".encode()))

    @property
    def summary(self) -> list[tuple[str, str, str, bytes, list[tuple[str, str]]]]:
        return [(one.method, one.path, one.query, one.body, one.headers) for one in self.requests]


def settings(**changes: Any) -> HttpSettings:
    return HttpSettings(**({"listen": ("127.0.0.1:0",)} | changes))


@asynccontextmanager
async def serving(
    *routes: Route, limits: Limits | None = None, handler: Callable[[Request], None] | None = None, **changes: Any
) -> AsyncIterator[HttpServer]:
    """A real server with these routes (and `handler` for every other path), cut off at the end."""
    router = Router()
    for route in routes:
        router.add(route)
    if handler is not None:
        router.add(Route("/{rest+}", handler))
        router.add(Route("/", handler))
    server = HttpServer(settings(**changes), router, log=LOG, limits=limits)
    await server.start()
    try:
        yield server
    finally:
        await server.aclose(0)
        for client in Client.made:
            await client.close()
        Client.made.clear()


def port_of(server: HttpServer) -> int:
    return int(server.addresses[0].rpartition(":")[2])


class Client:
    """A raw TCP client. Every wait has a deadline. `serving` closes all at its end."""

    made: ClassVar[list[Client]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made.append(self)
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, server: HttpServer, at: int = 0) -> Client:
        address = server.addresses[at]
        if address.startswith("unix:"):
            return cls(*await asyncio.open_unix_connection(address[5:]))
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host.strip("[]"), int(port)))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self, timeout: float = 5.0) -> bytes:
        """Everything until the server closes; a reset ends it too."""
        got = b""
        async with asyncio.timeout(timeout):
            try:
                while part := await self.reader.read(65_536):
                    got += part
            except (ConnectionResetError, BrokenPipeError):
                pass
        return got

    async def answer(self, timeout: float = 5.0, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """One answer: status, headers, body."""
        async with asyncio.timeout(timeout):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            status, headers = parse_head(raw)
            length = 0 if head or status == 204 else int(headers.get("content-length", "0"))
            return status, headers, await self.reader.readexactly(length)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    lines = raw.decode("latin-1").split("\r\n")
    return int(lines[0].split(" ")[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}


def statuses(raw: bytes) -> list[int]:
    """The status of every answer in a stream of them."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, headers = parse_head(head)
        found.append(status)
        raw = rest[int(headers.get("content-length", "0")) :]
    return found


class Wire(asyncio.Transport):
    """A transport that only remembers: for tests of thousands of connections."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)})
        self.written = b""
        self.closed = False
        self.ended = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def play(parts: Sequence[bytes], handler: Callable[[Request], None], **changes: Any) -> Wire:
    """Feed one connection these parts and return what came back. Needs no running loop."""
    router = Router()
    router.add(Route("/{rest+}", handler))
    router.add(Route("/", handler))
    server = HttpServer(settings(**changes), router, log=LOG)
    server.loop = _FakeLoop()  # type: ignore[assignment]
    wire = Wire()
    connection = Connection(server)
    connection.connection_made(wire)
    for part in parts:
        if wire.closed:
            break
        connection.data_received(part)
        server.loop.turn()  # type: ignore[attr-defined]
    connection.connection_lost(None)
    assert server.held == 0
    assert server.open == 0
    return wire


class _FakeLoop:
    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return 1.0

    def call_later(self, delay: float, callback: Callable[[], None]) -> None: ...
    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()


async def until(what: Callable[[], object], timeout: float = 5.0) -> None:
    """Return once `what()` is true."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)
