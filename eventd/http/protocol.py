"""One HTTP/1.1 connection, in callbacks: no task, future or timer per request.

A connection is in one phase at a time and has one deadline, which the server's sweep looks at:

    IDLE      nothing received since the last answer           deadline: idle, then close
    HEAD      waiting for the end of a request's head          header_timeout from connecting or from its first byte, then 408
    BODY      waiting for the end of its body                  body_timeout from the end of the head, then 408
    HANDLING  a handler has the request                        none: an answer may come hours later
    WRITING   the answer is not sent yet, the client is slow   write_timeout plus the time MIN_RATE allows, then abort
    LINGER    refused: told so, input is thrown away           linger, then abort (closing at once could lose the answer)
    CLOSING   answered, the rest is on its way                 as WRITING
    CLOSED

One request is handled at a time and the next is not even looked at before its answer, so answers are in order; what a
client sends meanwhile is kept up to MAX_AHEAD bytes, then reading stops. A client that half-closes has gone. After HTTP/1.0
the connection ends. No callback raises.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, cast

from eventd.http import answers, head, proxies, strict
from eventd.http.body import ChunkedBody, FixedBody
from eventd.http.message import Request, Response, Route

if TYPE_CHECKING:
    from eventd.http.server import HttpServer

IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
HANDLING: Final = 3
WRITING: Final = 4
LINGER: Final = 5
CLOSING: Final = 6
CLOSED: Final = 7

MAX_AHEAD: Final = 65_536
"""Bytes kept of what a client sends while a request of its own is handled."""
MIN_RATE: Final = 16_384
"""Bytes a second that a client must at least take of an answer."""
_TURN: Final = 16
"""Pipelined requests answered in one go before other connections have their turn."""


class Connection(asyncio.Protocol):
    """See the module. Made by `HttpServer` for each client."""

    __slots__ = (
        "_ahead", "_body", "_buffer", "_busy", "_held", "_keep", "_local_port", "_peer", "_refusal", "_request", "_route",
        "_scanned", "_serial", "_server", "_transport", "_trusted", "_unsent", "deadline", "phase",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.phase = CLOSED
        self.deadline = inf
        self._buffer = b""
        self._scanned = 0
        self._request: Request | None = None
        self._route: Route | None = None
        self._refusal: Response | None = None
        self._serial = 0
        self._keep = False
        self._busy = False
        self._ahead = False
        self._unsent = False
        self._body: FixedBody | ChunkedBody | None = None
        self._held = 0
        self._peer = ""
        self._trusted = False
        self._local_port = 0

    def __repr__(self) -> str:
        names = ("idle", "head", "body", "handling", "writing", "linger", "closing", "closed")
        return f"<Connection {self._peer} {names[self.phase]}>"

    # --- the transport's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Nothing waits in user space unseen: pause_writing comes at the first byte the kernel does not take.
        self._transport.set_write_buffer_limits(high=0)
        server = self._server
        peer = transport.get_extra_info("peername")
        # A program behind a Unix socket is on this machine, so it counts as 127.0.0.1, for trusted_proxies too.
        self._peer = proxies.plain(peer[0]) if isinstance(peer, tuple) and len(peer) >= 2 else "127.0.0.1"
        self._trusted = proxies.is_trusted(self._peer, server.trusted)
        local = transport.get_extra_info("sockname")
        self._local_port = local[1] if isinstance(local, tuple) and len(local) >= 2 else 0
        if server.admit(self):
            self.phase = HEAD
            self.deadline = server.time() + server.settings.header_timeout_ms / 1000
        else:
            self._refuse(503, "too many connections", ("retry-after", "1"))

    def data_received(self, data: bytes) -> None:
        if self.phase >= LINGER:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self.phase <= BODY:
            self._advance()
        elif len(self._buffer) > MAX_AHEAD and not self._ahead:
            self._ahead = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client sends no more. It has gone, as far as we can know: returning None closes the transport."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = CLOSED
        self.deadline = inf
        self._buffer = b""
        self._serial += 1
        request, self._request = self._request, None
        self._release()
        self._server.left(self)
        if request is not None and request.on_gone is not None:
            self._server.counts.gone += 1
            try:
                request.on_gone()
            except Exception:
                self._server.log.exception("E-INTERNAL a handler failed when its client had gone.")

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False
        if self.phase == WRITING:
            self._next()
            self._advance()

    # --- the server's side ---

    def expire(self) -> None:
        """The deadline has passed."""
        if self.phase in (HEAD, BODY) and (self._buffer or self.phase == BODY):
            self._server.counts.timeouts += 1
            self._refuse(408, "Request Timeout")
        elif self.phase in (IDLE, HEAD):
            self._end()
        else:
            self._server.counts.timeouts += self.phase in (WRITING, CLOSING)
            self.abort()

    def close_if_idle(self) -> None:
        """Close a connection that has no request on it, not even the first byte of one."""
        if self.phase in (IDLE, HEAD) and not self._buffer:
            self._end()

    def abort(self) -> None:
        """Close at once, whatever is in flight."""
        self.phase = CLOSED
        self.deadline = inf
        self._transport.abort()

    # --- reading ---

    def _advance(self) -> None:
        """Read as far as the bytes go. Not entered twice: a handler may answer while it is called from here."""
        if self._busy:
            return
        self._busy = True
        try:
            turn = 0
            while self._buffer if self.phase <= HEAD else self.phase == BODY:
                turn += 1
                if turn > _TURN:
                    self._server.loop.call_soon(self._advance)
                    return
                if not (self._read_body() if self.phase == BODY else self._read_head()):
                    return
        except Exception:
            self._server.log.exception("E-INTERNAL a connection was closed because of a mistake in eventd.")
            self.abort()
        finally:
            self._busy = False

    def _read_head(self) -> bool:
        """Take one head off the buffer and begin its request. False: more bytes are needed, or it was refused."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", self._scanned) + 4
        if buffer.startswith(b"\r\n"):
            # Empty lines before a request are allowed (RFC 9112, 2.2): old clients end a body with one.
            self._buffer = buffer[2:]
            self._scanned = 0
            return True
        if end == 3:
            return self._await_head(buffer)
        read = head.read(buffer if end == len(buffer) else buffer[:end], self._server.settings.max_headers)
        if isinstance(read, strict.Refused):
            return self._refuse(*read)
        self._buffer = buffer[end:]
        self._scanned = 0
        return self._begin(read)

    def _await_head(self, buffer: bytes) -> bool:
        fault = strict.fault_so_far(buffer, self._scanned, self._server.settings.max_headers)
        if fault is not None:
            return self._refuse(*fault)
        if self.phase == IDLE:
            self.phase = HEAD
            self.deadline = self._server.time() + self._server.settings.header_timeout_ms / 1000
        self._scanned = max(len(buffer) - 3, 0)
        return False

    def _begin(self, read: head.Head) -> bool:
        """A head is complete: find the route of its request, and go on to its body or its handler."""
        server = self._server
        self._keep = read.keep_alive
        method, path = read.method, read.path
        respond = partial(self._respond, self._serial)
        request = Request(respond, method, path, read.query, read.version, read.headers, read.raw, self._peer, self._local_port)
        if self._trusted:
            proxies.believe(request, server.trusted)
        self._request = request
        server.counts.requests += 1
        if server.draining:
            return self._refuse(503, "Service Unavailable", ("retry-after", "5"))
        limit = server.settings.max_body
        found = server.router.find(method, path)
        self._route = route = found.route
        if route is not None:
            limit = route.max_body or limit
            request.route = route.path
            request.params = found.params
        elif found.allowed:
            self._refusal = answers.say(405, "Method Not Allowed", ("allow", ", ".join(found.allowed)))
        else:
            self._refusal = answers.say(404, "Not Found")
        if read.expect and read.expect != "100-continue":
            return self._refuse(417, "Expectation Failed")
        length = read.length
        if length and not 0 < length <= min(limit, len(self._buffer)):
            return self._begin_body(length, limit, bool(read.expect))
        if length:  # the usual case: the body came with the head
            request.body = self._buffer[:length]
            self._buffer = self._buffer[length:]
        self._handle()
        return True

    def _begin_body(self, length: int, limit: int, expect: bool) -> bool:
        server = self._server
        if length > limit:
            return self._refuse(413, "Content Too Large")
        if expect:
            if self._refusal is not None:
                return self._refuse_with(self._refusal)
            self._transport.write(answers.CONTINUE)
        self.phase = BODY
        self.deadline = server.time() + server.settings.body_timeout_ms / 1000
        self._body = FixedBody(length) if length >= 0 else ChunkedBody(limit, server.settings.max_headers)
        return True

    def _read_body(self) -> bool:
        """Take what the buffer has of the body. False: more bytes are needed, or it was refused."""
        body = self._body
        if not self._buffer or body is None:
            return False
        took = body.feed(self._buffer)
        if isinstance(took, strict.Refused):
            return self._refuse(*took)
        if not body.done:
            self._buffer = self._buffer[took:]
            self._held += took
            self._server.held += took
            if self._server.held > self._server.limits.held:
                return self._refuse(503, "Service Unavailable", ("retry-after", "1"))
            return False
        self._finish_body(bytes(body.body), took)
        return True

    def _finish_body(self, body: bytes, took: int) -> None:
        self._buffer = self._buffer[took:]
        self._body = None
        assert self._request is not None
        self._request.body = body
        self._handle()

    def _release(self) -> None:
        if self._held:
            self._server.held -= self._held
            self._held = 0
        self._body = None
        self._refusal = None

    # --- answering ---

    def _handle(self) -> None:
        request = self._request
        assert request is not None
        self.phase = HANDLING
        self.deadline = inf
        if self._refusal is not None:
            request.respond(self._refusal)
            return
        assert self._route is not None
        serial = self._serial
        try:
            self._route.handle(request)
        except Exception:
            self._server.log.exception("E-INTERNAL the handler of %s failed.", self._route.path)
            self._respond(serial, answers.say(500, "Internal Server Error"))

    def _respond(self, serial: int, response: Response) -> None:
        """Answer request number `serial`; nothing when it was answered before or its client has gone. Never raises."""
        if serial != self._serial or self.phase != HANDLING:
            return
        try:
            request = self._request
            assert request is not None
            self._serial += 1
            self._request = None
            if self._held or self._refusal is not None:
                self._release()
            server = self._server
            close = not self._keep or server.draining
            data = self._encoded(response, request.method == "HEAD", close)
            self._transport.write(data)
            if close:
                self._end(len(data))
            elif self._unsent:
                self.phase = WRITING
                self.deadline = server.time() + server.limits.write + len(data) / MIN_RATE
            else:
                self._next()
                if self._buffer:
                    self._advance()
        except Exception:
            self._server.log.exception("E-INTERNAL an answer could not be sent.")
            self.abort()

    def _encoded(self, response: Response, bodiless: bool, close: bool) -> bytes:
        server = self._server
        try:
            data = answers.encode(response, head=bodiless, close=close, date=server.date)
        except (ValueError, TypeError, AttributeError) as error:
            server.log.error("E-INTERNAL an answer was replaced by 502: %s.", error)
            response = answers.say(502, "Internal Server Error")
            data = answers.encode(response, head=bodiless, close=close, date=server.date)
        server.counts.answered(response.status)
        return data

    def _next(self) -> None:
        """The answer is out: ready for another request."""
        self.phase = IDLE
        self.deadline = self._server.clock + self._server.limits.idle
        if self._ahead:
            self._ahead = False
            self._transport.resume_reading()

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> bool:
        """Answer with a refusal and end the connection; always False, for the reader to stop."""
        return self._refuse_with(answers.say(status, message, *headers))

    def _refuse_with(self, response: Response) -> bool:
        server = self._server
        request, self._request = self._request, None
        self._serial += 1
        self._release()
        self._buffer = b""
        server.counts.refused += 1
        if self._transport.is_closing():
            return False
        self._transport.write(self._encoded(response, request is not None and request.method == "HEAD", True))
        self.phase = LINGER
        self.deadline = server.time() + server.limits.linger
        if self._ahead:
            self._ahead = False
            self._transport.resume_reading()
        self._transport.write_eof()
        return False

    def _end(self, unsent: int = 0) -> None:
        """Close when everything written has gone out."""
        self.phase = CLOSING
        self.deadline = self._server.time() + self._server.limits.write + unsent / MIN_RATE
        self._buffer = b""
        self._transport.close()
