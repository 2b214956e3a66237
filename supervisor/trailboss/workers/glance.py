"""A look at a pool for people: every slot, what its worker does now and since when, and what it costs.

For `trailboss.Workers`, `trailboss workers -i` and the status page. What the pool knows itself costs plain reads; memory
and CPU are one small file in /proc for each worker. Labels are what execs were submitted with (a method and a path, or a
job's name), so nothing is done for this while requests run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from trailboss.config.redact import redacted_text

if TYPE_CHECKING:
    from trailboss.workers.pool import Pool

__all__ = ["SlotGlance", "Usage", "describe_pool", "describe_pools", "usage"]

_TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What a process has used: seconds of CPU since its start, and resident memory."""

    cpu_seconds: float
    memory_bytes: int


def usage(pid: int) -> Usage:
    """Read both at once, as somebody may ask for hundreds of processes each second; zeros for one that has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(1024).rpartition(b")")[2].split()
        return Usage((int(fields[11]) + int(fields[12])) * _TICK_SECONDS, int(fields[21]) * _PAGE_BYTES)
    except (OSError, ValueError, IndexError):
        return Usage(0.0, 0)


@dataclass(frozen=True, slots=True)
class SlotGlance:
    """One slot. `state`: idle, busy, starting, leaving, or waiting (for its next try). `pid` is 0 without a process."""

    number: int
    state: str
    pid: int = 0
    doing: str = ""
    doing_seconds: float = 0.0
    executions: int = 0
    created_ns: int = 0
    generation: int = 0
    next_try_seconds: float | None = None


def describe_pools(pools: Iterable[Pool], wall_ns: int) -> list[dict[str, object]]:
    """Return the rows of all pools; see `describe_pool`."""
    return [describe_pool(pool, wall_ns) for pool in pools]


def describe_pool(pool: Pool, wall_ns: int, measure: Callable[[int], Usage] = usage) -> dict[str, object]:
    """Return JSON values: the row of the pool in `trailboss.State`, and a row for each slot under `workers`.

    `wall_ns` is the time in nanoseconds since the epoch, from which ages are reckoned; `measure` tells what a process
    uses.
    """
    row = pool.describe()
    row["last_failure"] = redacted_text(str(row["last_failure"]))
    row["workers"] = [_slot_row(slot, wall_ns, measure) for slot in pool.glance()]
    return row


@lru_cache(maxsize=1024)
def _shown(label: str) -> str:
    """A label without secrets; many workers do the same."""
    return redacted_text(label)


def _slot_row(slot: SlotGlance, wall_ns: int, measure: Callable[[int], Usage]) -> dict[str, object]:
    used = measure(slot.pid) if slot.pid else Usage(0.0, 0)
    return {
        "slot": slot.number,
        "state": slot.state,
        "pid": slot.pid,
        "doing": _shown(slot.doing),
        "doing_seconds": round(slot.doing_seconds, 3),
        "executions": slot.executions,
        "age_seconds": round(max(0.0, (wall_ns - slot.created_ns) / 1e9), 1) if slot.created_ns else 0.0,
        "generation": slot.generation,
        "memory_bytes": used.memory_bytes,
        "cpu_seconds": round(used.cpu_seconds, 2),
        "next_try_seconds": None if slot.next_try_seconds is None else round(slot.next_try_seconds, 1),
    }
