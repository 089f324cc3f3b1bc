"""`eventd dead`."""

from __future__ import annotations

from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, listing, more, query_of
from eventd.errors import EventdError


@click.command(epilog="Example: eventd dead --function hello --since 1d")
@click.argument("invocation", required=False)
@listing
@click.option("--payload", is_flag=True, help="Show the data too.")
@click.pass_obj
def dead(session: Session, /, invocation: str | None, **flags: Any) -> int:
    """Show invocations that ended without success, newest first, or one INVOCATION. Their events are kept.

    Run them again with `eventd redrive`, give them up with `eventd discard`.
    """
    query = query_of(ids=(invocation,) if invocation else (), **flags)
    answer = ask(session, lambda client: client.dead(query))
    rows = answer["dead"]
    if invocation is not None and not rows:
        raise EventdError("E-NOTFOUND", f"there is no dead invocation {invocation!r}", "List them: eventd dead")
    if session.json:
        output.emit(answer)
        return 0
    if invocation is not None:
        output.fields([(key, output.compact(value) if key == "payload" else value) for key, value in rows[0].items()])
        return 0
    headers = ["DEAD SINCE", "INVOCATION", "FUNCTION", "TRIGGER", "REASON", "TRIES", "ERROR"] + (["PAYLOAD"] if query.payload else [])
    output.table(headers, [_row(row, payload=query.payload) for row in rows])
    more(answer)
    return 0


def _row(row: dict[str, Any], *, payload: bool) -> tuple[object, ...]:
    error = ": ".join(str(part) for part in (row["error_type"], row["error_message"]) if part)
    last = (output.compact(row.get("payload")),) if payload else ()
    return row["dead_at"], row["invocation"], row["function"], row["trigger"] or "-", row["reason"], row["attempts"], error[:120], *last
