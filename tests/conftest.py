"""What holds for every test: Hypothesis draws the same examples in continuous integration, new ones everywhere else."""

from __future__ import annotations

import os

from hypothesis import settings

# A new example that fails belongs to whoever can look at it, not to the next unrelated change.
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("here", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
