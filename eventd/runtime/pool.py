"""The pool: workers of all functions (ports.Pool). It never queues; who calls `run` has a slot.

A warm run makes no task, future or timer (D32): `run` pops an idle worker and writes a frame; the answer's frame is read in a
callback that calls `done`. One tick every 20 ms, only while somebody has a deadline, looks at timeouts and at memory; one tick
a second at idle workers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio
import anyio.to_thread

from eventd.errors import EventdError
from eventd.model import FunctionSettings, Outcome, Settings
from eventd.ports import Loaded, OutputChunk, PoolView, Ran, Task
from eventd.runtime import ends
from eventd.runtime.code import Version
from eventd.runtime.crew import Crew, Generation, advise, birth, fresh_spec
from eventd.runtime.launcher import Launcher
from eventd.runtime.output import Captured
from eventd.runtime.sandbox import arn
from eventd.runtime.seat import Place, Seat
from eventd.runtime.secret import read_secrets
from eventd.runtime.sweep import private
from eventd.runtime.worker import Bench, CodeStore, Dependencies, RuntimeFactory, WorkerSpec

TICK_S = 0.02
_SECOND_S = 1.0
_QUIET_TICKS = 50
_LOOKS = 64
"""Workers whose memory is looked at in one tick: 64 cost less than 1 ms (measured.md 5)."""
_END_S = 15.0


class Pool:
    """Made on the running event loop. `boot` names this daemon's life and stands in workers' names.

    `runtimes`: one factory for each word of `FunctionSettings.runtime`. `on_output` and `warn` are called on the loop and must
    not block. `environ` is what workers may inherit from, by an allow-list; default: the daemon's environment.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        boot: str,
        store: CodeStore,
        deps: Dependencies,
        runtimes: Mapping[str, RuntimeFactory],
        on_output: Callable[[OutputChunk], None],
        warn: Callable[[str, str], None],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.active: dict[Seat, None] = {}
        self.output_per_run = settings.history.output_per_run
        self.on_output = on_output
        self._boot = boot[:8]
        self._store = store
        self._deps = deps
        self._runtimes = runtimes
        self._warn = warn
        self._loop = asyncio.get_running_loop()
        self._launcher = Launcher(self._loop, environ=environ)
        self._crews: dict[str, Crew] = {}
        self._seats: dict[str, Seat] = {}
        """By run, while the run is on."""
        self._retired: set[Generation] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = 0
        self._closing = False
        self._ticking = False
        self._quiet = 0
        self._cursor = 0
        self._second: asyncio.TimerHandle | None = None
        self._tmp = os.path.join(settings.daemon.state, "tmp")
        os.makedirs(self._tmp, 0o700, exist_ok=True)
        for left in os.listdir(self._tmp):  # of a daemon that was killed; ours alone, for the state folder is locked
            self._empty(os.path.join(self._tmp, left))

    # --- runs ---

    def run(self, task: Task, done: Callable[[Ran], None]) -> None:
        crew = self._crews.get(task.function)
        generation = crew.current if crew is not None else None
        run = task.run

        def finished(ran: Ran) -> None:
            self._seats.pop(run, None)
            done(ran)

        if generation is None or self._closing:
            self._loop.call_soon(self.report, done, self._refusal(task, crew))
            return
        try:
            generation.run(task, finished, lambda seat: self._seats.__setitem__(run, seat))
        except OSError as error:
            ran = Ran(outcome=Outcome.FAILED, version=generation.version.digest)
            ending = ends.Ending(Outcome.FAILED, "Sandbox.Failure", f"a worker cannot be started: {error}")
            ran.payload, ran.error_type, ran.error_message = ending.payload(), ending.error_type, ending.error_message
            self._loop.call_soon(self.report, finished, ran)
        if not self._ticking:
            self.began()

    def _refusal(self, task: Task, crew: Crew | None) -> Ran:
        """What a run without a worker comes to."""
        if self._closing:
            ending = ends.stopped(Outcome.INTERRUPTED)
        elif crew is None:
            ending = ends.Ending(Outcome.FAILED, "Runtime.InvalidEntrypoint", f"there is no function {task.function}")
        elif crew.failure is not None:
            ending = ends.Ending(Outcome.FAILED, *crew.failure)
        else:
            ending = ends.Ending(Outcome.FAILED, "Runtime.InvalidEntrypoint", f"function {task.function} is not loaded yet")
        return Ran(outcome=ending.outcome, payload=ending.payload(), error_type=ending.error_type, error_message=ending.error_message)

    def report(self, done: Callable[[Ran], None], ran: Ran) -> None:
        """Call `done`, fenced: an error in it must not end the worker whose frame we are reading (measured.md 3)."""
        try:
            done(ran)
        except Exception as error:
            self._loop.call_exception_handler({"message": "the callback of a run raised", "exception": error})

    def stop(self, run: str, outcome: Outcome) -> None:
        """As in ports.Pool; an unknown run is one that has ended."""
        seat = self._seats.get(run)
        if seat is not None:
            seat.stop(outcome)

    # --- loading ---

    async def load(self, function: FunctionSettings) -> Loaded:
        """As in ports.Pool. Cancelled: nothing changes, and what was begun is undone."""
        if self._closing:
            raise EventdError("E-DRAINING", f"function {function.name}: the pool is closing")
        crew = self._crews.setdefault(function.name, Crew(function.name))
        async with crew.lock:
            crew.building = True
            try:
                return await self._load(crew, function)
            except EventdError as error:
                crew.error = str(error)
                raise
            finally:
                crew.building = False
                if self._second is None and not self._closing:
                    self._second = self._loop.call_later(_SECOND_S, self._every_second)

    async def _load(self, crew: Crew, function: FunctionSettings) -> Loaded:
        factory = self._runtimes.get(function.runtime)
        if factory is None:
            self._fail(crew, "Runtime.InvalidEntrypoint", f"the runtime {function.runtime!r} is not built yet")
            hint = f"Use one of {', '.join(sorted(self._runtimes))}."
            raise EventdError("E-HANDLER", f"function {function.name}: the runtime {function.runtime!r} is not built yet.", hint)
        version: Version | None = None
        python = ""
        generation: Generation | None = None
        try:
            environ = self._launcher.environ
            secrets = await anyio.to_thread.run_sync(read_secrets, function.name, function.secrets, environ)
            version = await anyio.to_thread.run_sync(self._store.take, function)
            if function.runtime == "python":
                python = await self._deps.ensure(version)
            born = birth(function, python, secrets, version)
            current = crew.current
            if current is not None and current.proven and current.birth == born:
                current.function = function
                crew.error = ""
                crew.failure = None
                await self._let_go(version, python)
                return Loaded(version.digest, False)
            bench = Bench(
                settings=self.settings,
                function=function,
                version=version,
                python=python,
                secrets=secrets,
                launcher=self._launcher,
                warn=self._warn,
                printed=Captured(function.name, "", self.output_per_run, self.on_output).add,
            )
            generation = Generation(self, function, version, factory(bench), arn(self.settings, function.name), born)
            generation.python = python
            await generation.runtime.prepare()
            first = await self._first_worker(generation)
        except BaseException as error:
            if isinstance(error, EventdError):
                self._fail(crew, getattr(error, "error_type", "Runtime.InvalidEntrypoint"), error.message)
            with anyio.CancelScope(shield=True):
                if generation is not None:
                    await self._drop(generation)
                elif version is not None:
                    await self._let_go(version, python)
            raise
        if first is not None:
            self._swap(crew, generation, first)  # even a broken one: each run then tries anew, and meets the right error
            if crew.current is generation:
                raise self._broken(function, first)
            with anyio.CancelScope(shield=True):
                await self._drop(generation)
            raise self._broken(function, first)
        crew.advice = self._advice(generation)
        self._swap(crew, generation, None)
        return Loaded(version.digest, True)

    def _swap(self, crew: Crew, generation: Generation, failed: Ran | None) -> None:
        old = crew.current
        if failed is not None and old is not None and old.proven:
            return
        if failed is None:
            generation.proven = True
            crew.error = ""
        crew.failure = None
        crew.current = generation
        if old is not None:
            self._retire(old)
        generation.keep_up(time.monotonic())

    def _fail(self, crew: Crew, kind: str, message: str) -> None:
        """A load that never came to a worker. A version that works stays; one that never worked gives way to the newer reason."""
        if crew.current is not None and crew.current.proven:
            return
        crew.failure = kind, message[: ends.MESSAGE]
        old, crew.current = crew.current, None
        if old is not None:
            self._retire(old)

    def _broken(self, function: FunctionSettings, ran: Ran) -> EventdError:
        text = (ran.error_message or "").removeprefix("RequestId:  Error: ")
        hint = "Mend it and save: it is loaded again by itself."
        return EventdError("E-HANDLER", f"function {function.name}: {ran.error_type}: {text}", hint)

    async def _first_worker(self, generation: Generation) -> Ran | None:
        """Start one worker to the end of init. None: it is idle now. Else what a run would have met."""
        if not generation.runtime.resident:
            return None
        settled: asyncio.Future[Ran | None] = self._loop.create_future()

        def told(seat: Seat, ran: Ran | None) -> None:
            if not settled.done():
                settled.set_result(ran)

        try:
            generation.seat(told).start()
        except OSError as error:
            folder = self._tmp
            raise EventdError("E-STORAGE", f"{folder}: {error.strerror}", "A worker needs a folder of its own there.") from None
        return await settled

    def _advice(self, generation: Generation) -> str:
        if generation.function.runtime != "python" or generation.function.snapshot:
            return ""
        for seat in generation.idle:
            if seat.worker is not None:
                return advise(seat.init_ms, private(seat.worker.pid))
        return ""

    def _retire(self, generation: Generation) -> None:
        self._retired.add(generation)
        self._spawn(self._drop(generation))

    async def _drop(self, generation: Generation) -> None:
        """Retire a generation, wait for the last of its runs, then end its template and let go of its code."""
        generation.retire()
        await generation.empty.wait()
        await generation.runtime.close()
        await self._let_go(generation.version, generation.python)
        self._retired.discard(generation)

    async def _let_go(self, version: Version, python: str) -> None:
        if python:
            await self._deps.release(version)
        await anyio.to_thread.run_sync(self._store.release, version)

    async def unload(self, name: str) -> None:
        """As in ports.Pool. Returns when its idle workers have been told to end."""
        crew = self._crews.get(name)
        if crew is None:
            return
        async with crew.lock:
            self._crews.pop(name, None)
            if crew.current is not None:
                self._retire(crew.current)

    def view(self, name: str) -> PoolView | None:
        crew = self._crews.get(name)
        if crew is None:
            return None
        idle = busy = starting = 0
        generation = crew.current
        for seat in generation.seats if generation is not None else ():
            idle += seat.place is Place.IDLE
            busy += seat.place is Place.BUSY
            starting += seat.place is Place.STARTING
        version = generation.version.digest if generation is not None else ""
        return PoolView(crew.state, version, crew.error, idle, busy, starting, crew.advice)

    # --- for generations (crew.House) ---

    def spec(self, init_type: str) -> WorkerSpec:
        self._next += 1
        return fresh_spec(self._tmp, f"{self._boot}-{self._next}", init_type)

    def vacated(self, generation: Generation, seat: Seat) -> None:
        self._empty(seat.spec.tmpdir)

    def _empty(self, folder: str) -> None:
        """Remove a TMPDIR; in a thread when it is not empty."""
        try:
            os.rmdir(folder)
        except OSError:
            self._spawn(_remove(folder))

    def began(self) -> None:
        self._quiet = 0
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._tick)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- ticks ---

    def _tick(self) -> None:
        if not self.active:
            self._quiet += 1
            if self._quiet > _QUIET_TICKS:
                self._ticking = False
                return
        else:
            self._quiet = 0
            now = time.monotonic()
            seats = list(self.active)
            for seat in seats:
                seat.check(now)
            looks = 0
            first = self._cursor if self._cursor < len(seats) else 0
            for at in range(len(seats)):
                if looks == _LOOKS:
                    break
                self._cursor = (first + at) % len(seats)
                looks += seats[self._cursor].check_memory(now)
            self._cursor += 1
        self._loop.call_later(TICK_S, self._tick)

    def _every_second(self) -> None:
        self._second = self._loop.call_later(_SECOND_S, self._every_second)
        now = time.monotonic()
        for crew in self._crews.values():
            if crew.current is not None and crew.current.proven:
                crew.current.keep_up(now)

    # --- the end ---

    async def aclose(self) -> None:
        """As in ports.Pool. Runs still on are `interrupted`."""
        self._closing = True
        if self._second is not None:
            self._second.cancel()
        with anyio.CancelScope(shield=True):
            generations = {crew.current for crew in self._crews.values() if crew.current is not None}
            self._crews.clear()
            for generation in generations:
                self._retire(generation)
            for generation in list(self._retired):
                for seat in list(generation.seats):
                    self.active[seat] = None
                    seat.kill()
            self.began()
            with anyio.move_on_after(_END_S):
                while self._tasks:
                    await asyncio.wait(self._tasks)
            await self._launcher.aclose()


async def _remove(folder: str) -> None:
    """Remove a folder whose contents were a handler's: odd modes and vanishing files are expected."""
    await anyio.to_thread.run_sync(shutil.rmtree, folder, True)
