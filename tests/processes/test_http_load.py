"""Load held (L1, L2): twice what the workers can do sheds what is too much and keeps the rest; thousands of idle connections cost little.

The client of the first is open-loop: it asks at a fixed rate, however slow the answers are, as the world does.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from http_server import (
    HttpServer,
    configuration,
    http_server,
    raise_descriptor_limit,
    request,
    take_answer,
    until,
)
from live_server import PATIENCE

PROGRAM = Path(__file__).resolve().parent / "programs" / "http_trouble.py"
MIB = 1 << 20
WORKERS = 4
SERVICE_SECONDS = 0.02
#: Requests a second that the workers can do.
CAPACITY = WORKERS / SERVICE_SECONDS


@dataclass
class Asked:
    """One request of the open-loop client."""

    sent: float
    received: bytes = b""
    seconds: float = 0.0
    status: int = 0
    retry_after: str = ""


@dataclass
class OpenLoop:
    """Asks at a fixed rate, each time on a connection of its own."""

    server: HttpServer
    data: bytes
    done: list[Asked] = field(default_factory=list)
    failed: int = 0

    def run(self, rate: float, seconds: float) -> list[Asked]:
        """Ask for so long, take every answer, and return what was asked."""
        selector = selectors.DefaultSelector()
        began = time.monotonic()
        total = int(rate * seconds)
        started = 0
        asked: list[Asked] = []
        open_ = 0
        while started < total or open_:
            now = time.monotonic()
            assert now < began + seconds + 30 * PATIENCE
            while started < total and now >= began + started / rate:
                one = Asked(time.monotonic())
                started += 1
                sock = socket.socket()
                sock.connect(self.server.address)
                sock.sendall(self.data)
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, one)
                open_ += 1
            wait = began + started / rate - now if started < total else 0.05
            for key, _ in selector.select(max(wait, 0)):
                one, sock = key.data, key.fileobj  # type: ignore[assignment]
                try:
                    data = sock.recv(65536)
                except OSError:
                    data = b""
                one.received += data
                reply, _ = take_answer(one.received)
                if reply is None and data:
                    continue
                if reply is None:
                    self.failed += 1
                else:
                    one.seconds = time.monotonic() - one.sent
                    one.status = reply.status
                    one.retry_after = reply.headers.get("retry-after", "")
                    asked.append(one)
                selector.unregister(sock)
                sock.close()
                open_ -= 1
        selector.close()
        return asked


def percentile(asked: list[Asked], share: float) -> float:
    """So many of them took at most this long."""
    times = sorted(one.seconds for one in asked)
    return times[min(len(times) - 1, int(len(times) * share))]


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(3.0, id="short"),
        pytest.param(120.0, id="full", marks=[pytest.mark.long, pytest.mark.timeout(300)]),
    ],
)
def test_twice_the_capacity(tmp_path: Path, seconds: float) -> None:
    """Nine tenths of what the workers can do are served, the rest is told at once to come again; afterwards all is as before."""
    config: dict[str, Any] = {
        "server": {"command": [sys.executable, str(PROGRAM)]},
        "http": {"pool": {"num_workers": WORKERS}},
        "logs": {"mode": "production", "level": "warn", "output": ["stderr"]},
    }
    with http_server(tmp_path, config) as server:
        client = OpenLoop(server, request(f"/slow?s={SERVICE_SECONDS}", "GET", b"", "Connection: close"))
        before = client.run(CAPACITY * 0.5, 1.2)
        assert {one.status for one in before} == {200}
        baseline = percentile(before, 0.95)
        served_at_capacity = len([one for one in client.run(CAPACITY, 1.5) if one.status == 200]) / 1.5
        memory = server.rss()
        asked = client.run(CAPACITY * 2, seconds)
        served = [one for one in asked if one.status == 200]
        refused = [one for one in asked if one.status == 503]
        assert len(served) + len(refused) == len(asked)
        assert client.failed == 0
        assert len(served) / seconds >= 0.9 * min(served_at_capacity, CAPACITY)
        assert refused
        assert {one.retry_after for one in refused} == {"1"}
        # A short run has few of them, and the machine's other work in each.
        assert percentile(refused, 0.99 if seconds > 60 else 0.95) <= 0.1 * PATIENCE
        assert server.rss() - memory <= 64 * MIB
        time.sleep(2.0)  # the row gives it two seconds
        after = client.run(CAPACITY * 0.5, 1.2)
        assert {one.status for one in after} == {200}
        assert percentile(after, 0.95) <= baseline + 0.05 * PATIENCE


def test_thousands_of_idle_connections(tmp_path: Path) -> None:
    """5,000 kept connections: at most 20 KiB each, the active ones as fast as before, no descriptor left when they go."""
    count = 5_000
    if raise_descriptor_limit(count + 500) < count + 500:
        pytest.skip("needs more descriptors than this user may have")
    with http_server(tmp_path, configuration("python", tmp_path, workers=2)) as server:
        client = OpenLoop(server, request("/", "GET", b"", "Connection: close"))
        client.run(200, 1.0)
        descriptors, memory = server.descriptors(), server.rss()
        before = client.run(200, 1.5)
        socks: list[socket.socket] = []
        try:
            for number in range(count):
                sock = socket.socket()
                sock.settimeout(10 * PATIENCE)
                sock.bind((f"127.0.0.{number % 200 + 2}", 0))
                sock.connect(server.address)
                sock.sendall(request())
                socks.append(sock)
                if number % 100 == 99:
                    for each in socks[-100:]:
                        reply, _ = take_answer(each.recv(65536))
                        assert reply is not None
                        assert reply.status == 200
            assert server.state()["connections"] == count
            assert (server.rss() - memory) / count <= 20 * 1024
            during = client.run(200, 1.5)
            assert {one.status for one in during} == {200}
            assert percentile(during, 0.95) <= max(1.2 * percentile(before, 0.95), 0.05 * PATIENCE)
        finally:
            for sock in socks:
                sock.close()
        until(lambda: server.descriptors() <= descriptors + 1, 5, "descriptors as before")
        assert server.state()["connections"] == 0
