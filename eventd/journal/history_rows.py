"""runs.db: its tables, and how records become rows. For people with the sqlite3 shell, so times are text and names are ours.

`runs` has exactly the columns of `model.RunRecord`, in that order: times as RFC 3339 text (UTC, milliseconds, Z, so that text
order is time order), booleans as 0 and 1. `output` holds what handlers printed, whole lines together; `ended` the invocations
that reached their end and left the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_type_hints

from eventd.journal.codec import rfc3339
from eventd.model import RunRecord

HISTORY_SCHEMA: Final = 1

RUN_COLUMNS: Final = RunRecord.__struct_fields__
TIMES: Final = frozenset(name for name in RUN_COLUMNS if name.endswith("_at"))
_HINTS: Final = get_type_hints(RunRecord)
BOOLEANS: Final = frozenset(name for name in RUN_COLUMNS if _HINTS[name] is bool)


def _column(name: str) -> str:
    if name == "run":
        return "run TEXT PRIMARY KEY"
    hint = _HINTS[name]
    if name in TIMES:
        kind = "TEXT"
    elif hint in (int, bool, int | None):
        kind = "INTEGER"
    elif hint in (float, float | None):
        kind = "REAL"
    else:
        kind = "TEXT"
    return f"{name} {kind}"


ENDED_COLUMNS: Final = (
    "invocation", "event", "source", "trigger", "received_at", "bytes", "binding", "function", "end", "reason", "attempts", "settled_at",
)  # fmt: skip

CREATE: Final = (
    f"CREATE TABLE runs({', '.join(map(_column, RUN_COLUMNS))})",
    "CREATE INDEX runs_ended ON runs(ended_at)",
    "CREATE INDEX runs_function ON runs(function, ended_at)",
    "CREATE INDEX runs_invocation ON runs(invocation)",
    "CREATE TABLE output(id INTEGER PRIMARY KEY, at TEXT NOT NULL, function TEXT NOT NULL, run TEXT NOT NULL, stream TEXT NOT NULL,"
    " data BLOB NOT NULL)",
    "CREATE INDEX output_function ON output(function, id)",
    "CREATE INDEX output_run ON output(run, id)",
    'CREATE TABLE ended(invocation TEXT PRIMARY KEY, event TEXT NOT NULL, source TEXT NOT NULL, "trigger" TEXT, received_at TEXT NOT NULL,'
    ' bytes INTEGER NOT NULL, binding TEXT, function TEXT NOT NULL, "end" TEXT NOT NULL, reason TEXT, attempts INTEGER NOT NULL,'
    " settled_at TEXT NOT NULL)",
    "CREATE INDEX ended_received ON ended(received_at, source, event)",
    "CREATE INDEX ended_event ON ended(event)",
    "CREATE INDEX ended_settled ON ended(settled_at)",
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES('output_bytes', 0)",
    f"PRAGMA user_version = {HISTORY_SCHEMA}",
)

INSERT_RUN: Final = f"INSERT OR IGNORE INTO runs VALUES({', '.join('?' * len(RUN_COLUMNS))})"
INSERT_ENDED: Final = f"INSERT OR IGNORE INTO ended VALUES({', '.join('?' * len(ENDED_COLUMNS))})"
INSERT_OUTPUT: Final = "INSERT INTO output(at, function, run, stream, data) VALUES(?, ?, ?, ?, ?)"
OUTPUT_OVERHEAD: Final = 160
"""What a row of output costs beside its text, roughly, with its index entries."""


class Stamps:
    """RFC 3339 text for epoch milliseconds, remembering the seconds: records come in the order of time."""

    def __init__(self) -> None:
        self._seconds: dict[int, str] = {}

    def __call__(self, at: int) -> str:
        second, ms = divmod(at, 1000)
        prefix = self._seconds.get(second)
        if prefix is None:
            if len(self._seconds) >= 1024:
                self._seconds.clear()
            prefix = self._seconds[second] = (rfc3339(second * 1000) or "")[:-4]
        return f"{prefix}{ms:03d}Z"

    def run(self, r: RunRecord) -> tuple[Any, ...]:
        """The row of a run. Written out, because this is the cost of every direct call's record."""
        return (
            r.run, r.invocation, r.event, r.source, r.batch, r.batch_failed, r.function, r.version, r.trigger, r.binding, r.lane,
            r.attempt, r.outcome, r.cold, self(r.received_at), self(r.started_at), self(r.ended_at), r.queue_ms, r.init_ms,
            r.duration_ms, r.billed_ms, r.cpu_ms, r.memory_mb, r.max_memory_mb, r.gb_seconds, r.bytes_in, r.bytes_out,
            r.output_bytes, r.output_truncated, r.exit_status, r.signal, r.error_type, r.error_message, r.worker, r.boot,
        )  # fmt: skip

    def ended(self, ended: Mapping[str, Any]) -> tuple[Any, ...]:
        row = dict(ended)
        row["received_at"] = self(ended["received_at"])
        row["settled_at"] = self(ended["settled_at"])
        return tuple(row[name] for name in ENDED_COLUMNS)
