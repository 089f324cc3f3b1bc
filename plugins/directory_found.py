"""The words in which scanning and deciding speak: what to look at, what is remembered of a file, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from eventd_plugins.directory_rules import Hint, Version, Wanted

NEVER_S: Final = float("inf")


class Track:
    """What is remembered of a file that is not in the ledger yet. Changed on the event loop only.

    `stamp` rises with every notice; `since`: monotonic seconds when `version` was first seen; `held`: when a version was
    first ready, for the debounce; `due`: when it will be looked at; `depth`: see D12.
    """

    __slots__ = ("depth", "due", "held", "hint", "since", "stamp", "version")

    def __init__(self) -> None:
        self.hint = Hint.NONE
        self.stamp = 0
        self.depth = 0
        self.version: Version | None = None
        self.since = 0.0
        self.held: float | None = None
        self.due = NEVER_S


class Kind(Enum):
    READY = 0
    WAIT = 1
    IN_PLACE = 2
    SAME = 3
    GONE = 4


class Found(NamedTuple):
    """One file worth a word. `delay_s`: when a WAIT is worth another look (NEVER_S: when a notice or a scan says so)."""

    kind: Kind
    path: bytes
    version: Version = Version(0, 0, 0)
    ctime_ns: int = 0
    uid: int = -1
    etag: str = ""
    stamp: int = 0
    delay_s: float = NEVER_S


class Rules(NamedTuple):
    """The settings that a scan needs. `hold_ns`: how long past `settle` an open writer can keep a quiet file back."""

    root: str
    wanted: Wanted
    ready: str
    settle_ns: int
    hold_ns: int
    md5: bool


class Work(NamedTuple):
    """What to look at: names in folders (None: the whole folder), and folders that may be gone with all their rows.

    `whole`: everything, and every ledger row is checked. `known`: the (device, inode) that the rows are about; if the root is
    another one and empty (a file system that is not mounted), its emptiness proves nothing about them.
    """

    folders: Sequence[tuple[bytes, Sequence[bytes] | None]]
    suspects: Sequence[bytes] = ()
    whole: bool = False
    known: tuple[int, int] | None = None
