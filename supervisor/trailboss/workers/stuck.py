"""What a process that does not answer is doing: the kernel's view of it, and for Python its own stack.

The kernel tells the state, the system call and what it waits for (/proc/PID/stat, syscall, wchan, stack); nothing is
sent to the process, so this works for every program, also for one that is stopped. Which of it can be read depends on
the rights of this process: what cannot is left out.

A worker of Trailboss's own SDK announces in its handshake a signal that makes it write the stacks of all threads to its
standard error. It is sent only to a process that says it handles it (SigCgt), so it can never end one.
"""

from __future__ import annotations

import os
import platform
import re
import signal
from dataclasses import dataclass
from typing import NamedTuple

from trailboss_worker.protocol.control import stack_signal_of
from trailboss_worker.protocol.frames import Frame

__all__ = ["STACK_LINES_MAX", "Look", "Speaker", "StackLines", "handles_signal", "look_at", "speaker_of"]

#: Lines of a stack that are kept.
STACK_LINES_MAX = 200
_KERNEL_FRAMES_MAX = 12
#: Frames of every system call; they say nothing.
_KERNEL_ENTRY = (
    "do_syscall_",
    "entry_SYSCALL_",
    "__x64_sys_",
    "__arm64_sys_",
    "el0",
    "invoke_syscall",
    "do_el0",
)

_STATES = {
    "R": "it is computing",
    "S": "it sleeps",
    "D": "it waits in the kernel and cannot be interrupted",
    "T": "it is stopped (SIGSTOP)",
    "t": "a debugger has stopped it",
    "Z": "it has exited",
    "X": "it has exited",
    "I": "it is idle in the kernel",
}

#: Names of the system calls that programs wait in: x86-64, then the numbers shared by newer architectures.
_X86_64 = {
    0: "read",
    1: "write",
    7: "poll",
    16: "ioctl",
    17: "pread64",
    18: "pwrite64",
    23: "select",
    34: "pause",
    35: "nanosleep",
    42: "connect",
    43: "accept",
    44: "sendto",
    45: "recvfrom",
    46: "sendmsg",
    47: "recvmsg",
    61: "wait4",
    72: "fcntl",
    73: "flock",
    74: "fsync",
    75: "fdatasync",
    128: "rt_sigtimedwait",
    202: "futex",
    230: "clock_nanosleep",
    232: "epoll_wait",
    247: "waitid",
    257: "openat",
    270: "pselect6",
    271: "ppoll",
    281: "epoll_pwait",
    288: "accept4",
    426: "io_uring_enter",
}
_GENERIC = {
    22: "epoll_pwait",
    25: "fcntl",
    29: "ioctl",
    32: "flock",
    56: "openat",
    63: "read",
    64: "write",
    67: "pread64",
    68: "pwrite64",
    72: "pselect6",
    73: "ppoll",
    82: "fsync",
    83: "fdatasync",
    95: "waitid",
    98: "futex",
    101: "nanosleep",
    115: "clock_nanosleep",
    137: "rt_sigtimedwait",
    202: "accept",
    203: "connect",
    206: "sendto",
    207: "recvfrom",
    211: "sendmsg",
    212: "recvmsg",
    242: "accept4",
    260: "wait4",
    426: "io_uring_enter",
}
#: Calls whose first argument is a descriptor.
_WITH_DESCRIPTOR = frozenset(
    {
        "read",
        "write",
        "pread64",
        "pwrite64",
        "ioctl",
        "fcntl",
        "flock",
        "fsync",
        "fdatasync",
        "connect",
        "accept",
    }
    | {"accept4", "sendto", "recvfrom", "sendmsg", "recvmsg"}
)
_NAMES = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC}.get(platform.machine(), {})

#: Lines that Python's faulthandler writes: heads of threads, and their frames.
_STACK_HEAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+( \[.*\])? \(most recent call first\):$")
_STACK_FRAME = re.compile(
    r'^  (File ".*", line \d+ in .*|File ".*", line \?\?\? in .*|<no Python frame>|\.\.\.)$'
)
_STACK_TAIL = ("Extension modules: ", "Current thread's C stack trace", "  Binary file ")


@dataclass(frozen=True, slots=True)
class Look:
    """The kernel's view of a process at one moment; "" and () where something cannot be read."""

    #: The letter of /proc/PID/stat: R, S, D, T, t, Z, X.
    state: str = ""
    #: The system call it is in, with what its descriptor is: `read of 0 (pipe:[123])`; "" while it computes.
    syscall: str = ""
    #: The function of the kernel it waits in.
    wchan: str = ""
    #: Innermost first; only for root.
    kernel_stack: tuple[str, ...] = ()
    threads: int = 0

    @property
    def can_be_asked(self) -> bool:
        """Whether a signal would reach its code now."""
        return self.state in ("R", "S")

    def describe(self) -> str:
        """One line for people, "" where nothing is known."""
        if not self.state:
            return ""
        parts = [_STATES.get(self.state, f"state {self.state}")]
        if self.syscall:
            parts[0] += f" in {self.syscall}"
        if self.kernel_stack:
            parts.append("kernel: " + " < ".join(self.kernel_stack))
        elif self.wchan:
            parts.append(f"kernel: {self.wchan}")
        if self.threads > 1:
            parts.append(f"{self.threads} threads")
        return "; ".join(parts)


def look_at(pid: int) -> Look:
    """Read what the kernel tells of `pid`, a handful of small files; empty for a process that is gone."""
    stat = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(stat) < 18:
        return Look()
    return Look(
        state=stat[0],
        syscall=_syscall(pid, _read(f"/proc/{pid}/syscall")),
        wchan=_read(f"/proc/{pid}/wchan").strip("0\n"),
        kernel_stack=_kernel_stack(_read(f"/proc/{pid}/stack")),
        threads=int(stat[17]),
    )


def _syscall(pid: int, text: str) -> str:
    """`0 0x5 …` -> `read of 5 (socket:[17])`; "" for `running` and for -1, in no system call."""
    words = text.split()
    if len(words) < 2 or not words[0].isdigit():
        return ""
    name = _NAMES.get(int(words[0]), f"system call {words[0]}")
    if name not in _WITH_DESCRIPTOR:
        return name
    descriptor = int(words[1], 16)
    try:
        return f"{name} of {descriptor} ({os.readlink(f'/proc/{pid}/fd/{descriptor}')})"
    except OSError:
        return f"{name} of {descriptor}"


def _kernel_stack(text: str) -> tuple[str, ...]:
    """`[<0>] pipe_read+0x1b0/0x3f0` -> `pipe_read`."""
    frames = [line.partition("] ")[2].partition("+")[0].strip() for line in text.splitlines()]
    telling = [frame for frame in frames if frame and not frame.startswith(_KERNEL_ENTRY)]
    return tuple(telling[:_KERNEL_FRAMES_MAX])


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


class Speaker(NamedTuple):
    """Who shook hands: it may be a child of the process that was started (a wrapper)."""

    pid: int
    #: Makes it write its stack to standard error; 0: nothing does.
    stack_signal: int = 0

    def in_session(self, session: int) -> Speaker:
        """The same, or the session's leader where the pid is not what it claims to be."""
        try:
            if os.getsid(self.pid) == session:
                return self
        except OSError:
            pass
        return Speaker(session)

    def ask_for_stack(self, session: int) -> bool:
        """Send the signal, if the process belongs to `session` and handles it; it cannot be another one by then."""
        if not self.stack_signal:
            return False
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if os.getsid(self.pid) != session or not handles_signal(self.pid, self.stack_signal):
                return False
            signal.pidfd_send_signal(pidfd, self.stack_signal)
        except OSError:
            return False
        finally:
            os.close(pidfd)
        return True


def speaker_of(pid: int, hello: Frame) -> Speaker:
    """The process that sent `hello`, a handshake that has been checked, and that claims to be `pid`.

    Only signals that are for programs' own use count.
    """
    number = stack_signal_of(hello)
    return Speaker(pid, number if number in (signal.SIGUSR1, signal.SIGUSR2) else 0)


def handles_signal(pid: int, number: int) -> bool:
    """Whether `pid` has a handler for signal `number`, so that the signal does not end it. False where that is unknown."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class StackLines:
    """Picks the lines of a stack out of what a worker writes to its standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, line: str) -> bool:
        """Keep `line` if it belongs to a stack; False leaves it to the log."""
        if not line:
            return False
        if not (_STACK_HEAD.match(line) or _STACK_FRAME.match(line) or line.startswith(_STACK_TAIL)):
            return False
        if len(self.lines) < STACK_LINES_MAX:
            self.lines.append(line)
        return True
