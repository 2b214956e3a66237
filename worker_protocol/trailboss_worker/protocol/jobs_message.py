"""Jobs on the wire: the context of a job, and what a worker answers.

Server to worker: flags RAW although the context is JSON; the body is the job's payload, untouched. Worker to
server: no context, a JSON body `{"type":T,"data":D}` with T 0 no error, 1 error, 2 ack, 3 nack, 4 requeue.
`data` is ignored for 0 and 2, required for the others. A malformed answer raises RemoteProtocolError; what the
jobs plugin makes of it is its business (upstream acks and logs). Nearly all answers of a healthy worker are one
of a few exact byte strings, which `decode_job_answer` knows without parsing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import NamedTuple

from trailboss_worker.protocol.errors import LocalProtocolError, MessageError
from trailboss_worker.protocol.limits import json_loads_limited

ACK_BODY = b'{"type":2,"data":[]}'
NO_ERROR_BODY = b'{"type":0,"data":[]}'

DELAY_SECONDS_MAX = 2**63 - 1

Headers = Mapping[str, Sequence[str]]

_KINDS = {0: "no_error", 1: "error", 2: "ack", 3: "nack", 4: "requeue"}
_quoted = encode_basestring


class JobContext(NamedTuple):
    """What a worker is told of a job; `extra` holds what only some drivers send (topic, partition, …)."""

    id: str
    job: str
    driver: str
    headers: dict[str, list[str]]
    pipeline: str
    queue: str
    extra: dict[str, object]


class JobAnswer(NamedTuple):
    """What a worker makes of a job. `kind` is "no_error", "error", "ack", "nack" or "requeue".

    `requeue` asks for another attempt (always True for kind "requeue"), `headers` are merged over the job's.
    """

    kind: str
    message: str = ""
    requeue: bool = False
    delay_seconds: int = 0
    headers: dict[str, list[str]] = {}  # noqa: RUF012 - a default of a tuple field; nobody writes to it


_ACK = JobAnswer("ack")
_NO_ERROR = JobAnswer("no_error")

# Whole answers that need no parsing: what PHP's, Trailboss's and the usual hand-written workers send.
ACK_BODIES: dict[bytes, JobAnswer] = {
    b'{"type":%d%s}' % (number, data): answer
    for number, answer in ((2, _ACK), (0, _NO_ERROR))
    for data in (b',"data":[]', b',"data":{}', b',"data":null', b"")
}


def encode_job_context(
    id: str,  # noqa: A002 - the name on the wire
    job: str,
    driver: str,
    headers: Headers | None,
    pipeline: str,
    queue: str | None = None,
    **extra: str | int,
) -> bytes:
    """The context of one job. Raises LocalProtocolError for text that no worker could decode."""
    # Written by hand around the C string quoter: an encoder object costs more than the whole context.
    text = (
        f'{{"id":{_quoted(id)},"job":{_quoted(job)},"driver":{_quoted(driver)}'
        f',"headers":{_json_headers(headers) if headers else "{}"},"pipeline":{_quoted(pipeline)}'
    )
    if queue:
        text += f',"queue":{_quoted(queue)}'
    for name, value in extra.items():
        text += f",{_quoted(name)}:{_quoted(value) if isinstance(value, str) else int(value)}"
    return _encoded(text + "}")


def decode_job_context(context: bytes) -> JobContext:
    """What a worker is told of a job. Raises MessageError."""
    value = json_loads_limited(context)
    if not isinstance(value, dict):
        raise MessageError("a job's context is no JSON object")
    for name in ("id", "job"):
        if name not in value:
            raise MessageError(f"a job's context without {name!r}")
    return JobContext(
        id=_text(value.pop("id"), "id"),
        job=_text(value.pop("job"), "job"),
        driver=_text(value.pop("driver", "unknown"), "driver"),
        headers=_string_lists(value.pop("headers", None)),
        pipeline=_text(value.pop("pipeline", "unknown"), "pipeline"),
        queue=_text(value.pop("queue", "unknown"), "queue"),
        extra=value,
    )


def encode_job_answer_ack() -> bytes:
    """The job is done."""
    return ACK_BODY


def encode_job_answer_no_error() -> bytes:
    """The job is done, as SDKs before 4.5 say it."""
    return NO_ERROR_BODY


def encode_job_answer_error(
    message: str, requeue: bool = False, delay_seconds: int = 0, headers: Headers | None = None
) -> bytes:
    """The job failed, as SDKs before 4.5 say it; without `requeue` it counts as done."""
    return _encoded(f'{{"type":1,"data":{{{_json_data(message, requeue, delay_seconds, headers)}}}}}')


def encode_job_answer_nack(message: str, requeue: bool = False, delay_seconds: int = 0) -> bytes:
    """The job failed; what follows is up to the driver, or another attempt with `requeue`."""
    return _encoded(f'{{"type":3,"data":{{{_json_data(message, requeue, delay_seconds, None)}}}}}')


def encode_job_answer_requeue(
    message: str = "", delay_seconds: int = 0, headers: Headers | None = None
) -> bytes:
    """The job has to be run again."""
    return _encoded(f'{{"type":4,"data":{{{_json_data(message, None, delay_seconds, headers)}}}}}')


def decode_job_answer(body: bytes) -> JobAnswer:
    """What the worker makes of the job. Raises MessageError (a RemoteProtocolError) for a malformed answer."""
    known = ACK_BODIES.get(body)
    if known is not None:
        return known
    value = json_loads_limited(body)
    number = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or isinstance(number, bool) or not isinstance(number, int):
        raise MessageError(f"a job answer without a type: {body[:64]!r}")
    kind = _KINDS.get(number)
    if kind is None:
        raise MessageError(f"a job answer of the unknown type {number}")
    if kind == "ack":
        return _ACK
    if kind == "no_error":
        return _NO_ERROR
    data = value.get("data")
    if not isinstance(data, dict):
        raise MessageError(f"a job answer of type {number} without data")
    requeue = data.get("requeue", False)
    if not isinstance(requeue, bool):
        raise MessageError("a job answer whose 'requeue' is neither true nor false")
    return JobAnswer(
        kind=kind,
        message=_text(data.get("message", ""), "message"),
        requeue=requeue or kind == "requeue",
        delay_seconds=_delay(data.get("delay_seconds", 0)),
        headers=_string_lists(data.get("headers")),
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MessageError(f"{name!r} is no text")
    return value


def _delay(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= DELAY_SECONDS_MAX:
        raise MessageError("'delay_seconds' is no whole number of seconds from 0 on")
    return value


def _string_lists(value: object) -> dict[str, list[str]]:
    """Headers as they arrive: an object of lists of text; null and PHP's empty list mean none."""
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise MessageError("'headers' is no object")
    for name, items in value.items():
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise MessageError(f"header {name!r} is no list of texts")
    return value


def _json_headers(headers: Headers) -> str:
    members = (f"{_quoted(name)}:[{','.join(map(_quoted, values))}]" for name, values in headers.items())
    return f"{{{','.join(members)}}}"


def _json_data(message: str, requeue: bool | None, delay_seconds: int, headers: Headers | None) -> str:
    members = [f'"message":{_quoted(message)}']
    if requeue is not None:
        members.append(f'"requeue":{json.dumps(requeue)}')
    members.append(f'"delay_seconds":{delay_seconds:d}')
    if headers:
        members.append(f'"headers":{_json_headers(headers)}')
    return ",".join(members)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"text that UTF-8 cannot hold: {error.reason}") from None
