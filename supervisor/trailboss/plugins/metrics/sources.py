"""The server's own figures: read from what the core knows, at a scrape, and written down as families.

Names that begin with `rr_` are RoadRunner's, so that its dashboards go on; everything else of ours begins with
`trailboss_`. Labels have few values: pools, states and causes are words of this program, a slot is a number below
`num_workers`. Only RoadRunner's own per-worker gauges have a pid; they show living workers and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

import trailboss
from trailboss.container.contract import Phase, Services, WholePhase
from trailboss.container.state import ServerState
from trailboss.figures import Histogram
from trailboss.metrics import Family, Labels, Sample, counter, gauge, histogram
from trailboss.reactor import Reactor
from trailboss.telemetry import Telemetry
from trailboss.workers.deaths import Deaths
from trailboss.workers.limits import RetireCause
from trailboss.workers.pool import Pool, PoolPhase, PoolSet, PoolStatistics
from trailboss.workers.watchdog import KINDS, Watchdog
from trailboss_worker.protocol.frames import codec_name

__all__ = ["ServerSource"]

#: What an exec that got no worker is counted as.
_REASONS: Final = {
    "QueueFull": "queue_full",
    "QueueTimeout": "queue_timeout",
    "PoolDegraded": "degraded",
    "PoolClosed": "stopping",
    "WorkerDied": "boot_failed",
}
_WITHDRAWN: Final = "other"
#: Planned ends that are counted as recycling; the stop of the server is none.
_RECYCLES: Final = tuple(cause for cause in RetireCause if cause is not RetireCause.STOP)


@dataclass(frozen=True, slots=True)
class _Row:
    """A pool, and its figures of this moment."""

    pool: Pool
    figures: PoolStatistics
    #: Place, pid, state, resident bytes.
    workers: Sequence[tuple[int, int, str, int]]

    @property
    def labels(self) -> Labels:
        return (("pool", self.pool.name),)


class ServerSource:
    """Everything the core can tell. `lag` is kept by the metrics plugin."""

    def __init__(self, services: Services, lag: Histogram) -> None:
        self._services = services
        self._lag = lag
        #: The library reads /proc for the process itself; a registry of our own, for the global one is everybody's.
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        #: Executions that did not wait, by pool: what is worked out from other figures must not go back.
        self._unqueued: dict[str, int] = {}

    def __call__(self) -> Iterator[Family]:
        """Yield all families."""
        yield from self._server()
        rows = [
            _Row(pool, pool.statistics(), pool.memory_by_place())
            for pool in self._services.find(PoolSet) or ()
        ]
        yield from _roadrunner_families(rows)
        yield from _pool_families(rows)
        yield histogram(
            "trailboss_pool_queue_seconds",
            "How long executions waited for a worker; those that found an idle one waited 0 s.",
            {row.labels: self._queue_seconds(row) for row in rows},
        )
        deaths = self._services.find(Deaths)
        if deaths is not None:
            yield counter(
                "trailboss_worker_deaths_total",
                "Workers that died, by cause; `trailboss why` has the last ones.",
                {
                    (("pool", pool), ("cause", cause.replace(" ", "_"))): count
                    for (pool, cause), count in deaths.counts.copy().items()
                },
            )
        yield from self._process()

    def _server(self) -> Iterator[Family]:
        yield gauge(
            "trailboss_build_info",
            "Always 1; the labels say what runs.",
            {
                (
                    ("version", trailboss.__version__),
                    ("roadrunner_compat", trailboss.ROADRUNNER_COMPAT_VERSION),
                    ("python", ".".join(map(str, sys.version_info[:3]))),
                    ("codec", codec_name()),
                ): 1
            },
        )
        state = self._services.find(ServerState)
        if state is not None:
            yield gauge("trailboss_uptime_seconds", "Seconds since the start began.", state.uptime_seconds)
            yield gauge(
                "trailboss_phase",
                "1 for the phase the server is in, 0 for the others.",
                {
                    (("phase", phase.value.replace(" ", "_")),): float(state.whole is phase)
                    for phase in WholePhase
                },
            )
            yield gauge(
                "trailboss_ready",
                "1 while the gate is open, the start is over and every pool is at its quorum.",
                float(state.fully_ready),
            )
            yield gauge(
                "trailboss_gate_open",
                "1 while RPC calls pass; during on_init, with some refused, it is open as well.",
                float(state.gate_open),
            )
            yield gauge(
                "trailboss_plugin_healthy",
                "1 for a plugin that works.",
                {
                    (("plugin", plugin.name),): float(
                        plugin.phase is Phase.HEALTHY and plugin.health is not None and plugin.health.ok
                    )
                    for plugin in state.plugins()
                },
            )
        reactor = self._services.find(Reactor)
        if reactor is not None:
            yield counter("trailboss_reactor_batches_total", "Batches of the data plane.", reactor.batches)
            yield counter(
                "trailboss_reactor_failures_total",
                "Exceptions that were contained on the data plane; each is a bug, and in the log.",
                reactor.failures,
            )
        watchdog = self._services.find(Watchdog)
        if watchdog is not None:
            yield counter(
                "trailboss_invariant_violations_total",
                "What must always hold and did not; each is a bug, but for loop_lag: the server stood still.",
                {(("kind", kind),): float(watchdog.violations[kind]) for kind in KINDS},
            )
            yield gauge(
                "trailboss_invariants_broken",
                "Kinds of violations that have not been repaired yet.",
                float(len(watchdog.broken)),
            )
        yield histogram(
            "trailboss_loop_lag_seconds",
            "How late the server's loop comes to a task, measured once a second while somebody scrapes.",
            {(): self._lag.copy()},
        )
        telemetry = self._services.find(Telemetry)
        if telemetry is not None:
            yield counter(
                "trailboss_telemetry_failures_total", "Spans that could not be recorded.", telemetry.failures
            )

    def _queue_seconds(self, row: _Row) -> Histogram:
        """The pool notes waits only; whoever was taken at once has waited for nothing."""
        figures = row.pool.queue_seconds.copy()
        begun = row.pool.executions + row.figures.in_flight
        name = row.pool.name
        self._unqueued[name] = max(self._unqueued.get(name, 0), begun - figures.count)
        figures.counts[0] += self._unqueued[name]
        return figures

    def _process(self) -> Iterator[Family]:
        """What other Prometheus clients tell about their process, under the same names."""
        for metric in self._registry.collect():
            is_counter = metric.type == "counter"
            yield Family(
                metric.name + "_total" if is_counter else metric.name,
                "counter" if is_counter else "gauge",
                metric.documentation,
                [
                    Sample("", (), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ],
            )


def _roadrunner_families(rows: Iterable[_Row]) -> Iterator[Family]:
    """RoadRunner's gauges about the workers of a plugin."""
    for row in rows:
        prefix = f"rr_{row.pool.name}_"
        states = [state for _, _, state, _ in row.workers]
        yield gauge(f"{prefix}total_workers", "Total number of workers used by the plugin", len(row.workers))
        yield gauge(
            f"{prefix}workers_memory_bytes",
            "Memory usage by workers.",
            sum(memory for _, _, _, memory in row.workers),
        )
        yield gauge(
            f"{prefix}worker_state",
            "Worker current state",
            {(("state", state), ("pid", str(pid))): 1 for _, pid, state, _ in row.workers},
        )
        yield gauge(
            f"{prefix}worker_memory_bytes",
            "Worker current memory usage",
            {(("pid", str(pid)),): memory for _, pid, _, memory in row.workers},
        )
        yield gauge(f"{prefix}workers_ready", "Workers currently in ready state", states.count("ready"))
        yield gauge(f"{prefix}workers_working", "Workers currently in working state", states.count("working"))
        yield gauge(
            f"{prefix}workers_invalid",
            "Workers currently in invalid,killing,destroyed,errored,inactive states",
            sum(state not in ("ready", "working") for state in states),
        )


def _pool_families(rows: Sequence[_Row]) -> Iterator[Family]:
    yield gauge(
        "trailboss_pool_workers",
        "Workers by what they do now.",
        dict(
            chain.from_iterable(
                (
                    ((*row.labels, ("state", state)), float(number))
                    for state, number in (
                        ("idle", row.figures.ready - row.figures.busy),
                        ("busy", row.figures.busy),
                        ("booting", row.figures.booting),
                        ("leaving", row.figures.leaving),
                    )
                )
                for row in rows
            )
        ),
    )
    for name, text, values in (
        ("workers_configured", "Workers there should be.", [row.figures.configured for row in rows]),
        ("quorum", "Ready workers needed for the pool to count as up.", [row.pool.quorum for row in rows]),
        ("in_flight", "Executions that are with a worker now.", [row.figures.in_flight for row in rows]),
        ("queue_length", "Executions that wait for a worker now.", [row.figures.queued for row in rows]),
        (
            "queue_limit",
            "Executions that may wait; more are refused (max_queue_size).",
            [row.pool.queue_max for row in rows],
        ),
        (
            "generation",
            "Number of the code the workers run; a reset adds one.",
            [row.pool.generation for row in rows],
        ),
    ):
        yield gauge(
            f"trailboss_pool_{name}",
            text,
            {row.labels: value for row, value in zip(rows, values, strict=True)},
        )
    yield gauge(
        "trailboss_pool_phase",
        "1 for the phase a pool is in, 0 for the others; degraded: no worker is left.",
        {
            (*row.labels, ("phase", phase.value)): float(row.figures.phase is phase)
            for row in rows
            for phase in PoolPhase
        },
    )
    yield counter(
        "trailboss_pool_executions_total",
        "Executions that a worker has answered.",
        {row.labels: row.figures.executions for row in rows},
    )
    yield counter(
        "trailboss_pool_refused_total",
        "Executions that got no worker, by reason.",
        dict(chain.from_iterable(_refusals(row) for row in rows)),
    )
    yield counter(
        "trailboss_pool_restarts_total",
        "Workers started in the place of another one.",
        {row.labels: row.figures.restarts for row in rows},
    )
    yield counter(
        "trailboss_worker_recycles_total",
        "Workers replaced as planned, by cause.",
        {
            (*row.labels, ("cause", cause.value.replace(" ", "_"))): row.pool.recycles[cause.value]
            for row in rows
            for cause in _RECYCLES
        },
    )
    yield gauge(
        "trailboss_worker_memory_bytes",
        "Resident memory of the worker in a slot.",
        {(*row.labels, ("slot", str(place))): memory for row in rows for place, _, _, memory in row.workers},
    )
    yield histogram(
        "trailboss_pool_exec_seconds",
        "From handing an execution to a worker to its whole answer.",
        {row.labels: row.pool.exec_seconds.copy() for row in rows},
    )


def _refusals(row: _Row) -> Iterator[tuple[Labels, float]]:
    counts = dict.fromkeys((*_REASONS.values(), _WITHDRAWN), 0)
    for kind, count in row.pool.refusals.items():
        counts[_REASONS.get(kind, _WITHDRAWN)] += count
    for reason, count in counts.items():
        yield (*row.labels, ("reason", reason)), count
