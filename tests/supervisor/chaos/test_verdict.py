"""Each invariant against observations that keep and that break it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from trailboss.chaos.plan import Injection, Kind, Stage
from trailboss.chaos.verdict import (
    MEMORY_GAIN_MAX,
    Done,
    Outcome,
    Reply,
    Seen,
    Verdict,
    judge,
    percentile,
)

KILL = Injection(Stage.STORM, Kind.KILL, "http")
LIMIT = Injection(Stage.MEMORY, Kind.LIMIT, "http")
GROW = Injection(Stage.MEMORY, Kind.GROW, "http")
OOM = Injection(Stage.MEMORY, Kind.OOM, "http")
TOTALS = {"pushed": 10, "done": 7, "dead": 1, "waiting": 1, "delayed": 1, "running": 0, "destroyed": 0}


def well() -> Seen:
    """A run in which everything went as it should."""
    return Seen(
        replies=[
            Reply(client, at, 0.01, Outcome.ANSWERED)
            for client in ("http", "push", "rpc")
            for at in range(10)
        ],
        done=[Done(KILL, 3.0, 0.2, victims=1)],
        down=[(0.0, 0.5), (9.5, 10.0)],
        exits=[0],
        starts=[0.4],
        memory=[(50 << 20, 51 << 20)],
        books=[(10, dict(TOTALS), True)],
        seconds=10.0,
    )


def broken(seen: Seen) -> list[str]:
    """Names of the invariants that do not hold."""
    return [finding.name for finding in judge(seen, has_http=True, has_jobs=True).broken]


def test_a_run_without_fault_passes() -> None:
    """Every invariant holds, and says what was seen."""
    verdict = judge(well(), has_http=True, has_jobs=True)

    assert verdict.holds
    assert all(finding.seen and finding.text for finding in verdict.findings)


def request(at: float, outcome: Outcome, text: str = "") -> Reply:
    """One exchange of a browser."""
    return Reply("http", at, 0.01, outcome, text)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("server lives", lambda seen: seen.died.append("it ended by itself with 1")),
        ("server lives", lambda seen: seen.failed_starts.append("it does not start")),
        ("exit code", lambda seen: seen.exits.append(1)),
        ("requests", lambda seen: seen.replies.extend([request(3.1, Outcome.CUT)] * 2)),
        # One failure for one victim, but seconds after everything was whole again.
        ("requests", lambda seen: seen.replies.append(request(5, Outcome.CUT))),
        ("requests", lambda seen: seen.replies.extend([request(5, Outcome.WORKER)] * 2)),
        ("requests", lambda seen: seen.replies.extend([request(5, Outcome.REFUSED, "503 no workers")] * 2)),
        ("requests", lambda seen: seen.replies.extend([request(9.7, Outcome.SILENT)] * 2)),
        ("requests", lambda seen: seen.replies.extend([request(9.7, Outcome.WRONG)] * 2)),
        (
            "gate",
            lambda seen: seen.replies.append(Reply("rpc", 5, 0.1, Outcome.REFUSED, "'NoneType' object")),
        ),
        ("gate", lambda seen: seen.replies.append(Reply("rpc", 5, 0.1, Outcome.CUT))),
        ("gate", lambda seen: seen.replies.append(Reply("rpc", 0.1, 10.0, Outcome.SILENT))),
        ("jobs", lambda seen: seen.restless.append("jobs were still under way")),
        ("jobs", lambda seen: seen.books.append((11, dict(TOTALS), True))),
        ("jobs", lambda seen: seen.replies.append(Reply("push", 5, 0.1, Outcome.CUT))),
        ("books", lambda seen: seen.books.append((10, {**TOTALS, "done": 8}, True))),
        ("books", lambda seen: seen.books.append((10, {**TOTALS, "running": -1, "done": 8}, True))),
        ("books", lambda seen: seen.books.append((10, dict(TOTALS), False))),
        ("pools whole", lambda seen: seen.done.append(Done(KILL, 6.0, note="not whole within 10 s"))),
        ("no process left", lambda seen: seen.left.append("123: sleep 120")),
        ("descriptors", lambda seen: seen.descriptors.update(["/dev/zero"])),
        ("memory", lambda seen: seen.memory.append((0, MEMORY_GAIN_MAX + 1))),
        ("log", lambda seen: seen.tracebacks.append("rpc: failed")),
        ("memory limit", lambda seen: seen.done.append(Done(LIMIT, 6.0, 1.0))),
        ("memory limit", lambda seen: seen.done.append(Done(GROW, 6.0, 1.0))),
        # One that was replaced for something else shows nothing, and a stage of such alone does not pass.
        ("memory limit", lambda seen: seen.done.append(Done(GROW, 6.0, 1.0, hit=False))),
        ("oom named", lambda seen: seen.done.append(Done(OOM, 6.0, 1.0, victims=1))),
    ],
)
def test_what_breaks_an_invariant_breaks_that_one(name: str, spoil: Callable[[Seen], object]) -> None:
    """One thing that must not be fails the run and names its invariant, and no other."""
    seen = well()
    spoil(seen)

    assert [name] == broken(seen)


@pytest.mark.parametrize(
    "excuse",
    [
        lambda seen: seen.replies.append(request(3.1, Outcome.CUT)),  # as many as workers were hit
        lambda seen: seen.replies.extend(
            [request(3.1, Outcome.REFUSED, "503 no workers")] * 50
        ),  # while it heals
        lambda seen: seen.replies.extend(
            [request(9.7, Outcome.UNREACHABLE)] * 50
        ),  # the server was told to stop
        lambda seen: seen.replies.extend([Reply("rpc", 0.1, 0.1, Outcome.UNREACHABLE)] * 50),
        lambda seen: seen.replies.append(Reply("rpc", 0.1, 0.3, Outcome.REFUSED, "service not ready: jobs")),
        lambda seen: seen.replies.append(Reply("push", 9.6, 0.1, Outcome.CUT)),
        lambda seen: seen.memory.append((80 << 20, 60 << 20)),
        lambda seen: (seen.done.append(Done(GROW, 6.0, 1.0)), setattr(seen, "recycled", 1)),
        lambda seen: (seen.done.append(Done(OOM, 6.0, 1.0)), seen.causes.update(["oom"])),
    ],
)
def test_what_has_a_reason_is_no_fault(excuse: Callable[[Seen], object]) -> None:
    """What a fault of the run explains, and what happens while there is no server, breaks nothing."""
    seen = well()
    excuse(seen)

    assert broken(seen) == []


def test_a_run_that_did_nothing_does_not_pass() -> None:
    """No start, no answer, no injection: nothing was shown."""
    assert {"server lives", "requests", "gate", "pools whole"} <= set(broken(Seen()))


def test_invariants_of_what_is_not_there_are_left_out() -> None:
    """A server without HTTP is not failed for requests, nor one without jobs for books."""
    names = [finding.name for finding in judge(well(), has_http=False, has_jobs=False).findings]

    assert not {"requests", "jobs", "books"} & set(names)


def test_what_an_interrupted_run_has_not_looked_at() -> None:
    """What is seen only when the faults are over counts neither way; what broke before is broken."""
    seen = Seen(
        replies=well().replies, done=[Done(KILL, 3.0, 0.2), Done(KILL, 4.0, over=False)], starts=[0.4]
    )
    verdict = judge(seen, has_http=True, has_jobs=True, interrupted=True)

    assert verdict.holds
    assert not verdict.passed
    assert {"server lives", "requests", "gate", "pools whole"} == {
        finding.name for finding in verdict.findings if finding.judged
    }
    seen.tracebacks.append("rpc: failed")

    assert [
        finding.name for finding in judge(seen, has_http=True, has_jobs=True, interrupted=True).broken
    ] == ["log"]


def test_a_call_beyond_the_start_may_end_a_worker_later() -> None:
    """A worker killed at a system call that it makes only at work may have a request then."""
    seen = well()
    seen.done = [Done(Injection(Stage.MID_INIT, Kind.KILL_CALL, "http"), 3.0, 0.2, victims=1)]
    seen.replies.append(request(8, Outcome.WORKER))

    assert broken(seen) == []


def test_falling_and_rising() -> None:
    """A server that falls while it is down has fallen once."""
    seen = Seen()
    for step, at in (
        (seen.fall, 1.0),
        (seen.fall, 2.0),
        (seen.rise, 3.0),
        (seen.rise, 4.0),
        (seen.fall, 5.0),
    ):
        step(at)

    assert seen.down == [(1.0, 3.0)]
    assert seen.fallen == 5.0


def verdict_of(*times: float | None) -> Verdict:
    """A verdict on kills that took so long to recover."""
    return judge(Seen(done=[Done(KILL, 1.0, took) for took in times]), has_http=False, has_jobs=False)


def test_recovery_figures() -> None:
    """Percentiles are of what recovered, and what never did is counted beside them."""
    (row,) = verdict_of(*(number / 100 for number in range(1, 101)), None).recoveries

    assert (row.kind, row.count, row.failed, row.p50, row.p99, row.longest) == (
        Kind.KILL,
        101,
        1,
        0.5,
        0.99,
        1.0,
    )


def test_no_figures_without_recovery() -> None:
    """Where nothing recovered there is no time to name."""
    (row,) = verdict_of(None).recoveries

    assert (row.p50, row.p99, row.longest) == (None, None, None)


def test_the_memory_limit_says_how_it_was_reached() -> None:
    """Grown workers and lowered limits are told apart, and a worker that did not grow is no time to recover."""
    seen = well()
    seen.done = [Done(GROW, 1.0, 2.0), Done(GROW, 3.0, 4.0, hit=False), Done(LIMIT, 5.0, 1.0)]
    seen.recycled = 2
    verdict = judge(seen, has_http=True, has_jobs=True)
    texts = {finding.name: finding.seen for finding in verdict.findings}

    assert (
        (texts["memory limit"])
        == "2 replaced: 1 grown above it; limit lowered for http, where workers cannot be made to grow"
    )
    assert [(row.kind, row.count) for row in verdict.recoveries] == [(Kind.GROW, 1), (Kind.LIMIT, 1)]


def test_what_clients_saw() -> None:
    """Outcomes are counted, and those without a server apart."""
    seen = well()
    seen.replies += [request(9.7, Outcome.UNREACHABLE), request(5, Outcome.CUT)]
    served = {row.client: row for row in judge(seen, has_http=True, has_jobs=True).served}

    assert Counter({Outcome.ANSWERED: 10, Outcome.UNREACHABLE: 1, Outcome.CUT: 1}) == served["http"].outcomes
    assert served["http"].while_down == 1


def test_percentile_is_a_value_that_was_seen() -> None:
    """No interpolation: the answer is one of the values."""
    assert [percentile([4, 1, 3, 2], fraction) for fraction in (0.01, 0.5, 1.0)] == [1, 2, 4]
