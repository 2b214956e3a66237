"""The Python SDK against a running server: workers in a foreign interpreter, and the RPC client with its wrappers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trailboss_worker.sdk import App, Informer, Jobs, Push, Resetter, ServiceError, Status

from .conftest import Serve
from .live import PROGRAMS, Live, free_port

CONFIG = """
version: "3"
rpc: {{listen: "{address}"}}
server:
  command: "trailboss-worker jobs app:{handler} --chdir {programs} --no-nack-requeue"
  python: "{python}"
  relay: "{relay}"
jobs:
  consume: [work]
  max_attempts: 2
  retry_backoff: 20ms
  pool: {{num_workers: 2}}
  pipelines:
    work: {{driver: memory}}
    idle: {{driver: memory, config: {{priority: 20}}}}
logs: {{mode: production, level: debug, output: [server.log]}}
"""


def start(
    serve: Serve, folder: Path, python: str, handler: str = "handle", relay: str = "pipes", rpc: str = "unix"
) -> Live:
    """A server whose workers run in the interpreter `python`."""
    relays = {
        "pipes": "pipes",
        "unix": f"unix://{folder}/relay.sock",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
    }
    address = f"unix://{folder}/rpc.sock" if rpc == "unix" else f"tcp://127.0.0.1:{free_port()}"
    text = CONFIG.format(
        address=address, handler=handler, programs=PROGRAMS, python=python, relay=relays[relay]
    )
    return serve(text, address)


@pytest.mark.parametrize("handler", ["handle", "handle_async"])
@pytest.mark.parametrize(("relay", "rpc"), [("pipes", "tcp"), ("unix", "unix"), ("tcp", "tcp")])
def test_workers_in_an_interpreter_without_trailboss(
    serve: Serve, bare_python: str, tmp_path: Path, handler: str, relay: str, rpc: str
) -> None:
    """Jobs run in a bare virtual environment; nothing of the server's is on its path; it calls the server back."""
    server = start(serve, tmp_path, bare_python, handler, relay, rpc)
    with server.rpc() as client:
        jobs = Jobs(client)
        jobs.push("work", "follow-up", "héllo", headers={"k": ["v"]}, id="first")
        jobs.push_many([Push("work", name) for name in ("print", "requeue", "nack", "raise")])
    books = server.books()
    assert (books["pushed"], books["done"], books["dead"]) == (6, 4, 2)
    runs = server.jobs(7)
    assert sorted(str(run["name"]) for run in runs) == [
        "follow-up",
        "nack",
        "plain",
        "print",
        "raise",
        "requeue",
        "requeue",
    ]
    (first,) = [run for run in runs if run["id"] == "first"]
    assert (first["payload"], first["headers"], first["pipeline"]) == ("héllo", {"k": ["v"]}, "work")
    assert (first["driver"], first["attempts"]) == ("memory", 1)
    env = first["env"]
    assert isinstance(env, dict)
    assert (env["RR_MODE"], env["RR_RPC"]) == ("jobs", server.address)
    assert env["RR_RELAY"].startswith(relay)
    assert {str(Path(bare_python).parent.parent)} == {run["prefix"] for run in runs}
    assert [(run["paths"], run["yaml"]) for run in runs] == [([], False)] * 7
    log = (tmp_path / "server.log").read_text()
    assert "printed by a handler" in log
    assert "written to descriptor 1" in log
    with server.rpc() as client:
        dead = client.call("jobs.Dead", {})
        assert client.call("trailboss.Deaths", True) == []
    assert isinstance(dead, dict)
    reasons = {job["job"]: job["reason"] for job in dead["jobs"]}
    assert "not now" in reasons["nack"]
    assert "no such customer" in reasons["raise"]


@pytest.mark.parametrize("rpc", ["unix", "tcp"])
def test_every_wrapper_of_the_client(serve: Serve, bare_python: str, tmp_path: Path, rpc: str) -> None:
    """Pipelines, workers, reset, status, application log and state, as an application calls them."""
    server = start(serve, tmp_path, bare_python, rpc=rpc)
    with server.rpc() as client:
        jobs = Jobs(client)
        assert sorted(jobs.list()) == ["idle", "work"]
        jobs.declare("more", "memory", priority=3)
        ids = jobs.push_many([Push("more", "plain", str(number)) for number in range(3)])
        assert [(s.active, s.ready, s.priority) for s in jobs.stat() if s.pipeline == "more"] == [
            (3, False, 3)
        ]
        jobs.resume("more")
        assert sorted(ids) == sorted(str(run["id"]) for run in server.jobs(3))
        jobs.pause("more")
        assert [s.ready for s in jobs.stat() if s.pipeline == "more"] == [False]
        assert jobs.destroy("more") == ["more"]
        with pytest.raises(ServiceError, match="no such pipeline, requested: more"):
            jobs.push("more", "plain")

        informer = Informer(client)
        assert informer.list() == ["jobs"]
        before = {row["pid"] for row in informer.workers("jobs")}
        informer.add_worker("jobs")
        assert len(informer.workers("jobs")) == len(before) + 1 == 3
        informer.remove_worker("jobs")
        assert {row["Pipeline"] for row in informer.jobs("jobs")} == {"idle", "work"}
        assert Resetter(client).list() == ["jobs"]
        assert Resetter(client).reset("jobs") is True
        after = {row["pid"] for row in informer.workers("jobs") if row["statusStr"] in ("ready", "working")}
        assert before.isdisjoint(after)

        assert (Status(client).status("jobs").code, Status(client).ready("jobs").code) == (200, 200)
        with pytest.raises(ServiceError, match="no such plugin: nothing"):
            Status(client).ready("nothing")
        App(client).info("an order came in", order="17")
        App(client).error("and was lost")
        state = client.state()
        assert (state["ready"], state["phase"], state["gate"]) == (True, "ready", "open")
        with pytest.raises(ServiceError, match=r"rpc: can't find method jobs\.Nothing"):
            client.call("jobs.Nothing", True)
    rows = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    written = {row["msg"]: row for row in rows if row["logger"] == "app"}
    assert written["an order came in"]["order"] == "17"
    assert written["and was lost"]["level"].lower() == "error"


def test_a_client_in_on_init(serve: Serve, tmp_path: Path) -> None:
    """An on_init written in Python asks for the pipelines as its first act and gets them."""
    program = tmp_path / "init.py"
    program.write_text(
        "from trailboss_worker.sdk import RPC, Jobs\n"
        "with RPC.from_environment(retry_until=20) as rpc:\n    print('pipelines', sorted(Jobs(rpc).list()))\n"
    )
    text = CONFIG.format(
        address=f"unix://{tmp_path}/rpc.sock", handler="handle", programs=PROGRAMS, python="", relay="pipes"
    )
    text = text.replace(
        "  relay:", f"  on_init: {{command: [{sys.executable}, {program}], exit_on_error: true}}\n  relay:"
    )
    server = serve(text)
    assert "pipelines ['idle', 'work']" in (tmp_path / "server.log").read_text()
    assert server.process.poll() is None
