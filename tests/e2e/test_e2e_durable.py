"""kill -9 in the middle (point 4), drain, a second daemon."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter

import httpx
import pytest
from e2e_site import Site

SLOW = """
import json, time
def handler(event, context):
    time.sleep(0.01)
    return json.loads(event["body"])["n"]
"""


@pytest.mark.timeout(120)
def test_a_thousand_events_survive_kill_9_in_the_middle(site: Site) -> None:
    site.handler("slow.py", SLOW)
    site.write('[functions.slow]\nconcurrency = 4\n[triggers.web]\ntype = "webhook"\npath = "/w"\nmode = "async"\nfunction = "slow"\n')
    site.start()
    events = []
    with httpx.Client() as client:
        for number in range(1000):
            answer = client.post(f"{site.url}/w", json={"n": number}, headers={"idempotency-key": f"k{number}"})
            assert answer.status_code == 202
            events.append(answer.json()["event"])
    site.until(lambda: len(site.runs(outcome="succeeded")) >= 100, "a hundred runs")
    site.kill()
    site.start()
    site.until(lambda: site.api("/v1/status")["journal"]["open"] == 0, "everything to be settled", 60)
    runs = site.runs()
    assert len(runs) < 10_000
    succeeded = Counter(run["event"] for run in runs if run["outcome"] == "succeeded")
    assert set(succeeded) == set(events)
    assert set(succeeded.values()) == {1}
    lost = [run for run in runs if run["outcome"] == "lost"]
    assert len(lost) <= 4
    again = {run["invocation"] for run in runs if run["outcome"] == "succeeded" and run["attempt"] == 2}
    assert {run["invocation"] for run in lost} == again
    assert site.stop() == 0


def test_records_are_a_plain_table_and_the_counters_equal_the_rows(site: Site) -> None:
    site.handler("f.py", "def handler(event, context):\n    if event.get('bad'):\n        raise ValueError('no')\n    return 1\n")
    site.write('[control]\nlisten = ["127.0.0.1:0"]\n')
    site.start()
    for body in ("{}", '{"bad": true}', "{}"):
        site.cli("invoke", "f", "-d", body, check=False)
    boot = site.api("/v1/status")["boot"]
    address = site.api("/v1/status")["listen"]["control"][1]
    metrics = httpx.get(f"http://{address}/metrics").text
    assert 'eventd_runs_total{function="f",outcome="succeeded"} 2.0' in metrics
    assert 'eventd_runs_total{function="f",outcome="failed"} 1.0' in metrics
    site.cli("runs")
    with contextlib.closing(sqlite3.connect(site.state / "runs.db")) as db:
        rows = db.execute("select outcome, count(*) from runs where boot = ? group by outcome order by outcome", (boot,)).fetchall()
    assert rows == [("failed", 1), ("succeeded", 2)]
    assert "REPORT RequestId: " in site.printed()


def test_sigterm_lets_a_run_finish_and_refuses_new_ones(site: Site) -> None:
    site.handler(
        "wait.py",
        "import os, time\ndef handler(event, context):\n    while not os.path.exists(event['file']):\n        time.sleep(0.01)\n    return 'done'\n",
    )
    site.start()
    gate = site.root / "gate"
    site.cli("invoke", "wait", "--async", "-d", json.dumps({"file": str(gate)}))
    site.until(lambda: site.api("/v1/status")["running"] == 1, "the run to start")
    assert site.process is not None
    site.process.terminate()
    site.until(lambda: "stopping: 1 runs" in site.printed(), "the drain")
    assert site.cli("invoke", "wait", check=False).returncode == 1
    gate.touch()
    assert site.process.wait(20) == 0
    with contextlib.closing(sqlite3.connect(site.state / "runs.db")) as db:
        assert db.execute("select outcome from runs").fetchall() == [("succeeded",)]


def test_a_second_daemon_on_the_same_state_is_refused(site: Site) -> None:
    site.start()
    done = site.cli("serve", check=False)
    assert done.returncode == 4
    assert "E-LOCKED" in done.stderr


def test_dead_events_are_listed_redriven_and_discarded(site: Site) -> None:
    site.handler("f.py", "def handler(event, context):\n    raise ValueError('no')\n")
    site.write('[functions.f]\nretry = { attempts = 2, waits = ["10ms"] }\n')
    site.start()
    sent = json.loads(site.cli("invoke", "f", "--async", "--json", "-d", '{"a": 1}').stdout)
    dead = site.until(lambda: site.api("/v1/dead")["dead"], "the event to be dead")
    assert (dead[0]["invocation"], dead[0]["reason"], dead[0]["attempts"]) == (sent["invocation"], "retries_exhausted", 2)
    assert dead[0]["error_type"] == "ValueError"
    site.handler("f.py", "def handler(event, context):\n    return event\n")
    site.until(lambda: site.cli("invoke", "f", check=False).returncode == 0, "the mended handler")
    assert site.json("redrive", sent["invocation"]) == {"redriven": 1, "invocations": [sent["invocation"]]}
    site.until(lambda: not site.api("/v1/dead")["dead"] and not site.api("/v1/status")["journal"]["open"], "the redriven run")
    events = site.json("events", sent["event"])["events"]
    assert events[0]["invocations"][0]["end"] == "succeeded"
    assert site.cli("redrive", sent["invocation"], check=False).returncode == 1


def test_async_invoke_with_an_id_is_idempotent(site: Site) -> None:
    site.handler("f.py", "def handler(event, context):\n    return 1\n")
    site.start()
    first = site.json("invoke", "f", "--async", "--id", "order-1", "-d", '{"a": 1}')
    assert site.json("invoke", "f", "--async", "--id", "order-1", "-d", '{"a": 1}') == first
    other = site.cli("invoke", "f", "--async", "--id", "order-1", "-d", '{"a": 2}', check=False)
    assert other.returncode == 1
    assert "E-CONFLICT" in other.stderr
    site.until(lambda: site.runs(), "the run")
    assert len(site.runs()) == 1


def test_pause_holds_events_and_resume_runs_them(site: Site) -> None:
    site.handler("f.py", "def handler(event, context):\n    return 1\n")
    site.start()
    site.cli("pause", "function:f")
    site.cli("invoke", "f", "--async")
    assert site.cli("invoke", "f", check=False).returncode == 1
    assert site.json("events")["events"][0]["invocations"][0]["state"] == "held"
    site.stop()
    site.start()
    assert site.json("events", "--state", "held")["events"]
    site.cli("resume", "function:f")
    site.until(lambda: site.runs(), "the held run")


def test_a_taken_port_is_found_before_any_work_begins(site: Site) -> None:
    import socket

    site.handler("slow.py", "import time\ndef handler(event, context):\n    time.sleep(0.2)\n    return 1\n")
    site.start()
    site.cli("pause", "function:slow")
    site.cli("invoke", "slow", "--async")
    site.cli("resume", "function:slow")
    site.kill()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        good = site.config.read_text()
        site.config.write_text(good.replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"))
        for _ in range(4):
            refused = site.cli("serve", check=False)
            assert refused.returncode == 2
            assert "E-LISTEN" in refused.stderr
            assert "E-INTERNAL" not in refused.stderr
        site.config.write_text(good)
    site.start()
    site.until(lambda: site.runs(outcome="succeeded"), "the event to run")
    assert not site.api("/v1/dead")["dead"]
