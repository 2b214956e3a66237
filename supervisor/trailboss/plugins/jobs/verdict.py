"""What becomes of a job after a run: one value, decided from the outcome of the exec alone.

The worker's answer is JSON, ``{"type": T, "data": D}`` (wire protocol 3.2). RoadRunner acknowledges a job whose answer
is empty, unknown or does not parse; Trailboss counts such an answer as a failed run, because a worker that answers
nonsense has hardly done the work. Failed runs are repeated with a growing delay until the attempts are used up. A run
that the worker itself ends with "requeue" is no failure and has no limit.

Pure: no clock, no input or output, and nothing of trio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from trailboss.plugins.jobs.contract import encode_headers
from trailboss.workers.outcome import Answer, ExecFailed, ExecTimeout, Outcome, SoftError, WorkerDied

__all__ = [
    "ACK_ANSWERS",
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

ACK_ANSWERS: Final = frozenset(
    text.encode()
    for kind in (0, 2)
    for text in (
        f'{{"type":{kind},"data":[]}}',
        f'{{"type":{kind},"data":{{}}}}',
        f'{{"type":{kind},"data":null}}',
        f'{{"type":{kind}}}',
        f'{{"type": {kind}, "data": []}}',
        f'{{"type": {kind}, "data": {{}}}}',
    )
)
"""The answers that nearly every job ends with, byte for byte; looked up before anything is parsed."""

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
    """The run failed; the attempt counts."""

    reason: str
    cause: str = ""


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
        return Done() if outcome.body in ACK_ANSWERS else _judge_answer(outcome.body)
    if not outcome.sent:
        return NotTried(_text_of(outcome), refused=not isinstance(outcome, WorkerDied))
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
        return _malformed("is empty", body)
    if len(body) > _ANSWER_BYTES_MAX:
        return _malformed(f"has {len(body)} bytes", body)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return _malformed("is not JSON", body)
    if not isinstance(answer, dict):
        return _malformed("is not a JSON object", body)
    kind = answer.get("type")
    if isinstance(kind, bool) or kind not in (0, 1, 2, 3, 4):
        return _malformed("has no known type", body)
    if kind in (0, 2):
        return Done()
    data = answer.get("data")
    if not isinstance(data, dict):
        return _malformed("has no data", body)
    return _judge_data(kind, data, body)


def _judge_data(kind: int, data: dict[str, object], body: bytes) -> Verdict:
    message = data.get("message", "")
    requeue = data.get("requeue", False)
    delay = data.get("delay_seconds", 0)
    headers = _read_headers(data.get("headers"))
    if not isinstance(message, str):
        return _malformed("has a message that is no text", body)
    # JSON can spell half a surrogate pair, which no log and no answer could encode.
    message = message[:_MESSAGE_LENGTH_MAX].encode("utf-8", "replace").decode()
    if not isinstance(requeue, bool):
        return _malformed("has a requeue that is neither true nor false", body)
    if isinstance(delay, bool) or not isinstance(delay, int | float) or delay != delay:
        return _malformed("has a delay_seconds that is no number", body)
    if headers is None:
        return _malformed("has headers that are not lists of texts by name", body)
    if kind == 4 or requeue:
        # Bounded before it becomes a float: an integer of 400 digits is valid JSON.
        return Requeued(float(min(max(delay, 0), _DELAY_SECONDS_MAX)), headers, f"requeued: {message}")
    return GivenUp(f"{'nacked' if kind == 3 else 'failed'}: {message}")


def _read_headers(value: object) -> dict[str, list[str]] | None:
    """Return headers, {} for none (PHP writes an empty map as a list), or None where they are malformed."""
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        return None
    headers: dict[str, list[str]] = {}
    for name, values in value.items():
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            return None
        headers[name] = values
    return headers


def _malformed(what: str, body: bytes) -> Failed:
    excerpt = ascii(body[:_EXCERPT_BYTES_MAX])[2:-1]
    return Failed(f'malformed answer: it {what}: "{excerpt}"', "malformed answer")


def _text_of(failure: ExecFailed) -> str:
    return str(failure) or type(failure).__name__
