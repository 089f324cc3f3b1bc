"""A resident worker that speaks the frames of `wire.py` over a socketpair, whatever its language: Python and Node share this.

Descriptors of the child: the wire, stdout, stderr, in this order; where they stand in the child is the runtime's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence

from eventd.runtime import wire
from eventd.runtime.launcher import Process
from eventd.runtime.output import Drain
from eventd.runtime.worker import Answer, Call, Exit, Init, WorkerEvents

_READ = 65_536
"""Larger reads make the allocator map and unmap memory each time."""
_SILENT_S = 0.25
_LAST_READS = 64

Launch = Callable[[Sequence[int], Callable[[Process, Exit], None]], Process]
"""Start the process with these three descriptors (it closes them) and call back when it and all it left are gone."""


class FrameWorker:
    """Implements worker.Worker. Made by `start`; everything it holds is given back before `exited`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> None:
        self._loop = loop
        self._events = events
        self._process: Process | None = None
        self._parser = wire.Parser()
        self._connection: socket.socket | None = None
        self._drains: tuple[Drain, ...] = ()
        self._outputs = select.poll()
        """Whether there is anything to drain: one question for both pipes, and no failing reads."""
        self._unsent: deque[memoryview] = deque()
        self._early: list[bytes] | None = []
        """What was sent before the worker was ready, for a worker that must begin anew."""
        self._done = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self, launch: Launch, first: bytes = b"", refused: Callable[[Process], bool] | None = None) -> None:
        """Start the process and send `first`. `refused` may answer True to an exit without a process: it has begun anew."""
        try:
            fds = self._open()
        except OSError as error:  # out of descriptors
            self._close()
            self._loop.call_soon(self._exit, Exit(error=f"cannot start a worker: {error.strerror}"))
            return
        if first:
            self._send(first)

        def exited(process: Process, exit: Exit) -> None:
            if exit.error and refused is not None and refused(process):
                return
            self._exit(exit)

        self._process = launch(fds, exited)

    def restart(self, launch: Launch) -> None:
        """Begin anew with fresh descriptors, after a refusal; what had been sent is sent again."""
        self._close()
        self._unsent.clear()
        early, self._early = self._early, []
        self.start(launch)
        for data in early or ():
            self._send(data)

    def _open(self) -> tuple[int, int, int]:
        opened: list[int] = []
        self._outputs = select.poll()
        try:
            ours, theirs = socket.socketpair()
            self._connection = ours
            opened.append(theirs.detach())
            for stream in ("stdout", "stderr"):
                reading, writing = os.pipe()
                opened.append(writing)
                self._drains += (Drain(self._loop, reading, stream, self._printed),)
                self._outputs.register(reading, select.POLLIN)
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._readable)
        return opened[0], opened[1], opened[2]

    # --- worker.Worker ---

    def invoke(self, call: Call) -> None:
        meta = wire.Invoke(call.n, call.request_id, call.deadline, call.arn, call.trace, call.client_context, call.timeout_ms)
        self._send(wire.encode_invoke(meta, call.event))

    def quit(self) -> None:
        self._send(wire.QUIT)

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    # --- the wire ---

    def _send(self, data: bytes) -> None:
        """Write now what the socket takes, the rest when it takes more. Bounded: one event at a time."""
        if self._early is not None:
            self._early.append(data)
        connection = self._connection
        if connection is None:
            return
        if not self._unsent:
            try:
                sent = connection.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # it is ending; its exit says how
            if sent == len(data):
                return
            self._loop.add_writer(connection.fileno(), self._writable)
            self._unsent.append(memoryview(data)[sent:])
        else:
            self._unsent.append(memoryview(data))

    def _writable(self) -> None:
        connection = self._connection
        while connection is not None and self._unsent:
            try:
                sent = connection.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                break
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][sent:]
        if connection is not None:
            self._loop.remove_writer(connection.fileno())

    def _readable(self) -> bool:
        """True when something was read."""
        connection = self._connection
        if connection is None:
            return False
        try:
            data = connection.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return False
        for frame in self._parser.feed(data):
            self._frame(frame)
        return True

    def _hang_up(self) -> None:
        """The other end is closed: it is exiting, which its pidfd will say in a moment, or it has closed what it should not."""
        self._close_wire()
        self._loop.call_later(_SILENT_S, self._still_there, self._process)

    def _still_there(self, process: Process | None) -> None:
        if not self._done and self._process is process:
            self._events.broke("the worker closed its connection")

    def _frame(self, frame: wire.Frame) -> None:
        kind, meta, events = frame.kind, frame.meta, self._events
        if kind == wire.OK or kind == wire.ERROR:
            self._catch_up()
            events.answered(
                Answer(n=meta.n, ok=kind == wire.OK, payload=frame.body, ms=meta.ms, cpu_ms=meta.cpu_ms, max_mb=meta.max_mb),
            )
        elif kind == wire.READY:
            self._early = None
            self._catch_up()
            events.ready(Init(meta.init_ms, meta.cpu_ms, meta.max_mb))
        elif kind == wire.FAILED:
            events.failed(frame.body)
        elif kind == wire.TOO_LARGE:
            self._catch_up()
            events.too_large()
        else:
            events.broke(f"the worker sent {frame.body.decode('utf-8', 'replace')}")
            self._close_wire()

    def _catch_up(self) -> None:
        """Read what the run has printed by now. A pipe that was closed counts as one that has something: that costs a look."""
        if self._outputs.poll(0):
            for drain in self._drains:
                drain.catch_up()

    def _printed(self, stream: str, data: bytes) -> None:
        self._events.printed(stream, data)

    # --- the end ---

    def _exit(self, exit: Exit) -> None:
        """The process is gone and so is all it left: read what it still said, then give everything back."""
        if self._done:
            return
        reads = _LAST_READS
        while reads and self._readable():
            reads -= 1
        for drain in self._drains:
            drain.catch_up(_LAST_READS)
        self._done = True
        self._close()
        self._events.exited(exit)

    def _close_wire(self) -> None:
        if self._connection is not None:
            self._loop.remove_reader(self._connection.fileno())
            self._loop.remove_writer(self._connection.fileno())
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _close(self) -> None:
        self._close_wire()
        for drain in self._drains:
            drain.close()
        self._drains = ()
