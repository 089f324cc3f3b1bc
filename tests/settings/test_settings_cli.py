"""The functions behind `eventd check`, `init` and `new`, and the way to the configuration."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eventd.cli.check import run_check
from eventd.cli.init import run_init
from eventd.cli.new import RUNTIMES, run_new
from eventd.errors import EventdError
from eventd.registry import find_triggers
from eventd.settings.load import find_config, load, peek, require_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("EVENTD_CONFIG", "EVENTD_SOCKET", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def result(capsysbinary: pytest.CaptureFixture[bytes]) -> str:
    return capsysbinary.readouterr().out.decode()


def site(folder: Path, text: str) -> None:
    (folder / "handlers").mkdir(exist_ok=True)
    (folder / "handlers" / "hello.py").write_text("def handler(event, context): ...\n")
    (folder / "eventd.toml").write_text(text)


def test_check_prints_every_problem_on_stdout_and_ends_2(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, "[functions.hello]\ntiemout = '1s'\n[triggers.t]\ntype = 'schedule'\nfunction = 'hello'\nschedule = '99 * * * *'\n")
    assert run_check("eventd.toml", schema=False, as_json=False) == 2
    first, second = result(capsysbinary).splitlines()
    assert first == "E-CONFIG eventd.toml:2 functions.hello.tiemout: unknown key 'tiemout', did you mean 'timeout'?"
    assert second.startswith("E-CONFIG eventd.toml:6 triggers.t.schedule: ")


def test_check_of_a_good_file_is_one_line(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, "[triggers.t]\ntype = 'schedule'\nfunction = 'hello'\nschedule = '@daily'\n")
    assert run_check("eventd.toml", schema=False, as_json=False) == 0
    assert result(capsysbinary) == "ok: 1 function, 1 trigger, 1 binding\n"


def test_warnings_are_printed_and_change_nothing(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, "[triggers.t]\ntype = 'schedule'\nschedule = '@daily'\n")
    assert run_check("eventd.toml", schema=False, as_json=False) == 0
    warning, ok = result(capsysbinary).splitlines()
    assert warning.startswith("W-CONFIG eventd.toml:1 triggers.t: ")
    assert ok == "ok: 1 function, 1 trigger, 0 bindings"


def test_check_as_json(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(
        here,
        "[daemon]\ntimezone = 'Asia/Tokyo'\n[functions.hello]\npaused = true\n"
        "[triggers.t]\ntype = 'schedule'\nfunction = 'hello'\nschedule = '30 9 * * *'\n",
    )
    (here / "handlers" / "job").write_bytes(b"#!/bin/sh\r\n")
    (here / "handlers" / "job").chmod(0o755)
    assert run_check("eventd.toml", schema=False, as_json=True) == 0
    answer: dict[str, Any] = json.loads(result(capsysbinary))
    assert answer["ok"] is True
    (problem,) = answer["problems"]
    assert set(problem) == {"code", "severity", "file", "line", "path", "message", "hint"}
    assert (problem["code"], problem["severity"]) == ("W-CONFIG", "warning")
    rows = {row["function"]: row for row in answer["functions"]}
    assert (rows["hello"]["state"], rows["hello"]["runtime"], rows["hello"]["origin"]) == ("paused", "python", "file")
    assert rows["job"]["state"] == "broken"
    assert "carriage return" in rows["job"]["error"]
    assert answer["bindings"] == [{"binding": "t/hello", "trigger": "t", "function": "hello", "state": "ready"}]
    (schedule,) = answer["schedules"]
    assert schedule["trigger"] == "t"
    assert [time[10:] for time in schedule["next"]] == ["T00:30:00.000Z"] * 3  # half past nine in Tokyo
    assert schedule["next"] == sorted(set(schedule["next"]))


def test_check_as_json_with_an_error(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, "[demon]\n")
    assert run_check("eventd.toml", schema=False, as_json=True) == 2
    answer = json.loads(result(capsysbinary))
    assert (answer["ok"], answer["problems"][0]["line"], answer["functions"], answer["schedules"]) == (False, 1, [], [])


def test_check_compiles_filters(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, "[triggers.t]\ntype = 'schedule'\nfunction = 'hello'\nschedule = '@daily'\nfilter = { a = 'not a list' }\n")
    assert run_check("eventd.toml", schema=False, as_json=False) == 2
    assert result(capsysbinary).startswith("E-CONFIG eventd.toml:5 triggers.t.filter: the filter is not a pattern: ")


def test_control_characters_of_a_file_do_not_reach_the_terminal(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    site(here, '["\\u001b[31m"]\n')
    run_check("eventd.toml", schema=False, as_json=False)
    assert "\x1b" not in result(capsysbinary)


def test_the_schema_is_one_json_object(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run_check("", schema=True, as_json=False) == 0
    assert json.loads(result(capsysbinary))["title"] == "eventd.toml"


def test_init_writes_a_configuration_that_loads_and_never_overwrites(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run_init("site", force=False) == 0
    assert result(capsysbinary).splitlines() == ["site/eventd.toml", "site/handlers/hello.py"]
    assert (here / "site" / "conf.d").is_dir()
    loading = load("site/eventd.toml", find_triggers()[0], environ={})
    assert loading.settings is not None, loading.problems
    assert loading.problems == []
    assert list(loading.settings.bindings) == ["hello/hello"]
    (here / "site" / "handlers" / "hello.py").write_text("mine")
    (here / "site" / "eventd.toml").unlink()
    with pytest.raises(EventdError) as caught:
        run_init("site", force=False)
    assert (caught.value.code, caught.value.exit) == ("E-EXISTS", 1)
    assert not (here / "site" / "eventd.toml").exists()  # all or nothing
    assert (here / "site" / "handlers" / "hello.py").read_text() == "mine"
    assert run_init("site", force=True) == 0
    assert "def handler" in (here / "site" / "handlers" / "hello.py").read_text()
    assert sorted(os.listdir(here / "site" / "handlers")) == ["hello.py"]


def test_what_init_leaves_commented_out_loads_too(here: Path) -> None:
    run_init("site", force=False)
    file = here / "site" / "eventd.toml"
    text = file.read_text().replace("/srv/uploads", str(here))
    lines = [line[2:] if line.startswith("# ") and ("= " in line or line.startswith("# [")) else line for line in text.splitlines()]
    file.write_text("\n".join(lines))
    loading = load(str(file), find_triggers()[0], environ={})
    assert loading.problems == []
    assert loading.settings is not None
    assert set(loading.settings.triggers) == {"hello", "uploads", "nightly"}


def test_init_where_it_cannot_write(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(EventdError) as caught:
        run_init("file/site", force=False)
    assert caught.value.code == "E-USAGE"


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_new_writes_a_handler_that_is_found(here: Path, runtime: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (here / "eventd.toml").write_text("[daemon]\nhandlers = 'code'\n[broken\n" if runtime == "exec" else "[daemon]\nhandlers = 'code'\n")
    if runtime == "exec":  # what cannot be read is no reason not to write a handler
        (here / "eventd.toml").write_text("[daemon]\nhandlers = 'code'\nnonsense = 1\n")
    assert run_new(None, "report", runtime) == 0
    path = result(capsysbinary).strip()
    assert path.startswith("code/report")
    (here / "eventd.toml").write_text("[daemon]\nhandlers = 'code'\n")
    loading = load("eventd.toml", {}, environ={})
    assert loading.settings is not None
    assert loading.problems == []
    assert loading.settings.functions["report"].runtime == runtime
    with pytest.raises(EventdError) as caught:
        run_new(None, "report", "node" if runtime == "python" else "python")
    assert caught.value.code == "E-EXISTS"
    assert os.listdir(here / "code") == [path.split("/")[1]]


def test_the_exec_example_works_as_it_stands(here: Path) -> None:
    (here / "eventd.toml").write_text("")
    run_new(None, "job", "exec")
    done = subprocess.run(["handlers/job.sh"], input=b'{"a": 1}', capture_output=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == ({"ok": True}, b'event {"a": 1}\n')


@pytest.mark.parametrize("runtime", ["exec", "provided"])
def test_shell_examples_are_good_shell(runtime: str) -> None:
    subprocess.run(["sh", "-n"], input=RUNTIMES[runtime].encode(), check=True)


def test_python_examples_are_good_python(here: Path) -> None:
    run_init(".", force=False)
    compile((here / "handlers" / "hello.py").read_text(), "hello.py", "exec")
    compile(RUNTIMES["python"], "new.py", "exec")


@pytest.mark.parametrize("name", ["a b", "", "_x", "../x", "x" * 65, "a.b"])
def test_new_refuses_names_that_no_function_can_have(here: Path, name: str) -> None:
    (here / "eventd.toml").write_text("")
    with pytest.raises(EventdError) as caught:
        run_new(None, name, "python")
    assert caught.value.code == "E-NAME"
    assert os.listdir(here) == ["eventd.toml"]


def test_the_configuration_is_looked_for_in_this_order(here: Path) -> None:
    assert find_config(None, environ={}) in (None, "/etc/eventd/eventd.toml")
    (here / "eventd.toml").write_text("")
    assert find_config(None, environ={}) == "eventd.toml"
    assert find_config(None, environ={"EVENTD_CONFIG": "other.toml"}) == "other.toml"
    assert find_config("named.toml", environ={"EVENTD_CONFIG": "other.toml"}) == "named.toml"
    assert require_config("named.toml", environ={}) == "named.toml"


def test_no_configuration_is_an_error_that_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventd.settings.locate.SYSTEM_FOLDER", str(here / "none"))
    with pytest.raises(EventdError) as caught:
        require_config(None, environ={})
    assert caught.value.code == "E-CONFIG"
    assert "eventd init" in caught.value.hint


def test_peek_sees_socket_and_state_past_every_other_problem(here: Path) -> None:
    (here / "conf.d").mkdir()
    (here / "eventd.toml").write_text("[demon]\n[control]\nlisten = 3\n[functions.x]\ntiemout = 1\n")
    seen = peek("eventd.toml", environ={})
    assert (seen.socket, seen.state, seen.sockets) == (f"{here}/state/eventd.sock", f"{here}/state", (f"{here}/state/eventd.sock",))
    (here / "conf.d" / "a.toml").write_text("[daemon]\nstate = '../there'\n")
    assert peek("eventd.toml", environ={}).socket == f"{here}/there/eventd.sock"
    (here / "conf.d" / "b.toml").write_text("[control]\nsocket = 'my.sock'\n")
    assert peek("eventd.toml", environ={}).sockets == (f"{here}/conf.d/my.sock",)
    (here / "conf.d" / "b.toml").write_text("[control]\nsocket = 3\n")
    assert peek("eventd.toml", environ={}).socket == f"{here}/there/eventd.sock"


def test_peek_at_what_is_not_toml_tries_the_usual_places(here: Path) -> None:
    (here / "eventd.toml").write_text("not = = toml")
    expected = (f"{here}/state/eventd.sock", "/run/eventd/eventd.sock")
    assert peek("eventd.toml", environ={}).sockets == expected
    assert peek(None, environ={}).sockets == expected
    (here / "eventd.toml").write_text("")  # a sound one must never lead to the system's daemon
    assert peek("eventd.toml", environ={}).sockets == expected[:1]
