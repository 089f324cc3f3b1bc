"""What all verbs share: the options that stand before or after the verb, the daemon's socket, listings, errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from eventd.errors import EventdError

if TYPE_CHECKING:
    from eventd.control.client import ControlClient
    from eventd.ports import Query

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One command line's shared options. `config` and `socket` are what was asked for, the environment included."""

    config: str | None = None
    socket: str | None = None
    json: bool = False


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Later ones win, but what was said always wins over the environment."""
    session, name = ctx.find_object(Session), str(param.name)
    if session is None or value in (None, False):
        return
    if getattr(session, name) and ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
        return
    setattr(session, name, value)


def shared_options() -> list[click.Option]:
    """`-c`, `--socket` and `--json`; what stands after the verb wins over what stands before it."""
    return [
        click.Option(
            ["-c", "--config"],
            metavar="FILE",
            envvar="EVENTD_CONFIG",
            expose_value=False,
            callback=_keep,
            help="Default: $EVENTD_CONFIG, ./eventd.toml, /etc/eventd/eventd.toml.",
        ),
        click.Option(
            ["--socket"],
            metavar="PATH",
            envvar="EVENTD_SOCKET",
            expose_value=False,
            callback=_keep,
            help="The daemon's control socket. Default: $EVENTD_SOCKET, then as the configuration says.",
        ),
        click.Option(["--json"], is_flag=True, expose_value=False, callback=_keep, help="The result as JSON; errors as JSON on stderr."),
    ]


def say(session: Session, error: EventdError) -> int:
    """Write an error to stderr in the form that was asked for; its exit code."""
    from eventd.cli.output import clean

    if session.json:
        import json

        text = json.dumps(error.as_json(), ensure_ascii=False, separators=(",", ":"))
    else:
        text = clean(f"{error.code} {sentence(error.message)} {error.hint}".rstrip())
    sys.stdout.flush()
    click.echo(text.encode("utf-8", "backslashreplace").decode(), err=True)
    return error.exit


def sentence(text: str) -> str:
    """`text` with its full stop, so that a hint may follow."""
    return text if text.endswith((".", "!", "?", ":")) else text + "."


def note(text: str) -> None:
    """A word to the person beside the result: stderr."""
    from eventd.cli.output import clean

    click.echo(clean(text), err=True)


# --- the daemon ---


def socket_of(session: Session) -> str:
    """Where the daemon answers: as asked for, else as the configuration says, else the usual places (surface.md, section 1)."""
    if session.socket:
        return session.socket
    from eventd.settings.locate import find_config, peek

    return peek(find_config(session.config)).socket


def ask(session: Session, work: Callable[[ControlClient], Awaitable[T]]) -> T:
    """Do `work` with the daemon's client. Raises EventdError, E-NODAEMON when nobody answers."""
    import anyio

    from eventd.control.client import ControlClient

    path = socket_of(session)

    async def talk() -> T:
        async with ControlClient(path) as client:
            return await work(client)

    return anyio.run(talk)


# --- listings ---


class When(click.ParamType[int]):
    """Epoch milliseconds of a duration back from now, or of an RFC 3339 time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from eventd.control.query import parse_when

        try:
            return parse_when(value, time.time_ns() // 1_000_000)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Span(click.ParamType[int]):
    """Milliseconds of a duration such as 30s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from eventd.settings.fields import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


def listing(verb: F) -> F:
    """The flags of every list: --limit, --cursor, --since, --until, --function, --trigger."""
    options = [
        click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most N rows."),
        click.option("--cursor", metavar="C", help="Go on where an earlier page ended."),
        click.option("--since", type=When(), metavar="T", help="From then on: a duration back from now (15m) or an RFC 3339 time."),
        click.option("--until", type=When(), metavar="T", help="Up to then."),
        click.option("--function", metavar="F", help="Only this function."),
        click.option("--trigger", metavar="T", help="Only this trigger."),
    ]
    for option in reversed(options):
        verb = option(verb)
    return verb


def query_of(**values: Any) -> Query:
    """A Query of what was given; None and empty ones are left at their defaults."""
    from eventd.ports import Query

    if values.get("since") is not None and values.get("until") is not None and values["since"] > values["until"]:
        raise click.UsageError("--since is later than --until.")
    return Query(**{key: value for key, value in values.items() if value is not None})


def more(answer: dict[str, Any]) -> None:
    """Say on stderr how to get the next page, if there is one."""
    if answer.get("next"):
        note(f"There is more: --cursor {answer['next']}")
