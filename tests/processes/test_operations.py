"""What operators do to a running server: reload by signal, with broken code too; quarantine; pools that give up."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trailboss.chaos.instance import free_port

from .test_cli_server import Server

pytestmark = pytest.mark.timeout(120)

APPLICATION = """
import os

VERSION = {version}
warm = []

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/die":
        os._exit(7)
    if path == "/warm":
        warm.append(environ.get("HTTP_USER_AGENT", ""))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [("%s %d %s" % (VERSION, len(warm), ",".join(warm))).encode()]
"""
CONFIG = """
version: "3"
rpc: {{listen: "unix://{sockets}/rpc.sock"}}
server: {{command: [trailboss-worker, wsgi, "app:application"]}}
http:
  address: 127.0.0.1:{port}
  pool: {{num_workers: 2, boot_timeout: 20s, {pool}}}
logs: {{mode: production, output: [server.log]}}
"""


class Site(Server):
    """A web server."""

    def __init__(self, folder: Path, pool: str, sockets: Path | None = None) -> None:
        self.port = free_port()
        (folder / ".rr.yaml").write_text(CONFIG.format(sockets=sockets or folder, port=self.port, pool=pool))
        self.deploy(folder, "'one'")
        super().__init__(folder)

    @staticmethod
    def deploy(folder: Path, version: str) -> None:
        """Write the application's code."""
        (folder / "app.py").write_text(APPLICATION.replace("{version}", version))

    def get(self, path: str) -> tuple[int, str, str]:
        """Status, body and trailboss-reason of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers.get("trailboss-reason", "")
        finally:
            connection.close()


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A ready web server; the parameter is its pool's keys."""
    found = Site(tmp_path, getattr(request, "param", ""))
    try:
        assert "started" in found.wait_banner()
        yield found
    finally:
        found.close()


def _wait(site: Site, text: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while sum(text in str(record["msg"]) for record in site.records()) < count:
        assert time.monotonic() < deadline, f"no {count} records say {text!r}"
        time.sleep(0.02)


def test_reload_by_signal_under_load(site: Site) -> None:
    """SIGHUP takes the new code in; a broken one changes nothing and says why; no request fails either way."""
    failures: list[tuple[int, str, str]] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            answer = site.get("/")
            if answer[0] != 200:
                failures.append(answer)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        site.deploy(site.folder, "'two'")
        site.process.send_signal(signal.SIGHUP)
        _wait(site, "reload done")
        assert site.get("/")[1].startswith("two ")
        site.deploy(site.folder, "= broken")
        site.process.send_signal(signal.SIGHUP)
        _wait(site, "old workers go on")
        assert site.get("/")[1].startswith("two ")
        for verb in ("reload", "reset"):
            asked = site.command(verb)
            assert asked.returncode == 1
            assert b"SyntaxError" in asked.stderr
            assert b"the old ones go on" in asked.stderr
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert site.process.poll() is None
    state = json.loads(site.command("state", "--json").stdout)
    assert "SyntaxError" in state["pools"][0]["last_reset_failure"]


@pytest.mark.parametrize("site", ["warmup: [/warm, '/warm?twice']"], indirect=True)
def test_warm_up_requests_reach_the_application(site: Site) -> None:
    """Each worker has answered them before it serves."""
    for _ in range(6):
        assert site.get("/")[1] == "one 2 Trailboss-Warmup,Trailboss-Warmup"


@pytest.mark.parametrize("site", ["quarantine: {deaths: 2, within: 60s}"], indirect=True)
def test_a_poison_request_is_quarantined(site: Site) -> None:
    """It is refused after two deaths; operators see it and lift it; others are answered all the time."""
    statuses = []
    for _ in range(4):
        statuses.append(site.get("/die"))
        assert site.get("/")[0] == 200
    # GET is given to another worker once, so the second death follows the first.
    assert statuses[0][0] in (502, 503)
    assert {(status, reason) for status, _, reason in statuses[1:]} == {(503, "quarantined")}
    [row] = json.loads(site.command("quarantine", "--json").stdout)
    assert row["doing"] == "GET /die"
    assert row["deaths"] == 2
    assert b"GET /die" in site.command("quarantine").stdout
    assert b"may run again" in site.command("quarantine", "--lift", row["fingerprint"]).stdout
    assert site.command("quarantine").stdout == b"nothing is in quarantine\n"
    again = site.command("quarantine", "--lift", row["fingerprint"])
    assert again.returncode == 1
    assert b"nothing in quarantine has the fingerprint" in again.stderr


@pytest.mark.parametrize("site", ["on_exhausted: exit"], indirect=True)
def test_an_exhausted_pool_ends_the_server_where_that_is_asked(site: Site) -> None:
    """When no worker is left and none boots: exit code 1, with the reason."""
    site.deploy(site.folder, "= broken")
    for _ in range(6):
        try:
            site.get("/die")
        except (OSError, http.client.HTTPException):
            break  # it has gone already
    assert site.process.wait(60) == 1
    assert site.process.stderr is not None
    said = site.process.stderr.read().decode()
    assert "on_exhausted: exit" in said
    assert "SyntaxError" in said


def _rewrite(site: Site, old: str, new: str) -> None:
    file = site.folder / ".rr.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_reload_takes_in_what_can_change(site: Site) -> None:
    """Sizes, limits and levels are in force at once, the rest is listed; a wrong file changes nothing at all."""
    _rewrite(site, "num_workers: 2,", "num_workers: 3, max_queue_size: 7, supervisor: {ttl: 1h},")
    _rewrite(site, "logs: {mode: production,", "logs: {mode: production, level: info,")
    _rewrite(site, "logs:", "status: {address: 127.0.0.1:0}\nlogs:")
    done = site.command("reload")
    assert done.stderr == b""
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert "changed: http.pool.num_workers" in lines
    assert "changed: http.pool.max_queue_size" in lines
    assert "changed: logs.level" in lines
    assert "needs a restart: status" in lines
    assert lines[-1] == "new workers: [http]"
    [pool] = json.loads(site.command("state", "--json").stdout)["pools"]
    assert (pool["configured"], pool["ready"], pool["generation"]) == (3, 3, 2)
    _rewrite(site, "num_workers: 3,", "num_workers: many,")
    refused = site.command("reload")
    assert refused.returncode == 2
    assert b"http.pool.num_workers" in refused.stderr
    site.process.send_signal(signal.SIGHUP)
    _wait(site, "reload refused: nothing was changed")
    _rewrite(site, "num_workers: many,", "num_workers: 1,")
    [pool] = json.loads(site.command("state", "--json").stdout)["pools"]
    assert (pool["configured"], pool["ready"], pool["generation"]) == (3, 3, 2)
    report = json.loads(site.command("reload", "--json").stdout)
    assert report["taken"] == ["http.pool.num_workers"]
    assert report["needs_restart"] == ["status"]
    deadline = time.monotonic() + 30
    while json.loads(site.command("state", "--json").stdout)["pools"][0]["ready"] != 1:
        assert time.monotonic() < deadline
    assert site.get("/")[0] == 200


def test_a_changed_command_that_does_not_start_goes_back(site: Site) -> None:
    """The old workers go on, and what replaces one of them later is started as they were."""
    _rewrite(
        site,
        'server: {command: [trailboss-worker, wsgi, "app:application"]}',
        "server: {command: [/nowhere]}",
    )
    failed = site.command("reload")
    assert failed.returncode == 1
    assert b"/nowhere" in failed.stderr
    assert site.get("/die")[0] == 502
    deadline = time.monotonic() + 30
    while json.loads(site.command("state", "--json").stdout)["pools"][0]["ready"] != 2:
        assert time.monotonic() < deadline
    assert site.get("/")[1].startswith("one ")


def test_a_release_behind_a_link_is_found_anew(tmp_path: Path) -> None:
    """current -> releases/1: after the link points to releases/2, a reload runs the code of that."""
    for version in ("'one'", "'two'"):
        release = tmp_path / "releases" / version.strip("'")
        release.mkdir(parents=True)
        Site.deploy(release, version)
    link = tmp_path / "current"
    link.symlink_to("releases/one")
    site = Site(link, "", tmp_path)
    Site.deploy(link, "'one'")
    (tmp_path / "releases/two/.rr.yaml").write_text((link / ".rr.yaml").read_text())
    site.close()
    site = _Linked(link, site.port)
    try:
        assert "started" in site.wait_banner()
        assert site.get("/")[1].startswith("one ")
        (tmp_path / "next").symlink_to("releases/two")
        (tmp_path / "next").rename(link)
        assert site.command("reload", "-c", str(link / ".rr.yaml")).returncode == 0
        assert site.get("/")[1].startswith("two ")
    finally:
        site.close()


class _Linked(Site):
    """A web server that was given its file by a path with a link in it."""

    def __init__(self, link: Path, port: int) -> None:
        self.port = port
        Server.__init__(self, link, "-c", str(link / ".rr.yaml"))
