"""The lane over a socket pair: one exec, one outcome, whatever the bytes and however they come."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.figures import Histogram
from trailboss.reactor import Reactor
from trailboss.workers import lane as lane_module
from trailboss.workers.lane import Breach, Exec, Lane, LaneOwner, request_header
from trailboss.workers.outcome import Answer, ExecTimeout, Outcome, SoftError, WorkerDied
from trailboss_worker.protocol.frames import CONTROL, ERROR, FrameDecoder, encode_frame


def answer_frame(context: bytes, body: bytes, flags: int) -> bytes:
    """An answer of a worker."""
    return encode_frame(context + body, flags=flags, options=(len(context),))


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


class IdlePool:
    """What a lane needs of its pool; not one: it only notes."""

    name = "jobs"

    def __init__(self) -> None:
        self.executions = 0
        self.exec_seconds = Histogram()
        self.idle: list[Lane] = []
        self.gone: list[Lane] = []
        self.resubmitted: list[Exec] = []

    def lane_idle(self, lane: Lane) -> None:
        self.idle.append(lane)

    def lane_gone(self, lane: Lane) -> None:
        self.gone.append(lane)

    def resubmit(self, exec_: Exec) -> None:
        self.resubmitted.append(exec_)


class Scene:
    """A lane and the worker's end of its relay."""

    def __init__(self, exec_ttl: float = 0.0, executions_max: int = 0, payload_cap: int = 1 << 20) -> None:
        self.reactor = Reactor()
        ours, self.worker = socket.socketpair()
        ours.setblocking(False)
        self.worker.settimeout(5)
        self.fd = ours.detach()
        self.owner = Owner()
        self.pool = IdlePool()
        self.outcomes: list[Outcome] = []
        self.lane = Lane(
            self.reactor,
            self.pool,  # type: ignore[arg-type]
            self.owner,
            4242,
            self.fd,
            self.fd,
            payload_cap=payload_cap,
            exec_ttl=exec_ttl,
            executions_max=executions_max,
        )
        self.lane.attach()

    def start(self, context: bytes = b"ctx", body: bytes = b"body") -> Exec:
        """Give the lane an exec."""
        exec_ = Exec(context, body, 4, self.outcomes.append, "label")
        assert self.lane.start(exec_)
        return exec_

    def say(self, data: bytes, piece: int = 1 << 20) -> None:
        """The worker writes, the lane reads, piece by piece."""
        for position in range(0, len(data), piece):
            if self.lane.closed:
                return
            self.worker.sendall(data[position : position + piece])
            self.lane.on_readable()

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


ANSWER = answer_frame(b"re", b"sult", 4)


def test_request_on_the_wire(scene: Scene) -> None:
    """What the worker gets is the frame of the payload."""
    scene.start(b"ctx", b"body")
    decoder = FrameDecoder()
    decoder.feed(scene.worker.recv(4096))
    frame = decoder.next_frame()
    assert frame is not None
    assert (frame.flags, frame.options, frame.payload) == (4, (3,), b"ctxbody")


@pytest.mark.parametrize("piece", [1, 5, 12, 16, 17, 1000])
def test_answers_in_pieces(scene: Scene, piece: int) -> None:
    """An answer is the same however it comes, the first time and when its header is known."""
    for _ in range(3):
        scene.start()
        scene.say(ANSWER, piece)
    assert scene.outcomes == [Answer(4, b"re", b"sult")] * 3
    assert scene.pool.idle == [scene.lane] * 3
    assert scene.lane.executions == 3
    assert scene.owner.breaches == []


def test_soft_error(scene: Scene) -> None:
    """An ERROR frame is a soft error, and the lane is idle again."""
    scene.start()
    scene.say(encode_frame(b"no", flags=ERROR))
    assert isinstance(scene.outcomes[0], SoftError)
    assert scene.pool.idle == [scene.lane]


def test_empty_answer(scene: Scene) -> None:
    """Context and body may both be empty in an answer."""
    scene.start()
    scene.say(answer_frame(b"", b"", 0))
    assert scene.outcomes == [Answer(0, b"", b"")]


def test_stop_answer_moves_the_exec_on(scene: Scene) -> None:
    """The exact 13 bytes with an empty body ask for replacement; with a body, or a blank, they are an answer."""
    exec_ = scene.start()
    scene.say(answer_frame(b'{"stop":true}', b"", 0))
    assert scene.outcomes == []
    assert scene.pool.resubmitted == [exec_]
    assert scene.owner.spent == 1
    other = Scene()
    for context, body in ((b'{"stop":true}', b"x"), (b'{"stop": true}', b"")):
        for _ in range(2):
            other.start()
            other.say(answer_frame(context, body, 0))
            assert other.outcomes.pop() == Answer(0, context, body)
    other.close()


def test_stop_answer_has_an_end(scene: Scene) -> None:
    """An exec that eleven workers did not want is a typed failure."""
    exec_ = scene.start()
    exec_.moves = 10
    scene.say(answer_frame(b'{"stop":true}', b"", 0))
    assert isinstance(scene.outcomes[0], WorkerDied)
    assert scene.pool.resubmitted == []


def test_last_exec_of_a_lane() -> None:
    """After executions_max the owner hears of it, and the pool gets no idle lane."""
    scene = Scene(executions_max=2)
    scene.start()
    scene.say(ANSWER)
    assert (scene.owner.spent, len(scene.pool.idle)) == (0, 1)
    scene.start()
    scene.say(ANSWER)
    assert (scene.owner.spent, len(scene.pool.idle)) == (1, 1)
    assert len(scene.outcomes) == 2
    scene.close()


def test_exec_overdue() -> None:
    """exec_ttl counts from each start; an answered exec leaves nothing behind."""
    scene = Scene(exec_ttl=10.0)
    scene.reactor.now = 100.0
    scene.start()
    scene.say(ANSWER)
    scene.reactor.now = 105.0
    scene.start()
    scene.reactor.wheel.expire(110.1)
    assert len(scene.outcomes) == 1
    scene.reactor.now = 115.1
    scene.reactor.wheel.expire(115.1)
    assert isinstance(scene.outcomes[1], ExecTimeout)
    assert len(scene.owner.overdue) == 1
    assert scene.lane.closed
    assert scene.pool.gone == [scene.lane]
    assert len(scene.reactor.wheel) == 0
    scene.close()


def test_closed_lane_leaves_the_wheel_alone() -> None:
    """A lane that is gone is not kept alive, nor touched, by its entry in the wheel."""
    scene = Scene(exec_ttl=3600.0)
    scene.start()
    scene.lane.detach()
    assert len(scene.reactor.wheel) == 1
    scene.reactor.wheel.expire(1e6)
    assert scene.outcomes == []
    assert scene.owner.overdue == []
    scene.close()


def test_end_of_file_keeps_the_exec_for_the_owner(scene: Scene) -> None:
    """The outcome of an exec over which the relay broke is the owner's to give, once it knows why."""
    exec_ = scene.start()
    scene.say(ANSWER[:20])
    scene.worker.shutdown(socket.SHUT_WR)
    scene.lane.on_readable()
    assert scene.outcomes == []
    assert scene.lane.current is exec_
    assert scene.owner.breaches[0].cause == "closed its pipes"
    assert "in the middle of a frame" in scene.owner.breaches[0].text


def test_huge_length_is_refused_at_its_header(scene: Scene) -> None:
    """A declared length above the cap breaks the lane before a byte of it was stored."""
    scene.start()
    scene.say(request_header(0, 0, 0xFFFFFFFF))
    assert scene.owner.breaches
    assert scene.outcomes == []


def test_stray_bytes_are_judged_after_a_moment(scene: Scene) -> None:
    """Fewer bytes than a header may be the beginning of one; a second later they are text."""
    scene.reactor.now = 100.0
    scene.start()
    scene.say(b"\x14oops")
    assert scene.owner.breaches == []
    scene.reactor.wheel.expire(100.5)
    assert scene.owner.breaches == []
    scene.reactor.wheel.expire(101.1)
    assert scene.owner.breaches[0].cause == "stdout garbage"
    assert scene.owner.breaches[0].excerpt == b"\x14oops"


@pytest.mark.parametrize("data", [b"x", ANSWER, ANSWER[:13], ANSWER[:3], b"long text " * 20])
def test_idle_worker_that_speaks_is_broken(scene: Scene, data: bytes) -> None:
    """Whatever an idle worker says, the lane is broken at once and nobody is told an outcome."""
    scene.start()
    scene.say(ANSWER)
    scene.say(data)
    assert len(scene.owner.breaches) == 1
    assert len(scene.outcomes) == 1
    assert scene.pool.gone == [scene.lane]


GOOD = st.tuples(st.binary(max_size=60), st.binary(max_size=200)).map(lambda pair: answer_frame(*pair, 0))


@st.composite
def hostile_bytes(draw: st.DrawFn) -> bytes:
    """Frames, damaged frames, text, in any order."""
    parts = draw(
        st.lists(
            st.one_of(
                GOOD,
                st.binary(max_size=40),
                st.sampled_from(
                    [
                        b"PHP Warning: x\n",
                        b"\x14",
                        b"\x00" * 12,
                        ANSWER[:7],
                        encode_frame(b"{}", flags=CONTROL),
                    ]
                ),
                st.tuples(GOOD, st.integers(0, 30), st.integers(0, 255)).map(
                    lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :]
                ),
            ),
            max_size=4,
        )
    )
    return b"".join(parts)


@settings(max_examples=300, deadline=None)
@given(data=hostile_bytes(), piece=st.integers(1, 64), close=st.booleans())
def test_exactly_one_outcome_or_one_breach(data: bytes, piece: int, close: bool) -> None:
    """Any bytes at all: at most one outcome and at most one breach, and no byte of a broken answer in an outcome."""
    scene = Scene()
    try:
        scene.start()
        scene.say(data, piece)
        if close and not scene.lane.closed:
            scene.worker.shutdown(socket.SHUT_WR)
            scene.lane.on_readable()
        assert len(scene.outcomes) <= 1
        assert len(scene.owner.breaches) <= 1
        assert bool(scene.owner.breaches) == scene.lane.closed
        if close:
            assert scene.owner.breaches
        if scene.outcomes and isinstance(scene.outcomes[0], Answer):
            answer = scene.outcomes[0]
            assert answer_frame(answer.context, answer.body, answer.flags)[12:] in data
        assert (scene.lane.current is None) == bool(scene.outcomes or scene.pool.resubmitted)
    finally:
        scene.close()


def test_request_header_refuses_what_a_frame_cannot_hold() -> None:
    """Beyond 2^32-1 bytes there is no frame."""
    with pytest.raises(OverflowError):
        request_header(0, 0, 1 << 32)


class PipeScene:
    """A lane over two pipes, as workers have them by default."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.request_end, write_fd = os.pipe()
        read_fd, self.answer_end = os.pipe()
        for fd in (write_fd, read_fd, self.answer_end, self.request_end):
            os.set_blocking(fd, False)
        self.pool = IdlePool()
        self.outcomes: list[Outcome] = []
        self.lane = Lane(
            self.reactor,
            self.pool,  # type: ignore[arg-type]
            Owner(),
            4242,
            read_fd,
            write_fd,
            payload_cap=1 << 24,
            exec_ttl=0.0,
            executions_max=0,
        )
        self.lane.attach()

    def sizes(self) -> tuple[int, int]:
        """Bytes that the pipes to and from the worker hold."""
        fds = (self.lane.write_fd, self.lane.read_fd)
        return fcntl.fcntl(fds[0], fcntl.F_GETPIPE_SZ), fcntl.fcntl(fds[1], fcntl.F_GETPIPE_SZ)

    def exchange(self, request: int, answer: int) -> tuple[int, int]:
        """One exec with bodies of so many bytes; returns how many reads of the worker, and of the lane, it took."""
        self.lane.start(Exec(b"c", b"q" * request, 4, self.outcomes.append, "label"))
        reads = 0
        wanted = 16 + 1 + request
        while wanted:
            wanted -= len(os.read(self.request_end, 1 << 20))
            reads += 1
            if wanted:
                self.lane.on_writable()
        frame = memoryview(answer_frame(b"r", b"a" * answer, 4))
        ours = 0
        while not self.outcomes:
            if frame:
                frame = frame[os.write(self.answer_end, frame) :]
            self.lane.on_readable()
            ours += 1
        assert self.outcomes.pop() == Answer(4, b"r", b"a" * answer)
        return reads, ours

    def close(self) -> None:
        """Release everything."""
        self.lane.detach()
        self.reactor.close()
        for fd in (self.lane.read_fd, self.lane.write_fd, self.answer_end, self.request_end):
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[PipeScene]:
    """A lane over pipes; what it took of the process's budget is given back."""
    before = lane_module._wide_pipes.count
    scene = PipeScene()
    yield scene
    scene.close()
    assert lane_module._wide_pipes.count == before


def test_pipes_grow_with_what_goes_through_them(pipes: PipeScene) -> None:
    """The first large frame comes in pieces and makes its pipe wider; the next one is one write and one read."""
    assert pipes.exchange(100, 100) == (1, 1)
    assert pipes.sizes() == (65536, 65536)
    assert pipes.exchange(200_000, 100)[0] > 1
    assert pipes.sizes() == (lane_module.WIDE_PIPE_SIZE, 65536)
    assert pipes.exchange(200_000, 100_000)[0] == 1
    assert pipes.sizes() == (lane_module.WIDE_PIPE_SIZE, lane_module.WIDE_PIPE_SIZE)
    for _ in range(3):
        assert pipes.exchange(200_000, 100_000) == (1, 1)
    assert pipes.exchange(1_000_000, 1_000_000) >= (4, 4)
    assert pipes.exchange(10, 10) == (1, 1)


def test_wide_pipes_have_a_budget(pipes: PipeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have taken the budget, or the kernel refuses, pipes stay as they are and everything goes on."""
    monkeypatch.setattr(lane_module, "WIDE_PIPES_BYTES_MAX", 0)
    for _ in range(2):
        assert pipes.exchange(200_000, 200_000) > (1, 1)
    assert pipes.sizes() == (65536, 65536)
    monkeypatch.undo()

    def refused(*_: object) -> int:
        raise PermissionError(1, "the user has too many bytes in pipes")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refused)
        assert pipes.exchange(200_000, 200_000) > (1, 1)
    assert pipes.sizes() == (65536, 65536)


def test_budget_of_wide_pipes_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that goes leaves room for the next."""
    before = lane_module._wide_pipes.count
    monkeypatch.setattr(lane_module, "WIDE_PIPES_BYTES_MAX", (before + 2) * lane_module.WIDE_PIPE_SIZE)
    for _ in range(3):
        scene = PipeScene()
        other = PipeScene()
        scene.exchange(200_000, 200_000)
        other.exchange(200_000, 200_000)
        assert scene.sizes() == (lane_module.WIDE_PIPE_SIZE, lane_module.WIDE_PIPE_SIZE)
        assert other.sizes() == (65536, 65536)
        scene.close()
        other.close()
    assert lane_module._wide_pipes.count == before
