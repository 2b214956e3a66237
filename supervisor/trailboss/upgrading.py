"""Upgrade: start the program anew with our listening sockets, and leave when the new server is ready.

The new program is started as this one was: same arguments, environment and folder, all resolved anew, so that a changed
release link or a new installation is what runs. It boots its workers while this server goes on; then it says `ready` on
the channel, this server lets go of its sockets, systemd is told the new main process, `go` puts the new one in charge, and
this one hands over what it has in memory, finishes what runs and stops. A new server that fails, or is not ready in time, is
ended, and nothing has changed.

What the new program prints on standard error before it has read its configuration goes through here: it is passed on, and
its end is the reason where the program gives none.
"""

from __future__ import annotations

import enum
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from trailboss.activation import VARIABLES as ACTIVATION_VARIABLES
from trailboss.config.rules import pools
from trailboss.container.lifecycle import WholePhase
from trailboss.handover import VARIABLE, Handover
from trailboss.log import logger
from trailboss.parcels import Sender
from trailboss.systemd import send_notification

if TYPE_CHECKING:
    from trailboss.config.schema import Config
    from trailboss.container.state import ServerState

__all__ = ["Origin", "UpgradeFailed", "Upgrader", "upgrade_timeout_seconds"]

log = logger("container")

#: Beyond the boot of workers and on_init, for everything else of a start.
OTHER_SECONDS: Final = 30.0
#: For a new server that is ready to take in what there is by name.
DECLARE_SECONDS: Final = 5.0
#: For what is in memory before this server begins to stop; the rest follows while it does.
DELIVER_SECONDS: Final = 5.0
#: From SIGTERM to SIGKILL for a new server that is not wanted any more.
LEAVE_SECONDS: Final = 3.0
#: What is kept of the new program's standard error.
LAST_WORDS_BYTES: Final = 4096
#: For a process that has closed the channel to end.
END_SECONDS: Final = 2.0
#: For its last words to come out of the pipe.
LAST_WORDS_SECONDS: Final = 0.05
#: Of systemd and of ours, meant for this process alone.
_NOT_PASSED_ON: Final = (*ACTIVATION_VARIABLES, "WATCHDOG_PID", VARIABLE)


class UpgradeFailed(Exception):
    """There is no new server, and this one goes on; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How this program was started: its command line, the folder as it was named there, and the environment."""

    command: tuple[str, ...]
    directory: str
    environ: Mapping[str, str]

    @classmethod
    def now(cls) -> Origin:
        """Return that of this process; to be called before it changes its folder or environment."""
        directory = os.getcwd()
        named = os.environ.get("PWD", "")
        # The name with its links, as the shell or systemd gave it: a link may lead elsewhere next time.
        with suppress(OSError):
            if os.path.isabs(named) and os.path.samefile(named, directory):
                directory = named
        return cls((sys.executable, *sys.orig_argv[1:]), directory, dict(os.environ))


def upgrade_timeout_seconds(config: Config) -> float:
    """Return `endure.upgrade_timeout`, or without it what a start may take: workers, on_init and all the rest."""
    if config.endure.upgrade_timeout:
        return config.endure.upgrade_timeout
    on_init = config.server.on_init if config.server is not None else None
    boot = max((pool.boot_timeout for _, pool in pools(config)), default=0.0)
    return boot + (on_init.exec_timeout if on_init is not None else 0.0) + OTHER_SECONDS


class _Word(enum.Enum):
    READY = "ready"
    FAILED = "failed"
    GONE = "gone"


@dataclass(slots=True)
class _Successor:
    """The new server while it starts."""

    process: trio.Process
    channel: trio.SocketStream
    last_words: bytearray = field(default_factory=bytearray)
    #: What it has said about its failure.
    failure: str = ""
    #: What it takes of what is in memory here, by part; the version of each. None: it is older than that.
    takes: dict[str, int] = field(default_factory=dict)

    async def hear(self) -> _Word:
        """Wait for its one word."""
        heard = b""
        while b"\n" not in heard:
            try:
                data = await self.channel.receive_some(65536)
            except trio.BrokenResourceError:
                return _Word.GONE
            if not data:
                return _Word.GONE
            heard += data
        word, _, rest = heard.partition(b"\n")[0].partition(b" ")
        if word != b"failed":
            self.takes = _read_takes(rest)
            return _Word.READY
        with suppress(ValueError):
            self.failure = str(json.loads(rest))
        return _Word.FAILED

    def take_channel(self) -> socket.socket:
        """Return the channel without what trio knows of it; nothing of this object uses it any more."""
        channel = socket.socket(fileno=self.channel.socket.detach())
        channel.setblocking(False)
        return channel

    def reason(self) -> str:
        """Say why it has ended, in its own words where there are some."""
        code = self.process.returncode
        how = "it did not get ready"
        if code is not None:
            how = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        words = self.failure or self.last_words.decode("utf-8", "replace").strip()
        return f"{how}: {words}" if words else f"{how}; its own log may say why"


def _read_takes(text: bytes) -> dict[str, int]:
    """Return what stands behind `ready`; nothing where it is not understood."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return {str(part): int(version) for part, version in json.loads(text)["takes"].items()}
    return {}


class Upgrader:
    """A service. Does one upgrade at a time, and no further one once it has succeeded."""

    def __init__(
        self, handover: Handover, state: ServerState, origin: Origin | None, timeout_seconds: float
    ) -> None:
        self._handover = handover
        self._state = state
        self._origin = origin
        self._timeout_seconds = timeout_seconds
        self._under_way = False
        #: Set by whoever runs the server: stops it gracefully.
        self.stop: Callable[[], None] = lambda: None

    async def upgrade(self, reason: str) -> int:
        """Start a successor and give everything over; return its process id. This server then stops by itself, soon.

        Raises UpgradeFailed: this server goes on as if nothing had happened.
        On cancellation: the successor is ended, unless it is in charge already.
        """
        try:
            self._check()
            self._under_way = True
            try:
                log.info("upgrade begins: a new server is started", reason=reason)
                pid = await self._replace()
            finally:
                self._under_way = False
        except UpgradeFailed as error:
            log.error("upgrade failed, this server goes on", reason=str(error))
            raise
        log.info("upgrade done: the new server is in charge, this one finishes what it has", new_pid=pid)
        try:
            with trio.move_on_after(DELIVER_SECONDS):
                await self._handover.deliver_all()
        finally:
            self.stop()
        return pid

    def _check(self) -> None:
        if os.getpid() == 1:
            raise UpgradeFailed(
                "this server is process 1, whose end is the end of its container: no other can take its place; "
                "start a new container instead"
            )
        if self._origin is None:
            raise UpgradeFailed("this server was not started by `trailboss serve`")
        if self._under_way:
            raise UpgradeFailed("an upgrade is under way already; wait for its end")
        if self._handover.given_up:
            raise UpgradeFailed("this server has been replaced and is leaving")
        if self._state.whole is not WholePhase.READY:
            raise UpgradeFailed(f"the server is {self._state.whole.value}; only a ready one can be upgraded")

    async def _replace(self) -> int:
        """Start the successor and give everything over, or raise UpgradeFailed bare, with nothing changed."""
        assert self._origin is not None  # checked
        failure: UpgradeFailed | None = None
        pid = 0
        async with trio.open_nursery() as nursery:
            try:
                pid = await self._replace_in(nursery, self._origin)
            except UpgradeFailed as error:  # as a value, or the nursery would wrap it
                failure = error
            nursery.cancel_scope.cancel(reason="the upgrade is decided")
        if failure is not None:
            raise failure
        return pid

    async def _replace_in(self, nursery: trio.Nursery, origin: Origin) -> int:
        try:
            successor = await self._start(origin, nursery)
        except OSError as error:
            raise UpgradeFailed(
                f"the new program cannot be started: {error.strerror or error}: {origin.command[0]}"
            ) from error
        try:
            await self._wait_ready(successor)
            heir = Sender(successor.take_channel(), successor.takes)
            try:
                await self._declare(heir)
            except BaseException:
                heir.close()
                raise
        except BaseException:
            with trio.CancelScope(shield=True):
                await _end(successor.process)
            raise
        finally:
            successor.channel.socket.close()
        self._give_up(successor, heir)
        return successor.process.pid

    async def _start(self, origin: Origin, nursery: trio.Nursery) -> _Successor:
        """Start the program. Raises OSError."""
        offers = self._handover.offers
        with ExitStack() as passed, ExitStack() as kept:
            mine, theirs = socket.socketpair()
            passed.callback(theirs.close)
            kept.callback(mine.close)
            read_end, write_end = os.pipe()
            passed.callback(os.close, write_end)
            kept.callback(os.close, read_end)
            stderr = os.dup(2)
            passed.callback(os.close, stderr)
            told = {
                "channel": theirs.fileno(),
                "stderr": stderr,
                "sockets": [(o.kind, o.key, o.sock.fileno(), o.path, *o.inode) for o in offers],
            }
            environ = {name: text for name, text in origin.environ.items() if name not in _NOT_PASSED_ON}
            process = await trio.lowlevel.open_process(
                origin.command,
                cwd=origin.directory,
                env={**environ, VARIABLE: json.dumps(told)},
                stderr=write_end,
                pass_fds=(theirs.fileno(), stderr, *(offer.sock.fileno() for offer in offers)),
            )
            kept.pop_all()
        mine.setblocking(False)
        successor = _Successor(process, trio.SocketStream(trio.socket.from_stdlib_socket(mine)))
        nursery.start_soon(_pass_on, trio.lowlevel.FdStream(read_end), successor.last_words)
        return successor

    async def _wait_ready(self, successor: _Successor) -> None:
        with trio.move_on_after(self._timeout_seconds) as limit:
            word = await successor.hear()
        if limit.cancelled_caught:
            raise UpgradeFailed(
                f"the new server was not ready within {self._timeout_seconds:g} s (endure.upgrade_timeout)"
                " and has been ended; its own log may say what it waited for"
            )
        if word is _Word.READY:
            return
        with trio.move_on_after(END_SECONDS):
            await successor.process.wait()
            await trio.sleep(LAST_WORDS_SECONDS)
        raise UpgradeFailed(f"the new server failed: {successor.reason()}")

    async def _declare(self, heir: Sender) -> None:
        """Tell the successor what there is by name, so that nobody misses it for a moment."""
        with trio.move_on_after(DECLARE_SECONDS) as limit:
            await self._handover.declare(heir)
        if limit.cancelled_caught:
            raise UpgradeFailed(
                f"the new server was ready and then did not answer for {DECLARE_SECONDS:g} s; its own log may say why"
            )
        if heir.gone:
            raise UpgradeFailed("the new server was ready and then ended; its own log may say why")

    def _give_up(self, successor: _Successor, heir: Sender) -> None:
        """Put the successor in charge: from the first line on it must not be ended any more."""
        self._handover.give_up_all()
        self._handover.heir = heir
        self._tell_systemd(f"MAINPID={successor.process.pid}")
        heir.let_go()

    def _tell_systemd(self, text: str) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                    send_notification(notify, address, text)
            except OSError as error:
                log.warning("systemd cannot be told of the new process", text=text, reason=error.strerror)


async def _pass_on(stream: trio.lowlevel.FdStream, kept: bytearray) -> None:
    """Copy the new program's standard error to ours until it lets go of it, and keep the end."""
    async with stream:
        while data := await stream.receive_some(65536):
            with suppress(OSError):
                os.write(2, data)
            kept += data
            del kept[:-LAST_WORDS_BYTES]


async def _end(process: trio.Process) -> None:
    """End a new server that is not wanted: gracefully, then at once; its guard ends its workers."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.terminate()
        with trio.move_on_after(LEAVE_SECONDS):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
