"""Handlers that do their worst: each has its own outcome, and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from runtime_world import alive, until, world

from eventd.model import Outcome
from eventd.runtime.sweep import resident

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as in production


DAEMONS = """
    import os, time

    def daemons(count):
        reading, writing = os.pipe()
        for n in range(count):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(writing, b"%d\\n" % os.getpid())
                    os.closerange(0, 64)
                    os.execve("/bin/sleep", ["sleep", "300"], {})
                os._exit(0)
            os.wait()
        os.close(writing)
        data = b""
        while data.count(b"\\n") < count:
            data += os.read(reading, 4096)
        return [int(word) for word in data.split()]

    def handler(event, context):
        pids = daemons(20)
        print(*pids, flush=True)
        if event == "exit":
            os._exit(1)
        if event == "sleep":
            time.sleep(60)
        return pids
"""


async def test_twenty_daemons_are_gone_when_the_run_is_over_and_the_worker_lives_on(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", DAEMONS)
        for _ in range(2):
            ran = await it.run("f")
            assert ran.outcome is Outcome.SUCCEEDED
            pids = [int(word) for word in it.output().split()]
            assert len(pids) == 20
            assert not [pid for pid in pids if alive(pid)]
            assert not ran.cold
            it.chunks.clear()


@pytest.mark.parametrize(("event", "outcome"), [("exit", Outcome.CRASHED), ("sleep", Outcome.TIMED_OUT)])
async def test_twenty_daemons_are_gone_when_their_worker_is(tmp_path: Path, event: str, outcome: Outcome) -> None:
    async with world(tmp_path) as it:
        await it.load("f", DAEMONS, timeout_ms=1500, grace_ms=100)
        assert (await it.run("f", event)).outcome is outcome
        pids = [int(word) for word in it.output().split()]
        assert len(pids) == 20
        assert not [pid for pid in pids if alive(pid)]


async def test_children_of_another_thread_are_found_and_those_of_init_stay(tmp_path: Path) -> None:
    code = """
        import os, subprocess, threading
        helper = subprocess.Popen(["/bin/sleep", "300"])
        def handler(event, context):
            made = []
            thread = threading.Thread(target=lambda: (made.append(subprocess.Popen(["/bin/sleep", "300"])), event or wait.wait()))
            thread.start()
            while not made:
                pass
            return [helper.pid, made[0].pid]
        wait = threading.Event()
        threading.excepthook = lambda args: None
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        helper, made = await it.value("f")
        assert alive(helper)
        assert not alive(made)


async def test_memory_is_watched_and_the_run_is_out_of_memory(tmp_path: Path) -> None:
    code = """
        import time
        def handler(event, context):
            held = []
            while True:
                held.append(b"x" * (4 << 20))
                time.sleep(0.002)
    """
    async with world(tmp_path) as it:
        await it.load("f", code, memory_mib=64)
        task, future = it.begin("f")
        ran = await future
        assert ran.outcome is Outcome.OUT_OF_MEMORY
        assert ran.error_type == "Runtime.OutOfMemory"
        assert ran.signal == signal.SIGKILL
        assert ran.max_memory_mb >= 64
        assert task.invocation in (ran.error_message or "")


async def test_memory_of_children_counts(tmp_path: Path) -> None:
    code = """
        import subprocess, sys
        def handler(event, context):
            eat = "held = [bytes([1]) * (2 << 20) for _ in range(40)]; import time; time.sleep(60)"
            subprocess.run([sys.executable, "-I", "-S", "-c", eat])
    """
    async with world(tmp_path) as it:
        await it.load("f", code, memory_mib=64)
        assert (await it.run("f")).outcome is Outcome.OUT_OF_MEMORY


async def test_one_huge_allocation_meets_the_backstop(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", "def handler(event, context):\n    return len(b'x' * (8 << 30))\n", memory_mib=64)
        ran = await it.run("f")
        assert (ran.outcome, ran.error_type) == (Outcome.OUT_OF_MEMORY, "Runtime.OutOfMemory")
        assert (await it.run("f")).cold


async def test_a_flood_of_output_is_counted_and_dropped(tmp_path: Path) -> None:
    code = """
        import os
        def handler(event, context):
            line = b"x" * 1023 + (b"\\n" if event else b"x")
            for _ in range(64 * 1024):
                os.write(1, line)
            print("the end")
    """
    async with world(tmp_path, output_per_run=100_000) as it:
        await it.load("f", code)
        before = resident(os.getpid())
        for lines in (True, False):
            task, future = it.begin("f", lines)
            ran = await future
            assert ran.outcome is Outcome.SUCCEEDED
            assert ran.output_bytes == 64 * 1024 * 1024 + len("the end\n")
            assert ran.output_truncated
            assert len(it.output(task.run)) == 100_000
            assert ran.tail.endswith(b"the end\n")
            assert len(ran.tail) == 4096
        assert resident(os.getpid()) - before < 16 * 1024 * 1024


async def test_output_belongs_to_the_run_that_printed_it(tmp_path: Path) -> None:
    code = """
        import sys
        print("init")
        def handler(event, context):
            print(f"out {event}")
            print(f"err {event}", file=sys.stderr)
            sys.stdout.write(f"open end {event}")
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        for n in range(20):
            task, future = it.begin("f", n)
            ran = await future
            assert it.output(task.run, "stdout") == f"out {n}\nopen end {n}".encode()
            assert it.output(task.run, "stderr") == f"err {n}\n".encode()
            assert ran.output_bytes == len(it.output(task.run))
        assert it.output("") == b"init\n"


async def test_closing_every_descriptor_is_a_crash(tmp_path: Path) -> None:
    code = "import os, time\ndef handler(event, context):\n    os.closerange(0, 256)\n    time.sleep(60 if event else 0)\n"
    async with world(tmp_path) as it:
        await it.load("f", code, timeout_ms=20_000)
        for event in (False, True):
            assert (await it.run("f", event)).outcome is Outcome.CRASHED


async def test_garbage_on_the_wire_is_a_crash(tmp_path: Path) -> None:
    code = """
        import os, socket
        def handler(event, context):
            for name in os.listdir("/proc/self/fd"):
                fd = int(name)
                if fd > 2 and os.path.exists(f"/proc/self/fd/{name}") and "socket" in os.readlink(f"/proc/self/fd/{name}"):
                    os.write(fd, event.encode())
            return 1
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        for event in ("garbage that is no frame at all", "\0\0\0\x30O\0\0\0\2{}null"):
            ran = await it.run("f", event)
            assert (ran.outcome, ran.signal) == (Outcome.CRASHED, signal.SIGKILL)


async def test_a_forked_child_that_returns_never_speaks_for_the_worker(tmp_path: Path) -> None:
    code = "import os\ndef handler(event, context):\n    return 'child' if os.fork() == 0 else 'parent'\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert [await it.value("f") for _ in range(5)] == ["parent"] * 5


async def test_the_worker_sees_nothing_it_should_not(tmp_path: Path) -> None:
    code = """
        import os
        def handler(event, context):
            status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
            return {
                "fds": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
                "session": os.getsid(0) == os.getpid(),
                "privileges": status["NoNewPrivs"].strip(),
                "environment": dict(os.environ),
                "tmp": os.listdir(os.environ["TMPDIR"]),
                "stdin": os.read(0, 10).decode(),
            }
    """
    (tmp_path / "token").write_text("s3cret")
    async with world(tmp_path) as it:
        secret_fd = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(secret_fd, True)
        try:
            await it.load("f", code, environment={"QUALITY": "85"}, secrets={"TOKEN": f"file:{tmp_path}/token"})
            seen = await it.value("f")
        finally:
            os.close(secret_fd)
        assert seen["fds"] == [0, 1, 2, 3, 4]  # wire, and the list of its own children
        assert (seen["session"], seen["privileges"], seen["tmp"], seen["stdin"]) == (True, "1", [], "")
        environment = seen["environment"]
        assert set(environment) == {
            "PATH", "HOME", "LANG", "TZ", "TMPDIR", "EVENTD", "QUALITY", "TOKEN", "_HANDLER", "LAMBDA_TASK_ROOT", "AWS_REGION",
            "AWS_DEFAULT_REGION", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
            "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_XRAY_CONTEXT_MISSING",
            "AWS_EXECUTION_ENV",
        }  # fmt: skip
        assert environment["TZ"] == ":UTC"
        assert environment["_HANDLER"] == "f.handler"


async def test_the_private_folder_is_kept_between_runs_and_emptied_after(tmp_path: Path) -> None:
    code = """
        import os, tempfile
        def handler(event, context):
            with open(os.path.join(tempfile.gettempdir(), "count"), "a") as file:
                file.write("x")
            os.makedirs(os.path.join(os.environ["TMPDIR"], "a/b"), exist_ok=True)
            return os.stat(os.path.join(os.environ["TMPDIR"], "count")).st_size, os.environ["TMPDIR"]
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert (await it.value("f"))[0] == 1
        size, folder = await it.value("f")
        assert size == 2
        await it.pool.unload("f")
        await until(lambda: not os.path.exists(folder))


async def test_a_keeper_that_is_killed_is_replaced(tmp_path: Path) -> None:
    code = "import os, time\ndef handler(event, context):\n    time.sleep(event or 0)\n    return os.getpid()\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        pid = await it.value("f")
        _, future = it.begin("f", 60)
        popen = it.pool._launcher._popen
        assert popen is not None
        os.kill(popen.pid, signal.SIGKILL)
        assert (await future).outcome is Outcome.CRASHED
        await until(lambda: not alive(pid))
        assert await it.value("f") != pid


async def test_kill_9_of_the_daemon_takes_every_worker_along(tmp_path: Path) -> None:
    program = f"""
        import asyncio, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from runtime_world import World, until
        async def main():
            it = World(Path({str(tmp_path)!r}))
            await it.load("f", '''
                import os, signal, subprocess, time
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                def handler(event, context):
                    child = subprocess.Popen(["/bin/sleep", "300"], start_new_session=True, env={{}})
                    print(os.getpid(), child.pid, flush=True)
                    time.sleep(300)
            ''')
            pids = []
            for _ in range(3):
                it.begin("f")
            await until(lambda: it.output().count(b"\\n") == 3)
            print(it.output().decode().replace("\\n", " "), it.pool._launcher._popen.pid, flush=True)
            await asyncio.sleep(300)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as daemon:  # noqa: ASYNC220
        assert daemon.stdout is not None
        line = await asyncio.to_thread(daemon.stdout.readline)
        daemon.kill()
        pids = [int(word) for word in line.split()]
        assert len(pids) == 7
        await until(lambda: not [pid for pid in pids if alive(pid)], "every process to end", 5)


async def test_no_socket_is_left_in_a_handlers_child(tmp_path: Path) -> None:
    code = """
        import os, subprocess
        def handler(event, context):
            return subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert "socket" not in await it.value("f")
