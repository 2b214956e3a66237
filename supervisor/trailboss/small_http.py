"""A small HTTP server for ports that machines ask now and then: one request a connection, GET and HEAD, whole answers.

It lives on the reactor, parses with httptools, and is strict with its peers: few connections, little time, a small head.
Whatever a peer sends ends in an answer or a closed connection. A handler gets the request and a function to answer with,
which it may call at once or later, on the reactor; answers to a peer that has gone are dropped.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple

import httptools

from trailboss.log import FilteringBoundLogger
from trailboss.reactor import Reactor

__all__ = ["SmallAnswer", "SmallHandler", "SmallRequest", "SmallServer", "bind_port"]

CONNECTIONS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 8192
#: From accept to a complete head.
HEAD_SECONDS: Final = 5.0
#: For the handler to answer, and the peer to take the answer and go.
ANSWER_SECONDS: Final = 15.0
BACK_OFF_SECONDS: Final = 0.1
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class SmallRequest:
    """What was asked. Names of headers are in lower case; repeated ones are joined by commas."""

    path: str
    query: str
    headers: Mapping[str, str]


class SmallAnswer(NamedTuple):
    """Status, body, its type, and further headers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


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
    ) -> None:
        self.reactor = reactor
        self.handle = handle
        self.log = log
        self.connections: set[_Connection] = set()
        #: Connections closed at once because there were too many.
        self.turned_away = 0
        self._sock = sock
        self._fd = sock.fileno()
        self._closed = False
        self._accepts = True
        self._address = _address_of(sock)
        reactor.register(self._fd, self._on_readable)

    @property
    def address(self) -> str:
        """host:port."""
        return self._address

    def close(self) -> None:
        """Stop accepting and close every connection; may be called again."""
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
                if error.errno in _NO_ROOM:
                    self.log.error("no connection can be accepted for now", reason=error.strerror)
                    self.reactor.pause_read(self._fd, True)
                    self.reactor.wheel.add(self.reactor.now + BACK_OFF_SECONDS, self._go_on)
                    return
                continue
            if len(self.connections) >= CONNECTIONS_MAX:
                self.turned_away += 1
                sock.close()
                continue
            try:
                sock.setblocking(False)
                self.connections.add(_Connection(self, sock))
            except Exception as error:
                # Costs this connection and no other: an exception out of here would cost the listening socket.
                sock.close()
                self.log.error("a connection could not be taken", reason=str(error) or type(error).__name__)

    def _go_on(self, _now: float) -> None:
        if self._accepts:
            self.reactor.pause_read(self._fd, False)


class _Connection:
    """One connection: reading the head, waiting for the answer, sending it, leaving."""

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
        self._closed = False
        self._reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        self._reactor.wheel.add(self._reactor.touch() + HEAD_SECONDS, self._on_head_deadline)

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
        self._asked = True
        self._reactor.wheel.add(self._reactor.now + ANSWER_SECONDS, lambda _now: self.close())
        try:
            self._server.handle(request, self._answer)
        except Exception:
            self._server.log.exception("a request could not be answered", path=request.path)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the request could not be answered")

    def _refuse(self, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> None:
        if not self._asked:
            self._asked = True
            self._reactor.wheel.add(self._reactor.touch() + ANSWER_SECONDS, lambda _now: self.close())
        self._answer(SmallAnswer(int(status), f"{text}\n".encode(), headers=headers))

    def _answer(self, answer: SmallAnswer) -> None:
        """Send an answer, unless there was one, or nobody is there any more."""
        if self._answered or self._closed:
            return
        self._answered = True
        more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        head = (
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
            f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n{more}\r\n"
        ).encode("ascii")
        self._unsent = memoryview(head if self._method == b"HEAD" else head + answer.body)
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
        self._unsent = self._unsent[sent:]
        self._reactor.want_write(self._fd, bool(self._unsent))
        if not self._unsent:
            try:
                # The peer reads to the end and closes; closing first could take the answer back (a reset).
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()

    def _on_head_deadline(self, _now: float) -> None:
        if not self._asked and not self._closed:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "no complete request in time")

    def _on_error(self, _error: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """End the connection now."""
        if not self._closed:
            self._closed = True
            self._reactor.unregister(self._fd)
            self._sock.close()
            self._unsent = b""
            self._server.connections.discard(self)
