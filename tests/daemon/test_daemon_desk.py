"""The desk: every verb's shape against surface.md sections 2, 6 and 7; listings over journal and history; what is dead; drains."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from daemon_house import House, fails, hangs, house, slow

from eventd.errors import EventdError
from eventd.model import Outcome
from eventd.ports import Query, Ran

pytestmark = pytest.mark.anyio

TEXT = """
[triggers.in]
type = "probe"
function = "hello"

[functions.hello]
retry = { attempts = 1 }
"""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RECORD = set(
    """run invocation event source batch batch_failed function version trigger binding lane attempt outcome cold received_at started_at
    ended_at queue_ms init_ms duration_ms billed_ms cpu_ms memory_mb max_memory_mb gb_seconds bytes_in bytes_out output_bytes
    output_truncated exit_status signal error_type error_message worker boot""".split()  # noqa: SIM905
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


async def refused(asked: Any) -> EventdError:
    with pytest.raises(EventdError) as found:
        await asked
    return found.value


async def kill(h: House, *ids: str) -> list[str]:
    """Events that die; their invocations, oldest first."""
    before = h.pool.behave.get("hello")
    h.pool.behave["hello"] = fails()
    for id in ids:
        await h.emit("in", {"id": id}, id=id)
        await h.quiet()
        await asyncio.sleep(0.002)  # deaths have times of their own
    if before is None:
        del h.pool.behave["hello"]
    return [row["invocation"] for row in reversed((await h.desk.dead(Query(limit=1_000)))["dead"])]


async def test_status_has_every_field(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT, functions=("hello", "other")) as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in")
        await h.until(lambda: h.pool.running, "the run")
        status = await h.desk.status()
        assert status.keys() >= {
            "state", "version", "pid", "boot", "started_at", "config", "functions", "triggers", "bindings", "journal", "running",
            "concurrency",
        }  # fmt: skip
        assert (status["state"], status["running"], status["concurrency"], status["boot"]) == ("ready", 1, 64, "boot-1")
        assert TIME.fullmatch(status["started_at"])
        assert TIME.fullmatch(status["config"]["loaded_at"])
        assert status["config"] | {"loaded_at": ""} == {"file": str(h.folder.file), "loaded_at": "", "ok": True, "problems": []}
        assert h.function(status, "hello") == {
            "function": "hello", "origin": "file", "runtime": "python", "state": "ready", "error": "", "version": "0123456789ab",
            "concurrency": 32, "running": 1, "waiting": 0, "workers": 1, "dead": 0,
        }  # fmt: skip
        assert status["triggers"] == [{"trigger": "in", "type": "probe", "state": "up", "error": "", "accepted": 1}]
        assert status["bindings"] == [{"binding": "in/hello", "trigger": "in", "function": "hello", "state": "ready"}]
        assert status["journal"].keys() == {"bytes", "limit", "open", "owed", "dead"}
        assert (status["journal"]["open"], status["journal"]["dead"]) == (1, 0)
        msgspec.json.encode(status)


async def test_a_degraded_trigger_is_seen_in_status_but_the_daemon_is_ready(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.site("in").degraded("the folder is away")
        status = await h.desk.status()
        assert status["state"] == "degraded"
        assert h.trigger(status, "in")["error"] == "the folder is away."
        assert await h.desk.readiness() == (True, "")
        h.site("in").ready()
        assert (await h.desk.status())["state"] == "ready"


async def test_nothing_is_run_or_changed_before_the_start_is_over(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.desk.phase = "starting"
        asks = [
            h.desk.invoke("hello", b"{}"), h.desk.redrive(Query()), h.desk.discard(Query()), h.desk.cancel(["x"]), h.desk.pause("function", "hello"),
            h.desk.reload(), h.desk.drain(),
        ]  # fmt: skip
        for asked in asks:
            error = await refused(asked)
            assert (error.code, error.exit) == ("E-STARTING", 3)
        assert (await h.desk.status())["state"] == "starting"
        assert not (await h.desk.readiness())[0]


# --- invoke ---


async def test_invoke_answers_the_record_and_the_result(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        answer = await h.desk.invoke("hello:$LATEST", b'{"a":[1,2]}')
        assert answer["run"].keys() == RECORD
        assert msgspec.json.decode(answer["result"]) == {"a": [1, 2]}
        assert answer["error"] is False
        assert "tail" not in answer
        record = answer["run"]
        assert (record["lane"], record["trigger"], record["binding"], record["attempt"]) == ("direct", None, None, 1)
        assert await h.desk.run(record["run"]) == record, "the run is there at once (D2)"
        assert (await h.desk.runs(Query(invocation=record["invocation"])))["runs"] == [record]


async def test_invoke_of_a_failing_function_is_an_answer(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = lambda task: Ran(
            outcome=Outcome.FAILED, payload=b'{"errorMessage":"no","errorType":"ValueError"}', error_type="ValueError", error_message="no"
        )
        answer = await h.desk.invoke("hello", b"{}")
        assert answer["error"] is True
        assert msgspec.json.decode(answer["result"])["errorType"] == "ValueError"
        assert answer["run"]["outcome"] == "failed"


async def test_the_tail_is_lambdas(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = lambda task: Ran(outcome=Outcome.SUCCEEDED, tail=b"one\ntwo", cold=True, init_ms=12.5, duration_ms=1.25)
        answer = await h.desk.invoke("hello", b"{}", tail=True)
        id = answer["run"]["invocation"]
        lines = answer["tail"].splitlines()
        assert lines[:4] == [f"START RequestId: {id} Version: $LATEST", "one", "two", f"END RequestId: {id}"]
        assert lines[4].startswith(f"REPORT RequestId: {id}\tDuration: 1.25 ms\tBilled Duration: 14 ms\tMemory Size: 512 MB")
        assert "Init Duration: 12.50 ms" in lines[4]


async def test_a_result_that_is_no_json_is_shown_as_text(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = lambda task: Ran(outcome=Outcome.SUCCEEDED, payload=b"NaN")
        assert (await h.desk.invoke("hello", b"{}"))["result"] == "NaN"


@pytest.mark.parametrize(
    ("name", "payload", "code"), [("nobody", b"{}", "E-NOTFOUND"), ("hello:7", b"{}", "E-NOTFOUND"), ("hello", b'"' + b"x" * 6_291_456 + b'"', "E-USAGE")]
)  # fmt: skip
async def test_invoke_refuses(tmp_path: Path, name: str, payload: bytes, code: str) -> None:
    async with house(tmp_path, TEXT) as h:
        for asynchronous in (False, True):
            assert (await refused(h.desk.invoke(name, payload, asynchronous=asynchronous))).code == code
        assert h.pool.tasks == []


async def test_invoke_of_a_full_or_paused_function_is_an_error(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + "concurrency = 1\n") as h:
        h.pool.behave["hello"] = hangs
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.desk.invoke, "hello", b"{}")
            await h.until(lambda: h.pool.running, "the run")
            error = await refused(h.desk.invoke("hello", b"{}", wait_ms=0))
            assert (error.code, error.http) == ("E-THROTTLED", 429)
            h.pool.finish_all()
        await h.desk.pause("function", "hello")
        assert (await refused(h.desk.invoke("hello", b"{}"))).code == "E-PAUSED"


async def test_a_run_that_is_interrupted_is_told_as_draining(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = hangs
        found: list[EventdError] = []

        async def ask() -> None:
            found.append(await refused(h.desk.invoke("hello", b"{}")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await h.until(lambda: h.pool.running, "the run")
            h.engine.interrupt_all()
        assert found[0].code == "E-DRAINING"


async def test_an_asynchronous_invoke_with_an_id_is_idempotent(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        first = await h.desk.invoke("hello", b'{"a":1}', asynchronous=True, id="order-1")
        assert first.keys() == {"event", "invocation"}
        assert await h.desk.invoke("hello", b'{"a":1}', asynchronous=True, id="order-1") == first
        assert (await refused(h.desk.invoke("hello", b'{"a":2}', asynchronous=True, id="order-1"))).code == "E-CONFLICT"
        await h.quiet()
        (record,) = await h.records()
        assert (record["invocation"], record["event"], record["trigger"]) == (first["invocation"], "order-1", None)


# --- listings ---


async def test_events_are_one_list_over_journal_and_history(tmp_path: Path) -> None:
    """Ended events are in the history, open ones in the journal; a page holds both in order, and the cursor loses and repeats none."""
    async with house(tmp_path, TEXT, functions=("hello", "other")) as h:
        for n in range(24):
            if n == 12:
                h.pool.behave["hello"] = lambda task: None if b"held" in task.event else Ran(outcome=Outcome.SUCCEEDED)
            h.clock.skip(10)
            await h.emit("in", {"held": n} if n % 3 == 0 else {"n": n}, id=f"e{n:02}")
            await h.until(lambda: all(b"held" in task.event for task in h.pool.running.values()), "the run")
        await h.until(lambda: len(h.tables.events) == 4, "four that go on")
        everything = (await h.desk.events(Query(limit=100)))["events"]
        assert [row["event"] for row in everything] == [f"e{n:02}" for n in reversed(range(24))]
        assert {row["invocations"][0]["state"] for row in everything} == {"settled", "running"}
        for limit in (1, 2, 3, 5, 7, 23, 24):
            seen: list[str] = []
            cursor: str | None = None
            for _ in range(40):
                page = await h.desk.events(Query(limit=limit, cursor=cursor))
                assert len(page["events"]) <= limit
                seen += [row["event"] for row in page["events"]]
                cursor = page["next"]
                if cursor is None:
                    break
            assert seen == [f"e{n:02}" for n in reversed(range(24))], f"with pages of {limit}"


async def test_an_event_that_is_half_done_is_one_row(tmp_path: Path) -> None:
    text = TEXT + '[[bindings]]\ntrigger = "in"\nfunction = "other"\n'
    async with house(tmp_path, text, functions=("hello", "other")) as h:
        h.pool.behave["other"] = hangs
        await h.emit("in", {"n": 1}, id="e1")
        await h.until(lambda: [task.function for task in h.pool.running.values()] == ["other"], "one of two")
        await h.desk.runs(Query())
        (row,) = (await h.desk.events(Query()))["events"]
        assert row.keys() == {"event", "source", "trigger", "received_at", "bytes", "invocations"}
        assert {invocation["function"]: invocation["state"] for invocation in row["invocations"]} == {
            "hello": "settled",
            "other": "running",
        }
        assert row["invocations"][0].keys() == {"invocation", "binding", "function", "state", "end", "reason", "attempts", "due_at"}
        listed = await h.desk.events(Query(ids=("e1",)))
        assert listed == {"events": [row], "next": None}, "one EVENT keeps the listing's shape"
        (running,) = (await h.desk.events(Query(state="running")))["events"]
        assert sorted(map(str, running["invocations"])) == sorted(map(str, row["invocations"]))
        assert (await h.desk.events(Query(state="waiting")))["events"] == []
        assert (await h.desk.events(Query(ids=("e1",), payload=True)))["events"][0]["payload"] == {"n": 1}


async def test_the_same_id_of_two_triggers_is_two_events(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + '[triggers.too]\ntype = "probe"\nfunction = "hello"\n') as h:
        h.pool.behave["hello"] = lambda task: None if b"go" in task.event else Ran(outcome=Outcome.SUCCEEDED)
        await h.emit("in", {"go": 1}, id="e1")
        await h.emit("too", {"n": 1}, id="e1")
        await h.until(lambda: len(h.pool.tasks) == 2 and len(h.pool.running) == 1, "one of them to end")
        rows = (await h.desk.events(Query()))["events"]
        assert sorted((row["source"], len(row["invocations"])) for row in rows) == [("in", 1), ("too", 1)]
        (running,) = (await h.desk.events(Query(state="running")))["events"]
        assert (running["source"], len(running["invocations"])) == ("in", 1)


async def test_unknown_things_and_strange_cursors_are_refused(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        for asked in (
            h.desk.run("nope"), h.desk.events(Query(ids=("nope",))), h.desk.dead(Query(ids=("nope",))), h.desk.stats(Query(function="nope")),
            h.desk.logs(Query(function="nope"), 10, None), h.desk.redrive(Query(ids=("nope",))), h.desk.discard(Query()), h.desk.cancel(["nope"]),
            h.desk.pause("function", "nope"), h.desk.resume("trigger", "nope"),
        ):  # fmt: skip
            error = await refused(asked)
            assert (error.code, error.exit) == ("E-NOTFOUND", 1)
            assert error.message.endswith("."), error.message
        assert (await refused(h.desk.pause("worker", "hello"))).code == "E-USAGE"
        for cursor in ("!", "bm8", "W10", "WzFd"):
            assert (await refused(h.desk.events(Query(cursor=cursor)))).code == "E-USAGE"


async def test_stats_count_what_the_history_holds(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        await h.desk.invoke("hello", b"{}")
        await kill(h, "e1")
        await h.desk.pause("function", "hello")
        await h.emit("in")
        stats = await h.desk.stats(Query(), price=True)
        assert stats.keys() == {"since", "until", "functions"}
        (row,) = stats["functions"]
        assert row.keys() >= {
            "function", "runs", *map(str, Outcome), "throttled", "error_rate", "duration_ms", "queue_ms", "init_ms", "cold", "gb_seconds",
            "open", "dead", "price_usd",
        }  # fmt: skip
        assert (row["runs"], row["succeeded"], row["failed"], row["open"], row["dead"]) == (2, 1, 1, 1, 1)
        assert row["duration_ms"].keys() == {"p50", "p95", "p99", "max", "sum"}
        assert row["price_usd"] > 0


async def test_metrics_agree_with_the_records(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        await h.desk.invoke("hello", b"{}")
        await kill(h, "e1")
        text = (await h.desk.metrics()).decode()
        assert 'eventd_runs_total{function="hello",outcome="succeeded"} 1.0' in text
        assert 'eventd_runs_total{function="hello",outcome="failed"} 1.0' in text
        assert 'eventd_invocations_settled_total{end="dead",function="hello"} 1.0' in text
        assert 'eventd_events_accepted_total{trigger="in"} 1.0' in text
        assert 'eventd_trigger_up{trigger="in"} 1.0' in text
        assert len(await h.records()) == 2


async def test_health_is_a_loop_that_beats_and_a_journal_that_holds(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        assert await h.desk.health() == (True, "")
        h.clock.skip(10_000)
        healthy, why = await h.desk.health()
        assert not healthy
        assert "not moved" in why
        h.engine.watch()
        assert (await h.desk.health())[0]
        h.desk.failed = EventdError("E-STORAGE", "gone.")
        assert not (await h.desk.health())[0]
        assert not (await h.desk.readiness())[0]


# --- the dead ---


async def test_dead_has_every_field_and_redrive_runs_it_again(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        (invocation,) = await kill(h, "e1")
        (row,) = (await h.desk.dead(Query()))["dead"]
        assert row.keys() == {
            "invocation", "event", "source", "trigger", "binding", "function", "reason", "attempts", "first_at", "dead_at", "error_type",
            "error_message", "bytes",
        }  # fmt: skip
        assert await h.desk.redrive(Query(), dry_run=True) == {"redriven": 1, "invocations": [invocation]}
        assert (await h.desk.status())["journal"]["dead"] == 1
        assert await h.desk.redrive(Query(ids=(invocation,))) == {"redriven": 1, "invocations": [invocation]}
        await h.quiet()
        records = await h.records(invocation=invocation)
        assert [(record["attempt"], record["outcome"]) for record in records] == [(1, "succeeded"), (1, "failed")]
        assert (await h.desk.status())["journal"]["dead"] == 0
        assert (await h.desk.dead(Query()))["dead"] == []


async def test_selections(tmp_path: Path) -> None:
    text = TEXT.replace('function = "hello"', "", 1) + '[[bindings]]\ntrigger = "in"\nfunction = "hello"\n'
    text += '[[bindings]]\ntrigger = "in"\nfunction = "other"\n[functions.other]\nretry = { attempts = 1 }\n'
    async with house(tmp_path, text, functions=("hello", "other")) as h:
        h.pool.behave["other"] = fails()
        await kill(h, "e1", "e2")
        for query, count in (
            (Query(function="hello"), 2), (Query(trigger="in"), 4), (Query(reason="retries_exhausted"), 4), (Query(function="other"), 2), (Query(), 4)
        ):  # fmt: skip
            assert (await h.desk.redrive(query, dry_run=True))["redriven"] == count
        assert (await refused(h.desk.redrive(Query(trigger="nope")))).code == "E-NOTFOUND"
        assert (await refused(h.desk.redrive(Query(reason="quarantined")))).code == "E-NOTFOUND"
        assert (await h.desk.discard(Query(function="other")))["discarded"] == 2
        assert (await h.desk.status())["journal"]["dead"] == 2


async def test_one_unknown_id_and_nothing_is_changed(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        (invocation,) = await kill(h, "e1")
        for ask in (h.desk.redrive, h.desk.discard):
            error = await refused(ask(Query(ids=(invocation, "nope"))))
            assert error.code == "E-NOTFOUND"
            assert "nope" in error.message
        assert (await h.desk.status())["journal"]["dead"] == 1


async def test_a_redrive_asked_twice_at_once_runs_once(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        await kill(h, "e1", "e2", "e3")
        before = len(h.pool.tasks)
        slow(h.journal, "dead_seqs")
        results: list[Any] = []

        async def ask() -> None:
            try:
                results.append((await h.desk.redrive(Query()))["redriven"])
            except EventdError as error:
                results.append(error.code)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
        await h.quiet()
        assert sorted(map(str, results)) == ["3", "E-NOTFOUND", "E-NOTFOUND", "E-NOTFOUND"]
        assert len(h.pool.tasks) == before + 3
        assert h.engine.open == 0


async def test_discard_keeps_the_record_of_the_death(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        (invocation,) = await kill(h, "e1")
        assert await h.desk.discard(Query(ids=(invocation,))) == {"discarded": 1, "invocations": [invocation]}
        assert not h.tables.events
        (event,) = (await h.desk.events(Query(ids=("e1",))))["events"]
        assert (event["invocations"][0]["end"], event["invocations"][0]["reason"]) == ("dead", "retries_exhausted")
        assert (await h.desk.status())["journal"]["dead"] == 0
        assert (await h.emit("in", {"id": "e1"}, id="e1")).duplicate, "it is remembered all the same"


async def test_cancel_ends_what_waits_and_stops_what_runs(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + "concurrency = 1\n") as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in", id="running")
        await h.until(lambda: h.pool.running, "the run")
        await h.emit("in", id="waiting")
        events = (await h.desk.events(Query()))["events"]
        ids = [row["invocations"][0]["invocation"] for row in events]
        assert await h.desk.cancel([*ids, ids[0]]) == {"cancelled": 2, "invocations": ids}
        await h.quiet()
        assert len(h.pool.tasks) == 1
        assert [record["outcome"] for record in await h.records()] == ["cancelled"]
        assert {row["invocations"][0]["end"] for row in (await h.desk.events(Query()))["events"]} == {"cancelled"}
        assert (await refused(h.desk.cancel(ids))).code == "E-NOTFOUND"


async def test_a_cancel_asked_twice_at_once_counts_once(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        await h.desk.pause("function", "hello")
        await h.emit("in", id="e1")
        (row,) = (await h.desk.events(Query()))["events"]
        id = row["invocations"][0]["invocation"]
        slow(h.journal, "invocations")
        codes: list[str] = []

        async def ask() -> None:
            try:
                await h.desk.cancel([id])
                codes.append("done")
            except EventdError as error:
                codes.append(error.code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        assert sorted(codes) == ["E-NOTFOUND", "done"]
        assert h.engine.open == 0


# --- drain ---


async def test_a_drain_waits_for_what_runs_and_is_undone(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + "concurrency = 1\n") as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in", {"n": 1})
        await h.until(lambda: h.pool.running, "the run")
        await h.emit("in", {"n": 2})
        answers: list[Any] = []

        async def drain() -> None:
            answers.append(await h.desk.drain())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            await h.until(lambda: h.desk.state == "draining", "the drain to begin")
            assert h.probe.ended == ["in"]
            assert (await refused(h.desk.invoke("hello", b"{}"))).code == "E-DRAINING"
            assert (await refused(h.desk.invoke("hello", b"{}", asynchronous=True))).code == "E-DRAINING"
            assert not (await h.desk.readiness())[0]
            h.pool.finish_all()
        assert answers == [{"state": "drained", "running": 0, "open": 1}]
        status = await h.desk.status()
        assert status["state"] == "drained"
        assert h.trigger(status, "in")["state"] == "paused"
        assert len(h.pool.tasks) == 1, "what waits goes on waiting"
        h.pool.behave.clear()
        answer = await h.desk.drain(undo=True)
        assert answer.keys() == {"state", "running", "open"}
        await h.quiet()
        assert len(h.pool.tasks) == 2
        await h.until(lambda: h.sources.state("in") == ("up", ""), "the trigger")
        await h.emit("in", {"n": 3})


async def test_a_drain_of_the_queue_waits_for_all_open_work(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + "concurrency = 1\n") as h:
        for n in range(5):
            await h.emit("in", {"n": n})
        answer = await h.desk.drain(queue=True)
        assert answer == {"state": "drained", "running": 0, "open": 0}
        assert len(h.pool.tasks) == 5


async def test_a_drain_that_takes_too_long_is_told_and_ends_by_itself_later(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in")
        await h.until(lambda: h.pool.running, "the run")
        error = await refused(h.desk.drain(timeout_ms=20))
        assert error.exit == 1
        assert "1 run" in error.message
        assert h.desk.state == "draining"
        h.pool.finish_all()
        await h.until(lambda: h.desk.state == "drained", "the drain")
        assert (await h.desk.drain())["state"] == "drained"


async def test_a_drain_does_not_outlive_its_undoing(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in")
        await h.until(lambda: h.pool.running, "the run")
        found: list[str] = []

        async def drain() -> None:
            found.append((await refused(h.desk.drain())).code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            await h.until(lambda: h.desk.state == "draining", "the drain to begin")
            await h.desk.drain(undo=True)
            h.pool.finish_all()
        assert found == ["E-CONFLICT"]
        assert h.desk.state == "ready"
        await h.until(lambda: h.sources.state("in") == ("up", ""), "the trigger")
        await h.emit("in")


async def test_a_daemon_that_stops_is_not_drained_or_undrained(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.desk.stopping, h.desk.phase = True, "draining"
        for undo in (True, False):
            assert (await refused(h.desk.drain(undo=undo))).code == "E-DRAINING"
        assert h.desk.state == "draining"


async def test_a_trigger_that_answers_stays_open_during_a_drain(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT.replace('"probe"', '"steady"')) as h:
        await h.desk.drain()
        assert h.probe.ended == []
        with pytest.raises(EventdError) as found:
            await h.emit("in")
        assert found.value.code == "E-DRAINING"
        await h.desk.drain(undo=True)
        await asyncio.sleep(0.02)
        assert h.probe.begun == ["in"]
