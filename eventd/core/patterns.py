"""EventBridge event patterns: which events of a trigger a binding takes.

Semantics, as aws/event-ruler has them: every field that a pattern names must match, fields it does not name are ignored; the
values of a leaf's array are alternatives; an array in the event matches when any of its elements does (arrays in arrays are
flattened), and several fields that lead through one array of objects must match inside one element of it. `exists: false` is
judged within the element that the other fields chose, or, when no other field chooses one, over all elements. An object, an
empty array and an empty object are no leaf, so for `exists` they are absent. `$or` is expanded into its branches first, so that
array consistency spans it. Keys are literal: a dot in a key is a character, not a step (event-ruler confuses the two).
Numbers are not limited to EventBridge's 5e9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventd.core.patterns_values import OPERATORS, Test, compile_value

__all__ = ["Pattern", "compile_pattern"]

_MOST_BRANCHES = 1_000
"""EventBridge's limit for the product of all `$or` branches."""
_DEEPEST = 100
_OR = "$or"

# How a part of a pattern can be satisfied. Only BOUND chooses an element of an array.
_NO: Final = 0
_ABSENT: Final = 1
_BOUND: Final = 2

_Matcher = Callable[[Any], int]
_MISSING: Final = object()


class Pattern:
    """A compiled pattern. `matches` never raises for a JSON value and never changes it."""

    __slots__ = ("_branches",)

    def __init__(self, branches: Sequence[_Matcher]) -> None:
        self._branches = tuple(branches)

    def matches(self, event: Any) -> bool:
        """Whether an event (decoded JSON) matches. Anything but an object matches nothing."""
        return isinstance(event, Mapping) and any(branch(event) != _NO for branch in self._branches)


def compile_pattern(pattern: Mapping[str, Any]) -> Pattern:
    """Compile once, match often. ValueError with a sentence that begins with the path of what is wrong."""
    if not isinstance(pattern, Mapping):
        raise ValueError("the pattern must be a table")  # noqa: TRY004
    return Pattern([_closure(tree) for tree in _trees("", pattern, inside_or=False, depth=0)])


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The alternatives of one leaf array: value tests, and whether the field may be absent."""

    tests: tuple[Test, ...]
    absent: bool

    def takes(self, scalar: Any) -> bool:
        return any(test(scalar) for test in self.tests)


@dataclass(frozen=True, slots=True)
class _Tree:
    """One branch of a pattern at one place: all leaves and all fields must match."""

    leaves: tuple[_Leaf, ...] = ()
    fields: Mapping[str, _Tree] = field(default_factory=dict)

    def merged(self, other: _Tree) -> _Tree:
        fields = dict(self.fields)
        for name, tree in other.fields.items():
            fields[name] = fields[name].merged(tree) if name in fields else tree
        return _Tree(self.leaves + other.leaves, fields)


def _trees(path: str, pattern: Mapping[str, Any], *, inside_or: bool, depth: int) -> list[_Tree]:
    """The branches of a pattern object: the product of what its fields allow."""
    if not pattern:
        raise ValueError(f"{path or 'the pattern'}: an empty object is not allowed; name at least one field")
    if depth > _DEEPEST:
        raise ValueError(f"{path}: the pattern is nested more than {_DEEPEST} deep")
    found = [_Tree()]
    for name, value in pattern.items():
        here = f"{path}.{name}" if path else name
        if name == _OR:
            choices = _or(here, value, depth)
        elif inside_or and name in OPERATORS:
            raise ValueError(f"{here}: inside $or a field cannot have the name of an operator; put it in an array after a field's name")
        elif isinstance(value, Mapping):
            below = _trees(here, value, inside_or=inside_or, depth=depth + 1)
            choices = [_Tree(fields={name: tree}) for tree in below]
        elif _is_list(value):
            choices = [_Tree(fields={name: _Tree(leaves=(_leaf(here, value),))})]
        else:
            raise ValueError(f"{here}: must be an array of values or an object, such as {name} = [{_quoted(value)}]")
        if len(found) * len(choices) > _MOST_BRANCHES:
            raise ValueError(f"{here}: all $or together make more than {_MOST_BRANCHES} combinations")
        found = [left.merged(right) for left in found for right in choices]
    return found


def _or(path: str, value: Any, depth: int) -> list[_Tree]:
    if not _is_list(value) or len(value) < 2 or not all(isinstance(branch, Mapping) for branch in value):
        raise ValueError(f"{path}: must be an array of two or more objects")
    return [tree for at, branch in enumerate(value) for tree in _trees(f"{path}[{at}]", branch, inside_or=True, depth=depth + 1)]


def _leaf(path: str, values: Sequence[Any]) -> _Leaf:
    if not values:
        raise ValueError(f"{path}: an empty array matches nothing and is not allowed")
    tests = [compile_value(f"{path}[{at}]", value) for at, value in enumerate(values)]
    return _Leaf(tuple(test for test in tests if test is not None), None in tests)


def _closure(tree: _Tree) -> _Matcher:
    leaves = tree.leaves
    fields = tuple((name, _closure(below)) for name, below in tree.fields.items())
    may_be_absent = all(leaf.absent for leaf in leaves)

    def inside(value: Any) -> int:
        """How one value that is not an array satisfies this place."""
        is_object = isinstance(value, Mapping)
        best = _ABSENT
        if leaves:
            if is_object or value is _MISSING:
                if not may_be_absent:
                    return _NO
            elif all(leaf.takes(value) for leaf in leaves):
                best = _BOUND
            else:
                return _NO
        for name, below in fields:
            how = below(value.get(name, _MISSING) if is_object else _MISSING)
            if how == _NO:
                return _NO
            best = max(best, how)
        return best

    def match(value: Any) -> int:
        if not isinstance(value, list | tuple):
            return inside(value)
        only_absent = _ABSENT
        empty = True
        for element in _elements(value):
            empty = False
            how = inside(element)
            if how == _BOUND:
                return _BOUND
            only_absent = min(only_absent, how)
        return inside(_MISSING) if empty else only_absent

    return match


def _elements(array: Sequence[Any]) -> Iterator[Any]:
    """The elements of an array, of the arrays in it, and so on; without recursion, since events come from strangers."""
    stack = [iter(array)]
    while stack:
        for element in stack[-1]:
            if isinstance(element, list | tuple):
                stack.append(iter(element))
                break
            yield element
        else:
            stack.pop()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
