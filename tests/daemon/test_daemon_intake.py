"""The durable lane's entrance: accepted, duplicate, conflicting, filtered, refused events; batches; the notices owed to a trigger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import Probe, fails, hangs, house
from msgspec import Raw

from eventd.core import signals as s
from eventd.daemon.reload import rules_of
from eventd.errors import Conflict, EventdError, Overloaded
from eventd.model import Outcome
from eventd.ports import Query, Ran
from eventd.sdk import Batching, Event, Receipt, Settlement, TriggerPlugin

pytestmark = pytest.mark.anyio

ONE = """
[triggers.in]
type = "probe"
function = "hello"
"""
FAN_OUT = """
[triggers.in]
type = "probe"

[[bindings]]
trigger = "in"
function = "hello"
filter = { kind = ["a"] }

[[bindings]]
trigger = "in"
function = "other"
filter = { n = [{ numeric = [">", 5] }] }

[[bindings]]
trigger = "in"
function = "other"
name = "all"
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


async def test_an_accepted_event_runs_once_and_leaves_a_record(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        receipt = await h.emit("in", {"n": 1}, id="e1")
        assert receipt == Receipt("e1", False)
        await h.quiet()
        (record,) = await h.records()
        assert (record["event"], record["source"], record["trigger"], record["binding"]) == ("e1", "in", "in", "in/hello")
        assert (record["lane"], record["attempt"], record["outcome"]) == ("durable", 1, "succeeded")
        assert h.pool.events("hello") == [b'{"n":1}']
        assert h.counters.accepted_by == {"in": 1}
        assert not h.tables.events, "the payload of a settled event is deleted"


async def test_the_receipt_comes_after_the_commit(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        told: list[Any] = []
        h.site("in").offer(Event(data={}, id="e1"), told.append)
        assert told == []
        assert not h.tables.events
        await h.until(lambda: told, "the receipt")
        assert h.tables.dedup


async def test_a_duplicate_runs_nothing_and_writes_the_ledger(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        await h.emit("in", {"n": 1}, id="e1", state={b"k": b"1"})
        assert await h.emit("in", {"n": 1}, id="e1", state={b"k": b"2"}) == Receipt("e1", True)
        await h.quiet()
        assert await h.site("in").state.get(b"k") == b"2"
        assert len(await h.records()) == 1
        assert (h.counters.accepted_by, h.counters.duplicates_by) == ({"in": 1}, {"in": 1})


async def test_the_same_id_with_another_body_is_a_conflict_and_writes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        await h.emit("in", {"n": 1}, id="e1")
        with pytest.raises(Conflict, match=r"e1.*another body"):
            await h.emit("in", {"n": 2}, id="e1", state={b"k": b"x"})
        assert await h.site("in").state.get(b"k") is None


async def test_an_id_of_another_trigger_is_another_event(tmp_path: Path) -> None:
    async with house(tmp_path, ONE + ONE.replace("triggers.in", "triggers.too")) as h:
        assert not (await h.emit("in", id="e1")).duplicate
        assert not (await h.emit("too", id="e1")).duplicate


async def test_over_the_limit_nothing_is_stored_and_the_source_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.journal.overloaded = "the disk is full"
        with pytest.raises(Overloaded, match="disk is full"):
            await h.emit("in", id="e1", state={b"k": b"x"})
        h.journal.overloaded = ""
        assert await h.site("in").state.get(b"k") is None
        assert not (await h.emit("in", id="e1")).duplicate, "what was refused is not remembered"
        await h.quiet()
        assert len(await h.records()) == 1


async def test_filters_choose_bindings_and_count_what_they_do_not_take(tmp_path: Path) -> None:
    async with house(tmp_path, FAN_OUT, functions=("hello", "other")) as h:
        await h.emit("in", {"kind": "a", "n": 1})
        await h.emit("in", {"kind": "b", "n": 9})
        await h.emit("in", {"kind": "b", "n": 0})
        await h.quiet()
        assert h.pool.events("hello") == [b'{"kind":"a","n":1}']
        assert sorted(record["binding"] for record in await h.records()) == ["all", "all", "all", "in/hello", "in/other"]
        assert h.counters.filtered_by == {"in/hello": 2, "in/other": 2}
        assert h.counters.accepted_by == {"in": 3}


async def test_an_event_that_nobody_takes_is_accepted_and_remembered(tmp_path: Path) -> None:
    text = ONE + "filter = { never = [1] }\n"
    async with house(tmp_path, text) as h:
        assert await h.emit("in", id="e1") == Receipt("e1", False)
        assert await h.emit("in", id="e1") == Receipt("e1", True)
        assert h.engine.open == 0
        assert h.pool.tasks == []
        assert h.counters.filtered_by == {"in/hello": 1}


@pytest.mark.parametrize(
    "data", [{"x": "y" * (6 * 1024**2)}, Raw(b'"' + b"x" * (6 * 1024**2) + b'"')], ids=["encoded", "raw"]
)  # fmt: skip
async def test_too_much_data_is_refused(tmp_path: Path, data: Any) -> None:
    async with house(tmp_path, ONE) as h:
        with pytest.raises(EventdError, match="over the limit") as refused:
            await h.emit("in", data)
        assert refused.value.code == "E-USAGE"
        assert not h.tables.events


async def test_data_that_is_no_json_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, ONE + 'filter = { a = ["b"] }\n') as h:
        for data in (object(), {"x": "\udc80"}, Raw(b"{"), Raw(b"[" * 100_000 + b"]" * 100_000)):
            with pytest.raises(EventdError, match="not JSON") as refused:
                await h.emit("in", data)
            assert refused.value.code == "E-USAGE"


async def test_a_long_id_becomes_its_digest(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        receipt = await h.emit("in", id="x" * 257)
        assert len(receipt.event) == 64
        assert (await h.emit("in", id="x" * 257)).duplicate


async def test_an_event_without_an_id_is_never_a_duplicate(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        first, second = await h.emit("in", {}), await h.emit("in", {})
        assert first.event != second.event
        assert not second.duplicate


async def test_events_of_a_closed_intake_are_refused(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.intake.open = False
        with pytest.raises(EventdError) as refused:
            await h.emit("in")
        assert refused.value.code == "E-DRAINING"


async def test_a_failing_event_is_retried_and_dies_with_a_record_for_each_attempt(tmp_path: Path) -> None:
    text = ONE + '[functions.hello]\nretry = { attempts = 3, waits = ["1m", "2m"] }\n'
    async with house(tmp_path, text) as h:
        h.pool.behave["hello"] = fails("no such order")
        await h.emit("in", id="e1")
        for done, wait in ((1, 60_000), (2, 120_000)):
            await h.until(lambda done=done: len(h.pool.tasks) == done and not h.pool.running, f"attempt {done}")
            await h.skip(wait - 2_000)
            assert len(h.pool.tasks) == done, "it does not run before its time"
            await h.skip(2_001)
        await h.until(lambda: len(h.pool.tasks) == 3, "the last attempt")
        await h.quiet()
        records = await h.records()
        assert sorted(record["attempt"] for record in records) == [1, 2, 3]
        assert len({record["invocation"] for record in records}) == 1, "the request id stays the same"
        (dead,) = (await h.desk.dead(Query()))["dead"]
        assert (dead["reason"], dead["attempts"], dead["error_type"]) == ("retries_exhausted", 3, "ValueError")
        assert dead["error_message"] == "no such order"


async def test_a_batch_is_one_run_over_several_events(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        plugin = h.sources.plugins["probe"]
        batching = {"probe": TriggerPlugin("probe", plugin.settings, plugin.run, batching=lambda settings: Batching(3, 60_000))}
        h.engine.tell(s.Configured(rules_of(h.reloader.settings, batching)))
        for n in range(3):
            await h.emit("in", {"Records": [{"n": n}], "first": n})
        await h.quiet()
        (record,) = await h.records()
        assert record["batch"] == 3
        assert record["invocation"] == record["run"], "the request id of a batch is the run's own"
        joined = json.loads(h.pool.tasks[0].event)
        assert sorted(entry["n"] for entry in joined["Records"]) == [0, 1, 2]


async def test_a_batch_with_an_event_that_is_no_json_fails_and_frees_its_slot(tmp_path: Path) -> None:
    async with house(tmp_path, ONE + "[functions.hello]\nretry = { attempts = 1 }\n") as h:
        plugin = h.sources.plugins["probe"]
        batching = {"probe": TriggerPlugin("probe", plugin.settings, plugin.run, batching=lambda settings: Batching(2, 60_000))}
        h.engine.tell(s.Configured(rules_of(h.reloader.settings, batching)))
        await h.emit("in", Raw(b"{broken"))
        await h.emit("in", {"Records": []})
        await h.quiet()
        assert h.engine.state.running == 0
        (record,) = await h.records()
        assert (record["outcome"], record["error_type"]) == ("failed", "Eventd.BadEvent")


async def test_settlements_are_repeated_until_they_are_acknowledged(tmp_path: Path) -> None:
    seen: list[Settlement] = []
    acknowledge = False

    async def play(site: Any, settings: Any) -> None:
        site.ready()
        async for settlement in site.settlements():
            seen.append(settlement)
            if acknowledge:
                await site.acknowledge(settlement, state={b"done": settlement.event.encode()})

    probe = Probe()
    probe.play["in"] = play
    async with house(tmp_path, ONE, probe=probe) as h:
        await h.emit("in", {}, id="e1", key="k1", notify=True)
        await h.until(lambda: seen, "the settlement")
        assert (seen[0].event, seen[0].key, seen[0].ok) == ("e1", "k1", True)
        assert (await h.desk.status())["journal"]["owed"] == 1
        acknowledge = True
        await h.sources.close("in")
        h.sources.open("in")
        await h.until(lambda: not h.tables.owing, "the acknowledgement")
        assert [settlement.owed for settlement in seen] == [seen[0].owed] * 2
        await h.until(lambda: h.sources.owed == 0, "the count to fall")
        assert (await h.desk.status())["journal"]["owed"] == 0
        assert await h.site("in").state.get(b"done") == b"e1"


async def test_settlements_owed_from_before_a_restart_come_again(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = lambda task: Ran(outcome=Outcome.SUCCEEDED)
        await h.emit("in", {}, id="e1", notify=True)
        await h.until(lambda: h.tables.owing, "a debt")
        tables = h.tables
    async with house(tmp_path, ONE, tables=tables) as again:
        assert (await again.desk.status())["journal"]["owed"] == 1
        with anyio.fail_after(5):
            settlement = await anext(aiter(again.site("in").settlements()))
        assert settlement.event == "e1"


async def test_a_run_that_was_going_on_at_a_crash_is_lost_and_runs_again_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = hangs
        await h.emit("in", {"n": 1}, id="e1")
        await h.until(lambda: h.pool.running, "the run")
        tables = h.tables
        h.journal.crash()
    async with house(tmp_path, ONE, tables=tables) as again:
        await again.quiet()
        records = sorted(await again.records(), key=lambda record: record["attempt"])
        assert [(record["attempt"], record["outcome"]) for record in records] == [(1, "lost"), (2, "succeeded")]
        assert records[0]["run"] != records[1]["run"]
        assert records[0]["duration_ms"] == 0


async def test_ledger_items_page_in_key_order(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        state = h.site("in").state
        await state.put({f"a{n:04}".encode(): str(n).encode() for n in range(1_100)})
        await state.put({b"b": b"x", b"a0003": None})
        found = [key async for key, _ in state.items(b"a")]
        assert len(found) == 1_099
        assert found == sorted(found)
