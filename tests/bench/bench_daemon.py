"""The real daemon in a process of its own, default settings except what a row needs, its log in a file; and what /proc says of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from bench_load import work_folder
from bench_stats import cpu_of_stat, pss_of_rollup, rss_of_status

TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    """A site in a temporary folder and the daemon that serves it. A context manager: at the end all of it is gone."""

    def __init__(self, config: str = "", handlers: dict[str, str] | None = None) -> None:
        self.root = work_folder()
        self.config = self.root / "eventd.toml"
        self.log = self.root / "log"
        self.state = self.root / "state"
        self.config.write_text('[http]\nlisten = ["127.0.0.1:0"]\n' + textwrap.dedent(config))
        for name, text in (handlers or {}).items():
            path = self.root / "handlers" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (self.root / "handlers").mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, seconds: float = 60.0) -> float:
        """Start it; seconds from exec to the line in the log that says it is ready."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "STATE_", "RUNTIME_"))}
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventd", "serve", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean,
            )
        self.until(lambda: "eventd is ready" in self.printed(), "the daemon to be ready", seconds, pause=0.002)
        took = time.monotonic() - begun
        self.port = int(str(self.status()["listen"]["http"][0]).rpartition(":")[2])
        return took

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # asked twice, it interrupts what still runs
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60.0, pause: float = 0.01) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.process.returncode}:\n{self.printed()[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds:.0f} s for {what}:\n{self.printed()[-2000:]}")
            time.sleep(pause)
        return found

    def api(self, method: str, path: str, body: Any = None) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.state / "eventd.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as client:
            return client.request(method, path, json=body).raise_for_status().json()

    def status(self) -> Any:
        return self.api("GET", "/v1/status")

    def accepted(self, trigger: str) -> int:
        return int(next(one["accepted"] for one in self.status()["triggers"] if one["trigger"] == trigger))

    def function(self, name: str) -> Any:
        return next(one for one in self.status()["functions"] if one["function"] == name)

    def cli(self, *args: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "eventd", "-c", str(self.config), *args, "--json"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"eventd {' '.join(args)}: {done.stderr}")
        return json.loads(done.stdout or "null")


# --- what the kernel says of a process ---


def _read(path: str) -> str:
    return Path(path).read_text()


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system time of all its threads so far."""
    user, system = cpu_of_stat(_read(f"/proc/{pid}/stat"))
    return user / TICKS, system / TICKS


def cpu_exact(pid: int) -> float:
    """Seconds on a processor, to the nanosecond, where the kernel keeps schedstat; else in ticks."""
    try:
        return sum(int(_read(f"/proc/{pid}/task/{task}/schedstat").split()[0]) for task in os.listdir(f"/proc/{pid}/task")) / 1e9
    except OSError:
        return sum(cpu_seconds(pid))


def rss_mib(pid: int) -> float:
    return rss_of_status(_read(f"/proc/{pid}/status"))


def pss_mib(pid: int) -> float:
    return pss_of_rollup(_read(f"/proc/{pid}/smaps_rollup"))


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    except OSError:
        pass
    return found


def below(pid: int) -> list[int]:
    """Every process under this one."""
    return [one for child in children(pid) for one in (child, *below(child))]


def workers(pid: int) -> list[int]:
    """The processes at the ends of the tree: a template has workers below it, a worker nothing."""
    return [one for one in below(pid) if not children(one)]
