"""Cases that RoadRunner fails, part 1: what a worker does over a request, and what its client gets.

Each test is one case from the outside: a real server, real workers, a client that counts. `serving` holds it to the rest:
every pool whole, books balanced, no descriptor gained, no traceback, no process left. See also
test_roadrunner_cases_life.py.
"""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from case_kit import KINDS, ask, deaths, pids, port_of, wait_pool, web_configuration
from live_server import PATIENCE, children_of, marked, seen, serving, until

pytestmark = pytest.mark.timeout(180)

SIZES = (0, 1, 11, 12, 100, 4096, 65_535, 65_536, 65_537, 200_000, 1 << 20)


@pytest.mark.parametrize("kind", KINDS)
async def test_case_reply_then_exit_of_every_size(kind: str, tmp_path: Path) -> None:
    """A reply of 0 B to 1 MiB whose worker ends behind it arrives whole; RoadRunner loses 3 to 5 % of them with the pipe."""
    await run_leaving(kind, tmp_path, 2)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_case_reply_then_exit_many_times(kind: str, tmp_path: Path) -> None:
    """The same 50 times each size."""
    await run_leaving(kind, tmp_path, 50)


async def run_leaving(kind: str, folder: Path, rounds: int) -> None:
    config = web_configuration(folder, kind, 4)
    port = port_of(config)
    count = 0
    with trio.fail_after((20 + 2 * rounds * len(SIZES)) * PATIENCE):
        async with serving(folder, config) as server:
            for number in range(rounds):
                for size in SIZES:
                    how = ("0", "255", "kill")[(number + count) % 3]
                    reply = await ask(port, f"/leave?n={size}&how={how}")
                    assert (200, size, b"x" * size) == (reply.status, len(reply.body), reply.body), (size, how)
                    count += 1
            await wait_pool(server)
            pool = await server.pool("http")
            assert count == pool["deaths"]
