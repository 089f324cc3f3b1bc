"""The only door for plugins: everything a trigger may use, ours and a stranger's alike.

A plugin is a value: `plugin = TriggerPlugin(kind="tick", settings=TickSettings, run=run)`, where `settings` is a
pydantic model (unknown keys are errors) and `async def run(site, settings)` lives as long as the trigger. Raising means
degraded: the trigger is restarted with jittered backoff. Being cancelled means: stop intake, at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import Logger, LoggerAdapter
from typing import Any, Protocol

from msgspec import Struct
from pydantic import BaseModel

from eventd.errors import Conflict, EventdError, Overloaded
from eventd.http import Request, Response, Route, gateway
from eventd.http.router import parse_path
from eventd.model import BindingSettings, End, Outcome, Problem, Reason, Refusal
from eventd.settings.fields import Duration, Folder, LocalPath, PluginSettings, SecretRef, Size

__all__ = [
    "Answer", "Batching", "BindingSettings", "Call", "Conflict", "Duration", "End", "Event", "EventdError", "Finding", "Folder",
    "LocalPath", "Outcome", "Overloaded", "PluginSettings", "Problem", "Reason", "Receipt", "Refusal", "Request", "Response",
    "Route", "SecretRef", "Settlement", "Site", "Size", "State", "TriggerPlugin", "gateway", "parse_path",
]  # fmt: skip


class Event(Struct, frozen=True, kw_only=True):
    """Something happened. `data` is the payload every handler receives: a JSON value, or `msgspec.Raw` if already encoded."""

    data: Any
    id: str | None = None
    """Identity within the trigger; a second event with the same id is a duplicate. None: a fresh UUIDv7."""
    key: str | None = None
    """Two events with the same key never run at the same time in one binding."""
    serial: bool = False
    """With `key`: the next one waits until the earlier one is settled, not only until its run ends."""
    max_open: int | None = None
    """Record the invocation as skipped (`overlap`) in any binding that has this many open already."""
    skip: Reason | None = None
    """Record every invocation as skipped at once, with this reason."""
    delay_ms: int = 0
    """Run no earlier than this long after acceptance."""
    fingerprint: bytes | None = None
    """What tells two bodies with one id apart; default: a digest of `data`."""
    notify: bool = False
    """Owe this trigger a `Settlement` when every invocation of the event is settled."""


class Receipt(Struct, frozen=True):
    """The event is durable. `duplicate` means it already was, and nothing new will run."""

    event: str
    duplicate: bool


class Call(Struct, frozen=True, kw_only=True):
    """A direct call: no journal, the caller waits. `invocation` becomes the request id (None: a fresh one)."""

    data: Any
    invocation: str | None = None
    function: str | None = None
    """None: the function of the trigger's only binding, subject to its filter."""


class Answer(Struct, frozen=True):
    """How a direct call ended: an outcome with the handler's JSON (or Lambda's error JSON), or a refusal, or filtered."""

    invocation: str
    outcome: Outcome | None = None
    payload: bytes = b""
    error_type: str | None = None
    error_message: str | None = None
    refusal: Refusal | None = None
    filtered: bool = False


class Settlement(Struct, frozen=True):
    """Every invocation of an event with `notify` is settled. `ok`: none is dead or was cancelled. Repeated until acknowledged."""

    owed: int
    event: str
    key: str | None
    ok: bool


class State(Protocol):
    """The trigger's own durable key-value store. Reads see every write whose emit or put has returned."""

    async def get(self, key: bytes) -> bytes | None: ...

    def items(self, prefix: bytes = b"") -> AsyncIterator[tuple[bytes, bytes]]:
        """All pairs whose key begins with `prefix`, in key order, paged from disk."""
        ...

    async def put(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Durable when it returns; None deletes. One transaction."""
        ...


class Site(Protocol):
    """What a running trigger is lent. One site belongs to one trigger and lives as long as its `run`."""

    name: str
    log: Logger | LoggerAdapter[Logger]
    state: State
    bindings: Sequence[BindingSettings]
    paused: bool
    """Only a plugin with `stays_when_paused` ever sees True."""
    region: str
    account: str
    timezone: str

    async def emit(self, event: Event, *, state: Mapping[bytes, bytes | None] | None = None) -> Receipt:
        """Accept an event. When it returns the event and the ledger writes are on disk, in one transaction.

        A duplicate writes nothing but the ledger. Raises Overloaded (nothing stored), Conflict (same id, other body).
        On cancel the event may or may not have been stored: emit it again with the same id.
        """
        ...

    def offer(
        self,
        event: Event,
        done: Callable[[Receipt | EventdError], None],
        *,
        state: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """`emit` without a task: `done` is called once on the event loop; it must not raise."""
        ...

    async def call(self, call: Call) -> Answer:
        """Run a function now and wait for its answer. Never raises for what the handler does."""
        ...

    def submit(self, call: Call, done: Callable[[Answer], None]) -> Callable[[], None]:
        """`call` without a task. Returns a function that says the caller has gone: a waiting call is dropped."""
        ...

    def new_id(self) -> str:
        """A fresh UUIDv7 as text."""
        ...

    def now(self) -> float:
        """Wall clock, seconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that is never set."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def random(self) -> float:
        """In [0, 1)."""
        ...

    def ready(self) -> None:
        """The source is being read; the trigger is `up`."""
        ...

    def degraded(self, why: str) -> None:
        """Something is wrong but the trigger goes on; shown in status until the next `ready()`."""
        ...

    def warn(self, code: str, message: str) -> None:
        """Log one line with a W- code, at most once a minute for the same code."""
        ...

    def secret(self, ref: str) -> bytes:
        """Read `file:PATH` or `credential:NAME`; one trailing newline is dropped. Raises EventdError(E-CONFIG)."""
        ...

    def route(self, route: Route) -> Callable[[], None]:
        """Serve a path on every `[http]` listener until the returned function is called or the trigger ends."""
        ...

    def settlements(self) -> AsyncIterator[Settlement]:
        """Settlements owed to this trigger, also those from before a restart, in order. Never ends."""
        ...

    async def acknowledge(self, settlement: Settlement, *, state: Mapping[bytes, bytes | None] | None = None) -> None:
        """The settlement has been acted on. Durable, with the ledger writes, when it returns."""
        ...

    def running(self) -> Sequence[str]:
        """The keys of this trigger's events that are running at this moment."""
        ...


class Finding(Struct, frozen=True):
    """What a plugin's own check found. `path` is the key below the trigger's table ("" for the whole table)."""

    path: str
    message: str
    hint: str = ""
    severity: str = "error"
    transient: bool = False
    """It may heal without a new configuration (a folder not mounted yet): refused in `check` and reload, not at boot."""


class Batching(Struct, frozen=True):
    """Up to `size` events whose payloads' `Records` lists are joined into one run, waiting at most `window_ms` for more."""

    size: int = 1
    window_ms: int = 0


def _no_findings(name: str, settings: Any, triggers: Mapping[str, Any]) -> Iterable[Finding]:
    return ()


@dataclass(frozen=True, slots=True)
class TriggerPlugin:
    """A kind of trigger. `check` sees the name, the settings and every trigger's settings of this kind (by name)."""

    kind: str
    settings: type[BaseModel]
    run: Callable[[Site, Any], Awaitable[None]]
    check: Callable[[str, Any, Mapping[str, Any]], Iterable[Finding]] = field(default=_no_findings)
    batching: Callable[[Any], Batching] = field(default=lambda settings: Batching())
    stays_when_paused: bool = False
    direct: Callable[[Any], bool] = field(default=lambda settings: False)
    """Whether the trigger calls its function directly (it must then have exactly one binding)."""
