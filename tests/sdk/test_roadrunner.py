"""The Python SDK under RoadRunner itself; runs where RR_BIN names its binary.

Elsewhere the recorded dialogues (test_scenarios) stand in: they are what RoadRunner and a PHP worker said.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from trailboss_worker.sdk import RPC, Informer, Jobs, Push, Resetter, ServiceError

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
PACKAGE_ROOT = PROGRAMS.parents[2] / "worker_protocol"

pytestmark = pytest.mark.skipif(not os.environ.get("RR_BIN"), reason="RR_BIN names no RoadRunner binary")


@pytest.fixture
def roadrunner(tmp_path):
    """RoadRunner with two Python jobs workers: the address of its RPC port and the log of jobs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    log = tmp_path / "jobs"
    log.touch()
    configuration = {
        "version": "3",
        "rpc": {"listen": address},
        "server": {"command": [sys.executable, str(PROGRAMS / "jobs_worker.py")]},
        "jobs": {
            "pool": {"num_workers": 2},
            "pipelines": {"test": {"driver": "memory", "config": {"priority": 10, "prefetch": 100}}},
            "consume": ["test"],
        },
    }
    (tmp_path / "rr.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RR_")}
    environment = {**kept, "PYTHONPATH": str(PACKAGE_ROOT), "JOBS_LOG": str(log)}
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [os.environ["RR_BIN"], "serve", "-c", str(tmp_path / "rr.yaml")],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield address, log
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "output").read_text()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)


def connected(address: str) -> RPC:
    """A client whose server has workers."""
    deadline = time.monotonic() + 30
    while True:
        rpc = RPC(address)
        try:
            if len(Informer(rpc).workers("jobs")) == 2:
                return rpc
        except Exception:
            if time.monotonic() > deadline:
                raise
        rpc.close()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def recorded(log: pathlib.Path, count: int) -> list[dict[str, object]]:
    """The jobs that ran, once there are so many."""
    deadline = time.monotonic() + 30
    while True:
        lines = log.read_text().splitlines()
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
        assert time.monotonic() < deadline, lines
        time.sleep(0.02)


def test_jobs_under_roadrunner(roadrunner):
    """Push, batch, requeue, list, stat, pause, resume, reset; jobs run in Python workers that stop cleanly."""
    address, log = roadrunner
    with connected(address) as rpc:
        jobs = Jobs(rpc)
        assert jobs.list() == ["test"]
        first = jobs.push("test", "ack", "{}", headers={"h": ["v"]})
        more = jobs.push_many([Push("test", "echo", '{"text":"hello\\n"}') for _ in range(20)])
        seen = recorded(log, 21)
        assert {first, *more} == {line["id"] for line in seen}
        assert {line["attempts"] for line in seen} == {1}
        jobs.pause("test")
        assert [stat.ready for stat in jobs.stat()] == [False]
        jobs.resume("test")
        assert Resetter(rpc).reset("jobs") is True
        jobs.push("test", "nack", "{}")
        assert [line["job"] for line in recorded(log, 22)][-1] == "nack"
        with pytest.raises(ServiceError, match=r"trailboss\.State"):
            rpc.state()
