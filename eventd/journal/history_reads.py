"""What people ask of the run history. Each question has a read-only connection of its own, so a long one delays no record.

A question that takes longer than `PATIENCE` seconds is given up with E-USAGE; every listing is bounded by its limit.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from eventd.errors import EventdError
from eventd.journal.codec import rfc3339
from eventd.journal.history_rows import BOOLEANS, ENDED_COLUMNS, RUN_COLUMNS
from eventd.model import Outcome
from eventd.ports import Json, Page, Query

PATIENCE: Final = 20.0
_KEYS: Final = 400
_LOG_BYTES: Final = 8 * 1024**2
_RUN: Final = ", ".join(RUN_COLUMNS)
_ENDED: Final = ", ".join(f'"{name}"' for name in ENDED_COLUMNS)


class HistoryReads:
    """Questions to the runs.db at `path`. Thread-safe; each call blocks its thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _ask(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        give_up = time.monotonic() + PATIENCE
        try:
            with closing(apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the writer's business
                connection.set_busy_timeout(2000)
                connection.set_progress_handler(lambda: time.monotonic() > give_up, 20_000)
                return connection.execute(sql, tuple(bindings)).fetchall()
        except apsw.InterruptError:
            raise EventdError(
                "E-USAGE", f"the run history had no answer within {PATIENCE:.0f} s.", "Narrow the question, for example with --since."
            ) from None
        except apsw.Error as error:
            raise EventdError("E-STORAGE", f"{self._path} cannot be read: {error}.", "It may be deleted; a new one is made.") from error

    def runs(self, query: Query) -> Page:
        where, bindings = _filters(
            query, "ended_at", {"function": query.function, '"trigger"': query.trigger, "invocation": query.invocation}
        )
        _among(where, bindings, "outcome", query.outcomes)
        _among(where, bindings, "run", query.ids)
        if query.attempt is not None:
            where.append("attempt = ?")
            bindings.append(query.attempt)
        if query.cursor is not None:
            where.append("(ended_at, rowid) < (?, ?)")
            bindings += _open_cursor(query.cursor, str, int)
        sql = f"SELECT rowid, {_RUN} FROM runs{_where(where)} ORDER BY ended_at DESC, rowid DESC LIMIT ?"  # noqa: S608
        rows = self._ask(sql, [*bindings, query.limit + 1])
        found = [_run_json(row[1:]) for row in rows[: query.limit]]
        more = len(rows) > query.limit
        return Page(found, _cursor(found[-1]["ended_at"], rows[query.limit - 1][0]) if more else None)

    def run(self, run: str) -> Json | None:
        rows = self._ask(f"SELECT {_RUN} FROM runs WHERE run = ?", (run,))  # noqa: S608
        return _run_json(rows[0]) if rows else None

    def ended(self, query: Query) -> Page:
        """Events, newest first, with all their ended invocations; filters on invocations ask for at least one that meets them."""
        if query.state not in (None, "settled"):
            return Page([], None)
        names = {"function": query.function, '"trigger"': query.trigger, "invocation": query.invocation, "reason": query.reason}
        where, bindings = _filters(query, "received_at", names)
        _among(where, bindings, "event", query.ids)
        _among(where, bindings, '"end"', query.outcomes)
        if query.cursor is not None:
            where.append("(received_at, source, event) < (?, ?, ?)")
            bindings += _open_cursor(query.cursor, str, str, str)
        order = "ORDER BY received_at DESC, source DESC, event DESC LIMIT ?"
        keys = self._ask(f"SELECT DISTINCT received_at, source, event FROM ended{_where(where)} {order}", [*bindings, query.limit + 1])  # noqa: S608
        wanted = keys[: query.limit]
        found: dict[tuple[Any, ...], Json] = {}
        for start in range(0, len(wanted), _KEYS):
            keys_now = wanted[start : start + _KEYS]
            found.update({key: {} for key in keys_now})
            marks = ", ".join(["(?, ?, ?)"] * len(keys_now))
            sql = f"SELECT {_ENDED} FROM ended WHERE (received_at, source, event) IN (VALUES {marks}) ORDER BY rowid"  # noqa: S608
            for row in self._ask(sql, [part for key in keys_now for part in key]):
                ended = dict(zip(ENDED_COLUMNS, row, strict=True))
                _add_ended(found[ended["received_at"], ended["source"], ended["event"]], ended)
        return Page(list(found.values()), _cursor(*wanted[-1]) if len(keys) > query.limit else None)

    def stats(self, query: Query) -> list[Json]:
        """Per function: counts by outcome and exact percentiles (nearest rank) of duration, queue wait and init."""
        where, bindings = _filters(query, "ended_at", {"function": query.function, '"trigger"': query.trigger})
        counts = ", ".join(f"sum(outcome = '{outcome.value}')" for outcome in Outcome)
        rows = self._ask(
            f"SELECT function, count(*), {counts}, sum(cold), sum(gb_seconds) FROM runs{_where(where)} GROUP BY function",  # noqa: S608
            bindings,
        )
        spread = {metric: self._spread(metric, where, bindings) for metric in ("duration_ms", "queue_ms", "init_ms")}
        found: list[Json] = []
        for function, runs, *rest in rows:
            outcomes = dict(zip((outcome.value for outcome in Outcome), rest, strict=False))
            judged = runs - outcomes["interrupted"] - outcomes["cancelled"]
            row: Json = {"function": function, "runs": runs, **outcomes}
            row["error_rate"] = round((judged - outcomes["succeeded"]) / judged, 6) if judged else 0.0
            for metric, by_function in spread.items():
                row[metric] = by_function.get(function, {"p50": None, "p95": None, "p99": None, "max": None, "sum": 0.0})
            row["cold"], row["gb_seconds"] = rest[-2], rest[-1]
            found.append(row)
        return found

    def _spread(self, metric: str, where: Sequence[str], bindings: Sequence[Any]) -> dict[str, Json]:
        ranks = ", ".join(f"max(CASE WHEN n = (c * {p} + 99) / 100 THEN v END)" for p in (50, 95, 99))
        rows = self._ask(
            f"WITH r AS (SELECT function AS f, {metric} AS v, row_number() OVER (PARTITION BY function ORDER BY {metric}) AS n,"  # noqa: S608
            f" count(*) OVER (PARTITION BY function) AS c FROM runs{_where([*where, f'{metric} IS NOT NULL'])})"
            f" SELECT f, {ranks}, max(v), sum(v) FROM r GROUP BY f",
            bindings,
        )
        return {f: {"p50": p50, "p95": p95, "p99": p99, "max": top, "sum": total} for f, p50, p95, p99, top, total in rows}

    def logs(self, query: Query, lines: int, run: str | None) -> tuple[list[Json], str]:
        """The last `lines` lines, oldest first, and a cursor. With a cursor: the first `lines` lines after it."""
        where, bindings = _filters(query, "at", {"function": query.function, "run": run})
        after = 0
        if query.cursor is not None:
            (after,) = _open_cursor(query.cursor, int)
            where.append("id > ?")
            bindings.append(after)
        forward = query.cursor is not None
        top = int(self._ask("SELECT coalesce(max(id), 0) FROM output")[0][0])
        if not forward:
            where.append("id <= ?")  # what is printed meanwhile comes after the cursor
            bindings.append(top)
        found: list[list[Json]] = []
        count = size = 0
        while count < lines and size < _LOG_BYTES:
            order = "ASC" if forward else "DESC"
            columns = "id, at, function, run, stream, data"
            sql = f"SELECT {columns} FROM output{_where(where)} ORDER BY id {order} LIMIT 200"  # noqa: S608
            rows = self._ask(sql, bindings)
            for id, at, function, of_run, stream, data in rows:
                texts = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
                found.append([{"time": at, "function": function, "run": of_run or None, "stream": stream, "line": text} for text in texts])
                count += len(texts)
                size += len(data)
                after = id
                if count >= lines:
                    break
            if len(rows) < 200:
                if count < lines:
                    after = max(after, top)
                break
            where, bindings = _next_slice(where, bindings, after, forward)
        if forward:
            # Whole rows only, so that the cursor loses nothing: this may be a few lines more than asked for.
            return [line for chunk in found for line in chunk], _cursor(max(after, 0))
        return [line for chunk in reversed(found) for line in chunk][-lines:], _cursor(top)


def _next_slice(where: Sequence[str], bindings: Sequence[Any], last: int, forward: bool) -> tuple[list[str], list[Any]]:
    test = "id > ?" if forward else "id < ?"
    kept = [(w, b) for w, b in zip(where, bindings, strict=True) if not w.startswith("id ")]
    return [w for w, _ in kept] + [test], [b for _, b in kept] + [last]


def _add_ended(event: Json, ended: Json) -> None:
    if not event:
        event.update({name: ended[name] for name in ("event", "source", "trigger", "received_at", "bytes")}, invocations=[])
    event["invocations"].append(
        {
            "invocation": ended["invocation"], "binding": ended["binding"], "function": ended["function"], "state": "settled",
            "end": ended["end"], "reason": ended["reason"], "attempts": ended["attempts"], "due_at": None,
        }
    )  # fmt: skip


def _run_json(row: Sequence[Any]) -> Json:
    found = dict(zip(RUN_COLUMNS, row, strict=True))
    for name in BOOLEANS:
        found[name] = bool(found[name])
    return found


def _filters(query: Query, time_column: str, equal: dict[str, str | None]) -> tuple[list[str], list[Any]]:
    """One condition per binding, in step."""
    where: list[str] = []
    bindings: list[Any] = []
    for column, value in equal.items():
        if value is not None:
            where.append(f"{column} = ?")
            bindings.append(value)
    for test, at in ((f"{time_column} >= ?", query.since), (f"{time_column} < ?", query.until)):
        if at is not None:
            where.append(test)
            bindings.append(rfc3339(at))
    return where, bindings


def _among(where: list[str], bindings: list[Any], column: str, values: Sequence[str]) -> None:
    if values:
        where.append(f"{column} IN ({', '.join('?' * len(values))})")
        bindings += values


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _cursor(*parts: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).rstrip(b"=").decode()


def _open_cursor(cursor: str, *kinds: type) -> list[Any]:
    """The parts of a cursor that we gave out. Raises E-USAGE for anything else."""
    try:
        parts = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (ValueError, msgspec.DecodeError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise EventdError("E-USAGE", f"{cursor[:80]!r} is not a cursor of this listing.", "Pass the `next` of the page before, unchanged.")
    return parts
