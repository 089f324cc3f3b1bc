"""What the shell needs from the rooms on floor 3, each as a contract. Adapters implement these and do not know each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from eventd.core.facts import Accepted, EventRow, Fact, InvocationRow
from eventd.errors import EventdError
from eventd.model import FunctionSettings, Lane, Outcome, RunRecord


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that is never set."""
        ...


# --- journal ---


class Stored(Struct, frozen=True):
    """An acceptance is durable; or it was a duplicate of `event` (an event id) and only the ledger was written."""

    event: str
    duplicate: bool


class QueueCount(Struct, frozen=True):
    """How many invocations of one (binding, function) pair are open and not running, and the earliest due time."""

    binding: str | None
    function: str
    open: int
    next_due: int | None


class OwedRow(Struct, frozen=True):
    """A settlement that a trigger has not acknowledged yet."""

    seq: int
    trigger: str
    event: str
    key: str | None
    ok: bool


class Boot(Struct, frozen=True):
    """What the journal knows at start. `running` began before the restart and have no end: they are lost."""

    next_event: int
    next_invocation: int
    queues: tuple[QueueCount, ...]
    running: tuple[tuple[InvocationRow, str, int], ...]
    """(row, run id, began_at); `attempts` already counts the lost one."""
    paused: tuple[tuple[str, str], ...]
    owed: tuple[OwedRow, ...]
    dead: Mapping[str, int]
    """Dead invocations per function."""


class OutboxRow(Struct, frozen=True):
    """One ended run (`record`) or ended invocation (`ended`, a plain mapping) on its way to the run history."""

    seq: int
    record: RunRecord | None = None
    ended: Mapping[str, Any] | None = None


class JournalStats(Struct, frozen=True):
    bytes: int
    limit: int
    wal_bytes: int
    overloaded: str
    """Empty, or why events are refused now."""


class Journal(Protocol):
    """Durable tables of the present. One connection, one writer thread, group commit of everything waiting.

    Callbacks run on the event loop, once, in the order of the calls. After a storage error no callback is called any more:
    `failed` is, once, and the daemon stops (promise 3). A full disk is not a storage error: see `accept`.
    """

    failed: Callable[[EventdError], None]

    def accept(self, fact: Accepted, done: Callable[[Stored | EventdError], None]) -> None:
        """Store an acceptance. `done` gets Stored after the fsync, or Overloaded or Conflict, and then nothing was stored.

        Invocations whose state is `settled` (skipped, dead at once) go straight to the outbox or the dead.
        """
        ...

    def append(self, facts: Sequence[Fact], done: Callable[[], None]) -> None:
        """Store facts in one transaction; `done` after the fsync. Uses the reserve when the disk is full."""
        ...

    def page(
        self,
        binding: str | None,
        function: str,
        after: tuple[int, int],
        upto_due: int,
        limit: int,
        done: Callable[[Sequence[InvocationRow], int | None], None],
    ) -> None:
        """Waiting and retrying rows of one queue with (due_at, seq) > `after` and due_at <= `upto_due`, in that order.

        The second value is the earliest due_at beyond what was returned, or None when there is no more.
        """
        ...

    def event(self, seq: int, done: Callable[[EventRow], None]) -> None:
        """An event with its data, its digest checked. A damaged or missing row is a storage failure (E-DAMAGED), never a result."""
        ...


class HistorySink(Protocol):
    """Where finished runs and their output go. Calls return at once; a supervised thread writes in batches."""

    def record(self, record: RunRecord) -> None:
        """A direct-lane record: on disk within 1 s (D2)."""
        ...

    def output(self, chunk: OutputChunk) -> None: ...


# --- workers ---


class Task(Struct, frozen=True, gc=False):
    """One run to be carried out. `event` is the payload as JSON; `trace` is an X-Ray header or empty."""

    run: str
    invocation: str
    function: str
    event: bytes
    lane: Lane
    trace: str = ""
    client_context: str = ""
    """Client context as JSON text, or empty."""
    qualifier: str = ""


class Ran(Struct, kw_only=True, gc=False):
    """How a run went. `payload` is the result as JSON, or Lambda's error payload. Durations in ms, memory in MiB."""

    outcome: Outcome
    payload: bytes = b"null"
    error_type: str | None = None
    error_message: str | None = None
    cold: bool = False
    init_ms: float | None = None
    duration_ms: float = 0.0
    cpu_ms: float = 0.0
    max_memory_mb: int = 0
    output_bytes: int = 0
    output_truncated: bool = False
    exit_status: int | None = None
    signal: int | None = None
    version: str = ""
    worker: str = ""
    tail: bytes = b""
    """The last 4 KiB of what the run printed."""


class OutputChunk(Struct, frozen=True, gc=False):
    """What a worker printed. `run` is empty for output outside any run (init, between runs). `stream`: stdout or stderr."""

    function: str
    run: str
    stream: str
    at: int
    data: bytes


class PoolView(Struct, frozen=True):
    """One function's workers, for status and metrics. `state`: ready, building, broken or missing."""

    state: str
    version: str
    error: str
    idle: int
    busy: int
    starting: int
    advice: str = ""
    """For example the suggestion to use `snapshot` (D29)."""


class Loaded(Struct, frozen=True):
    """A version that started one worker to the end of init. `changed` is False when the code was the same."""

    version: str
    changed: bool


class Pool(Protocol):
    """Workers of all functions. It never queues: who calls `run` has a slot (the dispatcher's caps are the only caps)."""

    def run(self, task: Task, done: Callable[[Ran], None]) -> None:
        """Carry out a run on a warm worker, else a new one. `done` once, on the loop, within timeout + grace + init_timeout.

        A function whose code never loaded gives `failed` with Lambda's `Runtime.*` error type, never an exception.
        """
        ...

    def stop(self, run: str, outcome: Outcome) -> None:
        """End a run early as `cancelled` or `interrupted`: SIGTERM, grace, kill of everything it left."""
        ...

    async def load(self, function: FunctionSettings) -> Loaded:
        """Copy the code (D6), install its dependencies, start one worker to the end of init; then new runs use it.

        Raises EventdError(E-HANDLER or E-BUILD); the version before, if any, stays in use, else runs fail with the cause.
        """
        ...

    async def unload(self, name: str) -> None:
        """Retire a function: idle workers end now, busy ones when their run ends."""
        ...

    def view(self, name: str) -> PoolView | None: ...

    async def aclose(self) -> None:
        """End every worker and template; when it returns no process of theirs is left."""
        ...


# --- looking things up ---


class Query(Struct, frozen=True, kw_only=True):
    """A listing's filters (surface.md, rules for all verbs). Times are epoch ms; the cursor is opaque to callers."""

    limit: int = 50
    cursor: str | None = None
    since: int | None = None
    until: int | None = None
    function: str | None = None
    trigger: str | None = None
    outcomes: tuple[str, ...] = ()
    invocation: str | None = None
    attempt: int | None = None
    state: str | None = None
    reason: str | None = None
    ids: tuple[str, ...] = ()
    payload: bool = False


Json = dict[str, Any]


class Page(Struct, frozen=True):
    """Rows, newest first, and the cursor of the next page or None. Rows are the JSON objects of surface.md."""

    rows: Sequence[Json]
    next: str | None


class JournalReads(Protocol):
    """Bounded reads for people, answered by the writer thread between commits. Same object as the Journal."""

    async def load(self) -> Boot: ...
    async def events(self, query: Query) -> Page: ...
    async def dead(self, query: Query) -> Page: ...
    async def dead_seqs(self, query: Query, limit: int) -> Sequence[InvocationRow]:
        """Dead invocations that a redrive or discard selects."""
        ...

    async def invocations(self, ids: Sequence[str]) -> Sequence[InvocationRow]:
        """Open or dead invocations by their public ids; unknown ones are left out."""
        ...

    async def ledger_get(self, trigger: str, key: bytes) -> bytes | None: ...
    async def ledger_page(self, trigger: str, prefix: bytes, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]: ...
    async def owed(self, trigger: str, after: int, limit: int) -> Sequence[OwedRow]: ...
    async def outbox(self, limit: int) -> Sequence[OutboxRow]: ...
    async def expired_dead(self, before: int, limit: int) -> Sequence[InvocationRow]: ...
    def stats(self) -> JournalStats: ...
    async def aclose(self) -> None:
        """Everything appended before is durable when this returns; then a checkpoint, then the lock is released."""
        ...


class History(HistorySink, Protocol):
    """Run history in its own database, which may be deleted at any time."""

    async def flush(self) -> None:
        """Everything recorded before is on disk when this returns."""
        ...

    async def store(self, rows: Sequence[OutboxRow]) -> None:
        """Copy outbox rows (repeating one changes nothing); durable when it returns."""
        ...

    async def runs(self, query: Query) -> Page: ...
    async def run(self, run: str) -> Json | None: ...
    async def ended(self, query: Query) -> Page:
        """Ended invocations in the shape of the `events` verb, for events that are no longer in the journal."""
        ...

    async def stats(self, query: Query) -> Sequence[Json]:
        """Per function, the columns of the `stats` verb that come from rows (without throttled, open and dead)."""
        ...

    async def logs_after(self, query: Query, lines: int, run: str | None) -> tuple[Sequence[Json], str]:
        """The last `lines` lines, oldest first: {"time","function","run","stream","line"}, and the cursor for what comes after.

        With `query.cursor` the first lines after it.
        """
        ...

    async def aclose(self) -> None: ...


class Control(Protocol):
    """What the CLI and the HTTP API ask of a daemon. The daemon and the client over the socket both are one.

    Every answer is the `--json` object of surface.md; every refusal is an EventdError.
    """

    async def status(self) -> Json: ...
    async def runs(self, query: Query) -> Json: ...
    async def run(self, run: str) -> Json: ...
    async def events(self, query: Query) -> Json: ...
    async def dead(self, query: Query) -> Json: ...
    async def stats(self, query: Query, price: bool = False) -> Json: ...
    async def logs(self, query: Query, lines: int, run: str | None) -> Json:
        """{"lines": [...], "cursor": C}; ask again with `query.cursor=C` for what came since (follow)."""
        ...

    async def invoke(
        self,
        function: str,
        payload: bytes,
        *,
        asynchronous: bool = False,
        id: str | None = None,
        wait_ms: int | None = None,
        tail: bool = False,
    ) -> Json:
        """Synchronous: {"run": record, "result": JSON, "error": bool, "tail": text}; asynchronous: {"event","invocation"}."""
        ...

    async def redrive(self, query: Query, dry_run: bool = False) -> Json: ...
    async def discard(self, query: Query, dry_run: bool = False) -> Json: ...
    async def cancel(self, invocations: Sequence[str]) -> Json: ...
    async def pause(self, kind: str, name: str) -> Json: ...
    async def resume(self, kind: str, name: str) -> Json: ...
    async def reload(self) -> Json: ...
    async def drain(self, *, queue: bool = False, timeout_ms: int | None = None, undo: bool = False) -> Json: ...
    async def metrics(self) -> bytes: ...
    async def health(self) -> tuple[bool, str]:
        """Loop and journal live; and if not, why."""
        ...

    async def readiness(self) -> tuple[bool, str]: ...
