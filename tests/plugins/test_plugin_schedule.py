"""The schedule trigger on a scripted site: identity, catch-up, overlap, clock steps, a full journal, crashes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from eventd.sdk import EventdError, Overloaded, Reason
from eventd.testing.site import Emitted, FakeSite
from eventd_plugins.schedule import ScheduleSettings, check, next_times, plugin


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


START = datetime(2026, 3, 2, 10, 0, 10, tzinfo=UTC)


def options(schedule: str = "* * * * *", **rest: Any) -> ScheduleSettings:
    return ScheduleSettings.model_validate({"schedule": schedule, **rest})


def times(emitted: list[Emitted]) -> list[str]:
    return [one.data["time"][11:19] for one in emitted]


async def play(site: FakeSite, settings: ScheduleSettings, seconds: float) -> None:
    async with site.playing(plugin, settings):
        await site.clock.advance(seconds)


async def later(site: FakeSite, settings: ScheduleSettings, minutes: float, seconds: float = 0.0) -> FakeSite:
    """A crash, a stop of so many minutes, and a new start that lasts so many seconds."""
    new = site.reborn()
    await new.clock.advance(minutes * 60)
    await play(new, settings, seconds)
    return new


@pytest.mark.anyio
async def test_a_tick_is_an_eventbridge_scheduled_event_at_its_time() -> None:
    site = FakeSite("nightly", now=START, region="eu-west-1", account="111111111111")
    async with site.playing(plugin, options()):
        assert site.status.state == "up"
        await site.clock.advance(49.9)
        assert site.emitted == []
        await site.clock.advance(0.1)
        (tick,) = site.emitted
    assert tick.data == {
        "version": "0",
        "id": tick.id,
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "111111111111",
        "time": "2026-03-02T10:01:00Z",
        "region": "eu-west-1",
        "resources": ["arn:aws:events:eu-west-1:111111111111:rule/nightly"],
        "detail": {},
    }
    assert str(UUID(tick.id)) == tick.id
    assert set(tick.state) == set(site.ledger) != set()


@pytest.mark.anyio
@pytest.mark.parametrize("given, payload", [({"a": [1]}, {"a": [1]}), ('{"b": null}', {"b": None}), ('"text"', "text"), ("null", None)])
async def test_input_replaces_the_event(given: Any, payload: Any) -> None:
    site = FakeSite(now=START)
    await play(site, options(input=given), 60)
    assert [one.data for one in site.emitted] == [payload]


@pytest.mark.anyio
async def test_the_time_zone_is_the_options_or_the_daemons() -> None:
    assert options().timezone is None
    for site, settings in (
        (FakeSite(now=START, timezone="Asia/Kathmandu"), options("50 15 * * *")),
        (FakeSite(now=START), options("50 15 * * *", timezone="Asia/Kathmandu")),
    ):
        await play(site, settings, 600)
        assert times(site.emitted) == ["10:05:00"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "overlap, live, late",
    [
        ("queue", ("t", True, 2), ("t", True, None)),
        ("skip", ("t", True, 1), ("t", True, None)),
        ("allow", (None, False, None), (None, False, None)),
    ],
)
async def test_overlap_is_the_journals_to_judge_and_late_ticks_are_exempt(overlap: str, live: object, late: object) -> None:
    site = FakeSite("t", now=START)
    settings = options(overlap=overlap)
    await play(site, settings, 60)
    site = await later(site, settings, 5)
    assert [(one.event.key, one.event.serial, one.event.max_open) for one in site.emitted] == [live, late]


@pytest.mark.anyio
async def test_jitter_delays_the_run_not_the_identity() -> None:
    plain, moved = FakeSite("t", now=START), FakeSite("t", now=START)
    moved.dice = lambda: 0.75
    await play(plain, options(), 60)
    await play(moved, options(jitter="20s"), 60)
    assert [(one.id, one.event.delay_ms) for one in plain.emitted + moved.emitted] == [
        (plain.emitted[0].id, 0),
        (plain.emitted[0].id, 15_000),
    ]


@pytest.mark.anyio
async def test_identity_is_by_trigger_expression_and_instant() -> None:
    seen = set()
    for name, schedule in (("a", "* * * * *"), ("b", "* * * * *"), ("a", "*/1 * * * *"), ("a", "rate(1 minute)")):
        site = FakeSite(name, now=START)
        await play(site, options(schedule), 121)
        assert len(site.emitted) == 2
        seen |= {one.id for one in site.emitted}
    assert len(seen) == 8


# --- restart and catch-up ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    "catch_up, run, recorded",
    [
        ({"catch_up": "none"}, ["10:08:00"], []),
        ({}, ["10:07:00", "10:08:00"], []),
        ({"catch_up": "all"}, ["10:02:00", "10:03:00", "10:04:00", "10:05:00", "10:06:00", "10:07:00", "10:08:00"], []),
        (
            {"catch_up": "all", "catch_up_limit": 2},
            ["10:06:00", "10:07:00", "10:08:00"],
            ["10:02:00", "10:03:00", "10:04:00", "10:05:00"],
        ),
    ],
)
async def test_missed_ticks_go_through_the_catch_up_policy(catch_up: dict[str, Any], run: list[str], recorded: list[str]) -> None:
    site = FakeSite(now=START)
    settings = options(**catch_up)
    await play(site, settings, 60)
    new = await later(site, settings, 6, 60)
    after = new.emitted[1:]
    assert times([one for one in after if one.event.skip is None]) == run
    assert times([one for one in after if one.event.skip is Reason.CATCH_UP]) == recorded
    assert [one.data["time"] for one in after] == sorted(one.data["time"] for one in after)
    assert new.receipts[-1].duplicate is False


@pytest.mark.anyio
async def test_a_long_absence_records_a_bounded_number_and_counts_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    site = FakeSite("t", now=START)
    settings = options(catch_up="all", catch_up_limit=5)
    await play(site, settings, 60)
    with caplog.at_level("INFO"):
        new = await later(site, settings, 60 * 24 * 365)
    after = new.emitted[1:]
    assert [sum(one.event.skip is skip for one in after) for skip in (None, Reason.CATCH_UP)] == [5, 1000]
    assert after[-1].data["time"] == "2027-03-02T10:01:00Z"
    assert "ticks missed: 525600; run now: 5, recorded as skipped: 1000, passed over: 524595" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("stored", [False, True])
async def test_a_crash_during_the_emit_makes_the_tick_once(stored: bool) -> None:
    site = FakeSite(now=START)
    settings = options(catch_up="all")
    async with site.playing(plugin, settings):
        site.hold()
        await site.clock.advance(60)
        new = site.reborn(stored=stored)
    assert len(new.emitted) == int(stored)
    await play(new, settings, 60)
    assert times(new.emitted) == ["10:01:00", "10:02:00"]
    assert not any(receipt.duplicate for receipt in new.receipts)


@pytest.mark.anyio
async def test_the_memory_outlives_the_duplicate_window() -> None:
    site = FakeSite(now=START)
    settings = options(catch_up="all")
    await play(site, settings, 180)
    site.forget_duplicates()
    new = await later(site, settings, 0, 60)
    assert times(new.emitted) == ["10:01:00", "10:02:00", "10:03:00", "10:04:00"]


@pytest.mark.anyio
@pytest.mark.parametrize("change", [{"schedule": "*/2 * * * *"}, {"timezone": "Europe/Berlin"}, {"schedule": "rate(2 minutes)"}])
async def test_a_changed_expression_or_zone_has_no_past(change: dict[str, str]) -> None:
    site = FakeSite(now=START)
    await play(site, options(catch_up="all"), 60)
    new = await later(site, options(**{"catch_up": "all", "schedule": "* * * * *", **change}), 10)
    assert len(new.emitted) == 1


@pytest.mark.anyio
async def test_other_options_may_change_and_the_past_stays() -> None:
    site = FakeSite(now=START)
    await play(site, options(), 60)
    new = await later(site, options("*   * * * *", input={"x": 1}, jitter="1s", catch_up="all"), 2)
    assert len(new.emitted) == 3


@pytest.mark.anyio
async def test_a_rate_counts_from_its_first_sight_also_over_restarts() -> None:
    site = FakeSite(now=START)
    settings = options("rate(5 minutes)")
    await play(site, settings, 301)
    new = await later(site, settings, 2, 300)
    assert times(new.emitted) == ["10:05:10", "10:10:10"]


@pytest.mark.anyio
async def test_at_fires_once_for_ever_and_a_past_one_never() -> None:
    site = FakeSite(now=START)
    settings = options("at(2026-03-02T10:05:00)")
    await play(site, settings, 600)
    assert times((await later(site, settings, 10, 600)).emitted) == ["10:05:00"]
    late = FakeSite(now=START)
    await play(late, options("at(2026-03-02T10:00:00)"), 600)
    assert late.emitted == []
    assert late.status.state == "up"


# --- the clock is set ---


@pytest.mark.anyio
@pytest.mark.parametrize("catch_up, expected", [("none", []), ("latest", ["13:00:00"]), ("all", ["11:00:00", "12:00:00", "13:00:00"])])
async def test_a_step_forward_is_noticed_in_half_a_minute_and_goes_through_catch_up(catch_up: str, expected: list[str]) -> None:
    site = FakeSite(now=START)
    async with site.playing(plugin, options("0 * * * *", catch_up=catch_up)):
        await site.clock.advance(45)
        site.clock.set_wall(START + timedelta(hours=3, seconds=45))
        await site.clock.advance(30)
        assert times(site.emitted) == expected
        await site.clock.advance(3600)
        assert times(site.emitted) == [*expected, "14:00:00"]


@pytest.mark.anyio
async def test_what_comes_due_after_the_step_is_on_time() -> None:
    site = FakeSite(now=START)
    async with site.playing(plugin, options("0 * * * *", catch_up="none")):
        await site.clock.advance(1)
        site.clock.set_wall(datetime(2026, 3, 2, 12, 59, 50, tzinfo=UTC))
        await site.clock.advance(30)
    assert times(site.emitted) == ["13:00:00"]
    assert site.emitted[0].event.max_open == 2


@pytest.mark.anyio
async def test_a_step_back_fires_nothing_twice_and_says_so() -> None:
    site = FakeSite(now=START)
    async with site.playing(plugin, options()):
        await site.clock.advance(300)
        site.clock.set_wall(START)
        await site.clock.advance(300)
        assert len(site.emitted) == 5
        assert [code for code, _ in site.warnings] == ["W-CLOCK"]
        await site.clock.advance(60)
    assert times(site.emitted) == [f"10:0{n}:00" for n in range(1, 7)]


@pytest.mark.anyio
@pytest.mark.parametrize("restart", [False, True])
async def test_a_clock_that_was_a_year_ahead_does_not_silence_the_schedule(restart: bool) -> None:
    site = FakeSite(now=START)
    settings = options("0 * * * *")
    async with site.playing(plugin, settings):
        site.clock.set_wall(START + timedelta(days=365))
        await site.clock.advance(60)
        assert len(site.emitted) == 1
        if not restart:
            site.clock.set_wall(START)
            await site.clock.advance(7200)
    if restart:
        site = site.reborn()
        site.clock.set_wall(START)
        await play(site, settings, 7200)
    assert [one.data["time"] for one in site.emitted] == ["2027-03-02T10:00:00Z", "2026-03-02T11:00:00Z", "2026-03-02T12:00:00Z"]


@pytest.mark.anyio
@pytest.mark.parametrize("restart", [False, True])
async def test_a_rate_follows_elapsed_time_when_the_clock_is_set_back(restart: bool) -> None:
    site = FakeSite(now=START)
    settings = options("rate(5 minutes)")
    async with site.playing(plugin, settings):
        await site.clock.advance(601)
        assert len(site.emitted) == 2
        if not restart:
            site.clock.set_wall(START - timedelta(days=365))
            await site.clock.advance(600)
    if restart:
        site = site.reborn()
        site.clock.set_wall(START - timedelta(days=365))
        await play(site, settings, 600)
    assert len(site.emitted) == 4
    assert len({one.id for one in site.emitted}) == 4
    assert not any(receipt.duplicate for receipt in site.receipts)


@pytest.mark.anyio
async def test_a_rate_that_comes_by_the_same_instants_again_has_new_ticks() -> None:
    site = FakeSite(now=START)
    async with site.playing(plugin, options("rate(5 minutes)")):
        await site.clock.advance(900)
        site.clock.set_wall(START)
        await site.clock.advance(900)
    assert (len(site.emitted), [receipt.duplicate for receipt in site.receipts]) == (6, [False] * 6)


# --- trouble ---


@pytest.mark.anyio
async def test_the_same_tick_with_another_input_is_a_duplicate_not_a_conflict() -> None:
    site = FakeSite(now=START)
    await play(site, options(input={"x": 1}), 60)
    site.ledger.clear()
    site.clock.set_wall(START)
    await play(site, options(input={"x": 2}), 60)
    assert [receipt.duplicate for receipt in site.receipts] == [False, True]


@pytest.mark.anyio
async def test_a_full_journal_degrades_the_trigger_and_loses_nothing() -> None:
    site = FakeSite(now=START)
    site.fail_next(Overloaded("the journal is full."), times=8)
    async with site.playing(plugin, options()):
        await site.clock.advance(60)
        assert site.status.state == "degraded"
        assert "full" in site.status.why
        await site.clock.advance(240)
        assert site.status.state == "up"
    assert times(site.emitted) == [f"10:0{n}:00" for n in range(1, 6)]


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"schedule": "61 * * * *"}, {"timezone": "Mars/Base"}])
async def test_a_wrong_expression_never_runs(wrong: dict[str, str]) -> None:
    with pytest.raises(EventdError, match=r"E-CONFIG triggers\.trigger: "):
        await plugin.run(FakeSite(), options(**{"schedule": "* * * * *", **wrong}))


def test_check_says_what_is_wrong() -> None:
    def found(**rest: Any) -> list[tuple[str, str]]:
        return [(one.path, one.severity) for one in check("t", options(**{"schedule": "* * * * *", **rest}), {})]

    assert found() == found(schedule="rate(5 minutes)") == found(schedule="at(2026-11-20T13:00:00)") == []
    assert found(timezone="Mars/Base") == [("timezone", "error")]
    for schedule in ("61 * * * *", "rate(1 minutes)", "cron(0 10 * * * *)", "at(2026-02-30T00:00:00)", "nonsense"):
        assert found(schedule=schedule) == [("schedule", "error")]
    assert found(schedule="0 0 30 2 *") == [("schedule", "error")]
    assert found(schedule="at(2026-03-29T02:30:00)", timezone="Europe/Berlin") == [("schedule", "warning")]
    (finding,) = check("t", options("61 * * * *"), {})
    assert finding.message == "'61 * * * *' is not a schedule: the minute field '61' is wrong: 61 is not between 0 and 59."


def test_next_times_are_what_check_prints() -> None:
    now = round(START.timestamp() * 1000)
    at = [datetime.fromtimestamp(ms / 1000, UTC) for ms in next_times(options("0 9 * * *"), now, 3, "Europe/Berlin")]
    assert [one.isoformat() for one in at] == [f"2026-03-0{day}T08:00:00+00:00" for day in (3, 4, 5)]
    assert next_times(options("0 9 * * *", timezone="UTC"), now, 1, "Europe/Berlin") == [
        round(datetime(2026, 3, 3, 9, tzinfo=UTC).timestamp() * 1000)
    ]
    assert next_times(options("rate(5 minutes)"), now, 2) == [now + 300_000, now + 600_000]
    assert len(next_times(options("at(2026-03-02T10:05:00)"), now, 3)) == 1


def test_settings_have_the_documented_defaults_and_refuse_the_rest() -> None:
    settings = options()
    defaults = {"timezone": None, "jitter": 0, "catch_up": "latest", "catch_up_limit": 100, "overlap": "queue", "input": None}
    assert settings.model_dump() == {"schedule": "* * * * *", **defaults}
    assert all(field.description for field in ScheduleSettings.model_fields.values())
    for wrong in ({"input": "not json"}, {"catch_up": "some"}, {"catch_up_limit": 0}, {"overlap": "x"}, {"jitter": 5}, {"crontab": "x"}):
        with pytest.raises(ValidationError):
            options(**wrong)
    with pytest.raises(ValidationError):
        ScheduleSettings.model_validate({})
