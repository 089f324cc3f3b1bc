"""What a new user does in the first five minutes (the issue's points 2, 3 and 7)."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import httpx
import pytest
from e2e_site import Site


def test_drop_a_handler_add_a_trigger_touch_a_file_without_a_restart(site: Site) -> None:
    site.start()
    site.handler("hello.py", "def handler(event, context):\n    return event['Records'][0]['s3']['object']['key']\n")
    site.until(lambda: any(f["function"] == "hello" for f in site.api("/v1/status")["functions"]), "the function to be seen")
    (site.root / "inbox").mkdir()
    site.write('[triggers.up]\ntype = "directory"\npath = "inbox"\nfunction = "hello"\n')
    site.until(lambda: [t for t in site.api("/v1/status")["triggers"] if t["state"] == "up"], "the trigger to be up")
    (site.root / "inbox" / "a b.txt").touch()
    run = site.until(site.runs, "the run")[0]
    assert (run["function"], run["trigger"], run["outcome"], run["lane"]) == ("hello", "up", "succeeded", "durable")
    assert "hello" in site.cli("runs").stdout


CODE = {
    "python": ("web.py", "def handler(event, context):\n    return {'statusCode': 200, 'body': 'VERSION'}\n", "def handler(:\n"),
    "node": ("web.js", "exports.handler = async () => ({ statusCode: 200, body: 'VERSION' });\n", "exports.handler = async ( => {\n"),
}
WEBHOOK = '[triggers.web]\ntype = "webhook"\npath = "/web"\nfunction = "web"\n'


def function_of(site: Site, name: str) -> dict[str, object]:
    found: dict[str, object] = next((f for f in site.api("/v1/status")["functions"] if f["function"] == name), {})
    return found


@pytest.mark.parametrize("runtime", ["python", "node"])
def test_a_broken_handler_keeps_the_last_good_version_and_a_mended_one_takes_over(site: Site, runtime: str) -> None:
    file, good, bad = CODE[runtime]
    site.handler(file, good.replace("VERSION", "one"))
    site.write(WEBHOOK)
    site.start()
    assert httpx.post(f"{site.url}/web").text == "one"
    site.handler(file, bad)
    site.until(lambda: "Runtime.UserCodeSyntaxError" in str(function_of(site, "web")["error"]), "the error in status")
    assert "web" in site.printed()
    assert "E-HANDLER" in site.printed()
    assert httpx.post(f"{site.url}/web").text == "one"
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def call() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                answer = client.post(f"{site.url}/web")
                answers.append((answer.status_code, answer.text))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        site.handler(file, good.replace("VERSION", "two"))
        site.until(lambda: answers and answers[-1][1] == "two", "the new version", 10)
    finally:
        stop.set()
        caller.join()
    assert {status for status, _ in answers} == {200}
    texts = [text for _, text in answers]
    assert texts == ["one"] * texts.count("one") + ["two"] * texts.count("two")


@pytest.mark.parametrize("runtime", ["python", "node"])
def test_one_that_was_never_good_is_502_with_a_run_record_and_works_when_mended(site: Site, runtime: str) -> None:
    file, good, bad = CODE[runtime]
    site.handler(file, bad)
    site.write(WEBHOOK)
    site.start()
    answer = httpx.post(f"{site.url}/web")
    assert (answer.status_code, answer.json()) == (502, {"message": "Internal Server Error"})
    run = site.runs()[0]
    assert (run["outcome"], run["error_type"]) == ("failed", "Runtime.UserCodeSyntaxError")
    site.handler(file, good.replace("VERSION", "mended"))
    site.until(lambda: httpx.post(f"{site.url}/web").text == "mended", "the mended version", 10)


def test_five_mistakes_give_five_errors_and_the_daemon_goes_on(site: Site) -> None:
    site.handler("web.py", CODE["python"][1])
    site.write(WEBHOOK)
    site.start()
    broken = '[triggers.web]\ntype = "webhook"\npath = "web"\nfunction = "wob"\ntiemout = 3\n[functions.web]\ntimeout = "3 parsecs"\nmemory = -1\n'
    site.write(broken)
    checked = site.cli("check", "--json", check=False)
    problems = json.loads(checked.stdout)["problems"]
    assert checked.returncode == 2
    errors = [problem for problem in problems if problem["severity"] == "error"]
    assert {(p["line"], p["path"]) for p in errors} >= {
        (5, "triggers.web.path"), (6, "triggers.web.function"), (7, "triggers.web.tiemout"), (9, "functions.web.timeout"),
        (10, "functions.web.memory"),
    }  # fmt: skip
    site.until(lambda: not site.api("/v1/status")["config"]["ok"], "the daemon to see it")
    assert site.cli("reload", check=False).returncode == 2
    assert httpx.post(f"{site.url}/web").status_code == 200
    site.write(WEBHOOK)
    site.until(lambda: site.api("/v1/status")["config"]["ok"], "the mended configuration")


@pytest.mark.timeout(120)
def test_demo_once_shows_a_succeeded_run_for_each_trigger(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "eventd", "demo", "--once"], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:] if line.strip()]
    outcomes = {row[0]: row[2] for row in rows if len(row) > 3 and row[2] == "succeeded"}
    assert {"uploads", "heartbeat", "shop"} | ({"orders"} if shutil.which("node") else set()) <= outcomes.keys()
