"""Counters add up to the runs they were told of, under exactly the published names."""

from __future__ import annotations

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventd.control.metrics import RUN_BOUNDS, Counters, Gauges, Histogram, render_metrics
from eventd.model import End, Lane, Outcome, RunRecord

PUBLISHED = {
    "eventd_runs_total": {"function", "outcome"},
    "eventd_run_duration_seconds": {"function"},
    "eventd_queue_wait_seconds": {"function"},
    "eventd_init_duration_seconds": {"function"},
    "eventd_events_accepted_total": {"trigger"},
    "eventd_events_duplicate_total": {"trigger"},
    "eventd_events_filtered_total": {"binding"},
    "eventd_invocations_open": {"function"},
    "eventd_invocations_settled_total": {"function", "end"},
    "eventd_throttles_total": {"function"},
    "eventd_workers": {"function", "state"},
    "eventd_gb_seconds_total": {"function"},
    "eventd_trigger_up": {"trigger"},
    "eventd_journal_bytes": set(),
    "eventd_journal_commit_seconds": set(),
    "eventd_destinations_owed": set(),
    "eventd_loop_lag_seconds": set(),
}


def record(**changes: object) -> RunRecord:
    values: dict[str, object] = {
        "run": "r", "invocation": "i", "event": "e", "source": "s", "function": "hello", "version": "v", "trigger": None, "binding": None,
        "lane": Lane.DIRECT, "attempt": 1, "outcome": Outcome.SUCCEEDED, "cold": False, "received_at": 0, "started_at": 0, "ended_at": 0,
        "queue_ms": 0.0, "init_ms": None, "duration_ms": 1.0, "billed_ms": 1, "cpu_ms": 0.0, "memory_mb": 512, "max_memory_mb": 1,
        "gb_seconds": 0.0005, "bytes_in": 0, "bytes_out": 0, "output_bytes": 0, "output_truncated": False, "exit_status": None,
        "signal": None, "error_type": None, "error_message": None, "worker": "w", "boot": "b",
    }  # fmt: skip
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_the_names_and_labels_are_the_published_ones() -> None:
    counters = Counters()
    counters.finished(record(init_ms=5.0))
    counters.accepted("uploads")
    counters.duplicate("uploads")
    counters.filtered("uploads/hello")
    counters.committed(0.001)
    gauges = Gauges(open={"hello": 1}, workers={("hello", "idle"): 1}, trigger_up={"uploads": True})
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render_metrics(counters, gauges).decode()):
        for sample in family.samples:
            name = sample.name
            for ending in ("_bucket", "_count", "_sum"):
                name = name.removesuffix(ending) if family.type == "histogram" else name
            names.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert names == PUBLISHED


def test_counters_equal_the_records() -> None:
    dice = random.Random(7)
    counters, records = Counters(), []
    for _ in range(500):
        one = record(
            function=dice.choice(["a", "b"]),
            outcome=dice.choice(list(Outcome)),
            duration_ms=dice.uniform(0, 2000),
            queue_ms=dice.uniform(0, 50),
            init_ms=dice.choice([None, 80.0]),
            gb_seconds=dice.uniform(0, 1),
        )
        records.append(one)
        counters.finished(one)
    found = samples(render_metrics(counters, Gauges()))
    for name in ("a", "b"):
        mine = [one for one in records if one.function == name]
        for outcome in Outcome:
            assert found["eventd_runs_total", (("function", name), ("outcome", outcome))] == len([r for r in mine if r.outcome is outcome])
        key = (("function", name),)
        assert found["eventd_run_duration_seconds_count", key] == len(mine)
        assert found["eventd_run_duration_seconds_sum", key] == pytest.approx(sum(r.duration_ms for r in mine) / 1000)
        assert found["eventd_queue_wait_seconds_count", key] == len(mine)
        assert found["eventd_init_duration_seconds_count", key] == len([r for r in mine if r.init_ms is not None])
        assert found["eventd_gb_seconds_total", key] == pytest.approx(sum(r.gb_seconds for r in mine))
        under = found["eventd_run_duration_seconds_bucket", (("function", name), ("le", "0.25"))]
        assert under == len([r for r in mine if r.duration_ms <= 250])


def test_settled_throttled_and_events() -> None:
    counters = Counters()
    for end in End:
        counters.settled("hello", end)
    counters.throttled("hello")
    counters.accepted(None)
    counters.accepted("uploads")
    counters.accepted("uploads")
    found = samples(
        render_metrics(counters, Gauges(open={"hello": 4}, trigger_up={"uploads": False}, journal_bytes=9, owed=2, loop_lag_s=0.5))
    )
    assert found["eventd_invocations_settled_total", (("end", "dead"), ("function", "hello"))] == 1
    assert found["eventd_throttles_total", (("function", "hello"),)] == 1
    assert found["eventd_events_accepted_total", (("trigger", "uploads"),)] == 2
    assert found["eventd_events_accepted_total", (("trigger", ""),)] == 1
    assert found["eventd_invocations_open", (("function", "hello"),)] == 4
    assert found["eventd_trigger_up", (("trigger", "uploads"),)] == 0
    assert (found["eventd_journal_bytes", ()], found["eventd_destinations_owed", ()], found["eventd_loop_lag_seconds", ()]) == (9, 2, 0.5)


def test_a_function_that_never_ran_is_shown_at_zero() -> None:
    counters = Counters()
    counters.function("quiet")
    assert samples(render_metrics(counters, Gauges()))["eventd_runs_total", (("function", "quiet"), ("outcome", "succeeded"))] == 0


def test_a_value_on_a_bound_belongs_to_it() -> None:
    histogram = Histogram()
    for bound in RUN_BOUNDS:
        histogram.add(bound)
    histogram.add(10_000)
    assert histogram.counts == [1] * (len(RUN_BOUNDS) + 1)
    assert histogram.buckets()[-1] == ("+Inf", len(RUN_BOUNDS) + 1)
