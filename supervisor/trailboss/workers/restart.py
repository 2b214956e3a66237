"""Pure: when a slot may start its next worker, and when a first start has failed.

A slot is never lost; what varies is the pace. A worker that had proved itself (it finished an exec, or stayed ready
for a while) is replaced at once, however it went. One that had not is replaced at once the first time, then with
exponential back-off and jitter per slot, and every such replacement takes a token from a bucket that the whole pool
shares, so that a crash loop of many slots is bounded as well. A proof refills the bucket and forgets the streak.

A worker that came up and died of the first thing it was given says something about that thing, not about the start: it
leaves the streak alone and takes its token from a larger bucket. Whoever gives it out again has a pace of his own (jobs
have a back-off and a number of attempts), so one poison job does not take the workers from all others.

No clock, no randomness, no I/O in here: `now` and a random fraction are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["FirstStart", "Pace", "RestartBudget", "RestartPolicy", "SlotHistory"]


class Pace(NamedTuple):
    """A token bucket: replacements that may happen at once, how many more come each second, and the longest wait."""

    burst: float
    refill_per_second: float
    wait_seconds_max: float


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Figures of the restart policy; the defaults hold the bounds of a crash loop (10 spawns in its first 10 s,
    12 a minute later, for a pool of 4) and still start again within 30 s of the cause being removed."""

    backoff_seconds_first: float = 0.1
    backoff_seconds_max: float = 15.0
    backoff_factor: float = 2.0
    #: A back-off is shortened by up to this fraction, so that slots do not march in step.
    jitter: float = 0.2
    #: Staying ready for so long proves a worker that has had nothing to do.
    proof_seconds: float = 5.0
    #: No slot waits longer for the pool's budget, whatever has died before: with the boot that follows it is up again
    #: within 30 s. It does not quicken a crash loop: every slot once in 24 s is 2.5 a minute and worker, the pace below.
    wait_seconds_max: float = 24.0

    def boots(self, num_workers: int) -> Pace:
        """Pace of replacements of workers that died unproved with nothing to do."""
        return Pace(float(max(4, num_workers)), max(10.0, 2.5 * num_workers) / 60.0, self.wait_seconds_max)

    def execs(self, num_workers: int) -> Pace:
        """Pace of replacements of workers that died of the first thing they were given."""
        return Pace(max(20.0, 5.0 * num_workers), max(1.0, 0.5 * num_workers), self.wait_seconds_max)

    def proved(self, executions: int, ready_seconds: float) -> bool:
        """Whether a worker with this record counts as one that worked."""
        return executions > 0 or ready_seconds >= self.proof_seconds


@dataclass(slots=True)
class SlotHistory:
    """What one slot remembers of its workers: how many in a row died unproved."""

    streak: int = 0

    def backoff_seconds(self, policy: RestartPolicy, fraction: float) -> float:
        """Wait before the next spawn; `fraction` in [0, 1) is the jitter's random draw."""
        if self.streak <= 1:
            return 0.0
        wait = policy.backoff_seconds_first * policy.backoff_factor ** min(self.streak - 2, 30)
        return min(wait, policy.backoff_seconds_max) * (1.0 - policy.jitter * fraction)


@dataclass(slots=True)
class RestartBudget:
    """Token bucket of one pool. Times are seconds of one monotonic clock."""

    pace: Pace
    _tokens: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._tokens = self.pace.burst

    def _refill(self, now: float) -> None:
        if self._at:
            earned = (now - self._at) * self.pace.refill_per_second
            self._tokens = min(self.pace.burst, self._tokens + max(0.0, earned))
        self._at = now

    def take(self, now: float) -> float:
        """Take a token for one replacement; returns the seconds to wait first (0 when one is there).

        The token is taken in either case, so callers queue up behind each other in order of asking; but the debt has
        a bound, or workers killed by the dozen from outside would keep the last slots empty for minutes.
        """
        self._refill(now)
        self._tokens = max(self._tokens - 1.0, -self.pace.refill_per_second * self.pace.wait_seconds_max)
        if self._tokens >= 0.0:
            return 0.0
        return -self._tokens / self.pace.refill_per_second

    def forget(self, now: float) -> None:
        """A worker has proved itself: the bucket is full again."""
        self._tokens = self.pace.burst
        self._at = now


@dataclass(slots=True)
class FirstStart:
    """Decides when the first boot of a pool has failed for good.

    A worker that dies during the first start is tried again within the budget; the start fails when nothing can come
    up: a command that cannot be executed at all, every slot tried twice and none ready, or more failures than twice
    the workers plus two whatever is ready (a quorum that cannot be reached).
    """

    num_workers: int
    failures: int = 0
    permanent: bool = False

    def failed(self, *, permanent: bool) -> None:
        """Note one failed boot."""
        self.failures += 1
        self.permanent = self.permanent or permanent

    def verdict(self, ready: int) -> bool:
        """Whether the start has failed, with `ready` workers up now."""
        if self.permanent:
            return True
        if ready == 0 and self.failures >= 2 * self.num_workers:
            return True
        return self.failures >= 2 * self.num_workers + 2

    def describe(self, last_failure: str) -> str:
        """Say how many boots failed, and why the last one did."""
        if self.failures == 1:
            return f"1 boot failed: {last_failure}"
        return f"{self.failures} boots failed; the last one: {last_failure}"
