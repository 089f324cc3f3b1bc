"""Where each invocation stands after a run: the moves of a settling fact."""

from __future__ import annotations

from collections.abc import Sequence

from eventd.core.facts import Moved
from eventd.core.retry import GiveUp, RetryAt, after
from eventd.core.signals import Dice, RunEnded
from eventd.core.state import Node, Queue
from eventd.model import Outcome, State

INDEFINITE = frozenset({Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.LOST})


def settle_run(members: Sequence[Node], queue: Queue, ended: RunEnded, now: int, dice: Dice) -> list[Moved]:
    """One move per member. After an indefinite end the members of a batch go on one at a time (D5)."""
    alone = len(members) > 1 and ended.outcome in INDEFINITE
    return [_settle(node, queue, ended, now, dice, alone) for node in members]


def _settle(node: Node, queue: Queue, ended: RunEnded, now: int, dice: Dice, solo: bool) -> Moved:
    outcome = ended.outcome
    if outcome is Outcome.SUCCEEDED and node.seq in ended.failed:
        outcome = Outcome.FAILED
    elif outcome is Outcome.CANCELLED and not node.cancelled:
        outcome = Outcome.INTERRUPTED  # another member of this batch was cancelled, not this one
    elif node.cancelled and outcome is not Outcome.SUCCEEDED:
        outcome = Outcome.CANCELLED  # however it was stopped or failed in that moment: it is not retried
    next_step = after(
        outcome,
        attempts=node.attempts,
        lost=node.lost,
        retry=queue.retry,
        accepted_at=node.accepted_at,
        max_age_ms=queue.max_age_ms,
        now=now,
        dice=dice.uniform(),
    )
    if isinstance(next_step, GiveUp):
        return moved(node.seq, next_step, now, ended.error_type, ended.error_message, solo)
    return _again(node.seq, next_step, now, ended.error_type, ended.error_message, solo)


def _again(seq: int, step: RetryAt, now: int, error_type: str | None, error_message: str | None, solo: bool) -> Moved:
    state = State.RETRYING if step.attempts else State.WAITING
    return Moved(seq, state, step.attempts, step.lost, step.due_at, now, None, None, solo, error_type, error_message)


def moved(seq: int, end: GiveUp, now: int, error_type: str | None = None, error_message: str | None = None, solo: bool = False) -> Moved:
    """The move to an end."""
    return Moved(seq, State.SETTLED, end.attempts, end.lost, now, now, end.end, end.reason, solo, error_type, error_message)
