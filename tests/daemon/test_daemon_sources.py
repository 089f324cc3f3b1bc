"""Trigger supervision: what a plugin does wrong, restarts with backoff, routes, pauses, and asking for several things at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import DEADLINE_S, House, Probe, house

from eventd.daemon import source
from eventd.errors import EventdError
from eventd.http import Response, Route
from eventd.ports import Query
from eventd.sdk import Call, Refusal, Site

pytestmark = pytest.mark.anyio

ONE = """
[triggers.in]
type = "probe"
function = "hello"
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BACKOFF_S", (0.01, 0.04))


async def _foreign_cancel() -> None:
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.cancel()
    await waiting


async def _grouped() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_raise, EventdError("E-TRIGGER", "the broker is away.", "Start it."))


async def _raise(error: BaseException) -> None:
    raise error


ENDINGS = {
    "raises": (lambda: _raise(RuntimeError("boom")), "RuntimeError: boom."),
    "refuses": (lambda: _raise(EventdError("E-CONFIG", "no such folder.", "Create it.")), "E-CONFIG no such folder. Create it."),
    "exits": (lambda: _raise(SystemExit(3)), "SystemExit: 3."),
    "is silent": (lambda: _raise(KeyError()), "KeyError."),
    "ends": (lambda: asyncio.sleep(0), "it ended by itself."),
    "is cancelled by its library": (_foreign_cancel, "something that it waited for was cancelled."),
    "fails in a group": (_grouped, "E-TRIGGER the broker is away. Start it."),
}


@pytest.mark.parametrize("how", list(ENDINGS))
@pytest.mark.usefixtures("quick")
async def test_a_trigger_that_stops_is_degraded_says_why_and_starts_again(tmp_path: Path, how: str) -> None:
    act, why = ENDINGS[how]
    probe = Probe()

    async def play(site: Site, settings: Any) -> None:
        site.route(Route("/in", lambda request: request.respond(Response(200))))
        if len(probe.begun) > 2:
            site.ready()
            await anyio.sleep_forever()
        await act()

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        row = h.trigger(await h.desk.status(), "in")
        if len(probe.begun) <= 2:
            assert (row["state"], row["error"]) == ("degraded", why)
        await h.until(lambda: h.sources.state("in") == ("up", ""), "the third start")
        assert len(probe.begun) == 3
        assert h.has_route("/in"), "its route is there once, for the start that lives"


@pytest.mark.usefixtures("quick")
async def test_the_routes_of_a_trigger_go_with_it(tmp_path: Path) -> None:
    probe = Probe()
    go = anyio.Event()

    async def play(site: Site, settings: Any) -> None:
        site.route(Route("/in", lambda request: request.respond(Response(200))))
        site.ready()
        await go.wait()
        if len(probe.begun) == 1:
            raise RuntimeError("once")
        await anyio.sleep_forever()

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        assert h.has_route("/in")
        go.set()
        await h.until(lambda: len(probe.begun) == 2 and h.has_route("/in"), "the second start")
        await h.sources.close("in")
        assert not h.has_route("/in")


async def test_the_backoff_doubles_with_jitter_up_to_its_limit_and_begins_again_after_a_steady_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    probe = Probe()
    last = anyio.Event()

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)
        if len(waits) == 9:
            last.set()
            await anyio.Event().wait()

    async def play(site: Site, settings: Any) -> None:
        if len(waits) == 8:
            houses[0].clock.skip(61_000)
        raise RuntimeError("again")

    houses: list[House] = []
    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe, open_triggers=False) as h:
        houses.append(h)
        monkeypatch.setattr(anyio, "sleep", no_sleep)
        monkeypatch.setattr(h.engine.dice, "uniform", lambda: 0.5)
        h.sources.open("in")
        with anyio.fail_after(DEADLINE_S):
            await last.wait()
        monkeypatch.undo()
    assert waits == [0.75, 1.5, 3.0, 6.0, 12.0, 24.0, 45.0, 45.0, 0.75]


async def test_a_trigger_that_hangs_is_closed_all_the_same(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        with anyio.fail_after(5):
            await h.sources.close("in")
        assert h.probe.ended == ["in"]
        assert h.sources.state("in")[0] == "degraded"


async def test_a_trigger_that_is_not_open_yet_shows_as_degraded(tmp_path: Path) -> None:
    probe = Probe()

    async def play(site: Site, settings: Any) -> None:
        await anyio.sleep_forever()

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe, open_triggers=False) as h:
        assert h.sources.state("in")[0] == "degraded"
        h.sources.open("in")
        await h.sources.wait_open(0.01)
        assert h.sources.state("in") == ("degraded", "it is opening.")


async def test_pausing_a_trigger_closes_it_and_lasts_over_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        assert await h.desk.pause("trigger", "in") == {"kind": "trigger", "name": "in", "paused": True}
        assert h.probe.ended == ["in"]
        assert h.trigger(await h.desk.status(), "in")["state"] == "paused"
        tables = h.tables
    async with house(tmp_path, ONE, tables=tables) as again:
        assert again.probe.begun == []
        assert again.trigger(await again.desk.status(), "in")["state"] == "paused"
        await again.desk.resume("trigger", "in")
        await again.until(lambda: again.probe.begun == ["in"], "the trigger to open")
        await again.emit("in")


async def test_a_plugin_that_stays_when_paused_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace("probe", "steady")) as h:
        site = h.site("in")
        assert not site.paused
        await h.desk.pause("trigger", "in")
        assert site.paused
        assert h.probe.ended == []
        assert h.sources.state("in") == ("paused", "")
        await h.desk.resume("trigger", "in")
        assert not site.paused
        assert h.probe.begun == ["in"]


async def test_paused_in_the_configuration_is_not_resumed_by_hand(tmp_path: Path) -> None:
    async with house(tmp_path, ONE + "paused = true\n") as h:
        assert h.probe.begun == []
        with pytest.raises(EventdError, match="paused by the configuration") as refused:
            await h.desk.resume("trigger", "in")
        assert refused.value.code == "E-CONFLICT"


@pytest.mark.parametrize("kind", ["function", "binding"])
async def test_a_paused_function_or_binding_holds_its_events(tmp_path: Path, kind: str) -> None:
    name = {"function": "hello", "binding": "in/hello"}[kind]
    async with house(tmp_path, ONE) as h:
        await h.desk.pause(kind, name)
        await h.emit("in", {"n": 1}, id="e1")
        (event,) = (await h.desk.events(Query(state="held")))["events"]
        assert event["invocations"][0]["state"] == "held"
        assert h.pool.tasks == []
        assert (await h.site("in").call(Call(data={}))).refusal is Refusal.PAUSED
        await h.desk.resume(kind, name)
        await h.quiet()
        assert h.pool.events("hello") == [b'{"n":1}']


async def test_asking_for_many_things_at_once_leaves_one_trigger_running(tmp_path: Path) -> None:
    """A pause, a resume, a drain, its undoing and reloads together: in the end there is one plugin, not two and not none."""
    probe = Probe()

    async def play(site: Site, settings: Any) -> None:
        site.ready()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.005)  # ending takes a moment

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        for note in range(20):
            h.folder.write(ONE + f'note = "{note}"\n')
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(h.desk.pause, "trigger", "in")
                tasks.start_soon(h.desk.reload)
                tasks.start_soon(h.desk.resume, "trigger", "in")
                tasks.start_soon(h.sources.refresh, "in")
                tasks.start_soon(h.desk.reload)
                tasks.start_soon(h.sources.halt)
                tasks.start_soon(h.sources.unhalt)
        await h.desk.resume("trigger", "in")
        await h.until(lambda: h.sources.state("in") == ("up", ""), "the trigger")
        assert len(h.probe.begun) - len(h.probe.ended) == 1


async def test_warnings_are_told_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, ONE) as h:
        for _ in range(3):
            h.site("in").warn("W-LOOP", "it feeds itself")
        h.site("in").warn("W-WATCH", "no notices")
        h.clock.skip(61_000)
        h.site("in").warn("W-LOOP", "it feeds itself")
        told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("W-")]
        assert [line.split()[0] for line in told] == ["W-LOOP", "W-WATCH", "W-LOOP"]


async def test_a_secret_is_read_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"s3cret\n\n")
    (tmp_path / "creds").mkdir()
    (tmp_path / "creds" / "token").write_bytes(b"t")
    async with house(tmp_path, ONE) as h:
        site = h.site("in")
        assert site.secret(f"file:{tmp_path}/key") == b"s3cret\n", "one newline is dropped, no more"
        with pytest.raises(EventdError, match="LoadCredential=token"):
            site.secret("credential:token")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "creds"))
        assert site.secret("credential:token") == b"t"
        for ref in ("credential:../key", "file:", "plain", f"file:{tmp_path}/none", f"file:{tmp_path}", "credential:"):
            with pytest.raises(EventdError) as refused:
                site.secret(ref)
            assert refused.value.code == "E-CONFIG"
            assert ref in refused.value.message


async def test_a_pipe_or_a_flood_in_place_of_a_secret_does_not_stop_the_daemon(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    async with house(tmp_path, ONE) as h:
        for name, why in (("pipe", "not a plain file"), ("large", "larger than")):
            with pytest.raises(EventdError, match=why):
                h.site("in").secret(f"file:{tmp_path}/{name}")


async def test_the_keys_that_run_are_known(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = lambda task: None
        await h.emit("in", id="e1", key="k1")
        await h.until(lambda: h.pool.running, "the run")
        assert tuple(h.site("in").running()) == ("k1",)
        h.pool.finish_all()
        await h.quiet()
        assert tuple(h.site("in").running()) == ()


async def test_a_function_url_is_served_and_goes_with_a_reload(tmp_path: Path) -> None:
    text = "[functions.hello]\nurl = true\n"
    async with house(tmp_path, text) as h:
        for path in ("/url/hello", "/url/hello/", "/url/hello/a/b"):
            answer = await h.request("POST", path, b"hi").wait()
            assert answer.status == 200
        import json

        event = json.loads(h.pool.tasks[-1].event)
        assert (event["rawPath"], event["version"], event["requestContext"]["http"]["method"]) == ("/a/b", "2.0", "POST")
        h.folder.write("")
        assert (await h.desk.reload())["applied"]
        assert not h.has_route("/url/hello")
        h.folder.write(text)
        assert (await h.desk.reload())["applied"]
        assert (await h.request("GET", "/url/hello").wait()).status == 200


async def test_a_function_url_answers_refusals(tmp_path: Path) -> None:
    async with house(tmp_path, "[functions.hello]\nurl = true\nconcurrency = 0\n") as h:
        assert (await h.request("GET", "/url/hello").wait()).status == 429
    async with house(tmp_path, "[functions.hello]\nurl = true\n") as h:
        await h.desk.pause("function", "hello")
        assert (await h.request("GET", "/url/hello").wait()).status == 503
