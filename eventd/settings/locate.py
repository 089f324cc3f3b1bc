"""Which file is the configuration, and where its daemon would listen: all that a client verb wants to know (surface.md 1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from eventd.errors import EventdError
from eventd.settings.files import Document, read
from eventd.settings.places import absolute, default_socket, default_state

SYSTEM_FOLDER: Final = "/etc/eventd"
SYSTEM_SOCKET: Final = "/run/eventd/eventd.sock"


class Peek(NamedTuple):
    """`sockets` are to be tried in this order; `socket` is the first of them that exists, else the first. All paths are absolute."""

    socket: str
    state: str
    sockets: tuple[str, ...]
    handlers: str


def find_config(explicit: str | None, *, environ: Mapping[str, str] = os.environ) -> str | None:
    """The file named with -c, else $EVENTD_CONFIG, else ./eventd.toml, else /etc/eventd/eventd.toml, else None.

    A file that was named is returned even if it does not exist.
    """
    if named := explicit or environ.get("EVENTD_CONFIG"):
        return named
    return next((file for file in ("eventd.toml", os.path.join(SYSTEM_FOLDER, "eventd.toml")) if os.path.isfile(file)), None)


def require_config(explicit: str | None, *, environ: Mapping[str, str] = os.environ) -> str:
    """`find_config` for verbs that need one. Raises EventdError(E-CONFIG) when there is none to be found."""
    if file := find_config(explicit, environ=environ):
        return file
    hint = "Write one with 'eventd init', or name it with -c FILE."
    raise EventdError("E-CONFIG", f"there is no eventd.toml here and none in {SYSTEM_FOLDER}.", hint)


def peek(file: str | None, *, environ: Mapping[str, str] = os.environ) -> Peek:
    """The control socket and the folders by FILE and conf.d, every other problem ignored. Never raises.

    The system's own socket is tried too when there is no file, when it is not even TOML, and for files in /etc/eventd, whose
    daemon systemd starts with a $RUNTIME_DIRECTORY that this process does not see. Never for any other file: a command that
    was meant for one daemon must not reach another.
    """
    if file is None:
        here = os.getcwd()
        return _choose(
            [os.path.join(here, "state", "eventd.sock"), SYSTEM_SOCKET], os.path.join(here, "state"), os.path.join(here, "handlers")
        )
    document, _ = read(file)
    base = os.path.dirname(os.path.abspath(file))
    state = _path(document, "daemon", "state") or os.path.abspath(default_state(environ, base))
    handlers = _path(document, "daemon", "handlers") or os.path.join(base, "handlers")
    if socket := _path(document, "control", "socket"):
        return _choose([socket], state, handlers)
    sockets = [default_socket(environ, state)]
    if not document.complete and not document.data:
        sockets.append(os.path.join(base, "state", "eventd.sock"))
    if (not document.complete and not document.data) or base == SYSTEM_FOLDER:
        sockets.append(SYSTEM_SOCKET)
    return _choose(sockets, state, handlers)


def _choose(sockets: list[str], state: str, handlers: str) -> Peek:
    each = tuple(dict.fromkeys(sockets))
    return Peek(next((socket for socket in each if os.path.exists(socket)), each[0]), state, each, handlers)


def _path(document: Document, section: str, key: str) -> str | None:
    table: Any = document.data.get(section)
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, str):
        return None
    try:
        return absolute(value, document.base((section, key)))
    except ValueError:
        return None
