"""Payloads and answers have Lambda's shapes, to the key."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from eventd.http import Request, Response, gateway, urls
from eventd.model import Outcome, Refusal

NOW = 1_795_169_472.3456


def request(method: str = "POST", target: str = "/my/path", body: bytes = b"", *headers: tuple[str, str]) -> Request:
    made = Request(lambda response: None)
    made.method = method
    made.path, _, made.query = target.partition("?")
    made.body = body
    made.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    made.headers = [(name.lower(), value) for name, value in headers]
    made.peer, made.port = "203.0.113.5", 8080
    return made


def v2(made: Request, **more: Any) -> dict[str, Any]:
    return json.loads(gateway.event_v2(made, **({"request_id": "id-1", "route_key": "POST /my/path", "now": NOW} | more)))


def v1(made: Request, **more: Any) -> dict[str, Any]:
    return json.loads(gateway.event_v1(made, **({"request_id": "id-1", "resource": "/my/{x}", "now": NOW} | more)))


def test_payload_2_whole() -> None:
    made = request(
        "POST",
        "/my/path?a=1&a=2&b=3&c=%2Fbar&d",
        b'{"k": "\xc3\xa9"}',
        ("Host", "hooks.example.com:8080"),
        ("Header1", "value1"),
        ("header2", "v1"),
        ("HEADER2", "v2"),
        ("Cookie", "c1=x; c2=y"),
        ("User-Agent", "curl/8"),
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", "12"),
        ("Connection", "keep-alive"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Authorization", "Bearer hidden"),
    )
    made.params = {"id": "7"}
    assert v2(made, account="123456789012", api="orders", drop=gateway.dropping(["Authorization"])) == {
        "version": "2.0",
        "routeKey": "POST /my/path",
        "rawPath": "/my/path",
        "rawQueryString": "a=1&a=2&b=3&c=%2Fbar&d",
        "cookies": ["c1=x", "c2=y"],
        "headers": {
            "host": "hooks.example.com:8080",
            "header1": "value1",
            "header2": "v1,v2",
            "user-agent": "curl/8",
            "content-type": "application/json; charset=utf-8",
            "content-length": "12",
            "x-forwarded-for": "203.0.113.5",
            "x-forwarded-port": "8080",
            "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"a": "1,2", "b": "3", "c": "/bar", "d": ""},
        "pathParameters": {"id": "7"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "orders",
            "domainName": "hooks.example.com:8080",
            "domainPrefix": "hooks",
            "http": {
                "method": "POST",
                "path": "/my/path",
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.5",
                "userAgent": "curl/8",
            },
            "requestId": "id-1",
            "routeKey": "POST /my/path",
            "stage": "$default",
            "time": "20/Nov/2026:10:11:12 +0000",
            "timeEpoch": 1795169472345,
        },
        "body": '{"k": "é"}',
        "isBase64Encoded": False,
    }


def test_payload_2_leaves_out_what_is_empty() -> None:
    event = v2(request("GET", "/"))
    assert not event.keys() & {"cookies", "queryStringParameters", "pathParameters", "body", "stageVariables"}
    assert (event["rawQueryString"], event["isBase64Encoded"]) == ("", False)


def test_a_path_is_passed_on_as_it_came_and_loses_only_the_prefix() -> None:
    assert v2(request("GET", "/pa2%Fth/1"))["rawPath"] == "/pa2%Fth/1"
    for path, left in (("/url/f", "/"), ("/url/f/", "/"), ("/url/f/a/b", "/a/b")):
        event = v2(request("GET", path), prefix="/url/f")
        assert (event["rawPath"], event["requestContext"]["http"]["path"]) == (left, left)


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", b"hi", True),
        ("TEXT/HTML; charset=x", b"hi", True),
        ("application/json", b"{}", True),
        ("application/vnd.github+json", b"{}", True),
        ("application/atom+xml", b"<a/>", True),
        ("application/xml", b"<a/>", True),
        ("application/javascript", b"1", True),
        ("application/json", b"\xff\xfe", False),
        ("application/x-www-form-urlencoded", b"a=1", False),
        ("multipart/form-data; boundary=x", b"--x", False),
        ("image/png", b"\x89PNG", False),
        ("", b"hi", False),
    ],
)
def test_a_body_is_text_or_base64_by_its_type(kind: str, body: bytes, text: bool) -> None:
    headers = [("Content-Type", kind)] if kind else []
    for event in (v2(request("POST", "/", body, *headers)), v1(request("POST", "/", body, *headers))):
        assert event["isBase64Encoded"] is not text
        assert event["body"] == (body.decode() if text else base64.b64encode(body).decode())


def test_payload_1_whole() -> None:
    made = request(
        "POST",
        "/my/path?a=1&a=2",
        b"hi",
        ("Host", "h.example.com"),
        ("X-Many", "1"),
        ("X-Many", "2"),
        ("User-Agent", "curl/8"),
        ("Content-Type", "text/plain"),
        ("Cookie", "c1=x"),
    )
    made.params = {"x": "path"}
    event = v1(made, account="123456789012", api="orders")
    context = event.pop("requestContext")
    assert event == {
        "version": "1.0",
        "resource": "/my/{x}",
        "path": "/my/path",
        "httpMethod": "POST",
        "headers": {
            "Host": "h.example.com",
            "X-Many": "2",
            "User-Agent": "curl/8",
            "Content-Type": "text/plain",
            "Cookie": "c1=x",
            "X-Forwarded-For": "203.0.113.5",
            "X-Forwarded-Port": "8080",
            "X-Forwarded-Proto": "http",
        },
        "multiValueHeaders": {
            "Host": ["h.example.com"],
            "X-Many": ["1", "2"],
            "User-Agent": ["curl/8"],
            "Content-Type": ["text/plain"],
            "Cookie": ["c1=x"],
            "X-Forwarded-For": ["203.0.113.5"],
            "X-Forwarded-Port": ["8080"],
            "X-Forwarded-Proto": ["http"],
        },
        "queryStringParameters": {"a": "2"},
        "multiValueQueryStringParameters": {"a": ["1", "2"]},
        "pathParameters": {"x": "path"},
        "stageVariables": None,
        "body": "hi",
        "isBase64Encoded": False,
    }
    identity = context.pop("identity")
    assert (identity.pop("sourceIp"), identity.pop("userAgent"), set(identity.values())) == ("203.0.113.5", "curl/8", {None})
    assert context == {
        "accountId": "123456789012",
        "apiId": "orders",
        "domainName": "h.example.com",
        "domainPrefix": "h",
        "extendedRequestId": "id-1",
        "httpMethod": "POST",
        "path": "/my/path",
        "protocol": "HTTP/1.1",
        "requestId": "id-1",
        "requestTime": "20/Nov/2026:10:11:12 +0000",
        "requestTimeEpoch": 1795169472345,
        "resourceId": "/my/{x}",
        "resourcePath": "/my/{x}",
        "stage": "$default",
    }


def test_payload_1_has_null_for_what_is_absent_and_drops_verified_headers() -> None:
    event = v1(request("GET", "/", b"", ("X-Hub-Signature-256", "s"), ("TE", "x")), drop=gateway.dropping(["x-hub-signature-256"]))
    for key in ("queryStringParameters", "multiValueQueryStringParameters", "pathParameters", "stageVariables", "body"):
        assert event[key] is None
    assert set(event["headers"]) == {"X-Forwarded-For", "X-Forwarded-Port", "X-Forwarded-Proto"}


def test_query_strings() -> None:
    assert gateway.parse_query("a=1&&b&c=&=d&e=x+y%2B&f=%zz") == [("a", "1"), ("b", ""), ("c", ""), ("", "d"), ("e", "x y+"), ("f", "%zz")]


# --- results ---


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (b'{"hello": "world"}', b'{"hello":"world"}'),
        (b'["hello", 3, true]', b'["hello",3,true]'),
        (b'"hello"', b"hello"),
        (b'  "\\u00e9\\n"', "é\n".encode()),
        (b"3", b"3"),
        (b"1.50", b"1.50"),
        (b"true", b"true"),
        (b"null", b"null"),
        (b'{"body": "x"}', b'{"body":"x"}'),
        (b'{"n": 12345678901234567890123}', b'{"n":12345678901234567890123}'),
    ],
)
def test_a_result_without_status_code_is_the_body_of_a_200(payload: bytes, body: bytes) -> None:
    response = gateway.to_response(payload)
    assert (response.status, response.body, list(response.headers)) == (200, body, [("content-type", "application/json")])


def test_an_explicit_answer() -> None:
    result = {
        "statusCode": 201,
        "headers": {"Content-Type": "text/html", "x-number": 3, "x-true": True, "x-null": None, "x-list": [1]},
        "cookies": ["a=1; Secure", "b=2"],
        "body": "é",
        "isBase64Encoded": False,
        "other": "ignored",
    }
    response = gateway.to_response(json.dumps(result).encode())
    assert (response.status, response.body) == (201, "é".encode())
    assert list(response.headers) == [
        ("Content-Type", "text/html"),
        ("x-number", "3"),
        ("x-true", "true"),
        ("x-null", "null"),
        ("x-list", "[1]"),
        ("set-cookie", "a=1; Secure"),
        ("set-cookie", "b=2"),
    ]


def test_base64_defaults_and_texts_as_status() -> None:
    assert gateway.to_response(b'{"statusCode": 200, "body": "/w==", "isBase64Encoded": true}').body == b"\xff"
    assert gateway.to_response(b'{"statusCode": "404"}') == Response(404, b"", [("content-type", "text/plain; charset=utf-8")])
    assert gateway.to_response(b'{"statusCode": 200}', content_type="application/json").headers == [("content-type", "application/json")]
    assert gateway.to_response(b'{"statusCode": 200, "body": null}').body == b""


@pytest.mark.parametrize(
    "payload",
    [
        b'{"statusCode": 99}', b'{"statusCode": 600}', b'{"statusCode": 101}', b'{"statusCode": "20"}', b'{"statusCode": 200.5}',
        b'{"statusCode": null}', b'{"statusCode": true}', b'{"statusCode": -200}', b'{"statusCode": 99999999999999999999}',
        b'{"statusCode": 200, "body": {"a": 1}}', b'{"statusCode": 200, "body": 3}', b'{"statusCode": 200, "headers": []}',
        b'{"statusCode": 200, "headers": {"a b": "c"}}', b'{"statusCode": 200, "headers": {"": "c"}}',
        b'{"statusCode": 200, "headers": {"a": "b\\r\\nset-cookie: evil=1"}}', b'{"statusCode": 200, "cookies": "a=1"}',
        b'{"statusCode": 200, "cookies": ["a\\nb"]}', b'{"statusCode": 200, "body": "*", "isBase64Encoded": true}',
        b'{"statusCode": 200, "body": "\\ud800"}', b"", b"nonsense", b"{", b'"\\ud800"', b"\xff", b'{"a": 1} trailing',
    ],
)  # fmt: skip
def test_a_bad_result_is_502_and_says_why_to_us_only(payload: bytes) -> None:
    assert gateway.to_response(payload).body == b'{"message":"Internal Server Error"}'
    why: list[str] = []
    response = gateway.answer(Outcome.SUCCEEDED, payload, invocation="i", bad=why.append)
    assert (response.status, len(why)) == (502, 1)
    assert ("x-amzn-RequestId", "i") in response.headers
    assert b"statusCode" not in response.body


def test_version_1_needs_a_status_code_and_knows_many_values() -> None:
    for payload in (b'{"hello": 1}', b'"x"', b"null"):
        assert gateway.to_response(payload, version="1.0").status == 502
    result = {"statusCode": 200, "headers": {"a": "1", "b": "2"}, "multiValueHeaders": {"A": ["3", 4]}, "cookies": ["no"], "body": "x"}
    response = gateway.to_response(json.dumps(result).encode(), version="1.0", content_type="application/json")
    assert list(response.headers) == [("content-type", "application/json"), ("b", "2"), ("A", "3"), ("A", "4")]
    assert gateway.to_response(b'{"statusCode":200,"multiValueHeaders":{"a":"b"}}', version="1.0").status == 502


@pytest.mark.parametrize(
    ("outcome", "refusal", "filtered", "status", "retry"),
    [
        (Outcome.FAILED, None, False, 502, False),
        (Outcome.CRASHED, None, False, 502, False),
        (Outcome.OUT_OF_MEMORY, None, False, 502, False),
        (Outcome.LOST, None, False, 502, False),
        (Outcome.CANCELLED, None, False, 502, False),
        (Outcome.TIMED_OUT, None, False, 504, False),
        (Outcome.INTERRUPTED, None, False, 503, True),
        (None, Refusal.CONCURRENCY, False, 429, True),
        (None, Refusal.RATE, False, 429, True),
        (None, Refusal.PAUSED, False, 503, True),
        (None, Refusal.BUILDING, False, 503, True),
        (None, Refusal.DRAINING, False, 503, True),
        (None, Refusal.GONE, False, 503, True),
        (None, Refusal.UNKNOWN, False, 502, False),
        (None, None, True, 204, False),
    ],
)
def test_how_a_call_ended_is_its_status(outcome: Outcome | None, refusal: Refusal | None, filtered: bool, status: int, retry: bool) -> None:
    payload = b'{"errorMessage":"secret","errorType":"X"}'
    response = gateway.answer(outcome, payload, invocation="i-1", refusal=refusal, filtered=filtered)
    assert response.status == status
    assert b"secret" not in response.body
    assert (dict(response.headers).get("retry-after") is not None) == retry
    assert dict(response.headers)["x-amzn-RequestId"] == "i-1"
    if status == 502:
        assert response.body == b'{"message":"Internal Server Error"}'


# --- function URLs ---


def test_a_function_url_calls_its_function_and_answers() -> None:
    calls: list[tuple[bytes, str, Any]] = []
    gone: list[str] = []

    class Ended:
        invocation, outcome, payload, refusal = "", Outcome.SUCCEEDED, b'{"statusCode": 200, "body": "{}"}', None

    def submit(event: bytes, invocation: str, done: Any) -> Any:
        calls.append((event, invocation, done))
        return lambda: gone.append(invocation)

    routes = urls.routes("f", submit, new_id=lambda: "id-9", now=lambda: NOW)
    assert [route.path for route in routes] == ["/url/f", "/url/f/", "/url/f/{proxy+}"]
    answers: list[Response] = []
    made = Request(answers.append)
    made.method, made.path, made.params = "GET", "/url/f/a", {"proxy": "a"}
    routes[2].handle(made)
    event = json.loads(calls[0][0])
    assert (event["rawPath"], event["routeKey"], event["requestContext"]["requestId"]) == ("/a", "$default", "id-9")
    assert "pathParameters" not in event
    calls[0][2](Ended())
    assert answers == [Response(200, b"{}", [("content-type", "application/json"), ("x-amzn-RequestId", "id-9")])]
    assert made.on_gone is not None
    made.on_gone()
    assert gone == ["id-9"]
