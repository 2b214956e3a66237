"""Reload: read the configuration again, take in what can change, replace the workers.

An invalid file changes nothing. Of a valid one each plugin says which of the changed keys it can take in while it runs
(`Plugin.prepare_reload`); all of them are asked before the first is changed. What nobody takes in is reported as "needs a
restart" and stays as it was. Then every pool brings in a new generation; where the workers of one do not come up, its
configuration and how workers are started go back to what they were, so that the old generation can go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from trailboss.config.changes import changed_keys
from trailboss.config.problems import ConfigError
from trailboss.config.schema import Config
from trailboss.container.contract import Change, Plugin
from trailboss.container.startup import Container
from trailboss.log import logger

__all__ = ["Reloader", "Report"]

log = logger("container")


@dataclass(slots=True)
class Report:
    """What a reload has done."""

    #: Why nothing was changed: one line for each problem; "" otherwise.
    refused: str = ""
    #: Keys whose new values are in force.
    taken: list[str] = field(default_factory=list)
    #: Keys whose new values need a restart.
    needs_restart: list[str] = field(default_factory=list)
    #: Pools whose workers were replaced.
    pools: list[str] = field(default_factory=list)
    #: Pool -> why its old workers go on.
    failed: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """JSON values, for `trailboss.Reload`."""
        return {
            "refused": self.refused,
            "taken": self.taken,
            "needs_restart": self.needs_restart,
            "pools": self.pools,
            "failed": self.failed,
        }


class Reloader:
    """A service. `reread` loads the configuration as at the start, in a thread; it raises ConfigError."""

    def __init__(
        self,
        config: Config,
        plugins: Sequence[Plugin],
        container: Container,
        reread: Callable[[], Config] | None,
    ) -> None:
        #: What the keys that need a restart still say.
        self._started = config
        self._config = config
        self._plugins = plugins
        self._container = container
        self._reread = reread
        self._lock = trio.Lock()

    async def reload(self, reason: str) -> Report:
        """Do one reload. Never raises for what is wrong with the file or the workers: the report says it.

        On cancellation: what has begun goes on in the pools; the configuration keeps what it has taken in.
        """
        async with self._lock:
            report = Report()
            changes: list[Change] = []
            if self._reread is not None:
                try:
                    config = await trio.to_thread.run_sync(self._reread)
                    changed = changed_keys(self._started, config) | changed_keys(self._config, config)
                    for plugin in self._plugins:
                        change = plugin.prepare_reload(config, changed)
                        if change is not None:
                            changes.append(change)
                except (ConfigError, ValueError) as error:
                    report.refused = str(error)
                    log.error("reload refused: nothing was changed", reason=reason, text=report.refused)
                    return report
                taken = frozenset().union(*(change.taken for change in changes))
                report.taken = sorted(taken & changed_keys(self._config, config))
                report.needs_restart = sorted(changed_keys(self._started, config) - taken)
                os.environ.update(config.source.environment)
                for change in changes:
                    change.commit()
            if report.needs_restart:
                log.warning("some changes need a restart of the server", keys=report.needs_restart)
            report.failed = await self._container.reload(reason)
            report.pools = [name for name in self._container.ready_pools() if name not in report.failed]
            if report.failed:
                for change in changes:
                    change.revert(frozenset(report.failed))
            elif self._reread is not None:
                self._config = config
            log.info(
                "reload done" if not report.failed else "reload ended, old workers go on",
                reason=reason,
                taken=report.taken,
                pools=report.pools,
            )
            return report
