"""`trailboss chaos` itself, on the examples, and on servers that break one promise.

Short runs of one stage for PHP and for Python workers, and one sabotage; the whole of it, with every sabotage, is in the
long tier. The command is the judge here, so a run is repeated by the line that it prints.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import MARK, PATIENCE, TESTS, marked

from trailboss.testing.sabotage import SABOTAGES, VARIABLE

pytestmark = pytest.mark.timeout(300)

EXAMPLES = TESTS.parent / "examples"
needs_php = [
    pytest.mark.php,
    pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine"),
]
BOTH = [pytest.param("php", marks=needs_php), "python"]
#: Jobs that the examples know.
JOBS = ("--job", "greet", "--payload", "chaos")


def chaos(
    example: str, folder: Path, *words: str, sabotage: str = "", seconds: float = 60.0
) -> tuple[int, dict[str, Any]]:
    """Run the command on an example; returns exit code and JSON document."""
    temporary = folder / "temporary"
    temporary.mkdir()
    module = "trailboss.testing.sabotage" if sabotage else "trailboss"
    done = subprocess.run(
        [sys.executable, "-m", module, "chaos", "-c", EXAMPLES / f"{example}.yaml", *JOBS, "--json", *words],
        env={**os.environ, VARIABLE: sabotage or "requests", "TMPDIR": str(temporary)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds * PATIENCE,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    assert list(temporary.iterdir()) == []
    return done.returncode, json.loads(done.stdout)


def broken(document: dict[str, Any]) -> dict[str, str]:
    """Invariants that do not hold, and what was seen."""
    return {row["name"]: row["seen"] for row in document["invariants"] if not row["holds"]}


@pytest.mark.parametrize("example", BOTH)
def test_a_short_run_passes(example: str, tmp_path: Path) -> None:
    """Workers killed in their start under load: exit code 0, no invariant broken, and a report that says so.

    The variable of the saboteurs is set all the while: it means nothing to the program itself.
    """
    report = tmp_path / "report.html"
    words = ("--plan", "mid-init", "--for", "5s", "--seed", "1", "--report", str(report))
    code, document = chaos(example, tmp_path, *words)

    assert broken(document) == {}
    assert (code, document["passed"]) == (0, True)
    assert len(document["injections"]) >= 2
    assert document["clients"]["http"]["outcomes"]["answered"] > 100
    assert "✓ Passed" in report.read_text("utf-8")


def test_a_broken_promise_is_named(tmp_path: Path) -> None:
    """A server that leaves a process behind fails the run, by the name of that invariant alone."""
    words = ("--plan", "storm", "--for", "5s", "--seed", "1")
    code, document = chaos("python", tmp_path, *words, sabotage="no process left")

    assert list(broken(document)) == ["no process left"]
    assert (code, document["passed"]) == (1, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing(number: int, tmp_path: Path) -> None:
    """A signal in the middle of a run: exit code 130 at once, no server left, no folder left."""
    mark = secrets.token_hex(8)
    run = subprocess.Popen(
        [sys.executable, "-m", "trailboss", "chaos", "-c", EXAMPLES / "python.yaml", "--plan", "storm", "-s"],
        env={**os.environ, "TMPDIR": str(tmp_path), MARK: mark},
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20 * PATIENCE
        while not list(tmp_path.glob("*/rpc.sock")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(number)

        assert run.wait(10 * PATIENCE) == 130
    finally:
        run.kill()
        run.wait()
    deadline = time.monotonic() + 2 * PATIENCE
    while marked(mark):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SABOTAGES))
def test_every_broken_promise_is_named(name: str, tmp_path: Path) -> None:
    """Each saboteur breaks the invariant that has its name."""
    words = ("--plan", "storm", "--for", "8s", "--seed", "7")
    code, document = chaos("python", tmp_path, *words, sabotage=name, seconds=150)

    assert name in broken(document)
    assert code == 1


@pytest.mark.long
@pytest.mark.parametrize("example", BOTH)
def test_everything_passes_within_a_minute(example: str, tmp_path: Path) -> None:
    """The whole plan, with the default length, on an example: exit code 0 within 60 seconds."""
    code, document = chaos(example, tmp_path, "--plan", "all", "--seed", "1", seconds=90)

    assert broken(document) == {}
    assert code == 0
    assert document["seconds"] < 60 * PATIENCE
    assert {"mid-init", "storm", "power", "memory"} == {row["stage"] for row in document["injections"]}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", BOTH)
def test_three_hundred_deaths_in_the_start(example: str, tmp_path: Path) -> None:
    """Four minutes of deaths and freezes in the start of workers: 300 of them, and nothing is lost."""
    words = (
        "--plan",
        "mid-init",
        "--for",
        "4m",
        "--seed",
        "2",
        "-o",
        "jobs.pool.boot_timeout=1s",
        "-o",
        "http.pool.boot_timeout=1s",
    )
    code, document = chaos(example, tmp_path, *words, seconds=400)

    assert broken(document) == {}
    assert code == 0
    assert len(document["injections"]) >= 300


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("example", BOTH)
def test_system_calls(example: str, tmp_path: Path) -> None:
    """Workers killed at system calls of their start too."""
    code, document = chaos(
        example, tmp_path, "--plan", "mid-init", "--for", "30s", "--seed", "3", "--system-calls"
    )

    assert broken(document) == {}
    assert code == 0
    assert any(row["kind"] == "kill at a system call of its start" for row in document["injections"])
