"""The seam inside the room: what the pool asks of a runtime, and what a worker tells the pool.

A `Runtime` belongs to one version of one function with one set of settings. It starts workers; the pool owns them. Nothing here
is awaited per run (D32): a worker is told with a call and answers by calling its `WorkerEvents`, always on the event loop and
never from inside the call that caused it. Events of one worker come in this order:

    ready | failed | (neither)   then any number of answered   then exited, exactly once, whatever happened before

`printed` may come at any time before `exited`. After `exited` nothing of the worker is left: no process, no descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from eventd.model import FunctionSettings, Settings
from eventd.runtime.code import Version


class CodeStore(Protocol):
    """Where copies of code are (`code.py`). Both calls block on disk; the pool makes them in a thread."""

    def take(self, function: FunctionSettings) -> Version: ...
    def release(self, version: Version) -> None: ...


class Dependencies(Protocol):
    """Where a function's own virtual environment is (`deps.py`)."""

    async def ensure(self, version: Version) -> str:
        """The Python executable to run this version with, held until `release`. May take minutes; raises EventdError(E-BUILD)."""
        ...

    async def release(self, version: Version) -> None: ...


class Call(Struct, frozen=True, gc=False):
    """One run as a worker is told of it. `deadline` is epoch ms; `n` counts the runs of this worker and comes back in the answer.

    `deadline` 0, only for an `eager` runtime: `timeout_ms` after the handler is called.
    """

    n: int
    run: str
    request_id: str
    event: bytes
    deadline: int
    arn: str
    trace: str = ""
    client_context: str = ""
    timeout_ms: int = 0


class Init(Struct, frozen=True, gc=False):
    """A worker is ready. `init_ms` is what loading the code took, without starting the process."""

    init_ms: float = 0.0
    cpu_ms: float = 0.0
    max_mb: int = 0


class Answer(Struct, frozen=True, gc=False, kw_only=True):
    """What a run gave. `payload` is JSON: the result, or, unless `ok`, Lambda's error object. `ms` is the worker's own measure."""

    n: int
    ok: bool
    payload: bytes
    ms: float
    cpu_ms: float
    max_mb: int
    exit_status: int | None = None
    """Only for one process per run: a status that made the run `failed`."""


class Exit(Struct, frozen=True, gc=False):
    """How a process ended: `status` or `signal`; both None when nobody could tell. CPU and peak are the kernel's, of its whole life.

    `error` is a sentence when there never was a process (no such program, no permission, too many processes).
    """

    status: int | None = None
    signal: int | None = None
    cpu_ms: float = 0.0
    max_mb: int = 0
    error: str = ""


class WorkerEvents(Protocol):
    """What a worker tells its owner. None of these may raise."""

    def ready(self, init: Init) -> None: ...

    def failed(self, payload: bytes) -> None:
        """Init failed with Lambda's error object as JSON; the worker exits by itself."""
        ...

    def answered(self, answer: Answer) -> None:
        """All that the run printed has been handed to `printed` before."""
        ...

    def too_large(self) -> None:
        """The answer to the present run is over wire.MAX_PAYLOAD bytes. The worker is usable."""
        ...

    def broke(self, why: str) -> None:
        """What the worker says is no protocol. It must be killed."""
        ...

    def printed(self, stream: str, data: bytes) -> None:
        """`stream` is stdout or stderr; at most 64 KiB at a time."""
        ...

    def exited(self, exit: Exit) -> None: ...


class Worker(Protocol):
    """One worker. All calls return at once and may be made at any time before `exited`; later ones do nothing."""

    @property
    def pid(self) -> int:
        """0 until it is known."""
        ...

    def invoke(self, call: Call) -> None:
        """Hand over one run. Only after `ready`, or at any time for runtimes with one process per run; one at a time."""
        ...

    def quit(self) -> None:
        """Between runs: end soon, by yourself."""
        ...

    def terminate(self) -> None:
        """SIGTERM to the worker's process group."""
        ...

    def kill(self) -> None:
        """SIGKILL to the worker and to everything below it."""
        ...


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """What differs from worker to worker of one version. `tmpdir` exists and is the worker's own."""

    id: str
    tmpdir: str
    log_stream: str
    init_type: str = "on-demand"
    """`on-demand` or `provisioned-concurrency`, as in AWS_LAMBDA_INITIALIZATION_TYPE."""


class Runtime(Protocol):
    """How workers of one version of one function are started. Made by a `RuntimeFactory`."""

    resident: bool
    """False: one process per run. Then the pool calls `invoke` right after `start_worker`, awaits no `ready`, keeps no idle ones.

    A resident runtime may have an attribute `eager = True`: a run that waits for its worker is then handed over before `ready`, which
    saves a cold start one way to and fro; and its worker must count the run's time from the call of the handler.
    """

    async def prepare(self) -> None:
        """Whatever can be done before the first worker (a template, a probe). Raises EventdError(E-HANDLER) when it cannot work.

        Cancelled: everything begun is undone by `close`.
        """
        ...

    def start_worker(self, spec: WorkerSpec, events: WorkerEvents) -> Worker:
        """Start a process. Never raises for what the machine refuses: that is `exited` with an `error`."""
        ...

    async def close(self) -> None:
        """End what `prepare` began (never workers: the pool ended those). When it returns no process of it is left."""
        ...


def _nobody(stream: str, data: bytes) -> None:
    """Nobody listens."""


class Bench(Struct, frozen=True, kw_only=True):
    """Everything a runtime is made from. `launcher` is a `launcher.Launcher`."""

    settings: Settings
    function: FunctionSettings
    version: Version
    python: str
    """The interpreter for Python functions (from `Dependencies`)."""
    secrets: Mapping[str, str]
    """Resolved; only for workers, never for a template, a log line or a record."""
    launcher: Any
    warn: Callable[[str, str], None]
    """(code, sentence): for example W-TEMPLATE."""
    printed: Callable[[str, bytes], None] = _nobody
    """Gets what a process prints that is no worker, as (stream, data): for example the imports in a template."""


RuntimeFactory = Callable[[Bench], Runtime]
"""The pool is given one per word of `FunctionSettings.runtime`."""
