"""Seeded worlds over the real dispatcher, engine, intake and the journal's contract: every promise holds in every one of them.

A failing seed shows the history that led to the problem and the one command that lives through it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from msgspec import Struct

from eventd.testing.world import PLANS, SUITE, live, main, suite
from eventd.testing.world_parts import POINTS

CHUNK = 10
MORE = 200
CHUNKS = [(plan, first) for plan, seeds in SUITE.items() for first in range(0, seeds, CHUNK)]


class Lived(Struct, frozen=True):
    """What is kept of a world."""

    digest: str
    report: str
    died_at: dict[str, int]
    passed: frozenset[str]
    lines: int


@cache
def lived(plan: str, seed: int) -> Lived:
    world = live(seed, PLANS[plan])
    return Lived(
        world.digest, world.report(plan) if world.problems else "", dict(world.died_at), frozenset(world.points), len(world.history)
    )


@pytest.mark.parametrize(("plan", "first"), CHUNKS, ids=lambda value: str(value))
def test_every_promise_holds_in_worlds(plan: str, first: int) -> None:
    for seed in range(first, min(first + CHUNK, SUITE[plan])):
        assert not lived(plan, seed).report, lived(plan, seed).report


@pytest.mark.parametrize(("plan", "first"), CHUNKS, ids=lambda value: str(value))
def test_a_seed_lived_through_twice_has_the_same_history(plan: str, first: int) -> None:
    for seed in range(first, min(first + CHUNK, SUITE[plan])):
        again = live(seed, PLANS[plan])
        assert again.digest == lived(plan, seed).digest, f"seed {seed} of plan '{plan}' is not the same twice"


def test_the_suite_is_large_and_its_worlds_are_different() -> None:
    worlds = list(suite())
    assert len(worlds) == len(set(worlds)) >= 500
    assert len({lived(plan, seed).digest for seed, plan in worlds}) == len(worlds)
    assert min(lived(plan, seed).lines for seed, plan in worlds) > 30


def test_a_process_dies_at_every_place_where_it_can() -> None:
    died: Counter[str] = Counter()
    passed: set[str] = set()
    for seed, plan in suite():
        died.update(lived(plan, seed).died_at)
        passed |= lived(plan, seed).passed
    assert passed == set(POINTS)
    more = iter(range(SUITE["people"], SUITE["people"] + MORE))  # the rarest places may want a few worlds more
    while [point for point in POINTS if not died[point]]:
        seed = next(more, None)
        assert seed is not None, f"nobody dies at {[point for point in POINTS if not died[point]]}"
        died.update(lived("people", seed).died_at)


def test_a_history_does_not_hang_on_the_order_of_sets() -> None:
    chosen = [(plan, seed) for plan in SUITE for seed in range(3)]
    code = "from eventd.testing.world import PLANS, live\n" + "\n".join(
        f"print(live({seed}, PLANS['{plan}']).digest)" for plan, seed in chosen
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "4711"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.split() == [lived(plan, seed).digest for plan, seed in chosen]


def test_the_command_lives_through_a_world_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["3", "people"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0 boot 1"
    assert lines[-1] == "every promise held"
    assert len(lines) == lived("people", 3).lines + 2


@pytest.mark.parametrize("arguments", [[], ["x"], ["1", "nowhere"], ["1", "mixed", "2"]])
def test_the_command_says_how_it_is_used(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: python -m eventd.testing.world SEED" in capsys.readouterr().err
