"""The verbs, found by name and imported one at a time; and the one place where errors become words and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from eventd import __version__
from eventd.cli.session import Session, say, shared_options
from eventd.errors import EventdError

VERBS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("eventd.cli.start:serve", "Run the daemon in the foreground."),
    "check": ("eventd.cli.check:check", "Check the configuration without a daemon."),
    "init": ("eventd.cli.init:init", "Write a first configuration and handler."),
    "new": ("eventd.cli.new:new", "Write an example handler."),
    "demo": ("eventd.cli.start:demo", "Show it all, in a temporary folder."),
    "status": ("eventd.cli.status:status", "How the daemon, its functions and triggers stand."),
    "invoke": ("eventd.cli.invoke:invoke", "Call a function and print its result."),
    "runs": ("eventd.cli.runs:runs", "What ran, newest first."),
    "logs": ("eventd.cli.logs:logs", "What functions printed."),
    "events": ("eventd.cli.events:events", "Accepted events and their invocations."),
    "dead": ("eventd.cli.dead:dead", "Invocations that ended without success."),
    "redrive": ("eventd.cli.recover:redrive", "Run dead invocations again."),
    "discard": ("eventd.cli.recover:discard", "Give up the payloads of dead invocations."),
    "cancel": ("eventd.cli.cancel:cancel", "End invocations that are not settled."),
    "pause": ("eventd.cli.pause:pause", "Hold a function, trigger or binding."),
    "resume": ("eventd.cli.pause:resume", "Let a paused one go on."),
    "stats": ("eventd.cli.stats:stats", "Runs, errors and durations per function."),
    "reload": ("eventd.cli.reload:reload", "Read configuration and handlers again."),
    "drain": ("eventd.cli.drain:drain", "Stop intake and wait for running work."),
}
INTERRUPTED: Final = 130


class SeenEnough(Exception):
    """Who reads our output has closed it."""


class Verbs(click.Group):
    """Commands that are imported when they are used. Each takes the shared options, whoever wrote it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would end with 1
            raise SeenEnough from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = VERBS.get(cmd_name)
        if found is None:
            return None
        module, _, name = found[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        taken = {option for param in command.params for option in param.opts}
        command.params += [option for option in shared_options() if not taken & set(option.opts)]
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], list(VERBS), 1)
            ctx.fail(f"there is no verb {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else " See: eventd --help"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


def program() -> click.Group:
    return Verbs(
        "eventd",
        params=[
            *shared_options(),
            click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."),
        ],
        help="AWS Lambda's programming model on a machine you own: drop a handler into a folder, bind it to a trigger.",
        epilog="Try: eventd demo. Every verb explains itself: eventd VERB --help",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        no_args_is_help=True,
    )


def run(argv: Sequence[str]) -> int:
    """Carry out one command line; the exit code. Results are on stdout, everything else on stderr."""
    session = Session(json="--json" in argv)
    try:
        code = program().main(list(argv), prog_name="eventd", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = f" See: {error.ctx.command_path} --help" if error.ctx else ""
        return say(session, EventdError("E-USAGE", error.format_message(), where.strip()))
    except click.ClickException as error:
        return say(session, EventdError("E-USAGE", error.format_message()))
    except EventdError as error:
        return say(session, error)
    except (BrokenPipeError, SeenEnough):
        # Who read us has seen enough (head, less): the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        click.echo(f"eventd {__version__}")
        ctx.exit(0)
