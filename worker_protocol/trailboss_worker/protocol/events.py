"""What a conversation can say.

The first group is what the server hears from a worker, the second what a worker hears from the server.
`Ended` is heard by both: the stream ended between two frames. An end inside a frame is a FrameError.
"""

from __future__ import annotations

from typing import NamedTuple, Union


class WorkerReady(NamedTuple):
    """The worker answered the pid request (the first one, or a later one sent as a probe)."""

    pid: int


class Response(NamedTuple):
    """A whole answer, or the last part of a stream; the worker is READY again."""

    context: bytes
    body: bytes
    flags: int


class StreamChunk(NamedTuple):
    """A part of an answer; more follow. `ping`: the worker waits for `pong()`."""

    context: bytes
    body: bytes
    flags: int
    ping: bool


class WorkerError(NamedTuple):
    """The job failed, with the worker's words. In a stream the worker has to be stopped, else it is READY."""

    text: str
    in_stream: bool


class StopRequested(NamedTuple):
    """The worker asks to be stopped instead of answering: send `stop()`, run the job on another worker."""


class Ended(NamedTuple):
    """The peer closed the stream between two frames."""


class PidRequested(NamedTuple):
    """The server asks for the worker's pid: send `answer_pid()`."""

    server_pid: int


class Request(NamedTuple):
    """A job for the worker."""

    context: bytes
    body: bytes
    flags: int


class StreamCancelled(NamedTuple):
    """The client has gone: end the stream with one frame that may be empty."""


class PongReceived(NamedTuple):
    """The server answered the last ping."""


class StopAsked(NamedTuple):
    """The server asks the worker to leave its loop, after the job at hand if there is one."""


ServerEvent = Union[WorkerReady, Response, StreamChunk, WorkerError, StopRequested, Ended]  # noqa: UP007 - Python 3.9
WorkerEvent = Union[PidRequested, Request, StreamCancelled, PongReceived, StopAsked, Ended]  # noqa: UP007 - Python 3.9
