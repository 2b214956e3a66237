"""What the queues tell at a scrape."""

from __future__ import annotations

import pytest

from trailboss.container.contract import RpcRefused
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.figures import PIPELINES_MAX
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.workers.outcome import Answer

from .conftest import make_push

GIVEN_UP = Answer(4, b"", b'{"type":1,"data":{"message":"no","requeue":false,"delay_seconds":0}}')


def scraped(plugin: JobsPlugin) -> dict[str, float]:
    """The lines of a scrape without buckets and sums; label values after the name."""
    return {
        ",".join((family.name + sample.suffix, *(value for _, value in sample.labels))): sample.value
        for family in plugin._figures()
        for sample in family.samples
        if sample.suffix not in ("_bucket", "_sum")
    }


async def test_roadrunners_names_from_the_first_scrape(start_server) -> None:
    """The four gauges are there and zero, the families with labels come with the first push."""
    async with start_server() as server:
        kinds = {family.name: family.kind for family in server.plugin._figures()}
        found = scraped(server.plugin)

    assert [kinds[f"rr_jobs_{name}"] for name in ("jobs_ok", "jobs_err", "push_ok", "push_err")] == [
        "gauge"
    ] * 4
    assert (kinds["rr_jobs_requests_total"], kinds["rr_jobs_push_latency"]) == ("counter", "histogram")
    assert [found[f"rr_jobs_{name}"] for name in ("jobs_ok", "jobs_err", "push_ok", "push_err")] == [0] * 4
    assert not any(name.startswith("rr_jobs_requests_total") for name in found)


async def test_pushes_and_runs_are_counted(start_server) -> None:
    """Single pushes and batches apart, refused ones too; runs by how they ended."""
    async with start_server(num_workers=1) as server:
        await server.push("a")
        await server.push("b")
        batch = jobs_pb2.PushBatchRequest(jobs=[make_push(name).job for name in ("c", "d")])
        await server.call("jobs.PushBatch", batch)
        with pytest.raises(RpcRefused, match="no such pipeline"):
            await server.push("e", "nowhere")
        with pytest.raises(RpcRefused, match="empty ID"):
            await server.call("jobs.PushBatch", jobs_pb2.PushBatchRequest(jobs=[make_push("").job]))
        server.pool.finish(server.pool.running[0])
        server.pool.finish(server.pool.running[0], GIVEN_UP)
        found = scraped(server.plugin)

    expected = {
        "rr_jobs_jobs_ok": 1,
        "rr_jobs_jobs_err": 1,
        "rr_jobs_push_ok": 4,
        "rr_jobs_push_err": 2,
        "rr_jobs_requests_total,main,memory,single": 2,
        "rr_jobs_requests_total,main,memory,batch": 1,
        "rr_jobs_push_latency_count,main,memory,single": 2,
        "trailboss_jobs_pipelines": 1,
        "trailboss_jobs_now,main,waiting": 1,
        "trailboss_jobs_now,main,running": 1,
        "trailboss_jobs_now,main,dead_listed": 1,
        "trailboss_jobs_total,main,done": 1,
        "trailboss_jobs_total,main,dead": 1,
        "trailboss_jobs_consumed,main": 1.0,
    }
    assert {name: found[name] for name in expected} == expected


async def test_many_pipelines_are_told_as_one(start_server) -> None:
    """What applications declare without number does not make a scrape without end."""
    names = tuple(f"p{number}" for number in range(PIPELINES_MAX + 7))
    async with start_server(pipelines=names, consume=()) as server:
        await server.push("a", names[-1])
        await server.push("b", names[-2])
        found = scraped(server.plugin)

    assert found["trailboss_jobs_pipelines"] == PIPELINES_MAX + 7
    assert found["trailboss_jobs_now,(others),waiting"] == 2
    assert sum(name.startswith("trailboss_jobs_consumed") for name in found) == PIPELINES_MAX
