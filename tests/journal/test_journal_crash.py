"""kill -9 at any moment and at every named durable step: what was acknowledged is there, and nothing is torn."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from journal_harness import Handle

from eventd.journal.writer import STEPS
from eventd.ports import Query

pytestmark = pytest.mark.anyio
CHILD = Path(__file__).with_name("journal_child.py")
KILLS = 20


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


class Told:
    """What the killed processes said before they died, over all of them."""

    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.began: set[int] = set()
        self.ended: set[int] = set()

    def hear(self, text: bytes) -> int:
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.decode().splitlines():
            what, number = line.split()
            getattr(self, what).add(int(number))
        return len(whole.splitlines())


def run_and_kill(state: Path, told: Told, lines: int, *step: str) -> None:
    """Let a child work until it has said `lines` lines (or kills itself), then kill it."""
    child = subprocess.Popen([sys.executable, str(CHILD), str(state), *step], stdout=subprocess.PIPE)
    assert child.stdout is not None
    text = b""
    try:
        while (step or text.count(b"\n") < lines) and (more := os.read(child.stdout.fileno(), 65536)):
            text += more
    finally:
        child.kill()
        while more := os.read(child.stdout.fileno(), 65536):  # said before it died
            text += more
        code = child.wait()
        child.stdout.close()
    assert code == -signal.SIGKILL
    told.hear(text)


async def check(state: Path, told: Told) -> None:
    """Open as the next daemon does and compare with what was said; then look at the file itself."""
    handle = await Handle("sqlite", state).open()
    boot = await handle.j.load()
    running = {row.event for row, _, _ in boot.running}
    waiting: set[int] = set()
    cursor = None
    while True:
        page = await handle.j.events(Query(limit=10_000, cursor=cursor))
        for shown in page.rows:
            assert len(shown["invocations"]) == 2, "a torn acceptance"
            waiting.add(int(shown["event"].removeprefix("event-")))
        cursor = page.next
        if cursor is None:
            break
    ended_twice: dict[int, int] = {}
    for row in await handle.j.outbox(100_000):
        assert row.ended is not None
        number = int(row.ended["event"].removeprefix("event-"))
        ended_twice[number] = ended_twice.get(number, 0) + 1
    assert set(ended_twice.values()) <= {2}, "each of the two invocations ends once, both in one commit"
    stored = waiting | set(ended_twice)
    assert not waiting & set(ended_twice)
    assert told.accepted <= stored, f"lost: {sorted(told.accepted - stored)[:5]}"
    assert told.ended <= set(ended_twice)
    assert told.began <= running | set(ended_twice)
    ledger = {int(key) for key, _ in await handle.j.ledger_page("t", b"", None, 10_000)}
    assert ledger == stored
    assert boot.next_event > max(stored, default=0)
    assert handle.failures == []
    await handle.j.aclose()
    connection = apsw.Connection(str(state / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_kill_minus_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    told = Told()
    dice = random.Random(7)
    for kill in range(KILLS):
        run_and_kill(tmp_path / "state", told, dice.randrange(1, 400))
        if kill % 5 == 4:
            await check(tmp_path / "state", told)
    assert len(told.accepted) > KILLS


@pytest.mark.parametrize("step", [step for step in STEPS if step != "reserve"])
async def test_killed_at_each_durable_step(tmp_path: Path, step: str) -> None:
    """`reserve` is reached only on a full disk: see the tests of that."""
    told = Told()
    for count in (1, 3):
        run_and_kill(tmp_path / "state", told, 0, step, str(1 if step == "close" else count))
    await check(tmp_path / "state", told)
