"""The conversation between the server and one worker, as two tables: no I/O, bytes in, events out.

Everything about transitions is in SERVER_TRANSITIONS and WORKER_TRANSITIONS: state and event give the next
state, a pair that is not there is an error that names both. Events that one side causes itself (it sends
something) raise LocalProtocolError and change nothing; what the peer causes raises RemoteProtocolError and the
conversation is DEAD for good: every later `next_event` raises the same error.

`receive_data` only stores (b"" means that the stream ended), `next_event` works, the verbs return the bytes to
send in one write. When such a write fails half-way, say `send_failed()`, so that no frame follows a torn one.

Exactly one request is under way at any time. A server may speak into a running answer only to cancel a stream
or to answer its ping; a worker's PING counts from its second chunk on (wire protocol 2.8).
"""

from __future__ import annotations

from enum import Enum

from trailboss_worker.protocol.control import (
    STOP_ANSWER_CONTEXT,
    PidRequest,
    check_handshake,
    encode_pid,
    encode_pid_answer,
    encode_stop,
    parse_control,
)
from trailboss_worker.protocol.errors import LocalProtocolError, RemoteProtocolError
from trailboss_worker.protocol.events import (
    Ended,
    PidRequested,
    PongReceived,
    Request,
    Response,
    ServerEvent,
    StopAsked,
    StopRequested,
    StreamCancelled,
    StreamChunk,
    WorkerError,
    WorkerEvent,
    WorkerReady,
)
from trailboss_worker.protocol.frames import (
    CONTROL,
    DEFAULT_PAYLOAD_CAP,
    ERROR,
    PING,
    PONG,
    STOP,
    STREAM,
    Buffer,
    Frame,
    FrameDecoder,
    encode_frame,
)
from trailboss_worker.protocol.payload import (
    encode_answer,
    encode_payload,
    split_payload,
)


class State(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11
    """Where a conversation stands, seen from either side."""

    BOOTING = "booting"
    READY = "ready"
    WORKING = "working"
    STREAMING = "streaming"
    STOPPING = "stopping"
    DEAD = "dead"


BOOTING, READY, WORKING, STREAMING, STOPPING, DEAD = State

Table = dict[State, dict[str, State]]

# What the server does (pid, request, stop, cancel, pong, send failed) and hears (the rest).
SERVER_TRANSITIONS: Table = {
    BOOTING: {
        "send pid": BOOTING,
        "pid answer": READY,
        "send stop": STOPPING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    READY: {
        "send pid": READY,
        "pid answer": READY,
        "send request": WORKING,
        "send stop": STOPPING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    WORKING: {
        "answer": READY,
        "error answer": READY,
        "stop answer": STOPPING,
        "chunk": STREAMING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    STREAMING: {
        "chunk": STREAMING,
        "answer": READY,
        "error answer": STOPPING,
        "send cancel": STREAMING,
        "send pong": STREAMING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    STOPPING: {
        "send stop": STOPPING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    DEAD: {
        "end of stream": DEAD,
        "send failed": DEAD,
    },
}

# What the worker does (pid answer, answer, chunk, error, send failed) and hears (the rest).
WORKER_TRANSITIONS: Table = {
    BOOTING: {
        "pid request": BOOTING,
        "send pid answer": READY,
        "stop": STOPPING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    READY: {
        "pid request": READY,
        "send pid answer": READY,
        "request": WORKING,
        # A STOP or PONG that crossed the end of its stream.
        "cancel": READY,
        "pong": READY,
        "stop": STOPPING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    WORKING: {
        "send answer": READY,
        "send error": READY,
        "send stop answer": READY,
        "send chunk": STREAMING,
        # Late ones of an earlier stream, and a server that will not wait for the job at hand.
        "cancel": WORKING,
        "pong": WORKING,
        "stop": WORKING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    STREAMING: {
        "send chunk": STREAMING,
        "send answer": READY,
        "send error": READY,
        "cancel": STREAMING,
        "pong": STREAMING,
        "stop": STREAMING,
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    STOPPING: {
        "end of stream": DEAD,
        "send failed": DEAD,
    },
    DEAD: {
        "end of stream": DEAD,
        "send failed": DEAD,
    },
}

# Half the price of calling the class, where it is paid for every job.
_new_tuple = tuple.__new__

_PONG_FRAME = encode_frame(b"", stream=PONG)
_CANCEL_FRAME = encode_frame(b"", stream=STOP)


class _Conversation:
    """What both sides share: the state, the decoder, and the one place where an event becomes a state."""

    __slots__ = ("_decoder", "_end_reported", "_error", "_table", "state")

    def __init__(self, table: Table, payload_cap: int, strict_version: bool) -> None:
        self.state = BOOTING
        self._table = table
        self._decoder = FrameDecoder(payload_cap, strict_version)
        self._error: RemoteProtocolError | None = None
        self._end_reported = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state.value}, {self._decoder.buffered} bytes unread>"

    @property
    def missing(self) -> int:
        """Bytes until the next frame is whole: how much a reader may ask for at least."""
        return self._decoder.missing

    def receive_data(self, data: Buffer) -> None:
        """Stores what was received; b"" says that the stream ended."""
        if data:
            self._decoder.feed(data)
        else:
            self._decoder.feed_eof()

    def pending_bytes(self, limit: int = 256) -> bytes:
        """What lies unread, for the log of a broken conversation."""
        return self._decoder.pending_bytes(limit)

    def send_failed(self) -> None:
        """Says that a write did not go through as a whole: nothing more may be sent."""
        self.state = self._table[self.state]["send failed"]

    def _do(self, event: str) -> None:
        """Takes the transition of something this side does. Raises LocalProtocolError."""
        after = self._table[self.state].get(event)
        if after is None:
            raise LocalProtocolError(f"{event!r} is not allowed while {self.state.value}")
        self.state = after

    def _hear(self, event: str) -> None:
        """Takes the transition of something the peer did. Raises RemoteProtocolError."""
        after = self._table[self.state].get(event)
        if after is None:
            raise RemoteProtocolError(f"{event!r} came while {self.state.value}")
        self.state = after

    def _next_frame(self) -> Frame | None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._decoder.next_frame()

    def _end_of_stream(self) -> Ended | None:
        """Ended, once, when nothing more can come."""
        if self._end_reported or not self._decoder.at_clean_eof:
            return None
        self._end_reported = True
        self._hear("end of stream")
        return Ended()

    def _broken(self, error: RemoteProtocolError) -> RemoteProtocolError:
        self._error = error
        self.state = DEAD
        return error


class ServerConversation(_Conversation):
    """The server's side. `stream_cancelled` says that `cancel_stream` was sent in the stream under way."""

    __slots__ = ("_chunk_count", "_pid_requests", "stream_cancelled")

    def __init__(self, payload_cap: int = DEFAULT_PAYLOAD_CAP, strict_version: bool = True) -> None:
        super().__init__(SERVER_TRANSITIONS, payload_cap, strict_version)
        self._chunk_count = 0
        self._pid_requests = 0
        self.stream_cancelled = False

    def start(self, pid: int) -> bytes:
        """The pid request: the first frame to a worker, later a probe of an idle one."""
        self._do("send pid")
        self._pid_requests += 1
        return encode_pid(pid)

    def send_request(self, context: bytes, body: bytes, flags: int = 0) -> bytes:
        """One job. Raises LocalProtocolError when one is under way, or when there is nothing in this one."""
        if self.state is not READY:
            self._do("send request")  # raises: only READY has this event
        frame = encode_payload(context, body, flags)
        self.state = WORKING
        self._chunk_count = 0
        self.stream_cancelled = False
        return frame

    def stop(self) -> bytes:
        """Asks the worker to leave its loop; only between jobs."""
        self._do("send stop")
        return encode_stop()

    def cancel_stream(self) -> bytes:
        """Tells the worker that nobody wants the rest; go on reading until the answer ends."""
        self._do("send cancel")
        self.stream_cancelled = True
        return _CANCEL_FRAME

    def pong(self) -> bytes:
        """Answers a chunk that carried a ping."""
        self._do("send pong")
        return _PONG_FRAME

    def next_event(self) -> ServerEvent | None:
        """What the worker said next, or None when more bytes are needed. Raises RemoteProtocolError."""
        try:
            frame = self._next_frame()
            if frame is None:
                return self._end_of_stream()
            flags, stream, _, _ = frame
            if flags & (CONTROL | ERROR) or stream & STREAM or self.state is not WORKING:
                return self._other_event(frame)
            context, body = split_payload(frame)
            if context == STOP_ANSWER_CONTEXT and not body:
                self._hear("stop answer")
                return StopRequested()
            self.state = READY  # the table's ("answer" while WORKING), without looking it up for every job
            event: Response = _new_tuple(Response, (context, body, flags))
            return event
        except RemoteProtocolError as error:
            raise self._broken(error) from None

    def _other_event(self, frame: Frame) -> ServerEvent:
        """Everything but the plain answer to a request."""
        if self.state is BOOTING or (frame.flags & CONTROL and self.state is READY):
            return self._pid_answer(frame)
        if frame.flags & CONTROL:
            raise RemoteProtocolError(f"a control frame came while {self.state.value}")
        if frame.flags & ERROR:
            in_stream = self.state is STREAMING
            self._hear("error answer")
            return WorkerError(frame.payload.decode("utf-8", "replace"), in_stream)
        if frame.stream & STREAM:
            self._hear("chunk")
            context, body = split_payload(frame)
            self._chunk_count += 1
            return StreamChunk(
                context, body, frame.flags, bool(frame.stream & PING) and self._chunk_count > 1
            )
        self._hear("answer")
        context, body = split_payload(frame)
        return Response(context, body, frame.flags)

    def _pid_answer(self, frame: Frame) -> WorkerReady:
        if not self._pid_requests:
            raise RemoteProtocolError(f"the worker spoke unasked while {self.state.value}")
        pid = check_handshake(frame)
        self._pid_requests -= 1
        self._hear("pid answer")
        return WorkerReady(pid)


class WorkerConversation(_Conversation):
    """The worker's side. `stop_asked` says that the server wants the worker to end after the job at hand."""

    __slots__ = ("stop_asked", "stream_cancelled")

    def __init__(self, payload_cap: int = DEFAULT_PAYLOAD_CAP, strict_version: bool = True) -> None:
        super().__init__(WORKER_TRANSITIONS, payload_cap, strict_version)
        self.stop_asked = False
        self.stream_cancelled = False

    def answer_pid(self, pid: int) -> bytes:
        """The answer to PidRequested."""
        self._do("send pid answer")
        return encode_pid_answer(pid)

    def respond(self, context: bytes, body: bytes, flags: int = 0) -> bytes:
        """The answer to a request, or the end of a streamed one."""
        if context == STOP_ANSWER_CONTEXT and not body:
            raise LocalProtocolError(
                "this very answer asks the server to stop the worker: use request_stop()"
            )
        frame = encode_answer(context, body, flags)
        self._do("send answer")
        return frame

    def send_chunk(self, context: bytes, body: bytes, flags: int = 0, ping: bool = False) -> bytes:
        """A part of the answer, more will follow; `ping` asks the server for a sign of life."""
        frame = encode_answer(context, body, flags, STREAM | PING if ping else STREAM)
        self._do("send chunk")
        return frame

    def error(self, text: str) -> bytes:
        """Says that the job failed; the worker lives on."""
        self._do("send error")
        return encode_frame(text.encode("utf-8", "replace"), flags=ERROR)

    def request_stop(self) -> bytes:
        """Gives the job back and asks to be stopped."""
        self._do("send stop answer")
        return encode_answer(STOP_ANSWER_CONTEXT, b"")

    def next_event(self) -> WorkerEvent | None:
        """What the server wants next, or None when more bytes are needed. Raises RemoteProtocolError."""
        try:
            while True:
                frame = self._next_frame()
                if frame is None:
                    return self._end_of_stream()
                event = self._event(frame)
                if event is not None:
                    return event
        except RemoteProtocolError as error:
            raise self._broken(error) from None

    def _event(self, frame: Frame) -> WorkerEvent | None:
        """The event of a frame; None for a STOP or PONG that came too late to mean anything."""
        if frame.flags & CONTROL:
            return self._control(frame)
        if frame.stream & STOP:
            self._hear("cancel")
            if self.state is not STREAMING:
                return None
            self.stream_cancelled = True
            return StreamCancelled()
        if frame.stream & PONG:
            self._hear("pong")
            return PongReceived() if self.state is STREAMING else None
        self._hear("request")
        self.stream_cancelled = False
        context, body = split_payload(frame)
        return Request(context, body, frame.flags)

    def _control(self, frame: Frame) -> WorkerEvent:
        message = parse_control(frame.payload)
        if isinstance(message, PidRequest):
            self._hear("pid request")
            return PidRequested(message.pid)
        self._hear("stop")
        self.stop_asked = True
        return StopAsked()
