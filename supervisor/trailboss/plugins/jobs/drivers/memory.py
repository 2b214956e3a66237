"""The memory driver: a queue in the server's own memory, fast, and lost with the process unless another takes it over.

Ready jobs are in the pipeline's priority queue, delayed ones in a heap, dead letters in a bounded list. Nothing waits
for anything, so every verb is done when it returns. Accepted jobs end in exactly one of the counters; the counters are
kept apart from the containers, so that the books can disagree with them if the driver is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import ClassVar

from trailboss.log import logger
from trailboss.plugins.jobs.contract import (
    Books,
    DeadLetter,
    DriverHost,
    DriverSettings,
    Job,
    JobsDriver,
    PushRefused,
    Share,
)
from trailboss.plugins.jobs.delays import DelayHeap

__all__ = ["MemoryDriver"]

log = logger("jobs")

_RELEASED_AT_ONCE_MAX = 1000
"""Delayed jobs made ready in one go, about half a millisecond; the rest follows after other tasks had their turn."""


class MemoryDriver(JobsDriver):
    """Jobs of one pipeline in memory."""

    kind: ClassVar[str] = "memory"
    durable: ClassVar[bool] = False

    def __init__(self, settings: DriverSettings, host: DriverHost) -> None:
        super().__init__(settings, host)
        self._room = host.room
        self._next_sequence = host.next_sequence
        self._delayed: DelayHeap[Job] = DelayHeap()
        self._dead: deque[DeadLetter] = deque()
        self._destroyed_pipeline = False
        self._pushed = 0
        self._done = 0
        self._destroyed = 0
        self._dead_dropped = 0
        self._dead_purged = 0
        self._handed_over = 0
        self._taken_over = 0

    def free_places(self) -> int:
        """How many jobs fit into `jobs.pipeline_size`, which all pipelines share."""
        return self._room.free

    def push(self, jobs: Sequence[Job]) -> None:
        """Accept all `jobs` or none. Raises PushRefused where they do not fit."""
        room = self._room
        if room.limit - room.used < len(jobs):
            raise PushRefused(
                f"queue is full: {room.used} of {room.limit} jobs (jobs.pipeline_size), {len(jobs)} more do not fit"
            )
        room.used += len(jobs)
        self._pushed += len(jobs)
        for job in jobs:
            if job.delay_seconds > 0:
                self._delay(job, job.delay_seconds)
            else:
                job.sequence = self._next_sequence()
                self.ready.push(job)

    def ack(self, job: Job) -> None:
        """Forget the job. Raises KeyError where it is not running."""
        self.running.remove(job)
        self._done += 1
        self._room.used -= 1

    def nack(self, job: Job, reason: str, cause: str = "") -> None:
        """Keep the job as a dead letter. Raises KeyError where it is not running."""
        self.running.remove(job)
        self._room.used -= 1
        self._dead.append(DeadLetter(job, reason, cause, self.host.wall_clock()))
        while len(self._dead) > self.settings.dead_letter_limit:
            dropped = self._dead.popleft()
            self._dead_dropped += 1
            log.warning(
                "dead letter dropped, the list is full",
                pipeline=self.settings.pipeline,
                id=dropped.job.id,
                job=dropped.job.name,
                reason=dropped.reason,
                limit=self.settings.dead_letter_limit,
            )

    def requeue(self, job: Job, delay_seconds: float) -> None:
        """Queue the job again, at the end or later. Raises KeyError where it is not running."""
        self.running.remove(job)
        if self._destroyed_pipeline:
            self._count_destroyed(1)
        elif delay_seconds > 0:
            self._delay(job, delay_seconds)
        else:
            job.sequence = self._next_sequence()
            self.ready.push(job)

    def give_back(self, job: Job) -> None:
        """Restore the job to its place. Raises KeyError where it is not running."""
        self.running.remove(job)
        if self._destroyed_pipeline:
            self._count_destroyed(1)
        else:
            self.ready.restore(job)

    def on_time(self, now: float) -> float:
        """Append what is due to the queue, the longest due first."""
        for job in self._delayed.take_due(now, _RELEASED_AT_ONCE_MAX):
            job.sequence = self._next_sequence()
            self.ready.push(job)
        return self._delayed.next_due

    def books(self) -> Books:
        """Count where the jobs are."""
        dead_listed = len(self._dead)
        return Books(
            pushed=self._pushed,
            done=self._done,
            dead=dead_listed + self._dead_dropped + self._dead_purged,
            waiting=len(self.ready),
            delayed=len(self._delayed),
            running=len(self.running),
            destroyed=self._destroyed,
            dead_listed=dead_listed,
            dead_dropped=self._dead_dropped,
            dead_purged=self._dead_purged,
            handed_over=self._handed_over,
            taken_over=self._taken_over,
        )

    def destroy(self) -> int:
        """Drop what waits and what is delayed."""
        self._destroyed_pipeline = True
        dropped = self.ready.clear() + self._delayed.clear()
        self._count_destroyed(dropped)
        return dropped

    def dead_letters(self) -> Sequence[DeadLetter]:
        """The dead letters, the oldest first."""
        return self._dead

    def revive(self, ids: Collection[str] | None) -> list[str]:
        """Queue dead letters again. Raises PushRefused where they do not all fit."""
        chosen, others = self._split_dead(ids)
        if self._room.free < len(chosen):
            raise PushRefused(
                f"queue is full: {len(chosen)} dead letters do not fit into {self._room.free} places"
            )
        self._dead = others
        self._room.used += len(chosen)
        for letter in chosen:
            job = letter.job
            job.attempts = 0
            job.sequence = self._next_sequence()
            self.ready.push(job)
        return [letter.job.id for letter in chosen]

    def purge(self, ids: Collection[str] | None) -> list[str]:
        """Delete dead letters."""
        chosen, self._dead = self._split_dead(ids)
        self._dead_purged += len(chosen)
        return [letter.job.id for letter in chosen]

    def let_go(self, bytes_about: int) -> Share | None:
        """Give away what waits, then what is delayed, then dead letters."""
        share = Share()
        left = bytes_about
        while left > 0 and (job := self.ready.pop()) is not None:
            share.waiting.append(job)
            left -= _size_of(job)
        while left > 0 and (entry := self._delayed.take_first()) is not None:
            share.delayed.append(entry)
            left -= _size_of(entry[1])
        while left > 0 and self._dead:
            letter = self._dead.popleft()
            share.dead.append(letter)
            left -= _size_of(letter.job) + len(letter.reason)
        if not share:
            return None
        self._room.used -= len(share.waiting) + len(share.delayed)
        self._handed_over += len(share)
        return share

    def take_back(self, share: Share) -> None:
        """Put everything back; of a pipeline that was destroyed meanwhile it is dropped."""
        self._handed_over -= len(share)
        self._keep(share)
        self._list_dead([*share.dead, *self._dead])
        if self._destroyed_pipeline:
            self._count_destroyed(self.ready.clear() + self._delayed.clear())

    def take_over(self, share: Share) -> None:
        """Take everything in. Dead letters beyond the limit are dropped, the oldest first."""
        self._taken_over += len(share)
        self._keep(share)
        self._list_dead(sorted([*share.dead, *self._dead], key=lambda letter: letter.died_at))

    def _list_dead(self, letters: list[DeadLetter]) -> None:
        dropped = max(0, len(letters) - self.settings.dead_letter_limit)
        self._dead = deque(letters[dropped:])
        self._dead_dropped += dropped
        if dropped:
            log.warning(
                "dead letters dropped in an upgrade, the list is full",
                pipeline=self.settings.pipeline,
                dropped=dropped,
                limit=self.settings.dead_letter_limit,
            )

    def _keep(self, share: Share) -> None:
        self._room.used += len(share.waiting) + len(share.delayed)
        self.ready.insert(share.waiting)
        for due, job in share.delayed:
            self._delayed.add(due, job)
        if share.delayed:
            self.host.wake_at(min(due for due, _ in share.delayed))

    def _split_dead(self, ids: Collection[str] | None) -> tuple[deque[DeadLetter], deque[DeadLetter]]:
        if ids is None:
            return self._dead, deque()
        wanted = frozenset(ids)
        chosen = deque(letter for letter in self._dead if letter.job.id in wanted)
        return chosen, deque(letter for letter in self._dead if letter.job.id not in wanted)

    def _delay(self, job: Job, delay_seconds: float) -> None:
        due = self.host.clock() + delay_seconds
        self._delayed.add(due, job)
        self.host.wake_at(due)

    def _count_destroyed(self, jobs: int) -> None:
        self._destroyed += jobs
        self._room.used -= jobs


def _size_of(job: Job) -> int:
    """Return about how many bytes a job has on its way to another server."""
    return 64 + len(job.payload) + len(job.headers) + len(job.id) + len(job.name)
