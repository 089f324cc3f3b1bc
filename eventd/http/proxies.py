"""Who the client is when a reverse proxy stands between: `trusted_proxies`."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from eventd.http.message import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks or single addresses. Raises ValueError that names the one that is neither."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def plain(address: str) -> str:
    """An address without zone; IPv4 inside IPv6 as IPv4. Text that is no address comes back empty."""
    return _plain(address.strip())


@lru_cache(maxsize=1024)
def _plain(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    if not trusted or not address:
        return False
    found = ipaddress.ip_address(address)
    return any(found in network for network in trusted)


def client(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address: from the right, the first hop that no trusted proxy is.

    `peer` is who is connected; `forwarded_for` the values of X-Forwarded-For in order of arrival. Each proxy appends whom
    it saw, so only what a trusted proxy wrote is believed; text that is no address ends the search.
    """
    address = peer
    if not is_trusted(address, trusted):
        return address
    for text in reversed(",".join(forwarded_for).split(",")):
        hop = plain(_without_port(text))
        if not hop:
            return address
        address = hop
        if not is_trusted(address, trusted):
            return address
    return address


def _without_port(text: str) -> str:
    text = text.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def believe(request: Request, trusted: Sequence[Network]) -> None:
    """Take the client's address, scheme and port from what a trusted proxy says; `request.peer` is that proxy."""
    said: dict[str, list[str]] = {"x-forwarded-for": [], "x-forwarded-proto": [], "x-forwarded-port": []}
    for name, value in request.headers:
        if name in said:
            said[name].append(value)
    request.peer = client(request.peer, said["x-forwarded-for"], trusted)
    scheme = _last(said["x-forwarded-proto"]).lower()
    if scheme in ("http", "https"):
        request.scheme = scheme
        request.port = 443 if scheme == "https" else 80
    port = _last(said["x-forwarded-port"])
    if port.isascii() and port.isdigit() and len(port) <= 5:
        request.port = int(port)


def _last(values: Sequence[str]) -> str:
    return ",".join(values).rpartition(",")[2].strip()
