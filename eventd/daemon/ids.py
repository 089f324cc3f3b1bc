"""Ids and chance for the shell. Random bytes come from one 4-KiB read at a time: a system call per id shows on the hot path."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache

_IDS = 409
"""Ids in one block of 4 KiB: each takes ten random bytes, of which six bits are the version and the variant."""
_KEEP = int.from_bytes(bytes.fromhex("0fff3fffffffffffffff") * _IDS)
_SET = int.from_bytes(bytes.fromhex("70008000000000000000") * _IDS)


class Dice:
    """UUIDv7 (RFC 9562) as text, and uniform numbers."""

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0
        self._ms = -1
        self._time = ""
        self._random = random.Random(os.urandom(16))

    def uniform(self) -> float:
        return self._random.random()

    def id(self) -> str:
        at, digits = self._at, self._digits
        if at == len(digits):
            # version 7 and variant 0b10, set in all of them at once
            digits = self._digits = f"{int.from_bytes(os.urandom(10 * _IDS)) & _KEEP | _SET:0{20 * _IDS}x}"
            at = 0
        self._at = at + 20
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            text = f"{ms:012x}"
            self._ms, self._time = ms, f"{text[:8]}-{text[8:]}"
        return f"{self._time}-{digits[at : at + 4]}-{digits[at + 4 : at + 8]}-{digits[at + 8 : at + 20]}"


@lru_cache(maxsize=64)
def _trace_time(milliseconds: str) -> str:
    return f"Root=1-{int(milliseconds.replace('-', ''), 16) // 1000:08x}-"


def trace_root(invocation: str) -> str:
    """An X-Ray trace header derived from an invocation's id (which begins with its time), so that it costs no randomness."""
    if len(invocation) != 36:
        return ""
    try:
        return f"{_trace_time(invocation[:13])}{invocation[9:].replace('-', '')};Sampled=0"
    except ValueError:
        return ""  # an id from outside
