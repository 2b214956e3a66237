"""Whole servers for the tests of known bugs, and what must hold behind every one of them.

:func:`scene` starts a server with web workers (and, where asked for, jobs and a status port), lets it come to rest, and
after the block holds it to the invariants: no lost slot, no growth in descriptors, no zombie, no task and no process
without an owner, nothing under way any more, and a clean end. That no client waits for ever is kept by every client in
here having a deadline. Everything is seen from outside: /proc, RPC and HTTP; tasks by a plugin of the test's own.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, Load, Reply, Wish, free_port, request, take_answer, until
from live_server import PATIENCE, TESTS, children_of, descriptors, install_plugins
from marks import needs_php

LIGHT = [sys.executable, "-S", "-E", f"{TESTS}/support/nasty_worker.py"]
PHP_HTTP = ["php", f"{TESTS}/php/http_worker.php"]
PHP_JOBS = ["php", f"{TESTS}/php/jobs_worker.php"]
PYTHON_JOBS = [sys.executable, f"{TESTS}/sdk/programs/jobs_worker.py"]
TROUBLE = [sys.executable, f"{TESTS}/processes/programs/http_trouble.py"]
CENSUS = (TESTS / "support" / "census_plugin.py").read_text()
PHP_OR_LIGHT = [pytest.param(PHP_HTTP, id="php", marks=needs_php), pytest.param(LIGHT, id="python")]
PHP_OR_PYTHON_JOBS = [
    pytest.param(PHP_JOBS, id="php", marks=needs_php),
    pytest.param(PYTHON_JOBS, id="python"),
]
#: A task that is there whenever it is looked at, since it answers, or that comes and goes by itself.
PASSING_TASKS = re.compile(r"\b(_call|call|_answer|_run_call|run_sync)\b")


def configuration(
    folder: Path,
    command: Sequence[str] = LIGHT,
    workers: int = 2,
    jobs: Mapping[str, Any] | None = None,
    **http: Any,
) -> dict[str, Any]:
    """A configuration with a web server; `http` adds keys of that section, `pool` some of its pool."""
    pool = {"num_workers": workers, "stop_timeout": "2s", "max_queue_size": 5000, **http.pop("pool", {})}
    config: dict[str, Any] = {
        "server": {
            "command": list(command),
            "env": {name: str(folder / name.lower()) for name in ("MODE", "BOOTS", "JOBS_LOG")},
        },
        "http": {"pool": pool, **http},
        "status": {"address": f"127.0.0.1:{free_port()}"},
        "endure": {"grace_period": "10s"},
        "logs": {"mode": "production", "level": "info", "output": ["stderr"]},
    }
    if jobs is not None:
        config["jobs"] = {
            "consume": ["work"],
            "retry_backoff": "50ms",
            "retry_backoff_max": "200ms",
            "pipelines": {"work": {"driver": "memory"}},
            **jobs,
        }
        config["jobs"]["pool"] = {"num_workers": 2, "stop_timeout": "2s", **config["jobs"].get("pool", {})}
    return config


class Site(HttpServer):
    """A server that runs, with words for what these tests ask of it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, config, {**install_plugins(folder, CENSUS, census="census"), **(env or {})})
        self.status = ("127.0.0.1", int(str(config["status"]["address"]).rpartition(":")[2]))
        self.size = {name: 0 for name in ("jobs", "http") if name in config}
        self._tasks: Counter[str] = Counter()
        self._descriptors: Counter[str] = Counter()

    #: Lines of the log with this text are no concern of the checks any more.
    forgiven = ""

    @property
    def mark(self) -> str:
        """What every process of this server has in its environment."""
        return self._mark

    @property
    def log(self) -> str:
        """What it has said, but for what is forgiven."""
        text = super().log
        if self.forgiven:
            text = "\n".join(line for line in text.splitlines() if self.forgiven not in line)
        return text

    # --- asking -------------------------------------------------------------------------------------------------------

    def call(self, method: str, argument: object = True, seconds: float = 20.0) -> Any:
        """One call on a connection of its own."""
        with self.rpc() as rpc:
            return rpc.call(method, argument, timeout_seconds=seconds * PATIENCE)

    def whole_state(self) -> dict[str, Any]:
        """trailboss.State."""
        answer: dict[str, Any] = self.call("trailboss.State")
        return answer

    def pool(self, name: str = "http") -> dict[str, Any]:
        """The figures of a pool."""
        found: dict[str, Any] = next(row for row in self.whole_state()["pools"] if row["name"] == name)
        return found

    def detail(self, plugin: str) -> dict[str, Any]:
        """What a plugin tells of itself."""
        rows = self.whole_state()["plugins"]
        found: dict[str, Any] = next(row["detail"] for row in rows if row["name"] == plugin)
        return found

    def get(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Reply:
        """One request on a connection of its own. Raises AssertionError where its answer is not whole."""
        received = self.ask(request(target, method, body, "Connection: close"))
        reply, rest = take_answer(received)
        assert reply is not None, received[:200]
        assert rest == b""
        return reply

    def probe(self, path: str) -> int:
        """The status code of a path of the status port."""
        connection = http.client.HTTPConnection(*self.status, timeout=5 * PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file that workers write."""
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def set_mode(self, mode: str) -> None:
        """How workers start from now on; complete at any time."""
        (self.folder / "mode.new").write_text(mode)
        os.replace(self.folder / "mode.new", self.folder / "mode")

    # --- invariants ---------------------------------------------------------------------------------------------------

    def is_whole(self, *, busy: bool = False) -> bool:
        """Whether every pool has all its workers, and nothing waits; with `busy` something may run."""
        pools = self.whole_state()["pools"]
        return all(
            row["phase"] == "ready"
            and row["ready"] == row["configured"]
            and not (row["booting"] or row["leaving"] or row["queued"])
            and (busy or not row["busy"])
            for row in pools
        )

    def wait_whole(self, seconds: float = 10.0, *, busy: bool = False) -> None:
        """Return when it is."""
        until(lambda: self.is_whole(busy=busy), seconds, "every pool whole")

    def settle(self) -> None:
        """Come to rest, and remember how that looks."""
        self.wait_whole(20)
        self.size = {row["name"]: row["configured"] for row in self.whole_state()["pools"]}
        until(lambda: self.detail("http")["connections"] == 0, 5, "no connection left")
        self._tasks = self.tasks()
        self._descriptors = Counter(descriptors(self.pid))

    def tasks(self) -> Counter[str]:
        """Tasks of the server by name, without those of the question."""
        found: dict[str, int] = self.call("census.Tasks")
        return Counter({name: count for name, count in found.items() if not PASSING_TASKS.search(name)})

    def check(self, seconds: float = 10.0) -> None:
        """Hold it to the invariants. Raises AssertionError with what does not hold."""
        self.wait_whole(seconds)
        state = self.whole_state()
        assert self.size == {row["name"]: row["configured"] for row in state["pools"]}  # no lost slot
        until(lambda: self.detail("core")["watchdog"]["broken"] == [], 3, "everything holds")
        watchdog = self.detail("core")["watchdog"]
        assert [kind for kind in watchdog["violations"] if kind not in self.allowed_violations] == []
        deadline = time.monotonic() + 6 * PATIENCE
        while gained := self._gained():
            assert time.monotonic() < deadline, f"gained: {gained}"
            time.sleep(0.05)
        assert zombies(self.pid) == []
        owned = {row["pid"] for name in self.size for row in self.call("informer.Workers", name)["workers"]}
        owned.add(self.detail("server")["guard_pid"])
        assert set(children_of(self.pid)) == owned  # no process that nobody knows
        http_detail = self.detail("http")
        assert (http_detail["in_flight"], http_detail["body_files"], http_detail["answer_files"]) == (0, 0, 0)
        assert self.detail("rpc")["calls_under_way"] <= 1
        if "jobs" in self.size:
            books = self.call("jobs.Books")
            assert books["balanced"] is True, books

    #: The loop may stand still on a busy machine; everything else is a bug, unless a test makes it.
    allowed_violations: frozenset[str] = frozenset({"loop_lag"})

    def _gained(self) -> dict[str, int]:
        """Descriptors and tasks beyond those at first."""
        tasks, now = self.tasks(), Counter(descriptors(self.pid))
        return dict((tasks - self._tasks) + (now - self._descriptors))


def zombies(pid: int) -> list[int]:
    """Children of a process that have ended and were not waited for, for longer than a moment."""

    def look() -> set[int]:
        found = set()
        for child in children_of(pid):
            try:
                stat = Path(f"/proc/{child}/stat").read_text("latin-1").rpartition(")")[2].split()
            except OSError:
                continue
            if stat[0] == "Z":
                found.add(child)
        return found

    deadline = (
        time.monotonic() + 6 * PATIENCE
    )  # orphans of workers are left to whoever may wait for them for a while
    dead = look()
    while dead and time.monotonic() < deadline:
        time.sleep(0.02)
        dead &= look()
    return sorted(dead)


@contextmanager
def scene(
    folder: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None, *, seconds: float = 10.0
) -> Iterator[Site]:
    """A server at rest inside the block, and held to the invariants behind it, within `seconds`."""
    server = Site(folder, config, env)
    try:
        server.wait_ready()
        server.settle()
        yield server
        server.check(seconds)
        server.stop()
    finally:
        server.kill()


#: A page that every worker of these tests has.
HELLO = Wish("hello", request("/size?n=5"), b"xxxxx")


@contextmanager
def loaded(server: Site, clients: int = 3, wishes: Sequence[Wish] = (HELLO,)) -> Iterator[Load]:
    """Clients that ask all the time, each on a connection that is kept; behind the block none may have seen a mistake."""
    load = Load(server.address, wishes, clients)
    over = threading.Event()
    failures: list[BaseException] = []

    def turn() -> None:
        try:
            while not over.is_set():
                load.turn()
            load.finish()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield load
    finally:
        over.set()
        thread.join(40 * PATIENCE)
    assert not thread.is_alive()
    assert failures == []
    assert dict(load.mistakes) == {}
    assert load.refused == 0
