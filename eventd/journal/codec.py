"""How the nouns look in the tables: row digests, packed columns, the outbox, and the JSON rows that people see. Pure.

Every row carries a 16-byte BLAKE2b digest over all its columns, because SQLite's pages have no checksum of their own. A row
that does not match its digest is damaged: it is never returned and never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from struct import Struct as Packed
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from eventd.core.facts import Accepted, EventRow, InvocationRow
from eventd.errors import EventdError
from eventd.model import End, Reason, RunRecord, State
from eventd.ports import OutboxRow

STATES: Final = (State.WAITING, State.RUNNING, State.RETRYING, State.HELD, State.SETTLED)
"""A state's number in the tables is its place here; never reorder (the partial indexes name the numbers)."""
STATE_NUMBER: Final = {state: number for number, state in enumerate(STATES)}
_END: Final[dict[str | None, End | None]] = {None: None, **{end.value: end for end in End}}
_REASON: Final[dict[str | None, Reason | None]] = {None: None, **{reason.value: reason for reason in Reason}}
_pack = msgspec.msgpack.Encoder().encode
_MEMBER = Packed(">q")


class EventMeta(Struct, frozen=True, gc=False):
    """An event without its payload. `members` are its invocations' seqs; `failed`: one was cancelled or its death discarded."""

    seq: int
    id: str
    source: str
    trigger: str | None
    received_at: int
    key: str | None
    notify: bool
    dedup: bool
    failed: bool
    fingerprint: bytes
    trace: str
    members: bytes
    size: int
    data_digest: bytes


class Kept(Struct, gc=False):
    """An open or dead invocation as the tables hold it: the row plus its current run and when it died."""

    seq: int
    id: str
    event: int
    binding: str | None
    function: str
    state: State
    due_at: int
    accepted_at: int
    attempts: int
    lost: int
    key: str | None
    serial: bool
    solo: bool
    end: End | None
    reason: Reason | None
    first_at: int | None
    error_type: str | None
    error_message: str | None
    run: str | None = None
    began_at: int | None = None
    dead_at: int | None = None

    def row(self) -> InvocationRow:
        return InvocationRow(
            self.seq, self.id, self.event, self.binding, self.function, self.state, self.due_at, self.accepted_at, self.attempts,
            self.lost, self.key, self.serial, self.solo, self.end, self.reason, self.first_at, self.error_type, self.error_message,
        )  # fmt: skip


def kept_of(row: InvocationRow, dead_at: int | None = None) -> Kept:
    return Kept(
        row.seq, row.id, row.event, row.binding, row.function, row.state, row.due_at, row.accepted_at, row.attempts,
        row.lost, row.key, row.serial, row.solo, row.end, row.reason, row.first_at, row.error_type, row.error_message,
        None, None, dead_at,
    )  # fmt: skip


def digest(*columns: Any) -> bytes:
    """16 bytes over a row. MessagePack tags types and lengths, so no two different rows share an encoding."""
    return blake2b(_pack(columns), digest_size=16).digest()


def data_digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def identity(source: str, id: str) -> bytes:
    """The duplicate window's key: 16 bytes of (source, id)."""
    return blake2b(_pack(("id", source, id)), digest_size=16).digest()


def damaged(table: str, key: object) -> EventdError:
    return EventdError(
        "E-DAMAGED",
        f"journal.db, table {table}, row {key}: the row does not match its digest, so the disk or a person changed it.",
        "Stop, check the disk, and restore the state folder from a backup; the row is kept as it is and is never run.",
    )


def event_meta(row: Sequence[Any]) -> EventMeta:
    """From the columns of `EVENT_COLUMNS`, digest last. Raises E-DAMAGED."""
    seq, id, source, trigger, received_at, key, flags, fingerprint, trace, members, size, body, stored = row
    if digest("event", seq, id, source, trigger, received_at, key, flags, fingerprint, trace, members, size, body) != stored:
        raise damaged("events", seq)
    return EventMeta(
        seq, id, source, trigger, received_at, key, bool(flags & 1), bool(flags & 2), bool(flags & 4), fingerprint, trace,
        members, size, body,
    )  # fmt: skip


def event_columns(meta: EventMeta) -> tuple[Any, ...]:
    flags = meta.notify | meta.dedup << 1 | meta.failed << 2
    columns = (
        meta.seq, meta.id, meta.source, meta.trigger, meta.received_at, meta.key, flags, meta.fingerprint, meta.trace,
        meta.members, meta.size, meta.data_digest,
    )  # fmt: skip
    return (*columns, digest("event", *columns))


EVENT_COLUMNS: Final = "seq, id, source, trigger, received_at, key, flags, fingerprint, trace, members, bytes, data_digest, digest"
INVOCATION_COLUMNS: Final = (
    "seq, id, event, queue, state, due_at, accepted_at, attempts, lost, key, flags, reason, first_at, error_type, error_message,"
    " run, began_at, dead_at, digest"
)


def invocation_columns(kept: Kept, queue: int) -> tuple[Any, ...]:
    """The row for the tables. The digest covers the binding's and function's names, not only the queue's number."""
    state = STATE_NUMBER[kept.state]
    flags = kept.serial | kept.solo << 1
    columns = (
        kept.seq, kept.id, kept.event, queue, state, kept.due_at, kept.accepted_at, kept.attempts, kept.lost, kept.key, flags,
        kept.reason, kept.first_at, kept.error_type, kept.error_message, kept.run, kept.began_at, kept.dead_at,
    )  # fmt: skip
    return (*columns, digest("invocation", kept.binding, kept.function, columns))


def invocation(row: Sequence[Any], queue: tuple[str | None, str]) -> Kept:
    """From the columns of `INVOCATION_COLUMNS` and the queue's (binding, function). Raises E-DAMAGED."""
    if digest("invocation", queue[0], queue[1], row[:-1]) != row[-1]:
        raise damaged("invocations", row[0])
    seq, id, event, _, state, due_at, accepted_at, attempts, lost, key, flags, reason, first_at, error_type, error_message = row[:15]
    standing = STATES[state]
    return Kept(
        seq, id, event, queue[0], queue[1], standing, due_at, accepted_at, attempts, lost, key, bool(flags & 1), bool(flags & 2),
        End.DEAD if standing is State.SETTLED else None, _REASON[reason], first_at, error_type, error_message, row[15], row[16], row[17],
    )  # fmt: skip


def pack_members(seqs: Sequence[int]) -> bytes:
    return b"".join([_MEMBER.pack(seq) for seq in seqs])


def unpack_members(packed: bytes) -> list[int]:
    return [seq for (seq,) in _MEMBER.iter_unpack(packed)]


def clean(text: str | None) -> str | None:
    """Text that a handler made, with lone surrogates replaced: neither SQLite nor JSON can hold them."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def clean_record(record: RunRecord) -> RunRecord:
    texts = {name: clean(value) for name in RunRecord.__struct_fields__ if isinstance(value := getattr(record, name), str)}
    return msgspec.convert({**structs.asdict(record), **texts}, RunRecord)


def unstorable(fact: Accepted) -> EventdError | None:
    """E-USAGE when a text of the event, which may come from outside, is not Unicode. Checked before anything is queued."""
    event = fact.event
    try:
        for text in (event.id, event.source, event.key, event.trace):
            if text is not None and not text.isascii():
                text.encode()
    except UnicodeEncodeError:
        return EventdError("E-USAGE", f"event {event.id!a:.256}: its id, source, key or trace is not valid Unicode.", "Send UTF-8 text.")
    return None


# --- the outbox ---


class _Outbox(Struct, array_like=True):
    record: RunRecord | None
    ended: dict[str, Any] | None


_outbox_encode = msgspec.msgpack.Encoder().encode
_outbox_decode = msgspec.msgpack.Decoder(_Outbox).decode


def encode_outbox(record: RunRecord | None, ended: Mapping[str, Any] | None) -> bytes:
    try:
        return _outbox_encode(_Outbox(record, None if ended is None else dict(ended)))
    except UnicodeEncodeError:
        return _outbox_encode(_Outbox(None if record is None else clean_record(record), None if ended is None else dict(ended)))


def decode_outbox(seq: int, data: bytes) -> OutboxRow:
    row = _outbox_decode(data)
    return OutboxRow(seq, row.record, row.ended)


def ended_of(meta: EventMeta, kept: Kept, end: End, reason: Reason | None, settled_at: int) -> dict[str, Any]:
    """What the `events` verb needs of an ended invocation; times in epoch milliseconds."""
    return {
        "event": meta.id, "source": meta.source, "trigger": meta.trigger, "received_at": meta.received_at, "bytes": meta.size,
        "invocation": kept.id, "binding": kept.binding, "function": kept.function, "end": end.value,
        "reason": None if reason is None else reason.value, "attempts": kept.attempts, "settled_at": settled_at,
    }  # fmt: skip


# --- rows for people ---


def rfc3339(at: int | None) -> str | None:
    """Epoch milliseconds as RFC 3339, UTC, milliseconds, Z."""
    if at is None:
        return None
    seconds, ms = divmod(at, 1000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"
    except (ValueError, OverflowError, OSError):
        return f"{'0000-01-01T00:00:00' if at < 0 else '9999-12-31T23:59:59'}.{ms:03d}Z"


def event_json(meta: EventMeta, invocations: Sequence[Kept]) -> dict[str, Any]:
    return {
        "event": meta.id, "source": meta.source, "trigger": meta.trigger, "received_at": rfc3339(meta.received_at), "bytes": meta.size,
        "invocations": [
            {
                "invocation": kept.id, "binding": kept.binding, "function": kept.function, "state": kept.state.value,
                "end": None if kept.end is None else kept.end.value, "reason": None if kept.reason is None else kept.reason.value,
                "attempts": kept.attempts, "due_at": None if kept.state is State.SETTLED else rfc3339(kept.due_at),
            }
            for kept in invocations
        ],
    }  # fmt: skip


def dead_json(meta: EventMeta, kept: Kept) -> dict[str, Any]:
    return {
        "invocation": kept.id, "event": meta.id, "source": meta.source, "trigger": meta.trigger, "binding": kept.binding,
        "function": kept.function, "reason": None if kept.reason is None else kept.reason.value, "attempts": kept.attempts,
        "first_at": rfc3339(kept.first_at), "dead_at": rfc3339(kept.dead_at), "error_type": kept.error_type,
        "error_message": kept.error_message, "bytes": meta.size,
    }  # fmt: skip


def event_row(meta: EventMeta, data: bytes) -> EventRow:
    """An event as it was accepted."""
    return EventRow(
        meta.seq,
        meta.id,
        meta.source,
        meta.trigger,
        meta.received_at,
        data,
        meta.key,
        meta.notify,
        meta.dedup,
        meta.fingerprint,
        meta.trace,
    )


def payload_json(data: bytes) -> Any:
    """A payload for `--payload`: parsed when it is JSON, else its text."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data.decode("utf-8", "replace")


def parse_cursor(cursor: str | None, parts: int) -> tuple[int, ...] | None:
    """A cursor that we gave out: integers joined by dots. Raises E-USAGE for anything else."""
    if cursor is None:
        return None
    pieces = cursor.split(".")
    if len(pieces) != parts or not all(p.removeprefix("-").isascii() and p.removeprefix("-").isdigit() and len(p) < 20 for p in pieces):
        raise EventdError("E-USAGE", f"{cursor[:80]!r} is not a cursor of this listing.", "Pass the `next` of the page before, unchanged.")
    return tuple(int(p) for p in pieces)


def format_cursor(*parts: int) -> str:
    return ".".join(map(str, parts))
