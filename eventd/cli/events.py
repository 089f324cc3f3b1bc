"""`eventd events`."""

from __future__ import annotations

from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, listing, more, query_of
from eventd.errors import EventdError
from eventd.model import State


@click.command(epilog="Example: eventd events --state retrying --function hello")
@click.argument("event", required=False)
@listing
@click.option("--state", type=click.Choice(list(map(str, State))), help="Only events with an invocation in this state.")
@click.option("--payload", is_flag=True, help="Show the data too.")
@click.pass_obj
def events(session: Session, /, event: str | None, **flags: Any) -> int:
    """Show accepted events and where their invocations stand, newest first, or one EVENT."""
    query = query_of(ids=(event,) if event else (), **flags)
    answer = ask(session, lambda client: client.events(query))
    rows = answer["events"]
    if event is not None and not rows:
        raise EventdError("E-NOTFOUND", f"there is no event {event!r}", "List them: eventd events")
    if session.json:
        output.emit(answer)
        return 0
    if event is not None:
        _one(rows[0])
        return 0
    headers = ["RECEIVED", "EVENT", "TRIGGER", "BYTES", "INVOCATION", "FUNCTION", "STATE", "TRIES", "DUE"] + (
        ["PAYLOAD"] if query.payload else []
    )
    cells = [cell for row in rows for cell in _rows(row, payload=query.payload)]
    output.table(headers, cells)
    more(answer)
    return 0


def _rows(row: dict[str, Any], *, payload: bool) -> list[tuple[object, ...]]:
    start = (row["received_at"], row["event"], row["trigger"] or "-", row["bytes"])
    last = (output.compact(row.get("payload")),) if payload else ()
    if not row["invocations"]:
        return [(*start, "-", "-", "-", "-", "-", *last)]
    return [(*start, *_invocation(invocation), *last) for invocation in row["invocations"]]


def _invocation(row: dict[str, Any]) -> tuple[object, ...]:
    end = ": ".join(part for part in (row["end"], row["reason"]) if part)
    return row["invocation"], row["function"], end or row["state"], row["attempts"], row["due_at"] or "-"


def _one(row: dict[str, Any]) -> None:
    pairs = [(key, value) for key, value in row.items() if key not in ("invocations", "payload")]
    if "payload" in row:
        pairs.append(("payload", output.compact(row["payload"])))
    output.fields(pairs)
    output.line()
    output.table(("INVOCATION", "FUNCTION", "STATE", "TRIES", "DUE"), [_invocation(invocation) for invocation in row["invocations"]])
