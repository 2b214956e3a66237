"""The pure limits of a worker: when one is due, when to look again, how they are drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trailboss.workers.limits import Limits, RetireCause, WorkerLimits

seconds = st.floats(0, 1e6)


def test_no_limits_never_due() -> None:
    """Zero is off."""
    limits = WorkerLimits(0, 0, 0, 0)
    assert limits.due(1e9, 0, 1) is None
    assert limits.next_check(5, 0, 1, busy=False) == float("inf")


def test_ttl_counts_from_ready() -> None:
    """ttl passes however busy the worker was."""
    limits = WorkerLimits(0, 10, 0, 0)
    assert limits.due(109.9, 100, 109) is None
    assert limits.due(110, 100, 109) is RetireCause.TTL
    assert limits.next_check(101, 100, 0, busy=True) == 110


def test_idle_ttl_counts_from_the_last_use() -> None:
    """idle_ttl does not touch a worker that was never used; one that is busy has not begun to be idle."""
    limits = WorkerLimits(0, 0, 10, 0)
    assert limits.due(1000, 100, 0) is None
    assert limits.due(119.9, 100, 110) is None
    assert limits.due(120, 100, 110) is RetireCause.IDLE_TTL
    assert limits.next_check(111, 100, 110, busy=False) == 120
    assert limits.next_check(500, 100, 110, busy=True) == 510
    assert limits.next_check(500, 100, 0, busy=False) == 510


@given(now=seconds, ready=seconds, used=seconds, ttl=seconds, idle=seconds, busy=st.booleans())
def test_never_a_busy_wait(
    now: float, ready: float, used: float, ttl: float, idle: float, busy: bool
) -> None:
    """What is not due is looked at again later than now, and not before something can be due."""
    limits = WorkerLimits(0, ttl, idle, 0)
    due = limits.due(now, ready, used)
    check = limits.next_check(now, ready, used, busy=busy)
    if due is None or (due is RetireCause.IDLE_TTL and busy):
        assert check >= now
        if idle >= 0.001 or not idle:
            assert check > now


@given(fraction=st.floats(0, 1, exclude_max=True), jobs=st.integers(0, 10**6))
def test_draw(fraction: float, jobs: int) -> None:
    """max_jobs grows by at most 14 %, ttl shrinks by at most 14 %, the others are exact."""
    drawn = Limits(jobs, 100.0, 7.0, 5).draw(fraction)
    assert jobs <= drawn.executions <= jobs * 1.14
    assert 86 <= drawn.ttl_seconds <= 100
    assert (drawn.idle_ttl_seconds, drawn.memory_bytes) == (7.0, 5)


def test_small_max_jobs_is_exact() -> None:
    """max_jobs 1 means one exec, for every draw."""
    assert {Limits(max_jobs=1).draw(number / 100).executions for number in range(100)} == {1}
