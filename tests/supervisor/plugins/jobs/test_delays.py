"""Delayed jobs: the heap and the one alarm in front of it."""

from __future__ import annotations

from math import inf

import trio
import trio.testing

from trailboss.plugins.jobs.alarm import Alarm
from trailboss.plugins.jobs.delays import DelayHeap


def test_due_items_come_by_time_then_by_arrival() -> None:
    """Nothing comes before its time; equal times come in the order in which they were added."""
    heap: DelayHeap[str] = DelayHeap()
    for due, name in ((3.0, "c"), (1.0, "a"), (1.0, "b"), (7.0, "d")):
        heap.add(due, name)
    assert heap.take_due(0.999, 10) == []
    assert heap.take_due(1.0, 10) == ["a", "b"]
    assert heap.next_due == 3.0
    assert heap.take_due(100.0, 1) == ["c"]
    assert heap.take_due(100.0, 10) == ["d"]
    assert heap.next_due == inf


def test_clear_says_how_many() -> None:
    """A cleared heap has nothing due and says how many items that took."""
    heap: DelayHeap[str] = DelayHeap()
    heap.add(1.0, "a")
    heap.add(2.0, "b")
    assert sorted(heap) == ["a", "b"]
    assert heap.clear() == 2
    assert (len(heap), heap.take_due(9.0, 9)) == (0, [])


async def test_alarm_rings_at_the_earliest_wish(autojump_clock: trio.testing.MockClock) -> None:
    """An earlier wish moves the alarm forward, a later one does not move it, and it rings once for all."""
    rung: list[float] = []

    def ring(now: float) -> float:
        rung.append(now)
        return inf

    alarm = Alarm(ring)
    begin = trio.current_time()
    alarm.wake_at(begin + 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(1)
        alarm.wake_at(begin + 3)
        alarm.wake_at(begin + 10)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert [round(moment - begin, 6) for moment in rung] == [3.0]
    assert alarm.next_due == inf


async def test_alarm_follows_what_ring_returns(autojump_clock: trio.testing.MockClock) -> None:
    """It rings again when `ring` says so, also for a moment that has passed, without starving others."""
    rung: list[float] = []
    begin = trio.current_time()

    def ring(now: float) -> float:
        rung.append(now - begin)
        return now - 1 if len(rung) < 5 else inf

    alarm = Alarm(ring)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        alarm.wake_at(begin + 2)
        with trio.fail_after(10):
            await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert [round(moment, 6) for moment in rung] == [2.0] * 5


async def test_alarm_after_a_pause(autojump_clock: trio.testing.MockClock) -> None:
    """When the clock has jumped over many due times, everything due is found at the first ring."""
    heap: DelayHeap[int] = DelayHeap()
    begin = trio.current_time()
    released: list[int] = []

    def ring(now: float) -> float:
        released.extend(heap.take_due(now, 1000))
        return heap.next_due

    alarm = Alarm(ring)
    for number in range(500):
        heap.add(begin + number, number)
        alarm.wake_at(begin + number)
    async with trio.open_nursery() as nursery:
        autojump_clock.jump(1000)
        nursery.start_soon(alarm.run)
        await trio.testing.wait_all_tasks_blocked()
        assert released == list(range(500))
        nursery.cancel_scope.cancel()
