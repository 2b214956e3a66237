"""Whole servers on made-up machines: nothing is lost, everything ends, and one seed is one life.

The invariants are in `trailboss.testing.simulation.server`. A seed that fails prints the faults and the command that
replays it; a bug that was found in another way first becomes a plan in `FOUND`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from trailboss.testing.simulation import Fault, FaultPlan, SimulationFailed, plan_of, shrink, simulate

SEEDS_EACH = 10
#: Plans that have found a bug, shrunk.
FOUND = {
    "a stopped machine in the middle of a kill": FaultPlan(
        0,
        (
            Fault(6571.388, "close_in", target=0, seconds=9.622),
            Fault(6571.393, "pause", target=6, seconds=4.412),
        ),
    ),
    "a reset in steps that fails half-way": FaultPlan(
        77,
        (
            Fault(1901.465, "reset", target=6, seconds=0.011),
            Fault(1901.485, "broken", target=5, seconds=7.973),
        ),
    ),
    "jobs that are refused twice within a second": FaultPlan(
        79, (Fault(535.866, "broken", target=4, seconds=0.428),)
    ),
    "a pool that is to be smaller": FaultPlan(101, (Fault(1197.763, "resize", target=6, seconds=4.085),)),
}


@pytest.mark.parametrize("first", range(0, 200, SEEDS_EACH))
def test_seeds(first: int) -> None:
    """Whatever goes wrong, every exec has one outcome, no slot and no job is lost, and all is well a minute later."""
    for seed in range(first, first + SEEDS_EACH):
        simulate(seed).check()


@pytest.mark.parametrize("name", FOUND)
def test_plans_that_have_found_a_bug(name: str) -> None:
    """What has gone wrong once does not again."""
    simulate(FOUND[name].seed, FOUND[name]).check()


def test_same_seed_same_trace() -> None:
    """A seed is one life: twice in this process, and in others that hash strings differently."""
    script = "from trailboss.testing.simulation import simulate; print(*(simulate(s).trace_hash for s in (11, 12, 13)))"
    here = [simulate(seed).trace_hash for seed in (11, 12, 13)]
    assert here == [simulate(seed).trace_hash for seed in (11, 12, 13)]
    assert len(set(here)) == 3
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert here == done.stdout.split()


def test_descriptors_of_a_life_are_closed() -> None:
    """A simulation leaves no descriptor open."""
    simulate(3)
    before = sorted(os.listdir("/proc/self/fd"))
    simulate(3)
    assert before == sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("sabotage", "invariant"),
    [
        ("lose slots", "slots"),
        ("answer twice", "one outcome"),
        ("forget deaths", "one outcome"),
        ("leave waiting", "idle and waiting"),
    ],
)
def test_broken_promises_are_found(sabotage: str, invariant: str) -> None:
    """A server that breaks a promise is found out, by the promise's name, with the few faults that it takes."""
    for seed in range(20):
        result = simulate(seed, sabotage=sabotage)
        if result.invariant == invariant:
            break
    with pytest.raises(SimulationFailed, match=f"invariant '{invariant}' does not hold"):
        result.check()
    shortest = shrink(result, sabotage)
    assert invariant == shortest.invariant
    assert len(shortest.plan.faults) <= 3 < len(plan_of(seed).faults)
    assert str(seed) in str(shortest.plan)


@pytest.mark.long
@pytest.mark.timeout(660)
def test_two_thousand_seeds() -> None:
    """2,000 further seeds, 1,000 hours of their own time, within ten minutes on two cores."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "trailboss.testing.simulation"]
    halves = [
        subprocess.Popen([*command, first, end], stdout=subprocess.PIPE, text=True)
        for first, end in (("1000", "2000"), ("2000", "3000"))
    ]
    said = [half.communicate(timeout=600)[0] for half in halves]
    assert [half.returncode for half in halves] == [0, 0], "\n".join(said)
    hours = sum(float(text.split(" virtual hours")[0].split()[-1]) for text in said)
    assert hours >= 1000
    assert time.monotonic() - begin <= 600
