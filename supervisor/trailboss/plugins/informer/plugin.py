"""The plugin `informer`: which plugins have workers, what they do, and one worker more or less.

Names, keys and status numbers are RoadRunner's, because its command line and monitoring scripts read them. Figures are
read at the time of the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import trio

from trailboss.config.redact import redacted_text
from trailboss.container.contract import Access, Caller, Layer, Plugin, RpcMethod, RpcRefused, Services
from trailboss.container.inspect import JobsInspector
from trailboss.rpc.codec import struct
from trailboss.workers.pool import Pool, PoolSet, ResetFailed, WorkerState

__all__ = ["InformerPlugin"]

#: A call that boots a worker may take as long as that worker's boot may, and this much more.
MARGIN_SECONDS = 5.0


class InformerPlugin(Plugin):
    """informer.List, Workers, Jobs, AddWorker, RemoveWorker, over the server's PoolSet."""

    name = "informer"
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
        """Remember where pools and queues are to be found."""
        self._services = services
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the service `informer`."""
        sensitive, own_limit = Access.SENSITIVE, float("inf")
        return (
            RpcMethod("informer.List", self._list, Access.ALWAYS, doc="plugins that have workers"),
            RpcMethod("informer.Workers", self._workers, argument=str, doc="workers of a plugin"),
            RpcMethod("informer.Jobs", self._jobs, argument=str, doc="queues of a plugin"),
            RpcMethod(
                "informer.AddWorker",
                self._add_worker,
                sensitive,
                argument=str,
                needs_pool=_same,
                deadline_seconds=own_limit,
                doc="one worker more; returns when it is ready",
            ),
            RpcMethod(
                "informer.RemoveWorker",
                self._remove_worker,
                sensitive,
                argument=str,
                needs_pool=_same,
                doc="one worker less; the last one stays",
            ),
        )

    def _list(self, _argument: object, _caller: Caller) -> list[str]:
        pools = self._pools()
        return pools.names() if pools is not None else []

    def _workers(self, plugin: str, _caller: Caller) -> struct:
        pools = self._pools()
        pool = pools.get(plugin) if pools is not None else None
        workers = [_row(worker) for worker in pool.workers()] if pool is not None else []
        return struct(workers=workers or None)

    def _jobs(self, plugin: str, _caller: Caller) -> list[struct] | None:
        inspector = self._services.find(JobsInspector) if self._services is not None else None  # type: ignore[type-abstract]
        if plugin != "jobs" or inspector is None:
            return None
        return [struct(row) for row in inspector.job_states()] or None

    async def _add_worker(self, plugin: str, _caller: Caller) -> bool:
        pool = self._pool(plugin)
        await _bounded(
            pool.add_worker(), pool.config.boot_timeout + MARGIN_SECONDS, f"a new worker of {plugin} to boot"
        )
        return False  # as RoadRunner, whose result is never set

    async def _remove_worker(self, plugin: str, _caller: Caller) -> bool:
        pool = self._pool(plugin)
        try:
            await pool.remove_worker()
        except ResetFailed as error:
            raise RpcRefused(str(error)) from error
        return False

    def _pools(self) -> PoolSet | None:
        return self._services.find(PoolSet) if self._services is not None else None

    def _pool(self, plugin: str) -> Pool:
        pools = self._pools()
        pool = pools.get(plugin) if pools is not None else None
        if pool is None:
            raise RpcRefused(f"plugin {plugin} does not support workers management")
        return pool


def _same(plugin: str) -> str:
    return plugin


def _row(worker: WorkerState) -> struct:
    return struct(
        pid=worker.pid,
        status=worker.status,
        numExecs=worker.executions,
        created=worker.created_ns,
        memoryUsage=worker.memory_bytes,
        CPUPercent=worker.cpu_percent,
        command=redacted_text(worker.command),
        statusStr=worker.status_text,
    )


async def _bounded(work: Awaitable[None], seconds: float, what: str) -> None:
    with trio.move_on_after(seconds) as scope:
        try:
            await work
        except ResetFailed as error:
            raise RpcRefused(str(error)) from error
    if scope.cancelled_caught:
        raise RpcRefused(f"waited {seconds:g}s for {what}; it goes on without this call")
