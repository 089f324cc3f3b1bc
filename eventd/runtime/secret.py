"""Secrets of functions: `file:PATH` and `credential:NAME` (surface.md 4), read when a function is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

from eventd.errors import EventdError

_LIMIT = 64 * 1024


def read_secrets(function: str, references: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values, one line end at the end taken off. Blocks on disk. Raises EventdError(E-HANDLER), which never shows a value."""
    return {name: _read(function, name, reference, environ) for name, reference in references.items()}


def _read(function: str, name: str, reference: str, environ: Mapping[str, str]) -> str:
    kind, _, where = reference.partition(":")
    if kind == "credential":
        folder = environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder:
            hint = "Start eventd under systemd with LoadCredential=, or use file:PATH."
            raise _wrong(function, name, "there is no credentials directory", hint)
        if "/" in where or where in ("", ".", ".."):
            raise _wrong(function, name, f"{where!r} is not the name of a credential", "Write credential:NAME.")
        where = os.path.join(folder, where)
    elif kind != "file" or not where:
        raise _wrong(function, name, f"{reference!r} is no reference to a secret", "Write file:PATH or credential:NAME.")
    try:
        with open(where, "rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise _wrong(function, name, f"{where} cannot be read ({error.strerror})", "Create it, readable by the daemon's user.") from None
    if len(data) > _LIMIT or b"\0" in data:
        raise _wrong(function, name, f"{where} is over 64 KiB or holds a NUL byte", "Environment variables cannot hold that.")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise _wrong(function, name, f"{where} is not UTF-8", "Environment variables are text; encode it, for example in base64.") from None


def _wrong(function: str, name: str, what: str, hint: str) -> EventdError:
    return EventdError("E-HANDLER", f"function {function}: secret {name}: {what}.", hint)
