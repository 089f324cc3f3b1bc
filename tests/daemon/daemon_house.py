"""The real shell over a journal in memory and a scripted pool: everything between the triggers and the workers, in one process."""

from __future__ import annotations

import asyncio
import logging
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from eventd.control.metrics import Counters
from eventd.core import signals as s
from eventd.daemon.desk import Desk
from eventd.daemon.engine import Engine
from eventd.daemon.ids import Dice
from eventd.daemon.intake import Intake
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.outbox import Outbox
from eventd.daemon.reload import Reloader, read
from eventd.daemon.sources import Sources
from eventd.daemon.urls import FunctionUrls
from eventd.errors import EventdError
from eventd.http.router import Router
from eventd.journal import MemoryJournal, MemoryTables, open_history
from eventd.model import JournalSettings, Outcome, Settings
from eventd.ports import Json, Query, Ran, Task
from eventd.sdk import Event, PluginSettings, Receipt, Site, TriggerPlugin
from eventd.testing.exchange import Exchange
from eventd.testing.pool import Behaviour, FakePool

DEADLINE_S = 10.0


class TestClock:
    """The real clocks, moved by hand."""

    __test__ = False

    def __init__(self) -> None:
        self.wall_ms = 0
        self.mono_s = 0.0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.wall_ms

    def monotonic(self) -> float:
        return time.monotonic() + self.mono_s

    def set_by(self, ms: int) -> None:
        """Someone sets the wall clock."""
        self.wall_ms += ms

    def skip(self, ms: int) -> None:
        """Time passes."""
        self.wall_ms += ms
        self.mono_s += ms / 1000


class ProbeSettings(PluginSettings):
    note: str = ""
    stays: bool = False


Play = Callable[[Site, ProbeSettings], Awaitable[None]]


class Probe:
    """A trigger plugin that a test plays: kind `probe`, and `steady`, which stays when paused."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.play: dict[str, Play] = {}

    async def run(self, site: Site, settings: ProbeSettings) -> None:
        self.sites[site.name] = site
        self.begun.append(site.name)
        try:
            play = self.play.get(site.name)
            if play is not None:
                await play(site, settings)
            else:
                site.ready()
                await anyio.sleep_forever()
        finally:
            self.ended.append(site.name)

    def plugins(self) -> dict[str, TriggerPlugin]:
        return {
            "probe": TriggerPlugin("probe", ProbeSettings, self.run),
            "steady": TriggerPlugin("steady", ProbeSettings, self.run, stays_when_paused=True),
        }


class Folder:
    """A site on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "eventd.toml"
        self.handlers = root / "handlers"
        self.handlers.mkdir(exist_ok=True)
        (root / "state").mkdir(exist_ok=True)

    def write(self, text: str) -> None:
        part = self.root / ".part"
        part.write_text(textwrap.dedent(text))
        part.rename(self.file)

    def handler(self, name: str, text: str = "def handler(event, context): return event\n") -> None:
        part = self.root / ".handler"
        part.write_text(text)
        part.rename(self.handlers / name)


class House:
    """One daemon's life. Attributes are the real rooms."""

    folder: Folder
    clock: TestClock
    pool: FakePool
    probe: Probe
    journal: MemoryJournal
    engine: Engine
    intake: Intake
    sources: Sources
    reloader: Reloader
    desk: Desk
    outbox: Outbox
    counters: Counters
    router: Router
    mistakes: Mistakes
    failures: list[EventdError]

    @property
    def tables(self) -> MemoryTables:
        return self.journal.tables

    def site(self, name: str) -> Site:
        return self.probe.sites[name]

    async def emit(self, trigger: str, data: Any = None, **more: Any) -> Receipt:
        state = more.pop("state", None)
        return await self.site(trigger).emit(Event(data={} if data is None else data, **more), state=state)

    async def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait for a condition; what it returned."""
        end = time.monotonic() + DEADLINE_S
        while not (found := true()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {DEADLINE_S} s for {what}")
            await asyncio.sleep(0.002)
        return found

    async def quiet(self) -> None:
        """Everything open is settled."""
        await self.until(lambda: not self.engine.open and not self.engine.state.running, "everything to settle")

    async def records(self, **query: Any) -> list[Json]:
        return list((await self.desk.runs(Query(limit=10_000, **query)))["runs"])

    async def skip(self, ms: int) -> None:
        """Time passes, and the dispatcher looks."""
        self.clock.skip(ms)
        self.engine.tell(s.Tick())
        await asyncio.sleep(0)

    def trigger(self, status: Json, name: str) -> Json:
        return next(row for row in status["triggers"] if row["trigger"] == name)

    def function(self, status: Json, name: str) -> Json:
        return next(row for row in status["functions"] if row["function"] == name)

    def request(self, method: str, path: str, body: bytes = b"") -> Exchange:
        exchange = Exchange(method, path, "", body, [], "127.0.0.1", "http")
        found = self.router.find(method, path)
        if found.route is not None:
            exchange.deliver(found.route, found.params)
        return exchange

    def has_route(self, path: str) -> bool:
        return self.router.find("GET", path).route is not None


def fails(message: str = "no", kind: str = "ValueError") -> Behaviour:
    return lambda task: Ran(outcome=Outcome.FAILED, payload=b"{}", error_type=kind, error_message=message)


def slow(target: Any, name: str) -> None:
    """Let a read take a moment, as one from a disk does."""
    real = getattr(target, name)

    async def read(*args: Any, **more: Any) -> Any:
        found = await real(*args, **more)
        await asyncio.sleep(0.01)
        return found

    setattr(target, name, read)


def hangs(task: Task) -> Ran | None:
    return None


@asynccontextmanager
async def house(
    root: Path, text: str = "", *, functions: Mapping[str, str] | tuple[str, ...] = ("hello",), tables: MemoryTables | None = None,
    pool: FakePool | None = None, probe: Probe | None = None, journal: JournalSettings | None = None, relisten: Any = None,
    forget: Any = None, open_triggers: bool = True,
) -> AsyncIterator[House]:  # fmt: skip
    folder = Folder(root)
    for name in functions:
        folder.handler(f"{name}.py")
    folder.write(text)
    self = House()
    self.folder, self.clock, self.pool, self.probe = folder, TestClock(), pool or FakePool(), probe or Probe()
    self.counters, self.router, self.mistakes, self.failures = Counters(), Router(), Mistakes(), []
    plugins = self.probe.plugins()
    loading = read(str(folder.file), plugins, None, boot=True)
    assert loading.settings is not None, loading.problems
    settings: Settings = loading.settings
    loop = asyncio.get_running_loop()
    self.journal = MemoryJournal(journal or settings.journal, tables=tables, auto=True)
    self.journal.failed = self.failures.append
    history = await open_history(
        settings.daemon.state,
        settings.history,
        now_ms=self.clock.now_ms,
        on_failed=lambda error: logging.getLogger("eventd").error("%s", error),
    )
    dice = Dice()
    self.engine = Engine(
        journal=self.journal, pool=self.pool, history=history, clock=self.clock, observer=self.counters, boot="boot-1", dice=dice, loop=loop
    )
    known = await self.journal.load()
    self.intake = Intake(self.engine, self.counters, next_event=known.next_event, next_invocation=known.next_invocation)
    self.outbox = Outbox(self.engine, self.journal, history, settings.history.dead_ms, self.mistakes)
    try:
        async with anyio.create_task_group() as tasks:
            self.sources = Sources(
                engine=self.engine, intake=self.intake, reads=self.journal, router=self.router, plugins=plugins, settings=settings,
                counted=self.counters, tasks=tasks,
            )  # fmt: skip
            self.sources.owed = len(known.owed)
            self.journal.on_owed = self.sources.settled
            urls = FunctionUrls(self.engine, self.router)

            def changed(old: Settings, new: Settings) -> None:
                urls.update(new)
                self.outbox.dead_ms = new.history.dead_ms

            self.reloader = Reloader(
                settings=settings, problems=loading.problems, plugins=plugins, engine=self.engine, pool=self.pool, sources=self.sources,
                tasks=tasks, on_settings=changed, relisten=relisten, forget=forget, mistakes=self.mistakes,
            )  # fmt: skip
            self.desk = Desk(
                engine=self.engine, intake=self.intake, sources=self.sources, pool=self.pool, reads=self.journal, history=history,
                outbox=self.outbox, reloader=self.reloader, counters=self.counters, started_at=self.clock.now_ms(), mistakes=self.mistakes,
            )  # fmt: skip
            await self.reloader.first()
            await self.engine.start(known)
            urls.update(settings)
            if open_triggers:
                for name in settings.triggers:
                    self.sources.open(name)
                await self.sources.wait_open(5)
            self.desk.phase = "ready"
            yield self
            self.reloader.stop_watching()
            tasks.cancel_scope.cancel()
    finally:
        self.engine.close()
        await history.aclose()
