"""What is to be looked at, and when: notices, rechecks and rescans, gathered until the next scan. No I/O and no clock.

Everything here is bounded. What does not fit is not forgotten: names become "the whole folder", files that wait become a
folder that waits, and too many folders become a scan of everything.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from eventd_plugins import directory_notify as notify
from eventd_plugins.directory_found import NEVER_S, Track, Work
from eventd_plugins.directory_ledger import Ledger
from eventd_plugins.directory_notify import Notice
from eventd_plugins.directory_rules import Hint, Wanted, join, split

MOST_TRACKS: Final = 50_000
_MOST_NAMES: Final = 4_096
_MOST_FOLDERS: Final = 4_096


class Agenda:
    def __init__(self, wanted: Wanted, settle_s: float, *, waits: bool, ledger: Ledger) -> None:
        """`waits`: whether a file that was just written is looked at only after `settle` (not so with a sentinel)."""
        self.tracks: dict[bytes, Track] = {}
        self.full_due = 0.0
        self._wanted = wanted
        self._settle_s = settle_s if waits else 0.0
        self._ledger = ledger
        self._marked: dict[bytes, set[bytes] | None] = {}
        self._suspects: set[bytes] = set()
        self._waiting: list[tuple[float, bytes]] = []
        self._folders_waiting: dict[bytes, float] = {}
        self._stamp = 0

    # --- asking for a look ---

    def mark(self, path: bytes) -> None:
        """Look at this path at once."""
        folder, name = split(path)
        names = self._marked.get(folder, self)
        if names is self:
            if len(self._marked) >= _MOST_FOLDERS:
                self.rescan(0.0)
            else:
                self._marked[folder] = {name}
        elif isinstance(names, set):
            names.add(name)
            if len(names) > _MOST_NAMES:
                self._marked[folder] = None

    def later(self, path: bytes, due: float) -> None:
        """Look at this path once the monotonic time is `due`, unless it is to be looked at before anyway."""
        track = self.tracks.get(path)
        if track is None:
            folder, _ = split(path)
            self._folders_waiting[folder] = min(due, self._folders_waiting.get(folder, due))
            if len(self._folders_waiting) > _MOST_FOLDERS:
                self._folders_waiting.clear()
                self.rescan(due)
        elif due < track.due:
            track.due = due
            heapq.heappush(self._waiting, (due, path))
            if len(self._waiting) > 4 * MOST_TRACKS:
                self._waiting = [one for one in self._waiting if (now := self.tracks.get(one[1])) is not None and now.due == one[0]]
                heapq.heapify(self._waiting)

    def rescan(self, due: float) -> None:
        """Look at everything, no later than `due`."""
        self.full_due = min(self.full_due, due)

    def track(self, path: bytes) -> Track | None:
        """The track of a path, made when there is room for it."""
        track = self.tracks.get(path)
        if track is None and len(self.tracks) < MOST_TRACKS:
            track = self.tracks[path] = Track()
        return track

    def settled(self, path: bytes, stamp: int) -> None:
        """The file is in the ledger, or gone: forget its track, unless there is news since `stamp`."""
        track = self.tracks.get(path)
        if track is not None and track.stamp == stamp:
            del self.tracks[path]

    # --- notices ---

    def note(self, notice: Notice, depth: int, monotonic: float) -> bytes | None:
        """Take in one notice. `depth`: that of a file made at this moment (D12). Returns a folder whose watches are stale."""
        mask = notice.mask
        if mask & notify.Q_OVERFLOW:
            # What was dropped may have been a write after a rename or the other way round: no hint is worth anything now.
            self._stamp += 1
            for track in self.tracks.values():
                track.hint, track.stamp = Hint.NONE, self._stamp
            self.rescan(monotonic)
            return None
        if not notice.name:
            if not notice.folder and mask & (notify.DELETE_SELF | notify.MOVE_SELF | notify.UNMOUNT):
                self.rescan(monotonic)
            return None
        path = join(notice.folder, notice.name)
        if mask & notify.ISDIR:
            return self._note_folder(mask, path)
        sentinel = self._wanted.sentinel
        if sentinel is not None and path.endswith(sentinel):
            path = path[: -len(sentinel)]
            if self._wanted.file(path):
                self.mark(path)
        elif self._wanted.file(path):
            self._note_file(mask, path, depth, monotonic)
        return None

    def _note_folder(self, mask: int, path: bytes) -> bytes | None:
        if mask & (notify.MOVED_FROM | notify.DELETE):
            self._suspects.update(self._ledger.below(path) if mask & notify.MOVED_FROM else [path] if path in self._ledger.folders else ())
        if mask & (notify.CREATE | notify.MOVED_TO) and self._wanted.folder(path):
            self.mark(path)
        return path if mask & notify.MOVED_FROM else None

    def _note_file(self, mask: int, path: bytes, depth: int, monotonic: float) -> None:
        if mask & (notify.DELETE | notify.MOVED_FROM):
            self.tracks.pop(path, None)
            self.mark(path)
            return
        if mask & notify.ATTRIB:
            self.mark(path)
            return
        track = self.track(path)
        if track is not None:
            self._stamp += 1
            track.stamp = self._stamp
            track.depth = max(track.depth, depth)
            if mask & notify.MOVED_TO:
                track.hint = Hint.MOVED
            elif mask & (notify.MODIFY | notify.CLOSE_WRITE):
                track.hint = Hint.WRITTEN
        if mask & notify.MOVED_TO or not self._settle_s:
            self.mark(path)
        else:
            self.later(path, monotonic + self._settle_s)

    # --- handing out work ---

    def next_due(self) -> float:
        """The monotonic time of the next thing to do, a full scan aside; 0 when there is something now."""
        if self._marked or self._suspects:
            return 0.0
        self._skip_stale()
        first = self._waiting[0][0] if self._waiting else NEVER_S
        return min(first, min(self._folders_waiting.values(), default=NEVER_S))

    def take(self, monotonic: float) -> Work | None:
        """All that is due now, but not a full scan; None when nothing is."""
        self._skip_stale()
        while self._waiting and self._waiting[0][0] <= monotonic:
            _, path = heapq.heappop(self._waiting)
            self.tracks[path].due = NEVER_S
            self.mark(path)
            self._skip_stale()
        for folder in [one for one, due in self._folders_waiting.items() if due <= monotonic]:
            del self._folders_waiting[folder]
            self._marked[folder] = None
        if not self._marked and not self._suspects:
            return None
        folders: Sequence[tuple[bytes, Sequence[bytes] | None]] = [
            (folder, None if names is None else list(names)) for folder, names in self._marked.items()
        ]
        work = Work(folders, list(self._suspects))
        self._marked, self._suspects = {}, set()
        return work

    def take_all(self, known: tuple[int, int] | None) -> Work:
        """A scan of everything. What was marked is part of it; what waits goes on waiting."""
        self._marked, self._suspects = {}, set()
        self.full_due = NEVER_S
        return Work([(b"", None)], whole=True, known=known)

    def _skip_stale(self) -> None:
        while self._waiting:
            due, path = self._waiting[0]
            track = self.tracks.get(path)
            if track is not None and track.due == due:
                return
            heapq.heappop(self._waiting)
