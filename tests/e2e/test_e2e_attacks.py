"""Handlers that misbehave (point 5): each has its own outcome, and no process is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from e2e_site import Site

HANDLERS = {
    "sleeps.py": "import time\ndef handler(event, context):\n    time.sleep(60)\n",
    "eats.py": "def handler(event, context):\n    hold = []\n    while True:\n        hold.append(bytearray(1024 * 1024 * 8))\n",
    "exits.py": "import os\ndef handler(event, context):\n    os._exit(7)\n",
    "segfaults.py": "import os, signal\ndef handler(event, context):\n    os.kill(os.getpid(), signal.SIGSEGV)\n",
    "forks.py": """
        import os, time
        def handler(event, context):
            pids = []
            for _ in range(20):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.execve("/bin/sleep", ["eventd-test-daemon", "300"], {})
                    os._exit(0)
            return os.getpid()
    """,
}
EXPECTED = {
    "sleeps": ("timed_out", "Sandbox.Timedout"),
    "eats": ("out_of_memory", "Runtime.OutOfMemory"),
    "exits": ("crashed", "Runtime.ExitError"),
    "segfaults": ("crashed", "Runtime.ExitError"),
    "forks": ("succeeded", None),
}


def test_each_attack_has_its_outcome_and_leaves_nothing(site: Site) -> None:
    for name, text in HANDLERS.items():
        site.handler(name, text)
    site.write('[functions.sleeps]\ntimeout = "300ms"\ngrace = "100ms"\n[functions.eats]\nmemory = "96MiB"\n')
    site.start()
    for name, (outcome, error) in EXPECTED.items():
        site.cli("invoke", name, check=False)
        run = site.runs(function=name)[0]
        assert (run["outcome"], run["error_type"]) == (outcome, error), name
    assert site.runs(function="exits")[0]["exit_status"] == 7
    assert site.runs(function="segfaults")[0]["signal"] == 11
    site.until(lambda: not _named("eventd-test-daemon"), "the forked daemons to be gone")
    below = site.children()
    assert site.stop() == 0
    left = [pid for pid in below if _alive(pid)]
    assert left == []


def _named(name: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if name.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(120)
def test_a_gibibyte_of_output_leaves_the_daemon_as_it_was(site: Site) -> None:
    site.handler("small.py", "def handler(event, context):\n    return 1\n")
    site.handler("prints.py", "def handler(event, context):\n    line = 'x' * 65535\n    for _ in range(16384):\n        print(line)\n")
    site.start()
    for _ in range(5):
        site.cli("invoke", "small")
    assert site.process is not None
    before = rss_mib(site.process.pid)
    site.cli("invoke", "prints", timeout=100)
    run = site.runs(function="prints")[0]
    assert run["outcome"] == "succeeded"
    assert run["output_bytes"] == 16384 * 65536
    assert run["output_truncated"] is True
    assert rss_mib(site.process.pid) - before < 40


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_a_cap_of_two_is_never_three(site: Site) -> None:
    code = "import time\ndef handler(event, context):\n    t = time.time()\n    time.sleep(0.05)\n    return [t, time.time()]\n"
    site.handler("two.py", code)
    site.write("[functions.two]\nconcurrency = 2\n")
    site.start()
    for _ in range(12):
        site.cli("invoke", "two", "--async")
    runs = site.until(lambda: (found := site.runs(outcome="succeeded")) and len(found) == 12 and found, "twelve runs")
    instants = sorted([(r["started_at"], 1) for r in runs] + [(r["ended_at"], -1) for r in runs])
    running = most = 0
    for _, change in instants:
        running += change
        most = max(most, running)
    assert most <= 2
