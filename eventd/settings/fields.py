"""Field types of the TOML surface: durations ("30s"), sizes ("256MiB"), paths and secrets, for us and for plugins.

Paths are made absolute against the folder of the file they stand in (validation context key `base`).
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?")
_SIZE_UNIT = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_SIZE_UNIT |= {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}


def parse_duration(text: object) -> int:
    """Milliseconds of "1h30m", "30s", "250ms", "7d". Raises ValueError with a sentence for people."""
    if isinstance(text, str) and _DURATION.fullmatch(text):
        return round(sum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text)))
    raise ValueError(f"{text!r} is not a duration; write a number with ms, s, m, h or d, for example \"30s\"")


def parse_size(text: object) -> int:
    """Bytes of "256MiB", "1GiB", or a plain number of bytes. Raises ValueError with a sentence for people."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str) and (found := _SIZE.fullmatch(text)):
        return round(float(found[1]) * _SIZE_UNIT[found[2]])
    raise ValueError(f"{text!r} is not a size; write a number with KiB, MiB or GiB, for example \"256MiB\"")


def _absolute(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise ValueError("a path cannot be empty or hold a NUL")
    base = (info.context or {}).get("base", os.getcwd())
    return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


Duration = Annotated[int, BeforeValidator(parse_duration)]
"""A duration in TOML, milliseconds in code. Defaults are written in milliseconds."""
Size = Annotated[int, BeforeValidator(parse_size)]
"""A size in TOML, bytes in code."""
LocalPath = Annotated[str, BeforeValidator(_absolute)]
Folder = LocalPath
SecretRef = str
"""`file:PATH` or `credential:NAME`."""


class PluginSettings(BaseModel):
    """Base for a plugin's settings: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
