"""The Python runtime: workers forked from a template, or started plainly when that would not be sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from eventd.runtime.frames import FrameWorker
from eventd.runtime.launcher import BOOTSTRAP, Launcher, Process
from eventd.runtime.sandbox import function_environment, log_group, spawn_plan, worker_environment, worker_rlimits
from eventd.runtime.template import Template
from eventd.runtime.wire import encode_start
from eventd.runtime.worker import Bench, Exit, Worker, WorkerEvents, WorkerSpec

_TEMPLATE_S = 60.0


class PythonRuntime:
    """Implements worker.Runtime for one version of one function."""

    resident = True
    eager = True

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._launcher: Launcher = bench.launcher
        function, version = bench.function, bench.version
        self._entry_file = entry_file(version.root, version.entry, version.handler)
        self._module = os.path.splitext(version.entry or "")[0]
        handler = version.handler or f"{self._module}.handler"
        self._shared = function_environment(bench.settings, function, root=version.root, handler=handler, environ=self._launcher.environ)
        self._template: Template | None = None
        self._told = False

    async def prepare(self) -> None:
        """Start the template. A template that cannot be used is no failure: it is said once (W-TEMPLATE), and spawns replace forks."""
        template = self._template = Template(self._launcher, self._bench.printed)
        limit_s = max(self._bench.function.init_timeout_ms / 1000, _TEMPLATE_S)
        root = self._bench.version.root
        await template.start(python=self._bench.python, env=self._shared, root=root, entry=self._entry_file, limit_s=limit_s)
        if not template.usable:
            self._fall_back(template.why)

    def start_worker(self, spec: WorkerSpec, events: WorkerEvents) -> Worker:
        bench = self._bench
        env = worker_environment(
            self._shared, tmpdir=spec.tmpdir, log_stream=spec.log_stream, init_type=spec.init_type, secrets=bench.secrets
        )
        first = encode_start(
            {
                "env": env,
                "root": bench.version.root,
                "handler": bench.version.handler,
                "entry": self._module,
                "function": bench.function.name,
                "version": "$LATEST",
                "memory": str(bench.function.memory_mib),
                "log_group": log_group(bench.function.name),
                "log_stream": spec.log_stream,
                "rlimits": worker_rlimits(bench.function.memory_mib),
            }
        )
        worker = FrameWorker(self._launcher.loop, events)
        template = self._template
        if template is not None and template.usable:

            def refused(process: Process) -> bool:
                if not process.unsound and template.usable:
                    return False
                self._fall_back(process.error)
                worker.restart(self._spawn(spec))
                return True

            worker.start(template.fork, first, refused)
        else:
            if template is not None:
                self._fall_back(template.why or "the template has ended")
            worker.start(self._spawn(spec), first)
        return worker

    def _spawn(self, spec: WorkerSpec) -> Callable[[Sequence[int], Callable[[Process, Exit], None]], Process]:
        """Start a worker without a template: an interpreter of its own. Its secrets still come over the wire only."""
        bench = self._bench
        plan = spawn_plan(
            argv=(bench.python, "-I", os.path.join(BOOTSTRAP, "python_worker.py"), "3"),
            env=self._shared,
            root=bench.version.root,
            memory_mib=bench.function.memory_mib,
            tmpdir=spec.tmpdir,
        )

        def launch(fds: Sequence[int], exited: Callable[[Process, Exit], None]) -> Process:
            wire, out, err = fds
            return self._launcher.launch(plan, (os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), out, err, wire), exited)

        return launch

    def _fall_back(self, why: str) -> None:
        if self._template is not None:
            self._template.why = self._template.why or why
        if not self._told:
            self._told = True
            self._bench.warn("W-TEMPLATE", f"function {self._bench.function.name}: workers start by plain spawn, for {why}.")

    async def close(self) -> None:
        template, self._template = self._template, None
        if template is not None:
            await template.close()


def python_runtime(bench: Bench) -> PythonRuntime:
    """The RuntimeFactory for `runtime = "python"`."""
    return PythonRuntime(bench)


def entry_file(root: str, entry: str, handler: str | None) -> str:
    """The file whose imports the template takes over: the handler string's module if it is there, else the entry."""
    if handler and "." in handler:
        base = os.path.join(root, *handler.rpartition(".")[0].replace("/", ".").split("."))
        for path in (base + ".py", os.path.join(base, "__init__.py")):
            if os.path.isfile(path):
                return path
    return os.path.join(root, entry)
