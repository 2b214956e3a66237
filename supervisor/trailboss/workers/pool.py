"""A pool of workers: gives execs to idle workers, queues the rest, and keeps its slots filled.

Two planes meet here. Inside the reactor everything is plain calls: `submit` takes an idle lane or queues, a lane that
becomes free takes the next exec. In trio, one task per slot lives one worker after the other; it decides on the pace
with the pure :mod:`trailboss.workers.restart`. A slot is never lost: a pool without a worker is `degraded`, answers at
once, and keeps probing.

Reset goes by generations: the first worker of the new one is the canary. Only when it, and then the others, are ready,
the old ones take nothing new, finish what they run, and go. If the new code does not boot, nothing has changed.
"""

from __future__ import annotations

import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import trio

from trailboss.config.schema import PoolConfig
from trailboss.figures import Histogram
from trailboss.log import logger
from trailboss.workers.generations import CanaryWatch, Generations, ResetFailed
from trailboss.workers.glance import SlotGlance
from trailboss.workers.lane import Exec, FileBody, Lane, LaneWatch, OnOutcome, OnPart, Ticket
from trailboss.workers.limits import Limits, RetireCause
from trailboss.workers.outcome import (
    Answer,
    ExecFailed,
    Outcome,
    PoolClosed,
    PoolDegraded,
    Quarantined,
    QueueFull,
    QueueTimeout,
    WorkerDied,
)
from trailboss.workers.output import BootOutput
from trailboss.workers.pool_state import PoolPhase, SlotView, count, decide_phase
from trailboss.workers.process import Process
from trailboss.workers.quarantine import Quarantine, QuarantineLimits
from trailboss.workers.restart import FirstStart, RestartBudget, RestartPolicy, SlotHistory
from trailboss.workers.sampling import cpu_percent, resident_bytes
from trailboss.workers.upkeep import Upkeep
from trailboss.workers.worker import STACK_SECONDS, Worker, WorkerExit, WorkerPhase
from trailboss.workers.workshop import PoolSpec, Workshop

__all__ = [
    "Pool",
    "PoolPhase",
    "PoolSet",
    "PoolSpec",
    "PoolStartFailed",
    "PoolStatistics",
    "ResetFailed",
    "WorkerState",
]

log = logger("server")

#: Causes of deaths that say nothing about what was run: our own limits, and orders from outside.
_NOT_ITS_FAULT = frozenset({"exec_ttl", "stream timeout", "killed", "internal error"})


class PoolStartFailed(Exception):
    """The first boot of a pool failed for good. The text is one line; `details` is what a worker said, line by line."""

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


#: RoadRunner's numbers and texts of worker states (supervision: informer answers).
_STATUS = {
    WorkerPhase.SPAWNING: (0, "inactive"),
    WorkerPhase.HANDSHAKING: (0, "inactive"),
    WorkerPhase.DRAINING: (3, "invalid"),
    WorkerPhase.STOPPING: (4, "stopping"),
    WorkerPhase.EXITED: (5, "stopped"),
}
_RETIRE_STATUS = {
    RetireCause.MAX_JOBS: (7, "maxJobsReached"),
    RetireCause.IDLE_TTL: (9, "idleTTLReached"),
    RetireCause.TTL: (10, "ttlReached"),
    RetireCause.MEMORY: (11, "maxMemoryReached"),
}


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker for people and for `informer.Workers`. Memory in bytes, CPU in percent of one core since its start."""

    pid: int
    status: int
    status_text: str
    executions: int
    created_ns: int
    memory_bytes: int
    cpu_percent: float
    command: str
    doing: str
    doing_since_seconds: float
    generation: int


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Figures of a pool at one moment."""

    phase: PoolPhase
    configured: int
    ready: int
    idle: int
    busy: int
    booting: int
    leaving: int
    in_flight: int
    queued: int
    executions: int
    deaths: int
    restarts: int
    refused: int
    next_probe_seconds: float | None


@dataclass(eq=False, slots=True)
class Slot:
    """A place for one worker at a time; its task owns it."""

    number: int
    generation: int
    history: SlotHistory = field(default_factory=SlotHistory)
    #: False: the slot ends with its present worker.
    wanted: bool = True
    worker: Worker | None = None
    poked: trio.Event = field(default_factory=trio.Event)
    next_probe: float | None = None
    #: On trial (a new generation, an added worker): it ends if its first boot fails, instead of trying again.
    trial: bool = False
    #: First outcome of its boot, for whoever waits for it (reset, add_worker): ready, or the text of the failure.
    booted: trio.Event = field(default_factory=trio.Event)
    failure: str = ""
    #: A worker of it has been ready, whatever came later.
    was_up: bool = False
    #: Its worker has to go, since when, and who takes its place (see `upkeep`).
    due: RetireCause | None = None
    due_since: float = 0.0
    replacement: Slot | None = None
    #: No replacement is tried before this time.
    replace_not_before: float = 0.0

    def view(self) -> SlotView:
        """What the pure decisions need to know of it."""
        worker = self.worker
        up = worker is not None and worker.was_ready
        serving = worker is not None and worker.is_serving
        booting = worker is not None and worker.phase in (WorkerPhase.SPAWNING, WorkerPhase.HANDSHAKING)
        return SlotView(
            self.number,
            self.wanted,
            serving=serving,
            busy=worker is not None and worker.is_busy,
            booting=booting,
            leaving=worker is not None and not serving and not booting,
            hopeless=self.next_probe is not None or (self.history.streak > 1 and not up),
        )


class Pool:
    """See the module's text. Public verbs: `submit`, `exec`, `reset`, `add_worker`, `remove_worker`, `run`, `stop`."""

    def __init__(
        self,
        spec: PoolSpec,
        workshop: Workshop,
        *,
        policy: RestartPolicy | None = None,
        seed: int | None = None,
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.config: PoolConfig = spec.config
        self.workshop = workshop
        self.debug = spec.config.debug
        self.num_workers = spec.config.resolved_num_workers
        #: How often a reload has said anew how many workers there are to be.
        self.sizes_configured = 0
        self.policy = policy or RestartPolicy()
        self._random = random.Random(seed)
        self._reactor = workshop.reactor
        self.limits = limits_of(spec.config)
        self._queue_max = spec.config.resolved_max_queue_size
        self._boot_budget = RestartBudget(self.policy.boots(self.num_workers))
        self._exec_budget = RestartBudget(self.policy.execs(self.num_workers))
        self._first_start: FirstStart | None = FirstStart(self.num_workers)
        self._phase = PoolPhase.BOOTING
        #: A stack: the worker used last is the one whose memory is still in the caches, and a pool that is larger
        #: than its load lets the others grow old (idle_ttl).
        self._idle: list[Lane] = []
        self._queue: deque[Exec] = deque()
        self._queue_watched = False
        self.slots: list[Slot] = []
        self._slot_number = 0
        self.generation = 1
        self.nursery: trio.Nursery | None = None
        self.generations = Generations(self)
        self.upkeep = Upkeep(self)
        self._watch: CanaryWatch | None = None
        self.quarantine = Quarantine(quarantine_limits(spec.config))
        #: Looked at for every exec, so it is the plain dictionary: empty while nothing is suspected.
        self._suspects = self.quarantine.suspects
        self._changed = trio.Event()
        self._stop_requested = trio.Event()
        self._finished = trio.Event()
        self.last_failure = ""
        self.boot_output = BootOutput()
        #: Called from the reactor when a worker has become idle and nothing waits in the pool's own queue.
        self.idle_listener: Callable[[], None] | None = None
        #: Called when something begins to wait in the queue.
        self.queue_listener: Callable[[], None] | None = None
        #: Its size was changed by a configuration, and slots follow with the next reset.
        self._resizing = False
        #: Called with the reason when no worker is left and `on_exhausted: exit` is configured.
        self.on_exhausted: Callable[[str], None] | None = None
        #: Called on every change of phase or of the number of ready workers.
        self.change_listeners: list[Callable[[], None]] = []
        #: Execs answered (answers and soft errors) since the start.
        self.executions = 0
        self.restarts = 0
        self.refused = 0
        #: Execs that got no worker, by kind of ExecFailed ("QueueFull", …).
        self.refusals: Counter[str] = Counter()
        #: Workers replaced as planned, by RetireCause.
        self.recycles: Counter[str] = Counter()
        #: Seconds from an exec's start to its answer, and those that execs have waited in the queue before.
        self.exec_seconds = Histogram()
        self.queue_seconds = Histogram()

    def __repr__(self) -> str:
        figures = self.statistics()
        return (
            f"<Pool {self.name} {figures.phase.value}: {figures.idle} idle, {figures.busy} busy, "
            f"{figures.booting} booting, {figures.leaving} leaving, {figures.queued} queued>"
        )

    # --- execs, on the data plane -----------------------------------------------------------------------------------

    @overload
    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
    ) -> None: ...

    @overload
    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str,
        on_part: OnPart,
    ) -> Ticket: ...

    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
        on_part: OnPart | None = None,
    ) -> Ticket | None:
        """Give one payload to a worker; `on_outcome` is called exactly once with what becomes of it.

        It may be called before `submit` returns when the exec is refused at once (QueueFull, PoolDegraded, PoolClosed).
        Never raises. `label` says what it is, for death records and status.

        With `on_part` the worker may answer with a stream: `on_part` is called for each frame of it but the last, which
        is the outcome, and the Ticket returned (None without `on_part`) resumes and cancels it.
        """
        if not self._reactor.in_batch:
            self._reactor.touch()
        ticket = None
        if on_part is None:
            exec_ = Exec(context, body, flags, on_outcome, label)
        else:
            exec_ = ticket = Ticket(self, context, body, flags, on_outcome, label, on_part)
        if context or body:
            idle = self._idle  # the first part of `_dispatch`, without the call
            if idle and not self._suspects:
                lane = idle.pop()
                lane.parked = False
                if lane.start(exec_):
                    return ticket
            self._dispatch(exec_)
        else:
            # The PHP SDK takes an empty payload for the order to end (wire protocol 2.5).
            self._refuse(exec_, ExecFailed("a payload needs a context or a body"))
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        """Take `ticket` out of the queue and give it its outcome. False if it does not wait there."""
        try:
            self._queue.remove(ticket)
        except ValueError:
            return False
        self._deliver(ticket, ExecFailed("withdrawn: nobody wanted the answer any more; nothing was sent"))
        return True

    def lane_of(self, exec_: Exec) -> Lane | None:
        """The lane that has `exec_` now, or None."""
        for slot in self.slots:
            lane = slot.worker.lane if slot.worker is not None else None
            if lane is not None and lane.current is exec_ and not lane.closed:
                return lane
        return None

    def _dispatch(self, exec_: Exec) -> None:
        if self._suspects and self._is_quarantined(exec_):
            return
        idle = self._idle
        while idle:
            lane = idle.pop()
            lane.parked = False
            if lane.start(exec_):
                return
        phase = self._phase
        if phase is PoolPhase.DRAINING or phase is PoolPhase.STOPPED:
            self._refuse(exec_, PoolClosed(f"the pool {self.name} is stopping"))
        elif phase is PoolPhase.DEGRADED:
            self._refuse(exec_, PoolDegraded(self._degraded_text()))
        elif len(self._queue) >= self._queue_max:
            self._refuse(
                exec_, QueueFull(f"{len(self._queue)} executions wait for the pool {self.name} already")
            )
        else:
            exec_.deadline = self._reactor.now + self.config.queue_timeout
            self._queue.append(exec_)
            self._watch_queue()
            if self.upkeep.controller is not None:
                self.upkeep.queue_grew()
            if self.debug:
                self._add_debug_slot()

    def _is_quarantined(self, exec_: Exec) -> bool:
        """Refuse what has killed too many workers."""
        if not self.quarantine.knows(exec_.label):
            return False
        suspect = self.quarantine.refuses(self._reactor.now, exec_.label, self.payload_of(exec_))
        if suspect is None:
            return False
        seconds = max(0.0, (suspect.until or 0.0) - self._reactor.now)
        self._refuse(
            exec_,
            Quarantined(
                f"{len(suspect.deaths)} workers of the pool {self.name} died over it ({suspect.cause}); it is tried again "
                f"in {seconds:.0f} s, or when its quarantine {suspect.fingerprint} is lifted"
            ),
        )
        return True

    def note_death(
        self, worker: Worker, exec_: Exec | None, cause: str, *, began: float = 0.0, ended: float = 0.0
    ) -> None:
        """Owner task: `worker` has died, over `exec_` (from `began` to `ended`) if that is not None."""
        if self._watch is not None:
            self._watch.died(worker.generation)
        if exec_ is None or cause in _NOT_ITS_FAULT or not self.spec.quarantines:
            return
        before = bool(self._suspects)
        entry = self.quarantine.died(ended, exec_.label, self.payload_of(exec_), cause, began=began)
        if not before and self._suspects:
            self.watch_lanes(self._watch)
        if entry is not None:
            log.error(
                "quarantined: it has killed one worker after the other",
                pool=self.name,
                doing=entry.label,
                deaths=len(entry.deaths),
                cause=cause,
                fingerprint=entry.fingerprint,
                seconds=self.config.quarantine.expiry,
            )
            waiting, self._queue = self._queue, deque()
            self._queue.extend(exec_ for exec_ in waiting if not self._is_quarantined(exec_))

    def payload_of(self, exec_: Exec) -> bytes:
        """What of an execution counts for its fingerprint: the body (of one in a file its size), and the plugin's part."""
        body = exec_.body
        counted = body if isinstance(body, bytes) else b"%d" % len(body)
        part = self.spec.distinction
        return counted if part is None else part(exec_.context, exec_.flags) + b"\0" + counted

    def oldest_wait_seconds(self, now: float) -> float:
        """How long what waits longest in the queue has waited; 0 where nothing does."""
        if not self._queue:
            return 0.0
        return max(0.0, now - (self._queue[0].deadline - self.config.queue_timeout))

    def resubmit(self, exec_: Exec) -> None:
        """The worker that had it never answered it: it goes to the head of the queue (or to an idle worker)."""
        if exec_.cancelled:
            self._deliver(exec_, ExecFailed("withdrawn: nobody wanted the answer any more"))
            return
        idle = self._idle
        while idle:
            lane = idle.pop()
            lane.parked = False
            if lane.start(exec_):
                return
        if self._phase in (PoolPhase.DRAINING, PoolPhase.STOPPED) and not self._any_lane():
            self._refuse(exec_, PoolClosed(f"the pool {self.name} is stopping"))
            return
        if self._phase is PoolPhase.DEGRADED:
            self._refuse(exec_, PoolDegraded(self._degraded_text()))
            return
        exec_.deadline = self._reactor.now + self.config.queue_timeout
        self._queue.appendleft(exec_)
        self._watch_queue()
        if self.debug:
            self._add_debug_slot()

    def _any_lane(self) -> bool:
        return any(slot.worker is not None and slot.worker.retire_cause is None for slot in self.slots)

    def _refuse(self, exec_: Exec, why: ExecFailed) -> None:
        self.refused += 1
        self.refusals[type(why).__name__] += 1
        self._deliver(exec_, why)

    def _deliver(self, exec_: Exec, outcome: Outcome) -> None:
        try:
            exec_.on_outcome(outcome)
        except Exception:
            log.exception("the receiver of an outcome failed", pool=self.name)

    def lane_idle(self, lane: Lane) -> None:
        """Reactor: `lane` has answered and can take the next exec."""
        queue = self._queue
        while queue:
            exec_ = queue.popleft()
            if not lane.start(exec_):
                queue.appendleft(exec_)
                return
            self.queue_seconds.observe(self._reactor.now - exec_.deadline + self.config.queue_timeout)
            return
        lane.parked = True
        if self._watch is None:
            self._idle.append(lane)
        else:
            # While a canary is watched they take turns: under little load the one that was used last would always be the
            # next, and the canary would stand its window without having run anything.
            self._idle.insert(0, lane)
        listener = self.idle_listener
        if listener is not None:
            listener()

    def lane_gone(self, lane: Lane) -> None:
        """`lane` must not be given anything any more."""
        if lane.parked:
            lane.parked = False
            try:
                self._idle.remove(lane)
            except ValueError:
                pass

    def leave_out_the_dying(self) -> None:
        """A worker has died, and what has killed it may have killed others that nobody has heard of yet.

        What comes next, a request that is tried again for example, must not go to one of those: a killed process may
        still take it out of its pipe, and then nobody can tell that it has never begun.
        """
        idle = self._idle
        while idle and idle[-1].owner.is_dying():
            idle.pop().parked = False

    @property
    def idle_count(self) -> int:
        """Ready workers with nothing to do."""
        return len(self._idle)

    def holders(self) -> list[tuple[int, str, float]]:
        """Each busy worker: pid, what it does, for how many seconds. No system call."""
        now = self._reactor.now
        return [
            (worker.pid, lane.current.label, max(0.0, now - lane.started_at))
            for slot in self.slots
            if (worker := slot.worker) is not None
            and (lane := worker.lane) is not None
            and lane.current is not None
        ]

    @property
    def in_flight(self) -> int:
        """Execs that are with a worker now."""
        return sum(1 for slot in self.slots if slot.worker is not None and slot.worker.is_busy)

    @property
    def queued(self) -> int:
        """Execs that wait in the pool's own queue."""
        return len(self._queue)

    async def exec(self, context: bytes, body: bytes, flags: int = 0, label: str = "") -> Answer:
        """Give one payload to a worker and wait for its answer. Raises ExecFailed (one of its kinds).

        On cancellation: a payload that still waits is withdrawn; one that runs is left to finish within its limits,
        its outcome is dropped, and the worker is free afterwards.
        """
        result: list[Outcome] = []
        task = trio.lowlevel.current_task()
        waiting = False

        def on_outcome(outcome: Outcome) -> None:
            result.append(outcome)
            if waiting:
                trio.lowlevel.reschedule(task)

        exec_ = Exec(context, body, flags, on_outcome, label)
        if not self._reactor.in_batch:
            self._reactor.touch()
        if context or body:
            self._dispatch(exec_)
        else:
            self._refuse(exec_, ExecFailed("a payload needs a context or a body"))
        if result:
            await trio.lowlevel.checkpoint()
        else:

            def abort(_: object) -> trio.lowlevel.Abort:
                nonlocal waiting
                waiting = False
                exec_.on_outcome = _ignore
                if exec_ in self._queue:
                    self._queue.remove(exec_)
                return trio.lowlevel.Abort.SUCCEEDED

            waiting = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        outcome = result[0]
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def _watch_queue(self) -> None:
        """One wheel entry for the whole queue: it is in order of deadlines but for the few put back at its head."""
        if self.queue_listener is not None:
            self.queue_listener()
        if not self._queue_watched and self._queue:
            self._queue_watched = True
            self._reactor.wheel.add(self._queue[-1].deadline, self._expire_queue)

    def _expire_queue(self, now: float) -> None:
        self._queue_watched = False
        late = [exec_ for exec_ in self._queue if exec_.deadline <= now]
        if late:
            self._queue = deque(exec_ for exec_ in self._queue if exec_.deadline > now)
            seconds = self.config.queue_timeout
            for exec_ in late:
                self._refuse(
                    exec_,
                    QueueTimeout(
                        f"no worker of the pool {self.name} became free within queue_timeout ({seconds:g} s)"
                    ),
                )
        if self._queue:
            self._queue_watched = True
            self._reactor.wheel.add(min(exec_.deadline for exec_ in self._queue), self._expire_queue)

    def _fail_queue(self, why: Callable[[], ExecFailed]) -> None:
        queue, self._queue = self._queue, deque()
        for exec_ in queue:
            self._refuse(exec_, why())

    # --- slots, on the control plane --------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Boot the pool, live until `stop`; ``started()`` at quorum.

        Raises PoolStartFailed if the first boot fails for good.
        On cancellation: all workers are killed and reaped.
        """
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                if not self.debug and not self._stop_requested.is_set():
                    for _ in range(self.num_workers):
                        self.add_slot(self.generation)
                self.upkeep.begin(nursery)
                failure = await self._first_boot()
                if not failure:
                    self._first_start = None
                    self._set_phase()
                    task_status.started()
                    await self._stop_requested.wait()
                    while self.slots:
                        await self.change()
                nursery.cancel_scope.cancel(reason="the pool has stopped")
            if failure:
                raise PoolStartFailed(failure, "\n".join(self.boot_output.said))
        finally:
            self._phase = PoolPhase.STOPPED
            self.nursery = None
            self._fail_queue(lambda: PoolClosed(f"the pool {self.name} has stopped"))
            self._finished.set()
            self._notify()

    async def _first_boot(self) -> str:
        """Wait for the quorum; returns why it cannot be reached, or ""."""
        assert self._first_start is not None
        quorum = self.config.resolved_quorum
        while self.ready_workers < quorum and not self._stop_requested.is_set():
            if self._first_start.verdict(self.ready_workers):
                return (
                    f"the pool {self.name} did not start: {self.ready_workers} of {self.num_workers} workers ready, "
                    f"{self._first_start.describe(self.last_failure)}"
                )
            await self.change()
        return ""

    async def stop(self, deadline: float) -> None:
        """Take nothing new, let workers finish until `deadline` (trio's clock), then kill; returns when all are gone."""
        limit = min(deadline, trio.current_time() + self.config.destroy_timeout)
        if self._phase is not PoolPhase.STOPPED:
            self._phase = PoolPhase.DRAINING
            self._notify()
        self._fail_queue(lambda: PoolClosed(f"the pool {self.name} is stopping"))
        for slot in list(self.slots):
            self.retire_slot(slot, RetireCause.STOP, limit)
        self._stop_requested.set()
        self._poke_change()
        if self.nursery is None:
            return
        # The owner tasks kill at `limit` themselves, after a look at what their workers do.
        with trio.move_on_at(limit + STACK_SECONDS + self.config.supervisor.term_grace):
            await self._finished.wait()
            return
        for slot in list(self.slots):
            if slot.worker is not None:
                slot.worker.kill("still there when the time to stop was over")
        await self._finished.wait()

    def add_slot(self, generation: int, *, trial: bool = False) -> Slot:
        """Add a place for a worker of `generation`, which begins to boot; the pool's size is the caller's business."""
        assert self.nursery is not None
        self._slot_number += 1
        # Once the pool stops, nobody would end it any more.
        slot = Slot(self._slot_number, generation, trial=trial, wanted=not self.is_stopping)
        self.slots.append(slot)
        self.nursery.start_soon(self._run_slot, slot)
        return slot

    def _add_debug_slot(self) -> None:
        """Debug mode: a fresh worker for this exec, at most `num_workers` at the same time."""
        if self.nursery is not None and len(self.slots) < self.num_workers:
            self.add_slot(self.generation).wanted = False

    def retire_slot(self, slot: Slot, cause: RetireCause, deadline: float) -> None:
        """Give up a slot: its worker finishes what it runs, by `deadline`, and goes."""
        slot.wanted = False
        if slot.worker is not None:
            slot.worker.retire(cause, deadline)
        slot.poked.set()

    async def _run_slot(self, slot: Slot) -> None:
        """Live one worker after the other in `slot` until it is not wanted any more."""
        try:
            first = True
            while slot.wanted or first:
                if not first:
                    self.restarts += 1
                first = False
                limits = self.limits.draw(self._random.random())
                exec_ttl = self.config.supervisor.exec_ttl
                worker = Worker(self, slot.number, slot.generation, limits, exec_ttl)
                slot.worker = worker
                if not slot.wanted and not self.debug:
                    break
                left = await self._live(worker)
                slot.worker = None
                self.upkeep.left(slot)
                self._after_exit(slot, left)
                if slot not in self.slots:
                    break  # lost; the watchdog has filled its place
                if slot.wanted and not self._stop_requested.is_set():
                    await self._pace(slot, left)
        finally:
            slot.worker = None
            if slot in self.slots:
                self.slots.remove(slot)
            slot.booted.set()
            self._set_phase()
            self._poke_change()
            if self.debug and self._queue and self._phase is PoolPhase.READY:
                self._add_debug_slot()

    async def _live(self, worker: Worker) -> WorkerExit:
        """One life. A supervision boundary: an error of ours in there costs this worker, never the pool."""
        try:
            return await worker.run()
        except Exception as error:
            log.exception("the owner task of a worker failed", pid=worker.pid, pool=self.name)
            return WorkerExit(False, False, 0, 0.0, False, f"internal error: {error!r}")

    def _after_exit(self, slot: Slot, left: WorkerExit) -> None:
        """Note how a worker left; failures of a boot are told to whoever waits for it."""
        if left.planned:
            self.recycles[left.text] += 1
        else:
            self.last_failure = left.brief or left.text
        if left.planned or self.policy.proved(left.executions, left.ready_seconds):
            slot.history.streak = 0
        elif not left.busy:
            slot.history.streak += 1
        if not left.was_ready and not left.planned:
            slot.failure = left.text
            slot.booted.set()
            if slot.trial:
                slot.wanted = False
            if self._first_start is not None:
                self._first_start.failed(permanent=left.permanent)
            if self.debug and self._queue:
                exec_ = self._queue.popleft()
                self._refuse(
                    exec_, WorkerDied(f"the worker did not start: {left.text}", cause="boot", sent=False)
                )
        self._set_phase()
        self._poke_change()

    async def _pace(self, slot: Slot, left: WorkerExit) -> None:
        """Wait before the slot's next worker, as the restart policy has it."""
        now = trio.current_time()
        if self.policy.proved(left.executions, left.ready_seconds):
            self._boot_budget.forget(now)
            self._exec_budget.forget(now)
            return
        if left.planned:
            return
        if left.busy:
            wait = self._exec_budget.take(now)
        else:
            wait = slot.history.backoff_seconds(self.policy, self._random.random())
            wait = max(wait, self._boot_budget.take(now))
        if wait <= 0:
            return
        slot.next_probe = now + wait
        slot.poked = trio.Event()
        self._set_phase()
        log.warning(
            "a slot waits before it starts its next worker",
            pool=self.name,
            seconds=round(wait, 2),
            failures=slot.history.streak,
            ready=self.ready_workers,
        )
        with trio.move_on_after(wait):
            await slot.poked.wait()
        slot.next_probe = None

    def worker_ready(self, worker: Worker) -> None:
        """Owner task: the handshake is done and the lane listens."""
        for slot in self.slots:
            if slot.worker is worker:
                slot.failure = ""
                slot.trial = False
                slot.was_up = True
                slot.booted.set()
        pid = worker.pid
        took = round(worker.ready_at - worker.spawned_at, 4)
        log.info("worker ready", pid=pid, pool=self.name, boot_seconds=took, generation=worker.generation)
        self._set_phase()
        assert worker.lane is not None
        if self.debug and not self._queue:
            worker.retire(
                RetireCause.DEBUG
            )  # its exec was withdrawn; the next one gets the code of its own time
        worker.lane.watch = self._lane_watch(worker.generation)
        if worker.retire_cause is not None:
            worker.lane.retiring = True
        else:
            self.lane_idle(worker.lane)
        self._poke_change()

    def is_on_trial(self, worker: Worker) -> bool:
        """Whether a failure of `worker` while it boots is to be told to whoever started it."""
        return any(slot.worker is worker and slot.trial for slot in self.slots)

    def due(self, worker: Worker, cause: RetireCause) -> None:
        """Owner task or reactor: `worker` is healthy but has to go when its turn has come; it works on meanwhile."""
        for slot in self.slots:
            if slot.worker is worker and slot.due is None and worker.retire_cause is None:
                slot.due = cause
                slot.due_since = self._reactor.now
                self._poke_change()

    def worker_settled(self, worker: Worker) -> None:
        """Owner task: it has been ready long enough to count; whatever broke the others' boots seems to be over."""
        for slot in self.slots:
            if slot.worker is worker:
                slot.history.streak = 0
        if any(slot.next_probe is not None for slot in self.slots):
            self._boot_budget.forget(trio.current_time())
            self._exec_budget.forget(trio.current_time())
            for slot in self.slots:
                slot.poked.set()

    def reap_later(self, process: Process) -> None:
        """A process that even SIGKILL has not ended yet (stuck in the kernel): wait for it apart from its slot."""
        log.error(
            "a killed process does not end; its slot goes on without it", pid=process.pid, pool=self.name
        )
        if self.nursery is not None:
            self.nursery.start_soon(self._reap, process)

    async def _reap(self, process: Process) -> None:
        await trio.lowlevel.wait_readable(process.pidfd)
        process.reap()
        trio.lowlevel.notify_closing(process.pidfd)
        process.close()

    # --- changing the pool ------------------------------------------------------------------------------------------

    async def reset(self, reason: str = "reset") -> None:
        """Replace every worker by one of a new generation: new ones first, then the old ones drain.

        Returns when the new generation serves alone and the idle old workers are gone; old workers that are still
        busy finish within `reset_timeout`, then are killed. Calls that arrive during a reset share the next one.
        Raises ResetFailed if a new worker does not boot; then the old generation goes on.
        """
        if self._phase in (PoolPhase.DRAINING, PoolPhase.STOPPED):
            raise ResetFailed(f"the pool {self.name} is stopping")
        if self.debug:
            return  # every exec has a fresh worker anyway
        if self.nursery is None or self._first_start is not None:
            raise ResetFailed(f"the pool {self.name} has not started yet")
        await self.generations.reset(reason)

    async def add_worker(self) -> None:
        """Add one slot and wait for its worker. Raises ResetFailed with the reason if it does not boot."""
        await self.generations.add_workers()

    async def remove_worker(self) -> None:
        """Retire one worker, an idle one if there is one; the last one always stays (then nothing happens)."""
        await self.generations.remove_worker()

    def apply(self, config: PoolConfig) -> None:
        """Take in a changed configuration. New workers follow it at once, present ones with the next reset."""
        before = self.config
        self.spec = replace(self.spec, config=config)
        self.config = config
        self.limits = limits_of(config)
        self._queue_max = config.resolved_max_queue_size
        if config.resolved_num_workers != before.resolved_num_workers:
            self.resize(config.resolved_num_workers)
            self._resizing = True
        self.quarantine.limits = quarantine_limits(config)
        self.upkeep.apply(config)

    def resize(self, num_workers: int) -> None:
        """Say how many workers there are to be; the next reset, or `fit`, brings the pool there."""
        self.num_workers = num_workers
        self.sizes_configured += 1

    def fit(self) -> None:
        """Bring the number of places to the pool's size soon, after the change under way."""
        if self.nursery is not None and not self.is_stopping:
            self.nursery.start_soon(self.generations.fit)

    @property
    def places(self) -> int:
        """Places for workers, without those of replacements whose predecessors are still there."""
        wanted = [slot for slot in self.slots if slot.wanted]
        pairs = sum(1 for slot in wanted if slot.replacement is not None and slot.replacement.wanted)
        return len(wanted) - pairs

    def watch_lanes(self, watch: CanaryWatch | None) -> None:
        """Let `watch` see every execution of every worker from now on; None: nobody."""
        self._watch = watch
        for slot in self.slots:
            if slot.worker is not None and slot.worker.lane is not None:
                slot.worker.lane.watch = self._lane_watch(slot.worker.generation)

    def _lane_watch(self, generation: int) -> LaneWatch | None:
        if self._watch is None and not self._suspects:
            return None

        def seen(lane: Lane, exec_: Exec, outcome: Outcome, seconds: float) -> None:
            if self._watch is not None:
                self._watch.finished(lane, generation, outcome, seconds)
            if self._suspects and isinstance(outcome, Answer) and self.quarantine.knows(exec_.label):
                self.quarantine.succeeded(exec_.label, self.payload_of(exec_))

        return seen

    def serving_workers(self) -> list[Worker]:
        """Workers that are ready or busy and stay."""
        return [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.is_serving]

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop_requested.is_set()

    # --- what the watchdog looks at, and how it heals ---------------------------------------------------------------

    @property
    def idle_lanes(self) -> Sequence[Lane]:
        """Lanes that the next execs are given to, the last one first."""
        return self._idle

    @property
    def waiters(self) -> Collection[Exec]:
        """Execs in the queue, the next one first."""
        return self._queue

    def settled_size(self, places: int) -> int | None:
        """How many places for workers there must be; None while a change of the size or of the workers is under way."""
        if self._resizing:
            self._resizing = places != self.num_workers
        settled = self._phase in (PoolPhase.READY, PoolPhase.DEGRADED) and not (
            self._resizing
            or self.debug
            or self.is_stopping
            or self.generations.is_resetting
            or self.generations.lock.locked()
        )
        return self.num_workers if settled else None

    def serve_waiters(self) -> None:
        """Give what waits to idle workers, should there be both."""
        self._reactor.touch()
        idle, queue = self._idle, self._queue
        while idle and queue:
            lane = idle.pop()
            lane.parked = False
            self.lane_idle(lane)

    def give_up(self, lane: Lane) -> None:
        """Give `lane` nothing any more, whatever its state says."""
        lane.retiring = True
        lane.parked = False
        self._idle[:] = [other for other in self._idle if other is not lane]

    def expire_waiters(self, now: float) -> None:
        """Refuse what has waited too long."""
        self._expire_queue(now)

    def fill_places(self) -> None:
        """Add slots until there are as many as there should be."""
        places = sum(slot.wanted and not slot.trial for slot in self.slots)
        for _ in range(self.num_workers - places):
            self.add_slot(self.generation)

    # --- being asked ------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> PoolPhase:
        """Phase of the pool."""
        return self._phase

    @property
    def ready_workers(self) -> int:
        """Workers that are ready or busy and stay."""
        return sum(1 for slot in self.slots if slot.worker is not None and slot.worker.is_serving)

    @property
    def quorum(self) -> int:
        """Ready workers needed now for the pool to count as up."""
        return (
            self.config.resolved_quorum
            if self._first_start is not None
            else self.config.resolved_quorum_running
        )

    @property
    def at_quorum(self) -> bool:
        """Whether the pool counts as up."""
        return self._phase is PoolPhase.READY and self.ready_workers >= self.quorum

    def glance(self) -> list[SlotGlance]:
        """Every slot, in order: what its worker is and does. No system call."""
        now = trio.current_time()
        seen = []
        for slot in self.slots:
            worker = slot.worker
            if worker is None or not worker.pid:
                if slot.wanted:
                    waits = None if slot.next_probe is None else max(0.0, slot.next_probe - now)
                    state = "starting" if waits is None else "waiting"
                    seen.append(
                        SlotGlance(slot.number, state, generation=slot.generation, next_try_seconds=waits)
                    )
                continue
            lane = worker.lane
            current = lane.current if lane is not None else None
            if worker.phase in (WorkerPhase.SPAWNING, WorkerPhase.HANDSHAKING):
                state = "starting"
            elif not worker.is_serving:
                state = "leaving"
            else:
                state = "busy" if worker.is_busy else "idle"
            seen.append(
                SlotGlance(
                    slot.number,
                    state,
                    worker.pid,
                    current.label if current is not None else "",
                    max(0.0, now - lane.started_at) if lane is not None and current is not None else 0.0,
                    lane.executions if lane is not None else 0,
                    worker.created_ns,
                    worker.generation,
                )
            )
        return seen

    def views(self) -> list[SlotView]:
        """What the pure decisions need to know of the slots."""
        return [slot.view() for slot in self.slots]

    def _set_phase(self) -> None:
        before = self._phase
        first_start = self._first_start is not None
        self._phase = decide_phase(before, self.views(), first_start=first_start, debug=self.debug)
        if self._phase is not before:
            if self._phase is PoolPhase.DEGRADED:
                log.error(
                    "pool degraded: no worker is left, it keeps probing",
                    pool=self.name,
                    text=self.last_failure,
                )
                self._fail_queue(lambda: PoolDegraded(self._degraded_text()))
                if self.config.on_exhausted == "exit" and self.on_exhausted is not None:
                    self.on_exhausted(f"the pool {self.name} has no worker left: {self.last_failure}")
            elif before is PoolPhase.DEGRADED:
                log.info("pool recovered", pool=self.name)

    def _degraded_text(self) -> str:
        probe = self._next_probe()
        when = f"; next try in {probe:.1f} s" if probe is not None else ""
        return f"the pool {self.name} has no worker: {self.last_failure}{when}"

    def _next_probe(self) -> float | None:
        times = [slot.next_probe for slot in self.slots if slot.next_probe is not None]
        return max(0.0, min(times) - trio.current_time()) if times else None

    def _poke_change(self) -> None:
        # A new event for those who look next: several tasks may wait on the old one.
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._notify()

    def look_again(self) -> None:
        """Let everybody who waits for a change look at the pool now."""
        self._poke_change()

    def _notify(self) -> None:
        for listener in self.change_listeners:
            listener()

    async def change(self) -> None:
        """Wait for the next change: a worker came up, left, or is due to go."""
        await self._changed.wait()

    def workers(self) -> list[WorkerState]:
        """All workers that have a process, slots in order."""
        now = trio.current_time()
        states = []
        for slot in self.slots:
            worker = slot.worker
            if worker is None or not worker.pid:
                continue
            status, text = self._status(worker)
            lane = worker.lane
            current = lane.current if lane is not None else None
            states.append(
                WorkerState(
                    pid=worker.pid,
                    status=status,
                    status_text=text,
                    executions=lane.executions if lane is not None else 0,
                    created_ns=worker.created_ns,
                    memory_bytes=resident_bytes(worker.pid),
                    cpu_percent=cpu_percent(worker.pid, worker.created_ns),
                    command=worker.command,
                    doing=current.label if current is not None else "",
                    doing_since_seconds=now - lane.started_at
                    if lane is not None and current is not None
                    else 0.0,
                    generation=worker.generation,
                )
            )
        return states

    @staticmethod
    def _status(worker: Worker) -> tuple[int, str]:
        if worker.phase is WorkerPhase.READY:
            return (2, "working") if worker.is_busy else (1, "ready")
        if worker.retire_cause in _RETIRE_STATUS:
            return _RETIRE_STATUS[worker.retire_cause]
        return _STATUS[worker.phase]

    def memory_by_place(self) -> list[tuple[int, int, str, int]]:
        """Place, pid, RoadRunner's word for the state, and resident bytes of all workers that have a process.

        Places count from 0 again after each reset, slot numbers do not.
        """
        return [
            (place, worker.pid, self._status(worker)[1], resident_bytes(worker.pid))
            for place, slot in enumerate(self.slots)
            if (worker := slot.worker) is not None and worker.pid
        ]

    @property
    def queue_max(self) -> int:
        """Execs that may wait; more are refused."""
        return self._queue_max

    def statistics(self) -> PoolStatistics:
        """Figures of this moment."""
        counts = count(self.views())
        return PoolStatistics(
            phase=self._phase,
            configured=self.num_workers,
            ready=counts.ready,
            idle=len(self._idle),
            busy=counts.busy,
            booting=counts.booting,
            leaving=counts.leaving,
            in_flight=self.in_flight,
            queued=len(self._queue),
            executions=self.executions,
            deaths=self.workshop.deaths.total(self.name),
            restarts=self.restarts,
            refused=self.refused,
            next_probe_seconds=self._next_probe(),
        )

    def describe(self) -> dict[str, object]:
        """JSON values for `trailboss.State`."""
        figures = self.statistics()
        return {
            "name": self.name,
            "phase": figures.phase.value,
            "configured": figures.configured,
            "ready": figures.ready,
            "quorum": self.quorum,
            "idle": figures.idle,
            "busy": figures.busy,
            "booting": figures.booting,
            "leaving": figures.leaving,
            "queued": figures.queued,
            "executions": figures.executions,
            "deaths": figures.deaths,
            "restarts": figures.restarts,
            "refused": figures.refused,
            "generation": self.generation,
            "next_probe_seconds": figures.next_probe_seconds,
            "last_failure": self.last_failure if figures.phase is PoolPhase.DEGRADED else "",
            "last_reset_failure": self.generations.last_failure,
            "quarantined": len(self.quarantine.entries(self._reactor.now)) if self._suspects else 0,
            "autoscale": self.upkeep.describe(),
        }

    def kill_one(self, pid: int, number: int = signal.SIGKILL) -> bool:
        """Signal one worker of this pool through its pidfd; for operators and chaos. False if there is none such."""
        for slot in self.slots:
            if slot.worker is not None and slot.worker.pid == pid and slot.worker.process is not None:
                slot.worker.process.signal_leader(number)
                return True
        return False


class PoolSet:
    """The pools of a server by name; a service of the core."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}

    def add(self, pool: Pool) -> None:
        """Note a pool. Raises ValueError if its name is taken."""
        if pool.name in self._pools:
            raise ValueError(f"two plugins ask for a pool named {pool.name}")
        self._pools[pool.name] = pool

    def names(self) -> list[str]:
        """Names in the order of their plugins."""
        return list(self._pools)

    def get(self, name: str) -> Pool | None:
        """The pool called `name`, or None."""
        return self._pools.get(name)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)


def limits_of(config: PoolConfig) -> Limits:
    """Return the limits of a worker as a pool's configuration has them."""
    limits = config.supervisor
    return Limits(
        max_jobs=1 if config.debug else config.max_jobs,
        ttl_seconds=limits.ttl,
        idle_ttl_seconds=limits.idle_ttl,
        memory_bytes=limits.max_worker_memory * 1024 * 1024,
    )


def quarantine_limits(config: PoolConfig) -> QuarantineLimits:
    """Return when something is quarantined as a pool's configuration has it."""
    keys = config.quarantine
    return QuarantineLimits(keys.deaths, keys.within, keys.expiry)


def _ignore(_outcome: Outcome) -> None:
    """Receiver of an exec whose caller has gone."""
