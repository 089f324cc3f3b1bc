"""The daemon's own end of the Control interface: what people and programs may ask of it while it runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec

from eventd import __version__
from eventd.control.metrics import Counters, Gauges, render_metrics
from eventd.core import signals as s
from eventd.daemon.engine import Engine, Pending, refusal_error
from eventd.daemon.intake import Intake
from eventd.daemon.listing import merged_events
from eventd.daemon.outbox import Outbox
from eventd.daemon.reload import Reloader
from eventd.daemon.sources import Sources
from eventd.errors import EventdError
from eventd.model import Outcome, Refusal, RunRecord, State
from eventd.ports import History, Json, JournalReads, Page, Pool, Query, Ran
from eventd.sdk import Answer, Receipt
from eventd.telemetry import price_usd, record_dict, report_line, rfc3339

SELECT_MAX = 10_000
"""Dead invocations that one redrive or discard takes; ask again for more."""
STALE_S = 5.0
"""A loop that has not beaten for this long is not healthy."""
DAY_MS = 86_400_000


class Desk:
    """Implements `eventd.ports.Control` in the daemon's process. Every method may be called at any time by many callers."""

    def __init__(
        self, *, engine: Engine, intake: Intake, sources: Sources, pool: Pool, reads: JournalReads, history: History, outbox: Outbox,
        reloader: Reloader, counters: Counters, started_at: int,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.intake = intake
        self.sources = sources
        self.pool = pool
        self.reads = reads
        self.history = history
        self.outbox = outbox
        self.reloader = reloader
        self.counters = counters
        self.started_at = started_at
        self.phase = "starting"
        """starting, ready, draining or drained."""
        self.failed: EventdError | None = None
        self.http: tuple[str, ...] = ()
        self.control: tuple[str, ...] = ()

    # --- how things stand ---

    @property
    def state(self) -> str:
        if self.phase != "ready":
            return self.phase
        degraded = any(self.sources.state(name)[0] == "degraded" for name in self.sources.settings.triggers)
        return "degraded" if degraded or not self.reloader.ok else "ready"

    async def status(self) -> Json:
        settings = self.sources.settings
        stats = self.reads.stats()
        state = self.engine.state
        return {
            "state": self.state,
            "version": __version__,
            "pid": os.getpid(),
            "boot": self.engine.boot,
            "started_at": rfc3339(self.started_at),
            "config": {
                "file": settings.file,
                "loaded_at": rfc3339(self.reloader.loaded_at),
                "ok": self.reloader.ok,
                "problems": [msgspec.to_builtins(problem) for problem in self.reloader.problems],
            },
            "functions": [self._function(name) for name in sorted(settings.functions)],
            "triggers": [self._trigger(name) for name in sorted(settings.triggers)],
            "bindings": [self._binding(name) for name in sorted(settings.bindings)],
            "journal": {
                "bytes": stats.bytes,
                "limit": stats.limit,
                "open": self.engine.open,
                "owed": self.outbox.owed,
                "dead": sum(function.dead for function in state.functions.values()),
            },
            "running": state.running,
            "concurrency": settings.daemon.concurrency,
            "listen": {"http": list(self.http), "control": list(self.control)},
        }

    def _function(self, name: str) -> Json:
        settings = self.sources.settings.functions[name]
        view = self.pool.view(name)
        held = self.engine.state.functions.get(name)
        row: Json = {
            "function": name,
            "origin": settings.origin,
            "runtime": settings.runtime,
            "state": "paused" if held is not None and held.paused else view.state if view is not None else "missing",
            "error": view.error if view is not None else "",
            "version": view.version if view is not None else "",
            "concurrency": settings.concurrency,
            "running": held.running if held is not None else 0,
            "waiting": held.waiting if held is not None else 0,
            "workers": view.idle + view.busy + view.starting if view is not None else 0,
            "dead": held.dead if held is not None else 0,
        }
        if view is not None and view.advice:
            row["advice"] = view.advice
        return row

    def _trigger(self, name: str) -> Json:
        state, error = self.sources.state(name)
        accepted = self.counters.accepted_by.get(name, 0)
        kind = self.sources.settings.triggers[name].type
        return {"trigger": name, "type": kind, "state": state, "error": error, "accepted": accepted}

    def _binding(self, name: str) -> Json:
        settings = self.sources.settings.bindings[name]
        queue = self.engine.state.queues.get((name, settings.function))
        paused = settings.paused or ("binding", name) in self.engine.state.pauses
        state = "paused" if paused else "ready" if queue is not None and queue.active else "held"
        return {"binding": name, "trigger": settings.trigger, "function": settings.function, "state": state}

    async def metrics(self) -> bytes:
        state = self.engine.state
        for name, function in state.functions.items():
            self.counters.function(name).settled = {str(end): count for end, count in function.ends.items()}
        workers: dict[tuple[str, str], int] = {}
        for name in self.sources.settings.functions:
            if (view := self.pool.view(name)) is not None:
                workers |= {(name, "idle"): view.idle, (name, "busy"): view.busy, (name, "starting"): view.starting}
        gauges = Gauges(
            open=state.open_by_function(),
            workers=workers,
            trigger_up={name: self.sources.state(name)[0] == "up" for name in self.sources.settings.triggers},
            journal_bytes=self.reads.stats().bytes,
            owed=self.outbox.owed,
            loop_lag_s=self.engine.lag_s,
        )
        return render_metrics(self.counters, gauges)

    async def health(self) -> tuple[bool, str]:
        if self.failed is not None:
            return False, str(self.failed)
        late = self.engine.clock.monotonic() - self.engine.beat_at
        return (True, "") if late < STALE_S else (False, f"the event loop has not moved for {late:.1f} s")

    async def readiness(self) -> tuple[bool, str]:
        if self.failed is not None:
            return False, str(self.failed)
        return (True, "") if self.phase == "ready" else (False, f"the daemon is {self.phase}")

    # --- looking things up ---

    async def runs(self, query: Query) -> Json:
        await self.outbox.flush()
        return _listed("runs", await self.history.runs(query))

    async def run(self, run: str) -> Json:
        await self.outbox.flush()
        found = await self.history.run(run)
        if found is None:
            raise EventdError("E-NOTFOUND", f"there is no run '{run}'.", "Run 'eventd runs' to see them; old ones are deleted after [history] runs.")
        return found

    async def events(self, query: Query) -> Json:
        await self.outbox.flush()
        page = await merged_events(query, self.reads, self.history, self.engine.state)
        if query.ids and not page.rows:
            raise EventdError("E-NOTFOUND", f"there is no event '{query.ids[0]}'.", "Run 'eventd events' to see them.")
        return _listed("events", page)

    async def dead(self, query: Query) -> Json:
        page = await self.reads.dead(query)
        if query.ids and not page.rows:
            raise EventdError("E-NOTFOUND", f"there is no dead invocation '{query.ids[0]}'.", "Run 'eventd dead' to see them.")
        return _listed("dead", page)

    async def stats(self, query: Query, price: bool = False) -> Json:
        await self.outbox.flush()
        now = self.engine.clock.now_ms()
        since = query.since if query.since is not None else now - DAY_MS
        until = query.until if query.until is not None else now
        if query.function is not None and query.function not in self.sources.settings.functions:
            raise _no_function(query.function)
        rows = [dict(row) for row in await self.history.stats(msgspec.structs.replace(query, since=since, until=until))]
        for row in rows:
            held = self.engine.state.functions.get(row["function"])
            counted = self.counters.functions.get(row["function"])
            row["throttled"] = counted.throttled if counted is not None else 0
            row["open"] = held.open if held is not None else 0
            row["dead"] = held.dead if held is not None else 0
            if price:
                row["price_usd"] = round(price_usd(row["runs"], row["gb_seconds"]), 9)
        return {"since": rfc3339(since), "until": rfc3339(until), "functions": rows}

    async def logs(self, query: Query, lines: int, run: str | None) -> Json:
        await self.outbox.flush()
        if query.function is not None and query.function not in self.sources.settings.functions:
            raise _no_function(query.function)
        shown, cursor = await self.history.logs_after(query, lines, run)
        return {"lines": list(shown), "cursor": cursor}

    # --- asking for work ---

    async def invoke(
        self, function: str, payload: bytes, *, asynchronous: bool = False, id: str | None = None, wait_ms: int | None = None,
        tail: bool = False,
    ) -> Json:  # fmt: skip
        name, _, qualifier = function.partition(":")
        if name not in self.sources.settings.functions or qualifier not in ("", "$LATEST"):
            raise _no_function(function)
        if asynchronous:
            return await self._invoke_async(name, payload, id)
        told: list[tuple[RunRecord, Ran]] = []
        answers: list[Answer] = []
        came = anyio.Event()

        def done(answer: Answer) -> None:
            answers.append(answer)
            came.set()

        clock = self.engine.clock
        pending = Pending(name, payload, self.engine.dice.id(), done, clock.now_ms(), clock.monotonic())
        pending.told = lambda record, ran: told.append((record, ran))
        gone = self.engine.submit(pending, wait_ms)
        try:
            await came.wait()
        except BaseException:
            gone()
            raise
        if answers[0].refusal is not None:
            raise refusal_error(answers[0].refusal, name)
        await asyncio.sleep(0)  # the record is told right after the answer
        record, ran = told[0]
        if record.outcome is Outcome.INTERRUPTED:
            raise refusal_error(Refusal.DRAINING, name)
        try:
            result: Any = msgspec.Raw(answers[0].payload or b"null")
            msgspec.json.decode(result)
        except msgspec.DecodeError:
            result = answers[0].payload.decode("utf-8", "replace")  # for example a bare NaN, which Python's handlers may return
        body: Json = {"run": record_dict(record), "result": result, "error": record.outcome is not Outcome.SUCCEEDED}
        if tail:
            body["tail"] = _tail(record, ran)
        return body

    async def _invoke_async(self, function: str, payload: bytes, id: str | None) -> Json:
        answers: list[Receipt | EventdError] = []
        came = anyio.Event()

        def done(answer: Receipt | EventdError) -> None:
            answers.append(answer)
            came.set()

        invocation = self.engine.dice.id() if id is None else derived_id(function, id)
        self.intake.invoke(function, payload, id=id, invocation=invocation, done=done)
        await came.wait()
        if isinstance(answers[0], EventdError):
            raise answers[0]
        return {"event": answers[0].event, "invocation": invocation}

    async def redrive(self, query: Query, dry_run: bool = False) -> Json:
        rows = await self.reads.dead_seqs(query, SELECT_MAX)
        self._matched(rows, query)
        if not dry_run:
            self.engine.tell(s.RedriveAsked(tuple(rows)))
            await self._stored()
        return {"redriven": len(rows), "invocations": [row.id for row in rows]}

    async def discard(self, query: Query, dry_run: bool = False) -> Json:
        rows = await self.reads.dead_seqs(query, SELECT_MAX)
        self._matched(rows, query)
        if not dry_run:
            self.engine.tell(s.DiscardAsked(tuple(rows)))
            await self._stored()
        return {"discarded": len(rows), "invocations": [row.id for row in rows]}

    def _matched(self, rows: Sequence[Any], query: Query) -> None:
        if not rows:
            raise EventdError("E-NOTFOUND", "no dead invocation matches.", "Run 'eventd dead' to see them.")
        missing = set(query.ids) - {row.id for row in rows}
        if missing:
            raise EventdError("E-NOTFOUND", f"not dead, or unknown: {', '.join(sorted(missing))}.", "Nothing was changed. Run 'eventd dead'.")

    async def cancel(self, invocations: Sequence[str]) -> Json:
        rows = await self.reads.invocations(invocations)
        live = tuple(row for row in rows if row.state is not State.SETTLED)
        missing = set(invocations) - {row.id for row in live}
        if missing:
            raise EventdError("E-NOTFOUND", f"not open: {', '.join(sorted(missing))}.", "Nothing was cancelled. Run 'eventd events --state waiting'.")
        self.engine.tell(s.CancelAsked(live))
        await self._stored()
        return {"cancelled": len(live), "invocations": [row.id for row in live]}

    async def pause(self, kind: str, name: str) -> Json:
        return await self._pause(kind, name, True)

    async def resume(self, kind: str, name: str) -> Json:
        return await self._pause(kind, name, False)

    async def _pause(self, kind: str, name: str, paused: bool) -> Json:
        settings = self.sources.settings
        table: Any = {"function": settings.functions, "trigger": settings.triggers, "binding": settings.bindings}[kind]
        if name not in table:
            raise EventdError("E-NOTFOUND", f"there is no {kind} '{name}'.", "Run 'eventd status' to see them.")
        if not paused and table[name].paused:
            raise EventdError("E-CONFLICT", f"{kind} '{name}' is paused by the configuration.", "Set paused = false there.")
        self.engine.tell(s.PauseAsked(kind, name, paused))
        await self._stored()
        if kind == "trigger":
            await self.sources.refresh(name)
        return {"paused" if paused else "resumed": f"{kind}:{name}"}

    async def reload(self) -> Json:
        return await self.reloader.reload()

    async def drain(self, *, queue: bool = False, timeout_ms: int | None = None, undo: bool = False) -> Json:
        if undo:
            self.intake.open = True
            self.engine.tell(s.StartsAllowed(True, True))
            self.sources.unhalt()
            self.phase = "ready"
            return {"state": self.state}
        self.phase = "draining"
        self.intake.open = False
        await self.sources.halt()
        self.engine.tell(s.StartsAllowed(queue, False))
        timeout = timeout_ms / 1000 if timeout_ms is not None else None
        with anyio.move_on_after(timeout) as scope:
            await self._until(lambda: not self.engine.open) if queue else await self.engine.quiet()
        if scope.cancelled_caught:
            raise EventdError(
                "E-CONFLICT", f"{self.engine.state.running} runs are still going on and {self.engine.open} invocations are open.",
                "The daemon goes on draining. Ask again, or run 'eventd drain --undo'.",
            )  # fmt: skip
        self.engine.tell(s.StartsAllowed(False, False))
        await self.outbox.flush()
        self.phase = "drained"
        return {"state": "drained", "open": self.engine.open}

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self.engine.changed()

    async def _stored(self) -> None:
        """Everything told so far is durable when this returns."""
        stored = anyio.Event()
        self.engine.journal.append([], stored.set)
        await stored.wait()


def derived_id(function: str, id: str) -> str:
    """The invocation id of an asynchronous invoke with an id of the caller's: the same again for the same id (a name-based UUID)."""
    import uuid  # noqa: PLC0415 - only idempotent invokes need it

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"eventd:invoke/{function}/{id}"))


def _listed(name: str, page: Page) -> Json:
    return {name: list(page.rows), "next": page.next}


def _no_function(name: str) -> EventdError:
    return EventdError("E-NOTFOUND", f"there is no function '{name}'.", "Run 'eventd status' to see all of them.")


def _tail(record: RunRecord, ran: Ran) -> str:
    printed = ran.tail.decode("utf-8", "replace")
    if printed and not printed.endswith("\n"):
        printed += "\n"
    version = "$LATEST"
    start = f"START RequestId: {record.invocation} Version: {version}\n"
    return f"{start}{printed}END RequestId: {record.invocation}\n{report_line(record)}"
