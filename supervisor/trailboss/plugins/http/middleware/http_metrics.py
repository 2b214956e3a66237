"""RoadRunner's `http_metrics`: requests by status, their duration, how many are under way, and how many found no worker.

One look-up and two additions for each answer; Prometheus's text is made of them at a scrape and no earlier. What is
counted are the requests that come by: where `static` stands behind this in the list, and so sees them first, the files it
serves are not. A client that goes before its answer counts as status 499, as in the access log.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.figures import Histogram
from trailboss.metrics import Family, Labels, counter, gauge, histogram
from trailboss.plugins.http.contract import MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder

__all__ = ["HttpMetrics", "make_http_metrics"]

CLIENT_GONE: Final = 499
#: Reasons of the server's own answers that RoadRunner calls "no free workers".
_NO_FREE_WORKERS: Final = frozenset({"queue full", "queue timeout"})


class HttpMetrics:
    """Counts every answer, and tells at a scrape."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.began = clock()
        self.by_status: dict[int, Histogram] = {}
        #: Requests that came, and those that have ended.
        self.entered = 0
        self.ended = 0
        self.no_free_workers = 0

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that counts the answers of `next_handler`."""

        def handle(request: Request, responder: Responder) -> None:
            self.entered += 1
            next_handler(request, _CountedResponder(self, request, responder))

        return handle

    def figures_of(self, status: int) -> Histogram:
        """Return what is counted for a status, from its first answer on."""
        figures = self.by_status.get(status)
        if figures is None:
            figures = self.by_status[status] = Histogram()
        return figures

    def families(self) -> Iterator[Family]:
        """Yield what is scraped."""
        by_status: dict[Labels, Histogram] = {
            (("status", str(status)),): figures.copy() for status, figures in sorted(self.by_status.items())
        }
        yield counter(
            "rr_http_request_total",
            "Total number of handled http requests after server restart.",
            {labels: figures.count for labels, figures in by_status.items()},
        )
        yield histogram("rr_http_request_duration_seconds", "HTTP request duration.", by_status)
        yield gauge("rr_http_requests_queue", "Total number of queued requests.", self.entered - self.ended)
        yield counter(
            "rr_http_no_free_workers_total",
            "Total number of NoFreeWorkers occurrences.",
            self.no_free_workers,
        )
        yield counter("rr_http_uptime_seconds", "Uptime in seconds", max(0.0, self.clock() - self.began))


class _CountedResponder(ResponderWrapper):
    """Counts one answer, once."""

    __slots__ = ("_ended", "_metrics", "_request", "_status", "on_gone")

    #: Overrides the base's property: one store instead of two calls.
    on_gone: Callable[[], None] | None

    def __init__(self, metrics: HttpMetrics, request: Request, inner: Responder) -> None:
        self.inner = inner
        self.on_gone = None
        self._metrics = metrics
        self._request = request
        self._status = 0
        self._ended = False
        inner.on_gone = self._gone

    def _gone(self) -> None:
        self._count(self._status or CLIENT_GONE)
        if self.on_gone is not None:
            self.on_gone()

    def _count(self, status: int) -> None:
        if self._ended:
            return
        self._ended = True
        metrics = self._metrics
        metrics.ended += 1
        figures = metrics.by_status.get(status) or metrics.figures_of(status)
        seconds = metrics.clock() - self._request.started
        figures.counts[bisect_left(figures.bounds, seconds)] += 1
        figures.total += seconds

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Remember the status."""
        self._status = self._status or status
        self.inner.head(status, headers, length=length)

    def end(self, trailers: HeaderList = ()) -> None:
        """Send the end, then count."""
        self.inner.end(trailers)
        self._count(self._status)

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send the answer, then count."""
        self.inner.respond(status, headers, body)
        self._count(status)

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Send the answer of the server itself, then count; a broken answer keeps the status it began with."""
        self.inner.fail(status, reason, retry_after=retry_after, close=close)
        if reason in _NO_FREE_WORKERS and not self._ended:
            self._metrics.no_free_workers += 1
        self._count(self._status or status)

    def abort(self) -> None:
        """Cut the connection, then count what had begun."""
        self.inner.abort()
        self._count(self._status or CLIENT_GONE)


def make_http_metrics(config: HttpConfig, services: MiddlewareServices) -> HttpMetrics:
    """Return the middleware `http_metrics`, known to whoever scrapes."""
    metrics = HttpMetrics(services.clock)
    services.sources.add(metrics.families)
    return metrics
