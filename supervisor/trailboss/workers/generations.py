"""Resets and changes of size: a new generation takes over, workers are added and removed, one change after the other.

The first worker of a new generation is the canary. It boots, warms up, and stands its window beside the old ones where
one is configured; only then the others follow, in the steps of :mod:`trailboss.workers.rollout`. Where the new code
does not boot, or does worse than the old, nothing has changed and whoever asked is told why, with the worker's own last
output. Resets that arrive while one is under way share the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from trailboss.log import logger
from trailboss.workers.limits import RetireCause
from trailboss.workers.outcome import Answer, Outcome
from trailboss.workers.pool_state import PoolPhase, pick_to_remove
from trailboss.workers.rollout import CanaryLimits, Figures, judge_canary, next_step
from trailboss.workers.worker import Worker, WorkerPhase

if TYPE_CHECKING:
    from trailboss.workers.lane import Lane
    from trailboss.workers.pool import Pool, Slot

__all__ = ["Generations", "ResetFailed"]

log = logger("server")

#: During a canary's window its figures are looked at so often.
WATCH_SECONDS = 0.25


class ResetFailed(Exception):
    """The new generation did not come up; the old one goes on. The text says why, with the worker's last output."""


@dataclass(eq=False, slots=True)
class _SharedReset:
    """One reset and everybody who waits for it."""

    done: trio.Event = field(default_factory=trio.Event)
    failure: str = ""


class CanaryWatch:
    """What the workers of two generations do while a canary stands its window; fed by their lanes."""

    def __init__(self, pool: Pool, generation: int) -> None:
        self.pool = pool
        self.generation = generation
        self.new = Figures()
        self.old = Figures()

    def finished(self, lane: Lane, generation: int, outcome: Outcome, seconds: float) -> None:
        """Reactor: an execution has ended on `lane`."""
        figures = self.new if generation >= self.generation else self.old
        figures.executions += 1
        figures.busy_seconds += seconds
        is_failure = self.pool.spec.is_failure
        if not isinstance(outcome, Answer) or (is_failure is not None and is_failure(outcome)):
            figures.failures += 1

    def died(self, generation: int) -> None:
        """A worker has died."""
        if generation >= self.generation:
            self.new.deaths += 1
            self.pool.look_again()  # at once: what takes its place would be given executions too
        else:
            self.old.deaths += 1


class Generations:
    """The pool's resets and changes of size. Made by the pool; `lock` is held by the change under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        #: Changes happen one after the other, so that each finds the number of slots it expects.
        self.lock = trio.Lock()
        self._resetting: _SharedReset | None = None
        self._next_reset: _SharedReset | None = None
        #: The last reset that failed: when (seconds since the epoch is for people: the log has it) and why; "" after one
        #: that succeeded.
        self.last_failure = ""

    @property
    def is_resetting(self) -> bool:
        """Whether a reset is under way."""
        return self._resetting is not None

    async def reset(self, reason: str) -> None:
        """See `Pool.reset`."""
        pool = self._pool
        nursery = pool.nursery
        assert nursery is not None
        # A reset promises the code as of now or later: one that is under way has begun before, so share the next.
        shared = self._next_reset
        if shared is None:
            shared = _SharedReset()
            if self._resetting is None:
                self._resetting = shared
                nursery.start_soon(self._reset_now, shared, reason)
            else:
                self._next_reset = shared
        await shared.done.wait()
        if shared.failure:
            raise ResetFailed(shared.failure)

    async def _reset_now(self, shared: _SharedReset, reason: str) -> None:
        pool = self._pool
        try:
            async with self.lock:
                shared.failure = self.last_failure = await self._replace_workers(reason)
        except BaseException:
            shared.failure = f"the pool {pool.name} is stopping"
            raise
        finally:
            shared.done.set()
            pool.look_again()  # what had to wait for the end of the reset
            self._resetting = self._next_reset
            self._next_reset = None
            if self._resetting is not None:
                if pool.nursery is not None and not pool.is_stopping:
                    pool.nursery.start_soon(self._reset_now, self._resetting, reason)
                else:
                    self._resetting.failure = f"the pool {pool.name} is stopping"
                    self._resetting.done.set()

    async def _replace_workers(self, reason: str) -> str:
        """Do one reset; returns "" or the reason of its failure."""
        pool = self._pool
        if pool.is_stopping:
            return f"the pool {pool.name} is stopping"
        generation = pool.generation + 1
        log.info("reset begins", pool=pool.name, reason=reason, generation=generation)
        rollout = _Rollout(pool, generation, self._surge())
        failure = await rollout.run()
        if failure:
            # In the log the worker's own words stand above; whoever asked gets them with the failure.
            brief = pool.last_failure if rollout.is_boot_failure else failure
            log.error("reset failed, the old workers go on", pool=pool.name, text=brief)
            return f"the new workers of the pool {pool.name} did not start, the old ones go on: {failure}"
        log.info(
            "reset done",
            pool=pool.name,
            generation=generation,
            busy=sum(1 for w in rollout.left if w.is_busy),
        )
        return ""

    def _surge(self) -> int:
        """How many workers above its size the pool may have now: as configured, as far as memory goes, at least one."""
        pool = self._pool
        wanted = pool.config.resolved_max_surge
        if pool.config.max_surge is None:
            wanted = max(wanted, pool.num_workers)
        if wanted <= 1:
            return wanted
        fits = pool.workshop.fits([worker.pid for worker in pool.serving_workers()])
        if fits < wanted:
            log.warning(
                "memory is short, the reset goes on with fewer new workers at once",
                pool=pool.name,
                at_once=max(1, fits),
            )
        return max(1, min(wanted, fits))

    async def booted(self, slots: list[Slot]) -> str:
        """Wait until each of `slots` has a ready worker or failed its first boot; returns the first failure's text."""
        failure = ""
        for slot in slots:
            await slot.booted.wait()
            if self._pool.is_stopping:
                return "the pool is stopping"
            if not slot.was_up:
                failure = failure or slot.failure or "a new worker left before it was ready"
        return failure

    async def add_workers(self, count: int = 1) -> None:
        """See `Pool.add_worker`; they boot at the same time, and those that come up stay."""
        pool = self._pool
        async with self.lock:
            # Asked in here: the pool may have begun to stop while another change was under way.
            if pool.phase not in (PoolPhase.READY, PoolPhase.DEGRADED) or pool.debug:
                raise ResetFailed(
                    f"the pool {pool.name} takes no further worker now (it is {pool.phase.value})"
                )
            await self._add_workers(count)

    async def _add_workers(self, count: int) -> None:
        pool = self._pool
        slots = [pool.add_slot(pool.generation, trial=True) for _ in range(count)]
        pool.num_workers += count
        sizes_configured = pool.sizes_configured
        try:
            failure = await self.booted(slots)
        finally:
            # Also where nobody waits any more: a worker that is up stays, one that is not has not been added.
            for slot in slots:
                if not slot.was_up:
                    pool.retire_slot(slot, RetireCause.REMOVED, trio.current_time())
                    # Unless a reload has said meanwhile how many there are to be.
                    pool.num_workers -= sizes_configured == pool.sizes_configured
        if failure:
            raise ResetFailed(f"the new worker did not start: {failure}")

    async def remove_worker(self, *, idle_only: bool = False) -> bool:
        """See `Pool.remove_worker`; with `idle_only` a busy worker is left alone. Returns whether one was retired."""
        async with self.lock:
            # Its places may be more than its workers: a reload has made it smaller, and its reset comes next.
            if self._pool.num_workers < 2 or not self._remove_one(idle_only=idle_only):
                return False
            self._pool.num_workers -= 1
            return True

    def _remove_one(self, *, idle_only: bool = False) -> bool:
        """Give up one place, with the replacement that boots for it; False: the last one, or none that may go."""
        pool = self._pool
        replacements = {id(slot.replacement) for slot in pool.slots if slot.wanted and slot.replacement}
        places = [slot for slot in pool.slots if id(slot) not in replacements]
        number = pick_to_remove([slot.view() for slot in places], idle_only=idle_only)
        for slot in places:
            if slot.number == number:
                deadline = trio.current_time() + pool.config.reset_timeout
                if slot.replacement is not None:
                    pool.retire_slot(slot.replacement, RetireCause.REMOVED, deadline)
                pool.retire_slot(slot, RetireCause.REMOVED, deadline)
                return True
        return False

    async def fit(self) -> None:
        """Bring the number of places to the pool's size, where a reload has changed it and no reset did."""
        pool = self._pool
        async with self.lock:
            if pool.phase not in (PoolPhase.READY, PoolPhase.DEGRADED) or pool.debug:
                return
            while pool.places > pool.num_workers and self._remove_one():
                pass
            while pool.places < pool.num_workers:
                pool.add_slot(pool.generation)


class _Rollout:
    """One generation on its way in."""

    def __init__(self, pool: Pool, generation: int, surge: int) -> None:
        self._pool = pool
        self._generation = generation
        self._surge = surge
        self._total = max(1, pool.num_workers)
        self._old = [slot for slot in pool.slots if slot.wanted]
        self._new: list[Slot] = []
        #: Workers of the old generation that were told to go.
        self.left: list[Worker] = []

    async def run(self) -> str:
        """Carry it out; returns "" or why the old generation goes on."""
        pool = self._pool
        made_room = 0
        if not self._surge:  # no room above the pool's size: the canary takes the place of an old worker
            made_room = 1
            self._let_go(1)
        self._start(1)
        failure = await pool.generations.booted(self._new) or await self._watch_canary()
        if failure:
            self._give_up(made_room)
            return failure
        covered = self._surge >= self._total
        failure = await self._follow()
        if failure and covered:
            self._give_up(0)
            return failure
        pool.generation = self._generation
        for slot in self._new:
            slot.trial = False
        if failure:
            if not pool.is_stopping:
                self._let_go(max(0, pool.places - self._total))  # those that the surge was for
                for _ in range(self._total - pool.places):
                    pool.add_slot(pool.generation)
            return f"it stopped half-way, {len(self._new)} of {self._total} workers are new: {failure}"
        await self._see_off()
        return ""

    @property
    def is_boot_failure(self) -> bool:
        """Whether a new worker did not come up, rather than come up and do badly."""
        return any(slot.failure for slot in self._new)

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._new.append(self._pool.add_slot(self._generation, trial=True))

    def _let_go(self, count: int) -> None:
        """Retire so many of the old generation, idle ones first."""
        pool = self._pool
        deadline = trio.current_time() + pool.config.reset_timeout
        self._old.sort(key=lambda slot: slot.worker is not None and slot.worker.is_busy)
        going, self._old = self._old[:count], self._old[count:]
        for slot in going:
            if slot.worker is not None:
                self.left.append(slot.worker)
            pool.retire_slot(slot, RetireCause.RESET, deadline)

    def _give_up(self, made_room: int) -> None:
        """Back to the old generation: those that did come up may run something already, so they finish it."""
        pool = self._pool
        for slot in self._new:
            pool.retire_slot(slot, RetireCause.RESET, trio.current_time() + pool.config.reset_timeout)
        if not pool.is_stopping:
            for _ in range(made_room):
                pool.add_slot(pool.generation)

    async def _watch_canary(self) -> str:
        pool = self._pool
        canary = pool.config.canary
        if not canary.window:
            return ""
        limits = CanaryLimits(canary.error_rate, canary.latency_factor)
        watch = CanaryWatch(pool, self._generation)
        pool.watch_lanes(watch)
        try:
            until = trio.current_time() + canary.window
            while trio.current_time() < until and not pool.is_stopping:
                with trio.move_on_after(min(WATCH_SECONDS, max(0.0, until - trio.current_time()))):
                    await pool.change()
                verdict = judge_canary(watch.new, watch.old, limits)
                if verdict:
                    return f"the canary was given up: {verdict}"
        finally:
            pool.watch_lanes(None)
        return ""

    async def _follow(self) -> str:
        """Start the others and let the old ones go, step by step; returns the first failure."""
        pool = self._pool
        while True:
            up = sum(1 for slot in self._new if slot.was_up)
            failed = [slot for slot in self._new if slot.booted.is_set() and not slot.was_up]
            if failed:
                return failed[0].failure or "a new worker left before it was ready"
            if pool.is_stopping:
                return "the pool is stopping"
            self._old = [slot for slot in self._old if slot.wanted]  # one may have left to its replacement
            step = next_step(
                self._total,
                new_up=up,
                new_booting=len(self._new) - up,
                old=len(self._old),
                max_surge=self._surge,
                max_unavailable=pool.config.max_unavailable,
            )
            if up >= self._total:
                # From here on the new generation is the one that counts; a worker that leaves is replaced by its like.
                pool.generation = self._generation
                self._let_go(len(self._old))
                return ""
            self._let_go(step.retire)
            self._start(step.start)
            if not step.start and not step.retire:
                await pool.change()
            elif self.left and self._surge < self._total:
                # Those above the size are to be gone before more are started.
                await self._gone([worker for worker in self.left if not worker.is_busy])

    async def _see_off(self) -> None:
        """Wait for the old workers that had nothing to do; those that are busy finish by themselves."""
        await self._gone([worker for worker in self.left if not worker.is_busy])

    async def _gone(self, workers: list[Worker]) -> None:
        pool = self._pool
        deadline = trio.current_time() + pool.config.reset_timeout
        while any(worker.phase is not WorkerPhase.EXITED for worker in workers):
            if trio.current_time() >= deadline or pool.is_stopping:
                return
            with trio.move_on_at(deadline):
                await pool.change()
