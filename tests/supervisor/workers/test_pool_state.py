"""Phase, counts and choice of a pool, as tables and as rules that hold for any slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.workers.pool_state import Counts, PoolPhase, SlotView, count, decide_phase, pick_to_remove

SERVING = SlotView(1, wanted=True, serving=True)
BUSY = SlotView(2, wanted=True, serving=True, busy=True)
BOOTING = SlotView(3, wanted=True, booting=True)
RETRYING = SlotView(4, wanted=True, booting=True, hopeless=True)
WAITING = SlotView(5, wanted=True, hopeless=True)
LEAVING = SlotView(6, wanted=False, leaving=True)

SLOTS = st.lists(
    st.builds(
        SlotView,
        st.integers(1, 1000),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda slot: slot.number,
)


@pytest.mark.parametrize(
    ("before", "slots", "expected"),
    [
        (PoolPhase.BOOTING, [SERVING], PoolPhase.READY),
        (PoolPhase.READY, [BUSY, WAITING], PoolPhase.READY),
        (PoolPhase.READY, [BOOTING], PoolPhase.READY),
        (PoolPhase.READY, [BOOTING, WAITING], PoolPhase.READY),
        (PoolPhase.READY, [WAITING, RETRYING], PoolPhase.DEGRADED),
        (PoolPhase.READY, [WAITING, LEAVING], PoolPhase.DEGRADED),
        (PoolPhase.DEGRADED, [BOOTING], PoolPhase.DEGRADED),
        (PoolPhase.DEGRADED, [RETRYING, SERVING], PoolPhase.READY),
        (PoolPhase.READY, [LEAVING], PoolPhase.READY),
        (PoolPhase.READY, [], PoolPhase.READY),
        (PoolPhase.DRAINING, [SERVING], PoolPhase.DRAINING),
        (PoolPhase.STOPPED, [], PoolPhase.STOPPED),
    ],
)
def test_phase(before: PoolPhase, slots: list[SlotView], expected: PoolPhase) -> None:
    """One row per situation of the module's diagram."""
    assert expected is decide_phase(before, slots, first_start=False, debug=False)


def test_first_start_is_ended_by_its_owner() -> None:
    """Until the quorum is there the pool stays booting, whatever its slots do."""
    assert decide_phase(PoolPhase.BOOTING, [SERVING], first_start=True, debug=False) is PoolPhase.BOOTING


def test_debug_pool_is_ready_without_workers() -> None:
    """A debug pool has no worker between two execs."""
    assert decide_phase(PoolPhase.BOOTING, [], first_start=False, debug=True) is PoolPhase.READY


def test_counts() -> None:
    """Busy workers are ready ones; those that leave are counted apart."""
    assert Counts(2, 1, 2, 1) == count([SERVING, BUSY, BOOTING, RETRYING, WAITING, LEAVING])


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([], None),
        ([SERVING], None),
        ([SERVING, LEAVING], None),
        ([BUSY, SERVING], 1),
        ([BUSY, BUSY._replace(number=9)], 2),
        ([BUSY, BOOTING], 3),
    ],
)
def test_removal(slots: list[SlotView], expected: int | None) -> None:
    """An idle worker goes before a busy one; the last slot always stays."""
    assert expected == pick_to_remove(slots)


@given(st.sampled_from(PoolPhase), SLOTS, st.booleans())
def test_a_pool_with_a_serving_worker_is_never_degraded(
    before: PoolPhase, slots: list[SlotView], debug: bool
) -> None:
    """Degraded refuses execs: it must not be said while anybody could run them, nor undo a stop."""
    after = decide_phase(before, slots, first_start=False, debug=debug)

    if any(slot.serving for slot in slots):
        assert after is not PoolPhase.DEGRADED
    if before in (PoolPhase.DRAINING, PoolPhase.STOPPED):
        assert after is before


@given(SLOTS)
def test_removal_never_takes_the_last(slots: list[SlotView]) -> None:
    """Whatever is picked is wanted, and another wanted slot stays."""
    picked = pick_to_remove(slots)
    wanted = {slot.number for slot in slots if slot.wanted}

    assert (picked is None) == (len(wanted) < 2)
    assert picked is None or picked in wanted
