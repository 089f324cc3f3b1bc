"""Log lines, the REPORT line, billing, and the record as JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import TextIO

import msgspec
import pytest

from eventd.model import Lane, Outcome, RunRecord, rfc3339
from eventd.telemetry import (
    LogHandler,
    RunLog,
    billed_ms,
    gb_seconds,
    price_usd,
    record_dict,
    record_json,
    report_line,
    setup_logging,
    under_journald,
)
from eventd.testing.control import run_record

REPORT = re.compile(
    r"^REPORT RequestId: (\S+)\tDuration: ([\d.]+) ms\tBilled Duration: (\d+) ms\tMemory Size: (\d+) MB\tMax Memory Used: (\d+) MB\t"
    r"(Init Duration: ([\d.]+) ms\t)?(Status: \w+)?(\tError Type: [\w.]+)?\s*$"
)
AT = 1_795_169_472_345


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if isinstance(handler, LogHandler) and handler not in handlers:
            root.removeHandler(handler)


def record(**changes: object) -> RunRecord:
    values: dict[str, object] = {
        "run": "r-1", "invocation": "8f5", "event": "e", "source": "s", "function": "hello", "version": "v", "trigger": None,
        "binding": None,
        "lane": Lane.DIRECT, "attempt": 1, "outcome": Outcome.SUCCEEDED, "cold": False, "received_at": AT, "started_at": AT, "ended_at": AT,
        "queue_ms": 0.0, "init_ms": None, "duration_ms": 3.01, "billed_ms": 4, "cpu_ms": 0.0, "memory_mb": 128, "max_memory_mb": 36,
        "gb_seconds": 0.0005, "bytes_in": 0, "bytes_out": 0, "output_bytes": 0, "output_truncated": False, "exit_status": None,
        "signal": None, "error_type": None, "error_message": None, "worker": "w", "boot": "b",
    }  # fmt: skip
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_the_report_line_is_lambdas() -> None:
    cold = report_line(record(init_ms=110.1))
    assert cold == (
        "REPORT RequestId: 8f5\tDuration: 3.01 ms\tBilled Duration: 4 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB"
        "\tInit Duration: 110.10 ms\t\n"
    )
    assert report_line(record()).endswith("Max Memory Used: 36 MB\t\n")


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("error", [None, "Runtime.ExitError", "my error\tType: x\n"])
@pytest.mark.parametrize("init", [None, 12.0])
def test_every_report_line_fits_the_known_pattern(outcome: Outcome, error: str | None, init: float | None) -> None:
    line = report_line(record(outcome=outcome, error_type=error, init_ms=init))
    found = REPORT.match(line)
    assert found is not None
    assert line.count("\n") == 1
    assert (found[8] is None) == (outcome is Outcome.SUCCEEDED)


def test_report_line_status() -> None:
    assert report_line(record(outcome=Outcome.TIMED_OUT, error_type="Sandbox.Timedout")).endswith("\tStatus: timeout\n")
    crashed = report_line(record(outcome=Outcome.CRASHED, error_type="Runtime.ExitError"))
    assert crashed.endswith("\tStatus: error\tError Type: Runtime.ExitError\n")


@pytest.mark.parametrize(
    "init, duration, timeout, billed",
    [
        (80.00, 133.61, None, 214),
        (84.0, 3016.78, None, 3101),
        (None, 3.01, None, 4),
        (None, 3.0, None, 3),
        (None, 0.1 + 0.2, None, 1),
        (1.1, 2.9, None, 4),
        (None, 3000.4, 3000, 3000),
        (None, 0.0, None, 0),
    ],
)
def test_billing(init: float | None, duration: float, timeout: int | None, billed: int) -> None:
    assert billed_ms(init, duration, timeout_ms=timeout) == billed


def test_memory_time_and_price() -> None:
    assert gb_seconds(512, 1000) == 0.5
    assert price_usd(1_000_000, 0) == pytest.approx(0.20)
    assert price_usd(0, 1_000_000) == pytest.approx(16.6667)
    assert price_usd(0, 16e9) == pytest.approx(6e9 * 0.0000166667 + 9e9 * 0.000015 + 1e9 * 0.0000133334)


def test_the_record_has_exactly_the_published_fields() -> None:
    row = record_dict(record())
    assert set(row) == set(run_record())
    assert row["started_at"] == "2026-11-20T10:11:12.345Z"
    assert json.loads(record_json(record(error_message="caf\u00e9 \udce9 \n"))) == record_dict(record(error_message="caf\u00e9 \\udce9 \n"))
    assert b"\n" not in record_json(record(error_message="a\nb"))


def test_rfc3339() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(AT) == "2026-11-20T10:11:12.345Z"


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_text_lines_have_a_time_a_level_and_one_line() -> None:
    stream = io.StringIO()
    setup_logging("auto", "info", stream=stream)
    log = logging.getLogger("eventd.test")
    log.debug("unseen")
    log.info("handler %s said: %s", "hello", "a\n2026-01-01T00:00:00.000Z ERROR   forged\x1b[31m")
    log.warning("W-ROOT careful")
    found = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO  handler hello said: a", found[0])
    assert found[1] == "    2026-01-01T00:00:00.000Z ERROR   forged\\x1b[31m"
    assert found[2].endswith("Z WARN  W-ROOT careful")
    assert len(found) == 3


def test_an_exception_keeps_its_traceback_indented() -> None:
    stream = io.StringIO()
    setup_logging("text", "info", stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("eventd.test").exception("it failed")
    found = lines(stream)
    assert found[0].endswith("ERROR it failed")
    assert found[-1] == "    ValueError: boom"
    assert all(line.startswith("    ") for line in found[1:])


def test_json_lines() -> None:
    stream = io.StringIO()
    setup_logging("json", "debug", stream=stream)
    logging.getLogger("eventd.test").debug("hi %d", 7, extra={"function": "hello", "odd": object})
    row = json.loads(stream.getvalue())
    assert set(row) == {"time", "level", "logger", "message", "function", "odd"}
    assert (row["level"], row["logger"], row["message"], row["function"]) == ("debug", "eventd.test", "hi 7", "hello")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_wrong_log_call_and_a_lone_surrogate_do_not_raise(log_format: str) -> None:
    stream = io.StringIO()
    handler = setup_logging(log_format, "info", stream=stream)
    for message, argument in (("%d", "not a number"), ("name %s", "caf\udce9")):
        handler.handle(logging.LogRecord("eventd.test", logging.INFO, "", 0, message, (argument,), None))
    assert "unprintable" in lines(stream)[0]
    assert len(lines(stream)) == 2


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    handler = setup_logging("text", "info", stream=stream)
    os.close(reading)
    logging.getLogger("eventd.test").info("into the void")
    RunLog().write([record()])
    assert handler.lost == 2
    os.close(writing)
    with pytest.raises(OSError):
        stream.close()


def test_under_journald_there_is_a_priority_and_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "log"), "w+") as stream:
        found = os.fstat(stream.fileno())
        assert not under_journald(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert under_journald(stream)
        setup_logging("auto", "info", stream=stream)
        logging.getLogger("eventd.test").error("a\nb")
        RunLog().write([record(outcome=Outcome.FAILED)])
        stream.seek(0)
        text = stream.read().splitlines()
    assert text[:2] == ["<3>ERROR a", "<3>    b"]
    assert text[2].startswith("<4>WARN  hello REPORT RequestId: 8f5\t")


def test_the_journal_of_another_stream_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not under_journald(io.StringIO())


@pytest.mark.parametrize("level, written", [("debug", True), ("info", True), ("warning", False), ("error", False)])
def test_the_run_log_speaks_at_info_and_below(level: str, written: bool) -> None:
    stream = io.StringIO()
    setup_logging("text", level, stream=stream)
    RunLog().write([record(), record(function="other")])
    found = lines(stream)
    assert len(found) == (2 if written else 0)
    if written:
        assert found[0].startswith("2026-11-20T10:11:12.345Z INFO  hello REPORT RequestId: 8f5\tDuration: 3.01 ms")


def test_the_run_log_in_json_is_the_record() -> None:
    stream = io.StringIO()
    setup_logging("json", "info", stream=stream)
    RunLog().write([record(), record(run="r-2")])
    assert [msgspec.json.decode(line) for line in lines(stream)] == [record_dict(record()), record_dict(record(run="r-2"))]


def test_setting_up_twice_writes_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging("text", "info", stream=first)
    setup_logging("text", "info", stream=second)
    logging.getLogger("eventd.test").info("once")
    assert (len(lines(first)), len(lines(second))) == (0, 1)


@pytest.mark.parametrize("log_format, level", [("xml", "info"), ("text", "loud")])
def test_unknown_settings_are_refused(log_format: str, level: str) -> None:
    stream: TextIO = io.StringIO()
    with pytest.raises(ValueError, match="unknown"):
        setup_logging(log_format, level, stream=stream)
