"""Pure: how a new generation takes the place of the old one, and whether its canary may be trusted.

A generation is command, environment and code as of the start of its workers. The first worker of the new one is the
canary; when it has booted (and stood its window, where one is configured) the others follow in steps: at most
`max_surge` workers above the pool's size, at most `max_unavailable` below it. Where the surge covers the whole pool, as
it does by default, nothing of the old generation goes before all of the new one is up, so a failure anywhere leaves
the old one as it was.

No clock, no process, no I/O in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["CanaryLimits", "Figures", "RolloutStep", "judge_canary", "next_step"]


class RolloutStep(NamedTuple):
    """What to do next: workers of the new generation to start, workers of the old one to let go."""

    start: int
    retire: int


def next_step(
    total: int, *, new_up: int, new_booting: int, old: int, max_surge: int, max_unavailable: int
) -> RolloutStep:
    """Say the next step of a rollout of `total` workers with `new_up` ready, `new_booting` on their way, `old` left.

    One of `max_surge` and `max_unavailable` is at least 1; then a rollout whose workers boot always comes to its end.
    `old` may be more than `total`: the pool is to be smaller by then.
    """
    new = new_up + new_booting
    if max_surge >= total and new_up < total:
        return RolloutStep(max(0, total - new), 0)
    start = max(0, min(total - new, total + max_surge - new - old))
    spare = new_up + old - (total - max_unavailable)
    return RolloutStep(start, max(0, min(old, spare)))


@dataclass(slots=True)
class Figures:
    """What one generation did during the window."""

    executions: int = 0
    #: Errors the worker answered with, and answers that its plugin calls a failure (for HTTP: status 5xx).
    failures: int = 0
    deaths: int = 0
    #: Seconds spent in all executions together.
    busy_seconds: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Share of the executions that failed."""
        return self.failures / self.executions if self.executions else 0.0

    @property
    def mean_seconds(self) -> float:
        """Mean duration of one execution."""
        return self.busy_seconds / self.executions if self.executions else 0.0


class CanaryLimits(NamedTuple):
    """How much worse than the old generation a canary may be."""

    #: By how much its share of failed executions may be above the old generation's.
    error_rate: float = 0.05
    #: How many times as long as the old generation's its executions may take; 0: not looked at.
    latency_factor: float = 3.0
    #: With fewer executions than this on either side, rates and durations say nothing.
    executions_min: int = 20


def judge_canary(new: Figures, old: Figures, limits: CanaryLimits) -> str:
    """Return why the canary must not be trusted, or "".

    A death is always one; rates count once the canary has run enough to tell, and durations once both have. Executions
    shorter than a millisecond are never called slow: what they take is mostly not theirs.
    """
    if new.deaths:
        return f"{new.deaths} of its workers died within canary.window"
    if new.executions < limits.executions_min:
        return ""
    allowed = old.failure_rate + limits.error_rate
    if new.failure_rate > allowed:
        return (
            f"{new.failures} of its {new.executions} executions failed ({new.failure_rate:.1%}), "
            f"of the old workers' {old.failure_rate:.1%}"
        )
    if limits.latency_factor and old.executions >= limits.executions_min:
        slow = max(old.mean_seconds * limits.latency_factor, 0.001)
        if new.mean_seconds > slow:
            return (
                f"its executions take {new.mean_seconds * 1000:.1f} ms on average, "
                f"the old workers' {old.mean_seconds * 1000:.1f} ms"
            )
    return ""
