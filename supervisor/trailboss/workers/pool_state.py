"""Pure: what a pool's slots amount to: its phase, its counts, whom to remove.

The pool gathers a view of its slots and asks; it decides nothing of this itself. No clock, no process, no I/O in here.

    booting --quorum--> ready <--> degraded          any --stop--> draining --> stopped

`degraded` means: no worker, and every slot that is to have one has failed before. As long as one replacement is on its
way that has not failed, what was ready stays so, and execs wait for it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Counts", "PoolPhase", "SlotView", "count", "decide_phase", "pick_to_remove"]


class PoolPhase(enum.Enum):
    """Phase of a pool, as `trailboss.State` says it."""

    BOOTING = "booting"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    STOPPED = "stopped"


class SlotView(NamedTuple):
    """What is known of one slot at one moment."""

    number: int
    #: It is to have a worker; False while its last one leaves.
    wanted: bool
    #: Its worker is ready or busy, and stays.
    serving: bool = False
    #: Its worker has an exec under way.
    busy: bool = False
    #: Its worker is on its way: spawned or in its handshake.
    booting: bool = False
    #: Its worker is on its way out.
    leaving: bool = False
    #: It waits before it tries again, or its worker is not up and has failed more than once in a row.
    hopeless: bool = False


class Counts(NamedTuple):
    """Workers by what they do; `busy` ones are `ready` as well."""

    ready: int
    busy: int
    booting: int
    leaving: int


def count(slots: Iterable[SlotView]) -> Counts:
    """Count the workers of `slots`."""
    ready = busy = booting = leaving = 0
    for slot in slots:
        ready += slot.serving
        busy += slot.serving and slot.busy
        booting += slot.booting
        leaving += slot.leaving
    return Counts(ready, busy, booting, leaving)


def decide_phase(
    before: PoolPhase, slots: Sequence[SlotView], *, first_start: bool, debug: bool
) -> PoolPhase:
    """Say the phase of a pool with these slots. A first start and a stop are ended by others, never in here."""
    if first_start or before in (PoolPhase.DRAINING, PoolPhase.STOPPED):
        return before
    if debug or any(slot.serving for slot in slots):
        return PoolPhase.READY
    wanted = [slot for slot in slots if slot.wanted]
    if wanted and all(slot.hopeless for slot in wanted):
        return PoolPhase.DEGRADED
    return before


def pick_to_remove(slots: Iterable[SlotView], *, idle_only: bool = False) -> int | None:
    """Number of the slot to give up when the pool shrinks: an idle one if there is one; None: the last always stays.

    With `idle_only` it is None as well where every worker is busy or on its way.
    """
    wanted = [slot for slot in slots if slot.wanted]
    if len(wanted) < 2:
        return None
    if idle_only:
        wanted = [slot for slot in wanted if slot.serving and not slot.busy]
        if not wanted:
            return None
    return min(wanted, key=lambda slot: (slot.serving and slot.busy, slot.number)).number
