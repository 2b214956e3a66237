"""The pure restart policy: its bounds over simulated time, and what it forgives."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from trailboss.workers.restart import FirstStart, RestartBudget, RestartPolicy, SlotHistory

POLICY = RestartPolicy()


def crash_loop(workers: int, seconds: float, *, seed: int, lives: float = 0.01) -> list[float]:
    """Times of the spawns of a pool whose workers all die `lives` seconds after each spawn."""
    draw = random.Random(seed)
    budget = RestartBudget(POLICY.boots(workers))
    slots = [SlotHistory() for _ in range(workers)]
    spawns = [0.0] * workers
    deaths = [(lives, number) for number in range(workers)]
    heapq.heapify(deaths)
    while deaths:
        now, number = heapq.heappop(deaths)
        if now > seconds:
            break
        slot = slots[number]
        slot.streak += 1
        wait = max(slot.backoff_seconds(POLICY, draw.random()), budget.take(now))
        spawns.append(now + wait)
        heapq.heappush(deaths, (now + wait + lives, number))
    return sorted(spawns)


@pytest.mark.parametrize("seed", range(20))
def test_crash_loop_of_four(seed: int) -> None:
    """A pool of 4 in a crash loop: at most 10 spawns in its first 10 s, at most 12 in any minute later."""
    spawns = crash_loop(4, 900, seed=seed)
    assert sum(at <= 10 for at in spawns) <= 10
    for begin in range(10, 840):
        assert sum(begin < at <= begin + 60 for at in spawns) <= 12
    # It keeps probing: never silent for longer than it may take to heal.
    gaps = [later - earlier for earlier, later in itertools.pairwise(spawns[4:])]
    assert max(gaps) <= 15


@pytest.mark.parametrize("workers", [1, 2, 8, 50, 200])
def test_crash_loop_of_other_sizes(workers: int) -> None:
    """The pace grows with the pool, but no faster: twice its size at once, then 2.5 a minute and worker."""
    spawns = crash_loop(workers, 300, seed=1)
    assert sum(at <= 10 for at in spawns) <= 2 * workers + 5 + workers
    per_minute = max(12, 3 * workers)
    for begin in range(10, 240, 5):
        assert sum(begin < at <= begin + 60 for at in spawns) <= per_minute


def test_first_death_is_replaced_at_once() -> None:
    """One death of an unproved worker costs no wait, in any slot."""
    budget = RestartBudget(POLICY.boots(4))
    for _ in range(4):
        slot = SlotHistory(streak=1)
        assert slot.backoff_seconds(POLICY, 0.5) == 0
        assert budget.take(100.0) == 0


def test_back_off_grows_to_its_maximum_with_jitter() -> None:
    """The wait doubles from 0.1 s to 15 s, shortened by up to a fifth."""
    waits = [SlotHistory(streak=streak).backoff_seconds(POLICY, 0.0) for streak in range(2, 14)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15, 15, 15])
    assert SlotHistory(streak=1000).backoff_seconds(POLICY, 1.0) == pytest.approx(12)


def test_budget_refills_and_forgets() -> None:
    """Tokens come back with time, not beyond the burst; a proof fills the bucket."""
    budget = RestartBudget(POLICY.boots(4))
    assert [budget.take(1.0) for _ in range(4)] == [0, 0, 0, 0]
    assert budget.take(1.0) == pytest.approx(6)
    assert budget.take(1.0) == pytest.approx(12)
    budget.forget(1.0)
    assert [budget.take(1.0) for _ in range(4)] == [0, 0, 0, 0]
    assert [budget.take(10_000.0) for _ in range(4)] == [0, 0, 0, 0]
    assert budget.take(10_000.0) > 0


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_debt_of_the_budget_has_a_bound(workers: int) -> None:
    """However many have died unproved, the last slot waits less than the 30 s in which a healed pool is to be whole."""
    budget = RestartBudget(POLICY.boots(workers))
    waits = [budget.take(100.0) for _ in range(1000)]
    assert waits == sorted(waits)
    assert max(waits) == pytest.approx(POLICY.wait_seconds_max)
    # Paid off at the pace of the refill, and no later.
    assert budget.take(100.0 + POLICY.wait_seconds_max + 60.0 / 10.0) == 0.0


def test_what_proves_a_worker() -> None:
    """One finished exec, or staying ready for long enough."""
    assert POLICY.proved(1, 0.0)
    assert POLICY.proved(0, POLICY.proof_seconds)
    assert not POLICY.proved(0, POLICY.proof_seconds - 0.1)


def test_first_start_verdicts() -> None:
    """Permanent causes fail at once; otherwise every slot is tried twice, or a quorum proves out of reach."""
    start = FirstStart(2)
    start.failed(permanent=False)
    start.failed(permanent=False)
    start.failed(permanent=False)
    assert not start.verdict(0)
    start.failed(permanent=False)
    assert start.verdict(0)
    assert not start.verdict(1)
    start.failed(permanent=False)
    start.failed(permanent=False)
    assert start.verdict(1)
    other = FirstStart(4)
    other.failed(permanent=True)
    assert other.verdict(3)


def test_first_start_in_words() -> None:
    """One boot failed, or several did."""
    start = FirstStart(2)
    start.failed(permanent=True)
    assert start.describe("exit code 1") == "1 boot failed: exit code 1"
    start.failed(permanent=False)
    assert start.describe("exit code 2") == "2 boots failed; the last one: exit code 2"


@pytest.mark.parametrize("workers", [1, 2, 4, 50])
def test_deaths_of_execs_have_a_pace_of_their_own(workers: int) -> None:
    """Workers that die of what they were given are replaced 20 times at once, and at least once a second after that."""
    budget = RestartBudget(POLICY.execs(workers))
    assert [budget.take(1.0) for _ in range(20)] == [0.0] * 20
    for _ in range(int(max(20, 5 * workers)) - 20):
        budget.take(1.0)
    assert 0.0 < budget.take(1.0) <= 1.0
    assert budget.take(1.0 + 3.0) == 0.0
    budget.forget(5.0)
    assert budget.take(5.0) == 0.0
