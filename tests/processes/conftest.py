"""The seed of chaos runs, and the folder of helpers that chaos and process tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

import chaos_seed  # noqa: E402  the line above makes it findable

chaos = chaos_seed.chaos


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define --chaos-seed."""
    chaos_seed.add_option(parser)
