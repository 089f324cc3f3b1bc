"""Run history: what is recorded is found again, limits hold, and no trouble with its file reaches the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from journal_faults import Disk, faulty_disk, full
from journal_harness import record
from msgspec import structs

from eventd.errors import EventdError
from eventd.journal import SqliteHistory, history, open_history
from eventd.model import HistorySettings, Lane, Outcome, RunRecord
from eventd.ports import OutboxRow, OutputChunk, Query

pytestmark = pytest.mark.anyio
T0 = 1_750_000_000_000
DAY = 86_400_000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


class Made:
    """A history and what it told; `now` is its clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = T0
        self.settings = HistorySettings()
        self.failures: list[EventdError] = []
        self.batches: list[list[RunRecord]] = []

    async def open(self) -> Made:
        self.h: SqliteHistory = await open_history(
            str(self.folder), self.settings, now_ms=lambda: self.now, on_failed=self.failures.append, on_records=self.batches.append
        )
        return self

    def shell(self, sql: str) -> list[Any]:
        """What a person with the sqlite3 shell sees, meanwhile: another process, since a second SQLite in this one would drop locks."""
        script = "import json, sqlite3, sys; print(json.dumps(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall()))"
        asked = [sys.executable, "-I", "-c", script, str(self.folder / "runs.db"), sql]
        rows = json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=10).stdout)
        return [tuple(row) for row in rows]


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    one = await Made(tmp_path).open()
    yield one
    await one.h.aclose()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def ran(n: int, **more: Any) -> RunRecord:
    return record(f"run-{n:04d}", ended_at=T0 + n, started_at=T0 + n - 1, received_at=T0 - 1, **more)


def ended(n: int, event: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "event": f"event-{event or n}", "source": "src", "trigger": "t", "received_at": T0 + (event or n), "bytes": 7, "invocation": f"inv-{n}",
        "binding": "t/f", "function": "f", "end": "succeeded", "reason": None, "attempts": 1, "settled_at": T0 + 1_000 + n, **more,
    }  # fmt: skip


async def test_the_table_is_the_record_for_the_sqlite3_shell(made: Made) -> None:
    made.h.record(ran(5, lane=Lane.DIRECT, cold=True, error_message="käse", exit_status=1))
    await made.h.flush()
    assert [row[1] for row in made.shell("PRAGMA table_info(runs)")] == list(RunRecord.__struct_fields__)
    row = dict(zip(RunRecord.__struct_fields__, made.shell("SELECT * FROM runs")[0], strict=True))
    assert row["ended_at"] == "2025-06-15T15:06:40.005Z"
    assert (row["cold"], row["output_truncated"], row["lane"], row["outcome"]) == (1, 0, "direct", "succeeded")
    expected = structs.asdict(ran(5, lane=Lane.DIRECT, cold=True, error_message="käse", exit_status=1))
    assert {k: v for k, v in row.items() if not k.endswith("_at")} == {k: v for k, v in expected.items() if not k.endswith("_at")}


async def test_a_record_is_on_disk_within_a_second_unasked(made: Made) -> None:
    made.h.record(ran(1))
    await until(lambda: made.shell("SELECT count(*) FROM runs") == [(1,)], 1)
    assert made.batches == [[ran(1)]]


async def test_a_copy_repeated_after_a_crash_changes_nothing(made: Made) -> None:
    rows = [OutboxRow(1, ran(1), ended(1)), OutboxRow(2, ran(2), None), OutboxRow(3, None, ended(2, 1))]
    await made.h.store(rows)
    await made.h.store(rows)
    assert made.shell("SELECT count(*) FROM runs") == [(2,)]
    assert made.shell("SELECT invocation FROM ended ORDER BY invocation") == [("inv-1",), ("inv-2",)]
    assert made.batches == [[ran(1), ran(2)]]


async def test_store_survives_kill_minus_nine(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_journal_history import Made, OutboxRow, Path, ended, ran\n"
        "async def main():\n"
        f"    made = await Made(Path({str(tmp_path)!r})).open()\n"
        "    await made.h.store([OutboxRow(n, ran(n), ended(n)) for n in range(1, 51)])\n"
        "    made.h.record(ran(99))\n"
        "    await made.h.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    made = await Made(tmp_path).open()
    assert len((await made.h.runs(Query(limit=100))).rows) == 51
    assert made.failures == []
    await made.h.aclose()


# --- listings ---


async def test_runs_are_listed_newest_first_with_filters_and_pages(made: Made) -> None:
    for n in range(1, 11):
        made.h.record(
            ran(
                n, function="fg"[n % 2], outcome=Outcome.FAILED if n % 5 == 0 else Outcome.SUCCEEDED, trigger="tu"[n > 5],
                invocation=f"inv-{n % 3}", attempt=n % 2 + 1,
            )
        )  # fmt: skip

    async def listed(**filters: Any) -> list[int]:
        return [int(row["run"][4:]) for row in (await made.h.runs(Query(**filters))).rows]

    assert await listed() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert await listed(function="f") == [10, 8, 6, 4, 2]
    assert await listed(outcomes=("failed", "lost")) == [10, 5]
    assert await listed(trigger="u", attempt=2) == [9, 7]
    assert await listed(invocation="inv-0") == [9, 6, 3]
    assert await listed(since=T0 + 3, until=T0 + 5) == [4, 3]
    assert await listed(ids=("run-0002", "run-0007")) == [7, 2]
    found: list[int] = []
    cursor = None
    for _ in range(4):
        page = await made.h.runs(Query(limit=3, cursor=cursor))
        found += [int(row["run"][4:]) for row in page.rows]
        cursor = page.next
    assert found == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert cursor is None


async def test_one_run_is_its_record(made: Made) -> None:
    made.h.record(ran(1, init_ms=3.25, cold=True))
    row = await made.h.run("run-0001")
    assert row is not None
    assert list(row) == list(RunRecord.__struct_fields__)
    assert (row["cold"], row["output_truncated"], row["init_ms"], row["received_at"]) == (True, False, 3.25, "2025-06-15T15:06:39.999Z")
    assert await made.h.run("none") is None


async def test_ended_events_come_with_all_their_ends(made: Made) -> None:
    rows = [ended(1), ended(2, 2, function="f"), ended(3, 2, function="g", end="dead", reason="quarantined"), ended(4, 4, trigger="u")]
    await made.h.store([OutboxRow(n, None, row) for n, row in enumerate(rows, 1)])
    page = await made.h.ended(Query(limit=2))
    assert [row["event"] for row in page.rows] == ["event-4", "event-2"]
    assert page.rows[1] == {
        "event": "event-2", "source": "src", "trigger": "t", "received_at": "2025-06-15T15:06:40.002Z", "bytes": 7,
        "invocations": [
            {"invocation": "inv-2", "binding": "t/f", "function": "f", "state": "settled", "end": "succeeded", "reason": None, "attempts": 1,
             "due_at": None},
            {"invocation": "inv-3", "binding": "t/f", "function": "g", "state": "settled", "end": "dead", "reason": "quarantined",
             "attempts": 1, "due_at": None},
        ],
    }  # fmt: skip
    rest = await made.h.ended(Query(limit=2, cursor=page.next))
    assert ([row["event"] for row in rest.rows], rest.next) == (["event-1"], None)

    async def listed(**filters: Any) -> list[str]:
        return [row["event"][6:] for row in (await made.h.ended(Query(**filters))).rows]

    assert await listed(function="g") == ["2"]
    assert await listed(trigger="u") == ["4"]
    assert await listed(ids=("event-1", "event-4")) == ["4", "1"]
    assert await listed(reason="quarantined", state="settled") == ["2"]
    assert await listed(state="running") == []
    assert await listed(since=T0 + 2, until=T0 + 4) == ["2"]
    assert await listed(invocation="inv-4") == ["4"]


async def test_many_ended_events_are_one_page(made: Made) -> None:
    await made.h.store([OutboxRow(n, None, ended(n, (n + 1) // 2)) for n in range(1, 2_001)])
    page = await made.h.ended(Query(limit=1_000))
    assert len(page.rows) == 1_000
    assert page.next is None
    assert all(len(row["invocations"]) == 2 for row in page.rows)


@pytest.mark.parametrize("cursor", ["", "x", "e30", "WzFd", "Wzxd", "ö"])
async def test_a_cursor_that_is_not_ours_is_refused(made: Made, cursor: str) -> None:
    for ask in (made.h.runs, made.h.ended, lambda query: made.h.logs_after(query, 5, None)):
        if ask is not made.h.runs and cursor == "WzFd" and ask is not made.h.ended:
            continue  # [1] is a cursor of the log
        with pytest.raises(EventdError) as caught:
            await ask(Query(cursor=cursor))
        assert caught.value.code == "E-USAGE"


# --- stats ---


def nearest_rank(values: list[float], percent: int) -> float:
    return sorted(values)[-(-percent * len(values) // 100) - 1]


async def test_percentiles_are_exact(made: Made) -> None:
    dice = random.Random(3)
    waits: dict[str, list[float]] = {"f": [], "g": []}
    for n in range(1, 400):
        function = dice.choice("ffg")
        duration = dice.choice([dice.random() * 100, 5.0])
        waits[function].append(duration)
        outcome = dice.choice([Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.LOST, Outcome.INTERRUPTED])
        made.h.record(
            ran(n, function=function, duration_ms=duration, outcome=outcome, init_ms=1.0 if n % 7 == 0 else None, cold=n % 7 == 0)
        )
    rows = {row["function"]: row for row in await made.h.stats(Query(since=T0, until=T0 + 1_000))}
    assert set(rows) == {"f", "g"}
    for function, row in rows.items():
        values = waits[function]
        assert row["duration_ms"] == {
            "p50": nearest_rank(values, 50), "p95": nearest_rank(values, 95), "p99": nearest_rank(values, 99), "max": max(values),
            "sum": pytest.approx(sum(values)),
        }  # fmt: skip
        assert row["runs"] == len(values) == sum(row[outcome.value] for outcome in Outcome)
        judged = row["runs"] - row["interrupted"]
        assert row["error_rate"] == pytest.approx((row["failed"] + row["lost"]) / judged, abs=1e-6)
        assert row["init_ms"]["sum"] == row["cold"]
    assert await made.h.stats(Query(since=T0 + 5_000)) == []
    (only,) = await made.h.stats(Query(function="f", until=T0 + 7))
    assert only["init_ms"] == {"p50": None, "p95": None, "p99": None, "max": None, "sum": 0.0}


# --- output ---


def chunk(text: bytes, run: str = "r1", stream: str = "stdout", at: int = T0, function: str = "f") -> OutputChunk:
    return OutputChunk(function, run, stream, at, text)


async def lines_of(made: Made, n: int = 100, run: str | None = None, **filters: Any) -> list[str]:
    rows, _ = await made.h.logs_after(Query(**filters), n, run)
    return [row["line"] for row in rows]


async def test_lines_are_put_together_from_chunks_per_run_and_stream(made: Made) -> None:
    made.h.output(chunk(b"one\ntw"))
    made.h.output(chunk(b"other\n", run="r2", at=T0 + 1))
    made.h.output(chunk(b"err\n", stream="stderr", at=T0 + 2))
    made.h.output(chunk(b"o\nthree", at=T0 + 3))
    rows, _ = await made.h.logs_after(Query(), 100, None)
    assert rows[0] == {"time": "2025-06-15T15:06:40.000Z", "function": "f", "run": "r1", "stream": "stdout", "line": "one"}
    assert [row["line"] for row in rows if row["run"] == "r1" and row["stream"] == "stdout"] == ["one", "two", "three"]
    assert [row["line"] for row in rows if row["stream"] == "stderr"] == ["err"]
    assert await lines_of(made, run="r2") == ["other"]
    assert await lines_of(made, function="g") == []
    assert await lines_of(made, 2) == ["two", "three"]
    assert await lines_of(made, since=T0 + 2) == ["err", "three"]


async def test_text_that_is_not_utf8_and_lines_without_an_end_are_shown(made: Made) -> None:
    made.h.output(chunk(b"\xff\xfe\n\n" + b"x" * 40_000))
    found = await lines_of(made)
    assert found[:2] == ["\ufffd\ufffd", ""]
    assert "".join(found[2:]) == "x" * 40_000


async def test_following_sees_each_line_once(made: Made) -> None:
    made.h.output(chunk(b"a\nb\n"))
    first, cursor = await made.h.logs_after(Query(), 1, None)
    assert [row["line"] for row in first] == ["b"]
    seen: list[str] = []
    for n in range(30):
        made.h.output(chunk(b"".join(b"%d\n" % (n * 10 + i) for i in range(n % 4)), function="fg"[n % 2]))
        rows, cursor = await made.h.logs_after(Query(cursor=cursor, function="f"), 3, None)
        seen += [row["line"] for row in rows]
    while rows:
        rows, cursor = await made.h.logs_after(Query(cursor=cursor, function="f"), 3, None)
        seen += [row["line"] for row in rows]
    assert seen == [str(n * 10 + i) for n in range(0, 30, 2) for i in range(n % 4)]


async def test_many_lines_are_read_backwards_in_slices(made: Made) -> None:
    for n in range(700):
        made.h.output(chunk(b"%d\n" % n, run=f"r{n}"))
    assert await lines_of(made, 650) == [str(n) for n in range(50, 700)]


# --- limits ---


async def test_output_is_bounded_oldest_first(made: Made) -> None:
    await made.h.aclose()
    made.settings = HistorySettings(output=200_000)
    await made.open()
    for n in range(50):
        made.h.output(chunk(b"%03d" % n + b"." * 9_996 + b"\n", run=f"r{n}"))
        if n % 10 == 9:
            await made.h.flush()
    await made.h.flush()
    found = await lines_of(made)
    assert found[-1].startswith("049")
    assert 15 <= len(found) <= 20
    assert made.shell("SELECT value FROM meta")[0][0] <= 200_000


async def test_runs_go_by_age_and_by_size_oldest_first(made: Made) -> None:
    await made.h.store([OutboxRow(n, ran(n), ended(n)) for n in range(1, 11)])
    made.now = T0 + 5 + 30 * DAY
    await made.h.store([OutboxRow(11, ran(11 + 30 * DAY), None)])
    await made.h.flush()
    assert [row["run"] for row in (await made.h.runs(Query(until=T0 + DAY))).rows] == [f"run-{n:04d}" for n in range(10, 4, -1)]
    await made.h.aclose()
    made.settings = HistorySettings(runs_limit=500_000)
    made.now = T0
    await made.open()
    for start in range(100, 4_100, 500):
        await made.h.store([OutboxRow(n, ran(n, error_message="e" * 100), None) for n in range(start, start + 500)])
    await made.h.flush()
    left = made.shell("SELECT count(*), min(run), max(run) FROM runs WHERE run LIKE 'run-____'")[0]
    assert 100 < left[0] < 2_000
    assert left[2] == "run-4099"


# --- trouble ---


async def test_a_deleted_file_is_made_anew(made: Made) -> None:
    made.h.record(ran(1))
    await made.h.flush()
    (made.folder / "runs.db").unlink()
    made.h.record(ran(2))
    assert [row["run"] for row in (await made.h.runs(Query())).rows] == ["run-0002"]
    assert made.failures == []


async def test_a_damaged_file_is_moved_aside_and_told(made: Made) -> None:
    made.h.record(ran(1))
    await made.h.aclose()
    path = made.folder / "runs.db"
    path.write_bytes(b"garbage " * 1_000)
    await made.open()
    made.h.record(ran(2))
    assert [row["run"] for row in (await made.h.runs(Query())).rows] == ["run-0002"]
    assert [error.code for error in made.failures] == ["E-STORAGE"]
    assert "runs.db.damaged" in made.failures[0].message
    assert (made.folder / "runs.db.damaged").read_bytes().startswith(b"garbage")


async def test_damage_found_while_running_loses_no_new_record(made: Made) -> None:
    for n in range(1, 500):
        made.h.record(ran(n))
    await made.h.aclose()
    path = made.folder / "runs.db"
    blob = bytearray(path.read_bytes())
    for page in range(1, len(blob) // 4096):
        blob[page * 4096 : page * 4096 + 200] = b"\xee" * 200
    path.write_bytes(blob)
    made.failures.clear()
    await made.open()
    await made.h.store([OutboxRow(1, ran(900), ended(900))])
    assert [row["run"] for row in (await made.h.runs(Query())).rows] == ["run-0900"]
    assert {error.code for error in made.failures} <= {"E-STORAGE"}
    assert made.failures


async def test_a_file_of_another_version_is_moved_aside(made: Made) -> None:
    await made.h.aclose()
    with contextlib.closing(sqlite3.connect(made.folder / "runs.db")) as connection:
        connection.execute("PRAGMA user_version = 9")
    await made.open()
    made.h.record(ran(1))
    assert len((await made.h.runs(Query())).rows) == 1
    assert [error.code for error in made.failures] == ["E-SCHEMA"]


@pytest.fixture
def disk() -> Iterator[Disk]:
    with faulty_disk() as made:
        yield made


async def test_a_full_disk_keeps_records_and_writes_them_when_there_is_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_RETRY_SECONDS", 0.05)
    made = await Made(tmp_path).open()
    disk.arm(lambda what, name, count: full() if what == "write" else None)
    made.h.record(ran(1))
    with pytest.raises(EventdError) as caught:
        await made.h.flush()
    assert caught.value.code == "E-OVERLOADED"
    with pytest.raises(EventdError):
        await made.h.store([OutboxRow(1, ran(2), None)])
    assert (await made.h.runs(Query())).rows == []
    await until(lambda: bool(made.failures))
    assert [error.code for error in made.failures] == ["E-STORAGE"]
    disk.calm()
    await until(lambda: made.shell("SELECT run FROM runs") == [("run-0001",)])
    await made.h.store([OutboxRow(1, ran(2), None)])
    assert len((await made.h.runs(Query())).rows) == 2
    await made.h.aclose()


async def test_what_cannot_be_written_is_bounded_and_counted(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventd.journal.history_writer._KEEP_RECORDS", 10)
    monkeypatch.setattr("eventd.journal.history_writer._KEEP_OUTPUT", 5_000)
    made = await Made(tmp_path).open()
    disk.arm(lambda what, name, count: full() if what == "write" else None)
    for n in range(1, 31):
        made.h.record(ran(n))
        made.h.output(chunk(b"x" * 900 + b"\n", run=f"r{n}"))
    with pytest.raises(EventdError):
        await made.h.flush()
    await until(lambda: made.h.dropped > 0)
    disk.calm()
    found = (await made.h.runs(Query(limit=100))).rows
    assert [row["run"] for row in found] == [f"run-{n:04d}" for n in range(30, 20, -1)]
    kept = await lines_of(made)
    assert made.h.dropped == 20 + 30 - len(kept)
    assert 0 < len(kept) <= 5
    await made.h.aclose()


async def test_a_hook_that_raises_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    failures: list[EventdError] = []

    def hook(records: list[RunRecord]) -> None:
        raise ValueError("a mistake in the log")

    made = await open_history(str(tmp_path), HistorySettings(), now_ms=lambda: T0, on_failed=failures.append, on_records=hook)
    for n in (1, 2):
        made.record(ran(n))
        await made.flush()
    assert len((await made.runs(Query())).rows) == 2
    assert [error.code for error in failures] == ["E-INTERNAL"]
    await made.aclose()


async def test_text_that_is_not_unicode_does_not_spoil_a_batch(made: Made) -> None:
    for n, text in ((1, "fine"), (2, "bad \udcff end"), (3, "ä")):
        made.h.record(ran(n, error_message=text))
    assert [row["error_message"] for row in (await made.h.runs(Query())).rows] == ["ä", "bad ? end", "fine"]


async def test_after_closing_it_says_so(made: Made) -> None:
    made.h.record(ran(1))
    await made.h.aclose()
    await made.h.aclose()
    assert made.shell("SELECT count(*) FROM runs") == [(1,)]
    with pytest.raises(EventdError):
        await made.h.flush()
    await made.open()
    assert os.stat(made.folder / "runs.db").st_mode & 0o777 == 0o600
