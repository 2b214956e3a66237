"""A worker: one request at a time from the server, exactly one answer to each.

The loop is `while (payload := worker.wait_payload()) is not None: worker.respond(...)`. In between the
worker silently does what the protocol asks (wire protocol 2): it answers the pid handshake whenever it
comes, skips a PONG or a stream STOP that arrives late, ends on the stop control and on end of stream.

Ending is always the same: `wait_payload` returns None, and the program leaves with status 0. SIGTERM and
SIGINT lead there too, after the job at hand. A job that the server had already sent when the signal came is
still done; a further one is handed back (the server runs it on another worker), so that nothing is lost.
Waiting, the worker holds no thread, no timer and no buffer.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, Union

from trailboss_worker.protocol import frames
from trailboss_worker.protocol.control import (
    STOP_ANSWER_CONTEXT,
    PidRequest,
    encode_pid_answer,
    parse_control,
)
from trailboss_worker.protocol.errors import LocalProtocolError, RemoteProtocolError
from trailboss_worker.protocol.payload import split_payload
from trailboss_worker.sdk.relay import Relay, open_relay, wait_ready
from trailboss_worker.sdk.signals import StopSignals, offer_stack

PAYLOAD_CAP_BYTES = 0xFFFFFFFF  # the server is trusted and may send bodies up to its own max_request_size
READ_BYTES_MIN = 64 * 1024
READ_BYTES_MAX = 1024 * 1024
PING_EVERY_FRAMES = 5
# How long a worker that is stopping waits for the rest of a frame, or for the server's last word.
STOP_LINGER_SECONDS = 1.0
# How long it listens before it leaves: a busy server has sent the next request within that time, which can still
# be handed back, whereas one that is written to a worker on its way out fails.
LEAVE_LINGER_SECONDS = 0.05

Bytes = Union[bytes, bytearray, memoryview, str]  # noqa: UP007 - evaluated at run time by Python 3.9


class Payload(NamedTuple):
    """One request: its context, its body, and the flags byte that tells the context's codec."""

    context: bytes
    body: bytes
    flags: int


class _State(Enum):
    IDLE = "idle"
    BUSY = "busy"
    STREAMING = "streaming"


class Worker:
    """Receives payloads from the server and answers them. Blocking; belongs to one thread.

    Raises RelayError when the relay that RR_RELAY names is not there. With the relay `pipes` standard output
    is redirected to standard error from here on. Stop signals are handled when made in the main thread,
    except those for which the application has installed a handler already.
    """

    def __init__(
        self,
        relay: Relay | None = None,
        *,
        payload_cap_bytes: int = PAYLOAD_CAP_BYTES,
        handle_signals: bool = True,
    ) -> None:
        self._relay = open_relay() if relay is None else relay
        self._decoder = frames.FrameDecoder(payload_cap_bytes)
        self._takes_files = False
        self._state = _State.IDLE
        self._over = False  # nothing more will come from the server, and nothing more can be said to it
        self._stopping = False
        self._took_last = False  # while stopping: the last payload to be done is, or has been, at hand
        self._handed_back = False
        self._postponed: deque[frames.Frame] = deque()  # control frames that came inside a stream
        self._parts_sent = 0
        self._ping_unanswered = False
        self._stream_refused = False
        self._poll = select.poll()
        self._poll.register(self._relay.read_fd, select.POLLIN)
        self._stack_signal = offer_stack()
        self._signals = StopSignals(self.request_stop) if handle_signals else None
        if self._signals is not None:
            self._poll.register(self._signals.wake_fd, select.POLLIN)

    def __repr__(self) -> str:
        remark = ", ended" if self._over else ", stopping" if self._stopping else ""
        return f"<Worker {self._state.value}{remark} on {self._relay!r}>"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """True once no further payload can come: the loop is over."""
        return self._over and self._state is _State.IDLE

    @property
    def stopping(self) -> bool:
        """True once a signal or `request_stop` asked this worker to end after the job at hand."""
        return self._stopping

    def fileno(self) -> int:
        """The descriptor to wait on (readable) before `receive_nowait`, for event loops."""
        return self._relay.read_fd

    def wait_payload(self) -> Payload | None:
        """The next payload, however long it takes; None when the worker should end.

        Raises LocalProtocolError when the previous payload has not been answered, RemoteProtocolError when
        the server speaks another protocol.
        """
        return self._receive(None)

    def receive_nowait(self) -> Payload | None:
        """The next payload if it is here; None when more bytes are needed, or when `ended` is true.

        A worker that is stopping may block here for up to a second or two, to part from the server in order.
        """
        return self._receive(0)

    def respond(self, body: Bytes = b"", context: Bytes = b"", flags: int = 0) -> None:
        """Answer the payload at hand, or end the stream begun with `respond_part`.

        Raises LocalProtocolError when there is nothing to answer. A server that is gone is no error here:
        the next wait returns None.
        """
        self._send_answer(_as_bytes(body), _as_bytes(context), flags, 0)
        self._answered()

    def error(self, text: str) -> None:
        """Answer the payload at hand with an error text; the server keeps this worker."""
        self._require_payload()
        encoded = text.encode("utf-8", "backslashreplace")
        self._send(frames.encode_header(len(encoded), flags=frames.ERROR), encoded)
        self._answered()

    def stop(self) -> None:
        """Hand the payload at hand back and ask to be replaced: the server runs it on another worker."""
        if self._state is _State.STREAMING:
            raise LocalProtocolError("a stream has begun; only its payload's answer can follow")
        self.respond(b"", STOP_ANSWER_CONTEXT)

    def respond_part(self, body: Bytes, context: Bytes = b"", flags: int = 0) -> bool:
        """Send one piece of a longer answer; False when the server wants no more (then end with `respond`).

        Only the first piece needs a context. For HTTP alone; other modes refuse streams.
        """
        self._require_payload()
        if self._state is _State.STREAMING:
            self._listen_inside_stream()
            if self._stream_refused or self._over:
                return False
        stream = frames.STREAM
        if self._ping_is_due():
            stream |= frames.PING
            self._ping_unanswered = True
        self._send_answer(_as_bytes(body), _as_bytes(context), flags, stream)
        self._state = _State.STREAMING
        self._parts_sent += 1
        return True

    def stream(self, chunks: Iterable[Bytes], context: Bytes = b"", flags: int = 0) -> bool:
        """Answer with all chunks, each sent as soon as it is there; False when the server stopped it early.

        A generator's return value, if any, is the body of the last frame; a stopped generator is closed.
        What the iterable raises comes out here; then `error` is the answer still to be given.
        """
        iterator = iter(chunks)
        while True:
            try:
                chunk = next(iterator)
            except StopIteration as end:
                self.respond(end.value or b"", b"" if self._parts_sent else context, flags)
                return True
            if not self.respond_part(chunk, b"" if self._parts_sent else context, flags):
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
                self.respond()
                return False

    def request_stop(self) -> None:
        """End after the payload at hand, as SIGTERM does. Safe to call from a signal handler."""
        if self._state is not _State.IDLE:
            self._took_last = True
        self._stopping = True

    def close(self) -> None:
        """Close the relay and give the signals back; a second call does nothing."""
        self._over = True
        if self._signals is not None:
            self._signals.close()
        self._relay.close()

    # Receiving

    def _receive(self, timeout_ms: int | None) -> Payload | None:
        if self._state is not _State.IDLE:
            raise LocalProtocolError("the previous payload has not been answered yet")
        while not self._over:
            payload = self._next_payload()
            if payload is not None:
                if self._accept():
                    return payload
            elif not self._over and not self._fill(timeout_ms):
                break
        return None

    def _next_payload(self) -> Payload | None:
        """The next payload among the bytes received; frames for the worker itself are dealt with."""
        while not self._over:
            frame = self._postponed.popleft() if self._postponed else self._decoder.next_frame()
            if frame is None:
                return None
            if frame.flags & frames.CONTROL:
                self._on_control(frame)
            elif not frame.stream & (frames.STOP | frames.PONG):
                return self._payload_of(frame)
        return None

    def _payload_of(self, frame: frames.Frame) -> Payload | None:
        context, body = split_payload(frame)
        return Payload(context, body, frame.flags)

    def _on_control(self, frame: frames.Frame) -> None:
        if isinstance(parse_control(frame.payload), PidRequest):
            answer = encode_pid_answer(os.getpid(), files=self._takes_files, stack_signal=self._stack_signal)
            self._send(answer)
        else:
            self._over = True

    def _accept(self) -> bool:
        """Take a payload, or hand it back when this worker is stopping and has had its last one."""
        self._state = _State.BUSY
        if not self._stopping:
            return True
        if not self._took_last:
            self._took_last = True
            return True
        self._handed_back = True
        self.stop()
        return False

    def _fill(self, timeout_ms: int | None) -> bool:
        """Wait for bytes and take them; False when none came in time. May end the worker."""
        if self._stopping:
            unfinished = self._handed_back or self._decoder.buffered
            timeout_ms = int(1000 * (STOP_LINGER_SECONDS if unfinished else LEAVE_LINGER_SECONDS))
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout_ms)]
        if self._signals is not None and self._signals.wake_fd in ready:
            self._signals.drain()
        if self._relay.read_fd in ready:
            data = self._relay.receive(min(max(self._decoder.missing, READ_BYTES_MIN), READ_BYTES_MAX))
            if data:
                self._decoder.feed(data)
                return True
            self._over = True
        elif not ready and self._stopping:
            self._over = True
        return bool(ready)

    # Answering

    def _require_payload(self) -> None:
        if self._state is _State.IDLE:
            raise LocalProtocolError("there is no payload to answer; each one is answered exactly once")

    def _send_answer(self, body: bytes, context: bytes, flags: int, stream: int) -> None:
        self._require_payload()
        if flags & (frames.CONTROL | frames.ERROR):
            raise LocalProtocolError(
                f"flags 0x{flags:02x} are not those of an answer; use error() for errors"
            )
        header = frames.encode_header(
            len(context) + len(body), flags=flags, stream=stream, options=(len(context),)
        )
        self._send(header, context, body)

    def _send(self, *parts: bytes) -> None:
        if self._over:
            return
        try:
            self._relay.send(*parts)
        except (BrokenPipeError, ConnectionResetError):
            self._over = True  # the server is gone; there is nobody to tell

    def _answered(self) -> None:
        self._state = _State.IDLE
        self._parts_sent = 0
        self._ping_unanswered = False
        self._stream_refused = False

    # Streaming

    def _ping_is_due(self) -> bool:
        """Every fifth frame on pipes asks whether the server still listens, as released workers do."""
        return (
            self._relay.kind == "pipes"
            and self._parts_sent > 0
            and self._parts_sent % PING_EVERY_FRAMES == 0
            and not self._ping_unanswered
        )

    def _listen_inside_stream(self) -> None:
        """Take what the server has said meanwhile: STOP, PONG, or controls for after the stream."""
        while True:
            for frame in self._decoder.next_frames():
                self._on_frame_inside_stream(frame)
            if not wait_ready(self._relay.read_fd, select.POLLIN, 0):
                return
            data = self._relay.receive(READ_BYTES_MIN)
            if not data:
                self._over = True
                return
            self._decoder.feed(data)

    def _on_frame_inside_stream(self, frame: frames.Frame) -> None:
        if frame.flags & frames.CONTROL:
            self._postponed.append(frame)
        elif frame.stream & frames.STOP:
            self._stream_refused = True
        elif frame.stream & frames.PONG:
            self._ping_unanswered = False
        else:
            raise RemoteProtocolError("the server sent a payload before the answer to the previous one")


def _as_bytes(value: Bytes) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    return value if isinstance(value, bytes) else bytes(value)
