"""From what a worker reported to the run's record."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from eventd.core.facts import EventRow
from eventd.core.signals import Start
from eventd.model import FunctionSettings, Outcome, RunRecord
from eventd.ports import Ran
from eventd.telemetry import billed_ms

MESSAGE_LIMIT = 1024


class Running(Struct, gc=False):
    """What the shell keeps of a run while it is carried out. Times in epoch ms."""

    start: Start
    event: str
    source: str
    received_at: int
    due_at: int
    started_at: int
    bytes_in: int
    queue_ms: float


def thousandths(ms: float) -> float:
    """Rounded to microseconds; `round` itself costs five times as much."""
    return int(ms * 1000 + 0.5) / 1000


@lru_cache(maxsize=1024)
def _gb_seconds(memory_mib: int, billed: int) -> float:
    return round(memory_mib / 1024 * billed / 1000, 9)


def of_run(running: Running, ran: Ran, function: FunctionSettings, boot: str, invocation: str) -> RunRecord:
    """The record of a run that a worker carried out (or that was killed)."""
    start, members, memory = running.start, running.start.members, function.memory_mib
    duration = int(ran.duration_ms * 1000 + 0.5) / 1000
    init = None if ran.init_ms is None else thousandths(ran.init_ms)
    billed = billed_ms(init, duration, timeout_ms=function.timeout_ms if ran.outcome is Outcome.TIMED_OUT else None)
    message = ran.error_message
    return RunRecord(
        run=start.run,
        invocation=invocation,
        event=running.event,
        source=running.source,
        batch=len(members) or 1,
        function=start.function,
        version=ran.version,
        trigger=start.trigger,
        binding=start.binding,
        lane=start.lane,
        attempt=members[0].attempt if members else 1,
        outcome=ran.outcome,
        cold=ran.cold,
        received_at=running.received_at,
        started_at=running.started_at,
        ended_at=running.started_at + int(duration + (init or 0.0) + 0.5),
        queue_ms=running.queue_ms,
        init_ms=init,
        duration_ms=duration,
        billed_ms=billed,
        cpu_ms=int(ran.cpu_ms * 1000 + 0.5) / 1000,
        memory_mb=memory,
        max_memory_mb=ran.max_memory_mb,
        gb_seconds=_gb_seconds(memory, billed),
        bytes_in=running.bytes_in,
        bytes_out=len(ran.payload),
        output_bytes=ran.output_bytes,
        output_truncated=ran.output_truncated,
        exit_status=ran.exit_status,
        signal=ran.signal,
        error_type=ran.error_type,
        error_message=message[:MESSAGE_LIMIT] if message else message,
        worker=ran.worker,
        boot=boot,
    )


def of_lost(
    *, run: str, event: EventRow, invocation: str, attempt: int, batch: int, function: FunctionSettings | None, name: str,
    binding: str | None, lane: Any, began_at: int, due_at: int, now: int, boot: str
) -> RunRecord:  # fmt: skip
    """The record of a run that was going on when the daemon died: `duration_ms` is 0, a lower bound, and it ended at boot."""
    return RunRecord(
        run=run, invocation=invocation, event=event.id, source=event.source, batch=batch, function=name, version="", trigger=event.trigger,
        binding=binding, lane=lane, attempt=attempt, outcome=Outcome.LOST, cold=False, received_at=event.received_at,
        started_at=began_at, ended_at=now, queue_ms=float(max(0, began_at - due_at)), init_ms=None, duration_ms=0.0, billed_ms=0,
        cpu_ms=0.0, memory_mb=function.memory_mib if function else 0, max_memory_mb=0, gb_seconds=0.0, bytes_in=len(event.data),
        bytes_out=0, output_bytes=0, output_truncated=False, exit_status=None, signal=None, error_type="Eventd.Lost",
        error_message="the daemon stopped while this run was going on", worker="", boot=boot,
    )  # fmt: skip


def decoded(payload: bytes) -> Any:
    """A payload as a value. File names that are not UTF-8 travel as lone surrogates (D22), which the fast decoder refuses."""
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return json.loads(payload)


def join_records(payloads: list[bytes]) -> bytes:
    """One event out of several: their `Records` lists joined, everything else from the first (a batch of one kind of event)."""
    first: Any = None
    records: list[Any] = []
    for payload in payloads:
        value = decoded(payload)
        if first is None:
            first = value
        if isinstance(value, dict) and isinstance(value.get("Records"), list):
            records.extend(value["Records"])
        else:
            records.append(value)
    joined = dict(first) if isinstance(first, dict) else {}
    joined["Records"] = records
    try:
        return msgspec.json.encode(joined)
    except UnicodeEncodeError:
        return json.dumps(joined).encode()
