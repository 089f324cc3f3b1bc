"""The difference of two configurations, as data: what to keep, open, close and replace on a reload."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from eventd.model import Settings


class Action(StrEnum):
    OPEN = "open"
    CLOSE = "close"
    REPLACE = "replace"
    KEEP = "keep"


class Change(Struct, frozen=True):
    """`kind` is function, trigger, binding, or the name of a daemon table."""

    kind: str
    name: str
    action: Action


def difference(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Changes from `old` to `new`, in name order. Equal values are kept."""
    changes = []
    for name in sorted({*old, *new}):
        if name not in old:
            action = Action.OPEN
        elif name not in new:
            action = Action.CLOSE
        else:
            action = Action.KEEP if old[name] == new[name] else Action.REPLACE
        changes.append(Change(kind, name, action))
    return changes


TABLES = ("daemon", "http", "control", "journal", "history", "runtimes")


def plan(old: Settings | None, new: Settings) -> list[Change]:
    """Everything that a reload has to do, functions first (a trigger needs its functions)."""
    nothing: Mapping[str, Any] = {}
    changes = difference("function", old.functions if old else nothing, new.functions)
    changes += difference("trigger", _triggers(old) if old else nothing, _triggers(new))
    changes += difference("binding", old.bindings if old else nothing, new.bindings)
    for table in TABLES:
        if old is not None and getattr(old, table) != getattr(new, table):
            changes.append(Change(table, table, Action.REPLACE))
    return changes


def _triggers(settings: Settings) -> Mapping[str, Any]:
    """A trigger's identity for a reload: its type, its own settings and its bindings (it is told of them when it starts)."""
    bound: dict[str, list[Any]] = {name: [] for name in settings.triggers}
    for binding in settings.bindings.values():
        if binding.trigger in bound:
            bound[binding.trigger].append((binding.name, binding.function))
    return {name: (t.type, t.digest, sorted(bound[name])) for name, t in settings.triggers.items()}
