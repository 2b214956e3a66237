"""Why was this 503: what is kept of refusals, and that a flood of them costs little."""

from __future__ import annotations

from typing import Any, cast

from trailboss.plugins.http.refusals import (
    CLIENT_RECORDS_MAX,
    HOLDERS_MAX,
    KINDS_MAX,
    RECORDS_MAX,
    RECORDS_PER_SECOND,
    Holder,
    Refusals,
)


class FakePool:
    """Counts how often it is looked at."""

    def __init__(self, holders: list[Holder], queued: int = 7) -> None:
        self.queued = queued
        self.looks = 0
        self._holders = holders

    def holders(self) -> list[Holder]:
        self.looks += 1
        return self._holders


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusals(pool: FakePool | None = None) -> tuple[Refusals, Clock]:
    clock = Clock()
    made = Refusals(clock, lambda: 1_700_000_000.0 + clock.now)
    made.pool = pool
    return made, clock


def rows(made: Refusals) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", made.report()["refusals"])


def test_a_record_says_what_held_the_workers() -> None:
    """Reason, request, queue, and each busy worker, the longest at it first."""
    made, _ = refusals(FakePool([(11, "GET /quick", 0.1), (12, "POST /report", 8.25)]))
    made.add(503, "queue full", "GET", "/page", "7 executions wait\nfor the pool http")
    assert rows(made) == [
        {
            "at": "2023-11-14T22:13:20.000+00:00",
            "status": 503,
            "reason": "queue full",
            "detail": "7 executions wait for the pool http",
            "method": "GET",
            "path": "/page",
            "queued": 7,
            "held_by": [
                {"pid": 12, "doing": "POST /report", "since_seconds": 8.25},
                {"pid": 11, "doing": "GET /quick", "since_seconds": 0.1},
            ],
            "held_by_left_out": 0,
            "more": 0,
        }
    ]


def test_a_flood_is_counted_not_recorded() -> None:
    """A second has its few looks at the pool, whatever comes; the rest is on the last record of its kind."""
    pool = FakePool([(1, "GET /", 1.0)])
    made, clock = refusals(pool)
    for _ in range(10_000):
        made.add(503, "queue full", "GET", "/")
    made.add(502, "worker died", "GET", "/")
    assert pool.looks == RECORDS_PER_SECOND
    assert len(rows(made)) == RECORDS_PER_SECOND
    assert sum(1 + row["more"] for row in rows(made)) == made.total == 10_001
    clock.now = 1.0
    made.add(502, "worker died", "GET", "/")
    assert (rows(made)[-1]["status"], pool.looks) == (502, RECORDS_PER_SECOND + 1)


def test_only_so_many_are_kept() -> None:
    """The oldest go; memory is bounded in records, holders, texts and kinds."""
    made, clock = refusals(FakePool([(number, "GET /", float(number)) for number in range(100)]))
    for number in range(3 * RECORDS_MAX):
        clock.now += 1
        made.add(503, f"reason {number}", "GET", "/" + "p" * 5000, "x" * 5000)
    found = rows(made)
    assert len(found) == RECORDS_MAX
    assert found[-1]["reason"] == f"reason {3 * RECORDS_MAX - 1}"
    assert len(found[0]["path"]) == 200
    assert len(found[0]["detail"]) == 300
    assert (len(found[0]["held_by"]), found[0]["held_by_left_out"]) == (HOLDERS_MAX, 100 - HOLDERS_MAX)
    assert found[0]["held_by"][0]["since_seconds"] == 99.0
    assert len(made.counts) == KINDS_MAX + 1
    assert made.total == 3 * RECORDS_MAX


def test_wrong_requests_do_not_push_out_refused_ones() -> None:
    """What clients do wrong has a place of its own, and is not worth a look at the pool."""
    pool = FakePool([])
    made, clock = refusals(pool)
    made.add(503, "queue full", "GET", "/wanted")
    for _ in range(1000):
        clock.now += 1
        made.add(400, "bad request")
    found = rows(made)
    assert found[0]["path"] == "/wanted"
    assert len(found) == 1 + CLIENT_RECORDS_MAX
    assert pool.looks == 1


def test_secrets_in_a_detail_are_hidden() -> None:
    """A worker's error may hold a connection string."""
    made, _ = refusals()
    made.add(500, "worker error", "GET", "/", "cannot reach mysql://root:hunter2@db/")
    assert rows(made)[0]["detail"] == "cannot reach mysql://***@db/"
