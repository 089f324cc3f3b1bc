"""Which run starts when: caps, fairness, retries, quarantine, rates, pauses, held work. One pure, total step.

`decide(state, signal, now, mono, dice)` answers a signal with facts to store and effects to carry out; `evolve(state, fact)`
is how a fact changes what State knows of an invocation; `next_wake(state)` says when to look again. `now` is wall-clock epoch
ms (due times survive a restart), `mono` is monotonic seconds (waits and rates do not).

Fairness (D9): slots go round over the functions that have ready work and room, inside a function round over its queues.
A function is in the ring, and a queue in its function's turns, at most once and only with something to do.
"""

from __future__ import annotations

from typing import assert_never

from eventd.core import signals as s
from eventd.core.facts import Discarded, Ended, Expired, InvocationRow, Moved, PauseSet
from eventd.core.retry import GiveUp, wait_ms
from eventd.core.settle import moved, settle_run
from eventd.core.signals import Decision, Dice, Signal, StopRun
from eventd.core.starting import Starting
from eventd.core.state import SUSPECT_AFTER, TRIAL_S, Dispatch, Function, Node
from eventd.core.step import TRANSITIONS, Alarm, count_end, evolve
from eventd.model import End, Outcome, State


def next_wake(state: Dispatch) -> int | None:
    """Epoch ms of the next moment at which `Tick` may change something, or None."""
    return state.alarms.peek()[0] if state.alarms else None


def decide(state: Dispatch, signal: Signal, now: int, mono: float, dice: Dice) -> Decision:
    """Answer one signal. Total: every signal, in any state, gives a decision."""
    step = _Step(state, now, mono, dice)
    match signal:
        case s.Called():
            step.called(signal)
        case s.RunEnded():
            step.run_ended(signal)
        case s.Arrived(rows=rows):
            for row in rows:
                step.arrived(row)
        case s.Tick():
            step.tick()
        case s.CallerGone(call=call):
            if (waiting := state.waiting.pop(call, None)) is not None:
                waiting.gone = True
        case s.Paged():
            step.paged(signal)
        case s.Available(function=name, available=available):
            state.function(name).available = available
            step.reconfigure(state.function(name))
        case s.PauseAsked():
            step.pause(signal)
        case s.CancelAsked(rows=rows):
            for row in rows:
                step.cancel(row)
        case s.RedriveAsked(rows=rows):
            for row in rows:
                step.redrive(row)
        case s.DiscardAsked(rows=rows):
            step.facts.append(Discarded(step.forget_dead(rows), now))
        case s.ExpireAsked(rows=rows):
            step.facts.append(Expired(step.forget_dead(rows)))
        case s.StartsAllowed(allowed=allowed, calls=calls):
            state.starts_allowed, state.calls_allowed = allowed, calls
            step.wake_all()
        case s.Configured(rules=rules):
            step.configured(rules)
        case s.Booted():
            step.booted(signal)
        case s.ClockStepped(step_ms=step_ms):
            step.clock_stepped(step_ms)
        case s.Confirmed(seqs=seqs):
            step.confirmed(seqs)
        case _:
            assert_never(signal)
    if state.ring or state.trial_until is not None:
        step.fill()
    if step.changed:
        step.then.append(s.Confirm(tuple(step.changed)))
    return Decision(step.facts, step.effects, step.then)


class _Step(Starting):
    """What each signal does."""

    __slots__ = ()

    # --- endings ---

    def run_ended(self, signal: s.RunEnded) -> None:
        run = self.state.runs.pop(signal.run, None)
        if run is None:
            return
        queue, function = run.queue, run.function
        self.state.running -= 1
        function.running -= 1
        function.durable_running -= len(run.members)
        if run.trigger is not None:
            run.trigger.running -= 1
            if run.trigger.waiting:
                waiting, run.trigger.waiting = run.trigger.waiting, {}
                for other in waiting:
                    self.wake(other)
        if run.members:
            self.settle(run.members, signal)
            self.wake(queue)
        self.ring(function)

    def settle(self, members: list[Node], ended: s.RunEnded) -> None:
        moves = settle_run(members, members[0].queue, ended, self.now, self.dice)
        self.facts.append(Ended(ended.record, tuple(moves)))
        for node, move in zip(members, moves, strict=True):
            evolve(self.state, move)
            self.after_move(node)
            if self.state.suspect == node.seq:
                self.next_suspect()

    # --- what people ask ---

    def cancel(self, row: InvocationRow) -> None:
        node = self.state.nodes.get(row.seq)
        if node is None:
            if row.state in (State.WAITING, State.RETRYING) and row.seq not in self.state.unsure:
                queue = self.state.queue(row.binding, row.function)
                move = moved(row.seq, GiveUp(End.CANCELLED, None, row.attempts, row.lost), self.now)
                self.facts.append(Ended(None, (move,)))
                queue.rest = max(0, queue.rest - 1)
                count_end(queue, End.CANCELLED)
                self.unsure(row.seq)
                if queue.in_flight:
                    queue.settled_in_flight.add(row.seq)
                if row.key is not None:
                    self.unlock(queue, row.key, row.seq)
                    self.wake(queue)
        elif node.run is not None:
            node.cancelled = True
            self.effects.append(StopRun(node.run, Outcome.CANCELLED))
        else:
            self.give_up(node, GiveUp(End.CANCELLED, None, node.attempts, node.lost))
            self.wake(node.queue)

    def redrive(self, row: InvocationRow) -> None:
        if not self.is_dead(row):
            return
        self.unsure(row.seq)
        self.facts.append(Ended(None, (Moved(row.seq, State.WAITING, 0, 0, self.now, self.now),)))
        queue = self.state.queue(row.binding, row.function)
        queue.function.dead -= 1
        queue.open += 1
        queue.function.open += 1
        again = InvocationRow(
            row.seq, row.id, row.event, row.binding, row.function, State.WAITING, self.now, self.now, key=row.key, serial=row.serial
        )
        self.put(queue, again)

    def is_dead(self, row: InvocationRow) -> bool:
        """Whether a row that was read as dead still is: another person may have redriven or discarded it meanwhile."""
        return row.end is End.DEAD and row.seq not in self.state.nodes and row.seq not in self.state.unsure

    def forget_dead(self, rows: tuple[InvocationRow, ...]) -> tuple[int, ...]:
        dead = [row for row in rows if self.is_dead(row)]
        for row in dead:
            self.state.function(row.function).dead -= 1
            self.unsure(row.seq)
        return tuple(row.seq for row in dead)

    def pause(self, signal: s.PauseAsked) -> None:
        pauses, item = self.state.pauses, (signal.kind, signal.name)
        if signal.paused == (item in pauses):
            return
        (pauses.add if signal.paused else pauses.discard)(item)
        self.facts.append(PauseSet(signal.kind, signal.name, signal.paused))
        if signal.kind == "function":
            self.reconfigure(self.state.function(signal.name))
        elif signal.kind == "binding" and (rule := self.state.rules.bindings.get(signal.name)) is not None:
            self.reconfigure(self.state.function(rule.function))

    # --- configuration, boot, clock ---

    def configured(self, rules: s.Rules) -> None:
        state = self.state
        state.rules = rules
        state.concurrency = rules.concurrency
        for name in rules.functions:
            state.function(name)
        for name, cap in rules.triggers.items():
            state.trigger(name).cap = cap
        for rule in rules.bindings.values():
            state.queue(rule.name, rule.function)
        for function in state.functions.values():
            function.rule = rules.functions.get(function.name)
            if function.rule is not None:
                function.retry = function.rule.retry
            self.reconfigure(function)

    def reconfigure(self, function: Function) -> None:
        paused = function.rule is not None and function.rule.paused
        function.paused = paused or ("function", function.name) in self.state.pauses
        for queue in function.queues:
            self.state.configure(queue)
            self.wake(queue)
        self.ring(function)

    def booted(self, signal: s.Booted) -> None:
        state = self.state
        state.pauses = set(signal.paused)
        for name, dead in signal.dead.items():
            state.function(name).dead = dead
        for function in list(state.functions.values()):
            self.reconfigure(function)
        for view in signal.queues:
            queue = state.queue(view.binding, view.function)
            queue.open += view.open
            queue.function.open += view.open
            queue.rest = view.open
            queue.next_due = view.next_due
            queue.fresh = True
            queue.stretch_ms = queue.longest_ms
            queue.set_back_at = self.now
        for lost in signal.running:
            queue = state.queue(lost.row.binding, lost.row.function)
            queue.open += 1
            queue.function.open += 1
            node = Node(lost.row, queue)
            node.state, node.run = State.RUNNING, lost.run
            state.nodes[node.seq] = node
            if node.key is not None:
                queue.locks[node.key] = node.seq
        together: dict[str, list[Node]] = {}
        records = {lost.run: lost.record for lost in signal.running}
        for lost in signal.running:
            together.setdefault(lost.run, []).append(state.nodes[lost.row.seq])
        for run, members in together.items():
            self.settle(members, s.RunEnded(run, Outcome.LOST, records[run]))
        if signal.running:
            self.try_suspects()
        self.wake_all()

    def try_suspects(self) -> None:
        """After a death of the daemon, what was lost again and again goes first, by itself (see TRIAL_S)."""
        state = self.state
        state.suspects = sorted((node for node in state.nodes.values() if node.lost >= SUSPECT_AFTER), key=lambda node: node.seq)
        for queue in state.queues.values():
            others = [node for node in queue.ready if isinstance(node, Node) and node.lost < SUSPECT_AFTER]
            queue.ready = state.heap()
            for node in others:
                queue.ready.push(node.due, node.seq, node)
        state.trial_until = self.mono + TRIAL_S
        over = self.now + round(TRIAL_S * 1000)
        state.alarm_number += 1
        state.alarms.push(over, state.alarm_number, Alarm(next(iter(state.queues.values()))))

    def clock_stepped(self, step_ms: int) -> None:
        for queue in self.state.queues.values():
            queue.alarm_at = None
            if step_ms < 0:
                queue.stretch_ms = max(queue.stretch_ms, -step_ms)
                queue.set_back_at = self.now
                later = [node for node in queue.later if isinstance(node, Node)]
                ready = [node for node in queue.ready if isinstance(node, Node)]
                queue.later, queue.ready = self.state.heap(), self.state.heap()
                for node in later:
                    wait = wait_ms(queue.retry, node.attempts) if node.attempts else max(0, node.due - node.accepted_at)
                    node.due = min(node.due, self.now + wait)
                    queue.later.push(node.due, node.seq, node)
                for node in ready:  # its place in the queue and its batch's window count from its due time
                    node.due = min(node.due, self.now)
                    queue.ready.push(node.due, node.seq, node)
        for function in self.state.functions.values():
            function.alarm_at = None
        self.wake_all()


__all__ = ["TRANSITIONS", "decide", "evolve", "next_wake"]
