"""The reactor and its wheel: readiness, containment, deadlines."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio

from trailboss.reactor import CALLS_PER_LOOK, Reactor, Wheel


@pytest.fixture
async def reactor(nursery: trio.Nursery) -> AsyncIterator[Reactor]:
    """A running reactor."""
    reactor = Reactor()
    await nursery.start(reactor.run)
    yield reactor
    nursery.cancel_scope.cancel()
    reactor.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A non-blocking pipe."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


async def test_readable(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """The object is called when there is something to read, and not after it was unregistered."""
    read, write = pipe
    got = trio.Event()
    calls = []

    def on_readable() -> None:
        calls.append(os.read(read, 100))
        got.set()

    reactor.register(read, on_readable)
    with pytest.raises(FileExistsError):
        reactor.register(read, on_readable)
    os.write(write, b"one")
    with trio.fail_after(2):
        await got.wait()
    assert calls == [b"one"]
    reactor.unregister(read)
    reactor.unregister(read)
    os.write(write, b"two")
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert calls == [b"one"]


async def test_failing_object_is_closed_and_others_go_on(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """An exception costs its object; `on_error` hears of it after the descriptor was unregistered."""
    read, write = pipe
    told = trio.Event()
    errors: list[BaseException] = []

    def fails() -> None:
        raise ValueError("mine")

    def on_error(error: BaseException) -> None:
        errors.append(error)
        assert not reactor.is_registered(read)
        told.set()

    reactor.register(read, fails, None, on_error)
    os.write(write, b"x")
    with trio.fail_after(2):
        await told.wait()
    assert isinstance(errors[0], ValueError)
    assert reactor.failures == 1
    ran = trio.Event()
    reactor.call_soon(ran.set)
    with trio.fail_after(2):
        await ran.wait()


async def test_failing_deferred_call(reactor: Reactor) -> None:
    """A deferred call that raises does not keep the next one from running."""
    ran = trio.Event()

    def fails() -> None:
        raise ValueError("mine")

    reactor.call_soon(fails)
    reactor.call_soon(ran.set)
    with trio.fail_after(2):
        await ran.wait()
    assert reactor.failures == 1


async def test_writer_hears_of_the_closed_reader(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """A write end is silent until its reader goes away."""
    read, write = pipe
    told = trio.Event()

    def on_writable() -> None:
        reactor.unregister(write)
        told.set()

    reactor.register_writer(write, on_writable)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert not told.is_set()
    os.close(read)
    with trio.fail_after(2):
        await told.wait()


async def test_paused_reader(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """Back-pressure: paused, it is not called; resumed, it is."""
    read, write = pipe
    got = trio.Event()

    def on_readable() -> None:
        os.read(read, 100)
        got.set()

    reactor.register(read, on_readable)
    reactor.pause_read(read, True)
    os.write(write, b"x")
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert not got.is_set()
    reactor.pause_read(read, False)
    with trio.fail_after(2):
        await got.wait()
    reactor.unregister(read)


async def test_tasks_get_their_turn(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """An object that is always ready does not starve the tasks."""
    read, write = pipe
    calls = 0

    def on_readable() -> None:
        nonlocal calls
        calls += 1

    reactor.register(read, on_readable)
    os.write(write, b"x")
    with trio.fail_after(5):
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        before = calls
        await trio.sleep(0.05)
    assert calls > before
    reactor.unregister(read)


async def test_lingering_keeps_no_task_waiting(
    reactor: Reactor, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop waits for more in epoll only while no task can run: one that a callback has woken goes first."""
    monkeypatch.setattr("trailboss.reactor.LINGER_SECONDS", 3.0)
    read, write = pipe
    woken = [trio.Event() for _ in range(3)]
    seen: list[bytes] = []

    def on_readable() -> None:
        seen.append(os.read(read, 1))
        woken[len(seen) - 1].set()

    reactor.register(read, on_readable)
    took = []
    for event in woken:
        began = time.monotonic()
        os.write(write, b"x")
        with trio.fail_after(10):
            await event.wait()
        took.append(time.monotonic() - began)
    assert max(took) < 1.5
    reactor.unregister(read)


async def test_lingering_sees_what_comes_one_by_one(
    reactor: Reactor, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While events come one after the other, the loop takes them without a turn of trio in between."""
    monkeypatch.setattr("trailboss.reactor.LINGER_SECONDS", 0.5)
    monkeypatch.setattr("trailboss.reactor.BATCH_SECONDS_MAX", 60.0)
    read, write = pipe
    slept = 0
    done = trio.Event()
    left = 50

    class Sleeps(trio.abc.Instrument):
        """Counts how often trio sleeps."""

        def before_io_wait(self, timeout: float) -> None:
            """It is about to."""
            nonlocal slept
            slept += 1

    def on_readable() -> None:
        nonlocal left
        os.read(read, 1)
        left -= 1
        if left:
            os.write(write, b"x")
        else:
            done.set()

    reactor.register(read, on_readable)
    trio.lowlevel.add_instrument(Sleeps())
    os.write(write, b"x")
    with trio.fail_after(10):
        await done.wait()
    assert slept <= 3
    reactor.unregister(read)


async def test_reactor_leaves_no_instrument_behind() -> None:
    """What it counts tasks with goes when it ends, so nothing slows trio down afterwards."""
    for _ in range(2):
        reactor = Reactor()
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            counted = len(_instruments())
            assert counted >= 1
            nursery.cancel_scope.cancel()
        reactor.close()
        assert len(_instruments()) == counted - 1


def _instruments() -> dict[object, object]:
    """Instruments of this run."""
    return dict(trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments["_all"])  # type: ignore[attr-defined]


async def test_idle_reactor_does_nothing(reactor: Reactor) -> None:
    """Nothing to do: no batch, no wake-up."""
    await trio.testing.wait_all_tasks_blocked(0.02)
    before = reactor.batches
    await trio.sleep(0.1)
    assert reactor.batches == before


def test_wheel_is_never_early_and_one_tick_late_at_most() -> None:
    """Each callback runs once, at its deadline or up to a tick later, in order."""
    wheel = Wheel()
    fired: list[tuple[float, float]] = []
    for number in range(200):
        deadline = 10 + number * 0.0037
        wheel.add(deadline, lambda now, deadline=deadline: fired.append((deadline, now)))  # type: ignore[misc]
    assert len(wheel) == 200
    now = 10.0
    while wheel.next_deadline() is not None:
        now = max(now, wheel.next_deadline() or 0)
        wheel.expire(now)
    assert len(fired) == 200
    assert all(deadline <= now <= deadline + Wheel.TICK_SECONDS + 1e-9 for deadline, now in fired)
    assert [deadline for deadline, _ in fired] == sorted(deadline for deadline, _ in fired)


def test_wheel_contains_failures_and_takes_new_entries_meanwhile() -> None:
    """A failing callback is dropped; one that adds itself again does not run twice in one turn."""
    wheel = Wheel()
    ran = []

    def fails(_now: float) -> None:
        raise ValueError("mine")

    def again(now: float) -> None:
        ran.append(now)
        wheel.add(now, again)

    wheel.add(1.0, fails)
    wheel.add(1.0, again)
    assert wheel.expire(1.05) == 2
    assert ran == [1.05]
    assert wheel.expire(1.05) == 0
    assert wheel.expire(1.08) == 1


async def test_wheel_wakes_for_an_earlier_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """An entry that is due before the one waited for is run in its own time."""
    wheel = Wheel()
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run, trio.current_time)
        start = trio.current_time()
        wheel.add(start + 100, lambda now: times.append(now - start))
        await trio.sleep(1)
        wheel.add(start + 2, lambda now: times.append(now - start))
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert times == [pytest.approx(2, abs=0.03), pytest.approx(100, abs=0.03)]


def busy(seconds: float) -> None:
    """Do nothing for a while, as a callback with a lot to do."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass


async def test_many_ready_objects_leave_the_loop_to_others_and_take_turns() -> None:
    """A hundred objects that are always ready: tasks run after sixteen of them, and each object gets its share."""
    reactor = Reactor()
    calls = [0] * 100
    ends = [os.pipe() for _ in calls]

    def callback(number: int) -> Callable[[], None]:
        def on_readable() -> None:
            calls[number] += 1
            busy(0.0001)

        return on_readable

    try:
        for number, (read, write) in enumerate(ends):
            os.set_blocking(read, False)
            os.write(write, b"x")
            reactor.register(read, callback(number))
        longest = 0
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                while sum(calls) < 1000:
                    before = sum(calls)
                    await trio.lowlevel.checkpoint()
                    longest = max(longest, sum(calls) - before)
                nursery.cancel_scope.cancel()
        assert 1 <= longest <= 3 * CALLS_PER_LOOK
        assert max(calls) - min(calls) <= 2
    finally:
        reactor.close()
        for read, write in ends:
            os.close(read)
            os.close(write)


async def test_many_deferred_calls_leave_the_loop_to_others(reactor: Reactor) -> None:
    """Deferred calls are cut by the clock as well, and keep their order."""
    order: list[int] = []

    def deferred(number: int) -> Callable[[], None]:
        def call() -> None:
            order.append(number)
            busy(0.0002)

        return call

    for number in range(100):
        reactor.call_soon(deferred(number))
    longest = 0
    with trio.fail_after(10):
        while len(order) < 100:
            before = len(order)
            await trio.lowlevel.checkpoint()
            longest = max(longest, len(order) - before)
    assert order == list(range(100))
    assert longest <= 3 * CALLS_PER_LOOK
