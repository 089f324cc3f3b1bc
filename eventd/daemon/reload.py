"""Hot reload: read, check whole, build the new, swap, retire the old. A bad configuration changes nothing (design.md, section 7)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec import structs, to_builtins

from eventd.core import signals as s
from eventd.core.patterns import compile_pattern
from eventd.core.plan import Action, Change, plan
from eventd.daemon.engine import Engine
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.sources import Sources
from eventd.daemon.watch import Watcher
from eventd.errors import EventdError
from eventd.model import FunctionSettings, Problem, Settings
from eventd.ports import Json, Pool
from eventd.sdk import TriggerPlugin
from eventd.settings.load import Loading, load

PATIENCE_S = 3.0
"""How long a reload waits for handlers to load; a dependency build goes on beyond it."""
OPEN_S = 5.0
"""How long a reload waits for the triggers it opened."""
AT_ONCE = 4
"""Functions loaded at once; one that takes longer than PATIENCE_S gives its place to the next."""
LATE = {
    "control": (), "journal": (), "runtimes": (), "history": ("runs_ms", "runs_limit", "output", "output_per_run"),
    "daemon": ("state", "plugins", "log_format"),
}  # fmt: skip
"""What takes effect at the next start only: of each table these keys, or all of it."""

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
    """Load and check everything. Never raises for what a person wrote. $EVENTD_SOCKET (`--socket`) goes before [control] socket."""
    loading = load(file, plugins, check_filter=compile_pattern, previous=previous.functions if previous else {}, boot=boot)
    asked, settings = os.environ.get("EVENTD_SOCKET"), loading.settings
    if asked and settings is not None:
        control = structs.replace(settings.control, socket=os.path.abspath(asked))
        loading = loading._replace(settings=structs.replace(settings, control=control))
    return loading


class Reloader:
    """Owns the settings in force. `apply` is serial; loading handlers goes on beside it."""

    def __init__(
        self, *, settings: Settings, problems: Sequence[Problem], plugins: Mapping[str, TriggerPlugin], engine: Engine, pool: Pool,
        sources: Sources, tasks: TaskGroup, on_settings: Callable[[Settings, Settings], None],
        relisten: Callable[[Sequence[str]], Awaitable[None]] | None = None, forget: Callable[[frozenset[str]], None] | None = None,
        mistakes: Mistakes | None = None,
    ) -> None:  # fmt: skip
        """`relisten` changes the addresses of [http] or raises E-LISTEN with the old ones still served. `forget` (called in a
        thread) drops the stored code of every function that is not named."""
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
        self._relisten = relisten
        self._forget = forget
        self._lock = anyio.Lock()
        self._limit = anyio.CapacityLimiter(AT_ONCE)
        self._told: set[str] = {str(problem) for problem in problems}
        self._loading: dict[str, anyio.Lock] = {}
        self._newest: dict[str, FunctionSettings] = {}
        """Each function as it was last asked for; an older request that still waits has nothing to do any more."""
        self._broken: dict[str, str] = {}
        self._watcher = Watcher(lambda: self.settings, self.reload_by_itself)
        self.watch = self._watcher.run
        self.stop_watching = self._watcher.stop
        self.mistakes = mistakes or Mistakes()

    async def first(self) -> None:
        """Load every function at start; returns when each is ready or broken, or after PATIENCE_S."""
        self._engine.functions = self.settings.functions
        await self._watcher.mark()
        for name in self.settings.functions:
            self._engine.tell(s.Available(name, False))
        self._engine.tell(s.Configured(rules_of(self.settings, self._plugins)))
        await self._load(self.settings.functions)

    async def reload(self) -> Json:
        """Read the configuration again and bring everything in line with it; or reject it whole. The `reload` verb's answer."""
        async with self._lock:
            loading = await anyio.to_thread.run_sync(read, self.settings.file, self._plugins, self.settings)
            new, found = loading.settings, list(loading.problems)
            if new is not None and self._relisten is not None and new.http.listen != self.settings.http.listen:
                try:
                    await self._relisten(new.http.listen)
                except EventdError as error:
                    new = None
                    found.append(Problem(error.code, "error", self.settings.file, 0, "http.listen", error.message, error.hint))
            self._tell(found)
            problems = [to_builtins(problem) for problem in found]
            if new is None:
                self.ok, self.problems = False, found
                # Code is no configuration: who mends a handler does not have to wait for a mistake in another file.
                await self._load(await anyio.to_thread.run_sync(_there, self.settings.functions))
                return {"applied": False, "changes": [], "problems": problems}
            if not self.ok:
                log.info("the configuration is good again")
            changes = await self._apply(new)
            self.ok, self.problems = True, found
            self.loaded_at = self._engine.clock.now_ms()
            return {"applied": True, "changes": [to_builtins(change) for change in changes], "problems": problems}

    async def _apply(self, new: Settings) -> list[Change]:
        """Load the code of every function, then swap: close, change the settings, open; at last retire what is gone."""
        old = self.settings
        changes = plan(old, new)
        if _lent(old) != _lent(new):  # what every trigger is lent when it starts
            changes = [
                structs.replace(change, action=Action.REPLACE) if (change.kind, change.action) == ("trigger", Action.KEEP) else change
                for change in changes
            ]
        by_action: dict[tuple[str, Action], list[str]] = {}
        for change in changes:
            by_action.setdefault((change.kind, change.action), []).append(change.name)

        def named(kind: str, *actions: Action) -> list[str]:
            return [name for action in actions for name in by_action.get((kind, action), [])]

        for name in named("function", Action.OPEN):
            self._engine.tell(s.Available(name, False))
        await self._load(new.functions)

        def swap() -> None:
            self.settings = new
            self._engine.functions = new.functions
            self._sources.settings = new
            self._engine.tell(s.Configured(rules_of(new, self._plugins)))
            self._on_settings(old, new)

        opened = named("trigger", Action.REPLACE, Action.OPEN)
        await self._sources.replace(named("trigger", Action.CLOSE, Action.REPLACE), swap, opened)
        for name in new.triggers:
            await self._sources.refresh(name)
        for name in named("function", Action.CLOSE):
            self._newest.pop(name, None)
            self._broken.pop(name, None)
            await self._pool.unload(name)
        if self._forget is not None:
            await anyio.to_thread.run_sync(self._forget, frozenset(new.functions))
        await self._sources.wait_open(OPEN_S, opened)
        self._say(old, new, changes)
        return changes

    def _say(self, old: Settings, new: Settings, changes: Sequence[Change]) -> None:
        for table, keys in LATE.items():
            before, after = getattr(old, table), getattr(new, table)
            late = before != after if not keys else any(getattr(before, key) != getattr(after, key) for key in keys)
            if late:
                log.warning("W-CONFIG [%s] has changed; that takes effect at the next start.", table)
        gone = {old.triggers[c.name].digest: c.name for c in changes if (c.kind, c.action) == ("trigger", Action.CLOSE)}
        for change in changes:
            if (change.kind, change.action) != ("trigger", Action.OPEN):
                continue
            if (before := gone.get(new.triggers[change.name].digest)) is not None:
                log.info("trigger '%s' is what '%s' was; under its new name it has a new ledger", change.name, before)
        done = [change for change in changes if change.action is not Action.KEEP]
        if done:
            log.info("reloaded: %s", ", ".join(f"{change.action} {change.kind} {change.name}" for change in done))

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

        self._newest.update(functions)
        for function in functions.values():
            self._tasks.start_soon(one, function, name=f"load {function.name}")
        with anyio.move_on_after(PATIENCE_S):
            await all_done.wait()

    async def _load_one(self, function: FunctionSettings) -> None:
        """Load one function's current code. A failure is logged once per distinct cause; the version before stays in use."""
        name = function.name
        async with self._loading.setdefault(name, anyio.Lock()):
            if self._newest.get(name) is not function:
                return
            place = object()
            await self._limit.acquire_on_behalf_of(place)
            held = True

            def give_back() -> None:
                nonlocal held
                if held:
                    held = False
                    self._limit.release_on_behalf_of(place)

            timer = asyncio.get_running_loop().call_later(PATIENCE_S, give_back)
            try:
                await self._load_now(function)
            finally:
                timer.cancel()
                give_back()
            if name not in self._newest:  # removed meanwhile
                await self._pool.unload(name)
            self._engine.tell(s.Available(name, True))

    async def _load_now(self, function: FunctionSettings) -> None:
        name = function.name
        try:
            loaded = await self._pool.load(function)
        except EventdError as error:
            if self._broken.get(name) != str(error):
                self._broken[name] = str(error)
                view = self._pool.view(name)
                stays = view is not None and view.state == "ready"
                then = "The version before stays in use." if stays else "Its runs fail until it is mended."
                log.error("%s %s", error, then)
        except Exception as error:
            self.mistakes.told(f"function '{name}' could not be loaded; what it was before stays.", error)
        else:
            self._broken.pop(name, None)
            if loaded.changed:
                log.info("function '%s' is ready, version %s", name, loaded.version)

    def _tell(self, problems: Sequence[Problem]) -> None:
        """One line per distinct problem, not one per attempt (D28)."""
        now = {str(problem) for problem in problems}
        for problem in problems:
            if str(problem) not in self._told:
                (log.error if problem.severity == "error" else log.warning)("%s", sentence_of(problem))
        if any(problem.severity == "error" for problem in problems) and not now <= self._told:
            log.error("E-CONFIG the configuration is rejected; the last good one goes on.")
        self._told = now

    async def reload_by_itself(self) -> None:
        """A reload that nobody asked for by name: whatever goes wrong in it is told and does not end the watching."""
        try:
            await self.reload()
        except EventdError as error:
            log.error("%s", error)
        except Exception as error:
            self.mistakes.told("a reload failed; the last good configuration goes on.", error)


def sentence_of(problem: Problem) -> str:
    """A problem as one line, with a full stop before its hint."""
    message = problem.message if problem.message.endswith((".", "!", "?", ":")) else problem.message + "."
    return str(structs.replace(problem, message=message))


def _lent(settings: Settings) -> tuple[str, ...]:
    return settings.daemon.timezone, settings.daemon.region, settings.daemon.account


def _there(functions: Mapping[str, FunctionSettings]) -> dict[str, FunctionSettings]:
    return {name: function for name, function in functions.items() if os.path.exists(function.source)}
