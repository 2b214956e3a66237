"""Control messages: the pid handshake and the request to stop.

A control frame has the CONTROL flag, no options, and a JSON object as payload. The server speaks first:
`{"pid":<its pid>}`; the worker answers with its own pid and is READY. `{"stop":true}` asks a worker to leave
its loop. A worker that wants to go itself answers a job with the context `{"stop":true}`, compared byte by
byte, and an empty body. Flags are tested before stream bits: a CONTROL frame is never anything else.
"""

from __future__ import annotations

from typing import NamedTuple, Union

from trailboss_worker.protocol.errors import HandshakeError, MessageError, RemoteProtocolError
from trailboss_worker.protocol.frames import CONTROL, JSON, Frame, encode_frame
from trailboss_worker.protocol.limits import json_loads_limited

STOP_ANSWER_CONTEXT = b'{"stop":true}'

_CONTROL_BYTES_MAX = 64 * 1024
_STOP_FRAME = encode_frame(STOP_ANSWER_CONTEXT, flags=CONTROL | JSON)


class PidRequest(NamedTuple):
    """The server wants to know the worker's pid; `pid` is the server's own (0 where it is no number)."""

    pid: int


class StopRequest(NamedTuple):
    """The server asks the worker to leave its loop; no answer frame is expected."""


ControlMessage = Union[PidRequest, StopRequest]  # noqa: UP007 - evaluated at run time by Python 3.9


def encode_pid(pid: int) -> bytes:
    """The server's first frame: asks a worker for its pid."""
    return encode_frame(b'{"pid":%d}' % pid, flags=CONTROL | JSON)


def encode_pid_answer(pid: int, *, files: bool = False, stack_signal: int = 0) -> bytes:
    """The worker's answer to `encode_pid`; like PHP's it carries no codec bit.

    With `files` it says that a body may come as an open file, which Trailboss alone offers (variable TRAILBOSS_FILES);
    with `stack_signal` that this signal makes it write its stack to standard error, which Trailboss alone asks for.
    """
    more = b',"files":true' if files else b""
    if stack_signal:
        more += b',"stack_signal":%d' % stack_signal
    return encode_frame(b'{"pid":%d%b}' % (pid, more), flags=CONTROL)


def encode_stop() -> bytes:
    """The server's request to leave the loop."""
    return _STOP_FRAME


def parse_control(payload: bytes) -> ControlMessage:
    """What the server wants of a worker. Raises RemoteProtocolError; a stop wins over a pid."""
    try:
        message = json_loads_limited(payload, size_max=_CONTROL_BYTES_MAX)
    except MessageError as error:
        raise RemoteProtocolError(f"undefined control package: {error}") from None
    if isinstance(message, dict):
        if message.get("stop"):
            return StopRequest()
        pid = message.get("pid")
        if pid:
            return PidRequest(pid if isinstance(pid, int) and not isinstance(pid, bool) else 0)
    raise RemoteProtocolError(f"undefined control package: {payload[:64]!r}")


def check_handshake(frame: Frame) -> int:
    """The pid a worker reports in its first frame. Raises HandshakeError saying what is wrong with it."""
    if not frame.flags & CONTROL:
        raise HandshakeError(f"no CONTROL flag in the worker's first frame (flags 0x{frame.flags:02x})")
    try:
        message = json_loads_limited(frame.payload, size_max=_CONTROL_BYTES_MAX)
    except MessageError as error:
        raise HandshakeError(f"the worker's first frame holds {error}") from None
    pid = message.get("pid") if isinstance(message, dict) else None
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise HandshakeError(f"the worker's first frame names no pid: {frame.payload[:64]!r}")
    if not 0 < pid < 2**31:
        raise HandshakeError(f"the worker reports the impossible pid {pid}")
    return pid


def stack_signal_of(frame: Frame) -> int:
    """The signal that makes the worker of this handshake, which has been checked, write its stack; 0: none."""
    message = json_loads_limited(frame.payload, size_max=_CONTROL_BYTES_MAX)
    number = message.get("stack_signal") if isinstance(message, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def takes_files(frame: Frame) -> bool:
    """Whether the worker of this handshake, which has been checked, takes bodies as open files."""
    message = json_loads_limited(frame.payload, size_max=_CONTROL_BYTES_MAX)
    return isinstance(message, dict) and message.get("files") is True
