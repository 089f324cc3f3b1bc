"""The daemon's side of a Python template: started once per version, forked from for every worker (D26, D29)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from eventd.runtime.launcher import BOOTSTRAP, Exited, Launcher, Parent, Process
from eventd.runtime.output import Drain
from eventd.runtime.sandbox import template_plan
from eventd.runtime.worker import Exit

_LAST_READS = 64


class Template:
    """One template process. `printed` gets what its imports print."""

    def __init__(self, launcher: Launcher, printed: Callable[[str, bytes], None]) -> None:
        self._launcher = launcher
        self._printed = printed
        self._drains: list[Drain] = []
        self._loop = launcher.loop
        self._parent: Parent | None = None
        self._process: Process | None = None
        self._ready: asyncio.Future[str] = self._loop.create_future()
        self._ended = anyio.Event()
        self.why = ""
        """Why workers cannot be forked from it; empty while they can."""

    @property
    def usable(self) -> bool:
        return self._parent is not None and not self._parent.gone and not self.why

    async def start(self, *, python: str, env: Mapping[str, str], root: str, entry: str, limit_s: float) -> None:
        """Start it and let it import what `entry` imports. When this returns `usable` tells, and `why` says why not.

        Cancelled: `close` undoes what was begun.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)]
        for stream in ("stdout", "stderr"):  # pipes, as a worker has: a stream remembers what kind of file it was made on
            reading, writing = os.pipe()
            fds.append(writing)
            self._drains.append(Drain(self._loop, reading, stream, self._printed))
        self._parent = self._launcher.parent(ours, self._told)
        plan = template_plan(argv=(python, "-I", os.path.join(BOOTSTRAP, "python_template.py"), "3"), env=env, root=root)
        self._process = self._launcher.launch(plan, (*fds, theirs.detach()), self._exited)
        self._parent.order({"op": "preload", "root": root, "entry": entry})
        try:
            with anyio.fail_after(limit_s):
                self.why = await self._ready
        except TimeoutError:
            self.why = f"importing what it names takes longer than {limit_s:g} s"

    def fork(self, fds: Sequence[int], exited: Exited) -> Process:
        """A worker with these descriptors as its wire, stdout and stderr. Refused (`unsound`) when a fork would not be sound now."""
        if self._parent is None:
            raise RuntimeError("fork before start")
        return self._parent.start({"op": "fork"}, fds, exited)

    def _told(self, message: dict[str, Any]) -> None:
        if message["op"] == "ready":
            self._settle(message["why"])
        elif message["op"] == "lost":
            self._settle("the template has ended")

    def _settle(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_result(why)
        elif why:
            self.why = self.why or why

    def _exited(self, process: Process, exit: Exit) -> None:
        del process
        for drain in self._drains:
            drain.catch_up(_LAST_READS)
            drain.close()
        self._ended.set()
        if exit.error:
            self._settle(exit.error)
        elif exit.signal is not None or exit.status:
            self._settle("the template has ended with " + (f"signal {exit.signal}" if exit.signal is not None else f"status {exit.status}"))

    async def close(self) -> None:
        """End it; when this returns the process is gone."""
        if not self._ready.done():
            self._ready.cancel()
        if self._parent is not None:
            self._parent.close()
        if self._process is not None:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(1.0):
                    await self._ended.wait()
                self._process.kill()
                await self._ended.wait()
