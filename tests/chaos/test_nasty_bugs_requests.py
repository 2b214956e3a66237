"""Known bugs of other servers around single requests, each as a test that is named after its number.

Real servers and real workers; behind each test the invariants of :mod:`nasty` hold. Short here, at their full length in
the long tier.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from http_server import Wish, read_all, request, until
from live_server import PATIENCE, rss_bytes
from nasty import HELLO, LIGHT, PHP_HTTP, TROUBLE, Site, configuration, loaded, needs_php, scene

from trailboss.testing.simulation import Fault, FaultPlan, simulate

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20


# --- 3: idle workers and waiting requests ----------------------------------------------------------------------------


def longest_wait_beside_idle(server: Site, seconds: float) -> float:
    """The longest time in which every look saw both a waiter and an idle worker."""
    longest = since = 0.0
    ends = time.monotonic() + seconds
    with server.rpc() as rpc:
        while (now := time.monotonic()) < ends:
            state: Any = rpc.call("trailboss.State", True)
            pool = next(row for row in state["pools"] if row["name"] == "http")
            if pool["queued"] and pool["idle"]:
                since = since or now
                longest = max(longest, time.monotonic() - since)
            else:
                since = 0.0
            time.sleep(0.005)
    return longest


def test_bug_03_idle_workers_and_waiting_requests(tmp_path: Path, chaos: random.Random) -> None:
    """48 workers whose exec_ttl, ttl and clients' patience end at the same moment: nobody waits beside an idle worker (RoadRunner 737, 847, Passenger 1621).

    Looked for from outside for as long as it lasts; the server's own watchdog, which looks 20 times a second, saw it neither.
    """
    pool = {"supervisor": {"exec_ttl": "400ms", "ttl": "800ms"}}
    config = configuration(tmp_path, workers=48, pool=pool, retry=False)
    with scene(tmp_path, config, seconds=40) as server:
        leavers: list[socket.socket] = []
        longest_looks: list[float] = []
        with loaded(server, 60, [HELLO]) as load:
            ends = time.monotonic() + 1.4
            while time.monotonic() < ends:
                for _ in range(
                    6
                ):  # their requests hang: half of them leave when exec_ttl passes, half a little before
                    sock = server.connect()
                    sock.sendall(request("/slow?s=5"))
                    leavers.append(sock)
                patience = 0.45 if not longest_looks else 0.39 + 0.02 * chaos.random()
                longest_looks.append(longest_wait_beside_idle(server, patience))
                for sock in leavers:
                    sock.close()
                leavers.clear()
            assert load.total > 500
        assert max(longest_looks) <= 0.05 * PATIENCE
        assert server.pool()["deaths"] >= 6  # by exec_ttl
        assert server.detail("core")["watchdog"]["violations"].get("waiter_and_idle_worker", 0) == 0
        file = tmp_path / "trailboss.json"
        file.write_text(
            file.read_text().replace('"800ms"', '"1h"').replace('"num_workers": 48', '"num_workers": 4')
        )
        assert server.call("trailboss.Reload")["failed"] == {}
        server.size["http"] = 4


def interleavings(first: int, wanted: int) -> int:
    """Simulate servers whose limits, kills, recycling and bursts fall into the same moment, until there were `wanted` events."""
    events, seed = 0, first
    while events < wanted:
        choose = random.Random(seed)
        at = choose.uniform(1.0, 20.0)
        kinds = (
            "hang",
            "slow",
            "kill",
            "asks",
            "last",
            "burst",
            "burst",
            "reset",
            "freeze",
            "grow",
            "shrink",
        )
        faults = sorted(
            (
                Fault(
                    round(at + choose.choice((0.0, 0.0, 0.001, 0.05)), 3),
                    choose.choice(kinds),
                    choose.randrange(8),
                    3.0,
                )
                for _ in range(40)
            ),
            key=lambda fault: fault.at,
        )
        events += simulate(seed, FaultPlan(seed, tuple(faults))).check().events
        seed += 1
    return events


@pytest.mark.parametrize(
    "wanted", [5_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_bug_03_interleavings(wanted: int) -> None:
    """The same in made-up time, event by event in random order: "idle and waiting" is one of the invariants there."""
    assert interleavings(50_000, wanted) >= wanted


# --- 7, 8: large and broken-off answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "size"),
    [
        pytest.param(PHP_HTTP, 30 * MIB, id="php", marks=needs_php),
        pytest.param(LIGHT, 100 * MIB, id="long", marks=pytest.mark.long),
    ],
)
def test_bug_07_one_slow_huge_reply(command: list[str], size: int, tmp_path: Path) -> None:
    """A huge answer to a client that reads slowly: the other clients' latency stays as it was (RoadRunner 957)."""
    with scene(tmp_path, configuration(tmp_path, command, 3)) as server:
        with loaded(server, 2) as calm:
            until(lambda: calm.total > 200, 20, "some answers")
        with server.connect() as sock, loaded(server, 2) as load:
            sock.sendall(request(f"/size?n={size}", "GET", b"", "Connection: close"))
            received = 0
            part = size // 60
            while data := sock.recv(part):
                received += len(data)
                if received < size // 2:
                    time.sleep(0.005)
        assert received > size
        assert load.total > 50
        # Known and not mended yet: the loop stands still for 0.2-0.3 s over a whole answer of 100 MiB (watchdog's loop lag).
        stall = 0.25 if size <= 30 * MIB else 0.5
        assert load.slowest <= calm.slowest + stall * PATIENCE


@pytest.mark.parametrize(
    "command", [pytest.param(PHP_HTTP, id="php", marks=needs_php), pytest.param(TROUBLE, id="python")]
)
@pytest.mark.parametrize("step", [41, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_bug_08_client_goes_away_in_a_stream(command: list[str], step: int, tmp_path: Path) -> None:
    """A client leaves a stream after each number of bytes: its worker is free again in time, nobody else notices (RoadRunner 1830)."""
    target = "/stream?us=5000" if command is PHP_HTTP else "/stream"
    page = Wish("page", request("/die-once?mark=/"), b"second")
    config = configuration(tmp_path, command, 2, pool={"stream_timeout": "1s"})
    with scene(tmp_path, config) as server, loaded(server, 1, [page]) as load:
        for offset in range(0, 320, step):
            with server.connect() as sock:
                sock.sendall(request(target))
                left = offset
                while left:
                    data = sock.recv(left)
                    assert data
                    left -= len(data)
            until(lambda: server.state()["in_flight"] <= 1, 1.5, f"the worker free after {offset} bytes")
        until(lambda: load.total > 10, 10, "the other client answered")
        assert server.pool()["deaths"] == 0


# --- 9: limits in the middle of a request ----------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.2, pytest.param(30, marks=pytest.mark.long)])
def test_bug_09_soft_limits_fire_mid_request(seconds: float, tmp_path: Path) -> None:
    """Memory and ttl are passed during a request: it is completed, and the worker replaced afterwards (RoadRunner 1561, 558)."""
    pool = {"supervisor": {"ttl": "500ms", "max_worker_memory": 40}}
    with scene(tmp_path, configuration(tmp_path, workers=1, pool=pool)) as server:
        first = int(server.get("/").body)
        began = time.monotonic()
        reply = server.get(f"/grow?mb=60&s={seconds}")
        assert reply.status == 200
        assert time.monotonic() - began >= seconds
        assert server.pool()["deaths"] == 0
        until(
            lambda: server.pool()["ready"] == 1 and int(server.get("/").body) != first, 10, "another worker"
        )
        file = tmp_path / "trailboss.json"
        file.write_text(file.read_text().replace('"500ms"', '"1h"'))
        assert server.call("trailboss.Reload")["failed"] == {}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(PHP_HTTP, id="php", marks=needs_php),
        pytest.param(LIGHT, id="python", marks=pytest.mark.long),
    ],
)
def test_bug_09_exec_ttl_passed(command: list[str], tmp_path: Path) -> None:
    """Past exec_ttl the client gets 504 at once, the worker is replaced, and its place is kept (RoadRunner 748, 560)."""
    pool = {"supervisor": {"exec_ttl": "300ms"}}
    with scene(tmp_path, configuration(tmp_path, command, 2, pool=pool)) as server:
        workers = set(server.workers())
        for _ in range(2):
            assert server.get("/size?n=5").status == 200
        began = time.monotonic()
        reply = server.get("/slow?us=20000000&s=20")
        took = time.monotonic() - began
        assert (reply.status, reply.headers["trailboss-reason"]) == (504, "exec timeout")
        assert 0.3 <= took <= 0.3 + 0.4 * PATIENCE
        server.wait_whole()
        assert len(set(server.workers()) & workers) == 1
        assert server.pool()["deaths"] == 1


# --- 11: kill -9 at every point --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_bug_11_sigkill_of_one_child(step: int, tmp_path: Path) -> None:
    """Killed while idle and at every point of an answer: only that worker's request fails, the exit code stays 0 (Celery 2011, Dramatiq 376)."""
    whole = 12 + 4 + 56 + 5
    with scene(tmp_path, configuration(tmp_path, workers=3, retry=False), seconds=40) as server:
        deaths = 0
        with loaded(server, 2) as load:  # whose requests must all be answered
            for at in ("request", "answered", *(f"answer-{count}" for count in range(1, whole, step))):
                reply = server.get(f"/kill?at={at}", "POST")
                assert reply.status == (200 if at == "answered" else 502), at
                deaths += 1
                until(lambda deaths=deaths: server.pool()["deaths"] == deaths, 5, f"the death at {at}")  # type: ignore[misc]
            until(lambda: load.total > 10, 10, "the other clients answered")
        server.wait_whole(30)
        for pid in server.workers():  # all of them at once, while they are idle
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.get("/size?n=5").status == 200, 20, "an answer by a new worker")


# --- 19: garbage and half frames -------------------------------------------------------------------------------------

HUGE = b"\x13\x00\xff\xff\xff\xff"
GARBAGE: dict[str, tuple[str, bytes, str]] = {
    "text before the answer": ("where=before", b"Warning: something is wrong\n", "Warning: something"),
    "a stray byte before the answer": ("where=before", b"\n", "\\n"),
    "text instead of an answer": (
        "where=instead",
        b"Fatal error: memory exhausted in /app/x.php\n",
        "Fatal error",
    ),
    "text behind the answer": ("where=behind", b"goodbye for now, it was nice", "goodbye"),
    "half a header, then the end": ("where=instead&then=exit", b"\x13\x00\x05", "\\x13"),
    "zeros": ("where=instead", b"\0" * 100_000, "\\x00"),
}


def test_bug_19_garbage_around_an_answer(tmp_path: Path) -> None:
    """Garbage before, in place of and behind an answer: the worker is replaced, and an error names the bytes (RoadRunner 72, 845, 329)."""
    config = configuration(tmp_path, retry=False, pool={"quarantine": {"deaths": 0}})
    with scene(tmp_path, config, seconds=40) as server:
        memory = rss_bytes(server.pid)
        for number, (name, (query, data, said)) in enumerate(GARBAGE.items()):
            server.get("/size?n=5")
            reply = server.get(f"/raw?{query}", "POST", data)
            assert reply.status == (200 if "behind" in name else 502), name
            until(lambda number=number: server.pool()["deaths"] == number + 1, 5, f"a death by {name}")  # type: ignore[misc]
            death = max(server.call("trailboss.Deaths"), key=lambda row: row["at"])
            text = " ".join(str(death.get(key)) for key in ("text", "stray_output", "hint"))
            assert said in text, (name, death)
            assert server.get("/size?n=5").body == b"xxxxx", name
        assert rss_bytes(server.pid) - memory < 16 * MIB


@pytest.mark.php
@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine")
def test_bug_19_a_php_warning_on_standard_output(tmp_path: Path) -> None:
    """The classic of PHP: a warning on standard output costs its worker, and is quoted in the error (RoadRunner 873)."""
    with scene(tmp_path, configuration(tmp_path, PHP_HTTP, 2, retry=False)) as server:
        assert server.get("/garbage").status == 502
        (death,) = server.call("trailboss.Deaths")
        assert "Warning: something on standard output" in death["stray_output"]
        assert server.get("/size?n=5").body == b"xxxxx"


@pytest.mark.parametrize(
    "how", ["text", "huge", *(pytest.param(how, marks=pytest.mark.long) for how in ("byte", "cut"))]
)
def test_bug_19_garbage_before_the_hello(how: str, tmp_path: Path) -> None:
    """A new worker that begins with text, a byte, a length of 4 GiB or half a frame: never counted, the error is named, the others serve."""
    config = configuration(tmp_path, workers=2, pool={"boot_timeout": "2s"})
    with scene(tmp_path, config, seconds=40) as server, loaded(server, 2):
        memory = rss_bytes(server.pid)
        server.set_mode(how)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.pool()["deaths"] >= 2, 5, "a death in the boot")
        server.set_mode("")
        death = max(server.call("trailboss.Deaths"), key=lambda row: (row["phase"] != "ready", row["at"]))
        told = " ".join(str(death.get(key)) for key in ("text", "stray_output", "hint", "cause"))
        assert death["phase"] == "handshaking", death
        assert {"text": "PHP Warning", "byte": "\\n", "huge": "\\x13", "cut": "\\x13"}[how] in told, death
        assert rss_bytes(server.pid) - memory < 16 * MIB


def test_bug_19_standard_error_without_a_line_feed(tmp_path: Path) -> None:
    """Much on standard error without any line feed: the worker is never blocked, the memory bounded (Supervisor 220, 1417)."""
    with scene(tmp_path, configuration(tmp_path)) as server:
        memory, log = rss_bytes(server.pid), len(server.log)
        for size in (64 << 10, 16 * MIB):
            began = time.monotonic()
            assert server.get(f"/stderr?n={size}").status == 200
            assert time.monotonic() - began <= 3 * PATIENCE
        assert rss_bytes(server.pid) - memory < 12 * MIB
        assert len(server.log) - log < 128 << 10


def test_bug_19_garbage_at_the_rpc_port(tmp_path: Path) -> None:
    """HTTP and other garbage spoken to the RPC port costs its own connection only (RoadRunner jobs commit b4db317)."""
    with scene(tmp_path, configuration(tmp_path)) as server:
        memory = rss_bytes(server.pid)
        for data in (request("/"), HUGE + b"\0" * 6, b"\x13", b"\xa7" * 300_000) * 10:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5 * PATIENCE)
                sock.connect(str(tmp_path / "rpc.sock"))
                try:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    continue  # cut off already
                read_all(sock)  # ends: an answer or the end, in time
            assert server.pool()["ready"] == 2
        assert rss_bytes(server.pid) - memory < 16 * MIB
        assert server.get("/size?n=5").body == b"xxxxx"
