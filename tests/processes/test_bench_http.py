"""``tools/bench http`` as a program: it starts what it measures, says what came out, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_http.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(shutil.which("wrk") is None, reason="the client, wrk, is not installed")
def test_a_cell_is_measured_and_written_down(tmp_path: Path) -> None:
    """One cell without peers: a table, figures in a file, no failed request."""
    target = tmp_path / "figures.json"
    ran = run(
        "--cells", "WSGI hello, 1 ", "--peers", "", "--rounds", "1", "--workers", "1", "--json", str(target)
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "WSGI hello, 1 connection" in ran.stdout
    (cell,) = json.loads(target.read_text())["cells"]
    assert cell["servers"]["Trailboss"]["median"]["errors"] == 0
    assert cell["servers"]["Trailboss"]["median"]["rate"] > 0


def test_the_cells_are_listed() -> None:
    """Names to choose from, without starting anything."""
    names = run("--list").stdout.splitlines()
    assert "constant PHP worker, 16 connections" in names
    assert "100 MiB file" in names


def test_a_peer_that_nobody_knows_is_an_error() -> None:
    """Rather than a run without it."""
    ran = run("--peers", "apache")
    assert ran.returncode != 0
    assert "--peers knows nginx + php-fpm" in ran.stderr or "wrk is missing" in ran.stderr
