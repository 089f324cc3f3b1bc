"""What a Python function says it needs: a requirements file, or the `# /// script` block of PEP 723. Text in, values out.

The block's grammar is the reference regular expression of "Inline script metadata" in the Python packaging specifications;
version specifiers are those of "Version specifiers" there, as far as a plain interpreter version (3.11.2) needs them.
"""

from __future__ import annotations

import os
import re
import tomllib
from hashlib import sha256

from msgspec import Struct

from eventd.errors import EventdError

MAX_TEXT = 1024**2
MAX_INCLUDES = 32

_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_INCLUDE = re.compile(r"^\s*(-r|--requirement|-c|--constraint)[\s=]+(\S+)\s*(?:\s#.*)?$")
_CLAUSE = re.compile(r"\s*(~=|===|==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")


class Requirements(Struct, frozen=True):
    """A requirements file with everything it includes. `folder` is where its relative paths begin."""

    lines: bytes
    constraints: bytes
    folder: str

    def digest(self) -> bytes:
        return sha256(b"%d:%b%b" % (len(self.lines), self.lines, self.constraints)).digest()


class Inline(Struct, frozen=True):
    """A script's own block: requirement lines, and the interpreter versions it accepts (empty: any)."""

    dependencies: tuple[str, ...]
    requires_python: str


def inline_of(source: bytes, path: str) -> Inline | None:
    """The `script` block of a Python file, or None. Raises EventdError(E-HANDLER) when there is one that cannot be used."""
    if b"# ///" not in source:
        return None
    # Bytes that are not UTF-8 are for Python to complain about; in the block they would be a TOML error below.
    text = source.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
    blocks = [found for found in _BLOCK.finditer(text + "\n") if found["type"] == "script"]
    if not blocks:
        return None
    line = text.count("\n", 0, blocks[0].start()) + 1
    if len(blocks) > 1:
        second = text.count("\n", 0, blocks[1].start()) + 1
        raise EventdError("E-HANDLER", f"{path}:{second}: a second '# /// script' block.", f"Keep one; the first is in line {line}.")
    content = "".join(row[2:] if row.startswith("# ") else row[1:] for row in blocks[0]["content"].splitlines(keepends=True))
    try:
        table = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, UnicodeError) as wrong:
        raise EventdError(
            "E-HANDLER", f"{path}:{line}: the '# /// script' block is not valid TOML: {wrong}.", "Correct the block."
        ) from None
    dependencies = table.get("dependencies", [])
    python = table.get("requires-python", "")
    usable = isinstance(dependencies, list) and all(isinstance(each, str) and _plain(each) for each in dependencies)
    if not usable or not isinstance(python, str):
        raise EventdError(
            "E-HANDLER",
            f"{path}:{line}: in the '# /// script' block, 'dependencies' must be a list of requirements and 'requires-python' a string.",
            'For example: dependencies = ["requests>=2.32"].',
        )
    if python:
        python_allowed(python, (3, 11, 0), f"{path}:{line}")
    return Inline(dependencies=tuple(dependencies), requires_python=python)


def _plain(requirement: str) -> bool:
    """A requirement is one line that the installer cannot take for an option of its own."""
    return bool(requirement.strip()) and not requirement.lstrip().startswith(("-", "#")) and requirement.isprintable()


def python_allowed(specifier: str, python: tuple[int, int, int], where: str) -> bool:
    """Whether an interpreter's version satisfies `requires-python`. Raises EventdError(E-HANDLER) for one we cannot read."""
    allowed = True
    for clause in specifier.split(","):
        found = _CLAUSE.fullmatch(clause)
        if not found or (found[3] and found[1] not in ("==", "!=")) or (found[1] == "~=" and "." not in found[2]):
            raise EventdError(
                "E-HANDLER", f"{where}: requires-python = {specifier!r} is not a version specifier.", 'For example: ">=3.11".'
            )
        allowed = _holds(found[1], [int(part) for part in found[2].split(".")], bool(found[3]), python) and allowed
    return allowed


def _holds(operator: str, wanted: list[int], prefix: bool, python: tuple[int, int, int]) -> bool:
    width = max(len(wanted), len(python))
    have = [*python, *[0] * (width - len(python))]
    if prefix:
        return (have[: len(wanted)] == wanted) == (operator == "==")
    full = [*wanted, *[0] * (width - len(wanted))]
    match operator:
        case "==" | "===":
            return have == full
        case "!=":
            return have != full
        case "<=":
            return have <= full
        case ">=":
            return have >= full
        case "<":
            return have < full
        case ">":
            return have > full
        case _:
            return have >= full and have[: len(wanted) - 1] == wanted[:-1]


def read_requirements(path: str) -> Requirements:
    """A requirements file and all it includes with -r and -c, as one value. Raises EventdError(E-HANDLER) naming the file.

    Included files become part of the text, so a change in any of them is a change of the function. A requirement that is a
    local path stands for whatever lies there when the environment is built.
    """
    lines: list[bytes] = []
    constraints: list[bytes] = []
    seen: set[str] = set()

    def take(file: str, into: list[bytes], by: str) -> None:
        real = os.path.realpath(file)
        if real in seen:
            return
        seen.add(real)
        if len(seen) > MAX_INCLUDES:
            raise EventdError("E-HANDLER", f"{path}: includes more than {MAX_INCLUDES} files.", "Put the requirements into one file.")
        for row in _text(file, by).splitlines():
            if not (found := _INCLUDE.match(row)):
                into.append(row.encode("utf-8", "surrogateescape"))
                continue
            if "://" in found[2]:
                raise EventdError(
                    "E-HANDLER", f"{file}: includes {found[2]}.", "Include files from this machine only, so that a build repeats."
                )
            target = constraints if found[1] in ("-c", "--constraint") else into
            take(os.path.join(os.path.dirname(file), found[2]), target, f", included by {file},")

    take(path, lines, "")
    folder = os.path.dirname(os.path.abspath(path))
    return Requirements(lines=b"\n".join(lines) + b"\n", constraints=b"\n".join(constraints), folder=folder)


def _text(path: str, by: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT + 1)
    except OSError as wrong:
        raise EventdError(
            "E-HANDLER", f"{path}{by} cannot be read: {wrong.strerror}.", "Create it, or remove the line that names it."
        ) from None
    if len(content) > MAX_TEXT:
        raise EventdError("E-HANDLER", f"{path}{by} is larger than {MAX_TEXT} bytes.", "A requirements file lists packages, one a line.")
    return content.decode("utf-8-sig", "surrogateescape")


def is_empty(requirements: Requirements) -> bool:
    """Whether a file asks for nothing at all (only blank lines and comments)."""
    return all(not row.strip() or row.lstrip().startswith(b"#") for row in requirements.lines.splitlines())
