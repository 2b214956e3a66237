"""The metrics that applications keep: declared by the configuration or by RPC, changed by RPC, bounded in every way.

One series is one combination of label values. A program that puts user ids into labels makes one for each user; such a
bomb ends here, at `max_series` of one collector or `max_samples` lines of all of them, with an error for the caller and
without harm to what was there before. Nothing is ever dropped to make room.

A summary's quantiles are those of its last values: at most WINDOW_VALUES of them, none older than WINDOW_SECONDS.

In an upgrade values move: `take_out` takes what there is away, `take_in` adds it elsewhere (or here again), so that a value
that is counted meanwhile is in exactly one of two servers, and their sum is what applications have counted.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from trailboss.figures import Histogram
from trailboss.metrics import (
    CollectorSpec,
    Family,
    Labels,
    Sample,
    bound_text,
    collector_problem,
    histogram_samples,
)

__all__ = [
    "CollectorError",
    "CollectorShare",
    "Collectors",
    "NumberShare",
    "Series",
    "ValuesShare",
    "Window",
    "WindowShare",
]

#: Longest value of a label, in characters.
LABEL_VALUE_LENGTH_MAX: Final = 256
#: So many collectors there may be.
COLLECTORS_MAX: Final = 1000
WINDOW_VALUES: Final = 512
WINDOW_SECONDS: Final = 600.0


class CollectorError(Exception):
    """A call that cannot be carried out; the text is for its author. Nothing has changed."""


@dataclass(frozen=True, slots=True)
class NumberShare:
    """What a counter or a gauge had; `was_set`: somebody has set it, so it replaces instead of adding."""

    value: float
    was_set: bool = False


@dataclass(frozen=True, slots=True)
class ValuesShare:
    """What a histogram had: how many values in each bucket, and their sum."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class WindowShare:
    """What a summary had: number and sum of all values, and the last ones with their ages in seconds, the oldest first."""

    count: int
    total: float
    recent: tuple[tuple[float, float], ...]


Series = NumberShare | ValuesShare | WindowShare


@dataclass(frozen=True, slots=True)
class CollectorShare:
    """A collector on its way to another server, with some of its series by label values."""

    spec: CollectorSpec
    #: By an application; otherwise by the configuration, and the new one may do without.
    declared: bool
    series: dict[tuple[str, ...], Series] = field(default_factory=dict)


class Window:
    """The last values of a summary, and the sums of all it ever had."""

    __slots__ = ("_next", "_times", "_values", "count", "total")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._values = array("d")
        self._times = array("d")
        self._next = 0
        self.count = 0
        self.total = 0.0

    def observe(self, value: float, now: float) -> None:
        """Take in one value; the oldest makes room."""
        self.count += 1
        self.total += value
        if len(self._values) < WINDOW_VALUES:
            self._values.append(value)
            self._times.append(now)
            return
        self._values[self._next] = value
        self._times[self._next] = now
        self._next = (self._next + 1) % WINDOW_VALUES

    def quantiles(self, shares: Sequence[float], now: float) -> list[float]:
        """Return the value at each share (0 to 1) of the recent ones; NaN where there are none."""
        oldest = now - WINDOW_SECONDS
        recent = sorted(value for value, at in zip(self._values, self._times, strict=True) if at >= oldest)
        if not recent:
            return [math.nan] * len(shares)
        return [recent[max(0, math.ceil(share * len(recent)) - 1)] for share in shares]

    def take_out(self, now: float) -> WindowShare | None:
        """Take away all that is in here; None where there is nothing."""
        if not self.count:
            return None
        oldest = now - WINDOW_SECONDS
        recent = tuple((value, now - at) for at, value in self._in_order() if at >= oldest)
        share = WindowShare(self.count, self.total, recent)
        self._clear()
        return share

    def take_in(self, share: WindowShare, now: float) -> None:
        """Add what another window had."""
        both = [*((now - age, value) for value, age in share.recent), *self._in_order()]
        both.sort(key=lambda pair: pair[0])
        count, total = self.count + share.count, self.total + share.total
        self._clear()
        for at, value in both[-WINDOW_VALUES:]:
            self.observe(value, at)
        self.count, self.total = count, total

    def _in_order(self) -> list[tuple[float, float]]:
        return sorted(zip(self._times, self._values, strict=True), key=lambda pair: pair[0])


class _Collector:
    """One declared metric and its series, by label values."""

    __slots__ = ("declared", "moved", "numbers", "samples_of_one", "set_here", "spec", "told", "values")

    def __init__(self, spec: CollectorSpec, declared: bool) -> None:
        self.spec = spec
        self.declared = declared
        #: Another server knows that it exists, and that these series do.
        self.told = False
        self.moved: set[tuple[str, ...]] = set()
        #: Series of a gauge that were set, not only added to.
        self.set_here: set[tuple[str, ...]] = set()
        #: Series of a counter or a gauge.
        self.numbers: dict[tuple[str, ...], float] = {}
        #: Series of a histogram or a summary.
        self.values: dict[tuple[str, ...], Histogram | Window] = {}
        self.samples_of_one = {"histogram": len(spec.bounds) + 3, "summary": len(spec.objectives) + 2}.get(
            spec.kind, 1
        )

    @property
    def is_number(self) -> bool:
        """Whether its series are single numbers."""
        return self.spec.kind in ("counter", "gauge")

    @property
    def series(self) -> int:
        """How many there are."""
        return len(self.numbers) + len(self.values)

    def make(self, values: tuple[str, ...]) -> None:
        """Make the series for `values`."""
        if self.is_number:
            self.numbers[values] = 0.0
        else:
            self.values[values] = Histogram(self.spec.bounds) if self.spec.kind == "histogram" else Window()

    def take_out(self, limit: int, now: float) -> CollectorShare:
        """Take away the content of at most `limit` series; those stay, without a value."""
        share = CollectorShare(self.spec, self.declared)
        for key, number in self.numbers.items():
            if len(share.series) >= limit:
                break
            if number or key in self.set_here or key not in self.moved:
                share.series[key] = NumberShare(number, key in self.set_here)
                self.set_here.discard(key)
        for key in share.series:
            self.numbers[key] = 0.0
        self.moved.update(share.series)
        for key, figures in self.values.items():
            if len(share.series) >= limit:
                break
            taken = figures.take_out(now) if isinstance(figures, Window) else _take_counts(figures)
            if taken is not None:
                share.series[key] = taken
        return share

    def take_in(self, key: tuple[str, ...], series: Series, now: float) -> None:
        """Add what a series had, which is there and of its kind. A gauge that was set here keeps its value."""
        if isinstance(series, NumberShare):
            if key not in self.set_here:
                self.numbers[key] = series.value if series.was_set else self.numbers[key] + series.value
            return
        figures = self.values[key]
        if isinstance(figures, Window):
            assert isinstance(series, WindowShare)  # by `fits`
            figures.take_in(series, now)
        else:
            assert isinstance(series, ValuesShare)  # by `fits`
            figures.counts[:] = [
                one + other for one, other in zip(figures.counts, series.counts, strict=True)
            ]
            figures.total += series.total

    def fits(self, series: Series) -> bool:
        """Whether this is what a series of such a collector has."""
        kind = {"histogram": ValuesShare, "summary": WindowShare}.get(self.spec.kind, NumberShare)
        if isinstance(series, ValuesShare) and len(series.counts) != len(self.spec.bounds) + 1:
            return False
        return isinstance(series, kind)

    def sample_names(self) -> set[str]:
        """Return every name of a line it has in a scrape."""
        name = self.spec.full_name
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}.get(
            self.spec.kind, ()
        )
        return {name, *(name + suffix for suffix in suffixes)}

    def family(self, now: float) -> Family:
        """Return what is scraped."""
        spec = self.spec
        samples: list[Sample] = []
        for values, number in self.numbers.items():
            samples.append(Sample("", tuple(zip(spec.labels, values, strict=True)), number))
        for values, figures in self.values.items():
            labels: Labels = tuple(zip(spec.labels, values, strict=True))
            if isinstance(figures, Histogram):
                samples += histogram_samples(labels, figures)
                continue
            shares = sorted(spec.objectives)
            for share, value in zip(shares, figures.quantiles(shares, now), strict=True):
                samples.append(Sample("", (*labels, ("quantile", bound_text(share))), value))
            samples.append(Sample("_sum", labels, figures.total))
            samples.append(Sample("_count", labels, figures.count))
        kind = spec.kind
        assert kind in ("counter", "gauge", "histogram", "summary")
        return Family(spec.full_name, kind, spec.help, samples)  # type: ignore[arg-type] # narrowed by the assert


class Collectors:
    """All of them; `max_series` bounds one, `max_samples` the lines of all together."""

    def __init__(self, max_series: int, max_samples: int) -> None:
        self._max_series = max_series
        self._max_samples = max_samples
        self._by_name: dict[str, _Collector] = {}
        self._sample_names: dict[str, str] = {}
        self.samples = 0
        #: Calls that were refused because of a limit.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._by_name)

    # --- declaring ------------------------------------------------------------------------------------------------------

    def declare(self, spec: CollectorSpec, *, by_application: bool = True) -> None:
        """Make a collector; one that is there already and equal stays as it is. Raises CollectorError."""
        known = self._by_name.get(spec.name)
        if known is not None:
            if known.spec == spec:
                return
            raise CollectorError(
                f"tried to register existing collector with the name `{spec.name}`: it differs in "
                f"{', '.join(_differences(known.spec, spec))}; unregister it first"
            )
        problem = collector_problem(spec)
        if problem is not None:
            raise CollectorError("; ".join(problem))
        if len(self._by_name) >= COLLECTORS_MAX:
            self.refused += 1
            raise CollectorError(f"there are {COLLECTORS_MAX} collectors already, and no room for more")
        collector = _Collector(spec, by_application)
        taken = sorted(collector.sample_names() & self._sample_names.keys())
        if taken:
            raise CollectorError(
                f"the name {taken[0]} is taken by the collector `{self._sample_names[taken[0]]}`; "
                "choose another name, namespace or subsystem"
            )
        if not spec.labels:
            self._make_room(collector)
            collector.make(())
        self._by_name[spec.name] = collector
        self._sample_names.update(dict.fromkeys(collector.sample_names(), spec.name))

    def unregister(self, name: str) -> None:
        """Forget a collector with all its series. Raises CollectorError where there is none."""
        collector = self._find(name, "undefined collector {}")
        del self._by_name[collector.spec.name]
        for sample in collector.sample_names():
            del self._sample_names[sample]
        self.samples -= collector.series * collector.samples_of_one

    # --- changing -------------------------------------------------------------------------------------------------------

    def add(self, name: str, value: float, labels: Sequence[str]) -> None:
        """Add to a counter or a gauge. Raises CollectorError."""
        collector = self._find(name, "undefined collector {}, try first Declare the desired collector")
        if not collector.is_number:
            raise CollectorError(
                f"collector {name} does not support method `Add`: it is a {collector.spec.kind}"
            )
        if collector.spec.kind == "counter" and value < 0:
            raise CollectorError(
                f"counter {name} cannot decrease in value: {value:g}; declare a gauge for that"
            )
        self._change(collector, value, labels, is_set=False)

    def sub(self, name: str, value: float, labels: Sequence[str]) -> None:
        """Subtract from a gauge. Raises CollectorError."""
        self._change(self._gauge(name, "Sub"), -value, labels, is_set=False)

    def set(self, name: str, value: float, labels: Sequence[str]) -> None:
        """Set a gauge. Raises CollectorError."""
        self._change(self._gauge(name, "Set"), value, labels, is_set=True)

    def observe(self, name: str, value: float, labels: Sequence[str], now: float) -> None:
        """Give a value to a histogram or a summary. Raises CollectorError."""
        collector = self._find(name, "undefined collector {}")
        if collector.is_number:
            raise CollectorError(
                f"collector `{name}` does not support method `Observe`: it is a {collector.spec.kind}"
            )
        key = self._series(collector, value, labels)
        figures = collector.values[key]
        if isinstance(figures, Histogram):
            figures.observe(value)
        else:
            figures.observe(value, now)

    def _change(self, collector: _Collector, value: float, labels: Sequence[str], *, is_set: bool) -> None:
        key = self._series(collector, value, labels)
        collector.numbers[key] = value if is_set else collector.numbers[key] + value
        if is_set:
            collector.set_here.add(key)

    def _gauge(self, name: str, method: str) -> _Collector:
        collector = self._find(name, "undefined collector {}")
        if collector.spec.kind != "gauge":
            raise CollectorError(
                f"collector `{name}` does not support method `{method}`: it is a {collector.spec.kind}"
            )
        return collector

    def _find(self, name: str, text: str) -> _Collector:
        # Names of the configuration are in lower case, as RoadRunner reads them.
        collector = self._by_name.get(name) or self._by_name.get(name.lower())
        if collector is None:
            raise CollectorError(text.format(name[:200]))
        return collector

    def _series(self, collector: _Collector, value: float, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the key of a series, which exists from now on. Raises CollectorError."""
        spec = collector.spec
        if not math.isfinite(value):
            raise CollectorError(f"the value for {spec.name} is no finite number")
        return self._series_of(collector, tuple(labels))

    def _series_of(self, collector: _Collector, key: tuple[str, ...]) -> tuple[str, ...]:
        spec = collector.spec
        if key in collector.numbers or key in collector.values:
            return key
        if not key:
            raise CollectorError(f"required labels for collector `{spec.name}`: {', '.join(spec.labels)}")
        if len(key) != len(spec.labels):
            raise CollectorError(
                f"inconsistent label cardinality: collector `{spec.name}` has {len(spec.labels)} labels"
                f"{' (' + ', '.join(spec.labels) + ')' if spec.labels else ''}, but there are {len(key)} values"
            )
        if any(len(text) > LABEL_VALUE_LENGTH_MAX for text in key):
            self.refused += 1
            raise CollectorError(
                f"a label value for `{spec.name}` has more than {LABEL_VALUE_LENGTH_MAX} characters"
            )
        if collector.series >= self._max_series:
            self.refused += 1
            raise CollectorError(
                f"collector `{spec.name}` has {self._max_series} series already (metrics.max_series); "
                "use labels with few values"
            )
        self._make_room(collector)
        collector.make(key)
        return key

    def _make_room(self, collector: _Collector) -> None:
        if self.samples + collector.samples_of_one > self._max_samples:
            self.refused += 1
            raise CollectorError(
                f"the collectors of applications fill {self._max_samples} lines already (metrics.max_samples); "
                "use fewer labels, buckets or collectors"
            )
        self.samples += collector.samples_of_one

    # --- moving ---------------------------------------------------------------------------------------------------------

    def specs(self) -> list[CollectorShare]:
        """Return every collector without its content."""
        return [CollectorShare(item.spec, item.declared) for item in self._by_name.values()]

    def take_out(self, series_max: int, now: float) -> list[CollectorShare]:
        """Take away the content of at most `series_max` series; an empty list says that nothing is left."""
        shares: list[CollectorShare] = []
        left = series_max
        for collector in self._by_name.values():
            if left <= 0:
                break
            share = collector.take_out(left, now)
            if share.series or not collector.told:
                collector.told = True
                shares.append(share)
                left -= len(share.series)
        return shares

    def take_in(self, shares: Sequence[CollectorShare], now: float) -> list[str]:
        """Add what `take_out` has taken away here or elsewhere; return what could not be, in words for people.

        A collector that an application has declared is made; one of the configuration counts where it is in this one's.
        """
        problems: list[str] = []
        for share in shares:
            name = share.spec.name
            try:
                if share.declared:
                    self.declare(share.spec)
            except CollectorError as error:
                problems.append(str(error))
                continue
            collector = self._by_name.get(name)
            if collector is None:
                continue  # the configuration has done away with it
            if collector.spec != share.spec:
                problems.append(
                    f"the collector `{name}` differs in {', '.join(_differences(collector.spec, share.spec))}"
                )
                continue
            problems += self._take_in_series(collector, share, now)
        return problems

    def _take_in_series(self, collector: _Collector, share: CollectorShare, now: float) -> Iterator[str]:
        for key, series in share.series.items():
            try:
                if not collector.fits(series):
                    raise CollectorError(f"a series of the collector `{share.spec.name}` is of another kind")
                self._series_of(collector, key)
            except CollectorError as error:
                yield str(error)
                return
            collector.take_in(key, series, now)

    # --- reading --------------------------------------------------------------------------------------------------------

    def families(self, now: float) -> Iterator[Family]:
        """Yield what is scraped, one family a collector."""
        for collector in tuple(self._by_name.values()):
            yield collector.family(now)


def _take_counts(figures: Histogram) -> ValuesShare | None:
    if not figures.count:
        return None
    share = ValuesShare(tuple(figures.counts), figures.total)
    figures.counts[:] = [0] * len(figures.counts)
    figures.total = 0.0
    return share


def _differences(one: CollectorSpec, other: CollectorSpec) -> list[str]:
    return [name for name in CollectorSpec.__slots__ if getattr(one, name) != getattr(other, name)]
