"""The `schedule` trigger: an EventBridge scheduled event at each fire time of a cron, rate or at expression.

A tick is named by the trigger, its expression and its nominal UTC instant. The memory of what has been judged (D13, D14)
is written in the same transaction as the tick's event, so no tick makes two events: not after a crash, not after the
duplicate window, not when the clock is set back. Ticks that passed while nobody looked (the daemon was down, the trigger
was paused, the clock was set forward, the machine slept) go through `catch_up`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from pydantic import Field, field_validator

from eventd.core.schedule import At, Memory, Rate, Schedule, ahead, first_sight, judged, missed, next_after, parse, set_back
from eventd.sdk import Duration, Event, EventdError, Finding, Overloaded, PluginSettings, Reason, Site, TriggerPlugin

__all__ = ["ScheduleSettings", "next_times", "plugin"]

_KEY = b"memory"
_LONGEST_SLEEP = 30.0
"""Seconds. A step of the clock is noticed at the latest after this."""
_STEP_MS = 1_000
_MOST_RECORDED = 1_000
"""Ticks over `catch_up_limit` that are recorded one by one; older ones are only counted, in the log."""
_BACKOFF = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class ScheduleSettings(PluginSettings):
    """The options of a schedule trigger."""

    schedule: str = Field(
        description="when: 5 fields, 6 fields (seconds first), @hourly @daily @weekly @monthly @yearly, cron(...), rate(...) or at(...)"
    )
    timezone: str | None = Field(default=None, description="an IANA name such as Europe/Berlin; default: [daemon] timezone")
    jitter: Duration = Field(default=0, description="each run starts up to this much later, by chance; the tick's identity stays")
    catch_up: Literal["none", "latest", "all"] = Field(
        default="latest", description="ticks missed while eventd was down or the clock jumped: run none, the latest, or all of them"
    )
    catch_up_limit: int = Field(
        default=100, ge=1, le=10_000, description='with catch_up = "all": at most this many, the newest; the rest is recorded as skipped'
    )
    overlap: Literal["queue", "skip", "allow"] = Field(
        default="queue", description="a tick while the last one is still open: queue (one waits, further ticks are skipped), skip or allow"
    )
    input: dict[str, Any] | str | None = Field(default=None, description="a table or a JSON string that replaces the event")

    @field_validator("input")
    @classmethod
    def _is_json(cls, value: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
        if isinstance(value, str):
            try:
                msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise ValueError(f"input is text that is not JSON ({error}); a plain string is written '\"text\"'") from None
        return value


def next_times(options: ScheduleSettings, now_ms: int, count: int, timezone: str = "UTC") -> list[int]:
    """The next `count` fire times after `now_ms`, UTC milliseconds; fewer when there are no more.

    `timezone` is the daemon's, for options without their own. A rate is taken as first seen now. ValueError as `parse`.
    """
    schedule = parse(options.schedule, options.timezone or timezone)
    times: list[int] = []
    at: int | None = now_ms
    while at is not None and len(times) < count:
        at = next_after(schedule, at, anchor_ms=now_ms)
        if at is not None:
            times.append(at)
    return times


def check(name: str, settings: ScheduleSettings, triggers: Mapping[str, ScheduleSettings]) -> Iterable[Finding]:
    """A wrong time zone, a wrong expression, and one that never comes."""
    if settings.timezone is not None:
        try:
            parse("@daily", settings.timezone)
        except ValueError as wrong:
            return [Finding("timezone", f"{wrong}.", "Names are listed by `timedatectl list-timezones`.")]
    try:
        schedule = parse(settings.schedule, settings.timezone or "UTC")
    except ValueError as wrong:
        return [Finding("schedule", f"{wrong}.", "Correct the expression; `eventd check` shows its next three times.")]
    if isinstance(schedule, At) and schedule.at_ms is None:
        message = f"'{schedule.text}' never comes: the clocks of {schedule.timezone} are set forward over it."
        return [Finding("schedule", message, "Choose a time before or after the change.", "warning")]
    if not isinstance(schedule, At) and next_after(schedule, 0) is None:
        return [Finding("schedule", f"'{schedule.text}' never comes: no year has such a date and time.", "Correct the date fields.")]
    return []


async def run(site: Site, settings: ScheduleSettings) -> None:
    """Emit ticks for ever. Raises EventdError(E-CONFIG) for a wrong expression or time zone."""
    try:
        schedule = parse(settings.schedule, settings.timezone or site.timezone)
    except ValueError as wrong:
        raise EventdError("E-CONFIG", f"triggers.{site.name}: {wrong}.", "Correct the expression or the time zone.") from None
    now = _now(site)
    stored = await site.state.get(_KEY)
    memory = None if stored is None else msgspec.json.decode(stored, type=Memory)
    fresh = first_sight(schedule, now)
    if memory is None or memory.schedule != fresh.schedule:
        # D13: a new trigger starts now, and a changed expression has no past.
        memory = fresh
        await site.state.put({_KEY: msgspec.json.encode(memory)})
    elif memory.at > now:
        memory = set_back(memory, schedule, now, memory.at - now)
        await site.state.put({_KEY: msgspec.json.encode(memory)})
    await _Ticker(site, settings, schedule, memory).run()


def _now(site: Site) -> int:
    return round(site.now() * 1000)


class _Ticker:
    """One life of the trigger. `_memory` is what is durable."""

    def __init__(self, site: Site, settings: ScheduleSettings, schedule: Schedule, memory: Memory) -> None:
        self._site = site
        self._settings = settings
        self._schedule = schedule
        self._memory = memory
        self._wall = _now(site)
        self._monotonic = site.monotonic()

    async def run(self) -> None:
        await self._catch_up(self._wall)
        self._site.ready()
        seen: Memory | None = None
        tick: int | None = None
        while True:
            now = await self._look()
            if seen is not self._memory:
                seen, tick = self._memory, ahead(self._memory, self._schedule)
            if tick is not None and tick <= now:
                await self._emit(self._live(tick), judged(self._memory, tick))
            else:
                await self._site.sleep(_LONGEST_SLEEP if tick is None else min((tick - now) / 1000, _LONGEST_SLEEP))

    async def _look(self) -> int:
        """Now. If the wall clock was set since the last look, do what that asks for first."""
        site = self._site
        now, monotonic = _now(site), site.monotonic()
        elapsed = round((monotonic - self._monotonic) * 1000)
        step = now - self._wall - elapsed
        self._wall, self._monotonic = now, monotonic
        if step > _STEP_MS:
            # Only what the jump went over was missed; what came due in the time that really passed is on time.
            await self._catch_up(now - elapsed)
        elif step < -_STEP_MS:
            site.warn("W-CLOCK", f"The system clock was set back by {-step / 1000:.0f} s; ticks that have been do not fire again.")
            memory = set_back(self._memory, self._schedule, now, -step)
            if memory != self._memory:
                await site.state.put({_KEY: msgspec.json.encode(memory)})
                self._memory = memory
        return now

    async def _catch_up(self, upto: int) -> None:
        """Judge every tick up to `upto` by the catch-up policy, oldest first, each durably before the next."""
        settings = self._settings
        to_run = {"none": 0, "latest": 1, "all": settings.catch_up_limit}[settings.catch_up]
        to_record = _MOST_RECORDED if settings.catch_up == "all" else 0
        begin = self._memory.at
        due = missed(self._memory, self._schedule, upto, to_run + to_record)
        if not due.ticks and not due.missed:
            return
        recorded = frozenset(due.ticks[: max(len(due.ticks) - to_run, 0)])
        self._site.log.info(
            "%s: ticks missed: %d; run now: %d, recorded as skipped: %d, passed over: %d (catch_up = %s)",
            *(self._site.name, len(due.ticks) + due.missed, len(due.ticks) - len(recorded), len(recorded), due.missed, settings.catch_up),
        )
        if not due.ticks:
            memory = judged(self._memory, upto, passed=(begin, upto))
            await self._site.state.put({_KEY: msgspec.json.encode(memory)})
            self._memory = memory
        for tick in due.ticks:
            passed = (begin, tick - 1) if tick == due.ticks[0] and due.missed else None
            event = self._event(tick, skip=Reason.CATCH_UP) if tick in recorded else self._late(tick)
            await self._emit(event, judged(self._memory, tick, passed=passed))

    async def _emit(self, event: Event, memory: Memory) -> None:
        """The event and the memory of it, in one transaction; again and again while the journal has no room."""
        site = self._site
        tries = 0
        while True:
            try:
                await site.emit(event, state={_KEY: msgspec.json.encode(memory)})
            except Overloaded as full:
                site.degraded(f"a tick waits for room in the journal: {full.message}")
                await site.sleep(_BACKOFF[min(tries, len(_BACKOFF) - 1)] * (0.5 + site.random() / 2))
                tries += 1
            else:
                break
        self._memory = memory
        if tries:
            site.ready()

    def _live(self, tick: int) -> Event:
        most = {"queue": 2, "skip": 1, "allow": None}[self._settings.overlap]
        return self._event(tick, max_open=most, serial=most is not None)

    def _late(self, tick: int) -> Event:
        """A missed tick that is run: exempt from the limit of open ones, but still one after the other."""
        return self._event(tick, serial=self._settings.overlap != "allow")

    def _event(self, tick: int, *, max_open: int | None = None, serial: bool = False, skip: Reason | None = None) -> Event:
        site = self._site
        identity = self._identity(tick)
        return Event(
            id=identity,
            data=self._payload(tick, identity),
            key=site.name if serial else None,
            serial=serial,
            max_open=max_open,
            skip=skip,
            delay_ms=0 if skip else int(site.random() * self._settings.jitter),
            # The identity says it all: a tick whose `input` was edited meanwhile is the same tick, not a conflict.
            fingerprint=b"tick",
        )

    def _identity(self, tick: int) -> str:
        """A UUID that follows from the trigger, the expression and the instant."""
        # After a step back of the clock a rate comes by the same instants again, from another anchor.
        anchor = self._memory.anchor if isinstance(self._schedule, Rate) else ""
        text = f"{self._site.name}\n{self._memory.schedule}\n{anchor}\n{tick}"
        return str(UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5))

    def _payload(self, tick: int, identity: str) -> Any:
        if isinstance(self._settings.input, str):
            return msgspec.Raw(self._settings.input.encode())
        if self._settings.input is not None:
            return self._settings.input
        site = self._site
        return {
            "version": "0",
            "id": identity,
            "detail-type": "Scheduled Event",
            "source": "aws.events",
            "account": site.account,
            "time": datetime.fromtimestamp(tick // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": site.region,
            "resources": [f"arn:aws:events:{site.region}:{site.account}:rule/{site.name}"],
            "detail": {},
        }


plugin = TriggerPlugin(kind="schedule", settings=ScheduleSettings, run=run, check=check)
