"""What passes between a test and a plugin: a direct call and its answer; an HTTP request through the routes and its response."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import msgspec

from eventd.sdk import Answer, Call, Request, Response, Route

__all__ = ["Called", "Exchange", "pick"]


@dataclass(slots=True)
class Called:
    """A direct call that the plugin made. Unanswered until the script or the test answers it; `gone`: the caller left."""

    call: Call
    invocation: str
    done: Callable[[Answer], None]
    gone: bool = False
    answered: Answer | None = None

    def answer(self, answer: Answer) -> None:
        """Answer now (once). An empty `invocation` is filled in. A caller that has gone is not told, as in the daemon."""
        if self.answered is not None:
            raise AssertionError(f"the call {self.invocation} was answered already")
        self.answered = msgspec.structs.replace(answer, invocation=answer.invocation or self.invocation)
        if not self.gone:
            self.done(self.answered)


class Exchange:
    """`request` as the handler got it, `response` once it answered, `error` what the handler raised (answered with 500)."""

    def __init__(self, method: str, path: str, query: str, body: bytes, headers: Sequence[tuple[str, str]], peer: str, scheme: str) -> None:
        self.response: Response | None = None
        self.error: Exception | None = None
        self._answered = asyncio.Event()
        self.request = request = Request(self._respond)
        request.method, request.path, request.query, request.body = method, path, query, body
        request.headers = [(name.lower(), value) for name, value in headers]
        request.peer, request.scheme = peer, scheme

    def _respond(self, response: Response) -> None:
        if self.response is not None:
            raise AssertionError(f"{self.request.method} {self.request.path} was answered twice")
        self.response = response
        self._answered.set()

    def disconnect(self) -> None:
        """The client goes away before the answer."""
        if self.response is None and self.request.on_gone is not None:
            self.request.on_gone()

    async def wait(self, timeout: float = 5.0) -> Response:
        """The answer; TimeoutError when there is none within `timeout` real seconds."""
        async with asyncio.timeout(timeout):
            await self._answered.wait()
        assert self.response is not None
        return self.response

    def deliver(self, route: Route, params: dict[str, str]) -> None:
        """Hand the request to a route, as the front door does."""
        self.request.route, self.request.params = route.path, params
        if route.max_body and len(self.request.body) > route.max_body:
            self._respond(Response(413))
            return
        try:
            route.handle(self.request)
        except Exception as error:
            self.error = error
            if self.response is None:
                self._respond(Response(500, b'{"message":"Internal Server Error"}'))


def pick(exchange: Exchange, routes: Sequence[Route]) -> None:
    """Deliver to the best route: part by part, literal beats parameter beats greedy. Else 404, or 405 for another method."""
    matches = [(rank, route, params) for route in routes if (hit := _match(route.path, exchange.request.path)) for rank, params in [hit]]
    for _, route, params in sorted(matches, key=lambda match: match[0]):
        if not route.methods or exchange.request.method in route.methods:
            exchange.deliver(route, params)
            return
    exchange.request.respond(Response(405 if matches else 404))


def _match(pattern: str, path: str) -> tuple[list[int], dict[str, str]] | None:
    rank: list[int] = []
    params: dict[str, str] = {}
    got = path.split("/")
    parts = pattern.split("/")
    for at, part in enumerate(parts):
        if greedy := re.fullmatch(r"\{(.+)\+\}", part):
            rest = "/".join(got[at:])
            return ([*rank, 2], params | {greedy[1]: unquote(rest)}) if rest else None
        if at >= len(got):
            return None
        if named := re.fullmatch(r"\{(.+)\}", part):
            if not got[at]:
                return None
            rank.append(1)
            params[named[1]] = unquote(got[at])
        elif part == got[at]:
            rank.append(0)
        else:
            return None
    return (rank, params) if len(got) == len(parts) else None
