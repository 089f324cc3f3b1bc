"""config/eventd.toml and the JSON Schema against the code: every option, its default, a sentence."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from eventd.model import FunctionSettings
from eventd.registry import find_triggers
from eventd.settings.load import load
from eventd.settings.schema import schema
from eventd.settings.sentences import _models_in  # which tables stand inside a table
from eventd.settings.tables import COMMON_TRIGGER_KEYS, SECTIONS, BindingTable, FunctionTable, TriggerTable

FILE = Path(__file__).parents[2] / "config" / "eventd.toml"
TEXT = FILE.read_text()
OPTION = re.compile(r"(?m)^#(?=[A-Za-z_\[\"])")


def uncommented() -> dict[str, Any]:
    """Everything that begins with '#' and no space is an option or a header."""
    return tomllib.loads(OPTION.sub("", TEXT))


def models() -> Iterator[tuple[str, type[BaseModel], Mapping[str, Any]]]:
    """Each table of the file beside the model that reads it."""
    data = uncommented()
    for name, model in SECTIONS.items():
        if name != "runtimes":
            yield name, model, data[name]
    for name in ("python", "node"):
        yield f"runtimes.{name}", SECTIONS["runtimes"].model_fields[name].annotation, data["runtimes"][name]  # type: ignore[misc]
    yield "functions", FunctionTable, data["functions"]["example"]
    yield "bindings", BindingTable, data["bindings"][0]
    for kind, plugin in find_triggers()[0].items():
        table = data["triggers"][f"example-{kind}"]
        yield f"triggers.{kind}", plugin.settings, {key: value for key, value in table.items() if key not in COMMON_TRIGGER_KEYS}


def test_all_our_triggers_load() -> None:
    kinds, problems = find_triggers()
    assert problems == []
    assert set(kinds) >= {"directory", "schedule", "webhook"}


def test_every_option_is_in_the_file_and_none_besides() -> None:
    for name, model, table in models():
        assert set(table) == set(model.model_fields), name
    data = uncommented()
    assert {key for table in data["triggers"].values() for key in table} >= set(COMMON_TRIGGER_KEYS)
    assert set(data) == {*SECTIONS, "functions", "triggers", "bindings"}


def examples() -> set[tuple[str, str]]:
    """(table, key) of the options whose sentence ends in "Example:"."""
    out, table, lines = set(), "", TEXT.splitlines()
    for number, line in enumerate(lines):
        if header := re.match(r"#\[+([^]]+)\]+", line):
            table = header[1]
        elif (key := re.match(r"#([a-z_]+) = ", line)) and lines[number - 1].endswith("Example:"):
            out.add((table, key[1]))
    return out


def test_every_value_is_the_default_or_says_that_it_is_an_example() -> None:
    shown, checked = examples(), 0
    for name, model, table in models():
        section = {"functions": "functions.example"}.get(name, name.replace("triggers.", "triggers.example-"))
        context = {"base": "/base"}
        parsed = model.model_validate(dict(table), context=context)
        required = {key: value for key, value in table.items() if model.model_fields[key].is_required()}
        default = model.model_validate(required, context=context)
        for key in model.model_fields:
            value, wanted = getattr(parsed, key), getattr(default, key)
            if (section, key) in shown:
                assert key in required or wanted is None, f"{name}.{key} has a default, which the file should show"
            else:
                same = value == wanted or (isinstance(value, str) and value == f"/base/{wanted}")
                assert same, f"{name}.{key}: the file says {table[key]!r}, the code {wanted!r}"
                checked += 1
    assert checked > 60
    common = uncommented()["triggers"]["example-directory"]
    for key in ("paused", "concurrency"):
        assert common[key] == TriggerTable.model_fields[key].default


def test_the_defaults_of_the_tables_are_those_of_the_nouns(tmp_path: Path) -> None:
    """What other rooms get when they make settings without TOML is what an empty file gives."""
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    (handlers / "x.py").write_text("")
    (tmp_path / "eventd.toml").write_text("")
    settings = load(str(tmp_path / "eventd.toml"), {}, environ={}).settings
    assert settings is not None
    assert settings.functions["x"] == FunctionSettings(name="x", source=str(handlers / "x.py"))
    for table in (settings.http, settings.journal, settings.history, settings.runtimes):
        assert table == type(table)()  # type: ignore[comparison-overlap]
    assert settings.daemon == type(settings.daemon)(
        handlers=settings.daemon.handlers, plugins=settings.daemon.plugins, state=settings.daemon.state
    )
    assert settings.control == type(settings.control)(socket=settings.control.socket)


def test_every_option_has_a_sentence_before_it() -> None:
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[a-z_]+ = ", line):
            assert re.match(r"# \S.*\S$", lines[number - 1]), f"line {number + 1} has no sentence"
        assert line.startswith("#") or not line, f"line {number + 1} is not commented out"


def test_options_of_tables_inside_tables_are_named() -> None:
    for name, model, _ in models():
        for field in model.model_fields.values():
            for inner in _models_in(field.annotation):
                for key in inner.model_fields:
                    assert re.search(rf"\b{key}\b", TEXT), f"{name}: {key}"


def test_the_file_as_it_stands_is_an_empty_configuration(tmp_path: Path) -> None:
    (tmp_path / "eventd.toml").write_text(TEXT)
    loading = load(str(tmp_path / "eventd.toml"), find_triggers()[0], environ={})
    assert (loading.settings is not None, loading.problems) == (True, [])


def test_the_file_without_its_comment_signs_loads(tmp_path: Path) -> None:
    """But for the places of this machine that it names as examples."""
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "example.py").write_text("def handler(event, context): ...\n")
    text = OPTION.sub("", TEXT).replace("/srv/", f"{tmp_path}/").replace("/etc/eventd/", f"{tmp_path}/").replace('command = ["', '#["')
    text = text.replace('mode = "sync"', 'mode = "async"').replace('catch_up = "latest"', 'catch_up = "all"')
    text = text.replace('after = "keep"', 'after = "move"').replace('after_failure = "keep"', 'after_failure = "move"')
    text = text.replace('type = "schedule"', 'type = "schedule"\nfunction = "example"')
    text = text.replace('type = "webhook"', 'type = "webhook"\nfunction = "example"')
    for name in ("uploads", "done", "failed"):
        (tmp_path / name).mkdir()
    secret = tmp_path / "github-secret"
    secret.write_text("s")
    secret.chmod(0o600)
    (tmp_path / "eventd.toml").write_text(text)
    loading = load(str(tmp_path / "eventd.toml"), find_triggers()[0], environ={})
    assert loading.settings is not None, [str(problem) for problem in loading.problems]
    assert len(loading.settings.triggers) == 3
    assert len(loading.settings.bindings) == 4


def options(node: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, inner in node.get("properties", {}).items():
        yield f"{where}.{key}", inner


def test_the_schema_has_every_option_with_description_and_default() -> None:
    kinds, _ = find_triggers()
    whole = schema(kinds)
    defs = whole["$defs"]
    tables = {name: defs[node["$ref"].removeprefix("#/$defs/")] for name, node in whole["properties"].items() if "$ref" in node}
    tables["functions"] = defs["FunctionTable"]
    tables["bindings"] = defs["BindingTable"]
    forms = {form["title"]: form for form in whole["properties"]["triggers"]["additionalProperties"]["oneOf"]}
    assert set(forms) == set(kinds)
    for kind, form in forms.items():
        assert form["properties"]["type"]["const"] == kind
        assert form["additionalProperties"] is False
    for table, node in {**tables, **forms}.items():
        for path, option in options(node, table):
            assert option.get("description"), f"{path} has no description"
            assert "title" not in option
    function = defs["FunctionTable"]["properties"]
    assert (function["timeout"]["default"], function["memory"]["default"], function["retry"]["$ref"]) == (
        "1m",
        "512MiB",
        "#/$defs/RetryTable",
    )
    assert defs["RetryTable"]["properties"]["waits"]["default"] == ["1m", "2m"]
    assert defs["HttpTable"]["properties"]["max_body"]["default"] == "1MiB"
    assert defs["ControlTable"]["properties"]["mode"]["default"] == "0660"
    assert "null" not in str(whole)


def test_the_schema_takes_the_file_and_refuses_a_misspelt_key() -> None:
    """A small reading of the schema: keys only, which is what editors complete."""
    whole = schema(find_triggers()[0])
    data = uncommented()

    def strangers(value: Any, node: Mapping[str, Any], where: str) -> list[str]:
        if "$ref" in node:
            node = whole["$defs"][node["$ref"].removeprefix("#/$defs/")]
        if isinstance(value, list) and "items" in node:
            return [found for item in value for found in strangers(item, node["items"], where)]
        if not isinstance(value, dict):
            return []
        extra = node.get("additionalProperties", True)
        if isinstance(extra, dict) and "oneOf" in extra:
            return [
                found
                for name, inner in value.items()
                for form in extra["oneOf"]
                if form["title"] == inner["type"]
                for found in strangers(inner, form, f"{where}.{name}")
            ]
        out = []
        for key, inner in value.items():
            if key in node.get("properties", {}):
                out += strangers(inner, node["properties"][key], f"{where}.{key}")
            elif isinstance(extra, dict):
                out += strangers(inner, extra, f"{where}.{key}")
            elif extra is False:
                out.append(f"{where}.{key}")
        return out

    assert strangers(data, whole, "") == []
    data["functions"]["example"]["tiemout"] = "1s"
    assert strangers(data, whole, "") == [".functions.example.tiemout"]


@pytest.mark.parametrize("name", ["eventd.toml"])
def test_the_file_ships_with_the_package(name: str) -> None:
    from importlib.resources import files

    assert (files("eventd.examples") / name).read_text() == TEXT
