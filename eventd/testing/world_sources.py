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
from eventd.model import BindingSettings, Outcome, Reason
from eventd.ports import OwedRow
from eventd.sdk import Answer, Event, Receipt
from eventd.testing.world_parts import START_MS
from eventd.testing.world_pool import POISON

if TYPE_CHECKING:
    from eventd.testing.world import World

PERIOD_MS = 2_500
"""Of the schedule."""
BEHIND = 3
"""Ticks further behind than this are recorded as skipped."""
AGAIN_MS = 1_500


def answered(world: World, source: str, id: str, tell: Callable[[Receipt | EventdError], None]) -> Callable[[Receipt | EventdError], None]:
    """The way of an answer to its source: a place to die before and after, and what it says must be true of the disk."""

    def done(answer: Receipt | EventdError) -> None:
        if isinstance(answer, Receipt):
            if identity(source, answer.event) not in world.tables.dedup and (source, answer.event) not in world.audit.by_identity:
                world.blame("1", f"{source}/{id} is acknowledged and not on disk")
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
            BindingSettings("web/f0", "web", "f0"),
            BindingSettings("web/f1", "web", "f1", filter={"kind": ["a"]}),
        )
        self.bound = tuple(Bound(binding) for binding in self.bindings)
        self.bodies: dict[str, bytes] = {}
        self.stubborn: set[str] = set()
        self.waiting: set[str] = set()
        plan, chance = world.plan, world.chance
        for number in range(plan.events):
            world.at(chance.randrange(plan.horizon_ms), self.first, f"e{number}")
        burst = chance.randrange(plan.horizon_ms // 2)
        for number in range(plan.burst):
            world.at(burst + chance.randrange(1_000), self.first, f"b{number}")

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

    def wanted(self, id: str) -> set[str]:
        """The bindings that take this event's body, as it was first stored."""
        return {"web/f0", "web/f1"} if b'"kind":"a"' in self.bodies.get(id, b"") else {"web/f0"}


class Ticks:
    """A schedule with overlap = queue: cursor and event in one transaction, one tick after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.binding = BindingSettings("tick/f2", "tick", "f2")
        self.bound = (Bound(self.binding),)
        self.next = 0
        self.busy = False
        if world.plan.ticks:
            for number in range((world.plan.horizon_ms + world.plan.calm_ms) // 500):
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
        if not world.up or self.busy or self.next >= self.due or not world.intake.open:
            return
        number = self.next + 1
        self.busy = True
        skip = Reason.CATCH_UP if self.due - number >= BEHIND else None
        event = Event(data={"tick": number}, id=f"t{number}", key="tick", serial=True, max_open=2, skip=skip, fingerprint=b"")
        tell = answered(world, "tick", f"t{number}", lambda answer: self.told(number, answer))
        world.intake.offer("tick", event, self.bound, tell, {b"next": str(number).encode()})

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
        self.after = 0
        for number in range(world.plan.files):
            world.at(world.chance.randrange(world.plan.horizon_ms), self.drop, f"d{number}")
        for number in range((world.plan.horizon_ms + world.plan.calm_ms) // 1_000):
            world.at(1_000 * number, self.scan)

    def drop(self, id: str) -> None:
        self.there[id] = self.world.chance.randrange(3)
        self.scan()

    def booted(self) -> None:
        self.offered.clear()
        self.after = 0
        self.tell_all()

    def scan(self) -> None:
        world = self.world
        if not world.up or not world.intake.open:
            return
        for id, key in self.there.items():
            if id not in self.offered and ("files", id.encode()) not in world.tables.ledgers:
                self.offered.add(id)
                event = Event(data={"Records": [{"n": id}]}, id=id, key=f"k{key}", notify=True, delay_ms=self.delay(id))
                tell = answered(world, "files", id, lambda answer, id=id: self.told(id, answer))  # type: ignore[misc]
                world.intake.offer("files", event, self.bound, tell, {id.encode(): b"seen"})

    def delay(self, id: str) -> int:
        return 300 if hash_of(id) % 4 == 0 else 0

    def told(self, id: str, answer: Receipt | EventdError) -> None:
        if isinstance(answer, EventdError):
            self.offered.discard(id)

    def tell_all(self) -> None:
        """Every settlement owed to this trigger or to the webhook, told once in this process's life until acknowledged."""
        world = self.world
        for trigger in ("files", "web"):
            for row in world.finish(world.journal.owed(trigger, self.after, 512)):
                self.settled(row)
        self.after = max(world.tables.owing, default=self.after)

    def settled(self, row: OwedRow) -> None:
        world = self.world
        world.note(f"settled {row.trigger}/{row.event} {row.ok}")
        world.told_settled[row.seq] = world.told_settled.get(row.seq, 0) + 1
        world.point("before settle")
        if row.trigger == "files":
            self.moved.add(row.event)
        world.point("after settle")
        writes = (LedgerWrite(row.event.encode(), b"moved"),) if row.trigger == "files" else ()
        world.point("before acknowledge")
        world.journal.append([Acknowledged(row.seq, row.trigger, writes)], lambda: None)
        world.point("after acknowledge")


class Asks:
    """Asynchronous invokes, half of them with an id, and direct calls that share the slots."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls = 0
        self.open: dict[int, str] = {}
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
            ran = answer.invocation in {r.invocation for r in world.book.direct} or answer.outcome is not None
            if answer.refusal is not None and ran:
                world.blame("calls", f"call {number} is refused and was run")
            world.note(f"answer {number} {answer.refusal or answer.outcome}")
            world.point("after answer")

        trigger, binding = ("files", self.world.files.name) if function == "f3" and world.maybe(0.5) else (None, None)
        pending = Pending(function, b'{"c":1}', f"c{number}-{world.boots}", done, world.now_ms(), world.monotonic(), trigger, binding)
        gone = world.engine.submit(pending, wait)
        if world.maybe(0.2):
            world.daemon(world.chance.randrange(1_000), self.leave, number, gone)
        # a call waits at most `wait`, and its run takes at most so long
        world.daemon((1_000 if wait is None else wait) + world.plan.longest_ms + 500, self.overdue, number)

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


__all__ = ["POISON", "Asks", "Files", "Outcome", "Ticks", "Web", "answered"]
