"""The benchmarks' own arithmetic, on what was recorded once. Nothing is timed here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import bench_load
import bench_stats as stats
import pytest
import run
from bench_stats import Load, Row

from eventd.journal import open_journal
from eventd.model import JournalSettings

WRK = """Running 3s test @ http://127.0.0.1:8080/hook
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   728.61us  250.18us   3.56ms   85.68%
    Req/Sec    43.90k     2.51k   47.43k    83.33%
  Latency Distribution
     50%  644.00us
     75%    0.85ms
     90%    1.02ms
     99%    1.50ms
  131046 requests in 3.00s, 16.87MB read
Requests/sec:  43674.22
Transfer/sec:      5.62MB
"""


def test_what_wrk_prints_is_read_with_its_units() -> None:
    assert stats.read_wrk(WRK) == Load(131_046, 43_674.22, 644.0, 1_500.0, 0)
    assert stats.read_wrk(WRK.replace("1.50ms", "1.34s")).p99_us == 1_340_000


def test_answers_that_are_no_success_and_broken_connections_are_failures() -> None:
    text = WRK.replace(
        "Requests/sec", "  Socket errors: connect 0, read 3, write 1, timeout 2\n  Non-2xx or 3xx responses: 17\nRequests/sec"
    )
    assert stats.read_wrk(text).failed == 23


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused", WRK.replace("99%", "98%")])
def test_anything_else_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match="not what wrk prints"):
        stats.read_wrk(text)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [stats.percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert stats.percentile([7.0], 99) == 7
    assert stats.percentile([1.0, 2.0], 99) == 2
    with pytest.raises(ValueError, match="no values"):
        stats.percentile([], 50)


def test_ratios_are_taken_pair_by_pair() -> None:
    found = stats.ratios([50, 20, 60], [100, 40, 100])
    assert found == [0.5, 0.5, 0.6]
    assert stats.spread(found) == "0.50 (0.50 to 0.60)"
    with pytest.raises(ValueError, match="pairs"):
        stats.ratios([1], [])


def test_the_table_lines_up_and_tells_a_miss_from_what_was_not_measured() -> None:
    rows = [Row("a", "<= 2 s", "1 s", True), Row("bb", "<= 2 s", "2.68 s", False, "why"), Row("c", "", "not measured", None, "no npm")]
    lines = stats.table(rows).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert [line.split("|")[4].strip() for line in lines[2:5]] == ["met", "MISSED", "-"]
    assert lines[5:] == ["", "bb: why", "c: no npm"]
    assert "\n\n" not in stats.table(rows[:1])


def test_a_busy_machine_is_warned_of() -> None:
    assert stats.busy(0.2) == ""
    assert "1.54" in stats.busy(1.54)


def test_what_proc_says() -> None:
    line = "1674 (a (b) c) S 1 1674 1674 0 -1 4194560 9000 0 0 0 512 77 0 0 20 0 8 0 6641 400000000 12000 18446744073709551615"
    assert stats.cpu_of_stat(line) == (512, 77)
    assert stats.rss_of_status("Name:\tpython\nVmHWM:\t   70000 kB\nVmRSS:\t   55500 kB\n") == pytest.approx(54.2, abs=0.01)
    assert stats.pss_of_rollup("00400000-7ff Rss\nRss:  9000 kB\nPss:              2048 kB\nPss_Anon: 1 kB\n") == 2.0
    for read in (stats.rss_of_status, stats.pss_of_rollup):
        with pytest.raises(ValueError, match="gone"):
            read("State:\tZ (zombie)\n")


def test_our_own_client_speaks_http() -> None:
    assert bench_load.request("/a", b"{}") == (
        b"POST /a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert bench_load.length_of(b"HTTP/1.1 200 OK\r\nContent-Length:  11\r\n\r\n") == 11
    assert bench_load.length_of(b"HTTP/1.1 204 No Content\r\n\r\n") == 0


def test_a_row_that_does_not_exist_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run.main(["sync", "warp"])
    assert leaving.value.code == 2
    assert "warp: no such row" in capsys.readouterr().err


def test_a_row_that_fails_is_a_line_of_the_table_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seconds: float) -> list[Row]:
        raise RuntimeError("no daemon")

    monkeypatch.setattr(run, "ROWS", {"broken": broken, "fine": lambda seconds: [Row("fine", "", f"{seconds:g} s", True)]})
    assert run.main(["--seconds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "broken: RuntimeError: no daemon" in printed
    assert "2 s" in printed


def test_the_backlog_is_filled_through_the_journal(tmp_path: Path) -> None:
    """A small one: the rows are there for the next daemon, every acceptance was answered."""
    script = Path(__file__).with_name("bench_fill.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "300"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"rate", "seconds", "rss_mib"}

    async def known() -> tuple[int, int]:
        journal = await open_journal(str(tmp_path), JournalSettings(), boot="x", loop=asyncio.get_running_loop())
        try:
            boot = await journal.load()
            return boot.next_event, sum(queue.open for queue in boot.queues)
        finally:
            await journal.aclose()

    assert asyncio.run(known()) == (301, 300)
