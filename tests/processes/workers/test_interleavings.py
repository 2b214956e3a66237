"""Everything that changes a pool at once, in random order over real workers: no place lost or doubled, one outcome each.

A scene is a pool of one of several shapes and, for a second or two, loads of which some kill their workers, resets (some
of them given up by who asked, some with code that does not boot), workers added, removed, due, killed, and sizes changed
as a reload does it. Then the trouble ends, and everything must come to rest: as many places as workers configured, every
one of them with a worker, each execution with exactly one outcome, every call returned. A failure names its seed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
import trio

from trailboss.config.schema import AutoscaleConfig, CanaryConfig
from trailboss.workers.generations import ResetFailed
from trailboss.workers.limits import RetireCause
from trailboss.workers.outcome import Outcome
from trailboss.workers.pool import Pool
from trailboss.workers.restart import Pace, RestartPolicy

from .stage import HOSTILE, Stage, until

#: Shapes of pools: keys of the configuration.
SHAPES: dict[str, dict[str, object]] = {
    "plain": {"num_workers": 4},
    "surge-one": {"num_workers": 4, "max_surge": 1},
    "no-surge": {"num_workers": 3, "max_surge": 0, "max_unavailable": 1},
    "canary": {"num_workers": 3, "canary": CanaryConfig(window=0.3)},
    "short-lived": {"num_workers": 4, "max_jobs": 15, "max_surge": 2},
    "scaled": {
        "num_workers": 2,
        "autoscale": AutoscaleConfig(min=1, max=5, target_queue_time=0.02, down_after=0.1),
    },
}
COMMANDS = ("echo", "echo", "echo", "sleep", "soft", "ask-stop", "two", "die", "close-out")
CAUSES = (RetireCause.TTL, RetireCause.IDLE_TTL, RetireCause.MEMORY)


class Hasty(RestartPolicy):
    """Waits little, so that a scene of two seconds sees many lives."""

    def backoff(self) -> RestartPolicy:
        """Itself, with short waits."""
        return replace(self, backoff_seconds_first=0.02, backoff_seconds_max=0.2)

    def boots(self, num_workers: int) -> Pace:
        """As many as there may be."""
        return Pace(1000.0, 1000.0, 1.0)

    def execs(self, num_workers: int) -> Pace:
        """As many as there may be."""
        return Pace(1000.0, 1000.0, 1.0)


@dataclass
class Scene:
    """One pool and what happens to it."""

    stage: Stage
    pool: Pool
    random: random.Random
    outcomes: list[list[Outcome]] = field(default_factory=list)
    returned: int = 0
    called: int = 0
    reloading: bool = False

    async def trouble(self, seconds: float) -> None:
        """Do one random thing after the other."""
        async with trio.open_nursery() as nursery:
            until_time = trio.current_time() + seconds
            while trio.current_time() < until_time:
                self.random.choice(self.actions)(self, nursery)
                await trio.sleep(self.random.choice((0.0, 0.002, 0.01, 0.03)))
            self.repair()

    def load(self, _nursery: trio.Nursery) -> None:
        """Some executions, of which some are the end of their workers."""
        for _ in range(self.random.randrange(1, 6)):
            command = self.random.choice(COMMANDS)
            body = {"sleep": b"0.02", "die": b"3"}.get(command, b"x")
            label = f"{command} {len(self.outcomes)}"  # each another one, so nothing is quarantined
            self.outcomes.append(self.stage.submit(self.pool, command, body, label))

    def _call(self, nursery: trio.Nursery, call: Callable[[], Awaitable[object]]) -> None:
        """Call it; one in three gives up soon."""
        patience = self.random.choice((30.0, 30.0, self.random.random() * 0.1))
        self.called += 1

        async def run() -> None:
            with trio.move_on_after(patience) as scope:
                try:
                    await call()
                except ResetFailed:
                    pass  # it says so; what counts is what is left
            assert patience < 1 or not scope.cancelled_caught, f"{call} does not return: {self.pool!r}"
            self.returned += 1

        nursery.start_soon(run)

    def reset(self, nursery: trio.Nursery) -> None:
        """A reset."""
        self._call(nursery, self.pool.reset)

    def add(self, nursery: trio.Nursery) -> None:
        """A further worker."""
        if self.pool.num_workers < 7:
            self._call(nursery, self.pool.add_worker)

    def remove(self, nursery: trio.Nursery) -> None:
        """A worker less."""
        self._call(nursery, self.pool.remove_worker)

    def due(self, _nursery: trio.Nursery) -> None:
        """Some workers are due at once."""
        for worker in self.pool.serving_workers():
            if self.random.random() < 0.5:
                self.pool.due(worker, self.random.choice(CAUSES))

    def kill(self, _nursery: trio.Nursery) -> None:
        """Somebody kills one, in whatever it is doing."""
        workers = self.pool.workers()
        if workers:
            self.pool.kill_one(self.random.choice(workers).pid)

    def configure(self, nursery: trio.Nursery) -> None:
        """What a reload does: another size, a reset, and back where that fails."""
        pool, size = self.pool, self.random.randrange(1, 6)

        async def reload() -> None:
            before, workers = pool.config, pool.num_workers
            pool.apply(replace(before, num_workers=size))
            try:
                await pool.reset("reload")
            except ResetFailed:
                pool.apply(replace(pool.config, num_workers=before.num_workers))
                pool.resize(workers)
                pool.fit()

        async def run() -> None:
            with trio.fail_after(30):
                await reload()
            self.returned += 1
            self.reloading = False

        if not self.reloading:  # reloads come one after the other
            self.reloading = True
            self.called += 1
            nursery.start_soon(run)

    def break_code(self, _nursery: trio.Nursery) -> None:
        """New workers do not start, or start and stay silent for a while, until it is repaired."""
        self._command(self.random.choice(((*HOSTILE, "exit"), (*HOSTILE, "late"), HOSTILE, HOSTILE)))

    def repair(self) -> None:
        """New workers start again."""
        self._command(HOSTILE)

    def _command(self, command: tuple[str, ...]) -> None:
        object.__setattr__(self.pool.config, "command", command)

    actions = (load, load, load, load, reset, add, remove, due, kill, configure, break_code)

    def say(self) -> str:
        """What is there, for a failure."""
        rows = [
            f"{slot.number}: wanted={slot.wanted} due={slot.due} trial={slot.trial} "
            f"replacement={slot.replacement and slot.replacement.number} {slot.worker!r}"
            for slot in self.pool.slots
        ]
        return "\n".join([repr(self.pool), f"num_workers={self.pool.num_workers}", *rows])

    async def settled(self) -> None:
        """Wait until each execution has its outcome; one only."""
        await until(lambda: all(self.outcomes), what="every execution has an outcome")
        assert {len(outcomes) for outcomes in self.outcomes} <= {1}

    def at_rest(self) -> bool:
        """Nothing is under way and every place has its worker."""
        pool = self.pool
        return (
            len(pool.slots) == pool.num_workers == len(pool.serving_workers())
            and all(slot.wanted and slot.replacement is None for slot in pool.slots)
            and not pool.generations.is_resetting
            and not pool.generations.lock.locked()
            and pool.queued == 0
        )


async def play(stage: Stage, shape: str, seed: int, seconds: float) -> Scene:
    """A scene up to the end of its trouble."""
    keys = {**SHAPES[shape], "boot_timeout": 5.0, "queue_timeout": 5.0, "reset_timeout": 2.0}
    pool = await stage.pool(policy=Hasty().backoff(), **keys)
    scene = Scene(stage, pool, random.Random(f"{shape} {seed}"))
    with trio.fail_after(60):
        await scene.trouble(seconds)
    return scene


async def check(scene: Scene) -> None:
    """It comes to rest, with nothing lost."""
    try:
        await until(scene.at_rest, 20, "the pool is at rest")
    except BaseException:
        print(scene.say())
        raise
    assert scene.returned == scene.called
    await scene.settled()
    assert await scene.stage.ask(scene.pool, "echo", b"still here") == b"still here"


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("shape", SHAPES)
async def test_nothing_is_lost(stage: Stage, shape: str, seed: int) -> None:
    """After whatever has happened the pool is whole and has the size it says."""
    await check(await play(stage, shape, seed, 1.2))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 115))
@pytest.mark.parametrize("shape", SHAPES)
async def test_nothing_is_lost_for_long(stage: Stage, shape: str, seed: int) -> None:
    """The same, with more seeds."""
    await check(await play(stage, shape, seed, 2.5))


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_stop_in_the_middle(stage: Stage, shape: str) -> None:
    """A stop ends everything, whatever is under way: every call returns, every execution has its outcome."""
    keys = {**SHAPES[shape], "boot_timeout": 5.0, "queue_timeout": 5.0, "reset_timeout": 2.0}
    for seed in (0, 1):
        pool = await stage.pool(policy=Hasty().backoff(), name=f"jobs{seed}", **keys)
        scene = Scene(stage, pool, random.Random(f"stop {shape} {seed}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.trouble, 0.6)
            await trio.sleep(0.4)
            with trio.fail_after(10):
                await pool.stop(trio.current_time() + 2)
            nursery.cancel_scope.deadline = trio.current_time() + 10
        assert pool.slots == []
        assert scene.returned == scene.called
        await scene.settled()
