"""What plugins tell about themselves to informer, status and the command line: typed services, as protocols.

The plugin that has the figures provides itself under the protocol; informer and status ask with ``services.find`` and
show nothing where nobody provides it. So neither side imports the other.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["JobsInspector"]


class JobsInspector(Protocol):
    """Figures of the queues; provided by the jobs plugin."""

    def job_states(self) -> list[dict[str, object]]:
        """Return one row a pipeline, keys as `informer.Jobs` has them.

        Pipeline, Driver, Queue (str), Active, Delayed, Reserved, Priority (int), Ready (bool: not paused), ErrorMessage
        (str, "" while it works). Must not block.
        """
        ...
