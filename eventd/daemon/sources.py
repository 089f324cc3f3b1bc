"""Trigger supervision: each trigger's `run` in a scope of its own, restarted with jittered backoff, paused, closed."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from logging import Logger, LoggerAdapter

import anyio
import msgspec
from anyio.abc import TaskGroup

from eventd.core.facts import Acknowledged, LedgerWrite, LedgerWritten
from eventd.daemon.engine import Engine, Pending
from eventd.daemon.intake import Bound, Counted, Intake, encoded
from eventd.daemon.secrets import read_secret
from eventd.errors import EventdError
from eventd.http import Route
from eventd.http.router import Router
from eventd.model import BindingSettings, Refusal, Settings, TriggerSettings
from eventd.ports import JournalReads, OwedRow
from eventd.sdk import Answer, Call, Event, Receipt, Settlement, State, TriggerPlugin

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
        self._routes: list[Callable[[], None]] = []
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
        except EventdError as error:
            done(Answer(invocation, error_type=error.code, error_message=str(error)))
            return _nothing
        function, binding = call.function, None
        if function is None:
            if not self._bound:
                done(Answer(invocation, refusal=Refusal.UNKNOWN))
                return _nothing
            bound = self._bound[0]
            if bound.pattern is not None and not bound.takes(msgspec.json.decode(data)):
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
        remove = self._sources.router.add(route)
        self._routes.append(remove)
        return remove

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

    def running(self) -> Sequence[str]:
        return self._sources.engine.keys_running(self.name)

    # --- supervision ---

    async def supervise(self) -> None:
        """Run the plugin until cancelled. An exception degrades the trigger; it starts again after a jittered wait."""
        wait = BACKOFF_S[0]
        try:
            while True:
                began = time.monotonic()
                try:
                    await self.plugin.run(self, self.settings.options)
                    why = "it ended by itself"
                except EventdError as error:
                    why = str(error)
                except Exception as error:
                    self.log.debug("trigger '%s' raised", self.name, exc_info=True)
                    why = f"{type(error).__name__}: {error}"
                finally:
                    self._drop_routes()
                if time.monotonic() - began > STEADY_S:
                    wait = BACKOFF_S[0]
                self.degraded(why)
                await anyio.sleep(wait * (0.5 + self.random() / 2))
                wait = min(wait * 2, BACKOFF_S[1])
        finally:
            self._drop_routes()
            self.ended.set()

    def _drop_routes(self) -> None:
        routes, self._routes = self._routes, []
        for remove in routes:
            remove()


class Sources:
    """All triggers. Opening, closing and pausing are idempotent."""

    def __init__(
        self, *, engine: Engine, intake: Intake, reads: JournalReads, router: Router, plugins: Mapping[str, TriggerPlugin],
        settings: Settings, counted: Counted, tasks: TaskGroup,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.intake = intake
        self.reads = reads
        self.router = router
        self.plugins = plugins
        self.settings = settings
        self.counted = counted
        self.all: dict[str, Source] = {}
        self.halted = False
        self._tasks = tasks

    def open(self, name: str) -> Source:
        """Start a trigger (or take it up paused). Returns at once; `source.opened` is set when it is up or degraded."""
        settings = self.settings.triggers[name]
        bindings = [binding for binding in self.settings.bindings.values() if binding.trigger == name]
        source = Source(settings, self.plugins[settings.type], bindings, self)
        self.all[name] = source
        if self.is_paused(name) and not source.plugin.stays_when_paused:
            source.paused, source.status = True, "paused"
            source.opened.set()
        else:
            source.paused = self.is_paused(name)
            self._run(source)
        return source

    def is_paused(self, name: str) -> bool:
        return self.settings.triggers[name].paused or ("trigger", name) in self.engine.state.pauses

    def _run(self, source: Source) -> None:
        scope = anyio.CancelScope()
        source.scope = scope
        source.ended = anyio.Event()

        async def run() -> None:
            with scope:
                await source.supervise()

        self._tasks.start_soon(run, name=f"trigger {source.name}")

    async def close(self, name: str) -> None:
        """Stop intake of a trigger; what it has handed over stays in the journal. Returns when its code has ended."""
        source = self.all.pop(name, None)
        if source is not None and source.scope is not None:
            source.scope.cancel()
            await source.ended.wait()

    async def close_all(self) -> None:
        for name in list(self.all):
            await self.close(name)

    async def refresh(self, name: str) -> None:
        """Bring a trigger in line with whether it is paused."""
        source = self.all.get(name)
        if source is None or source.paused == self.is_paused(name):
            return
        if source.plugin.stays_when_paused:
            source.paused = self.is_paused(name)
        else:
            await self.close(name)
            self.open(name)

    async def halt(self) -> None:
        """Stop reading every source; those that answer requests stay, and refuse."""
        self.halted = True
        for name, source in list(self.all.items()):
            if not source.plugin.stays_when_paused:
                await self.close(name)

    def unhalt(self) -> None:
        self.halted = False
        for name in self.settings.triggers:
            if name not in self.all:
                self.open(name)

    def settled(self, row: OwedRow) -> None:
        """The journal owes a trigger a settlement."""
        if (source := self.all.get(row.trigger)) is not None:
            source.owed.set()

    def state(self, name: str) -> tuple[str, str]:
        """(up | degraded | paused | starting, why)."""
        source = self.all.get(name)
        if source is None:
            return ("paused", "the daemon is drained") if self.halted else ("degraded", "it is not open")
        return ("paused", "") if source.paused else (source.status, source.error)

    async def wait_open(self, seconds: float) -> None:
        """Until every trigger is up or degraded, but no longer than this."""
        with suppress(TimeoutError):
            with anyio.fail_after(seconds):
                for source in list(self.all.values()):
                    await source.opened.wait()


def _nothing() -> None:
    return None
