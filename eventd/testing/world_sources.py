"""Where the simulated events come from: a webhook, a schedule, a folder of files, asynchronous invokes and direct calls.

Each behaves as its real counterpart would towards the daemon: clients repeat what was not answered, a schedule judges its ticks
by the ledger, a folder is scanned again after a start, and a file is moved when its settlement is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from eventd.core.facts import Acknowledged, LedgerWrite
from eventd.daemon.engine import Pending
from eventd.daemon.intake import Bound
from eventd.errors import Conflict, EventdError
from eventd.journal.codec import identity
from eventd.model import BindingSettings, Reason
from eventd.ports import OwedRow
from eventd.sdk import Answer, Event, Receipt
from eventd.testing.world_parts import START_MS

if TYPE_CHECKING:
    from eventd.testing.world import World

PERIOD_MS = 2_500
"""Of the schedule."""
BEHIND = 3
"""Ticks further behind than this are recorded as skipped."""
AGAIN_MS = 1_500
SEEN, MOVED = b"seen", b"moved"
"""What the ledger says of a file."""


def answered(
    world: World, source: str, id: str, tell: Callable[[Receipt | EventdError], None], ledger: tuple[bytes, bytes] | None = None
) -> Callable[[Receipt | EventdError], None]:
    """The way of an answer to its source: a place to die before and after, and what it says must be true of the disk."""

    def done(answer: Receipt | EventdError) -> None:
        if isinstance(answer, Receipt):
            if identity(source, answer.event) not in world.tables.dedup and (source, answer.event) not in world.audit.by_identity:
                world.blame("1", f"{source}/{id} is acknowledged and not on disk")
            if ledger is not None and world.tables.ledgers.get((source, ledger[0])) not in (ledger[1], MOVED):
                world.blame("5", f"{source}/{id} is acknowledged and its ledger entry is not on disk")
            world.acknowledged[source, answer.event] = True
        world.point("before ack")
        word = answer.code if isinstance(answer, EventdError) else "duplicate" if answer.duplicate else "ack"
        world.note(f"{word} {source}/{id}")
        tell(answer)
        world.point("after ack")

    return done


class Web:
    """Clients of an asynchronous webhook. Stubborn ones repeat until they are answered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bindings = (
            BindingSettings("web/f0", "web", "f0", filter={"kind": ["a", "b"]}),
            BindingSettings("web/f1", "web", "f1", filter={"kind": ["a"]}),
        )
        self.bound = tuple(Bound(binding) for binding in self.bindings)
        self.bodies: dict[str, bytes] = {}
        self.others: set[str] = set()
        """Ids that came with another body too, one that no binding takes."""
        self.stubborn: set[str] = set()
        self.waiting: set[str] = set()
        plan, chance = world.plan, world.chance
        for number in range(plan.events):
            world.at(chance.randrange(plan.horizon_ms), self.first, f"e{number}")
        for number in range(plan.burst):
            world.at(world.burst_at + chance.randrange(1_000), self.first, f"b{number}")

    def first(self, id: str) -> None:
        world = self.world
        kind = world.chance.choice("aab")
        poison = b',"poison":"poison"' if world.maybe(world.plan.poison) else b""
        self.bodies[id] = b'{"n":"%s","kind":"%s"%s}' % (id.encode(), kind.encode(), poison)
        if world.maybe(world.plan.stubborn):
            self.stubborn.add(id)
            self.waiting.add(id)
        self.send(id)
        if world.maybe(world.plan.duplicate):
            world.at(world.now + world.chance.randrange(5_000), self.send, id)
        if world.maybe(world.plan.conflict):
            world.at(world.now + world.chance.randrange(5_000), self.send, id, b'{"other":1}')

    def send(self, id: str, body: bytes | None = None) -> None:
        world = self.world
        if world.up:
            world.note(f"offer web/{id}{' other' if body else ''}")
            if body is not None:
                self.others.add(id)
            named = None if body is None and id not in self.stubborn and world.maybe(world.plan.anonymous) else id
            event = Event(data=msgspec.Raw(body or self.bodies[id]), id=named, notify=hash_of(id) % 100 < world.plan.notify * 100)
            world.intake.offer("web", event, self.bound, answered(world, "web", id, lambda answer: self.told(id, body, answer)), None)
        if body is None and id in self.waiting:
            world.at(world.now + AGAIN_MS, self.again, id)

    def again(self, id: str) -> None:
        if id in self.waiting:
            self.send(id)

    def told(self, id: str, body: bytes | None, answer: Receipt | EventdError) -> None:
        if body is None and (isinstance(answer, (Receipt, Conflict))):
            self.waiting.discard(id)

    @staticmethod
    def wanted(data: bytes) -> int:
        """How many bindings take this body."""
        return 2 if b'"kind":"a"' in data else 1 if b'"kind":"b"' in data else 0


class Ticks:
    """A schedule with overlap = queue: cursor and event in one transaction, one tick after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.binding = BindingSettings("tick/f2", "tick", "f2")
        self.bound = (Bound(self.binding),)
        self.next = 0
        self.seen = 0
        self.busy = False
        if world.plan.ticks:
            for number in range((world.plan.horizon_ms + world.plan.calm_ms // 3) // 500):
                world.at(500 * number, self.look)

    def booted(self) -> None:
        self.busy = False
        self.next = int(self.world.tables.ledgers.get(("tick", b"next"), b"0").decode())
        if self.next and self.world.maybe(0.3):
            self.next -= 1  # unsure of the last one: it is offered again, and must be known

    @property
    def due(self) -> int:
        return (self.world.now_ms() - START_MS) // PERIOD_MS

    def look(self) -> None:
        world = self.world
        self.seen = self.due
        if not world.up or self.busy or self.next >= self.due or not world.intake.open:
            return
        number = self.next + 1
        self.busy = True
        skip = Reason.CATCH_UP if self.due - number >= BEHIND else None
        event = Event(data={"tick": number}, id=f"t{number}", key="tick", serial=True, max_open=2, skip=skip)
        entry = (b"next", str(number).encode())
        tell = answered(world, "tick", f"t{number}", lambda answer: self.told(number, answer), entry)
        world.intake.offer("tick", event, self.bound, tell, dict([entry]))

    def told(self, number: int, answer: Receipt | EventdError) -> None:
        self.busy = False
        if isinstance(answer, Receipt):
            self.next = number
            self.world.daemon(0, self.look)


class Files:
    """A folder: each file is an event with a key and a settlement, at which it is moved away."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = "files/f3"
        self.binding = BindingSettings(self.name, "files", "f3")
        self.bound = (Bound(self.binding),)
        self.there: dict[str, int] = {}
        self.moved: set[str] = set()
        self.offered: set[str] = set()
        self.after = {"files": 0, "web": 0}
        within = world.burst_at + 1_000 if world.plan.fair else world.plan.horizon_ms
        for number in range(world.plan.files):
            world.at(world.chance.randrange(within), self.drop, f"d{number}")
        for number in range((world.plan.horizon_ms + world.plan.calm_ms) // 1_000):
            world.at(1_000 * number, self.scan)

    def drop(self, id: str) -> None:
        self.there[id] = self.world.chance.randrange(3)
        self.scan()

    def booted(self) -> None:
        self.offered.clear()
        self.after = {"files": 0, "web": 0}
        self.tell_all()

    def scan(self) -> None:
        world = self.world
        if not world.up or not world.intake.open:
            return
        for id, key in self.there.items():
            if id not in self.offered and ("files", id.encode()) not in world.tables.ledgers:
                self.offered.add(id)
                event = Event(data={"Records": [{"n": id}]}, id=id, key=f"k{key}", notify=True, delay_ms=self.delay(id))
                tell = answered(world, "files", id, lambda answer, id=id: self.told(id, answer), (id.encode(), SEEN))  # type: ignore[misc]
                world.intake.offer("files", event, self.bound, tell, {id.encode(): SEEN})

    def delay(self, id: str) -> int:
        return 300 if hash_of(id) % 4 == 0 else 0

    def told(self, id: str, answer: Receipt | EventdError) -> None:
        if isinstance(answer, EventdError):
            self.offered.discard(id)

    def tell_all(self) -> None:
        """What is owed to the two triggers, each once in this process's life, until it is acknowledged."""
        world = self.world
        for trigger, after in self.after.items():
            for row in world.finish(world.journal.owed(trigger, after, 512)):
                self.after[trigger] = row.seq
                self.settled(row)

    def settled(self, row: OwedRow) -> None:
        world = self.world
        world.note(f"settled {row.trigger}/{row.event} {row.ok}")
        world.told_settled[row.seq] = world.told_settled.get(row.seq, 0) + 1
        world.point("before settle")
        if row.trigger == "files":
            self.moved.add(row.event)
        world.point("after settle")
        writes = (LedgerWrite(row.event.encode(), MOVED),) if row.trigger == "files" else ()
        world.point("before acknowledge")
        world.journal.append([Acknowledged(row.seq, row.trigger, writes)], lambda: None)
        world.point("after acknowledge")


class Asks:
    """Asynchronous invokes, half of them with an id, and direct calls that share the slots."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls = 0
        self.open: dict[int, str] = {}
        self.of_files: set[str] = set()
        plan, chance = world.plan, world.chance
        for number in range(plan.invokes):
            world.at(chance.randrange(plan.horizon_ms), self.invoke, f"i{number}")
        for _ in range(plan.calls):
            world.at(chance.randrange(plan.horizon_ms), self.call)

    def booted(self) -> None:
        self.open.clear()

    def invoke(self, id: str) -> None:
        world = self.world
        if not world.up:
            return
        world.note(f"offer invoke/f1/{id}")
        given = id if world.maybe(0.5) else None
        invocation = f"inv-{id}" if given else world.engine.dice.id()
        world.intake.invoke(
            "f1", b'{"i":1}', id=given, invocation=invocation, done=answered(world, "invoke/f1", id, lambda answer: None)
        )  # fmt: skip
        if given and world.maybe(world.plan.duplicate):
            world.at(world.now + world.chance.randrange(3_000), self.invoke, id)

    def call(self) -> None:
        world = self.world
        if not world.up:
            return
        self.calls += 1
        number = self.calls
        function = world.chance.choice(("f0", "f0", "f1", "f3"))
        wait = world.chance.choice((None, None, 0, 300, 5_000))
        self.open[number] = function
        world.note(f"call {number} {function}")

        def done(answer: Answer) -> None:
            world.point("before answer")
            if self.open.pop(number, None) is None:
                world.blame("calls", f"call {number} is answered twice, or after its caller had gone")
            if (answer.refusal is None) != (answer.invocation in world.pool.called):
                world.blame("calls", f"call {number} is answered with {answer.refusal or answer.outcome}, and that is not what happened")
            world.note(f"answer {number} {answer.refusal or answer.outcome}")
            world.point("after answer")

        trigger, binding = ("files", self.world.files.name) if function == "f3" and world.maybe(0.5) else (None, None)
        invocation = f"c{number}-{world.boots}"
        if trigger is not None:
            self.of_files.add(invocation)
        pending = Pending(function, b'{"c":1}', invocation, done, world.now_ms(), world.monotonic(), trigger, binding)
        gone = world.engine.submit(pending, wait)
        if world.maybe(0.2):
            world.daemon(world.chance.randrange(1_000), self.leave, number, gone)
        # a call waits at most `wait`, and its run takes at most so long
        world.daemon((1_000 if wait is None else wait) + world.plan.longest_ms + 2_000, self.overdue, number)

    def leave(self, number: int, gone: Callable[[], None]) -> None:
        waiting = len(self.world.engine.state.waiting)
        gone()
        if len(self.world.engine.state.waiting) < waiting:
            self.open.pop(number, None)

    def overdue(self, number: int) -> None:
        if number in self.open:
            self.world.blame("calls", f"call {number} was never answered")


def hash_of(text: str) -> int:
    """A number from a text that is the same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(text))
