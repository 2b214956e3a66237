"""THE WHOLE LIFE IN ONE SCREEN: configuration → container → wait for a signal or an exit → reverse stop → exit code.

Signals become events here and nowhere else. The first SIGTERM, SIGINT, SIGQUIT, SIGABRT asks for the graceful stop. The
second takes all grace away: the walk back is made at once, and a process that has not ended two seconds later is ended
where it stands; its guard then kills what is left of it. SIGUSR2 starts the upgrade to a new program. SIGHUP replaces
the workers of all pools; in a terminal it says that the terminal has gone, and stops the server, unless it was ignored
when we were started (nohup).

Exit codes: 0 after a graceful stop, 1 when the start failed, the stop was forced, or a pool with `on_exhausted: exit` had
no worker left. A wrong configuration (2) never gets this far.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import trio

from trailboss.activation import take_passed_sockets
from trailboss.assembly import Assembly, assemble
from trailboss.cli.live import show_start
from trailboss.config.schema import Config
from trailboss.container.contract import PluginFailed
from trailboss.container.startup import StartFailed
from trailboss.handover import take_handover
from trailboss.log import logger
from trailboss.plugins.logs import LogSystem, LogTargetError, install
from trailboss.reaping import reap_orphans
from trailboss.systemd.store import SocketStore
from trailboss.upgrading import Origin, UpgradeFailed, Upgrader

__all__ = ["StartError", "run"]

log = logger("container")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT)
#: Young objects before a collection, and collections of each generation before one of the next.
COLLECTOR_THRESHOLDS = (20_000, 20, 50)
#: From a second signal to the end of the process, whatever still runs.
FORCED_EXIT_SECONDS = 2.0
#: Time for the last lines of the log at the end.
LAST_LINES_SECONDS = 1.0


class StartError(Exception):
    """The server could not be started; the text is one line for people."""


def run(
    config: Config,
    *,
    banner: str = "",
    debug: bool = False,
    reread: Callable[[], Config] | None = None,
    origin: Origin | None = None,
    on_in_charge: Callable[[], None] = lambda: None,
) -> int:
    """Run a server until it is told to stop and return the exit code. Raises StartError.

    `reread` loads the configuration again, as it was loaded at first; it may raise ConfigError.

    `origin`: how this program was started; an upgrade starts its successor in the same way. `on_in_charge` is called when
    this server answers for the whole service: at once, or after a predecessor has let go.

    `banner` is written to standard output when the server is ready. The working directory and the environment are those
    of the configuration already.
    """
    # Before anything is started that could inherit them.
    handover = take_handover(os.environ)
    passed_sockets = handover.of_systemd() if handover.is_successor else take_passed_sockets(os.environ)
    handover.store = SocketStore.of_unit(os.environ)
    if handover.store is not None:
        handover.store.take(passed_sockets)
    if handover.is_successor:
        handover.on_in_charge.append(on_in_charge)
    else:
        on_in_charge()
    try:
        return _run(
            config,
            banner,
            debug,
            lambda logs: assemble(config, logs, os.environ, passed_sockets, reread, handover, origin),
        )
    except StartError as error:
        handover.report_failure(str(error))
        raise


def _run(config: Config, banner: str, debug: bool, build: Callable[[LogSystem], Assembly]) -> int:
    try:
        logs = install(dataclasses.replace(config.logs, level="debug") if debug else config.logs)
    except LogTargetError as error:
        raise StartError(str(error)) from error
    for note in config.notes:
        log.warning("configuration note", note=str(note))
    try:
        assembly = build(logs)
    except (PluginFailed, ValueError) as error:  # plugins that cannot be loaded, or not live together
        raise StartError(str(error)) from error
    _calm_collector()
    # In force whenever trio does not listen: a stop asked for just before it does is done then, and one that comes when the
    # server has stopped is no reason to die of it.
    for number in STOP_SIGNALS:
        signal.signal(number, _note_signal)
    try:
        return trio.run(_live, assembly, logs, banner)
    finally:
        logs.flush(LAST_LINES_SECONDS)
        for number in STOP_SIGNALS:
            signal.signal(
                number, signal.SIG_IGN
            )  # the interpreter takes its own handlers away before it has ended


#: Stop signals that came while trio did not listen.
_noted: list[int] = []


def _note_signal(number: int, _frame: object) -> None:
    _noted.append(number)


def _calm_collector() -> None:
    """Set the garbage collector up for a process with many long-lived objects.

    A queue of a million jobs is a million tracked objects; with the default thresholds the collector would walk all of
    them again and again while jobs come in. Reference counts free what the request path makes; cycles are rare here.
    What was imported lives for ever and is never looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


async def _live(assembly: Assembly, logs: LogSystem, banner: str) -> int:
    container, stop, hurry = assembly.container, trio.Event(), trio.Event()
    ended = trio.Event()
    failure: PluginFailed | StartFailed | None = None

    async def live_container() -> None:
        nonlocal failure
        try:
            await container.run(stop, hurry, task_status=_SayReady(logs, banner))
        except (PluginFailed, StartFailed) as error:
            failure = error
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(assembly.reactor.run)

        def reload() -> None:
            if assembly.reloader is not None:
                nursery.start_soon(assembly.reloader.reload, "SIGHUP")

        def upgrade() -> None:
            if assembly.upgrader is not None:
                nursery.start_soon(_upgrade, assembly.upgrader)

        if assembly.upgrader is not None:
            assembly.upgrader.stop = stop.set
        await nursery.start(_follow_signals, stop, hurry, logs, reload, upgrade)
        if os.getpid() == 1:
            nursery.start_soon(reap_orphans)
        nursery.start_soon(show_start, container.state, logs.terminal())
        nursery.start_soon(live_container)
        if assembly.handover is not None:
            nursery.start_soon(assembly.handover.receive)
        await container.finished.wait()
        if container.abandoned:
            if container.failure is not None:  # `run` cannot raise it any more
                print(container.failure, file=sys.stderr, flush=True)
            _leave(logs, f"these tasks ignore their cancellation: {', '.join(container.abandoned)}")
        await ended.wait()
        nursery.cancel_scope.cancel(reason="the server has stopped")
    assembly.reactor.close()
    if failure is not None:
        raise StartError(_with_details(failure, logs)) from failure
    return 1 if hurry.is_set() else 0


def _with_details(failure: Exception, logs: LogSystem) -> str:
    """The failure for people: with the worker's own words, unless the log has shown them on the same terminal."""
    text, details = str(failure), getattr(failure, "details", "")
    return text if details in text or logs.is_seen("info", "server") else f"{text}\n{details}"


class _SayReady:
    """The container's task_status: writes the banner when the server is ready, without ever waiting for a reader."""

    def __init__(self, logs: LogSystem, banner: str) -> None:
        self._logs = logs
        self._banner = banner

    def started(self, value: None = None) -> None:
        """Write the banner."""
        if self._banner:
            self._logs.say(self._banner)


async def _upgrade(upgrader: Upgrader) -> None:
    with suppress(UpgradeFailed):  # it is in the log
        await upgrader.upgrade("SIGUSR2")


async def _follow_signals(
    stop: trio.Event,
    hurry: trio.Event,
    logs: LogSystem,
    reload: Callable[[], None],
    upgrade: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn signals into events, for ever."""
    # Asked now: the kernel takes a terminal that hangs up from everybody before it says so.
    in_terminal = _has_terminal()
    numbers = [*STOP_SIGNALS, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # started by nohup
        numbers.append(signal.SIGHUP)
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        if _noted:
            log.info("stop signal received", signal=signal.Signals(_noted[0]).name)
            stop.set()
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGUSR2:
                log.info("upgrade signal received", signal=name)
                upgrade()
            elif number == signal.SIGHUP and not in_terminal:
                log.info("reload signal received", signal=name)
                reload()
            elif not stop.is_set():
                log.info("stop signal received", signal=name)
                stop.set()
            elif not hurry.is_set():
                log.warning("second stop signal received: stopping at once", signal=name)
                hurry.set()
                threading.Thread(target=_leave_late, args=(logs,), daemon=True).start()


def _has_terminal() -> bool:
    """Whether this process hangs on a terminal: then SIGHUP says that it has gone, otherwise "reload"."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        # One that is just hanging up says EIO.
        return error.errno == errno.EIO
    return True


def _leave_late(logs: LogSystem) -> None:
    """End the process when it has not ended by itself; a thread, so that a stuck loop cannot prevent it."""
    time.sleep(FORCED_EXIT_SECONDS)
    _leave(logs, "exit forced")


def _leave(logs: LogSystem, why: str) -> NoReturn:
    """End the process here and now; the guard kills what is left of it."""
    log.error("exit forced", reason=why)
    logs.flush(LAST_LINES_SECONDS)
    os._exit(1)
