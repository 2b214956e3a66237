"""What the tests of RoadRunner's cases share: a server with a web pool of case workers, and requests to it.

The pool of jobs beside it is small and honest: it shows that one pool's trouble is nobody else's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from http_server import Reply, free_port, request, take_answer
from live_server import PATIENCE, PHASE_WORKER, TESTS, Server, configuration, until_async
from marks import needs_php

#: The two kinds of worker, by name.
COMMANDS = {
    "php": ["php", f"{TESTS}/support/case_worker.php"],
    "python": [sys.executable, f"{TESTS}/support/case_worker.py"],
}
KINDS = [pytest.param("php", marks=needs_php), "python"]
#: Where it hardly matters which: the one always, the other in the long tier.
MOSTLY_PHP = [pytest.param("php", marks=needs_php), pytest.param("python", marks=pytest.mark.long)]
MOSTLY_PYTHON = ["python", pytest.param("php", marks=[*needs_php, pytest.mark.long])]
#: A client waits so long for an answer; where RoadRunner hangs there is none.
ANSWER_SECONDS = 5.0 * PATIENCE


def web_configuration(folder: Path, kind: str, workers: int = 2, **changes: Any) -> dict[str, Any]:
    """A web pool of case workers, which may not try a request again by itself, and a pool of one for jobs."""
    pool = {"command": COMMANDS[kind], "num_workers": workers, "stop_timeout": "2s", "boot_timeout": "10s"}
    config = configuration(folder, PHASE_WORKER, 1)
    config["http"] = {"address": f"127.0.0.1:{free_port()}", "retry": False, "pool": pool}
    for path, value in changes.items():
        section = config["http"]
        *parents, last = path.split("__")
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return config


def port_of(config: dict[str, Any]) -> int:
    """The port of the web server."""
    return int(config["http"]["address"].rpartition(":")[2])


async def ask(port: int, target: str = "/", method: str = "GET") -> Reply:
    """The answer to one request on a connection of its own. Raises AssertionError where there is none in time."""
    with trio.move_on_after(ANSWER_SECONDS):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request(target, method))
            received = b""
            while True:
                reply, _ = take_answer(received)
                if reply is not None:
                    return reply
                data = await stream.receive_some(1 << 20)
                assert data, (target, received[:200])
                received += data
    raise AssertionError(f"no answer to {target} within {ANSWER_SECONDS:g} s")


async def wait_pool(server: Server, name: str = "http", deaths: int = 0, seconds: float = 10.0) -> None:
    """Return when a pool has all its workers, and has seen `deaths` of them or more."""
    row: dict[str, Any] = {}

    async def whole() -> bool:
        nonlocal row
        row = await server.pool(name)
        complete = row["ready"] == row["configured"] and not row["booting"] and not row["leaving"]
        return bool(complete and row["phase"] == "ready" and row["deaths"] >= deaths)

    await until_async(
        whole, seconds * PATIENCE, lambda: f"pool {name} whole with {deaths} deaths: {row}; {server.tail()}"
    )


async def pids(server: Server, name: str = "http") -> set[int]:
    """Workers of a pool that are ready or busy."""
    answer = await server.call("informer.Workers", name)
    return {row["pid"] for row in answer["workers"] or [] if row["status"] in (1, 2)}


async def deaths(server: Server, pool: str = "http") -> list[dict[str, Any]]:
    """Records of the deaths of one pool's workers."""
    return [row for row in await server.call("trailboss.Deaths") if row["pool"] == pool]
