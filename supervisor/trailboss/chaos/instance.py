"""THE PRIVATE INSTANCE: somebody's configuration as a server that can disturb nobody.

The user's files are only read. Every address becomes one of ours (a socket in the folder of the run, free ports on
loopback), logs go to the folder, temporary files as well. Beyond that only what would make a run endless or meaningless is
changed, and every change is told: long limits become short ones, so that a frozen worker is found out, and quarantine is
off, which would take our kills for the fault of what the workers ran.
"""

# ruff: noqa: ASYNC110  the other side is a process: it is asked, it tells nobody
from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from trailboss.chaos.client import CallFailed, ConnectionGone, connected
from trailboss.chaos.processes import (
    Seen,
    children_of,
    command_of,
    descriptors,
    kill_if_there,
    marked,
    memory_bytes,
    seen,
)
from trailboss.config import Config
from trailboss.workers.workshop import resolve_command

__all__ = ["PROGRAM", "Instance", "Privacy", "TooLate", "free_port", "privacy_of", "started_by"]

#: What runs a Trailboss command line; `trailboss.testing.sabotage` puts itself here.
PROGRAM: list[str] = [sys.executable, "-m", "trailboss"]
#: Marks every process of a run, in its environment.
MARK = "TRAILBOSS_CHAOS_MARK"
#: Limits of a run, where the configuration has longer ones.
EXEC_TTL_SECONDS = 3
BOOT_TIMEOUT_SECONDS = 5
START_SECONDS_MAX = 60.0
LEFT_OVER_SECONDS = 2.0
#: Below lie those of well-known services.
PORT_MIN = 10_000
_chance = random.SystemRandom()  # not the seeded one: each run, or test, would begin with the same ports
SOCKET_NAME = "rpc.sock"
#: Bytes that the path of a unix socket may have.
SOCKET_PATH_MAX = 107

#: In the folder of a run: `SYSCALL N` for the next worker that starts.
ORDER_FILE = "call"
#: Runs COMMAND; where an order lies beside it, under strace, which kills it at the Nth call of SYSCALL.
TRACED_WORKER = """#!/bin/sh
folder=$(dirname "$0")
if mv "$folder/call" "$folder/call.$$" 2>/dev/null; then
    read -r call count <"$folder/call.$$"
    rm -f "$folder/call.$$"
    exec strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$count" "$@"
fi
exec "$@"
"""


class TooLate(Exception):
    """Something did not happen in its time; the text says what."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """How the private instance differs. `limits` lie below the user's own -o flags, `addresses` above them."""

    limits: tuple[str, ...]
    addresses: tuple[str, ...]
    socket_path: str
    http_port: int | None
    pools: dict[str, int]
    pipelines: tuple[str, ...]
    grace_seconds: float
    #: Limits in force, by pool.
    exec_ttl: dict[str, float] = field(default_factory=dict)
    boot_timeout: dict[str, float] = field(default_factory=dict)
    #: Longest wait for an answer of the RPC port: longer than the gate may let a call wait.
    call_seconds: float = 10.0
    #: What starts the workers of a pool; not there where it cannot be put behind a script of ours.
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: The user's own limits: max_worker_memory and process.memory_max in MB, 0 for none.
    worker_memory: dict[str, int] = field(default_factory=dict)
    memory_max: dict[str, int] = field(default_factory=dict)
    #: Pools of which the limit counts shared memory by its share.
    proportional: frozenset[str] = frozenset()

    @property
    def gated(self) -> list[tuple[str, object]]:
        """Calls that wait at the gate while a server starts."""
        calls: list[tuple[str, object]] = [("informer.Workers", name) for name in self.pools]
        return [*calls, ("jobs.Books", True)] if self.pipelines else calls

    @property
    def told(self) -> list[str]:
        """The changes for people."""
        return [text.replace("=", " = ", 1) for text in (*self.limits, *self.addresses)]


def free_port() -> int:
    """Return a port on loopback that nobody uses now, and that the system gives to no connection by itself.

    The clients of a run knock also while there is no server: from a port of the other kind a connection could take it
    away from the server, or find itself at the other end.
    """
    for port in _candidates():
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise OSError("no port on 127.0.0.1 is free")


def _candidates() -> list[int]:
    """Ports to try, in no order; at the end any that the system gives."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return [0]
    ports = [port for port in range(PORT_MIN, 65_536) if not low <= port <= high]
    return [*_chance.sample(ports, min(len(ports), 200)), 0]


def privacy_of(
    config: Config,
    folder: str,
    given: Sequence[str] = (),
    port: Callable[[], int] = free_port,
    *,
    system_calls: bool = False,
) -> Privacy:
    """Work out what has to be different. `given`: keys that the user has set with -o; their limits stay as they are.

    `system_calls`: workers are started by the script `traced_worker` in the folder.
    """
    limits, addresses = ["rpc.enabled=true"] if not config.rpc.enabled else [], []
    path = f"{folder}/{SOCKET_NAME}"
    addresses.append(f"rpc.listen=unix://{path}")
    kept = {text.partition("=")[0].strip() for text in given}
    pools: dict[str, int] = {}
    exec_ttl, boot_timeout, commands, worker_memory, memory_max = {}, {}, {}, {}, {}
    proportional = set()
    for name, section in (("http", config.http), ("jobs", config.jobs)):
        if section is None or section.pool.debug:  # a fresh worker for every execution: none to hurt
            continue
        pool = section.pool
        pools[name] = pool.resolved_num_workers
        ttl, boot = pool.supervisor.exec_ttl, pool.boot_timeout
        ttl_key, boot_key = f"{name}.pool.supervisor.exec_ttl", f"{name}.pool.boot_timeout"
        if ttl_key not in kept and not 0 < ttl <= EXEC_TTL_SECONDS:
            ttl = EXEC_TTL_SECONDS
            limits.append(f"{ttl_key}={ttl}s")
        if boot_key not in kept and not 0 < boot <= BOOT_TIMEOUT_SECONDS:
            boot = BOOT_TIMEOUT_SECONDS
            limits.append(f"{boot_key}={boot}s")
        if pool.quarantine.deaths:
            limits.append(f"{name}.pool.quarantine.deaths=0")
        if config.server is not None:
            command = resolve_command(pool.command or config.server.command, config.server.python)
            if not any("," in word for word in command):
                if system_calls:
                    command = (f"{folder}/traced_worker", *command)
                    addresses.append(started_by(name, command))
                commands[name] = command
        worker_memory[name], memory_max[name] = pool.supervisor.max_worker_memory, pool.process.memory_max
        if pool.supervisor.memory_measure == "pss":
            proportional.add(name)
        exec_ttl[name], boot_timeout[name] = float(ttl), float(boot)
    http_port = None
    if config.http is not None:
        http_port = port()
        addresses.append(f"http.address=127.0.0.1:{http_port}")
        if config.http.ssl is not None:
            addresses.append(f"http.ssl.address=127.0.0.1:{port()}")
    if config.status is not None:
        addresses.append(f"status.address=127.0.0.1:{port()}")
    if config.metrics is not None:
        addresses.append(f"metrics.address=127.0.0.1:{port()}")
    if config.server is not None and config.server.relay != "pipes":
        addresses.append(f"server.relay=unix://{folder}/relay.sock")
    log = f"{folder}/server.log"
    addresses += [
        "logs.mode=production", "logs.encoding=json", "logs.level=info",
        f"logs.output={log}", f"logs.err_output={log}",
    ]  # fmt: skip
    if config.logs.file_logger_options is not None:
        addresses.append(f"logs.file_logger_options.log_output={log}")
    for name, channel in config.logs.channels.items():
        prefix = f"logs.channels.{name}"
        addresses += [f"{prefix}.mode=production", f"{prefix}.encoding=json", f"{prefix}.output={log}"]
        if channel.file_logger_options is not None:
            addresses.append(f"{prefix}.file_logger_options.log_output={log}")
    return Privacy(
        tuple(limits),
        tuple(addresses),
        path,
        http_port,
        pools,
        tuple(config.jobs.consume) if config.jobs is not None else (),
        config.endure.grace_period,
        exec_ttl,
        boot_timeout,
        config.rpc.ready_timeout + 5.0,
        commands,
        worker_memory,
        memory_max,
        frozenset(proportional),
    )


def started_by(pool: str, command: Sequence[str]) -> str:
    """Return the override that makes this, of words without commas, the command of a pool."""
    return f"{pool}.pool.command={','.join(command).replace('$', '$$')}"


class Instance:
    """One server of a run, from its start to its end. Waits raise TooLate."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        privacy: Privacy,
        extra: Sequence[str] = (),
        group: str = "",
    ) -> None:
        """`words`: the flags of the user's command line. `extra`: further overrides, over all others.

        `group`: the `cgroup.procs` of the control group in which it runs; "" for our own.
        """
        self.folder = folder
        self.privacy = privacy
        self.mark = secrets.token_hex(8)
        overrides = [word for text in privacy.limits for word in ("-o", text)]
        last = [word for text in (*privacy.addresses, *extra) for word in ("-o", text)]
        self._command = [*PROGRAM, "serve", *overrides, *words, *last]
        if group:  # before it is the server, so that all of it is in there
            self._command = ["/bin/sh", "-c", 'echo $$ 2>&- >"$0"; exec "$@"', group, *self._command]
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[Seen] = set()
        self._log_begin = 0
        self._descriptors: Counter[str] = Counter()
        self.memory_before = 0

    def start(self) -> None:
        """Start the process; returns at once."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        log = self.folder / "server.log"
        self._log_begin = log.stat().st_size if log.exists() else 0
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, "TMPDIR": str(temporary), MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that killed it."""
        assert self._process is not None
        return self._process.poll()

    async def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Return when it says that it is ready."""

        def is_ready() -> bool:
            if self.exit_code is not None:
                raise TooLate(f"the server ended with {self.exit_code} in its start: {self.last_words()}")
            return b"server started" in (self.folder / "stdout").read_bytes()

        await until(is_ready, seconds, f"the server ready; {self.last_words()}")

    def note_rest(self) -> None:
        """Take what the server holds now as what it may hold at rest."""
        self._descriptors = Counter(descriptors(self.pid))

    def gained(self) -> Counter[str]:
        """Descriptors that it has gained since `note_rest`."""
        return Counter(descriptors(self.pid)) - self._descriptors

    def memory(self) -> int:
        """Resident memory of the supervisor in bytes."""
        return memory_bytes(self.pid)

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.note_children()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        seconds = self.privacy.grace_seconds + 10.0
        await until(
            lambda: self.exit_code is not None, seconds, f"the end of the server; {self.last_words()}"
        )
        code = self.exit_code
        assert code is not None
        return code

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self._process is not None and self.exit_code is None:
            self._process.send_signal(
                signal.SIGSTOP
            )  # so that the list of its children is that of the moment
            self.note_children()
            self._process.kill()
            self._process.wait(10)

    def sweep(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.kill()
        for pid in marked(MARK, self.mark):
            kill_if_there(pid)
        for process in self._known:
            process.send(signal.SIGKILL)

    def note_children(self) -> None:
        """Remember the present children, so that those without our mark (the guard) are looked for as well."""
        for pid in children_of(self.pid):
            process = seen(pid)
            if process is not None:
                self._known.add(process)

    def survivors(self) -> list[str]:
        """Command lines of what still lives of it."""
        pids = {process.pid for process in self._known if process.alive} | set(marked(MARK, self.mark))
        pids.discard(self.pid)
        return [f"{pid}: {command_of(pid)}" for pid in sorted(pids)]

    async def left_over(self) -> list[str]:
        """Return what is still there two seconds after the end."""
        with trio.move_on_after(LEFT_OVER_SECONDS):
            while self.survivors():
                await trio.sleep(0.02)
        return self.survivors()

    def last_words(self) -> str:
        """The last lines of standard error or of the log, for messages."""
        for name in ("stderr", "server.log"):
            try:
                lines = (self.folder / name).read_text("utf-8", "replace").strip().splitlines()
            except OSError:
                continue
            if lines:
                return " | ".join(lines[-3:])[-600:]
        return "it said nothing"

    def log(self) -> list[dict[str, Any]]:
        """Its own records of the log, so far."""
        try:
            with open(self.folder / "server.log", "rb") as file:
                file.seek(self._log_begin)
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        rows = []
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    # calls

    async def call(self, method: str, argument: object = True, seconds: float = 10.0) -> Any:
        """One call on a connection of its own. Raises CallFailed, ConnectionGone, TooSlowError."""
        async with connected(self.privacy.socket_path) as client:
            return await client.call(method, argument, seconds)

    async def pools(self) -> dict[str, dict[str, Any]]:
        """Rows of trailboss.State by pool."""
        return {row["name"]: row for row in (await self.call("trailboss.State"))["pools"]}

    async def workers(self, pool: str) -> list[dict[str, Any]]:
        """Workers of a pool that are ready or busy."""
        answer = await self.call("informer.Workers", pool)
        return [row for row in answer["workers"] or [] if row["statusStr"] in ("ready", "working")]

    async def is_whole(self, but: Collection[str] = ()) -> bool:
        """Whether every pool, but those named, has all its workers and nothing is under way."""
        return all(
            row["phase"] == "ready"
            and row["ready"] == row["configured"]
            and not row["booting"]
            and not row["leaving"]
            for name, row in (await self.pools()).items()
            if name not in but
        )

    async def wait_whole(self, seconds: float, gone: Sequence[Seen] = (), but: Collection[str] = ()) -> None:
        """Return when the processes of `gone` have ended and every pool, but those named, has all its workers."""
        deadline = trio.current_time() + seconds
        while True:
            try:
                if not any(process.alive for process in gone) and await self.is_whole(but):
                    return
            except (CallFailed, ConnectionGone, trio.TooSlowError):
                if self.exit_code is not None:
                    raise TooLate(f"the server ended with {self.exit_code}: {self.last_words()}") from None
            if trio.current_time() > deadline:
                raise TooLate(f"not whole within {seconds:.0f} s: {await self._state()}")
            await trio.sleep(0.01)

    async def _state(self) -> str:
        """The pools in a few words."""
        try:
            rows = await self.pools()
        except (CallFailed, ConnectionGone, trio.TooSlowError) as error:
            return f"it does not say why ({error})"
        return ", ".join(
            f"{name} {row['phase']} with {row['ready']} of {row['configured']}, {row['booting']} booting, "
            f"{row['leaving']} leaving"
            for name, row in rows.items()
        )


async def until(check: Callable[[], bool], seconds: float, what: str, step: float = 0.02) -> None:
    """Return when `check()` is true. Raises TooLate with `what` after `seconds`."""
    deadline = trio.current_time() + seconds
    while not check():
        if trio.current_time() > deadline:
            raise TooLate(f"not within {seconds:g} s: {what}")
        await trio.sleep(step)
