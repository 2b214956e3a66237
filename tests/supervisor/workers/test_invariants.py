"""What must hold in a pool: judged over looks, and only where it lasts."""

from __future__ import annotations

import pytest

from trailboss.workers import invariants
from trailboss.workers.invariants import Finding, Findings, PoolLook, WorkerLook, judge

IDLE = WorkerLook(1, idle=True, listed=True)
BUSY = WorkerLook(2, idle=False, listed=False)
HEALTHY = PoolLook("jobs", 0, 1, (), 0.0, 2, 2, (IDLE, BUSY))


def words(look: PoolLook) -> list[str]:
    """What is found in a pool."""
    return [finding.kind.word for finding in judge(look)]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"waiting": 3, "listed": 0, "workers": (BUSY, BUSY)}, []),
        ({"waiting": 1}, ["waiter_and_idle_worker"]),
        ({"waiter_overdue_seconds": 0.2}, []),
        ({"waiter_overdue_seconds": 0.3}, ["waiter_overdue"]),
        ({"places": 1}, ["slot_lost"]),
        ({"places": 3}, []),
        ({"places": 1, "configured": None}, []),
        ({"strangers": (7,)}, ["worker_without_slot"]),
        ({"strangers": (7,), "waiting": 1}, ["worker_without_slot"]),
        ({"workers": (IDLE._replace(listed=False), BUSY)}, ["idle_worker_lost"]),
        ({"workers": (BUSY._replace(overdue_seconds=0.2),)}, []),
        ({"workers": (BUSY._replace(overdue_seconds=0.3),)}, ["exec_overdue"]),
        ({"workers": (BUSY._replace(overdue_seconds=9.0, ended_unnoticed=True),)}, ["exit_unnoticed"]),
    ],
)
def test_judgement(changes: dict[str, object], found: list[str]) -> None:
    """Each invariant by itself."""
    assert words(HEALTHY._replace(**changes)) == found  # type: ignore[arg-type]


def finding(kind: invariants.Kind = invariants.IDLE_WORKER_LOST, subject: int = 5) -> Finding:
    """Some finding."""
    return Finding(kind, "jobs", subject, "text")


def test_only_what_lasts_is_a_violation() -> None:
    """The first look only notes; the same trouble after its time is new, and to be healed, once a second."""
    findings = Findings()
    assert findings.take([finding()], 0.0) == ([], [])
    assert findings.pending
    assert findings.take([finding()], 0.04) == ([], [])
    assert list(findings.broken) == []
    assert findings.take([finding()], 0.06) == ([finding()], [finding()])
    assert findings.broken == ("idle_worker_lost",)
    assert findings.take([finding()], 0.5) == ([], [])
    assert findings.take([finding()], 1.1) == ([], [finding()])
    assert findings.take([], 1.2) == ([], [])
    assert list(findings.broken) == []
    assert not findings.pending


def test_trouble_that_comes_and_goes_is_none() -> None:
    """A look without it begins anew; another worker's trouble is another trouble."""
    findings = Findings()
    for moment in range(10):
        found = [finding()] if moment % 2 else []
        assert findings.take(found, moment * 0.04) == ([], [])
    findings.take([], 0.5)
    findings.take([finding(subject=1)], 1.0)
    assert findings.take([finding(subject=2)], 1.06) == ([], [])


def test_a_pause_is_no_time_that_it_lasted() -> None:
    """After the loop stood still what was noted begins anew; what was told already stays told."""
    findings = Findings()
    findings.take([finding(subject=1)], 0.0)
    findings.take([finding(subject=1)], 0.1)
    findings.take([finding(subject=1), finding(subject=2)], 0.2)
    findings.forget()
    assert findings.take([finding(subject=1), finding(subject=2)], 60.0) == ([], [finding(subject=1)])
    assert findings.broken == ("idle_worker_lost",)
