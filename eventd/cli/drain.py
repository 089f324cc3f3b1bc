"""`eventd drain`."""

from __future__ import annotations

import click

from eventd.cli import output
from eventd.cli.session import Session, Span, ask, say
from eventd.errors import EventdError


@click.command(epilog="Example: eventd drain --timeout 30s")
@click.option("--queue", is_flag=True, help="Wait for all open work, not only for what runs.")
@click.option("--timeout", "timeout_ms", type=Span(), metavar="DUR", help="Give up waiting after that; intake stays stopped. Exit code 1.")
@click.option("--undo", is_flag=True, help="Take events in again.")
@click.pass_obj
def drain(session: Session, queue: bool, timeout_ms: int | None, undo: bool) -> int:
    """Stop intake and wait for running work. The daemon stays up, drained, until --undo or its end."""
    if undo and (queue or timeout_ms is not None):
        raise click.UsageError("--undo takes no other flag.")
    answer = ask(session, lambda client: client.drain(queue=queue, timeout_ms=timeout_ms, undo=undo))
    if session.json:
        output.emit(answer)
    else:
        output.line(output.clean(answer["state"]))
    if not undo and answer["state"] != "drained":
        hint = "Intake stays stopped; wait again, or take events in again: eventd drain --undo"
        return say(session, EventdError("E-DRAINING", "work is still open", hint))
    return 0
