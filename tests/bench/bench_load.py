"""The load generator: wrk when it is installed (apt package `wrk`), else a small asyncio client, which is slower than the servers."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import uvloop
from bench_stats import Load, percentile, read_wrk

BODY = b'{"order": 17, "note": "hello"}'


def name() -> str:
    return "wrk" if shutil.which("wrk") else "our own asyncio client (install wrk for figures that mean more)"


def load(port: int, path: str, connections: int, seconds: float) -> Load:
    """POST the same small JSON body again and again over kept-alive connections."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return uvloop.run(_own(port, path, connections, seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'; wrk.body='{BODY.decode()}'; wrk.headers['Content-Type']='application/json'")
        script.flush()
        command = [
            wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s", "--latency", "-s", script.name,
            f"http://127.0.0.1:{port}{path}",
        ]  # fmt: skip
        return read_wrk(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def _own(port: int, path: str, connections: int, seconds: float) -> Load:
    ends = time.perf_counter() + seconds
    took: list[float] = []
    failed = 0

    async def one() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        message = request(path)
        while (begun := time.perf_counter()) < ends:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(length_of(head))
            took.append((time.perf_counter() - begun) * 1e6)
            failed += head[9:10] != b"2"
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return Load(len(took), len(took) / seconds, percentile(took, 50), percentile(took, 99), failed)


def request(path: str, body: bytes = BODY) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def length_of(head: bytes) -> int:
    found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


class Caller:
    """One blocking connection, for calls one after another."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)

    def receive(self) -> tuple[int, bytes]:
        """(status, body)."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        while len(body) < length_of(head):
            body += self._more()
        return int(head[9:12]), body

    def _more(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def sequence(self, path: str, count: int) -> list[float]:
        """Microseconds of `count` calls, one after another. Raises RuntimeError for an answer that is no success."""
        message = request(path)
        took = []
        for _ in range(count):
            begun = time.perf_counter()
            self.send(message)
            status, body = self.receive()
            took.append((time.perf_counter() - begun) * 1e6)
            if not 200 <= status < 300:
                raise RuntimeError(f"{path} answered {status}: {body[:200]!r}")
        return took

    def close(self) -> None:
        self._socket.close()


def work_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="eventd-bench-"))
