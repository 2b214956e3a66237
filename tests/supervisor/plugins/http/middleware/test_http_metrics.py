"""The middleware `http_metrics`: every answer is counted once, under its status, whatever way it ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trailboss.config.schema import HttpConfig
from trailboss.metrics import MetricSources
from trailboss.plugins.http.contract import MiddlewareServices
from trailboss.plugins.http.message import Middleware, Responder
from trailboss.plugins.http.middleware.http_metrics import make_http_metrics
from trailboss.testing.check_http_middleware import (
    HTTP_MIDDLEWARE_CHECKS,
    MiddlewareBench,
    check_http_middleware,
    make_request,
)
from trailboss.testing.fake_responder import FakeResponder

CONFIG = HttpConfig(address=("127.0.0.1:0",), middleware=("http_metrics",))


def make(services: MiddlewareServices) -> Middleware:
    """The middleware as the chain makes it."""
    return make_http_metrics(CONFIG, services)


def scraped(sources: MetricSources) -> dict[str, float]:
    """What is scraped, without the buckets."""
    return {
        family.name + sample.suffix + "".join(f",{value}" for _, value in sample.labels): sample.value
        for family in sources.families()
        for sample in family.samples
        if sample.suffix != "_bucket"
    }


@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[..., None]) -> None:
    """The contract of all middleware."""
    check_http_middleware(make, check)


def test_names_and_types_before_the_first_request() -> None:
    """RoadRunner's five families are there, under its names and of its types."""
    bench = MiddlewareBench(make)
    kinds = {family.name: family.kind for family in bench.services.sources.families()}

    assert kinds == {
        "rr_http_request_total": "counter",
        "rr_http_request_duration_seconds": "histogram",
        "rr_http_requests_queue": "gauge",
        "rr_http_no_free_workers_total": "counter",
        "rr_http_uptime_seconds": "counter",
    }


def test_answers_of_every_kind() -> None:
    """Whole answers, streams, failures, cuts and departures: each once, with its time."""
    bench = MiddlewareBench(make)

    def answered(end: Callable[[Responder], None], *, gone: bool = False) -> FakeResponder:
        client = bench.begin(make_request(started=bench.now - 0.2))
        if gone:
            client.leave()
        end(bench.responder)
        return client

    def stream(responder: Responder) -> None:
        responder.head(201, [])
        responder.data(b"x")
        responder.end()

    def broken(responder: Responder) -> None:
        responder.head(202, [])
        responder.abort()

    answered(lambda responder: responder.respond(200, [], b"page"))
    answered(lambda responder: responder.respond(200, [], b"page"))
    answered(stream)
    answered(broken)
    answered(lambda responder: responder.fail(503, "queue full"))
    answered(lambda responder: responder.fail(503, "queue timeout"))
    answered(lambda responder: responder.fail(504, "exec timeout"))
    answered(lambda responder: responder.abort())
    answered(lambda responder: None, gone=True)
    bench.begin(make_request())

    found = scraped(bench.services.sources)
    counts = {name.rpartition(",")[2]: value for name, value in found.items() if "request_total" in name}
    assert counts == {"200": 2, "201": 1, "202": 1, "499": 2, "503": 2, "504": 1}
    assert found["rr_http_request_duration_seconds_count,200"] == 2
    assert found["rr_http_request_duration_seconds_sum,200"] == pytest.approx(0.4)
    assert found["rr_http_requests_queue"] == 1
    assert found["rr_http_no_free_workers_total"] == 2


def test_an_answer_is_not_counted_twice() -> None:
    """Calls after the end change nothing, as they do for the client."""
    bench = MiddlewareBench(make)
    bench.begin(make_request())
    for _ in range(2):
        bench.responder.respond(200, [], b"")
        bench.responder.fail(503, "queue full")
        bench.responder.abort()

    found = scraped(bench.services.sources)
    assert found["rr_http_request_total,200"] == 1
    assert "rr_http_request_total,503" not in found
    assert (found["rr_http_requests_queue"], found["rr_http_no_free_workers_total"]) == (0, 0)


def test_the_uptime_grows() -> None:
    """It is the time since the server was started, in seconds."""
    bench = MiddlewareBench(make)
    bench.now += 12.5

    assert scraped(bench.services.sources)["rr_http_uptime_seconds"] == 12.5
