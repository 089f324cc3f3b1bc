"""A request and its answer, and a route: what the HTTP front door lends to triggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

RawHeaders = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Response:
    """`headers` are as written on the wire; length, date and connection headers are added by the server."""

    status: int
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


class Request:
    """One HTTP request, complete with its body. `respond` may be called once, now or later, on the event loop.

    `path` and `query` are as received (not percent-decoded). Header names are lower case, in order of arrival,
    duplicates kept. `peer` is the client's address after `trusted_proxies`, `scheme` and `port` likewise (`port` is
    the one the client asked, 0 when not known). `params` are the route's parameters, percent-decoded. `raw_headers`
    are the headers as received, names in their own case; empty when the request did not come from a socket.
    """

    __slots__ = (
        "_raw", "body", "headers", "method", "on_gone", "params", "path", "peer", "port", "query", "respond", "route", "scheme", "version",
    )  # fmt: skip

    def __init__(
        self,
        respond: Callable[[Response], None],
        method: str = "",
        path: str = "",
        query: str = "",
        version: str = "1.1",
        headers: list[tuple[str, str]] | None = None,
        raw_headers: RawHeaders | Callable[[], RawHeaders] = (),
        peer: str = "",
        port: int = 0,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.version = version
        self.headers: list[tuple[str, str]] = [] if headers is None else headers
        self._raw = raw_headers
        self.body = b""
        self.peer = peer
        self.scheme = "http"
        self.port = port
        self.params: dict[str, str] = {}
        self.route: str = ""
        self.respond = respond
        self.on_gone: Callable[[], None] | None = None
        """Called when the client has gone before the answer."""

    @property
    def raw_headers(self) -> RawHeaders:
        if callable(self._raw):  # few ask for them
            self._raw = self._raw()
        return self._raw

    @raw_headers.setter
    def raw_headers(self, headers: RawHeaders) -> None:
        self._raw = headers


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is `/a/{id}` with an optional last part `{name+}`; literal beats parameter beats greedy.

    `handle` runs on the event loop and must not block; an exception from it is answered with 500 and logged.
    `methods` empty means any. `max_body` 0 means the listener's own limit.
    """

    path: str
    handle: Callable[[Request], None]
    methods: tuple[str, ...] = ()
    max_body: int = 0
    owner: str = ""
