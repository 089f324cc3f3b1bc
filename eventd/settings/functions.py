"""[functions.NAME] and the handlers folder, put together into FunctionSettings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventd.model import FunctionSettings, Problem, Retry
from eventd.settings.daemon import check_secret_file
from eventd.settings.discover import Declared, Discovery, Found, discover
from eventd.settings.report import Report
from eventd.settings.sentences import nearest, shown
from eventd.settings.tables import FunctionTable, RetryTable
from eventd.settings.values import NAME, NAME_RULE


def read_tables(report: Report) -> dict[str, FunctionTable]:
    """Every [functions.N] table; one with mistakes takes part with the keys that are right."""
    out: dict[str, FunctionTable] = {}
    for name, data in report.subtable(("functions",)).items():
        path = ("functions", name)
        if not NAME.fullmatch(name):
            report.error(path, f"{name!r:.100} cannot be the name of a function", NAME_RULE, code="E-NAME")
            continue
        if not isinstance(data, dict):
            report.error(path, f"must be a table, not {shown(data)}", f"Write [functions.{name}] and its keys below it")
            continue
        out[name] = report.validate(FunctionTable, data, path) or FunctionTable()
    return out


def read_functions(
    report: Report, tables: Mapping[str, FunctionTable], folder: str, concurrency: int, previous: Mapping[str, FunctionSettings]
) -> tuple[dict[str, FunctionSettings], Discovery]:
    """Discover the code and give each function its settings. A table without code is an error, unless a file is missing anyway."""
    discovery = discover(folder, {name: _declared(report, name, table) for name, table in tables.items()}, previous)
    for note in discovery.notes:
        if note.key is not None:
            report.add(note.key, note.message, note.hint, code=note.code, severity=note.severity)
        else:
            report.problems.append(Problem(note.code, note.severity, note.file, 0, "", note.message, note.hint))
    for name in tables:
        if name in discovery.found or ("functions", name) in _noted(discovery):
            continue
        path = ("functions", name)
        if reason := discovery.refused.get(name):
            report.error(path, reason)
        elif guess := nearest(name, discovery.found):
            report.error(path, f"there is no function '{name}'{guess}", f"Its code would be {folder}/{name}.py, or what path names")
        else:
            report.error(path, f"there is no function '{name}'", f"Put its code at {folder}/{name}.py (or .js, or a folder), or set path")
    for name in tables:
        if name not in discovery.found:
            discovery.refused.setdefault(name, "")
    default = FunctionTable()
    functions = {
        name: _settings(report, found, tables.get(name, default), max(1, concurrency // 2))
        for name, found in sorted(discovery.found.items())
    }
    return functions, discovery


def _noted(discovery: Discovery) -> set[tuple[str | int, ...]]:
    return {note.key[:2] for note in discovery.notes if note.key is not None and note.severity == "error"}


def _declared(report: Report, name: str, table: FunctionTable) -> Declared:
    return Declared(
        path=table.path,
        command=tuple(table.command) if table.command else None,
        runtime=table.runtime,
        handler=table.handler,
        base=report.document.base(("functions", name, "command")),
    )


def _settings(report: Report, found: Found, table: FunctionTable, default_concurrency: int) -> FunctionSettings:
    path = ("functions", found.name)
    concurrency = default_concurrency if table.concurrency is None else table.concurrency
    if table.provisioned > concurrency:
        report.error(
            (*path, "provisioned"),
            f"{table.provisioned} workers can never run at once with concurrency {concurrency}",
            "Lower it, or raise concurrency",
        )
    if table.provisioned and found.runtime == "exec":
        report.warn((*path, "provisioned"), "an exec function starts a process for each run, so no worker is kept", "Leave it out")
    if table.snapshot:
        report.warn((*path, "snapshot"), "it is not built yet and has no effect", "Leave it out")
    for key in sorted(set(table.environment) & set(table.secrets)):
        report.error((*path, "secrets", key), f"{key} stands in environment too", "Keep one of the two")
    for key, ref in table.secrets.items():
        if ref.startswith("file:"):
            check_secret_file(report, (*path, "secrets", key), ref[5:])
    return FunctionSettings(
        name=found.name,
        runtime=found.runtime,
        source=found.source,
        handler=table.handler,
        command=found.command,
        timeout_ms=table.timeout,
        memory_mib=table.memory,
        concurrency=concurrency,
        wait_ms=table.wait,
        provisioned=table.provisioned,
        idle_ms=table.idle,
        init_timeout_ms=table.init_timeout,
        grace_ms=table.grace,
        retry=retry(table.retry),
        max_event_age_ms=table.max_event_age,
        rate=table.rate,
        on_success=table.on_success,
        on_failure=table.on_failure,
        environment=dict(table.environment),
        secrets=dict(table.secrets),
        url=table.url,
        snapshot=table.snapshot,
        paused=table.paused,
        requirements=found.requirements,
        origin=found.origin,
    )


def retry(table: RetryTable) -> Retry:
    return Retry(attempts=table.attempts, waits_ms=tuple(table.waits), jitter=table.jitter)


def check_destination(
    report: Report, path: tuple[str | int, ...], value: Any, functions: Mapping[str, object], refused: Mapping[str, str]
) -> None:
    """`function:NAME` names a function there is. None is told of anything yet, and whoever asks for it must know."""
    known = not (isinstance(value, str) and value.startswith("function:")) or check_function(report, path, value[9:], functions, refused)
    if value is not None and known:
        report.warn(path, "destinations are not built yet: nobody is told", "Dead events are kept; see them with 'eventd dead'")


def check_function(
    report: Report, path: tuple[str | int, ...], name: str, functions: Mapping[str, object], refused: Mapping[str, str]
) -> bool:
    """Note a name that is no function's, with the reason if its code is there, else with what was probably meant.

    A name refused without a reason has been noted at its own table.
    """
    if name in functions:
        return True
    if name in refused:
        if refused[name]:
            report.error(path, f"the function '{name}' cannot be used: {refused[name]}")
    elif guess := nearest(name, functions):
        report.error(path, f"unknown function '{name}'{guess}")
    else:
        known = ", ".join(list(functions)[:20]) or "none"
        report.error(path, f"unknown function '{name[:100]}'", f"Put its code into the handlers folder. Known are: {known}")
    return False
