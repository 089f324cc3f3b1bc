"""What each fact does to the tables: one meaning for the sqlite and the memory journal, over a narrow set of table operations.

Nothing here commits. The caller brackets a batch in one transaction and answers only after it is durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from eventd.core.facts import (
    Accepted,
    Acknowledged,
    Began,
    Copied,
    Discarded,
    Ended,
    EventRow,
    Expired,
    Fact,
    LedgerWrite,
    LedgerWritten,
    Moved,
    PauseSet,
)
from eventd.errors import Conflict
from eventd.journal.codec import EventMeta, Kept, clean, damaged, data_digest, ended_of, identity, kept_of, pack_members, unpack_members
from eventd.model import End, RunRecord, State
from eventd.ports import Json, OwedRow, Stored


class Tables(Protocol):
    """The tables of the present. What is read has had its digest checked (E-DAMAGED is raised otherwise)."""

    def claim(self, key: bytes, seq: int, fingerprint: bytes, now: int, expires_at: int) -> bytes | None:
        """Enter a duplicate-window row. None: it is new. Else the fingerprint of the first, which stands until it expires."""
        ...

    def put_event(self, meta: EventMeta, data: bytes) -> None: ...
    def event(self, seq: int) -> EventMeta | None: ...
    def mark_failed(self, meta: EventMeta) -> None: ...
    def drop_event(self, seq: int) -> None: ...
    def put_invocation(self, kept: Kept) -> None: ...
    def invocation(self, seq: int) -> Kept | None: ...
    def update_invocation(self, kept: Kept) -> None: ...
    def drop_invocation(self, seq: int) -> None: ...
    def ledger(self, trigger: str, writes: Sequence[LedgerWrite]) -> None: ...
    def add_owed(self, trigger: str, event: str, key: str | None, ok: bool) -> OwedRow: ...
    def drop_owed(self, seq: int) -> None: ...
    def add_outbox(self, record: RunRecord | None, ended: Json | None) -> None: ...
    def drop_outbox(self, upto: int) -> None: ...
    def pause(self, kind: str, name: str, paused: bool) -> None: ...
    def used(self, event: int, invocation: int) -> None:
        """These seqs are taken; `next_event` and `next_invocation` of the next boot are above them."""
        ...


def accept(tables: Tables, fact: Accepted, window_ms: int, owed: list[OwedRow]) -> Stored | Conflict:
    """Store an acceptance, or say that it is a duplicate (only the ledger is written) or a conflict (nothing is).

    The event's own time of receipt is the clock of the duplicate window. An event none of whose invocations stays open or dead
    leaves no payload here. An event without any invocation owes no settlement: nothing has been done with it.
    """
    event = fact.event
    if event.dedup:
        first = tables.claim(
            identity(event.source, event.id), event.seq, event.fingerprint, event.received_at, event.received_at + window_ms
        )
        if first is not None:
            if first != event.fingerprint:
                return Conflict(f"event {event.id[:256]!r} of source {event.source[:256]!r} came before with another body.")
            if fact.ledger:
                tables.ledger(event.trigger or "", fact.ledger)
            return Stored(event.id, True)
    if fact.ledger:
        tables.ledger(event.trigger or "", fact.ledger)
    stays = [row for row in fact.invocations if row.state is not State.SETTLED or row.end is End.DEAD]
    meta = _meta(event, [row.seq for row in stays], any(row.end is End.CANCELLED for row in fact.invocations))
    tables.used(event.seq, max((row.seq for row in fact.invocations), default=0))
    if stays:
        tables.put_event(meta, event.data)
    still_open = False
    for row in fact.invocations:
        if row.state is not State.SETTLED:
            still_open = True
            tables.put_invocation(kept_of(row))
        elif row.end is End.DEAD:
            tables.put_invocation(kept_of(row, row.accepted_at))
        else:
            tables.add_outbox(None, ended_of(meta, kept_of(row), row.end or End.SKIPPED, row.reason, row.accepted_at))
    if fact.invocations and not still_open:
        _owe(tables, meta, not meta.failed and not stays, owed)
    return Stored(event.id, False)


def _meta(event: EventRow, members: list[int], failed: bool) -> EventMeta:
    return EventMeta(
        event.seq, event.id, event.source, event.trigger, event.received_at, event.key, event.notify, event.dedup, failed,
        event.fingerprint, event.trace, pack_members(members), len(event.data), data_digest(event.data),
    )  # fmt: skip


def append(tables: Tables, fact: Fact, window_ms: int, owed: list[OwedRow]) -> None:
    """Apply one fact. A fact about an invocation that is gone, or the beginning of a dead one, changes nothing."""
    match fact:
        case Ended():
            _ended(tables, fact, owed)
        case Began():
            for seq in fact.seqs:
                _began(tables, seq, fact)
        case Accepted():
            accept(tables, fact, window_ms, owed)
        case Acknowledged():
            tables.drop_owed(fact.owed)
            if fact.writes:
                tables.ledger(fact.trigger or "", fact.writes)
        case LedgerWritten():
            tables.ledger(fact.trigger, fact.writes)
        case Copied():
            tables.drop_outbox(fact.upto)
        case PauseSet():
            tables.pause(fact.kind, fact.name, fact.paused)
        case Discarded() | Expired():
            for seq in fact.seqs:
                _gone(tables, seq)
        case _:
            assert_never(fact)


def _began(tables: Tables, seq: int, fact: Began) -> None:
    kept = tables.invocation(seq)
    if kept is None or kept.state is State.SETTLED:  # a dead one runs again only when it was redriven
        return
    kept.state = State.RUNNING
    kept.attempts += 1
    kept.run = fact.run
    kept.began_at = fact.at
    if kept.first_at is None:
        kept.first_at = fact.at
    tables.update_invocation(kept)


def _ended(tables: Tables, fact: Ended, owed: list[OwedRow]) -> None:
    """One outbox row holds the run's record and its first ended invocation; a batch's others have rows of their own."""
    record = fact.record
    for move in fact.moves:
        ended = _moved(tables, move, owed)
        if ended is not None:
            tables.add_outbox(record, ended)
            record = None
    if record is not None:
        tables.add_outbox(record, None)


def _moved(tables: Tables, move: Moved, owed: list[OwedRow]) -> Json | None:
    """Carry out one move; the `ended` mapping if the invocation leaves the tables."""
    kept = tables.invocation(move.seq)
    if kept is None:
        return None
    was_dead = kept.state is State.SETTLED
    kept.attempts = move.attempts
    kept.lost = move.lost
    kept.due_at = move.due_at
    kept.solo = move.solo
    kept.reason = move.reason
    kept.error_type = clean(move.error_type)
    kept.error_message = clean(move.error_message)
    if move.state is not State.RUNNING:
        kept.run = kept.began_at = None
    kept.state = move.state
    dies = move.state is State.SETTLED and move.end is End.DEAD
    kept.end = End.DEAD if dies else None
    kept.dead_at = move.at if dies else None
    if move.state is not State.SETTLED:
        if was_dead:  # redriven: its age counts from now
            kept.accepted_at = move.at
        tables.update_invocation(kept)
        return None
    meta = _event_of(tables, kept)
    if dies:
        tables.update_invocation(kept)
        if not was_dead:
            _settled(tables, meta, kept.seq, End.DEAD, owed)
        return None
    end = move.end or End.CANCELLED
    tables.drop_invocation(kept.seq)
    _settled(tables, meta, kept.seq, end, owed)
    return ended_of(meta, kept, end, move.reason, move.at)


def _gone(tables: Tables, seq: int) -> None:
    """A dead invocation is discarded or expires: the row and perhaps the payload go, the record of the death stays.

    Only what is dead at this moment: one that was redriven meanwhile is left alone.
    """
    kept = tables.invocation(seq)
    if kept is None or kept.state is not State.SETTLED:
        return
    meta = _event_of(tables, kept)
    tables.drop_invocation(seq)
    tables.add_outbox(None, ended_of(meta, kept, End.DEAD, kept.reason, kept.dead_at or kept.accepted_at))
    states = _others(tables, meta, seq)
    if not states:
        tables.drop_event(meta.seq)
    elif not meta.failed:  # a dead one among the others may be redriven, and settle the event once more
        tables.mark_failed(meta)


def _settled(tables: Tables, meta: EventMeta, seq: int, end: End, owed: list[OwedRow]) -> None:
    """After one invocation settled: forget a payload that nothing needs (D17), and owe what the trigger waits for.

    `ok` means that none is dead and none was cancelled, since only then has every binding had its run (D11). A redriven
    invocation that settles again owes a new settlement, which corrects the one before.
    """
    states = _others(tables, meta, seq)
    if any(state is not State.SETTLED for state in states):
        if end is End.CANCELLED and not meta.failed:
            tables.mark_failed(meta)
        return
    if not states and end is not End.DEAD:
        tables.drop_event(meta.seq)
    elif end is End.CANCELLED and not meta.failed:
        tables.mark_failed(meta)
    _owe(tables, meta, not meta.failed and not states and end not in (End.DEAD, End.CANCELLED), owed)


def _owe(tables: Tables, meta: EventMeta, ok: bool, owed: list[OwedRow]) -> None:
    if meta.notify and meta.trigger is not None:
        owed.append(tables.add_owed(meta.trigger, meta.id, meta.key, ok))


def _others(tables: Tables, meta: EventMeta, seq: int) -> list[State]:
    """The states of the event's other invocations that are still in the tables: open ones and dead ones."""
    if len(meta.members) == 8:
        return []
    return [kept.state for member in unpack_members(meta.members) if member != seq and (kept := tables.invocation(member)) is not None]


def _event_of(tables: Tables, kept: Kept) -> EventMeta:
    meta = tables.event(kept.event)
    if meta is None:
        raise damaged("events", kept.event)
    return meta
