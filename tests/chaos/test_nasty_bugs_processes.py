"""Known bugs of other servers around processes: those that cannot be ended, that are nobody's, and whose number is reused.

Each test is named after the number of its bug. Real servers and real workers; behind each test the invariants of
:mod:`nasty` hold. Short here, at their full length in the long tier.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from http_server import free_port, request, until
from live_server import PATIENCE, TESTS, seen
from nasty import Site, configuration, loaded, scene

from trailboss.testing.simulation import Fault, FaultPlan, simulate
from trailboss_worker.sdk import Jobs

pytestmark = pytest.mark.timeout(120)
PID_REUSE = TESTS / "support" / "pid_reuse.py"


# --- 14: unkillable or stopped ---------------------------------------------------------------------------------------


def make_stuck(server: Site, kind: str, socks: list[socket.socket]) -> int:
    """Make one worker stopped, deaf, or stopped behind a full pipe; returns its pid."""
    before = set(server.workers())
    if kind == "stopped":
        pid = min(before)
        os.kill(pid, signal.SIGSTOP)
        return pid
    if kind == "pipe full":
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
    sock = server.connect()
    socks.append(sock)
    body = b"" if kind == "deaf" else b"x" * (2 << 20)
    sock.sendall(request("/deaf" if kind == "deaf" else "/size?n=5", "POST", body))
    if kind == "deaf":
        assert sock.recv(100)  # it has answered, and sleeps
        rows = server.call("informer.Workers", "http")["workers"]
        return int(max(rows, key=lambda row: row["numExecs"])["pid"])
    until(lambda: server.pool()["busy"], 5, "a worker that is written to")
    rows = server.call("informer.Workers", "http")["workers"]
    (busy,) = [row for row in rows if row["statusStr"] == "working"]
    for pid in before - {busy["pid"]}:
        os.kill(pid, signal.SIGCONT)
    return int(busy["pid"])


@pytest.mark.parametrize("kind", [pytest.param("stopped", marks=pytest.mark.long), "deaf", "pipe full"])
def test_bug_14_stopped_or_deaf_worker(kind: str, tmp_path: Path) -> None:
    """A worker is stopped, deaf to every signal it can be deaf to, or does not read: reset and stop keep to their times (FPM 2573, Circus 1023).

    Meanwhile probes and other requests are answered as fast as ever.
    """
    pool = {"reset_timeout": "500ms", "stop_timeout": "500ms", "destroy_timeout": "500ms"}
    config = configuration(tmp_path, workers=2, retry=False, pool=pool)
    config["endure"]["grace_period"] = "3s"
    socks: list[socket.socket] = []
    server = Site(tmp_path, config)
    try:
        server.wait_ready()
        server.settle()
        stuck = seen(make_stuck(server, kind, socks))
        assert stuck is not None
        began = time.monotonic()
        assert server.call("resetter.Reset", "http", 10) is True
        assert time.monotonic() - began <= 2 * PATIENCE
        slowest = 0.0
        while stuck.alive:
            assert time.monotonic() - began <= 4 * PATIENCE
            asked = time.monotonic()
            assert server.probe("/health") == 200
            assert server.get("/size?n=5").status == 200
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest <= 0.5 * PATIENCE
        for sock in socks:
            sock.close()
        server.check()
        stuck = seen(make_stuck(server, kind, socks))
        began = time.monotonic()
        server.stop()  # exit code 0, nothing left
        assert time.monotonic() - began <= 4 * PATIENCE
    finally:
        for sock in socks:
            sock.close()
        server.kill()


@pytest.mark.parametrize(
    "seeds", [12, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_bug_14_unkillable_worker(seeds: int) -> None:
    """SIGKILL works late, as with a process in the kernel (state D): resets, kills and the stop end, the corpse is reaped later.

    In made-up time, since no test can make such a process; the code of pools and workers is the production's.
    """
    stuck = 0
    for seed in range(60_000, 60_000 + seeds):
        choose = random.Random(seed)
        faults = []
        for number in range(6):
            at = 2.0 + number * choose.choice((0.0, 0.4, 3.0))
            faults.append(Fault(at, "stick", choose.randrange(4), choose.choice((3.0, 8.0))))
            faults.append(
                Fault(at + 0.01, choose.choice(("kill", "reset", "hang", "freeze")), choose.randrange(4), 5.0)
            )
        faults.append(Fault(30.0, choose.choice(("stop", "hurry", "reset"))))
        faults.sort(key=lambda fault: fault.at)
        result = simulate(seed, FaultPlan(seed, tuple(faults))).check()
        stuck += sum("stick" in line for line in result.trace)
    assert stuck > 0


# --- 15: pid reuse and clock jump ------------------------------------------------------------------------------------


def _may_reuse_pids() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        "echo 400 > /proc/sys/kernel/ns_last_pid",
    ]
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.skipif(
    not _may_reuse_pids(), reason="process namespaces (unshare), or ns_last_pid in them, cannot be used here"
)
@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_bug_15_pid_reuse(rounds: int, tmp_path: Path) -> None:
    """Numbers of dead workers are given to foreign processes, groups too: no signal ever reaches those (Circus 1171, 1231).

    In a namespace of its own, where the next number can be chosen. Killed workers, a reset, a stop, and a killed server
    whose guard ends what is left.
    """
    config = configuration(tmp_path, workers=3, address=f"127.0.0.1:{free_port()}")
    done = subprocess.run(
        [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            sys.executable,
            str(PID_REUSE),
            str(tmp_path),
            str(rounds),
        ],
        input=json.dumps({"version": "3", "rpc": {"listen": f"unix://{tmp_path}/rpc.sock"}, **config}),
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE + rounds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["reused"] >= rounds
    assert told["hurt"] == []
    assert told["left"] == []


def test_bug_15_clock_jump(tmp_path: Path) -> None:
    """The wall clock of the server moves by an hour, then back by two: no timer fires early, late or never (Circus 1171).

    Delayed jobs, ttl and exec_ttl, all under way at the jump. `time.time` of the server's process is what is moved.
    """
    pool = {"num_workers": 2, "supervisor": {"exec_ttl": "800ms"}}
    jobs = {"max_attempts": 1, "pool": pool}
    config = configuration(tmp_path, workers=1, jobs=jobs, pool={"supervisor": {"ttl": "1600ms"}})
    with scene(tmp_path, config) as server:
        (first,) = server.workers()
        before = time.time()
        with server.rpc() as rpc:
            began = time.monotonic()
            Jobs(rpc).push("work", "hang", "{}", id="hanging")
            Jobs(rpc).push("work", "ack", "{}", id="late", delay_seconds=1)
        until(lambda: server.lines("jobs_log"), 5, "the first job begun")
        assert server.call("census.Jump", 3600) > before + 3500
        time.sleep(0.2)
        assert server.call("census.Jump", -7200) < before - 3500
        until(lambda: len(server.lines("jobs_log")) == 2, 5, "the delayed job")
        waited = server.lines("jobs_log")[1]["time"] - before  # a worker's clock, which has not moved
        assert 0.95 <= waited <= 1 + 0.7 * PATIENCE
        until(lambda: server.call("jobs.Books")["total"]["dead"] == 1, 5, "the end of the hanging job")
        ended = time.monotonic() - began
        assert 0.75 <= ended <= 1.2 + 0.7 * PATIENCE
        until(lambda: server.workers() and first not in server.workers(), 4, "another worker after ttl")
        assert server.get("/size?n=5").status == 200
        file = tmp_path / "trailboss.json"
        file.write_text(file.read_text().replace('"ttl": "1600ms"', '"ttl": "1h"'))
        assert server.call("trailboss.Reload")["failed"] == {}


# --- 16: foreign children --------------------------------------------------------------------------------------------


def held_by(pid: int, kind: str) -> set[str]:
    """Sockets or pipes that a process holds."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith(f"{kind}:["):
            found.add(target)
    return found


def listening() -> set[str]:
    """Sockets of this machine on which somebody listens."""
    inodes = set()
    for name, state, place in (("tcp", 3, 9), ("tcp6", 3, 9)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[state] == "0A":
                inodes.add(f"socket:[{words[place]}]")
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "00010000":
            inodes.add(f"socket:[{words[6]}]")
    return inodes


def test_bug_16_foreign_children(tmp_path: Path) -> None:
    """Grandchildren that end with codes of a meaning elsewhere are no workers' deaths; others end with their worker (gunicorn 2807, Supervisor 1101)."""
    with scene(tmp_path, configuration(tmp_path, workers=2), seconds=20) as server:
        workers = set(server.workers())
        for _ in range(3):
            assert server.get("/magic").status == 200
        owner, *children = json.loads(server.get("/family").body)
        families = [who for pid in children if (who := seen(pid)) is not None]
        assert len(families) == 2
        assert server.pool()["deaths"] == 0
        assert set(server.workers()) == workers
        # They have inherited what the worker has, and that is nothing which the server listens on, nor another worker's pipe.
        ours = held_by(server.pid, "socket") & listening()
        assert len(ours) >= 3  # http, status, rpc
        others = set().union(*(held_by(pid, "pipe") for pid in workers - {owner}))
        for pid in children:
            assert held_by(pid, "socket") & ours == set()
            assert held_by(pid, "pipe") & others == set()
        os.kill(owner, signal.SIGKILL)
        until(lambda: not any(who.alive for who in families), 3, "the children ended with their worker")
        server.wait_whole()
        assert server.pool()["deaths"] == 1


def test_bug_16_the_port_is_free_after_a_kill(tmp_path: Path) -> None:
    """Grandchildren live when the server is killed: they are ended, and nothing keeps the ports (claude-mem 2963)."""
    server = Site(tmp_path, configuration(tmp_path, workers=2))
    try:
        server.wait_ready()
        families = [
            who
            for _ in range(2)
            for pid in json.loads(server.get("/family").body)
            if (who := seen(pid)) is not None
        ]
        server.process.kill()
        server.process.wait(10)
        addresses = {"http": server.address, "status": server.status}
        for name, address in addresses.items():
            until(lambda address=address: _can_bind(address), 2, f"the port of {name} free")  # type: ignore[misc]
        until(lambda: not any(who.alive for who in families), 3, "nobody left")
    finally:
        server.kill()


def _can_bind(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen()
        except OSError:
            return False
        return True


def test_bug_16_children_of_on_init(tmp_path: Path) -> None:
    """What on_init leaves behind is ended and is no worker either, whatever its code (RoadRunner 2384)."""
    script = tmp_path / "on_init.sh"
    mine = f"sleep 600.{os.getpid()}"  # nobody else's
    script.write_text(f"(sleep 0.3; exit 3) & (sleep 0.3; exit 100) & setsid {mine} & {mine} & exit 0\n")
    config = configuration(tmp_path)
    config["server"]["on_init"] = {"command": f"sh {script}", "exec_timeout": "10s"}
    with scene(tmp_path, config) as server, loaded(server, 1) as load:
        until(lambda: load.total > 50, 10, "some answers")
        assert server.pool()["deaths"] == 0
        assert [who for who in _commands() if mine in who] == []


def _commands() -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
            except OSError:
                continue
            found.append(command.decode("utf-8", "replace"))
    return found
