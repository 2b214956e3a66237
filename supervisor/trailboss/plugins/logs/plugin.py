"""The plugin: stands for the log in the start order, in health and in `trailboss state`.

The log itself is installed by main before anything else runs, because a start that fails has to be readable. The plugin
is the first up and the last down, and makes sure that what was logged is written before the next step of a stop.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from trailboss.config.changes import is_under
from trailboss.config.schema import Config
from trailboss.container.contract import Change, Health, Layer, Plugin, Services
from trailboss.plugins.logs.system import LogSystem

__all__ = ["LogsPlugin"]

_FLUSH_SECONDS = 1.0


class LogsPlugin(Plugin):
    """Keeps an eye on the log; provides the LogSystem."""

    name = "logs"
    layer = Layer.TELEMETRY

    def __init__(self, system: LogSystem) -> None:
        self._system = system

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Provide the LogSystem; at the end give the writers a moment.

        On cancellation: leaves at once; what is not written yet is written at exit.
        """
        services.provide(LogSystem, self._system)
        task_status.started()
        await stopping.wait()
        await trio.to_thread.run_sync(self._system.flush, _FLUSH_SECONDS, abandon_on_cancel=True)

    def prepare_reload(self, config: Config, changed: frozenset[str]) -> Change | None:
        """Take over levels."""
        taken = frozenset(key for key in changed if is_under(key, "logs") and key.endswith(".level"))
        return Change(taken, lambda: self._system.relevel(config.logs))

    def health(self) -> Health:
        """Say whether every target takes what is logged."""
        errors = self._system.errors
        return Health(ok=not errors, reason="; ".join(errors))

    def state_detail(self) -> Mapping[str, object]:
        """Count the records that were lost."""
        return {"dropped": self._system.dropped}
