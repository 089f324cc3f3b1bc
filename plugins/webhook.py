"""The webhook trigger: an HTTP request runs a function and waits for its answer, or is stored and answered with 202.

    [triggers.orders]
    type = "webhook"
    path = "/orders/{id}"
    mode = "async"
    auth = { type = "github", secret_file = "github.secret" }
    function = "order"

Order of things in one request: proof of the sender over the raw body (401), pause (503), then the event. `sync` calls the
function and answers what it says; there is no duplicate suppression, because the caller still holds the request (D8).
`async` answers 202 when the event is on disk; a second delivery with the same id answers the same and runs nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import anyio
import msgspec
from pydantic import AfterValidator, Field

from eventd.sdk import (
    Answer,
    Call,
    Conflict,
    Event,
    EventdError,
    Finding,
    PluginSettings,
    Receipt,
    Request,
    Response,
    Route,
    Site,
    Size,
    TriggerPlugin,
    gateway,
    parse_path,
)

from .webhook_auth import Auth, only, verifier
from .webhook_auth import check as check_auth

MAX_ID: Final = 256
"""Bytes of an event id from outside that are kept as they are; a longer one is replaced by its SHA-256 (D25)."""
_MISSING: Final = object()
_ID = re.compile(r"header:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|body:(?:/(?:[^~]|~[01])*)?")
_JSON: Final = ("content-type", "application/json")

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def _path(path: str) -> str:
    try:
        parse_path(path)
    except EventdError as error:
        raise ValueError(f"{error.message} {error.hint}") from error
    return path


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError(f'{text!r} does not say where the id is; write "header:NAME" or "body:/json/pointer"')
    return text


class WebhookSettings(PluginSettings):
    """The keys of a webhook trigger."""

    path: Annotated[str, AfterValidator(_path)] = Field(description="For example /orders/{id}; the last part may be {rest+}")
    methods: tuple[Method, ...] = Field(default=(), description="Methods that are served; none named: any")
    mode: Literal["sync", "async"] = Field(default="sync", description="sync: the function's answer; async: 202 once the event is on disk")
    auth: Auth | None = Field(default=None, description="How a sender proves who it is; none: everybody may send")
    id: Annotated[str, AfterValidator(_id)] | None = Field(
        default=None,
        description='async: where the event id is, "header:NAME" or "body:/json/pointer"; else by auth type, Idempotency-Key, or our own',
    )
    max_body: Size | None = Field(default=None, description="Largest body; none: [http] max_body")
    payload: Literal["2.0", "1.0"] = Field(default="2.0", description="Shape of the event: API Gateway HTTP API 2.0, or REST 1.0")


def check(name: str, settings: WebhookSettings, triggers: Mapping[str, WebhookSettings]) -> Iterator[Finding]:
    """Every problem that the types cannot see, once: a path that two triggers claim is reported at the later one."""
    if settings.id is not None and settings.mode == "sync":
        why = "a synchronous webhook stores nothing that a second delivery could be compared with, so an id would have no effect."
        yield Finding("id", why, 'Use mode = "async", or remove id.')
    if settings.path == "/url" or settings.path.startswith("/url/"):
        yield Finding("path", "/url/ is kept for functions with url = true.", "Choose another path.")
    for twice in sorted({method for method in settings.methods if settings.methods.count(method) > 1}):
        yield Finding("methods", f"{twice} is named twice.", "Name it once.")
    if settings.max_body == 0:
        yield Finding("max_body", "with 0 no body would be taken.", "Write a size, or remove the key.")
    mine = _served(settings)
    for other_name, other in triggers.items():
        if other_name == name:
            break
        for shape, method in sorted(mine & _served(other)):
            yield Finding("path", f"{method} on {shape} is served by trigger {other_name!r} already.", "Use another path or other methods.")
    if settings.auth is not None:
        yield from check_auth(settings.auth)


def _served(settings: WebhookSettings) -> set[tuple[str, str]]:
    shape = parse_path(settings.path).shape
    methods: tuple[str, ...] = settings.methods or ("any method",)
    return {(shape, method) for method in methods}


def pointed(document: Any, pointer: str) -> Any:
    """What an RFC 6901 pointer points at in a JSON document, or `_MISSING`."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and key in document:
            document = document[key]
        elif isinstance(document, list) and re.fullmatch(r"0|[1-9][0-9]{0,8}", key) and int(key) < len(document):
            document = document[int(key)]
        else:
            return _MISSING
    return document


def short(text: str) -> str:
    """An id from outside, or its SHA-256 in hex when it is over MAX_ID bytes."""
    raw = text.encode("utf-8", "surrogatepass")
    return text if len(raw) <= MAX_ID else hashlib.sha256(raw).hexdigest()


def fingerprint(request: Request) -> bytes:
    """What tells two requests with one id apart: all that the sender chose, nothing that changes with the delivery."""
    head = "\0".join((request.method, request.path, request.query, ""))
    return hashlib.sha256(head.encode("utf-8", "surrogatepass") + request.body).digest()


class _NoId(Exception):
    """The id that the configuration asks for is not in the request; the text is for the sender."""


class _Hook:
    """One webhook at work: `handle` is its route."""

    def __init__(self, site: Site, settings: WebhookSettings) -> None:
        self._site = site
        self._settings = settings
        auth = settings.auth
        self._verify = verifier(site, auth) if auth else None
        challenge = {"basic": 'Basic realm="eventd"', "bearer": "Bearer"}.get(auth.type if auth else "")
        headers = (_JSON, ("www-authenticate", challenge)) if challenge else (_JSON,)
        self._unauthorized = Response(401, b'{"message":"Unauthorized"}', headers)
        self._id_headers = ("x-github-delivery", "idempotency-key") if auth and auth.type == "github" else ("idempotency-key",)
        self._drop = gateway.dropping(auth.headers if auth else ())
        self._account = site.account
        self._api = site.name
        self._v1 = settings.payload == "1.0"
        self._quiet = _Quiet(site)

    def handle(self, request: Request) -> None:
        """Answer now or later; never blocks."""
        if self._verify is not None and not self._verify(request):
            self._quiet.warn("answered 401: a signature or secret was missing or wrong")
            request.respond(self._unauthorized)
        elif self._site.paused:
            request.respond(gateway.unavailable())
        elif self._settings.mode == "sync":
            self._call(request)
        else:
            self._store(request)

    def _event(self, request: Request, request_id: str) -> msgspec.Raw:
        now = self._site.now()
        if self._v1:
            data = gateway.event_v1(
                request, request_id=request_id, resource=request.route, now=now, account=self._account, api=self._api, drop=self._drop
            )
        else:
            key = f"{request.method} {request.route}"
            data = gateway.event_v2(
                request, request_id=request_id, route_key=key, now=now, account=self._account, api=self._api, drop=self._drop
            )
        return msgspec.Raw(data)

    # --- sync ---

    def _call(self, request: Request) -> None:
        invocation = self._site.new_id()

        def done(answer: Answer) -> None:
            request.respond(
                gateway.answer(
                    answer.outcome,
                    answer.payload,
                    invocation=answer.invocation or invocation,
                    refusal=answer.refusal,
                    filtered=answer.filtered,
                    version=self._settings.payload,
                    bad=self._bad_result,
                )
            )

        request.on_gone = self._site.submit(Call(data=self._event(request, invocation), invocation=invocation), done)

    def _bad_result(self, why: str) -> None:
        self._quiet.warn(f"answered 502: the function's result is no HTTP answer: {why}")

    # --- async ---

    def _store(self, request: Request) -> None:
        try:
            id = self._identify(request)
        except _NoId as error:
            request.respond(_say(400, str(error)))
            return
        event = Event(
            data=self._event(request, self._site.new_id()),
            id=None if id is None else short(id),
            fingerprint=None if id is None else fingerprint(request),
        )
        self._site.offer(event, self._stored(request))

    def _stored(self, request: Request) -> Callable[[Receipt | EventdError], None]:
        def done(result: Receipt | EventdError) -> None:
            if isinstance(result, Receipt):
                headers = (_JSON, ("eventd-duplicate", "1")) if result.duplicate else (_JSON,)
                request.respond(Response(202, msgspec.json.encode({"event": result.event}), headers))
            elif isinstance(result, Conflict):
                self._quiet.warn(f"answered 409: {result.message}")
                request.respond(_say(409, "the same event id came before with another body"))
            elif result.http == 503:
                request.respond(gateway.unavailable())
            else:
                self._site.log.error("trigger %s could not store an event: %s", self._site.name, result)
                request.respond(_say(500, "Internal Server Error"))

        return done

    def _identify(self, request: Request) -> str | None:
        """The event's id; None: a fresh one. A configured id that is missing is refused rather than losing its protection."""
        where = self._settings.id
        if where is None:
            for name in self._id_headers:
                if any(field == name for field, _ in request.headers):
                    return _header_id(request, name)
            return None
        kind, _, rest = where.partition(":")
        if kind == "header":
            return _header_id(request, rest.lower())
        try:
            value = pointed(msgspec.json.decode(request.body), rest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _NoId("the body is not JSON") from None
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise _NoId(f"the body has no text or whole number at {rest or '/'}")


def _header_id(request: Request, name: str) -> str:
    value: str | None = only(request, name)
    if not value:
        raise _NoId(f"the header {name} must stand once and not be empty")
    return value


def _say(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode({"message": message}), (_JSON,))


class _Quiet:
    """One log line a minute, with how often it happened: whoever knocks cannot fill the log."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._next = 0.0
        self._count = 0

    def warn(self, what: str) -> None:
        self._count += 1
        now = self._site.monotonic()
        if now >= self._next:
            self._site.log.warning("trigger %s %s (%d refused since the last such line).", self._site.name, what, self._count)
            self._next = now + 60
            self._count = 0


async def run(site: Site, settings: WebhookSettings) -> None:
    """Serve the path until cancelled. Raises EventdError(E-CONFIG): no secret, or the path is taken."""
    hook = _Hook(site, settings)
    route = Route(settings.path, hook.handle, settings.methods, settings.max_body or 0, f"trigger {site.name}")
    close = site.route(route)
    try:
        site.ready()
        await anyio.sleep_forever()
    finally:
        close()


plugin = TriggerPlugin(
    kind="webhook",
    settings=WebhookSettings,
    run=run,
    check=check,
    stays_when_paused=True,
    direct=lambda settings: settings.mode == "sync",
)
