"""A process that uses the journal and says what was acknowledged, to be killed: `journal_child.py STATE [STEP COUNT]`.

Every event has two invocations and one ledger entry, so that a torn acceptance shows. Every third event is run to its end.
With STEP the process kills itself at the COUNT-th time that durable step is reached.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(__file__))

from journal_harness import SETTINGS, accepted, began, ended, succeeded

from eventd.core.facts import LedgerWrite
from eventd.errors import EventdError
from eventd.journal import maintenance, open_journal, writer

PRODUCERS = 16


async def main() -> None:
    if len(sys.argv) > 2:
        # Small limits, so that checkpoints and the idle work come often.
        maintenance._CHECKPOINT_FRAMES = 64
    journal = await open_journal(sys.argv[1], SETTINGS, boot="child")
    journal.failed = lambda error: os._exit(9)
    if len(sys.argv) > 2:
        arm(journal.writer, sys.argv[2], int(sys.argv[3]))
    seq = (await journal.load()).next_event

    def say(what: str, number: int) -> None:
        os.write(1, f"{what} {number}\n".encode())

    def go() -> None:
        nonlocal seq
        mine = seq
        seq += 1

        def stored(answer: object) -> None:
            assert not isinstance(answer, EventdError), answer
            say("accepted", mine)
            if mine % 3:
                go()
            else:
                journal.append([began(mine * 10, mine * 10 + 1, run=f"r{mine}")], run)

        def run() -> None:
            say("began", mine)
            journal.append([ended(succeeded(mine * 10), succeeded(mine * 10 + 1), run=f"r{mine}")], done)

        def done() -> None:
            say("ended", mine)
            if mine >= 3_000:
                closing.set()
            else:
                go()

        journal.accept(accepted(mine, "f", "g", data=b"x" * 500, ledger=[LedgerWrite(b"%d" % mine, b"seen")]), stored)

    closing = asyncio.Event()
    for _ in range(PRODUCERS):
        go()
    if len(sys.argv) > 2 and sys.argv[2] == "close":
        await asyncio.sleep(0)
        await journal.aclose()
    await closing.wait()
    await journal.aclose()


def arm(thread: writer.Writer, step: str, count: int) -> None:
    seen = 0

    def reached(name: str) -> None:
        nonlocal seen
        if name == step:
            seen += 1
            if seen >= count:
                os.kill(os.getpid(), signal.SIGKILL)

    thread.step = reached


asyncio.run(main())
