"""The seed of a chaos run: given by --chaos-seed, else drawn; printed with the line that repeats the run."""

from __future__ import annotations

import random
import secrets

import pytest


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of this run; its seed is printed with the line that repeats it."""
    given = request.config.getoption("--chaos-seed", default=None)
    seed = given if isinstance(given, int) else secrets.randbits(32)
    print(f"chaos seed {seed}; again: pytest '{request.node.nodeid}' --chaos-seed {seed}")
    return random.Random(seed)


def add_option(parser: pytest.Parser) -> None:
    """Define --chaos-seed, once: it is known where such tests are named on the command line, as in the printed line."""
    try:
        parser.addoption("--chaos-seed", type=int, default=None, help="seed of a chaos run to be repeated")
    except ValueError:  # the other folder of such tests has defined it
        return
