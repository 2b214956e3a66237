"""Rows F4: workers that hang in every way and are frozen in every state, and callers that leave at any moment."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import trio

from trailboss.workers.outcome import Answer, ExecTimeout, Outcome, WorkerDied
from trailboss.workers.worker import WorkerPhase

from .stage import Stage, body_of, until

MIB = 1 << 20
#: How a victim hangs, and with what body: frozen, computing, reading nothing of a large request, in the middle of a frame.
HANGS = [("stop-self", b"x"), ("spin", b"x"), ("stop-reading", b"x" * 2 * MIB), ("partial", b"x")]
EXEC_TTL = 0.15


def all_idle(pool: object) -> bool:
    """Whether each place has a worker that is given executions, and nothing runs or waits."""
    from trailboss.workers.pool import Pool

    assert isinstance(pool, Pool)
    figures = pool.statistics()
    return (figures.ready, figures.idle, figures.in_flight, figures.queued, len(pool.slots)) == (
        pool.num_workers,
        pool.num_workers,
        0,
        0,
        pool.num_workers,
    )


@pytest.mark.parametrize("victims", [6, pytest.param(100, marks=pytest.mark.long)])
async def test_hanging_workers_end_within_their_limit(stage: Stage, victims: int) -> None:
    """One victim at a time of four workers: ended within its limit and a second, the others undisturbed, no slot stuck."""
    pool = await stage.pool(num_workers=4, limits={"exec_ttl": EXEC_TTL})
    times: list[float] = []
    running = True

    async def others() -> None:
        while running:
            begun = time.perf_counter()
            assert await stage.ask(pool, "echo", b"fine") == b"fine"
            times.append(time.perf_counter() - begun)
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(others)
        for command, body in HANGS * victims:
            begun = time.monotonic()
            outcome = await stage.outcome(pool, command, body)
            assert isinstance(outcome, ExecTimeout), command
            assert EXEC_TTL <= time.monotonic() - begun < EXEC_TTL + 1
        running = False
    times.sort()
    assert times[int(len(times) * 0.99)] < EXEC_TTL
    await until(lambda: all_idle(pool))
    assert len(stage.deaths) == 4 * victims
    assert {record.cause for record in stage.deaths} == {"exec_ttl"}


async def test_frozen_while_idle(stage: Stage) -> None:
    """A worker that is frozen while idle costs the one execution that it is given, which ends at its limit."""
    pool = await stage.pool(limits={"exec_ttl": EXEC_TTL})
    os.kill(pool.workers()[0].pid, signal.SIGSTOP)
    assert isinstance(await stage.outcome(pool, "echo"), ExecTimeout)
    await until(lambda: stage.deaths)
    assert "it is stopped" in stage.deaths[0].seen
    await stage.whole(pool)
    assert await stage.ask(pool, "echo", b"next") == b"next"


async def test_frozen_while_it_drains(stage: Stage) -> None:
    """A worker that is frozen while a reset waits for it is killed when the time of the reset is over."""
    pool = await stage.pool(reset_timeout=0.4)
    outcomes = stage.submit(pool, "stop-self")
    await until(lambda: pool.in_flight)
    begun = time.monotonic()
    await pool.reset()
    outcome = await stage.exactly_one(outcomes)
    assert isinstance(outcome, WorkerDied)
    assert time.monotonic() - begun < 1.5
    await until(lambda: all_idle(pool))
    assert stage.deaths[0].phase == "draining"
    assert "it is stopped" in stage.deaths[0].seen


async def test_frozen_while_it_stops(stage: Stage) -> None:
    """A worker that is frozen after it was told to stop is killed when stop_timeout is over."""
    pool = await stage.pool("", "ignore-stop", "ignore-term", stop_timeout=0.4)
    worker = pool.serving_workers()[0]
    stage.nursery.start_soon(pool.stop, trio.current_time() + 5)
    await until(lambda: worker.phase is WorkerPhase.STOPPING)
    os.kill(worker.pid, signal.SIGSTOP)
    took = await until(lambda: worker.phase is WorkerPhase.EXITED)
    assert took < 2.5


async def test_double_answers_never_reach_the_next_caller(stage: Stage) -> None:
    """A worker that answers twice gives its second answer to nobody, however quickly the next execution follows."""
    pool = await stage.pool(num_workers=2)
    for number in range(12):
        first = stage.submit(pool, "two", b"first %d" % number)
        second = stage.submit(pool, "echo", b"own %d" % number)
        third = stage.submit(pool, "echo", b"other %d" % number)
        assert body_of(await stage.exactly_one(first)) == b"first %d" % number
        assert body_of(await stage.exactly_one(second)) == b"own %d" % number
        assert body_of(await stage.exactly_one(third)) == b"other %d" % number
    await stage.whole(pool)


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_callers_leak_no_slot(stage: Stage, seed: int) -> None:
    """Callers that leave at any moment, over workers that answer, sleep, die, hang and ask to go: every slot is free after."""
    chance = random.Random(seed)
    pool = await stage.pool(num_workers=3, max_jobs=15, max_queue_size=500, limits={"exec_ttl": EXEC_TTL})
    left = finished = 0

    async def caller(command: str, body: bytes, patience: float, delay: float) -> None:
        nonlocal left, finished
        await trio.sleep(delay)
        with trio.move_on_after(patience) as limit:
            await stage.outcome(pool, command, body)
            finished += 1
        left += limit.cancelled_caught

    kinds = [("echo", b"x")] * 6 + [("sleep", b"0.01")] * 4 + [("die", b"1"), ("spin", b"x"), ("soft", b"no")]
    kinds += [("two", b"x"), ("answer-exit", b"100")]
    submitted: list[list[Outcome]] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(150):
                command, body = chance.choice(kinds)
                patience = chance.choice([0.0, 0.001, 0.01, 0.05, 5.0])
                nursery.start_soon(caller, command, body, patience, chance.random())
            for _ in range(20):
                await trio.sleep(chance.random() / 10)
                submitted.append(stage.submit(pool, "echo", b"kept"))
    for outcomes in submitted:
        outcome = await stage.exactly_one(outcomes)
        assert isinstance(outcome, (Answer, WorkerDied))
    assert left + finished == 150
    assert left > 20
    await until(lambda: all_idle(pool))
    assert await stage.ask(pool, "echo", b"after all") == b"after all"
