"""`eventd serve` and `eventd demo`: the verbs that are a daemon themselves."""

from __future__ import annotations

import os

import click

from eventd.cli.session import Session


@click.command(epilog="Example: eventd serve -c /srv/site/eventd.toml")
@click.option(
    "--log-format", type=click.Choice(["auto", "text", "json"]), default=None, help="Default: [daemon] log_format, which is auto: text."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default=None,
    help="Default: [daemon] log_level, which is info.",
)
@click.pass_obj
def serve(session: Session, log_format: str | None, log_level: str | None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; its log is on stderr.

    Ends 0 after a clean drain, 2 when the configuration is wrong, 4 when another daemon holds the state folder, 5 when
    storage failed. SIGHUP reloads.
    """
    from eventd.cli.serve import run_serve

    if session.socket:
        os.environ["EVENTD_SOCKET"] = session.socket
    return run_serve(session.config, log_format, log_level)


@click.command(epilog="Example: eventd demo --once")
@click.option("--dir", "directory", metavar="DIR", help="Where to set it up; kept afterwards. Default: a temporary folder.")
@click.option("--once", is_flag=True, help="Send the events, print the runs, and end: 0, or 1 if a run failed.")
@click.pass_obj
def demo(session: Session, directory: str | None, once: bool) -> int:
    """Start a real daemon with the shipped examples, send it real events, and show each run as it happens."""
    from eventd.cli.demo import run_demo

    return run_demo(directory, once, session.json)
