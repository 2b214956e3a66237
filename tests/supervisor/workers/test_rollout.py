"""How a new generation takes over, step by step, and when its canary is not trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.workers.rollout import CanaryLimits, Figures, RolloutStep, judge_canary, next_step


def test_full_surge_keeps_every_old_worker_until_all_new_ones_are_up() -> None:
    """With the surge of the whole pool the old generation goes at the end, all at once."""
    step = next_step(4, new_up=1, new_booting=0, old=4, max_surge=4, max_unavailable=0)
    assert step == RolloutStep(3, 0)
    step = next_step(4, new_up=3, new_booting=1, old=4, max_surge=4, max_unavailable=0)
    assert step == RolloutStep(0, 0)
    step = next_step(4, new_up=4, new_booting=0, old=4, max_surge=4, max_unavailable=0)
    assert step == RolloutStep(0, 4)


def test_surge_of_one_goes_worker_by_worker() -> None:
    """Each new worker that is up lets one old one go; only then the next is started."""
    assert next_step(3, new_up=1, new_booting=0, old=3, max_surge=1, max_unavailable=0) == RolloutStep(0, 1)
    assert next_step(3, new_up=1, new_booting=0, old=2, max_surge=1, max_unavailable=0) == RolloutStep(1, 0)
    assert next_step(3, new_up=1, new_booting=1, old=2, max_surge=1, max_unavailable=0) == RolloutStep(0, 0)


def test_no_surge_goes_below_the_size() -> None:
    """Without room above, an old worker goes before a new one starts."""
    assert next_step(3, new_up=0, new_booting=0, old=3, max_surge=0, max_unavailable=1) == RolloutStep(0, 1)
    assert next_step(3, new_up=0, new_booting=0, old=2, max_surge=0, max_unavailable=1) == RolloutStep(1, 0)


@given(
    data=st.data(),
    total=st.integers(1, 12),
    before=st.integers(0, 24),
    surge=st.integers(0, 14),
    unavailable=st.integers(0, 12),
)
def test_a_rollout_keeps_its_bounds_and_ends(
    data: st.DataObject, total: int, before: int, surge: int, unavailable: int
) -> None:
    """In whatever order boots and departures end: never too many, never too few, and in the end all are new.

    The pool may have had more workers before, or fewer, where a reload changes its size.
    """
    if not surge and not unavailable:
        surge = 1
    up, booting, old, leaving = 0, 0, before, 0
    for _ in range(12 * (total + before) + 12):
        step = next_step(
            total, new_up=up, new_booting=booting, old=old, max_surge=surge, max_unavailable=unavailable
        )
        booting += step.start
        old -= step.retire
        leaving += step.retire
        assert up + booting + old <= max(total, before) + surge
        assert up + old >= min(before, total - unavailable)
        assert old >= 0
        if up == total and not old:
            break
        if booting and (not leaving or data.draw(st.booleans())):
            booting, up = booting - 1, up + 1
        elif leaving:
            leaving -= 1
        else:
            assert step.start or step.retire, "stuck"
    assert (up, old, booting) == (total, 0, 0)


def test_a_death_condemns_the_canary() -> None:
    """However few it ran."""
    assert "died" in judge_canary(Figures(deaths=1), Figures(), CanaryLimits())


@pytest.mark.parametrize(
    ("new", "old", "word"),
    [
        (Figures(100, 10, 0, 1.0), Figures(1000, 10, 0, 10.0), "failed"),
        (Figures(100, 0, 0, 1.0), Figures(1000, 0, 0, 1.0), "take"),
        (Figures(10, 10, 0, 1.0), Figures(1000, 0, 0, 1.0), ""),
        (Figures(100, 5, 0, 0.1), Figures(1000, 50, 0, 1.0), ""),
        (Figures(100, 0, 0, 0.05), Figures(1000, 0, 0, 0.01), ""),  # both far below a millisecond
        (Figures(100, 0, 0, 5.0), Figures(5, 0, 0, 0.01), ""),  # nothing to compare with
    ],
)
def test_rates_count_once_there_is_enough_to_tell(new: Figures, old: Figures, word: str) -> None:
    """Errors against the old generation's share, durations against its mean, neither on a handful of executions."""
    verdict = judge_canary(new, old, CanaryLimits())
    assert (word in verdict) if word else not verdict
