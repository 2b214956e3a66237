"""One picture of the whole server as JSON values, for the status page: made once, shown to everybody.

Nothing is kept up while nobody looks. Rates and percentiles are differences between two pictures, so the first one after
a pause tells averages since the start and says so. Looking costs the data plane little and a bounded time: memory and
CPU are read for so many workers in one picture, the others keep their figures until the next.

No secret gets in: texts that workers and commands have written pass through `redacted_text`, paths come without query.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import trailboss
from trailboss.config.redact import redacted_text
from trailboss.container.contract import PluginState, Services
from trailboss.container.inspect import HttpFigures, HttpInspector, JobsInspector
from trailboss.container.state import ServerState
from trailboss.figures import Histogram, Window
from trailboss.log import logger
from trailboss.workers.deaths import DeathRecord, Deaths
from trailboss.workers.glance import Usage, describe_pool, usage
from trailboss.workers.pool import Pool, PoolSet

__all__ = ["Snapshot", "Snapshots"]

log = logger("status")

Snapshot = dict[str, object]

#: Rates and percentiles are those of the last so many seconds.
WINDOW_SECONDS: Final = 10.0
#: Rates kept for the line of the last minute; a longer gap between two pictures begins a new line.
HISTORY_MAX: Final = 61
GAP_SECONDS: Final = 3.0
#: A picture is shown to everybody who asks within this time.
FRESH_SECONDS: Final = 0.9
#: Workers shown of a pool, and deaths and refusals shown.
WORKERS_MAX: Final = 256
DEATHS_MAX: Final = 30
REFUSALS_MAX: Final = 30
HOLDERS_MAX: Final = 8
PIPELINES_MAX: Final = 100
OUTPUT_LINES_MAX: Final = 6
TEXT_MAX: Final = 400
#: Workers whose memory and CPU are read for one picture; some 15 microseconds each.
SAMPLES_MAX: Final = 64
_QUANTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


@dataclass(slots=True)
class _Sample:
    used: Usage
    at: float
    cpu_percent: float = 0.0


class _Sampler:
    """Memory and CPU of workers, a bounded number of readings a picture, each worker in its turn."""

    def __init__(self) -> None:
        self._samples: dict[int, _Sample] = {}
        self._now = 0.0
        self._due: set[int] = set()

    def begin(self, now: float, pids: Iterable[int]) -> None:
        """A new picture of these processes: choose whose turn it is, forget those that have gone."""
        known = set(pids)
        self._samples = {pid: sample for pid, sample in self._samples.items() if pid in known}
        oldest_first = sorted(known, key=lambda pid: self._samples[pid].at if pid in self._samples else 0.0)
        self._due = set(oldest_first[:SAMPLES_MAX])
        self._now = now

    def usage(self, pid: int) -> Usage:
        """What a worker uses, read now or a picture ago."""
        sample = self._samples.get(pid)
        if pid not in self._due:
            return sample.used if sample is not None else Usage(0.0, 0)
        used = usage(pid)
        percent = 0.0
        if sample is not None and self._now > sample.at:
            percent = max(0.0, 100.0 * (used.cpu_seconds - sample.used.cpu_seconds) / (self._now - sample.at))
        self._samples[pid] = _Sample(used, self._now, percent)
        return used

    def cpu_percent(self, pid: int) -> float:
        """CPU in percent of one core since the reading before."""
        sample = self._samples.get(pid)
        return round(sample.cpu_percent, 1) if sample is not None else 0.0


@dataclass(slots=True)
class Snapshots:
    """Makes pictures of what is found in `services`; each source that fails is left out, with one log line."""

    services: Services
    _last: Snapshot | None = None
    _last_at: float = 0.0
    _history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_MAX))
    _counted: tuple[float, int] | None = None
    _http_window: Window = field(default_factory=lambda: Window(WINDOW_SECONDS))
    _pool_windows: dict[str, Window] = field(default_factory=dict)
    _sampler: _Sampler = field(default_factory=_Sampler)
    _complained: set[str] = field(default_factory=set)

    def current(self, now: float) -> Snapshot:
        """Return the picture of this second. `now` is the reactor's time."""
        if self._last is None or not 0.0 <= now - self._last_at < FRESH_SECONDS:
            self._last, self._last_at = self._make(now), now
        return self._last

    def _make(self, now: float) -> Snapshot:
        began = time.perf_counter()
        state = self.services.get(ServerState)
        uptime = state.uptime_seconds
        made: Snapshot = {
            "at": _iso(time.time()),
            "version": trailboss.__version__,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": state.whole.value,
            "gate": state.gate,
            "ready": state.fully_ready,
            "waiting_for": list(state.waiting_for()),
            "uptime_seconds": round(uptime, 1),
        }
        for name, part in (
            ("http", lambda: self._http(now, uptime)),
            ("pools", lambda: self._pools(now, uptime)),
            ("jobs", self._jobs),
            ("plugins", lambda: [_plugin_row(plugin) for plugin in state.plugins()]),
            ("deaths", self._deaths),
            ("refusals", self._refusals),
        ):
            made[name] = self._guarded(name, part)
        made["took_ms"] = round((time.perf_counter() - began) * 1000, 2)
        return made

    def _guarded(self, name: str, part: object) -> object:
        try:
            return part()  # type: ignore[operator]
        except Exception as error:
            if name not in self._complained:
                self._complained.add(name)
                log.exception("a part of the status page cannot be shown", part=name)
            return {"error": f"{type(error).__name__}: {error}"}

    def _note_rate(self, now: float, requests: int) -> None:
        """Keep requests/s of the time between two pictures, as long as somebody looks."""
        before, self._counted = self._counted, (now, requests)
        if before is None or not 0.0 < now - before[0] < GAP_SECONDS or requests < before[1]:
            self._history.clear()
            return
        self._history.append(round((requests - before[1]) / (now - before[0]), 2))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _http(self, now: float, uptime: float) -> object:
        inspector = self.services.find(HttpInspector)  # type: ignore[type-abstract]
        figures = inspector.http_figures() if inspector is not None else None
        if figures is None:
            return None
        self._note_rate(now, figures.requests)
        span = self._http_window.note(now, (figures.requests, *figures.latency_counts))
        if span is None:
            seconds, counts = uptime, [figures.requests, *figures.latency_counts]
        else:
            seconds, counts = span
        return {
            "addresses": list(figures.addresses),
            "requests": figures.requests,
            "history": list(self._history),
            "per_second": _rate(counts[0], seconds),
            "window_seconds": round(seconds, 1),
            "since_start": span is None,
            "latency_ms": _latency(figures, counts[1:]),
            "in_flight": figures.in_flight,
            "connections": figures.connections,
            "refused": figures.refused,
            "timeouts": figures.timeouts,
        }

    def _pools(self, now: float, uptime: float) -> list[dict[str, object]]:
        pools: list[Pool] = list(self.services.find(PoolSet) or ())
        self._sampler.begin(now, [slot.pid for pool in pools for slot in pool.glance() if slot.pid])
        wall_ns = time.time_ns()
        return [self._pool(pool, now, uptime, wall_ns) for pool in pools]

    def _pool(self, pool: Pool, now: float, uptime: float, wall_ns: int) -> dict[str, object]:
        row = describe_pool(pool, wall_ns, self._sampler.usage)
        workers = row["workers"]
        assert isinstance(workers, list)
        for worker in workers:
            worker["cpu_percent"] = self._sampler.cpu_percent(worker["pid"])
        window = self._pool_windows.setdefault(pool.name, Window(WINDOW_SECONDS))
        span = window.note(now, (pool.executions,))
        row["per_second"] = _rate(pool.executions, uptime) if span is None else _rate(span[1][0], span[0])
        row["last_failure"] = str(row["last_failure"])[:TEXT_MAX]
        row["workers"] = workers[:WORKERS_MAX]
        row["workers_left_out"] = max(0, len(workers) - WORKERS_MAX)
        return row

    def _jobs(self) -> list[Mapping[str, object]]:
        inspector = self.services.find(JobsInspector)  # type: ignore[type-abstract]
        return list(inspector.job_states()[:PIPELINES_MAX]) if inspector is not None else []

    def _deaths(self) -> dict[str, object]:
        deaths = self.services.find(Deaths)
        if deaths is None:
            return {"total": 0, "last": []}
        records = deaths.records()[-DEATHS_MAX:]
        return {"total": deaths.total(), "last": [_death_row(record) for record in reversed(records)]}

    def _refusals(self) -> dict[str, object]:
        inspector = self.services.find(HttpInspector)  # type: ignore[type-abstract]
        report = inspector.http_refusals(REFUSALS_MAX) if inspector is not None else {}
        rows = report.get("refusals")
        last = []
        for row in reversed(rows if isinstance(rows, list) else []):
            held_by = row["held_by"]
            last.append(
                {
                    **row,
                    "held_by": held_by[:HOLDERS_MAX],
                    "held_by_left_out": row["held_by_left_out"] + max(0, len(held_by) - HOLDERS_MAX),
                }
            )
        return {"total": report.get("total", 0), "counts": report.get("counts", [])[:8], "last": last}  # type: ignore[index]


def _latency(figures: HttpFigures, counts: list[int]) -> dict[str, float] | None:
    histogram = Histogram(figures.latency_bounds)
    histogram.counts[:] = counts
    found = {name: histogram.quantile(share) for name, share in _QUANTILES}
    known = {name: round(seconds * 1000, 3) for name, seconds in found.items() if seconds is not None}
    return known or None


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _plugin_row(plugin: PluginState) -> dict[str, object]:
    health = plugin.health
    reason = plugin.reason or (health.reason if health is not None and not health.ok else "")
    return {
        "name": plugin.name,
        "phase": plugin.phase.value,
        "since_seconds": round(plugin.since_seconds, 1),
        "healthy": health is not None and health.ok,
        "waiting_for": list(plugin.waiting_for),
        "reason": _shown(reason),
        "optional": plugin.optional,
    }


@lru_cache(maxsize=2 * DEATHS_MAX)
def _death_row(record: DeathRecord) -> dict[str, object]:
    return {
        "at": _iso(record.at),
        "pool": record.pool,
        "pid": record.pid,
        "cause": record.cause,
        "text": _shown(record.text),
        "phase": record.phase,
        "doing": _shown(record.doing),
        "age_seconds": round(record.age_seconds, 1),
        "executions": record.executions,
        "last_output": [_shown(line) for line in record.last_output[-OUTPUT_LINES_MAX:]],
        "stray_output": _shown(record.stray_output),
        "hint": _shown(record.hint),
    }


def _shown(text: str) -> str:
    """Hide secrets, then cut: half a secret would not be known as one."""
    return redacted_text(text[: 10 * TEXT_MAX])[:TEXT_MAX]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
