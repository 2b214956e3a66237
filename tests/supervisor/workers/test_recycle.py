"""The one planner of recycling: a replacement first, a quarter at once, the oldest first, never stuck."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trailboss.workers.recycle import DueWorker, Replacement, at_once, plan


def test_a_replacement_is_started_before_anybody_goes() -> None:
    """The worker that is due stays at work meanwhile."""
    made = plan([DueWorker(1, 5.0, False)], configured=4, serving=4, max_unavailable=0, headroom=9)
    assert made == ((1,), ())


def test_it_goes_when_its_replacement_is_ready() -> None:
    """Busy or not: it finishes what it runs."""
    due = [DueWorker(1, 5.0, True, Replacement.READY)]
    assert plan(due, configured=4, serving=5, max_unavailable=0, headroom=9) == ((), (1,))


def test_a_whole_pool_that_is_due_goes_by_quarters_and_the_oldest_first() -> None:
    """Eight workers of one age: two at a time."""
    due = [DueWorker(number, 10.0 - number, False) for number in range(8)]
    made = plan(due, configured=8, serving=8, max_unavailable=0, headroom=99)
    assert made == ((7, 6), ())


def test_places_of_those_under_way_are_taken() -> None:
    """A boot that has begun, and one that leaves already, count."""
    due = [
        DueWorker(1, 1.0, False, Replacement.BOOTING),
        DueWorker(2, 1.0, False, Replacement.NONE, True),
        DueWorker(3, 1.0, False),
    ]
    assert plan(due, configured=8, serving=7, max_unavailable=0, headroom=99) == ((), ())


def test_without_memory_an_idle_one_goes_first() -> None:
    """One at a time, and none that is busy."""
    due = [DueWorker(1, 1.0, True), DueWorker(2, 2.0, False), DueWorker(3, 2.0, False)]
    assert plan(due, configured=8, serving=8, max_unavailable=0, headroom=0) == ((), (2,))
    assert plan(due, configured=8, serving=7, max_unavailable=0, headroom=0) == ((), ())
    assert plan(due[:1], configured=1, serving=1, max_unavailable=0, headroom=0) == ((), ())


def test_max_unavailable_allows_more() -> None:
    """Also busy ones: that is what the key says."""
    due = [DueWorker(1, 1.0, True), DueWorker(2, 2.0, False)]
    assert plan(due, configured=8, serving=8, max_unavailable=2, headroom=0) == ((), (1, 2))


@given(
    configured=st.integers(1, 16),
    headroom=st.integers(0, 5),
    unavailable=st.integers(0, 3),
    busy=st.lists(st.booleans(), min_size=16, max_size=16),
    order=st.randoms(use_true_random=False),
)
def test_everybody_is_replaced_and_bounds_hold(
    configured: int, headroom: int, unavailable: int, busy: list[bool], order: object
) -> None:
    """All workers due at once, boots ending in any order: the pool keeps its size but for what is allowed."""
    state = dict.fromkeys(range(configured), Replacement.NONE)
    absent: set[int] = set()
    for _ in range(20 * configured):
        if not state:
            break
        serving = (
            configured - len(absent) + sum(replacement is Replacement.READY for replacement in state.values())
        )
        due = [
            DueWorker(number, float(number), busy[number] and headroom == 0 and configured > 1, replacement)
            for number, replacement in state.items()
        ]
        booting = sum(replacement is Replacement.BOOTING for replacement in state.values())
        made = plan(
            due,
            configured=configured,
            serving=serving,
            max_unavailable=unavailable,
            headroom=max(0, headroom - booting),
        )
        assert len(made.boot) + booting <= at_once(configured)
        for number in made.retire:
            if state.pop(number) is not Replacement.READY:
                absent.add(number)
        assert len(absent) <= max(1, unavailable)
        for number in made.boot:
            state[number] = Replacement.BOOTING
        booted = [number for number, replacement in state.items() if replacement is Replacement.BOOTING]
        if booted:
            state[booted[0]] = Replacement.READY
        elif absent:
            absent.pop()
        else:
            busy = [False] * 16  # they finish some time
            if configured == 1 and not headroom and not unavailable:
                return  # a single worker and no memory for another: it waits for memory
    assert state == {}
