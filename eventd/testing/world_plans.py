"""How rough the simulated worlds are, by name. `SUITE` says how many seeds of each the normal suite lives through."""

from __future__ import annotations

from msgspec import Struct


class Plan(Struct, frozen=True, kw_only=True):
    """One kind of world. Counts are over the whole horizon; probabilities are per event of that kind."""

    horizon_ms: int = 30_000
    concurrency: int = 4
    caps: tuple[int, ...] = (1, 2, 3, 2)
    """f0 and f1 take web events, f1 takes asynchronous invokes too, f2 takes ticks, f3 takes files in batches."""
    crashes: int = 5
    spread: int = 600
    """The next crash comes at most this many crash points after the last one; small distances are as likely as large ones."""
    events: int = 16
    ticks: bool = True
    files: int = 6
    invokes: int = 4
    calls: int = 10
    fail: float = 0.15
    inline: float = 0.03
    """A run that ends before `Pool.run` returns."""
    longest_ms: int = 400
    duplicate: float = 0.2
    conflict: float = 0.1
    anonymous: float = 0.1
    stubborn: float = 0.7
    notify: float = 0.3
    poison: float = 0.0
    """Events that kill the daemon while they run. With them there is no other crash."""
    pauses: int = 1
    cancels: int = 3
    redrives: int = 2
    discards: int = 1
    reloads: int = 1
    clock_steps: int = 1
    drains: int = 0
    stops: int = 0
    overloads: int = 1
    batch: int = 3
    batch_window_ms: int = 200
    trigger_cap: int = 0
    rate: tuple[int, int] | None = None
    """(count, per_ms) of f1."""
    max_age_ms: int = 0
    """Of f0."""
    burst: int = 0
    """Further web events that all come within one second."""
    window: int = 0
    """Rows of a queue in memory, ready and later ones each; 0: as in production."""
    fair: bool = False
    """Every function always has work: hold the round robin."""
    calm_ms: int = 60_000
    """Virtual time after the last fault within which everything open must have ended."""


PLANS: dict[str, Plan] = {
    "mixed": Plan(),
    "people": Plan(
        crashes=4, pauses=4, cancels=10, redrives=6, discards=4, reloads=4, clock_steps=2, fail=0.5, notify=0.9, events=20, calls=6
    ),
    "stops": Plan(crashes=2, stops=4, drains=3, calls=14, longest_ms=1_500, events=14, overloads=0),
    "crowded": Plan(
        concurrency=2, caps=(2, 1, 1, 2), trigger_cap=1, rate=(3, 1_000), max_age_ms=6_000, crashes=3, calls=30, events=24, files=12,
        reloads=5, longest_ms=600,
    ),
    "backlog": Plan(
        window=6, burst=60, horizon_ms=20_000, crashes=3, spread=1_500, events=6, files=20, calls=2, fail=0.3, cancels=8, redrives=4,
        clock_steps=2, longest_ms=150,
    ),
    "fair": Plan(
        fair=True, burst=40, horizon_ms=10_000, concurrency=2, caps=(2, 2, 2, 2), crashes=1, spread=2_000, events=4, files=20, batch=1,
        invokes=4, calls=0, ticks=False, cancels=0, pauses=0, redrives=0, discards=0, reloads=0, clock_steps=0, overloads=0,
    ),
    "poison": Plan(
        poison=0.35, horizon_ms=15_000, concurrency=8, caps=(4, 4, 2, 3), crashes=0, events=24, files=8, calls=6, longest_ms=60, pauses=0,
        cancels=0, redrives=0, discards=0, reloads=0, clock_steps=0, overloads=0,
    ),
}  # fmt: skip

SUITE: dict[str, int] = {"mixed": 120, "people": 120, "stops": 80, "crowded": 70, "backlog": 60, "fair": 30, "poison": 60}
