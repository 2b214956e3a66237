"""informer: RoadRunner's rows, texts and silences over fake pools."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from trailboss.config.schema import PoolConfig
from trailboss.container.contract import Access, Caller, RpcRefused, Services
from trailboss.container.inspect import JobsInspector
from trailboss.plugins.informer.plugin import InformerPlugin
from trailboss.rpc.codec import encode_result
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.pool import PoolSet, ResetFailed, WorkerState


class FakePool:
    """A pool that notes what is asked of it."""

    def __init__(
        self, name: str, workers: list[WorkerState], failure: str = "", delay_seconds: float = 0.0
    ) -> None:
        self.name = name
        self.config = PoolConfig(boot_timeout=10.0)
        self.asked: list[str] = []
        self._workers = workers
        self._failure = failure
        self._delay_seconds = delay_seconds

    def workers(self) -> list[WorkerState]:
        return self._workers

    async def add_worker(self) -> None:
        await trio.sleep(self._delay_seconds)
        self.asked.append("add")
        if self._failure:
            raise ResetFailed(self._failure)

    async def remove_worker(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append("remove")
        if self._failure:
            raise ResetFailed(self._failure)


def worker(**changes: Any) -> WorkerState:
    values: dict[str, Any] = {
        "pid": 7,
        "status": 1,
        "status_text": "ready",
        "executions": 3,
        "created_ns": 1_700_000_000_000_000_000,
        "memory_bytes": 1024,
        "cpu_percent": 0.5,
        "command": "",
        "doing": "",
        "doing_since_seconds": 0.0,
        "generation": 1,
    }
    return WorkerState(**{**values, **changes})


async def started(
    nursery: trio.Nursery, *pools: FakePool, rows: list[dict[str, object]] | None = None
) -> Any:
    """Start the plugin over `pools`; returns a function that calls its methods."""
    services = Services()
    pool_set = PoolSet()
    for pool in pools:
        pool_set.add(cast(Any, pool))
    services.provide(PoolSet, pool_set)
    if rows is not None:
        services.provide(cast(Any, JobsInspector), SimpleNamespace(job_states=lambda: rows))
    plugin = InformerPlugin()
    await nursery.start(plugin.run, services, trio.Event())
    methods = {method.name: method for method in plugin.rpc_methods()}
    return lambda name, argument: cast(Any, methods[f"informer.{name}"].handler(argument, Caller()))


async def test_the_list_names_plugins_with_workers(nursery: trio.Nursery) -> None:
    """informer.List gives the names of all pools."""
    call = await started(nursery, FakePool("jobs", []), FakePool("http", []))
    assert call("List", True) == ["jobs", "http"]


def test_before_the_start_the_list_is_empty() -> None:
    """The always-on method answers at any time."""
    methods = {method.name: method for method in InformerPlugin().rpc_methods()}
    assert methods["informer.List"].handler(True, Caller()) == []
    assert methods["informer.List"].access is Access.ALWAYS


async def test_rows_of_workers_are_roadrunners(nursery: trio.Nursery) -> None:
    """informer.Workers in JSON is what the recorded server gave, key by key."""
    call = await started(nursery, FakePool("http", [worker()]))
    expected = (
        b'{"workers":[{"pid":7,"status":1,"numExecs":3,"created":1700000000000000000,"memoryUsage":1024,'
        b'"CPUPercent":0.5,"command":"","statusStr":"ready"}]}'
    )
    assert encode_result("json", call("Workers", "http")) == expected


async def test_secrets_in_a_command_are_hidden(nursery: trio.Nursery) -> None:
    """The command line of a worker is shown without what looks like a secret in it."""
    call = await started(nursery, FakePool("http", [worker(command="php w.php --token=hunter2")]))
    assert b'"command":"php w.php --token=***"' in encode_result("json", call("Workers", "http"))


@pytest.mark.parametrize("plugin", ["http", "nope", ""])
async def test_no_workers_are_null(nursery: trio.Nursery, plugin: str) -> None:
    """A pool without workers and a name that does not exist both give null, without an error."""
    call = await started(nursery, FakePool("http", []))
    assert encode_result("json", call("Workers", plugin)) == b'{"workers":null}'


async def test_jobs_come_from_the_jobs_plugin(nursery: trio.Nursery) -> None:
    """informer.Jobs gives the rows with Go's key names for the plugin jobs, null for everybody else."""
    row: dict[str, object] = {"Pipeline": "test", "Driver": "memory", "Ready": True}
    call = await started(nursery, FakePool("jobs", []), rows=[row])
    assert (
        encode_result("json", call("Jobs", "jobs")) == b'[{"Pipeline":"test","Driver":"memory","Ready":true}]'
    )
    assert call("Jobs", "http") is None


async def test_without_a_jobs_plugin_there_are_no_jobs(nursery: trio.Nursery) -> None:
    """Nobody provides the figures: null."""
    call = await started(nursery)
    assert call("Jobs", "jobs") is None


async def test_workers_are_added_and_removed(nursery: trio.Nursery) -> None:
    """The pool is asked, and the answer is RoadRunner's false."""
    pool = FakePool("jobs", [])
    call = await started(nursery, pool)
    assert await call("AddWorker", "jobs") is False
    assert await call("RemoveWorker", "jobs") is False
    assert pool.asked == ["add", "remove"]


@pytest.mark.parametrize("method", ["AddWorker", "RemoveWorker"])
async def test_a_plugin_without_workers_cannot_be_managed(nursery: trio.Nursery, method: str) -> None:
    """RoadRunner's text for a plugin that has no pool."""
    call = await started(nursery)
    with pytest.raises(RpcRefused, match=r"^plugin kv does not support workers management$"):
        await call(method, "kv")


@pytest.mark.parametrize("method", ["AddWorker", "RemoveWorker"])
async def test_the_reason_of_a_failure_is_told(nursery: trio.Nursery, method: str) -> None:
    """What the pool says is the error text."""
    call = await started(nursery, FakePool("jobs", [], failure="the new worker did not start: boom"))
    with pytest.raises(RpcRefused, match="the new worker did not start: boom"):
        await call(method, "jobs")


async def test_adding_waits_as_long_as_a_boot_may_take(nursery: trio.Nursery, autojump_clock: Any) -> None:
    """boot_timeout + 5 s bounds the call."""
    call = await started(nursery, FakePool("jobs", [], delay_seconds=1000))
    began = trio.current_time()
    with pytest.raises(RpcRefused, match="waited 15s"):
        await call("AddWorker", "jobs")
    assert trio.current_time() - began == pytest.approx(15)


def test_changing_the_number_of_workers_is_sensitive_and_needs_the_pool() -> None:
    """The gate refuses both while on_init runs, and for a booting worker of that pool."""
    methods = {method.name: method for method in InformerPlugin().rpc_methods()}
    for name in ("informer.AddWorker", "informer.RemoveWorker"):
        assert methods[name].access is Access.SENSITIVE
        needs_pool = methods[name].needs_pool
        assert callable(needs_pool)
        assert needs_pool("jobs") == "jobs"


async def test_the_plugin_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin."""
    await check_plugin(InformerPlugin)
