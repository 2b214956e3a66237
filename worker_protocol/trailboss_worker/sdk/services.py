"""The server's services as methods: jobs, informer, resetter, status, metrics, app.

Each class is a thin wrapper around one RPC client and holds nothing else, so any number may share it. What
goes over the wire is what RoadRunner's own clients send (wire protocol 5): protobuf for jobs and status, JSON
for the rest. All of them raise what `RPC.call` raises.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Union

from trailboss_worker.protocol import messages
from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.protocol.protobuf_lite import Message
from trailboss_worker.sdk.rpc import RPC
from trailboss_worker.sdk.rpc_errors import OutOfStep

RESET_TIMEOUT_SECONDS = 300.0  # the server's own limit is pool.reset_timeout

Headers = Mapping[str, Sequence[str]]


class Push(NamedTuple):
    """One job to be pushed. `id` empty = a new one is made; `priority` 0 = the pipeline's; delay is rounded up."""

    pipeline: str
    job: str
    payload: Union[bytes, str] = b""  # noqa: UP007 - evaluated at run time by Python 3.9
    id: str = ""
    headers: Headers = {}  # noqa: RUF012 - a default of a tuple field; nobody writes to it
    priority: int = 0
    delay_seconds: float = 0
    auto_ack: bool = False


class PipelineStat(NamedTuple):
    """One pipeline: `active` wait or are being worked on, `reserved` are being worked on, `delayed` wait for their time.

    `ready` says whether its jobs are handed to workers.
    """

    pipeline: str
    driver: str
    queue: str
    active: int
    delayed: int
    reserved: int
    ready: bool
    priority: int


class PluginStatus(NamedTuple):
    """What a plugin reports about itself: an HTTP-like code, 200 for well, and a text."""

    code: int
    message: str


class Jobs:
    """Push jobs, and look after pipelines."""

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def push(
        self,
        pipeline: str,
        job: str,
        payload: bytes | str = b"",
        *,
        id: str = "",  # noqa: A002  # the word of the protocol
        headers: Headers | None = None,
        priority: int = 0,
        delay_seconds: float = 0,
        auto_ack: bool = False,
    ) -> str:
        """Push one job; gives its id."""
        job_id, message = _job_message(
            Push(pipeline, job, payload, id, headers or {}, priority, delay_seconds, auto_ack)
        )
        self._call("jobs.Push", messages.JOBS_PUSH_REQUEST, {"job": message})
        return job_id

    def push_many(self, pushes: Iterable[Push]) -> list[str]:
        """Push several jobs in one call; gives their ids. Under Trailboss it is all or nothing."""
        prepared = [_job_message(push) for push in pushes]
        request = {"jobs": [message for _, message in prepared]}
        self._call("jobs.PushBatch", messages.JOBS_PUSH_BATCH_REQUEST, request)
        return [job_id for job_id, _ in prepared]

    def pause(self, *pipelines: str) -> None:
        """Stop handing out jobs of these pipelines; what is pushed waits."""
        self._call("jobs.Pause", messages.JOBS_PIPELINES, {"pipelines": list(pipelines)})

    def resume(self, *pipelines: str) -> None:
        """Hand out jobs of these pipelines (again)."""
        self._call("jobs.Resume", messages.JOBS_PIPELINES, {"pipelines": list(pipelines)})

    def destroy(self, *pipelines: str) -> list[str]:
        """Remove these pipelines; gives the names of those that were there."""
        reply = self._call("jobs.Destroy", messages.JOBS_PIPELINES, {"pipelines": list(pipelines)})
        return _decode(messages.JOBS_PIPELINES, reply)["pipelines"]  # type: ignore[no-any-return]

    def declare(self, name: str, driver: str, **options: object) -> None:
        """Make a new pipeline; `options` are the driver's. It is paused until `resume`."""
        pipeline = {"name": name, "driver": driver}
        pipeline.update((key, option_text(value)) for key, value in options.items())
        self._call("jobs.Declare", messages.JOBS_DECLARE_REQUEST, {"pipeline": pipeline})

    def list(self) -> list[str]:
        """The names of all pipelines."""
        reply = self._call("jobs.List", messages.JOBS_EMPTY, {})
        return _decode(messages.JOBS_PIPELINES, reply)["pipelines"]  # type: ignore[no-any-return]

    def stat(self) -> Sequence[PipelineStat]:
        """One entry for each pipeline."""
        reply = _decode(messages.JOBS_STATS, self._call("jobs.Stat", messages.JOBS_EMPTY, {}))
        return [PipelineStat(**stat) for stat in reply["stats"]]

    def _call(self, method: str, table: Message, request: dict[str, Any]) -> bytes:
        return _call_proto(self._rpc, method, table, request)


class Informer:
    """Which plugins have workers, and how those are."""

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def list(self) -> Sequence[str]:
        """The plugins that have workers."""
        return _texts("informer.List", self._rpc.call("informer.List", True))

    def workers(self, plugin: str) -> Sequence[dict[str, Any]]:
        """The plugin's workers, each with pid, status, numExecs, created (unix ns), memoryUsage (bytes), …"""
        answer = self._rpc.call("informer.Workers", plugin)
        return _objects("informer.Workers", answer.get("workers") if isinstance(answer, dict) else answer)

    def jobs(self, plugin: str) -> Sequence[dict[str, Any]]:
        """The plugin's pipelines, each with Pipeline, Driver, Queue, Active, Delayed, Reserved, Ready, …"""
        return _objects("informer.Jobs", self._rpc.call("informer.Jobs", plugin))

    def add_worker(self, plugin: str) -> None:
        """Make the plugin's pool one worker bigger."""
        self._rpc.call("informer.AddWorker", plugin)

    def remove_worker(self, plugin: str) -> None:
        """Make the plugin's pool one worker smaller; the last one stays."""
        self._rpc.call("informer.RemoveWorker", plugin)


class Resetter:
    """Replace the workers of a plugin."""

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def list(self) -> Sequence[str]:
        """The plugins whose workers can be replaced."""
        return _texts("resetter.List", self._rpc.call("resetter.List", True))

    def reset(self, plugin: str, *, timeout_seconds: float = RESET_TIMEOUT_SECONDS) -> bool:
        """Replace all workers of the plugin; returns when that is done."""
        return self._rpc.call("resetter.Reset", plugin, timeout_seconds=timeout_seconds) is True


class Status:
    """How a plugin is, in a number."""

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def status(self, plugin: str) -> PluginStatus:
        """Whether the plugin is alive."""
        return self._ask("status.Status", plugin)

    def ready(self, plugin: str) -> PluginStatus:
        """Whether the plugin can serve now."""
        return self._ask("status.Ready", plugin)

    def _ask(self, method: str, plugin: str) -> PluginStatus:
        reply = _call_proto(self._rpc, method, messages.STATUS_REQUEST, {"plugin": plugin})
        return PluginStatus(**_decode(messages.STATUS_RESPONSE, reply))


class Metrics:
    """Metrics that the server keeps for this application and shows to Prometheus; needs its section `metrics`.

    Labels are values only, in the order of their names at `declare`. Every combination of them is a series of its own,
    and the server bounds their number: never put ids of users or requests into labels.
    """

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def declare(
        self,
        name: str,
        kind: str,
        help: str = "",  # noqa: A002  # the word of the protocol
        *,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = (),
        objectives: Mapping[float, float] | None = None,
        namespace: str = "",
        subsystem: str = "",
    ) -> None:
        """Make a metric; `kind` is counter, gauge, histogram or summary. The same again changes nothing."""
        collector = {
            "type": kind,
            "help": help,
            "labels": list(labels),
            "buckets": list(buckets),
            "objectives": {str(share): error for share, error in (objectives or {}).items()},
            "namespace": namespace,
            "subsystem": subsystem,
        }
        self._rpc.call("metrics.Declare", {"name": name, "collector": collector})

    def add(self, name: str, value: float = 1, *labels: str) -> None:
        """Add to a counter or a gauge."""
        self._call("Add", name, value, labels)

    def sub(self, name: str, value: float = 1, *labels: str) -> None:
        """Subtract from a gauge."""
        self._call("Sub", name, value, labels)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._call("Set", name, value, labels)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Give one value to a histogram or a summary."""
        self._call("Observe", name, value, labels)

    def unregister(self, name: str) -> None:
        """Forget a metric and what was kept of it."""
        self._rpc.call("metrics.Unregister", name)

    def _call(self, verb: str, name: str, value: float, labels: Sequence[str]) -> None:
        self._rpc.call(f"metrics.{verb}", {"name": name, "value": value, "labels": list(labels)})


class App:
    """Lines in the server's log."""

    def __init__(self, rpc: RPC) -> None:
        self._rpc = rpc

    def error(self, message: str, **attributes: object) -> None:
        """Log at level error; `attributes` become keys of the record."""
        self._write("Error", message, attributes)

    def warning(self, message: str, **attributes: object) -> None:
        """Log at level warning."""
        self._write("Warning", message, attributes)

    def info(self, message: str, **attributes: object) -> None:
        """Log at level info."""
        self._write("Info", message, attributes)

    def debug(self, message: str, **attributes: object) -> None:
        """Log at level debug."""
        self._write("Debug", message, attributes)

    def log(self, message: str, **attributes: object) -> None:
        """Write the text to the server's standard error as it is."""
        self._write("Log", message, attributes)

    def _write(self, level: str, message: str, attributes: Mapping[str, object]) -> None:
        if not attributes:
            self._rpc.call(f"app.{level}", message)
            return
        pairs = [{"key": key, "value": option_text(value)} for key, value in attributes.items()]
        entry = {"message": message, "log_attrs": pairs}
        _call_proto(self._rpc, f"app.{level}WithContext", messages.APPLOGGER_LOG_ENTRY, entry)


def new_job_id() -> str:
    """A random UUID (version 4), made without the uuid module, whose import costs more than all of this."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def option_text(value: object) -> str:
    """A value as the string maps of the protocol hold it: true, false, numbers, nested values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _job_message(push: Push) -> tuple[str, dict[str, Any]]:
    job_id = push.id or new_job_id()
    payload = push.payload.encode("utf-8") if isinstance(push.payload, str) else bytes(push.payload)
    return job_id, {
        "job": push.job,
        "id": job_id,
        "payload": payload,
        "headers": {name: {"value": list(values)} for name, values in push.headers.items()},
        "options": {
            "priority": push.priority,
            "pipeline": push.pipeline,
            "delay": math.ceil(push.delay_seconds),
            "auto_ack": push.auto_ack,
        },
    }


def _call_proto(rpc: RPC, method: str, table: Message, request: Mapping[str, Any]) -> bytes:
    reply = rpc.call(method, table.encode(request), "proto")
    assert isinstance(reply, bytes)
    return reply


def _decode(table: Message, reply: bytes) -> dict[str, Any]:
    try:
        return table.decode(reply)
    except MessageError as error:
        raise OutOfStep(f"the answer is no {table.name}: {error}") from error


def _texts(method: str, answer: object) -> Sequence[str]:
    if answer is None:
        return []
    if isinstance(answer, list) and all(isinstance(item, str) for item in answer):
        return answer
    raise OutOfStep(f"{method}: the answer is no list of texts")


def _objects(method: str, answer: object) -> Sequence[dict[str, Any]]:
    if answer is None:
        return []
    if isinstance(answer, list) and all(isinstance(item, dict) for item in answer):
        return answer
    raise OutOfStep(f"{method}: the answer is no list of objects")
