"""HTTP/2 as a real process, over TLS and without: many streams, large bodies, other people's clients, floods, the stop."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from http2_client import Ended, Http2Client, Reply
from http_server import HttpServer, configuration, free_port, http_server
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, RstStreamFrame
from live_server import PATIENCE
from tls_files import TlsFiles, make_files

MEGABYTE = 1 << 20
CALM = 11
LAST = (1 << 31) - 1


class Site:
    """A server with a plain and an HTTPS port that speaks HTTP/2 on both."""

    def __init__(self, server: HttpServer, files: TlsFiles, port: int) -> None:
        self.server = server
        self.files = files
        self.secure_port = port
        self.clients: list[Http2Client] = []

    def context(self, *protocols: str) -> ssl.SSLContext:
        """Return a context that trusts the test authority and offers `protocols`."""
        context = ssl.create_default_context(cafile=self.files.ca)
        context.set_alpn_protocols(list(protocols or ("h2", "http/1.1")))
        return context

    def connect(self, kind: str = "plain") -> Http2Client:
        """Return a client, closed in the end."""
        if kind == "tls":
            client = Http2Client(("127.0.0.1", self.secure_port), self.context(), 20 * PATIENCE)
        else:
            client = Http2Client(self.server.address, timeout=20 * PATIENCE)
        self.clients.append(client)
        return client

    def settled(self) -> None:
        """Return when no request is under way."""
        deadline = time.monotonic() + 10 * PATIENCE
        while self.server.state()["in_flight"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def site_configuration(folder: Path, files: TlsFiles, port: int, **http: Any) -> dict[str, Any]:
    """The configuration of a site."""
    return configuration(
        "python",
        folder,
        2,
        **{
            "ssl": {"address": f"127.0.0.1:{port}", "cert": files.cert, "key": files.key},
            "http2": {"h2c": True},
            "max_request_size": 200,
            "limits": {"head_timeout": "5s"},
            **http,
        },
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("h2")
    files = make_files(folder / "files")
    port = free_port()
    with http_server(folder, site_configuration(folder, files, port)) as server:
        yield Site(server, files, port)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The site; what a test has opened is closed."""
    yield shared
    for client in shared.clients:
        client.close()
    shared.clients.clear()


KINDS = pytest.mark.parametrize("kind", ["plain", "tls"])


@KINDS
def test_a_hundred_streams_at_once(site: Site, kind: str) -> None:
    """Pages, large answers, streams and uploads, mixed on one connection: each is what it has to be."""
    client = site.connect(kind)
    wanted: dict[int, bytes] = {}
    for number in range(100):
        kind_of_request = number % 4
        if kind_of_request == 0:
            wanted[client.ask()] = b"hello"
        elif kind_of_request == 1:
            wanted[client.ask(f"/size?n={number * 5000}")] = b"x" * (number * 5000)
        elif kind_of_request == 2:
            wanted[client.ask(f"/stream?n=20&size={number}")] = b"x" * (20 * number)
        else:
            wanted[client.ask("/", "POST", b"y" * (number * 3000))] = b"hello %d" % (number * 3000)
    replies = client.wait(*wanted)
    assert [reply.status for reply in replies] == [200] * 100
    assert [bytes(reply.body) for reply in replies] == list(wanted.values())
    assert client.settings[3] == 128  # MAX_CONCURRENT_STREAMS


@KINDS
def test_large_bodies_in_flat_memory(site: Site, kind: str) -> None:
    """Thirty megabytes up and down; the supervisor does not grow with them."""
    client = site.connect(kind)
    before = site.server.rss()
    assert client.get("/", "POST", bytes(30 * MEGABYTE)).body == b"hello %d" % (30 * MEGABYTE)
    number = client.ask("/stream?n=480&size=65536")
    client.wait(number, seconds=60)
    assert len(client.replies[number].body) == 30 * MEGABYTE
    assert site.server.rss() - before < 24 * MEGABYTE


def test_a_slow_stream_beside_quick_ones(site: Site) -> None:
    """While one answer takes its time, the others of the same connection come."""
    client = site.connect()
    slow = client.ask("/slow?us=400000")
    assert [bytes(client.get().body) for _ in range(5)] == [b"hello"] * 5
    assert not client.replies[slow].over
    assert client.wait(slow)[0].status == 200


def test_the_worker_knows_the_version(site: Site, tmp_path: Path) -> None:
    """SERVER_PROTOCOL, host and scheme, as the application sees them."""
    folder = tmp_path
    config = site_configuration(folder, site.files, free_port())
    (folder / "app.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Connection', 'close'), ('X-Seen', environ['SERVER_PROTOCOL'])])\n"
        "    names = ('HTTP_HOST', 'HTTP_COOKIE', 'wsgi.url_scheme', 'REMOTE_ADDR')\n"
        "    return [' '.join(environ[name] for name in names).encode()]\n"
    )
    with http_server(folder, config) as server:
        client = Http2Client(server.address)
        reply = client.wait(client.ask("/", "GET", b"", ("cookie", "a=b"), ("cookie", "c=d")))[0]
        assert (reply.headers[b"x-seen"], bytes(reply.body)) == (b"HTTP/2.0", b"a a=b; c=d http 127.0.0.1")
        assert b"connection" not in reply.headers
        client.close()


def test_the_client_chooses_the_protocol(site: Site) -> None:
    """By ALPN; without it HTTP/1 is spoken."""
    for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), (("h2",), "h2")):
        with (
            socket.create_connection(("127.0.0.1", site.secure_port), 20) as plain,
            site.context(*offered).wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            assert sock.selected_alpn_protocol() == chosen


def test_http2_can_be_left_out(site: Site, tmp_path: Path) -> None:
    """`http2.enabled: false`: HTTP/1 over TLS, and the preface on the plain port is refused."""
    port = free_port()
    config = site_configuration(tmp_path, site.files, port, http2={"enabled": False})
    with http_server(tmp_path, config) as server:
        assert b" 505 " in server.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            site.context().wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            assert sock.selected_alpn_protocol() == "http/1.1"


def tool(name: str) -> str:
    """Return the path of a program, or skip the test visibly."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@KINDS
def test_curl(site: Site, kind: str, tmp_path: Path) -> None:
    """Uploads and pages by curl; it says that it was HTTP/2."""
    curl = tool("curl")
    if "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("curl cannot speak HTTP/2")
    (tmp_path / "up").write_bytes(b"x" * 3_000_000)
    if kind == "tls":
        url, words = f"https://localhost:{site.secure_port}", ["--http2", "--cacert", site.files.ca]
    else:
        url, words = f"http://127.0.0.1:{site.server.port}", ["--http2-prior-knowledge"]
    # One URL: curl 7.88 cannot use a connection again that began with prior knowledge, whoever the server is.
    command = [curl, "-sS", *words, "-w", " %{http_version}\n", "-T", str(tmp_path / "up"), f"{url}/"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == b"hello 3000000 2"


@KINDS
def test_nghttp_and_h2load(site: Site, kind: str, tmp_path: Path) -> None:
    """The clients of another library: every one of a thousand requests succeeds."""
    nghttp, h2load = tool("nghttp"), tool("h2load")
    secure = kind == "tls"
    url = f"https://127.0.0.1:{site.secure_port}" if secure else f"http://127.0.0.1:{site.server.port}"
    command = [nghttp, *(["--no-verify-peer"] if secure else []), f"{url}/", f"{url}/size?n=200000"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout.replace(b"x", b"") == b"hello"
    assert done.stdout.count(b"x") == 200_000
    (tmp_path / "up").write_bytes(b"y" * 20_000)
    for words in (
        ["-n", "1000", "-c", "4", "-m", "32"],
        ["-n", "200", "-c", "2", "-m", "8", "-d", str(tmp_path / "up")],
    ):
        done = subprocess.run([h2load, *words, f"{url}/"], capture_output=True, timeout=60, check=True)
        count = words[1].encode()
        assert b"%b succeeded, 0 failed, 0 errored" % count in done.stdout, done.stdout.decode()


# --- floods -----------------------------------------------------------------------------------------------------------


def rapid_reset(client: Http2Client) -> Iterator[bytes]:
    """A request and its reset, a hundred thousand of them."""
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/slow?us=1000")]
    for start in range(1, 200_000, 200):
        data = b""
        for number in range(start, start + 200, 2):
            block = client.encoder.encode(fields)
            data += HeadersFrame(number, block, flags=("END_HEADERS", "END_STREAM")).serialize()
            data += RstStreamFrame(number, 8).serialize()
        yield data


def endless_head(_client: Http2Client) -> Iterator[bytes]:
    """A head that goes on and on."""
    yield HeadersFrame(1, b"\x82").serialize()
    for _ in range(10_000):
        yield ContinuationFrame(1, b"\x00\x01a\x7f\xff\xff\x7f" + bytes(16_000)).serialize()


def pings(_client: Http2Client) -> Iterator[bytes]:
    """Two hundred thousand pings."""
    for _ in range(200):
        yield PingFrame(0, b"12345678").serialize() * 1000


def settings(_client: Http2Client) -> Iterator[bytes]:
    """As many changes of mind."""
    for number in range(200):
        payload = struct.pack(">HI", 4, 70_000 + number)
        yield (b"\0\0\x06\x04\0\0\0\0\0" + payload) * 1000


def bombs(client: Http2Client) -> Iterator[bytes]:
    """Fields that unpack to a thousand times their size."""
    yield HeadersFrame(
        1, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 12_000, flags=("END_HEADERS", "END_STREAM")
    ).serialize()


def huge_frame(_client: Http2Client) -> Iterator[bytes]:
    """A frame of sixteen megabytes."""
    yield b"\xff\xff\xff\0\0\0\0\0\1"
    for _ in range(256):
        yield bytes(65_536)


FLOODS = (rapid_reset, endless_head, pings, settings, bombs, huge_frame)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_costs_its_own_connection(
    site: Site, flood: Callable[[Http2Client], Iterator[bytes]]
) -> None:
    """Four who flood, over and over, beside one who asks: the one is served in time, memory stays, the four are cut off."""
    before = site.server.rss()
    floods = site.server.state()["floods"]
    stop = threading.Event()
    codes: list[int] = []

    def attack() -> None:
        while not stop.is_set():
            client = Http2Client(site.server.address, timeout=20 * PATIENCE)
            try:
                for data in flood(client):
                    client.send(data)
                    if stop.is_set():
                        return
            except Ended:
                pass
            finally:
                client.drain()
                codes.extend(code for code, _ in client.goaways)
                client.close()

    attackers = [threading.Thread(target=attack) for _ in range(4)]
    for thread in attackers:
        thread.start()
    good = site.connect()
    slowest = 0.0
    try:
        for _ in range(50):
            began = time.monotonic()
            assert good.get().status == 200
            slowest = max(slowest, time.monotonic() - began)
    finally:
        stop.set()
        for thread in attackers:
            thread.join(30)
    assert not any(thread.is_alive() for thread in attackers)
    assert set(codes) <= {CALM, 6}  # ENHANCE_YOUR_CALM, FRAME_SIZE_ERROR; a reset may overtake the word
    assert slowest < 1.0 * PATIENCE
    assert site.server.rss() - before < 32 * MEGABYTE
    site.settled()
    if flood is not huge_frame:
        assert site.server.state()["floods"] > floods
    assert len(site.server.records("an HTTP/2 client asked too much and was cut off")) <= 3


def test_clients_that_go_leave_nothing(site: Site) -> None:
    """Connections closed in the middle of everything: no request, descriptor or file is left."""
    site.settled()
    descriptors = site.server.descriptors()
    for number in range(30):
        client = Http2Client(site.server.address)
        client.ask("/slow?us=20000")
        client.ask("/size?n=1000000")
        fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]
        client.send(HeadersFrame(5, client.encoder.encode(fields), flags=("END_HEADERS",)).serialize())
        client.send(b"\0\x40\0\0\0\0\0\0\x05" + bytes(16_384))
        if number % 2:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    site.settled()
    deadline = time.monotonic() + 10 * PATIENCE
    while site.server.descriptors() > descriptors or site.server.state()["body_memory_bytes"]:
        assert time.monotonic() < deadline, (site.server.descriptors(), descriptors)
        time.sleep(0.02)
    assert site.server.state()["body_files"] == 0


# --- the stop ---------------------------------------------------------------------------------------------------------


def ask_until_told(client: Http2Client, done: list[Reply], lost: list[str]) -> None:
    """Keep twenty requests under way until the server says it is going; then wait for those that it has taken."""
    open_streams: list[int] = []
    try:
        while not client.goaways:
            while len(open_streams) < 20:
                open_streams.append(client.ask("/slow?us=5000"))
            client.receive()
            over = [number for number in open_streams if client.replies[number].over]
            open_streams = [number for number in open_streams if number not in over]
            done.extend(client.replies[number] for number in over)
        while any(not client.replies[number].over for number in open_streams):
            client.receive()
        done.extend(client.replies[number] for number in open_streams)
    except Ended:
        last = client.goaways[-1][1] if client.goaways else LAST
        lost.extend(
            f"stream {number} of {last}"
            for number in open_streams
            if not client.replies[number].over and number <= last
        )
    finally:
        client.close()


@KINDS
def test_the_stop_under_load_loses_nothing(site: Site, kind: str, tmp_path: Path) -> None:
    """SIGTERM while four clients keep twenty requests under way each: all that were taken are answered."""
    port = free_port()
    with http_server(tmp_path, site_configuration(tmp_path, site.files, port)) as server:
        here = Site(server, site.files, port)
        done: list[Reply] = []
        lost: list[str] = []
        clients = [here.connect(kind) for _ in range(4)]
        threads = [threading.Thread(target=ask_until_told, args=(client, done, lost)) for client in clients]
        for thread in threads:
            thread.start()
        while len(done) < 100:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30 * PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert server.process.wait(30 * PATIENCE) == 0, server.log
    assert lost == []
    assert {reply.status for reply in done} == {200}
    assert all(bytes(reply.body) == b"hello" for reply in done)
    assert all(client.goaways[0] == (0, LAST) for client in clients)


def test_h2spec(site: Site) -> None:
    """Every case of the conformance suite, the strict ones too, where it is installed."""
    h2spec = tool("h2spec")
    command = [h2spec, "-h", "127.0.0.1", "-p", str(site.secure_port), "-t", "-k", "-S"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ", 0 failed" in done.stdout, done.stdout
    assert done.returncode == 0
