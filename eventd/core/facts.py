"""The journal's vocabulary: a fact is one change to its tables. Facts of one group commit are one transaction.

The tables are tables of the present (D1): open and dead invocations with their events, the duplicate window, each
trigger's ledger, what is owed, and an outbox of ended runs and invocations on their way to the run history.
"""

from __future__ import annotations

from msgspec import Struct

from eventd.model import End, Reason, RunRecord, State


class EventRow(Struct, frozen=True, gc=False):
    """An accepted event. `seq` orders all events of this state folder; `fingerprint` tells two bodies apart."""

    seq: int
    id: str
    source: str
    trigger: str | None
    received_at: int
    data: bytes
    key: str | None = None
    notify: bool = False
    """Whether the trigger is owed a settlement when every invocation of this event is settled."""
    dedup: bool = True
    """Whether (source, id) is looked up and kept for the duplicate window."""
    fingerprint: bytes = b""
    trace: str = ""


class InvocationRow(Struct, frozen=True, gc=False):
    """One (event, binding) pair. `seq` is unique and rises; `event` is the event's seq."""

    seq: int
    id: str
    event: int
    binding: str | None
    function: str
    state: State
    due_at: int
    accepted_at: int
    attempts: int = 0
    lost: int = 0
    """`lost` runs in a row, for the quarantine."""
    key: str | None = None
    serial: bool = False
    solo: bool = False
    """Never batched again: a batch with this member ended without a definite answer (D5)."""
    end: End | None = None
    reason: Reason | None = None
    first_at: int | None = None
    error_type: str | None = None
    error_message: str | None = None


class LedgerWrite(Struct, frozen=True, gc=False):
    """One change of a trigger's own key-value store; None deletes the key."""

    key: bytes
    value: bytes | None


class Accepted(Struct, frozen=True):
    """An event, its invocations and the trigger's ledger writes, all or nothing, unless it is a duplicate."""

    event: EventRow
    invocations: tuple[InvocationRow, ...]
    ledger: tuple[LedgerWrite, ...] = ()


class Began(Struct, frozen=True):
    """A run of these invocations begins. Durable before the run, so that a lost attempt is counted."""

    run: str
    seqs: tuple[int, ...]
    at: int


class Moved(Struct, frozen=True, gc=False):
    """An invocation's new standing after a run, a cancel, an expiry, a redrive or a clock step."""

    seq: int
    state: State
    attempts: int
    lost: int
    due_at: int
    at: int
    end: End | None = None
    reason: Reason | None = None
    solo: bool = False
    error_type: str | None = None
    error_message: str | None = None


class Ended(Struct, frozen=True):
    """A run ended: its record (None when something ended without a run) and where each invocation stands now."""

    record: RunRecord | None
    moves: tuple[Moved, ...]


class Discarded(Struct, frozen=True):
    """Dead invocations whose payload a person gave up; the record of the death stays."""

    seqs: tuple[int, ...]
    at: int


class LedgerWritten(Struct, frozen=True):
    trigger: str
    writes: tuple[LedgerWrite, ...]


class Acknowledged(Struct, frozen=True):
    """What was owed has been done, together with the ledger writes that say so."""

    owed: int
    trigger: str | None = None
    writes: tuple[LedgerWrite, ...] = ()


class PauseSet(Struct, frozen=True):
    """`kind` is function, trigger or binding. Kept across restarts."""

    kind: str
    name: str
    paused: bool


class Copied(Struct, frozen=True):
    """Outbox rows up to and including `upto` are in the run history and may go."""

    upto: int


class Expired(Struct, frozen=True):
    """Dead invocations older than the history keeps them; a recorded end, counted."""

    seqs: tuple[int, ...]


Fact = Accepted | Began | Ended | Discarded | LedgerWritten | Acknowledged | PauseSet | Copied | Expired
