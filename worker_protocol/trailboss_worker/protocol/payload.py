"""Payloads: a context and a body in one frame.

The one option of the frame is the length of the context; the body is what follows. In requests not both may
be empty, because PHP workers take such a frame as the request to end; in answers either may be, or both.
"""

from __future__ import annotations

from trailboss_worker.protocol.control import STOP_ANSWER_CONTEXT
from trailboss_worker.protocol.errors import LocalProtocolError, RemoteProtocolError
from trailboss_worker.protocol.frames import Frame, encode_frame


def encode_payload(context: bytes, body: bytes, flags: int = 0, stream: int = 0) -> bytes:
    """A request to a worker. Raises LocalProtocolError when context and body are both empty."""
    if not context and not body:
        raise LocalProtocolError("a request with neither context nor body")
    return encode_frame(context + body, flags=flags, stream=stream, options=(len(context),))


def encode_answer(context: bytes, body: bytes, flags: int = 0, stream: int = 0) -> bytes:
    """A worker's answer, or one chunk of it when the STREAM bit is set; context and body may be empty."""
    return encode_frame(context + body, flags=flags, stream=stream, options=(len(context),))


def split_payload(frame: Frame) -> tuple[bytes, bytes]:
    """Context and body of a frame. Raises RemoteProtocolError where the frame does not say where to cut."""
    options = frame.options
    if len(options) != 1:
        raise RemoteProtocolError(
            f"a payload has exactly one option, the context length; here are {len(options)}"
        )
    cut = options[0]
    payload = frame.payload
    if cut == 0:
        return b"", payload
    if cut > len(payload):
        raise RemoteProtocolError(f"a context of {cut} bytes in a payload of {len(payload)}")
    return payload[:cut], payload[cut:]


def answer_is_stop_request(frame: Frame) -> bool:
    """Whether the worker answers a job by asking to be stopped; the job is then run on another worker."""
    return frame.payload == STOP_ANSWER_CONTEXT and frame.options == (len(STOP_ANSWER_CONTEXT),)
