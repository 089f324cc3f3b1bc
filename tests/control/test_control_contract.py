"""The Control contract: one suite over the object itself, the client on a Unix socket, and the client on TCP where TCP may."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from eventd.control.client import ControlClient
from eventd.control.server import serve_control
from eventd.errors import CODES, EventdError
from eventd.model import ControlSettings
from eventd.ports import Control, Query
from eventd.testing.control import FakeControl

LOG = logging.getLogger("test.control")
LOOPS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True})}


@pytest.fixture(params=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return LOOPS[request.param]


@pytest.fixture
def fake() -> FakeControl:
    return FakeControl()


@pytest.fixture(params=["object", "unix"])
async def control(request: pytest.FixtureRequest, fake: FakeControl, tmp_path: Any) -> AsyncIterator[Control]:
    if request.param == "object":
        yield fake
        return
    path = str(tmp_path / "c.sock")
    async with serve_control(fake, ControlSettings(socket=path), log=LOG), ControlClient(path) as client:
        yield client


@pytest.fixture
async def over_tcp(fake: FakeControl, tmp_path: Any) -> AsyncIterator[ControlClient]:
    settings = ControlSettings(socket=str(tmp_path / "c.sock"), listen=("127.0.0.1:0",))
    async with serve_control(fake, settings, log=LOG) as bound, ControlClient(url=f"http://{bound.addresses[1]}") as client:
        yield client


def plain(answer: Any) -> Any:
    """An answer as a program that reads its JSON sees it."""
    return msgspec.json.decode(msgspec.json.encode(answer))


FULL = Query(
    limit=2,
    cursor="1",
    since=1_700_000_000_123,
    until=1_800_000_000_456,
    function="hello",
    trigger="uploads",
    outcomes=("failed", "timed_out"),
    invocation="a b/c?d&é",
    attempt=3,
)


@pytest.mark.anyio
async def test_reads_give_the_rows_of_the_daemon(control: Control, fake: FakeControl) -> None:
    assert plain(await control.status()) == fake.status_answer
    assert plain(await control.runs(Query(limit=2))) == {"runs": fake.run_rows[:2], "next": "2"}
    assert plain(await control.runs(Query(limit=2, cursor="2"))) == {"runs": fake.run_rows[2:], "next": None}
    assert plain(await control.run("run-2")) == fake.run_rows[1]
    assert plain(await control.events(Query()))["events"] == fake.event_rows
    assert [row["event"] for row in (await control.events(Query(ids=("ev-1",), payload=True)))["events"]] == ["ev-1"]
    assert [row["invocation"] for row in (await control.dead(Query(function="other")))["dead"]] == ["dead-1"]
    assert [row["invocation"] for row in (await control.dead(Query(ids=("dead-2",))))["dead"]] == ["dead-2"]
    assert (await control.stats(Query(since=5), price=True))["functions"][0]["price_usd"] == 0.25
    assert "price_usd" not in (await control.stats(Query(since=5)))["functions"][0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "verb, query",
    [
        ("runs", FULL),
        ("events", Query(state="retrying", payload=True, ids=("ev-1", "x y"))),
        ("dead", Query(reason="quarantined", ids=("dead-1", "dead-2"), payload=True, limit=10_000)),
    ],
)
async def test_every_field_of_a_query_arrives(control: Control, fake: FakeControl, verb: str, query: Query) -> None:
    await getattr(control, verb)(query)
    assert fake.calls == [(verb, query)]


@pytest.mark.anyio
async def test_logs_follow_by_cursor(control: Control, fake: FakeControl) -> None:
    fake.log_lines = [{"time": "t", "function": "hello", "run": "r", "stream": "stdout", "line": f"{n}\u2028\x1b"} for n in range(5)]
    first = await control.logs(Query(function="hello"), 2, "r")
    assert [row["line"][0] for row in first["lines"]] == ["3", "4"]
    fake.log_lines.append({"time": "t", "function": "hello", "run": "r", "stream": "stdout", "line": "new"})
    second = await control.logs(Query(function="hello", cursor=first["cursor"]), 100, None)
    assert [row["line"] for row in second["lines"]] == ["new"]
    assert fake.calls == [("logs", Query(function="hello"), 2, "r"), ("logs", Query(function="hello", cursor="5"), 100, None)]


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [b"{}", b"null", b'"text \xc3\xa9"', b"[1e400]", b'{"a":1,"a":2}', b"123456789012345678901234567890"])
async def test_payload_and_result_pass_untouched(control: Control, fake: FakeControl, payload: bytes) -> None:
    fake.result = payload
    answer = await control.invoke("hello:7", payload, wait_ms=0, tail=True)
    assert fake.calls == [("invoke", "hello:7", payload, False, None, 0, True)]
    assert bytes(answer["result"]) == payload
    assert (answer["error"], answer["tail"], answer["run"]["run"]) == (False, "what it printed\n", "run-9")


@pytest.mark.anyio
async def test_a_function_error_is_an_answer_not_an_exception(control: Control, fake: FakeControl) -> None:
    fake.outcome, fake.result = "failed", b'{"errorType":"ValueError"}'
    answer = await control.invoke("hello", b"{}")
    assert answer["error"] is True
    assert answer["run"]["outcome"] == "failed"
    assert bytes(answer["result"]) == fake.result


@pytest.mark.anyio
async def test_asynchronous_invoke(control: Control, fake: FakeControl) -> None:
    assert await control.invoke("hello", b"[]", asynchronous=True, id="mine") == {"event": "mine", "invocation": "inv-9"}
    assert fake.calls == [("invoke", "hello", b"[]", True, "mine", None, False)]


@pytest.mark.anyio
async def test_changes(control: Control, fake: FakeControl) -> None:
    assert await control.redrive(Query(function="other"), dry_run=True) == {"redriven": 1, "invocations": ["dead-1"]}
    assert await control.redrive(Query(ids=("dead-1",))) == {"redriven": 1, "invocations": ["dead-1"]}
    assert await control.discard(Query()) == {"discarded": 1, "invocations": ["dead-2"]}
    assert await control.cancel(["inv-of-ev-1"]) == {"cancelled": 1, "invocations": ["inv-of-ev-1"]}
    assert await control.pause("binding", "a/b:c") == {"kind": "binding", "name": "a/b:c", "paused": True}
    assert await control.resume("trigger", "t") == {"kind": "trigger", "name": "t", "paused": False}
    assert (await control.reload())["applied"] is True
    assert (await control.drain(queue=True, timeout_ms=1500))["state"] == "drained"
    assert (await control.drain(undo=True))["state"] == "ready"
    assert fake.calls == [
        ("redrive", Query(function="other"), True),
        ("redrive", Query(ids=("dead-1",)), False),
        ("discard", Query(), False),
        ("cancel", ("inv-of-ev-1",)),
        ("pause", "binding", "a/b:c"),
        ("resume", "trigger", "t"),
        ("reload",),
        ("drain", True, 1500, False),
        ("drain", False, None, True),
    ]


@pytest.mark.anyio
async def test_health_readiness_and_metrics(control: Control, fake: FakeControl) -> None:
    assert await control.health() == (True, "")
    fake.healthy, fake.ready = (False, "the journal's thread ended"), (False, "draining")
    assert await control.health() == (False, "the journal's thread ended")
    assert await control.readiness() == (False, "draining")
    assert b"eventd_journal_bytes 40960.0" in await control.metrics()


@pytest.mark.anyio
async def test_unknown_things_are_not_found(control: Control) -> None:
    for call in (control.run("nosuch/../run"), control.invoke("nosuch", b"{}"), control.cancel(["nosuch"])):
        with pytest.raises(EventdError) as caught:
            await call
        assert caught.value.code == "E-NOTFOUND"
        assert "nosuch" in caught.value.message


@pytest.mark.anyio
@pytest.mark.parametrize("code", sorted(CODES))
async def test_every_refusal_arrives_as_it_was_raised(control: Control, fake: FakeControl, code: str) -> None:
    if code.startswith("W-"):
        assert CODES[code].http == 200, "a warning is never raised"
        return
    fake.refuse = EventdError(code, "the thing with \u00e9 and \n", "Do that.")
    with pytest.raises(EventdError) as caught:
        await control.reload()
    assert (caught.value.code, caught.value.message, caught.value.hint) == (code, "the thing with \u00e9 and \n", "Do that.")


@pytest.mark.anyio
async def test_tcp_reads_and_invokes(over_tcp: ControlClient, fake: FakeControl) -> None:
    assert plain(await over_tcp.status()) == fake.status_answer
    assert len((await over_tcp.runs(Query()))["runs"]) == 3
    assert bytes((await over_tcp.invoke("hello", b"{}"))["result"]) == fake.result
    assert (await over_tcp.health())[0]


@pytest.mark.anyio
async def test_tcp_changes_nothing(over_tcp: ControlClient, fake: FakeControl) -> None:
    calls = [over_tcp.redrive(Query(), True), over_tcp.discard(Query()), over_tcp.cancel(["x"]), over_tcp.pause("function", "hello")]
    calls += [over_tcp.resume("function", "hello"), over_tcp.reload(), over_tcp.drain()]
    for call in calls:
        with pytest.raises(EventdError) as caught:
            await call
        assert caught.value.code == "E-FORBIDDEN"
        assert "Unix socket" in caught.value.hint
    assert fake.calls == []
