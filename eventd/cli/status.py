"""`eventd status`."""

from __future__ import annotations

from typing import Any

import click

from eventd.cli import output
from eventd.cli.session import Session, ask, say, sentence
from eventd.errors import EventdError


@click.command(epilog="Example: until eventd status >/dev/null 2>&1; do sleep 0.1; done")
@click.pass_obj
def status(session: Session) -> int:
    """Show how the daemon, its functions and its triggers stand.

    Exit code 0 once every trigger is open or degraded, 3 while the daemon is still starting or when none answers.
    """
    answer = ask(session, lambda client: client.status())
    if session.json:
        output.emit(answer)
    else:
        _show(answer)
    if answer["state"] == "starting":
        return say(session, EventdError("E-STARTING", "the daemon is still starting", "Ask again in a moment."))
    return 0


def _show(answer: dict[str, Any]) -> None:
    config, journal = answer["config"], answer["journal"]
    output.line(f"eventd {answer['version']}: {answer['state']}, pid {answer['pid']}, since {answer['started_at']}")
    output.line(output.clean(f"config {config['file']}, loaded {config['loaded_at']}" + ("" if config["ok"] else ", NOT the one on disk:")))
    for problem in config["problems"]:
        output.line(f"  {_problem(problem)}")
    used = f"{output.size(journal['bytes'])} of {output.size(journal['limit'])}"
    counts = f"open {journal['open']}, dead {journal['dead']}, owed {journal['owed']}"
    output.line(f"running {answer['running']} of {answer['concurrency']}, {counts}, journal {used}")
    functions, triggers, bindings = answer["functions"], answer["triggers"], answer["bindings"]
    if functions:
        output.line()
        output.table(
            ("FUNCTION", "STATE", "RUNTIME", "VERSION", "RUNNING", "WAITING", "WORKERS", "DEAD"),
            [
                (
                    row["function"],
                    row["state"],
                    row["runtime"],
                    row["version"],
                    f"{row['running']}/{row['concurrency']}",
                    row["waiting"],
                    row["workers"],
                    row["dead"],
                )
                for row in functions
            ],
        )
    if triggers:
        output.line()
        output.table(
            ("TRIGGER", "STATE", "TYPE", "ACCEPTED", "FUNCTIONS"),
            [(row["trigger"], row["state"], row["type"], row["accepted"], _bound(row["trigger"], bindings)) for row in triggers],
        )
    said = [(f"function {row['function']}", row) for row in functions] + [(f"trigger {row['trigger']}", row) for row in triggers]
    told = [f"{name}: {output.clean(row[key])}" for name, row in said for key in ("error", "advice") if row.get(key)]
    if told:
        output.line()
        for text in told:
            output.line(text)


def _bound(trigger: str, bindings: list[dict[str, Any]]) -> str:
    names = [row["function"] + ("" if row["state"] == "ready" else f" ({row['state']})") for row in bindings if row["trigger"] == trigger]
    return ", ".join(names) or "-"


def _problem(problem: dict[str, Any]) -> str:
    place = f"{problem['file']}:{problem['line']}" if problem.get("line") else str(problem.get("file", ""))
    return output.clean(
        f"{problem['code']} {place} {problem.get('path', '')}: {sentence(problem['message'])} {problem.get('hint', '')}".rstrip()
    )
