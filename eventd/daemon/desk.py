"""The daemon's own end of the Control interface: what people and programs may ask of it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec

from eventd.control.metrics import Counters
from eventd.core import signals as s
from eventd.daemon.engine import Engine, Pending
from eventd.daemon.intake import Intake, encoded
from eventd.daemon.listing import merged_events
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.outbox import Outbox
from eventd.daemon.refusals import refusal_error
from eventd.daemon.reload import Reloader
from eventd.daemon.sources import Sources
from eventd.daemon.standing import Standing
from eventd.errors import EventdError
from eventd.model import Outcome, Refusal, RunRecord, State, rfc3339
from eventd.ports import History, JournalReads, Json, Page, Pool, Query, Ran
from eventd.sdk import Answer, Receipt
from eventd.telemetry import price_usd, record_dict, report_line

SELECT_MAX = 10_000
"""Dead invocations that one redrive or discard takes; ask again for more."""
DAY_MS = 86_400_000


class Desk(Standing):
    """Implements `eventd.ports.Control` in the daemon's process. Every method may be called at any time by many callers."""

    def __init__(
        self, *, engine: Engine, intake: Intake, sources: Sources, pool: Pool, reads: JournalReads, history: History, outbox: Outbox,
        reloader: Reloader, counters: Counters, started_at: int, mistakes: Mistakes | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            engine=engine, sources=sources, pool=pool, reads=reads, reloader=reloader, counters=counters, started_at=started_at,
            mistakes=mistakes,
        )  # fmt: skip
        self.intake = intake
        self.history = history
        self.outbox = outbox

    def _begun(self) -> None:
        """What the journal holds is known only once the start is over: before that nothing is run or changed."""
        if self.phase == "starting":
            raise EventdError("E-STARTING", "the daemon is still starting.", "Ask again in a moment.")

    # --- looking things up ---

    async def runs(self, query: Query) -> Json:
        await self.outbox.flush()
        return _listed("runs", await self.history.runs(query))

    async def run(self, run: str) -> Json:
        await self.outbox.flush()
        found = await self.history.run(run)
        if found is None:
            hint = "Run 'eventd runs' to see them; old ones are deleted after [history] runs."
            raise EventdError("E-NOTFOUND", f"there is no run '{run}'.", hint)
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
        self._begun()
        name, _, qualifier = function.partition(":")
        if name not in self.sources.settings.functions or qualifier not in ("", "$LATEST"):
            raise _no_function(function)
        payload = encoded(payload)
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
        if not told:
            raise EventdError("E-INTERNAL", f"a run of function '{name}' has ended without its record.", "The daemon's log has the cause.")
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
        self._begun()
        async with self.outbox.choosing:
            rows = await self.reads.dead_seqs(query, SELECT_MAX)
            self._matched(rows, query)
            if not dry_run:
                self.engine.tell(s.RedriveAsked(tuple(rows)))
                await self._stored()
        return {"redriven": len(rows), "invocations": [row.id for row in rows]}

    async def discard(self, query: Query, dry_run: bool = False) -> Json:
        self._begun()
        async with self.outbox.choosing:
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
            hint = "Nothing was changed. Run 'eventd dead'."
            raise EventdError("E-NOTFOUND", f"not dead, or unknown: {', '.join(sorted(missing))}.", hint)

    async def cancel(self, invocations: Sequence[str]) -> Json:
        self._begun()
        async with self.outbox.choosing:
            rows = await self.reads.invocations(tuple(dict.fromkeys(invocations)))
            live = tuple(row for row in rows if row.state is not State.SETTLED)
            missing = set(invocations) - {row.id for row in live}
            if missing:
                hint = "Nothing was cancelled. Run 'eventd events --state waiting'."
                raise EventdError("E-NOTFOUND", f"not open: {', '.join(sorted(missing))}.", hint)
            self.engine.tell(s.CancelAsked(live))
            await self._stored()
        return {"cancelled": len(live), "invocations": [row.id for row in live]}

    async def pause(self, kind: str, name: str) -> Json:
        return await self._pause(kind, name, True)

    async def resume(self, kind: str, name: str) -> Json:
        return await self._pause(kind, name, False)

    async def _pause(self, kind: str, name: str, paused: bool) -> Json:
        self._begun()
        settings = self.sources.settings
        tables: dict[str, Any] = {"function": settings.functions, "trigger": settings.triggers, "binding": settings.bindings}
        if kind not in tables:
            raise EventdError("E-USAGE", f"'{kind}' is nothing that can be paused.", "Write function:NAME, trigger:NAME or binding:NAME.")
        table = tables[kind]
        if name not in table:
            raise EventdError("E-NOTFOUND", f"there is no {kind} '{name}'.", "Run 'eventd status' to see them.")
        if not paused and table[name].paused:
            raise EventdError("E-CONFLICT", f"{kind} '{name}' is paused by the configuration.", "Set paused = false there.")
        self.engine.tell(s.PauseAsked(kind, name, paused))
        await self._stored()
        if kind == "trigger":
            await self.sources.refresh(name)
        return {"kind": kind, "name": name, "paused": paused}

    async def reload(self) -> Json:
        self._begun()
        return await self.reloader.reload()

    async def drain(self, *, queue: bool = False, timeout_ms: int | None = None, undo: bool = False) -> Json:
        self._begun()
        if self.stopping:
            raise EventdError("E-DRAINING", "the daemon is stopping.", "Start it again when it has ended.")
        if undo:
            self.intake.open = True
            self.engine.tell(s.StartsAllowed(True, True))
            await self.sources.unhalt()
            self.phase = "ready"
            return {"state": self.state, "running": self.engine.state.running, "open": self.engine.open}
        self.phase, self.drained_when_quiet = "draining", not queue
        self.intake.open = False
        await self.sources.halt()
        self.engine.tell(s.StartsAllowed(queue, False))
        timeout = timeout_ms / 1000 if timeout_ms is not None else None
        with anyio.move_on_after(timeout) as scope:
            await self._until(lambda: not self.engine.open) if queue else await self.engine.quiet()
        if self.phase != "draining":
            raise EventdError("E-CONFLICT", "the drain was undone.", "Ask again to drain.")
        if scope.cancelled_caught:
            raise EventdError(
                "E-CONFLICT", f"{self.engine.state.running} runs are still going on and {self.engine.open} invocations are open.",
                "The daemon goes on draining. Ask again, or run 'eventd drain --undo'.",
            )  # fmt: skip
        self.engine.tell(s.StartsAllowed(False, False))
        await self.outbox.flush()
        if not self.stopping:
            self.phase = "drained"
        return {"state": "drained", "running": self.engine.state.running, "open": self.engine.open}

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
    import uuid

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
