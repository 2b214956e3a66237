"""Ten thousand jobs over workers that die, hang and talk nonsense: nothing is lost, nothing runs too often.

Every case is decided by a seed, which is part of the test's name; time is the mock clock's.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
import structlog.testing
import trio
import trio.testing

from trailboss.config.schema import JobsConfig, PipelineConfig
from trailboss.container.contract import Caller, Services
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.testing.fake_pool import ACK, FakeExec, FakePool, Scripted
from trailboss.workers.outcome import Answer, ExecTimeout, SoftError, WorkerDied

PIPELINES = ("urgent", "normal", "slow")
MAX_ATTEMPTS = 5


def make_plugin(pool: FakePool, **config: object) -> JobsPlugin:
    plugin = JobsPlugin(
        JobsConfig(
            pipelines={
                name: PipelineConfig(driver="memory", config={"priority": priority})
                for name, priority in zip(PIPELINES, (1, 10, 10), strict=True)
            },
            consume=PIPELINES,
            max_attempts=MAX_ATTEMPTS,
            **config,
        )
    )
    plugin.attach_pool(pool)
    return plugin


def push_batch(plugin: JobsPlugin, names: list[str], choose: random.Random) -> None:
    handlers = {item.name: item.handler for item in plugin.rpc_methods()}
    jobs = [
        jobs_pb2.Job(
            id=name,
            job="App\\Task",
            payload=name.encode(),
            options=jobs_pb2.Options(
                pipeline=choose.choice(PIPELINES),
                delay=choose.choice((0, 0, 0, 1, 5)),
                priority=choose.choice((0, 0, 5)),
            ),
        )
        for name in names
    ]
    handlers["jobs.PushBatch"](jobs_pb2.PushBatchRequest(jobs=jobs), Caller())


class Faults:
    """The script of the pool: what each run of each job comes to. Keeps what it has done, to be checked."""

    def __init__(self, seed: int, rate: float) -> None:
        self.choose = random.Random(seed)
        self.rate = rate
        self.attempts: dict[str, list[int]] = defaultdict(list)
        self.failed: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    def __call__(self, work: FakeExec) -> Scripted:
        context = json.loads(work.context)
        name = context["id"]
        assert work.body == name.encode()
        self.attempts[name].append(context["attempts"])
        if self.choose.random() >= self.rate:
            self.finished[name] += 1
            return Scripted(ACK, self.choose.uniform(0.001, 0.01))
        self.failed[name] += 1
        return self.choose.choice(
            (
                Scripted(WorkerDied("signal 9", pid=work.pid, cause="signal"), 0.005, replace_seconds=0.02),
                Scripted(WorkerDied("exit 255", pid=work.pid, cause="exit"), 0.001, replace_seconds=0.5),
                Scripted(ExecTimeout("exec_ttl of 2s"), 2.0, replace_seconds=0.02),
                Scripted(SoftError("Uncaught"), 0.003),
                Scripted(Answer(0, b"", b"<b>Warning</b>"), 0.002),
                Scripted(Answer(0, b"", b""), 0.002),
            )
        )


async def run_until_done(plugin: JobsPlugin, pool: FakePool, during: Callable[[trio.Nursery], None]) -> None:
    """Run until no job waits, is delayed or runs; the books balance at every look."""
    stopping = trio.Event()
    async with trio.open_nursery() as pool_nursery:
        await pool_nursery.start(pool.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, Services(), stopping)
            await plugin.open()
            during(nursery)
            with trio.fail_after(3600):
                while True:
                    await trio.sleep(5)
                    books = plugin.pipelines.total()
                    assert books.balanced
                    if books.pushed and books.pushed == books.done + books.dead:
                        break
            await plugin.close_intake()
            await plugin.drain()
            stopping.set()
        pool_nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", [1, 2025])
async def test_ten_thousand_jobs_with_faults(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """30 % of all runs fail: each job ends once, its attempts count 1, 2, 3 …, dead ones have used them all."""
    faults = Faults(seed, rate=0.3)
    pool = FakePool(16, faults)
    plugin = make_plugin(pool)
    names = [f"job-{number}" for number in range(10_000)]

    async def push_all() -> None:
        for start in range(0, len(names), 100):
            push_batch(plugin, names[start : start + 100], faults.choose)
            await trio.sleep(0.05)

    with structlog.testing.capture_logs() as logs:
        await run_until_done(plugin, pool, lambda nursery: nursery.start_soon(push_all))
    books = plugin.pipelines.total()
    dead = {
        letter.job.id for item in plugin.pipelines.by_name.values() for letter in item.driver.dead_letters()
    }
    assert (books.pushed, books.done + books.dead) == (10_000, 10_000)
    for name in names:
        runs = faults.attempts[name]
        assert runs == list(range(1, len(runs) + 1)), f"attempts of {name}: {runs}"
        assert (faults.finished[name], name in dead) in ((1, False), (0, True))
        if name in dead:
            assert len(runs) == MAX_ATTEMPTS
    assert books.dead == len(dead) > 0
    assert sum(faults.failed.values()) == sum(plugin.dispatcher.failures.values())
    assert pool.executions == sum(map(len, faults.attempts.values()))
    again = sum(entry["event"] == "job failed and will run again" for entry in logs)
    assert again == sum(faults.failed.values()) - books.dead
    assert plugin.room.used == 0


async def test_poison_jobs_leave_the_others_alone(autojump_clock: trio.testing.MockClock) -> None:
    """1 % of the jobs kill every worker: tried max_attempts times each, with back-off; the rest is done in time."""
    poison = {f"job-{number}" for number in range(0, 2000, 100)}
    runs: dict[str, list[float]] = defaultdict(list)
    done_at = 0.0

    def script(work: FakeExec) -> Scripted:
        nonlocal done_at
        name = work.body.decode()
        runs[name].append(trio.current_time())
        if name in poison:
            return Scripted(
                WorkerDied("signal 11", pid=work.pid, cause="signal"), 0.001, replace_seconds=0.05
            )
        done_at = trio.current_time()
        return Scripted(ACK, 0.01)

    pool = FakePool(4, script)
    plugin = make_plugin(pool)
    begin = trio.current_time()

    def push_all(nursery: trio.Nursery) -> None:
        handlers = {item.name: item.handler for item in plugin.rpc_methods()}
        jobs = [
            jobs_pb2.Job(
                id=f"job-{number}",
                job="t",
                payload=f"job-{number}".encode(),
                options=jobs_pb2.Options(pipeline="normal"),
            )
            for number in range(2000)
        ]
        handlers["jobs.PushBatch"](jobs_pb2.PushBatchRequest(jobs=jobs), Caller())

    with structlog.testing.capture_logs():
        await run_until_done(plugin, pool, push_all)
    clean_seconds = 2000 * 0.01 / 4
    assert done_at - begin <= clean_seconds / 0.8
    assert {name for name, times in runs.items() if len(times) > 1} == poison
    for name in poison:
        gaps = [later - earlier for earlier, later in zip(runs[name], runs[name][1:], strict=False)]
        assert len(gaps) == MAX_ATTEMPTS - 1
        assert all(gap >= delay for gap, delay in zip(gaps, (1, 2, 4, 8), strict=True))
    letters = plugin.pipelines.by_name["normal"].driver.dead_letters()
    assert {letter.job.id for letter in letters} == poison
    assert {letter.cause for letter in letters} == {"signal"}


@pytest.mark.parametrize("seed", range(20))
async def test_stop_at_a_random_moment_loses_nothing(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A stop while jobs run: each is done, dead or back in its queue; drain ends by its deadline."""
    choose = random.Random(seed)
    faults = Faults(seed, rate=0.1)

    def script(work: FakeExec) -> Scripted:
        scripted = faults(work)
        return Scripted(scripted.outcome, choose.uniform(0, 5), scripted.replace_seconds)

    pool = FakePool(8, script)
    plugin = make_plugin(pool)
    stopping = trio.Event()
    with structlog.testing.capture_logs():
        async with trio.open_nursery() as pool_nursery:
            await pool_nursery.start(pool.run)
            async with trio.open_nursery() as nursery:
                await nursery.start(plugin.run, Services(), stopping)
                await plugin.open()
                push_batch(plugin, [f"job-{number}" for number in range(200)], choose)
                await trio.sleep(choose.uniform(0, 60))
                await plugin.close_intake()
                executions = pool.executions
                begin = trio.current_time()
                with trio.move_on_after(2):
                    await plugin.drain()
                assert trio.current_time() - begin <= 2.001
                books = plugin.pipelines.total()
                assert books.balanced
                assert books.running == 0
                assert books.done + books.dead + books.waiting + books.delayed == 200
                pool.close()
                stopping.set()
            pool_nursery.cancel_scope.cancel()
    assert pool.executions == executions
    assert plugin.pipelines.total() == books
    driver_jobs = [job.id for item in plugin.pipelines.by_name.values() for job in item.driver.ready]
    assert len(driver_jobs) == len(set(driver_jobs)) == books.waiting


async def test_pool_that_comes_and_goes(autojump_clock: trio.testing.MockClock) -> None:
    """A pool that is degraded again and again costs no job an attempt and loses none."""
    faults = Faults(7, rate=0.0)
    pool = FakePool(4, faults)
    plugin = make_plugin(pool)

    async def come_and_go() -> None:
        for _ in range(50):
            pool.degrade()
            await trio.sleep(faults.choose.uniform(0.1, 3))
            pool.recover()
            await trio.sleep(faults.choose.uniform(0.01, 0.2))

    def during(nursery: trio.Nursery) -> None:
        push_batch(plugin, [f"job-{number}" for number in range(3000)], faults.choose)
        nursery.start_soon(come_and_go)

    await run_until_done(plugin, pool, during)
    assert plugin.pipelines.total().done == 3000
    assert all(runs == [1] for runs in faults.attempts.values())


async def test_delayed_jobs_after_a_pause_of_the_process(autojump_clock: trio.testing.MockClock) -> None:
    """When the clock jumps a minute ahead, everything due meanwhile runs at once, in the order of its times."""
    order: list[str] = []

    def script(work: FakeExec) -> Scripted:
        order.append(work.body.decode())
        return Scripted(ACK)

    pool = FakePool(1, script)
    plugin = make_plugin(pool)

    def during(nursery: trio.Nursery) -> None:
        handlers = {item.name: item.handler for item in plugin.rpc_methods()}
        for delay in (30, 10, 20, 3000, 40):
            job = jobs_pb2.Job(
                id=str(delay),
                payload=str(delay).encode(),
                options=jobs_pb2.Options(pipeline="slow", delay=delay),
            )
            handlers["jobs.Push"](jobs_pb2.PushRequest(job=job), Caller())
        autojump_clock.jump(60)

    await run_until_done(plugin, pool, during)
    assert order == ["10", "20", "30", "40", "3000"]
