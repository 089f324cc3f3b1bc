"""The shell's one loop around the dispatcher: signals in, facts to the journal, effects to the workers.

Callback style throughout (D32): a call passes from socket to worker and back without a task, a future or a timer of its own.
Facts are durable before the effects that depend on them. A direct call writes nothing before it runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from eventd.core import signals as s
from eventd.core.dispatcher import decide, next_wake
from eventd.core.facts import EventRow
from eventd.core.state import Dispatch
from eventd.daemon import records
from eventd.daemon.ids import Dice, trace_root
from eventd.daemon.records import Running
from eventd.model import FunctionSettings, Lane, Outcome, Refusal, RunRecord
from eventd.ports import Boot, Clock, HistorySink, Journal, Pool, Ran, Task
from eventd.sdk import Answer

CACHE_BYTES = 8 * 1024**2
"""Payloads of accepted events kept in memory until they run; the rest is read from the journal."""
CACHE_EACH = 64 * 1024
MAX_SLEEP_S = 30.0
CLOCK_CHECK_S = 1.0
CLOCK_STEP_MS = 1_000
log = logging.getLogger("eventd")

INVOKED = "invoke"
"""The source of events that come from no trigger."""


class Observer(Protocol):
    """Who counts. Called on the loop, must not block or raise."""

    def finished(self, record: RunRecord) -> None: ...
    def throttled(self, function: str) -> None: ...


class Pending:
    """A direct call on its way."""

    __slots__ = ("binding", "client_context", "data", "done", "function", "invocation", "mono", "received_at", "told", "trigger")

    def __init__(
        self, function: str, data: bytes, invocation: str, done: Callable[[Answer], None], received_at: int, mono: float,
        trigger: str | None = None, binding: str | None = None, client_context: str = "",
    ) -> None:  # fmt: skip
        self.function = function
        self.data = data
        self.invocation = invocation
        self.done = done
        self.received_at = received_at
        self.mono = mono
        self.trigger = trigger
        self.binding = binding
        self.client_context = client_context
        self.told: Callable[[RunRecord, Ran], None] | None = None
        """For a caller who also wants the record and the end of the output."""


class Engine:
    """Owns the dispatcher's State. Everything here runs on the event loop."""

    def __init__(
        self, *, journal: Journal, pool: Pool, history: HistorySink, clock: Clock, observer: Observer, boot: str, dice: Dice,
        loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        self.state = Dispatch()
        self.journal = journal
        self.pool = pool
        self.history = history
        self.clock = clock
        self.observer = observer
        self.boot = boot
        self.dice = dice
        self.functions: Mapping[str, FunctionSettings] = {}
        self.lag_s = 0.0
        self.beat_at = clock.monotonic()
        self._loop = loop
        self._calls: dict[int, Pending] = {}
        self._call_number = 0
        self._running: dict[str, Running] = {}
        self._stopped: dict[str, Outcome] = {}
        self._active_keys: dict[str, tuple[str, ...]] = {}
        self._cache: OrderedDict[int, EventRow] = OrderedDict()
        self._cached = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._watch: asyncio.TimerHandle | None = None
        self._wall_minus_mono = clock.now_ms() - clock.monotonic() * 1000
        self._idle: list[Callable[[], None]] = []
        self._changed: asyncio.Future[None] | None = None
        self.changes = 0
        """Durable changes so far: who looks, then waits for the next, sees by this that it came in between."""
        self._closed = False

    # --- signals ---

    def tell(self, signal: s.Signal) -> None:
        """Answer one signal: store its facts, carry out its effects."""
        clock, state = self.clock, self.state
        decision = decide(state, signal, clock.now_ms(), clock.monotonic(), self.dice)
        for effect in decision.now:
            self._carry_out(effect)
        then = decision.then
        if decision.facts:
            self.journal.append(decision.facts, lambda: self._durable(then))
        elif then:
            self._carry_out_all(then)
        if (at := next_wake(state)) is not None:
            self._arm(at)
        if self._idle and not self.state.running:
            waiting, self._idle = self._idle, []
            for done in waiting:
                done()

    def _durable(self, then: Sequence[s.Effect]) -> None:
        self._carry_out_all(then)
        self.changes += 1
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    def _carry_out_all(self, effects: Sequence[s.Effect]) -> None:
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: s.Effect) -> None:
        match effect:
            case s.Start():
                if effect.lane is Lane.DIRECT:
                    self._start_direct(effect)
                else:
                    self._gather(effect)
            case s.Refuse():
                self._refuse(effect)
            case s.Page():
                binding, function = effect.binding, effect.function
                self.journal.page(
                    binding, function, effect.after, effect.upto_due, effect.limit,
                    lambda rows, next_due: self.tell(s.Paged(binding, function, tuple(rows), next_due)),
                )  # fmt: skip
            case s.StopRun():
                if effect.run in self._running:
                    self.pool.stop(effect.run, effect.outcome)
                else:  # decided, but its beginning is not durable yet
                    self._stopped[effect.run] = effect.outcome
            case s.Confirm(seqs=seqs):
                # rows read before the commit were handed out before this; who waited for them goes first
                self._loop.call_soon(self.tell, s.Confirmed(seqs))

    # --- direct lane ---

    def submit(self, pending: Pending, wait_ms: int | None = None) -> Callable[[], None]:
        """Run a function for a caller who waits. Returns what to call when the caller has gone."""
        self._call_number += 1
        number = self._call_number
        self._calls[number] = pending
        self.tell(s.Called(number, pending.function, pending.trigger, pending.binding, wait_ms))

        def gone() -> None:
            if number in self.state.waiting:
                self._calls.pop(number, None)
                self.tell(s.CallerGone(number))

        return gone

    def _refuse(self, effect: s.Refuse) -> None:
        pending = self._calls.pop(effect.call, None)
        if pending is None:
            return
        if effect.refusal in (Refusal.CONCURRENCY, Refusal.RATE):
            self.observer.throttled(effect.function)
        self._answer(pending, Answer(pending.invocation, refusal=effect.refusal))

    def _answer(self, pending: Pending, answer: Answer) -> None:
        """Tell a caller. A mistake in its callback is told to the loop; it must not cost the slot or the record of the run."""
        try:
            pending.done(answer)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"the caller of function '{pending.function}' raised", "exception": error})

    def _start_direct(self, start: s.Start) -> None:
        pending = self._calls.pop(start.call)
        now = self.clock.now_ms()
        queue_ms = records.thousandths((self.clock.monotonic() - pending.mono) * 1000)
        source, at = pending.trigger or INVOKED, pending.received_at
        running = Running(start, pending.invocation, source, at, at, now, len(pending.data), queue_ms)
        self._running[start.run] = running
        task = Task(
            start.run, pending.invocation, start.function, pending.data, Lane.DIRECT, trace_root(pending.invocation), pending.client_context
        )

        def done(ran: Ran) -> None:
            del self._running[start.run]
            function = self.functions.get(start.function) or FunctionSettings(start.function)
            record = records.of_run(running, ran, function, self.boot, pending.invocation)
            self._answer(pending, Answer(pending.invocation, ran.outcome, ran.payload, ran.error_type, ran.error_message))
            self.history.record(record)
            self.observer.finished(record)
            if pending.told is not None:
                pending.told(record, ran)
            self.tell(s.RunEnded(start.run, ran.outcome))

        self.pool.run(task, done)

    # --- durable lane ---

    def remember(self, event: EventRow) -> None:
        """Keep an accepted event's payload at hand for the run that is about to start."""
        size = len(event.data)
        if size <= CACHE_EACH:
            self._cache[event.seq] = event
            self._cached += size + 200
            while self._cached > CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._cached -= len(old.data) + 200

    def _gather(self, start: s.Start) -> None:
        """Collect the events of a run, from memory or from the journal, then start it."""
        found: dict[int, EventRow] = {}
        missing: list[int] = []
        for member in start.members:
            event = self._cache.get(member.event)
            if event is not None:
                found[member.event] = event
            else:
                missing.append(member.event)
        if not missing:
            self._start_durable(start, found)
            return
        wanted = len(set(missing))

        def came(event: EventRow) -> None:
            found[event.seq] = event
            nonlocal wanted
            wanted -= 1
            if not wanted:
                self._start_durable(start, found)

        for seq in set(missing):
            self.journal.event(seq, came)

    def _start_durable(self, start: s.Start, events: Mapping[int, EventRow]) -> None:
        first = start.members[0]
        event = events[first.event]
        function = self.functions.get(start.function)
        if (outcome := self._stopped.pop(start.run, None)) is not None:
            self.tell(s.RunEnded(start.run, outcome))
            return
        if function is None:  # removed between the decision and its commit: back into the queue, where it is held
            self.tell(s.RunEnded(start.run, Outcome.INTERRUPTED))
            return
        single = len(start.members) == 1
        invocation = first.id if single else start.run
        broken = ""
        try:
            data = event.data if single else records.join_records([events[member.event].data for member in start.members])
        except (ValueError, RecursionError) as error:  # an event that is no JSON: the slot and the invocation must not hang on it
            data, broken = event.data, f"the events of this batch cannot be joined: {error}"
        now = self.clock.now_ms()
        running = Running(start, event.id, event.source, event.received_at, first.due_at, now, len(data), float(max(0, now - first.due_at)))
        self._running[start.run] = running
        self._active_keys[start.run] = tuple(key for member in start.members if (key := events[member.event].key) is not None)
        task = Task(start.run, invocation, start.function, data, Lane.DURABLE, event.trace or trace_root(first.id))

        def done(ran: Ran) -> None:
            del self._running[start.run]
            self._active_keys.pop(start.run, None)
            record = records.of_run(running, ran, self.functions.get(start.function) or function, self.boot, invocation)
            self.observer.finished(record)
            self.tell(s.RunEnded(start.run, ran.outcome, record, record.error_type, record.error_message))

        if broken:
            self._loop.call_soon(done, Ran(outcome=Outcome.FAILED, error_type="Eventd.BadEvent", error_message=broken))
            return
        self.pool.run(task, done)

    # --- time ---

    def _arm(self, at: int) -> None:
        """One timer for everything that becomes due."""
        if self._closed or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(min(MAX_SLEEP_S, max(0.0, (at - self.clock.now_ms()) / 1000)), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._closed:
            self.tell(s.Tick())

    def watch(self) -> None:
        """Once a second: has the clock been set, and how late is the loop?"""
        mono = self.clock.monotonic()
        self.lag_s = max(0.0, mono - self.beat_at - CLOCK_CHECK_S) if self._watch is not None else 0.0
        self.beat_at = mono
        difference = self.clock.now_ms() - mono * 1000
        step = difference - self._wall_minus_mono
        self._wall_minus_mono = difference
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_later(CLOCK_CHECK_S, self.watch)
        if abs(step) > CLOCK_STEP_MS:
            self.clock_stepped(round(step))

    def clock_stepped(self, step_ms: int) -> None:
        """The wall clock was set (D14). The timer was reckoned by the old one, so it is reckoned again."""
        log.warning("W-CLOCK the system clock was set by %+.1f s; due times were brought in line.", step_ms / 1000)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.tell(s.ClockStepped(step_ms))

    # --- boot and end ---

    async def start(self, boot: Boot) -> None:
        """Take over what the journal knows: runs that were going on are lost, and go on at once."""
        lost = []
        members: dict[str, int] = {}
        for _, run, _ in boot.running:
            members[run] = members.get(run, 0) + 1
        for row, run, began_at in boot.running:
            event = await self.event(row.event)
            record = records.of_lost(
                run=run, event=event, invocation=row.id if members[run] == 1 else run, attempt=row.attempts, batch=members[run],
                function=self.functions.get(row.function), name=row.function, binding=row.binding, lane=Lane.DURABLE, began_at=began_at,
                due_at=row.due_at, now=self.clock.now_ms(), boot=self.boot,
            )  # fmt: skip
            lost.append(s.LostRun(row, run, record))
            self.observer.finished(record)
        queues = tuple(s.QueueView(q.binding, q.function, q.open, q.next_due) for q in boot.queues)
        self.tell(s.Booted(queues, tuple(lost), boot.paused, boot.dead))
        self.watch()

    async def event(self, seq: int) -> EventRow:
        future: asyncio.Future[EventRow] = self._loop.create_future()
        self.journal.event(seq, lambda row: None if future.done() else future.set_result(row))
        return await future

    def keys_running(self, trigger: str) -> tuple[str, ...]:
        """The keys of a trigger's events that run at this moment."""
        return tuple(
            key for run, keys in self._active_keys.items() if (r := self._running.get(run)) and r.start.trigger == trigger for key in keys
        )

    @property
    def open(self) -> int:
        return sum(self.state.open_by_function().values())

    async def quiet(self) -> None:
        """Return when no run holds a slot."""
        if self.state.running:
            future: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(lambda: None if future.done() else future.set_result(None))
            await future

    async def changed(self) -> None:
        """Return after the next durable change of any invocation."""
        if self._changed is None:
            self._changed = self._loop.create_future()
        await asyncio.shield(self._changed)

    def interrupt_all(self) -> None:
        """Stop every run as `interrupted`: durable ones start again after the next start, callers get 503."""
        for run in list(self.state.runs):
            if run in self._running:
                self.pool.stop(run, Outcome.INTERRUPTED)
            else:  # decided, but its beginning is not durable yet
                self._stopped[run] = Outcome.INTERRUPTED

    def close(self) -> None:
        """No further timers and no further starts. What has been told is told."""
        self._closed = True
        self.tell(s.StartsAllowed(False, False))
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
