"""The dispatcher's State: a paged view of the journal, plus what is volatile (slots, waiting calls, rate windows).

A queue is one (binding, function) pair. At most `WINDOW` of its ready rows and as many of its later ones are in memory;
the `rest` is a count, and stays on disk until a `Page` effect fetches the next rows. Nothing here looks at all open
invocations: every change is O(1) or O(log window).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from eventd.core.facts import InvocationRow
from eventd.core.retry import wait_ms
from eventd.core.signals import BindingRule, FunctionRule, Rules
from eventd.model import End, Lane, Retry, State

WINDOW = 256
"""Rows of one queue kept in memory, ready ones and later ones each."""
LOW = 64
"""Fewer ready rows than this, and the next page is fetched."""
MAX_CALLS = 4_096
"""Direct calls that may wait for one function; further ones are refused at once."""
EVERY_NTH_DURABLE = 4
"""When calls and durable work both wait, every fourth slot goes to durable work (D9)."""
SUSPECT_AFTER = 2
"""`lost` runs in a row after which an invocation runs only while no other such one does: when the daemon dies a third
time, only the guilty one is condemned (promise 10)."""
TRIAL_S = 0.5
"""After a death of the daemon the suspects run first, one by one, and no other durable work starts beside them, for so long at
most: whoever kills it then is guilty, and an innocent that shared its earlier deaths is not condemned by a second poison."""

NEVER = 1 << 62
"""Later than any due time."""
START: tuple[int, int] = (-1, -1)


class Heap:
    """A binary heap of (time, number, item). A test counts its operations by a subclass."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[tuple[int, int, object]] = []

    def push(self, time: int, number: int, item: object) -> None:
        heapq.heappush(self._items, (time, number, item))

    def pop(self) -> tuple[int, int, object]:
        return heapq.heappop(self._items)

    def peek(self) -> tuple[int, int, object]:
        return self._items[0]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[object]:
        return (item for _, _, item in self._items)


class Node:
    """An open invocation that is in memory. `state` follows the journal's row; `gone` marks one taken out of a heap lazily."""

    __slots__ = (
        "accepted_at", "attempts", "cancelled", "due", "event", "gone", "id", "key", "lost", "queue", "run", "seq", "serial", "solo",
        "state",
    )  # fmt: skip

    def __init__(self, row: InvocationRow, queue: Queue) -> None:
        self.seq = row.seq
        self.id = row.id
        self.event = row.event
        self.queue = queue
        self.due = row.due_at
        self.accepted_at = row.accepted_at
        self.attempts = row.attempts
        self.lost = row.lost
        self.key = row.key
        self.serial = row.serial
        self.solo = row.solo
        self.state = row.state
        self.run: str | None = None
        self.cancelled = False
        self.gone = False


class Queue:
    """Open work of one (binding, function) pair."""

    __slots__ = (
        "active", "alarm_at", "binding", "blocked", "blocked_count", "cursor", "fresh", "function", "in_flight", "in_turn", "later",
        "locks", "low", "next_due", "open", "ready", "rest", "rule", "set_back_at", "settled_in_flight", "stretch_ms", "trigger",
    )  # fmt: skip

    def __init__(self, binding: str | None, function: Function, heap: type[Heap]) -> None:
        self.binding = binding
        self.function = function
        self.trigger: Trigger | None = None
        self.rule: BindingRule | None = None
        self.active = False
        self.ready = heap()
        self.later = heap()
        self.blocked: dict[str, list[Node]] = {}
        self.blocked_count = 0
        self.locks: dict[str, int] = {}
        """key -> seq of the invocation that holds it."""
        self.open = 0
        self.rest = 0
        self.cursor: tuple[int, int] = START
        """Every row that is only on disk has (due, seq) > cursor."""
        self.low: tuple[int, int] | None = None
        """The smallest row put to rest since the page in flight was asked for."""
        self.next_due: int | None = None
        self.in_flight = False
        self.fresh = False
        """Nothing was fetched since the boot. The first page takes what is not due yet too: who holds a key is among it."""
        self.settled_in_flight: set[int] = set()
        """What ended without a run since that page was asked for; the page may still show it as waiting."""
        self.in_turn = False
        self.alarm_at: int | None = None
        self.stretch_ms = 0
        """Rows that become due within this time are fetched early: the clock may have been set back by so much."""
        self.set_back_at: int | None = None
        """When the clock was last found set back, or may have been (a boot)."""

    @property
    def retry(self) -> Retry:
        if self.rule is not None and self.rule.retry is not None:
            return self.rule.retry
        return self.function.retry

    @property
    def max_age_ms(self) -> int:
        if self.rule is not None and self.rule.max_event_age_ms is not None:
            return self.rule.max_event_age_ms
        return self.function.rule.max_event_age_ms if self.function.rule is not None else 0

    @property
    def longest_ms(self) -> int:
        """The longest wait between two attempts."""
        return max(self.retry.waits_ms, default=0)

    @property
    def batch_size(self) -> int:
        return self.rule.batch_size if self.rule is not None else 1

    def bounded_due(self, row: InvocationRow, now: int) -> int:
        """The row's due time, but not later than its wait after the clock was set back (D14)."""
        wait = wait_ms(self.retry, row.attempts) if row.attempts else max(0, row.due_at - row.accepted_at)
        if row.due_at <= now + wait:
            return row.due_at
        since = now if self.set_back_at is None else min(now, self.set_back_at)
        return max(now, since + wait)


class Call:
    """A direct call that waits for a slot. `expires` is monotonic seconds."""

    __slots__ = ("call", "expires", "gone", "queue")

    def __init__(self, call: int, queue: Queue, expires: float) -> None:
        self.call = call
        self.queue = queue
        self.expires = expires
        self.gone = False


class Function:
    """A function's slots, its queues with ready work, its waiting calls."""

    __slots__ = (
        "alarm_at", "available", "calls", "dead", "durable_running", "ends", "in_ring", "name", "open", "paused", "queues", "retry",
        "rule", "running", "starts", "turn", "turns",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.rule: FunctionRule | None = None
        self.retry = Retry()
        """Of the last rule: what is held while the function is gone keeps its waits."""
        self.running = 0
        self.durable_running = 0
        """Invocations (not runs: a batch is several) of the durable lane that are running."""
        self.open = 0
        self.dead = 0
        self.ends: dict[End, int] = dict.fromkeys(End, 0)
        """Invocations settled since this process began, by how they ended."""
        self.available = True
        self.paused = False
        self.queues: list[Queue] = []
        self.turns: deque[Queue] = deque()
        self.calls: deque[Call] = deque()
        self.in_ring = False
        self.turn = 0
        self.starts: deque[float] = deque()
        """Monotonic times of the newest starts, as many as `rate.count`."""
        self.alarm_at: int | None = None

    @property
    def cap(self) -> int:
        return self.rule.concurrency if self.rule is not None else 0

    @property
    def waiting(self) -> int:
        """Open invocations that hold no slot, and direct calls that wait for one."""
        return self.open - self.durable_running + len(self.calls)

    def rate_wait(self, mono: float) -> float:
        """Seconds until the rate allows another start; 0 when it does now."""
        rate = self.rule.rate if self.rule is not None else None
        if rate is None or len(self.starts) < rate.count:
            return 0.0
        return max(0.0, self.starts[-rate.count] + rate.per_ms / 1000 - mono)

    def started(self, mono: float) -> None:
        rate = self.rule.rate if self.rule is not None else None
        if rate is not None:
            self.starts.append(mono)
            while len(self.starts) > rate.count:
                self.starts.popleft()


class Trigger:
    """A trigger's own cap on runs at once (0: none) and the queues that wait for it."""

    __slots__ = ("cap", "name", "running", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.cap = 0
        self.running = 0
        self.waiting: dict[Queue, None] = {}

    @property
    def full(self) -> bool:
        return 0 < self.cap <= self.running


class Run:
    """A run that holds a slot, also of the trigger its queue had when it started: a reload may take the binding away."""

    __slots__ = ("call", "function", "id", "lane", "members", "queue", "trigger")

    def __init__(self, id: str, lane: Lane, queue: Queue, members: list[Node], call: int) -> None:
        self.id = id
        self.lane = lane
        self.queue = queue
        self.function = queue.function
        self.trigger = queue.trigger
        self.members = members
        self.call = call


class Dispatch:
    """The whole State. Owned by one dispatcher and changed in place, only by `eventd.core.dispatcher`."""

    def __init__(self, heap: type[Heap] = Heap) -> None:
        self.heap = heap
        self.concurrency = 0
        self.rules = Rules(0, {}, {}, {})
        self.running = 0
        self.functions: dict[str, Function] = {}
        self.triggers: dict[str, Trigger] = {}
        self.queues: dict[tuple[str | None, str], Queue] = {}
        self.nodes: dict[int, Node] = {}
        self.runs: dict[str, Run] = {}
        self.waiting: dict[int, Call] = {}
        self.ring: deque[Function] = deque()
        self.alarms = heap()
        self.alarm_number = 0
        self.pauses: set[tuple[str, str]] = set()
        self.suspect: int | None = None
        """seq of the one running invocation that was lost SUSPECT_AFTER times in a row."""
        self.suspects: list[Node] = []
        """Further suspects, waiting for their turn to run alone among suspects."""
        self.trial_until: float | None = None
        """Monotonic seconds: until then only suspects start in the durable lane."""
        self.unsure: dict[int, int] = {}
        """seq -> how many changes without a run (a cancel, a redrive, ...) are on their way to the disk. A row of such an
        invocation that people name may have been read before the change."""
        self.starts_allowed = True
        self.calls_allowed = True

    def function(self, name: str) -> Function:
        found = self.functions.get(name)
        if found is None:
            found = self.functions[name] = Function(name)
        return found

    def trigger(self, name: str) -> Trigger:
        found = self.triggers.get(name)
        if found is None:
            found = self.triggers[name] = Trigger(name)
        return found

    def queue(self, binding: str | None, function: str) -> Queue:
        found = self.queues.get((binding, function))
        if found is None:
            owner = self.function(function)
            found = self.queues[binding, function] = Queue(binding, owner, self.heap)
            owner.queues.append(found)
            self.configure(found)
        return found

    def configure(self, queue: Queue) -> None:
        """Bring one queue in line with the rules and the pauses."""
        function, binding = queue.function, queue.binding
        rule = self.rules.bindings.get(binding) if binding is not None else None
        if rule is not None and rule.function != function.name:
            rule = None
        queue.rule = rule
        queue.trigger = self.trigger(rule.trigger) if rule is not None else None
        paused = function.paused or (rule is not None and rule.paused) or ("binding", binding or "") in self.pauses
        known = function.rule is not None and (binding is None or rule is not None)
        queue.active = known and not paused and function.available

    def open_by_function(self) -> dict[str, int]:
        return {name: function.open for name, function in self.functions.items()}

    def row_state(self, row_state: State, binding: str | None, function: str) -> State:
        """A waiting or retrying row is shown as held while its queue is paused or has no such function."""
        queue = self.queues.get((binding, function))
        if row_state in (State.WAITING, State.RETRYING) and queue is not None and not queue.active and queue.function.available:
            return State.HELD
        return row_state
