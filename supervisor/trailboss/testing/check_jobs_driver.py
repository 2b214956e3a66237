"""What every jobs driver has to pass, whatever it keeps its jobs in.

`make` returns a driver for a pipeline; called twice with the same settings it has to return a driver over the same
storage, which is how durable drivers show that a stop loses nothing. The checks use trio's clock: run them under
``trio.testing.MockClock(autojump_threshold=0)`` for a driver without sockets and under real time for one with. A test
file needs no more than::

    @pytest.mark.parametrize("check", JOBS_DRIVER_CHECKS, ids=lambda check: check.__name__)
    async def test_driver(check, autojump_clock):
        await check_jobs_driver(MyDriver, check)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import trio

from trailboss.plugins.jobs.alarm import Alarm
from trailboss.plugins.jobs.contract import (
    Books,
    DriverHost,
    DriverSettings,
    Job,
    JobsDriver,
    PushRefused,
    Room,
    decode_headers,
    encode_headers,
    settled,
)

__all__ = ["JOBS_DRIVER_CHECKS", "DriverBench", "check_jobs_driver"]

MakeDriver = Callable[[DriverSettings, DriverHost], JobsDriver]

LATE_SECONDS_MAX: Final = 0.005
"""How late a delayed job may become ready."""
SOON_SECONDS: Final = 5.0
"""Longest wait for a job that has to come."""


class DriverBench:
    """One driver, running, with the calls of the plugin around it."""

    def __init__(
        self, make: MakeDriver, settings: DriverSettings, room: Room, sequence: Callable[[], int]
    ) -> None:
        self.settings = settings
        self._changed = trio.Event()
        self._alarm = Alarm(self._ring)
        host = DriverHost(
            clock=trio.current_time,
            wall_clock=time.time,
            next_sequence=sequence,
            wake_at=self._alarm.wake_at,
            ready_changed=self._notify,
            room=room,
        )
        self.driver = make(settings, host)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DriverBench]:
        """Run the driver; on leaving it is stopped and has returned."""
        stopping = trio.Event()
        async with trio.open_nursery() as alarm, trio.open_nursery() as nursery:
            alarm.start_soon(self._alarm.run)
            with trio.fail_after(SOON_SECONDS):
                await nursery.start(self.driver.run, stopping)
            yield self
            stopping.set()
            alarm.cancel_scope.cancel(reason="the check is over")

    def _ring(self, now: float) -> float:
        next_due = self.driver.on_time(now)
        self._notify()
        return next_due

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def push(self, *jobs: Job) -> None:
        """Push all jobs in one call."""
        await settled(self.driver.push(jobs))
        self.check_books()

    async def take(self) -> Job:
        """Receive the next job as the dispatcher does, waiting for it if need be."""
        with trio.fail_after(SOON_SECONDS):
            while True:
                job = self.driver.receive()
                if job is not None:
                    self.check_books()
                    return job
                await self._changed.wait()

    async def take_ids(self, number: int) -> list[str]:
        """Receive and ack `number` jobs; return their ids in order."""
        ids = []
        for _ in range(number):
            job = await self.take()
            await settled(self.driver.ack(job))
            ids.append(job.id)
        self.check_books()
        return ids

    async def check_nothing_comes(self, seconds: float) -> None:
        """Assert that no job is ready and none becomes ready within `seconds`."""
        assert self.driver.receive() is None
        await trio.sleep(seconds)
        assert self.driver.receive() is None

    def check_books(self) -> Books:
        """Assert that the books balance; return them."""
        books = self.driver.books()
        assert books.balanced, f"the books do not balance: {books}"
        assert len(self.driver.running) == books.running
        return books


async def check_jobs_driver(make: MakeDriver, *checks: Check) -> None:
    """Run `checks` (all without an argument) on drivers that `make` returns. Raises AssertionError."""
    for check in checks or JOBS_DRIVER_CHECKS:
        await check(make)


Check = Callable[[MakeDriver], Awaitable[None]]


def _job(name: str, priority: int = 10, delay_seconds: float = 0.0) -> Job:
    return Job(
        name, "App\\Task", f"payload of {name}".encode(), priority=priority, delay_seconds=delay_seconds
    )


def _bench(
    make: MakeDriver, room: int = 1_000_000, dead_letter_limit: int = 100, pipeline: str = "checked"
) -> DriverBench:
    settings = DriverSettings(pipeline, 10, dead_letter_limit, {"priority": 10})
    return DriverBench(make, settings, Room(room), count(1).__next__)


async def urgent_jobs_come_first(make: MakeDriver) -> None:
    """Lower priorities first; inside one priority in the order of the pushes."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a", 10), _job("b", 1), _job("c", 10), _job("d", -5), _job("e", 1))
        await bench.push(_job("f", 10), _job("g", -5))
        assert await bench.take_ids(7) == ["d", "g", "b", "e", "a", "c", "f"]


async def one_priority_is_first_in_first_out(make: MakeDriver) -> None:
    """Two hundred jobs of one priority come in the order in which they were pushed, singly and in batches."""
    async with _bench(make).running() as bench:
        names = [str(number) for number in range(200)]
        for name in names[:50]:
            await bench.push(_job(name))
        await bench.push(*[_job(name) for name in names[50:]])
        assert await bench.take_ids(200) == names


async def what_is_ready_can_be_received(make: MakeDriver) -> None:
    """As long as `ready` holds a job, `receive` returns one: the dispatcher stops at a driver that returns None."""
    async with _bench(make).running() as bench:
        for name in "abc":
            await bench.push(_job(name))
        received = 0
        with trio.move_on_after(SOON_SECONDS):
            while received < 3:
                while len(bench.driver.ready):
                    assert bench.driver.receive() is not None, "receive returned None although jobs are ready"
                    received += 1
                await trio.sleep(0.01)
        assert received == 3
        assert bench.driver.receive() is None


async def everything_about_a_job_is_kept(make: MakeDriver) -> None:
    """Id, name, payload, headers and priority come back as they were pushed."""
    async with _bench(make).running() as bench:
        headers = {"traceparent": ["00-aa-bb-01"], "名": ["é", ""]}
        payload = bytes(range(256))
        await bench.push(Job("j-1", "App\\Täsk", payload, encode_headers(headers), 3))
        job = await bench.take()
        assert (job.id, job.name, job.payload, job.priority) == ("j-1", "App\\Täsk", payload, 3)
        assert decode_headers(job.headers) == headers
        assert job.attempts == 0
        await settled(bench.driver.ack(job))


async def an_acked_job_never_comes_back(make: MakeDriver) -> None:
    """After an ack the job is done and gone."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a"))
        assert await bench.take_ids(1) == ["a"]
        await bench.check_nothing_comes(1.0)
        books = bench.check_books()
        assert (books.pushed, books.done) == (1, 1)


async def a_job_given_back_keeps_its_place(make: MakeDriver) -> None:
    """Given back in any order, jobs are where they were, before those that came later."""
    async with _bench(make).running() as bench:
        await bench.push(*[_job(name) for name in "abcdef"])
        taken = [await bench.take() for _ in range(4)]
        for position in (2, 0, 3, 1):
            await settled(bench.driver.give_back(taken[position]))
            bench.check_books()
        assert await bench.take_ids(6) == list("abcdef")


async def delays_are_exact(make: MakeDriver) -> None:
    """A delayed job never comes early, and at most five milliseconds late; they come in the order of their times."""
    async with _bench(make).running() as bench:
        begin = trio.current_time()
        delays = {"late": 1.5, "soon": 0.25, "sooner": 0.1, "now": 0.0}
        await bench.push(*[_job(name, delay_seconds=delay) for name, delay in delays.items()])
        assert bench.check_books().delayed == 3
        for name in ("now", "sooner", "soon", "late"):
            job = await bench.take()
            after = trio.current_time() - begin
            assert job.id == name
            assert delays[name] <= after <= delays[name] + LATE_SECONDS_MAX
            await settled(bench.driver.ack(job))


async def an_earlier_delay_moves_the_alarm(make: MakeDriver) -> None:
    """A job that is due earlier than all that is delayed already is not held up by them."""
    async with _bench(make).running() as bench:
        begin = trio.current_time()
        await bench.push(_job("hour", delay_seconds=3600))
        await bench.push(_job("second", delay_seconds=1))
        job = await bench.take()
        assert job.id == "second"
        assert 1 <= trio.current_time() - begin <= 1 + LATE_SECONDS_MAX
        await settled(bench.driver.ack(job))


async def a_requeued_job_comes_again(make: MakeDriver) -> None:
    """A requeued job joins the end, after its delay, with the attempts and headers it has then."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a"), _job("b"))
        job = await bench.take()
        begin = trio.current_time()
        job.attempts = 1
        job.headers = encode_headers({"why": ["crash"]})
        await settled(bench.driver.requeue(job, 0.5))
        assert bench.check_books().delayed == 1
        assert await bench.take_ids(1) == ["b"]
        again = await bench.take()
        assert 0.5 <= trio.current_time() - begin <= 0.5 + LATE_SECONDS_MAX
        assert (again.id, again.attempts) == ("a", 1)
        assert decode_headers(again.headers) == {"why": ["crash"]}
        await settled(bench.driver.requeue(again, 0.0))
        await bench.push(_job("c"))
        assert await bench.take_ids(2) == ["a", "c"]


async def a_nacked_job_is_a_dead_letter(make: MakeDriver) -> None:
    """A dead letter is listed with its reason, never runs, can be queued again from its first attempt, and purged."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a"), _job("b"), _job("c"))
        for _ in range(3):
            job = await bench.take()
            job.attempts = 5
            await settled(bench.driver.nack(job, f"reason of {job.id}", "signal"))
        await bench.check_nothing_comes(1.0)
        letters = bench.driver.dead_letters()
        assert [letter.job.id for letter in letters] == ["a", "b", "c"]
        assert (letters[0].reason, letters[0].cause) == ("reason of a", "signal")
        assert letters[0].job.payload == b"payload of a"
        assert await settled(bench.driver.revive(["b", "unknown"])) == ["b"]
        bench.check_books()
        job = await bench.take()
        assert (job.id, job.attempts) == ("b", 0)
        await settled(bench.driver.ack(job))
        assert await settled(bench.driver.purge(["a"])) == ["a"]
        assert await settled(bench.driver.purge(None)) == ["c"]
        books = bench.check_books()
        assert (books.dead, books.dead_listed, books.dead_purged, books.done) == (2, 0, 2, 1)


async def dead_letters_are_bounded(make: MakeDriver) -> None:
    """Beyond the limit the oldest dead letter goes, and is counted."""
    async with _bench(make, dead_letter_limit=2).running() as bench:
        await bench.push(*[_job(name) for name in "abcd"])
        for _ in range(4):
            await settled(bench.driver.nack(await bench.take(), "why"))
        assert [letter.job.id for letter in bench.driver.dead_letters()] == ["c", "d"]
        books = bench.check_books()
        assert (books.dead, books.dead_listed, books.dead_dropped) == (4, 2, 2)


async def pause_keeps_the_order(make: MakeDriver) -> None:
    """What is pushed before, during and after a pause comes in the order of the pushes."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a"), _job("b"))
        await settled(bench.driver.pause())
        await bench.push(_job("c"), _job("urgent", 1))
        await settled(bench.driver.resume())
        await bench.push(_job("d"))
        assert await bench.take_ids(5) == ["urgent", "a", "b", "c", "d"]


async def a_push_is_all_or_nothing(make: MakeDriver) -> None:
    """A push that does not fit is refused and leaves nothing behind; one that fits is taken afterwards."""
    async with _bench(make, room=10).running() as bench:
        if bench.driver.durable:
            return  # its room is the broker's
        await bench.push(*[_job(str(number)) for number in range(8)])
        before = bench.check_books()
        refused = ""
        try:
            await bench.push(*[_job(f"more-{number}") for number in range(3)])
        except PushRefused as error:
            refused = str(error)
        assert "queue is full" in refused
        assert bench.check_books() == before
        assert bench.driver.free_places() == 2
        await bench.push(_job("8"), _job("9"))
        assert await bench.take_ids(10) == [str(number) for number in range(10)]
        assert bench.driver.free_places() == 10


async def destroy_drops_what_waits(make: MakeDriver) -> None:
    """Destroyed: what waits and what is delayed is gone and counted; what runs can still be settled."""
    async with _bench(make, room=100).running() as bench:
        await bench.push(*[_job(name) for name in "abcd"], _job("later", delay_seconds=60))
        running = [await bench.take() for _ in range(3)]
        assert await settled(bench.driver.destroy()) == 2
        books = bench.check_books()
        assert (books.waiting, books.delayed, books.running, books.destroyed) == (0, 0, 3, 2)
        await settled(bench.driver.ack(running[0]))
        await settled(bench.driver.requeue(running[1], 0.0))
        await settled(bench.driver.give_back(running[2]))
        assert bench.driver.receive() is None
        books = bench.check_books()
        assert (books.done, books.destroyed, books.running) == (1, 4, 0)


async def stop_loses_nothing(make: MakeDriver) -> None:
    """A stop with jobs waiting, delayed and running keeps every one: in the books, and durable ones for the next start."""
    sequence = count(1).__next__
    settings = DriverSettings("stopped", 10, 100, {"priority": 10})
    bench = DriverBench(make, settings, Room(100), sequence)
    async with bench.running():
        await bench.push(_job("running"), _job("waiting"), _job("delayed", delay_seconds=1.0))
        assert (await bench.take()).id == "running"
    books = bench.check_books()
    assert books.waiting + books.delayed + books.running == 3
    if not bench.driver.durable:
        return
    bench = DriverBench(make, settings, Room(100), sequence)
    async with bench.running():
        assert sorted(await bench.take_ids(3)) == ["delayed", "running", "waiting"]


async def a_job_is_settled_once(make: MakeDriver) -> None:
    """A second verb on the same run is an error and changes nothing."""
    async with _bench(make).running() as bench:
        await bench.push(_job("a"))
        job = await bench.take()
        await settled(bench.driver.ack(job))
        before = bench.check_books()
        driver = bench.driver
        verbs: Sequence[Callable[[], Awaitable[None] | None]] = (
            lambda: driver.ack(job),
            lambda: driver.nack(job, "why"),
            lambda: driver.requeue(job, 0.0),
            lambda: driver.give_back(job),
        )
        for verb in verbs:
            raised = False
            try:
                await settled(verb())
            except KeyError:
                raised = True
            assert raised
            assert bench.check_books() == before


JOBS_DRIVER_CHECKS: Final[Sequence[Check]] = (
    urgent_jobs_come_first,
    one_priority_is_first_in_first_out,
    what_is_ready_can_be_received,
    everything_about_a_job_is_kept,
    an_acked_job_never_comes_back,
    a_job_given_back_keeps_its_place,
    delays_are_exact,
    an_earlier_delay_moves_the_alarm,
    a_requeued_job_comes_again,
    a_nacked_job_is_a_dead_letter,
    dead_letters_are_bounded,
    pause_keeps_the_order,
    a_push_is_all_or_nothing,
    destroy_drops_what_waits,
    stop_loses_nothing,
    a_job_is_settled_once,
)
"""All checks, in the order in which they read best."""
