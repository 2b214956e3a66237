"""The context a worker gets: wire protocol 3.2, with the number of the run."""

from __future__ import annotations

import json
import time
from itertools import count

import pytest

from trailboss.plugins.jobs.contract import DriverHost, DriverSettings, Job, Room, encode_headers
from trailboss.plugins.jobs.drivers.memory import MemoryDriver
from trailboss.plugins.jobs.pipeline import Pipeline
from trailboss_worker.protocol.jobs_message import decode_job_context


def make_pipeline(name: str = "test", priority: int = 10) -> Pipeline:
    host = DriverHost(
        clock=time.monotonic,
        wall_clock=time.time,
        next_sequence=count().__next__,
        wake_at=lambda due: None,
        ready_changed=lambda: None,
        room=Room(10),
    )
    return Pipeline(name, priority, MemoryDriver(DriverSettings(name, priority), host))


def test_first_run_is_the_wire_form_and_the_attempt() -> None:
    """The members are RoadRunner's, in its order, then the number of the run; no header is added."""
    job = Job("id-1", "App\\Ping", b"{}", encode_headers({"h": ["v"]}))
    job.attempts = 1
    expected = b'{"id":"id-1","job":"App\\\\Ping","driver":"memory","headers":{"h":["v"]},"pipeline":"test","attempts":1}'
    assert expected == make_pipeline().context(job)


@pytest.mark.parametrize(
    ("headers", "attempts", "expected"),
    [
        ({}, 1, {}),
        ({}, 2, {"x-trailboss-attempts": ["2"]}),
        ({"a": ["1", "2"]}, 1, {"a": ["1", "2"]}),
        ({"a": ["1", "2"]}, 12, {"x-trailboss-attempts": ["12"], "a": ["1", "2"]}),
        ({"traceparent": ["00-aa-bb-01"]}, 1, {"traceparent": ["00-aa-bb-01"]}),
    ],
)
def test_attempts_header_from_the_second_run_on(
    headers: dict[str, list[str]], attempts: int, expected: dict[str, list[str]]
) -> None:
    """Headers reach the worker as they were pushed; the attempts header appears with the second run."""
    job = Job("i", "j", b"", encode_headers(headers))
    job.attempts = attempts
    context = json.loads(make_pipeline().context(job))
    assert expected == context["headers"]
    assert context["attempts"] == attempts


@pytest.mark.parametrize("text", ['"', "\\", "\x00\n", "é名😀", "</script>", " " * 5, "a" * 10_000])
def test_any_text_survives(text: str) -> None:
    """Ids, names, headers and pipelines of any text are read back as they were by what workers use."""
    job = Job(text, text, b"", encode_headers({text: [text]}))
    job.attempts = 1
    context = decode_job_context(make_pipeline(text).context(job))
    assert (text, text, text, {text: [text]}) == (context.id, context.job, context.pipeline, context.headers)
    assert context.extra == {"attempts": 1}


def test_members_of_a_driver() -> None:
    """What a driver adds to the context stands behind the pipeline."""
    job = Job("i", "j", b"")
    job.members = ',"queue":"default"'
    job.attempts = 1
    assert json.loads(make_pipeline().context(job))["queue"] == "default"


def test_statistics_of_an_empty_pipeline() -> None:
    """The row of informer.Jobs has RoadRunner's keys."""
    assert make_pipeline("mail", 3).statistics() == {
        "Pipeline": "mail",
        "Driver": "memory",
        "Queue": "mail",
        "Active": 0,
        "Delayed": 0,
        "Reserved": 0,
        "Ready": False,
        "Priority": 3,
        "ErrorMessage": "",
    }
