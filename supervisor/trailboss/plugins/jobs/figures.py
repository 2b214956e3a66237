"""What the queues tell at a scrape: RoadRunner's families, and the books of each pipeline.

Pipelines can be declared without number, so a scrape shows PIPELINES_MAX of them one by one and the rest as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from trailboss.metrics import Family, Labels, counter, gauge, histogram
from trailboss.plugins.jobs.contract import Books
from trailboss.plugins.jobs.pipeline import Pipeline

__all__ = ["PIPELINES_MAX", "jobs_families"]

PIPELINES_MAX: Final = 200
_REST: Final = "(others)"
_STATES: Final = ("waiting", "delayed", "running", "dead_listed")
_OUTCOMES: Final = ("pushed", "done", "dead", "destroyed", "taken_over", "handed_over")


def jobs_families(
    pipelines: Iterable[Pipeline], total: Books, failed_runs: int, refused_pushes: int
) -> Iterator[Family]:
    """Yield the figures of all queues; `total` holds those of destroyed pipelines, too."""
    yield gauge("rr_jobs_jobs_ok", "Number of successfully processed jobs", total.done)
    yield gauge("rr_jobs_jobs_err", "Number of jobs error while processing in the worker", failed_runs)
    yield gauge("rr_jobs_push_ok", "Number of job push", total.pushed)
    yield gauge("rr_jobs_push_err", "Number of jobs push which was failed", refused_pushes)
    present = list(pipelines)
    shown = present[:PIPELINES_MAX]
    pushes = {
        (("job", pipeline.name), ("driver", pipeline.driver.kind), ("source", source)): figures
        for pipeline in shown
        for source, figures in pipeline.pushes.items()
    }
    requests: dict[Labels, float] = {labels: figures.count for labels, figures in pushes.items()}
    yield counter("rr_jobs_requests_total", "Total number of push requests", requests)
    yield histogram(
        "rr_jobs_push_latency",
        "Push latency in seconds",
        {labels: figures.copy() for labels, figures in pushes.items()},
    )
    books = {pipeline.name: pipeline.books() for pipeline in shown}
    if len(present) > PIPELINES_MAX:
        books[_REST] = sum((pipeline.books() for pipeline in islice(present, PIPELINES_MAX, None)), Books())
    yield gauge("trailboss_jobs_pipelines", "Pipelines there are now.", len(present))
    yield gauge(
        "trailboss_jobs_now",
        "Jobs by where they are now; dead_listed: dead letters that can be looked at and queued again.",
        {
            (("pipeline", name), ("state", state)): getattr(item, state)
            for name, item in books.items()
            for state in _STATES
        },
    )
    yield counter(
        "trailboss_jobs_total",
        "Jobs by what has become of them; dead: they are, or were, dead letters.",
        {
            (("pipeline", name), ("event", event)): getattr(item, event)
            for name, item in books.items()
            for event in _OUTCOMES
        },
    )
    yield gauge(
        "trailboss_jobs_consumed",
        "1 for a pipeline whose jobs are handed to workers, 0 for one that is paused.",
        {(("pipeline", pipeline.name),): float(pipeline.consumed) for pipeline in shown},
    )
