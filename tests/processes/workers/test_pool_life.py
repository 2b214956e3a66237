"""Pools over time: limits, crash loops, resets, changes of size, debug mode, stop; with real workers."""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import time

import pytest
import trio
import trio.lowlevel

from trailboss.config.schema import QuarantineConfig
from trailboss.workers.outcome import Answer, ExecFailed, Outcome, PoolClosed, PoolDegraded, WorkerDied
from trailboss.workers.pool import Pool, PoolPhase, ResetFailed
from trailboss.workers.sampling import resident_bytes
from trailboss.workers.upkeep import Upkeep

from .stage import HOSTILE, Stage, body_of, is_alive, open_descriptors, until


class Load:
    """Clients that exec one after the other until told to stop, and count what they get."""

    def __init__(self, pool: Pool, command: bytes = b"echo", body: bytes = b"x") -> None:
        self.pool = pool
        self.command = command
        self.body = body
        self.good = 0
        self.failed: list[ExecFailed] = []
        self.going = True

    async def client(self) -> None:
        """One client."""
        while self.going:
            try:
                answer = await self.pool.exec(self.command, self.body, 4, "load")
                assert answer.body == self.body
                self.good += 1
            except ExecFailed as error:
                self.failed.append(error)
            await trio.sleep(0.0005)

    async def run(self, clients: int) -> None:
        """So many clients."""
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self.client)


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_max_jobs_within_its_jitter(stage: Stage) -> None:
    """Each worker runs max_jobs to 14 % more, then is replaced; recycling costs no exec and is no death."""
    pool = await stage.pool(num_workers=4, max_jobs=20)
    counts: dict[bytes, int] = {}

    async def client(count: int) -> None:
        for _ in range(count):
            pid = await stage.ask(pool, "pid")
            counts[pid] = counts.get(pid, 0) + 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(client, 100)
    await stage.whole(pool)
    present = {b"%d" % worker.pid for worker in pool.workers()}
    finished = [count for pid, count in counts.items() if pid not in present]
    assert sum(counts.values()) == 600
    assert len(finished) >= 20
    assert all(20 <= count <= 22 for count in finished), counts
    assert stage.deaths == []


async def test_ttl_under_load(stage: Stage) -> None:
    """Workers past their ttl go after what they run: new pids, no failed exec, no death."""
    pool = await stage.pool(num_workers=2, limits={"ttl": 0.5})
    before = {worker.pid for worker in pool.workers()}
    load = Load(pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, 4)
        await until(lambda: pool.restarts >= 4)
        load.going = False
    assert load.failed == []
    assert load.good > 50
    assert before.isdisjoint(worker.pid for worker in pool.workers())
    assert stage.deaths == []


async def test_idle_ttl(stage: Stage) -> None:
    """A worker idle for longer than idle_ttl is replaced once it has been used; a busy or unused one is not."""
    pool = await stage.pool(num_workers=2, limits={"idle_ttl": 0.3})
    slow = stage.submit(pool, "sleep", b"0.9")
    used = int(await stage.ask(pool, "pid"))
    await until(lambda: used not in {worker.pid for worker in pool.workers()}, 2)
    assert not slow
    await stage.whole(pool, 2)
    unused = {worker.pid for worker in pool.workers()}
    assert body_of(await stage.exactly_one(slow)) == b"slept"
    batches = stage.reactor.batches
    await until(lambda: pool.restarts >= 2, 2)
    # The replacement of the first has never been used, so it is still there when the second has gone.
    await until(lambda: len(pool.workers()) == 2 and not unused <= {worker.pid for worker in pool.workers()})
    assert len(unused & {worker.pid for worker in pool.workers()}) == 1
    assert stage.reactor.batches - batches < 100
    assert stage.deaths == []


async def test_max_worker_memory(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has grown beyond max_worker_memory is replaced after its exec; others stay."""
    monkeypatch.setattr(Upkeep, "MEMORY_SECONDS", 0.1)
    pool = await stage.pool(num_workers=2, limits={"max_worker_memory": 60})
    assert await stage.ask(pool, "memory", b"100000000") == b"kept"
    await until(lambda: pool.restarts == 1, 3)
    await stage.whole(pool)
    assert stage.deaths == []
    assert pool.restarts == 1


@pytest.mark.parametrize("boot", [(), ("", "ignore-stop"), ("", "ignore-stop", "ignore-term")])
async def test_recycling_answers_first(stage: Stage, boot: tuple[str, ...]) -> None:
    """The answer goes out before the worker is stopped, however long its stop takes."""
    pool = await stage.pool(*boot, max_jobs=1, stop_timeout=0.5)
    begun = time.monotonic()
    assert await stage.ask(pool, "echo", b"prompt") == b"prompt"
    assert time.monotonic() - begun < 0.2
    await until(lambda: pool.restarts == 1, 4)
    await stage.whole(pool)
    assert stage.deaths == []


async def test_worker_killed_while_it_retires(stage: Stage) -> None:
    """A retiring worker that somebody else kills over its last exec has died: a record, and WorkerDied for the exec."""
    pool = await stage.pool(num_workers=1)
    outcomes = stage.submit(pool, "sleep", b"5", "last job")
    await until(lambda: pool.in_flight == 1)
    victim = pool.workers()[0].pid
    await trio.sleep(0.1)  # time for the worker to read its request
    with trio.fail_after(5):
        await pool.reset()
    assert outcomes == []
    os.kill(victim, signal.SIGKILL)
    outcome = await stage.exactly_one(outcomes)
    assert isinstance(outcome, WorkerDied)
    assert outcome.cause == "signal"
    await until(lambda: stage.deaths)
    record = stage.deaths[0]
    assert (record.pid, record.cause, record.doing, record.phase) == (
        victim,
        "signal",
        "last job",
        "draining",
    )
    await until(lambda: len(pool.workers()) == 1)


# --- crash loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", ["flag", "flag-late"])
async def test_crash_loop_is_bounded_and_heals(stage: Stage, tmp_path: pathlib.Path, boot: str) -> None:
    """At most 10 spawns in the first 10 s for 4 slots; refusals are quick and typed; healthy within 30 s of the cure."""
    flag = tmp_path / "flag"
    flag.touch()
    other = await stage.pool(name="other")
    pool = await stage.pool(boot, num_workers=4, env={"FLAG": str(flag)})
    flag.unlink()
    begun = time.monotonic()
    for worker in pool.workers():
        os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: pool.phase is PoolPhase.DEGRADED, 3)
    asked = time.monotonic()
    refused = stage.submit(pool, "echo")
    assert time.monotonic() - asked < 0.01
    assert isinstance(refused[0], PoolDegraded)
    assert "next try in" in str(refused[0])
    assert ("flag is missing" if boot == "flag" else "dying right after") in str(refused[0])
    assert not pool.at_quorum
    assert pool.statistics().next_probe_seconds is not None
    load = Load(other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, 1)
        await trio.sleep(begun + 10 - time.monotonic())
        load.going = False
    assert load.failed == []
    assert load.good > 500
    assert pool.restarts <= 10
    assert len(pool.slots) == 4
    flag.touch()
    healed = await until(lambda: pool.ready_workers, 30)
    assert await stage.ask(pool, "echo", b"again") == b"again"
    whole = await stage.whole(pool, 30 - healed)
    print(
        f"{boot}: {pool.restarts} spawns, first worker {healed:.1f} s and all {healed + whole:.1f} s after the cure"
    )
    assert pool.phase is PoolPhase.READY


async def test_out_of_descriptors(stage: Stage) -> None:
    """A machine short of descriptors is a passing trouble: nothing leaks, and the slot is filled once it is over."""
    pool = await stage.pool(num_workers=2)
    await stage.ask(pool, "echo")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = open_descriptors()
    victim = pool.workers()[0].pid
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(in_use) + 2, hard))
    fillers = []
    try:
        while True:
            try:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        os.kill(victim, signal.SIGKILL)
        await until(lambda: any(record.cause == "spawn failed" for record in stage.deaths), 5)
        assert await stage.ask(pool, "echo", b"the other") == b"the other"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    assert "Too many open files" in stage.deaths[-1].text
    await stage.whole(pool, 20)


async def test_reset_heals_a_degraded_pool(stage: Stage, tmp_path: pathlib.Path) -> None:
    """Once the cause is gone a reset does not wait for the next probe."""
    flag = tmp_path / "flag"
    flag.touch()
    pool = await stage.pool("flag", num_workers=2, env={"FLAG": str(flag)})
    flag.unlink()
    for worker in pool.workers():
        os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: pool.phase is PoolPhase.DEGRADED, 5)
    with trio.fail_after(5), pytest.raises(ResetFailed, match="flag is missing"):
        await pool.reset()
    assert pool.phase is PoolPhase.DEGRADED
    flag.touch()
    with trio.fail_after(2):
        await pool.reset()
    assert pool.phase is PoolPhase.READY
    assert pool.ready_workers == 2
    assert await stage.ask(pool, "echo", b"healed") == b"healed"
    await until(lambda: len(pool.slots) == 2, 2)


@pytest.mark.parametrize("recycles", [300, pytest.param(10_000, marks=pytest.mark.long)])
async def test_recycling_leaks_nothing(stage: Stage, echo_worker: str, recycles: int) -> None:
    """A worker for every exec, under a long exec_ttl: memory, descriptors and wheel stay as they were."""
    pool = await stage.pool(command=(echo_worker,), num_workers=2, max_jobs=1, limits={"exec_ttl": 3600.0})

    async def client(count: int) -> None:
        for _ in range(count):
            await stage.ask(pool, "echo", b"x")

    async def run(count: int) -> tuple[int, int]:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client, count // 2)
        await stage.whole(pool)
        await until(lambda: len(pool.workers()) == 2)
        return resident_bytes(os.getpid()), len(open_descriptors())

    memory, descriptors = await run(recycles // 3)
    later, then = await run(recycles)
    assert then == descriptors
    assert later - memory < 10 * 1048576
    assert pool.restarts == recycles + 2 * (recycles // 3 // 2)
    assert stage.deaths == []


async def test_idle_pool_sleeps(stage: Stage, echo_worker: str) -> None:
    """Eight idle workers, even with every limit set, cost no wake-ups."""
    limits = {"ttl": 60.0, "idle_ttl": 60.0, "exec_ttl": 60.0}
    pool = await stage.pool(command=(echo_worker,), num_workers=8, limits=limits)
    for _ in range(20):
        await stage.ask(pool, "echo", b"x")
    await trio.testing.wait_all_tasks_blocked(0.05)
    batches, turns = stage.reactor.batches, _Turns()
    trio.lowlevel.add_instrument(turns)
    await trio.sleep(1.0)
    trio.lowlevel.remove_instrument(turns)
    assert stage.reactor.batches == batches
    # Our own sleep is one of them, the guard and the limits may look once.
    assert turns.count <= 4


class _Turns(trio.abc.Instrument):
    """Counts how often the event loop wakes up."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_pool_of_one_queues_over_one_failed_boot(stage: Stage, tmp_path: pathlib.Path) -> None:
    """One boot that fails is tried again at once, and what waits goes on waiting."""
    flag = tmp_path / "flag"
    flag.touch()
    pool = await stage.pool("flag", env={"FLAG": str(flag)})
    await stage.ask(pool, "echo")
    flag.unlink()
    os.kill(pool.workers()[0].pid, signal.SIGKILL)
    await until(lambda: pool.ready_workers == 0)
    outcomes = stage.submit(pool, "echo", b"patient")
    await until(lambda: any(record.phase == "handshaking" for record in stage.deaths))
    flag.touch()
    outcome = await stage.exactly_one(outcomes)
    # The second try begins at once: whether it met the flag is a race, but the first failure alone refuses nothing.
    if isinstance(outcome, PoolDegraded):
        assert sum(record.phase == "handshaking" for record in stage.deaths) >= 2
    else:
        assert body_of(outcome) == b"patient"
    await stage.whole(pool, 10)


async def test_hanging_boots_do_not_hold_up_another_pool(stage: Stage, tmp_path: pathlib.Path) -> None:
    """Workers that hang in their boot give up their place after 2 s, so another pool can replace its own."""
    stage.workshop.boot_limiter.total_tokens = 2
    flag = tmp_path / "flag"
    flag.touch()
    stuck = await stage.pool(
        "flag-hang", name="stuck", num_workers=3, env={"FLAG": str(flag)}, boot_timeout=30
    )
    good = await stage.pool(name="good")
    flag.unlink()
    for worker in stuck.workers():
        os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: stuck.statistics().booting == 3)
    os.kill(good.workers()[0].pid, signal.SIGKILL)
    await until(lambda: good.restarts == 1)
    assert await stage.whole(good, 8) < 6
    with trio.fail_after(5):
        await stuck.stop(trio.current_time() + 1)


# --- reset ------------------------------------------------------------------------------------------------------------


async def test_reset_under_load(stage: Stage) -> None:
    """Resets replace every worker and cost no exec."""
    pool = await stage.pool(num_workers=4)
    load = Load(pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, 8)
        for _ in range(5):
            before = {worker.pid for worker in pool.workers()}
            begun = time.monotonic()
            with trio.fail_after(10):
                await pool.reset()
            print(f"reset of 4 workers under load: {1000 * (time.monotonic() - begun):.0f} ms")
            await until(lambda: before.isdisjoint(w.pid for w in pool.workers()), 2)  # noqa: B023
        load.going = False
    assert load.failed == []
    assert load.good > 100
    assert pool.generation == 6
    assert stage.deaths == []
    await until(lambda: len(pool.workers()) == 4)


async def test_failed_reset_keeps_the_old_workers(stage: Stage, tmp_path: pathlib.Path) -> None:
    """New code that does not boot: the reset says why, the old workers never stopped serving; cured, it works."""
    flag = tmp_path / "flag"
    flag.touch()
    pool = await stage.pool("flag", num_workers=2, env={"FLAG": str(flag)})
    before = {worker.pid for worker in pool.workers()}
    flag.unlink()
    load = Load(pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, 4)
        for _ in range(3):
            with trio.fail_after(10), pytest.raises(ResetFailed, match="flag is missing") as caught:
                await pool.reset()
            assert "the old ones go on" in str(caught.value)
        load.going = False
    assert load.failed == []
    assert {worker.pid for worker in pool.workers()} == before
    assert pool.phase is PoolPhase.READY
    assert pool.generation == 1
    # Only the canary was tried, once per reset.
    assert len(stage.deaths) == 3
    flag.touch()
    with trio.fail_after(10):
        await pool.reset()
    assert before.isdisjoint(worker.pid for worker in pool.workers() if worker.status in (1, 2))


async def test_reset_from_inside_a_busy_worker(stage: Stage) -> None:
    """A worker that asks for the reset while it is busy gets its answer: the reset does not wait for it."""
    pool = await stage.pool(num_workers=1)
    outcomes = stage.submit(pool, "sleep", b"1")
    await until(lambda: pool.in_flight == 1)
    begun = time.monotonic()
    with trio.fail_after(5):
        await pool.reset()
    assert time.monotonic() - begun < 0.8
    assert outcomes == []
    assert await stage.ask(pool, "echo", b"new") == b"new"
    assert body_of(await stage.exactly_one(outcomes)) == b"slept"
    await until(lambda: len(pool.workers()) == 1)
    assert stage.deaths == []


async def test_concurrent_resets_share(stage: Stage) -> None:
    """Calls during a reset share the next one: two generations for any number of callers."""
    pool = await stage.pool(num_workers=2)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pool.reset)
    assert pool.generation in (2, 3)
    await until(lambda: len(pool.workers()) == 2)


async def test_reset_kills_what_is_busy_too_long(stage: Stage) -> None:
    """An old worker still busy after reset_timeout is killed; its exec says so."""
    pool = await stage.pool(num_workers=1, reset_timeout=0.3)
    outcomes = stage.submit(pool, "sleep", b"30", "long job")
    await until(lambda: pool.in_flight == 1)
    await trio.sleep(0.1)  # time for the worker to read its request
    await pool.reset()
    outcome = await stage.exactly_one(outcomes)
    assert isinstance(outcome, WorkerDied)
    assert "still busy when the time to reset was over" in str(outcome)
    await until(lambda: stage.deaths)
    assert stage.deaths[0].doing == "long job"


async def test_reset_with_a_corpse_and_a_stopped_worker(stage: Stage) -> None:
    """A dead and a stopped worker of the old generation do not hold up the new one."""
    pool = await stage.pool(num_workers=3, stop_timeout=0.5)
    pids = [worker.pid for worker in pool.workers()]
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGSTOP)
    with trio.fail_after(5):
        await pool.reset()
    await stage.whole(pool)
    assert not any(map(is_alive, pids))


# --- size -------------------------------------------------------------------------------------------------------------


async def test_add_and_remove(stage: Stage, tmp_path: pathlib.Path) -> None:
    """Workers come and go one by one, the last one stays; an added one that does not boot leaves the pool as it was."""
    flag = tmp_path / "flag"
    flag.touch()
    pool = await stage.pool("flag", env={"FLAG": str(flag)})
    with trio.fail_after(10):
        await pool.add_worker()
        await pool.add_worker()
    assert pool.ready_workers == 3
    flag.unlink()
    with trio.fail_after(10), pytest.raises(ResetFailed, match="flag is missing"):
        await pool.add_worker()
    assert (pool.num_workers, pool.ready_workers) == (3, 3)
    busy = stage.submit(pool, "sleep", b"0.3")
    for _ in range(4):
        with trio.fail_after(10):
            await pool.remove_worker()
    assert body_of(await stage.exactly_one(busy)) == b"slept"
    await until(lambda: len(pool.workers()) == 1)
    assert pool.num_workers == 1
    assert await stage.ask(pool, "echo", b"last") == b"last"


async def test_debug_mode(stage: Stage) -> None:
    """Every exec has a worker of its own, at most num_workers at a time, and none is left over."""
    pool = await stage.pool(debug=True, num_workers=2)
    assert pool.workers() == []
    assert pool.at_quorum
    outcomes = [stage.submit(pool, "pid") for _ in range(6)]
    await until(lambda: all(outcomes))
    assert len({body_of(one[0]) for one in outcomes}) == 6
    assert isinstance(await stage.outcome(pool, "soft", b"no"), ExecFailed)
    await pool.reset()
    await until(lambda: pool.workers() == [])
    with trio.move_on_after(0.003):
        await pool.exec(b"echo", b"withdrawn")
    await until(lambda: pool.workers() == [])
    assert stage.deaths == []


async def test_debug_mode_with_a_worker_that_does_not_boot(stage: Stage) -> None:
    """In debug mode a failed boot fails the exec it was for, with the worker's own words."""
    pool = await stage.pool("exit", debug=True, num_workers=2)
    for _ in range(3):
        outcome = await stage.outcome(pool, "echo")
        assert isinstance(outcome, WorkerDied)
        assert "because of a missing extension" in str(outcome)
        assert not outcome.sent
    await until(lambda: pool.workers() == [])


# --- stop -------------------------------------------------------------------------------------------------------------


async def test_stop_lets_busy_workers_finish(stage: Stage) -> None:
    """Stop takes nothing new, refuses what waits, lets finish what runs."""
    pool = await stage.pool(num_workers=2)
    busy = [stage.submit(pool, "sleep", b"0.4") for _ in range(2)]
    waiting = stage.submit(pool, "echo")
    with trio.fail_after(5):
        await pool.stop(trio.current_time() + 3)
    assert [body_of(one[0]) for one in busy] == [b"slept", b"slept"]
    assert [type(outcome) for outcome in waiting] == [PoolClosed]
    assert pool.phase is PoolPhase.STOPPED
    assert stage.deaths == []


async def test_stop_kills_at_its_deadline(stage: Stage) -> None:
    """A worker still busy at the deadline is killed, its children too, and its exec says why."""
    pool = await stage.pool(num_workers=2)
    child, _escaped = map(int, (await stage.ask(pool, "child")).split())
    busy = [stage.submit(pool, "spin", b"", "endless") for _ in range(2)]
    await trio.sleep(0.1)  # time for the workers to read their requests
    begun = time.monotonic()
    with trio.fail_after(5):
        await pool.stop(trio.current_time() + 0.4)
    assert 0.35 < time.monotonic() - begun < 1.2
    for one in busy:
        assert isinstance(one[0], WorkerDied)
        assert "time to stop was over" in str(one[0])
        assert len(one) == 1
    await until(lambda: not is_alive(child), 2)
    os.kill(_escaped, signal.SIGKILL)


async def test_stop_twice_with_a_shorter_deadline(stage: Stage) -> None:
    """A second stop shortens the first."""
    pool = await stage.pool(num_workers=1)
    stage.submit(pool, "spin")
    begun = time.monotonic()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stop, trio.current_time() + 30)
            await trio.sleep(0.1)
            nursery.start_soon(pool.stop, trio.current_time())
    assert time.monotonic() - begun < 1.5


async def test_stop_while_booting(stage: Stage) -> None:
    """Stop in the first boot ends the booting workers, soon."""
    pool = stage.make_pool("never", num_workers=3, boot_timeout=30)
    begun = time.monotonic()
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            await until(lambda: len(pool.workers()) == 3)
            await pool.stop(trio.current_time() + 5)
    assert time.monotonic() - begun < 3
    assert pool.phase is PoolPhase.STOPPED


async def test_stop_while_degraded(stage: Stage, tmp_path: pathlib.Path) -> None:
    """Stop of a pool that waits for its next probe ends it at once."""
    flag = tmp_path / "flag"
    flag.touch()
    pool = await stage.pool("flag", num_workers=2, env={"FLAG": str(flag)})
    flag.unlink()
    for worker in pool.workers():
        os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: pool.phase is PoolPhase.DEGRADED, 5)
    begun = time.monotonic()
    with trio.fail_after(5):
        await pool.stop(trio.current_time() + 4)
    assert time.monotonic() - begun < 1


async def test_stop_with_stubborn_workers(stage: Stage) -> None:
    """Workers deaf to the stop frame and to SIGTERM are killed when stop_timeout and the grace are over."""
    pool = await stage.pool("", "ignore-stop", "ignore-term", num_workers=2, stop_timeout=0.3)
    begun = time.monotonic()
    with trio.fail_after(8):
        await pool.stop(trio.current_time() + 6)
    assert 1.2 < time.monotonic() - begun < 2.5
    assert stage.deaths == []


# --- kills under load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [120, pytest.param(500, marks=pytest.mark.long)])
async def test_kills_under_load(stage: Stage, kills: int) -> None:
    """Any worker killed at any moment: at most the victim's own exec fails, and the pool is whole each time."""
    pool = await stage.pool(num_workers=4)
    load = Load(pool, b"sleep", b"0.002")
    load.body = b"0.002"
    failed_before = 0
    latencies = []
    signals = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM]
    outcomes: list[Outcome] = []

    async def client() -> None:
        while load.going:
            try:
                outcomes.append(await pool.exec(b"sleep", b"0.002", 4, "load"))
            except ExecFailed as error:
                outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(client)
        for number in range(kills):
            workers = pool.workers()
            victim = workers[number % len(workers)]
            deaths = pool.workshop.deaths.total()
            os.kill(victim.pid, signals[number % len(signals)])
            begun = time.monotonic()
            await until(lambda: pool.workshop.deaths.total() > deaths)  # noqa: B023 - called in here only
            await stage.whole(pool, 5)
            latencies.append(time.monotonic() - begun)
            failed = [outcome for outcome in outcomes if isinstance(outcome, ExecFailed)]
            assert len(failed) - failed_before <= 1
            for error in failed[failed_before:]:
                assert isinstance(error, WorkerDied)
                assert error.pid == victim.pid
            failed_before = len(failed)
        load.going = False
    latencies.sort()
    print(
        f"{kills} kills: {failed_before} execs of victims failed of {len(outcomes)}; whole again after "
        f"{1000 * latencies[len(latencies) // 2]:.1f} ms (median), {1000 * latencies[int(len(latencies) * 0.99)]:.1f} ms (p99)"
    )
    assert pool.workshop.deaths.total() == kills
    assert pool.restarts == kills
    assert failed_before > 0
    assert sum(isinstance(outcome, Answer) for outcome in outcomes) == len(outcomes) - failed_before
    assert all("signal" in record.explain() for record in stage.deaths)


async def test_kills_during_the_boot(stage: Stage) -> None:
    """A worker killed at any point of its boot is tried again until the pool is whole."""
    pool = await stage.pool(num_workers=2, quarantine=QuarantineConfig(deaths=0))
    for number in range(30):
        target = pool.workers()[0].pid
        known = {worker.pid for worker in pool.workers()}
        os.kill(target, signal.SIGKILL)
        await until(lambda: [w for w in pool.workers() if w.pid not in known], what="a new process")  # noqa: B023
        await trio.sleep(number * 0.0006)
        for worker in pool.workers():
            if worker.pid not in known:
                os.kill(worker.pid, signal.SIGSTOP if number % 10 == 9 else signal.SIGKILL)
                if number % 10 == 9:
                    os.kill(worker.pid, signal.SIGKILL)
        outcome = await stage.outcome(pool, "echo")
        assert isinstance(outcome, Answer | WorkerDied)
        await stage.whole(pool, 35)
        for _ in range(4):  # both workers prove themselves
            await trio.lowlevel.checkpoint()
            outcomes = [stage.submit(pool, "sleep", b"0.001") for _ in range(2)]
            for one in outcomes:
                await stage.exactly_one(one)


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "; true"])
async def test_shell_wrapper(stage: Stage, tail: str) -> None:
    """A shell around the worker, replaced by it or not, makes no difference."""
    line = " ".join(HOSTILE) + tail
    pool = await stage.pool(command=("sh", "-c", ("exec " if not tail else "") + line))
    assert await stage.ask(pool, "echo", b"through") == b"through"
    inner = int(await stage.ask(pool, "pid"))
    os.kill(inner, signal.SIGKILL)
    await until(lambda: stage.deaths)
    await stage.whole(pool)
    assert await stage.ask(pool, "echo", b"again") == b"again"
    with trio.fail_after(5):
        await pool.stop(trio.current_time() + 3)
