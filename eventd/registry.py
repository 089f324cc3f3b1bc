"""Which kinds of triggers there are: the plugins installed under the entry-point group `eventd.triggers`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Final

from pydantic import BaseModel

from eventd.model import Problem
from eventd.sdk import TriggerPlugin
from eventd.settings.tables import COMMON_TRIGGER_KEYS

GROUP: Final = "eventd.triggers"
RESERVED: Final = frozenset(COMMON_TRIGGER_KEYS)
"""Keys that every trigger has; a plugin's settings cannot have them too."""
_KIND: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def find_triggers() -> tuple[dict[str, TriggerPlugin], list[Problem]]:
    """Every usable kind by name, and a problem for every plugin that is not usable. Imports the plugins; never raises.

    A broken plugin stops no other, so its problem is a warning; a trigger that names its kind is an error in the configuration.
    """
    kinds: dict[str, TriggerPlugin] = {}
    owners: dict[str, str] = {}
    problems: list[Problem] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        where = f"{point.name} = {point.value}"
        try:
            plugin = accept(_load(point))
        except (Exception, SystemExit) as error:  # a stranger's module: whatever it does on import is its own failure
            cause = f"{type(error).__name__}: {error}" if not isinstance(error, _Unfit) else str(error)
            hint = f"Repair or uninstall the package {point.dist.name}." if point.dist else "Repair or uninstall its package."
            problems.append(
                Problem("E-CONFIG", "warning", where, 0, "", f"the trigger plugin '{point.name}' cannot be used: {cause}.", hint)
            )
            continue
        if plugin.kind in kinds:
            text = f"two plugins are of the kind '{plugin.kind}': {owners[plugin.kind]}, which is used, and this one."
            problems.append(Problem("E-CONFIG", "warning", where, 0, "", text, "Uninstall one of them."))
            continue
        kinds[plugin.kind] = plugin
        owners[plugin.kind] = where
    return kinds, problems


class _Unfit(ValueError):
    """A plugin that could be loaded and is not what a plugin must be."""


def _load(point: EntryPoint) -> Any:
    value = point.load()
    return getattr(value, "plugin", None) if isinstance(value, ModuleType) else value


def accept(value: Any) -> TriggerPlugin:
    """Hold a value against the plugin's contract when it is registered, not when it is first used.

    Raises ValueError with the first thing that is wrong with it.
    """
    if not isinstance(value, TriggerPlugin):
        raise _Unfit(f"it is not a TriggerPlugin but {type(value).__name__}")
    if not isinstance(value.kind, str) or not _KIND.fullmatch(value.kind):
        raise _Unfit(f"its kind {value.kind!r:.70} is not 1 to 32 lower-case letters, digits, '-' or '_'")
    if not (isinstance(value.settings, type) and issubclass(value.settings, BaseModel)):
        raise _Unfit("its settings are not a pydantic model")
    if value.settings.model_config.get("extra") != "forbid":
        raise _Unfit("its settings let unknown keys through; derive them from PluginSettings")
    taken = {field.alias or name for name, field in value.settings.model_fields.items()} & RESERVED
    if taken:
        raise _Unfit(f"its settings have the keys {', '.join(sorted(taken))}, which every trigger has already")
    if not _is_async(value.run):
        raise _Unfit("its run is not an async function")
    for name in ("check", "batching", "direct"):
        if not callable(getattr(value, name)):
            raise _Unfit(f"its {name} is not a function")
    return value


def _is_async(run: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(getattr(run, "__call__", None))  # noqa: B004
