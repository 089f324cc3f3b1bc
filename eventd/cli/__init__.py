"""The `eventd` command. Nothing is imported until the verb is known, so that help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code (surface.md, section 1)."""
    from eventd.cli.app import run

    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))
