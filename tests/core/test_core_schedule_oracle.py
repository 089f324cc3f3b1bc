"""Fire times against an independent oracle: every minute of a window is looked at, one by one, in several zones.

The oracle shares no code with the house: it reads the expression's text anew for each minute and walks the zone's wall clock.
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventd.core.schedule import Cron, Manner, due_since, next_after, parse

MINUTE = timedelta(minutes=1)
TRANSITIONS = [
    ("UTC", datetime(2026, 3, 1)),
    ("Europe/Berlin", datetime(2026, 3, 29)),
    ("Europe/Berlin", datetime(2026, 10, 25)),
    ("America/New_York", datetime(2026, 3, 8)),
    ("America/New_York", datetime(2026, 11, 1)),
    ("Australia/Lord_Howe", datetime(2026, 10, 4)),
    ("Australia/Lord_Howe", datetime(2026, 4, 5)),
    ("America/Sao_Paulo", datetime(2018, 11, 4)),
    ("America/Sao_Paulo", datetime(2018, 2, 18)),
    ("America/St_Johns", datetime(2006, 10, 29)),
    ("Asia/Kathmandu", datetime(1986, 1, 1)),
    ("Pacific/Apia", datetime(2011, 12, 30)),
    ("Pacific/Kwajalein", datetime(1993, 8, 21)),
    ("Africa/Casablanca", datetime(2026, 2, 15)),
]
Names = tuple[tuple[str, int], ...]
NAMES: Names = tuple((name, at) for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"]))
MONTHS: Names = tuple((date(2026, at, 1).strftime("%b").lower(), at) for at in range(1, 13))


@lru_cache(maxsize=64)
def walk(zone: str, day: datetime) -> list[tuple[datetime, datetime]]:
    """(UTC minute, naive local minute) from three days before to two days after."""
    start = day.replace(tzinfo=UTC) - timedelta(days=3)
    info = ZoneInfo(zone)
    return [(utc, utc.astimezone(info).replace(tzinfo=None)) for n in range(5 * 1440) for utc in [start + n * MINUTE]]


def number(word: str, names: Names) -> int:
    return dict(names).get(word.lower(), -1) if word.isalpha() else int(word)


def item_fits(item: str, value: int, low: int, high: int, names: Names, *, wraps: bool) -> bool:
    body, _, step = item.partition("/")
    if body == "*":
        begin, end = low, high
    elif "-" in body:
        begin, end = (number(word, names) for word in body.split("-"))
    else:
        begin = number(body, names)
        end = high if step else begin
    at, wide = begin, high - low + 1
    length = end - begin if end >= begin else end - begin + wide
    assert wraps or end >= begin
    while at <= begin + length:
        if (at - low) % wide + low == value:
            return True
        at += int(step or 1)
    return False


@cache
def fits(text: str, value: int, low: int, high: int, names: Names = (), *, wraps: bool = False) -> bool:
    return any(item_fits(item, value, low, high, names, wraps=wraps) for item in text.split(","))


def crontab_fits(expression: str, local: datetime) -> bool:
    minute, hour, day, month, weekday = expression.split()
    sunday0 = (local.weekday() + 1) % 7
    if not (fits(minute, local.minute, 0, 59) and fits(hour, local.hour, 0, 23) and fits(month, local.month, 1, 12, MONTHS)):
        return False
    by_day = fits(day, local.day, 1, 31)
    by_weekday = fits(weekday, sunday0, 0, 7, NAMES) or (sunday0 == 0 and fits(weekday, 7, 0, 7, NAMES))
    return by_day and by_weekday if day[0] == "*" or weekday[0] == "*" else by_day or by_weekday


@cache
def aws_day_fits(day: str, weekday: str, today: date) -> bool:
    length = calendar.monthrange(today.year, today.month)[1]
    every = [today.replace(day=n) for n in range(1, length + 1)]
    if weekday == "?":
        if day == "L":
            return today.day == length
        if day == "LW":
            return today == [one for one in every if one.weekday() < 5][-1]
        if day.endswith("W"):
            wanted = int(day[:-1])
            working = [one for one in every if one.weekday() < 5]
            return wanted <= length and today == min(working, key=lambda one: (abs(one.day - wanted), one.day > wanted))
        return fits(day, today.day, 1, 31, wraps=True)
    sunday1 = (today.weekday() + 1) % 7 + 1
    names = tuple((name, n + 1) for name, n in NAMES)
    if weekday == "L":
        return sunday1 == 7
    if weekday.endswith("L"):
        return sunday1 == number(weekday[:-1], names) and today.day + 7 > length
    if "#" in weekday:
        which, nth = weekday.split("#")
        return sunday1 == number(which, names) and (today.day - 1) // 7 + 1 == int(nth)
    return fits(weekday, sunday1, 1, 7, names, wraps=True)


def aws_fits(expression: str, local: datetime) -> bool:
    minute, hour, day, month, weekday, year = expression[5:-1].split()
    return (
        fits(minute, local.minute, 0, 59, wraps=True)
        and fits(hour, local.hour, 0, 23, wraps=True)
        and fits(month, local.month, 1, 12, MONTHS, wraps=True)
        and fits(year, local.year, 1970, 2199)
        and aws_day_fits(day, weekday, local.date())
    )


def oracle(expression: str, zone: str, day: datetime) -> list[int]:
    """Fire times of the last three of the five days (the first two only tell what the wall clock has shown before)."""
    aws = expression.startswith("cron(")
    hour = expression.split()[1]
    manner = "skip" if aws else "real" if re.search(r"[*/]", hour) else "fixed"
    shown: datetime | None = None
    found = []
    for utc, local in walk(zone, day):
        hit = aws_fits(expression, local) if aws else crontab_fits(expression, local)
        if manner != "real":
            repeated = shown is not None and local <= shown
            hit = hit and not repeated
            if manner == "fixed" and shown is not None:
                missing = shown + MINUTE
                while missing < local:
                    hit = hit or crontab_fits(expression, missing)
                    missing += MINUTE
            shown = local if shown is None else max(shown, local)
        if hit:
            found.append(round(utc.timestamp() * 1000))
    begin = round(walk(zone, day)[2 * 1440][0].timestamp() * 1000)
    return [tick for tick in found if tick >= begin]


def compare(expression: str, zone: str, day: datetime) -> None:
    expected = oracle(expression, zone, day)
    schedule = parse(expression, zone)
    begin = round(walk(zone, day)[2 * 1440][0].timestamp() * 1000) - 1
    end = round(walk(zone, day)[-1][0].timestamp() * 1000)
    due = due_since(schedule, begin, end, 10_000)
    assert [datetime.fromtimestamp(t / 1000, UTC) for t in due.ticks] == [datetime.fromtimestamp(t / 1000, UTC) for t in expected]
    assert due.missed == 0
    few = due_since(schedule, begin, end, 3)
    assert (few.ticks, few.missed) == (tuple(expected[-3:]), max(len(expected) - 3, 0))
    at = begin
    chain: list[int] = []
    while len(chain) < 40 and (tick := next_after(schedule, at)) is not None and tick <= end:
        assert tick > at
        chain.append(tick)
        at = tick
    assert chain == expected[: len(chain)]
    assert len(chain) == min(len(expected), 40)


TRICKY = [
    "* * * * *", "30 2 * * *", "*/10 2 * * *", "15,45 1-3 * * *", "0 * * * *", "30 */2 * * *", "0 0 * * *", "5 0,1,2,3 * * *",
    "0 0-23 * * *", "7 1-5/2 * * *", "59 23 30 12 *", "0 12 30 * fri", "0 0 */2 * sun", "0 0 13 * 5", "1 1 * * 7", "1 1 * * 5-7",
    "cron(30 2 * * ? *)", "cron(0/20 * * * ? *)", "cron(15 0-3 ? * * *)", "cron(0/30 20-2 ? * MON-FRI *)", "cron(0 1 ? * 1L *)",
    "cron(0 9 LW * ? *)", "cron(59 23 L * ? *)", "cron(30 1 25W * ? *)", "cron(0 0 ? * SUN#1 *)", "cron(30 1,2 ? * 1#5 *)",
]  # fmt: skip


@pytest.mark.parametrize("zone, day", TRANSITIONS)
@pytest.mark.parametrize("expression", TRICKY)
def test_every_change_of_clocks_is_read_as_the_wall_clock_shows_it(expression: str, zone: str, day: datetime) -> None:
    compare(expression, zone, day)


def part(low: int, high: int, *, wraps: bool = False, stepped: bool = True) -> st.SearchStrategy[str]:
    single = st.integers(low, high).map(str)
    spans = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: tuple(pair) if wraps else tuple(sorted(pair)))
    ranges = spans.map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.tuples(st.one_of(st.just("*"), ranges, single), st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    item = st.one_of(single, ranges, steps) if stepped else st.one_of(single, ranges)
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


def mostly(usual: str, other: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.just(usual), st.just(usual), other)


crontabs = st.tuples(
    part(0, 59), st.one_of(part(0, 23), part(0, 3)), mostly("*", part(1, 31)), mostly("*", part(1, 12)), mostly("*", part(0, 7))
).map(" ".join)
day_specials = st.one_of(part(1, 31, wraps=True), st.just("L"), st.just("LW"), st.integers(1, 31).map("{}W".format))
weekday_specials = st.one_of(
    part(1, 7, wraps=True, stepped=False),
    st.just("L"),
    st.integers(1, 7).map("{}L".format),
    st.tuples(st.integers(1, 7), st.integers(1, 5)).map(lambda pair: f"{pair[0]}#{pair[1]}"),
    st.sampled_from(["MON-FRI", "sat-mon", "FRIL", "Tue#2", "SUN,WED"]),
)
aws = st.tuples(
    part(0, 59, wraps=True),
    part(0, 23, wraps=True),
    st.one_of(st.tuples(day_specials, st.just("?")), st.tuples(st.just("?"), weekday_specials)),
    mostly("*", part(1, 12, wraps=True)),
).map(lambda parts: f"cron({parts[0]} {parts[1]} {parts[2][0]} {parts[3]} {parts[2][1]} *)")


@settings(max_examples=150, deadline=None)
@given(st.one_of(crontabs, aws), st.sampled_from(TRANSITIONS))
@example("0 5-3 * * *", TRANSITIONS[0])
def test_any_expression_in_any_zone(expression: str, place: tuple[str, datetime]) -> None:
    if expression == "0 5-3 * * *":
        with pytest.raises(ValueError, match="backwards"):
            parse(expression)
        return
    compare(expression, *place)


@settings(max_examples=60, deadline=None)
@given(part(0, 59), part(0, 59), part(0, 23), st.integers(0, 23 * 3600))
def test_six_fields_put_seconds_first(second: str, minute: str, hour: str, offset: int) -> None:
    schedule = parse(f"{second} {minute} {hour} * * *")
    assert isinstance(schedule, Cron)
    assert (schedule.manner is Manner.REAL) == bool(re.search(r"[*/]", hour))
    start = datetime(2026, 6, 1, tzinfo=UTC) + timedelta(seconds=offset)
    seconds = [start + timedelta(seconds=n) for n in range(1, 3601)]
    expected = [
        round(at.timestamp() * 1000)
        for at in seconds
        if fits(second, at.second, 0, 59) and fits(minute, at.minute, 0, 59) and fits(hour, at.hour, 0, 23)
    ]
    begin = round(start.timestamp() * 1000)
    assert list(due_since(schedule, begin, begin + 3_600_000, 5_000).ticks) == expected
    after = next_after(schedule, begin)
    assert after is not None
    assert (after == expected[0]) if expected else after > begin + 3_600_000


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(crontabs, aws), st.sampled_from([zone for zone, _ in TRANSITIONS]), st.datetimes(datetime(1970, 1, 3), datetime(2198, 1, 1))
)
def test_answers_always_move_forward_and_agree(expression: str, zone: str, when: datetime) -> None:
    schedule = parse(expression, zone)
    at = round(when.replace(tzinfo=UTC).timestamp() * 1000)
    first = next_after(schedule, at)
    if first is None:
        return
    assert first > at
    assert due_since(schedule, at, first, 5).ticks == (first,)
    assert due_since(schedule, at, first - 1, 5).ticks == ()
