"""The server's bounds and guards, spoken to with plain HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from eventd.control import api, server
from eventd.control.server import Bound, serve_control
from eventd.errors import EventdError
from eventd.model import ControlSettings
from eventd.ports import Json, Query
from eventd.testing.control import FakeControl

LOG = logging.getLogger("test.control")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


@pytest.fixture
def fake() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def bound(fake: FakeControl, tmp_path: Any) -> AsyncIterator[Bound]:
    async with serve_control(fake, ControlSettings(socket=str(tmp_path / "c.sock"), listen=("127.0.0.1:0",)), log=LOG) as bound:
        yield bound


@pytest.fixture
async def unix(bound: Bound) -> AsyncIterator[httpx.AsyncClient]:
    path = bound.addresses[0].removeprefix("unix:")
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), base_url="http://eventd") as http:
        yield http


@pytest.fixture
async def tcp(bound: Bound) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{bound.addresses[1]}", trust_env=False) as http:
        yield http


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    return response.status_code, error["code"], error["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target, names",
    [
        ("/v1/runs?limt=3", "limt"),
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=10001", "limit"),
        ("/v1/runs?limit=5&limit=6", "limit"),
        ("/v1/runs?since=yesterday", "yesterday"),
        ("/v1/runs?since=2026-13-01T00:00:00Z", "2026-13-01"),
        ("/v1/runs?since=1m&until=1h", "since"),
        ("/v1/runs?outcome=great", "great"),
        ("/v1/runs?attempt=-1", "attempt"),
        ("/v1/runs?cursor=" + "x" * 600, "cursor"),
        ("/v1/runs?function=a%00b", "function"),
        ("/v1/events?state=gone", "gone"),
        ("/v1/events?payload=maybe", "maybe"),
        ("/v1/events/ev-1?limit=3", "limit"),
        ("/v1/dead?reason=bad_luck", "bad_luck"),
        ("/v1/logs?n=many", "many"),
        ("/v1/status?verbose=1", "verbose"),
    ],
)
async def test_bad_parameters_are_refused_by_name(unix: httpx.AsyncClient, fake: FakeControl, target: str, names: str) -> None:
    status, code, message = error_of(await unix.get(target))
    assert (status, code) == (400, "E-USAGE")
    assert names in message
    assert fake.calls == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/invoke", {"payload": {}}),
        ("/v1/invoke", {"function": "hello", "wait": "1s"}),
        ("/v1/invoke", {"function": 7}),
        ("/v1/redrive", {}),
        ("/v1/redrive", {"all": True, "function": "hello"}),
        ("/v1/discard", {"invocations": ["a"], "all": True}),
        ("/v1/discard", {"invocations": "a"}),
        ("/v1/redrive", {"reason": "bad_luck"}),
        ("/v1/cancel", {"invocations": []}),
        ("/v1/pause", {"target": "hello"}),
        ("/v1/pause", {"target": "worker:hello"}),
        ("/v1/reload", {"force": True}),
        ("/v1/drain", {"timeout_ms": -1}),
        ("/v1/drain", ["queue"]),
    ],
)
async def test_bad_bodies_are_refused(unix: httpx.AsyncClient, fake: FakeControl, path: str, body: Any) -> None:
    assert error_of(await unix.post(path, json=body))[:2] == (400, "E-USAGE")
    assert fake.calls == []


@pytest.mark.anyio
async def test_a_body_that_is_no_json_is_refused(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    for content in (b"{", b"\xff", b"[" * 100_000):
        assert error_of(await unix.post("/v1/reload", content=content))[:2] == (400, "E-USAGE")
    odd = await unix.post("/v1/invoke", content=b'{"function":"hello","payload":"\xff"}')
    assert error_of(odd)[:2] == (400, "E-USAGE")
    form = await unix.post("/v1/reload", data={"a": "b"})
    assert error_of(form)[:2] == (400, "E-USAGE")
    assert fake.calls == []


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_and_the_server_goes_on(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    huge = msgspec.json.encode({"invocations": ["x" * (api.BODY_MAX + 1)]})
    assert error_of(await unix.post("/v1/cancel", content=huge))[:2] == (400, "E-USAGE")
    assert fake.calls == []
    assert (await unix.get("/v1/status")).status_code == 200


@pytest.mark.anyio
async def test_lambda_sized_payloads_are_taken(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    payload = b'"' + b"x" * (6_291_456 - 2) + b'"'
    response = await unix.post("/v1/invoke", content=b'{"function":"hello","payload":' + payload + b"}", timeout=30)
    assert response.status_code == 200
    assert fake.calls[0][2] == payload


@pytest.mark.anyio
async def test_wrong_paths_and_methods(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    assert error_of(await unix.get("/v2/status"))[:2] == (404, "E-NOTFOUND")
    assert error_of(await unix.post("/v1/status"))[:2] == (405, "E-USAGE")
    assert error_of(await unix.get("/v1/reload"))[:2] == (405, "E-USAGE")
    assert fake.calls == []


@pytest.mark.anyio
async def test_one_event_by_path(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    assert (await unix.get("/v1/events/ev-1?payload=1")).json()["event"] == "ev-1"
    assert fake.calls == [("events", Query(limit=1, ids=("ev-1",), payload=True))]
    fake.event_rows = []
    assert error_of(await unix.get("/v1/events/ev-1"))[:2] == (404, "E-NOTFOUND")


@pytest.mark.anyio
async def test_times_may_be_durations_or_rfc3339(unix: httpx.AsyncClient, fake: FakeControl) -> None:
    before = time.time_ns() // 1_000_000
    await unix.get("/v1/runs?since=1h")
    await unix.get("/v1/runs?since=2026-11-20T10:11:12.345%2B02:00")
    await unix.get("/v1/runs?since=2026-11-20T10:11:12.345+02:00")
    await unix.get("/v1/stats")
    after = time.time_ns() // 1_000_000
    asked = [call[1] for call in fake.calls]
    assert before - 3_600_000 <= asked[0].since <= after - 3_600_000
    assert asked[1].since == asked[2].since == 1_795_162_272_345
    assert before - 86_400_000 <= asked[3].since <= after - 86_400_000


@pytest.mark.anyio
async def test_a_mistake_of_ours_is_an_answer_and_a_traceback_in_the_log(
    unix: httpx.AsyncClient, fake: FakeControl, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> Json:
        raise RuntimeError("the secret detail")

    monkeypatch.setattr(fake, "status", broken)
    response = await unix.get("/v1/status")
    assert error_of(response)[:2] == (500, "E-INTERNAL")
    assert "secret detail" not in response.text
    assert "the secret detail" in caplog.text


@pytest.mark.anyio
async def test_changes_are_logged_with_who_asked(unix: httpx.AsyncClient, fake: FakeControl, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOG.name)
    await unix.post("/v1/pause", json={"target": "function:hello"})
    await unix.get("/v1/status")
    await unix.post("/v1/redrive", json={"all": True, "dry_run": True})
    fake.refuse = EventdError("E-NOTFOUND", "no such trigger")
    await unix.post("/v1/resume", json={"target": "trigger:x"})
    who = f"uid {os.getuid()} (pid {os.getpid()})"
    assert [record.getMessage() for record in caplog.records if record.name == LOG.name] == [
        f"pause function:hello, asked by {who}",
        f"resume trigger:x, asked by {who}",
        f"resume trigger:x, asked by {who}: refused, E-NOTFOUND no such trigger",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"host": "localhost.evil.example:80"},
        {"host": "192.168.1.7"},
        {"host": ""},
    ],
)
async def test_browsers_and_foreign_hosts_are_refused(tcp: httpx.AsyncClient, fake: FakeControl, headers: dict[str, str]) -> None:
    for response in (
        await tcp.get("/v1/status", headers=headers),
        await tcp.post("/v1/invoke", headers=headers, json={"function": "hello"}),
    ):
        assert error_of(response)[:2] == (403, "E-FORBIDDEN")
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert fake.calls == []


@pytest.mark.anyio
async def test_an_origin_is_refused_on_the_unix_socket_too(unix: httpx.AsyncClient) -> None:
    assert error_of(await unix.get("/v1/status", headers={"origin": "http://x"}))[:2] == (403, "E-FORBIDDEN")


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.8.8.8:1", "[::1]", "[::1]:9"])
async def test_hosts_that_mean_this_machine_are_served(tcp: httpx.AsyncClient, host: str) -> None:
    assert (await tcp.get("/v1/status", headers={"host": host})).status_code == 200


@pytest.mark.anyio
async def test_tcp_forbids_every_post_but_invoke(tcp: httpx.AsyncClient, fake: FakeControl) -> None:
    for verb in ("redrive", "discard", "cancel", "pause", "resume", "reload", "drain"):
        assert error_of(await tcp.post(f"/v1/{verb}", json={}))[:2] == (403, "E-FORBIDDEN")
    assert fake.calls == []
    assert (await tcp.post("/v1/invoke", json={"function": "hello", "async": True})).status_code == 202


@pytest.mark.anyio
async def test_health_readiness_and_metrics_routes(tcp: httpx.AsyncClient, fake: FakeControl) -> None:
    assert (await tcp.get("/healthz")).text == "ok\n"
    assert (await tcp.get("/readyz")).status_code == 200
    fake.ready = (False, "starting")
    refused = await tcp.get("/readyz")
    assert (refused.status_code, refused.text) == (503, "starting\n")
    metrics = await tcp.get("/metrics")
    assert metrics.headers["content-type"] == api.METRICS_TYPE


async def _closed(stream: anyio.abc.SocketStream, within: float) -> bool:
    with anyio.move_on_after(within):
        try:
            while await stream.receive():
                pass
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True
    return False


@pytest.mark.anyio
async def test_a_head_that_never_ends_is_cut_off_by_time(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    path = bound.addresses[0].removeprefix("unix:")
    async with await anyio.connect_unix(path) as silent, await anyio.connect_unix(path) as slow:
        await slow.send(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n")
        assert await _closed(silent, 5)
        assert await _closed(slow, 5)
    async with await anyio.connect_unix(path) as second:
        await second.send(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in await second.receive()
        await second.send(b"GET /v1/st")
        assert await _closed(second, 5), "the second request of a connection has a deadline too"


@pytest.mark.anyio
async def test_a_head_that_never_ends_is_cut_off_by_size(bound: Bound, unix: httpx.AsyncClient) -> None:
    async with await anyio.connect_unix(bound.addresses[0].removeprefix("unix:")) as stream:
        await stream.send(b"GET /v1/status HTTP/1.1\r\n")
        with contextlib.suppress(anyio.BrokenResourceError):
            for number in range(100):
                await stream.send(b"x-%d: " % number + b"y" * 1000 + b"\r\n")
        assert await _closed(stream, 5)
    assert (await unix.get("/v1/status")).status_code == 200


@pytest.mark.anyio
async def test_a_body_that_never_ends_is_cut_off(bound: Bound, monkeypatch: pytest.MonkeyPatch, fake: FakeControl) -> None:
    monkeypatch.setattr(api, "BODY_SECONDS", 0.05)
    async with await anyio.connect_unix(bound.addresses[0].removeprefix("unix:")) as stream:
        await stream.send(b"POST /v1/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        assert b"E-USAGE" in await stream.receive()
    assert fake.calls == []


@pytest.mark.anyio
async def test_no_more_connections_than_the_limit(bound: Bound, unix: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await unix.get("/v1/status")).status_code == 200
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    async with await anyio.connect_unix(bound.addresses[0].removeprefix("unix:")) as stream:
        assert await _closed(stream, 5)
    assert (await unix.get("/v1/status")).status_code == 200


@pytest.mark.anyio
async def test_leaving_waits_for_open_requests_only_for_the_grace(
    fake: FakeControl, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "c.sock")
    began, ended = anyio.Event(), anyio.Event()

    async def hang() -> Json:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return {}

    monkeypatch.setattr(fake, "status", hang)
    async with anyio.create_task_group() as group, httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as http:

        async def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                await http.get("http://x/v1/status", timeout=30)

        async with serve_control(fake, ControlSettings(socket=path), log=LOG, grace_s=0):
            group.start_soon(ask)
            await began.wait()
            left = time.monotonic()
        assert time.monotonic() - left < 1.0
        assert ended.is_set(), "nothing of the server runs after the block"
    assert not await anyio.Path(path).exists()


@pytest.mark.anyio
async def test_leaving_lets_a_request_end_within_the_grace(fake: FakeControl, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "c.sock")
    began, let = anyio.Event(), anyio.Event()

    async def slow() -> Json:
        began.set()
        await let.wait()
        return {"state": "done"}

    monkeypatch.setattr(fake, "status", slow)
    answers: list[Json] = []
    async with anyio.create_task_group() as group, httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as http:

        async def ask() -> None:
            answers.append((await http.get("http://x/v1/status", timeout=30)).json())

        async with serve_control(fake, ControlSettings(socket=path), log=LOG, grace_s=20):
            group.start_soon(ask)
            await began.wait()
            asyncio_loop_soon(let)
    assert answers == [{"state": "done"}]


def asyncio_loop_soon(event: anyio.Event) -> None:
    """Set the event after the block has begun to end."""
    import asyncio

    asyncio.get_running_loop().call_later(0.05, event.set)


@pytest.mark.anyio
async def test_signals_and_logging_are_left_alone(bound: Bound) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not logging.getLogger("uvicorn").handlers
    assert not logging.getLogger("uvicorn.error").handlers


@pytest.mark.anyio
async def test_an_address_in_use_is_an_error_and_leaves_nothing_behind(fake: FakeControl, tmp_path: Any) -> None:
    path = str(tmp_path / "c.sock")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EventdError, match="E-LISTEN") as caught:
            async with serve_control(fake, ControlSettings(socket=path, listen=(address,)), log=LOG):
                pass
    assert address in caught.value.message
    assert not await anyio.Path(path).exists()
