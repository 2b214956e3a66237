"""Histograms and windows: what is told about the last seconds is what happened in them."""

from __future__ import annotations

import random

import pytest

from trailboss.figures import FINE_BOUNDS, Histogram, Window


def test_a_value_is_counted_in_its_bucket() -> None:
    """A bound belongs to its own bucket, as Prometheus has it; what is beyond the last one is counted too."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.cumulative() == [2, 4, 5]
    assert (histogram.count, histogram.total) == (5, 12.0)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.5),
        ([10, 0, 0], 1.0, 1.0),
        ([0, 4, 0], 0.25, 1.25),
        ([0, 4, 0], 0.0, 1.0),
        ([1, 0, 1], 0.99, 2.0),
        ([0, 0, 3], 0.5, 2.0),
        ([5, 5, 0], 0.5, 1.0),
    ],
)
def test_quantiles(counts: list[int], share: float, expected: float | None) -> None:
    """Interpolated inside a bucket; beyond the last bound it is the bound; nothing of nothing."""
    histogram = Histogram((1.0, 2.0))
    histogram.counts[:] = counts
    assert histogram.quantile(share) == expected


def test_fine_bounds_tell_latencies_near_the_truth() -> None:
    """For latencies of any size the error is within a bucket, a quarter."""
    numbers = random.Random(7)
    values = sorted(numbers.lognormvariate(-5, 1.5) for _ in range(5000))
    histogram = Histogram(FINE_BOUNDS)
    for value in values:
        histogram.observe(value)
    for share in (0.5, 0.95, 0.99):
        assert histogram.quantile(share) == pytest.approx(values[int(share * len(values))], rel=0.25)


def test_what_came_after_a_copy() -> None:
    """A copy stays as it was; the difference is what came later; other bounds cannot be compared."""
    histogram = Histogram((1.0,))
    histogram.observe(0.5)
    copy = histogram.copy()
    histogram.observe(3.0)
    later = histogram.since(copy)
    assert (copy.counts, later.counts, later.total) == ([1, 0], [0, 1], 3.0)
    with pytest.raises(ValueError):
        histogram.since(Histogram((2.0,)))


def test_a_window_tells_what_came_in_between() -> None:
    """The first look knows nothing; later ones reach back as far as asked, not further."""
    window = Window(10.0)
    assert window.note(100.0, (5, 5)) is None
    assert window.note(101.0, (6, 5)) == (1.0, [1, 0])
    assert window.note(105.0, (9, 6)) == (5.0, [4, 1])
    assert window.note(111.0, (10, 6)) == (10.0, [4, 1])
    assert window.note(111.0, (10, 6)) == (10.0, [4, 1])


def test_a_window_that_nobody_looked_through_begins_anew() -> None:
    """After a long pause the last look says nothing about the last seconds; nor does another source."""
    window = Window(10.0)
    window.note(0.0, (1,))
    assert window.note(500.0, (9,)) is None
    assert window.note(501.0, (10,)) == (1.0, [1])
    assert window.note(502.0, (0,)) is None
    assert window.note(503.0, (0, 0)) is None
