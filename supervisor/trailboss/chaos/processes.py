"""What /proc says about processes: who lives, whose child it is, what it holds.

A process is known by its number and the time of its start, so that a number that was given again is never taken for the
old process. Every process of a run carries a mark in its environment, which its children inherit; so "nothing is left"
is a look from outside, independent of what the server believes.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Seen",
    "children_of",
    "command_of",
    "descriptors",
    "kill_if_there",
    "marked",
    "memory_bytes",
    "seen",
]


@dataclass(frozen=True)
class Seen:
    """A process that cannot be taken for another with the same number."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        stat = _stat(self.pid)
        return len(stat) > 19 and stat[19] == self.started and stat[0] not in ("Z", "X")

    def send(self, number: int) -> bool:
        """Signal it if it is still itself; False where it has gone."""
        return self.alive and kill_if_there(self.pid, number)


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def seen(pid: int) -> Seen | None:
    """The process `pid` as it is now, or None."""
    stat = _stat(pid)
    return Seen(pid, stat[19]) if len(stat) > 19 else None


def children_of(pid: int) -> list[int]:
    """Direct children of a process, over all its threads."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except (OSError, ValueError):
        pass  # it has gone in the meantime
    return found


def marked(variable: str, value: str) -> list[int]:
    """Every living process but this one that has `variable=value` in its environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            process = seen(int(name))
            if wanted in environment.split(b"\0") and process is not None and process.alive:
                found.append(int(name))
    return found


def memory_bytes(pid: int) -> int:
    """Resident memory. Raises OSError for a process that has gone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> list[str]:
    """What the descriptors of a process point to, sorted; without the numbers of sockets and pipes."""
    targets = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            targets.append(os.readlink(f"/proc/{pid}/fd/{name}").partition(":[")[0])
        except OSError:
            continue
    return sorted(targets)


def command_of(pid: int) -> str:
    """The command line of a process for people; `?` where it has gone."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .rstrip(b"\0")
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return "?"


def kill_if_there(pid: int, number: int = signal.SIGKILL) -> bool:
    """Signal a process that may be gone; False where it is."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
