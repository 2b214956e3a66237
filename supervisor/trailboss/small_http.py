"""A small HTTP server for ports that are asked now and then (status, metrics): one request a connection, GET and HEAD.

It lives on the reactor, parses with httptools, and is strict with its peers: few connections, little time, a small head.
Whatever a peer sends ends in an answer or a closed connection. A handler gets the request and a function to answer with,
which it may call at once or later, on the reactor; answers to a peer that has gone are dropped. An answer may be a stream of
events: the connection then joins an :class:`Audience` and stays.

Beyond the most connections the oldest silent one makes room, so a crowd that says nothing stops no probe.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import httptools

from trailboss.accepting import Acceptor
from trailboss.log import FilteringBoundLogger
from trailboss.reactor import Reactor

__all__ = [
    "Audience",
    "SmallAnswer",
    "SmallConnection",
    "SmallHandler",
    "SmallRequest",
    "SmallServer",
    "bind_port",
]

CONNECTIONS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 8192
#: From accept to a complete head.
HEAD_SECONDS: Final = 5.0
#: For the handler to answer, and the peer to take the answer and go.
ANSWER_SECONDS: Final = 15.0
#: A peer that has taken nothing of a stream for so long is dropped; the kernel is told the same about lost peers.
STALL_SECONDS: Final = 10.0
#: What the kernel may keep for a peer that is slow with a stream; it doubles that.
STREAM_BUFFER_BYTES: Final = 64 * 1024
#: Linux; the module socket has it where the system's headers do.
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)


@dataclass(frozen=True, slots=True)
class SmallRequest:
    """What was asked. Names of headers are in lower case; repeated ones are joined by commas."""

    path: str
    query: str
    headers: Mapping[str, str]


class Audience(Protocol):
    """Those who watch a stream of events."""

    def join(self, connection: SmallConnection) -> None:
        """Take a new one in; `connection.push` sends to it from now on."""

    def leave(self, connection: SmallConnection) -> None:
        """It has gone."""


class SmallAnswer(NamedTuple):
    """Status, body, its type, and further headers. With an `audience` the body begins a stream that does not end."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    audience: Audience | None = None


SmallHandler = Callable[[SmallRequest, Callable[[SmallAnswer], None]], None]
"""Takes a request and the function that answers it."""


def bind_port(host: str, port: int) -> socket.socket:
    """Return a listening socket; an empty host means every interface. Raises OSError whose text is a remedy."""
    family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
    try:
        return _listening(family, host or "::", port)
    except OSError as error:
        if not host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 on this machine
            return _listening(socket.AF_INET, "0.0.0.0", port)
        raise OSError(error.errno, _remedy(error)) from error


def _listening(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(CONNECTIONS_MAX)
    except OSError:
        sock.close()
        raise
    return sock


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host is not known; write an IP address"
    return {
        errno.EADDRINUSE: "the port is in use; stop the program that has it or choose another port",
        errno.EACCES: "no permission to use this port; choose one above 1023",
        errno.EADDRNOTAVAIL: "this machine does not have that address; change the host",
    }.get(error.errno or 0, f"{error.strerror or error}; change the address")


def _address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class SmallServer:
    """Accepts until `close`; `log` is the channel of whoever owns the port."""

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        handle: SmallHandler,
        log: FilteringBoundLogger,
        head_seconds: float | None = None,
    ) -> None:
        """`head_seconds`: a shorter time for the head than usual."""
        self.reactor = reactor
        self.handle = handle
        self.log = log
        self.head_seconds = HEAD_SECONDS if head_seconds is None else min(head_seconds, HEAD_SECONDS)
        #: The oldest first.
        self.connections: dict[SmallConnection, None] = {}
        #: Connections closed because there were too many.
        self.turned_away = 0
        self._sock = sock
        self._address = _address_of(sock)
        self._acceptor = Acceptor(sock, reactor, self._admit, self._complain)

    @property
    def address(self) -> str:
        """host:port."""
        return self._address

    def close(self) -> None:
        """Stop accepting and close every connection; may be called again."""
        self.give_up()
        for connection in tuple(self.connections):
            connection.close()

    def give_up(self) -> None:
        """Stop accepting and leave the port to a successor; who has connected is answered."""
        if not self._acceptor.closed:
            self._acceptor.close()
            self._sock.close()

    def _admit(self, sock: socket.socket, _address: object) -> None:
        if len(self.connections) >= CONNECTIONS_MAX and not self._make_room():
            self.turned_away += 1
            sock.close()
            return
        self.connections[SmallConnection(self, sock)] = None

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
        self.turned_away += 1
        waiting.close()
        return True

    def _complain(self, event: str, reason: str) -> None:
        self.log.error(event, address=self._address, reason=reason)


class SmallConnection:
    """One connection: reading the head, waiting for the answer, sending it, leaving; or streaming until the peer leaves."""

    def __init__(self, server: SmallServer, sock: socket.socket) -> None:
        self._server = server
        self._reactor = server.reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._method = b""
        self._headers: dict[str, str] = {}
        self._received = 0
        self._complete = False
        self._asked = False
        self._answered = False
        self._unsent: memoryview | bytes = b""
        self._unsent_since = 0.0
        self._audience: Audience | None = None
        self._closed = False
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        self._reactor.wheel.add(self._reactor.touch() + server.head_seconds, self._on_head_deadline)

    # --- called by the parser -----------------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Collect the target; those of further requests in the same bytes are nobody's."""
        if not self._complete:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect the headers."""
        if not self._complete:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1")
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """Note that enough is known to answer; a body is not wanted."""
        if not self._complete:
            self._complete = True
            self._method = self._parser.get_method()

    # --- events -------------------------------------------------------------------------------------------------------

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
        if self._asked:
            return  # a body, or more requests: thrown away until the peer goes or the time is over
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError):
            self._refuse(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request")
            return
        if self._received > HEAD_BYTES_MAX:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_BYTES_MAX} bytes of head"
            )
        elif self._complete:
            self._ask()

    def _ask(self) -> None:
        if self._method not in (b"GET", b"HEAD"):
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", ("Allow", "GET, HEAD"))
            return
        try:
            url = httptools.parse_url(self._url)
            request = SmallRequest(
                (url.path or b"/").decode("ascii"), (url.query or b"").decode("ascii"), self._headers
            )
        except (httptools.HttpParserError, ValueError):
            self._refuse(HTTPStatus.BAD_REQUEST, "not a valid target")
            return
        self._await_end()
        try:
            self._server.handle(request, self._answer)
        except Exception as error:
            self._server.log.exception("a request could not be answered", path=request.path)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _await_end(self) -> None:
        self._asked = True
        self._reactor.wheel.add(self._reactor.touch() + ANSWER_SECONDS, self._on_answer_deadline)

    def _refuse(self, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> None:
        if not self._asked:
            self._await_end()
        self._answer(SmallAnswer(int(status), f"{text}\n".encode(), headers=headers))

    def _answer(self, answer: SmallAnswer) -> None:
        """Send an answer, unless there was one, or nobody is there any more."""
        if self._answered or self._closed:
            return
        self._answered = True
        lines = [
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}",
            f"Content-Type: {answer.content_type}",
            *(() if answer.audience is not None else (f"Content-Length: {len(answer.body)}",)),
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *(f"{name}: {value}" for name, value in answer.headers),
        ]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        self._unsent = memoryview(head if self._method == b"HEAD" else head + answer.body)
        if answer.audience is not None and self._method != b"HEAD":
            self._begin_stream(answer.audience)
        else:
            self._on_writable()

    def _on_writable(self) -> None:
        if not self._answered or self._closed:
            return
        try:
            sent = self._sock.send(self._unsent) if self._unsent else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = memoryview(self._unsent)[sent:]
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

    # --- streaming ----------------------------------------------------------------------------------------------------

    def _begin_stream(self, audience: Audience) -> None:
        self._audience = audience
        self._unsent_since = self._reactor.touch()
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

    # --- the end ------------------------------------------------------------------------------------------------------

    def _on_head_deadline(self, _now: float) -> None:
        if not self._asked and not self._closed:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "no complete request in time")

    def _on_answer_deadline(self, _now: float) -> None:
        if self._audience is None:
            self.close()

    def _on_error(self, _error: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """End the connection now."""
        if not self._closed:
            self._closed = True
            self._reactor.unregister(self._fd)
            self._sock.close()
            self._unsent = b""
            self._server.connections.pop(self, None)
            audience, self._audience = self._audience, None
            if audience is not None:
                audience.leave(self)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unavailable"  # a code of the configuration's own
