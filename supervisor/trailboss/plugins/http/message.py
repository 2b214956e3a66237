"""WHAT TRAVELS BETWEEN THE FRONT AND THE WORKERS: a Request, its Body, and the Responder that takes the answer.

A Request reaches a handler when its body has been received completely, so nothing behind this line ever waits for a
client. Every part of the way is a Handler; middleware wraps one Handler into another, and RoadRunner's order holds: the
last of the configured list sees the request first. A handler answers at once or later, always on the reactor, through
the Responder that came with the request; whoever gets a request answers it exactly once.

Nothing here does I/O, except that a Body may stand for a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

__all__ = ["EMPTY_BODY", "Body", "Handler", "HeaderList", "Middleware", "Request", "Responder"]

HeaderList = Sequence[tuple[bytes, bytes]]
"""Headers in order; names as they were written, values without white space around them."""


class Body:
    """A body that has been received completely: in memory, or in an unlinked temporary file.

    `file` is that file's descriptor or None; its position means nothing, read it with os.pread. It belongs to the body
    and is closed with it.
    """

    __slots__ = ("_content", "_on_close", "file", "size")

    def __init__(
        self,
        content: bytes = b"",
        file: int | None = None,
        size: int | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._content = content
        self.file = file
        self.size = len(content) if size is None else size
        self._on_close = on_close

    def bytes(self) -> bytes:
        """Return the whole body; reads the file where there is one. Raises OSError when that fails, or is closed."""
        if self.file is None:
            return self._content
        parts = []
        offset = 0
        while offset < self.size:
            part = os.pread(self.file, self.size - offset, offset)
            if not part:
                raise OSError("a spooled body is shorter than it was")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Release memory and file; `size` stays what it was. May be called again."""
        on_close, self._on_close = self._on_close, None
        if self.file is not None:
            os.close(self.file)
            self.file = None
        self._content = b""
        if on_close is not None:
            on_close()


EMPTY_BODY: Final = Body()
"""The body of a request without one; closing it changes nothing."""


class Request:
    """One request, its head checked, its body received."""

    __slots__ = (
        "_headers",
        "attributes",
        "body",
        "head",
        "host",
        "id",
        "method",
        "path",
        "query",
        "remote_addr",
        "remote_port",
        "scheme",
        "started",
        "target",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: str,
        path: str,
        query: str,
        version: str,
        headers: list[tuple[bytes, bytes]] | None,
        host: str,
        remote_addr: str = "127.0.0.1",
        remote_port: int = 0,
        body: Body = EMPTY_BODY,
        started: float = 0.0,
        scheme: str = "http",
        head: bytes = b"",
    ) -> None:
        """Either `headers`, or a plain `head` to take them from when somebody asks."""
        self.method = method
        #: The request target as it was written.
        self.target = target
        #: The path, not decoded; begins with "/" except for `OPTIONS *`, where it is "*".
        self.path = path
        #: What follows the first "?", or "".
        self.query = query
        #: "1.0" or "1.1"
        self.version = version
        self._headers = headers
        #: The plain head as it was received, b"" where it was not plain, or as soon as somebody has taken the list of its
        #: headers, which may be changed.
        self.head = head
        #: The checked Host; the listener's own address for HTTP/1.0 without one.
        self.host = host
        self.scheme = scheme
        self.remote_addr = remote_addr
        self.remote_port = remote_port
        self.body = body
        #: Values for the worker, by name.
        self.attributes: dict[str, list[str]] = {}
        #: When the head was complete, on the reactor's clock.
        self.started = started
        #: Identifier for logs and traces, "" where none was given.
        self.id = ""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers; the list may be changed."""
        headers = self._headers
        if headers is None:
            headers = self._headers = _headers_of(self.head)
            self.head = b""
        return headers

    @headers.setter
    def headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers
        self.head = b""

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the header `name` (lower case), repeated ones joined; None where there is none."""
        head = self.head
        if head:
            lower = head.lower()
            start = lower.find(b"\r\n%b:" % name)
            if start < 0:
                return None
            start += len(name) + 3
            end = head.index(b"\r\n", start)
            if lower.find(b"\r\n%b:" % name, end) < 0:
                return head[start:end].strip(b" \t")
        found = [value for key, value in self.headers if key.lower() == name]
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        return (b"; " if name == b"cookie" else b", ").join(found)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target} from {self.remote_addr}>"


def _headers_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a head that is plain: one line each, checked."""
    return [
        (name, value.strip(b" \t"))
        for name, _, value in [
            line.partition(b":") for line in head[head.index(b"\n") + 1 : -4].split(b"\r\n") if line
        ]
    ]


class Responder(Protocol):
    """The connection's side of one request. Every call is made on the reactor and none blocks.

    Whoever gets a request ends it once, with `respond`, `end`, `fail` or `abort`. Calls after that are ignored. A client
    that goes ends its request as well: `finished` is True then, the body is let go, `on_gone` is called soon.
    Framing is the responder's own business: Content-Length, Transfer-Encoding, Connection, Date and Server are never in `headers`.
    """

    #: False while too much is unsent; `on_ready` is called when it is True again.
    wants_more: bool
    on_ready: Callable[[], None] | None
    #: The client has gone: called at most once, and never after the end.
    on_gone: Callable[[], None] | None
    #: The head is out.
    started: bool
    #: Nothing more is expected.
    finished: bool

    def inform(self, status: int, headers: HeaderList) -> None:
        """Send an interim answer, 100 to 199 without 101; not sent to HTTP/1.0 clients."""

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Send the head, once. A known `length` is announced; otherwise the body is chunked, or ends with the connection."""

    def data(self, chunk: bytes) -> None:
        """Send a part of the body; dropped where an answer has no body (HEAD, 204, 304)."""

    def file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file as a part of the body, by the kernel; `fd` is taken over and closed."""

    def end(self, trailers: HeaderList = ()) -> None:
        """End the answer. A body shorter than announced cuts the connection."""

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer in one write."""

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Answer that the server could not; where the head is out already, cut the connection."""

    def abort(self) -> None:
        """Cut the connection: what was sent must not look complete."""


Handler = Callable[[Request, Responder], None]
"""Takes a request and answers it, now or later."""

Middleware = Callable[[Handler], Handler]
"""Wraps a handler."""
