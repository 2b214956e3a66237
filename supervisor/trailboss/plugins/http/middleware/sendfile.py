"""A worker answers with the name of a file, and the server sends the file.

`X-Sendfile: /path` names it by its path in the file system (or relative to the root), `X-Accel-Redirect: /url` by a URL path
below the root, as nginx has it. Either way the file has to lie in `http.sendfile.root`, links resolved; the header itself
never reaches the client. The worker's status and other headers stay. Answers without these headers stream through.
"""

from __future__ import annotations

import os
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import MiddlewareError, MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.fields import find_field, without_fields
from trailboss.plugins.http.middleware.files import Folder, OpenFile, content_type, decode_path, send_file
from trailboss.plugins.http.middleware.ranges import parse_date

__all__ = ["SendFile", "make_sendfile"]

log = logger("http")

_NAMES: Final = (b"x-sendfile", b"x-accel-redirect")


class SendFile:
    """Sends the files that workers name, from below `root`."""

    def __init__(self, root: str) -> None:
        self._folder = Folder(root)

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that looks at every answer of `next_handler`."""
        folder = self._folder

        def handle(request: Request, responder: Responder) -> None:
            next_handler(request, _SendFileResponder(responder, request, folder))

        return handle


class _SendFileResponder(ResponderWrapper):
    """Replaces an answer that names a file; the exchange may go on streaming, nobody hears it."""

    __slots__ = ("_ended", "_folder", "_replaced", "_request")

    def __init__(self, inner: Responder, request: Request, folder: Folder) -> None:
        self.inner = inner
        self._request = request
        self._folder = folder
        self._replaced = False
        self._ended = False

    @property
    def finished(self) -> bool:  # type: ignore[override]
        """Whether the handler behind has said everything; the file may have been sent before that."""
        return self._ended or self.inner.finished

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send the file that is named, else the answer."""
        if self._replaced:
            self.end()
        elif self._named(headers):
            self._ended = self._replaced = True
            self._send(status, headers, self.inner)
        else:
            self.inner.respond(status, headers, body)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Send the file that is named, else the head."""
        if self._replaced:
            return
        if self._named(headers):
            self._replaced = True
            # The connection may turn to its next request at the end of the answer; so it hears of the end when the
            # handler behind has ended as well.
            self._send(status, headers, _HeldEnd(self.inner, self))
        else:
            self.inner.head(status, headers, length=length)

    def data(self, chunk: bytes) -> None:
        """Drop the body of a replaced answer."""
        if not self._replaced:
            self.inner.data(chunk)

    def file(self, fd: int, offset: int, count: int) -> None:
        """Drop the body of a replaced answer."""
        if self._replaced:
            os.close(fd)
        else:
            self.inner.file(fd, offset, count)

    def end(self, trailers: HeaderList = ()) -> None:
        """End; the trailers of a replaced answer belong to a body that was not sent."""
        if self._replaced:
            if not self._ended:
                self._ended = True
                self.inner.end()
        else:
            self.inner.end(trailers)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """A handler that fails after its file was sent concerns nobody but the log."""
        if self._replaced:
            self.end()
        else:
            self.inner.fail(status, reason, retry_after=retry_after, close=close)

    def abort(self) -> None:
        """The file is complete whatever became of the body it replaced."""
        if self._replaced:
            self.end()
        else:
            self.inner.abort()

    @staticmethod
    def _named(headers: HeaderList) -> bool:
        for name, _ in headers:  # noqa: SIM110  a generator costs every answer more than it looks
            # A cheap look first: both names begin with "x-".
            if name[:2] in (b"X-", b"x-") and name.lower() in _NAMES:
                return True
        return False

    def _send(self, status: int, headers: HeaderList, to: Responder) -> None:
        request = self._request
        try:
            named, opened = self._open(headers)
        except OSError as error:
            log.error("a file named by a worker cannot be opened", uri=request.target, error=str(error))
            self._ended = True
            self.inner.fail(503, "the file cannot be opened", retry_after=1)
            return
        if opened is None:
            log.warning(
                "a worker named a file that is not there or not in http.sendfile.root",
                uri=request.target,
                file=named.decode("utf-8", "backslashreplace"),
            )
            self._ended = True
            self.inner.fail(404, "the file is not there")
            return
        kept = without_fields(headers, _NAMES)
        if find_field(kept, b"content-type") is None:
            extension = os.path.splitext(named)[1].lower().decode("latin-1")
            kept.append((b"Content-Type", content_type(extension)))
        etag = find_field(kept, b"etag") or b""
        modified = parse_date(find_field(kept, b"last-modified"))
        dropped = [b"etag", b"accept-ranges", b"content-range"]
        if modified is None:
            dropped.append(b"last-modified")
        send_file(request, to, opened, without_fields(kept, dropped), etag, modified, status)

    def _open(self, headers: HeaderList) -> tuple[bytes, OpenFile | None]:
        named = find_field(headers, b"x-sendfile")
        if named is not None:
            if named.startswith(b"/"):
                return named, self._folder.open_absolute(named)
            return named, self._folder.open(named) if named else None
        named = find_field(headers, b"x-accel-redirect") or b""
        relative = decode_path(named.partition(b"?")[0].decode("latin-1"))
        return named, self._folder.open(relative) if isinstance(relative, bytes) else None


class _HeldEnd(ResponderWrapper):
    """Sends a file but leaves the end to the one who streams behind it."""

    __slots__ = ("_owner",)

    def __init__(self, inner: Responder, owner: _SendFileResponder) -> None:
        self.inner = inner
        self._owner = owner

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send head and body without the end."""
        self.inner.head(status, headers, length=None if status == 304 else len(body))
        if body:
            self.inner.data(body)

    def end(self, trailers: HeaderList = ()) -> None:
        """Leave it to the owner."""


def make_sendfile(config: HttpConfig, services: MiddlewareServices) -> SendFile:
    """Return the middleware `sendfile`. Raises MiddlewareError."""
    root = config.sendfile.root or os.getcwd()
    if not os.path.isdir(root):
        raise MiddlewareError(f"http.sendfile.root: {root} is not a folder")
    return SendFile(root)
