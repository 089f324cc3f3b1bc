"""One trigger as the shell runs it: the `Site` that its plugin is lent, and the supervision of its `run`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from logging import Logger, LoggerAdapter
from typing import TYPE_CHECKING

import anyio

from eventd.core.facts import Acknowledged, LedgerWrite, LedgerWritten
from eventd.daemon.engine import Engine, Pending
from eventd.daemon.intake import Bound, encoded
from eventd.daemon.records import decoded
from eventd.daemon.secrets import read_secret
from eventd.errors import EventdError
from eventd.http import Route
from eventd.model import BindingSettings, Refusal, TriggerSettings
from eventd.ports import JournalReads
from eventd.sdk import Answer, Call, Event, Receipt, Settlement, State, TriggerPlugin

if TYPE_CHECKING:
    from eventd.daemon.sources import Sources

BACKOFF_S = (1.0, 60.0)
STEADY_S = 60.0
"""A trigger that ran this long before it failed starts its backoff again."""
PAGE = 512
WARN_EVERY_S = 60.0


class LedgerState:
    """`sdk.State` over the journal."""

    def __init__(self, trigger: str, engine: Engine, reads: JournalReads) -> None:
        self._trigger = trigger
        self._engine = engine
        self._reads = reads

    async def get(self, key: bytes) -> bytes | None:
        return await self._reads.ledger_get(self._trigger, key)

    async def items(self, prefix: bytes = b"") -> AsyncIterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while page := await self._reads.ledger_page(self._trigger, prefix, after, PAGE):
            for pair in page:
                yield pair
            after = page[-1][0]

    async def put(self, writes: Mapping[bytes, bytes | None]) -> None:
        stored = anyio.Event()
        fact = LedgerWritten(self._trigger, tuple(LedgerWrite(key, value) for key, value in writes.items()))
        self._engine.journal.append([fact], stored.set)
        await stored.wait()


class Source:
    """One trigger as the shell runs it; also the `Site` that its plugin is lent."""

    def __init__(self, settings: TriggerSettings, plugin: TriggerPlugin, bindings: Sequence[BindingSettings], sources: Sources) -> None:
        self.settings = settings
        self.plugin = plugin
        self.name = settings.name
        self.log: Logger | LoggerAdapter[Logger] = LoggerAdapter(logging.getLogger("eventd.trigger"), {"trigger": settings.name})
        self.state: State = LedgerState(settings.name, sources.engine, sources.reads)
        self.bindings: Sequence[BindingSettings] = tuple(bindings)
        self.paused = False
        self.region = sources.settings.daemon.region
        self.account = sources.settings.daemon.account
        self.timezone = sources.settings.daemon.timezone
        self.status = "starting"
        self.error = ""
        self.owed = anyio.Event()
        self.opened = anyio.Event()
        self.scope: anyio.CancelScope | None = None
        self.ended = anyio.Event()
        self._bound = tuple(Bound(binding) for binding in bindings)
        self._sources = sources
        self._routes: list[tuple[Route, Callable[[], None]]] = []
        self.replaced = False
        """Another is opened at once in the place of this one: requests wait for it."""
        self._warned: dict[str, float] = {}

    # --- Site ---

    async def emit(self, event: Event, *, state: Mapping[bytes, bytes | None] | None = None) -> Receipt:
        answer: list[Receipt | EventdError] = []
        came = anyio.Event()

        def done(result: Receipt | EventdError) -> None:
            answer.append(result)
            came.set()

        self.offer(event, done, state=state)
        await came.wait()
        if isinstance(answer[0], EventdError):
            raise answer[0]
        return answer[0]

    def offer(
        self, event: Event, done: Callable[[Receipt | EventdError], None], *, state: Mapping[bytes, bytes | None] | None = None
    ) -> None:
        self._sources.intake.offer(self.name, event, self._bound, done, state)

    async def call(self, call: Call) -> Answer:
        answers: list[Answer] = []
        came = anyio.Event()

        def done(answer: Answer) -> None:
            answers.append(answer)
            came.set()

        gone = self.submit(call, done)
        try:
            await came.wait()
        except BaseException:
            gone()
            raise
        return answers[0]

    def submit(self, call: Call, done: Callable[[Answer], None]) -> Callable[[], None]:
        engine = self._sources.engine
        invocation = call.invocation or engine.dice.id()
        try:
            data = encoded(call.data)
            bound = self._bound[0] if call.function is None and self._bound else None
            taken = bound is None or bound.pattern is None or bound.takes(decoded(data))
        except (EventdError, ValueError, RecursionError) as problem:
            error = problem if isinstance(problem, EventdError) else EventdError("E-USAGE", f"an event's data is not JSON: {problem}.")
            done(Answer(invocation, error_type=error.code, error_message=str(error)))
            return _nothing
        function, binding = call.function, None
        if function is None:
            if bound is None:
                done(Answer(invocation, refusal=Refusal.UNKNOWN))
                return _nothing
            if not taken:
                self._sources.counted.filtered(bound.settings.name)
                done(Answer(invocation, filtered=True))
                return _nothing
            function, binding = bound.settings.function, bound.settings.name
        clock = engine.clock
        pending = Pending(function, data, invocation, done, clock.now_ms(), clock.monotonic(), self.name, binding)
        self._sources.counted.accepted(self.name)
        return engine.submit(pending)

    def new_id(self) -> str:
        return self._sources.engine.dice.id()

    def now(self) -> float:
        return self._sources.engine.clock.now_ms() / 1000

    def monotonic(self) -> float:
        return self._sources.engine.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def random(self) -> float:
        return self._sources.engine.dice.uniform()

    def ready(self) -> None:
        if self.status == "degraded":
            self.log.info("trigger '%s' is up again", self.name)
        self.status, self.error = "up", ""
        self.opened.set()

    def degraded(self, why: str) -> None:
        why = _sentence(why)
        if (self.status, self.error) != ("degraded", why):
            self.log.warning("E-TRIGGER trigger '%s' is degraded: %s", self.name, why)
        self.status, self.error = "degraded", why
        self.opened.set()

    def warn(self, code: str, message: str) -> None:
        now = self.monotonic()
        if now - self._warned.get(code, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned[code] = now
            self.log.warning("%s trigger '%s': %s", code, self.name, message)

    def secret(self, ref: str) -> bytes:
        return read_secret(ref)

    def route(self, route: Route) -> Callable[[], None]:
        self._sources.parking.leave(self.name)
        remove = self._sources.router.add(route)
        entry = (route, remove)
        self._routes.append(entry)

        def gone() -> None:
            if self.replaced:
                return  # all of them go at once, so that requests can wait for the new ones
            remove()
            if entry in self._routes:
                self._routes.remove(entry)

        return gone

    async def settlements(self) -> AsyncIterator[Settlement]:
        after = 0
        while True:
            rows = await self._sources.reads.owed(self.name, after, PAGE)
            for row in rows:
                after = row.seq
                yield Settlement(row.seq, row.event, row.key, row.ok)
            if not rows:
                await self.owed.wait()
                self.owed = anyio.Event()

    async def acknowledge(self, settlement: Settlement, *, state: Mapping[bytes, bytes | None] | None = None) -> None:
        stored = anyio.Event()
        writes = tuple(LedgerWrite(key, value) for key, value in (state or {}).items())
        self._sources.engine.journal.append([Acknowledged(settlement.owed, self.name, writes)], stored.set)
        await stored.wait()
        self._sources.owed = max(0, self._sources.owed - 1)

    def running(self) -> Sequence[str]:
        return self._sources.engine.keys_running(self.name)

    # --- supervision ---

    async def supervise(self) -> None:
        """Run the plugin until cancelled. An exception degrades the trigger; it starts again after a jittered wait."""
        wait = BACKOFF_S[0]
        try:
            while True:
                began = self.monotonic()
                try:
                    await self.plugin.run(self, self.settings.options)
                    why = "it ended by itself."
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    why = "something that it waited for was cancelled."  # not us: a future of its own, or of its library
                except (Exception, SystemExit) as error:  # a stranger's code: whatever it does is its own failure
                    self.log.debug("trigger '%s' raised", self.name, exc_info=True)
                    why = reason_of(error)
                finally:
                    self._drop_routes()
                if self.monotonic() - began > STEADY_S:
                    wait = BACKOFF_S[0]
                self.degraded(why)
                await anyio.sleep(wait * (0.5 + self.random() / 2))
                wait = min(wait * 2, BACKOFF_S[1])
        finally:
            self._drop_routes()
            self.ended.set()

    def rebind(self, bindings: Sequence[BindingSettings]) -> None:
        """The same bindings with other filters or limits (a reload): in force from the next event on, without a restart."""
        if tuple(bindings) != self.bindings:
            self.bindings = tuple(bindings)
            self._bound = tuple(Bound(binding) for binding in bindings)

    def _drop_routes(self) -> None:
        routes, self._routes = self._routes, []
        for _, remove in routes:
            remove()
        if self.replaced:
            self._sources.parking.park(self.name, [route for route, _ in routes])


def reason_of(error: BaseException) -> str:
    """One sentence about a failure; of a group, about its first member (a plugin's own task group wraps what went wrong in it)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error) if isinstance(error, EventdError) else f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _sentence(text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _nothing() -> None:
    return None
