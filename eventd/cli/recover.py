"""`eventd redrive` and `eventd discard`: what to do with the dead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, query_of, say
from eventd.errors import EventdError
from eventd.model import Reason
from eventd.ports import Query

F = TypeVar("F", bound=Callable[..., Any])
_SHOWN = 20


def selection(verb: F) -> F:
    """INVOCATION... or --function, --trigger, --reason, --all; and --dry-run."""
    options = [
        click.argument("invocations", nargs=-1, metavar="[INVOCATION]..."),
        click.option("--function", metavar="F", help="All of this function."),
        click.option("--trigger", metavar="T", help="All of this trigger."),
        click.option("--reason", type=click.Choice(list(map(str, Reason))), help="All that died of this."),
        click.option("--all", "everything", is_flag=True, help="All there are."),
        click.option("--dry-run", is_flag=True, help="Only say which ones."),
    ]
    for option in reversed(options):
        verb = option(verb)
    return verb


@click.command(epilog="Example: eventd redrive --function hello --dry-run")
@selection
@click.pass_obj
def redrive(session: Session, /, dry_run: bool, **chosen: Any) -> int:
    """Run dead invocations again: same id, attempts from 0, current code."""
    query = _query(**chosen)
    answer = ask(session, lambda client: client.redrive(query, dry_run))
    return _tell(session, answer, "redriven", dry_run=dry_run)


@click.command(epilog="Example: eventd discard --reason quarantined --yes")
@selection
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def discard(session: Session, /, dry_run: bool, yes: bool, **chosen: Any) -> int:
    """Delete the payloads of dead invocations for good; the record of each death is kept."""
    query = _query(**chosen)
    if not (yes or dry_run) and not _confirmed(session, query):
        raise EventdError("E-CONFLICT", "nothing was discarded")
    answer = ask(session, lambda client: client.discard(query, dry_run))
    return _tell(session, answer, "discarded", dry_run=dry_run)


def _query(*, invocations: tuple[str, ...], function: str | None, trigger: str | None, reason: str | None, everything: bool) -> Query:
    kinds = any(value is not None for value in (function, trigger, reason))
    if not (invocations or kinds or everything):
        raise click.UsageError("Name invocations, or say --function, --trigger, --reason or --all.")
    if (bool(invocations) + kinds + everything) > 1:
        raise click.UsageError("Name invocations, or select with --function, --trigger and --reason, or say --all: one of the three.")
    return query_of(ids=invocations, function=function, trigger=trigger, reason=reason)


def _confirmed(session: Session, query: Query) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError(
            "Payloads would be deleted for good and there is no terminal to ask on: say --yes, or look first with --dry-run."
        )
    found = ask(session, lambda client: client.discard(query, True))["discarded"]
    if not found:
        return True
    return click.confirm(f"Delete the payloads of {found} dead invocation(s) for good?", err=True)


def _tell(session: Session, answer: dict[str, Any], done: str, *, dry_run: bool) -> int:
    if session.json:
        output.emit(answer)
    else:
        output.line(f"{answer[done]} {'would be ' if dry_run else ''}{done}")
        for invocation in answer["invocations"][:_SHOWN]:
            output.line(f"  {output.clean(invocation)}")
        if len(answer["invocations"]) > _SHOWN:
            output.line(f"  and {len(answer['invocations']) - _SHOWN} more")
    if not answer[done]:
        return say(session, EventdError("E-NOTFOUND", "no dead invocation is selected", "List them: eventd dead"))
    return 0
