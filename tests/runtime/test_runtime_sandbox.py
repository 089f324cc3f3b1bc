"""Golden spawn plans: what a worker is started with, to the letter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eventd.errors import EventdError
from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, Outcome, Settings
from eventd.runtime import ends, sandbox
from eventd.runtime.crew import advise, birth
from eventd.runtime.output import Captured
from eventd.runtime.secret import read_secrets
from eventd.runtime.worker import Exit

SETTINGS = Settings(
    file="",
    daemon=DaemonSettings(handlers="/h", plugins="/p", state="/s", region="eu-west-1", account="123456789012"),
    control=ControlSettings(socket=""),
)
DAEMON = {
    "PATH": "/usr/bin:/bin", "HOME": "/var/lib/eventd", "NOTIFY_SOCKET": "/run/systemd/notify", "LISTEN_FDS": "1", "LISTEN_PID": "7",
    "WATCHDOG_USEC": "1", "CREDENTIALS_DIRECTORY": "/run/credentials", "LD_PRELOAD": "evil.so", "PYTHONPATH": "/tmp", "PYTHONSTARTUP": "x",
    "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t", "STATE_DIRECTORY": "/s",
}  # fmt: skip
SHARED = {
    "PATH": "/usr/bin:/bin", "HOME": "/var/lib/eventd", "LANG": "C.UTF-8", "TZ": ":UTC", "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1", "AWS_LAMBDA_FUNCTION_NAME": "thumb", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/thumb", "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
    "LAMBDA_TASK_ROOT": "/s/code/thumb/abc", "_HANDLER": "thumb.handler", "QUALITY": "85", "EVENTD": "1",
}  # fmt: skip
FUNCTION = FunctionSettings(name="thumb", memory_mib=256, environment={"QUALITY": "85", "EVENTD": "hidden"})


def shared() -> dict[str, str]:
    return sandbox.function_environment(SETTINGS, FUNCTION, root="/s/code/thumb/abc", handler="thumb.handler", environ=DAEMON)


def test_the_shared_environment_is_an_allow_list() -> None:
    assert shared() == SHARED


def test_a_workers_environment() -> None:
    env = sandbox.worker_environment(
        shared(), tmpdir="/s/tmp/w-1", log_stream="2026/02/05/[$LATEST]0", init_type="on-demand", secrets={"TOKEN": "t"}
    )
    assert env == {
        **SHARED,
        "TMPDIR": "/s/tmp/w-1",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2026/02/05/[$LATEST]0",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "TOKEN": "t",
    }


def test_the_plan_of_a_worker() -> None:
    plan = sandbox.spawn_plan(
        argv=["/usr/bin/python3", "-I", "w.py", "3"], env={"A": "1"}, root="/root", memory_mib=256, tmpdir="/s/tmp/w-1"
    )
    assert plan == sandbox.SpawnPlan(
        argv=("/usr/bin/python3", "-I", "w.py", "3"),
        env={"A": "1"},
        cwd="/root",
        rlimits=(("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 1024, 4096), ("RLIMIT_DATA", 768 * 2**20, 768 * 2**20)),
        fds=(0, 1, 2, 3),
        subreaper=True,
        tier="A",
        read_only=("/usr", "/lib", "/lib64", "/bin", "/etc", "/root"),
        writable=("/s/tmp/w-1",),
        namespaces=("ipc", "mnt", "pid"),
    )


def test_the_plan_of_a_template_holds_no_limit_of_the_function() -> None:
    plan = sandbox.template_plan(argv=["/usr/bin/python3"], env=SHARED, root="/root")
    assert plan.subreaper is False
    assert plan.rlimits == (("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 4096, -1))


def test_arns() -> None:
    assert sandbox.arn(SETTINGS, "f") == "arn:aws:lambda:eu-west-1:123456789012:function:f"
    assert sandbox.arn(SETTINGS, "f", "7").endswith(":function:f:7")


@pytest.mark.parametrize(
    ("exit", "outcome", "kind", "text"),
    [
        (Exit(status=0), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited without providing a reason"),
        (Exit(), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited without providing a reason"),
        (Exit(status=127), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited with error: exit status 127"),
        (Exit(signal=9), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited with error: signal: killed"),
        (Exit(signal=11), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited with error: signal: segmentation fault"),
        (Exit(signal=40), Outcome.CRASHED, "Runtime.ExitError", "Runtime exited with error: signal: signal 40"),
        (Exit(error="cannot start x: no"), Outcome.FAILED, "Runtime.InvalidEntrypoint", "cannot start x: no"),
    ],
)
def test_ends_read_as_on_lambda(exit: Exit, outcome: Outcome, kind: str, text: str) -> None:
    assert ends.exited("id-1", exit) == ends.Ending(outcome, kind, f"RequestId: id-1 Error: {text}")


def test_a_timeout_reads_as_on_lambda() -> None:
    assert ends.timed_out("8f5", 1000).payload() == (
        b'{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: 8f5 Error: Task timed out after 1.00 seconds"}'
    )


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"errorType":5}', b"\xff", b"null"])
def test_any_error_object_can_be_read(payload: bytes) -> None:
    assert ends.read_error(payload) == ("Runtime.Unknown", "")


def test_long_messages_are_cut() -> None:
    kind, message = ends.read_error(b'{"errorType":"E","errorMessage":"' + b"x" * 5000 + b'"}')
    assert (kind, len(message)) == ("E", 1024)


def test_what_makes_a_worker_new() -> None:
    from eventd.runtime.code import Version

    version = Version("f", "a" * 12, "/r", "f.py", None, "python", "/src")
    base = birth(FUNCTION, "/py", {}, version)
    assert (
        birth(
            FunctionSettings(name="thumb", memory_mib=256, environment=FUNCTION.environment, timeout_ms=1, concurrency=9),
            "/py",
            {},
            version,
        )
        == base
    )
    assert birth(FunctionSettings(name="thumb", memory_mib=512, environment=FUNCTION.environment), "/py", {}, version) != base
    assert birth(FUNCTION, "/other", {}, version) != base
    assert birth(FUNCTION, "/py", {"A": "b"}, version) != base


def test_advice() -> None:
    assert advise(50, 10 * 2**20) == ""
    assert (
        advise(120.4, 25 * 2**20)
        == "loading it takes 120 ms and each worker has 25 MiB of its own; a snapshot, which a later version brings, would share that"
    )


def test_captured_output_is_cut_into_lines_and_capped() -> None:
    chunks = []
    captured = Captured("f", "run", 50_000, chunks.append)
    captured.add("stdout", b"one\ntw")
    captured.add("stderr", b"E\n")
    captured.add("stdout", b"o\nopen")
    assert [(it.stream, it.data) for it in chunks] == [("stdout", b"one\n"), ("stderr", b"E\n"), ("stdout", b"two\n")]
    captured.add("stdout", b"x" * 20_000)  # longer than a line may be: handed on in pieces
    assert chunks[-1].data == b"open" + b"x" * 20_000
    captured.add("stdout", b"y" * 65_536)
    captured.add("stdout", b"z" * 65_536)
    captured.end()
    assert captured.truncated
    assert sum(len(it.data) for it in chunks) == 50_000
    assert captured.bytes == 14 + 20_000 + 2 * 65_536
    assert captured.tail == b"z" * 4096


def test_secrets_are_read_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("value\n")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_secrets("f", {"A": f"file:{tmp_path}/a", "B": "credential:a"}, environ) == {"A": "value", "B": "value"}
    for reference in ("credential:../a", "credential:", "file:", "value", f"file:{tmp_path}/b", f"file:{tmp_path}/none"):
        with pytest.raises(EventdError, match="E-HANDLER function f: secret X: "):
            read_secrets("f", {"X": reference}, environ)
    with pytest.raises(EventdError, match="no credentials directory"):
        read_secrets("f", {"X": "credential:a"}, {})
    assert os.path.exists(tmp_path / "a")
