"""Node.js functions on real processes: handlers, context, console, errors, ends, the spare."""

# ruff: noqa: ASYNC110, ASYNC240  (tests poll for a condition and look at files)

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from eventd.errors import EventdError
from eventd.model import ControlSettings, DaemonSettings, FunctionSettings, RuntimeSettings, Settings
from eventd.runtime import code_tree
from eventd.runtime.code import CodeStore
from eventd.runtime.launcher import Launcher
from eventd.runtime.node import NodeRuntime
from eventd.runtime.worker import Answer, Bench, Call, Exit, Init, Worker, WorkerSpec

assert shutil.which("node"), "these tests need Node.js: apt install nodejs"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture(autouse=True)
def quick_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests write a file and load it at once; how long a file must rest is the code store's own tests' matter."""
    monkeypatch.setattr(code_tree, "SETTLE_S", 0.01)


async def until(true: Callable[[], object], what: str) -> None:
    with anyio.move_on_after(15) as limit:
        while not true():
            await anyio.sleep(0.005)
    assert not limit.cancelled_caught, f"waited in vain for {what}"


class Events:
    """What a worker told."""

    def __init__(self) -> None:
        self.init: Init | None = None
        self.answers: list[Answer] = []
        self.said: list[str] = []
        self.error: dict[str, Any] | None = None
        self.exit: Exit | None = None
        self.broken = ""
        self.out = b""

    def ready(self, init: Init) -> None:
        self.init = init
        self.said.append("ready")

    def failed(self, payload: bytes) -> None:
        self.error = json.loads(payload)
        self.said.append("failed")

    def answered(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.said.append("answered")

    def too_large(self) -> None:
        self.said.append("too_large")

    def broke(self, why: str) -> None:
        self.broken = why

    def printed(self, stream: str, data: bytes) -> None:
        self.out += data

    def exited(self, exit: Exit) -> None:
        self.exit = exit
        self.said.append("exited")


class Rig:
    """One Node.js function and the workers started for it."""

    def __init__(self, tmp_path: Path, launcher: Launcher) -> None:
        self.tmp = tmp_path
        self.launcher = launcher
        self.store = CodeStore(str(tmp_path / "state"))
        self.handlers = tmp_path / "handlers"
        self.handlers.mkdir()
        self.runtimes: list[NodeRuntime] = []
        self._n = 0

    def runtime(
        self,
        code: str,
        *,
        file: str = "f.js",
        files: dict[str, str] | None = None,
        secrets: dict[str, str] | None = None,
        node: str = "node",
        **more: Any,
    ) -> NodeRuntime:
        for name, text in {file: code, **(files or {})}.items():
            path = self.handlers / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        top = file.split("/")[0]
        function = FunctionSettings(name=top.split(".")[0], runtime="node", source=str(self.handlers / top), **more)
        settings = Settings(
            file="",
            daemon=DaemonSettings(handlers=str(self.handlers), plugins="", state=str(self.tmp / "state")),
            control=ControlSettings(socket=""),
            runtimes=RuntimeSettings(node_path=node),
        )
        bench = Bench(
            settings=settings,
            function=function,
            version=self.store.take(function),
            python="",
            secrets=secrets or {},
            launcher=self.launcher,
            warn=lambda code, text: None,
        )
        runtime = NodeRuntime(bench)
        self.runtimes.append(runtime)
        return runtime

    async def start(self, runtime: NodeRuntime) -> tuple[Worker, Events]:
        events = Events()
        tmpdir = self.tmp / f"tmp{len(os.listdir(self.tmp))}"
        tmpdir.mkdir()
        worker = runtime.start_worker(WorkerSpec(id="w", tmpdir=str(tmpdir), log_stream="2026/11/20/[$LATEST]ab"), events)
        await until(lambda: events.init or events.exit, "the end of init")
        return worker, events

    def hand(self, worker: Worker, event: Any = None, *, timeout_ms: int = 3000, request: str = "req-1", **more: str) -> int:
        self._n += 1
        deadline = int(time.time() * 1000) + timeout_ms
        call = Call(
            n=self._n, run="run-1", request_id=request, event=json.dumps(event).encode(), deadline=deadline, arn="arn:aws:x", **more
        )
        worker.invoke(call)
        return self._n

    async def ask(self, worker: Worker, events: Events, event: Any = None, **more: Any) -> Any:
        """The result of a run that succeeds."""
        answer = await self.answer(worker, events, event, **more)
        assert answer.ok, answer.payload
        return json.loads(answer.payload)

    async def answer(self, worker: Worker, events: Events, event: Any = None, **more: Any) -> Answer:
        before = len(events.answers)
        n = self.hand(worker, event, **more)
        await until(lambda: len(events.answers) > before or events.exit or "too_large" in events.said, "an answer")
        assert len(events.answers) > before, (events.said, events.exit, events.out)
        assert events.answers[-1].n == n
        return events.answers[-1]

    async def run(self, code: str, event: Any = None, **more: Any) -> tuple[Answer, Events]:
        worker, events = await self.start(self.runtime(code, **more))
        assert events.init, (events.error, events.out)
        return await self.answer(worker, events, event), events

    async def broken(self, code: str, **more: Any) -> dict[str, Any]:
        """The error of a function whose init fails."""
        _, events = await self.start(self.runtime(code, **more))
        assert events.said == ["failed", "exited"]
        assert events.error is not None
        return events.error


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    launcher = Launcher(asyncio.get_running_loop())
    rig = Rig(tmp_path, launcher)
    try:
        yield rig
    finally:
        for runtime in rig.runtimes:
            await runtime.close()
        await launcher.aclose()
        assert not processes_with(str(tmp_path)), "a process outlived its launcher"


def processes_with(text: str) -> list[int]:
    """Processes whose working folder or arguments lie under a path."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
            if text in words or os.readlink(f"/proc/{pid}/cwd").startswith(text):
                found.append(int(pid))
        except OSError:
            continue
    return found


ERROR_KEYS = {"errorType", "errorMessage", "trace"}


def shown(answer: Answer) -> dict[str, Any]:
    assert not answer.ok
    error: dict[str, Any] = json.loads(answer.payload)
    assert set(error) == ERROR_KEYS
    return error


# --- handlers ---

OWNERS = """exports.handler = async (event) => {
    const order = JSON.parse(event.body);
    await new Promise((resolve) => setTimeout(resolve, 5));
    console.log(`Sending email for ${order.id}`);
    return { statusCode: 200, body: JSON.stringify('Email sent successfully!') };
};
"""


@pytest.mark.anyio
async def test_the_owners_example_runs_as_it_stands(rig: Rig) -> None:
    worker, events = await rig.start(rig.runtime(OWNERS))
    for number in range(3):
        result = await rig.ask(worker, events, {"body": json.dumps({"id": number})}, request=f"req-{number}")
        assert result == {"statusCode": 200, "body": '"Email sent successfully!"'}
    lines = events.out.decode().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\treq-2\tINFO\tSending email for 2", lines[2])
    assert events.init is not None
    assert events.init.init_ms > 0
    assert events.answers[0].ms >= 4
    assert 20 < events.answers[0].max_mb < 300
    worker.quit()
    await until(lambda: events.exit, "the worker to quit")
    assert events.exit == Exit(status=0, cpu_ms=events.exit.cpu_ms, max_mb=events.exit.max_mb)


@pytest.mark.anyio
async def test_every_way_of_answering(rig: Rig) -> None:
    code = """
    exports.promise = (event) => Promise.resolve([event]);
    exports.callback = (event, context, callback) => { setTimeout(() => callback(null, 'cb'), 5); };
    exports.waits = (event, context, callback) => { callback(null, 'first'); setTimeout(() => console.log('then this'), 30); };
    exports.hurries = (event, context, callback) => {
      context.callbackWaitsForEmptyEventLoop = false; callback(null, 'now'); setTimeout(() => {}, 60000);
    };
    exports.sync = (event) => ({ sync: event });
    exports.timer = (event, context) => setTimeout(() => context.succeed('timer'), 5);
    exports.done = (event, context) => { context.done(null, 'done'); };
    exports.nothing = async () => {};
    exports.silent = (event, context, callback) => { setTimeout(() => {}, 5); };
    exports.twice = (event, context, callback) => { callback(null, 1); callback(null, 2); };
    exports.thenable = () => ({ then: (yes) => yes('then') });
    const names = Object.keys(exports);
    exports.handler = (event, context, callback) => exports[event](event, context, callback);
    """
    expected = {
        "promise": ["promise"],
        "callback": "cb",
        "waits": "first",
        "hurries": "now",
        "sync": None,  # behind a handler that takes a callback, a returned value is no answer
        "timer": "timer",
        "done": "done",
        "nothing": None,
        "silent": None,
        "twice": 1,
        "thenable": "then",
    }
    worker, events = await rig.start(rig.runtime(code))
    got = {}
    for name in expected:
        if name == "hurries":
            continue
        got[name] = await rig.ask(worker, events, name)
        if name == "waits":
            assert b"then this" in events.out
    got["hurries"] = await rig.ask(worker, events, "hurries")
    assert got == expected
    worker, events = await rig.start(rig.runtime("exports.handler = (event) => ({ sync: event });", file="g.js"))
    assert await rig.ask(worker, events, 5) == {"sync": 5}


@pytest.mark.anyio
async def test_modules_folders_and_handler_strings(rig: Rig) -> None:
    async def result(code: str, **more: Any) -> Any:
        answer, _ = await rig.run(code, {"a": 1}, **more)
        assert answer.ok, answer.payload
        return json.loads(answer.payload)

    assert await result("export const handler = async (event) => event;", file="m.mjs") == {"a": 1}
    assert await result("export default { handler: async () => 'default' };", file="d.mjs") == "default"
    assert await result("exports.lambda_handler = async () => 'lambda';", file="l.cjs") == "lambda"
    folder = await result("import { x } from './lib/x.js'; export const handler = async () => x;", file="fold/index.js", files={
        "fold/package.json": '{"type": "module"}', "fold/lib/x.js": "export const x = 7;",
    })  # fmt: skip
    assert folder == 7
    deep = await result("exports.a = { b: async () => 'deep' };", file="deep/src/app.js", handler="src/app.a.b")
    assert deep == "deep"
    assert await result("exports.handler = async () => require('left').pad + require('./_help').x;", file="h.js", files={
        "node_modules/left/index.js": "exports.pad = 'L';", "_help.js": "exports.x = 'H';",
    }) == "LH"  # fmt: skip


@pytest.mark.anyio
async def test_context_and_environment_are_lambdas(rig: Rig) -> None:
    code = """exports.handler = async (event, context) => {
      await new Promise((r) => setTimeout(r, 20));
      const left = context.getRemainingTimeInMillis();
      const { env } = process;
      return { ...context, left, cwd: process.cwd(), argv: process.argv.length, trace: env._X_AMZN_TRACE_ID, env: { ...env } };
    };"""
    runtime = rig.runtime(code, memory_mib=256, environment={"QUALITY": "85"}, secrets={"TOKEN": "s3cret"})
    worker, events = await rig.start(runtime)
    got = await rig.ask(worker, events, {}, trace="Root=1-2", client_context='{"custom": {"a": 1}}')
    assert got["awsRequestId"] == "req-1"
    assert got["functionName"] == got["env"]["AWS_LAMBDA_FUNCTION_NAME"] == "f"
    assert got["functionVersion"] == "$LATEST"
    assert got["invokedFunctionArn"] == "arn:aws:x"
    assert got["memoryLimitInMB"] == "256"
    assert got["logGroupName"] == "/aws/lambda/f"
    assert got["logStreamName"] == "2026/11/20/[$LATEST]ab"
    assert got["clientContext"] == {"custom": {"a": 1}}
    assert got["trace"] == got["xRayTraceId"] == "Root=1-2"
    assert 2000 < got["left"] <= 2981
    assert got["argv"] == 2
    assert got["cwd"] == got["env"]["LAMBDA_TASK_ROOT"]
    assert got["env"]["QUALITY"] == "85"
    assert got["env"]["TOKEN"] == "s3cret"
    assert re.fullmatch(r"AWS_Lambda_nodejs\d+\.x", got["env"]["AWS_EXECUTION_ENV"])
    assert got["env"]["_HANDLER"] == "f.handler"
    assert got["env"]["TMPDIR"].startswith(str(rig.tmp))
    allowed = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "QUALITY", "TOKEN", "EVENTD", "LAMBDA_TASK_ROOT", "_HANDLER", "_X_AMZN_TRACE_ID"}
    assert {name for name in got["env"] if not name.startswith("AWS_")} <= allowed
    assert b"s3cret" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    assert await rig.ask(worker, events, {}, timeout_ms=5) is not None
    assert json.loads(events.answers[-1].payload)["left"] == 0
    assert "trace" not in json.loads(events.answers[-1].payload)


@pytest.mark.anyio
async def test_console_prints_as_on_lambda(rig: Rig) -> None:
    code = r"""console.log('at load');
    exports.handler = async () => {
      console.info('%s is %d', 'x', 3); console.warn({ a: 1 }); console.error('two\nlines'); console.debug('d'); console.trace('t');
      process.stdout.write('plain\n');
    };"""
    _, events = await rig.run(code)
    lines = [line.split("\t", 1)[1] for line in events.out.decode().split("\n") if "\t" in line]
    assert lines[0] == "undefined\tINFO\tat load"
    assert lines[1:5] == ["req-1\tINFO\tx is 3", "req-1\tWARN\t{ a: 1 }", "req-1\tERROR\ttwo\rlines", "req-1\tDEBUG\td"]
    assert lines[5].startswith("req-1\tTRACE\tTrace: t\r    at ")
    assert b"\nplain\n" in events.out


# --- errors ---


@pytest.mark.anyio
async def test_errors_have_lambdas_shape_and_the_worker_goes_on(rig: Rig) -> None:
    code = """
    class OrderError extends Error { constructor(m) { super(m); this.name = 'OrderError'; this.code = 7; } }
    const ways = {
      thrown: () => { throw new OrderError('no such order'); },
      rejected: async () => { throw new TypeError('bad'); },
      text: async () => { throw 'just text'; },
      callback: (e, c, cb) => cb(new RangeError('far')),
      failed: (e, c) => c.fail(new Error('f')),
      bigint: async () => ({ n: 10n }),
      circle: async () => { const a = {}; a.a = a; return a; },
      never: () => new Promise(() => {}),
      huge: async () => 'x'.repeat(7 * 1024 * 1024),
    };
    exports.handler = (event, context, callback) => ways[event] ? ways[event](event, context, callback) : Promise.resolve('fine');
    """
    worker, events = await rig.start(rig.runtime(code))
    expected = {
        "thrown": ("OrderError", "no such order"),
        "rejected": ("TypeError", "bad"),
        "text": ("string", "just text"),
        "callback": ("RangeError", "far"),
        "failed": ("Error", "f"),
        "bigint": ("Runtime.MarshalError", "BigInt"),
        "circle": ("Runtime.MarshalError", "circular"),
        "never": ("Runtime.NodeJsExit", "never settled"),
    }
    for way, (kind, message) in expected.items():
        error = shown(await rig.answer(worker, events, way))
        assert error["errorType"] == kind
        assert message in error["errorMessage"]
        assert not any("node_worker" in line for line in error["trace"])
    error = json.loads((await rig.answer(worker, events, "huge")).payload)
    assert error["errorType"] == "Function.ResponseSizeTooLarge"
    assert await rig.ask(worker, events, "other") == "fine"
    log = events.out.decode()
    assert 'ERROR\tInvoke Error \t{"errorType":"OrderError","errorMessage":"no such order","code":7,"stack":[' in log
    assert "    at Object.thrown" in log


@pytest.mark.anyio
async def test_what_cannot_be_loaded_says_why_and_where(rig: Rig) -> None:
    error = await rig.broken("exports.handler = async () => {\n  return {;\n};\n")
    assert error["errorType"] == "Runtime.UserCodeSyntaxError"
    assert error["errorMessage"] == "SyntaxError: Unexpected token ';' (f.js:2)"
    error = await rig.broken("export const handler = async () => {\n  return {;\n};\n", file="m.mjs")
    assert error["errorType"] == "Runtime.UserCodeSyntaxError"
    assert error["errorMessage"].endswith("(m.mjs:2)")
    for file, code in (("i.js", "require('nope');"), ("i.mjs", "import 'nope';")):
        error = await rig.broken(code, file=file)
        assert error["errorType"] == "Runtime.ImportModuleError"
        assert "nope" in error["errorMessage"]
        assert "node_worker" not in json.dumps(error)
    assert (await rig.broken("exports.other = 1;", file="n.js"))["errorType"] == "Runtime.HandlerNotFound"
    assert (await rig.broken("exports.handler = 1;", file="o.js", handler="o.handler"))["errorType"] == "Runtime.HandlerNotFound"
    assert (await rig.broken("", file="p.js", handler="p"))["errorType"] == "Runtime.MalformedHandlerName"
    assert (await rig.broken("", file="q.js", handler="../q.x"))["errorType"] == "Runtime.MalformedHandlerName"
    error = await rig.broken("null.x;", file="r.js")
    assert error["errorType"] == "TypeError"
    assert any("r.js:1" in line for line in error["trace"])
    error = await rig.broken("Promise.reject(new Error('early')); exports.handler = async () => 1;\nwhile (false);", file="s.js")
    assert error["errorType"] == "Runtime.UnhandledPromiseRejection"


@pytest.mark.anyio
async def test_a_missing_node_is_named_with_the_cure(rig: Rig) -> None:
    with pytest.raises(EventdError, match="E-HANDLER") as caught:
        await rig.runtime("", node="no-such-node").prepare()
    assert "apt install nodejs" in caught.value.hint
    await rig.runtime("", file="g.js").prepare()


# --- ends ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body, kind, message, status",
    [
        ("Promise.reject(new Error('lost')); await wait(10000);", "Runtime.UnhandledPromiseRejection", "Error: lost", 128),
        ("setTimeout(() => { throw new RangeError('late'); }, 5); await wait(10000);", "RangeError", "late", 129),
    ],
)
async def test_what_nobody_caught_is_told_and_ends_the_worker(rig: Rig, body: str, kind: str, message: str, status: int) -> None:
    code = f"const wait = (ms) => new Promise((r) => setTimeout(r, ms)); exports.handler = async () => {{ {body} }};"
    worker, events = await rig.start(rig.runtime(code))
    rig.hand(worker)
    await until(lambda: events.exit, "the end")
    assert events.said == ["ready", "answered", "exited"]  # never an answer from a worker that is about to go
    error = shown(events.answers[0])
    assert (error["errorType"], error["errorMessage"]) == (kind, message)
    assert events.exit is not None
    assert events.exit.status == status


@pytest.mark.anyio
async def test_exiting_in_the_middle_is_an_exit_and_no_answer(rig: Rig) -> None:
    worker, events = await rig.start(rig.runtime("exports.handler = async () => { process.exit(0); };"))
    rig.hand(worker)
    await until(lambda: events.exit, "the end")
    assert events.said == ["ready", "exited"]
    assert events.exit is not None
    assert events.exit.status == 0


@pytest.mark.anyio
async def test_an_endless_loop_that_ignores_sigterm_is_killed(rig: Rig) -> None:
    code = "process.on('SIGTERM', () => {}); exports.handler = async () => { console.log('begun'); for (;;); };"
    worker, events = await rig.start(rig.runtime(code))
    rig.hand(worker, timeout_ms=50)
    await until(lambda: b"begun" in events.out, "the loop")
    worker.terminate()
    await anyio.sleep(0.05)
    assert events.exit is None
    worker.kill()
    await until(lambda: events.exit, "the end")
    assert events.exit is not None
    assert events.exit.signal == signal.SIGKILL
    assert events.answers == []


@pytest.mark.anyio
async def test_detached_children_end_with_the_run_and_children_of_init_stay(rig: Rig) -> None:
    code = """
    const { spawn } = require('child_process');
    const away = () => spawn('sh', ['-c', 'setsid sh -c "env -i sleep 800 & sleep 801" & sleep 802'], { detached: true, stdio: 'ignore' });
    const helper = spawn('sleep', ['803'], { stdio: 'ignore' }); helper.unref();
    exports.handler = async () => {
      for (let i = 0; i < 4; i += 1) away().unref();
      await new Promise((r) => setTimeout(r, 150));
      return helper.pid;
    };"""
    worker, events = await rig.start(rig.runtime(code))
    helper = await rig.ask(worker, events)
    root = json.dumps(str(rig.tmp / "state"))[1:-1]
    spares = {each.pid for runtime in rig.runtimes for each in runtime._unclaimed}
    left = [pid for pid in processes_with(root) if pid not in {worker.pid, *spares} and not zombie(pid)]
    assert left == [helper]
    worker.quit()
    await until(lambda: events.exit, "the end")
    assert set(processes_with(root)) <= spares


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.anyio
async def test_a_full_heap_is_told_as_the_end_of_memory(rig: Rig) -> None:
    code = "exports.handler = async () => { const all = []; for (;;) all.push(new Array(1000).fill({})); };"
    worker, events = await rig.start(rig.runtime(code, memory_mib=96))
    rig.hand(worker)
    await until(lambda: events.exit, "the end")
    assert events.said == ["ready", "answered", "exited"]
    assert json.loads(events.answers[0].payload)["errorType"] == "MemoryError"


@pytest.mark.anyio
async def test_large_events_and_results_pass(rig: Rig) -> None:
    worker, events = await rig.start(rig.runtime("exports.handler = async (event) => event;"))
    big = ["é" * 1000] * 2500
    assert await rig.ask(worker, events, big) == big


# --- the spare ---


@pytest.mark.anyio
async def test_a_spare_waits_without_code_or_secrets_and_becomes_the_next_worker(rig: Rig) -> None:
    code = "console.log('loaded'); exports.handler = async () => [process.pid, process.env.TOKEN, process.env.TMPDIR];"
    runtime = rig.runtime(code, secrets={"TOKEN": "s3cret"})
    first, told = await rig.start(runtime)
    assert told.init
    await until(lambda: runtime._spare is not None and runtime._spare.pid, "a spare")
    assert runtime._spare is not None
    spare = runtime._spare.pid
    assert b"s3cret" not in Path(f"/proc/{spare}/environ").read_bytes()
    second, events = await rig.start(runtime)
    pid, token, tmpdir = await rig.ask(second, events)
    assert (pid, second.pid, token) == (spare, spare, "s3cret")
    assert tmpdir != (await rig.ask(first, told))[2]
    assert events.out.count(b"loaded") == 1
    await until(lambda: runtime._spare is not None and runtime._spare.pid not in (0, spare), "another spare")
    assert runtime._spare is not None
    os.kill(runtime._spare.pid, signal.SIGKILL)
    await until(lambda: runtime._spare is None, "the news of its death")
    third, events = await rig.start(runtime)
    assert (await rig.ask(third, events))[1] == "s3cret"
    await runtime.close()
    assert runtime._spare is None
