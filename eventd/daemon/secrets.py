"""Secrets by reference, never by value: `file:PATH`, or `credential:NAME` as systemd's LoadCredential hands it over."""

from __future__ import annotations

import os
import stat

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
            message = f"secret '{ref}' needs systemd's LoadCredential={where}, and there is none here."
            raise EventdError("E-CONFIG", message, "Use file:PATH.")
        path = os.path.join(folder, where)
    else:
        raise EventdError("E-CONFIG", f"'{ref}' is not a secret reference.", "Write file:PATH or credential:NAME.")
    try:
        # not blocking: a pipe put in its place must not stop the daemon
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise EventdError("E-CONFIG", f"secret '{ref}' is not a plain file.", "Put the secret into a file.")
            data = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EventdError("E-CONFIG", f"secret '{ref}' cannot be read: {why}.", "Create it, or mend its permissions.") from error
    if len(data) > LIMIT:
        raise EventdError("E-CONFIG", f"secret '{ref}' is larger than {LIMIT} bytes.", "Name the right file.")
    return data.removesuffix(b"\n")
