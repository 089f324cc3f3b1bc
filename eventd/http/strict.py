"""What may be a request: a strict reading of RFC 9112 over raw bytes, before and beside the parser.

A lenient reader is the half of request smuggling that we own: if two programs on one path can read the same bytes as a
different number of requests, one of them can be fooled. So a head is held against one regular expression for the whole
grammar (no bare CR or LF, no folding, no blank before a colon, no NUL), a body has exactly one plain length, and every
doubt is refused. Pure functions over bytes; a refusal is a value, `Refused(status, why)`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

MAX_FIELDS = 100
MAX_REQUEST_LINE = 8_192

CHUNKED = -1
"""A body length that is told by its chunks."""


class Refused(NamedTuple):
    """A request that is answered with `status` and the end of its connection."""

    status: int
    why: str


class Framing(Struct, frozen=True, gc=False):
    """What the headers say of the message. `length` may be CHUNKED. `expect` is the Expect header, lower case, or empty.

    `close`: the client will send no other request.
    """

    length: int
    expect: str
    close: bool


_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_FIELD = _TOKEN + rb"++:" + _VALUE + rb"*+\r\n"
_HEAD = re.compile(rb"[A-Z]{1,20}+ [\x21\x22\x24-\x7e]++ HTTP/1\.[01]\r\n(?:" + _FIELD + rb")*+\r\n")
_FIELDS = re.compile(rb"(?:" + _FIELD + rb")*+\r\n")
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20}+ [\x21\x22\x24-\x7e]++ HTTP/(\d)\.(\d)")
# Nothing that begins like this can become a head: a control byte, LF without CR, or CR without LF.
_HOPELESS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_CODING = re.compile(rb"\r\n(?i:transfer-encoding): ?chunked\r\n")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,14}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+)(?::[0-9]{0,5})?")
_FRAMING_NAMES = ("host", "content-length", "transfer-encoding", "expect")


@lru_cache(maxsize=1024)
def field_name(raw: str) -> str:
    """A header's name in lower case; empty for one that a sloppy reader would take for a framing header.

    `Content_Length` is what CGI programs read as Content-Length: nobody honest sends it.
    """
    name = raw.lower()
    return "" if "_" in name and name.replace("_", "-") in _FRAMING_NAMES else name


def head_is_strict(head: bytes) -> bool:
    """Whether these bytes, up to and with the empty line, are one head by the strict grammar and nothing else."""
    return _HEAD.fullmatch(head) is not None


def fault_of_head(head: bytes) -> Refused:
    """Why a head is not strict: the answer to give."""
    line = head.split(b"\r\n", 1)[0]
    if len(line) > MAX_REQUEST_LINE:
        return Refused(414, "URI Too Long")
    version = _REQUEST_LINE.fullmatch(line)
    if version is None:
        return Refused(400, "the request line is malformed")
    if version[1] != b"1" or version[2] not in (b"0", b"1"):
        return Refused(505, "HTTP Version Not Supported")
    return Refused(400, "a header line is malformed")


def fault_so_far(part: bytes, start: int, max_head: int) -> Refused | None:
    """Why a head that is not complete yet never can be, looking at `part[start:]`; None while there is hope."""
    if _HOPELESS.search(part, max(start - 1, 0)):
        return Refused(400, "a line is malformed")
    if b"\r\n" not in part[: MAX_REQUEST_LINE + 2] and len(part) > min(MAX_REQUEST_LINE, max_head):
        return Refused(414, "URI Too Long")
    if len(part) > max_head:
        return Refused(431, "Request Header Fields Too Large")
    return None


def framing(head: bytes, headers: list[tuple[str, str]], version: str) -> Framing | Refused:
    """How long the body is, and the host, from headers whose names are lower case. Refuses every doubtful combination."""
    if len(headers) > MAX_FIELDS:
        return Refused(431, "Request Header Fields Too Large")
    seen = dict(headers)
    connection = seen.get("connection", "")
    if len(seen) != len(headers):
        names = [name for name, _ in headers]
        for name in _FRAMING_NAMES:
            if names.count(name) > 1:
                return Refused(400, f"{name} is given twice")
        connection = ",".join(value for name, value in headers if name == "connection")
    if "" in seen:
        return Refused(400, "a header's name is malformed")
    close = version != "1.1"
    if connection:
        close = close or "close" in (option.strip(" \t") for option in connection.lower().split(","))
    length = 0
    given = seen.get("content-length")
    if "transfer-encoding" in seen:
        if given is not None:
            return Refused(400, "both content-length and transfer-encoding are given")
        if version != "1.1":
            return Refused(400, "transfer-encoding needs HTTP/1.1")
        if not _CODING.search(head):
            return Refused(400, "the only transfer-encoding is chunked")
        length = CHUNKED
    elif given is not None:
        if not _LENGTH.fullmatch(given):
            return Refused(400, "content-length is not a number")
        length = int(given)
    host = seen.get("host")
    if host is None:
        if version == "1.1":
            return Refused(400, "host is missing")
    elif host and not host_is_valid(host):
        return Refused(400, "host is malformed")
    return Framing(length, seen.get("expect", "").lower() if version == "1.1" else "", close)


@lru_cache(maxsize=256)
def host_is_valid(host: str) -> bool:
    """Whether this can stand in a Host header: a name or address and an optional port, no user part."""
    return _HOST.fullmatch(host) is not None


_ABSOLUTE = re.compile(r"https?://([^/?]+)(/[^?]*)?(?:\?(.*))?", re.IGNORECASE)


class Target(Struct, frozen=True, gc=False):
    """`authority` is empty unless the target was in absolute form."""

    path: str
    query: str
    authority: str


def read_target(method: str, target: str) -> Target | Refused:
    """Path and query of a request target: origin form, absolute form, or `*` for OPTIONS. No CONNECT: this is no proxy."""
    if target[0] == "/" and method != "CONNECT":
        path, _, query = target.partition("?")
        return Target(path, query, "")
    if target == "*" and method == "OPTIONS":
        return Target("*", "", "")
    found = _ABSOLUTE.fullmatch(target)
    if method == "CONNECT" or not found or not host_is_valid(found[1]):
        return Refused(400, "the request target is malformed")
    return Target(found[2] or "/", found[3] or "", found[1])


def fault_of_trailers(part: bytes, complete: bool, max_bytes: int) -> Refused | None:
    """Why the trailers of a chunked body are refused; None when they are good, or, not complete, may become so."""
    if len(part) > max_bytes or part.count(b"\n") > MAX_FIELDS:
        return Refused(431, "the trailers are too large")
    if _HOPELESS.search(part) or (complete and not _FIELDS.fullmatch(part)):
        return Refused(400, "a trailer is malformed")
    return None
