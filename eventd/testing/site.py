"""FakeSite: a scripted `eventd.sdk.Site` for the tests of a trigger plugin.

    site = FakeSite("nightly", now=datetime(2026, 3, 1, tzinfo=UTC))
    async with site.playing(plugin, settings):            # runs plugin.run(site, settings), stops it at the end
        await site.clock.advance(3600)                    # an hour passes; every sleeper wakes in turn
        assert site.emitted[0].data["detail-type"] == "Scheduled Event"
    later = site.reborn()                                 # a crash: only what emit or put had returned for is left

Time is virtual: `sleep` ends when the test advances the clock, never by waiting. Durable state lives in memory, with the
journal's rules: an acceptance and its ledger writes are one step; the same id again is a duplicate (only the ledger is
written); the same id with another body is a Conflict (nothing is written). Nothing is dispatched: the test plays the
functions' part with `script`, `calls[n].answer(...)` and `settle`. For asyncio (any event loop policy).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec

from eventd.errors import CODES
from eventd.sdk import (
    Answer,
    BindingSettings,
    Call,
    Event,
    EventdError,
    Outcome,
    Receipt,
    Response,
    Route,
    Settlement,
    State,
    TriggerPlugin,
)
from eventd.testing.clock import FakeClock
from eventd.testing.exchange import Called, Exchange, pick
from eventd.testing.memory import Disk, Emitted, FakeJournal, FakeState, checked

__all__ = ["Called", "Emitted", "Exchange", "FakeClock", "FakeSite", "Status"]

Script = Answer | Callable[[Call], Answer]


class Status(NamedTuple):
    """`state` is starting, up or degraded; `why` is empty unless degraded."""

    state: str
    why: str = ""


class FakeSite:
    """See the module. Everything a test may look at or set is a public attribute.

    `clock` the virtual clock · `emitted` what is stored, oldest first, over all lives · `receipts` what emit returned in
    this life · `ledger` the durable key-value pairs · `calls` the direct calls of this life · `warnings` (code, message) ·
    `status` and `history` · `running_keys` what `running()` answers · `secrets` what `secret()` finds before it looks for
    the file · `dice` what `random()` calls.
    """

    def __init__(
        self,
        name: str = "trigger",
        *,
        now: float | datetime = 1_767_225_600.0,
        bindings: Sequence[BindingSettings] | None = None,
        timezone: str = "UTC",
        region: str = "us-east-1",
        account: str = "000000000000",
        paused: bool = False,
        seed: int = 0,
    ) -> None:
        self.name = name
        self._journal = FakeJournal(Disk())
        self.log: logging.Logger | logging.LoggerAdapter[logging.Logger] = logging.getLogger(f"eventd.trigger.{name}")
        self.state: State = FakeState(self._journal)
        self.bindings: Sequence[BindingSettings] = (BindingSettings(f"{name}/f", name, "f"),) if bindings is None else bindings
        self.paused = paused
        self.region = region
        self.account = account
        self.timezone = timezone
        self.clock = FakeClock(now)
        self.receipts: list[Receipt] = []
        self.calls: list[Called] = []
        self.answers: deque[Script] = deque()
        self.default_answer: Script | None = Answer("", Outcome.SUCCEEDED, b"null")
        self.warnings: list[tuple[str, str]] = []
        self.history: list[Status] = [Status("starting")]
        self.running_keys: list[str] = []
        self.secrets: dict[str, bytes] = {}
        self.dice: Callable[[], float] = random.Random(seed).random
        self._seed = seed
        self._routes: list[Route] = []
        self._failures: deque[EventdError] = deque()
        self._ids = 0
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"<FakeSite {self.name} {self.status.state} emitted={len(self.emitted)} at {datetime.fromtimestamp(self.now(), UTC)}>"

    # --- what a test sees ---

    @property
    def emitted(self) -> list[Emitted]:
        return self._journal.disk.emitted

    @property
    def ledger(self) -> dict[bytes, bytes]:
        return self._journal.disk.ledger

    @property
    def cancel_stores(self) -> bool:
        """Whether an emit that is cancelled while the journal has it is stored (in the daemon: perhaps)."""
        return self._journal.cancel_stores

    @cancel_stores.setter
    def cancel_stores(self, stores: bool) -> None:
        self._journal.cancel_stores = stores

    @property
    def status(self) -> Status:
        return self.history[-1]

    @property
    def routes(self) -> dict[str, Route]:
        """Path to route (the latest, when a path has several with different methods)."""
        return {route.path: route for route in self._routes}

    @property
    def owed(self) -> list[Settlement]:
        """Settlements that have not been acknowledged."""
        return list(self._journal.disk.owed.values())

    # --- what a test does ---

    @asynccontextmanager
    async def playing(self, plugin: TriggerPlugin, settings: Any) -> AsyncIterator[anyio.CancelScope]:
        """Run the plugin on this site inside the block; cancelled at the end, like a trigger that is closed.

        Entered once every task is blocked. If `run` raises, the block is cancelled and the error comes out in an
        ExceptionGroup; if it returns, which a trigger may, the block goes on.
        """

        async def run() -> None:
            await plugin.run(self, settings)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await self.clock.settle()
            yield group.cancel_scope
            group.cancel_scope.cancel()

    async def wait_for(self, predicate: Callable[[], object], timeout: float = 5.0, *, step: float = 0.0) -> None:
        """Return once `predicate()` is true; TimeoutError after `timeout` real seconds.

        For work in threads, processes and sockets, which `clock.advance` does not wait for. `step`: virtual seconds that
        pass between two looks, for a plugin that sleeps between them.
        """
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {timeout} s on {self!r}")
            if step:
                await self.clock.advance(step)
            await asyncio.sleep(0.001)

    def fail_next(self, error: EventdError, times: int = 1) -> None:
        """The next `times` emits or offers raise this (Overloaded, ...) and store nothing."""
        self._failures.extend([error] * times)

    def hold(self) -> None:
        """From now on nothing becomes durable (emit, offer, put and acknowledge do not return) until `release`."""
        self._journal.held = True

    def release(self) -> None:
        self._journal.held = False
        self._journal.flush()

    def forget_duplicates(self) -> None:
        """The duplicate window has gone by: every id is new again."""
        self._journal.disk.seen.clear()

    def reborn(self, *, stored: bool = False) -> FakeSite:
        """The site after a crash (`kill -9`) and a restart: the same durable state, clock, name and script; all else is new.

        What was held but not yet durable is lost, or with `stored=True` was stored although nobody was told. The old
        site is dead: its calls never return any more, so cancel its tasks before or after, as you like.
        """
        if stored:
            self.release()
        self._journal.crash()
        new = FakeSite(
            self.name, bindings=self.bindings, timezone=self.timezone, region=self.region, account=self.account, seed=self._seed + 1
        )
        new._journal.disk, new.cancel_stores = self._journal.disk, self.cancel_stores
        new.clock, new._ids, new.paused, new.secrets = self.clock, self._ids, self.paused, self.secrets
        new.answers, new.default_answer = self.answers, self.default_answer
        return new

    def script(self, *answers: Script) -> None:
        """Answers of the next direct calls, in order; then `default_answer` (None: left for the test to answer)."""
        self.answers.extend(answers)

    def settle(self, event: str | Emitted, *, ok: bool = True) -> Settlement:
        """Every invocation of this stored `notify` event is settled now: owe the plugin a Settlement."""
        owed = self._journal.disk.owe(event.id if isinstance(event, Emitted) else event, ok=ok)
        self._news.set()
        return owed

    def send(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        *,
        peer: str = "127.0.0.1",
        scheme: str = "http",
    ) -> Exchange:
        """Send a request through the routes (literal beats parameter beats greedy) and return at once.

        `target` is the path as on the wire, with its query. 404 without a route, 405 for another method, 413 over the route's
        `max_body`, 500 when the handler raises (`exchange.error` has it).
        """
        path, _, query = target.partition("?")
        exchange = Exchange(method, path, query, body, headers, peer, scheme)
        pick(exchange, self._routes)
        return exchange

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        *,
        peer: str = "127.0.0.1",
        scheme: str = "http",
        timeout: float = 5.0,
    ) -> Response:
        """`send`, and the answer."""
        return await self.send(method, target, body, headers, peer=peer, scheme=scheme).wait(timeout)

    # --- eventd.sdk.Site ---

    async def emit(self, event: Event, *, state: Mapping[bytes, bytes | None] | None = None) -> Receipt:
        return await self._journal.committed(self._acceptance(event, state))

    def offer(
        self, event: Event, done: Callable[[Receipt | EventdError], None], *, state: Mapping[bytes, bytes | None] | None = None
    ) -> None:
        accept = self._acceptance(event, state)

        def apply() -> None:
            try:
                result: Receipt | EventdError = accept()
            except EventdError as refused:
                result = refused
            done(result)

        self._journal.enqueue(apply)

    async def call(self, call: Call) -> Answer:
        await self._journal.alive()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        gone = self.submit(call, lambda got: None if answer.done() else answer.set_result(got))
        try:
            return await answer
        finally:
            gone()

    def submit(self, call: Call, done: Callable[[Answer], None]) -> Callable[[], None]:
        called = Called(call, call.invocation or self.new_id(), done)

        def gone() -> None:
            called.gone = called.gone or called.answered is None

        if self._journal.dead:
            return gone
        self.calls.append(called)
        scripted = self.answers.popleft() if self.answers else self.default_answer
        if scripted is not None:
            asyncio.get_running_loop().call_soon(lambda: called.answer(scripted(call) if callable(scripted) else scripted))
        return gone

    def new_id(self) -> str:
        self._ids += 1
        text = f"{round(self.now() * 1000):012x}7{self._ids >> 48 & 0xFFF:03x}8{self._ids & 0xFFFFFFFFFFF:015x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def now(self) -> float:
        return self.clock.now()

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._journal.alive()
        await self.clock.sleep(seconds)
        await self._journal.alive()

    def random(self) -> float:
        return self.dice()

    def ready(self) -> None:
        self.history.append(Status("up"))

    def degraded(self, why: str) -> None:
        self.history.append(Status("degraded", why))

    def warn(self, code: str, message: str) -> None:
        if code not in CODES or not code.startswith("W-"):
            raise ValueError(f"{code} is not a warning code of eventd.errors.CODES")
        self.warnings.append((code, message))

    def secret(self, ref: str) -> bytes:
        if ref in self.secrets:
            return self.secrets[ref]
        kind, _, path = ref.partition(":")
        if kind != "file":
            raise EventdError("E-CONFIG", f"the secret {ref!r} cannot be read.", 'Set site.secrets["' + ref + '"] in the test.')
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise EventdError("E-CONFIG", f"the secret {ref!r} cannot be read: {error.strerror}.", "Create the file.") from error
        return text.removesuffix(b"\n")

    def route(self, route: Route) -> Callable[[], None]:
        for other in self._routes:
            if other.path == route.path and (not other.methods or not route.methods or set(other.methods) & set(route.methods)):
                raise EventdError("E-CONFIG", f"the path {route.path} is served already.", "Use another path or other methods.")
        self._routes.append(route)

        def close() -> None:
            if route in self._routes:
                self._routes.remove(route)

        return close

    async def settlements(self) -> AsyncIterator[Settlement]:
        last = 0
        while True:
            await self._journal.alive()
            self._news.clear()
            for owed in [one for number, one in sorted(self._journal.disk.owed.items()) if number > last]:
                last = owed.owed
                yield owed
            if not any(number > last for number in self._journal.disk.owed):
                await self._news.wait()

    async def acknowledge(self, settlement: Settlement, *, state: Mapping[bytes, bytes | None] | None = None) -> None:
        writes = checked(state)
        disk = self._journal.disk

        def apply() -> None:
            disk.owed.pop(settlement.owed, None)
            disk.write(writes)

        await self._journal.committed(apply)

    def running(self) -> Sequence[str]:
        return tuple(self.running_keys)

    # --- inside ---

    def _acceptance(self, event: Event, state: Mapping[bytes, bytes | None] | None) -> Callable[[], Receipt]:
        raw = msgspec.json.encode(event.data)
        data = msgspec.json.decode(raw)
        writes = checked(state)

        def accept() -> Receipt:
            if self._failures:
                raise self._failures.popleft()
            name = self.new_id() if event.id is None else event.id
            receipt = self._journal.disk.accept(Emitted(name, event, data, raw, writes, self.clock.now_ms()))
            self.receipts.append(receipt)
            return receipt

        return accept
