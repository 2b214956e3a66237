"""The dispatcher: hands waiting jobs to idle workers and settles each job by the outcome of its run.

Everything here is plain calls inside the reactor. A job leaves its queue only when the pool has an idle worker, so jobs
wait in their own order and under their own limits, never in the pool's queue, and the lack of a worker is no failure.
The pool says through `idle_listener` that a worker has become free; a push, a resume and a due job call `pump`.

One run ends in exactly one verb of the driver: acked, nacked (dead letter), requeued, or given back because no worker
has seen it. What a driver returns to be awaited goes to `await_later`, a task of the plugin.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from trailboss.log import logger
from trailboss.plugins.jobs.contract import Job
from trailboss.plugins.jobs.pipeline import Pipeline, PipelineState
from trailboss.plugins.jobs.priority_queue import Merge
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
from trailboss.telemetry import Span, Telemetry
from trailboss.workers.outcome import Answer, Outcome
from trailboss_worker.protocol.jobs_message import ACK_BODIES

__all__ = ["Busy", "Dispatcher", "JobsPool"]

log = logger("jobs")

_RAW: Final = 0x04
"""Frame flag of a job: the codec is RAW, although the context is JSON (wire protocol 3.2)."""
_RETRY_REFUSED_SECONDS: Final = 1.0
"""A pool that refuses says so by `idle_listener` when it takes again; should that be lost, this finds out."""
_RETRY_ASIDE_SECONDS: Final = 1.0
"""A queue that could not be read is tried again after this time; the others go on meanwhile."""


class Busy(Protocol):
    """What the dispatcher reads of one worker."""

    @property
    def pid(self) -> int: ...

    @property
    def doing(self) -> str: ...


class JobsPool(Protocol):
    """What the dispatcher needs of a worker pool (:class:`trailboss.workers.pool.Pool`)."""

    idle_listener: Callable[[], None] | None

    @property
    def idle_count(self) -> int: ...

    def submit(
        self,
        context: bytes,
        body: bytes,
        flags: int,
        on_outcome: Callable[[Outcome], None],
        label: str = "",
    ) -> object: ...

    def workers(self) -> Sequence[Busy]: ...


class Dispatcher:
    """Feeds one pool from the pipelines that are consumed. `attach` gives it the pool, `open` lets it begin."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float],
        wake_at: Callable[[float], None],
        await_later: Callable[[Awaitable[None]], None],
        debug_runs_max: int = 0,
    ) -> None:
        self._pool: JobsPool | None = None
        self._policy = policy
        self._clock = clock
        self._wake_at = wake_at
        self._await_later = await_later
        # A debug pool has no idle workers: it starts one for each exec. So many may be at it at the same time.
        # One whose workers die before they get a job is tried with one at a time, so that the pace below is that of all.
        self._debug_runs_max = self._debug_runs = debug_runs_max
        self._merge: Merge[Job] = Merge()
        self._open = False
        self._pumping = False
        self._refused = False
        self._retry_at = 0.0
        #: Pipelines whose queue could not be read, and when that is tried again.
        self._aside: dict[Pipeline, float] = {}
        self._drained: trio.Event | None = None
        #: Spans of runs; the plugin puts the server's in here.
        self.telemetry = Telemetry()
        #: Runs that have begun and not ended.
        self.in_flight = 0
        #: Runs that failed, by cause; for people.
        self.failures: dict[str, int] = {}
        #: Jobs that a worker has given up itself.
        self.given_up = 0

    # --- who is consumed ---------------------------------------------------------------------------------------------

    def attach(self, pool: JobsPool) -> None:
        """Name the pool whose workers run the jobs."""
        self._pool = pool

    def open(self) -> None:
        """Begin to hand out jobs."""
        if self._pool is None:
            raise RuntimeError("the jobs dispatcher was opened before it had a pool")
        self._open = True
        self._pool.idle_listener = self._on_idle
        self.pump()

    def close(self) -> None:
        """Hand out nothing more; runs that have begun go on."""
        self._open = False

    def consume(self, pipeline: Pipeline) -> None:
        """Let the jobs of `pipeline` take part."""
        if pipeline.state is PipelineState.PAUSED:
            pipeline.state = PipelineState.CONSUMED
            self._merge.join(pipeline.driver.ready)
            self.pump()

    def pause(self, pipeline: Pipeline) -> None:
        """Leave the jobs of `pipeline` waiting; its runs that have begun go on."""
        if pipeline.state is PipelineState.CONSUMED:
            pipeline.state = PipelineState.PAUSED
            self._aside.pop(pipeline, None)
            self._merge.leave(pipeline.driver.ready)

    def forget(self, pipeline: Pipeline) -> None:
        """Take `pipeline` out for good; its runs that have begun are settled as they end."""
        pipeline.state = PipelineState.DESTROYED
        self._aside.pop(pipeline, None)
        self._merge.leave(pipeline.driver.ready)

    # --- handing out -------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand jobs to idle workers as long as there are both. Cheap where there is nothing to do."""
        pool = self._pool
        if not self._open or self._pumping or self._refused or pool is None:
            return
        self._pumping = True
        merge = self._merge
        try:
            while (pool.idle_count > 0 or self.in_flight < self._debug_runs) and not self._refused:
                queue = merge.best()
                if queue is None:
                    return
                # Every queue here belongs to a Pipeline.
                if not self._start(pool, queue.owner):  # type: ignore[arg-type]
                    return  # its driver will say when there is more
        finally:
            self._pumping = False

    def retry_refused(self, now: float) -> None:
        """Ask a pool again that has refused, in case its sign was lost, and queues that could not be read."""
        if self._aside:
            self._retry_aside(now)
        if self._refused and now >= self._retry_at:
            self._on_idle()
        elif self._refused:
            self._wake_at(self._retry_at)  # a later refusal has moved it behind what was rung for

    def _on_idle(self) -> None:
        self._refused = False
        self.pump()

    def _retry_aside(self, now: float) -> None:
        for pipeline, retry_at in list(self._aside.items()):
            if now < retry_at:
                self._wake_at(retry_at)
                continue
            del self._aside[pipeline]
            if pipeline.driver.ready.head is None:
                pipeline.trouble = ""
            self._merge.join(pipeline.driver.ready)

    def _set_aside(self, pipeline: Pipeline, error: Exception) -> None:
        """The queue could not be read. That is no fault of whoever has just pushed, nor of the worker that is free."""
        log.error(
            "jobs cannot be taken from a queue; they wait, and it is tried again",
            pipeline=pipeline.name,
            retry_seconds=_RETRY_ASIDE_SECONDS,
            text=str(error) or type(error).__name__,
            exc_info=None if pipeline.trouble else error,
        )
        pipeline.trouble = str(error) or type(error).__name__
        self._merge.leave(pipeline.driver.ready)
        self._aside[pipeline] = self._clock() + _RETRY_ASIDE_SECONDS
        self._wake_at(self._aside[pipeline])

    def _start(self, pool: JobsPool, pipeline: Pipeline) -> bool:
        """Hand one job to `pool`; False where the driver had none after all."""
        driver = pipeline.driver
        try:
            job = driver.receive()
        except Exception as error:
            self._set_aside(pipeline, error)
            return True  # others may have some
        if job is None:
            return False
        if pipeline.trouble:
            log.info("jobs can be taken from the queue again", pipeline=pipeline.name)
            pipeline.trouble = ""
        job.attempts += 1
        job.received_at = self._clock()
        self.in_flight += 1
        on_outcome: Callable[[Outcome], None] = partial(self._settle, pipeline, job)
        headers = ""
        if self.telemetry.active:
            span = self._span(pipeline, job)
            headers = with_trace(job.headers, self.telemetry.headers(span))
            on_outcome = partial(self._settle_traced, span, on_outcome)
        pool.submit(
            pipeline.context(job, headers), job.payload, _RAW, on_outcome, f"job {job.name} id={job.id}"
        )
        # A refusal comes before submit returns and has put the job back by now.
        if job.auto_ack and job in driver.running:
            self._later(driver.ack(job))
        return True

    def _span(self, pipeline: Pipeline, job: Job) -> Span:
        """A span of this run, in the trace of whoever pushed the job."""
        return self.telemetry.start(
            "jobs.run",
            {
                "messaging.system": "trailboss",
                "messaging.destination.name": pipeline.name,
                "messaging.message.id": job.id,
                "trailboss.job": job.name,
                "trailboss.attempt": job.attempts,
            },
            parent=trace_of(job.headers),
        )

    def _settle_traced(self, span: Span, settle: Callable[[Outcome], None], outcome: Outcome) -> None:
        failure = ""
        if isinstance(outcome, Exception):
            failure = str(outcome) or type(outcome).__name__
        elif not isinstance(judge(outcome), Done):
            failure = "not acknowledged"
        self.telemetry.finish(span, failure)
        settle(outcome)

    # --- settling ----------------------------------------------------------------------------------------------------

    def _settle(self, pipeline: Pipeline, job: Job, outcome: Outcome) -> None:
        self.in_flight -= 1
        driver = pipeline.driver
        try:
            if job not in driver.running:
                self._settle_late(pipeline, job, outcome)
            elif type(outcome) is Answer and outcome.body in ACK_BODIES:
                pending = driver.ack(job)
                if pending is not None:
                    self._await_later(pending)
            else:
                self._decide(pipeline, job, outcome)
        except Exception as error:
            self._settle_unwell(pipeline, job, error)
        if self._drained is not None and self.in_flight == 0:
            self._drained.set()
        if self._debug_runs_max:
            if isinstance(outcome, Answer) or outcome.sent:
                self._debug_runs = self._debug_runs_max
            self.pump()

    def _settle_unwell(self, pipeline: Pipeline, job: Job, error: Exception) -> None:
        """The driver failed to settle the job. It runs again later if the driver allows; the others go on."""
        log.error(
            "a job could not be settled with its queue and may run again",
            **_about(pipeline, job),
            exc_info=error,
        )
        try:
            if job in pipeline.driver.running:
                self._repeat(pipeline, job, Failed("its queue could not settle it", "settlement failed"))
        except Exception:
            log.exception("a job stays with the runs of its pipeline", **_about(pipeline, job))
        self.pump()

    def _decide(self, pipeline: Pipeline, job: Job, outcome: Outcome) -> None:
        verdict = judge(outcome)
        driver = pipeline.driver
        match verdict:
            case Done():
                self._later(driver.ack(job))
            case NotTried():
                self._give_back(pipeline, job)
                if verdict.refused or self._debug_runs_max:
                    self._debug_runs = min(self._debug_runs_max, 1)
                    self._refused = True
                    self._retry_at = self._clock() + _RETRY_REFUSED_SECONDS
                    self._wake_at(self._retry_at)
            case Requeued():
                job.attempts = 0
                job.headers = merge_headers(job.headers, verdict.headers)
                self._later(driver.requeue(job, verdict.delay_seconds))
            case GivenUp():
                self.given_up += 1
                self._bury(pipeline, job, verdict.reason, "")
            case Failed() if job.auto_ack:
                # Only where the driver could not ack before the outcome was there: it may be lost, that was asked for.
                log.warning("job with auto_ack is lost", **_about(pipeline, job), reason=verdict.reason)
                self._later(driver.ack(job))
            case Failed():
                self._repeat(pipeline, job, verdict)
        # The job may wait again while other workers are idle, and those say nothing.
        self.pump()

    def _repeat(self, pipeline: Pipeline, job: Job, failed: Failed) -> None:
        self.failures[failed.cause] = self.failures.get(failed.cause, 0) + 1
        delay_seconds = self._policy.delay_after(job.attempts)
        if delay_seconds is None:
            self._bury(pipeline, job, failed.reason, failed.cause)
            return
        delay_seconds = max(delay_seconds, failed.delay_seconds)
        log.warning(
            "job failed and will run again",
            **_about(pipeline, job),
            delay_seconds=delay_seconds,
            reason=failed.reason,
        )
        self._later(pipeline.driver.requeue(job, delay_seconds))

    def _bury(self, pipeline: Pipeline, job: Job, reason: str, cause: str) -> None:
        log.error("job is a dead letter now", **_about(pipeline, job), reason=reason, cause=cause)
        self._later(pipeline.driver.nack(job, reason, cause))

    def _give_back(self, pipeline: Pipeline, job: Job) -> None:
        job.attempts -= 1
        self._later(pipeline.driver.give_back(job))

    def _settle_late(self, pipeline: Pipeline, job: Job, outcome: Outcome) -> None:
        """The job was acked at receipt, or went back to its queue when the drain deadline passed."""
        if job.auto_ack:
            verdict = judge(outcome)
            if not isinstance(verdict, Done):
                log.warning("job with auto_ack is lost", **_about(pipeline, job), reason=verdict.reason)

    def _later(self, pending: Awaitable[None] | None) -> None:
        if pending is not None:
            self._await_later(pending)

    # --- stopping ----------------------------------------------------------------------------------------------------

    async def drain(self, pipelines: Callable[[], Sequence[Pipeline]]) -> None:
        """Return when no run is in flight. Call `close` first.

        On cancellation: what still runs goes back to its queue, one log line each.
        """
        self._drained = trio.Event()
        if self.in_flight == 0:
            self._drained.set()
        try:
            await self._drained.wait()
        except trio.Cancelled:
            self.return_running(pipelines())
            raise

    def return_running(self, pipelines: Sequence[Pipeline]) -> int:
        """Give every running job back to its queue; say which ones. Returns how many that were."""
        now = self._clock()
        workers = () if self._pool is None else self._pool.workers()
        pid_by_label = {worker.doing: worker.pid for worker in workers if worker.doing}
        returned = 0
        for pipeline in pipelines:
            for job in sorted(pipeline.driver.running, key=lambda job: job.sequence):
                log.warning(
                    "job did not finish in time and goes back to its queue",
                    **_about(pipeline, job),
                    pid=pid_by_label.get(f"job {job.name} id={job.id}", 0),
                    running_seconds=round(now - job.received_at, 3),
                )
                self._give_back(pipeline, job)
                returned += 1
        return returned


def trace_of(headers: str) -> dict[str, str]:
    """Return the first value of each header of a job, where a trace context is looked for."""
    return {name: values[0] for name, values in json.loads(headers).items() if values}


def with_trace(headers: str, trace: Mapping[str, str]) -> str:
    """Return a job's headers (JSON text) with those of a span instead of what it was pushed with."""
    if not trace:
        return headers
    replaced = {name.lower() for name in trace}
    kept = {name: values for name, values in json.loads(headers).items() if name.lower() not in replaced}
    return json.dumps({**kept, **{name: [value] for name, value in trace.items()}}, separators=(",", ":"))


def _about(pipeline: Pipeline, job: Job) -> dict[str, object]:
    return {"id": job.id, "job": job.name, "pipeline": pipeline.name, "attempts": job.attempts}
