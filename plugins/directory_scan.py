"""Looking at the folder: what is there, what of it is new, and which of that is ready. Runs in a worker thread.

A scan is a series of chunks, so that it never runs ahead of those who take what it finds, and so that it can be left
at any moment. It follows no symlink, raises for no name, and goes on past what it may not read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from threading import Event as Flag
from typing import Final

from eventd_plugins.directory_event import version_etag
from eventd_plugins.directory_files import (
    LONGEST_PATH,
    has_writer,
    is_gone,
    is_regular,
    open_beneath,
    open_file,
    open_root,
    version_of_stat,
)
from eventd_plugins.directory_found import NEVER_S, Found, Kind, Rules, Track, Work
from eventd_plugins.directory_ledger import Ledger
from eventd_plugins.directory_notify import Notices
from eventd_plugins.directory_rules import (
    Hint,
    Look,
    Status,
    Verdict,
    Version,
    join,
    judge,
    pack_version,
    packed_version,
    sentinel_covers,
)

_CHUNK: Final = 256
_SLICE_S: Final = 0.05
_BLOCK: Final = 1_048_576
_MOST_PROBLEMS: Final = 100
_LOOK_AGAIN_S: Final = 0.25


class RootChanged(Exception):
    """The path leads to another folder than before; notices and open scans are about the old one."""


class Scan:
    """One pass. `chunk` is called in a thread, one call at a time; the rest is read when it has returned."""

    def __init__(
        self,
        rules: Rules,
        work: Work,
        *,
        ledger: Ledger,
        tracks: Mapping[bytes, Track],
        notices: Notices | None,
        expected: tuple[int, int] | None,
        stop: Flag,
    ) -> None:
        self._rules = rules
        self._work = work
        self._ledger = ledger
        self._tracks = tracks
        self._notices = notices
        self._expected = expected
        self._stop = stop
        self._now_ns = 0
        self._monotonic = 0.0
        self._stack: list[tuple[bytes, bool]] = []
        self._visited: set[bytes] = set()
        self._suspects = list(work.suspects)
        self.examined = 0
        self.identity = (0, 0)
        self.empty = False
        self.problems: list[str] = []
        self.unwatched: OSError | None = None
        self._walk = self._all()

    def chunk(self, now_ns: int, monotonic: float) -> tuple[list[Found], bool]:
        """The next findings, and whether there may be more. Ends after 256 findings or about 50 ms.

        Raises RootChanged, or the OSError of opening the root.
        """
        self._now_ns, self._monotonic = now_ns, monotonic
        found: list[Found] = []
        until = time.perf_counter() + _SLICE_S
        for one in self._walk:
            if one is not None:
                found.append(one)
            if len(found) >= _CHUNK or self._stop.is_set() or (not self.examined & 31 and time.perf_counter() > until):
                return found, True
        return found, False

    def close(self) -> None:
        self._walk.close()

    def _all(self) -> Generator[Found | None, None, None]:
        root_fd = open_root(self._rules.root)
        try:
            status = os.fstat(root_fd)
            self.identity = (status.st_dev, status.st_ino)
            if self._expected is not None and self._expected != self.identity:
                raise RootChanged
            for folder, names in self._work.folders:
                if names is None:
                    self._stack.append((folder, self._work.whole))
                else:
                    yield from self._names(root_fd, folder, names)
                while self._stack:
                    yield from self._folder(root_fd, *self._stack.pop())
            if self._work.whole and not self._unproven():
                self._suspects += [one for one in list(self._ledger.folders) if one not in self._visited]
            while self._suspects:
                yield from self._suspect(root_fd, self._suspects.pop())
        finally:
            os.close(root_fd)

    def _unproven(self) -> bool:
        return self.empty and self._work.known is not None and self._work.known != self.identity

    # --- folders ---

    def _open(self, root_fd: int, folder: bytes) -> int | None:
        """An open folder; None, with the consequences noted, when it is gone or may not be read."""
        try:
            return open_beneath(root_fd, folder)
        except OSError as error:
            if is_gone(error):
                if not self._work.whole:
                    self._suspects += self._ledger.below(folder)
            else:
                self._visited.add(folder)
                self._problem(folder, error)
            return None

    def _folder(self, root_fd: int, folder: bytes, deep: bool) -> Iterator[Found | None]:
        """List a folder; `deep`: and everything below it, else only what is below it and not watched yet."""
        fd = self._open(root_fd, folder)
        if fd is None:
            return
        try:
            if self._work.whole:
                self._visited.add(folder)
            # The watch comes first: what is made after it has a notice, what was made before it is in the listing.
            self._watch(fd, folder)
            missing = self._ledger.names(folder)
            entries = 0
            try:
                with os.scandir(fd) as listing:
                    for entry in listing:
                        entries += 1
                        yield self._entry(fd, folder, entry, missing, deep)
            except OSError as error:
                self._problem(folder, error)
                return
            if not folder and not entries:
                self.empty = True
                if self._unproven():
                    return
            # A listing can leave out what is renamed while it is read, so each one is asked for by name.
            for name in missing:
                yield self._missing(fd, join(folder, name), name)
        finally:
            os.close(fd)

    def _entry(self, fd: int, folder: bytes, entry: os.DirEntry[str], missing: set[bytes], deep: bool) -> Found | None:
        self.examined += 1
        name = os.fsencode(entry.name)
        path = join(folder, name)
        try:
            if entry.is_dir(follow_symlinks=False):
                self._descend(path, deep)
                return None
            if not entry.is_file(follow_symlinks=False) or not self._rules.wanted.file(path):
                return None
        except OSError:
            return None
        missing.discard(name)
        return self._look(fd, path, name)

    def _descend(self, path: bytes, deep: bool) -> None:
        if not self._rules.wanted.folder(path):
            return
        if len(os.fsencode(self._rules.root)) + len(path) + 1 > LONGEST_PATH:
            self._note(f"{_shown(path[:80])}... is nested too deep: its path is longer than {LONGEST_PATH} bytes")
        elif deep or self._notices is None or not self._notices.watched(path):
            self._stack.append((path, deep))

    def _watch(self, fd: int, folder: bytes) -> None:
        if self._notices is not None and self.unwatched is None:
            try:
                self._notices.add(fd, folder)
            except OSError as error:
                self.unwatched = error

    def _names(self, root_fd: int, folder: bytes, names: Sequence[bytes]) -> Iterator[Found | None]:
        fd = self._open(root_fd, folder)
        if fd is None:
            return
        try:
            for name in names:
                self.examined += 1
                path = join(folder, name)
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError as error:
                    if is_gone(error):
                        self._suspects += self._ledger.below(path) if path in self._ledger.folders else ()
                        yield self._gone(path)
                    else:
                        self._problem(path, error)
                    continue
                if stat.S_ISDIR(status.st_mode):
                    yield self._gone(path)
                    self._descend(path, True)
                else:
                    self._suspects += self._ledger.below(path) if path in self._ledger.folders else ()
                    yield self._look(fd, path, name) if self._rules.wanted.file(path) else None
        finally:
            os.close(fd)

    def _suspect(self, root_fd: int, folder: bytes) -> Iterator[Found | None]:
        """A folder that was not met: its rows go if it, or the file, is really gone; not if it only cannot be read."""
        names = self._ledger.names(folder)
        try:
            fd = open_beneath(root_fd, folder)
        except OSError as error:
            if is_gone(error):
                for name in names:
                    self.examined += 1
                    yield Found(Kind.GONE, join(folder, name))
            else:
                self._problem(folder, error)
            return
        try:
            for name in names:
                yield self._missing(fd, join(folder, name), name)
        finally:
            os.close(fd)

    # --- files ---

    def _missing(self, fd: int, path: bytes, name: bytes) -> Found | None:
        self.examined += 1
        try:
            if is_regular(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                return self._look(fd, path, name) if self._rules.wanted.file(path) else None
        except OSError as error:
            if not is_gone(error):
                self._problem(path, error)
                return None
        return self._gone(path)

    def _gone(self, path: bytes) -> Found | None:
        track = self._tracks.get(path)
        return None if track is None and self._ledger.raw(path) is None else Found(Kind.GONE, path, stamp=track.stamp if track else 0)

    def _look(self, fd: int, path: bytes, name: bytes) -> Found | None:
        # Read before the file is, so that a notice that comes in between shows as a newer stamp.
        track = self._tracks.get(path)
        hint, stamp = (track.hint, track.stamp) if track is not None else (Hint.NONE, 0)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not is_regular(status):
                return self._gone(path)
            version = version_of_stat(status)
            row = self._ledger.raw(path)
            known_in_place = False
            if row is not None and packed_version(row) == pack_version(version):
                known_in_place = row[1] == Status.IN_PLACE.value
                if not known_in_place or hint is Hint.NONE:
                    return None if track is None else Found(Kind.SAME, path, version, stamp=stamp)
            found = Found(Kind.READY, path, version, status.st_ctime_ns, status.st_uid, stamp=stamp)
            if self._rules.ready == "sentinel":
                verdict = Verdict.READY if self._sentinel(fd, name, status) else Verdict.WAIT
                delay = NEVER_S
            else:
                rested = self._rested(version, track)
                verdict = judge(self._rules.ready, self._rules.settle_ns, Look(rested, hint, known_in_place))
                delay = max((self._rules.settle_ns - rested) / 1e9, 0.001)
                if verdict is Verdict.IF_CLOSED:
                    verdict, delay = self._if_closed(fd, name, version, rested)
            match verdict:
                case Verdict.READY:
                    return self._with_etag(fd, name, found)
                case Verdict.IN_PLACE:
                    return found._replace(kind=Kind.IN_PLACE)
                case _:
                    return found._replace(kind=Kind.WAIT, delay_s=delay)
        except OSError as error:
            if is_gone(error):
                return self._gone(path)
            self._problem(path, error)
            return None

    def _rested(self, version: Version, track: Track | None) -> int:
        """Nanoseconds without a change. A time in the future tells nothing; then only our own watching counts."""
        by_time = self._now_ns - version.mtime_ns
        watched = track is not None and track.version == version
        by_watch = round((self._monotonic - track.since) * 1e9) if track is not None and watched else 0
        return max(by_time if by_time > 0 else 0, by_watch)

    def _if_closed(self, fd: int, name: bytes, version: Version, rested: int) -> tuple[Verdict, float]:
        again = max(self._rules.settle_ns / 1e9, _LOOK_AGAIN_S)
        if self._rules.ready == "settle" and rested >= self._rules.settle_ns + self._rules.hold_ns:
            return Verdict.READY, 0.0
        try:
            file = open_file(name, fd)
        except PermissionError:
            return Verdict.READY, 0.0
        try:
            if has_writer(file):
                return Verdict.WAIT, again
            # After the lease: a write before it shows here, a write after it is the next version.
            return (Verdict.READY, 0.0) if version_of_stat(os.fstat(file)) == version else (Verdict.WAIT, again)
        finally:
            os.close(file)

    def _sentinel(self, fd: int, name: bytes, status: os.stat_result) -> bool:
        ending = self._rules.wanted.sentinel or b""
        try:
            sentinel = os.stat(name + ending, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return False
        return is_regular(sentinel) and sentinel_covers(sentinel.st_ctime_ns, status.st_mtime_ns, status.st_ctime_ns)

    def _with_etag(self, fd: int, name: bytes, found: Found) -> Found:
        if not self._rules.md5:
            return found._replace(etag=version_etag(found.version))
        try:
            file = open_file(name, fd)
        except PermissionError as error:
            self._problem(found.path, error)
            return found._replace(etag=version_etag(found.version))
        try:
            digest = hashlib.md5(usedforsecurity=False)
            while block := os.read(file, _BLOCK):
                digest.update(block)
                if self._stop.is_set():
                    return found._replace(kind=Kind.WAIT, delay_s=0.0)
            if version_of_stat(os.fstat(file)) != found.version:
                return found._replace(kind=Kind.WAIT, delay_s=max(self._rules.settle_ns / 1e9, _LOOK_AGAIN_S))
        finally:
            os.close(file)
        return found._replace(etag=digest.hexdigest())

    # --- problems ---

    def _problem(self, path: bytes, error: OSError) -> None:
        self._note(f"{_shown(path) or repr('.')} cannot be read: {error.strerror}")

    def _note(self, text: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)


def _shown(path: bytes) -> str:
    """A relative path for people: hostile bytes and control characters escaped."""
    return ascii(os.fsdecode(path)) if path else ""
