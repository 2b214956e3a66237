"""THE DRIVER CONTRACT: what keeps the jobs of a pipeline, and what it promises.

A driver stores jobs and hands them out one by one. It never decides what becomes of a job: that is the dispatcher's
part (:mod:`trailboss.plugins.jobs.dispatch`), which calls exactly one of `ack`, `nack`, `requeue` and `give_back` for
each job it has received. In exchange a driver promises:

* at least once: a job that `push` has accepted is handed out again and again until it is acked or nacked, and a
  driver that is `durable` keeps that promise across the end of the process;
* order: more urgent first (lower number), first in first out inside one priority; `give_back` restores the place;
* all or nothing: `push` accepts every job it is given or none;
* books that balance at every moment (:class:`Books`).

Everything runs in one thread and nothing may block. A driver without input or output does its work in place and
returns None; one that has to wait returns an awaitable, and whoever called awaits it, in the RPC call or in a task
behind the dispatcher. :func:`trailboss.testing.check_jobs_driver.check_jobs_driver` holds a driver to all of this.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import ClassVar, Final, TypeVar

import trio

from trailboss.plugins.jobs.priority_queue import PriorityQueue

__all__ = [
    "ATTEMPTS_HEADER",
    "NO_HEADERS",
    "Books",
    "DeadLetter",
    "DriverHost",
    "DriverSettings",
    "Job",
    "JobsDriver",
    "PushRefused",
    "Room",
    "Share",
    "decode_headers",
    "encode_headers",
    "settled",
]

T = TypeVar("T")

_encode: Final = json.JSONEncoder(
    separators=(",", ":")
).encode  # json.dumps would make one of these for every push

ATTEMPTS_HEADER: Final = "x-trailboss-attempts"
"""Header that tells a worker the number of the run, from the second run on. Never stored with a job."""
NO_HEADERS: Final = "{}"
"""Stored form of "no headers"; one object for all jobs."""


class PushRefused(Exception):
    """Nothing of a push was accepted; the text is for the one who pushed."""


class Job:
    """One job on its way. Identity is the object: ids come from clients, who may use one twice.

    Small on purpose (a queue may hold a million): headers are kept as the JSON text that the worker's context needs.
    """

    __slots__ = (
        "attempts",
        "auto_ack",
        "delay_seconds",
        "handle",
        "headers",
        "id",
        "members",
        "name",
        "payload",
        "priority",
        "received_at",
        "sequence",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - the name it has on the wire
        name: str,
        payload: bytes,
        headers: str = NO_HEADERS,
        priority: int = 10,
        delay_seconds: float = 0.0,
        auto_ack: bool = False,
    ) -> None:
        self.id = id
        self.name = name
        self.payload = payload
        self.headers = headers  #: JSON object of lists of strings, as text
        self.priority = priority  #: lower is more urgent
        self.delay_seconds = delay_seconds  #: asked for by the push; 0 = none
        self.auto_ack = auto_ack
        self.attempts = 0  #: runs that were started, the present one included
        self.sequence = 0  #: set by the driver each time the job joins the end of its queue
        self.members = ""  #: further members of the context, such as ``,"queue":"default"``
        self.received_at = 0.0  #: when the dispatcher took it, in seconds of the driver's clock
        self.handle: object = None  #: the driver's own: a delivery tag, a row number

    def __repr__(self) -> str:
        return f"<Job {self.name} id={self.id} priority={self.priority} attempts={self.attempts}>"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that will not run again by itself, and why."""

    job: Job
    reason: str  #: for people: "nacked: no such customer", "worker died: signal 9 (SIGKILL)"
    cause: str  #: cause class of the worker's death record, or ""
    died_at: float  #: seconds since 1970


@dataclass(frozen=True, slots=True)
class Books:
    """Where every job is, always: ``pushed + taken_over == done + dead + waiting + delayed + running + destroyed + handed_over``.

    `taken_over` came from a server that this one has replaced, `handed_over` went to one that has replaced this one.
    `dead` counts those still listed as well as those that left the list: dropped because it was full, or purged.
    """

    pushed: int = 0
    done: int = 0
    dead: int = 0
    waiting: int = 0
    delayed: int = 0
    running: int = 0
    destroyed: int = 0
    dead_listed: int = 0
    dead_dropped: int = 0
    dead_purged: int = 0
    handed_over: int = 0
    taken_over: int = 0

    @property
    def balanced(self) -> bool:
        """Say whether every job is accounted for."""
        kept = self.waiting + self.delayed + self.running
        gone = self.done + self.dead + self.destroyed + self.handed_over
        listed = self.dead_listed + self.dead_dropped + self.dead_purged
        return self.pushed + self.taken_over == kept + gone and self.dead == listed

    def __add__(self, other: Books) -> Books:
        return Books(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def as_dict(self) -> dict[str, int]:
        """Return the figures by name, in the order of declaration."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(slots=True)
class Share:
    """Some jobs of a pipeline on their way from one server to the next; who has it alone answers for them."""

    waiting: list[Job] = field(default_factory=list)  #: in the order in which they would run
    delayed: list[tuple[float, Job]] = field(default_factory=list)  #: due time of the driver's clock, job
    dead: list[DeadLetter] = field(default_factory=list)  #: the oldest first

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed) + len(self.dead)


class Room:
    """Places for jobs in memory, shared by all pipelines (`jobs.pipeline_size`)."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def free(self) -> int:
        """How many more jobs fit; none where those taken over from another server are more than that."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """What a pipeline's configuration tells its driver. `options` holds the keys of the driver itself."""

    pipeline: str
    priority: int = 10
    dead_letter_limit: int = 10_000
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DriverHost:
    """What a driver gets from the jobs plugin."""

    clock: Callable[[], float]  #: monotonic seconds
    wall_clock: Callable[[], float]  #: seconds since 1970, for people only
    next_sequence: Callable[[], int]  #: one counter for all pipelines
    wake_at: Callable[[float], None]  #: ask for `on_time` at that moment of `clock`
    ready_changed: Callable[[], None]  #: jobs have become ready outside of a call from the plugin
    room: Room


class JobsDriver(abc.ABC):
    """Base of all drivers. The constructor does no I/O; connecting is the first thing `run` does."""

    #: Name in the configuration, in contexts and in jobs.Stat.
    kind: ClassVar[str]
    #: Whether accepted jobs survive the end of the process.
    durable: ClassVar[bool]

    def __init__(self, settings: DriverSettings, host: DriverHost) -> None:
        self.settings = settings
        self.host = host
        #: Jobs that may run now. A driver with a broker keeps here what it has fetched.
        self.ready: PriorityQueue[Job] = PriorityQueue()
        #: Jobs that were received and are not settled.
        self.running: set[Job] = set()

    async def run(
        self, stopping: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect, call ``task_status.started()``, serve until `stopping` is set, then close and return.

        What the broker has lent and nobody has settled goes back to it before the connection is closed.
        Raises: anything; before ``started()`` it fails the start or the declaration, afterwards this pipeline.
        """
        task_status.started()
        await stopping.wait()

    # --- the side of those who push ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def free_places(self) -> int:
        """How many jobs a push could bring now."""

    @abc.abstractmethod
    def push(self, jobs: Sequence[Job]) -> Awaitable[None] | None:
        """Accept all `jobs`, in this order, or none of them. Raises PushRefused (the awaitable may, too)."""

    # --- the side of the dispatcher ----------------------------------------------------------------------------------

    def receive(self) -> Job | None:
        """Take the next ready job; it counts as running until one of the four verbs below has settled it."""
        job = self.ready.pop()
        if job is not None:
            self.running.add(job)
        return job

    @abc.abstractmethod
    def ack(self, job: Job) -> Awaitable[None] | None:
        """The job is done; it never comes back."""

    @abc.abstractmethod
    def nack(self, job: Job, reason: str, cause: str = "") -> Awaitable[None] | None:
        """The job is given up: it becomes a dead letter."""

    @abc.abstractmethod
    def requeue(self, job: Job, delay_seconds: float) -> Awaitable[None] | None:
        """The job is to run again, behind those that wait, not before `delay_seconds` have passed.

        Headers and attempts are stored as they are now.
        """

    @abc.abstractmethod
    def give_back(self, job: Job) -> Awaitable[None] | None:
        """The job was not tried: back to the place it was taken from."""

    def on_time(self, now: float) -> float:
        """Make ready what is due at `now`, a bounded number at a time; return when to call again (or infinity)."""
        return inf

    # --- the side of the operator ------------------------------------------------------------------------------------

    def pause(self) -> Awaitable[None] | None:
        """Fetch nothing more; what is ready keeps its order and waits (the dispatcher takes none of it)."""
        return None

    def resume(self) -> Awaitable[None] | None:
        """Fetch again."""
        return None

    @abc.abstractmethod
    def books(self) -> Books:
        """Count where the jobs of this pipeline are."""

    @abc.abstractmethod
    def destroy(self) -> Awaitable[int] | int:
        """Drop what waits and what is delayed; return how many jobs that were. What runs may still be settled."""

    @abc.abstractmethod
    def dead_letters(self) -> Sequence[DeadLetter]:
        """The dead letters, the oldest first."""

    @abc.abstractmethod
    def revive(self, ids: Collection[str] | None) -> Awaitable[list[str]] | list[str]:
        """Queue dead letters again, with attempts counted from the start; None = all. Returns the ids concerned.

        Raises PushRefused where they do not all fit; then none is.
        """

    @abc.abstractmethod
    def purge(self, ids: Collection[str] | None) -> Awaitable[list[str]] | list[str]:
        """Delete dead letters; None = all. Returns the ids concerned."""

    # --- the side of an upgrade --------------------------------------------------------------------------------------

    def let_go(self, bytes_about: int) -> Share | None:
        """Give away jobs of about so many bytes, the first ones first; None where none is left but what runs.

        A driver that is durable gives nothing away: its successor finds everything.
        """
        return None

    def take_back(self, share: Share) -> None:
        """Undo a `let_go`: every job goes back to its place."""
        raise NotImplementedError(f"the driver {self.kind} gives nothing away")

    def take_over(self, share: Share) -> None:
        """Take in what the driver of another server has let go, more than there are places for, too."""
        raise NotImplementedError(f"the driver {self.kind} takes nothing over")


async def settled(pending: T | Awaitable[T]) -> T:
    """Return what a driver's verb returned, once it is there."""
    if isinstance(pending, Awaitable):
        return await pending
    return pending


def encode_headers(headers: Mapping[str, Sequence[str]]) -> str:
    """Return the stored form of headers. The attempts header is Trailboss's own and is left out."""
    kept = {name: list(values) for name, values in headers.items() if name.lower() != ATTEMPTS_HEADER}
    return _encode(kept) if kept else NO_HEADERS


def decode_headers(text: str) -> dict[str, list[str]]:
    """Return headers from their stored form."""
    if text is NO_HEADERS:
        return {}
    decoded: dict[str, list[str]] = json.loads(text)
    return decoded
