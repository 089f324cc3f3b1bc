"""Which dates a cron expression names: APScheduler's CronTrigger as naive calendar arithmetic, in UTC and at midnight only.

Its fields know months' lengths, "last" and "2nd tue". What it does not know is ours: the OR of crontab's two day fields
is two triggers of which the earlier answer counts, and AWS's `W` is worked out from the first of each month it gives.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

__all__ = ["Days"]

_WEEKDAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")
_LAST_YEAR = 9900
_MONTH_TRIES = 4 * 12


@dataclass(frozen=True, slots=True)
class _Rule:
    trigger: CronTrigger
    move: Callable[[date], date | None] | None = None
    """Given the first of a month, the date meant in that month, or None when that month has none."""

    def next(self, start: date) -> date | None:
        if self.move is None:
            return self._fire(start)
        first: date | None = start.replace(day=1)
        for _ in range(_MONTH_TRIES * 4):
            first = self._fire(first) if first is not None else None
            if first is None:
                return None
            meant = self.move(first)
            if meant is not None and meant >= start:
                return meant
            first = (first + timedelta(days=31)).replace(day=1)
        return None

    def _fire(self, start: date) -> date | None:
        found = self.trigger.get_next_fire_time(None, datetime(start.year, start.month, start.day, tzinfo=UTC))
        return None if found is None else found.date()


@dataclass(frozen=True, slots=True)
class Days:
    """A set of dates. `every` says that it is all of them."""

    rules: tuple[_Rule, ...] = field(compare=False)
    every: bool = False

    def next(self, start: date) -> date | None:
        """The first date on or after `start`, or None. Work is bounded: dates that no year has are sorted out before."""
        if start.year > _LAST_YEAR:
            return None
        if self.every:
            return start
        found = [hit for rule in self.rules if (hit := rule.next(start)) is not None]
        return min(found, default=None)

    def between(self, first: int, last: int) -> list[int]:
        """The ordinals (`date.toordinal`) of all dates from `first` to `last`, both included."""
        if self.every:
            return list(range(first, last + 1))
        found: list[int] = []
        hit = self.next(date.fromordinal(first))
        while hit is not None and hit.toordinal() <= last:
            found.append(hit.toordinal())
            hit = self.next(hit + timedelta(days=1))
        return found

    @staticmethod
    def of_crontab(days: frozenset[int], months: frozenset[int], weekdays: frozenset[int], *, either: bool) -> Days:
        """`either`: a date counts when the day of the month or the weekday fits (both are restricted); else both must."""
        some_day = any(day <= _longest(month) for day in days for month in months)
        if either:
            by_weekday = _Rule(_trigger(months, weekdays=weekdays))
            return Days((_Rule(_trigger(months, days=days)), by_weekday) if some_day else (by_weekday,))
        if not some_day:
            return Days(())
        whole = len(days) == 31 and len(months) == 12 and len(weekdays) == 7
        return Days((_Rule(_trigger(months, days=days, weekdays=weekdays)),), every=whole)

    @staticmethod
    def of_aws(
        months: frozenset[int], years: frozenset[int], *, days: frozenset[int] | None = None, weekdays: frozenset[int] | None = None
    ) -> Days:
        return Days((_Rule(_trigger(months, years=years, days=days, weekdays=weekdays)),))

    @staticmethod
    def last_day(months: frozenset[int], years: frozenset[int]) -> Days:
        return Days((_Rule(_trigger(months, years=years, position="last")),))

    @staticmethod
    def nth_weekday(months: frozenset[int], years: frozenset[int], weekday: int, nth: int | None) -> Days:
        """The nth (1 to 5) or, with None, the last of a weekday (0 = Sunday) in the month."""
        which = "last" if nth is None else _ORDINALS[nth - 1]
        return Days((_Rule(_trigger(months, years=years, position=f"{which} {_WEEKDAY_NAMES[weekday]}")),))

    @staticmethod
    def nearest_weekday(months: frozenset[int], years: frozenset[int], day: int | None) -> Days:
        """Monday to Friday nearest to `day` and in the same month; None: the last such day of the month."""
        return Days((_Rule(_trigger(months, years=years, days=frozenset({1})), lambda first: _nearest(first, day)),))


def _nearest(first: date, day: int | None) -> date | None:
    length = calendar.monthrange(first.year, first.month)[1]
    wanted = length if day is None else day
    if wanted > length:
        return None
    meant = first.replace(day=wanted)
    if meant.weekday() == 5:
        return meant + timedelta(days=2 if wanted == 1 else -1)
    if meant.weekday() == 6:
        return meant + timedelta(days=-2 if wanted == length else 1)
    return meant


def _longest(month: int) -> int:
    return calendar.monthrange(2024, month)[1]


def _trigger(
    months: frozenset[int],
    *,
    years: frozenset[int] | None = None,
    days: frozenset[int] | None = None,
    weekdays: frozenset[int] | None = None,
    position: str | None = None,
) -> CronTrigger:
    return CronTrigger(
        year=_text(years, 230),
        month=_text(months, 12),
        day=position or _text(days, 31),
        # APScheduler counts weekdays from Monday.
        day_of_week=_text(frozenset((day - 1) % 7 for day in weekdays) if weekdays is not None else None, 7),
        hour=0,
        minute=0,
        second=0,
        timezone=UTC,
    )


def _text(values: frozenset[int] | None, whole: int) -> str:
    if values is None or (len(values) == whole and whole != 230):
        return "*"
    ordered = sorted(values)
    if ordered[-1] - ordered[0] == len(ordered) - 1 and len(ordered) > 1:
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(map(str, ordered))
