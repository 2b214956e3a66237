"""Jobs one at a time: `for task in Consumer(): ...; task.ack()`.

A task is answered exactly once, by one of ack, nack, requeue and fail; going on to the next without an answer
and answering twice are errors of the program and raise TaskError. A program that ends with a task unanswered
(by any exception) leaves it to the server, which redelivers it.

Trailboss counts how often a job was handed out, in the context and in a header, so that handlers can give up
in time; RoadRunner does not, and the count is 1 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.protocol.jobs_message import (
    JobContext,
    decode_job_context,
    encode_job_answer_ack,
    encode_job_answer_error,
    encode_job_answer_nack,
    encode_job_answer_requeue,
)
from trailboss_worker.protocol.limits import parse_digits
from trailboss_worker.sdk.worker import Payload, Worker

ATTEMPTS_KEY = "attempts"
ATTEMPTS_HEADER = "x-trailboss-attempts"
ATTEMPTS_MAX = 2**31 - 1

Headers = Mapping[str, Sequence[str]]


class TaskError(Exception):
    """A task was answered twice, or not at all."""


class Task:
    """One job, to be answered exactly once. `payload` is what was pushed; `attempts` counts this one too."""

    __slots__ = (
        "_answered_by",
        "_worker",
        "attempts",
        "driver",
        "extra",
        "headers",
        "id",
        "name",
        "payload",
        "pipeline",
        "queue",
    )

    def __init__(self, worker: Worker, context: JobContext, payload: bytes) -> None:
        self._worker = worker
        self._answered_by = ""
        self.id = context.id
        self.name = context.job
        self.payload = payload
        self.headers = context.headers
        self.pipeline = context.pipeline
        self.driver = context.driver
        self.queue = context.queue
        self.attempts = attempts_of(context)
        self.extra = context.extra

    def __repr__(self) -> str:
        remark = self._answered_by or "not answered"
        return f"<Task {self.name} {self.id} of {self.pipeline}, attempt {self.attempts}, {remark}>"

    @property
    def answered(self) -> bool:
        """Whether one of the verbs below has been called."""
        return bool(self._answered_by)

    def ack(self) -> None:
        """The job is done. Like every verb here, raises TaskError when the task is answered already."""
        self._answer("ack", encode_job_answer_ack())

    def nack(self, message: str, requeue: bool = False, delay: int = 0) -> None:
        """The job failed; with requeue it is tried again after delay seconds, else its queue decides."""
        self._answer("nack", encode_job_answer_nack(_utf8_able(message), requeue, delay))

    def requeue(self, message: str = "", delay: int = 0, headers: Headers | None = None) -> None:
        """The job has to be run again, after delay seconds, with these headers merged over its own."""
        self._answer("requeue", encode_job_answer_requeue(_utf8_able(message), delay, headers))

    def fail(self, error: object, requeue: bool = False) -> None:
        """The job failed, as servers before 2024 understand it; without requeue it counts as done."""
        self._answer("fail", encode_job_answer_error(_utf8_able(str(error)), requeue))

    def _answer(self, verb: str, body: bytes) -> None:
        if self._answered_by:
            raise TaskError(f"{verb} after {self._answered_by}: {self!r}")
        self._answered_by = verb
        self._worker.respond(body)


class Consumer:
    """The tasks this worker is given, one after the other; ends when the worker has to.

    Makes its own Worker unless given one, and raises what that raises.
    """

    def __init__(self, worker: Worker | None = None) -> None:
        self.worker = Worker() if worker is None else worker
        self._current: Task | None = None

    def __repr__(self) -> str:
        return f"<Consumer at {self._current!r} of {self.worker!r}>"

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        task = self.wait_task()
        if task is None:
            raise StopIteration
        return task

    def wait_task(self) -> Task | None:
        """The next task, however long it takes; None when the worker should end.

        Raises TaskError when the previous task has not been answered, RemoteProtocolError for what is no job.
        """
        self._require_answer()
        return self._take(self.worker.wait_payload())

    def receive_nowait(self) -> Task | None:
        """The next task if it is here; None when more bytes are needed or the worker has ended."""
        self._require_answer()
        return self._take(self.worker.receive_nowait())

    def _require_answer(self) -> None:
        if self._current is not None and not self._current.answered:
            raise TaskError(f"the task was not answered (ack, nack, requeue or fail): {self._current!r}")

    def _take(self, payload: Payload | None) -> Task | None:
        self._current = None
        if payload is not None:
            self._current = Task(self.worker, decode_job_context(payload.context), payload.body)
        return self._current


def attempts_of(context: JobContext) -> int:
    """How often the job was handed out, this time included; 1 where the server does not say."""
    count = context.extra.get(ATTEMPTS_KEY)
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        return count
    values = context.headers.get(ATTEMPTS_HEADER)
    try:
        return max(1, parse_digits(values[0], ATTEMPTS_MAX)) if values else 1
    except MessageError:
        return 1


def _utf8_able(text: str) -> str:
    """The text, with what UTF-8 cannot hold written as an escape: error texts come from anywhere."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
