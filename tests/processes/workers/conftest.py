"""Fixtures of the worker tests: a stage for pools, captured log records, the C echo worker, PHP."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from .stage import ROOT, Stage, open_stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Reactor, guard and workshop, relays over pipes; the invariants are checked afterwards."""
    async with open_stage() as opened:
        yield opened


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
