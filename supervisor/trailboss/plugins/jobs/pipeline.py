"""A pipeline: a name, a driver that keeps its jobs, and whether workers are to consume it.

It also owns what never changes between two of its jobs: the constant parts of the context a worker gets (wire protocol
3.2), so that a job's context is put together from ready-made text.
"""

from __future__ import annotations

import enum
from json.encoder import encode_basestring_ascii as quote

import trio

from trailboss.figures import Histogram
from trailboss.plugins.jobs.contract import ATTEMPTS_HEADER, NO_HEADERS, Books, Job, JobsDriver

__all__ = ["Pipeline", "PipelineState"]


class PipelineState(enum.Enum):
    """Whether jobs of a pipeline are handed to workers."""

    PAUSED = "paused"
    CONSUMED = "consumed"
    DESTROYED = "destroyed"


class Pipeline:
    """One queue under its name, with the driver that keeps its jobs."""

    __slots__ = (
        "_middle",
        "_tail",
        "declared",
        "driver",
        "failure",
        "name",
        "priority",
        "pushes",
        "state",
        "stopped",
        "stopping",
        "trouble",
        "wanted",
    )

    def __init__(self, name: str, priority: int, driver: JobsDriver) -> None:
        self.name = name
        self.priority = priority
        self.driver = driver
        self.state = PipelineState.PAUSED
        #: Made at run time, not by the configuration.
        self.declared = False
        #: What somebody has asked for by Pause or Resume; None: the configuration decides.
        self.wanted: PipelineState | None = None
        self.failure = ""  #: why the driver has ended by itself, or ""
        self.trouble = ""  #: why jobs cannot be taken from it at the moment, or ""
        #: Seconds that pushes have taken, by RoadRunner's word for their kind: single or batch.
        self.pushes: dict[str, Histogram] = {}
        self.stopping = trio.Event()
        self.stopped = trio.Event()
        driver.ready.owner = self
        self._middle = f',"driver":{quote(driver.kind)},"headers":'
        self._tail = f',"pipeline":{quote(name)}'

    def __repr__(self) -> str:
        return f"<Pipeline {self.name} ({self.driver.kind}) {self.state.value}>"

    @property
    def consumed(self) -> bool:
        """Whether its jobs are handed to workers."""
        return self.state is PipelineState.CONSUMED

    def context(self, job: Job, headers: str = "") -> bytes:
        """Return the context of this run of `job`; `headers` (JSON text) replace the job's own for this run."""
        headers = headers or job.headers
        attempts = job.attempts
        if attempts > 1:
            rest = "}" if headers == NO_HEADERS else f",{headers[1:]}"
            headers = f'{{"{ATTEMPTS_HEADER}":["{attempts}"]{rest}'
        return (
            f'{{"id":{quote(job.id)},"job":{quote(job.name)}{self._middle}{headers}'
            f'{self._tail}{job.members},"attempts":{attempts}}}'
        ).encode()

    def note_push(self, source: str, seconds: float) -> None:
        """Count one call that has pushed, once its jobs are kept."""
        figures = self.pushes.get(source)
        if figures is None:
            figures = self.pushes[source] = Histogram()
        figures.observe(seconds)

    def statistics(self) -> dict[str, object]:
        """Return the row of informer.Jobs; RoadRunner's keys.

        Active: waiting and running; Reserved: running; Ready: consumed.
        """
        books = self.driver.books()
        return {
            "Pipeline": self.name,
            "Driver": self.driver.kind,
            "Queue": self.name,
            "Active": books.waiting + books.running,
            "Delayed": books.delayed,
            "Reserved": books.running,
            "Ready": self.consumed,
            "Priority": self.priority,
            "ErrorMessage": self.failure or self.trouble,
        }

    def books(self) -> Books:
        """Return where the jobs of this pipeline are."""
        return self.driver.books()
