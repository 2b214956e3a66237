"""Python workers under RoadRunner itself over each relay, and the RPC client over both kinds of address.

Runs where RR_BIN names its binary. tests/sdk has the same for hand-written loops over pipes; here it is handlers, plain
and async, as an application configures them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trailboss_worker.sdk import RPC, ConnectionLost, Jobs, Push

from .live import PROGRAMS, WAIT_SECONDS, clean_environment, free_port, wait_for

PACKAGE_ROOT = PROGRAMS.parents[2] / "worker_protocol"

pytestmark = pytest.mark.skipif(not os.environ.get("RR_BIN"), reason="RR_BIN names no RoadRunner binary")


def answers(address: str) -> bool:
    """Whether the server is there and has workers."""
    try:
        with RPC(address) as rpc:
            workers = rpc.call("informer.Workers", "jobs")
    except ConnectionLost:
        return False
    return isinstance(workers, dict) and len(workers["workers"] or []) == 2


@contextmanager
def roadrunner(folder: Path, address: str, relay: str, handler: str) -> Iterator[Path]:
    """RoadRunner with two Python workers; gives the file they write to."""
    command = [sys.executable, "-m", "trailboss_worker", "jobs", f"app:{handler}", "--chdir", str(PROGRAMS)]
    configuration = {
        "version": "3",
        "rpc": {"listen": address},
        "server": {"command": [*command, "--no-nack-requeue"], "relay": relay},
        "jobs": {
            "pool": {"num_workers": 2},
            "pipelines": {"work": {"driver": "memory", "config": {"priority": 10, "prefetch": 100}}},
            "consume": ["work"],
        },
    }
    (folder / "rr.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    log = folder / "jobs"
    log.touch()
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [os.environ["RR_BIN"], "serve", "-c", str(folder / "rr.yaml")],
            env=clean_environment(PYTHONPATH=str(PACKAGE_ROOT), JOBS_LOG=str(log)),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: answers(address), f"RoadRunner ready: {(folder / 'output').read_text()}")
        yield log
        process.terminate()
        process.wait(60)  # the jobs plugin of its stable line takes up to 30 s to stop
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_SECONDS)


@pytest.mark.parametrize("handler", ["handle", "handle_async"])
@pytest.mark.parametrize(("relay", "rpc"), [("pipes", "unix"), ("unix", "tcp"), ("tcp", "tcp")])
def test_handlers_run_under_roadrunner(tmp_path: Path, relay: str, rpc: str, handler: str) -> None:
    """Pushed jobs run, one pushes another, one is requeued with a header, one raises and its worker goes on."""
    address = f"unix://{tmp_path}/rpc.sock" if rpc == "unix" else f"tcp://127.0.0.1:{free_port()}"
    relays = {
        "pipes": relay,
        "unix": f"unix://{tmp_path}/relay.sock",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
    }
    with roadrunner(tmp_path, address, relays[relay], handler) as log:
        with RPC(address) as client:
            jobs = Jobs(client)
            jobs.push("work", "follow-up", "héllo", id="first", headers={"k": ["v"]})
            jobs.push_many([Push("work", name) for name in ("print", "requeue", "nack", "raise")])
            assert client.call("rpc.Version", True)
        wait_for(lambda: len(log.read_text().splitlines()) >= 7, "seven runs")
        with RPC(address) as client:
            Jobs(client).push("work", "plain", id="last")
        wait_for(lambda: '"last"' in log.read_text(), "the last job")
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    names = sorted(run["name"] for run in runs)
    assert names == ["follow-up", "nack", "plain", "plain", "print", "raise", "requeue", "requeue"]
    (first,) = [run for run in runs if run["id"] == "first"]
    assert first["payload"] == "héllo"
    assert first["headers"]["k"] == ["v"]
    assert first["env"]["RR_MODE"] == "jobs"
    assert first["env"]["RR_RELAY"].startswith(relay)
