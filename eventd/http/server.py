"""The front door: listeners, their connections, one sweep over all deadlines, and the way out."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from logging import Logger, LoggerAdapter
from math import inf
from typing import Any

import anyio
import anyio.lowlevel

from eventd.errors import EventdError
from eventd.http import listen, proxies
from eventd.http.protocol import HEAD, IDLE, Connection
from eventd.http.router import Router
from eventd.model import HttpSettings

Log = Logger | LoggerAdapter[Logger]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that users do not set. Times in seconds.

    `idle`: a kept-alive connection without a request. `write`: for the client to take an answer, beside what its size
    allows (protocol.MIN_RATE). `linger`: for a refused client to read why. `sweep`: how late a deadline may be noticed.
    `held`: bytes of incomplete bodies over all connections. `spare`: connections over `max_connections` that are still
    told 503; those over that are dropped.
    """

    idle: float = 75.0
    write: float = 30.0
    linger: float = 2.0
    sweep: float = 0.1
    held: int = 256 * 1024**2
    spare: int = 64


@dataclass(slots=True)
class Counts:
    """What happened since the start. `refused` are answers that ended their connection; `gone` clients that left before theirs."""

    connections: int = 0
    requests: int = 0
    refused: int = 0
    evicted: int = 0
    dropped: int = 0
    timeouts: int = 0
    gone: int = 0
    by_class: dict[str, int] = field(default_factory=lambda: {"2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0})

    def answered(self, status: int) -> None:
        self.by_class[f"{status // 100}xx"] += 1


class _Listener:
    __slots__ = ("address", "file", "given", "server", "sock", "text")

    def __init__(self, sock: socket.socket, server: asyncio.AbstractServer, text: str, given: bool) -> None:
        self.sock = sock
        self.server = server
        self.text = text
        self.address = listen.name_of(sock)
        self.given = given
        self.file = None if given else listen.UnixFile.of(sock)


class HttpServer:
    """Serves a Router on every address of its settings. One event loop, one instance.

    `settings` are those in force; `counts` and `open` (connections now) are for metrics. When all `max_connections` are
    taken, a new client takes the place of the one that has waited longest without a request (first those that never
    finished a head, then idle ones); when every connection has a request, the new one is answered 503 and closed.
    """

    def __init__(self, settings: HttpSettings, router: Router, *, log: Log, limits: Limits | None = None) -> None:
        """Raises EventdError(E-CONFIG) for a `trusted_proxies` entry that is no network."""
        self.settings = settings
        self.router = router
        self.log = log
        self.limits = limits or Limits()
        self.counts = Counts()
        self.trusted = _networks(settings)
        self.draining = False
        self.held = 0
        self.date = ""
        self.clock = 0.0
        self.loop: asyncio.AbstractEventLoop
        self._connections: dict[Connection, None] = {}
        self._listeners: list[_Listener] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: anyio.Event | None = None
        self._closed = False
        self._bound: list[tuple[str, socket.socket]] = []

    def __repr__(self) -> str:
        return f"<HttpServer {', '.join(self.addresses) or 'not listening'} | {self.open} open{' | draining' if self.draining else ''}>"

    # --- life ---

    def bind(self) -> None:
        """Take the addresses of `settings.listen` before `start`: who connects meanwhile waits in the kernel's queue.

        So a daemon finds out that a port is taken before it has begun any work. Raises EventdError(E-LISTEN), nothing left open.
        """
        bound: list[tuple[str, socket.socket]] = []
        try:
            for text in self.settings.listen:
                for sock in listen.bind(text):
                    bound.append((text, sock))
                    sock.listen(listen.BACKLOG)
        except BaseException as error:
            for _, sock in bound:
                sock.close()
            if isinstance(error, OSError):
                raise EventdError("E-LISTEN", f"cannot listen on {text}: {error.strerror}.", "Choose another address.") from error
            raise
        self._bound = bound

    def unbind(self) -> None:
        """Let go of what `bind` took and `start` has not used."""
        for _, sock in self._bound:
            sock.close()
        self._bound = []

    async def start(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Listen on `settings.listen`, or on the given sockets of systemd instead. Also ends an earlier `stop_accepting`.

        When it returns, connections are taken. Raises EventdError(E-LISTEN), with nothing left open.
        """
        self.loop = asyncio.get_running_loop()
        self.draining = self._closed = False
        self._tick()
        if sockets is None:
            bound, self._bound = self._bound, []
            for text, sock in bound:
                await self._listen(sock, text, given=False)
            if not bound:
                await self._open(self.settings.listen)
            return
        opened: list[_Listener] = []
        try:
            for sock in sockets:
                opened.append(await self._listen(sock, listen.name_of(sock), given=True))
        except BaseException:
            for one in opened:
                self._close(one)
            raise

    async def relisten(self, addresses: Sequence[str]) -> None:
        """Change the addresses without refusing anybody: new ones are opened first, then the others are closed.

        Raises EventdError(E-LISTEN) with the old ones still served. Does nothing while sockets of systemd are used.
        """
        if any(one.given for one in self._listeners):
            return
        known = {one.text for one in self._listeners}
        await self._open([text for text in addresses if text not in known])
        for one in [one for one in self._listeners if one.text not in addresses]:
            self._close(one)

    def reconfigure(self, settings: HttpSettings) -> None:
        """Limits and trusted proxies from now on; requests whose head is complete keep theirs. Addresses: `relisten`."""
        self.trusted = _networks(settings)
        self.settings = settings

    def stop_accepting(self) -> None:
        """Take no new work: our listeners close (those of systemd keep queueing), idle connections close, requests whose head is
        complete are answered, later ones on open connections get 503 and `Connection: close`. `start` undoes it."""
        self.draining = True
        for one in tuple(self._listeners):
            self._close(one)
        for connection in tuple(self._connections):
            connection.close_if_idle()

    async def aclose(self, deadline: float = 0.0) -> None:
        """`stop_accepting`, then wait up to `deadline` seconds for requests in flight; what is left is cut off.

        When it returns no connection is open. On cancel: cut off at once.
        """
        self.stop_accepting()
        try:
            with anyio.move_on_after(deadline):
                await self._until_empty()
        finally:
            self._closed = True
            for connection in tuple(self._connections):
                connection.abort()
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            # A client may have been accepted whose connection_made comes only some turns of the loop later.
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            await self._until_empty()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens now, with real ports, in the form of `[http] listen`."""
        return tuple(one.address for one in self._listeners)

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._connections)

    # --- for connections ---

    def time(self) -> float:
        return self.loop.time()

    def admit(self, connection: Connection) -> bool:
        """Register a new connection. False: there is no room, refuse it."""
        self.counts.connections += 1
        self._connections[connection] = None
        if self._closed:
            connection.abort()
            return False
        if self._sweeper is None:
            self._tick()
            self._sweeper = self.loop.call_later(self.limits.sweep, self._sweep)
        over = len(self._connections) - self.settings.max_connections
        if over <= 0:
            return True
        if self._evict(connection):
            return True
        if over > self.limits.spare:
            self.counts.dropped += 1
            connection.abort()
        return False

    def left(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._empty is not None:
            self._empty.set()

    # --- inside ---

    def _evict(self, newcomer: Connection) -> bool:
        """Make room: drop the connection that has waited longest without a complete request. False when there is none."""
        best: Connection | None = None
        rank = (IDLE, inf)
        for connection in self._connections:
            phase = connection.phase
            if phase <= HEAD and connection is not newcomer and (-phase, connection.deadline) < rank:
                best, rank = connection, (-phase, connection.deadline)
        if best is None:
            return False
        self.counts.evicted += 1
        best.abort()
        return True

    def _sweep(self) -> None:
        self._tick()
        now = self.clock
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                try:
                    connection.expire()
                except Exception:
                    self.log.exception("E-INTERNAL a connection could not be closed in order.")
                    connection.abort()
        self._sweeper = self.loop.call_later(self.limits.sweep, self._sweep) if self._connections else None

    def _tick(self) -> None:
        self.clock = self.loop.time()
        self.date = formatdate(time.time(), usegmt=True)

    async def _until_empty(self) -> None:
        while self._connections:
            self._empty = anyio.Event()
            await self._empty.wait()

    async def _open(self, addresses: Sequence[str]) -> None:
        opened: list[_Listener] = []
        try:
            for text in addresses:
                for sock in listen.bind(text):
                    opened.append(await self._listen(sock, text, given=False))
        except BaseException:
            for one in opened:
                self._close(one)
            raise

    async def _listen(self, sock: socket.socket, text: str, *, given: bool) -> _Listener:
        # The loop closes what it listens on; systemd's own socket must stay open, so that it goes on queueing.
        own = sock.dup() if given else sock
        own.setblocking(False)
        try:
            if own.family == socket.AF_UNIX:
                server = await self.loop.create_unix_server(self._connection, sock=own, backlog=listen.BACKLOG, **self._keep_file())
            else:
                server = await self.loop.create_server(self._connection, sock=own, backlog=listen.BACKLOG)
        except OSError as error:
            own.close()
            raise EventdError("E-LISTEN", f"cannot listen on {text}: {error.strerror}.", "Choose another address.") from error
        listener = _Listener(own, server, text, given)
        self._listeners.append(listener)
        return listener

    def _keep_file(self) -> dict[str, Any]:
        """Newer loops remove a Unix socket's file by themselves, and would remove systemd's."""
        return {"cleanup_socket": False} if "cleanup_socket" in inspect.signature(self.loop.create_unix_server).parameters else {}

    def _connection(self) -> Connection:
        return Connection(self)

    def _close(self, listener: _Listener) -> None:
        if listener.file is not None:
            listener.file.remove()
        listener.server.close()
        self._listeners.remove(listener)


def _networks(settings: HttpSettings) -> tuple[proxies.Network, ...]:
    try:
        return proxies.networks(settings.trusted_proxies)
    except ValueError as error:
        raise EventdError("E-CONFIG", f"http.trusted_proxies: {error}.", 'Write networks such as "10.0.0.0/8" or "::1".') from error
