"""The duty of process 1: take the exit status of orphans, or their entries fill the process table of the container.

What this server has started is waited for by its owner, at once when it ends. So a child that has been dead for several
seconds while the loop ran is nobody's: an orphan that came to us from a worker. A dead process keeps its number until it is
waited for, so the one that was seen again and again, with the same start time, is the one that is taken.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

import trio

from trailboss.log import logger

__all__ = ["dead_children", "look_again", "overdue", "reap_orphans"]

log = logger("server")

#: Number and start time of a dead process: how often it was seen.
Looks = dict[tuple[int, str], int]


#: A dead child is left to whoever may wait for it at so many looks, during each of which the loop has run.
PATIENCE_LOOKS: Final = 5
LOOK_SECONDS: Final = 1.0


async def reap_orphans() -> None:
    """Reap orphans until cancelled, each some 5 s after its end. An idle server is not woken for it."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        while True:
            await anext(signals)
            looks: Looks = {}
            while looks := look_again(looks, dead_children(os.getpid())):
                for pid in overdue(looks):
                    with suppress(ChildProcessError):  # its owner was faster after all
                        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222  it does not block
                        log.debug("orphan reaped", pid=pid)
                await trio.sleep(LOOK_SECONDS)


def look_again(before: Looks, dead: Mapping[int, str]) -> Looks:
    """Return how often each of the processes that are dead now, number and start time, was seen so."""
    return {who: before.get(who, 0) + 1 for who in dead.items()}


def overdue(looks: Looks) -> Collection[int]:
    """Return the processes that were dead at more looks than they are left alone."""
    return [pid for (pid, _started), count in looks.items() if count > PATIENCE_LOOKS]


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
