"""Rows of the front door: synchronous webhooks and durable 202s, beside bare uvicorn in the same sitting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench_daemon import Daemon, cpu_seconds
from bench_load import load
from bench_peers import Peer, uvicorn, workerd
from bench_stats import Load, Row, ratios, spread

PAIRS = 3

HOOK = """
def handler(event, context):
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": '{"ok":true}'}
"""

SYNC = """
[triggers.hook]
type = "webhook"
path = "/hook"
function = "hook"
"""

ASYNC = """
[functions.hook]
paused = true
[functions.busy]
path = "handlers/hook.py"
[triggers.held]
type = "webhook"
mode = "async"
path = "/held"
function = "hook"
[triggers.running]
type = "webhook"
mode = "async"
path = "/running"
function = "busy"
"""


class Measured:
    """What one server did in each of its spells, and the processor time it took per request (its own process only)."""

    def __init__(self, pid: int, port: int, path: str) -> None:
        self._pid, self._port, self._path = pid, port, path
        self.loads: list[Load] = []
        self.cpu_us: list[float] = []

    def spell(self, connections: int, seconds: float) -> None:
        before = sum(cpu_seconds(self._pid))
        found = load(self._port, self._path, connections, seconds)
        if found.failed:
            raise RuntimeError(f"{found.failed} of {found.requests} requests to {self._path} failed")
        self.loads.append(found)
        self.cpu_us.append((sum(cpu_seconds(self._pid)) - before) / max(1, found.requests) * 1e6)

    @property
    def rates(self) -> list[float]:
        return [one.rate for one in self.loads]

    @property
    def p50s(self) -> list[float]:
        return [one.p50_us for one in self.loads]

    def summary(self) -> str:
        return (
            f"{statistics.median(self.rates):,.0f}/s, p50 {statistics.median(self.p50s):,.0f} us, "
            f"p99 {statistics.median(one.p99_us for one in self.loads):,.0f} us, CPU {statistics.median(self.cpu_us):.0f} us/request"
        )


def pairs(servers: Sequence[Measured], connections: int, seconds: float) -> None:
    """One spell to warm up that does not count, then A B A B A B."""
    for server in servers:
        server.spell(connections, 1)
        server.loads.clear()
        server.cpu_us.clear()
    for _ in range(PAIRS):
        for server in servers:
            server.spell(connections, seconds)


def sync(seconds: float) -> list[Row]:
    """Synchronous webhook to a warm Python worker and back, at 32 connections and at 1."""
    with uvicorn() as bare, Daemon(SYNC, {"hook.py": HOOK}) as daemon:
        daemon.start()
        rows = []
        theirs, ours = _both(bare, daemon, "/hook")
        pairs([theirs, ours], 32, seconds)
        found = ratios(ours.rates, theirs.rates)
        detail = f"eventd {ours.summary()}; uvicorn {theirs.summary()}"
        rows.append(
            Row("synchronous webhook, 32 connections", ">= 0.50 x uvicorn", f"{spread(found)} x", statistics.median(found) >= 0.50, detail)
        )
        theirs, ours = _both(bare, daemon, "/hook")
        pairs([theirs, ours], 1, seconds)
        added = [a - b for a, b in zip(ours.p50s, theirs.p50s, strict=True)]
        detail = f"eventd {ours.summary()}; uvicorn {theirs.summary()}"
        rows.append(
            Row(
                "its added latency, 1 connection",
                "p50 <= 100 us over uvicorn",
                f"{spread(added, '.0f')} us",
                statistics.median(added) <= 100,
                detail,
            )
        )
        return rows


def _both(bare: Peer, daemon: Daemon, path: str) -> tuple[Measured, Measured]:
    return Measured(bare.pid, bare.port, path), Measured(daemon.pid, daemon.port, path)


def beside_workerd(seconds: float) -> list[Row]:
    """The first row beside workerd, which npm installs in a temporary folder for it."""
    what, budget = "synchronous webhook beside workerd", ">= 1.0 x workerd"
    peer = workerd()
    if isinstance(peer, str):
        return [Row(what, budget, "not measured", None, peer)]
    with peer as other, Daemon(SYNC, {"hook.py": HOOK}) as daemon:
        daemon.start()
        theirs, ours = _both(other, daemon, "/hook")
        pairs([theirs, ours], 32, seconds)
        found = ratios(ours.rates, theirs.rates)
        return [
            Row(what, budget, f"{spread(found)} x", statistics.median(found) >= 1.0, f"eventd {ours.summary()}; workerd {theirs.summary()}")
        ]


def durable(seconds: float) -> list[Row]:
    """202 after the fsync. Acceptance alone (the function is paused, so events are held), and with the runs going on beside it."""
    rows = []
    with uvicorn() as bare, Daemon(ASYNC, {"hook.py": HOOK}) as daemon:
        daemon.start()
        for what, path in (("durable 202, 32 connections", "/held"), ("the same while the runs go on", "/running")):
            theirs, ours = _both(bare, daemon, path)
            pairs([theirs, ours], 32, seconds)
            found = ratios(ours.rates, theirs.rates)
            detail = f"eventd {ours.summary()}; uvicorn {theirs.summary()}"
            if path == "/running":
                detail += f"; {daemon.function('busy')['waiting']:,} runs were left over at the end"
            rows.append(Row(what, ">= 0.55 x uvicorn", f"{spread(found)} x", statistics.median(found) >= 0.55, detail))
    return rows
