"""Where figures come from and what they are called: families of samples, and the service that collects them.

`services.get(MetricSources)` works from the first moment on, as telemetry does. Whoever has figures adds a source, a
function that returns families; it is called at a scrape and at no other time, so figures that nobody asks for cost
nothing but their counting. A source must not block; one that raises is logged, counted and left out of that scrape.

The rules for names are Prometheus's; what may be declared is bounded here as well, for the configuration and for
`metrics.Declare` alike. Nothing here does I/O or knows a metrics library.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from trailboss.figures import Histogram
from trailboss.log import logger

__all__ = [
    "DEFAULT_BUCKETS",
    "KINDS",
    "CollectorSpec",
    "Exposition",
    "Family",
    "Kind",
    "Labels",
    "MetricSources",
    "Sample",
    "ScrapePage",
    "Source",
    "collector_problem",
    "counter",
    "gauge",
    "histogram",
]

log = logger("metrics")

Kind = Literal["counter", "gauge", "histogram", "summary"]
KINDS: Final = ("counter", "gauge", "histogram", "summary")

Labels = tuple[tuple[str, str], ...]

#: Buckets of a declared histogram that names none; those of the other Prometheus clients.
DEFAULT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

NAME_LENGTH_MAX: Final = 200
HELP_LENGTH_MAX: Final = 1000
LABELS_MAX: Final = 16
BUCKETS_MAX: Final = 100
OBJECTIVES_MAX: Final = 20

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Names that belong to the server itself.
_OWN: Final = re.compile(r"(trailboss|rr_http|rr_jobs|process)_.*")


class Sample(NamedTuple):
    """One line of a scrape: the family's name with `suffix`, labels in order, the value."""

    suffix: str
    labels: Labels
    value: float


class Family(NamedTuple):
    """One metric with all its samples. A counter's name is shown as it is, with `_total` at its end or without."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


def counter(name: str, text: str, values: Mapping[Labels, float] | float) -> Family:
    """Return a family that only grows; `values` by labels, or the one value of a family without."""
    return Family(name, "counter", text, _plain(values))


def gauge(name: str, text: str, values: Mapping[Labels, float] | float) -> Family:
    """Return a family that goes up and down."""
    return Family(name, "gauge", text, _plain(values))


def histogram(name: str, text: str, values: Mapping[Labels, Histogram]) -> Family:
    """Return a family of distributions."""
    samples: list[Sample] = []
    for labels, figures in values.items():
        samples += histogram_samples(labels, figures)
    return Family(name, "histogram", text, samples)


def histogram_samples(labels: Labels, figures: Histogram) -> Iterator[Sample]:
    """Yield the lines of one distribution: the buckets, `le` last in their labels, then sum and count."""
    sums = figures.cumulative()
    for bound, count in zip(figures.bounds, sums, strict=False):
        yield Sample("_bucket", (*labels, ("le", bound_text(bound))), count)
    yield Sample("_bucket", (*labels, ("le", "+Inf")), sums[-1])
    yield Sample("_sum", labels, figures.total)
    yield Sample("_count", labels, sums[-1])


def bound_text(bound: float) -> str:
    """Return a bound as Go writes it (`0.5`, `1`), for dashboards that name buckets."""
    return repr(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else repr(bound)


def _plain(values: Mapping[Labels, float] | float) -> Sequence[Sample]:
    if isinstance(values, Mapping):
        return [Sample("", labels, value) for labels, value in values.items()]
    return (Sample("", (), values),)


Source = Callable[[], Iterable[Family]]
"""Returns the families of the moment; must not block."""


class MetricSources:
    """The service: what is asked at a scrape, in the order of arrival."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        #: Sources that raised, in all.
        self.failures = 0

    def add(self, source: Source) -> None:
        """Ask `source` at every scrape from now on."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Ask it no longer; does nothing for one that is not there."""
        if source in self._sources:
            self._sources.remove(source)

    def families(self) -> Iterator[Family]:
        """Yield what all sources have, one source after the other. Never raises."""
        for source in tuple(self._sources):
            try:
                yield from source()
            except Exception as error:
                self.note_failure(error)

    def note_failure(self, error: Exception) -> None:
        """Count figures that could not be had, and log the first."""
        self.failures += 1
        if self.failures == 1:
            log.error("figures are missing from a scrape", exc_info=error)


# --- what users declare ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CollectorSpec:
    """A metric that an application keeps, as the configuration or `metrics.Declare` describes it."""

    #: What applications call it; the name in a scrape has namespace and subsystem in front.
    name: str
    kind: str
    help: str = ""
    labels: tuple[str, ...] = ()
    #: Upper bounds of a histogram, ascending; none: DEFAULT_BUCKETS.
    buckets: tuple[float, ...] = ()
    #: Quantiles of a summary (0 to 1) and their allowed error, which is always kept.
    objectives: Mapping[float, float] = field(default_factory=dict)
    namespace: str = ""
    subsystem: str = ""

    @property
    def full_name(self) -> str:
        """The name in a scrape."""
        return "_".join(part for part in (self.namespace, self.subsystem, self.name) if part)

    @property
    def bounds(self) -> tuple[float, ...]:
        """The buckets of a histogram without the one for all values, which is always there."""
        return tuple(bound for bound in self.buckets or DEFAULT_BUCKETS if bound != math.inf)


def collector_problem(spec: CollectorSpec) -> tuple[str, str] | None:
    """Judge what somebody wants to declare: None, or (what is wrong, what to do)."""
    problems = (_name_problem(spec), _labels_problem(spec), _buckets_problem(spec), _objectives_problem(spec))
    return next((problem for problem in problems if problem), None)


def _name_problem(spec: CollectorSpec) -> tuple[str, str] | None:
    if spec.kind not in KINDS:
        return f"unknown collector type {spec.kind[:40]!r}", f"use one of: {', '.join(KINDS)}"
    full_name = spec.full_name
    if not spec.name:
        return "a collector needs a name", "give it one, for example orders_total"
    if not _NAME.fullmatch(full_name) or len(full_name) > NAME_LENGTH_MAX:
        return (
            f"{full_name[:60]!r} is no name of a metric",
            f"use letters, digits, _ and : with no digit first, at most {NAME_LENGTH_MAX} characters",
        )
    if _OWN.fullmatch(full_name):
        return f"{full_name} is a name of the server's own metrics", "choose another name or a namespace"
    if len(spec.help) > HELP_LENGTH_MAX:
        return f"a help text of more than {HELP_LENGTH_MAX} characters", "make it shorter"
    return None


def _labels_problem(spec: CollectorSpec) -> tuple[str, str] | None:
    if len(spec.labels) > LABELS_MAX:
        return (
            f"more than {LABELS_MAX} labels",
            "use fewer: every combination of values is a series of its own",
        )
    taken = {"histogram": "le", "summary": "quantile"}.get(spec.kind)
    for label in spec.labels:
        if not _LABEL.fullmatch(label) or label.startswith("__") or len(label) > NAME_LENGTH_MAX:
            return f"{label[:60]!r} is no name of a label", "use letters, digits and _, with no digit first"
        if label == taken:
            return (
                f"a {spec.kind} cannot have a label {label}",
                "it has one of that name already; rename yours",
            )
    if len(set(spec.labels)) < len(spec.labels):
        return "a label is named twice", "remove one of the two"
    return None


def _buckets_problem(spec: CollectorSpec) -> tuple[str, str] | None:
    if spec.kind != "histogram":
        return None
    bounds = spec.bounds
    if len(bounds) > BUCKETS_MAX:
        return f"more than {BUCKETS_MAX} buckets", "use fewer"
    if any(math.isnan(bound) or math.isinf(bound) for bound in bounds):
        return "a bucket that is no number", "write numbers, the smallest first"
    if any(lower >= upper for lower, upper in itertools.pairwise(bounds)):
        return "the buckets do not ascend", "write numbers, the smallest first, none twice"
    return None


def _objectives_problem(spec: CollectorSpec) -> tuple[str, str] | None:
    if spec.kind != "summary":
        return None
    if len(spec.objectives) > OBJECTIVES_MAX:
        return f"more than {OBJECTIVES_MAX} objectives", "use fewer"
    if not all(0.0 <= share <= 1.0 for share in spec.objectives):
        return "an objective that is no quantile", "write quantiles between 0 and 1, for example 0.99: 0.001"
    return None


# --- who shows them -------------------------------------------------------------------------------------------------


class ScrapePage(NamedTuple):
    """A scrape as it goes to a client."""

    content_type: str
    #: Value of Content-Encoding, "" for none.
    encoding: str
    body: bytes
    status: int = 200


class Exposition(Protocol):
    """Makes scrapes; a service that the metrics plugin provides, so that other ports can show them too."""

    def scrape(self, accept: str, accept_encoding: str, on_done: Callable[[ScrapePage], None]) -> None:
        """Call `on_done` once, on the reactor, with what was asked for: at once or a few turns later.

        Call it on the reactor. The arguments are the client's headers of these names, "" where it sent none.
        """
        ...

    def scrape_now(self) -> ScrapePage:
        """Return a scrape in the format 0.0.4, uncompressed; for ports that cannot wait. Call it on the reactor."""
        ...
