"""Spans of job runs: part of the pusher's trace, handed on to the worker, and nothing at all without a backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.dispatch import trace_of, with_trace
from trailboss.telemetry import Attributes, Span, Telemetry
from trailboss.testing.fake_pool import ACK
from trailboss.workers.outcome import Outcome, SoftError


class RecordingSpan(Span):
    """Remembers what became of it."""

    def __init__(self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None) -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.failure = ""
        self.ended = False

    def fail(self, text: str) -> None:
        """Note the failure."""
        self.failure = text

    def end(self) -> None:
        """Note the end."""
        self.ended = True

    @property
    def headers(self) -> Mapping[str, str]:
        """A trace context of its own."""
        return {"traceparent": "00-own"}


class RecordingBackend:
    """Keeps every span."""

    def __init__(self) -> None:
        self.spans: list[RecordingSpan] = []

    def start(self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None) -> Span:
        """Make and keep a span."""
        self.spans.append(RecordingSpan(name, attributes, parent))
        return self.spans[-1]


async def one_run(start_server: Callable[..., Any], outcome: Outcome) -> tuple[RecordingSpan, dict[str, Any]]:
    """Push a job with a trace context, let it end with `outcome`; return its span and the context the worker got."""
    backend = RecordingBackend()
    async with start_server(num_workers=1) as server:
        server.plugin.dispatcher.telemetry = Telemetry()
        server.plugin.dispatcher.telemetry.attach(backend)
        message = jobs_pb2.PushRequest(
            job=jobs_pb2.Job(
                id="1",
                job="App\\Task",
                headers={
                    "Traceparent": jobs_pb2.HeaderValue(value=["00-pusher"]),
                    "k": jobs_pb2.HeaderValue(value=["v"]),
                },
                options=jobs_pb2.Options(pipeline="main"),
            )
        )
        await server.call("jobs.Push", message)
        context = json.loads(server.pool.running[0].context)
        server.pool.finish(server.pool.running[0], outcome)
    (span,) = backend.spans
    return span, context


async def test_a_run_joins_the_trace_of_its_pusher(start_server: Callable[..., Any]) -> None:
    """The span's parent is the pushed trace context; the worker gets the span's own, and its other headers."""
    span, context = await one_run(start_server, ACK)
    assert span.parent is not None
    assert span.parent["Traceparent"] == "00-pusher"
    assert context["headers"] == {"k": ["v"], "traceparent": ["00-own"]}
    assert (span.name, span.failure, span.ended) == ("jobs.run", "", True)


async def test_a_failed_run_is_a_failed_span(start_server: Callable[..., Any]) -> None:
    """An outcome that is no acknowledgement marks the span as failed, with the reason."""
    span, _ = await one_run(start_server, SoftError("no such class"))
    assert (span.failure, span.ended) == ("no such class", True)


class UnwellSpan(Span):
    """Raises whatever is asked of it."""

    def fail(self, text: str) -> None:
        """Raise."""
        raise RuntimeError("no failure today")

    def end(self) -> None:
        """Raise."""
        raise RuntimeError("no end today")

    @property
    def headers(self) -> Mapping[str, str]:
        """Raise."""
        raise RuntimeError("no headers today")


class UnwellBackend:
    """Makes spans that raise."""

    def start(self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None) -> Span:
        """Make one."""
        return UnwellSpan()


@pytest.mark.parametrize("outcome", [ACK, SoftError("no such class")], ids=["done", "failed"])
async def test_spans_that_raise_cost_no_job(start_server: Callable[..., Any], outcome: Outcome) -> None:
    """A run begins and is settled as without spans, whatever they raise; that is counted."""
    async with start_server(num_workers=1, max_attempts=1) as server:
        telemetry = server.plugin.dispatcher.telemetry = Telemetry()
        telemetry.attach(UnwellBackend())
        await server.push("1")
        server.pool.finish(server.pool.running[0], outcome)
        books = server.books
        assert (server.plugin.dispatcher.in_flight, books.running, books.done + books.dead) == (0, 0, 1)
        assert telemetry.failures == 2


def test_headers_without_trace_stay_as_they_are() -> None:
    """Without a span there is nothing to change, and nothing is parsed twice."""
    assert with_trace('{"a":["1"]}', {}) == '{"a":["1"]}'
    assert trace_of('{"a":["1","2"],"b":[]}') == {"a": "1"}
