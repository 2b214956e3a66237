"""A machine that is made up: processes, their pipes, the guard, and a reactor whose order is drawn from the seed.

A fake worker is a task that speaks the real protocol over real pipes; there is no child process, and time is the mock
clock's. Pipes are the kernel's, but whoever writes and whoever reads are in this process, so what is readable, and in
which order it became so, depends on nothing else.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from trailboss.reactor import BATCH_EVENTS_MAX, Callback, Reactor
from trailboss.workers.guard import Guard
from trailboss.workers.process import ExitStatus, Process, SpawnFailed
from trailboss_worker.protocol.control import (
    STOP_ANSWER_CONTEXT,
    StopRequest,
    encode_pid_answer,
    parse_control,
)
from trailboss_worker.protocol.frames import CONTROL, ERROR, STOP, STREAM, Frame, FrameDecoder, encode_frame

if TYPE_CHECKING:
    from trailboss.testing.simulation.ledger import Ledger

__all__ = ["FakeProcess", "Machine", "SeededReactor"]

#: Beyond what a kernel gives out, so that nothing in /proc is ever taken for one of these.
FIRST_PID = 100_000_001
_ACK = b'{"type":2,"data":[]}'


class SeededReactor(Reactor):
    """The production reactor, but for two things: the order of events is drawn, and so is when a turn is over."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__()
        self._choose = choose
        self._order: dict[int, int] = {}
        self._registered = 0

    def register(
        self,
        fd: int,
        on_readable: Callback,
        on_writable: Callback | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """See the base class. The number of a descriptor says nothing here: another run may get another one."""
        super().register(fd, on_readable, on_writable, on_error)
        self._note(fd)

    def register_writer(
        self, fd: int, on_writable: Callback, on_error: Callable[[BaseException], None] | None = None
    ) -> None:
        """See the base class."""
        super().register_writer(fd, on_writable, on_error)
        self._note(fd)

    def _note(self, fd: int) -> None:
        self._registered += 1
        self._order[fd] = self._registered

    @property
    def late(self) -> bool:
        """Whether the time of this turn is over; that happens at any moment."""
        return self._choose.random() < 0.1

    @property
    def registered(self) -> int:
        """Descriptors that are registered now."""
        return len(self._masks)

    async def _loop(self) -> None:
        fileno = self._epoll.fileno()
        while True:
            events = self._epoll.poll(0, BATCH_EVENTS_MAX)
            if not events and not self._soon:
                self._waiting = True
                try:
                    await trio.lowlevel.wait_readable(fileno)
                finally:
                    self._waiting = False
                continue
            events.sort(key=lambda event: self._order.get(event[0], 0))
            self._choose.shuffle(events)
            self.touch()
            self.batches += 1
            self.in_batch = True
            self.dispatch(events)
            if self._soon:
                self._run_soon()
            self.in_batch = False
            if self._choose.random() < 0.5:
                await trio.lowlevel.checkpoint()


class FakeGuard(Guard):
    """Remembers which groups it was told of; there is no process."""

    def __init__(self) -> None:
        super().__init__()
        self.instance = "simulation"

    @property
    def groups(self) -> set[int]:
        """The groups it would end."""
        return self._groups

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there until cancelled."""
        self.pid = 1
        task_status.started()
        await trio.sleep_forever()


class _Died(Exception):
    """The process ends now; `code` as Popen has it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class FakeProcess(Process):
    """One fake worker: the supervisor's side of its pipes as attributes, its own side in a task."""

    __slots__ = (
        *(
            "_code",
            "_decoder",
            "_err",
            "_in",
            "_machine",
            "_out",
            "_scope",
            "_term",
            "_thawed",
            "armed",
            "boot",
        ),
        *(
            "choose",
            "closed",
            "dead",
            "died_at",
            "doing",
            "generation",
            "ignores_term",
            "pool",
            "ready",
            "stuck_until",
        ),
    )

    def __init__(
        self, machine: Machine, pid: int, pool: str, boot: tuple[str, float] | None, wall: float
    ) -> None:
        self._machine = machine
        self.pid = pid
        self.pool = pool
        self.boot = boot
        self.choose = random.Random(f"worker {machine.seed} {pid}")
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._in, self.stdin_fd = os.pipe()
        self.stdout_fd, self._out = os.pipe()
        self.stderr_fd, self._err = os.pipe()
        for fd in (self._in, self._out, self._err, self.stdin_fd, self.stdout_fd, self.stderr_fd):
            os.set_blocking(fd, False)
        self.files = None
        self.started_wall = wall
        self.status: ExitStatus | None = None
        self.dead = self.closed = self.ready = False
        self.died_at = 0.0
        #: What it does, for traces.
        self.doing = ""
        #: What it does wrong with its next execs.
        self.armed: deque[tuple[str, float]] = deque()
        self.ignores_term = self.choose.random() < 0.2
        self.stuck_until = 0.0
        self._code = 0
        self._decoder = FrameDecoder(1 << 20)
        self._scope = trio.CancelScope()
        self._thawed: trio.Event | None = None
        self._term: trio.CancelScope | None = None

    # --- what the supervisor does to it -------------------------------------------------------------------------------

    def signal_leader(self, number: int) -> None:
        """Deliver a signal."""
        if self.status is not None or self.dead:
            return
        self._machine.ledger.note("signal", self.pid, number)
        if number == signal.SIGKILL:
            self.end(-signal.SIGKILL)
        elif number == signal.SIGSTOP:
            if self._thawed is None:
                self._thawed = trio.Event()
        elif number == signal.SIGCONT:
            if self._thawed is not None:
                self._thawed.set()
                self._thawed = None
        elif not self.ignores_term and self._thawed is None:
            if self.doing:
                self.armed.append(("last", 0.0))
            else:
                self.end(-number)

    def signal_group(self, number: int) -> None:
        """Deliver a signal; there is one process in the group."""
        self.signal_leader(number)

    def has_exited(self) -> bool:
        """Whether it has ended."""
        return self.dead

    def is_dying(self) -> bool:
        """Whether it has ended."""
        return self.dead

    def reap(self) -> ExitStatus:
        """Collect how it ended; one that lives would block the whole server."""
        if self.status is None:
            if not self.dead:
                self._machine.ledger.violate("reap", f"worker {self.pid} was reaped while it lived")
            code = self._code
            self.status = ExitStatus(code if code >= 0 else None, -code if code < 0 else None, 0.0, 0.0, 0)
        return self.status

    def close(self) -> None:
        """Close the supervisor's ends."""
        if self.closed:
            self._machine.ledger.violate("close", f"the descriptors of worker {self.pid} were closed twice")
        self.closed = True
        for fd in (self.stdin_fd, self.stdout_fd, self.stderr_fd, self.pidfd):
            os.close(fd)
        self.stdin_fd = self.stdout_fd = self.stderr_fd = self.pidfd = -1

    def close_all(self) -> None:
        """Close both sides, whatever is open; the simulation is over."""
        self._close_own()
        if not self.closed:
            self.close()

    # --- its own life ---------------------------------------------------------------------------------------------------

    def end(self, code: int) -> None:
        """End now, or when the kernel lets go of it."""
        if not self._scope.cancel_called:
            self._code = code
            now = trio.current_time()
            if now < self.stuck_until:
                self._machine.nursery.start_soon(self._end_later, self.stuck_until)
            else:
                self._scope.cancel(reason="killed")

    async def _end_later(self, at: float) -> None:
        await trio.sleep_until(at)
        self._scope.cancel(reason="killed")

    async def live(self) -> None:
        """Boot, answer, end."""
        with self._scope:
            try:
                await self._start()
                while True:
                    await self._serve(await self._read())
            except _Died as died:
                self._code = died.code
            except BrokenPipeError:
                self._code = 1
        self._close_own()
        self.dead = True
        self.died_at = trio.current_time()
        self._machine.ledger.note("exit", self.pid, self._code)
        self._machine.buried(self)
        if self.pidfd >= 0:
            os.eventfd_write(self.pidfd, 1)

    def _close_own(self) -> None:
        for name in ("_in", "_out", "_err"):
            self._close(name)

    def _close(self, name: str) -> None:
        fd = getattr(self, name)
        if fd >= 0:
            os.close(fd)
            setattr(self, name, -1)

    async def _pause(self, seconds: float) -> None:
        """Take some time, and more while it is frozen."""
        await trio.sleep(seconds)
        while self._thawed is not None:
            await self._thawed.wait()

    async def _read(self) -> Frame:
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                await self._pause(0)
                return frame
            if self._in < 0:
                await trio.sleep_forever()
            try:
                await trio.lowlevel.wait_readable(self._in)
                await self._pause(0)
                data = os.read(self._in, 65536)
            except (BlockingIOError, trio.ClosedResourceError, OSError):
                continue
            if not data:
                raise _Died(0)
            self._decoder.feed(data)

    async def _write(self, data: bytes, pieces: int = 1, seconds: float = 0.0) -> None:
        size = max(1, len(data) // pieces)
        for start in range(0, len(data), size):
            if start:
                await self._pause(seconds)
            await self._write_all(data[start : start + size])

    async def _write_all(self, data: bytes) -> None:
        while data and self._out >= 0:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._out)
                await self._pause(0)

    def say(self, text: bytes) -> None:
        """Write to standard output, whatever it does otherwise."""
        if self._out >= 0 and not self.dead:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._out, text)

    def complain(self, text: bytes) -> None:
        """Write to standard error."""
        if self._err >= 0:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._err, text)

    def close_pipe(self, which: str) -> None:
        """Close its standard input or output and go on."""
        name = "_in" if which == "close_in" else "_out"
        if getattr(self, name) >= 0 and not self.dead:
            trio.lowlevel.notify_closing(getattr(self, name))
            self._close(name)

    async def _start(self) -> None:
        kind, seconds = self.boot or ("", 0.0)
        await self._pause(self.choose.uniform(0.01, 0.3) + (seconds if kind == "boot_slow" else 0.0))
        if kind == "boot_exit":
            self.complain(b"Fatal error: no such class\n")
            raise _Died(255)
        if kind == "boot_silent":
            await trio.sleep_forever()
        if kind == "boot_text":
            await self._write(b"Warning: something is deprecated\n")
        await self._read()  # the server speaks first
        hello = encode_pid_answer(self.pid)
        if kind == "boot_half":
            await self._write(hello[: len(hello) // 2])
            raise _Died(139)
        if kind == "boot_wrong":
            hello = encode_frame(b"hello", options=[2])
        await self._write(hello, 3 if kind == "boot_torn" else 1, min(seconds, 0.4))
        self.ready = True

    async def _serve(self, frame: Frame) -> None:
        if frame.flags & CONTROL:
            if isinstance(parse_control(frame.payload), StopRequest):
                await self._pause(self.choose.choice((0.0, 0.01, 0.2)))
                raise _Died(0)
            return
        if not frame.options:
            return  # a word about a stream that has ended meanwhile
        context, body = frame.payload[: frame.options[0]], frame.payload[frame.options[0] :]
        self.doing = self._machine.ledger.running(self, context, body)
        try:
            await self._work(context, body)
        finally:
            self.doing = ""

    async def _work(self, context: bytes, body: bytes) -> None:
        kind, seconds = self.armed.popleft() if self.armed else ("", 0.0)
        if body.startswith(b"poison"):
            kind = "exit"
        await self._pause(self.choose.choice((0.0, 0.002, 0.05, 0.4)))
        if kind == "hang":
            await trio.sleep_forever()
        if kind == "slow":
            await self._pause(seconds)
        if kind == "exit":
            raise _Died(255)
        if kind == "chatty":
            self.complain(b"PHP Notice: something\n" * 2000)
        if context.startswith(b"stream"):
            await self._stream(context)
        reply_context, reply, flags = context, body, 0
        if context.startswith(b"{"):
            reply_context, reply = b"", _ACK
        if kind == "soft":
            answer = encode_frame(b"it went wrong", flags=ERROR)
        elif kind == "empty":
            answer = encode_frame(b"", options=[0])
        elif kind == "asks":
            answer = encode_frame(STOP_ANSWER_CONTEXT, options=[len(STOP_ANSWER_CONTEXT)])
        elif kind == "garbage":
            answer = b"<br />\n<b>Warning</b>: Undefined variable\n"
        else:
            answer = encode_frame(reply_context + reply, flags=flags, options=[len(reply_context)])
        if kind == "half":
            await self._write(answer[: max(1, len(answer) // 2)])
            raise _Died(139)
        self._machine.ledger.answered(self, context)
        await self._write(
            answer * (2 if kind == "double" else 1), 3 if kind == "torn" else 1, min(seconds, 0.4)
        )
        if kind == "last":
            raise _Died(0)

    async def _stream(self, context: bytes) -> None:
        """Parts of an answer, as many as asked for, until told to stop."""
        for number in range(int(context.split()[1])):
            part = b"part %d " % number
            await self._write(encode_frame(b"part" + part * 200, stream=STREAM, options=[4]))
            await self._pause(self.choose.choice((0.0, 0.01)))
            if self._told_to_stop():
                return

    def _told_to_stop(self) -> bool:
        if self._in >= 0:
            with contextlib.suppress(BlockingIOError):
                self._decoder.feed(os.read(self._in, 65536))
        frame = self._decoder.next_frame()
        return frame is not None and bool(frame.stream & STOP)


class Machine:
    """Starts fake processes, and has faults ready for those to come."""

    def __init__(self, seed: int, ledger: Ledger, nursery: trio.Nursery) -> None:
        self.seed = seed
        self.ledger = ledger
        self.nursery = nursery
        self.processes: dict[int, FakeProcess] = {}
        #: What goes wrong with the next starts.
        self.boot_faults: deque[tuple[str, float]] = deque()
        #: Every boot fails until then.
        self.broken_until = 0.0
        self._choose = random.Random(f"machine {seed}")
        self._next_pid = FIRST_PID
        self.spawned = 0

    async def spawn(
        self, argv: Sequence[str], environment: Mapping[str, str], *, wall: float, **_more: object
    ) -> Process:
        """Start a fake worker, in place of `process.spawn`."""
        pool = environment["RR_MODE"]
        boot = self.boot_faults.popleft() if self.boot_faults else None
        if trio.current_time() < self.broken_until:
            boot = ("boot_exit", 0.0)
        await trio.sleep(self._choose.choice((0.0, 0.001, 0.02)))
        if boot is not None and boot[0] == "fork":
            self.ledger.note("fork failed", pool)
            raise SpawnFailed(f"cannot start {argv[0]!r}: Resource temporarily unavailable", permanent=False)
        process = FakeProcess(self, self._next_pid, pool, boot, wall)
        self._next_pid += 1
        self.spawned += 1
        self.processes[process.pid] = process
        self.ledger.note("spawn", process.pid, pool, boot[0] if boot else "")
        self.nursery.start_soon(process.live)
        return process

    def living(self) -> list[FakeProcess]:
        """Those that have not ended, the oldest first."""
        return [process for process in self.processes.values() if not process.dead]

    def buried(self, process: FakeProcess) -> None:
        """Forget those that are over and done with, so that a long life does not cost memory."""
        for pid in [pid for pid, other in self.processes.items() if other.closed and other.dead]:
            del self.processes[pid]

    def heal(self) -> None:
        """From now on nothing goes wrong any more; what hangs already hangs on."""
        self.boot_faults.clear()
        self.broken_until = 0.0
        for process in self.living():
            process.armed.clear()
            process.signal_leader(signal.SIGCONT)
