"""THE DATA PLANE: one epoll, one trio task, plain objects behind it.

Bytes between clients, RPC peers and workers never meet a task of their own: they arrive as readiness events on one
epoll set, and the object registered for the descriptor is called. trio sees a single descriptor (the epoll set itself
is readable when anything in it is), so supervision, timers and people keep their turn: a batch is bounded in events
and, looked at every 16 of them, in time; then the loop checkpoints. Whoever had to be left out comes first in the
next turn.

Rules for the objects: callbacks never block and never await, and one that has much to do looks at `late`; an exception
in one is contained: it is logged, counted, the descriptor is unregistered, its `on_error` called, which is where the
object closes it; the loop goes on. A listening socket has nobody to open it again, so its callback lets no exception of
a single connection out. Whoever registers a descriptor owns it: unregister before closing.

Deadlines of what happens here (exec_ttl, waiting in a queue, a half-sent frame) live in one coarse wheel. It holds no
timer per request: an entry is looked at when its time comes, and the owner says then whether it still matters.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from heapq import heappop, heappush

import trio

from trailboss.log import logger

__all__ = ["Reactor", "Wheel"]

log = logger("reactor")

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR

#: Longest stretch of work, in seconds, between two checkpoints (design: a batch is bounded in time).
BATCH_SECONDS_MAX = 0.001
#: How long the loop lingers in epoll after a batch before it goes to sleep in trio; the kernel counts milliseconds.
LINGER_SECONDS = 0.001
#: Most readiness events taken from the kernel at once.
BATCH_EVENTS_MAX = 128
#: Objects called between two looks at the clock.
CALLS_PER_LOOK = 16

Callback = Callable[[], None]


class Wheel:
    """Coarse deadlines: `add` is O(1), callbacks run up to one tick late, never early.

    There is no cancel: the callback gets `now` and decides whether it is still wanted. Times are seconds of
    ``trio.current_time()``. The timer behind it is armed only while something waits here.
    """

    TICK_SECONDS = 0.02

    def __init__(self) -> None:
        self._slots: dict[int, list[Callable[[float], None]]] = {}
        self._order: list[int] = []
        self._changed = trio.Event()

    def add(self, deadline: float, callback: Callable[[float], None]) -> None:
        """Call ``callback(now)`` once, at `deadline` or up to one tick later."""
        number = int(deadline / self.TICK_SECONDS) + 1
        slot = self._slots.get(number)
        if slot is None:
            self._slots[number] = [callback]
            heappush(self._order, number)
            if self._order[0] == number:
                self._changed.set()
        else:
            slot.append(callback)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def next_deadline(self) -> float | None:
        """Time of the next tick at which something is due, or None."""
        return self._order[0] * self.TICK_SECONDS if self._order else None

    def expire(self, now: float) -> int:
        """Run every callback that is due at `now`; returns how many. A failing callback is logged and dropped."""
        count = 0
        while self._order and self._order[0] * self.TICK_SECONDS <= now:
            for callback in self._slots.pop(heappop(self._order)):
                count += 1
                try:
                    callback(now)
                except Exception:
                    log.exception("a deadline callback failed")
        return count

    async def run(self, on_tick: Callable[[], float]) -> None:
        """Run deadlines for ever; `on_tick` returns the current time. On cancellation: stops at once."""
        while True:
            deadline = self.next_deadline()
            self._changed = trio.Event()
            with trio.move_on_at(deadline if deadline is not None else float("inf")):
                await self._changed.wait()
            self.expire(on_tick())


class _Runnable(trio.abc.Instrument):
    """How many tasks could run now, kept up by trio itself: asking its statistics costs 4 µs where caches are cold."""

    def __init__(self) -> None:
        self.scheduled = 0
        self.stepped = 0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """A task has become runnable."""
        self.scheduled += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task that was runnable runs."""
        self.stepped += 1

    def before_io_wait(self, timeout: float) -> None:
        """trio is about to sleep: nobody is runnable, whatever was so before this was added to its instruments."""
        if timeout:
            self.scheduled = self.stepped = 0


class Reactor:
    """The one owner of the epoll set; see the module's text for the rules.

    `now` is the time of the current batch (seconds, trio's clock). Code that enters from a trio task calls
    :meth:`touch` first.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._masks: dict[int, int] = {}
        self._errors: dict[int, Callable[[BaseException], None]] = {}
        self._soon: list[Callback] = []
        #: While turns end before everybody was called: the number of the batch in which each descriptor was called last.
        self._called: dict[int, int] = {}
        self._turn_ends = float("inf")
        self._waiting = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, _IN)
        self._readers[self._wake_fd] = self._woken
        self._closed = False
        self.wheel = Wheel()
        self.now = 0.0
        #: A batch is being worked on: `now` is fresh. Entry points that may be called from tasks touch() if not.
        self.in_batch = False
        #: Batches carried out; the watchdog reads it as a sign of progress.
        self.batches = 0
        #: Exceptions contained at this boundary.
        self.failures = 0
        #: Called once when there is something to do again, then forgotten: the watchdog sleeps as long as we do.
        self.on_wake: Callback | None = None

    # --- registration ---------------------------------------------------------------------------------------------

    def register(
        self,
        fd: int,
        on_readable: Callback,
        on_writable: Callback | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Call `on_readable` whenever `fd` is readable or its peer has gone. `fd` must be non-blocking.

        `on_error` is called, after the descriptor was unregistered, when one of the callbacks raised.
        Raises FileExistsError if `fd` is registered already.
        """
        self._epoll.register(fd, _IN)
        self._masks[fd] = _IN
        self._readers[fd] = on_readable
        if on_writable is not None:
            self._writers[fd] = on_writable
        if on_error is not None:
            self._errors[fd] = on_error

    def register_writer(
        self, fd: int, on_writable: Callback, on_error: Callable[[BaseException], None] | None = None
    ) -> None:
        """Register a descriptor that is only ever written, a pipe's write end; silent until `want_write`."""
        self._epoll.register(fd, 0)
        self._masks[fd] = 0
        self._writers[fd] = on_writable
        # The read end has gone: epoll says so (EPOLLERR) although nothing was asked for; the writer finds out.
        self._readers[fd] = on_writable
        if on_error is not None:
            self._errors[fd] = on_error

    def want_write(self, fd: int, wanted: bool) -> None:
        """Ask for (or stop) calls of `on_writable`."""
        mask = self._masks[fd]
        new = mask | _OUT if wanted else mask & ~_OUT
        if new != mask:
            self._masks[fd] = new
            self._epoll.modify(fd, new)

    def pause_read(self, fd: int, paused: bool) -> None:
        """Stop (or resume) calls of `on_readable`: back-pressure. A peer that goes away is still reported."""
        mask = self._masks[fd]
        new = mask & ~_IN if paused else mask | _IN
        if new != mask:
            self._masks[fd] = new
            self._epoll.modify(fd, new)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; call it before closing. Does nothing if it is not registered."""
        if self._masks.pop(fd, None) is None:
            return
        del self._readers[fd]
        self._writers.pop(fd, None)
        self._errors.pop(fd, None)
        self._called.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):  # closed by somebody already: the kernel has forgotten it
            log.error("a descriptor was closed before it was unregistered", fd=fd)

    def is_registered(self, fd: int) -> bool:
        """Whether `fd` is registered."""
        return fd in self._masks

    # --- running --------------------------------------------------------------------------------------------------

    def touch(self) -> float:
        """Take the time anew and return it; for callers outside a batch."""
        if self.on_wake is not None:
            self._wake_others()
        self.now = trio.current_time()
        return self.now

    def _wake_others(self) -> None:
        on_wake, self.on_wake = self.on_wake, None
        if on_wake is not None:
            on_wake()

    @property
    def late(self) -> bool:
        """Whether the time of this turn is over; an object with more to do uses `call_soon` for the rest."""
        return time.perf_counter() > self._turn_ends

    def call_soon(self, callback: Callback) -> None:
        """Run `callback` in the reactor after the current batch (or wake it up for that)."""
        self._soon.append(callback)
        if self._waiting:
            self._waiting = False
            os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes until cancelled. On cancellation: stops between two batches; descriptors stay their owners'."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.wheel.run, self.touch)
            task_status.started()
            await self._loop()

    async def _loop(self) -> None:
        runnable = _Runnable()
        trio.lowlevel.add_instrument(runnable)
        try:
            await self._turns(runnable)
        finally:
            trio.lowlevel.remove_instrument(runnable)

    async def _turns(self, runnable: _Runnable) -> None:
        poll = self._epoll.poll
        fileno = self._epoll.fileno()
        perf = time.perf_counter
        self._turn_ends = perf() + BATCH_SECONDS_MAX
        fresh = crowded = False
        nothing: list[tuple[int, int]] = []
        while True:
            # Something has just been done, so its answer may be a few microseconds away. As long as no task wants to run,
            # waiting for it in here, once and briefly, saves a turn through trio's scheduler. Where events come in crowds
            # there are some already; where they come one by one, a look that does not wait would find none.
            one_by_one = fresh and not crowded and not self._soon
            events = nothing if one_by_one else poll(0, BATCH_EVENTS_MAX)
            crowded = bool(events)
            if fresh and not events and not self._soon:
                fresh = False
                wait = LINGER_SECONDS if runnable.scheduled <= runnable.stepped else 0
                events = poll(wait, BATCH_EVENTS_MAX)
            if not events and not self._soon:
                self._waiting = True
                try:
                    await trio.lowlevel.wait_readable(fileno)
                finally:
                    self._waiting = False
                if self.on_wake is not None:
                    self._wake_others()
                self._turn_ends = perf() + BATCH_SECONDS_MAX
                continue
            self.now = trio.current_time()
            self.batches += 1
            fresh = True
            self.in_batch = True
            if len(events) <= CALLS_PER_LOOK:
                self.dispatch(events)
            else:
                self._dispatch_many(events)
            if self._soon:
                self._run_soon()
            self.in_batch = False
            if perf() > self._turn_ends:
                await trio.lowlevel.checkpoint()
                self._turn_ends = perf() + BATCH_SECONDS_MAX

    def _dispatch_many(self, events: list[tuple[int, int]]) -> None:
        """Call objects until the turn is over. The kernel reports the others again, in its own order, which may be the same
        each time; so whoever was called longest ago comes first."""
        called = self._called
        if called:
            events.sort(key=lambda event: called.get(event[0], 0))
        for start in range(0, len(events), CALLS_PER_LOOK):
            if start and self.late:
                called.update((fd, self.batches) for fd, _ in events[:start] if fd in self._readers)
                return
            self.dispatch(events[start : start + CALLS_PER_LOOK])
        called.clear()

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        """Call the objects of one batch of readiness events."""
        readers = self._readers
        for fd, event in events:
            # An earlier object of this batch may have unregistered (and even closed) this descriptor.
            try:
                if event == _IN:  # nearly always
                    reader = readers.get(fd)
                    if reader is not None:
                        reader()
                    continue
                if event & _OUT:
                    writer = self._writers.get(fd)
                    if writer is not None:
                        writer()
                if event & ~_OUT:
                    reader = readers.get(fd)
                    if reader is not None:
                        reader()
            except Exception as error:
                self._contain(fd, error)

    def _contain(self, fd: int, error: Exception) -> None:
        self.failures += 1
        log.error("an object on the data plane failed and was closed", fd=fd, exc_info=error)
        on_error = self._errors.get(fd)
        self.unregister(fd)
        if on_error is not None:
            try:
                on_error(error)
            except Exception:
                log.exception("closing a failed object failed as well", fd=fd)

    def _run_soon(self) -> None:
        soon, self._soon = self._soon, []
        for number, callback in enumerate(soon):
            if number and number % CALLS_PER_LOOK == 0 and self.late:
                self._soon[:0] = soon[number:]
                return
            try:
                callback()
            except Exception:
                self.failures += 1
                log.exception("a deferred call on the data plane failed")

    def close(self) -> None:
        """Release the epoll set. Registered descriptors stay open, they are their owners'."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            os.close(self._wake_fd)
