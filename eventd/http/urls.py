"""Function URLs: a function with `url = true` at `/url/NAME/...`, shaped as AWS does it (lambda-url)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from eventd.http import gateway
from eventd.http.message import Request, Route
from eventd.model import Outcome, Refusal

CONTENT_TYPE = "application/json"
"""Of an answer that names none, as function URLs do it."""


class Ended(Protocol):
    """What is needed of a direct call's answer; `eventd.sdk.Answer` is one."""

    @property
    def invocation(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def refusal(self) -> Refusal | None: ...


Submit = Callable[[bytes, str, Callable[[Ended], None]], Callable[[], None]]
"""`submit(event, invocation, done)` calls the function and returns what says that the caller has gone."""


def routes(
    name: str,
    submit: Submit,
    *,
    new_id: Callable[[], str],
    now: Callable[[], float],
    bad: Callable[[str], None] | None = None,
) -> tuple[Route, ...]:
    """The routes of one function's URL: `/url/NAME`, `/url/NAME/` and everything below. The prefix is not in rawPath.

    `now`: seconds since the epoch. `bad` is told why a result is no HTTP answer.
    """
    prefix = f"/url/{name}"

    def handle(request: Request) -> None:
        invocation = new_id()
        request.params = {}
        event = gateway.event_v2(request, request_id=invocation, route_key="$default", now=now(), api=name, prefix=prefix)

        def done(ended: Ended) -> None:
            request.respond(
                gateway.answer(
                    ended.outcome,
                    ended.payload,
                    invocation=ended.invocation or invocation,
                    refusal=ended.refusal,
                    content_type=CONTENT_TYPE,
                    bad=bad,
                )
            )

        request.on_gone = submit(event, invocation, done)

    return tuple(Route(path, handle, owner=f"function {name}") for path in (prefix, f"{prefix}/", f"{prefix}/{{proxy+}}"))
