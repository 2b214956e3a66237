"""How long a stop may take: one budget, split between its steps, as absolute deadlines.

The whole stop ends within the grace period plus one second, whatever plugins do: each step has a deadline inside the
grace period, and who is late is cancelled (the axe) and gets a share of that last second to clean up. A second SIGTERM
makes every deadline that is still to come "now". Plain values; `now` is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["StopBudget"]

#: Longest time to clean up after the axe.
_AXE_SECONDS: Final = 1.0
#: What cleaning up may add to the grace period for all together; the rest of the second is for the floor below.
_LAST_SECONDS: Final = 0.9
#: Shortest time to clean up: who obeys the axe at once must never be called stuck because others used the time up.
_AXE_SECONDS_MIN: Final = 0.005
#: Shares of the grace period: what runs is finished by then, pools have stopped by then.
_DRAIN_SHARE: Final = 2 / 3
_POOLS_SHARE: Final = 5 / 6
_INTAKE_SECONDS: Final = 2.0
_INTERRUPT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class StopBudget:
    """Deadlines of one stop, in the clock of whoever made it; each is no later than the next."""

    drain_until: float
    pools_until: float
    graceful_until: float
    final: float

    @classmethod
    def begin(
        cls, now: float, grace_period_seconds: float, drain_timeout_seconds: float | None
    ) -> StopBudget:
        """Split the grace period; `drain_timeout_seconds` None means two thirds of it, and it is never longer."""
        drain = grace_period_seconds * _DRAIN_SHARE
        if drain_timeout_seconds is not None:
            drain = min(drain_timeout_seconds, grace_period_seconds)
        return cls(
            drain_until=now + drain,
            pools_until=now + max(drain, grace_period_seconds * _POOLS_SHARE),
            graceful_until=now + grace_period_seconds,
            final=now + grace_period_seconds + _LAST_SECONDS,
        )

    def hurried(self, now: float) -> StopBudget:
        """Return the budget with every deadline now, and the last second counted from now."""
        return StopBudget(
            drain_until=min(self.drain_until, now),
            pools_until=min(self.pools_until, now),
            graceful_until=min(self.graceful_until, now),
            final=min(self.final, now + _LAST_SECONDS),
        )

    def interrupt_until(self, now: float) -> float:
        """Deadline for what the start was doing (on_init, a plugin's open) to clean up after its cancel."""
        return min(now + _INTERRUPT_SECONDS, self.drain_until)

    def intake_until(self, now: float) -> float:
        """Deadline for one plugin to take nothing new."""
        return min(now + _INTAKE_SECONDS, self.drain_until)

    def plugin_until(self, now: float, stop_timeout_seconds: float) -> float:
        """Deadline for one plugin to return after it was asked to stop."""
        return min(now + stop_timeout_seconds, self.graceful_until)

    def axe_until(self, now: float, tasks_left: int) -> float:
        """Deadline to clean up after a cancel: an equal share of what is left, so that nobody eats the others'."""
        share = max(0.0, self.final - now) / max(1, tasks_left)
        return now + max(_AXE_SECONDS_MIN, min(_AXE_SECONDS, share))
