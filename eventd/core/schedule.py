"""Schedules as data: parse an expression once, then ask for fire times. No clock: every question brings its own now.

Expressions: crontab's five fields, six fields with seconds first, `@hourly` to `@yearly`, and EventBridge's `cron(...)`,
`rate(...)` and `at(...)`. Fire times are UTC milliseconds on whole seconds. Clock changes follow D21: a crontab with a
fixed hour fires at the first valid instant after a gap and on the first pass of a fold, one whose hour field has `*` or
a step follows real time; `cron()` and `at()` are skipped in a gap and fire once in a fold; `rate()` is elapsed time from an
anchor. Every answer is later than the question; the work of an answer is bounded, also for dates that never come.
"""

from __future__ import annotations

from eventd.core.schedule_memory import Memory, Span, ahead, first_sight, judged, missed, set_back
from eventd.core.schedule_parse import parse
from eventd.core.schedule_values import At, Cron, Due, Rate, Schedule, digest, due_since, next_after
from eventd.core.schedule_zone import Manner

__all__ = [
    "At", "Cron", "Due", "Manner", "Memory", "Rate", "Schedule", "Span", "ahead", "digest", "due_since", "first_sight", "judged",
    "missed", "next_after", "parse", "set_back",
]  # fmt: skip
