"""`eventd init`: a first configuration with a first handler."""

from __future__ import annotations

import os
import shlex

import click

from eventd.cli import output
from eventd.cli.session import note
from eventd.errors import EventdError

CONFIG = """\
# eventd: events in, runs out. Every option with its default: eventd check --schema,
# or config/eventd.toml in eventd's source. After a change the running daemon reloads by itself.

[daemon]
# A file dropped into this folder is a function of that name: hello.py is "hello".
handlers = "handlers"
# concurrency = 64            # runs at once, over all functions

[http]
# Webhooks and function URLs. Put a reverse proxy in front of it for TLS.
listen = ["127.0.0.1:8080"]

# What differs from the defaults. A function needs no table here.
# [functions.hello]
# timeout = "30s"
# memory = "256MiB"
# environment = { GREETING = "Hello" }

# Try it: curl http://127.0.0.1:8080/hello?name=you
[triggers.hello]
type = "webhook"
path = "/hello"
function = "hello"

# Run it for every file that appears in a folder.
# [triggers.uploads]
# type = "directory"
# path = "/srv/uploads"
# include = ["*.jpg"]
# function = "hello"

# Run it every night.
# [triggers.nightly]
# type = "schedule"
# schedule = "0 3 * * *"
# timezone = "Europe/Berlin"
# function = "hello"

# More files like this one can stand in conf.d/*.toml; they are read in the order of their names.
"""

HELLO = '''\
"""A first function. Handlers written for AWS Lambda work as they are."""

import os


def handler(event, context):
    """`event` is what happened, `context` says which run this is. What you return is the answer."""
    query = event.get("queryStringParameters") or event  # over HTTP, or from `eventd invoke hello -d '{"name": "Ada"}'`
    print("request", context.aws_request_id)
    return {"message": f"{os.environ.get('GREETING', 'Hello')}, {query.get('name', 'world')}!"}
'''


@click.command(epilog="Example: eventd init site")
@click.argument("directory", metavar="[DIR]", default=".")
@click.option("--force", is_flag=True, help="Overwrite eventd.toml and handlers/hello.py.")
def init(directory: str, force: bool) -> int:
    """Write eventd.toml, conf.d/ and handlers/hello.py into DIR (here, by default). Refuses to overwrite."""
    return run_init(directory, force)


def run_init(directory: str, force: bool) -> int:
    """Write the files and print their names; 0. Raises EventdError: E-EXISTS when one is there already, E-USAGE when it cannot write."""
    files = {os.path.join(directory, "eventd.toml"): CONFIG, os.path.join(directory, "handlers", "hello.py"): HELLO}
    there = [path for path in files if os.path.lexists(path)]
    if there and not force:
        raise EventdError(
            "E-EXISTS",
            f"{' and '.join(there)} already exist{'s' if len(there) == 1 else ''}.",
            "Nothing was written. Overwrite with --force.",
        )
    try:
        for folder in ("conf.d", "handlers"):
            os.makedirs(os.path.join(directory, folder), mode=0o755, exist_ok=True)
        for path, text in files.items():
            write_file(path, text, replace=force)
    except FileExistsError as error:
        raise EventdError("E-EXISTS", f"{error.filename} already exists and is not what belongs there.", "Choose another folder.") from None
    except (OSError, ValueError) as error:
        raise EventdError("E-USAGE", f"{directory} cannot be written to: {error}.", "Choose another folder.") from None
    for path in files:
        output.line(output.clean(path))
    note(f"Start it: eventd serve -c {shlex.quote(os.path.join(directory, 'eventd.toml'))}")
    return 0


def write_file(path: str, text: str, *, replace: bool = False, mode: int = 0o644) -> None:
    """Write a whole file so that who watches the folder never sees half of it. Without `replace`, FileExistsError if it is there.

    The name is never taken from another file; the permissions are `mode` less the umask. Raises OSError.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _link(temporary: str, path: str) -> None:
    """Give the file its name unless that is taken: link(2) fails then, rename(2) would not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(17, "file exists", path) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(17, "file exists", path) from None
        os.rename(temporary, path)
