"""The direct lane: answers, refusals, callers who go away, and callbacks that raise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import House, fails, hangs, house
from msgspec import Raw

from eventd.core import signals as s
from eventd.core.facts import Began
from eventd.model import Outcome, Refusal
from eventd.sdk import Answer, Call

pytestmark = pytest.mark.anyio

ONE = """
[triggers.in]
type = "probe"
function = "hello"

[functions.hello]
concurrency = 1
wait = "0s"
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


async def _busy(h: House) -> None:
    """Fill the function's only slot."""
    h.pool.behave["hello"] = hangs
    h.site("in").submit(Call(data={"first": True}), lambda answer: None)
    await h.until(lambda: h.pool.running, "a run that goes on")


async def test_a_call_is_answered_with_what_the_handler_said(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        answer = await h.site("in").call(Call(data={"n": 1}, invocation="inv-1"))
        assert (answer.invocation, answer.outcome, answer.payload) == ("inv-1", Outcome.SUCCEEDED, b'{"n":1}')
        (record,) = await h.records()
        assert (record["lane"], record["invocation"], record["trigger"], record["binding"]) == ("direct", "inv-1", "in", "in/hello")
        assert not h.tables.dedup, "a direct call writes no event"
        assert h.tables.next_event == 1


async def test_a_failing_handler_is_an_answer(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = fails("no", "KeyError")
        answer = await h.site("in").call(Call(data={}))
        assert (answer.outcome, answer.error_type, answer.error_message) == (Outcome.FAILED, "KeyError", "no")
        assert (await h.records())[0]["attempt"] == 1
        assert h.engine.open == 0, "a direct call is not retried"


async def test_a_filter_applies_to_the_bound_function_only(tmp_path: Path) -> None:
    text = ONE.replace('function = "hello"', 'function = "hello"\nfilter = { kind = ["a"] }', 1)
    async with house(tmp_path, text) as h:
        assert (await h.site("in").call(Call(data={"kind": "b"}))).filtered
        assert (await h.site("in").call(Call(data={"kind": "b"}, function="hello"))).outcome is Outcome.SUCCEEDED
        assert (await h.site("in").call(Call(data=Raw(b'{"kind":"a"}')))).outcome is Outcome.SUCCEEDED
        assert h.counters.filtered_by == {"in/hello": 1}


@pytest.mark.parametrize("data", [object(), Raw(b'{"kind":'), {"x": "y" * (6 * 1024**2)}], ids=["object", "broken", "large"])
async def test_data_that_cannot_be_sent_is_an_answer_without_an_outcome(tmp_path: Path, data: Any) -> None:
    text = ONE.replace('function = "hello"', 'function = "hello"\nfilter = { kind = ["a"] }', 1)
    async with house(tmp_path, text) as h:
        answer = await h.site("in").call(Call(data=data))
        assert (answer.outcome, answer.error_type) == (None, "E-USAGE")
        assert h.pool.tasks == []


async def test_a_full_function_refuses_with_lambdas_reason(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        await _busy(h)
        answer = await h.site("in").call(Call(data={}))
        assert answer.refusal is Refusal.CONCURRENCY
        assert h.counters.functions["hello"].throttled == 1
        h.pool.finish_all()
        await h.until(lambda: not h.engine.state.running, "the slot")
        assert len(await h.records()) == 1, "a refusal is no run"


async def test_a_call_waits_for_a_slot_as_long_as_the_function_says(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace('wait = "0s"', 'wait = "10s"')) as h:
        await _busy(h)
        answers: list[Answer] = []
        h.site("in").submit(Call(data={"second": True}), answers.append)
        await asyncio.sleep(0)
        assert len(h.pool.tasks) == 1
        h.pool.behave.clear()
        h.pool.finish_all()
        await h.until(lambda: answers, "the answer")
        assert answers[0].payload == b'{"second":true}'
        assert h.pool.most == 1


async def test_a_call_that_waited_too_long_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace('wait = "0s"', 'wait = "30s"')) as h:
        await _busy(h)
        answers: list[Answer] = []
        h.site("in").submit(Call(data={}), answers.append)
        await h.skip(30_001)
        await h.until(lambda: answers, "the refusal")
        assert answers[0].refusal is Refusal.CONCURRENCY


async def test_a_waiting_call_whose_caller_has_gone_never_runs(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace('wait = "0s"', 'wait = "30s"')) as h:
        await _busy(h)
        answers: list[Answer] = []
        gone = h.site("in").submit(Call(data={"second": True}), answers.append)
        gone()
        gone()
        h.pool.finish_all()
        await h.until(lambda: not h.engine.state.running, "the slot")
        await asyncio.sleep(0.01)
        assert (len(h.pool.tasks), answers) == (1, [])


async def test_a_cancelled_caller_gives_its_place_up(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace('wait = "0s"', 'wait = "30s"')) as h:
        await _busy(h)
        with anyio.move_on_after(0.05):
            await h.site("in").call(Call(data={"second": True}))
        h.pool.finish_all()
        await h.until(lambda: not h.engine.state.running, "the slot")
        assert len(h.pool.tasks) == 1


async def test_a_run_goes_on_when_its_caller_has_gone(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.pool.behave["hello"] = hangs
        gone = h.site("in").submit(Call(data={}), lambda answer: None)
        await h.until(lambda: h.pool.running, "the run")
        gone()
        h.pool.finish_all()
        await h.until(lambda: not h.engine.state.running, "its end")
        assert [record["outcome"] for record in await h.records()] == ["succeeded"]


async def test_a_caller_that_raises_costs_neither_the_slot_nor_the_record(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        asyncio.get_running_loop().set_exception_handler(h.mistakes.on_loop)

        def raises(answer: Answer) -> None:
            raise RuntimeError("the client has gone")

        h.site("in").submit(Call(data={}), raises)
        await h.until(lambda: h.pool.tasks and not h.engine.state.running, "the end of the run")
        assert h.mistakes.count == 1
        assert [record["outcome"] for record in await h.records()] == ["succeeded"]
        assert (await h.site("in").call(Call(data={}))).outcome is Outcome.SUCCEEDED
        await _busy(h)
        h.site("in").submit(Call(data={}), raises)  # refused, and it raises too
        h.pool.finish_all()
        await h.until(lambda: not h.engine.state.running, "the slot")


@pytest.mark.parametrize(("state", "refusal"), [("paused", Refusal.PAUSED), ("building", Refusal.BUILDING), ("draining", Refusal.DRAINING)])
async def test_refusals_by_state(tmp_path: Path, state: str, refusal: Refusal) -> None:
    async with house(tmp_path, ONE) as h:
        if state == "paused":
            await h.desk.pause("function", "hello")
        elif state == "building":
            h.engine.tell(s.Available("hello", False))
        else:
            h.engine.tell(s.StartsAllowed(False, False))
        assert (await h.site("in").call(Call(data={}))).refusal is refusal
        assert h.pool.tasks == []


async def test_unknown_functions_and_zero_concurrency(tmp_path: Path) -> None:
    async with house(tmp_path, ONE.replace("concurrency = 1", "concurrency = 0")) as h:
        assert (await h.site("in").call(Call(data={}, function="nobody"))).refusal is Refusal.UNKNOWN
        assert (await h.site("in").call(Call(data={}))).refusal is Refusal.CONCURRENCY


async def test_a_rate_refuses_with_its_own_reason(tmp_path: Path) -> None:
    async with house(tmp_path, ONE + 'rate = "2/m"\n') as h:
        answers = [await h.site("in").call(Call(data={})) for _ in range(3)]
        assert [answer.refusal for answer in answers] == [None, None, Refusal.RATE]
        h.clock.skip(60_001)
        assert (await h.site("in").call(Call(data={}))).refusal is None


async def test_a_trigger_without_a_binding_is_told_so(tmp_path: Path) -> None:
    async with house(tmp_path, '[triggers.in]\ntype = "probe"\n') as h:
        assert (await h.site("in").call(Call(data={}))).refusal is Refusal.UNKNOWN


async def test_interrupting_reaches_runs_whose_beginning_is_not_durable_yet(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        began: list[Any] = []
        append = h.journal.append
        h.journal.append = lambda facts, done: (
            (began if facts and isinstance(facts[0], Began) else []).append((facts, done))
            or (None if facts and isinstance(facts[0], Began) else append(facts, done))
        )
        await h.emit("in", id="e1")
        await h.until(lambda: began, "the decision to start")
        h.engine.tell(s.StartsAllowed(False, False))
        h.engine.interrupt_all()
        h.journal.append = append
        for facts, done in began:
            append(facts, done)
        await h.until(lambda: not h.engine.state.running, "the slot")
        assert h.pool.tasks == []
        (kept,) = h.tables.kept.values()
        assert (kept.attempts, kept.state) == (0, "waiting"), "an interruption costs no attempt"
