"""Bounded reads over the one connection, in the writer thread, between and inside its transactions.

Every row is checked against its digest. A listing is read in slices (`SLICE` rows looked at), so that a filter that matches
little of a large backlog never holds up a commit for long; the caller asks for the next slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import apsw

from eventd.core.facts import EventRow, InvocationRow
from eventd.journal.codec import (
    EVENT_COLUMNS,
    INVOCATION_COLUMNS,
    EventMeta,
    Kept,
    damaged,
    data_digest,
    dead_json,
    decode_outbox,
    digest,
    event_json,
    event_meta,
    event_row,
    invocation,
    payload_json,
    unpack_members,
)
from eventd.journal.tables import SqliteTables
from eventd.ports import Boot, Json, OutboxRow, OwedRow, Query, QueueCount

SLICE: Final = 500
PAYLOADS: Final = 8 * 1024**2
"""A page with payloads ends after this many bytes of them."""
BOOT_OWED: Final = 4096
_PREFIX_LIMIT: Final = 10_000
_HOUR_MS: Final = 3_600_000
_I: Final = f"SELECT {INVOCATION_COLUMNS} FROM invocations"  # noqa: S608

Slice = tuple[list[Json], tuple[int, ...] | None]
"""Rows found, and where the next slice begins (None: the listing is over)."""


class Reads:
    def __init__(self, connection: apsw.Connection, tables: SqliteTables) -> None:
        self._connection = connection
        self._tables = tables

    def _rows(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, tuple(bindings)).fetchall()

    def _kept(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[Kept]:
        name = self._tables.queues.name
        for row in rows:
            yield invocation(row, name(row[3], row[0]))

    # --- for the dispatcher ---

    def load(self) -> Boot:
        """Counts by index scans only; no open row is read but the running ones."""
        names = self._tables.queues.names
        counts: dict[int, tuple[int, int | None]] = {
            queue: (count, due)
            for queue, count, due in self._rows("SELECT queue, count(*), min(due_at) FROM invocations WHERE state IN (0, 2) GROUP BY queue")
        }
        for queue, count in self._rows("SELECT queue, count(*) FROM invocations WHERE state = 3 GROUP BY queue"):
            ready, due = counts.get(queue, (0, None))
            counts[queue] = (ready + count, due)
        dead: dict[str, int] = {}
        for queue, count in self._rows("SELECT queue, count(*) FROM invocations WHERE state = 4 GROUP BY queue"):
            function = self._queue(names, queue)[1]
            dead[function] = dead.get(function, 0) + count
        running = [
            (kept.row(), kept.run or "", kept.began_at or 0) for kept in self._kept(self._rows(f"{_I} WHERE state = 1 ORDER BY seq"))
        ]
        return Boot(
            next_event=self._tables.next_event,
            next_invocation=self._tables.next_invocation,
            queues=tuple(QueueCount(*self._queue(names, queue), count, due) for queue, (count, due) in sorted(counts.items())),
            running=tuple(running),
            paused=tuple((kind, name) for kind, name in self._rows("SELECT kind, name FROM paused ORDER BY kind, name")),
            owed=tuple(self._owed(self._rows("SELECT seq, trigger, event, key, ok, digest FROM owed ORDER BY seq LIMIT ?", (BOOT_OWED,)))),
            dead=dead,
        )

    @staticmethod
    def _queue(names: dict[int, tuple[str | None, str]], queue: int) -> tuple[str | None, str]:
        if queue not in names:
            raise damaged("queues", queue)
        return names[queue]

    def page(
        self, binding: str | None, function: str, after: tuple[int, int], upto_due: int, limit: int
    ) -> tuple[Sequence[InvocationRow], int | None]:
        queue = self._tables.queues.numbers.get((binding, function))
        if queue is None:
            return (), None
        ready = "FROM invocations INDEXED BY invocations_ready WHERE queue = ? AND state IN (0, 2) AND (due_at, seq) > (?, ?)"
        order = "ORDER BY due_at, seq LIMIT ?"
        rows = self._rows(f"SELECT {INVOCATION_COLUMNS} {ready} AND due_at <= ? {order}", (queue, *after, upto_due, limit))
        found = [kept.row() for kept in self._kept(rows)]
        last = (found[-1].due_at, found[-1].seq) if found else after
        beyond = self._rows(f"SELECT due_at {ready} {order}", (queue, *last, 1))
        return found, beyond[0][0] if beyond else None

    def whole_event(self, seq: int) -> EventRow:
        """An event with its data. Raises E-DAMAGED also when there is no such event: an invocation that is open has one."""
        meta, data = self._event_data(seq)
        return event_row(meta, data)

    def payload(self, event: int) -> bytes:
        return self._event_data(event)[1]

    def _event_data(self, event: int) -> tuple[EventMeta, bytes]:
        rows = self._rows(f"SELECT {EVENT_COLUMNS}, data FROM events WHERE seq = ?", (event,))  # noqa: S608
        if not rows:
            raise damaged("events", event)
        meta = event_meta(rows[0][:-1])
        return meta, self._checked(meta, rows[0][-1])

    @staticmethod
    def _checked(meta: EventMeta, data: object) -> bytes:
        if not isinstance(data, bytes) or len(data) != meta.size or data_digest(data) != meta.data_digest:
            raise damaged("events", meta.seq)
        return data

    # --- for people ---

    def events_slice(self, query: Query, room: int, after: tuple[int, ...] | None) -> Slice:
        """Up to `room` events newest first, among the next `SLICE` below `after`."""
        top = after[0] if after else 2**63 - 1
        only = f"id IN ({', '.join('?' * len(query.ids))}) AND " if query.ids else ""
        sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE {only}seq < ? ORDER BY seq DESC LIMIT {SLICE}"  # noqa: S608 marks only
        rows = self._rows(sql, (*query.ids, top))
        found: list[Json] = []
        size = 0
        for row in rows:
            meta = event_meta(row)
            if query.since is not None and meta.received_at < query.since - _HOUR_MS and not query.ids:
                return found, None  # events are nearly in order of time; an hour covers a clock that was set
            if not in_window(query, meta.received_at) or (query.trigger is not None and meta.trigger != query.trigger):
                continue
            members = [kept for seq in unpack_members(meta.members) if (kept := self._tables.invocation(seq)) is not None]
            if wanted(query, members):
                shown = event_json(meta, members)
                if query.payload:
                    shown["payload"] = payload_json(self.payload(meta.seq))
                    size += meta.size
                found.append(shown)
                if len(found) == room or size > PAYLOADS:
                    return found, (meta.seq,) if row is not rows[-1] or len(rows) == SLICE else None
        return found, (rows[-1][0],) if len(rows) == SLICE else None

    def dead_slice(self, query: Query, room: int, after: tuple[int, ...] | None) -> Slice:
        """Up to `room` dead invocations, latest death first, among the next `SLICE` below `after`."""
        found: list[Json] = []
        size = 0
        kepts, more = self._dead(query, after)
        for place, kept in enumerate(kepts):
            meta = self._tables.event(kept.event)
            if meta is None:
                raise damaged("events", kept.event)
            if (query.reason is None or kept.reason == query.reason) and (query.trigger is None or meta.trigger == query.trigger):
                shown = dead_json(meta, kept)
                if query.payload:
                    shown["payload"] = payload_json(self.payload(meta.seq))
                    size += meta.size
                found.append(shown)
                if len(found) == room or size > PAYLOADS:
                    return found, (kept.dead_at or 0, kept.seq) if more or place + 1 < len(kepts) else None
        return found, (kepts[-1].dead_at or 0, kepts[-1].seq) if more else None

    def dead_seqs_slice(self, query: Query, room: int, after: tuple[int, ...] | None) -> tuple[list[InvocationRow], tuple[int, ...] | None]:
        kepts, more = self._dead(query, after)
        found: list[InvocationRow] = []
        for kept in kepts:
            if query.reason is not None and kept.reason != query.reason:
                continue
            if query.trigger is not None and ((meta := self._tables.event(kept.event)) is None or meta.trigger != query.trigger):
                continue
            found.append(kept.row())
            if len(found) == room:
                return found, None
        return found, (kepts[-1].dead_at or 0, kepts[-1].seq) if more else None

    def _dead(self, query: Query, after: tuple[int, ...] | None) -> tuple[list[Kept], bool]:
        """The next dead rows by what an index can answer: ids, function and time of death."""
        where = ["state = 4"]
        bindings: list[Any] = []
        ids = query.ids or ((query.invocation,) if query.invocation is not None else ())
        if ids:
            where.append(f"id IN ({', '.join('?' * len(ids))})")
            bindings += ids
        if query.function is not None:
            queues = [number for number, (_, function) in self._tables.queues.names.items() if function == query.function]
            where.append(f"queue IN ({', '.join(map(str, queues))})")
        for test, value in (("dead_at >= ?", query.since), ("dead_at < ?", query.until)):
            if value is not None:
                where.append(test)
                bindings.append(value)
        if after is not None:
            where.append("(dead_at, seq) < (?, ?)")
            bindings += after
        rows = self._rows(f"{_I} WHERE {' AND '.join(where)} ORDER BY dead_at DESC, seq DESC LIMIT {SLICE}", bindings)
        return list(self._kept(rows)), len(rows) == SLICE

    def invocations(self, ids: Sequence[str]) -> list[InvocationRow]:
        found: list[InvocationRow] = []
        for id in ids:
            found += [kept.row() for kept in self._kept(self._rows(f"{_I} WHERE id = ? ORDER BY seq", (id,)))]
        return found

    def expired_dead(self, before: int, limit: int) -> list[InvocationRow]:
        rows = self._rows(f"{_I} WHERE state = 4 AND dead_at < ? ORDER BY dead_at, seq LIMIT ?", (before, limit))
        return [kept.row() for kept in self._kept(rows)]

    # --- for triggers and the copier ---

    def ledger_get(self, trigger: str, key: bytes) -> bytes | None:
        rows = self._rows("SELECT key, value, digest FROM ledger WHERE trigger = ? AND key = ?", (trigger, key))
        return self._ledger(trigger, rows)[0][1] if rows else None

    def ledger_page(self, trigger: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        limit = min(limit, _PREFIX_LIMIT)
        bindings: list[Any] = [trigger, prefix]
        where = "trigger = ? AND key >= ?"
        if after is not None:
            where += " AND key > ?"
            bindings.append(after)
        if (end := prefix_end(prefix)) is not None:
            where += " AND key < ?"
            bindings.append(end)
        sql = f"SELECT key, value, digest FROM ledger WHERE {where} ORDER BY key LIMIT ?"  # noqa: S608
        return self._ledger(trigger, self._rows(sql, [*bindings, limit]))

    @staticmethod
    def _ledger(trigger: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[bytes, bytes]]:
        for key, value, stored in rows:
            if digest("ledger", trigger, key, value) != stored:
                raise damaged("ledger", f"{trigger} {key!r}")
        return [(key, value) for key, value, _ in rows]

    def owed(self, trigger: str, after: int, limit: int) -> list[OwedRow]:
        sql = "SELECT seq, trigger, event, key, ok, digest FROM owed WHERE trigger = ? AND seq > ? ORDER BY seq LIMIT ?"
        return self._owed(self._rows(sql, (trigger, after, limit)))

    @staticmethod
    def _owed(rows: Sequence[tuple[Any, ...]]) -> list[OwedRow]:
        for row in rows:
            if digest("owed", *row[:-1]) != row[-1]:
                raise damaged("owed", row[0])
        return [OwedRow(seq, trigger, event, key, bool(ok)) for seq, trigger, event, key, ok, _ in rows]

    def outbox(self, limit: int) -> list[OutboxRow]:
        found: list[OutboxRow] = []
        for seq, data, stored in self._rows("SELECT seq, data, digest FROM outbox ORDER BY seq LIMIT ?", (limit,)):
            if digest("outbox", seq, data) != stored:
                raise damaged("outbox", seq)
            found.append(decode_outbox(seq, data))
        return found

    # --- the scrub after an unclean stop ---

    def scrub(self, table: str, after: int, limit: int) -> int | None:
        """Check the digests of the next `limit` rows of `events` or `invocations`. The last seq looked at, or None at the end."""
        if table == "events":
            rows = self._rows(f"SELECT {EVENT_COLUMNS}, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))  # noqa: S608
            for row in rows:
                self._checked(event_meta(row[:-1]), row[-1])
        else:
            rows = self._rows(f"{_I} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
            for _ in self._kept(rows):
                pass
        return rows[-1][0] if rows else None


def in_window(query: Query, at: int) -> bool:
    return (query.since is None or at >= query.since) and (query.until is None or at < query.until)


def wanted(query: Query, members: Sequence[Kept]) -> bool:
    """Whether an event has an invocation that meets every filter on invocations."""
    if query.function is None and query.state is None and query.reason is None and query.invocation is None:
        return True
    return any(
        (query.function is None or kept.function == query.function)
        and (query.state is None or kept.state == query.state)
        and (query.reason is None or kept.reason == query.reason)
        and (query.invocation is None or kept.id == query.invocation)
        for kept in members
    )


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest key above all keys with this prefix, or None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
