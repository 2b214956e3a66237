"""The blocking worker over real relays, as a process of its own."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time

import pytest

from trailboss_worker.protocol.control import STOP_ANSWER_CONTEXT, encode_pid, encode_stop
from trailboss_worker.protocol.frames import (
    CONTROL,
    ERROR,
    PING,
    PONG,
    RAW,
    STOP,
    STREAM,
    Frame,
    encode_frame,
)
from trailboss_worker.protocol.payload import encode_payload, split_payload

RELAYS = ("pipes", "unix", "tcp")
PONG_FRAME = encode_frame(b"", stream=PONG)
STOP_STREAM_FRAME = encode_frame(b"", stream=STOP)

every_relay = pytest.mark.parametrize("relay", RELAYS)


@every_relay
def test_a_whole_life(serve_command, relay):
    """Handshake, some requests with any codec bit, stop control: exit code 0 and not one byte too many."""
    worker = serve_command("echo", relay=relay)
    assert worker.shake_hands() == worker.process.pid
    for flags in (0x00, 0x04, 0x08, 0x10, 0x80):
        assert worker.exec(b"body", b"ctx", flags) == (b"ctx", b"body")
    assert worker.exec(b"only a body") == (b"", b"only a body")
    assert worker.exec(b"", b"only a context") == (b"only a context", b"")
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    assert worker.stderr() == ""


def test_the_worker_is_silent_until_spoken_to(serve_program):
    """Nothing is written before the server's first frame."""
    worker = serve_program("worker.py")
    worker.wait_stderr("\nmade")
    assert worker.is_silent(0.1)
    assert worker.shake_hands() == worker.process.pid


@every_relay
def test_a_second_handshake_is_answered(serve_command, relay):
    """The pid request may come again between requests and is answered each time."""
    worker = serve_command("echo", relay=relay)
    for _ in range(3):
        assert worker.shake_hands() == worker.process.pid
        assert worker.exec(b"x") == (b"", b"x")


def test_stray_stream_frames_are_skipped(serve_command):
    """A late PONG or STOP between requests gets no answer and does no harm."""
    worker = serve_command("echo")
    worker.shake_hands()
    worker.send(PONG_FRAME + STOP_STREAM_FRAME + encode_payload(b"", b"still here"))
    assert split_payload(worker.frame()) == (b"", b"still here")


def test_stop_wins_over_pid(serve_command):
    """A control message with both keys ends the worker without an answer."""
    worker = serve_command("echo")
    worker.send(encode_frame(b'{"pid":1,"stop":true}', flags=CONTROL))
    assert worker.exit_code() == 0
    assert worker.rest() == b""


@pytest.mark.parametrize("control", [b"{}", b"[]", b'{"pid":0}', b"nonsense", b'{"other":1}'])
def test_an_undefined_control_message_ends_the_worker(serve_command, control):
    """What the protocol does not define is said on standard error, with exit code 1."""
    worker = serve_command("echo")
    worker.send(encode_frame(control, flags=CONTROL))
    assert worker.exit_code() == 1
    assert "undefined control package" in worker.stderr()
    assert worker.rest() == b""


def test_garbage_from_the_server_ends_the_worker(serve_command):
    """Bytes that are no frame end the worker at once, with the reason on standard error."""
    worker = serve_command("echo")
    worker.send(b"GET / HTTP/1.1\r\n\r\n")
    assert worker.exit_code() == 1
    assert "no frame" in worker.stderr()


def test_an_error_answer_keeps_the_worker(serve_program):
    """error() sends an ERROR frame without options; the next request is served."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", "fail böse".encode()))
    frame = worker.frame()
    assert (frame.flags, frame.options) == (ERROR, ())
    assert worker.exec(b"next") == (b"", b"next")


def test_a_worker_can_ask_to_be_replaced(serve_program):
    """stop() answers with the exact context, then the stop control ends the worker."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"stop"))
    assert worker.frame() == Frame(0, 0, (len(STOP_ANSWER_CONTEXT),), STOP_ANSWER_CONTEXT)
    worker.send_stop()
    assert worker.exit_code() == 0


@every_relay
def test_big_payloads_travel_both_ways(serve_command, relay):
    """Bodies far beyond any pipe's capacity arrive whole."""
    worker = serve_command("echo", relay=relay)
    worker.shake_hands()
    body = bytes(range(256)) * 4096
    assert len(body) == 1 << 20
    sender = threading.Thread(target=worker.send, args=(encode_payload(b"ctx", body),))
    sender.start()
    assert split_payload(worker.frame()) == (b"ctx", body)
    sender.join()


def test_a_request_in_single_bytes_is_understood(serve_command):
    """The worker does not care how the server cuts its frames."""
    worker = serve_command("echo")
    for byte in encode_pid(1) + encode_payload(b"c", b"slow"):
        worker.send(bytes([byte]))
    assert worker.frame().flags == CONTROL
    assert split_payload(worker.frame()) == (b"c", b"slow")


def test_nothing_printed_reaches_the_relay(serve_program):
    """print, os.write, child processes and C libraries all end up on standard error."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    assert worker.exec(b"print") == (b"", b"printed")
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    for text in ("before the worker was made", "by print", "by os.write", "by a child", "by libc"):
        assert text in worker.stderr()


def test_standard_input_is_empty_for_the_application(serve_program):
    """Reading standard input gives nothing instead of a piece of the protocol."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    assert worker.exec(b"read") == (b"", b"''")


@pytest.mark.parametrize("verb", ["twice", "forget"])
def test_each_payload_is_answered_exactly_once(serve_program, verb):
    """A second answer, and a wait without an answer, raise instead of confusing the server."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", verb.encode()))
    assert worker.exit_code() == 1
    assert "LocalProtocolError" in worker.stderr()
    assert len(worker.rest()) == (19 if verb == "twice" else 0)


# End of stream


@every_relay
def test_end_of_stream_before_the_handshake(serve_command, relay):
    """A server that goes away before its first word ends the worker quietly."""
    worker = serve_command("echo", relay=relay)
    worker.close_relay()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


@every_relay
def test_end_of_stream_while_idle(serve_command, relay):
    """A server that goes away between requests ends the worker quietly."""
    worker = serve_command("echo", relay=relay)
    worker.shake_hands()
    worker.exec(b"x")
    worker.close_relay()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


@pytest.mark.parametrize("length", [1, 11, 12, 15, 16, 20])
def test_end_of_stream_inside_a_frame(serve_command, length):
    """A server that dies in the middle of a frame ends the worker quietly, too."""
    worker = serve_command("echo")
    worker.shake_hands()
    worker.send(encode_payload(b"context", b"body")[:length])
    worker.close_relay()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


@every_relay
def test_end_of_stream_during_a_job(serve_program, relay):
    """The job is finished and answered, then the worker leaves."""
    worker = serve_program("worker.py", relay=relay)
    worker.shake_hands()
    worker.send(encode_payload(b"", b"sleep 0.05"))
    worker.close_relay()
    assert split_payload(worker.frame()) == (b"", b"slept")
    assert worker.exit_code() == 0


def test_a_server_that_takes_no_answer_is_no_error(serve_program):
    """An answer into a closed pipe ends the loop with status 0 and without a traceback."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"sleep 0.05"))
    worker.process.stdout.close()
    worker.process.stdin.close()
    assert worker.exit_code() == 0
    assert "left the loop" in worker.stderr()
    assert "Traceback" not in worker.stderr()


def test_end_of_stream_inside_a_stream(serve_program):
    """An endless answer ends when the server is gone."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"endless"))
    assert worker.frame().stream == STREAM
    worker.close_relay()
    worker.process.stdout.close()
    assert worker.exit_code() == 0
    assert "stream stopped" in worker.stderr()


# Signals


@every_relay
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_wakes_an_idle_worker(serve_program, relay, number):
    """SIGTERM and SIGINT end a waiting worker at once with status 0."""
    worker = serve_program("worker.py", relay=relay)
    worker.shake_hands()
    worker.exec(b"x")
    worker.signal(number)
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    assert "Traceback" not in worker.stderr()


def test_a_signal_before_the_handshake(serve_program):
    """A worker that has not been spoken to yet leaves as well."""
    worker = serve_program("worker.py")
    worker.wait_stderr("\nmade")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert worker.rest() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_job_lets_it_finish(serve_program, number):
    """The job at hand is done and answered first, however often the signal comes."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"sleep 0.3"))
    worker.wait_stderr("sleeping")
    worker.signal(number)
    worker.signal(number)
    assert split_payload(worker.frame()) == (b"", b"slept")
    assert worker.exit_code() == 0
    assert worker.rest() == b""


def test_a_second_job_after_the_signal_is_handed_back(serve_program):
    """The server is asked to run a job elsewhere that it sent to a worker which is already leaving."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"sleep 0.3"))
    worker.wait_stderr("sleeping")
    worker.signal(signal.SIGTERM)
    worker.send(encode_payload(b"", b"one too many"))
    assert split_payload(worker.frame()) == (b"", b"slept")
    assert split_payload(worker.frame()) == (STOP_ANSWER_CONTEXT, b"")
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""


def test_a_job_already_sent_is_done_before_leaving(serve_program):
    """A request that lies in the relay when the signal is noticed is still carried out."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.signal(signal.SIGSTOP)
    worker.signal(signal.SIGTERM)
    worker.send(encode_payload(b"", b"just in time"))
    worker.signal(signal.SIGCONT)
    assert split_payload(worker.frame()) == (b"", b"just in time")
    assert worker.exit_code() == 0


@pytest.mark.parametrize("milliseconds", [1, 3, 7, 13, 21])
def test_a_busy_server_loses_nothing_by_a_signal(serve_command, milliseconds):
    """Requests sent without a pause around the signal are all answered; the last one is handed back."""
    worker = serve_command("echo")
    worker.shake_hands()
    timer = threading.Timer(milliseconds / 1000, worker.signal, (signal.SIGTERM,))
    timer.start()
    while (answer := worker.exec(b"x")) == (b"", b"x"):
        pass
    timer.join()
    assert answer == (STOP_ANSWER_CONTEXT, b"")
    worker.send_stop()
    assert worker.exit_code() == 0


def test_a_signal_inside_a_frame(serve_program):
    """With half a request received, the rest is awaited, done and answered."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    frame = encode_payload(b"", b"in two halves")
    worker.signal(signal.SIGSTOP)
    worker.send(frame[:14])
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGCONT)
    worker.send(frame[14:])
    assert split_payload(worker.frame()) == (b"", b"in two halves")
    assert worker.exit_code() == 0


def test_a_signal_inside_a_frame_that_never_ends(serve_program):
    """A request that stays half is given up after about a second."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.signal(signal.SIGSTOP)
    worker.send(encode_payload(b"", b"in two halves")[:14])
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGCONT)
    assert worker.exit_code() == 0
    assert worker.rest() == b""


# Streams


def test_chunks_become_frames(serve_program):
    """Each chunk is a STREAM frame, the context goes with the first, the end has no STREAM bit."""
    worker = serve_program("worker.py", relay="unix")
    worker.shake_hands()
    worker.send(encode_payload(b"ctx", b"stream 3", 0x80))
    assert [worker.frame() for _ in range(4)] == [
        Frame(0x80, STREAM, (3,), b"ctxchunk0"),
        Frame(0x80, STREAM, (0,), b"chunk1"),
        Frame(0x80, STREAM, (0,), b"chunk2"),
        Frame(0x80, 0, (0,), b"last"),
    ]
    assert worker.exec(b"next") == (b"", b"next")


def test_an_answer_without_chunks_is_one_frame(serve_program):
    """A generator that yields nothing gives an ordinary answer, context included."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"ctx", b"stream 0"))
    assert worker.frame() == Frame(0, 0, (3,), b"ctxlast")


def test_pings_on_pipes_come_with_frames_six_and_eleven(serve_program):
    """As released workers do: the frame after every fifth pings, if the ping before was answered."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"stream 12"))
    assert [worker.frame().stream & PING for _ in range(6)] == [0, 0, 0, 0, 0, PING]
    worker.send(PONG_FRAME)
    rest = [worker.frame().stream for _ in range(7)]
    assert rest[-1] == 0
    assert set(rest[:-1]) <= {STREAM, STREAM | PING}
    assert worker.exec(b"next") == (b"", b"next")


def test_sockets_never_ping(serve_program):
    """On sockets no frame carries PING."""
    worker = serve_program("worker.py", relay="unix")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"stream 12"))
    assert [worker.frame().stream for _ in range(13)] == [STREAM] * 12 + [0]


@every_relay
def test_a_stopped_stream_ends_with_one_empty_frame(serve_program, relay):
    """STOP closes the generator; one empty frame without STREAM follows, and the worker lives on."""
    worker = serve_program("worker.py", relay=relay)
    worker.shake_hands()
    worker.send(encode_payload(b"", b"endless"))
    assert worker.frame().stream == STREAM
    worker.send(STOP_STREAM_FRAME)
    while (frame := worker.frame()).stream & STREAM:
        assert frame.payload.startswith(b"chunk")
    assert frame == Frame(0, 0, (0,), b"")
    assert worker.exec(b"next") == (b"", b"next")
    assert "stream stopped" in worker.stderr()


def test_controls_inside_a_stream_wait_for_its_end(serve_program):
    """A pid request and a stop control that come during a stream are dealt with after its last frame."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"endless"))
    worker.frame()
    worker.send(encode_pid(1) + encode_stop() + STOP_STREAM_FRAME)
    while worker.frame().stream & STREAM:
        pass
    assert worker.frame().flags == CONTROL
    assert worker.exit_code() == 0


def test_a_failing_stream_ends_with_its_error(serve_program):
    """What the generator raises comes out of stream(), and error() is then the answer."""
    worker = serve_program("worker.py")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"failing-stream"))
    assert worker.frame().stream == STREAM
    assert worker.frame() == Frame(ERROR, 0, (), b"no second chunk")
    assert worker.exec(b"next") == (b"", b"next")


# Relays


@pytest.mark.parametrize(
    "relay", ["PIPES", "tcp://", "tcp://host", "udp://127.0.0.1:1", "unix://", "nothing"]
)
def test_an_unusable_relay_is_named(serve_command, relay):
    """A relay string that means nothing ends the worker with the string in its message."""
    worker = serve_command("echo", relay=relay)
    assert worker.exit_code() == 1
    assert relay.partition("://")[2] in worker.stderr()
    assert "trailboss-worker: " in worker.stderr()


def test_an_unreachable_relay_is_given_up(serve_command, tmp_path):
    """After eleven tries in about a second the worker says where it could not connect to."""
    worker = serve_command("echo", relay=f"unix://{tmp_path}/nobody")
    assert worker.exit_code() == 1
    assert f"cannot connect to unix://{tmp_path}/nobody (11 tries)" in worker.stderr()


def test_a_relay_that_comes_late_is_found(serve_program, tmp_path):
    """A listener that appears within the tries is connected to."""
    worker = serve_program("worker.py", relay=f"unix://{tmp_path}/late")
    worker.wait_stderr("booting")
    time.sleep(0.1)  # the subject of the test: the listener is late
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{tmp_path}/late")
        listener.listen(1)
        listener.settimeout(5)
        listener.accept()[0].close()
    assert worker.exit_code() == 0


def test_the_pipes_relay_can_be_taken_once(serve):
    """A second Worker on pipes in one process is refused in words."""
    code = "from trailboss_worker.sdk import Worker\na = Worker()\nWorker()\n"
    worker = serve([sys.executable, "-c", code])
    assert worker.exit_code() == 1
    assert "already in use" in worker.stderr()


def test_a_closed_standard_input_is_named(serve):
    """Pipes without a standard input are refused in words."""
    code = "import os\nos.close(0)\nfrom trailboss_worker.cli import main\nraise SystemExit(main(['echo']))"
    worker = serve([sys.executable, "-c", code])
    assert worker.exit_code() == 1
    assert "needs standard input" in worker.stderr()


def test_a_forked_child_does_not_hold_the_relay(serve):
    """A child that outlives its worker must not keep the server from seeing the end."""
    code = (
        "import os, time\nfrom trailboss_worker.sdk import Worker\nworker = Worker()\nworker.wait_payload()\n"
        "if os.fork() == 0:\n    time.sleep(60)\nos._exit(0)"
    )
    worker = serve([sys.executable, "-c", code])
    worker.shake_hands()
    worker.send(encode_payload(b"", b"go", RAW))
    assert worker.rest() == b""
