"""Promise 3: a full disk refuses events and heals; any other storage error ends the journal, once, with nothing after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from journal_faults import Disk, eio, faulty_disk, full
from journal_harness import SETTINGS, Handle, accepted, began, ended, succeeded
from msgspec import structs

from eventd.core.facts import LedgerWrite, LedgerWritten
from eventd.errors import EventdError, Overloaded
from eventd.journal import SqliteJournal, folder, maintenance
from eventd.journal.writer import STEPS
from eventd.ports import Query, Stored

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture
def disk() -> Iterator[Disk]:
    with faulty_disk() as made:
        yield made


@pytest.fixture
async def handle(tmp_path: Path, disk: Disk) -> AsyncIterator[Handle]:
    made = await Handle("sqlite", tmp_path / "state").open()
    yield made
    disk.calm()
    with contextlib.suppress(EventdError):
        await made.j.aclose()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def unplugged(name: str) -> None:
    raise OSError(5, "unplugged")


# --- errors that end the journal ---


@pytest.mark.parametrize(
    ("operation", "error"),
    [("sync", eio), ("write", lambda: eio(apsw.SQLITE_IOERR_WRITE)), ("write", lambda: apsw.CorruptError("damaged"))],
    ids=["fsync-eio", "write-eio", "corrupt"],
)
async def test_an_error_of_the_disk_ends_the_journal_and_is_told_once(
    handle: Handle, disk: Disk, operation: str, error: Callable[[], Exception]
) -> None:
    await handle.accept(accepted(1))
    told: list[Any] = []
    disk.arm(lambda what, name, count: error() if what == operation and name.endswith("-wal") and count == 0 else None)
    handle.j.accept(accepted(2), told.append)
    handle.j.append([began(10)], lambda: told.append("began"))
    await until(lambda: bool(handle.failures))
    # The disk is well again by now, as it seems after one EIO from fsync: that must change nothing.
    handle.j.accept(accepted(3), told.append)
    handle.j.append([began(10)], lambda: told.append("began"))
    handle.j.event(1, told.append)
    with pytest.raises(EventdError) as caught:
        await handle.j.load()
    assert caught.value is handle.failures[0]
    await handle.j.aclose()
    assert told == []
    assert [error.code for error in handle.failures] == ["E-STORAGE"]
    assert "journal.db" in str(handle.failures[0])
    again = await Handle("sqlite", handle.folder).open()
    assert [row.seq for row in await again.j.invocations(["inv-10"])] == [10]
    await again.j.aclose()


async def test_reads_that_wait_raise_what_ended_the_journal(handle: Handle, disk: Disk) -> None:
    disk.arm(lambda what, name, count: eio() if what == "sync" else None)
    handle.j.append([LedgerWritten("t", (LedgerWrite(b"k", b"v"),))], lambda: None)
    with pytest.raises(EventdError) as caught:
        await handle.j.outbox(10)
    assert caught.value.code == "E-STORAGE"


async def test_an_fsync_that_fails_in_a_checkpoint_ends_the_journal_too(
    handle: Handle, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own automatic checkpoint would swallow it, and reset a WAL whose pages are not on the disk."""
    monkeypatch.setattr(maintenance, "_CHECKPOINT_FRAMES", 8)
    disk.arm(lambda what, name, count: eio() if what == "sync" and name == "journal.db" else None)
    told: list[Any] = []
    for seq in range(1, 20):
        handle.j.accept(accepted(seq, data=bytes(3000)), told.append)
    await until(lambda: bool(handle.failures))
    assert handle.failures[0].code == "E-STORAGE"
    assert all(isinstance(answer, Stored) for answer in told)
    stored = len(told)
    disk.calm()
    again = await Handle("sqlite", handle.folder).open()
    assert len(await again.seqs()) >= stored
    await again.j.aclose()


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("reserve", "close", "checkpoint")])
async def test_broken_at_each_step_of_a_commit(handle: Handle, step: str) -> None:
    """Before the commit nothing is stored; after it everything is; in both cases nobody is told."""
    assert isinstance(handle.j.stats().bytes, int)
    await handle.accept(accepted(1))

    def broken(name: str) -> None:
        if name == step:
            raise OSError(5, "broken here")

    handle.j.writer.step = broken  # type: ignore[union-attr]
    told: list[Any] = []
    handle.j.accept(accepted(2), told.append)
    await until(lambda: bool(handle.failures))
    assert told == []
    assert [error.code for error in handle.failures] == ["E-STORAGE"]
    await handle.j.aclose()
    again = await Handle("sqlite", handle.folder).open()
    assert await again.seqs() == ([10, 20] if step in ("after-commit", "before-answer") else [10])
    await again.j.aclose()


async def test_closing_tells_that_it_could_not_make_durable_what_was_appended(handle: Handle, disk: Disk) -> None:
    disk.arm(lambda what, name, count: eio() if what == "sync" else None)
    handle.j.append([LedgerWritten("t", (LedgerWrite(b"k", b"v"),))], lambda: None)
    with pytest.raises(EventdError) as caught:
        await handle.j.aclose()
    assert caught.value.code == "E-STORAGE"


# --- a full disk ---


async def test_a_full_disk_refuses_events_and_stores_facts_out_of_the_reserve(handle: Handle, disk: Disk) -> None:
    await handle.accept(accepted(1))
    reserve = handle.folder / "reserve"
    assert reserve.stat().st_size == folder.RESERVE_BYTES
    assert reserve.stat().st_blocks * 512 >= folder.RESERVE_BYTES
    disk.arm(lambda what, name, count: full() if what == "write" and reserve.exists() else None)
    told: list[Any] = []
    handle.j.accept(accepted(2), told.append)
    handle.j.append([began(10)], lambda: told.append("began"))
    await until(lambda: len(told) == 2)
    assert isinstance(told[0], Overloaded)
    assert "full" in str(told[0])
    assert told[1] == "began"
    assert handle.failures == []
    assert [row.seq for row, _, _ in (await handle.j.load()).running] == [10]
    disk.calm()
    await until(reserve.exists)
    await until(lambda: not handle.j.stats().overloaded)
    assert await handle.accept(accepted(2)) == Stored("event-2", False)


async def test_while_nothing_can_be_stored_facts_wait_in_order_and_events_are_refused_at_once(handle: Handle, disk: Disk) -> None:
    await handle.accept(accepted(1, data=b"[1]"))
    disk.arm(lambda what, name, count: full() if what == "write" else None)
    told: list[Any] = []
    handle.j.append([began(10)], lambda: told.append("began"))
    await until(lambda: bool(handle.j.stats().overloaded))
    assert handle.j.stats().overloaded == "the disk is full"
    handle.j.append([ended(succeeded(10))], lambda: told.append("ended"))
    handle.j.page("t/f", "f", (-1, -1), 10**12, 10, lambda rows, due: told.append(list(rows)))
    refused = await asyncio.gather(*(handle.accept(accepted(seq)) for seq in range(2, 30)))
    assert all(isinstance(answer, Overloaded) for answer in refused)
    assert told == []
    assert not (handle.folder / "reserve").exists()
    disk.calm()
    await until(lambda: len(told) == 3)
    assert told == ["began", "ended", []]
    assert handle.failures == []
    await until(lambda: not handle.j.stats().overloaded)
    assert isinstance(await handle.accept(accepted(40)), Stored)
    assert [row.record.run for row in await handle.j.outbox(10) if row.record] == ["run-1"]


async def test_closing_on_a_full_disk_gives_up_after_a_while(handle: Handle, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventd.journal.writer._CLOSE_PATIENCE", 0.2)
    disk.arm(lambda what, name, count: full() if what == "write" else None)
    handle.j.append([LedgerWritten("t", (LedgerWrite(b"k", b"v"),))], lambda: None)
    with pytest.raises(EventdError) as caught:
        await handle.j.aclose()
    assert caught.value.code == "E-STORAGE"
    assert "1 changes" in caught.value.message


@pytest.mark.parametrize("clean", [True, False])
async def test_it_starts_on_a_full_disk_and_heals(tmp_path: Path, disk: Disk, clean: bool) -> None:
    handle = await Handle("sqlite", tmp_path / "state").open()
    await handle.accept(accepted(1))
    if clean:
        await handle.j.aclose()
    else:
        handle.j.writer.step = unplugged  # type: ignore[union-attr]
        handle.j.append([], lambda: None)
        await until(lambda: bool(handle.failures))
        handle.failures.clear()
    disk.arm(lambda what, name, count: full() if what == "write" else None)
    await handle.open()
    assert await handle.seqs() == [10]
    assert isinstance(await handle.accept(accepted(2)), Overloaded)
    disk.calm()
    await until(lambda: not handle.j.stats().overloaded)
    assert isinstance(await handle.accept(accepted(2)), Stored)
    await handle.j.aclose()


async def test_too_little_free_disk_refuses_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10**9
    monkeypatch.setattr(folder.Folder, "free_bytes", lambda self: free)
    handle = await Handle("sqlite", tmp_path / "state", structs.replace(SETTINGS, min_free=10**6)).open()
    assert isinstance(await handle.accept(accepted(1)), Stored)
    free = 10**6 - 1
    await until(lambda: bool(handle.j.stats().overloaded) or not handle.j.append([LedgerWritten("t", ())], lambda: None))
    await until(lambda: "nearly full" in handle.j.stats().overloaded or bool(handle.j.append([LedgerWritten("t", ())], lambda: None)))
    answer = await handle.accept(accepted(2))
    assert isinstance(answer, Overloaded)
    assert "nearly full" in str(answer)
    await handle.append(began(10), ended(succeeded(10)))
    free = 10**9
    await until(lambda: not handle.j.stats().overloaded)
    assert isinstance(await handle.accept(accepted(2)), Stored)
    await handle.j.aclose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB; a user who may not mount makes one in a namespace of their own, see below."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path, blocks: int) -> None:
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        for _ in range(blocks):
            ballast.write(bytes(4096))


async def fill_and_heal(place: Path) -> None:
    """Fill a real file system under the journal, settle on the reserve, make room, go on; then everything is there."""
    handle = await Handle("sqlite", place / "state").open()
    stored = [seq for seq in range(1, 6) if isinstance(await handle.accept(accepted(seq, data=bytes(1000))), Stored)]
    assert stored == [1, 2, 3, 4, 5]
    room = os.statvfs(place)
    fill(place / "ballast", room.f_bavail)
    seq = 10
    while isinstance(answer := await handle.accept(accepted(seq, data=bytes(100_000))), Stored):
        stored.append(seq)
        seq += 1
        assert seq < 1_000
    assert isinstance(answer, Overloaded)
    for number in stored:
        await handle.append(began(number * 10, run=f"r{number}"))
        await handle.append(ended(succeeded(number * 10), run=f"r{number}"))
    assert isinstance(await handle.accept(accepted(seq, data=bytes(100_000))), (Overloaded, Stored))
    os.unlink(place / "ballast")
    deadline = time.monotonic() + 10
    while not isinstance(await handle.accept(accepted(2_000, data=bytes(100_000))), Stored):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await until((place / "state" / "reserve").exists)
    assert handle.failures == []
    await handle.reopen()
    assert [row.record.run for row in await handle.j.outbox(10_000) if row.record] == [f"r{number}" for number in stored]
    assert 20_000 in await handle.seqs()
    await handle.j.aclose()


if os.geteuid() == 0:

    async def test_a_real_full_disk_heals(small_disk: Path) -> None:
        await fill_and_heal(small_disk)

else:

    async def test_a_real_full_disk_heals(tmp_path: Path) -> None:
        """Without the right to mount, the same with a VFS that counts bytes."""
        limit = {"left": 3_000_000}
        state = tmp_path / "state"

        def rule(what: str, name: str, count: int) -> Exception | None:
            if what == "write" and state.exists():
                limit["left"] -= 4096
            return full() if limit["left"] < 0 else None

        with faulty_disk() as small:
            handle = await Handle("sqlite", state).open()
            small.arm(rule)
            seq = 1
            while isinstance(await handle.accept(accepted(seq, data=bytes(100_000))), Stored):
                seq += 1
            limit["left"] = 10**9
            await until(lambda: not handle.j.stats().overloaded)
            assert isinstance(await handle.accept(accepted(seq)), Stored)
            assert (await handle.j.events(Query(limit=1))).rows[0]["event"] == f"event-{seq}"
            await handle.j.aclose()


async def test_a_journal_that_was_deleted_under_it_acknowledges_nothing_more(handle: Handle) -> None:
    await handle.accept(accepted(1))
    os.unlink(handle.folder / "journal.db")
    assert isinstance(handle.j, SqliteJournal)
    handle.j.writer._space_at = 0.0  # it looks every 100 ms; this time at once
    told: list[Any] = []
    handle.j.accept(accepted(2), told.append)
    await until(lambda: bool(handle.failures))
    assert told == []
    assert handle.failures[0].code == "E-STORAGE"
    assert "deleted or replaced" in handle.failures[0].message
