"""Pure: when a worker has to go although it is healthy (ttl, idle_ttl, max_jobs, memory).

These are RoadRunner's pool "supervisor" keys; all of them are soft: they never interrupt an exec. Retirement is planned
and no death: it counts toward no restart budget. Each worker draws its own limits once, with jitter, so that workers
started together do not retire together.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Limits", "RetireCause", "WorkerLimits"]


class RetireCause(enum.Enum):
    """Why a healthy worker is replaced; the value is the word in logs, the number RoadRunner's worker state."""

    MAX_JOBS = "max_jobs"
    TTL = "ttl"
    IDLE_TTL = "idle_ttl"
    MEMORY = "max_worker_memory"
    ASKED = "asked by the worker"
    RESET = "reset"
    REMOVED = "removed"
    DEBUG = "debug mode"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one worker, jitter included. 0 = no limit."""

    executions: int
    ttl_seconds: float
    idle_ttl_seconds: float
    memory_bytes: int

    #: A replacement is started when this share of the quota is left; none for quotas of a few executions.
    AHEAD = 0.1

    @property
    def executions_soon(self) -> int:
        """Executions after which a replacement should be on its way; the quota itself where that makes no sense."""
        return self.executions - int(self.executions * self.AHEAD)

    def due(self, now: float, ready_at: float, last_used: float) -> RetireCause | None:
        """Say which age limit has passed; `last_used` is 0 for a worker that never ran (idle_ttl counts from use)."""
        if self.ttl_seconds and now >= ready_at + self.ttl_seconds:
            return RetireCause.TTL
        if self.idle_ttl_seconds and last_used and now >= last_used + self.idle_ttl_seconds:
            return RetireCause.IDLE_TTL
        return None

    def next_check(self, now: float, ready_at: float, last_used: float, *, busy: bool) -> float:
        """When `due` may say something next; infinity for never, always later than `now` unless it is due."""
        times = []
        if self.ttl_seconds:
            times.append(ready_at + self.ttl_seconds)
        if self.idle_ttl_seconds:
            # Busy or not used yet: its idle time has not begun, so it cannot be over before one idle_ttl from now.
            begun = last_used if last_used and not busy else now
            times.append(begun + self.idle_ttl_seconds)
        return min(times, default=float("inf"))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits as configured for a pool. 0 = no limit."""

    max_jobs: int = 0
    ttl_seconds: float = 0.0
    idle_ttl_seconds: float = 0.0
    memory_bytes: int = 0

    #: Largest share by which a worker's own limit differs from the configured one.
    JITTER = 0.14

    def draw(self, fraction: float) -> WorkerLimits:
        """Limits of one new worker; `fraction` in [0, 1) is its random draw.

        max_jobs grows (RoadRunner adds 0-14 %), ages shrink: a ttl is a promise not to live longer.
        """
        return WorkerLimits(
            executions=self.max_jobs + int(self.max_jobs * self.JITTER * fraction),
            ttl_seconds=self.ttl_seconds * (1.0 - self.JITTER * fraction),
            idle_ttl_seconds=self.idle_ttl_seconds,
            memory_bytes=self.memory_bytes,
        )
