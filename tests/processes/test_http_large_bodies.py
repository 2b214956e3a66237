"""A hundred megabytes up and down: 400 MB/s of the supervisor's time at least, in memory that stays as it was.

The time is processor time, since wall-clock time on a shared machine says more about its other work: a second of one core for
400 MB leaves a core that does nothing else 400 MB/s.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_server import HttpServer, configuration, http_server
from live_server import PATIENCE

MEGABYTE = 1 << 20
SIZE = 100 * MEGABYTE
SECONDS_MAX = SIZE / 400e6 * PATIENCE
#: What a body costs in memory besides itself: kernel and worker have the rest.
GROWTH_MAX = 24 * MEGABYTE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A server with Python workers and a large file."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "public").mkdir()
    with (folder / "public" / "large.bin").open("wb") as file:
        file.truncate(SIZE)
    config = configuration(
        "python",
        folder,
        2,
        middleware=["static"],
        static={"dir": str(folder / "public")},
        max_request_size=200,
    )
    with http_server(folder, config) as running:
        yield running


class Watch:
    """The supervisor's processor time, and the most memory it had, while a block runs."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._rss = self._most = server.rss()
        self._began = self._seconds()
        self.seconds = 0.0

    def _seconds(self) -> float:
        fields = Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, self._server.rss())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.seconds = self._seconds() - self._began
        self.growth = self._most - self._rss


def receive(server: HttpServer, target: bytes) -> int:
    """Ask for a target on a connection of its own; return the size of all that comes."""
    buffer = bytearray(MEGABYTE)
    size = 0
    with server.connect() as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
        while count := sock.recv_into(buffer):
            size += count
    return size


def send(server: HttpServer, head: bytes, piece: bytes, count: int, end: bytes = b"") -> bytes:
    """Send a body in pieces; return the end of the answer."""
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n\r\n" % head)
        for _ in range(count):
            sock.sendall(piece)
        sock.sendall(end)
        received = b""
        while data := sock.recv(65536):
            received += data
    return received[-40:]


def upload(server: HttpServer) -> None:
    """A body of known length."""
    answer = send(server, b"Content-Length: %d" % SIZE, bytes(MEGABYTE), 100)
    assert answer.endswith(b"hello %d" % SIZE)


def chunked_upload(server: HttpServer) -> None:
    """A body in chunks."""
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    answer = send(server, b"Transfer-Encoding: chunked", piece, 1600, b"0\r\n\r\n")
    assert answer.endswith(b"hello %d" % SIZE)


def file_answer(server: HttpServer) -> None:
    """A file."""
    assert SIZE < receive(server, b"/large.bin") < SIZE + 1000


def streamed_answer(server: HttpServer) -> None:
    """A worker's answer in parts."""
    assert SIZE < receive(server, b"/stream?n=1600&size=65536") < SIZE + 100_000


@pytest.mark.parametrize("transfer", [upload, chunked_upload, file_answer, streamed_answer])
def test_a_hundred_megabytes(server: HttpServer, transfer: Callable[[HttpServer], None]) -> None:
    """Fast enough, and in memory that does not grow with the body."""
    transfer(server)  # what is made once is made
    with Watch(server) as watch:
        transfer(server)
    assert watch.seconds < SECONDS_MAX
    assert watch.growth < GROWTH_MAX
    assert server.state()["body_files"] == 0
