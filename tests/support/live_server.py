"""A whole Trailboss as a real process in a folder of its own, and what tests need around it.

:func:`serving` starts one from a configuration and, on the way out, stops it and holds it to the invariants of a chaos
run: exit code, books, no call unanswered, no descriptor gained, no process left. Every process that the server starts
inherits a mark of ours in its environment, and the guard (whose environment is empty) is found as the server's child;
so "nothing is left" is a look through /proc, independent of what the server believes.

Real clock, real processes; every wait has a deadline and polls the outside of the server only: files, /proc, RPC.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trio

from trailboss.chaos import client as rpc_client
from trailboss.chaos import processes, verdict
from trailboss.chaos.client import CallFailed, ConnectionGone
from trailboss.chaos.processes import Seen, children_of, command_of, descriptors, memory_bytes, seen
from trailboss_worker.protocol import messages

TESTS = Path(__file__).resolve().parent.parent
PHP_WORKER = f"php {TESTS}/php/jobs_worker.php"
PYTHON_WORKER = f"{sys.executable} {TESTS}/sdk/programs/jobs_worker.py"
PHASE_WORKER = f"{sys.executable} -S -E {TESTS}/support/phase_worker.py"
MARK = "TRAILBOSS_TEST_MARK"
rss_bytes = memory_bytes
percentile = verdict.percentile
#: Time limits hold for an otherwise idle machine; where CI is set they are doubled, counts never are.
PATIENCE = 2.0 if os.environ.get("CI") else 1.0
READY_SECONDS = 20.0 * PATIENCE
STOP_SECONDS = 20.0 * PATIENCE


def marked(mark: str) -> list[int]:
    """Every living process that carries `mark` in its environment."""
    return processes.marked(MARK, mark)


What = str | Callable[[], str]


def _too_late(seconds: float, what: What) -> AssertionError:
    return AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")


async def until(check: Callable[[], object], seconds: float, what: What, step: float = 0.02) -> Any:
    """Wait until `check()` is true and return its value. Raises AssertionError with `what` after `seconds`."""
    deadline = trio.current_time() + seconds
    while not (value := check()):
        if trio.current_time() > deadline:
            raise _too_late(seconds, what)
        await trio.sleep(step)
    return value


async def until_async(
    check: Callable[[], Awaitable[object]], seconds: float, what: What, step: float = 0.02
) -> Any:
    """`until` for a check that has to wait itself."""
    deadline = trio.current_time() + seconds
    while not (value := await check()):
        if trio.current_time() > deadline:
            raise _too_late(seconds, what)
        await trio.sleep(step)
    return value


# --- RPC ----------------------------------------------------------------------------------------------------------


class Client(rpc_client.Client):
    """One RPC connection; one call at a time. Slow machines get more time."""

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect to a unix socket, or to `tcp://host:port`. Raises ConnectionGone."""
        if not path.startswith("tcp://"):
            return await super().connect(path)
        host, _, port = path.removeprefix("tcp://").rpartition(":")
        try:
            return cls(await trio.open_tcp_stream(host, int(port)))
        except OSError as error:
            raise ConnectionGone(str(error)) from error

    async def call(self, method: str, argument: object = True, seconds: float = 20.0) -> Any:
        """As in the product. Raises CallFailed, ConnectionGone, TooSlowError."""
        return await super().call(method, argument, seconds * PATIENCE)


def push_argument(
    pipeline: str, name: str, job_id: str, payload: object = None, delay: int = 0, priority: int = 0
) -> bytes:
    """The argument of jobs.Push; `payload` is sent as JSON."""
    return messages.JOBS_PUSH_REQUEST.encode({"job": _job(pipeline, name, job_id, payload, delay, priority)})


def _job(
    pipeline: str, name: str, job_id: str, payload: object, delay: int = 0, priority: int = 0
) -> dict[str, Any]:
    return {
        "job": name,
        "id": job_id,
        "payload": json.dumps(payload if payload is not None else {}).encode(),
        "headers": {},
        "options": {"pipeline": pipeline, "delay": delay, "priority": priority},
    }


def pipelines_argument(*names: str) -> bytes:
    """The argument of jobs.Pause, Resume, Destroy."""
    return messages.JOBS_PIPELINES.encode({"pipelines": list(names)})


#: Methods that end a server which is ready, whatever the argument: another one takes over.
ENDING = ("trailboss.Upgrade",)


def harmless_arguments(method: str, codec: str) -> object:
    """An argument with which `method` does what it is for, and which does a running server no harm."""
    table: dict[str, object] = {
        "jobs.Push": push_argument("idle", "ack", secrets.token_hex(8)),
        "jobs.PushBatch": messages.JOBS_PUSH_BATCH_REQUEST.encode(
            {"jobs": [_job("idle", "ack", secrets.token_hex(8), None) for _ in range(3)]}
        ),
        "jobs.Pause": pipelines_argument("idle"),
        "jobs.Resume": pipelines_argument("work"),
        "jobs.Destroy": pipelines_argument("nothing"),
        "jobs.Declare": messages.JOBS_DECLARE_REQUEST.encode(
            {"pipeline": {"name": f"p{secrets.token_hex(8)}", "driver": "memory"}}
        ),
        "jobs.Dead": {"pipeline": "work"},
        "jobs.Requeue": {"all": True},
        "jobs.Purge": {"all": True},
        "status.Status": messages.STATUS_REQUEST.encode({"plugin": "jobs"}),
        "status.Ready": messages.STATUS_REQUEST.encode({"plugin": "jobs"}),
        "informer.Workers": "jobs",
        "informer.Jobs": "jobs",
        "informer.AddWorker": "jobs",
        "informer.RemoveWorker": "jobs",
        "resetter.Reset": "jobs",
        "trailboss.Authenticate": "a token that nobody has",
        "trailboss.LiftQuarantine": "a fingerprint that nothing has",
    }
    if method in table:
        return table[method]
    if codec == "proto":
        return (
            messages.APPLOGGER_LOG_ENTRY.encode({"message": "called by a test"}) if "app." in method else b""
        )
    return "called by a test" if method.startswith("app.") else True


@dataclass
class Answers:
    """What a storm of callers got: every call ends in exactly one of these."""

    good: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)  #: (method, text)
    gone: int = 0
    #: (method, seconds) of the slowest.
    slowest: tuple[str, float] = ("", 0.0)
    started: int = 0

    @property
    def total(self) -> int:
        """How many calls have an outcome."""
        return self.good.total() + self.errors.total() + self.gone

    def took(self, method: str, seconds: float) -> None:
        """Note how long one call took."""
        if seconds > self.slowest[1]:
            self.slowest = (method, seconds)


#: Beginnings of the error texts that the gate and the handlers give on purpose.
TYPED = (
    "service not ready: ",
    "service not available: ",
    "refused during on_init: ",
    "deadline exceeded: ",
    "no such pipeline",
    "the new workers of the pool",
    "the new worker did not start",
    "the pool jobs ",
    "pipeline ",
    "waited ",
    "authentication failed: ",
    "nothing in quarantine has",
)


async def storm(
    path: str,
    methods: Sequence[Mapping[str, Any]],
    callers: int,
    over: trio.Event,
    answers: Answers,
    pause: float = 0.05,
    skip: Sequence[str] = (),
    call_seconds: float = 30.0,
) -> None:
    """`callers` connections that call method after method until `over`; connections that break are made anew."""
    chosen = [row for row in methods if row["name"] not in (*skip, *ENDING)]

    async def caller(first: int) -> None:
        client: Client | None = None
        turn = first
        try:
            while not over.is_set():
                if client is None:
                    try:
                        client = await Client.connect(path)
                    except ConnectionGone:
                        await trio.sleep(0.01)
                        continue
                row = chosen[turn % len(chosen)]
                turn += 1
                began = trio.current_time()
                answers.started += 1
                try:
                    await client.call(
                        row["name"], harmless_arguments(row["name"], row["codec"]), seconds=call_seconds
                    )
                    answers.good[row["name"]] += 1
                except CallFailed as error:
                    answers.errors[row["name"], str(error)] += 1
                except ConnectionGone:
                    answers.gone += 1
                    client.close()
                    client = None
                answers.took(row["name"], trio.current_time() - began)
                await trio.sleep(pause)
        finally:
            if client is not None:
                client.close()

    async with trio.open_nursery() as nursery:
        for number in range(callers):
            nursery.start_soon(caller, number)


def untyped(answers: Answers) -> dict[tuple[str, str], int]:
    """Errors of a storm that are none of those given on purpose."""
    return {key: count for key, count in answers.errors.items() if not key[1].startswith(TYPED)}


# --- the server ---------------------------------------------------------------------------------------------------


def configuration(
    folder: Path, command: str = PYTHON_WORKER, workers: int = 2, **changes: Any
) -> dict[str, Any]:
    """A configuration with a socket, jobs in memory (`work` consumed, `idle` not), JSON log and a ledger."""
    config: dict[str, Any] = {
        "version": "3",
        "rpc": {"listen": f"unix://{folder}/rpc.sock"},
        "server": {"command": command, "env": {"JOBS_LOG": f"{folder}/ledger"}},
        "jobs": {
            "consume": ["work"],
            "retry_backoff": "50ms",
            "retry_backoff_max": "200ms",
            "pool": {"num_workers": workers, "stop_timeout": "2s"},
            "pipelines": {"work": {"driver": "memory"}, "idle": {"driver": "memory"}},
        },
        "endure": {"grace_period": "8s"},
        "logs": {"mode": "production", "level": "debug", "output": [f"{folder}/server.log"]},
    }
    for path, value in changes.items():
        section = config
        *parents, last = path.split("__")
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return config


class Server:
    """A `trailboss serve` of ours. Everything waits at most as long as it says."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        #: Where RPC is: the path of its socket, or tcp://host:port.
        listen = config.get("rpc", {}).get("listen", f"{folder}/rpc.sock")
        self.path = str(listen).removeprefix("unix://")
        #: What starts the server's own command, with its arguments.
        self.launcher: Sequence[str] = ()
        self.log_path = folder / "server.log"
        self.ledger_path = folder / "ledger"
        self.config_path = folder / "trailboss.json"
        self.config_path.write_text(json.dumps(config))
        self._arguments = [*arguments, "-c", str(self.config_path)]
        self._env = {**os.environ, **(env or {}), MARK: self.mark}
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptors: list[str] = []
        self._known: set[Seen] = set()

    # life

    def start(self) -> None:
        """Start the process; returns at once."""
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self._process = subprocess.Popen(
                [*self.launcher, sys.executable, "-m", "trailboss", "serve", *self._arguments],
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Signal the server's own process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait_exit(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code, after at most `seconds`."""
        await until(
            lambda: self.exit_code is not None, seconds, lambda: f"the end of the server; {self.tail()}"
        )
        code = self.exit_code
        assert code is not None
        return code

    async def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when the banner is there."""

        def ready() -> bool:
            if self.exit_code is not None:
                raise AssertionError(f"the server ended with {self.exit_code}: {self.stderr()} {self.tail()}")
            return b"server started" in (self.folder / "stdout").read_bytes()

        await until(ready, seconds, lambda: f"the server ready; {self.tail()}")
        self.note_descriptors()

    def note_descriptors(self) -> None:
        """Remember the present descriptors as those it may have."""
        self._descriptors = descriptors(self.pid)

    async def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait_exit(seconds)

    def kill(self) -> None:
        """SIGKILL, and reap; notes what it had started until then."""
        if self.exit_code is None:
            self.signal(signal.SIGSTOP)  # so that the list of its children is that of the moment of the kill
            self.note_children()
            self.signal(signal.SIGKILL)
            assert self._process is not None
            self._process.wait(10)

    def note_children(self) -> None:
        """Remember the present children, so that :meth:`survivors` knows those without our mark too."""
        for pid in children_of(self.pid):
            process = seen(pid)
            if process is not None:
                self._known.add(process)

    def survivors(self) -> list[str]:
        """Command lines of what still lives of this server."""
        pids = {process.pid for process in self._known if process.alive} | set(marked(self.mark))
        assert self._process is not None
        if self._process.returncode is not None:
            pids.discard(self.pid)
        return [f"{pid}: {command_of(pid)}" for pid in sorted(pids)]

    async def expect_nothing_left(self, seconds: float = 2.0) -> None:
        """Raise AssertionError unless everything the server had started is gone within `seconds`."""
        await until(
            lambda: not self.survivors(),
            seconds * PATIENCE,
            lambda: f"nothing left of {self.pid}: {self.survivors()}",
        )

    # what it left behind

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log, for messages."""
        try:
            return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def stderr(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "stderr").read_text("utf-8", "replace")

    def log(self) -> list[dict[str, Any]]:
        """Records of the log so far."""
        try:
            text = self.log_path.read_text("utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def log_texts(self, **wanted: object) -> list[str]:
        """Texts of the log records with these members."""
        return [
            row["msg"] for row in self.log() if all(row.get(name) == value for name, value in wanted.items())
        ]

    def ledger(self) -> list[dict[str, Any]]:
        """Jobs begun by workers, in order: id, job, attempts, pid, time."""
        try:
            text = self.ledger_path.read_text("utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    # calls

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection of its own."""
        client = await Client.connect(self.path)
        try:
            yield client
        finally:
            client.close()

    async def call(self, method: str, argument: object = True, seconds: float = 20.0) -> Any:
        """One call on a connection of its own."""
        async with self.client() as client:
            return await client.call(method, argument, seconds)

    async def push(self, name: str, job_id: str, payload: object = None, pipeline: str = "work") -> None:
        """Push one job."""
        await self.call("jobs.Push", push_argument(pipeline, name, job_id, payload))

    async def state(self) -> dict[str, Any]:
        """trailboss.State."""
        answer = await self.call("trailboss.State")
        assert isinstance(answer, dict)
        return answer

    async def pool(self, name: str = "jobs") -> dict[str, Any]:
        """The row of a pool in trailboss.State."""
        return next(row for row in (await self.state())["pools"] if row["name"] == name)

    async def workers(self) -> list[dict[str, Any]]:
        """Workers of the jobs pool that are ready or busy."""
        answer = await self.call("informer.Workers", "jobs")
        return [row for row in answer["workers"] or [] if row["status"] in (1, 2)]

    async def wait_whole(self, seconds: float = 10.0, deaths: int = 0) -> None:
        """Return when the jobs pool has all its workers again, and has seen `deaths` of them or more."""

        async def whole() -> bool:
            pool = await self.pool()
            complete = pool["ready"] == pool["configured"] and not pool["booting"] and not pool["leaving"]
            return bool(complete and pool["phase"] == "ready" and pool["deaths"] >= deaths)

        await until_async(whole, seconds * PATIENCE, lambda: f"the pool whole again; {self.tail()}")

    async def wait_quiet(self, seconds: float = 20.0) -> dict[str, Any]:
        """Return the books when nothing of `work` waits, runs or is delayed."""

        async def quiet() -> dict[str, Any] | None:
            books = (await self.call("jobs.Books"))["pipelines"]["work"]
            return books if books["waiting"] + books["running"] + books["delayed"] == 0 else None

        books = await until_async(quiet, seconds * PATIENCE, lambda: f"all jobs ended; {self.tail()}")
        assert isinstance(books, dict)
        return books

    # invariants

    async def assert_books_balance(self) -> dict[str, int]:
        """Every pushed job is accounted for; returns the totals."""
        books = await self.call("jobs.Books")
        total = books["total"]
        kept = total["waiting"] + total["delayed"] + total["running"]
        gone = total["done"] + total["dead"] + total["destroyed"] + total["handed_over"]
        assert total["pushed"] + total["taken_over"] == kept + gone, books
        assert books["balanced"] is True, books
        assert min(total.values()) >= 0, books
        return dict(total)

    async def assert_no_descriptor_gained(self, seconds: float = 6.0) -> None:
        """No more descriptors than when it became ready, once its pool is whole and our connections are gone."""
        wanted = Counter(self._descriptors)

        def gained() -> dict[str, int]:
            now = Counter(descriptors(self.pid))
            return {name: count - wanted[name] for name, count in now.items() if count > wanted[name]}

        try:
            await until(lambda: not gained(), seconds * PATIENCE, "no descriptor gained")
        except AssertionError as error:
            raise AssertionError(f"{error}: {gained()}") from None

    def assert_no_traceback(self) -> None:
        """Nothing in log and standard error that nobody had thought of."""
        assert "Traceback" not in self.stderr(), self.stderr()
        bad = [
            row
            for row in self.log()
            if (
                row["msg"] == "an RPC method failed; its caller got an error answer"
                and not row["method"].startswith("faulty.")
            )
            or (row["logger"] != "rpc" and "Traceback" in json.dumps(row))
        ]
        assert bad == []


@asynccontextmanager
async def serving(
    folder: Path,
    config: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    *,
    wait: bool = True,
    exit_code: int = 0,
    check: bool = True,
) -> AsyncIterator[Server]:
    """A server that is ready inside the block, and stopped and held to the invariants behind it."""
    server = Server(folder, config, env)
    server.start()
    try:
        if wait:
            await server.wait_ready()
        yield server
        if server.exit_code is None:
            server.note_children()
            if wait and check:
                await server.wait_whole()
                await server.assert_books_balance()
                await server.assert_no_descriptor_gained()
            assert exit_code == await server.stop(), server.tail()
        if check:
            server.assert_no_traceback()
        await server.expect_nothing_left()
    finally:
        server.kill()
        for pid in marked(server.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@dataclass
class NotifySocket:
    """A datagram socket in the place of systemd's: what arrived, with its time."""

    path: str
    received: list[tuple[float, str]] = field(default_factory=list)

    async def listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Collect datagrams until cancelled."""
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(self.path)
            task_status.started()
            while True:
                data = await sock.recv(65536)
                self.received.append((time.time(), data.decode()))

    def lines(self, name: str) -> list[str]:
        """Values of `name=` in order of arrival."""
        return [
            line.partition("=")[2]
            for _, text in self.received
            for line in text.splitlines()
            if line.startswith(f"{name}=")
        ]


def install_plugins(folder: Path, source: str, **factories: str) -> dict[str, str]:
    """A distribution with third-party plugins (entry point name=factory in `source`); returns the environment for it."""
    site = folder / "site"
    info = site / "chaos_plugins-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (site / "chaos_plugins.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-plugins\nVersion: 1.0\n")
    points = "\n".join(f"{name} = chaos_plugins:{factory}" for name, factory in factories.items())
    (info / "entry_points.txt").write_text(f"[trailboss.plugins]\n{points}\n")
    return {"PYTHONPATH": str(site)}
