"""The jobs drivers by name. A new driver is one file here, one line in the table, and `check_jobs_driver` on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trailboss.plugins.jobs.contract import DriverHost, DriverSettings, JobsDriver
from trailboss.plugins.jobs.drivers.memory import MemoryDriver

__all__ = ["DRIVERS", "UnknownDriver", "make_driver"]

DRIVERS: Final[Mapping[str, type[JobsDriver]]] = {driver.kind: driver for driver in (MemoryDriver,)}


class UnknownDriver(Exception):
    """No driver has that name; the text lists those there are."""


def make_driver(kind: str, settings: DriverSettings, host: DriverHost) -> JobsDriver:
    """Make the driver called `kind`. Raises UnknownDriver."""
    driver = DRIVERS.get(kind)
    if driver is None:
        known = ", ".join(sorted(DRIVERS))
        raise UnknownDriver(
            f"unknown jobs driver {kind!r} of pipeline {settings.pipeline!r}; known drivers: {known}"
        )
    return driver(settings, host)
