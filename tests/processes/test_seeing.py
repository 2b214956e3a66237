"""Seeing what a real server does: the status page and its events, `why --http`, and `workers -i` in a terminal of our own."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trailboss.chaos.instance import free_port
from trailboss.small_http import CONNECTIONS_MAX

pytestmark = pytest.mark.timeout(120)

APPLICATION = """
import os, sys, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hold":
        while not os.path.exists("release"):
            time.sleep(0.02)
    if path == "/die":
        print("<script>alert('dead')</script>", file=sys.stderr, flush=True)
        os._exit(3)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""
CONFIGURATION = """
version: "3"
server: {{command: [trailboss-worker, wsgi, "app:application"]}}
rpc: {{listen: "unix://{folder}/rpc.sock"}}
http:
  address: "unix:{folder}/http.sock"
  retry: false
  pool: {{num_workers: 2, max_queue_size: 1}}
status: {{address: "127.0.0.1:{port}"}}
logs: {{level: error, output: stderr}}
"""
TRAILBOSS = (sys.executable, "-m", "trailboss")
HOLD = "/hold?token=very-secret"


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


class Site:
    """A server in a folder of its own, whose requests to /hold are held until `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "app.py").write_text(APPLICATION)
        (folder / ".rr.yaml").write_text(CONFIGURATION.format(folder=folder, port=self.port))
        self.holders: list[threading.Thread] = []
        self.start()

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        self.process = subprocess.Popen(
            [*TRAILBOSS, "serve"], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert b"started" in self.process.stdout.readline()
        self.process.stdout.close()

    def stop(self) -> None:
        """Stop it; it has to end well."""
        self.release()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0

    def ask(self, path: str) -> int:
        """GET on the web server; returns the status."""
        connection = UnixConnection(f"{self.folder}/http.sock")
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def hold(self, count: int) -> None:
        """Have `count` requests under way or in the queue, one after the other."""
        for _ in range(count):
            before = self.seen()
            thread = threading.Thread(target=self.ask, args=(HOLD,))
            thread.start()
            self.holders.append(thread)
            until(lambda before=before: self.seen() > before, "one more request is held")  # type: ignore[misc]

    def seen(self) -> int:
        """Requests that are with workers or wait."""
        (pool,) = self.status("/state")["pools"]
        return int(pool["busy"] + pool["queued"])

    def pids(self) -> set[int]:
        """Process ids of the workers, in a picture that may be a second old."""
        return {worker["pid"] for worker in event(self.port)["pools"][0]["workers"]}

    def release(self) -> None:
        """Let the held requests be answered."""
        (self.folder / "release").touch()
        for thread in self.holders:
            thread.join(30)
        self.holders = []

    def status(self, path: str) -> Any:
        """GET on the status port: JSON, or text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            body = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(body) if body[:1] in (b"{", b"[") else body.decode()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line."""
        return subprocess.run(
            [*TRAILBOSS, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


def until(check: Callable[[], object], what: str, seconds: float = 30.0) -> Any:
    """Wait until `check()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


Start = Callable[..., "Terminal"]


@pytest.fixture
def terminal() -> Iterator[Start]:
    """Make terminals; what still runs in one at the end of a failed test is killed."""
    made: list[Terminal] = []

    def start(folder: Path, *words: str) -> Terminal:
        made.append(Terminal(folder, *words))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server that runs."""
    running = Site(tmp_path)
    try:
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def event(port: int, skip: int = 0) -> dict[str, Any]:
    """Return an event of the stream, after some others."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with sock.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    if not skip:
                        found: dict[str, Any] = json.loads(line[6:])
                        return found
                    skip -= 1
    raise AssertionError("the stream has ended")


def test_a_refusal_says_what_held_the_workers(site: Site) -> None:
    """Two workers held, one request waits, the next is refused: command line, page and events say what held them."""
    site.hold(3)
    assert site.ask("/wanted?password=1") == 503
    report = json.loads(site.command("why", "--http", "--json").stdout)
    (row,) = report["refusals"]
    assert (row["status"], row["reason"], row["method"], row["path"]) == (503, "queue full", "GET", "/wanted")
    assert [holder["doing"] for holder in row["held_by"]] == ["GET /hold", "GET /hold"]
    assert {holder["pid"] for holder in row["held_by"]} == site.pids()
    assert row["queued"] == 1

    told = site.command("why", "--http", "-n", "1")
    assert told.returncode == 0
    for text in (
        "503 queue full: GET /wanted",
        "the workers were busy with:",
        "    GET /hold  for ",
        "1 waited",
    ):
        assert text in told.stdout
    page = site.status("/")
    assert "503 queue full" in page
    assert "held by 2 busy workers, 1 waited" in page
    assert "GET /hold" in page
    for text in (told.stdout, json.dumps(report), page, json.dumps(event(site.port))):
        assert "secret" not in text
        assert "password" not in text


def test_what_a_dying_worker_says_is_text(site: Site) -> None:
    """A worker's last words hold a script: escaped on the page, plain in JSON, and the refusal is there as well."""
    assert site.ask("/die") == 502
    until(lambda: event(site.port)["deaths"]["total"], "the death is recorded")
    page = until(
        lambda: (found := site.status("/")) and "alert" in found and found, "the page shows the death"
    )
    assert "&lt;script&gt;alert(&#x27;dead&#x27;)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    shown = event(site.port)
    assert shown["deaths"]["last"][0]["last_output"] == ["<script>alert('dead')</script>"]
    assert shown["refusals"]["last"][0]["reason"] == "worker died"


def test_a_pool_without_workers_says_why_and_when(site: Site) -> None:
    """Workers that cannot start any more: page, events and refusals say what they died of and when it is tried again."""
    pids = site.pids()
    (site.folder / "app.py").rename(site.folder / "gone.py")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    def degraded() -> dict[str, Any] | None:
        (pool,) = event(site.port)["pools"]
        return pool if pool["phase"] == "degraded" else None

    pool = until(degraded, "the pool is degraded")
    assert "No module named 'app'" in pool["last_failure"]
    waiting = [worker for worker in pool["workers"] if worker["state"] == "waiting"]
    assert waiting
    assert all(worker["pid"] == 0 and worker["next_try_seconds"] >= 0 for worker in waiting)
    assert site.ask("/") == 503
    told = site.command("why", "--http").stdout
    assert "503 no workers: GET /" in told
    assert "No module named &#x27;app&#x27;" in site.status("/")
    (site.folder / "gone.py").rename(site.folder / "app.py")


def test_events_have_rates_and_latencies(site: Site) -> None:
    """Under load the figures are those of the last seconds; what a worker does is there with its age."""
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            assert site.ask("/") == 200
            time.sleep(0.002)

    site.hold(1)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        shown = event(site.port, skip=3)
    finally:
        ended.set()
        thread.join(30)
    web = shown["http"]
    assert web["since_start"] is False
    assert web["per_second"] > 5
    assert 0 < web["latency_ms"]["p50"] <= web["latency_ms"]["p99"] < 5000
    assert web["in_flight"] >= 1
    (held,) = [worker for worker in shown["pools"][0]["workers"] if worker["doing"] == "GET /hold"]
    assert (held["state"], held["doing_seconds"] > 2, held["memory_bytes"] > 1e6) == ("busy", True, True)


def test_three_hundred_watchers_cost_no_probe_and_no_request(site: Site) -> None:
    """300 ask for events and never read: places are bounded, probes and requests are answered, descriptors come back."""
    folder = f"/proc/{site.process.pid}/fd"
    before = len(os.listdir(folder))
    crowd = [socket.socket() for _ in range(300)]
    for sock in crowd:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", site.port))
        try:
            sock.send(b"GET /events?as=page HTTP/1.1\r\nHost: localhost\r\n\r\n")
        except OSError:  # all connections are taken: closed at once
            pass
    try:
        for _ in range(5):
            assert site.status("/health")[0]["status_code"] == 200
            assert site.ask("/") == 200
        assert len(os.listdir(folder)) <= before + CONNECTIONS_MAX + 2
    finally:
        for sock in crowd:
            sock.close()
    until(lambda: len(os.listdir(folder)) <= before + 2, "the crowd is forgotten")


# --- workers -i -------------------------------------------------------------------------------------------------------


class Terminal:
    """A program on a terminal of 80 by 24; `screen` is what it has drawn last, without its control sequences."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [*TRAILBOSS, *words],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )
        self._slave = slave
        self.output = b""

    def read(self) -> None:
        """Take what has come."""
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536)

    def wait(self, *texts: str) -> None:
        """Wait until the last drawing has every one of `texts`."""

        def there() -> bool:
            self.read()
            screen = self.output.rpartition(b"\x1b[H")[2].decode("utf-8", "replace")
            return all(text in screen for text in texts)

        until(there, f"{texts} on the screen, which was {self.output[-3000:]!r}")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def end(self) -> int:
        """Wait for the end; the terminal has to be as it was. Returns the exit code."""

        def ended() -> bool:
            self.read()
            return self.process.poll() is not None

        until(ended, "the program ends")
        self.read()
        after = termios.tcgetattr(self._slave)
        os.close(self._slave)
        os.close(self.master)
        assert after == self.before
        if b"\x1b[?1049h" in self.output:
            assert self.output.rfind(b"\x1b[?1049l") > self.output.rfind(b"\x1b[?1049h")
            assert self.output.rfind(b"\x1b[?25h") > self.output.rfind(b"\x1b[?25l")
        return self.process.returncode


def test_workers_live(site: Site, terminal: Start) -> None:
    """What each does is on the screen; + - and r do what they say; a server that goes and comes back is said; q leaves."""
    site.hold(1)
    screen = terminal(site.folder, "workers", "-i")
    screen.wait("1 of 2 busy", "GET /hold", "reset pool")
    screen.type(b"+")
    screen.wait("http has one more worker", "1 of 3 busy")
    screen.type(b"-")
    screen.wait("1 of 2 busy")
    site.release()
    before = site.pids()
    screen.type(b"r")
    screen.wait("http has new workers")
    until(lambda: len(now := site.pids()) == 2 and not now & before, "other workers are there")
    site.stop()
    screen.wait("no answer: ")
    site.start()
    screen.wait("ready", "0 of 2 busy")
    screen.type(b"q")
    assert screen.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(site: Site, terminal: Start, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM, the end of the session: the screen and the keys are given back."""
    screen = terminal(site.folder, "workers", "-i")
    screen.wait("0 of 2 busy")
    if number is signal.SIGINT:
        screen.type(b"\x1a")  # Ctrl-Z would leave the screen drawn; it does nothing
        screen.process.send_signal(number)
    else:
        screen.process.send_signal(number)
    assert screen.end() == 128 + number


def test_without_terminal_or_server_there_is_one_line(site: Site, terminal: Start) -> None:
    """No terminal, nobody there: an error that says what to do, and the terminal untouched."""
    piped = site.command("workers", "-i")
    assert (piped.returncode, piped.stdout) == (1, "")
    assert "needs a terminal" in piped.stderr
    assert piped.stderr.count("\n") == 1
    site.stop()
    screen = terminal(site.folder, "workers", "-i")
    assert screen.end() == 1
    assert b"no server answers at " in screen.output
    assert b"\x1b[?1049h" not in screen.output
    site.start()
