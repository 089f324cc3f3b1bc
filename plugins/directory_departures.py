"""Settlements: what is owed to a file once its event is settled (D11). Ledger and file keep in step through any crash.

Before the file is touched its row says LEAVING, durably, so that its going is never taken for a removal by somebody
else; the row goes in the same transaction as the acknowledgement. A settlement that is not acknowledged comes again.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

import anyio
from anyio import CapacityLimiter, to_thread

from eventd.sdk import Settlement, Site
from eventd_plugins.directory_after import Leave, Left, leave
from eventd_plugins.directory_claims import Claims
from eventd_plugins.directory_health import Health
from eventd_plugins.directory_ledger import Ledger
from eventd_plugins.directory_rules import Row, Status, Version, pack, paths_of_event_key, version_of
from eventd_plugins.directory_settings import DirectorySettings

_AT_ONCE: Final = 64
_THREADS: Final = 4
_LONGEST_WAIT_S: Final = 60.0


class Departures:
    """`leaving` holds the paths being acted on: a scan must leave them alone. `released(path)` is called after each."""

    def __init__(
        self, site: Site, settings: DirectorySettings, ledger: Ledger, claims: Claims, health: Health, released: Callable[[bytes], None]
    ) -> None:
        self._site = site
        self._settings = settings
        self._ledger = ledger
        self._claims = claims
        self._health = health
        self._released = released
        self._busy: dict[bytes, anyio.Event] = {}
        self._failing: set[int] = set()
        self._limiter = CapacityLimiter(_THREADS)

    @property
    def leaving(self) -> dict[bytes, anyio.Event]:
        return self._busy

    async def serve(self) -> None:
        """Never returns. At most 64 settlements are acted on at a time; one that fails is retried, and holds its place."""
        places = anyio.Semaphore(_AT_ONCE)
        async with anyio.create_task_group() as group:
            async for settlement in self._site.settlements():
                await places.acquire()
                group.start_soon(self._settle, settlement, places)

    async def _settle(self, settlement: Settlement, places: anyio.Semaphore) -> None:
        pause = 1.0
        try:
            while True:
                try:
                    await self._act(settlement)
                except OSError as error:
                    self._failing.add(settlement.owed)
                    self._health.set(
                        "after", f"a file cannot be deleted or moved: {error.strerror}: {error.filename or self._settings.path!r}"
                    )
                    await self._site.sleep(pause * (0.5 + self._site.random() / 2))
                    pause = min(_LONGEST_WAIT_S, 2 * pause)
                else:
                    return
        finally:
            self._failing.discard(settlement.owed)
            if not self._failing:
                self._health.clear("after")
            places.release()

    async def _act(self, settlement: Settlement) -> None:
        version, path = version_of(settlement.event), _path_of(settlement)
        if version is None or path is None:
            await self._site.acknowledge(settlement)
            return
        while (other := self._busy.get(path)) is not None:
            await other.wait()
        self._busy[path] = anyio.Event()
        try:
            await self._leave(settlement, path, version)
        finally:
            self._busy.pop(path).set()
            self._released(path)

    async def _leave(self, settlement: Settlement, path: bytes, version: Version) -> None:
        settings = self._settings
        action, target = (settings.after, settings.move_to) if settlement.ok else (settings.after_failure, settings.failed_to)
        row = self._ledger.row(path)
        ours = row is not None and row.version == version and path not in self._claims.waiting
        begun = ours and row is not None and row.status is Status.LEAVING
        if action == "keep" and not begun:
            await self._site.acknowledge(settlement)
            return
        if row is not None and ours and not begun:
            await self._write(path, row._replace(status=Status.LEAVING))
        sequencer = row.sequencer if row is not None and ours else self._ledger.next_sequencer(round(self._site.now() * 1e9))
        order = Leave(settings.path, path, settlement.event, version, action, target, sequencer)
        left = await to_thread.run_sync(leave, order, limiter=self._limiter)
        if row is None or not ours:
            await self._site.acknowledge(settlement)
        elif left is Left.DONE or (left is Left.ABSENT and begun):
            await self._site.acknowledge(settlement, state={path: None})
            self._ledger.drop(path)
        else:
            # Somebody else changed or took the file: the row speaks of that version again, and a scan finds out the rest.
            kept = pack(row._replace(status=Status.RUN))
            await self._site.acknowledge(settlement, state={path: kept})
            self._ledger.put(path, kept)

    async def _write(self, path: bytes, row: Row) -> None:
        value = pack(row)
        await self._site.state.put({path: value})
        self._ledger.put(path, value)


def _path_of(settlement: Settlement) -> bytes | None:
    """The path in the settlement's key; the event's id tells which reading of the key is meant."""
    if settlement.key is None:
        return None
    wanted = settlement.event.partition("-")[0]
    for path in paths_of_event_key(settlement.key):
        if blake2b(path, digest_size=16).hexdigest() == wanted:
            return path
    return None
