"""Reload: read the configuration again, take in what can change, replace the workers.

An invalid file changes nothing. Of a valid one each plugin says which of the changed keys it can take in while it runs
(`Plugin.prepare_reload`); all of them are asked before the first is changed. What nobody takes in is reported as "needs a
restart" and stays as it was. Then every pool brings in a new generation; where the workers of one do not come up, its
configuration and how workers are started go back to what they were, so that the old generation can go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from trailboss.config.changes import changed_keys, is_under
from trailboss.config.problems import ConfigError
from trailboss.config.schema import Config
from trailboss.container.contract import Change, Plugin, WholePhase
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
        #: Variables of the dotenv file that are in this process's environment.
        self._exported = dict(config.source.environment)
        self._lock = trio.Lock()

    async def reload(self, reason: str) -> Report:
        """Do one reload. Never raises for what is wrong with the file or the workers: the report says it.

        Refused before the server is ready, and once it stops. On cancellation before anything was changed: nothing is;
        later it goes on to its end first, since what workers do not come up with has to be taken back.
        """
        async with self._lock:
            report = Report()
            config, changes = self._config, list[Change]()
            try:
                self._refuse_unless_ready()
                if self._reread is not None:
                    config = await trio.to_thread.run_sync(self._reread)
                    self._refuse_unless_ready()
                    changes = self._prepare(config)
            except Exception as error:  # also what a plugin of somebody else raises: the server goes on
                expected = isinstance(error, (ConfigError, ValueError))
                report.refused = str(error) if expected else f"internal error: {error!r}"
                log.error("reload refused: nothing was changed", reason=reason, text=report.refused)
                return report
            with trio.CancelScope(shield=True):  # ends with the pools at the latest
                await self._carry_out(report, config, changes, reason)
            return report

    def _refuse_unless_ready(self) -> None:
        phase = self._container.state.whole
        if phase is not WholePhase.READY:
            raise ValueError(f"the server is {phase.value}; try again when it is ready")

    def _prepare(self, config: Config) -> list[Change]:
        changed = changed_keys(self._started, config) | changed_keys(self._config, config)
        changes = [plugin.prepare_reload(config, changed) for plugin in self._plugins]
        return [change for change in changes if change is not None]

    async def _carry_out(
        self, report: Report, config: Config, changes: Sequence[Change], reason: str
    ) -> None:
        taken = frozenset().union(*(change.taken for change in changes))
        now_taken = taken & changed_keys(self._config, config)
        report.needs_restart = sorted(changed_keys(self._started, config) - taken)
        exported = self._exported
        if self._reread is not None:
            self._export(config.source.environment)
        for change in changes:
            change.commit()
        if report.needs_restart:
            log.warning("some changes need a restart of the server", keys=report.needs_restart)
        report.failed = await self._container.reload(reason)
        report.pools = [name for name in self._container.ready_pools() if name not in report.failed]
        if report.failed:
            for change in changes:
                change.revert(frozenset(report.failed))
            self._export(exported)
            stay = [f"{name}.pool" for name in report.pools]
            now_taken = frozenset(key for key in now_taken if is_under(key, "logs", *stay))
        else:
            self._config = config
        report.taken = sorted(now_taken)
        log.info(
            "reload done" if not report.failed else "reload ended, old workers go on",
            reason=reason,
            taken=report.taken,
            pools=report.pools,
        )

    def _export(self, variables: Mapping[str, str]) -> None:
        """Put the variables of the dotenv file into the environment, and take out those it has no more."""
        for name in self._exported.keys() - variables.keys():
            os.environ.pop(name, None)
        os.environ.update(variables)
        self._exported = dict(variables)
