"""The server under what the hardened unit allows it: no capability, no new privilege, a file system it cannot write to.

Imitated with unshare and setpriv, so that it runs where no systemd is; the system call filter is systemd's own and is left
out here. PHP's pcre.jit, which needs memory that is written and executed, is tried as well.
"""

from __future__ import annotations

import http.client
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trailboss.chaos.instance import free_port

TESTS = Path(__file__).resolve().parent.parent
MOUNTS = "mount --make-rprivate / && mount -o remount,bind,ro / && mount -t tmpfs tmpfs /run && mkdir -m 700 /run/trailboss /run/tmp"
DROP = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
CONFIG = """
version: "3"
rpc: {{listen: "unix:///run/trailboss/rpc.sock"}}
server: {{command: "{command}"}}
http: {{address: 127.0.0.1:{port}, pool: {{num_workers: 2}}}}
"""
PHP = f"php -d pcre.jit=1 {TESTS}/php/http_worker.php"
PYTHON = "trailboss-worker wsgi app:application"
APPLICATION = """
import ctypes, os

def application(environ, start_response):
    status = [line for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd", "NoNewPrivs"))]
    try:
        open("/etc/trailboss-was-here", "w")
        status.append("writes /etc")
    except OSError as error:
        status.append(error.strerror)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["".join(status).encode()]
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    probe = ["unshare", "-m", "sh", "-c", f"{MOUNTS} && exec {' '.join(DROP)} true"]
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not _may_mount(), reason="mount namespaces (unshare) or setpriv cannot be used here"),
]


class Confined:
    """`trailboss serve` behind the imitation."""

    def __init__(self, folder: Path, command: str) -> None:
        self.port = free_port()
        (folder / ".rr.yaml").write_text(CONFIG.format(command=command, port=self.port))
        (folder / "app.py").write_text(APPLICATION)
        serve = f"{MOUNTS} && exec env TMPDIR=/run/tmp {' '.join(DROP)} {sys.executable} -m trailboss serve -c {folder}/.rr.yaml"
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", serve],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.banner = self.process.stdout.readline().decode()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture(params=[PYTHON, PHP], ids=["python", "php"])
def confined(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Confined]:
    """A server that runs."""
    found = Confined(tmp_path, request.param)
    try:
        assert "started" in found.banner
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.communicate(timeout=30)


def test_it_serves_reloads_and_stops(confined: Confined, request: pytest.FixtureRequest) -> None:
    """Nothing of it needs what the unit takes away."""
    for _ in range(10):
        status, body = confined.get("/")
        assert status == 200
    if "python" in request.node.name:
        assert "CapEff:\t0000000000000000" in body
        assert "CapBnd:\t0000000000000000" in body
        assert "NoNewPrivs:\t1" in body
        assert "Read-only file system" in body
    confined.process.send_signal(signal.SIGHUP)
    for _ in range(50):
        assert confined.get("/")[0] == 200
    assert confined.process.stderr is not None
    said, deadline = "", time.monotonic() + 60
    while "reload done" not in said:
        assert select.select([confined.process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0], (
            said
        )
        part = os.read(confined.process.stderr.fileno(), 65536).decode()
        assert part, said
        said += part
    confined.process.send_signal(signal.SIGTERM)
    assert confined.process.wait(60) == 0
    said += confined.process.stderr.read().decode()
    assert "Operation not permitted" not in said
