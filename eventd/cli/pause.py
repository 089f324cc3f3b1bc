"""`eventd pause` and `eventd resume`."""

from __future__ import annotations

import click

from eventd.cli import output
from eventd.cli.session import Session, ask


def _target(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, str]:
    kind, _, name = value.partition(":")
    if kind not in ("function", "trigger", "binding") or not name:
        raise click.BadParameter(f"{value!r} is not function:NAME, trigger:NAME or binding:NAME.")
    return kind, name


@click.command(epilog="Example: eventd pause function:hello")
@click.argument("target", metavar="function:F|trigger:T|binding:B", callback=_target)
@click.pass_obj
def pause(session: Session, target: tuple[str, str]) -> int:
    """Hold a function, trigger or binding, across restarts too.

    A paused trigger reads nothing from its source; events of a paused function or binding are accepted and held.
    """
    answer = ask(session, lambda client: client.pause(*target))
    if session.json:
        output.emit(answer)
    else:
        output.line(f"{target[0]} {output.clean(target[1])} is paused")
    return 0


@click.command(epilog="Example: eventd resume function:hello")
@click.argument("target", metavar="function:F|trigger:T|binding:B", callback=_target)
@click.pass_obj
def resume(session: Session, target: tuple[str, str]) -> int:
    """Let a paused function, trigger or binding go on; what was held runs now."""
    answer = ask(session, lambda client: client.resume(*target))
    if session.json:
        output.emit(answer)
    else:
        output.line(f"{target[0]} {output.clean(target[1])} goes on")
    return 0
