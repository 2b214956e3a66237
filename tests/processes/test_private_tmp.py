"""`pool.process.private_tmp`: PHP and Python use the folder, it goes with the worker, and a killed server leaves none."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
PATIENCE = 2.0 if os.environ.get("CI") else 1.0
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "{command}"}}
http: {{address: "unix:{folder}/web.sock", pool: {{num_workers: 2, process: {{private_tmp: true}}}}}}
"""
PYTHON = """
import os, tempfile

def application(environ, start_response):
    tempfile.mkstemp()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [tempfile.gettempdir().encode()]
"""
PHP = """<?php
require '{tests}/php/http_pages.php';
$worker = Trailboss\\Php\\Worker::create();
while ($worker->waitPayload() !== null) {{
    tempnam(sys_get_temp_dir(), 'x');
    $worker->respond(sys_get_temp_dir(), '{{"status":200,"headers":{{"Content-Type":["text/plain"]}}}}', 8);
}}
"""


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20 * PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20 * PATIENCE)
        self.sock.connect(str(self._path))


def ask(folder: Path) -> Path:
    """Where a worker's temporary files go."""
    connection = _Connection(folder / "web.sock")
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
        return Path(body)
    finally:
        connection.close()


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    environ = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trailboss", "serve"],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 20 * PATIENCE)[0], (folder / "log.txt").read_text()
    assert b"started" in process.stdout.readline(), (folder / "log.txt").read_text()
    return process


def eventually(check: Callable[[], object], what: str) -> None:
    """Wait until `check()` is true."""
    deadline = time.monotonic() + 20 * PATIENCE
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("language", ["python", pytest.param("php", marks=pytest.mark.php)])
def test_each_worker_has_its_own_and_nothing_stays(tmp_path: Path, language: str) -> None:
    """Other than the server's, gone with the worker, and gone after a crash once the next server has started."""
    command = "trailboss-worker wsgi app:application" if language == "python" else f"php {tmp_path}/app.php"
    (tmp_path / ".rr.yaml").write_text(CONFIG.format(folder=tmp_path, command=command))
    (tmp_path / "app.py").write_text(PYTHON)
    (tmp_path / "app.php").write_text(PHP.format(tests=TESTS))
    (tmp_path / "tmp").mkdir()
    own = tmp_path / "tmp"
    process = start(tmp_path)
    try:
        mine = ask(tmp_path)
        assert mine.parent.parent == own
        assert list(mine.iterdir())
        assert len(list(mine.parent.iterdir())) == 2
        reset = subprocess.run(
            [sys.executable, "-m", "trailboss", "reset"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert reset.returncode == 0, reset.stderr
        eventually(lambda: not mine.exists(), "the folder of a worker that has been replaced is still there")
        process.kill()
        process.communicate(timeout=30)
        left = next(own.glob("trailboss-tmp-*"))
        process = start(tmp_path)
        assert not left.exists()
        assert ask(tmp_path).parent != left
        process.send_signal(signal.SIGTERM)
        assert process.wait(30 * PATIENCE) == 0
        assert list(own.glob("trailboss-*tmp-*")) == []
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)
