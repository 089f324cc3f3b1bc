"""Executable files as functions, through the real pool: results, ends, attacks. And two ends of Node.js runs that only a pool can show."""

# ruff: noqa: ASYNC110  (tests poll for a condition)

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from eventd.errors import EventdError
from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, Lane, Outcome, Settings
from eventd.ports import OutputChunk, Ran, Task
from eventd.runtime import code_tree
from eventd.runtime.code import CodeStore
from eventd.runtime.deps import Environments
from eventd.runtime.execute import ExecRuntime, result_of
from eventd.runtime.node import NodeRuntime
from eventd.runtime.pool import Pool
from eventd.runtime.wire import MAX_PAYLOAD


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture(autouse=True)
def quick_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests write a file and load it at once; how long a file must rest is the code store's own tests' matter."""
    monkeypatch.setattr(code_tree, "SETTLE_S", 0.01)


class Rig:
    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.handlers = tmp_path / "handlers"
        self.handlers.mkdir()
        self.output: list[OutputChunk] = []
        state = str(tmp_path / "state")
        settings = Settings(
            file="", daemon=DaemonSettings(handlers=str(self.handlers), plugins="", state=state), control=ControlSettings(socket="")
        )
        self.pool = Pool(
            settings,
            boot="boottest",
            store=CodeStore(state),
            deps=Environments(state, "/usr/bin/python3"),
            runtimes={"exec": ExecRuntime, "node": NodeRuntime},
            on_output=self.output.append,
            warn=lambda code, text: None,
        )
        self._runs = 0

    async def load(self, text: str | bytes, *, file: str = "f.sh", runtime: str = "exec", **more: Any) -> None:
        path = self.handlers / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o755)
        await self.pool.load(FunctionSettings(name=path.stem, runtime=runtime, source=str(path), **more))

    def run(self, done: Callable[[Ran], None], event: Any = None, *, function: str = "f", payload: bytes | None = None) -> None:
        self._runs += 1
        data = json.dumps(event).encode() if payload is None else payload
        self.pool.run(Task(run=f"run-{self._runs}", invocation=f"inv-{self._runs}", function=function, event=data, lane=Lane.DIRECT), done)

    async def ran(self, event: Any = None, **more: Any) -> Ran:
        ended: list[Ran] = []
        self.run(ended.append, event, **more)
        await until(lambda: ended, "the end of a run")
        return ended[0]

    async def result(self, script: str, event: Any = None, **more: Any) -> Any:
        await self.load(script, **more)
        ran = await self.ran(event)
        assert ran.outcome is Outcome.SUCCEEDED, ran
        return json.loads(ran.payload)


async def until(true: Callable[[], object], what: str) -> None:
    with anyio.move_on_after(20) as limit:
        while not true():
            await anyio.sleep(0.005)
    assert not limit.cancelled_caught, f"waited in vain for {what}"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        await rig.pool.aclose()
        assert not alive(str(tmp_path)), "a process outlived the pool"


def alive(text: str) -> list[str]:
    """Living processes whose working folder or arguments hold a text."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
            zombie = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and (text in words or os.readlink(f"/proc/{pid}/cwd").startswith(text)):
                found.append(words)
        except OSError:
            continue
    return found


def error_of(ran: Ran) -> Mapping[str, str]:
    error: Mapping[str, str] = json.loads(ran.payload)
    assert set(error) == {"errorType", "errorMessage"}
    assert error["errorType"] == ran.error_type
    return error


# --- results ---

WHOLE = b'"' + b"x" * (MAX_PAYLOAD - 2) + b'"'


@pytest.mark.parametrize(
    "printed, result",
    [
        (b'{"a": 1}\n', b'{"a": 1}'), (b"", b"null"), (b" \n", b"null"), (b"hello\n", b'"hello"'), (b"two\nlines\n\n", b'"two\\nlines"'),
        (b"12\n", b"12"), (b"NaN", b'"NaN"'), (b'{"a": 1}{"b": 2}', b'"{\\"a\\": 1}{\\"b\\": 2}"'), (b'"\xff"', '"\\"\ufffd\\""'.encode()),
        (b"[" * 100_000, b'"' + b"[" * 100_000 + b'"'), (b"x" * MAX_PAYLOAD, None), (WHOLE, WHOLE),
        (b"\x01" * (MAX_PAYLOAD // 2), None),
    ],
    ids=lambda value: None if value is None else repr(value[:16]),
)  # fmt: skip
def test_what_is_printed_becomes_json(printed: bytes, result: bytes | None) -> None:
    assert result_of(printed) == result


@pytest.mark.anyio
async def test_the_event_is_on_stdin_the_result_on_stdout_the_log_on_stderr(rig: Rig) -> None:
    event = {"text": "a 'b' \"c\" $(touch x) é", "n": [1, 2]}
    assert await rig.result("#!/bin/sh\necho begun >&2\ncat\n", event) == event
    assert [(chunk.stream, chunk.run, chunk.data) for chunk in rig.output] == [("stderr", "run-1", b"begun\n")]
    again = await rig.ran({})
    assert again.payload == b"{}"
    assert again.exit_status == 0
    assert again.cpu_ms > 0
    assert again.max_memory_mb >= 1


@pytest.mark.anyio
async def test_the_event_cannot_be_changed_and_can_be_read_again(rig: Rig) -> None:
    script = "#!/bin/sh\ncat >/dev/null\n(echo spoiled >/proc/self/fd/0) 2>/dev/null && echo changed\ncat /proc/self/fd/0\n"
    assert await rig.result(script, {"a": 1}) == {"a": 1}


@pytest.mark.anyio
async def test_the_environment_is_an_allow_list_and_holds_nothing_of_the_event(rig: Rig) -> None:
    await rig.load("#!/bin/sh\nenv >&2\necho \"$0 $#\"\nls /proc/self/fd | tr '\\n' ' ' >&2\n", environment={"MODE": "x"})
    ran = await rig.ran({"secret": "needle"})
    text = b"".join(chunk.data for chunk in rig.output).decode()
    names = {line.split("=", 1)[0] for line in text.splitlines() if "=" in line}
    assert {name for name in names if not name.startswith(("AWS_", "EVENTD"))} <= {
        "PATH", "HOME", "LANG", "TZ", "TMPDIR", "MODE", "LAMBDA_TASK_ROOT", "_HANDLER", "PWD", "OLDPWD", "SHLVL", "_",
    }  # fmt: skip
    assert {"EVENTD", "EVENTD_REQUEST_ID", "EVENTD_RUN_ID", "EVENTD_DEADLINE_MS", "AWS_LAMBDA_FUNCTION_NAME", "MODE"} <= names
    assert "EVENTD_REQUEST_ID=inv-1" in text.splitlines()
    assert "needle" not in text
    assert json.loads(ran.payload).endswith("/f.sh 0")
    assert text.splitlines()[-1].split() == ["0", "1", "2", "3"]  # 3 is the folder that ls itself reads


@pytest.mark.anyio
async def test_folders_and_commands(rig: Rig) -> None:
    path = rig.handlers / "tool"
    path.mkdir()
    (path / "bootstrap").write_text("#!/bin/sh\ncat data.json\n")
    (path / "bootstrap").chmod(0o755)
    (path / "data.json").write_text("[1]")
    await rig.pool.load(FunctionSettings(name="tool", runtime="exec", source=str(path)))
    assert (await rig.ran(function="tool")).payload == b"[1]"
    await rig.pool.load(FunctionSettings(name="cmd", runtime="exec", command=("cat", "-")))
    assert (await rig.ran([2], function="cmd")).payload == b"[2]"
    with pytest.raises(EventdError, match="no-such-program"):
        await rig.pool.load(FunctionSettings(name="bad", runtime="exec", command=("no-such-program",)))


# --- ends ---


@pytest.mark.anyio
async def test_an_exit_status_is_a_failure_and_says_which(rig: Rig) -> None:
    await rig.load("#!/bin/sh\necho '{\"half\": 1}'\nexit 3\n")
    ran = await rig.ran()
    assert ran.outcome is Outcome.FAILED
    assert ran.exit_status == 3
    assert error_of(ran) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": "RequestId: inv-1 Error: Runtime exited with error: exit status 3",
    }


@pytest.mark.anyio
async def test_a_signal_is_a_crash(rig: Rig) -> None:
    await rig.load("#!/bin/sh\nkill -SEGV $$\n")
    ran = await rig.ran()
    assert ran.outcome is Outcome.CRASHED
    assert ran.signal == 11
    assert "segmentation fault" in error_of(ran)["errorMessage"]


@pytest.mark.anyio
async def test_a_timeout_ends_a_script_that_ignores_sigterm_and_its_children(rig: Rig) -> None:
    await rig.load("#!/bin/sh\ntrap '' TERM\nsleep 855 &\nwhile :; do sleep 856; done\n", timeout_ms=200, grace_ms=100)
    ran = await rig.ran()
    assert ran.outcome is Outcome.TIMED_OUT
    assert error_of(ran)["errorType"] == "Sandbox.Timedout"
    assert not alive("sleep\00085")


@pytest.mark.anyio
async def test_a_script_may_be_stopped(rig: Rig) -> None:
    await rig.load("#!/bin/sh\necho begun >&2\nsleep 857\n")
    ended: list[Ran] = []
    rig.run(ended.append)
    await until(lambda: rig.output, "the script")
    rig.pool.stop("run-1", Outcome.CANCELLED)
    await until(lambda: ended, "the end")
    assert ended[0].outcome is Outcome.CANCELLED
    assert not alive("sleep\000857")


@pytest.mark.anyio
async def test_what_the_system_cannot_start_is_an_invalid_entrypoint(rig: Rig) -> None:
    await rig.load(b"just text, no first line\n")
    ran = await rig.ran()
    assert ran.outcome is Outcome.FAILED
    error = error_of(ran)
    assert error["errorType"] == "Runtime.InvalidEntrypoint"
    assert str(rig.handlers / "f.sh") in error["errorMessage"]
    assert "Exec format error" in error["errorMessage"]
    with pytest.raises(EventdError, match="carriage return"):
        await rig.load("#!/bin/sh\r\necho 1\r\n", file="cr.sh")
    ran = await rig.ran(function="cr")
    assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "Runtime.InvalidEntrypoint")
    assert "carriage return" in (ran.error_message or "")


# --- attacks ---


@pytest.mark.anyio
async def test_a_large_event_that_nobody_reads_holds_nobody_up(rig: Rig) -> None:
    await rig.load("#!/bin/sh\necho 1\n")
    payload = b'"' + b"x" * (5 * 1024 * 1024) + b'"'
    ran = await rig.ran(payload=payload)
    assert (ran.outcome, ran.payload) == (Outcome.SUCCEEDED, b"1")
    await rig.load("#!/bin/sh\ncat\n", file="g.sh")
    assert (await rig.ran(payload=payload, function="g")).payload == payload


@pytest.mark.anyio
async def test_a_flood_on_stdout_fails_and_costs_no_memory(rig: Rig) -> None:
    await rig.load("#!/bin/sh\nhead -c 67108864 /dev/zero\necho finished >&2\n")
    before = resident_kib()
    ran = await rig.ran()
    assert ran.outcome is Outcome.FAILED
    assert error_of(ran)["errorType"] == "Function.ResponseSizeTooLarge"
    assert rig.output[-1].data == b"finished\n"
    assert ran.exit_status == 0
    assert resident_kib() - before < 32 * 1024


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.anyio
async def test_daemons_that_a_script_left_are_gone_when_the_run_ends(rig: Rig) -> None:
    script = "#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9 10; do setsid sh -c 'env -i sleep 858 & exec sleep 859' >&2 & done\nsleep 0.1\necho 1\n"
    await rig.load(script)
    ran = await rig.ran()
    assert (ran.outcome, ran.payload) == (Outcome.SUCCEEDED, b"1")
    assert not alive("sleep\00085")


@pytest.mark.anyio
async def test_runs_at_once_do_not_mix(rig: Rig) -> None:
    await rig.load('#!/bin/sh\nread -r line\necho "log $line" >&2\nsleep 0.05\necho "$line"\n')
    ended: dict[int, Ran] = {}
    for number in range(8):
        rig.run(lambda ran, number=number: ended.__setitem__(number, ran), number)  # type: ignore[misc]
    await until(lambda: len(ended) == 8, "eight runs")
    assert [ended[number].payload for number in range(8)] == [str(number).encode() for number in range(8)]
    assert {(chunk.run, chunk.data) for chunk in rig.output} == {(f"run-{n + 1}", f"log {n}\n".encode()) for n in range(8)}


# --- Node.js, as the pool sees it ---

needs_node = pytest.mark.usefixtures("node")


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    assert found, "these tests need Node.js: apt install nodejs"
    return found


@needs_node
@pytest.mark.anyio
async def test_a_dying_worker_is_given_no_other_run(rig: Rig) -> None:
    """The next run is asked for from inside the callback that ends the first: it must not meet the worker that is about to go."""
    code = """exports.handler = async (event) => {
      if (!event) return;
      Promise.reject(new Error('lost'));
      await new Promise((resolve) => setTimeout(resolve, 9000));
    };"""
    await rig.load(code, file="f.js", runtime="node")
    ended: list[Ran] = []

    def first(ran: Ran) -> None:
        ended.append(ran)
        rig.run(ended.append, False)

    rig.run(first, True)
    await until(lambda: len(ended) == 2, "both runs")
    assert (ended[0].outcome, ended[0].error_type, ended[0].exit_status) == (Outcome.FAILED, "Runtime.UnhandledPromiseRejection", 128)
    assert ended[1].outcome is Outcome.SUCCEEDED


@needs_node
@pytest.mark.anyio
async def test_node_timeouts_and_full_heaps_have_their_own_outcomes(rig: Rig) -> None:
    code = """exports.handler = async (event) => {
      if (event === 'exit') process.exit(0);
      const all = [];
      for (;;) if (event === 'heap') all.push(new Array(1000).fill({}));
    };"""
    await rig.load(code, file="f.js", runtime="node", timeout_ms=3000, grace_ms=100, memory_mib=96)
    heap = await rig.ran("heap")
    assert (heap.outcome, heap.error_type) == (Outcome.OUT_OF_MEMORY, "Runtime.OutOfMemory")
    left = await rig.ran("exit")
    assert (left.outcome, left.error_type) == (Outcome.CRASHED, "Runtime.ExitError")
    await rig.load(code, file="f.js", runtime="node", timeout_ms=300, grace_ms=100, memory_mib=96)
    late = await rig.ran("loop")
    assert (late.outcome, late.error_type) == (Outcome.TIMED_OUT, "Sandbox.Timedout")
