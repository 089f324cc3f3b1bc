"""What the benchmarks make of their figures: percentiles, ratios of alternating pairs, verdicts, the table. Pure."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {"us": 1.0, "ms": 1_000.0, "s": 1_000_000.0, "m": 60_000_000.0}
_LATENCY = re.compile(r"^\s+(50|75|90|99)%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """One spell of load. Latencies in microseconds; `failed` counts answers that were no success, and broken connections."""

    requests: int
    rate: float
    p50_us: float
    p99_us: float
    failed: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` None: not measured, and `measured` says why."""

    what: str
    budget: str
    measured: str
    met: bool | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        return "-" if self.met is None else "met" if self.met else "MISSED"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def read_wrk(text: str) -> Load:
    """What `wrk --latency` printed. Raises ValueError, with the text, when that is something else."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    total = re.search(r"^\s*(\d+) requests in", text, re.MULTILINE)
    latency = {int(percent): float(number) * _UNITS[unit] for percent, number, unit in _LATENCY.findall(text)}
    if rate is None or total is None or not {50, 99} <= latency.keys():
        raise ValueError(f"this is not what wrk prints:\n{text}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = (int(bad[1]) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    return Load(int(total[1]), float(rate[1]), latency[50], latency[99], failed)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Pair by pair: what disturbed one half of a pair probably disturbed the other too."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError("pairs are needed")
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`0.51 (0.49 to 0.55)`: the median, and how far apart the pairs were."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, as wide as it has to be."""
    lines = [("what", "budget", "measured", "verdict"), *((row.what, row.budget, row.measured, row.verdict) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    made = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines]
    made.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    details = [f"{row.what}: {row.detail}" for row in rows if row.detail]
    return "\n".join([*made, *(["", *details] if details else [])])


def busy(load_average: float) -> str:
    """A warning when somebody else seems to use the machine; empty when it seems quiet."""
    if load_average < 0.5:
        return ""
    return f"WARNING: the load average is {load_average:.2f} before anything began: figures below are worse than on a quiet machine."


def cpu_of_stat(text: str) -> tuple[int, int]:
    """User and system ticks of a /proc/PID/stat line; the name in it may hold spaces and brackets (proc(5))."""
    fields = text.rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def rss_of_status(text: str) -> float:
    """VmRSS in MiB of /proc/PID/status."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise ValueError("no VmRSS: the process is gone")
    return int(found[1]) / 1024


def pss_of_rollup(text: str) -> float:
    """Pss in MiB of /proc/PID/smaps_rollup."""
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise ValueError("no Pss: the process is gone")
    return int(found[1]) / 1024
