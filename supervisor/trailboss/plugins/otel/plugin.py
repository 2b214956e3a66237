"""The plugin: healthy at once, builds its exporter in a thread, attaches it when it is there.

OpenTelemetry takes longer to import than Trailboss to start and costs tens of megabytes, so nothing of it is imported
without an `otel` section, and with one only after this plugin has said that it is healthy. A collector that is absent,
slow or broken costs spans: they wait in a bounded queue of the exporter's own thread and are dropped beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import trio

from trailboss.config.schema import OtelConfig
from trailboss.container.contract import Layer, Plugin, Services
from trailboss.log import logger
from trailboss.telemetry import Telemetry, TelemetryBackend

__all__ = ["OtelPlugin"]

log = logger("otel")

#: Time for the last spans at the end; a dead collector takes no longer.
SHUTDOWN_SECONDS = 3.0


class ClosableBackend(TelemetryBackend, Protocol):
    """A backend and what it takes to end it."""

    def close(self) -> None:
        """Export what is left; blocks."""
        ...


def _build_backend(config: OtelConfig) -> ClosableBackend:
    """Import OpenTelemetry and build the exporter; runs in a thread. Raises anything."""
    from trailboss.plugins.otel.exporter import build

    return build(config)


class OtelPlugin(Plugin):
    """Attaches an exporter to the Telemetry service."""

    name = "otel"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(
        self, config: OtelConfig, build: Callable[[OtelConfig], ClosableBackend] = _build_backend
    ) -> None:
        self._config = config
        self._build = build
        self._exporter = "being built"

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be healthy at once; attach the exporter when it is built; at the end let it send what is left.

        On cancellation: spans that were not exported are lost.
        """
        telemetry = services.get(Telemetry)
        backends: list[ClosableBackend] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._attach, telemetry, backends)
            task_status.started()
            await stopping.wait()
            nursery.cancel_scope.cancel("the server stops")
        telemetry.attach(None)
        for backend in backends:
            with trio.move_on_after(SHUTDOWN_SECONDS) as scope:
                await trio.to_thread.run_sync(_close, backend, abandon_on_cancel=True)
            if scope.cancelled_caught:
                log.warning("the collector did not take the last spans in time", seconds=SHUTDOWN_SECONDS)

    def state_detail(self) -> Mapping[str, object]:
        """Say how far the exporter is."""
        return {"exporter": self._exporter}

    async def _attach(self, telemetry: Telemetry, backends: list[ClosableBackend]) -> None:
        try:
            backend = await trio.to_thread.run_sync(self._build, self._config, abandon_on_cancel=True)
        except Exception as error:
            self._exporter = f"cannot be built: {error}"
            log.error("no spans are exported", reason=str(error) or type(error).__name__)
            return
        backends.append(backend)
        telemetry.attach(backend)
        self._exporter = "attached"
        log.debug("spans are exported", exporter=self._config.exporter, endpoint=self._config.endpoint)


def _close(backend: ClosableBackend) -> None:
    try:
        backend.close()
    except Exception as error:
        log.warning("the exporter did not end well", error=str(error))
