"""The worker pool with everything it is made from: code store, virtual environments, one factory per runtime."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from eventd.model import Settings
from eventd.ports import OutputChunk
from eventd.runtime.code import CodeStore
from eventd.runtime.deps import Environments
from eventd.runtime.execute import ExecRuntime
from eventd.runtime.node import NodeRuntime
from eventd.runtime.pool import Pool
from eventd.runtime.python import PythonRuntime

log = logging.getLogger("eventd.runtime")


def open_pool(settings: Settings, *, boot: str, store: CodeStore, on_output: Callable[[OutputChunk], None]) -> Pool:
    """No process is started yet: that happens when a function is loaded."""

    def warn(code: str, sentence: str) -> None:
        log.warning("%s %s", code, sentence)

    state, python = settings.daemon.state, settings.runtimes
    return Pool(
        settings,
        boot=boot,
        store=store,
        deps=Environments(state, python.python_path or sys.executable, python.python_pip_args),
        runtimes={"python": PythonRuntime, "node": NodeRuntime, "exec": ExecRuntime},
        on_output=on_output,
        warn=warn,
    )
