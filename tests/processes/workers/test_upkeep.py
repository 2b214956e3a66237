"""Recycling in turn, rollouts in steps, canaries that are watched, warm-ups, quarantine, sizes that follow the load."""

from __future__ import annotations

import pathlib
import sys
from dataclasses import replace

import pytest
import trio

from trailboss.config.schema import AutoscaleConfig, CanaryConfig, QuarantineConfig, Warmup
from trailboss.workers.generations import ResetFailed
from trailboss.workers.limits import RetireCause
from trailboss.workers.outcome import Answer, ExecFailed, Quarantined, WorkerDied
from trailboss.workers.pool import Pool
from trailboss.workers.pool_state import PoolPhase
from trailboss.workers.workshop import PoolSpec

from .stage import HOSTILE, Stage, until


class Watch:
    """Looks at a pool at every change and remembers the extremes."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.fewest = self.most = pool.statistics().ready
        pool.change_listeners.append(self.look)

    def look(self) -> None:
        """One look."""
        ready = self.pool.statistics().ready
        self.fewest, self.most = min(self.fewest, ready), max(self.most, ready)


async def load(pool: Pool, failures: list[ExecFailed], done: trio.Event, command: bytes = b"echo") -> None:
    """Exec without a pause until `done`."""
    while not done.is_set():
        try:
            await pool.exec(command, b"0.01" if command == b"sleep" else b"x", 4, "load")
        except ExecFailed as error:
            failures.append(error)


def has_begun(pool: Pool, count: int) -> bool:
    """Whether so many workers have read what they are to do: one that dies before that has not tried it."""
    lanes = [worker.lane for worker in pool.serving_workers() if worker.lane is not None and worker.is_busy]
    return len(lanes) == count and not any(lane.request_is_unread() for lane in lanes)


async def test_all_due_at_once_are_replaced_one_after_the_other(stage: Stage) -> None:
    """Four workers due in the same moment: never fewer than four serve, and never more than five."""
    pool = await stage.pool(num_workers=4)
    before = {worker.pid for worker in pool.workers()}
    watch = Watch(pool)
    for worker in pool.serving_workers():
        pool.due(worker, RetireCause.TTL)
    await until(lambda: before.isdisjoint(worker.pid for worker in pool.workers()))
    await stage.whole(pool)
    assert (watch.fewest, watch.most) == (4, 5)
    assert stage.deaths == []


async def test_a_replacement_that_does_not_boot_changes_nothing(stage: Stage) -> None:
    """The worker that is due goes on; its replacement is tried again later."""
    pool = await stage.pool(num_workers=1)
    pid = pool.workers()[0].pid
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "exit"))
    pool.due(pool.serving_workers()[0], RetireCause.TTL)
    await until(lambda: stage.deaths)
    await until(lambda: len(pool.slots) == 1)
    assert [worker.pid for worker in pool.workers()] == [pid]
    assert await stage.ask(pool, "echo", b"still here") == b"still here"
    assert pool.slots[0].replace_not_before > trio.current_time() + 20


async def test_a_due_worker_that_dies_leaves_its_place_to_the_replacement(stage: Stage) -> None:
    """Neither two workers for the slot nor none."""
    pool = await stage.pool(num_workers=2)
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "late"))
    worker = pool.serving_workers()[0]
    pool.due(worker, RetireCause.TTL)
    await until(lambda: len(pool.slots) == 3)
    worker.kill("for the test")
    await until(lambda: len(pool.slots) == 2)
    await stage.whole(pool)
    assert len(pool.slots) == 2


async def test_max_jobs_has_its_replacement_ready(stage: Stage) -> None:
    """A long quota is never waited for: the next worker is up before the last execution of the old one."""
    pool = await stage.pool(num_workers=1, max_jobs=40)
    watch = Watch(pool)
    pids = set()
    for _ in range(100):
        pids.add(int(await stage.ask(pool, "pid")))
        await trio.sleep(0.03)
    await stage.whole(pool)
    assert len(pids) >= 3
    assert watch.fewest >= 1
    assert stage.deaths == []


async def test_surge_of_one(stage: Stage) -> None:
    """A reset under load with max_surge 1: at most one worker more, never one less, no exec fails."""
    pool = await stage.pool(num_workers=4, max_surge=1)
    watch = Watch(pool)
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, pool, failures, done)
        nursery.start_soon(load, pool, failures, done)
        with trio.fail_after(20):
            await pool.reset()
        done.set()
    assert failures == []
    assert pool.generation == 2
    await until(lambda: {worker.generation for worker in pool.workers()} == {2})
    assert watch.fewest >= 4
    assert watch.most <= 5


async def test_no_surge(stage: Stage) -> None:
    """With max_surge 0 an old worker makes room first; a canary that fails gives the place back."""
    pool = await stage.pool(num_workers=3, max_surge=0, max_unavailable=1)
    watch = Watch(pool)
    with trio.fail_after(20):
        await pool.reset()
    await stage.whole(pool)
    assert (watch.fewest, watch.most) == (2, 3)
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "exit"))
    with trio.fail_after(20), pytest.raises(ResetFailed, match="exit code"):
        await pool.reset()
    object.__setattr__(pool.spec.config, "command", HOSTILE)
    await stage.whole(pool, 20)
    assert pool.generation == 2


async def test_a_canary_that_fails_its_executions_is_given_up(stage: Stage) -> None:
    """The new code boots, and answers with errors: the old generation goes on, and the caller is told the figures."""
    pool = await stage.pool(num_workers=2, canary=CanaryConfig(window=5.0))
    old = {worker.pid for worker in pool.workers()}
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "", "always-error"))
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(load, pool, failures, done)
        with trio.fail_after(20), pytest.raises(ResetFailed, match=r"canary.*executions failed"):
            await pool.reset()
        done.set()
    await until(lambda: len(pool.slots) == 2)
    assert {worker.pid for worker in pool.workers()} == old
    assert pool.generation == 1
    assert "canary" in str(pool.describe()["last_reset_failure"])


async def test_a_canary_that_dies_is_given_up(stage: Stage) -> None:
    """A death within the window is enough."""
    pool = await stage.pool(num_workers=2, canary=CanaryConfig(window=5.0))
    async with trio.open_nursery() as nursery:
        caught: list[str] = []

        async def reset() -> None:
            with trio.fail_after(20), pytest.raises(ResetFailed) as info:
                await pool.reset()
            caught.append(str(info.value))

        nursery.start_soon(reset)
        await until(lambda: len(pool.serving_workers()) == 3)
        pool.serving_workers()[-1].kill("for the test")
    assert "died within canary.window" in caught[0]
    await until(lambda: {worker.generation for worker in pool.workers()} == {1})


async def test_a_canary_has_its_share_of_little_load(stage: Stage) -> None:
    """One client that asks one thing after the other reaches the canary in its turn: it is neither unused nor used alone."""
    pool = await stage.pool(num_workers=3, canary=CanaryConfig(window=1.0))
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, pool, failures, done)
        nursery.start_soon(pool.reset)
        await until(lambda: len(pool.serving_workers()) == 4)
        canary = pool.serving_workers()[-1]
        before = pool.executions
        await until(lambda: pool.executions >= before + 40)
        lane = canary.lane
        assert lane is not None
        share = lane.executions / (pool.executions - before)
        await until(lambda: {worker.generation for worker in pool.workers()} == {2})
        done.set()
    assert 0.15 <= share <= 0.35  # neither unused nor alone
    assert failures == []


async def test_a_canary_that_dies_has_no_successor(stage: Stage) -> None:
    """Under load a canary that dies costs its own execution only: nothing is given to another one of its kind."""
    pool = await stage.pool(num_workers=2, canary=CanaryConfig(window=5.0))
    canaries: set[int] = set()

    def look() -> None:
        canaries.update(worker.pid for worker in pool.serving_workers() if worker.generation == 2)

    pool.change_listeners.append(look)
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, pool, failures, done)

        async def reset() -> None:
            with trio.fail_after(20), pytest.raises(ResetFailed, match="1 of its workers died"):
                await pool.reset()

        nursery.start_soon(reset)
        await until(lambda: len(pool.serving_workers()) == 3)
        pool.serving_workers()[-1].kill("for the test")
        await until(lambda: pool.generations.last_failure)
        await until(lambda: {worker.generation for worker in pool.workers()} == {1})
        done.set()
    assert len(canaries) == 1
    assert len(failures) <= 1


async def test_a_good_canary_is_followed(stage: Stage) -> None:
    """After its window the others come."""
    pool = await stage.pool(num_workers=2, canary=CanaryConfig(window=0.5))
    with trio.fail_after(20):
        await pool.reset()
    assert {worker.generation for worker in pool.workers()} == {2}
    assert all(worker.lane is not None and worker.lane.watch is None for worker in pool.serving_workers())


def _with_requests(stage: Stage, *paths: str, **keys: object) -> Pool:
    pool = stage.make_pool(warmup=Warmup(paths=paths), **keys)  # type: ignore[arg-type]

    def request(path: str) -> tuple[bytes, bytes, int]:
        return path.encode(), b"warm", 4

    def failure(answer: Answer) -> str:
        return "status 500" if answer.body == b"bad" else ""

    spec = pool.spec
    pool.spec = PoolSpec(spec.name, spec.mode, spec.config, spec.extra_env, request, failure)
    return pool


async def test_warm_up_by_requests(stage: Stage) -> None:
    """They are answered before the worker counts, and are no executions."""
    pool = _with_requests(stage, "echo", "pid", num_workers=2)
    with trio.fail_after(10):
        await stage.nursery.start(pool.run)
    await stage.whole(pool)
    assert [worker.executions for worker in pool.workers()] == [0, 0]
    assert pool.executions == 0
    assert await stage.ask(pool, "echo", b"x") == b"x"


async def test_a_warm_up_that_fails_ends_a_reset(stage: Stage) -> None:
    """At a start it is a warning, in a reset the reason of its failure."""
    pool = _with_requests(stage, "soft", num_workers=1)
    with trio.fail_after(10):
        await stage.nursery.start(pool.run)
    with trio.fail_after(10), pytest.raises(ResetFailed, match="its warm-up failed: soft: "):
        await pool.reset()
    assert await stage.ask(pool, "echo", b"x") == b"x"


async def test_a_warm_up_that_never_ends(stage: Stage) -> None:
    """Its time is bounded, and the worker that hangs in it is replaced."""
    pool = _with_requests(stage, "hang", num_workers=1, warmup_timeout=0.3, quorum=0)
    with trio.fail_after(10):
        await stage.nursery.start(pool.run)
    await until(lambda: stage.deaths)
    assert stage.deaths[0].cause == "warmup"
    assert "warmup_timeout (0.3 s)" in stage.deaths[0].text


async def test_warm_up_by_a_command(stage: Stage, tmp_path: pathlib.Path) -> None:
    """It knows the worker's pid, runs before the worker counts, and its failure ends a reset with its last line."""
    noted = tmp_path / "pids"
    program = f"import os; open({str(noted)!r}, 'a').write(os.environ['TRAILBOSS_WORKER_PID'] + '\\n')"
    pool = await stage.pool(num_workers=2, warmup=Warmup(command=(sys.executable, "-c", program)))
    assert {int(line) for line in noted.read_text().split()} == {worker.pid for worker in pool.workers()}
    failing = Warmup(command=(sys.executable, "-c", "import sys; sys.exit('no cache to warm')"))
    object.__setattr__(pool.spec.config, "warmup", failing)
    with trio.fail_after(20), pytest.raises(ResetFailed, match="no cache to warm"):
        await pool.reset()


async def test_what_kills_workers_is_quarantined(stage: Stage) -> None:
    """After three deaths it is refused; others are not; the list can be seen and cleared."""
    pool = await stage.pool(num_workers=2, quarantine=QuarantineConfig(deaths=3))
    for _ in range(3):
        assert isinstance(await stage.outcome(pool, "die", b"3", "GET /poison"), WorkerDied)
        await stage.whole(pool, 30)
    refused = await stage.outcome(pool, "die", b"3", "GET /poison")
    assert isinstance(refused, Quarantined)
    assert "3 workers" in str(refused)
    assert not refused.sent
    assert await stage.ask(pool, "echo", b"x") == b"x"
    entries = pool.quarantine.entries(stage.reactor.now)
    assert [(entry.label, entry.refused) for entry in entries] == [("GET /poison", 1)]
    assert pool.describe()["quarantined"] == 1
    assert pool.quarantine.remove(entries[0].fingerprint)
    assert isinstance(await stage.outcome(pool, "die", b"3", "GET /poison"), WorkerDied)


async def test_a_pool_that_is_killed_at_once_refuses_nothing(stage: Stage) -> None:
    """All its workers die over the same thing in one moment: that says nothing about it."""
    pool = await stage.pool(num_workers=4, quarantine=QuarantineConfig(deaths=2))
    outcomes = [stage.submit(pool, "sleep", b"0.4", "GET /") for _ in range(4)]
    await until(lambda: has_begun(pool, 4))
    for worker in pool.workers():
        pool.kill_one(worker.pid)
    for outcome in outcomes:
        assert isinstance(await stage.exactly_one(outcome), WorkerDied)
    assert await stage.ask(pool, "sleep", b"0") == b"slept"
    assert pool.quarantine.entries(stage.reactor.now) == []


async def test_a_retry_is_judged_by_the_death_before_it(stage: Stage) -> None:
    """Who tries again at once, when he hears of the death that was one too many, is refused."""
    pool = await stage.pool(num_workers=2, quarantine=QuarantineConfig(deaths=1))
    kinds: list[type] = []

    def on_outcome(outcome: object) -> None:
        kinds.append(type(outcome))
        if len(kinds) == 1:
            pool.submit(b"die", b"3", 4, on_outcome, "GET /poison")

    pool.submit(b"die", b"3", 4, on_outcome, "GET /poison")
    await until(lambda: len(kinds) == 2)
    assert kinds == [WorkerDied, Quarantined]
    await stage.whole(pool)


async def test_what_waits_is_refused_with_the_rest(stage: Stage) -> None:
    """A queue full of it must not kill one worker after the other once it is known."""
    pool = await stage.pool(num_workers=1, quarantine=QuarantineConfig(deaths=2))
    poison = [stage.submit(pool, "die", b"3", "GET /poison") for _ in range(8)]
    good = stage.submit(pool, "echo", b"x", "GET /good")
    kinds = [type(await stage.exactly_one(outcome)) for outcome in poison]
    assert kinds == [WorkerDied] * 2 + [Quarantined] * 6
    assert isinstance(await stage.exactly_one(good), Answer)
    assert len(stage.deaths) == 2


async def test_what_works_in_between_is_not(stage: Stage) -> None:
    """Workers killed from outside over a good request never put it in quarantine."""
    pool = await stage.pool(num_workers=1, quarantine=QuarantineConfig(deaths=2))
    for _ in range(4):
        outcomes = stage.submit(pool, "sleep", b"0.3", "GET /good")
        await until(lambda: has_begun(pool, 1))
        victim = pool.workers()[0].pid
        pool.kill_one(victim)
        assert isinstance(await stage.exactly_one(outcomes), WorkerDied)
        await stage.whole(pool, 30)
        assert await stage.outcome(pool, "sleep", b"0.3", "GET /good") is not None
    assert not pool.quarantine
    assert all(worker.lane is not None for worker in pool.serving_workers())


async def test_the_size_follows_the_load(stage: Stage) -> None:
    """A queue adds workers up to the maximum, idle time takes them away down to the minimum, nothing is lost."""
    scale = AutoscaleConfig(min=1, max=4, target_queue_time=0.02, down_after=0.3)
    pool = await stage.pool(num_workers=1, autoscale=scale)
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(load, pool, failures, done, b"sleep")
        await until(lambda: pool.statistics().ready == 4)
        done.set()
    assert failures == []
    await until(lambda: len(pool.slots) == 1)
    assert pool.num_workers == 1
    assert pool.phase is PoolPhase.READY
    assert stage.deaths == []


async def test_a_worker_removed_while_its_replacement_boots(stage: Stage) -> None:
    """One place less, not one worker more."""
    pool = await stage.pool(num_workers=3)
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "late"))
    for worker in pool.serving_workers():
        pool.due(worker, RetireCause.IDLE_TTL)
    await until(lambda: len(pool.slots) == 4)
    with trio.fail_after(10):
        await pool.remove_worker()
    assert (pool.num_workers, pool.places) == (2, 2)
    await until(lambda: len(pool.slots) == 2 and all(slot.due is None for slot in pool.slots))
    await stage.whole(pool)
    assert pool.places == 2


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_a_reset_with_another_size(stage: Stage, size: int) -> None:
    """What a reload does where the file says another number of workers: that many, all of them new."""
    pool = await stage.pool(num_workers=5)
    pool.apply(replace(pool.config, num_workers=size))
    with trio.fail_after(10):
        await pool.reset()
    await until(lambda: len(pool.slots) == size)
    assert {worker.generation for worker in pool.workers()} == {2}
    assert pool.num_workers == size


async def test_a_stop_in_the_middle_of_a_reset_in_steps(stage: Stage) -> None:
    """Nothing is put in for the workers that have gone already: the stop ends."""
    pool = await stage.pool(num_workers=3, max_surge=1)
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "late"))
    async with trio.open_nursery() as nursery:

        async def reset() -> None:
            with pytest.raises(ResetFailed, match="stopping"):
                await pool.reset()

        nursery.start_soon(reset)
        await until(lambda: any(slot.generation == 2 and slot.was_up for slot in pool.slots))
        with trio.fail_after(10):
            await pool.stop(trio.current_time() + 3)
    assert pool.slots == []


async def test_what_is_due_during_a_failed_reset_has_its_turn(stage: Stage) -> None:
    """Recycling waits for a reset, and goes on after one that changed nothing."""
    pool = await stage.pool(num_workers=1, canary=CanaryConfig(window=0.5))
    pid = pool.workers()[0].pid
    async with trio.open_nursery() as nursery:

        async def reset() -> None:
            with pytest.raises(ResetFailed):
                await pool.reset()

        nursery.start_soon(reset)
        await until(lambda: len(pool.serving_workers()) == 2)
        old, canary = pool.serving_workers()
        pool.due(old, RetireCause.TTL)
        canary.kill("for the test")
    await until(lambda: pid not in {worker.pid for worker in pool.workers()}, 10)
    await stage.whole(pool)
    assert pool.places == 1


async def test_a_pool_that_cannot_grow_does_not_try_without_a_pause(stage: Stage) -> None:
    """Overloaded, with workers that do not start: one try each few seconds."""
    scale = AutoscaleConfig(min=1, max=4, target_queue_time=0.01)
    pool = await stage.pool(num_workers=1, autoscale=scale)
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "exit"))
    outcomes = [stage.submit(pool, "sleep", b"0.3") for _ in range(4)]
    for outcome in outcomes:
        assert isinstance(await stage.exactly_one(outcome), Answer)
    assert len(stage.deaths) == 1
    assert (pool.num_workers, pool.places) == (1, 1)
