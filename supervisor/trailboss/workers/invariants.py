"""Pure: what must always hold in a pool, and for how long it may not before that is a violation.

The watchdog (:mod:`trailboss.workers.watchdog`) looks at a pool between two turns of the loop, when all of this holds
if the code is right: nobody waits while a worker is idle; every idle worker is where it is looked for; every place has
its slot; whoever runs something has a living process; what has a deadline is gone when it has passed. A look can fall
into a change that takes a few turns, so only what is found again and again for a while counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Finding", "Findings", "Kind", "PoolLook", "WorkerLook", "judge"]

#: What has a deadline may be this late: the wheel's tick, and a busy loop.
LATE_SECONDS = 0.25


class Kind(NamedTuple):
    """One invariant: the word for metrics, and how long it may be broken."""

    word: str
    hold_seconds: float


WAITER_AND_IDLE = Kind("waiter_and_idle_worker", 0.05)
IDLE_WORKER_LOST = Kind("idle_worker_lost", 0.05)
WORKER_WITHOUT_SLOT = Kind("worker_without_slot", 0.05)
SLOT_LOST = Kind("slot_lost", 0.25)
EXIT_UNNOTICED = Kind("exit_unnoticed", 0.1)
WAITER_OVERDUE = Kind("waiter_overdue", 0.05)
EXEC_OVERDUE = Kind("exec_overdue", 0.05)
DATA_PLANE_STUCK = Kind("data_plane_stuck", 0.5)
GATE_CLOSED = Kind("gate_closed", 1.0)

KINDS = (
    *(WAITER_AND_IDLE, IDLE_WORKER_LOST, WORKER_WITHOUT_SLOT, SLOT_LOST, EXIT_UNNOTICED, WAITER_OVERDUE),
    *(EXEC_OVERDUE, DATA_PLANE_STUCK, GATE_CLOSED),
)


class WorkerLook(NamedTuple):
    """One serving worker at one moment."""

    pid: int
    #: It could take an execution now.
    idle: bool
    #: It is among those that are given executions.
    listed: bool
    #: How long exec_ttl has passed over what it runs; 0 or less: it has not, or there is none.
    overdue_seconds: float = 0.0
    #: Its process has ended, and its owner does not know.
    ended_unnoticed: bool = False


class PoolLook(NamedTuple):
    """One pool at one moment."""

    name: str
    waiting: int
    #: Workers among those that are given executions, and of these the pids that no slot has.
    listed: int
    strangers: Sequence[int]
    #: How long the deadline of the waiter that is most overdue has passed.
    waiter_overdue_seconds: float
    #: Places that are to have a worker, and how many there should be; None while that is being changed.
    places: int
    configured: int | None
    workers: Sequence[WorkerLook]


class Finding(NamedTuple):
    """One invariant that does not hold now. `subject` is a pid, or 0 for the whole pool; `pool` "" for the server."""

    kind: Kind
    pool: str
    subject: int
    text: str

    @property
    def key(self) -> Hashable:
        """The same for the same trouble at another look."""
        return (self.kind.word, self.pool, self.subject)


def judge(look: PoolLook) -> list[Finding]:
    """Return what does not hold in a pool."""
    found = []
    name = look.name
    if look.waiting and look.listed > len(look.strangers):
        text = f"{look.waiting} executions wait while {look.listed} workers are idle"
        found.append(Finding(WAITER_AND_IDLE, name, 0, text))
    if look.waiter_overdue_seconds > LATE_SECONDS:
        text = f"an execution waits {look.waiter_overdue_seconds:.2f} s beyond its deadline"
        found.append(Finding(WAITER_OVERDUE, name, 0, text))
    if look.configured is not None and look.places < look.configured:
        text = f"there are {look.places} places for workers, there should be {look.configured}"
        found.append(Finding(SLOT_LOST, name, 0, text))
    for pid in look.strangers:
        found.append(
            Finding(WORKER_WITHOUT_SLOT, name, pid, f"worker {pid} is given executions but has no slot")
        )
    for worker in look.workers:
        if worker.ended_unnoticed:
            text = f"worker {worker.pid} has ended and its owner does not know"
            found.append(Finding(EXIT_UNNOTICED, name, worker.pid, text))
        elif worker.idle and not worker.listed:
            text = f"worker {worker.pid} is idle and is given nothing"
            found.append(Finding(IDLE_WORKER_LOST, name, worker.pid, text))
        elif worker.overdue_seconds > LATE_SECONDS:
            text = f"worker {worker.pid} is {worker.overdue_seconds:.2f} s above its exec_ttl"
            found.append(Finding(EXEC_OVERDUE, name, worker.pid, text))
    return found


@dataclass(slots=True)
class Findings:
    """What was found, look after look."""

    #: A violation that lasts is reported for healing again after this time.
    again_seconds: float = 1.0
    _since: dict[Hashable, float] = field(default_factory=dict)
    _told: dict[Hashable, float] = field(default_factory=dict)

    def take(self, found: Iterable[Finding], now: float) -> tuple[list[Finding], list[Finding]]:
        """Take in one look; returns the violations that are new, and those to heal: these, and what heals badly."""
        present = {finding.key: finding for finding in found}
        for key in [key for key in self._since if key not in present]:
            del self._since[key]
            self._told.pop(key, None)
        new, heal = [], []
        for key, finding in present.items():
            since = self._since.setdefault(key, now)
            if now - since < finding.kind.hold_seconds:
                continue
            told = self._told.get(key)
            if told is None:
                new.append(finding)
            if told is None or now - told >= self.again_seconds:
                self._told[key] = now
                heal.append(finding)
        return new, heal

    def forget(self) -> None:
        """Begin anew with what has not been reported yet: the loop stood still, so nothing of it has lasted."""
        self._since = {key: since for key, since in self._since.items() if key in self._told}

    @property
    def pending(self) -> bool:
        """Whether the last look found anything."""
        return bool(self._since)

    @property
    def broken(self) -> tuple[str, ...]:
        """Words of the violations that last."""
        return tuple(sorted({str(key[0]) for key in self._told if isinstance(key, tuple)}))
