"""The plugin `resetter`: replace the workers of a pool, new ones first.

The call returns when the new workers serve. Where they do not boot, the old ones go on and the caller gets the reason:
unlike RoadRunner, whose command line drops that error.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trailboss.container.contract import Access, Caller, Layer, Plugin, RpcMethod, RpcRefused, Services
from trailboss.workers.pool import PoolSet, ResetFailed

__all__ = ["ResetterPlugin"]

#: Methods with a limit of their own get that and this much more (design: settled points).
MARGIN_SECONDS = 5.0


class ResetterPlugin(Plugin):
    """resetter.List and Reset, over the server's PoolSet."""

    name = "resetter"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self) -> None:
        self._services: Services | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Remember where the pools are to be found."""
        self._services = services
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the service `resetter`."""
        return (
            RpcMethod(
                "resetter.List", self._list, Access.ALWAYS, doc="plugins whose workers can be replaced"
            ),
            RpcMethod(
                "resetter.Reset",
                self._reset,
                Access.SENSITIVE,
                argument=str,
                needs_pool=_same,
                deadline_seconds=float("inf"),  # the pool's own limit counts
                doc="replace the workers of a plugin; returns when the new ones serve",
            ),
        )

    def _list(self, _argument: object, _caller: Caller) -> list[str]:
        pools = self._pools()
        return pools.names() if pools is not None else []

    async def _reset(self, plugin: str, caller: Caller) -> bool:
        pools = self._pools()
        pool = pools.get(plugin) if pools is not None else None
        if pool is None:
            raise RpcRefused(f"no such plugin: {plugin}")
        seconds = pool.config.reset_timeout + MARGIN_SECONDS
        with trio.move_on_after(seconds) as scope:
            try:
                await pool.reset(f"asked for by {caller.role.value}, pid {caller.pid}")
            except ResetFailed as error:
                raise RpcRefused(str(error)) from error
        if scope.cancelled_caught:
            raise RpcRefused(
                f"the reset of {plugin} has not ended within {seconds:g}s; it goes on without this call"
            )
        return True

    def _pools(self) -> PoolSet | None:
        return self._services.find(PoolSet) if self._services is not None else None


def _same(plugin: str) -> str:
    return plugin
