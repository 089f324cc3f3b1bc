"""Schedules: the grammar and its refusals, rates and single times, the bounds of the work, and the memory of judged ticks."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from eventd.core.schedule import At, Cron, Memory, Rate, ahead, digest, due_since, first_sight, judged, missed, next_after, parse, set_back

MINUTE = 60_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def upcoming(expression: str, after: str, count: int = 3, zone: str = "UTC") -> list[str]:
    schedule = parse(expression, zone)
    found: list[str] = []
    at: int | None = ms(after)
    while len(found) < count and at is not None and (at := next_after(schedule, at)) is not None:
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S").removesuffix(":00"))
    return found


@pytest.mark.parametrize(
    "expression, after, expected",
    [
        ("*/5 * * * *", "2026-03-01 00:00", ["2026-03-01 00:05", "2026-03-01 00:10", "2026-03-01 00:15"]),
        ("*/20 * * * * *", "2026-03-01 00:00", ["2026-03-01 00:00:20", "2026-03-01 00:00:40", "2026-03-01 00:01"]),
        ("@hourly", "2026-12-31 23:30", ["2027-01-01 00:00", "2027-01-01 01:00", "2027-01-01 02:00"]),
        ("@daily", "2026-02-27 12:00", ["2026-02-28 00:00", "2026-03-01 00:00", "2026-03-02 00:00"]),
        ("@weekly", "2026-03-01 00:00", ["2026-03-08 00:00", "2026-03-15 00:00", "2026-03-22 00:00"]),
        ("@Monthly", "2026-03-01 00:00", ["2026-04-01 00:00", "2026-05-01 00:00", "2026-06-01 00:00"]),
        ("@yearly", "2026-03-01 00:00", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
        ("0 9 * * 1-5", "2026-03-06 09:00", ["2026-03-09 09:00", "2026-03-10 09:00", "2026-03-11 09:00"]),
        ("0 0 * * 0", "2026-03-01 00:00", ["2026-03-08 00:00", "2026-03-15 00:00", "2026-03-22 00:00"]),
        ("0 0 * * 7", "2026-03-01 00:00", ["2026-03-08 00:00", "2026-03-15 00:00", "2026-03-22 00:00"]),
        ("0 0 * * fri-sun", "2026-03-05 00:00", ["2026-03-06 00:00", "2026-03-07 00:00", "2026-03-08 00:00"]),
        ("0 0 13 * FRI", "2026-03-07 00:00", ["2026-03-13 00:00", "2026-03-20 00:00", "2026-03-27 00:00"]),
        ("0 0 1,15 * wed", "2026-03-12 00:00", ["2026-03-15 00:00", "2026-03-18 00:00", "2026-03-25 00:00"]),
        ("0 0 29 2 *", "2026-03-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00", "2036-02-29 00:00"]),
        ("0 0 31 */2 *", "2026-01-31 00:00", ["2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00"]),
        ("30 5/6 * jan,MAR *", "2026-01-31 23:45", ["2026-03-01 05:30", "2026-03-01 11:30", "2026-03-01 17:30"]),
        ("cron(0 10 * * ? *)", "2026-03-01 10:00", ["2026-03-02 10:00", "2026-03-03 10:00", "2026-03-04 10:00"]),
        ("cron(0 18 ? * MON-FRI *)", "2026-03-06 18:00", ["2026-03-09 18:00", "2026-03-10 18:00", "2026-03-11 18:00"]),
        ("cron(0 8 1 * ? *)", "2026-03-01 08:00", ["2026-04-01 08:00", "2026-05-01 08:00", "2026-06-01 08:00"]),
        ("cron(0/10 * ? * 2-6 *)", "2026-03-06 23:45", ["2026-03-06 23:50", "2026-03-09 00:00", "2026-03-09 00:10"]),
        ("cron(0/30 20-2 ? * MON-FRI *)", "2026-03-06 23:00", ["2026-03-06 23:30", "2026-03-09 00:00", "2026-03-09 00:30"]),
        ("cron(0 9 ? * 2#1 *)", "2026-03-01 00:00", ["2026-03-02 09:00", "2026-04-06 09:00", "2026-05-04 09:00"]),
        ("cron(0 9 ? * 6L *)", "2026-03-01 00:00", ["2026-03-27 09:00", "2026-04-24 09:00", "2026-05-29 09:00"]),
        ("cron(0 9 ? * L *)", "2026-03-01 00:00", ["2026-03-07 09:00", "2026-03-14 09:00", "2026-03-21 09:00"]),
        ("cron(0 0 L * ? *)", "2026-01-31 00:00", ["2026-02-28 00:00", "2026-03-31 00:00", "2026-04-30 00:00"]),
        ("cron(0 0 LW * ? *)", "2026-01-31 00:00", ["2026-02-27 00:00", "2026-03-31 00:00", "2026-04-30 00:00"]),
        ("cron(0 0 1W * ? *)", "2026-07-31 00:00", ["2026-08-03 00:00", "2026-09-01 00:00", "2026-10-01 00:00"]),
        ("cron(0 0 31W * ? *)", "2026-05-01 00:00", ["2026-05-29 00:00", "2026-07-31 00:00", "2026-08-31 00:00"]),
        ("cron(0 0 1 NOV-FEB ? *)", "2026-02-01 00:00", ["2026-11-01 00:00", "2026-12-01 00:00", "2027-01-01 00:00"]),
        ("cron(0 0 ? 2 1#5 *)", "2026-03-01 00:00", ["2032-02-29 00:00", "2060-02-29 00:00", "2088-02-29 00:00"]),
        ("cron(0 0 1 1 ? 2027,2030/2)", "2026-03-01 00:00", ["2027-01-01 00:00", "2030-01-01 00:00", "2032-01-01 00:00"]),
        ("cron(0 0 1 1 ? 2027)", "2026-03-01 00:00", ["2027-01-01 00:00"]),
    ],
)
def test_expressions(expression: str, after: str, expected: list[str]) -> None:
    assert upcoming(expression, after) == expected


@pytest.mark.parametrize(
    "expression, zone, after, expected",
    [
        # Berlin: 2:00 to 3:00 does not exist on 2026-03-29 and comes twice on 2026-10-25.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 02:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-29 00:00", ["2026-03-29 01:00", "2026-03-30 00:00"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29 00:00", ["2026-03-29 01:00", "2026-03-30 00:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29 00:00", ["2026-03-29 00:30", "2026-03-29 01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 01:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25 00:00", ["2026-10-25 00:30", "2026-10-25 01:30"]),
        ("30 */2 * * *", "Europe/Berlin", "2026-10-25 00:00", ["2026-10-25 00:30", "2026-10-25 01:30"]),
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-03-28 02:00", ["2026-03-30 00:30", "2026-03-31 00:30"]),
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-24 01:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        # Lord Howe moves by half an hour, Sao Paulo at midnight, and Samoa had no 2011-12-30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 14:00", ["2026-10-03 15:30", "2026-10-04 15:15"]),
        ("@daily", "America/Sao_Paulo", "2018-11-03 12:00", ["2018-11-04 03:00", "2018-11-05 02:00"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 23:00", ["2011-12-30 10:00", "2011-12-30 22:00"]),
    ],
)
def test_changes_of_clocks(expression: str, zone: str, after: str, expected: list[str]) -> None:
    assert upcoming(expression, after, 2, zone) == expected


@pytest.mark.parametrize(
    "expression, says",
    [
        ("", "empty"),
        ("* * * *", "it has 4 fields"),
        ("* * * * * * *", "it has 7 fields"),
        ("60 * * * *", "the minute field '60' is wrong: 60 is not between 0 and 59"),
        ("* 24 * * *", "not between 0 and 23"),
        ("* * 0 * *", "not between 1 and 31"),
        ("* * * 13 *", "not between 1 and 12"),
        ("* * * * 8", "not between 0 and 7"),
        ("60 * * * * *", "the second field"),
        ("*/0 * * * *", "a step is a whole number from 1"),
        ("*/x * * * *", "a step is"),
        ("1,,2 * * * *", "nothing before or after a comma"),
        ("22-2 * * * *", "runs backwards"),
        ("x * * * *", "'x' is not a number"),
        ("-5 * * * *", "'nothing' is not a number"),
        ("٣ * * * *", "is not a number"),
        ("0 0 ? * 1", "belong to cron"),
        ("0 0 L * *", "belong to cron"),
        ("0 0 15W * *", "belong to cron"),
        ("0 0 * * 5L", "belong to cron"),
        ("0 0 * * 5#2", "belong to cron"),
        ("@reboot", "the names are @yearly"),
        ("every day", "it has 2 fields"),
        ("rate(1 minutes)", "write rate(1 minute)"),
        ("rate(5 minute)", "write rate(5 minutes)"),
        ("rate(0 minutes)", "begins at 1"),
        ("rate(30 seconds)", "for seconds use six fields"),
        ("rate(1.5 hours)", "write rate"),
        ("rate(99999999 days)", "at most 100 years"),
        ("at(2026-02-30T00:00:00)", "no such date"),
        ("at(2026-11-20 13:00)", "write at(2026-11-20T13:00:00)"),
        ("at(2026-11-20T13:00:00Z)", "without a zone"),
        ("cron(0 10 * * ? *", "closing )"),
        ("cron(0 10 * * ?)", "six fields"),
        ("cron(0 10 * * * *)", "exactly one"),
        ("cron(0 10 ? * ? *)", "exactly one"),
        ("cron(0 10 ? * 0 *)", "not between 1 and 7"),
        ("cron(0 10 ? * MON/2 *)", "no step"),
        ("cron(0 10 1,L * ? *)", "stand alone"),
        ("cron(0 10 1-3W * ? *)", "stand alone"),
        ("cron(0 10 32W * ? *)", "not between 1 and 31"),
        ("cron(0 10 ? * 2#6 *)", "1 to 5"),
        ("cron(0 10 ? * 2#1,3#1 *)", "1 to 5"),
        ("cron(0 10 ? * 2L,3L *)", "is not a number"),
        ("cron(0 10 * * ? 1969)", "not between 1970 and 2199"),
        ("cron(0 10 * * ? 2030-2027)", "runs backwards"),
    ],
)
def test_a_wrong_expression_is_refused_with_a_sentence(expression: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(expression)
    assert says in str(refused.value)


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../../etc/passwd", "Europe", "/etc/localtime", "\0"])
def test_a_wrong_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="not a time zone"):
        parse("@daily", zone)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text("0123456789*/,-?LW# @cronrateat()", max_size=40)))
def test_any_text_is_a_schedule_or_a_sentence(text: str) -> None:
    try:
        schedule = parse(text)
    except ValueError as error:
        refused = str(error)
        schedule = None
    assert parse(schedule.text) == schedule if schedule else refused


def test_a_rate_is_elapsed_time_from_its_anchor() -> None:
    schedule = parse("rate(5 minutes)", "Europe/Berlin")
    assert schedule == Rate("rate(5 minutes)", 5 * MINUTE)
    anchor = ms("2026-03-29 00:58") + 123
    ticks = [anchor + n * 5 * MINUTE for n in range(1, 5)]
    assert due_since(schedule, anchor, anchor + 20 * MINUTE, 9, anchor_ms=anchor).ticks == tuple(ticks)
    assert due_since(schedule, anchor, anchor + 20 * MINUTE, 2, anchor_ms=anchor) == due_since(
        schedule, anchor - 10**9, ticks[-1], 2, anchor_ms=anchor
    )
    assert next_after(schedule, ticks[0], anchor_ms=anchor) == ticks[1]
    assert next_after(schedule, ticks[0] - 1, anchor_ms=anchor) == ticks[0]
    assert next_after(schedule, anchor - 10**9, anchor_ms=anchor) == ticks[0]
    assert due_since(schedule, anchor, anchor + 4 * MINUTE, 9, anchor_ms=anchor).missed == 0


def test_at_is_one_instant_or_none() -> None:
    berlin = parse("at(2026-11-20T13:00:00)", "Europe/Berlin")
    instant = ms("2026-11-20 12:00")
    assert isinstance(berlin, At)
    assert (next_after(berlin, instant - 1), next_after(berlin, instant)) == (instant, None)
    assert due_since(berlin, instant - 1, instant, 5).ticks == (instant,)
    assert due_since(berlin, instant - 1, instant, 0).missed == 1
    assert due_since(berlin, instant, instant + 1, 5).ticks == ()
    assert next_after(parse("at(2026-03-29T02:30:00)", "Europe/Berlin"), 0) is None
    assert next_after(parse("at(2026-10-25T02:30:00)", "Europe/Berlin"), 0) == ms("2026-10-25 00:30")


def test_digest_changes_with_what_fires_and_nothing_else() -> None:
    same = {digest(parse(text, zone)) for text, zone in (("0 9 * * *", "UTC"), (" 0  9 * * * ", "UTC"))}
    others = {digest(parse(text, zone)) for text, zone in (("0 9 * * *", "Europe/Berlin"), ("0 8 * * *", "UTC"), ("@daily", "UTC"))}
    assert (len(same), len(others | same)) == (1, 4)
    assert digest(parse("rate(5 minutes)", "UTC")) == digest(parse("rate(5 minutes)", "Europe/Berlin"))


@pytest.mark.parametrize(
    "expression", ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "cron(0 0 31W 2 ? *)", "cron(0 0 29 2 ? 2027)", "cron(0 0 ? 2 1#5 2027)"]
)
def test_what_never_comes_is_known_after_little_work(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = CronTrigger.get_next_fire_time

    def counted(self: Any, previous: Any, now: Any) -> Any:
        asked.append(now)
        return real(self, previous, now)

    monkeypatch.setattr(CronTrigger, "get_next_fire_time", counted)
    schedule = parse(expression)
    assert next_after(schedule, ms("2026-03-01 00:00")) is None
    assert due_since(schedule, ms("2016-03-01 00:00"), ms("2026-03-01 00:00"), 5) == due_since(schedule, 5, 5, 5)
    assert len(asked) < 500


def test_a_time_that_is_a_gap_every_year_ends_with_the_years() -> None:
    assert next_after(parse("cron(30 2 ? 3 1L *)", "Europe/Berlin"), ms("2026-01-01 00:00")) is None
    assert next_after(parse("30 2 29 3 *", "Europe/Berlin"), ms("2026-01-01 00:00")) == ms("2026-03-29 01:00")
    assert next_after(parse("@daily"), ms("9998-01-01 00:00")) is None


def test_ten_years_of_seconds_are_counted_not_listed() -> None:
    due = due_since(parse("* * * * * *", "Europe/Berlin"), ms("2016-01-01 00:00"), ms("2026-01-01 00:00"), 3)
    end = ms("2026-01-01 00:00")
    assert due.ticks == (end - 2000, end - 1000, end)
    assert due.missed + 3 == (date(2026, 1, 1) - date(2016, 1, 1)).days * 86_400


def test_a_cron_keeps_its_text_and_zone() -> None:
    schedule = parse("  0   9 * * mon ", "Europe/Berlin")
    assert isinstance(schedule, Cron)
    assert (schedule.text, schedule.timezone) == ("0 9 * * mon", "Europe/Berlin")
    assert schedule == parse("0 9 * * mon", "Europe/Berlin") != parse("0 9 * * mon", "UTC")


# --- memory ---


def test_a_clock_set_back_fires_what_was_passed_over_and_nothing_twice() -> None:
    schedule = parse("0 * * * *")
    start = ms("2026-03-02 10:30")
    memory = first_sight(schedule, start)
    assert ahead(memory, schedule) == ms("2026-03-02 11:00")
    wrong = ms("2027-03-02 10:30")
    due = missed(memory, schedule, wrong, 1)
    assert due.ticks == (ms("2027-03-02 10:00"),)
    memory = judged(memory, due.ticks[0], passed=(start, due.ticks[0] - 1))
    memory = set_back(memory, schedule, start + MINUTE, wrong - start)
    assert ahead(memory, schedule) == ms("2026-03-02 11:00")
    late = judged(memory, ms("2027-03-02 09:00"))
    assert ahead(late, schedule) == ms("2027-03-02 11:00")
    assert missed(late, schedule, ms("2027-03-02 11:00"), 9).ticks == (ms("2027-03-02 11:00"),)


def test_a_small_step_back_changes_nothing_while_no_tick_lies_in_it() -> None:
    schedule = parse("0 * * * *")
    memory = judged(first_sight(schedule, ms("2026-03-02 10:30")), ms("2026-03-02 11:00"))
    assert set_back(memory, schedule, ms("2026-03-02 11:10"), 20 * MINUTE) is memory


steps = st.lists(
    st.tuples(st.sampled_from(["live", "live", "latest", "none", "all"]), st.integers(-5_000, 5_000).filter(lambda n: n != 0)), max_size=25
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_whatever_the_clock_does_no_tick_is_judged_twice_and_memory_stays_small(moves: list[tuple[str, int]]) -> None:
    schedule = parse("*/7 * * * *")
    now = ms("2026-03-02 10:30")
    memory = first_sight(schedule, now)
    fired: list[int] = []
    for policy, minutes in moves:
        now += minutes * MINUTE
        if minutes < 0:
            memory = set_back(memory, schedule, now, -minutes * MINUTE)
            continue
        if policy == "live":
            while (tick := ahead(memory, schedule)) is not None and tick <= now:
                assert tick > memory.at
                fired.append(tick)
                memory = judged(memory, tick)
            continue
        due = missed(memory, schedule, now, {"latest": 1, "none": 0, "all": 10_000}[policy])
        begin = memory.at
        if not due.ticks:
            memory = judged(memory, now, passed=(begin, now))
        for tick in due.ticks:
            fired.append(tick)
            memory = judged(memory, tick, passed=(begin, tick - 1) if due.missed and tick == due.ticks[0] else None)
    assert len(fired) == len(set(fired))
    assert len(memory.done) <= 8
    assert len(memory.passed) <= 8
    after = ahead(memory, schedule)
    assert after is not None
    assert after > memory.at
    assert after not in fired


def test_a_rate_moves_its_anchor_with_the_clock() -> None:
    schedule = parse("rate(5 minutes)")
    memory = judged(first_sight(schedule, 0), 10 * MINUTE)
    back = set_back(memory, schedule, 2 * MINUTE, 10 * MINUTE)
    assert back == Memory(memory.schedule, -10 * MINUTE, 0)
    assert ahead(back, schedule) == 5 * MINUTE
