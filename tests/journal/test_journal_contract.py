"""The journal's contract, held against SQLite and memory alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from journal_harness import DAY, SETTINGS, Handle, accepted, began, dead, ended, event, inv, record, redriven, retrying, succeeded
from msgspec import structs

from eventd.core.facts import Accepted, Acknowledged, Copied, Discarded, Expired, LedgerWrite, LedgerWritten, Moved, PauseSet
from eventd.errors import Conflict, EventdError, Overloaded
from eventd.model import End, Reason, State
from eventd.ports import OwedRow, Query, QueueCount, Stored

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture(params=["sqlite", "memory"])
async def handle(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Handle]:
    made = await Handle(request.param, tmp_path / "state").open()
    yield made
    assert made.failures == []
    await made.j.aclose()


async def test_an_acceptance_is_counted_paged_and_read_back(handle: Handle) -> None:
    assert await handle.accept(accepted(1, "f", "g", data=b"[1]", due=5)) == Stored("event-1", False)
    boot = await handle.j.load()
    assert set(boot.queues) == {QueueCount("t/f", "f", 1, 5), QueueCount("t/g", "g", 1, 5)}
    assert (boot.next_event, boot.next_invocation, boot.running, dict(boot.dead)) == (2, 12, (), {})
    assert await handle.page() == ([inv(10, 1, due=5)], None)
    assert await handle.payload(1) == b"[1]"


async def test_every_field_of_an_invocation_survives_a_restart(handle: Handle) -> None:
    row = structs.replace(
        inv(10, 1, "f"), attempts=2, lost=1, key="käse", serial=True, solo=True, first_at=7, error_type="E", error_message="m"
    )
    direct = inv(11, 1, "g", binding=None)
    whole = event(1, key="k", trace="Root=1", notify=True)
    await handle.accept(Accepted(whole, (row, direct)))
    await handle.reopen()
    assert await handle.event(1) == whole
    assert await handle.page() == ([row], None)
    assert await handle.page("g", binding=None) == ([direct], None)
    assert await handle.page("g") == ([], None)


async def test_a_run_that_began_is_lost_after_a_restart_with_its_attempt_counted(handle: Handle) -> None:
    await handle.accept(accepted(1))
    await handle.append(began(10, run="r9", at=2_500))
    assert await handle.page() == ([], None)
    await handle.reopen()
    boot = await handle.j.load()
    assert boot.queues == ()
    assert boot.running == ((structs.replace(inv(10, 1), state=State.RUNNING, attempts=1, first_at=2_500), "r9", 2_500),)
    await handle.append(ended(retrying(10, 9_000)))
    assert await handle.page() == ([structs.replace(inv(10, 1, due=9_000), state=State.RETRYING, attempts=1, first_at=2_500)], None)
    assert (await handle.j.load()).running == ()


async def test_success_forgets_the_payload_and_leaves_record_and_end_in_the_outbox(handle: Handle) -> None:
    await handle.accept(accepted(1, data=b"12345"))
    await handle.append(began(10))
    await handle.append(ended(succeeded(10)))
    (row,) = await handle.j.outbox(10)
    assert row.record == record()
    assert row.ended == {
        "event": "event-1", "source": "src", "trigger": "t", "received_at": 1_000, "bytes": 5, "invocation": "inv-10", "binding": "t/f",
        "function": "f", "end": "succeeded", "reason": None, "attempts": 1, "settled_at": 3_000,
    }  # fmt: skip
    assert (await handle.j.events(Query())).rows == []
    assert await handle.j.invocations(["inv-10"]) == []
    boot = await handle.j.load()
    assert (boot.queues, boot.next_event, boot.next_invocation) == ((), 2, 11)


async def test_numbers_are_never_used_again(handle: Handle) -> None:
    await handle.accept(accepted(7, dedup=False))
    await handle.append(ended(succeeded(70)))
    await handle.append(Copied((await handle.j.outbox(1))[0].seq))
    await handle.reopen()
    boot = await handle.j.load()
    assert (boot.next_event, boot.next_invocation) == (8, 71)
    await handle.append(ended(run="r2"))
    assert [row.seq for row in await handle.j.outbox(10)] == [2]


async def test_pages_come_in_order_of_due_time_and_tell_what_is_next(handle: Handle) -> None:
    for seq, due in ((1, 30), (2, 10), (3, 20), (4, 10), (5, 99)):
        await handle.accept(accepted(seq, due=due))
    rows, due = await handle.page(upto=20, limit=2)
    assert ([(row.due_at, row.seq) for row in rows], due) == ([(10, 20), (10, 40)], 20)
    rows, due = await handle.page(after=(10, 40), upto=20)
    assert ([(row.due_at, row.seq) for row in rows], due) == ([(20, 30)], 30)
    assert await handle.page(after=(20, 30), upto=20) == ([], 30)
    assert await handle.page(after=(99, 50), upto=500) == ([], None)
    assert (await handle.j.load()).queues == (QueueCount("t/f", "f", 5, 10),)


async def test_held_rows_are_counted_and_not_paged(handle: Handle) -> None:
    await handle.accept(accepted(1))
    await handle.append(ended(Moved(10, State.HELD, 0, 0, 5, 6), run=None))
    assert (await handle.j.load()).queues == (QueueCount("t/f", "f", 1, None),)
    assert await handle.page() == ([], None)
    assert [row.seq for row in await handle.j.invocations(["inv-10"])] == [10]
    await handle.append(ended(Moved(10, State.WAITING, 0, 0, 5, 6), run=None))
    assert await handle.seqs() == [10]


# --- duplicates ---


async def test_a_duplicate_writes_only_its_ledger(handle: Handle) -> None:
    await handle.accept(accepted(1))
    again = Accepted(event(2, id="event-1"), (inv(20, 2),), (LedgerWrite(b"k", b"v"),))
    assert await handle.accept(again) == Stored("event-1", True)
    assert await handle.j.ledger_get("t", b"k") == b"v"
    assert await handle.seqs() == [10]
    await handle.append(ended(succeeded(10)))
    await handle.reopen()
    assert await handle.accept(structs.replace(again, event=event(3, id="event-1"))) == Stored("event-1", True)
    assert await handle.seqs() == []


async def test_a_duplicate_in_the_same_commit_is_one(handle: Handle) -> None:
    answers: list[Any] = []
    for seq in (1, 2, 3):
        handle.j.accept(Accepted(event(seq, id="same"), (inv(seq * 10, seq),)), answers.append)
    await handle.append(LedgerWritten("t", ()))
    assert answers == [Stored("same", False), Stored("same", True), Stored("same", True)]
    assert await handle.seqs() == [10]


async def test_another_body_under_the_same_id_is_a_conflict_and_stores_nothing(handle: Handle) -> None:
    await handle.accept(accepted(1))
    other = Accepted(event(2, id="event-1", print_=b"other"), (inv(20, 2),), (LedgerWrite(b"k", b"v"),))
    answer = await handle.accept(other)
    assert isinstance(answer, Conflict)
    assert "event-1" in str(answer)
    assert await handle.j.ledger_get("t", b"k") is None
    assert await handle.seqs() == [10]
    elsewhere = structs.replace(other, event=structs.replace(other.event, source="another"))
    assert await handle.accept(elsewhere) == Stored("event-1", False)


async def test_the_duplicate_window_ends(handle: Handle) -> None:
    await handle.accept(accepted(1, at=1_000))
    last = 1_000 + 7 * DAY
    assert await handle.accept(Accepted(event(2, id="event-1", at=last - 1), ())) == Stored("event-1", True)
    assert await handle.accept(Accepted(event(3, id="event-1", at=last, print_=b"new"), ())) == Stored("event-1", False)
    assert await handle.accept(Accepted(event(4, id="event-1", at=last + 1, print_=b"new"), ())) == Stored("event-1", True)


async def test_without_dedup_the_same_id_is_another_event(handle: Handle) -> None:
    for seq in (1, 2):
        assert await handle.accept(accepted(seq, id="same", dedup=False)) == Stored("same", False)
    assert await handle.seqs() == [10, 20]


# --- ends at the acceptance ---


async def test_skipped_goes_straight_to_the_outbox_and_dead_to_the_dead(handle: Handle) -> None:
    skipped = inv(10, 1, "f", state=State.SETTLED, end=End.SKIPPED, reason=Reason.OVERLAP)
    died = inv(11, 1, "g", state=State.SETTLED, end=End.DEAD, reason=Reason.ZERO_CONCURRENCY)
    await handle.accept(Accepted(event(1), (skipped, died)))
    (row,) = await handle.j.outbox(10)
    assert row.record is None
    assert row.ended is not None
    assert (row.ended["end"], row.ended["reason"], row.ended["settled_at"]) == ("skipped", "overlap", 1_000)
    boot = await handle.j.load()
    assert (boot.queues, dict(boot.dead)) == ((), {"g": 1})
    (shown,) = (await handle.j.dead(Query())).rows
    assert (shown["invocation"], shown["reason"], shown["dead_at"]) == ("inv-11", "zero_concurrency", "1970-01-01T00:00:01.000Z")
    assert await handle.payload(1) == b'{"a":1}'


async def test_an_event_whose_invocations_are_all_skipped_leaves_no_payload_and_owes_at_once(handle: Handle) -> None:
    row = inv(10, 1, state=State.SETTLED, end=End.SKIPPED, reason=Reason.CATCH_UP)
    await handle.accept(Accepted(event(1, notify=True, key="k"), (row,)))
    assert handle.owed == [OwedRow(1, "t", "event-1", "k", True)]
    assert (await handle.j.events(Query())).rows == []


async def test_an_event_that_no_binding_took_is_only_remembered_as_seen(handle: Handle) -> None:
    assert await handle.accept(Accepted(event(1, notify=True), ())) == Stored("event-1", False)
    assert await handle.accept(Accepted(event(2, id="event-1", notify=True), ())) == Stored("event-1", True)
    assert handle.owed == []
    assert await handle.j.outbox(10) == []


# --- fan-out, settlements ---


@pytest.mark.parametrize(
    ("last", "ok"),
    [(succeeded(11), True), (dead(11), False), (Moved(11, State.SETTLED, 0, 0, 0, 9, End.CANCELLED), False)],
    ids=["succeeded", "dead", "cancelled"],
)
async def test_the_last_end_of_an_event_owes_one_settlement(handle: Handle, last: Moved, ok: bool) -> None:
    await handle.accept(accepted(1, "f", "g", notify=True, key="a.jpg"))
    await handle.append(ended(succeeded(10)))
    assert handle.owed == []
    assert await handle.payload(1) == b'{"a":1}'
    await handle.append(ended(last, run="r2"))
    assert handle.owed == [OwedRow(1, "t", "event-1", "a.jpg", ok)]
    await handle.reopen()
    assert (await handle.j.load()).owed == (OwedRow(1, "t", "event-1", "a.jpg", ok),)
    assert len((await handle.j.events(Query())).rows) == (last.end is End.DEAD)


@pytest.mark.parametrize("first", [dead(10), Moved(10, State.SETTLED, 0, 0, 0, 9, End.CANCELLED)], ids=["dead", "cancelled"])
async def test_an_earlier_failure_is_remembered_in_the_settlement(handle: Handle, first: Moved) -> None:
    await handle.accept(accepted(1, "f", "g", notify=True))
    await handle.append(ended(first))
    if first.end is End.DEAD:
        await handle.append(Discarded((10,), 5_000))
    await handle.append(ended(succeeded(11), run="r2"))
    assert [row.ok for row in handle.owed] == [False]
    assert (await handle.j.events(Query())).rows == []


async def test_a_redriven_invocation_that_succeeds_corrects_the_settlement(handle: Handle) -> None:
    await handle.accept(accepted(1, notify=True))
    await handle.append(ended(dead(10)))
    await handle.append(ended(redriven(10), run=None))
    assert (await handle.j.load()).queues == (QueueCount("t/f", "f", 1, 4_000),)
    assert dict((await handle.j.load()).dead) == {}
    (row,) = (await handle.page())[0]
    assert (row.state, row.attempts, row.end, row.reason, row.error_type) == (State.WAITING, 0, None, None, None)
    assert row.accepted_at == 4_000  # its age counts from the redrive
    await handle.append(began(10))
    await handle.append(ended(succeeded(10), run="r2"))
    assert [row.ok for row in handle.owed] == [False, True]


async def test_what_is_owed_goes_with_its_acknowledgement_and_ledger_writes(handle: Handle) -> None:
    for seq in (1, 2, 3):
        await handle.accept(accepted(seq, notify=True))
        await handle.append(ended(succeeded(seq * 10), run=f"r{seq}"))
    assert [row.seq for row in await handle.j.owed("t", 1, 10)] == [2, 3]
    assert await handle.j.owed("other", 0, 10) == []
    await handle.append(Acknowledged(2, "t", (LedgerWrite(b"done", b"2"),)))
    await handle.append(Acknowledged(2, "t"))
    assert [row.seq for row in await handle.j.owed("t", 0, 10)] == [1, 3]
    assert await handle.j.ledger_get("t", b"done") == b"2"
    await handle.append(*(Acknowledged(seq) for seq in (1, 3)))
    await handle.reopen()
    await handle.accept(accepted(4, notify=True))
    await handle.append(ended(succeeded(40), run="r4"))
    assert [row.seq for row in await handle.j.owed("t", 0, 10)] == [4]


async def test_a_batch_is_one_run_and_each_member_ends_by_itself(handle: Handle) -> None:
    for seq in (1, 2, 3):
        await handle.accept(accepted(seq))
    await handle.append(began(10, 20, 30, run="batch"))
    assert len((await handle.j.load()).running) == 3
    again = structs.replace(retrying(20, 50), solo=True, error_type="E")
    await handle.append(ended(succeeded(10), again, succeeded(30), run="batch", batch=3, batch_failed=1))
    rows = await handle.j.outbox(10)
    assert [row.record.run if row.record else None for row in rows] == ["batch", None]
    assert [row.ended["invocation"] if row.ended else None for row in rows] == ["inv-10", "inv-30"]
    (left,) = (await handle.page())[0]
    assert (left.seq, left.solo, left.error_type, left.attempts) == (20, True, "E", 1)


# --- the dead ---


async def five_dead(handle: Handle) -> None:
    for seq in range(1, 6):
        trigger = "t" if seq < 4 else "u"
        await handle.accept(accepted(seq, "f" if seq % 2 else "g", trigger=trigger, data=b'{"n":%d}' % seq))
        await handle.append(began(seq * 10, at=2_000 + seq))
        reason = Reason.QUARANTINED if seq == 3 else Reason.RETRIES_EXHAUSTED
        await handle.append(ended(dead(seq * 10, at=3_000 + seq, reason=reason), run=f"r{seq}"))


async def test_the_dead_are_listed_latest_first_with_filters_and_pages(handle: Handle) -> None:
    await five_dead(handle)

    async def listed(**filters: Any) -> list[str]:
        return [row["invocation"] for row in (await handle.j.dead(Query(**filters))).rows]

    assert await listed() == ["inv-50", "inv-40", "inv-30", "inv-20", "inv-10"]
    assert await listed(function="f") == ["inv-50", "inv-30", "inv-10"]
    assert await listed(trigger="u") == ["inv-50", "inv-40"]
    assert await listed(reason="quarantined") == ["inv-30"]
    assert await listed(ids=("inv-10", "inv-20", "nobody")) == ["inv-20", "inv-10"]
    assert await listed(since=3_002, until=3_004) == ["inv-30", "inv-20"]
    assert await listed(function="nobody") == []
    first = await handle.j.dead(Query(limit=2))
    second = await handle.j.dead(Query(limit=2, cursor=first.next))
    third = await handle.j.dead(Query(limit=2, cursor=second.next))
    assert [row["invocation"] for page in (first, second, third) for row in page.rows] == ["inv-50", "inv-40", "inv-30", "inv-20", "inv-10"]
    assert third.next is None
    (row,) = (await handle.j.dead(Query(ids=("inv-10",), payload=True))).rows
    assert row == {
        "invocation": "inv-10", "event": "event-1", "source": "src", "trigger": "t", "binding": "t/f", "function": "f",
        "reason": "retries_exhausted", "attempts": 3, "first_at": "1970-01-01T00:00:02.001Z", "dead_at": "1970-01-01T00:00:03.001Z",
        "error_type": "Boom", "error_message": "it broke", "bytes": 7, "payload": {"n": 1},
    }  # fmt: skip


async def test_redrive_and_discard_select_their_rows(handle: Handle) -> None:
    await five_dead(handle)

    async def picked(limit: int = 100, **filters: Any) -> list[int]:
        return [row.seq for row in await handle.j.dead_seqs(Query(**filters), limit)]

    assert sorted(await picked()) == [10, 20, 30, 40, 50]
    assert sorted(await picked(trigger="t", function="f")) == [10, 30]
    assert await picked(reason="quarantined") == [30]
    assert len(await picked(2)) == 2
    assert [row.seq for row in await handle.j.expired_dead(3_003, 10)] == [10, 20]
    assert [row.seq for row in await handle.j.expired_dead(9_999, 1)] == [10]
    await handle.append(ended(redriven(10), run=None))
    assert [row.seq for row in await handle.j.expired_dead(3_003, 10)] == [20]
    assert dict((await handle.j.load()).dead) == {"f": 2, "g": 2}


@pytest.mark.parametrize("fact", [Discarded((20, 10, 999), 9_000), Expired((20, 10, 999))], ids=["discarded", "expired"])
async def test_what_is_discarded_or_expires_leaves_the_record_of_its_death(handle: Handle, fact: Discarded | Expired) -> None:
    await five_dead(handle)
    await handle.append(Copied((await handle.j.outbox(100))[-1].seq))
    await handle.append(ended(redriven(20), run=None))
    await handle.append(fact)
    (row,) = await handle.j.outbox(10)
    assert row.ended is not None
    assert (row.ended["invocation"], row.ended["end"], row.ended["reason"], row.ended["settled_at"]) == (
        "inv-10", "dead", "retries_exhausted", 3_001,
    )  # fmt: skip
    assert await handle.seqs("g") == [20]
    assert [shown["event"] for shown in (await handle.j.events(Query())).rows] == ["event-5", "event-4", "event-3", "event-2"]


# --- listings ---


async def test_events_are_listed_newest_first_with_filters_pages_and_payload(handle: Handle) -> None:
    for seq in range(1, 7):
        await handle.accept(
            accepted(seq, *(("f", "g") if seq % 2 else ("g",)), at=1_000 * seq, data=b'{"n":%d}' % seq, trigger="tu"[seq % 2])
        )
    await handle.append(began(10))

    async def listed(**filters: Any) -> list[str]:
        return [row["event"][-1] for row in (await handle.j.events(Query(**filters))).rows]

    assert await listed() == list("654321")
    assert await listed(function="f") == list("531")
    assert await listed(trigger="t") == list("642")
    assert await listed(state="running") == ["1"]
    assert await listed(since=3_000, until=5_000) == list("43")
    assert await listed(ids=("event-2", "event-6", "x")) == list("62")
    assert await listed(invocation="inv-40") == ["4"]
    assert await listed(function="f", state="running") == ["1"]
    assert await listed(function="g", state="running") == []
    pages, cursor = [], None
    for _ in range(4):
        page = await handle.j.events(Query(limit=2, cursor=cursor))
        pages += [row["event"][-1] for row in page.rows]
        cursor = page.next
        if cursor is None:
            break
    assert pages == list("654321")
    (row,) = (await handle.j.events(Query(ids=("event-1",), payload=True))).rows
    assert row == {
        "event": "event-1", "source": "src", "trigger": "u", "received_at": "1970-01-01T00:00:01.000Z", "bytes": 7, "payload": {"n": 1},
        "invocations": [
            {"invocation": "inv-10", "binding": "t/f", "function": "f", "state": "running", "end": None, "reason": None, "attempts": 1,
             "due_at": "1970-01-01T00:00:01.000Z"},
            {"invocation": "inv-11", "binding": "t/g", "function": "g", "state": "waiting", "end": None, "reason": None, "attempts": 0,
             "due_at": "1970-01-01T00:00:01.000Z"},
        ],
    }  # fmt: skip
    assert "payload" not in (await handle.j.events(Query(limit=1))).rows[0]


@pytest.mark.parametrize("cursor", ["", "x", "1.2.3", "٣", "99999999999999999999999", "-", "1.", "AAAA"])
async def test_a_cursor_that_is_not_ours_is_refused(handle: Handle, cursor: str) -> None:
    for listing in (handle.j.events, handle.j.dead):
        with pytest.raises(EventdError) as caught:
            await listing(Query(cursor=cursor))
        assert caught.value.code == "E-USAGE"


# --- ledger, pauses ---


async def test_the_ledger_keeps_bytes_in_order_by_prefix(handle: Handle) -> None:
    keys = [b"", b"a", b"a\x00", b"a\xff", b"a\xffz", b"b", b"\xff", b"\xff\xff"]
    await handle.append(LedgerWritten("t", tuple(LedgerWrite(key, b"v" + key) for key in reversed(keys))))
    await handle.append(LedgerWritten("other", (LedgerWrite(b"a", b"not mine"),)))
    await handle.reopen()

    async def page(prefix: bytes, after: bytes | None = None, limit: int = 100) -> list[bytes]:
        return [key for key, _ in await handle.j.ledger_page("t", prefix, after, limit)]

    assert await page(b"") == sorted(keys)
    assert await page(b"a") == [b"a", b"a\x00", b"a\xff", b"a\xffz"]
    assert await page(b"a\xff") == [b"a\xff", b"a\xffz"]
    assert await page(b"\xff") == [b"\xff", b"\xff\xff"]
    assert await page(b"a", after=b"a\x00", limit=1) == [b"a\xff"]
    await handle.append(LedgerWritten("t", (LedgerWrite(b"a", None), LedgerWrite(b"b", b"new"), LedgerWrite(b"none", None))))
    assert await handle.j.ledger_get("t", b"a") is None
    assert await handle.j.ledger_get("t", b"b") == b"new"
    assert await handle.j.ledger_get("other", b"a") == b"not mine"


async def test_pauses_survive(handle: Handle) -> None:
    await handle.append(PauseSet("function", "f", True), PauseSet("trigger", "t", True), PauseSet("function", "f", True))
    await handle.append(PauseSet("trigger", "t", False), PauseSet("binding", "never", False))
    await handle.reopen()
    assert (await handle.j.load()).paused == (("function", "f"),)


async def test_the_outbox_is_copied_and_forgotten_in_order(handle: Handle) -> None:
    await handle.append(*(ended(run=f"r{n}") for n in range(1, 6)))
    assert [(row.seq, row.record.run) for row in await handle.j.outbox(2) if row.record] == [(1, "r1"), (2, "r2")]
    await handle.append(Copied(3))
    assert [row.seq for row in await handle.j.outbox(10)] == [4, 5]
    await handle.append(Copied(3))
    assert [row.seq for row in await handle.j.outbox(10)] == [4, 5]


# --- how it answers ---


async def test_callbacks_come_once_and_in_the_order_of_the_calls(handle: Handle) -> None:
    told: list[Any] = []
    for seq in range(1, 51):
        handle.j.accept(accepted(seq), lambda _, seq=seq: told.append(("accept", seq)))
        handle.j.append((began(seq * 10, run=f"r{seq}"),), lambda seq=seq: told.append(("began", seq)))
        handle.j.page("t/f", "f", (-1, -1), 10**12, 10, lambda rows, due, seq=seq: told.append(("page", seq, len(rows), due)))
        handle.j.event(seq, lambda row, seq=seq: told.append(("payload", seq)))
    await handle.append(LedgerWritten("t", ()))
    assert told == [
        entry for seq in range(1, 51) for entry in (("accept", seq), ("began", seq), ("page", seq, 0, None), ("payload", seq))
    ]  # fmt: skip


async def test_an_acceptance_appended_as_a_fact_is_stored_with_the_others(handle: Handle) -> None:
    await handle.append(accepted(1), accepted(1), ended(run="direct"))
    assert await handle.seqs() == [10]
    assert len(await handle.j.outbox(10)) == 1


async def test_facts_about_what_is_gone_change_nothing(handle: Handle) -> None:
    await handle.accept(accepted(1))
    await handle.append(ended(succeeded(10)))
    before = await handle.j.load()
    await handle.append(began(10, 77), ended(succeeded(10), retrying(77, 5), run=None), Acknowledged(9), Discarded((10,), 1))
    assert await handle.j.load() == before
    assert len(await handle.j.outbox(10)) == 1
    await handle.accept(accepted(2))
    await handle.append(ended(dead(20), run=None))
    await handle.append(began(20))
    assert (await handle.j.load()).running == ()
    assert dict((await handle.j.load()).dead) == {"f": 1}


async def test_text_that_is_not_unicode_is_refused_from_outside_and_mended_from_handlers(handle: Handle) -> None:
    answer = await handle.accept(accepted(1, id="\ud800"))
    assert isinstance(answer, EventdError)
    assert answer.code == "E-USAGE"
    await handle.accept(accepted(2))
    moved = structs.replace(dead(20), error_message="bad \udcff end")
    await handle.append(ended(moved, error_message="bad \udcff end"))
    (shown,) = (await handle.j.dead(Query())).rows
    assert shown["error_message"] == "bad ? end"


async def test_over_its_limit_it_refuses_events_and_still_settles(tmp_path: Path, anyio_backend: Any) -> None:
    for kind in ("sqlite", "memory"):
        handle = await Handle(kind, tmp_path / kind, structs.replace(SETTINGS, limit=2_000_000)).open()
        answers: list[Any] = []
        for seq in range(1, 101):
            answers.append(await handle.accept(accepted(seq, data=bytes(50_000))))
        stored = [answer for answer in answers if isinstance(answer, Stored)]
        assert 10 <= len(stored) < 100
        assert isinstance(answers[-1], Overloaded)
        assert handle.j.stats().overloaded
        assert len(await handle.seqs()) == len(stored)
        for seq in range(1, len(stored) + 1):
            await handle.append(ended(succeeded(seq * 10), run=f"r{seq}"))
        await handle.append(Copied(1_000))
        await handle.append(LedgerWritten("t", ()))
        assert isinstance(await handle.accept(accepted(200)), Stored), kind
        assert handle.j.stats().overloaded == ""
        await handle.j.aclose()
