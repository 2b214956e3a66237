"""Large bodies that come as open files beside the pipes: the gateways' side of it."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import struct
import tempfile
from collections.abc import Iterator

import pytest

from trailboss_worker.protocol.control import encode_pid, takes_files
from trailboss_worker.protocol.frames import JSON, encode_frame
from trailboss_worker.protocol.payload import split_payload

from ..support.http_dialogue import read_answer, request

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
CONTENT = os.urandom(4096) * 512  # 2 MiB


@pytest.fixture
def files() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the worker's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def start(serve_command, files):
    """Start a gateway that may be handed files, and see that it says so."""

    def start(kind="wsgi", target="body_files:wsgi"):
        number = files[1].fileno()
        worker = serve_command(
            kind, target, "--chdir", str(PROGRAMS), pass_fds=(number,), TRAILBOSS_FILES=str(number)
        )
        files[1].close()
        worker.send(encode_pid(os.getpid()))
        hello = worker.frame()
        assert takes_files(hello), hello
        return worker

    return start


def hand_over(files, number, content=CONTENT):
    """Send a file."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        socket.send_fds(files[0], [struct.pack("<IQ", number, len(content))], [file.fileno()])


def announce(number, **more):
    """The frame of a request whose body is the file of that number."""
    context, _ = split_payload_of(request(method="POST", **more))
    return encode_frame(context, flags=JSON, options=(len(context), number))


def split_payload_of(frame):
    """Context and body of an encoded frame."""
    from trailboss_worker.protocol.frames import FrameDecoder

    decoder = FrameDecoder()
    decoder.feed(frame)
    return split_payload(decoder.next_frame())


def asked(worker, number):
    """What the application says about the body of that number."""
    worker.send(announce(number))
    answer = read_answer(worker)
    assert answer.status == 200, worker.stderr()
    return json.loads(answer.body)


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_body_in_a_file(start, files, kind):
    """The application reads all of it, knows its length, and no descriptor stays behind; small bodies come as ever."""
    worker = start(kind, f"body_files:{kind}")
    counts = []
    for number in (1, 2, 3):
        hand_over(files, number)
        said = asked(worker, number)
        assert said["size"] == len(CONTENT)
        assert said["sum"] == sum(CONTENT)
        counts.append(len(os.listdir(f"/proc/{worker.process.pid}/fd")))
    assert counts[1:] == counts[:1] * 2
    worker.send(request(method="POST", body=b"abc"))
    assert json.loads(read_answer(worker).body)["size"] == 3
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_body_that_nobody_reads(start, files, kind):
    """An application that answers without reading leaves no descriptor open either."""
    worker = start(kind, f"body_files:{kind}_careless")
    counts = set()
    for number in (1, 2, 3):
        hand_over(files, number)
        worker.send(announce(number))
        assert read_answer(worker).body == b"ok"
        worker.send(request())
        read_answer(worker)
        counts.add(len(os.listdir(f"/proc/{worker.process.pid}/fd")))
    assert len(counts) == 1


def test_files_of_requests_that_never_came(start, files):
    """Files with other numbers are closed; the one that was announced is found behind them."""
    worker = start()
    for number in (1, 2):
        hand_over(files, number, b"stale")
    hand_over(files, 3)
    assert asked(worker, 3)["size"] == len(CONTENT)


def test_the_server_dies_before_the_file_comes(start, files):
    """A worker that waits for its file ends with its server."""
    worker = start()
    worker.send(announce(1))
    files[0].close()
    worker.close_relay()
    assert worker.exit_code() == 0


def test_children_of_the_application_know_nothing(start, files):
    """Neither the variable nor the socket reaches programs that the application starts."""
    worker = start("wsgi", "body_files:child")
    worker.send(request())
    assert json.loads(read_answer(worker).body) == {"variable": None, "sockets": 0}


def test_no_socket_no_promise(serve_command, tmp_path):
    """A variable that names no socket is ignored."""
    with (tmp_path / "file").open("wb") as file:
        worker = serve_command(
            *("wsgi", "body_files:wsgi", "--chdir", str(PROGRAMS)),
            pass_fds=(file.fileno(),),
            TRAILBOSS_FILES=str(file.fileno()),
        )
        worker.send(encode_pid(os.getpid()))
        assert not takes_files(worker.frame())
