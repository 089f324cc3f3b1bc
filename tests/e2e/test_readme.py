"""The README is true: every console block is executed, every table that repeats the code is held equal to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventd.errors import CODES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in BLOCKS]


def test_every_block_is_one_of_those_executed_below() -> None:
    assert [len(commands) for commands in COMMANDS] == [1, 1, 2, 3, 4]
    assert all(line.startswith("$ ") for block in BLOCKS for line in block.splitlines())


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without anything that was built in it."""
    target = tmp_path_factory.mktemp("clone") / "eventd"
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "build", ".hypothesis", "state")
    shutil.copytree(ROOT, target, ignore=ignored, symlinks=True)
    return target


@pytest.fixture(scope="module")
def installed(clone: Path) -> tuple[Path, str]:
    """Block 1, as a newcomer runs it, until it has shown a run of each trigger; then Ctrl-C. Its output, and the clone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "PYTHON", "VIRTUAL_ENV"))}
    output = clone / "demo-output"
    with output.open("wb") as file:
        shell = subprocess.Popen(
            ["bash", "-c", COMMANDS[0][0]], cwd=clone, stdout=file, stderr=file, start_new_session=True, env=environment
        )
    deadline = time.monotonic() + 240
    wanted = {"uploads", "heartbeat", "shop"}
    while not wanted <= set(re.findall(r"^(\w+) +\w+ +succeeded", output.read_text(), re.M)):
        assert shell.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    os.killpg(shell.pid, signal.SIGINT)
    assert shell.wait(30) == 0, output.read_text()
    return clone, output.read_text()


@pytest.mark.timeout(300)
def test_the_first_command_ends_in_the_demo(installed: tuple[Path, str]) -> None:
    _, text = installed
    assert "Drop a CSV file into" in text
    assert "failed" not in text


def test_the_second_command_is_what_runs_this_test_in_ci() -> None:
    assert COMMANDS[1] == ["tests/run"]
    assert "tests/run" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.timeout(300)
def test_set_it_up_in_five_minutes(installed: tuple[Path, str]) -> None:
    clone, _ = installed
    init, serve = COMMANDS[2]
    run(clone, init)
    site = clone / "site"
    config = site / "eventd.toml"
    config.write_text(config.read_text().replace("127.0.0.1:8080", "127.0.0.1:0"))  # the machine that tests may use 8080
    with (clone / "serve-output").open("wb") as log:
        daemon = subprocess.Popen(["bash", "-c", f"exec {serve}"], cwd=clone, stdout=log, stderr=log)
    try:
        export, status, invoke = COMMANDS[3]
        until(lambda: run(clone, f"{export}; {status}", check=False)[0] == 0, clone)
        assert json.loads(run(clone, f"{export}; {invoke}")[1])["message"] == "Hello, Ada!"
        handler = re.search(r"^```python\n# site/handlers/thumb.py\n(.*?)^```$", README, re.S | re.M)
        binding = re.search(r"^```toml\n(\[triggers.uploads\].*?)^```$", README, re.S | re.M)
        assert handler is not None
        assert binding is not None
        (site / "handlers" / "thumb.py").write_text(handler[1])
        (site / "conf.d" / "uploads.toml").write_text(binding[1].replace('"inbox"', '"../inbox"'))
        mkdir, check, touch, runs = COMMANDS[4]
        run(clone, mkdir)
        run(clone, f"{export}; {check}")
        up = f"{export}; eventd status --json"
        until(lambda: any(t["trigger"] == "uploads" and t["state"] == "up" for t in json.loads(run(clone, up)[1])["triggers"]), clone)
        run(clone, touch)
        began = time.monotonic()
        until(lambda: "uploads" in run(clone, f"{export}; {runs}")[1], clone)
        assert time.monotonic() - began < 30
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0


def run(cwd: Path, command: str, check: bool = True) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTD_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.returncode, done.stdout


def until(true: object, clone: Path) -> None:
    deadline = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, (clone / "serve-output").read_text()
        time.sleep(0.1)


def test_the_table_of_codes_is_the_code() -> None:
    table = re.search(r"<!-- codes:.*?-->\n(.*?)<!-- /codes -->", README, re.S)
    assert table is not None
    rows = re.findall(r"^\| `([EW]-[A-Z]+)` \| (\S+) \| (.*) \|$", table[1], re.M)
    assert rows == [(code, str(known.exit) if code[0] == "E" else "-", known.meaning) for code, known in CODES.items()]


def test_every_code_is_used_and_every_used_code_is_known() -> None:
    text = "".join(
        path.read_text() for folder in ("eventd", "plugins") for path in (ROOT / folder).rglob("*.py") if path.name != "errors.py"
    )
    used = set(re.findall(r"\b([EW]-[A-Z]{3,})\b", text))
    assert used - CODES.keys() == set()
    assert CODES.keys() - used == set()


def test_every_verb_is_in_the_readme() -> None:
    text = subprocess.run([sys.executable, "-m", "eventd", "--help"], capture_output=True, text=True, check=True).stdout
    verbs = re.findall(r"^  ([a-z]+)  ", text.partition("Verbs:")[2], re.M)
    assert len(verbs) >= 19
    missing = [verb for verb in verbs if not re.search(rf"\b{verb}\b", README)]
    assert missing == []
