"""Any executable file as a function: one process per run, event on standard input, result on standard output, log on standard error.

The event is a sealed memory file, not a pipe: a program that never reads it holds nobody up, and one that reads it twice may. The
result is what was printed, up to Lambda's limit for a response: JSON as it is, any other text as a JSON string without its last line
ends, nothing as null. Beyond the limit output is read and dropped, so the program can finish; the run has failed all the same.

How a run ends: exit status 0 is a result; any other is Lambda's `Runtime.ExitError`; a signal is a crash. A program that the system
cannot start is `Runtime.InvalidEntrypoint`, with its name. Nothing of the event is ever in the arguments or the environment; of the
run, three ids of our own making are: EVENTD_REQUEST_ID, EVENTD_RUN_ID and EVENTD_DEADLINE_MS (epoch milliseconds).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Mapping

import msgspec

from eventd.errors import EventdError
from eventd.runtime import wire
from eventd.runtime.launcher import Launcher, Process
from eventd.runtime.output import Drain
from eventd.runtime.sandbox import function_environment, spawn_plan, worker_environment
from eventd.runtime.worker import Answer, Bench, Call, Exit, Worker, WorkerEvents, WorkerSpec

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LAST_READS = 64


class ExecRuntime:
    """Implements worker.Runtime for one version of one function."""

    resident = False

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._launcher: Launcher = bench.launcher
        version = bench.version
        self._shared = function_environment(
            bench.settings,
            bench.function,
            root=version.root,
            handler=version.handler or version.entry,
            environ=self._launcher.environ,
        )

    async def prepare(self) -> None:
        """Look for the program of a `command`. A function's own file was looked at when its code was taken."""
        program = self._argv()[0]
        if not os.path.isabs(program):
            raise EventdError(
                "E-HANDLER",
                f"function {self._bench.function.name}: there is no program {program!r} in PATH.",
                "Install it, or give its whole path in command.",
            )

    def start_worker(self, spec: WorkerSpec, events: WorkerEvents) -> Worker:
        """A worker for one run. Its process starts when the run is handed over, because the event is one of its descriptors."""
        return ExecWorker(self, spec, events)

    async def close(self) -> None:
        """Nothing outlives a run."""

    def launch(self, spec: WorkerSpec, call: Call, fds: tuple[int, int, int], worker: ExecWorker) -> Process:
        environment = worker_environment(
            self._shared, tmpdir=spec.tmpdir, log_stream=spec.log_stream, init_type=spec.init_type, secrets=self._bench.secrets
        )
        environment["EVENTD_REQUEST_ID"] = call.request_id
        environment["EVENTD_RUN_ID"] = call.run
        environment["EVENTD_DEADLINE_MS"] = str(call.deadline)
        plan = spawn_plan(
            argv=self._argv(environment),
            env=environment,
            root=self._bench.version.root,
            memory_mib=self._bench.function.memory_mib,
            tmpdir=spec.tmpdir,
            fds=(0, 1, 2),
        )
        return self._launcher.launch(plan, fds, worker.ended)

    def _argv(self, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """The arguments; the program is absolute unless it cannot be found."""
        root = self._bench.version.root
        command = self._bench.function.command
        if not command:
            return (os.path.join(root, self._bench.version.entry),)
        program = command[0]
        if os.sep in program:
            program = os.path.join(root, program)
        else:
            program = shutil.which(program, path=(environment or self._shared).get("PATH")) or program
        return (program, *command[1:])

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._launcher.loop

    def in_words(self, error: str) -> str:
        """Why the program could not be started, with the name of the person's own file in place of our copy's."""
        function, version = self._bench.function, self._bench.version
        if function.command:
            return error
        own = os.path.join(function.source, version.entry) if os.path.isdir(function.source) else function.source
        return error.replace(self._argv()[0], own)


class ExecWorker:
    """Implements worker.Worker for exactly one run; `exited` follows it by itself."""

    def __init__(self, runtime: ExecRuntime, spec: WorkerSpec, events: WorkerEvents) -> None:
        self._runtime = runtime
        self._spec = spec
        self._events = events
        self._call: Call | None = None
        self._process: Process | None = None
        self._drains: tuple[Drain, ...] = ()
        self._result = bytearray()
        self._too_large = False
        self._began = 0.0
        self._done = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def invoke(self, call: Call) -> None:
        if self._done or self._call is not None:
            return
        self._call = call
        self._began = self._runtime.loop.time()
        opened: list[int] = []
        try:
            opened.append(_sealed(call.event))
            for stream in ("stdout", "stderr"):
                reading, writing = os.pipe()
                opened.append(writing)
                self._drains += (Drain(self._runtime.loop, reading, stream, self._printed),)
        except OSError as error:  # out of descriptors or of memory
            for fd in opened:
                os.close(fd)
            self._end_soon(Exit(error=f"cannot start a worker: {error.strerror}"))
            return
        self._process = self._runtime.launch(self._spec, call, (opened[0], opened[1], opened[2]), self)

    def quit(self) -> None:
        if self._process is None:
            self._end_soon(Exit(status=0))

    def terminate(self) -> None:
        if self._process is None:
            self._end_soon(Exit())
        else:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is None:
            self._end_soon(Exit())
        else:
            self._process.kill()

    def _printed(self, stream: str, data: bytes) -> None:
        if stream == "stderr":
            self._events.printed(stream, data)
        elif not self._too_large:
            self._result += data
            if len(self._result) > wire.MAX_PAYLOAD:
                self._too_large = True
                self._result = bytearray()

    def ended(self, process: Process, exit: Exit) -> None:
        """The process and all it left are gone: what it still said, then the answer, then the end."""
        for drain in self._drains:
            drain.catch_up(_LAST_READS)
        call = self._call
        if call is not None and not self._done:
            exit = self._conclude(call, process, exit)
        self._finish(exit)

    def _conclude(self, call: Call, process: Process, exit: Exit) -> Exit:
        if exit.error and process.pid:  # the fork was made, but the program could not be started in it
            message = self._runtime.in_words(exit.error)
            self._answer(call, exit, ok=False, payload=_error("Runtime.InvalidEntrypoint", message, call), status=None)
            return Exit(status=127)
        if exit.error or exit.status is None:
            return exit
        if exit.status != 0:
            message = f"Runtime exited with error: exit status {exit.status}"
            self._answer(call, exit, ok=False, payload=_error("Runtime.ExitError", message, call), status=exit.status)
        elif self._too_large or (payload := result_of(bytes(self._result))) is None:
            self._events.too_large()
        else:
            self._answer(call, exit, ok=True, payload=payload, status=0)
        return exit

    def _answer(self, call: Call, exit: Exit, *, ok: bool, payload: bytes, status: int | None) -> None:
        ms = (self._runtime.loop.time() - self._began) * 1000
        answer = Answer(n=call.n, ok=ok, payload=payload, ms=ms, cpu_ms=exit.cpu_ms, max_mb=exit.max_mb, exit_status=status)
        self._events.answered(answer)

    def _end_soon(self, exit: Exit) -> None:
        self._runtime.loop.call_soon(self._finish, exit)

    def _finish(self, exit: Exit) -> None:
        if self._done:
            return
        self._done = True
        for drain in self._drains:
            drain.close()
        self._drains = ()
        self._result = bytearray()
        self._events.exited(exit)


def result_of(printed: bytes) -> bytes | None:
    """What a program printed, as JSON; None when that is over the limit (a text can grow by its escapes)."""
    text = printed.strip()
    if not text:
        return b"null"
    try:
        text.decode("utf-8")
        msgspec.json.decode(text, type=msgspec.Raw)  # looks at all of it, and makes nothing of it
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = msgspec.json.encode(printed.decode("utf-8", "replace").rstrip("\n"))
    return text if len(text) <= wire.MAX_PAYLOAD else None


def _error(kind: str, message: str, call: Call) -> bytes:
    """Lambda's shape for what the platform itself reports (lambda.md 2.3)."""
    return msgspec.json.encode({"errorType": kind, "errorMessage": f"RequestId: {call.request_id} Error: {message}"})


def _sealed(event: bytes) -> int:
    """A descriptor to read the event from, which nobody can change any more."""
    memory = os.memfd_create("event", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(event)
        while view:
            view = view[os.write(memory, view) :]
        os.lseek(memory, 0, os.SEEK_SET)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(memory)
        raise
    return memory
