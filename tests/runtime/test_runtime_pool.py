"""The pool over real Python workers: reuse, limits, loading, ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runtime_world import alive, leftovers, until, world

from eventd.errors import EventdError
from eventd.model import FunctionSettings, Outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


PID = "import os\ndef handler(event, context):\n    return os.getpid()\n"


async def test_a_worker_is_reused_and_the_last_used_comes_first(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert (await it.load("f", PID)).version == "0" * 12
        first = await it.value("f")
        assert [await it.value("f") for _ in range(3)] == [first] * 3
        futures = [it.begin("f")[1] for _ in range(3)]
        pids = [json.loads((await future).payload) for future in futures]
        assert len(set(pids)) == 3
        assert first in pids
        view = it.pool.view("f")
        assert view is not None
        assert (view.state, view.idle, view.busy, view.starting, view.version) == ("ready", 3, 0, 0, "0" * 12)


async def test_cold_is_a_run_that_waited_for_its_worker(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", PID)
        _, one = it.begin("f")
        _, two = it.begin("f")
        warm, cold = await one, await two
        assert not warm.cold
        assert warm.init_ms is None
        assert cold.cold
        assert cold.init_ms is not None
        assert cold.init_ms > 0
        assert cold.duration_ms > 0
        assert cold.max_memory_mb > 0
        assert cold.worker.startswith("abcdefgh-")


async def test_eight_at_once(tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    time.sleep(0.2)\n    return event\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        futures = [it.begin("f", n)[1] for n in range(8)]
        view = it.pool.view("f")
        assert view is not None
        assert view.busy + view.starting == 8
        assert [json.loads((await future).payload) for future in futures] == list(range(8))


async def test_timeout_stops_a_handler_that_ignores_sigterm(tmp_path: Path) -> None:
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def handler(event, context):
            print(os.getpid())
            while True:
                time.sleep(0.05)
    """
    async with world(tmp_path) as it:
        await it.load("f", code, timeout_ms=150, grace_ms=200)
        task, future = it.begin("f")
        ran = await future
        assert ran.outcome is Outcome.TIMED_OUT
        assert (ran.error_type, ran.error_message) == (
            "Sandbox.Timedout", f"RequestId: {task.invocation} Error: Task timed out after 0.15 seconds",
        )  # fmt: skip
        assert json.loads(ran.payload) == {"errorType": ran.error_type, "errorMessage": ran.error_message}
        assert ran.duration_ms == 150
        assert ran.signal == signal.SIGKILL
        assert not alive(int(it.output(task.run)))  # the slot is free only when the process is gone
        assert ran.tail == it.output(task.run)


async def test_stop_cancels_and_interrupts(tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    print('on', flush=True)\n    time.sleep(30)\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        for outcome in (Outcome.CANCELLED, Outcome.INTERRUPTED):
            task, future = it.begin("f")
            await until(lambda task=task: it.output(task.run), "the handler")
            it.pool.stop(task.run, outcome)
            ran = await future
            assert ran.outcome is outcome
            assert ran.signal == signal.SIGTERM
        it.pool.stop("no such run", Outcome.CANCELLED)


@pytest.mark.parametrize(
    ("line", "status", "number", "message"),
    [
        ("os._exit(3)", 3, None, "Runtime exited with error: exit status 3"),
        ("sys.exit(0)", 0, None, "Runtime exited without providing a reason"),
        ("sys.exit('no')", 1, None, "Runtime exited with error: exit status 1"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", None, signal.SIGSEGV, "Runtime exited with error: signal: segmentation fault"),
        ("os.kill(os.getpid(), signal.SIGKILL)", None, signal.SIGKILL, "Runtime exited with error: signal: killed"),
    ],
)
async def test_an_exit_in_the_middle_is_crashed(tmp_path: Path, line: str, status: int | None, number: int | None, message: str) -> None:
    code = f"import os, signal, sys\ndef handler(event, context):\n    print('before', flush=True)\n    if event: return 1\n    {line}\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        task, future = it.begin("f")
        ran = await future
        assert ran.outcome is Outcome.CRASHED
        assert (ran.exit_status, ran.signal) == (status, number)
        assert ran.error_type == "Runtime.ExitError"
        assert ran.error_message == f"RequestId: {task.invocation} Error: {message}"
        assert it.output(task.run).startswith(b"before\n")
        assert await it.value("f", True) == 1  # the next run gets a new worker


async def test_idle_workers_go_but_provisioned_ones_stay(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", PID, idle_ms=100, provisioned=2)
        for future in [it.begin("f")[1] for _ in range(4)]:
            await future
        await until(lambda: (view := it.pool.view("f")) and view.idle == 2 and not view.busy, "the others to go")
        before = await it.value("f")
        os.kill(before, signal.SIGKILL)
        await until(lambda: not alive(before))
        await until(lambda: (view := it.pool.view("f")) and view.idle == 2, "a new provisioned one")


async def test_a_new_version_takes_over_and_running_ones_finish(tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    time.sleep(event or 0)\n    return {!r}\n"
    async with world(tmp_path) as it:
        await it.load("f", code.format("old"))
        _, slow = it.begin("f", 0.3)
        it.store.digest = "1" * 12
        loaded = await it.load("f", code.format("newer"))  # another length: bytecode is told apart by it
        assert (loaded.version, loaded.changed) == ("1" * 12, True)
        assert await it.value("f") == "newer"
        ran = await slow
        assert (ran.outcome, ran.payload, ran.version) == (Outcome.SUCCEEDED, b'"old"', "0" * 12)
        await until(lambda: it.store.held == 1, "the old code to be let go")


async def test_the_same_code_is_no_change_but_new_limits_hold(tmp_path: Path) -> None:
    code = "import os, time\ndef handler(event, context):\n    time.sleep(event or 0)\n    return os.getpid()\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        pid = await it.value("f")
        assert not (await it.load("f", code, timeout_ms=100)).changed
        assert await it.value("f") == pid
        assert (await it.run("f", 5)).outcome is Outcome.TIMED_OUT
        assert (await it.load("f", code, environment={"A": "1"})).changed


async def test_a_broken_version_never_replaces_a_good_one(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", PID)
        pid = await it.value("f")
        it.store.digest = "1" * 12
        with pytest.raises(EventdError, match=r"E-HANDLER function f: Runtime.UserCodeSyntaxError: .*f\.py, line 2") as caught:
            await it.load("f", "import os\ndef handler(event, context)\n    return 1\n")
        assert caught.value.code == "E-HANDLER"
        view = it.pool.view("f")
        assert view is not None
        assert view.state == "ready"
        assert "UserCodeSyntaxError" in view.error
        assert await it.value("f") == pid
        it.store.digest = "2" * 12
        await it.load("f", PID)
        view = it.pool.view("f")
        assert view is not None
        assert view.error == ""


async def test_a_function_that_never_loaded_fails_with_the_cause_and_heals_by_itself(tmp_path: Path) -> None:
    code = """
        import os
        if not os.path.exists(os.path.join(os.path.dirname(__file__), "ready")):
            raise ConnectionError("no database yet")
        def handler(event, context):
            return "healed"
    """
    async with world(tmp_path) as it:
        with pytest.raises(EventdError, match="ConnectionError: no database yet"):
            await it.load("f", code)
        view = it.pool.view("f")
        assert view is not None
        assert view.state == "broken"
        ran = await it.run("f")
        assert (ran.outcome, ran.error_type, ran.error_message) == (Outcome.FAILED, "ConnectionError", "no database yet")
        assert json.loads(ran.payload)["requestId"] == ""
        (tmp_path / "f" / "ready").touch()
        assert await it.value("f") == "healed"
        view = it.pool.view("f")
        assert view is not None
        assert view.state == "ready"


async def test_init_that_takes_too_long(tmp_path: Path) -> None:
    code = "import time\ntime.sleep(30)\ndef handler(event, context): pass\n"
    async with world(tmp_path) as it:
        with pytest.raises(EventdError, match=r"Init timed out after 0\.10 seconds"):
            await it.load("f", code, init_timeout_ms=100, grace_ms=100)
        assert (await it.run("f")).outcome is Outcome.TIMED_OUT


async def test_init_that_exits(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        with pytest.raises(EventdError, match=r"Runtime\.ExitError: Runtime exited with error: exit status 7"):
            await it.load("f", "import sys\nsys.exit(7)\n")
        ran = await it.run("f")
        assert (ran.outcome, ran.error_type, ran.exit_status) == (Outcome.CRASHED, "Runtime.ExitError", 7)


async def test_unknown_functions_and_runtimes_are_answers_not_exceptions(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert (await it.run("nobody")).error_type == "Runtime.InvalidEntrypoint"
        assert it.pool.view("nobody") is None
        with pytest.raises(EventdError, match="the runtime 'cobol' is not built yet"):
            await it.pool.load(FunctionSettings(name="c", runtime="cobol"))
        assert (await it.run("c")).outcome is Outcome.FAILED


async def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.pool._deps.ensure = _nowhere  # type: ignore[method-assign]
        with pytest.raises(EventdError, match=r"cannot start /nowhere/python: No such file or directory"):
            await it.load("f", PID)
        ran = await it.run("f")
        assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "Runtime.InvalidEntrypoint")


async def _nowhere(version: object) -> str:
    return "/nowhere/python"


async def test_secrets_reach_workers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2-and-more\n")
    code = """
        import os
        def handler(event, context):
            parent = open(f"/proc/{os.getppid()}/environ").read()
            own = open("/proc/self/environ").read() + open("/proc/self/cmdline").read()
            return [os.environ["TOKEN"], "hunter2" in parent, "hunter2" in own]
    """
    async with world(tmp_path) as it:
        await it.load("f", code, secrets={"TOKEN": f"file:{tmp_path}/token"})
        assert await it.value("f") == ["hunter2-and-more", False, False]
        (tmp_path / "token").write_text("changed")
        assert (await it.pool.load(it.function("f", secrets={"TOKEN": f"file:{tmp_path}/token"}))).changed
        assert (await it.value("f"))[0] == "changed"
        with pytest.raises(EventdError, match="secret TOKEN"):
            await it.pool.load(it.function("f", secrets={"TOKEN": "file:/nowhere/at/all"}))


async def test_unload_ends_idle_workers(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", PID)
        pid = await it.value("f")
        await it.pool.unload("f")
        assert it.pool.view("f") is None
        await until(lambda: not alive(pid))
        assert (await it.run("f")).outcome is Outcome.FAILED


async def test_a_callback_that_raises_harms_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", PID)
        pid = await it.value("f")
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))

        def bad(ran: object) -> None:
            raise ValueError("client went away")

        it.pool.run(it.task("f"), bad)
        await until(lambda: seen, "the fence")
        assert isinstance(seen[0], ValueError)
        assert await it.value("f") == pid


async def test_aclose_in_the_middle_of_everything(tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    time.sleep(60)\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        futures = [it.begin("f")[1] for _ in range(4)]
        await it.pool.aclose()
        assert [(await future).outcome for future in futures] == [Outcome.INTERRUPTED] * 4
        assert not leftovers(tmp_path)
        assert (await it.run("f")).outcome is Outcome.INTERRUPTED
        with pytest.raises(EventdError, match="E-DRAINING"):
            await it.load("f", code)
