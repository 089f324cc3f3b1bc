"""What only the journal on disk has: the lock, the schema, the PRAGMAs, the digests, the scrub, its files and its speed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from journal_harness import SETTINGS, Handle, accepted, began, dead, ended, inv, retrying, succeeded
from msgspec import structs

from eventd.core.facts import Discarded, LedgerWrite, LedgerWritten
from eventd.errors import EventdError, Overloaded
from eventd.journal import folder, maintenance, open_journal, schema, sqlite
from eventd.model import State
from eventd.ports import OwedRow, Query, QueueCount, Stored

pytestmark = pytest.mark.anyio
FIXTURES = Path(__file__).parent


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture
async def handle(tmp_path: Path) -> AsyncIterator[Handle]:
    made = await Handle("sqlite", tmp_path / "state").open()
    yield made
    await made.j.aclose()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def refused(state: Path) -> EventdError:
    with pytest.raises(EventdError) as caught:
        await open_journal(str(state), SETTINGS, boot="other")
    return caught.value


def edit(state: Path, *statements: str) -> None:
    """Change the closed database behind eventd's back."""
    connection = apsw.Connection(str(state / "journal.db"))
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


# --- the folder ---


async def test_a_second_daemon_is_refused_at_once_and_told_who_holds_the_folder(handle: Handle) -> None:
    started = time.monotonic()
    error = await refused(handle.folder)
    assert time.monotonic() - started < 1
    assert (error.code, error.exit) == ("E-LOCKED", 4)
    assert f"pid {os.getpid()}" in error.message
    await handle.reopen()


async def test_folder_and_files_are_private(tmp_path: Path) -> None:
    loose = tmp_path / "state"
    loose.mkdir(mode=0o755)
    handle = await Handle("sqlite", loose).open()
    await handle.accept(accepted(1))
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700
    await handle.reopen()
    await handle.accept(accepted(2))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in loose.iterdir()}
    assert modes == dict.fromkeys(("journal.db", "journal.db-wal", "lock", "reserve"), 0o600)
    await handle.j.aclose()
    assert (loose / "clean").exists()


async def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.filesystem_type("/proc") == 0x9FA0  # PROC_SUPER_MAGIC: the real call works
    monkeypatch.setattr(folder, "filesystem_type", lambda path: 0x6969)
    error = await refused(tmp_path / "state")
    assert error.code == "E-STORAGE"
    assert "NFS" in error.message
    assert "local disk" in error.hint


async def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = await refused(tmp_path / "file" / "state")
    assert error.code == "E-STORAGE"
    assert "file/state" in error.message


# --- the schema ---


async def test_a_newer_database_is_refused_and_both_versions_named(handle: Handle) -> None:
    await handle.j.aclose()
    edit(handle.folder, "PRAGMA user_version = 7")
    error = await refused(handle.folder)
    assert (error.code, error.exit) == ("E-SCHEMA", 5)
    assert "version 7" in error.message
    assert "version 1" in error.message
    edit(handle.folder, "PRAGMA user_version = 1")
    await handle.open()


@pytest.mark.parametrize("kind", ["stranger", "garbage"])
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    if kind == "garbage":
        (state / "journal.db").write_bytes(b"not a database, " * 1000)
    else:
        with contextlib.closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as connection:
            connection.execute("CREATE TABLE mine(x)")
        connection.close()
    before = (state / "journal.db").read_bytes()
    error = await refused(state)
    assert error.code == "E-STORAGE"
    if kind == "garbage":
        assert (state / "journal.db").read_bytes() == before
    else:
        with contextlib.closing(sqlite3.connect(state / "journal.db")) as connection:
            assert connection.execute("SELECT * FROM mine").fetchall() == []


async def test_the_released_schema_of_version_1_is_opened(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    connection = sqlite3.connect(state / "journal.db", isolation_level=None)
    connection.executescript((FIXTURES / "journal_v1.sql").read_text())
    connection.close()
    handle = await Handle("sqlite", state).open()
    boot = await handle.j.load()
    assert boot.queues == (QueueCount("t/f", "f", 2, 10), QueueCount("t/g", "g", 1, 10), QueueCount("t/h", "h", 1, None))
    assert [(row.seq, run, at) for row, run, at in boot.running] == [(30, "r3", 2_500)]
    assert (boot.next_event, boot.next_invocation, dict(boot.dead)) == (7, 61, {"f": 1})
    assert boot.paused == (("trigger", "t"),)
    assert boot.owed == (OwedRow(1, "t", "event-6", "b.jpg", True),)
    assert await handle.page() == (
        [inv(10, 1, due=10), structs.replace(inv(20, 2, due=99_000), state=State.RETRYING, attempts=1, first_at=2_000)], None,
    )  # fmt: skip
    assert [await handle.payload(seq) for seq in range(1, 6)] == [b'{"n":%d}' % seq for seq in range(1, 6)]
    assert await handle.j.ledger_get("t", b"\xff\x00k") == b"v"
    assert [row.record.run if row.record else None for row in await handle.j.outbox(10)] == ["r2", "r5", "r6"]
    assert [row["invocation"] for row in (await handle.j.dead(Query())).rows] == ["inv-50"]
    again = structs.replace(accepted(9), event=structs.replace(accepted(9).event, id="event-6"))
    assert await handle.accept(again) == Stored("event-6", True)
    await until(lambda: not handle.j.writer._maintenance.scrubbing)  # type: ignore[union-attr]
    assert handle.failures == []
    await handle.j.aclose()


async def test_an_older_schema_is_brought_forward_with_a_verified_copy_beside_it(handle: Handle) -> None:
    await handle.accept(accepted(1))
    await handle.j.aclose()
    path = handle.folder / "journal.db"
    connection = apsw.Connection(str(path))
    schema.configure(connection)
    schema.prepare(connection, path, "2.0", {1: ("ALTER TABLE paused ADD COLUMN since INTEGER", "CREATE TABLE extra(x)")})
    assert schema.version_of(connection) == 2
    connection.execute("SELECT since FROM paused").fetchall()
    connection.close()
    copy = handle.folder / "journal.db.schema-1"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    error = await refused(handle.folder)
    assert error.code == "E-SCHEMA"
    for file in handle.folder.glob("journal.db*"):
        if file != copy:
            file.unlink()
    copy.rename(path)
    await handle.open()
    assert await handle.seqs() == [10]


async def test_a_migration_that_fails_changes_nothing(handle: Handle) -> None:
    await handle.accept(accepted(1))
    await handle.j.aclose()
    path = handle.folder / "journal.db"
    connection = apsw.Connection(str(path))
    schema.configure(connection)
    with pytest.raises(apsw.SQLError):
        schema.prepare(connection, path, "2.0", {1: ("DROP TABLE paused", "THIS IS NOT SQL")})
    assert schema.version_of(connection) == 1
    connection.execute("SELECT * FROM paused").fetchall()
    connection.close()
    await handle.open()
    assert await handle.seqs() == [10]


# --- PRAGMAs ---


async def test_every_pragma_reads_back_on_the_live_connection(handle: Handle) -> None:
    def ask(reads: Any) -> dict[str, Any]:
        return {name: reads._connection.execute(f"PRAGMA {name}").fetchall()[0][0] for name, _, _ in schema.PRAGMAS}

    assert await handle.j._ask(ask) == {name: expected for name, _, expected in schema.PRAGMAS}  # type: ignore[union-attr]
    assert {"journal_mode": "wal", "synchronous": 2, "mmap_size": 0, "auto_vacuum": 2, "locking_mode": "exclusive"}.items() <= {
        name: expected for name, _, expected in schema.PRAGMAS
    }.items()


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("synchronous", "NORMAL", 2), ("journal_mode", "MEMORY", "wal"), ("nonsense", 1, 1)]
)
async def test_a_pragma_that_does_not_take_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | int, expected: object
) -> None:
    monkeypatch.setattr(schema, "PRAGMAS", ((name, value, expected),))
    monkeypatch.setattr(schema, "configure", broken_configure)
    error = await refused(tmp_path / "state")
    assert error.code == "E-STORAGE"
    assert f"PRAGMA {name}" in error.message
    monkeypatch.undo()
    handle = await Handle("sqlite", tmp_path / "state").open()  # the lock was let go
    await handle.j.aclose()


def broken_configure(connection: apsw.Connection) -> None:
    connection.execute("PRAGMA synchronous = OFF").fetchall()
    for name, value, expected in schema.PRAGMAS:
        schema.set_pragma(connection, name, value, expected)


# --- damage ---

EVENT_COLUMNS = (
    "id",
    "source",
    "trigger",
    "received_at",
    "key",
    "flags",
    "fingerprint",
    "trace",
    "members",
    "bytes",
    "data_digest",
    "digest",
    "data",
)
INVOCATION_COLUMNS = (
    "id", "event", "queue", "state", "due_at", "accepted_at", "attempts", "lost", "key", "flags", "reason", "first_at", "error_type",
    "error_message", "run", "began_at", "dead_at", "digest",
)  # fmt: skip


async def test_the_columns_under_test_are_all_there_are(handle: Handle) -> None:
    await handle.j.aclose()
    connection = sqlite3.connect(handle.folder / "journal.db")
    for table, columns in (("events", EVENT_COLUMNS), ("invocations", INVOCATION_COLUMNS)):
        assert {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} == {"seq", *columns}
    connection.close()
    await handle.open()


async def damaged(handle: Handle, read: Callable[[Handle], Any]) -> None:
    """A read of a damaged row gives no answer and ends the journal with E-DAMAGED."""
    await handle.open()
    answers: list[Any] = []
    task = asyncio.ensure_future(read(handle))
    task.add_done_callback(lambda done: None if done.cancelled() or done.exception() else answers.append(done.result()))
    await until(lambda: bool(handle.failures) or task.done())
    await until(lambda: bool(handle.failures))
    task.cancel()
    assert [error.code for error in handle.failures] == ["E-DAMAGED"]
    assert handle.failures[0].exit == 5
    assert answers == []
    handle.failures.clear()


@pytest.fixture
async def filled(handle: Handle) -> Handle:
    """A waiting and a retrying row, with something in every column; closed."""
    row = structs.replace(inv(10, 1, due=5), attempts=1, lost=1, key="k", first_at=7, error_type="E", error_message="m", serial=True)
    await handle.accept(structs.replace(accepted(1, key="k", trace="Root=1", trigger="t"), invocations=(row,)))
    await handle.append(LedgerWritten("t", (LedgerWrite(b"k", b"v"),)))
    await handle.j.aclose()
    return handle


def flipped(state: Path, table: str, column: str) -> None:
    """Change one column of one row a little, keeping its type: one bit of a blob or a text, one unit of a number."""
    connection = apsw.Connection(str(state / "journal.db"))
    ((value,),) = connection.execute(f'SELECT "{column}" FROM {table}').fetchall()
    if isinstance(value, bytes):
        other: Any = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, str):
        other = chr(ord(value[0]) ^ 1) + value[1:]
    else:
        other = (value or 0) + (2 if column == "state" else 1)
    connection.execute(f'UPDATE {table} SET "{column}" = ?', (other,))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


@pytest.mark.parametrize("column", EVENT_COLUMNS)
async def test_a_flip_in_any_column_of_an_event_is_found(filled: Handle, column: str) -> None:
    flipped(filled.folder, "events", column)
    await damaged(filled, lambda handle: handle.event(1))
    if column != "data":
        await damaged(filled, lambda handle: handle.j.events(Query()))
        await damaged(filled, lambda handle: handle.append(ended(succeeded(10))))


@pytest.mark.parametrize("column", INVOCATION_COLUMNS)
async def test_a_flip_in_any_column_of_an_invocation_is_found(filled: Handle, column: str) -> None:
    flipped(filled.folder, "invocations", column)
    await damaged(filled, lambda handle: handle.append(began(10)))
    await damaged(filled, lambda handle: handle.j.events(Query()))
    if column in ("queue", "state", "due_at"):
        return  # another page than the one it was on
    await damaged(filled, lambda handle: handle.page())


@pytest.mark.parametrize("column", ["binding", "function"])
async def test_a_flip_in_a_queues_name_is_found_in_its_rows(filled: Handle, column: str) -> None:
    flipped(filled.folder, "queues", column)
    await damaged(filled, lambda handle: handle.append(began(10)))


async def test_flips_in_ledger_owed_and_outbox_are_found(filled: Handle) -> None:
    await filled.open()
    await filled.accept(accepted(2, notify=True))
    await filled.append(ended(succeeded(20)))
    await filled.j.aclose()
    reads: dict[str, Callable[[Handle], Any]] = {
        "ledger": lambda handle: handle.j.ledger_get("t", b"k"),
        "owed": lambda handle: handle.j.owed("t", 0, 10),
        "outbox": lambda handle: handle.j.outbox(10),
    }
    for table, column in (("ledger", "value"), ("owed", "event"), ("owed", "ok"), ("outbox", "data"), ("outbox", "digest")):
        saved = (filled.folder / "journal.db").read_bytes()
        flipped(filled.folder, table, column)
        await damaged(filled, reads[table])
        for file in ("journal.db-wal", "clean"):
            (filled.folder / file).unlink(missing_ok=True)
        (filled.folder / "journal.db").write_bytes(saved)
    await filled.open()


async def test_text_that_is_no_longer_utf8_is_damage(filled: Handle) -> None:
    edit(filled.folder, "UPDATE invocations SET error_message = CAST(X'ff' AS TEXT)")
    await damaged(filled, lambda handle: handle.page())
    edit(filled.folder, "DELETE FROM invocations", "DELETE FROM events")
    await filled.open()


async def test_an_event_that_is_missing_is_damage(filled: Handle) -> None:
    edit(filled.folder, "DELETE FROM events")
    await damaged(filled, lambda handle: handle.event(1))


async def test_after_an_unclean_stop_every_row_is_checked_in_the_background(filled: Handle) -> None:
    flipped(filled.folder, "events", "data")
    await filled.open()
    await filled.append(LedgerWritten("t", ()))
    assert not filled.j.writer._maintenance.scrubbing  # type: ignore[union-attr]
    await filled.reopen()  # clean: nothing is looked at
    assert filled.failures == []
    await filled.j.aclose()
    (filled.folder / "clean").unlink()
    await filled.open()
    await until(lambda: bool(filled.failures))
    assert [error.code for error in filled.failures] == ["E-DAMAGED"]


async def test_a_file_whose_structure_is_damaged_is_found_after_an_unclean_stop(handle: Handle) -> None:
    for seq in range(1, 200):
        handle.j.accept(accepted(seq, data=bytes(500)), lambda answer: None)
    await handle.append(LedgerWritten("t", ()))
    await handle.j.aclose()
    (handle.folder / "clean").unlink()
    path = handle.folder / "journal.db"
    blob = bytearray(path.read_bytes())
    for page in range(3, len(blob) // 4096, 3):
        blob[page * 4096 : page * 4096 + 12] = b"\xee" * 12
    path.write_bytes(blob)
    error = await refused(handle.folder)
    assert error.code == "E-STORAGE"
    path.write_bytes(b"")
    await handle.open()


# --- files and room ---


async def test_a_long_wal_is_truncated(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance.Maintenance, "WAL_LIMIT", 1_000_000)
    wal = handle.folder / "journal.db-wal"
    await handle.append(LedgerWritten("t", tuple(LedgerWrite(b"%d" % n, bytes(10_000)) for n in range(150))))
    await until(lambda: wal.stat().st_size == 0)
    assert len(await handle.j.ledger_page("t", b"", None, 1_000)) == 150


async def test_space_is_given_back_when_idle(handle: Handle) -> None:
    for seq in range(1, 300):
        handle.j.accept(accepted(seq, data=bytes(40_000), dedup=False), lambda answer: None)
    await handle.append(LedgerWritten("t", ()))
    await until(lambda: handle.j.stats().bytes > 10_000_000)
    for seq in range(1, 300):
        await handle.append(ended(succeeded(seq * 10), run=None))

    def pages(reads: Any) -> int:
        return int(reads._connection.pragma("page_count"))

    deadline = time.monotonic() + 10
    while (left := await handle.j._ask(pages)) > 1_500:  # type: ignore[union-attr]
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.07)  # a piece of the work is done when nothing was asked for 50 ms
    assert handle.j.stats().bytes - handle.j.stats().wal_bytes < 2_000_000


async def test_a_busy_journal_does_its_idle_work_all_the_same(filled: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_IDLE", 60.0)
    monkeypatch.setattr(maintenance, "_OVERDUE", 0.01)
    (filled.folder / "clean").unlink()
    await filled.open()
    deadline = time.monotonic() + 10
    while filled.j.writer._maintenance.scrubbing:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        await filled.append(LedgerWritten("t", ()))


async def test_too_much_waiting_refuses_events_at_the_door(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PENDING_OPS", 10)
    answers: list[Any] = []
    for seq in range(1, 21):
        handle.j.accept(accepted(seq), answers.append)
    await handle.append(LedgerWritten("t", ()))
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 10
    assert sum(isinstance(answer, Stored) for answer in answers) == 10
    assert isinstance(await handle.accept(accepted(50)), Stored)


async def test_a_callback_that_raises_keeps_no_other_from_its_answer(handle: Handle) -> None:
    told: list[Any] = []
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["exception"]))

    def raises(answer: object) -> None:
        raise ValueError("a mistake")

    handle.j.accept(accepted(1), raises)
    handle.j.accept(accepted(2), told.append)
    await handle.append(LedgerWritten("t", ()))
    assert told == [Stored("event-2", False)]
    assert [str(error) for error in heard] == ["a mistake"]
    asyncio.get_running_loop().set_exception_handler(None)


async def test_after_closing_nothing_is_taken(handle: Handle) -> None:
    told: list[Any] = []
    handle.j.accept(accepted(1), told.append)
    await handle.j.aclose()
    await handle.j.aclose()
    assert told == [Stored("event-1", False)]
    assert (await handle.accept(accepted(2))).code == "E-DRAINING"  # type: ignore[union-attr]
    with pytest.raises(EventdError):
        await handle.j.load()
    with pytest.raises(EventdError):
        handle.j.append([], lambda: None)
    await handle.open()
    assert await handle.seqs() == [10]


async def test_expired_duplicate_rows_are_forgotten_as_others_come(handle: Handle) -> None:
    for seq in range(1, 41):
        await handle.accept(accepted(seq, at=1_000))
    late = 1_000 + SETTINGS.dedup_window_ms
    for seq in range(41, 45):
        await handle.accept(accepted(seq, at=late))

    def rows(reads: Any) -> int:
        return int(reads._connection.execute("SELECT count(*) FROM dedup").fetchall()[0][0])

    assert await handle.j._ask(rows) == 4  # type: ignore[union-attr]


async def test_queues_and_counts_are_read_from_indexes_alone(handle: Handle) -> None:
    await handle.accept(accepted(1))

    def plan(reads: Any) -> list[str]:
        found = []
        for sql in (
            "SELECT queue, count(*), min(due_at) FROM invocations WHERE state IN (0, 2) GROUP BY queue",
            "SELECT queue, count(*) FROM invocations WHERE state = 3 GROUP BY queue",
            "SELECT queue, count(*) FROM invocations WHERE state = 4 GROUP BY queue",
            "SELECT seq FROM invocations WHERE state = 1 ORDER BY seq",
            "SELECT id FROM invocations WHERE state = 4 AND dead_at < 5 ORDER BY dead_at, seq LIMIT 5",
            "SELECT id FROM invocations INDEXED BY invocations_ready WHERE queue = 1 AND state IN (0, 2) AND (due_at, seq) > (1, 1)"
            " AND due_at <= 5 ORDER BY due_at, seq LIMIT 5",
        ):
            found.append(" ".join(str(row[3]) for row in reads._connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()))
        return found

    plans = await handle.j._ask(plan)  # type: ignore[union-attr]
    for text, index in zip(plans, ("ready", "held", "dead_queue", "running", "dead", "ready"), strict=True):
        assert f"INDEX invocations_{index}" in text, text
        assert "TEMP B-TREE" not in text, text
    assert all("COVERING" in text for text in plans[:3]), plans


async def test_a_backlog_is_counted_at_start_without_reading_its_rows(handle: Handle) -> None:
    rows = 20_000
    done = asyncio.get_running_loop().create_future()
    for seq in range(1, rows + 1):
        handle.j.accept(
            accepted(seq, f"f{seq % 10}", data=b"1", dedup=False), lambda answer, seq=seq: seq == rows and done.set_result(answer)
        )
    await done
    await handle.j.aclose()
    started = time.monotonic()
    await handle.open()
    boot = await handle.j.load()
    assert time.monotonic() - started < 1
    assert sum(queue.open for queue in boot.queues) == rows
    assert len(boot.queues) == 10


async def test_discarding_a_payload_leaves_none_of_it_in_the_tables(handle: Handle) -> None:
    await handle.accept(accepted(1, data=b'"the secret"'))
    await handle.append(ended(dead(10)), ended(retrying(10, 5), run=None), ended(dead(10), run=None))
    await handle.append(Discarded((10,), 9_000))

    def count(reads: Any) -> int:
        return int(reads._connection.execute("SELECT count(*) FROM events").fetchall()[0][0])

    assert await handle.j._ask(count) == 0  # type: ignore[union-attr]
