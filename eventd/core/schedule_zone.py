"""From naive local times to UTC instants, through gaps and folds of a time zone (D21).

A zone is cut into stretches of constant offset. Each stretch knows how far the local clock had already got before it
began (`reached`): a stretch that begins later than that follows a gap, one that begins earlier repeats local time (a fold).
With that, the three manners of a clock change are three ways to read the same list. All times here are whole seconds:
UTC since the epoch, local as `date.toordinal() * 86400` plus the second of the day.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

from eventd.core.schedule_days import Days

__all__ = ["Manner", "Pieces", "TimesOfDay", "local_second", "pieces"]

_DAY = 86_400
_EPOCH_LOCAL = datetime(1970, 1, 1).toordinal() * _DAY
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROBE = 3 * 3_600
"""No zone has had two changes within three hours."""
_LOOK_BACK = 3 * _DAY
"""A fold never repeats more than a day (Kwajalein 1969, Manila 1844)."""


class Manner(Enum):
    """What a clock change does to a local time."""

    FIXED = "fixed"
    """In a gap: at the first valid instant, once however many times fall into it. In a fold: on the first pass."""
    REAL = "real"
    """In a gap: not at all. In a fold: on both passes."""
    SKIP = "skip"
    """In a gap: not at all. In a fold: on the first pass."""


@dataclass(frozen=True, slots=True)
class TimesOfDay:
    """The product of hours, minutes and seconds as a sorted sequence of seconds of the day, never written out."""

    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.hours) * len(self.minutes) * len(self.seconds)

    def below(self, second: int) -> int:
        """How many are earlier than this second of the day (which may be the whole day, 86,400)."""
        hour, rest = divmod(second, 3_600)
        minute, rest = divmod(rest, 60)
        count, hours = 0, bisect_left(self.hours, hour)
        count += hours * len(self.minutes) * len(self.seconds)
        if hours < len(self.hours) and self.hours[hours] == hour:
            minutes = bisect_left(self.minutes, minute)
            count += minutes * len(self.seconds)
            if minutes < len(self.minutes) and self.minutes[minutes] == minute:
                count += bisect_left(self.seconds, rest)
        return count

    def __getitem__(self, index: int) -> int:
        index, second = divmod(index, len(self.seconds))
        hour, minute = divmod(index, len(self.minutes))
        return self.hours[hour] * 3_600 + self.minutes[minute] * 60 + self.seconds[second]


@dataclass(frozen=True, slots=True)
class _Stretch:
    start: int
    end: int
    offset: int
    reached: int
    """Local time that had been reached before this stretch; its own local start when nothing changed."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Local times [low, high) that become UTC by taking `offset` away; or, with `at`, that all fire at that one instant."""

    low: int
    high: int
    offset: int
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Pieces:
    """The ticks of a UTC window in order: countable without listing them, readable from either end."""

    parts: tuple[_Piece, ...]
    days: list[int]
    times: TimesOfDay

    def count(self) -> int:
        return sum(self._size(part) for part in self.parts)

    def first(self) -> int | None:
        for part in self.parts:
            if (low := self._rank(part.low)) < self._rank(part.high):
                return self._instant(part, low)
        return None

    def newest(self) -> Iterator[int]:
        """UTC seconds, latest first, all different."""
        for part in reversed(self.parts):
            if part.at is not None:
                if self._size(part):
                    yield part.at
                continue
            low = self._rank(part.low)
            for rank in range(self._rank(part.high) - 1, low - 1, -1):
                yield self._instant(part, rank)

    def _size(self, part: _Piece) -> int:
        size = self._rank(part.high) - self._rank(part.low)
        return size if part.at is None else min(size, 1)

    def _instant(self, part: _Piece, rank: int) -> int:
        if part.at is not None:
            return part.at
        day, time = divmod(rank, len(self.times))
        return self.days[day] * _DAY + self.times[time] - part.offset - _EPOCH_LOCAL

    def _rank(self, local: int) -> int:
        """How many local times of these days are earlier than `local`."""
        day, second = divmod(local, _DAY)
        at = bisect_left(self.days, day)
        inside = self.times.below(second) if at < len(self.days) and self.days[at] == day else 0
        return at * len(self.times) + inside


def pieces(zone: ZoneInfo, manner: Manner, days: Days, times: TimesOfDay, start: int, end: int) -> Pieces:
    """The ticks at UTC seconds `start` <= tick < `end`."""
    parts: list[_Piece] = []
    for stretch in _stretches(zone, start - _LOOK_BACK, end):
        if stretch.end <= start:
            continue
        begin = _local(max(start, stretch.start), stretch.offset)
        if manner is not Manner.REAL:
            own = _local(stretch.start, stretch.offset)
            if manner is Manner.FIXED and stretch.start >= start and own > stretch.reached:
                # The gap, and the first valid second itself, which would be the same instant.
                parts.append(_Piece(stretch.reached, own + 1, stretch.offset, stretch.start))
                begin = own + 1
            begin = max(begin, stretch.reached)
        finish = _local(stretch.end, stretch.offset)
        if begin < finish:
            parts.append(_Piece(begin, finish, stretch.offset))
    if not parts:
        return Pieces((), [], times)
    first, last = min(part.low for part in parts) // _DAY, max(part.high for part in parts) // _DAY
    return Pieces(tuple(parts), days.between(first, last), times)


def local_second(zone: ZoneInfo, second: int) -> int:
    """The local time of a UTC second."""
    return _local(second, _offset(zone, second))


def _local(second: int, offset: int) -> int:
    return second + offset + _EPOCH_LOCAL


def _offset(zone: ZoneInfo, second: int) -> int:
    found = (_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
    assert found is not None
    return round(found.total_seconds())


def _stretches(zone: ZoneInfo, start: int, end: int) -> list[_Stretch]:
    found: list[_Stretch] = []
    offset = _offset(zone, start)
    begin, reached = start, _local(start, offset)
    probe = start
    while probe < end:
        ahead = min(probe + _PROBE, end)
        if (new := _offset(zone, ahead)) != offset:
            low, high = probe, ahead
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            found.append(_Stretch(begin, high, offset, reached))
            reached = max(reached, _local(high, offset))
            begin, offset = high, new
        probe = ahead
    found.append(_Stretch(begin, end, offset, reached))
    return [stretch for stretch in found if stretch.start < stretch.end]
