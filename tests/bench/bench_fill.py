"""Fill a state folder with open invocations through the journal: `bench_fill.py STATE COUNT`. Prints {"rate", "seconds", "rss_mib"}."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import time

import uvloop

from eventd.core.facts import Accepted, EventRow, InvocationRow
from eventd.daemon.ids import Dice
from eventd.errors import EventdError
from eventd.journal import open_journal
from eventd.model import JournalSettings, State
from eventd.ports import Stored

AT_ONCE = 1_024
"""Acceptances on their way at a time: as many as a busy front door has."""
BODY = b'{"pad":"' + b"x" * 502 + b'"}'


async def fill(state: str, count: int) -> float:
    """Accept `count` events of 512 bytes for the function `hook`; seconds it took, every commit included."""
    journal = await open_journal(state, JournalSettings(), boot=Dice().id(), loop=asyncio.get_running_loop())
    dice, over = Dice(), asyncio.get_running_loop().create_future()
    sent = stored = 0
    begun = time.perf_counter()

    def send() -> None:
        nonlocal sent
        while sent < count and sent - stored < AT_ONCE:
            sent += 1
            now = time.time_ns() // 1_000_000
            event = EventRow(
                seq=sent, id=dice.id(), source="bench", trigger=None, received_at=now, data=BODY, dedup=True,
                fingerprint=hashlib.blake2b(BODY, digest_size=16).digest(),
            )  # fmt: skip
            row = InvocationRow(sent, dice.id(), sent, None, "hook", State.WAITING, now, now)
            journal.accept(Accepted(event, (row,)), done)

    def done(answer: Stored | EventdError) -> None:
        nonlocal stored
        stored += 1
        if isinstance(answer, EventdError):
            fail(answer)
        elif stored == count and not over.done():
            over.set_result(None)
        elif sent - stored <= AT_ONCE // 2:
            send()

    def fail(error: EventdError) -> None:
        if not over.done():
            over.set_exception(error)

    journal.failed = fail
    send()
    try:
        await over
        return time.perf_counter() - begun
    finally:
        await journal.aclose()


def main() -> None:
    state, count = sys.argv[1], int(sys.argv[2])
    seconds = uvloop.run(fill(state, count))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": count / seconds, "seconds": seconds, "rss_mib": rss}))


if __name__ == "__main__":
    main()
