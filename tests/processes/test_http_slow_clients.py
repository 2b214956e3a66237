"""Slow clients (B5): a thousand at a time that are slow with their head, with their body, in reading, or say nothing at all.

Meanwhile probes are answered at once, the slow are gone in time, memory and descriptors stay within bounds. All clients are plain
sockets behind one selector, so the figures are the server's. The default tier has short limits, the long one the default ones.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from http_server import (
    Crowd,
    HttpServer,
    configuration,
    free_port,
    http_server,
    raise_descriptor_limit,
    request,
    split_answers,
    until,
)
from live_server import PATIENCE
from tls_files import make_pair

CLIENTS = 1000
MIB = 1 << 20
SHORT = {"head_timeout": "1s", "body_grace": "1s", "write_timeout": "1s", "idle_timeout": "1500ms"}
PROBE = request("/", "GET", b"", "Connection: close")
#: How the clients begin, what they go on with, and what they are told in the end.
KINDS: dict[str, tuple[bytes, bytes, bytes]] = {
    "head": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", b"a", b"HTTP/1.1 408 "),
    "body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"b", b"HTTP/1.1 408 "),
    "chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nb\r\n",
        b"HTTP/1.1 408 ",
    ),
    "read": (request("/size?n=400000"), b"", b""),
    "stream": (request("/stream?size=40000&n=10"), b"", b""),
    "idle": (b"", b"", b""),
    "kept": (request(), b"", b"HTTP/1.1 200 "),
}
#: Limits, and seconds after which the last one who does not read is gone: its kernel may take a little at first.
LIMITS = [
    pytest.param(SHORT, 15, id="short"),
    pytest.param(
        {"idle_timeout": "12s"}, 75, id="default", marks=[pytest.mark.long, pytest.mark.timeout(900)]
    ),
]


class Probes:
    """Requests of a good client, one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.seconds: list[float] = []

    def one(self) -> None:
        """Ask once."""
        began = time.monotonic()
        (reply,) = split_answers(self.server.ask(PROBE))
        self.seconds.append(time.monotonic() - began)
        assert (reply.status, reply.body) == (200, b"hello")

    def judge(self) -> None:
        """99 of 100 within half a second."""
        assert len(self.seconds) >= 100
        assert sorted(self.seconds)[int(len(self.seconds) * 0.99) - 1] <= 0.5 * PATIENCE


def crowd_in(server: HttpServer, probes: Probes, kind: str, memory: int, seconds: float) -> int:
    """Let a thousand of a kind come, and everybody be ended; return the most memory that took beyond `memory`."""
    beginning, more, told = KINDS[kind]
    reads = kind not in ("read", "stream")
    crowd = Crowd(server.address)
    most = 0
    try:
        for _ in range(CLIENTS // 20):
            crowd.join(20, beginning, reads=reads, receive_buffer=0 if reads else 4096)
            if not reads:  # what their answers cost is work, not slowness
                until(lambda: server.state()["in_flight"] == 0, 10, "the workers free")
            probes.one()
            crowd.turn()
        most = max(most, server.rss() - memory)
        deadline = time.monotonic() + 100 * PATIENCE
        while len(crowd):
            assert time.monotonic() < deadline, (kind, len(crowd), server.state())
            crowd.turn(0.02)
            if more:
                crowd.send(more)
            elif not reads:
                crowd.look()
            probes.one()
            most = max(most, server.rss() - memory)
        assert len(crowd.gone) == CLIENTS
        assert all(received.startswith(told) for received in crowd.received.values())
        assert crowd.slowest() <= (15 if reads else seconds) * PATIENCE
    finally:
        crowd.close()
    return most


@pytest.mark.parametrize(("limits", "seconds"), LIMITS)
def test_a_thousand_slow_clients_stop_nobody(tmp_path: Path, limits: dict[str, Any], seconds: float) -> None:
    """Each kind in turn, on one server."""
    if raise_descriptor_limit(2 * CLIENTS + 500) < CLIENTS + 500:
        pytest.skip("needs more descriptors than this user may have")
    with http_server(tmp_path, configuration("python", tmp_path, limits=limits)) as server:
        probes = Probes(server)
        for _ in range(50):
            probes.one()
        descriptors = server.descriptors()
        most = {}
        for kind in KINDS:
            memory = server.rss()
            most[kind] = crowd_in(server, probes, kind, memory, seconds)
            until(lambda: server.descriptors() <= descriptors, 5, "descriptors as before")
            assert list(server.temp.iterdir()) == []
        probes.judge()
        assert {kind: size for kind, size in most.items() if size > 64 * MIB} == {}
        state = server.state()
        assert (
            state["connections"],
            state["in_flight"],
            state["answer_memory_bytes"],
            state["answer_files"],
        ) == (0,) * 4
        assert (state["body_memory_bytes"], state["body_files"], state["answers_lost"]) == (0, 0, 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_slow_reader_holds_no_worker(tmp_path: Path, tls: bool) -> None:
    """The only worker streams 30 MB to a client that does not read, and serves others; later all of it arrives."""
    port = free_port()
    cert, key = make_pair("localhost").write(tmp_path, "server")
    keys: dict[str, Any] = {"ssl": {"address": f"127.0.0.1:{port}", "cert": cert, "key": key}} if tls else {}
    with ExitStack() as stack:
        server = stack.enter_context(
            http_server(tmp_path, configuration("python", tmp_path, workers=1, **keys))
        )
        sock: socket.socket
        if tls:
            context = ssl.create_default_context(cafile=cert)
            raw = socket.create_connection(("127.0.0.1", port), 20 * PATIENCE)
            sock = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
        else:
            sock = stack.enter_context(server.connect())
        sock.sendall(request("/stream?size=100000&n=300", "GET", b"", "Connection: close"))
        probes = Probes(server)
        for _ in range(20):
            probes.one()
        state = server.state()
        assert (state["in_flight"], state["answer_files"]) == (0, 1)
        received = bytearray()
        while data := sock.recv(MIB):
            received += data
        (reply,) = split_answers(bytes(received))
        assert reply.body == b"x" * 30_000_000
        until(lambda: server.state()["answer_files"] == 0, 5, "the file given back")
        sock.close()


def test_an_endless_stream_waits_for_its_client(tmp_path: Path) -> None:
    """One that is longer than its file holds its worker, within its limits, until the client reads or is cut off."""
    limits = {"answer_memory": 1, "answer_file": 4, "write_timeout": "1s"}
    with http_server(tmp_path, configuration("python", tmp_path, workers=1, limits=limits)) as server:
        memory = server.rss()
        for reads in (True, False):
            with server.connect() as sock:
                sock.sendall(request("/stream?size=100000&n=400", "GET", b"", "Connection: close"))
                until(lambda: server.state()["answer_files"] == 1, 5, "a file")
                assert server.state()["in_flight"] == 1
                if reads:
                    received = bytearray()
                    while data := sock.recv(MIB):
                        received += data
                    (reply,) = split_answers(bytes(received))
                    assert reply.body == b"x" * 40_000_000
                else:
                    until(lambda: server.state()["in_flight"] == 0, 10, "the cut")
                    with pytest.raises(ConnectionResetError):
                        while sock.recv(MIB):
                            pass
        assert server.rss() - memory < 32 * MIB
