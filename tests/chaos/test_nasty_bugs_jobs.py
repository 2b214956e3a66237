"""Known bugs of other servers around jobs, each as a test that is named after its number.

Real servers and real workers; behind each test the invariants of :mod:`nasty` hold. Short here, at their full length in
the long tier.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from http_server import until
from live_server import PATIENCE, command_of, marked
from nasty import LIGHT, PHP_JOBS, PHP_OR_PYTHON_JOBS, PYTHON_JOBS, Site, configuration, needs_php, scene

from trailboss_worker.sdk import Jobs, RpcError

pytestmark = pytest.mark.timeout(120)
#: Workers that know the job `broken`, whose answer is no whole JSON.
RUDE = [pytest.param(PHP_JOBS, id="php", marks=needs_php), pytest.param(LIGHT, id="python")]


def push(server: Site, job: str, name: str, payload: str = "{}", delay_seconds: float = 0) -> None:
    """Push one job."""
    with server.rpc() as rpc:
        Jobs(rpc).push("work", job, payload, id=name, delay_seconds=delay_seconds)


def books(server: Site) -> dict[str, int]:
    """The books of all pipelines."""
    found: dict[str, int] = server.call("jobs.Books")["total"]
    return found


def runs(server: Site) -> Counter[str]:
    """How often each job was begun."""
    return Counter(row["id"] for row in server.lines("jobs_log"))


# --- 12: poison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", RUDE)
def test_bug_12_poison_job(command: list[str], tmp_path: Path) -> None:
    """A job that kills its worker, one whose answer is nonsense: exactly max_attempts runs each, then a dead letter with a report; others flow (RoadRunner 1089, Dramatiq 213, Sidekiq 4633)."""
    jobs = {"max_attempts": 3, "pool": {"command": command}}
    with scene(tmp_path, configuration(tmp_path, workers=1, jobs=jobs), seconds=40) as server:
        push(server, "die", "poison")
        push(server, "broken", "rude")
        for number in range(40):
            push(server, "ack", f"good-{number}")
        until(lambda: books(server)["done"] + books(server)["dead"] == 42, 20, "the end of all jobs")
        ran = runs(server)
        assert (ran["poison"], ran["rude"]) == (3, 3)
        assert {count for name, count in ran.items() if name.startswith("good")} == {1}
        assert (books(server)["done"], books(server)["dead"]) == (40, 2)
        letters = {row["id"]: row for row in server.call("jobs.Dead", {"pipeline": "work"})["jobs"]}
        assert "SIGKILL" in letters["poison"]["reason"]
        assert letters["poison"]["attempts"] == 3
        assert letters["rude"]["reason"]
        assert server.pool("jobs")["deaths"] >= 3


def test_bug_12_attempts_survive_another_server(tmp_path: Path) -> None:
    """The count of a poison job's attempts survives that another server takes over: max_attempts runs in all, never more.

    The queue in memory ends with its process, so the change of servers that a job outlives is the upgrade: the old process
    hands the jobs that wait over to the new one, with their counts.
    """
    jobs = {"max_attempts": 4, "retry_backoff": "400ms", "retry_backoff_max": "400ms"}
    server = Site(tmp_path, configuration(tmp_path, workers=1, jobs=jobs))
    old = server.process
    try:
        server.wait_ready()
        server.settle()
        push(server, "die", "poison")
        until(lambda: runs(server)["poison"] == 1, 5, "the first run")
        assert server.call("trailboss.Upgrade", True, 20) is not None
        assert old.wait(30 * PATIENCE) == 0  # it has nothing left to do
        until(lambda: books(server)["dead"] == 1, 10, "the last attempt")
        assert runs(server)["poison"] == 4
        dead = [row for row in server.records("job is a dead letter now") if row["id"] == "poison"]
        assert len(dead) == 1
        push(server, "ack", "new")
        until(lambda: runs(server)["new"] == 1, 5, "a job of the new server")
        assert books(server)["done"] == 1
        (new,) = [pid for pid in marked(server.mark) if "trailboss serve" in command_of(pid)]
        os.kill(new, signal.SIGTERM)
        until(lambda: marked(server.mark) == [], 10, "the end of the new server")
        assert "Traceback" not in server.log
    finally:
        server.kill()


# --- 13: stop while jobs run -----------------------------------------------------------------------------------------


def stop_with_jobs(server: Site, seconds: float) -> tuple[dict[str, Any], float]:
    """SIGTERM, while two jobs run, three wait and one is delayed; the last books that were told, and how long it took."""
    for number in range(2):
        push(server, "sleep", f"running-{number}", f'{{"ms": {int(seconds * 1000)}}}')
    until(lambda: len(server.lines("jobs_log")) == 2, 5, "two jobs begun")
    for number in range(3):
        push(server, "ack", f"waiting-{number}")
    push(server, "ack", "delayed", delay_seconds=600)
    last: dict[str, Any] = {}
    with server.rpc() as rpc:
        rpc.call("jobs.Books", True)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            while True:
                found: Any = rpc.call("jobs.Books", True, retry_until=0)
                last = found
                assert min(found["total"].values()) >= 0  # never negative
                assert found["balanced"] is True
                time.sleep(0.005)
        except RpcError:
            pass
    server.process.wait(seconds + 20 * PATIENCE)
    took = time.monotonic() - began
    server.stop()
    return last["total"], took


@pytest.mark.parametrize("command", PHP_OR_PYTHON_JOBS)
@pytest.mark.parametrize(
    "seconds", [0.7, pytest.param(120.0, marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
def test_bug_13_stop_while_jobs_run(command: list[str], seconds: float, tmp_path: Path) -> None:
    """Jobs shorter than the grace: none is cut off, each is acked once, what waits and what is delayed is still there (RoadRunner 1567, Celery 1810)."""
    pool = {"command": command, "destroy_timeout": f"{seconds * 3:g}s"}
    config = configuration(tmp_path, workers=1, jobs={"pool": pool})
    config["endure"]["grace_period"] = f"{seconds * 5:g}s"
    server = Site(tmp_path, config)
    try:
        server.wait_ready()
        server.settle()
        total, took = stop_with_jobs(server, seconds)
    finally:
        server.kill()
    assert {row["id"] for row in server.lines("jobs_log")} == {"running-0", "running-1"}
    assert (total["pushed"], total["done"], total["waiting"], total["delayed"]) == (6, 2, 3, 1)
    assert (total["running"], total["dead"]) == (0, 0)
    assert took <= seconds + 3 * PATIENCE
    (lost,) = server.records("jobs kept in memory are lost with this process")
    assert (lost["waiting"], lost["delayed"], lost["running"]) == (3, 1, 0)


def test_bug_13_grace_shorter_than_the_job(tmp_path: Path) -> None:
    """Jobs longer than the grace go back to their queue, each exactly once, and the stop keeps to its time (rq 2268)."""
    config = configuration(tmp_path, workers=1, jobs={"pool": {"command": PYTHON_JOBS}})
    config["endure"]["grace_period"] = "600ms"
    server = Site(tmp_path, config)
    try:
        server.wait_ready()
        server.settle()
        total, took = stop_with_jobs(server, 30)
    finally:
        server.kill()
    returned = server.records("job did not finish in time and goes back to its queue")
    assert sorted(row["id"] for row in returned) == ["running-0", "running-1"]
    (lost,) = server.records("jobs kept in memory are lost with this process")
    assert (lost["waiting"], lost["delayed"], lost["running"]) == (5, 1, 0)
    assert (total["pushed"], total["done"], total["dead"]) == (6, 0, 0)
    assert {row["id"]: 1 for row in server.lines("jobs_log")} == dict(runs(server))
    assert took <= 0.6 + 3 * PATIENCE


# --- 17: the consumer dies quietly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [2, pytest.param(1, marks=pytest.mark.long)])
def test_bug_17_consumer_meets_errors(broken: int, tmp_path: Path) -> None:
    """Taking jobs from the queue fails: it is said, no job is lost or run twice, and consumption resumes by itself (RoadRunner 1724, Celery 2312).

    Queues of brokers, with connections that can break, Trailboss does not have yet: what can fail is its own consumer
    of the queue in memory, so that is what raises errors here.
    """
    with scene(tmp_path, configuration(tmp_path, workers=1, jobs={}), seconds=40) as server:
        for number in range(5):
            push(server, "ack", f"before-{number}")
        until(lambda: books(server)["done"] == 5, 5, "the first jobs")
        server.call("census.BreakConsumer", broken)
        for number in range(20):  # each is accepted, and so says the answer
            push(server, "sleep", f"job-{number}", '{"ms": 5}')
        assert books(server)["pushed"] == 25
        if broken > 1:
            until(lambda: server.probe("/health?plugin=jobs") == 503, 3, "it is said that jobs is not well")
        until(lambda: books(server)["done"] == 25, broken + 5, "all jobs done by themselves")
        assert set(runs(server).values()) == {1}
        told = server.records("jobs cannot be taken from a queue; they wait, and it is tried again")
        server.forgiven = "the queue broke off"  # that is what the traceback in the log is about
        assert [row["text"] for row in told] == ["the queue broke off"] * broken
        until(lambda: server.probe("/health?plugin=jobs") == 200, 3, "jobs is well again")
        assert server.pool("jobs")["deaths"] == 0


def test_bug_17_consumer_is_forgotten(tmp_path: Path) -> None:
    """The only consumer is idle and forgotten by everybody: the watchdog says so, and consumption resumes by itself (RoadRunner 1857, Celery 3201)."""
    config = configuration(tmp_path, workers=1, jobs={"pool": {"num_workers": 1}})
    with scene(tmp_path, config) as server:
        push(server, "ack", "before")
        until(lambda: books(server)["done"] == 1, 5, "the first job")
        server.call("census.LoseIdle", "jobs")
        for number in range(3):
            push(server, "ack", f"job-{number}")
        until(lambda: books(server)["done"] == 4, 8, "all jobs done by themselves")
        assert set(runs(server).values()) == {1}
        assert server.detail("core")["watchdog"]["violations"]["idle_worker_lost"] == 1
        assert (
            len(server.records("an invariant does not hold; this is a bug of Trailboss, please report it"))
            == 1
        )
        server.allowed_violations |= {"idle_worker_lost"}
