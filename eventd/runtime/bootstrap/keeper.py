"""The keeper: parent of every template and of every worker that is not forked from one, and the grave of what they leave behind.

It is a child subreaper and every worker is one for its own descendants, so a process that appears below the keeper without
having been asked for was left by a worker that has ended. `sweep` ends those. When the daemon goes away, even by kill -9, the
control socket closes and the keeper ends everything below it, then itself. It also is where `no_new_privs` begins.

Orders: spawn {"id", "argv", "env", "cwd", "rlimits": [[name, soft, hard]], "fds": [targets], "subreaper"} with the descriptors;
sweep {"id"}, answered by swept {"id", "killed", "left"}.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventd.runtime.bootstrap.eventd_forker import (
        PR_SET_CHILD_SUBREAPER,
        PR_SET_DUMPABLE,
        PR_SET_NO_NEW_PRIVS,
        Forker,
        die_with_parent,
        prctl,
    )
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from eventd_forker import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, Forker, die_with_parent, prctl

_SWEEP_S = 3.0
_RESTORED = [name for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]


def children_of(pid: int) -> list[int]:
    """The direct children of all threads of a process; none when it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def below(roots: list[int]) -> list[int]:
    """`roots` and everything below them, each once, roots first."""
    seen = dict.fromkeys(roots)
    queue = list(roots)
    while queue:
        for child in children_of(queue.pop()):
            if child not in seen:
                seen[child] = None
                queue.append(child)
    return list(seen)


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


class Keeper:
    def __init__(self, fd: int) -> None:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_DUMPABLE, 0)
        os.chdir("/")
        self.forker = Forker(fd)

    def run(self) -> None:
        self.forker.serve(self.order)
        self.sweep(everything=True)

    def order(self, message: dict[str, Any], fds: list[int]) -> None:
        op = message["op"]
        if op == "spawn":
            self.spawn(message, fds)
        elif op == "sweep":
            killed, left = self.sweep()
            self.forker.send({"op": "swept", "id": message["id"], "killed": killed, "left": left})
        for fd in fds:
            os.close(fd)

    def spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        if not self.forker.fork(message["id"]):
            return
        what = message["argv"][0]
        try:
            die_with_parent(self.forker.pid)
            os.setsid()
            prctl(PR_SET_CHILD_SUBREAPER, int(message["subreaper"]))
            prctl(PR_SET_DUMPABLE, 1)
            for name in _RESTORED:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 128) for fd in fds]  # out of the way of the targets
            for source, target in zip(sources, message["fds"]):  # noqa: B905  (strict= is newer than some interpreters)
                os.dup2(source, target, inheritable=True)
            for name, soft, hard in message["rlimits"]:  # last: a low RLIMIT_NOFILE forbids the high numbers above
                limit(getattr(resource, name), soft, hard)
            what = message["cwd"]
            os.chdir(what)
            what = message["argv"][0]
            os.umask(0o022)
            os.execve(what, message["argv"], message["env"])  # everything else is close-on-exec  # noqa: S606
        except OSError as error:
            self.forker.no_exec(message["id"], f"cannot start {what}: {error.strerror}")
        except BaseException as error:  # a child must never come back into the loop of its parent
            self.forker.no_exec(message["id"], f"cannot start {what}: {error!r}")

    def sweep(self, everything: bool = False) -> tuple[int, int]:
        """End and reap every process below us that nobody asked for (`everything`: those too). (ended, still there) after 3 s at most.

        They are stopped before they are killed, until no new one appears, so that one which forks all the time cannot outrun us.
        """
        deadline = time.monotonic() + _SWEEP_S
        ended = 0
        while True:
            mine = children_of(os.getpid())
            strangers = [pid for pid in mine if everything or pid not in self.forker.children]
            if not strangers:
                return ended, 0
            if time.monotonic() > deadline:
                return ended, len(strangers)
            stopped: set[int] = set()
            while time.monotonic() < deadline:
                new = [pid for pid in below(strangers) if pid not in stopped]
                if not new:
                    break
                for pid in new:
                    send_signal(pid, signal.SIGSTOP)
                stopped.update(new)
            for pid in stopped:
                send_signal(pid, signal.SIGKILL)
            for pid in strangers:
                ended += self.bury(pid, deadline)

    def bury(self, pid: int, deadline: float) -> int:
        """Wait for one killed child. 1 when it is gone, 0 when the time is up (it hangs in the kernel)."""
        pause = 0.0002
        while True:
            try:
                gone, status, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                return 0
            if gone:
                self.forker.report(pid, status, usage)
                return 1
            if time.monotonic() > deadline:
                return 0
            time.sleep(pause)
            pause = min(pause * 2, 0.01)


def limit(what: int, soft: int, hard: int) -> None:
    """Set a limit as far as the one we already have allows."""
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
        soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(what, (soft, hard))


if __name__ == "__main__":
    Keeper(int(sys.argv[1])).run()
    os._exit(0)
