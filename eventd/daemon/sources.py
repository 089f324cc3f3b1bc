"""All triggers: opening, closing, pausing, replacing and halting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from eventd.daemon.engine import Engine
from eventd.daemon.intake import Counted, Intake
from eventd.daemon.parking import Parking
from eventd.daemon.source import Source
from eventd.http.router import Router
from eventd.model import BindingSettings, Settings
from eventd.ports import JournalReads, OwedRow
from eventd.sdk import TriggerPlugin

PARKED_S = 5.0


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
        self.parking = Parking(router)
        self.owed = 0
        """Settlements that no trigger has acknowledged yet."""
        self._tasks = tasks
        self._closing: dict[str, Source] = {}
        self._changing = anyio.Lock()
        """Held from a close to the open that belongs to it: a pause, a drain and a reload may ask at the same time."""

    def open(self, name: str) -> Source:
        """Start a trigger (or take it up paused). Returns at once; `source.opened` is set when it is up or degraded."""
        if (there := self.all.get(name)) is not None:
            return there
        settings = self.settings.triggers[name]
        source = Source(settings, self.plugins[settings.type], self._bindings(name), self)
        self.all[name] = source
        if self.is_paused(name) and not source.plugin.stays_when_paused:
            source.paused, source.status = True, "paused"
            source.opened.set()
        else:
            source.paused = self.is_paused(name)
            self._run(source)
        return source

    def _bindings(self, name: str) -> list[BindingSettings]:
        return [binding for binding in self.settings.bindings.values() if binding.trigger == name]

    def rebind(self) -> None:
        """Hand every open trigger its bindings as the settings have them now."""
        for name, source in self.all.items():
            source.rebind(self._bindings(name))

    async def replace(self, closed: Sequence[str], swap: Callable[[], None], opened: Sequence[str]) -> None:
        """Close some, change the settings, open some: nothing else is opened or closed in between, and nothing is waited for
        between the end of a trigger and its new beginning but that end."""
        async with self._changing:
            both = set(closed) & set(opened)
            for name in closed:
                if name in both and name in self.all:
                    self.all[name].replaced = True
                self._begin_close(name)
            for name in closed:
                await self._ended(name)
            swap()
            for name in opened:
                if not self.halted or self.plugins[self.settings.triggers[name].type].stays_when_paused:
                    self.open(name)
            self.rebind()
            lots = {name: lot for name in both if (lot := self.parking.lot(name)) is not None}
        for name, lot in lots.items():
            self._tasks.start_soon(self._unpark, name, lot)

    async def _unpark(self, name: str, lot: object) -> None:
        """Requests wait for the new routes of a trigger no longer than this."""
        with anyio.move_on_after(PARKED_S):
            if (source := self.all.get(name)) is not None:
                await source.opened.wait()
        self.parking.leave(name, lot)

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
        async with self._changing:
            await self._close(name)

    async def _close(self, name: str) -> None:
        self._begin_close(name)
        await self._ended(name)

    def _begin_close(self, name: str) -> None:
        if (source := self.all.pop(name, None)) is not None:
            self._closing[name] = source
            if source.scope is not None:
                source.scope.cancel()

    async def _ended(self, name: str) -> None:
        """Wait for the end of a trigger that is closing; also of one whose earlier close was given up half-way."""
        source = self._closing.get(name)
        if source is None:
            return
        if source.scope is not None:
            await source.ended.wait()
        if self._closing.get(name) is source:
            del self._closing[name]

    async def close_all(self) -> None:
        """Stop all intake, at the same time; nothing is opened any more."""
        self.halted = True
        for name in list(self.all):
            self._begin_close(name)
        for name in list(self._closing):
            await self._ended(name)

    async def refresh(self, name: str) -> None:
        """Bring a trigger in line with whether it is paused."""
        async with self._changing:
            source = self.all.get(name)
            if source is None or name not in self.settings.triggers or source.paused == self.is_paused(name):
                return
            if source.plugin.stays_when_paused:
                source.paused = self.is_paused(name)
            else:
                await self._close(name)
                if not self.halted:
                    self.open(name)

    async def halt(self) -> None:
        """Stop reading every source; those that answer requests stay, and refuse."""
        self.halted = True
        async with self._changing:
            for name, source in list(self.all.items()):
                if not source.plugin.stays_when_paused:
                    await self._close(name)

    async def unhalt(self) -> None:
        """Open again what `halt` closed."""
        async with self._changing:
            self.halted = False
            for name in self.settings.triggers:
                await self._ended(name)
                self.open(name)

    def settled(self, row: OwedRow) -> None:
        """The journal owes a trigger a settlement."""
        self.owed += 1
        if (source := self.all.get(row.trigger)) is not None:
            source.owed.set()

    def state(self, name: str) -> tuple[str, str]:
        """(up | degraded | paused, why)."""
        source = self.all.get(name)
        if source is None:
            return ("paused", "the daemon is drained.") if self.halted else ("degraded", "it is not open yet.")
        if source.paused:
            return "paused", ""
        return ("degraded", "it is opening.") if source.status == "starting" else (source.status, source.error)

    async def wait_open(self, seconds: float, names: Sequence[str] | None = None) -> None:
        """Until these triggers (None: all) are up or degraded, but no longer than this."""
        with suppress(TimeoutError):
            with anyio.fail_after(seconds):
                for name in list(self.all) if names is None else names:
                    if (source := self.all.get(name)) is not None:
                        await source.opened.wait()
