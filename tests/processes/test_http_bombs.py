"""Size bombs (B6): whatever a client sends, memory stays within bounds, the right 4xx comes, and the temp directory is empty.

Each bomb goes to the same server, one after the other, and the next plain request is answered. Memory is the supervisor's own.
"""

from __future__ import annotations

import gzip
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, http_server, request, split_answers, take_answer, until
from live_server import PATIENCE

PROGRAM = Path(__file__).resolve().parent / "programs" / "http_trouble.py"
MIB = 1 << 20
CLOSE = "Connection: close"
FORM = "Content-Type: multipart/form-data; boundary=b"
URLENCODED = "Content-Type: application/x-www-form-urlencoded"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def configuration(**http: Any) -> dict[str, Any]:
    """A server whose forms are parsed for its worker."""
    return {
        "server": {"command": [sys.executable, str(PROGRAM)]},
        "http": {"pool": {"num_workers": 1}, **http},
        "logs": {"mode": "production", "level": "warn", "output": ["stderr"]},
    }


def pieces(data: bytes) -> Iterator[bytes]:
    """One piece."""
    yield data


def part(name: str, extra: str = "", content: bytes = b"x") -> bytes:
    """A part of a form."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def form(body: bytes) -> Iterator[bytes]:
    """A request with a form."""
    yield request("/", "POST", body + b"--b--\r\n", FORM, CLOSE)


def many_headers() -> Iterator[bytes]:
    """100,000 of them."""
    yield b"GET / HTTP/1.1\r\nHost: a\r\n"
    for number in range(1000):
        yield b"".join(b"X-%d-%d: a\r\n" % (number, each) for each in range(100))
    yield b"\r\n"


def long_line() -> Iterator[bytes]:
    """A request line of 1 MiB."""
    yield b"GET /"
    for _ in range(16):
        yield b"a" * 65536
    yield b" HTTP/1.1\r\nHost: a\r\n\r\n"


def chunks_with_extensions() -> Iterator[bytes]:
    """10,000 tiny chunks, each with an extension."""
    yield CHUNKED
    for _ in range(100):
        yield b"1;a=bbbbbbbbbbbbbbbbbbbb\r\nx\r\n" * 100
    yield b"0\r\n\r\n"


def tiny_chunks() -> Iterator[bytes]:
    """A megabyte, one byte a chunk."""
    yield CHUNKED.replace(b"Host: a", b"Host: a\r\nConnection: close")
    for _ in range(1000):
        yield b"1\r\nx\r\n" * 1000
    yield b"0\r\n\r\n"


def endless_chunks() -> Iterator[bytes]:
    """More than max_request_size without saying so before."""
    yield CHUNKED
    for _ in range(400):
        yield b"100000\r\n" + b"x" * MIB + b"\r\n"


def endless_trailers() -> Iterator[bytes]:
    """Trailers without end."""
    yield CHUNKED + b"0\r\n"
    for _ in range(2000):
        yield b"X-A: %b\r\n" % (b"a" * 1000)


def large_file() -> Iterator[bytes]:
    """A form with a file of 150 MB, within the limit."""
    opening = part("f", '; filename="n"', b"")[:-2]
    size = 150 * MIB
    yield request("/", "GET", b"", FORM, CLOSE, f"Content-Length: {len(opening) + size + 9}").replace(
        b"GET", b"POST", 1
    )
    yield opening
    for _ in range(150):
        yield b"x" * MIB
    yield b"\r\n--b--\r\n"


def pipeline() -> Iterator[bytes]:
    """10,000 requests whose answers nobody reads for now."""
    for _ in range(100):
        yield request() * 100


def huge_chunk_sizes() -> Iterator[bytes]:
    """A size with a million digits."""
    yield CHUNKED
    for _ in range(16):
        yield b"0" * 65536
    yield b"1\r\nx\r\n0\r\n\r\n"


#: Name, what is sent, the statuses that may come.
BOMBS: dict[str, tuple[Callable[[], Iterator[bytes]], set[int]]] = {
    "1 GiB, announced": (
        lambda: pieces(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n"),
        {413},
    ),
    "2^64 bytes, announced": (
        lambda: pieces(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        {400, 413},
    ),
    "chunks without end": (endless_chunks, {413}),
    "100,000 headers": (many_headers, {431}),
    "a line of 1 MiB": (long_line, {414}),
    "one header of 1 MiB": (lambda: pieces(request("/", "GET", b"", "X: " + "a" * MIB)), {431}),
    "5,000 cookies": (lambda: pieces(request("/", "GET", b"", CLOSE, "Cookie: " + "a=b; " * 5000)), {200}),
    "10,000 chunks with extensions": (chunks_with_extensions, {400}),
    "a million tiny chunks": (tiny_chunks, {200}),
    "a chunk size of a million digits": (huge_chunk_sizes, {400}),
    "trailers without end": (endless_trailers, {400, 431}),
    "100,000 parts": (lambda: form(part("a") * 100_000), {400, 413}),
    "10,000 files": (lambda: form(part("a", '; filename="n"') * 10_000), {200, 400, 413}),
    "a deep name": (lambda: form(part("a" + "[b]" * 2000)), {200, 400, 413}),
    "10,000 deep names": (
        lambda: form(b"".join(part(f"a{n}" + "[b]" * 60) for n in range(10_000))),
        {200, 400, 413},
    ),
    "a part with a head of 1 MiB": (lambda: form(part("a" * MIB)), {400, 413}),
    "a form of one boundary": (lambda: form(b"--b\r\n" * 200_000), {400, 413}),
    "a million fields": (
        lambda: pieces(request("/", "POST", b"a=b&" * 1_000_000, URLENCODED, CLOSE)),
        {400, 413},
    ),
    "a field of deep arrays": (
        lambda: pieces(request("/", "POST", b"a" + b"[a]" * 100_000 + b"=1", URLENCODED, CLOSE)),
        {200, 400, 413},
    ),
    "a form of 200 MB in one field": (
        lambda: pieces(request("/", "POST", b"a=" + b"b" * 200 * MIB, URLENCODED, CLOSE)),
        {413},
    ),
    "gzip 1:1000": (
        lambda: pieces(
            request("/", "POST", gzip.compress(b"\0" * 100 * MIB), CLOSE, "Content-Encoding: gzip")
        ),
        {200},
    ),
    "a file of 150 MB": (large_file, {200}),
    "a pipeline of 10,000": (pipeline, {200}),
}


def throw(server: HttpServer, bomb: Iterator[bytes], deadline: float) -> bytes:
    """Send a bomb as far as it is taken; return what came back."""
    with server.connect() as sock:
        received = bytearray()
        sock.setblocking(False)
        ended = False
        for piece in bomb:
            view = memoryview(piece)
            while view and not ended:
                assert time.monotonic() < deadline
                try:
                    view = view[sock.send(view) :]
                except BlockingIOError:
                    time.sleep(0.001)
                except OSError:
                    ended = True
                # A pipeline's answers have to be read at some time, or neither goes on.
                if len(received) < 64 * MIB:
                    try:
                        received += sock.recv(65536)
                    except BlockingIOError:
                        pass
                    except OSError:
                        ended = True
            if ended:
                break
        sock.settimeout(1.0)
        while take_answer(bytes(received[:4096]))[0] is None or bytes(received).count(b"HTTP/1.1 ") == 0:
            assert time.monotonic() < deadline
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
            received += data
        return bytes(received)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One server for all; it is judged at the end."""
    folder = tmp_path_factory.mktemp("bombs")
    with http_server(folder, configuration(max_request_size=300, limits={"head_timeout": "5s"})) as running:
        for _ in range(50):
            running.ask(request("/", "GET", b"", CLOSE))
        yield running


@pytest.mark.parametrize("name", BOMBS)
def test_size_bombs(server: HttpServer, name: str) -> None:
    """The right status, bounded memory, nothing left, and the next request is answered."""
    make, statuses = BOMBS[name]
    memory = server.forget_peak()
    received = throw(server, make(), time.monotonic() + 60 * PATIENCE)
    reply, _ = take_answer(received)
    assert reply is not None, (name, received[:100])
    assert reply.status in statuses, (reply.status, reply.headers)
    assert server.peak() - memory <= 32 * MIB
    (probe,) = split_answers(server.ask(request("/", "GET", b"", CLOSE)))
    assert probe.status == 200
    until(lambda: server.state()["in_flight"] == 0, 10, "nothing under way")
    assert list(server.temp.iterdir()) == []
    until(lambda: server.state()["body_files"] == 0, 5, "no file")
    state = server.state()
    assert (state["body_memory_bytes"], state["answer_memory_bytes"], state["answer_files"]) == (0, 0, 0)


def test_many_large_bodies_at_a_time(server: HttpServer) -> None:
    """200 clients with 2 MB each that stop one byte before the end: together they have 64 MB of memory, the rest is in files."""
    memory = server.forget_peak()
    socks: list[socket.socket] = []
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n"
    try:
        for _ in range(200):
            sock = server.connect()
            sock.sendall(head + b"x" * 900_000)
            socks.append(sock)
        until(
            lambda: (
                server.state()["body_memory_bytes"] + server.state()["body_files"] * 900_000 >= 170 * 900_000
            ),
            20,
            "bodies",
        )
        assert server.state()["body_memory_bytes"] <= 64 * MIB
        assert server.peak() - memory <= 96 * MIB
        (probe,) = split_answers(server.ask(request("/", "GET", b"", CLOSE)))
        assert probe.status == 200
    finally:
        for sock in socks:
            sock.close()
    until(lambda: server.state()["body_files"] == 0, 5, "no file")
    assert server.state()["body_memory_bytes"] == 0
