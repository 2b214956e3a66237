"""ONE HTTP/2 CLIENT: frames in, requests to the handler, answers out; a plain object behind the reactor.

The library h2 speaks the protocol; around it stand a gate for what comes in (`FrameGate`), the checks of heads
(`h2_head`), and a `Stream` for each request. Frames are given to h2 one at a time, so nothing that came before a broken
one is lost, and a client with thousands of small ones waits its turn like everybody else.

What goes out is written once a batch, whatever the number of streams that had something to say. Bodies that do not fit
into the client's windows or the kernel's buffer wait in their streams; those that may send stand in a row and get one
frame each in turn. While too much is unsent nothing is read, so a client that only asks cannot fill our memory.

A stream that breaks the rules is reset and the others go on; a connection that does gets GOAWAY. At the stop GOAWAY says
first that we are about to go, and a moment later which requests were still taken.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import H2Connection as Library
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
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from trailboss.log import logger
from trailboss.plugins.http.connection import HTTP2_PREFACE as PREFACE
from trailboss.plugins.http.connection import failure
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.h1 import Refusal
from trailboss.plugins.http.h2_gate import (
    DATA,
    EARNED_BY_ANSWER,
    EARNED_BY_DATA,
    EARNING_BYTES,
    GOAWAY,
    HEADERS,
    PRICE_LATE,
    PRICE_REFUSED,
    SETTINGS,
    FrameGate,
    Violation,
    known_settings,
)
from trailboss.plugins.http.h2_head import Malformed, answer_fields, check_trailers, read_head
from trailboss.plugins.http.h2_hpack import RememberingDecoder, RememberingEncoder
from trailboss.plugins.http.h2_stream import Stream
from trailboss.plugins.http.limits import LINGER_SECONDS, Waiting, deadline
from trailboss.plugins.http.message import EMPTY_BODY
from trailboss.plugins.http.tls import TlsSocket
from trailboss.plugins.http.unsent import FilePart, Kept, Unsent

if TYPE_CHECKING:
    from trailboss.plugins.http.message import HeaderList

__all__ = ["H2Connection"]

log = logger("http")

RECEIVE_BYTES: Final = 64 * 1024
#: Bytes that wait to be looked at; more stays with the client.
READ_AHEAD_BYTES: Final = 64 * 1024
#: Frames handled before others on the data plane may get their turn.
FRAMES_PER_LOOK: Final = 16
#: A longer one may have been a head that took milliseconds.
LONG_FRAME_BYTES: Final = 2048
#: Bytes of frames that wait for the kernel, above which no more are made and nothing is read; and below which both go on.
OUT_BYTES_HIGH: Final = 256 * 1024
OUT_BYTES_LOW: Final = 64 * 1024
#: Bytes of an answer that wait in its stream, below which its source may go on.
UNSENT_BYTES_LOW: Final = 64 * 1024
#: Bytes of a file that wait in its stream, above which its source shall pause.
FILE_BYTES_HIGH: Final = 256 * 1024
#: The longest DATA frame we make, whatever a client would take; a row of streams gets on evenly.
DATA_BYTES_MAX: Final = 64 * 1024
#: Batches of frames written in one turn.
FLUSHES_PER_TURN: Final = 4
#: What a client may send of a body before it has to wait for us; a body is put away at once.
STREAM_WINDOW: Final = 1 << 20
CONNECTION_WINDOW: Final = 4 << 20
HEADER_TABLE_BYTES: Final = 4096
LAST_STREAM: Final = (1 << 31) - 1
#: How long a client has to hear that no more requests are wanted.
NOTICE_SECONDS: Final = 0.2
#: The same complaint is logged once in this time.
COMPLAINT_SECONDS: Final = 60.0

_CONFIGURATION: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    # h2 would end the connection over a request that is wrong; `h2_head` checks the same and refuses that request.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_UNLIMITED: Final = 1 << 20
#: close() then resets the connection.
_RESET: Final = struct.pack("ii", 1, 0)


class _Protocol(Library):
    """The library with a memory for closed streams that fits a connection that lives for days."""

    MAX_CLOSED_STREAMS = 1024


class H2Connection:
    """A client's connection; made with a connected, non-blocking socket or TLS object once HTTP/2 is agreed on."""

    __slots__ = (
        "__weakref__",
        "_blocked_since",
        "_buffer",
        "_choked",
        "_client_leaves",
        "_closing",
        "_deadline",
        "_departing",
        "_fd",
        "_flush_due",
        "_gate",
        "_goodbye",
        "_last_stream",
        "_notice_at",
        "_opened_at",
        "_out",
        "_out_size",
        "_paused",
        "_pending",
        "_preface_left",
        "_protocol",
        "_queued",
        "_reactor",
        "_remote_addr",
        "_remote_port",
        "_row",
        "_scheme",
        "_settled",
        "_since",
        "_sock",
        "_stalled_since",
        "_streams",
        "_streams_max",
        "_work_due",
        "_working",
        "closed",
        "front",
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
        self.front = front
        self.closed = False
        self._reactor = front.reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._remote_addr = remote_addr
        self._remote_port = remote_port
        self._scheme = scheme
        now = front.reactor.now
        self._opened_at = self._since = now
        self._gate = FrameGate(front.limits.head_bytes, now)
        self._buffer = bytearray(received)
        self._preface_left = len(PREFACE)
        self._streams: dict[int, Stream] = {}
        self._streams_max = front.http2.max_concurrent_streams
        #: Streams that have something to send and, as far as is known, a window for it.
        self._row: deque[Stream] = deque()
        self._out: deque[memoryview] = deque()
        self._out_size = 0
        self._pending = 0  # bytes of bodies that h2 has and we have not taken out of it
        self._stalled_since = 0.0
        self._queued = 0
        #: Since when nothing can be sent for lack of a window of the connection.
        self._blocked_since: float | None = None
        self._paused = self._choked = False
        self._work_due = self._flush_due = self._working = False
        self._settled = False  # the client has acknowledged our settings
        self._client_leaves = False
        self._closing = self._departing = False
        self._notice_at: float | None = None
        self._goodbye = False
        self._last_stream = LAST_STREAM
        self._deadline: _Deadline | None = None
        self._protocol = self._begin_protocol(front)
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        front.connections.add(self)
        self._arm(now + front.limits.head_timeout_seconds)
        self.flush()
        if received and not self.closed:
            self._work()

    def begin(self) -> None:
        """Look at what has arrived already."""
        self._on_readable()

    def _begin_protocol(self, front: Front) -> _Protocol:
        protocol = _Protocol(_CONFIGURATION)
        limits = front.limits
        values = {
            SettingCodes.MAX_CONCURRENT_STREAMS: self._streams_max,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        }
        protocol.local_settings = Settings(client=False, initial_values=values)
        protocol.initiate_connection()
        # h2 would end the connection over a stream too many; we refuse that stream.
        values[SettingCodes.MAX_CONCURRENT_STREAMS] = _UNLIMITED
        protocol.local_settings = Settings(client=False, initial_values=values)
        # A head that is somewhat too long is read and answered with 431.
        protocol.decoder = RememberingDecoder(2 * limits.head_bytes)
        protocol.encoder = RememberingEncoder()
        protocol.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        return protocol

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
        except (
            Exception
        ) as error:  # the boundary of the library: a surprise costs this connection and no other
            self._complain("an HTTP/2 connection failed", error)
            self._end_badly(ErrorCodes.INTERNAL_ERROR, "internal error")
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
                    frame: bytes | bytearray = buffer[position : position + size]
                    if gate.stream not in self._streams:
                        frame = self._look_at_stray(frame)
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
            self._leave()

    def _look_at_stray(self, frame: bytes | bytearray) -> bytes | bytearray:
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
        number, fields = event.stream_id, event.headers
        ended = event.stream_ended is not None
        assert number is not None
        assert fields is not None
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
        stream.incoming = front.spool.begin()
        self._arm(deadline(Waiting.BODY, now, 0, front.limits))
        if head.expects_continue:
            stream.inform(100, ())

    def _on_data(self, event: Event) -> None:
        assert isinstance(event, DataReceived)
        number = event.stream_id
        assert number is not None
        assert event.data is not None
        self._protocol.acknowledge_received_data(event.flow_controlled_length or 0, number)
        stream = self._streams.get(number)
        if stream is None or stream.incoming is None:
            return
        try:
            if event.data:
                if stream.incoming.size + len(event.data) > self.front.limits.body_bytes:
                    raise Refusal(413, "the body is larger than http.max_request_size")
                stream.incoming.add(event.data)
            if event.stream_ended is not None:
                self._body_complete(stream)
        except Refusal as refusal:
            self._refuse_stream(stream, refusal)
        except OSError as error:
            self._cannot_keep(stream, error)

    def _on_trailers(self, event: Event) -> None:
        assert isinstance(event, TrailersReceived)
        assert event.headers is not None
        stream = self._streams.get(event.stream_id or 0)
        if stream is None or stream.incoming is None:
            return
        try:
            check_trailers(event.headers, self.front.limits)
            self._body_complete(stream)
        except Refusal as refusal:
            self._refuse_stream(stream, refusal)
        except OSError as error:
            self._cannot_keep(stream, error)

    def _body_complete(self, stream: Stream) -> None:
        incoming = stream.incoming
        assert incoming is not None
        stream.request_ended = True
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

    def _sent_all(self, stream: Stream) -> None:
        """The end of its answer has gone to h2."""
        self._gate.earn(EARNED_BY_ANSWER)
        self._forget(stream)

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

    @property
    def unsent_bytes(self) -> int:
        """Bytes of frames that are made and not sent."""
        return self._out_size + self._pending

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

    # --- out ----------------------------------------------------------------------------------------------------------

    def date(self) -> bytes:
        """Return the value of the Date header."""
        front = self.front
        if self._reactor.now >= front.date_until:
            front.refresh_date()
        return front.date_line[6:-2]

    def send_head(self, stream: Stream, fields: HeaderList, *, end: bool) -> None:
        """Stream: send an interim answer, a head, or, with `end`, an answer without a body."""
        if self._closing or stream.id not in self._streams:
            return
        self._protocol.send_headers(stream.id, fields, end_stream=end)
        if end:
            self._sent_all(stream)
        self._flush_soon()

    def send_body(self, stream: Stream, data: bytes, *, whole: bool) -> Kept:
        """Stream: send a part of a body, or keep what has to wait. `whole`: nothing comes behind it."""
        if self._closing or stream.id not in self._streams:
            return Kept.KEPT
        unsent = stream.unsent
        rest: bytes | memoryview = data
        if unsent is None or not unsent.size:
            sent = self._send_now(stream, data)
            if sent == len(data):
                return Kept.KEPT
            if sent:
                rest = memoryview(data)[sent:]
        if unsent is None:
            unsent = stream.unsent = Unsent(self.front.answers)
        kept = unsent.keep(rest, whole=whole)
        if kept is Kept.LOST:
            self.front.answers.complain(self._reactor.now, unsent.reason)
        else:
            self._queue(stream)
        return kept

    def _send_now(self, stream: Stream, data: bytes) -> int:
        """Send what the windows and the kernel take at once; returns how much that is."""
        self._flush_soon()
        protocol, number = self._protocol, stream.id
        size = len(data)
        sent = 0
        while sent < size and self._out_size + self._pending < OUT_BYTES_HIGH:
            count = min(
                size - sent,
                protocol.local_flow_control_window(number),
                protocol.max_outbound_frame_size,
                DATA_BYTES_MAX,
            )
            if count <= 0:
                break
            piece = data if count == size else memoryview(data)[sent : sent + count]
            sent += count
            end = sent == size and stream.all_said
            protocol.send_data(number, piece, end_stream=end)
            self._pending += count
            if count >= EARNING_BYTES:
                self._gate.earn(EARNED_BY_DATA)
            if end:
                self._sent_all(stream)
        return sent

    def send_file(self, stream: Stream, fd: int, offset: int, count: int) -> None:
        """Stream: send a part of a file in its turn; closes `fd` in the end."""
        if self._closing or stream.id not in self._streams:
            os.close(fd)
            return
        if stream.unsent is None:
            stream.unsent = Unsent(self.front.answers)
        stream.unsent.add_file(fd, offset, count)
        if stream.unsent.size > FILE_BYTES_HIGH:
            stream.wants_more = False
        self._queue(stream)

    def send_end(self, stream: Stream) -> None:
        """Stream: its answer is complete; its end follows what waits."""
        if self._closing or stream.id not in self._streams:
            return
        if stream.unsent is None or not stream.unsent.size:
            self._end_stream(stream)
            self._flush_soon()

    def _end_stream(self, stream: Stream) -> None:
        if stream.trailers:
            self._protocol.send_headers(stream.id, stream.trailers, end_stream=True)
        else:
            self._protocol.end_stream(stream.id)
        self._sent_all(stream)

    def _queue(self, stream: Stream) -> None:
        """Let it have its turns."""
        stream.blocked_since = None
        if not stream.queued:
            stream.queued = True
            self._row.append(stream)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_due and not self._working and not self.closed:
            self._flush_due = True
            self._reactor.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Write what there is, as far as windows and kernel take it, within a bound."""
        for _ in range(FLUSHES_PER_TURN):
            if self.closed:
                return
            if self._row and not self._closing:
                self._pump()
            data = self._take_from_library()
            if data:
                self._write(data)
            if not self._row or self._out or self.closed or self._blocked_since is not None:
                break
        else:
            self._flush_soon()
        if self._closing and not self._out and not self._streams:
            self._leave()

    def _take_from_library(self) -> bytes:
        self._pending = 0
        return self._protocol.data_to_send()

    def _pump(self) -> None:
        """One frame for each stream in the row, round and round, until enough waits for the kernel."""
        row, protocol = self._row, self._protocol
        now = self._reactor.now
        while row and self._out_size + self._pending < OUT_BYTES_HIGH:
            if protocol.outbound_flow_control_window <= 0:
                if self._blocked_since is None:
                    self._blocked_since = now
                    self._arm(now + self.front.limits.write_timeout_seconds)
                return
            stream = row.popleft()
            stream.queued = False
            window = protocol.local_flow_control_window(stream.id)
            if window <= 0:
                stream.blocked_since = now
                self._arm(now + self.front.limits.write_timeout_seconds)
                continue
            self._send_piece(stream, min(window, protocol.max_outbound_frame_size, DATA_BYTES_MAX))

    def _send_piece(self, stream: Stream, size: int) -> None:
        unsent = stream.unsent
        assert unsent is not None
        item = unsent.first
        if isinstance(item, FilePart):
            try:
                piece = os.pread(item.fd, min(size, item.count), item.offset)
            except OSError:
                piece = b""
            if not piece:
                log.error("a file became shorter while it was sent, the stream is cut")
                self._cut_short(stream)
                return
        else:
            piece = bytes(item[:size])
        unsent.sent(len(piece))
        ends = not unsent.size and stream.all_said
        self._protocol.send_data(stream.id, piece, end_stream=ends and not stream.trailers)
        self._pending += len(piece)
        if len(piece) >= EARNING_BYTES:
            self._gate.earn(EARNED_BY_DATA)
        if ends:
            if stream.trailers:
                self._end_stream(stream)
            else:
                self._sent_all(stream)
            return
        if unsent.size:
            stream.queued = True
            self._row.append(stream)
        if not stream.wants_more and unsent.size < UNSENT_BYTES_LOW:
            self._reactor.call_soon(stream.tell_ready)

    def _cut_short(self, stream: Stream) -> None:
        """Cut off a stream whose answer cannot be completed; whoever works on it is told."""
        self.reset(stream, ErrorCodes.INTERNAL_ERROR)
        if not stream.finished:
            stream.finished = True
            self._reactor.call_soon(stream.tell_gone)
            self.answered(stream)

    def _write(self, data: bytes) -> None:
        """Give bytes to the kernel, or keep what it does not take now."""
        if self._out:
            self._keep_out(data)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._keep_out(data, sent)

    def _keep_out(self, data: bytes, sent: int = 0) -> None:
        if not self._out:
            self._stalled_since = now = self._reactor.now
            self._queued = _kernel_queue(self._fd)
            self._reactor.want_write(self._fd, True)
            self._arm(now + self.front.limits.write_timeout_seconds)
        self._out.append(memoryview(data)[sent:])
        self._out_size += len(data) - sent
        if self._out_size > OUT_BYTES_HIGH and not self._choked:
            self._choked = True
            self._mind_reading()

    def _on_writable(self) -> None:
        out = self._out
        while out:
            item = out[0]
            try:
                sent = self._sock.send(item)
            except (BlockingIOError, InterruptedError):
                self._queued = _kernel_queue(self._fd)
                break
            except OSError:
                self.close()
                return
            self._out_size -= sent
            self._stalled_since = self._reactor.now
            if sent == len(item):
                out.popleft()
            else:
                out[0] = item[sent:]
                break
        if not out:
            self._reactor.want_write(self._fd, False)
            if self._departing:  # TLS had no room for its last word
                self._end_sending()
                return
        if self._out_size < OUT_BYTES_LOW:
            if self._choked:
                self._choked = False
                if not self._work_due:
                    self._work()
                self._mind_reading()
            if not self.closed:
                self.flush()

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

    def _takes_something(self, now: float) -> bool:
        """Ask the kernel: it holds megabytes for a slow client, and reports room only when a good part of them has left."""
        queued = _kernel_queue(self._fd)
        if queued >= self._queued:
            return False
        self._queued = queued
        self._stalled_since = now
        return True


_HANDLERS: Final = {
    RequestReceived: H2Connection._on_request,
    DataReceived: H2Connection._on_data,
    TrailersReceived: H2Connection._on_trailers,
    StreamReset: H2Connection._on_reset,
    WindowUpdated: H2Connection._on_window,
    RemoteSettingsChanged: H2Connection._on_settings,
    SettingsAcknowledged: H2Connection._on_settled,
}


def _kernel_queue(fd: int) -> int:
    """Return how many bytes of a socket the other end has not taken yet."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


class _Deadline:
    """Entry of a connection in the wheel; it forgets a connection that has gone."""

    __slots__ = ("at", "connection")

    def __init__(self, connection: H2Connection, at: float) -> None:
        self.connection: H2Connection | None = connection
        self.at = at

    def __call__(self, now: float) -> None:
        if self.connection is not None:
            self.connection.on_deadline(now)
