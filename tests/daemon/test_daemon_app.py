"""The daemon's whole life: starting, being told to stop at any moment, storage that fails, and what it answers to a shell."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon_house import Folder, Probe

from eventd.core.facts import PauseSet
from eventd.daemon import app as app_module
from eventd.daemon.app import App, _ended_by
from eventd.daemon.mistakes import Mistakes
from eventd.daemon.reload import read
from eventd.errors import EventdError
from eventd.journal import SqliteJournal
from eventd.sdk import Event

DEADLINE_S = 20.0
ONE = """
[http]
listen = []
[triggers.in]
type = "probe"
"""


# --- in this process ---


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[SqliteJournal]:
    """The test's process stays as it is; the journals that were opened."""
    journals: list[SqliteJournal] = []
    real = app_module.open_journal

    async def opened(*args: Any, **more: Any) -> SqliteJournal:
        journals.append(await real(*args, **more))
        return journals[-1]

    monkeypatch.setattr(app_module, "harden_daemon", lambda: None)
    monkeypatch.setattr(app_module, "open_journal", opened)
    return journals


def live(root: Path, probe: Probe, act: Callable[[App], Any], text: str = ONE) -> int:
    """One daemon's life; `act` is called once it is ready."""
    folder = Folder(root)
    folder.write(text)
    plugins = probe.plugins()
    loading = read(str(folder.file), plugins, None, boot=True)
    assert loading.settings is not None, loading.problems
    acts: list[Any] = []
    app = App(loading.settings, plugins, loading.problems, lambda started: acts.append(act(app)))

    async def run() -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await app.run()

    with asyncio.Runner() as runner:
        return runner.run(run())


def broken_disk(step: str) -> None:
    if step == "before-commit":
        raise OSError(5, "Input/output error")


def test_a_daemon_that_is_told_to_stop_ends_with_0(tmp_path: Path, quiet: list[SqliteJournal]) -> None:
    probe = Probe()
    assert live(tmp_path, probe, lambda app: app._asked_to_stop()) == 0
    assert probe.ended == ["in"]
    assert not (tmp_path / "state" / "eventd.sock").exists()


def test_when_storage_fails_the_daemon_ends_whoever_waits(tmp_path: Path, quiet: list[SqliteJournal]) -> None:
    probe = Probe()
    answers: list[Any] = []

    async def play(site: Any, settings: Any) -> None:
        site.ready()
        await probe_go.wait()
        answers.append(await site.emit(Event(data={}, id="e1")))

    probe_go = asyncio.Event()
    probe.play["in"] = play

    def act(app: App) -> None:
        quiet[0].writer.step = broken_disk
        probe_go.set()

    began = time.monotonic()
    with pytest.raises(EventdError) as ended:
        live(tmp_path, probe, act)
    assert time.monotonic() - began < 4
    assert (ended.value.code, ended.value.exit) == ("E-STORAGE", 5)
    assert answers == [], "nothing is acknowledged in doubt"
    assert probe.ended == ["in"]


def test_storage_that_fails_during_the_start_ends_it(tmp_path: Path, quiet: list[SqliteJournal], monkeypatch: pytest.MonkeyPatch) -> None:
    real = app_module.open_history

    async def opened(*args: Any, **more: Any) -> Any:
        quiet[0].writer.step = broken_disk
        return await real(*args, **more)

    async def never(self: Any, boot: Any) -> None:
        quiet[0].append([PauseSet("function", "hello", True)], lambda: None)
        await asyncio.Event().wait()

    monkeypatch.setattr(app_module, "open_history", opened)
    monkeypatch.setattr(app_module.Engine, "start", never)
    with pytest.raises(EventdError) as ended:
        live(tmp_path, Probe(), lambda app: None)
    assert ended.value.exit == 5


def test_a_trigger_that_ignores_its_end_does_not_hold_up_the_stop(
    tmp_path: Path, quiet: list[SqliteJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends only when the stop has come past it, so a stop that waits for it never ends."""
    probe = Probe()
    past = asyncio.Event()
    real = app_module.HttpServer.aclose

    async def closing(*args: Any) -> None:
        past.set()
        await real(*args)

    monkeypatch.setattr(app_module.HttpServer, "aclose", closing)

    async def play(site: Any, settings: Any) -> None:
        import anyio

        site.ready()
        with anyio.CancelScope(shield=True):
            await past.wait()

    probe.play["in"] = play
    assert live(tmp_path, probe, lambda app: app._asked_to_stop(), '[daemon]\ndrain_timeout = "50ms"\n' + ONE) == 0
    assert past.is_set()


def test_what_a_callback_raises_is_told_and_counted(tmp_path: Path, quiet: list[SqliteJournal], caplog: pytest.LogCaptureFixture) -> None:
    counts: list[int] = []

    def act(app: App) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            loop.call_soon(lambda: 1 / 0)
        loop.call_later(0.05, lambda: (counts.append(app.mistakes.count), app._asked_to_stop()))

    assert live(tmp_path, Probe(), act) == 0
    assert counts == [3]
    assert caplog.text.count("E-INTERNAL") == 1, "the same mistake is told once a minute"
    assert "ZeroDivisionError" in caplog.text


def test_mistakes_of_different_kinds_are_each_told(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        mistakes = Mistakes()
        mistakes.told("this failed", ValueError("a"))
        mistakes.told("this failed", KeyError("a"))
        mistakes.told("that failed.", ValueError("a"))
        mistakes.told("that failed.", ValueError("b"))
        assert mistakes.count == 4

    asyncio.run(run())
    told = [record.getMessage() for record in caplog.records]
    assert told == ["E-INTERNAL this failed.", "E-INTERNAL this failed.", "E-INTERNAL that failed."]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (EventdError("E-LOCKED", "taken.", "Wait."), 4, "E-LOCKED taken. Wait."),
        (
            BaseExceptionGroup("x", [asyncio.CancelledError(), ExceptionGroup("y", [EventdError("E-LISTEN", "taken.")])]),
            2,
            "E-LISTEN taken.",
        ),
        (ExceptionGroup("x", [ValueError("boom"), EventdError("E-STORAGE", "gone.")]), 5, "E-STORAGE gone."),
        (ValueError("boom"), 1, "E-INTERNAL a mistake in eventd itself ends it: ValueError: boom."),
    ],
)
def test_every_end_has_words_and_a_status(error: BaseException, status: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert _ended_by(error) == status
    assert said in [record.getMessage() for record in caplog.records]


# --- as a process ---


class Daemon:
    def __init__(self, root: Path, text: str = "") -> None:
        self.folder = Folder(root)
        self.folder.write('[http]\nlisten = ["127.0.0.1:0"]\n' + text)
        self.log = root / "log"
        self.socket = root / "state" / "eventd.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *args: str, **environment: str) -> Daemon:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "STATE_", "RUNTIME_"))}
        command = [sys.executable, "-m", "eventd", "serve", "-c", str(self.folder.file), *args]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean | environment)
        return self

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://localhost", timeout=10) as client:
            return client.request(method, path, json=body)

    def state(self) -> str:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return ""
        return str(self.ask("GET", "/v1/status").json()["state"])

    def until(self, true: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + DEADLINE_S
        while not (found := true()):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"waited for {what}; status {self.process.poll()}\n{self.log.read_text()}")
            time.sleep(0.01)
        return found

    def ready(self) -> Daemon:
        self.until(lambda: self.state() == "ready", "the daemon to be ready")
        return self

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.terminate()
        try:
            daemon.process.wait(10)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


SLEEPY = "import time\ntime.sleep(8)\ndef handler(event, context): return event\n"
LONG = "import time\ndef handler(event, context):\n    time.sleep(60)\n"


def test_a_stop_while_it_starts(daemon: Daemon) -> None:
    daemon.folder.handler("sleepy.py", SLEEPY)
    daemon.start()
    daemon.until(lambda: daemon.state() == "starting", "the start")
    for path, body in (("/v1/invoke", {"function": "sleepy"}), ("/v1/reload", {}), ("/v1/drain", {})):
        refused = daemon.ask("POST", path, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "E-STARTING")
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    assert daemon.end() == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in daemon.log.read_text()


def test_a_reload_signal_while_it_starts_does_no_harm(daemon: Daemon) -> None:
    daemon.start()
    while daemon.state() != "ready":
        daemon.signal(signal.SIGHUP) if daemon.log.exists() and daemon.log.stat().st_size else None
        time.sleep(0.02)
    daemon.folder.handler("hello.py")
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: [row["state"] for row in daemon.ask("GET", "/v1/status").json()["functions"]] == ["ready"], "the function")


def test_the_second_stop_hurries(daemon: Daemon) -> None:
    daemon.folder.handler("long.py", LONG)
    daemon.start().ready()
    assert daemon.ask("POST", "/v1/invoke", {"function": "long", "async": True}).status_code == 202
    daemon.until(lambda: daemon.ask("GET", "/v1/status").json()["running"] == 1, "the run")
    daemon.signal(signal.SIGINT)
    daemon.until(lambda: daemon.state() == "draining", "the drain")
    assert daemon.ask("POST", "/v1/drain", {"undo": True}).json()["error"]["code"] == "E-DRAINING"
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    assert daemon.end() == 0
    assert time.monotonic() - began < 10
    daemon.start().ready()
    runs = daemon.ask("GET", "/v1/runs").json()["runs"]
    assert [(run["outcome"], run["attempt"]) for run in runs] == [("interrupted", 1)]
    daemon.until(lambda: daemon.ask("GET", "/v1/status").json()["running"] == 1, "the run to begin again")
    daemon.signal(signal.SIGTERM)
    daemon.until(lambda: daemon.state() == "draining", "the drain")
    daemon.signal(signal.SIGTERM)
    assert daemon.end() == 0


def test_the_socket_that_was_asked_for(daemon: Daemon, tmp_path: Path) -> None:
    daemon.folder.write(f'[http]\nlisten = []\n[control]\nsocket = "{tmp_path}/configured.sock"\n')
    daemon.socket = tmp_path / "asked.sock"
    daemon.start("--socket", str(daemon.socket)).ready()
    assert not (tmp_path / "configured.sock").exists()
    answer = daemon.ask("POST", "/v1/reload", {}).json()
    assert answer["applied"]
    assert not [change for change in answer["changes"] if change["kind"] == "control"]


def test_an_address_that_is_taken_is_one_line_and_status_2(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.folder.write(f'[http]\nlisten = ["127.0.0.1:{taken.getsockname()[1]}"]\n')
        daemon.start()
        assert daemon.end() == 2
    log = daemon.log.read_text()
    assert log.count("E-LISTEN") == 1
    assert "Traceback" not in log


def test_a_state_folder_that_cannot_be_is_status_5(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    daemon.folder.write(f'[daemon]\nstate = "{tmp_path}/file/state"\n')
    daemon.start()
    assert daemon.end() == 5
    assert "E-STORAGE the state folder" in daemon.log.read_text()


def test_addresses_change_with_a_reload_and_the_tcp_door_reads_and_invokes_only(daemon: Daemon) -> None:
    daemon.folder.handler("hello.py")
    daemon.folder.write('[http]\nlisten = ["127.0.0.1:0"]\n[control]\nlisten = ["127.0.0.1:0"]\n')
    daemon.start().ready()
    listen = daemon.ask("GET", "/v1/status").json()["listen"]
    (door,) = [address for address in listen["control"] if not address.startswith("unix:")]
    with httpx.Client(base_url=f"http://{door}") as client:
        assert client.get("/v1/status").status_code == 200
        assert client.post("/v1/invoke", json={"function": "hello"}).json()["result"] == {}
        for path in ("redrive", "discard", "cancel", "pause", "resume", "reload", "drain"):
            assert client.post(f"/v1/{path}", json={}).status_code == 403, path
    text = daemon.folder.file.read_text().replace('"127.0.0.1:0"]', '"127.0.0.1:0", "[::1]:0"]', 1)
    daemon.folder.write(text)
    assert daemon.ask("POST", "/v1/reload", {}).json()["applied"]
    now = daemon.ask("GET", "/v1/status").json()["listen"]["http"]
    assert now[0] == listen["http"][0], "the one before was never closed"
    assert len(now) == 2
    with httpx.Client() as client:
        assert [client.get(f"http://{address}/nothing").status_code for address in now] == [404, 404]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.folder.write(f'[http]\nlisten = ["127.0.0.1:{taken.getsockname()[1]}"]\n')
        answer = daemon.ask("POST", "/v1/reload", {}).json()
    assert (answer["applied"], answer["problems"][0]["code"]) == (False, "E-LISTEN")
    assert daemon.ask("GET", "/v1/status").json()["listen"]["http"] == now
    assert json.dumps(answer)
