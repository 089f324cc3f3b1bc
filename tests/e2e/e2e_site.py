"""The real daemon as a user starts it: its own process, a temporary site, a port of the system's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 30.0


class Site:
    """A folder with a configuration and handlers, and the daemon that serves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "eventd.toml"
        self.handlers = root / "handlers"
        self.state = root / "state"
        self.log = root / "log"
        self.handlers.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.write("")

    def write(self, text: str, **more: Any) -> None:
        """The whole configuration; the listener is on a free port."""
        body = '[http]\nlisten = ["127.0.0.1:0"]\n' + textwrap.dedent(text)
        part = self.config.with_suffix(".part")
        part.write_text(body)
        part.rename(self.config)

    def handler(self, name: str, text: str) -> Path:
        """Save a handler as an editor does: written beside it and renamed."""
        path = self.handlers / name
        part = self.root / f".{name}.part"
        part.write_text(textwrap.dedent(text))
        part.chmod(0o755 if text.startswith("#!") else 0o644)
        part.rename(path)
        return path

    def start(self, wait: bool = True, **environment: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "STATE_", "RUNTIME_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventd", "serve", "-c", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**clean, **environment},
            )  # fmt: skip
        if wait:
            self.until(self._is_up, "the daemon to be ready")

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.printed()}")
        done = self.cli("status", "--json", check=False)
        if done.returncode:
            return False
        status = json.loads(done.stdout)
        if not status["listen"]["http"] or status["state"] not in ("ready", "degraded"):
            return False
        self.url = f"http://{status['listen']['http'][0]}"
        return True

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def cli(
        self, *args: str, check: bool = True, input: str | None = None, timeout: float = DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "eventd", "-c", str(self.config), *args], capture_output=True, text=True, input=input, timeout=timeout,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"eventd {' '.join(args)} ended with {done.returncode}: {done.stderr}\n{self.printed()}")
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.cli(*args, "--json").stdout)

    def api(self, path: str) -> Any:
        """A GET on the control socket: quicker than a CLI process, for conditions that are asked again and again."""
        transport = httpx.HTTPTransport(uds=str(self.state / "eventd.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=10) as client:
            return client.get(path).raise_for_status().json()

    def runs(self, **query: Any) -> list[dict[str, Any]]:
        text = "&".join(f"{key}={value}" for key, value in {"limit": 10_000, **query}.items())
        runs: list[dict[str, Any]] = self.api(f"/v1/runs?{text}")["runs"]
        return runs

    def until(self, true: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
        """Wait for a condition; what it returned."""
        deadline = time.monotonic() + seconds
        while True:
            found = true()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s for {what}\n{self.printed()[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9: nothing is written any more."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def children(self) -> list[int]:
        """Every process below the daemon."""
        assert self.process is not None
        return below(self.process.pid)


def below(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *below(int(child))]
    except OSError:
        pass
    return found
