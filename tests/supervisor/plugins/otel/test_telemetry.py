"""Spans cost nothing until they go somewhere, and never make trouble."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trailboss.telemetry import NO_SPAN, Telemetry


def test_the_no_op_is_shared_and_does_nothing() -> None:
    """Before a backend is attached every span is the same no-op; errors pass through it."""
    telemetry = Telemetry()
    assert telemetry.start("rpc.call") is NO_SPAN
    with pytest.raises(ValueError, match="mine"), telemetry.start("job", {"id": "1"}) as span:
        span.set("attempt", 2)
        span.fail("no")
        raise ValueError("mine")
    assert NO_SPAN.headers == {}


def test_a_failing_backend_costs_spans_only() -> None:
    """An exception in the backend gives the no-op and is counted."""

    class Broken:
        def start(self, *arguments: object) -> object:
            raise RuntimeError("exporter crashed")

    telemetry = Telemetry()
    telemetry.attach(Broken())  # type: ignore[arg-type]
    assert telemetry.start("a") is NO_SPAN
    assert telemetry.start("b") is NO_SPAN
    assert telemetry.failures == 2


def test_nothing_of_opentelemetry_is_imported_without_the_section() -> None:
    """The plugin and the service cost no import of OpenTelemetry."""
    program = (
        "import sys, trailboss.telemetry, trailboss.plugins.otel\n"
        "sys.exit(any(name.startswith(('opentelemetry', 'google', 'grpc')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
