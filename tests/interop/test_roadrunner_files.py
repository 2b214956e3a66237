"""Configuration files as RoadRunner users have them, run as they are; and what becomes of sections that are not there.

The files in configurations/ were written for applications that only work on jobs. Each runs unmodified: its workers are
PHP programs, its ports come from the environment as such files take them.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trailboss_worker.sdk import Jobs

from .live import PHP_PROGRAMS, PROGRAMS, Live, free_port, live, run_trailboss

CONFIGURATIONS = Path(__file__).resolve().parent / "configurations"


class Application:
    """A copy of one of the configurations, and the ports that its environment names."""

    def __init__(self, folder: Path, name: str, servers: ExitStack) -> None:
        self.folder = folder / name
        shutil.copytree(CONFIGURATIONS / name, self.folder)
        self.ports = {key: str(free_port()) for key in ("RPC_PORT", "STATUS_PORT", "RELAY_PORT")}
        self._servers = servers
        self.worker(PROGRAMS / "inspect_worker.php")

    def worker(self, program: Path) -> None:
        """Make worker.php, which the files name, one of the test programs."""
        (self.folder / "worker.php").write_text(f"<?php require '{program}';\n")

    @property
    def tcp(self) -> str:
        """The RPC address of the files that listen on a port."""
        return f"tcp://127.0.0.1:{self.ports['RPC_PORT']}"

    def start(self, *arguments: str, address: str = "", **env: str) -> Live:
        """Start a server in the folder."""
        return self._servers.enter_context(
            live(self.folder, address or self.tcp, *(arguments or ("serve",)), env={**self.ports, **env})
        )

    def http_status(self, path: str) -> int:
        """The code of a page of the status plugin."""
        url = f"http://127.0.0.1:{self.ports['STATUS_PORT']}{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return int(answer.status)


@pytest.fixture
def application(request: pytest.FixtureRequest, tmp_path: Path, php: str) -> Iterator[Application]:
    """The configuration that the test names."""
    assert php
    with ExitStack() as servers:
        yield Application(tmp_path, request.param, servers)


def named(name: str) -> pytest.MarkDecorator:
    """Run a test over the configuration `name`."""
    return pytest.mark.parametrize("application", [name], indirect=True)


@pytest.mark.php
@named("laravel")
def test_variables_dotenv_on_init_and_channels(application: Application) -> None:
    """${VAR:-default}, a .env file, a migration before the workers, a channel with a file of its own."""
    server = application.start("serve", "--dotenv", ".env")
    assert (application.folder / "migrated").read_text() == "on --force\n"
    with server.rpc() as rpc:
        Jobs(rpc).push("mails", "App\\Jobs\\SendMail", "{}")
        workers = rpc.call("informer.Workers", "jobs")
    assert isinstance(workers, dict)
    assert len(workers["workers"]) == 2
    (seen,) = server.jobs(1)
    env = seen["env"]
    assert isinstance(env, dict)
    assert (env["APP_ENV"], env["APP_NAME"]) == ("staging", "Shop of Ann & Co")
    assert (
        application.http_status("/health?plugin=jobs"),
        application.http_status("/ready?plugin=jobs"),
    ) == (
        200,
        200,
    )
    channel = [json.loads(line) for line in (application.folder / "worker.log").read_text().splitlines()]
    assert "Nothing to migrate." in {row["msg"].strip() for row in channel}
    assert {row["logger"] for row in channel} == {"server"}
    rows = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
    assert rows
    assert "server" not in {row["logger"] for row in rows}


@pytest.mark.php
@named("spiral")
def test_includes_sockets_and_a_collector_that_is_away(application: Application) -> None:
    """Included sections, relative socket paths, a pipeline in capitals, otel without a collector, a log file."""
    server = application.start(address=f"unix://{application.folder}/rpc.sock")
    with server.rpc() as rpc:
        jobs = Jobs(rpc)
        (name,) = jobs.list()
        assert name.lower() == "default"
        jobs.push(name, "ping", "pong")
        jobs.resume(name)
    (seen,) = server.jobs(1)
    assert seen["body"] == "pong"
    env = seen["env"]
    assert isinstance(env, dict)
    assert env["RR_RELAY"].startswith("unix://")
    assert application.http_status("/jobs") == 200
    assert (application.folder / "app.log").read_text().strip()


@pytest.mark.php
@named("symfony")
def test_a_list_of_variables_debug_mode_and_late_consumption(application: Application) -> None:
    """env as a list of pairs, a fresh worker for each job, JSON lines on standard output, resume by RPC."""
    server = application.start()
    with server.rpc() as rpc:
        jobs = Jobs(rpc)
        for number in range(3):
            jobs.push("async", f"job{number}", str(number))
        assert [(stat.ready, stat.active) for stat in jobs.stat()] == [(False, 3)]
        jobs.resume("async")
    seen = server.jobs(3)
    env = seen[0]["env"]
    assert isinstance(env, dict)
    assert (env["APP_RUNTIME"], env["APP_DEBUG"]) == ("Runtime\\RoadRunnerSymfonyNyholm\\Runtime", "0")
    assert server.books()["done"] == 3
    lines = [line for line in server.stdout.splitlines() if not line.startswith("[INFO]")]
    assert lines
    assert all({"level", "logger", "msg"} <= json.loads(line).keys() for line in lines)


@pytest.mark.php
@named("sample")
def test_every_key_of_the_annotated_sample(application: Application) -> None:
    """All keys are taken, an on_init that fails is a line in the log, tcp relay, both pipelines are consumed."""
    server = application.start()
    with server.rpc() as rpc:
        jobs = Jobs(rpc)
        assert sorted(jobs.list()) == ["test-local", "test-local-2"]
        jobs.push("test-local", "first", "1")
        jobs.push("test-local-2", "second", "2")
    seen = server.jobs(2)
    env = seen[0]["env"]
    assert isinstance(env, dict)
    assert env["RR_RELAY"] == f"tcp://127.0.0.1:{application.ports['RELAY_PORT']}"
    assert server.books()["done"] == 2
    assert "on_init" in server.stderr + server.stdout


@pytest.mark.php
@named("json")
def test_a_file_in_json(application: Application) -> None:
    """The loader goes by the ending; a list may be one text; the log can be off."""
    application.worker(PHP_PROGRAMS / "jobs_worker.php")
    server = application.start("-c", "roadrunner.json", "serve")
    with server.rpc() as rpc:
        jobs = Jobs(rpc)
        assert [(stat.pipeline, stat.ready, stat.priority) for stat in jobs.stat()] == [
            ("one", True, 10),
            ("two", True, 2),
        ]
        jobs.push("two", "ack")
    assert [run["pipeline"] for run in server.jobs(1)] == ["two"]
    assert server.stderr == ""


# --- sections that are not there --------------------------------------------------------------------------------------

FULL = """version: "3"
rpc: {listen: "tcp://127.0.0.1:6001"}
server: {command: "php worker.php"}
http:
  address: 0.0.0.0:8080
  middleware: [gzip, static]
  pool: {num_workers: 4}
jobs:
  consume: [mails]
  pipelines:
    mails: {driver: amqp, config: {queue: mails}}
    local: {driver: memory}
amqp: {addr: "amqp://guest:guest@127.0.0.1:5672"}
kv:
  cache: {driver: redis, config: {addrs: ["127.0.0.1:6379"]}}
boltdb: {permissions: 0777}
service:
  cron: {command: "php cron.php", process_num: 1}
grpc: {listen: "tcp://127.0.0.1:9001"}
temporal: {address: 127.0.0.1:7233}
reload: {interval: 1s}
"""


@pytest.mark.parametrize("command", ["serve", "check"])
def test_one_line_for_each_section_that_is_not_there(tmp_path: Path, command: str) -> None:
    """Each names file, line, section and what to do; exit code 2; nothing was started."""
    (tmp_path / ".rr.yaml").write_text(FULL)
    done = run_trailboss(tmp_path, command)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = (done.stderr + done.stdout).splitlines()
    for number, section in [
        (13, "amqp"),
        (14, "kv"),
        (16, "boltdb"),
        (17, "service"),
        (19, "grpc"),
        (20, "temporal"),
    ]:
        about = [line for line in lines if f".rr.yaml:{number}: {section}: " in line]
        assert len(about) == 1, lines
        assert f"the {section} plugin is not available in this version of Trailboss; " in about[0]
    assert len([line for line in lines if ".rr.yaml:21: reload.interval: " in line]) == 1
    assert len([line for line in lines if "driver" in line and "amqp" in line and ":11:" in line]) == 1
    assert len([line for line in lines if ".rr.yaml:" in line]) == 8


# --- Laravel Octane ---------------------------------------------------------------------------------------------------

OCTANE_SERVER = (
    "-o version=3 -o http.address=127.0.0.1:{http} -o server.command={command}"
    " -o http.pool.num_workers=0 -o http.pool.max_jobs=500 -o rpc.listen=tcp://127.0.0.1:{rpc}"
    " -o http.pool.supervisor.exec_ttl=30s -o http.static.dir=public -o http.middleware=static"
    " -o logs.mode=production -o logs.level=debug -o logs.output=stdout -o logs.encoding=json"
)


@pytest.mark.php
def test_octanes_start_serves_http(tmp_path: Path, php: str) -> None:
    """An empty file, the flags before the command: pages, static files, and the log line that Octane reads."""
    (tmp_path / ".rr.yaml").touch()
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "robots.txt").write_text("static")
    port, rpc = free_port(), free_port()
    command = f"{php},{PHP_PROGRAMS}/http_worker.php,constant"
    words = OCTANE_SERVER.format(http=port, rpc=rpc, command=command)
    words = f"-c {tmp_path}/.rr.yaml {words} serve"
    with live(tmp_path, f"tcp://127.0.0.1:{rpc}", *words.split()) as server:
        assert fetch(f"http://127.0.0.1:{port}/a?b=c") == b"Hello, world!"
        assert fetch(f"http://127.0.0.1:{port}/robots.txt") == b"static"
        # Records of requests are written a few at a time.
        give_up_at = time.monotonic() + 10
        while not (lines := logged_requests(server.stdout, "/a?b=c")) and time.monotonic() < give_up_at:
            time.sleep(0.02)
        (line,) = lines
        assert {"status": 200, "method": "GET"}.items() <= line.items()
        assert {"elapsed", "start", "remote_address", "read_bytes", "write_bytes"} <= line.keys()
        assert server.stderr == ""


def logged_requests(output: str, uri: str) -> list[dict[str, object]]:
    """Return the complete records of requests for `uri`."""
    whole = output[: output.rfind("\n") + 1].splitlines()
    rows = [json.loads(line) for line in whole if not line.startswith("[INFO]")]
    return [row for row in rows if row["msg"] == "http log" and row["URI"] == uri]


def fetch(url: str) -> bytes:
    """Return the body of a page."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read()
    assert isinstance(body, bytes)
    return body


@pytest.mark.php
def test_octanes_shape_for_jobs_and_its_reset(tmp_path: Path, php: str) -> None:
    """The same shape with jobs runs; `reset` in its old and its new form is silent and replaces the workers."""
    (tmp_path / ".rr.yaml").touch()
    port = free_port()
    listen = f"rpc.listen=tcp://127.0.0.1:{port}"
    words = (
        f"-c {tmp_path}/.rr.yaml -o version=3 -o server.command={php},{PHP_PROGRAMS}/jobs_worker.php"
        f" -o jobs.pool.num_workers=2 -o jobs.pool.max_jobs=500 -o jobs.consume=work -o {listen}"
        " -o jobs.pool.supervisor.exec_ttl=30s -o jobs.pipelines.work.driver=memory -o logs.mode=production -o logs.level=debug"
        " -o logs.output=stdout -o logs.encoding=json serve"
    )
    assert words.count("-o ") == 12
    with live(tmp_path, f"tcp://127.0.0.1:{port}", *words.split()) as server:
        pids = [worker_pids(server)]
        for version in ([], ["-o", "version=3"]):
            done = run_trailboss(tmp_path, "-c", ".rr.yaml", "reset", *version, "-o", listen, "-s")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            pids.append(worker_pids(server))
        assert pids[0].isdisjoint(pids[1])
        assert pids[1].isdisjoint(pids[2])
        with server.rpc() as rpc:
            Jobs(rpc).push("work", "stderr", "{}")
        assert [run["job"] for run in server.jobs(1)] == ["stderr"]
        rows = [json.loads(line) for line in server.stdout.splitlines() if not line.startswith("[INFO]")]
        assert all({"level", "logger", "msg", "ts"} <= row.keys() for row in rows)
        assert server.stderr == ""


def worker_pids(server: Live) -> set[int]:
    """Pids of the ready workers of the jobs pool."""
    with server.rpc() as rpc:
        answer = rpc.call("informer.Workers", "jobs")
    assert isinstance(answer, dict)
    return {row["pid"] for row in answer["workers"] if row["statusStr"] in ("ready", "working")}
