"""The invariant watchdog: looks whether what must always hold does, says so loudly where not, and repairs it.

It is one task. It sleeps while nothing waits: no exec in a worker, none in a queue. The queue wakes it, and the reactor
when it wakes up itself; then it looks every half second, every twentieth of one while somebody waits for a worker or
something was found, until nothing waits any more. An idle server has no timer of it.

A violation is a bug of ours, never a worker's fault. It is counted, logged, and once in a while all tasks are written to
the log, so that the bug can be found; then the broken part is replaced: a worker that was lost is killed and started
anew, a place is filled, a waiter is given to a worker. Until that has worked, systemd's watchdog is not fed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import trio

from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.workers import invariants
from trailboss.workers.invariants import Finding, Findings, PoolLook, WorkerLook, judge
from trailboss.workers.pool import Pool
from trailboss.workers.pool_state import PoolPhase
from trailboss.workers.worker import Worker, WorkerPhase

__all__ = ["KINDS", "Watchdog", "look_at_pool", "tasks_text"]

log = logger("watchdog")

#: Between two looks while something runs, and while something waits or was found.
CALM_SECONDS = 0.5
CLOSE_SECONDS = 0.05
#: The loop may come to this task so much too late.
LAG_SECONDS_MAX = 1.0
#: An exec that is younger is not worth asking the kernel for its process.
YOUNG_SECONDS = 0.2
#: The word that a loop which stood still is counted as; there is nothing to heal.
LOOP_LAG = "loop_lag"
#: The words of all violations.
KINDS = (*(kind.word for kind in invariants.KINDS), LOOP_LAG)
#: All tasks are written to the log no more often than this, and no more of them.
DUMP_SECONDS = 60.0
DUMP_TASKS_MAX = 200
DUMP_FRAMES_MAX = 12


class Watchdog:
    """See the module's text. `run` it once; `gate_is_stuck` says whether a server that is ready keeps its gate shut."""

    def __init__(
        self, reactor: Reactor, pools: Iterable[Pool], gate_is_stuck: Callable[[], bool] = lambda: False
    ) -> None:
        self._reactor = reactor
        self._pools = pools
        self.gate_is_stuck = gate_is_stuck
        self._findings = Findings()
        self._armed = trio.Event()
        self._hooked: set[int] = set()
        self._answered = True
        self._dumped_at = float("-inf")
        #: Violations since the start, by kind.
        self.violations: Counter[str] = Counter()
        #: Looks since the start: none are made while nothing waits.
        self.looks = 0
        #: The latest that the loop came to this task, in seconds.
        self.lag_seconds_max = 0.0
        self.last_text = ""

    @property
    def broken(self) -> tuple[str, ...]:
        """Words of the violations that have not been healed yet."""
        return self._findings.broken

    def describe(self) -> dict[str, object]:
        """JSON values for `trailboss.State`."""
        return {
            "violations": dict(self.violations),
            "broken": list(self.broken),
            "last": self.last_text,
            "loop_lag_seconds_max": round(self.lag_seconds_max, 4),
        }

    def arm(self) -> None:
        """Something waits, or may do so: look, soon. May be called at any time."""
        self._armed.set()

    async def run(self) -> None:
        """Watch until cancelled. On cancellation: ends at once."""
        while True:
            self._reactor.on_wake = self.arm
            await self._armed.wait()
            self._reactor.on_wake = None
            try:
                await self._watch()
            except Exception:
                # A supervision boundary: whoever looks after the server must not end it.
                log.exception("the watchdog itself failed")
                await trio.sleep(CALM_SECONDS)
            self._armed = trio.Event()

    async def _watch(self) -> None:
        """Look until nothing waits any more."""
        seconds = CLOSE_SECONDS
        cpu = time.process_time()
        while True:
            due = trio.current_time() + seconds
            await trio.sleep_until(due)
            now = self._reactor.touch() if not self._reactor.in_batch else self._reactor.now
            self._note_lag(now - due, time.process_time() - cpu)
            waits = self.look(now)
            if not waits and self._answered and not self._findings.pending:
                return
            self._ask_data_plane()
            cpu = time.process_time()
            seconds = CLOSE_SECONDS if waits == "queue" or self._findings.pending else CALM_SECONDS

    def look(self, now: float) -> str:
        """Look at everything once, and heal what has been broken for too long; returns what waits, "" for nothing."""
        self.looks += 1
        found: list[Finding] = []
        waits = ""
        pools = {}
        for pool in self._pools:
            pools[pool.name] = pool
            self._hook(pool)
            if pool.queued:
                waits = "queue"
            elif not waits and pool.in_flight:
                waits = "answer"
            if pool.phase in (PoolPhase.READY, PoolPhase.DEGRADED):
                found += judge(look_at_pool(pool, now))
        if not self._answered:
            text = "the data plane has not taken its turn"
            found.append(Finding(invariants.DATA_PLANE_STUCK, "", 0, text))
        if self.gate_is_stuck():
            text = "the server is ready, and its gate is closed"
            found.append(Finding(invariants.GATE_CLOSED, "", 0, text))
        before = self.broken
        new, heal = self._findings.take(found, now)
        for finding in new:
            self._tell(finding, now)
        for finding in heal:
            if finding.pool:
                self._heal(pools[finding.pool], finding, now)
        if before and not self.broken:
            log.info("everything holds again", healed=list(before))
        return waits

    def _hook(self, pool: Pool) -> None:
        """Be woken by a pool that was not known yet."""
        if id(pool) not in self._hooked:
            self._hooked.add(id(pool))
            pool.queue_listener = self.arm
            pool.change_listeners.append(self.arm)

    def _note_lag(self, lag: float, cpu_seconds: float) -> None:
        self.lag_seconds_max = max(self.lag_seconds_max, lag)
        if lag <= LAG_SECONDS_MAX:
            return
        # Stopped, paused with its machine, or held up by a call that blocks: what was found before says nothing now.
        self._findings.forget()
        self.violations[LOOP_LAG] += 1
        log.warning("the loop stood still", seconds=round(lag, 3), computing_seconds=round(cpu_seconds, 3))

    def _ask_data_plane(self) -> None:
        if self._answered:
            self._answered = False
            self._reactor.call_soon(self._answer)

    def _answer(self) -> None:
        self._answered = True

    def _tell(self, finding: Finding, now: float) -> None:
        self.violations[finding.kind.word] += 1
        self.last_text = f"{finding.pool}: {finding.text}" if finding.pool else finding.text
        details: dict[str, object] = {}
        if now - self._dumped_at >= DUMP_SECONDS:
            self._dumped_at = now
            details["tasks"] = tasks_text()
        log.error(
            "an invariant does not hold; this is a bug of Trailboss, please report it",
            kind=finding.kind.word,
            pool=finding.pool,
            text=finding.text,
            **details,
        )

    def _heal(self, pool: Pool, finding: Finding, now: float) -> None:
        """Replace what is broken. What cannot be (the loop, the data plane) is left to the service manager."""
        kind = finding.kind
        if kind is invariants.WAITER_AND_IDLE:
            pool.serve_waiters()
        elif kind is invariants.WAITER_OVERDUE:
            pool.expire_waiters(now)
        elif kind is invariants.SLOT_LOST:
            pool.fill_places()
        elif kind is invariants.EXIT_UNNOTICED:
            for worker in _workers(pool, finding.subject):
                worker.look_for_exit()
        elif kind is invariants.EXEC_OVERDUE:
            for worker in _workers(pool, finding.subject):
                if worker.lane is not None:
                    worker.lane.expire(now)
        else:
            for worker in _workers(pool, finding.subject):
                if worker.lane is not None:
                    pool.give_up(worker.lane)
                worker.kill("the pool had lost sight of it")
        pool.serve_waiters()


def look_at_pool(pool: Pool, now: float) -> PoolLook:
    """Return a pool at this moment. No system call but for workers that have been busy for a while."""
    listed = {id(lane) for lane in pool.idle_lanes}
    workers = []
    known = set()
    places = 0
    for slot in pool.slots:
        places += slot.wanted and not slot.trial
        worker = slot.worker
        lane = worker.lane if worker is not None else None
        if worker is None or lane is None:
            continue
        known.add(id(lane))
        if worker.phase not in (WorkerPhase.READY, WorkerPhase.DRAINING):
            continue
        busy = lane.current is not None
        idle = not busy and worker.is_serving and not lane.retiring
        overdue = 0.0
        if (
            busy
            and lane.exec_ttl
            and not lane.closed
            and lane.current is not None
            and not lane.current.paused
        ):
            overdue = now - lane.deadline
        ended = busy and now - lane.started_at > YOUNG_SECONDS and worker.has_ended_unnoticed()
        workers.append(WorkerLook(worker.pid, idle, id(lane) in listed and lane.parked, overdue, ended))
    waiters = pool.waiters
    return PoolLook(
        name=pool.name,
        waiting=len(waiters),
        listed=len(listed),
        strangers=[lane.pid for lane in pool.idle_lanes if id(lane) not in known],
        waiter_overdue_seconds=now - min(exec_.deadline for exec_ in waiters) if waiters else 0.0,
        places=places,
        configured=pool.settled_size(places),
        workers=workers,
    )


def _workers(pool: Pool, pid: int) -> Iterator[Worker]:
    """The worker with this pid: of a slot, or known by its lane alone."""
    for slot in list(pool.slots):
        if slot.worker is not None and slot.worker.pid == pid:
            yield slot.worker
            return
    for lane in list(pool.idle_lanes):
        if lane.pid == pid and isinstance(lane.owner, Worker):
            yield lane.owner
            return


def tasks_text() -> str:
    """Every trio task and where it waits, innermost frame last; bounded."""
    root = trio.lowlevel.current_root_task()
    lines: list[str] = []
    count = 0
    stack = [(root, 0)] if root is not None else []
    while stack:
        task, depth = stack.pop()
        count += 1
        if count > DUMP_TASKS_MAX:
            lines.append(f"and more: only {DUMP_TASKS_MAX} tasks are shown")
            break
        indent = "  " * min(depth, 20)
        lines.append(f"{indent}{task.name}")
        frames = [
            f"{indent}    {frame.f_code.co_filename.rpartition('/site-packages/')[2]}:{line} {frame.f_code.co_name}"
            for frame, line in task.iter_await_frames()
            if not frame.f_code.co_filename.endswith("trio/_core/_traps.py")
        ]
        lines += frames[-DUMP_FRAMES_MAX:]
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        stack += [
            (child, depth + 1) for child in sorted(children, key=lambda child: child.name, reverse=True)
        ]
    return "\n".join(lines)
