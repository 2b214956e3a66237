"""The RPC methods: what they accept, what they answer, and the texts of their refusals."""

from __future__ import annotations

import pytest
import trio

from trailboss.container.contract import Access, RpcRefused
from trailboss.messages import jobs_pb2
from trailboss.workers.outcome import Answer

NACK = Answer(0, b"", b'{"type":3,"data":{"message":"no"}}')


def make_job(
    job_id: str,
    pipeline: str = "main",
    headers: dict[str, list[str]] | None = None,
    payload: bytes = b"payload",
    **options: int,
) -> jobs_pb2.Job:
    return jobs_pb2.Job(
        id=job_id,
        job="App\\Task",
        payload=payload,
        headers={name: jobs_pb2.HeaderValue(value=values) for name, values in (headers or {}).items()},
        options=jobs_pb2.Options(pipeline=pipeline, **options),
    )


def make_push(job_id: str, pipeline: str = "main") -> jobs_pb2.PushRequest:
    return jobs_pb2.PushRequest(job=make_job(job_id, pipeline))


@pytest.mark.parametrize(
    ("push", "expected"),
    [
        (make_push("", "main"), "rpc_push: empty ID field not allowed"),
        (make_push("a", "nowhere"), "no such pipeline, requested: nowhere"),
        (jobs_pb2.PushRequest(), "rpc_push: empty ID field not allowed"),
        (jobs_pb2.PushRequest(job=jobs_pb2.Job(id="a")), "no such pipeline, requested: "),
    ],
)
async def test_push_refusals(start_server, push: jobs_pb2.PushRequest, expected: str) -> None:
    """A push without an id or to an unknown pipeline is refused with RoadRunner's words."""
    async with start_server() as server:
        with pytest.raises(RpcRefused) as refused:
            await server.call("jobs.Push", push)
        assert expected == str(refused.value)
        assert server.books.pushed == 0


async def test_names_that_differ_in_case_only_are_found(start_server) -> None:
    """RoadRunner's clients use lower-case names; an exact name wins, and two that are alike are not guessed at."""
    async with start_server(pipelines=("myQueue", "Twin", "twin"), consume=(), opened=False) as server:
        for pushed in ("myqueue", "myQueue", "MYQUEUE", "twin", "Twin"):
            await server.push("a", pushed)
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["myqueue"]))
        with pytest.raises(RpcRefused, match="no such pipeline, requested: TWIN"):
            await server.push("a", "TWIN")
        waiting = {name: item.books().waiting for name, item in server.plugin.pipelines.by_name.items()}
        assert waiting == {"myQueue": 3, "Twin": 1, "twin": 1}


async def test_names_of_jobs_are_shared_but_not_for_ever(start_server) -> None:
    """Jobs of one name share one text, and a client with ever new names does not make the table grow."""
    async with start_server(opened=False) as server:
        table = server.plugin._requests._names
        for number in range(5000):
            name = "App\\Long" * 100 if number == 3 else f"App\\Task{number}"
            for job_id in ("first", "second"):
                message = make_job(job_id)
                message.job = name
                await server.call("jobs.Push", jobs_pb2.PushRequest(job=message))
        ready = server.plugin.pipelines.by_name["main"].driver.ready
        first, second = ready.pop(), ready.pop()
        assert first.name is second.name
        assert 0 < len(table) <= 4096
        assert max(map(len, table)) <= 256


@pytest.mark.parametrize(
    ("priority", "expected"), [(0, 10), (3, 3), (-1, -1), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63))]
)
async def test_priority_zero_is_the_pipelines(start_server, priority: int, expected: int) -> None:
    """Priority 0 means that of the pipeline; any other stays."""
    async with start_server(opened=False) as server:
        await server.push("a", priority=priority)
        job = server.plugin.pipelines.by_name["main"].driver.ready.head
        assert job is not None
        assert expected == job.priority


@pytest.mark.parametrize(("delay", "expected_delayed"), [(-5, 0), (0, 0), (1, 1), (2**63 - 1, 1)])
async def test_delay(start_server, delay: int, expected_delayed: int) -> None:
    """A delay in seconds delays; none, and one in the past, does not; an endless one is harmless."""
    async with start_server(opened=False) as server:
        await server.push("a", delay=delay)
        assert (expected_delayed, 1 - expected_delayed) == (server.books.delayed, server.books.waiting)


async def test_delayed_job_runs_in_time(start_server, autojump_clock) -> None:
    """A job pushed with a delay runs when it is over, not earlier and within milliseconds."""
    async with start_server() as server:
        await server.push("a", delay=2)
        await trio.sleep(1.999)
        assert server.running_ids() == []
        await trio.sleep(0.004)
        assert server.running_ids() == ["a"]


async def test_full_queue(start_server) -> None:
    """Beyond pipeline_size, counted over all pipelines, a push is refused; room comes back when jobs end."""
    async with start_server(num_workers=1, pipelines=("main", "other"), pipeline_size=3) as server:
        await server.push("a")
        await server.push("b", delay=60)
        await server.push("c", "other")
        with pytest.raises(RpcRefused, match=r"^queue is full: 3 of 3 jobs \(jobs.pipeline_size\)"):
            await server.push("d")
        server.pool.finish(server.pool.running[0])
        await server.push("d")
        assert server.books.pushed == 4


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([make_job("a"), make_job("")], "rpc_push_batch: empty ID field not allowed"),
        ([make_job("a"), make_job("b", "nowhere")], "no such pipeline, requested: nowhere"),
        ([make_job(str(number)) for number in range(6)], "queue is full"),
        ([make_job(str(number), ("main", "other")[number % 2]) for number in range(6)], "queue is full"),
    ],
    ids=["no id", "no pipeline", "no room", "no room over two pipelines"],
)
async def test_batch_is_all_or_nothing(start_server, jobs: list[jobs_pb2.Job], expected: str) -> None:
    """One bad job, or one too many, and nothing of a batch is pushed."""
    async with start_server(pipelines=("main", "other"), pipeline_size=5) as server:
        with pytest.raises(RpcRefused) as refused:
            await server.call("jobs.PushBatch", jobs_pb2.PushBatchRequest(jobs=jobs))
        assert expected in str(refused.value)
        assert (server.books.pushed, server.running_ids(), server.plugin.room.used) == (0, [], 0)


async def test_batch_over_pipelines(start_server) -> None:
    """A batch reaches all its pipelines, in its order; an empty one is fine."""
    async with start_server(pipelines=("main", "other"), consume=("main", "other"), num_workers=3) as server:
        jobs = [make_job("a"), make_job("b", "other"), make_job("c")]
        await server.call("jobs.PushBatch", jobs_pb2.PushBatchRequest(jobs=jobs))
        await server.call("jobs.PushBatch", jobs_pb2.PushBatchRequest())
        assert server.books.pushed == 3
        assert sorted(server.running_ids()) == ["a", "b", "c"]


async def test_list_pause_resume_stat(start_server) -> None:
    """List names the pipelines in order; Stat counts; unknown names change nothing."""
    async with start_server(num_workers=1, pipelines=("b", "a"), consume=("b",)) as server:
        empty = jobs_pb2.Empty()
        assert list((await server.call("jobs.List", empty)).pipelines) == ["b", "a"]
        await server.push("1", "b")
        await server.push("2", "b")
        await server.push("3", "b", delay=9)
        stats = (await server.call("jobs.Stat", empty)).stats
        assert [
            (s.pipeline, s.driver, s.queue, s.active, s.delayed, s.reserved, s.ready, s.priority)
            for s in stats
        ] == [
            ("b", "memory", "b", 2, 1, 1, True, 10),
            ("a", "memory", "a", 0, 0, 0, False, 10),
        ]
        for method in ("jobs.Pause", "jobs.Resume", "jobs.Destroy"):
            with pytest.raises(RpcRefused, match=r"^no such pipeline, requested: x$"):
                await server.call(method, jobs_pb2.Pipelines(pipelines=["b", "x"]))
        assert [s.ready for s in (await server.call("jobs.Stat", empty)).stats] == [True, False]
        assert server.plugin.job_states()[0]["Active"] == 2


@pytest.mark.parametrize("name_key", ["name", "queue"])
async def test_declare(start_server, name_key: str) -> None:
    """A declared pipeline takes jobs and runs them after Resume, with the priority it was declared with."""
    async with start_server() as server:
        values = {name_key: "dyn", "driver": "memory", "priority": "5", "prefetch": "20"}
        await server.call("jobs.Declare", jobs_pb2.DeclareRequest(pipeline=values))
        await server.push("a", "dyn")
        assert server.running_ids() == []
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["dyn"]))
        assert server.running_ids() == ["a"]
        assert server.plugin.pipelines.by_name["dyn"].priority == 5


async def test_declared_pipeline_of_the_consume_list(start_server) -> None:
    """A declared pipeline that jobs.consume names is consumed at once."""
    async with start_server(consume=("main", "dyn")) as server:
        await server.call(
            "jobs.Declare", jobs_pb2.DeclareRequest(pipeline={"name": "dyn", "driver": "memory"})
        )
        await server.push("a", "dyn")
        assert server.running_ids() == ["a"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "needs a name"),
        ({"name": "dyn"}, "needs a driver"),
        (
            {"name": "dyn", "driver": "amqp"},
            "unknown jobs driver 'amqp' of pipeline 'dyn'; known drivers: memory",
        ),
        ({"name": "main", "driver": "memory"}, "pipeline main exists already"),
        ({"name": "dyn", "driver": "memory", "priority": "high"}, "priority of a declared pipeline"),
        ({"name": "dyn", "driver": "memory", "priority": "1" * 5000}, "priority of a declared pipeline"),
        ({"name": "dyn", "driver": "memory", "priority": "--1"}, "priority of a declared pipeline"),
        ({"name": "dyn", "driver": "memory", "prefetch": "１"}, "prefetch of a declared pipeline"),
    ],
)
async def test_declare_refusals(start_server, values: dict[str, str], expected: str) -> None:
    """A declaration that cannot be carried out says why and leaves nothing behind."""
    async with start_server() as server:
        with pytest.raises(RpcRefused) as refused:
            await server.call("jobs.Declare", jobs_pb2.DeclareRequest(pipeline=values))
        assert expected in str(refused.value)
        assert list(server.plugin.pipelines.by_name) == ["main"]


async def test_destroy(start_server, autojump_clock) -> None:
    """Destroyed: gone from the list, its jobs counted as destroyed, its run settled, its name free again."""
    async with start_server(num_workers=1) as server:
        for name in ("running", "waiting"):
            await server.push(name)
        await server.push("delayed", delay=60)
        names = jobs_pb2.Pipelines(pipelines=["main"])
        answer = await server.call("jobs.Destroy", names)
        assert list(answer.pipelines) == ["main"]
        assert list((await server.call("jobs.List", jobs_pb2.Empty())).pipelines) == []
        assert (server.books.destroyed, server.books.running) == (2, 1)
        with pytest.raises(RpcRefused):
            await server.push("late")
        server.pool.finish(server.pool.running[0])
        assert (server.books.done, server.books.running, server.plugin.room.used) == (1, 0, 0)
        await server.call(
            "jobs.Declare", jobs_pb2.DeclareRequest(pipeline={"name": "main", "driver": "memory"})
        )
        await server.push("new")
        assert (server.books.pushed, server.books.waiting, server.books.running) == (4, 0, 1)


async def test_dead_letters_by_page(start_server) -> None:
    """Dead letters are listed page by page over the pipelines, with payload and headers."""
    async with start_server(num_workers=9, pipelines=("x", "y"), consume=("x", "y")) as server:
        for number in range(3):
            await server.push(f"x{number}", "x")
            await server.push(f"y{number}", "y")
        binary = make_job("bin", "y", {"k": ["v"]}, b"\xff\x00")
        await server.call("jobs.Push", jobs_pb2.PushRequest(job=binary))
        for work in list(server.pool.running):
            server.pool.finish(work, NACK)
        every = ["x0", "x1", "x2", "y0", "y1", "y2", "bin"]
        for offset, limit in ((0, 100), (0, 2), (2, 3), (3, 1), (6, 9), (7, 1), (2, 0)):
            dead = await server.call("jobs.Dead", {"offset": offset, "limit": limit})
            assert (every[offset : offset + limit], 7) == ([row["id"] for row in dead["jobs"]], dead["total"])
        dead = await server.call("jobs.Dead", {"pipeline": "y", "offset": 3})
        row = dead["jobs"][0]
        assert (row["payload_base64"], row["headers"], row["pipeline"]) == ("/wA=", {"k": ["v"]}, "y")
        assert (await server.call("jobs.Dead", None))["jobs"][0]["payload"] == "payload"


async def test_requeue_and_purge_dead_letters(start_server) -> None:
    """Dead letters run again from their first attempt, or are deleted; ids that are none are named."""
    async with start_server(num_workers=4) as server:
        for name in ("a", "b", "c", "d"):
            await server.push(name)
        for work in list(server.pool.running):
            server.pool.finish(work, NACK)
        assert server.books.dead == 4
        answer = await server.call("jobs.Requeue", {"ids": ["b", "nope"]})
        assert answer == {"requeued": 1, "not_found": ["nope"]}
        assert server.running_ids() == ["b"]
        assert await server.call("jobs.Purge", {"pipeline": "main", "ids": ["a"]}) == {
            "purged": 1,
            "not_found": [],
        }
        assert await server.call("jobs.Requeue", {"all": True}) == {"requeued": 2, "not_found": []}
        assert server.running_ids() == ["b", "c", "d"]
        books = await server.call("jobs.Books", None)
        assert books["balanced"] is True
        assert books["total"] == books["pipelines"]["main"]
        assert (books["total"]["dead"], books["total"]["dead_purged"], books["total"]["running"]) == (1, 1, 3)


@pytest.mark.parametrize(
    ("method", "argument", "expected"),
    [
        ("jobs.Dead", {"offset": -1}, "offset has to be a number"),
        ("jobs.Dead", {"limit": "5"}, "limit has to be a number"),
        ("jobs.Dead", {"limit": True}, "limit has to be a number"),
        ("jobs.Dead", {"page": 1}, "does not know 'page'"),
        ("jobs.Dead", [1], "takes an object"),
        ("jobs.Dead", {"pipeline": "x"}, "no such pipeline, requested: x"),
        ("jobs.Dead", {"pipeline": 5}, "pipeline has to be a text"),
        ("jobs.Purge", None, 'takes either "ids"'),
        ("jobs.Purge", {"all": False}, 'takes either "ids"'),
        ("jobs.Purge", {"all": True, "ids": ["a"]}, 'takes either "ids"'),
        ("jobs.Requeue", {"ids": "a"}, 'takes either "ids"'),
        ("jobs.Requeue", {"ids": [1]}, 'takes either "ids"'),
    ],
)
async def test_malformed_arguments(start_server, method: str, argument: object, expected: str) -> None:
    """A malformed argument is refused; in particular, nothing at all is never taken for all."""
    async with start_server() as server:
        with pytest.raises(RpcRefused) as refused:
            await server.call(method, argument)
        assert expected in str(refused.value)


async def test_revive_needs_room(start_server) -> None:
    """Dead letters that do not fit stay where they are."""
    async with start_server(num_workers=1, pipeline_size=1) as server:
        await server.push("a")
        server.pool.finish(server.pool.running[0], NACK)
        await server.push("b")
        with pytest.raises(RpcRefused, match="queue is full"):
            await server.call("jobs.Requeue", {"all": True})
        assert (server.books.dead, server.books.running) == (1, 1)


def test_sensitive_methods() -> None:
    """What destroys is refused while on_init runs; everything else waits for the gate only."""
    from trailboss.config.schema import JobsConfig
    from trailboss.plugins.jobs.plugin import JobsPlugin

    access = {method.name: method.access for method in JobsPlugin(JobsConfig()).rpc_methods()}
    assert {name for name, value in access.items() if value is Access.SENSITIVE} == {
        "jobs.Destroy",
        "jobs.Purge",
    }
    assert set(access.values()) == {Access.NORMAL, Access.SENSITIVE}
    assert {
        "jobs.Push",
        "jobs.PushBatch",
        "jobs.List",
        "jobs.Stat",
        "jobs.Declare",
        "jobs.Dead",
    } <= access.keys()


async def test_headers_of_a_push_reach_the_worker(start_server) -> None:
    """Headers, the trace context among them, go through; a stale attempts header does not."""
    async with start_server() as server:
        headers = {"traceparent": ["00-aa-bb-01"], "X-Trailboss-Attempts": ["4"], "multi": ["1", "2"]}
        await server.call("jobs.Push", jobs_pb2.PushRequest(job=make_job("a", headers=headers)))
        assert b'"headers":{"' in server.pool.running[0].context
        import json

        context = json.loads(server.pool.running[0].context)
        assert context["headers"] == {"traceparent": ["00-aa-bb-01"], "multi": ["1", "2"]}
