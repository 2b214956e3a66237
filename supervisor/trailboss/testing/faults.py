"""Faults that no worker can cause: a pool loses sight of something. For tests of the watchdog, and for nothing else.

Each function breaks one promise in a way that a bug of the pool could, and leaves everything else as it is.
"""

from __future__ import annotations

from trailboss.workers.lane import Exec
from trailboss.workers.limits import RetireCause
from trailboss.workers.outcome import Outcome
from trailboss.workers.pool import Pool
from trailboss.workers.worker import Worker

__all__ = ["lose_deadline", "lose_exit", "lose_idle_worker", "lose_place", "lose_slot", "lose_wakeup"]


def lose_idle_worker(pool: Pool) -> int:
    """Forget that a worker is idle: it is given nothing any more. Returns its pid."""
    lane = pool._idle.pop()
    lane.parked = False
    return lane.pid


def lose_wakeup(pool: Pool, context: bytes, outcomes: list[Outcome]) -> None:
    """Put an execution into the queue although a worker is idle, as if nobody had told that worker."""
    pool._reactor.touch()
    exec_ = Exec(context, b"", 4, outcomes.append, "an execution that nobody was told of")
    exec_.deadline = pool._reactor.now + pool.config.queue_timeout
    pool._queue.append(exec_)
    pool._watch_queue()


def lose_deadline(pool: Pool) -> None:
    """Forget to look at the deadlines of what will wait from now on."""
    pool._queue_watched = True


def lose_place(pool: Pool) -> None:
    """Give up a worker's place without meaning to have one less."""
    slot = next(slot for slot in pool.slots if slot.wanted)
    pool.retire_slot(slot, RetireCause.REMOVED, pool._reactor.touch() + 1)


def lose_slot(pool: Pool) -> int:
    """Forget a slot whose worker goes on. Returns the worker's pid."""
    slot = pool.slots.pop()
    assert slot.worker is not None
    return slot.worker.pid


def lose_exit(pool: Pool, pid: int) -> None:
    """Let nobody hear of the end of worker `pid`, neither by its pidfd nor by its pipes."""
    worker: Worker = next(
        slot.worker for slot in pool.slots if slot.worker is not None and slot.worker.pid == pid
    )
    assert worker.process is not None
    reactor = pool._reactor
    for fd in (worker.process.pidfd, worker.process.stdout_fd, worker.process.stdin_fd):
        reactor.unregister(fd)
