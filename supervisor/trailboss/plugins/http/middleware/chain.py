"""Puts middleware around the workers, in RoadRunner's order: the last of the list sees the request first.

Around all of it stand, whether named or not, a guard (an exception in a handler is an answer 500 and a log line, never more)
and the access log. Middleware of third parties comes by entry point; an exception in a Responder of theirs
ends that one answer and reaches nobody behind them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import metadata
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import (
    GROUP,
    MiddlewareError,
    MiddlewareFactory,
    MiddlewareServices,
    ResponderWrapper,
)
from trailboss.plugins.http.message import Handler, HeaderList, Middleware, Request, Responder
from trailboss.plugins.http.middleware.access_log import make_access_log
from trailboss.plugins.http.middleware.gzip import make_gzip
from trailboss.plugins.http.middleware.headers import make_headers
from trailboss.plugins.http.middleware.http_metrics import make_http_metrics
from trailboss.plugins.http.middleware.otel import make_otel
from trailboss.plugins.http.middleware.proxy_ip import make_proxy_ip_parser
from trailboss.plugins.http.middleware.request_id import make_request_id
from trailboss.plugins.http.middleware.sendfile import make_sendfile
from trailboss.plugins.http.middleware.static import make_static

__all__ = ["BUILT_IN", "build_chain", "find_entry_points", "wrong_names"]

log = logger("http")

#: Middleware that comes with Trailboss, by the name users write.
BUILT_IN: Final[Mapping[str, MiddlewareFactory]] = {
    "gzip": make_gzip,
    "headers": make_headers,
    "http_metrics": make_http_metrics,
    "otel": make_otel,
    "proxy_ip_parser": make_proxy_ip_parser,
    "request_id": make_request_id,
    "sendfile": make_sendfile,
    "static": make_static,
}
#: RoadRunner's names that mean something else here, or nothing yet.
_UNAVAILABLE: Final = {
    "cache": "is not available in this version of Trailboss; remove it and cache in a proxy in front",
    "new_relic": "is not available in this version of Trailboss; remove it",
    "websockets": "is not available in this version of Trailboss; remove it",
}


def find_entry_points() -> tuple[metadata.EntryPoint, ...]:
    """Return the middleware of all installed distributions."""
    return tuple(metadata.entry_points(group=GROUP))


def wrong_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return what `build_chain` would refuse in a list of names, each with what to do about it; nothing is loaded."""
    found: list[tuple[str, str]] = []
    foreign = {entry_point.name for entry_point in find_entry_points()}
    seen: set[str] = set()
    for name in names:
        if name in seen:
            found.append((f"it names {name} twice", "remove one of them"))
        elif name in _UNAVAILABLE and name not in foreign:
            what, _, remedy = _UNAVAILABLE[name].partition("; ")
            found.append((f"{name} {what}", remedy))
        elif name not in BUILT_IN and name not in foreign:
            known = ", ".join(sorted({*BUILT_IN, *foreign}))
            found.append((f"there is no middleware {name}", f"write one of {known}"))
        seen.add(name)
    return found


def build_chain(
    config: HttpConfig,
    services: MiddlewareServices,
    innermost: Handler,
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Handler:
    """Return the handler the front calls; `entry_points` None means all that are installed.

    Raises MiddlewareError, in one sentence, for a name that is unknown or a middleware that cannot be made.
    """
    handler = innermost
    seen: set[str] = set()
    for name in config.middleware:
        if name in seen:
            raise MiddlewareError(f"http.middleware names {name} twice")
        seen.add(name)
        factory = BUILT_IN.get(name)
        if factory is not None:
            handler = factory(config, services)(handler)
            continue
        if entry_points is None:
            entry_points = find_entry_points()
        entry_points = tuple(entry_points)
        handler = _foreign(name, entry_points, config, services)(_shielded(name, handler))
    return make_access_log(config, services, _fail)(handler)


def _foreign(
    name: str, entry_points: tuple[metadata.EntryPoint, ...], config: HttpConfig, services: MiddlewareServices
) -> Middleware:
    """Return the middleware of a third party. Raises MiddlewareError."""
    found = [entry_point for entry_point in entry_points if entry_point.name == name]
    if not found:
        if name in _UNAVAILABLE:
            raise MiddlewareError(f"http.middleware: {name} {_UNAVAILABLE[name]}")
        known = ", ".join(sorted({*BUILT_IN, *(entry_point.name for entry_point in entry_points)}))
        raise MiddlewareError(f"http.middleware: there is no middleware {name}; there are {known}")
    if len(found) > 1:
        places = ", ".join(sorted(entry_point.value for entry_point in found))
        raise MiddlewareError(f"http.middleware: more than one distribution offers {name} ({places})")
    entry_point = found[0]
    try:
        factory: object = entry_point.load()
        if not callable(factory):
            raise TypeError(
                f"is a {type(factory).__name__}; it must be a callable that takes configuration and services"
            )
        middleware: object = factory(config, services)
        if not callable(middleware):
            raise TypeError(
                f"returned a {type(middleware).__name__}; it must return a callable that wraps a handler"
            )
    except MiddlewareError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("third-party middleware cannot be made", middleware=name, exc_info=error)
        raise MiddlewareError(
            f"http.middleware: {name} (entry point {entry_point.value}) cannot be made: {error}"
        ) from error

    def wrap(next_handler: Handler) -> Handler:
        handler: object = middleware(next_handler)
        if not callable(handler):
            raise MiddlewareError(
                f"http.middleware: {name} wrapped a handler into a {type(handler).__name__}"
            )
        return handler

    return wrap


def _fail(request: Request, responder: Responder, error: Exception) -> None:
    """Answer 500 where a handler has raised instead of answering."""
    log.error("a request could not be handled", method=request.method, uri=request.target, exc_info=error)
    if not responder.finished:
        responder.fail(500, "the request could not be handled")


def _shielded(name: str, next_handler: Handler) -> Handler:
    """Keep what a third party's Responder raises away from whoever answers through it."""

    def handle(request: Request, responder: Responder) -> None:
        next_handler(request, _ShieldedResponder(responder, name))

    return handle


class _ShieldedResponder(ResponderWrapper):
    """Ends the answer where `inner` raises, and logs it once."""

    __slots__ = ("_broken", "_name")

    def __init__(self, inner: Responder, name: str) -> None:
        self.inner = inner
        self._name = name
        self._broken = False

    @property
    def finished(self) -> bool:  # type: ignore[override]
        """Whether nothing more is expected."""
        return self._broken or self.inner.finished

    def _try(self, call: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception:
            self._broken = True
            log.exception("a middleware failed while a request was answered", middleware=self._name)
            self._give_up()

    def _give_up(self) -> None:
        for give_up in (partial(self.inner.fail, 500, "a middleware failed"), self.inner.abort):
            try:
                give_up()
            except Exception:
                log.exception("a middleware failed while it was told to give up", middleware=self._name)
            if self.inner.finished:
                return

    def inform(self, status: int, headers: HeaderList) -> None:
        """Pass on an interim answer."""
        self._try(lambda: self.inner.inform(status, headers))

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Pass on the head."""
        self._try(lambda: self.inner.head(status, headers, length=length))

    def data(self, chunk: bytes) -> None:
        """Pass on a part of the body."""
        self._try(lambda: self.inner.data(chunk))

    def file(self, fd: int, offset: int, count: int) -> None:
        """Pass on a part of a file."""
        if self._broken:
            os.close(fd)
        else:
            self._try(lambda: self.inner.file(fd, offset, count))

    def end(self, trailers: HeaderList = ()) -> None:
        """Pass on the end."""
        self._try(lambda: self.inner.end(trailers))

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Pass on a whole answer."""
        self._try(lambda: self.inner.respond(status, headers, body))

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Pass on an answer of the server itself."""
        self._try(lambda: self.inner.fail(status, reason, retry_after=retry_after, close=close))

    def abort(self) -> None:
        """Pass on the cut."""
        self._try(lambda: self.inner.abort())
