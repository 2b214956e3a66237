"""The terminal goes away: a server that was started in it finishes and leaves, one under nohup goes on.

A real terminal (a pty) that is the server's or its shell's, closed at the other end; what is written to it fails from then on.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

from live_server import MARK, PATIENCE, marked  # noqa: E402  the line above makes it findable

pytestmark = pytest.mark.skipif(shutil.which("setsid") is None, reason="util-linux (setsid) is not installed")

CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "trailboss-worker wsgi app:application"}}
http: {{address: "unix:{folder}/web.sock", pool: {{num_workers: 1}}}}
logs: {{level: info, output: [stderr, "{folder}/log.txt"]}}
"""
APPLICATION = """
import time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("slow-has-begun", "w").close()
        time.sleep(1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""
SERVE = f"{sys.executable} -m trailboss serve"


class Terminal:
    """A terminal in which a command runs, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"terminal-{secrets.token_hex(8)}"
        self.master, self.slave = os.openpty()
        self.process: subprocess.Popen[bytes] | None = None
        (folder / ".rr.yaml").write_text(CONFIG.format(folder=folder))
        (folder / "app.py").write_text(APPLICATION)

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        """Run it and wait until the server in it is ready."""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=self.folder,
            env={**os.environ, MARK: self.mark},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        os.close(self.slave)
        self.slave = -1
        eventually(lambda: "server ready" in self.log(), self.log)
        return self.process

    def close(self) -> None:
        """Close the window."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def log(self) -> str:
        """The log, which is a file as well; what comes to the terminal is read away."""
        while self.master >= 0 and select.select([self.master], [], [], 0)[0]:
            try:
                os.read(self.master, 65536)
            except OSError:  # nobody has the other end open: nohup has let go of it
                break
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    def request(self, path: str) -> socket.socket:
        """Send a request; the answer can be read from the socket."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20 * PATIENCE)
        sock.connect(str(self.folder / "web.sock"))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())
        return sock


def answer(sock: socket.socket) -> bytes:
    """All that comes until the end."""
    with sock:
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        return b"".join(parts)


def eventually(check: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait until `check()` is true."""
    deadline = time.monotonic() + 20 * PATIENCE
    while not check():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal; whatever runs in it is ended afterwards."""
    found = Terminal(tmp_path)
    try:
        yield found
    finally:
        found.close()
        if found.slave >= 0:
            os.close(found.slave)
        for pid in marked(found.mark):
            os.kill(pid, signal.SIGKILL)
        if found.process is not None:
            found.process.wait(30)


@pytest.mark.parametrize("with_shell", [False, True], ids=["alone", "in a shell"])
def test_a_server_ends_with_its_terminal(terminal: Terminal, with_shell: bool) -> None:
    """The request under way is answered, the server says why it stops, and nothing of it is left."""
    process = terminal.run(*(("sh", "-c", f"{SERVE}; true") if with_shell else SERVE.split()))
    sock = terminal.request("/slow")
    eventually((terminal.folder / "slow-has-begun").exists, terminal.log)
    terminal.close()
    assert b"done" in answer(sock)
    code = process.wait(30 * PATIENCE)
    assert code == (-signal.SIGHUP if with_shell else 0)
    eventually(lambda: not marked(terminal.mark), lambda: f"left: {marked(terminal.mark)}\n{terminal.log()}")
    said = terminal.log()
    assert "stop signal received" in said
    assert "SIGHUP" in said
    assert "server stopped" in said
    assert "Traceback" not in said


def test_a_server_under_nohup_goes_on(terminal: Terminal) -> None:
    """Neither the end of the terminal nor a later SIGHUP does anything; SIGTERM stops it as ever."""
    process = terminal.run("nohup", "sh", "-c", f"exec {SERVE} >/dev/null 2>&1")
    terminal.close()
    process.send_signal(signal.SIGHUP)
    for _ in range(3):
        assert b"done" in answer(terminal.request("/"))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30 * PATIENCE) == 0
    assert "SIGHUP" not in terminal.log()
    eventually(lambda: not marked(terminal.mark), lambda: f"left: {marked(terminal.mark)}")
