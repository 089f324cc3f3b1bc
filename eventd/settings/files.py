"""The configuration as files: FILE and conf.d/*.toml read, parsed and merged into one Document that knows where each key stands."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventd.model import Problem
from eventd.settings.scanner import Path, dotted, scan

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_FILES: Final = 1_000
MAX_DEPTH: Final = 40
_AT_LINE: Final = re.compile(r"\s*\(at line (\d+), column (\d+)\)\s*$")
_AT_END: Final = re.compile(r"\s*\(at end of document\)\s*$")


@dataclass(slots=True)
class Document:
    """All files as one table. `where` gives for each path (as `scanner.scan` names them) the index in `files` and the line."""

    files: list[str] = field(default_factory=list)
    """As they are shown to people: FILE as it was given, the others beside it."""
    data: dict[str, Any] = field(default_factory=dict)
    where: dict[Path, tuple[int, int]] = field(default_factory=dict)
    complete: bool = True
    """False when a file could not be read or parsed: what seems missing may stand in it."""

    def at(self, path: Path) -> tuple[str, int]:
        """File and line of `path`, or of the nearest table around it. Line 0: nowhere (a default)."""
        place = self._place(path)
        return (self.files[place[0]], place[1]) if place else (self.files[0] if self.files else "", 0)

    def base(self, path: Path) -> str:
        """The absolute folder of the file that `path` stands in: what relative paths in it are relative to."""
        return os.path.dirname(os.path.abspath(self.at(path)[0]))

    def order(self, path: Path) -> tuple[int, int]:
        return self._place(path) or (0, 0)

    def _place(self, path: Path) -> tuple[int, int] | None:
        while path:
            if place := self.where.get(path):
                return place
            path = path[:-1]
        return None


def read(file: str) -> tuple[Document, list[Problem]]:
    """Read FILE and conf.d/*.toml beside it, in name order, and merge them (D28). Never raises."""
    document = Document()
    problems: list[Problem] = []
    folder = os.path.join(os.path.dirname(file), "conf.d")
    for name in [file, *_drop_ins(folder, problems)]:
        index = len(document.files)
        document.files.append(name)
        parsed, found = _parse(name)
        problems += found
        if parsed is None:
            document.complete = False
            continue
        data, lines = parsed
        _merge(document, data, lines, index, problems)
    return document, problems


def _drop_ins(folder: str, problems: list[Problem]) -> Iterable[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError) as error:
        problems.append(
            Problem("E-CONFIG", "error", folder, 0, "", f"the folder cannot be read: {_reason(error)}.", "Mend its permissions.")
        )
        return ()
    if len(names) > MAX_FILES:
        text = f"the folder holds {len(names)} files; at most {MAX_FILES} are read."
        problems.append(Problem("E-CONFIG", "error", folder, 0, "", text, "Join some of them."))
    return [os.path.join(folder, name) for name in names[:MAX_FILES]]


def _parse(file: str) -> tuple[tuple[dict[str, Any], dict[Path, int]] | None, list[Problem]]:
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None, [
            Problem("E-CONFIG", "error", file, 0, "", "there is no such file.", "Write one with 'eventd init', or name another with -c.")
        ]
    except (OSError, ValueError) as error:
        return None, [
            Problem(
                "E-CONFIG", "error", file, 0, "", f"the file cannot be read: {_reason(error)}.", "Mend its permissions or name another."
            )
        ]
    if len(raw) > MAX_BYTES:
        return None, [
            Problem("E-TOML", "error", file, 0, "", f"the file is larger than {MAX_BYTES // 1024**2} MiB.", "Split it into conf.d/*.toml.")
        ]
    return parse(raw, file)


def parse(raw: bytes, file: str) -> tuple[tuple[dict[str, Any], dict[Path, int]] | None, list[Problem]]:
    """One TOML text: its data and the line of each path, or None and one problem. BOM and CRLF are accepted. Never raises."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        text = f"the file is not UTF-8: byte 0x{raw[error.start]:02x} does not belong here."
        return None, [Problem("E-TOML", "error", file, line, "", text, "Save it as UTF-8 in your editor.")]
    try:
        data = tomllib.loads(text)
    except RecursionError:
        return None, [_too_deep(file)]
    except ValueError as error:  # TOMLDecodeError, or a number too long for int()
        line, message = _decode_message(str(error), text)
        return None, [Problem("E-TOML", "error", file, line, "", message, "")]
    excess = _excess(data)
    if excess == "depth":
        return None, [_too_deep(file)]
    lines = scan(text)
    if isinstance(excess, tuple):
        place = dotted(excess)
        return None, [
            Problem("E-TOML", "error", file, lines.get(excess, 0), place, "the number does not fit in 64 bits.", "Write a smaller one.")
        ]
    return (data, lines), []


def _decode_message(message: str, text: str) -> tuple[int, str]:
    found = _AT_LINE.search(message)
    if found:
        line, message = int(found[1]), f"{message[: found.start()]} (column {found[2]})"
    elif found := _AT_END.search(message):
        line, message = max(1, len(text.rstrip().split("\n"))), f"{message[: found.start()]}, but the file ends here"
    else:
        line = 0
    return line, f"not valid TOML: {message[:1].lower()}{message[1:]}."


def _too_deep(file: str) -> Problem:
    return Problem("E-TOML", "error", file, 0, "", f"tables and lists are nested deeper than {MAX_DEPTH} levels.", "Flatten them.")


def _excess(data: dict[str, Any]) -> Path | str | None:
    """What tomllib lets through and nothing behind it should meet: "depth", or the path of a number over 64 bits."""
    stack: list[tuple[Path, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict | list):
            if len(path) > MAX_DEPTH:
                return "depth"
            pairs: Iterable[tuple[str | int, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend(((*path, key), inner) for key, inner in pairs)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return path
    return None


def _merge(document: Document, data: dict[str, Any], lines: dict[Path, int], index: int, problems: list[Problem]) -> None:
    """Tables merge by key, [[bindings]] are put one behind the other, any other key set twice is an error with both lines."""
    shift = _bindings(document.data)
    clashes: list[Path] = []
    _merge_table(document.data, data, (), clashes)
    dropped = set(clashes)
    for path, line in lines.items():
        if any(path[:size] in dropped for size in range(1, len(path) + 1)):
            continue
        document.where.setdefault(_shifted(path, shift), (index, line))
    for path in clashes:
        other, there = document.at(path)
        text = f"the key is set twice: here and in {other}:{there}."
        problems.append(Problem("E-CONFIG", "error", document.files[index], lines[path], dotted(path), text, "Keep one of the two."))


def _bindings(data: dict[str, Any]) -> int:
    found = data.get("bindings")
    return len(found) if isinstance(found, list) else 0


def _shifted(path: Path, shift: int) -> Path:
    if shift and len(path) > 1 and path[0] == "bindings" and isinstance(path[1], int):
        return ("bindings", path[1] + shift, *path[2:])
    return path


def _merge_table(into: dict[str, Any], table: dict[str, Any], path: Path, clashes: list[Path]) -> None:
    for key, value in table.items():
        here = (*path, key)
        if key not in into:
            into[key] = value
        elif isinstance(value, dict) and isinstance(into[key], dict):
            _merge_table(into[key], value, here, clashes)
        elif here == ("bindings",) and isinstance(value, list) and isinstance(into[key], list):
            into[key].extend(value)
        else:
            clashes.append(here)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)


def by_place(problems: Sequence[Problem], files: Sequence[str]) -> list[Problem]:
    """In the order a person reads the files; problems without a line, and those of other files, come last."""
    ranks = {name: rank for rank, name in enumerate(files)}
    return sorted(problems, key=lambda problem: (ranks.get(problem.file, len(ranks)), problem.line or 10**9))
