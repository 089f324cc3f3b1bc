"""What a file or folder of user code is: which runtime, which entry module, whose dependencies, and whether it may be trusted.

Nothing here runs or imports the code. Reads are bounded; whatever cannot be read is judged by what is known of it.
"""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

EXTENSIONS: Final = {".py": "python", ".js": "node", ".mjs": "node", ".cjs": "node"}
NODE_EXTENSIONS: Final = (".js", ".mjs", ".cjs")
IGNORED_ENDINGS: Final = ("~", ".swp", ".tmp", ".part", ".pyc", ".md", ".txt", ".json", ".toml")
IGNORED_NAMES: Final = frozenset({"__pycache__", "node_modules"})
MAX_SOURCE: Final = 4 * 1024 * 1024
MAX_TREE: Final = 20_000

# PEP 723 gives this expression for tools to copy.
_SCRIPT: Final = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_NODE_ENTRY: Final = re.compile(
    r"exports\s*\.\s*(?:handler|lambda_handler)\b"
    r"|\bexport\s+(?:(?:async\s+)?function\s*\*?|const|let|var|class)\s+(?:handler|lambda_handler)\b"
    r"|(?:module\.exports\s*=|\bexport)\s*\{[^}]*\b(?:handler|lambda_handler)\b"
)
_ENTRIES: Final = frozenset({"handler", "lambda_handler"})


class Code(NamedTuple):
    """`runtime`, and for python and node the file (relative to a folder, else the file's own name) that holds the entry."""

    runtime: str
    module: str = ""


def is_ignored(name: str) -> bool:
    """Names in the handlers folder that are never functions."""
    return name.startswith(("_", ".")) or name.endswith(IGNORED_ENDINGS) or name in IGNORED_NAMES


def classify(path: str, name: str, handler: str | None = None) -> Code | None:
    """The runtime of function `name` whose code is the file or folder `path`; None when it is no function. Links are followed."""
    if os.path.isdir(path):
        return _classify_folder(path, name, handler)
    if runtime := EXTENSIONS.get(os.path.splitext(path)[1]):
        return Code(runtime, os.path.basename(path))
    return Code("exec") if is_executable(path) else None


def _classify_folder(path: str, name: str, handler: str | None) -> Code | None:
    if is_executable(os.path.join(path, "bootstrap")):
        return Code("provided")
    stems = [name, "lambda_function", "index"]
    if handler and "." in handler:
        # "module.function", "pkg.module.function" and Lambda's "folder/module.function" name the file they are in
        module = handler.rpartition(".")[0]
        stems = [module, module.replace(".", "/"), *stems]
    for stem in stems:
        if _inside(path, stem + ".py"):
            return Code("python", stem + ".py")
    for stem in (*stems[:-3], "index"):
        for extension in NODE_EXTENSIONS:
            if _inside(path, stem + extension):
                return Code("node", stem + extension)
    return None


def _inside(folder: str, relative: str) -> bool:
    parts = relative.split("/")
    return "" not in parts and ".." not in parts and "\0" not in relative and os.path.isfile(os.path.join(folder, relative))


def is_executable(path: str) -> bool:
    """A regular file with an execute bit for anybody."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def head(path: str, limit: int = MAX_SOURCE) -> bytes:
    """The first `limit` bytes of a file; empty when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(limit)
    except (OSError, ValueError):
        return b""


def has_default_entry(path: str, runtime: str) -> bool:
    """Whether a single file seems to define `handler` or `lambda_handler`. Text alone is looked at; exec files are their own entry."""
    text = head(path).decode("utf-8", "replace")
    if runtime == "node":
        return bool(_NODE_ENTRY.search(text))
    if runtime != "python":
        return True
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return bool(re.search(r"(?m)^\s*(?:(?:async\s+)?def\s+)?(?:handler|lambda_handler)\b\s*[=(:]", text))
    return any(_defined(statement) & _ENTRIES for statement in _statements(tree.body))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Module-level statements, also those inside `if`, `try` and `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _defined(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name for alias in names}
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        case _:
            return set()


def inline_script(text: str) -> str | None:
    """The TOML of the PEP 723 `# /// script` block, or None. Raises ValueError when there are several."""
    found = [match for match in _SCRIPT.finditer(text.replace("\r\n", "\n")) if match["type"] == "script"]
    if len(found) > 1:
        raise ValueError("the file has more than one '# /// script' block")
    if not found:
        return None
    lines = found[0]["content"].splitlines(keepends=True)
    return "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)


def requirements_for(source: str, runtime: str) -> str | None:
    """The requirements file that applies: the folder's own; for a single file without an inline block, the one beside it."""
    if runtime != "python" or not source:
        return None
    if os.path.isdir(source):
        beside = os.path.join(source, "requirements.txt")
    else:
        beside = os.path.join(os.path.dirname(source), "requirements.txt")
        try:
            if inline_script(head(source).decode("utf-8", "replace")) is not None:
                return None
        except ValueError:
            return None  # the build reads the block again and says what is wrong with it
    return beside if os.path.isfile(beside) else None


def carriage_return(path: str) -> bool:
    """A script whose first line ends in CR: the kernel would look for an interpreter with CR in its name (execve(2))."""
    first = head(path, 4096).partition(b"\n")[0]
    return first.startswith(b"#!") and first.endswith(b"\r")


def writable_by_others(source: str) -> str | None:
    """The first file or folder of `source` that any user may write, or None. Links inside a folder are not followed.

    A single file counts as writable when its folder is, unless the sticky bit keeps others from replacing it.
    """
    try:
        mode = os.stat(source).st_mode
        if mode & stat.S_IWOTH:
            return source
        if not stat.S_ISDIR(mode):
            above = os.path.dirname(os.path.realpath(source))
            mode = os.stat(above).st_mode
            return above if mode & stat.S_IWOTH and not mode & stat.S_ISVTX else None
    except (OSError, ValueError):
        return None
    return _writable_in_tree(source)


def _writable_in_tree(folder: str) -> str | None:
    seen, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MAX_TREE:
                        return None
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISLNK(mode):
                        continue
                    if mode & stat.S_IWOTH and not stat.S_ISSOCK(mode):
                        return entry.path
                    if stat.S_ISDIR(mode):
                        folders.append(entry.path)
        except OSError:
            continue
    return None
