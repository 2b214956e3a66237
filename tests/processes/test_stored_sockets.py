"""A server that is killed while its unit's descriptor store has its sockets: nobody is refused, the next one takes over."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

PATIENCE = 2.0 if os.environ.get("CI") else 1.0
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "trailboss-worker wsgi app:application"}}
http: {{address: ["127.0.0.1:0", "unix:{folder}/web.sock"], pool: {{num_workers: 1}}}}
status: {{address: "127.0.0.1:0"}}
metrics: {{address: "127.0.0.1:0"}}
"""
APPLICATION = """
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getppid()}".encode()]
"""
#: Does what systemd does: descriptors from 3 on, and the process's own number, then the program.
LAUNCH = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
moved = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
for index, fd in enumerate(moved):
    os.dup2(fd, 3 + index)
if fds:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "trailboss", "serve"])
"""


class Unit:
    """What systemd does for a service with FileDescriptorStoreMax=."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.store: dict[str, socket.socket] = {}
        self.process: subprocess.Popen[bytes] | None = None
        (folder / ".rr.yaml").write_text(CONFIG.format(folder=folder))
        (folder / "app.py").write_text(APPLICATION)

    def start(self) -> None:
        """Start the server with what is in the store, and wait until it is ready."""
        environ = {
            **os.environ,
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "TRAILBOSS_FDSTORE": "1",
        }
        fds = [sock.fileno() for sock in self.store.values()]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, ",".join(map(str, fds)), ":".join(self.store)],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
            )
        self.listen("READY=1")

    def listen(self, until: str) -> None:
        """Do what the server asks until it says `until`."""
        deadline = time.monotonic() + 20 * PATIENCE
        while True:
            assert select.select([self.notify], [], [], max(0.0, deadline - time.monotonic()))[0], self.log()
            data, fds, _, _ = socket.recv_fds(self.notify, 4096, 4)
            lines = data.decode().split("\n")
            names = [line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")]
            if "FDSTOREREMOVE=1" in lines and names[0] in self.store:
                self.store.pop(names[0]).close()
            for fd in fds:
                sock = socket.socket(fileno=fd)
                self.store.setdefault(names[0], sock)
                if self.store[names[0]] is not sock:
                    sock.close()
            if until in lines:
                return

    def log(self) -> str:
        """What the server has written."""
        return (self.folder / "log.txt").read_text()

    def end(self, number: int) -> int:
        """Signal the server and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30 * PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        for sock in (*self.store.values(), self.notify):
            sock.close()


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    """A unit that runs."""
    found = Unit(tmp_path)
    try:
        found.start()
        yield found
    finally:
        found.close()


def _connection(sock: socket.socket) -> http.client.HTTPConnection:
    """A connection to a listening socket, made at once; its answer may take its time."""
    made = http.client.HTTPConnection("127.0.0.1", timeout=30 * PATIENCE)
    made.sock = socket.socket(sock.family)
    made.sock.settimeout(30 * PATIENCE)
    made.sock.connect(sock.getsockname())
    return made


def _name(unit: Unit, start: str) -> str:
    return next(name for name in unit.store if name.startswith(f"trailboss-{start}"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["crash", "stop"])
def test_who_comes_between_two_servers_is_answered(unit: Unit, end: signal.Signals) -> None:
    """Connections made while there is no server wait, and the next one, on the same sockets, answers them."""
    kinds = sorted(name.split("-")[1] for name in unit.store)
    assert kinds == ["http", "http", "metrics", "rpc", "status"]
    assert unit.process is not None
    first = unit.process.pid
    assert unit.end(end) == (-end if end is signal.SIGKILL else 0)
    if end is signal.SIGTERM:
        unit.listen("FDSTOREREMOVE=1")
        assert [name for name in unit.store if name.startswith("trailboss-rpc")] == []
    places = {name: sock.getsockname() for name, sock in unit.store.items()}
    waiting = [
        _connection(unit.store[_name(unit, kind)]) for kind in ("http-127", "http-unix", "status", "metrics")
    ]
    with ExitStack() as closes:
        for connection, path in zip(waiting, ("/", "/", "/health", "/metrics"), strict=True):
            closes.callback(connection.close)
            connection.request("GET", path)
        unit.start()
        answers = [connection.getresponse() for connection in waiting]
        pages = [answer.read().decode() for answer in answers]
    # The status port is asked before the workers are up, and says so.
    assert answers[3].status == 200, pages[3] + unit.log()[-6000:]
    assert [answer.status for answer in (answers[0], answers[1], answers[3])] == [200, 200, 200]
    assert answers[2].status in (200, 503)
    assert pages[:2] == [str(unit.process.pid)] * 2
    assert unit.process.pid != first
    assert {name: unit.store[name].getsockname() for name in places} == places
    assert "a stored socket is closed" not in unit.log()
    status = subprocess.run(
        [sys.executable, "-m", "trailboss", "workers"],
        cwd=unit.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert status.returncode == 0, status.stderr
    assert unit.end(signal.SIGTERM) == 0


def test_a_changed_address_is_closed_in_the_store(unit: Unit) -> None:
    """What the configuration does not have any more leaves the store at the next start, with one line."""
    gone = _name(unit, "http-unix")
    unit.end(signal.SIGKILL)
    text = (unit.folder / ".rr.yaml").read_text()
    (unit.folder / ".rr.yaml").write_text(text.replace(f', "unix:{unit.folder}/web.sock"', ""))
    unit.start()
    assert gone not in unit.store
    assert not (unit.folder / "web.sock").exists()
    assert unit.log().count("a stored socket is closed") == 1
    assert unit.end(signal.SIGTERM) == 0
