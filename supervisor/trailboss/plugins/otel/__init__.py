"""Plugin `otel`: spans to an OpenTelemetry collector, lazily and never fatal."""

from __future__ import annotations

from trailboss.plugins.otel.plugin import OtelPlugin

__all__ = ["OtelPlugin"]
