"""Histograms, percentiles and windows: what is told about the last seconds is what happened in them."""

from __future__ import annotations

import random

import pytest

from trailboss.figures import LATENCY_BOUNDS, Histogram, Span, Window, difference, percentile


def test_a_value_is_counted_in_its_bucket() -> None:
    """A bound belongs to its own bucket, as Prometheus has it; what is beyond the last one is counted too."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert (histogram.count, histogram.sum) == (5, 12.0)


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.5),
        ([10, 0, 0], 1.0, 1.0),
        ([0, 4, 0], 0.25, 1.25),
        ([1, 0, 1], 0.99, 2.0),
        ([0, 0, 3], 0.5, 2.0),
        ([5, 5, 0], 0.5, 1.0),
    ],
)
def test_percentiles(counts: list[int], fraction: float, expected: float | None) -> None:
    """Interpolated inside a bucket; beyond the last bound it is the bound; nothing of nothing."""
    assert percentile((1.0, 2.0), counts, fraction) == expected


def test_percentiles_of_latencies_are_near_the_truth() -> None:
    """For latencies of any size the error is within a bucket, a quarter."""
    numbers = random.Random(7)
    values = sorted(numbers.lognormvariate(-5, 1.5) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    for fraction in (0.5, 0.95, 0.99):
        told = percentile(LATENCY_BOUNDS, histogram.counts, fraction)
        assert told == pytest.approx(values[int(fraction * len(values))], rel=0.25)


def test_a_window_tells_what_came_in_between() -> None:
    """The first look knows nothing; later ones reach back as far as asked, not further."""
    window = Window(10.0)
    assert window.note(100.0, (5, 5)) is None
    assert window.note(101.0, (6, 5)) == Span(1.0, (1, 0))
    assert window.note(105.0, (9, 6)) == Span(5.0, (4, 1))
    assert window.note(111.0, (10, 6)) == Span(10.0, (4, 1))
    assert window.note(111.0, (10, 6)) == Span(10.0, (4, 1))


def test_a_window_that_nobody_looked_through_begins_anew() -> None:
    """After a long pause the last look says nothing about the last seconds; nor does another source."""
    window = Window(10.0)
    window.note(0.0, (1,))
    assert window.note(500.0, (9,)) is None
    assert window.note(501.0, (10,)) == Span(1.0, (1,))
    assert window.note(502.0, (0,)) is None
    assert window.note(503.0, (0, 0)) is None


def test_differences_of_copies() -> None:
    """Counted since: later less earlier."""
    assert difference([3, 4], [1, 4]) == [2, 0]
