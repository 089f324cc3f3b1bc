"""The table operations of `apply.Tables` over the one SQLite connection. Used in the writer thread only, inside its transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw
from msgspec import structs

from eventd.core.facts import LedgerWrite
from eventd.journal.codec import (
    EVENT_COLUMNS,
    INVOCATION_COLUMNS,
    EventMeta,
    Kept,
    damaged,
    digest,
    encode_outbox,
    event_columns,
    event_meta,
    invocation,
    invocation_columns,
)
from eventd.model import RunRecord
from eventd.ports import Json, OwedRow

_COUNTERS: Final = ("next_event", "next_invocation", "next_owed", "next_outbox")
_CLAIM: Final = "INSERT INTO dedup(seq, identity, fingerprint, expires_at) VALUES(?, ?, ?, ?) ON CONFLICT(identity) DO NOTHING"
_PUT_EVENT: Final = f"INSERT INTO events({EVENT_COLUMNS}, data) VALUES({', '.join('?' * 14)})"
_PUT_INVOCATION: Final = f"INSERT INTO invocations({INVOCATION_COLUMNS}) VALUES({', '.join('?' * 19)})"
_EVENT: Final = f"SELECT {EVENT_COLUMNS} FROM events WHERE seq = ?"  # noqa: S608
_INVOCATION: Final = f"SELECT {INVOCATION_COLUMNS} FROM invocations WHERE seq = ?"  # noqa: S608
# What can change after the acceptance; id, event, queue and key cannot.
_UPDATE: Final = (
    "UPDATE invocations SET state = ?, due_at = ?, accepted_at = ?, attempts = ?, lost = ?, flags = ?, reason = ?, first_at = ?,"
    " error_type = ?, error_message = ?, run = ?, began_at = ?, dead_at = ?, digest = ? WHERE seq = ?"
)


class Queues:
    """Numbers for (binding, function) pairs. Few: one per binding that ever had an invocation here."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.reload()

    def reload(self) -> None:
        """Forget what a rollback took back."""
        rows: list[tuple[Any, ...]] = self._connection.execute("SELECT queue, binding, function FROM queues").fetchall()
        self.names: dict[int, tuple[str | None, str]] = {queue: (binding, function) for queue, binding, function in rows}
        self.numbers: dict[tuple[str | None, str], int] = {pair: queue for queue, pair in self.names.items()}

    def number(self, binding: str | None, function: str) -> int:
        """The pair's number, a new one when it has none yet."""
        number = self.numbers.get((binding, function))
        if number is None:
            number = max(self.names, default=0) + 1
            self._connection.execute("INSERT INTO queues VALUES(?, ?, ?)", (number, binding, function))
            self.names[number] = (binding, function)
            self.numbers[binding, function] = number
        return number

    def name(self, number: int, seq: int) -> tuple[str | None, str]:
        pair = self.names.get(number)
        if pair is None:
            raise damaged("invocations", seq)
        return pair


class SqliteTables:
    """`apply.Tables` on SQLite, with the counters of the next numbers, written back once per transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self._execute = connection.cursor().execute
        self.queues = Queues(connection)
        self.clock = 0
        """The latest time of receipt seen: the clock by which duplicate-window rows expire."""
        self._load_counters()

    def _load_counters(self) -> None:
        meta: list[tuple[Any, ...]] = self.connection.execute("SELECT key, value FROM meta").fetchall()
        stored: dict[str, int] = dict(meta)
        # The rows themselves are asked too: a counter that is behind would hand out a number twice.
        tops = (
            max(self._top("events"), self._top("dedup")), self._top("invocations"), self._top("owed"), self._top("outbox"),
        )  # fmt: skip
        self.next_event, self.next_invocation, self.next_owed, self.next_outbox = (
            max(int(stored.get(name, 1)), top + 1) for name, top in zip(_COUNTERS, tops, strict=True)
        )
        self._stored = tuple(int(stored.get(name, 0)) for name in _COUNTERS)

    def _top(self, table: str) -> int:
        rows: list[tuple[Any, ...]] = self.connection.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchall()  # noqa: S608
        return int(rows[0][0])

    def write_counters(self) -> None:
        """Last step of a transaction."""
        now = (self.next_event, self.next_invocation, self.next_owed, self.next_outbox)
        for name, value, stored in zip(_COUNTERS, now, self._stored, strict=True):
            if value != stored:
                self._execute("INSERT INTO meta VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value", (name, value))
        self._pending = now

    def committed(self) -> None:
        self._stored = self._pending

    def rolled_back(self) -> None:
        self.queues.reload()
        self._load_counters()

    # --- apply.Tables ---

    def claim(self, key: bytes, seq: int, fingerprint: bytes, now: int, expires_at: int) -> bytes | None:
        self.clock = max(self.clock, now)
        self._execute(_CLAIM, (seq, key, fingerprint, expires_at))
        if self.connection.changes():
            return None
        rows: list[tuple[Any, ...]] = self._execute("SELECT seq, fingerprint, expires_at FROM dedup WHERE identity = ?", (key,)).fetchall()
        first, first_fingerprint, first_expires = rows[0]
        if first_expires > now:
            return bytes(first_fingerprint)
        self._execute("DELETE FROM dedup WHERE seq = ?", (first,))
        self._execute(_CLAIM, (seq, key, fingerprint, expires_at))
        return None

    def forget_expired(self, limit: int) -> None:
        """Delete up to `limit` of the oldest duplicate-window rows, if their time is over."""
        self._execute(
            "DELETE FROM dedup WHERE seq IN (SELECT seq FROM dedup ORDER BY seq LIMIT ?) AND expires_at <= ?", (limit, self.clock)
        )

    def put_event(self, meta: EventMeta, data: bytes) -> None:
        self._execute(_PUT_EVENT, (*event_columns(meta), data))

    def event(self, seq: int) -> EventMeta | None:
        rows = self._execute(_EVENT, (seq,)).fetchall()
        return event_meta(rows[0]) if rows else None

    def mark_failed(self, meta: EventMeta) -> None:
        columns = event_columns(structs.replace(meta, failed=True))
        self._execute("UPDATE events SET flags = ?, digest = ? WHERE seq = ?", (columns[6], columns[-1], meta.seq))

    def drop_event(self, seq: int) -> None:
        self._execute("DELETE FROM events WHERE seq = ?", (seq,))

    def put_invocation(self, kept: Kept) -> None:
        self._execute(_PUT_INVOCATION, invocation_columns(kept, self.queues.number(kept.binding, kept.function)))

    def invocation(self, seq: int) -> Kept | None:
        rows: list[tuple[Any, ...]] = self._execute(_INVOCATION, (seq,)).fetchall()
        return invocation(rows[0], self.queues.name(rows[0][3], seq)) if rows else None

    def update_invocation(self, kept: Kept) -> None:
        c = invocation_columns(kept, self.queues.numbers[kept.binding, kept.function])
        self._execute(_UPDATE, (*c[4:9], *c[10:19], c[0]))

    def drop_invocation(self, seq: int) -> None:
        self._execute("DELETE FROM invocations WHERE seq = ?", (seq,))

    def ledger(self, trigger: str, writes: Sequence[LedgerWrite]) -> None:
        for write in writes:
            if write.value is None:
                self._execute("DELETE FROM ledger WHERE trigger = ? AND key = ?", (trigger, write.key))
            else:
                self._execute(
                    "INSERT INTO ledger VALUES(?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, digest = excluded.digest",
                    (trigger, write.key, write.value, digest("ledger", trigger, write.key, write.value)),
                )

    def add_owed(self, trigger: str, event: str, key: str | None, ok: bool) -> OwedRow:
        seq = self.next_owed
        self.next_owed = seq + 1
        columns = (seq, trigger, event, key, int(ok))
        self._execute("INSERT INTO owed VALUES(?, ?, ?, ?, ?, ?)", (*columns, digest("owed", *columns)))
        return OwedRow(seq, trigger, event, key, ok)

    def drop_owed(self, seq: int) -> None:
        self._execute("DELETE FROM owed WHERE seq = ?", (seq,))

    def add_outbox(self, record: RunRecord | None, ended: Json | None) -> None:
        seq = self.next_outbox
        self.next_outbox = seq + 1
        data = encode_outbox(record, ended)
        self._execute("INSERT INTO outbox VALUES(?, ?, ?)", (seq, data, digest("outbox", seq, data)))

    def drop_outbox(self, upto: int) -> None:
        self._execute("DELETE FROM outbox WHERE seq <= ?", (upto,))

    def pause(self, kind: str, name: str, paused: bool) -> None:
        if paused:
            self._execute("INSERT INTO paused VALUES(?, ?) ON CONFLICT DO NOTHING", (kind, name))
        else:
            self._execute("DELETE FROM paused WHERE kind = ? AND name = ?", (kind, name))

    def used(self, event: int, invocation: int) -> None:
        if event >= self.next_event:
            self.next_event = event + 1
        if invocation >= self.next_invocation:
            self.next_invocation = invocation + 1
