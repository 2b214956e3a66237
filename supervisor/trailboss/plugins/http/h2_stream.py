"""ONE HTTP/2 STREAM: a request on its way in, then the Responder of its answer.

A stream waits for its body or for its answer; what it has to say goes through its connection, which shares the client
out among all streams. Parts that the client has no window for wait here, in an Unsent of the stream's own, so a stream
that its client leaves alone holds up its worker at most, and no other stream. Like the Answer of HTTP/1 it is deaf once
its request is over.

Ending early costs the stream and not the connection: RST_STREAM is what a cut connection is for HTTP/1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from trailboss.log import logger
from trailboss.plugins.http.connection import failure
from trailboss.plugins.http.h2_head import answer_fields, trailer_fields
from trailboss.plugins.http.message import HeaderList, Request
from trailboss.plugins.http.spool import Incoming
from trailboss.plugins.http.unsent import Kept, Unsent

if TYPE_CHECKING:
    from trailboss.plugins.http.h2 import H2Connection

__all__ = ["Stream"]

log = logger("http")


class Stream:
    """A request and the answer to it; a Responder."""

    __slots__ = (
        "_bodyless",
        "_connection",
        "_held_head",
        "_left",
        "all_said",
        "blocked_since",
        "finished",
        "id",
        "incoming",
        "length",
        "malformed",
        "on_gone",
        "on_ready",
        "queued",
        "request",
        "request_ended",
        "since",
        "started",
        "trailers",
        "unsent",
        "wants_more",
    )

    def __init__(self, connection: H2Connection, number: int, request: Request, ended: bool) -> None:
        self._connection = connection
        self.id = number
        self.request = request
        #: The client has said everything.
        self.request_ended = ended
        #: Content-Length, or None where it was not announced.
        self.length: int | None = None
        #: What came was no request of HTTP/2; to be said when the library has read it.
        self.malformed = False
        #: The body, while it arrives.
        self.incoming: Incoming | None = None
        #: When the head was complete.
        self.since = request.started
        self._bodyless = False
        self._left: int | None = None
        #: The head of an answer without a body: it ends the stream, so it waits for `end`.
        self._held_head: list[tuple[bytes, bytes]] = []
        #: Parts of the answer that wait for the client; None where nothing ever had to.
        self.unsent: Unsent | None = None
        #: Nothing is added to the answer any more.
        self.all_said = False
        self.trailers: HeaderList = ()
        #: It stands in the connection's row of those who may send.
        self.queued = False
        #: Since when the client has had no window for it; None while it has.
        self.blocked_since: float | None = None
        self.started = False
        self.finished = False
        self.wants_more = True
        self.on_ready: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None

    # --- the Responder ------------------------------------------------------------------------------------------------

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer; it leaves at the end of the reactor's batch, with those of other streams."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        connection = self._connection
        try:
            bodyless = status == 204 or status == 304
            fields = answer_fields(status, connection.date(), headers, None if bodyless else len(body))
            if status < 200:
                raise ValueError(f"{status} is no status of a final answer")
        except ValueError as error:
            self._bad_answer(error)
            return
        self.started = self.finished = True
        self.on_gone = self.on_ready = None  # without a cycle memory is free at once
        if bodyless or not body or self.request.method == "HEAD":
            connection.send_head(self, fields, end=True)
        else:
            connection.send_head(self, fields, end=False)
            self.all_said = True
            if connection.send_body(self, body, whole=True) is Kept.LOST:
                connection.reset(self, ErrorCodes.INTERNAL_ERROR)
        connection.answered(self)

    def inform(self, status: int, headers: HeaderList) -> None:
        """Send an interim answer; nothing where the head is out. Raises ValueError."""
        if self.finished or self.started:
            return
        if not 100 <= status <= 199:
            raise ValueError(f"{status} is no status of an interim answer")
        self._connection.send_head(self, answer_fields(status, b"", headers), end=False)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Send the head; it leaves at the end of the reactor's batch."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        bodyless = status == 204 or status == 304
        try:
            if status < 200:
                raise ValueError(f"{status} is no status of a final answer")
            fields = answer_fields(status, self._connection.date(), headers, None if bodyless else length)
        except ValueError as error:
            self._bad_answer(error)
            return
        self.started = True
        self._bodyless = bodyless or self.request.method == "HEAD"
        self._left = length
        if self._bodyless:
            self._held_head = fields
        else:
            self._connection.send_head(self, fields, end=False)

    def data(self, chunk: bytes) -> None:
        """Send a part of the body."""
        if self.finished or not chunk or not self._may_send(len(chunk)):
            return
        if self._connection.send_body(self, chunk, whole=False) is Kept.FULL:
            self.wants_more = False

    def file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file as a part of the body; closes `fd`."""
        if self.finished or count <= 0:
            os.close(fd)
            return
        try:
            may_send = self._may_send(count)
        except RuntimeError:
            os.close(fd)
            raise
        if not may_send:
            os.close(fd)
            return
        self._connection.send_file(self, fd, offset, count)

    def _may_send(self, size: int) -> bool:
        if not self.started:
            raise RuntimeError("a part of a body before the head")
        if self._bodyless:
            return False
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                log.error("an answer is longer than its length, the stream is cut", request=self.request.path)
                self.abort()
                return False
        return True

    def end(self, trailers: HeaderList = ()) -> None:
        """End the answer. A body shorter than announced cuts the stream."""
        if self.finished:
            return
        if not self.started:
            raise RuntimeError("the end before the head")
        if self._left and not self._bodyless:
            log.error("an answer is shorter than its length, the stream is cut", request=self.request.path)
            self.abort()
            return
        if not self._bodyless:
            try:
                self.trailers = trailer_fields(trailers) if trailers else ()
            except ValueError as error:
                self._bad_answer(error)
                return
        self.finished = self.all_said = True
        self.on_gone = self.on_ready = None  # without a cycle memory is free at once
        if self._bodyless:
            self._connection.send_head(self, self._held_head, end=True)
        else:
            self._connection.send_end(self)
        self._connection.answered(self)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Answer that the server could not; where the head is out already, cut the stream."""
        if self.finished:
            return
        if self.started:
            self.abort()
            return
        if close:
            self._connection.say_goodbye()
        headers, body = failure(reason, retry_after)
        self.respond(status, headers, body)

    def abort(self) -> None:
        """Cut the stream: what was sent does not look complete."""
        if self.finished:
            return
        self.finished = True
        self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)
        self._connection.answered(self)

    def _bad_answer(self, error: ValueError) -> None:
        log.error("an answer cannot be sent", request=self.request.path, reason=str(error))
        self.fail(500, "the answer cannot be sent")

    # --- the connection's side ----------------------------------------------------------------------------------------

    def tell_gone(self) -> None:
        """Call `on_gone`, once."""
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def tell_ready(self) -> None:
        """Call `on_ready` if a source waits for that."""
        if self.finished or self.wants_more:
            return
        self.wants_more = True
        if self.on_ready is not None:
            self.on_ready()

    def drop(self) -> None:
        """Give up what has arrived and what waits."""
        if self.incoming is not None:
            self.incoming.drop()
            self.incoming = None
        if self.unsent is not None:
            self.unsent.drop()
