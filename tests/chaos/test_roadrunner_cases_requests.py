"""Cases that RoadRunner fails, part 1: what a worker does over a request, and what its client gets.

Each test is one case from the outside: a real server, real workers, a client that counts. `serving` holds it to the rest:
every pool whole, books balanced, no descriptor gained, no traceback, no process left. See also
test_roadrunner_cases_life.py.
"""

from __future__ import annotations

import os
import secrets
import signal
import struct
from pathlib import Path

import pytest
import trio
from case_kit import (
    KINDS,
    MOSTLY_PHP,
    MOSTLY_PYTHON,
    ask,
    deaths,
    pids,
    port_of,
    wait_pool,
    web_configuration,
)
from http_server import request
from live_server import PATIENCE, Client, Server, marked, push_argument, seen, serving, until, until_async

from trailboss_worker.protocol.frames import JSON, PROTO
from trailboss_worker.protocol.rpc import encode_request

pytestmark = pytest.mark.timeout(180)

#: Clients of each kind that leave.
CALLERS = 5
SIZES = (0, 1, 11, 12, 100, 4096, 65_535, 65_536, 65_537, 200_000, 1 << 20)


@pytest.mark.parametrize("kind", KINDS)
async def test_case_reply_then_exit_of_every_size(kind: str, tmp_path: Path) -> None:
    """A reply of 0 B to 1 MiB whose worker ends behind it arrives whole; RoadRunner loses 3 to 5 % of them with the pipe."""
    await run_leaving(kind, tmp_path, 2)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_case_reply_then_exit_many_times(kind: str, tmp_path: Path) -> None:
    """The same 50 times each size."""
    await run_leaving(kind, tmp_path, 50)


async def run_leaving(kind: str, folder: Path, rounds: int) -> None:
    # A request that meets the corpse of the one before is tried again; a lost reply would be too, but costs a worker more.
    config = web_configuration(folder, kind, 4, retry=True)
    port = port_of(config)
    count = 0
    with trio.fail_after((20 + 2 * rounds * len(SIZES)) * PATIENCE):
        async with serving(folder, config) as server:
            for number in range(rounds):
                for size in SIZES:
                    how = ("0", "255", "kill")[(number + count) % 3]
                    reply = await ask(port, f"/leave?n={size}&how={how}")
                    assert (200, size, b"x" * size) == (reply.status, len(reply.body), reply.body), (
                        size,
                        how,
                    )
                    count += 1
            await wait_pool(server, deaths=count)
            assert count == (await server.pool("http"))["deaths"]


@pytest.mark.parametrize("kind", MOSTLY_PHP)
async def test_case_death_between_reply_and_recycle(kind: str, tmp_path: Path) -> None:
    """A worker due for recycling that dies behind its reply, or while idle, costs nobody an answer; RoadRunner keeps the
    corpse in its free list, and the next request fails on it unsent."""
    config = web_configuration(tmp_path, kind, 2, pool__max_jobs=1, retry=True)
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for number in range(2):
                how = "kill" if number % 2 else "0"
                before = await pids(server)
                reply = await ask(port, f"/leave?n=70000&how={how}", "POST")  # which is never tried again
                assert reply.body == b"x" * 70_000
                await gone(server, before)
                assert (await ask(port, "/pid")).status == 200
                await wait_pool(server)
                victim = next(iter(await pids(server)))
                os.kill(victim, signal.SIGKILL)
                reply = await ask(port, "/pid")  # nobody knows yet that it is dead
                assert reply.status == 200, (number, reply)
                await gone(server, {victim})
                await wait_pool(server)


async def gone(server: Server, known: set[int]) -> None:
    """Return when the server knows that one of these workers is no more."""

    async def one_less() -> bool:
        return bool(known - await pids(server))

    await until_async(one_less, 3 * PATIENCE, f"one of {known} gone")


#: Where, and how many bytes: below the 12 of a header, a header, and more.
GARBAGE = [
    (where, count)
    for where, counts in {
        "before": (1, 11, 40),
        "inside": (1, 11, 40),
        "after": (1, 11, 40),
        "alone": (1, 12),
    }.items()
    for count in counts
]


@pytest.mark.parametrize("kind", KINDS)
async def test_case_garbage_before_inside_and_after_a_frame(kind: str, tmp_path: Path) -> None:
    """1 to 40 bytes that are no frame end their worker at once, with no limit set; RoadRunner waits for ever for the
    rest of less than 12 bytes, and takes 12 for a header."""
    # The garbage behind an answer may come when the worker has got the next request: that one is tried again.
    config = web_configuration(tmp_path, kind, 2, retry=True)
    port = port_of(config)
    # PHP's SDK writes a frame in one piece, so nothing can get inside.
    rows = [row for row in GARBAGE if kind == "python" or (row[0] != "inside" and row[1] != 11)]
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for number, (where, count) in enumerate(rows):
                reply = await ask(port, f"/garbage?where={where}&n={count}", "POST")
                if where == "after":
                    assert reply.status == 200
                else:
                    assert (reply.status, reply.headers["trailboss-reason"]) == (502, "worker died"), count
                assert (await ask(port, "/pid")).status == 200
                await wait_pool(server, deaths=number + 1)
            found = await deaths(server)
    assert len(rows) == len(found)
    assert {death["cause"] for death in found} <= {"stdout garbage", "protocol violation"}, found


@pytest.mark.parametrize("kind", KINDS)
async def test_case_grandchild_that_keeps_the_pipe_open(kind: str, tmp_path: Path) -> None:
    """A worker that dies and leaves children with its pipes is replaced at once and they go with it, those in a session
    of their own too; RoadRunner kills one pid, and waits for an end of stream that does not come."""
    config = web_configuration(tmp_path, kind, 1)
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for number in range(2):
                before = set(marked(server.mark))
                began = trio.current_time()
                reply = await ask(port, "/children?how=kill")
                assert reply.status == 502
                await wait_pool(server, deaths=number + 1)
                assert trio.current_time() - began <= 3 * PATIENCE
                assert (await ask(port, "/pid")).status == 200
                (worker,) = await pids(server)
                await until(
                    lambda before=before, worker=worker: set(marked(server.mark)) - before == {worker},  # type: ignore[misc]
                    3 * PATIENCE,
                    "the grandchildren gone",
                )


@pytest.mark.parametrize("kind", KINDS)
async def test_case_reload_from_inside_a_request(kind: str, tmp_path: Path) -> None:
    """A request that resets its own pool gets its answer, others go on meanwhile, and the pool is new; RoadRunner waits
    for the request, which waits for RoadRunner, and nobody is served any more."""
    config = web_configuration(tmp_path, kind, 2)
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for method in (
                "resetter.Reset",
                "informer.AddWorker",
                "informer.RemoveWorker",
                "informer.Workers",
            ):
                before = await pids(server)
                replies = {}

                async def one(name: str, target: str, replies: dict[str, bytes] = replies) -> None:
                    reply = await ask(port, target)
                    replies[name] = reply.body
                    assert reply.status == 200

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one, "call", f"/call?method={method}")
                    for number in range(10):
                        nursery.start_soon(one, str(number), "/slow?ms=20")
                assert replies["call"] == b"", (method, replies)
                await wait_pool(server)
                if method == "resetter.Reset":
                    assert not before & await pids(server)
            # All workers at once, so that nobody is left to serve the one who asks.
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(one, str(number), "/call?method=resetter.Reset")
            await wait_pool(server)
            assert await deaths(server) == []


@pytest.mark.parametrize("kind", MOSTLY_PYTHON)
async def test_case_memory_burst_inside_one_tick(kind: str, tmp_path: Path) -> None:
    """A worker that grows tenfold within one request answers and is replaced soon; RoadRunner samples every 5 s and hands
    it requests until then."""
    config = web_configuration(tmp_path, kind, 2, pool__supervisor={"max_worker_memory": 100})
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            reply = await ask(port, "/keep?mb=200")
            assert reply.status == 200
            victim = seen(int(reply.body))
            began = trio.current_time()
            while victim is not None and victim.alive:
                assert (await ask(port, "/pid")).status == 200
                await trio.sleep(0.01)
            assert trio.current_time() - began <= 2 * PATIENCE
            await wait_pool(server)
            assert await deaths(server) == []  # replaced, not killed


async def test_case_memory_burst_beyond_a_hard_limit(tmp_path: Path) -> None:
    """A burst that comes and goes within one request ends at a limit of the kernel, in the worker that made it;
    RoadRunner has nothing between two samples."""
    config = web_configuration(tmp_path, "python", 2, pool__process={"rlimits": {"as": str(600 << 20)}})
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            before = await pids(server)
            assert (await ask(port, "/burst?mb=100")).body == b"%d" % (100 << 20)
            assert (await ask(port, "/burst?mb=2000")).body == b"0"
            assert before == await pids(server)


@pytest.mark.parametrize("kind", MOSTLY_PYTHON)
async def test_case_cancelled_callers(kind: str, tmp_path: Path) -> None:
    """Clients that leave over what runs and what waits cost nothing: the same workers go on, no job is lost; RoadRunner
    kills the worker of a caller who leaves where exec_ttl is set, and cannot cancel at all where it is not."""
    config = web_configuration(tmp_path, kind, 2, pool__supervisor={"exec_ttl": "10s"})
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            before = await pids(server)
            for _ in range(3):
                await leave_in_the_middle(server.path, port)
                reply = await ask(port, "/pid")
                assert (reply.status, int(reply.body) in before) == (200, True)

            async def idle() -> bool:
                rows = (await server.call("informer.Workers", "http"))["workers"]
                return [row["status"] for row in rows] == [1, 1]

            await until_async(idle, 5 * PATIENCE, "both workers free")
            assert before == await pids(server)
            assert await deaths(server) == []
            books = await server.wait_quiet()
            assert books["done"] == books["pushed"] == len(server.ledger())
            assert 0 < books["pushed"] <= 3 * CALLERS


async def leave_in_the_middle(rpc_path: str, port: int) -> None:
    """Clients of the web server and of RPC that ask and hang up: orderly, by a reset, in the middle of the question."""
    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(4 * CALLERS)]
    for number, stream in enumerate(streams):
        question = request(f"/slow?ms={10 * number}")
        await stream.send_all(question[: len(question) // 2] if number % 4 == 3 else question)
    await trio.sleep(0.03)  # so that some run, and others wait
    for number, stream in enumerate(streams):
        if number % 2:
            linger = struct.pack("ii", 1, 0)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        await stream.aclose()
    for number in range(CALLERS):
        push = push_argument("work", "ack", f"cancelled-{number}-{secrets.token_hex(4)}")
        for call in (
            encode_request(1, "jobs.Push", push, PROTO),
            encode_request(1, "resetter.Reset", b'"jobs"', JSON),
            encode_request(1, "informer.Workers", b'"http"', JSON),
        ):
            client = await Client.connect(rpc_path)
            await client.send(call[: len(call) // 2] if number == CALLERS - 1 else call)
            client.close()
