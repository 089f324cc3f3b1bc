"""The head of a request, from bytes to its meaning: the strict grammar and the parser must both accept it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import httptools
from msgspec import Struct

from eventd.http import strict
from eventd.http.strict import Refused


class Head(Struct, frozen=True, gc=False):
    """A head that is accepted. `headers` have lower-case names, `raw()` their own; `length` may be strict.CHUNKED.

    `expect` is the Expect header in lower case, or empty; it is empty in HTTP/1.0, which does not know it.
    """

    method: str
    version: str
    keep_alive: bool
    path: str
    query: str
    headers: list[tuple[str, str]]
    raw: Callable[[], list[tuple[bytes, bytes]]]
    length: int
    expect: str


class _Nobody:
    """Hears what the parser finds. The strict grammar leaves one reading of a head, which is done in one go below."""

    __slots__ = ()


_NOBODY = _Nobody()


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
    try:
        httptools.HttpRequestParser(_NOBODY).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer, which a server may pass over
    except httptools.HttpParserError as error:
        return Refused(400, f"the request is malformed: {error}")
    line, *fields = head[:-4].decode("latin-1").split("\r\n")
    method, wanted, protocol = line.split(" ")
    version = protocol[5:]
    headers: list[tuple[str, str]] = []
    for field in fields:
        name, _, value = field.partition(":")
        headers.append((strict.field_name(name), value.strip(" \t")))
    framing = strict.framing(head, headers, version)
    if isinstance(framing, Refused):
        return framing
    target = strict.read_target(method, wanted)
    if isinstance(target, Refused):
        return target
    if target.authority:
        # RFC 9112, 3.2.2: the host of the target counts, not the header.
        headers = [("host", target.authority), *(field for field in headers if field[0] != "host")]
    raw = partial(_raw, head, target.authority)
    return Head(method, version, not framing.close, target.path, target.query, headers, raw, framing.length, framing.expect)


def _raw(head: bytes, authority: str) -> list[tuple[bytes, bytes]]:
    """The headers as they came; an `authority` takes the place of Host."""
    pairs = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in head[:-4].split(b"\r\n")[1:])]
    if authority:
        pairs = [(b"Host", authority.encode("ascii")), *(pair for pair in pairs if pair[0].lower() != b"host")]
    return pairs
