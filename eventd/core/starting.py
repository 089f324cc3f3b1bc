"""Giving slots away: which function, which queue, which invocations make the next run."""

from __future__ import annotations

from eventd.core.facts import Began
from eventd.core.retry import GiveUp
from eventd.core.signals import Called, Member, Refuse, Start
from eventd.core.state import EVERY_NTH_DURABLE, MAX_CALLS, SUSPECT_AFTER, Call, Function, Node, Queue, Run
from eventd.core.step import Step, evolve
from eventd.model import End, Lane, Reason, Refusal


class Starting(Step):
    """A step that can start runs."""

    __slots__ = ()

    def fill(self) -> None:
        """Give every free slot to the next function in turn."""
        state = self.state
        if state.trial_until is not None and self.trial():
            return
        while state.ring and state.running < state.concurrency:
            if not state.starts_allowed:
                return
            function = state.ring.popleft()
            function.in_ring = False
            if function.rule is None:
                continue
            if not function.cap:
                self.end_all(function)
                continue
            if function.running >= function.cap:
                continue
            if wait := function.rate_wait(self.mono):
                self.alarm(function, self.now + max(1, round(wait * 1000)))
                continue
            if self.start_one(function):
                self.ring(function)

    def trial(self) -> bool:
        """Start the next suspect when none runs. False: there is none left, or the time is over, and all may go on.

        Suspects that did not come up before the last death are found on the first pages.
        """
        state = self.state
        while state.suspect is None and state.suspects and state.starts_allowed:
            node = state.suspects.pop(0)
            if node.gone:
                continue
            if self.may_start(node):
                state.suspect = node.seq
                self.start_run(node.queue, [node], 0)
            else:  # paused, gone, or without a slot: its turn comes as any other's
                node.queue.ready.push(node.due, node.seq, node)
                self.wake(node.queue)
        looking = state.suspect is not None or (state.starts_allowed and any(queue.in_flight for queue in state.queues.values()))
        if looking and state.trial_until is not None and self.mono < state.trial_until:
            return True
        state.trial_until = None
        if state.suspect is None:
            self.next_suspect()
        return False

    def next_suspect(self) -> None:
        """No suspect runs any more: the others go back into their queues, and the first of them to come up is the next."""
        self.state.suspect = None
        if self.state.trial_until is not None:
            return  # `trial` starts the next one
        waiting, self.state.suspects = self.state.suspects, []
        for node in waiting:
            if not node.gone:
                node.queue.ready.push(node.due, node.seq, node)
                self.wake(node.queue)

    def may_start(self, node: Node) -> bool:
        queue, function = node.queue, node.queue.function
        free = queue.active and function.running < function.cap and self.state.running < self.state.concurrency
        full = queue.trigger is not None and queue.trigger.full
        mine = node.key is None or queue.locks.get(node.key, node.seq) == node.seq
        return free and mine and not full and not function.rate_wait(self.mono)

    def start_one(self, function: Function) -> bool:
        function.turn += 1
        if function.calls and (function.turn % EVERY_NTH_DURABLE or not function.turns):
            return self.start_call(function) or self.start_durable(function)
        return self.start_durable(function) or self.start_call(function)

    def start_call(self, function: Function) -> bool:
        for _ in range(len(function.calls)):
            call = function.calls.popleft()
            if call.gone:
                continue
            if not call.queue.active:  # paused while it waited
                self.state.waiting.pop(call.call, None)
                self.effects.append(Refuse(call.call, function.name, Refusal.PAUSED if function.available else Refusal.BUILDING))
                continue
            trigger = call.queue.trigger
            if trigger is not None and trigger.full:
                trigger.waiting[call.queue] = None
                function.calls.append(call)
                continue
            self.state.waiting.pop(call.call, None)
            self.start_run(call.queue, [], call.call)
            return True
        return False

    def start_durable(self, function: Function) -> bool:
        while function.turns:
            queue = function.turns.popleft()
            queue.in_turn = False
            if not queue.active or not queue.ready:
                continue
            if queue.trigger is not None and queue.trigger.full:
                queue.trigger.waiting[queue] = None
                continue
            members = self.take(queue)
            if members:
                self.start_run(queue, members, 0)
            self.wake(queue)
            if members:
                return True
        return False

    def take(self, queue: Queue) -> list[Node]:
        """The next members of a run: one, or a batch. Too old ones end here; ones whose key is taken step aside."""
        members: list[Node] = []
        keys: set[str] = set()
        while queue.ready and len(members) < queue.batch_size:
            node = queue.ready.peek()[2]
            assert isinstance(node, Node)
            if node.gone:
                queue.ready.pop()
                continue
            if node.solo and members:
                break
            queue.ready.pop()
            if queue.max_age_ms and self.now - node.accepted_at > queue.max_age_ms:
                self.give_up(node, GiveUp(End.DEAD, Reason.EVENT_AGE_EXCEEDED, node.attempts, node.lost))
                continue
            if node.lost >= SUSPECT_AFTER and self.state.suspect is not None:
                self.state.suspects.append(node)
                continue
            if node.key is not None and (queue.locks.get(node.key, node.seq) != node.seq or node.key in keys):
                queue.blocked.setdefault(node.key, []).append(node)
                queue.blocked_count += 1
                continue
            if node.key is not None:
                keys.add(node.key)
            if node.lost >= SUSPECT_AFTER:
                self.state.suspect = node.seq
            members.append(node)
            if node.solo:
                break
        return members

    def start_run(self, queue: Queue, members: list[Node], call: int) -> None:
        state, function = self.state, queue.function
        lane = Lane.DURABLE if members else Lane.DIRECT
        run = Run(self.dice.id(), lane, queue, members, call)
        state.runs[run.id] = run
        state.running += 1
        function.running += 1
        function.started(self.mono)
        trigger = queue.trigger
        if trigger is not None:
            trigger.running += 1
        if not members:
            self.effects.append(Start(run.id, lane, function.name, queue.binding, trigger.name if trigger is not None else None, (), call))
            return
        for node in members:
            if node.key is not None:
                queue.locks[node.key] = node.seq
        function.durable_running += len(members)
        fact = Began(run.id, tuple(node.seq for node in members), self.now)
        evolve(state, fact)
        self.facts.append(fact)
        listed = tuple(Member(node.seq, node.id, node.event, node.attempts, node.accepted_at, node.due) for node in members)
        self.then.append(Start(run.id, lane, function.name, queue.binding, trigger.name if trigger is not None else None, listed))

    def called(self, signal: Called) -> None:
        state = self.state
        if not state.calls_allowed:
            return self.refuse(signal, Refusal.DRAINING)
        if signal.function not in state.rules.functions:
            return self.refuse(signal, Refusal.UNKNOWN)
        queue = state.queue(signal.binding, signal.function)
        function = queue.function
        if not queue.active:
            return self.refuse(signal, Refusal.PAUSED if function.available else Refusal.BUILDING)
        wait = state.rules.functions[signal.function].wait_ms if signal.wait_ms is None else signal.wait_ms
        busy = Refusal.CONCURRENCY
        if not function.cap:
            return self.refuse(signal, busy)
        free = state.running < state.concurrency and function.running < function.cap and not (queue.trigger and queue.trigger.full)
        if free and state.starts_allowed and not function.calls:
            if not function.rate_wait(self.mono):
                return self.start_run(queue, [], signal.call)
            busy = Refusal.RATE
        if wait <= 0 or len(function.calls) >= MAX_CALLS:
            return self.refuse(signal, busy)
        call = Call(signal.call, queue, self.mono + wait / 1000)
        state.waiting[signal.call] = call
        function.calls.append(call)
        self.alarm(function, self.now + wait)
        self.ring(function)
        return None

    def refuse(self, signal: Called, refusal: Refusal) -> None:
        self.effects.append(Refuse(signal.call, signal.function, refusal))

    def end_all(self, function: Function) -> None:
        """`concurrency = 0`: what waits is dead at once, as on AWS; waiting calls are refused."""
        while function.calls:
            call = function.calls.popleft()
            if not call.gone:
                self.state.waiting.pop(call.call, None)
                self.effects.append(Refuse(call.call, function.name, Refusal.CONCURRENCY))
        while function.turns:
            queue = function.turns.popleft()
            queue.in_turn = False
            while queue.active and queue.ready:
                node = queue.ready.pop()[2]
                assert isinstance(node, Node)
                if not node.gone:
                    self.give_up(node, GiveUp(End.DEAD, Reason.ZERO_CONCURRENCY, node.attempts, node.lost))
            self.top_up(queue)
