"""Random histories of facts: SQLite and memory give the same answers to every question, also after a restart."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_harness import Handle, began, event, inv, record
from msgspec import structs

from eventd.core.facts import Accepted, Acknowledged, Copied, Discarded, Ended, Expired, Fact, LedgerWrite, LedgerWritten, Moved, PauseSet
from eventd.model import End, Reason, State
from eventd.ports import Query

FUNCTIONS = ("f", "g")
SEQS = st.integers(1, 6)
INVOCATIONS = st.integers(1, 6).flatmap(lambda seq: st.integers(0, 2).map(lambda place: seq * 10 + place))
TIMES = st.integers(0, 40)
KEYS = st.sampled_from([b"", b"a", b"a\xff", b"b"])
WRITES = st.lists(st.builds(LedgerWrite, KEYS, st.none() | st.binary(max_size=2)), max_size=2).map(tuple)
OPEN = (State.WAITING, State.RETRYING, State.HELD)


@st.composite
def acceptances(draw: st.DrawFn, seq: int) -> Accepted:
    rows = []
    for place in range(draw(st.integers(0, 3))):
        state = draw(st.sampled_from([*OPEN, State.SETTLED]))
        end = draw(st.sampled_from([End.SKIPPED, End.DEAD])) if state is State.SETTLED else None
        reason = Reason.OVERLAP if end is End.SKIPPED else Reason.RECURSION if end else None
        rows.append(inv(seq * 10 + place, seq, draw(st.sampled_from(FUNCTIONS)), due=draw(TIMES), state=state, end=end, reason=reason))
    row = event(
        seq, id=draw(st.sampled_from(["x", "y", f"event-{seq}"])), at=draw(TIMES), print_=draw(st.sampled_from([b"p", b"q"])),
        trigger=draw(st.sampled_from(["t", "u", None])), notify=draw(st.booleans()), dedup=draw(st.booleans()), data=draw(st.binary(max_size=3)),
    )  # fmt: skip
    return Accepted(row, tuple(rows), draw(WRITES))


@st.composite
def moves(draw: st.DrawFn) -> Moved:
    state = draw(st.sampled_from([*OPEN, State.SETTLED, State.SETTLED]))
    end = draw(st.sampled_from([End.SUCCEEDED, End.DEAD, End.CANCELLED])) if state is State.SETTLED else None
    reason = Reason.QUARANTINED if end is End.DEAD else None
    error = draw(st.sampled_from([None, "Fehler: ä", "bad \udc80"]))
    return Moved(
        draw(INVOCATIONS), state, draw(st.integers(0, 3)), 0, draw(TIMES), draw(TIMES), end, reason, draw(st.booleans()), error, error
    )


SEQ_SETS = st.lists(INVOCATIONS, min_size=1, max_size=3, unique=True).map(tuple)
FACTS = st.one_of(
    st.builds(lambda seqs, run, at: began(*seqs, run=run, at=at), SEQ_SETS, st.sampled_from(["r1", "r2"]), TIMES),
    st.builds(
        lambda run, several: Ended(None if run is None else record(run), tuple(several)),
        st.sampled_from([None, "r1", "r2"]),
        st.lists(moves(), max_size=3),
    ),
    st.builds(Discarded, SEQ_SETS, TIMES),
    st.builds(Expired, SEQ_SETS),
    st.builds(LedgerWritten, st.sampled_from(["t", "u"]), WRITES),
    st.builds(lambda owed, writes: Acknowledged(owed, "t", writes), st.integers(1, 4), WRITES),
    st.builds(PauseSet, st.sampled_from(["function", "trigger"]), st.sampled_from(["f", "t"]), st.booleans()),
    st.builds(Copied, st.integers(0, 6)),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Accepted | list[Fact] | str]:
    """Acceptances with rising numbers among appends and restarts."""
    steps: list[Any] = [draw(acceptances(1))]
    seq = 1
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["accept", "append", "append", "append", "reopen"]))
        if kind == "accept" and seq < 6:
            seq += 1
            steps.append(draw(acceptances(seq)))
        elif kind == "reopen":
            steps.append("reopen")
        else:
            steps.append(draw(st.lists(FACTS, min_size=1, max_size=3)))
    return steps


QUERIES = (
    Query(), Query(limit=2), Query(function="f"), Query(trigger="t"), Query(state="running"), Query(since=10, until=30), Query(reason="quarantined"),
    Query(ids=("x", "inv-10", "inv-20")), Query(payload=True), Query(invocation="inv-10"),
)  # fmt: skip


async def answers(handle: Handle) -> dict[str, Any]:
    j = handle.j
    boot = await j.load()
    found: dict[str, Any] = {
        "boot": structs.replace(boot, queues=tuple(sorted(boot.queues, key=lambda queue: queue.function)), dead=dict(boot.dead)),
        "outbox": [(row.seq, row.record, row.ended) for row in await j.outbox(100)],
        "owed": [await j.owed(trigger, after, 2) for trigger in ("t", "u") for after in (0, 1)],
        "ledger": [await j.ledger_page(trigger, prefix, None, 10) for trigger in ("t", "u") for prefix in (b"", b"a")],
        "expired": await j.expired_dead(20, 3),
        "ids": await j.invocations(["inv-10", "inv-21", "inv-30", "none"]),
    }
    for function in FUNCTIONS:
        found[f"pages {function}"] = [await handle.page(function, upto=upto, limit=limit) for upto in (15, 100) for limit in (1, 10)]
    for number, query in enumerate(QUERIES):
        for name, listing in (("events", j.events), ("dead", j.dead)):
            rows, cursor = [], None
            while True:
                page = await listing(structs.replace(query, cursor=cursor))
                rows += page.rows
                cursor = page.next
                if cursor is None:
                    break
            found[f"{name} {number}"] = rows
        found[f"dead_seqs {number}"] = sorted(row.seq for row in await j.dead_seqs(query, 100))
    return found


async def play(handle: Handle, steps: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    told: list[Any] = []
    await handle.open()
    for step in steps:
        if isinstance(step, Accepted):
            answer = await handle.accept(step)
            told.append(type(answer) if isinstance(answer, Exception) else answer)
        elif step == "reopen":
            await handle.reopen()
        else:
            await handle.append(*step)
    told.append(list(handle.owed))
    found = await answers(handle)
    assert handle.failures == []
    await handle.j.aclose()
    return told, found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(histories())
def test_sqlite_and_memory_agree(steps: list[Any]) -> None:
    async def both() -> None:
        with tempfile.TemporaryDirectory() as folder:
            on_disk = await play(Handle("sqlite", Path(folder) / "state"), steps)
        in_memory = await play(Handle("memory", Path(folder)), steps)
        assert on_disk == in_memory

    asyncio.run(both())
