"""The memory driver: the checks of every driver, and books that balance whatever happens in whatever order."""

from __future__ import annotations

from itertools import count
from math import inf

import pytest
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trailboss.plugins.jobs.contract import DriverHost, DriverSettings, Job, PushRefused, Room, Share
from trailboss.plugins.jobs.drivers import DRIVERS, UnknownDriver, make_driver
from trailboss.plugins.jobs.drivers.memory import MemoryDriver
from trailboss.testing.check_jobs_driver import (
    JOBS_DRIVER_CHECKS,
    Check,
    check_jobs_driver,
    what_is_ready_can_be_received,
)


@pytest.mark.parametrize("check", JOBS_DRIVER_CHECKS, ids=lambda check: check.__name__)
async def test_contract(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    """The memory driver keeps every promise of the driver contract."""
    with trio.fail_after(7200):
        await check_jobs_driver(MemoryDriver, check)


def make_host(room: Room, clock: list[float], woken: list[float]) -> DriverHost:
    return DriverHost(
        clock=lambda: clock[0],
        wall_clock=lambda: 1_700_000_000.0,
        next_sequence=count(1).__next__,
        wake_at=woken.append,
        ready_changed=lambda: None,
        room=room,
    )


def test_unknown_driver_names_the_known_ones() -> None:
    """An unknown driver is an error that lists those there are."""
    host = make_host(Room(1), [0.0], [])
    with pytest.raises(UnknownDriver, match=r"'amqp' of pipeline 'mail'; known drivers: memory"):
        make_driver("amqp", DriverSettings("mail"), host)


def test_every_driver_of_the_table_has_its_name() -> None:
    """The table of drivers is keyed by the name each driver has itself."""
    for kind, driver in DRIVERS.items():
        assert driver.kind == kind


def test_a_thousand_due_jobs_at_a_time() -> None:
    """After a pause everything is due; it becomes ready in bounded portions, one call after the other."""
    clock = [0.0]
    driver = MemoryDriver(DriverSettings("main"), make_host(Room(10_000), clock, []))
    driver.push([Job(str(number), "t", b"", delay_seconds=number + 1) for number in range(2500)])
    clock[0] = 10_000.0
    assert driver.on_time(clock[0]) <= clock[0]
    assert len(driver.ready) == 1000
    driver.on_time(clock[0])
    assert driver.on_time(clock[0]) == inf
    assert [job.id for job in driver.ready] == [str(number) for number in range(2500)]


class DriverMachine(RuleBasedStateMachine):
    """Every verb in any order against a model of ids in places."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = [0.0]
        self.room = Room(12)
        self.driver = MemoryDriver(
            DriverSettings("main", dead_letter_limit=3), make_host(self.room, self.clock, [])
        )
        self.number = 0
        self.pushed = 0
        self.done = 0
        self.running: list[Job] = []
        self.served: dict[int, list[int]] = {}
        self.away: list[Share] = []
        self.gone = 0

    @rule(
        priority=st.integers(1, 3),
        delays=st.lists(st.sampled_from([0.0, 0.0, 1.0, 5.0]), min_size=1, max_size=4),
    )
    def push(self, priority: int, delays: list[float]) -> None:
        jobs = []
        for delay in delays:
            self.number += 1
            jobs.append(Job(f"j{self.number}", "t", b"", priority=priority, delay_seconds=delay))
        fits = self.driver.free_places() >= len(jobs)
        before = self.driver.books()
        try:
            self.driver.push(jobs)
        except PushRefused:
            assert not fits
            assert self.driver.books() == before
        else:
            assert fits
            self.pushed += len(jobs)

    @rule()
    def receive(self) -> None:
        waiting = list(self.driver.ready)
        job = self.driver.receive()
        assert job is (waiting[0] if waiting else None)
        if job is not None:
            # First in, first out inside one priority: nothing older of the same priority waits.
            assert all(
                other.sequence > job.sequence for other in waiting[1:] if other.priority == job.priority
            )
            assert all(other.priority >= job.priority for other in waiting)
            self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verb=st.sampled_from(["ack", "nack", "requeue", "requeue later", "give back"]))
    def settle(self, data: st.DataObject, verb: str) -> None:
        job = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if verb == "ack":
            self.driver.ack(job)
            self.done += 1
        elif verb == "nack":
            self.driver.nack(job, "why")
        elif verb == "give back":
            self.driver.give_back(job)
        else:
            self.driver.requeue(job, 2.0 if verb == "requeue later" else 0.0)

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock[0] += seconds
        assert self.driver.on_time(self.clock[0]) > self.clock[0]

    @rule(everything=st.booleans())
    def revive(self, everything: bool) -> None:
        letters = self.driver.dead_letters()
        ids = None if everything or not letters else [letters[-1].job.id]
        before = self.driver.books()
        try:
            revived = self.driver.revive(ids)
        except PushRefused:
            assert self.driver.books() == before
        else:
            assert self.driver.books().dead == before.dead - len(revived)

    @rule()
    def purge(self) -> None:
        before = self.driver.books()
        assert len(self.driver.purge(None)) == before.dead_listed

    @rule(bytes_about=st.sampled_from([1, 200, 10_000]))
    def let_go(self, bytes_about: int) -> None:
        waiting = list(self.driver.ready)
        before = self.driver.books()
        share = self.driver.let_go(bytes_about)
        if share is None:
            assert before.waiting + before.delayed + before.dead_listed == 0
            return
        assert share.waiting == waiting[: len(share.waiting)]
        assert [due for due, _ in share.delayed] == sorted(due for due, _ in share.delayed)
        assert self.driver.books().handed_over == before.handed_over + len(share)
        self.away.append(share)

    @precondition(lambda self: self.away)
    @rule()
    def take_back(self) -> None:
        share = self.away.pop()
        self.driver.take_back(share)
        waiting = list(self.driver.ready)
        assert waiting == sorted(waiting, key=lambda job: (job.priority, job.sequence))

    @precondition(lambda self: self.away)
    @rule()
    def another_takes_over(self) -> None:
        share = self.away.pop()
        self.gone += len(share)
        other = MemoryDriver(DriverSettings("main", dead_letter_limit=3), make_host(Room(1), self.clock, []))
        other.take_over(share)
        books = other.books()
        assert books.balanced
        assert books.taken_over == len(share) == books.waiting + books.delayed + books.dead

    @rule()
    def destroy(self) -> None:
        if self.number % 7 == 6:
            before = self.driver.books()
            assert self.driver.destroy() == before.waiting + before.delayed

    @invariant()
    def books_balance(self) -> None:
        books = self.driver.books()
        assert books.balanced
        assert (books.pushed, books.done, books.running) == (self.pushed, self.done, len(self.running))
        assert self.room.used == books.waiting + books.delayed + books.running
        assert books.dead_listed <= 3
        assert books.handed_over == self.gone + sum(len(share) for share in self.away)


DriverMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDriver = DriverMachine.TestCase


async def test_the_contract_finds_a_driver_that_gives_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A driver whose `receive` returns None although jobs are ready does not pass."""

    class Forgetful(MemoryDriver):
        def receive(self) -> None:
            return None

    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match="although jobs are ready"), flatten_subgroups=True
    ):
        await check_jobs_driver(Forgetful, what_is_ready_can_be_received)
