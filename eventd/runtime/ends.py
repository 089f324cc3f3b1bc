"""How the ends of runs read, in Lambda's words (lambda.md 1.5, 2.3). Pure."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from eventd.model import Outcome
from eventd.runtime.wire import MAX_PAYLOAD
from eventd.runtime.worker import Exit

MESSAGE: Final = 1024
"""Characters of an error message that a record keeps."""
_NAMES: Final = {
    1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 5: "trace/breakpoint trap", 6: "aborted", 7: "bus error",
    8: "floating point exception", 9: "killed", 10: "user defined signal 1", 11: "segmentation fault", 12: "user defined signal 2",
    13: "broken pipe", 14: "alarm clock", 15: "terminated", 24: "CPU time limit exceeded", 25: "file size limit exceeded",
    31: "bad system call",
}  # fmt: skip


class Ending(Struct, frozen=True, gc=False):
    """An outcome that the platform, not the handler, has decided."""

    outcome: Outcome
    error_type: str
    error_message: str

    def payload(self) -> bytes:
        """The error object that the caller gets."""
        return msgspec.json.encode({"errorType": self.error_type, "errorMessage": self.error_message})


class Told(msgspec.Struct, frozen=True, gc=False):
    """The part of an error object that a record keeps."""

    errorType: object = None
    errorMessage: object = None


_decode = msgspec.json.Decoder(Told).decode


def read_error(payload: bytes) -> tuple[str, str]:
    """(type, message) of a handler's error object; whatever it is, two strings."""
    try:
        told = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "Runtime.Unknown", ""
    kind = told.errorType if isinstance(told.errorType, str) and told.errorType else "Runtime.Unknown"
    message = told.errorMessage if isinstance(told.errorMessage, str) else ""
    return kind, message[:MESSAGE]


def signal_name(number: int) -> str:
    return _NAMES.get(number, f"signal {number}")


def timed_out(request_id: str, timeout_ms: int) -> Ending:
    return Ending(
        Outcome.TIMED_OUT, "Sandbox.Timedout", f"RequestId: {request_id} Error: Task timed out after {timeout_ms / 1000:.2f} seconds"
    )


def init_timed_out(request_id: str, timeout_ms: int) -> Ending:
    return Ending(
        Outcome.TIMED_OUT, "Sandbox.Timedout", f"RequestId: {request_id} Error: Init timed out after {timeout_ms / 1000:.2f} seconds"
    )


def out_of_memory(request_id: str, limit_mib: int) -> Ending:
    text = f"RequestId: {request_id} Error: Runtime exited with error: signal: killed (memory limit of {limit_mib} MiB)"
    return Ending(Outcome.OUT_OF_MEMORY, "Runtime.OutOfMemory", text)


def stopped(outcome: Outcome) -> Ending:
    """Cancelled by a user, or interrupted by us."""
    return Ending(outcome, "Eventd.Cancelled" if outcome is Outcome.CANCELLED else "Eventd.Interrupted", f"The run was {outcome}.")


def too_large() -> Ending:
    text = f"Response payload size exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes)."
    return Ending(Outcome.FAILED, "Function.ResponseSizeTooLarge", text)


def broke(request_id: str, why: str) -> Ending:
    return Ending(Outcome.CRASHED, "Runtime.Unknown", f"RequestId: {request_id} Error: {why}")


def exited(request_id: str, exit: Exit) -> Ending:
    """The process ended in the middle of a run or of its init."""
    if exit.error:
        return Ending(Outcome.FAILED, "Runtime.InvalidEntrypoint", f"RequestId: {request_id} Error: {exit.error}")
    if exit.signal is not None:
        how = f"with error: signal: {signal_name(exit.signal)}"
    elif exit.status:
        how = f"with error: exit status {exit.status}"
    else:
        how = "without providing a reason"
    return Ending(Outcome.CRASHED, "Runtime.ExitError", f"RequestId: {request_id} Error: Runtime exited {how}")
