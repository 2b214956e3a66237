"""A command that runs to its end under supervision: on_init, the warm-up of a worker.

It has a session and a group of its own, the guard knows it, what it prints becomes log lines, and nothing of it is left
when the call returns, whichever way that is.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from trailboss.config.redact import redacted_text
from trailboss.log import logger
from trailboss.workers.callers import TOKEN_VARIABLE, new_token
from trailboss.workers.output import LineDrain
from trailboss.workers.process import Identity, Process, SpawnFailed, spawn

if TYPE_CHECKING:
    from trailboss.container.contract import CallerRole
    from trailboss.workers.workshop import PoolSpec, Workshop

__all__ = ["run_to_end", "run_warmup_command"]

log = logger("server")

#: Between SIGTERM to the group of a command whose time is over and SIGKILL, in seconds.
GRACE_SECONDS = 2.0
#: Its output is read to the end for at most so long: descendants may hold the pipe.
LAST_WORDS_SECONDS = 0.5
#: Lines of output logged a second where `server.stderr_rate` does not say otherwise.
LINES_PER_SECOND = 1000


async def run_to_end(
    shop: Workshop,
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    identity: Identity | None,
    role: CallerRole | None,
    source: str,
    limit: tuple[str, float],
    shown: str,
    rate: int = LINES_PER_SECOND,
) -> str:
    """Run `argv`; returns "" when it has ended with exit code 0, else what went wrong, with its last lines.

    `role`: as whom it may call the RPC port, None for nobody. `source` marks its log lines. `limit` is the key that
    bounds its run and its value in seconds. `shown` is the command as the user wrote it.

    On cancellation: its group is ended and reaped.
    """
    token = new_token()
    if role is not None:
        environment = {**environment, TOKEN_VARIABLE: token}
    try:
        process = await spawn(
            argv,
            environment,
            wall=time.time(),
            identity=identity,
            stdin="null",
            directory=shop.directory or None,
        )
    except SpawnFailed as error:
        return str(error)
    log.info(
        "on_init started" if source == "on_init" else "warm-up started",
        pid=process.pid,
        command=redacted_text(shown),
    )
    shop.guard.add(process.pid)
    if role is not None:
        shop.callers.add(process.pid, role, token=token)
    drains = [
        LineDrain(
            shop.reactor,
            fd,
            _emitter(process.pid, source),
            line_max=shop.settings.stderr_line_max,
            rate=rate,
            secret=token,
        )
        for fd in (process.stdout_fd, process.stderr_fd)
    ]
    key, seconds = limit
    timed_out = False
    try:
        with trio.move_on_after(seconds) as scope:
            await _exited(process)
        timed_out = scope.cancelled_caught
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE_SECONDS + 5):
            await _end(process, drains)
        shop.guard.discard(process.pid)
        if role is not None:
            shop.callers.discard(process.pid)
            shop.guard.end_strays(token)
    status = process.status
    if timed_out:
        return f"no end within {key} ({seconds:g} s); its process group was killed"
    if status is None or status.exit_code != 0:
        how = status.describe() if status is not None else "it cannot be killed"
        last = " | ".join(line for drain in drains for line in drain.last_lines()[-5:])
        what = f"{shown!r} ended with {how}"
        return redacted_text(f"{what}; last output: {last}" if last else what)
    return ""


async def run_warmup_command(shop: Workshop, spec: PoolSpec, pid: int, deadline: float) -> str:
    """Run `pool.warmup` for the worker `pid` (TRAILBOSS_WORKER_PID in its environment); as `run_to_end`.

    The command runs as the workers do, with their environment, and ends by `deadline` (trio's clock).
    """
    launch = shop.launch(spec)
    command = spec.config.warmup.command
    return await run_to_end(
        shop,
        command,
        {**launch.environment, "TRAILBOSS_WORKER_PID": str(pid)},
        identity=launch.identity,
        role=None,
        source="warm-up",
        limit=("warmup_timeout", max(0.0, deadline - trio.current_time())),
        shown=" ".join(command),
    )


async def _end(process: Process, drains: list[LineDrain]) -> None:
    """End the whole group, read what it had to say, reap it."""
    if not process.has_exited():
        process.signal_group(signal.SIGTERM)
        with trio.move_on_after(GRACE_SECONDS):
            await _exited(process)
    process.signal_group(signal.SIGKILL)
    await _exited(process)
    deadline = trio.current_time() + LAST_WORDS_SECONDS
    for drain in drains:
        drain.drain()
        while not drain.at_eof and trio.current_time() < deadline:
            await trio.sleep(0.01)
            drain.drain()
        drain.close()
    process.reap()
    trio.lowlevel.notify_closing(process.pidfd)
    process.close()


def _emitter(pid: int, source: str) -> Callable[[str], None]:
    def emit(line: str) -> None:
        log.info(line, pid=pid, source=source)

    return emit


async def _exited(process: Process) -> None:
    while not process.has_exited():
        await trio.lowlevel.wait_readable(process.pidfd)
