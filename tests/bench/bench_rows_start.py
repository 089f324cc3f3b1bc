"""Rows of starting workers: cold starts, and 0 to 500 runs at once."""

from __future__ import annotations

import socket
import statistics
import time

from bench_daemon import Daemon, pss_mib, workers
from bench_load import Caller, request
from bench_stats import Row, percentile

SAMPLES = 60

TELL = """
import json, socket, time
{more}
def handler(event, context):
    now = time.monotonic()
    order = json.loads(event["body"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as post:
        post.sendto(repr(now).encode(), ("127.0.0.1", order["port"]))
    time.sleep(order["sleep"])
"""
BOTO3 = 'import boto3\nclient = boto3.client("s3", region_name="us-east-1")'

CONFIG = """
[daemon]
concurrency = 600
[functions.cold]
concurrency = 500
timeout = "10m"
{more}
[triggers.cold]
type = "webhook"
path = "/cold"
function = "cold"
"""


class Post:
    """Where handlers say when they were called: the monotonic clock is one for the whole machine."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(60)
        self.port: int = self._socket.getsockname()[1]

    def next(self) -> float:
        return float(self._socket.recv(64))

    def __enter__(self) -> Post:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _order(post: Post, sleep: float) -> bytes:
    return request("/cold", b'{"port": %d, "sleep": %f}' % (post.port, sleep))


def colds(daemon: Daemon, samples: int) -> list[float]:
    """Milliseconds from sending an event to its handler function's first line, each in a worker of its own: the earlier ones sleep."""
    took: list[float] = []
    callers = [Caller(daemon.port) for _ in range(samples + 1)]
    with Post() as post:
        for caller in callers:
            message = _order(post, 300)
            begun = time.monotonic()
            caller.send(message)
            took.append((post.next() - begun) * 1000)
            time.sleep(0.03)  # let what that start left to do (the template's next turn) not fall into the following sample
        for caller in callers:
            caller.close()
    return took[1:]  # the first met the worker that loading the function had started


def cold(seconds: float) -> list[Row]:
    """Cold starts of Python: with nothing imported, with a boto3 client at module level, and that one with `snapshot`."""
    samples = min(100, max(20, round(SAMPLES * seconds / 3)))
    rows = []
    with Daemon(CONFIG.format(more=""), {"cold.py": TELL.format(more="")}) as daemon:
        daemon.start()
        rows.append(_row("cold start, nothing imported", 2.5, colds(daemon, samples)))
    for what, limit, more in (
        ("cold start, boto3 client at module level", 90.0, ""),
        ("the same with snapshot = true", 6.0, "snapshot = true"),
    ):
        files = {"cold/cold.py": TELL.format(more=BOTO3), "cold/requirements.txt": "boto3\n"}
        with Daemon(CONFIG.format(more=more), files) as daemon:
            try:
                daemon.start(300)
                daemon.until(lambda: daemon.function("cold")["state"] != "building", "boto3 to be installed", 300, pause=0.2)
                found = daemon.function("cold")
                if found["state"] != "ready":
                    rows.append(
                        Row(what, f"p50 <= {limit:g} ms", "not measured", None, f"the function is {found['state']}: {found['error']}")
                    )
                    continue
                rows.append(_row(what, limit, colds(daemon, max(10, samples // 3))))
            except (RuntimeError, OSError) as error:
                rows.append(Row(what, f"p50 <= {limit:g} ms", "not measured", None, str(error)[-400:]))
    return rows


def _row(what: str, limit: float, took: list[float]) -> Row:
    middle = statistics.median(took)
    measured = f"p50 {middle:.2f} ms, p99 {percentile(took, 99):.2f}"
    return Row(
        what, f"p50 <= {limit:g} ms", measured, middle <= limit, f"{len(took)} starts, from sending the request to the handler's first line"
    )


def burst(seconds: float) -> list[Row]:
    """0 to 500 runs at once, of a handler that sleeps and has no state of its own."""
    count = 500
    with Daemon(CONFIG.format(more='idle = "5m"'), {"cold.py": TELL.format(more="")}) as daemon, Post() as post:
        daemon.start()
        callers = [Caller(daemon.port) for _ in range(count)]
        message = _order(post, max(5.0, 2 * seconds))
        begun = time.monotonic()
        for caller in callers:
            caller.send(message)
        last = max(post.next() for _ in range(count)) - begun
        for caller in callers:
            caller.receive()  # now all are idle
        found = [pss_mib(pid) for pid in workers(daemon.pid)[:40]]
        for caller in callers:
            caller.close()
        each = statistics.mean(found)
        return [
            Row("0 to 500 runs at once", "<= 2 s", f"{last:.2f} s", last <= 2, "from the first request to the 500th handler's first line"),
            Row(
                "an idle worker's memory (PSS)",
                "<= 4 MiB",
                f"{each:.2f} MiB",
                each <= 4,
                f"mean of {len(found)} of {count} workers, their share of the template included",
            ),
        ]
