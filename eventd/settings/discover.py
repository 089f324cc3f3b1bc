"""Which functions there are: the handlers folder and the code that TOML names, put together (surface.md 4, D20, D22)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from eventd.model import FunctionSettings
from eventd.settings import code
from eventd.settings.scanner import Path
from eventd.settings.values import NAME, NAME_RULE

MAX_ENTRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Declared:
    """What a `[functions.N]` table says about the code."""

    path: str | None = None
    command: tuple[str, ...] | None = None
    runtime: str | None = None
    handler: str | None = None
    base: str = ""
    """The folder that a relative command is relative to when there is no code beside it."""


@dataclass(frozen=True, slots=True)
class Found:
    """One function's code. `source` is the absolute file or folder, links not resolved, empty when there is only a command.

    With a source a relative program in `command` is relative to the copied code; without one it is absolute here.
    `broken` is the cause when the code is there but is known not to start.
    """

    name: str
    runtime: str
    source: str
    requirements: str | None
    origin: str
    command: tuple[str, ...] | None = None
    module: str = ""
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A finding. `key` is its place in TOML (then `file` is empty), else it is about `file`."""

    code: str
    severity: str
    message: str
    hint: str = ""
    key: Path | None = None
    file: str = ""


@dataclass(slots=True)
class Discovery:
    found: dict[str, Found] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Names whose code is there but is not taken, and why."""


def discover(folder: str, declared: Mapping[str, Declared], previous: Mapping[str, FunctionSettings]) -> Discovery:
    """Find all functions. Nothing is raised and nothing is run.

    A finding about one dropped file is a warning, so that it never rejects the rest; a finding about what TOML names is
    an error. `previous` are the functions loaded now: of two files that claim a name the one already loaded stays.
    """
    out = Discovery()
    named = {os.path.realpath(each.path): name for name, each in declared.items() if each.path}
    candidates = _candidates(folder, declared, named, out)
    for name, each in declared.items():
        if each.path or (each.command and name not in candidates):
            _from_toml(name, each, candidates.get(name, []), out)
    for name, paths in candidates.items():
        known = declared.get(name, Declared())
        if name not in out.found and not known.path:
            _from_folder(name, known, paths, previous.get(name), out)
    return out


def _candidates(folder: str, declared: Mapping[str, Declared], named: Mapping[str, str], out: Discovery) -> dict[str, list[str]]:
    """Files and folders that claim a name, for each name: the folder first, then files by their own names."""
    claims: dict[str, list[str]] = {}
    for path in _entries(folder, out):
        base = os.path.basename(path)
        is_folder = os.path.isdir(path)
        name = base if is_folder else os.path.splitext(base)[0]
        kind = code.classify(path, name, declared[name].handler if name in declared else None)
        if kind is None and not (name in declared and (declared[name].command or declared[name].runtime)):
            _say_why_not(path, name, is_folder, out)
            continue
        if not NAME.fullmatch(name):
            better = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:64]
            hint = f"{NAME_RULE}" + (f" Call it {better + base[len(name) :]!r}." if better else "")
            out.notes.append(Note("E-NAME", "warning", f"{base!r:.100} cannot be the name of a function.", hint, file=path))
            continue
        other = named.get(os.path.realpath(path))
        if other and other != name and name not in declared and not is_folder and kind and not code.has_default_entry(path, kind.runtime):
            continue  # only the functions that TOML makes of this file (D20)
        claims.setdefault(name, []).append(path)
    for paths in claims.values():
        paths.sort(key=lambda path: (not os.path.isdir(path), path))
    return claims


def _entries(folder: str, out: Discovery) -> list[str]:
    key: Path = ("daemon", "handlers")
    try:
        if os.stat(folder).st_mode & stat.S_IWOTH:
            hint = f"Run: chmod o-w {folder}"
            out.notes.append(
                Note("E-CONFIG", "error", f"every user of this machine may write to the handlers folder {folder!r}.", hint, key=key)
            )
            return []
        names = sorted(name for name in os.listdir(folder) if not code.is_ignored(name))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        out.notes.append(Note("E-CONFIG", "error", f"{folder!r} is not a folder.", "Name the folder of the handlers.", key=key))
        return []
    except (OSError, ValueError) as error:
        out.notes.append(Note("E-CONFIG", "error", f"{folder!r} cannot be read: {error}.", "Mend its permissions.", key=key))
        return []
    if len(names) > MAX_ENTRIES:
        text = f"{folder!r} holds {len(names)} files; at most {MAX_ENTRIES} are looked at."
        out.notes.append(Note("E-CONFIG", "error", text, "Put what is not a function elsewhere.", key=key))
    return [os.path.join(folder, name) for name in names[:MAX_ENTRIES]]


def _say_why_not(path: str, name: str, is_folder: bool, out: Discovery) -> None:
    """Silence is right for data files; what looks like a function that was meant gets a sentence."""
    if is_folder:
        wanted = f"an executable bootstrap, {name}.py, lambda_function.py, index.py or index.js"
        text = f"the folder {os.path.basename(path)!r} is no function: it has none of {wanted}."
        out.notes.append(Note("W-CONFIG", "warning", text, "Add one of them, or begin the folder's name with '_'.", file=path))
        out.refused[name] = text
    elif not os.path.exists(path):
        text = f"{os.path.basename(path)!r} is a link to a file that does not exist."
        out.notes.append(Note("W-CONFIG", "warning", text, "Mend or remove the link.", file=path))
        out.refused[name] = text
    elif os.path.isfile(path) and code.head(path, 2) == b"#!":
        text = f"{os.path.basename(path)!r} looks like a script but has no execute bit, so it is no function."
        out.notes.append(Note("W-CONFIG", "warning", text, f"Run: chmod +x {path}", file=path))
        out.refused[name] = text


def _from_folder(name: str, declared: Declared, paths: list[str], previous: FunctionSettings | None, out: Discovery) -> None:
    allowed = [path for path in paths if _trusted(name, path, out)]
    if not allowed:
        return
    loaded = previous.source if previous is not None else ""
    chosen = loaded if loaded in allowed else allowed[0]
    for path in allowed:
        if path != chosen:
            stays = "the one already loaded stays" if chosen == loaded else f"{os.path.basename(chosen)!r} is used"
            text = f"two files claim the function {name!r}: {chosen} and {path}; {stays}."
            out.notes.append(Note("E-NAME", "warning", text, "Remove or rename one of them.", file=path))
    _take(name, declared, chosen, "file", out)


def _trusted(name: str, path: str, out: Discovery) -> bool:
    culprit = code.writable_by_others(path)
    if culprit is None:
        return True
    text = f"the function {name!r} is refused: every user of this machine may write {culprit!r}."
    out.notes.append(Note("E-HANDLER", "warning", text, f"Run: chmod o-w {culprit}", file=path))
    out.refused[name] = text
    return False


def _from_toml(name: str, declared: Declared, rivals: list[str], out: Discovery) -> None:
    key: Path = ("functions", name, "path")
    if declared.path is None:
        _take(name, declared, "", "config", out)
        return
    path = declared.path
    if not os.path.exists(path):
        out.notes.append(Note("E-CONFIG", "error", f"{path!r} does not exist.", "Create it, or fix the path.", key=key))
        out.refused[name] = f"{path!r} does not exist."
        return
    if culprit := code.writable_by_others(path):
        text = f"the function {name!r} is refused: every user of this machine may write {culprit!r}."
        out.notes.append(Note("E-CONFIG", "error", text, f"Run: chmod o-w {culprit}", key=key))
        out.refused[name] = text
        return
    for rival in rivals:
        if os.path.realpath(rival) != os.path.realpath(path):
            text = f"two files claim the function {name!r}: {path} by its path in the configuration, and {rival}; the first is used."
            out.notes.append(Note("E-NAME", "warning", text, "Remove or rename one of them.", file=rival))
    _take(name, declared, path, "config", out)


def _take(name: str, declared: Declared, path: str, origin: str, out: Discovery) -> None:
    """Settle the runtime of function `name` and keep it, or say why it cannot be one."""
    found = code.classify(path, name, declared.handler) if path else None
    runtime = declared.runtime or ("provided" if declared.command else found.runtime if found else None)
    place: Path = ("functions", name, "runtime" if declared.runtime else "path")
    problem = _mismatch(path, runtime, declared)
    if runtime is None or problem:
        text, hint = problem or (
            f"{path!r} is no function: its runtime cannot be told from the file.",
            "Set runtime, or make the file executable.",
        )
        out.notes.append(Note("E-CONFIG", "error", text, hint, key=place))
        out.refused[name] = text
        return
    command = declared.command
    if command and not path and "/" in command[0]:
        command = (os.path.normpath(os.path.join(declared.base, os.path.expanduser(command[0]))), *command[1:])
    broken = ""
    script = path if runtime == "exec" and not command else os.path.join(path, "bootstrap") if runtime == "provided" and not command else ""
    if script and code.carriage_return(script):
        broken = f"the first line of {os.path.basename(script)!r} ends in a carriage return, so the kernel cannot find its interpreter."
        hint = f"Save it with Unix line ends, or run: sed -i 's/\\r$//' {script}"
        out.notes.append(Note("W-CONFIG", "warning", broken, hint, file=script))
    module = found.module if found and found.runtime == runtime else ""
    requirements = code.requirements_for(path, runtime)
    out.found[name] = Found(name, runtime, path, requirements, origin, command, module, broken)
    out.refused.pop(name, None)


def _mismatch(path: str, runtime: str | None, declared: Declared) -> tuple[str, str] | None:
    if declared.command and runtime in ("python", "node"):
        return f"a command does not go with runtime = {runtime!r}.", "Leave one of them out."
    if declared.command or runtime is None:
        return None
    if not path:
        return "the function has neither code nor a command.", "Add path or command."
    if runtime == "exec" and not code.is_executable(path):
        return f"{path!r} is not an executable file.", f"Run: chmod +x {path}"
    if runtime == "provided" and not code.is_executable(os.path.join(path, "bootstrap")):
        return f"{path!r} holds no executable file 'bootstrap'.", "Add it, or set command."
    return None
