"""The code store: what a worker runs is a private copy of what lay in the handlers folder, under `STATE/code/NAME/DIGEST`.

A copy is made when a function is loaded (D6), so an editor's save, an `rsync` half-way through or a `git checkout` never
changes the code under a running worker. The rules:

- The digest (12 hex) is over names, the execute bit and contents; the same code is the same version, before and after a restart.
- A tree that was touched less than 200 ms ago is looked at again until it stands still; whatever changes while it is being
  read is read again. A copy gets its final name only when it is complete and on disk.
- Symbolic links are followed and what they point to is copied. Files and folders writable by others, sockets, devices and
  pipes are refused, because a handler is code that runs with the daemon's rights (D22, D23).
- A function of a single file is copied alone, with the helpers that lie beside it: names beginning with an underscore are
  never functions, so `_*.py` files and `_*/` folders go with a Python file, `_*.js`, `_*.mjs`, `_*.cjs` and `_*/` with a
  Node file.
- A single Node file's `package.json` (is it a module?) is copied with it. The `node_modules` beside a Node function is too large
  to copy for each: the copy finds it through a link, so what is installed there is not part of the version.
- `__pycache__`, `.git`, and editors' `*~` and `*.swp` are left out.
- The last two versions of a name are kept, and every one that somebody still holds (`take` holds, `release` lets go).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections import Counter

from msgspec import Struct

from eventd.errors import EventdError
from eventd.model import FunctionSettings
from eventd.runtime.code_tree import (
    PATIENCE_S,
    BrokenCode,
    Changed,
    Item,
    digest_of,
    fsync,
    mtime_of,
    names_in,
    node_modules,
    point,
    remove,
    restless,
    scan,
    still,
    sync_tree,
)
from eventd.runtime.deps_spec import Inline, Requirements, inline_of, read_requirements

KEEP = 2
_VERSION = re.compile(r"[0-9a-f]{12}")

_DEFAULT_ENTRIES = {
    "python": ("{name}.py", "lambda_function.py", "index.py"),
    "node": ("index.js", "index.mjs", "index.cjs"),
    "provided": ("bootstrap",),
    "exec": ("bootstrap", "{name}"),
}


class Version(Struct, frozen=True):
    """One version of a function's code, complete on disk. `root` is the task root: what LAMBDA_TASK_ROOT names."""

    name: str
    digest: str
    root: str
    entry: str
    """The main file, relative to `root`; empty when a folder's handler string or a `command` says what to run."""
    handler: str | None
    """The handler string as configured (`module.function`), or None: attribute `handler`, else `lambda_handler`."""
    runtime: str
    source: str
    requirements: Requirements | None = None
    inline: Inline | None = None


class CodeStore:
    """Copies of code under `STATE/code`. Safe to use from several threads; calls block on disk, so run them in a thread."""

    def __init__(self, state_dir: str) -> None:
        self._base = os.path.join(state_dir, "code")
        self._guard = threading.Lock()
        self._names: dict[str, threading.Lock] = {}
        self._held: Counter[tuple[str, str]] = Counter()
        self._seen: dict[str, tuple[tuple[object, ...], Version]] = {}
        self._verified: set[tuple[str, str]] = set()

    def take(self, function: FunctionSettings) -> Version:
        """The current version of a function's code, copied if it is new, and held until `release`.

        Cheap when nothing changed (one stat per file). Durable when it returns. Raises EventdError(E-HANDLER) naming the
        file: missing, writable by others, not a plain file, over 250 MiB, never still, or not runnable.
        """
        with self._guard:
            lock = self._names.setdefault(function.name, threading.Lock())
        with lock:
            version = self._take(function)
            with self._guard:
                self._held[version.name, version.digest] += 1
            self._prune(function.name)
            return version

    def release(self, version: Version) -> None:
        """Let go of one `take`. Versions that nobody holds are removed, except the last two."""
        with self._guard:
            lock = self._names.setdefault(version.name, threading.Lock())
        with lock:
            with self._guard:
                key = version.name, version.digest
                self._held[key] -= 1
                if self._held[key] <= 0:
                    del self._held[key]
            self._prune(version.name)

    def forget_all_but(self, names: frozenset[str]) -> None:
        """Remove the copies of functions that are not among `names` and that nobody holds."""
        for name in names_in(self._base):
            if name in names:
                continue
            with self._guard:
                lock = self._names.setdefault(name, threading.Lock())
                held = any(holder == name for holder, _ in self._held)
            if not held:
                with lock:
                    self._seen.pop(name, None)
                    self._verified = {key for key in self._verified if key[0] != name}
                    remove(os.path.join(self._base, name))

    # --- one name at a time from here on ---

    def _take(self, function: FunctionSettings) -> Version:
        started = time.monotonic()
        while True:
            items = still(function, started)
            requirements, inline = _dependencies(function, None)
            settings = function.handler, function.runtime, function.source, function.command
            fingerprint: tuple[object, ...] = (*((item.name, item.path, item.stamp) for item in items), settings, requirements)
            known = self._seen.get(function.name)
            self._surround(function)
            if known and known[0] == fingerprint and os.path.isdir(known[1].root):
                self._touch(known[1].root)
                return known[1]
            try:
                version = self._store(function, items, requirements, inline)
            except (Changed, FileNotFoundError):
                if time.monotonic() - started > PATIENCE_S:
                    raise restless(function) from None
                continue
            check_entry(version, function)
            self._seen[function.name] = fingerprint, version
            return version

    def _store(self, function: FunctionSettings, items: list[Item], requirements: Requirements | None, inline: Inline | None) -> Version:
        digest = digest_of(items, requirements, None)
        home = os.path.join(self._base, function.name)
        root = os.path.join(home, digest)
        if not self._good(function.name, digest, root, requirements):
            os.makedirs(home, mode=0o700, exist_ok=True)
            self._clear_leftovers(home)
            temporary = os.path.join(home, f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
            try:
                os.mkdir(temporary, 0o755)
                if digest_of(items, requirements, temporary) != digest:
                    raise Changed
                sync_tree(temporary, items)
                remove(root)
                os.rename(temporary, root)
                fsync(home)
            finally:
                remove(temporary)
            self._verified.add((function.name, digest))
        self._touch(root)
        if inline is not None and _dependencies(function, root)[1] != inline:
            raise Changed
        return Version(
            name=function.name,
            digest=digest,
            root=root,
            entry=_entry(function, root),
            handler=function.handler,
            runtime=function.runtime,
            source=function.source,
            requirements=requirements,
            inline=inline,
        )

    def _surround(self, function: FunctionSettings) -> None:
        """What Node looks for above the code: the shared packages, and an end to its search for a `package.json`."""
        if function.runtime != "node":
            return
        home = os.path.join(self._base, function.name)
        os.makedirs(home, mode=0o700, exist_ok=True)
        point(os.path.join(home, "node_modules"), node_modules(function))
        barrier = os.path.join(home, "package.json")
        if not os.path.exists(barrier):
            with open(barrier, "w", encoding="utf-8") as file:
                file.write("{}\n")

    def _good(self, name: str, digest: str, root: str, requirements: Requirements | None) -> bool:
        """Whether the copy is there and still what its name says: read once per process, since a handler may have changed it."""
        if not os.path.isdir(root):
            return False
        if (name, digest) in self._verified:
            return True
        with self._guard:
            held = (name, digest) in self._held
        try:
            good = held or digest_of(scan(root, "the copy"), requirements, None) == digest
        except (EventdError, OSError, Changed):
            good = False
        if good:
            self._verified.add((name, digest))
        return good

    def _touch(self, root: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(root)

    def _clear_leftovers(self, home: str) -> None:
        for name in names_in(home):
            if name.startswith(".tmp-"):
                remove(os.path.join(home, name))

    def _prune(self, name: str) -> None:
        home = os.path.join(self._base, name)
        versions = [entry for entry in names_in(home) if _VERSION.fullmatch(entry)]
        versions.sort(key=lambda entry: mtime_of(os.path.join(home, entry)), reverse=True)
        for digest in versions[KEEP:]:
            with self._guard:
                held = (name, digest) in self._held
            if not held:
                self._verified.discard((name, digest))
                remove(os.path.join(home, digest))


def check_entry(version: Version, function: FunctionSettings) -> None:
    """Refuse, with cause and cure, a script that the kernel could not start. Only for runtimes that execute the file itself."""
    if version.runtime not in ("exec", "provided") or function.command or not version.entry:
        return
    path = os.path.join(version.root, version.entry)
    shown = function.source if os.path.isfile(function.source) else os.path.join(function.source, version.entry)
    if not os.access(path, os.X_OK):
        raise BrokenCode(f"function {version.name}: {shown} is not executable.", f"Run: chmod +x {shown}")
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        raise BrokenCode(f"function {version.name}: {shown} is empty.", "Write a script that begins with a line such as #!/bin/sh.")
    if not head.startswith(b"#!"):
        return
    line = head[2:].split(b"\n", 1)[0]
    if line.endswith(b"\r"):
        raise BrokenCode(
            f"function {version.name}: the first line of {shown} ends in a carriage return, so the system looks for an "
            f"interpreter named {line.decode(errors='replace').strip()!r} plus that character.",
            f"Save the file with Unix line ends, for example: sed -i 's/\\r$//' {shown}",
        )
    words = line.split()
    if not words or not os.path.isfile(words[0]):
        named = words[0].decode(errors="replace") if words else ""
        raise BrokenCode(
            f"function {version.name}: the first line of {shown} names the interpreter {named!r}, which is not there.",
            "Install it, or correct the first line.",
        )


def _dependencies(function: FunctionSettings, root: str | None) -> tuple[Requirements | None, Inline | None]:
    """What a Python function needs: the block in a single file (of the copy in `root`) comes before a requirements file."""
    if function.runtime != "python":
        return None, None
    if os.path.isfile(function.source):
        with open(os.path.join(root, os.path.basename(function.source)) if root else function.source, "rb") as file:
            inline = inline_of(file.read(), function.source)
        if inline is not None:
            return None, inline
    return (read_requirements(function.requirements) if function.requirements else None), None


def _entry(function: FunctionSettings, root: str) -> str:
    if function.command or not function.source:
        return ""
    if not os.path.isdir(function.source):
        return os.path.basename(function.source)
    if function.handler and function.runtime in ("python", "node"):
        return ""
    for pattern in _DEFAULT_ENTRIES.get(function.runtime, ()):
        name = pattern.format(name=function.name)
        if os.path.isfile(os.path.join(root, name)):
            return name
    tried = ", ".join(pattern.format(name=function.name) for pattern in _DEFAULT_ENTRIES.get(function.runtime, ()))
    raise BrokenCode(
        f"function {function.name}: the folder {function.source} has none of {tried}.",
        f'Add one, or name the entry with handler = "module.function" under [functions.{function.name}].',
        "Runtime.ImportModuleError",
    )
