"""An example of third-party middleware: tells browsers how long an answer took, and the log which ones were slow.

It shows what a middleware needs: a section of its own, the reactor's clock, and a Responder around the connection's that
changes the head of the answer (`edit`) and sees its end. Nothing here blocks, and nothing is kept after the answer.
"""

# ruff: noqa: RUF009  key() is the field declaration itself, as dataclasses.field is
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trailboss.config.schema import Duration, HttpConfig, key
from trailboss.log import logger
from trailboss.plugins.http.contract import HeaderEditor, MiddlewareError, MiddlewareServices
from trailboss.plugins.http.message import Handler, HeaderList, Middleware, Request, Responder

log = logger("server_timing")


@dataclass(frozen=True, slots=True)
class ServerTimingConfig:
    """`server_timing`: what the header says, and what counts as slow."""

    metric: str = key("app", "Name of the metric in the Server-Timing header.")
    slow: Duration = key(1.0, "Answers that took longer are logged.")


class ServerTiming:
    """Adds `Server-Timing` to every answer."""

    def __init__(self, config: ServerTimingConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that measures `next_handler`."""

        def handle(request: Request, responder: Responder) -> None:
            next_handler(request, _TimedResponder(responder, request, self._config, self._clock))

        return handle


class _TimedResponder(HeaderEditor):
    """One answer; `edit` is called for `head` and `respond` alike."""

    __slots__ = ("_clock", "_config", "_request")

    def __init__(
        self, inner: Responder, request: Request, config: ServerTimingConfig, clock: Callable[[], float]
    ) -> None:
        super().__init__(inner)
        self._request = request
        self._config = config
        self._clock = clock

    def edit(self, status: int, headers: HeaderList) -> HeaderList:
        """Return the headers with the time until the head."""
        milliseconds = self._elapsed_seconds() * 1e3
        value = f"{self._config.metric};dur={milliseconds:.1f}".encode()
        return [*headers, (b"Server-Timing", value)]

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send the answer, then judge it."""
        super().respond(status, headers, body)
        self._log_if_slow()

    def end(self, trailers: HeaderList = ()) -> None:
        """End the answer, then judge it."""
        super().end(trailers)
        self._log_if_slow()

    def _elapsed_seconds(self) -> float:
        return self._clock() - self._request.started

    def _log_if_slow(self) -> None:
        seconds = self._elapsed_seconds()
        if seconds > self._config.slow:
            log.warning(
                "slow answer",
                method=self._request.method,
                uri=self._request.target,
                seconds=round(seconds, 3),
            )


def make(config: HttpConfig, services: MiddlewareServices) -> Middleware:
    """Return the middleware; its section may be left out."""
    section = services.section("server_timing", ServerTimingConfig) or ServerTimingConfig()
    if not section.metric.replace("_", "").replace("-", "").isalnum() or not section.metric.isascii():
        raise MiddlewareError(
            f"server_timing.metric: {section.metric!r} is no metric name; use letters, digits, - and _"
        )
    return ServerTiming(section, services.clock)
