"""THE MIDDLEWARE CONTRACT: what stands between the front and the workers, and what it may do.

A middleware wraps a Handler into another one. It may answer a request itself, change the request before it passes it on,
or pass on a Responder of its own and change the answer on its way back. Everything runs on the reactor, between two
events of the network: nothing may block, and what takes more than about a millisecond is cut into pieces and continued
by `services.call_soon`. In exchange a middleware promises:

* every request is answered exactly once: by it, or by the handler it wraps, never by both and never by nobody;
* what it has not changed comes through as it was: status, headers, body, trailers, interim answers;
* back-pressure comes through: `wants_more`, `on_ready` and `on_gone` of its Responder tell the truth;
* it keeps nothing about a request once that is answered, and closes each descriptor it opened or was given.

Third parties name a :class:`MiddlewareFactory` in the entry point group ``trailboss.http_middleware``; the entry point's
name is what users write in `http.middleware`. :mod:`trailboss.testing.check_http_middleware` holds them to all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.metrics import MetricSources
from trailboss.plugins.http.connection import failure
from trailboss.plugins.http.message import HeaderList, Middleware, Responder
from trailboss.telemetry import Telemetry

__all__ = [
    "GROUP",
    "HeaderEditor",
    "LineSink",
    "LogSink",
    "MiddlewareError",
    "MiddlewareFactory",
    "MiddlewareServices",
    "ResponderWrapper",
]

#: The entry point group.
GROUP: Final = "trailboss.http_middleware"

T = TypeVar("T")

log = logger("http")


class MiddlewareError(Exception):
    """A middleware cannot be set up; the text is one sentence for the one who wrote the configuration."""


class Sections(Protocol):
    """Looks up a section of the configuration that a third party has declared."""

    def __call__(self, name: str, section: type[T], /) -> T | None:
        """Return the section `name`, or None where the configuration has none."""


class LogSink(Protocol):
    """Where access log records go."""

    def __call__(self, message: str, /, **fields: object) -> object:
        """Write one record at level info on the channel `http`."""


class LineSink(Protocol):
    """Where access log records go that are JSON already."""

    def __call__(self, records: Sequence[tuple[str, str]], /) -> object:
        """Write records at level info on the channel `http`: message, and fields as an object of JSON in ASCII."""


def _no_sections(name: str, section: type[T], /) -> T | None:
    return None


def _always() -> bool:
    return True


def _log_access(message: str, /, **fields: object) -> None:
    log.info(message, **fields)


@dataclass(frozen=True, slots=True)
class MiddlewareServices:
    """What the server lends a middleware."""

    #: The reactor's time in seconds; the same clock as `Request.started`.
    clock: Callable[[], float]
    #: Runs a function on the reactor after what is at hand; the way to go on with long work.
    call_soon: Callable[[Callable[[], None]], None]
    #: Whether records of level info on the channel `http` go anywhere.
    logs_info: Callable[[], bool] = _always
    #: Where access log records go.
    access_log: LogSink = _log_access
    #: Sections that third parties have declared in the group ``trailboss.plugin_sections``.
    section: Sections = _no_sections
    #: Runs a function on the reactor about so many seconds later, at the stop of the web server at the latest; None where
    #: there is nothing of the kind.
    call_later: Callable[[float, Callable[[], None]], None] | None = None
    #: The quick way for access log records, many at a time; None: they go to `access_log` one by one.
    access_lines: LineSink | None = None
    #: Where a middleware says what is to be scraped from it.
    sources: MetricSources = field(default_factory=MetricSources)
    #: Spans; they go nowhere unless somebody exports them.
    telemetry: Telemetry = field(default_factory=Telemetry)


class MiddlewareFactory(Protocol):
    """Makes a middleware, once, when the server starts."""

    def __call__(self, config: HttpConfig, services: MiddlewareServices, /) -> Middleware:
        """Return the middleware. Raises MiddlewareError where the configuration does not allow for it."""


if TYPE_CHECKING:
    _Base = Responder
else:
    _Base = object  # a Protocol as base would give every instance a dictionary


class ResponderWrapper(_Base):
    """Passes everything on to `inner`; a middleware overrides what it wants to see or change.

    An answer comes either as one `respond`, or as `head`, any number of `data` and `file`, and `end`, or it ends early in
    `fail` or `abort`; whoever changes answers has to override both ways.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: Responder) -> None:
        self.inner = inner

    @property
    def wants_more(self) -> bool:  # type: ignore[override]  # only the connection sets it
        """Whether more may be sent now."""
        return self.inner.wants_more

    @property
    def started(self) -> bool:  # type: ignore[override]
        """Whether the head is out."""
        return self.inner.started

    @property
    def finished(self) -> bool:  # type: ignore[override]
        """Whether nothing more is expected."""
        return self.inner.finished

    @property
    def on_ready(self) -> Callable[[], None] | None:
        """Called when `wants_more` is True again."""
        return self.inner.on_ready

    @on_ready.setter
    def on_ready(self, callback: Callable[[], None] | None) -> None:
        self.inner.on_ready = callback

    @property
    def on_gone(self) -> Callable[[], None] | None:
        """Called when the client has gone before the end."""
        return self.inner.on_gone

    @on_gone.setter
    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self.inner.on_gone = callback

    def inform(self, status: int, headers: HeaderList) -> None:
        """Pass on an interim answer."""
        self.inner.inform(status, headers)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Pass on the head."""
        self.inner.head(status, headers, length=length)

    def data(self, chunk: bytes) -> None:
        """Pass on a part of the body."""
        self.inner.data(chunk)

    def file(self, fd: int, offset: int, count: int) -> None:
        """Pass on a part of a file."""
        self.inner.file(fd, offset, count)

    def end(self, trailers: HeaderList = ()) -> None:
        """Pass on the end."""
        self.inner.end(trailers)

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Pass on a whole answer."""
        self.inner.respond(status, headers, body)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Pass on an answer of the server itself."""
        self.inner.fail(status, reason, retry_after=retry_after, close=close)

    def abort(self) -> None:
        """Pass on the cut."""
        self.inner.abort()


class HeaderEditor(ResponderWrapper):
    """A wrapper that changes the headers of the final answer and nothing else; also where the server itself answers."""

    __slots__ = ()

    def edit(self, status: int, headers: HeaderList) -> HeaderList:
        """Return the headers to send instead; `headers` itself must not be changed."""
        raise NotImplementedError

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Pass on the head with its headers edited."""
        self.inner.head(status, self.edit(status, headers), length=length)

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Pass on a whole answer with its headers edited."""
        self.inner.respond(status, self.edit(status, headers), body)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Pass on an answer of the server itself with its headers edited, unless it ends the connection."""
        if close or self.inner.started:
            self.inner.fail(status, reason, retry_after=retry_after, close=close)
        else:
            headers, body = failure(reason, retry_after)
            self.respond(status, headers, body)
