"""The head of a request, from bytes to its meaning: the strict grammar and the parser must both accept it. Pure."""

from __future__ import annotations

from typing import NamedTuple

import httptools

from eventd.http import strict
from eventd.http.strict import Refused


class Head(NamedTuple):
    """A head that is accepted. `headers` have lower-case names, `raw` their own; `length` may be strict.CHUNKED.

    `expect` is the Expect header in lower case, or empty; it is empty in HTTP/1.0, which does not know it.
    """

    method: str
    version: str
    keep_alive: bool
    path: str
    query: str
    headers: list[tuple[str, str]]
    raw: list[tuple[bytes, bytes]]
    length: int
    expect: str


class _Fields:
    """What the parser found."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.strip(b" \t")))


def read(head: bytes, max_head: int) -> Head | Refused:
    """Read a head, up to and with its empty line. Never raises.

    After HTTP/1.0 a connection ends: programs disagree on its keep-alive, and one disagreement is one smuggled request.
    """
    if len(head) > max_head:
        return Refused(431, "Request Header Fields Too Large")
    if not strict.head_is_strict(head):
        return strict.fault_of_head(head)
    if len(head) > strict.MAX_REQUEST_LINE and head.index(b"\r\n") > strict.MAX_REQUEST_LINE:
        return Refused(414, "URI Too Long")
    found = _Fields()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer, which a server may pass over
    except httptools.HttpParserError as error:
        return Refused(400, f"the request is malformed: {error}")
    raw = found.headers
    version = parser.get_http_version()
    headers = [(strict.field_name(name), value.decode("latin-1")) for name, value in raw]
    framing = strict.framing(head, headers, version)
    if isinstance(framing, Refused):
        return framing
    method = parser.get_method().decode("ascii")
    target = strict.read_target(method, found.target.decode("ascii"))
    if isinstance(target, Refused):
        return target
    if target.authority:
        # RFC 9112, 3.2.2: the host of the target counts, not the header.
        headers = [("host", target.authority), *(field for field in headers if field[0] != "host")]
        raw = [(b"Host", target.authority.encode("ascii")), *(field for field in raw if field[0].lower() != b"host")]
    return Head(method, version, not framing.close, target.path, target.query, headers, raw, framing.length, framing.expect)
