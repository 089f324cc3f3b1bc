"""The trigger's ledger in memory: every row of `site.state`, by folder and name, as bytes.

200,000 rows take about 40 MB. Changed only on the event loop, and only after the write is durable; scanning threads read
it (a lookup or a copy of one dict is a single step of the interpreter).
"""

from __future__ import annotations

from typing import Final

import msgspec

from eventd.sdk import State
from eventd_plugins.directory_rules import Row, split, unpack

META: Final = b"/meta"
"""The one ledger key that is no path: relative paths never begin with a slash."""


class Meta(msgspec.Struct, frozen=True):
    """What the ledger is about. `device` and `inode` are 0 until the root was seen with something in it.

    `ignore_before`: with `existing = "ignore"`, when the first start began, as nanoseconds since the epoch; `ignored`: the
    first scan is complete, so every file that is not in the ledger is new.
    """

    root: bytes
    device: int = 0
    inode: int = 0
    ignore_before: int = 0
    ignored: bool = False


class Ledger:
    def __init__(self) -> None:
        self.folders: dict[bytes, dict[bytes, bytes]] = {}
        self.meta: Meta | None = None
        self.sequencer = 0
        self.count = 0

    @classmethod
    async def load(cls, state: State) -> Ledger:
        """Read the whole ledger, page by page."""
        ledger = cls()
        async for key, value in state.items():
            if key == META:
                ledger.meta = msgspec.msgpack.decode(value, type=Meta)
            elif (row := unpack(value)) is not None:
                ledger.put(key, value)
                ledger.sequencer = max(ledger.sequencer, row.sequencer)
        return ledger

    def next_sequencer(self, now_ns: int) -> int:
        """Larger than any before, across restarts and clocks set back, and close to the time."""
        self.sequencer = max(self.sequencer + 1, now_ns)
        return self.sequencer

    def raw(self, path: bytes) -> bytes | None:
        folder, name = split(path)
        rows = self.folders.get(folder)
        return rows.get(name) if rows is not None else None

    def row(self, path: bytes) -> Row | None:
        value = self.raw(path)
        return unpack(value) if value is not None else None

    def put(self, path: bytes, value: bytes) -> None:
        folder, name = split(path)
        rows = self.folders.setdefault(folder, {})
        self.count += name not in rows
        rows[name] = value

    def drop(self, path: bytes) -> None:
        folder, name = split(path)
        rows = self.folders.get(folder)
        if rows is not None and rows.pop(name, None) is not None:
            self.count -= 1
            if not rows:
                del self.folders[folder]

    def below(self, folder: bytes) -> list[bytes]:
        """Folders with rows at or below `folder`."""
        return [one for one in list(self.folders) if one == folder or one.startswith(folder + b"/") or not folder]

    def names(self, folder: bytes) -> set[bytes]:
        return set(self.folders.get(folder, ()))


def meta_write(meta: Meta) -> dict[bytes, bytes | None]:
    return {META: msgspec.msgpack.encode(meta)}
