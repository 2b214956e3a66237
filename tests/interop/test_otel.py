"""Spans of a whole server at a collector, and a collector that is not there."""

from __future__ import annotations

import gzip
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from trailboss_worker.sdk import Jobs

from ..support.live_server import PATIENCE
from .conftest import Serve
from .live import Live, free_port, wait_for

WORKER = Path(__file__).resolve().parent.parent / "sdk" / "programs" / "jobs_worker.py"
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "{python} {worker}"}}
jobs:
  consume: [work]
  max_attempts: 1
  pool: {{num_workers: 1}}
  pipelines: {{work: {{driver: memory}}}}
otel:
  insecure: true
  compress: true
  client: http
  endpoint: "{endpoint}"
  headers: {{Api-Key: secret}}
  resource: {{service_name: shop}}
logs: {{mode: production, output: [server.log]}}
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.service_names: set[str] = set()
        self.keys: set[str | None] = set()
        self.paths: set[str] = set()
        self._spans: list[Span] = []

    def take(self, path: str, key: str | None, body: bytes) -> None:
        """Keep the spans of one request."""
        self.paths.add(path)
        self.keys.add(key)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "service.name":
                    self.service_names.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                self._spans += scope.spans

    def named(self, name: str) -> list[Span]:
        """The spans of a name so far."""
        return [span for span in self._spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector in a thread."""
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            collected.take(self.path, self.headers["api-key"], body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected.endpoint = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield collected
        finally:
            server.shutdown()
            thread.join(30)


def start(serve: Serve, folder: Path, endpoint: str, more: str = "") -> Live:
    """A server with otel, once its exporter is there."""
    text = CONFIG.format(folder=folder, python=sys.executable, worker=WORKER, endpoint=endpoint) + more
    server = serve(text, env={"OTEL_BSP_SCHEDULE_DELAY": "100"})

    def attached() -> bool:
        with server.rpc() as rpc:
            plugins = rpc.state()["plugins"]
        assert isinstance(plugins, list)
        return any("attached" in str(row) for row in plugins if row["name"] == "otel")

    wait_for(attached, f"the exporter attached: {server.stderr}")
    return server


def attributes_of(span: Span) -> dict[str, str]:
    """Attributes as texts."""
    return {item.key: item.value.string_value or str(item.value.int_value) for item in span.attributes}


def test_spans_of_calls_and_jobs_arrive(serve: Serve, tmp_path: Path, collector: Collector) -> None:
    """rpc and job spans, the job's in the trace of whoever pushed it and handed on to the worker; failures marked."""
    server = start(serve, tmp_path, collector.endpoint)
    with server.rpc() as rpc:
        jobs = Jobs(rpc)
        jobs.push("work", "ack", "{}", id="good", headers={"traceparent": [f"00-{TRACE}-{CALLER}-01"]})
        jobs.push("work", "nack", "{}", id="bad")
    runs = {run["id"]: run for run in server.jobs(2)}
    wait_for(lambda: len(collector.named("jobs.run")) >= 2, "the spans of two jobs")
    wait_for(lambda: len(collector.named("rpc jobs.Push")) >= 2, "the spans of two calls")
    spans = {attributes_of(span)["messaging.message.id"]: span for span in collector.named("jobs.run")}
    good, bad = spans["good"], spans["bad"]
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, CALLER)
    assert attributes_of(good)["trailboss.job"] == "ack"
    assert attributes_of(good)["messaging.destination.name"] == "work"
    assert attributes_of(good)["trailboss.attempt"] == "1"
    assert good.status.code == 0
    assert bad.status.code == 2
    assert bad.trace_id != good.trace_id
    assert good.end_time_unix_nano > good.start_time_unix_nano
    headers = runs["good"]["headers"]
    assert isinstance(headers, dict)
    (carried,) = [values[0] for name, values in headers.items() if name.lower() == "traceparent"]
    assert carried == f"00-{TRACE}-{good.span_id.hex()}-01"
    call = attributes_of(collector.named("rpc jobs.Push")[0])
    assert (call["rpc.service"], call["rpc.method"]) == ("jobs", "Push")
    assert collector.service_names == {"shop"}
    assert collector.keys == {"secret"}
    assert collector.paths == {"/v1/traces"}


HTTP_CONFIG = """
http:
  address: "127.0.0.1:{port}"
  middleware: [otel]
  pool: {{num_workers: 1, command: [trailboss-worker, wsgi, "app:application"]}}
"""
APPLICATION = """
def application(environ, start_response):
    if environ["PATH_INFO"] == "/broken":
        raise RuntimeError("broken")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("HTTP_TRACEPARENT", "none").encode()]
"""


def test_spans_of_requests_arrive(serve: Serve, tmp_path: Path, collector: Collector) -> None:
    """A request's span joins the caller's trace, the worker's request has the span's own context, errors are marked."""
    port = free_port()
    (tmp_path / "app.py").write_text(APPLICATION)
    server = start(serve, tmp_path, collector.endpoint, HTTP_CONFIG.format(port=port))
    server.application_fails = True

    def get(path: str) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    status, carried = get("/orders?token=secret")
    assert get("/broken")[0] == 500
    wait_for(lambda: len(collector.named("GET")) >= 2, "the spans of two requests")
    spans = {attributes_of(span)["url.path"]: span for span in collector.named("GET")}
    good, bad = spans["/orders"], spans["/broken"]

    assert status == 200
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, CALLER)
    assert carried == f"00-{TRACE}-{good.span_id.hex()}-01"
    assert (good.kind, good.status.code) == (Span.SPAN_KIND_SERVER, 0)
    assert attributes_of(good)["http.response.status_code"] == "200"
    assert "secret" not in str(good)
    assert bad.status.code == 2
    assert attributes_of(bad)["error.type"] == "500"


@contextmanager
def silent_endpoint(listening: bool) -> Iterator[str]:
    """An address that refuses connections, or one that takes them and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listening:
            listener.listen(8)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("listening", [False, True], ids=["refusing", "silent"])
def test_a_dead_collector_delays_nothing(serve: Serve, tmp_path: Path, listening: bool) -> None:
    """Calls and jobs go on at their pace while no span can be sent."""
    with silent_endpoint(listening) as endpoint:
        server = start(serve, tmp_path, endpoint)
        slowest = 0.0
        pushed_at: dict[str, float] = {}
        with server.rpc() as rpc:
            jobs = Jobs(rpc)
            for number in range(150):
                pushed_at[str(number)] = time.time()
                jobs.push("work", "ack", "{}", id=str(number))
                slowest = max(slowest, time.time() - pushed_at[str(number)])
        runs = server.jobs(150)
        delays = [float(str(run["time"])) - pushed_at[str(run["id"])] for run in runs]
        assert slowest < 0.5 * PATIENCE
        assert max(delays) < 1.0 * PATIENCE
        assert server.books()["done"] == 150
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8.0 * PATIENCE
