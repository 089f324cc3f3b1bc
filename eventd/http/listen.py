"""Listening sockets: addresses as text, and binding them with an error that says what to do."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Final, NamedTuple

from eventd.errors import EventdError

BACKLOG: Final = 1024
MAX_UNIX_PATH: Final = 107
_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/]+)):(\d{1,5})")


class Tcp(NamedTuple):
    host: str
    port: int


class Unix(NamedTuple):
    path: str


def parse_address(text: str) -> Tcp | Unix:
    """`HOST:PORT`, `[::1]:PORT` or `unix:PATH`. Raises EventdError(E-LISTEN)."""
    if text.startswith("unix:"):
        path = text[5:]
        if not path or "\0" in path:
            raise EventdError("E-LISTEN", f"the address {text!r} has no path.", 'Write for example "unix:/run/eventd/http.sock".')
        if len(os.fsencode(path)) > MAX_UNIX_PATH:
            raise EventdError("E-LISTEN", f"the path of {text!r} is over {MAX_UNIX_PATH} bytes.", "Use a shorter path.")
        return Unix(path)
    found = _TCP.fullmatch(text)
    if not found or int(found[3]) > 65_535:
        hint = 'Write "127.0.0.1:8080", "[::1]:8080" or "unix:/path".'
        raise EventdError("E-LISTEN", f"{text!r} is not an address.", hint)
    return Tcp(found[1] or found[2], int(found[3]))


def name_of(sock: socket.socket) -> str:
    """The address a socket is bound to, as `parse_address` reads it, with the real port."""
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return "unix:" + (os.fsdecode(where) if isinstance(where, bytes) else str(where))
    host, port = where[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(text: str) -> list[socket.socket]:
    """Bound, not yet listening sockets of an address (a host name may have several). All or none.

    A Unix socket that nobody answers on is replaced; one that is answered on is not. Raises EventdError(E-LISTEN).
    """
    address = parse_address(text)
    sockets: list[socket.socket] = []
    try:
        if isinstance(address, Unix):
            sockets.append(_bind_unix(address.path))
        else:
            for family, *_, where in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
                sockets.append(_bind_tcp(family, where))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise EventdError("E-LISTEN", f"cannot listen on {text}: {error.strerror or error}.", _hint(error)) from error
    return sockets


def _bind_tcp(family: int, where: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)  # type: ignore[arg-type]
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        # As open to local programs as a port on loopback is; the folder's mode is the guard for who wants one.
        os.chmod(path, 0o666)  # noqa: S103
    except OSError:
        sock.close()
        raise
    return sock


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "Another program listens there: stop it, or choose another address."
        case errno.EACCES | errno.EPERM:
            return "Ports below 1024 and foreign folders need rights: choose another address, or let systemd pass the socket."
        case errno.EADDRNOTAVAIL:
            return "No interface of this machine has that address: choose one that `ip address` shows."
        case errno.ENOENT | errno.ENOTDIR:
            return "Create the folder first."
        case _:
            return "Choose another address."


class UnixFile(NamedTuple):
    """The file of a Unix socket of ours, so that only ours is removed."""

    path: str
    inode: int

    @classmethod
    def of(cls, sock: socket.socket) -> UnixFile | None:
        if sock.family != socket.AF_UNIX:
            return None
        path = name_of(sock)[5:]
        return cls(path, os.stat(path).st_ino)

    def remove(self) -> None:
        """Remove the file if it still is ours; one that is gone or was replaced is left alone."""
        try:
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except OSError:
            return
