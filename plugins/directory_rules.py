"""The rules of a directory trigger, pure: which names count, what a version is, when it is ready, how it is kept.

A version is (name bytes, inode, size, mtime) (D10). ctime is only a reason to look again, so that a chmod is no new
version. It stands in the event's id all the same: a file that was moved away (say to `failed_to`), noticed as gone, and
moved back is the same version to the eye but a new arrival, and its id must not meet the old one in the duplicate window.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b
from struct import Struct as Packed
from typing import Final, NamedTuple
from urllib.parse import quote_plus, unquote_to_bytes

IGNORED_ENDINGS: Final = (b"~", b".tmp", b".part", b".partial", b".swp", b".crdownload")
SCRATCH: Final = b".eventd-"
"""How the names begin that we give to a file on its way out; a dotfile, so never an event."""
DEEPEST_CHAIN: Final = 16
"""D12: a file at the end of a longer chain of fed-back files is reported."""
MOST_NS: Final = 2**63 - 1


# --- names ---


def problem_of_glob(pattern: str) -> str:
    """Why a pattern cannot be used; empty when it can."""
    if not pattern.strip("/"):
        return "a pattern cannot be empty"
    if "\0" in pattern:
        return "a pattern cannot hold a NUL"
    if any(part in (".", "..") for part in pattern.split("/")):
        return f"{pattern!r} has a part '.' or '..'; patterns are relative to the watched folder"
    try:
        re.compile(_translate(pattern))
    except re.error as error:
        return f"{pattern!r} is not a pattern: {error}"
    return ""


def _translate(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` stay inside a part, `**` as a whole part is any number of parts."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        one = pattern[at]
        start_of_part = at == 0 or pattern[at - 1] == "/"
        if one == "*":
            if start_of_part and pattern.startswith("**/", at):
                out.append("(?:[^/]+/)*")
                at += 3
                continue
            if start_of_part and pattern[at:] == "**":
                out.append(".+")
                break
            while pattern.startswith("*", at + 1):
                at += 1
            out.append("[^/]*")
        elif one == "?":
            out.append("[^/]")
        elif one == "[" and (end := pattern.find("]", at + (3 if pattern[at + 1 : at + 2] in ("!", "^") else 2))) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[").replace("&&", "&\\&").replace("~~", "~\\~")
            inside = inside.replace("||", "|\\|").replace("--", "-\\-")
            out.append("(?!/)[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            at = end
        else:
            out.append(re.escape(one))
        at += 1
    return "".join(out)


class _Globs:
    """Patterns without a slash look at the last part, at any depth; those with one at the whole relative path."""

    def __init__(self, patterns: Sequence[str]) -> None:
        last: list[str] = []
        whole: list[str] = []
        self.everything = False
        for pattern in patterns:
            tidy = pattern.removeprefix("/")
            if tidy.endswith("/"):
                tidy += "**"
            anchored = "/" in tidy or pattern.startswith("/")
            self.everything = self.everything or (tidy in ("*", "**") and not anchored) or tidy == "**"
            (whole if anchored else last).append(_translate(tidy))
        self._last = re.compile("|".join(f"(?:{one})" for one in last), re.DOTALL) if last else None
        self._whole = re.compile("|".join(f"(?:{one})" for one in whole), re.DOTALL) if whole else None

    def match(self, path: str) -> bool:
        if self.everything:
            return True
        if self._last is not None and self._last.fullmatch(path[path.rfind("/") + 1 :]):
            return True
        return self._whole is not None and self._whole.fullmatch(path) is not None


class Wanted:
    """Which relative paths are files of the trigger and which folders are entered. Names are bytes, case matters."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str], recursive: bool, sentinel: str | None) -> None:
        self._include = _Globs(include)
        self._exclude = _Globs(exclude) if exclude else None
        self._recursive = recursive
        self.sentinel = os.fsencode(sentinel) if sentinel else None
        # Only `folder/**` says that nothing below can match, so only such a folder is left out whole.
        closed = [one for one in exclude if one.endswith("/**") and one != "/**"]
        self._closed = _Globs([*closed, *("/" + one[:-3].removeprefix("/") for one in closed)])

    def name(self, name: bytes) -> bool:
        """Whether a last part can be an object at all."""
        if name[:1] == b"." or name.endswith(IGNORED_ENDINGS):
            return False
        return self.sentinel is None or not name.endswith(self.sentinel) or name == self.sentinel

    def file(self, path: bytes) -> bool:
        """Whether a relative path is an object of this trigger (given that it is a regular file)."""
        if not self.name(path[path.rfind(b"/") + 1 :]):
            return False
        if not self._recursive and b"/" in path:
            return False
        if path[:1] == b"." or b"/." in path:
            return False
        if self._include.everything and self._exclude is None:
            return True
        text = os.fsdecode(path)
        return self._include.match(text) and not (self._exclude is not None and self._exclude.match(text))

    def folder(self, path: bytes) -> bool:
        """Whether a folder below the root is entered."""
        if not self._recursive or path[:1] == b"." or b"/." in path:
            return False
        return self._exclude is None or not self._closed.match(os.fsdecode(path))


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def split(path: bytes) -> tuple[bytes, bytes]:
    folder, _, name = path.rpartition(b"/")
    return folder, name


def object_key(path: bytes) -> str:
    """The key as S3 notifications write it: form-encoded raw bytes, `/` kept (lambda.md 6.1)."""
    return quote_plus(path, safe="/")


def event_key(path: bytes) -> str:
    """The text that keeps two versions of one file apart in time: the relative path, form-encoded if it is no UTF-8.

    The journal stores text, and a lone surrogate is none.
    """
    try:
        return path.decode()
    except UnicodeDecodeError:
        return object_key(path)


def paths_of_event_key(key: str) -> tuple[bytes, bytes]:
    """The paths that `event_key` may have been given, likeliest first."""
    return key.encode(errors="surrogateescape"), unquote_to_bytes(key.replace("+", " "))


# --- versions and the ledger ---


class Version(NamedTuple):
    inode: int
    size: int
    mtime_ns: int


class Status(Enum):
    """What the ledger knows of a version."""

    RUN = 1
    """Its event is in the journal."""
    KNOWN = 2
    """Seen, and no event was due (`existing = "ignore"`, or a kind of change that `events` leaves out)."""
    IN_PLACE = 3
    """`ready = "rename"`: seen being written under its final name, so not ready, however long it rests."""
    LEAVING = 4
    """We are deleting or moving it; that it goes is no event."""


class Row(NamedTuple):
    """One ledger row. `sequencer` rises with every row of the trigger; `depth` counts fed-back files (D12)."""

    version: Version
    status: Status
    sequencer: int
    depth: int = 0


_ROW: Final = Packed(">BBBQQqQ")
_FORMAT: Final = 1


def pack(row: Row) -> bytes:
    version = row.version
    return _ROW.pack(_FORMAT, row.status.value, min(row.depth, 255), version.inode, version.size, version.mtime_ns, row.sequencer)


def unpack(value: bytes) -> Row | None:
    """None for what another version of this plugin wrote; the event's id then still keeps a version from running twice."""
    if len(value) != _ROW.size or value[0] != _FORMAT or value[1] not in (1, 2, 3, 4):
        return None
    _, status, depth, inode, size, mtime_ns, sequencer = _ROW.unpack(value)
    return Row(Version(inode, size, mtime_ns), Status(status), sequencer, depth)


def packed_version(value: bytes) -> bytes:
    """The part of a packed row that is the version; compare it with `pack_version`."""
    return value[3:27]


_VERSION: Final = Packed(">QQq")


def pack_version(version: Version) -> bytes:
    return _VERSION.pack(*version)


def event_id(path: bytes, version: Version, ctime_ns: int) -> str:
    """The id of the event of one version of one file. Holds the version, see `version_of`."""
    name = blake2b(path, digest_size=16).hexdigest()
    return f"{name}-{version.inode:x}-{version.size:x}-{version.mtime_ns:x}-{ctime_ns:x}"


def removal_id(path: bytes, sequencer: int) -> str:
    return f"{blake2b(path, digest_size=16).hexdigest()}-removed-{sequencer:x}"


def version_of(identity: str) -> Version | None:
    """The version in an id made by `event_id`."""
    parts = re.fullmatch(r"[0-9a-f]{32}-([0-9a-f]+)-([0-9a-f]+)-(-?[0-9a-f]+)-(?:-?[0-9a-f]+)", identity)
    return Version(int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)) if parts else None


def sequencer_text(sequencer: int) -> str:
    """Zero-padded upper-case hex, as S3: later ones compare greater as text."""
    return f"{sequencer:016X}"


def taken_name(name: bytes, sequencer: int) -> bytes:
    """What a file is called at a place where its own name is taken: `-SEQUENCER` before the suffix, at most 255 bytes."""
    stem, dot, suffix = name.rpartition(b".")
    if not stem:
        stem, dot, suffix = name, b"", b""
    mark = b"-" + sequencer_text(sequencer).encode()
    room = 255 - len(mark) - len(dot) - len(suffix)
    if room < 1:
        return name[: 255 - len(mark)] + mark
    return stem[:room] + mark + dot + suffix


# --- readiness ---


class Hint(Enum):
    """What the change notices said about a name since we last looked at it."""

    NONE = 0
    MOVED = 1
    """Renamed in, and no write since."""
    WRITTEN = 2
    """Written or created under this name."""


class Verdict(Enum):
    READY = 0
    IF_CLOSED = 1
    """Ready unless some process has it open for writing."""
    WAIT = 2
    IN_PLACE = 3
    """Never ready as it is; only a rename can make it so."""


class Look(NamedTuple):
    """What is known of a version at one moment. `rested_ns`: how long it has not changed, as far as its mtime and our own
    watching tell. `known_in_place`: the ledger has this very version as IN_PLACE."""

    rested_ns: int
    hint: Hint
    known_in_place: bool = False


def judge(ready: str, settle_ns: int, look: Look) -> Verdict:
    """The ready rule for `settle` and `rename` (`sentinel` is judged by `sentinel_covers`).

    settle: renamed in, or unchanged for `settle` and not open for writing.

    rename: renamed in. IN_MOVED_TO says so exactly and at once; a write to the final name says the contrary. Where no
    notice was seen (the rename was while eventd was stopped, or the kernel dropped notices) the times cannot tell: for a
    small file written and renamed within one tick of the kernel's clock (1 to 4 ms) ctime equals mtime, as for a file
    written in place. Losing such a file is worse than taking a finished one that was not renamed, so the settle rule
    decides there, and strictly: never while a process has the file open for writing.
    """
    if look.hint is Hint.MOVED:
        return Verdict.READY
    if ready == "rename" and (look.hint is Hint.WRITTEN or look.known_in_place):
        return Verdict.IN_PLACE
    return Verdict.IF_CLOSED if look.rested_ns >= settle_ns else Verdict.WAIT


def sentinel_covers(sentinel_ctime_ns: int, mtime_ns: int, ctime_ns: int) -> bool:
    """Whether a sentinel is for this version: it is no older than the last write.

    mtime may lie in the future (copied from another machine) and ctime moves with a chmod, so the earlier of both counts.
    """
    return sentinel_ctime_ns >= min(mtime_ns, ctime_ns)
