"""The workers of one function: of its present version (a `Generation`), and of earlier ones that are still finishing.

A generation is one version of the code with one set of those settings that a worker is born with. Build the new, start one worker
of it to the end of init, swap, retire the old: its idle workers end at once, its busy ones after their run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from eventd.model import FunctionSettings, Outcome
from eventd.ports import OutputChunk, Ran, Task
from eventd.runtime.code import Version
from eventd.runtime.output import Captured
from eventd.runtime.seat import Place, Seat
from eventd.runtime.worker import Runtime, WorkerSpec

_SLOWEST_S = 60.0
_monotonic = time.monotonic


class House(Protocol):
    """What a generation needs of the pool."""

    active: dict[Seat, None]
    """Seats with a deadline: starting, busy or leaving."""
    output_per_run: int
    on_output: Callable[[OutputChunk], None]

    def spec(self, init_type: str) -> WorkerSpec:
        """A fresh name and TMPDIR. Raises OSError when the state folder takes no more."""
        ...

    def report(self, done: Callable[[Ran], None], ran: Ran) -> None: ...
    def began(self) -> None:
        """Something has a deadline now."""
        ...

    def vacated(self, generation: Generation, seat: Seat) -> None:
        """A worker is gone; its TMPDIR can be emptied."""
        ...


def birth(function: FunctionSettings, python: str, secrets: Mapping[str, str], version: Version) -> tuple[object, ...]:
    """What decides whether a running worker may go on under new settings. The other settings are read anew for every run."""
    return (
        version.digest,
        version.root,
        version.entry,
        version.handler,
        function.runtime,
        function.command,
        function.memory_mib,
        function.snapshot,
        tuple(sorted(function.environment.items())),
        tuple(sorted(secrets.items())),
        python,
    )


class Generation:
    """One version and its workers. `idle` is a stack: the worker used last is used next, so that the others can grow old and go."""

    def __init__(
        self, house: House, function: FunctionSettings, version: Version, runtime: Runtime, arn: str, birth: tuple[object, ...]
    ) -> None:
        self.house = house
        self.function = function
        self.version = version
        self.runtime = runtime
        self.eager: bool = getattr(runtime, "eager", False)
        self.arn = arn
        self.birth = birth
        self.python = ""
        """The interpreter that is held for it."""
        self.idle: list[Seat] = []
        self.seats: dict[Seat, None] = {}
        self.retired = False
        self.proven = False
        """A worker has reached the end of init."""
        self.empty = anyio.Event()
        """Set when it is retired and its last worker is gone."""
        self._again_at = 0.0
        self._pause = 0.0

    def run(self, task: Task, done: Callable[[Ran], None], started: Callable[[Seat], None]) -> None:
        """On the worker used last, else a new one. Raises OSError when the state folder does not even take a TMPDIR."""
        house = self.house
        if self.idle:
            seat = self.idle.pop()
            house.active[seat] = None
            started(seat)
            seat.take(task, done)
        else:
            seat = self.seat(None)
            started(seat)
            seat.take(task, done)
            seat.start()

    def seat(self, settled: Callable[[Seat, Ran | None], None] | None, init_type: str = "on-demand") -> Seat:
        """A new seat, its worker not started yet."""
        seat = Seat(self, self.house.spec(init_type), settled)
        self.seats[seat] = None
        self.house.active[seat] = None
        self.house.began()
        return seat

    def keep_up(self, now: float) -> None:
        """Once a second: end who has been idle too long, and start what `provisioned` wants, more slowly while that fails."""
        keep = self.function.provisioned
        oldest_first = self.idle[: max(0, len(self.seats) - keep)]
        for seat in oldest_first:
            if now - seat.idle_since >= self.function.idle_ms / 1000:
                self.idle.remove(seat)
                seat.retire()
        living = sum(seat.place is not Place.LEAVING for seat in self.seats)
        if self.runtime.resident and not self.retired and living < keep and now >= self._again_at:
            for _ in range(keep - living):
                try:
                    self.seat(self._provisioned, "provisioned-concurrency").start()
                except OSError:
                    self._provisioned(None, Ran(outcome=Outcome.FAILED))
                    return

    def _provisioned(self, seat: Seat | None, ran: Ran | None) -> None:
        if ran is None:
            self._pause = 0.0
        else:
            self._pause = min(max(1.0, self._pause * 2), _SLOWEST_S)
            self._again_at = _monotonic() + self._pause

    def retire(self) -> None:
        """No new runs. Idle and needlessly starting workers end now."""
        self.retired = True
        for seat in list(self.seats):
            seat.retire()
        self.idle.clear()
        self._check_empty()

    # --- what seats tell ---

    def captured(self, run: str) -> Captured:
        return Captured(self.function.name, run, self.house.output_per_run, self.house.on_output)

    def report(self, done: Callable[[Ran], None], ran: Ran) -> None:
        self.house.report(done, ran)

    def rested(self, seat: Seat) -> None:
        self.proven = True
        self.house.active.pop(seat, None)
        if self.retired:
            seat.retire()
        else:
            self.idle.append(seat)

    def leaving(self, seat: Seat) -> None:
        self.house.active[seat] = None
        self.house.began()

    def gone(self, seat: Seat, was_ready: bool) -> None:
        self.house.active.pop(seat, None)
        self.seats.pop(seat, None)
        if seat in self.idle:
            self.idle.remove(seat)
        self.house.vacated(self, seat)
        self._check_empty()

    def _check_empty(self) -> None:
        if self.retired and not self.seats:
            self.empty.set()


class Crew:
    """A function by its name: the generation in use, and why the last load failed, if it did."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Generation | None = None
        self.lock = anyio.Lock()
        """Held by the one load at a time."""
        self.building = False
        self.failure: tuple[str, str] | None = None
        """(error type, message) for runs while there is no generation."""
        self.error = ""
        self.advice = ""

    @property
    def state(self) -> str:
        if self.current is not None and self.current.proven:
            return "ready"
        return "building" if self.building else "broken"


def advise(init_ms: float, private_bytes: int) -> str:
    """The suggestion of D29 for a Python function without `snapshot`; empty when it has no reason."""
    reasons = []
    if init_ms > 50:
        reasons.append(f"loading it takes {init_ms:.0f} ms")
    if private_bytes > 10 * 1024 * 1024:
        reasons.append(f"each worker has {private_bytes // (1024 * 1024)} MiB of its own")
    return f"{' and '.join(reasons)}; a snapshot, which a later version brings, would share that" if reasons else ""


def fresh_spec(folder: str, name: str, init_type: str) -> WorkerSpec:
    """Make a worker's TMPDIR and its log stream's name (`2026/02/05/[$LATEST]` and 32 hex digits, lambda.md 1.7)."""
    tmpdir = os.path.join(folder, name)
    os.mkdir(tmpdir, 0o700)
    day = time.strftime("%Y/%m/%d", time.gmtime())
    return WorkerSpec(id=name, tmpdir=tmpdir, log_stream=f"{day}/[$LATEST]{os.urandom(16).hex()}", init_type=init_type)
