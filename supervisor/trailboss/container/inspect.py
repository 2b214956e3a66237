"""What plugins tell about themselves to informer, status and the command line: typed services, as protocols.

The plugin that has the figures provides itself under the protocol; informer and status ask with ``services.find`` and
show nothing where nobody provides it. So neither side imports the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["HttpFigures", "HttpInspector", "JobsInspector"]


class JobsInspector(Protocol):
    """Figures of the queues; provided by the jobs plugin."""

    def job_states(self) -> list[dict[str, object]]:
        """Return one row a pipeline, keys as `informer.Jobs` has them.

        Pipeline, Driver, Queue (str), Active, Delayed, Reserved, Priority (int), Ready (bool: not paused), ErrorMessage
        (str, "" while it works). Must not block.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpFigures:
    """What a web server has done since its start, and is doing. Counts only grow; see :mod:`trailboss.figures`."""

    addresses: tuple[str, ...]
    requests: int
    #: Requests that the server answered itself.
    refused: int
    #: Connections ended for their slowness.
    timeouts: int
    in_flight: int
    connections: int
    #: Upper bounds in seconds, and counts: from a request's head to the end of its answer.
    latency_bounds: tuple[float, ...]
    latency_counts: tuple[int, ...]


class HttpInspector(Protocol):
    """Figures of the web server; provided by the http plugin."""

    def http_figures(self) -> HttpFigures | None:
        """Return the figures of this moment; None before it can serve. Must not block."""
        ...

    def http_refusals(self, last: int) -> dict[str, object]:
        """Return the last refusals as `trailboss.Refusals` has them: JSON values. Must not block."""
        ...
