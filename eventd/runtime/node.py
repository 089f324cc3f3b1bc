"""Node.js functions: resident workers over `bootstrap/node_worker.cjs`, and one spare process that has begun before it is needed.

A Node process takes some 50 ms to start and has nothing to fork from. So each version keeps one spare: a process that has loaded
the bootstrap and waits, with no code and no secret of the function in it, in an environment that is already the function's own (a
spare shared by all functions could not honour NODE_OPTIONS, memory or limits that differ). It is made after a worker of the version
became ready, handed over by a START frame when the next is wanted, and let go when none was wanted for the function's `idle` time,
for it holds some 40 MiB. What only one worker has (TMPDIR, log stream, secrets) comes with that frame, so secrets are not
in `/proc/PID/environ` either.

V8 collects garbage only when it must, so without a limit of its own a function would grow into the memory watch with memory it
does not need. The heap's limit is therefore set below the function's; a heap that is really full ends in SIGABRT and a message
on stderr, and that is told as what it is, the end of memory.

A worker that dies of an uncaught exception or rejection says so first, in an error frame marked as its last (`fork` is -1). It
is passed on only when the process is gone, for until then the pool would take the worker for an idle one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import anyio
from msgspec import Struct

from eventd.errors import EventdError
from eventd.model import Outcome
from eventd.runtime import wire
from eventd.runtime.frames import FrameWorker
from eventd.runtime.launcher import BOOTSTRAP, Launcher, Process
from eventd.runtime.sandbox import SpawnPlan, function_environment, spawn_plan, worker_environment
from eventd.runtime.worker import Answer, Bench, Call, Exit, Init, Worker, WorkerEvents, WorkerSpec

SCRIPT = os.path.join(BOOTSTRAP, "node_worker.cjs")
HEADROOM_MIB = 2048
"""RLIMIT_DATA over the memory limit: V8's own threads and what it reserves before it is used. The watch is the true limit."""
SPARE_LEAST_S = 60.0
_WIRE_FD = 3
_LAST_WORDS = -1
_HEAP_FULL = b"JavaScript heap out of memory"
_ABORTED = (signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)
"""How V8 ends the process; which of them depends on its version and build."""
_NO_MEMORY = b'{"errorType":"MemoryError","errorMessage":"JavaScript heap out of memory"}'


class Start(Struct, frozen=True):
    """The body of a START frame: everything a waiting process must know to become this function's worker."""

    name: str
    version: str
    memory: str
    root: str
    entry: str
    handler: str
    environment: dict[str, str]


class NodeRuntime:
    """Implements worker.Runtime for one version of one function."""

    resident = True

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._launcher: Launcher = bench.launcher
        self._loop: asyncio.AbstractEventLoop = bench.launcher.loop
        function, version = bench.function, bench.version
        self._handler = version.handler or f"{os.path.splitext(version.entry)[0]}.handler"
        self._shared = function_environment(
            bench.settings, function, root=version.root, handler=self._handler, environ=self._launcher.environ
        )
        self._node = _find(bench.settings.runtimes.node_path, self._launcher.environ.get("PATH", os.defpath))
        self._spare: NodeWorker | None = None
        self._unclaimed: set[NodeWorker] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def prepare(self) -> None:
        """Look for Node.js. Its version is checked by the bootstrap, whose answer is that of a failed init."""
        if self._node is None:
            name, program = self._bench.function.name, self._bench.settings.runtimes.node_path
            raise EventdError(
                "E-HANDLER",
                f"function {name}: it needs Node.js, and there is no program {program!r}.",
                "Install it (apt install nodejs), or name it with [runtimes.node] path.",
            )

    def start_worker(self, spec: WorkerSpec, events: WorkerEvents) -> Worker:
        """A worker from the spare, else from a new process."""
        first = wire.encode_start(self._start(spec))
        worker, self._spare = self._spare, None
        if worker is not None and worker.claim(first, _Relay(events, self._became_ready)):
            self._unclaimed.discard(worker)
        else:
            worker = NodeWorker(self._loop, _Relay(events, self._became_ready))
            worker.start(self._launch(self._plan(spec.tmpdir)), first)
        self._rest()
        return worker

    async def close(self) -> None:
        """End the spare. When it returns its process is gone."""
        self._closed = True
        self._drop()
        with anyio.CancelScope(shield=True):
            for worker in list(self._unclaimed):
                await worker.gone.wait()

    # --- the spare ---

    def _became_ready(self) -> None:
        if self._spare is None and not self._closed:
            self._loop.call_soon(self._make_spare)

    def _make_spare(self) -> None:
        if self._spare is not None or self._closed:
            return
        worker = NodeWorker(self._loop, _Unclaimed(self._spare_gone))
        self._spare = worker
        self._unclaimed.add(worker)
        worker.start(self._launch(self._plan("")))

    def _spare_gone(self) -> None:
        """Some waiting process has ended: the one in hand is forgotten if it is the one; the next cold start makes another."""
        for worker in [each for each in self._unclaimed if each.ended]:
            self._unclaimed.discard(worker)
            if worker is self._spare:
                self._spare = None

    def _rest(self) -> None:
        """Begin to count anew how long no worker was wanted."""
        if self._timer is not None:
            self._timer.cancel()
        wait = max(self._bench.function.idle_ms / 1000, SPARE_LEAST_S)
        self._timer = None if self._closed else self._loop.call_later(wait, self._drop)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        worker, self._spare = self._spare, None
        if worker is not None:
            worker.kill()

    # --- what a process is started with ---

    def _start(self, spec: WorkerSpec) -> Start:
        function, version = self._bench.function, self._bench.version
        whole = worker_environment(
            self._shared, tmpdir=spec.tmpdir, log_stream=spec.log_stream, init_type=spec.init_type, secrets=self._bench.secrets
        )
        return Start(
            name=function.name,
            version=self._shared["AWS_LAMBDA_FUNCTION_VERSION"],
            memory=str(function.memory_mib),
            root=version.root,
            entry=version.entry,
            handler=version.handler or "",
            environment={name: value for name, value in whole.items() if self._shared.get(name) != value},
        )

    def _plan(self, tmpdir: str) -> SpawnPlan:
        memory = self._bench.function.memory_mib
        flags = [] if "max-old-space-size" in self._shared.get("NODE_OPTIONS", "").replace("_", "-") else [_heap_flag(memory)]
        return spawn_plan(
            argv=(self._node or "node", *flags, SCRIPT, str(_WIRE_FD)),
            env=self._shared,
            root=self._bench.version.root,
            memory_mib=memory,
            tmpdir=tmpdir,
            fds=(_WIRE_FD, 1, 2),
            headroom_mib=HEADROOM_MIB,
        )

    def _launch(self, plan: SpawnPlan) -> Callable[[Sequence[int], Callable[[Process, Exit], None]], Process]:
        return lambda fds, exited: self._launcher.launch(plan, fds, exited)


class NodeWorker(FrameWorker):
    """A frame worker that can be given its owner late (when a spare is claimed), and whose last words wait for its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: _Relay | _Unclaimed) -> None:
        super().__init__(loop, events)
        self._owner = events
        self.gone = anyio.Event()
        """Set when an unclaimed process has ended."""
        if isinstance(events, _Unclaimed):
            events.worker = self

    @property
    def ended(self) -> bool:
        return self._done

    def claim(self, first: bytes, events: _Relay) -> bool:
        """Make a spare somebody's worker. False when it has ended, or is ending, meanwhile."""
        if self._done or self._connection is None:
            return False
        self._events = self._owner = events
        self._send(first)
        return True

    def invoke(self, call: Call) -> None:
        if isinstance(self._owner, _Relay):
            self._owner.n = call.n
        super().invoke(call)

    def _frame(self, frame: wire.Frame) -> None:
        if frame.kind == wire.ERROR and frame.meta.fork == _LAST_WORDS and isinstance(self._owner, _Relay):
            meta = frame.meta
            self._owner.last = Answer(n=meta.n, ok=False, payload=frame.body, ms=meta.ms, cpu_ms=meta.cpu_ms, max_mb=meta.max_mb)
        else:
            super()._frame(frame)


@runtime_checkable
class _Stoppable(Protocol):
    """Who owns the worker can be told that it is leaving, so that no other run is handed to it between its answer and its end."""

    def stop(self, outcome: Outcome) -> None: ...


class _Relay:
    """The pool's events, and what is to be known between two of them."""

    def __init__(self, events: WorkerEvents, became_ready: Callable[[], None]) -> None:
        self._events = events
        self._became_ready = became_ready
        self._heap_full = False
        self.n = 0
        """The run in progress, or 0."""
        self.last: Answer | None = None
        self.failed = events.failed
        self.broke = events.broke

    def ready(self, init: Init) -> None:
        self._events.ready(init)
        self._became_ready()

    def answered(self, answer: Answer) -> None:
        self.n = 0
        self._events.answered(answer)

    def too_large(self) -> None:
        self.n = 0
        self._events.too_large()

    def printed(self, stream: str, data: bytes) -> None:
        if stream == "stderr" and _HEAP_FULL in data:
            self._heap_full = True
        self._events.printed(stream, data)

    def exited(self, exit: Exit) -> None:
        if self.last is None and self._heap_full and exit.signal in _ABORTED and self.n:
            self.last = Answer(n=self.n, ok=False, payload=_NO_MEMORY, ms=0.0, cpu_ms=exit.cpu_ms, max_mb=exit.max_mb)
        if self.last is not None and self.n:
            if isinstance(self._events, _Stoppable):
                self._events.stop(Outcome.INTERRUPTED)
            self._events.answered(self.last)
        self._events.exited(exit)


class _Unclaimed:
    """Nobody's events: a spare says nothing of interest, except that it has ended."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone
        self.worker: NodeWorker | None = None

    def ready(self, init: Init) -> None: ...

    def failed(self, payload: bytes) -> None: ...

    def answered(self, answer: Answer) -> None: ...

    def too_large(self) -> None: ...

    def printed(self, stream: str, data: bytes) -> None: ...

    def broke(self, why: str) -> None:
        if self.worker is not None:
            self.worker.kill()

    def exited(self, exit: Exit) -> None:
        if self.worker is not None:
            self.worker.gone.set()
        self._gone()


def _find(program: str, path: str) -> str | None:
    """The absolute path of the Node.js program, or None."""
    found = shutil.which(program, path=path)
    return os.path.abspath(found) if found else None


def _heap_flag(memory_mib: int) -> str:
    """V8's limit for old objects: room is left for the rest of the process (about 50 MiB) and for what is young."""
    return f"--max-old-space-size={max(32, min(memory_mib * 3 // 4, memory_mib - 64))}"
