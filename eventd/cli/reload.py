"""`eventd reload`."""

from __future__ import annotations

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, note, sentence
from eventd.model import Problem


@click.command(epilog="Example: eventd reload")
@click.pass_obj
def reload(session: Session) -> int:
    """Read the configuration and the handlers again: all of it is applied, or none.

    Exit code 2 when it was rejected; the problems are on stderr and the daemon goes on with what it had.
    """
    answer = ask(session, lambda client: client.reload())
    if session.json:
        output.emit(answer)
        return 0 if answer["applied"] else 2
    for problem in answer["problems"]:
        note(
            str(
                Problem(
                    **{key: problem[key] for key in Problem.__struct_fields__ if key in problem} | {"message": sentence(problem["message"])}
                )
            )
        )
    for change in answer["changes"]:
        if change["action"] != "keep":
            output.line(output.clean(f"{change['action']} {change['kind']} {change['name']}"))
    output.line("applied" if answer["applied"] else "rejected: the daemon goes on with the configuration it had")
    return 0 if answer["applied"] else 2
