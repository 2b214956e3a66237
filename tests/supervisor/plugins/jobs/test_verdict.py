"""What the outcome of a run means for its job: one row per answer and failure."""

from __future__ import annotations

import json

import pytest

from trailboss.plugins.jobs.verdict import (
    Done,
    Failed,
    GivenUp,
    NotTried,
    Requeued,
    RetryPolicy,
    judge,
    merge_headers,
)
from trailboss.workers.outcome import (
    Answer,
    ExecTimeout,
    Outcome,
    PoolClosed,
    PoolDegraded,
    QueueFull,
    QueueTimeout,
    SoftError,
    WorkerDied,
)
from trailboss_worker.protocol.jobs_message import ACK_BODIES


def answer(body: str | bytes) -> Answer:
    return Answer(0, b"", body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # php-goridge 4.2, recorded
        ('{"type":0,"data":[]}', Done()),
        ('{"type":2,"data":[]}', Done()),
        (
            '{"type":1,"data":{"message":"oops","requeue":true,"delay_seconds":10,"headers":{"attempts":["1"]}}}',
            Requeued(10.0, {"attempts": ["1"]}, "requeued: oops"),
        ),
        ('{"type":3,"data":{"message":"no","requeue":false,"delay_seconds":0}}', GivenUp("nacked: no")),
        (
            '{"type":3,"data":{"message":"no","requeue":true,"delay_seconds":7}}',
            Failed("nacked: no", "nacked", 7.0),
        ),
        (
            '{"type":4,"data":{"message":"later","delay_seconds":5,"headers":{"attempts":["2"]}}}',
            Requeued(5.0, {"attempts": ["2"]}, "requeued: later"),
        ),
        # variations
        ('{"type":0}', Done()),
        ('{"type": 2, "data": {}, "future": 1}', Done()),
        ('{"data":"x","type":2}', Done()),
        ('{"type":1,"data":{"message":"oops","requeue":false}}', GivenUp("failed: oops")),
        ('{"type":1,"data":{}}', GivenUp("failed: ")),
        (
            '{"type":1,"data":{"message":"m","requeue":true,"delay_seconds":2}}',
            Requeued(2.0, {}, "requeued: m"),
        ),
        ('{"type":4,"data":{"headers":[]}}', Requeued(0.0, {}, "requeued: ")),
        ('{"type":4,"data":{"delay_seconds":7,"headers":null}}', Requeued(7.0, {}, "requeued: ")),
    ],
)
def test_answers(body: str, expected: object) -> None:
    """An answer that says what it wants gets it."""
    assert expected == judge(answer(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"\xff\xfe",
        b'{"type":2,"data":[]',
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"type":5}',
        b'{"type":-1}',
        b'{"type":"2"}',
        b'{"type":true}',
        b'{"type":2.0}',
        b'{"type":[]}',
        b'{"type":1}',
        b'{"type":3,"data":[]}',
        b'{"type":4,"data":"later"}',
        b'{"type":3,"data":{"message":3}}',
        b'{"type":3,"data":{"message":"\\ud800"}}',
        b'{"type":3,"data":{"requeue":"true"}}',
        b'{"type":4,"data":{"delay_seconds":"5"}}',
        b'{"type":4,"data":{"delay_seconds":true}}',
        b'{"type":4,"data":{"delay_seconds":-1}}',
        b'{"type":4,"data":{"delay_seconds":NaN}}',
        b'{"type":4,"data":{"delay_seconds":' + b"9" * 400 + b"}}",
        b'{"type":4,"data":{"headers":{"a":"b"}}}',
        b'{"type":4,"data":{"headers":[{"a":["b"]}]}}',
        b'{"type":2,"data":"' + b"x" * 2_000_000 + b'"}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_malformed_answers_are_failed_runs(body: bytes) -> None:
    """An answer that says nothing intelligible never acks; it is a failed run, quoted in at most a line."""
    verdict = judge(answer(body))
    assert isinstance(verdict, Failed)
    assert verdict.cause == "malformed answer"
    assert len(verdict.reason) < 700
    assert verdict.reason.isprintable()


def test_endless_delays_are_bounded() -> None:
    """A delay beyond all years becomes ten years."""
    verdict = judge(answer(f'{{"type":4,"data":{{"delay_seconds":{2**63 - 1}}}}}'))
    assert Requeued(10 * 365 * 86400.0, {}, "requeued: ") == verdict


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (SoftError("boom"), Failed("error of the worker: boom", "worker error")),
        (WorkerDied("signal 9", cause="signal", pid=7), Failed("worker died: signal 9", "signal")),
        (WorkerDied("gone"), Failed("worker died: gone", "worker died")),
        (ExecTimeout("5s"), Failed("exec_ttl passed: 5s", "exec timeout")),
        (WorkerDied("at the door", sent=False), NotTried("at the door", refused=False)),
        (WorkerDied("no such script", cause="boot", sent=False), NotTried("no such script", refused=True)),
        (QueueFull("full"), NotTried("full")),
        (QueueTimeout("late"), NotTried("late")),
        (PoolDegraded("none left"), NotTried("none left")),
        (PoolClosed(""), NotTried("PoolClosed")),
    ],
)
def test_failures(outcome: Outcome, expected: object) -> None:
    """What a worker may have seen counts as a failed run; what none has seen does not count."""
    assert expected == judge(outcome)


def test_the_short_way_agrees_with_the_long_one() -> None:
    """Every answer that is recognised byte for byte is one that parsing would acknowledge too."""
    for body in ACK_BODIES:
        assert json.loads(body)["type"] in (0, 2)
        assert Done() == judge(answer(body + b" "))


@pytest.mark.parametrize(
    ("policy", "attempts", "expected"),
    [
        (RetryPolicy(5, 1.0, 60.0), 1, 1.0),
        (RetryPolicy(5, 1.0, 60.0), 2, 2.0),
        (RetryPolicy(5, 1.0, 60.0), 4, 8.0),
        (RetryPolicy(5, 1.0, 60.0), 5, None),
        (RetryPolicy(5, 1.0, 60.0), 6, None),
        (RetryPolicy(1, 1.0, 60.0), 1, None),
        (RetryPolicy(100, 1.0, 60.0), 50, 60.0),
        (RetryPolicy(10**6, 1.0, 60.0), 5000, 60.0),
        (RetryPolicy(5, 0.0, 60.0), 3, 0.0),
    ],
)
def test_retry_policy(policy: RetryPolicy, attempts: int, expected: float | None) -> None:
    """The delay doubles up to its maximum; after the last attempt there is none."""
    assert expected == policy.delay_after(attempts)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{}", {}, {}),
        ('{"a":["1"]}', {}, {"a": ["1"]}),
        ('{"a":["1"],"b":["2"]}', {"a": ["3", "4"], "c": []}, {"a": ["3", "4"], "b": ["2"], "c": []}),
        ("{}", {"X-Trailboss-Attempts": ["3"], "k": ["v"]}, {"k": ["v"]}),
        ("{}", {"x-trailboss-attempts": ["3"]}, {}),
    ],
)
def test_merge_headers(old: str, new: dict[str, list[str]], expected: dict[str, list[str]]) -> None:
    """New headers lie over old ones; the attempts header that a worker echoes is not stored."""
    assert expected == json.loads(merge_headers(old, new))
