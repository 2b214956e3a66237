"""An HTTP/2 client for tests of real servers: bare frames over a blocking socket, so that it can misbehave as well.

It keeps to the server's windows when it uploads, gives the server all the room there is for answers, and reads on after
GOAWAY, as an honest client does. One thread, no events: `ask` sends, `wait` reads until answers are complete.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST = (1 << 31) - 1
FRAME_BYTES = 16_384


class Ended(Exception):
    """The server has ended the connection."""


@dataclass
class Reply:
    """What came on one stream."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.ended or self.reset is not None


class Http2Client:
    """One connection; close it with `close`."""

    def __init__(
        self, address: tuple[str, int], context: ssl.SSLContext | None = None, timeout: float = 30.0
    ) -> None:
        sock: socket.socket = socket.create_connection(address, timeout)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        self.sock = sock
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.replies: dict[int, Reply] = {}
        self.goaways: list[tuple[int, int]] = []
        self.settings: dict[int, int] = {}
        self._received = bytearray()
        self._next = 1
        self._window = 65_535
        self._windows: dict[int, int] = {}
        self._initial_window = 65_535
        increment = WindowUpdateFrame(0)
        increment.window_increment = LARGEST - 65_535
        settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: LARGEST})
        self.send(PREFACE + settings.serialize() + increment.serialize())
        while not self.settings:
            self.receive()

    def send(self, data: bytes) -> None:
        """Send bytes. Raises Ended."""
        try:
            self.sock.sendall(data)
        except (ConnectionError, ssl.SSLError) as error:
            raise Ended(str(error)) from error

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def ask(self, path: str = "/", method: str = "GET", body: bytes = b"", *more: tuple[str, str]) -> int:
        """Send a request, its body as far as the server's windows let it; returns its stream. Raises Ended."""
        number = self._next
        self._next += 2
        self.replies[number] = Reply()
        self._windows[number] = self._initial_window
        fields = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *more]
        head = HeadersFrame(number, self.encoder.encode(fields), flags=("END_HEADERS",))
        if not body:
            head.flags.add("END_STREAM")
        self.send(head.serialize())
        view = memoryview(body)
        while view and not self.replies[number].over:
            size = min(len(view), FRAME_BYTES, self._window, self._windows[number])
            if size <= 0:
                self.receive()
                continue
            frame = DataFrame(number, bytes(view[:size]))
            view = view[size:]
            if not view:
                frame.flags.add("END_STREAM")
            self._window -= size
            self._windows[number] -= size
            self.send(frame.serialize())
        return number

    def wait(self, *numbers: int, seconds: float = 30.0) -> list[Reply]:
        """Read until the answers are complete; returns them. Raises Ended."""
        deadline = time.monotonic() + seconds
        while not all(self.replies[number].over for number in numbers):
            assert time.monotonic() < deadline, [n for n in numbers if not self.replies[n].over]
            self.receive()
        return [self.replies[number] for number in numbers]

    def get(self, path: str = "/", method: str = "GET", body: bytes = b"") -> Reply:
        """Ask and wait."""
        return self.wait(self.ask(path, method, body))[0]

    def receive(self) -> None:
        """Take what comes next. Raises Ended."""
        try:
            data = self.sock.recv(1 << 20)
        except (ConnectionError, ssl.SSLError) as error:
            raise Ended(str(error)) from error
        if not data:
            raise Ended
        received = self._received
        received += data
        position = 0
        while len(received) - position >= 9:
            frame, length = Frame.parse_frame_header(memoryview(bytes(received[position : position + 9])))
            if len(received) - position < 9 + length:
                break
            frame.parse_body(memoryview(bytes(received[position + 9 : position + 9 + length])))
            position += 9 + length
            self._on_frame(frame)
        del received[:position]

    def drain(self) -> None:
        """Read until the server ends the connection."""
        try:
            while True:
                self.receive()
        except Ended:
            pass

    def _on_frame(self, frame: Frame) -> None:
        reply = self.replies.setdefault(frame.stream_id, Reply()) if frame.stream_id else Reply()
        if isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                self._on_settings(frame)
        elif isinstance(frame, PingFrame):
            if "ACK" not in frame.flags:
                self.send(PingFrame(0, frame.opaque_data, flags=("ACK",)).serialize())
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.error_code, frame.last_stream_id))
        elif isinstance(frame, RstStreamFrame):
            reply.reset = frame.error_code
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id:
                self._windows[frame.stream_id] = (
                    self._windows.get(frame.stream_id, 0) + frame.window_increment
                )
            else:
                self._window += frame.window_increment
        elif isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            fields = dict(_plain(self.decoder.decode(frame.data, raw=True)))
            if b":status" in fields and not fields[b":status"].startswith(b"1"):
                reply.status = int(fields.pop(b":status"))
                reply.headers = fields
        elif isinstance(frame, DataFrame):
            reply.body += frame.data
        if isinstance(frame, HeadersFrame | DataFrame) and "END_STREAM" in frame.flags:
            reply.ended = True

    def _on_settings(self, frame: SettingsFrame) -> None:
        self.settings.update(frame.settings)
        window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE)
        if window is not None:
            for number in self._windows:
                self._windows[number] += window - self._initial_window
            self._initial_window = window
        self.send(SettingsFrame(0, flags=("ACK",)).serialize())


def _plain(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in fields]
