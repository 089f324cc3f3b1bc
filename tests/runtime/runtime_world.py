"""A pool over real processes, for the tests of this folder: handlers written as text, everything gone at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, HistorySettings, Lane, Settings
from eventd.ports import Loaded, OutputChunk, Ran, Task
from eventd.runtime.code import Version
from eventd.runtime.pool import Pool
from eventd.runtime.python import python_runtime


class PlainStore:
    """Code is run from where it lies; the version is what the test says."""

    def __init__(self) -> None:
        self.digest = "0" * 12
        self.held = 0

    def take(self, function: FunctionSettings) -> Version:
        self.held += 1
        source = Path(function.source)
        return Version(function.name, self.digest, str(source.parent), source.name, function.handler, function.runtime, function.source)

    def release(self, version: Version) -> None:
        self.held -= 1


class PlainDeps:
    async def ensure(self, version: Version) -> str:
        return sys.executable

    async def release(self, version: Version) -> None: ...


class World:
    def __init__(self, folder: Path, *, output_per_run: int = 1024**2) -> None:
        self.folder = folder
        self.store = PlainStore()
        self.chunks: list[OutputChunk] = []
        self.warnings: list[tuple[str, str]] = []
        daemon = DaemonSettings(handlers=str(folder), plugins=str(folder), state=str(folder / "state"))
        settings = Settings(
            file="", daemon=daemon, control=ControlSettings(socket=""), history=HistorySettings(output_per_run=output_per_run)
        )
        self.pool = Pool(
            settings,
            boot="abcdefghij",
            store=self.store,
            deps=PlainDeps(),
            runtimes={"python": python_runtime},
            on_output=self.chunks.append,
            warn=lambda code, text: self.warnings.append((code, text)),
            environ={"PATH": os.environ["PATH"], "LD_PRELOAD": "", "NOTIFY_SOCKET": "/run/x", "HOME": "/"},
        )
        self._next = 0

    def write(self, name: str, code: str, file: str | None = None) -> str:
        path = self.folder / name / (file or f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
        return str(path)

    def function(self, name: str, **more: Any) -> FunctionSettings:
        more.setdefault("source", str(self.folder / name / f"{name}.py"))
        return FunctionSettings(name=name, **more)

    async def load(self, name: str, code: str, **more: Any) -> Loaded:
        source = self.write(name, code)
        return await self.pool.load(self.function(name, source=source, **more))

    def task(self, name: str, event: Any = None, **more: Any) -> Task:
        self._next += 1
        n = self._next
        return Task(run=f"run-{n}", invocation=f"id-{n}", function=name, event=json.dumps(event).encode(), lane=Lane.DIRECT, **more)

    def begin(self, name: str, event: Any = None, **more: Any) -> tuple[Task, asyncio.Future[Ran]]:
        task = self.task(name, event, **more)
        future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        self.pool.run(task, future.set_result)
        return task, future

    async def run(self, name: str, event: Any = None, **more: Any) -> Ran:
        _, future = self.begin(name, event, **more)
        return await asyncio.wait_for(future, 30)

    async def value(self, name: str, event: Any = None, **more: Any) -> Any:
        ran = await self.run(name, event, **more)
        assert ran.outcome == "succeeded", ran
        return json.loads(ran.payload)

    def output(self, run: str | None = None, stream: str | None = None) -> bytes:
        return b"".join(it.data for it in self.chunks if (run is None or it.run == run) and stream in (None, it.stream))


@asynccontextmanager
async def world(folder: Path, **more: Any) -> AsyncIterator[World]:
    made = World(folder, **more)
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield made
    finally:
        await made.pool.aclose()
        assert not leftovers(folder), "the pool left processes behind"
        assert made.store.held == 0, "the pool still holds code"
        assert os.listdir(folder / "state" / "tmp") == []
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 2, "the pool left descriptors open"


def leftovers(folder: Path) -> list[int]:
    """Processes whose working folder or environment names this test's folder, ours aside."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(str(folder)):
                    found.append(int(name))
            except OSError:
                continue
    return found


async def until(condition: Callable[[], Any], what: str = "", limit_s: float = 10.0) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what or condition}"
        await asyncio.sleep(0.002)


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
