"""The launcher and its keeper: real processes, their limits, their ends, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from runtime_world import alive, until

from eventd.runtime.launcher import Launcher, Process
from eventd.runtime.sandbox import SpawnPlan
from eventd.runtime.worker import Exit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as in production


class Started:
    def __init__(self) -> None:
        self.process: Process
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.output = -1

    async def text(self) -> str:
        await asyncio.wait_for(asyncio.shield(self.exit), 20)
        with open(self.output, "rb", closefd=False) as file:  # noqa: ASYNC230
            return file.read().decode()


@asynccontextmanager
async def launching() -> AsyncIterator[tuple[Launcher, Any]]:
    launcher = Launcher(asyncio.get_running_loop())
    outputs: list[int] = []

    def start(*argv: str, env: dict[str, str] | None = None, cwd: str = "/", rlimits: Any = (), **more: Any) -> Started:
        it = Started()
        reading, writing = os.pipe()
        outputs.append(reading)
        it.output = reading
        null = os.open(os.devnull, os.O_RDWR)
        plan = SpawnPlan(argv=argv, env=env or {"PATH": "/usr/bin:/bin"}, cwd=cwd, rlimits=rlimits, fds=(0, 1, 2), **more)
        it.process = launcher.launch(plan, (null, writing, os.dup(writing)), lambda process, exit: it.exit.set_result(exit))
        return it

    try:
        yield launcher, start
    finally:
        await launcher.aclose()
        for fd in outputs:
            os.close(fd)


async def test_how_a_process_ends_is_told_exactly() -> None:
    async with launching() as (_, start):
        for argv, status, number in (
            (("/bin/true",), 0, None),
            (("/bin/sh", "-c", "exit 7"), 7, None),
            (("/bin/sh", "-c", "kill -SEGV $$"), None, signal.SIGSEGV),
        ):
            exit = await start(*argv).exit
            assert (exit.status, exit.signal, exit.error) == (status, number, "")
            assert exit.max_mb > 0
        burn = await start(sys.executable, "-I", "-S", "-c", "import time\nwhile time.process_time() < 0.1: pass").exit
        assert 90 < burn.cpu_ms < 2000


@pytest.mark.parametrize(
    ("argv", "cwd", "error"),
    [
        (("/nowhere/x",), "/", "cannot start /nowhere/x: No such file or directory"),
        (("/etc/passwd",), "/", "cannot start /etc/passwd: Permission denied"),
        (("/bin/true",), "/nowhere", "cannot start /nowhere: No such file or directory"),
    ],
)
async def test_what_cannot_be_started_is_an_exit_with_an_error(argv: tuple[str, ...], cwd: str, error: str) -> None:
    async with launching() as (_, start):
        assert (await start(*argv, cwd=cwd).exit).error == error


async def test_a_process_has_its_own_session_limits_and_nothing_else() -> None:
    code = """if True:
        import os, resource, signal
        print(os.getsid(0) == os.getpid(), sorted(map(int, os.listdir("/proc/self/fd")))[:-1], os.getcwd(), dict(os.environ))
        print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE))
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        print(status["NoNewPrivs"].strip(), int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24), int(status["SigBlk"], 16), os.umask(0))
    """
    open_here = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(open_here, True)
    try:
        async with launching() as (_, start):
            rlimits = (("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 99, 999))
            it = start(sys.executable, "-I", "-S", "-c", code, env={"A": "1", "LC_ALL": "C.UTF-8"}, cwd="/usr", rlimits=rlimits)
            lines = (await it.text()).splitlines()
    finally:
        os.close(open_here)
    assert lines[0] == "True [0, 1, 2] /usr {'A': '1', 'LC_ALL': 'C.UTF-8'}"
    assert lines[1] == "(0, 0) (99, 999)"
    assert lines[2] == "1 0 0 18"


async def test_an_order_longer_than_a_message_arrives() -> None:
    async with launching() as (_, start):
        it = start("/bin/sh", "-c", "echo ${#A} ${#Z}", env={f"A{n}": "x" * 20_000 for n in range(20)} | {"A": "y" * 100_000, "Z": "z"})
        assert await it.text() == "100000 1\n"


async def test_many_at_once_and_signals_that_come_before_the_pid() -> None:
    async with launching() as (_, start):
        started = [start("/bin/sleep", "300") for _ in range(60)]
        for n, it in enumerate(started):
            (it.process.kill if n % 2 else it.process.terminate)()
        exits = await asyncio.gather(*(it.exit for it in started))
        assert [exit.signal for exit in exits] == [signal.SIGTERM, signal.SIGKILL] * 30


async def test_what_a_process_leaves_behind_is_gone_when_its_end_is_told() -> None:
    async with launching() as (_, start):
        daemons = "for n in 1 2 3 4 5; do setsid -f sh -c 'sleep 300 & exec sleep 300' ; done; sleep 0.1"
        neighbour = start("/bin/sleep", "300")
        it = start("/bin/sh", "-c", f"{daemons}; cat /proc/$$/task/$$/children")
        await until(lambda: it.process.pid and neighbour.process.pid)
        pids = [int(word) for word in (await it.text()).split()]
        assert len(pids) >= 5
        assert not [pid for pid in pids if alive(pid)]
        assert alive(neighbour.process.pid)  # what was ordered is never swept


async def test_the_process_group_gets_sigterm() -> None:
    async with launching() as (_, start):
        it = start("/bin/sh", "-c", "trap : TERM; sleep 300; echo the child is gone")
        await until(lambda: it.process.pid and os.path.exists(f"/proc/{it.process.pid}/task/{it.process.pid}/children"))
        children = Path(f"/proc/{it.process.pid}/task/{it.process.pid}/children")
        await until(lambda: [pid for pid in children.read_text().split() if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"])
        it.process.terminate()
        assert (await it.text()).endswith("the child is gone\n")


async def test_aclose_leaves_nothing() -> None:
    async with launching() as (launcher, start):
        started = [start("/bin/sh", "-c", "trap '' TERM; setsid -f sleep 300; sleep 300") for _ in range(3)]
        await until(lambda: all(it.process.pid for it in started))
        await launcher.aclose()
        assert not [it.process.pid for it in started if alive(it.process.pid)]


async def test_hardening_the_daemon() -> None:
    code = """if True:
        import ctypes, resource
        from eventd.runtime.launcher import harden_daemon
        harden_daemon()
        libc, value = ctypes.CDLL(None), ctypes.c_int()
        libc.prctl(37, ctypes.byref(value))
        print(libc.prctl(3), value.value, libc.prctl(39, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    """
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    assert done.stdout == f"0 1 1 0 {wanted}\n"
