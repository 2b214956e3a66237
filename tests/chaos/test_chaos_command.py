"""`trailboss chaos` itself, on the examples, and on servers that break one promise.

Short runs of one stage for PHP and for Python workers, and one sabotage; the whole of it, with every sabotage, is in the
long tier. The command is the judge here, so a run is repeated by the line that it prints.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from live_server import MARK, PATIENCE, TESTS, marked
from marks import needs_php

from trailboss.testing.sabotage import SABOTAGES, VARIABLE

pytestmark = pytest.mark.timeout(300)

EXAMPLES = TESTS.parent / "examples"
BOTH = [pytest.param("php", marks=needs_php), "python"]
#: Jobs that the examples know.
JOBS = ("--job", "greet", "--payload", "chaos")


def chaos(
    example: str, folder: Path, *words: str, sabotage: str = "", seconds: float = 60.0
) -> tuple[int, dict[str, Any]]:
    """Run the command on an example; returns exit code and JSON document."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
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


def kinds_of(document: dict[str, Any]) -> Counter[str]:
    """What was done, and how often."""
    return Counter(row["kind"] for row in document["injections"])


@pytest.mark.parametrize("example", BOTH)
def test_a_short_run_passes(example: str, tmp_path: Path) -> None:
    """Workers killed in their start under load: exit code 0, no invariant broken, and a report that says so.

    The variable of the saboteurs is set all the while: it means nothing to the program itself.
    """
    report = tmp_path / "report.html"
    strace = ["--system-calls"] if shutil.which("strace") is not None else []
    words = ("--plan", "mid-init", "--for", "20s", "--at-most", "5", "--seed", "1", "--report", str(report))
    code, document = chaos(example, tmp_path, *words, *strace)

    assert broken(document) == {}
    assert (code, document["passed"]) == (0, True)
    assert len(document["injections"]) == 5
    assert bool(strace) == bool(kinds_of(document)["kill at a system call of its start"])
    assert document["clients"]["http"]["outcomes"]["answered"] > 100
    assert "✓ Passed" in report.read_text("utf-8")


@pytest.mark.long
@pytest.mark.parametrize("example", BOTH)
def test_the_same_seed_does_the_same(example: str, tmp_path: Path) -> None:
    """Two runs with one seed do the same things to the same pools in the same order, in every part."""
    words = ("--plan", "all", "--for", "4m", "--at-most", "4", "--seed", "11")
    first, second = (chaos(example, tmp_path, *words, seconds=150)[1] for _ in range(2))
    done = [[row["text"] for row in document["injections"]] for document in (first, second)]

    assert (broken(first), broken(second)) == ({}, {})
    assert done[0] == done[1]
    assert len(done[0]) == 16


@pytest.mark.parametrize("example", [pytest.param("php", marks=[*needs_php, pytest.mark.long]), "python"])
def test_a_worker_that_grows_is_replaced(example: str, tmp_path: Path) -> None:
    """A worker takes memory until it is above the limit, and another dies as for want of it: nobody is the worse for it."""
    words = ("--plan", "memory", "--for", "30s", "--at-most", "2", "--seed", "1")
    code, document = chaos(example, tmp_path, *words)
    rows = document["injections"]

    assert broken(document) == {}
    assert code == 0
    assert rows[0]["kind"] == "grow above the memory limit"
    assert re.fullmatch(r"from \d+ to \d+ MiB, limit \d+", rows[0]["note"])
    before, after, limit = map(int, re.findall(r"\d+", rows[0]["note"]))
    assert before < limit < after
    assert rows[1]["kind"].startswith("OOM kill, ")


@pytest.mark.long
@pytest.mark.php
@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine")
def test_workers_that_cannot_be_made_to_grow(tmp_path: Path) -> None:
    """PHP that reads no .ini file has its limit lowered instead, and the verdict says so; the other pool really grows."""
    words = ("--plan", "memory", "--for", "60s", "--at-most", "4", "--seed", "1")
    code, document = chaos("php", tmp_path, *words, "-o", "http.pool.command=php,-n,php/web.php")
    done = {(row["kind"], row["pool"]) for row in document["injections"] if "OOM" not in row["kind"]}
    (limit,) = (row["seen"] for row in document["invariants"] if row["name"] == "memory limit")

    assert broken(document) == {}
    assert code == 0
    assert {("memory limit below what workers use", "http"), ("grow above the memory limit", "jobs")} == done
    assert "1 grown above it; limit lowered for http, where workers cannot be made to grow" in limit


def test_workers_that_never_start(tmp_path: Path) -> None:
    """There is nothing to judge: exit code 1, and the last words of the worker."""
    words = ["-o", "http.pool.command=sh,-c,echo the licence has expired >&2; exit 3", "--for", "5s"]
    done = subprocess.run(
        [sys.executable, "-m", "trailboss", "chaos", "-c", EXAMPLES / "python.yaml", *words],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )

    assert done.returncode == 1
    assert "the private instance did not start" in done.stderr
    assert "the licence has expired" in done.stderr
    assert "boot_timeout=" not in done.stderr  # it was not for want of time
    assert list(tmp_path.iterdir()) == []


def test_a_broken_promise_is_named(tmp_path: Path) -> None:
    """A server that leaves a process behind fails the run, by the name of that invariant alone."""
    words = ("--plan", "storm", "--for", "20s", "--at-most", "3", "--seed", "1")
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


def test_a_run_that_is_ended_shows_what_it_has_seen(tmp_path: Path) -> None:
    """Ctrl-C after the first faults: exit code 130, their figures, what was not looked at, and a report."""
    report = tmp_path / "report.html"
    words = ("--plan", "storm", "--for", "5m", "--seed", "1", "--job", "greet", "--keep", "--report", report)
    with subprocess.Popen(
        [sys.executable, "-m", "trailboss", "chaos", "-c", EXAMPLES / "python.yaml", *words],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            deadline = time.monotonic() + 30 * PATIENCE
            # The second death is of the second fault, so the first is over.
            while sum(log.read_text().count('"worker died"') for log in tmp_path.glob("*/server.log")) < 2:
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=10 * PATIENCE)
        finally:
            run.kill()

    assert run.returncode == 130, err
    assert "INTERRUPTED  nothing broken so far" in out
    assert "not looked at before the end" in out
    assert "again: " in out
    assert "Interrupted: nothing broken so far" in report.read_text("utf-8")
    assert "the folder of the run: " in err


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SABOTAGES))
def test_every_broken_promise_is_named(name: str, tmp_path: Path) -> None:
    """Each saboteur breaks the invariant that has its name."""
    plan = "memory" if name == "memory limit" else "storm"
    words = ("--plan", plan, "--for", "8s", "--seed", "7")
    code, document = chaos("python", tmp_path, *words, sabotage=name, seconds=150)

    assert name in broken(document)
    assert code == 1


@pytest.mark.long
@pytest.mark.parametrize("example", BOTH)
def test_everything_passes_within_two_minutes(example: str, tmp_path: Path) -> None:
    """The whole plan, with the default length, on an example: exit code 0 within 120 seconds (on an idle machine 50)."""
    code, document = chaos(example, tmp_path, "--plan", "all", "--seed", "1", seconds=150)

    assert broken(document) == {}
    assert code == 0
    assert document["seconds"] < 120
    assert kinds_of(document)["grow above the memory limit"] >= 1
    assert {"mid-init", "storm", "power", "memory"} == {row["stage"] for row in document["injections"]}


#: Frozen workers are found out sooner, so that there is time for more of them.
SHORT_BOOT = ("-o", "jobs.pool.boot_timeout=1s", "-o", "http.pool.boot_timeout=1s")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("example", BOTH)
def test_three_hundred_deaths_and_fifty_stops_in_the_start(example: str, tmp_path: Path) -> None:
    """At 300 points all over the start of a worker it is killed, at 50 it is stopped, and nothing is lost.

    Takes about five minutes.
    """
    words = ("--plan", "mid-init", "--for", "15m", "--at-most", "350", "--seed", "2", *SHORT_BOOT)
    code, document = chaos(example, tmp_path, *words, seconds=1000)
    kinds = kinds_of(document)

    assert broken(document) == {}
    assert code == 0
    assert (kinds["kill in its start"], kinds["freeze in its start"]) == (300, 50)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("example", BOTH)
def test_three_hundred_deaths_by_time_and_system_call(example: str, tmp_path: Path) -> None:
    """The same where every third is killed by its system calls: by their numbers, thus at points that no clock meets.

    Takes about five minutes.
    """
    words = ("--plan", "mid-init", "--for", "15m", "--at-most", "350", "--seed", "3", "--system-calls")
    code, document = chaos(example, tmp_path, *words, *SHORT_BOOT, seconds=1000)
    kinds = kinds_of(document)

    assert broken(document) == {}
    assert code == 0
    assert kinds["kill in its start"] + kinds["kill at a system call of its start"] == 300
    assert kinds["kill at a system call of its start"] >= 90
    assert kinds["freeze in its start"] == 50
