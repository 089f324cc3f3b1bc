"""`eventd runs`."""

from __future__ import annotations

from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, listing, more, query_of
from eventd.model import Outcome


@click.command(epilog="Example: eventd runs --function hello --outcome failed --since 1h")
@click.argument("run", required=False)
@listing
@click.option("--outcome", "outcomes", multiple=True, type=click.Choice(list(map(str, Outcome))), help="Only this outcome (repeatable).")
@click.option("--invocation", metavar="I", help="Only the runs of this invocation.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only this attempt.")
@click.pass_obj
def runs(session: Session, /, run: str | None, outcomes: tuple[str, ...], **flags: Any) -> int:
    """Show what ran, newest first, or the whole record of one RUN."""
    if run is not None:
        record = ask(session, lambda client: client.run(run))
        if session.json:
            output.emit(record)
        else:
            output.fields(list(record.items()))
        return 0
    query = query_of(outcomes=outcomes, **flags)
    answer = ask(session, lambda client: client.runs(query))
    if session.json:
        output.emit(answer)
        return 0
    output.table(
        ("STARTED", "FUNCTION", "OUTCOME", "DURATION", "INIT", "QUEUE", "MEMORY", "TRY", "TRIGGER", "RUN", "ERROR"),
        [_row(row) for row in answer["runs"]],
    )
    more(answer)
    return 0


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    error = ": ".join(str(part) for part in (row["error_type"], row["error_message"]) if part)
    memory = f"{row['max_memory_mb']}/{row['memory_mb']} MiB"
    return (
        row["started_at"],
        row["function"],
        row["outcome"],
        output.ms(row["duration_ms"]),
        output.ms(row["init_ms"]),
        output.ms(row["queue_ms"]),
        memory,
        row["attempt"],
        row["trigger"] or "-",
        row["run"],
        error[:120],
    )
