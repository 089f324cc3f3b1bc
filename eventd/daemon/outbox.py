"""Carries ended runs and invocations from the journal's outbox to the run history, and lets dead ones expire (D2, D18)."""

from __future__ import annotations

import logging

import anyio

from eventd.core import signals as s
from eventd.core.facts import Copied
from eventd.daemon.engine import Engine
from eventd.daemon.mistakes import Mistakes
from eventd.errors import EventdError
from eventd.ports import History, JournalReads

log = logging.getLogger("eventd.history")

BATCH = 2_000
PAUSE_S = 0.25
EXPIRE_EVERY_S = 60.0
EXPIRE_BATCH = 1_000
RETRY_S = 5.0
STORAGE_EXIT = 5


class Outbox:
    """One pump. A copy repeated after a crash changes nothing, because runs have unique ids."""

    def __init__(self, engine: Engine, reads: JournalReads, history: History, dead_ms: int, mistakes: Mistakes | None = None) -> None:
        self.dead_ms = dead_ms
        self.mistakes = mistakes or Mistakes()
        self.choosing = anyio.Lock()
        """Held by who reads dead or open invocations and then tells the dispatcher what is to become of them: what was read must
        still be true when it is told."""
        self._engine = engine
        self._reads = reads
        self._history = history
        self._lock = anyio.Lock()
        self._full = False

    async def run(self) -> None:
        """Pump until cancelled. Raises E-STORAGE and its like, which end the daemon; all else is told and tried again."""
        expire_at = self._engine.clock.monotonic()
        while True:
            seen = self._engine.changes
            try:
                await self.flush(steps=16)
                self._warn_when_full()
                if self._engine.clock.monotonic() >= expire_at:
                    expire_at = self._engine.clock.monotonic() + EXPIRE_EVERY_S
                    await self.expire()
            except EventdError as error:
                if error.exit == STORAGE_EXIT:
                    raise
                log.error("%s", error)
                await anyio.sleep(RETRY_S)
                continue
            except Exception as error:
                self.mistakes.told("ended runs could not be copied to the run history; it is tried again.", error)
                await anyio.sleep(RETRY_S)
                continue
            if self._engine.changes == seen:
                with anyio.move_on_after(EXPIRE_EVERY_S):
                    await self._engine.changed()
            await anyio.sleep(PAUSE_S)

    def _warn_when_full(self) -> None:
        """Once when the journal passes 80 % of its limit, and again only after it has fallen below 70 % (D18)."""
        stats = self._reads.stats()
        if stats.bytes > stats.limit * 0.8 and not self._full:
            self._full = True
            log.warning(
                "W-JOURNAL the journal holds %d of %d MiB. Discard dead events, mend what keeps failing, or raise [journal] limit.",
                stats.bytes >> 20, stats.limit >> 20,
            )  # fmt: skip
        elif stats.bytes < stats.limit * 0.7:
            self._full = False

    async def flush(self, steps: int = 1_000) -> None:
        """What had ended before this call is in the history when it returns (bounded: `steps` batches).

        When the disk does not take it, it stays in the journal's outbox and is tried again later.
        """
        try:
            await self._flush(steps)
        except EventdError as error:
            if error.code != "E-OVERLOADED":
                raise
            log.warning("%s", error)

    async def _flush(self, steps: int) -> None:
        async with self._lock:
            for _ in range(steps):
                rows = await self._reads.outbox(BATCH)
                if not rows:
                    break
                await self._history.store(rows)
                stored = anyio.Event()
                self._engine.journal.append([Copied(rows[-1].seq)], stored.set)
                await stored.wait()
            await self._history.flush()

    async def expire(self) -> int:
        """Let go of dead invocations older than [history] dead; how many. Durable when it returns."""
        before, count = self._engine.clock.now_ms() - self.dead_ms, 0
        while True:
            async with self.choosing:
                rows = await self._reads.expired_dead(before, EXPIRE_BATCH)
                if not rows:
                    break
                self._engine.tell(s.ExpireAsked(tuple(rows)))
                stored = anyio.Event()
                self._engine.journal.append([], stored.set)
                await stored.wait()
            count += len(rows)
        if count:
            log.info("%d dead invocations have expired ([history] dead)", count)
        return count
