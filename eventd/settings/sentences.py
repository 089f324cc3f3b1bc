"""From what pydantic found to sentences for people: what is wrong, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eventd.settings.scanner import Path

_WANTED: Final = {
    "string": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "iterable": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "model_attributes": "a table",
    "dataclass": "a table",
    "bytes": "text in quotes",
    "date": "a date",
    "time": "a time",
    "datetime": "a date and time",
    "none_required": "nothing",
}
"""What a key should hold, by the first part of pydantic's error type (`int_type`, `int_parsing`, `bool_parsing`, ...)."""


class Found(NamedTuple):
    """One mistake in one table. `path` begins at that table; `()` is the table itself."""

    path: Path
    message: str
    hint: str = ""


def sentence(text: str) -> str:
    """`text` with an end: a point, unless it has one."""
    text = text.strip()
    return text if not text or text[-1] in ".?!:" else text + "."


def nearest(name: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" or the empty string."""
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f", did you mean '{found[0]}'?" if found else ""


def unknown(what: str, name: str, known: Collection[str], *, listing: str = "") -> tuple[str, str]:
    """Message and hint for a name that is not among the `known`."""
    guess = nearest(name, known)
    if guess:
        return f"unknown {what} '{name[:100]}'{guess}", ""
    names = ", ".join(sorted(known)[:20]) or "none"
    return f"unknown {what} '{name[:100]}'.", f"{listing or 'Known are'}: {names}."


def shown(value: Any) -> str:
    """A value as one would write it in TOML, cut to a readable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, dict):
        return "a table"
    elif isinstance(value, list):
        return "a list"
    else:
        text = str(value)
    return text if len(text) <= 70 else text[:67] + "..."


def explain(error: ValidationError, model: type[BaseModel], data: Any, *, also_known: Collection[str] = ()) -> list[Found]:
    """Every mistake pydantic found in `data`, one for each place. `also_known`: keys of the table the model does not have."""
    places: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        places.setdefault(_real_path(detail, data), []).append(detail)
    out: list[Found] = []
    for path, details in places.items():
        if any(other != path and other[: len(path)] == path for other in places) and all(_is_type(detail) for detail in details):
            continue  # another form of a union got further into the value: that one is meant
        out.append(_explain_place(path, details, model, also_known))
    return out


def _real_path(detail: ErrorDetails, data: Any) -> Path:
    """pydantic's location without the names of union members, which are no keys."""
    path: list[str | int] = []
    here = data
    loc = detail["loc"]
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, Mapping) and part in here):
            here = here[part]
        elif not (last and detail["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _is_type(detail: ErrorDetails) -> bool:
    return _wanted(detail) is not None


def _wanted(detail: ErrorDetails) -> str | None:
    kind = detail["type"]
    if kind in ("literal_error", "enum"):
        # pydantic writes "'a', 'b' or 'c'".
        expected = str(detail.get("ctx", {}).get("expected", ""))
        return f"one of {expected}" if "," in expected or " or " in expected else expected
    stem, _, rest = kind.rpartition("_")
    if rest in ("type", "parsing", "size") or kind in ("int_from_float", "none_required"):
        for prefix, noun in _WANTED.items():
            if kind.startswith(prefix + "_") or stem == prefix or kind == prefix:
                return noun
    return None


def _explain_place(path: Path, details: list[ErrorDetails], model: type[BaseModel], also_known: Collection[str]) -> Found:
    said = [detail for detail in details if not _is_type(detail)]
    if not said:
        wanted = list(dict.fromkeys(noun for detail in details if (noun := _wanted(detail))))
        value = details[0]["input"]
        choices = _choices(details)
        guess = nearest(value, choices) if isinstance(value, str) else ""
        got = f"{shown(value)}{guess or '.'}"
        return Found(path, f"must be {' or '.join(wanted)}, not {got}", _type_hint(wanted, value))
    detail = said[0]
    kind, ctx, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden" and path:
        known = [*keys_at(model, path[:-1]), *(also_known if len(path) == 1 else ())]
        return Found(path, *unknown("key", str(path[-1]), known, listing="Keys here are"))
    if kind == "missing" and path:
        return Found(path, f"'{path[-1]}' is required.", description_at(model, path))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(ctx.get("discriminator", "type")).strip("'")
        if kind == "union_tag_not_found":
            return Found(path, f"'{key}' is required.", "")
        choices = re.findall(r"'([^']*)'", str(ctx.get("expected_tags", "")))
        return Found((*path, key), *unknown(key, str(ctx.get("tag")), choices))
    if kind in ("value_error", "assertion_error"):
        return Found(path, sentence(str(ctx.get("error", detail["msg"]))))
    return Found(path, _limit(kind, ctx, value) or sentence(detail["msg"][:1].lower() + detail["msg"][1:]))


def _limit(kind: str, ctx: Mapping[str, Any], value: Any) -> str:
    match kind:
        case "greater_than_equal":
            return f"must be at least {ctx['ge']}, not {shown(value)}."
        case "greater_than":
            return f"must be more than {ctx['gt']}, not {shown(value)}."
        case "less_than_equal":
            return f"must be at most {ctx['le']}, not {shown(value)}."
        case "less_than":
            return f"must be less than {ctx['lt']}, not {shown(value)}."
        case "too_short" | "string_too_short":
            return "must not be empty." if ctx["min_length"] == 1 else f"must have at least {ctx['min_length']} parts, not {shown(value)}."
        case "too_long" | "string_too_long":
            return f"must not be longer than {ctx['max_length']}."
        case "string_pattern_mismatch":
            return f"{shown(value)} is not written like {ctx['pattern']}."
        case "finite_number":
            return "must be a finite number."
        case _:
            return ""


def _choices(details: list[ErrorDetails]) -> list[str]:
    return [
        name
        for detail in details
        if detail["type"] in ("literal_error", "enum")
        for name in re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    ]


def _type_hint(wanted: list[str], value: Any) -> str:
    if wanted == ["text in quotes"] and isinstance(value, int | float):
        return f'Write "{shown(value)}".'
    if (
        isinstance(value, str)
        and wanted in (["a whole number"], ["a number"], ["true or false"])
        and re.fullmatch(r"[0-9.]+|true|false", value)
    ):
        return f"Write {value} without quotes."
    if wanted == ["a list"] and isinstance(value, str):
        return f'Write ["{value[:60]}"].'
    return ""


def keys_at(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that a table inside `model` may have."""
    return list(dict.fromkeys(name for found in _models_at(model, path) for name in _keys(found)))


def description_at(model: type[BaseModel], path: Path) -> str:
    """What the option at `path` is for, as its field says, or the empty string."""
    for found in _models_at(model, path[:-1]):
        for name, field in found.model_fields.items():
            if path[-1] in (name, field.alias):
                return sentence(field.description or "")
    return ""


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _models_at(model: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        inner: list[type[BaseModel]] = []
        for found in models:
            for name, field in found.model_fields.items():
                if part in (name, field.alias):
                    inner += _models_in(field.annotation)
        models = inner
    return models


def _models_in(annotation: Any, depth: int = 0) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [] if depth > 8 else [model for part in get_args(annotation) for model in _models_in(part, depth + 1)]
