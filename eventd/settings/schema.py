"""The whole TOML surface as JSON Schema (draft 2020-12), for editors: every option with its description and default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from eventd.settings.fields import duration_text, size_text
from eventd.settings.tables import SECTIONS, BindingTable, FunctionTable, TriggerTable
from eventd.settings.triggers import Kind
from eventd.settings.values import NAME

_REF: Final = "#/$defs/"
_MEMORY: Final = "memory"


def schema(kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """A schema for eventd.toml and conf.d/*.toml. Options of triggers are chosen by `type`, one form for each of `kinds`."""
    models: list[type[BaseModel]] = [
        *SECTIONS.values(),
        FunctionTable,
        TriggerTable,
        BindingTable,
        *(kind.settings for kind in kinds.values()),
    ]
    refs, joined = models_json_schema([(model, "validation") for model in dict.fromkeys(models)], ref_template=_REF + "{model}")
    defs: dict[str, Any] = joined.get("$defs", {})
    for definition in defs.values():
        _tidy(definition)
    names = {model: refs[model, "validation"] for model in models}
    table = {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}}
    common = _resolve(names[TriggerTable], defs)
    forms = [_form(name, _resolve(names[kind.settings], defs), common) for name, kind in sorted(kinds.items())]
    triggers = {**table, "additionalProperties": {"oneOf": forms}, "description": "Sources of events, by name."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "eventd.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{section: dict(names[model]) for section, model in SECTIONS.items()},
            "functions": {**table, "additionalProperties": dict(names[FunctionTable]), "description": "Functions, by name."},
            "triggers": triggers,
            "bindings": {
                "type": "array",
                "items": dict(names[BindingTable]),
                "description": "Which events of a trigger go to which function.",
            },
        },
        "$defs": defs,
    }


def _resolve(ref: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(ref.get("$ref", ""))
    found: Mapping[str, Any] = defs[name.removeprefix(_REF)] if name else ref
    return found


def _form(kind: str, options: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """One kind of trigger: its own options and the common ones in one closed table."""
    properties = {**common["properties"], **options.get("properties", {})}
    properties["type"] = {**common["properties"]["type"], "const": kind}
    return {
        "title": kind,
        "type": "object",
        "description": str(options.get("description", "")),
        "properties": properties,
        "required": ["type", *options.get("required", [])],
        "additionalProperties": False,
    }


def _tidy(node: Any, name: str = "") -> None:
    """Defaults as one writes them in TOML (text for durations and sizes, none for null), and no generated titles."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
        return
    if not isinstance(node, dict):
        return
    if "properties" in node:
        for key, inner in node["properties"].items():
            if isinstance(inner, dict):
                inner.pop("title", None)
                _tidy(inner, key)
    for key, inner in node.items():
        if key not in ("properties", "default", "const", "enum"):
            _tidy(inner)
    if "$ref" in node:
        node.pop("default", None)  # each key of that table has its own
    _no_null(node)
    if "default" in node:
        unit = _unit(node)
        default = _as_written(node["default"], unit if name != _MEMORY else "MiB")
        if default is None:
            del node["default"]
        else:
            node["default"] = default


def _no_null(node: dict[str, Any]) -> None:
    """TOML has no null: an option that may be absent is simply not required."""
    forms = node.get("anyOf")
    if isinstance(forms, list) and {"type": "null"} in forms:
        rest = [form for form in forms if form != {"type": "null"}]
        if len(rest) == 1:
            del node["anyOf"]
            for key, value in rest[0].items():
                node.setdefault(key, value)
        else:
            node["anyOf"] = rest


def _unit(node: Mapping[str, Any]) -> str:
    """The unit of a value, or of a list's elements."""
    forms = [node, node.get("items", {}), *node.get("anyOf", [])]
    return next((str(form["x-unit"]) for form in forms if isinstance(form, dict) and "x-unit" in form), "")


def _as_written(value: Any, unit: str) -> Any:
    if isinstance(value, list):
        return [_as_written(item, unit) for item in value]
    if isinstance(value, dict):
        return {key: _as_written(inner, unit) for key, inner in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        match unit:
            case "duration":
                return duration_text(value)
            case "size":
                return size_text(value)
            case "MiB":
                return f"{value}MiB"
            case "mode":
                return f"{value:04o}"
            case _:
                return value
    return "" if value is None and unit == "rate" else value
