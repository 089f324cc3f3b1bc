"""Opening the control room's doors: the Unix socket with its mode and group, TCP listeners, and sockets handed to us.

Every failure is an EventdError that names the address. On an error everything opened so far is closed again.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from eventd.control.door import is_loopback
from eventd.errors import EventdError
from eventd.model import ControlSettings

BACKLOG: Final = 128
PATH_MAX: Final = 107
"""sun_path is 108 bytes with its closing NUL (unix(7))."""


class Listener(Struct, frozen=True):
    """A listening socket. `inode` is of the socket file that we made (None when it is not ours to remove)."""

    sock: socket.socket
    kind: str
    host: str = ""
    path: str = ""
    inode: tuple[int, int] | None = None

    @property
    def address(self) -> str:
        """`unix:PATH`, `HOST:PORT` or `[HOST]:PORT`, as bound (port 0 is resolved)."""
        if self.kind == "unix":
            return f"unix:{self.path}"
        host, port = self.sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Close, and remove the socket file if it is still the one that we made."""
        self.sock.close()
        if self.inode is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self.inode:
                    os.unlink(self.path)


def open_listeners(settings: ControlSettings, passed: Sequence[socket.socket] | None = None) -> list[Listener]:
    """All doors of the control room, listening. Passed sockets (systemd's) replace `listen`, and `socket` when one has its path.

    Raises EventdError: E-LISTEN, or E-CONFIG for a listener that would be open to the network without credentials.
    """
    opened: list[Listener] = []
    try:
        for sock in passed or ():
            opened.append(_adopt(sock))
        if settings.socket and settings.socket not in [listener.path for listener in opened]:
            opened.append(open_unix(settings.socket, mode=settings.mode, group=settings.group))
        for address in () if passed else settings.listen:
            opened.append(open_tcp(address))
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def open_unix(path: str, *, mode: int, group: str) -> Listener:
    """Listen on `path`. A socket file that nobody answers is left over from a crash and is replaced; one that answers is not."""
    if len(os.fsencode(path)) > PATH_MAX:
        raise EventdError(
            "E-LISTEN",
            f"the control socket's path has {len(os.fsencode(path))} bytes, more than the {PATH_MAX} a socket can have: {path}",
            "Set a shorter [control] socket, for example under /run.",
        )
    gid = _group(group)
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        found = os.lstat(path)
        # Nobody can connect before listen(), so there is no moment with the wrong mode.
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise EventdError("E-LISTEN", f"cannot listen on {path}: {error.strerror}", _unix_hint(error, path, group)) from error
    return Listener(sock, "unix", path=path, inode=(found.st_dev, found.st_ino))


def open_tcp(address: str) -> Listener:
    """Listen on `HOST:PORT` or `[HOST]:PORT`. Only loopback: another address would let the network in without credentials."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise EventdError("E-CONFIG", f"[control] listen: {address!r} is not an address", 'Write "127.0.0.1:PORT" or "[::1]:PORT".')
    _loopback_only(host, address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EventdError("E-LISTEN", f"cannot listen on {address}: {error.strerror}", "Check [control] listen.") from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "Another program has it; choose another port." if error.errno == errno.EADDRINUSE else "Check [control] listen."
        raise EventdError("E-LISTEN", f"cannot listen on {address}: {error.strerror}", hint) from error
    return Listener(sock, "tcp", host=host)


def _adopt(sock: socket.socket) -> Listener:
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        name = sock.getsockname()
        return Listener(sock, "unix", path=name if isinstance(name, str) else os.fsdecode(name))
    host = str(sock.getsockname()[0])
    _loopback_only(host, host)
    return Listener(sock, "tcp", host=host)


def _loopback_only(host: str, shown: str) -> None:
    if not is_loopback(host):
        raise EventdError(
            "E-CONFIG",
            f"[control] listen: {shown} is open to the network, and this version has no signed requests on the control room",
            "Listen on 127.0.0.1 or [::1], and reach it through ssh -L.",
        )


def _group(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise EventdError("E-CONFIG", f"[control] group: there is no group {name!r}", f"Create it: groupadd --system {name}") from None


def _clear(path: str) -> None:
    """Remove a socket file that nobody answers."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EventdError("E-LISTEN", f"cannot look at {path}: {error.strerror}", "Check [control] socket.") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise EventdError("E-LISTEN", f"{path} is there and is no socket", "Remove it, or set another [control] socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise EventdError(
                "E-LISTEN", f"cannot tell whether {path} is in use: {error.strerror or error}", "Check who owns it."
            ) from error
    raise EventdError("E-LISTEN", f"another process answers on {path}", "Stop it, or set another [control] socket.")


def _unix_hint(error: OSError, path: str, group: str) -> str:
    if error.errno == errno.ENOENT:
        return f"Create the folder {os.path.dirname(path)}, or set another [control] socket."
    if error.errno == errno.EPERM and group:
        return f"Only root or a member of {group!r} can give the socket to that group."
    return "Check the folder's permissions, or set another [control] socket."
