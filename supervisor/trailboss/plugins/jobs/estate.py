"""The queues' estate: pipelines and jobs in memory on their way from a server to the one that replaces it.

Pipelines travel first, with what somebody has decided at run time: that they exist at all, that they are paused or
resumed. Then the jobs of the memory drivers follow, the most urgent pipeline first, in parcels of a bounded size: what
waits, what is delayed, dead letters. What runs stays with its worker; should it come back to its queue, it follows later.

A job keeps its place: the receiver counts those of its predecessor from below zero, so that they are before all of its
own. What is delayed keeps its moment, told in seconds of the machine's monotonic clock, which both servers can read.
A pipeline that the new configuration has no more is made nevertheless as soon as jobs come for it: nothing is lost.

`pack_share` and `read_share` are pure; :class:`JobsEstate` has the state of a handover.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from trailboss.container.contract import RpcRefused
from trailboss.log import logger
from trailboss.parcels import PARCEL_BYTES, Parcel, ParcelRefused
from trailboss.plugins.jobs.contract import NO_HEADERS, DeadLetter, DriverHost, Job, Share, settled
from trailboss.plugins.jobs.drivers import DRIVERS
from trailboss.plugins.jobs.pipeline import Pipeline, PipelineState
from trailboss.plugins.jobs.registry import Pipelines

__all__ = ["ESTATE_VERSION", "JobsEstate", "PipelineNote", "pack_share", "read_share"]

log = logger("jobs")

#: Of what is written below; a server hands over to one that has the same version.
ESTATE_VERSION: Final = 1

_INTEGER_MAX: Final = 2**63 - 1
#: Type of every member of a job, in the order in which they are written. The last is its place or its moment.
_JOB_MEMBERS: Final = (
    ("id", str),
    ("name", str),
    ("payload", bytes),
    ("headers", str),
    ("priority", int),
    ("delay_seconds", float),
    ("auto_ack", bool),
    ("attempts", int),
    ("members", str),
)


@dataclass(frozen=True, slots=True)
class PipelineNote:
    """What is told of a pipeline: enough to make it, and what was decided at run time."""

    name: str
    driver: str
    options: Mapping[str, str | int | float | bool]
    declared: bool  #: made at run time; otherwise by the configuration, and the new one may do without
    consumed: bool
    wanted: str  #: "paused" or "consumed" where somebody has said so, else ""

    @classmethod
    def of(cls, pipeline: Pipeline) -> PipelineNote:
        """Return the note of a pipeline."""
        options = pipeline.driver.settings.options
        return cls(
            pipeline.name,
            pipeline.driver.kind,
            {key: value for key, value in options.items() if isinstance(value, str | int | float | bool)},
            pipeline.declared,
            pipeline.consumed,
            pipeline.wanted.value if pipeline.wanted is not None else "",
        )


# --- the format -----------------------------------------------------------------------------------------------------


def pack_share(share: Share, *, first_sequence: int, clock_offset: float) -> dict[str, object]:
    """Return the written form of a share.

    `first_sequence`: jobs with a lower number are older than the handover, the others join the end of their queue.
    `clock_offset`: what has to be added to the driver's clock to have that of the machine.
    """
    return {
        "waiting": [[*_pack_job(job), min(job.sequence - first_sequence, 0)] for job in share.waiting],
        "delayed": [[*_pack_job(job), due + clock_offset] for due, job in share.delayed],
        "dead": [
            [*_pack_job(letter.job), [letter.reason, letter.cause, letter.died_at]] for letter in share.dead
        ],
    }


def _pack_job(job: Job) -> list[object]:
    return [
        job.id,
        job.name,
        bytes(job.payload),
        job.headers,
        job.priority,
        float(job.delay_seconds),
        job.auto_ack,
        job.attempts,
        job.members,
    ]


def read_share(
    content: Mapping[object, object], *, next_sequence: Callable[[], int], clock_offset: float
) -> Share:
    """Return a share from its written form; `clock_offset` is that of the reader. Raises ParcelRefused."""
    share = Share()
    names: dict[str, str] = {}
    for row in _rows(content, "waiting"):
        job = _read_job(row, names)
        place = row[-1]
        if type(place) is not int or not -_INTEGER_MAX <= place <= 0:
            raise ParcelRefused("a waiting job without a place")
        # Zero: it came when the handover had begun. Its own numbers are above zero.
        job.sequence = place or next_sequence()
        share.waiting.append(job)
    for row in _rows(content, "delayed"):
        due = row[-1]
        if not isinstance(due, float) or not math.isfinite(due):
            raise ParcelRefused("a delayed job without a moment")
        share.delayed.append((due - clock_offset, _read_job(row, names)))
    for row in _rows(content, "dead"):
        share.dead.append(_read_letter(row, names))
    return share


def _rows(content: Mapping[object, object], key: str) -> Sequence[list[object]]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == len(_JOB_MEMBERS) + 1 for row in rows
    ):
        raise ParcelRefused(f"{key} is no list of jobs")
    return rows


def _read_job(row: list[object], names: dict[str, str]) -> Job:
    for value, (member, kind) in zip(row, _JOB_MEMBERS, strict=False):
        if type(value) is not kind:
            raise ParcelRefused(f"{member} of a job is a {type(value).__name__}, not a {kind.__name__}")
    match row:
        case [
            str() as job_id,
            str() as name,
            bytes() as payload,
            str() as headers,
            int() as priority,
            float() as delay_seconds,
            bool() as auto_ack,
            int() as attempts,
            str() as members,
            _,
        ] if attempts >= 0 and math.isfinite(delay_seconds) and _are_headers(headers):
            kept = NO_HEADERS if headers == NO_HEADERS else headers
            job = Job(job_id, names.setdefault(name, name), payload, kept, priority, delay_seconds, auto_ack)
            job.attempts = attempts
            job.members = members
            return job
    raise ParcelRefused(f"attempts, delay or headers of the job {row[0]!r} make no sense")


def _are_headers(text: str) -> bool:
    if text == NO_HEADERS:
        return True
    try:
        headers = json.loads(text)
    except ValueError:
        return False
    return isinstance(headers, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values)
        for values in headers.values()
    )


def _read_letter(row: list[object], names: dict[str, str]) -> DeadLetter:
    match row[-1]:
        case [str() as reason, str() as cause, float() as died_at] if math.isfinite(died_at):
            return DeadLetter(_read_job(row, names), reason, cause, died_at)
    raise ParcelRefused("a dead letter without its reason")


def _read_note(row: object) -> PipelineNote:
    match row:
        case {
            "name": str() as name,
            "driver": str() as driver,
            "options": dict() as options,
            "declared": bool() as declared,
            "consumed": bool() as consumed,
            "wanted": str() as wanted,
        } if name and driver in DRIVERS and type(options.get("priority", 0)) is int:
            if all(isinstance(key, str) for key in options):
                return PipelineNote(name, driver, options, declared, consumed, wanted)
    raise ParcelRefused("what is told of a pipeline makes no sense")


# --- the state ------------------------------------------------------------------------------------------------------


class JobsEstate:
    """The queues as a :class:`trailboss.parcels.Estate`."""

    def __init__(
        self, pipelines: Pipelines, host: DriverHost, machine_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pipelines = pipelines
        self._host = host
        self._machine_clock = machine_clock
        self._clock_offset: float | None = None
        #: The old side: number of the first job that came when the handover had begun; 0: it has not.
        self._first_sequence = 0
        self._told: dict[str, PipelineNote] = {}
        #: The new side: what was told, for pipelines that are made when jobs come.
        self._heard: dict[str, PipelineNote] = {}
        #: Why nothing is taken in any more, or "".
        self.closed = ""

    # the old side

    def declarations(self) -> Parcel | None:
        """Tell of every pipeline; nothing of that counts before the successor is in charge, so it is told again then."""
        notes = [PipelineNote.of(pipeline) for pipeline in self._pipelines.by_name.values()]
        return Parcel({"pipelines": [asdict(note) for note in notes]}, 0, lambda: None) if notes else None

    def next_parcel(self) -> Parcel | None:
        """Return pipelines that have changed, then the jobs that are next."""
        if not self._first_sequence:
            self._first_sequence = self._host.next_sequence()
        notes = {pipeline.name: PipelineNote.of(pipeline) for pipeline in self._pipelines.by_name.values()}
        changed = [note for name, note in notes.items() if self._told.get(name) != note]
        if changed:
            self._told.update((note.name, note) for note in changed)
            return Parcel({"pipelines": [asdict(note) for note in changed]}, 0, lambda: None)
        for pipeline in sorted(self._pipelines.by_name.values(), key=_urgency):
            share = pipeline.driver.let_go(PARCEL_BYTES)
            if share is not None:
                return self._jobs(pipeline, share)
        return None

    def _jobs(self, pipeline: Pipeline, share: Share) -> Parcel:
        content = pack_share(share, first_sequence=self._first_sequence, clock_offset=self._offset())
        return Parcel(
            {"pipeline": pipeline.name, **content}, len(share), lambda: pipeline.driver.take_back(share)
        )

    def _offset(self) -> float:
        if self._clock_offset is None:
            self._clock_offset = self._machine_clock() - self._host.clock()
        return self._clock_offset

    # the new side

    async def receive(self, content: object) -> int:
        """Take in pipelines or jobs; returns how many jobs. Raises ParcelRefused."""
        if self.closed:
            raise ParcelRefused(self.closed)
        if not isinstance(content, dict):
            raise ParcelRefused("it is no object")
        match content:
            case {"pipelines": list() as rows}:
                for note in [_read_note(row) for row in rows]:
                    await self._hear(note)
                return 0
            case {"pipeline": str() as name}:
                share = read_share(
                    content, next_sequence=self._host.next_sequence, clock_offset=self._offset()
                )
                pipeline = await self._pipeline_for(name)
                pipeline.driver.take_over(share)
                self._host.ready_changed()
                return len(share)
        raise ParcelRefused("it holds neither pipelines nor jobs")

    async def _hear(self, note: PipelineNote) -> None:
        self._heard[note.name] = note
        pipeline = self._pipelines.by_name.get(note.name)
        if pipeline is None:
            if not note.declared:
                return
            pipeline = await self._make(note)
        if note.wanted == PipelineState.PAUSED.value:
            if pipeline.wanted is not PipelineState.PAUSED:
                await settled(self._pipelines.pause(pipeline))
        elif note.wanted and pipeline.wanted is not PipelineState.CONSUMED:
            await settled(self._pipelines.resume(pipeline))

    async def _pipeline_for(self, name: str) -> Pipeline:
        pipeline = self._pipelines.by_name.get(name)
        if pipeline is not None:
            return pipeline
        note = self._heard.get(name)
        if note is None:
            raise ParcelRefused(f"jobs of a pipeline that was not told of: {name[:200]!r}")
        log.warning(
            "a pipeline that the configuration has no more is kept for the jobs of the old server",
            pipeline=name,
        )
        pipeline = await self._make(note)
        if note.consumed:
            await settled(self._pipelines.resume(pipeline))
        return pipeline

    async def _make(self, note: PipelineNote) -> Pipeline:
        try:
            return await self._pipelines.make(note.name, note.driver, note.options)
        except RpcRefused as refused:
            raise ParcelRefused(str(refused)) from None


def _urgency(pipeline: Pipeline) -> tuple[float, int]:
    head = pipeline.driver.ready.head
    return (math.inf, 0) if head is None else (head.priority, head.sequence)
