"""One RPC connection: frames in, answers out; a plain object behind the reactor.

Calls of one connection are served concurrently and answered in the order of completion, matched by sequence number
(wire protocol 4.1). Two calls with the same number are fine: an answer is made from the request it belongs to.

Back-pressure: what the kernel does not take is kept, up to a bound; while the bound, or the number of calls with a task
of their own, is reached, nothing more is read. Bytes that are no RPC frame close this connection and nothing else.
Only a frame that has begun and a reader that has stopped arm a deadline; a quiet connection costs nothing.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from trailboss.container.contract import Caller
from trailboss.rpc.server import RpcServer
from trailboss_worker.protocol.errors import FrameError, RpcFrameError
from trailboss_worker.protocol.frames import Frame, FrameDecoder
from trailboss_worker.protocol.rpc import RpcRequest, decode_request, encode_error, encode_reply

__all__ = ["RpcConnection"]

RECEIVE_BYTES: Final = 64 * 1024
#: Unsent answers above this stop the reading of further calls.
UNSENT_BYTES_MAX: Final = 1024 * 1024
#: Answers longer than this do not wait for the rest of their batch.
LARGE_ANSWER_BYTES: Final = 16 * 1024
#: Calls of one connection that have a task.
TASKS_PER_CONNECTION_MAX: Final = 128
#: Calls served before other connections get their turn; fewer where the turn of all is over.
CALLS_PER_TURN: Final = 32
#: Longest error text that is sent.
ERROR_TEXT_CHARS_MAX: Final = 16 * 1024


class RpcConnection:
    """A client's connection; made by the listener, gone when `closed`. `on_closed` is called once."""

    def __init__(
        self,
        server: RpcServer,
        sock: socket.socket,
        caller: Caller,
        find_caller: Callable[[], Caller],
        on_closed: Callable[[RpcConnection], None],
    ) -> None:
        self.caller = caller
        self.closed = False
        self._server = server
        self._reactor = server.reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._find_caller = find_caller
        self._on_closed = on_closed
        self._decoder = FrameDecoder(server.limits.frame_bytes)
        self._waiting: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._batch: list[bytes] | None = None
        self._unsent = bytearray()
        self._tasks = 0
        self._held = 0  # bytes of a begun frame and of unsent answers, as told to the server
        self._paused = False
        self._registered = True
        self._ended = False  # the peer sends no more
        self._deaf = False  # the peer takes no more; what it has sent is carried out all the same
        self._frame_since = 0.0
        self._stalled_since = 0.0
        self._active_at = self._reactor.now
        self._deadline: _Deadline | None = None
        self._register()
        if server.limits.idle_timeout_seconds:
            self._arm(self._reactor.now + server.limits.idle_timeout_seconds)

    def _register(self) -> None:
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        self._registered = True

    # --- in -------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if (
            self._paused
        ):  # nothing was asked for: the peer has gone altogether, and epoll would say so for ever
            self._reactor.unregister(self._fd)
            self._registered = False
            self._go_deaf()
            self._reactor.call_soon(self._resume)
            return
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._on_end()
            return
        self._active_at = self._reactor.now
        decoder = self._decoder
        try:
            decoder.feed(data)
            frame = decoder.next_frame()
            if frame is not None and not decoder.buffered:
                self._frame_since = 0.0
                if self._held:
                    self._account()
                if not self._server.is_full:
                    self._serve_one(frame)
                    return
            if frame is not None:
                self._put_by(frame)
                for later in decoder.next_frames():
                    self._put_by(later)
        except FrameError as error:
            if not self._waiting:
                self._broken(str(error))
                return
        self._note_begun(frame is not None)
        if self._waiting:
            self._work()

    def _note_begun(self, progressed: bool) -> None:
        """Keep the deadline of a frame that has begun, and the account of its bytes."""
        if not self._decoder.buffered:
            self._frame_since = 0.0
        elif progressed or not self._frame_since:
            self._frame_since = self._reactor.now
            self._arm(self._reactor.now + self._server.limits.read_timeout_seconds)
        self._account()
        server = self._server
        if (
            self._decoder.buffered
            and server.bytes_held + server.bytes_waiting > server.limits.bytes_in_flight
        ):
            self._broken("too many bytes in flight (rpc.max_bytes_in_flight)")

    def _put_by(self, frame: Frame) -> None:
        """Keep a complete frame until it can be served; its bytes are counted until then."""
        self._waiting.append(frame)
        self._waiting_bytes += len(frame.payload)
        self._server.bytes_waiting += len(frame.payload)

    def _take(self) -> Frame:
        frame = self._waiting.popleft()
        self._waiting_bytes -= len(frame.payload)
        self._server.bytes_waiting -= len(frame.payload)
        return frame

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._server.bytes_waiting -= self._waiting_bytes
        self._waiting_bytes = 0

    def _serve_one(self, frame: Frame) -> None:
        try:
            request = decode_request(frame)
        except RpcFrameError as error:
            self._broken(str(error))
            return
        self._server.serve(self, request)
        if (self._tasks or self._unsent) and self._must_wait():
            self._pause()

    def _work(self) -> None:
        """Serve what has been read, a bounded number of calls, their answers sent together."""
        waiting = self._waiting
        self._batch = []
        try:
            for _ in range(CALLS_PER_TURN):
                if not waiting or self.closed or self._must_wait():
                    break
                self._serve_one(self._take())
                if self._reactor.late:
                    break
        finally:
            batch, self._batch = self._batch, None
        if batch and not self._deaf:
            self._send(b"".join(batch))
        if self.closed:
            return
        if waiting or self._must_wait():
            self._pause()
            if not self._must_wait():
                self._reactor.call_soon(self._resume)
        else:
            self._look_for_error()

    def _look_for_error(self) -> None:
        """After the good frames of a chunk: bytes behind them that are no frame."""
        try:
            frame = self._decoder.next_frame() if self._decoder.buffered else None
        except FrameError as error:
            self._broken(str(error))
            return
        if frame is not None:
            self._put_by(frame)
            self._pause()
            self._reactor.call_soon(self._resume)

    def _must_wait(self) -> bool:
        if self._tasks >= TASKS_PER_CONNECTION_MAX or len(self._unsent) > UNSENT_BYTES_MAX:
            return True
        if self._server.is_full:
            self._server.starved.add(self._resume)
            return True
        return False

    def _pause(self) -> None:
        if not self._paused and not self._ended and not self.closed:
            self._paused = True
            self._reactor.pause_read(self._fd, True)

    def _resume(self) -> None:
        """Go on after a pause, where nothing is in the way any more."""
        if self.closed or self._must_wait():
            return
        if self._waiting:
            self._work()
        if (
            self._paused
            and not self._ended
            and not self.closed
            and not self._waiting
            and not self._must_wait()
        ):
            self._paused = False
            if self._registered:
                self._reactor.pause_read(self._fd, False)
            else:
                self._register()
        self._close_if_done()

    def _on_end(self) -> None:
        """Go on sending what is under way to a peer that sends no more; its complete departure is reported by epoll."""
        self._ended = True
        self._frame_since = 0.0
        self._reactor.unregister(self._fd)
        self._reactor.register_writer(self._fd, self._on_writable_after_end, self._on_error)
        if self._unsent:
            self._reactor.want_write(self._fd, True)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._ended and not self._tasks and not self._unsent and not self._waiting:
            self.close()

    # --- out ------------------------------------------------------------------------------------------------------

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer; does nothing where the client has gone."""
        if not self._deaf:
            self._put(encode_reply(request, result))

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer; does nothing where the client has gone."""
        if not self._deaf:
            self._put(encode_error(request, text[:ERROR_TEXT_CHARS_MAX]))

    def _put(self, data: bytes) -> None:
        batch = self._batch
        if batch is None:
            self._send(data)
            return
        batch.append(data)
        if len(data) > LARGE_ANSWER_BYTES:  # so that the bound of what is unsent holds inside a batch too
            self._batch = []
            self._send(b"".join(batch))

    def _send(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            self._account()
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._go_deaf()
            return
        if sent < len(data):
            if not self._registered:
                self._go_deaf()
                return
            self._unsent += memoryview(data)[sent:]
            self._stalled_since = self._reactor.touch()
            self._arm(self._stalled_since + self._server.limits.read_timeout_seconds)
            self._reactor.want_write(self._fd, True)
            self._account()

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(memoryview(self._unsent)[:RECEIVE_BYTES]) if self._unsent else 0
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._go_deaf()
            sent = 0
        if sent:
            del self._unsent[:sent]
            self._stalled_since = self._active_at = self._reactor.now
            self._account()
        if not self._unsent:
            self._reactor.want_write(self._fd, False)
        self._resume()

    def _go_deaf(self) -> None:
        self._deaf = True
        self._unsent.clear()
        self._account()

    def _on_writable_after_end(self) -> None:
        if self._unsent:
            self._on_writable()
        else:  # not asked for: the peer has closed its receiving side too
            self.close()

    # --- calls with tasks -----------------------------------------------------------------------------------------

    def call_started(self) -> None:
        """Take note that a call has got a task of its own."""
        self._tasks += 1

    def call_ended(self) -> None:
        """Take note that such a call has ended."""
        self._tasks -= 1
        if self._waiting or self._paused or self._ended:
            self._reactor.call_soon(self._resume)

    def fresh_caller(self) -> Caller:
        """Look up again who is calling: a worker may have become ready since it connected."""
        self.caller = self._find_caller()
        return self.caller

    def become(self, caller: Caller) -> None:
        """Take note of who it has proved to be."""
        self.caller = caller
        self._find_caller = partial(self._server.callers.refresh, caller)

    @property
    def has_unsent(self) -> bool:
        """Whether answers wait for the client to take them."""
        return bool(self._unsent)

    def end_intake(self) -> None:
        """Read no further calls; answers to those that have begun still go out."""
        if not self._ended and not self.closed:
            self._drop_waiting()
            if self._registered:
                self._on_end()
            else:
                self._ended = True
                self._close_if_done()

    # --- limits and the end ---------------------------------------------------------------------------------------

    def _account(self) -> None:
        held = self._decoder.buffered + len(self._unsent)
        self._server.bytes_held += held - self._held
        freed = held < self._held
        self._held = held
        if freed:
            self._server.moved()
            self._server.feed_starved()

    def _arm(self, deadline: float) -> None:
        if self._deadline is None:
            self._deadline = _Deadline(self)
            self._reactor.wheel.add(deadline, self._deadline)

    def on_deadline(self, now: float) -> None:
        """Look at what may have taken too long; called by the entry in the wheel, never once closed."""
        self._deadline = None
        limits = self._server.limits
        next_look: list[float] = []
        if self._frame_since:
            if self._paused:  # it is we who do not read
                self._frame_since = now
            next_look.append(self._frame_since + limits.read_timeout_seconds)
            if now >= next_look[-1]:
                self._broken(
                    f"a frame was not complete after {limits.read_timeout_seconds:g}s (rpc.read_timeout)"
                )
                return
        if self._unsent:
            next_look.append(self._stalled_since + limits.read_timeout_seconds)
            if now >= next_look[-1]:
                self._broken(
                    f"the client has taken nothing for {limits.read_timeout_seconds:g}s (rpc.read_timeout)"
                )
                return
        if limits.idle_timeout_seconds:
            idle_since = now if self._tasks else self._active_at
            next_look.append(idle_since + limits.idle_timeout_seconds)
            if now >= next_look[-1]:
                self.close()
                return
        if next_look:
            self._arm(min(next_look))

    def _broken(self, reason: str) -> None:
        batch, self._batch = self._batch, None
        if batch:  # answers to the good calls before the bad bytes
            self._send(b"".join(batch))
        if not self.closed:
            self._server.connection_broken(reason, self.caller)
            self.close()

    def _on_error(self, error: BaseException) -> None:
        self._broken(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the connection now. Calls that have begun go on."""
        if self.closed:
            return
        self.closed = self._deaf = True
        self._reactor.unregister(self._fd)
        self._sock.close()
        self._drop_waiting()
        if self._deadline is not None:
            self._deadline.connection = None
        self._unsent.clear()
        self._server.bytes_held -= self._held
        self._held = 0
        self._server.starved.discard(self._resume)
        self._on_closed(self)
        self._server.moved()
        self._server.feed_starved()


class _Deadline:
    """Entry of a connection in the wheel. An hour of idle_timeout must not keep the connections of an hour in memory."""

    __slots__ = ("connection",)

    def __init__(self, connection: RpcConnection) -> None:
        self.connection: RpcConnection | None = connection

    def __call__(self, now: float) -> None:
        if self.connection is not None:
            self.connection.on_deadline(now)
