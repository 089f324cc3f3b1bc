"""Facts in few words, and both journals behind one handle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eventd.core.facts import Accepted, Began, Ended, EventRow, Fact, InvocationRow, LedgerWrite, Moved
from eventd.errors import EventdError
from eventd.journal import MemoryJournal, MemoryTables, SqliteJournal, open_journal
from eventd.model import End, JournalSettings, Lane, Outcome, Reason, RunRecord, State
from eventd.ports import OwedRow, Stored

SETTINGS = JournalSettings(min_free=0)
DAY = 86_400_000


def event(seq: int, *, data: bytes = b'{"a":1}', id: str | None = None, at: int = 1_000, print_: bytes = b"p", **more: Any) -> EventRow:
    return EventRow(seq, id or f"event-{seq}", "src", more.pop("trigger", "t"), at, data, fingerprint=print_, **more)


def inv(seq: int, of: int, function: str = "f", *, due: int = 1_000, **more: Any) -> InvocationRow:
    binding = more.pop("binding", f"t/{function}")
    return InvocationRow(seq, f"inv-{seq}", of, binding, function, more.pop("state", State.WAITING), due, 1_000, **more)


def accepted(seq: int, *functions: str, ledger: Sequence[LedgerWrite] = (), due: int = 1_000, **more: Any) -> Accepted:
    """An event with one invocation per function, numbered seq*10, seq*10+1, ..."""
    rows = tuple(inv(seq * 10 + place, seq, name, due=due) for place, name in enumerate(functions or ("f",)))
    return Accepted(event(seq, **more), rows, tuple(ledger))


def record(run: str = "run-1", **more: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "run": run, "invocation": "inv-10", "event": "event-1", "source": "src", "function": "f", "version": "abc", "trigger": "t",
        "binding": "t/f", "lane": Lane.DURABLE, "attempt": 1, "outcome": Outcome.SUCCEEDED, "cold": False, "received_at": 1_000,
        "started_at": 1_001, "ended_at": 1_002, "queue_ms": 1.5, "init_ms": None, "duration_ms": 2.5, "billed_ms": 3, "cpu_ms": 1.0,
        "memory_mb": 512, "max_memory_mb": 12, "gb_seconds": 0.0015, "bytes_in": 7, "bytes_out": 4, "output_bytes": 0,
        "output_truncated": False, "exit_status": None, "signal": None, "error_type": None, "error_message": None, "worker": "w",
        "boot": "b",
    }  # fmt: skip
    return RunRecord(**{**fields, **more})


def began(*seqs: int, run: str = "run-1", at: int = 2_000) -> Began:
    return Began(run, seqs, at)


def succeeded(seq: int, at: int = 3_000, attempts: int = 1) -> Moved:
    return Moved(seq, State.SETTLED, attempts, 0, 0, at, End.SUCCEEDED)


def dead(seq: int, at: int = 3_000, reason: Reason = Reason.RETRIES_EXHAUSTED, attempts: int = 3) -> Moved:
    return Moved(seq, State.SETTLED, attempts, 0, 0, at, End.DEAD, reason, error_type="Boom", error_message="it broke")


def retrying(seq: int, due: int, attempts: int = 1) -> Moved:
    return Moved(seq, State.RETRYING, attempts, 0, due, 3_000)


def redriven(seq: int, due: int = 4_000) -> Moved:
    return Moved(seq, State.WAITING, 0, 0, due, 4_000)


def ended(*moves: Moved, run: str | None = "run-1", **more: Any) -> Ended:
    return Ended(None if run is None else record(run, **more), moves)


class Handle:
    """A journal and what it told. `j` changes at `reopen`."""

    def __init__(self, kind: str, folder: Path, settings: JournalSettings = SETTINGS) -> None:
        self.kind = kind
        self.folder = folder
        self.settings = settings
        self.owed: list[OwedRow] = []
        self.failures: list[EventdError] = []
        self._tables = MemoryTables()

    async def open(self) -> Handle:
        self.j: SqliteJournal | MemoryJournal
        if self.kind == "sqlite":
            self.j = await open_journal(str(self.folder), self.settings, boot="boot")
        else:
            self.j = MemoryJournal(self.settings, tables=self._tables, auto=True)
        self.j.failed = self.failures.append
        self.j.on_owed = self.owed.append
        return self

    async def reopen(self) -> None:
        await self.j.aclose()
        await self.open()

    async def accept(self, fact: Accepted) -> Stored | EventdError:
        future: asyncio.Future[Stored | EventdError] = asyncio.get_running_loop().create_future()
        self.j.accept(fact, future.set_result)
        return await asyncio.wait_for(future, 10)

    async def append(self, *facts: Fact) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.j.append(facts, lambda: future.set_result(None))
        await asyncio.wait_for(future, 10)

    async def page(
        self, function: str = "f", *, binding: str | None = "", after: tuple[int, int] = (-1, -1), upto: int = 10**15, limit: int = 100
    ) -> tuple[list[InvocationRow], int | None]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        binding = f"t/{function}" if binding == "" else binding
        self.j.page(binding, function, after, upto, limit, lambda rows, due: future.set_result((list(rows), due)))
        found: tuple[list[InvocationRow], int | None] = await asyncio.wait_for(future, 10)
        return found

    async def event(self, seq: int) -> EventRow:
        future: asyncio.Future[EventRow] = asyncio.get_running_loop().create_future()
        self.j.event(seq, future.set_result)
        return await asyncio.wait_for(future, 10)

    async def payload(self, seq: int) -> bytes:
        return (await self.event(seq)).data

    async def seqs(self, function: str = "f") -> list[int]:
        return [row.seq for row in (await self.page(function))[0]]
