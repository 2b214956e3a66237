"""The reactor's side of one ready worker: its relay and at most one exec under way.

A lane is a plain object: `start` writes one frame, `on_readable` reads until the answer is whole and hands the outcome
to whoever submitted the exec. It decides nothing about the worker's life: what it finds out (end of file, a broken
protocol, a limit reached) it reports to its owner, the worker's task, once.

Exactly one exec is under way on a lane, so a worker that speaks while it has none, or says more than its one answer,
has broken the protocol: the text is kept for the log, the worker replaced, and no byte of it is used (wire protocol
2.5, 2.9).

An exec submitted with `on_part` is a Ticket: its answer may come as a stream, frames with the STREAM bit and a last
one without (wire protocol 2.8). Each part is handed on as it comes; a receiver that wants no more for now pauses the
worker's pipe, one that has gone has the worker told to stop, and killed if it goes on regardless.

A body that lies in a file is read piece by piece while it is sent. A worker of Trailboss's own gets the file instead:
its descriptor goes through a socket beside the relay, with a number that is the second option of the request's frame,
whose payload is the context alone.

Hot path: the first 16 bytes of an answer (header and its one option) repeat themselves; a header that was checked
once is found again in a dictionary, and the frame needs no second look. Anything unusual goes through the decoder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
import zlib
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from trailboss.log import logger
from trailboss.workers.outcome import Answer, ExecFailed, ExecTimeout, Outcome, SoftError, WorkerDied
from trailboss_worker.protocol.control import STOP_ANSWER_CONTEXT
from trailboss_worker.protocol.errors import FrameError, RemoteProtocolError
from trailboss_worker.protocol.frames import (
    CONTROL,
    ERROR,
    PING,
    PONG,
    STOP,
    STREAM,
    Frame,
    FrameDecoder,
    encode_frame,
)

if TYPE_CHECKING:
    from trailboss.reactor import Reactor
    from trailboss.workers.pool import Pool

__all__ = [
    "MOVES_MAX",
    "Breach",
    "Exec",
    "FileBody",
    "Lane",
    "LaneOwner",
    "OnPart",
    "Ticket",
    "request_header",
]

log = logger("server")

READ_SIZE = 65536
#: A pipe that has been too small once gets this size, so that a large frame is one write there and one read here.
WIDE_PIPE_SIZE = 1 << 18
#: Read at once from such a pipe. Above 128 KiB the memory for each read would be mapped anew, 8 µs even for small answers.
WIDE_READ_SIZE = 120 * 1024
#: The kernel lets one user have 64 MiB in pipes before it gives him only the smallest; all wide ones here, together.
WIDE_PIPES_BYTES_MAX = 1 << 24
#: Checked answer headers and built request headers that are remembered; both are cleared when full.
HEADER_CACHE_MAX = 4096
#: Headers of longer payloads are not remembered; a body in a file is longer than that.
SMALL_PAYLOAD_MAX = 1 << 20
#: So much of a body in a file is read and sent at a time, where the kernel does not do that by itself.
FILE_PIECE_SIZE = 1 << 18
#: Room in the pipe of a worker that gets such bodies: four times the usual, for a quarter of the turns. A user who is not root
#: The worker has gone, as against what is wrong with the file.
_GONE = (errno.EPIPE, errno.ECONNRESET)
#: A file system whose files the kernel cannot send.
_NOT_SENDABLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
#: What is pending is in the file.
_IN_THE_FILE = memoryview(b"")
#: A frame that has begun must have its 12 header bytes within this time, else it is stray text.
STRAY_SECONDS_MAX = 1.0
#: A worker that closed its standard input while its request was being sent may still answer within this time.
DEAF_SECONDS_MAX = 1.0
#: How often one exec moves on because the worker that had it asked to be replaced instead (wire protocol 2.7), or died
#: without having read a byte of it.
MOVES_MAX = 10

OnOutcome = Callable[[Outcome], None]
OnPart = Callable[[int, bytes, bytes], bool]
"""Receiver of one part of a stream: flags, context, body. False: no more for now, until `Ticket.resume`."""

_PONG_FRAME = encode_frame(b"", stream=PONG)
_STOP_FRAME = encode_frame(b"", stream=STOP)

_answer_headers: dict[bytes, tuple[int, int, int]] = {}
_request_headers: dict[tuple[int, int, int], bytes] = {}
_new_tuple = tuple.__new__
_pack_file = struct.Struct("<IQ").pack
_pack_front = struct.Struct("<BBI").pack
_pack_rest = struct.Struct("<IBBI").pack


def request_header(flags: int, context_length: int, payload_length: int) -> bytes:
    """Header and option of a request frame, 16 bytes, from the cache where it was built before.

    Raises OverflowError for a payload beyond 2^32-1 bytes.
    """
    key = (flags, context_length, payload_length)
    header = _request_headers.get(key)
    if header is None:
        if payload_length > 0xFFFFFFFF:
            raise OverflowError(f"a frame cannot hold {payload_length} bytes")
        front = _pack_front(0x14, flags, payload_length)
        header = front + _pack_rest(zlib.crc32(front), 0, 0, context_length)
        if payload_length <= SMALL_PAYLOAD_MAX:
            if len(_request_headers) >= HEADER_CACHE_MAX:
                _request_headers.clear()
            _request_headers[key] = header
    return header


class Breach:
    """Why a lane is of no use any more, found out on the data plane; the owner turns it into a death record."""

    __slots__ = ("cause", "excerpt", "hint", "text")

    def __init__(self, cause: str, text: str, excerpt: bytes = b"", hint: str = "") -> None:
        self.cause = cause
        self.text = text
        #: At most 256 bytes of what the worker wrote, for the log.
        self.excerpt = excerpt
        #: The likely cause, for people.
        self.hint = hint


class _WidePipes:
    """How many pipes of this process have been made wider; the kernel counts them against the user."""

    def __init__(self) -> None:
        self.count = 0

    def widen(self, fd: int) -> bool:
        """Give the pipe `fd` WIDE_PIPE_SIZE, or leave it as it is (no pipe, no right, too many already) and say False."""
        if (self.count + 1) * WIDE_PIPE_SIZE > WIDE_PIPES_BYTES_MAX:
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, WIDE_PIPE_SIZE)
        except OSError:
            return False
        self.count += 1
        return True

    def give_back(self, count: int) -> None:
        """So many of them are about to be closed."""
        self.count -= count


_wide_pipes = _WidePipes()


class FileBody:
    """A body of more than SMALL_PAYLOAD_MAX bytes in a file, read as it is sent, so that it never lies in memory.

    It has a descriptor of its own; whoever made it closes it when the exec has its outcome, not before.
    """

    __slots__ = ("_fd", "_size")

    def __init__(self, fd: int, size: int) -> None:
        """Duplicate `fd`. Raises OSError, and ValueError for a body that belongs into memory."""
        if size <= SMALL_PAYLOAD_MAX:
            raise ValueError(f"a body of {size} bytes is sent from memory")
        self._fd = os.dup(fd)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def piece(self, offset: int) -> bytes:
        """What follows `offset`, at least a byte. Raises OSError, also for a file that is shorter than it was."""
        data = os.pread(self._fd, min(FILE_PIECE_SIZE, self._size - offset), offset)
        if not data:
            raise OSError("the file is shorter than it was")
        return data

    def send(self, fd: int, offset: int) -> int:
        """Send what follows `offset`, as far as there is room, without copying it; returns how much, 0 at its end.

        Raises BlockingIOError where there is no room, and OSError.
        """
        return os.sendfile(fd, self._fd, offset, self._size - offset)

    def open_again(self) -> int:
        """A descriptor of the file with a position of its own, to read only; the caller closes it. Raises OSError."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Exec:
    """One payload that waits or runs. Only the pool's queue and the unusual paths need an object of it."""

    __slots__ = ("body", "context", "deadline", "flags", "label", "moves", "on_outcome")

    #: What a Ticket has of its own; here they are constants, which cost an exec of a job nothing.
    on_part: OnPart | None = None
    parts = 0
    paused = False
    cancelled = False

    def __init__(
        self, context: bytes, body: bytes | FileBody, flags: int, on_outcome: OnOutcome, label: str
    ) -> None:
        self.context = context
        self.body = body
        self.flags = flags
        self.on_outcome = on_outcome
        self.label = label
        self.deadline = 0.0
        self.moves = 0


class Ticket(Exec):
    """An exec whose answer may come in parts, and the submitter's hold on it. All calls belong on the reactor.

    It ends like every exec with exactly one outcome. For a stream that is the Answer of its last frame, which comes
    after all parts, or what cut it short.
    """

    __slots__ = ("_pool", "cancelled", "lane", "on_part", "parts", "paused", "stop_sent", "stream_timeout")

    def __init__(
        self,
        pool: Pool,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str,
        on_part: OnPart,
    ) -> None:
        self.context = context  # what Exec does, written out: one of these is made for every request
        self.body = body
        self.flags = flags
        self.on_outcome = on_outcome
        self.label = label
        self.deadline = 0.0
        self.moves = 0
        self._pool = pool
        self.on_part: OnPart = on_part
        #: Frames of its stream so far.
        self.parts = 0
        #: The receiver wants no more for now.
        self.paused = False
        #: Nobody wants the rest.
        self.cancelled = False
        self.stop_sent = False
        self.stream_timeout = 0.0
        #: The lane its stream comes from, None before the first part.
        self.lane: Lane | None = None

    def resume(self) -> None:
        """Go on after a pause; does nothing without one. Parts that wait are handed out soon, not before it returns."""
        if self.paused:
            self.paused = False
            lane = self.lane
            if lane is not None and lane.current is self and not lane.closed:
                lane.resume_stream(self)

    def cancel_stream(self, stream_timeout: float) -> None:
        """Say that nobody wants the answer any more; `on_part` is not called again.

        An exec that still waits for a worker is withdrawn, and its outcome is an ExecFailed that says so. A stream is
        told to stop, now or at its first part, and has `stream_timeout` seconds from then on to end; then its worker
        is killed. A worker that answers in one piece finishes as ever. Calling it again changes nothing.
        """
        if self.cancelled:
            return
        self.cancelled = True
        self.stream_timeout = stream_timeout
        if self._pool.withdraw(self):
            return
        lane = self.lane
        if lane is not None and lane.current is self and not lane.closed:
            lane.stop_stream(self)

    def kill_after(self, seconds: float) -> None:
        """Kill the worker if it still has this exec in `seconds`, whatever it does by then. For answers nobody wants."""
        lane = self._pool.lane_of(self)
        if lane is not None:
            lane.kill_after(
                self, seconds, f"nobody wanted its answer any more and it had not ended {seconds:g} s later"
            )


LaneWatch = Callable[["Lane", "Exec", "Outcome", float], None]
"""Called with the lane, the execution, its outcome, and how long it took in seconds."""


class LaneOwner:
    """What a lane tells its owner, the worker's task. All calls come from the reactor and must not block."""

    def lane_broken(self, breach: Breach) -> None:
        """The relay is unusable; an exec under way waits in `lane.current` for its outcome."""
        raise NotImplementedError

    def quota_used(self) -> bool:
        """Reactor: `executions_max` is reached. False lets the lane go on, to a later `executions_max`."""
        return True

    def lane_spent(self) -> None:
        """The last exec this worker may run is answered, or it asked to go: retire it."""
        raise NotImplementedError

    def exec_overdue(self, exec_: Exec, begun: bytes) -> None:
        """exec_ttl has passed over `exec_`: kill the worker now. `begun` is what it has said, if no whole answer."""
        raise NotImplementedError

    def exec_slow(self) -> None:
        """slow_log has passed since the exec under way was begun; said once for each. It goes on."""

    def is_dying(self) -> bool:
        """Whether the worker is as good as dead, although nobody may have been told yet. Asks the kernel."""
        return False


class Lane:
    """See the module's text. `pid` is for messages only."""

    __slots__ = (
        "_clean",
        "_deaf",
        "_decoder",
        "_expiry",
        "_file",
        "_file_number",
        "_file_position",
        "_files",
        "_handed_over",
        "_owner",
        "_pending",
        "_pool",
        "_reactor",
        "_read_size",
        "_slow_told",
        "_stray_since",
        "_tail",
        "_widened",
        "asked_to_stop",
        "closed",
        "current",
        "deadline",
        "exec_ttl",
        "executions",
        "executions_max",
        "last_used",
        "limit",
        "overdue",
        "parked",
        "pid",
        "read_fd",
        "retiring",
        "slow_log",
        "started_at",
        "watch",
        "write_fd",
    )

    def __init__(
        self,
        reactor: Reactor,
        pool: Pool,
        owner: LaneOwner,
        pid: int,
        read_fd: int,
        write_fd: int,
        *,
        payload_cap: int,
        exec_ttl: float,
        executions_max: int,
        decoder: FrameDecoder | None = None,
        files: socket.socket | None = None,
        slow_log: float = 0.0,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._owner = owner
        self.pid = pid
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._decoder = decoder if decoder is not None else FrameDecoder(payload_cap)
        #: The decoder holds no byte of an unfinished frame.
        self._clean = not self._decoder.buffered
        #: What is left of a frame that is being sent: this, then the rest of the file, then the tail.
        self._pending: memoryview | None = None
        self._file: FileBody | None = None
        self._file_position = 0
        self._tail = b""
        self._read_size = READ_SIZE
        #: Pipes of it that were made wider.
        self._widened: list[int] = []
        #: Where the worker takes open files, and how many it has been handed. Whether the exec under way was one.
        self._files = files
        self._file_number = 0
        self._handed_over = False
        #: Its entry in the wheel, None while there is none.
        self._expiry: _Expiry | None = None
        #: It has closed its standard input: this exec is its last.
        self._deaf = False
        self._stray_since = 0.0
        #: The exec under way, None while idle.
        self.current: Exec | None = None
        self.started_at = 0.0
        self.last_used = 0.0
        self.deadline = 0.0
        self.exec_ttl = exec_ttl
        self.slow_log = slow_log
        #: The first look at an exec is this long after its start; 0: none, and nothing is spent on it.
        self.limit = min(slow_log or exec_ttl, exec_ttl or slow_log)
        #: Start of the exec that was last reported as slow.
        self._slow_told = -1.0
        self.executions = 0
        self.executions_max = executions_max
        #: Set by the owner: finish what runs, take nothing new.
        self.retiring = False
        #: Whether the pool has this lane in its list of idle ones.
        self.parked = False
        #: Sees every execution that ends, while somebody wants to know (a canary's window, a quarantine).
        self.watch: LaneWatch | None = None
        self.asked_to_stop = False
        self.overdue = False
        self.closed = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.current is not None else "idle"
        return f"<Lane pid={self.pid} {state} executions={self.executions}>"

    @property
    def owner(self) -> LaneOwner:
        """Whoever is told what this lane finds out."""
        return self._owner

    def attach(self) -> None:
        """Begin to listen."""
        if self.read_fd == self.write_fd:
            self._reactor.register(self.read_fd, self.on_readable, self.on_writable, self._failed)
        else:
            self._reactor.register(self.read_fd, self.on_readable, None, self._failed)
            self._reactor.register_writer(self.write_fd, self.on_writable, self._failed)

    def detach(self) -> None:
        """Stop listening; the descriptors are the owner's to close. `current` keeps an exec without outcome."""
        if not self.closed:
            self.closed = True
            self._pending = None
            self._file = None
            if self._expiry is not None:
                self._expiry.lane = None
            self._reactor.unregister(self.read_fd)
            if self.write_fd != self.read_fd:
                self._reactor.unregister(self.write_fd)
            _wide_pipes.give_back(len(self._widened))
            self._widened.clear()

    def _widen(self, fd: int) -> None:
        """The pipe `fd` was too small for a frame: make it wider, once, where the kernel and the others leave room."""
        if self.read_fd == self.write_fd or fd in self._widened or not _wide_pipes.widen(fd):
            return
        self._widened.append(fd)
        if fd == self.read_fd:
            self._read_size = WIDE_READ_SIZE

    # --- requests ---------------------------------------------------------------------------------------------------

    def start(self, exec_: Exec) -> bool:
        """Send `exec_` to the worker, which must be idle. False if it demonstrably never saw a byte of it.

        Then the lane is broken (the owner knows) and the caller gives the exec to another worker.
        """
        context = exec_.context
        body = exec_.body
        length = len(context)
        total = length + len(body)
        header = _request_headers.get((exec_.flags, length, total))
        if header is None:
            try:
                header = request_header(exec_.flags, length, total)
            except (OverflowError, struct.error) as error:
                self._refuse_unsendable(exec_, error)
                return True
            if type(body) is FileBody:
                return self._start_file(exec_, header + context, body)
        frame = header + context + body  # type: ignore[operator] # the header of a file is never a remembered one
        self.current = exec_
        self.started_at = now = self._reactor.now
        try:
            sent = os.write(self.write_fd, frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.current = None
            self._break(Breach("closed its pipes", f"cannot write to the worker: {error.strerror}"))
            return False
        if sent < len(frame):
            self._pending = memoryview(frame)[sent:]
            self._reactor.want_write(self.write_fd, True)
            self._widen(self.write_fd)
        if self.limit:
            self.deadline = now + self.exec_ttl
            if self._expiry is None:
                self._expiry = _Expiry(self)
                self._reactor.wheel.add(now + self.limit, self._expiry)
        return True

    def _start_file(self, exec_: Exec, head: bytes, body: FileBody) -> bool:
        """`start` for a body that is read while it is sent."""
        self._handed_over = self._files is not None and self._hand_over(self._files, body)
        if self._handed_over:
            context = exec_.context
            options = (len(context), self._file_number)
            head = encode_frame(context, flags=exec_.flags, options=options)
        self.current = exec_
        self.started_at = now = self._reactor.now
        try:
            sent = os.write(self.write_fd, head)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.current = None
            self._break(Breach("closed its pipes", f"cannot write to the worker: {error.strerror}"))
            return False
        if not self._handed_over:
            self._widen(self.write_fd)
            self._file = body
            self._file_position = 0
            self._pending = _IN_THE_FILE
            self._reactor.want_write(self.write_fd, True)
        if self.limit:
            self.deadline = now + self.exec_ttl
            if self._expiry is None:
                self._expiry = _Expiry(self)
                self._reactor.wheel.add(now + self.limit, self._expiry)
        if sent < len(head):
            self._pending = memoryview(head)[sent:]
            self._reactor.want_write(self.write_fd, True)
        return True

    def _hand_over(self, files: socket.socket, body: FileBody) -> bool:
        """Send the file itself, ahead of the frame that names its number. False: send what is in it instead."""
        number = self._file_number % 0xFFFFFFFF + 1
        try:
            fd = body.open_again()
        except OSError:
            return False
        try:
            socket.send_fds(files, [_pack_file(number, len(body))], [fd])
        except OSError:  # it has not taken those before, or is about to be found dead
            return False
        finally:
            os.close(fd)
        self._file_number = number
        return True

    def _refuse_unsendable(self, exec_: Exec, error: Exception) -> None:
        """No frame can hold it; the worker is as idle as before."""
        try:
            exec_.on_outcome(ExecFailed(f"the payload cannot be sent: {error}"))
        except Exception:
            log.exception("the receiver of an outcome failed", pid=self.pid, pool=self._pool.name)
        if self.current is None and not self.closed and not self.retiring:
            self._pool.lane_idle(self)

    def send_control(self, frame: bytes) -> bool:
        """Write a small control frame to an idle worker; False if it cannot take it."""
        try:
            return os.write(self.write_fd, frame) == len(frame)
        except OSError:
            return False

    def on_writable(self) -> None:
        """Send what is left of a big frame."""
        pending = self._pending
        if pending is None:
            # Nothing to send: the read end of the pipe has gone (EPOLLERR). What the worker has said is read first.
            if not self.closed and self.read_fd != self.write_fd:
                self.on_readable()
                if not self.closed and self.current is None:
                    self._break(Breach("closed its pipes", "the worker closed its standard input"))
                elif not self.closed:
                    self._deaf = True
                    self._reactor.unregister(self.write_fd)
            return
        if not pending:
            self._send_from_file()
            return
        try:
            sent = os.write(self.write_fd, pending[: 1 << 20])
        except BlockingIOError:
            return
        except OSError as error:
            self._go_deaf(error)
            return
        if sent == len(pending):
            self._sent()
        else:
            self._pending = pending[sent:]

    def _sent(self) -> None:
        """All that was pending is sent: go on with what is behind it."""
        if self._file is not None:
            self._pending = _IN_THE_FILE
        elif self._tail:
            self._pending, self._tail = memoryview(self._tail), b""
        else:
            self._pending = None
            self._reactor.want_write(self.write_fd, False)

    def _send_from_file(self) -> None:
        """Let the kernel send what is next of a body in a file."""
        file = self._file
        assert file is not None
        try:
            sent = file.send(self.write_fd, self._file_position)
            if not sent:
                raise OSError("the file is shorter than it was")
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _GONE:
                self._go_deaf(error)
            elif error.errno in _NOT_SENDABLE:
                self._read_on()
                if self._pending:
                    self.on_writable()
            else:
                self._break(Breach("internal error", f"a request's body could not be read: {error}"))
            return
        self._file_position += sent
        if self._file_position >= len(file):
            self._file = None
            self._sent()

    def _read_on(self) -> None:
        """The next piece of a body in a file, by a copy of ours; it is sent when the worker has room again."""
        file = self._file
        assert file is not None
        try:
            piece = file.piece(self._file_position)
        except OSError as error:
            self._break(Breach("internal error", f"a request's body could not be read: {error}"))
            return
        self._file_position += len(piece)
        self._pending = memoryview(piece)
        if self._file_position >= len(file):
            self._file = None

    def _go_deaf(self, error: OSError) -> None:
        """It reads no more of its request. It may have answered early, then closed: that is read before judging."""
        self._pending = None
        self._file = None
        self._tail = b""
        self._deaf = True
        if self.read_fd == self.write_fd:
            self._reactor.want_write(self.write_fd, False)
        else:
            self._reactor.unregister(self.write_fd)
        exec_ = self.current

        def judge(_now: float) -> None:
            if self.current is exec_:
                self._break(Breach("closed its pipes", f"cannot write to the worker: {error.strerror}"))

        self._reactor.wheel.add(self._reactor.now + DEAF_SECONDS_MAX, judge)

    # --- answers ----------------------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        """Read once and act on what is complete. Called by the reactor."""
        try:
            data = os.read(self.read_fd, self._read_size)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(Breach("closed its pipes", f"cannot read from the worker: {error.strerror}"))
            return
        exec_ = self.current
        if exec_ is not None and self._clean:
            known = _answer_headers.get(data[:16])
            if known is not None and known[2] == len(data):
                flags, split, _ = known
                if split == 13 and data[16:] == STOP_ANSWER_CONTEXT:
                    self._worker_asks_to_stop(exec_)
                else:
                    split += 16
                    self._finish(exec_, _new_tuple(Answer, (flags, data[16:split], data[split:])))
                return
        if not data:
            self._on_eof()
        elif exec_ is None:
            self._spoke_unasked(data)
        else:
            if len(data) == READ_SIZE:
                self._widen(self.read_fd)
            self._decoder.feed(data)
            if exec_.paused:
                self._clean = False  # for `resume_stream`
            else:
                self._take_frames(data)
                if exec_.on_part is not None:
                    self._take_more(exec_)

    def request_is_unread(self) -> bool:
        """Whether the request under way lies whole in the worker's pipe: it died without having seen a byte of it.

        False where that cannot be told (a socket, a request larger than the pipe).
        """
        exec_ = self.current
        if exec_ is None or self.read_fd == self.write_fd:
            return False
        try:
            unread = struct.unpack("i", fcntl.ioctl(self.write_fd, termios.FIONREAD, b"\0\0\0\0"))[0]
        except OSError:
            return False
        if type(exec_.body) is FileBody and self._handed_over:
            return bool(unread == 20 + len(exec_.context))
        return bool(unread == 16 + len(exec_.context) + len(exec_.body))

    def drain(self, limit: int = 16 * 1024 * 1024) -> None:
        """Read what the pipe still holds, until it is empty or at its end; for a worker that has exited."""
        while not self.closed and limit > 0:
            try:
                data = os.read(self.read_fd, READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                return
            if not data:
                return
            limit -= len(data)
            exec_ = self.current
            if exec_ is not None:
                self._decoder.feed(data)
                self._take_frames(data)
                if exec_.on_part is not None:
                    self._take_more(exec_, to_the_end=True)

    def _take_frames(self, data: bytes) -> None:
        try:
            frame = self._decoder.next_frame()
        except FrameError as error:
            self._break(garbage_breach(error, self._more_garbage(error)))
            return
        self._clean = not self._decoder.buffered
        if frame is not None:
            self._stray_since = 0.0
        if frame is None:
            if self._decoder.buffered < 12:
                self._note_stray()
            return
        exec_ = self.current
        assert exec_ is not None
        whole = 16 + len(frame.payload)
        if (
            len(data) == whole
            and len(frame.options) == 1
            and not frame.stream
            and not frame.flags & (ERROR | CONTROL)
            and frame.options[0] <= len(frame.payload)
        ):
            if len(_answer_headers) >= HEADER_CACHE_MAX:
                _answer_headers.clear()
            _answer_headers[data[:16]] = (frame.flags, frame.options[0], whole)
        self._on_answer(exec_, frame)

    def _on_answer(self, exec_: Exec, frame: Frame) -> None:
        payload = frame.payload
        if frame.flags & CONTROL:
            self._break(
                Breach("protocol violation", "the worker answered with a control frame", payload[:256])
            )
            return
        if frame.flags & ERROR:
            error = SoftError(payload.decode("utf-8", "replace"))
            if exec_.parts:
                self._break_off(exec_, error)
            else:
                self._finish(exec_, error)
            return
        if frame.stream & STREAM and isinstance(exec_, Ticket):
            self._on_part(exec_, frame)
            return
        if frame.stream & (STREAM | PING) and exec_.on_part is None:
            self._break(
                Breach("protocol violation", "the worker answered with a stream, which jobs do not take")
            )
            return
        try:
            context, body = _split(frame)
        except RemoteProtocolError as error:
            self._break(Breach("protocol violation", str(error), payload[:256]))
            return
        if not body and context == STOP_ANSWER_CONTEXT:
            self._worker_asks_to_stop(exec_)
        else:
            self._finish(exec_, Answer(frame.flags, context, body))

    def _finish(self, exec_: Exec, outcome: Outcome) -> None:
        """The caller gets its outcome first; only then is the worker used, or retired, again."""
        self.current = None
        self.executions += 1
        self.last_used = now = self._reactor.now
        pool = self._pool
        pool.executions += 1
        figures = pool.exec_seconds  # its `observe`, without the call
        figures.counts[bisect_left(figures.bounds, now - self.started_at)] += 1
        figures.total += now - self.started_at
        if not self._clean:
            # A second answer, or text glued to the first: the first is whole and good, the worker is not.
            exec_.on_outcome(outcome)
            excerpt = self._decoder.pending_bytes(256)
            self._break(Breach("protocol violation", "the worker said more than its one answer", excerpt))
            return
        if self._pending is not None:
            # It answered before it had read the whole request: the rest would be taken for the next one.
            exec_.on_outcome(outcome)
            self._break(Breach("protocol violation", "the worker answered before it had read its request"))
            return
        if self._deaf:
            exec_.on_outcome(outcome)
            self._break(Breach("closed its pipes", "the worker closed its standard input"))
            return
        try:
            exec_.on_outcome(outcome)
        except Exception:
            log.exception("the receiver of an outcome failed", pid=self.pid, pool=pool.name)
        if self.watch is not None:
            self.watch(self, exec_, outcome, self.last_used - self.started_at)
        if self.retiring:
            self._owner.lane_spent()
        elif self.executions_max and self.executions >= self.executions_max and self._owner.quota_used():
            self.retiring = True
            self._owner.lane_spent()
        elif not self.closed:
            pool.lane_idle(self)

    def _worker_asks_to_stop(self, exec_: Exec) -> None:
        if exec_.parts:  # only the first frame of an answer can mean that
            self._finish(exec_, Answer(0, STOP_ANSWER_CONTEXT, b""))
            return
        self.current = None
        self.retiring = True
        self.asked_to_stop = True
        self._owner.lane_spent()
        exec_.moves += 1
        if exec_.moves > MOVES_MAX:
            exec_.on_outcome(
                WorkerDied(
                    f"{exec_.moves} workers in a row asked to be replaced instead of answering",
                    pid=self.pid,
                    cause="asked to stop",
                )
            )
        else:
            self._pool.resubmit(exec_)

    # --- streams ----------------------------------------------------------------------------------------------------

    def _on_part(self, ticket: Ticket, frame: Frame) -> None:
        """One frame of a stream: the limit starts anew, a ping is answered, the receiver gets the part."""
        try:
            context, body = _split(frame)
        except RemoteProtocolError as error:
            self._break(Breach("protocol violation", str(error), frame.payload[:256]))
            return
        ticket.parts += 1
        ticket.lane = self
        if self.exec_ttl:
            self.deadline = self._reactor.now + self.exec_ttl
        if ticket.cancelled:
            self.stop_stream(ticket)
            return
        if frame.stream & PING and ticket.parts > 1 and self._pending is None:
            self._say(_PONG_FRAME)
        try:
            wants_more = ticket.on_part(frame.flags, context, body)
        except Exception:
            log.exception("the receiver of a stream failed", pid=self.pid, pool=self._pool.name)
            ticket.cancel_stream(DEAF_SECONDS_MAX)
            return
        if wants_more is False and not ticket.cancelled and self.current is ticket and not self.closed:
            ticket.paused = True
            self._reactor.pause_read(self.read_fd, True)

    def _take_more(self, exec_: Exec, *, to_the_end: bool = False) -> None:
        """Frames of a stream that have been read already; those behind a pause wait, unless the worker has gone."""
        while self.current is exec_ and not self.closed and not self._clean:
            if exec_.paused and not to_the_end:
                return
            before = self._decoder.buffered
            self._take_frames(b"")
            if self._decoder.buffered == before:
                return

    def resume_stream(self, ticket: Ticket) -> None:
        """The receiver wants more again."""
        if self.exec_ttl:
            self.deadline = self._reactor.now + self.exec_ttl
        self._reactor.pause_read(self.read_fd, False)
        if not self._clean:
            self._reactor.call_soon(lambda: self._take_more(ticket))

    def stop_stream(self, ticket: Ticket) -> None:
        """Tell the worker to stop, once, and see to it that it does. What it says until then is dropped."""
        if ticket.stop_sent:
            return
        ticket.stop_sent = True
        pending = self._pending
        if pending is None:
            self._say(_STOP_FRAME)
        else:
            # It speaks before it has read its request: behind the rest of that.
            self._tail = _STOP_FRAME
        seconds = ticket.stream_timeout
        self.kill_after(
            ticket, seconds, f"it did not end its stream within {seconds:g} s of being told to stop"
        )
        if ticket.paused:
            ticket.paused = False
            self.resume_stream(ticket)

    def kill_after(self, exec_: Exec, seconds: float, text: str) -> None:
        """Give this worker up if it still has `exec_` in `seconds`."""

        def judge(_now: float) -> None:
            if self.current is exec_:
                self._break(Breach("stream timeout", text))

        self._reactor.wheel.add(self._reactor.now + seconds, judge)

    def _say(self, frame: bytes) -> None:
        """Send a small frame into a running exec."""
        if self._deaf:
            return
        try:
            sent = os.write(self.write_fd, frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._go_deaf(error)
            return
        if sent < len(frame):
            self._pending = memoryview(frame)[sent:]
            self._reactor.want_write(self.write_fd, True)

    def _break_off(self, exec_: Exec, error: SoftError) -> None:
        """An error in the middle of a stream: what was sent is not whole, and where the worker stands is unknown."""
        self.current = None
        self.executions += 1
        self._pool.executions += 1
        try:
            exec_.on_outcome(error)
        except Exception:
            log.exception("the receiver of an outcome failed", pid=self.pid, pool=self._pool.name)
        self._break(
            Breach("error in a stream", f"the worker reported an error in the middle of a stream: {error}")
        )

    # --- trouble ----------------------------------------------------------------------------------------------------

    def _on_eof(self) -> None:
        exec_ = self.current
        if exec_ is not None and exec_.on_part is not None:
            # What it said before it went counts, also where the receiver had asked for a pause.
            self.retiring = True  # should that end the exec, there is no next one
            self._take_more(exec_, to_the_end=True)
            if self.closed:
                return
        self._decoder.feed_eof()
        pending = self._decoder.pending_bytes(256)
        what = "connection" if self.read_fd == self.write_fd else "standard output"
        text = f"the worker closed its {what}" + (" in the middle of a frame" if pending else "")
        self._break(Breach("closed its pipes", text, pending))

    def _spoke_unasked(self, data: bytes) -> None:
        """Bytes of an idle worker: text, or a frame that nobody had asked for. Either way it is of no use any more."""
        self._decoder.feed(data)
        try:
            frame = self._decoder.next_frame()
        except FrameError as error:
            self._break(garbage_breach(error, self._more_garbage(error)))
            return
        if frame is not None or self._decoder.buffered >= 12:
            excerpt = frame.payload[:256] if frame is not None else self._decoder.pending_bytes(256)
            text = "the worker sent a frame that nobody had asked for"
            self._break(Breach("protocol violation", text, excerpt))
            return
        stray = FrameError("bad_crc", "", self._decoder.pending_bytes(256))
        self._break(garbage_breach(stray, self._more_garbage(stray)))

    def _note_stray(self) -> None:
        """Fewer bytes than a header: rightly begun, or text? Give the rest a moment, then call it stray."""
        if not self._stray_since:
            self._stray_since = self._reactor.now
            self._reactor.wheel.add(self._stray_since + STRAY_SECONDS_MAX, self._judge_stray)

    def _judge_stray(self, now: float) -> None:
        if self.closed or not self._stray_since or not 0 < self._decoder.buffered < 12:
            return
        if now < self._stray_since + STRAY_SECONDS_MAX:
            return  # what this look was for has become a frame; the bytes there now have a look of their own
        self._stray_since = 0.0
        error = FrameError("bad_crc", "", self._decoder.pending_bytes(256))
        self._break(garbage_breach(error, error.excerpt))

    def _more_garbage(self, error: FrameError) -> bytes:
        """What else lies in the pipe right now; it makes the excerpt readable."""
        text = error.excerpt or self._decoder.pending_bytes(256)
        if len(text) < 256:
            try:
                text += os.read(self.read_fd, 256)
            except OSError:
                pass
        return text[:256]

    def _break(self, breach: Breach) -> None:
        if not self.closed:
            self.detach()
            self._pool.lane_gone(self)
            self._owner.lane_broken(breach)

    def _failed(self, error: BaseException) -> None:
        """The reactor caught an exception of this object; its descriptor is unregistered already."""
        self._break(Breach("internal error", f"{type(error).__name__}: {error}"))

    def on_deadline(self, now: float) -> None:
        """The wheel: the exec that was under way when the entry was made may be slow, overdue, or long answered."""
        expiry, self._expiry = self._expiry, None
        exec_ = self.current
        if exec_ is None or expiry is None:
            return
        if exec_.paused:  # it is the receiver that is slow
            self.deadline = now + self.exec_ttl
        next_look = float("inf")
        if self.slow_log:
            next_look = self._look_for_slow(exec_, now)
        if self.exec_ttl:
            next_look = min(next_look, self.deadline)
        if now < next_look:  # another exec by now, or one that is slow and has time left
            self._expiry = expiry
            self._reactor.wheel.add(next_look, expiry)
            return
        self._end_overdue(exec_)

    def expire(self, now: float) -> None:
        """End the exec under way if its time is over, should the wheel have missed it."""
        exec_ = self.current
        if (
            exec_ is not None
            and self.exec_ttl
            and now >= self.deadline
            and not exec_.paused
            and not self.closed
        ):
            self._end_overdue(exec_)

    def _end_overdue(self, exec_: Exec) -> None:
        self.current = None
        self.overdue = True
        self.detach()
        self._pool.lane_gone(self)
        self._owner.exec_overdue(exec_, self._decoder.pending_bytes(256))
        exec_.on_outcome(
            ExecTimeout(f"no answer within exec_ttl ({self.exec_ttl:g} s); worker {self.pid} was killed")
        )

    def _look_for_slow(self, exec_: Exec, now: float) -> float:
        """Report `exec_` if it is slow, once; one whose answer comes in parts is not. Returns when to look again.

        That is also when the next exec of this lane, which finds the entry in place, may have become slow.
        """
        if self._slow_told == self.started_at or exec_.parts:
            return now + self.slow_log
        slow_at = self.started_at + self.slow_log
        if now < slow_at:
            return slow_at
        self._slow_told = self.started_at
        self._owner.exec_slow()
        return now + self.slow_log


class _Expiry:
    """Entry of a lane in the wheel. An hour of exec_ttl must not keep the lanes of an hour's workers in memory."""

    __slots__ = ("lane",)

    def __init__(self, lane: Lane) -> None:
        self.lane: Lane | None = lane

    def __call__(self, now: float) -> None:
        if self.lane is not None:
            self.lane.on_deadline(now)


def garbage_breach(error: FrameError, text: bytes) -> Breach:
    """Say what stray output on a relay means, with the text itself quoted (at most 256 bytes)."""
    if error.code == "file_not_found":
        return Breach("script not found", "PHP could not open the script", text[:256], error.likely_cause())
    if error.code == "too_large":
        said = "it announced a frame larger than max_frame_size"
        return Breach("protocol violation", said, text[:256], error.likely_cause())
    if error.code == "truncated":
        return Breach("protocol violation", str(error), text[:256], error.likely_cause())
    shown = FrameError(error.code, error.place, text)
    said = f"it wrote something that is no frame to its standard output ({error.code})"
    return Breach("stdout garbage", said, text[:256], shown.likely_cause())


def _split(frame: Frame) -> tuple[bytes, bytes]:
    if len(frame.options) != 1:
        raise RemoteProtocolError(f"an answer has one option, this one has {len(frame.options)}")
    split = frame.options[0]
    if split > len(frame.payload):
        raise RemoteProtocolError(
            f"the context length {split} is beyond the payload of {len(frame.payload)} bytes"
        )
    return frame.payload[:split], frame.payload[split:]
