"""[triggers.NAME], their short-hand bindings and [[bindings]], with the checks that cross tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from eventd.model import BindingSettings, TriggerSettings
from eventd.settings.functions import check_destination, check_function, retry
from eventd.settings.report import Report
from eventd.settings.scanner import Path
from eventd.settings.sentences import shown, unknown
from eventd.settings.tables import COMMON_TRIGGER_KEYS, BindingTable, RetryTable, TriggerTable
from eventd.settings.values import NAME, NAME_RULE

FilterCheck = Callable[[Mapping[str, Any]], object]
"""Compiles a pattern, raising ValueError with what is wrong with it."""


class Finding(Protocol):
    """What a plugin's own check says (`eventd.sdk.Finding`). `path`: the key below the trigger's table, dotted; "" for all of it."""

    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def hint(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def transient(self) -> bool: ...


class Kind(Protocol):
    """A kind of trigger as this room needs to know it (`eventd.sdk.TriggerPlugin` is one)."""

    @property
    def kind(self) -> str: ...
    @property
    def settings(self) -> type[BaseModel]: ...
    @property
    def check(self) -> Callable[[str, Any, Mapping[str, Any]], Iterable[Finding]]: ...
    @property
    def batching(self) -> Callable[[Any], Any]: ...
    @property
    def direct(self) -> Callable[[Any], bool]: ...


@dataclass(slots=True)
class Triggers:
    """`names` are all that the configuration mentions, also those whose tables have mistakes."""

    names: set[str] = field(default_factory=set)
    triggers: dict[str, TriggerSettings] = field(default_factory=dict)
    bindings: dict[str, BindingSettings] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    """Where each binding stands."""
    bound: set[str] = field(default_factory=set)
    """Triggers that some binding means, right or wrong."""


def read_triggers(report: Report, kinds: Mapping[str, Kind], check_filter: FilterCheck | None, *, boot: bool) -> Triggers:
    """Every trigger's table with its plugin's model, and the bindings, without the checks against functions."""
    out = Triggers()
    for name, data in report.subtable(("triggers",)).items():
        _trigger(report, kinds, check_filter, name, data, out)
    for kind in kinds.values():
        _plugin_checks(report, kind, out, boot=boot)
    _long_form(report, check_filter, out)
    return out


def _trigger(report: Report, kinds: Mapping[str, Kind], check_filter: FilterCheck | None, name: str, data: Any, out: Triggers) -> None:
    path: Path = ("triggers", name)
    out.names.add(name)
    if not NAME.fullmatch(name):
        report.error(path, f"{name!r:.100} cannot be the name of a trigger", NAME_RULE)
        return
    if not isinstance(data, dict):
        report.error(path, f"must be a table, not {shown(data)}", f"Write [triggers.{name}] and its keys below it")
        return
    common = {key: value for key, value in data.items() if key in COMMON_TRIGGER_KEYS}
    options = {key: value for key, value in data.items() if key not in COMMON_TRIGGER_KEYS}
    if "type" not in data:
        report.error((*path, "type"), "'type' is required", f"Known types are: {', '.join(sorted(kinds)) or 'none'}")
    table = report.validate(TriggerTable, common if "type" in data else {**common, "type": ""}, path)
    if table is None:
        return
    if table.function is not None:
        _add_binding(report, check_filter, _from_short(name, table), path, out)
    elif table.filter is not None:
        report.error((*path, "filter"), "a filter needs a function beside it", "Add function, or put the filter into a [[bindings]] table")
    kind = kinds.get(table.type)
    if kind is None:
        if table.type:
            report.error((*path, "type"), *unknown("type of trigger", table.type, kinds, listing="Known types are"))
        return
    settings = report.validate(kind.settings, options, path, also_known=COMMON_TRIGGER_KEYS)
    if settings is not None:
        out.triggers[name] = TriggerSettings(
            name=name,
            type=table.type,
            options=settings,
            digest=digest(table.type, settings),
            paused=table.paused,
            concurrency=table.concurrency,
        )


def digest(type: str, options: BaseModel) -> str:
    """32 hex digits that change when the type or any option does."""
    try:
        data: Any = options.model_dump(mode="json")
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    except Exception:  # a stranger's model need not be JSON: its repr says the same, if less tersely
        text = repr(options)
    return hashlib.sha256(f"{type}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _from_short(trigger: str, table: TriggerTable) -> BindingSettings:
    return BindingSettings(name=f"{trigger}/{table.function}", trigger=trigger, function=table.function or "", filter=table.filter)


def _long_form(report: Report, check_filter: FilterCheck | None, out: Triggers) -> None:
    rows = report.document.data.get("bindings", [])
    if not isinstance(rows, list):
        report.error(("bindings",), f"must be a list of tables, not {shown(rows)}", "Write [[bindings]], with two brackets")
        return
    for index, data in enumerate(rows):
        path: Path = ("bindings", index)
        if not isinstance(data, dict):
            report.error(path, f"must be a table, not {shown(data)}", "Write [[bindings]] and its keys below it")
            continue
        if isinstance(data.get("trigger"), str):
            out.bound.add(data["trigger"])
        table = report.validate(BindingTable, data, path)
        if table is None:
            continue
        default = f"{table.trigger}/{table.function}"
        if table.name is not None and table.name != default and not NAME.fullmatch(table.name):
            report.error((*path, "name"), f"{table.name!r:.100} cannot be the name of a binding", NAME_RULE)
            continue
        binding = BindingSettings(
            name=table.name or default,
            trigger=table.trigger,
            function=table.function,
            filter=table.filter,
            paused=table.paused,
            retry=retry(table.retry) if isinstance(table.retry, RetryTable) else None,
            max_event_age_ms=table.max_event_age,
            on_success=table.on_success,
            on_failure=table.on_failure,
        )
        _add_binding(report, check_filter, binding, path, out)


def _add_binding(report: Report, check_filter: FilterCheck | None, binding: BindingSettings, path: Path, out: Triggers) -> None:
    out.bound.add(binding.trigger)
    if binding.filter is not None and check_filter is not None:
        try:
            check_filter(binding.filter)
        except (ValueError, TypeError, RecursionError) as error:
            report.error((*path, "filter"), f"the filter is not a pattern: {error}")
    if binding.name in out.bindings:
        file, line = report.document.at(out.paths[binding.name])
        report.error(
            path, f"two bindings are called {binding.name!r}: this one and that in {file}:{line}", "Give one of them a name of its own"
        )
        return
    out.bindings[binding.name] = binding
    out.paths[binding.name] = path


def _plugin_checks(report: Report, kind: Kind, out: Triggers, *, boot: bool) -> None:
    """A plugin's own findings, each on the line of its key. At boot what may heal by itself does not keep the daemon from starting."""
    same = {name: each.options for name, each in out.triggers.items() if each.type == kind.kind}
    for name, options in same.items():
        path: Path = ("triggers", name)
        try:
            for finding in kind.check(name, options, same):
                place = (*path, *(_part(part) for part in finding.path.split("."))) if finding.path else path
                if finding.severity == "error" and not (boot and finding.transient):
                    report.error(place, finding.message, finding.hint)
                else:
                    report.warn(place, finding.message, finding.hint)
        except Exception as error:  # as in Report.validate
            text = f"the check of the plugin '{kind.kind}' failed: {type(error).__name__}: {error}"
            report.error(path, text, "This is a mistake in the plugin", code="E-INTERNAL")


def _part(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def cross_check(
    report: Report, kinds: Mapping[str, Kind], out: Triggers, functions: Mapping[str, object], refused: Mapping[str, str]
) -> None:
    """Bindings name triggers and functions there are; a direct trigger has exactly one binding; any other has some."""
    for name, binding in out.bindings.items():
        path = out.paths[name]
        if path[0] == "bindings" and binding.trigger not in out.names:
            report.error((*path, "trigger"), *unknown("trigger", binding.trigger, out.names, listing="Triggers are"))
        check_function(report, (*path, "function"), binding.function, functions, refused)
        check_destination(report, (*path, "on_success"), binding.on_success, functions, refused)
        check_destination(report, (*path, "on_failure"), binding.on_failure, functions, refused)
    for name, trigger in out.triggers.items():
        path = ("triggers", name)
        own = [binding for binding in out.bindings.values() if binding.trigger == name]
        if name in out.bound and not own:
            continue  # its only binding has a mistake of its own
        if _is_direct(report, kinds[trigger.type], trigger, path):
            if len(own) != 1:
                text = f"its caller waits for the answer of one function, but it has {len(own) or 'no'} bindings"
                report.error(path, text, "Set function here and nowhere else" if not own else "Keep one of them")
        elif not own:
            report.warn(path, "it has no binding, so its events go nowhere", "Set function, or write a [[bindings]] table")


def _is_direct(report: Report, kind: Kind, trigger: TriggerSettings, path: Path) -> bool:
    try:
        return kind.direct(trigger.options)
    except Exception as error:  # as in Report.validate
        text = f"the plugin '{kind.kind}' failed: {type(error).__name__}: {error}"
        report.error(path, text, "This is a mistake in the plugin", code="E-INTERNAL")
        return False
