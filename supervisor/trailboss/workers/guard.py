"""Lifeline: the supervisor's side of the guard process (see :mod:`trailboss.workers.guard_process`).

The guard holds the read end of a pipe and is told of every process group that exists. When the write end closes,
because the supervisor exited in whatever way, it kills them all. The write end is close-on-exec and never handed to
anybody; a guard that dies is replaced at once and told everything anew.

It is a program in C, a tenth of the Python one's memory. Where that was not built, or cannot be executed (a file system
mounted noexec, another processor), or does not say that it is ready, the Python one takes its place for good.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import trio

from trailboss.log import logger

__all__ = ["INSTANCE_VARIABLE", "Guard"]

log = logger("server")

#: Environment variable that marks every process of this supervisor for the guard.
INSTANCE_VARIABLE = "TRAILBOSS_INSTANCE"

#: The program in C, and its reference, which is also the fallback.
NATIVE_PROGRAM = Path(__file__).with_name("trailboss-guard")
PYTHON_PROGRAM = Path(__file__).with_name("guard_process.py")
#: Errors of a spawn that say something about the machine as it is now, nothing about the program.
_PASSING_ERRORS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
#: A guard that lived shorter than HEALTHY_SECONDS is replaced after this pause, any other at once.
REPLACE_SECONDS_MIN = 0.2
HEALTHY_SECONDS = 1.0
RETRY_SECONDS = 2.0
START_SECONDS_MAX = 10.0
#: A guard that was let go needs a few looks around (0.15 s) before it ends.
STOP_SECONDS_MAX = 6.0


class Guard:
    """Keeps one guard process alive and tells it which groups exist. `add` and `discard` never block."""

    def __init__(self) -> None:
        #: The mark of this supervisor: value of TRAILBOSS_INSTANCE in every process it starts.
        self.instance = secrets.token_hex(8)
        self._groups: set[int] = set()
        self._cgroup = ""
        self._write_fd = -1
        self.pid = 0
        #: Whether it is the program in C.
        self.is_native = os.environ.get("TRAILBOSS_PURE_PYTHON") != "1"
        #: Guards that had to be replaced.
        self.replaced = 0

    def add(self, group: int) -> None:
        """Tell the guard of a process group."""
        self._groups.add(group)
        self._tell(b"+%d\n" % group)

    def discard(self, group: int) -> None:
        """Tell the guard that a process group has gone."""
        self._groups.discard(group)
        self._tell(b"-%d\n" % group)

    def end_strays(self, token: str) -> None:
        """Have every process ended that carries the token of a worker which has ended: its children, wherever they are."""
        self._tell(b"x%s\n" % token.encode())

    def watch_cgroup(self, folder: str) -> None:
        """Tell the guard of the control group that holds the groups of workers; "": it has gone."""
        self._cgroup = folder
        self._tell(b"@%s\n" % os.fsencode(folder))

    def _tell(self, line: bytes) -> None:
        if self._write_fd < 0:
            return  # between two guards; the next one is told everything
        try:
            os.write(self._write_fd, line)
        except BrokenPipeError:
            self._close()  # dead: `run` replaces it
        except BlockingIOError:
            # Full: the guard is stopped. It must not wake up to an end of file, it would end every worker; so it is
            # killed first, then replaced with everything told anew.
            self.kill_now()
            self._close()

    def _close(self) -> None:
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a guard alive until cancelled; ready when it runs. Raises OSError if the first one cannot start.

        On cancellation: the lifeline closes and the guard ends by itself after a last look for survivors.
        """
        started = False
        try:
            while True:
                try:
                    process = await self._start()
                except OSError as error:
                    if not started:
                        raise
                    log.error("a new guard process could not be started, trying again", text=str(error))
                    await trio.sleep(RETRY_SECONDS)
                    continue
                if not started:
                    task_status.started()
                    started = True
                begun = trio.current_time()
                await self._wait(process)
                self._close()
                self.pid = 0
                self.replaced += 1
                log.warning(
                    "the guard process died and is replaced", pid=process.pid, exit_code=process.returncode
                )
                if trio.current_time() < begun + HEALTHY_SECONDS:
                    await trio.sleep(REPLACE_SECONDS_MIN)
        finally:
            self._close()

    async def _start(self) -> subprocess.Popen[bytes]:
        """Start a guard and tell it everything. Raises OSError where that is not possible, not even in Python."""
        if self.is_native:
            try:
                return await self._start_program([str(NATIVE_PROGRAM), self.instance])
            except OSError as error:
                if error.errno in _PASSING_ERRORS:
                    raise
                self.is_native = False
                _say_fallback(error)
        return await self._start_program(
            [sys.executable, "-I", "-S", "-E", str(PYTHON_PROGRAM), self.instance]
        )

    async def _start_program(self, command: list[str]) -> subprocess.Popen[bytes]:
        read_fd, write_fd = os.pipe()
        try:
            process = await trio.to_thread.run_sync(_spawn, command, read_fd)
        except BaseException:
            os.close(write_fd)
            raise
        finally:
            os.close(read_fd)
        os.set_blocking(write_fd, False)
        hello = b""
        assert process.stdout is not None
        try:
            with trio.move_on_after(START_SECONDS_MAX) as limit:
                await trio.lowlevel.wait_readable(process.stdout.fileno())
            if not limit.cancelled_caught:
                hello = os.read(process.stdout.fileno(), 64)
        finally:
            process.stdout.close()
            if hello != b"ready\n":
                process.kill()
                process.wait()
                os.close(write_fd)
        if hello != b"ready\n":
            raise OSError(f"the guard process ({shlex.join(command[:-1])}) did not start")
        self._write_fd = write_fd
        self.pid = process.pid
        for group in self._groups:
            self._tell(b"+%d\n" % group)
        if self._cgroup:
            self.watch_cgroup(self._cgroup)
        return process

    async def _wait(self, process: subprocess.Popen[bytes]) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            while process.poll() is None:
                await trio.lowlevel.wait_readable(pidfd)
        except trio.Cancelled:
            if not self._groups:
                self._tell(b"q\n")  # nothing to hunt for: it ends at once
            self._close()  # end of file: otherwise it hunts for survivors, then ends
            with trio.move_on_after(STOP_SECONDS_MAX, shield=True):
                while process.poll() is None:
                    await trio.lowlevel.wait_readable(pidfd)
            raise
        finally:
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)

    def kill_now(self) -> None:
        """SIGKILL the guard itself: it is stuck, or a test wants to see it replaced."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


def _spawn(command: list[str], read_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=read_fd,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        cwd="/",
    )


def _say_fallback(error: OSError) -> None:
    """Say why the guard is the Python one: as a warning, but for an installation that had no C compiler."""
    if NATIVE_PROGRAM.exists():
        log.warning("the guard in C does not run here, the Python one is used", text=str(error))
    else:
        log.info("the guard in C was not built at installation, the Python one is used")
