"""The scanner against tomllib: every path tomllib finds has a line, and that line holds the key."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from eventd.settings.scanner import Path, scan


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def held(text: str) -> dict[Path, int]:
    """Scan, and hold the result against tomllib."""
    data = tomllib.loads(text)
    lines = scan(text)
    assert set(lines) == set(paths(data))
    split = text.replace("\r\n", "\n").split("\n")
    for path, line in lines.items():
        key = path[-1]
        if isinstance(key, str) and "\\" not in split[line - 1]:
            assert key in split[line - 1], (path, line)
    return lines


keys = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["a.b", "a b", '"', "'", "#", "[x]", "=", "", "ä", "a\nb", "\\", "]]", '"""']),
)
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(['"""', "'''", '""', "#", "\n", "a\nb = 1\n[c]\n", "]", "}", ",", "\\", '\\"""']),
    st.datetimes(min_value=datetime.datetime(1900, 1, 1)),
    st.dates(),
    st.times(),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12)
documents = st.dictionaries(keys, values, max_size=5)


@given(documents, st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_path_of_a_written_document_has_its_line(document: dict[str, Any], multiline: bool) -> None:
    held(tomli_w.dumps(document, multiline_strings=multiline))


simple = st.sampled_from(["a", "b", "c", '"d e"', "'f.g'", '"\\u0041"'])
dotted = st.lists(simple, min_size=1, max_size=3).map(" . ".join) | st.lists(simple, min_size=1, max_size=3).map(".".join)
shaped = st.recursive(
    st.sampled_from(
        [
            "1", "-1.5e3", "true", "inf", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00", '"x # y"', "'x]'", '""', "''",
            '"a\\"b"', '"""\nx = 1\n[t]\n"""', "'''\n\\'''", '"""a""""', '"""a"""""', "'''a''''", "'''a'''''",
            '"""\\"""\\\n  """', '""""""', "''''''",
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: "[ # c ]\n  " + " , # '''\n\n  ".join(items) + ",\n]"),
        st.lists(st.tuples(dotted, inner), max_size=2).map(lambda pairs: "{ " + ", ".join(f"{k} = {v}" for k, v in pairs) + " }"),
    ),
    max_leaves=6,
)  # fmt: skip
statements = st.one_of(
    st.tuples(dotted, shaped).map(lambda pair: f"{pair[0]} = {pair[1]} # end"),
    dotted.map(lambda key: f"[ {key} ]"),
    dotted.map(lambda key: f"[[{key}]] # many"),
    st.sampled_from(["", "  # only a comment = 1", "\t"]),
)


@given(st.lists(statements, max_size=14), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=500, deadline=None)
def test_every_path_of_a_hand_shaped_document_has_its_line(lines: list[str], newline: str) -> None:
    kept: list[str] = []
    for line in lines:  # a line that makes the document invalid is left out
        try:
            tomllib.loads("\n".join([*kept, line]))
        except tomllib.TOMLDecodeError:
            continue
        kept.append(line)
    held("\n".join(kept).replace("\n", newline))


@given(st.text(st.sampled_from("ab.=[]{}\"'#\n,1\\ "), max_size=30))
@settings(max_examples=300, deadline=None)
def test_it_ends_and_does_not_raise_whatever_it_is_given(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    held(text)


def test_the_lines_are_those_a_person_would_point_at() -> None:
    text = """\
top = 1
[daemon]
concurrency = 64
[functions.thumbnail]
environment = { QUALITY = "85", "X Y" = "z" }
retry.attempts = 2
include = [
  "*.jpg",
  # a comment
  "*.png",
]
text = \"\"\"
[not.a.table]
\"\"\"
after = 1
[[bindings]]
trigger = "a"
[[bindings]]
trigger = "b"
[bindings.filter]
x = 1
[functions]
"""
    lines = held(text)
    assert lines["top",] == 1
    assert lines["daemon",] == 2
    assert lines["daemon", "concurrency"] == 3
    assert lines["functions",] == 22  # its own header, not the one that implied it
    assert lines["functions", "thumbnail"] == 4
    assert lines["functions", "thumbnail", "environment", "X Y"] == 5
    assert lines["functions", "thumbnail", "retry", "attempts"] == 6
    assert lines["functions", "thumbnail", "include", 0] == 8
    assert lines["functions", "thumbnail", "include", 1] == 10
    assert lines["functions", "thumbnail", "after"] == 15
    assert lines["bindings",] == 16
    assert lines["bindings", 1] == 18
    assert lines["bindings", 1, "trigger"] == 19
    assert lines["bindings", 1, "filter"] == 20
    assert lines["bindings", 1, "filter", "x"] == 21


@pytest.mark.parametrize("size", [2_000])
def test_time_grows_with_the_text_not_with_its_square(size: int) -> None:
    text = "".join(f"[functions.f{n}]\ntimeout = '30s'\nenvironment = {{ A = \"{n}\" }}\n" for n in range(size))
    assert scan(text)["functions", f"f{size - 1}", "environment", "A"] == 3 * size
