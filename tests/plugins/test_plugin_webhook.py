"""The webhook trigger on a scripted site: who may send, what a handler gets, what a caller hears."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from eventd.sdk import Answer, EventdError, Outcome, Overloaded, Refusal
from eventd.testing.site import FakeSite, Status
from eventd_plugins.webhook import WebhookSettings, plugin, pointed, short

pytestmark = pytest.mark.anyio

SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNED = ("X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")
JSON = ("Content-Type", "application/json")
GITHUB = {"type": "github", "secret": SECRET}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture
async def site() -> FakeSite:
    return FakeSite("hook", now=1_795_169_472.5, account="123456789012")


def settings(**keys: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"path": "/hook", **keys})


def findings(name: str = "hook", *, others: dict[str, WebhookSettings] | None = None, **keys: Any) -> list[tuple[str, str, str]]:
    mine = settings(**keys)
    found = plugin.check(name, mine, {**(others or {}), name: mine})
    return [(one.severity, one.path, f"{one.message} {one.hint}") for one in found]


# --- settings ---


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"path": "hook"}, ("path",)),
        ({"path": "/{a+}/b"}, ("path",)),
        ({"methods": ["get"]}, ("methods", 0)),
        ({"mode": "later"}, ("mode",)),
        ({"id": "X-Id"}, ("id",)),
        ({"id": "body:a"}, ("id",)),
        ({"max_body": "1 parsec"}, ("max_body",)),
        ({"payload": "3.0"}, ("payload",)),
        ({"nonsense": 1}, ("nonsense",)),
        ({"auth": {"type": "stripe", "secret": "x"}}, ("auth", "type")),
        ({"auth": {"type": "github", "sekret": "x"}}, ("auth", "sekret")),
        ({"auth": {"secret": "x"}}, ("auth", "type")),
    ],
)
async def test_a_wrong_key_is_an_error_at_its_place(keys: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(**keys)
    assert [error["loc"] for error in raised.value.errors()] == [where]


async def test_every_key_has_a_sentence_and_the_defaults_are_those_of_the_surface() -> None:
    for model in (WebhookSettings, WebhookSettings.model_json_schema()["$defs"]["Auth"]):
        fields = model["properties"] if isinstance(model, dict) else model.model_json_schema()["properties"]
        assert all(field["description"] for field in fields.values())
    one = settings()
    assert (one.methods, one.mode, one.auth, one.id, one.max_body, one.payload) == ((), "sync", None, None, None, "2.0")
    assert settings(max_body="2MiB").max_body == 2 * 1024**2
    assert settings(auth={"type": "bearer", "secret": ["a", "b"]}).auth.secret == ("a", "b")  # type: ignore[union-attr]
    assert (plugin.kind, plugin.stays_when_paused, plugin.direct(one), plugin.direct(settings(mode="async"))) == (
        "webhook",
        True,
        True,
        False,
    )


async def test_check_finds_what_types_cannot(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text("s")
    good.chmod(0o600)
    known = tmp_path / "known"
    known.write_text("s")
    known.chmod(0o644)
    assert findings() == []
    assert findings(auth={"type": "github", "secret_file": str(good)}) == []
    ((severity, path, text),) = findings(id="header:X")
    assert (severity, path, "synchronous" in text, "async" in text) == ("error", "id", True, True)
    assert findings(id="header:X", mode="async") == []
    for keys, expected in (
        ({"path": "/url/x"}, ("error", "path")),
        ({"path": "/url"}, ("error", "path")),
        ({"methods": ["GET", "GET"]}, ("error", "methods")),
        ({"max_body": 0}, ("error", "max_body")),
        ({"auth": {"type": "github"}}, ("error", "auth")),
        ({"auth": {"type": "github", "secret": "a", "secret_credential": "b"}}, ("error", "auth")),
        ({"auth": {"type": "github", "secret": ["a", ""]}}, ("error", "auth.secret")),
        ({"auth": {"type": "github", "secret_file": str(tmp_path / "absent")}}, ("error", "auth.secret_file")),
        ({"auth": {"type": "github", "secret_file": str(tmp_path)}}, ("error", "auth.secret_file")),
        ({"auth": {"type": "github", "secret_file": [str(good), str(known)]}}, ("warning", "auth.secret_file")),
        ({"auth": {"type": "hmac", "secret": "a"}}, ("error", "auth.header")),
        ({"auth": {"type": "basic", "secret": "a"}}, ("error", "auth.user")),
        ({"auth": {"type": "bearer", "secret": "a", "tolerance": "1m"}}, ("warning", "auth.tolerance")),
        ({"auth": {"type": "github", "secret": "a", "header": "X"}}, ("warning", "auth.header")),
    ):
        assert [found[:2] for found in findings(**keys)] == [expected], keys


async def test_a_path_that_two_triggers_claim_is_told_once() -> None:
    first = settings(path="/a/{x}", methods=["POST", "PUT"])
    ((severity, path, text),) = findings("second", others={"first": first}, path="/a/{y}", methods=["GET", "POST"])
    assert (severity, path, "'first'" in text, "POST on /a/{}" in text) == ("error", "path", True, True)
    for keys in ({"path": "/a/{x}", "methods": ["GET"]}, {"path": "/a/{x}"}, {"path": "/a/b", "methods": ["POST"]}, {"path": "/a/{x+}"}):
        assert findings("second", others={"first": first}, **keys) == []
    later = {"third": settings(path="/a")}
    mine = settings(path="/a")
    assert list(plugin.check("second", mine, {"second": mine, **later})) == []


# --- life ---


async def test_it_serves_while_it_runs(site: FakeSite) -> None:
    async with site.playing(plugin, settings(path="/a/{id}", methods=["POST"], max_body=10)):
        assert site.status == Status("up")
        route = site.routes["/a/{id}"]
        assert (route.methods, route.max_body, route.owner) == (("POST",), 10, "trigger hook")
    assert site.routes == {}


async def test_a_secret_that_cannot_be_read_stops_the_start(site: FakeSite, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for auth in (
        {"type": "github", "secret_file": str(tmp_path / "absent")},
        {"type": "github", "secret_file": str(tmp_path / "empty")},
        {"type": "github", "secret_credential": "absent"},
        {"type": "github"},
        {"type": "bearer", "secret": ""},
    ):
        with pytest.raises(EventdError, match="E-CONFIG"):
            await plugin.run(site, settings(auth=auth))
    assert site.routes == {}
    assert site.status.state == "starting"


# --- sync ---


async def test_sync_calls_the_function_and_answers_what_it_says(site: FakeSite) -> None:
    site.script(Answer("", Outcome.SUCCEEDED, b'{"statusCode": 201, "headers": {"x": "y"}, "body": "made"}'))
    async with site.playing(plugin, settings(path="/a/{id}")):
        response = await site.request("PUT", "/a/7?x=1", b'{"k":1}', [JSON, ("Host", "h"), ("Authorization", "stays")])
    call = site.calls[0]
    assert (response.status, response.body) == (201, b"made")
    headers = dict(response.headers)
    assert headers["x-amzn-RequestId"] == call.invocation == call.call.invocation
    event = json.loads(bytes(call.call.data))
    assert event["routeKey"] == "PUT /a/{id}"
    assert (event["pathParameters"], event["queryStringParameters"], event["body"]) == ({"id": "7"}, {"x": "1"}, '{"k":1}')
    assert event["requestContext"]["requestId"] == call.invocation
    assert (event["requestContext"]["accountId"], event["requestContext"]["timeEpoch"]) == ("123456789012", 1795169472500)
    assert event["headers"]["authorization"] == "stays", "only what eventd verified is removed"
    assert site.emitted == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer("", Outcome.SUCCEEDED, b'{"hello": "world"}'), 200),
        (Answer("", Outcome.SUCCEEDED, b'{"statusCode": "no"}'), 502),
        (Answer("", Outcome.FAILED, b'{"errorMessage":"secret"}'), 502),
        (Answer("", Outcome.CRASHED), 502),
        (Answer("", Outcome.OUT_OF_MEMORY), 502),
        (Answer("", Outcome.TIMED_OUT), 504),
        (Answer("", refusal=Refusal.CONCURRENCY), 429),
        (Answer("", refusal=Refusal.PAUSED), 503),
        (Answer("", refusal=Refusal.DRAINING), 503),
        (Answer("", refusal=Refusal.BUILDING), 503),
        (Answer("", filtered=True), 204),
    ],
)
async def test_what_a_caller_hears(site: FakeSite, answer: Answer, status: int) -> None:
    site.script(answer)
    async with site.playing(plugin, settings()):
        response = await site.request("POST", "/hook")
    assert response.status == status
    headers = dict(response.headers)
    assert headers["x-amzn-RequestId"] == site.calls[0].invocation
    assert ("retry-after" in headers) == (status in (429, 503))
    assert b"secret" not in response.body


async def test_a_bad_result_is_told_in_the_log(site: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    site.default_answer = Answer("", Outcome.SUCCEEDED, b'{"statusCode": 1}')
    async with site.playing(plugin, settings()):
        for _ in range(5):
            assert (await site.request("POST", "/hook")).status == 502
        assert len([line for line in caplog.messages if "statusCode '1'" in line]) == 1, "one line a minute"
        await site.clock.advance(61)
        await site.request("POST", "/hook")
    assert "(5 refused" in caplog.messages[-1]


async def test_a_caller_that_leaves_cancels_its_waiting_call(site: FakeSite) -> None:
    site.default_answer = None
    async with site.playing(plugin, settings()):
        exchange = site.send("POST", "/hook")
        assert not site.calls[0].gone
        exchange.disconnect()
        assert site.calls[0].gone


async def test_payload_1(site: FakeSite) -> None:
    site.default_answer = Answer("", Outcome.SUCCEEDED, b'"no status"')
    async with site.playing(plugin, settings(path="/a/{x}", payload="1.0")):
        assert (await site.request("GET", "/a/b")).status == 502
    event = json.loads(bytes(site.calls[0].call.data))
    assert (event["version"], event["resource"], event["path"], event["httpMethod"]) == ("1.0", "/a/{x}", "/a/b", "GET")


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_paused_is_503_for_who_may_send_and_401_for_others(site: FakeSite, mode: str) -> None:
    site.paused = True
    async with site.playing(plugin, settings(mode=mode, auth=GITHUB)):
        response = await site.request("POST", "/hook", BODY, [SIGNED])
        assert (response.status, "retry-after" in dict(response.headers)) == (503, True)
        assert (await site.request("POST", "/hook", BODY)).status == 401
        site.paused = False
        assert (await site.request("POST", "/hook", BODY, [SIGNED])).status in (200, 202)
    assert len(site.calls) + len(site.emitted) == 1


# --- async ---


async def test_202_comes_after_the_event_is_stored(site: FakeSite) -> None:
    async with site.playing(plugin, settings(mode="async")):
        site.hold()
        exchange = site.send("POST", "/hook", b'{"n":1}', [JSON, ("Idempotency-Key", "k-1")])
        await site.clock.settle()
        assert exchange.response is None
        site.release()
        response = await exchange.wait()
    assert (response.status, response.body) == (202, b'{"event":"k-1"}')
    assert site.emitted[0].id == "k-1"
    assert site.emitted[0].data["body"] == '{"n":1}'
    assert site.calls == []


async def test_a_duplicate_answers_the_same_and_another_body_is_409(site: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    key = ("Idempotency-Key", "k-1")
    async with site.playing(plugin, settings(path="/a/{x}", mode="async")):
        first = await site.request("POST", "/a/b?q", b"one", [key])
        await site.clock.advance(30)
        again = await site.request("POST", "/a/b?q", b"one", [key, ("User-Agent", "another")])
        assert (again.status, again.body) == (first.status, first.body) == (202, b'{"event":"k-1"}')
        assert dict(again.headers)["eventd-duplicate"] == "1"
        assert "eventd-duplicate" not in dict(first.headers)
        for method, target, body in (
            ("POST", "/a/b?q", b"two"),
            ("POST", "/a/c?q", b"one"),
            ("POST", "/a/b?r", b"one"),
            ("PUT", "/a/b?q", b"one"),
        ):
            assert (await site.request(method, target, body, [key])).status == 409
    assert len(site.emitted) == 1
    assert "409" in caplog.text


async def test_without_an_id_each_request_is_an_event(site: FakeSite) -> None:
    async with site.playing(plugin, settings(mode="async")):
        answers = [json.loads((await site.request("POST", "/hook", b"same")).body)["event"] for _ in range(3)]
    assert len(set(answers)) == len(site.emitted) == 3


async def test_pushing_back(site: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    async with site.playing(plugin, settings(mode="async")):
        for error, status in (
            (Overloaded("full"), 503),
            (EventdError("E-DRAINING", "stopping"), 503),
            (EventdError("E-INTERNAL", "oh"), 500),
        ):
            site.fail_next(error)
            response = await site.request("POST", "/hook")
            assert (response.status, "retry-after" in dict(response.headers)) == (status, status == 503)
    assert site.emitted == []


@pytest.mark.parametrize(
    ("where", "body", "headers", "id"),
    [
        ("header:X-Id", b"", [("x-id", "a")], "a"),
        ("body:/data/id", b'{"data":{"id":"b"}}', [], "b"),
        ("body:/a~1b/0/~0", b'{"a/b":[{"~":7}]}', [], "7"),
        ("body:", b'"whole"', [], "whole"),
        ("header:X-Id", b"", [("x-id", "x" * 257)], hashlib.sha256(b"x" * 257).hexdigest()),
        ("header:X-Id", b"", [("x-id", "x" * 256)], "x" * 256),
        ("header:X-Id", b"", [], None),
        ("header:X-Id", b"", [("x-id", "")], None),
        ("header:X-Id", b"", [("x-id", "a"), ("X-ID", "a")], None),
        ("body:/id", b"nonsense", [], None),
        ("body:/id", b'{"id":null}', [], None),
        ("body:/id", b'{"id":true}', [], None),
        ("body:/id", b'{"id":1.5}', [], None),
        ("body:/id", b'{"id":""}', [], None),
        ("body:/id", b"[1]", [], None),
        ("body:/9", b"[1]", [], None),
        ("body:/id", b"\xff", [], None),
        ("body:/a", b"[" * 100_000, [], None),
    ],
)
async def test_where_the_id_is(site: FakeSite, where: str, body: bytes, headers: list[tuple[str, str]], id: str | None) -> None:
    async with site.playing(plugin, settings(mode="async", id=where)):
        response = await site.request("POST", "/hook", body, headers)
    assert response.status == (202 if id else 400)
    assert [one.id for one in site.emitted] == ([id] if id else [])


async def test_ids_by_default(site: FakeSite) -> None:
    async with site.playing(plugin, settings(mode="async", auth=GITHUB)):
        for headers, id in (
            ([("X-GitHub-Delivery", "d"), ("Idempotency-Key", "k")], "d"),
            ([("Idempotency-Key", "k2")], "k2"),
        ):
            response = await site.request("POST", "/hook", BODY, [SIGNED, *headers])
            assert json.loads(response.body)["event"] == id
        twice = await site.request("POST", "/hook", BODY, [SIGNED, ("X-GitHub-Delivery", "d"), ("X-GitHub-Delivery", "e")])
        assert twice.status == 400
        assert (await site.request("POST", "/hook", BODY, [("X-GitHub-Delivery", "d")] * 2)).status == 401, (
            "who may not send learns nothing"
        )


def test_pointers_and_long_ids() -> None:
    document = {"a": [1, {"b": 2}], "": 3}
    assert (pointed(document, ""), pointed(document, "/a/1/b"), pointed(document, "/")) == (document, 2, 3)
    assert pointed(document, "/a/01") is pointed(document, "/x") is pointed(document, "/a/-1")
    assert short("é" * 128) == "é" * 128
    assert len(short("é" * 129)) == 64


# --- who may send ---


def sign(secret: str, body: bytes, algorithm: str = "sha256") -> bytes:
    return hmac.digest(secret.encode(), body, algorithm)


async def status_of(site: FakeSite, *headers: tuple[str, str], body: bytes = BODY) -> int:
    return (await site.request("POST", "/hook", body, headers)).status


async def test_github_vector_and_everything_near_it(site: FakeSite) -> None:
    name, value = SIGNED
    async with site.playing(plugin, settings(auth=GITHUB)):
        assert await status_of(site, SIGNED) == 200
        assert await status_of(site, (name, "sha256=" + value[7:].upper())) == 200
        event = json.loads(bytes(site.calls[0].call.data))
        assert name.lower() not in event["headers"]
        wrong: list[tuple[tuple[tuple[str, str], ...], bytes]] = [
            ((SIGNED,), body) for body in (BODY + b" ", BODY[:-1], b"", b"hello, World!")
        ]
        wrong += [((), BODY), ((SIGNED, SIGNED), BODY), ((("X-Hub-Signature", value),), BODY)]
        near = [
            value[:-1],
            value + "0",
            value[7:],
            "sha1=" + value[7:],
            value + " ",
            value + ",",
            "sha256=",
            "",
            "sha256=" + "g" * 64,
            "SHA256=" + value[7:],
        ]
        near += [value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :] for place in range(7, len(value))]
        near += ["sha256=" + sign("another", BODY).hex(), "sha256=" + hashlib.sha256(BODY).hexdigest(), "sha256=" + " ".join(value[7:])]
        near += ["sha256=é" + value[8:], "sha256=" + base64.b64encode(bytes.fromhex(value[7:])).decode()]
        wrong += [(((name, text),), BODY) for text in near]
        answers = set()
        for headers, body in wrong:
            response = await site.request("POST", "/hook", body, headers)
            answers.add((response.status, response.body, tuple(response.headers)))
        assert answers == {(401, b'{"message":"Unauthorized"}', (("content-type", "application/json"),))}
    assert len(site.calls) == 2


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
async def test_hmac(site: FakeSite, algorithm: str, encoding: str) -> None:
    auth = {"type": "hmac", "secret": ["old", "new"], "header": "X-Sig", "prefix": "v=", "algorithm": algorithm, "encoding": encoding}

    def written(secret: str) -> str:
        digest = sign(secret, BODY, algorithm)
        return "v=" + (digest.hex() if encoding == "hex" else base64.b64encode(digest).decode())

    async with site.playing(plugin, settings(auth=auth)):
        for secret, status in (("old", 200), ("new", 200), ("other", 401), ("", 401)):
            assert await status_of(site, ("X-Sig", written(secret))) == status
        assert await status_of(site, ("X-Sig", written("old")[2:])) == 401
        assert await status_of(site, ("X-Sig", "v=")) == 401
        assert await status_of(site, ("X-Sig", written("old") + "=")) == 401
    assert "x-sig" not in json.loads(bytes(site.calls[0].call.data))["headers"]


async def test_bearer(site: FakeSite) -> None:
    async with site.playing(plugin, settings(auth={"type": "bearer", "secret": ["tøken", "two"]})):
        for value, status in (
            ("Bearer two", 200), ("bearer two", 200), ("Bearer " + "tøken".encode().decode("latin-1"), 200), ("two", 401), ("Bearer", 401),
            ("Bearer two2", 401), ("Bearer tw", 401), ("Basic two", 401), ("Bearer two, Bearer two", 401), ("", 401),
        ):  # fmt: skip
            assert (value, await status_of(site, ("Authorization", value))) == (value, status)
        response = await site.request("POST", "/hook")
        assert dict(response.headers)["www-authenticate"] == "Bearer"
    assert "authorization" not in json.loads(bytes(site.calls[0].call.data))["headers"]


async def test_basic(site: FakeSite) -> None:
    def written(text: str) -> tuple[str, str]:
        return "Authorization", "Basic " + base64.b64encode(text.encode()).decode()

    async with site.playing(plugin, settings(auth={"type": "basic", "user": "ann", "secret": "p:w"})):
        for text, status in (("ann:p:w", 200), ("ann:p", 401), ("bob:p:w", 401), ("ann", 401), (":p:w", 401), ("", 401)):
            assert (text, await status_of(site, written(text))) == (text, status)
        assert await status_of(site, ("Authorization", "Basic *")) == 401
        assert await status_of(site, written("ann:p:w"), written("ann:p:w")) == 401
        assert dict((await site.request("POST", "/hook")).headers)["www-authenticate"].startswith("Basic")


async def test_a_secret_file_is_read_again_when_it_changes(site: FakeSite, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("one\n")

    async def accepted(token: str) -> bool:
        return await status_of(site, ("Authorization", f"Bearer {token}")) == 200

    async with site.playing(plugin, settings(auth={"type": "bearer", "secret_file": str(path)})):
        assert await accepted("one")
        path.write_text("two\n")
        os.utime(path, ns=(1, 1))
        assert await accepted("one"), "not looked at twice in one second"
        await site.clock.advance(1)
        assert await accepted("two")
        assert not await accepted("one")
        for spoil in (lambda: path.write_text(""), path.unlink):
            spoil()
            await site.clock.advance(1)
            assert await accepted("two"), "the last good secret stays in force"
            assert not await accepted("")
        assert {code for code, _ in site.warnings} == {"W-CONFIG"}
        path.write_text("three")
        await site.clock.advance(1)
        assert await accepted("three")


async def test_who_knocks_cannot_fill_the_log(site: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    async with site.playing(plugin, settings(auth=GITHUB)):
        for _ in range(100):
            assert await status_of(site, ("X-Hub-Signature-256", "canary")) == 401
    assert len(caplog.messages) == 1
    assert SECRET not in caplog.text
    assert "canary" not in caplog.text
    assert SECRET not in repr(settings(auth=GITHUB))


async def test_an_event_of_raw_json_is_what_the_journal_stores(site: FakeSite) -> None:
    async with site.playing(plugin, settings(mode="async", auth=GITHUB)):
        await site.request("POST", "/hook", BODY, [SIGNED, ("X-GitHub-Event", "push"), ("X-Hub-Signature", "sha1=0")])
    event = site.emitted[0]
    assert isinstance(event.event.data, msgspec.Raw)
    assert event.data["headers"].keys() == {"x-github-event", "x-forwarded-for", "x-forwarded-port", "x-forwarded-proto"}
