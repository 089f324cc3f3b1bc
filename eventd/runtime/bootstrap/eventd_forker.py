"""The loop of a process whose one task is to make other processes: the keeper and the Python templates.

Runs in any Python from 3.8 on, under `python -I`, from its path: it imports the standard library only. One thread. Orders come as
JSON on a SOCK_SEQPACKET socket, descriptors beside them (SCM_RIGHTS); reports go back the same way:

    forked  {"id", "pid"}, with a pidfd of the child: whoever holds it can never signal a stranger that got the same pid
    exit    {"id", "status" (as from wait), "cpu_ms", "max_mb"}
    noexec  {"id", "error"}: sent by the child itself, before it ends
    refused {"id", "error"}: there is no child

Because the pidfd is sent before the child is waited for, reaping at once is safe (measured.md 1, "who reaps").
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the plain functions: the enums of `signal` cost a new process more than the rest of its start
import array
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_MESSAGE = 256 * 1024
_MAX_FDS = 16
_OURS = (1, 2, 15)  # HUP, INT, TERM
_DEFAULTED = (*_OURS, signal.SIGCHLD)
_DEFAULT = int(signal.SIG_DFL)
_BLOCK, _UNBLOCK = int(signal.SIG_BLOCK), int(signal.SIG_UNBLOCK)
_HIGH = 64
"""Our own descriptors stand from here on, so that a child's 0, 1, 2, 3 ... never hit them."""
_prctl = ctypes.CDLL(None).prctl
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


def prctl(option: int, value: int) -> bool:
    """True when the kernel took it. Old kernels and odd sandboxes may refuse; nobody here depends on it alone."""
    return bool(_prctl(option, value, 0, 0, 0) == 0)


def die_with_parent(parent: int) -> None:
    """SIGKILL for us when the thread that made us ends; at once if it already has."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Forker:
    """The control socket, the children, and the loop over both."""

    def __init__(self, fd: int) -> None:
        self.pid = os.getpid()
        self._socket = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH))
        os.close(fd)
        pipe = os.pipe()
        self._wake, self._wake_write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _HIGH) for end in pipe)
        for end in pipe:
            os.close(end)
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_write, False)
        self.children: dict[int, int] = {}
        """pid -> id of those not reaped yet."""
        for number in _OURS:
            signal.signal(number, signal.SIG_IGN)  # our owner tells us to end by closing the socket, and nobody else may
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self, handle: Callable[[dict[str, Any], list[int]], None]) -> None:
        """Carry out orders until the other end closes. `handle` owns the descriptors it is given."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    self.reap()
                else:
                    received = self._receive()
                    if received is None:
                        return
                    handle(*received)

    def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        if not data:
            return None
        fds = array.array("i")
        for level, kind, chunk in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(chunk[: len(chunk) - len(chunk) % fds.itemsize])
        message = json.loads(data)
        if message.pop("memfd", False):  # too long for one message: the rest of it is in the first descriptor
            with open(fds.pop(0), "rb") as file:
                message.update(json.loads(file.read()))
        return message, list(fds)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Tell our owner. If it is gone, so are we soon: the loop sees the end of the socket."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(ConnectionError):
            self._socket.sendmsg([json.dumps(message).encode()], ancillary)

    def fork(self, id: int) -> bool:
        """True in the child, whose signals are as after exec; in the parent, when the fork is reported or refused, False."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        _signal.pthread_sigmask(_BLOCK, _OURS)  # one that comes before the child stops ignoring it waits for that
        try:
            pid = os.fork()
        except OSError as error:
            _signal.pthread_sigmask(_UNBLOCK, _OURS)
            self.send({"op": "refused", "id": id, "error": "cannot make a process: " + (error.strerror or "")})
            return False
        if pid:
            _signal.pthread_sigmask(_UNBLOCK, _OURS)
            self.children[pid] = id
            pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
            self.send({"op": "forked", "id": id, "pid": pid}, () if pidfd < 0 else (pidfd,))
            if pidfd >= 0:
                os.close(pidfd)
            return False
        signal.set_wakeup_fd(-1)
        for number in _DEFAULTED:
            _signal.signal(number, _DEFAULT)
        _signal.pthread_sigmask(_UNBLOCK, _OURS)
        self.children.clear()
        return True

    def no_exec(self, id: int, error: str) -> None:
        """In a child that could not become what it should: say so and end."""
        self.send({"op": "noexec", "id": id, "error": error})
        os._exit(127)

    def reap(self) -> None:
        """Wait for every child that has ended, and report those we made."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)  # no user code runs in this process: all children are ours to wait for
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.report(pid, status, usage)

    def report(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        id = self.children.pop(pid, None)
        if id is not None:
            cpu_ms = (usage.ru_utime + usage.ru_stime) * 1000
            self.send({"op": "exit", "id": id, "status": status, "cpu_ms": cpu_ms, "max_mb": -(-usage.ru_maxrss // 1024)})
