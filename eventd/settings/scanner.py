"""Where every key of a TOML text stands: key paths to line numbers.

tomllib tells what a document says but not where. This scanner reads a text that tomllib has accepted and returns, for
every table, key and array element, the line it begins on. It decides nothing about validity: property tests hold it
against tomllib. A path is a tuple of keys and array indexes, as in `("bindings", 0, "trigger")`.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"[ \t]*")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_BASIC: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL: Final = re.compile(r"'[^'\n]*'")
# A closing delimiter may be preceded by one or two quotes that belong to the string.
_LONG_BASIC: Final = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{1,2}(?!"))?', re.DOTALL)
_LONG_LITERAL: Final = re.compile(r"'''.*?'''(?:'{1,2}(?!'))?", re.DOTALL)
_SCALAR: Final = re.compile(r"[^,\]}#\n]+")
_REST: Final = re.compile(r"[^\n]*")


def scan(text: str) -> dict[Path, int]:
    """The line (from 1) of every path in `text`, which tomllib has parsed. Never raises for such a text.

    A table that is only implied by a longer header or a dotted key has the line of the first key that implies it; once
    its own header comes, the line of that. The nesting of values must be bounded by the caller (it recurses per level).
    """
    return _Scanner(text.replace("\r\n", "\n")).run()


def dotted(path: Path) -> str:
    """A path as one writes it: `triggers.uploads.path`, `bindings[0].filter`, `functions."my fn"`."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += ("." if out else "") + (part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False))
    return out


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._counted = 0
        self._line = 1
        self._elements: dict[Path, int] = {}
        """How many elements each array of tables has so far, by the path of the array."""

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip(_SPACE)
            before = self.at
            if before >= len(self.text):
                return self.lines
            if self.text[before] == "[":
                table = self._header()
            else:
                self._pair(table)
            if self.at == before:
                self._skip(_REST)
                self.at = max(self.at, before + 1)

    def _header(self) -> Path:
        line = self.line()
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        keys = self._key()
        self._skip(_BLANK)
        self.at += 2 if many else 1
        path: Path = ()
        for key in keys[:-1]:
            path = self._enter((*path, key))
            self._mark(path, line)
        path = (*path, *keys[-1:])
        if many:
            self._mark(path, line)
            index = self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, index)
        self.lines[path] = line
        return path

    def _enter(self, path: Path) -> Path:
        """A header goes into the last element of an array of tables on its way."""
        return (*path, self._elements[path]) if path in self._elements else path

    def _pair(self, table: Path) -> None:
        line = self.line()
        keys = self._key()
        path = table
        for key in keys:
            path = (*path, key)
            self._mark(path, line)
        self._skip(_BLANK)
        if self._peek() == "=":
            self.at += 1
        self._skip(_BLANK)
        self._value(path)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            parts.append(self._key_part())
            self._skip(_BLANK)
            if self._peek() != ".":
                return parts
            self.at += 1

    def _key_part(self) -> str:
        char = self._peek()
        if char == '"':
            raw = self._take(_BASIC)
            # tomllib itself undoes the escapes.
            return str(tomllib.loads(f"k = {raw}")["k"]) if "\\" in raw else raw[1:-1]
        if char == "'":
            return self._take(_LITERAL)[1:-1]
        return self._take(_BARE)

    def _value(self, path: Path) -> None:
        text, at = self.text, self.at
        if text.startswith('"""', at):
            self._skip(_LONG_BASIC)
        elif text.startswith("'''", at):
            self._skip(_LONG_LITERAL)
        elif text.startswith('"', at):
            self._skip(_BASIC)
        elif text.startswith("'", at):
            self._skip(_LITERAL)
        elif text.startswith("[", at):
            self._array(path)
        elif text.startswith("{", at):
            self._inline(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._more("]"):
            before = self.at
            self._mark((*path, index), self.line())
            self._value((*path, index))
            index += 1
            self._separator(before)

    def _inline(self, path: Path) -> None:
        self.at += 1
        while self._more("}"):
            before = self.at
            self._pair(path)
            self._separator(before)

    def _more(self, end: str) -> bool:
        """Whether another member begins here; otherwise the closing bracket has been taken."""
        self._skip(_SPACE)
        if self.at < len(self.text) and self.text[self.at] != end:
            return True
        self.at += 1
        return False

    def _separator(self, before: int) -> None:
        self._skip(_SPACE)
        if self._peek() == "," or self.at == before:
            self.at += 1

    def line(self) -> int:
        """The line of the present position; counted onwards from the last call."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def _mark(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if found := pattern.match(self.text, self.at):
            self.at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        start = self.at
        self._skip(pattern)
        return self.text[start : self.at]
