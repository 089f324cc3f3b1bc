"""A refused direct call in words."""

from __future__ import annotations

from eventd.errors import EventdError
from eventd.model import Refusal


def refusal_error(refusal: Refusal, function: str) -> EventdError:
    """A refusal as the error that a person reads."""
    match refusal:
        case Refusal.CONCURRENCY | Refusal.RATE:
            return EventdError(
                "E-THROTTLED", f"function '{function}' is at its limit ({refusal.value}).", "Try again, or raise concurrency, rate or wait."
            )
        case Refusal.PAUSED:
            return EventdError("E-PAUSED", f"function '{function}' is paused.", f"Run: eventd resume function:{function}")
        case Refusal.BUILDING:
            return EventdError("E-BUILDING", f"the dependencies of '{function}' are being installed.", "Try again in a moment.")
        case Refusal.DRAINING:
            return EventdError("E-DRAINING", "the daemon takes no new work.", "Run 'eventd drain --undo', or wait for the restart.")
        case Refusal.UNKNOWN | Refusal.GONE:
            return EventdError("E-NOTFOUND", f"there is no function '{function}'.", "Run 'eventd status' to see all of them.")
