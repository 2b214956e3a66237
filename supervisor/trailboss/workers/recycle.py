"""Pure: the one planner for healthy workers that have to go (ttl, idle_ttl, memory, max_jobs).

A worker that is due stays at work until its turn: a replacement is started first and takes its place when it is ready,
so the pool never has fewer workers than configured and no request waits for a boot. Where no memory is left for a
replacement beside it, the worker goes first, as far as `max_unavailable` allows, and one at a time where it does not.
Never are more under way at once than a quarter of the pool, whatever made them due together, and those that have been
due longest come first; an idle one before a busy one of the same age.

Not planned in here, because it cannot wait: a worker that asks to go, has run the last execution of its quota, or is in
somebody's way (reset, removal, stop).

No clock, no process, no I/O: facts come in, a plan goes out, and the pool carries it out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["DueWorker", "RecyclePlan", "Replacement", "at_once", "plan"]


class Replacement(enum.Enum):
    """Where the worker that is to take the place of another has got to."""

    NONE = "none"
    BOOTING = "booting"
    READY = "ready"


class DueWorker(NamedTuple):
    """A worker that has to go."""

    #: Number of its slot.
    number: int
    #: When it became due.
    since: float
    busy: bool
    replacement: Replacement = Replacement.NONE
    #: It may not wait for a replacement: it takes nothing new already.
    leaving: bool = False


class RecyclePlan(NamedTuple):
    """Slots to start a replacement for, slots to let go now."""

    boot: tuple[int, ...]
    retire: tuple[int, ...]


def at_once(configured: int) -> int:
    """How many workers of a pool of this size may be under way at once: a quarter, at least one."""
    return max(1, configured // 4)


def plan(
    due: Iterable[DueWorker], *, configured: int, serving: int, max_unavailable: int, headroom: int
) -> RecyclePlan:
    """Say what to do now.

    `serving`: workers of the pool that take work, the due ones among them. `headroom`: replacements for which there is
    memory now. A worker whose replacement is ready goes, busy or not: it finishes what it runs first.
    """
    waiting = sorted(due, key=lambda worker: (worker.since, worker.busy, worker.number))
    ready = [worker for worker in waiting if worker.replacement is Replacement.READY]
    under_way = sum(1 for worker in waiting if worker.replacement is Replacement.BOOTING or worker.leaving)
    places = at_once(configured) - under_way
    boot: list[int] = []
    retire = [worker.number for worker in ready if not worker.leaving]
    serving -= len(retire)
    # Their replacements serve already and are counted in `serving`.
    for worker in waiting:
        if places <= 0:
            break
        if worker.replacement is not Replacement.NONE or worker.leaving:
            continue
        if headroom > 0:
            boot.append(worker.number)
            headroom -= 1
            places -= 1
            continue
        # No memory for two of them: this one goes first. A pool must not be stuck, so one always may.
        missing = configured - serving
        if missing < max_unavailable or (
            missing <= 0 and not worker.busy and configured > 1 and not under_way
        ):
            retire.append(worker.number)
            serving -= 1
            places -= 1
    return RecyclePlan(tuple(boot), tuple(retire))
