"""Hot reload: read, check whole, build the new, swap, retire the old. A bad configuration changes nothing (design.md, section 7)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec import to_builtins
from watchfiles import Change as FileChange
from watchfiles import DefaultFilter, awatch

from eventd.core import signals as s
from eventd.core.patterns import compile_pattern
from eventd.core.plan import Action, Change, plan
from eventd.daemon.engine import Engine
from eventd.daemon.sources import Sources
from eventd.errors import EventdError
from eventd.model import FunctionSettings, Problem, Settings
from eventd.ports import Json, Pool
from eventd.sdk import TriggerPlugin
from eventd.settings.load import Loading, load

SETTLE_MS = 200
"""Editors save in steps: a reload waits until nothing has changed for this long (D28)."""
PATIENCE_S = 15.0
"""How long a reload waits for handlers to load; a dependency build goes on beyond it."""
AT_ONCE = 4
LATE_TABLES = frozenset({"control", "journal"})

log = logging.getLogger("eventd.reload")


def rules_of(settings: Settings, plugins: Mapping[str, TriggerPlugin]) -> s.Rules:
    """The part of the settings that the dispatcher decides by."""
    functions = {
        f.name: s.FunctionRule(f.name, f.concurrency, f.wait_ms, f.retry, f.max_event_age_ms, f.rate, f.paused)
        for f in settings.functions.values()
    }
    bindings = {}
    for b in settings.bindings.values():
        trigger = settings.triggers[b.trigger]
        batching = plugins[trigger.type].batching(trigger.options)
        bindings[b.name] = s.BindingRule(
            b.name, b.trigger, b.function, b.retry, b.max_event_age_ms, b.paused, batching.size, batching.window_ms
        )
    caps = {t.name: t.concurrency for t in settings.triggers.values()}
    return s.Rules(settings.daemon.concurrency, functions, bindings, caps)


def read(file: str, plugins: Mapping[str, TriggerPlugin], previous: Settings | None, *, boot: bool = False) -> Loading:
    """Load and check everything. Never raises for what a person wrote."""
    return load(file, plugins, check_filter=compile_pattern, previous=previous.functions if previous else {}, boot=boot)


class Reloader:
    """Owns the settings in force. `apply` is serial; loading handlers goes on beside it."""

    def __init__(
        self, *, settings: Settings, problems: Sequence[Problem], plugins: Mapping[str, TriggerPlugin], engine: Engine, pool: Pool,
        sources: Sources, tasks: TaskGroup, on_settings: Callable[[Settings, Settings], None],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.problems: list[Problem] = list(problems)
        self.ok = True
        self.loaded_at = engine.clock.now_ms()
        self._plugins = plugins
        self._engine = engine
        self._pool = pool
        self._sources = sources
        self._tasks = tasks
        self._on_settings = on_settings
        self._lock = anyio.Lock()
        self._limit = anyio.CapacityLimiter(AT_ONCE)
        self._told: set[str] = set()
        self._loading: dict[str, anyio.Lock] = {}
        self._broken: dict[str, str] = {}
        self._rewatch = anyio.Event()
        self._stopping = False

    async def first(self) -> None:
        """Load every function at start; returns when each is ready or broken, or after PATIENCE_S."""
        self._engine.functions = self.settings.functions
        for name in self.settings.functions:
            self._engine.tell(s.Available(name, False))
        self._engine.tell(s.Configured(rules_of(self.settings, self._plugins)))
        await self._load(self.settings.functions)

    async def reload(self) -> Json:
        """Read the configuration again and bring everything in line with it; or reject it whole. The `reload` verb's answer."""
        async with self._lock:
            loading = await anyio.to_thread.run_sync(read, self.settings.file, self._plugins, self.settings)
            self._tell(loading.problems)
            problems = [to_builtins(problem) for problem in loading.problems]
            if loading.settings is None:
                self.ok, self.problems = False, list(loading.problems)
                return {"applied": False, "changes": [], "problems": problems}
            changes = await self._apply(loading.settings)
            self.ok, self.problems = True, list(loading.problems)
            self.loaded_at = self._engine.clock.now_ms()
            return {"applied": True, "changes": [to_builtins(change) for change in changes], "problems": problems}

    async def _apply(self, new: Settings) -> list[Change]:
        old = self.settings
        changes = plan(old, new)
        by_action: dict[tuple[str, Action], list[str]] = {}
        for change in changes:
            by_action.setdefault((change.kind, change.action), []).append(change.name)
        opened = by_action.get(("function", Action.OPEN), [])
        closed_triggers = by_action.get(("trigger", Action.CLOSE), []) + by_action.get(("trigger", Action.REPLACE), [])
        for name in opened:
            self._engine.tell(s.Available(name, False))
        await self._load({name: f for name, f in new.functions.items() if name not in opened})
        for name in closed_triggers:
            await self._sources.close(name)
        self.settings = new
        self._engine.functions = new.functions
        self._sources.settings = new
        self._engine.tell(s.Configured(rules_of(new, self._plugins)))
        self._on_settings(old, new)
        await self._load({name: new.functions[name] for name in opened})
        for name in by_action.get(("trigger", Action.REPLACE), []) + by_action.get(("trigger", Action.OPEN), []):
            if not self._sources.halted or self._plugins[new.triggers[name].type].stays_when_paused:
                self._sources.open(name)
        for name in new.triggers:
            await self._sources.refresh(name)
        for name in by_action.get(("function", Action.CLOSE), []):
            await self._pool.unload(name)
        for kind in LATE_TABLES:
            if (kind, Action.REPLACE) in by_action:
                log.warning("W-CONFIG [%s] has changed; that takes effect at the next start", kind)
        done = [change for change in changes if change.action is not Action.KEEP]
        if done:
            log.info("reloaded: %s", ", ".join(f"{change.action} {change.kind} {change.name}" for change in done))
        return changes

    async def _load(self, functions: Mapping[str, FunctionSettings]) -> None:
        """Load these functions; wait for them, but not for a long dependency build."""
        left = len(functions)
        if not left:
            return
        all_done = anyio.Event()

        async def one(function: FunctionSettings) -> None:
            nonlocal left
            try:
                await self._load_one(function)
            finally:
                left -= 1
                if not left:
                    all_done.set()

        for function in functions.values():
            self._tasks.start_soon(one, function, name=f"load {function.name}")
        with anyio.move_on_after(PATIENCE_S):
            await all_done.wait()

    async def _load_one(self, function: FunctionSettings) -> None:
        """Load one function's current code. A failure is logged once per distinct cause; the version before stays in use."""
        name = function.name
        async with self._loading.setdefault(name, anyio.Lock()), self._limit:
            try:
                loaded = await self._pool.load(function)
            except EventdError as error:
                if self._broken.get(name) != str(error):
                    self._broken[name] = str(error)
                    view = self._pool.view(name)
                    stays = view is not None and view.state == "ready"
                    then = "the version before stays in use" if stays else "its runs fail until it is mended"
                    log.error("%s function '%s': %s %s (%s)", error.code, name, error.message, error.hint, then)
            else:
                self._broken.pop(name, None)
                if loaded.changed:
                    log.info("function '%s' is ready, version %s", name, loaded.version)
            self._engine.tell(s.Available(name, True))

    def _tell(self, problems: Sequence[Problem]) -> None:
        """One line per distinct problem, not one per attempt (D28)."""
        now = {str(problem) for problem in problems}
        for problem in problems:
            if str(problem) not in self._told:
                (log.error if problem.severity == "error" else log.warning)("%s", problem)
        if any(problem.severity == "error" for problem in problems) and not now <= self._told:
            log.error("the configuration is rejected; the last good one goes on")
        self._told = now

    def stop_watching(self) -> None:
        """No further reloads by themselves; `watch` returns."""
        self._stopping = True
        self._rewatch.set()

    async def watch(self) -> None:
        """Reload when the configuration or a handler changes, until `stop_watching` or cancelled (which takes seconds)."""
        while not self._stopping:
            # awatch waits in a thread, which sees this event within a step; a cancellation it would only see after seconds
            self._rewatch = anyio.Event()
            folder, handlers = os.path.dirname(self.settings.file), self.settings.daemon.handlers
            conf = os.path.join(folder, "conf.d")
            had_conf = os.path.isdir(conf)
            async with anyio.create_task_group() as watchers:

                async def watched(paths: list[str], recursive: bool, wanted: Wanted, stop: anyio.Event = self._rewatch) -> None:
                    there = [path for path in paths if os.path.isdir(path)]
                    if not there:
                        await stop.wait()
                        return
                    async for _ in awatch(
                        *there, watch_filter=wanted, step=SETTLE_MS, debounce=SETTLE_MS * 8, recursive=recursive,
                        ignore_permission_denied=True, stop_event=stop,
                    ):  # fmt: skip
                        await self.reload()
                        if self.settings.daemon.handlers != handlers or os.path.isdir(conf) != had_conf:
                            stop.set()

                # not recursive beside the file: the state folder often lies there, and it changes all the time
                watchers.start_soon(watched, [folder, conf], False, config_files(self.settings.file))
                watchers.start_soon(watched, [handlers], True, DefaultFilter())


Wanted = Callable[[FileChange, str], bool]


def config_files(file: str) -> Wanted:
    """Which changes beside the main file matter: itself, conf.d and conf.d/*.toml."""
    conf = os.path.join(os.path.dirname(file), "conf.d")

    def wanted(change: FileChange, path: str) -> bool:
        return path in (file, conf) or (path.startswith(conf + os.sep) and path.endswith(".toml"))

    return wanted
