"""`apply.Tables` and the reads of `reads.Reads` over dictionaries. Rows go in and come out as copies, as from a disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from msgspec import structs

from eventd.core.facts import EventRow, InvocationRow, LedgerWrite
from eventd.journal.codec import EventMeta, Kept, damaged, dead_json, event_json, event_row, payload_json, unpack_members
from eventd.journal.reads import BOOT_OWED, PAYLOADS, Slice, in_window, wanted
from eventd.model import RunRecord, State
from eventd.ports import Boot, Json, OutboxRow, OwedRow, Query, QueueCount

_READY = (State.WAITING, State.RETRYING)


class MemoryTables:
    """What is durable. Plain dictionaries, open to a test's eyes."""

    def __init__(self) -> None:
        self.events: dict[int, tuple[EventMeta, bytes]] = {}
        self.kept: dict[int, Kept] = {}
        self.queues: dict[tuple[str | None, str], dict[int, None]] = {}
        self.dedup: dict[bytes, tuple[bytes, int]] = {}
        self.ledgers: dict[tuple[str, bytes], bytes] = {}
        self.owing: dict[int, OwedRow] = {}
        self.outgoing: dict[int, OutboxRow] = {}
        self.paused: dict[tuple[str, str], None] = {}
        self.next_event = self.next_invocation = self.next_owed = self.next_outbox = 1
        self.size = 0

    # --- apply.Tables ---

    def claim(self, key: bytes, seq: int, fingerprint: bytes, now: int, expires_at: int) -> bytes | None:
        first = self.dedup.get(key)
        if first is not None and first[1] > now:
            return first[0]
        self.dedup[key] = (fingerprint, expires_at)
        return None

    def put_event(self, meta: EventMeta, data: bytes) -> None:
        self.events[meta.seq] = (meta, bytes(data))
        self.size += len(data)

    def event(self, seq: int) -> EventMeta | None:
        found = self.events.get(seq)
        return None if found is None else found[0]

    def mark_failed(self, meta: EventMeta) -> None:
        self.events[meta.seq] = (structs.replace(meta, failed=True), self.events[meta.seq][1])

    def drop_event(self, seq: int) -> None:
        self.size -= len(self.events.pop(seq)[1])

    def put_invocation(self, kept: Kept) -> None:
        self.kept[kept.seq] = copy.copy(kept)
        self.queues.setdefault((kept.binding, kept.function), {})[kept.seq] = None

    def invocation(self, seq: int) -> Kept | None:
        kept = self.kept.get(seq)
        return None if kept is None else copy.copy(kept)

    def update_invocation(self, kept: Kept) -> None:
        self.kept[kept.seq] = copy.copy(kept)

    def drop_invocation(self, seq: int) -> None:
        kept = self.kept.pop(seq)
        del self.queues[kept.binding, kept.function][seq]

    def ledger(self, trigger: str, writes: Sequence[LedgerWrite]) -> None:
        for write in writes:
            if write.value is None:
                self.ledgers.pop((trigger, write.key), None)
            else:
                self.ledgers[trigger, write.key] = write.value

    def add_owed(self, trigger: str, event: str, key: str | None, ok: bool) -> OwedRow:
        row = self.owing[self.next_owed] = OwedRow(self.next_owed, trigger, event, key, ok)
        self.next_owed += 1
        return row

    def drop_owed(self, seq: int) -> None:
        self.owing.pop(seq, None)

    def add_outbox(self, record: RunRecord | None, ended: Json | None) -> None:
        self.outgoing[self.next_outbox] = OutboxRow(self.next_outbox, record, ended)
        self.next_outbox += 1

    def drop_outbox(self, upto: int) -> None:
        for seq in [seq for seq in self.outgoing if seq <= upto]:
            del self.outgoing[seq]

    def pause(self, kind: str, name: str, paused: bool) -> None:
        if paused:
            self.paused[kind, name] = None
        else:
            self.paused.pop((kind, name), None)

    def used(self, event: int, invocation: int) -> None:
        self.next_event = max(self.next_event, event + 1)
        self.next_invocation = max(self.next_invocation, invocation + 1)

    # --- reads ---

    def load(self) -> Boot:
        queues: list[QueueCount] = []
        running: list[tuple[InvocationRow, str, int]] = []
        dead: dict[str, int] = {}
        for (binding, function), seqs in self.queues.items():
            rows = [self.kept[seq] for seq in seqs]
            ready = [row.due_at for row in rows if row.state in _READY]
            open_ = len(ready) + sum(row.state is State.HELD for row in rows)
            if open_:
                queues.append(QueueCount(binding, function, open_, min(ready, default=None)))
            died = sum(row.state is State.SETTLED for row in rows)
            if died:
                dead[function] = dead.get(function, 0) + died
            running += [(row.row(), row.run or "", row.began_at or 0) for row in rows if row.state is State.RUNNING]
        running.sort(key=lambda found: found[0].seq)
        return Boot(
            self.next_event, self.next_invocation, tuple(queues), tuple(running), tuple(sorted(self.paused)),
            tuple(self.owed_rows()[:BOOT_OWED]), dead,
        )  # fmt: skip

    def page(
        self, binding: str | None, function: str, after: tuple[int, int], upto_due: int, limit: int
    ) -> tuple[Sequence[InvocationRow], int | None]:
        rows = [self.kept[seq] for seq in self.queues.get((binding, function), ())]
        ready = sorted(
            (row for row in rows if row.state in _READY and (row.due_at, row.seq) > after), key=lambda row: (row.due_at, row.seq)
        )
        found = [row.row() for row in ready if row.due_at <= upto_due][:limit]
        return found, ready[len(found)].due_at if len(ready) > len(found) else None

    def whole_event(self, seq: int) -> EventRow:
        if seq not in self.events:
            raise damaged("events", seq)
        return event_row(*self.events[seq])

    def events_slice(self, query: Query, room: int, after: tuple[int, ...] | None) -> Slice:
        found: list[Json] = []
        size = 0
        seqs = sorted((seq for seq in self.events if after is None or seq < after[0]), reverse=True)
        for seq in seqs:
            meta, data = self.events[seq]
            if not in_window(query, meta.received_at) or (query.trigger is not None and meta.trigger != query.trigger):
                continue
            members = [kept for member in unpack_members(meta.members) if (kept := self.kept.get(member)) is not None]
            if (query.ids and meta.id not in query.ids) or not wanted(query, members):
                continue
            shown = event_json(meta, members)
            if query.payload:
                shown["payload"] = payload_json(data)
                size += meta.size
            found.append(shown)
            if len(found) == room or size > PAYLOADS:
                return found, (seq,) if seq != seqs[-1] else None
        return found, None

    def dead_slice(self, query: Query, room: int, after: tuple[int, ...] | None) -> Slice:
        found: list[Json] = []
        size = 0
        rows = list(self._dead(query, after))
        for kept, meta in rows:
            shown = dead_json(meta, kept)
            if query.payload:
                shown["payload"] = payload_json(self.events[meta.seq][1])
                size += meta.size
            found.append(shown)
            if len(found) == room or size > PAYLOADS:
                return found, (kept.dead_at or 0, kept.seq) if kept is not rows[-1][0] else None
        return found, None

    def dead_seqs(self, query: Query, limit: int) -> list[InvocationRow]:
        return [kept.row() for kept, _ in self._dead(query, None)][:limit]

    def _dead(self, query: Query, after: tuple[int, ...] | None) -> Iterator[tuple[Kept, EventMeta]]:
        ids = query.ids or ((query.invocation,) if query.invocation is not None else ())
        dead = sorted((kept for kept in self.kept.values() if kept.state is State.SETTLED), key=_death, reverse=True)
        for kept in dead:
            meta = self.events[kept.event][0]
            if (
                (after is None or _death(kept) < after)
                and (not ids or kept.id in ids)
                and (query.function is None or kept.function == query.function)
                and (query.reason is None or kept.reason == query.reason)
                and (query.trigger is None or meta.trigger == query.trigger)
                and in_window(query, kept.dead_at or 0)
            ):
                yield kept, meta

    def by_ids(self, ids: Sequence[str]) -> list[InvocationRow]:
        by_id: dict[str, list[Kept]] = {}
        for kept in self.kept.values():
            by_id.setdefault(kept.id, []).append(kept)
        return [kept.row() for id in ids for kept in sorted(by_id.get(id, ()), key=lambda kept: kept.seq)]

    def expired_dead(self, before: int, limit: int) -> list[InvocationRow]:
        dead = sorted((kept for kept in self.kept.values() if kept.state is State.SETTLED and (kept.dead_at or 0) < before), key=_death)
        return [kept.row() for kept in dead[:limit]]

    def ledger_page(self, trigger: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted(key for name, key in self.ledgers if name == trigger and key.startswith(prefix) and (after is None or key > after))
        return [(key, self.ledgers[trigger, key]) for key in keys[:limit]]

    def owed_rows(self) -> list[OwedRow]:
        return [self.owing[seq] for seq in sorted(self.owing)]

    def outbox_rows(self) -> list[OutboxRow]:
        return [self.outgoing[seq] for seq in sorted(self.outgoing)]


def _death(kept: Kept) -> tuple[int, int]:
    return kept.dead_at or 0, kept.seq
