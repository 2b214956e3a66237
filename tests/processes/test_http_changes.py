"""No request is lost (L3, L4): resets, kills and the stop while clients ask, over kept and fresh connections, with and without
bodies, for PHP and for Python workers. Each answer is checked to its last byte.

The default tier does a tenth; the full numbers run in the long tier.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from http_server import HttpServer, Load, Wish, configuration, http_server, request, until
from live_server import PATIENCE

KINDS = [pytest.param("php", marks=pytest.mark.php), "python"]
BODY = b"0123456789abcdef" * 256
#: (requests, resets)
AMOUNTS = [
    pytest.param(5_000, 10, id="tenth"),
    pytest.param(50_000, 100, id="full", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


def wishes(kind: str, *, posts_may_fail: bool = False) -> list[Wish]:
    """Every combination of connection and body."""
    allowed = frozenset({502}) if posts_may_fail else frozenset[int]()
    target = "/body" if kind == "php" else "/"
    back = BODY if kind == "php" else b"hello %d" % len(BODY)
    close = "Connection: close"
    return [
        Wish("kept get", request(), b"hello"),
        Wish("fresh get", request("/", "GET", b"", close), b"hello", kept=False),
        Wish("kept head", request("/", "HEAD"), b""),
        Wish("kept post", request(target, "POST", BODY), back, allowed=allowed),
        Wish("fresh post", request(target, "POST", BODY, close), back, kept=False, allowed=allowed),
    ]


def skip_without(kind: str) -> None:
    """PHP has to be there for its half."""
    if kind == "php" and shutil.which("php") is None:
        pytest.skip("needs php-cli")


def whole(load: Load) -> None:
    """Nothing was lost, broken or wrong."""
    assert load.mistakes == {}


class Resets:
    """Resets while clients ask: each in a thread of its own, as so many people with a command line."""

    def __init__(self, server: HttpServer, load: Load) -> None:
        self.server = server
        self.load = load
        self.done = 0
        self.failures: list[object] = []

    def at_once(self, count: int) -> None:
        """Several at the same time; returns when all have come to their end."""
        threads = [threading.Thread(target=self._reset) for _ in range(count)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.load.turn()
        self.done += count
        assert self.failures == []

    def _reset(self) -> None:
        try:
            with self.server.rpc() as rpc:
                if rpc.call("resetter.Reset", "http") is not True:
                    self.failures.append("refused")
        except Exception as error:
            self.failures.append(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("requests", "resets"), AMOUNTS)
def test_resets_and_a_stop_lose_no_request(tmp_path: Path, kind: str, requests: int, resets: int) -> None:
    """L3: every worker is replaced again and again, one reset after the other and five at once; at the end the server stops."""
    skip_without(kind)
    with http_server(tmp_path, configuration(kind, tmp_path)) as server:
        load = Load(server.address, wishes(kind))
        todo = Resets(server, load)
        before = server.workers()
        while todo.done < resets:
            for number in range(5):
                if number < 3:  # the others follow without a pause
                    load.run(load.total + requests // resets)
                todo.at_once(1)
            todo.at_once(5)
        load.run(requests)
        whole(load)
        assert load.closed == 0
        assert set(before).isdisjoint(server.workers())
        server.process.send_signal(signal.SIGTERM)
        load.run(1 << 60)
        load.finish()
        whole(load)
        assert load.refused > 0
        assert load.closed > 0
        assert load.total >= requests
        assert server.process.wait(20 * PATIENCE) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(2, id="few"),
        pytest.param(25, id="many", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_stops_lose_no_request(tmp_path: Path, kind: str, stops: int, chaos: random.Random) -> None:
    """L4: SIGTERM at any moment; everything that was sent is answered, and the exit code is 0."""
    skip_without(kind)
    for number in range(stops):
        folder = tmp_path / str(number)
        folder.mkdir()
        with http_server(folder, configuration(kind, folder)) as server:
            load = Load(server.address, wishes(kind))
            load.run(chaos.randrange(50, 600))
            server.process.send_signal(signal.SIGTERM)
            load.run(1 << 60)
            load.finish()
            whole(load)
            assert load.refused > 0
            assert server.process.wait(20 * PATIENCE) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("requests", "kills"),
    [
        pytest.param(2_000, 15, id="few"),
        pytest.param(50_000, 500, id="many", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_killed_workers_cost_at_most_their_own_request(
    tmp_path: Path, kind: str, requests: int, kills: int, chaos: random.Random
) -> None:
    """F1 for HTTP: a POST whose worker is killed may be a 502, each kill at most one; GET and HEAD always have an answer."""
    skip_without(kind)
    with http_server(tmp_path, configuration(kind, tmp_path)) as server:
        load = Load(server.address, wishes(kind, posts_may_fail=True))
        killed = 0
        while killed < kills:
            load.run(load.total + requests // kills)
            for pid in chaos.sample(server.workers(), 1):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        load.run(max(requests, load.total + 100))
        load.finish()
        whole(load)
        failed = sum(count for (_, status), count in load.answers.items() if status != 200)
        assert failed <= kills
        assert all(status == 200 for (name, status) in load.answers if "post" not in name)
        until(lambda: len(server.workers()) == 4, 10, "four workers again")


FAULTS: dict[str, Callable[[HttpServer], object]] = {
    "kill": lambda server: os.kill(server.workers()[0], signal.SIGKILL),
    "reset": lambda server: server.begin("reset").communicate(timeout=30),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_uploads_of_a_crash_are_gone(tmp_path: Path, kind: str, fault: str) -> None:
    """A worker that dies with uploaded files, and one that is replaced, leave none of them."""
    skip_without(kind)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="n.txt"\r\n\r\n'
        + b"x" * 50_000
        + b"\r\n--b--\r\n"
    )
    wish = request(
        "/slow?us=1500000", "POST", form, "Content-Type: multipart/form-data; boundary=b", "Connection: close"
    )
    config = configuration(kind, tmp_path, workers=1, uploads={"dir": str(tmp_path / "up")}, raw_body=False)
    (tmp_path / "up").mkdir()
    with http_server(tmp_path, config) as server, server.connect() as sock:
        sock.sendall(wish)
        if kind == "php":
            until(lambda: list((tmp_path / "up").glob("*/upload*")), 5, "an upload")
        else:
            until(lambda: server.state()["in_flight"] == 1, 5, "a request under way")
        FAULTS[fault](server)
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 502 " if fault == "kill" else b"HTTP/1.1 200 ")
        until(lambda: not list((tmp_path / "up").iterdir()), 5, "an empty folder")


@pytest.mark.php
def test_uploads_of_a_killed_server_are_swept(tmp_path: Path) -> None:
    """SIGKILL with an upload under way leaves it; the next start takes it away, and nothing that others have there."""
    skip_without("php")
    uploads = tmp_path / "up"
    uploads.mkdir()
    (uploads / "uploadmyreport").write_text("a user's")
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\nx\r\n--b--\r\n'
    wish = request("/slow?us=5000000", "POST", form, "Content-Type: multipart/form-data; boundary=b")
    with http_server(tmp_path, configuration("php", tmp_path, uploads={"dir": str(uploads)})) as server:
        with server.connect() as sock:
            sock.sendall(wish)
            until(lambda: list(uploads.glob("*/upload*")), 5, "an upload")
            server.process.kill()
            server.process.wait()
        assert len(list(uploads.glob("*/upload*"))) == 1
        server.process = server.start()
        server.wait_ready()
        assert [path.name for path in uploads.iterdir()] == ["uploadmyreport"]
