"""`eventd demo`: the real daemon in a folder of its own with the shipped examples, real events, and each run as it happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Any

import anyio

from eventd.control.client import ControlClient
from eventd.errors import EventdError
from eventd.ports import Query

READY_S = 30.0
FINISH_S = 60.0
ORDER = {"id": "A-17", "email": "ada@example.com", "items": [{"name": "Tea", "price": 4.5, "quantity": 2}]}
CSV = "city,population\nBerlin,3677472\nParis,2133111\nVienna,1982097\n"

CONFIG = """\
# Written by 'eventd demo'. It is an ordinary configuration: change it while the daemon runs and see what happens.
[http]
listen = ["127.0.0.1:{port}"]

# A folder that stands in for an S3 bucket: drop a CSV file into it.
[triggers.uploads]
type = "directory"
path = "inbox"
include = ["*.csv"]
settle = "100ms"
function = "summarise"

# A schedule with seconds: every five seconds.
[triggers.heartbeat]
type = "schedule"
schedule = "*/5 * * * * *"
function = "heartbeat"

# One order event, fanned out to three functions, each with its own retries. Answered 202 when it is on disk.
[triggers.shop]
type = "webhook"
path = "/shop/orders"
methods = ["POST"]
mode = "async"

[[bindings]]
trigger = "shop"
function = "bill"

[[bindings]]
trigger = "shop"
function = "pack"

[[bindings]]
trigger = "shop"
function = "notify"
"""
WITH_NODE = """
# The answer of this webhook is the function's, in Node.js.
[triggers.orders]
type = "webhook"
path = "/orders"
methods = ["POST"]
function = "confirm"
"""
EXAMPLES = ("summarise.py", "heartbeat.sh", "bill.py", "pack.py", "notify.py", "_order.py", "hello.py")


def run_demo(directory: str | None, once: bool, as_json: bool = False) -> int:
    """0 when every run succeeded, 1 when one failed. Without `once` it goes on serving until Ctrl-C."""
    with _folder(directory, once) as folder:
        port = _free_port()
        node = shutil.which("node") is not None
        _write(folder, port, node)
        log = open(os.path.join(folder, "eventd.log"), "ab")  # noqa: SIM115 - handed to the daemon, closed below
        environment = {k: v for k, v in os.environ.items() if k not in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "EVENTD_SOCKET")}
        command = [sys.executable, "-P", "-m", "eventd", "serve", "-c", os.path.join(folder, "eventd.toml")]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        log.close()
        # asked to end by whoever, it ends its daemon too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return anyio.run(_show, folder, port, node, once, as_json, daemon)
        except KeyboardInterrupt:
            return 0
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextmanager
def _folder(directory: str | None, once: bool) -> Iterator[str]:
    if directory is None:
        folder = tempfile.mkdtemp(prefix="eventd-demo-")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if os.path.exists(os.path.join(directory, "eventd.toml")):
        raise EventdError("E-EXISTS", f"'{directory}' holds an eventd.toml already.", "Name another folder.")
    os.makedirs(directory, exist_ok=True)
    yield os.path.abspath(directory)


def _write(folder: str, port: int, node: bool) -> None:
    for name in ("inbox", "handlers"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    examples = files("eventd.examples") / "handlers"
    for name in (*EXAMPLES, "confirm.js") if node else EXAMPLES:
        target = os.path.join(folder, "handlers", name)
        with as_file(examples / name) as source:
            shutil.copyfile(source, target)
        os.chmod(target, 0o755 if name.endswith(".sh") else 0o644)
    with open(os.path.join(folder, "eventd.toml"), "w", encoding="utf-8") as file:
        file.write(CONFIG.format(port=port) + (WITH_NODE if node else ""))


def _free_port() -> int:
    """8080 when it is free, else any."""
    for wanted in (8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EventdError("E-LISTEN", "there is no free port on 127.0.0.1.")


async def _show(folder: str, port: int, node: bool, once: bool, as_json: bool, daemon: subprocess.Popen[bytes]) -> int:
    url = f"http://127.0.0.1:{port}"
    _say(f"The daemon runs in {folder}")
    async with ControlClient(os.path.join(folder, "state", "eventd.sock")) as control:
        await _ready(control, daemon, folder)
        expected = {"summarise", "heartbeat", "bill", "pack", "notify"} | ({"confirm"} if node else set())
        await anyio.to_thread.run_sync(_send, folder, url, node)
        seen: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + FINISH_S
        if not once:
            _say(f"Drop a CSV file into {folder}/inbox, or post an order:")
            _say(f"  curl -d '{json.dumps(ORDER)}' {url}/shop/orders")
            _say("Change a handler in the folder 'handlers' and send again. Ctrl-C ends the demo.\n")
        if not as_json:
            print(f"{'TRIGGER':<10} {'FUNCTION':<10} {'OUTCOME':<10} {'START':<5} {'WAITED':>9} {'INIT':>9} {'RAN':>9}", flush=True)
        while True:
            for record in await _fresh(control, seen):
                if not as_json:
                    print(_row(record), flush=True)
            done = {record["function"] for record in seen.values()}
            if once and expected <= done:
                break
            if once and time.monotonic() > deadline:
                _say(f"no run came for: {', '.join(sorted(expected - done))}; see {folder}/eventd.log")
                return 1
            await anyio.sleep(0.1)
        records = list(seen.values())
        if as_json:
            print(json.dumps({"runs": records}))
        failed = [record for record in records if record["outcome"] != "succeeded"]
        if not as_json:
            print(f"\n{len(records)} runs, {len(failed)} failed; every line is a row of the table 'runs' in state/runs.db.", flush=True)
        return 1 if failed else 0


async def _ready(control: ControlClient, daemon: subprocess.Popen[bytes], folder: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if (await control.status())["state"] in ("ready", "degraded"):
                return
        except EventdError:
            pass
        if daemon.poll() is not None or time.monotonic() > deadline:
            _say(_log_of(folder))
            raise EventdError("E-NODAEMON", "the daemon did not start.", "Its log is above.")
        await anyio.sleep(0.05)


def _log_of(folder: str) -> str:
    with open(os.path.join(folder, "eventd.log"), encoding="utf-8", errors="replace") as file:
        return file.read()[-4000:]


async def _fresh(control: ControlClient, seen: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    fresh = [record for record in (await control.runs(Query(limit=100)))["runs"] if record["run"] not in seen]
    fresh.reverse()
    for record in fresh:
        seen[record["run"]] = record
    return fresh


def _send(folder: str, url: str, node: bool) -> None:
    """A file renamed into the folder, an order for the fan-out, and one for the answering webhook."""
    inbox = os.path.join(folder, "inbox")
    part = os.path.join(inbox, ".cities.csv")
    with open(part, "w", encoding="utf-8") as file:
        file.write(CSV)
    os.rename(part, os.path.join(inbox, "cities.csv"))
    for path in ("/shop/orders", "/orders") if node else ("/shop/orders",):
        request = urllib.request.Request(url + path, json.dumps(ORDER).encode(), {"content-type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own daemon on loopback
                _say(f"POST {path} -> {answer.status} {answer.read().decode()}")
        except urllib.error.HTTPError as error:
            _say(f"POST {path} -> {error.code} {error.read().decode()}")


def _row(record: dict[str, Any]) -> str:
    init = "-" if record["init_ms"] is None else f"{record['init_ms']:.1f} ms"
    start = "cold" if record["cold"] else "warm"
    trigger = record["trigger"] or "-"
    waited, ran = f"{record['queue_ms']:.1f} ms", f"{record['duration_ms']:.1f} ms"
    return f"{trigger:<10} {record['function']:<10} {record['outcome']:<10} {start:<5} {waited:>9} {init:>9} {ran:>9}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
