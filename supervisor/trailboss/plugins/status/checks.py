"""Who is healthy and who is ready: pure decisions over what plugins and pools say of themselves.

A plugin is healthy when it runs and says so, and when its pool, if it has one, has a live worker. It is ready when its
pool has its quorum. Unlike in RoadRunner a busy worker counts as ready, so a fully used server stays in the balancer, a
pool in debug mode (a fresh worker for each exec) is healthy, and a name that does not exist is 404, never an empty 200.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trailboss.container.contract import Phase, PluginState

__all__ = ["Check", "PoolFigures", "StatusRow", "overall_code", "row_of", "rows"]

OK = 200
NOT_FOUND = 404


class Check(enum.Enum):
    """What is asked."""

    HEALTH = "health"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What counts of a pool."""

    name: str
    phase: str
    ready_workers: int
    quorum: int
    at_quorum: bool
    debug: bool = False


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One line of an answer."""

    plugin_name: str
    error_message: str
    status_code: int

    def as_dict(self) -> dict[str, object]:
        """Return the row as RoadRunner's JSON has it."""
        return {
            "plugin_name": self.plugin_name,
            "error_message": self.error_message,
            "status_code": self.status_code,
        }


def row_of(
    name: str,
    check: Check,
    plugins: Mapping[str, PluginState],
    pools: Mapping[str, PoolFigures],
    unavailable_code: int,
) -> StatusRow | None:
    """Return the row of one plugin; None if there is none of that name."""
    plugin, pool = plugins.get(name), pools.get(name)
    if plugin is None and pool is None:
        return None
    trouble = _plugin_trouble(plugin) or _pool_trouble(pool, check)
    return StatusRow(name, trouble, unavailable_code if trouble else OK)


def rows(
    names: Sequence[str],
    check: Check,
    plugins: Mapping[str, PluginState],
    pools: Mapping[str, PoolFigures],
    unavailable_code: int,
) -> list[StatusRow]:
    """Return the rows for `names`; without names, of every plugin with a pool and of every one that is not well."""
    if names:
        return [
            row_of(name, check, plugins, pools, unavailable_code)
            or StatusRow(name, f"no such plugin: {name}", NOT_FOUND)
            for name in names
        ]
    found = (row_of(name, check, plugins, pools, unavailable_code) for name in {**pools, **plugins})
    return [row for row in found if row is not None and (row.plugin_name in pools or row.status_code != OK)]


def overall_code(found: Sequence[StatusRow], unavailable_code: int) -> int:
    """Return the HTTP status of an answer: 404 if a name is unknown, else `unavailable_code` if anything is wrong."""
    codes = {row.status_code for row in found}
    if NOT_FOUND in codes:
        return NOT_FOUND
    return OK if codes <= {OK} else unavailable_code


def _plugin_trouble(plugin: PluginState | None) -> str:
    if plugin is None:
        return ""
    if plugin.phase is not Phase.HEALTHY:
        return ": ".join(part for part in (plugin.phase.value, plugin.reason) if part)
    if plugin.health is not None and not plugin.health.ok:
        return plugin.health.reason or "not healthy"
    return ""


def _pool_trouble(pool: PoolFigures | None, check: Check) -> str:
    if pool is None or (pool.debug and pool.phase == "ready"):
        return ""
    if check is Check.READY:
        if pool.at_quorum:
            return ""
        return f"pool {pool.phase}: {pool.ready_workers} of {pool.quorum} workers ready"
    return "" if pool.ready_workers else f"pool {pool.phase}: no worker"
