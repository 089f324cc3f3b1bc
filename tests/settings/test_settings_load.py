"""TOML to Settings: defaults, merging, and every problem at once with its file, line, path and hint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from eventd.model import FunctionSettings, Problem, Rate, Retry
from eventd.sdk import Duration, Finding, LocalPath, PluginSettings, Site, TriggerPlugin
from eventd.settings.load import Loading, load


class TickSettings(PluginSettings):
    every: Duration = Field(default=1_000, description="how often")
    path: LocalPath | None = Field(default=None, description="a file")
    mode: Literal["sync", "async"] = "async"
    options: dict[str, Any] = Field(default={})
    input: dict[str, Any] | str | None = None

    @model_validator(mode="after")
    def _explode(self) -> TickSettings:
        if self.options.get("explode"):
            raise ZeroDivisionError("a mistake in the plugin")
        return self


async def run(site: Site, settings: TickSettings) -> None: ...


def check(name: str, settings: TickSettings, triggers: Mapping[str, Any]) -> Iterable[Finding]:
    if settings.every == 13:
        raise KeyError("thirteen")
    if settings.every == 7:
        yield Finding("every", "seven is wrong", "Take eight")
    if settings.every == 9:
        yield Finding("every", "nine is odd", severity="warning")
    if settings.path and not Path(settings.path).exists():
        yield Finding("path", f"{settings.path!r} does not exist.", "Create it.", transient=True)


KINDS = {
    "tick": TriggerPlugin(kind="tick", settings=TickSettings, run=run, check=check),
    "tock": TriggerPlugin(kind="tock", settings=TickSettings, run=run, direct=lambda settings: settings.mode == "sync"),
}


class Site_:
    """A folder with a configuration in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "eventd.toml"
        (folder / "handlers").mkdir()
        self.function("hello")
        self.previous: dict[str, FunctionSettings] = {}

    def function(self, name: str) -> None:
        (self.folder / "handlers" / f"{name}.py").write_text("def handler(event, context): ...\n")

    def write(self, text: str, name: str = "eventd.toml") -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def load(self, text: str | None = None, **options: Any) -> Loading:
        if text is not None:
            self.write(text)
        return load(str(self.file), KINDS, **{"environ": {}, **options})

    def problems(self, text: str, **options: Any) -> list[Problem]:
        loading = self.load(text, **options)
        assert (loading.settings is None) == any(problem.severity == "error" for problem in loading.problems)
        return loading.problems

    def problem(self, text: str, **options: Any) -> Problem:
        problems = self.problems(text, **options)
        assert len(problems) == 1, problems
        return problems[0]


@pytest.fixture
def site(tmp_path: Path) -> Site_:
    return Site_(tmp_path)


def test_an_empty_file_is_valid_and_gives_every_default(site: Site_) -> None:
    settings = site.load("").settings
    assert settings is not None
    base = str(site.folder)
    assert settings.file == str(site.file)
    assert (settings.daemon.handlers, settings.daemon.plugins, settings.daemon.state) == (
        f"{base}/handlers",
        f"{base}/plugins",
        f"{base}/state",
    )
    assert settings.control.socket == f"{base}/state/eventd.sock"
    assert settings.control.mode == 0o660
    assert settings.http.listen == ("127.0.0.1:8080",)
    assert settings.journal.limit == 4 * 1024**3
    assert settings.functions["hello"] == FunctionSettings(name="hello", source=f"{base}/handlers/hello.py")
    assert dict(settings.triggers) == {}


def test_systemd_names_the_folders(site: Site_) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/eventd:/var/lib/other", "RUNTIME_DIRECTORY": "/run/eventd"}
    settings = site.load("", environ=environ).settings
    assert settings is not None
    assert (settings.daemon.state, settings.control.socket) == ("/var/lib/eventd", "/run/eventd/eventd.sock")
    settings = site.load('[daemon]\nstate = "here"\n', environ=environ).settings
    assert settings is not None
    assert settings.daemon.state == str(site.folder / "here")


def test_five_mistakes_are_five_errors_with_their_lines(site: Site_) -> None:
    problems = site.problems("""\
[daemon]
concurrency = "many"

[functions.hello]
tiemout = "30s"
memory = "lots"

[triggers.clock]
type = "tik"
function = "hello"

[[bindings]]
trigger = "clock"
function = "helo"
""")
    assert [str(problem) for problem in problems] == [
        f"E-CONFIG {site.file}:2 daemon.concurrency: must be a whole number, not 'many'.",
        f"E-CONFIG {site.file}:5 functions.hello.tiemout: unknown key 'tiemout', did you mean 'timeout'?",
        f"E-CONFIG {site.file}:6 functions.hello.memory: 'lots' is not a size; "
        'write a number with KiB, MiB or GiB, for example "256MiB".',
        f"E-CONFIG {site.file}:9 triggers.clock.type: unknown type of trigger 'tik', did you mean 'tick'?",
        f"E-CONFIG {site.file}:14 bindings[0].function: unknown function 'helo', did you mean 'hello'?",
    ]


def test_everything_set(site: Site_) -> None:
    site.function("other")
    secret = site.folder / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    settings = site.load("""\
[daemon]
concurrency = 7
timezone = "Europe/Berlin"
drain_timeout = "1m30s"
[http]
listen = ["[::1]:0", "unix:web.sock", "localhost:80", "0.0.0.0:9000"]
trusted_proxies = ["10.1.2.3/8", "::1"]
[control]
mode = "0600"
listen = ["0.0.0.0:9001"]
credentials = [{ id = "me", secret_file = "secret" }]
[runtimes.node]
path = "bin/node"
[functions.hello]
handler = "hello.handler"
timeout = "250ms"
memory = "1.5GiB"
concurrency = 0
retry = { attempts = 1, waits = ["1s"], jitter = true }
rate = "100/m"
environment = { A = "1" }
secrets = { B = "file:secret", C = "credential:name" }
on_success = "function:other"
on_failure = { type = "amqp", url_file = "secret", routing_key = "q" }
url = true
[functions.other]
on_failure = "directory:failed"
on_success = "https://example.org/x"
[triggers.t]
type = "tick"
every = "2s"
path = "secret"
paused = true
concurrency = 3
function = "hello"
filter = { a = ["b"] }
[[bindings]]
trigger = "t"
function = "other"
name = "second"
filter = '{"a": [null]}'
retry = { attempts = 2 }
max_event_age = "1h"
on_failure = "function:hello"
""").settings
    assert settings is not None
    base = str(site.folder)
    assert settings.daemon.drain_timeout_ms == 90_000
    assert settings.http.listen == ("[::1]:0", f"unix:{base}/web.sock", "localhost:80", "0.0.0.0:9000")
    assert settings.http.trusted_proxies == ("10.0.0.0/8", "::1/128")
    assert settings.control.credentials == ({"id": "me", "secret_file": f"{base}/secret"},)
    assert settings.runtimes.node_path == f"{base}/bin/node"
    hello, other = settings.functions["hello"], settings.functions["other"]
    assert (hello.timeout_ms, hello.memory_mib, hello.concurrency, hello.origin) == (250, 1536, 0, "file")
    assert (hello.retry, hello.rate) == (Retry(1, (1_000,), True), Rate(100, 60_000))
    assert hello.secrets == {"B": f"file:{base}/secret", "C": "credential:name"}
    assert hello.on_failure == {"type": "amqp", "url_file": f"{base}/secret", "exchange": "", "routing_key": "q"}
    assert (other.on_failure, other.concurrency) == (f"directory:{base}/failed", 3)
    trigger = settings.triggers["t"]
    assert (trigger.paused, trigger.concurrency, trigger.options.every, trigger.options.path) == (True, 3, 2_000, f"{base}/secret")
    assert list(settings.bindings) == ["t/hello", "second"]
    assert settings.bindings["t/hello"].filter == {"a": ["b"]}
    second = settings.bindings["second"]
    assert (second.filter, second.retry, second.max_event_age_ms) == ({"a": [None]}, Retry(2), 3_600_000)
    assert settings.bindings["t/hello"].retry is None


_T = "[triggers.t]\ntype = 'tick'\n"
_F = _T + "function = 'hello'\n"
_S = "[triggers.t]\ntype = 'tock'\nmode = 'sync'\n"
_B = "[[bindings]]\n"
MISTAKES = [
    ("[demon]\n", 1, "demon", "unknown table 'demon', did you mean 'daemon'?"),
    ("x = 1\n", 1, "x", "unknown key 'x'."),
    ("daemon = 1\n", 1, "daemon", "must be a table, not 1."),
    ("triggers = []\n", 1, "triggers", "must be a table, not a list."),
    ("[bindings]\n", 1, "bindings", "must be a list of tables, not a table."),
    ("bindings = [1]\n", 1, "bindings[0]", "must be a table, not 1."),
    ("[daemon]\nconcurrency = 0\n", 2, "daemon.concurrency", "must be at least 1, not 0."),
    ("[daemon]\nreload = 1\n", 2, "daemon.reload", "must be true or false, not 1."),
    ("[daemon]\n\nlog_level = 'loud'\n", 3, "daemon.log_level", "must be one of 'debug', 'info', 'warning' or 'error', not 'loud'."),
    ("[daemon]\ntimezone = 'Mars/Base'\n", 2, "daemon.timezone", "'Mars/Base' is not a time zone; write"),
    ("[daemon]\ntimezone = '../x'\n", 2, "daemon.timezone", "'../x' is not a time zone; write"),
    ("[daemon]\ntimezone = 'Europe'\n", 2, "daemon.timezone", "'Europe' is not a time zone; write"),
    ("[daemon]\nhandlers = 'eventd.toml'\n", 2, "daemon.handlers", "is not a folder."),
    ("[http]\nlisten = '127.0.0.1:80'\n", 2, "http.listen", "must be a list, not '127.0.0.1:80'."),
    ("[http]\nlisten = ['a:1', 'x:99999']\n", 2, "http.listen[1]", "'x:99999' has no port from 0 to 65535"),
    ("[http]\nlisten = [\n':80',\n]\n", 3, "http.listen[0]", "':80' has no host"),
    ("[http]\nlisten = ['::1:80']\n", 2, "http.listen[0]", "an IPv6 address stands in brackets"),
    ("[http]\nlisten = ['1.2.3:80']\n", 2, "http.listen[0]", "neither an address nor a host name"),
    ("[http]\nlisten = ['a:1', 'a:1']\n", 2, "http.listen[1]", "'a:1' is listed twice."),
    ("[http]\nlisten = ['unix:" + "x" * 120 + "']\n", 2, "http.listen[0]", "the kernel takes at most 107"),
    ("[http]\ntrusted_proxies = ['10.0.0.0/99']\n", 2, "http.trusted_proxies[0]", "is not a network"),
    ("[http]\nheader_timeout = '0s'\n", 2, "http.header_timeout", "must be longer than zero."),
    ("[control]\nlisten = ['unix:x']\n", 2, "control.listen[0]", "the Unix socket is [control] socket."),
    ("[control]\nlisten = ['127.0.0.1:1', '0.0.0.0:1']\n", 2, "control.listen[1]", "can be reached from other machines"),
    ("[control]\nlisten = ['example.org:1']\n", 2, "control.listen[0]", "can be reached from other machines"),
    ("[control]\nsocket = '" + "x" * 120 + "'\n", 2, "control.socket", "the kernel takes at most 107"),
    ("[control]\nlisten = ['127.0.0.1:8080']\n", 2, "control.listen[0]", "'127.0.0.1:8080' is in [http] listen too."),
    ("[control]\nmode = '999'\n", 2, "control.mode", "is not a file mode"),
    ("[control]\ngroup = 'no-such-group'\n", 2, "control.group", "there is no group 'no-such-group' on this machine."),
    ("[control]\ncredentials = [{ id = 'x' }]\n", 2, "control.credentials[0].secret_file", "'secret_file' is required."),
    ("[control]\ncredentials = [{ id = 'x', secret_file = 'no' }]\n", 2, "control.credentials[0].secret_file", "does not exist."),
    ("[functions.hello]\nretry = { attempts = 101 }\n", 2, "functions.hello.retry.attempts", "must be at most 100, not 101."),
    ("[functions.hello.retry]\nwaits = ['1m', 'soon']\n", 2, "functions.hello.retry.waits[1]", "'soon' is not a duration"),
    ("[functions.hello]\nretry.waits = []\n", 2, "functions.hello.retry.waits", "must not be empty."),
    ("[functions.hello]\nrate = '0/s'\n", 2, "functions.hello.rate", "'0/s' is not a rate"),
    ("[functions.hello]\nrate = 5\n", 2, "functions.hello.rate", "5 is not a rate"),
    ("[functions.hello]\nmemory = 512\n", 2, "functions.hello.memory", 'too little memory for a process; write for example "512MiB".'),
    ("[functions.hello]\ntimeout = '0s'\n", 2, "functions.hello.timeout", "must be longer than zero."),
    ("[functions.hello]\nruntime = 'node18'\n", 2, "functions.hello.runtime", "must be one of 'python', 'node', 'exec' or 'provided'"),
    ("[functions.hello]\nruntime = 'exec'\n", 2, "functions.hello.runtime", "is not an executable file."),
    ("[functions.hello]\npath = 'no.py'\n", 2, "functions.hello.path", "does not exist."),
    ("[functions.hello]\npath = 3\n", 2, "functions.hello.path", "must be text in quotes, not 3."),
    ("[functions.hello]\nenvironment = { PORT = 8080 }\n", 2, "functions.hello.environment.PORT", "must be text in quotes, not 8080."),
    ("[functions.hello.environment]\n'A=B' = 'x'\n", 1, "functions.hello.environment", "cannot be the name of an environment variable"),
    ("[functions.hello]\nsecrets = { A = 'hunter2' }\n", 2, "functions.hello.secrets.A", "never as the secret itself."),
    ("[functions.hello]\nprovisioned = 3\nconcurrency = 2\n", 2, "functions.hello.provisioned", "never run at once with concurrency 2."),
    ("[functions.hello]\non_success = 'function:helo'\n", 2, "functions.hello.on_success", "did you mean 'hello'?"),
    ("[functions.hello]\non_success = 'mail:me'\n", 2, "functions.hello.on_success", "is not a destination"),
    ("[functions.hello]\non_success = 'http://example.org/'\n", 2, "functions.hello.on_success", "would send events unencrypted"),
    ("[functions.hello]\non_success = { type = 'amqp' }\n", 2, "functions.hello.on_success", "needs either url or url_file."),
    ("[functions.helo]\n", 1, "functions.helo", "there is no function 'helo', did you mean 'hello'?"),
    ("[functions.'a b']\n", 1, 'functions."a b"', "'a b' cannot be the name of a function."),
    ("[triggers.t]\nfunction = 'hello'\n", 1, "triggers.t.type", "'type' is required."),
    ("[triggers.t]\ntype = 'amqp'\nfunction = 'hello'\n", 2, "triggers.t.type", "unknown type of trigger 'amqp'."),
    ("[triggers.'t/x']\ntype = 'tick'\n", 1, 'triggers."t/x"', "cannot be the name of a trigger"),
    (_T + "funtion = 'hello'\n[[bindings]]\ntrigger='t'\nfunction='hello'\n", 3, "triggers.t.funtion", "did you mean 'function'?"),
    (_F + "mode = 'asink'\n", 4, "triggers.t.mode", "must be one of 'sync' or 'async', not 'asink', did you mean"),
    (_F + "input = 3\n", 4, "triggers.t.input", "must be a table or text in quotes, not 3."),
    (_F + "every = '7ms'\n", 4, "triggers.t.every", "seven is wrong."),
    (_F + "every = '13ms'\n", 1, "triggers.t", "the check of the plugin 'tick' failed: KeyError"),
    (_F + "options = {explode = true}\n", 1, "triggers.t", "ZeroDivisionError"),
    (_F + "filter = 3\n", 4, "triggers.t.filter", "a filter is a table"),
    (_F + "filter = '[1]'\n", 4, "triggers.t.filter", "a filter is a table"),
    (_F + "filter = '{'\n", 4, "triggers.t.filter", "the filter is not valid JSON"),
    (_F + _B + "trigger = 'x'\nfunction = 'hello'\n", 5, "bindings[0].trigger", "unknown trigger 'x'."),
    (_F + _B + "trigger = 't'\n", 4, "bindings[0].function", "'function' is required."),
    (_F + _B + "trigger = 't'\nfunction = 'hello'\n", 4, "bindings[0]", "two bindings are called 't/hello': this one and that in"),
    (_T + _B + "trigger = 't'\nfunction = 'hello'\nname = 'a b'\n", 6, "bindings[0].name", "cannot be the name of a binding"),
    (_S, 1, "triggers.t", "it has no bindings."),
    (_S + "function = 'hello'\n" + _B + "name = 'b'\ntrigger = 't'\nfunction = 'hello'\n", 1, "triggers.t", "it has 2 bindings."),
    ("a = 99999999999999999999\n", 1, "a", "the number does not fit in 64 bits."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path", "message"), MISTAKES, ids=[f"{path} {message[:40]}" for _, _, path, message in MISTAKES])
def test_a_mistake_is_one_error_in_its_place(site: Site_, text: str, line: int, path: str, message: str) -> None:
    problem = site.problem(text)
    place = (problem.severity, problem.file, problem.line)
    assert (*place, problem.path) == ("error", str(site.file), line, path)
    assert message in problem.message
    assert problem.message.endswith((".", "?"))
    assert "pydantic" not in str(problem).lower()


WARNINGS = [
    ("[control]\nmode = '0666'\n", 2, "control.mode", "every user of this machine may invoke"),
    (_T + "", 1, "triggers.t", "it has no binding, so its events go nowhere."),
    (_F + "every = '9ms'\n", 4, "triggers.t.every", "nine is odd."),
    ("[functions.hello]\nsecrets = { A = 'file:none' }\n", 2, "functions.hello.secrets.A", "does not exist."),
    (
        "[functions.hello]\nsecrets = { A = 'file:open' }\n",
        2,
        "functions.hello.secrets.A",
        "every user of this machine may read the secret",
    ),
]


@pytest.mark.parametrize(("text", "line", "path", "message"), WARNINGS, ids=[path for _, _, path, _ in WARNINGS])
def test_what_works_but_was_hardly_meant_is_a_warning(site: Site_, text: str, line: int, path: str, message: str) -> None:
    (site.folder / "open").write_text("secret")
    (site.folder / "open").chmod(0o644)
    problem = site.problem(text)
    assert (problem.code, problem.severity, problem.line, problem.path) == ("W-CONFIG", "warning", line, path)
    assert message in problem.message


def test_a_transient_finding_is_an_error_in_check_and_a_warning_at_boot(site: Site_) -> None:
    text = "[triggers.t]\ntype = 'tick'\nfunction = 'hello'\npath = 'gone'\n"
    assert site.problem(text).severity == "error"
    assert site.problem(text, boot=True).severity == "warning"
    assert site.problem(text.replace("path = 'gone'", "every = '7ms'"), boot=True).severity == "error"


def test_a_filter_is_compiled_when_there_is_a_compiler(site: Site_) -> None:
    def compile_pattern(pattern: Mapping[str, Any]) -> object:
        if "bad" in pattern:
            raise ValueError("'bad' is no field")
        return pattern

    text = "[triggers.t]\ntype = 'tick'\nfunction = 'hello'\nfilter = { bad = [1] }\n"
    problem = site.problem(text, check_filter=compile_pattern)
    assert (problem.line, problem.path, problem.message) == (4, "triggers.t.filter", "the filter is not a pattern: 'bad' is no field.")
    assert site.load(text.replace("bad", "good"), check_filter=compile_pattern).problems == []


def test_conf_d_is_merged_by_table_and_relative_to_itself(site: Site_) -> None:
    site.function("other")
    site.write("[functions.hello]\ntimeout = '1s'\n[[bindings]]\ntrigger = 't'\nfunction = 'hello'\n")
    site.write("[functions.hello]\nmemory = '1GiB'\non_failure = 'directory:failed'\n", "conf.d/10-a.toml")
    site.write(_T + "path = '10-a.toml'\n[[bindings]]\ntrigger = 't'\nfunction = 'other'\n", "conf.d/20-b.toml")
    site.write("not toml", "conf.d/.hidden.toml")
    site.write("not toml", "conf.d/notes.txt")
    loading = site.load()
    settings = loading.settings
    assert settings is not None, loading.problems
    assert loading.files == (str(site.file), f"{site.folder}/conf.d/10-a.toml", f"{site.folder}/conf.d/20-b.toml")
    hello = settings.functions["hello"]
    assert (hello.timeout_ms, hello.memory_mib, hello.on_failure) == (1_000, 1024, f"directory:{site.folder}/conf.d/failed")
    assert settings.triggers["t"].options.path == f"{site.folder}/conf.d/10-a.toml"
    assert list(settings.bindings) == ["t/hello", "t/other"]


def test_a_key_set_in_two_files_names_both_lines(site: Site_) -> None:
    site.write("[functions.hello]\n\ntimeout = '1s'\n")
    site.write("# a comment\n[functions.hello]\ntimeout = '2s'\nmemory = 1\n\nretry = 1\n", "conf.d/x.toml")
    (first, second, third) = site.load().problems
    assert (first.file, first.line, first.path) == (f"{site.folder}/conf.d/x.toml", 3, "functions.hello.timeout")
    assert f"set twice: here and in {site.file}:3" in first.message
    assert (second.line, second.path) == (4, "functions.hello.memory")
    assert (third.line, third.path) == (6, "functions.hello.retry")


def test_problems_in_conf_d_bindings_have_their_own_lines(site: Site_) -> None:
    site.write("[triggers.t]\ntype='tick'\n[[bindings]]\ntrigger = 't'\nfunction = 'hello'\n")
    site.write("\n\n[[bindings]]\ntrigger = 't'\nfunction = 'hallo'\n", "conf.d/x.toml")
    problem = site.load().problems[0]
    assert (problem.file, problem.line, problem.path) == (f"{site.folder}/conf.d/x.toml", 5, "bindings[1].function")


def test_bom_and_crlf_are_accepted(site: Site_) -> None:
    site.file.write_bytes(b"\xef\xbb\xbf[daemon]\r\nconcurrency = 4\r\n[functions.hello]\r\ntimeout = '''5s'''\r\n")
    settings = site.load().settings
    assert settings is not None
    assert (settings.daemon.concurrency, settings.functions["hello"].timeout_ms) == (4, 5_000)
    site.file.write_bytes(b"\xef\xbb\xbf[daemon]\r\n\r\nconcurrancy = 4\r\n")
    assert [problem.line for problem in site.load().problems] == [3]


@pytest.mark.parametrize(
    ("raw", "line", "message"),
    [
        (b"a = 1\n# \xe9\nb = 2\n", 2, "not UTF-8: byte 0xe9"),
        (b"a = 1\nb = \n", 2, "not valid TOML: invalid value"),
        (b"[daemon]\nreload = true\nreload = false\n", 3, "not valid TOML: cannot overwrite a value"),
        (b"[daemon]\nstate = '''\n", 2, "the file ends here"),
        (b"a = " + b"1" * 5000, 0, "not valid TOML"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, 0, "nested deeper than"),
        (b"a" + b".a" * 500 + b" = 1", 0, "nested deeper than"),
        (b"#" * (4 * 1024 * 1024 + 1), 0, "larger than 4 MiB"),
    ],
    ids=["latin-1", "value", "twice", "end", "long number", "deep list", "deep key", "large"],
)
def test_what_is_not_toml_is_one_error_with_its_line(site: Site_, raw: bytes, line: int, message: str) -> None:
    site.file.write_bytes(raw)
    (problem,) = site.load().problems
    assert (problem.code, problem.line) == ("E-TOML", line)
    assert message in problem.message


def test_a_broken_drop_in_does_not_make_everything_else_unknown(site: Site_) -> None:
    site.write("[functions.hello]\ntiemout = 1\n[[bindings]]\ntrigger = 't'\nfunction = 'hello'\n")
    site.write("[triggers.t\n", "conf.d/t.toml")
    assert [problem.path or problem.code for problem in site.load().problems] == ["functions.hello.tiemout", "E-TOML"]


def test_a_missing_or_unreadable_file_is_a_problem(site: Site_) -> None:
    (problem,) = load(str(site.folder / "none.toml"), KINDS, environ={}).problems
    assert (problem.code, problem.message) == ("E-CONFIG", "there is no such file.")
    (problem,) = load(str(site.folder), KINDS, environ={}).problems
    assert "cannot be read" in problem.message


def test_the_digest_changes_with_the_type_and_any_option_and_with_nothing_else(site: Site_) -> None:
    def digest(text: str) -> str:
        settings = site.load(f"[triggers.t]\nfunction = 'hello'\n{text}\n").settings
        assert settings is not None
        return settings.triggers["t"].digest

    plain = digest("type = 'tick'")
    assert digest("paused = true\ntype = 'tick'\nevery = '1s'") == plain
    assert digest("filter = {a = [1]}\ntype = 'tick'") == plain
    assert len({plain, digest("type = 'tock'"), digest("type = 'tick'\nevery = '2s'"), digest("type = 'tick'\noptions = {a = 1}")}) == 4


def test_a_binding_to_a_function_in_a_refused_file_says_why(site: Site_) -> None:
    (site.folder / "handlers" / "hello.py").chmod(0o666)
    problems = site.problems(_F + "")
    assert [(problem.severity, problem.path) for problem in problems] == [("error", "triggers.t.function"), ("warning", "")]
    assert "every user of this machine may write" in problems[0].message


def test_a_problem_prints_as_the_surface_says(site: Site_) -> None:
    assert (
        str(Problem("E-CONFIG", "error", "a.toml", 3, "daemon.x", "It is wrong.", "Mend it."))
        == "E-CONFIG a.toml:3 daemon.x: It is wrong. Mend it."
    )
