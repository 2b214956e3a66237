"""The life of the plugin: start without workers, open, stop intake, drain, and what is said at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import structlog.testing
import trio
import trio.testing

from trailboss.config.schema import JobsConfig, PipelineConfig
from trailboss.container.contract import Layer, PluginFailed, RpcRefused, Services
from trailboss.container.inspect import JobsInspector
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs import drivers
from trailboss.plugins.jobs.contract import Job
from trailboss.plugins.jobs.drivers.memory import MemoryDriver
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.testing.fake_pool import ACK, FakePool
from trailboss.workers.outcome import WorkerDied


async def test_healthy_without_a_worker() -> None:
    """The plugin starts, is healthy, lists and takes jobs, and stops, with no pool at all."""
    plugin = JobsPlugin(
        JobsConfig(pipelines={"main": PipelineConfig(driver="memory")}, consume=("main", "later"))
    )
    services = Services()
    stopping = trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, services, stopping)
            assert plugin.health().ok
            assert services.get(JobsInspector).job_states()[0]["Pipeline"] == "main"  # type: ignore[type-abstract]
            assert plugin.layer is Layer.DRIVER
            stopping.set()


def test_one_pool_is_asked_for() -> None:
    """The plugin asks for the pool `jobs` in the mode `jobs`, as the configuration describes it."""
    config = JobsConfig()
    (spec,) = JobsPlugin(config).pools()
    assert (spec.name, spec.mode, spec.config) == ("jobs", "jobs", config.pool)


async def test_unknown_driver_ends_the_start() -> None:
    """A pipeline with an unknown driver fails the start and names the known drivers."""
    plugin = JobsPlugin(JobsConfig(pipelines={"mail": PipelineConfig(driver="amqp")}))
    with pytest.raises(
        PluginFailed, match="unknown jobs driver 'amqp' of pipeline 'mail'; known drivers: memory"
    ):
        await plugin.run(Services(), trio.Event())


async def test_nothing_runs_before_open(start_server) -> None:
    """Jobs pushed and pipelines resumed before `open` run after it."""
    async with start_server(pipelines=("main", "other"), opened=False) as server:
        await server.push("a")
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["other"]))
        await server.push("b", "other")
        assert server.running_ids() == []
        await server.plugin.open()
        assert sorted(server.running_ids()) == ["a", "b"]


async def test_a_pause_before_the_start_is_over_stays(start_server) -> None:
    """What on_init pauses is not consumed at the end of the start; a later resume is, and so is one before it."""
    three = ("a", "b", "c")
    async with start_server(pipelines=three, consume=("a", "b"), num_workers=9, opened=False) as server:
        await server.call("jobs.Pause", jobs_pb2.Pipelines(pipelines=["a", "b"]))
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["b", "c"]))
        for name in three:
            await server.push(name, name)
        await server.plugin.open()
        assert server.running_ids() == ["b", "c"]
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["a"]))
        assert server.running_ids() == ["b", "c", "a"]


async def test_drain_waits_for_what_runs(start_server) -> None:
    """After close_intake nothing new runs; drain returns when the last run is settled."""
    async with start_server(num_workers=2) as server:
        for name in ("a", "b", "c"):
            await server.push(name)
        await server.plugin.close_intake()
        drained = trio.Event()

        async def drain() -> None:
            await server.plugin.drain()
            drained.set()

        server.nursery.start_soon(drain)
        server.pool.finish(server.pool.running[0])
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        await server.push("from a worker that still runs")
        assert server.running_ids() == ["b"]
        server.pool.finish(server.pool.running[0])
        with trio.fail_after(5):
            await drained.wait()
        assert (server.books.done, server.books.waiting) == (2, 2)


async def test_drain_deadline_gives_jobs_back(start_server, autojump_clock) -> None:
    """What still runs at the deadline goes back to the front of its queue, named with pid and age."""
    async with start_server(num_workers=2) as server:
        for name in ("a", "b", "c"):
            await server.push(name)
        await trio.sleep(3)
        await server.plugin.close_intake()
        with structlog.testing.capture_logs() as logs, trio.move_on_after(2) as scope:
            await server.plugin.drain()
        assert scope.cancelled_caught
        returned = {entry["id"]: entry for entry in logs if "goes back" in entry["event"]}
        assert sorted(returned) == ["a", "b"]
        assert returned["a"]["running_seconds"] == pytest.approx(5.0, abs=0.01)
        assert {returned["a"]["pid"], returned["b"]["pid"]} == {work.pid for work in server.pool.running}
        driver = server.plugin.pipelines.by_name["main"].driver
        assert [(job.id, job.attempts) for job in driver.ready] == [("a", 0), ("b", 0), ("c", 0)]
        before = server.books
        server.pool.close()
        assert server.books == before
        assert server.plugin.dispatcher.in_flight == 0


async def test_end_says_what_memory_loses(start_server) -> None:
    """Jobs that are left in memory at the end are counted in the log, by pipeline."""
    with structlog.testing.capture_logs() as logs:
        async with start_server(num_workers=1, pipelines=("main", "empty")) as server:
            for name in ("a", "b", "c"):
                await server.push(name)
            await server.push("d", delay=60)
            server.pool.finish(server.pool.running[0], ACK)
            server.pool.close()
    lost = [entry for entry in logs if "lost with this process" in entry["event"]]
    assert [(entry["pipeline"], entry["jobs"], entry["delayed"]) for entry in lost] == [("main", 3, 2)]


class WaitingDriver(MemoryDriver):
    """The memory driver as a broker's would look: every verb takes its time, and may fail when told so."""

    kind: ClassVar[str] = "waiting"
    fail_verbs: ClassVar[set[str]] = set()
    crash: ClassVar[trio.Event | None] = None

    async def _later(self, verb: str) -> None:
        await trio.sleep(0.01)
        if verb in self.fail_verbs:
            raise OSError(f"the broker has gone before {verb}")

    async def run(self, stopping: trio.Event, task_status=trio.TASK_STATUS_IGNORED) -> None:  # type: ignore[no-untyped-def]
        await self._later("connect")
        task_status.started()
        if self.crash is not None:
            await self.crash.wait()
            raise OSError("the broker has gone for good")
        await stopping.wait()

    async def push(self, jobs: Sequence[Job]) -> None:  # type: ignore[override]
        await self._later("push")
        super().push(jobs)
        self.host.ready_changed()

    async def ack(self, job: Job) -> None:  # type: ignore[override]
        await self._later("ack")
        super().ack(job)

    async def requeue(self, job: Job, delay_seconds: float) -> None:  # type: ignore[override]
        await self._later("requeue")
        super().requeue(job, delay_seconds)


@pytest.fixture
def waiting_driver(monkeypatch: pytest.MonkeyPatch) -> type[WaitingDriver]:
    """Make the driver `waiting` known for one test."""
    monkeypatch.setattr(drivers, "DRIVERS", {**drivers.DRIVERS, "waiting": WaitingDriver})
    monkeypatch.setattr(WaitingDriver, "fail_verbs", set())
    monkeypatch.setattr(WaitingDriver, "crash", None)
    return WaitingDriver


def waiting_plugin(pool: FakePool) -> JobsPlugin:
    plugin = JobsPlugin(
        JobsConfig(
            pipelines={"slow": PipelineConfig(driver="waiting"), "main": PipelineConfig(driver="memory")},
            consume=("slow", "main"),
        )
    )
    plugin.attach_pool(pool)
    return plugin


async def test_driver_that_has_to_wait(start_server, autojump_clock, waiting_driver) -> None:
    """A driver whose verbs are awaited works the same; the stop waits for acks that are on their way."""
    pool = FakePool(2)
    plugin = waiting_plugin(pool)
    push = {item.name: item.handler for item in plugin.rpc_methods()}["jobs.Push"]
    stopping = trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, Services(), stopping)
            await plugin.open()
            request = jobs_pb2.PushRequest(
                job=jobs_pb2.Job(id="a", job="t", options=jobs_pb2.Options(pipeline="slow"))
            )
            await push(request, None)
            assert len(pool.running) == 1
            pool.finish(pool.running[0])
            assert plugin.pipelines.total().running == 1
            stopping.set()
    assert plugin.pipelines.total().done == 1


async def test_failed_settlement_is_counted_and_logged(autojump_clock, waiting_driver) -> None:
    """An ack that the broker does not take is logged and counted; the plugin goes on."""
    waiting_driver.fail_verbs.add("ack")
    pool = FakePool(2)
    plugin = waiting_plugin(pool)
    push = {item.name: item.handler for item in plugin.rpc_methods()}["jobs.Push"]
    stopping = trio.Event()
    with trio.fail_after(10), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, Services(), stopping)
            await plugin.open()
            for name in ("a", "b"):
                job = jobs_pb2.Job(id=name, job="t", options=jobs_pb2.Options(pipeline="slow"))
                await push(jobs_pb2.PushRequest(job=job), None)
            pool.finish(pool.running[0])
            await trio.sleep(1)
            assert plugin.state_detail()["failed_settlements"] == 1
            assert plugin.health().ok
            stopping.set()
            pool.close()
    assert any("could not be settled" in entry["event"] for entry in logs)


async def test_driver_that_cannot_connect_ends_the_start(autojump_clock, waiting_driver) -> None:
    """A driver that fails while it connects fails the start with the pipeline's name."""
    waiting_driver.fail_verbs.add("connect")
    plugin = waiting_plugin(FakePool(1))
    with pytest.raises(PluginFailed, match="pipeline slow: the broker has gone before connect"):
        with trio.fail_after(10):
            await plugin.run(Services(), trio.Event())


async def test_driver_that_dies_puts_its_pipeline_out_of_order(autojump_clock, waiting_driver) -> None:
    """A driver that ends by itself makes its own pipeline unusable and the plugin unhealthy, and nothing else."""
    waiting_driver.crash = trio.Event()
    plugin = waiting_plugin(FakePool(1))
    handlers = {item.name: item.handler for item in plugin.rpc_methods()}
    stopping = trio.Event()
    with trio.fail_after(10), structlog.testing.capture_logs():
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, Services(), stopping)
            await plugin.open()
            waiting_driver.crash.set()
            await trio.testing.wait_all_tasks_blocked()
            assert (plugin.health().ok, plugin.health().reason) == (
                False,
                "slow: the broker has gone for good",
            )
            job = jobs_pb2.Job(id="a", job="t", options=jobs_pb2.Options(pipeline="slow"))
            with pytest.raises(
                RpcRefused, match="pipeline slow is out of order: the broker has gone for good"
            ):
                handlers["jobs.Push"](jobs_pb2.PushRequest(job=job), None)
            with pytest.raises(RpcRefused, match="out of order"):
                handlers["jobs.Resume"](jobs_pb2.Pipelines(pipelines=["slow"]), None)
            job.options.pipeline = "main"
            handlers["jobs.Push"](jobs_pb2.PushRequest(job=job), None)
            assert plugin.pipelines.by_name["main"].books().running == 1
            stopping.set()


async def test_late_death_of_a_returned_job_changes_nothing(start_server, autojump_clock) -> None:
    """A worker killed after the drain deadline ends a run that was given back already; the books stay."""
    async with start_server(num_workers=1) as server:
        await server.push("a")
        await server.plugin.close_intake()
        with trio.move_on_after(0.1):
            await server.plugin.drain()
        work = server.pool.running[0]
        server.pool.finish(work, WorkerDied("killed", pid=work.pid, cause="stop"))
        assert (server.books.waiting, server.books.running) == (1, 0)


async def test_state_detail_is_json(start_server) -> None:
    """The figures for people are plain JSON values and hold the books."""
    import json

    async with start_server(num_workers=1) as server:
        await server.push("a")
        await server.push("b")
        detail = json.loads(json.dumps(server.plugin.state_detail()))
        assert detail["pipelines"]["main"]["waiting"] == 1
        assert (detail["in_flight"], detail["total"]["running"]) == (1, 1)
