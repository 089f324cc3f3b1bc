"""A virtual clock: time passes only when a test says so, and everyone who sleeps wakes in the order of their deadlines."""

from __future__ import annotations

import asyncio
import heapq
import math
from datetime import datetime

__all__ = ["FakeClock"]

_MICRO = 1_000_000
_MOST_YIELDS = 100_000
_MOST_WAKES = 2_000_000


class FakeClock:
    """Wall clock and monotonic clock of one test. Times are kept in whole microseconds, so that sums stay exact."""

    def __init__(self, now: float | datetime) -> None:
        self._monotonic = 0
        self._epoch = _micros(now)
        self._sleepers: list[tuple[int, int, asyncio.Event]] = []
        self._count = 0

    def now(self) -> float:
        """Wall clock, seconds since the epoch, UTC."""
        return (self._epoch + self._monotonic) / _MICRO

    def now_ms(self) -> int:
        return (self._epoch + self._monotonic) // 1000

    def monotonic(self) -> float:
        return self._monotonic / _MICRO

    def set_wall(self, now: float | datetime) -> None:
        """Someone sets the system clock. Nobody wakes: sleeping follows the monotonic clock."""
        self._epoch = _micros(now) - self._monotonic

    @property
    def sleeping(self) -> int:
        """How many tasks sleep on this clock."""
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` of virtual time have been advanced; zero or less only yields."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self._count += 1
        entry = (self._monotonic + math.ceil(round(seconds * _MICRO, 3)), self._count, asyncio.Event())
        heapq.heappush(self._sleepers, entry)
        try:
            await entry[2].wait()
        finally:
            if not entry[2].is_set():
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: wake each sleeper at its own instant, one by one, and let what it does settle in between.

        Returns when every task is blocked again. Work in threads or processes is not waited for (`FakeSite.wait_for`
        is). RuntimeError when a task never blocks, or when sleeps are so short that the end is never reached.
        """
        target = self._monotonic + math.ceil(round(seconds * _MICRO, 3))
        await self.settle()
        for _ in range(_MOST_WAKES):
            if not self._sleepers or self._sleepers[0][0] > target:
                break
            due, _, event = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, due)
            event.set()
            await self.settle()
        else:
            raise RuntimeError(
                f"{_MOST_WAKES} sleepers woke and {seconds} s have still not passed; a task sleeps for almost nothing, for ever"
            )
        self._monotonic = max(self._monotonic, target)

    async def settle(self) -> None:
        """Return once every other task of the event loop is blocked on something that has not happened."""
        this = asyncio.current_task()
        calm = 0
        for _ in range(_MOST_YIELDS):
            # Two quiet rounds: a callback that is still queued may be about to wake a task.
            await asyncio.sleep(0)
            calm = calm + 1 if all(task is this or _blocked(task) for task in asyncio.all_tasks()) else 0
            if calm == 2:
                return
        raise RuntimeError(f"a task is still busy after {_MOST_YIELDS} rounds of the event loop; does it loop without sleeping?")


def _blocked(task: asyncio.Task[object]) -> bool:
    waiter = getattr(task, "_fut_waiter", None)
    return waiter is not None and not waiter.done()


def _micros(when: float | datetime) -> int:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise ValueError("the fake clock needs a time with its zone")
        when = when.timestamp()
    return round(when * _MICRO)
