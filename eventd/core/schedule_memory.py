"""What a schedule trigger remembers between looks: up to where its ticks have been judged, also when the clock is set back.

A tick is judged once: run, recorded as skipped, or passed over by the catch-up policy. `at` only moves forward, so no tick
is judged twice. When the clock is set back, what lies ahead again is not judged again either (`done`), except for what
had only been passed over: a clock that was a year ahead for a minute does not silence a schedule for a year.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from eventd.core.schedule_values import Due, Rate, Schedule, digest, due_since, next_after

__all__ = ["Memory", "Span", "ahead", "first_sight", "judged", "missed", "set_back"]

Span = tuple[int, int]
"""Instants in `low` < instant <= `high`, UTC milliseconds."""
_MOST_SPANS = 8


class Memory(Struct, frozen=True):
    """Durable, one per trigger. `schedule` is the digest of the expression: another one has no past."""

    schedule: str
    anchor: int
    """A rate counts from here."""
    at: int
    """Every tick up to and including this instant has been judged."""
    passed: tuple[Span, ...] = ()
    """Spans before `at` that were passed over: no tick in them was run or recorded."""
    done: tuple[Span, ...] = ()
    """Spans after `at` that were judged before the clock was set back."""


def first_sight(schedule: Schedule, now: int) -> Memory:
    """A new schedule begins now."""
    return Memory(digest(schedule), now, now)


def ahead(memory: Memory, schedule: Schedule) -> int | None:
    """The next tick that has not been judged, or None when none will come."""
    tick = next_after(schedule, memory.at, anchor_ms=memory.anchor)
    for low, high in memory.done:
        if tick is not None and low < tick <= high:
            tick = next_after(schedule, high, anchor_ms=memory.anchor)
    return tick


def missed(memory: Memory, schedule: Schedule, upto: int, limit: int) -> Due:
    """The ticks up to `upto` that have not been judged: the newest `limit`, and the count of the rest."""
    ticks: list[int] = []
    rest = 0
    for low, high in _without((memory.at, upto), memory.done):
        due = due_since(schedule, low, high, limit, anchor_ms=memory.anchor)
        ticks.extend(due.ticks)
        rest += due.missed
    surplus = max(len(ticks) - limit, 0)
    return Due(tuple(ticks[surplus:]), rest + surplus)


def judged(memory: Memory, upto: int, *, passed: Span | None = None) -> Memory:
    """Every tick up to `upto` is judged now; those in `passed` were passed over."""
    # What was judged before a step back of the clock was not passed over now.
    spans = memory.passed if passed is None else (*memory.passed, *_without(passed, memory.done))
    return replace(memory, at=max(memory.at, upto), passed=spans[-_MOST_SPANS:], done=tuple(span for span in memory.done if span[1] > upto))


def set_back(memory: Memory, schedule: Schedule, now: int, by: int) -> Memory:
    """The clock was set back by `by` to `now`. Nothing judged before is ahead again; a rate goes on counting elapsed time."""
    if isinstance(schedule, Rate):
        # The anchor moves with the clock: what comes next are other ticks than those that have been.
        return replace(memory, anchor=memory.anchor - by, at=min(memory.at - by, now), passed=(), done=())
    if now >= memory.at:
        return memory
    done = [*_without((now, memory.at), memory.passed), *memory.done]
    passed = [(low, min(high, now)) for low, high in memory.passed if low < now]
    return replace(memory, at=now, passed=tuple(passed), done=tuple(_fewer(sorted(done))))


def _without(span: Span, holes: tuple[Span, ...]) -> list[Span]:
    """What is left of a span."""
    low, high = span
    left: list[Span] = []
    for begin, end in sorted(holes):
        if begin >= high:
            break
        if begin > low:
            left.append((low, begin))
        low = max(low, end)
    if low < high:
        left.append((low, high))
    return left


def _fewer(spans: list[Span]) -> list[Span]:
    """Join spans that touch, and the nearest ones while there are too many: rather a tick not run than one run twice."""
    joined: list[Span] = []
    for low, high in spans:
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    while len(joined) > _MOST_SPANS:
        at = min(range(len(joined) - 1), key=lambda n: joined[n + 1][0] - joined[n][1])
        joined[at : at + 2] = [(joined[at][0], joined[at + 1][1])]
    return joined
