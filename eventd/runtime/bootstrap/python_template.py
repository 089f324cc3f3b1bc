"""A Python template: imports what a handler imports from elsewhere, then forks workers that find it loaded already.

Runs under `python -I`, from its path. It never imports a module of the task root, so connections and state that a handler makes at
import belong to each worker (Lambda's semantics); it holds no secret: those go to the worker over its own socket. After each
import, and before each fork, it looks in /proc for Python threads and descriptors left open: either makes sharing by fork unsound, so
it then says so and refuses, and workers start by plain spawn (D29; what measured.md 1 found about threads, locks and numpy).

Orders: preload {"root", "entry"}, answered by ready {"shared", "why"}; fork {"id"} with descriptors (wire, stdout, stderr).
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventd.runtime.bootstrap import python_worker
    from eventd.runtime.bootstrap.eventd_forker import Forker, die_with_parent
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # only for these: a handler must not find our modules
    import python_worker
    from eventd_forker import Forker, die_with_parent

    sys.path.pop(0)
    sys.modules["eventd_python_worker"] = sys.modules.pop("python_worker")  # a handler may have that name

_HARMLESS = frozenset(("/dev/null", "/dev/urandom", "/dev/random"))
_MAX_SOURCE = 4 * 1024 * 1024
_TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))


def imports_of(source: bytes) -> tuple[list[tuple[str, tuple[str, ...]]], bool]:
    """(module, names taken from it) for every absolute import at module level, in order; and whether there are coroutine functions."""
    found: list[tuple[str, tuple[str, ...]]] = []
    asynchronous = False
    queue: list[ast.stmt] = list(ast.parse(source).body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module, tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.AsyncFunctionDef):
            asynchronous = True
        elif isinstance(node, _TRIES):
            queue[:0] = [*node.body, *(stmt for handler in node.handlers for stmt in handler.body), *node.orelse, *node.finalbody]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            queue[:0] = [*node.body, *node.orelse]
        elif isinstance(node, ast.With):
            queue[:0] = node.body
    return found, asynchronous


def local_names(root: str) -> set[str]:
    """What the task root itself offers for import: never taken from elsewhere, for the worker would find the local one."""
    names: set[str] = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name.endswith((".py", ".so", ".pyc")) or os.path.isdir(os.path.join(root, name)):
                names.add(name.split(".")[0])
    return names


def open_files() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
    return found


def generators() -> list[Any]:
    """Random generators that the preloaded modules made for themselves."""
    random = sys.modules.get("random")
    if random is None:
        return []
    return [it for it in gc.get_objects() if isinstance(it, random.Random) and not isinstance(it, random.SystemRandom)]


class Template:
    def __init__(self, fd: int) -> None:
        self._forker = Forker(fd)
        self._files = open_files()
        self._instances: list[Any] = []

    def run(self) -> None:
        self._forker.serve(self._order)

    def _order(self, message: dict[str, Any], fds: list[int]) -> None:
        if message["op"] == "preload":
            why = self._preload(message["root"], message["entry"])
            gc.collect()
            self._instances = generators()
            gc.freeze()  # keeps shared pages shared: the collector no longer writes into them (measured.md 1)
            self._forker.send({"op": "ready", "shared": not why, "why": why})
        elif message["op"] == "fork":
            why = self._unsound(fds)
            if why:
                self._forker.send({"op": "refused", "id": message["id"], "error": why, "unsound": True})
            elif self._forker.fork(message["id"]):
                self._become_worker(fds)
        for fd in fds:
            os.close(fd)

    def _become_worker(self, fds: list[int]) -> None:
        try:
            die_with_parent(self._forker.pid)
            os.setsid()
            wire, out, err = fds
            os.dup2(out, 1)
            os.dup2(err, 2)
            if wire != 3:
                os.dup2(wire, 3, inheritable=False)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            python_worker.reseed(self._instances)
            gc.enable()
            python_worker.main(3)
        finally:
            os._exit(70)

    def _preload(self, root: str, entry: str) -> str:
        """Import what the entry file imports from elsewhere. Empty, or why workers cannot be forked from us."""
        try:
            with open(entry, "rb") as file:
                names, asynchronous = imports_of(file.read(_MAX_SOURCE))
        except (OSError, SyntaxError, ValueError, RecursionError):
            return ""  # the worker will say it better, with the right error type
        if asynchronous:
            names.append(("asyncio", ()))
        local = local_names(root)
        for module, taken in names:
            if module.split(".")[0] in local or module == "__future__":
                continue
            with contextlib.suppress(BaseException):  # missing, broken, or it calls sys.exit: the worker's own import will say so
                __import__(module, fromlist=taken)
            why = self._unsound()
            if why:
                return f"importing {module} leaves {why}"
        with contextlib.suppress(Exception):  # looked up, not imported: the workers find the folder's listing made already
            PathFinder.find_spec("eventd_no_such_module", [root])
        return ""

    def _unsound(self, mine: Sequence[int] = ()) -> str:
        """Empty, or what makes a fork unsound now. Native threads without Python state (numpy's BLAS) are fine."""
        threads = len(sys._current_frames())
        if threads > 1:
            return f"{threads - 1} Python thread{'s' if threads > 2 else ''} running"
        now = open_files()
        for fd, target in now.items():
            if fd not in mine and self._files.get(fd) != target and target not in _HARMLESS and not target.startswith("/proc/"):
                return f"{target} open"
        return ""


if __name__ == "__main__":
    gc.disable()
    python_worker.prepare_streams()
    template = Template(int(sys.argv[1]))
    template.run()
    os._exit(0)
