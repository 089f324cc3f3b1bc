"""The tables that exist once: [daemon], [http], [control], [journal], [history], [runtimes]."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from eventd.model import ControlSettings, DaemonSettings, HistorySettings, HttpSettings, JournalSettings, RuntimeSettings
from eventd.settings.places import absolute, default_socket, default_state
from eventd.settings.report import Report
from eventd.settings.tables import ControlTable, DaemonTable, HistoryTable, HttpTable, JournalTable, RuntimesTable, Table
from eventd.settings.values import check_socket, is_loopback

OneTable = TypeVar("OneTable", bound=Table)


class Single(NamedTuple):
    daemon: DaemonSettings
    control: ControlSettings
    http: HttpSettings
    journal: JournalSettings
    history: HistorySettings
    runtimes: RuntimeSettings


def read_single(report: Report, file: str, environ: Mapping[str, str]) -> Single:
    """All of them with their defaults; what is wrong is noted and takes its default."""
    base = os.path.dirname(os.path.abspath(file))
    http = _http(report)
    daemon = _table(report, DaemonTable, "daemon")
    state = daemon.state or default_state(environ, base)
    return Single(
        DaemonSettings(
            handlers=absolute(daemon.handlers, base),
            plugins=absolute(daemon.plugins, base),
            state=os.path.abspath(state),
            concurrency=daemon.concurrency,
            timezone=daemon.timezone,
            drain_timeout_ms=daemon.drain_timeout,
            region=daemon.region,
            account=daemon.account,
            reload=daemon.reload,
            log_level=daemon.log_level,
            log_format=daemon.log_format,
        ),
        _control(report, environ, os.path.abspath(state), http),
        http,
        _journal(report),
        _history(report),
        _runtimes(report, base),
    )


def _table(report: Report, model: type[OneTable], name: str) -> OneTable:
    return report.validate(model, report.subtable((name,)), (name,)) or model()


def _http(report: Report) -> HttpSettings:
    table = _table(report, HttpTable, "http")
    _no_repeats(report, "http", table.listen)
    return HttpSettings(
        listen=tuple(table.listen),
        max_body=table.max_body,
        max_headers=table.max_headers,
        header_timeout_ms=table.header_timeout,
        body_timeout_ms=table.body_timeout,
        max_connections=table.max_connections,
        trusted_proxies=tuple(table.trusted_proxies),
    )


def _no_repeats(report: Report, name: str, listen: list[str]) -> None:
    for index, address in enumerate(listen):
        if address in listen[:index] and not address.endswith(":0"):
            report.error((name, "listen", index), f"{address!r} is listed twice", "Remove one of them")


def _control(report: Report, environ: Mapping[str, str], state: str, http: HttpSettings) -> ControlSettings:
    table = _table(report, ControlTable, "control")
    socket = table.socket or default_socket(environ, state)
    try:
        check_socket(socket)
    except ValueError as error:
        where = "socket" if table.socket else "state"
        report.error(
            ("control" if table.socket else "daemon", where), str(error), "Set [control] socket to a shorter path, for example in /run"
        )
    if table.mode & stat.S_IWOTH:
        report.warn(("control", "mode"), "every user of this machine may invoke, read and change everything", 'Use "0660" and a group')
    if table.group:
        _group(report, table.group)
    _no_repeats(report, "control", table.listen)
    for index, address in enumerate(table.listen):
        if address in http.listen and not address.endswith(":0"):
            report.error(("control", "listen", index), f"{address!r} is in [http] listen too", "Give each door its own port")
        if not is_loopback(address) and not table.credentials:
            text = f"{address!r} can be reached from other machines, and nobody would have to prove who they are"
            report.error(("control", "listen", index), text, "Add credentials, or listen on 127.0.0.1")
    seen: set[str] = set()
    for index, pair in enumerate(table.credentials):
        if pair.id in seen:
            report.error(("control", "credentials", index, "id"), f"the id {pair.id!r} is used twice", "Give each its own")
        seen.add(pair.id)
        check_secret_file(report, ("control", "credentials", index, "secret_file"), pair.secret_file, required=True)
    return ControlSettings(
        socket=socket,
        mode=table.mode,
        group=table.group,
        listen=tuple(table.listen),
        credentials=tuple({"id": pair.id, "secret_file": pair.secret_file} for pair in table.credentials),
    )


def _group(report: Report, name: str) -> None:
    try:
        grp.getgrnam(name)
    except (KeyError, ValueError):
        report.error(("control", "group"), f"there is no group {name!r:.70} on this machine", "Create it, or name another")


def check_secret_file(report: Report, path: tuple[str | int, ...], file: str, *, required: bool = False) -> None:
    """Warn of a secret that everybody may read; say when it is missing. What may not be looked at is left to the daemon's user."""
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if required:
            report.error(path, f"{file!r} does not exist", "Create it, or fix the path")
        else:
            report.warn(path, f"{file!r} does not exist", "Create it before the function is used, or fix the path")
        return
    except (OSError, ValueError):
        return
    if stat.S_ISDIR(mode):
        report.error(path, f"{file!r} is a folder", "Name the file in it")
    elif mode & stat.S_IROTH:
        report.warn(path, f"every user of this machine may read the secret in {file!r}", f"Run: chmod o-r {file}")


def _journal(report: Report) -> JournalSettings:
    table = _table(report, JournalTable, "journal")
    return JournalSettings(limit=table.limit, min_free=table.min_free, dedup_window_ms=table.dedup_window)


def _history(report: Report) -> HistorySettings:
    table = _table(report, HistoryTable, "history")
    return HistorySettings(
        runs_ms=table.runs, runs_limit=table.runs_limit, dead_ms=table.dead, output=table.output, output_per_run=table.output_per_run
    )


def _runtimes(report: Report, base: str) -> RuntimeSettings:
    table = _table(report, RuntimesTable, "runtimes")
    node = table.node.path
    if "/" in node:
        node = absolute(node, report.document.base(("runtimes", "node", "path")) if report.document.files else base)
    return RuntimeSettings(python_path=table.python.path or "", python_pip_args=tuple(table.python.pip_args), node_path=node)
