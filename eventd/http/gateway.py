"""What API Gateway and function URLs do between HTTP and a handler: a request as a Lambda event, a result as an answer. Pure.

Shapes: payload 2.0 and 1.0 (https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html),
function URLs (https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html). Where the documents are silent, what was
recorded on AWS: a bare string result is sent without its quotes, an invalid escape in a path is passed on as it came.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote_plus

import msgspec

from eventd.http.answers import JSON, header_name_is_valid, header_value_is_valid, say
from eventd.http.message import Request, Response
from eventd.model import Outcome, Refusal

HOP_BY_HOP: Final = frozenset(
    {"connection", "expect", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_FORWARDED: Final = frozenset({"x-forwarded-for", "x-forwarded-proto", "x-forwarded-port"})
_TEXT_TYPES: Final = frozenset({"application/json", "application/xml", "application/javascript"})
_STATUS = re.compile(r"[1-5][0-9][0-9]")
_encode = msgspec.json.Encoder().encode

RETRY_AFTER: Final = 5
"""Seconds, in answers that say that it would work later."""


def dropping(names: Iterable[str] = ()) -> frozenset[str]:
    """The headers that an event leaves out: those of the connection, those we write ourselves, and `names` (D17)."""
    return HOP_BY_HOP | _FORWARDED | {name.lower() for name in names}


_PLAIN: Final = dropping()


# --- requests ---


@lru_cache(maxsize=256)
def is_text(content_type: str) -> bool:
    """Whether a body of this type goes into the event as it is; all others, and a missing type, as base64."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml"))


def parse_query(query: str) -> list[tuple[str, str]]:
    """Names and values of a query string, decoded, in order, duplicates and empty values kept."""
    if not query:
        return []
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((unquote_plus(name), unquote_plus(value)))
    return pairs


@lru_cache(maxsize=4)
def clf_time(second: int) -> str:
    """`20/Nov/2026:10:11:12 +0000`, with English months whatever the locale."""
    at = time.gmtime(second)
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[at.tm_mon - 1]
    return f"{at.tm_mday:02}/{month}/{at.tm_year:04}:{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000"


def _body(event: dict[str, Any], body: bytes, content_type: str) -> None:
    if is_text(content_type):
        try:
            event["body"] = body.decode()
        except UnicodeDecodeError:
            pass
        else:
            event["isBase64Encoded"] = False
            return
    event["body"] = base64.b64encode(body).decode("ascii")
    event["isBase64Encoded"] = True


def event_v2(
    request: Request,
    *,
    request_id: str,
    route_key: str,
    now: float,
    account: str = "anonymous",
    api: str = "eventd",
    prefix: str = "",
    drop: frozenset[str] = _PLAIN,
) -> bytes:
    """A request as payload 2.0. `now`: seconds since the epoch; `prefix`: left out at the beginning of the path;
    `drop`: of `dropping(...)`."""
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in request.headers:
        if name in drop:
            continue
        if name == "cookie":
            cookies.extend(part for part in value.split("; ") if part)
        elif name in headers:
            headers[name] += "," + value
        else:
            headers[name] = value
    headers["x-forwarded-for"] = request.peer
    headers["x-forwarded-port"] = str(request.port)
    headers["x-forwarded-proto"] = request.scheme
    path = request.path[len(prefix) :] or "/" if prefix else request.path
    host = headers.get("host", "")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": {
            "accountId": account,
            "apiId": api,
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": request.method,
                "path": path,
                "protocol": "HTTP/" + request.version,
                "sourceIp": request.peer,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": request_id,
            "routeKey": route_key,
            "stage": "$default",
            "time": clf_time(int(now)),
            "timeEpoch": int(now * 1000),
        },
    }
    if cookies:
        event["cookies"] = cookies
    if request.query:
        query: dict[str, str] = {}
        for name, value in parse_query(request.query):
            query[name] = f"{query[name]},{value}" if name in query else value
        if query:
            event["queryStringParameters"] = query
    if request.params:
        event["pathParameters"] = request.params
    if request.body:
        _body(event, request.body, headers.get("content-type", ""))
    else:
        event["isBase64Encoded"] = False
    return _encode(event)


_NO_IDENTITY: Final = dict.fromkeys(
    (
        "accessKey", "accountId", "apiKey", "apiKeyId", "caller", "cognitoAuthenticationProvider", "cognitoAuthenticationType",
        "cognitoIdentityId", "cognitoIdentityPoolId", "principalOrgId", "user", "userArn",
    )
)  # fmt: skip


def event_v1(
    request: Request,
    *,
    request_id: str,
    resource: str,
    now: float,
    account: str = "anonymous",
    api: str = "eventd",
    prefix: str = "",
    drop: frozenset[str] = _PLAIN,
) -> bytes:
    """A request as payload 1.0, the shape of a REST API: absent maps are null, header names keep their case. As `event_v2`."""
    pairs = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.raw_headers] or request.headers
    headers: dict[str, str] = {}
    many: dict[str, list[str]] = {}
    for name, value in pairs:
        if name.lower() not in drop:
            headers[name] = value
            many.setdefault(name, []).append(value)
    for name, value in (("X-Forwarded-For", request.peer), ("X-Forwarded-Port", str(request.port)), ("X-Forwarded-Proto", request.scheme)):
        headers[name] = value
        many[name] = [value]
    query: dict[str, str] = {}
    queries: dict[str, list[str]] = {}
    for name, value in parse_query(request.query):
        query[name] = value
        queries.setdefault(name, []).append(value)
    known = {name.lower(): value for name, value in headers.items()}
    path = request.path[len(prefix) :] or "/" if prefix else request.path
    host = known.get("host", "")
    event: dict[str, Any] = {
        "version": "1.0",
        "resource": resource,
        "path": path,
        "httpMethod": request.method,
        "headers": headers,
        "multiValueHeaders": many,
        "queryStringParameters": query or None,
        "multiValueQueryStringParameters": queries or None,
        "pathParameters": request.params or None,
        "stageVariables": None,
        "requestContext": {
            "accountId": account,
            "apiId": api,
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "extendedRequestId": request_id,
            "httpMethod": request.method,
            "identity": _NO_IDENTITY | {"sourceIp": request.peer, "userAgent": known.get("user-agent", "")},
            "path": path,
            "protocol": "HTTP/" + request.version,
            "requestId": request_id,
            "requestTime": clf_time(int(now)),
            "requestTimeEpoch": int(now * 1000),
            "resourceId": resource,
            "resourcePath": resource,
            "stage": "$default",
        },
        "body": None,
        "isBase64Encoded": False,
    }
    if request.body:
        _body(event, request.body, known.get("content-type", ""))
    return _encode(event)


# --- results ---


class BadResult(ValueError):
    """What a handler returned is no answer; the text says why, for the log."""


class _Result(msgspec.Struct):
    statusCode: Any = msgspec.UNSET
    headers: Any = None
    multiValueHeaders: Any = None
    cookies: Any = None
    body: Any = None
    isBase64Encoded: Any = False


_decode_result = msgspec.json.Decoder(_Result).decode
_decode_text = msgspec.json.Decoder(str).decode


Headers = tuple[tuple[str, str], ...]


def result(payload: bytes, *, version: str = "2.0", content_type: str = "text/plain; charset=utf-8", extra: Headers = ()) -> Response:
    """The answer that a handler's JSON result stands for. Raises BadResult.

    2.0: a result without `statusCode` is the body of a 200, as JSON, compact; a string without its quotes. 1.0: every
    result needs `statusCode`. `content_type` is for an answer that names none; `extra` headers are added.
    """
    kind = payload.lstrip()[:1]
    try:
        if kind == b"{":
            found = _decode_result(payload)
            if found.statusCode is not msgspec.UNSET:
                return _explicit(found, version, content_type, extra)
        if version == "1.0":
            raise BadResult("it has no statusCode")
        if kind == b'"':
            return Response(200, _decode_text(payload).encode(), JSON + extra)
        return Response(200, msgspec.json.format(payload, indent=-1), JSON + extra)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadResult(f"it is not JSON that can be sent: {error}") from error


def _explicit(found: _Result, version: str, content_type: str, extra: Headers) -> Response:
    plain = type(found.body) is str and found.isBase64Encoded is not True
    body = found.body.encode() if plain else _result_body(found)
    status = found.statusCode
    if type(status) is not int or not 200 <= status <= 599:
        status = _status(status)
    headers: list[tuple[str, str]] = []
    if found.headers is not None:
        for name, value in _items("headers", found.headers):
            headers.append((name, value if type(value) is str and value.isprintable() else _text(name, value)))
    if version == "1.0" and found.multiValueHeaders is not None:
        many = [(name, values) for name, values in _items("multiValueHeaders", found.multiValueHeaders)]
        replaced = {name.lower() for name, _ in many}
        headers = [pair for pair in headers if pair[0].lower() not in replaced]
        for name, values in many:
            if not isinstance(values, list):
                raise BadResult(f"multiValueHeaders.{name} is not a list")
            headers.extend((name, _text(name, value)) for value in values)
    if version == "2.0" and found.cookies is not None:
        if not isinstance(found.cookies, list):
            raise BadResult("cookies is not a list")
        headers.extend(("set-cookie", _text("cookies", cookie)) for cookie in found.cookies)
    if "content-type" not in [name.lower() for name, _ in headers]:
        headers.insert(0, ("content-type", content_type))
    headers.extend(extra)
    return Response(status, body, headers)


def _status(value: Any) -> int:
    """A status of 200 to 599. AWS takes 1xx too, but an HTTP/1.1 client would then wait for ever for the real answer."""
    if type(value) is int:
        if 200 <= value <= 599:
            return value
        value = str(value)
    if not isinstance(value, str) or not _STATUS.fullmatch(value):
        raise BadResult(f"statusCode {value!r} is not a number from 100 to 599")
    if value[0] == "1":
        raise BadResult(f"statusCode {value} is an interim status, which cannot end an answer")
    return int(value)


def _result_body(found: _Result) -> bytes:
    if found.body is None:
        return b""
    if not isinstance(found.body, str):
        raise BadResult("body is not a string")
    if found.isBase64Encoded is not True:
        return found.body.encode()
    try:
        return base64.b64decode(found.body, validate=True)
    except ValueError as error:
        raise BadResult(f"body is not base64: {error}") from error


def _items(what: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise BadResult(f"{what} is not an object")
    for name in value:
        if not header_name_is_valid(name):
            raise BadResult(f"{what} has the name {name!r}, which no header can have")
    return value.items()


def _text(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if not header_value_is_valid(text):
        raise BadResult(f"the value of {name!r} has a control character")
    return text


def to_response(payload: bytes, *, version: str = "2.0", content_type: str = "text/plain; charset=utf-8") -> Response:
    """As `result`, with 502 for a bad one. Never raises."""
    try:
        return result(payload, version=version, content_type=content_type)
    except BadResult:
        return say(502, "Internal Server Error")


def answer(
    outcome: Outcome | None,
    payload: bytes,
    *,
    invocation: str,
    refusal: Refusal | None = None,
    filtered: bool = False,
    version: str = "2.0",
    content_type: str = "text/plain; charset=utf-8",
    bad: Callable[[str], None] | None = None,
) -> Response:
    """The answer to a caller for how a direct call ended. `bad` is told why a result is no answer (its caller sees 502).

    The text of a function's own error is never shown to the HTTP client. Never raises, unless `bad` does.
    """
    extra = (("x-amzn-RequestId", invocation),) if invocation else ()
    if outcome is Outcome.SUCCEEDED:
        try:
            return result(payload, version=version, content_type=content_type, extra=extra)
        except BadResult as error:
            if bad is not None:
                bad(str(error))
    response = _unanswered(outcome, refusal, filtered)
    return Response(response.status, response.body, (*response.headers, *extra))


def _unanswered(outcome: Outcome | None, refusal: Refusal | None, filtered: bool) -> Response:
    if filtered:
        return Response(204)
    match refusal:
        case Refusal.CONCURRENCY | Refusal.RATE:
            return say(429, "Too Many Requests", ("retry-after", "1"))
        case Refusal.PAUSED | Refusal.BUILDING | Refusal.DRAINING | Refusal.GONE:
            return unavailable()
        case _:
            pass
    if outcome is Outcome.TIMED_OUT:
        return say(504, "Endpoint request timed out")
    if outcome is Outcome.INTERRUPTED:
        return unavailable()
    return say(502, "Internal Server Error")


def unavailable(seconds: int = RETRY_AFTER) -> Response:
    """503, try again later."""
    return say(503, "Service Unavailable", ("retry-after", str(seconds)))
