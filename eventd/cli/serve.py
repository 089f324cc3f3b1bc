"""`eventd serve`: the daemon in the foreground."""

from __future__ import annotations

from eventd.settings.locate import require_config


def run_serve(config: str | None, log_format: str | None, log_level: str | None) -> int:
    """Run until SIGTERM or SIGINT; the exit status of surface.md section 1. Raises EventdError(E-CONFIG) without a file."""
    from eventd.daemon.app import main

    return main(require_config(config), log_format=log_format, log_level=log_level)
