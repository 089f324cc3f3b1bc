"""The durable lane's entrance: filter, admit, store; then tell the dispatcher. The acknowledgement follows the fsync."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from eventd.core import signals as s
from eventd.core.admission import admit
from eventd.core.facts import Accepted, EventRow, LedgerWrite
from eventd.core.patterns import Pattern, compile_pattern
from eventd.daemon.engine import Engine
from eventd.daemon.records import decoded
from eventd.errors import EventdError
from eventd.model import BindingSettings
from eventd.ports import Stored
from eventd.sdk import Event, Receipt

ID_BYTES = 256
MAX_DATA = 6 * 1024**2
"""Largest payload of one event, Lambda's limit for a request (lambda.md 3.4)."""


class Counted(Protocol):
    def accepted(self, trigger: str) -> None: ...
    def duplicate(self, trigger: str) -> None: ...
    def filtered(self, binding: str) -> None: ...


class Bound:
    """A binding with its filter compiled once."""

    __slots__ = ("pattern", "settings", "taker")

    def __init__(self, settings: BindingSettings) -> None:
        self.settings = settings
        self.taker: tuple[str | None, str] = (settings.name, settings.function)
        self.pattern: Pattern | None = compile_pattern(settings.filter) if settings.filter is not None else None

    def takes(self, data: Any) -> bool:
        return self.pattern is None or self.pattern.matches(data)


def encoded(data: Any) -> bytes:
    """A payload as JSON. Raises EventdError(E-USAGE) for what JSON cannot hold or what is over the limit."""
    try:
        raw = bytes(data) if isinstance(data, (msgspec.Raw, bytes)) else msgspec.json.encode(data)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise EventdError("E-USAGE", f"an event's data is not JSON: {error}.", "Give plain dicts, lists, strings and numbers.") from error
    if len(raw) > MAX_DATA:
        raise EventdError("E-USAGE", f"an event of {len(raw)} bytes is over the limit of {MAX_DATA}.", "Pass large data by reference.")
    return raw


def short_id(text: str) -> str:
    """An id from outside, or its SHA-256 when it is longer than 256 bytes (D25)."""
    raw = text.encode("utf-8", "surrogateescape")
    return text if len(raw) <= ID_BYTES else hashlib.sha256(raw).hexdigest()


class Intake:
    """Accepts events for triggers and for asynchronous invokes. One object, on the loop."""

    def __init__(self, engine: Engine, counted: Counted, *, next_event: int, next_invocation: int) -> None:
        self.open = True
        self._engine = engine
        self._counted = counted
        self._next_event = next_event
        self._next_invocation = next_invocation

    def offer(
        self,
        trigger: str,
        event: Event,
        bindings: Sequence[Bound],
        done: Callable[[Receipt | EventdError], None],
        state: Mapping[bytes, bytes | None] | None,
    ) -> None:
        """Store an event and its invocations; `done` once, after the fsync or with the refusal."""
        try:
            data = encoded(event.data)
            filtered: list[str] = []
            takers: list[tuple[str | None, str]] = []
            parsed: Any = None
            for bound in bindings:
                if bound.pattern is not None and parsed is None:
                    parsed = decoded(data)
                if bound.takes(parsed):
                    takers.append(bound.taker)
                else:
                    filtered.append(bound.settings.name)
            ledger = tuple(LedgerWrite(key, value) for key, value in (state or {}).items())
        except (EventdError, ValueError, RecursionError) as error:
            done(error if isinstance(error, EventdError) else EventdError("E-USAGE", f"an event's data is not JSON: {error}."))
            return

        def stored(receipt: Receipt) -> None:
            if receipt.duplicate:
                self._counted.duplicate(trigger)
            else:
                self._counted.accepted(trigger)
                for name in filtered:
                    self._counted.filtered(name)

        self._accept(trigger, trigger, event, data, takers, ledger, (), done, stored)

    def invoke(self, function: str, data: bytes, *, id: str | None, invocation: str, done: Callable[[Receipt | EventdError], None]) -> None:
        """An asynchronous invoke, without trigger or binding. Its identity is (invoke/FUNCTION, id)."""
        event = Event(data=None, id=id)
        self._accept(f"invoke/{function}", None, event, data, [(None, function)], (), (invocation,), done, lambda receipt: None)

    def _accept(
        self,
        source: str,
        trigger: str | None,
        event: Event,
        data: bytes,
        takers: Sequence[tuple[str | None, str]],
        ledger: tuple[LedgerWrite, ...],
        ids: Sequence[str],
        done: Callable[[Receipt | EventdError], None],
        counted: Callable[[Receipt], None],
    ) -> None:
        if not self.open:
            done(EventdError("E-DRAINING", "the daemon takes no new events.", "They are taken again after the restart."))
            return
        engine = self._engine
        now = engine.clock.now_ms()
        seq, first = self._next_event, self._next_invocation
        self._next_event += 1
        self._next_invocation += len(takers)
        row = EventRow(
            seq=seq,
            id=short_id(event.id) if event.id is not None else engine.dice.id(),
            source=source,
            trigger=trigger,
            received_at=now,
            data=data,
            key=event.key,
            notify=event.notify,
            dedup=event.id is not None,
            fingerprint=event.fingerprint or hashlib.blake2b(data, digest_size=16).digest(),
        )
        rows = admit(
            engine.state, takers, event=seq, first_seq=first, now=now, dice=engine.dice, key=event.key, serial=event.serial,
            max_open=event.max_open, skip=event.skip, delay_ms=event.delay_ms, ids=ids,
        )  # fmt: skip

        def came(answer: Stored | EventdError) -> None:
            if isinstance(answer, EventdError):
                done(answer)
                return
            receipt = Receipt(answer.event, answer.duplicate)
            counted(receipt)
            if not answer.duplicate and rows:
                engine.remember(row)
                engine.tell(s.Arrived(rows))
            done(receipt)

        engine.journal.accept(Accepted(row, rows, ledger), came)
