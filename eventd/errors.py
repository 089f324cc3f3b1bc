"""The one place that knows the error codes.

Every problem that a person meets has a code, names the thing it is about and says what to do next. `CODES` gives
each code's exit status, HTTP status and one sentence; the README prints the same table and a test holds them equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means: the CLI's exit status, the control API's HTTP status, and one sentence."""

    exit: int
    http: int
    meaning: str


CODES: Final[dict[str, Code]] = {
    "E-CONFIG": Code(2, 400, "a value in the configuration is wrong"),
    "E-TOML": Code(2, 400, "a configuration file is not valid TOML or not UTF-8"),
    "E-NAME": Code(2, 400, "a function's name is not allowed, or two files claim it"),
    "E-USAGE": Code(2, 400, "the command or request was used wrongly"),
    "E-NOTFOUND": Code(1, 404, "there is no such function, run, event, trigger or binding"),
    "E-FORBIDDEN": Code(1, 403, "the door a request came through does not allow it"),
    "E-CONFLICT": Code(1, 409, "the same event id came with another body, or the thing is in another state"),
    "E-EXISTS": Code(1, 409, "a file is already there and is not overwritten"),
    "E-THROTTLED": Code(1, 429, "the function's concurrency or rate allows no further direct call now"),
    "E-PAUSED": Code(1, 503, "the function, trigger or binding is paused"),
    "E-BUILDING": Code(1, 503, "the function's dependencies are being installed"),
    "E-DRAINING": Code(1, 503, "the daemon is stopping or drained and takes no new work"),
    "E-OVERLOADED": Code(1, 503, "the journal is over its limit, or the disk is nearly full"),
    "E-FUNCTION": Code(1, 502, "the function's code failed"),
    "E-HANDLER": Code(1, 502, "a handler could not be loaded; the last good version, if any, keeps running"),
    "E-BUILD": Code(1, 502, "a function's dependencies could not be installed"),
    "E-TRIGGER": Code(1, 503, "a trigger is degraded and is retried"),
    "E-LISTEN": Code(2, 500, "an address cannot be listened on"),
    "E-NODAEMON": Code(3, 503, "no daemon answers on the control socket"),
    "E-STARTING": Code(3, 503, "the daemon is still starting"),
    "E-LOCKED": Code(4, 503, "another daemon holds this state folder"),
    "E-STORAGE": Code(5, 500, "the journal could not be written or read; the daemon stops rather than go on in doubt"),
    "E-DAMAGED": Code(5, 500, "a stored row does not match its digest; it is never run"),
    "E-SCHEMA": Code(5, 500, "the state folder was written by a newer eventd"),
    "E-INTERNAL": Code(1, 500, "a mistake in eventd itself"),
    "W-CONFIG": Code(0, 200, "the configuration works but something in it is probably not meant"),
    "W-ROOT": Code(0, 200, "the daemon runs as root, and so do all handlers"),
    "W-LOOP": Code(0, 200, "a function seems to feed its own directory trigger"),
    "W-TEMPLATE": Code(0, 200, "a function's imports cannot be shared by fork, so its workers start by plain spawn"),
    "W-JOURNAL": Code(0, 200, "the journal is over 80 % of its limit"),
    "W-CLOCK": Code(0, 200, "the system clock was set by more than one second"),
    "W-WATCH": Code(0, 200, "file change notices are not available here, so the folder is scanned instead"),
}


class EventdError(Exception):
    """A refusal or failure that a person can act on.

    `code` is a key of `CODES`; `message` names the thing; `hint` says what to do next (may be empty).
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code}")
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code} {self.message}" + (f" {self.hint}" if self.hint else "")

    @property
    def exit(self) -> int:
        return CODES[self.code].exit

    @property
    def http(self) -> int:
        return CODES[self.code].http

    def as_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class Overloaded(EventdError):
    """The journal is over its limit or the disk nearly full. Nothing was stored; push back to the source."""

    def __init__(self, message: str, hint: str = "Wait for work to finish, discard dead events, or raise [journal] limit.") -> None:
        super().__init__("E-OVERLOADED", message, hint)


class Conflict(EventdError):
    """The same event identity came with another body. Nothing was stored; the first one stands."""

    def __init__(self, message: str, hint: str = "Use another id for another event.") -> None:
        super().__init__("E-CONFLICT", message, hint)
