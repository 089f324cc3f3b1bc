"""Secrets by reference, never by value: `file:PATH`, or `credential:NAME` as systemd's LoadCredential hands it over."""

from __future__ import annotations

import os

from eventd.errors import EventdError

LIMIT = 64 * 1024


def read_secret(ref: str) -> bytes:
    """The secret's bytes, without one trailing newline. Raises EventdError(E-CONFIG) that names the reference."""
    kind, _, where = ref.partition(":")
    if kind == "file" and where:
        path = where
    elif kind == "credential" and where and "/" not in where:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise EventdError("E-CONFIG", f"secret '{ref}' needs systemd's LoadCredential={where}, and there is none here.", "Use file:PATH.")
        path = os.path.join(folder, where)
    else:
        raise EventdError("E-CONFIG", f"'{ref}' is not a secret reference.", "Write file:PATH or credential:NAME.")
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise EventdError("E-CONFIG", f"secret '{ref}' cannot be read: {error.strerror}.", "Create it, or mend its permissions.") from error
    if len(data) > LIMIT:
        raise EventdError("E-CONFIG", f"secret '{ref}' is larger than {LIMIT} bytes.")
    return data.removesuffix(b"\n")
