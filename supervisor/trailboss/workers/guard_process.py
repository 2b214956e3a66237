"""The guard: a small process that ends every worker when the supervisor is gone, however it went.

Started first, as ``python -I -S guard_process.py INSTANCE``; its standard input is the read end of the lifeline pipe,
whose only write end is the supervisor's. Lines on it say which process groups exist (``+PID``) and which do not any
more (``-PID``), which control group holds those of workers (``@FOLDER``), and which token the processes have that a
worker has left behind (``xTOKEN``): they are ended now. ``q`` says that the supervisor ends in good order.

End of file means it is gone, even by SIGKILL: the guard then kills that control group, those process groups, every
process of their sessions, and every process that carries this instance's mark (TRAILBOSS_INSTANCE) in its environment,
so a child that moved to a session of its own does not escape; it looks again until nothing is left. After a ``q`` and no
survivor at first sight it just ends.

The same in C is ``trailboss-guard`` beside this file (native/guard.c), which is what runs where it could be built; this one
is its reference and the fallback. Standard library only, no import of Trailboss: it has to run with nothing but the
interpreter and stay small.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

#: How long the guard keeps looking for survivors after the supervisor has gone, in seconds.
HUNT_SECONDS_MAX = 5.0
#: The hunt ends after this many rounds in a row that found nobody.
QUIET_ROUNDS = 3
ROUND_SECONDS = 0.05
#: From one look for children of workers that have ended to the next; it serves all that have ended meanwhile.
STRAYS_SECONDS = 0.25
#: Looks at most, while there are more: some may be forking.
STRAY_ROUNDS = 10
#: No process has this number or one above (PID_MAX_LIMIT of the kernel).
PROCESS_NUMBERS = 4 * 1024 * 1024
#: Longer lines are nobody's: twice what the kernel takes as a path.
LINE_SIZE_MAX = 8191
#: execve refuses more than 6 MiB of environment; a process that says it has more lies.
ENVIRON_SIZE_MAX = 8 * 1024 * 1024


class Orders:
    """What the lines have said so far. `lines` takes bytes as they come, in pieces of any size."""

    def __init__(self) -> None:
        #: The process groups that exist.
        self.groups: set[int] = set()
        #: Tokens of workers that have ended since the last look.
        self.tokens: set[bytes] = set()
        #: Folder of the control group that holds those of workers; empty: there is none.
        self.cgroup = b""
        self._pending = b""

    def lines(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now; each is for `take`."""
        *lines, pending = (self._pending + data).split(b"\n")
        self._pending = pending[: LINE_SIZE_MAX + 1]  # one too many is enough to know it
        return lines

    def take(self, line: bytes) -> bool:
        """Remember what a line says; return whether it is a ``q`` while no group is known."""
        verb, rest = line[:1], line[1:]
        is_too_long = len(line) > LINE_SIZE_MAX
        if verb == b"@":
            self.cgroup = b"" if is_too_long or b"\0" in rest else rest
        elif is_too_long:
            return False
        elif verb == b"x" and b"\0" not in rest:
            self.tokens.add(rest)
        elif verb in (b"+", b"-") and rest.isdigit():
            digits = rest.lstrip(b"0")
            # Groups 0 and 1 would mean this process itself, and everybody.
            if len(digits) <= 7 and 1 < int(digits or b"0") < PROCESS_NUMBERS:
                (self.groups.add if verb == b"+" else self.groups.discard)(int(digits))
        return line == b"q" and not self.groups


def read_stat(data: bytes) -> tuple[bool, int]:
    """Return whether a /proc/PID/stat is that of a process which is no zombie, and its session (0: none of ours)."""
    # The command name may hold blanks and brackets; what follows its last bracket is regular.
    fields = data.rpartition(b")")[2].split() if b")" in data else []
    is_alive = bool(fields) and len(fields[0]) == 1 and fields[0] not in (b"Z", b"X")
    session = int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 0
    return is_alive, session if 1 < session < PROCESS_NUMBERS else 0


def holds_mark(environ: bytes, marks: set[bytes]) -> bool:
    """Whether an entry of an environment, as a whole, is one of `marks`."""
    return not marks.isdisjoint(environ.split(b"\0"))


def _content(path: str) -> bytes:
    """What is in a file of a process, as far as that is read; nothing where the process has gone."""
    try:
        with open(path, "rb") as file:
            return file.read(ENVIRON_SIZE_MAX)
    except OSError:
        return b""


def _is_marked(pid: int, marks: set[bytes]) -> bool:
    return holds_mark(_content(f"/proc/{pid}/environ"), marks)


def end_strays(marks: set[bytes]) -> None:
    """Kill every process that has one of `marks` in its environment, and look again until there is none.

    The process is held by a descriptor from the second look on, so a number that is in use again harms nobody.
    """
    own = os.getpid()
    for _ in range(STRAY_ROUNDS):
        found = False
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) in (own, 1) or not _is_marked(int(name), marks):
                continue
            try:
                pidfd = os.pidfd_open(int(name))
            except OSError:
                continue
            try:
                if _is_marked(int(name), marks):
                    found = True
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(pidfd)
        if not found:
            return
        time.sleep(ROUND_SECONDS)


def find_survivors(sessions: set[int], mark: bytes) -> list[int]:
    """Return the pids, this process apart, that belong to one of `sessions` or carry `mark`."""
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        if pid in (own, 1):
            continue
        is_alive, session = read_stat(_content(f"/proc/{pid}/stat"))
        if is_alive and (session in sessions or _is_marked(pid, {mark})):
            found.append(pid)
    return found


def hunt(groups: set[int], mark: bytes) -> None:
    """Kill all of `groups` and whatever belongs to them, until nothing is left or the time is up."""
    for group in groups - {os.getpid()}:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            pass
    deadline = time.monotonic() + HUNT_SECONDS_MAX
    quiet = 0
    while quiet < QUIET_ROUNDS and time.monotonic() < deadline:
        survivors = find_survivors(groups, mark)
        quiet = 0 if survivors else quiet + 1
        for pid in survivors:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(ROUND_SECONDS)


def kill_cgroup(folder: bytes) -> None:
    """Kill everything in a control group and below it, whatever session or environment it has."""
    try:
        # Never made: a folder without that file is no control group.
        file = os.open(folder + b"/cgroup.kill", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(file, b"1")
    except OSError:
        pass
    finally:
        os.close(file)


def remove_cgroup(folder: bytes) -> None:
    """Remove an empty control group and those in it."""
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                remove_cgroup(entry.path)
        os.rmdir(folder)
    except OSError:
        pass


def main() -> None:
    """Follow the lifeline to its end, then hunt."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    mark = b"TRAILBOSS_INSTANCE=" + os.fsencode(sys.argv[1])
    orders = Orders()
    next_look = 0.0
    # Says "I am there" and lets go of the supervisor's log: nothing of the guard may hold a pipe open.
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    while True:
        if orders.tokens and time.monotonic() >= next_look:
            end_strays({b"TRAILBOSS_TOKEN=" + token for token in orders.tokens})
            orders.tokens.clear()
            next_look = time.monotonic() + STRAYS_SECONDS
        if orders.tokens and not select.select([0], [], [], max(0.0, next_look - time.monotonic()))[0]:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        for line in orders.lines(data):
            if orders.take(line) and not find_survivors(orders.groups, mark):
                return  # otherwise the end of file follows, and with it the hunt for what moved to other sessions
    if orders.cgroup:
        kill_cgroup(orders.cgroup)
    hunt(orders.groups, mark)
    if orders.cgroup:
        remove_cgroup(orders.cgroup)


if __name__ == "__main__":
    main()
