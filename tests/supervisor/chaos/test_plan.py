"""What a plan does to a server, without doing it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.chaos.plan import MEMORY_SECONDS_MIN, PLANS, SYSTEM_CALLS, Injection, Kind, Stage, make_plan

POOLS = ["http", "jobs"]


@given(st.integers(0, 2**32), st.sampled_from(sorted(PLANS)))
def test_the_same_seed_is_the_same_plan(seed: int, name: str) -> None:
    """Two plans of one seed are equal in every injection, whatever the order in which the pools are named."""
    first = make_plan(seed, name, POOLS, 45, at_most=60)
    second = make_plan(seed, name, POOLS[::-1], 600, at_most=60)

    assert first.injections == second.injections
    assert first.digest == second.digest


def test_another_seed_is_another_plan() -> None:
    """A seed decides what is done."""
    digests = {make_plan(seed, "all", POOLS, 45, at_most=10).digest for seed in range(50)}

    assert len(digests) == 50


def test_a_stage_does_the_same_alone_and_among_others() -> None:
    """What failed in `all` can be repeated without the stages before it."""
    alone = make_plan(5, "storm", POOLS, 45)
    among = make_plan(5, "all", POOLS, 45)

    assert alone.injections[Stage.STORM] == among.injections[Stage.STORM]


@given(st.integers(0, 2**32), st.floats(15, 3600), st.sampled_from(sorted(PLANS)))
def test_the_stages_share_the_time(seed: int, seconds: float, name: str) -> None:
    """No second is lost or given twice, and the memory limit is looked at at least once."""
    plan = make_plan(seed, name, POOLS, seconds, at_most=1)

    assert seconds == pytest.approx(sum(plan.seconds.values()))
    assert min(plan.seconds.values()) > 0
    assert plan.seconds.get(Stage.MEMORY, MEMORY_SECONDS_MIN) >= MEMORY_SECONDS_MIN


@pytest.mark.parametrize("name", sorted(PLANS))
def test_fewer_are_the_first_ones(name: str) -> None:
    """With a limit every part does what it would do without, and then no more."""
    whole, short = make_plan(8, name, POOLS, 45), make_plan(8, name, POOLS, 45, at_most=3)

    assert {stage: rows[:3] for stage, rows in whole.injections.items()} == short.injections


@given(st.integers(0, 2**32))
def test_kill_points_cover_the_whole_start(seed: int) -> None:
    """Of 100 deaths in a start no two neighbours are further apart than 4 % of the boot, from birth to beyond its end."""
    rows = make_plan(seed, "mid-init", ["http"], 45, at_most=117).injections[Stage.MID_INIT]
    points = sorted(row.at for row in rows if row.kind is Kind.KILL_BOOT)

    assert points[0] < 0.04
    assert points[-1] > 1.15
    assert max(after - before for before, after in itertools.pairwise(points)) < 0.04


@given(st.integers(0, 2**32))
def test_a_short_storm_has_every_kind(seed: int) -> None:
    """The first six injections of a storm are six different kinds, in both pools."""
    first = make_plan(seed, "storm", POOLS, 45, at_most=6).injections[Stage.STORM]

    assert len({row.kind for row in first}) == 6
    assert {"http", "jobs"} == {row.pool for row in first}


@given(st.integers(0, 2**32))
def test_a_short_memory_stage_has_both_kinds(seed: int) -> None:
    """Growth and death for want of memory come by turns, and within four injections to both pools; so with one pool."""
    first = make_plan(seed, "memory", POOLS, 45, at_most=4).injections[Stage.MEMORY]
    alone = make_plan(seed, "memory", ["http"], 45, at_most=2).injections[Stage.MEMORY]

    assert {(kind, pool) for kind in (Kind.GROW, Kind.OOM) for pool in POOLS} == {
        (row.kind, row.pool) for row in first
    }
    assert [Kind.GROW, Kind.OOM] == [row.kind for row in first[:2]] == [row.kind for row in alone]


@given(st.integers(0, 2**32))
def test_enough_freezes_among_the_deaths(seed: int) -> None:
    """Three hundred kill points come with fifty stops."""
    kinds = [
        row.kind for row in make_plan(seed, "mid-init", POOLS, 45, at_most=350).injections[Stage.MID_INIT]
    ]

    assert (kinds.count(Kind.KILL_BOOT), kinds.count(Kind.FREEZE_BOOT)) == (300, 50)


def test_system_calls_only_when_they_are_asked_for() -> None:
    """Without strace nothing needs it; with it every call and count lies within what is tried."""
    without = make_plan(1, "mid-init", POOLS, 45).injections[Stage.MID_INIT]
    calls = [
        row
        for row in make_plan(1, "mid-init", POOLS, 45, system_calls=True).injections[Stage.MID_INIT]
        if row.kind is Kind.KILL_CALL
    ]

    assert Kind.KILL_CALL not in {row.kind for row in without}
    assert set(SYSTEM_CALLS) == {row.call for row in calls}
    assert all(1 <= row.count <= SYSTEM_CALLS[row.call] for row in calls)


def test_every_injection_says_what_it_is() -> None:
    """No two kinds are described alike, and each names its pool where it has one."""
    plan = make_plan(3, "all", ["http"], 45, system_calls=True)
    texts = {row.kind: row.describe() for rows in plan.injections.values() for row in rows}

    # What is done in place of another is never planned as such.
    assert set(Kind) - {Kind.LIMIT, Kind.OOM_LIKE} == set(texts)
    texts |= {kind: Injection(Stage.MEMORY, kind, "http").describe() for kind in (Kind.LIMIT, Kind.OOM_LIKE)}
    assert len(Kind) == len(set(texts.values()))
    assert all("http" in text for kind, text in texts.items() if kind not in (Kind.POWER, Kind.POWER_BOOT))


@pytest.mark.parametrize(("name", "pools"), [("nonsense", POOLS), ("all", [])])
def test_what_cannot_be_planned(name: str, pools: list[str]) -> None:
    """An unknown name and a server without workers are errors."""
    with pytest.raises(ValueError, match=r"there is no plan|has no workers"):
        make_plan(1, name, pools, 45)
