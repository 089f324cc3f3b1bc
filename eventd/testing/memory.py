"""The durable half of `FakeSite`: an in-memory disk that outlives a crash, and a journal that commits to it in groups."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from eventd.sdk import Conflict, Event, EventdError, Receipt, Settlement

__all__ = ["Disk", "Emitted", "FakeJournal", "FakeState", "checked"]

T = TypeVar("T")
Writes = Mapping[bytes, bytes | None]
_LONGEST_ID = 256
_PAGE = 16


@dataclass(frozen=True, slots=True)
class Emitted:
    """A stored event: `data` is the payload decoded from JSON, `raw` its bytes, `state` the ledger writes of the same step."""

    id: str
    event: Event
    data: Any
    raw: bytes
    state: Writes
    at_ms: int


@dataclass(slots=True)
class Disk:
    """What survives a crash."""

    ledger: dict[bytes, bytes] = field(default_factory=dict)
    seen: dict[str, bytes] = field(default_factory=dict)
    emitted: list[Emitted] = field(default_factory=list)
    owed: dict[int, Settlement] = field(default_factory=dict)
    next_owed: int = 1

    def write(self, writes: Writes) -> None:
        for key, value in writes.items():
            if value is None:
                self.ledger.pop(key, None)
            else:
                self.ledger[key] = value

    def accept(self, new: Emitted) -> Receipt:
        """Store the event and its ledger writes; a duplicate only its ledger writes; a conflict (raised) nothing."""
        name = new.id if len(new.id.encode()) <= _LONGEST_ID else hashlib.sha256(new.id.encode()).hexdigest()
        mark = hashlib.blake2b(new.raw, digest_size=16).digest() if new.event.fingerprint is None else new.event.fingerprint
        if self.seen.get(name, mark) != mark:
            raise Conflict(f"the event {name} came with another body.")
        duplicate = name in self.seen
        if not duplicate:
            if new.event.id is not None:
                self.seen[name] = mark
            self.emitted.append(Emitted(name, new.event, new.data, new.raw, new.state, new.at_ms))
        self.write(new.state)
        return Receipt(name, duplicate)

    def owe(self, event: str, *, ok: bool) -> Settlement:
        found = next((one for one in self.emitted if one.id == event), None)
        if found is None or not found.event.notify:
            raise AssertionError(f"no stored event {event!r} asked to be notified")
        owed = self.owed[self.next_owed] = Settlement(self.next_owed, event, found.event.key, ok)
        self.next_owed += 1
        return owed


@dataclass(slots=True)
class _Commit:
    apply: Callable[[], None]
    """Runs at the commit; it reports its own result and never raises."""
    dropped: bool = False


@dataclass(slots=True)
class FakeJournal:
    """One life of the journal over a disk. Once dead, nothing asked of it ever returns, as in a killed process."""

    disk: Disk
    cancel_stores: bool = True
    dead: bool = False
    held: bool = False
    waiting: deque[_Commit] = field(default_factory=deque)

    async def alive(self) -> None:
        """A yield; for ever when dead."""
        if self.dead:
            await anyio.sleep_forever()
        await asyncio.sleep(0)

    def enqueue(self, apply: Callable[[], None]) -> _Commit:
        """Never runs `apply` before it returns."""
        commit = _Commit(apply)
        if not self.dead:
            self.waiting.append(commit)
            asyncio.get_running_loop().call_soon(self.flush)
        return commit

    def flush(self) -> None:
        """Everything waiting becomes durable in one step, in order: the group commit."""
        while self.waiting and not self.held:
            commit = self.waiting.popleft()
            if not commit.dropped:
                commit.apply()

    async def committed(self, change: Callable[[], T]) -> T:
        """Return what `change` returned (or raise its EventdError) once it is durable. On cancel: see `cancel_stores`."""
        await self.alive()
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def apply() -> None:
            try:
                value = change()
            except EventdError as refused:
                if not result.done():
                    result.set_exception(refused)
            else:
                if not result.done():
                    result.set_result(value)

        commit = self.enqueue(apply)
        try:
            return await result
        except asyncio.CancelledError:
            commit.dropped = not self.cancel_stores
            raise

    def crash(self) -> None:
        self.dead = True
        self.waiting.clear()


class FakeState:
    """`eventd.sdk.State` on a fake journal."""

    def __init__(self, journal: FakeJournal) -> None:
        self._journal = journal

    async def get(self, key: bytes) -> bytes | None:
        await self._journal.alive()
        return self._journal.disk.ledger.get(key)

    async def items(self, prefix: bytes = b"") -> AsyncIterator[tuple[bytes, bytes]]:
        ledger = self._journal.disk.ledger
        last: bytes | None = None
        while True:
            await self._journal.alive()
            page = sorted(key for key in ledger if key.startswith(prefix) and (last is None or key > last))[:_PAGE]
            for key in page:
                if key in ledger:
                    yield key, ledger[key]
            if len(page) < _PAGE:
                return
            last = page[-1]

    async def put(self, writes: Writes) -> None:
        copy = checked(writes)
        await self._journal.committed(lambda: self._journal.disk.write(copy))


def checked(writes: Writes | None) -> dict[bytes, bytes | None]:
    """A copy. TypeError for anything but bytes."""
    copy = dict(writes or {})
    for key, value in copy.items():
        if not isinstance(key, bytes) or not (value is None or isinstance(value, bytes)):
            raise TypeError(f"ledger keys and values are bytes, not {key!r}: {value!r}")
    return copy
