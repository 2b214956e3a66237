"""Figures that cost next to nothing while they are collected: histograms as plain lists of numbers.

Whoever has something to measure keeps a :class:`Histogram` and adds to it on its own plane; whoever wants to know reads
it there: the metrics plugin at a scrape, the status page once a second. No lock is needed, because both run in the one
thread of the server, and no object of a metrics library is on the way of a request.

On the hot path the two lines of `observe` are written out where they are needed; a call costs more than they do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final

__all__ = ["FINE_BOUNDS", "LATENCY_BOUNDS", "Histogram", "Window"]

#: Upper bounds for the time of requests and executions, in seconds.
LATENCY_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

#: Bounds for people who look: from 50 µs to about two minutes, each a quarter above the one before, so a percentile is
#: told with an error of an eighth or so.
FINE_BOUNDS: Final = tuple(round(0.00005 * 1.25**step, 9) for step in range(67))


class Histogram:
    """How often a value fell between two bounds. `counts` has one place more than `bounds`, for what lies above all.

    A value that equals a bound belongs below it, as Prometheus has it (`le`).
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        """`bounds` ascend strictly."""
        self.bounds = tuple(bounds)
        #: Not cumulative.
        self.counts = [0] * (len(self.bounds) + 1)
        #: Sum of the values.
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values counted so far."""
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """Return for each bound how many values were not above it, and at the end how many there were."""
        sums = []
        so_far = 0
        for count in self.counts:
            so_far += count
            sums.append(so_far)
        return sums

    def copy(self) -> Histogram:
        """Return a histogram with the figures of this moment."""
        other = Histogram(self.bounds)
        other.counts[:] = self.counts
        other.total = self.total
        return other

    def since(self, earlier: Histogram) -> Histogram:
        """Return what has been added after `earlier`, a copy of this one. Raises ValueError for other bounds."""
        if earlier.bounds != self.bounds:
            raise ValueError("two histograms with different bounds cannot be compared")
        window = Histogram(self.bounds)
        window.counts[:] = [now - before for now, before in zip(self.counts, earlier.counts, strict=True)]
        window.total = self.total - earlier.total
        return window

    def quantile(self, share: float) -> float | None:
        """Estimate the value below which `share` (0 to 1) of all lie; None where there are none.

        Inside a bucket the values are taken as evenly spread; of what lies above all bounds only the last bound is known.
        """
        sums = self.cumulative()
        if not sums[-1]:
            return None
        wanted = share * sums[-1]
        place = min(bisect_left(sums, wanted), len(sums) - 1)
        while not self.counts[place]:  # a share of 0 begins where the first value is
            place += 1
        if place == len(self.bounds):
            return self.bounds[-1] if self.bounds else None
        lower = self.bounds[place - 1] if place else min(0.0, self.bounds[0])
        before = sums[place - 1] if place else 0
        return lower + (self.bounds[place] - lower) * max(0.0, wanted - before) / self.counts[place]

    def __repr__(self) -> str:
        return f"<Histogram of {self.count} values, sum {self.total:g}>"


class Window:
    """Copies of growing counters over the last seconds: tells what came in between. One copy a look."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._copies: deque[tuple[float, tuple[int, ...]]] = deque()

    def note(self, now: float, counts: Sequence[int]) -> tuple[float, list[int]] | None:
        """Keep a copy; return seconds and counts since the oldest copy that is not too old, None where there is none.

        A source that has begun anew (fewer counts than before, or another number of them) begins a new window.
        """
        copies = self._copies
        new = tuple(counts)
        if copies and (
            len(copies[-1][1]) != len(new) or any(n < o for n, o in zip(new, copies[-1][1], strict=True))
        ):
            copies.clear()
        # One copy may be older than asked for, or the window would be shorter than that.
        while len(copies) > 1 and copies[1][0] <= now - self._seconds:
            copies.popleft()
        if copies and copies[0][0] < now - 2 * self._seconds:
            copies.clear()
        span = None
        if copies and now > copies[0][0]:
            began, before = copies[0]
            span = (now - began, [later - earlier for later, earlier in zip(new, before, strict=True)])
        if not copies or now > copies[-1][0]:
            copies.append((now, new))
        return span
