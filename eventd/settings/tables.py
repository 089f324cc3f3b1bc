"""The tables of the TOML surface as pydantic models: every key with its default and a sentence.

Defaults are what the code uses; `config/eventd.toml` and the JSON Schema show the same. Durations are milliseconds here,
sizes bytes, memory MiB.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from eventd.settings.fields import Duration, Folder, LocalPath, SecretRef, Size
from eventd.settings.values import (
    Destination,
    Environment,
    HttpListen,
    Memory,
    Mode,
    Network,
    PositiveDuration,
    PositiveSize,
    RateText,
    TcpListen,
    Timezone,
)


class Table(BaseModel):
    """One TOML table. Unknown keys are errors, and text is never taken for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def parse_filter(value: Any) -> Any:
    """A pattern: a table, or a string holding it as JSON (TOML has no null)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the filter is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("a filter is a table, or a string that holds a JSON object")  # noqa: TRY004  (pydantic takes ValueError)
    return value


Filter = Annotated[
    Any,
    BeforeValidator(parse_filter),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]


class DaemonTable(Table):
    """[daemon]: the whole of it."""

    handlers: Folder = Field(default="handlers", description="The folder of functions: a file dropped here is a function of that name.")
    plugins: Folder = Field(default="plugins", description="The folder of trigger plugins.")
    state: Folder | None = Field(
        default=None, description="Where journal.db and runs.db live. Default: $STATE_DIRECTORY (systemd), else 'state' beside this file."
    )
    concurrency: int = Field(default=64, ge=1, le=100_000, description="Runs at once, over all functions and both lanes.")
    timezone: Timezone = Field(default="UTC", description="The time zone of schedules that have none of their own.")
    drain_timeout: Duration = Field(default=60_000, description="How long running work may take to end after SIGTERM.")
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,32}$", description="The region in ARNs and in AWS_REGION.")
    account: str = Field(default="000000000000", pattern=r"^[0-9]{12}$", description="The account number in ARNs, 12 digits.")
    reload: bool = Field(
        default=True, description="Watch this file, conf.d and the handlers, and load what changed; false: only 'eventd reload' or SIGHUP."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least level that is logged.")
    log_format: Literal["auto", "text", "json"] = Field(default="auto", description="auto is text, on a terminal and under journald.")


class HttpTable(Table):
    """[http]: the front door for webhooks and function URLs."""

    listen: list[HttpListen] = Field(
        default=["127.0.0.1:8080"],
        max_length=64,
        description="HOST:PORT, [::1]:PORT or unix:PATH; all serve the same routes. Sockets from systemd named 'http' replace the list.",
    )
    max_body: Size = Field(default=1_048_576, description="The largest request body; more is answered 413.")
    max_headers: PositiveSize = Field(default=16_384, description="The largest request head; more is answered 431.")
    header_timeout: PositiveDuration = Field(default=5_000, description="How long a client may take to send the request head.")
    body_timeout: PositiveDuration = Field(default=15_000, description="How long a client may take to send the body.")
    max_connections: int = Field(default=1_024, ge=1, le=1_000_000, description="Connections at once, over all listeners.")
    trusted_proxies: list[Network] = Field(
        default=[], max_length=1_000, description="Networks whose X-Forwarded-For and X-Forwarded-Proto are believed."
    )


class CredentialTable(Table):
    """One key pair that may sign requests to the control listeners."""

    id: str = Field(min_length=1, max_length=128, description="The access key id.")
    secret_file: LocalPath = Field(description="The file that holds the secret key; readable by eventd only.")


class ControlTable(Table):
    """[control]: the door for the CLI, boto3, the dashboard and scrapers."""

    socket: LocalPath | None = Field(
        default=None,
        description="The Unix socket of the CLI. Default: $RUNTIME_DIRECTORY/eventd.sock, else eventd.sock in the state folder.",
    )
    mode: Mode = Field(default=0o660, description="The socket's permissions: who may write to it may do everything.")
    group: str = Field(default="", description="The group that owns the socket; empty: eventd's own.")
    listen: list[TcpListen] = Field(
        default=[], max_length=64, description="HOST:PORT for boto3, dashboard and scrapers. Beyond this machine it needs credentials."
    )
    credentials: list[CredentialTable] = Field(default=[], max_length=1_000, description="Key pairs for SigV4: { id, secret_file }.")


class JournalTable(Table):
    """[journal]: how much accepted work is kept."""

    limit: PositiveSize = Field(default=4 * 1024**3, description="Over this size new events are refused until work is done.")
    min_free: Size = Field(default=256 * 1024**2, description="With less free disk than this new events are refused.")
    dedup_window: Duration = Field(
        default=7 * 86_400_000, description="How long the id of a settled event is remembered, to drop duplicates."
    )


class HistoryTable(Table):
    """[history]: how long what happened is kept."""

    runs: PositiveDuration = Field(default=30 * 86_400_000, description="How long run records are kept.")
    runs_limit: PositiveSize = Field(default=1024**3, description="The largest size of runs.db; oldest records go first.")
    dead: PositiveDuration = Field(default=30 * 86_400_000, description="How long dead events are kept for a redrive.")
    output: Size = Field(default=256 * 1024**2, description="Captured output in all; oldest goes first.")
    output_per_run: Size = Field(default=1024**2, description="Captured output per run; the rest is counted and dropped.")


class PythonTable(Table):
    """[runtimes.python]."""

    path: LocalPath | None = Field(
        default=None, description="The Python interpreter. Default: the one that runs eventd, with its packages."
    )
    pip_args: list[str] = Field(default=[], max_length=100, description="Further arguments for pip when dependencies are installed.")


class NodeTable(Table):
    """[runtimes.node]."""

    path: str = Field(default="node", min_length=1, description="The Node.js program: a name looked up in PATH, or a path.")


class RuntimesTable(Table):
    """[runtimes]."""

    python: PythonTable = Field(default=PythonTable(), description="The Python runtime.")
    node: NodeTable = Field(default=NodeTable(), description="The Node.js runtime.")


class RetryTable(Table):
    """`retry = { attempts, waits, jitter }`."""

    attempts: int = Field(default=3, ge=1, le=100, description="Runs in all, the first included.")
    waits: list[Duration] = Field(
        default=[60_000, 120_000], min_length=1, max_length=100, description="Wait before each retry; the last one repeats."
    )
    jitter: bool = Field(default=False, description="Wait a random part of the time instead of all of it.")


class FunctionTable(Table):
    """[functions.NAME]: only what differs from the defaults."""

    handler: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="The entry point, module.function as on Lambda. Default: 'handler', else 'lambda_handler', in the function's file.",
    )
    runtime: Literal["python", "node", "exec", "provided"] | None = Field(
        default=None, description="How the code is run. Default: found from the file."
    )
    path: LocalPath | None = Field(
        default=None, description="The file or folder of the code, when it is not in the handlers folder under this name."
    )
    command: list[str] | None = Field(
        default=None, min_length=1, max_length=1_000, description="The program and its arguments, for the runtimes exec and provided."
    )
    timeout: PositiveDuration = Field(default=60_000, description="The longest a run may take; there is no upper limit.")
    memory: Memory = Field(default=512, description="The memory limit of a worker.")
    concurrency: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Runs at once, a cap. Default: half of [daemon] concurrency. 0: nothing runs, events die at once.",
    )
    wait: Duration = Field(default=1_000, description="How long a direct call may wait for a free slot before it is refused.")
    provisioned: int = Field(default=0, ge=0, le=10_000, description="Workers started when the function is loaded and kept warm.")
    idle: Duration = Field(default=300_000, description="A worker that has had no run for this long goes.")
    init_timeout: PositiveDuration = Field(default=10_000, description="The longest that loading the code may take.")
    grace: Duration = Field(default=2_000, description="From SIGTERM to SIGKILL.")
    retry: RetryTable = Field(default=RetryTable(), description="What follows a failed run of a durable event.")
    max_event_age: Duration = Field(default=0, description="An event older than this is not tried again; 0s: no limit.")
    rate: RateText = Field(default=None, description='Runs started, both lanes: "10/s", "100/m" or "1/h"; empty: no limit.')
    on_success: Destination = Field(
        default=None, description="Who is told of success: function:NAME, https://..., directory:PATH or an amqp table."
    )
    on_failure: Destination = Field(default=None, description="Who is told when an event is dead; written as on_success.")
    environment: Environment = Field(default={}, description="Environment variables of the workers; values are text.")
    secrets: dict[str, SecretRef] = Field(
        default={}, description="Environment variables read from file:PATH or credential:NAME; only workers see them."
    )
    url: bool = Field(default=False, description="Serve the function at /url/NAME/ on every [http] listener.")
    snapshot: bool = Field(default=False, description="Load the handler's module once and fork workers from it (Python).")
    paused: bool = Field(default=False, description="Accept events and hold them; refuse direct calls.")


class TriggerTable(Table):
    """What every [triggers.NAME] may have beside its plugin's own keys."""

    type: str = Field(description="The kind of trigger.")
    function: str | None = Field(default=None, description="The function its events go to: shorthand for one binding.")
    filter: Filter = Field(
        default=None, description="Which events go to that function: an EventBridge pattern, as a table or a JSON string."
    )
    paused: bool = Field(default=False, description="Do not read the source.")
    concurrency: int = Field(default=0, ge=0, le=100_000, description="Runs at once from this source; 0: no cap of its own.")


class BindingTable(Table):
    """[[bindings]]: which events of a trigger go to which function. What is not set here is as the function says."""

    trigger: str = Field(description="The trigger's name.")
    function: str = Field(description="The function's name.")
    name: str | None = Field(default=None, description="The binding's name, unique. Default: TRIGGER/FUNCTION.")
    filter: Filter = Field(default=None, description="Which events: an EventBridge pattern, as a table or a JSON string. Default: all.")
    paused: bool = Field(default=False, description="Accept events and hold them.")
    retry: RetryTable | None = Field(default=None, description="Instead of the function's own retry.")
    max_event_age: Duration | None = Field(default=None, description="Instead of the function's own max_event_age.")
    on_success: Destination = Field(default=None, description="Instead of the function's own on_success.")
    on_failure: Destination = Field(default=None, description="Instead of the function's own on_failure.")


COMMON_TRIGGER_KEYS = tuple(TriggerTable.model_fields)
SECTIONS: dict[str, type[Table]] = {
    "daemon": DaemonTable,
    "http": HttpTable,
    "control": ControlTable,
    "journal": JournalTable,
    "history": HistoryTable,
    "runtimes": RuntimesTable,
}
"""The tables that exist once. `functions`, `triggers` and `bindings` hold many."""
TOP_LEVEL = (*SECTIONS, "functions", "triggers", "bindings")
