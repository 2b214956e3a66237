"""HTTP/2 clients for a bench: one that is the library h2 and keeps to the rules, one of bare frames that need not."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import h2.connection
import h2.events
from front_bench import Bench
from h2.config import H2Configuration
from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from trailboss.plugins.http.h2 import H2Connection

Fields = list[tuple[bytes, bytes]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def get(path: bytes = b"/", *more: tuple[bytes, bytes], method: bytes = b"GET") -> Fields:
    """Return the fields of a request."""
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", path),
        *more,
    ]


@dataclass
class Result:
    """What came back on one stream."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    interim: list[int] = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    def on_fields(self, fields: Fields) -> None:
        """Take a head, an interim one, or trailers."""
        found = dict(fields)
        if b":status" not in found:
            self.trailers = fields
            return
        status = int(found.pop(b":status"))
        if status < 200:
            self.interim.append(status)
        else:
            self.status, self.headers = status, found


class Wire:
    """The client's end of a connection to a front, turned by hand."""

    def __init__(self, bench: Bench) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        bench.keep(theirs)
        self.bench = bench
        self.sock = theirs
        self.ended = False
        self.results: dict[int, Result] = {}
        self.goaways: list[tuple[int, int]] = []
        self.reading = True
        self.connection = H2Connection(bench.front, ours, "local:80", "192.0.2.1", 4711)

    def result(self, number: int) -> Result:
        """Return what came back on a stream."""
        return self.results.setdefault(number, Result())

    def on_bytes(self, data: bytes) -> None:
        """Take what came in."""
        raise NotImplementedError

    def send(self, data: bytes) -> None:
        """Send bytes, the front taking its turns meanwhile, and take what comes back."""
        view = memoryview(data)
        tries = 0
        while view and not self.ended:
            try:
                view = view[self.sock.send(view) :]
                tries = 0
            except BlockingIOError:
                tries += 1
                assert tries < 1000, "the front takes nothing any more"
            except OSError:
                break
            self.bench.settle()
            self.take()
        self.bench.settle()
        self.take()

    def take(self) -> None:
        """Take everything that has come in."""
        while self.reading and not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.ended = True
                return
            self.on_bytes(data)
            self.bench.settle()


class Client(Wire):
    """A client that is the library h2: what the front sends has to be right for it."""

    def __init__(self, bench: Bench, **settings: int) -> None:
        super().__init__(bench)
        self.protocol = h2.connection.H2Connection(
            H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self.protocol.initiate_connection()
        if settings:
            self.protocol.update_settings(
                {getattr(h2.settings.SettingCodes, name): value for name, value in settings.items()}
            )
        self.acknowledges = True
        self.turn()

    def turn(self) -> None:
        """Send what there is and take what comes."""
        self.send(self.protocol.data_to_send())
        while data := self.protocol.data_to_send():
            self.send(data)

    def ask(self, fields: Fields, body: bytes | None = None, trailers: Fields | None = None) -> int:
        """Send a request and return its stream."""
        number = self.protocol.get_next_available_stream_id()
        self.protocol.send_headers(number, fields, end_stream=body is None and trailers is None)
        if body is not None:
            for start in range(0, len(body), 16_384):
                piece = body[start : start + 16_384]
                if self.protocol.local_flow_control_window(number) < len(piece):
                    self.turn()
                last = start + 16_384 >= len(body) and trailers is None
                self.protocol.send_data(number, piece, end_stream=last)
        if trailers is not None:
            self.protocol.send_headers(number, trailers, end_stream=True)
        self.turn()
        return number

    def on_bytes(self, data: bytes) -> None:
        """Give it to the library, which raises where something is wrong."""
        for event in self.protocol.receive_data(data):
            self.on_event(event)

    def on_event(self, event: h2.events.Event) -> None:
        """Take note of an event."""
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append((int(event.error_code or 0), event.last_stream_id or 0))
            return
        number = getattr(event, "stream_id", None)
        if not number:
            return
        result = self.result(number)
        if isinstance(
            event,
            h2.events.ResponseReceived | h2.events.InformationalResponseReceived | h2.events.TrailersReceived,
        ):
            result.on_fields([(bytes(name), bytes(value)) for name, value in event.headers or ()])
        elif isinstance(event, h2.events.DataReceived):
            result.body += event.data or b""
            if self.acknowledges:
                self.protocol.acknowledge_received_data(event.flow_controlled_length or 0, number)
        elif isinstance(event, h2.events.StreamEnded):
            result.ended = True
        elif isinstance(event, h2.events.StreamReset):
            result.reset = int(event.error_code or 0)


class RawClient(Wire):
    """A client that says what the test wants, whatever the protocol thinks of it."""

    def __init__(self, bench: Bench, *, begin: bool = True) -> None:
        super().__init__(bench)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.received = b""
        self._block = b""
        if begin:
            ack = SettingsFrame(0)
            ack.flags.add("ACK")
            self.send(PREFACE + SettingsFrame(0).serialize() + ack.serialize())

    def request(self, number: int, fields: Fields | None = None, *flags: str) -> bytes:
        """Return the bytes of a request's HEADERS; without flags it ends there."""
        frame = HeadersFrame(number, self.encoder.encode(fields or get()))
        for flag in flags or ("END_HEADERS", "END_STREAM"):
            frame.flags.add(flag)
        return bytes(frame.serialize())

    def on_bytes(self, data: bytes) -> None:
        """Take frames apart."""
        self.received += data
        while len(self.received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.received[:9]))
            if len(self.received) < 9 + length:
                return
            frame.parse_body(memoryview(self.received[9 : 9 + length]))
            self.received = self.received[9 + length :]
            self.on_frame(frame)

    def on_frame(self, frame: Frame) -> None:
        """Take note of a frame."""
        self.frames.append(frame)
        if isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.error_code, frame.last_stream_id))
        elif isinstance(frame, RstStreamFrame):
            self.result(frame.stream_id).reset = frame.error_code
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            self._block += frame.data
            if "END_HEADERS" in frame.flags:
                fields = [(bytes(n), bytes(v)) for n, v in self.decoder.decode(self._block, raw=True)]
                self._block = b""
                self.result(frame.stream_id).on_fields(fields)
            if "END_STREAM" in frame.flags:
                self.result(frame.stream_id).ended = True
        elif isinstance(frame, DataFrame):
            self.result(frame.stream_id).body += frame.data
            if "END_STREAM" in frame.flags:
                self.result(frame.stream_id).ended = True


def frames_of(client: RawClient, kind: type[Frame]) -> Sequence[Frame]:
    """Return the frames of one kind that came in."""
    return [frame for frame in client.frames if isinstance(frame, kind)]


def window_update(number: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE."""
    frame = WindowUpdateFrame(number)
    frame.window_increment = increment
    return bytes(frame.serialize())
