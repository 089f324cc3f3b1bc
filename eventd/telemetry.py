"""What eventd says about itself in words: its log, and the line that each finished run leaves in it.

Formats of the `REPORT` line and of billing are AWS Lambda's (Developer Guide: "Viewing CloudWatch logs for Lambda functions"
and "Lambda pricing"; INIT is billed for every configuration since 1 August 2025). The counters are in `control/metrics.py`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

import msgspec

from eventd.model import Outcome, RunRecord, rfc3339

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS: Final = ("auto", "text", "json")

# us-east-1, x86, August 2026; the free tier is left out.
_PER_REQUEST_USD: Final = 0.20 / 1_000_000
_TIERS_USD: Final = ((6e9, 0.0000166667), (9e9, 0.000015), (math.inf, 0.0000133334))

_STATUS: Final = {
    Outcome.FAILED: "error",
    Outcome.CRASHED: "error",
    Outcome.OUT_OF_MEMORY: "error",
    Outcome.TIMED_OUT: "timeout",
    Outcome.LOST: "failure",
    Outcome.INTERRUPTED: "failure",
    Outcome.CANCELLED: "failure",
}
_WORDS: Final = {logging.DEBUG: "DEBUG", logging.INFO: "INFO ", logging.WARNING: "WARN ", logging.ERROR: "ERROR", logging.CRITICAL: "FATAL"}
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


# --- time and money ---


def billed_ms(init_ms: float | None, duration_ms: float, *, timeout_ms: int | None = None) -> int:
    """Init and duration together, rounded up to whole milliseconds; of a run that timed out (`timeout_ms`) no more than that.

    Microseconds below the measurement's own precision do not start a new millisecond.
    """
    duration = duration_ms if timeout_ms is None else min(duration_ms, float(timeout_ms))
    return math.ceil(round((init_ms or 0.0) + duration, 3))


def gb_seconds(memory_mb: int, billed: int) -> float:
    """Memory in GiB times billed seconds, as Lambda's price list counts them."""
    return memory_mb / 1024 * billed / 1000


def price_usd(runs: int, gb_s: float) -> float:
    """What Lambda would have asked for these runs in one month, without the free tier."""
    price, left = runs * _PER_REQUEST_USD, gb_s
    for size, rate in _TIERS_USD:
        price += min(left, size) * rate
        left -= min(left, size)
    return price


# --- one run ---


def record_dict(record: RunRecord) -> dict[str, Any]:
    """The run record of surface.md section 6: the same names, times as text."""
    row: dict[str, Any] = msgspec.structs.asdict(record)
    for name in ("received_at", "started_at", "ended_at"):
        row[name] = rfc3339(row[name])
    return row


def record_json(record: RunRecord) -> bytes:
    """`record_dict` as one line of JSON, without its newline. Lone surrogates in an error message become escapes."""
    row = record_dict(record)
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:
        return msgspec.json.encode({key: _utf8(value) if isinstance(value, str) else value for key, value in row.items()})


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def report_line(record: RunRecord) -> str:
    """Lambda's REPORT line with its closing tab and newline; the init duration comes last, and only when the start was cold."""
    line = (
        f"REPORT RequestId: {record.invocation}\tDuration: {record.duration_ms:.2f} ms\tBilled Duration: {record.billed_ms} ms"
        f"\tMemory Size: {record.memory_mb} MB\tMax Memory Used: {record.max_memory_mb} MB\t"
    )
    if record.init_ms is not None:
        line += f"Init Duration: {record.init_ms:.2f} ms\t"
    status = _STATUS.get(record.outcome)
    if status is not None:
        line += f"Status: {status}"
    if status == "error" and record.error_type:
        line += f"\tError Type: {re.sub(r'[^A-Za-z0-9_.]', '_', record.error_type)[:256]}"
    return line + "\n"


class RunLog:
    """Writes one line per finished run to the daemon's log: JSON format = the record, text = the REPORT line and its function.

    Called with whole batches from the thread that stores them, so a run on the loop never waits for the log. A reader of
    the log that went away is not an error.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger("eventd.run")

    def write(self, records: Sequence[RunRecord]) -> None:
        """One write for the whole batch. Nothing at all when the level is above info."""
        if not records or not self._log.isEnabledFor(logging.INFO):
            return
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LogHandler):
                handler.write_runs(records)


# --- the log ---


def setup_logging(log_format: str = "auto", level: str = "info", *, stream: TextIO | None = None) -> LogHandler:
    """Make `stream` (stderr) the one place where log lines go, replacing what was set up before. Returns the handler.

    `auto` and `text` are lines for people: with a time, except under journald, which has its own. `json` is one object a
    line. Raises ValueError for an unknown format or level.
    """
    if log_format not in FORMATS:
        raise ValueError(f"log format {log_format!r} is unknown; one of {', '.join(FORMATS)}")
    if level.lower() not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown; one of {', '.join(LEVELS)}")
    target = stream or sys.stderr
    formatter: TextFormatter | JsonFormatter
    formatter = JsonFormatter() if log_format == "json" else TextFormatter(journald=under_journald(target))
    handler = LogHandler(target, formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, LogHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level.lower()])
    # Libraries speak about themselves in detail; people asked for eventd's details.
    for noisy in ("asyncio", "httpx", "httpcore", "watchfiles", "aio_pika", "aiormq", "apscheduler"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, LEVELS[level.lower()]))
    return handler


def under_journald(stream: TextIO) -> bool:
    """Whether `stream` is the very one that systemd connected to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return device == str(found.st_dev) and inode == str(found.st_ino)


def one_line(text: str) -> str:
    """`text` with control characters made visible and its further lines indented: no message can pass for another's line."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n").rstrip("\n")).replace("\n", "\n    ")


class TextFormatter(logging.Formatter):
    """`2026-11-20T10:11:12.345Z INFO  message`; under journald a syslog priority in place of the time (sd-daemon(3))."""

    def __init__(self, *, journald: bool = False) -> None:
        super().__init__()
        self.journald = journald

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(record.getMessage())
        if record.exc_info:
            text += "\n    " + one_line(self.formatException(record.exc_info))
        return self.line(int(record.created * 1000), record.levelno, text)

    def line(self, at_ms: int, level: int, text: str) -> str:
        name = _WORDS.get(level, "INFO ")
        if not self.journald:
            return f"{rfc3339(at_ms)} {name} {text}"
        priority = 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6 if level >= logging.INFO else 7
        return "\n".join(f"<{priority}>{part}" for part in f"{name} {text}".split("\n"))

    def run(self, record: RunRecord) -> str:
        level = logging.INFO if record.outcome is Outcome.SUCCEEDED else logging.WARNING
        return self.line(record.ended_at, level, f"{record.function} {report_line(record).rstrip()}")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and what the caller gave in `extra`."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        row |= {key: value for key, value in vars(record).items() if key not in self._own and key not in row}
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(row, enc_hook=str).decode("utf-8", "replace")

    def run(self, record: RunRecord) -> str:
        return record_json(record).decode()


class LogHandler(logging.Handler):
    """Writes whole lines to one stream. A stream that cannot be written to any more loses lines, and nothing else."""

    def __init__(self, stream: TextIO, formatter: TextFormatter | JsonFormatter) -> None:
        super().__init__()
        self._stream = stream
        self._format = formatter
        self.lost = 0
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:
            # A message whose arguments do not fit is a mistake of ours; it must not take the daemon down.
            text = self._format.format(
                logging.LogRecord(record.name, record.levelno, "", 0, f"unprintable log message {record.msg!r}: {error!r}", None, None)
            )
        self._write(text + "\n")

    def write_runs(self, records: Sequence[RunRecord]) -> None:
        text = "".join(self._format.run(record) + "\n" for record in records)
        self.acquire()
        try:
            self._write(text)
        finally:
            self.release()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(_utf8(text))
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1
