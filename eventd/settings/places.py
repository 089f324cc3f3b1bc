"""Where files are when nobody says, and relative to what. Apart from the models, so that client verbs start fast."""

from __future__ import annotations

import os
from collections.abc import Mapping


def absolute(value: str, base: str) -> str:
    """`value` as an absolute, normalised path; `~` is expanded, anything else is relative to `base`. Raises ValueError."""
    if not value or "\0" in value:
        raise ValueError("a path cannot be empty or hold a NUL")
    return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


def default_state(environ: Mapping[str, str], base: str) -> str:
    """$STATE_DIRECTORY as systemd sets it (the first of a colon-separated list, systemd.exec(5)), else `state` in `base`."""
    return environ.get("STATE_DIRECTORY", "").split(":")[0] or os.path.join(base, "state")


def default_socket(environ: Mapping[str, str], state: str) -> str:
    """$RUNTIME_DIRECTORY/eventd.sock, else STATE/eventd.sock."""
    return os.path.join(environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or state, "eventd.sock")
