"""The one file that imports OpenTelemetry; imported in a thread, and only where `otel` is configured.

What the configuration leaves out, OpenTelemetry's environment variables say (OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER,
OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES). OpenTelemetry reports trouble through `logging`; those reports become records of
the channel `otel`, each text at most once a minute, because a collector that is away would otherwise fill the log.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from collections.abc import Mapping
from types import TracebackType

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span as AnySpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import trailboss
from trailboss.config.schema import OtelConfig
from trailboss.log import logger
from trailboss.telemetry import Attributes, Span

__all__ = ["ExporterBackend", "build", "collector_url", "resource_attributes"]

log = logger("otel")

_PROPAGATOR = TraceContextTextMapPropagator()
_DEFAULT_HTTP_ENDPOINT = "localhost:4318"
_TRACES_PATH = "/v1/traces"
_REPEAT_SECONDS = 60.0
_KINDS = {"server": SpanKind.SERVER}


class _Contained:
    """Keeps what OpenTelemetry raises from whoever only wanted to be observed."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            log.debug("a span could not be written", error=str(error) or type(error).__name__)
            return True
        return False


_CONTAINED = _Contained()


class RecordedSpan(Span):
    """A span that is exported when it ends. Whatever goes wrong with it stays here: spans decide nothing."""

    __slots__ = ("_headers", "_span")

    def __init__(self, span: AnySpan) -> None:
        self._span = span
        self._headers: Mapping[str, str] | None = None

    def set(self, key: str, value: str | bool | float) -> None:
        """Add an attribute."""
        with _CONTAINED:
            self._span.set_attribute(key, value)

    def fail(self, text: str) -> None:
        """Mark the span as failed."""
        with _CONTAINED:
            self._span.set_status(Status(StatusCode.ERROR, text))

    def end(self) -> None:
        """Hand the span to the exporter's queue."""
        with _CONTAINED:
            if self._span.is_recording():
                self._span.end()

    @property
    def headers(self) -> Mapping[str, str]:
        """The W3C trace context of this span."""
        if self._headers is None:
            carrier: dict[str, str] = {}
            with _CONTAINED:
                _PROPAGATOR.inject(carrier, set_span_in_context(self._span))
            self._headers = carrier
        return self._headers


class ExporterBackend:
    """Makes spans of one tracer."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("trailboss", trailboss.__version__)

    def start(
        self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None, kind: str = ""
    ) -> Span:
        """Begin a span, as a child of the trace context in the headers `parent` if there is one.

        One that is not sampled records nothing, but its context says so to whoever comes next.
        """
        context = None
        if parent:
            context = _PROPAGATOR.extract({key.lower(): value for key, value in parent.items()})
        span = self._tracer.start_span(
            name, context=context, attributes=attributes, kind=_KINDS.get(kind, SpanKind.INTERNAL)
        )
        return RecordedSpan(span)

    def close(self) -> None:
        """Export what is left and end the exporter's thread; blocks."""
        self._provider.shutdown()


class _ToOurLog(logging.Handler):
    """Turns OpenTelemetry's own reports into records of the channel `otel`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log a report, unless one of the same template was logged within a minute."""
        now = time.monotonic()
        if now - self._last.get(str(record.msg), float("-inf")) >= _REPEAT_SECONDS:
            self._last[str(record.msg)] = now
            log.warning("the exporter reports", text=record.getMessage())


def build(config: OtelConfig) -> ExporterBackend:
    """Build resource, exporter and provider; no connection is made yet. Raises what OpenTelemetry raises."""
    reports = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _ToOurLog) for handler in reports.handlers):
        reports.addHandler(_ToOurLog())
        reports.propagate = False
    resource = Resource.create(resource_attributes(config, os.environ))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(config)))
    return ExporterBackend(provider)


def resource_attributes(config: OtelConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Return who the spans come from. What neither the file nor the environment says is made up as RoadRunner does."""
    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    said = {part.partition("=")[0].strip() for part in given.split(",")}
    if environ.get("OTEL_SERVICE_NAME"):
        said.add("service.name")
    name = config.resource.service_name or config.service_name
    defaults = {
        "service.name": name or "RoadRunner",
        "service.version": config.resource.service_version or config.service_version or "1.0.0",
        "service.namespace": config.resource.service_namespace or f"{name or 'RoadRunner'}-{uuid.uuid4()}",
        "service.instance.id": config.resource.service_instance_id or str(uuid.uuid4()),
    }
    written = {
        "service.name": name,
        "service.version": config.resource.service_version or config.service_version,
        "service.namespace": config.resource.service_namespace,
        "service.instance.id": config.resource.service_instance_id,
    }
    return {key: value for key, value in defaults.items() if written[key] or key not in said}


def collector_url(config: OtelConfig, environ: Mapping[str, str]) -> str | None:
    """Return the URL for the http client, or None to leave it to the environment or OpenTelemetry's default."""
    in_environment = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if not config.endpoint and (in_environment or not (config.custom_url or config.insecure)):
        return None
    endpoint = config.endpoint or _DEFAULT_HTTP_ENDPOINT
    if "://" not in endpoint:
        endpoint = f"{'http' if config.insecure else 'https'}://{endpoint}"
    path = config.custom_url or _TRACES_PATH
    return f"{endpoint.rstrip('/')}/{path.lstrip('/')}"


def client_protocol(config: OtelConfig, environ: Mapping[str, str]) -> str:
    """Return `http` or `grpc`: the configuration, then the environment, then http."""
    protocol = (
        config.client
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http"
    )
    return "grpc" if protocol == "grpc" else "http"


def _exporter(config: OtelConfig) -> SpanExporter:
    if config.exporter in ("stdout", "stderr"):
        return ConsoleSpanExporter(out=sys.stdout if config.exporter == "stdout" else sys.stderr)
    headers = {key.lower(): value for key, value in config.headers.items()}
    if client_protocol(config, os.environ) == "grpc":
        import grpc  # type: ignore[import-untyped]  # the package ships no types
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(
            endpoint=config.endpoint or None,
            insecure=config.insecure or None,
            headers=headers or None,
            compression=grpc.Compression.Gzip if config.compress else None,
        )
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(
        endpoint=collector_url(config, os.environ),
        headers=headers or None,
        compression=Compression.Gzip if config.compress else None,
    )
