"""The shipped example handlers: each runs on a real worker and does what its first lines say."""

# ruff: noqa: ASYNC110  (tests poll for a condition)

from __future__ import annotations

import ast
import base64
import importlib.util
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, Lane, Outcome, Settings
from eventd.ports import OutputChunk, Ran, Task
from eventd.runtime import code_tree
from eventd.runtime.code import CodeStore
from eventd.runtime.deps import Environments
from eventd.runtime.deps_spec import inline_of
from eventd.runtime.execute import ExecRuntime
from eventd.runtime.node import NodeRuntime
from eventd.runtime.pool import Pool
from eventd.runtime.python import PythonRuntime

SHIPPED = Path(__file__).parents[2] / "config" / "handlers"
RUNTIMES = {".py": "python", ".js": "node", ".sh": "exec"}
FUNCTIONS = sorted(path.name for path in SHIPPED.iterdir() if path.is_file() and not path.name.startswith("_"))


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


class Shop:
    """The examples in a folder of their own, loaded one by one into a real pool."""

    def __init__(self, handlers: Path, pool: Pool, output: list[OutputChunk]) -> None:
        self.handlers = handlers
        self.pool = pool
        self.output = output
        self._runs = 0

    async def result(self, file: str, event: Any, **more: Any) -> tuple[Any, str]:
        """(result, what it printed) of one run that succeeds."""
        ran, printed = await self.run(file, event, **more)
        assert ran.outcome is Outcome.SUCCEEDED, (ran, printed)
        return json.loads(ran.payload), printed

    async def run(self, file: str, event: Any, **more: Any) -> tuple[Ran, str]:
        path = self.handlers / file
        name = path.stem
        await self.pool.load(FunctionSettings(name=name, runtime=RUNTIMES[path.suffix], source=str(path), **more))
        self._runs += 1
        run = f"run-{self._runs}"
        ended: list[Ran] = []
        self.pool.run(
            Task(run=run, invocation=f"inv-{self._runs}", function=name, event=json.dumps(event).encode(), lane=Lane.DIRECT), ended.append
        )
        with anyio.fail_after(20):
            while not ended:
                await anyio.sleep(0.005)
        return ended[0], b"".join(chunk.data for chunk in self.output if chunk.run == run).decode()


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    code_tree_settle, code_tree.SETTLE_S = code_tree.SETTLE_S, 0.01
    base = tmp_path_factory.mktemp("examples")
    handlers = base / "handlers"
    shutil.copytree(SHIPPED, handlers, ignore=shutil.ignore_patterns("__pycache__"))
    state = str(base / "state")
    output: list[OutputChunk] = []
    settings = Settings(file="", daemon=DaemonSettings(handlers=str(handlers), plugins="", state=state), control=ControlSettings(socket=""))
    pool = Pool(
        settings,
        boot="examples",
        store=CodeStore(state),
        deps=Environments(state, sys.executable),
        runtimes={"python": PythonRuntime, "node": NodeRuntime, "exec": ExecRuntime},
        on_output=output.append,
        warn=lambda code, text: None,
    )
    try:
        yield Shop(handlers, pool, output)
    finally:
        code_tree.SETTLE_S = code_tree_settle
        await pool.aclose()


def upload(root: Path, name: str, content: bytes) -> dict[str, Any]:
    """A directory trigger's event for a file that is put there."""
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(content)
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "uploads"}, "object": {"key": name}}}
    return {"Records": [{**record, "eventd": {"path": str(root / name), "root": str(root)}}]}


ORDER = {
    "id": "A-17",
    "email": "ada@example.com",
    "items": [{"name": "Tea", "price": 4.1, "quantity": 3}, {"name": "Cup", "price": "7.25"}, {"name": "Tea", "price": 4.1}],
}


def test_the_examples_are_those_we_promise() -> None:
    assert set(FUNCTIONS) == {
        "bill.py", "confirm.js", "heartbeat.sh", "hello.py", "notify.py", "pack.py", "summarise.py", "thumbnail.py",
    }  # fmt: skip
    assert stat.S_IMODE((SHIPPED / "heartbeat.sh").stat().st_mode) & 0o111 == 0o111


@pytest.mark.parametrize("file", FUNCTIONS)
def test_each_says_how_to_bind_it(file: str) -> None:
    text = (SHIPPED / file).read_text()
    if file.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
        head = text.splitlines()
    else:
        comments = itertools.takewhile(lambda line: line.startswith(("//", "#")), text.splitlines())
        head = [line.removeprefix("//").removeprefix("#").removeprefix(" ") for line in comments]
    toml = "\n".join(line for line in head if line.startswith("    ") and "curl" not in line)
    if file in ("pack.py", "notify.py"):
        assert "bill.py shows how to bind them" in text
        return
    tables = tomllib.loads(toml)
    name = file.split(".")[0]
    functions = {trigger.get("function") for trigger in tables["triggers"].values()} | {
        each["function"] for each in tables.get("bindings", [])
    }
    assert name in functions


@pytest.mark.anyio
async def test_hello(shop: Shop) -> None:
    assert (await shop.result("hello.py", {"name": "Ada"}))[0] == {"message": "Hello, Ada!"}
    assert (await shop.result("hello.py", {}))[0] == {"message": "Hello, world!"}
    assert (await shop.result("hello.py", {"body": "no json"}))[0] == {"message": "Hello, world!"}
    result, printed = await shop.result("hello.py", {"body": '{"name": "Bo"}'})
    assert result == {"message": "Hello, Bo!"}
    assert printed.startswith("request inv-")


@pytest.mark.anyio
async def test_summarise(shop: Shop, tmp_path: Path) -> None:
    event = upload(tmp_path / "in", "sales.csv", "\ufeffcity;sold;price\nBern;3;1.5\n\nBasel;7;\nChur;-1;nan\n".encode())
    result, printed = await shop.result("summarise.py", event)
    assert result == {
        "files": [
            {
                "file": "sales.csv",
                "rows": 3,
                "columns": [
                    {"name": "city", "type": "text"},
                    {"name": "sold", "type": "number", "min": -1.0, "max": 7.0, "mean": 3.0},
                    {"name": "price", "type": "text"},
                ],
            }
        ]
    }
    assert printed == "sales.csv: 3 rows, 3 columns\n"
    result, _ = await shop.result("summarise.py", upload(tmp_path / "in", "empty.csv", b""))
    assert result["files"][0] == {"file": "empty.csv", "rows": 0, "columns": []}
    odd = os.fsdecode(b"caf\xe9.csv")
    result, _ = await shop.result("summarise.py", upload(tmp_path / "in", odd, b"a,b\n1,2\n"))
    assert result["files"][0]["columns"][1] == {"name": "b", "type": "number", "min": 2.0, "max": 2.0, "mean": 2.0}
    event["Records"][0]["eventd"]["path"] += ".gone"
    ran, _ = await shop.run("summarise.py", event)
    assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "FileNotFoundError")


@pytest.mark.anyio
async def test_confirm(shop: Shop) -> None:
    for event in (
        ORDER,
        {"body": json.dumps(ORDER)},
        {"body": base64.b64encode(json.dumps(ORDER).encode()).decode(), "isBase64Encoded": True},
    ):
        result, printed = await shop.result("confirm.js", event)
        assert result == {"statusCode": 200, "body": '"Email sent successfully!"'}
        assert "To: ada@example.com" in printed
        assert "Total: 23.65" in printed
    for event in ({"body": "{"}, {"body": "{}"}, [], {"body": "null"}):
        assert (await shop.result("confirm.js", event))[0]["statusCode"] == 400


@pytest.mark.anyio
async def test_one_order_is_billed_packed_and_told(shop: Shop) -> None:
    event = {"version": "2.0", "body": json.dumps(ORDER), "isBase64Encoded": False}
    assert await shop.result("bill.py", event) == (
        {"order": "A-17", "total": "23.65", "currency": "EUR"},
        "bill for order A-17: 23.65 EUR\n",
    )
    result, printed = await shop.result("pack.py", {"detail": ORDER})
    assert result == {"order": "A-17", "pieces": 5, "lines": [{"name": "Cup", "quantity": 1}, {"name": "Tea", "quantity": 4}]}
    assert printed == "pack order A-17: 1 x Cup, 4 x Tea\n"
    assert (await shop.result("notify.py", ORDER))[0] == {"order": "A-17", "notified": True}
    assert (await shop.result("notify.py", {**ORDER, "email": ""}))[0]["notified"] is False
    ran, _ = await shop.run("bill.py", {"body": "{}"})
    assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "ValueError")


@pytest.mark.anyio
async def test_heartbeat(shop: Shop) -> None:
    result, _ = await shop.result("heartbeat.sh", {"source": "aws.events"})
    assert set(result) == {"host", "load", "memory_available_mib", "disk_used_percent", "disk_free_mib"}
    assert 0 <= result["disk_used_percent"] <= 95
    assert result["disk_free_mib"] > 0
    ran, printed = await shop.run("heartbeat.sh", {}, environment={"HEARTBEAT_PATH": "/no/such/place"})
    assert ran.outcome is Outcome.FAILED
    assert "/no/such/place" in printed


# --- thumbnail: what needs Pillow is tried with Pillow's place taken, since the suite installs nothing ---


def test_the_thumbnails_block_asks_for_pillow() -> None:
    block = inline_of((SHIPPED / "thumbnail.py").read_bytes(), "thumbnail.py")
    assert block is not None
    assert [line.partition(">")[0] for line in block.dependencies] == ["pillow"]


def test_without_pillow_the_thumbnail_says_so() -> None:
    code = f"import sys; sys.modules['PIL'] = None; import runpy; runpy.run_path({str(SHIPPED / 'thumbnail.py')!r})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PIL" in done.stderr.splitlines()[-1]


class Picture:
    """As much of Pillow's Image as the example uses."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.bounds = (0, 0)

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None: ...

    def convert(self, mode: str) -> Picture:
        return self

    def thumbnail(self, bounds: tuple[int, int]) -> None:
        self.bounds = bounds

    def save(self, path: str, kind: str, quality: int) -> None:
        if self.content == b"broken":
            Path(path).write_bytes(b"half")
            raise OSError("no picture")
        Path(path).write_text(f"{kind} {self.bounds[0]} {quality}")


@pytest.fixture
def thumbnail(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    pillow = types.ModuleType("PIL")
    pillow.Image = types.SimpleNamespace(open=lambda path: Picture(Path(path).read_bytes()))  # type: ignore[attr-defined]
    pillow.ImageOps = types.SimpleNamespace(exif_transpose=lambda picture: picture)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL", pillow)
    monkeypatch.delenv("OUTPUT", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("thumbnail_example", SHIPPED / "thumbnail.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_thumbnails_go_beside_the_watched_folder(thumbnail: types.ModuleType, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    made = thumbnail.handler(upload(root, "a.png", b"x"), None)["thumbnails"]
    (root / "sub").mkdir()
    event = upload(root, "sub/a.png", b"x")
    made += thumbnail.handler(event, None)["thumbnails"]
    made += thumbnail.handler(event, None)["thumbnails"]  # a retry makes the same thing again
    assert len(set(made)) == 2
    assert {os.path.dirname(path) for path in made} == {str(tmp_path / "pictures-thumbnails")}
    assert Path(made[0]).read_text() == "JPEG 320 85"
    assert sorted(path.name for path in root.rglob("*")) == ["a.png", "a.png", "sub"]


def test_a_broken_picture_leaves_nothing_half_made(thumbnail: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no picture"):
        thumbnail.handler(upload(tmp_path / "pictures", "b.png", b"broken"), None)
    assert list((tmp_path / "pictures-thumbnails").iterdir()) == []


def test_thumbnails_are_never_fed_to_themselves(thumbnail: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pictures"
    event = upload(root, "a.png", b"x")
    (tmp_path / "link").symlink_to(root)
    for output in (root, root / "small", tmp_path / "link" / "small"):
        monkeypatch.setenv("OUTPUT", str(output))
        with pytest.raises(ValueError, match="inside the watched folder"):
            thumbnail.handler(event, None)
    assert [path.name for path in root.iterdir()] == ["a.png"]
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    assert thumbnail.handler(event, None)["thumbnails"][0].startswith(str(tmp_path / "out"))
