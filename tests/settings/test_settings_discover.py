"""Which files are functions, with which runtime, and what is said about those that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eventd.model import FunctionSettings
from eventd.settings import code
from eventd.settings.discover import Declared, Discovery, discover

PYTHON = "def handler(event, context): ...\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    return handlers


def put(folder: Path, name: str, text: str = PYTHON, *, mode: int = 0o644) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    path.chmod(mode)
    return str(path)


def find(folder: Path, declared: dict[str, Declared] | None = None, previous: dict[str, FunctionSettings] | None = None) -> Discovery:
    return discover(str(folder), declared or {}, previous or {})


def runtimes(discovery: Discovery) -> dict[str, str]:
    return {name: found.runtime for name, found in discovery.found.items()}


def test_every_kind_of_code_is_found_with_its_runtime(folder: Path) -> None:
    for name in ("a.py", "b.js", "c.mjs", "d.cjs"):
        put(folder, name)
    put(folder, "e.sh", "#!/bin/sh\n", mode=0o755)
    put(folder, "f", "\x7fELF", mode=0o755)
    put(folder, "g/bootstrap", "#!/bin/sh\n", mode=0o755)
    put(folder, "h/h.py")
    put(folder, "i/lambda_function.py")
    put(folder, "j/index.py")
    put(folder, "k/index.mjs")
    put(folder, "l/main.py")  # its handler says which file
    put(folder, "m/src/app.js")
    declared = {"l": Declared(handler="main.go"), "m": Declared(handler="src/app.handler")}
    discovery = find(folder, declared)
    assert runtimes(discovery) == {
        "a": "python", "b": "node", "c": "node", "d": "node", "e": "exec", "f": "exec", "g": "provided",
        "h": "python", "i": "python", "j": "python", "k": "node", "l": "python", "m": "node",
    }  # fmt: skip
    assert discovery.notes == []
    modules = {name: found.module for name, found in discovery.found.items() if found.module}
    assert modules == {
        "a": "a.py", "b": "b.js", "c": "c.mjs", "d": "d.cjs", "h": "h.py", "i": "lambda_function.py", "j": "index.py",
        "k": "index.mjs", "l": "main.py", "m": "src/app.js",
    }  # fmt: skip
    assert {found.origin for found in discovery.found.values()} == {"file"}


@pytest.mark.parametrize(
    "name",
    ["_x.py", ".x.py", "x.py~", "x.swp", "x.tmp", "x.part", "x.pyc", "x.md", "x.txt", "x.json", "x.toml", "__pycache__", "node_modules"],
)
def test_names_that_are_no_functions_are_passed_over_in_silence(folder: Path, name: str) -> None:
    put(folder, name, "#!/bin/sh\n", mode=0o755)
    discovery = find(folder)
    assert (discovery.found, discovery.notes) == ({}, [])


def test_data_is_silent_but_a_script_without_an_execute_bit_is_not(folder: Path) -> None:
    put(folder, "data.csv", "a,b\n")
    put(folder, "job.sh", "#!/bin/sh\n")
    (note,) = find(folder).notes
    assert (note.code, note.severity) == ("W-CONFIG", "warning")
    assert "no execute bit" in note.message
    assert note.hint == f"Run: chmod +x {folder}/job.sh"


def test_a_folder_without_an_entry_is_explained(folder: Path) -> None:
    put(folder, "lib/util.py")
    (note,) = find(folder).notes
    assert "it has none of an executable bootstrap, lib.py" in note.message


@pytest.mark.parametrize("name", ["my script.py", "a.b.py", "ä.py", "x" * 65 + ".js"])
def test_a_bad_name_is_a_warning_and_harms_nobody_else(folder: Path, name: str) -> None:
    put(folder, name)
    put(folder, "good.py")
    discovery = find(folder)
    assert list(discovery.found) == ["good"]
    assert [(note.code, note.severity) for note in discovery.notes] == [("E-NAME", "warning")]


def test_a_bad_name_comes_with_a_good_one(folder: Path) -> None:
    put(folder, "my script.py")
    assert "Call it 'my-script.py'." in find(folder).notes[0].hint


def test_two_files_that_claim_a_name_are_both_named_and_the_loaded_one_stays(folder: Path) -> None:
    js, py = put(folder, "hello.js"), put(folder, "hello.py")
    put(folder, "hello/index.js")
    first = find(folder)
    assert first.found["hello"].source == str(folder / "hello")  # the folder is looked at first
    assert len(first.notes) == 2
    loaded = find(folder, previous={"hello": FunctionSettings(name="hello", source=py)})
    assert loaded.found["hello"].source == py
    assert [(note.code, note.severity) for note in loaded.notes] == [("E-NAME", "warning")] * 2
    assert all(py in note.message and "the one already loaded stays" in note.message for note in loaded.notes)
    assert js in loaded.notes[1].message
    gone = find(folder, previous={"hello": FunctionSettings(name="hello", source=str(folder / "hello.mjs"))})
    assert gone.found["hello"].source == str(folder / "hello")


def test_a_path_in_toml_wins_over_a_dropped_file_and_both_are_named(folder: Path) -> None:
    dropped = put(folder, "hello.py")
    named = put(folder.parent, "elsewhere/thing.py")
    discovery = find(folder, {"hello": Declared(path=named)})
    assert (discovery.found["hello"].source, discovery.found["hello"].origin) == (named, "config")
    (note,) = discovery.notes
    assert note.code == "E-NAME"
    assert dropped in note.message
    assert named in note.message


def test_several_functions_in_one_file(folder: Path) -> None:
    path = put(folder, "shop.py", "def refund(event, context): ...\ndef order(event, context): ...\n")
    declared = {"refund": Declared(path=path, handler="shop.refund"), "order": Declared(path=path, handler="shop.order")}
    assert sorted(find(folder, declared).found) == ["order", "refund"]
    put(folder, "shop.py", "def refund(event, context): ...\nif True:\n    lambda_handler = refund\n")
    assert sorted(find(folder, declared).found) == ["order", "refund", "shop"]
    put(folder, "shop.py", "def refund(event, context): ...\n")
    assert sorted(find(folder, {**declared, "shop": Declared(handler="shop.refund")}).found) == ["order", "refund", "shop"]
    assert find(folder).found["shop"].runtime == "python"  # alone, it is a function whatever it holds


@pytest.mark.parametrize(
    ("name", "text", "has"),
    [
        ("x.py", "async def handler(e, c): ...", True),
        ("x.py", "from lib import handle as lambda_handler", True),
        ("x.py", "handler: object = None", True),
        ("x.py", "try:\n  import a\nexcept ImportError:\n  handler = 1", True),
        ("x.py", "class A:\n  def handler(self): ...", False),
        ("x.py", "def main():\n  handler = 1", False),
        ("x.py", "def handler(e, c:", True),  # broken, but meant
        ("x.py", "def other(e, c:", False),
        ("x.js", "exports.handler = async (e) => {}", True),
        ("x.js", "module.exports = { other, handler }", True),
        ("x.mjs", "export const handler = async () => {}", True),
        ("x.mjs", "export async function handler() {}", True),
        ("x.mjs", "export { main as handler }", True),
        ("x.js", "const handler = 1; exports.refund = handler", False),
    ],
)
def test_a_default_entry_is_seen_without_running_anything(folder: Path, name: str, text: str, has: bool) -> None:
    path = put(folder, name, text)
    assert code.has_default_entry(path, code.EXTENSIONS[os.path.splitext(name)[1]]) is has


def test_code_that_others_may_write_is_refused(folder: Path) -> None:
    put(folder, "a.py", mode=0o666)
    put(folder, "b/index.py")
    put(folder, "b/deep/data.bin", mode=0o646)
    put(folder, "c.py", mode=0o664)  # a group is a choice
    discovery = find(folder)
    assert list(discovery.found) == ["c"]
    assert [(note.code, note.severity, note.hint) for note in discovery.notes] == [
        ("E-HANDLER", "warning", f"Run: chmod o-w {folder}/a.py"),
        ("E-HANDLER", "warning", f"Run: chmod o-w {folder}/b/deep/data.bin"),
    ]
    assert set(discovery.refused) == {"a", "b"}


def test_a_handlers_folder_that_others_may_write_is_an_error(folder: Path) -> None:
    put(folder, "a.py")
    folder.chmod(0o777)
    discovery = find(folder)
    assert discovery.found == {}
    assert [(note.severity, note.key) for note in discovery.notes] == [("error", ("daemon", "handlers"))]


def test_a_named_file_in_a_folder_that_others_may_write_is_refused(folder: Path) -> None:
    path = put(folder.parent, "open/x.py")
    (folder.parent / "open").chmod(0o777)
    (note,) = find(folder, {"x": Declared(path=path)}).notes
    assert (note.severity, note.key) == ("error", ("functions", "x", "path"))
    (folder.parent / "open").chmod(0o1777)  # sticky: others cannot replace it
    assert list(find(folder, {"x": Declared(path=path)}).found) == ["x"]


def test_links_are_followed_and_judged_by_what_they_point_at(folder: Path) -> None:
    real = put(folder.parent, "real/code.py")
    (folder / "linked.py").symlink_to(real)
    (folder / "tree").symlink_to(folder.parent / "real")
    put(folder.parent, "real/tree.py")
    discovery = find(folder)
    assert runtimes(discovery) == {"linked": "python", "tree": "python"}
    assert discovery.found["linked"].source == str(folder / "linked.py")
    os.chmod(real, 0o666)
    assert find(folder).found == {}


def test_a_dangling_link_is_explained(folder: Path) -> None:
    (folder / "gone.sh").symlink_to("/nowhere")
    (note,) = find(folder).notes
    assert "is a link to a file that does not exist" in note.message


def test_a_script_with_dos_line_ends_is_broken_with_cause_and_cure(folder: Path) -> None:
    path = put(folder, "job.sh", "#!/bin/sh\r\necho\r\n", mode=0o755)
    put(folder, "fine.py", "def handler(e, c): ...\r\n")
    discovery = find(folder)
    assert "carriage return" in discovery.found["job"].broken
    assert discovery.found["fine"].broken == ""
    (note,) = discovery.notes
    assert (note.code, note.severity) == ("W-CONFIG", "warning")
    assert f"sed -i 's/\\r$//' {path}" in note.hint


def test_requirements_of_a_folder_a_single_file_and_an_inline_block(folder: Path) -> None:
    put(folder, "requirements.txt", "x\n")
    put(folder, "alone.py")
    put(folder, "inline.py", "# /// script\n# dependencies = []\n# ///\n" + PYTHON)
    put(folder, "own/own.py")
    put(folder, "own/requirements.txt", "y\n")
    put(folder, "bare/bare.py")
    put(folder, "web.js")
    found = find(folder).found
    assert {name: each.requirements for name, each in found.items()} == {
        "alone": f"{folder}/requirements.txt",
        "inline": None,
        "own": f"{folder}/own/requirements.txt",
        "bare": None,
        "web": None,
    }


def test_an_inline_block_is_read_as_pep_723_says() -> None:
    text = "#!/usr/bin/env python\n# /// script\n# dependencies = [\n#   'a',\n# ]\n#\n# ///\nimport a\n"
    assert code.inline_script(text) == "dependencies = [\n  'a',\n]\n\n"
    assert code.inline_script(text.replace("\n", "\r\n")) == code.inline_script(text)
    assert code.inline_script("# /// other\n# x = 1\n# ///\n") is None
    assert code.inline_script("# /// script\nx = 1\n") is None
    with pytest.raises(ValueError, match="more than one"):
        code.inline_script(text + text)


def test_commands(folder: Path) -> None:
    put(folder, "tool/data.bin")
    declared = {
        "bare": Declared(command=("bin/run", "-v"), base="/srv/site"),
        "named": Declared(command=("python3", "x.py"), base="/srv/site"),
        "tool": Declared(command=("./run",), base="/srv/site"),
        "once": Declared(command=("date",), runtime="exec"),
    }
    found = find(folder, declared).found
    assert {name: (each.runtime, each.source, each.command) for name, each in found.items()} == {
        "bare": ("provided", "", ("/srv/site/bin/run", "-v")),
        "named": ("provided", "", ("python3", "x.py")),
        "tool": ("provided", str(folder / "tool"), ("./run",)),
        "once": ("exec", "", ("date",)),
    }


@pytest.mark.parametrize(
    ("declared", "key", "message"),
    [
        (Declared(path="/nowhere/x.py"), "path", "does not exist"),
        (Declared(command=("x",), runtime="python"), "runtime", "a command does not go with runtime"),
        (Declared(path="DATA"), "path", "its runtime cannot be told"),
        (Declared(path="DATA", runtime="exec"), "runtime", "is not an executable file"),
        (Declared(path="FOLDER", runtime="provided"), "runtime", "holds no executable file 'bootstrap'"),
    ],
)
def test_what_toml_names_and_is_not_there_is_an_error(folder: Path, declared: Declared, key: str, message: str) -> None:
    places = {"DATA": put(folder.parent, "other/data.bin"), "FOLDER": str(folder.parent / "other")}
    path = places.get(declared.path or "", declared.path)
    discovery = find(folder, {"x": Declared(path=path, command=declared.command, runtime=declared.runtime)})
    (note,) = discovery.notes
    assert (note.severity, note.key) == ("error", ("functions", "x", key))
    assert message in note.message
    assert discovery.found == {}


def test_no_handlers_folder_is_no_function(tmp_path: Path) -> None:
    discovery = find(tmp_path / "none")
    assert (discovery.found, discovery.notes) == ({}, [])
