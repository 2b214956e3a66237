"""What the tests of the jobs plugin share: a pool without workers, and a plugin around it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from trailboss.config.schema import JobsConfig, PipelineConfig
from trailboss.container.contract import Caller, Services
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.contract import Books
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.testing.fake_pool import FakePool


@dataclass
class Server:
    """A jobs plugin that runs, its pool, and short ways to call it."""

    plugin: JobsPlugin
    pool: FakePool
    nursery: trio.Nursery
    stopping: trio.Event

    async def call(self, method: str, argument: object) -> object:
        """Call an RPC method as the RPC server does."""
        handler = {item.name: item.handler for item in self.plugin.rpc_methods()}[method]
        result = handler(argument, Caller())
        if isinstance(result, Awaitable):
            result = await result
        return result

    async def push(self, job_id: str, pipeline: str = "main", **options: int | bool) -> None:
        """Push one job by RPC."""
        await self.call("jobs.Push", make_push(job_id, pipeline, **options))

    @property
    def books(self) -> Books:
        """The books of the whole server; they balance at every look."""
        books = self.plugin.pipelines.total()
        assert books.balanced, books
        return books

    def running_ids(self) -> list[str]:
        """The ids of the jobs that run, in the order in which they began."""
        return [json.loads(work.context)["id"] for work in self.pool.running]


def make_push(job_id: str, pipeline: str = "main", **options: int | bool) -> jobs_pb2.PushRequest:
    """Return the message of one push."""
    return jobs_pb2.PushRequest(
        job=jobs_pb2.Job(
            id=job_id,
            job="App\\Task",
            payload=b"payload",
            options=jobs_pb2.Options(pipeline=pipeline, **options),
        )
    )


StartServer = Callable[..., "_Started"]


class _Started:
    """Async context manager of a running server; made by the fixture `server`."""

    def __init__(self, config: JobsConfig, pool: FakePool, opened: bool) -> None:
        self._manager = _run(config, pool, opened)

    async def __aenter__(self) -> Server:
        return await self._manager.__aenter__()

    async def __aexit__(self, *details: object) -> bool | None:
        return await self._manager.__aexit__(*details)  # type: ignore[arg-type]


@asynccontextmanager
async def _run(config: JobsConfig, pool: FakePool, opened: bool) -> AsyncIterator[Server]:
    plugin = JobsPlugin(config)
    plugin.attach_pool(pool)
    stopping = trio.Event()
    async with trio.open_nursery() as pool_nursery:
        await pool_nursery.start(pool.run)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(10):
                await nursery.start(plugin.run, Services(), stopping)
            if opened:
                await plugin.open()
            yield Server(plugin, pool, nursery, stopping)
            stopping.set()
        pool_nursery.cancel_scope.cancel()


@pytest.fixture
def start_server() -> StartServer:
    """Return a function that starts a jobs plugin: ``async with start_server(num_workers=2) as server``."""

    def start(
        *,
        num_workers: int = 2,
        pipelines: tuple[str, ...] = ("main",),
        consume: tuple[str, ...] = ("main",),
        script: Callable[..., object] | None = None,
        opened: bool = True,
        debug: bool = False,
        **config: object,
    ) -> _Started:
        return _Started(
            JobsConfig(
                pipelines={
                    name: PipelineConfig(driver="memory", config={"priority": 10}) for name in pipelines
                },
                consume=consume,
                **config,
            ),
            FakePool(num_workers, script, debug=debug),
            opened,
        )

    return start
