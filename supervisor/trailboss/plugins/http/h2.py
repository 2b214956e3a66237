"""ONE HTTP/2 CLIENT: frames in, requests to the handler, answers out; a plain object behind the reactor.

The library h2 speaks the protocol; around it stand a gate for what comes in (`FrameGate`), the checks of heads
(`h2_head`), and a `Stream` for each request. Frames are given to h2 one at a time, so nothing that came before a broken
one is lost, and a client with thousands of small ones waits its turn like everybody else.

This file is what comes in, and the life of the connection; `h2_sending` is what goes out. While too much is unsent nothing
is read, so a client that only asks cannot fill our memory.

A stream that breaks the rules is reset and the others go on; a connection that does gets GOAWAY. At the stop GOAWAY says
first that we are about to go, and a moment later which requests were still taken.
"""

from __future__ import annotations

import socket
import struct
from math import inf
from typing import Final

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    SettingsAcknowledged,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from trailboss.log import logger
from trailboss.plugins.http.connection import HTTP2_PREFACE as PREFACE
from trailboss.plugins.http.connection import failure
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.h1 import Refusal
from trailboss.plugins.http.h2_gate import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PRICE_LATE,
    PRICE_REFUSED,
    SETTINGS,
    Violation,
    known_settings,
)
from trailboss.plugins.http.h2_head import Malformed, answer_fields, check_trailers, read_head
from trailboss.plugins.http.h2_sending import SendingHalf
from trailboss.plugins.http.h2_stream import Stream
from trailboss.plugins.http.limits import LINGER_SECONDS, Waiting, deadline
from trailboss.plugins.http.message import EMPTY_BODY, HeaderList
from trailboss.plugins.http.tls import TlsSocket

__all__ = ["H2Connection"]

log = logger("http")

RECEIVE_BYTES: Final = 64 * 1024
#: Bytes that wait to be looked at; more stays with the client.
READ_AHEAD_BYTES: Final = 64 * 1024
#: Frames handled before others on the data plane may get their turn.
FRAMES_PER_LOOK: Final = 16
#: A longer one may have been a head that took milliseconds.
LONG_FRAME_BYTES: Final = 2048
HEADER_TABLE_BYTES: Final = 4096
LAST_STREAM: Final = (1 << 31) - 1
#: How long a client has to hear that no more requests are wanted.
NOTICE_SECONDS: Final = 0.2
#: The same complaint is logged once in this time.
COMPLAINT_SECONDS: Final = 60.0

#: close() then resets the connection.
_RESET: Final = struct.pack("ii", 1, 0)


class H2Connection(SendingHalf):
    """A client's connection; made with a connected, non-blocking socket or TLS object once HTTP/2 is agreed on."""

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_client_leaves",
        "_deadline",
        "_goodbye",
        "_last_stream",
        "_notice_at",
        "_opened_at",
        "_paused",
        "_preface_left",
        "_remote_addr",
        "_remote_port",
        "_scheme",
        "_settled",
        "_since",
        "_streams_max",
        "_work_due",
    )

    def __init__(
        self,
        front: Front,
        sock: socket.socket | TlsSocket,
        local: str,
        remote_addr: str,
        remote_port: int,
        scheme: str = "http",
        received: bytes = b"",
    ) -> None:
        """`received`: what was read of it already."""
        super().__init__(front, sock)
        self._remote_addr = remote_addr
        self._remote_port = remote_port
        self._scheme = scheme
        now = front.reactor.now
        self._opened_at = self._since = now
        self._buffer = bytearray(received)
        self._preface_left = len(PREFACE)
        self._streams_max = front.http2.max_concurrent_streams
        self._paused = self._work_due = False
        self._settled = False  # the client has acknowledged our settings
        self._client_leaves = False
        self._notice_at: float | None = None
        self._goodbye = False
        self._last_stream = LAST_STREAM
        self._deadline: _Deadline | None = None
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        front.connections.add(self)
        self._arm(now + front.limits.head_timeout_seconds)
        self.flush()
        if received and not self.closed:
            self._work()

    def begin(self) -> None:
        """Look at what has arrived already."""
        self._on_readable()

    # --- in -----------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._paused:  # nothing was asked for: the client has gone altogether
            self.close()
            return
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._end()
        elif not self._closing:
            self._buffer += data
            if not self._work_due:
                self._work()
            self._mind_reading()

    def _read_again(self) -> None:
        if not self._work_due:
            self._work()
        self._mind_reading()

    def _mind_reading(self) -> None:
        """Read while there is room for what comes in, and for the answers to it."""
        if self.closed:
            return
        pause = not self._closing and (self._choked or len(self._buffer) > READ_AHEAD_BYTES)
        if pause != self._paused:
            self._paused = pause
            self._reactor.pause_read(self._fd, pause)

    def _work_on(self) -> None:
        self._work_due = False
        self._work()
        self._mind_reading()

    def _work(self) -> None:
        """Handle the frames in the buffer as far as they are complete, and as long as it is our turn."""
        if self.closed or self._closing:
            return
        self._working = True
        try:
            self._take_frames()
        except Violation as violation:
            self._end_badly(violation.code, violation.reason)
        except ProtocolError as error:
            self._end_badly(error.error_code, str(error) or type(error).__name__, told=True)
        except Exception as error:  # the boundary of the library: costs this connection and no other
            self._fail(error)
        finally:
            self._working = False
        self.flush()

    def _take_frames(self) -> None:
        buffer = self._buffer
        if self._preface_left and not self._take_preface():
            return
        gate, reactor, protocol = self._gate, self._reactor, self._protocol
        position = count = 0
        try:
            while not self._closing and not self._choked:
                size = gate.size_of_next(buffer, position, reactor.now)
                if not size:
                    break
                if (
                    gate.kind == GOAWAY
                ):  # h2 would send nothing any more, and the client waits for its answers
                    self._client_leaves = True
                else:
                    frame = buffer[position : position + size]
                    stream = self._streams.get(gate.stream)
                    if stream is None:
                        frame = self._look_at_stray(frame)
                    elif gate.kind == HEADERS and stream.incoming is not None and not frame[4] & END_STREAM:
                        # Neither a head nor trailers: h2 would end the connection, so it reads trailers.
                        stream.malformed = True
                        frame[4] |= END_STREAM
                    for event in protocol.receive_data(frame):
                        handle = _HANDLERS.get(type(event))
                        if handle is not None:
                            handle(self, event)
                position += size
                count += 1
                if (size > LONG_FRAME_BYTES or count % FRAMES_PER_LOOK == 0) and reactor.late:
                    self._work_due = True
                    reactor.call_soon(self._work_on)
                    break
        finally:
            del buffer[:position]
        if gate.head_since is not None:
            self._arm(gate.head_since + self.front.limits.head_timeout_seconds)
        if self._client_leaves and not self._streams:
            self._leave_soon()

    def _look_at_stray(self, frame: bytearray) -> bytearray:
        """Look at a frame that belongs to no open stream. Raises Violation."""
        gate = self._gate
        if gate.kind == SETTINGS:
            return known_settings(frame)
        late = gate.kind == HEADERS and gate.stream <= self._protocol.highest_inbound_stream_id
        if gate.kind == DATA or late:
            gate.spend(PRICE_LATE, self._reactor.now)
        return frame

    def _take_preface(self) -> bool:
        """Take what is there of the preface; True when it is complete. Raises Violation."""
        buffer = self._buffer
        expected = PREFACE[-self._preface_left :]
        part = bytes(buffer[: self._preface_left])
        if not expected.startswith(part):
            raise Violation(ErrorCodes.PROTOCOL_ERROR, "not the preface of HTTP/2")
        self._protocol.receive_data(part)
        del buffer[: len(part)]
        self._preface_left -= len(part)
        return not self._preface_left

    def _on_request(self, event: Event) -> None:
        assert isinstance(event, RequestReceived)
        number, fields = event.stream_id, self._fields()
        ended = event.stream_ended is not None
        assert number is not None
        if number > self._last_stream or len(self._streams) >= self._streams_max:
            self._protocol.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            self._gate.spend(PRICE_REFUSED, self._reactor.now)
            return
        front, now = self.front, self._reactor.now
        try:
            head = read_head(
                fields, ended, front.limits, now, self._remote_addr, self._remote_port, self._scheme
            )
        except Refusal as refusal:
            is_head = any(name == b":method" and value == b"HEAD" for name, value in fields)
            self._refuse(number, refusal, ended, "HEAD" if is_head else "")
            return
        stream = Stream(self, number, head.request, ended)
        self._streams[number] = stream
        if ended:
            self._handle(stream)
            return
        stream.length = head.length
        stream.incoming = front.spool.begin()
        self._arm(deadline(Waiting.BODY, now, 0, front.limits))
        if head.expects_continue:
            stream.inform(100, ())

    def _fields(self) -> HeaderList:
        """Return the fields of the head or the trailers that the library has just told of; frames come one at a time."""
        return self._decoder.fields

    def _on_data(self, event: Event) -> None:
        assert isinstance(event, DataReceived)
        number = event.stream_id
        assert number is not None
        assert event.data is not None
        self._protocol.acknowledge_received_data(event.flow_controlled_length or 0, number)
        stream = self._streams.get(number)
        if stream is None or stream.incoming is None:
            return
        stream.request_ended = event.stream_ended is not None
        try:
            if event.data:
                size = stream.incoming.size + len(event.data)
                if stream.length is not None and size > stream.length:
                    raise Malformed("the body is longer than its Content-Length")
                if size > self.front.limits.body_bytes:
                    raise Refusal(413, "the body is larger than http.max_request_size")
                stream.incoming.add(event.data)
            if stream.request_ended:
                self._body_complete(stream)
        except Refusal as refusal:
            self._refuse_stream(stream, refusal)
        except OSError as error:
            self._cannot_keep(stream, error)

    def _on_trailers(self, event: Event) -> None:
        assert isinstance(event, TrailersReceived)
        stream = self._streams.get(event.stream_id or 0)
        if stream is None or stream.incoming is None:
            return
        stream.request_ended = True
        try:
            if stream.malformed:
                raise Malformed("trailers that do not end the request")
            check_trailers(self._fields(), self.front.limits)
            self._body_complete(stream)
        except Refusal as refusal:
            self._refuse_stream(stream, refusal)
        except OSError as error:
            self._cannot_keep(stream, error)

    def _body_complete(self, stream: Stream) -> None:
        incoming = stream.incoming
        assert incoming is not None
        if stream.length is not None and incoming.size != stream.length:
            raise Malformed("the body is shorter than its Content-Length")
        stream.request.body = incoming.complete()
        stream.incoming = None
        self._handle(stream)

    def _handle(self, stream: Stream) -> None:
        front = self.front
        front.in_flight += 1
        front.counters.requests += 1
        try:
            front.handler(stream.request, stream)
        except Exception as error:  # the boundary of the handlers: costs this request and no other
            log.error("a handler failed", request=stream.request.path, exc_info=error)
            stream.fail(500, "internal error")

    def _on_reset(self, event: Event) -> None:
        assert isinstance(event, StreamReset)
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            self._lose(stream)

    def _on_window(self, event: Event) -> None:
        assert isinstance(event, WindowUpdated)
        if not event.stream_id:
            self._blocked_since = None
            return
        stream = self._streams.get(event.stream_id)
        if stream is not None and stream.blocked_since is not None:
            self._queue(stream)

    def _on_settings(self, event: Event) -> None:
        assert isinstance(event, RemoteSettingsChanged)
        encoder = self._protocol.encoder
        if encoder.header_table_size > HEADER_TABLE_BYTES:
            encoder.header_table_size = HEADER_TABLE_BYTES  # what a client offers is not what we have to use
        for stream in self._streams.values():
            if stream.blocked_since is not None:
                self._queue(stream)

    def _on_settled(self, event: Event) -> None:
        self._settled = True

    # --- requests that no handler sees --------------------------------------------------------------------------------

    def _refuse(self, number: int, refusal: Refusal, ended: bool, method: str = "", path: str = "") -> None:
        """Answer a request that is not read to its end, or reset one that is no request of HTTP/2."""
        front, protocol = self.front, self._protocol
        front.counters.refusals += 1
        front.refusals.add(refusal.status, refusal.reason, method, path)
        self._gate.spend(PRICE_REFUSED, self._reactor.now)
        if isinstance(refusal, Malformed):
            protocol.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
            return
        headers, body = failure(refusal.reason)
        fields = answer_fields(refusal.status, self.date(), headers, len(body))
        if method == "HEAD" or protocol.local_flow_control_window(number) < len(body):
            body = b""
        protocol.send_headers(number, fields, end_stream=not body)
        if body:
            protocol.send_data(number, body, end_stream=True)
        if not ended:  # we do not want the rest
            protocol.reset_stream(number, ErrorCodes.NO_ERROR)

    def _refuse_stream(self, stream: Stream, refusal: Refusal) -> None:
        self._forget(stream)
        request = stream.request
        ended = stream.request_ended
        stream.finished = True
        stream.drop()
        self._refuse(stream.id, refusal, ended, request.method, request.path)

    def _cannot_keep(self, stream: Stream, error: OSError) -> None:
        log.error(
            "the body of a request cannot be kept", folder=self.front.spool.folder, reason=error.strerror
        )
        self._refuse_stream(stream, Refusal(500, "the body cannot be kept"))

    # --- the end of a request -----------------------------------------------------------------------------------------

    def answered(self, stream: Stream) -> None:
        """Stream: take note that its request has been answered, or given up."""
        front = self.front
        front.in_flight -= 1
        request = stream.request
        front.latency.observe(self._reactor.now - request.started)
        if request.body is not EMPTY_BODY:
            request.body.close()
        if front.on_progress is not None:
            front.on_progress()

    def _lose(self, stream: Stream) -> None:
        """The client wants no answer any more; whoever works on it is told."""
        self._forget(stream)
        handed = stream.incoming is None and not stream.finished
        stream.finished = True
        stream.drop()
        if handed:
            self._reactor.call_soon(stream.tell_gone)
            self.answered(stream)

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Stream: cut it off."""
        if self._streams.get(stream.id) is not stream:
            return
        self._forget(stream)
        stream.drop()
        if not self._closing:
            try:
                self._protocol.reset_stream(stream.id, code)
            except ProtocolError:  # it is closed already
                pass
            self._flush_soon()

    def _forget(self, stream: Stream) -> None:
        streams = self._streams
        streams.pop(stream.id, None)
        if stream.queued:
            stream.queued = False
            self._row.remove(stream)
        if not streams and not self.closed:
            self._since = now = self._reactor.now
            self._arm(now + self.front.limits.idle_timeout_seconds)
            if self._goodbye or self._client_leaves:
                self._leave_soon()

    # --- the end of the connection ------------------------------------------------------------------------------------

    def _end_badly(self, code: ErrorCodes, reason: str, *, told: bool = False) -> None:
        """GOAWAY for a client that broke the rules; `told`: h2 has written it."""
        if self.closed or self._closing:
            return
        if code is ErrorCodes.ENHANCE_YOUR_CALM:
            self.front.http2.floods += 1
            self._complain("an HTTP/2 client asked too much and was cut off", reason)
        else:
            log.debug("an HTTP/2 connection is ended", code=code.name, reason=reason)
        if not told:
            try:
                self._protocol.close_connection(code, reason.encode("ascii", "replace"))
            except ProtocolError:
                pass
        self._closing = True
        self._buffer.clear()
        for stream in list(self._streams.values()):
            self._lose(stream)
        self._leave_soon()

    def _fail(self, error: Exception) -> None:
        self._complain("an HTTP/2 connection failed", error)
        self._end_badly(ErrorCodes.INTERNAL_ERROR, "internal error")

    def _complain(self, event: str, reason: object) -> None:
        http2, now = self.front.http2, self._reactor.now
        if now - http2.complained_at.get(event, -inf) >= COMPLAINT_SECONDS:
            http2.complained_at[event] = now
            if isinstance(reason, BaseException):
                log.error(event, client=self._remote_addr, exc_info=reason)
            else:
                log.warning(event, client=self._remote_addr, reason=str(reason), floods=http2.floods)

    def say_goodbye(self) -> None:
        """Tell the client which requests were taken, and end the connection when they are answered."""
        if self._goodbye or self._closing or self.closed:
            return
        self._goodbye = True
        self._last_stream = self._protocol.highest_inbound_stream_id
        self._send_goaway(self._last_stream)
        if not self._streams:
            self._leave_soon()

    def _send_goaway(self, last_stream: int) -> None:
        # h2 takes its own GOAWAY for the end of everything, so it must not know of this one.
        self._write(self._take_from_library() + GoAwayFrame(0, last_stream_id=last_stream).serialize())

    def _leave_soon(self) -> None:
        self._closing = True
        self._flush_soon()

    def _leave(self) -> None:
        """Everything is sent: end the sending side, and wait a little for the client to do the same."""
        if self.closed:
            return
        self._closing = True
        if self._out or self._departing:
            return
        self._departing = True
        self._buffer.clear()
        self._mind_reading()
        self._since = now = self._reactor.now
        self._arm(now + LINGER_SECONDS)
        self._end_sending()

    def _end_sending(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close_if_idle(self, quiet_since: float) -> None:
        """At the stop: say that we are going, a moment later which requests were taken, and leave when they are answered.

        A request that crosses the first word on its way is still taken, so none is lost.
        """
        if self.closed or self._closing:
            return
        if self._notice_at is None:
            self._notice_at = self._reactor.now
            self._send_goaway(LAST_STREAM)
        elif self._reactor.now - self._notice_at >= NOTICE_SECONDS:
            self.say_goodbye()

    @property
    def is_leaving(self) -> bool:
        """Whether everything is sent and only the client's departure is waited for."""
        return self._closing and not self._out and not self._streams

    def cut(self) -> None:
        """End the connection with a reset."""
        if not self.closed:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass
            self.close()

    def close(self) -> None:
        """End the connection now; whoever works on its requests is told."""
        if self.closed:
            return
        self.closed = self._closing = True
        self._reactor.unregister(self._fd)
        self._sock.close()
        if self._deadline is not None:
            self._deadline.connection = None
            self._deadline = None
        self._buffer.clear()
        self._out.clear()
        self._out_size = 0
        self.front.connections.discard(self)
        for stream in list(self._streams.values()):
            self._lose(stream)
        if self.front.on_progress is not None:
            self.front.on_progress()

    def _end(self) -> None:
        """End the connection in good order; the client has."""
        if isinstance(self._sock, TlsSocket):
            try:
                self._sock.farewell()
            except OSError:
                pass
        self.close()

    def _on_error(self, error: BaseException) -> None:
        self.close()

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        """See to it that somebody looks at `at`; a look that comes too early costs little, so most are left in place."""
        if at == inf or self.closed:
            return
        entry = self._deadline
        if entry is not None:
            if entry.at <= at + 0.05:
                return
            entry.connection = None
        self._deadline = entry = _Deadline(self, at)
        self._reactor.wheel.add(at, entry)

    def on_deadline(self, now: float) -> None:
        """Look at what may have taken too long; called by the entry in the wheel, never once closed."""
        self._deadline = None
        limits = self.front.limits
        next_look = inf
        if self._out:
            next_look = self._stalled_since + limits.write_timeout_seconds
            if now >= next_look:
                if not self._takes_something(now):
                    self._on_too_late("takes nothing")
                    self.cut()
                    return
                next_look = now + limits.write_timeout_seconds
        elif self._closing:
            next_look = self._since + LINGER_SECONDS
            if now >= next_look:
                self.close()
                return
        try:
            if not self._closing:
                next_look = min(next_look, self._look_at_connection(now))
            if not self._closing:
                next_look = min(next_look, self._look_at_streams(now))
        except Violation as violation:  # so many were refused at once that patience is over
            self._end_badly(violation.code, violation.reason)
        except Exception as error:
            self._fail(error)
        self._arm(next_look)
        self.flush()

    def _look_at_connection(self, now: float) -> float:
        """End what took too long of the connection itself; returns when to look again."""
        limits = self.front.limits
        looks = []
        if not self._settled:
            looks.append(self._opened_at + limits.head_timeout_seconds)
            if now >= looks[-1]:
                self._on_too_late("does not acknowledge the settings")
                self._end_badly(ErrorCodes.SETTINGS_TIMEOUT, "the settings were not acknowledged in time")
                return inf
        if self._gate.head_since is not None:
            looks.append(self._gate.head_since + limits.head_timeout_seconds)
            if now >= looks[-1]:
                self._on_too_late("does not end a head")
                self._end_badly(
                    ErrorCodes.PROTOCOL_ERROR, "the head took longer than http.limits.head_timeout"
                )
                return inf
        if self._blocked_since is not None and self._row:
            looks.append(self._blocked_since + limits.write_timeout_seconds)
            if now >= looks[-1]:
                self._on_too_late("takes nothing")
                self._end_badly(ErrorCodes.FLOW_CONTROL_ERROR, "nothing was taken for too long")
                return inf
        if not self._streams:
            looks.append(self._since + limits.idle_timeout_seconds)
            if now >= looks[-1]:
                self.say_goodbye()
                return inf
        return min(looks, default=inf)

    def _look_at_streams(self, now: float) -> float:
        """Refuse bodies that are too slow, cut answers that are not taken; returns when to look again."""
        limits = self.front.limits
        next_look = inf
        for stream in list(self._streams.values()):
            if stream.incoming is not None:
                at = deadline(Waiting.BODY, stream.since, stream.incoming.size, limits)
                if now >= at:
                    self._on_too_late("sends too slowly")
                    self._refuse_stream(
                        stream, Refusal(408, "the body arrives slower than http.limits.body_rate")
                    )
                    continue
            elif stream.blocked_since is not None:
                at = stream.blocked_since + limits.write_timeout_seconds
                if now >= at:
                    self._on_too_late("takes nothing")
                    self._cut_short(stream)
                    continue
            else:
                continue
            next_look = min(next_look, at)
        return next_look

    def _on_too_late(self, what: str) -> None:
        self.front.counters.timeouts += 1
        log.debug("an HTTP/2 client is too slow", what=what)


_HANDLERS: Final = {
    RequestReceived: H2Connection._on_request,
    DataReceived: H2Connection._on_data,
    TrailersReceived: H2Connection._on_trailers,
    StreamReset: H2Connection._on_reset,
    WindowUpdated: H2Connection._on_window,
    RemoteSettingsChanged: H2Connection._on_settings,
    SettingsAcknowledged: H2Connection._on_settled,
}


class _Deadline:
    """Entry of a connection in the wheel; it forgets a connection that has gone."""

    __slots__ = ("at", "connection")

    def __init__(self, connection: H2Connection, at: float) -> None:
        self.connection: H2Connection | None = connection
        self.at = at

    def __call__(self, now: float) -> None:
        if self.connection is not None:
            self.connection.on_deadline(now)
