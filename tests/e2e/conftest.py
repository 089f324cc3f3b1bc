"""The fixture `site`: a folder and a daemon of the test's own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    if site.process is not None and site.process.poll() is None:
        site.process.send_signal(signal.SIGTERM)
        try:
            site.process.wait(20)
        except subprocess.TimeoutExpired:
            site.process.kill()
            site.process.wait()
