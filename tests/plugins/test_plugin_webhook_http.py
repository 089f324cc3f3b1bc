"""The webhook trigger behind the real front door, with real clients."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from eventd.http.router import Router
from eventd.http.server import HttpServer
from eventd.model import HttpSettings
from eventd.sdk import Answer, Call, Outcome
from eventd.testing.site import FakeSite
from eventd_plugins.webhook import WebhookSettings, plugin

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def served(site: FakeSite, **keys: Any) -> AsyncIterator[str]:
    """The plugin on a site whose routes are a real server's."""
    router = Router()
    server = HttpServer(HttpSettings(listen=("127.0.0.1:0",)), router, log=logging.getLogger("eventd.http"))
    site.route = router.add  # type: ignore[method-assign]
    await server.start()
    try:
        async with site.playing(plugin, WebhookSettings.model_validate(keys)):
            yield f"http://{server.addresses[0]}"
    finally:
        await server.aclose(0)


async def curl(*args: str, stdin: bytes = b"") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("curl", "-sS", "--max-time", "10", *args, stdin=pipe, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(15):
        out, err = await process.communicate(stdin)
    assert process.returncode == 0, err
    return out.decode()


async def test_github_delivers_with_curl() -> None:
    site = FakeSite("gh")
    secret = "It's a Secret to Everybody"
    signature = "X-Hub-Signature-256: sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    async with served(site, path="/gh", mode="async", methods=["POST"], auth={"type": "github", "secret": secret}) as base:
        args = (f"{base}/gh", "-H", signature, "-H", "X-GitHub-Delivery: 72d3162e", "-H", "Content-Type: text/plain", "--data-binary", "@-")
        assert await curl(*args, "-w", " %{http_code}", stdin=b"Hello, World!") == '{"event":"72d3162e"} 202'
        again = await curl(*args, "-i", stdin=b"Hello, World!")
        assert again.startswith("HTTP/1.1 202 Accepted\r\n")
        assert "eventd-duplicate: 1\r\n" in again
        assert await curl(*args, "-w", " %{http_code}", stdin=b"Hello, World?") == '{"message":"Unauthorized"} 401'
        assert await curl(f"{base}/gh", "-w", " %{http_code}") == '{"message":"Method Not Allowed"} 405'
        assert await curl(f"{base}/no", "-w", " %{http_code}") == '{"message":"Not Found"} 404'
    assert [one.data["body"] for one in site.emitted] == ["Hello, World!"]


async def test_sync_round_trips_keep_each_caller_apart() -> None:
    site = FakeSite("echo")

    def answer(call: Call) -> Answer:
        event = json.loads(bytes(call.data))
        return Answer("", Outcome.SUCCEEDED, json.dumps({"id": event["pathParameters"]["id"], "body": event["body"]}).encode())

    site.default_answer = answer
    async with served(site, path="/e/{id}") as base, httpx.AsyncClient(base_url=base, timeout=10) as client:
        answers = await asyncio.gather(*(client.post(f"/e/{number}", json={"n": number}) for number in range(100)))
        for number, response in enumerate(answers):
            assert response.json() == {"id": str(number), "body": json.dumps({"n": number}, separators=(",", ":"))}
            assert response.headers["x-amzn-requestid"]
    assert len({call.invocation for call in site.calls}) == 100


async def test_a_client_that_leaves_cancels_its_call_and_headers_keep_their_case_in_payload_1() -> None:
    site = FakeSite("late")
    site.default_answer = None
    async with served(site, path="/late", payload="1.0") as base:
        host, _, port = base.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /late HTTP/1.1\r\nHost: a\r\nX-Mixed-Case: 1\r\nx-mixed-case: 2\r\n\r\n")
        await site.wait_for(lambda: site.calls)
        writer.close()
        await writer.wait_closed()
        await site.wait_for(lambda: site.calls[0].gone)
    event = json.loads(bytes(site.calls[0].call.data))
    assert event["multiValueHeaders"]["X-Mixed-Case"] == ["1"]
    assert event["multiValueHeaders"]["x-mixed-case"] == ["2"]


async def test_the_body_limit_of_the_trigger_holds() -> None:
    site = FakeSite("big")
    async with served(site, path="/big", max_body="2MiB") as base, httpx.AsyncClient(base_url=base, timeout=10) as client:
        assert (await client.post("/big", content=b"x" * 2 * 1024**2)).status_code == 200
        assert (await client.post("/big", content=b"x" * (2 * 1024**2 + 1))).status_code == 413
    assert len(site.calls) == 1
