"""The middleware `otel`: a server span per request, the caller's trace continued, the worker's request marked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import MiddlewareServices
from trailboss.plugins.http.message import Middleware, Request, Responder
from trailboss.plugins.http.middleware.otel import make_otel
from trailboss.plugins.otel.exporter import ExporterBackend
from trailboss.testing.check_http_middleware import (
    HTTP_MIDDLEWARE_CHECKS,
    MiddlewareBench,
    check_http_middleware,
    make_request,
)

CONFIG = HttpConfig(address=("127.0.0.1:0",), middleware=("otel",))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


class Traced(MiddlewareBench):
    """The middleware with an exporter that keeps the spans."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        super().__init__(lambda services: make_otel(CONFIG, services))
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.services.telemetry.attach(ExporterBackend(provider))

    def exchanged(self, request: Request, end: Callable[[Responder], None]) -> ReadableSpan:
        """One request and its span."""
        self.begin(request)
        end(self.responder)
        (span,) = self.exporter.get_finished_spans()
        return span


def page(responder: Responder) -> None:
    """Answer."""
    responder.respond(200, [], b"page")


def without_exporter(services: MiddlewareServices) -> Middleware:
    """The middleware where nobody exports."""
    return make_otel(CONFIG, services)


def with_exporter(services: MiddlewareServices) -> Middleware:
    """The middleware where spans are exported."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    services.telemetry.attach(ExporterBackend(provider))
    return make_otel(CONFIG, services)


@pytest.mark.parametrize("make", [without_exporter, with_exporter])
@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[..., None], make: Callable[[MiddlewareServices], Middleware]) -> None:
    """The contract of all middleware, with an exporter and without."""
    check_http_middleware(make, check)


def test_without_an_exporter_nothing_is_done() -> None:
    """The request and the responder go on as they came."""
    bench = MiddlewareBench(without_exporter)
    request = make_request(headers=[(b"traceparent", f"00-{TRACE}-{CALLER}-01".encode())])
    headers = request.headers
    client = bench.begin(request)

    assert bench.responder is client
    assert request.headers is headers


def test_attributes_of_a_span() -> None:
    """Those of OpenTelemetry's conventions for HTTP servers; no query, no route."""
    request = make_request(
        "/orders/7?token=secret", "POST", [(b"User-Agent", b"curl/8")], b"body", remote_addr="192.0.2.1"
    )
    request.host = "[2001:db8::1]:8080"
    span = Traced().exchanged(request, page)

    assert (span.name, span.kind, span.status.status_code) == ("POST", SpanKind.SERVER, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/orders/7",
        "server.address": "[2001:db8::1]",
        "server.port": 8080,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "client.address": "192.0.2.1",
        "network.peer.address": "192.0.2.1",
        "network.peer.port": 40_000,
        "http.request.body.size": 4,
        "user_agent.original": "curl/8",
        "http.response.status_code": 200,
    }


def test_names_are_few() -> None:
    """A method that nobody knows is told in an attribute, not in the name."""
    span = Traced().exchanged(make_request(method="BREW"), page)

    assert span.name == "HTTP"
    assert span.attributes is not None
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "BREW"


def test_the_trace_of_the_caller_goes_on() -> None:
    """The span is a child of the caller's, and the worker gets the span's own context."""
    bench = Traced()
    request = make_request(
        headers=[
            (b"Traceparent", f"00-{TRACE}-{CALLER}-01".encode()),
            (b"tracestate", b"a=1"),
            (b"baggage", b"k=v"),
        ]
    )
    span = bench.exchanged(request, page)

    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    told = f"00-{TRACE}-{span.context.span_id:016x}-01".encode()
    worker = bench.requests[0]
    assert worker.header(b"traceparent") == told
    assert worker.header(b"tracestate") == b"a=1"
    assert worker.header(b"baggage") == b"k=v"
    assert worker.header(b"host") == b"example.org"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"traceparent", b"nonsense")],
        [
            (b"traceparent", f"00-{TRACE}-{CALLER}-01".encode()),
            (b"traceparent", f"00-{TRACE}-{CALLER}-01".encode()),
        ],
    ],
)
def test_without_a_context_a_new_trace_begins(headers: list[tuple[bytes, bytes]]) -> None:
    """None, a broken one, or two: the span is a root."""
    span = Traced().exchanged(make_request(headers=headers), page)

    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_the_callers_word_on_sampling_counts() -> None:
    """A trace that is not recorded stays one: no span, and the worker is told so."""
    bench = Traced()
    bench.begin(make_request(headers=[(b"traceparent", f"00-{TRACE}-{CALLER}-00".encode())]))
    page(bench.responder)
    told = bench.requests[0].header(b"traceparent") or b""

    assert bench.exporter.get_finished_spans() == ()
    assert told.startswith(f"00-{TRACE}-".encode())
    assert told.endswith(b"-00")


def test_the_samplers_word_reaches_the_worker() -> None:
    """What this server does not record, the worker is not asked to."""
    bench = Traced(ALWAYS_OFF)
    bench.begin(make_request())
    page(bench.responder)

    assert bench.exporter.get_finished_spans() == ()
    flags = (bench.requests[0].header(b"traceparent") or b"").rpartition(b"-")[2]
    assert int(flags, 16) & 1 == 0


@pytest.mark.parametrize(
    ("end", "status", "code", "error"),
    [
        (lambda responder: responder.respond(404, [], b""), 404, StatusCode.UNSET, None),
        (lambda responder: responder.respond(500, [], b""), 500, StatusCode.ERROR, "500"),
        (lambda responder: responder.fail(503, "queue full"), 503, StatusCode.ERROR, "503"),
        (
            lambda responder: (responder.head(200, []), responder.data(b"x"), responder.end()),
            200,
            StatusCode.UNSET,
            None,
        ),
        (lambda responder: (responder.head(200, []), responder.abort()), 200, StatusCode.ERROR, "cut"),
    ],
)
def test_how_an_answer_ends(
    end: Callable[[Responder], None], status: int, code: StatusCode, error: str | None
) -> None:
    """5xx and what is cut short are errors of the server; 4xx are not."""
    span = Traced().exchanged(make_request(), end)

    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert span.status.status_code is code
    assert span.attributes.get("error.type") == error


def test_a_refusal_says_why() -> None:
    """The server's own reason is the description of the error."""
    span = Traced().exchanged(make_request(), lambda responder: responder.fail(503, "queue full"))

    assert span.status.description == "queue full"


def test_a_client_that_goes() -> None:
    """Its span ends at once, is no error of the server, and what comes later changes nothing."""
    bench = Traced()
    client = bench.begin(make_request())
    client.leave()
    (span,) = bench.exporter.get_finished_spans()
    page(bench.responder)

    assert span.attributes is not None
    assert span.attributes["error.type"] == "client_gone"
    assert span.status.status_code is StatusCode.UNSET
    assert len(bench.exporter.get_finished_spans()) == 1
