"""`load` never raises, whatever stands in the file; and what it finds has a place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from eventd.registry import find_triggers
from eventd.settings.load import Loading, load, peek
from eventd.settings.schema import schema
from eventd.settings.tables import COMMON_TRIGGER_KEYS, SECTIONS, TOP_LEVEL, BindingTable, FunctionTable

KINDS, _ = find_triggers()


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "handlers").mkdir()
        (Path(folder) / "handlers" / "hello.py").write_text("def handler(event, context): ...\n")
        (Path(folder) / "conf.d").mkdir()
        yield Path(folder)


def checked(site: Path, raw: bytes, drop_in: bytes = b"") -> Loading:
    file = site / "eventd.toml"
    file.write_bytes(raw)
    (site / "conf.d" / "x.toml").write_bytes(drop_in)
    loading = load(str(file), KINDS, environ={})
    assert (loading.settings is None) == any(problem.severity == "error" for problem in loading.problems)
    for problem in loading.problems:
        assert problem.message
        assert problem.code != "E-INTERNAL", problem
        assert 0 <= problem.line <= max(raw.count(b"\n"), drop_in.count(b"\n")) + 1
        json.dumps(str(problem))
    peek(str(file), environ={})
    return loading


@given(st.binary(max_size=200), st.binary(max_size=50))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes(site: Path, raw: bytes, drop_in: bytes) -> None:
    checked(site, raw, drop_in)


options = sorted(
    {
        *TOP_LEVEL,
        *COMMON_TRIGGER_KEYS,
        *(name for model in (*SECTIONS.values(), FunctionTable, BindingTable) for name in model.model_fields),
        *(name for kind in KINDS.values() for name in kind.settings.model_fields),
        "python", "node", "hello", "t", "id", "secret_file", "secret", "user", "attempts", "waits", "a b", "", "\0",
    }
)  # fmt: skip
texts = st.sampled_from(
    [
        "", "\0", "a", "hello", "t", "1s", "9" * 400 + "d", "1MiB", "9" * 400, "127.0.0.1:80", "unix:x", ":", "[::1]:1", "../..", "~",
        "~nobody/x", "function:hello", "function:", "https://x", "https://[", "http://\n", "directory:", "amqp", "file:", "file:\0",
        "credential:x", "{}", "[", '{"a": [1]}', "10/s", "0/0", "UTC", "Europe", "rate(1 minute)", "cron(", "* * * * *", "at(", "/x",
        "/{a}/{b+}", "header:x", "body:/x", "github", "basic", "sync", "directory", "schedule", "webhook", "python", "exec", "0660",
        "\u2167", "\ud7ff", "\xe9" * 50,
    ]
)  # fmt: skip
leaves = st.one_of(
    texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(), st.datetimes(), st.dates(), st.times(), st.sampled_from([0, 1, -1])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(options), inner, max_size=4),
    max_leaves=10,
)
table = st.dictionaries(st.sampled_from(options), anything, max_size=5)
trigger = st.builds(lambda kind, rest: {**rest, "type": kind}, st.sampled_from(sorted(KINDS)) | texts, table)
names = st.sampled_from(["hello", "t", "a b", "", "x" * 65, "\n"])
document = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(SECTIONS, table),
        "functions": st.dictionaries(names, table, max_size=2) | anything,
        "triggers": st.dictionaries(names, trigger, max_size=3) | anything,
        "bindings": st.lists(table, max_size=3) | anything,
        "other": anything,
    },
)


@given(document, document)
@settings(max_examples=250, deadline=None)
def test_arbitrary_tables_of_the_right_names(site: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    checked(site, tomli_w.dumps(first).encode(), tomli_w.dumps(second).encode())


def valid(name: str, node: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the JSON Schema calls right, as far as plain schema words go."""
    if "$ref" in node:
        return valid(name, defs[node["$ref"].removeprefix("#/$defs/")], defs)
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    units = {"duration": "1m", "size": "1GiB", "rate": "5/s", "mode": "0600"}
    if "x-unit" in node:
        return st.just(units[node["x-unit"]])
    match node.get("type"):
        case "boolean":
            return st.booleans()
        case "integer":
            low = node.get("minimum", 1)
            return st.integers(low, min(node.get("maximum", 100), low + 50))
        case _:
            return st.just(node["default"]) if "default" in node else st.nothing()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_the_schema_calls_right_is_taken(site: Path, data: st.DataObject) -> None:
    whole = schema(KINDS)
    defs = whole["$defs"]
    document: dict[str, Any] = {}
    for section in SECTIONS:
        properties = defs[whole["properties"][section]["$ref"].removeprefix("#/$defs/")]["properties"]
        simple = {name: valid(name, node, defs) for name, node in properties.items() if "$ref" not in node}
        simple = {name: strategy for name, strategy in simple.items() if not strategy.is_empty}
        document[section] = data.draw(st.fixed_dictionaries({}, optional=simple), label=section)
    document.get("control", {}).pop("group", None)
    loading = checked(site, tomli_w.dumps(document).encode())
    assert loading.settings is not None, loading.problems
