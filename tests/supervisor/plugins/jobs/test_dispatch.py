"""From a waiting job to its end: who runs when, what becomes of each outcome, and nothing happens twice."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import structlog.testing
import trio
import trio.testing

from trailboss.testing.fake_pool import ACK, FakeExec, Scripted
from trailboss.workers.outcome import (
    Answer,
    ExecTimeout,
    Outcome,
    PoolClosed,
    PoolDegraded,
    QueueFull,
    QueueTimeout,
    SoftError,
    WorkerDied,
)


def answer(kind: int, **data: object) -> Answer:
    return Answer(0, b"", json.dumps({"type": kind, "data": data}).encode())


async def test_jobs_wait_in_their_queue_not_in_the_pool(start_server) -> None:
    """As many jobs run as there are workers; an urgent job pushed later is the next."""
    async with start_server(num_workers=2) as server:
        for name in ("a", "b", "c"):
            await server.push(name)
        await server.push("urgent", priority=1)
        assert server.running_ids() == ["a", "b"]
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == ["b", "urgent"]
        assert (server.books.waiting, server.books.running, server.books.done) == (1, 2, 1)
        server.pool.finish(server.pool.running[1])
        assert server.running_ids() == ["b", "c"]
        for work in list(server.pool.running):
            server.pool.finish(work)
        assert (server.books.done, server.books.running) == (4, 0)


async def test_priorities_go_across_pipelines(start_server) -> None:
    """Urgent jobs of one pipeline come before others of another; equal ones in the order of the pushes."""
    async with start_server(num_workers=1, pipelines=("x", "y"), consume=("x", "y")) as server:
        await server.push("first", "x")
        await server.push("x1", "x")
        await server.push("y1", "y")
        await server.push("x2", "x")
        await server.push("y0", "y", priority=2)
        order = []
        while server.pool.running:
            order += server.running_ids()
            server.pool.finish(server.pool.running[0])
        assert order == ["first", "y0", "x1", "y1", "x2"]


async def test_payload_goes_through_untouched(start_server) -> None:
    """The body is the payload, the flags are RAW, and the label says what runs."""
    async with start_server() as server:
        await server.push("id-1")
        work = server.pool.running[0]
        assert (work.body, work.flags, work.label) == (b"payload", 0x04, "job App\\Task id=id-1")


async def test_paused_pipelines_keep_their_order(start_server) -> None:
    """A pause lets runs finish, hands out nothing more, and the order is what it was."""
    async with start_server(num_workers=1, pipelines=("x", "y"), consume=("x", "y")) as server:
        from trailboss.messages import jobs_pb2

        for name in ("a", "b", "c"):
            await server.push(name, "x")
        await server.call("jobs.Pause", jobs_pb2.Pipelines(pipelines=["x"]))
        await server.push("other", "y")
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == ["other"]
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == []
        await server.call("jobs.Resume", jobs_pb2.Pipelines(pipelines=["x"]))
        assert server.running_ids() == ["b"]
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == ["c"]


@pytest.mark.parametrize(
    "outcome",
    [
        WorkerDied("signal 9 (SIGKILL)", pid=1001, cause="signal"),
        ExecTimeout("exec_ttl of 1s passed"),
        SoftError("Uncaught Exception"),
        Answer(0, b"", b""),
        Answer(0, b"", b"Notice: Undefined variable"),
    ],
    ids=["death", "timeout", "error frame", "empty answer", "garbage answer"],
)
async def test_failed_runs_are_repeated_then_dead(start_server, autojump_clock, outcome: Outcome) -> None:
    """A failed run is repeated after 1, 2, 4, 8 s with its number; after max_attempts the job is a dead letter."""
    runs: list[tuple[float, int]] = []
    begin = trio.current_time()

    def script(work: FakeExec) -> Scripted:
        runs.append((round(trio.current_time() - begin, 3), json.loads(work.context)["attempts"]))
        return Scripted(outcome)

    async with start_server(script=script) as server:
        with structlog.testing.capture_logs() as logs:
            await server.push("poison")
            await trio.sleep(100)
        assert runs == [(0.0, 1), (1.0, 2), (3.0, 3), (7.0, 4), (15.0, 5)]
        dead = await server.call("jobs.Dead", None)
        assert (dead["total"], dead["jobs"][0]["id"], dead["jobs"][0]["attempts"]) == (1, "poison", 5)
        assert dead["jobs"][0]["reason"]
        assert (server.books.dead, server.books.done, server.books.waiting) == (1, 0, 0)
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
            "job is a dead letter now"
        ]


async def test_death_cause_is_kept_with_the_dead_letter(start_server, autojump_clock) -> None:
    """A dead letter names the cause class of the worker's death."""
    script: Callable[[FakeExec], Scripted] = lambda work: Scripted(  # noqa: E731
        WorkerDied("signal 11 (SIGSEGV)", pid=work.pid, cause="signal")
    )
    async with start_server(script=script, max_attempts=2) as server:
        await server.push("poison")
        await trio.sleep(10)
        row = (await server.call("jobs.Dead", {}))["jobs"][0]
        assert (row["cause"], row["reason"]) == ("signal", "worker died: signal 11 (SIGSEGV)")


@pytest.mark.parametrize(
    ("outcome", "expected_reason"),
    [
        (answer(3, message="no such user", requeue=False), "nacked: no such user"),
        (answer(1, message="gone", requeue=False), "failed: gone"),
    ],
)
async def test_nack_and_error_are_dead_letters(start_server, outcome: Outcome, expected_reason: str) -> None:
    """What a worker gives up without requeue is a dead letter at once, whatever attempts are left."""
    async with start_server() as server:
        await server.push("a")
        server.pool.finish(server.pool.running[0], outcome)
        dead = await server.call("jobs.Dead", "")
        assert [(row["id"], row["reason"]) for row in dead["jobs"]] == [("a", expected_reason)]
        assert server.books.dead == 1


@pytest.mark.parametrize(
    "outcome",
    [
        answer(1, message="m", requeue=True, delay_seconds=5, headers={"n": ["2"]}),
        answer(4, message="m", delay_seconds=5, headers={"n": ["2"]}),
    ],
)
async def test_requeue_with_delay_and_headers(start_server, autojump_clock, outcome: Outcome) -> None:
    """A requeued job comes again after its delay, with headers merged and attempts from the start."""
    async with start_server() as server:
        from trailboss.messages import jobs_pb2

        job = jobs_pb2.Job(
            id="a",
            job="t",
            headers={
                "n": jobs_pb2.HeaderValue(value=["1"]),
                "k": jobs_pb2.HeaderValue(value=["v"]),
            },
            options=jobs_pb2.Options(pipeline="main"),
        )
        await server.call("jobs.Push", jobs_pb2.PushRequest(job=job))
        begin = trio.current_time()
        server.pool.finish(server.pool.running[0], outcome)
        assert server.books.delayed == 1
        await trio.sleep_until(begin + 4.999)
        assert server.running_ids() == []
        await trio.sleep_until(begin + 5.005)
        context = json.loads(server.pool.running[0].context)
        assert context["headers"] == {"n": ["2"], "k": ["v"]}
        assert context["attempts"] == 1


async def test_requeue_has_no_limit_of_attempts(start_server) -> None:
    """A worker may requeue a job more often than max_attempts; that is its own decision."""
    async with start_server(num_workers=1, max_attempts=2) as server:
        await server.push("a")
        for _ in range(20):
            server.pool.finish(server.pool.running[0], answer(4, message="again"))
        assert server.running_ids() == ["a"]
        server.pool.finish(server.pool.running[0])
        assert (server.books.done, server.books.dead) == (1, 0)


async def test_nack_with_requeue_is_an_attempt(start_server, autojump_clock) -> None:
    """What an SDK answers for a handler that raised is counted and paced: no hot loop, a dead letter in the end."""
    async with start_server(num_workers=1, max_attempts=3, retry_backoff=1.0) as server:
        await server.push("a")
        begun = trio.current_time()
        for delay in (0, 10):
            server.pool.finish(
                server.pool.running[0], answer(3, message="boom", requeue=True, delay_seconds=delay)
            )
            assert server.running_ids() == []
            await trio.sleep(max(delay, 2.0) + 0.5)
            assert server.running_ids() == ["a"]
        assert trio.current_time() - begun >= 11.0
        server.pool.finish(server.pool.running[0], answer(3, message="boom", requeue=True))
        assert (server.books.dead, server.books.running, server.books.delayed) == (1, 0, 0)


async def test_requeued_job_goes_behind_those_that_wait(start_server) -> None:
    """Requeued without a delay, a job is the last of its priority."""
    async with start_server(num_workers=1) as server:
        for name in ("a", "b"):
            await server.push(name)
        server.pool.finish(server.pool.running[0], answer(4, message=""))
        assert server.running_ids() == ["b"]
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == ["a"]


@pytest.mark.parametrize(
    "refusal", [QueueFull("full"), PoolDegraded("no worker"), PoolClosed("closed"), QueueTimeout("late")]
)
async def test_lack_of_a_worker_is_no_failure(start_server, refusal: Outcome) -> None:
    """A refusing pool gets the job again from its old place; no attempt counts, and it is not asked in a loop."""
    async with start_server(num_workers=1) as server:
        server.pool.refuse_with = refusal
        for name in ("a", "b"):
            await server.push(name)
        assert (server.books.waiting, server.books.running) == (2, 0)
        server.pool.recover()
        assert server.running_ids() == ["a"]
        assert json.loads(server.pool.running[0].context)["attempts"] == 1


async def test_lost_sign_of_recovery_is_found_out(start_server, autojump_clock) -> None:
    """A pool that takes again without saying so is asked again within about a second."""
    async with start_server(num_workers=1) as server:
        server.pool.degrade()
        await server.push("a")
        await trio.sleep(0.5)
        server.pool.refuse_with = None
        assert server.running_ids() == []
        await trio.sleep(1.0)
        assert server.running_ids() == ["a"]


async def test_worker_that_dies_before_it_got_the_job(start_server) -> None:
    """A job that the dead worker cannot have seen goes to another idle one at once, as the same attempt."""
    async with start_server(num_workers=2) as server:
        await server.push("a")
        work = server.pool.running[0]
        server.pool.finish(work, WorkerDied("at the door", pid=work.pid, sent=False), replace=False)
        assert server.running_ids() == ["a"]
        assert server.pool.running[0] is not work
        assert json.loads(server.pool.running[0].context)["attempts"] == 1


async def test_retry_without_backoff_uses_an_idle_worker(start_server) -> None:
    """With no back-off a failed job goes to another idle worker at once, although no worker became idle."""
    async with start_server(num_workers=2, retry_backoff=0.0) as server:
        await server.push("a")
        work = server.pool.running[0]
        server.pool.finish(work, WorkerDied("crash", pid=work.pid), replace=False)
        assert [json.loads(item.context)["attempts"] for item in server.pool.running] == [2]


async def test_auto_ack_counts_at_receipt_and_never_again(start_server, autojump_clock) -> None:
    """With auto_ack a job is done when a worker has it; its crash loses it, with a log line."""
    async with start_server(num_workers=1) as server:
        await server.push("a", auto_ack=True)
        assert (server.books.done, server.books.running) == (1, 0)
        assert server.plugin.dispatcher.in_flight == 1
        with structlog.testing.capture_logs() as logs:
            server.pool.finish(server.pool.running[0], WorkerDied("crash"))
        assert [entry["event"] for entry in logs] == ["job with auto_ack is lost"]
        await trio.sleep(100)
        assert server.running_ids() == []
        assert (server.books.done, server.plugin.dispatcher.in_flight) == (1, 0)


async def test_auto_ack_waits_for_a_worker(start_server) -> None:
    """With auto_ack, too, a job that no worker has got is not lost."""
    async with start_server(num_workers=1) as server:
        server.pool.degrade()
        await server.push("a", auto_ack=True)
        assert (server.books.done, server.books.waiting) == (0, 1)
        server.pool.recover()
        assert (server.books.done, server.running_ids()) == (1, ["a"])
        server.pool.finish(server.pool.running[0], ACK)
        assert server.books.done == 1


async def test_debug_pool_is_fed_without_idle_workers(start_server) -> None:
    """A pool that starts a worker for each exec never has an idle one; num_workers jobs run at the same time."""
    from trailboss.config.schema import PoolConfig

    async with start_server(debug=True, pool=PoolConfig(debug=True, num_workers=2)) as server:
        for name in ("a", "b", "c"):
            await server.push(name)
        assert server.pool.idle_count == 0
        assert server.running_ids() == ["a", "b"]
        server.pool.finish(server.pool.running[0])
        assert server.running_ids() == ["b", "c"]
        server.pool.finish(server.pool.running[0], WorkerDied("crash"))
        server.pool.finish(server.pool.running[0])
        assert (server.running_ids(), server.books.done, server.books.delayed) == ([], 2, 1)


async def test_workers_that_cannot_start_set_the_pace(start_server, autojump_clock) -> None:
    """A debug pool whose workers die in their start is tried once a second, however many jobs wait; none is lost."""
    from trailboss.config.schema import PoolConfig

    def script(_work: FakeExec) -> Scripted:
        boots = server.pool.executions
        return Scripted(WorkerDied("no such script", cause="boot", sent=False) if boots <= 12 else ACK)

    async with start_server(
        debug=True, pool=PoolConfig(debug=True, num_workers=4), script=script, opened=False
    ) as server:
        for number in range(20):
            await server.push(str(number))
        await server.plugin.open()
        await trio.sleep(0.5)
        assert server.pool.executions == 4
        await trio.sleep(7.6)
        assert server.pool.executions == 12
        assert (server.books.waiting, server.books.done) == (20, 0)
        await trio.sleep(2)
        assert (server.books.done, server.books.dead) == (20, 0)


async def test_a_driver_that_cannot_settle_loses_no_run(start_server, autojump_clock, monkeypatch) -> None:
    """An ack that raises is logged, the job runs again later, other jobs go on, and a drain comes to its end."""
    async with start_server(num_workers=1) as server:
        driver = server.plugin.pipelines.by_name["main"].driver
        failures = [KeyError("a bug")]

        def ack(job: object) -> None:
            if failures:
                raise failures.pop()
            type(driver).ack(driver, job)

        monkeypatch.setattr(driver, "ack", ack)
        for name in ("a", "b"):
            await server.push(name)
        with structlog.testing.capture_logs() as records:
            server.pool.finish(server.pool.running[0])
        assert any("could not be settled" in record["event"] for record in records)
        assert (server.running_ids(), server.books.delayed) == (["b"], 1)
        server.pool.finish(server.pool.running[0])
        await trio.sleep(1.1)
        assert server.running_ids() == ["a"]
        await server.plugin.close_intake()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.plugin.drain)
            await trio.testing.wait_all_tasks_blocked()
            failures.append(KeyError("once more"))
            server.pool.finish(server.pool.running[0])
        assert (server.plugin.dispatcher.in_flight, server.books.delayed, server.books.done) == (0, 1, 1)


async def test_a_driver_without_a_job_after_all_does_not_hold_the_loop(start_server, monkeypatch) -> None:
    """A driver whose `receive` gives nothing although its queue does not look empty ends the handing out."""
    async with start_server(opened=False) as server:
        driver = server.plugin.pipelines.by_name["main"].driver
        asked: list[None] = []

        def receive() -> None:
            asked.append(None)
            assert len(asked) < 10, "the dispatcher asks for ever"

        monkeypatch.setattr(driver, "receive", receive)
        await server.push("a")
        await server.plugin.open()
        assert (len(asked), server.books.waiting) == (1, 1)


async def test_a_queue_that_cannot_be_read_is_tried_again(start_server, autojump_clock, monkeypatch) -> None:
    """A `receive` that raises fails no push and no other pipeline; health says so; a second later it is tried again."""
    async with start_server(num_workers=1) as server:
        pipelines = server.plugin.pipelines.by_name
        driver = pipelines["main"].driver
        failures = [OSError("gone"), OSError("still gone")]

        def receive() -> object:
            if failures:
                raise failures.pop(0)
            return type(driver).receive(driver)

        monkeypatch.setattr(driver, "receive", receive)
        with structlog.testing.capture_logs() as records:
            await server.push("a")  # is answered as ever
            assert server.plugin.health().reason == "main: gone"
            await trio.sleep(1.1)
            assert server.plugin.health().reason == "main: still gone"
            await trio.sleep(1)
        assert server.running_ids() == ["a"]
        assert server.plugin.health().ok
        assert [record["text"] for record in records if "cannot be taken" in record["event"]] == [
            "gone",
            "still gone",
        ]


async def test_a_queue_that_cannot_be_read_may_be_paused(start_server, autojump_clock, monkeypatch) -> None:
    """What is paused in the meantime is not tried again before it is resumed, and then at once."""
    async with start_server(num_workers=1) as server:
        pipeline = server.plugin.pipelines.by_name["main"]
        failures = [OSError("gone")]

        def receive() -> object:
            if failures:
                raise failures.pop(0)
            return type(pipeline.driver).receive(pipeline.driver)

        monkeypatch.setattr(pipeline.driver, "receive", receive)
        await server.push("a")
        server.plugin.dispatcher.pause(pipeline)
        await trio.sleep(3)
        assert server.running_ids() == []
        server.plugin.dispatcher.consume(pipeline)
        assert server.running_ids() == ["a"]
