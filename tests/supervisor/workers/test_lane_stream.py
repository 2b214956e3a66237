"""Answers in parts over a socket pair: order, back-pressure, pings, stopping, and everything that cuts a stream."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.figures import Histogram
from trailboss.reactor import Reactor
from trailboss.workers.lane import Breach, Exec, FileBody, Lane, LaneOwner, Ticket, request_header
from trailboss.workers.outcome import Answer, ExecTimeout, Outcome, SoftError
from trailboss_worker.protocol.frames import (
    CONTROL,
    ERROR,
    PING,
    PONG,
    STOP,
    STREAM,
    Frame,
    FrameDecoder,
    encode_frame,
)

Part = tuple[int, bytes, bytes]


class Owner(LaneOwner):
    """Notes what the lane reports."""

    def __init__(self) -> None:
        self.breaches: list[Breach] = []
        self.spent = 0
        self.overdue: list[Exec] = []

    def lane_broken(self, breach: Breach) -> None:
        self.breaches.append(breach)

    def lane_spent(self) -> None:
        self.spent += 1

    def exec_overdue(self, exec_: Exec, begun: bytes) -> None:
        self.overdue.append(exec_)


class Notes:
    """What a lane and a ticket need of a pool; it only notes."""

    name = "http"

    def __init__(self) -> None:
        self.executions = 0
        self.exec_seconds = Histogram()
        self.idle: list[Lane] = []
        self.gone: list[Lane] = []
        self.resubmitted: list[Exec] = []
        self.lane: Lane | None = None

    def lane_idle(self, lane: Lane) -> None:
        self.idle.append(lane)

    def lane_gone(self, lane: Lane) -> None:
        self.gone.append(lane)

    def resubmit(self, exec_: Exec) -> None:
        self.resubmitted.append(exec_)

    def withdraw(self, ticket: Ticket) -> bool:
        return False

    def lane_of(self, exec_: Exec) -> Lane | None:
        return self.lane


class Scene:
    """A lane with a ticket under way, and the worker's end of its relay."""

    def __init__(self, exec_ttl: float = 0.0, body: bytes = b"body") -> None:
        self.reactor = Reactor()
        ours, self.worker = socket.socketpair()
        ours.setblocking(False)
        self.worker.settimeout(5)
        self.fd = ours.detach()
        self.owner = Owner()
        self.pool = Notes()
        self.outcomes: list[Outcome] = []
        self.parts: list[Part] = []
        #: What the receiver says to each part; True when there is nothing left.
        self.verdicts: list[bool] = []
        self.lane = Lane(
            self.reactor,
            self.pool,  # type: ignore[arg-type]
            self.owner,
            4242,
            self.fd,
            self.fd,
            payload_cap=1 << 20,
            exec_ttl=exec_ttl,
            executions_max=0,
        )
        self.pool.lane = self.lane
        self.lane.attach()
        self.ticket = self.submit(body)

    def submit(self, body: bytes = b"body") -> Ticket:
        """Give the lane an exec that takes a stream."""
        ticket = Ticket(self.pool, b"ctx", body, 8, self.outcomes.append, "GET /", self.on_part)  # type: ignore[arg-type]
        assert self.lane.start(ticket)
        if len(body) < 1000:
            self.heard()
        return ticket

    def on_part(self, flags: int, context: bytes, body: bytes) -> bool:
        self.parts.append((flags, context, body))
        return self.verdicts.pop(0) if self.verdicts else True

    def say(self, data: bytes, piece: int = 1 << 20) -> None:
        """The worker writes, the lane reads, piece by piece."""
        for position in range(0, len(data), piece):
            if self.lane.closed:
                return
            self.worker.sendall(data[position : position + piece])
            self.lane.on_readable()

    def run_soon(self) -> None:
        """What was put off until after the batch."""
        self.reactor._run_soon()

    def heard(self) -> list[int]:
        """Stream bits of the frames that the worker got since the last look."""
        decoder = FrameDecoder()
        self.worker.setblocking(False)
        try:
            while True:
                decoder.feed(self.worker.recv(65536))
        except BlockingIOError:
            pass
        self.worker.settimeout(5)
        return [frame.stream for frame in decoder.next_frames()]

    def later(self, seconds: float) -> None:
        """Let time pass for the wheel."""
        self.reactor.now += seconds
        self.reactor.wheel.expire(self.reactor.now)

    def close(self) -> None:
        """Release everything."""
        self.lane.detach()
        self.worker.close()
        os.close(self.fd)
        self.reactor.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A scene without limits."""
    scene = Scene()
    yield scene
    scene.close()


def part(body: bytes, context: bytes = b"", bits: int = STREAM, flags: int = 8) -> bytes:
    """One frame of a stream."""
    return encode_frame(context + body, flags=flags, stream=bits, options=(len(context),))


END = part(b"", bits=0, flags=0)
HEAD = b'{"status":200,"headers":{}}'


@pytest.mark.parametrize("piece", [1, 7, 16, 33, 1000])
def test_parts_in_order(scene: Scene, piece: int) -> None:
    """Parts arrive one by one in order, then the last frame is the outcome, however the bytes come."""
    scene.say(part(b"one", HEAD) + part(b"two") + part(b"three") + END, piece)
    assert scene.parts == [(8, HEAD, b"one"), (8, b"", b"two"), (8, b"", b"three")]
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert scene.pool.idle == [scene.lane]
    assert scene.lane.executions == 1
    assert scene.owner.breaches == []


def test_ticket_without_a_stream(scene: Scene) -> None:
    """A worker that answers in one piece is one outcome and no part, the second time by the remembered header too."""
    for _ in range(3):
        scene.say(part(b"whole", HEAD, bits=0))
        scene.submit()
    assert scene.outcomes == [Answer(8, HEAD, b"whole")] * 3
    assert scene.parts == []


def test_jobs_take_no_stream(scene: Scene) -> None:
    """An exec without a receiver of parts ends with a breach when the worker streams."""
    scene.say(END)
    assert scene.lane.start(Exec(b"ctx", b"", 4, scene.outcomes.append, "job"))
    scene.say(part(b"x"))
    assert [breach.cause for breach in scene.owner.breaches] == ["protocol violation"]


def test_pong_for_each_ping_but_the_first_frames(scene: Scene) -> None:
    """A ping in the first frame is ignored, each later one is answered at once."""
    scene.say(part(b"1", HEAD, STREAM | PING))
    assert scene.heard() == []
    scene.say(part(b"2"))
    assert scene.heard() == []
    scene.say(part(b"3", bits=STREAM | PING))
    assert scene.heard() == [PONG]
    scene.say(part(b"4", bits=STREAM | PING) + part(b"5", bits=STREAM | PING) + END)
    assert scene.heard() == [PONG, PONG]
    assert len(scene.outcomes) == 1


def test_pause_and_resume(scene: Scene) -> None:
    """After a pause nothing is handed on until the receiver resumes; then everything comes, in order."""
    scene.verdicts = [True, False]
    scene.say(part(b"1", HEAD) + part(b"2") + part(b"3") + part(b"4") + END)
    assert [body for _, _, body in scene.parts] == [b"1", b"2"]
    assert scene.outcomes == []
    scene.verdicts = [False]
    scene.ticket.resume()
    assert [body for _, _, body in scene.parts] == [b"1", b"2"]  # not before resume returns
    scene.run_soon()
    assert [body for _, _, body in scene.parts] == [b"1", b"2", b"3"]
    scene.ticket.resume()
    scene.run_soon()
    assert [body for _, _, body in scene.parts] == [b"1", b"2", b"3", b"4"]
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert scene.pool.idle == [scene.lane]


def test_pause_stops_reading(scene: Scene) -> None:
    """While the receiver wants no more, the reactor does not report the worker's output."""
    scene.verdicts = [False]
    scene.say(part(b"1", HEAD))
    scene.worker.sendall(part(b"2"))
    assert scene.reactor._epoll.poll(0) == []
    scene.ticket.resume()
    events = scene.reactor._epoll.poll(1)
    scene.reactor.dispatch(events)
    assert [body for _, _, body in scene.parts] == [b"1", b"2"]


def test_reading_during_a_pause(scene: Scene) -> None:
    """What is read although the receiver has paused, because the relay hung up, waits for it all the same."""
    scene.verdicts = [False]
    scene.say(part(b"1", HEAD))
    scene.say(part(b"2") + END)
    assert [body for _, _, body in scene.parts] == [b"1"]
    assert scene.outcomes == []
    scene.ticket.resume()
    scene.run_soon()
    assert [body for _, _, body in scene.parts] == [b"1", b"2"]
    assert scene.outcomes == [Answer(0, b"", b"")]


def test_worker_gone_during_a_pause(scene: Scene) -> None:
    """What a worker said before it closed is delivered although the receiver had paused; then the lane breaks."""
    scene.verdicts = [False]
    scene.say(part(b"1", HEAD) + part(b"2"))
    scene.worker.sendall(part(b"3") + END)
    scene.worker.shutdown(socket.SHUT_WR)
    scene.lane.on_readable()
    scene.lane.on_readable()
    assert [body for _, _, body in scene.parts] == [b"1", b"2", b"3"]
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert scene.pool.idle == []
    assert [breach.cause for breach in scene.owner.breaches] == ["closed its pipes"]


def test_worker_dead_in_a_stream(scene: Scene) -> None:
    """End of file inside a stream leaves the exec to the owner, which settles it."""
    scene.say(part(b"1", HEAD))
    scene.worker.shutdown(socket.SHUT_WR)
    scene.lane.on_readable()
    assert [breach.cause for breach in scene.owner.breaches] == ["closed its pipes"]
    assert scene.lane.current is scene.ticket
    assert scene.outcomes == []


def test_drain_hands_out_a_paused_stream(scene: Scene) -> None:
    """The last words of a worker that has exited are read whatever the receiver thinks of it."""
    scene.verdicts = [False, False, False]
    scene.say(part(b"1", HEAD) + part(b"2"))
    scene.worker.sendall(part(b"3") + END)
    scene.lane.retiring = True
    scene.lane.drain()
    assert [body for _, _, body in scene.parts] == [b"1", b"2", b"3"]
    assert len(scene.outcomes) == 1


def test_stop_is_sent_once_and_the_rest_dropped(scene: Scene) -> None:
    """A cancelled stream gets one STOP; parts that still come are dropped, the end frees the worker."""
    scene.say(part(b"1", HEAD))
    scene.ticket.cancel_stream(5.0)
    scene.ticket.cancel_stream(5.0)
    assert scene.heard() == [STOP]
    scene.say(part(b"2") + part(b"3", bits=STREAM | PING))
    assert scene.heard() == []
    assert len(scene.parts) == 1
    scene.say(END)
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert scene.pool.idle == [scene.lane]
    scene.later(10)
    assert scene.owner.breaches == []


def test_stop_waits_for_the_first_part(scene: Scene) -> None:
    """A worker that has not begun to stream is told to stop with its first part, not before."""
    scene.ticket.cancel_stream(5.0)
    assert scene.heard() == []
    scene.later(100)
    assert scene.owner.breaches == []
    scene.say(part(b"1", HEAD))
    assert scene.heard() == [STOP]
    assert scene.parts == []


def test_cancelled_before_a_plain_answer(scene: Scene) -> None:
    """A worker that answers in one piece finishes as ever."""
    scene.ticket.cancel_stream(5.0)
    scene.say(part(b"whole", HEAD, bits=0))
    assert scene.outcomes == [Answer(8, HEAD, b"whole")]
    assert scene.pool.idle == [scene.lane]
    assert scene.heard() == []


def test_stream_that_does_not_stop(scene: Scene) -> None:
    """A worker that streams on beyond stream_timeout is given up."""
    scene.say(part(b"1", HEAD))
    scene.ticket.cancel_stream(5.0)
    scene.say(part(b"2"))
    scene.later(4)
    assert scene.owner.breaches == []
    scene.later(2)
    assert [breach.cause for breach in scene.owner.breaches] == ["stream timeout"]
    assert scene.lane.current is scene.ticket  # its owner settles it


def test_kill_after(scene: Scene) -> None:
    """An exec nobody wants may be given a last limit; one that ends in time costs nothing."""
    scene.ticket.kill_after(3.0)
    scene.say(END)
    scene.later(5)
    assert scene.owner.breaches == []
    scene.submit().kill_after(3.0)
    scene.later(5)
    assert [breach.cause for breach in scene.owner.breaches] == ["stream timeout"]


def test_cancel_lifts_a_pause(scene: Scene) -> None:
    """A paused stream that is cancelled runs on, so that the worker reaches its end."""
    scene.verdicts = [False]
    scene.say(part(b"1", HEAD) + part(b"2") + part(b"3") + END)
    scene.ticket.cancel_stream(5.0)
    scene.run_soon()
    assert len(scene.parts) == 1
    assert scene.outcomes == [Answer(0, b"", b"")]


def test_error_in_a_stream(scene: Scene) -> None:
    """An ERROR frame inside a stream cuts it, and the worker is replaced."""
    scene.say(part(b"1", HEAD) + encode_frame(b"broken", flags=ERROR))
    assert [str(outcome) for outcome in scene.outcomes] == ["broken"]
    assert isinstance(scene.outcomes[0], SoftError)
    assert [breach.cause for breach in scene.owner.breaches] == ["error in a stream"]
    assert scene.lane.current is None


def test_error_instead_of_a_stream(scene: Scene) -> None:
    """An ERROR frame as the whole answer is a soft error as for any exec."""
    scene.say(encode_frame(b"no", flags=ERROR))
    assert isinstance(scene.outcomes[0], SoftError)
    assert scene.pool.idle == [scene.lane]


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("control frame", encode_frame(b'{"pid":1}', flags=CONTROL)),
        ("no option", encode_frame(b"x", flags=8, stream=STREAM)),
        ("two options", encode_frame(b"xy", flags=8, stream=STREAM, options=(1, 1))),
        ("context beyond the payload", encode_frame(b"x", flags=8, stream=STREAM, options=(2,))),
        ("text", b"Warning: something is wrong in line 12"),
    ],
)
def test_broken_frames_in_a_stream(scene: Scene, name: str, frame: bytes) -> None:
    """Anything that is no part breaks the lane, and no byte of it is handed on."""
    scene.say(part(b"1", HEAD) + frame)
    assert len(scene.parts) == 1, name
    assert len(scene.owner.breaches) == 1
    assert scene.outcomes == []


def test_more_than_the_end(scene: Scene) -> None:
    """A frame behind the last one is a breach; the stream before it counts."""
    scene.say(part(b"1", HEAD) + END + part(b"2"))
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert [breach.cause for breach in scene.owner.breaches] == ["protocol violation"]


def test_stop_text_at_the_end_of_a_stream(scene: Scene) -> None:
    """Only the first frame of an answer can ask for a replacement."""
    for _ in range(2):
        scene.say(part(b"1", HEAD))
        scene.say(part(b"", b'{"stop":true}', bits=0, flags=0))
        scene.submit()
    assert [outcome.context for outcome in scene.outcomes if isinstance(outcome, Answer)] == [
        b'{"stop":true}'
    ] * 2
    assert scene.pool.resubmitted == []


def test_replacement_asked_instead_of_a_stream(scene: Scene) -> None:
    """As the first frame it does ask for a replacement."""
    scene.say(part(b"", b'{"stop":true}', bits=0, flags=0))
    assert scene.pool.resubmitted == [scene.ticket]


def test_failing_receiver(scene: Scene) -> None:
    """A receiver that raises is asked no more; the worker is told to stop and stays."""

    def fail(flags: int, context: bytes, body: bytes) -> bool:
        raise ValueError("mine")

    scene.ticket.on_part = fail
    scene.say(part(b"1", HEAD) + part(b"2") + END)
    assert scene.outcomes == [Answer(0, b"", b"")]
    assert scene.pool.idle == [scene.lane]


def test_limit_counts_for_each_frame() -> None:
    """exec_ttl begins anew with each part."""
    scene = Scene(exec_ttl=2.0)
    try:
        for _ in range(5):
            scene.later(1.5)
            scene.say(part(b"x", HEAD))
        assert scene.owner.overdue == []
        scene.later(2.1)
        assert scene.owner.overdue == [scene.ticket]
        assert isinstance(scene.outcomes[0], ExecTimeout)
    finally:
        scene.close()


def test_limit_rests_during_a_pause() -> None:
    """A slow receiver does not cost the worker its life."""
    scene = Scene(exec_ttl=2.0)
    try:
        scene.verdicts = [False]
        scene.say(part(b"x", HEAD))
        for _ in range(5):
            scene.later(2.1)
        assert scene.owner.overdue == []
        scene.ticket.resume()
        scene.later(1.0)
        assert scene.owner.overdue == []
        scene.later(3.2)
        assert scene.owner.overdue == [scene.ticket]
    finally:
        scene.close()


def test_stop_behind_an_unread_request() -> None:
    """A worker that streams before it has read its request gets the STOP behind the rest of it, never inside."""
    scene = Scene(body=bytes(4_000_000))
    try:
        scene.say(part(b"1", HEAD))
        scene.say(part(b"2", bits=STREAM | PING))
        scene.ticket.cancel_stream(5.0)
        decoder = FrameDecoder()
        frames: list[Frame] = []
        while len(frames) < 2:
            scene.lane.on_writable()
            decoder.feed(scene.worker.recv(1 << 20))
            frames += decoder.next_frames()
        assert [(len(frame.payload), frame.stream) for frame in frames] == [(4_000_003, 0), (0, STOP)]
        scene.say(END)
        assert scene.pool.idle == [scene.lane]
    finally:
        scene.close()


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=12),
    piece=st.integers(min_value=1, max_value=90),
    verdicts=st.lists(st.booleans(), max_size=12),
)
def test_any_stream_in_any_pieces(bodies: list[bytes], piece: int, verdicts: list[bool]) -> None:
    """However it is cut and paused: every part once, in order, then one outcome."""
    scene = Scene()
    try:
        scene.verdicts = list(verdicts)
        data = b"".join(part(body, HEAD) for body in bodies) + END
        for position in range(0, len(data), piece):
            scene.worker.sendall(data[position : position + piece])
            if not scene.ticket.paused:
                scene.lane.on_readable()
            scene.ticket.resume()
            scene.run_soon()
        for _ in range(len(bodies) + 2):
            scene.ticket.resume()
            scene.run_soon()
            if not scene.ticket.paused:
                scene.lane.on_readable()
        assert [body for _, _, body in scene.parts] == bodies
        assert scene.outcomes == [Answer(0, b"", b"")]
        assert scene.owner.breaches == []
    finally:
        scene.close()


def file_body(content: bytes, missing: int = 0) -> FileBody:
    """A body in a file, which lacks `missing` bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(content[: len(content) - missing])
        file.flush()
        return FileBody(file.fileno(), len(content))


def send_file(scene: Scene, body: FileBody) -> Ticket:
    """An exec whose body is a file, on the idle lane."""
    ticket = Ticket(scene.pool, b"ctx", body, 8, scene.outcomes.append, "POST /", scene.on_part)  # type: ignore[arg-type]
    assert scene.lane.start(ticket)
    return ticket


def receive(scene: Scene, count: int) -> list[Frame]:
    """The next frames that the worker gets, while the reactor sends what is left."""
    decoder = FrameDecoder()
    frames: list[Frame] = []
    while len(frames) < count:
        decoder.feed(scene.worker.recv(1 << 20))
        frames += decoder.next_frames()
        if scene.lane._pending is not None:
            scene.lane.on_writable()
    return frames


def test_body_in_a_file(scene: Scene) -> None:
    """A body in a file reaches the worker as the same frame, then the lane takes the next exec."""
    scene.say(END)
    content = os.urandom(1000) * 3000
    body = file_body(content)
    send_file(scene, body)
    (frame,) = receive(scene, 1)
    assert (frame.flags, frame.options) == (8, (3,))
    assert frame.payload == b"ctx" + content
    scene.say(END)
    assert len(scene.outcomes) == 2
    assert scene.pool.idle == [scene.lane, scene.lane]
    assert scene.lane._file is None
    body.close()
    body.close()
    scene.submit()


def test_body_in_a_file_that_the_kernel_cannot_send(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its pieces are read and written; the worker sees the same frame."""

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    scene.say(END)
    content = os.urandom(1000) * 3000
    body = file_body(content)
    send_file(scene, body)
    (frame,) = receive(scene, 1)
    assert frame.payload == b"ctx" + content
    scene.say(END)
    assert (len(scene.outcomes), scene.owner.breaches) == (2, [])
    body.close()


def test_worker_gone_in_the_middle_of_a_file(scene: Scene) -> None:
    """A worker that has closed its relay while it got a body has closed its pipes; nothing is wrong with the file."""
    scene.say(END)
    body = file_body(bytes(3_000_000))
    ticket = send_file(scene, body)
    scene.worker.recv(1 << 20)
    scene.lane.on_writable()
    scene.worker.close()
    for _ in range(10):
        if scene.lane.closed:
            break
        scene.lane.on_writable()
        scene.lane.on_readable()
    assert [breach.cause for breach in scene.owner.breaches] == ["closed its pipes"]
    assert scene.lane.current is ticket
    body.close()


def test_stop_behind_a_body_in_a_file(scene: Scene) -> None:
    """A STOP waits for the end of the body that is being sent."""
    scene.say(END)
    body = file_body(bytes(3_000_000))
    ticket = send_file(scene, body)
    scene.say(part(b"1", HEAD))
    ticket.cancel_stream(5.0)
    frames = receive(scene, 2)
    assert [(len(frame.payload), frame.stream) for frame in frames] == [(3_000_003, 0), (0, STOP)]
    scene.say(END)
    assert scene.owner.breaches == []
    body.close()


def test_file_that_got_shorter(scene: Scene) -> None:
    """A file that cannot be read to its end costs the worker, which has half a frame."""
    scene.say(END)
    body = file_body(bytes(3_000_000), missing=1_000_000)
    ticket = send_file(scene, body)
    while not scene.lane.closed:
        scene.worker.recv(1 << 20)
        scene.lane.on_writable()
    assert [breach.cause for breach in scene.owner.breaches] == ["internal error"]
    assert scene.lane.current is ticket
    body.close()


def test_answer_before_the_file_was_read(scene: Scene) -> None:
    """A worker that answers early is given up, as for any request; nothing more is read of the file."""
    scene.say(END)
    body = file_body(bytes(3_000_000))
    send_file(scene, body)
    scene.say(END)
    assert len(scene.outcomes) == 2
    assert [breach.cause for breach in scene.owner.breaches] == ["protocol violation"]
    assert scene.lane._file is None
    body.close()


def test_worker_gone_before_the_file(scene: Scene) -> None:
    """A worker that has closed its relay never saw the request: somebody else gets it."""
    scene.say(END)
    scene.worker.close()
    body = file_body(bytes(2_000_000))
    ticket = Ticket(scene.pool, b"ctx", body, 8, scene.outcomes.append, "", scene.on_part)  # type: ignore[arg-type]
    assert scene.lane.start(ticket) is False
    assert scene.lane.current is None
    body.close()


def test_small_body_is_no_file() -> None:
    """What fits into memory is sent from there; headers of files are never among the remembered ones."""
    with pytest.raises(ValueError, match="from memory"):
        FileBody(0, 1 << 20)
    assert request_header(8, 3, 2_000_000) is not request_header(8, 3, 2_000_000)
    assert request_header(8, 3, 2000) is request_header(8, 3, 2000)


@pytest.fixture
def files(scene: Scene) -> Iterator[socket.socket]:
    """The worker's end of the socket that open files go through."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    scene.lane._files = ours
    with ours, theirs:
        yield theirs


def take_file(files: socket.socket) -> tuple[int, int, bytes]:
    """Number, announced size and content of the next file that was handed over."""
    data, descriptors, _, _ = socket.recv_fds(files, 12, 1)
    with open(descriptors[0], "rb") as file:
        return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little"), file.read()


def test_file_handed_over(scene: Scene, files: socket.socket) -> None:
    """A worker that takes files gets the file, and a frame with the context and the file's number."""
    scene.say(END)
    for number in (1, 2):
        content = os.urandom(1000) * 2000
        body = file_body(content)
        send_file(scene, body)
        (frame,) = receive(scene, 1)
        assert (frame.flags, frame.options, frame.payload) == (8, (3, number), b"ctx")
        assert take_file(files) == (number, len(content), content)
        assert scene.lane._file is None
        assert scene.lane._pending is None
        scene.say(END)
        body.close()
    assert len(scene.outcomes) == 3
    assert scene.owner.breaches == []
    scene.submit()


def test_file_that_cannot_be_handed_over(scene: Scene, files: socket.socket) -> None:
    """Where the socket takes nothing, what is in the file travels through the pipe."""
    scene.say(END)
    files.close()
    content = os.urandom(1000) * 2000
    body = file_body(content)
    send_file(scene, body)
    (frame,) = receive(scene, 1)
    assert (frame.options, frame.payload) == ((3,), b"ctx" + content)
    scene.say(END)
    assert scene.owner.breaches == []
    body.close()
