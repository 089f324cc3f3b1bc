"""The Control protocol over HTTP: what the CLI holds in its hand.

Same interface and same errors as the daemon's own object. No timeout on answers: a run may take as long as its function's
timeout says; only connecting has a limit. Cancelling a call closes its connection; what the daemon began goes on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from eventd.control.listen import PATH_MAX
from eventd.control.query import to_params
from eventd.errors import CODES, EventdError
from eventd.ports import Json, Query

CONNECT_SECONDS: Final = 5.0
_UNIX_URL: Final = "http://localhost"


class _Invoked(msgspec.Struct, omit_defaults=True):
    """A synchronous answer whose result stays the bytes that the function gave."""

    run: Json
    result: msgspec.Raw
    error: bool = False
    tail: str = ""


T = TypeVar("T")


class ControlClient:
    """A daemon, reached through its Unix socket (`socket`) or a TCP listener (`url`). Use as an async context manager.

    Every method raises EventdError: the daemon's own, or E-NODAEMON when nobody answers.
    """

    def __init__(self, socket: str | None = None, *, url: str | None = None) -> None:
        if (socket is None) == (url is None):
            raise ValueError("give a socket or a url")
        if socket is not None and len(os.fsencode(socket)) > PATH_MAX:
            raise EventdError("E-USAGE", f"the socket's path is over {PATH_MAX} bytes: {socket}", "Use a shorter path.")
        self._where = socket or url or ""
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, retries=0),
            base_url=url or _UNIX_URL,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    # --- reading ---

    async def status(self) -> Json:
        return await self._get("/v1/status")

    async def runs(self, query: Query) -> Json:
        return await self._get("/v1/runs", to_params(query))

    async def run(self, run: str) -> Json:
        return await self._get(f"/v1/runs/{quote(run, safe='')}")

    async def events(self, query: Query) -> Json:
        return await self._get("/v1/events", to_params(query, ids="event"))

    async def dead(self, query: Query) -> Json:
        return await self._get("/v1/dead", to_params(query, ids="invocation"))

    async def stats(self, query: Query, price: bool = False) -> Json:
        return await self._get("/v1/stats", [*to_params(query), *([("price", "true")] if price else [])])

    async def logs(self, query: Query, lines: int, run: str | None) -> Json:
        return await self._get("/v1/logs", [*to_params(query), ("n", str(lines)), *([("run", run)] if run else [])])

    # --- acting ---

    async def invoke(
        self,
        function: str,
        payload: bytes,
        *,
        asynchronous: bool = False,
        id: str | None = None,
        wait_ms: int | None = None,
        tail: bool = False,
    ) -> Json:
        """As the protocol says; `result` is a `msgspec.Raw` holding the function's answer as it was sent."""
        body: Json = {"function": function, "payload": msgspec.Raw(payload), "async": asynchronous, "tail": tail}
        body |= {key: value for key, value in (("id", id), ("wait_ms", wait_ms)) if value is not None}
        if asynchronous:
            return await self._post("/v1/invoke", body)
        answer = self._decoded(await self._send("POST", "/v1/invoke", body=body), _Invoked)
        return {"run": answer.run, "result": answer.result, "error": answer.error, "tail": answer.tail}

    async def redrive(self, query: Query, dry_run: bool = False) -> Json:
        return await self._post("/v1/redrive", _selection(query, dry_run))

    async def discard(self, query: Query, dry_run: bool = False) -> Json:
        return await self._post("/v1/discard", _selection(query, dry_run))

    async def cancel(self, invocations: Sequence[str]) -> Json:
        return await self._post("/v1/cancel", {"invocations": list(invocations)})

    async def pause(self, kind: str, name: str) -> Json:
        return await self._post("/v1/pause", {"target": f"{kind}:{name}"})

    async def resume(self, kind: str, name: str) -> Json:
        return await self._post("/v1/resume", {"target": f"{kind}:{name}"})

    async def reload(self) -> Json:
        return await self._post("/v1/reload", {})

    async def drain(self, *, queue: bool = False, timeout_ms: int | None = None, undo: bool = False) -> Json:
        return await self._post("/v1/drain", {"queue": queue, "timeout_ms": timeout_ms, "undo": undo})

    # --- for machines ---

    async def metrics(self) -> bytes:
        return (await self._send("GET", "/metrics")).content

    async def health(self) -> tuple[bool, str]:
        return await self._verdict("/healthz")

    async def readiness(self) -> tuple[bool, str]:
        return await self._verdict("/readyz")

    # --- the wire ---

    async def _get(self, path: str, params: Sequence[tuple[str, str]] = ()) -> Json:
        return self._decoded(await self._send("GET", path, params=params), dict[str, Any])

    async def _post(self, path: str, body: Json) -> Json:
        return self._decoded(await self._send("POST", path, body=body), dict[str, Any])

    async def _verdict(self, path: str) -> tuple[bool, str]:
        response = await self._ask("GET", path)
        return response.status_code == 200, "" if response.status_code == 200 else response.text.strip()

    async def _send(self, method: str, path: str, *, params: Sequence[tuple[str, str]] = (), body: Json | None = None) -> httpx.Response:
        response = await self._ask(method, path, params=params, body=body)
        if response.is_success:
            return response
        raise _reconstructed(response)

    async def _ask(self, method: str, path: str, *, params: Sequence[tuple[str, str]] = (), body: Json | None = None) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = None if body is None else {"content-type": "application/json"}
        try:
            return await self._http.request(method, path, params=list(params) or None, content=content, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._nobody(error) from error
        except httpx.TransportError as error:
            raise EventdError(
                "E-NODAEMON",
                f"the daemon at {self._where} went away before it answered ({type(error).__name__})",
                "Whether it acted is not known; look with: eventd status",
            ) from error

    def _nobody(self, error: BaseException) -> EventdError:
        if _errno(error) in (errno.EACCES, errno.EPERM):
            return EventdError(
                "E-NODAEMON", f"you may not use the socket {self._where}", "Join the group that owns it ([control] group), or use sudo."
            )
        return EventdError(
            "E-NODAEMON", f"no daemon answers at {self._where}", "Start one: eventd serve -c FILE; or name its socket: --socket PATH"
        )

    def _decoded(self, response: httpx.Response, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=shape)
        except msgspec.DecodeError as error:
            raise EventdError(
                "E-INTERNAL", f"{self._where} answered with what is no JSON of ours: {error}", "Is it an eventd of this version?"
            ) from error


def _selection(query: Query, dry_run: bool) -> Json:
    chosen: Json = {key: value for key in ("function", "trigger", "reason") if (value := getattr(query, key)) is not None}
    if query.ids:
        chosen["invocations"] = list(query.ids)
    return (chosen or {"all": True}) | {"dry_run": dry_run}


def _reconstructed(response: httpx.Response) -> EventdError:
    """The daemon's error as it was raised there; an answer that is none of ours is an E-INTERNAL that quotes it."""
    try:
        error = msgspec.json.decode(response.content, type=dict[str, dict[str, str]])["error"]
        code, message, hint = error["code"], error["message"], error.get("hint", "")
    except (msgspec.DecodeError, KeyError):
        return EventdError("E-INTERNAL", f"the daemon answered {response.status_code}: {response.text[:200]!r}", "Look into its log.")
    if code not in CODES:
        return EventdError("E-INTERNAL", f"{code} {message}", hint or "The daemon is of another version.")
    return EventdError(code, message, hint)


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
