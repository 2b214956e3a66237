"""The lifecycle table."""

from __future__ import annotations

import itertools

import pytest

from trailboss.container.lifecycle import TRANSITIONS, Event, LifecycleError, Phase, event_of_exit, step

P, E = Phase, Event

EXPECTED = {
    (P.DECLARED, E.START): P.STARTING,
    (P.DECLARED, E.FAIL): P.FAILED,
    (P.DECLARED, E.STOP): P.STOPPED,
    (P.STARTING, E.READY): P.HEALTHY,
    (P.STARTING, E.FAIL): P.FAILED,
    (P.STARTING, E.STOP): P.DRAINING,
    (P.HEALTHY, E.FAIL): P.FAILED,
    (P.HEALTHY, E.STOP): P.DRAINING,
    (P.DRAINING, E.READY): P.DRAINING,
    (P.DRAINING, E.STOP): P.DRAINING,
    (P.DRAINING, E.FAIL): P.FAILED,
    (P.DRAINING, E.EXIT): P.STOPPED,
    (P.STOPPED, E.STOP): P.STOPPED,
    (P.FAILED, E.READY): P.FAILED,
    (P.FAILED, E.FAIL): P.FAILED,
    (P.FAILED, E.STOP): P.FAILED,
    (P.FAILED, E.EXIT): P.FAILED,
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_pair_of_phase_and_event(phase: Phase, event: Event) -> None:
    """A listed pair leads where the table says; any other is an error that names both."""
    expected = EXPECTED.get((phase, event))

    if expected is not None:
        assert step(phase, event) is expected
    else:
        with pytest.raises(LifecycleError) as caught:
            step(phase, event)
        assert (caught.value.phase, caught.value.event) == (phase, event)
        assert str(caught.value) == f"a plugin that is {phase.value} cannot {event.value}"


def test_nobody_comes_back_from_failed_or_stopped() -> None:
    """Failed and stopped are final."""
    assert set(TRANSITIONS[P.FAILED].values()) == {P.FAILED}
    assert set(TRANSITIONS[P.STOPPED].values()) == {P.STOPPED}


@pytest.mark.parametrize(
    ("phase", "raised", "event"),
    [
        (P.STARTING, False, E.FAIL),
        (P.STARTING, True, E.FAIL),
        (P.HEALTHY, False, E.FAIL),
        (P.HEALTHY, True, E.FAIL),
        (P.DRAINING, False, E.EXIT),
        (P.DRAINING, True, E.FAIL),
        (P.FAILED, False, E.EXIT),
        (P.FAILED, True, E.FAIL),
    ],
)
def test_meaning_of_an_end(phase: Phase, raised: bool, event: Event) -> None:
    """Ending is right only for a plugin that was asked to stop, and only without an error."""
    assert event_of_exit(phase, raised=raised) is event
