"""kill -9 of any worker in any state under load, of the supervisor itself, and jobs that kill their workers.

A ledger that the workers write says what was really run: each job once, and once more for each kill of its worker.
"""

# ruff: noqa: ASYNC221, ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from live_server import (
    PATIENCE,
    PHASE_WORKER,
    PHP_WORKER,
    PYTHON_WORKER,
    TESTS,
    Client,
    Server,
    children_of,
    configuration,
    pipelines_argument,
    push_argument,
    serving,
    until,
    until_async,
)
from marks import needs_php

pytestmark = pytest.mark.timeout(300)

SDKS = [pytest.param(PHP_WORKER, id="php", marks=needs_php), pytest.param(PYTHON_WORKER, id="python")]
WORKERS = 4


async def feed(server: Server, over: trio.Event, pushed: list[str]) -> None:
    """Push jobs of 0-8 ms, some of them delayed, at a steady rate until `over`."""
    chance = random.Random(1)
    async with server.client() as client:
        while not over.is_set():
            job = f"job-{len(pushed)}"
            await client.call("jobs.Push", push_argument("work", "sleep", job, {"ms": chance.randrange(8)}))
            pushed.append(job)
            await trio.sleep(0.004)


async def run_kills(command: str, folder: Path, chance: random.Random, kills: int) -> None:
    config = configuration(folder, command, WORKERS)
    config["jobs"]["max_attempts"] = 100
    pushed: list[str] = []
    killed: list[int] = []
    explained: dict[int, dict[str, Any]] = {}
    over = trio.Event()
    with trio.fail_after((20 + kills * 0.6) * PATIENCE):
        async with serving(folder, config) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed, server, over, pushed)
                await until(lambda: len(server.ledger()) > 20, 10 * PATIENCE, "load")
                for number in range(kills):
                    # Any state: ready, busy, booting (a newborn), leaving.
                    workers = [
                        row["pid"] for row in (await server.call("informer.Workers", "jobs"))["workers"]
                    ]
                    victim = chance.choice(workers)
                    before = set(children_of(server.pid))
                    await trio.sleep(0.01 * chance.random())
                    try:
                        os.kill(victim, signal.SIGKILL)
                        killed.append(victim)
                    except ProcessLookupError:
                        continue
                    if number % 4 == 3:  # and its replacement, somewhere in its start
                        newborn = await until(
                            lambda before=before: next(iter(set(children_of(server.pid)) - before), 0),  # type: ignore[misc]
                            5 * PATIENCE,
                            "a replacement",
                            0.0005,
                        )
                        await trio.sleep(0.05 * chance.random())
                        os.kill(newborn, signal.SIGKILL)
                        killed.append(newborn)
                    await server.wait_whole(deaths=len(killed))
                    for death in await server.call("trailboss.Deaths"):
                        explained[death["pid"]] = death
                over.set()
            books = await server.wait_quiet()
            why = subprocess.run(
                [sys.executable, "-m", "trailboss", "-c", str(server.config_path), "why", str(killed[-1])],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
                cwd=folder,
            ).stdout
            assert f"worker {killed[-1]} of pool jobs died" in why
            assert "SIGKILL" in why
            pool = await server.pool()
    assert Counter(killed) == Counter(dict.fromkeys(killed, 1))
    assert set(killed) == set(explained)
    assert len(killed) == pool["deaths"]
    assert {9} == {death["signal"] for death in explained.values()}
    assert (len(pushed), len(pushed), 0) == (books["pushed"], books["done"], books["dead"])
    # Exactly the victims' jobs ran again: once for each worker that was killed while it ran them.
    extra = Counter(death["doing"].rpartition("id=")[2] for death in explained.values() if death["doing"])
    runs = Counter(row["id"] for row in server.ledger())
    assert set(runs) == set(pushed)
    again = Counter({job: count - 1 for job, count in runs.items() if count > 1})
    # A job counts as run from its frame on, in the ledger from its first line on: a kill in between leaves no line.
    assert again <= extra, (again - extra, "ran again although no worker died of it")
    assert all(runs[job] >= 1 for job in extra)
    assert len(extra) >= 1
    attempts = [row for row in server.ledger() if row.get("attempts", 1) > 1]
    assert {row["id"] for row in attempts} <= set(extra)


@pytest.mark.parametrize("command", SDKS)
async def test_sixty_kills_under_load(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """60 kills in any state: whole each time, exactly the victim's job retried, nothing lost, each death explained."""
    await run_kills(command, tmp_path, chaos, 60)


@pytest.mark.long
@pytest.mark.parametrize("command", SDKS)
async def test_five_hundred_kills_under_load(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """The same 500 times."""
    await run_kills(command, tmp_path, chaos, 500)


async def test_death_in_every_part_of_a_job(tmp_path: Path, chaos: random.Random) -> None:
    """Ended before, inside and after the answer frame: a job whose answer was whole is done, any other runs again, once."""
    plan = tmp_path / "plan"
    plan.touch()
    config = configuration(tmp_path, PHASE_WORKER, 1)
    config["server"]["env"]["KILL_PLAN"] = str(plan)
    answer_bytes = 12 + 4 + len(b'{"type":0,"data":{}}')
    points = ["job", "answered", *(f"answer-{count}" for count in range(1, answer_bytes + 1))]
    chaos.shuffle(points)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            await server.push("ack", "first")
            await server.wait_quiet()
            for number, point in enumerate(points):
                # The order is taken at birth, so a proved worker is killed first.
                plan.write_text(f"{point} 9\n")
                (worker,) = await server.workers()
                os.kill(worker["pid"], signal.SIGKILL)
                await until(lambda: not plan.read_text(), 5 * PATIENCE, "a worker that takes the order")
                for index in range(4):
                    await server.push("ack", f"{number}-{index}")
                await server.wait_quiet()
                await server.wait_whole(deaths=2 * number + 2)
                runs = Counter(row["id"] for row in server.ledger() if row["id"].startswith(f"{number}-"))
                whole = point in ("answered", f"answer-{answer_bytes}")
                assert (4 if whole else 5) == runs.total(), (point, runs)
                assert len(runs) == 4
            books = await server.wait_quiet()
            assert (4 * len(points) + 1, 0) == (books["done"], books["dead"])


# --- poison ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", SDKS)
async def test_a_poison_job_is_tried_so_often_and_no_more(command: str, tmp_path: Path) -> None:
    """A job that kills its worker runs max_attempts times with growing pauses, then is a dead letter; others go on."""
    config = configuration(tmp_path, command, 4)
    config["jobs"] |= {"max_attempts": 4, "retry_backoff": "200ms", "retry_backoff_max": "5s"}
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            poison = ["poison-die", "poison-exit"]
            await server.push("die", poison[0])
            await server.push("exit", poison[1], {"code": 3})
            for number in range(200):
                await server.push("ack", f"good-{number}")
            books = await server.wait_quiet(30)
            assert (books["done"], books["dead"]) == (200, 2)
            runs = Counter(row["id"] for row in server.ledger())
            assert (runs[poison[0]], runs[poison[1]]) == (4, 4)
            assert {1} == {count for job, count in runs.items() if job.startswith("good-")}
            for job in poison:
                times = [row["time"] for row in server.ledger() if row["id"] == job]
                pauses = [after - before for before, after in itertools.pairwise(times)]
                assert [pause + 0.02 for pause in pauses] >= [0.2, 0.4, 0.8]
                for pause, wanted in zip(pauses, (0.2, 0.4, 0.8), strict=True):
                    assert wanted - 0.02 <= pause <= wanted + 1.0 * PATIENCE, pauses
            shown = trailboss(server, "jobs", "dead", "list")
            assert all(job in shown for job in poison)
            listed = json.loads(trailboss(server, "jobs", "dead", "list", "--json"))
            reasons = {row["id"]: (row["attempts"], row["reason"]) for row in listed["jobs"]}
            assert reasons[poison[0]][0] == 4
            assert "SIGKILL" in reasons[poison[0]][1]
            assert "exit code 3" in reasons[poison[1]][1]
            assert "requeued: 1" in trailboss(server, "jobs", "dead", "requeue", poison[1])
            books = await server.wait_quiet(30)
            assert Counter(row["id"] for row in server.ledger())[poison[1]] == 8
            assert (books["done"], books["dead"]) == (200, 2)
            await server.wait_whole(
                30
            )  # slots whose fresh workers got nothing but poison wait before they try again


@pytest.mark.parametrize("command", SDKS)
async def test_poison_costs_the_others_little(command: str, tmp_path: Path) -> None:
    """With 1 % of the jobs killing their worker, the others still get 80 % of the clean throughput."""
    config = configuration(tmp_path, command, WORKERS)
    config["jobs"] |= {"max_attempts": 5, "retry_backoff": "100ms"}
    seconds: dict[bool, float] = {}
    with trio.fail_after(100 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for poisoned in (False, True):
                await server.call("jobs.Pause", pipelines_argument("work"))
                async with server.client() as client:
                    for number in range(1000):
                        name = "die" if poisoned and number % 100 == 50 else "sleep"
                        job = f"{name}-{poisoned}-{number}"
                        await client.call("jobs.Push", push_argument("work", name, job, {"ms": 8}))
                began = trio.current_time()
                await server.call("jobs.Resume", pipelines_argument("work"))
                wanted = {
                    f"sleep-{poisoned}-{number}"
                    for number in range(1000)
                    if not poisoned or number % 100 != 50
                }
                await until(
                    lambda wanted=wanted: wanted <= {row["id"] for row in server.ledger()},  # type: ignore[misc]
                    40 * PATIENCE,
                    "all good jobs run",
                )
                seconds[poisoned] = trio.current_time() - began
            assert seconds[True] <= seconds[False] / 0.8 + 0.3 * PATIENCE, seconds
            books = await server.wait_quiet(60)
            assert (books["done"], books["dead"]) == (1990, 10)
            runs = Counter(row["id"] for row in server.ledger())
            assert {5} == {count for job, count in runs.items() if job.startswith("die")}
            assert {1} == {count for job, count in runs.items() if job.startswith("sleep")}
            await server.wait_whole(30)


def trailboss(server: Server, *words: str) -> str:
    """Standard output of a command about that server."""
    command = [sys.executable, "-m", "trailboss", "-c", str(server.config_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, cwd=server.folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- the supervisor itself -------------------------------------------------------------------------------------------

#: Workers whose children moved to a session of their own, and that ignore every signal that can be ignored.
STUBBORN = f"{sys.executable} {TESTS}/support/stubborn_worker.py"


@pytest.mark.parametrize("command", [*SDKS, pytest.param(STUBBORN, id="stubborn")])
async def test_supervisor_killed_under_load(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """Nothing of it lives 2 s later, children of workers included, and the next start succeeds over its leftovers."""
    config = configuration(tmp_path, command, WORKERS)
    with trio.fail_after(60 * PATIENCE):
        for number in range(5):
            server = Server(tmp_path, config)
            server.start()
            try:
                await server.wait_ready(5 * PATIENCE)
                client = await Client.connect(server.path)
                for index in range(40):
                    await client.call(
                        "jobs.Push", push_argument("work", "sleep", f"{number}-{index}", {"ms": 50})
                    )
                await trio.sleep(0.1 * chaos.random())
                client.close()
                server.kill()
                await server.expect_nothing_left()
                assert Path(server.path).exists()
            finally:
                server.kill()
        async with serving(tmp_path, config) as server:
            await server.push("ack", "afterwards")
            assert (await server.wait_quiet())["done"] == 1


@pytest.mark.parametrize("command", SDKS)
async def test_supervisor_killed_during_its_start(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """Killed at 10 moments from its birth to ready, with on_init and workers on their way: nothing left, next start good."""
    (tmp_path / "on_init.sh").write_text("sleep 0.05; setsid sleep 600 & sleep 0.05\n")
    config = configuration(tmp_path, command, WORKERS)
    config["server"]["on_init"] = {"command": f"sh {tmp_path}/on_init.sh", "exec_timeout": "5s"}
    with trio.fail_after(90 * PATIENCE):
        began = trio.current_time()
        async with serving(tmp_path, config):
            longest = trio.current_time() - began
        for number in range(10):
            server = Server(tmp_path, config)
            server.start()
            try:
                await trio.sleep(longest * (number + chaos.random()) / 10)
                server.kill()
                await server.expect_nothing_left()
            finally:
                server.kill()
        async with serving(tmp_path, config) as server:
            await server.push("ack", "afterwards")
            assert (await server.wait_quiet())["done"] == 1


async def test_guard_killed_under_load(tmp_path: Path) -> None:
    """A guard that is killed is replaced at once; then the supervisor is killed too, and still nothing is left."""
    config = configuration(tmp_path, STUBBORN, 2)
    with trio.fail_after(40 * PATIENCE):
        server = Server(tmp_path, config)
        server.start()
        try:
            await server.wait_ready()
            for _ in range(3):
                plugins = {row["name"]: row for row in (await server.state())["plugins"]}
                guard = plugins["server"]["detail"]["guard_pid"]
                os.kill(guard, signal.SIGKILL)

                async def replaced(old: int = guard) -> bool:
                    now = {row["name"]: row for row in (await server.state())["plugins"]}
                    return now["server"]["detail"]["guard_pid"] not in (0, old)

                await until_async(replaced, 3 * PATIENCE, "a new guard")
            await server.push("ack", "one")
            assert (await server.wait_quiet())["done"] == 1
            server.kill()
            await server.expect_nothing_left()
        finally:
            server.kill()
