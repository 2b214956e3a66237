"""The RPC methods under `jobs.`: what they take, what they answer, and what they refuse.

Plain functions, answered in place on the reactor; a driver that has to wait makes the same function return an awaitable
(the RPC server awaits it under the deadline of the call). A push is checked as a whole before anything is stored: a
batch is accepted or refused in one piece, and a refused one leaves nothing behind.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as quote
from time import perf_counter
from typing import Final

from trailboss.container.contract import Access, Caller, RpcMethod, RpcRefused
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.contract import (
    ATTEMPTS_HEADER,
    NO_HEADERS,
    DeadLetter,
    Job,
    PushRefused,
    decode_headers,
    settled,
)
from trailboss.plugins.jobs.pipeline import Pipeline
from trailboss.plugins.jobs.registry import Pipelines

__all__ = ["JobsRequests"]

_EMPTY: Final = jobs_pb2.Empty()
_DEAD_LIMIT: Final = 100
_DEAD_LIMIT_MAX: Final = 1000
_PAYLOAD_SHOWN_BYTES_MAX: Final = 65536
_NAMES_SHARED_MAX: Final = 4096
_NAME_CHARS_SHARED_MAX: Final = 256


class JobsRequests:
    """Handlers of the methods; `pump` is called when jobs have been added."""

    def __init__(self, pipelines: Pipelines, pump: Callable[[], None], timeout_seconds: float) -> None:
        self._pipelines = pipelines
        self._by_name = pipelines.by_name
        self._pump = pump
        self._timeout_seconds = timeout_seconds
        self._names: dict[str, str] = {}
        #: Calls of Push and PushBatch that were refused.
        self.refused_pushes = 0

    def methods(self) -> list[RpcMethod]:
        """Return the table of methods."""
        timed = partial(RpcMethod, deadline_seconds=self._timeout_seconds)
        pipelines, empty = jobs_pb2.Pipelines, jobs_pb2.Empty
        return [
            timed("jobs.Push", self.push, argument=jobs_pb2.PushRequest, result=empty, doc="Push one job."),
            timed(
                "jobs.PushBatch",
                self.push_batch,
                argument=jobs_pb2.PushBatchRequest,
                result=empty,
                doc="Push several jobs, all or none.",
            ),
            timed(
                "jobs.Pause",
                self.pause,
                argument=pipelines,
                result=empty,
                doc="Hand no further jobs of these pipelines to workers.",
            ),
            timed(
                "jobs.Resume",
                self.resume,
                argument=pipelines,
                result=empty,
                doc="Hand jobs of these pipelines to workers.",
            ),
            RpcMethod(
                "jobs.List", self.list, argument=empty, result=pipelines, doc="Names of the pipelines."
            ),
            timed(
                "jobs.Declare",
                self.declare,
                argument=jobs_pb2.DeclareRequest,
                result=empty,
                doc="Make a pipeline; it is consumed after Resume.",
            ),
            timed(
                "jobs.Destroy",
                self.destroy,
                Access.SENSITIVE,
                argument=pipelines,
                result=pipelines,
                doc="Remove pipelines with the jobs that wait in them.",
            ),
            timed(
                "jobs.Stat",
                self.stat,
                argument=empty,
                result=jobs_pb2.Stats,
                doc="Figures of every pipeline.",
            ),
            RpcMethod(
                "jobs.Dead", self.dead, doc='Dead letters: {"pipeline": "", "offset": 0, "limit": 100}.'
            ),
            timed(
                "jobs.Requeue",
                self.requeue,
                doc='Queue dead letters again: {"pipeline": "", "ids": [...]} or {"all": true}.',
            ),
            timed(
                "jobs.Purge",
                self.purge,
                Access.SENSITIVE,
                doc='Delete dead letters: {"pipeline": "", "ids": [...]} or {"all": true}.',
            ),
            RpcMethod("jobs.Books", self.books, doc="Where every pushed job is, per pipeline and in total."),
        ]

    # --- pushing -----------------------------------------------------------------------------------------------------

    def push(self, request: jobs_pb2.PushRequest, caller: Caller) -> object | Awaitable[object]:
        """Accept one job."""
        began = perf_counter()
        try:
            pipeline, job = self._read(request.job, "rpc_push")
            pending = pipeline.driver.push((job,))
        except (PushRefused, RpcRefused) as refused:
            self.refused_pushes += 1
            raise RpcRefused(str(refused)) from None
        if pending is not None:
            return self._finish_push([pending], [pipeline], "single", began)
        pipeline.note_push("single", perf_counter() - began)
        self._pump()
        return _EMPTY

    def push_batch(self, request: jobs_pb2.PushBatchRequest, caller: Caller) -> object | Awaitable[object]:
        """Accept all jobs or none.

        Only where a batch spans pipelines of drivers that may fail later than at once (none of those here) can a part
        of it be stored when the error is answered; the error then says so.
        """
        began = perf_counter()
        read = self._read
        jobs_by_pipeline: dict[Pipeline, list[Job]] = {}
        pending: list[Awaitable[None]] = []
        try:
            for message in request.jobs:
                pipeline, job = read(message, "rpc_push_batch")
                jobs = jobs_by_pipeline.get(pipeline)
                if jobs is None:
                    jobs_by_pipeline[pipeline] = [job]
                else:
                    jobs.append(job)
            self._check_places(jobs_by_pipeline)
            for pipeline, jobs in jobs_by_pipeline.items():
                answer = pipeline.driver.push(jobs)
                if answer is not None:
                    pending.append(answer)
        except (PushRefused, RpcRefused) as refused:
            self.refused_pushes += 1
            raise RpcRefused(str(refused)) from None
        if pending:
            return self._finish_push(pending, list(jobs_by_pipeline), "batch", began)
        self._note_pushes(jobs_by_pipeline, "batch", began)
        self._pump()
        return _EMPTY

    @staticmethod
    def _note_pushes(pipelines: Iterable[Pipeline], source: str, began: float) -> None:
        seconds = perf_counter() - began
        for pipeline in pipelines:
            pipeline.note_push(source, seconds)

    async def _finish_push(
        self, pending: Sequence[Awaitable[None]], pipelines: Sequence[Pipeline], source: str, began: float
    ) -> object:
        finished = 0
        try:
            for push in pending:
                await push
                finished += 1
            self._note_pushes(pipelines, source, began)
        except PushRefused as refused:
            self.refused_pushes += 1
            partly = f" ({finished} of {len(pending)} pipelines have taken their jobs)" if finished else ""
            raise RpcRefused(f"{refused}{partly}") from None
        finally:
            self._pump()
        return _EMPTY

    def _read(self, message: jobs_pb2.Job, operation: str) -> tuple[Pipeline, Job]:
        """Return the job a message describes and its pipeline. Raises RpcRefused."""
        job_id = message.id
        if not job_id:
            raise RpcRefused(f"{operation}: empty ID field not allowed")
        options = message.options
        pipeline = self._by_name.get(options.pipeline) or self._pipelines.find(options.pipeline)
        if pipeline is None:
            raise RpcRefused(f"no such pipeline, requested: {options.pipeline}")
        if pipeline.failure:
            raise RpcRefused(f"pipeline {pipeline.name} is out of order: {pipeline.failure}")
        headers = message.headers
        job = Job(
            job_id,
            self._shared(message.job),
            message.payload,
            _store_headers(headers) if headers else NO_HEADERS,
            options.priority or pipeline.priority,
            options.delay,
            options.auto_ack,
        )
        return pipeline, job

    def _shared(self, name: str) -> str:
        """Return one object for equal names: a million jobs have a handful of them. Not `intern`, which may never forget."""
        names = self._names
        shared = names.get(name)
        if shared is not None:
            return shared
        if len(name) <= _NAME_CHARS_SHARED_MAX:
            if len(names) >= _NAMES_SHARED_MAX:
                names.clear()
            names[name] = name
        return name

    def _check_places(self, jobs_by_pipeline: Mapping[Pipeline, Sequence[Job]]) -> None:
        """Raise RpcRefused unless every part of a batch fits, also where pipelines share their places."""
        needed = sum(map(len, jobs_by_pipeline.values()))
        in_memory = sum(
            len(jobs) for pipeline, jobs in jobs_by_pipeline.items() if not pipeline.driver.durable
        )
        for pipeline, jobs in jobs_by_pipeline.items():
            free = pipeline.driver.free_places()
            if free < (len(jobs) if pipeline.driver.durable else in_memory):
                raise RpcRefused(
                    f"queue is full: pipeline {pipeline.name} has {free} free places, the batch of {needed} jobs"
                    " does not fit; nothing was pushed"
                )

    # --- pipelines ---------------------------------------------------------------------------------------------------

    def pause(self, request: jobs_pb2.Pipelines, caller: Caller) -> object | Awaitable[object]:
        """Pause all named pipelines, or none where one is unknown."""
        return self._each(self._find_all(request.pipelines), self._pipelines.pause)

    def resume(self, request: jobs_pb2.Pipelines, caller: Caller) -> object | Awaitable[object]:
        """Resume all named pipelines, or none where one is unknown."""
        return self._each(self._find_all(request.pipelines), self._pipelines.resume)

    def list(self, request: jobs_pb2.Empty, caller: Caller) -> jobs_pb2.Pipelines:
        """Return the names of the pipelines, in the order in which they came to be."""
        return jobs_pb2.Pipelines(pipelines=self._by_name)

    async def declare(self, request: jobs_pb2.DeclareRequest, caller: Caller) -> jobs_pb2.Empty:
        """Make a pipeline and connect its driver."""
        await self._pipelines.declare(dict(request.pipeline))
        return _EMPTY

    async def destroy(self, request: jobs_pb2.Pipelines, caller: Caller) -> jobs_pb2.Pipelines:
        """Remove all named pipelines, or none where one is unknown; return the names of those removed."""
        destroyed = jobs_pb2.Pipelines()
        for pipeline in self._find_all(request.pipelines):
            await self._pipelines.destroy(pipeline)
            destroyed.pipelines.append(pipeline.name)
        return destroyed

    def stat(self, request: jobs_pb2.Empty, caller: Caller) -> jobs_pb2.Stats:
        """Return the figures of every pipeline."""
        return jobs_pb2.Stats(stats=[_stat(pipeline) for pipeline in self._by_name.values()])

    def _find_all(self, names: Sequence[str]) -> Sequence[Pipeline]:
        found: dict[str, Pipeline] = {}
        for name in names:
            found[name] = self._find(name)
        return tuple(found.values())

    def _find(self, name: str) -> Pipeline:
        pipeline = self._pipelines.find(name)
        if pipeline is None:
            raise RpcRefused(f"no such pipeline, requested: {name}")
        return pipeline

    def _each(
        self, pipelines: Sequence[Pipeline], verb: Callable[[Pipeline], Awaitable[None] | None]
    ) -> object | Awaitable[object]:
        pending = [answer for pipeline in pipelines if (answer := verb(pipeline)) is not None]
        return self._finish(pending) if pending else _EMPTY

    async def _finish(self, pending: Sequence[Awaitable[None]]) -> object:
        for answer in pending:
            await answer
        return _EMPTY

    # --- dead letters and books --------------------------------------------------------------------------------------

    def dead(self, argument: object, caller: Caller) -> dict[str, object]:
        """Return one page of the dead letters, pipeline by pipeline, the oldest first."""
        fields = _read_fields(argument, "jobs.Dead", ("pipeline", "offset", "limit"))
        offset = _read_count(fields, "offset", 0)
        limit = min(_read_count(fields, "limit", _DEAD_LIMIT), _DEAD_LIMIT_MAX)
        page: list[dict[str, object]] = []
        total = 0
        for pipeline in self._chosen(fields):
            letters = pipeline.driver.dead_letters()
            first = max(offset - total, 0)
            for position in range(first, min(len(letters), first + limit - len(page))):
                page.append(_describe_dead(pipeline, letters[position]))
            total += len(letters)
        return {"total": total, "offset": offset, "jobs": page}

    async def requeue(self, argument: object, caller: Caller) -> dict[str, object]:
        """Queue dead letters again; their attempts start again."""
        fields = _read_fields(argument, "jobs.Requeue", ("pipeline", "ids", "all"))
        ids = _read_ids(fields, "jobs.Requeue")
        concerned: list[str] = []
        try:
            for pipeline in self._chosen(fields):
                concerned += await settled(pipeline.driver.revive(ids))
        except PushRefused as refused:
            raise RpcRefused(f"{refused}; {len(concerned)} dead letters were queued before") from None
        finally:
            self._pump()
        return {"requeued": len(concerned), "not_found": _missing(ids, concerned)}

    async def purge(self, argument: object, caller: Caller) -> dict[str, object]:
        """Delete dead letters."""
        fields = _read_fields(argument, "jobs.Purge", ("pipeline", "ids", "all"))
        ids = _read_ids(fields, "jobs.Purge")
        concerned: list[str] = []
        for pipeline in self._chosen(fields):
            concerned += await settled(pipeline.driver.purge(ids))
        return {"purged": len(concerned), "not_found": _missing(ids, concerned)}

    def books(self, argument: object, caller: Caller) -> dict[str, object]:
        """Return where every pushed job is."""
        total = self._pipelines.total()
        return {
            "pipelines": {name: pipeline.books().as_dict() for name, pipeline in self._by_name.items()},
            "total": total.as_dict(),
            "balanced": total.balanced,
        }

    def _chosen(self, fields: Mapping[str, object]) -> Sequence[Pipeline]:
        name = fields.get("pipeline", "")
        if not isinstance(name, str):
            raise RpcRefused("pipeline has to be a text")
        return (self._find(name),) if name else tuple(self._by_name.values())


def _store_headers(headers: Mapping[str, jobs_pb2.HeaderValue]) -> str:
    """Return the stored form of a message's headers; as `encode_headers` does, without a detour over lists."""
    members = [
        f"{quote(name)}:[{','.join(map(quote, value.value))}]"
        for name, value in headers.items()
        if name.lower() != ATTEMPTS_HEADER
    ]
    return f"{{{','.join(members)}}}" if members else NO_HEADERS


def _stat(pipeline: Pipeline) -> jobs_pb2.Stat:
    books = pipeline.books()
    return jobs_pb2.Stat(
        pipeline=pipeline.name,
        driver=pipeline.driver.kind,
        queue=pipeline.name,
        active=books.waiting + books.running,
        delayed=books.delayed,
        reserved=books.running,
        ready=pipeline.consumed,
        # The message's field is unsigned; a negative priority of the configuration cannot be told.
        priority=max(pipeline.priority, 0),
    )


def _describe_dead(pipeline: Pipeline, letter: DeadLetter) -> dict[str, object]:
    job = letter.job
    row: dict[str, object] = {
        "id": job.id,
        "job": job.name,
        "pipeline": pipeline.name,
        "driver": pipeline.driver.kind,
        "priority": job.priority,
        "attempts": job.attempts,
        "reason": letter.reason,
        "cause": letter.cause,
        "died_at": round(letter.died_at, 3),
        "headers": decode_headers(job.headers),
        "payload_size": len(job.payload),
    }
    shown = job.payload[:_PAYLOAD_SHOWN_BYTES_MAX]
    try:
        row["payload"] = shown.decode()
    except UnicodeDecodeError:
        row["payload_base64"] = base64.b64encode(shown).decode()
    return row


def _read_fields(argument: object, method: str, known: Sequence[str]) -> Mapping[str, object]:
    """Return the members of an argument; nothing, an empty text and a boolean stand for an empty one."""
    if argument is None or isinstance(argument, bool) or argument in ("", b"", []):
        return {}
    if not isinstance(argument, dict):
        raise RpcRefused(f"{method} takes an object with {', '.join(known)}")
    for name in argument:
        if name not in known:
            raise RpcRefused(f"{method} does not know {name!r}; it takes {', '.join(known)}")
    return argument


def _read_count(fields: Mapping[str, object], name: str, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RpcRefused(f"{name} has to be a number from 0 on")
    return value


def _read_ids(fields: Mapping[str, object], method: str) -> Sequence[str] | None:
    """Return the ids asked for, None for all. Raises RpcRefused where it is neither: nothing is taken for all."""
    everything = fields.get("all", False)
    ids = fields.get("ids")
    if everything is True and ids is None:
        return None
    if everything is not False or not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise RpcRefused(f'{method} takes either "ids", a list of texts, or "all": true')
    return ids


def _missing(ids: Sequence[str] | None, concerned: Sequence[str]) -> Sequence[str]:
    if ids is None:
        return []
    found = frozenset(concerned)
    return [name for name in ids if name not in found]
