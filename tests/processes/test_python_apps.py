"""`trailboss serve --wsgi` and `--asgi` from outside: large bodies, start errors, reloading, error pages."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..interop.live import WAIT_SECONDS, Live, free_port, live, run_trailboss

PROGRAMS = Path(__file__).resolve().parent / "programs"
MEGABYTE = 1 << 20


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[Live, int]]:
    """A server of an application, and its port."""
    port = free_port()
    words = ("serve", *arguments, "--bind", f"127.0.0.1:{port}", "-o", "rpc.enabled=false")
    with live(folder, "", *words) as server:
        yield server, port


def ask(port: int, path: str = "/", body: object = None, length: int = 0) -> tuple[int, bytes]:
    """Status and body of the answer to a request; `body` may be an iterable of `length` bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        headers = {"Content-Length": str(length)} if length else {}
        connection.request("GET" if body is None else "POST", path, body, headers)  # type: ignore[arg-type]
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def peak_kilobytes(pid: int) -> int:
    """The most memory a process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_huge_upload_costs_no_memory(tmp_path: Path, kind: str) -> None:
    """300 MB reach the application whole, and neither the server nor the worker ever holds them; nothing stays."""
    block = os.urandom(MEGABYTE)
    count = 300
    digest = hashlib.md5()
    for _ in range(count):
        digest.update(block)
    words = (f"--{kind}", f"python_apps:digest_{kind}", "--chdir", str(PROGRAMS), "--workers", "1")
    with serving(tmp_path, *words, "-o", f"http.uploads.dir={tmp_path}") as (server, port):
        small = json.loads(ask(port, body=b"abc")[1])
        before = peak_kilobytes(server.process.pid)
        status, text = ask(port, body=(block for _ in range(count)), length=count * MEGABYTE)
        assert status == 200, server.stderr
        large = json.loads(text)
        assert large["size"] == large["announced"] == count * MEGABYTE
        assert large["digest"] == digest.hexdigest()
        assert large["peak"] - small["peak"] < 4096
        assert peak_kilobytes(server.process.pid) - before < 16 * 1024
        assert sorted(os.listdir(tmp_path)) == ["stderr", "stdout"]


BROKEN = """
def deep():
    import a_module_that_nobody_has


deep()
"""


def start_broken(folder: Path, *more: str, file: bool = False) -> subprocess.CompletedProcess[str]:
    """Try to serve an application that cannot be imported with three workers, by flags or from a file."""
    (folder / "broken.py").write_text(BROKEN)
    bind = f"127.0.0.1:{free_port()}"
    if not file:
        words = ("--wsgi", "broken", "--workers", "3", "--bind", bind, "-o", "rpc.enabled=false")
        return run_trailboss(folder, "serve", *words, *more)
    (folder / ".rr.yaml").write_text(
        'version: "3"\nrpc: {enabled: false}\nserver: {command: trailboss-worker wsgi broken}\n'
        f"http: {{address: '{bind}', pool: {{num_workers: 3}}}}\n"
    )
    return run_trailboss(folder, "serve", *more)


@pytest.mark.parametrize("file", [False, True], ids=["flags", "file"])
def test_an_import_error_is_said_once(tmp_path: Path, file: bool) -> None:
    """The traceback of an application that cannot be imported is in the log once, whatever the number of workers."""
    done = start_broken(tmp_path, file=file)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1, done.stderr
    assert done.stderr.count("import a_module_that_nobody_has") == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("exit code 1: ModuleNotFoundError: No module named 'a_module_that_nobody_has'"), last


def test_an_import_error_where_the_log_is_elsewhere(tmp_path: Path) -> None:
    """Who does not see the log gets the traceback with the start error, readable, once."""
    done = start_broken(tmp_path, "-o", "logs.output=server.log,")
    assert done.returncode == 1
    first, *rest = done.stderr.strip().splitlines()
    assert "3 workers ready" in first
    assert rest[0] == "trailboss-worker: cannot load the application broken:"
    assert rest[1] == "Traceback (most recent call last):"
    assert rest[-1] == "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"
    assert (tmp_path / "server.log").read_text().count("Traceback (most recent call last)") == 1
