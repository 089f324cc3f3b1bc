"""Virtual environments for Python functions, one per content of what they ask for, under `STATE/venvs/HASH`.

An environment is built where it will stay, because the scripts and `pyvenv.cfg` inside one hold its absolute path and it
cannot be renamed. What makes it whole is the marker `.eventd-complete`, written last, after everything else is on disk; a
folder without the marker is what is left of an interrupted build, is never used, and is removed before the next try.

Builds run one at a time, at most ten minutes, in an environment that holds nothing of the daemon's but the installer's own
settings (which index, proxies, certificates). The output of the last build is kept beside the folder as `HASH.log`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

import anyio
import anyio.abc
import anyio.to_thread

from eventd.errors import EventdError
from eventd.runtime.deps_spec import Inline, Requirements, is_empty, python_allowed

LIMIT_S = 600.0
KEEP = 4
"""Environments that nobody holds, kept for the function that comes back."""
MARKER = ".eventd-complete"
SHOWN_LINES = 12
LOG_BYTES = 1024**2

_PASSED = frozenset(
    {"PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
    | {name for proxy in ("http_proxy", "https_proxy", "no_proxy", "all_proxy") for name in (proxy, proxy.upper())}
    | {f"PIP_{name}" for name in ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "CERT", "CLIENT_CERT", "CONFIG_FILE")}
    | {f"PIP_{name}" for name in ("NO_INDEX", "FIND_LINKS", "PROXY", "RETRIES", "TIMEOUT", "ONLY_BINARY", "NO_BINARY")}
)
_ABOUT = "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.implementation.cache_tag, sys.base_prefix)"


class NeedsPython(Protocol):
    """The part of a code version that matters here."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def requirements(self) -> Requirements | None: ...
    @property
    def inline(self) -> Inline | None: ...


class Environments:
    """Builds, finds and prunes environments. One per state folder and event loop; `python` is what runs functions without any."""

    def __init__(self, state_dir: str, python: str, pip_args: Sequence[str] = ()) -> None:
        self._base = os.path.join(state_dir, "venvs")
        self._python = python
        self._pip_args = tuple(pip_args)
        self._lock = anyio.Lock()
        self._held: Counter[str] = Counter()
        self._about: tuple[tuple[int, int, int], str] | None = None

    async def ensure(self, version: NeedsPython) -> str:
        """The interpreter that has what this version asks for; without wishes, the base interpreter. Held until `release`.

        Builds the environment if it is not there, which may take up to ten minutes. Raises EventdError: E-BUILD with the
        installer's last lines, E-HANDLER when `requires-python` refuses the interpreter. On cancel the build is killed and
        nothing of it stays.
        """
        inline = version.inline
        if inline is not None and inline.requires_python:
            python, _ = await self._interpreter()
            if not python_allowed(inline.requires_python, python, version.source):
                raise EventdError(
                    "E-HANDLER",
                    f"function {version.name}: {version.source} wants Python {inline.requires_python}, "
                    f"but functions run under {'.'.join(map(str, python))} ({self._python}).",
                    "Change requires-python, or name another interpreter with [runtimes.python] path.",
                )
        wishes = _wishes(version)
        if wishes is None:
            return self._python
        key = await self._key(wishes)
        self._held[key] += 1
        try:
            if not self._whole(key):
                async with self._lock:
                    if not self._whole(key):
                        await self._build(key, wishes, version.name)
            os.utime(os.path.join(self._base, key, MARKER))
        except BaseException:
            self._let_go(key)
            raise
        return _python_of(os.path.join(self._base, key))

    async def release(self, version: NeedsPython) -> None:
        """Let go of one `ensure`; environments that nobody holds are removed, except the last few."""
        wishes = _wishes(version)
        if wishes is not None:
            self._let_go(await self._key(wishes))
            async with self._lock:
                await self._prune()

    def _let_go(self, key: str) -> None:
        self._held[key] -= 1
        if self._held[key] <= 0:
            del self._held[key]

    def _whole(self, key: str) -> bool:
        folder = os.path.join(self._base, key)
        return os.path.isfile(os.path.join(folder, MARKER)) and os.access(_python_of(folder), os.X_OK)

    async def _key(self, wishes: Requirements) -> str:
        """What an environment is made of: the wishes, the installer's arguments and the interpreter."""
        _, about = await self._interpreter()
        text = "\0".join((about, self._python, *self._pip_args)).encode("utf-8", "surrogateescape")
        return sha256(b"%d:%b%b" % (len(text), text, wishes.digest())).hexdigest()[:16]

    async def _interpreter(self) -> tuple[tuple[int, int, int], str]:
        if self._about is None:
            build = _Command([self._python, "-I", "-c", _ABOUT], folder="/", environ=self._environment())
            try:
                with anyio.fail_after(30):
                    status = await build.run()
            except (OSError, TimeoutError) as wrong:
                raise self._unusable(str(wrong)) from None
            words = build.text().split()
            if status != 0 or len(words) != 3:
                raise self._unusable(build.text().strip())
            major, minor, micro = (int(part) for part in words[0].split("."))
            self._about = (major, minor, micro), " ".join(words)
        return self._about

    def _unusable(self, why: str) -> EventdError:
        return EventdError("E-BUILD", f"the interpreter {self._python} cannot be used: {why}.", "Correct [runtimes.python] path.")

    async def _build(self, key: str, wishes: Requirements, name: str) -> None:
        folder = os.path.join(self._base, key)
        await anyio.to_thread.run_sync(_make_room, self._base, folder)
        python = _python_of(folder)
        lists = await anyio.to_thread.run_sync(_write_lists, self._base, wishes)
        pip = [python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *self._pip_args, "-r", lists[0]]
        commands = [[self._python, "-I", "-m", "venv", folder], [*pip, "-c", lists[1]] if wishes.constraints else pip]
        command = _Command([], folder=_existing(wishes.folder, self._base), environ=self._environment())
        done = False
        try:
            with anyio.fail_after(LIMIT_S):
                for argv in commands:
                    command.argv = argv
                    if (status := await command.run()) != 0:
                        raise self._failed(name, key, f"exit status {status}", command)
            await anyio.to_thread.run_sync(_complete, folder)
            done = True
        except TimeoutError:
            raise self._failed(name, key, f"not done after {LIMIT_S / 60:.0f} minutes", command) from None
        except OSError as wrong:
            raise self._failed(name, key, str(wrong), command) from None
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_clear_up, folder, lists, command.text(), done)
                await self._prune()

    def _failed(self, name: str, key: str, why: str, command: _Command) -> EventdError:
        output = command.text()
        lines = [line for line in output.splitlines() if line.strip()][-SHOWN_LINES:]
        hint = f"The whole output is in {os.path.join(self._base, key)}.log."
        if "ensurepip" in output and "pip install" not in output:
            hint = "Debian keeps a part of the venv module in a package of its own: apt install python3-venv. " + hint
        return EventdError(
            "E-BUILD",
            f"function {name}: its dependencies could not be installed ({why}).\n" + "\n".join(f"    {line}" for line in lines),
            hint,
        )

    def _environment(self) -> dict[str, str]:
        passed = {name: value for name, value in os.environ.items() if name in _PASSED}
        passed.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
        # A service's user often has no home; without one the installer would put its cache, and look for settings, under "/".
        passed["HOME"] = os.environ.get("HOME") or os.path.join(self._base, ".home")
        return {**passed, "PIP_NO_COLOR": "1"}

    async def _prune(self) -> None:
        """Remove environments that nobody holds, the longest unused first. Called under the lock.

        Which go is decided, and their markers removed, without giving way: whoever asks for one of them from here on finds it
        incomplete and waits for the lock.
        """
        keys = [name for name in _folders(self._base) if name not in self._held]
        keys.sort(key=lambda key: _used(os.path.join(self._base, key)), reverse=True)
        for key in keys[KEEP:]:
            folder = os.path.join(self._base, key)
            for path in (os.path.join(folder, MARKER), folder + ".log"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            await anyio.to_thread.run_sync(shutil.rmtree, folder, True)


class _Command:
    """A child process in its own session, its output kept within bounds (the first part and the last)."""

    def __init__(self, argv: list[str], *, folder: str, environ: Mapping[str, str]) -> None:
        self.argv = argv
        self._folder = folder
        self._environ = dict(environ)
        self._head = bytearray()
        self._tail: deque[bytes] = deque(maxlen=64)
        self._dropped = 0

    async def run(self) -> int:
        """The exit status. On cancel, or when its own process is gone, nothing of its session is left."""
        self._add(("$ " + " ".join(self.argv) + "\n").encode("utf-8", "surrogateescape"))
        # asyncio loses a pipe, and perhaps the process, when a cancel comes while it opens them; that takes milliseconds
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environ,
                start_new_session=True,
            )
        assert process.stdout is not None
        drained = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._drain, process.stdout, drained)
                status = await process.wait()
                # Something it left behind may hold the pipe open for ever; its own end, not the pipe's, ends the build.
                with anyio.move_on_after(1.0):
                    await drained.wait()
                if not drained.is_set():
                    _kill_group(process.pid)
                group.cancel_scope.cancel()
            return status
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    _kill_group(process.pid)
                await process.aclose()

    async def _drain(self, stream: anyio.abc.ByteReceiveStream, drained: anyio.Event) -> None:
        async for chunk in stream:
            self._add(chunk)
        drained.set()

    def _add(self, chunk: bytes) -> None:
        room = LOG_BYTES - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            if len(self._tail) == self._tail.maxlen:
                self._dropped += len(self._tail[0])
            self._tail.append(chunk[-65_536:])

    def text(self) -> str:
        """What it printed, with a note where the middle was dropped. The tail is bounded by 64 reads of at most 64 KiB."""
        note = b"\n... %d bytes left out ...\n" % self._dropped if self._dropped else b""
        return (
            (bytes(self._head) + note + b"".join(self._tail)).decode("utf-8", "replace").replace(f"$ {self.argv[0]} -I -c {_ABOUT}\n", "")
        )


def _wishes(version: NeedsPython) -> Requirements | None:
    """What is to be installed, whichever way it was said; None when there is nothing."""
    if version.inline is not None:
        if not version.inline.dependencies:
            return None
        lines = "".join(f"{line}\n" for line in version.inline.dependencies).encode()
        return Requirements(lines=lines, constraints=b"", folder=os.path.dirname(version.source))
    if version.requirements is not None and not is_empty(version.requirements):
        return version.requirements
    return None


def _python_of(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def _folders(base: str) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _clear_up(folder: str, lists: tuple[str, str], output: str, done: bool) -> None:
    for path in lists:
        os.unlink(path)
    with open(folder + ".log", "w", encoding="utf-8", errors="replace") as file:
        file.write(output)
    if not done:
        shutil.rmtree(folder, ignore_errors=True)


def _existing(folder: str, otherwise: str) -> str:
    return folder if os.path.isdir(folder) else otherwise


def _used(folder: str) -> float:
    try:
        return os.stat(os.path.join(folder, MARKER)).st_mtime
    except FileNotFoundError:
        return 0.0


def _make_room(base: str, folder: str) -> None:
    os.makedirs(base, mode=0o700, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    for name in os.listdir(base):
        if name.startswith(".list-"):
            os.unlink(os.path.join(base, name))


def _write_lists(base: str, wishes: Requirements) -> tuple[str, str]:
    tag = secrets.token_hex(4)
    paths = os.path.join(base, f".list-{tag}-requirements.txt"), os.path.join(base, f".list-{tag}-constraints.txt")
    for path, content in zip(paths, (wishes.lines, wishes.constraints), strict=True):
        with open(path, "xb") as file:
            file.write(content)
    return paths


def _complete(folder: str) -> None:
    """Declare an environment whole: first everything in it on disk, then the marker, then the marker's name."""
    os.sync()
    temporary = os.path.join(folder, MARKER + ".new")
    with open(temporary, "wb") as file:
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, os.path.join(folder, MARKER))
    for path in (folder, os.path.dirname(folder)):
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _kill_group(leader: int) -> None:
    """Kill a build and what it started. Called only while the leader, or something it left in its group, is known to be there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
