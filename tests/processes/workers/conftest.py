"""Fixtures of the worker tests: a stage for pools, captured log records, the C echo worker, PHP."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from trailboss.workers.guard import NATIVE_PROGRAM

from .stage import GUARDS, ROOT, Stage, open_stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Reactor, guard and workshop, relays over pipes; the invariants are checked afterwards."""
    async with open_stage() as opened:
        yield opened


@pytest.fixture(params=sorted(GUARDS))
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both guards in turn: the one that a supervisor of this test starts, in this process or as a child of it."""
    chosen: str = request.param
    if chosen == "c" and not NATIVE_PROGRAM.exists():
        pytest.skip("needs the guard in C, built at installation where there is a C compiler")
    monkeypatch.setenv("TRAILBOSS_PURE_PYTHON", "1" if chosen == "python" else "")
    return chosen


@pytest.fixture
def log_records() -> Iterator[list[dict[str, object]]]:
    """The log records of a test, as dictionaries."""
    with structlog.testing.capture_logs() as captured:
        yield captured  # type: ignore[misc]


@pytest.fixture(scope="session")
def echo_worker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The C echo worker, compiled once."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = tmp_path_factory.mktemp("echo") / "echo_worker"
    source = ROOT / "tools" / "bench_workers" / "echo_worker.c"
    command = [compiler, "-O2", "-D_GNU_SOURCE", "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return str(target)


@pytest.fixture
def php() -> str:
    """The php command."""
    found = shutil.which("php")
    if found is None:
        pytest.skip("needs php-cli")
    return found
