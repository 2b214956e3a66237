"""The invariant watchdog: each fault of a pool is found and healed within a second, and a healthy pool is never accused."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from trailboss.testing import faults
from trailboss.workers import watchdog as module
from trailboss.workers.outcome import Outcome, QueueTimeout, WorkerDied
from trailboss.workers.watchdog import Watchdog, tasks_text

from .stage import Stage, body_of, is_alive, until


@contextlib.asynccontextmanager
async def watched(stage: Stage) -> AsyncIterator[Watchdog]:
    """A watchdog over the stage's pools, which has seen them already."""
    watchdog = Watchdog(stage.reactor, stage.pools)
    watchdog.look(trio.current_time())
    stage.nursery.start_soon(watchdog.run)
    await trio.testing.wait_all_tasks_blocked()
    yield watchdog


def told(log_records: list[dict[str, object]]) -> list[object]:
    """Kinds of the violations that were logged."""
    return [record["kind"] for record in log_records if str(record["event"]).startswith("an invariant")]


async def healed(watchdog: Watchdog, kind: str, begun: float) -> None:
    """Wait until a violation of `kind` has been found and is over; both within a second of `begun`."""
    await until(lambda: watchdog.violations[kind] and not watchdog.broken, 2, f"{kind} is not healed")
    assert time.monotonic() - begun < 1.0
    assert dict(watchdog.violations) == {kind: 1}


async def test_idle_worker_that_is_given_nothing(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """A worker that the pool has lost sight of is killed and replaced, and what waits for it runs."""
    pool = await stage.pool()
    async with watched(stage) as watchdog:
        pid = faults.lose_idle_worker(pool)
        begun = time.monotonic()
        outcomes = stage.submit(pool, "echo", b"waits")
        await until(lambda: watchdog.broken, 1)
        await healed(watchdog, "idle_worker_lost", begun)
        assert body_of(await stage.exactly_one(outcomes)) == b"waits"
        await until(lambda: not is_alive(pid), 1)
        assert pool.statistics().ready == 1
    assert told(log_records) == ["idle_worker_lost"]
    (line,) = (record for record in log_records if "tasks" in record)
    assert "Watchdog.run" in str(line["tasks"])
    assert "pool.py" in str(line["tasks"])


async def test_wakeup_that_nobody_heard(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """An execution that waits although a worker is idle is given to it."""
    pool = await stage.pool(num_workers=2)
    async with watched(stage) as watchdog:
        outcomes: list[Outcome] = []
        begun = time.monotonic()
        faults.lose_wakeup(pool, b"echo", outcomes)
        await healed(watchdog, "waiter_and_idle_worker", begun)
        body_of(await stage.exactly_one(outcomes))
    assert stage.deaths == []
    assert told(log_records) == ["waiter_and_idle_worker"]


async def test_deadline_that_nobody_looks_at(stage: Stage) -> None:
    """What waits beyond its deadline is refused, and later deadlines are looked at again."""
    pool = await stage.pool(queue_timeout=0.1)
    async with watched(stage) as watchdog:
        running = stage.submit(pool, "sleep", b"1.2")
        faults.lose_deadline(pool)
        outcomes = stage.submit(pool, "echo")
        begun = time.monotonic()
        await healed(watchdog, "waiter_overdue", begun)
        assert isinstance(outcomes[0], QueueTimeout)
        later = stage.submit(pool, "echo")
        await until(lambda: later, 0.3)
        assert body_of(await stage.exactly_one(running)) == b"slept"
        assert len(outcomes) == 1


async def test_place_that_was_lost(stage: Stage) -> None:
    """A pool with fewer places than it should have is filled up again."""
    pool = await stage.pool(num_workers=2)
    async with watched(stage) as watchdog:
        faults.lose_place(pool)
        begun = time.monotonic()
        await healed(watchdog, "slot_lost", begun)
        await stage.whole(pool)
        assert len(pool.slots) == 2
        assert pool.num_workers == 2


async def test_slot_that_was_lost(stage: Stage) -> None:
    """A worker without a slot is ended for good, and another has its place."""
    pool = await stage.pool(num_workers=2)
    async with watched(stage) as watchdog:
        stranger = faults.lose_slot(pool)
        begun = time.monotonic()
        outcomes = [stage.submit(pool, "sleep", b"0.05") for _ in range(2)]
        await until(lambda: not watchdog.broken and len(watchdog.violations) == 2, 2)
        assert time.monotonic() - begun < 1.0
        assert sorted(watchdog.violations) == ["slot_lost", "worker_without_slot"]
        await until(lambda: not is_alive(stranger), 1)
        await stage.whole(pool)
        assert len(pool.slots) == 2
        for outcome in outcomes:
            assert body_of(await stage.exactly_one(outcome)) == b"slept"


async def test_exit_that_nobody_heard_of(stage: Stage) -> None:
    """A worker that has ended while it ran something is found, its caller told, its slot filled."""
    pool = await stage.pool()
    async with watched(stage) as watchdog:
        outcomes = stage.submit(pool, "hang")
        (worker,) = pool.serving_workers()
        pid, lane = worker.pid, worker.lane
        assert lane is not None
        await until(lambda: not lane.request_is_unread())  # else it moves on to the next worker
        faults.lose_exit(pool, pid)
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        await healed(watchdog, "exit_unnoticed", begun)
        assert isinstance(await stage.exactly_one(outcomes), WorkerDied)
        await stage.whole(pool)
        assert await stage.ask(pool, "echo", b"again") == b"again"


async def test_gate_and_data_plane(stage: Stage) -> None:
    """A gate that stays shut, and a data plane that does not take its turn, are violations until they are over."""
    pool = await stage.pool()
    async with watched(stage) as watchdog:
        shut = True
        watchdog.gate_is_stuck = lambda: shut
        await stage.ask(pool, "echo")
        await until(lambda: watchdog.broken == ("gate_closed",), 3)
        shut = False
        await until(lambda: not watchdog.broken, 1)
        answer, watchdog._answer = watchdog._answer, lambda: None  # type: ignore[method-assign]
        await stage.ask(pool, "sleep", b"0.1")
        await until(lambda: watchdog.broken == ("data_plane_stuck",), 3)
        answer()
        await until(lambda: not watchdog.broken, 1)


async def test_loop_that_stood_still(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """A loop that was held up is counted and logged, and nothing else is taken for broken because of it."""
    pool = await stage.pool(queue_timeout=0.3, limits={"exec_ttl": 0.5})
    async with watched(stage) as watchdog:
        outcomes = [stage.submit(pool, "hang"), stage.submit(pool, "echo")]
        await trio.sleep(0.1)
        time.sleep(1.7)  # noqa: ASYNC251 - what a blocking call would do
        for outcome in outcomes:
            await stage.exactly_one(outcome)
        await until(lambda: not watchdog._findings.pending and not pool.in_flight)
        assert dict(watchdog.violations) == {"loop_lag": 1}
        assert watchdog.lag_seconds_max > 1
    lines = [record for record in log_records if record["event"] == "the loop stood still"]
    assert len(lines) == 1


async def test_nothing_is_found_in_a_busy_pool(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """Deaths, recycling, resets, changes of size and full queues are no violations."""
    pool = await stage.pool(num_workers=3, max_jobs=20, max_queue_size=1000)
    async with watched(stage) as watchdog, trio.open_nursery() as nursery:

        async def callers() -> None:
            for number in range(150):
                command = b"die" if number % 25 == 7 else b"sleep" if number % 3 == 0 else b"echo"
                await stage.outcome(pool, command.decode(), b"0.01" if command == b"sleep" else b"1")

        async def changes() -> None:
            for _ in range(2):
                await pool.reset()
                await pool.add_worker()
                await trio.sleep(0.1)
                await pool.remove_worker()

        for _ in range(5):
            nursery.start_soon(callers)
        nursery.start_soon(changes)
    await stage.whole(pool)
    assert watchdog.looks > 3
    assert {kind: count for kind, count in watchdog.violations.items() if kind != "loop_lag"} == {}
    assert told(log_records) == []


async def test_it_sleeps_while_nothing_waits(stage: Stage) -> None:
    """After the last answer it looks once more, and then not at all."""
    pool = await stage.pool(num_workers=2)
    async with watched(stage) as watchdog:
        await stage.ask(pool, "echo")
        await until(lambda: stage.reactor.on_wake is not None, 2)
        looks = watchdog.looks
        await trio.sleep(1.2)
        assert watchdog.looks == looks


async def test_long_execution_costs_two_looks_a_second(stage: Stage) -> None:
    """While something runs for long it looks twice a second, no more."""
    pool = await stage.pool()
    async with watched(stage) as watchdog:
        stage.submit(pool, "sleep", b"1.6")
        await trio.sleep(0.2)
        looks = watchdog.looks
        await trio.sleep(1.1)
        assert 1 <= watchdog.looks - looks <= 3


async def test_tasks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of tasks ends somewhere."""
    monkeypatch.setattr(module, "DUMP_TASKS_MAX", 5)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        text = tasks_text()
        nursery.cancel_scope.cancel()
    assert text.endswith("and more: only 5 tasks are shown")
