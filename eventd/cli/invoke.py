"""`eventd invoke`."""

from __future__ import annotations

import sys
from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, Span, ask
from eventd.errors import EventdError


@click.command(epilog="""Example: eventd invoke hello -d '{"name": "Ada"}'""")
@click.argument("name", metavar="NAME[:QUALIFIER]")
@click.option("-d", "--data", metavar="JSON|@FILE|-", help="The event; from a file with @, from stdin with -. Default: {}.")
@click.option("--async", "asynchronous", is_flag=True, help="Store the event durably and do not wait for the run.")
@click.option("--tail", is_flag=True, help="Show the end of what the run printed, on stderr.")
@click.option("--wait", "wait_ms", type=Span(), metavar="DUR", help="How long the call may wait for a slot. Default: as the function says.")
@click.option("--id", "event_id", metavar="ID", help="The event's id, with --async: sent twice, it runs once.")
@click.pass_obj
def invoke(session: Session, name: str, data: str | None, asynchronous: bool, tail: bool, wait_ms: int | None, event_id: str | None) -> int:
    """Call a function and print its result, one JSON value, on stdout.

    When the function fails, its error is printed as Lambda's error object, with one sentence on stderr, and the exit code is 1.
    """
    if asynchronous and (tail or wait_ms is not None):
        raise click.UsageError("--tail and --wait are about a run's end, which --async does not wait for.")
    if event_id is not None and not asynchronous:
        raise click.UsageError("--id needs --async: only stored events are looked up for duplicates.")
    payload = _payload(data)
    answer = ask(session, lambda client: client.invoke(name, payload, asynchronous=asynchronous, id=event_id, wait_ms=wait_ms, tail=tail))
    if asynchronous:
        output.emit(answer)
        return 0
    if tail and answer["tail"]:
        sys.stdout.flush()
        click.echo(answer["tail"].rstrip("\n"), err=True)
    output.emit({"run": answer["run"], "result": answer["result"]} if session.json else answer["result"])
    if answer["error"]:
        raise _failed(name, answer["run"])
    return 0


def _payload(data: str | None) -> bytes:
    """The event as JSON bytes. Raises a usage error for what is no JSON; nothing at all is the empty object, as in Lambda."""
    import msgspec

    if data is None:
        return b"{}"
    if data == "-":
        raw, what = sys.stdin.buffer.read(), "stdin"
    elif data.startswith("@"):
        what = data[1:]
        try:
            with open(what, "rb") as file:
                raw = file.read()
        except OSError as error:
            raise click.UsageError(f"cannot read {what}: {error.strerror}.") from error
    else:
        raw, what = data.encode("utf-8", "surrogateescape"), "the event"
    if not raw.strip():
        return b"{}"
    try:
        # Only the grammar: numbers beyond a float's range are the function's business.
        msgspec.json.decode(raw, type=msgspec.Raw)
        raw.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"{what} is not JSON: {error}. Text needs its quotes: -d '\"text\"'") from error
    return raw


def _failed(name: str, run: dict[str, Any]) -> EventdError:
    error = ": ".join(str(part) for part in (run.get("error_type"), run.get("error_message")) if part)
    message = f"{name} {run['outcome'].replace('_', ' ')}" + (f": {error}" if error else "")
    return EventdError("E-FUNCTION", message, f"See: eventd logs --run {run['run']}")
