"""Fixtures of the interop tests: a running server for a configuration file, php, and interpreters of other kinds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .live import WAIT_SECONDS, Live, live

Serve = Callable[..., Live]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server: `serve(text_of_rr_yaml, address)`; it is stopped, and its end judged, after the test."""
    with ExitStack() as servers:

        def start(
            text: str,
            address: str = "",
            *arguments: str,
            env: dict[str, str] | None = None,
            name: str = ".rr.yaml",
        ) -> Live:
            (tmp_path / name).write_text(text)
            address = address or f"unix://{tmp_path}/rpc.sock"
            return servers.enter_context(live(tmp_path, address, *(arguments or ("serve",)), env=env))

        yield start


@pytest.fixture
def php() -> str:
    """The php command."""
    found = shutil.which("php")
    if found is None:
        pytest.skip("needs php-cli")
    return found


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter of a virtual environment in which nothing is installed, Trailboss least of all."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")],
        check=True,
        timeout=WAIT_SECONDS,
    )
    python = str(folder / "venv" / "bin" / "python")
    probe = subprocess.run(
        [python, "-c", "import trailboss_worker"], capture_output=True, timeout=WAIT_SECONDS
    )
    assert b"ModuleNotFoundError" in probe.stderr
    return python
