"""Ids and chance for the shell. Random bytes come from one 4-KiB read at a time: a system call per id shows on the hot path."""

from __future__ import annotations

import os
import random
import time

_BLOCK = 4096
_NEED = 10


class Dice:
    """UUIDv7 (RFC 9562) as text, and uniform numbers."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0
        self._random = random.Random(os.urandom(16))

    def uniform(self) -> float:
        return self._random.random()

    def id(self) -> str:
        at = self._at
        if at + _NEED > len(self._block):
            self._block = os.urandom(_BLOCK)
            at = 0
        self._at = at + _NEED
        chance = int.from_bytes(self._block[at : at + _NEED])
        number = (time.time_ns() // 1_000_000 << 80) | chance
        # version 7 in bits 76..79, variant 0b10 in bits 62..63
        number = number & ~(0xF << 76) | (7 << 76)
        number = number & ~(0x3 << 62) | (2 << 62)
        text = f"{number:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def trace_root(invocation: str) -> str:
    """An X-Ray trace header derived from an invocation's id (which begins with its time), so that it costs no randomness."""
    digits = invocation.replace("-", "")
    return f"Root=1-{int(digits[:12], 16) // 1000:08x}-{digits[8:32]};Sampled=0" if len(digits) == 32 else ""
