"""`eventd new`: an example handler in the handlers folder."""

from __future__ import annotations

import os
from typing import Final

import click

from eventd.cli import output
from eventd.cli.init import write_file
from eventd.cli.session import Session, note
from eventd.errors import EventdError

PYTHON: Final = '''\
"""@NAME@: say here what it is for."""

import json


def handler(event, context):
    """Called once for each event, as on AWS Lambda. Raise to fail; the event is then tried again."""
    print("event", json.dumps(event))
    return {"ok": True, "request": context.aws_request_id}
'''
NODE: Final = """\
// @NAME@: say here what it is for.

exports.handler = async (event, context) => {
  // Called once for each event, as on AWS Lambda. Throw to fail; the event is then tried again.
  console.log('event', JSON.stringify(event));
  return { ok: true, request: context.awsRequestId };
};
"""
EXEC: Final = """\
#!/bin/sh
# @NAME@: say here what it is for.
# The event comes on stdin as JSON. stdout is the result, stderr is log, an exit status other than 0 is a failure.
set -eu

event=$(cat)
echo "event $event" >&2
echo '{"ok": true}'
"""
PROVIDED: Final = """\
#!/bin/sh
# @NAME@: say here what it is for.
# Started once and kept: it asks the AWS Lambda Runtime API for events, one by one, and posts each result back.
set -eu

api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
headers=$(mktemp)

while true; do
  event=$(curl -sS -D "$headers" "$api/next")
  request=$(sed -n 's/^lambda-runtime-aws-request-id: *//Ip' "$headers" | tr -d '\\r\\n')
  echo "event $event" >&2
  curl -sS -o /dev/null -X POST -H 'Content-Type: application/json' -d '{"ok": true}' "$api/$request/response"
done
"""
RUNTIMES: Final = {"python": PYTHON, "node": NODE, "exec": EXEC, "provided": PROVIDED}


@click.command(epilog="Example: eventd new thumbnail --runtime node")
@click.argument("name")
@click.option("--runtime", type=click.Choice(list(RUNTIMES)), default="python", show_default=True, help="What it is written in.")
@click.pass_obj
def new(session: Session, name: str, runtime: str) -> int:
    """Write an example handler called NAME into the handlers folder. Never overwrites."""
    return run_new(session.config, name, runtime)


def run_new(config: str | None, name: str, runtime: str) -> int:
    """Write the handler and print its file name; 0. `config` None: the configuration in its usual places.

    Raises EventdError: E-NAME for a name that no function can have, E-EXISTS when something claims it already,
    E-CONFIG when there is no configuration, E-USAGE when the folder cannot be written to.
    """
    from eventd.settings.load import peek, require_config
    from eventd.settings.values import NAME, NAME_RULE

    if runtime not in RUNTIMES:
        raise EventdError("E-USAGE", f"there is no runtime {runtime!r}.", f"Choose one of {', '.join(RUNTIMES)}.")
    if not NAME.fullmatch(name) or name.startswith("_"):
        raise EventdError("E-NAME", f"{name!r} cannot be the name of a function.", NAME_RULE + " It does not begin with '_'.")
    folder = os.path.relpath(peek(require_config(config)).handlers)
    text = RUNTIMES[runtime].replace("@NAME@", name)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        for taken in sorted(os.listdir(folder)):
            if name in (taken, os.path.splitext(taken)[0]):
                raise EventdError("E-EXISTS", f"{os.path.join(folder, taken)} already exists.", "Nothing was written. Choose another name.")
        path = _write(folder, name, runtime, text)
    except FileExistsError as error:
        raise EventdError("E-EXISTS", f"{error.filename} already exists.", "Nothing was written. Choose another name.") from None
    except OSError as error:
        raise EventdError(
            "E-USAGE", f"{folder} cannot be written to: {error}.", "Mend its permissions, or change [daemon] handlers."
        ) from None
    output.line(output.clean(path))
    if runtime == "provided":
        note("The runtime 'provided' is not built yet; until it is, the function is shown as broken.")
    else:
        note(f"Try it, once the daemon has loaded it: eventd invoke {name}")
    return 0


def _write(folder: str, name: str, runtime: str, text: str) -> str:
    if runtime == "provided":
        # the whole folder appears at once
        temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
        os.mkdir(temporary, 0o755)
        write_file(os.path.join(temporary, "bootstrap"), text, mode=0o755)
        path = os.path.join(folder, name)
        os.rename(temporary, path)
        return os.path.join(path, "bootstrap")
    path = os.path.join(folder, name + {"python": ".py", "node": ".js", "exec": ".sh"}[runtime])
    write_file(path, text, mode=0o755 if runtime == "exec" else 0o644)
    return path
