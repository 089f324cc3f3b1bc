"""Field types of the TOML surface: durations ("30s"), sizes ("256MiB"), paths and secrets, for us and for plugins.

Paths are made absolute against the folder of the file they stand in (validation context key `base`, or for one key of a
table that is spread over two files, the mapping `bases`).
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema

from eventd.settings.places import absolute

_DURATION = re.compile(r"(?:([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d))+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MAX_MS: Final = 36_500 * 86_400_000
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?")
_SIZE_UNIT: Final[dict[str | None, int]] = {
    None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
}  # fmt: skip
_MAX_SIZE: Final = 2**60


def parse_duration(text: object) -> int:
    """Milliseconds of "1h30m", "30s", "250ms", "7d" (at most 100 years). Raises ValueError with a sentence for people."""
    if isinstance(text, str) and len(text) <= 64 and _DURATION.fullmatch(text):
        total = sum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text))
        if total > _MAX_MS:
            raise ValueError(f"{text!r} is longer than 100 years")
        return round(total)
    raise ValueError(f'{_shown(text)} is not a duration; write a number with ms, s, m, h or d, for example "30s"')


def parse_size(text: object) -> int:
    """Bytes of "256MiB", "1GiB", or a plain number of bytes (at most 2**60). Raises ValueError with a sentence for people."""
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text <= _MAX_SIZE:
        return text
    if isinstance(text, str) and len(text) <= 64 and (found := _SIZE.fullmatch(text)):
        total = float(found[1]) * _SIZE_UNIT[found[2]]
        if total > _MAX_SIZE:
            raise ValueError(f"{text!r} is larger than 1,048,576 TiB")
        return round(total)
    raise ValueError(f'{_shown(text)} is not a size; write a number with KiB, MiB or GiB, for example "256MiB"')


def duration_text(ms: int) -> str:
    """The shortest text that `parse_duration` reads as `ms`: one number, the largest unit that divides it."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNIT_MS[unit] == 0:
            return f"{ms // _UNIT_MS[unit]}{unit}"
    return f"{ms}ms" if ms else "0s"


def size_text(size: int) -> str:
    """The shortest text that `parse_size` reads as `size`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNIT[unit] == 0:
            return f"{size // _SIZE_UNIT[unit]}{unit}"
    return f"{size}B"


def base_of(info: ValidationInfo) -> str:
    """The folder that a relative path in the field being validated is relative to."""
    context: dict[str, Any] = info.context or {}
    bases: dict[str, str] = context.get("bases", {})
    return bases.get(info.field_name or "") or context.get("base") or os.getcwd()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _absolute(value: Any, info: ValidationInfo) -> Any:
    return absolute(value, base_of(info)) if isinstance(value, str) else value


def _secret(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind == "file" and rest:
        return "file:" + absolute(rest, base_of(info))
    if kind == "credential" and rest and "/" not in rest and "\0" not in rest:
        return value
    raise ValueError('a secret is written "file:PATH" or "credential:NAME", never as the secret itself')


Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern.join("^$"), "x-unit": "duration"}),
]
"""A duration in TOML, milliseconds in code. Defaults are written in milliseconds."""
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": _SIZE.pattern.join("^$")}, {"type": "integer", "minimum": 0}], "x-unit": "size"}
    ),
]
"""A size in TOML, bytes in code."""
LocalPath = Annotated[str, BeforeValidator(_absolute)]
Folder = LocalPath
SecretRef = Annotated[str, BeforeValidator(_secret)]
"""`file:PATH` (made absolute) or `credential:NAME`."""


class PluginSettings(BaseModel):
    """Base for a plugin's settings: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
