"""What an event becomes when it is accepted: one invocation per binding that takes it, or a recorded end at once."""

from __future__ import annotations

from collections.abc import Sequence

from eventd.core.facts import InvocationRow
from eventd.core.signals import Dice
from eventd.core.state import Dispatch
from eventd.model import End, Reason, State


def admit(
    state: Dispatch,
    takers: Sequence[tuple[str | None, str]],
    *,
    event: int,
    first_seq: int,
    now: int,
    dice: Dice,
    key: str | None = None,
    serial: bool = False,
    max_open: int | None = None,
    skip: Reason | None = None,
    delay_ms: int = 0,
    ids: Sequence[str] = (),
) -> tuple[InvocationRow, ...]:
    """Rows for an event, one for each (binding, function) in `takers`, numbered from `first_seq`.

    `skip` ends them all as skipped; `max_open` ends those as skipped whose binding has that many open already (D13);
    `concurrency = 0` ends them as dead (what AWS's reserved concurrency 0 means). `ids` presets the invocation ids.
    """
    rows = []
    for number, (binding, function) in enumerate(takers):
        stands, end, reason = State.WAITING, None, None
        queue = state.queues.get((binding, function))
        rule = state.rules.functions.get(function)
        if skip is not None:
            stands, end, reason = State.SETTLED, End.SKIPPED, skip
        elif max_open is not None and queue is not None and queue.open >= max_open:
            stands, end, reason = State.SETTLED, End.SKIPPED, Reason.OVERLAP
        elif rule is not None and rule.concurrency == 0:
            stands, end, reason = State.SETTLED, End.DEAD, Reason.ZERO_CONCURRENCY
        rows.append(
            InvocationRow(
                seq=first_seq + number,
                id=ids[number] if number < len(ids) else dice.id(),
                event=event,
                binding=binding,
                function=function,
                state=stands,
                due_at=now + delay_ms,
                accepted_at=now,
                key=key,
                serial=serial,
                end=end,
                reason=reason,
            )
        )
    return tuple(rows)
