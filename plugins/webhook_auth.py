"""Who may send to a webhook: secrets that can be rotated, and checks over the raw body in constant time.

Nothing here says why a request was refused: a bad signature and a missing one look the same to the sender.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from eventd.sdk import Duration, EventdError, Finding, LocalPath, PluginSettings, Request, Site

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at a secret file's time stamp."""

_SOURCES = ("secret_file", "secret_credential", "secret")
_ONLY_FOR: Final = {"header": "hmac", "prefix": "hmac", "algorithm": "hmac", "encoding": "hmac", "user": "basic", "tolerance": "none yet"}
_HEX = re.compile(r"[0-9A-Fa-f]+")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ONE_OR_MANY = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


def _many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_many), _ONE_OR_MANY]
Paths = Annotated[tuple[LocalPath, ...], BeforeValidator(_many), _ONE_OR_MANY]


class Auth(PluginSettings):
    """How a sender proves who it is. A list in place of one secret: each of them is accepted, for rotation."""

    type: Literal["github", "hmac", "bearer", "basic"] = Field(
        description="github: X-Hub-Signature-256; hmac: a digest of the body in a header; bearer, basic: Authorization"
    )
    secret_file: Paths = Field(default=(), description="File with the secret; read again when it changes")
    secret_credential: Texts = Field(default=(), description="Name of a systemd credential with the secret")
    secret: Texts = Field(default=(), description="The secret itself, for trying things out: whoever reads the file knows it", repr=False)
    header: str = Field(default="", description="hmac: the header with the digest")
    prefix: str = Field(default="", description='hmac: what stands before the digest, for example "sha256="')
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = Field(default="sha256", description="hmac: the digest")
    encoding: Literal["hex", "base64"] = Field(default="hex", description="hmac: how the digest is written")
    user: str = Field(default="", description="basic: the user's name")
    tolerance: Duration = Field(default=300_000, description="How old a signed time stamp may be, for types that sign one")

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that are verified here: they are not part of the event (D17)."""
        match self.type:
            case "github":
                return "x-hub-signature-256", "x-hub-signature"
            case "hmac":
                return (self.header.lower(),)
            case "bearer" | "basic":
                return ("authorization",)


def check(auth: Auth) -> Iterator[Finding]:
    """What is wrong with an auth table that has the right keys and types. Paths are below the trigger's table."""
    given = [name for name in _SOURCES if getattr(auth, name)]
    if len(given) != 1:
        what = " and ".join(given) + " are both given" if given else "no secret is given"
        yield Finding("auth", f"{what}, but it takes exactly one of them.", "Use secret_file, secret_credential or secret.")
    for name in given:
        if not all(getattr(auth, name)):
            yield Finding(f"auth.{name}", "an empty secret would let everybody in.", "Write the secret.")
    for path in auth.secret_file:
        yield from _check_file(path)
    if auth.type == "hmac" and not _TOKEN.fullmatch(auth.header):
        yield Finding("auth.header", f"{auth.header!r} is not the name of a header.", 'Name the one with the digest: "X-Signature".')
    if auth.type == "basic" and (not auth.user or ":" in auth.user):
        yield Finding("auth.user", "basic needs a user's name, without a colon.", 'Write user = "name".')
    for name, owner in _ONLY_FOR.items():
        if name in auth.model_fields_set and auth.type != owner:
            yield Finding(f"auth.{name}", f"it has no effect with type {auth.type!r}.", "Remove it.", "warning")


def _check_file(path: str) -> Iterator[Finding]:
    try:
        found = os.stat(path)
    except OSError as error:
        yield Finding("auth.secret_file", f"{path!r} cannot be read: {error.strerror}.", "Create the file, or fix the path.")
        return
    if not stat.S_ISREG(found.st_mode):
        yield Finding("auth.secret_file", f"{path!r} is not a file.", "Name a file with the secret in it.")
    elif found.st_mode & 0o004:
        yield Finding("auth.secret_file", f"every user of this machine can read {path!r}.", f"chmod o-r {path}", "warning")


class _File:
    """One secret file, and what it held when it last could be read."""

    __slots__ = ("_path", "_ref", "_site", "_stamp", "value")

    def __init__(self, site: Site, path: str) -> None:
        self._site = site
        self._path = path
        self._ref = f"file:{path}"
        self._stamp = self._look()
        self.value = _read(site, self._ref)

    def refresh(self) -> None:
        """Read the file again if it changed. One that cannot be read, or is empty, leaves the last good secret in force."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            self.value = _read(self._site, self._ref)
            self._stamp = stamp
        except EventdError as error:
            self._site.warn("W-CONFIG", f"the secret of trigger {self._site.name} is still the old one: {error.message}")

    def _look(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self._path)
        except OSError:
            return (0, 0, 0)
        return found.st_ino, found.st_mtime_ns, found.st_size


def _read(site: Site, ref: str) -> bytes:
    value = site.secret(ref)
    if not value:
        raise EventdError("E-CONFIG", f"the secret {ref!r} is empty.", "Write the secret into it.")
    return value


class Secrets:
    """The secrets in force. Raises EventdError(E-CONFIG) when one cannot be read at the start."""

    def __init__(self, site: Site, auth: Auth) -> None:
        self._site = site
        self._files = [_File(site, path) for path in auth.secret_file]
        self._fixed = [_read(site, f"credential:{name}") for name in auth.secret_credential] + [text.encode() for text in auth.secret]
        self._looked = site.monotonic()
        self._values = self._collect()
        if not self._values or not all(self._values):
            raise EventdError("E-CONFIG", f"trigger {site.name} has auth but no secret.", "Give secret_file, secret_credential or secret.")

    def values(self) -> tuple[bytes, ...]:
        """All that are accepted now. Looks at the files at most once in LOOK_EVERY seconds."""
        if self._files and self._site.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = self._site.monotonic()
            for file in self._files:
                file.refresh()
            self._values = self._collect()
        return self._values

    def _collect(self) -> tuple[bytes, ...]:
        return (*(file.value for file in self._files), *self._fixed)


Verify = Callable[[Request], bool]


def verifier(site: Site, auth: Auth) -> Verify:
    """Whether a request proves who sent it. Raises EventdError(E-CONFIG) when a secret cannot be read."""
    secrets = Secrets(site, auth)
    match auth.type:
        case "github":
            return _signed(secrets, "x-hub-signature-256", "sha256=", "sha256", "hex")
        case "hmac":
            return _signed(secrets, auth.header.lower(), auth.prefix, auth.algorithm, auth.encoding)
        case "bearer":
            return _bearer(secrets)
        case "basic":
            return _basic(secrets, auth.user.encode())


def only(request: Request, name: str) -> str | None:
    """The value of a header that stands exactly once; None when it is missing or given twice."""
    values = [value for field, value in request.headers if field == name]
    return values[0] if len(values) == 1 else None


def _signed(secrets: Secrets, header: str, prefix: str, algorithm: str, encoding: str) -> Verify:
    size = hashlib.new(algorithm).digest_size

    def decode(text: str) -> bytes | None:
        if encoding == "hex":
            return bytes.fromhex(text) if len(text) == 2 * size and _HEX.fullmatch(text) else None
        if len(text) != 4 * -(-size // 3):
            return None
        try:
            return base64.b64decode(text.encode("latin-1"), validate=True)
        except binascii.Error:
            return None

    def verify(request: Request) -> bool:
        value = only(request, header)
        if value is None or not value.startswith(prefix):
            return False
        given = decode(value[len(prefix) :])
        if given is None or len(given) != size:
            return False
        good = False
        for secret in secrets.values():
            # Every secret is tried, so that the time does not tell which one it was.
            good |= hmac.compare_digest(hmac.digest(secret, request.body, algorithm), given)
        return good

    return verify


def _same(secret: bytes, given: bytes) -> bool:
    """Equality whose time tells nothing, not even the length."""
    return hmac.compare_digest(hashlib.sha256(secret).digest(), hashlib.sha256(given).digest())


def _credentials(request: Request, scheme: str) -> bytes | None:
    value = only(request, "authorization")
    if value is None:
        return None
    name, _, rest = value.partition(" ")
    return rest.strip(" ").encode("latin-1") if name.lower() == scheme else None


def _bearer(secrets: Secrets) -> Verify:
    def verify(request: Request) -> bool:
        given = _credentials(request, "bearer")
        if given is None:
            return False
        good = False
        for secret in secrets.values():
            good |= _same(secret, given)
        return good

    return verify


def _basic(secrets: Secrets, user: bytes) -> Verify:
    def verify(request: Request) -> bool:
        text = _credentials(request, "basic")
        if text is None:
            return False
        try:
            name, colon, password = base64.b64decode(text, validate=True).partition(b":")
        except binascii.Error:
            return False
        good = False
        for secret in secrets.values():
            good |= _same(secret, password)
        return _same(user, name) and bool(colon) and good

    return verify
