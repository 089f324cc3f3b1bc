"""Listing parameters: text from a URL or a command line to `ports.Query`, and back. Pure: the time comes in as an argument.

Every unknown key, bad value or repeated single key is an E-USAGE that names it; nothing is ignored silently.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from eventd.errors import EventdError
from eventd.model import Outcome, Reason, State, rfc3339
from eventd.ports import Query
from eventd.settings.fields import parse_duration

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 10_000
LINES_DEFAULT: Final = 100
STATS_WINDOW_MS: Final = 86_400_000
_TEXT_MAX: Final = 512
_IDS_MAX: Final = 10_000

_LISTING: Final = frozenset({"limit", "cursor", "since", "until", "function", "trigger"})
RUNS_KEYS: Final = _LISTING | {"outcome", "invocation", "attempt"}
EVENTS_KEYS: Final = _LISTING | {"state", "payload", "event"}
DEAD_KEYS: Final = _LISTING | {"reason", "payload", "invocation"}
STATS_KEYS: Final = frozenset({"function", "since", "until", "price"})
LOGS_KEYS: Final = frozenset({"function", "run", "n", "since", "until", "cursor"})

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?(?:([Zz])|([+\- ])(\d\d:\d\d))")


def usage(message: str, hint: str = "") -> EventdError:
    return EventdError("E-USAGE", message, hint)


def parse_when(text: str, now_ms: int) -> int:
    """Epoch ms of a duration back from now ("15m") or of an RFC 3339 time. Raises ValueError with a sentence.

    A space where the offset's plus sign should be is taken as one: that is what a URL makes of an unescaped `+`.
    """
    try:
        return max(0, now_ms - parse_duration(text))
    except ValueError:
        found = _RFC3339.fullmatch(text)
    problem = f'{text!r} is neither a duration back from now ("15m") nor an RFC 3339 time ("2026-11-20T10:11:12Z")'
    if found is None:
        raise ValueError(problem)
    day, clock, fraction, _, sign, offset = found.groups()
    zone = "+00:00" if offset is None else ("-" if sign == "-" else "+") + offset
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}{zone}")
    except ValueError:
        raise ValueError(problem) from None
    millis = int((fraction or ".0")[1:4].ljust(3, "0"))
    return max(0, int(whole.timestamp()) * 1000 + millis)


class Params:
    """The key-value pairs of one request, checked against the keys that its route knows."""

    def __init__(self, items: Iterable[tuple[str, str]], known: frozenset[str]) -> None:
        self._values: dict[str, list[str]] = {}
        for raw, value in items:
            key = raw.replace("-", "_")
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), 1)
                raise usage(f"unknown parameter {raw!r}", f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}.")
            if len(value) > _TEXT_MAX or any(ord(char) < 32 for char in value):
                raise usage(f"parameter {raw!r} is too long or holds control characters", f"At most {_TEXT_MAX} characters.")
            values = self._values.setdefault(key, [])
            values.append(value)
            if len(values) > _IDS_MAX:
                raise usage(f"parameter {raw!r} is given more than {_IDS_MAX} times")

    def many(self, key: str) -> tuple[str, ...]:
        return tuple(self._values.get(key, ()))

    def one(self, key: str) -> str | None:
        values = self._values.get(key, [])
        if len(values) > 1:
            raise usage(f"parameter {key!r} is given {len(values)} times", "Give it once.")
        return values[0] if values and values[0] != "" else None

    def flag(self, key: str) -> bool:
        """A bare `key`, `key=1` and `key=true` are true; `0` and `false` are false."""
        value = self.one(key)
        if value is None:
            return key in self._values
        if value.lower() in ("1", "true", "yes"):
            return True
        if value.lower() in ("0", "false", "no"):
            return False
        raise usage(f"parameter {key!r} is {value!r}", "Write true or false.")

    def integer(self, key: str, low: int, high: int) -> int | None:
        value = self.one(key)
        if value is None:
            return None
        if not re.fullmatch(r"\d{1,12}", value) or not low <= int(value) <= high:
            raise usage(f"parameter {key!r} is {value!r}", f"Write a whole number from {low} to {high}.")
        return int(value)

    def when(self, key: str, now_ms: int) -> int | None:
        value = self.one(key)
        if value is None:
            return None
        try:
            return parse_when(value, now_ms)
        except ValueError as error:
            raise usage(f"parameter {key!r}: {error}") from None

    def choices(self, key: str, known: Sequence[str]) -> tuple[str, ...]:
        values = tuple(value for value in self.many(key) if value)
        for value in values:
            if value not in known:
                raise usage(f"parameter {key!r} is {value!r}", f"One of: {', '.join(known)}.")
        return values

    def choice(self, key: str, known: Sequence[str]) -> str | None:
        self.one(key)
        return next(iter(self.choices(key, known)), None)

    def query(self, now_ms: int, *, ids: str | None = None) -> Query:
        """All that the keys present say. `ids` is the key whose values select rows by id."""
        since, until = self.when("since", now_ms), self.when("until", now_ms)
        if since is not None and until is not None and since > until:
            raise usage("'since' is later than 'until'", "Exchange the two.")
        return Query(
            limit=self.integer("limit", 1, LIMIT_MAX) or LIMIT_DEFAULT,
            cursor=self.one("cursor"),
            since=since,
            until=until,
            function=self.one("function"),
            trigger=self.one("trigger"),
            outcomes=self.choices("outcome", tuple(Outcome)),
            invocation=None if ids == "invocation" else self.one("invocation"),
            attempt=self.integer("attempt", 1, 1_000_000),
            state=self.choice("state", tuple(State)),
            reason=self.choice("reason", tuple(Reason)),
            ids=tuple(value for value in self.many(ids) if value) if ids else (),
            payload=self.flag("payload"),
        )


def to_params(query: Query, *, ids: str | None = None) -> list[tuple[str, str]]:
    """The inverse of `Params.query`, for the client: only what differs from the defaults."""
    pairs: list[tuple[str, str]] = []
    if query.limit != LIMIT_DEFAULT:
        pairs.append(("limit", str(query.limit)))
    for key in ("cursor", "function", "trigger", "invocation", "state", "reason"):
        value = getattr(query, key)
        if value is not None:
            pairs.append((key, value))
    if query.since is not None:
        pairs.append(("since", rfc3339(query.since)))
    if query.until is not None:
        pairs.append(("until", rfc3339(query.until)))
    if query.attempt is not None:
        pairs.append(("attempt", str(query.attempt)))
    pairs += [("outcome", outcome) for outcome in query.outcomes]
    if ids is not None:
        pairs += [(ids, value) for value in query.ids]
    if query.payload:
        pairs.append(("payload", "true"))
    return pairs
