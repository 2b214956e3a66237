"""HTTP/2, THE SENDING HALF: what streams have to say, in turns, as far as the client's windows and the kernel take it.

Frames are made by the library h2 and written once a batch, whatever the number of streams that had something to say.
A body goes out at once where there is room; what is left waits in its stream (see `Unsent`), and the stream stands in the
row of those that may send: one frame each, round and round. A stream without a window leaves the row until the window
opens, so it holds up no other. Of frames that are made only so many wait for the kernel; beyond that none are made and
nothing is read, so a client that only asks cannot fill our memory.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import H2Connection as Library
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from trailboss.log import logger
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.h2_gate import EARNED_BY_ANSWER, EARNED_BY_DATA, EARNING_BYTES, FrameGate
from trailboss.plugins.http.h2_hpack import RememberingEncoder, WithholdingDecoder
from trailboss.plugins.http.h2_stream import Stream
from trailboss.plugins.http.tls import TlsSocket
from trailboss.plugins.http.unsent import FilePart, Kept, Unsent

if TYPE_CHECKING:
    from trailboss.plugins.http.message import HeaderList

__all__ = ["OUT_BYTES_HIGH", "SendingHalf"]

log = logger("http")

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
#: What h2 is told of the most streams at a time; the limit that clients are told is ours to keep.
_UNLIMITED: Final = 1 << 20

_CONFIGURATION: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    # h2 would end the connection over a request that is wrong; `h2_head` checks the same and refuses that request.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _Protocol(Library):
    """The library with a memory for closed streams that fits a connection that lives for days."""

    MAX_CLOSED_STREAMS = 1024


def begin_protocol(front: Front, decoder: WithholdingDecoder) -> _Protocol:
    """Return the library's side of a new connection, its settings ready to be sent; `decoder` keeps fields from it."""
    protocol = _Protocol(_CONFIGURATION)
    limits = front.limits
    values = {
        SettingCodes.MAX_CONCURRENT_STREAMS: front.http2.max_concurrent_streams,
        SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
        SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    }
    protocol.local_settings = Settings(client=False, initial_values=values)
    protocol.initiate_connection()
    # h2 would end the connection over a stream too many; we refuse that stream.
    values[SettingCodes.MAX_CONCURRENT_STREAMS] = _UNLIMITED
    protocol.local_settings = Settings(client=False, initial_values=values)
    protocol.decoder = decoder
    protocol.encoder = RememberingEncoder()
    protocol.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
    return protocol


class SendingHalf:
    """What a connection needs to send; the other half is H2Connection."""

    __slots__ = (
        "_blocked_since",
        "_choked",
        "_closing",
        "_decoder",
        "_departing",
        "_fd",
        "_flush_due",
        "_gate",
        "_out",
        "_out_size",
        "_pending",
        "_protocol",
        "_queued",
        "_reactor",
        "_row",
        "_sock",
        "_stalled_since",
        "_streams",
        "_working",
        "closed",
        "front",
    )

    def __init__(self, front: Front, sock: socket.socket | TlsSocket) -> None:
        self.front = front
        self.closed = False
        self._reactor = front.reactor
        self._sock = sock
        self._fd = sock.fileno()
        # A head that is somewhat too long is read and answered with 431.
        self._decoder = WithholdingDecoder(2 * front.limits.head_bytes)
        self._protocol = begin_protocol(front, self._decoder)
        self._gate = FrameGate(front.limits.head_bytes, front.reactor.now)
        self._streams: dict[int, Stream] = {}
        #: Streams that have something to send and, as far as is known, a window for it.
        self._row: deque[Stream] = deque()
        self._out: deque[memoryview] = deque()
        self._out_size = 0
        self._pending = 0  # bytes of bodies that h2 has and we have not taken out of it
        self._stalled_since = 0.0
        self._queued = 0  # bytes in the kernel when the stall was looked at last
        #: Since when nothing can be sent for lack of a window of the connection.
        self._blocked_since: float | None = None
        self._choked = self._flush_due = self._working = False
        self._closing = self._departing = False

    # --- the other half -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection now."""
        raise NotImplementedError

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Cut a stream off."""
        raise NotImplementedError

    def answered(self, stream: Stream) -> None:
        """Take note that a request has been answered, or given up."""
        raise NotImplementedError

    def _fail(self, error: Exception) -> None:
        """End the connection for a failure of ours."""
        raise NotImplementedError

    def _forget(self, stream: Stream) -> None:
        raise NotImplementedError

    def _arm(self, at: float) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        raise NotImplementedError

    def _end_sending(self) -> None:
        raise NotImplementedError

    def _mind_reading(self) -> None:
        raise NotImplementedError

    def _read_again(self) -> None:
        raise NotImplementedError

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
        try:
            self._protocol.send_headers(stream.id, fields, end_stream=end)
        except Exception as error:  # the boundary of the library, as wherever it is asked to send
            self._fail(error)
            return
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
            try:
                protocol.send_data(number, piece, end_stream=end)
            except Exception as error:
                self._fail(error)
                return size
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
        try:
            if stream.trailers:
                self._protocol.send_headers(stream.id, stream.trailers, end_stream=True)
            else:
                self._protocol.end_stream(stream.id)
        except Exception as error:
            self._fail(error)
            return
        self._sent_all(stream)

    def _sent_all(self, stream: Stream) -> None:
        """The end of its answer has gone to h2."""
        self._gate.earn(EARNED_BY_ANSWER)
        self._forget(stream)

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
                try:
                    self._pump()
                except Exception as error:
                    self._fail(error)
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
                self._read_again()
            if not self.closed:
                self.flush()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of frames that are made and not sent."""
        return self._out_size + self._pending

    def _takes_something(self, now: float) -> bool:
        """Ask the kernel: it holds megabytes for a slow client, and reports room only when a good part of them has left."""
        queued = _kernel_queue(self._fd)
        if queued >= self._queued:
            return False
        self._queued = queued
        self._stalled_since = now
        return True


def _kernel_queue(fd: int) -> int:
    """Return how many bytes of a socket the other end has not taken yet."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
