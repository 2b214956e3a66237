"""The server about itself: rpc.Version, rpc.Config, trailboss.State, Workers, Deaths, Refusals, Quarantine, Methods.

The plugin is up before the RPC port is bound, so its always-on methods can answer from the first moment. It keeps
nothing of its own: each answer is read from whoever knows it, at the time of the call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import trio

import trailboss
from trailboss import ROADRUNNER_COMPAT_VERSION
from trailboss.config.redact import redacted
from trailboss.container.contract import (
    Access,
    Caller,
    Layer,
    Plugin,
    RpcMethod,
    RpcRefused,
    Services,
    WholePhase,
    raw,
)
from trailboss.container.inspect import HttpInspector
from trailboss.container.state import ServerState
from trailboss.reloading import Reloader
from trailboss.rpc.registry import Registry
from trailboss.upgrading import UpgradeFailed, Upgrader
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.glance import describe_pools
from trailboss.workers.pool import PoolSet
from trailboss.workers.watchdog import Watchdog

__all__ = ["CorePlugin"]

#: Refusals in an answer; more are not kept.
REFUSALS_MAX = 250
#: The answer without a web server.
NO_REFUSALS: Mapping[str, object] = {"total": 0, "counts": [], "refusals": []}


class CorePlugin(Plugin):
    """Answers what concerns the server as a whole. `merged` is the whole merged configuration, secrets included."""

    name = "core"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, merged: Mapping[str, object]) -> None:
        text = json.dumps(redacted(merged), ensure_ascii=False, separators=(",", ":"), default=str)
        self._config_text = raw(text.encode("utf-8", "replace"))
        self._services: Services | None = None
        self._watchdog: Watchdog | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Remember where the others are to be found, and run the watchdog."""
        self._services = services
        self._watchdog = services.find(Watchdog)
        async with trio.open_nursery() as nursery:
            if self._watchdog is not None:
                state = services.get(ServerState)
                self._watchdog.gate_is_stuck = lambda: state.whole is WholePhase.READY and not state.gate_open
                nursery.start_soon(self._watchdog.run)
            task_status.started()
            await stopping.wait()
            nursery.cancel_scope.cancel("the server stops")

    def state_detail(self) -> Mapping[str, object]:
        """Say what the watchdog has found."""
        return {"watchdog": self._watchdog.describe()} if self._watchdog is not None else {}

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the services `rpc` and `trailboss`."""
        always = Access.ALWAYS
        core = self.name
        return (
            RpcMethod(
                "rpc.Version", self._version, always, plugin=core, doc="RoadRunner version that SDKs see"
            ),
            RpcMethod(
                "rpc.Config",
                self._config,
                result=raw,
                plugin=core,
                doc="configuration as JSON, secrets hidden",
            ),
            RpcMethod(
                "trailboss.State", self._state, always, plugin=core, doc="phases of plugins, gate, pools"
            ),
            RpcMethod(
                "trailboss.Authenticate",
                self._authenticate,
                always,
                argument=str,
                plugin=core,
                doc="say who the connection is by the token in TRAILBOSS_TOKEN; answers with the role",
            ),
            RpcMethod(
                "trailboss.Deaths", self._deaths, plugin=core, doc="the last worker deaths, oldest first"
            ),
            RpcMethod(
                "trailboss.Workers",
                self._workers,
                always,
                plugin=core,
                doc="pools, and what each of their workers does now; of one plugin where its name is given",
            ),
            RpcMethod(
                "trailboss.Refusals",
                self._refusals,
                plugin=core,
                doc="the last requests that were refused and what held the workers, oldest first",
            ),
            RpcMethod(
                "trailboss.Reload",
                self._reload,
                Access.SENSITIVE,
                plugin=core,
                deadline_seconds=float("inf"),  # the pools' own limits count
                doc="read the configuration again and replace all workers; says what was taken in and what failed",
            ),
            RpcMethod(
                "trailboss.Upgrade",
                self._upgrade,
                Access.SENSITIVE,
                plugin=core,
                deadline_seconds=float("inf"),  # endure.upgrade_timeout counts
                doc="start the program anew with the listening sockets and leave when it is ready; returns its process id",
            ),
            RpcMethod(
                "trailboss.Quarantine",
                self._quarantine,
                plugin=core,
                doc="executions that are refused because they killed one worker after the other",
            ),
            RpcMethod(
                "trailboss.LiftQuarantine",
                self._lift_quarantine,
                Access.SENSITIVE,
                argument=str,
                plugin=core,
                doc="let an execution in quarantine run again, by its fingerprint",
            ),
            RpcMethod("trailboss.Methods", self._methods, always, plugin=core, doc="this list"),
        )

    def _version(self, _argument: object, _caller: Caller) -> str:
        return ROADRUNNER_COMPAT_VERSION

    def _authenticate(self, token: object, caller: Caller) -> Caller:
        callers = self._services.find(Callers) if self._services is not None else None
        found = (
            callers.authenticate(token, caller) if callers is not None and isinstance(token, str) else None
        )
        if found is None:
            raise RpcRefused("authentication failed: no process that runs now has this token")
        return found

    def _config(self, _argument: object, _caller: Caller) -> raw:
        return self._config_text

    def _state(self, _argument: object, _caller: Caller) -> dict[str, object]:
        return self._known_services().get(ServerState).as_dict()

    def _deaths(self, _argument: object, _caller: Caller) -> list[dict[str, object]]:
        deaths = self._known_services().find(Deaths)
        if deaths is None:
            return []
        return [record.as_dict() for record in deaths.records()]

    def _workers(self, argument: object, _caller: Caller) -> dict[str, object]:
        services = self._known_services()
        pools = list(services.find(PoolSet) or ())
        if isinstance(argument, str) and argument:
            pools = [pool for pool in pools if pool.name == argument]
        state = services.get(ServerState)
        return {
            "version": trailboss.__version__,
            "phase": state.whole.value,
            "uptime_seconds": round(state.uptime_seconds, 3),
            "pools": describe_pools(pools, time.time_ns()),
        }

    def _refusals(self, _argument: object, _caller: Caller) -> dict[str, object]:
        inspector = self._known_services().find(HttpInspector)  # type: ignore[type-abstract]
        return (inspector.http_refusals(REFUSALS_MAX) if inspector is not None else {}) or dict(NO_REFUSALS)

    async def _reload(self, _argument: object, caller: Caller) -> dict[str, object]:
        reloader = self._known_services().get(Reloader)
        report = await reloader.reload(f"asked for by {caller.role.value}, pid {caller.pid}")
        return report.as_dict()

    async def _upgrade(self, _argument: object, caller: Caller) -> int:
        upgrader = self._known_services().get(Upgrader)
        try:
            return await upgrader.upgrade(f"asked for by {caller.role.value}, pid {caller.pid}")
        except UpgradeFailed as error:
            raise RpcRefused(str(error)) from error

    def _quarantine(self, _argument: object, _caller: Caller) -> list[dict[str, object]]:
        rows = []
        for pool in self._known_services().find(PoolSet) or ():
            now = trio.current_time()
            rows += [
                {
                    "pool": pool.name,
                    "fingerprint": entry.fingerprint,
                    "doing": entry.label,
                    "cause": entry.cause,
                    "deaths": len(entry.deaths),
                    "refused": entry.refused,
                    "seconds_left": round(max(0.0, (entry.until or 0.0) - now), 1),
                }
                for entry in pool.quarantine.entries(now)
            ]
        return rows

    def _lift_quarantine(self, fingerprint: str, _caller: Caller) -> bool:
        lifted = [pool.quarantine.remove(fingerprint) for pool in self._known_services().find(PoolSet) or ()]
        if not any(lifted):
            raise RpcRefused(f"nothing in quarantine has the fingerprint {fingerprint}")
        return True

    def _methods(self, _argument: object, _caller: Caller) -> list[dict[str, object]]:
        registry = self._known_services().find(Registry)
        return registry.describe() if registry is not None else []

    def _known_services(self) -> Services:
        if self._services is None:
            raise RpcRefused("service not ready: phase=starting")
        return self._services
