"""RoadRunner's `otel`: a server span for each request, and its trace context for the worker.

The span is called by the method alone: which route a path belongs to is known to the application, and paths as names
would be without number (OpenTelemetry's conventions say the same). Its attributes are those of the HTTP conventions;
query strings are left out, they hold secrets. A caller's `traceparent` is continued, and the worker's request has the
one of this span, so that the spans of the application hang below it. Whether a trace is recorded is decided by the
sampler, the caller's word first; what is not recorded is passed on as such.

While nothing is exported a request passes as if this file did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.fields import without_fields
from trailboss.telemetry import Span, Telemetry

__all__ = ["make_otel"]

log = logger("http")

#: Methods that may stand in names; any other is `_OTHER` in an attribute, and HTTP in a name.
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_CONTEXT: Final = frozenset({b"traceparent", b"tracestate"})
_TEXT_LENGTH_MAX: Final = 1024


class _Traces:
    """Starts a span for every request while spans go anywhere."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler with a span around `next_handler`."""
        telemetry = self._telemetry

        def handle(request: Request, responder: Responder) -> None:
            if not telemetry.active:
                next_handler(request, responder)
                return
            span = telemetry.start(*describe(request), parent=context_of(request), kind="server")
            told = telemetry.headers(span)
            if told:
                request.headers = [
                    *without_fields(request.headers, _CONTEXT),
                    *((name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()),
                ]
            next_handler(request, _TracedResponder(responder, telemetry, span))

        return handle


class _TracedResponder(ResponderWrapper):
    """Ends the span with the answer, once."""

    __slots__ = ("_ended", "_on_gone", "_span", "_status", "_telemetry")

    def __init__(self, inner: Responder, telemetry: Telemetry, span: Span) -> None:
        self.inner = inner
        self._telemetry = telemetry
        self._span = span
        self._status = 0
        self._ended = False
        self._on_gone: Callable[[], None] | None = None
        inner.on_gone = self._gone

    @property
    def on_gone(self) -> Callable[[], None] | None:
        """Called when the client has gone before the end."""
        return self._on_gone

    @on_gone.setter
    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self._on_gone = callback

    def _gone(self) -> None:
        self._end(self._status, "the client has gone before the end of its answer", "client_gone")
        if self._on_gone is not None:
            self._on_gone()

    def _end(self, status: int, failure: str = "", error: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        if status:
            self._span.set("http.response.status_code", status)
        if status >= 500:
            error = error or str(status)
            failure = failure or f"status {status}"
        if error:
            self._span.set("error.type", error)
        # A client that goes is no error of this server; the attribute says what happened.
        self._telemetry.finish(self._span, "" if error == "client_gone" else failure)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Remember the status."""
        self._status = self._status or status
        self.inner.head(status, headers, length=length)

    def end(self, trailers: HeaderList = ()) -> None:
        """Send the end, then end the span."""
        self.inner.end(trailers)
        self._end(self._status)

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send the answer, then end the span."""
        self.inner.respond(status, headers, body)
        self._end(status)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Send the answer of the server itself, then end the span with its reason."""
        self.inner.fail(status, reason, retry_after=retry_after, close=close)
        self._end(self._status or status, reason, "cut" if self._status else "")

    def abort(self) -> None:
        """Cut the connection, then end the span."""
        self.inner.abort()
        self._end(self._status, "the answer was cut short", "cut")


def describe(request: Request) -> tuple[str, dict[str, str | bool | int | float]]:
    """Return the name of a request's span and its attributes."""
    method = request.method
    known = method in _METHODS
    host, _, port = request.host.rpartition(":")
    if not port.isdigit():
        host, port = request.host, ""
    attributes: dict[str, str | bool | int | float] = {
        "http.request.method": method if known else "_OTHER",
        "url.scheme": request.scheme,
        "url.path": request.path[:_TEXT_LENGTH_MAX],
        "server.address": host[:_TEXT_LENGTH_MAX],
        "network.protocol.name": "http",
        "network.protocol.version": request.version.removesuffix(".0") if request.version != "1.0" else "1.0",
        "client.address": request.remote_addr,
    }
    if not known:
        attributes["http.request.method_original"] = method[:_TEXT_LENGTH_MAX]
    if port:
        attributes["server.port"] = int(port[:6])
    if request.remote_port:
        attributes["network.peer.address"] = request.remote_addr
        attributes["network.peer.port"] = request.remote_port
    if request.body.size:
        attributes["http.request.body.size"] = request.body.size
    agent = request.header(b"user-agent")
    if agent:
        attributes["user_agent.original"] = agent[:_TEXT_LENGTH_MAX].decode("utf-8", "replace")
    return method if known else "HTTP", attributes


def context_of(request: Request) -> Mapping[str, str]:
    """Return the caller's trace context; two of them are none."""
    parents = [value for name, value in request.headers if name.lower() == b"traceparent"]
    if len(parents) != 1:
        return {}
    context = {"traceparent": parents[0].decode("latin-1")}
    state = request.header(b"tracestate")
    if state is not None:
        context["tracestate"] = state.decode("latin-1")
    return context


def make_otel(config: HttpConfig, services: MiddlewareServices) -> _Traces:
    """Return the middleware `otel`."""
    return _Traces(services.telemetry)
