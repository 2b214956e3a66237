"""A third-party plugin that lets tests look into a server: which tasks it has, and what happens when its wall clock moves.

Installed by `live_server.install_plugins`; its methods are called through RPC like any others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import trio

from trailboss.container.contract import Plugin, RpcMethod, Services
from trailboss.plugins.jobs.drivers.memory import MemoryDriver
from trailboss.testing import faults
from trailboss.workers.pool import PoolSet

real_time = time.time
offset_seconds = 0.0


class Census(Plugin):
    """Counts tasks, moves the clock, loses things."""

    name = "census"
    _services: Services | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._services = services
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        return (
            RpcMethod("census.Tasks", lambda argument, caller: tasks()),
            RpcMethod("census.Jump", lambda argument, caller: jump(argument)),
            RpcMethod("census.LoseIdle", lambda argument, caller: self._lose_idle(argument)),
            RpcMethod("census.BreakConsumer", lambda argument, caller: break_consumer(argument)),
        )

    def _lose_idle(self, name: object) -> int:
        pools = self._services.find(PoolSet) if self._services is not None else None
        pool = pools.get(str(name)) if pools is not None else None
        assert pool is not None
        return faults.lose_idle_worker(pool)


def tasks() -> dict[str, int]:
    """How many tasks of each name there are."""
    found: Counter[str] = Counter()
    root = trio.lowlevel.current_root_task()
    rest = [root] if root is not None else []
    while rest:
        task = rest.pop()
        found[task.name] += 1
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return dict(found)


def jump(seconds: object) -> float:
    """Move the wall clock of this process, as an operator or NTP does with that of the machine."""
    global offset_seconds
    assert isinstance(seconds, (int, float))
    offset_seconds += seconds
    time.time = lambda: real_time() + offset_seconds
    return time.time()


def break_consumer(times: object) -> int:
    """Let the next `times` attempts to take a job from a queue in memory fail."""
    receive, left = MemoryDriver.receive, [times]

    def broken(self: MemoryDriver) -> object:
        if left[0] > 0:  # type: ignore[operator]
            left[0] -= 1  # type: ignore[operator]
            raise RuntimeError("the queue broke off")
        return receive(self)

    MemoryDriver.receive = broken  # type: ignore[method-assign,assignment]
    return int(times)  # type: ignore[call-overload]


def census(config: object) -> Plugin:
    return Census()
