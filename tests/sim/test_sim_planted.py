"""Planted bugs: each patch breaks one promise in a copy of the code, and the suite's own seeds must find it.

A patch that no longer applies is a failure too: whoever changed that line is asked to plant the bug again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eventd

PLANTED = sorted((Path(__file__).parent / "planted").glob("*.patch"))
ASKED_FOR = {
    "acknowledge-before-append", "owed-effect-forgotten", "tick-fired-twice", "lost-attempt-not-counted", "cap-exceeded-by-one",
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, compiled, from which each test makes its own."""
    root = tmp_path_factory.mktemp("planted")
    shutil.copytree(Path(eventd.__file__).parent, root / "eventd", ignore=shutil.ignore_patterns("__pycache__", "bootstrap", "cli"))
    return root


def environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(root), "GIT_CEILING_DIRECTORIES": str(root.parent)}


def planted(package: Path, root: Path, patch: Path) -> None:
    shutil.copytree(package, root)
    done = subprocess.run(["git", "apply", str(patch)], cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{patch.name} no longer applies; plant the bug again:\n{done.stderr}"
    changed = [
        path
        for path in root.rglob("*.py")
        if path.read_bytes() != (package / path.relative_to(root)).read_bytes()
    ]  # fmt: skip
    assert changed, f"{patch.name} changes nothing"


def live_through_the_suite(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eventd.testing.world", "suite"]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False, timeout=55)
    assert done.stdout.startswith(f"the code of {root}/eventd/core\n"), f"another copy was imported:\n{done.stdout[:200]}{done.stderr}"
    return done


def test_the_five_bugs_that_every_suite_must_find_are_planted() -> None:
    assert {path.stem for path in PLANTED} >= ASKED_FOR


@pytest.mark.parametrize("patch", PLANTED, ids=lambda path: path.stem)
def test_a_planted_bug_goes_red_within_the_suites_seeds(patch: Path, package: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    planted(package, root, patch)
    done = live_through_the_suite(root)
    assert done.returncode == 1, f"nobody noticed:\n{done.stdout}{done.stderr}"
    assert "to see it again: python -m eventd.testing.world" in done.stdout


def test_a_patch_that_does_not_apply_is_a_failure(package: Path, tmp_path: Path) -> None:
    patch = tmp_path / "stale.patch"
    patch.write_text(PLANTED[0].read_text().replace("\n-", "\n-# no such line "))
    with pytest.raises(AssertionError, match="no longer applies"):
        planted(package, tmp_path / "tree", patch)
