"""The text of a schedule -> its value. Every refusal is a ValueError whose text is a sentence for the person who wrote it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from eventd.core import schedule_fields as fields
from eventd.core.schedule_days import Days
from eventd.core.schedule_fields import aws_values, crontab_values, weekday_number
from eventd.core.schedule_values import At, Cron, Rate, Schedule
from eventd.core.schedule_zone import Manner, TimesOfDay

__all__ = ["parse"]

_LONGEST_TEXT = 1_000
_LONGEST_RATE_MS = 100 * 366 * 86_400_000
_SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_RATE = re.compile(r"rate\(\s*([0-9]{1,12})\s+(minutes?|hours?|days?)\s*\)")
_AT = re.compile(r"at\(\s*([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})\s*\)")
_UNIT_MS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}


def parse(expression: str, timezone: str = "UTC") -> Schedule:
    """Read an expression; `timezone` is an IANA name. ValueError with a sentence that says what is wrong."""
    zone = _zone(timezone)
    text = " ".join(expression.split())
    if not text or len(text) > _LONGEST_TEXT:
        raise ValueError(f"the schedule is empty or longer than {_LONGEST_TEXT} characters")
    try:
        if text.startswith("rate("):
            return _parse_rate(text)
        if text.startswith("at("):
            return _parse_at(text, zone)
        if text.startswith("cron("):
            return _parse_aws(text, zone)
        return _parse_crontab(text, zone)
    except ValueError as wrong:
        raise ValueError(f"'{text}' is not a schedule: {wrong}") from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"'{name}' is not a time zone; write an IANA name such as Europe/Berlin or UTC") from None


def _times(hours: frozenset[int], minutes: frozenset[int], seconds: frozenset[int]) -> TimesOfDay:
    return TimesOfDay(tuple(sorted(hours)), tuple(sorted(minutes)), tuple(sorted(seconds)))


def _parse_rate(text: str) -> Rate:
    found = _RATE.fullmatch(text)
    if not found:
        raise ValueError("write rate(5 minutes), with minute, hour or day; for seconds use six fields, such as */10 * * * * *")
    number, unit = int(found[1]), found[2].removesuffix("s")
    if number == 0:
        raise ValueError("the number in rate(...) begins at 1")
    if (number == 1) == found[2].endswith("s"):
        raise ValueError(f"write rate({number} {unit if number == 1 else unit + 's'})")
    if number * _UNIT_MS[unit] > _LONGEST_RATE_MS:
        raise ValueError("a rate is at most 100 years")
    return Rate(f"rate({number} {found[2]})", number * _UNIT_MS[unit])


def _parse_at(text: str, zone: ZoneInfo) -> At:
    found = _AT.fullmatch(text)
    if not found:
        raise ValueError("write at(2026-11-20T13:00:00), a local time without a zone")
    try:
        local = datetime.fromisoformat(found[1]).replace(tzinfo=zone)
        instant = local.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"there is no such date and time as {found[1]}") from None
    shown = instant.astimezone(zone).replace(tzinfo=None)
    at_ms = round(instant.timestamp()) * 1000 if shown == local.replace(tzinfo=None) else None
    return At(f"at({found[1]})", zone.key, at_ms)


def _parse_crontab(text: str, zone: ZoneInfo) -> Cron:
    if text.startswith("@") and text.lower() not in _SHORTHANDS:
        raise ValueError(f"the names are {', '.join(_SHORTHANDS)}")
    parts = _SHORTHANDS.get(text.lower(), text).split()
    if len(parts) not in (5, 6):
        raise ValueError(f"it has {len(parts)} fields; write 5 (minute hour day month weekday) or 6 (the second first), or cron(...)")
    if any(re.fullmatch(r"(?i).*[?#].*|(.*[0-9,])?(L|W|LW)", part) for part in parts):
        raise ValueError("? L W # belong to cron(...), which has a year as its last field and 1 = Sunday")
    if len(parts) == 5:
        parts = ["0", *parts]
    second, minute, hour, day, month, weekday = parts
    # As crontab(5) has it, a day field is restricted unless it begins with a star: */2 together with a weekday means both.
    restricted = not day.startswith("*") and not weekday.startswith("*")
    times = _times(crontab_values(fields.HOUR, hour), crontab_values(fields.MINUTE, minute), crontab_values(fields.SECOND, second))
    days = Days.of_crontab(
        crontab_values(fields.DAY, day), crontab_values(fields.MONTH, month), crontab_values(fields.WEEKDAY, weekday), either=restricted
    )
    return Cron(text, zone.key, days, times, Manner.REAL if "*" in hour or "/" in hour else Manner.FIXED, zone)


def _parse_aws(text: str, zone: ZoneInfo) -> Cron:
    if not text.endswith(")"):
        raise ValueError("the closing ) is missing")
    parts = text[5:-1].split()
    if len(parts) != 6:
        raise ValueError(f"cron(...) has six fields (minute hour day month weekday year), this has {len(parts)}")
    minute, hour, day, month, weekday, year = parts
    if (day == "?") == (weekday == "?"):
        raise ValueError("exactly one of the day-of-month and day-of-week fields must be ?")
    times = _times(aws_values(fields.HOUR, hour), aws_values(fields.MINUTE, minute), frozenset({0}))
    months, years = aws_values(fields.MONTH, month), aws_values(fields.YEAR, year)
    days = _aws_days(day.upper(), months, years) if weekday == "?" else _aws_weekdays(weekday.upper(), months, years)
    return Cron(f"cron({' '.join(parts)})", zone.key, days, times, Manner.SKIP, zone)


def _aws_days(day: str, months: frozenset[int], years: frozenset[int]) -> Days:
    if day == "L":
        return Days.last_day(months, years)
    if day in ("LW", "WL"):
        return Days.nearest_weekday(months, years, None)
    if found := re.fullmatch(r"([0-9]{1,2})W", day):
        if not 1 <= int(found[1]) <= 31:
            raise ValueError(f"the day-of-month field {day!r} is wrong: {found[1]} is not between 1 and 31")
        return Days.nearest_weekday(months, years, int(found[1]))
    if "L" in day or "W" in day:
        raise ValueError(f"the day-of-month field {day!r} is wrong: L, LW and a day with W stand alone, such as L, LW or 15W")
    return Days.of_aws(months, years, days=aws_values(fields.DAY, day))


def _aws_weekdays(weekday: str, months: frozenset[int], years: frozenset[int]) -> Days:
    if weekday == "L":
        return Days.of_aws(months, years, weekdays=frozenset({6}))
    if weekday.endswith("L") and (number := weekday_number(weekday[:-1])) is not None:
        return Days.nth_weekday(months, years, number, None)
    name, sharp, nth = weekday.partition("#")
    if sharp:
        number = weekday_number(name)
        if number is None or not re.fullmatch(r"[1-5]", nth):
            raise ValueError(f"the day-of-week field {weekday!r} is wrong: write one weekday and 1 to 5, such as 3#2 (1 = Sunday)")
        return Days.nth_weekday(months, years, number, int(nth))
    return Days.of_aws(months, years, weekdays=aws_values(fields.WEEKDAY, weekday))
