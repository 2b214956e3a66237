"""The queues' estate: what is written can be read, nothing else is, and every job keeps its place and its moment."""

from __future__ import annotations

import socket
from contextlib import suppress
from itertools import count
from math import isfinite

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trailboss.handover import Handover
from trailboss.messages import jobs_pb2
from trailboss.parcels import ParcelRefused, Sender, pack, unpack
from trailboss.plugins.jobs.contract import NO_HEADERS, DeadLetter, Job, Share, encode_headers
from trailboss.plugins.jobs.estate import ESTATE_VERSION, pack_share, read_share
from trailboss.plugins.jobs.priority_queue import PriorityQueue
from trailboss.workers.outcome import SoftError

from .conftest import Server, StartServer

TEXT = st.text(max_size=20)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Any job."""
    job = Job(
        draw(st.text(min_size=1, max_size=20)),
        draw(TEXT),
        draw(st.binary(max_size=50)),
        encode_headers(draw(st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=3))),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.floats(0, 1e9)),
        draw(st.booleans()),
    )
    job.attempts = draw(st.integers(0, 2**31))
    return job


def members(job: Job) -> tuple[object, ...]:
    """What makes a job, but for its place."""
    return (
        job.id,
        job.name,
        job.payload,
        job.headers,
        job.priority,
        job.delay_seconds,
        job.auto_ack,
        job.attempts,
        job.members,
    )


@st.composite
def shares(draw: st.DrawFn) -> Share:
    """Any share; jobs that wait have different sequence numbers, as those of one server."""
    waiting = draw(st.lists(jobs(), max_size=8))
    numbers = draw(
        st.lists(st.integers(-1000, 1000), min_size=len(waiting), max_size=len(waiting), unique=True)
    )
    for job, number in zip(waiting, numbers, strict=True):
        job.sequence = number
    delayed = draw(st.lists(st.tuples(st.floats(0, 1e6), jobs()), max_size=4))
    dead = draw(st.lists(st.builds(DeadLetter, jobs(), TEXT, TEXT, st.floats(0, 2e9)), max_size=4))
    return Share(waiting, delayed, dead)


def travel(share: Share, first_sequence: int, offset: float = 0.0, own: int = 1) -> Share:
    """Through the bytes of a parcel, to a server whose next own number is `own`."""
    content = unpack(pack(pack_share(share, first_sequence=first_sequence, clock_offset=offset)))
    assert isinstance(content, dict)
    return read_share(content, next_sequence=count(own).__next__, clock_offset=offset)


@given(share=shares(), first=st.integers(-500, 500))
def test_a_share_arrives_as_it_was(share: Share, first: int) -> None:
    """Every member of every job; who was older than the handover is before everything of the new server, in order."""
    other = travel(share, first)
    assert [members(job) for job in other.waiting] == [members(job) for job in share.waiting]
    assert [(due, members(job)) for due, job in other.delayed] == [
        (due, members(job)) for due, job in share.delayed
    ]
    assert [(members(letter.job), letter.reason, letter.cause, letter.died_at) for letter in other.dead] == [
        (members(letter.job), letter.reason, letter.cause, letter.died_at) for letter in share.dead
    ]
    assert all(job.headers is NO_HEADERS for job in other.waiting if job.headers == NO_HEADERS)
    numbers = {job.id: job.sequence for job in other.waiting}
    assert len({job.sequence for job in other.waiting}) == len(other.waiting)
    older = [
        (job, mine) for job, mine in zip(share.waiting, other.waiting, strict=True) if job.sequence < first
    ]
    assert all(mine.sequence < 0 for _, mine in older)
    assert sorted(older, key=lambda pair: pair[0].sequence) == sorted(
        older, key=lambda pair: pair[1].sequence
    )
    assert all(number != 0 for number in numbers.values())


@given(numbers=st.lists(st.integers(1, 100), unique=True, min_size=1, max_size=20), data=st.data())
def test_the_order_survives_two_upgrades(numbers: list[int], data: st.DataObject) -> None:
    """In any number of parcels, twice: the same order, before what the servers have got themselves."""
    waiting = []
    for number in sorted(numbers):
        job = Job(str(number), "t", b"")
        job.sequence = number
        waiting.append(job)
    expected = [job.id for job in waiting]
    for _ in range(2):
        queue: PriorityQueue[Job] = PriorityQueue()
        own = Job("own", "t", b"")
        own.sequence = 1
        queue.push(own)
        size = data.draw(st.integers(1, len(waiting)))
        for start in range(0, len(waiting), size):
            queue.insert(travel(Share(waiting[start : start + size]), first_sequence=1000, own=2).waiting)
        waiting = list(queue)
        assert [job.id for job in waiting if job.id != "own"] == expected
        waiting = [job for job in waiting if job.id != "own"]


def test_moments_are_those_of_the_machine() -> None:
    """A delayed job is due at the same time by a clock that has begun elsewhere."""
    content = pack_share(Share(delayed=[(130.0, Job("a", "t", b""))]), first_sequence=1, clock_offset=1000.0)
    share = read_share(content, next_sequence=count(1).__next__, clock_offset=900.0)  # type: ignore[arg-type] # its keys are texts
    assert [due for due, _ in share.delayed] == [230.0]


GOOD = ["id", "name", b"", "{}", 10, 0.0, False, 1, "", -1]


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, 7, "id of a job is a int, not a str"),
        (2, "text", "payload of a job is a str"),
        (3, "[1]", "headers of the job"),
        (3, '{"a": "b"}', "headers of the job"),
        (3, "{", "headers of the job"),
        (4, True, "priority of a job is a bool"),
        (5, float("nan"), "make no sense"),
        (7, -1, "make no sense"),
        (9, 5, "a waiting job without a place"),
        (9, None, "a waiting job without a place"),
    ],
)
def test_jobs_that_make_no_sense(place: int, value: object, text: str) -> None:
    """Each is refused with what is wrong."""
    row = [*GOOD]
    row[place] = value
    with pytest.raises(ParcelRefused, match=text):
        read_share(
            {"waiting": [row], "delayed": [], "dead": []}, next_sequence=count(1).__next__, clock_offset=0.0
        )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | TEXT | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=11) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=30,
)


@given(waiting=ANYTHING, delayed=ANYTHING, dead=ANYTHING, last=ANYTHING)
def test_no_content_does_harm(waiting: object, delayed: object, dead: object, last: object) -> None:
    """Whatever it is, it is a share or refused."""
    for content in (
        {"waiting": waiting, "delayed": delayed, "dead": dead},
        {"waiting": [], "delayed": [[*GOOD[:-1], last]], "dead": [[*GOOD[:-1], last]]},
    ):
        with suppress(ParcelRefused):
            share = read_share(content, next_sequence=count(1).__next__, clock_offset=0.0)
            assert all(isinstance(job, Job) and job.attempts >= 0 for job in share.waiting)
            assert all(isfinite(due) for due, _ in share.delayed)
            assert all(isfinite(letter.died_at) for letter in share.dead)


async def hand_over(old: Server, new: Server) -> None:
    """Everything that the old server has, through the bytes of parcels."""
    declared = old.plugin.declarations()
    if declared is not None:
        await new.plugin.receive(unpack(pack(declared.content)))
    while (parcel := old.plugin.next_parcel()) is not None:
        assert await new.plugin.receive(unpack(pack(parcel.content))) == parcel.items


def waiting_ids(server: Server, name: str) -> list[str]:
    """The ids of the jobs that wait in a pipeline, in the order in which they would run."""
    return [job.id for job in server.plugin.pipelines.by_name[name].driver.ready]


async def test_everything_but_what_runs(start_server: StartServer) -> None:
    """Waiting by priority, delayed, dead with attempts, paused, declared: all is there, and both books balance."""
    async with (
        start_server(num_workers=1, pipelines=("main", "held"), max_attempts=1) as old,
        start_server(num_workers=1, pipelines=("main", "held"), consume=("main", "held")) as new,
    ):
        with structlog.testing.capture_logs():
            await old.push("dies")
            old.pool.finish(old.pool.running[0], SoftError("no"))
            await old.push("runs")
            for job_id, priority in (("second", 20), ("first", 5), ("third", 20)):
                await old.push(job_id, priority=priority)
            await old.push("later", delay=3600)
            declared = {"name": "extra", "driver": "memory", "priority": "3"}
            await old.call("jobs.Declare", jobs_pb2.DeclareRequest(pipeline=declared))
            await old.call("jobs.Pause", jobs_pb2.Pipelines(pipelines=["held"]))
            await old.push("held", "held")
            await old.push("in extra", "extra")
            await hand_over(old, new)
        assert new.running_ids() == ["first"]
        assert (old.books.running, old.books.handed_over, old.books.dead) == (1, 7, 0)
        books = new.books
        assert (books.taken_over, books.running, books.waiting, books.delayed) == (7, 1, 4, 1)
        dead = await new.call("jobs.Dead", {})
        assert isinstance(dead, dict)
        assert [(row["id"], row["attempts"], row["pipeline"]) for row in dead["jobs"]] == [
            ("dies", 1, "main")
        ]
        assert waiting_ids(new, "main") == ["second", "third"]
        states = {name: pipeline.state.value for name, pipeline in new.plugin.pipelines.by_name.items()}
        assert states == {"main": "consumed", "held": "paused", "extra": "paused"}
        # The run ends where it has begun, and what it pushes follows.
        await old.push("child")
        old.pool.finish(old.pool.running[0])
        await hand_over(old, new)
        assert (old.books.done, old.books.waiting) == (1, 0)
        assert waiting_ids(new, "main") == ["child", "second", "third"]


async def test_a_pipeline_that_is_configured_no_more(start_server: StartServer) -> None:
    """It is made for the jobs that come for it, consumed as it was; without jobs it is not."""
    async with (
        start_server(
            pipelines=("main", "gone", "empty"), consume=("main", "gone", "empty"), num_workers=0
        ) as old,
        start_server(num_workers=1) as new,
    ):
        with structlog.testing.capture_logs() as logs:
            await old.push("last", "gone")
            await hand_over(old, new)
        assert new.running_ids() == ["last"]
        assert list(new.plugin.pipelines.by_name) == ["main", "gone"]
        assert [entry["pipeline"] for entry in logs if "kept for the jobs" in entry["event"]] == ["gone"]


async def test_more_jobs_than_there_are_places_for(start_server: StartServer) -> None:
    """A smaller `pipeline_size` of the new server refuses pushes and no job of the old one."""
    async with start_server(opened=False) as old, start_server(opened=False, pipeline_size=3) as new:
        for number in range(5):
            await old.push(str(number))
        await hand_over(old, new)
        assert (new.books.waiting, new.plugin.room.free) == (5, 0)
        with pytest.raises(Exception, match="queue is full: 5 of 3 jobs"):
            await new.push("more")


async def test_a_replaced_server_waits_for_the_one_before_it(start_server: StartServer) -> None:
    """What that still sends comes here first and goes on to the successor; only then this server has drained."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.setblocking(False)
        theirs.setblocking(False)
        async with start_server(num_workers=0) as middle, start_server() as last:
            handover = middle.plugin.handover
            handover.received = trio.Event()
            handover.heir = Sender(mine, {"jobs": ESTATE_VERSION})
            handover.given_up = True
            after = Handover([], theirs)
            after.in_charge.set()
            after.add_estate("jobs", ESTATE_VERSION, last.plugin)
            with trio.fail_after(10), structlog.testing.capture_logs():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(after.receive)
                    await middle.plugin.close_intake()
                    drained = trio.Event()

                    async def drain() -> None:
                        await middle.plugin.drain()
                        drained.set()

                    nursery.start_soon(drain)
                    await trio.testing.wait_all_tasks_blocked()
                    assert not drained.is_set()
                    await middle.push("late")
                    handover.received.set()
                    await drained.wait()
                    mine.close()
            assert (middle.books.handed_over, last.books.taken_over) == (1, 1)
            assert last.running_ids() == ["late"]
            handover.heir = None


async def test_a_server_that_stops_takes_nothing(start_server: StartServer) -> None:
    """It says so, and the old server goes on with its jobs."""
    async with start_server(opened=False) as old, start_server() as new:
        await old.push("a")
        await new.plugin.close_intake()
        parcel = old.plugin.next_parcel()
        assert parcel is not None
        with pytest.raises(ParcelRefused, match="the new server is stopping"):
            await new.plugin.receive(parcel.content)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"pipelines": [{"name": "x"}]},
        {
            "pipelines": [
                {
                    "name": "x",
                    "driver": "nothing",
                    "options": {},
                    "declared": True,
                    "consumed": True,
                    "wanted": "",
                }
            ]
        },
        {"pipeline": "unheard", "waiting": [], "delayed": [], "dead": []},
        {"pipeline": "main", "waiting": [GOOD, [*GOOD[:-1], "?"]], "delayed": [], "dead": []},
    ],
)
async def test_parcels_that_make_no_sense(start_server: StartServer, content: object) -> None:
    """Nothing of them is taken in."""
    async with start_server(opened=False) as new:
        with pytest.raises(ParcelRefused):
            await new.plugin.receive(content)
        assert new.books.taken_over == 0
        assert list(new.plugin.pipelines.by_name) == ["main"]
