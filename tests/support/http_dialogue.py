"""The server's half of an HTTP exchange with one worker, for the tests of the gateways: frames out, frames in.

`ask` sends a request as the server writes it and reads the whole answer, whatever number of frames it takes; pings are
answered as the server does, from the second frame of a stream on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trailboss_worker.protocol.frames import JSON, PING, PONG, STOP, STREAM, Frame, encode_frame
from trailboss_worker.protocol.http_message import HttpRequest, decode_answer_context, encode_request_context
from trailboss_worker.protocol.payload import encode_payload, split_payload

PONG_FRAME = encode_frame(b"", stream=PONG)
STOP_FRAME = encode_frame(b"", stream=STOP)


@dataclass
class Answer:
    """A whole answer: `parts` are the bodies of its frames, `informed` the interim answers before it, `last_headers`
    those of a later context, which are trailers."""

    status: int = 0
    headers: dict[str, list[str]] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    pings: int = 0
    informed: list[tuple[int, dict[str, list[str]]]] = field(default_factory=list)
    last_headers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)

    def header(self, name: str) -> str | None:
        """The value of a header whatever its case, None where there is none or there are several."""
        found = [value for key, values in self.headers.items() if key.lower() == name for value in values]
        return found[0] if len(found) == 1 else None


def request(
    uri: str = "http://example.org:8080/",
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, Sequence[bytes]] | None = None,
    dialect: int = JSON,
    **more: Any,
) -> bytes:
    """The frame of a request."""
    values: dict[str, Any] = {
        "remote_addr": "192.0.2.7",
        "protocol": "HTTP/1.1",
        "method": method,
        "uri": uri,
        "header": dict(headers or {}),
        "cookies": {},
        "raw_query": uri.partition("?")[2],
        "parsed": False,
        "uploads": b"",
        "attributes": {},
        **more,
    }
    return encode_payload(encode_request_context(HttpRequest(**values), dialect), body, dialect)


def add_frame(answer: Answer, frame: Frame) -> bool:
    """Put one frame into the answer; False when it was the last one."""
    context, body = split_payload(frame)
    head = decode_answer_context(context, frame.flags)
    if head is not None and not answer.status:
        headers = {name: [value.decode("utf-8") for value in values] for name, values in head.headers.items()}
        if head.status < 200:
            answer.informed.append((head.status, headers))
            return True
        answer.status = head.status
        answer.headers = headers
    elif head is not None:
        answer.last_headers = {
            name: [value.decode("utf-8") for value in values] for name, values in head.headers.items()
        }
    answer.parts.append(body)
    answer.flags.append(frame.flags)
    return bool(frame.stream & STREAM)


def read_answer(worker: Any) -> Answer:
    """The worker's whole answer."""
    answer = Answer()
    while True:
        frame = worker.frame()
        assert frame.flags & 0x41 == 0, frame
        if frame.stream & PING:
            answer.pings += 1
            worker.send(PONG_FRAME)
        if not add_frame(answer, frame):
            return answer


def ask(worker: Any, uri: str = "http://example.org:8080/", **more: Any) -> Answer:
    """Send a request and read the whole answer."""
    worker.send(request(uri, **more))
    return read_answer(worker)
