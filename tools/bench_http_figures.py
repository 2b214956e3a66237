"""What the figures of ``tools/bench http`` mean: reading the clients' output, ratios, goals, the table. Pure.

A cell is measured in rounds, every server once a round. What is compared are the rounds: ours by theirs of the same
round, and the median of that, so that a machine which gets slower in between does not favour anybody.

Where RoadRunner is not there its figures are worked out through nginx + php-fpm, which nearly every machine has: what
that does in this very run, times what RoadRunner did beside it when both were measured in one run on a 2-core machine
(RoadRunner 2025.1.13, protobuf dialect, 4 workers; `MEASURED`). Such figures carry a `~`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

__all__ = [
    "MARKDOWN_HEADING",
    "MEASURED",
    "NGINX",
    "NOISE_CORES_MAX",
    "OURS",
    "ROADRUNNER",
    "Cell",
    "Goal",
    "Load",
    "Measured",
    "Quantity",
    "Sample",
    "Verdict",
    "as_json",
    "as_markdown",
    "goal_as_json",
    "judge",
    "median_ratio",
    "parse_h2load",
    "parse_wrk",
    "quantile",
    "render",
    "summary",
]

OURS = "Trailboss"
NGINX = "nginx + php-fpm"
ROADRUNNER = "RoadRunner"
#: Cores that programs other than those measured may take before times and rates are called unreliable.
NOISE_CORES_MAX = 0.15
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class Quantity(Enum):
    """What a goal is about; the value is how people read it."""

    RATE = "requests/s"
    P99 = "p99"
    SUPERVISOR = "supervisor CPU"
    ALL = "CPU of supervisor and worker"
    MEMORY = "RSS"
    THROUGHPUT = "MB/s"
    GROWTH = "growth of the supervisor"
    IDLE = "memory of an idle connection"
    SHARE = "requests/s of active connections beside idle ones, as a share"


_AT_LEAST = frozenset((Quantity.RATE, Quantity.THROUGHPUT, Quantity.SHARE))
_UNIT = {
    Quantity.P99: " ms",
    Quantity.SUPERVISOR: " µs",
    Quantity.ALL: " µs",
    Quantity.MEMORY: " MiB",
    Quantity.GROWTH: " MiB",
    Quantity.IDLE: " KiB",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What a client saw: requests in so many seconds, their latencies, and answers that were no success."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One server in one round. CPU in µs a request, memory of the supervisor in MiB, `foreign` in cores."""

    load: Load
    supervisor_us: float
    workers_us: float
    rss_mib: float
    pss_mib: float
    foreign_cores: float = 0.0

    def value(self, quantity: Quantity) -> float:
        """The figure that a goal asks for."""
        if quantity is Quantity.RATE:
            return self.load.rate
        if quantity is Quantity.P99:
            return self.load.p99_ms
        if quantity is Quantity.SUPERVISOR:
            return self.supervisor_us
        if quantity is Quantity.ALL:
            return self.supervisor_us + self.workers_us
        if quantity is Quantity.MEMORY:
            return self.rss_mib
        raise ValueError(f"a sample has no {quantity.value}")


@dataclass(frozen=True, slots=True)
class Goal:
    """`bound` times the `peer`'s figure, or `bound` itself where there is no peer; rates at least, all else at most."""

    quantity: Quantity
    bound: float
    peer: str = ""

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.quantity in _AT_LEAST


@dataclass(frozen=True, slots=True)
class Measured:
    """RoadRunner beside nginx + php-fpm in one run: requests/s, p99 in ms, supervisor CPU in µs, RSS in MiB."""

    roadrunner: tuple[float, float, float, float]
    nginx: tuple[float, float, float, float]

    def ratio(self, quantity: Quantity) -> float | None:
        """RoadRunner's by nginx + php-fpm's; None for what was not measured."""
        known = (Quantity.RATE, Quantity.P99, Quantity.SUPERVISOR, Quantity.MEMORY)
        if quantity not in known:
            return None
        place = known.index(quantity)
        return self.roadrunner[place] / self.nginx[place]


#: See the module's text. Keys: what the cells below call `measured_as`.
MEASURED: Mapping[str, Measured] = {
    "constant 1": Measured((8_173, 0.64, 102, 50), (9_307, 0.24, 47, 34)),
    "constant 16": Measured((29_343, 3.76, 36, 52), (24_506, 1.05, 29, 34)),
    "constant 64": Measured((22_893, 7.69, 51, 54), (18_892, 4.81, 39, 35)),
    "constant 256": Measured((24_146, 21.10, 50, 66), (20_447, 15.79, 38, 37)),
    "psr 1": Measured((3_577, 0.60, 142, 51), (7_279, 0.46, 52, 34)),
    "psr 16": Measured((9_969, 3.54, 68, 52), (18_307, 2.20, 38, 34)),
    "psr 64": Measured((10_695, 11.02, 59, 57), (19_207, 4.90, 36, 35)),
    "psr 256": Measured((9_862, 35.10, 74, 71), (15_979, 20.13, 44, 37)),
    "post 1": Measured((6_052, 2.04, 143, 50), (8_426, 0.24, 52, 34)),
    "post 16": Measured((17_777, 4.06, 66, 58), (21_111, 1.21, 34, 34)),
    "post 64": Measured((17_070, 9.23, 72, 57), (20_183, 4.51, 37, 35)),
    "post 256": Measured((15_627, 31.55, 85, 73), (17_837, 19.50, 41, 39)),
    "answer 1": Measured((2_930, 3.63, 328, 54), (4_141, 0.33, 171, 34)),
    "answer 16": Measured((8_119, 5.79, 149, 66), (7_993, 3.03, 112, 34)),
    "answer 64": Measured((7_477, 14.49, 164, 65), (7_122, 11.96, 121, 35)),
    "answer 256": Measured((7_637, 42.58, 166, 84), (6_805, 44.90, 123, 37)),
    "headers 1": Measured((6_353, 1.34, 140, 50), (8_803, 0.22, 49, 34)),
    "headers 16": Measured((19_240, 4.07, 63, 53), (23_460, 1.11, 33, 34)),
    "headers 64": Measured((16_682, 10.49, 71, 56), (21_028, 4.10, 36, 35)),
    "headers 256": Measured((10_667, 55.96, 87, 68), (13_803, 32.97, 44, 38)),
    "psr headers 64": Measured((3_589, 36.34, 126, 55), (13_040, 8.79, 45, 36)),
    "log 64": Measured((19_394, 8.25, 60, 54), (19_179, 5.06, 39, 35)),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the measurement: what is asked of which kind of server, with how many connections."""

    name: str
    kind: str
    connections: int
    request: str = "plain"
    measured_as: str = ""
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what came out: `value` is a ratio where there is a peer; None where it could not be compared."""

    goal: Goal
    value: float | None
    estimated: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where nobody can tell."""
        if self.value is None:
            return None
        return self.value >= self.goal.bound if self.goal.at_least else self.value <= self.goal.bound

    def __str__(self) -> str:
        goal = self.goal
        unit = _UNIT.get(goal.quantity, "")
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g}{'x' if goal.peer else unit}"
        of = f"{goal.quantity.value} of {goal.peer}'s" if goal.peer else goal.quantity.value
        if self.value is None:
            return f"{of}: {bound}, not compared ({goal.peer} was not measured)"
        value = (
            f"{'~' if self.estimated else ''}{self.value:.2f}x" if goal.peer else f"{self.value:.1f}{unit}"
        )
        return f"{of}: {value}, goal {bound}: {'met' if self.met else 'MISSED'}"


Samples = Mapping[str, Sequence[Sample]]


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_wrk(text: str) -> Load:
    """Read what ``wrk --latency`` prints. Raises ValueError for anything else."""
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    if total is None:
        raise ValueError(f"this is no output of wrk: {text.strip()[:200]!r}")
    latencies = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m))\s*$", text, re.MULTILINE))
    errors = 0
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if failed is not None:
        errors += int(failed[1])
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    if broken is not None:
        errors += sum(map(int, broken.groups()))
    return Load(
        int(total[1]),
        float(total[2]) * _UNITS[total[3]] / 1000,
        _milliseconds(latencies.get("50", "0us")),
        _milliseconds(latencies.get("99", "0us")),
        errors,
    )


def _milliseconds(text: str) -> float:
    number = re.match(r"[\d.]+", text)
    assert number is not None
    return float(number[0]) * _UNITS[text[number.end() :]]


def parse_h2load(text: str, log: str) -> Load:
    """Read what ``h2load`` prints, and its log file, one request a line: start, status, µs. Raises ValueError."""
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m),", text)
    counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", text)
    if finished is None or counts is None:
        raise ValueError(f"this is no output of h2load: {text.strip()[:200]!r}")
    done, succeeded, failed = map(int, counts.groups())
    times = sorted(int(line.split("\t")[2]) for line in log.splitlines() if line.count("\t") >= 2)
    return Load(
        done,
        float(finished[1]) * _UNITS[finished[2]] / 1000,
        quantile(times, 0.50) / 1000,
        quantile(times, 0.99) / 1000,
        max(failed, done - succeeded),
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie, of values in order; 0 of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


# --- judging ----------------------------------------------------------------------------------------------------------


def median_ratio(ours: Iterable[float], theirs: Iterable[float]) -> float | None:
    """The median of the rounds' ratios; None without a round in which they have a figure."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=False) if their]
    return statistics.median(ratios) if ratios else None


def judge(cell: Cell, samples: Samples) -> list[Verdict]:
    """What came of each goal of a cell."""
    ours = samples.get(OURS, ())
    return [_verdict(cell, goal, ours, samples) for goal in cell.goals] if ours else []


def _verdict(cell: Cell, goal: Goal, ours: Sequence[Sample], samples: Samples) -> Verdict:
    values = [sample.value(goal.quantity) for sample in ours]
    if not goal.peer:
        return Verdict(goal, statistics.median(values))
    theirs = samples.get(goal.peer, ())
    if theirs:
        return Verdict(goal, median_ratio(values, (sample.value(goal.quantity) for sample in theirs)))
    measured = MEASURED.get(cell.measured_as) if goal.peer == ROADRUNNER else None
    if measured is None:
        return Verdict(goal, None)
    if goal.quantity is Quantity.MEMORY:  # what a program takes does not depend on the machine's speed
        return Verdict(goal, statistics.median(values) / measured.roadrunner[3], True)
    ratio = measured.ratio(goal.quantity)
    beside = samples.get(NGINX, ())
    if ratio is None or not beside:
        return Verdict(goal, None)
    return Verdict(
        goal, median_ratio(values, (sample.value(goal.quantity) * ratio for sample in beside)), True
    )


# --- showing ----------------------------------------------------------------------------------------------------------

_HEADING = (
    f"  {'':18} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'supervisor':>11} {'workers':>9} "
    f"{'RSS+PSS MiB':>12} {'errors':>7}"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """Medians over the rounds."""

    rate: float
    p50_ms: float
    p99_ms: float
    supervisor_us: float
    workers_us: float
    rss_mib: float
    pss_mib: float
    errors: int = field(default=0)


def _row(samples: Sequence[Sample]) -> _Row:
    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    return _Row(
        median(sample.load.rate for sample in samples),
        median(sample.load.p50_ms for sample in samples),
        median(sample.load.p99_ms for sample in samples),
        median(sample.supervisor_us for sample in samples),
        median(sample.workers_us for sample in samples),
        median(sample.rss_mib for sample in samples),
        median(sample.pss_mib for sample in samples),
        sum(sample.load.errors for sample in samples),
    )


def render(cell: Cell, samples: Samples) -> str:
    """The table of one cell, with its goals."""
    lines = [cell.name, _HEADING]
    for server, taken in samples.items():
        if not taken:
            continue
        row = _row(taken)
        lines.append(
            f"  {server:18} {row.rate:11,.0f} {row.p50_ms:8.2f} {row.p99_ms:8.2f} "
            f"{row.supervisor_us:8.1f} µs {row.workers_us:6.1f} µs "
            f"{f'{row.rss_mib:.0f}+{row.pss_mib:.0f}':>12} {row.errors:7}"
        )
    lines += [f"    {verdict}" for verdict in judge(cell, samples)]
    noise = statistics.median(sample.foreign_cores for taken in samples.values() for sample in taken)
    if noise > NOISE_CORES_MAX:
        lines.append(
            f"    (other programs took {noise:.1f} cores meanwhile: rates and latencies are unreliable)"
        )
    return "\n".join(lines)


def summary(verdicts: Mapping[str, Sequence[Verdict]], errors: Mapping[str, int]) -> str:
    """How many goals are met, and by name those that are not."""
    every = [verdict for some in verdicts.values() for verdict in some]
    known = [verdict for verdict in every if verdict.met is not None]
    lines = [f"{sum(bool(verdict.met) for verdict in known)} of {len(known)} goals met"]
    if len(every) > len(known):
        lines[0] += f"; {len(every) - len(known)} could not be compared"
    lines += [
        f"  missed: {name}: {verdict}"
        for name, some in verdicts.items()
        for verdict in some
        if verdict.met is False
    ]
    lines += [f"  ERRORS: {name}: {count} requests failed" for name, count in errors.items() if count]
    return "\n".join(lines)


def as_json(cell: Cell, samples: Samples) -> dict[str, object]:
    """Everything about a cell, for files."""
    return {
        "name": cell.name,
        "connections": cell.connections,
        "servers": {
            server: {"median": asdict(_row(taken)), "rounds": [asdict(sample) for sample in taken]}
            for server, taken in samples.items()
            if taken
        },
        "goals": [goal_as_json(verdict) for verdict in judge(cell, samples)],
    }


_SHORT = {
    Quantity.RATE: "",
    Quantity.P99: "p99 ",
    Quantity.SUPERVISOR: "CPU ",
    Quantity.ALL: "CPU ",
    Quantity.MEMORY: "RSS ",
}
MARKDOWN_HEADING = (
    "| cell | requests/s | p99 ms | CPU µs, supervisor + workers | beside it | goals (missed ones bold) |\n"
    "|---|---|---|---|---|---|"
)


def as_markdown(cell: Cell, samples: Samples) -> str:
    """One row of a table for the documentation."""
    ours = _row(samples[OURS])
    beside = []
    for server, taken in samples.items():
        if server != OURS and taken:
            row = _row(taken)
            ratio = median_ratio((s.load.rate for s in samples[OURS]), (s.load.rate for s in taken)) or 0.0
            beside.append(f"{server}: {ratio:.2f}x, {row.supervisor_us:.0f} + {row.workers_us:.0f} µs")
    cpu = f"{ours.supervisor_us:.1f} + {ours.workers_us:.1f}"
    goals = ", ".join(map(_goal_as_markdown, judge(cell, samples)))
    return f"| {cell.name} | {ours.rate:,.0f} | {ours.p99_ms:.2f} | {cpu} | {'; '.join(beside)} | {goals} |"


def _goal_as_markdown(verdict: Verdict) -> str:
    goal = verdict.goal
    what = f"{_SHORT.get(goal.quantity, f'{goal.quantity.value} ')}{goal.peer}".strip()
    if verdict.value is None:
        return f"{what}: not compared"
    sign = "≥" if goal.at_least else "≤"
    if goal.peer:
        text = f"{what} {'~' if verdict.estimated else ''}{verdict.value:.2f}x ({sign} {goal.bound:g})"
    else:
        text = f"{what} {verdict.value:.3g} ({sign} {goal.bound:g})"
    return text if verdict.met else f"**{text}**"


def goal_as_json(verdict: Verdict) -> dict[str, object]:
    """A goal and what became of it, for files."""
    return {
        "of": verdict.goal.peer or None,
        "quantity": verdict.goal.quantity.value,
        "bound": verdict.goal.bound,
        "value": verdict.value,
        "estimated": verdict.estimated,
        "met": verdict.met,
    }
