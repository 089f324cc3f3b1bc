"""The operators of an EventBridge pattern: one value of a pattern's array -> a test of one JSON scalar.

Names and forms are those of the EventBridge user guide ("Comparison operators") and of the README of aws/event-ruler, which is
the matcher behind it. A test is given a str, int, float, bool or None, never an object or a list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["OPERATORS", "Test", "compile_value"]

Test = Callable[[Any], bool]
Strings = Callable[[str], bool]

OPERATORS = frozenset({"anything-but", "cidr", "equals-ignore-case", "exact", "exists", "numeric", "prefix", "suffix", "wildcard"})


def compile_value(path: str, value: Any) -> Test | None:
    """The test that one item of a leaf array stands for; None for `{"exists": false}`. ValueError names `path`."""
    if isinstance(value, Mapping):
        operator, argument = _only(path, value)
        if operator == "exists":
            if not isinstance(argument, bool):
                raise ValueError(f"{path}.exists: must be true or false, not {argument!r}")
            return (lambda scalar: True) if argument else None
        return _operator(f"{path}.{operator}", operator, argument)
    return _exactly(path, value)


def _only(path: str, value: Mapping[str, Any]) -> tuple[str, Any]:
    if len(value) != 1:
        raise ValueError(f"{path}: a match expression has exactly one key, such as {{ prefix = 'in/' }}; this has {len(value)}")
    return next(iter(value.items()))


def _operator(path: str, operator: str, argument: Any) -> Test:
    match operator:
        case "exact":
            return _exactly(path, _string(path, argument))
        case "prefix" | "suffix" | "equals-ignore-case" | "wildcard":
            return _on_strings(_strings(path, operator, argument))
        case "anything-but":
            return _anything_but(path, argument)
        case "numeric":
            return _numeric(path, argument)
        case "cidr":
            return _cidr(path, argument)
        case _:
            raise ValueError(f"{path}: there is no operator '{operator}'; there are {', '.join(sorted(OPERATORS))}")


def _exactly(path: str, value: Any) -> Test:
    """JSON types never mix: "1" is not 1, and 1 is not true. Numbers compare by value: 300 is 3e2."""
    if value is None or isinstance(value, bool):
        return lambda scalar: scalar is value
    if isinstance(value, str):
        return lambda scalar: isinstance(scalar, str) and scalar == value
    if isinstance(value, int | float):
        return lambda scalar: _is_number(scalar) and scalar == value
    raise ValueError(f"{path}: must be a string, a number, true, false, null or a match expression, not {_kind(value)}")


def _strings(path: str, operator: str, argument: Any) -> Strings:
    if operator in ("prefix", "suffix") and isinstance(argument, Mapping):
        inner, text = _only(path, argument)
        if inner != "equals-ignore-case":
            raise ValueError(f"{path}.{inner}: inside {operator} only equals-ignore-case is known")
        folded = _fold(_string(f"{path}.{inner}", text))
        if operator == "prefix":
            return lambda scalar: _fold(scalar[: len(folded)]) == folded
        return lambda scalar: _fold(scalar[max(len(scalar) - len(folded), 0) :]) == folded
    text = _string(path, argument)
    match operator:
        case "prefix":
            return lambda scalar: scalar.startswith(text)
        case "suffix":
            return lambda scalar: scalar.endswith(text)
        case "equals-ignore-case":
            folded = _fold(text)
            return lambda scalar: len(scalar) == len(folded) and _fold(scalar) == folded
        case _:
            return _wildcard(path, text)


def _on_strings(test: Strings) -> Test:
    return lambda scalar: isinstance(scalar, str) and test(scalar)


def _wildcard(path: str, text: str) -> Strings:
    """`*` is any number of any characters; `\\*` and `\\\\` are themselves.

    No backtracking: between the fixed ends each middle piece is taken at its first place, so the text is read once.
    """
    pieces = _pieces(path, text)
    if len(pieces) == 1:
        whole = pieces[0]
        return lambda scalar: scalar == whole
    first, *middle, last = pieces

    def test(scalar: str) -> bool:
        end = len(scalar) - len(last)
        at = len(first)
        if end < at or not scalar.startswith(first) or not scalar.endswith(last):
            return False
        for piece in middle:
            found = scalar.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True

    return test


def _pieces(path: str, text: str) -> list[str]:
    pieces, escaped = [""], False
    star = False
    for character in text:
        if escaped:
            if character not in "*\\":
                raise ValueError(f"{path}: in {text!r} a backslash may stand only before * or another backslash")
            pieces[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "*":
            if star:
                raise ValueError(f"{path}: in {text!r} two * stand in a row; one means the same")
            pieces.append("")
        else:
            pieces[-1] += character
        star = character == "*" and not escaped and pieces[-1] == ""
    if escaped:
        raise ValueError(f"{path}: {text!r} ends in a single backslash; write two for a backslash")
    return pieces


def _anything_but(path: str, argument: Any) -> Test:
    """Any value there is, of any type, but not these. The field must exist."""
    if isinstance(argument, Mapping):
        operator, texts = _only(path, argument)
        if operator not in ("prefix", "suffix", "equals-ignore-case", "wildcard"):
            raise ValueError(f"{path}.{operator}: inside anything-but only prefix, suffix, equals-ignore-case and wildcard are known")
        inner = f"{path}.{operator}"
        several = texts if _is_list(texts) else [texts]
        if not several:
            raise ValueError(f"{inner}: the list is empty")
        if operator in ("prefix", "suffix") and "" in several:
            raise ValueError(f"{inner}: an empty text would exclude every string")
        tests = [_strings(inner, operator, text) for text in several]
        return lambda scalar: not (isinstance(scalar, str) and any(test(scalar) for test in tests))
    values = argument if _is_list(argument) else [argument]
    if not values:
        raise ValueError(f"{path}: the list is empty")
    if not (all(isinstance(value, str) for value in values) or all(_is_number(value) for value in values)):
        raise ValueError(f"{path}: must be a string, a number, or a list of only strings or only numbers")
    strings = isinstance(values[0], str)
    excluded = frozenset(values)
    if strings:
        return lambda scalar: not (isinstance(scalar, str) and scalar in excluded)
    return lambda scalar: not (_is_number(scalar) and scalar in excluded)


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda left, right: bool(left == right),
    "<": lambda left, right: bool(left < right),
    "<=": lambda left, right: bool(left <= right),
    ">": lambda left, right: bool(left > right),
    ">=": lambda left, right: bool(left >= right),
}


def _numeric(path: str, argument: Any) -> Test:
    form = 'an operator and a number, or a lower and an upper bound, such as [">", 0, "<=", 5]'
    if not _is_list(argument) or len(argument) not in (2, 4):
        raise ValueError(f"{path}: must be {form}")
    pairs = [(argument[at], argument[at + 1]) for at in range(0, len(argument), 2)]
    for operator, number in pairs:
        if not isinstance(operator, str) or operator not in _COMPARE:
            raise ValueError(f"{path}: {operator!r} is not one of {' '.join(_COMPARE)}")
        if not _is_number(number):
            raise ValueError(f"{path}: {number!r} after {operator} is not a number")
    if len(pairs) == 2:
        (lower, bottom), (upper, top) = pairs
        if lower not in (">", ">=") or upper not in ("<", "<="):
            raise ValueError(f"{path}: must be {form}")
        if bottom > top or (bottom == top and (lower, upper) != (">=", "<=")):
            raise ValueError(f"{path}: no number is both {lower} {bottom} and {upper} {top}")
    tests = [(_COMPARE[operator], number) for operator, number in pairs]
    return lambda scalar: _is_number(scalar) and all(compare(scalar, number) for compare, number in tests)


def _cidr(path: str, argument: Any) -> Test:
    text = _string(path, argument)
    try:
        if "/" not in text:
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{path}: {text!r} is not a network; write one such as 10.0.0.0/24 or 2001:db8::/32") from None

    def test(scalar: Any) -> bool:
        if not isinstance(scalar, str):
            return False
        try:
            return ipaddress.ip_address(scalar) in network
        except ValueError:
            return False

    return test


def _fold(text: str) -> str:
    """Character by character and of the same length, as event-ruler does: `ß` is not `ss`."""
    if text.isascii():
        return text.lower()
    return "".join(_fold_one(character) for character in text)


def _fold_one(character: str) -> str:
    upper = character.upper()
    lower = (upper if len(upper) == 1 else character).lower()
    return lower if len(lower) == 1 else character


def _string(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path}: must be a string, not {_kind(value)}")  # noqa: TRY004
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(value: Any) -> str:
    if _is_list(value):
        return "an array"
    return "an object" if isinstance(value, Mapping) else repr(value)
