"""What the dispatcher may be told (`Signal`) and what it may ask of the shell (`Effect`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from eventd.core.facts import Fact, InvocationRow
from eventd.model import Lane, Outcome, Rate, Refusal, Retry, RunRecord

# --- rules: the part of Settings that the dispatcher decides by ---


class FunctionRule(Struct, frozen=True):
    name: str
    concurrency: int
    wait_ms: int = 1_000
    retry: Retry = Retry()
    max_event_age_ms: int = 0
    rate: Rate | None = None
    paused: bool = False


class BindingRule(Struct, frozen=True):
    name: str
    trigger: str
    function: str
    retry: Retry | None = None
    max_event_age_ms: int | None = None
    paused: bool = False
    batch_size: int = 1
    batch_window_ms: int = 0


class Rules(Struct, frozen=True):
    """`triggers` maps a trigger's name to its own cap on runs at once (0: none)."""

    concurrency: int
    functions: Mapping[str, FunctionRule]
    bindings: Mapping[str, BindingRule]
    triggers: Mapping[str, int]


# --- signals ---


class QueueView(Struct, frozen=True):
    """Open invocations of one (binding, function) pair that are on disk, and the earliest due time among them."""

    binding: str | None
    function: str
    open: int
    next_due: int | None


class LostRun(Struct, frozen=True, gc=False):
    """An invocation whose run began before the restart and has no end. Its attempt is counted in `row.attempts`."""

    row: InvocationRow
    run: str
    record: RunRecord | None = None


class Booted(Struct, frozen=True):
    """The journal's view at start. The runs that were going on are lost; there is no other recovery code."""

    queues: tuple[QueueView, ...]
    running: tuple[LostRun, ...]
    paused: tuple[tuple[str, str], ...]
    dead: Mapping[str, int]


class Configured(Struct, frozen=True):
    rules: Rules


class Arrived(Struct, frozen=True, gc=False):
    """Invocations that are durable now. Settled ones among them (skipped, dead at once) are only counted."""

    rows: tuple[InvocationRow, ...]


class Called(Struct, frozen=True, gc=False):
    """A direct call. `call` is the shell's handle. `wait_ms` None: the function's own."""

    call: int
    function: str
    trigger: str | None = None
    binding: str | None = None
    wait_ms: int | None = None


class CallerGone(Struct, frozen=True, gc=False):
    """The caller of a waiting call has gone. A running call goes on: its outcome is still recorded."""

    call: int


class RunEnded(Struct, frozen=True, gc=False):
    """A run's outcome. `failed` names the members (seqs) of a batch that failed although the run succeeded.

    `record` goes into the settling fact of a durable run unchanged (D2); a direct run has none here.
    """

    run: str
    outcome: Outcome
    record: RunRecord | None = None
    error_type: str | None = None
    error_message: str | None = None
    failed: frozenset[int] = frozenset()


class Paged(Struct, frozen=True):
    """The answer to a `Page` effect. `next_due` is the earliest due time beyond these rows, None when there is no more."""

    binding: str | None
    function: str
    rows: tuple[InvocationRow, ...]
    next_due: int | None


class Available(Struct, frozen=True):
    """Whether a function's code may be run now; False while its dependencies are built."""

    function: str
    available: bool


class PauseAsked(Struct, frozen=True):
    kind: str
    name: str
    paused: bool


class CancelAsked(Struct, frozen=True):
    """Rows as read from the journal; those that the dispatcher holds are taken from its own state."""

    rows: tuple[InvocationRow, ...]


class RedriveAsked(Struct, frozen=True):
    """Dead rows to run again: attempts from 0, the same invocation id."""

    rows: tuple[InvocationRow, ...]


class DiscardAsked(Struct, frozen=True):
    rows: tuple[InvocationRow, ...]


class ExpireAsked(Struct, frozen=True):
    """Dead rows older than the history keeps them."""

    rows: tuple[InvocationRow, ...]


class StartsAllowed(Struct, frozen=True):
    """False while draining: what runs may finish, nothing new starts, direct calls are refused."""

    allowed: bool
    calls: bool
    """Whether direct calls are taken."""


class ClockStepped(Struct, frozen=True):
    """The wall clock was set by `step_ms` (negative: back). Due times are brought within their wait (D14)."""

    step_ms: int


class Confirmed(Struct, frozen=True):
    """The answer to `Confirm`: rows read from the journal from now on know of these changes."""

    seqs: tuple[int, ...]


class Tick(Struct, frozen=True):
    """Time has passed: look at what has become due and at calls that have waited too long."""


Signal = (
    Booted | Configured | Arrived | Called | CallerGone | RunEnded | Paged | Available | PauseAsked | CancelAsked | RedriveAsked
    | DiscardAsked | ExpireAsked | StartsAllowed | ClockStepped | Confirmed | Tick
)  # fmt: skip

# --- effects ---


class Member(Struct, frozen=True, gc=False):
    """One invocation inside a run. `attempt` counts this one."""

    seq: int
    id: str
    event: int
    attempt: int
    accepted_at: int
    due_at: int


class Start(Struct, frozen=True, gc=False):
    """Carry out a run. Durable lane: `members`; direct lane: `call`. Answer with `RunEnded`, exactly once."""

    run: str
    lane: Lane
    function: str
    binding: str | None
    trigger: str | None
    members: tuple[Member, ...] = ()
    call: int = 0


class Refuse(Struct, frozen=True, gc=False):
    call: int
    function: str
    refusal: Refusal


class Page(Struct, frozen=True):
    """Read the next rows of a queue from the journal; answer with `Paged`."""

    binding: str | None
    function: str
    after: tuple[int, int]
    upto_due: int
    limit: int


class StopRun(Struct, frozen=True):
    run: str
    outcome: Outcome


class Confirm(Struct, frozen=True):
    """Say `Confirmed` once these changes, made without a run, are durable and every row read before has been used."""

    seqs: tuple[int, ...]


Effect = Start | Refuse | Page | StopRun | Confirm


class Decision(Struct, gc=False):
    """`now` may be carried out at once; `then` only when `facts` are durable."""

    facts: list[Fact]
    now: list[Effect]
    then: list[Effect]


class Dice(Protocol):
    """Chance as an argument."""

    def uniform(self) -> float:
        """In [0, 1)."""
        ...

    def id(self) -> str:
        """A fresh UUIDv7 as text."""
        ...
