"""`eventd cancel`."""

from __future__ import annotations

import click

from eventd.cli import output
from eventd.cli.session import Session, ask


@click.command(epilog="Example: eventd cancel 0198c1a2-7d31-7c44-9a39-2f0f3f7c2b11")
@click.argument("invocations", nargs=-1, required=True, metavar="INVOCATION...")
@click.pass_obj
def cancel(session: Session, invocations: tuple[str, ...]) -> int:
    """End invocations: a waiting or retrying one at once, a running one by stopping its run. No retry follows."""
    answer = ask(session, lambda client: client.cancel(invocations))
    if session.json:
        output.emit(answer)
    else:
        output.line(f"{len(answer.get('invocations', invocations))} cancelled")
    return 0
