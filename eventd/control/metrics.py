"""Counters and their Prometheus text (names: surface.md, section 7). Plain numbers: a finished run costs no lock and no call out.

Each method of `Counters` is called from one thread only (the loop's, except `committed`, which may be the journal's own).
Labels are configured names, never event data, so the number of series is bounded by the configuration's history.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from eventd.model import End, Outcome, RunRecord

if TYPE_CHECKING:
    from prometheus_client import Metric

RUN_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
COMMIT_BOUNDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Counts per bucket (not cumulative; the last is +Inf) and the sum, in seconds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = RUN_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class FunctionCounters:
    """What one function's runs came to since the daemon started."""

    __slots__ = ("duration", "gb_seconds", "init", "outcomes", "queue", "settled", "throttled")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys((str(outcome) for outcome in Outcome), 0)
        self.settled: dict[str, int] = dict.fromkeys((str(end) for end in End), 0)
        self.duration = Histogram()
        self.queue = Histogram()
        self.init = Histogram()
        self.gb_seconds = 0.0
        self.throttled = 0


class Counters:
    """Everything counted over one daemon lifetime. Reading `function(name)` for a name not seen yet begins it at zero."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionCounters] = {}
        self.accepted_by: dict[str, int] = {}
        self.duplicates_by: dict[str, int] = {}
        self.filtered_by: dict[str, int] = {}
        self.commits = Histogram(COMMIT_BOUNDS)

    def function(self, name: str) -> FunctionCounters:
        counters = self.functions.get(name)
        if counters is None:
            counters = self.functions[name] = FunctionCounters()
        return counters

    def finished(self, record: RunRecord) -> None:
        """One run ended. Call it once for each record that goes to the history: the two must add up to the same."""
        counters = self.functions.get(record.function) or self.function(record.function)
        counters.outcomes[record.outcome] += 1
        counters.duration.add(record.duration_ms / 1000)
        counters.queue.add(record.queue_ms / 1000)
        if record.init_ms is not None:
            counters.init.add(record.init_ms / 1000)
        counters.gb_seconds += record.gb_seconds

    def settled(self, function: str, end: str) -> None:
        """One invocation of the durable lane reached its end."""
        self.function(function).settled[end] += 1

    def throttled(self, function: str) -> None:
        """One direct call was refused for concurrency or rate."""
        self.function(function).throttled += 1

    def accepted(self, trigger: str | None) -> None:
        """One event was accepted; None is an asynchronous invoke without a trigger."""
        self.accepted_by[trigger or ""] = self.accepted_by.get(trigger or "", 0) + 1

    def duplicate(self, trigger: str | None) -> None:
        self.duplicates_by[trigger or ""] = self.duplicates_by.get(trigger or "", 0) + 1

    def filtered(self, binding: str) -> None:
        """A binding's filter did not take an event."""
        self.filtered_by[binding] = self.filtered_by.get(binding, 0) + 1

    def committed(self, seconds: float) -> None:
        """One group commit of the journal took that long, fsync included."""
        self.commits.add(seconds)


class Gauges(Struct, frozen=True, kw_only=True):
    """How things stand now. `workers` is keyed by (function, state), state being idle, busy or starting."""

    open: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    trigger_up: Mapping[str, bool] = field(default_factory=dict)
    journal_bytes: int = 0
    owed: int = 0
    loop_lag_s: float = 0.0


def render_metrics(counters: Counters, gauges: Gauges) -> bytes:
    """The Prometheus text exposition. Costs time in proportion to the number of functions; no run waits for it."""
    # Imported when first asked for: a daemon that nobody scrapes does not carry it.
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counters, gauges))
    return bytes(generate_latest(registry))


class _Collector:
    """A prometheus-client custom collector over numbers that are kept elsewhere."""

    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        functions = sorted(self._counters.functions.items())
        runs = (((name, outcome), n) for name, counters in functions for outcome, n in counters.outcomes.items())
        yield _counter("eventd_runs", "Runs by outcome", ("function", "outcome"), runs)
        for metric, text, pick in (
            ("eventd_run_duration_seconds", "From the event handed over to its answer, without init", "duration"),
            ("eventd_queue_wait_seconds", "From due to slot", "queue"),
            ("eventd_init_duration_seconds", "Init of cold starts", "init"),
        ):
            yield _histogram(metric, text, ("function",), [((name,), getattr(counters, pick)) for name, counters in functions])
        by = self._counters
        yield _counter("eventd_events_accepted", "Events accepted", ("trigger",), _by(by.accepted_by))
        yield _counter("eventd_events_duplicate", "Events known already", ("trigger",), _by(by.duplicates_by))
        yield _counter("eventd_events_filtered", "Events that a binding's filter did not take", ("binding",), _by(by.filtered_by))
        yield _gauge("eventd_invocations_open", "Invocations not settled", ("function",), _by(self._gauges.open))
        ends = (((name, end), n) for name, counters in functions for end, n in counters.settled.items())
        yield _counter("eventd_invocations_settled", "Invocations of the durable lane by end", ("function", "end"), ends)
        throttles = (((name,), counters.throttled) for name, counters in functions)
        yield _counter("eventd_throttles", "Direct calls refused for concurrency or rate", ("function",), throttles)
        yield _gauge("eventd_workers", "Workers", ("function", "state"), sorted(self._gauges.workers.items()))
        used = (((name,), counters.gb_seconds) for name, counters in functions)
        yield _counter("eventd_gb_seconds", "Memory size times billed time", ("function",), used)
        ups = (((name,), int(up)) for name, up in sorted(self._gauges.trigger_up.items()))
        yield _gauge("eventd_trigger_up", "1 when the trigger takes events in", ("trigger",), ups)
        yield _gauge("eventd_journal_bytes", "Size of the journal", (), [((), self._gauges.journal_bytes)])
        yield _histogram("eventd_journal_commit_seconds", "One group commit with its fsync", (), [((), by.commits)])
        yield _gauge("eventd_destinations_owed", "Settlements whose destination is not yet told", (), [((), self._gauges.owed)])
        yield _gauge("eventd_loop_lag_seconds", "How late the event loop runs", (), [((), self._gauges.loop_lag_s)])


Samples = Iterable[tuple[tuple[str, ...], float]]


def _by(counts: Mapping[str, int]) -> Samples:
    return (((name,), count) for name, count in sorted(counts.items()))


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, buckets=histogram.buckets(), sum_value=histogram.sum)
    return family
