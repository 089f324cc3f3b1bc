"""The only place that creates a process for a function.

The daemon itself never forks for a worker: it is large, and whatever it forks inherits its threads' problems. It starts one small
helper, the keeper (`bootstrap/keeper.py`), and orders processes from it; a Python template (`bootstrap/python_template.py`) is ordered
from the keeper and forks workers itself. Both speak one protocol over a SOCK_SEQPACKET socket, and `Parent` is the daemon's end of it.

So neither preexec_fn nor threads come near a fork; every process gets its session, limits, no_new_privs, death signal and
subreaper bit between fork and exec in a process with one thread; and a process that nobody ordered, found below the keeper, was
left behind by one that ended: `sweep` ends it. If the daemon dies, the socket closes and the keeper ends everything.

A process's exit is noticed by its pidfd, never by the end of a pipe, which a grandchild may hold open. Its status and usage are
reported by its parent, which alone may wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread

from eventd.runtime.sandbox import SpawnPlan
from eventd.runtime.worker import Exit

BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")
_INLINE = 32 * 1024
_MESSAGE = 64 * 1024
_REPORT_S = 1.0
_LEAVE_S = 5.0
_AGAIN_S = 0.01

Exited = Callable[["Process", Exit], None]


class Process:
    """One ordered process. Signals go through its pidfd, so they never reach a stranger that was given the same number."""

    __slots__ = ("_exited", "_gone", "_owed", "_parent", "_pidfd", "_report", "_reported", "error", "id", "pid", "unsound")

    def __init__(self, parent: Parent, id: int, exited: Exited) -> None:
        self._parent = parent
        self._exited = exited
        self._pidfd = -1
        self._report: dict[str, Any] | None = None
        self._reported = False
        self._gone = False
        self._owed = 0
        self.id = id
        self.pid = 0
        self.error = ""
        self.unsound = False
        """The template refused because a fork would not be sound now (D29)."""

    def terminate(self) -> None:
        """SIGTERM to its process group."""
        self._signal(signal.SIGTERM, group=True)

    def kill(self) -> None:
        """SIGKILL; what it leaves behind is swept before `exited` is called."""
        self._signal(signal.SIGKILL, group=False)

    def _signal(self, number: int, *, group: bool) -> None:
        if self._gone:
            return
        if not self.pid:
            self._owed = max(self._owed, number, key=lambda it: (it == signal.SIGKILL, it))
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)  # raises when it is gone, and then the group is not touched
            elif not group:
                os.kill(self.pid, number)
            if group:
                os.killpg(self.pid, number)

    # --- news, from Parent ---

    def _forked(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        if pidfd >= 0:
            self._parent.loop.add_reader(pidfd, self._ended)
        if self._owed:
            self._signal(self._owed, group=self._owed == signal.SIGTERM)

    def _ended(self) -> None:
        """The pidfd is readable: it has exited. Its parent's report is on its way, or never comes."""
        self._parent.loop.remove_reader(self._pidfd)
        self._gone = True
        if self._report is not None or self._parent.gone:
            self._finish()
        else:
            self._parent.loop.call_later(_REPORT_S, self._finish)

    def _told(self, report: dict[str, Any] | None) -> None:
        """The parent's report, or None: there never was, or will be no, report."""
        self._report = report
        if self._gone or self._pidfd < 0:
            self._finish()

    def _finish(self) -> None:
        if self._reported:
            return
        self._reported = self._gone = True
        if self._pidfd >= 0:
            self._parent.loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._parent.forget(self)
        report = self._report
        if report is None or self.error:
            exit = Exit(error=self.error)
        else:
            status = report["status"]
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            code = os.WEXITSTATUS(status) if ended_by is None else None
            exit = Exit(status=code, signal=ended_by, cpu_ms=report["cpu_ms"], max_mb=report["max_mb"])
        self._parent.buried(lambda: self._exited(self, exit))


class Parent:
    """The daemon's end of a process that makes others: the keeper or a template."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: socket.socket, launcher: Launcher, other: Callable[[dict[str, Any]], None]
    ):
        self.loop = loop
        self.gone = False
        self._socket = connection
        self._socket.setblocking(False)
        self._launcher = launcher
        self._other = other
        self._next = 0
        self._processes: dict[int, Process] = {}
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        loop.add_reader(connection.fileno(), self._readable)

    def start(self, order: dict[str, Any], fds: Sequence[int], exited: Exited) -> Process:
        """Order a process. `fds` are ours from here on: closed when sent. Refusals come as `exited` with an error."""
        self._next += 1
        process = Process(self, self._next, exited)
        self._processes[process.id] = process
        self.order({**order, "id": process.id}, fds)
        if self.gone:
            self.loop.call_soon(self._refuse, process, "the process that starts workers has ended")
        return process

    def order(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send, or queue while the socket is full: at most one order for each process being started."""
        data = json.dumps(message).encode("utf-8", "surrogateescape")
        if len(data) > _INLINE:
            memory = os.memfd_create("order", os.MFD_CLOEXEC)
            os.write(memory, data)
            os.lseek(memory, 0, os.SEEK_SET)
            data, fds = b'{"memfd": true}', (memory, *fds)
        if self.gone:
            _close(fds)
            return
        self._queue.append((data, tuple(fds)))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        if self.gone:
            return
        while self._queue:
            data, fds = self._queue[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            try:
                self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                self.loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):  # too many descriptors on their way: they arrive soon
                    self.loop.call_later(_AGAIN_S, self._flush)
                else:
                    self._lost()
                return
            self._queue.popleft()
            _close(fds)
        self.loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        for _ in range(32):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self._lost()
                return
            fds = array("i")
            for _level, _kind, chunk in ancillary:
                fds.frombytes(chunk)
            self._handle(json.loads(data), fds[0] if fds else -1)

    def _handle(self, message: dict[str, Any], fd: int) -> None:
        op = message["op"]
        process = self._processes.get(message.get("id", 0))
        if process is None or op not in ("forked", "exit", "noexec", "refused"):
            if fd >= 0:
                os.close(fd)
            if op not in ("forked", "exit", "noexec", "refused"):
                self._other(message)
        elif op == "forked":
            process._forked(message["pid"], fd)
        elif op == "exit":
            process._told(message)
        elif op == "noexec":
            process.error = message["error"]
        else:
            process.unsound = message.get("unsound", False)
            self._refuse(process, message["error"])

    def _refuse(self, process: Process, error: str) -> None:
        process.error = error
        process._told(None)

    def _lost(self) -> None:
        """The process at the other end is gone. What it made dies with it (PDEATHSIG); nobody can report on it any more."""
        if self.gone:
            return
        self.gone = True
        self.loop.remove_reader(self._socket.fileno())
        self.loop.remove_writer(self._socket.fileno())
        self._socket.close()
        while self._queue:
            _close(self._queue.popleft()[1])
        for process in list(self._processes.values()):
            if process.pid == 0:
                self._refuse(process, "the process that starts workers has ended")
            elif process._gone:
                process._finish()
            else:
                process.kill()
        self._other({"op": "lost"})

    def forget(self, process: Process) -> None:
        self._processes.pop(process.id, None)

    def buried(self, then: Callable[[], None]) -> None:
        """Call `then` when nothing that an ended process left behind is alive any more."""
        self._launcher.sweep(then)

    def close(self) -> None:
        """Let go: the process at the other end ends itself, the keeper only after everything below it."""
        self._lost()


class Launcher:
    """Starts processes, through a keeper that it starts itself when first needed, and again if it was killed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, environ: Mapping[str, str] | None = None) -> None:
        self.loop = loop
        self.environ = dict(os.environ if environ is None else environ)
        """What workers may inherit from, by the allow-list of sandbox.py."""
        self._keeper: Parent | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._waiting: list[Callable[[], None]] = []
        self._sweeping: list[Callable[[], None]] = []

    def launch(self, plan: SpawnPlan, fds: Sequence[int], exited: Exited) -> Process:
        """Start a process that finds `fds[i]` as its descriptor `plan.fds[i]`. The descriptors are closed here when sent.

        Returns at once. `exited` is called once, on the loop, when the process and all it left behind are gone.
        """
        order = {
            "op": "spawn",
            "argv": plan.argv,
            "env": plan.env,
            "cwd": plan.cwd,
            "rlimits": plan.rlimits,
            "fds": plan.fds,
            "subreaper": plan.subreaper,
        }
        return self._parent().start(order, fds, exited)

    def parent(self, connection: socket.socket, other: Callable[[dict[str, Any]], None]) -> Parent:
        """The daemon's end of a template. `other` gets the messages that are about no process, and {"op": "lost"} at its end."""
        return Parent(self.loop, connection, self, other)

    def sweep(self, then: Callable[[], None]) -> None:
        """End what ended workers left behind, then call `then`. Requests that come while one is on its way share the next one."""
        self._waiting.append(then)
        if not self._sweeping:
            self._sweep()

    def _sweep(self) -> None:
        self._sweeping, self._waiting = self._waiting, []
        if self._keeper is None or self._keeper.gone:
            self.loop.call_soon(self._swept)
        else:
            self._keeper.order({"op": "sweep", "id": 0})

    def _swept(self) -> None:
        done, self._sweeping = self._sweeping, []
        if self._waiting:
            self._sweep()
        for then in done:
            then()

    def _parent(self) -> Parent:
        if self._keeper is not None and (self._closed or not self._keeper.gone):
            return self._keeper
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Popen without preexec_fn takes CPython's vfork path: cheap however large the daemon is (reliability.md 3.1)
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.join(BOOTSTRAP, "keeper.py"), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._popen = popen
        self._keeper = Parent(self.loop, ours, self, self._other)
        return self._keeper

    def _other(self, message: dict[str, Any]) -> None:
        if message["op"] == "swept":
            self._swept()
        elif message["op"] == "lost":
            if self._popen is not None and not self._closed:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(0.1)  # it is dead already, or all but: the socket is the last thing it closes
            if self._sweeping:
                self.loop.call_soon(self._swept)

    async def aclose(self) -> None:
        """End the keeper and everything below it. When it returns no process of ours is left."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.close()
        popen, self._popen = self._popen, None
        if popen is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_wait, popen)


def _wait(popen: subprocess.Popen[bytes]) -> None:
    try:
        popen.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def harden_daemon() -> None:
    """What the daemon's own process should be, once, at start: nobody may read its memory or dump it, orphans whose keeper died come
    to it, it leaves no core file, and it may hold a descriptor set for each of many workers."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    libc.prctl(4, zero, zero, zero, zero)  # PR_SET_DUMPABLE
    libc.prctl(36, ctypes.c_ulong(1), zero, zero, zero)  # PR_SET_CHILD_SUBREAPER
    libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero)  # PR_SET_NO_NEW_PRIVS
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
