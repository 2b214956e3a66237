"""The jobs plugin: from the configuration to consumed pipelines, and back to an orderly end.

Life: `run` connects the drivers, which needs no worker, and is healthy; `open` lets jobs out when the pool has its
quorum; `close_intake` lets no further job out, while workers that still run may push; `drain` waits for the runs that
have begun, and at its deadline gives them back to their queues; the end of `run` closes the drivers and says what the
memory of this process takes with it. After an upgrade all that does not run goes to the new server, again and again until
nothing is left; where that takes nothing, this one finishes what it can.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from itertools import count
from math import inf
from typing import TYPE_CHECKING

import trio

from trailboss.config.schema import JobsConfig
from trailboss.container.contract import Health, Layer, Phase, Plugin, PluginFailed, RpcMethod, Services
from trailboss.container.inspect import JobsInspector
from trailboss.handover import Handover
from trailboss.log import logger
from trailboss.metrics import Family, MetricSources
from trailboss.parcels import Parcel
from trailboss.plugins.jobs.alarm import Alarm
from trailboss.plugins.jobs.contract import DriverHost, Room
from trailboss.plugins.jobs.dispatch import Dispatcher, JobsPool
from trailboss.plugins.jobs.drivers import UnknownDriver
from trailboss.plugins.jobs.estate import ESTATE_VERSION, JobsEstate
from trailboss.plugins.jobs.figures import jobs_families
from trailboss.plugins.jobs.registry import Pipelines
from trailboss.plugins.jobs.requests import JobsRequests
from trailboss.plugins.jobs.verdict import RetryPolicy
from trailboss.telemetry import Telemetry

if TYPE_CHECKING:
    from trailboss.workers.pool import PoolSpec

__all__ = ["JobsPlugin"]

log = logger("jobs")

#: Between two looks at what is left, in a process that has been replaced.
LOOK_SECONDS = 0.1


class JobsPlugin(Plugin):
    """Queues of jobs, and the pool whose workers run them."""

    name = "jobs"
    layer = Layer.DRIVER

    def __init__(self, config: JobsConfig) -> None:
        self._config = config
        self._settlements: trio.Nursery | None = None
        self._alarm = Alarm(self._ring)
        self.dispatcher = Dispatcher(
            RetryPolicy(config.max_attempts, config.retry_backoff, config.retry_backoff_max),
            clock=trio.current_time,
            wake_at=self._alarm.wake_at,
            await_later=self._await_later,
            debug_runs_max=config.pool.resolved_num_workers if config.pool.debug else 0,
        )
        self.room = Room(config.pipeline_size)
        host = DriverHost(
            clock=trio.current_time,
            wall_clock=time.time,
            next_sequence=count(1).__next__,
            wake_at=self._alarm.wake_at,
            ready_changed=self.dispatcher.pump,
            room=self.room,
        )
        self.pipelines = Pipelines(host, self.dispatcher, config.dead_letter_limit, config.consume)
        self._requests = JobsRequests(self.pipelines, self.dispatcher.pump, config.timeout)
        self._settlement_failures = 0
        #: That of the server; until `run` one without a predecessor.
        self.handover = Handover()
        self.estate = JobsEstate(self.pipelines, host)

    # --- the contract ------------------------------------------------------------------------------------------------

    def pools(self) -> Sequence[PoolSpec]:
        """The pool of the jobs' workers."""
        from trailboss.workers.pool import PoolSpec

        return (PoolSpec("jobs", "jobs", self._config.pool, quarantines=False),)

    def attach_pool(self, pool: JobsPool) -> None:
        """Receive the pool; jobs are handed to it from `open` on."""
        self.dispatcher.attach(pool)

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """The methods under `jobs.`."""
        return self._requests.methods()

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect the drivers, be healthy, serve until `stopping`, close the drivers.

        Raises: PluginFailed where a pipeline names an unknown driver or its driver cannot start.
        On cancellation: drivers are cancelled too; what they keep in memory is lost, durable ones keep their promise.
        """
        self.make_pipelines()
        self.handover = services.find(Handover) or self.handover
        self.handover.add_estate(self.name, ESTATE_VERSION, self)
        self.dispatcher.telemetry = services.find(Telemetry) or self.dispatcher.telemetry
        services.provide(JobsInspector, self)  # type: ignore[type-abstract] # the key of a service may be a Protocol
        sources = services.find(MetricSources)
        if sources is not None:
            sources.add(self._figures)
        failure = ""
        async with trio.open_nursery() as drivers:
            try:
                await self.pipelines.connect_all(drivers, self._config.options.parallelism)
            except RuntimeError as error:
                failure = str(error)
            else:
                drivers.start_soon(self._alarm.run)
                await self._serve(stopping, task_status)
            drivers.cancel_scope.cancel(reason=failure or "the jobs plugin stops")
        if failure:
            raise PluginFailed(self.name, Phase.STARTING, failure)

    async def _serve(self, stopping: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as settlements:
            self._settlements = settlements
            task_status.started()
            await stopping.wait()
            # Leaving this block waits for every ack on its way to a broker; only then the connections close.
        self._settlements = None
        await self.pipelines.stop_all()
        self.estate.closed = self.estate.closed or "the new server is leaving"
        try:
            # What the drain has given back, and what was pushed since; the workers have ended by now.
            await self.handover.deliver(self.name)
        finally:
            self._say_what_is_lost()

    async def open(self) -> None:
        """Begin to consume the pipelines of `jobs.consume` and those resumed meanwhile."""
        self.pipelines.consume_configured()
        self.dispatcher.open()

    async def close_intake(self) -> None:
        """Hand out no further job. Pushes are still accepted: workers that finish their job may have some.

        With a successor in charge that is the business of `drain`: it depends on what that takes over.
        """
        if not self.handover.given_up:
            self.dispatcher.close()
            self.estate.closed = "the new server is stopping"

    async def drain(self) -> None:
        """Return when no job runs any more, and with a successor in charge when it has all the others.

        On cancellation: jobs that still run go back to their queues, one log line each.
        """
        try:
            # A look now and then costs nothing in a process that ends with the last job.
            while self.handover.given_up and await self._is_something_left():  # noqa: ASYNC110
                await trio.sleep(LOOK_SECONDS)
        except trio.Cancelled:
            self.dispatcher.close()
            self.dispatcher.return_running(self.pipelines.all_present())
            raise
        self.dispatcher.close()
        await self.dispatcher.drain(self.pipelines.all_present)

    async def _is_something_left(self) -> bool:
        """Hand over what can be; say whether there is, or can still be, something to finish or to hand over here."""
        if self.handover.hands_over(self.name):
            await self.handover.deliver(self.name)
        if self.handover.hands_over(self.name):
            # What the server before this one still has comes here first.
            return self.dispatcher.in_flight > 0 or not self.handover.received.is_set()
        self.dispatcher.open()
        return self._left_in_memory() > 0

    # the estate: see trailboss.parcels

    def declarations(self) -> Parcel | None:
        """The pipelines by name."""
        return self.estate.declarations()

    def next_parcel(self) -> Parcel | None:
        """The next jobs for the successor; from the first call on none of them is handed out here."""
        self.dispatcher.close()
        return self.estate.next_parcel()

    async def receive(self, content: object) -> int:
        """Jobs and pipelines of the predecessor. Raises ParcelRefused."""
        return await self.estate.receive(content)

    def _left_in_memory(self) -> int:
        """Jobs that end with this process and that its workers can still be given."""
        left = 0
        for pipeline in self.pipelines.by_name.values():
            if pipeline.consumed and not pipeline.driver.durable:
                books = pipeline.books()
                left += books.waiting + books.delayed + books.running
        return left

    def health(self) -> Health:
        """Healthy while every pipeline's driver works."""
        texts = ((item.name, item.failure or item.trouble) for item in self.pipelines.by_name.values())
        broken = [f"{name}: {text}" for name, text in texts if text]
        return Health(ok=not broken, reason="; ".join(broken))

    def state_detail(self) -> Mapping[str, object]:
        """The books, per pipeline and in total."""
        return {
            "pipelines": {
                name: {
                    "driver": pipeline.driver.kind,
                    "state": pipeline.state.value,
                    "priority": pipeline.priority,
                    **pipeline.books().as_dict(),
                }
                for name, pipeline in self.pipelines.by_name.items()
            },
            "total": self.pipelines.total().as_dict(),
            "in_flight": self.dispatcher.in_flight,
            "failed_runs": dict(self.dispatcher.failures),
            "failed_settlements": self._settlement_failures,
        }

    def job_states(self) -> list[dict[str, object]]:
        """The rows of informer.Jobs."""
        return [pipeline.statistics() for pipeline in self.pipelines.by_name.values()]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _figures(self) -> Iterator[Family]:
        failed = sum(self.dispatcher.failures.values()) + self.dispatcher.given_up
        return jobs_families(
            self.pipelines.by_name.values(), self.pipelines.total(), failed, self._requests.refused_pushes
        )

    def make_pipelines(self) -> None:
        """Make the pipelines of the configuration. Raises PluginFailed where one names an unknown driver."""
        for name, pipeline in self._config.pipelines.items():
            try:
                self.pipelines.add(name, pipeline.driver, pipeline.config)
            except UnknownDriver as error:
                raise PluginFailed(self.name, Phase.STARTING, str(error)) from None

    def _ring(self, now: float) -> float:
        """Make ready what is due; return when the next is."""
        next_due = inf
        for pipeline in self.pipelines.by_name.values():
            next_due = min(next_due, pipeline.driver.on_time(now))
        self.dispatcher.retry_refused(now)
        self.dispatcher.pump()
        return next_due

    def _await_later(self, pending: Awaitable[None]) -> None:
        if self._settlements is None:
            log.error("a job was settled after the end of the jobs plugin")
        else:
            self._settlements.start_soon(self._settle, pending)

    async def _settle(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception:
            # The supervision boundary of settlements: at least once means that the broker hands such a job out again.
            self._settlement_failures += 1
            log.exception("a job could not be settled with its queue and may run again")
        self.dispatcher.pump()

    def _say_what_is_lost(self) -> None:
        heir = self.handover.heir
        if heir is not None and heir.on_the_way(self.name):
            log.warning(
                "this server ends before the new one has answered for some jobs",
                jobs=heir.on_the_way(self.name),
            )
        for pipeline in self.pipelines.by_name.values():
            books = pipeline.books()
            left = books.waiting + books.delayed + books.running
            if not pipeline.driver.durable and left + books.dead_listed:
                log.warning(
                    "jobs kept in memory are lost with this process",
                    pipeline=pipeline.name,
                    jobs=left,
                    waiting=books.waiting,
                    delayed=books.delayed,
                    running=books.running,
                    dead_letters=books.dead_listed,
                )
