"""Settings for the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# Deterministic: the same examples in every run. A longer search is a command of its own: HYPOTHESIS_PROFILE=search tests/run tests/...
settings.register_profile("suite", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
