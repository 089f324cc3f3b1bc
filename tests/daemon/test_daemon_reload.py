"""Reload: what opens, closes, is replaced and is kept; what is rejected; code that breaks and is mended; work that is held."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import Probe, fails, hangs, house

from eventd.daemon import parking, reload
from eventd.daemon.mistakes import Mistakes
from eventd.errors import EventdError
from eventd.http import Response, Route
from eventd.http.router import Router
from eventd.ports import Query
from eventd.sdk import Call, Refusal, Site
from eventd.testing.exchange import Exchange

pytestmark = pytest.mark.anyio

ONE = """
[triggers.in]
type = "probe"
function = "hello"
"""
TWO = (
    ONE
    + """
[triggers.too]
type = "probe"
function = "hello"
"""
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


def actions(answer: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(change["kind"], change["name"]): str(change["action"]) for change in answer["changes"]}


async def test_triggers_open_close_are_replaced_and_kept(tmp_path: Path) -> None:
    async with house(tmp_path, TWO) as h:
        h.folder.write(TWO.replace("triggers.too", "triggers.new"))
        answer = await h.desk.reload()
        assert (answer["applied"], answer["problems"]) == (True, [])
        done = actions(answer)
        assert {name: done["trigger", name] for name in ("in", "too", "new")} == {"in": "keep", "too": "close", "new": "open"}
        assert (h.probe.begun, h.probe.ended) == (["in", "too", "new"], ["too"])
        h.folder.write(TWO.replace("triggers.too", "triggers.new") + 'note = "x"\n')
        assert actions(await h.desk.reload())["trigger", "new"] == "replace"
        assert h.probe.begun == ["in", "too", "new", "new"]
        assert h.sources.state("new") == ("up", ""), "the answer comes when the trigger is open"


async def test_nothing_changed_is_nothing_done(tmp_path: Path) -> None:
    async with house(tmp_path, TWO) as h:
        assert set(actions(await h.desk.reload()).values()) == {"keep"}
        assert h.probe.ended == []


async def test_a_rejected_configuration_keeps_everything(tmp_path: Path) -> None:
    async with house(tmp_path, TWO) as h:
        h.folder.write('[triggers.in]\ntype = "nosuch"\nfunction = "hello"\n')
        answer = await h.desk.reload()
        assert not answer["applied"]
        assert answer["changes"] == []
        assert any(problem["severity"] == "error" and problem["line"] == 2 for problem in answer["problems"])
        status = await h.desk.status()
        assert (status["state"], status["config"]["ok"]) == ("degraded", False)
        assert status["config"]["problems"] == answer["problems"]
        assert h.probe.ended == []
        await h.emit("too", {"n": 1})
        await h.quiet()
        h.folder.write(TWO)
        assert (await h.desk.reload())["applied"]
        assert (await h.desk.status())["state"] == "ready"


async def test_one_line_for_each_distinct_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path, ONE) as h:
        for text in ("nosuch = 1\n", "nosuch = 1\n", "nosuch = 1\nother = 2\n", "nosuch = 1\n", ONE):
            h.folder.write(text)
            await h.desk.reload()
        lines = [record.getMessage() for record in caplog.records if record.name == "eventd.reload"]
        assert sum("'nosuch'" in line for line in lines) == 1
        assert sum("'other'" in line for line in lines) == 1
        assert sum("is rejected" in line for line in lines) == 2
        assert sum("good again" in line for line in lines) == 1
        problem = next(line for line in lines if "'nosuch'" in line)
        assert ". " in problem or problem.endswith("."), "a full stop before the hint"


async def test_a_changed_filter_is_in_force_without_a_restart_of_the_trigger(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.write(ONE + 'filter = { kind = ["a"] }\n')
        done = actions(await h.desk.reload())
        assert (done["trigger", "in"], done["binding", "in/hello"]) == ("keep", "replace")
        await h.emit("in", {"kind": "b"})
        await h.emit("in", {"kind": "a"})
        assert (await h.site("in").call(Call(data={"kind": "b"}))).filtered
        await h.quiet()
        assert h.pool.events("hello") == [b'{"kind":"a"}']
        assert h.probe.begun == ["in"]
        assert h.site("in").bindings[0].filter == {"kind": ["a"]}
        h.folder.write(ONE)
        await h.desk.reload()
        await h.emit("in", {"kind": "b"})
        await h.quiet()
        assert len(h.pool.tasks) == 2


async def test_a_changed_binding_limit_is_in_force(tmp_path: Path) -> None:
    long = """
    [triggers.in]
    type = "probe"

    [[bindings]]
    trigger = "in"
    function = "hello"
    """
    async with house(tmp_path, long) as h:
        h.folder.write(long + "retry = { attempts = 1 }\n")
        assert (await h.desk.reload())["applied"]
        h.pool.behave["hello"] = fails()
        await h.emit("in")
        await h.quiet()
        assert (await h.desk.dead(Query()))["dead"][0]["attempts"] == 1
        h.folder.write(long + "paused = true\n")
        assert (await h.desk.reload())["applied"]
        await h.emit("in")
        assert (await h.desk.events(Query(state="held")))["events"]


async def test_a_removed_function_holds_its_work_until_its_name_returns(tmp_path: Path) -> None:
    async with house(tmp_path, ONE, functions=("hello", "other")) as h:
        await h.desk.pause("function", "hello")
        await h.emit("in", {"n": 1}, id="e1")
        await h.desk.invoke("hello", b'{"n":2}', asynchronous=True)
        (h.folder.handlers / "hello.py").unlink()
        answer = await h.desk.reload()
        assert not answer["applied"], "a trigger still names it"
        h.folder.write('[triggers.in]\ntype = "probe"\nfunction = "other"\n')
        assert actions(await h.desk.reload())["function", "hello"] == "close"
        await h.until(lambda: h.pool.unloaded == ["hello"], "the workers to go")
        status = await h.desk.status()
        row = h.function(status, "hello")
        assert (row["state"], row["waiting"]) == ("missing", 2)
        assert "2 open" in row["error"]
        assert {"binding": "in/hello", "trigger": "", "function": "hello", "state": "held"} in status["bindings"]
        held = (await h.desk.events(Query(state="held")))["events"]
        assert len(held) == 2
        assert (await h.site("in").call(Call(data={}, function="hello"))).refusal is Refusal.UNKNOWN
        with pytest.raises(EventdError, match="no function 'hello'"):
            await h.desk.invoke("hello", b"{}")
        h.folder.handler("hello.py")
        h.folder.write(ONE)
        assert (await h.desk.reload())["applied"]
        assert not h.pool.events("hello"), "it is still paused"
        await h.desk.resume("function", "hello")
        await h.quiet()
        assert sorted(h.pool.events("hello")) == [b'{"n":1}', b'{"n":2}']
        assert h.function(await h.desk.status(), "hello")["state"] == "ready"


async def test_a_broken_handler_keeps_the_version_before_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.broken["hello"] = EventdError("E-HANDLER", "function hello: SyntaxError: line 3.", "Mend it.")
        for _ in range(3):
            assert (await h.desk.reload())["applied"], "code is no configuration"
        told = [record.getMessage() for record in caplog.records if "SyntaxError" in record.getMessage()]
        assert told == ["E-HANDLER function hello: SyntaxError: line 3. Mend it. The version before stays in use."]
        await h.emit("in")
        await h.quiet()
        del h.pool.broken["hello"]
        await h.desk.reload()
        h.pool.broken["hello"] = EventdError("E-HANDLER", "function hello: SyntaxError: line 3.", "Mend it.")
        caplog.clear()
        await h.desk.reload()
        assert "SyntaxError" in caplog.text, "the same mistake again is news"


async def test_a_load_that_fails_unexpectedly_is_told_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, ONE) as h:

        async def load(function: Any) -> Any:
            raise RuntimeError("a mistake in the pool")

        h.pool.load = load  # type: ignore[method-assign]
        assert (await h.desk.reload())["applied"]
        assert "E-INTERNAL" in caplog.text
        assert (await h.desk.status())["mistakes"] == 1
        await h.emit("in")
        await h.quiet()


async def test_code_is_loaded_again_even_while_the_configuration_is_rejected(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.write("nonsense")
        before = len(h.pool.loads)
        assert not (await h.desk.reload())["applied"]
        assert h.pool.loads[before:] == ["hello"]


async def test_an_unknown_function_rejects_and_is_taken_when_it_appears(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.write(TWO.replace('function = "hello"', 'function = "late"'))
        assert not (await h.desk.reload())["applied"]
        h.folder.handler("late.py")
        assert (await h.desk.reload())["applied"]
        await h.emit("in", {"n": 1})
        await h.quiet()
        assert h.pool.events("late") == [b'{"n":1}']


async def test_a_function_that_is_building_holds_events_and_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "PATIENCE_S", 0.05)
    names = [f"slow{n}" for n in range(6)]
    async with house(tmp_path, ONE) as h:
        gate = anyio.Event()
        for name in names:
            h.folder.handler(f"{name}.py")
            h.pool.building[name] = gate
        h.folder.handler("zlast.py")
        assert (await h.desk.reload())["applied"]
        await h.until(lambda: "zlast" in h.pool.loads, "a function behind six long builds")
        assert (await h.site("in").call(Call(data={}, function="slow0"))).refusal is Refusal.BUILDING
        await h.desk.invoke("slow0", b"{}", asynchronous=True)
        assert h.function(await h.desk.status(), "slow0")["state"] == "building"
        assert h.pool.events("slow0") == []
        for _ in range(5):
            await h.desk.reload()
        gate.set()
        await h.quiet()
        assert h.pool.events("slow0") == [b"{}"]
        await h.until(lambda: set(names) <= set(h.pool.loads), "every build")
        assert all(h.pool.loads.count(name) <= 2 for name in names), "older requests have nothing to do any more"


async def test_a_function_removed_while_it_loads_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "PATIENCE_S", 0.05)
    async with house(tmp_path, ONE) as h:
        gate = h.pool.building["slow"] = anyio.Event()
        h.folder.handler("slow.py")
        await h.desk.reload()
        (h.folder.handlers / "slow.py").unlink()
        await h.desk.reload()
        gate.set()
        await h.until(lambda: h.pool.unloaded.count("slow") == 2, "the late load to be undone")
        assert h.pool.view("slow") is None or "slow" in h.pool.building


async def test_copies_of_removed_code_are_forgotten(tmp_path: Path) -> None:
    kept: list[frozenset[str]] = []
    async with house(tmp_path, "", functions=("hello", "other"), forget=kept.append) as h:
        (h.folder.handlers / "other.py").unlink()
        await h.desk.reload()
        assert kept == [frozenset({"hello"})]


async def test_new_addresses_are_listened_on_or_the_whole_reload_is_rejected(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    async def relisten(addresses: Sequence[str]) -> None:
        asked.append(tuple(addresses))
        if "127.0.0.1:1" in addresses:
            raise EventdError("E-LISTEN", "127.0.0.1:1 is taken.", "Choose another.")

    async with house(tmp_path, ONE, relisten=relisten) as h:
        h.folder.write('[http]\nlisten = ["127.0.0.1:8099"]\n' + ONE)
        assert (await h.desk.reload())["applied"]
        assert asked == [("127.0.0.1:8099",)]
        h.folder.write('[http]\nlisten = ["127.0.0.1:1"]\n' + ONE.replace("triggers.in", "triggers.out"))
        answer = await h.desk.reload()
        assert not answer["applied"]
        (problem,) = [problem for problem in answer["problems"] if problem["code"] == "E-LISTEN"]
        assert problem["path"] == "http.listen"
        assert "in" in h.sources.all


async def test_what_needs_a_restart_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.write('[journal]\nlimit = "1GiB"\n[daemon]\nconcurrency = 7\n' + ONE)
        await h.desk.reload()
        late = [record.getMessage() for record in caplog.records if "next start" in record.getMessage()]
        assert [line.split()[1] for line in late] == ["[journal]"]
        assert (await h.desk.status())["concurrency"] == 7


async def test_the_socket_of_the_command_line_goes_before_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTD_SOCKET", str(tmp_path / "asked.sock"))
    async with house(tmp_path, f'[control]\nsocket = "{tmp_path}/other.sock"\n') as h:
        assert h.reloader.settings.control.socket == str(tmp_path / "asked.sock")
        h.folder.write(f'[control]\nsocket = "{tmp_path}/third.sock"\n')
        assert ("control", "control") not in actions(await h.desk.reload())


async def test_a_renamed_trigger_is_said_to_have_a_new_ledger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path, ONE) as h:
        h.folder.write(ONE.replace("triggers.in", "triggers.inbox"))
        await h.desk.reload()
        assert "'inbox' is what 'in' was; under its new name it has a new ledger" in caplog.text


async def test_a_changed_time_zone_is_lent_to_every_trigger(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.write('[daemon]\ntimezone = "Europe/Berlin"\n' + ONE)
        assert actions(await h.desk.reload())["trigger", "in"] == "replace"
        assert h.site("in").timezone == "Europe/Berlin"


async def test_running_work_survives_the_replacement_of_its_trigger(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = hangs
        answers: list[Any] = []
        h.site("in").submit(Call(data={"n": 1}), answers.append)
        await h.until(lambda: h.pool.running, "the run")
        h.folder.write(ONE + 'note = "x"\n')
        await h.desk.reload()
        h.pool.finish_all()
        await h.until(lambda: answers, "the answer")
        assert answers[0].payload == b'{"n":1}'


async def test_while_a_trigger_is_replaced_its_functions_are_loaded_before_it_closes(tmp_path: Path) -> None:
    probe = Probe()
    order: list[str] = []

    async def play(site: Site, settings: Any) -> None:
        order.append("open")
        site.ready()
        try:
            await anyio.sleep_forever()
        finally:
            order.append("close")

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        gate = h.pool.building["new"] = anyio.Event()
        h.folder.handler("new.py")
        h.folder.write(ONE.replace("hello", "new"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.desk.reload)
            await h.until(lambda: gate.statistics().tasks_waiting, "the new function's load to have begun")
            assert order == ["open"], "the old trigger goes on while the new function is built"
            gate.set()
        assert order == ["open", "close", "open"]
        await h.emit("in", {"n": 1})
        await h.quiet()
        assert h.pool.events("new") == [b'{"n":1}']


async def test_many_reloads_at_once_are_one_after_another(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        async with anyio.create_task_group() as tasks:
            for n in range(30):
                h.folder.write(ONE + f'note = "{n}"\n')
                tasks.start_soon(h.desk.reload)
        assert (await h.desk.reload())["applied"]
        assert len(h.probe.begun) - len(h.probe.ended) == 1


async def test_requests_that_meet_the_moment_of_a_replacement_are_answered_by_the_new_trigger(tmp_path: Path) -> None:
    probe = Probe()
    gate = anyio.Event()

    async def play(site: Site, settings: Any) -> None:
        if settings.note:
            await gate.wait()
        body = settings.note.encode() or b"old"
        remove = site.route(Route("/in/{id}", lambda request: request.respond(Response(200, body + request.params["id"].encode()))))
        site.route(Route("/more", lambda request: request.respond(Response(200, body)), methods=("POST",)))
        site.ready()
        try:
            await anyio.sleep_forever()
        finally:
            remove()  # as a tidy plugin does

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        assert (await h.request("GET", "/in/7").wait()).body == b"old7"
        h.folder.write(ONE + 'note = "new"\n')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.desk.reload)
            await h.until(lambda: len(probe.begun) == 2, "the replacement to begin")
            waiting = [h.request("GET", "/in/8"), h.request("POST", "/more"), h.request("GET", "/in/9")]
            late = Exchange("GET", "/in/11", "", b"", [], "127.0.0.1", "http")
            found = h.router.find("GET", "/in/11")  # its head has come, its body has not
            gone = h.request("GET", "/in/10")
            gone.disconnect()
            await asyncio.sleep(0.02)
            assert [exchange.response for exchange in waiting] == [None, None, None]
            gate.set()
        answers = [await exchange.wait() for exchange in waiting]
        assert [answer.body for answer in answers] == [b"new8", b"new", b"new9"]
        assert gone.response is None
        assert found.route is not None
        late.deliver(found.route, found.params)
        assert (await late.wait()).body == b"new11"
        assert (await h.request("GET", "/in/7").wait()).body == b"new7"


@pytest.mark.parametrize("then", ["other routes", "broken", "paused"])
async def test_requests_wait_in_vain_when_the_new_trigger_does_not_serve_them(tmp_path: Path, then: str) -> None:
    probe = Probe()
    gate = anyio.Event()

    async def play(site: Site, settings: Any) -> None:
        if settings.note:
            await gate.wait()
        if settings.note == "broken":
            raise RuntimeError("no")
        site.route(Route("/other" if settings.note else "/in", lambda request: request.respond(Response(200))))
        site.ready()
        await anyio.sleep_forever()

    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        h.folder.write(ONE + f'note = "{then}"\n' + ("paused = true\n" if then == "paused" else ""))
        if then == "paused":
            gate.set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.desk.reload)
            if then != "paused":
                await h.until(lambda: len(probe.begun) == 2, "the replacement to begin")
                waiting = h.request("GET", "/in")
                gate.set()
                assert (await waiting.wait()).status == 404
        await h.until(lambda: not h.has_route("/in"), "nothing to be left of the old routes")
        assert h.has_route("/other") == (then == "other routes")


async def test_too_many_waiting_requests_are_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = Mistakes()
    asyncio.get_running_loop().set_exception_handler(mistakes.on_loop)
    monkeypatch.setattr(parking, "MOST", 2)
    router = Router()
    lot = parking.Parking(router)
    lot.park("in", [Route("/in", lambda request: None)])
    exchanges = [Exchange("GET", "/in", "", b"", [], "127.0.0.1", "http") for _ in range(3)]
    for exchange in exchanges:
        exchange.deliver(router.find("GET", "/in").route, {})
    answer = await exchanges[2].wait()
    assert (answer.status, dict(answer.headers)["retry-after"]) == (503, "1")
    lot.leave("in")
    router.add(Route("/in", lambda request: 1 / 0))
    lot.leave("in")
    assert [(await exchange.wait()).status for exchange in exchanges[:2]] == [500, 500]
    assert mistakes.count == 2
