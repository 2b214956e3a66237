"""Compresses answers on their way out: gzip, and zstd or br where a library for them is installed.

Compressed is what is worth it (texts, JSON, SVG …, from 1 KiB on where the size is known) and nothing else: not what is encoded already,
not HEAD, 204, 304, parts of files, or answers that forbid it by `no-transform`. A strong ETag becomes a weak one, since
the bytes are no longer the ones it names; ranges are not offered, and Vary says why two clients get different bytes.

Streams stay streams: each part is flushed, so the client can read it at once. What is big is compressed in slices with
everybody else's turn in between. Parts of a stream and files are compressed not faster than the client takes them. A whole answer
is compressed to its end and sent whole, so that nothing of it waits in here for a slow client: the front keeps account of that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.encodings import (
    COMPRESSORS,
    Compressor,
    choose_encoding,
    is_compressible,
)
from trailboss.plugins.http.middleware.fields import with_vary

__all__ = ["Compression", "make_gzip"]

log = logger("http")

#: Smaller bodies do not become smaller on the wire.
MINIMUM_BYTES: Final = 1024
#: What is compressed in one go, about half a millisecond of work.
SLICE_BYTES: Final = 65_536
#: Statuses whose answers have no body, or a part of one.
_UNTOUCHED: Final = frozenset({204, 205, 206, 304, 416})


class Compression:
    """Compresses answers."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._call_soon = call_soon
        self._offered = tuple(COMPRESSORS)

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that compresses the answers of `next_handler`."""
        call_soon = self._call_soon
        offered = self._offered

        def handle(request: Request, responder: Responder) -> None:
            if request.method == "HEAD":
                coding = ""
            else:
                coding = choose_encoding(request.header(b"accept-encoding"), offered)
            next_handler(request, _CompressedResponder(responder, coding, call_soon))

        return handle


class _CompressedResponder(ResponderWrapper):
    """One answer; decides at its head whether it is compressed."""

    __slots__ = (
        "_call_soon",
        "_coding",
        "_compressor",
        "_ended",
        "_on_gone",
        "_on_ready",
        "_pieces",
        "_scheduled",
        "_trailers",
        "_whole",
    )

    def __init__(
        self, inner: Responder, coding: str, call_soon: Callable[[Callable[[], None]], None]
    ) -> None:
        self.inner = inner
        self._coding = coding
        self._call_soon = call_soon
        self._compressor: Compressor | None = None
        #: What waits to be compressed: bytes, or (descriptor, offset, count).
        self._pieces: deque[memoryview | tuple[int, int, int]] = deque()
        self._scheduled = False
        #: Status and headers of a whole answer, and what is compressed of its body.
        self._whole: tuple[int, HeaderList, list[bytes]] | None = None
        self._ended = False
        self._trailers: HeaderList = ()
        self._on_ready: Callable[[], None] | None = None
        self._on_gone: Callable[[], None] | None = None

    # --- what the handler behind sees ----------------------------------------------------------------------------------

    @property
    def wants_more(self) -> bool:  # type: ignore[override]
        """Whether more may be sent: the client takes it and nothing waits here."""
        return not self._pieces and self.inner.wants_more

    @property
    def finished(self) -> bool:  # type: ignore[override]
        """Whether nothing more is expected of the handler behind."""
        return self._ended or self.inner.finished

    @property
    def on_ready(self) -> Callable[[], None] | None:
        """Called when `wants_more` is True again."""
        return self._on_ready

    @on_ready.setter
    def on_ready(self, callback: Callable[[], None] | None) -> None:
        self._on_ready = callback
        self.inner.on_ready = self._ready

    @property
    def on_gone(self) -> Callable[[], None] | None:
        """Called when the client has gone before the end."""
        return self._on_gone

    @on_gone.setter
    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self._on_gone = callback
        self.inner.on_gone = self._gone

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer: compressed in one write where it is small, else slice by slice."""
        if self._compressor is not None:
            self.abort()  # a second answer: the connection's rule, kept here since it would not see the first one's rest
            return
        headers, compressed = self._decide(status, headers, len(body))
        if not compressed:
            self.inner.respond(status, headers, body)
            return
        if len(body) > SLICE_BYTES:
            self._compressor = COMPRESSORS[self._coding]()
            self.inner.on_gone = self._gone
            self._whole = status, headers, []
            self._ended = True
            self._take(memoryview(body))
            return
        compressor = COMPRESSORS[self._coding]()
        self.inner.respond(status, headers, compressor.compress(body) + compressor.finish())

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Send the head; the length of a compressed body is not known yet."""
        if self._compressor is not None:
            self.abort()
            return
        headers, compressed = self._decide(status, headers, length)
        if compressed:
            self._begin(status, headers)
        else:
            self.inner.head(status, headers, length=length)

    def data(self, chunk: bytes) -> None:
        """Send a part, readable for the client at once."""
        compressor = self._compressor
        if compressor is None:
            self.inner.data(chunk)
        elif chunk and not self.finished:
            if not self._pieces and len(chunk) <= SLICE_BYTES:
                self.inner.data(compressor.compress(chunk) + compressor.flush())
            else:
                self._take(memoryview(chunk))

    def file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file; a compressed one has to pass through here."""
        if self._compressor is None:
            self.inner.file(fd, offset, count)
        elif self.finished:
            os.close(fd)
        else:
            self._take((fd, offset, count))

    def end(self, trailers: HeaderList = ()) -> None:
        """End the answer as soon as everything is compressed."""
        if self._compressor is None:
            self.inner.end(trailers)
        elif not self._ended:
            self._ended = True
            self._trailers = trailers
            if not self._pieces:
                self._finish()

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Pass it on; what waits is not wanted any more."""
        if not self._ended:
            self._drop()
            self.inner.fail(status, reason, retry_after=retry_after, close=close)

    def abort(self) -> None:
        """Cut the connection; what waits is not wanted any more."""
        if not self._ended:
            self._drop()
            self.inner.abort()

    # --- deciding ------------------------------------------------------------------------------------------------------

    def _decide(self, status: int, headers: HeaderList, length: int | None) -> tuple[HeaderList, bool]:
        """Return the headers to send and whether the body is compressed."""
        if status in _UNTOUCHED or status < 200:
            return headers, False
        compressible = False
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-type":
                compressible = is_compressible(value)
            elif lowered in (b"content-encoding", b"content-range") or (
                lowered == b"cache-control" and b"no-transform" in value.lower()
            ):
                return headers, False
        if not compressible:
            return headers, False
        headers = with_vary(headers, b"Accept-Encoding")
        if not self._coding or (length is not None and length < MINIMUM_BYTES):
            return headers, False
        edited = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"etag" and value.startswith(b'"'):
                value = b"W/" + value
            if lowered not in (
                b"accept-ranges",
                b"content-length",
                b"content-md5",
                b"digest",
                b"content-digest",
            ):
                edited.append((name, value))
        edited.append((b"Content-Encoding", self._coding.encode()))
        return edited, True

    # --- the body, slice by slice --------------------------------------------------------------------------------------

    def _begin(self, status: int, headers: HeaderList) -> None:
        self._compressor = COMPRESSORS[self._coding]()
        self.inner.on_ready = self._ready
        self.inner.on_gone = self._gone
        self.inner.head(status, headers)

    def _take(self, piece: memoryview | tuple[int, int, int]) -> None:
        self._pieces.append(piece)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._pieces and (self._whole is not None or self.inner.wants_more):
            self._scheduled = True
            self._call_soon(self._pump)

    def _pump(self) -> None:
        """Compress one slice and send it."""
        self._scheduled = False
        compressor = self._compressor
        if compressor is None or not self._pieces or self.inner.finished:
            self._drop()
            return
        try:
            compressed = compressor.compress(self._next_slice())
        except OSError as error:
            log.error("a file cannot be read while it is compressed", error=str(error))
            self._drop()
            self.inner.abort()
            return
        if not self._pieces and not self._ended:
            compressed += compressor.flush()
        if compressed:
            if self._whole is not None:
                self._whole[2].append(compressed)
            else:
                self.inner.data(compressed)
        if self._pieces:
            self._schedule()
        elif self._ended:
            self._finish()
        elif self.inner.wants_more and self._on_ready is not None:
            self._on_ready()

    def _next_slice(self) -> bytes:
        piece = self._pieces[0]
        if isinstance(piece, memoryview):
            if len(piece) > SLICE_BYTES:
                self._pieces[0] = piece[SLICE_BYTES:]
                return bytes(piece[:SLICE_BYTES])
            self._pieces.popleft()
            return bytes(piece)
        fd, offset, count = piece
        content = os.pread(fd, min(count, SLICE_BYTES), offset)
        if not content and count:
            raise OSError("the file became shorter while it was read")
        if len(content) < count:
            self._pieces[0] = (fd, offset + len(content), count - len(content))
        else:
            self._pieces.popleft()
            os.close(fd)
        return content

    def _finish(self) -> None:
        if self._compressor is not None and not self.inner.finished:
            rest = self._compressor.finish()
            whole, self._whole = self._whole, None
            if whole is not None:
                status, headers, parts = whole
                parts.append(rest)
                self.inner.respond(status, headers, b"".join(parts))
                return
            if rest:
                self.inner.data(rest)
            self.inner.end(self._trailers)

    def _drop(self) -> None:
        for piece in self._pieces:
            if not isinstance(piece, memoryview):
                os.close(piece[0])
        self._pieces.clear()
        self._whole = None

    def _ready(self) -> None:
        if self._pieces:
            self._schedule()
        elif self._on_ready is not None and not self._ended:
            self._on_ready()

    def _gone(self) -> None:
        self._drop()
        if self._on_gone is not None and not self._ended:
            self._on_gone()


def make_gzip(config: HttpConfig, services: MiddlewareServices) -> Compression:
    """Return the middleware `gzip`."""
    return Compression(services.call_soon)
