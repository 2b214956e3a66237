"""Both sides of a worker's conversation: recorded dialogues, the tables, and hostile peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss_worker.protocol import conversation, frames
from trailboss_worker.protocol.control import (
    STOP_ANSWER_CONTEXT,
    PidRequest,
    StopRequest,
    check_handshake,
    parse_control,
)
from trailboss_worker.protocol.conversation import ServerConversation, State, WorkerConversation
from trailboss_worker.protocol.errors import (
    FrameError,
    HandshakeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from trailboss_worker.protocol.events import (
    Ended,
    PidRequested,
    PongReceived,
    Request,
    Response,
    StopAsked,
    StopRequested,
    StreamCancelled,
    StreamChunk,
    WorkerError,
    WorkerReady,
)
from trailboss_worker.protocol.payload import (
    answer_is_stop_request,
    encode_answer,
    encode_payload,
    split_payload,
)

from .support import BY_NAME, SCENARIOS, VECTORS, names, only_frame, raw

PID_REQUEST = frames.encode_frame(b'{"pid":1}', flags=frames.CONTROL | frames.JSON)
PID_ANSWER = frames.encode_frame(b'{"pid":12345}', flags=frames.CONTROL)
STOP_CONTROL = frames.encode_frame(b'{"stop":true}', flags=frames.CONTROL | frames.JSON)
ANSWER = encode_answer(b"ctx", b"body")
CHUNK = encode_answer(b"", b"chunk", stream=frames.STREAM)
PING_CHUNK = encode_answer(b"", b"chunk", stream=frames.STREAM | frames.PING)
ERROR_ANSWER = frames.encode_frame(b"boom", flags=frames.ERROR)
STOP_ANSWER = encode_answer(STOP_ANSWER_CONTEXT, b"")
CANCEL = frames.encode_frame(b"", stream=frames.STOP)
PONG = frames.encode_frame(b"", stream=frames.PONG)
REQUEST = encode_payload(b"ctx", b"job", frames.RAW)


def frame_of(data: bytes) -> frames.Frame:
    """The one frame in some bytes."""
    decoder = frames.FrameDecoder()
    decoder.feed(data)
    frame = decoder.next_frame()
    assert frame is not None
    assert decoder.buffered == 0
    return frame


def server_in(state: State) -> ServerConversation:
    """A server's conversation brought into a state by legal steps."""
    server = ServerConversation()
    if state is State.BOOTING:
        return server
    server.start(1)
    server.receive_data(PID_ANSWER)
    assert server.next_event() == WorkerReady(12345)
    if state in (State.WORKING, State.STREAMING):
        server.send_request(b"ctx", b"")
    if state is State.STREAMING:
        server.receive_data(CHUNK)
        assert server.next_event() == StreamChunk(b"", b"chunk", 0, False)
    if state is State.STOPPING:
        server.stop()
    if state is State.DEAD:
        server.receive_data(b"")
        assert server.next_event() == Ended()
    assert server.state is state
    return server


def worker_in(state: State) -> WorkerConversation:
    """A worker's conversation brought into a state by legal steps."""
    worker = WorkerConversation()
    if state is State.BOOTING:
        return worker
    worker.receive_data(PID_REQUEST)
    assert worker.next_event() == PidRequested(1)
    worker.answer_pid(12345)
    if state in (State.WORKING, State.STREAMING):
        worker.receive_data(REQUEST)
        assert worker.next_event() == Request(b"ctx", b"job", frames.RAW)
    if state is State.STREAMING:
        worker.send_chunk(b"", b"chunk")
    if state is State.STOPPING:
        worker.receive_data(STOP_CONTROL)
        assert worker.next_event() == StopAsked()
    if state is State.DEAD:
        worker.receive_data(b"")
        assert worker.next_event() == Ended()
    assert worker.state is state
    return worker


def server_says(server: ServerConversation, frame: frames.Frame) -> bytes:
    """Makes the conversation send what the recorded server sent."""
    if frame.flags & frames.CONTROL:
        message = parse_control(frame.payload)
        return server.start(message.pid) if isinstance(message, PidRequest) else server.stop()
    if frame.stream & frames.PONG:
        return server.pong()
    if frame.stream & frames.STOP:
        return server.cancel_stream()
    return server.send_request(*split_payload(frame), frame.flags)


def event_of_worker_frame(frame: frames.Frame, chunk_number: int) -> object:
    """What a server has to understand from a worker's frame."""
    if frame.flags & frames.CONTROL:
        return WorkerReady(12345)
    if frame.flags & frames.ERROR:
        return WorkerError(frame.payload.decode(), False)
    context, body = split_payload(frame)
    if frame.stream & frames.STREAM:
        return StreamChunk(context, body, frame.flags, bool(frame.stream & frames.PING) and chunk_number > 1)
    if answer_is_stop_request(frame):
        return StopRequested()
    return Response(context, body, frame.flags)


def worker_says(worker: WorkerConversation, frame: frames.Frame) -> bytes:
    """Makes the conversation send what the recorded worker sent."""
    if frame.flags & frames.CONTROL:
        return worker.answer_pid(12345)
    if frame.flags & frames.ERROR:
        return worker.error(frame.payload.decode())
    context, body = split_payload(frame)
    if frame.stream & frames.STREAM:
        return worker.send_chunk(context, body, frame.flags, ping=bool(frame.stream & frames.PING))
    if answer_is_stop_request(frame):
        return worker.request_stop()
    return worker.respond(context, body, frame.flags)


def event_of_server_frame(frame: frames.Frame) -> object:
    """What a worker has to understand from a server's frame."""
    if frame.flags & frames.CONTROL:
        message = parse_control(frame.payload)
        return PidRequested(message.pid) if isinstance(message, PidRequest) else StopAsked()
    if frame.stream & frames.PONG:
        return PongReceived()
    if frame.stream & frames.STOP:
        return StreamCancelled()
    return Request(*split_payload(frame), frame.flags)


every_scenario = pytest.mark.parametrize("name", [scenario["name"] for scenario in SCENARIOS])


def steps_of(name: str) -> list[dict[str, Any]]:
    """The steps of a recorded dialogue."""
    return next(scenario["steps"] for scenario in SCENARIOS if scenario["name"] == name)


@every_scenario
@pytest.mark.parametrize("bytewise", [False, True])
def test_scenario_as_server(name: str, bytewise: bool) -> None:
    """A recorded worker's lines give the right events, and the server's lines come out byte by byte as recorded."""
    server = ServerConversation()
    chunk_number = 0
    for step in steps_of(name):
        data = bytes.fromhex(step["hex"])
        frame = frame_of(data)
        if step["dir"] == "server->worker":
            chunk_number = 0 if len(frame.options) == 1 else chunk_number
            assert data == server_says(server, frame)
            continue
        chunk_number += 1
        pieces = [data[at : at + 1] for at in range(len(data))] if bytewise else [data]
        for piece in pieces[:-1]:
            server.receive_data(piece)
            assert server.next_event() is None
            assert server.missing > 0
        server.receive_data(pieces[-1])
        assert event_of_worker_frame(frame, chunk_number) == server.next_event()
        assert server.next_event() is None
    assert server.state is State.STOPPING
    server.receive_data(b"")
    assert server.next_event() == Ended()
    assert server.next_event() is None
    assert server.state.value == "dead"


@every_scenario
@pytest.mark.parametrize("bytewise", [False, True])
def test_scenario_as_worker(name: str, bytewise: bool) -> None:
    """A recorded server's lines give the right events, and the worker's lines come out as recorded."""
    worker = WorkerConversation()
    for step in steps_of(name):
        data = bytes.fromhex(step["hex"])
        frame = frame_of(data)
        if step["dir"] == "worker->server":
            assert data == worker_says(worker, frame)
            continue
        for piece in [data[at : at + 1] for at in range(len(data))] if bytewise else [data]:
            assert worker.next_event() is None
            worker.receive_data(piece)
        assert event_of_server_frame(frame) == worker.next_event()
        assert worker.next_event() is None
    assert worker.state is State.STOPPING
    assert worker.stop_asked


SERVER_VERBS: dict[str, Callable[[ServerConversation], object]] = {
    "send pid": lambda server: server.start(1),
    "send request": lambda server: server.send_request(b"ctx", b""),
    "send stop": lambda server: server.stop(),
    "send cancel": lambda server: server.cancel_stream(),
    "send pong": lambda server: server.pong(),
}
SERVER_HEARS = {
    "pid answer": PID_ANSWER,
    "answer": ANSWER,
    "error answer": ERROR_ANSWER,
    "stop answer": STOP_ANSWER,
    "chunk": CHUNK,
    "end of stream": b"",
}
WORKER_VERBS: dict[str, Callable[[WorkerConversation], object]] = {
    "send pid answer": lambda worker: worker.answer_pid(1),
    "send answer": lambda worker: worker.respond(b"", b"x"),
    "send error": lambda worker: worker.error("boom"),
    "send chunk": lambda worker: worker.send_chunk(b"", b"x"),
    "send stop answer": lambda worker: worker.request_stop(),
}
WORKER_HEARS = {
    "pid request": PID_REQUEST,
    "request": REQUEST,
    "stop": STOP_CONTROL,
    "cancel": CANCEL,
    "pong": PONG,
    "end of stream": b"",
}
living_state = pytest.mark.parametrize("state", [state for state in State if state is not State.DEAD])
every_state = pytest.mark.parametrize("state", list(State))


@every_state
@pytest.mark.parametrize("event", SERVER_VERBS)
def test_server_verbs_follow_the_table(state: State, event: str) -> None:
    """A verb does what the table says, or is refused and changes nothing."""
    server = server_in(state)
    after = conversation.SERVER_TRANSITIONS[state].get(event)
    if after is None:
        with pytest.raises(LocalProtocolError, match=f"'{event}' is not allowed while {state.value}"):
            SERVER_VERBS[event](server)
        assert server.state is state
    else:
        frame_of(SERVER_VERBS[event](server))  # type: ignore[arg-type] # every verb returns the bytes of a frame
        assert server.state is after


@every_state
@pytest.mark.parametrize("event", WORKER_VERBS)
def test_worker_verbs_follow_the_table(state: State, event: str) -> None:
    """A verb does what the table says, or is refused and changes nothing."""
    worker = worker_in(state)
    after = conversation.WORKER_TRANSITIONS[state].get(event)
    if after is None:
        with pytest.raises(LocalProtocolError, match=f"'{event}' is not allowed while {state.value}"):
            WORKER_VERBS[event](worker)
        assert worker.state is state
    else:
        frame_of(WORKER_VERBS[event](worker))  # type: ignore[arg-type] # every verb returns the bytes of a frame
        assert worker.state is after


@living_state
@pytest.mark.parametrize("event", SERVER_HEARS)
def test_server_hears_by_the_table(state: State, event: str) -> None:
    """What a worker may not say in a state ends the conversation with an error that stays."""
    server = server_in(state)
    if state is State.BOOTING:
        server.start(1)
    # Only the first frame of an answer can ask for the stop; in a stream these bytes are an ordinary end.
    in_stream = event == "stop answer" and state is State.STREAMING
    after = conversation.SERVER_TRANSITIONS[state].get("answer" if in_stream else event)
    if event == "pid answer" and state is State.READY:
        server.start(1)
    server.receive_data(SERVER_HEARS[event])
    if after is None:
        with pytest.raises(RemoteProtocolError) as first:
            server.next_event()
        with pytest.raises(RemoteProtocolError) as again:
            server.next_event()
        assert first.value is again.value
        assert server.state is State.DEAD
    else:
        assert server.next_event() is not None
        assert server.state is after


@living_state
@pytest.mark.parametrize("event", WORKER_HEARS)
def test_worker_hears_by_the_table(state: State, event: str) -> None:
    """What a server may not say in a state ends the conversation with an error that stays."""
    worker = worker_in(state)
    after = conversation.WORKER_TRANSITIONS[state].get(event)
    worker.receive_data(WORKER_HEARS[event])
    if after is None:
        with pytest.raises(RemoteProtocolError) as first:
            worker.next_event()
        with pytest.raises(RemoteProtocolError) as again:
            worker.next_event()
        assert first.value is again.value
        assert worker.state is State.DEAD
    else:
        worker.next_event()
        assert worker.state is after


@pytest.mark.parametrize("maker", [server_in, worker_in])
def test_send_failed(maker: Callable[[State], ServerConversation | WorkerConversation]) -> None:
    """After a torn write nothing can be sent, from any state."""
    for state in State:
        side = maker(state)
        side.send_failed()
        assert side.state is State.DEAD
        assert "dead" in repr(side)
        verbs = SERVER_VERBS if maker is server_in else WORKER_VERBS
        for verb in verbs.values():
            with pytest.raises(LocalProtocolError):
                verb(side)  # type: ignore[arg-type]  # the verbs that belong to this side


def test_nothing_is_received_after_the_end() -> None:
    """Bytes after the end of the stream are a fault of our own, on either side."""
    for side in (server_in(State.DEAD), worker_in(State.DEAD)):
        with pytest.raises(LocalProtocolError):
            side.receive_data(b"late")
        assert side.next_event() is None


def test_empty_request_is_refused() -> None:
    """A job with neither context nor body would end a PHP worker: it is not sent, and another one may be."""
    server = server_in(State.READY)
    with pytest.raises(LocalProtocolError):
        server.send_request(b"", b"")
    assert server.send_request(b"ctx", b"job", frames.RAW) == REQUEST


def test_answer_that_would_stop_the_worker() -> None:
    """A worker's ordinary answer cannot be mistaken for its wish to stop; with a space in it, it is ordinary."""
    worker = worker_in(State.WORKING)
    with pytest.raises(LocalProtocolError):
        worker.respond(STOP_ANSWER_CONTEXT, b"")
    server = server_in(State.WORKING)
    server.receive_data(worker.respond(b'{"stop": true}', b""))
    assert server.next_event() == Response(b'{"stop": true}', b"", 0)


def test_ping_in_the_first_chunk_is_ignored() -> None:
    """A ping counts from the second chunk on; every chunk of a cancelled stream is still delivered."""
    server = server_in(State.WORKING)
    server.receive_data(PING_CHUNK + PING_CHUNK)
    assert server.next_event() == StreamChunk(b"", b"chunk", 0, False)
    assert server.next_event() == StreamChunk(b"", b"chunk", 0, True)
    assert server.pong() == PONG
    assert not server.stream_cancelled
    assert server.cancel_stream() == CANCEL
    assert server.stream_cancelled
    server.receive_data(CHUNK + encode_answer(b"", b""))
    assert server.next_event() == StreamChunk(b"", b"chunk", 0, False)
    assert server.next_event() == Response(b"", b"", 0)
    server.send_request(b"x", b"")
    assert not server.stream_cancelled


def test_error_inside_a_stream() -> None:
    """An error in a running stream leaves nothing but stopping the worker."""
    server = server_in(State.STREAMING)
    server.receive_data(ERROR_ANSWER)
    assert server.next_event() == WorkerError("boom", True)
    assert server.stop() == STOP_CONTROL


def test_worker_skips_late_stream_frames() -> None:
    """STOP and PONG that crossed the end of their stream are skipped between jobs."""
    worker = worker_in(State.READY)
    worker.receive_data(CANCEL + PONG + REQUEST)
    assert worker.next_event() == Request(b"ctx", b"job", frames.RAW)
    worker.send_chunk(b"", b"1", ping=True)
    worker.receive_data(PONG + CANCEL)
    assert worker.next_event() == PongReceived()
    assert not worker.stream_cancelled
    assert worker.next_event() == StreamCancelled()
    assert worker.stream_cancelled


def test_stop_during_a_job() -> None:
    """A server that does not wait for the job is heard, and the job can still be answered."""
    worker = worker_in(State.WORKING)
    worker.receive_data(STOP_CONTROL)
    assert worker.next_event() == StopAsked()
    assert worker.stop_asked
    assert worker.respond(b"ctx", b"body") == ANSWER


def test_unasked_hello_is_refused() -> None:
    """A worker that speaks before it is spoken to is no worker; nor is one that answers a probe nobody sent."""
    for state in (State.BOOTING, State.READY):
        server = server_in(state)
        server.receive_data(PID_ANSWER)
        with pytest.raises(RemoteProtocolError, match="unasked"):
            server.next_event()


def test_end_inside_a_frame() -> None:
    """A stream that ends inside a frame is a truncated frame, not an end."""
    server = server_in(State.WORKING)
    server.receive_data(ANSWER[:-1])
    assert ANSWER[:-1][:256] == server.pending_bytes()
    server.receive_data(b"")
    with pytest.raises(FrameError) as caught:
        server.next_event()
    assert (caught.value.code, caught.value.place) == ("truncated", "payload")


@pytest.mark.parametrize("name", names("handshake-neg"))
def test_bad_handshakes(name: str) -> None:
    """Every recorded bad hello is refused with a HandshakeError, and the conversation is dead."""
    server = ServerConversation()
    server.start(1)
    server.receive_data(raw(BY_NAME[name]))
    with pytest.raises(HandshakeError):
        server.next_event()
    assert server.state is State.DEAD


@pytest.mark.parametrize(
    "payload", [b'{"pid":1.0}', b'{"pid":true}', b"[1]", b'{"pid":-3}', b'{"pid":99999999999}', b""]
)
def test_more_bad_handshakes(payload: bytes) -> None:
    """A pid is a positive whole number that the system could have given."""
    with pytest.raises(HandshakeError):
        check_handshake(frames.Frame(frames.CONTROL, 0, (), payload))


@pytest.mark.parametrize("name", ["php_pid_reply", "php_pid_reply_pid_max_22"])
def test_good_handshakes(name: str) -> None:
    """The recorded hellos of PHP workers give their pid."""
    vector = BY_NAME[name]
    pid = int("".join(filter(str.isdigit, vector["decoded"]["payload_utf8"])))

    assert pid == check_handshake(only_frame(vector))


def test_control_messages() -> None:
    """A stop wins over a pid; what is neither is refused."""
    assert parse_control(b'{"stop":true,"pid":5}') == StopRequest()
    assert parse_control(b'{"pid":5,"stop":false}') == PidRequest(5)
    assert parse_control(b'{"pid":"x"}') == PidRequest(0)
    for name in names("control-neg"):
        with pytest.raises(RemoteProtocolError, match="undefined control package"):
            parse_control(only_frame(BY_NAME[name]).payload)
    for payload in (b"[]", b'{"pid":0}', b'{"stop":false}', b"", b"\xff"):
        with pytest.raises(RemoteProtocolError, match="undefined control package"):
            parse_control(payload)


EXEC_VECTORS = [vector["name"] for vector in VECTORS if "exec" in vector["expected"]]


@pytest.mark.parametrize("name", EXEC_VECTORS)
def test_recorded_answers(name: str) -> None:
    """Recorded answers are a soft error that keeps the worker, or an error that ends it, as the vectors say."""
    vector = BY_NAME[name]
    server = server_in(State.WORKING)
    server.receive_data(raw(vector))
    if vector["expected"]["exec"].startswith("error"):
        with pytest.raises(RemoteProtocolError):
            server.next_event()
        assert server.state is State.DEAD
    else:
        assert server.next_event() == WorkerError(
            bytes.fromhex(vector["decoded"]["payload_hex"]).decode(), False
        )
        assert server.state is State.READY


@pytest.mark.parametrize("name", names("payload"))
def test_recorded_payloads(name: str) -> None:
    """Context and body of the recorded payloads."""
    vector = BY_NAME[name]
    frame = only_frame(vector)
    context, body = split_payload(frame)
    decoded, expected = vector["decoded"], vector["expected"]

    assert decoded.get("context_hex", context.hex()) == context.hex()
    assert decoded.get("body_hex", body.hex()) == body.hex()
    assert expected.get("context", context.decode("latin-1")) == context.decode("latin-1")
    assert expected.get("body", body.decode("latin-1")) == body.decode("latin-1")
    assert frame.payload == context + body


pieces_of_dialogue = st.lists(
    st.one_of(
        st.sampled_from(
            [
                PID_REQUEST,
                PID_ANSWER,
                STOP_CONTROL,
                ANSWER,
                CHUNK,
                PING_CHUNK,
                ERROR_ANSWER,
                STOP_ANSWER,
                CANCEL,
                PONG,
                REQUEST,
            ]
        ),
        st.binary(min_size=1, max_size=30),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(pieces_of_dialogue, st.sampled_from(list(State)), st.booleans())
def test_hostile_peer(pieces: list[bytes], state: State, as_server: bool) -> None:
    """Whatever a peer says, a conversation gives events or a RemoteProtocolError, whole and byte by byte alike."""
    if state is State.DEAD:
        state = State.READY
    outcomes = []
    for bytewise in (False, True):
        side: ServerConversation | WorkerConversation = server_in(state) if as_server else worker_in(state)
        stream = b"".join(pieces)
        heard: list[object] = []
        try:
            for at in range(0, len(stream), 1 if bytewise else max(1, len(stream))):
                side.receive_data(stream[at : at + 1] if bytewise else stream)
                while (event := side.next_event()) is not None:
                    heard.append(event)
        except RemoteProtocolError as error:
            heard.append((type(error), error.code if isinstance(error, FrameError) else str(error)))
            assert side.state is State.DEAD
        outcomes.append((heard, side.state))
    assert outcomes[0] == outcomes[1]
