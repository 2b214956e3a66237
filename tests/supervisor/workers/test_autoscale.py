"""The controller of a pool's size: up at once, down slowly, never swinging."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from trailboss.workers.autoscale import AutoscaleLimits, Controller, Load

LIMITS = AutoscaleLimits(2, 16, 0.1, 0, 30.0)


def test_grows_as_soon_as_something_has_waited() -> None:
    """A quarter of the pool, no more than wait."""
    controller = Controller(LIMITS)
    assert controller.decide(0.0, Load(8, 0, 8, 10, 0.05, 99)) == 8
    assert controller.decide(0.06, Load(8, 0, 8, 10, 0.11, 99)) == 10
    assert controller.decide(0.1, Load(8, 0, 8, 1, 0.2, 99)) == 9


def test_waits_for_those_on_their_way() -> None:
    """New workers are to show first what they change."""
    assert Controller(LIMITS).decide(0.0, Load(8, 2, 6, 10, 1.0, 99)) == 8


def test_stays_within_memory_and_maximum_and_says_so() -> None:
    """What held it back is there for status and log."""
    controller = Controller(LIMITS)
    assert controller.decide(0.0, Load(8, 0, 8, 10, 1.0, 1)) == 9
    assert "memory" in controller.held_back
    assert controller.decide(1.0, Load(16, 0, 16, 10, 1.0, 99)) == 16
    assert "maximum" in controller.held_back


def test_gives_up_one_worker_after_a_quiet_time() -> None:
    """And the next one only after another."""
    controller = Controller(LIMITS)
    sizes = []
    wanted = 6
    for second in range(200):
        wanted = controller.decide(float(second), Load(wanted, 0, 0, 0, 0.0, 99))
        sizes.append(wanted)
    assert sizes[29] == 6
    assert wanted == 2
    falls = [index for index in range(1, 200) if sizes[index] < sizes[index - 1]]
    assert min(after - before for before, after in itertools.pairwise(falls)) >= 30


@pytest.mark.parametrize("seed", range(12))
def test_never_swings_and_serves_every_shape(seed: int) -> None:
    """Steps, ramps, waves and bursts: a growth and a shrinking are at least down_after apart, queues end."""
    chance = random.Random(seed)
    shape = seed % 4
    controller = Controller(LIMITS)
    wanted, ready, boots = 2, 2, []
    queued, waited = 0.0, 0.0
    last_growth = -math.inf
    for tick in range(6000):
        now = tick * 0.1
        demand = [  # workers' worth of work that arrives
            10.0 if 100 < now < 300 else 1.0,
            min(14.0, now / 30),
            7 + 6 * math.sin(now / 40),
            12.0 if chance.random() < 0.02 else 3.0,
        ][shape]
        demand *= chance.uniform(0.9, 1.1)
        boots = [left - 0.1 for left in boots]
        ready += sum(left <= 0 for left in boots)
        boots = [left for left in boots if left > 0]
        queued = max(0.0, queued + (demand - ready) * 0.1 * 10)
        waited = waited + 0.1 if queued >= 1 else 0.0
        busy = ready if queued >= 1 else min(ready, round(demand))
        load = Load(wanted, len(boots), busy, int(queued), waited if queued >= 1 else 0.0, 99)
        size = controller.decide(now, load)
        assert LIMITS.minimum <= size <= LIMITS.maximum
        if size > wanted:
            boots += [0.5] * (size - wanted)
            last_growth = now
        elif size < wanted:
            assert now - last_growth >= LIMITS.down_after_seconds
            assert wanted - size == 1
            assert busy < ready or ready < wanted, "a busy pool does not shrink"
            ready -= 1
        wanted = size
    assert queued < 60


def test_returns_to_the_bounds() -> None:
    """A pool outside of them is brought back: up at once, down one by one."""
    controller = Controller(LIMITS)
    assert controller.decide(0.0, Load(1, 0, 0, 0, 0.0, 99)) == 2
    assert controller.decide(1.0, Load(20, 0, 0, 0, 0.0, 99)) == 19


def test_looks_again_only_while_that_can_change_something() -> None:
    """A pool at its minimum with nothing waiting needs no timer."""
    controller = Controller(LIMITS)
    assert controller.next_look(5.0, Load(2, 0, 0, 0, 0.0, 9)) == math.inf
    assert controller.next_look(5.0, Load(2, 0, 2, 3, 0.04, 9)) == pytest.approx(5.06)
    assert controller.next_look(5.0, Load(4, 0, 0, 0, 0.0, 9)) == 6.0
