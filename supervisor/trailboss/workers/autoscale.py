"""Pure: how many workers a pool should have, from what its queue and its workers do.

Up at once, down slowly: a queue in which the oldest execution has waited longer than `target_queue_time` adds a step
of workers, and again only when the ones added before are up; a pool that has been mostly idle for `down_after` gives up
one worker, and one more each `down_after`. Between the two thresholds nothing changes, and after growing the pool does
not shrink for `down_after`, so it never swings. Workers are only let go while idle, and never started where there is no
memory for them.

Figures only: no clock, no process, no I/O in here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["AutoscaleLimits", "Controller", "Load"]

#: A pool is mostly idle when it could do its work with one worker less and still have this share of them free.
IDLE_SHARE = 0.25
#: Weight of a new busy figure in the moving average, for one second.
SMOOTHING_PER_SECOND = 0.2


class AutoscaleLimits(NamedTuple):
    """What the controller is held to. Times in seconds."""

    minimum: int
    maximum: int
    target_queue_seconds: float = 0.1
    #: Workers added in one step; 0: a quarter of those there are, at least one.
    up_step: int = 0
    down_after_seconds: float = 30.0


class Load(NamedTuple):
    """A pool at one moment."""

    #: Workers the pool is to have now.
    wanted: int
    #: Of them on their way: spawned or in their handshake.
    booting: int
    busy: int
    queued: int
    #: How long the oldest execution in the queue has waited.
    oldest_wait_seconds: float
    #: Workers for which there is memory.
    headroom: int


@dataclass(slots=True)
class Controller:
    """Decides; `now` is seconds of one monotonic clock that never goes back."""

    limits: AutoscaleLimits
    _busy: float = 0.0
    _at: float | None = field(default=None)
    _idle_since: float | None = None
    #: Why nothing more was started at the last look, "" where nothing more was wanted.
    held_back: str = ""

    def decide(self, now: float, load: Load) -> int:
        """Return how many workers the pool should have; the present number for "leave it"."""
        self._average(now, load.busy)
        limits = self.limits
        self.held_back = ""
        if load.wanted < limits.minimum:
            return limits.minimum
        if load.wanted > limits.maximum:
            return max(limits.maximum, load.wanted - 1)
        if load.queued and load.oldest_wait_seconds >= limits.target_queue_seconds:
            self._idle_since = None
            return self._grow(load)
        return self._shrink(now, load)

    def _average(self, now: float, busy: int) -> None:
        if self._at is None or now <= self._at:
            self._busy = max(self._busy, float(busy)) if self._at is not None else float(busy)
        else:
            kept = (1.0 - SMOOTHING_PER_SECOND) ** (now - self._at)
            self._busy = self._busy * kept + busy * (1.0 - kept)
        self._at = now

    def _grow(self, load: Load) -> int:
        limits = self.limits
        if load.booting:
            return load.wanted  # those added before are to show first what they change
        step = limits.up_step or max(1, load.wanted // 4)
        # Never more than could find something to do.
        step = min(step, load.queued, limits.maximum - load.wanted)
        if step > load.headroom:
            step = max(0, load.headroom)
            self.held_back = "there is no memory for more workers"
        elif not step:
            self.held_back = "the pool has its maximum of workers"
        return load.wanted + step

    def _shrink(self, now: float, load: Load) -> int:
        limits = self.limits
        fewer = load.wanted - 1
        spare = fewer - max(self._busy, float(load.busy))
        if (
            load.wanted <= limits.minimum
            or load.booting
            or load.queued
            or spare < fewer * IDLE_SHARE
            or spare <= 0
        ):
            self._idle_since = None
            return load.wanted
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= limits.down_after_seconds:
            self._idle_since = now
            return fewer
        return load.wanted

    def next_look(self, now: float, load: Load) -> float:
        """When `decide` may say something new although nothing happens; infinity for "when something waits"."""
        if load.wanted < self.limits.minimum:
            return now
        if load.queued:
            return now + max(0.01, self.limits.target_queue_seconds - load.oldest_wait_seconds)
        if load.wanted > self.limits.minimum:
            return now + min(1.0, self.limits.down_after_seconds)
        return float("inf")
