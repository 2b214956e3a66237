"""The exporter against a collector of our own, a dead one, and one that never answers."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trailboss.config.schema import OtelConfig, OtelResource
from trailboss.container.contract import Services
from trailboss.plugins.otel import OtelPlugin
from trailboss.plugins.otel.exporter import RecordedSpan, collector_url, resource_attributes
from trailboss.telemetry import NO_SPAN, Telemetry, TelemetryBackend


class Collector:
    """An OTLP/HTTP collector: keeps what it was sent."""

    def __init__(
        self, server: ThreadingHTTPServer, requests: list[tuple[str, dict[str, str], bytes]]
    ) -> None:
        self.endpoint = f"127.0.0.1:{server.server_address[1]}"
        self.requests = requests

    def spans(self) -> dict[str, object]:
        """Return every span by name."""
        found: dict[str, object] = {}
        for _, headers, body in self.requests:
            data = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            message = ExportTraceServiceRequest.FromString(data)
            for resource in message.resource_spans:
                found["resource"] = {
                    item.key: item.value.string_value for item in resource.resource.attributes
                }
                for scope in resource.scope_spans:
                    found.update({span.name: span for span in scope.spans})
        return found


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector in a thread."""
    requests: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Collector(server, requests)
        finally:
            server.shutdown()
            thread.join(30)


@contextmanager
def silent_endpoint(listening: bool) -> Iterator[str]:
    """An address that refuses connections, or one that takes them and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listening:
            listener.listen(8)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class WatchedTelemetry(Telemetry):
    """Tells when a backend is attached."""

    def __init__(self) -> None:
        super().__init__()
        self.attached = trio.Event()

    def attach(self, backend: TelemetryBackend | None) -> None:
        super().attach(backend)
        self.attached.set()


async def test_spans_reach_the_collector_with_their_parent() -> None:
    """A job's span is a child of the trace in its headers; attributes, failure and resource arrive."""
    telemetry, services, stopping = WatchedTelemetry(), Services(), trio.Event()
    services.provide(Telemetry, telemetry)
    trace = "0af7651916cd43dd8448eb211c80319c"
    with collector() as found:
        config = OtelConfig(
            endpoint=found.endpoint,
            insecure=True,
            compress=True,
            custom_url="/custom/traces",
            headers={"Authorization": "secret"},
            resource=OtelResource(service_name="shop"),
        )
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(OtelPlugin(config).run, services, stopping)
                early = telemetry.start("early")
                await telemetry.attached.wait()
                parent = {"Traceparent": f"00-{trace}-b7ad6b7169203331-01"}
                with telemetry.start("jobs.run", {"pipeline": "emails"}, parent) as span:
                    span.set("attempt", 2)
                    headers = span.headers
                with pytest.raises(ValueError), telemetry.start("rpc.call"):
                    raise ValueError("bad argument")
                stopping.set()
        spans = found.spans()
    assert early is NO_SPAN
    assert headers["traceparent"].startswith(f"00-{trace}-")
    job, call = spans["jobs.run"], spans["rpc.call"]
    assert job.trace_id.hex() == trace  # type: ignore[attr-defined]
    assert job.parent_span_id.hex() == "b7ad6b7169203331"  # type: ignore[attr-defined]
    assert call.status.message == "ValueError: bad argument"  # type: ignore[attr-defined]
    assert spans["resource"]["service.name"] == "shop"  # type: ignore[index]
    path, sent, _ = found.requests[0]
    assert path == "/custom/traces"
    assert sent["authorization"] == "secret"


@pytest.mark.parametrize("listening", [False, True])
async def test_a_collector_that_does_not_answer_costs_nothing_but_spans(listening: bool) -> None:
    """With a dead or silent collector spans are quick, and the stop is bounded."""
    telemetry, services, stopping = WatchedTelemetry(), Services(), trio.Event()
    services.provide(Telemetry, telemetry)
    with silent_endpoint(listening) as endpoint:
        plugin = OtelPlugin(OtelConfig(endpoint=endpoint, insecure=True))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(plugin.run, services, stopping)
                await telemetry.attached.wait()
                for _ in range(1_000):
                    with telemetry.start("rpc.call") as span:
                        span.set("ok", True)
                assert plugin.health().ok
                stopping.set()
                began = time.monotonic()
        assert time.monotonic() - began < 20
    assert not telemetry.active


async def test_an_exporter_that_cannot_be_built_is_no_error() -> None:
    """The plugin stays healthy, says what is wrong, and the no-op stays in place."""

    tried = threading.Event()

    def build(config: OtelConfig) -> object:
        tried.set()
        raise RuntimeError("no such protocol")

    telemetry, services, stopping = WatchedTelemetry(), Services(), trio.Event()
    services.provide(Telemetry, telemetry)
    plugin = OtelPlugin(OtelConfig(), build)  # type: ignore[arg-type]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, services, stopping)
            assert await trio.to_thread.run_sync(tried.wait, 20)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert "no such protocol" in str(plugin.state_detail()["exporter"])
            assert plugin.health().ok
            assert telemetry.start("x") is NO_SPAN
            stopping.set()


@pytest.mark.parametrize(
    ("config", "environ", "expected"),
    [
        (OtelConfig(), {}, None),
        (OtelConfig(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        (OtelConfig(insecure=True), {}, "http://localhost:4318/v1/traces"),
        (OtelConfig(endpoint="c:4318"), {}, "https://c:4318/v1/traces"),
        (OtelConfig(endpoint="c:4318", insecure=True), {}, "http://c:4318/v1/traces"),
        (OtelConfig(endpoint="http://c:1/", custom_url="/t"), {}, "http://c:1/t"),
    ],
)
def test_collector_url(config: OtelConfig, environ: dict[str, str], expected: str | None) -> None:
    """The configuration's endpoint, scheme and path; else the environment's; else OpenTelemetry's default."""
    assert collector_url(config, environ) == expected


def test_environment_fills_in_what_the_configuration_leaves_out() -> None:
    """A written name wins; a name in OTEL_RESOURCE_ATTRIBUTES is not replaced by a default."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=env,service.version=9"}
    written = resource_attributes(OtelConfig(resource=OtelResource(service_name="shop")), environ)
    assert written["service.name"] == "shop"
    assert "service.version" not in written
    assert "service.name" not in resource_attributes(OtelConfig(), environ)
    assert resource_attributes(OtelConfig(), {})["service.name"] == "RoadRunner"


def test_a_span_that_cannot_be_written_raises_nothing() -> None:
    """Whatever OpenTelemetry raises inside a span stays there; what the span stands for goes on."""

    class Unwell:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(f"no {name} today")

    with RecordedSpan(Unwell()) as span:  # type: ignore[arg-type] # stands for a span of the SDK
        span.set("attempt", 2)
        span.fail("no")
        assert span.headers == {}
