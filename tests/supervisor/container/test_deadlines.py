"""The budget of a stop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trailboss.container.deadlines import StopBudget

seconds = st.floats(0, 1000)


@given(now=seconds, grace=seconds, drain=st.none() | seconds, later=seconds, own=seconds)
def test_deadlines_are_in_order_and_inside_the_grace_period(
    now: float, grace: float, drain: float | None, later: float, own: float
) -> None:
    """Each step may last no longer than the next, nobody longer than the grace period, all less than a second more."""
    budget = StopBudget.begin(now, grace, drain)

    assert now <= budget.drain_until <= budget.pools_until <= budget.graceful_until <= budget.final
    assert budget.final - now <= grace + 1
    assert budget.plugin_until(later, own) <= budget.graceful_until
    assert budget.intake_until(later) <= budget.drain_until
    assert budget.interrupt_until(later) <= budget.drain_until


def test_shares_of_the_grace_period() -> None:
    """Two thirds for draining, five sixths for pools, unless the drain has a time of its own."""
    assert StopBudget.begin(100, 30, None) == StopBudget(120, 125, 130, 130.9)
    assert StopBudget.begin(100, 30, 28) == StopBudget(128, 128, 130, 130.9)
    assert StopBudget.begin(100, 30, 60) == StopBudget(130, 130, 130, 130.9)


def test_hurry_makes_everything_now() -> None:
    """Deadlines that are over stay, the others are now, and cleaning up gets its second from now."""
    assert StopBudget(120, 125, 130, 130.9).hurried(122) == StopBudget(120, 122, 122, 122.9)


@given(tasks=st.integers(1, 100), grace=st.floats(0, 30), late=st.floats(0, 60))
def test_axe_shares_what_is_left(tasks: int, grace: float, late: float) -> None:
    """Whatever time is left, cleaning up one after the other ends by the last moment, with 5 ms for each at least."""
    budget = StopBudget.begin(0, grace, None)
    now = late
    for left in range(tasks, 0, -1):
        until = budget.axe_until(now, left)
        assert until - now + 1e-9 >= 0.005
        assert until - now <= 1 + 1e-9
        now = until

    assert now <= max(budget.final, late) + tasks * 0.005 + 1e-6
