"""What becomes of a job after a run: one value, decided from the outcome of the exec alone.

The worker's answer is JSON, ``{"type": T, "data": D}`` (wire protocol 3.2). RoadRunner acknowledges a job whose answer
is empty, unknown or does not parse; Trailboss counts such an answer as a failed run, because a worker that answers
nonsense has hardly done the work. Failed runs are repeated with a growing delay until the attempts are used up; so is a
job that the worker nacks with `requeue`. A run that it ends with "requeue" (or, as the PHP SDK's `fail` does, with an
error and `requeue`) is no failure and has no limit: applications keep their own counters in the headers they send along.

Pure: no clock, no input or output, and nothing of trio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from trailboss.plugins.jobs.contract import encode_headers
from trailboss.workers.outcome import (
    Answer,
    ExecFailed,
    ExecTimeout,
    Outcome,
    Quarantined,
    SoftError,
    WorkerDied,
)
from trailboss_worker.protocol.errors import ProtocolError
from trailboss_worker.protocol.jobs_message import decode_job_answer

__all__ = [
    "Done",
    "Failed",
    "GivenUp",
    "NotTried",
    "Requeued",
    "RetryPolicy",
    "Verdict",
    "judge",
    "merge_headers",
]

_EXCERPT_BYTES_MAX: Final = 120
_MESSAGE_LENGTH_MAX: Final = 4096
_DELAY_SECONDS_MAX: Final = 10 * 365 * 86400
_ANSWER_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Done:
    """Acknowledged."""


@dataclass(frozen=True, slots=True)
class Requeued:
    """The worker asks for another run; attempts start again."""

    delay_seconds: float
    headers: dict[str, list[str]]
    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The worker says that the job must not run again: a dead letter."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The run failed; the attempt counts. The next run comes after the back-off, or later if the worker asks for it."""

    reason: str
    cause: str = ""
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NotTried:
    """No worker has seen the job; the attempt does not count."""

    reason: str
    refused: bool = True  #: the pool as a whole takes nothing now


Verdict = Done | Requeued | GivenUp | Failed | NotTried


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failed runs are repeated (`jobs.max_attempts`, `retry_backoff`, `retry_backoff_max`)."""

    max_attempts: int = 5
    backoff_seconds: float = 1.0
    backoff_seconds_max: float = 60.0

    def delay_after(self, attempts: int) -> float | None:
        """Return the delay before the next run when `attempts` runs have failed, or None: no further run."""
        if attempts >= self.max_attempts:
            return None
        # The exponent is bounded so that a policy of thousands of attempts does not overflow a float.
        return min(self.backoff_seconds * 2.0 ** min(attempts - 1, 60), self.backoff_seconds_max)


def judge(outcome: Outcome) -> Verdict:
    """Say what an exec's outcome means for its job. Never raises."""
    if isinstance(outcome, Answer):
        return _judge_answer(outcome.body)
    if isinstance(outcome, Quarantined):
        return GivenUp(f"quarantined: {_text_of(outcome)}")
    if not outcome.sent:
        # A worker that was ready and died leaves others; one that could not even start speaks for the whole pool.
        lost_one = isinstance(outcome, WorkerDied) and outcome.cause != "boot"
        return NotTried(_text_of(outcome), refused=not lost_one)
    if isinstance(outcome, WorkerDied):
        return Failed(f"worker died: {_text_of(outcome)}", outcome.cause or "worker died")
    if isinstance(outcome, ExecTimeout):
        return Failed(f"exec_ttl passed: {_text_of(outcome)}", "exec timeout")
    if isinstance(outcome, SoftError):
        return Failed(f"error of the worker: {_text_of(outcome)}", "worker error")
    return Failed(_text_of(outcome))


def merge_headers(old: str, new: dict[str, list[str]]) -> str:
    """Return the stored form of `old` (stored form) with `new` laid over it."""
    if not new:
        return old
    merged: dict[str, list[str]] = json.loads(old)
    merged.update(new)
    return encode_headers(merged)


def _judge_answer(body: bytes) -> Verdict:
    if not body:
        return _malformed("an empty answer", body)
    if len(body) > _ANSWER_BYTES_MAX:
        return _malformed(f"an answer of {len(body)} bytes", body)
    try:
        answer = decode_job_answer(body)
    except ProtocolError as error:
        return _malformed(str(error), body)
    if answer.kind in ("ack", "no_error"):
        return Done()
    message = answer.message[:_MESSAGE_LENGTH_MAX]
    if answer.requeue:
        delay_seconds = float(min(answer.delay_seconds, _DELAY_SECONDS_MAX))
        if answer.kind == "nack":
            # What an SDK answers for a handler that raised: without a count it would run, and raise, for ever.
            return Failed(f"nacked: {message}", "nacked", delay_seconds)
        return Requeued(delay_seconds, answer.headers, f"requeued: {message}")
    return GivenUp(f"{'nacked' if answer.kind == 'nack' else 'failed'}: {message}")


def _malformed(what: str, body: bytes) -> Failed:
    excerpt = ascii(body[:_EXCERPT_BYTES_MAX])[2:-1]
    return Failed(
        f'malformed answer: {what[:_MESSAGE_LENGTH_MAX]}; it begins with "{excerpt}"', "malformed answer"
    )


def _text_of(failure: ExecFailed) -> str:
    return str(failure) or type(failure).__name__
