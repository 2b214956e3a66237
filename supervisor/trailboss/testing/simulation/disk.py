"""A jobs driver on a made-up disk: it takes its time, and a write may fail."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, cast

import trio

from trailboss.plugins.jobs.contract import DriverHost, DriverSettings, Job, JobsDriver, PushRefused
from trailboss.plugins.jobs.drivers import DRIVERS
from trailboss.plugins.jobs.drivers.memory import MemoryDriver

__all__ = ["DiskDriver", "known_disk_driver"]

_FAILURES = 0.03


class DiskDriver(MemoryDriver):
    """Jobs are accepted, and done, when the disk says so. A job whose ack cannot be written runs again."""

    kind: ClassVar[str] = "simulated-disk"

    def __init__(self, settings: DriverSettings, host: DriverHost) -> None:
        super().__init__(settings, host)
        self._choose = random.Random(f"disk {settings.options.get('seed')}")

    def push(self, jobs: Sequence[Job]) -> Awaitable[None]:  # type: ignore[override]
        """Accept `jobs` when they are written. Raises PushRefused, later, where they cannot be."""
        return self._push_later(jobs)

    async def _push_later(self, jobs: Sequence[Job]) -> None:
        if not await self._write():
            raise PushRefused("the disk is full")
        super().push(jobs)
        self.host.ready_changed()

    def ack(self, job: Job) -> Awaitable[None]:  # type: ignore[override]
        """Forget the job, when that is written."""
        super().ack(job)
        return self._ack_later(job)

    async def _ack_later(self, job: Job) -> None:
        if await self._write():
            return
        self._done -= 1
        self._room.used += 1
        job.sequence = self._next_sequence()
        self.ready.push(job)
        self.host.ready_changed()
        raise OSError("the disk is full")

    async def _write(self) -> bool:
        await trio.sleep(self._choose.choice((0.0, 0.001, 0.05)))
        return self._choose.random() >= _FAILURES


@contextmanager
def known_disk_driver() -> Iterator[None]:
    """Let pipelines name the driver, in here only."""
    drivers = cast("dict[str, type[JobsDriver]]", DRIVERS)
    drivers[DiskDriver.kind] = DiskDriver
    try:
        yield
    finally:
        del drivers[DiskDriver.kind]
