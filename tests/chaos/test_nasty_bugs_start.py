"""Known bugs of other servers around the start, crash loops and signals, each as a test that is named after its number.

Real servers and real workers; behind each test the invariants of :mod:`nasty` hold. Short here, at their full length in
the long tier.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from http_server import HttpServer, until
from live_server import PATIENCE, TESTS, install_plugins, marked, rss_bytes
from nasty import LIGHT, PYTHON_JOBS, Site, configuration, loaded, needs_php, scene

from trailboss_worker.sdk import RPC, Informer, Jobs, RpcError, Status

pytestmark = pytest.mark.timeout(120)
#: Plugins that are there, and such as are not: switched off, or no plugin at all.
PLUGINS = ("jobs", "http", "rpc", "status", "informer", "metrics", "otel", "reload", "nothing")
TYPED = (
    "service not ready: ",
    "service not available: ",
    "refused during on_init: ",
    "no such plugin",
    "no plugin",
)
FAULTY = (TESTS / "support" / "chaos_plugins.py").read_text()


# --- 1: RPC in the start window --------------------------------------------------------------------------------------


class Outsider(threading.Thread):
    """Asks for every plugin over and over, from before the port is bound until the server has gone."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.slowest = (0.0, "")
        self.start()

    def run(self) -> None:
        """Ask."""
        while not self.over.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(self._address.removeprefix("unix://"))
                with RPC(self._address, timeout_seconds=10) as rpc:
                    for name in PLUGINS:
                        self._one("jobs.List", Jobs(rpc).list)
                        self._one(f"informer.Workers {name}", partial(Informer(rpc).workers, name))
                        self._one(f"status.Status {name}", partial(Status(rpc).status, name))
            except (OSError, RpcError):
                time.sleep(0.005)  # nobody listens yet, or any more

    def _one(self, what: str, ask: Callable[[], object]) -> None:
        began = time.monotonic()
        outcome = "answered"
        try:
            ask()
        except RpcError as error:
            text = getattr(error, "text", "")
            if not text:
                raise
            outcome = "typed" if text.startswith(TYPED) else text
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (time.monotonic() - began, f"{what}: {outcome}"))


@pytest.mark.parametrize("language", [pytest.param("php", marks=needs_php), "python"])
def test_bug_01_rpc_in_the_start_window(language: str, tmp_path: Path) -> None:
    """on_init, every worker and outsiders ask for each plugin, there or not, from the first moment: no crash, an answer in time (RoadRunner 2085)."""
    on_init = f"{sys.executable} {TESTS}/support/nasty_calls.py on_init"
    command = [sys.executable, f"{TESTS}/support/nasty_calls.py", "worker"]
    if language == "php":
        on_init = f"php {TESTS}/php/on_init_list.php"
        command = ["php", f"{TESTS}/support/calling_worker.php"]
    config = configuration(tmp_path, workers=1, jobs={"pool": {"command": command}})
    config["server"]["on_init"] = {"command": on_init, "exec_timeout": "20s", "exit_on_error": True}
    calls = {"CALLS": str(tmp_path / "calls"), "CALL_PLUGINS": " ".join(PLUGINS)}
    config["server"]["env"] |= {**calls, "BOOT_CALLS": "jobs.Stat informer.Workers jobs.Books"}
    config["server"]["on_init"]["env"] = calls
    config["rpc"] = {"listen": f"unix://{tmp_path}/rpc.sock", "ready_timeout": "500ms"}
    outsider = Outsider(f"unix://{tmp_path}/rpc.sock")
    try:
        with scene(tmp_path, config) as server:
            lines = server.lines("calls")
            until(lambda: outsider.outcomes["answered"] > 100, 10, "answers for the outsider")
            outsider.over.set()
            outsider.join(20)
        wrong = [row for row in lines if row["error"] and not row["error"].startswith(TYPED)]
        assert wrong == []
        assert max(row["seconds"] for row in lines) <= 0.5 + 0.5 * PATIENCE
        assert len(lines) >= (6 if language == "php" else 3 * (1 + 2 * len(PLUGINS)))
    finally:
        outsider.over.set()
        outsider.join(20)
    assert set(outsider.outcomes) <= {"answered", "typed"}
    assert outsider.slowest <= (0.5 + 0.5 * PATIENCE, "")


def test_bug_01_while_one_plugin_fails_its_start(tmp_path: Path) -> None:
    """The same while a plugin fails its start: exit code 1 and one line of why, no crash; whoever asked was answered."""
    config = configuration(tmp_path, workers=1, jobs={})
    config["rpc"] = {"listen": f"unix://{tmp_path}/rpc.sock", "ready_timeout": "500ms"}
    env = {**install_plugins(tmp_path, FAULTY, faulty="faulty"), "CHAOS_FAULT": "hang in start"}
    outsider = Outsider(f"unix://{tmp_path}/rpc.sock")
    server = HttpServer(tmp_path, config, env)
    try:
        assert server.process.wait(20 * PATIENCE) == 1
        assert "Traceback" not in server.log
        assert "faulty" in server.log.splitlines()[-1]
    finally:
        outsider.over.set()
        outsider.join(20)
        server.kill()
    assert set(outsider.outcomes) <= {"answered", "typed"}
    assert outsider.outcomes["typed"] > 0
    assert outsider.slowest <= (0.5 + 0.5 * PATIENCE, "")


# --- 2: broken, then healed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(1, 0.6), pytest.param(2, 30.0, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
)
def test_bug_02_broken_then_healed(workers: int, seconds: float, tmp_path: Path) -> None:
    """No new worker boots while all reach their ttl, then all die: the server lives and says so, tries seldom, and heals alone (RoadRunner 772, 1953)."""
    pool = {"allocate_timeout": f"{seconds / 5:g}s", "boot_timeout": "5s", "supervisor": {"ttl": "400ms"}}
    with scene(tmp_path, configuration(tmp_path, workers=workers, pool=pool), seconds=40) as server:
        server.set_mode("exit1")
        file = tmp_path / "trailboss.json"
        file.write_text(file.read_text().replace('"400ms"', '"1h"'))
        ends = time.monotonic() + seconds
        while (
            time.monotonic() < ends
        ):  # the old ones go on beyond their ttl, since nobody could take their place
            assert server.get("/size?n=5").status == 200
            assert server.probe("/health") == 200
            time.sleep(0.02)
        assert server.pool()["ready"] == workers
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.pool()["ready"] == 0, 5, "no worker")
        until(lambda: server.probe("/health") == 503, 5, "health says so")
        boots = len(server.lines("boots"))
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            assert server.get("/size?n=5").status == 503
            assert time.monotonic() - began <= seconds / 5 + 0.5 * PATIENCE
            time.sleep(0.02)
        assert server.pool()["phase"] == "degraded"
        assert len(server.lines("boots")) - boots <= 6 + seconds / 2
        server.set_mode("")
        until(server.is_whole, 30, "full capacity by itself")
        assert server.probe("/health") == 200
        assert server.get("/size?n=5").status == 200
        assert server.call("trailboss.Reload")["failed"] == {}  # without the ttl


# --- 18: crash storm -------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, without that of its children."""
    words = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "seconds", [1.5, pytest.param(120.0, marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
def test_bug_18_crash_storm(seconds: float, tmp_path: Path) -> None:
    """Every worker of a pool exits 0, 1 or segfaults at once: few starts, little log, little CPU, the other pool untouched (FPM 1162, uvicorn 2987, pm2 2584)."""
    jobs = {"pool": {"command": PYTHON_JOBS}}
    with scene(tmp_path, configuration(tmp_path, workers=4, jobs=jobs), seconds=40) as server:
        server.set_mode("exit0")
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.pool()["ready"] == 0, 5, "no worker")
        boots, log = len(server.lines("boots")), len(server.log)
        cpu, began, pushed = cpu_seconds(server.pid), time.monotonic(), 0
        slowest = 0.0
        while (now := time.monotonic()) < began + seconds:
            server.set_mode(("exit0", "exit1", "segv")[int((now - began) * 10) % 3])
            with server.rpc() as rpc:
                Jobs(rpc).push("work", "ack", "{}", id=f"job-{pushed}")
            pushed += 1
            until(lambda done=pushed: server.call("jobs.Books")["total"]["done"] == done, 5, "the job done")  # type: ignore[misc]
            slowest = max(slowest, time.monotonic() - now)
            time.sleep(0.08)
        took = time.monotonic() - began
        assert len(server.lines("boots")) - boots <= 10 + 0.3 * took
        assert (len(server.log) - log) / took <= 20_000
        assert (cpu_seconds(server.pid) - cpu) / took <= 0.25
        assert slowest <= 0.5 * PATIENCE
        assert server.pool("jobs")["deaths"] == 0
        server.set_mode("")
        assert server.call("resetter.Reset", "http", 20) is True  # whoever will not wait for the next try


@pytest.mark.long
def test_bug_18_the_exit_code_by_policy(tmp_path: Path) -> None:
    """With on_exhausted: exit the same ends the server, with exit code 1 and the reason (gunicorn 1663)."""
    server = Site(tmp_path, configuration(tmp_path, workers=2, pool={"on_exhausted": "exit"}))
    try:
        server.wait_ready()
        server.settle()
        server.set_mode("exit0")
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        assert server.process.wait(30 * PATIENCE) == 1
        assert "on_exhausted: exit" in server.log
        assert "Traceback" not in server.log
        until(lambda: marked(server.mark) == [], 3, "nothing left")
    finally:
        server.kill()


# --- 20: signals while starting; reloads for a year ------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_bug_20_signals_at_every_phase(rounds: int, tmp_path: Path, chaos: random.Random) -> None:
    """SIGHUP, SIGTERM, twice too, at any moment of start, reload and stop: a clean end in time, the right code, nothing left (gunicorn 3651, s6-overlay 566)."""
    config = configuration(tmp_path, workers=2)
    plans = [(signal.SIGTERM,), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)]
    plans.append((signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP))
    for number in range(rounds):
        plan = plans[number % len(plans)]
        server = Site(tmp_path, config)
        listening = False
        try:
            time.sleep(0.9 * (number + chaos.random()) / rounds)
            for sent in plan:
                if server.process.poll() is None:
                    listening = listening or "server starting" in server.log
                    server.process.send_signal(sent)
                time.sleep(0.05 * chaos.random())
            code = server.process.wait(15 * PATIENCE)
            # Before Python can listen a signal is the kernel's; a second SIGTERM that came in time forces the end.
            forced = "second stop signal received" in server.log
            assert code == int(forced) or (code in (-signal.SIGTERM, -signal.SIGHUP) and not listening), (
                plan,
                server.log,
            )
            assert not forced or plan.count(signal.SIGTERM) == 2
            assert "Traceback" not in server.log, server.log
            until(lambda mark=server.mark: marked(mark) == [], 3, "nothing left")  # type: ignore[misc]
        finally:
            server.kill()
            (tmp_path / "log").unlink()


@pytest.mark.parametrize(
    ("reloads", "growth"),
    [(30, 4 << 20), pytest.param(10_000, 16 << 20, marks=[pytest.mark.long, pytest.mark.timeout(2400)])],
)
def test_bug_20_reloads_for_a_year(reloads: int, growth: int, tmp_path: Path) -> None:
    """Reloads by signal and by call, one after the other: descriptors, threads, tasks and memory stay as they were (gunicorn 3648)."""

    def threads() -> int:
        return len(os.listdir(f"/proc/{server.pid}/task"))

    with scene(tmp_path, configuration(tmp_path, workers=1)) as server:
        memory = most = 0
        for number in range(reloads):
            if number == reloads // 3:
                memory, most = rss_bytes(server.pid), threads()
            generation = server.pool()["generation"]
            if number % 2:
                assert server.call("trailboss.Reload")["failed"] == {}
            else:
                server.process.send_signal(signal.SIGHUP)
            until(lambda generation=generation: server.pool()["generation"] > generation, 10, "the reload")  # type: ignore[misc]
        server.wait_whole()
        assert rss_bytes(server.pid) - memory <= growth
        assert threads() <= most + 2  # trio keeps idle ones for ten seconds
        assert len(server.lines("boots")) == reloads + 1


# --- 22: one broken app ----------------------------------------------------------------------------------------------


def test_bug_22_one_broken_app_costs_the_others_nothing(tmp_path: Path) -> None:
    """One application is broken: at a reload the other one's listener and workers stay, and so they do after a restart (Unit 367).

    A start waits for every pool's quorum, and fails where that is out of reach; an application that may be missing has
    the quorum 0.
    """
    broken = ["python3", str(tmp_path / "app.py")]
    (tmp_path / "app.py").write_text(Path(LIGHT[-1]).read_text())
    jobs = {"pool": {"command": broken, "quorum": 0}}
    config = configuration(tmp_path, workers=2, jobs=jobs)
    with scene(tmp_path, config) as server, loaded(server, 1) as load:
        (tmp_path / "app.py").write_text("this is no Python")
        assert "SyntaxError" in server.call("trailboss.Reload")["failed"]["jobs"]
        assert server.pool("jobs")["ready"] == 2
        (tmp_path / "app.py").write_text(Path(LIGHT[-1]).read_text())
        until(lambda: load.total > 100, 10, "some answers")
    (tmp_path / "app.py").write_text("this is no Python")
    server = Site(tmp_path, config)
    try:
        server.wait_ready()
        with loaded(server, 1) as load:
            until(lambda: load.total > 100, 10, "the other one serves")
        assert server.pool("http")["ready"] == 2
        assert server.pool("jobs")["ready"] == 0
        until(lambda: "SyntaxError" in json.dumps(server.call("trailboss.Deaths")), 10, "its own words")
        (tmp_path / "app.py").write_text(Path(LIGHT[-1]).read_text())
        assert server.call("resetter.Reset", "jobs", 20) is True
        server.wait_whole()
        server.stop()
    finally:
        server.kill()
