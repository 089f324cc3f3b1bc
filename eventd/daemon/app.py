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
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.outbox import Outbox
from eventd.daemon.reload import Reloader, read, sentence_of
from eventd.daemon.sources import Sources
from eventd.daemon.urls import FunctionUrls
from eventd.daemon.workers import open_pool
from eventd.errors import EventdError
from eventd.http.router import Router
from eventd.http.server import HttpServer
from eventd.journal import open_history, open_journal
from eventd.model import Problem, Settings
from eventd.registry import find_triggers
from eventd.runtime.code import CodeStore
from eventd.runtime.launcher import harden_daemon
from eventd.sdk import TriggerPlugin
from eventd.telemetry import RunLog, setup_logging

log = logging.getLogger("eventd")

INTERRUPT_S = 10.0
"""After the drain deadline: time for interrupted runs to be recorded."""
TRIGGERS_OPEN_S = 20.0
CLOSE_S = 30.0
"""For each room to close at the end; a worker's grace is part of it."""
RETRY_S = 5.0


class SystemClock:
    """The real clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)


class Started(Struct, frozen=True):
    """Where a running daemon is reached. Given to `on_ready`, for the demo and for tests."""

    http: tuple[str, ...]
    control: tuple[str, ...]
    settings: Settings


def main(file: str, *, log_format: str | None, log_level: str | None, on_ready: Callable[[Started], None] | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; returns the exit status of surface.md section 1."""
    if threading.current_thread() is threading.main_thread():  # until the loop listens: nothing has begun that would need an end
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    plugins, found = find_triggers()
    loading = read(file, plugins, None, boot=True)
    problems = [*found, *loading.problems]
    settings = loading.settings
    if settings is None or any(problem.severity == "error" for problem in found):
        for problem in problems:
            print(sentence_of(problem), file=sys.stderr)
        return 2
    setup_logging(log_format or settings.daemon.log_format, log_level or settings.daemon.log_level)
    for problem in problems:
        log.warning("%s", sentence_of(problem))
    if os.geteuid() == 0:
        log.warning("W-ROOT the daemon runs as root, and so does every handler. Give it a user of its own.")
    app = App(settings, plugins, problems, on_ready, log_level=log_level)
    try:
        # uvloop by factory: the policy functions are deprecated from Python 3.14 on
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(app.run())
    except (Exception, BaseExceptionGroup) as error:
        return app.failure.exit if app.failure is not None else _ended_by(error)


def _ended_by(error: BaseException) -> int:
    """Tell why the daemon ends, each cause in a line of its own; the exit status of the first that has one."""
    status = 0
    for leaf in _leaves(error):
        if isinstance(leaf, EventdError):
            log.error("%s", leaf)
            status = status or leaf.exit
        elif not isinstance(leaf, asyncio.CancelledError):
            log.critical("E-INTERNAL a mistake in eventd itself ends it: %s: %s.", type(leaf).__name__, leaf, exc_info=leaf)
    return status or 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _make_folders(settings: Settings) -> None:
    """The state folder, and the handlers folder unless systemd's unit says where things are. Raises EventdError(E-STORAGE)."""
    state, handlers = settings.daemon.state, settings.daemon.handlers
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
    except OSError as error:
        message = f"the state folder {state} cannot be made: {error.strerror}."
        raise EventdError("E-STORAGE", message, "Create it, or set [daemon] state.") from error
    if os.environ.get("STATE_DIRECTORY"):
        return
    try:
        os.makedirs(handlers, mode=0o755, exist_ok=True)
    except OSError as error:
        log.warning("W-CONFIG the handlers folder %s cannot be made: %s. Create it: it is looked for.", handlers, error.strerror)


async def _closed(close: Callable[[], Awaitable[object]]) -> None:
    """Close a room, also when we are being cancelled, but not for ever."""
    with anyio.move_on_after(CLOSE_S, shield=True):
        await close()


def _history_failed(error: EventdError) -> None:
    """Trouble with runs.db never stops the daemon: events and their ends are in the journal."""
    log.error("the run history has a problem and goes on as well as it can: %s", error)


class App:
    """One daemon lifetime."""

    def __init__(
        self, settings: Settings, plugins: Mapping[str, TriggerPlugin], problems: Sequence[Problem],
        on_ready: Callable[[Started], None] | None, *, log_level: str | None = None,
    ) -> None:  # fmt: skip
        """`log_level` was asked for on the command line: no configuration changes it."""
        self.settings = settings
        self.plugins = plugins
        self.problems = problems
        self.on_ready = on_ready
        self.boot = Dice().id()
        self.failure: EventdError | None = None
        self.mistakes = Mistakes()
        self._log_level = log_level
        self._desk: Desk | None = None
        self._up = False
        self._all: anyio.CancelScope | None = None
        self._reload: Callable[[], object] | None = None
        self._stop_watching: Callable[[], None] | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Returns 0 after a clean drain. Raises EventdError when storage fails or the state folder is taken; what else goes wrong
        comes as an exception group."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self.mistakes.on_loop)
        harden_daemon()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        _make_folders(self.settings)
        try:
            with anyio.CancelScope() as self._all:
                await self._live(loop)
        except Exception:
            if self.failure is None:
                raise  # else: what it brought down with it
        if self.failure is not None:
            raise self.failure
        log.info("stopped")
        return 0

    async def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self.settings
        clock, counters, dice = SystemClock(), Counters(), Dice()
        async with AsyncExitStack() as stack:
            journal = await open_journal(settings.daemon.state, settings.journal, boot=self.boot, loop=loop)
            stack.push_async_callback(_closed, journal.aclose)
            journal.failed = self._storage_failed
            journal.writer.on_commit = counters.committed
            history = await open_history(
                settings.daemon.state, settings.history, now_ms=clock.now_ms, on_failed=_history_failed, on_records=RunLog().write
            )
            stack.push_async_callback(_closed, history.aclose)
            store = CodeStore(settings.daemon.state)
            pool = open_pool(settings, boot=self.boot, store=store, on_output=history.output)
            stack.push_async_callback(_closed, pool.aclose)
            engine = Engine(
                journal=journal, pool=pool, history=history, clock=clock, observer=counters, boot=self.boot, dice=dice, loop=loop
            )
            stack.callback(engine.close)
            engine.watch()
            known = await journal.load()
            intake = Intake(engine, counters, next_event=known.next_event, next_invocation=known.next_invocation)
            router = Router()
            http = HttpServer(settings.http, router, log=logging.getLogger("eventd.http"))
            outbox = Outbox(engine, journal, history, settings.history.dead_ms, self.mistakes)
            async with anyio.create_task_group() as tasks:
                sources = Sources(
                    engine=engine, intake=intake, reads=journal, router=router, plugins=self.plugins, settings=settings, counted=counters,
                    tasks=tasks,
                )  # fmt: skip
                sources.owed = len(known.owed)
                journal.on_owed = sources.settled
                urls = FunctionUrls(engine, router)

                def changed(old: Settings, new: Settings) -> None:
                    urls.update(new)
                    outbox.dead_ms = new.history.dead_ms
                    http.reconfigure(new.http)
                    desk.http = tuple(http.addresses)
                    if self._log_level is None and old.daemon.log_level != new.daemon.log_level:
                        logging.getLogger().setLevel(new.daemon.log_level.upper())
                    self.settings = new

                reloader = Reloader(
                    settings=settings, problems=self.problems, plugins=self.plugins, engine=engine, pool=pool, sources=sources,
                    tasks=tasks, on_settings=changed, relisten=http.relisten, forget=store.forget_all_but, mistakes=self.mistakes,
                )  # fmt: skip
                desk = Desk(
                    engine=engine, intake=intake, sources=sources, pool=pool, reads=journal, history=history, outbox=outbox,
                    reloader=reloader, counters=counters, started_at=clock.now_ms(), mistakes=self.mistakes,
                )  # fmt: skip
                self._desk, self._stop_watching = desk, reloader.stop_watching
                async with serve_control(desk, settings.control, log=logging.getLogger("eventd.control")) as bound:
                    http.bind()  # before any work begins: a taken port must not look like a crash to the events
                    stack.callback(http.unbind)
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
                        tasks.start_soon(self._kept, "watching the configuration", reloader.watch, name="reload")
                    self._reload = lambda: tasks.start_soon(reloader.reload_by_itself)
                    gc.collect()
                    gc.freeze()
                    desk.phase, self._up = "ready", True
                    log.info(
                        "eventd is ready: %d functions, %d triggers, http %s, control %s",
                        len(settings.functions), len(settings.triggers), ", ".join(http.addresses) or "none", ", ".join(bound.addresses),
                    )  # fmt: skip
                    if self.on_ready is not None:
                        self.on_ready(Started(tuple(http.addresses), bound.addresses, settings))
                    await self._stop.wait()
                    self._reload = None
                    reloader.stop_watching()
                    await self._drain(desk, engine, intake, sources, http, outbox)
                    tasks.cancel_scope.cancel()

    # --- the end ---

    def _asked_to_stop(self) -> None:
        """The first time: drain. The second time: hurry. While still starting: give that up."""
        (self._hurry if self._stop.is_set() else self._stop).set()
        if not self._up:
            log.info("stopping before it was ready")
            self._give_up()

    def _asked_to_reload(self) -> None:
        if self._reload is not None:
            self._reload()

    def _storage_failed(self, error: EventdError) -> None:
        """Promise 3: in doubt, stop at once. Nothing more is acknowledged, nobody waits for what will not come; exit status 5."""
        if self.failure is None:
            self.failure = error
            if self._desk is not None:
                self._desk.failed = error
            log.critical("%s", error)
        self._give_up()

    def _give_up(self) -> None:
        if self._stop_watching is not None:
            self._stop_watching()  # its thread would see a cancellation only after seconds
        if self._all is not None:
            self._all.cancel()

    async def _kept(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """A task of the daemon that goes on after a mistake in it."""
        while True:
            try:
                await work()
            except Exception as error:
                self.mistakes.told(f"{what} failed; it begins again.", error)
            else:
                return
            await anyio.sleep(RETRY_S)

    async def _drain(self, desk: Desk, engine: Engine, intake: Intake, sources: Sources, http: HttpServer, outbox: Outbox) -> None:
        """D15: stop intake, let what runs finish until the deadline, interrupt the rest, which costs no attempt."""
        desk.stopping, desk.phase = True, "draining"
        log.info("stopping: %d runs are going on", engine.state.running)
        http.stop_accepting()
        intake.open = False
        engine.tell(s.StartsAllowed(False, False))
        with anyio.move_on_after(self.settings.daemon.drain_timeout_ms / 1000):
            async with anyio.create_task_group() as either:

                async def quiet() -> None:
                    await sources.close_all()
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
        with anyio.move_on_after(INTERRUPT_S):
            await outbox.flush()
