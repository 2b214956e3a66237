"""What the front tells at a scrape: its connections, and what it refused. Requests by status are `http_metrics`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from trailboss.metrics import Family, counter, gauge
from trailboss.plugins.http.front import Front

__all__ = ["http_families"]


def http_families(front: Front) -> Iterator[Family]:
    """Yield the figures of one web server."""
    counters = front.counters
    yield gauge("trailboss_http_connections", "Clients that are connected now.", len(front.connections))
    yield gauge(
        "trailboss_http_in_flight", "Requests that have not ended, with a worker or waiting.", front.in_flight
    )
    yield gauge(
        "trailboss_http_body_memory_bytes",
        "Bodies of requests that are kept in memory now.",
        front.spool.memory_bytes,
    )
    yield gauge(
        "trailboss_http_body_files", "Bodies of requests that are kept in files now.", front.spool.files
    )
    yield counter("trailboss_http_connections_total", "Connections that were accepted.", counters.connections)
    yield counter(
        "trailboss_http_connections_refused_total",
        "Connections closed at once, because there were max_connections already.",
        counters.turned_away,
    )
    yield counter(
        "trailboss_http_requests_total", "Requests that were complete and well formed.", counters.requests
    )
    yield counter(
        "trailboss_http_timeouts_total",
        "Connections ended because their client was too slow.",
        counters.timeouts,
    )
    yield counter(
        "trailboss_http_handshakes_failed_total",
        "TLS handshakes that came to nothing.",
        counters.handshakes_failed,
    )
    yield counter(
        "trailboss_http_floods_total",
        "HTTP/2 connections ended because they asked for too much.",
        front.http2.floods,
    )
    by_status: Counter[int] = Counter()
    for (status, _), count in front.refusals.counts.items():
        by_status[status] += count
    yield counter(
        "trailboss_http_refused_total",
        "Requests that the server answered itself, by status; `trailboss why --http` has the last ones.",
        {(("status", str(status)),): count for status, count in sorted(by_status.items())},
    )
