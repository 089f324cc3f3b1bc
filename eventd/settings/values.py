"""Values of single keys: rates, addresses, destinations, file modes, time zones. Each raises ValueError with a sentence for people."""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from eventd.model import Rate
from eventd.settings.fields import Duration, Size, base_of
from eventd.settings.places import absolute

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME_RULE: Final = "A name is 1 to 64 letters, digits, '-' or '_'."
MAX_SOCKET_PATH: Final = 107
"""sockaddr_un holds 108 bytes with the closing NUL (unix(7))."""

_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(s|m|h)")
_PER: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000}
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def parse_rate(text: object) -> Rate | None:
    """`"10/s"`, `"100/m"`, `"1/h"`, or `""` for none."""
    if text == "" or text is None:
        return None
    if isinstance(text, str) and (found := _RATE.fullmatch(text)):
        return Rate(count=int(found[1]), per_ms=_PER[found[2]])
    raise ValueError(f'{text!r:.70} is not a rate; write a number and s, m or h, for example "10/s"')


def parse_listen(text: str, *, unix: bool, base: str) -> str:
    """`HOST:PORT`, `[::1]:PORT` or, where allowed, `unix:PATH` (made absolute)."""
    if text.startswith("unix:"):
        if not unix:
            raise ValueError(f"{text!r} is not HOST:PORT; the Unix socket is [control] socket")
        return "unix:" + check_socket(absolute(text[5:], base))
    host, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65_535:
        raise ValueError(f'{text!r:.70} has no port from 0 to 65535; write HOST:PORT, for example "127.0.0.1:8080"')
    if not host:
        raise ValueError(f'{text!r:.70} has no host; write "127.0.0.1:{port}" for this machine only, "0.0.0.0:{port}" for every network')
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{host!r:.70} is not an IPv6 address") from None
    elif ":" in host:
        raise ValueError(f'{text!r:.70} is not HOST:PORT; an IPv6 address stands in brackets, for example "[::1]:{port}"')
    elif not _HOST.fullmatch(host) or _bad_ipv4(host):
        raise ValueError(f"{host!r:.70} is neither an address nor a host name")
    return text


def _bad_ipv4(host: str) -> bool:
    if not re.fullmatch(r"[0-9.]+", host):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def is_loopback(listen: str) -> bool:
    """Whether an address that `parse_listen` accepted can be reached from this machine only."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_socket(path: str) -> str:
    """The path of a Unix socket fits into the kernel's address."""
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > MAX_SOCKET_PATH:
        raise ValueError(f"the socket's path is {size} bytes long and the kernel takes at most {MAX_SOCKET_PATH}: {path}")
    return path


def check_timezone(name: str) -> str:
    """An IANA time zone that this machine, or the tzdata package, knows."""
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f'{name!r:.70} is not a time zone; write one of the IANA names, for example "Europe/Berlin" or "UTC"') from None
    return name


def check_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f'{text!r:.70} is not a network; write an address or for example "10.0.0.0/8"') from None


def parse_mode(text: object) -> int:
    """File permissions as octal text: "0660"."""
    if isinstance(text, str) and re.fullmatch(r"0?[0-7]{3}", text):
        return int(text, 8)
    raise ValueError(f'{text!r:.70} is not a file mode; write it as octal text, for example "0660"')


def parse_destination(value: Any, info: ValidationInfo) -> Any:
    """`function:NAME`, `https://...`, `directory:PATH` (made absolute) or an AMQP table (`url_file` made absolute)."""
    base = base_of(info)
    if isinstance(value, dict):
        return _amqp(value, base)
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        if kind == "function" and NAME.fullmatch(rest):
            return value
        if kind == "directory" and rest:
            return "directory:" + absolute(rest, base)
        if kind in ("https", "http"):
            return _url(value)
    text = '"function:NAME", "https://...", "directory:PATH" or { type = "amqp", url = "...", routing_key = "..." }'
    raise ValueError(f"{value!r:.70} is not a destination; write {text}")


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r:.70} is not a URL: {error}") from None
    if not host or any(ord(char) <= 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{text!r:.70} is not a URL")
    if parts.scheme == "http" and not is_loopback(f"{f'[{host}]' if ':' in host else host}:80"):
        raise ValueError(f"{text!r:.70} would send events unencrypted; write https://")
    return text


_AMQP_KEYS: Final = {"type", "url", "url_file", "exchange", "routing_key"}


def _amqp(table: dict[str, Any], base: str) -> dict[str, str]:
    if table.get("type") != "amqp":
        raise ValueError('a destination table has type = "amqp"; other destinations are text')
    for key, value in table.items():
        if key not in _AMQP_KEYS:
            raise ValueError(f"unknown key '{key[:70]}' in the destination; it may have url or url_file, exchange, routing_key")
        if not isinstance(value, str):
            raise ValueError(f"{key} of the destination must be text in quotes")  # noqa: TRY004  (pydantic takes ValueError)
    if ("url" in table) == ("url_file" in table):
        raise ValueError("an amqp destination needs either url or url_file")
    out = {"exchange": "", "routing_key": "", **table}
    if "url_file" in out:
        out["url_file"] = absolute(out["url_file"], base)
    elif not out["url"].startswith(("amqp://", "amqps://")):
        raise ValueError("the url of an amqp destination begins with amqp:// or amqps://")
    return out


def _more_than_zero(value: int) -> int:
    if value <= 0:
        raise ValueError("must be longer than zero")
    return value


def _memory(size: int) -> int:
    if size < 4 * 1024**2:
        number = size // 1024**2 or size
        raise ValueError(f'{size} bytes is too little memory for a process; write for example "{max(number, 64)}MiB"')
    return -(-size // 1024**2)


def _some(size: int) -> int:
    if size <= 0:
        raise ValueError("must be more than zero")
    return size


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r:.70} cannot be the name of an environment variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL, which an environment cannot")
    return value


def _optional_rate(value: Any) -> Any:
    return value if isinstance(value, Rate) else parse_rate(value)


PositiveDuration = Annotated[Duration, AfterValidator(_more_than_zero)]
PositiveSize = Annotated[Size, AfterValidator(_some)]
Memory = Annotated[Size, AfterValidator(_memory)]
"""A size in TOML, MiB in code (rounded up)."""
RateText = Annotated[
    Any,
    BeforeValidator(_optional_rate),
    PlainSerializer(lambda rate: rate and [rate.count, rate.per_ms]),
    WithJsonSchema({"type": "string", "pattern": f"^({_RATE.pattern})?$", "x-unit": "rate"}),
]
Timezone = Annotated[str, AfterValidator(check_timezone)]
Mode = Annotated[int, BeforeValidator(parse_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$", "x-unit": "mode"})]
Network = Annotated[str, AfterValidator(check_network)]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
Destination = Annotated[
    Any,
    BeforeValidator(parse_destination),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(function:[A-Za-z0-9_-]{1,64}|https?://.+|directory:.+)$"},
                {
                    "type": "object",
                    "properties": {key: {"type": "string"} for key in sorted(_AMQP_KEYS)},
                    "required": ["type"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
HttpListen = Annotated[str, AfterValidator(lambda text, info: parse_listen(text, unix=True, base=base_of(info)))]
TcpListen = Annotated[str, AfterValidator(lambda text, info: parse_listen(text, unix=False, base=base_of(info)))]
