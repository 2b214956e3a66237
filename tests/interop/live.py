"""A `trailboss serve` over a configuration file as a user would write it, for tests that look at it from outside.

Unlike the servers of the chaos tests, which are made from one configuration, these are started from files of any shape,
listen where the file says, and are talked to by RPC clients of several languages. Leaving :func:`live` stops the server
and looks at the end: exit code, log, and that no process of it is left.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from trailboss.chaos.instance import free_port as free_port  # the tests take it from here
from trailboss_worker.sdk import RPC

from ..support.live_server import MARK, PATIENCE, children_of, marked, seen

TRAILBOSS = (sys.executable, "-m", "trailboss")
PHP_PROGRAMS = Path(__file__).resolve().parent.parent / "php"
PROGRAMS = Path(__file__).resolve().parent / "programs"
#: Longest wait for anything here, seconds; doubled on a shared machine.
WAIT_SECONDS = 20.0 * PATIENCE

Value = TypeVar("Value")


def wait_for(check: Callable[[], Value], what: str, seconds: float = WAIT_SECONDS) -> Value:
    """Ask `check` until it gives something true, and give that. Raises AssertionError naming `what`."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return value


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what other servers may have left in it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RR_", "OTEL_"))}
    return {**kept, **more}


def run_trailboss(
    folder: Path, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end."""
    return subprocess.run(
        [*TRAILBOSS, *words],
        cwd=folder,
        env=clean_environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


class Live:
    """A running server. `address` is where its RPC port is, `jobs_log` where the test workers write."""

    def __init__(
        self, folder: Path, address: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.address = address
        self.jobs_log = folder / "jobs.log"
        #: Tracebacks in the log are the application's.
        self.application_fails = False
        self._mark = secrets.token_hex(8)
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=clean_environment(JOBS_LOG=str(self.jobs_log), **(env or {}), **{MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return (self.folder / "stdout").read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return (self.folder / "stderr").read_text("utf-8", "replace")

    def wait_ready(self) -> None:
        """Return when the banner is there."""

        def ready() -> bool:
            code = self.process.poll()
            assert code is None, f"ended with {code}: {self.stderr}"
            return "server started" in self.stdout

        wait_for(ready, f"the server ready: {self.stderr}")

    def rpc(self) -> RPC:
        """A client; close it, or use it in a `with` statement."""
        return RPC(self.address, timeout_seconds=WAIT_SECONDS)

    def jobs(self, count: int) -> list[dict[str, object]]:
        """What the workers have written down, once there are `count` runs or more."""

        def runs() -> list[dict[str, object]]:
            lines = self.jobs_log.read_text("utf-8").splitlines() if self.jobs_log.exists() else []
            return [json.loads(line) for line in lines if line.endswith("}")]

        wait_for(lambda: len(runs()) >= count, f"{count} runs of jobs: {self.stderr}")
        return runs()

    def books(self) -> dict[str, int]:
        """Where the jobs of all pipelines are, once none of them is under way."""

        def settled() -> dict[str, int] | None:
            with self.rpc() as rpc:
                answer = rpc.call("jobs.Books", True)
            assert isinstance(answer, dict)
            assert answer["balanced"] is True
            total: dict[str, int] = answer["total"]
            return total if total["running"] + total["waiting"] + total["delayed"] == 0 else None

        books = wait_for(settled, f"all jobs settled: {self.stderr}")
        assert books is not None
        return books

    def stop(self) -> None:
        """Stop it and hold it to a clean end: exit code 0, no traceback, nothing left."""
        children = [process for pid in children_of(self.process.pid) if (process := seen(pid)) is not None]
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_SECONDS) == 0, self.stderr
        assert self.application_fails or "Traceback" not in self.stderr
        left = wait_for(
            lambda: (
                None
                if [process.pid for process in children if process.alive] + marked(self._mark)
                else "nothing"
            ),
            "nothing left of the server",
            2.0 * PATIENCE,
        )
        assert left == "nothing"

    def kill(self) -> None:
        """Make sure that nothing is left, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_SECONDS)
        for pid in marked(self._mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def live(
    folder: Path,
    address: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = TRAILBOSS,
) -> Iterator[Live]:
    """A server that is ready inside the block; `arguments` are the words of its command line."""
    server = Live(folder, address, [*program, *arguments], env)
    try:
        server.wait_ready()
        yield server
        server.stop()
    finally:
        server.kill()
