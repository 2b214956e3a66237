"""HTTPS as a real process: good clients of three kinds, bad ones, changed certificates, and sockets passed by systemd.

What counts is seen from outside: contents arrive whole, ends and refusals say what they are, the server's memory stays, and
`http_server` holds every run to a clean end.
"""

from __future__ import annotations

import http.client
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, configuration, free_port, http_server
from live_server import PATIENCE
from tls_files import TlsFiles, make_files, make_pair

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MEGABYTE = 1 << 20


class SecureServer:
    """A server with an HTTPS port, and clients for it."""

    def __init__(self, server: HttpServer, files: TlsFiles, port: int) -> None:
        self.server = server
        self.files = files
        self.port = port
        self.address = ("127.0.0.1", port)

    def context(self, **pairs: tuple[str, str]) -> ssl.SSLContext:
        """Return a context that trusts the test authority, with the client certificate `pair` if there is one."""
        context = ssl.create_default_context(cafile=self.files.ca)
        context.set_alpn_protocols(["http/1.1"])
        for pair in pairs.values():
            context.load_cert_chain(*pair)
        return context

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """Return a connection with its handshake done."""
        sock = socket.create_connection(self.address, 20 * PATIENCE)
        try:
            return (context or self.context()).wrap_socket(sock, server_hostname="localhost")
        except (OSError, ssl.SSLError):
            sock.close()
            raise

    def client(self) -> http.client.HTTPSConnection:
        """Return the standard library's client."""
        return http.client.HTTPSConnection(
            "localhost", self.port, context=self.context(), timeout=20 * PATIENCE
        )

    def serves(self) -> bool:
        """Whether a good client gets its page."""
        with self.connect() as sock:
            sock.sendall(GET)
            return read_answer(sock).endswith(b"hello")


def read_answer(sock: socket.socket) -> bytes:
    """Return one answer with a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(65536)
        assert data, received
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    parts = [body]
    left = length - len(body)
    while left > 0:
        data = sock.recv(65536)
        assert data, left
        parts.append(data)
        left -= len(data)
    return head + b"\r\n\r\n" + b"".join(parts)


def secure_configuration(folder: Path, files: TlsFiles, port: int, **ssl_keys: Any) -> dict[str, Any]:
    """A configuration with an HTTPS port beside the plain one."""
    section = {"address": f"127.0.0.1:{port}", "cert": files.cert, "key": files.key, **ssl_keys}
    return configuration(
        "python", folder, 2, ssl=section, limits={"head_timeout": "1s"}, max_request_size=200
    )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """A server for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("secure")
    files = make_files(folder / "files")
    port = free_port()
    with http_server(folder, secure_configuration(folder, files, port)) as server:
        yield SecureServer(server, files, port)


def test_kept_connections_and_pipelines(secure: SecureServer) -> None:
    """Requests one after the other and all at once, on one connection, answered in order; the scheme is https."""
    with secure.connect() as sock:
        for _ in range(3):
            sock.sendall(GET)
            assert read_answer(sock).endswith(b"hello")
        sock.sendall(GET * 9 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 10
    # An empty read is close_notify: without it Python's ssl raises SSLEOFError.


def test_large_bodies_in_flat_memory(secure: SecureServer) -> None:
    """Fifty megabytes up, and down, and down in parts; the supervisor does not grow with them."""
    client = secure.client()
    before = secure.server.rss()
    most = 0
    client.request(
        "POST", "/", body=(b"x" * MEGABYTE for _ in range(50)), headers={"Content-Length": str(50 * MEGABYTE)}
    )
    assert client.getresponse().read() == b"hello %d" % (50 * MEGABYTE)
    most = max(most, secure.server.rss())
    for path, size in (
        (f"/size?n={50 * MEGABYTE}", 50 * MEGABYTE),
        ("/stream?n=800&size=65536", 800 * 65536),
    ):
        client.request("GET", path)
        answer = client.getresponse()
        received = 0
        while data := answer.read(MEGABYTE):
            received += len(data)
        assert received == size
        most = max(most, secure.server.rss())
    client.close()
    # A worker sends an answer of /size as one frame, which is in memory once.
    assert most - before < 120 * MEGABYTE, (before, most)


def test_curl(secure: SecureServer, tmp_path: Path) -> None:
    """A client with another library behind it."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "up").write_bytes(b"x" * 3_000_000)
    url = f"https://localhost:{secure.port}"
    command = [curl, "-sS", "--cacert", secure.files.ca, "-T", tmp_path / "up", f"{url}/", f"{url}/?again"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert done.stdout.startswith(b"hello 3000000")


def test_http_to_the_https_port(secure: SecureServer) -> None:
    """A person who forgot the s reads what to do."""
    client = http.client.HTTPConnection("localhost", secure.port, timeout=20)
    client.request("GET", "/")
    answer = client.getresponse()
    assert answer.status == 400
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Date"] is not None
    assert answer.headers["trailboss-reason"] == answer.read().decode().strip()
    assert "https" in str(answer.headers["trailboss-reason"])
    client.close()


def test_bad_handshakes_beside_good_ones(secure: SecureServer) -> None:
    """Slow, half-open, reset and nonsense handshakes, three hundred of them, keep no good client waiting and leave nothing."""
    hello = client_hello()
    before = secure.server.descriptors()
    rss = secure.server.rss()
    bad: list[socket.socket] = []
    for number in range(300):
        sock = socket.create_connection(secure.address, 20)
        sock.setblocking(False)
        kind = number % 5
        sock.send((b"\x00\x01\x02", hello[:50], hello, b"\x16\x03\x01\x00\x05hello", b"")[kind] or hello[:1])
        if kind == 4:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            sock.close()
        else:
            bad.append(sock)
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        assert secure.serves()
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0 * PATIENCE
    assert secure.server.rss() - rss < 40 * MEGABYTE
    deadline = time.monotonic() + 10 * PATIENCE
    while bad:  # head_timeout is a second
        assert time.monotonic() < deadline, len(bad)
        readable, _, _ = select.select(bad, [], [], 1)
        for sock in readable:
            try:
                over = not sock.recv(65536)
            except ConnectionResetError:
                over = True
            if over:
                sock.close()
                bad.remove(sock)
    deadline = time.monotonic() + 5 * PATIENCE
    while secure.server.descriptors() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert secure.server.state()["handshakes_failed"] >= 60


def client_hello() -> bytes:
    """Return the first bytes of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        far.do_handshake()
    return outgoing.read()


def test_a_renewed_certificate(secure: SecureServer) -> None:
    """New connections get the new certificate, a kept one stays as it is; a pair that does not fit changes nothing."""

    def shown(sock: ssl.SSLSocket) -> int:
        certificate = sock.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)

    with secure.connect() as kept:
        old = shown(kept)
        kept.sendall(GET)
        assert read_answer(kept).endswith(b"hello")
        renewed = make_pair("localhost", secure.files.authority)
        Path(secure.files.key).write_bytes(make_pair("other").key_pem())
        wait_for_record(secure.server, "the new certificate cannot be used, the old one stays")
        with secure.connect() as sock:
            assert shown(sock) == old
        renewed.write(Path(secure.files.cert).parent, "server")
        deadline = time.monotonic() + 15 * PATIENCE
        while True:
            with secure.connect() as sock:
                if shown(sock) == renewed.certificate.serial_number:
                    break
                assert shown(sock) == old
            assert time.monotonic() < deadline, secure.server.log
            time.sleep(0.1)
        kept.sendall(GET)
        assert read_answer(kept).endswith(b"hello")
    assert len(secure.server.records("the new certificate cannot be used, the old one stays")) == 1


def wait_for_record(server: HttpServer, event: str) -> None:
    """Return when the log has it."""
    deadline = time.monotonic() + 15 * PATIENCE
    while not server.records(event):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)


def test_redirect_and_client_certificates(tmp_path: Path) -> None:
    """Plain requests are sent to https; who shows no certificate, or somebody else's, is told so by TLS."""
    files = make_files(tmp_path / "files")
    port = free_port()
    keys = {"redirect": True, "root_ca": files.ca, "client_auth_type": "require_and_verify_client_cert"}
    good = make_pair("client", files.authority).write(tmp_path, "good")
    foreign = make_pair("client", make_pair("Other", authority=True)).write(tmp_path, "foreign")
    with http_server(tmp_path, secure_configuration(tmp_path, files, port, **keys)) as server:
        plain = http.client.HTTPConnection("localhost", server.port, timeout=20)
        for path, target in (("/a%20b?c=d", "/a%20b?c=d"), ("/", "/")):
            plain.request("POST", path, body=b"x", headers={"Host": f"example.test:{server.port}"})
            answer = plain.getresponse()
            answer.read()
            assert answer.status == 308
            assert answer.headers["Location"] == f"https://example.test:{port}{target}"
            assert (
                answer.headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains; preload"
            )
        plain.close()
        secure = SecureServer(server, files, port)
        with secure.connect(secure.context(pair=good)) as sock:
            sock.sendall(GET)
            assert read_answer(sock).endswith(b"hello")
        for context in (secure.context(), secure.context(pair=foreign)):
            with (
                pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|UNKNOWN_CA"),
                secure.connect(context) as sock,
            ):
                sock.sendall(GET)
                sock.recv(1)


def test_the_stop_loses_nothing(tmp_path: Path) -> None:
    """Clients with kept connections and with fresh ones: whoever gets in by the stop gets the whole answer."""
    files = make_files(tmp_path / "files")
    port = free_port()
    answered, lost = [0], []

    with http_server(tmp_path, secure_configuration(tmp_path, files, port)) as server:
        secure = SecureServer(server, files, port)

        def ask_on(kept: bool) -> None:
            sock = None
            try:
                while True:
                    sock = sock or secure.connect()
                    sock.sendall(GET)
                    answer = read_answer(sock)
                    assert answer.endswith(b"hello")
                    answered[0] += 1
                    if not kept or b"Connection: close" in answer:
                        sock.close()
                        sock = None
            except ConnectionRefusedError:
                return
            except Exception as error:
                lost.append(error)

        clients = [threading.Thread(target=ask_on, args=(number % 2 == 0,)) for number in range(6)]
        for client in clients:
            client.start()
        while answered[0] < 300:
            time.sleep(0.01)
            assert not lost
        server.process.terminate()
        for client in clients:
            client.join(20 * PATIENCE)
            assert not client.is_alive()
        server.process.wait(20 * PATIENCE)  # a second signal would take the rest of its time
    assert lost == []


# --- sockets that were passed -----------------------------------------------------------------------------------------

LAUNCHER = """
import os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
for at, fd in enumerate(fds):
    os.dup2(int(fd), 3 + at, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class ActivatedServer(HttpServer):
    """A server that is started with listening sockets, as systemd does it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sockets: Mapping[str, socket.socket]) -> None:
        self.sockets = sockets
        super().__init__(folder, config)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process by the launcher."""
        # Out of the way of the descriptors they become.
        copies = [os.dup(sock.fileno()) for sock in self.sockets.values()]
        assert min(copies) > 2 + len(copies)
        serve = [sys.executable, "-m", "trailboss", "serve", "-c", "trailboss.json"]
        names = ":".join(self.sockets)
        command = [sys.executable, "-c", LAUNCHER, ",".join(map(str, copies)), names, *serve]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=copies,
                start_new_session=True,
            )
        for fd in copies:
            os.close(fd)
        return process


def listening(family: int, place: Any) -> socket.socket:
    """Return a listening socket, as a socket unit makes it."""
    sock = socket.socket(family)
    sock.bind(place)
    sock.listen(128)
    sock.settimeout(20)
    return sock


def test_activation(tmp_path: Path) -> None:
    """Plain, TLS and unix sockets by their names; no worker has them; who connects between two servers is served by the next."""
    files = make_files(tmp_path / "files")
    path = tmp_path / "web.sock"
    sockets = {
        "plain": listening(socket.AF_INET, ("127.0.0.1", 0)),
        "secure": listening(socket.AF_INET, ("127.0.0.1", 0)),
        "file": listening(socket.AF_UNIX, str(path)),
    }
    config = configuration(
        "python",
        tmp_path,
        1,
        address=["systemd:plain", "systemd:file"],
        ssl={"address": "systemd:secure", "cert": files.cert, "key": files.key},
    )
    plain, secure = (sockets[name].getsockname() for name in ("plain", "secure"))

    def ask(family: int, place: Any) -> bytes:
        with socket.socket(family) as sock:
            sock.settimeout(20)
            sock.connect(place)
            sock.sendall(GET)
            return read_answer(sock)

    server = ActivatedServer(tmp_path, config, sockets)
    try:
        # Nothing has to be waited for: the sockets take connections already.
        assert ask(socket.AF_INET, plain).endswith(b"hello")
        assert ask(socket.AF_UNIX, str(path)).endswith(b"hello")
        assert SecureServer(server, files, secure[1]).serves()
        inodes = {os.fstat(sock.fileno()).st_ino for sock in sockets.values()}
        (worker,) = server.workers()
        links = [os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")]
        assert not [link for link in links if link in {f"socket:[{inode}]" for inode in inodes}]
        assert b"LISTEN_" not in Path(f"/proc/{worker}/environ").read_bytes()
        server.stop()
        assert path.exists()
        with socket.create_connection(plain, 20) as early:
            early.sendall(GET)
            server.process = server.start()
            assert read_answer(early).endswith(b"hello")
        server.stop()
    finally:
        server.kill()
        for sock in sockets.values():
            sock.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            "systemd:wbe",
            "no socket of that name was passed, only: web; correct it, or set FileDescriptorName=wbe",
        ),
        ("127.0.0.1:0", ""),
    ],
)
def test_sockets_that_are_not_asked_for(tmp_path: Path, address: str, text: str) -> None:
    """A wrong name ends the start with what there is; a socket that nobody wants is closed with a warning."""
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as sock:
        server = ActivatedServer(
            tmp_path, configuration("python", tmp_path, 1, address=address), {"web": sock}
        )
        try:
            if text:
                assert server.process.wait(30 * PATIENCE) == 1
                assert text in server.log
            else:
                wait_for_record(server, "a socket that systemd has passed is not used")
                server.stop()
        finally:
            server.kill()
