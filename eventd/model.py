"""The nouns. Everything else in the house speaks in these.

Times are integer milliseconds since the Unix epoch, UTC, in fields named `..._at`; they become RFC 3339 text only at
the edges. Durations are numbers with their unit in the name. Payloads are JSON as bytes: they are read by handlers,
not by the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from msgspec import Struct, field


class Outcome(StrEnum):
    """How one run ended. `definite` outcomes are known to be final for that attempt; unknown is never success."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"

    @property
    def definite(self) -> bool:
        return self in (Outcome.SUCCEEDED, Outcome.FAILED)

    @property
    def uses_attempt(self) -> bool:
        """Whether the run counts towards `retry.attempts`. An interruption by us never does."""
        return self not in (Outcome.INTERRUPTED, Outcome.CANCELLED)


class End(StrEnum):
    """How an invocation ended. Every invocation reaches exactly one."""

    SUCCEEDED = "succeeded"
    DEAD = "dead"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class State(StrEnum):
    """Where an invocation stands. `retrying` waits for its next attempt; `held` waits for a person or a reload."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    HELD = "held"
    SETTLED = "settled"


class Reason(StrEnum):
    """Why an invocation is dead (first five) or was skipped (last two)."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    EVENT_AGE_EXCEEDED = "event_age_exceeded"
    QUARANTINED = "quarantined"
    ZERO_CONCURRENCY = "zero_concurrency"
    RECURSION = "recursion"
    OVERLAP = "overlap"
    CATCH_UP = "catch_up"


class Lane(StrEnum):
    DURABLE = "durable"
    DIRECT = "direct"


class Refusal(StrEnum):
    """Why a direct call was refused. A refusal is an answer and a counter, never a run."""

    CONCURRENCY = "ReservedFunctionConcurrentInvocationLimitExceeded"
    RATE = "ReservedFunctionInvocationRateLimitExceeded"
    PAUSED = "paused"
    BUILDING = "building"
    DRAINING = "draining"
    UNKNOWN = "unknown"
    GONE = "gone"


# --- configuration, as the rest of the house sees it (the settings room makes these from TOML) ---


class Retry(Struct, frozen=True):
    """`attempts` runs in all; before run n+1 wait `waits_ms[n-1]`, the last one repeating."""

    attempts: int = 3
    waits_ms: tuple[int, ...] = (60_000, 120_000)
    jitter: bool = False


class Rate(Struct, frozen=True):
    """At most `count` runs started in any `per_ms` milliseconds."""

    count: int
    per_ms: int


class FunctionSettings(Struct, frozen=True):
    """A function after defaults and discovery. `source` is the absolute file or folder; `runtime` is always known."""

    name: str
    runtime: str = "python"
    source: str = ""
    handler: str | None = None
    command: tuple[str, ...] | None = None
    timeout_ms: int = 60_000
    memory_mib: int = 512
    concurrency: int = 32
    wait_ms: int = 1_000
    provisioned: int = 0
    idle_ms: int = 300_000
    init_timeout_ms: int = 10_000
    grace_ms: int = 2_000
    retry: Retry = Retry()
    max_event_age_ms: int = 0
    rate: Rate | None = None
    on_success: Any = None
    on_failure: Any = None
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    url: bool = False
    snapshot: bool = False
    paused: bool = False
    requirements: str | None = None
    """Absolute path of the requirements file that applies, or None; inline blocks are read from the source."""
    origin: str = "file"
    """`file` (found in the handlers folder), `config` (named in TOML) or `api`."""


class TriggerSettings(Struct, frozen=True):
    """A trigger after validation. `options` is the plugin's own settings model; `digest` changes when they do."""

    name: str
    type: str
    options: Any = None
    digest: str = ""
    paused: bool = False
    concurrency: int = 0


class BindingSettings(Struct, frozen=True):
    """Which events of a trigger go to which function. None in the last four means: as the function says."""

    name: str
    trigger: str
    function: str
    filter: Mapping[str, Any] | None = None
    paused: bool = False
    retry: Retry | None = None
    max_event_age_ms: int | None = None
    on_success: Any = None
    on_failure: Any = None


class DaemonSettings(Struct, frozen=True):
    handlers: str
    plugins: str
    state: str
    concurrency: int = 64
    timezone: str = "UTC"
    drain_timeout_ms: int = 60_000
    region: str = "us-east-1"
    account: str = "000000000000"
    reload: bool = True
    log_level: str = "info"
    log_format: str = "auto"


class HttpSettings(Struct, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:8080",)
    max_body: int = 1_048_576
    max_headers: int = 16_384
    header_timeout_ms: int = 5_000
    body_timeout_ms: int = 15_000
    max_connections: int = 1_024
    trusted_proxies: tuple[str, ...] = ()


class ControlSettings(Struct, frozen=True):
    socket: str
    mode: int = 0o660
    group: str = ""
    listen: tuple[str, ...] = ()
    credentials: tuple[Mapping[str, str], ...] = ()


class JournalSettings(Struct, frozen=True):
    limit: int = 4 * 1024**3
    min_free: int = 256 * 1024**2
    dedup_window_ms: int = 7 * 86_400_000


class HistorySettings(Struct, frozen=True):
    runs_ms: int = 30 * 86_400_000
    runs_limit: int = 1024**3
    dead_ms: int = 30 * 86_400_000
    output: int = 256 * 1024**2
    output_per_run: int = 1024**2


class RuntimeSettings(Struct, frozen=True):
    python_path: str = ""
    """Empty: the interpreter that runs eventd."""
    python_pip_args: tuple[str, ...] = ()
    node_path: str = "node"


class Settings(Struct, frozen=True):
    """One whole configuration, checked. `file` is the absolute path of the main TOML file."""

    file: str
    daemon: DaemonSettings
    control: ControlSettings
    http: HttpSettings = HttpSettings()
    journal: JournalSettings = JournalSettings()
    history: HistorySettings = HistorySettings()
    runtimes: RuntimeSettings = RuntimeSettings()
    functions: Mapping[str, FunctionSettings] = field(default_factory=dict)
    triggers: Mapping[str, TriggerSettings] = field(default_factory=dict)
    bindings: Mapping[str, BindingSettings] = field(default_factory=dict)


class Problem(Struct, frozen=True):
    """One finding of `check`: where it is, what is wrong, what to do. `line` is 0 when it has none."""

    code: str
    severity: str
    file: str
    line: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{self.code} {place}" + (f" {self.path}" if self.path else "") + f": {self.message}"
        return text + (f" {self.hint}" if self.hint else "")


# --- the record of a run ---


class RunRecord(Struct, kw_only=True, gc=False):
    """What one run took. The field names are those of the `runs` table, of `runs --json` and of the JSON log line."""

    run: str
    invocation: str
    event: str
    source: str
    batch: int = 1
    batch_failed: int = 0
    function: str
    version: str
    trigger: str | None
    binding: str | None
    lane: Lane
    attempt: int
    outcome: Outcome
    cold: bool
    received_at: int
    started_at: int
    ended_at: int
    queue_ms: float
    init_ms: float | None
    duration_ms: float
    billed_ms: int
    cpu_ms: float
    memory_mb: int
    max_memory_mb: int
    gb_seconds: float
    bytes_in: int
    bytes_out: int
    output_bytes: int
    output_truncated: bool
    exit_status: int | None
    signal: int | None
    error_type: str | None
    error_message: str | None
    worker: str
    boot: str


# --- how a time is written ---


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def rfc3339(ms: int) -> str:
    """Epoch milliseconds as RFC 3339, UTC, milliseconds, `Z`."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"
