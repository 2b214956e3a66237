"""Keeping a healthy pool in shape: workers that are due go one after the other, and its size follows the load.

One task carries out what the pure planners say (:mod:`trailboss.workers.recycle`, :mod:`trailboss.workers.autoscale`).
It sleeps until the pool changes; a timer runs only while something has a time of its own: a memory limit to sample for,
a replacement to try again, a queue that autoscaling watches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trailboss.log import logger
from trailboss.workers.autoscale import AutoscaleLimits, Controller, Load
from trailboss.workers.generations import ResetFailed
from trailboss.workers.limits import RetireCause
from trailboss.workers.pool_state import PoolPhase
from trailboss.workers.recycle import DueWorker, Replacement, plan
from trailboss.workers.sampling import memory_bytes
from trailboss.workers.worker import WorkerPhase

if TYPE_CHECKING:
    from trailboss.config.schema import PoolConfig
    from trailboss.workers.pool import Pool, Slot

__all__ = ["Upkeep"]

log = logger("server")

#: A replacement that did not boot is tried again after this time; the worker it was for goes on.
RETRY_SECONDS = 30.0
#: A size that could not be reached, or cannot be changed now, is looked at again after this time.
RESIZE_RETRY_SECONDS = 5.0


class Upkeep:
    """Recycling, the memory limit and the size of one pool."""

    #: Memory of workers that work is looked at so often where max_worker_memory is set: one that has grown within a
    #: single execution should not get many more.
    MEMORY_SECONDS = 0.5
    #: And that of workers which have done nothing since the last look.
    MEMORY_IDLE_SECONDS = 5.0

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.controller = _controller(pool.config)
        self._nursery: trio.Nursery | None = None
        self._tasks: set[str] = set()
        self._queue_grew = trio.Event()
        self._held_back = ""
        #: A worker that was to be added did not start: no other is before this time.
        self._grow_not_before = 0.0

    def begin(self, nursery: trio.Nursery) -> None:
        """Start the tasks that this pool needs; they end with its nursery."""
        self._nursery = nursery
        self._start_tasks()

    def _start_tasks(self) -> None:
        pool, nursery = self._pool, self._nursery
        if pool.debug or nursery is None or pool.nursery is None or pool.is_stopping:
            return
        wanted = {
            "recycle": True,
            "memory": bool(pool.limits.memory_bytes),
            "scale": self.controller is not None,
        }
        tasks = {"recycle": self._recycle, "memory": self._watch_memory, "scale": self._scale}
        for name, task in tasks.items():
            if wanted[name] and name not in self._tasks:
                self._tasks.add(name)
                nursery.start_soon(task)

    def apply(self, config: PoolConfig) -> None:
        """Take in a changed configuration of the pool."""
        self.controller = _controller(config)
        self._start_tasks()
        self._queue_grew.set()

    # --- recycling ----------------------------------------------------------------------------------------------------

    def left(self, slot: Slot) -> None:
        """The worker of `slot` has left, whatever for: it is not due any more, and its replacement takes its place."""
        slot.due = None
        replacement, slot.replacement = slot.replacement, None
        if replacement is not None and replacement.wanted and slot.wanted:
            # It was to leave anyhow; the slot ends, and the one that was on trial stays.
            slot.wanted = False
            replacement.trial = False

    async def _recycle(self) -> None:
        pool = self._pool
        while True:
            retry_at = self._recycle_once(trio.current_time())
            with trio.move_on_at(retry_at):
                await pool.change()

    def _recycle_once(self, now: float) -> float:
        """Carry out one plan; returns when to look again although nothing changes."""
        pool = self._pool
        if pool.is_stopping or pool.generations.is_resetting:
            return float("inf")  # a reset replaces all of them anyhow
        due: list[DueWorker] = []
        slots: dict[int, Slot] = {}
        retry_at = float("inf")
        for slot in pool.slots:
            if slot.due is None or not slot.wanted or slot.worker is None:
                continue
            state = self._replacement_of(slot, now)
            if state is Replacement.NONE and now < slot.replace_not_before:
                retry_at = min(retry_at, slot.replace_not_before)
                continue
            slots[slot.number] = slot
            leaving = slot.worker.retire_cause is not None
            due.append(DueWorker(slot.number, slot.due_since, slot.worker.is_busy, state, leaving))
        if not due:
            return retry_at
        serving = pool.serving_workers()
        made = plan(
            due,
            configured=pool.num_workers,
            serving=len(serving),
            max_unavailable=pool.config.max_unavailable,
            headroom=self._headroom(len(due)),
        )
        for number in made.boot:
            slot = slots[number]
            pool.restarts += 1
            slot.replacement = pool.add_slot(slot.generation, trial=True)
            log.info(
                "a worker is due and will be replaced",
                pool=pool.name,
                pid=slot.worker.pid if slot.worker is not None else 0,
                cause=slot.due.value if slot.due is not None else "",
            )
        for number in made.retire:
            self._retire(slots[number], now)
        return retry_at

    def _replacement_of(self, slot: Slot, now: float) -> Replacement:
        replacement = slot.replacement
        if replacement is None:
            return Replacement.NONE
        if replacement.was_up:
            return Replacement.READY
        if replacement.booted.is_set() or not replacement.wanted:
            log.warning(
                "the replacement of a worker did not start; the worker goes on",
                pool=self._pool.name,
                text=replacement.failure,
                retry_seconds=RETRY_SECONDS,
            )
            slot.replacement = None
            slot.replace_not_before = now + RETRY_SECONDS
            return Replacement.NONE
        return Replacement.BOOTING

    def _retire(self, slot: Slot, now: float) -> None:
        assert slot.due is not None
        deadline = now + self._pool.config.reset_timeout
        if slot.replacement is not None:
            self._pool.retire_slot(slot, slot.due, deadline)
        elif slot.worker is not None:
            slot.worker.retire(slot.due)

    def _headroom(self, wanted: int) -> int:
        """For how many of `wanted` further workers there is memory."""
        if self._pool.config.max_surge == 0:
            return 0
        return min(wanted, self._pool.workshop.fits([worker.pid for worker in self._pool.serving_workers()]))

    async def _watch_memory(self) -> None:
        """Retire workers above max_worker_memory, in their turn and after what they run."""
        pool = self._pool
        looked: dict[int, int] = {}  # process id: executions at the last look
        everybody_at = 0.0
        while pool.limits.memory_bytes:
            await trio.sleep(self.MEMORY_SECONDS)
            if trio.current_time() >= everybody_at:
                looked.clear()
                everybody_at = trio.current_time() + self.MEMORY_IDLE_SECONDS
            proportional = pool.config.supervisor.memory_measure == "pss"
            for slot in pool.slots:
                worker = slot.worker
                if worker is None or worker.phase is not WorkerPhase.READY or slot.due is not None:
                    continue
                executions = worker.lane.executions if worker.lane is not None else 0
                if not worker.is_busy and looked.get(worker.pid) == executions:
                    continue
                looked[worker.pid] = executions
                used = memory_bytes(worker.pid, proportional=proportional)
                worker.note_memory(used)
                if 0 < pool.limits.memory_bytes < used:
                    log.info(
                        "worker above max_worker_memory", pid=worker.pid, pool=pool.name, memory_bytes=used
                    )
                    pool.due(worker, RetireCause.MEMORY)
        self._tasks.discard("memory")

    def describe(self) -> dict[str, object] | None:
        """JSON values for `trailboss.State`; None for a pool of fixed size."""
        controller = self.controller
        if controller is None:
            return None
        return {
            "min": controller.limits.minimum,
            "max": controller.limits.maximum,
            "held_back": controller.held_back,
        }

    # --- size ---------------------------------------------------------------------------------------------------------

    def queue_grew(self) -> None:
        """Reactor: something waits for a worker."""
        self._queue_grew.set()

    async def _scale(self) -> None:
        pool = self._pool
        while (controller := self.controller) is not None:
            now = trio.current_time()
            load = self._load(now)
            if pool.phase is PoolPhase.READY and not pool.generations.lock.locked():
                wanted = controller.decide(now, load)
                if controller.held_back != self._held_back:
                    self._held_back = controller.held_back
                    if self._held_back:
                        log.warning(
                            "the pool is overloaded", pool=pool.name, text=self._held_back, queued=load.queued
                        )
                await self._resize(load.wanted, wanted)
            self._queue_grew = trio.Event()
            controller = self.controller  # a reload may have brought another one
            if controller is None:
                break
            now = trio.current_time()
            load = self._load(now)
            again = controller.next_look(now, load)
            if load.wanted < controller.limits.minimum:
                # It was looked at just now, and could not be done: a reset is under way, or no worker starts.
                again = now + RESIZE_RETRY_SECONDS
            with trio.move_on_at(again):
                await self._queue_grew.wait()
        self._tasks.discard("scale")

    async def _resize(self, present: int, wanted: int) -> None:
        pool = self._pool
        if wanted == present or (wanted > present and trio.current_time() < self._grow_not_before):
            return
        log.info("the pool changes its size", pool=pool.name, workers=wanted, before=present)
        if wanted < present:
            await pool.generations.remove_worker(idle_only=True)
            return
        try:
            await pool.generations.add_workers(wanted - present)
        except ResetFailed as error:
            self._grow_not_before = trio.current_time() + RESIZE_RETRY_SECONDS
            log.warning("a further worker did not start", pool=pool.name, text=str(error))

    def _load(self, now: float) -> Load:
        pool = self._pool
        figures = pool.statistics()
        controller = self.controller
        assert controller is not None
        may_grow = figures.queued and pool.num_workers < controller.limits.maximum
        return Load(
            wanted=pool.num_workers,
            booting=figures.booting,
            busy=figures.busy,
            queued=figures.queued,
            oldest_wait_seconds=pool.oldest_wait_seconds(now),
            headroom=pool.workshop.fits([worker.pid for worker in pool.serving_workers()]) if may_grow else 0,
        )


def _controller(config: PoolConfig) -> Controller | None:
    """Return what decides about the size of a pool with this configuration; None: it is fixed."""
    keys = config.resolved_autoscale
    if keys is None:
        return None
    return Controller(
        AutoscaleLimits(keys.min, keys.max, keys.target_queue_time, keys.up_step, keys.down_after)
    )
