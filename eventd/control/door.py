"""Who may do what through which door (D16). Pure: a request's facts in, a refusal or None out.

The Unix socket is guarded by its mode and group, so whoever got in may do everything. Over TCP on loopback anyone on the
machine may knock, a browser included: such callers may read and invoke, and change nothing. A browser is told apart by
the headers that it cannot leave out: `Origin` on every request that a page can make with consequences (Fetch Standard,
section 3.2), `Sec-Fetch-Site`, and `Host`, which under DNS rebinding carries the attacker's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from eventd.errors import EventdError

READS: Final = frozenset({"GET", "HEAD"})
OPEN_POSTS: Final = frozenset({"/v1/invoke"})
"""What a loopback TCP caller may do beside reading."""


class Door(Struct, frozen=True):
    """Where a connection came in. `uid` and `pid` are the peer's on a Unix socket, else None; `host` is the listener's."""

    kind: str
    host: str = ""
    uid: int | None = None
    pid: int | None = None

    def __str__(self) -> str:
        return f"uid {self.uid} (pid {self.pid})" if self.kind == "unix" else f"{self.kind} {self.host}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(header: str) -> str:
    """The name in a Host header without its port and brackets, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    name, _, port = header.rpartition(":")
    return (name if name and port.isdigit() else header).lower().rstrip(".")


def refusal(door: Door, method: str, path: str, headers: Mapping[str, Sequence[str]]) -> EventdError | None:
    """Why this request is not served, or None. `headers` has lower-case names and every value that was sent."""
    if headers.get("origin") or headers.get("sec-fetch-site", ("none",))[0] not in ("none", "same-origin"):
        return EventdError("E-FORBIDDEN", "requests from web pages are refused", "Use the eventd command, or a client that is no browser.")
    if door.kind == "unix":
        return None
    hosts = headers.get("host", ())
    if len(hosts) != 1 or not (is_loopback(host_name(hosts[0])) or host_name(hosts[0]) == door.host.lower()):
        shown = ", ".join(hosts)[:100] or "none"
        return EventdError("E-FORBIDDEN", f"the Host header ({shown}) is not this listener's", f"Ask for {door.host or 'localhost'}.")
    if method not in READS and path not in OPEN_POSTS:
        return EventdError(
            "E-FORBIDDEN", f"{path} changes something, which callers over TCP may not", "Use the eventd command on the Unix socket."
        )
    return None
