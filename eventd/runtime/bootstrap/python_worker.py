"""What runs inside a Python worker: loads the handler as Lambda does, then answers one event after another.

Runs in any Python from 3.8 on, under `python -I`, from its path (plain spawn) or imported by the template before it forks; standard
library only. Frames are those of `eventd/runtime/wire.py`. How handler strings are read, what results and errors look like and
which `Runtime.*` type each failure has follows awslambdaric 4 (lambda.md 1.5, 1.8, 2.1, 8.2).
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from eventd.runtime.bootstrap.eventd_context import ClientContext, Identity, LambdaContext
    from eventd.runtime.bootstrap.eventd_forker import PR_SET_CHILD_SUBREAPER, prctl
    from eventd.runtime.bootstrap.eventd_handler import Fault, decode, encode, error_of, find_handler, print_error
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # only for these: a handler must not find our modules
    from eventd_context import ClientContext, Identity, LambdaContext
    from eventd_forker import PR_SET_CHILD_SUBREAPER, prctl
    from eventd_handler import Fault, decode, encode, error_of, find_handler, print_error

    sys.path.pop(0)

MAX_PAYLOAD = 6 * 1024 * 1024 + 100
_BIG_EVENT = 1 << 16
_COROUTINE_FUNCTION = 0x80


# --- logging ---


class _Handler(logging.Handler):
    """The root handler every Lambda function finds: `[LEVEL]\\tTIME\\tREQUEST\\tmessage`."""

    request_id = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            text = logging.Formatter("%(message)s").format(record)
            sys.stderr.write(f"[{record.levelname}]\t{at}.{int(record.msecs):03d}Z\t{self.request_id}\t{text}\n")
        except Exception:
            self.handleError(record)


# --- the connection ---


class Wire:
    """Blocking frames. The daemon sends one INVOKE at a time, so a read never holds more than one frame and perhaps a QUIT."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def receive(self) -> tuple[int, memoryview]:
        """(kind, body). The daemon's being gone is a QUIT."""
        data = self._rest or self._connection.recv(_BIG_EVENT)
        while data and len(data) < 4:
            more = self._connection.recv(_BIG_EVENT)
            data = data + more if more else b""
        if not data:
            return ord("Q"), memoryview(b"")
        end = 4 + int.from_bytes(data[:4], "big")
        if len(data) < end:
            parts = bytearray(data)
            while len(parts) < end:
                more = self._connection.recv(min(end - len(parts), 1 << 20))
                if not more:
                    return ord("Q"), memoryview(b"")
                parts += more
            data = bytes(parts)
        self._rest = data[end:]
        return data[4], memoryview(data)[5:end]

    def send(self, kind: bytes, head: bytes, payload: bytes | None = None) -> None:
        """A frame; `head` is its meta as JSON."""
        body = head if payload is None else b"".join((len(head).to_bytes(4, "big"), head, payload))
        self._connection.sendall((1 + len(body)).to_bytes(4, "big") + kind + body)


# --- what a run leaves behind ---


class Leftovers:
    """Child processes that a run leaves behind: ended and reaped by pid, so that no Popen of the handler's loses its status (D30).

    The worker is a subreaper, so daemons of daemons come back to it. Those that init had started are the worker's own and stay.
    """

    def __init__(self) -> None:
        self._path = f"/proc/self/task/{os.getpid()}/children"
        self._fd = -1
        self._ours: frozenset[int] = frozenset()
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._ours = frozenset(self._children())

    def _children(self) -> list[int]:
        """Of all threads. One `pread` when there is one thread and no child (0.4 us)."""
        try:
            if os.stat("/proc/self/task").st_nlink == 3:
                found = os.pread(self._fd, 4096, 0)
                if not found:
                    return []
        except OSError:
            pass  # the handler closed our descriptor: look the long way
        pids: list[int] = []
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children", "rb") as file:
                pids += map(int, file.read().split())
        return pids

    def end(self) -> int:
        """How many were ended. Bounded: after 2 s the daemon's own sweep has to do the rest."""
        if self._fd < 0:
            return 0
        pids = self._children()
        if not pids:
            return 0
        ended = 0
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            pids = [pid for pid in self._children() if pid not in self._ours]
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            for pid in pids:
                while time.monotonic() < deadline:
                    try:
                        gone, _ = os.waitpid(pid, os.WNOHANG)
                    except ChildProcessError:
                        break
                    if gone:
                        ended += 1
                        break
                    time.sleep(0.0002)
        return ended


# --- the worker ---


class Worker:
    def __init__(self, wire: Wire, start: dict[str, Any]) -> None:
        self._wire = wire
        self._start = start
        self._pid = os.getpid()
        self._log = _Handler()
        self._loop: Any = None
        self._cpu = 0.0

    def run(self) -> NoReturn:
        self._settle()
        started = time.perf_counter()
        self._usage()
        try:
            handler = find_handler(self._start["handler"], self._start["entry"])
            if getattr(getattr(handler, "__code__", None), "co_flags", 0) & _COROUTINE_FUNCTION:
                self._make_loop()
        except SystemExit as leaving:
            self._leave(status_of(leaving))
        except BaseException as error:
            self._die(error)
        self._check_fork()
        leftovers = Leftovers()
        self._flush()
        cpu_ms, max_mb = self._usage()
        self._wire.send(b"R", b'{"init_ms":%.3f,"cpu_ms":%.3f,"max_mb":%d}' % ((time.perf_counter() - started) * 1000, cpu_ms, max_mb))
        while True:
            kind, body = self._wire.receive()
            if kind != 73:  # QUIT, or the daemon is gone
                self._leave(0)
            self._answer(handler, body, leftovers)

    def _settle(self) -> None:
        """Become the function: environment, limits, folder, streams, logging."""
        start = self._start
        environment: dict[str, str] = start["env"]
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():  # most of it is there already: we were started with what all workers share
            if os.environ.get(name) != value:
                os.environ[name] = value
        os.environ["AWS_EXECUTION_ENV"] = f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}"
        time.tzset()
        for name, soft, hard in start["rlimits"]:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (soft, hard))
        os.chdir(start["root"])
        sys.path.insert(0, start["root"])
        sys.argv = [os.path.join(start["root"], start["entry"])]
        logging.root.handlers[:] = [self._log]
        level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
        logging.root.setLevel({"TRACE": "DEBUG", "FATAL": "CRITICAL"}.get(level, level) if level in _LEVELS else logging.WARNING)

    def _make_loop(self) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def _answer(self, handler: Callable[..., Any], body: memoryview, leftovers: Leftovers) -> None:
        started = time.perf_counter()
        split = 4 + int.from_bytes(body[:4], "big")
        meta = decode(bytes(body[4:split]))
        request_id = self._log.request_id = meta["id"]
        trace = meta["trace"]
        if trace:
            os.environ["_X_AMZN_TRACE_ID"] = trace
        elif "_X_AMZN_TRACE_ID" in os.environ:
            del os.environ["_X_AMZN_TRACE_ID"]
        try:
            try:
                event = decode(bytes(body[split:]))
            except ValueError as error:
                raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None
            result = handler(event, self._context(meta))
            if result is not None and hasattr(type(result), "__await__"):
                if self._loop is None:
                    self._make_loop()
                result = self._loop.run_until_complete(result)
            kind, payload = b"O", encode(result)
            if len(payload) > MAX_PAYLOAD:
                text = f"Response payload size exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes)."
                kind, payload = b"E", encode({"errorType": "Function.ResponseSizeTooLarge", "errorMessage": text})
        except SystemExit as leaving:
            self._leave(status_of(leaving))
        except BaseException as error:  # CancelledError and KeyboardInterrupt too: they end the run, not the worker
            self._check_fork()
            described = error_of(error, request_id)
            print_error(described)
            kind, payload = b"E", encode(described)
            del error
        self._check_fork()
        ms = (time.perf_counter() - started) * 1000
        self._flush()
        ended = leftovers.end()
        cpu_ms, max_mb = self._usage()
        # written by hand: json.dumps of this takes seven times as long, for every run
        self._send(kind, b'{"n":%d,"ms":%.3f,"cpu_ms":%.3f,"max_mb":%d,"fork":%d}' % (meta["n"], ms, cpu_ms, max_mb, ended), payload)

    def _context(self, meta: dict[str, Any]) -> LambdaContext:
        client = meta["client"]
        meta["deadline"] = meta["deadline"] or int(time.time() * 1000) + meta["timeout"]
        identity = Identity()
        return LambdaContext(meta["id"], meta["arn"], meta["deadline"], self._start, identity, ClientContext.of(client) if client else None)

    def _send(self, kind: bytes, head: bytes, payload: bytes) -> None:
        try:
            self._wire.send(kind, head, payload)
        except OSError:  # the daemon is gone, or the handler closed our descriptor: either way nobody hears us any more
            self._leave(1)

    def _usage(self) -> tuple[float, int]:
        """CPU time since the last look, of us and of the children we waited for, in ms; peak memory in MiB."""
        mine = resource.getrusage(resource.RUSAGE_SELF)
        theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = (mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime) * 1000
        spent, self._cpu = total - self._cpu, total
        return spent, -(-max(mine.ru_maxrss, theirs.ru_maxrss) // 1024)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the handler may have closed or replaced it
                stream.flush()

    def _check_fork(self) -> None:
        """A child that the handler forked and that comes back here must never speak in the worker's name."""
        if os.getpid() != self._pid:
            self._flush()
            os._exit(0)

    def _die(self, error: BaseException) -> NoReturn:
        self._check_fork()
        described = error_of(error, "")
        print_error(described)
        self._flush()
        with contextlib.suppress(OSError):
            self._wire.send(b"F", b"{}", encode(described))
        os._exit(1)

    def _leave(self, status: int) -> NoReturn:
        """End without the interpreter's own ending: exit handlers of what the template imported are not ours to run."""
        self._flush()
        os._exit(status)


_LEVELS = frozenset(("TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"))


def status_of(leaving: SystemExit) -> int:
    """The exit status that `sys.exit(code)` means."""
    code = leaving.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{code}\n")
    return 1


def prepare_streams() -> None:
    """UTF-8 whatever the locale, and a line at a time. Done once, in the template for all its workers."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def reseed(instances: list[Any]) -> None:
    """Fresh randomness after a fork: numpy's global state, and generators that preloaded modules made (measured.md 1).

    The `random` module's own functions (it seeds itself after a fork), uuid4 and secrets differ in every child by themselves.
    """
    for instance in instances:
        instance.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with contextlib.suppress(Exception):
            numpy_random.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.__dict__["tempdir"] = None  # the template's TMPDIR is not ours


def main(fd: int) -> NoReturn:
    """Be a worker over the socket `fd`; never returns."""
    status = 70
    try:
        os.set_inheritable(fd, False)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        wire = Wire(socket.socket(fileno=fd))
        kind, body = wire.receive()
        if kind == ord("S"):
            Worker(wire, decode(bytes(body))).run()
        status = 0
    except BaseException:  # a mistake of ours or of the machine: say it, and never fall back into the template's loop
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    prepare_streams()
    main(int(sys.argv[1]))
