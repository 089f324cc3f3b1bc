"""The composition root: the only file that names every room. Lifetimes are indentation, and that is the whole shutdown order:

journal > history > workers > engine > control > triggers and listeners.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import anyio
from msgspec import Struct

from eventd.control.metrics import Counters
from eventd.control.server import serve_control
from eventd.core import signals as s
from eventd.daemon.desk import Desk
from eventd.daemon.engine import Engine
from eventd.daemon.ids import Dice
from eventd.daemon.intake import Intake
from eventd.daemon.outbox import Outbox
from eventd.daemon.reload import Reloader, read
from eventd.daemon.sources import Sources
from eventd.daemon.urls import FunctionUrls
from eventd.daemon.workers import open_pool
from eventd.errors import EventdError
from eventd.http.router import Router
from eventd.http.server import HttpServer
from eventd.journal import open_history, open_journal
from eventd.model import Problem, Settings
from eventd.registry import find_triggers
from eventd.runtime.launcher import harden_daemon
from eventd.sdk import TriggerPlugin
from eventd.telemetry import RunLog, setup_logging

log = logging.getLogger("eventd")

INTERRUPT_S = 10.0
"""After the drain deadline: time for interrupted runs to be recorded."""
TRIGGERS_OPEN_S = 20.0


class SystemClock:
    """The real clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class Started(Struct, frozen=True):
    """Where a running daemon is reached. Given to `on_ready`, for the demo and for tests."""

    http: tuple[str, ...]
    control: tuple[str, ...]
    settings: Settings


def main(file: str, *, log_format: str | None, log_level: str | None, on_ready: Callable[[Started], None] | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; returns the exit status of surface.md section 1."""
    plugins, found = find_triggers()
    loading = read(file, plugins, None, boot=True)
    problems = [*found, *loading.problems]
    settings = loading.settings
    if settings is None or any(problem.severity == "error" for problem in found):
        for problem in problems:
            print(problem, file=sys.stderr)
        return 2
    setup_logging(log_format or settings.daemon.log_format, log_level or settings.daemon.log_level)
    for problem in problems:
        log.warning("%s", problem)
    if os.geteuid() == 0:
        log.warning("W-ROOT the daemon runs as root, and so does every handler. Give it a user of its own.")
    app = App(settings, plugins, problems, on_ready)
    try:
        # uvloop by factory: the policy functions are deprecated from Python 3.14 on
        import uvloop  # noqa: PLC0415 - not needed by other verbs that import this module

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(app.run())
    except EventdError as error:
        log.error("%s", error)
        return error.exit


def _history_failed(error: EventdError) -> None:
    """Trouble with runs.db never stops the daemon: events and their ends are in the journal."""
    log.error("the run history has a problem and goes on as well as it can: %s", error)


class App:
    """One daemon lifetime."""

    def __init__(
        self, settings: Settings, plugins: Mapping[str, TriggerPlugin], problems: Sequence[Problem], on_ready: Callable[[Started], None] | None
    ) -> None:
        self.settings = settings
        self.plugins = plugins
        self.problems = problems
        self.on_ready = on_ready
        self.boot = Dice().id()
        self.failure: EventdError | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Returns 0 after a clean drain. Raises EventdError when storage fails or the state folder is taken."""
        loop = asyncio.get_running_loop()
        harden_daemon()
        settings = self.settings
        for folder in (settings.daemon.handlers, settings.daemon.state):
            os.makedirs(folder, mode=0o755 if folder == settings.daemon.handlers else 0o700, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        clock, counters, dice = SystemClock(), Counters(), Dice()
        async with AsyncExitStack() as stack:
            journal = await open_journal(settings.daemon.state, settings.journal, boot=self.boot, loop=loop)
            stack.push_async_callback(journal.aclose)
            journal.failed = self._storage_failed
            journal.writer.on_commit = counters.committed
            history = await open_history(
                settings.daemon.state, settings.history, now_ms=clock.now_ms, on_failed=_history_failed, on_records=RunLog().write
            )
            stack.push_async_callback(history.aclose)
            pool = open_pool(settings, boot=self.boot, on_output=history.output)
            stack.push_async_callback(pool.aclose)
            engine = Engine(
                journal=journal, pool=pool, history=history, clock=clock, observer=counters, boot=self.boot, dice=dice, loop=loop
            )
            stack.callback(engine.close)
            known = await journal.load()
            intake = Intake(engine, counters, next_event=known.next_event, next_invocation=known.next_invocation)
            router = Router()
            http = HttpServer(settings.http, router, log=logging.getLogger("eventd.http"))
            outbox = Outbox(engine, journal, history, settings.history.dead_ms)
            outbox.owed = len(known.owed)
            async with anyio.create_task_group() as tasks:
                sources = Sources(
                    engine=engine, intake=intake, reads=journal, router=router, plugins=self.plugins, settings=settings, counted=counters,
                    tasks=tasks,
                )  # fmt: skip
                journal.on_owed = sources.settled
                urls = FunctionUrls(engine, router)

                def changed(old: Settings, new: Settings) -> None:
                    urls.update(new)
                    outbox.dead_ms = new.history.dead_ms
                    http.reconfigure(new.http)
                    logging.getLogger().setLevel(new.daemon.log_level.upper())
                    self.settings = new

                reloader = Reloader(
                    settings=settings, problems=self.problems, plugins=self.plugins, engine=engine, pool=pool, sources=sources,
                    tasks=tasks, on_settings=changed,
                )  # fmt: skip
                desk = Desk(
                    engine=engine, intake=intake, sources=sources, pool=pool, reads=journal, history=history, outbox=outbox,
                    reloader=reloader, counters=counters, started_at=clock.now_ms(),
                )  # fmt: skip
                self._desk = desk
                async with serve_control(desk, settings.control, log=logging.getLogger("eventd.control")) as bound:
                    await reloader.first()
                    await engine.start(known)
                    urls.update(settings)
                    tasks.start_soon(outbox.run, name="outbox")
                    for name in settings.triggers:
                        sources.open(name)
                    await sources.wait_open(TRIGGERS_OPEN_S)
                    await http.start(None)
                    desk.http, desk.control = tuple(http.addresses), bound.addresses
                    if settings.daemon.reload:
                        tasks.start_soon(reloader.watch, name="reload")
                    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.start_soon(reloader.reload))
                    gc.collect()
                    gc.freeze()
                    desk.phase = "ready"
                    log.info(
                        "eventd is ready: %d functions, %d triggers, http %s, control %s",
                        len(settings.functions), len(settings.triggers), ", ".join(http.addresses) or "none", ", ".join(bound.addresses),
                    )  # fmt: skip
                    if self.on_ready is not None:
                        self.on_ready(Started(tuple(http.addresses), bound.addresses, settings))
                    await self._stop.wait()
                    reloader.stop_watching()
                    if self.failure is None:
                        await self._drain(desk, engine, intake, sources, http, outbox)
                    tasks.cancel_scope.cancel()
            if self.failure is not None:
                raise self.failure
        return 0

    # --- the end ---

    def _asked_to_stop(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _storage_failed(self, error: EventdError) -> None:
        """Promise 3: in doubt, stop. Nothing more is acknowledged; exit status 5."""
        if self.failure is None:
            self.failure = error
            self._desk.failed = error
            log.critical("%s", error)
        self._stop.set()

    async def _drain(self, desk: Desk, engine: Engine, intake: Intake, sources: Sources, http: HttpServer, outbox: Outbox) -> None:
        """D15: stop intake, let what runs finish until the deadline, interrupt the rest, which costs no attempt."""
        desk.phase = "draining"
        log.info("stopping: %d runs are going on", engine.state.running)
        http.stop_accepting()
        intake.open = False
        await sources.close_all()
        engine.tell(s.StartsAllowed(False, False))
        with anyio.move_on_after(self.settings.daemon.drain_timeout_ms / 1000):
            async with anyio.create_task_group() as either:

                async def quiet() -> None:
                    await engine.quiet()
                    either.cancel_scope.cancel()

                async def hurried() -> None:
                    await self._hurry.wait()
                    either.cancel_scope.cancel()

                either.start_soon(quiet)
                either.start_soon(hurried)
        if engine.state.running:
            log.warning("%d runs are interrupted; durable ones start again after the next start", engine.state.running)
            engine.interrupt_all()
            with anyio.move_on_after(INTERRUPT_S):
                await engine.quiet()
        await http.aclose(1.0)
        await outbox.flush()
        log.info("stopped")
