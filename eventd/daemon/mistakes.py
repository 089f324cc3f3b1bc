"""Mistakes in eventd itself: each is told in the log with E-INTERNAL and counted, and none of them ends the daemon."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

AGAIN_S = 60.0
"""The same mistake is told at most this often; it is always counted."""
_KINDS = 256

log = logging.getLogger("eventd")


class Mistakes:
    """One count for the whole daemon. Use it on the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._told: dict[tuple[str, str], float] = {}

    def told(self, what: str, error: BaseException | None) -> None:
        """`what` is a sentence without its code: what could not be done, and what happens now."""
        self.count += 1
        kind, now = (what[:200], type(error).__name__), asyncio.get_running_loop().time()
        if now - self._told.get(kind, -AGAIN_S) < AGAIN_S:
            return
        if len(self._told) >= _KINDS:
            self._told.clear()
        self._told[kind] = now
        log.error("E-INTERNAL %s", what if what.endswith(".") else what + ".", exc_info=error)

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's exception handler: what a callback raised, or a task that nobody waited for."""
        self.told(str(context.get("message", "a callback failed")), context.get("exception"))
