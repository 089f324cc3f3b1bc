"""The control room's HTTP server: uvicorn, driven from our own scope and with the bounds it lacks.

uvicorn by itself takes over the process's signals, wakes ten times a second, reads headers without limit or deadline,
and at its end waits for open requests for ever; here signals are left alone, it sleeps until told, and each has a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import uvicorn
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from eventd.control.api import Api
from eventd.control.door import Door
from eventd.control.listen import BACKLOG, Listener, open_listeners
from eventd.model import ControlSettings
from eventd.ports import Control

HEAD_SECONDS: Final = 5.0
HEAD_MAX: Final = 65_536
CONNECTIONS_MAX: Final = 256
IDLE_SECONDS: Final = 75
GRACE_SECONDS: Final = 3


class Bound(Struct, frozen=True):
    """Where the control room listens, as bound: `unix:PATH` first when there is one, then `HOST:PORT`."""

    addresses: tuple[str, ...]


@asynccontextmanager
async def serve_control(
    control: Control,
    settings: ControlSettings,
    *,
    log: logging.Logger,
    sockets: Sequence[socket.socket] | None = None,
    grace_s: int = GRACE_SECONDS,
) -> AsyncIterator[Bound]:
    """Serve `control` on its Unix socket and TCP listeners for as long as the block lasts.

    Requests are answered once the block is entered. On leaving, also by cancellation, no further connection is accepted,
    open requests get `grace_s` seconds and are then cancelled, and the socket file is removed; connections that wait in a
    socket passed in by systemd stay there for the next daemon. Raises EventdError (E-LISTEN, E-CONFIG) on entering.
    """
    listeners = open_listeners(settings, sockets)
    try:
        server = _Server(Api(control, log=log), listeners, grace_s)
        serving = asyncio.create_task(server.serve(), name="control")
        try:
            await server.wait_started(serving)
            yield Bound(tuple(listener.address for listener in listeners))
        finally:
            server.stop()
            with anyio.CancelScope(shield=True):
                await serving
    finally:
        for listener in listeners:
            listener.close()


class _Server(uvicorn.Server):
    def __init__(self, api: Api, listeners: Sequence[Listener], grace_s: int) -> None:
        config = uvicorn.Config(
            api.application(),
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            loop="none",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
        )
        super().__init__(config)
        self._listeners = listeners
        self._grace_s = grace_s
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def wait_started(self, serving: asyncio.Task[None]) -> None:
        """Return when connections are accepted; raise what kept the server from it."""
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if serving.done():
            await serving

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.servers = []
        # The socket files are ours (or systemd's) to remove, not the loop's, which would do it from Python 3.13 on.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        for listener in self._listeners:
            protocol = partial(_Connection, self.config, self.server_state, {}, listener=listener, lost=self._lost.set)
            if listener.kind == "unix":
                server = await loop.create_unix_server(protocol, sock=listener.sock, backlog=BACKLOG, **keep)
            else:
                server = await loop.create_server(protocol, sock=listener.sock, backlog=BACKLOG)
            self.servers.append(server)
        self.started = True
        self._ready.set()

    async def main_loop(self) -> None:
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more; let what is open end within the grace, then cancel it, so that nothing of ours runs on."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with anyio.move_on_after(self._grace_s):
            while self.server_state.connections:
                self._lost.clear()
                await self._lost.wait()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


class _Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with a limit on the head in bytes and in time, that knows which door it came through."""

    def __init__(self, *args: Any, listener: Listener | None = None, lost: Callable[[], None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener = listener
        self._lost = lost
        self._head = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self.app_state = {"door": _door(self._listener, transport)}
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)
        if self._lost is not None:
            self._lost()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            super().data_received(data)
            return
        self._head += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head > HEAD_MAX:
            self._head_came()
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.abort()


def _door(listener: Listener | None, transport: asyncio.Transport) -> Door:
    """The peer of a Unix socket by the kernel's word (SO_PEERCRED: struct ucred of pid, uid, gid; unix(7))."""
    if listener is None or listener.kind != "unix":
        return Door("tcp", listener.host if listener else "")
    peer: socket.socket = transport.get_extra_info("socket")
    try:
        pid, uid, _ = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    except OSError:  # the peer is gone already
        return Door("unix")
    return Door("unix", uid=uid, pid=pid)
