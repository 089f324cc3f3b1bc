"""A Python handler finds what it would find on Lambda: awslambdaric's words for every failure, context, JSON, logging; and the template."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from runtime_world import World, until, world

from eventd.errors import EventdError
from eventd.model import Outcome
from eventd.ports import Ran

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


async def failing(it: World, name: str, code: str, **more: Any) -> tuple[Ran, dict[str, Any]]:
    """Load what cannot load; how a run of it fails."""
    with pytest.raises(EventdError) as caught:
        await it.load(name, code, **more)
    assert caught.value.code == "E-HANDLER"
    ran = await it.run(name)
    assert ran.outcome is Outcome.FAILED
    return ran, json.loads(ran.payload)


HANDLER = "def handler(event, context):\n    return 'handler'\n"


@pytest.mark.parametrize(
    ("code", "handler", "kind", "message"),
    [
        ("import nothing_like_it\n", None, "Runtime.ImportModuleError", "Unable to import module 'f': No module named 'nothing_like_it'"),
        (HANDLER, "missing.handler", "Runtime.ImportModuleError", "Unable to import module 'missing': No module named 'missing'"),
        (HANDLER, "f.other", "Runtime.HandlerNotFound", "Handler 'other' missing on module 'f'"),
        ("x = 1\n", None, "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'f'"),
        ("handler = 3\n", None, "Runtime.HandlerNotFound", "Handler 'handler' on module 'f' is not a function"),
        (HANDLER, "nodot", "Runtime.MalformedHandlerName", "Bad handler 'nodot': not enough values to unpack (expected 2, got 1)"),
        (HANDLER, "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"),
        ("def handler(:\n", None, "Runtime.UserCodeSyntaxError", "Syntax error in module 'f': invalid syntax (f.py, line 1)"),
        ("1 / 0\n", None, "ZeroDivisionError", "division by zero"),
    ],
)
async def test_init_failures(tmp_path: Path, code: str, handler: str | None, kind: str, message: str) -> None:
    async with world(tmp_path) as it:
        ran, payload = await failing(it, "f", code, handler=handler)
        assert (ran.error_type, ran.error_message) == (kind, message)
        assert {**payload, "stackTrace": []} == {"errorMessage": message, "errorType": kind, "requestId": "", "stackTrace": []}
        assert f"[ERROR] {kind}: {message}".encode() in it.output()
        if kind in ("ZeroDivisionError", "Runtime.UserCodeSyntaxError"):
            assert re.search(r'File ".*f\.py",? [Ll]ine 1', payload["stackTrace"][0])


@pytest.mark.parametrize(
    ("files", "handler", "result"),
    [
        ({"f.py": "def lambda_handler(event, context):\n    return 'lambda'\n"}, None, "lambda"),
        ({"f.py": HANDLER + "lambda_handler = None\n"}, None, "handler"),
        ({"f.py": "", "pkg/mod.py": "def go(event, context):\n    return 'slash'\n"}, "pkg/mod.go", "slash"),
        (
            {"f.py": "", "pkg/__init__.py": "", "pkg/mod.py": "from . import x\ndef go(e, c): return x.v\n", "pkg/x.py": "v = 7\n"},
            "pkg.mod.go",
            7,
        ),
        (
            {"f.py": "import helper\nclass C:\n    def __call__(self, e, c): return helper.v\nhandler = C()\n", "helper.py": "v = 8\n"},
            None,
            8,
        ),
        ({"f.py": "import python_worker\nhandler = python_worker.go\n", "python_worker.py": "def go(e, c): return 'mine'\n"}, None, "mine"),
    ],
)
async def test_where_the_handler_is_found(tmp_path: Path, files: dict[str, str], handler: str | None, result: Any) -> None:
    async with world(tmp_path) as it:
        for name, text in files.items():
            it.write("f", text, name)
        await it.pool.load(it.function("f", handler=handler))
        assert await it.value("f") == result
        assert not it.warnings


@pytest.mark.parametrize(
    ("expression", "payload"),
    [
        ("None", b"null"),
        ("Decimal('1.5')", b"1.5"),
        ("float('nan')", b"NaN"),
        ("{'a': 'grüß'}", '{"a": "grüß"}'.encode()),
        ("'\\ud800'", b'"\\ud800"'),
        ("(1, 2)", b"[1, 2]"),
    ],
)
async def test_results(tmp_path: Path, expression: str, payload: bytes) -> None:
    async with world(tmp_path) as it:
        await it.load("f", f"from decimal import Decimal\ndef handler(event, context):\n    return {expression}\n")
        ran = await it.run("f")
        assert (ran.outcome, ran.payload) == (Outcome.SUCCEEDED, payload)


async def test_results_that_are_no_json_or_too_large(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", "def handler(event, context):\n    return {1} if event is None else 'x' * event\n")
        ran = await it.run("f")
        assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "Runtime.MarshalError")
        assert ran.error_message == "Unable to marshal response: Object of type set is not JSON serializable"
        ran = await it.run("f", 6 * 1024 * 1024 + 98)
        assert (ran.outcome, len(ran.payload)) == (Outcome.SUCCEEDED, 6_291_556)
        ran = await it.run("f", 6 * 1024 * 1024 + 99)
        assert (ran.outcome, ran.error_type) == (Outcome.FAILED, "Function.ResponseSizeTooLarge")
        assert ran.error_message == "Response payload size exceeded maximum allowed payload size (6291556 bytes)."


async def test_a_large_event_arrives_whole(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", "def handler(event, context):\n    return [len(event), event[-1]]\n")
        assert await it.value("f", "x" * (6 * 1024 * 1024) + "y") == [6 * 1024 * 1024 + 1, "y"]


async def test_an_error_of_the_handler(tmp_path: Path) -> None:
    code = """
        class Odd(Exception):
            def __str__(self): raise RuntimeError("no text")
        def deep(event):
            raise Odd() if event else ValueError("bad value")
        def handler(event, context):
            deep(event)
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        task, future = it.begin("f")
        ran = await future
        payload = json.loads(ran.payload)
        assert (ran.outcome, ran.error_type, ran.error_message) == (Outcome.FAILED, "ValueError", "bad value")
        assert (payload["errorType"], payload["errorMessage"], payload["requestId"]) == ("ValueError", "bad value", task.invocation)
        assert [re.search(r"line (\d+), in (\w+)", entry).groups() for entry in payload["stackTrace"]] == [("7", "handler"), ("5", "deep")]  # type: ignore[union-attr]
        text = it.output(task.run, "stderr").decode()
        assert text.startswith("[ERROR] ValueError: bad value\nTraceback (most recent call last):\n  File ")
        assert (await it.run("f", 1)).error_type == "Odd"


async def test_the_context(tmp_path: Path) -> None:
    code = """
        import os, time
        def handler(event, context):
            time.sleep(0.01)
            c = context
            return {
                "id": c.aws_request_id, "name": c.function_name, "version": c.function_version, "arn": c.invoked_function_arn,
                "memory": c.memory_limit_in_mb, "group": c.log_group_name, "stream": c.log_stream_name == os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
                "tenant": c.tenant_id, "identity": c.identity.cognito_identity_id, "left": c.get_remaining_time_in_millis(),
                "client": c.client_context and [c.client_context.custom, c.client_context.client.app_title, c.client_context.env, c.w3c()],
                "trace": os.environ.get("_X_AMZN_TRACE_ID"), "log": c.log("plain"), "repr": repr(c)[:14],
            }
    """
    async with world(tmp_path) as it:
        await it.load("f", code, timeout_ms=5000)
        client = {"custom": {"a": 1}, "client": {"app_title": "t"}, "env": {"e": "1"}, "w3c": {"traceparent": "p"}}
        task, future = it.begin("f", trace="Root=1-2", client_context=json.dumps(client), qualifier="prod")
        seen = json.loads((await future).payload)
        assert 3000 < seen.pop("left") < 5000
        assert seen == {
            "id": task.invocation, "name": "f", "version": "$LATEST", "arn": "arn:aws:lambda:us-east-1:000000000000:function:f:prod",
            "memory": "512", "group": "/aws/lambda/f", "stream": True, "tenant": None, "identity": None,
            "client": [{"a": 1}, "t", {"e": "1"}, {"traceparent": "p"}], "trace": "Root=1-2", "log": None, "repr": "LambdaContext(",
        }  # fmt: skip
        assert it.output(task.run) == b"plain"
        again = await it.value("f", client_context="not json")
        assert (again["trace"], again["client"], again["arn"]) == (None, None, "arn:aws:lambda:us-east-1:000000000000:function:f")


async def test_logging_in_lambdas_format(tmp_path: Path) -> None:
    code = """
        import logging
        logging.basicConfig(level=logging.DEBUG)
        log = logging.getLogger(__name__)
        def handler(event, context):
            log.info("not shown")
            log.warning("shown %d", 1)
            logging.getLogger().setLevel(logging.INFO)
            log.info("now shown")
            try: 1 / 0
            except ZeroDivisionError: log.exception("with trace")
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        task, future = it.begin("f")
        await future
        text = it.output(task.run).decode()
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
        assert re.match(
            rf"\[WARNING\]\t{stamp}\t{task.invocation}\tshown 1\n\[INFO\]\t{stamp}\t{task.invocation}\tnow shown\n\[ERROR\]", text
        )
        assert "not shown" not in text.replace("now shown", "")
        assert text.endswith("ZeroDivisionError: division by zero\n")


async def test_async_handlers_share_one_loop_per_worker(tmp_path: Path) -> None:
    code = """
        import asyncio
        seen = []
        async def handler(event, context):
            seen.append(asyncio.get_running_loop())
            await asyncio.sleep(0.001)
            if event == "raise": raise KeyError("k")
            if event == "cancel": raise asyncio.CancelledError("c")
            return len(set(map(id, seen))), len(seen)
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert await it.value("f") == [1, 1]
        ran = await it.run("f", "raise")
        assert (ran.outcome, ran.error_type, ran.error_message) == (Outcome.FAILED, "KeyError", "'k'")
        assert len(json.loads(ran.payload)["stackTrace"]) == 1
        assert (await it.run("f", "cancel")).error_type == "CancelledError"
        assert await it.value("f") == [1, 4]


# --- the template ---


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """A folder of third-party modules that the workers' interpreter can see."""
    import sysconfig

    purelib = Path(sysconfig.get_paths()["purelib"])
    made: list[Path] = []

    def add(name: str, code: str) -> None:
        path = purelib / f"{name}.py"
        path.write_text(code)
        made.append(path)

    yield add
    for path in made:
        path.unlink()
        for cached in (purelib / "__pycache__").glob(f"{path.stem}.*.pyc"):
            cached.unlink()


async def test_third_party_modules_are_imported_once_and_local_ones_in_every_worker(tmp_path: Path, site: Any) -> None:
    site("eventd_test_shared", "import os\npid = os.getpid()\nprint('imported once')\n")
    it_code = "import os, eventd_test_shared, local, json\ndef handler(e, c): return [os.getppid(), eventd_test_shared.pid, os.getpid(), local.pid]\n"
    async with world(tmp_path) as it:
        it.write("f", "import os\npid = os.getpid()\n", "local.py")
        await it.load("f", it_code)
        template, shared, worker, local = await it.value("f")
        assert (shared, local) == (template, worker)
        assert template != worker
        assert it.output().count(b"imported once") == 1
        assert not it.warnings


async def test_randomness_differs_between_workers(tmp_path: Path, site: Any) -> None:
    site("eventd_test_random", "import random\nmine = random.Random(1)\nrandom.seed(1)\n")
    code = """
        import random, time, uuid, eventd_test_random
        def handler(event, context):
            time.sleep(0.1)
            return [random.random(), eventd_test_random.mine.random(), uuid.uuid4().hex]
    """
    async with world(tmp_path) as it:
        await it.load("f", code)
        results = [json.loads((await future).payload) for _, future in [it.begin("f") for _ in range(4)]]
        for column in zip(*results, strict=True):
            assert len(set(column)) == 4


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n", "1 Python thread running"),
        ("import socket\nheld = socket.socket()\n", "socket:"),
        ("held = open(__file__)\n", "eventd_test_unsound.py open"),
    ],
)
async def test_what_cannot_be_forked_is_spawned_and_said_so(tmp_path: Path, site: Any, code: str, why: str) -> None:
    site("eventd_test_unsound", code)
    async with world(tmp_path) as it:
        await it.load("f", "import os, eventd_test_unsound\ndef handler(e, c): return os.getpid()\n")
        assert await it.value("f")
        ((warned, text),) = it.warnings
        assert warned == "W-TEMPLATE"
        assert "function f: workers start by plain spawn, for importing eventd_test_unsound leaves" in text
        assert why in text
        futures = [it.begin("f")[1] for _ in range(2)]
        assert {(await future).outcome for future in futures} == {Outcome.SUCCEEDED}
        assert len(it.warnings) == 1


async def test_a_thread_that_appears_later_is_noticed_before_the_fork(tmp_path: Path, site: Any) -> None:
    site(
        "eventd_test_late",
        "import signal, threading, time\n"
        "def late(*_): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "signal.signal(signal.SIGUSR1, late)\n",
    )
    code = "import os, signal, time, eventd_test_late\ndef handler(e, c):\n    if e: os.kill(os.getppid(), signal.SIGUSR1)\n    time.sleep(0.2)\n    return 1\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert await it.value("f", True) == 1
        rans = [await future for future in [it.begin("f")[1] for _ in range(2)]]
        assert [ran.outcome for ran in rans] == [Outcome.SUCCEEDED] * 2, rans
        assert "1 Python thread running" in it.warnings[0][1]


async def test_a_template_that_was_killed_is_done_without(tmp_path: Path) -> None:
    code = "import os, signal\ndef handler(e, c):\n    if e: os.kill(os.getppid(), signal.SIGKILL)\n    return os.getpid()\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        assert (await it.run("f", True)).outcome in (Outcome.SUCCEEDED, Outcome.CRASHED)
        await until(lambda: (view := it.pool.view("f")) and view.idle + view.busy == 0, "its workers to die with it")
        assert await it.value("f")
        assert "the template has ended" in it.warnings[0][1]


async def test_environment_and_interpreter(tmp_path: Path) -> None:
    code = "import os, sys\ndef handler(e, c): return [sys.executable, sys.flags.isolated, os.environ['AWS_EXECUTION_ENV'], sys.path[0], os.getcwd()]\n"
    async with world(tmp_path) as it:
        await it.load("f", code)
        root = str(tmp_path / "f")
        version = f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}"
        assert await it.value("f") == [sys.executable, 1, version, root, root]


async def test_advice_for_a_slow_init(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.load("f", "import time\ntime.sleep(0.06)\n" + HANDLER)
        view = it.pool.view("f")
        assert view is not None
        assert re.match(r"loading it takes \d+ ms; a snapshot, which a later version brings, would share that", view.advice)
        await it.load("g", HANDLER)
        view = it.pool.view("g")
        assert view is not None
        assert view.advice == ""
