"""A schedule as a value, and its fire times: UTC milliseconds on whole seconds. Every answer is later than the question."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from eventd.core.schedule_days import Days
from eventd.core.schedule_zone import Manner, Pieces, TimesOfDay, local_second, pieces

__all__ = ["At", "Cron", "Due", "Rate", "Schedule", "digest", "due_since", "next_after"]

_DAY = 86_400
_WIDEST_OFFSET = 26 * 3_600
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_LAST_SECOND = int(datetime(9800, 1, 1, tzinfo=UTC).timestamp())
_DATE_TRIES = 500
"""`cron(30 2 ? 3 1L *)` names 2:30 on the last Sunday of March: in Berlin a gap every year, until the years run out in 2199."""


@dataclass(frozen=True, slots=True)
class Cron:
    """Dates x times of day in a zone. Equal when text and zone are."""

    text: str
    timezone: str
    days: Days = field(compare=False, repr=False)
    times: TimesOfDay = field(compare=False, repr=False)
    manner: Manner = field(compare=False)
    zone: ZoneInfo = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rate:
    """Every `every_ms` milliseconds after an anchor, the first one `every_ms` after it. The time zone does not matter."""

    text: str
    every_ms: int


@dataclass(frozen=True, slots=True)
class At:
    """Once, at `at_ms`; None when the clock of the zone never shows that time (it lies in a gap)."""

    text: str
    timezone: str
    at_ms: int | None = field(compare=False)


Schedule = Cron | Rate | At


@dataclass(frozen=True, slots=True)
class Due:
    """The newest fire times of a span, oldest first, and how many older ones the span has (`missed`)."""

    ticks: tuple[int, ...]
    missed: int


def digest(schedule: Schedule) -> str:
    """16 hex digits that change exactly when the fire times may: with the expression and, unless it is a rate, the zone."""
    zone = "" if isinstance(schedule, Rate) else schedule.timezone
    return hashlib.sha256(f"{schedule.text}\n{zone}".encode()).hexdigest()[:16]


def next_after(schedule: Schedule, after_ms: int, *, anchor_ms: int = 0) -> int | None:
    """The first fire time later than `after_ms`, or None when there is none. `anchor_ms` is for a rate only."""
    match schedule:
        case Rate():
            return anchor_ms + schedule.every_ms * max((after_ms - anchor_ms) // schedule.every_ms + 1, 1)
        case At():
            return schedule.at_ms if schedule.at_ms is not None and schedule.at_ms > after_ms else None
        case Cron():
            return _next_cron(schedule, after_ms)


def due_since(schedule: Schedule, after_ms: int, upto_ms: int, limit: int, *, anchor_ms: int = 0) -> Due:
    """The fire times in `after_ms` < tick <= `upto_ms`: the newest `limit` of them, and the count of the rest.

    The rest is counted, not listed: a year of seconds costs what a year of days costs.
    """
    if upto_ms <= after_ms:
        return Due((), 0)
    match schedule:
        case Rate():
            first = max((after_ms - anchor_ms) // schedule.every_ms + 1, 1)
            last = (upto_ms - anchor_ms) // schedule.every_ms
            low = max(first, last - limit + 1)
            ticks = tuple(anchor_ms + number * schedule.every_ms for number in range(low, last + 1))
            return Due(ticks, max(last - first + 1, 0) - len(ticks))
        case At():
            hit = schedule.at_ms is not None and after_ms < schedule.at_ms <= upto_ms
            found = (schedule.at_ms,) if hit and schedule.at_ms is not None else ()
            return Due(found[:limit], len(found[limit:]))
        case Cron():
            window = _window(schedule, after_ms // 1000 + 1, upto_ms // 1000 + 1)
            newest = [second * 1000 for second, _ in zip(window.newest(), range(limit), strict=False)]
            return Due(tuple(reversed(newest)), window.count() - len(newest))


def _next_cron(schedule: Cron, after_ms: int) -> int | None:
    start = after_ms // 1000 + 1
    if start > _LAST_SECOND:
        return None
    # A fold may repeat up to a day of local time, so dates shortly before the local today still count.
    day = date.fromordinal(local_second(schedule.zone, start) // _DAY - 2)
    for _ in range(_DATE_TRIES):
        candidate = schedule.days.next(day)
        if candidate is None:
            return None
        midnight = (candidate.toordinal() - _EPOCH_DAY) * _DAY
        low = max(start, midnight - _WIDEST_OFFSET)
        high = midnight + _DAY + _WIDEST_OFFSET
        if low < high and (first := _window(schedule, low, high).first()) is not None:
            return first * 1000
        day = date.fromordinal(candidate.toordinal() + 1)
    return None


def _window(schedule: Cron, start: int, end: int) -> Pieces:
    return pieces(schedule.zone, schedule.manner, schedule.days, schedule.times, start, max(start, end))
