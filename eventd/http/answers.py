"""An answer as bytes. The server owns the framing: length, date and connection headers are its own, whatever a handler says."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from eventd.http.message import Response

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON: Final = (("content-type", "application/json"),)

OWNED: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers of an answer that only the server writes: a handler's own are dropped."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@lru_cache(maxsize=512)
def header_name_is_valid(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def header_value_is_valid(value: str) -> bool:
    """No control byte: nothing that could end the line and begin another."""
    return value.isprintable() or _BAD_VALUE.search(value) is None


@lru_cache(maxsize=512)
def _begin(name: str) -> str:
    """The beginning of a header's line; empty for one that only the server writes. Raises ValueError for a name that is none."""
    if name.lower() in OWNED:
        return ""
    if not header_name_is_valid(name):
        raise ValueError(f"the header {name!r} has a name that is not allowed")
    return f"{name}: "


@lru_cache(maxsize=1024)
def _status_line(status: int) -> str:
    try:
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
    except ValueError:
        return f"HTTP/1.1 {status} \r\n"


def say(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """`{"message": ...}`, the shape in which an API Gateway refuses."""
    return Response(status, msgspec.json.encode({"message": message}), (*JSON, *headers))


def encode(response: Response, *, head: bool, close: bool, date: str) -> bytes:
    """The bytes of an answer. `head`: the request was HEAD, so no body follows. `close`: say that the connection ends.

    Raises ValueError for a status outside 200 to 599 or a header that would break the framing: it names which.
    """
    status = response.status
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not a final status")
    text = _status_line(status)
    for name, value in response.headers:
        if not (begin := _begin(name)):
            continue
        if not (value.isprintable() or header_value_is_valid(value)):
            raise ValueError(f"the header {name!r} has a value that is not allowed")
        text += f"{begin}{value}\r\n"
    body = response.body
    end = "\r\nconnection: close\r\n\r\n" if close else "\r\n\r\n"
    if status == 204:
        text += f"date: {date}{end}"
        head = True
    else:
        text += f"content-length: {len(body)}\r\ndate: {date}{end}"
    try:
        start = text.encode("latin-1")
    except UnicodeEncodeError:
        start = text.encode("utf-8", "replace")
    return start if head or status == 304 else start + body
