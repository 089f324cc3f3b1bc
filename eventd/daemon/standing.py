"""How the daemon stands: status, metrics, health. The reading half of the desk that asks nothing of a database."""

from __future__ import annotations

import os

import msgspec

from eventd import __version__
from eventd.control.metrics import Counters, Gauges, render_metrics
from eventd.daemon.engine import Engine
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.reload import Reloader
from eventd.daemon.sources import Sources
from eventd.errors import EventdError
from eventd.model import rfc3339
from eventd.ports import JournalReads, Json, Pool

STALE_S = 5.0
"""A loop that has not beaten for this long is not healthy."""


class Standing:
    """Every method may be called at any time by many callers."""

    def __init__(
        self, *, engine: Engine, sources: Sources, pool: Pool, reads: JournalReads, reloader: Reloader, counters: Counters,
        started_at: int, mistakes: Mistakes | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.sources = sources
        self.pool = pool
        self.reads = reads
        self.reloader = reloader
        self.counters = counters
        self.started_at = started_at
        self.mistakes = mistakes or Mistakes()
        self.phase = "starting"
        """starting, ready, draining or drained."""
        self.stopping = False
        """The daemon is on its way out: no drain is undone any more."""
        self.drained_when_quiet = False
        """A drain of the running work was given up waiting for; it is drained once nothing runs."""
        self.failed: EventdError | None = None
        self.http: tuple[str, ...] = ()
        self.control: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        if self.phase == "draining" and self.drained_when_quiet and not self.engine.state.running and not self.stopping:
            return "drained"
        if self.phase != "ready":
            return self.phase
        degraded = any(self.sources.state(name)[0] == "degraded" for name in self.sources.settings.triggers)
        return "degraded" if degraded or not self.reloader.ok else "ready"

    async def status(self) -> Json:
        settings = self.sources.settings
        stats = self.reads.stats()
        state = self.engine.state
        return {
            "state": self.state,
            "version": __version__,
            "pid": os.getpid(),
            "boot": self.engine.boot,
            "started_at": rfc3339(self.started_at),
            "config": {
                "file": settings.file,
                "loaded_at": rfc3339(self.reloader.loaded_at),
                "ok": self.reloader.ok,
                "problems": [msgspec.to_builtins(problem) for problem in self.reloader.problems],
            },
            "functions": [self._function(name) for name in sorted({*settings.functions, *self._left_functions()})],
            "triggers": [self._trigger(name) for name in sorted(settings.triggers)],
            "bindings": [self._binding(name) for name in sorted(settings.bindings)] + self._left_bindings(),
            "journal": {
                "bytes": stats.bytes,
                "limit": stats.limit,
                "open": self.engine.open,
                "owed": self.sources.owed,
                "dead": sum(function.dead for function in state.functions.values()),
            },
            "running": state.running,
            "concurrency": settings.daemon.concurrency,
            "listen": {"http": list(self.http), "control": list(self.control)},
            "mistakes": self.mistakes.count,
        }

    def _function(self, name: str) -> Json:
        settings = self.sources.settings.functions.get(name)
        view = self.pool.view(name)
        held = self.engine.state.functions.get(name)
        row: Json = {
            "function": name,
            "origin": settings.origin if settings is not None else "file",
            "runtime": settings.runtime if settings is not None else "",
            "state": "paused" if held is not None and held.paused else view.state if view is not None else "missing",
            "error": view.error if view is not None else "",
            "version": view.version if view is not None else "",
            "concurrency": settings.concurrency if settings is not None else 0,
            "running": held.running if held is not None else 0,
            "waiting": held.waiting if held is not None else 0,
            "workers": view.idle + view.busy + view.starting if view is not None else 0,
            "dead": held.dead if held is not None else 0,
        }
        if view is not None and view.advice:
            row["advice"] = view.advice
        if settings is None and held is not None:
            row["state"] = "missing"
            row["error"] = f"it is gone; {held.open} open and {held.dead} dead invocations are kept until it returns."
        return row

    def _left_functions(self) -> list[str]:
        """Functions that are gone and still have work (D7)."""
        known = self.sources.settings.functions
        return [name for name, function in self.engine.state.functions.items() if name not in known and (function.open or function.dead)]

    def _left_bindings(self) -> list[Json]:
        """Bindings that are gone, or lead elsewhere now, and still have open work (D7)."""
        known = self.sources.settings.bindings
        return [
            {"binding": name, "trigger": "", "function": function, "state": "held"}
            for (name, function), queue in sorted(self.engine.state.queues.items(), key=lambda item: (item[0][0] or "", item[0][1]))
            if name is not None and queue.open and (name not in known or known[name].function != function)
        ]

    def _trigger(self, name: str) -> Json:
        state, error = self.sources.state(name)
        accepted = self.counters.accepted_by.get(name, 0)
        kind = self.sources.settings.triggers[name].type
        return {"trigger": name, "type": kind, "state": state, "error": error, "accepted": accepted}

    def _binding(self, name: str) -> Json:
        settings = self.sources.settings.bindings[name]
        queue = self.engine.state.queues.get((name, settings.function))
        paused = settings.paused or ("binding", name) in self.engine.state.pauses
        state = "paused" if paused else "ready" if queue is not None and queue.active else "held"
        return {"binding": name, "trigger": settings.trigger, "function": settings.function, "state": state}

    async def metrics(self) -> bytes:
        state = self.engine.state
        for name, function in state.functions.items():
            self.counters.function(name).settled = {str(end): count for end, count in function.ends.items()}
        workers: dict[tuple[str, str], int] = {}
        for name in self.sources.settings.functions:
            if (view := self.pool.view(name)) is not None:
                workers |= {(name, "idle"): view.idle, (name, "busy"): view.busy, (name, "starting"): view.starting}
        gauges = Gauges(
            open=state.open_by_function(),
            workers=workers,
            trigger_up={name: self.sources.state(name)[0] == "up" for name in self.sources.settings.triggers},
            journal_bytes=self.reads.stats().bytes,
            owed=self.sources.owed,
            loop_lag_s=self.engine.lag_s,
        )
        return render_metrics(self.counters, gauges)

    async def health(self) -> tuple[bool, str]:
        if self.failed is not None:
            return False, str(self.failed)
        late = self.engine.clock.monotonic() - self.engine.beat_at
        return (True, "") if late < STALE_S else (False, f"the event loop has not moved for {late:.1f} s")

    async def readiness(self) -> tuple[bool, str]:
        if self.failed is not None:
            return False, str(self.failed)
        return (True, "") if self.phase == "ready" else (False, f"the daemon is {self.phase}")
