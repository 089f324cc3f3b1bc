"""Programs that people use: curl, httpx, and nginx in front."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from http_harness import serving, until

from eventd.http import Request, Response
from eventd.http.server import HttpServer

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


def echo(request: Request) -> None:
    said = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "version": request.version,
        "length": len(request.body),
        "sum": sum(request.body),
        "headers": dict(request.headers),
        "peer": request.peer,
        "scheme": request.scheme,
        "port": request.port,
    }
    request.respond(Response(200, json.dumps(said).encode(), (("content-type", "application/json"),)))


async def run(*command: str | Path, stdin: bytes = b"") -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate(stdin)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def curl(server: HttpServer, path: str, *args: str | Path, stdin: bytes = b"") -> str:
    return await run("curl", "-sS", "--max-time", "10", *args, f"http://{server.addresses[0]}{path}", stdin=stdin)


@pytest.mark.anyio
async def test_curl(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 2000)
    path = tmp_path / "http.sock"
    async with serving(handler=echo, listen=("127.0.0.1:0", f"unix:{path}"), max_body=600_000) as server:
        assert json.loads(await curl(server, "/a/b?c=d"))["query"] == "c=d"
        for args in (
            ("-H", "Expect: 100-continue"),
            ("-H", "Transfer-Encoding: chunked"),
            ("--http1.0",),
            ("--http2",),
            ("-H", "Connection: close"),
        ):
            said = json.loads(await curl(server, "/up", "--data-binary", f"@{big}", *args))
            assert (said["method"], said["length"], said["sum"]) == ("POST", 512_000, sum(range(256)) * 2000), args
        assert json.loads(await curl(server, "/", "-T", "-", stdin=b"from a pipe"))["length"] == 11
        assert "content-length" in await curl(server, "/x", "-I")
        two = await curl(server, "/one", "-w", "%{num_connects}", f"http://{server.addresses[0]}/two", "-o", "/dev/null", "-o", "/dev/null")
        assert two == "10", "the second request used the first one's connection"
        big.write_bytes(b"x" * 700_000)
        for args in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")):
            answer = await curl(server, "/up", "--data-binary", f"@{big}", "-w", "%{http_code}", *args)
            assert answer == '{"message":"Content Too Large"}413', args
        assert json.loads(await run("curl", "-sS", "--unix-socket", path, "http://localhost/u"))["headers"]["host"] == "localhost"


@pytest.mark.anyio
async def test_httpx() -> None:
    async with serving(handler=echo) as server, httpx.AsyncClient(base_url=f"http://{server.addresses[0]}", timeout=10) as client:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"part"

        assert (await client.post("/a", content=parts())).json()["length"] == 40
        answers = await asyncio.gather(*(client.put(f"/{number}", content=b"x" * number) for number in range(60)))
        assert [answer.json()["length"] for answer in answers] == list(range(60))
        assert (await client.head("/a")).headers["content-length"] != "0"
        assert (await client.get("/%2F%20?a=%26")).json()["path"] == "/%2F%20"
        assert (await client.options("/a")).status_code == 200
        assert (await client.post("/a", content=b"x" * 2_000_000)).status_code == 413


@asynccontextmanager
async def nginx(folder: Path, upstream: str, version: str) -> AsyncIterator[int]:
    """A private nginx on loopback in front of `upstream`; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keep = "" if version == "1.0" else 'proxy_set_header Connection "";'
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 128; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream eventd {{ server {upstream}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://eventd; proxy_http_version {version}; {keep} proxy_request_buffering off;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
    }}
  }}
}}
""")
    process = await asyncio.create_subprocess_exec(
        NGINX, "-p", folder, "-c", folder / "nginx.conf", stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: (folder / "pid").exists() or process.returncode is not None)
        assert process.returncode is None, (folder / "error.log").read_text()
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_nginx_in_front(tmp_path: Path, version: str) -> None:
    unix = tmp_path / "http.sock"
    async with serving(handler=echo, listen=(f"unix:{unix}", "127.0.0.1:0"), trusted_proxies=("127.0.0.0/8",)) as server:
        for upstream in (f"unix:{unix}", server.addresses[1]):
            folder = tmp_path / upstream.replace("/", "_").replace(":", "_")
            folder.mkdir()
            async with (
                nginx(folder, upstream, version) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
            ):
                before = server.counts.connections
                for number in range(20):
                    said = (
                        await client.post(f"/a%2Fb/{number}?q", content=b"x" * 1000 * number, headers={"x-forwarded-for": "9.9.9.9"})
                    ).json()
                    assert (said["length"], said["version"], said["path"]) == (1000 * number, version, f"/a%2Fb/{number}")
                    assert (said["scheme"], said["port"], said["headers"]["host"]) == ("https", 443, f"127.0.0.1:{port}")
                    assert said["peer"] == "9.9.9.9", "nginx is trusted, and its own client is on loopback too"
                opened = server.counts.connections - before
                assert opened == (20 if version == "1.0" else 1)
                assert (await client.post("/", content=b"x" * 2_000_000)).status_code == 413
                answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(50)))
                assert {answer.status_code for answer in answers} == {200}
