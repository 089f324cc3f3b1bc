"""From a ready version to an event in the journal: identity, payload, ledger row, and how fast.

The event and its ledger row are one transaction, so a crash leaves both or neither. Up to 512 acceptances wait for the
journal at a time (they share commits); when it refuses, claiming stops, waits, and starts again with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio

from eventd.sdk import Event, EventdError, Receipt, Site
from eventd_plugins import directory_event as payload
from eventd_plugins.directory_found import Found, Kind
from eventd_plugins.directory_ledger import Ledger
from eventd_plugins.directory_rules import (
    DEEPEST_CHAIN,
    Row,
    Status,
    event_id,
    event_key,
    pack,
    pack_version,
    paths_of_event_key,
    removal_id,
)

_WINDOW: Final = 512
_LONGEST_WAIT_S: Final = 30.0


class Claims:
    """`stored(path, found)` is called when a version's event is durable, `refused(path, error)` when it is not."""

    def __init__(
        self,
        site: Site,
        ledger: Ledger,
        *,
        root: str,
        notify: bool,
        stored: Callable[[bytes, Found], None],
        refused: Callable[[bytes, EventdError], None],
        looping: Callable[[bytes, int], None],
    ) -> None:
        self._site = site
        self._ledger = ledger
        self._source = payload.Source(site.name, site.region, root)
        self._notify = notify
        self._stored = stored
        self._refused = refused
        self._looping = looping
        self._owner = os.geteuid()
        self._window = _WINDOW
        self._failures = 0
        self._back_at = 0.0
        self._moved = anyio.Event()
        self.waiting: set[bytes] = set()
        """Paths whose event is on its way to the journal."""

    def depth_now(self) -> int:
        """The chain depth of a file that appears at this moment: one more than the shallowest run in flight, 0 without.

        The shallowest, because a run that began the chain proves that it is no longer than that.
        """
        depths = [self._depth(key) for key in self._site.running()]
        return min(depths) + 1 if depths else 0

    def _depth(self, key: str) -> int:
        for path in paths_of_event_key(key):
            if (row := self._ledger.row(path)) is not None:
                return row.depth
        return 0

    async def room(self) -> bool:
        """Return when another claim may be made. False: that took a back-off, so what was found before may be stale."""
        fresh = True
        while True:
            left = self._back_at - self._site.monotonic()
            if left > 0:
                fresh = False
                await self._site.sleep(max(left, 0.001))
            elif len(self.waiting) >= self._window:
                self._moved = anyio.Event()
                await self._moved.wait()
            else:
                return fresh

    def created(self, found: Found, depth: int) -> None:
        """Offer the event of a version. `depth` counts only for a file that belongs to the workers' user (D12)."""
        depth = depth if found.uid == self._owner else 0
        if depth > DEEPEST_CHAIN:
            self._looping(found.path, depth)
        now = self._site.now()
        sequencer = self._ledger.next_sequencer(round(now * 1e9))
        identity = event_id(found.path, found.version, found.ctime_ns)
        data = payload.created(
            self._source, found.path, identity=identity, size=found.version.size, etag=found.etag, sequencer=sequencer, at=now
        )
        row = pack(Row(found.version, Status.RUN, sequencer, depth))
        # The same version may be offered twice with another time and sequencer; it is the same event all the same.
        event = Event(data=data, id=identity, key=event_key(found.path), fingerprint=pack_version(found.version), notify=self._notify)
        self._offer(found, event, row)

    def removed(self, path: bytes, row: Row) -> None:
        """Offer the event of a removal, and forget the row with it."""
        now = self._site.now()
        identity = removal_id(path, row.sequencer)
        sequencer = self._ledger.next_sequencer(round(now * 1e9))
        data: Any = payload.removed(self._source, path, identity=identity, sequencer=sequencer, at=now)
        event = Event(data=data, id=identity, key=event_key(path), fingerprint=b"removed")
        self._offer(Found(kind=Kind.GONE, path=path), event, None)

    def _offer(self, found: Found, event: Event, row: bytes | None) -> None:
        self.waiting.add(found.path)
        self._site.offer(event, partial(self._done, found, row), state={found.path: row})

    def _done(self, found: Found, row: bytes | None, result: Receipt | EventdError) -> None:
        self.waiting.discard(found.path)
        if isinstance(result, Receipt):
            self._failures, self._window = 0, _WINDOW
            if row is None:
                self._ledger.drop(found.path)
            else:
                self._ledger.put(found.path, row)
            self._stored(found.path, found)
        else:
            now = self._site.monotonic()
            if now >= self._back_at:
                self._back_at = now + min(_LONGEST_WAIT_S, 2.0 ** min(self._failures, 10)) * (0.5 + self._site.random() / 2)
                self._failures += 1
                self._window = 1
            self._refused(found.path, result)
        self._moved.set()
