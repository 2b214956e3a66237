"""The examples of the repository and the messages to systemd, with real servers."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from trailboss.chaos.instance import free_port

pytestmark = pytest.mark.timeout(120)

PROJECT = Path(__file__).resolve().parents[2]
TRAILBOSS = (sys.executable, "-m", "trailboss")


@pytest.mark.parametrize(
    "language",
    [
        pytest.param(
            "php", marks=[pytest.mark.php, pytest.mark.skipif(not shutil.which("php"), reason="no php")]
        ),
        "python",
    ],
)
def test_an_example_runs_a_pushed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    """on_init prints the pipelines, the page and the pushed job are that language's, and the stop is clean."""
    port = free_port()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    log = tmp_path / "server.log"
    flags = (
        *("-c", str(PROJECT / "examples" / f"{language}.yaml")),
        *("-o", f"rpc.listen=unix://{tmp_path}/rpc.sock", "-o", f"status.address=127.0.0.1:{free_port()}"),
        *("-o", f"logs.output={log}", "-o", f"http.address=127.0.0.1:{port}"),
    )
    with subprocess.Popen(
        [*TRAILBOSS, "serve", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith(b"[INFO] Trailboss server started")
            assert "on_init: the pipelines are emails, reports" in log.read_text()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?name=Ann", timeout=60) as page:
                assert b"Hello Ann, from " in page.read()
            words = [*TRAILBOSS, *flags, "jobs", "push", "emails", "greet", "--payload", "World"]
            subprocess.run(words, check=True, timeout=60, capture_output=True)
            wanted = f"Hello World, from {'PHP' if language == 'php' else 'Python'}"
            deadline = time.monotonic() + 60
            while wanted not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert wanted in log.read_text()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("language", ["php", "python"])
def test_an_example_has_no_wrong_key(language: str) -> None:
    """`trailboss config` accepts the file."""
    words = [*TRAILBOSS, "config", "-c", str(PROJECT / "examples" / f"{language}.yaml")]
    done = subprocess.run(words, timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_systemd_hears_ready_once_after_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STATUS while starting, READY=1 once and after every worker, WATCHDOG=1 while it lives, STOPPING=1 at the end."""
    (tmp_path / ".rr.yaml").write_text(
        'version: "3"\n'
        f'rpc: {{listen: "unix://{tmp_path}/rpc.sock"}}\n'
        'server: {command: "trailboss-worker echo"}\n'
        "jobs: {pool: {num_workers: 2}, consume: [a], pipelines: {a: {driver: memory}}}\n"
        "logs: {mode: production, output: [server.log]}\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        told: list[str] = []
        with subprocess.Popen(
            [*TRAILBOSS, "serve", "-s"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as server:
            try:
                while "READY=1" not in told:
                    told += manager.recv(4096).decode().split("\n")
                assert (tmp_path / "server.log").read_text().count('"worker ready"') == 2
                while told.count("WATCHDOG=1") < 4:
                    told += manager.recv(4096).decode().split("\n")
                server.send_signal(signal.SIGTERM)
                while "STOPPING=1" not in told:
                    told += manager.recv(4096).decode().split("\n")
                assert server.wait(60) == 0
            finally:
                server.kill()
    assert told.count("READY=1") == 1
    assert told.count("STOPPING=1") == 1
    assert told[0].startswith("STATUS=starting")
    assert "STATUS=ready" in told


def test_the_watchdog_stops_while_the_server_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that makes no progress (stopped by SIGSTOP) is silent; once it goes on it speaks again."""
    (tmp_path / ".rr.yaml").write_text('version: "3"\nlogs: {mode: "off"}\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
        with subprocess.Popen([*TRAILBOSS, "serve", "-s"], cwd=tmp_path) as server:
            try:
                for text in (b"READY=1", b"WATCHDOG=1"):
                    while text not in manager.recv(4096):
                        pass
                server.send_signal(signal.SIGSTOP)
                manager.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    while True:  # what was sent before the stop
                        manager.recv(4096)
                manager.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    manager.recv(4096)
                server.send_signal(signal.SIGCONT)
                manager.settimeout(60)
                assert b"WATCHDOG=1" in manager.recv(4096)
                server.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
            finally:
                server.kill()
