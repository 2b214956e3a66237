"""The pipelines by name: how they come to be, are connected, paused, resumed and destroyed.

A destroyed pipeline leaves the table at once; its runs that have begun are settled by whoever holds them, and its books
stay in the total, so that the whole server's books balance too. A driver that ends by itself puts its pipeline out of
order and concerns no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from typing import Final

import trio

from trailboss.container.contract import RpcRefused
from trailboss.log import logger
from trailboss.plugins.jobs.contract import Books, DriverHost, DriverSettings, settled
from trailboss.plugins.jobs.dispatch import Dispatcher
from trailboss.plugins.jobs.drivers import UnknownDriver, make_driver
from trailboss.plugins.jobs.pipeline import Pipeline, PipelineState

__all__ = ["Pipelines"]

log = logger("jobs")

_PRIORITY_DEFAULT: Final = 10
_DECLARED_KEYS: Final = frozenset({"name", "queue", "driver", "priority", "prefetch"})


class Pipelines:
    """All pipelines of the server."""

    def __init__(
        self,
        host: DriverHost,
        dispatcher: Dispatcher,
        dead_letter_limit: int,
        consume: Collection[str],
    ) -> None:
        self.by_name: dict[str, Pipeline] = {}
        self._host = host
        self._dispatcher = dispatcher
        self._dead_letter_limit = dead_letter_limit
        self._consume = frozenset(consume)
        self._leaving: list[Pipeline] = []  # destroyed, with runs that have not ended
        self._retired = Books()
        self._drivers: trio.Nursery | None = None

    def add(self, name: str, kind: str, options: Mapping[str, object]) -> Pipeline:
        """Make a pipeline; it is neither connected nor consumed yet. Raises UnknownDriver."""
        priority = options.get("priority", _PRIORITY_DEFAULT)
        if not isinstance(priority, int):
            raise TypeError(f"priority of pipeline {name} is a {type(priority).__name__}, not a number")
        settings = DriverSettings(name, priority, self._dead_letter_limit, options)
        pipeline = Pipeline(name, priority, make_driver(kind, settings, self._host))
        self.by_name[name] = pipeline
        return pipeline

    def find(self, name: str) -> Pipeline | None:
        """Return the pipeline `name`; where there is none, the only one whose name differs in nothing but case.

        RoadRunner turns the names of its configuration to lower case, so its clients push to lower-case names.
        """
        pipeline = self.by_name.get(name)
        if pipeline is not None:
            return pipeline
        folded = name.casefold()
        alike = [other for known, other in self.by_name.items() if known.casefold() == folded]
        return alike[0] if len(alike) == 1 else None

    # --- connecting --------------------------------------------------------------------------------------------------

    async def connect_all(self, nursery: trio.Nursery, parallelism: int) -> None:
        """Connect every driver, at most `parallelism` at a time; `nursery` runs them from now on.

        Raises: RuntimeError naming the pipelines whose drivers could not start.
        """
        self._drivers = nursery
        limiter = trio.CapacityLimiter(parallelism)
        failures: list[str] = []

        async def connect(pipeline: Pipeline) -> None:
            async with limiter:
                try:
                    await nursery.start(self._run_driver, pipeline)
                except Exception as error:
                    failures.append(f"pipeline {pipeline.name}: {error}")

        async with trio.open_nursery() as connecting:
            for pipeline in self.by_name.values():
                connecting.start_soon(connect, pipeline)
        if failures:
            raise RuntimeError("; ".join(sorted(failures)))

    async def _run_driver(
        self, pipeline: Pipeline, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        status = _StartedOnce(task_status)
        try:
            await pipeline.driver.run(pipeline.stopping, status)
        except Exception as error:
            if not status.is_started:
                raise
            pipeline.failure = str(error) or type(error).__name__
            self._dispatcher.pause(pipeline)
            log.exception(
                "driver of a pipeline has failed, the pipeline is out of order", pipeline=pipeline.name
            )
        finally:
            pipeline.stopped.set()

    async def stop_all(self) -> None:
        """Stop every driver and return when all are closed."""
        pipelines = [*self.by_name.values(), *self._leaving]
        for pipeline in pipelines:
            pipeline.stopping.set()
        for pipeline in pipelines:
            await pipeline.stopped.wait()

    # --- verbs -------------------------------------------------------------------------------------------------------

    def consume_configured(self) -> None:
        """Consume the pipelines of `jobs.consume` that exist, but for those that were paused on purpose meanwhile."""
        for name in self._consume:
            pipeline = self.by_name.get(name)
            if pipeline is not None and not pipeline.failure and pipeline.wanted is not PipelineState.PAUSED:
                self._dispatcher.consume(pipeline)

    def pause(self, pipeline: Pipeline) -> Awaitable[None] | None:
        """Hand out no further job of `pipeline`; before the start is over too, that will not consume it then."""
        pipeline.wanted = PipelineState.PAUSED
        self._dispatcher.pause(pipeline)
        log.info("pipeline paused", pipeline=pipeline.name)
        return pipeline.driver.pause()

    def resume(self, pipeline: Pipeline) -> Awaitable[None] | None:
        """Hand out the jobs of `pipeline`. Raises RpcRefused where it is out of order."""
        if pipeline.failure:
            raise RpcRefused(f"pipeline {pipeline.name} is out of order: {pipeline.failure}")
        pipeline.wanted = PipelineState.CONSUMED
        log.info("pipeline resumed", pipeline=pipeline.name)
        pending = pipeline.driver.resume()
        self._dispatcher.consume(pipeline)
        return pending

    async def declare(self, values: Mapping[str, str]) -> Pipeline:
        """Make and connect a pipeline from the texts of jobs.Declare. Raises RpcRefused."""
        name, kind, options = _read_declaration(values)
        return await self.make(name, kind, options)

    async def make(self, name: str, kind: str, options: Mapping[str, object]) -> Pipeline:
        """Make and connect a pipeline at run time; consumed at once if `jobs.consume` names it. Raises RpcRefused."""
        if name in self.by_name:
            raise RpcRefused(f"pipeline {name} exists already; destroy it first")
        if self._drivers is None:
            raise RpcRefused("the jobs plugin is not running")
        try:
            pipeline = self.add(name, kind, options)
            pipeline.declared = True
        except UnknownDriver as error:
            raise RpcRefused(str(error)) from None
        try:
            await self._drivers.start(self._run_driver, pipeline)
        except Exception as error:
            raise RpcRefused(f"pipeline {name} could not start: {error}") from error
        finally:
            if pipeline.stopped.is_set() and self.by_name.get(name) is pipeline:
                del self.by_name[name]
        log.info("pipeline declared", pipeline=name, driver=kind, priority=pipeline.priority)
        if name in self._consume:
            self._dispatcher.consume(pipeline)
        return pipeline

    async def destroy(self, pipeline: Pipeline) -> None:
        """Remove `pipeline` with what waits in it; returns when its driver is closed."""
        if self.by_name.get(pipeline.name) is not pipeline:
            return  # somebody else was faster
        del self.by_name[pipeline.name]
        self._leaving.append(pipeline)
        self._dispatcher.forget(pipeline)
        dropped = await settled(pipeline.driver.destroy())
        books = pipeline.books()
        log.warning(
            "pipeline destroyed",
            pipeline=pipeline.name,
            jobs_dropped=dropped,
            dead_letters_dropped=books.dead_listed,
            still_running=books.running,
        )
        pipeline.stopping.set()
        await pipeline.stopped.wait()

    # --- figures -----------------------------------------------------------------------------------------------------

    def all_present(self) -> list[Pipeline]:
        """Return the pipelines that may have running jobs, destroyed ones included."""
        return [*self.by_name.values(), *self._leaving]

    def total(self) -> Books:
        """Return the books of the whole server since its start."""
        for pipeline in [gone for gone in self._leaving if not gone.driver.running]:
            self._leaving.remove(pipeline)
            self._retired += pipeline.books()
        return sum((pipeline.books() for pipeline in self.all_present()), self._retired)


class _StartedOnce:
    """A task status that remembers whether the driver has started."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.is_started = False

    def started(self, value: None = None) -> None:
        self.is_started = True
        self._task_status.started(value)


def _read_declaration(values: Mapping[str, str]) -> tuple[str, str, dict[str, object]]:
    name = values.get("name") or values.get("queue", "")
    if not name:
        raise RpcRefused("a declared pipeline needs a name (key: name)")
    kind = values.get("driver", "")
    if not kind:
        raise RpcRefused(f"the declared pipeline {name} needs a driver (key: driver)")
    options: dict[str, object] = {
        "priority": _read_number(values, "priority", _PRIORITY_DEFAULT),
        **{key: value for key, value in values.items() if key not in ("name", "queue", "driver", "priority")},
    }
    if "prefetch" in values:
        options["prefetch"] = _read_number(values, "prefetch", 0)
    unknown = sorted(values.keys() - _DECLARED_KEYS)
    if unknown:
        log.warning("declared pipeline has keys that have no effect", pipeline=name, keys=unknown)
    return name, kind, options


def _read_number(values: Mapping[str, str], key: str, default: int) -> int:
    text = values.get(key, "")
    if not text:
        return default
    digits = text[1:] if text[0] == "-" else text
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        raise RpcRefused(f"{key} of a declared pipeline has to be a whole number, not {text[:40]!r}")
    return int(text)
