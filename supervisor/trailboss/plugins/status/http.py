"""A small HTTP server for those who ask how things are: one request a connection, GET or HEAD, short answers.

It lives on the reactor, parses with httptools, and is strict with its peers: few connections, little time, a small
head. Whatever a peer sends ends in an answer or a closed connection; nothing of it reaches further than a path, a query
and two headers. An answer may be a stream of events: the connection then joins an :class:`Audience` and stays.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs

import httptools

from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.small_http import bind_port

__all__ = ["Audience", "HttpAnswer", "HttpConnection", "HttpListener", "HttpRequest", "bind_status"]

log = logger("status")

CONNECTIONS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 8192
#: From accept to a complete head.
HEAD_SECONDS: Final = 5.0
#: For the peer to take the answer and go.
ANSWER_SECONDS: Final = 10.0
BACK_OFF_SECONDS: Final = 0.1
COMPLAINT_SECONDS: Final = 60.0
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


#: A peer that has taken nothing of a stream for so long is dropped; the kernel is told the same about lost peers.
STALL_SECONDS: Final = 10.0
#: What the kernel may keep for a peer that is slow with a stream; it doubles that.
STREAM_BUFFER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What was asked: path, query parameters in order, the Host header and where the browser says it comes from.

    `host` is None without such a header, and "" where there are several.
    """

    path: str
    query: dict[str, list[str]]
    host: str | None = None
    fetch_site: str = ""


class Audience(Protocol):
    """Those who watch a stream of events."""

    def join(self, connection: HttpConnection) -> None:
        """Take a new one in; `connection.push` sends to it from now on."""

    def leave(self, connection: HttpConnection) -> None:
        """It has gone."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, body and its type. With an `audience` the body is the beginning of a stream that does not end."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    audience: Audience | None = None


Handle = Callable[[HttpRequest], HttpAnswer]

#: Linux; the module socket has it from Python 3.6 on where the system's headers do.
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)


def bind_status(host: str, port: int, what: str) -> socket.socket:
    """Return a listening socket. Raises OSError with a text that names the key (`what`), the value and a remedy."""
    try:
        return bind_port(host, port)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


class HttpListener:
    """Accepts until `close`; every request is answered by ``handle(request)``, which must not block."""

    def __init__(
        self, sock: socket.socket, reactor: Reactor, handle: Handle, head_seconds: float = HEAD_SECONDS
    ) -> None:
        self.reactor = reactor
        self.handle = handle
        self.head_seconds = min(head_seconds, HEAD_SECONDS)
        #: The oldest first.
        self.connections: dict[HttpConnection, None] = {}
        self._sock = sock
        self._fd = sock.fileno()
        self._closed = False
        self._accepts = True
        self._complain_again_at = 0.0
        reactor.register(self._fd, self._on_readable)

    def close(self) -> None:
        """Stop accepting and close every connection."""
        if self._closed:
            return
        self._closed = True
        self.give_up()
        for connection in tuple(self.connections):
            connection.close()

    def give_up(self) -> None:
        """Stop accepting and leave the port to a successor; who has connected is answered."""
        if self._accepts:
            self._accepts = False
            self.reactor.unregister(self._fd)
            self._sock.close()

    def _on_readable(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    continue
                log.error("no status connection can be accepted for now", reason=error.strerror)
                self.reactor.pause_read(self._fd, True)
                self.reactor.wheel.add(self.reactor.now + BACK_OFF_SECONDS, self._go_on)
                return
            if len(self.connections) >= CONNECTIONS_MAX and not self._make_room():
                sock.close()
                continue
            try:
                sock.setblocking(False)
                self.connections[HttpConnection(self, sock)] = None
            except Exception as error:
                # Costs this connection and no other: an exception out of here would cost the listening socket.
                sock.close()
                self._complain(error)

    def _make_room(self) -> bool:
        """Close a connection that has its answer and is waited for to go, else the oldest that is no stream.

        Whoever asks at once has his answer at once; so it is the silent ones that a crowd costs their place.
        """
        waiting = None
        for connection in self.connections:
            if connection.is_leaving:
                connection.close()
                return True
            if waiting is None and not connection.is_stream:
                waiting = connection
        if waiting is None:
            return False
        waiting.close()
        return True

    def _complain(self, error: Exception) -> None:
        """Say that a connection could not be taken, once a minute."""
        if self.reactor.now >= self._complain_again_at:
            self._complain_again_at = self.reactor.now + COMPLAINT_SECONDS
            log.error("a status connection could not be taken", reason=str(error) or type(error).__name__)

    def _go_on(self, _now: float) -> None:
        if self._accepts:
            self.reactor.pause_read(self._fd, False)


class HttpConnection:
    """One connection: READING the head, then ANSWERING, then LEAVING until the peer closes; or STREAMING until it does."""

    def __init__(self, listener: HttpListener, sock: socket.socket) -> None:
        self._listener = listener
        self._reactor = listener.reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._method = b""
        self._received = 0
        self._complete = False
        self._answered = False
        self._unsent: bytes | memoryview = b""
        self._hosts: list[bytes] = []
        self._fetch_site = b""
        self._audience: Audience | None = None
        self._unsent_since = 0.0
        self._closed = False
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        self._reactor.wheel.add(self._reactor.touch() + listener.head_seconds, self._on_head_deadline)

    # --- called by the parser -------------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Collect the target; those of further requests in the same bytes are nobody's."""
        if not self._complete:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the two headers that matter."""
        if not self._complete:
            name = name.lower()
            if name == b"host":
                self._hosts.append(value)
            elif name == b"sec-fetch-site":
                self._fetch_site = value

    def on_headers_complete(self) -> None:
        """Note that enough is known to answer; a body is not wanted."""
        if not self._complete:
            self._complete = True
            self._method = self._parser.get_method()

    # --- events ---------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(16384)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if self._answered:
            return  # a body, or more requests: thrown away until the peer goes or the time is over
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError):
            self._answer(_text(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request"))
            return
        if self._complete:
            self._answer(self._ask())
        elif self._received > HEAD_BYTES_MAX:
            self._answer(
                _text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_BYTES_MAX} bytes of head")
            )

    def _ask(self) -> HttpAnswer:
        if self._received > HEAD_BYTES_MAX + 16384:
            return _text(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_BYTES_MAX} bytes of head"
            )
        if self._method not in (b"GET", b"HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only")
        try:
            url = httptools.parse_url(self._url)
            path = (url.path or b"/").decode("ascii")
            query = parse_qs((url.query or b"").decode("ascii"), max_num_fields=100)
        except (httptools.HttpParserError, ValueError):
            return _text(HTTPStatus.BAD_REQUEST, "not a valid target")
        try:
            host = (
                None if not self._hosts else self._hosts[0].decode("latin-1") if len(self._hosts) == 1 else ""
            )
            return self._listener.handle(HttpRequest(path, query, host, self._fetch_site.decode("latin-1")))
        except Exception as error:
            log.exception("a status request failed", path=path)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _answer(self, answer: HttpAnswer) -> None:
        self._answered = True
        streams = answer.audience is not None and self._method != b"HEAD"
        lines = [
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}",
            f"Content-Type: {answer.content_type}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in answer.headers),
        ]
        if answer.audience is None:
            lines.insert(2, f"Content-Length: {len(answer.body)}")
        if answer.status == 405:
            lines.append("Allow: GET, HEAD")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        self._unsent = head if self._method == b"HEAD" else head + answer.body
        now = self._reactor.touch()
        if streams:
            assert answer.audience is not None
            self._begin_stream(answer.audience, now)
        else:
            self._reactor.wheel.add(now + ANSWER_SECONDS, lambda _now: self.close())
            self._on_writable()

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent) if self._unsent else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = memoryview(self._unsent)[sent:] if sent < len(self._unsent) else b""
        self._reactor.want_write(self._fd, bool(self._unsent))
        if not self._unsent and self._audience is None:
            try:
                # The peer reads to the end and closes; closing first could take the answer back (a reset).
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()

    @property
    def is_leaving(self) -> bool:
        """Whether it has its whole answer."""
        return self._answered and not self._unsent and self._audience is None

    @property
    def is_stream(self) -> bool:
        """Whether it stays."""
        return self._audience is not None

    # --- streaming ------------------------------------------------------------------------------------------------

    def _begin_stream(self, audience: Audience, now: float) -> None:
        self._audience = audience
        self._unsent_since = now
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER_BYTES)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Data that is not acknowledged for so long ends the connection: a peer whose network has gone says nothing.
            self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(STALL_SECONDS * 1000))
        except OSError:
            self.close()
            return
        self._on_writable()
        if not self._closed:
            audience.join(self)

    def push(self, event: bytes, now: float) -> None:
        """Send one whole event, or leave it out where the one before has not been taken yet; drop who takes none."""
        if self._closed:
            return
        if self._unsent:
            if now - self._unsent_since > STALL_SECONDS:
                self.close()
            return
        self._unsent = event
        self._unsent_since = now
        self._on_writable()

    def _on_head_deadline(self, _now: float) -> None:
        if not self._answered and not self._closed:
            self._answer(_text(HTTPStatus.REQUEST_TIMEOUT, "no complete request in time"))

    def _on_error(self, _error: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """End the connection now."""
        if not self._closed:
            self._closed = True
            self._reactor.unregister(self._fd)
            self._sock.close()
            self._listener.connections.pop(self, None)
            audience, self._audience = self._audience, None
            if audience is not None:
                audience.leave(self)


def _text(status: HTTPStatus, text: str) -> HttpAnswer:
    return HttpAnswer(int(status), f"{text}\n".encode(), "text/plain; charset=utf-8")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unavailable"
