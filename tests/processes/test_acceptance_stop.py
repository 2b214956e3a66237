"""SIGTERM: under load, in every phase of the start, and twice.

What the log says of the books when the last word is spoken, what the ledger of the workers says, and in which order the
plugins stopped.
"""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from live_server import (
    PATIENCE,
    PHP_WORKER,
    PYTHON_WORKER,
    TESTS,
    CallFailed,
    Client,
    ConnectionGone,
    NotifySocket,
    Server,
    configuration,
    install_plugins,
    push_argument,
    serving,
    until,
)
from marks import needs_php

pytestmark = pytest.mark.timeout(180)

PLUGINS = (TESTS / "support" / "chaos_plugins.py").read_text()
SDKS = [pytest.param(PHP_WORKER, id="php", marks=needs_php), pytest.param(PYTHON_WORKER, id="python")]


def plugins_in(server: Server, message: str) -> list[str]:
    """Plugins of the log lines with that text, in order."""
    return [row["plugin"] for row in server.log() if row["msg"] == message]


def assert_reverse_order(server: Server) -> None:
    """What needed others was stopped before them: the order of the stop is the order of the start, backwards."""
    stopped = plugins_in(server, "plugin stopped")
    assert sorted(plugins_in(server, "plugin starting")) == sorted(stopped)
    place = {name: stopped.index(name) for name in stopped}
    log = [row["msg"] for row in server.log()]
    assert place["jobs"] < place["rpc"] < place["server"] < place["core"]
    assert (
        log.index("drained")
        < log.index("pool stopped")
        < log.index("gate closed")
        < log.index("server stopped")
    )
    assert log[-1] == "server stopped"


async def last_books(server: Server, found: list[dict[str, Any]]) -> None:
    """Ask for the books, on a connection that is there already, until the server closes it."""
    client = await Client.connect(server.path)
    try:
        while True:
            found.append(await client.call("jobs.Books"))
            await trio.sleep(0.002)
    except (ConnectionGone, CallFailed):
        return
    finally:
        client.close()


@pytest.mark.parametrize("command", SDKS)
async def test_stop_under_load(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """Five stops at a random moment of a load: what was started is done or back in its queue, the order is right, exit code 0."""
    await run_stops(command, tmp_path, chaos, 5)


@pytest.mark.long
@pytest.mark.parametrize("command", SDKS)
async def test_many_stops_under_load(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """The same 50 times."""
    await run_stops(command, tmp_path, chaos, 50)


async def run_stops(command: str, tmp_path: Path, chaos: random.Random, rounds: int) -> None:
    with trio.fail_after((20 + 4 * rounds) * PATIENCE):
        for number in range(rounds):
            folder = tmp_path / str(number)
            folder.mkdir()
            config = configuration(folder, command, 3)
            books: list[dict[str, Any]] = []
            pushed: list[str] = []
            async with serving(folder, config, check=False) as server:

                async def feed(server: Server = server, pushed: list[str] = pushed) -> None:
                    client = await Client.connect(server.path)
                    try:
                        while True:
                            job = f"job-{len(pushed)}"
                            argument = push_argument("work", "sleep", job, {"ms": chaos.randrange(60)})
                            await client.call("jobs.Push", argument)
                            pushed.append(job)
                            await trio.sleep(0.005)
                    except (ConnectionGone, CallFailed):
                        return
                    finally:
                        client.close()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(feed)
                    nursery.start_soon(last_books, server, books)
                    await until(lambda server=server: server.ledger(), 5 * PATIENCE, "load")  # type: ignore[misc]
                    await trio.sleep(0.5 * chaos.random())
                    server.note_children()
                    assert await server.stop() == 0
                total = books[-1]["total"]
                assert books[-1]["balanced"] is True
                assert total["running"] == 0
                assert total["dead"] == 0
                assert total["pushed"] == total["done"] + total["waiting"]
                runs = Counter(row["id"] for row in server.ledger())
                # Every job that a worker has begun is done: nothing was cut off, nothing ran twice.
                assert (total["done"], {1}) == (runs.total(), set(runs.values()))
                assert (
                    abs(total["pushed"] - len(pushed)) <= 2
                )  # pushes after the last look, or without their answer
                assert_reverse_order(server)


@pytest.mark.parametrize("command", SDKS)
async def test_a_job_longer_than_the_grace_goes_back(command: str, tmp_path: Path) -> None:
    """A job that does not end in time goes back to its queue, is named in the log, and the stop keeps to its grace."""
    config = configuration(tmp_path, command, 2)
    config["endure"]["grace_period"] = "1s"
    books: list[dict[str, Any]] = []
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, check=False) as server:
            await server.push("sleep", "long", {"ms": 20_000})
            await server.push("sleep", "short", {"ms": 300})
            await until(lambda: len(server.ledger()) == 2, 5 * PATIENCE, "both jobs begun")
            server.note_children()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(last_books, server, books)
                assert await server.stop(5 * PATIENCE) == 0
            assert trio.current_time() - began <= 2.2 * PATIENCE
            returned = [row for row in server.log() if row["msg"].startswith("job did not finish in time")]
            assert [row["id"] for row in returned] == ["long"]
            total = books[-1]["total"]
            assert (total["pushed"], total["done"], total["waiting"], total["running"]) == (2, 1, 1, 0)


async def wait_log(server: Server, message: str) -> None:
    """Return when the log has a line with that text."""
    await until(lambda: message in server.log_texts(), 10 * PATIENCE, f"{message!r} in the log", 0.002)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("phase", ["server starting", "gate closed", "on_init", "pool", "draining"])
async def test_stop_in_every_phase(phase: str, twice: bool, tmp_path: Path) -> None:
    """SIGTERM in a phase that would never end stops in order; the second one stops at once. Nothing is left."""
    never = tmp_path / "never"
    go = tmp_path / "go"
    if phase != "pool":
        go.touch()
    env = install_plugins(tmp_path, PLUGINS, slow="slow")
    if phase in ("gate closed", "server starting"):
        env["CHAOS_SLOW_UNTIL"] = str(never)
    worker = f"{sys.executable} {TESTS}/support/waiting_worker.py"
    if phase == "draining":
        worker = PYTHON_WORKER
    config = configuration(tmp_path, worker, 2)
    config["server"]["env"]["GO"] = str(go)
    config["endure"]["grace_period"] = "6s"
    if phase == "on_init":
        (tmp_path / "on_init.sh").write_text("trap '' TERM; setsid sleep 600 & sleep 600")
        config["server"]["on_init"] = {"command": f"sh {tmp_path}/on_init.sh", "exec_timeout": "600s"}
    wait = {"gate closed": "RPC port bound", "on_init": "on_init started", "pool": "pool booting"}
    with trio.fail_after(40 * PATIENCE):
        async with serving(tmp_path, config, env, wait=False, check=False) as server:
            if phase == "draining":
                await server.wait_ready()
                await server.push("hang", "endless")
                await until(lambda: server.ledger(), 5 * PATIENCE, "the job begun")
            else:
                await wait_log(server, wait.get(phase, phase))
            server.note_children()
            began = trio.current_time()
            server.signal(signal.SIGTERM)
            if twice:
                await wait_log(server, "stop signal received")
                server.signal(signal.SIGTERM)
            code = await server.wait_exit(12 * PATIENCE)
            took = trio.current_time() - began
            assert took <= (2.5 if twice else 7.5) * PATIENCE
            # A stop that was done before the second signal arrived was no forced one.
            forced = "second stop signal received: stopping at once" in server.log_texts()
            assert (1 if forced else 0) == code, server.tail()
            assert twice or not forced
            if phase == "draining" and twice:
                assert forced
            assert "server ready" not in server.log_texts() or phase == "draining"
            assert not Path(server.path).exists()
            server.assert_no_traceback()


async def test_stop_at_any_moment_of_the_start(tmp_path: Path, chaos: random.Random) -> None:
    """SIGTERM at 20 moments from birth to ready: exit code 0 (or the signal's own before Python can listen), nothing left."""
    config = configuration(tmp_path, workers=3)
    (tmp_path / "on_init.sh").write_text("sleep 0.1")
    config["server"]["on_init"] = {"command": f"sh {tmp_path}/on_init.sh"}
    with trio.fail_after(90 * PATIENCE):
        began = trio.current_time()
        async with serving(tmp_path, config):
            longest = trio.current_time() - began
        for number in range(20):
            server = Server(tmp_path, config)
            server.log_path.unlink(missing_ok=True)
            server.start()
            try:
                await trio.sleep(longest * (number + chaos.random()) / 20)
                server.note_children()
                listening = "server starting" in server.log_texts()
                server.signal(signal.SIGTERM)
                code = await server.wait_exit()
                assert code == 0 or (code == -signal.SIGTERM and not listening), (code, server.tail())
                await server.expect_nothing_left()
                assert server.stderr() == ""
            finally:
                server.kill()


@pytest.mark.parametrize("command", SDKS)
async def test_ready_is_said_once_in_many_starts(command: str, tmp_path: Path) -> None:
    """READY=1 exactly once a start, never before the quorum, also where workers die in between."""
    config = configuration(tmp_path, command, 2)
    with trio.fail_after(60 * PATIENCE):
        for number in range(3):
            notify = NotifySocket(str(tmp_path / f"notify-{number}"))
            async with trio.open_nursery() as nursery:
                await nursery.start(notify.listen)
                async with serving(tmp_path, config, {"NOTIFY_SOCKET": notify.path}) as server:
                    for row in await server.workers():
                        os.kill(row["pid"], signal.SIGKILL)
                    await server.wait_whole(deaths=2)
                    await until(lambda notify=notify: notify.lines("READY"), 5 * PATIENCE, "READY=1")  # type: ignore[misc]
                nursery.cancel_scope.cancel()
            assert notify.lines("READY") == ["1"]
            ready = next(row["ts"] for row in server.log() if row["msg"] == "server ready") / 1e9
            first = next(at for at, text in notify.received if "READY=1" in text)
            assert first >= ready - 0.05
            server.log_path.unlink()
