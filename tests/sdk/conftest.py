"""A scripted server: starts one worker program over a chosen relay and plays the server's lines to it.

Everything here has a deadline and is taken down at the end of the test, whatever the worker does; its standard
error is a file, so that no pipe can fill up.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from trailboss_worker.protocol.control import check_handshake, encode_pid, encode_stop
from trailboss_worker.protocol.frames import RAW, Frame, FrameDecoder
from trailboss_worker.protocol.payload import encode_payload, split_payload

TESTS = pathlib.Path(__file__).resolve().parent.parent
PACKAGE_ROOT = TESTS.parent / "worker_protocol"
PROGRAMS = TESTS / "sdk" / "programs"
PHP_PROGRAMS = TESTS / "php"
DEADLINE_SECONDS = 20.0


class ServedWorker:
    """One worker process and the server's end of its relay."""

    def __init__(
        self,
        command: list[str],
        relay: str,
        environment: dict[str, str],
        folder: pathlib.Path,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.decoder = FrameDecoder()
        self.stderr_path = folder / "stderr"
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        address = self._listen(relay, folder)
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if relay == "pipes" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**base_environment(), "RR_RELAY": address, **environment},
                cwd=folder,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        if self._listener is not None:
            self._listener.settimeout(DEADLINE_SECONDS)
            self._connection = self._listener.accept()[0]

    def _listen(self, relay: str, folder: pathlib.Path) -> str:
        if relay == "unix":
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(folder / "relay.sock"))
            address = f"unix://{folder / 'relay.sock'}"
        elif relay == "tcp":
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            return relay
        self._listener.listen(1)
        return address

    @property
    def read_fd(self) -> int:
        if self._connection is not None:
            return self._connection.fileno()
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def write_fd(self) -> int:
        if self._connection is not None:
            return self._connection.fileno()
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.write_fd, data) :]

    def frame(self) -> Frame:
        """The worker's next frame; fails at the deadline and at end of stream."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (frame := self.decoder.next_frame()) is None:
            data = self._read(deadline)
            assert data, f"the worker ended; its stderr: {self.stderr()}"
            self.decoder.feed(data)
        return frame

    def _read(self, deadline: float) -> bytes:
        ready, _, _ = select.select([self.read_fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing from the worker in time; its stderr: {self.stderr()}"
        try:
            return os.read(self.read_fd, 65536)
        except ConnectionResetError:
            return b""

    def rest(self) -> bytes:
        """Whatever else comes up to the end of the stream."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        rest = self.decoder.pending_bytes(1 << 20)
        while data := self._read(deadline):
            rest += data
        return rest

    def is_silent(self, seconds: float) -> bool:
        return not select.select([self.read_fd], [], [], seconds)[0]

    def shake_hands(self) -> int:
        self.send(encode_pid(os.getpid()))
        return check_handshake(self.frame())

    def exec(self, body: bytes, context: bytes = b"", flags: int = RAW) -> tuple[bytes, bytes]:
        """Context and body of the answer to one request."""
        self.send(encode_payload(context, body, flags))
        return split_payload(self.frame())

    def job(self, name: str, payload: object = None, **context: object) -> dict[str, object]:
        """The decoded answer to one job."""
        self.send_job(name, payload, **context)
        return json.loads(split_payload(self.frame())[1])

    def send_job(self, name: str, payload: object = None, **context: object) -> None:
        described = {
            "id": "id-1",
            "job": name,
            "driver": "memory",
            "headers": {},
            "pipeline": "test",
            **context,
        }
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send(encode_payload(json.dumps(described).encode(), body, RAW))

    def send_stop(self) -> None:
        self.send(encode_stop())

    def close_relay(self) -> None:
        """End of stream for the worker."""
        if self._connection is not None:
            self._connection.shutdown(socket.SHUT_WR)
        else:
            assert self.process.stdin is not None
            self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the worker is still running; its stderr: {self.stderr()}")

    def stderr(self) -> str:
        return self.stderr_path.read_text("utf-8", "replace")

    def wait_stderr(self, text: str) -> str:
        """All of standard error, once it holds the text."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in (seen := self.stderr()):
            assert time.monotonic() < deadline, f"{text!r} is not in {seen!r}"
            assert self.process.poll() is None or text in self.stderr(), f"ended without {text!r}: {seen!r}"
            time.sleep(0.002)
        return seen

    def take_down(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self._connection, self._listener):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def base_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RR_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


Serve = Callable[..., ServedWorker]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a command as a worker: `serve([command], relay="pipes", **environment)`."""
    workers: list[ServedWorker] = []
    with tempfile.TemporaryDirectory(prefix="tb-sdk-") as folder:

        def start(
            command: list[str],
            relay: str = "pipes",
            pass_fds: tuple[int, ...] = (),
            **environment: str,
        ) -> ServedWorker:
            own = pathlib.Path(folder) / str(len(workers))
            own.mkdir()
            worker = ServedWorker(command, relay, environment, own, pass_fds)
            workers.append(worker)
            return worker

        try:
            yield start
        finally:
            for worker in workers:
                worker.take_down()


@pytest.fixture
def serve_program(serve: Serve) -> Serve:
    """Start one of the Python programs beside these tests: `serve_program("name.py", relay="unix")`."""

    def start(name: str, *arguments: str, relay: str = "pipes", **environment: str) -> ServedWorker:
        return serve([sys.executable, str(PROGRAMS / name), *arguments], relay, **environment)

    return start


@pytest.fixture
def serve_command(serve: Serve) -> Serve:
    """Start `trailboss-worker` with these arguments."""

    def start(*arguments: str, relay: str = "pipes", **environment: str) -> ServedWorker:
        return serve([sys.executable, "-m", "trailboss_worker", *arguments], relay, **environment)

    return start


@pytest.fixture
def serve_php(serve: Serve) -> Serve:
    """Start one of the PHP test programs."""
    php = php_command()

    def start(name: str, relay: str = "pipes", **environment: str) -> ServedWorker:
        return serve([php, str(PHP_PROGRAMS / name)], relay, **environment)

    return start


@pytest.fixture
def php() -> str:
    return php_command()


def php_command() -> str:
    found = shutil.which("php")
    if found is None:
        pytest.skip("no php command here")
    return found
