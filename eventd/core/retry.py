"""What follows an outcome: another attempt at a time, or an end. The one place that knows the retry rules."""

from __future__ import annotations

from msgspec import Struct

from eventd.model import End, Outcome, Reason, Retry

QUARANTINE_AFTER = 3
"""`lost` runs in a row after which an event is taken to kill the daemon (design.md section 4)."""


class RetryAt(Struct, frozen=True, gc=False):
    """Run again, no earlier than `due_at` (epoch ms). `attempts` and `lost` are the counts to keep."""

    due_at: int
    attempts: int
    lost: int


class GiveUp(Struct, frozen=True, gc=False):
    """The invocation has reached its end."""

    end: End
    reason: Reason | None
    attempts: int
    lost: int


def wait_ms(retry: Retry, attempts: int, dice: float = 1.0) -> int:
    """How long to wait after `attempts` attempts; with jitter anywhere in [0, wait] (full jitter), `dice` in [0, 1)."""
    if attempts < 1 or not retry.waits_ms:
        return 0
    wait = retry.waits_ms[min(attempts, len(retry.waits_ms)) - 1]
    return int(wait * dice) if retry.jitter else wait


def after(
    outcome: Outcome, *, attempts: int, lost: int, retry: Retry, accepted_at: int, max_age_ms: int, now: int, dice: float
) -> RetryAt | GiveUp:
    """Decide what follows a run. `attempts` and `lost` count this run already as begun (`lost` not yet as lost).

    An interruption gives the attempt back. The age check looks ahead, as Lambda's does (lambda.md 4.1): an event whose next
    attempt would come after its maximum age is given up at once.
    """
    if outcome is Outcome.SUCCEEDED:
        return GiveUp(End.SUCCEEDED, None, attempts, 0)
    if outcome is Outcome.CANCELLED:
        return GiveUp(End.CANCELLED, None, attempts, lost)
    if outcome is Outcome.INTERRUPTED:
        return RetryAt(now, attempts - 1, lost)
    if outcome is Outcome.LOST:
        lost += 1
        if lost >= QUARANTINE_AFTER:
            return GiveUp(End.DEAD, Reason.QUARANTINED, attempts, lost)
    else:
        lost = 0
    if attempts >= retry.attempts:
        return GiveUp(End.DEAD, Reason.RETRIES_EXHAUSTED, attempts, lost)
    due = now if outcome is Outcome.LOST else now + wait_ms(retry, attempts, dice)
    if max_age_ms and due - accepted_at > max_age_ms:
        return GiveUp(End.DEAD, Reason.EVENT_AGE_EXCEEDED, attempts, lost)
    return RetryAt(due, attempts, lost)
