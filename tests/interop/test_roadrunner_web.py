"""A web application's configuration as RoadRunner users have it, and Laravel Octane's contract with the binary.

configurations/web/.rr.yaml has every key of the http section, HTTPS included, and runs unmodified with PHP workers. What users of
RoadRunner rely on is checked from outside: forms and uploads, static files, compression, headers and CORS, the client's
address behind a proxy, the codes, the access log.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..support.tls_files import Pair, make_pair
from .live import PHP_PROGRAMS, TRAILBOSS, Live, clean_environment, free_port, live, run_trailboss, wait_for

CONFIGURATION = Path(__file__).resolve().parent / "configurations" / "web"
WITH_CORS = {"Origin": "https://eu.shop.example"}


@dataclass
class Reply:
    """One answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def header(self, name: str) -> str:
        """A header, or nothing."""
        return self.headers.get(name, "")


@dataclass
class Shop:
    """The application and its ports."""

    folder: Path
    servers: ExitStack
    authority: Pair
    ports: dict[str, str] = field(default_factory=dict)
    server: Live | None = None

    def start(self, **env: str) -> None:
        """Start the server as its users do."""
        self.ports = {key: str(free_port()) for key in ("RPC_PORT", "STATUS_PORT", "HTTP_PORT", "HTTPS_PORT")}
        address = f"tcp://127.0.0.1:{self.ports['RPC_PORT']}"
        self.server = self.servers.enter_context(
            live(self.folder, address, "serve", env={**self.ports, **env})
        )

    def ask(
        self,
        target: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> Reply:
        """One request on a connection of its own."""
        connection: http.client.HTTPConnection
        if tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", int(self.ports["HTTP_PORT"]), timeout=20)
        else:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", int(self.ports["HTTPS_PORT"]), timeout=20, context=tls
            )
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def told(self, reply: Reply) -> dict[str, object]:
        """What the worker saw."""
        value: dict[str, object] = json.loads(reply.body)
        return value

    def trust(self, *protocols: str) -> ssl.SSLContext:
        """A client that believes in the authority."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


@pytest.fixture
def shop(tmp_path: Path, php: str) -> Iterator[Shop]:
    """A copy of the application with a certificate."""
    assert php
    folder = tmp_path / "web"
    shutil.copytree(CONFIGURATION, folder)
    (folder / "uploads").mkdir()
    (folder / "worker.php").write_text(f"<?php require '{PHP_PROGRAMS}/http_worker.php';\n")
    authority = make_pair("authority", authority=True)
    pair = make_pair("localhost", authority)
    (folder / "ca.pem").write_bytes(authority.cert_pem)
    (folder / "server.crt").write_bytes(pair.cert_pem)
    (folder / "server.key").write_bytes(pair.key_pem())
    with ExitStack() as servers:
        yield Shop(folder, servers, authority)


def part(name: str, filename: str, content: bytes) -> bytes:
    """A file of a form."""
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


@pytest.mark.php
def test_a_web_application_runs_unmodified(shop: Shop) -> None:
    """Each key of the file does what RoadRunner's users expect of it."""
    shop.start()
    # headers.request and headers.response, proxy_ip_parser with trusted_subnets
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Real-Ip": "203.0.113.9"}
    reply = shop.ask("/echo?a[]=1&b=c+d", "GET", {**forwarded, "Cookie": "id=a%20b"})
    told = shop.told(reply)
    assert told["remoteAddr"] == "203.0.113.9"
    assert told["rawQuery"] == "a[]=1&b=c+d"
    assert told["cookies"] == {"id": "a b"}
    headers = told["headers"]
    assert isinstance(headers, dict)
    assert headers["Input"] == ["custom-header"]
    assert reply.header("X-Powered-By") == "RoadRunner"
    # forms become trees
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    told = shop.told(shop.ask("/echo", "POST", form, b"user[name]=Ann&user[tags][]=a&user[tags][]=b"))
    assert json.loads(base64.b64decode(str(told["body"]))) == {"user": {"name": "Ann", "tags": ["a", "b"]}}
    assert told["parsed"] is True
    # uploads.dir, forbid, allow
    body = (
        part("doc", "a.TXT", b"content")
        + part("evil", "b.php", b"<?php")
        + part("other", "c.gif", b"GIF")
        + b"--b--\r\n"
    )
    told = shop.told(shop.ask("/echo", "POST", {"Content-Type": "multipart/form-data; boundary=b"}, body))
    uploads = told["uploads"]
    assert isinstance(uploads, dict)
    assert [uploads[name]["error"] for name in ("doc", "evil", "other")] == [0, 8, 8]
    assert base64.b64decode(uploads["doc"]["content"]) == b"content"
    assert Path(uploads["doc"]["tmpName"]).is_relative_to("uploads") or (
        Path(uploads["doc"]["tmpName"]).parent.parent == shop.folder / "uploads"
    )
    wait_for(lambda: not list((shop.folder / "uploads").iterdir()), "an empty folder of uploads")
    # static: files, conditions, what is forbidden goes to the worker, nothing above the folder
    reply = shop.ask("/robots.txt")
    assert (reply.status, reply.body, reply.header("output")) == (200, b"User-agent: *\n", "output-header")
    assert shop.ask("/robots.txt", headers={"If-None-Match": reply.header("ETag")}).status == 304
    reply = shop.ask("/robots.txt", headers={"Range": "bytes=0-3"})
    assert (reply.status, reply.body) == (206, b"User")
    assert shop.ask("/index.php").body == b"hello"
    assert b"version" not in shop.ask("/../.rr.yaml").body
    # gzip
    reply = shop.ask("/site.css", headers={"Accept-Encoding": "gzip"})
    assert reply.header("Content-Encoding") == "gzip"
    assert gzip.decompress(reply.body).count(b"color: black") == 200
    reply = shop.ask("/size?n=5000", headers={"Accept-Encoding": "gzip"})
    assert (reply.header("Content-Encoding"), gzip.decompress(reply.body)) == ("gzip", b"x" * 5000)
    assert shop.ask("/size?n=5000").body == b"x" * 5000
    # CORS: the expression decides, a preflight never reaches the worker
    reply = shop.ask("/echo", headers=WITH_CORS)
    assert reply.header("Access-Control-Allow-Origin") == WITH_CORS["Origin"]
    assert reply.header("Access-Control-Allow-Credentials") == "true"
    asked = {
        **WITH_CORS,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "X-Token",
    }
    reply = shop.ask("/die", "OPTIONS", asked)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.header("Access-Control-Max-Age") == "600"
    assert "DELETE" in reply.header("Access-Control-Allow-Methods")
    assert (
        shop.ask("/echo", headers={"Origin": "https://evil.example"}).header("Access-Control-Allow-Origin")
        == ""
    )
    # internal_error_code for every failure of the server's side
    assert [shop.ask(target, "POST").status for target in ("/error", "/die", "/slow?us=9000000")] == [505] * 3
    # large bodies are taken: 0 is RoadRunner's 1000 MB
    assert shop.ask("/body", "POST", {}, b"x" * 3_000_000).body == b"x" * 3_000_000


@pytest.mark.php
def test_its_https_side(shop: Shop) -> None:
    """The same answers over TLS, HTTP/2 by ALPN, certificates of clients verified where they are shown."""
    shop.start()
    reply = shop.ask("/echo", tls=shop.trust())
    assert str(shop.told(reply)["uri"]).startswith("https://127.0.0.1")
    with ssl.create_default_context(cafile=str(shop.folder / "ca.pem")).wrap_socket(
        socket.create_connection(("127.0.0.1", int(shop.ports["HTTPS_PORT"])), 20),
        server_hostname="localhost",
    ) as plain:
        assert plain.version() in ("TLSv1.2", "TLSv1.3")
    context = shop.trust("h2", "http/1.1")
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", int(shop.ports["HTTPS_PORT"])), 20),
        server_hostname="localhost",
    ) as both:
        assert both.selected_alpn_protocol() == "h2"
    client = make_pair("client", shop.authority)
    known = shop.trust()
    known.load_cert_chain(*client.write(shop.folder, "client"))
    assert shop.ask("/", tls=known).body == b"hello"
    stranger = shop.trust()
    stranger.load_cert_chain(
        *make_pair("stranger", make_pair("nobody", authority=True)).write(shop.folder, "stranger")
    )
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shop.ask("/", tls=stranger)
    assert shop.ask("/").status == 200


@pytest.mark.php
def test_its_redirect(shop: Shop) -> None:
    """`redirect: true` sends everybody to HTTPS, and says to come there from now on."""
    shop.start(REDIRECT="true")
    reply = shop.ask("/a?b=c", "POST", {"Host": "shop.example:8080"}, b"x")
    assert reply.status == 308
    assert reply.header("Location").startswith("https://shop.example")
    assert reply.header("Location").endswith("/a?b=c")
    reply = shop.ask("/", tls=shop.trust())
    assert (reply.status, reply.body) == (200, b"hello")


@pytest.mark.php
def test_its_access_log(shop: Shop) -> None:
    """`access_logs: true` writes RoadRunner's long record, in JSON on standard output."""
    shop.start()
    shop.ask("/size?n=7", headers={"User-Agent": "shop-test", "Referer": "https://a.example/"})
    server = shop.server
    assert server is not None

    def records() -> list[dict[str, object]]:
        whole = server.stdout[: server.stdout.rfind("\n") + 1].splitlines()
        rows = [json.loads(line) for line in whole if line.startswith("{")]
        return [row for row in rows if row["msg"] == "http access log"]

    (row,) = wait_for(records, "a record of the request")
    assert {
        "status": 200,
        "method": "GET",
        "user_agent": "shop-test",
        "referer": "https://a.example/",
    }.items() <= row.items()
    assert {
        "URI",
        "query",
        "content_len",
        "host",
        "time_local",
        "request_time",
        "start",
        "elapsed",
    } <= row.keys()
    assert {"remote_address", "read_bytes", "write_bytes", "level", "logger", "ts"} <= row.keys()


# --- Laravel Octane ---------------------------------------------------------------------------------------------------

FLAGS = (
    "http.address=127.0.0.1:{http}",
    "server.command={command}",
    "http.pool.num_workers={workers}",
    "http.pool.max_jobs=500",
    "rpc.listen=tcp://127.0.0.1:{rpc}",
    "http.pool.supervisor.exec_ttl=30s",
    "http.static.dir=public",
    "http.middleware=static",
    "logs.mode=production",
    "logs.level=debug",
    "logs.output=stdout",
    "logs.encoding=json",
)


def octane_words(folder: Path, workers: int, php: str) -> tuple[list[str], int, int]:
    """The words of `octane:start`, its port and that of RPC."""
    port, rpc = free_port(), free_port()
    command = f"{php},{PHP_PROGRAMS}/http_worker.php"
    values = {"http": port, "rpc": rpc, "command": command, "workers": workers}
    words = ["-c", str(folder / ".rr.yaml"), "-o", "version=3"]
    for flag in FLAGS:
        words += ["-o", flag.format(**values)]
    return [*words, "serve"], port, rpc


def fetch(port: int, target: str, method: str = "GET") -> Reply:
    """One request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


@pytest.mark.php
def test_octanes_contract(tmp_path: Path, php: str) -> None:
    """Empty file, twelve flags and the version before the command; log lines; silent resets; liveness; SIGTERM."""
    assert len(FLAGS) == 12
    (tmp_path / ".rr.yaml").touch()
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "robots.txt").write_text("static")
    words, port, rpc = octane_words(tmp_path, 2, php)
    with live(tmp_path, f"tcp://127.0.0.1:{rpc}", *words) as server:
        first = {fetch(port, "/pid").body for _ in range(20)}
        assert 1 <= len(first) <= 2
        assert fetch(port, "/robots.txt").body == b"static"
        assert fetch(port, "/status?n=404").status == 404
        # What octane:start shows: one JSON object a line, the request's line under this name.
        lines = wait_for(lambda: logged(server, "/status?n=404"), "the line of the request")
        assert len(lines) == 1
        line = lines[0]
        assert (line["level"], line["logger"], line["msg"]) == ("info", "http", "http log")
        assert (line["method"], line["status"], line["URI"]) == ("GET", 404, "/status?n=404")
        assert isinstance(line["elapsed"], int)
        assert str(line["remote_address"]).startswith("127.0.0.1")
        # What a worker writes to stderr is one message of the logger `server`, as it was written.
        fetch(port, "/stream?n=2")
        wait_for(
            lambda: [
                row for row in rows(server) if row["logger"] == "server" and "stream sent" in str(row["msg"])
            ],
            "the worker's words",
        )
        # octane:status
        os.kill(server.process.pid, 0)
        # octane:reload, as older and newer versions do it
        for version in ([], ["-o", "version=3"]):
            done = run_trailboss(
                tmp_path,
                "-c",
                str(tmp_path / ".rr.yaml"),
                "reset",
                *version,
                "-o",
                f"rpc.listen=tcp://127.0.0.1:{rpc}",
                "-s",
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            second = {fetch(port, "/pid").body for _ in range(20)}
            assert first.isdisjoint(second)
            first = second
        assert server.stderr == ""
        # octane:stop, and Ctrl-C of octane:start; that the exit code is 0 and nothing is left is checked by `live`.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert all({"level", "logger", "msg"} <= row.keys() for row in rows(server))


def rows(server: Live) -> list[dict[str, object]]:
    """Records that are complete; every line but the banner is one."""
    whole = server.stdout[: server.stdout.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in whole if not line.startswith("[INFO]")]


def logged(server: Live, uri: str) -> list[dict[str, object]]:
    """Records of requests for `uri`."""
    return [row for row in rows(server) if row["msg"] == "http log" and row["URI"] == uri]


@pytest.mark.php
def test_octane_with_automatic_workers_and_a_full_pipe(tmp_path: Path, php: str) -> None:
    """`num_workers=0` is one for each processor; nobody reading the log does not stop anybody."""
    (tmp_path / ".rr.yaml").touch()
    (tmp_path / "public").mkdir()
    words, port, _ = octane_words(tmp_path, 0, php)
    process = subprocess.Popen(
        [*TRAILBOSS, *words],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        wait_for(lambda: answers(port), "an answer")
        # Far more log than a pipe holds, at some 300 bytes a request.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(1500):
            connection.request("GET", "/pid?" + "x" * 200)
            assert connection.getresponse().read()
        connection.close()
        pids = {fetch(port, "/pid").body for _ in range(100)}
        assert 1 <= len(pids) <= (os.cpu_count() or 1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert output.splitlines()
    finally:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    """Whether somebody listens."""
    try:
        return fetch(port, "/").status == 200
    except OSError:
        return False
