"""Noticing that the configuration or a handler has changed. Folders may be missing, vanish, be replaced or appear at any time.

The kernel's notices wake a reload within `SETTLE_MS` of the last change; once a second a look at the folders themselves finds
what no notice tells: that a watched folder is gone or another one, that conf.d has appeared, or that a linked file has changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel
import anyio.to_thread
from msgspec import Struct
from watchfiles import Change as FileChange
from watchfiles import awatch

from eventd.model import Settings

SETTLE_MS = 200
"""Editors save in steps: a reload waits until nothing has changed for this long (D28)."""
LOOK_S = 1.0
POLL_MS = 1_000
SURVEY_MOST = 20_000
BEGIN = 5
"""Turns of the event loop after which the kernel has been asked for notices: awatch does that in its first step."""
IGNORED = frozenset({"__pycache__", "node_modules", ".git", ".hg", ".svn"})
IGNORED_ENDS = ("~", ".swp", ".swx", ".pyc")

log = logging.getLogger("eventd.reload")

Wanted = Callable[[FileChange, str], bool]
Stamp = tuple[int, ...] | None
Survey = tuple[tuple[str, Stamp], ...]


class Places(Struct, frozen=True):
    """What is watched, and which folders those names stand for at this moment (device and inode; None: there is none)."""

    file: str
    handlers: str
    folder_is: Stamp
    conf_is: Stamp
    handlers_is: Stamp

    @property
    def folder(self) -> str:
        return os.path.dirname(self.file)

    @property
    def conf(self) -> str:
        return os.path.join(self.folder, "conf.d")


def look(settings: Settings) -> tuple[Places, Stamp]:
    """The places, and a stamp of the main file's contents (through a link too)."""
    file, handlers = settings.file, settings.daemon.handlers
    folder = os.path.dirname(file)
    places = Places(file, handlers, _folder(folder), _folder(os.path.join(folder, "conf.d")), _folder(handlers))
    try:
        found = os.stat(file)
    except OSError:
        return places, None
    return places, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def survey(settings: Settings) -> Survey:
    """Every file that matters with its inode, size and time of change; so many of them at most."""
    found: list[tuple[str, Stamp]] = []
    wanted = handler_files(settings.daemon.handlers, settings.daemon.state)
    folder = os.path.dirname(settings.file)
    paths = [
        settings.file,
        *_within(os.path.join(folder, "conf.d"), config_files(settings.file)),
        *_within(settings.daemon.handlers, wanted),
    ]
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError:
            continue
        found.append((path, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_mode)))
    return tuple(found)


def _within(top: str, wanted: Wanted) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(top, followlinks=False):
        folders[:] = sorted(name for name in folders if wanted(FileChange.modified, os.path.join(folder, name)))
        found += [path for name in sorted(files) if wanted(FileChange.modified, path := os.path.join(folder, name))]
        if len(found) > SURVEY_MOST:
            break
    return found


def _folder(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Watcher:
    """Calls `reload` after each change. `reload` must not raise; it is never called twice at a time."""

    def __init__(self, settings: Callable[[], Settings], reload: Callable[[], Awaitable[None]]) -> None:
        self._settings = settings
        self._reload_now = reload
        self._again = anyio.Event()
        self._stopping = False
        self._one = anyio.Lock()
        self._file: Stamp = None
        self._seen: Survey | None = None
        self._polling = False

    def stop(self) -> None:
        """No further reloads; `run` returns soon."""
        self._stopping = True
        self._again.set()

    def _ended(self) -> bool:
        return self._stopping

    async def run(self) -> None:
        """Watch until `stop`, or until cancelled (which takes seconds: the notices are waited for in a thread).

        Whenever watching begins, or begins anew, the files are compared with those of the last reload: for what changed before
        there were notices.
        """
        while not self._stopping:
            places, stamp = await anyio.to_thread.run_sync(look, self._settings())
            self._again = again = anyio.Event()
            if self._ended():
                return
            async with anyio.create_task_group() as watchers:
                # not recursive beside the file: the state folder often lies there, and it changes all the time
                beside = [path for path, found in ((places.folder, places.folder_is), (places.conf, places.conf_is)) if found]
                watchers.start_soon(self._notices, beside, False, config_files(places.file), again)
                inside = [places.handlers] if places.handlers_is else []
                state = self._settings().daemon.state
                watchers.start_soon(self._notices, inside, True, handler_files(places.handlers, state), again)
                for _ in range(BEGIN):
                    await anyio.lowlevel.checkpoint()
                if await anyio.to_thread.run_sync(survey, self._settings()) != self._seen:
                    await self._reload(stamp)
                await self._look_after(places, again)

    async def _look_after(self, places: Places, again: anyio.Event) -> None:
        """Once a second, until the places are others than those watched."""
        while not again.is_set():
            with anyio.move_on_after(LOOK_S):
                await again.wait()
                return
            now, stamp = await anyio.to_thread.run_sync(look, self._settings())
            if now != places:
                again.set()
            elif stamp != self._file:
                await anyio.sleep(SETTLE_MS / 1000)
                if stamp != self._file:
                    await self._reload(stamp)

    async def _notices(self, paths: Sequence[str], recursive: bool, wanted: Wanted, again: anyio.Event) -> None:
        """Reload after each group of notices, until `again`. Where there are none to be had, the folders are scanned."""
        if not paths:
            return
        try:
            async for changes in awatch(
                *paths, watch_filter=wanted, step=SETTLE_MS, debounce=SETTLE_MS * 8, recursive=recursive, stop_event=again,
                ignore_permission_denied=True, force_polling=self._polling, poll_delay_ms=POLL_MS,
            ):  # fmt: skip
                _, stamp = await anyio.to_thread.run_sync(look, self._settings())
                await self._reload(stamp)
                if any(kind is FileChange.deleted and path in paths for kind, path in changes):
                    again.set()  # one in its place may have the same inode, and its notices are still to be asked for
        except FileNotFoundError:
            return  # gone in this moment: the look once a second sees it too
        except OSError as error:
            if not self._polling:
                self._polling = True
                log.warning("W-WATCH there are no file change notices (%s): the folders are scanned once a second instead.", error)
            await anyio.sleep(LOOK_S)
            again.set()

    async def mark(self) -> None:
        """What is on disk now is about to be read by somebody else."""
        settings = self._settings()
        _, self._file = await anyio.to_thread.run_sync(look, settings)
        self._seen = await anyio.to_thread.run_sync(survey, settings)

    async def _reload(self, stamp: Stamp) -> None:
        async with self._one:
            self._file = stamp
            self._seen = await anyio.to_thread.run_sync(survey, self._settings())
            if not self._stopping:
                await self._reload_now()


def config_files(file: str) -> Wanted:
    """Which changes beside the main file matter: itself, its folder's own end, conf.d and conf.d/*.toml."""
    conf = os.path.join(os.path.dirname(file), "conf.d")

    def wanted(change: FileChange, path: str) -> bool:
        return path in (file, conf, os.path.dirname(file)) or (path.startswith(conf + os.sep) and path.endswith(".toml"))

    return wanted


def handler_files(folder: str, state: str) -> Wanted:
    """Which changes below the handlers folder matter: all but what tools leave behind, and never the daemon's own state."""

    def wanted(change: FileChange, path: str) -> bool:
        if (path + os.sep).startswith(state + os.sep) and not (folder + os.sep).startswith(state + os.sep):
            return False
        return not path.endswith(IGNORED_ENDS) and IGNORED.isdisjoint(os.path.relpath(path, folder).split(os.sep))

    return wanted
