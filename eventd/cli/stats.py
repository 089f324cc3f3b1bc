"""`eventd stats`."""

from __future__ import annotations

from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, When, ask, query_of


@click.command(epilog="Example: eventd stats --since 7d --price")
@click.option("--function", metavar="F", help="Only this function.")
@click.option(
    "--since", type=When(), default="24h", show_default=True, metavar="T", help="From then on: a duration back from now, or RFC 3339."
)
@click.option("--price", is_flag=True, help="What Lambda would have asked for it (us-east-1, x86, without the free tier).")
@click.pass_obj
def stats(session: Session, function: str | None, since: int, price: bool) -> int:
    """Show runs, errors, durations and memory time per function."""
    query = query_of(function=function, since=since)
    answer = ask(session, lambda client: client.stats(query, price))
    if session.json:
        output.emit(answer)
        return 0
    headers = [
        "FUNCTION",
        "RUNS",
        "ERRORS",
        "P50",
        "P95",
        "P99",
        "MAX",
        "QUEUE P95",
        "COLD",
        "INIT P95",
        "THROTTLED",
        "OPEN",
        "DEAD",
        "GB-S",
    ]
    output.table(headers + (["USD"] if price else []), [_row(row, price=price) for row in answer["functions"]])
    return 0


def _row(row: dict[str, Any], *, price: bool) -> list[object]:
    duration = row["duration_ms"] or {}
    cells: list[object] = [row["function"], row["runs"], f"{(row['error_rate'] or 0) * 100:.1f} %"]
    cells += [output.ms(duration.get(key)) for key in ("p50", "p95", "p99", "max")]
    cells += [output.ms((row["queue_ms"] or {}).get("p95")), row["cold"], output.ms((row["init_ms"] or {}).get("p95"))]
    cells += [row["throttled"], row["open"], row["dead"], f"{row['gb_seconds']:.3f}"]
    return cells + ([f"{row.get('price_usd') or 0:.6f}"] if price else [])
