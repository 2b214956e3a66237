"""Spans, as every part of Trailboss may use them: a service that costs nothing until an exporter is there.

`services.get(Telemetry)` works from the first moment on. `start` gives the shared no-op span until the otel plugin has
attached a backend, which it does in the background after the server is up, if at all. No call here raises or blocks:
observability never decides whether a job runs.

    with telemetry.start("jobs.run", {"job": name}, parent=headers) as span:
        ...
        span.set("attempt", attempt)

A span that is not a `with` block, because nothing waits for its end, is ended by `end`. `headers` are what travels with
a job or a request so that the other side's spans join the trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol

from trailboss.log import logger

__all__ = ["NO_SPAN", "Attributes", "Span", "Telemetry", "TelemetryBackend"]

log = logger("otel")

Attributes = Mapping[str, "str | bool | int | float"]
_NO_HEADERS: Final[Mapping[str, str]] = {}


class Span:
    """A span; this base class is the no-op."""

    __slots__ = ()

    def set(self, key: str, value: str | bool | float) -> None:
        """Add an attribute."""

    def fail(self, text: str) -> None:
        """Mark what the span stands for as failed."""

    def end(self) -> None:
        """Say that it is over; a second call does nothing."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Trace context for the other side (`traceparent`, …); empty where nothing is traced."""
        return _NO_HEADERS

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        self.end()


class _NoSpan(Span):
    """The no-op with the least work in a `with` statement."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NO_SPAN: Final[Span] = _NoSpan()


class TelemetryBackend(Protocol):
    """What makes real spans; may raise, :class:`Telemetry` contains it."""

    def start(
        self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None, kind: str = ""
    ) -> Span: ...


class Telemetry:
    """The service. One per server, provided before anything starts."""

    __slots__ = ("_backend", "failures")

    def __init__(self) -> None:
        self._backend: TelemetryBackend | None = None
        self.failures = 0  #: calls of the backend, or of its spans, that raised

    @property
    def active(self) -> bool:
        """Whether spans go anywhere; ask before preparing expensive attributes."""
        return self._backend is not None

    def attach(self, backend: TelemetryBackend | None) -> None:
        """Make real spans from now on; None ends that."""
        self._backend = backend

    def start(
        self,
        name: str,
        attributes: Attributes | None = None,
        parent: Mapping[str, str] | None = None,
        kind: str = "",
    ) -> Span:
        """Begin a span. `parent` are headers that may hold the trace context of whoever asked. Never raises.

        `kind` is "server" for a request from outside, "" for anything else.
        """
        backend = self._backend
        if backend is None:
            return NO_SPAN
        try:
            if kind:
                return backend.start(name, attributes, parent, kind)
            return backend.start(name, attributes, parent)
        except Exception as error:
            self._contain(error, name)
            return NO_SPAN

    def headers(self, span: Span) -> Mapping[str, str]:
        """Return ``span.headers``, or none where they cannot be had. Never raises."""
        try:
            return span.headers
        except Exception as error:
            self._contain(error, "")
            return _NO_HEADERS

    def finish(self, span: Span, failure: str = "") -> None:
        """End `span`, as failed if there is a text. Never raises: whatever it stands for goes on after this call."""
        try:
            if failure:
                span.fail(failure)
            span.end()
        except Exception as error:
            self._contain(error, "")

    def _contain(self, error: Exception, name: str) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("spans are not recorded as they should be", span=name, error=str(error))
