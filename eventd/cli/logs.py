"""`eventd logs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from eventd.cli import output
from eventd.cli.session import Session, When, ask, query_of

if TYPE_CHECKING:
    from eventd.control.client import ControlClient

POLL_SECONDS = 0.3
PAGE = 10_000


@click.command(epilog="Example: eventd logs hello -f")
@click.argument("function", required=False)
@click.option("--run", metavar="RUN", help="Only what this run printed.")
@click.option("-n", "lines", type=click.IntRange(0, PAGE), default=100, show_default=True, metavar="N", help="The last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines as they come.")
@click.option("--since", type=When(), metavar="T", help="From then on: a duration back from now (15m) or an RFC 3339 time.")
@click.pass_obj
def logs(session: Session, function: str | None, run: str | None, lines: int, follow: bool, since: int | None) -> int:
    """Show what functions printed, oldest first. With --json: one object a line."""
    query = query_of(function=function, since=since)

    async def show(client: ControlClient) -> None:
        import anyio
        from msgspec.structs import replace

        answer = await client.logs(query, lines, run)
        _print(session, answer["lines"])
        while follow:
            await anyio.sleep(POLL_SECONDS)
            answer = await client.logs(replace(query, cursor=answer["cursor"]), PAGE, run)
            _print(session, answer["lines"])

    ask(session, show)
    return 0


def _print(session: Session, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    if session.json:
        import msgspec

        output.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return
    # In a pipe the line is passed on as it was printed; a terminal could be made to do things by it.
    shown = output.clean if sys.stdout.isatty() else str
    text = "".join(f"{row['time']} {row['function']} {row['stream']:<6} {shown(row['line'])}\n" for row in rows)
    output.write(text.encode("utf-8", "backslashreplace"))
