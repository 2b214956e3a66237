"""PHP programs that speak as the released PHP packages do, against a running server: produce, consume, look after.

The programs are tests/php, whose wire behaviour the SDK tests compare with the recordings; what they get here from a
whole server is what an application's code would see.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trailboss_worker.sdk import Jobs, Push

from .conftest import Serve
from .live import PHP_PROGRAMS, PROGRAMS, WAIT_SECONDS, Live, clean_environment, free_port

pytestmark = pytest.mark.php

CONFIG = """
version: "3"
rpc: {{listen: "{address}"}}
server:
  command: "{command}"
  relay: "{relay}"
  env: {{app_name: "php tests"}}
jobs:
  consume: [work]
  max_attempts: 3
  retry_backoff: 20ms
  retry_backoff_max: 20ms
  pool: {{num_workers: 2, stop_timeout: 2s}}
  pipelines:
    work: {{driver: memory, config: {{priority: 7}}}}
    idle: {{driver: memory}}
logs: {{mode: production, level: debug, output: [server.log]}}
"""
#: Relay and RPC address, in pairs that between them cover every kind of both.
CONNECTIONS = [("pipes", "unix"), ("unix", "tcp"), ("tcp", "unix")]
every_connection = pytest.mark.parametrize(("relay", "rpc"), CONNECTIONS, ids=["pipes", "unix", "tcp"])


def address_of(kind: str, folder: Path, name: str) -> str:
    """An address of a kind that nothing listens on yet."""
    return f"tcp://127.0.0.1:{free_port()}" if kind == "tcp" else f"unix://{folder}/{name}.sock"


def start(
    serve: Serve, php: str, folder: Path, program: Path, relay: str = "pipes", rpc: str = "unix"
) -> Live:
    """A server whose workers run a PHP program."""
    address = address_of(rpc, folder, "rpc")
    text = CONFIG.format(
        address=address,
        command=f"{php} {program}",
        relay=relay if relay == "pipes" else address_of(relay, folder, "relay"),
    )
    return serve(text, address)


class PhpClient:
    """Calls a method by running rpc_cli.php, which has to succeed."""

    def __init__(self, php: str, server: Live) -> None:
        self._php = php
        self._address = server.address

    def run(self, method: str, argument: object = None) -> subprocess.CompletedProcess[str]:
        """The finished program."""
        return subprocess.run(
            [self._php, str(PHP_PROGRAMS / "rpc_cli.php"), method, json.dumps(argument)],
            env=clean_environment(RR_RPC=self._address),
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def call(self, method: str, argument: object = None) -> Any:
        """The printed result."""
        finished = self.run(method, argument)
        assert (finished.returncode, finished.stderr) == (0, "")
        return json.loads(finished.stdout)

    def error(self, method: str, argument: object = None) -> str:
        """The printed error of a call that the server refuses."""
        finished = self.run(method, argument)
        assert (finished.returncode, finished.stdout) == (1, "")
        return finished.stderr.strip()


@every_connection
def test_what_a_php_worker_sees(serve: Serve, php: str, tmp_path: Path, relay: str, rpc: str) -> None:
    """Context keys and their types, the untouched body, and RR_MODE, RR_RELAY, RR_RPC, RR_VERSION and server.env."""
    server = start(serve, php, tmp_path, PROGRAMS / "inspect_worker.php", relay, rpc)
    client = PhpClient(php, server)
    job_id = client.call(
        "jobs.Push",
        {
            "pipeline": "work",
            "job": "App\\Jobs\\Greet",
            "payload": '{"name":"Zoë", "n": 1.0}',
            "headers": {"X-Tenant": ["a", "b"], "empty": []},
        },
    )
    (seen,) = server.jobs(1)
    context, env = seen["context"], seen["env"]
    assert isinstance(context, dict)
    assert isinstance(env, dict)
    attempts = context.pop("attempts")
    queue = context.pop("queue", None)
    assert {
        "id": job_id,
        "job": "App\\Jobs\\Greet",
        "driver": "memory",
        "headers": {"X-Tenant": ["a", "b"], "empty": []},
        "pipeline": "work",
    } == context
    assert attempts == 1
    assert queue in (None, "work")
    assert seen["body"] == '{"name":"Zoë", "n": 1.0}'
    scheme = "pipes" if relay == "pipes" else f"{relay}://"
    assert env["RR_MODE"] == "jobs"
    assert env["RR_RELAY"].startswith(scheme)
    assert server.address == env["RR_RPC"]
    assert re.fullmatch(r"2025\.1\.\d+", env["RR_VERSION"])
    assert env["APP_NAME"] == "php tests"
    assert seen["server"] == {"RR_MODE": "jobs", "RR_RPC": server.address}


@every_connection
def test_a_php_program_looks_after_pipelines(
    serve: Serve, php: str, tmp_path: Path, relay: str, rpc: str
) -> None:
    """list, stat, declare, push, batch, pause, resume and destroy, with the errors of what is not there."""
    server = start(serve, php, tmp_path, PHP_PROGRAMS / "jobs_worker.php", relay, rpc)
    client = PhpClient(php, server)
    assert sorted(client.call("jobs.List")) == ["idle", "work"]
    assert client.call("jobs.Declare", {"name": "fresh", "driver": "memory", "priority": "3"}) is None
    assert "fresh" in client.error("jobs.Declare", {"name": "fresh", "driver": "memory"})
    held = client.call(
        "jobs.PushBatch", [{"pipeline": "fresh", "job": "ack", "payload": f'{{"n":{n}}}'} for n in range(5)]
    )
    assert len(set(held)) == 5
    assert {
        "pipeline": "fresh",
        "driver": "memory",
        "queue": "fresh",
        "active": 5,
        "delayed": 0,
        "reserved": 0,
        "ready": False,
        "priority": 3,
    } in client.call("jobs.Stat")
    client.call("jobs.Resume", ["fresh"])
    runs = server.jobs(5)
    assert held == [run["id"] for run in sorted(runs, key=lambda run: str(run["payload"]))]
    client.call("jobs.Pause", ["work", "fresh"])
    waiting = client.call("jobs.Push", {"pipeline": "work", "job": "ack"})
    client.call("jobs.Push", {"pipeline": "fresh", "job": "ack", "delay": 600})
    stat = {row["pipeline"]: row for row in client.call("jobs.Stat")}
    assert [stat[name]["ready"] for name in ("work", "fresh")] == [False, False]
    assert (stat["work"]["active"], stat["fresh"]["delayed"]) == (1, 1)
    client.call("jobs.Resume", ["work"])
    assert waiting in [run["id"] for run in server.jobs(6)]
    assert client.call("jobs.Destroy", ["fresh"]) == ["fresh"]
    assert sorted(client.call("jobs.List")) == ["idle", "work"]
    absent = f"Error 'no such pipeline, requested: fresh' on {server.address}"
    assert absent in client.error("jobs.Push", {"pipeline": "fresh", "job": "ack"})
    assert "no such pipeline, requested: fresh" in client.error("jobs.Resume", ["fresh"])
    assert "can't find service kv.Has" in client.error("kv.Has", True)
    books = server.books()
    assert (books["done"], books["destroyed"]) == (6, 1)


@every_connection
def test_what_php_workers_answer(serve: Serve, php: str, tmp_path: Path, relay: str, rpc: str) -> None:
    """Each answer type of old and new packages has its effect, and every job is accounted for."""
    server = start(serve, php, tmp_path, PHP_PROGRAMS / "jobs_worker.php", relay, rpc)
    pushes: list[dict[str, object]] = [
        {"id": "ack", "job": "ack"},
        {"id": "complete", "job": "complete"},
        {"id": "nack", "job": "nack", "payload": '{"message":"never again"}'},
        {"id": "fail", "job": "fail", "payload": '{"message":"broken order"}'},
        {"id": "error", "job": "error", "payload": '{"message":"boom"}'},
        {"id": "stop", "job": "exit", "payload": '{"code":4}'},
    ]
    client = PhpClient(php, server)
    client.call("jobs.PushBatch", [{"pipeline": "work", **push} for push in pushes])
    books = server.books()
    assert (books["pushed"], books["done"], books["dead"]) == (6, 2, 4)
    runs = [str(run["id"]) for run in server.jobs(10)]
    counts = {str(push["id"]): runs.count(str(push["id"])) for push in pushes}
    assert counts == {"ack": 1, "complete": 1, "nack": 1, "fail": 1, "error": 3, "stop": 3}
    with server.rpc() as rpc_client:
        answer = rpc_client.call("jobs.Dead", {})
    assert isinstance(answer, dict)
    reasons = {job["id"]: job["reason"] for job in answer["jobs"]}
    assert reasons["nack"].startswith("nacked: never again")
    assert reasons["fail"].startswith("failed: broken order")
    assert "boom" in reasons["error"]
    assert "exit code 4" in reasons["stop"]


REQUEUE = """<?php
declare(strict_types=1);
require '{goridge}';
$consumer = new Trailboss\\Php\\Consumer();
while (($task = $consumer->waitTask()) !== null) {{
    $line = ['id' => $task->id, 'headers' => $task->headers, 'attempts' => $task->attempts, 'time' => microtime(true)];
    file_put_contents(getenv('JOBS_LOG'), json_encode($line) . "\\n", FILE_APPEND | LOCK_EX);
    $turn = (int) ($task->headers['turn'][0] ?? 0);
    $headers = ['turn' => [(string) ($turn + 1)]];
    match ($turn) {{
        0 => $task->requeue('later', 1, $headers),
        1 => $task->fail('later still', true, 0, $headers),
        default => $task->ack(),
    }};
}}
"""


def test_a_job_that_is_requeued_with_delay_and_headers(serve: Serve, php: str, tmp_path: Path) -> None:
    """requeue waits its delay and lays its headers over the job's own; fail with requeue does the same at once."""
    program = tmp_path / "requeue.php"
    program.write_text(REQUEUE.format(goridge=PHP_PROGRAMS / "goridge.php"))
    server = start(serve, php, tmp_path, program)
    PhpClient(php, server).call(
        "jobs.Push", {"pipeline": "work", "job": "again", "id": "one", "headers": {"kept": ["yes"]}}
    )
    runs = server.jobs(3)
    assert server.books()["done"] == 1
    assert [run["headers"] for run in runs] == [
        {"kept": ["yes"]},
        {"kept": ["yes"], "turn": ["1"]},
        {"kept": ["yes"], "turn": ["2"]},
    ]
    assert [run["attempts"] for run in runs] == [1, 1, 1]
    times = [float(str(run["time"])) for run in runs]
    assert times[1] - times[0] >= 1.0
    assert times[2] - times[1] < 1.0


def test_workers_push_jobs_themselves_and_on_init_lists_pipelines(
    serve: Serve, php: str, tmp_path: Path
) -> None:
    """A PHP worker calls the server that runs it, and so does a PHP on_init before any worker boots."""
    text = CONFIG.format(
        address=f"unix://{tmp_path}/rpc.sock", command=f"{php} {PHP_PROGRAMS}/jobs_worker.php", relay="pipes"
    )
    on_init = f"on_init: {{command: [{php}, {PHP_PROGRAMS}/on_init_list.php], exit_on_error: true}}"
    server = serve(text.replace("  relay:", f"  {on_init}\n  relay:"))
    log = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert {"idle", "work"} <= {row["msg"].strip() for row in log}
    payload = json.dumps({"pipeline": "work", "job": "ack", "payload": "{}"})
    PhpClient(php, server).call("jobs.Push", {"pipeline": "work", "job": "push", "payload": payload})
    assert [run["job"] for run in server.jobs(2)] == ["push", "ack"]
    assert server.books()["done"] == 2


def test_frames_of_every_size_arrive_whole(serve: Serve, php: str, tmp_path: Path) -> None:
    """PHP on pipes dies of a header in two writes; of jobs of 0 bytes to 1 MB, sent as fast as can be, none does."""
    server = start(serve, php, tmp_path, PROGRAMS / "inspect_worker.php")
    sizes = [0, 1, 4_079, 4_096, 65_519, 65_520, 65_536, 1_000_000] * 5
    with server.rpc() as rpc:
        Jobs(rpc).push_many([Push("work", "size", "x" * size) for size in sizes])
        assert sorted(sizes) == sorted(len(str(run["body"])) for run in server.jobs(len(sizes)))
        deaths = rpc.call("trailboss.Deaths", True)
    assert deaths == [], deaths
    assert server.books()["done"] == len(sizes)
