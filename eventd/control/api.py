"""The Control protocol as HTTP routes (surface.md, section 7): parse, ask the control object, answer JSON.

Nothing is decided here. What may come through which door is `door.py`; what parameters mean is `query.py`. Every change
is logged with who asked for it (D16). Answers are the `--json` objects of the CLI, errors `{"error":{code,message,hint}}`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Final, TypeVar

import anyio
import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from eventd.control import query as q
from eventd.control.door import Door, refusal
from eventd.errors import CODES, EventdError
from eventd.model import Reason
from eventd.ports import Control, Json, Query

BODY_MAX: Final = 1_048_576
INVOKE_BODY_MAX: Final = 6_291_456 + 65_536
"""Lambda's limit for a payload (lambda.md 3.3) and room for the words around it."""
BODY_SECONDS: Final = 15.0
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Invoke(Struct, forbid_unknown_fields=True):
    """`wait_ms` is how long the call may wait for a slot; None is as the function says."""

    function: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    asynchronous: bool = msgspec.field(default=False, name="async")
    id: str | None = None
    wait_ms: int | None = None
    tail: bool = False


class Select(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which dead invocations: by id, or by what they have in common, or all. Never nothing said."""

    invocations: list[str] = []
    function: str | None = None
    trigger: str | None = None
    reason: str | None = None
    all: bool = False
    dry_run: bool = False

    def query(self) -> Query:
        """The selection. Raises E-USAGE when it says nothing or contradicts itself."""
        kinds = self.function is not None or self.trigger is not None or self.reason is not None
        if not (self.invocations or kinds or self.all):
            raise q.usage("nothing is selected", "Name invocations, or a function, trigger or reason, or say all.")
        if self.invocations and (kinds or self.all):
            raise q.usage("invocations are named and a selection is given too", "Give one or the other.")
        if self.all and kinds:
            raise q.usage("'all' is said and a selection is given too", "Give one or the other.")
        if self.reason is not None and self.reason not in tuple(Reason):
            raise q.usage(f"reason {self.reason!r} is unknown", f"One of: {', '.join(Reason)}.")
        return Query(function=self.function, trigger=self.trigger, reason=self.reason, ids=tuple(self.invocations))


class Cancel(Struct, forbid_unknown_fields=True):
    invocations: list[str]


class Target(Struct, forbid_unknown_fields=True):
    """`function:NAME`, `trigger:NAME` or `binding:NAME`."""

    target: str


class Nothing(Struct, forbid_unknown_fields=True):
    pass


class Drain(Struct, forbid_unknown_fields=True):
    queue: bool = False
    timeout_ms: int | None = None
    undo: bool = False


T = TypeVar("T", bound=Struct)
Endpoint = Callable[[Request], Awaitable[Response]]


def split_target(target: str) -> tuple[str, str]:
    """("function", "thumbnail") of "function:thumbnail". Raises E-USAGE."""
    kind, _, name = target.partition(":")
    if kind not in ("function", "trigger", "binding") or not name:
        raise q.usage(f"{target!r} names nothing to pause", "Write function:NAME, trigger:NAME or binding:NAME.")
    return kind, name


def answer(body: Json, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def failure(error: EventdError, status: int | None = None) -> Response:
    headers = {"retry-after": "1"} if CODES[error.code].http in (429, 503) else None
    return Response(msgspec.json.encode(error.as_json()), status or error.http, headers=headers, media_type="application/json")


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Api:
    """One Control object behind HTTP. Stateless: any number of requests at once."""

    def __init__(self, control: Control, *, log: logging.Logger, now_ms: Callable[[], int] = wall_clock) -> None:
        self._control = control
        self._log = log
        self._now_ms = now_ms

    def application(self) -> Starlette:
        get, post = ["GET"], ["POST"]
        routes: list[tuple[str, Endpoint, list[str]]] = [
            ("/v1/status", self.status, get),
            ("/v1/runs", self.runs, get),
            ("/v1/runs/{run}", self.run, get),
            ("/v1/events", self.events, get),
            ("/v1/events/{event}", self.event, get),
            ("/v1/dead", self.dead, get),
            ("/v1/stats", self.stats, get),
            ("/v1/logs", self.logs, get),
            ("/v1/invoke", self.invoke, post),
            ("/v1/redrive", self.redrive, post),
            ("/v1/discard", self.discard, post),
            ("/v1/cancel", self.cancel, post),
            ("/v1/pause", self.pause, post),
            ("/v1/resume", self.resume, post),
            ("/v1/reload", self.reload, post),
            ("/v1/drain", self.drain, post),
            ("/metrics", self.metrics, get),
            ("/healthz", self.healthz, get),
            ("/readyz", self.readyz, get),
        ]
        return Starlette(
            routes=[Route(path, self._guarded(endpoint), methods=methods) for path, endpoint, methods in routes],
            exception_handlers={HTTPException: self._no_route},
        )

    # --- reading ---

    async def status(self, request: Request) -> Response:
        self._params(request, frozenset())
        return answer(await self._control.status())

    async def runs(self, request: Request) -> Response:
        return answer(await self._control.runs(self._params(request, q.RUNS_KEYS).query(self._now_ms())))

    async def run(self, request: Request) -> Response:
        self._params(request, frozenset())
        return answer(await self._control.run(request.path_params["run"]))

    async def events(self, request: Request) -> Response:
        return answer(await self._control.events(self._params(request, q.EVENTS_KEYS).query(self._now_ms(), ids="event")))

    async def event(self, request: Request) -> Response:
        event = request.path_params["event"]
        payload = self._params(request, frozenset({"payload"})).flag("payload")
        found = (await self._control.events(Query(limit=1, ids=(event,), payload=payload)))["events"]
        if not found:
            raise EventdError("E-NOTFOUND", f"there is no event {event!r}", "List them: eventd events")
        return answer(found[0])

    async def dead(self, request: Request) -> Response:
        return answer(await self._control.dead(self._params(request, q.DEAD_KEYS).query(self._now_ms(), ids="invocation")))

    async def stats(self, request: Request) -> Response:
        params, now = self._params(request, q.STATS_KEYS), self._now_ms()
        query = params.query(now)
        if query.since is None:
            query = msgspec.structs.replace(query, since=max(0, now - q.STATS_WINDOW_MS))
        return answer(await self._control.stats(query, params.flag("price")))

    async def logs(self, request: Request) -> Response:
        params = self._params(request, q.LOGS_KEYS)
        lines = params.integer("n", 0, q.LIMIT_MAX)
        found = await self._control.logs(params.query(self._now_ms()), q.LINES_DEFAULT if lines is None else lines, params.one("run"))
        return answer(found)

    # --- acting ---

    async def invoke(self, request: Request) -> Response:
        body = await _body(request, Invoke, INVOKE_BODY_MAX)
        try:
            bytes(body.payload).decode()
        except UnicodeDecodeError as error:
            raise q.usage(f"the payload is not UTF-8: {error}") from None
        result = await self._control.invoke(
            body.function,
            bytes(body.payload),
            asynchronous=body.asynchronous,
            id=body.id,
            wait_ms=body.wait_ms,
            tail=body.tail,
        )
        return answer(result, 202 if body.asynchronous else 200)

    async def redrive(self, request: Request) -> Response:
        body = await _body(request, Select)
        what = f"redrive {_shown(body)}"
        return answer(await self._change(request, what, self._control.redrive(body.query(), body.dry_run), quiet=body.dry_run))

    async def discard(self, request: Request) -> Response:
        body = await _body(request, Select)
        what = f"discard {_shown(body)}"
        return answer(await self._change(request, what, self._control.discard(body.query(), body.dry_run), quiet=body.dry_run))

    async def cancel(self, request: Request) -> Response:
        body = await _body(request, Cancel)
        if not body.invocations:
            raise q.usage("no invocation is named", "Name at least one.")
        return answer(await self._change(request, f"cancel {_shown(body)}", self._control.cancel(body.invocations)))

    async def pause(self, request: Request) -> Response:
        kind, name = split_target((await _body(request, Target)).target)
        return answer(await self._change(request, f"pause {kind}:{name}", self._control.pause(kind, name)))

    async def resume(self, request: Request) -> Response:
        kind, name = split_target((await _body(request, Target)).target)
        return answer(await self._change(request, f"resume {kind}:{name}", self._control.resume(kind, name)))

    async def reload(self, request: Request) -> Response:
        await _body(request, Nothing)
        return answer(await self._change(request, "reload", self._control.reload()))

    async def drain(self, request: Request) -> Response:
        body = await _body(request, Drain)
        if body.timeout_ms is not None and body.timeout_ms < 0:
            raise q.usage("timeout_ms is negative")
        what = "drain undo" if body.undo else "drain"
        asked = self._control.drain(queue=body.queue, timeout_ms=body.timeout_ms, undo=body.undo)
        return answer(await self._change(request, what, asked))

    # --- for machines ---

    async def metrics(self, request: Request) -> Response:
        return Response(await self._control.metrics(), media_type=METRICS_TYPE)

    async def healthz(self, request: Request) -> Response:
        return _verdict(*await self._control.health())

    async def readyz(self, request: Request) -> Response:
        return _verdict(*await self._control.readiness())

    # --- around every route ---

    def _params(self, request: Request, known: frozenset[str]) -> q.Params:
        return q.Params(request.query_params.multi_items(), known)

    async def _change(self, request: Request, what: str, asked: Awaitable[Json], *, quiet: bool = False) -> Json:
        """Carry out a change; the log has who asked before it begins, and a refusal after."""
        door = _door(request)
        if not quiet:
            self._log.info("%s, asked by %s", what, door)
        try:
            return await asked
        except EventdError as error:
            self._log.warning("%s, asked by %s: refused, %s", what, door, error)
            raise

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            try:
                response = await self._admitted(request, endpoint)
            except EventdError as error:
                response = failure(error)
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception:
                self._log.exception("%s %s failed", request.method, request.url.path)
                message = f"{request.method} {request.url.path[:200]} failed"
                response = failure(EventdError("E-INTERNAL", message, "The daemon's log has the traceback."))
            response.headers["date"] = formatdate(usegmt=True)
            response.headers["cache-control"] = "no-store"
            response.headers["x-content-type-options"] = "nosniff"
            return response

        return guarded

    async def _admitted(self, request: Request, endpoint: Endpoint) -> Response:
        headers: dict[str, list[str]] = {}
        for name, value in request.headers.items():
            headers.setdefault(name, []).append(value)
        refused = refusal(_door(request), request.method, request.url.path, headers)
        if refused is not None:
            raise refused
        return await endpoint(request)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        method = isinstance(error, HTTPException) and error.status_code == 405
        if method:
            return failure(q.usage(f"{request.method} is not possible on {request.url.path}"), 405)
        return failure(EventdError("E-NOTFOUND", f"there is nothing at {request.url.path[:200]}", "The routes are listed in the README."))


def _door(request: Request) -> Door:
    door = request.scope.get("state", {}).get("door")
    return door if isinstance(door, Door) else Door("tcp")


async def _body(request: Request, shape: type[T], limit: int = BODY_MAX) -> T:
    """The request's body as `shape`; an empty one as `{}`. Raises E-USAGE for anything else, too large or too slow."""
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise q.usage(f"the body's type is {media[:100]!r}", "Send application/json.")
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise q.usage(f"the body is over {limit} bytes", "Send less at a time.")
    except TimeoutError:
        raise q.usage(f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise q.usage(f"the body is not what {request.url.path} takes: {error}", "The README lists the keys.") from None


def _shown(body: Select | Cancel) -> str:
    """A selection in one short log line: ids are bounded, and never more than what was asked."""
    if body.invocations:
        return f"{len(body.invocations)} invocation(s), {', '.join(body.invocations[:3])[:200]!r}"
    return msgspec.json.encode(body).decode()[:300]


def _verdict(ok: bool, why: str) -> Response:
    return Response(f"{'ok' if ok else why}\n", 200 if ok else 503, media_type="text/plain")
