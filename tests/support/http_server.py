"""A web server as a real process, and clients for it that cost little: plain sockets behind one selector, no task each.

:func:`http_server` starts `trailboss serve` with a temp directory of its own and holds it to a clean end: exit code 0, no
traceback, temp directory empty. :class:`Load` is many clients that ask, each answer checked to its last byte;
:class:`Crowd` is many that misbehave. Both are plain objects that the test turns by hand.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_server import MARK, PATIENCE, children_of, marked, rss_bytes, seen

from trailboss.chaos.instance import free_port
from trailboss_worker.sdk import RPC

PHP_PROGRAMS = Path(__file__).resolve().parent.parent / "php"
START_SECONDS = 20.0 * PATIENCE

APPLICATION = """
import os, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    size = 0
    while part := environ["wsgi.input"].read(65536):
        size += len(part)
    query = dict(pair.split("=") for pair in environ["QUERY_STRING"].split("&") if pair)
    headers = [("Content-Type", "text/plain")]
    if path == "/slow":
        time.sleep(int(query["us"]) / 1e6)
    if path == "/die":
        os._exit(3)
    if path == "/stream":
        start_response("200 OK", headers)
        return (b"x" * int(query["size"]) for _ in range(int(query["n"])))
    body = b"x" * int(query["n"]) if path == "/size" else b"hello %d" % size if size else b"hello"
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]
"""


def raise_descriptor_limit(wanted: int) -> int:
    """Allow this process that many descriptors, as far as it may; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            except (ValueError, PermissionError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class HttpServer:
    """A server that runs."""

    def __init__(self, folder: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.temp = folder / "tmp"
        self.temp.mkdir(exist_ok=True)
        self.rpc_address = f"unix://{folder}/rpc.sock"
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self._mark = secrets.token_hex(8)
        http = {"address": f"127.0.0.1:{self.port}", **config["http"]}
        whole = {"version": "3", "rpc": {"listen": self.rpc_address}, **config, "http": http}
        (folder / "trailboss.json").write_text(json.dumps(whole))
        self._env = {**os.environ, "TMPDIR": str(self.temp), **(env or {}), MARK: self._mark}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "trailboss", "serve", "-c", "trailboss.json"],
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def records(self, event: str) -> list[dict[str, Any]]:
        """Log records with this text."""
        rows = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [row for row in rows if row.get("msg") == event]

    def wait_ready(self) -> None:
        """Return when somebody can connect."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log
            try:
                socket.create_connection(self.address, 5).close()
            except OSError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.01)
            else:
                return

    def connect(self) -> socket.socket:
        """Return a connection that gives up after a while."""
        return socket.create_connection(self.address, 20 * PATIENCE)

    def ask(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, whose other end says when it is over; return all that comes."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def rpc(self) -> RPC:
        """A client; use it in a `with` statement."""
        return RPC(self.rpc_address, timeout_seconds=START_SECONDS)

    def workers(self) -> list[int]:
        """Pids of the ready workers."""
        with self.rpc() as rpc:
            answer = rpc.call("informer.Workers", "http")
        assert isinstance(answer, dict)
        return [row["pid"] for row in answer["workers"] or () if row["statusStr"] in ("ready", "working")]

    def state(self) -> dict[str, Any]:
        """What the plugin tells of itself."""
        with self.rpc() as rpc:
            answer: Any = rpc.call("trailboss.State", True)
        for plugin in answer["plugins"]:
            if plugin["name"] == "http":
                detail: dict[str, Any] = plugin["detail"]
                return detail
        raise AssertionError(answer)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of the command line; end it with `communicate`."""
        return subprocess.Popen(
            [sys.executable, "-m", "trailboss", *words, "-c", "trailboss.json"],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def rss(self) -> int:
        """Resident memory of the supervisor."""
        return rss_bytes(self.pid)

    def peak(self) -> int:
        """The most resident memory since `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def forget_peak(self) -> int:
        """Measure from now on; return the memory now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.rss()

    def descriptors(self) -> int:
        """How many descriptors the supervisor has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> None:
        """Stop it and hold it to a clean end."""
        children = [process for pid in children_of(self.pid) if (process := seen(pid)) is not None]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(START_SECONDS) == 0, self.log
        assert "Traceback" not in self.log, self.log
        deadline = time.monotonic() + 2 * PATIENCE
        while any(process.alive for process in children) or marked(self._mark):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.01)
        assert list(self.temp.iterdir()) == []

    def kill(self) -> None:
        """Make sure that nothing is left, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(START_SECONDS)
        for pid in marked(self._mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def configuration(kind: str, folder: Path, workers: int = 4, **http: Any) -> dict[str, Any]:
    """A configuration with workers of a `kind`, php or python, whose pages are alike. `http` adds keys of that section."""
    if kind == "php":
        command: str | list[str] = f"php {PHP_PROGRAMS}/http_worker.php"
    else:
        (folder / "app.py").write_text(APPLICATION)
        command = ["trailboss-worker", "wsgi", "app:application"]
    pool = {"num_workers": workers, "max_queue_size": 5000, "stop_timeout": "2s", **http.pop("pool", {})}
    return {
        "server": {"command": command},
        "http": {"pool": pool, **http},
        "endure": {"grace_period": "20s"},
        "logs": {"mode": "production", "level": "warn", "output": ["stderr"]},
    }


@contextmanager
def http_server(
    folder: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> Iterator[HttpServer]:
    """A server that is ready inside the block, and is stopped and judged behind it."""
    server = HttpServer(folder, config, env)
    try:
        server.wait_ready()
        yield server
        server.stop()
    finally:
        server.kill()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of a connection; a reset is an end as well."""
    received = bytearray()
    try:
        while data := sock.recv(1 << 20):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


@dataclass
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def split_answers(received: bytes) -> list[Reply]:
    """Answers of one connection, each with a Content-Length or in chunks. Raises AssertionError where one is not whole."""
    replies = []
    while received:
        reply, received = take_answer(received)
        assert reply is not None, received[:200]
        replies.append(reply)
    return replies


def take_answer(received: bytes, *, to_head: bool = False) -> tuple[Reply | None, bytes]:
    """The first answer and what follows; None where it is not whole yet. Interim answers are passed over."""
    head, separator, rest = received.partition(b"\r\n\r\n")
    if not separator:
        return None, received
    lines = head.decode("latin-1").split("\r\n")
    version, code, *_ = lines[0].split(" ")
    assert version == "HTTP/1.1", head
    if code.startswith("1"):
        reply, rest_behind = take_answer(rest, to_head=to_head)
        return reply, received if reply is None else rest_behind
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(": ")
        assert colon, line
        assert name.lower() not in headers or name.lower() == "set-cookie", line
        headers[name.lower()] = value
    if to_head:
        return Reply(int(code), headers, b""), rest
    if headers.get("transfer-encoding") == "chunked":
        return _take_chunks(int(code), headers, received, len(head) + 4)
    length = int(headers["content-length"]) if "content-length" in headers else 0
    if len(rest) < length:
        return None, received
    return Reply(int(code), headers, rest[:length]), rest[length:]


def _take_chunks(
    code: int, headers: dict[str, str], received: bytes, position: int
) -> tuple[Reply | None, bytes]:
    """The chunks from `position` on; as `take_answer`."""
    parts = []
    while True:
        end = received.find(b"\r\n", position)
        if end < 0:
            return None, received
        count = int(received[position:end], 16)
        position = end + 2 + count + 2
        if len(received) < position:
            return None, received
        assert received[position - 2 : position] == b"\r\n"
        if not count:
            return Reply(code, headers, b"".join(parts)), received[position:]
        parts.append(received[end + 2 : position - 2])


def request(target: str = "/", method: str = "GET", body: bytes = b"", *headers: str) -> bytes:
    """A request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: a", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass
class Wish:
    """What clients of one kind ask for, and what they must get."""

    name: str
    data: bytes
    body: bytes
    #: Whether connections are kept.
    kept: bool = True
    #: Answers beside 200 that are no mistake.
    allowed: frozenset[int] = frozenset()


class _Asker:
    """One client."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.sock: socket.socket | None = None
        self.received = b""
        self.unsent = b""
        self.asked_at = 0.0
        #: Requests answered on this connection.
        self.served = 0


@dataclass
class Load:
    """Clients that ask until it is said to be over; `turn` does one round for all that are ready."""

    address: tuple[str, int]
    wishes: Sequence[Wish]
    clients_each: int = 2
    #: Answers by (name of the wish, status).
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    #: Everything that must not be: text, count.
    mistakes: Counter[str] = field(default_factory=Counter)
    #: Connections that the server ended with an answer that said so.
    closed: int = 0
    #: Connections that were refused: nobody listens any more.
    refused: int = 0
    slowest: float = 0.0
    over: bool = False

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._open = 0
        for wish in self.wishes:
            for _ in range(self.clients_each):
                self._connect(_Asker(wish))

    @property
    def total(self) -> int:
        """Answers so far."""
        return self.answers.total()

    def run(self, total: int, seconds: float = 60.0) -> None:
        """Ask until there are `total` answers, or nobody listens any more. Raises AssertionError when it takes too long."""
        deadline = time.monotonic() + seconds * PATIENCE
        while self.total < total and self._open:
            assert time.monotonic() < deadline, (self.total, self.mistakes)
            self.turn()

    def finish(self, seconds: float = 30.0) -> None:
        """Ask nothing new, take what is under way, and close."""
        self.over = True
        deadline = time.monotonic() + seconds * PATIENCE
        while self._open:
            assert time.monotonic() < deadline, (self.total, self._open, self.mistakes)
            self.turn()
        self._selector.close()

    def turn(self) -> None:
        """Serve every client that is ready."""
        for key, mask in self._selector.select(0.05):
            asker: _Asker = key.data
            if asker.sock is None:
                continue
            if mask & selectors.EVENT_WRITE and asker.unsent:
                self._push(asker)
            if mask & selectors.EVENT_READ and asker.sock is not None:
                self._read(asker)

    # --- one client ---------------------------------------------------------------------------------------------------

    def _connect(self, asker: _Asker) -> None:
        sock = socket.socket()
        try:
            sock.connect(self.address)
        except OSError as error:
            sock.close()
            if error.errno != errno.ECONNREFUSED:
                self.mistakes[f"cannot connect: {error}"] += 1
            self.refused += 1
            return
        sock.setblocking(False)
        asker.sock = sock
        asker.received = b""
        asker.served = 0
        self._open += 1
        self._selector.register(sock, selectors.EVENT_READ, asker)
        self._ask(asker)

    def _ask(self, asker: _Asker) -> None:
        asker.asked_at = time.monotonic()
        asker.unsent = asker.wish.data
        self._push(asker)

    def _push(self, asker: _Asker) -> None:
        assert asker.sock is not None
        try:
            asker.unsent = asker.unsent[asker.sock.send(asker.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            asker.unsent = b""  # the end is read below
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if asker.unsent else 0)
        self._selector.modify(asker.sock, events, asker)

    def _read(self, asker: _Asker) -> None:
        assert asker.sock is not None
        try:
            data = asker.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # A kept connection may end between two requests; the client asks again on another one.
            if asker.received or not asker.served:
                self.mistakes[f"{asker.wish.name}: lost after {asker.received[:60]!r}"] += 1
            self._leave(asker)
            return
        asker.received += data
        try:
            reply, asker.received = take_answer(asker.received, to_head=asker.wish.data.startswith(b"HEAD"))
        except (AssertionError, ValueError, KeyError) as error:
            self.mistakes[f"{asker.wish.name}: broken: {error}"[:300]] += 1
            self._leave(asker)
            return
        if reply is None:
            return
        self.slowest = max(self.slowest, time.monotonic() - asker.asked_at)
        self._judge(asker, reply)
        asker.served += 1
        closes = reply.headers.get("connection") == "close"
        self.closed += closes and asker.wish.kept
        if closes or not asker.wish.kept or self.over:
            self._leave(asker)
        else:
            self._ask(asker)

    def _judge(self, asker: _Asker, reply: Reply) -> None:
        wish = asker.wish
        self.answers[wish.name, reply.status] += 1
        if reply.status == 200:
            if reply.body != wish.body:
                self.mistakes[f"{wish.name}: another body {reply.body[:60]!r}"] += 1
        elif reply.status not in wish.allowed:
            self.mistakes[f"{wish.name}: {reply.status} {reply.headers.get('trailboss-reason')}"] += 1
        if asker.received:
            self.mistakes[f"{wish.name}: more than one answer {asker.received[:60]!r}"] += 1

    def _leave(self, asker: _Asker) -> None:
        assert asker.sock is not None
        self._selector.unregister(asker.sock)
        asker.sock.close()
        asker.sock = None
        self._open -= 1
        if not self.over:
            self._connect(asker)


@dataclass
class Crowd:
    """Clients that send a beginning and then only what `trickle` says; who are told or cut off, and when."""

    address: tuple[str, int]
    #: What each one has been sent, cut to its first bytes; by number.
    received: dict[int, bytes] = field(default_factory=dict)
    #: When each one was ended by the server.
    gone: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._socks: dict[int, socket.socket] = {}
        self._joined: dict[int, float] = {}

    def join(self, count: int, beginning: bytes, *, reads: bool = True, receive_buffer: int = 0) -> None:
        """Connect `count` clients that send `beginning`; those that do not read notice the end only by an error."""
        for _ in range(count):
            sock = socket.socket()
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(10 * PATIENCE)
            sock.connect(self.address)
            sock.sendall(beginning)
            sock.setblocking(False)
            number = len(self._socks) + len(self.gone)
            self._joined[number] = time.monotonic()
            self._socks[number] = sock
            self.received[number] = b""
            if reads:
                self._selector.register(sock, selectors.EVENT_READ, number)

    def __len__(self) -> int:
        return len(self._socks)

    def turn(self, seconds: float = 0.0) -> None:
        """Note what has come and who was ended."""
        for key, _ in self._selector.select(seconds):
            number: int = key.data
            sock = self._socks[number]
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                self.received[number] = (self.received[number] + data)[:200]
                continue
            self._end(number)

    def send(self, data: bytes) -> None:
        """Everybody who is still there sends a little more."""
        for number, sock in list(self._socks.items()):
            try:
                sock.send(data)
            except BlockingIOError:
                continue
            except OSError:
                self._end(number)

    def look(self) -> None:
        """For clients that do not read: note whose connection has been cut."""
        for number, sock in list(self._socks.items()):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end(number)

    def slowest(self) -> float:
        """Seconds that the last one had from its own beginning."""
        return max((gone - self._joined[number] for number, gone in self.gone.items()), default=0.0)

    def close(self) -> None:
        """Everybody leaves."""
        for sock in self._socks.values():
            sock.close()
        self._socks.clear()
        self._selector.close()

    def _end(self, number: int) -> None:
        sock = self._socks.pop(number)
        with suppress(KeyError):  # one that does not read is not registered
            self._selector.unregister(sock)
        sock.close()
        self.gone[number] = time.monotonic()


def until(check: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until `check()` is true. Raises AssertionError with `what`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
