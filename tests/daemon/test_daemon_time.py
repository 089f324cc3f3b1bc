"""Clocks that are set, storage that fails, and records on their way to the run history."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import fails, hangs, house, slow

from eventd.daemon import outbox
from eventd.errors import EventdError
from eventd.model import Outcome
from eventd.ports import Query, Ran

pytestmark = pytest.mark.anyio

TEXT = """
[triggers.in]
type = "probe"
function = "hello"
"""
YEAR_MS = 365 * 86_400_000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


async def test_a_clock_set_back_a_year_delays_a_retry_by_no_more_than_its_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, TEXT + '[functions.hello]\nretry = { attempts = 2, waits = ["1m"] }\n') as h:
        h.pool.behave["hello"] = fails()
        await h.emit("in")
        await h.until(lambda: h.pool.tasks and not h.pool.running and h.tables.kept, "the first attempt")
        h.clock.set_by(-YEAR_MS)
        h.engine.watch()
        assert "W-CLOCK" in caplog.text
        await h.skip(58_000)
        assert len(h.pool.tasks) == 1
        await h.skip(3_000)
        await h.until(lambda: len(h.pool.tasks) == 2, "the retry a minute later, not a year later")


async def test_a_clock_set_forward_runs_what_is_due_now(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT + '[functions.hello]\nretry = { attempts = 2, waits = ["1h"] }\n') as h:
        h.pool.behave["hello"] = fails()
        await h.emit("in")
        await h.until(lambda: h.pool.tasks and not h.pool.running, "the first attempt")
        await h.until(lambda: any(kept.state == "retrying" for kept in h.tables.kept.values()), "its retry")
        h.clock.set_by(3_600_000)
        h.engine.watch()
        await h.until(lambda: len(h.pool.tasks) == 2, "the retry")


async def test_a_small_step_is_not_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, TEXT) as h:
        h.clock.set_by(900)
        h.engine.watch()
        assert "W-CLOCK" not in caplog.text


async def test_the_timer_is_reckoned_again_after_a_step(tmp_path: Path) -> None:
    """A retry in 20 s, the clock is set forward by 19.9 s: it runs in 0.1 s and not in 20 s."""
    async with house(tmp_path, TEXT + '[functions.hello]\nretry = { attempts = 2, waits = ["20s"] }\n') as h:
        h.pool.behave["hello"] = fails()
        await h.emit("in")
        await h.until(lambda: any(kept.state == "retrying" for kept in h.tables.kept.values()), "the retry")
        h.clock.set_by(19_900)
        h.engine.watch()
        with anyio.fail_after(5):
            await h.until(lambda: len(h.pool.tasks) == 2, "the retry")


async def test_durations_do_not_follow_the_wall_clock(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        h.pool.behave["hello"] = lambda task: Ran(outcome=Outcome.SUCCEEDED, duration_ms=5.0)
        await h.emit("in")
        h.clock.set_by(-YEAR_MS)
        await h.quiet()
        (record,) = await h.records()
        assert record["queue_ms"] < 5_000
        assert record["duration_ms"] == 5.0


async def test_when_storage_fails_nothing_more_is_acknowledged(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        told: list[Any] = []
        from eventd.sdk import Event

        h.site("in").offer(Event(data={}, id="e1"), told.append)
        h.journal.fail(EventdError("E-STORAGE", "the disk answered with an I/O error.", "Look at it."))
        h.site("in").offer(Event(data={}, id="e2"), told.append)
        await asyncio.sleep(0.02)
        assert told == []
        assert [error.code for error in h.failures] == ["E-STORAGE"]
        assert h.pool.tasks == []


# --- the outbox ---


async def test_what_has_ended_goes_to_the_history_and_leaves_the_journal(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.outbox.run)
            for n in range(20):
                await h.emit("in", {"n": n}, id=f"e{n}")
            await h.quiet()
            await h.until(lambda: not h.tables.outgoing, "the copies")
            tasks.cancel_scope.cancel()
        assert len(await h.records()) == 20


async def test_copying_twice_changes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, TEXT) as h:
        await h.emit("in")
        await h.quiet()
        rows = await h.journal.outbox(100)
        await h.outbox.flush()
        await h.desk.history.store(rows)
        assert len(await h.records()) == 1
        assert len((await h.desk.events(Query()))["events"]) == 1


async def test_dead_events_expire_with_a_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path, '[history]\ndead = "1d"\n' + TEXT + "[functions.hello]\nretry = { attempts = 1 }\n") as h:
        h.pool.behave["hello"] = fails()
        await h.emit("in", {"n": 1}, id="e1")
        await h.quiet()
        assert await h.outbox.expire() == 0
        h.clock.skip(86_400_000 + 1_000)
        assert await h.outbox.expire() == 1
        status = await h.desk.status()
        assert (status["journal"]["dead"], h.tables.events) == (0, {})
        (event,) = (await h.desk.events(Query(ids=("e1",))))["events"]
        assert event["invocations"][0]["end"] == "dead"
        assert "1 dead invocations have expired" in caplog.text


async def test_an_expiry_and_a_redrive_at_once_agree(tmp_path: Path) -> None:
    async with house(tmp_path, '[history]\ndead = "1d"\n' + TEXT + "[functions.hello]\nretry = { attempts = 1 }\n") as h:
        h.pool.behave["hello"] = fails()
        for n in range(5):
            await h.emit("in", id=f"e{n}")
        await h.quiet()
        h.clock.skip(86_400_000 + 1_000)
        h.pool.behave.clear()
        slow(h.journal, "dead_seqs")
        slow(h.journal, "expired_dead")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.desk.redrive, Query())
            tasks.start_soon(h.outbox.expire)
        await h.quiet()
        assert h.engine.state.functions["hello"].dead == 0
        assert h.engine.open == 0
        assert len(h.pool.tasks) == 10


async def test_the_pump_goes_on_after_a_mistake_and_ends_when_storage_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    monkeypatch.setattr(outbox, "PAUSE_S", 0.01)
    async with house(tmp_path, TEXT) as h:
        store = h.desk.history.store
        errors: list[Exception] = [
            RuntimeError("a mistake"),
            EventdError("E-DRAINING", "closed."),
            EventdError("E-OVERLOADED", "the disk is full."),
        ]

        async def failing(rows: Any) -> None:
            if errors:
                raise errors.pop(0)
            await store(rows)

        h.desk.history.store = failing  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.outbox.run)
            await h.emit("in")
            await h.quiet()
            await h.until(lambda: len(errors) < 2, "two failures")
            while errors:
                await h.emit("in")
                await asyncio.sleep(0.01)
            await h.emit("in")
            await h.until(lambda: not h.tables.outgoing, "the copies")
            assert h.mistakes.count == 1
            tasks.cancel_scope.cancel()
        h.pool.behave["hello"] = hangs
        h.journal.fail(EventdError("E-STORAGE", "gone."))
        with pytest.raises(EventdError) as ended:
            await h.outbox.run()
        assert ended.value.code == "E-STORAGE"


async def test_the_log_says_once_that_the_journal_fills(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PAUSE_S", 0.001)
    async with house(tmp_path, '[journal]\nlimit = "1MiB"\n' + TEXT) as h:
        await h.desk.pause("function", "hello")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.outbox.run)
            await h.emit("in", "x" * 900_000, id="e1")
            await h.desk.pause("binding", "in/hello")
            await h.until(lambda: "W-JOURNAL" in caplog.text, "the warning")
            await h.desk.resume("binding", "in/hello")
            await asyncio.sleep(0.02)
            tasks.cancel_scope.cancel()
        assert caplog.text.count("W-JOURNAL") == 1
