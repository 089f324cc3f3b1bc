# ruff: noqa: ASYNC110, ASYNC230
"""Prints what the worker pool costs: a warm call, cold starts, 0 to 500 workers, an idle worker's memory. Not part of the suite.

python tests/bench/bench_pool.py [--quick]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import uvloop

from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, Lane, Settings
from eventd.ports import Ran, Task
from eventd.runtime.code import Version
from eventd.runtime.pool import Pool
from eventd.runtime.python import python_runtime
from eventd.runtime.sweep import proportional

NULL = "def handler(event, context):\n    return event\n"
NOW = "import time\ndef handler(event, context):\n    return time.monotonic()\n"
SLEEP = "import time\ndef handler(event, context):\n    time.sleep(40)\n"


class Store:
    def take(self, function: FunctionSettings) -> Version:
        entry = os.path.basename(function.source)
        return Version(function.name, "0" * 12, os.path.dirname(function.source), entry, function.handler, "python", function.source)

    def release(self, version: Version) -> None: ...


class Deps:
    async def ensure(self, version: Version) -> str:
        return sys.executable

    async def release(self, version: Version) -> None: ...


def task(function: str, n: int) -> Task:
    return Task(run=f"run-{n}", invocation=f"inv-{n}", function=function, event=b'{"n":1}', lane=Lane.DIRECT)


async def call(pool: Pool, function: str, n: int) -> Ran:
    future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
    pool.run(task(function, n), future.set_result)
    return await future


async def warm(pool: Pool, calls: int) -> list[float]:
    """One call after another, callback to callback, as the dispatcher does it; microseconds each."""
    times: list[float] = []
    over = asyncio.get_running_loop().create_future()
    clock: Callable[[], float] = time.perf_counter

    def begin() -> None:
        started = clock()

        def done(ran: Ran) -> None:
            times.append((clock() - started) * 1e6)
            if len(times) < calls:
                asyncio.get_running_loop().call_soon(begin)
            else:
                over.set_result(None)

        pool.run(task("null", len(times)), done)

    begin()
    await over
    return times


def show(what: str, values: list[float], unit: str) -> None:
    values = sorted(values)
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    print(f"{what:<44} p50 {statistics.median(values):9.2f}  p99 {p99:9.2f}  max {values[-1]:9.2f} {unit}  (n={len(values)})")


async def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, code in (("null", NULL), ("now", NOW), ("sleepy", SLEEP)):
            os.mkdir(os.path.join(folder, name))
            with open(os.path.join(folder, name, f"{name}.py"), "w") as file:
                file.write(code)
        state = os.path.join(folder, "state")
        settings = Settings(
            file="", daemon=DaemonSettings(handlers=folder, plugins=folder, state=state), control=ControlSettings(socket="")
        )
        pool = Pool(
            settings,
            boot="bench",
            store=Store(),
            deps=Deps(),
            runtimes={"python": python_runtime},
            on_output=lambda chunk: print(chunk.data.decode(), file=sys.stderr),
            warn=lambda code, text: print(code, text, file=sys.stderr),
        )

        def function(name: str, **more: object) -> FunctionSettings:
            return FunctionSettings(name=name, source=os.path.join(folder, name, f"{name}.py"), **more)  # type: ignore[arg-type]

        started = time.perf_counter()
        await pool.load(function("null"))
        print(f"{'load of the first function':<44} {(time.perf_counter() - started) * 1000:.1f} ms")
        await warm(pool, 500)
        show("warm call, run() to done()", await warm(pool, 2_000 if quick else 20_000), "us")
        await pool.load(function("now"))
        colds: list[float] = []
        held: list[asyncio.Future[Ran]] = []
        for n in range(40 if quick else 200):
            generation = pool._crews["now"].current
            assert generation is not None
            for seat in list(generation.idle):
                generation.idle.remove(seat)
                seat.kill()
            while generation.seats:
                await asyncio.sleep(0.001)
            before = time.monotonic()
            ran = await call(pool, "now", n)
            assert ran.cold, ran
            colds.append((float(ran.payload) - before) * 1000)
        show("cold start, run() to handler called", colds, "ms")
        await pool.load(function("sleepy"))
        started = time.perf_counter()
        count = 100 if quick else 500
        for n in range(count):
            future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
            pool.run(task("sleepy", n), future.set_result)
            held.append(future)
        while (view := pool.view("sleepy")) and view.busy < count:
            await asyncio.sleep(0.005)
        print(f"{f'0 to {count} workers busy':<44} {(time.perf_counter() - started) * 1000:.0f} ms")
        generation = pool._crews["sleepy"].current
        assert generation is not None
        sizes = [proportional(seat.worker.pid) / 2**20 for seat in list(generation.seats)[:20] if seat.worker is not None]
        show("memory of one of them (PSS)", sizes, "MiB")
        started = time.perf_counter()
        await pool.aclose()
        print(f"{'aclose':<44} {(time.perf_counter() - started) * 1000:.0f} ms")


if __name__ == "__main__":
    uvloop.run(main("--quick" in sys.argv))
