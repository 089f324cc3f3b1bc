"""Who eventd is measured beside: a null ASGI app under bare uvicorn, and workerd when npm can install it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from bench_load import work_folder

ANSWER = '{"ok":true}'

_NULL_APP = f"""
import asyncio, socket, sys, uvicorn, uvloop
async def app(scope, receive, send):
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"{len(ANSWER)}")]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": b'{ANSWER}'}})
# A socket, not `fd=`: of a descriptor uvicorn thinks that it is a Unix socket, leaves Nagle's algorithm on, and takes 40 ms an answer.
config = uvicorn.Config(app, access_log=False, log_level="error", lifespan="off", http="httptools", loop="uvloop")
uvloop.run(uvicorn.Server(config).serve([socket.socket(fileno=int(sys.argv[1]))]))
"""

_WORKERD_CONFIG = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .null)],
  sockets = [(name = "http", address = "127.0.0.1:%d", http = (), service = "main")],
);
const null :Workerd.Worker = (modules = [(name = "null.js", esModule = embed "null.js")], compatibilityDate = "2024-09-23");
"""

_WORKERD_NULL = """
export default { async fetch(request) {
  await request.text();
  return new Response('%s', { headers: { "content-type": "application/json" } });
} };
"""


class Peer:
    """A server in a process of its own; a context manager."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, folder: Path | None = None) -> None:
        self.name = name
        self.process = process
        self.port = port
        self._folder = folder

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Peer:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        raise RuntimeError(f"{self.name} does not listen")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def uvicorn() -> Peer:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        command = [sys.executable, "-c", textwrap.dedent(_NULL_APP), str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)
        return Peer("uvicorn", process, listener.getsockname()[1])


def workerd() -> Peer | str:
    """workerd with a null worker, installed by npm in a temporary folder; or a sentence that says why there is none."""
    npm = shutil.which("npm")
    if npm is None:
        return "workerd was not measured: there is no npm"
    folder = work_folder()
    try:
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder), "workerd"],
            capture_output=True, text=True, timeout=180, check=False, cwd=folder,
        )  # fmt: skip
        program = folder / "node_modules" / ".bin" / "workerd"
        if done.returncode or not program.exists():
            raise OSError((done.stderr.strip().splitlines() or ["npm says nothing"])[-1])
        if not _runs(program):
            raise OSError("the program does not start on this machine")
    except (OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"workerd was not measured: npm could not install it ({error})"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "null.js").write_text(_WORKERD_NULL % ANSWER)
    (folder / "config.capnp").write_text(_WORKERD_CONFIG % port)
    process = subprocess.Popen(
        [str(program), "serve", str(folder / "config.capnp")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return Peer("workerd", process, port, folder)


def _runs(program: Path) -> bool:
    return subprocess.run([str(program), "--version"], capture_output=True, timeout=30, check=False).returncode == 0
