"""The way from FILE to Settings: read, merge, validate, discover, cross-check; every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from eventd.model import FunctionSettings, Problem, Settings
from eventd.settings.daemon import read_single
from eventd.settings.files import by_place, read
from eventd.settings.functions import check_destination, read_functions, read_tables
from eventd.settings.locate import Peek, find_config, peek, require_config
from eventd.settings.report import Report
from eventd.settings.sentences import unknown
from eventd.settings.tables import TOP_LEVEL
from eventd.settings.triggers import FilterCheck, Finding, Kind, cross_check, read_triggers

__all__ = ["FilterCheck", "Finding", "Kind", "Loading", "Peek", "find_config", "load", "peek", "require_config"]

_NONE: Final[Mapping[str, FunctionSettings]] = MappingProxyType({})


class Loading(NamedTuple):
    """`settings` is None exactly when some problem is an error: a configuration is taken whole or not at all.

    `files` are FILE and what was found in conf.d, as shown in the problems. `broken` names functions that are in the settings
    but whose code is known not to start, and why.
    """

    settings: Settings | None
    problems: list[Problem]
    files: tuple[str, ...] = ()
    broken: Mapping[str, str] = MappingProxyType({})


def load(
    file: str,
    kinds: Mapping[str, Kind],
    *,
    environ: Mapping[str, str] = os.environ,
    previous: Mapping[str, FunctionSettings] = _NONE,
    check_filter: FilterCheck | None = None,
    boot: bool = False,
) -> Loading:
    """Read the configuration FILE with conf.d/*.toml beside it and the handlers folder it names.

    Never raises for what the files say. Blocking: it reads files and asks the file system about paths; call it from a thread
    in the daemon. `previous` are the functions loaded now (D20); `check_filter` compiles a pattern, raising ValueError.
    At `boot` what a plugin finds and calls transient is a warning: the trigger starts degraded and is retried.
    A handler file with a problem of its own is a warning and rejects nothing; an unknown function in a binding is an error.
    """
    document, problems = read(file)
    report = Report(document, problems)
    for name in document.data:
        if name not in TOP_LEVEL:
            report.error(
                (name,), *unknown("table" if isinstance(document.data[name], dict) else "key", name, TOP_LEVEL, listing="Tables are")
            )
    single = read_single(report, file, environ)
    tables = read_tables(report)
    triggers = read_triggers(report, kinds, check_filter, boot=boot)
    if not document.complete:  # what seems unknown may stand in the file that could not be read
        return Loading(None, _unique(report.problems, document.files), tuple(document.files))
    functions, discovery = read_functions(report, tables, single.daemon.handlers, single.daemon.concurrency, previous)
    for name, function in functions.items():
        for key in ("on_success", "on_failure"):
            check_destination(report, ("functions", name, key), getattr(function, key), functions, discovery.refused)
    cross_check(report, kinds, triggers, functions, discovery.refused)
    found = _unique(report.problems, document.files)
    broken = {name: each.broken for name, each in discovery.found.items() if each.broken}
    if any(problem.severity == "error" for problem in found):
        return Loading(None, found, tuple(document.files), broken)
    settings = Settings(
        file=os.path.abspath(file),
        daemon=single.daemon,
        control=single.control,
        http=single.http,
        journal=single.journal,
        history=single.history,
        runtimes=single.runtimes,
        functions=functions,
        triggers=triggers.triggers,
        bindings=triggers.bindings,
    )
    return Loading(settings, found, tuple(document.files), broken)


def _unique(problems: list[Problem], files: list[str]) -> list[Problem]:
    return list(dict.fromkeys(by_place(problems, files)))
