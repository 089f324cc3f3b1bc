"""A scripted daemon: the Control protocol over plain lists, for tests of everything that talks to a daemon.

It answers from `rows` that a test puts in, refuses what is not there as a daemon would, and writes down every call. It runs
nothing: `outcome` says how the next invocation goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from eventd.errors import EventdError
from eventd.ports import Json, Query

START = "2026-11-20T10:11:12.345Z"


def run_record(run: str = "run-1", **changes: Any) -> Json:
    """A run record (surface.md, section 6) with every field."""
    record: Json = {
        "run": run, "invocation": f"inv-of-{run}", "event": f"event-of-{run}", "source": "eventd:invoke", "batch": 1, "batch_failed": 0,
        "function": "hello", "version": "0123456789ab", "trigger": None, "binding": None, "lane": "direct", "attempt": 1,
        "outcome": "succeeded", "cold": False, "received_at": START, "started_at": START, "ended_at": START, "queue_ms": 0.1,
        "init_ms": None, "duration_ms": 1.25, "billed_ms": 2, "cpu_ms": 1.0, "memory_mb": 512, "max_memory_mb": 20, "gb_seconds": 0.001,
        "bytes_in": 2, "bytes_out": 4, "output_bytes": 0, "output_truncated": False, "exit_status": None, "signal": None,
        "error_type": None, "error_message": None, "worker": "w1", "boot": "boot-1",
    }  # fmt: skip
    return record | changes


def event_row(event: str = "ev-1", **changes: Any) -> Json:
    row: Json = {"event": event, "source": "eventd:uploads", "trigger": "uploads", "received_at": START, "bytes": 17}
    row["invocations"] = [
        {"invocation": f"inv-of-{event}", "binding": "uploads/hello", "function": "hello", "state": "waiting", "end": None, "reason": None}
        | {"attempts": 0, "due_at": START}
    ]
    return row | changes


def dead_row(invocation: str = "dead-1", **changes: Any) -> Json:
    row: Json = {
        "invocation": invocation, "event": f"event-of-{invocation}", "source": "eventd:uploads", "trigger": "uploads",
        "binding": "uploads/hello", "function": "hello", "reason": "retries_exhausted", "attempts": 3, "first_at": START, "dead_at": START,
        "error_type": "ValueError", "error_message": "no", "bytes": 17,
    }  # fmt: skip
    return row | changes


def status_row(state: str = "ready", **changes: Any) -> Json:
    function: Json = {"function": "hello", "origin": "file", "runtime": "python", "state": "ready", "error": "", "version": "0123456789ab"}
    function |= {"concurrency": 32, "running": 1, "waiting": 2, "workers": 1, "dead": 0}
    row: Json = {"state": state, "version": "0.1.0", "pid": 4242, "boot": "boot-1", "started_at": START}
    row["config"] = {"file": "/srv/site/eventd.toml", "loaded_at": START, "ok": True, "problems": []}
    row["functions"] = [function]
    row["triggers"] = [{"trigger": "uploads", "type": "directory", "state": "up", "error": "", "accepted": 7}]
    row["bindings"] = [{"binding": "uploads/hello", "trigger": "uploads", "function": "hello", "state": "ready"}]
    row["journal"] = {"bytes": 40960, "limit": 4294967296, "open": 3, "owed": 0, "dead": 0}
    return row | {"running": 1, "concurrency": 64} | changes


def stats_row(function: str = "hello", **changes: Any) -> Json:
    spread: Json = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0, "sum": 10.0}
    row: Json = {"function": function, "runs": 5, "succeeded": 4, "failed": 1, "timed_out": 0, "crashed": 0, "out_of_memory": 0, "lost": 0}
    row |= {"interrupted": 0, "cancelled": 0, "throttled": 0, "error_rate": 0.2, "duration_ms": spread, "queue_ms": spread}
    return row | {"init_ms": spread, "cold": 1, "gb_seconds": 0.005, "open": 3, "dead": 0} | changes


class FakeControl:
    """A Control. Set its public attributes; read `calls`, a list of (method, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status_answer = status_row()
        self.run_rows: list[Json] = [run_record(f"run-{n}") for n in (3, 2, 1)]
        self.event_rows: list[Json] = [event_row("ev-2"), event_row("ev-1")]
        self.dead_rows: list[Json] = [dead_row("dead-2"), dead_row("dead-1", function="other", reason="quarantined")]
        self.stats_rows: list[Json] = [stats_row()]
        self.log_lines: list[Json] = []
        self.functions = {"hello", "other"}
        self.outcome = "succeeded"
        self.result = b'{"ok":true}'
        self.tail = "what it printed\n"
        self.drained = "drained"
        self.reload_answer: Json = {"applied": True, "changes": [{"kind": "function", "name": "hello", "action": "keep"}], "problems": []}
        self.refuse: EventdError | None = None
        self.healthy: tuple[bool, str] = (True, "")
        self.ready: tuple[bool, str] = (True, "")

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        if self.refuse is not None:
            raise self.refuse

    async def status(self) -> Json:
        self._call("status")
        return self.status_answer

    async def runs(self, query: Query) -> Json:
        self._call("runs", query)
        return _page("runs", [row for row in self.run_rows if _matches(row, query)], query)

    async def run(self, run: str) -> Json:
        self._call("run", run)
        for row in self.run_rows:
            if row["run"] == run:
                return row
        raise EventdError("E-NOTFOUND", f"there is no run {run!r}", "List them: eventd runs")

    async def events(self, query: Query) -> Json:
        self._call("events", query)
        rows = [row for row in self.event_rows if not query.ids or row["event"] in query.ids]
        return _page("events", [row | {"payload": {"n": 1}} for row in rows] if query.payload else rows, query)

    async def dead(self, query: Query) -> Json:
        self._call("dead", query)
        return _page("dead", self._dead(query), query)

    async def stats(self, query: Query, price: bool = False) -> Json:
        self._call("stats", query, price)
        rows = [row for row in self.stats_rows if query.function in (None, row["function"])]
        return {"since": START, "until": START, "functions": [row | {"price_usd": 0.25} for row in rows] if price else rows}

    async def logs(self, query: Query, lines: int, run: str | None) -> Json:
        """The cursor is the number of lines given out."""
        self._call("logs", query, lines, run)
        seen = int(query.cursor) if query.cursor is not None else max(0, len(self.log_lines) - lines)
        return {"lines": self.log_lines[seen:], "cursor": str(len(self.log_lines))}

    async def invoke(
        self,
        function: str,
        payload: bytes,
        *,
        asynchronous: bool = False,
        id: str | None = None,
        wait_ms: int | None = None,
        tail: bool = False,
    ) -> Json:
        self._call("invoke", function, payload, asynchronous, id, wait_ms, tail)
        name = function.partition(":")[0]
        if name not in self.functions:
            raise EventdError("E-NOTFOUND", f"there is no function {name!r}", "List them: eventd status")
        if asynchronous:
            return {"event": id or "ev-9", "invocation": "inv-9"}
        failed = self.outcome != "succeeded"
        record = run_record("run-9", function=name, outcome=self.outcome)
        if failed:
            record |= {"error_type": "ValueError", "error_message": "no such order"}
        return {"run": record, "result": msgspec.Raw(self.result), "error": failed, "tail": self.tail if tail else ""}

    async def redrive(self, query: Query, dry_run: bool = False) -> Json:
        self._call("redrive", query, dry_run)
        return self._take("redriven", query, dry_run)

    async def discard(self, query: Query, dry_run: bool = False) -> Json:
        self._call("discard", query, dry_run)
        return self._take("discarded", query, dry_run)

    async def cancel(self, invocations: Sequence[str]) -> Json:
        self._call("cancel", tuple(invocations))
        known = {invocation["invocation"] for row in self.event_rows for invocation in row["invocations"]}
        unknown = [invocation for invocation in invocations if invocation not in known]
        if unknown:
            raise EventdError("E-NOTFOUND", f"there is no open invocation {unknown[0]!r}", "List them: eventd events")
        return {"cancelled": len(invocations), "invocations": list(invocations)}

    async def pause(self, kind: str, name: str) -> Json:
        self._call("pause", kind, name)
        return {"kind": kind, "name": name, "paused": True}

    async def resume(self, kind: str, name: str) -> Json:
        self._call("resume", kind, name)
        return {"kind": kind, "name": name, "paused": False}

    async def reload(self) -> Json:
        self._call("reload")
        return self.reload_answer

    async def drain(self, *, queue: bool = False, timeout_ms: int | None = None, undo: bool = False) -> Json:
        self._call("drain", queue, timeout_ms, undo)
        return {"state": "ready" if undo else self.drained, "running": 0 if self.drained == "drained" else 2, "open": 3}

    async def metrics(self) -> bytes:
        self._call("metrics")
        return b"# TYPE eventd_journal_bytes gauge\neventd_journal_bytes 40960.0\n"

    async def health(self) -> tuple[bool, str]:
        self._call("health")
        return self.healthy

    async def readiness(self) -> tuple[bool, str]:
        self._call("readiness")
        return self.ready

    def _dead(self, query: Query) -> list[Json]:
        return [row for row in self.dead_rows if _matches(row, query) and (not query.ids or row["invocation"] in query.ids)]

    def _take(self, done: str, query: Query, dry_run: bool) -> Json:
        taken = self._dead(query)
        if not dry_run:
            self.dead_rows = [row for row in self.dead_rows if row not in taken]
        return {done: len(taken), "invocations": [row["invocation"] for row in taken]}


def _matches(row: Json, query: Query) -> bool:
    wanted = {"function": query.function, "trigger": query.trigger, "reason": query.reason, "invocation": query.invocation}
    wanted["attempt"] = query.attempt  # type: ignore[assignment]
    if query.outcomes and row.get("outcome") not in query.outcomes:
        return False
    return all(value is None or row.get(key) == value for key, value in wanted.items())


def _page(name: str, rows: Sequence[Json], query: Query) -> Json:
    """The cursor is the index of the next row."""
    start = int(query.cursor or 0)
    end = start + query.limit
    return {name: list(rows[start:end]), "next": str(end) if end < len(rows) else None}
