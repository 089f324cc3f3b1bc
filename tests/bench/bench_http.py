"""The front door beside bare uvicorn: `python tests/bench/bench_http.py [seconds]`.

Four servers, each in a process of its own on loopback, one client after another in the same sitting, so that only the ratios
count: a null ASGI app under uvicorn (httptools, uvloop), our server with a null handler, the webhook trigger in front of a
site that answers at once, synchronous and asynchronous (no journal, no worker: what is measured is the front door and the
plugin). The client is wrk when it is installed, else a small one of our own, which is slower than the servers.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

BODY = b'{"order": 17, "note": "hello"}'
Serve = Callable[[socket.socket], Awaitable[None]]


async def serve_uvicorn(sock: socket.socket) -> None:
    import uvicorn

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"11")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"ok":true}'})

    config = uvicorn.Config(app, access_log=False, log_level="error", lifespan="off", http="httptools", loop="uvloop")
    await uvicorn.Server(config).serve([sock])


async def _serve(sock: socket.socket, router: Any) -> None:
    from eventd.http.server import HttpServer
    from eventd.model import HttpSettings

    await HttpServer(HttpSettings(), router, log=logging.getLogger("bench")).start([sock])
    await asyncio.Event().wait()


async def serve_null(sock: socket.socket) -> None:
    from eventd.http import Response, Route
    from eventd.http.router import Router

    router = Router()
    answer = Response(200, b'{"ok":true}', (("content-type", "application/json"),))
    router.add(Route("/hook", lambda request: request.respond(answer)))
    await _serve(sock, router)


async def _serve_webhook(sock: socket.socket, mode: str) -> None:
    from eventd.http.router import Router
    from eventd.sdk import Answer, Outcome, Receipt
    from eventd.testing.site import FakeSite
    from eventd_plugins.webhook import WebhookSettings, plugin

    router = Router()
    site: Any = FakeSite("hook")
    site.route = router.add
    site.now, site.monotonic = time.time, time.monotonic
    result = b'{"statusCode":200,"headers":{"content-type":"application/json"},"body":"{\\"ok\\":true}"}'

    def submit(call: Any, done: Any) -> Any:
        done(Answer(call.invocation, Outcome.SUCCEEDED, result))
        return lambda: None

    site.submit = submit
    site.offer = lambda event, done, state=None: done(Receipt(event.id or "0192f0a0-0000-7000-8000-000000000000", False))
    async with asyncio.TaskGroup() as group:
        group.create_task(plugin.run(site, WebhookSettings.model_validate({"path": "/hook", "mode": mode})))
        await _serve(sock, router)


async def serve_sync(sock: socket.socket) -> None:
    await _serve_webhook(sock, "sync")


async def serve_async(sock: socket.socket) -> None:
    await _serve_webhook(sock, "async")


def _run(serve: Serve, sock: socket.socket) -> None:
    uvloop.run(serve(sock))


async def _own_client(port: int, connections: int, seconds: float) -> tuple[float, float]:
    request = b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    ends = time.perf_counter() + seconds
    took: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (begun := time.perf_counter()) < ends:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(found[1]) if found else 0)
            took.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return len(took) / seconds, sorted(took)[len(took) // 2] * 1e6


def measure(port: int, connections: int, seconds: float) -> tuple[float, float]:
    """Requests a second, and the median in microseconds."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return uvloop.run(_own_client(port, connections, seconds))
    with TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(f"wrk.method='POST'; wrk.body='{BODY.decode()}'; wrk.headers['Content-Type']='application/json'")
        command = [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}/hook",
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    median = re.search(r"50%\s+([\d.]+)(us|ms)", text)
    assert rate is not None, text
    assert median is not None, text
    return float(rate[1]), float(median[1]) * (1000 if median[2] == "ms" else 1)


def main(seconds: float) -> None:
    servers: dict[str, Serve] = {
        "bare uvicorn": serve_uvicorn,
        "null handler": serve_null,
        "webhook, sync": serve_sync,
        "webhook, async": serve_async,
    }
    base: dict[int, tuple[float, float]] = {}
    print(f"{'':16}{'c32 req/s':>12}{'ratio':>8}{'c1 req/s':>12}{'ratio':>8}{'c1 p50 us':>12}{'added':>8}")
    for name, serve in servers.items():
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
            sock.listen(1024)
            port = sock.getsockname()[1]
            process = multiprocessing.get_context("fork").Process(target=_run, args=(serve, sock), daemon=True)
            process.start()
        try:
            measure(port, 4, 0.5)
            found = {connections: measure(port, connections, seconds) for connections in (32, 1)}
        finally:
            process.kill()
            process.join()
        base = base or found
        (many, _), (one, median) = found[32], found[1]
        ratios = many / base[32][0], one / base[1][0]
        print(f"{name:16}{many:12,.0f}{ratios[0]:8.2f}{one:12,.0f}{ratios[1]:8.2f}{median:12.0f}{median - base[1][1]:8.0f}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
