"""Workers that die, or stop, at every point of their start, while RPC clients call everything.

A long-lived server with four workers; for each point a proved worker is killed, and its replacement is made to end at
that point of its own start: by time from its birth, by system call (strace), or exactly between two bytes (a worker
written by hand). Each time the pool must be whole again, and at the end the invariants hold (see `live_server`).
A job between two points proves the new worker, so that the restart policy sees single deaths, not a crash loop.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import trio
from live_server import (
    PATIENCE,
    PHASE_WORKER,
    PHP_WORKER,
    PYTHON_WORKER,
    TESTS,
    Answers,
    Server,
    children_of,
    configuration,
    seen,
    serving,
    storm,
    until,
    untyped,
)
from marks import needs_php

pytestmark = pytest.mark.timeout(300)

SDKS = [pytest.param(PHP_WORKER, id="php", marks=needs_php), pytest.param(PYTHON_WORKER, id="python")]
#: Methods that change the pool themselves: they have a storm of their own.
POOL_METHODS = (
    *("resetter.Reset", "informer.AddWorker", "informer.RemoveWorker"),
    *("trailboss.Reload", "trailboss.Upgrade"),
)
WORKERS = 4


async def prove_workers(server: Server, number: int, count: int = 1) -> None:
    """Have `count` workers at the same time run a job, and wait for the end of all jobs."""
    for index in range(count):
        await server.push("sleep" if count > 1 else "ack", f"proof-{number}-{index}", {"ms": 100})
    await server.wait_quiet()


async def kill_proved(server: Server, chance: random.Random) -> set[int]:
    """Kill a worker that has run a job; returns the children that there were before."""
    before = set(children_of(server.pid))
    proved = [row["pid"] for row in await server.workers() if row["numExecs"] > 0]
    os.kill(chance.choice(proved), signal.SIGKILL)
    return before


async def newborn(server: Server, before: set[int]) -> int:
    """The pid of the next child, as soon as it is there."""
    return int(
        await until(
            lambda: next(iter(set(children_of(server.pid)) - before), 0), 5 * PATIENCE, "a new worker", 0.0005
        )
    )


async def boot_seconds(server: Server, chance: random.Random) -> float:
    """How long a worker takes that boots alone: three replacements, the slowest."""
    for number in range(3):
        await kill_proved(server, chance)
        await server.wait_whole(deaths=number + 1)
        await prove_workers(server, -2 - number, WORKERS)
    boots = [row["boot_seconds"] for row in server.log() if row["msg"] == "worker ready"]
    return float(max(boots[-3:]))


#: Deaths that `boot_seconds` causes.
MEASURED = 3


@pytest.mark.parametrize("command", SDKS)
async def test_death_at_a_hundred_times_of_the_start(
    command: str, tmp_path: Path, chaos: random.Random
) -> None:
    """Killed at 100 moments from its birth to beyond its hello, a worker is replaced each time, whoever calls meanwhile."""
    await run_times(command, tmp_path, chaos, 100)


@pytest.mark.long
@pytest.mark.parametrize("command", SDKS)
async def test_death_at_many_times_of_the_start(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """The same at 400 moments."""
    await run_times(command, tmp_path, chaos, 400)


async def run_times(command: str, folder: Path, chance: random.Random, points: int) -> None:
    answers, over = Answers(), trio.Event()
    killed = Counter[str]()
    with trio.fail_after(points * 0.7 * PATIENCE + 20):
        async with serving(folder, configuration(folder, command, WORKERS)) as server:
            methods = await server.call("trailboss.Methods")
            await prove_workers(server, -1, 2 * WORKERS)
            longest = 1.4 * await boot_seconds(server, chance)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storm, server.path, methods, 6, over, answers, 0.05, POOL_METHODS)
                for number in range(points):
                    before = await kill_proved(server, chance)
                    victim = await newborn(server, before)
                    await trio.sleep(longest * (number + chance.random()) / points)
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        killed["gone before"] += 1
                    await server.wait_whole(deaths=MEASURED + 2 * number + 2)
                    await prove_workers(server, number)
                over.set()
            pool = await server.pool()
            deaths = [row for row in server.log() if row["msg"] == "worker died"][-2 * points :]
            for death in deaths:
                killed[death["phase"]] += 1
            assert (WORKERS, points * 2 + MEASURED) == (pool["ready"], pool["deaths"])
            assert killed["gone before"] == 0
    assert answers.started == answers.total
    assert untyped(answers) == {}
    assert not any(text.startswith("service not") for _, text in answers.errors), answers.errors
    assert killed["handshaking"] > points // 4, killed
    assert killed["ready"] > points, killed
    assert {"signal"} == {death["cause"] for death in deaths}


async def test_death_at_every_exact_phase_of_the_hello(tmp_path: Path, chaos: random.Random) -> None:
    """Ended before, inside and right after the hello frame, at each of its bytes, by kill or stop: replaced each time."""
    points = ["boot", "request", "hello", *(f"part-{count}" for count in range(1, 24))]
    plan = tmp_path / "plan"
    plan.touch()
    config = configuration(tmp_path, PHASE_WORKER, WORKERS)
    config["server"]["env"]["KILL_PLAN"] = str(plan)
    config["jobs"]["pool"] |= {"boot_timeout": "400ms", "supervisor": {"exec_ttl": "1s"}}
    answers, over = Answers(), trio.Event()
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            methods = await server.call("trailboss.Methods")
            await prove_workers(server, -1, 2 * WORKERS)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storm, server.path, methods, 4, over, answers, 0.05, POOL_METHODS)
                orders = [(point, signal.SIGKILL) for point in points]
                orders += [(point, signal.SIGSTOP) for point in chaos.sample(points[:-1], 10)]
                chaos.shuffle(orders)
                for number, (point, how) in enumerate(orders):
                    plan.write_text(f"{point} {int(how)}\n")
                    await kill_proved(server, chaos)
                    await until(lambda: not plan.read_text(), 5 * PATIENCE, f"a worker that takes {point}")
                    await server.wait_whole(
                        deaths=2 * number + (1 if point == "hello" and how == signal.SIGSTOP else 2)
                    )
                    await prove_workers(server, number)
                over.set()
            deaths = await server.call("trailboss.Deaths")
    assert answers.started == answers.total
    assert untyped(answers) == {}
    assert 2 * len(orders) == len(deaths)
    causes = Counter(death["cause"] for death in deaths)
    # A stopped worker that had said hello is ready: the job finds out.
    stopped_ready = sum(1 for point, how in orders if how == signal.SIGSTOP and point == "hello")
    assert 10 - stopped_ready == causes["boot_timeout"], causes


@pytest.mark.parametrize("command", SDKS)
async def test_stop_instead_of_death_at_twenty_times(
    command: str, tmp_path: Path, chaos: random.Random
) -> None:
    """A worker that is SIGSTOPped in its start is ended by boot_timeout, or, when it was ready, by exec_ttl of its job."""
    config = configuration(tmp_path, command, WORKERS)
    config["jobs"]["pool"] |= {"boot_timeout": "500ms", "supervisor": {"exec_ttl": "500ms"}}
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            await prove_workers(server, -1, 2 * WORKERS)
            longest = 1.4 * await boot_seconds(server, chaos)
            for number in range(20):
                before = await kill_proved(server, chaos)
                victim = await newborn(server, before)
                who = seen(victim)
                await trio.sleep(longest * (number + chaos.random()) / 20)
                os.kill(victim, signal.SIGSTOP)
                assert who is not None
                await prove_workers(
                    server, number, 2 * WORKERS
                )  # also those that had become ready are found out
                await until(lambda who=who: not who.alive, 3 * PATIENCE, "the stopped worker ended")  # type: ignore[misc]
                await server.wait_whole(deaths=MEASURED + 2 * number + 2)


SYSCALLS = {
    "php": {"read": 74, "mmap": 170, "openat": 94, "close": 85, "newfstatat": 60, "mprotect": 40, "brk": 18},
    "python": {"read": 60, "mmap": 60, "openat": 80, "close": 70, "newfstatat": 120, "brk": 10, "fcntl": 8},
}


async def run_syscalls(command: str, folder: Path, chance: random.Random, points: int) -> None:
    lines, lock = folder / "plan.lines", folder / "plan"
    lines.touch()
    lock.touch()
    calls = SYSCALLS["php" if command == PHP_WORKER else "python"]
    every = [(name, number) for name, count in calls.items() for number in range(1, count)]
    stride = max(1, len(every) // points)
    chosen = [every[index] for index in range(chance.randrange(stride), len(every), stride)][: points - 1]
    chosen.append(("execve", 1))  # before the program is executed at all
    config = configuration(folder, f"{TESTS}/support/strace_worker.sh {command}", WORKERS)
    config["server"]["env"]["KILL_PLAN"] = str(lock)
    with trio.fail_after(points * 1.5 * PATIENCE + 20):
        async with serving(folder, config) as server:
            await prove_workers(server, -1, 2 * WORKERS)
            for number, (name, count) in enumerate(chosen):
                lines.write_text(f"{name} {count}\n")
                await kill_proved(server, chance)
                await until(lambda: not lines.read_text(), 5 * PATIENCE, "a worker that takes the order")
                await server.wait_whole(deaths=number + 1)
                await prove_workers(server, number, WORKERS)
            deaths = (await server.pool())["deaths"]
    # Some counts lie beyond the calls of the start: that worker dies later, or serves.
    assert deaths >= points + points // 2


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("command", SDKS)
async def test_death_at_system_calls_of_the_start(command: str, tmp_path: Path, chaos: random.Random) -> None:
    """Killed at system calls of every kind all over its start, a worker is replaced each time."""
    await run_syscalls(command, tmp_path, chaos, 24)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("command", SDKS)
async def test_death_at_many_system_calls_of_the_start(
    command: str, tmp_path: Path, chaos: random.Random
) -> None:
    """The same at 300 of them."""
    await run_syscalls(command, tmp_path, chaos, 300)


@pytest.mark.parametrize("by_itself", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("command", SDKS)
async def test_newborns_die_while_every_method_is_called(
    command: str, by_itself: bool, tmp_path: Path, chaos: random.Random
) -> None:
    """With resets and workers added and removed all the time, and newborns killed, nothing hangs and the pool recovers.

    By itself within 30 s, as so many unproved workers have died; at once by a reset.
    """
    answers, over = Answers(), trio.Event()
    config = configuration(tmp_path, command, 3)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config, check=False) as server:
            methods = await server.call("trailboss.Methods")
            known = set(children_of(server.pid))
            killed = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storm, server.path, methods, 12, over, answers)
                with trio.move_on_after(6 * PATIENCE):
                    while True:
                        victim = await newborn(server, known)
                        known.add(victim)
                        await trio.sleep(0.06 * chaos.random())
                        if chaos.random() < 0.3:
                            killed += kill_if_there(victim)
                over.set()
            if not by_itself:
                await server.call("resetter.Reset", "jobs")
            await server.wait_whole(30 if by_itself else 10)
            for _ in range((await server.pool())["configured"] - 3):
                await server.call("informer.RemoveWorker", "jobs")
            await server.wait_whole()
            books = await server.assert_books_balance()
            await server.assert_no_descriptor_gained()
            assert books["running"] == 0
            server.assert_no_traceback()
    assert killed > 5
    assert answers.started == answers.total
    assert untyped(answers) == {}


def kill_if_there(pid: int) -> bool:
    """SIGKILL a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
