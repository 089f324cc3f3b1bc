"""The working set of one decision: taking rows in, waking queues, paging, alarms. `starting.py` and `dispatcher.py` build on it."""

from __future__ import annotations

from collections import deque

from eventd.core.facts import Began, Ended, Fact, InvocationRow, Moved
from eventd.core.retry import GiveUp
from eventd.core.settle import moved
from eventd.core.signals import Dice, Effect, Page, Paged, Refuse
from eventd.core.state import LOW, NEVER, SUSPECT_AFTER, WINDOW, Call, Dispatch, Function, Node, Queue
from eventd.model import End, Refusal, State

TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.SETTLED}),
    State.RETRYING: frozenset({State.RUNNING, State.SETTLED}),
    State.RUNNING: frozenset({State.WAITING, State.RETRYING, State.SETTLED}),
    State.SETTLED: frozenset({State.WAITING}),  # a dead one, redriven
}
"""What may follow what; anything else is a mistake in eventd. `held` is a view of waiting and retrying, never stored."""


def evolve(state: Dispatch, fact: Began | Moved) -> None:
    """Apply one durable change to the invocation in memory. Raises KeyError for a transition that is not in the table."""
    match fact:
        case Began(seqs=seqs, run=run):
            for seq in seqs:
                node = state.nodes[seq]
                _transition(node, State.RUNNING)
                node.run = run
                node.attempts += 1
        case Moved(seq=seq):
            node = state.nodes[seq]
            _transition(node, fact.state)
            node.run = None
            node.cancelled = False
            node.attempts, node.lost, node.due = fact.attempts, fact.lost, fact.due_at
            node.solo = node.solo or fact.solo
            if fact.state is State.SETTLED:
                del state.nodes[seq]
                if node.queue.in_flight:
                    node.queue.settled_in_flight.add(seq)
                count_end(node.queue, fact.end)


def _transition(node: Node, to: State) -> None:
    if to not in TRANSITIONS[node.state]:
        raise KeyError(f"invocation {node.seq} cannot go from {node.state} to {to}")
    node.state = to


def count_end(queue: Queue, end: End | None) -> None:
    queue.open -= 1
    queue.function.open -= 1
    if end is not None:
        queue.function.ends[end] += 1
        queue.function.dead += end is End.DEAD


class Alarm:
    """What an alarm wakes. Not comparable: the number beside it in the heap decides between equal times."""

    __slots__ = ("target",)

    def __init__(self, target: Queue | Function) -> None:
        self.target = target


class Step:
    """Facts and effects collected while one signal is answered."""

    __slots__ = ("changed", "dice", "effects", "facts", "mono", "now", "state", "then")

    def __init__(self, state: Dispatch, now: int, mono: float, dice: Dice) -> None:
        self.state = state
        self.now = now
        self.mono = mono
        self.dice = dice
        self.facts: list[Fact] = []
        self.effects: list[Effect] = []
        self.then: list[Effect] = []
        self.changed: list[int] = []
        """What this decision changes without a run."""

    # --- arrivals ---

    def arrived(self, row: InvocationRow) -> None:
        queue = self.state.queue(row.binding, row.function)
        if row.state is State.SETTLED:
            queue.function.dead += row.end is End.DEAD
            if row.end is not None:
                queue.function.ends[row.end] += 1
            return
        queue.open += 1
        queue.function.open += 1
        self.put(queue, row)

    def put(self, queue: Queue, row: InvocationRow) -> None:
        """Take a row that is durable into memory, or leave it on disk when the window is full."""
        due = queue.bounded_due(row, self.now)
        heap = queue.ready if due <= self.now else queue.later
        if queue.rest or len(heap) >= WINDOW:
            self.rest(queue, row.due_at, row.seq)
            return
        node = Node(row, queue)
        node.due = due
        self.state.nodes[row.seq] = node
        heap.push(due, row.seq, node)
        self.wake(queue)

    def rest(self, queue: Queue, due: int, seq: int) -> None:
        below = (due, seq - 1)
        queue.cursor = below if queue.rest == 0 and not queue.in_flight else min(queue.cursor, below)
        if queue.in_flight:
            queue.low = below if queue.low is None else min(queue.low, below)
        queue.rest += 1
        queue.next_due = due if queue.next_due is None else min(queue.next_due, due)
        self.wake(queue)

    def paged(self, signal: Paged) -> None:
        queue = self.state.queue(signal.binding, signal.function)
        queue.in_flight = queue.fresh = False
        for row in signal.rows:
            queue.cursor = max(queue.cursor, (row.due_at, row.seq))
            if row.seq in self.state.nodes or row.seq in queue.settled_in_flight:
                continue
            queue.rest -= 1
            node = Node(row, queue)
            node.due = queue.bounded_due(row, self.now)
            self.state.nodes[row.seq] = node
            if row.serial and row.key is not None and row.state is State.RETRYING:
                queue.locks.setdefault(row.key, row.seq)  # between two attempts it holds its key, through a restart too
            if node.lost >= SUSPECT_AFTER and self.state.trial_until is not None:
                self.state.suspects.append(node)
            else:
                (queue.ready if node.due <= self.now else queue.later).push(node.due, row.seq, node)
        if queue.low is not None:
            queue.cursor = min(queue.cursor, queue.low)
            due = queue.low[0]
            queue.next_due = due if signal.next_due is None else min(due, signal.next_due)
        else:
            queue.next_due = signal.next_due
            if signal.next_due is None:
                queue.rest = 0
        queue.low = None
        queue.settled_in_flight.clear()
        queue.rest = max(queue.rest, 0)
        self.wake(queue)

    # --- waking ---

    def wake(self, queue: Queue) -> None:
        """Look at a queue again: promote what has become due, enter its function's turns, ask for the next page."""
        later = queue.later
        while later and later.peek()[0] <= self.now:
            due, seq, node = later.pop()
            queue.ready.push(due, seq, node)
        if not queue.active:
            return
        if later:
            self.alarm(queue, later.peek()[0])
        self.top_up(queue)
        if queue.ready and not queue.in_turn and self.ripe(queue):
            if queue.trigger is not None and queue.trigger.full:
                queue.trigger.waiting[queue] = None
                return
            queue.in_turn = True
            queue.function.turns.append(queue)
        self.ring(queue.function)

    def ripe(self, queue: Queue) -> bool:
        """Whether a batch is full, or its window over (an ordinary queue is always ripe)."""
        size = queue.batch_size
        if size <= 1 or queue.rule is None or len(queue.ready) >= size:
            return True
        due, _, node = queue.ready.peek()
        assert isinstance(node, Node)
        window = queue.rule.batch_window_ms
        closes = min(due + window, max(due, node.accepted_at + window))  # what has waited for its batch once does not do so again
        if closes <= self.now or node.solo:
            return True
        self.alarm(queue, closes)
        return False

    def top_up(self, queue: Queue) -> None:
        if not queue.rest or queue.in_flight or len(queue.ready) >= LOW or queue.blocked_count >= 2 * WINDOW:
            return
        early = queue.stretch_ms if len(queue.later) < WINDOW else 0
        horizon = NEVER if queue.fresh else self.now + early
        if queue.next_due is not None and queue.next_due > horizon:
            if queue.next_due <= self.now + queue.longest_ms or len(queue.later) >= 2 * WINDOW:
                self.alarm(queue, queue.next_due - early)
                return
            horizon = queue.next_due + queue.longest_ms  # further off than any wait: the clock has been set back since
        queue.in_flight = True
        self.then.append(Page(queue.binding, queue.function.name, queue.cursor, horizon, max(WINDOW, queue.batch_size)))

    def alarm(self, target: Queue | Function, at: int) -> None:
        if target.alarm_at is None or at < target.alarm_at or target.alarm_at <= self.now:
            target.alarm_at = at
            self.state.alarm_number += 1
            self.state.alarms.push(at, self.state.alarm_number, Alarm(target))

    def ring(self, function: Function) -> None:
        if not function.in_ring and (function.turns or function.calls) and (function.running < function.cap or not function.cap):
            function.in_ring = True
            self.state.ring.append(function)

    def tick(self) -> None:
        alarms = self.state.alarms
        while alarms and alarms.peek()[0] <= self.now:
            at, _, item = alarms.pop()
            assert isinstance(item, Alarm)
            target = item.target
            if target.alarm_at == at:
                target.alarm_at = None
            if isinstance(target, Queue):
                self.wake(target)
            else:
                self.expire_calls(target)
                self.ring(target)

    def wake_all(self) -> None:
        for queue in self.state.queues.values():
            self.wake(queue)
        for function in self.state.functions.values():
            self.expire_calls(function)
            self.ring(function)

    def expire_calls(self, function: Function) -> None:
        """Refuse what has waited too long. Calls may differ in their wait, so all are looked at, MAX_CALLS at most."""
        kept: deque[Call] = deque()
        soonest: float | None = None
        for call in function.calls:
            if call.gone:
                continue
            if call.expires <= self.mono + 0.0005 or not self.state.calls_allowed:
                self.state.waiting.pop(call.call, None)
                rated = function.running < function.cap and function.rate_wait(self.mono) > 0
                refusal = Refusal.RATE if rated else Refusal.CONCURRENCY
                self.effects.append(Refuse(call.call, function.name, refusal if self.state.calls_allowed else Refusal.DRAINING))
            else:
                kept.append(call)
                soonest = call.expires if soonest is None else min(soonest, call.expires)
        function.calls = kept
        if soonest is not None:
            self.alarm(function, self.now + max(1, round((soonest - self.mono) * 1000)))

    # --- leaving ---

    def after_move(self, node: Node) -> None:
        """Release the key, and put an invocation that goes on back into its queue."""
        queue = node.queue
        if node.key is not None and (node.state is State.SETTLED or not node.serial):
            self.unlock(queue, node.key, node.seq)
        if node.state is State.SETTLED:
            return
        heap = queue.ready if node.due <= self.now else queue.later
        if heap is queue.later and len(heap) >= WINDOW:
            del self.state.nodes[node.seq]
            self.rest(queue, node.due, node.seq)
        else:
            heap.push(node.due, node.seq, node)

    def unlock(self, queue: Queue, key: str, seq: int) -> None:
        if queue.locks.get(key) != seq:
            return
        del queue.locks[key]
        for other in queue.blocked.pop(key, ()):
            queue.blocked_count -= 1
            if not other.gone:
                other.due = min(other.due, self.now)
                queue.ready.push(other.due, other.seq, other)

    def give_up(self, node: Node, end: GiveUp) -> None:
        """An end without a run."""
        move = moved(node.seq, end, self.now)
        self.facts.append(Ended(None, (move,)))
        evolve(self.state, move)
        node.gone = True
        self.unsure(node.seq)
        self.after_move(node)

    # --- what is on its way to the disk ---

    def unsure(self, seq: int) -> None:
        self.changed.append(seq)
        self.state.unsure[seq] = self.state.unsure.get(seq, 0) + 1

    def confirmed(self, seqs: tuple[int, ...]) -> None:
        for seq in seqs:
            left = self.state.unsure.pop(seq) - 1
            if left:
                self.state.unsure[seq] = left
