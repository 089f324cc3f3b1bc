"""Rows of amounts: 20,000 files, an idle daemon, 1,000,000 events of backlog, a neighbour that floods."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_daemon import Daemon, below, cpu_exact, rss_mib
from bench_load import Caller, request
from bench_rows_http import HOOK, PAIRS
from bench_stats import Row, percentile, spread

FILES = 20_000
BACKLOG = 1_000_000
FLOOD = 2_000
CALLS = 2_000

DROPS = """
[functions.hook]
paused = true
[triggers.drops]
type = "directory"
path = "drops"
function = "hook"
"""

IDLE = """
[triggers.drops]
type = "directory"
path = "drops"
function = "hook"
[triggers.yearly]
type = "schedule"
schedule = "0 0 1 1 *"
function = "hook"
[triggers.hook]
type = "webhook"
path = "/hook"
function = "hook"
"""

PAUSED = """
[functions.hook]
paused = true
"""

NEIGHBOURS = """
[triggers.flood]
type = "webhook"
mode = "async"
path = "/flood"
function = "flood"
[triggers.quiet]
type = "webhook"
path = "/quiet"
function = "quiet"
"""


def files(seconds: float) -> list[Row]:
    """20,000 files made at once beside a running daemon; the function is paused, so that acceptance is what is measured."""
    with Daemon(DROPS, {"hook.py": HOOK}) as daemon:
        drops = daemon.root / "drops"
        drops.mkdir()
        daemon.start()
        begun = time.monotonic()
        for n in range(FILES):
            (drops / f"file-{n:05}.txt").write_bytes(b"x")
        made = time.monotonic() - begun
        daemon.until(lambda: daemon.accepted("drops") > 0, "the first file", 60, pause=0.02)
        first = time.monotonic() - begun
        daemon.until(lambda: daemon.accepted("drops") >= FILES, f"{FILES} files", 120, pause=0.05)
        last = time.monotonic() - begun
        found = daemon.accepted("drops")
        held = daemon.function("hook")["waiting"]
        missed = FILES - min(found, held)
        # Files must be one second old (`settle`) before they may be taken; a file made last can be taken only then.
        rate = FILES / max(last - min(first, made + 1.0), 0.001)
        detail = f"written in {made:.1f} s, first accepted after {first:.1f} s, last after {last:.1f} s, settle = 1 s"
        return [
            Row("burst of 20,000 files, missed", "0", f"{missed}", missed == 0, detail),
            Row("burst of 20,000 files, accepted", ">= 3,000/s", f"{rate:,.0f}/s", rate >= 3_000),
        ]


def idle(seconds: float) -> list[Row]:
    """A daemon with three triggers that has nothing to do."""
    with Daemon(IDLE, {"hook.py": HOOK}) as daemon:
        (daemon.root / "drops").mkdir()
        daemon.start()
        time.sleep(3)  # what starting leaves behind is not idling
        spell = max(10.0, 3 * seconds)
        before = cpu_exact(daemon.pid)
        time.sleep(spell)
        cpu = (cpu_exact(daemon.pid) - before) / spell * 100
        rss = rss_mib(daemon.pid)
        others = ", ".join(f"{rss_mib(pid):.0f}" for pid in below(daemon.pid))
        return [
            Row(
                "idle daemon, three triggers, memory",
                "<= 60 MiB RSS",
                f"{rss:.1f} MiB",
                rss <= 60,
                f"its other processes (template, worker): {others} MiB RSS",
            ),
            Row("idle daemon, three triggers, processor", "<= 0.3 %", f"{cpu:.2f} %", cpu <= 0.3, f"over {spell:.0f} s"),
        ]


def backlog(seconds: float) -> list[Row]:
    """1,000,000 events in the journal: how fast they were accepted, how soon the daemon is ready over them, what it then takes."""
    with Daemon(PAUSED, {"hook.py": HOOK}) as daemon:
        daemon.state.mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("bench_fill.py")), str(daemon.state), str(BACKLOG)],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            return [Row("1,000,000 events of backlog", "", "not measured", None, done.stderr[-600:])]
        filled = json.loads(done.stdout)
        ready = [daemon.start(120)]
        held = daemon.function("hook")["waiting"]
        rss = [rss_mib(daemon.pid)]
        for _ in range(PAIRS - 1):
            daemon.stop()
            ready.append(daemon.start(120))
            rss.append(rss_mib(daemon.pid))
        size = sum(path.stat().st_size for path in daemon.state.glob("journal.db*")) / 2**20
        middle, most = statistics.median(ready), max(rss)
        detail = f"{held:,} held, journal {size:,.0f} MiB, the filling process {filled['rss_mib']:.0f} MiB RSS"
        return [
            Row(
                "1,000,000 events: accepted",
                ">= 20,000/s",
                f"{filled['rate']:,.0f}/s",
                filled["rate"] >= 20_000,
                "512-byte bodies, SqliteJournal.accept",
            ),
            Row("1,000,000 events: ready from exec", "<= 1.5 s", f"{spread(ready)} s", middle <= 1.5, detail),
            Row("1,000,000 events: daemon's memory", "<= 110 MiB RSS", f"{most:.1f} MiB", most <= 110),
        ]


def flood(seconds: float) -> list[Row]:
    """2,000 queued runs that sleep 1 s, default configuration; another function's calls meanwhile."""
    handlers = {"flood.py": "import time\ndef handler(event, context):\n    time.sleep(1)\n", "quiet.py": HOOK}
    with Daemon(NEIGHBOURS, handlers) as daemon:
        daemon.start()
        caller = Caller(daemon.port)
        caller.sequence("/quiet", 500)
        daemon.api("POST", "/v1/pause", {"target": "function:flood"})
        for _ in range(FLOOD):
            caller.send(request("/flood"))
            caller.receive()
        quiet: list[float] = []
        flooded: list[float] = []
        for _ in range(PAIRS):
            daemon.until(lambda: not daemon.status()["running"], "the last flooding runs to end", 60)
            quiet.append(percentile(caller.sequence("/quiet", CALLS), 99))
            daemon.api("POST", "/v1/resume", {"target": "function:flood"})
            daemon.until(lambda: daemon.function("flood")["running"] > 0, "the flood to begin", 30)
            time.sleep(0.5)
            flooded.append(percentile(caller.sequence("/quiet", CALLS), 99))
            running, left = daemon.function("flood")["running"], daemon.function("flood")["waiting"]
            daemon.api("POST", "/v1/pause", {"target": "function:flood"})
        caller.close()
        found = [a / b for a, b in zip(flooded, quiet, strict=True)]
        detail = f"p99 quiet {spread(quiet, '.0f')} us, flooded {spread(flooded, '.0f')} us; {running} flooding runs at once, {left:,} waiting at the end"
        return [
            Row("a neighbour floods: p99 of 2,000 calls", "<= 1.5 x quiet", f"{spread(found)} x", statistics.median(found) <= 1.5, detail)
        ]


def processors() -> int:
    return len(os.sched_getaffinity(0))
