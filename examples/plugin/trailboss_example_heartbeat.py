"""An example of a third-party plugin: a file that is written every so often, for as long as the server is alive.

A monitor that sees an old file knows that the server hangs; one that sees none knows that it was stopped. The plugin
shows everything a small one needs: a section of the configuration, readiness (the first write proves that the path can be
written), health (later writes may fail without ending anything), an RPC method, figures for `trailboss state`, and a stop.
"""

# ruff: noqa: RUF009  key() is the field declaration itself, as dataclasses.field is
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from trailboss.config.schema import Config, Duration, key
from trailboss.container.contract import Caller, Health, Plugin, RpcMethod, Services
from trailboss.log import logger

log = logger("heartbeat")


@dataclass(frozen=True, slots=True)
class HeartbeatConfig:
    """`heartbeat`: where and how often to write."""

    path: str = key(..., "File that is written.")
    interval: Duration = key(10.0, "Time between two writes.", minimum=0.01)


class HeartbeatPlugin(Plugin):
    """Writes the time into a file again and again."""

    name = "heartbeat"
    start_timeout_seconds = 5.0
    stop_timeout_seconds = 2.0

    def __init__(self, config: HeartbeatConfig) -> None:
        self._path = trio.Path(config.path)
        self._interval_seconds = config.interval
        self._beats = 0
        self._problem = ""

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Write once, be ready, write on until the server stops, then remove the file. Raises OSError for a bad path."""
        await self._beat()
        task_status.started()
        while not stopping.is_set():
            with trio.move_on_after(self._interval_seconds):
                await stopping.wait()
                break
            await self._beat_if_possible()
        await self._path.unlink(missing_ok=True)

    async def _beat(self) -> None:
        await self._path.write_text(f"{time.time():.3f}\n")
        self._beats += 1

    async def _beat_if_possible(self) -> None:
        """A full disk is a matter of health, not the end of the plugin."""
        try:
            await self._beat()
        except OSError as error:
            if not self._problem:
                log.warning("cannot write the heartbeat", path=str(self._path), error=str(error))
            self._problem = f"cannot write {self._path}: {error.strerror}"
        else:
            self._problem = ""

    def health(self) -> Health:
        return Health(ok=not self._problem, reason=self._problem)

    def rpc_methods(self) -> Sequence[RpcMethod]:
        return [RpcMethod("heartbeat.Beats", self._answer_beats, doc="How often the file has been written.")]

    def _answer_beats(self, argument: object, caller: Caller) -> int:
        return self._beats

    def state_detail(self) -> Mapping[str, object]:
        return {"path": str(self._path), "beats": self._beats}


def make(config: Config) -> Plugin | None:
    """Return the plugin where the configuration has a section `heartbeat`."""
    section = config.extension("heartbeat", HeartbeatConfig)
    return HeartbeatPlugin(section) if section is not None else None
