"""What the simulated disk sees: every change of the tables held against the life that an invocation may have.

The audit outlives the processes, as the disk does. It believes neither the dispatcher nor the journal: it counts for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from eventd.core.facts import Moved
from eventd.core.retry import QUARANTINE_AFTER
from eventd.journal.codec import EventMeta, Kept
from eventd.journal.memory_tables import MemoryTables
from eventd.model import End, Outcome, Reason, RunRecord, State
from eventd.ports import Json, OwedRow

MAY: dict[State, tuple[State, ...]] = {
    State.WAITING: (State.RUNNING, State.SETTLED),
    State.RETRYING: (State.RUNNING, State.SETTLED),
    State.RUNNING: (State.WAITING, State.RETRYING, State.SETTLED),
    State.SETTLED: (State.WAITING,),
}


class Known:
    """An invocation as the disk has seen it. `runs` are the begun ones since it was accepted or redriven."""

    __slots__ = (
        "attempts", "binding", "born", "died", "end", "event", "function", "given_back", "id", "key", "lost", "ready_at", "redriven", "run",
        "runs", "seq", "serial", "state", "succeeded", "wait_ms",
    )  # fmt: skip

    def __init__(self, kept: Kept, event: Happened, now: int) -> None:
        self.seq, self.id, self.event = kept.seq, kept.id, event
        self.binding, self.function = kept.binding, kept.function
        self.key, self.serial = kept.key, kept.serial
        self.state, self.attempts, self.lost = kept.state, kept.attempts, kept.lost
        self.run: str | None = None
        self.end: End | None = None
        self.runs = self.given_back = self.redriven = self.died = 0
        self.born = now
        self.succeeded = False
        self.wait_ms = max(0, kept.due_at - kept.accepted_at)
        self.ready_at = now + self.wait_ms
        """Virtual time by which it may run, were the wall clock never set."""


class Happened:
    """An event, and what its trigger is owed: once for each time that its last open invocation settled."""

    __slots__ = ("claims_ok", "data", "due", "fresh", "id", "members", "notify", "open", "owed", "source", "trigger", "unhappy")

    def __init__(self, meta: EventMeta, data: bytes) -> None:
        self.data = data
        self.id, self.source, self.trigger = meta.id, meta.source, meta.trigger
        self.notify = meta.notify
        self.members: list[Known] = []
        self.open = self.due = self.owed = 0
        self.fresh = True
        self.unhappy = False
        """One was cancelled, or its death discarded."""
        self.claims_ok: bool | None = None


class Audit:
    """The books. `blame(promise, what)` is told of every entry that does not fit."""

    def __init__(self, blame: Callable[[str, str], None], now: Callable[[], int], wall: Callable[[], int]) -> None:
        self.blame = blame
        self.now = now
        self.wall = wall
        self.most: dict[str, int] = {}
        """function -> `retry.attempts`."""
        self.events: dict[int, Happened] = {}
        self.by_identity: dict[tuple[str, str], Happened] = {}
        self.known: dict[int, Known] = {}
        self.alive: dict[str, dict[int, Known]] = {}
        """function -> its open invocations, oldest first."""
        self.open: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.accepted = self.settled = 0
        self.ends: dict[str, End] = {}
        """invocation id -> the end that left the tables, in the outbox."""
        self.skipped: Counter[tuple[str, str]] = Counter()
        """(source, event id) -> invocations skipped at acceptance."""
        self.recorded: dict[str, RunRecord] = {}
        self.began: dict[str, int] = {}
        """run -> how many invocations began with it."""
        self.started: set[str] = set()
        """Runs that a worker was given."""
        self.touched: dict[int, Happened] = {}
        self.leaving: set[str] = set()
        """Invocations whose row is gone and whose end has not come yet."""
        self.quarantined: list[Known] = []

    # --- what the tables tell ---

    def event_put(self, meta: EventMeta, data: bytes) -> None:
        if (meta.source, meta.id) in self.by_identity:
            self.blame("6", f"event {meta.source}/{meta.id} was stored twice")
        happened = Happened(meta, data)
        self.events[meta.seq] = self.by_identity[meta.source, meta.id] = happened
        self.touched[id(happened)] = happened

    def put(self, kept: Kept) -> None:
        event = self.events[kept.event]
        if any(other.binding == kept.binding and other.function == kept.function for other in event.members):
            self.blame("5", f"event {event.id} has two invocations of binding {kept.binding}")
        known = self.known[kept.seq] = Known(kept, event, self.now())
        event.members.append(known)
        self.accepted += 1
        if kept.state is State.SETTLED:
            self._died(known, kept)
        else:
            self._opened(known)

    def updated(self, kept: Kept) -> None:
        known = self.known[kept.seq]
        was = known.state
        if kept.state not in MAY[was]:
            self.blame("2", f"invocation {known.id} went from {was} to {kept.state}")
        known.state = kept.state
        if kept.state is State.RUNNING:
            known.runs += 1
            known.run = kept.run
            self.began[kept.run or ""] = self.began.get(kept.run or "", 0) + 1
            if kept.attempts != known.attempts + 1:
                self.blame("attempts", f"invocation {known.id} began its run number {known.attempts + 1} as {kept.attempts}")
        elif was is State.SETTLED:
            self._redriven(known, kept)
        elif kept.state is State.SETTLED:
            self._left(known)
            self._died(known, kept)
        else:
            self._goes_on(known, kept)
        known.attempts, known.lost = kept.attempts, kept.lost

    def _goes_on(self, known: Known, kept: Kept) -> None:
        if kept.attempts == known.attempts - 1:
            known.given_back += 1
        elif kept.attempts != known.attempts:
            self.blame("attempts", f"invocation {known.id} had {known.attempts} attempts and goes on with {kept.attempts}")
        known.wait_ms = max(0, kept.due_at - self.wall())
        known.ready_at = self.now() + known.wait_ms
        if kept.attempts >= self.most[known.function]:
            self.blame("attempts", f"invocation {known.id} is to be retried after {kept.attempts} attempts")
        if kept.lost >= QUARANTINE_AFTER:
            self.blame("10", f"invocation {known.id} goes on after {kept.lost} lost runs in a row")

    def _redriven(self, known: Known, kept: Kept) -> None:
        self.settled -= 1
        self.dead[known.function] -= 1
        known.redriven += 1
        known.runs = known.given_back = known.attempts = known.wait_ms = 0
        known.end = None
        known.ready_at = self.now()
        if kept.attempts or kept.lost:
            self.blame("attempts", f"invocation {known.id} was redriven with {kept.attempts} attempts and {kept.lost} lost ones")
        self._opened(known)

    def dropped(self, seq: int) -> None:
        known = self.known.pop(seq)
        if known.state is State.SETTLED:
            self.dead[known.function] -= 1
            known.event.unhappy = True  # its death stays, though the row is gone
        else:
            self.settled += 1
            self._left(known)
        self.leaving.add(known.id)
        known.state = State.SETTLED

    def outbox(self, record: RunRecord | None, ended: Json | None) -> None:
        if record is not None:
            self._recorded(record)
        if ended is not None:
            self._ended(ended)

    def _recorded(self, record: RunRecord) -> None:
        if record.run in self.recorded:
            self.blame("records", f"run {record.run} has two records")
        self.recorded[record.run] = record
        if record.run not in self.began:
            self.blame("records", f"run {record.run} has a record and never began")

    def _ended(self, ended: Json) -> None:
        id, end = str(ended["invocation"]), End(ended["end"])
        if id in self.ends:
            self.blame("2", f"invocation {id} ended as {self.ends[id]} and again as {end}")
        self.ends[id] = end
        self.leaving.discard(id)
        known = next((member for event in self._event_of(ended) for member in event.members if member.id == id), None)
        if known is None:  # skipped at acceptance: it never was in the tables
            self.accepted += 1
            self.settled += 1
            self.skipped[str(ended["source"]), str(ended["event"])] += 1
            if end is not End.SKIPPED:
                self.blame("2", f"invocation {id} ended as {end} and was never accepted")
            return
        known.end = end
        if end is End.SUCCEEDED and not known.succeeded:
            self.blame("2", f"invocation {id} is recorded as succeeded and no run of it was")
        if end is End.CANCELLED:
            known.event.unhappy = True
        event = known.event
        if event.claims_ok is not None:
            self._hold(event, event.claims_ok)
            event.claims_ok = None

    def _event_of(self, ended: Json) -> list[Happened]:
        found = self.by_identity.get((ended["source"], ended["event"]))
        return [] if found is None else [found]

    def owes(self, trigger: str, event: str, ok: bool) -> None:
        happened = self.by_identity.get((trigger, event))
        if happened is None:
            return  # every invocation was skipped: the event left nothing here
        happened.owed += 1
        self.touched[id(happened)] = happened
        if happened.open:
            self.blame("owed", f"the settlement of {event} is owed while {happened.open} of its invocations are open")
        elif any(member.end is None for member in happened.members):
            happened.claims_ok = ok  # the last one's end follows in the same step
        else:
            self._hold(happened, ok)

    def _hold(self, happened: Happened, ok: bool) -> None:
        if ok != (not happened.unhappy and all(member.end is End.SUCCEEDED for member in happened.members)):
            self.blame("owed", f"the settlement of {happened.id} says ok = {ok}, and that is wrong")

    # --- the balance ---

    def _opened(self, known: Known) -> None:
        self.open[known.function] += 1
        self.alive.setdefault(known.function, {})[known.seq] = known
        known.event.open += 1

    def _left(self, known: Known) -> None:
        self.open[known.function] -= 1
        del self.alive[known.function][known.seq]
        event = known.event
        event.open -= 1
        if not event.open:
            event.due += 1
            self.touched[id(event)] = event

    def _died(self, known: Known, kept: Kept) -> None:
        known.died += 1
        known.end = End.DEAD
        self.settled += 1
        self.dead[known.function] += 1
        if kept.reason is Reason.RETRIES_EXHAUSTED and kept.attempts < self.most[known.function]:
            self.blame("attempts", f"invocation {known.id} was given up after {kept.attempts} attempts")
        if kept.reason is Reason.QUARANTINED:
            self.quarantined.append(known)
            if kept.lost != QUARANTINE_AFTER or known.runs < QUARANTINE_AFTER:
                self.blame("10", f"invocation {known.id} was quarantined after {kept.lost} lost runs of {known.runs}")

    def committed(self) -> None:
        """After each commit: nothing open twice, nothing forgotten, every settlement owed that is due and no other."""
        if self.accepted != sum(self.open.values()) + self.settled:
            self.blame("2", f"accepted {self.accepted}, open {sum(self.open.values())}, settled {self.settled}")
        if self.leaving:
            self.blame("2", f"invocations left without an end: {sorted(self.leaving)}")
            self.leaving.clear()
        touched, self.touched = self.touched, {}
        for happened in touched.values():
            if happened.fresh:
                happened.fresh = False
                happened.due += not happened.open and not happened.due  # all were dead or skipped at acceptance
            if happened.notify and happened.owed != happened.due:
                self.blame("owed", f"{happened.due} settlements of {happened.id} are due and {happened.owed} are owed")

    def moves_after(self, record: RunRecord, moves: Sequence[Moved]) -> None:
        """What follows a run: only one that we stopped gives its attempt back, and a lost one counts as lost."""
        back = record.outcome in (Outcome.INTERRUPTED, Outcome.CANCELLED)
        for move in moves:
            known = self.known.get(move.seq)
            if known is None or move.state is State.SETTLED:
                continue
            if move.attempts != known.attempts - back:
                self.blame("attempts", f"after {record.outcome} {known.id} counts {move.attempts} attempts, it began {known.attempts}")
            if record.outcome is Outcome.LOST and move.lost != known.lost + 1:
                self.blame("10", f"{known.id} was lost once more, and counts {move.lost} after {known.lost}")

    def give(self, known: Known, run: str) -> None:
        """A worker is given a run of this invocation."""
        self.started.add(run)
        most = self.most[known.function] + known.given_back
        if known.runs > most:
            self.blame("attempts", f"invocation {known.id} runs for the {known.runs}th time; {most} are allowed")


class AuditedTables(MemoryTables):
    """The disk, with the audit looking on."""

    def __init__(self, audit: Audit) -> None:
        super().__init__()
        self.audit = audit

    def put_event(self, meta: EventMeta, data: bytes) -> None:
        super().put_event(meta, data)
        self.audit.event_put(meta, data)

    def put_invocation(self, kept: Kept) -> None:
        super().put_invocation(kept)
        self.audit.put(kept)

    def update_invocation(self, kept: Kept) -> None:
        super().update_invocation(kept)
        self.audit.updated(kept)

    def drop_invocation(self, seq: int) -> None:
        super().drop_invocation(seq)
        self.audit.dropped(seq)

    def add_outbox(self, record: RunRecord | None, ended: Json | None) -> None:
        super().add_outbox(record, ended)
        self.audit.outbox(record, ended)
        self.outgoing.clear()  # the history has it: copying is another room's work

    def add_owed(self, trigger: str, event: str, key: str | None, ok: bool) -> OwedRow:
        row = super().add_owed(trigger, event, key, ok)
        self.audit.owes(trigger, event, ok)
        return row
