"""ONE CLIENT: bytes in, requests to the handler, answers out; a plain object behind the reactor.

A connection does one thing at a time: it waits for a head, for a body, for the answer, for the client to leave (see
`Waiting`). Requests of a pipeline wait in the buffer until the one before is answered, so answers come in order and a
request behind a refused one is never looked at. While an answer is under way a bounded part of what follows is read,
mostly in order to notice a client that goes.

Each request gets an Answer of its own, which is deaf once its request is over: whoever calls too late cannot touch the
answer of the next request. A small answer is one send. What the kernel does not take is kept in order (see `Unsent`),
`wants_more` tells the source to pause when that has become too much; files go out by sendfile.

A client may close its sending side before it has its answer. That looks like a client that has closed everything, so it is
asked, with a word that changes nothing: whoever has gone answers with a reset, and the handler hears of it by `on_gone`;
whoever still listens gets all its answers. Over TLS nobody closes one side alone, so there the end is the end.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from bisect import bisect_left
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from trailboss.log import logger
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.h1 import (
    CHUNKED,
    ChunkDecoder,
    EncodedHeaders,
    HeadParser,
    Refusal,
    check_incomplete_head,
    encode_chunk,
    encode_headers,
    encode_last_chunk,
    interim_status_line,
    status_line,
)
from trailboss.plugins.http.limits import Waiting, deadline
from trailboss.plugins.http.message import EMPTY_BODY, Body, HeaderList, Request
from trailboss.plugins.http.spool import Incoming
from trailboss.plugins.http.tls import TlsSocket
from trailboss.plugins.http.unsent import FilePart, Kept, Unsent

__all__ = ["Answer", "Connection"]

log = logger("http")

RECEIVE_BYTES: Final = 64 * 1024
#: While a body arrives, more is taken at once.
RECEIVE_BODY_BYTES: Final = 256 * 1024
#: Unsent bytes of a file above which nothing more shall be added to it, and below which a source may go on.
UNSENT_BYTES_HIGH: Final = 256 * 1024
UNSENT_BYTES_LOW: Final = 64 * 1024
#: Bodies up to this size are joined with their head into one piece; larger ones are not copied.
JOINED_BODY_BYTES: Final = 16 * 1024
#: Bytes read ahead of the answer to the request before; more stays with the client.
READ_AHEAD_BYTES: Final = 64 * 1024
#: Bytes of a file sent before others on the data plane get their turn.
FILE_BYTES_PER_TURN: Final = 1 << 20
#: The same over TLS, where each costs several times as much.
TLS_BYTES_PER_TURN: Final = 1 << 18
#: Requests of a pipeline answered before others get their turn.
REQUESTS_PER_TURN: Final = 32
#: How HTTP/2 begins where nothing was negotiated (RFC 9113, 3.4); no method of HTTP/1 is called PRI.
HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
#: close() then resets the connection, so that an answer that ends with it does not look complete.
_RESET: Final = struct.pack("ii", 1, 0)
_CLOSE_LINE: Final = b"Connection: close\r\n"
#: Members by names of their own, where every request passes: in CPython 3.11 a look into an Enum costs a tenth of a µs.
_REQUEST: Final = Waiting.REQUEST
_HEAD: Final = Waiting.HEAD
_BODY: Final = Waiting.BODY
_ANSWER: Final = Waiting.ANSWER
_DEPARTURE: Final = Waiting.DEPARTURE
#: The last line of most heads, and the empty line, by the size of the body.
_LENGTH_LINES: Final = [b"Content-Length: %d\r\n\r\n" % size for size in range(1024)]


class _Framing(Enum):
    """How the end of an answer's body is told."""

    NONE = "there is no body"
    LENGTH = "by its length"
    CHUNKED = "by its last chunk"
    CLOSE = "by the end of the connection"


_NO_FRAMING: Final = _Framing.NONE


class Answer:
    """The answer to one request; a Responder."""

    __slots__ = (
        "_connection",
        "_framing",
        "_held_head",
        "_keep",
        "_left",
        "finished",
        "on_gone",
        "on_ready",
        "request",
        "started",
        "wants_more",
    )

    def __init__(self, connection: Connection, request: Request, keep: bool) -> None:
        self._connection = connection
        self.request = request
        self._keep = keep
        self._framing: _Framing = _NO_FRAMING
        self._left = 0
        self._held_head = b""
        self.started = False
        self.finished = False
        self.wants_more = True
        self.on_ready: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer in one write."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        connection = self._connection
        front = connection.front
        if front.reactor.now >= front.date_until:
            front.refresh_date()
        try:
            lines = headers.lines if type(headers) is EncodedHeaders else encode_headers(headers)
            start = status_line(status)
        except ValueError as error:
            self._bad_answer(error)
            return
        keep = self._keep
        if front.draining or not keep:
            keep = False
            lines += _CLOSE_LINE
        size = len(body)
        if status == 204 or status == 304:
            last, body = b"\r\n", b""
        else:
            last = _LENGTH_LINES[size] if size < 1024 else b"Content-Length: %d\r\n\r\n" % size
            if self.request.method == "HEAD":
                body = b""
        self.started = self.finished = True
        self.on_gone = self.on_ready = (
            None  # they refer to whoever refers to this; without a cycle memory is free at once
        )
        if len(body) <= JOINED_BODY_BYTES:
            connection.send(b"".join((start, front.date_line, lines, last, body)))
        else:
            connection.send_both(b"".join((start, front.date_line, lines, last)), body)
        connection.answered(self.request, keep)

    def inform(self, status: int, headers: HeaderList) -> None:
        """Send an interim answer; nothing where the head is out or the client speaks HTTP/1.0. Raises ValueError."""
        if self.finished or self.started or self.request.version == "1.0":
            return
        self._connection.send(interim_status_line(status) + encode_headers(headers) + b"\r\n")

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Send the head; it leaves with the first part of the body, or at the end of the reactor's batch."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        front = self._connection.front
        if front.reactor.now >= front.date_until:
            front.refresh_date()
        try:
            lines = status_line(status) + front.date_line + encode_headers(headers)
        except ValueError as error:
            self._bad_answer(error)
            return
        self._framing, framing_line = self._choose_framing(status, length)
        self._left = length or 0
        if self._framing is _Framing.CLOSE or front.draining:
            self._keep = False
        self.started = True
        self._held_head = b"%b%b%b\r\n" % (lines, framing_line, b"" if self._keep else _CLOSE_LINE)
        front.reactor.call_soon(self._flush_head)

    def _choose_framing(self, status: int, length: int | None) -> tuple[_Framing, bytes]:
        if status == 204 or status == 304:
            return _Framing.NONE, b""
        framing, line = _Framing.LENGTH, b""
        if length is not None:
            line = b"Content-Length: %d\r\n" % length
        elif self.request.version == "1.1":
            framing, line = _Framing.CHUNKED, b"Transfer-Encoding: chunked\r\n"
        else:
            framing = _Framing.CLOSE
        if self.request.method == "HEAD":
            return _Framing.NONE, line if length is not None else b""
        return framing, line

    def _flush_head(self) -> None:
        held, self._held_head = self._held_head, b""
        if held and not self.finished:
            self._connection.send(held)

    def data(self, chunk: bytes) -> None:
        """Send a part of the body."""
        if self.finished or not chunk:
            return
        framing = self._framing_of_part(len(chunk))
        if framing is None:
            return
        if framing is _Framing.CHUNKED:
            chunk = encode_chunk(chunk)
        held, self._held_head = self._held_head, b""
        if not held:
            self._connection.send(chunk)
        elif len(chunk) <= JOINED_BODY_BYTES:
            self._connection.send(held + chunk)
        else:
            self._connection.send_both(held, chunk)

    def file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file as a part of the body; closes `fd`."""
        if self.finished or count <= 0:
            os.close(fd)
            return
        try:
            framing = self._framing_of_part(count)
        except RuntimeError:
            os.close(fd)
            raise
        if framing is None:
            os.close(fd)
            return
        self._flush_head()
        connection = self._connection
        if framing is _Framing.CHUNKED:
            connection.send(b"%x\r\n" % count)
        connection.send_file(fd, offset, count)
        if framing is _Framing.CHUNKED:
            connection.send(b"\r\n")

    def _framing_of_part(self, size: int) -> _Framing | None:
        """Return the framing for another `size` bytes of body; None where they are not sent."""
        if not self.started:
            raise RuntimeError("a part of a body before the head")
        framing = self._framing
        if framing is _Framing.LENGTH:
            self._left -= size
            if self._left < 0:
                log.error(
                    "an answer is longer than its length, the connection is cut", request=self.request.path
                )
                self.abort()
                return None
        return None if framing is _Framing.NONE else framing

    def end(self, trailers: HeaderList = ()) -> None:
        """End the answer. A body shorter than announced cuts the connection."""
        if self.finished:
            return
        if not self.started:
            raise RuntimeError("the end before the head")
        if self._framing is _Framing.LENGTH and self._left:
            log.error(
                "an answer is shorter than its length, the connection is cut", request=self.request.path
            )
            self.abort()
            return
        tail = b""
        if self._framing is _Framing.CHUNKED:
            try:
                tail = encode_last_chunk(trailers)
            except ValueError as error:
                self._bad_answer(error)
                return
        self.finished = True
        self.on_gone = self.on_ready = None
        held, self._held_head = self._held_head, b""
        if held or tail:
            self._connection.send(held + tail)
        self._connection.answered(self.request, self._keep)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Answer that the server could not; where the head is out already, cut the connection."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        if close:
            self._keep = False
        headers, body = failure(reason, retry_after)
        self.respond(status, headers, body)

    def abort(self) -> None:
        """Cut the connection."""
        if self.finished:
            return
        self.finished = True
        self._held_head = b""
        self._connection.cut()
        self._connection.answered(self.request, False)

    def _bad_answer(self, error: ValueError) -> None:
        log.error("an answer cannot be sent", request=self.request.path, reason=str(error))
        self.fail(500, "the answer cannot be sent")

    # --- the connection's side ----------------------------------------------------------------------------------------

    def _ask_whether_there(self) -> None:
        """Say something that changes nothing: 100 before the head, and a zero in front of the size of the next chunk.

        Elsewhere there is no such word; the next part of the answer, or the answer, tells.
        """
        if self._held_head:
            return
        if not self.started:
            if self.request.version == "1.1":
                self._connection.send(CONTINUE)
        elif self._framing is _Framing.CHUNKED:
            self._connection.send(b"0")

    def _tell_gone(self) -> None:
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def _tell_ready(self) -> None:
        if self.finished or self.wants_more or not self._connection.has_room:
            return
        self.wants_more = True
        if self.on_ready is not None:
            try:
                self.on_ready()
            except Exception as error:  # the source would wait for ever
                log.error("a handler failed", request=self.request.path, exc_info=error)
                self.abort()
                self._tell_gone()


def failure(reason: str, retry_after: int | None = None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an answer that the server makes itself."""
    text = "".join(char if " " <= char <= "~" else "?" for char in reason).encode()
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"trailboss-reason", text)]
    if retry_after is not None:
        headers.append((b"Retry-After", b"%d" % retry_after))
    return headers, text + b"\n"


def _kernel_queue(fd: int) -> int:
    """Return how many bytes of a socket the other end has not taken yet."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


class Connection:
    """A client's connection; made by the listener with a connected, non-blocking socket, or what looks like one."""

    __slots__ = (
        "__weakref__",
        "_answer",
        "_buffer",
        "_checked",
        "_closing",
        "_deadline",
        "_decoder",
        "_ended",
        "_fd",
        "_fresh",
        "_incoming",
        "_left",
        "_out",
        "_parser",
        "_paused",
        "_queued",
        "_reactor",
        "_request",
        "_since",
        "_sock",
        "_stalled_since",
        "_tls",
        "_waiting",
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
    ) -> None:
        self.front = front
        self.closed = False
        self._reactor = front.reactor
        self._sock = sock
        self._tls = sock if isinstance(sock, TlsSocket) else None
        self._fd = sock.fileno()
        self._parser = HeadParser(front.limits, local, remote_addr, remote_port, scheme)
        self._buffer = bytearray()
        self._checked = 0
        self._waiting = Waiting.HEAD
        self._since = front.reactor.now
        self._request: Request | None = None
        self._incoming: Incoming | None = None
        self._decoder: ChunkDecoder | None = None
        self._left = 0
        self._answer: Answer | None = None
        self._out = Unsent(front.answers)
        self._stalled_since = 0.0
        self._queued = 0  # bytes in the kernel when the stall was looked at last
        self._paused = False
        self._ended = False
        #: May still turn out to be HTTP/2; with `_waiting` it means that nothing has been asked yet.
        self._fresh = front.http2.h2c and self._tls is None
        self._closing = False
        self._working = False
        self._deadline: _Deadline | None = None
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        front.connections.add(self)
        self._arm(self._since + front.limits.head_timeout_seconds)

    def begin(self) -> None:
        """Look at what came along with the handshake; there is no readiness event for it."""
        self._on_readable()

    def refuse(self, status: int, reason: str) -> None:
        """Answer with a refusal instead of any request; the connection ends with that."""
        self._refuse(status, reason)

    # --- in -----------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._paused:  # nothing was asked for: the client has gone altogether
            self.close()
            return
        waiting = self._waiting
        try:
            data = self._sock.recv(RECEIVE_BODY_BYTES if waiting is _BODY else RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._on_end()
        elif waiting is _BODY:
            self._on_body(data)
        elif waiting is _ANSWER or self._out.size or self._closing:
            self._read_ahead(data)
        elif waiting is _DEPARTURE:
            pass
        elif not self._buffer and (request := self._parser.parse_plain(data, self._reactor.now)) is not None:
            if self._parser.length:
                self._begin_body(request, self._parser.length)
            else:
                self._handle(request)
        elif not self._buffer and 0 < data.find(b"\r\n\r\n") == len(data) - 4 and data[0] != 13:
            self._on_head(data)
        else:
            self._buffer += data
            self._work()

    def _read_ahead(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        if len(self._buffer) > READ_AHEAD_BYTES:
            self._paused = True
            self._reactor.pause_read(self._fd, True)

    def _work(self) -> None:
        """Handle the requests in the buffer, until one has to be waited for."""
        if self._working:
            return
        self._working = True
        try:
            count = 0
            while self._buffer and self._may_begin():
                if count >= REQUESTS_PER_TURN or (count and self._reactor.late):
                    self._reactor.call_soon(self._work)
                    return
                count += 1
                head = self._next_head()
                if head is None:
                    break
                self._on_head(head)
        finally:
            self._working = False
        if self.closed:
            return
        if self._ended:
            if self._answer is None and not self._out.size:
                self._end()  # what is left is no whole request
        elif self._paused and (len(self._buffer) <= READ_AHEAD_BYTES or self._may_begin()):
            self._paused = False
            self._reactor.pause_read(self._fd, False)

    def _may_begin(self) -> bool:
        """Whether the next request may be looked at: none is under way, and the answers before it have left."""
        waiting = self._waiting
        return (
            (waiting is _HEAD or waiting is _REQUEST)
            and not self._out.size
            and not self._closing
            and not self.closed
        )

    def _next_head(self) -> bytes | None:
        """Take a complete head out of the buffer; None where the rest has to be waited for, or where it was refused."""
        buffer = self._buffer
        if self._waiting is Waiting.REQUEST:
            self._waiting = Waiting.HEAD
            self._since = self._reactor.now
            self._checked = 0
            self._fresh = False
        # One empty line before a request is ignored (RFC 9112, 2.2). It counts as a begun head.
        start = 2 if buffer.startswith(b"\r\n") else 0
        end = buffer.find(b"\r\n\r\n", max(start, self._checked - 3))
        if end >= 0:
            head = bytes(buffer[start : end + 4])
            del buffer[: end + 4]
            return head
        if len(buffer) > start and buffer != b"\r":
            try:
                check_incomplete_head(buffer, start, max(start, self._checked), self.front.limits)
            except Refusal as refusal:
                if not self._may_be_http2(buffer, refusal):
                    self._refuse(refusal.status, refusal.reason)
                    return None
            self._checked = len(buffer)
        self._arm(self._since + self.front.limits.head_timeout_seconds)
        return None

    def _on_head(self, head: bytes) -> None:
        parser = self._parser
        try:
            request = parser.parse(head, self._reactor.now)
            if len(head) > self.front.limits.head_bytes:
                raise Refusal(431, "the head is too long")
        except Refusal as refusal:
            if self._may_be_http2(head, refusal):
                self._hand_over(head)
            else:
                self._refuse(refusal.status, refusal.reason)
            return
        if parser.length:
            self._begin_body(request, parser.length)
        else:
            self._handle(request)

    def _may_be_http2(self, head: bytes | bytearray, refusal: Refusal) -> bool:
        """Whether what was refused for its version is the preface of HTTP/2, as far as it goes."""
        return (
            refusal.status == 505
            and self._fresh
            and self._waiting is Waiting.HEAD
            and HTTP2_PREFACE.startswith(head)
        )

    def _hand_over(self, head: bytes) -> None:
        """Leave socket and client to an HTTP/2 connection; this object is done."""
        from trailboss.plugins.http.h2 import H2Connection

        received = head + bytes(self._buffer)
        self._buffer.clear()
        self.closed = True
        self._reactor.unregister(self._fd)
        if self._deadline is not None:
            self._deadline.connection = None
            self._deadline = None
        self.front.connections.discard(self)
        local, addr, port = self._parser.ends
        H2Connection(self.front, self._sock, local, addr, port, received=received)

    def _handle(self, request: Request) -> None:
        front = self.front
        self._waiting = _ANSWER
        self._answer = answer = Answer(self, request, self._parser.keep_alive)
        front.in_flight += 1
        front.counters.requests += 1
        try:
            front.handler(request, answer)
        except Exception as error:  # the boundary of the handlers: costs this request and no other
            log.error("a handler failed", request=request.path, exc_info=error)
            answer.fail(500, "internal error")

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _begin_body(self, request: Request, length: int) -> None:
        buffer = self._buffer
        if 0 < length <= len(buffer):
            content = bytes(buffer[:length])
            del buffer[:length]
            try:
                request.body = self.front.spool.take(content)
            except OSError as error:
                self._cannot_keep(error)
                return
            self._handle(request)
            return
        self._request = request
        self._incoming = self.front.spool.begin()
        self._decoder = ChunkDecoder(self.front.limits) if length == CHUNKED else None
        self._left = length
        self._waiting = Waiting.BODY
        self._since = self._reactor.now
        self._arm(deadline(Waiting.BODY, self._since, 0, self.front.limits))
        if buffer:
            data = bytes(buffer)
            buffer.clear()
            self._on_body(data)
        elif self._parser.expects_continue:
            self.send(CONTINUE)

    def _on_body(self, data: bytes) -> None:
        incoming = self._incoming
        assert incoming is not None
        decoder = self._decoder
        try:
            if decoder is not None:
                parts = decoder.feed(data)
                if parts:
                    incoming.add(b"".join(parts))
                if decoder.finished:
                    self._body_complete(incoming.complete(), decoder.rest)
                return
            if len(data) < self._left:
                self._left -= len(data)
                incoming.add(data)
            else:
                incoming.add(data[: self._left])
                self._body_complete(incoming.complete(), data[self._left :])
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.reason)
        except OSError as error:
            self._cannot_keep(error)

    def _body_complete(self, body: Body, rest: bytes) -> None:
        request = self._request
        assert request is not None
        self._request = self._incoming = self._decoder = None
        request.body = body
        self._buffer += rest
        self._handle(request)
        if rest:
            self._work()

    def _cannot_keep(self, error: OSError) -> None:
        log.error(
            "the body of a request cannot be kept", folder=self.front.spool.folder, reason=error.strerror
        )
        self._refuse(500, "the body cannot be kept")

    # --- the end of a request -----------------------------------------------------------------------------------------

    def answered(self, request: Request, keep: bool) -> None:
        """Take note that a request has been answered, or given up."""
        front = self.front
        front.in_flight -= 1
        now = self._reactor.now
        latency = front.latency  # its `observe`, without the call
        latency.counts[bisect_left(latency.bounds, now - request.started)] += 1
        latency.total += now - request.started
        if request.body is not EMPTY_BODY:
            request.body.close()
        self._answer = None
        if front.on_progress is not None:
            front.on_progress()
        if self.closed:
            return
        if not keep:
            self._closing = True
            if not self._out.size:
                self._leave()
            return
        self._waiting = _REQUEST
        self._since = now
        if self._deadline is None:
            self._arm(now + front.limits.idle_timeout_seconds)
        if self._buffer or self._paused:
            self._work()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer a request that is not read to its end; the connection ends with that."""
        front = self.front
        front.counters.refusals += 1
        request = self._request
        if request is None:
            front.refusals.add(status, reason)
        else:
            front.refusals.add(status, reason, request.method, request.path)
        if self._reactor.now >= front.date_until:
            front.refresh_date()
        self._drop_body()
        self._buffer.clear()
        self._waiting = Waiting.DEPARTURE
        self._since = self._reactor.now
        self._closing = True
        headers, body = failure(reason)
        self.send(
            b"%b%b%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status_line(status), front.date_line, encode_headers(headers), len(body), body)
        )
        if not self._out.size and not self.closed:
            self._leave()

    def _leave(self) -> None:
        """Everything is sent: end the sending side, and wait a little for the client to do the same.

        A connection closed with unread bytes is reset, and a reset may overtake the answer.
        """
        if self._ended or (
            self._tls is None  # its last word needs the longer way
            and not self._parser.keep_alive
            and not self._buffer
            and self._waiting is Waiting.ANSWER
        ):
            self._end()  # the client has said that nothing follows
            return
        self._buffer.clear()
        self._waiting = Waiting.DEPARTURE
        self._since = now = self._reactor.now
        self._arm(deadline(Waiting.DEPARTURE, now, 0, self.front.limits))
        if self._paused:
            self._paused = False
            self._reactor.pause_read(self._fd, False)
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def _end(self) -> None:
        """End the connection in good order."""
        if self._tls is not None and not self.closed:
            try:
                self._tls.farewell()
            except OSError:
                pass
        self.close()

    def _on_end(self) -> None:
        """The client sends no more: there may be answers left that it still takes."""
        answer = self._answer
        if answer is not None and self._tls is not None:
            self.close()
            return
        self._ended = self._paused = True
        self._reactor.pause_read(self._fd, True)
        if not self._out.size:
            if answer is None:
                self._end()
            else:
                answer._ask_whether_there()

    def close_if_idle(self, quiet_since: float) -> None:
        """Close unless a request or its answer is under way, or something has happened after `quiet_since`."""
        idle = self._waiting is Waiting.REQUEST or (self._waiting is Waiting.HEAD and not self._buffer)
        if idle and not self._out.size and self._since <= quiet_since:
            self._end()

    @property
    def is_leaving(self) -> bool:
        """Whether everything is sent and only the client's departure is waited for."""
        return self._waiting is Waiting.DEPARTURE and not self._out.size

    def cut(self) -> None:
        """End the connection with a reset."""
        if not self.closed:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass
            self.close()

    def close(self) -> None:
        """End the connection now; whoever works on its request is told."""
        if self.closed:
            return
        self.closed = True
        self._reactor.unregister(self._fd)
        self._sock.close()
        if self._deadline is not None:
            self._deadline.connection = None
            self._deadline = None
        self._drop_body()
        self._buffer.clear()
        self._out.drop()
        self.front.connections.discard(self)
        answer = self._answer
        if answer is not None and not answer.finished:
            answer.finished = True
            self._reactor.call_soon(answer._tell_gone)
            self.answered(answer.request, False)
        elif self.front.on_progress is not None:
            self.front.on_progress()

    def _drop_body(self) -> None:
        if self._incoming is not None:
            self._incoming.drop()
        self._request = self._incoming = self._decoder = None

    def _on_error(self, error: BaseException) -> None:
        self.close()

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send bytes, or keep what the kernel does not take now."""
        if self.closed:
            return
        if self._out.size:
            self._keep(data)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._keep(memoryview(data)[sent:])
            self._begin_waiting_to_write()

    def send_both(self, head: bytes, body: bytes) -> None:
        """Send two pieces with one call, without joining them."""
        if self.closed:
            return
        if self._out.size:
            self._keep(head)
            self._keep(body)
            return
        try:
            sent = self._sock.sendmsg((head, body))
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(head):
            self._keep(head[sent:])
            self._keep(body)
        elif sent < len(head) + len(body):
            self._keep(memoryview(body)[sent - len(head) :])
        else:
            return
        self._begin_waiting_to_write()

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file in its turn; closes `fd` when that is done or the connection has ended."""
        if self.closed:
            os.close(fd)
            return
        out = self._out
        waits = out.size > 0
        out.add_file(fd, offset, count)
        if out.size > UNSENT_BYTES_HIGH and self._answer is not None:
            self._answer.wants_more = False
        if not waits:
            self._begin_waiting_to_write()
            self._push_out()

    def _keep(self, data: bytes | memoryview) -> None:
        if self.closed:
            return
        out, answer = self._out, self._answer
        kept = out.keep(data, whole=answer is None or answer.finished)
        if kept is Kept.KEPT:
            return
        front = self.front
        if kept is Kept.FULL:
            if answer is not None:
                answer.wants_more = False
            return
        front.answers.complain(self._reactor.now, out.reason)
        self.cut()

    def _begin_waiting_to_write(self) -> None:
        if self.closed:
            return
        self._stalled_since = now = self._reactor.now
        self._queued = _kernel_queue(self._fd)
        self._reactor.want_write(self._fd, True)
        self._arm(now + self.front.limits.write_timeout_seconds)

    def _on_writable(self) -> None:
        self._push_out()

    def _push_out(self) -> None:
        """Send what waits as far as the kernel takes it, within a bound."""
        out = self._out
        budget = FILE_BYTES_PER_TURN if self._tls is None else TLS_BYTES_PER_TURN
        while out.size and budget > 0:
            item = out.first
            try:
                if isinstance(item, FilePart):
                    count = min(item.count, budget)
                    if self._tls is None:
                        sent = os.sendfile(self._fd, item.fd, item.offset, count)
                    else:
                        sent = self._tls.send_file(item.fd, item.offset, count)
                    if not sent:
                        log.error("a file became shorter while it was sent, the connection is cut")
                        self.cut()
                        return
                else:
                    sent = self._sock.send(item)
            except (BlockingIOError, InterruptedError):
                self._queued = _kernel_queue(self._fd)
                break
            except OSError:
                self.close()
                return
            budget -= sent
            self._stalled_since = self._reactor.now
            out.sent(sent)
        self._on_progress()

    def _on_progress(self) -> None:
        answer = self._answer
        if not self._out.size:
            self._reactor.want_write(self._fd, False)
            if self._closing:
                self._leave()
                return
            if self._waiting is Waiting.REQUEST:
                self._since = now = self._reactor.now
                self._arm(now + self.front.limits.idle_timeout_seconds)
        if answer is not None and not answer.wants_more and self.has_room:
            self._reactor.call_soon(answer._tell_ready)
        if not self._out.size and self._answer is None and (self._buffer or self._ended):
            self._work()

    @property
    def has_room(self) -> bool:
        """Whether little enough is unsent for a source to go on."""
        return self._out.size < UNSENT_BYTES_LOW

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        """See to it that somebody looks at `at`; a look that comes too early costs little, so most are left in place."""
        if at == inf:
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
        if self._out.size:  # whatever else is waited for begins when the answer has left
            at = self._stalled_since + limits.write_timeout_seconds
            if now < at or self._takes_something(now):
                self._arm(self._stalled_since + limits.write_timeout_seconds)
                return
            self.front.counters.timeouts += 1
            log.debug("a client has taken nothing for too long", seconds=limits.write_timeout_seconds)
            self.cut()
            return
        received = self._incoming.size if self._incoming is not None else 0
        next_look = deadline(self._waiting, self._since, received, limits)
        if now >= next_look:
            self._on_too_late()
            return
        self._arm(next_look)

    def _takes_something(self, now: float) -> bool:
        """Ask the kernel: it holds megabytes for a slow client, and reports room only when a good part of them has left."""
        queued = _kernel_queue(self._fd)
        if queued >= self._queued:
            return False
        self._queued = queued
        self._stalled_since = now
        return True

    def _on_too_late(self) -> None:
        waiting = self._waiting
        if waiting is Waiting.REQUEST or waiting is Waiting.DEPARTURE:
            self._end()
            return
        self.front.counters.timeouts += 1
        if waiting is Waiting.HEAD and not self._buffer:
            self.close()
        elif waiting is Waiting.HEAD:
            self._refuse(408, "the head took longer than http.limits.head_timeout")
        else:
            self._refuse(408, "the body arrives slower than http.limits.body_rate")


class _Deadline:
    """Entry of a connection in the wheel; it forgets a connection that has gone."""

    __slots__ = ("at", "connection")

    def __init__(self, connection: Connection, at: float) -> None:
        self.connection: Connection | None = connection
        self.at = at

    def __call__(self, now: float) -> None:
        if self.connection is not None:
            self.connection.on_deadline(now)
