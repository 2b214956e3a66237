"""The duty of process 1: take the exit status of orphans, or their entries fill the process table of the container.

What this server has started is waited for by its owner, at once when it ends. So a child that has been dead for several
seconds while the loop ran is nobody's: an orphan that came to us from a worker. A dead process keeps its number until it is
waited for, so the one that was seen twice, with the same start time, is the one that is taken.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

import trio

from trailboss.log import logger

__all__ = ["dead_children", "overdue", "reap_orphans"]

log = logger("server")

#: How long a dead child is left to whoever may wait for it.
PATIENCE_SECONDS: Final = 5.0


async def reap_orphans() -> None:
    """Reap orphans until cancelled. An idle server is not woken for it."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        while True:
            await anext(signals)
            while seen := dead_children(os.getpid()):
                await trio.sleep(PATIENCE_SECONDS)
                for pid in overdue(seen, dead_children(os.getpid())):
                    with suppress(ChildProcessError):  # its owner was faster after all
                        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222  it does not block
                        log.debug("orphan reaped", pid=pid)


def overdue(before: Mapping[int, str], now: Mapping[int, str]) -> Collection[int]:
    """Return the processes, number and start time, that were dead before and still are."""
    return [pid for pid, started in now.items() if before.get(pid) == started]


def dead_children(parent: int) -> dict[int, str]:
    """Return the children of `parent` that have ended and were not waited for: number -> start time."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command name may hold blanks and brackets; what follows its last bracket is regular.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] == b"Z" and int(fields[1]) == parent:
                found[int(name)] = fields[19].decode()
    return found
