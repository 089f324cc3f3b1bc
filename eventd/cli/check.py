"""`eventd check`: everything the daemon would say about the configuration, without a daemon."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from eventd.cli import output
from eventd.cli.session import Session

if TYPE_CHECKING:
    from eventd.model import Problem, Settings
    from eventd.sdk import TriggerPlugin
    from eventd.settings.load import Loading

UPCOMING = 3


@click.command(epilog="Example: eventd check -c /srv/site/eventd.toml")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors, and check nothing.")
@click.pass_obj
def check(session: Session, schema: bool) -> int:
    """Check the configuration, conf.d and the handlers folder. All problems at once: E- codes are errors, W- codes are not.

    Ends 0, or 2 if there is an error.
    """
    from eventd.settings.load import require_config

    return run_check("" if schema else require_config(session.config), schema=schema, as_json=session.json)


def run_check(file: str, *, schema: bool, as_json: bool) -> int:
    """Check FILE and print the result on stdout: 0, or 2 when a problem is an error.

    With `schema` the JSON Schema is printed instead and FILE is not read. Raises nothing for what the files say.
    """
    from eventd.core.patterns import compile_pattern
    from eventd.registry import find_triggers
    from eventd.settings.load import load

    kinds, broken_plugins = find_triggers()
    if schema:
        import json

        from eventd.settings.schema import schema as whole

        output.write(json.dumps(whole(kinds), indent=2, ensure_ascii=False).encode() + b"\n")
        return 0
    loading = load(file, kinds, check_filter=compile_pattern)
    problems = [*loading.problems, *broken_plugins]
    if as_json:
        output.emit(_as_json(loading, problems, kinds))
    else:
        for problem in problems:
            output.line(output.clean(problem))
        if loading.settings is not None:
            output.line(_summary(loading.settings))
    return 0 if loading.settings is not None else 2


def _summary(settings: Settings) -> str:
    parts = ((settings.functions, "function"), (settings.triggers, "trigger"), (settings.bindings, "binding"))
    return "ok: " + ", ".join(f"{len(items)} {noun}{'' if len(items) == 1 else 's'}" for items, noun in parts)


def _as_json(loading: Loading, problems: Sequence[Problem], kinds: Mapping[str, TriggerPlugin]) -> dict[str, Any]:
    """The shape of surface.md, section 2. What only a running daemon knows of a function is null."""
    settings = loading.settings
    return {
        "ok": settings is not None,
        "problems": problems,
        "functions": [] if settings is None else _functions(settings, loading.broken),
        "bindings": []
        if settings is None
        else [
            {
                "binding": binding.name,
                "trigger": binding.trigger,
                "function": binding.function,
                "state": "paused" if binding.paused else "ready",
            }
            for binding in settings.bindings.values()
        ],
        "schedules": [] if settings is None else _schedules(settings, kinds),
    }


def _functions(settings: Settings, broken: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "function": name,
            "origin": function.origin,
            "runtime": function.runtime,
            "state": "broken" if name in broken else "paused" if function.paused else "ready",
            "error": broken.get(name, ""),
            "version": None,
            "concurrency": function.concurrency,
            "running": None,
            "waiting": None,
            "workers": None,
            "dead": None,
            "source": function.source,
        }
        for name, function in settings.functions.items()
    ]


def _schedules(settings: Settings, kinds: Mapping[str, TriggerPlugin]) -> list[dict[str, Any]]:
    """The next fire times of every trigger whose plugin can tell them; those of a paused one are what they would be."""
    now_ms = time.time_ns() // 1_000_000
    out: list[dict[str, Any]] = []
    for name, trigger in settings.triggers.items():
        if (next_times := _next_times(kinds[trigger.type])) is not None:
            times = next_times(trigger.options, now_ms, UPCOMING, settings.daemon.timezone)
            from eventd.model import rfc3339

            out.append({"trigger": name, "next": [rfc3339(at) for at in times]})
    return out


def _next_times(plugin: TriggerPlugin) -> Callable[[Any, int, int, str], Sequence[int]] | None:
    """`next_times(settings, now_ms, count, timezone)` of the plugin's module, which one that fires by the clock may have."""
    found = getattr(sys.modules.get(plugin.run.__module__), "next_times", None)
    return found if callable(found) else None
