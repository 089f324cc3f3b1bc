"""Which route answers a request: part by part, a literal beats a parameter, which beats a greedy rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote

from eventd.errors import EventdError
from eventd.http.message import Route

ANY: Final = ""
"""The method of a route that takes any."""

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)(\+?)\}")
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*")


class Pattern(NamedTuple):
    """A route's path taken apart. `parts` are literals, None for a parameter; `greedy`: the last parameter takes the rest."""

    parts: tuple[str | None, ...]
    names: tuple[str, ...]
    greedy: bool

    @property
    def shape(self) -> str:
        """The path without the parameters' names: two routes of one shape match the same requests."""
        last = len(self.parts) - 1
        return "/" + "/".join(
            ("{+}" if self.greedy and at == last else "{}") if part is None else part for at, part in enumerate(self.parts)
        )


def parse_path(path: str) -> Pattern:
    """Take `/a/{id}/{rest+}` apart. Raises EventdError(E-CONFIG) that says which part is wrong and what is allowed."""
    if not path.startswith("/"):
        raise EventdError("E-CONFIG", f"the path {path!r} does not begin with a slash.", f"Write {'/' + path!r}.")
    parts: list[str | None] = []
    names: list[str] = []
    greedy = False
    for text in path[1:].split("/"):
        found = _PARAMETER.fullmatch(text)
        if greedy:
            raise EventdError("E-CONFIG", f"in the path {path!r} something follows the greedy part.", "Only the last part may be {name+}.")
        if found is None and not _LITERAL.fullmatch(text):
            hint = "A part is plain URL text (others as %XX), {name}, or as the last part {name+}."
            raise EventdError("E-CONFIG", f"the path {path!r} has a part {text!r} that is not allowed.", hint)
        if found is not None and found[1] in names:
            raise EventdError("E-CONFIG", f"the path {path!r} uses the name {found[1]!r} twice.", "Give each parameter its own name.")
        if found is None:
            parts.append(text)
        else:
            parts.append(None)
            names.append(found[1])
            greedy = bool(found[2])
    return Pattern(tuple(parts), tuple(names), greedy)


class Found(NamedTuple):
    """`route` is None when there is none; then `allowed` are the methods that the path does take (empty: no such path)."""

    route: Route | None
    params: dict[str, str]
    allowed: tuple[str, ...]


_Table = dict[str, tuple[Route, tuple[str, ...]]]
"""Method to route and the names of its parameters."""


class _Node:
    __slots__ = ("greedy", "here", "literal", "parameter")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.greedy: _Table = {}
        self.here: _Table = {}


_NO_ALLOWED: Final[tuple[str, ...]] = ()


class Router:
    """A table of routes, changed on the event loop while requests are served. Looking one up visits each node at most once."""

    def __init__(self) -> None:
        self._root = _Node()
        self._exact: dict[str, _Table] = {}
        self._routes: list[Route] = []

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes, in the order they were added."""
        return tuple(self._routes)

    def add(self, route: Route) -> Callable[[], None]:
        """Serve a route from now on. Returns what takes it away again (calling that twice is harmless).

        Raises EventdError(E-CONFIG) for a bad path, or when a route of the same shape already has one of the methods;
        nothing was added then. A route for any method may stand beside one for POST: the named method wins.
        """
        pattern = parse_path(route.path)
        table = self._table(pattern)
        methods = route.methods or (ANY,)
        for method in methods:
            if method in table:
                other = table[method][0]
                whose = f" by {other.owner}" if other.owner else ""
                what = f"{method or 'any method'} on {route.path}"
                raise EventdError("E-CONFIG", f"{what} is served already{whose}.", "Use another path or other methods.")
        for method in methods:
            table[method] = (route, pattern.names)
        self._routes.append(route)
        removed = False

        def remove() -> None:
            nonlocal removed
            if not removed:
                removed = True
                for method in methods:
                    del table[method]
                self._routes.remove(route)
                self._prune()

        return remove

    def find(self, method: str, path: str) -> Found:
        """The route for a method and a path as received. Parameters come percent-decoded; `%2F` does not split a part."""
        table = self._exact.get(path)
        if table is not None:
            hit = table.get(method) or table.get(ANY)
            if hit is not None:
                return Found(hit[0], {}, _NO_ALLOWED)
        if path[:1] != "/":
            return Found(None, {}, _NO_ALLOWED)
        allowed: list[str] = []
        for candidates, values in _walk(self._root, path[1:].split("/"), 0, ()):
            hit = candidates.get(method) or candidates.get(ANY)
            if hit is not None:
                route, names = hit
                return Found(route, {name: unquote(value) for name, value in zip(names, values, strict=True)}, _NO_ALLOWED)
            allowed.extend(candidates)
        return Found(None, {}, tuple(sorted(set(allowed))))

    def _table(self, pattern: Pattern) -> _Table:
        node = self._root
        parts = pattern.parts[:-1] if pattern.greedy else pattern.parts
        for part in parts:
            if part is None:
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.literal.setdefault(part, _Node())
        if pattern.greedy:
            return node.greedy
        if not pattern.names:
            self._exact[pattern.shape] = node.here
        return node.here

    def _prune(self) -> None:
        """Drop what holds no route any more, so that a table that changes for years does not grow."""
        for path in [path for path, table in self._exact.items() if not table]:
            del self._exact[path]
        _prune(self._root)


def _prune(node: _Node) -> bool:
    for part in [part for part, child in node.literal.items() if _prune(child)]:
        del node.literal[part]
    if node.parameter is not None and _prune(node.parameter):
        node.parameter = None
    return not (node.literal or node.parameter or node.greedy or node.here)


def _walk(node: _Node, parts: list[str], at: int, values: tuple[str, ...]) -> Iterator[tuple[_Table, tuple[str, ...]]]:
    """Every table that the parts lead to, best first. As deep as the table of routes, whatever the request's path."""
    if at == len(parts):
        if node.here:
            yield node.here, values
        return
    part = parts[at]
    child = node.literal.get(part)
    if child is not None:
        yield from _walk(child, parts, at + 1, values)
    if node.parameter is not None and part:
        yield from _walk(node.parameter, parts, at + 1, (*values, part))
    if node.greedy:
        rest = "/".join(parts[at:])
        if rest:
            yield node.greedy, (*values, rest)
