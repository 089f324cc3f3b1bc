"""Wildcards against a quadratic table that cannot be wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eventd.core.patterns import compile_pattern


def table(pattern: str, text: str) -> bool:
    """Plain dynamic programming over (pattern, text) with `*` as the only special character."""
    reach = [True] + [False] * len(text)
    for character in pattern:
        if character == "*":
            for at in range(1, len(text) + 1):
                reach[at] = reach[at] or reach[at - 1]
        else:
            reach = [False] + [reach[at] and text[at] == character for at in range(len(text))]
    return reach[-1]


@settings(max_examples=1000, deadline=None)
@given(st.text("ab*", max_size=8).filter(lambda text: "**" not in text), st.text("ab", max_size=12))
def test_a_wildcard_is_what_the_table_says(pattern: str, text: str) -> None:
    compiled = compile_pattern({"a": [{"wildcard": pattern}]})
    assert compiled.matches({"a": text}) is table(pattern, text)


@given(st.text("ab*\\", max_size=12))
def test_any_text_can_be_written_as_a_wildcard(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("*", "\\*")
    compiled = compile_pattern({"a": [{"wildcard": escaped}]})
    assert compiled.matches({"a": text})
    assert not compiled.matches({"a": text + "a"})
