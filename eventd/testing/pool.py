"""A scripted pool: workers that do what a test says, without a process. `ports.Pool` for tests of the shell and of plugins in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from eventd.errors import EventdError
from eventd.model import FunctionSettings, Outcome
from eventd.ports import Loaded, PoolView, Ran, Task

__all__ = ["Behaviour", "FakePool"]

Behaviour = Callable[[Task], Ran | None]
"""How a run goes; None: it goes on until `finish` or `stop`."""


def echo(task: Task) -> Ran:
    """Answer with the event itself."""
    return Ran(outcome=Outcome.SUCCEEDED, payload=task.event, version="0123456789ab", worker="fake-1", duration_ms=1.0)


class FakePool:
    """Set `behave[function]`, `broken[function]` and `building[function]`; read `tasks`, `loads` and `unloaded`."""

    def __init__(self) -> None:
        self.behave: dict[str, Behaviour] = {}
        self.broken: dict[str, EventdError] = {}
        """The next loads fail with this."""
        self.building: dict[str, anyio.Event] = {}
        """Loads wait for this first."""
        self.tasks: list[Task] = []
        self.loads: list[str] = []
        self.unloaded: list[str] = []
        self.running: dict[str, Task] = {}
        self.most = 0
        """Runs that were on at the same time, at most."""
        self.closed = False
        self._done: dict[str, Callable[[Ran], None]] = {}
        self._known: dict[str, FunctionSettings] = {}
        self._errors: dict[str, str] = {}

    # --- ports.Pool ---

    def run(self, task: Task, done: Callable[[Ran], None]) -> None:
        if task.run in self.running:
            raise AssertionError(f"the run {task.run} was started twice")
        self.tasks.append(task)
        self.running[task.run], self._done[task.run] = task, done
        self.most = max(self.most, len(self.running))
        ran = self.behave.get(task.function, echo)(task)
        if ran is not None:
            asyncio.get_running_loop().call_soon(self._end, task.run, ran)

    def stop(self, run: str, outcome: Outcome) -> None:
        if run in self.running:
            asyncio.get_running_loop().call_soon(self._end, run, Ran(outcome=outcome, error_type="Eventd.Stopped"))

    async def load(self, function: FunctionSettings) -> Loaded:
        if (gate := self.building.get(function.name)) is not None:
            await gate.wait()
        self.loads.append(function.name)
        if (error := self.broken.get(function.name)) is not None:
            self._errors[function.name] = str(error)
            raise error
        self._errors.pop(function.name, None)
        changed = self._known.get(function.name) != function
        self._known[function.name] = function
        return Loaded("0123456789ab", changed)

    async def unload(self, name: str) -> None:
        self.unloaded.append(name)
        self._known.pop(name, None)
        self._errors.pop(name, None)

    def view(self, name: str) -> PoolView | None:
        error = self._errors.get(name, "")
        if name not in self._known and not error:
            return PoolView("building", "", "", 0, 0, 0) if name in self.building else None
        busy = sum(task.function == name for task in self.running.values())
        return PoolView("ready" if name in self._known else "broken", "0123456789ab", error, 0, busy, 0)

    async def aclose(self) -> None:
        self.closed = True
        for run in list(self.running):
            self._end(run, Ran(outcome=Outcome.INTERRUPTED))

    # --- for the test ---

    def finish(self, run: str, ran: Ran | None = None) -> None:
        """End a run that goes on: with `ran`, else as `echo`."""
        self._end(run, ran or echo(self.running[run]))

    def finish_all(self, ran: Ran | None = None) -> None:
        for run in list(self.running):
            self.finish(run, ran)

    def events(self, function: str) -> list[bytes]:
        """The payloads that a function was run with, in order."""
        return [task.event for task in self.tasks if task.function == function]

    def _end(self, run: str, ran: Ran) -> None:
        if self.running.pop(run, None) is not None:
            self._done.pop(run)(ran)
