"""A worker pool without workers: the pool's side of `submit`, with outcomes that a script decides.

The interface is that of :class:`trailboss.workers.pool.Pool` as far as plugins use it. A script is a function from an
exec to what shall come of it and after how long; without one, execs are held until the test ends them by hand with
`finish`. Outcomes are never delivered from inside `submit` except refusals, exactly as the real pool does it: they are
kept in order of time and delivered by `run` (a task, under any trio clock) or by `run_pending` (no trio at all, all
time at once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

import trio

from trailboss.workers.outcome import (
    Answer,
    ExecTimeout,
    Outcome,
    PoolClosed,
    PoolDegraded,
    QueueFull,
    WorkerDied,
)

__all__ = ["ACK", "FakeExec", "FakePool", "FakeWorkerState", "Scripted"]

ACK = Answer(0, b"", b'{"type":2,"data":[]}')
"""What a jobs worker answers for a job that is done."""


@dataclass(slots=True, eq=False)
class FakeExec:
    """One payload that a fake worker works on."""

    context: bytes
    body: bytes
    flags: int
    label: str
    on_outcome: Callable[[Outcome], None]
    pid: int = 0
    since: float = 0.0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Scripted:
    """What shall come of an exec: `outcome` after `seconds`. A dead worker is replaced after `replace_seconds`."""

    outcome: Outcome
    seconds: float = 0.0
    replace_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FakeWorkerState:
    """One row of `workers`."""

    pid: int
    doing: str
    doing_since_seconds: float


@dataclass(slots=True)
class FakePool:
    """`num_workers` workers; each runs one exec at a time. With `debug` there is a fresh worker for every exec, and
    none is ever idle."""

    num_workers: int = 4
    script: Callable[[FakeExec], Scripted] | None = None
    name: str = "jobs"
    debug: bool = False
    clock: Callable[[], float] = trio.current_time
    idle_listener: Callable[[], None] | None = None
    idle_count: int = field(init=False, default=0)
    running: list[FakeExec] = field(init=False, default_factory=list)
    executions: int = field(init=False, default=0)
    deaths: int = field(init=False, default=0)
    #: Set to make every submit be refused with this outcome.
    refuse_with: Outcome | None = field(init=False, default=None)
    _due: list[tuple[float, int, FakeExec | None, Outcome | None, float]] = field(
        init=False, default_factory=list
    )
    _free_pids: list[int] = field(init=False, default_factory=list)
    _number: Callable[[], int] = field(init=False, default_factory=lambda: count().__next__)
    _next_pid: Callable[[], int] = field(init=False, default_factory=lambda: count(1001).__next__)
    _wake: trio.Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start with all workers idle."""
        if self.debug:
            return
        self.idle_count = self.num_workers
        self._free_pids = [self._next_pid() for _ in range(self.num_workers)]

    # --- the pool's interface ----------------------------------------------------------------------------------------

    def submit(
        self,
        context: bytes,
        body: bytes,
        flags: int,
        on_outcome: Callable[[Outcome], None],
        label: str = "",
    ) -> None:
        """Give the exec to an idle worker; refuse it where there is none."""
        if self.refuse_with is not None:
            on_outcome(self.refuse_with)
            return
        if self.debug:
            self._free_pids.append(self._next_pid())
        elif self.idle_count == 0:
            on_outcome(QueueFull("no fake worker is idle"))
            return
        else:
            self.idle_count -= 1
        self.executions += 1
        work = FakeExec(context, body, flags, label, on_outcome, self._free_pids.pop())
        self.running.append(work)
        if self.script is not None:
            scripted = self.script(work)
            work.since = self.clock()
            self._schedule(work.since + scripted.seconds, work, scripted.outcome, scripted.replace_seconds)

    def workers(self) -> Sequence[FakeWorkerState]:
        """Return who does what."""
        now = self.clock()
        idle = [FakeWorkerState(pid, "", 0.0) for pid in self._free_pids]
        return idle + [FakeWorkerState(work.pid, work.label, now - work.since) for work in self.running]

    @property
    def in_flight(self) -> int:
        """How many execs run."""
        return len(self.running)

    # --- the test's side ---------------------------------------------------------------------------------------------

    def finish(self, work: FakeExec, outcome: Outcome = ACK, replace: bool = True) -> None:
        """End `work` with `outcome`; a worker that died is replaced at once, or never."""
        self._end(work, outcome)
        if not isinstance(outcome, WorkerDied | ExecTimeout):
            self._become_idle(work.pid)
        elif replace:
            self._become_idle(self._next_pid())

    def degrade(self) -> None:
        """Refuse every submit from now on, as a pool without workers does."""
        self.refuse_with = PoolDegraded("the fake pool is degraded")

    def recover(self) -> None:
        """Take submits again and say so."""
        self.refuse_with = None
        if self.idle_listener is not None:
            self.idle_listener()

    def close(self, outcome: Outcome | None = None) -> None:
        """Stop: whatever runs ends with `outcome` (by default: its worker was killed), and submits are refused."""
        self.refuse_with = PoolClosed("the fake pool is closed")
        self._due.clear()
        for work in list(self.running):
            self._end(work, outcome or WorkerDied("killed, the pool stops", pid=work.pid, cause="stop"))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver outcomes when they are due, until cancelled."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else inf):
                await self._wake.wait()
            self._deliver(trio.current_time())

    def run_pending(self) -> int:
        """Deliver every outcome there is, whenever it is due; return how many that were."""
        delivered = 0
        while self._due:
            delivered += self._deliver(inf)
        return delivered

    # --- inside ------------------------------------------------------------------------------------------------------

    def _schedule(
        self, due: float, work: FakeExec | None, outcome: Outcome | None, replace_seconds: float
    ) -> None:
        heappush(self._due, (due, self._number(), work, outcome, replace_seconds))
        if self._wake is not None:
            self._wake.set()

    def _deliver(self, now: float) -> int:
        delivered = 0
        while self._due and self._due[0][0] <= now:
            due, _, work, outcome, replace_seconds = heappop(self._due)
            if work is None or outcome is None:
                self._become_idle(self._next_pid())
                continue
            delivered += 1
            self._end(work, outcome)
            if isinstance(outcome, WorkerDied | ExecTimeout):
                self._schedule(due + replace_seconds, None, None, 0.0)
            else:
                self._become_idle(work.pid)
        return delivered

    def _end(self, work: FakeExec, outcome: Outcome) -> None:
        if work.finished:
            raise RuntimeError(f"{work.label} has ended already; an exec has exactly one outcome")
        work.finished = True
        self.running.remove(work)
        if isinstance(outcome, WorkerDied | ExecTimeout):
            self.deaths += 1
        work.on_outcome(outcome)

    def _become_idle(self, pid: int) -> None:
        if self.debug:
            return
        self._free_pids.append(pid)
        self.idle_count += 1
        if self.idle_listener is not None:
            self.idle_listener()
