"""Every client verb as a process of its own, against a scripted daemon on a real Unix socket: stdout, stderr, exit code."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from eventd.control.server import serve_control
from eventd.errors import EventdError
from eventd.model import ControlSettings
from eventd.ports import Query
from eventd.testing.control import FakeControl, dead_row, event_row, run_record, stats_row, status_row

EVENTD = [sys.executable, "-m", "eventd"]


class Daemon:
    """A FakeControl served from a thread of its own."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.control = FakeControl()
        self._up = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,), daemon=True)
        self._thread.start()
        assert self._up.wait(20)

    async def _serve(self) -> None:
        import asyncio

        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        async with serve_control(self.control, ControlSettings(socket=self.socket), log=logging.getLogger("test.cli"), grace_s=0):
            self._up.set()
            await stop.wait()

    def close(self) -> None:
        self._stop()
        self._thread.join(20)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(str(tmp_path_factory.mktemp("cli") / "c.sock"))
    yield made
    made.close()


@pytest.fixture
def fake(daemon: Daemon) -> FakeControl:
    daemon.control.__init__()  # type: ignore[misc]
    return daemon.control


class Done:
    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode(), err.decode()

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The one JSON error on stderr."""
        found: dict[str, str] = json.loads(self.err)["error"]
        assert set(found) == {"code", "message", "hint"}
        return found


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "JOURNAL_STREAM", "NO_COLOR"))}
    return kept | changes


def eventd(*argv: str, stdin: bytes = b"", **env: str) -> Done:
    done = subprocess.run([*EVENTD, *argv], input=stdin, capture_output=True, timeout=50, env=environment(**env), check=False)
    return Done(done.returncode, done.stdout, done.stderr)


Cli = Callable[..., Done]


@pytest.fixture
def cli(daemon: Daemon, fake: FakeControl, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The same without a process: for the many variants of flags."""
    from eventd.cli.app import run

    for key in list(os.environ):
        if key.startswith("EVENTD_"):
            monkeypatch.delenv(key)

    def call(*argv: str, stdin: bytes = b"") -> Done:
        reading, writing = os.pipe()
        os.write(writing, stdin)
        os.close(writing)
        capfdbinary.readouterr()
        with os.fdopen(reading) as given:
            monkeypatch.setattr(sys, "stdin", given)
            code = run(["--socket", daemon.socket, *argv])
        return Done(code, *capfdbinary.readouterr())

    return call


# --- each verb once, as a real process ---


VERBS: list[tuple[list[str], int, dict[str, Any] | None]] = [
    (["status"], 0, status_row()),
    (["invoke", "hello"], 0, {"run": run_record("run-9"), "result": {"ok": True}}),
    (["runs"], 0, {"runs": [run_record(f"run-{n}") for n in (3, 2, 1)], "next": None}),
    (["runs", "run-2"], 0, run_record("run-2")),
    (["events"], 0, {"events": [event_row("ev-2"), event_row("ev-1")], "next": None}),
    (["events", "ev-2", "--payload"], 0, None),
    (["dead"], 0, {"dead": [dead_row("dead-2"), dead_row("dead-1", function="other", reason="quarantined")], "next": None}),
    (["dead", "dead-2"], 0, {"dead": [dead_row("dead-2")], "next": None}),
    (["redrive", "--function", "other"], 0, {"redriven": 1, "invocations": ["dead-1"]}),
    (["discard", "dead-2", "--yes"], 0, {"discarded": 1, "invocations": ["dead-2"]}),
    (["cancel", "inv-of-ev-1"], 0, {"cancelled": 1, "invocations": ["inv-of-ev-1"]}),
    (["pause", "function:hello"], 0, {"kind": "function", "name": "hello", "paused": True}),
    (["resume", "binding:uploads/hello"], 0, {"kind": "binding", "name": "uploads/hello", "paused": False}),
    (["stats"], 0, {"since": "2026-11-20T10:11:12.345Z", "until": "2026-11-20T10:11:12.345Z", "functions": [stats_row()]}),
    (["reload"], 0, {"applied": True, "changes": [{"kind": "function", "name": "hello", "action": "keep"}], "problems": []}),
    (["drain"], 0, {"state": "drained", "running": 0, "open": 3}),
]


@pytest.mark.parametrize("argv, code, shape", VERBS, ids=[" ".join(argv) for argv, _, _ in VERBS])
def test_the_verb_in_json(daemon: Daemon, fake: FakeControl, argv: list[str], code: int, shape: dict[str, Any] | None) -> None:
    done = eventd(*argv, "--json", "--socket", daemon.socket)
    assert (done.code, done.err) == (code, "")
    if shape is not None:
        assert done.json == shape


@pytest.mark.parametrize("argv, code", [(argv, code) for argv, code, _ in VERBS], ids=[" ".join(argv) for argv, _, _ in VERBS])
def test_the_verb_for_people(cli: Cli, argv: list[str], code: int) -> None:
    done = cli(*argv)
    assert (done.code, done.err) == (code, "")
    assert done.out.strip()
    assert "\x1b" not in done.out
    assert "None" not in done.out


def test_logs_in_json_are_one_object_a_line(daemon: Daemon, fake: FakeControl) -> None:
    fake.log_lines = [{"time": "t", "function": "hello", "run": "r", "stream": "stdout", "line": text} for text in ("a", "b\u2028c", "é")]
    done = eventd("logs", "hello", "-n", "2", "--json", EVENTD_SOCKET=daemon.socket)
    assert done.code == 0
    assert [json.loads(line) for line in done.out.rstrip("\n").split("\n")] == fake.log_lines[1:]


# --- finding the daemon ---


def test_nobody_there_is_exit_3_with_a_hint(tmp_path: Path) -> None:
    path = str(tmp_path / "none.sock")
    text = eventd("status", "--socket", path)
    assert (text.code, text.out) == (3, "")
    assert text.err == f"E-NODAEMON no daemon answers at {path}. Start one: eventd serve -c FILE; or name its socket: --socket PATH\n"
    found = eventd("runs", "--socket", path, "--json")
    assert (found.code, found.out, found.error["code"]) == (3, "", "E-NODAEMON")


def test_a_socket_left_over_is_nobody_too(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "old.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    assert eventd("status", "--socket", path).code == 3


@pytest.mark.parametrize("how", ["config", "before", "environment", "default", "state"])
def test_the_socket_is_found_by_the_configuration(daemon: Daemon, fake: FakeControl, tmp_path: Path, how: str) -> None:
    config = tmp_path / "eventd.toml"
    config.write_text(f'[control]\nsocket = "{daemon.socket}"\n[triggers.t]\ntype = "nonsense"\n')
    argv, env, cwd = ["status"], {}, "/"
    if how == "config":
        argv = ["status", "-c", str(config)]
    elif how == "before":
        argv = ["--config", str(config), "status"]
    elif how == "environment":
        env = {"EVENTD_CONFIG": str(config)}
    elif how == "default":
        cwd = str(tmp_path)
    else:
        config.write_text("this is = = no TOML")
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "eventd.sock").symlink_to(daemon.socket)
        argv = ["status", "-c", str(config)]
    done = subprocess.run([*EVENTD, *argv], capture_output=True, timeout=50, env=environment(**env), cwd=cwd, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_said_wins_over_the_environment(daemon: Daemon, fake: FakeControl) -> None:
    for argv in (["--socket", daemon.socket, "status"], ["status", "--socket", daemon.socket]):
        assert eventd(*argv, EVENTD_SOCKET="/no/such.sock").code == 0
    assert eventd("--socket", "/no/such.sock", "status", "--socket", daemon.socket).code == 0


def test_flags_stand_before_or_after(cli: Cli, fake: FakeControl) -> None:
    assert cli("--json", "runs", "run-2").json["run"] == "run-2"
    assert cli("runs", "--json", "run-2").json["run"] == "run-2"
    assert cli("runs", "run-2", "--json").json["run"] == "run-2"


# --- usage ---


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"],
        ["statsu"],
        ["runs", "--limit", "0"],
        ["runs", "--limit", "10001"],
        ["runs", "--outcome", "great"],
        ["runs", "--since", "yesterday"],
        ["runs", "--since", "1m", "--until", "1h"],
        ["events", "--state", "gone"],
        ["redrive"],
        ["redrive", "a", "--all"],
        ["redrive", "--all", "--function", "hello"],
        ["redrive", "--reason", "bad_luck"],
        ["discard", "--all"],
        ["cancel"],
        ["pause", "hello"],
        ["pause", "worker:hello"],
        ["drain", "--undo", "--queue"],
        ["drain", "--timeout", "soon"],
        ["invoke"],
        ["invoke", "hello", "-d", "{"],
        ["invoke", "hello", "-d", "NaN"],
        ["invoke", "hello", "-d", "@/no/such/file"],
        ["invoke", "hello", "--id", "x"],
        ["invoke", "hello", "--async", "--tail"],
        ["invoke", "hello", "--wait", "5"],
        ["serve", "--log-format", "xml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_and_asks_nobody(cli: Cli, fake: FakeControl, argv: list[str]) -> None:
    text, found = cli(*argv), cli(*argv, "--json")
    assert (text.code, text.out) == (found.code, found.out) == (2, "")
    assert text.err.startswith("E-USAGE ")
    assert text.err.count("\n") == 1
    assert found.error["code"] == "E-USAGE"
    assert fake.calls == []


def test_a_verb_that_is_nearly_right_is_guessed(cli: Cli) -> None:
    assert "Did you mean 'status'" in cli("statuss").err


def test_every_verb_explains_itself_with_an_example(cli: Cli) -> None:
    from eventd.cli.app import VERBS as KNOWN

    overview = cli("--help").out
    for verb in KNOWN:
        assert f"  {verb} " in overview
        shown = cli(verb, "--help")
        assert shown.code == 0
        assert f"Example: {'until ' if verb == 'status' else ''}eventd {verb}" in shown.out
        assert "--socket" in shown.out
        assert "--config" in shown.out
    for absent in ("bind", "backup", "top", "replay", "doctor"):
        assert cli(absent).code == 2


def test_no_verb_prints_the_help_and_is_wrong_usage() -> None:
    done = eventd()
    assert (done.code, done.out) == (2, "")
    assert "Usage: eventd" in done.err


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from eventd.cli.app import run; run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, env=environment(), check=True)
    loaded = done.stdout.decode().splitlines()[-1]
    for heavy in ("httpx", "pydantic", "uvicorn", "starlette", "anyio", "rich", "msgspec", "prometheus_client", "asyncio", "apsw"):
        assert f"'{heavy}'" not in loaded


def test_version() -> None:
    from eventd import __version__

    assert eventd("--version").out == f"eventd {__version__}\n"


# --- status ---


@pytest.mark.parametrize("state, code", [("starting", 3), ("ready", 0), ("degraded", 0), ("draining", 0), ("drained", 0)])
def test_status_says_by_its_code_whether_it_has_started(cli: Cli, fake: FakeControl, state: str, code: int) -> None:
    fake.status_answer = status_row(state)
    assert cli("status").code == code
    found = cli("status", "--json")
    assert (found.code, found.json["state"]) == (code, state)


def test_status_shows_errors_of_functions_triggers_and_config(cli: Cli, fake: FakeControl) -> None:
    answer = status_row("degraded")
    answer["functions"][0] |= {"state": "broken", "error": "E-HANDLER hello.py:3 invalid syntax\x1b[2J"}
    answer["triggers"][0] |= {"state": "degraded", "error": "no such directory"}
    problem = {"code": "E-CONFIG", "severity": "error", "file": "a.toml", "line": 7, "path": "x.y", "message": "bad", "hint": "Fix it."}
    answer["config"] |= {"ok": False, "problems": [problem]}
    fake.status_answer = answer
    out = cli("status").out
    for part in (
        "broken",
        "E-HANDLER hello.py:3 invalid syntax\\x1b[2J",
        "trigger uploads: no such directory",
        "E-CONFIG a.toml:7 x.y: bad. Fix it.",
    ):
        assert part in out
    assert "\x1b" not in out


# --- invoke ---


@pytest.mark.parametrize(
    "argv, stdin, payload",
    [
        ([], b"", b"{}"),
        (["-d", '{"a": [1, "\u00e9"]}'], b"", '{"a": [1, "\u00e9"]}'.encode()),
        (["-d", "-"], b' {"n": 1e400}\n', b'{"n": 1e400}'),
        (["-d", "-"], b"", b"{}"),
        (["-d", "null"], b"", b"null"),
    ],
)
def test_invoke_sends_the_event(cli: Cli, fake: FakeControl, argv: list[str], stdin: bytes, payload: bytes) -> None:
    done = cli("invoke", "hello", *argv, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    assert fake.calls[0][2].strip() == payload
    assert done.out == '{"ok":true}\n'


def test_invoke_reads_a_file(cli: Cli, fake: FakeControl, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(b"[1, 2]")
    cli("invoke", "hello:prod", "-d", f"@{tmp_path}/event.json", "--wait", "250ms")
    assert fake.calls == [("invoke", "hello:prod", b"[1, 2]", False, None, 250, False)]


def test_invoke_prints_the_result_as_it_was_given(cli: Cli, fake: FakeControl) -> None:
    fake.result = b'{"big": 123456789012345678901234567890, "f": 1.0}'
    assert cli("invoke", "hello").out.encode() == fake.result + b"\n"


def test_a_function_error_is_on_stdout_and_one_sentence_on_stderr(cli: Cli, fake: FakeControl) -> None:
    fake.outcome, fake.result = "failed", b'{"errorType":"ValueError","errorMessage":"no such order"}'
    text = cli("invoke", "hello")
    assert (text.code, json.loads(text.out)["errorType"]) == (1, "ValueError")
    assert text.err == "E-FUNCTION hello failed: ValueError: no such order. See: eventd logs --run run-9\n"
    found = cli("invoke", "hello", "--json")
    assert (found.code, found.json["run"]["outcome"], found.error["code"]) == (1, "failed", "E-FUNCTION")


def test_invoke_async_and_tail(cli: Cli, fake: FakeControl) -> None:
    assert cli("invoke", "hello", "--async", "--id", "mine").json == {"event": "mine", "invocation": "inv-9"}
    tailed = cli("invoke", "hello", "--tail")
    assert (tailed.out, tailed.err) == ('{"ok":true}\n', "what it printed\n")


@pytest.mark.parametrize("code", ["E-THROTTLED", "E-PAUSED", "E-OVERLOADED", "E-NOTFOUND", "E-CONFLICT", "E-STARTING", "E-STORAGE"])
def test_refusals_have_the_codes_exit_status(cli: Cli, fake: FakeControl, code: str) -> None:
    fake.refuse = EventdError(code, "it cannot be", "Wait.")
    done = cli("invoke", "hello")
    assert (done.code, done.out, done.err) == (fake.refuse.exit, "", f"{code} it cannot be. Wait.\n")


# --- lists ---


def test_runs_flags_become_the_query(cli: Cli, fake: FakeControl) -> None:
    argv = [
        "--limit",
        "2",
        "--cursor",
        "1",
        "--function",
        "hello",
        "--outcome",
        "failed",
        "--outcome",
        "lost",
        "--invocation",
        "i",
        "--attempt",
        "3",
    ]
    cli("runs", *argv, "--since", "2026-11-20T10:11:12.345Z", "--trigger", "t", "--until", "2026-11-20T12:11:12+01:00")
    want = Query(
        limit=2,
        cursor="1",
        function="hello",
        outcomes=("failed", "lost"),
        invocation="i",
        attempt=3,
        trigger="t",
        since=1_795_169_472_345,
        until=1_795_173_072_000,
    )
    assert fake.calls == [("runs", want)]


def test_a_further_page_is_told_on_stderr(cli: Cli, fake: FakeControl) -> None:
    done = cli("runs", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert done.err == "There is more: --cursor 2\n"
    assert cli("runs", "--limit", "2", "--json").json["next"] == "2"


@pytest.mark.parametrize(
    "argv", [["runs", "nosuch"], ["events", "nosuch"], ["dead", "nosuch"], ["invoke", "nosuch"], ["cancel", "nosuch"]], ids=" ".join
)
def test_unknown_things_are_exit_1(cli: Cli, argv: list[str]) -> None:
    text, found = cli(*argv), cli(*argv, "--json")
    assert (text.code, found.code, text.out, found.out) == (1, 1, "", "")
    assert text.err.startswith("E-NOTFOUND ")
    assert "nosuch" in found.error["message"]


def test_empty_lists_still_have_their_shape(cli: Cli, fake: FakeControl) -> None:
    fake.run_rows, fake.event_rows, fake.dead_rows = [], [], []
    assert cli("runs", "--json").json == {"runs": [], "next": None}
    assert cli("events", "--json").json == {"events": [], "next": None}
    assert cli("dead", "--json").json == {"dead": [], "next": None}
    assert cli("runs").out.startswith("STARTED")


def test_event_payload_only_when_asked(cli: Cli) -> None:
    assert "payload" not in cli("events", "ev-1", "--json").json["events"][0]
    assert cli("events", "ev-1", "--payload", "--json").json["events"][0]["payload"] == {"n": 1}
    assert '{"n":1}' in cli("events", "--payload").out


def test_stats_price_and_window(cli: Cli, fake: FakeControl) -> None:
    now = time.time_ns() // 1_000_000
    assert cli("stats", "--price", "--json").json["functions"][0]["price_usd"] == 0.25
    assert "0.250000" in cli("stats", "--price", "--function", "hello", "--since", "7d").out
    assert abs(fake.calls[0][1].since - (now - 86_400_000)) < 60_000
    assert abs(fake.calls[1][1].since - (now - 7 * 86_400_000)) < 60_000


# --- changes ---


def test_dry_run_changes_nothing(cli: Cli, fake: FakeControl) -> None:
    assert cli("redrive", "--all", "--dry-run").out.startswith("2 would be redriven\n")
    assert cli("discard", "--reason", "quarantined", "--dry-run").out == "1 would be discarded\n  dead-1\n"
    assert len(fake.dead_rows) == 2
    assert cli("redrive", "dead-1", "dead-2").out.startswith("2 redriven\n")
    assert fake.dead_rows == []


def test_nothing_matched_is_exit_1(cli: Cli, fake: FakeControl) -> None:
    for argv in (["redrive", "--function", "nosuch"], ["discard", "nosuch", "--yes"]):
        text, found = cli(*argv), cli(*argv, "--json")
        assert text.code == found.code == 1
        assert text.err.startswith("E-NOTFOUND")
        assert found.json["invocations"] == []


def test_discard_without_a_terminal_and_yes_is_refused(cli: Cli, fake: FakeControl) -> None:
    done = cli("discard", "--all")
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert fake.calls == []


def test_a_rejected_reload_is_exit_2_with_its_problems(cli: Cli, fake: FakeControl) -> None:
    problem = {
        "code": "E-CONFIG",
        "severity": "error",
        "file": "/a.toml",
        "line": 7,
        "path": "functions.x",
        "message": "bad",
        "hint": "Fix it.",
    }
    fake.reload_answer = {"applied": False, "changes": [], "problems": [problem]}
    text = cli("reload")
    assert (text.code, text.err) == (2, "E-CONFIG /a.toml:7 functions.x: bad. Fix it.\n")
    assert text.out.startswith("rejected")
    found = cli("reload", "--json")
    assert (found.code, found.json) == (2, fake.reload_answer)


def test_reload_shows_what_changed(cli: Cli, fake: FakeControl) -> None:
    changes = [{"kind": "trigger", "name": "uploads", "action": "replace"}, {"kind": "function", "name": "hello", "action": "keep"}]
    fake.reload_answer = {"applied": True, "changes": changes, "problems": []}
    assert cli("reload").out == "replace trigger uploads\napplied\n"


def test_drain_flags_and_a_drain_that_did_not_end(cli: Cli, fake: FakeControl) -> None:
    cli("drain", "--queue", "--timeout", "1m30s")
    assert cli("drain", "--undo").out == "ready\n"
    fake.drained = "draining"
    late = cli("drain", "--timeout", "0s")
    assert (late.code, late.out) == (1, "draining\n")
    assert fake.calls == [("drain", True, 90_000, False), ("drain", False, None, True), ("drain", False, 0, False)]


# --- the verbs that are a daemon themselves ---


def test_serve_and_demo_get_what_was_said(cli: Cli, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    served, shown = types.ModuleType("eventd.cli.serve"), types.ModuleType("eventd.cli.demo")
    served.run_serve = lambda *said: told.append(said) or 4  # type: ignore[attr-defined]
    shown.run_demo = lambda *said: told.append(said) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eventd.cli.serve", served)
    monkeypatch.setitem(sys.modules, "eventd.cli.demo", shown)
    monkeypatch.setenv("EVENTD_SOCKET", "")
    assert cli("serve", "-c", "a.toml", "--log-format", "json", "--log-level", "DEBUG").code == 4
    assert os.environ["EVENTD_SOCKET"] == daemon.socket
    assert cli("serve").code == 4
    assert cli("demo", "--once", "--dir", "d", "--json").code == 1
    assert told == [("a.toml", "json", "debug"), (None, None, None), ("d", True, True)]


# --- terminals, pipes and interrupts ---


def on_terminal(*argv: str, answer: bytes = b"", **env: str) -> tuple[int, str]:
    """The command with stdin and stdout on a pseudo terminal; what it showed there. Its stderr goes there too."""
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [*EVENTD, *argv], stdin=follower, stdout=follower, stderr=follower, env=environment(TERM="xterm", COLUMNS="200", **env)
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 50
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 1.0)
        if ready:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
            if answer and b"[y/N]" in shown:
                os.write(leader, answer)
                answer = b""
    code = done.wait(20)
    os.close(leader)
    return code, shown.decode()


def test_colour_on_a_terminal_only_and_not_with_no_color(daemon: Daemon, fake: FakeControl) -> None:
    fake.run_rows = [run_record("run-1", outcome="failed", error_type="E[bold]", error_message="\x1b]0;evil\x07")]
    code, shown = on_terminal("runs", "--socket", daemon.socket)
    assert code == 0
    assert "\x1b[31m" in shown
    assert "E[bold]: \\x1b]0;evil\\x07" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b" not in on_terminal("runs", "--socket", daemon.socket, NO_COLOR="1")[1]


def test_discard_asks_on_a_terminal(daemon: Daemon, fake: FakeControl) -> None:
    code, shown = on_terminal("discard", "--all", "--socket", daemon.socket, answer=b"n\n")
    assert code == 1
    assert "payloads of 2 dead" in shown
    assert len(fake.dead_rows) == 2
    assert on_terminal("discard", "--all", "--socket", daemon.socket, answer=b"y\n")[0] == 0
    assert fake.dead_rows == []


def test_a_reader_that_has_seen_enough_is_no_error(daemon: Daemon, fake: FakeControl) -> None:
    fake.run_rows = [run_record(f"run-{n}") for n in range(5000)]
    argv = [*EVENTD, "runs", "--limit", "5000", "--json", "--socket", daemon.socket]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(10) == b'{"runs":[{'
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(20) == 0


def test_follow_shows_new_lines_and_an_interrupt_is_130(daemon: Daemon, fake: FakeControl) -> None:
    row = {"time": "T", "function": "hello", "run": "r", "stream": "stdout", "line": "first"}
    fake.log_lines = [row]
    argv = [*EVENTD, "logs", "-f", "--socket", daemon.socket]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"T hello stdout first\n"
        fake.log_lines = [row, row | {"line": "second"}]
        assert running.stdout.readline() == b"T hello stdout second\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        assert b"Traceback" not in running.stderr.read()
