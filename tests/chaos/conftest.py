"""Options and fixtures of the chaos tests: a seed that is printed, and the folder of shared helpers.

A run is repeated with ``pytest TEST --chaos-seed N``; without the option each run takes a seed of its own and prints
the line to repeat it.
"""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define --chaos-seed; known where the chaos tests are named on the command line, as in the printed line."""
    parser.addoption(
        "--chaos-seed", type=int, default=None, help="seed of a chaos run that is to be repeated"
    )


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Randomness of this run; its seed is printed with the line that repeats it."""
    given = request.config.getoption("--chaos-seed", default=None)
    seed = given if isinstance(given, int) else secrets.randbits(32)
    print(f"chaos seed {seed}; again: pytest '{request.node.nodeid}' --chaos-seed {seed}")
    yield random.Random(seed)
