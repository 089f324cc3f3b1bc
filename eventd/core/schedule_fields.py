"""The text of one field of a cron expression -> the numbers it names. Two dialects: crontab's and AWS's `cron(...)`.

Crontab follows crontab(5) of Debian's cron: `*`, numbers, names, ranges, lists, steps; 0 and 7 are Sunday. AWS follows the
EventBridge user guide ("Cron expressions reference"): 1 is Sunday, ranges may wrap (`20-2`), and `? L W #` in the day fields.
Every refusal is a ValueError whose text is a sentence for the person who wrote the expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["DAY", "HOUR", "MINUTE", "MONTH", "SECOND", "WEEKDAY", "YEAR", "Field", "aws_values", "crontab_values", "weekday_number"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Field:
    """A field's name for people, the numbers it may hold, and the names it knows (the first stands for `low`)."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


SECOND = Field("second", 0, 59)
MINUTE = Field("minute", 0, 59)
HOUR = Field("hour", 0, 23)
DAY = Field("day-of-month", 1, 31)
MONTH = Field("month", 1, 12, _MONTHS)
WEEKDAY = Field("day-of-week", 0, 6, _WEEKDAYS)
"""0 = Sunday in the values of both dialects, whatever the text counts from."""
YEAR = Field("year", 1970, 2199)


def crontab_values(field: Field, text: str) -> frozenset[int]:
    """The numbers a crontab field names. Weekdays are 0 (Sunday) to 6."""
    top = 7 if field is WEEKDAY else field.high
    found: set[int] = set()
    for item in _items(field, text):
        body, step = _split_step(field, text, item)
        if body == "*":
            first, last = field.low, field.high
        else:
            start, dash, end = body.partition("-")
            first = _number(field, text, start, field.low, top, field.low)
            if dash:
                last = _number(field, text, end, field.low, top, field.low)
                if field is WEEKDAY and last == 0 < first:
                    last = 7  # fri-sun: Sunday ends the week as well as it begins it
                if last < first:
                    raise _wrong(field, text, f"the range {body} runs backwards; write it as two ranges, such as 22-23,0-2")
            else:
                last = first if step is None else top  # 1/2 is Monday to Sunday, every second day
        found.update(range(first, last + 1, step or 1))
    return frozenset(value % 7 if field is WEEKDAY else value for value in found)


def aws_values(field: Field, text: str) -> frozenset[int]:
    """The numbers an AWS field names, without `? L W #`. Weekdays are written 1 (SUN) to 7 and come out as 0 to 6."""
    shift = 1 if field is WEEKDAY else 0
    low, high = field.low + shift, field.high + shift
    span = high - low + 1
    found: set[int] = set()
    for item in _items(field, text):
        body, step = _split_step(field, text, item)
        if step is not None and field is WEEKDAY:
            raise _wrong(field, text, "this field takes no step")
        if body == "*":
            first, last = low, high
        else:
            start, dash, end = body.partition("-")
            first = _number(field, text, start, low, high, low)
            last = _number(field, text, end, low, high, low) if dash else first if step is None else high
            if last < first:
                if field is YEAR:
                    raise _wrong(field, text, f"the range {body} runs backwards")
                last += span
        found.update((value - low) % span + low - shift for value in range(first, last + 1, step or 1))
    return frozenset(found)


def weekday_number(text: str) -> int | None:
    """0 (Sunday) to 6 for AWS's `1` to `7` or a name, else None."""
    lowered = text.lower()
    if lowered in _WEEKDAYS:
        return _WEEKDAYS.index(lowered)
    return int(text) - 1 if re.fullmatch(r"[1-7]", text) else None


def _items(field: Field, text: str) -> list[str]:
    items = text.split(",")
    if "" in items:
        raise _wrong(field, text, "there is nothing before or after a comma")
    return items


def _split_step(field: Field, text: str, item: str) -> tuple[str, int | None]:
    body, slash, step = item.partition("/")
    if not slash:
        return body, None
    if not _NUMBER.fullmatch(step) or int(step) == 0:
        raise _wrong(field, text, "a step is a whole number from 1, such as */5")
    return body, int(step)


def _number(field: Field, text: str, word: str, low: int, high: int, first_name: int) -> int:
    if word.lower() in field.names:
        return field.names.index(word.lower()) + first_name
    if not _NUMBER.fullmatch(word):
        names = f" or a name such as {field.names[0].upper()}" if field.names else ""
        raise _wrong(field, text, f"{word or 'nothing'!r} is not a number{names}")
    if not low <= int(word) <= high:
        raise _wrong(field, text, f"{word} is not between {low} and {high}")
    return int(word)


def _wrong(field: Field, text: str, why: str) -> ValueError:
    return ValueError(f"the {field.name} field {text!r} is wrong: {why}")
