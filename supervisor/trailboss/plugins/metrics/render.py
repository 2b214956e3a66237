"""Families as text: Prometheus's format 0.0.4, or OpenMetrics for those who ask for it.

Prometheus's own library writes OpenMetrics. Its writer of the older format insists on `_total` at the end of every
counter, and RoadRunner's users have counters that are called otherwise (`rr_http_uptime_seconds`, what applications
declare); so that format, which is two lines of rules, is written here with the names as they are. OpenMetrics has no
such counters: there the suffix is added, as Go's library does.

Both come in pieces, so that a long answer can be made between other work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from trailboss.metrics import Family, Sample

__all__ = ["OPENMETRICS_TYPE", "TEXT_TYPE", "openmetrics_pieces", "text_pieces", "wants_openmetrics"]

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = exposition.CONTENT_TYPE_LATEST
#: Lines of one piece; they take about half a millisecond.
PIECE_LINES: Final = 300
_END: Final = "# EOF\n"


OnError = Callable[[Exception], None]
"""Told of a family that is left out."""


def _raise(error: Exception) -> None:
    raise error


def wants_openmetrics(accept: str) -> bool:
    """Say whether an Accept header asks for OpenMetrics 1.0 at least as much as for anything else."""
    offers = [offer.strip() for offer in accept.split(",")]
    weights = {offer.partition(";")[0].strip().lower(): _weight(offer) for offer in offers}
    open_weight = weights.pop("application/openmetrics-text", 0.0)
    return open_weight > 0.0 and all(open_weight >= weight for weight in weights.values())


def _weight(offer: str) -> float:
    for parameter in offer.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def text_pieces(families: Iterable[Family], on_error: OnError = _raise) -> Iterator[bytes]:
    """Yield the format 0.0.4; a family that cannot be written is left out, and `on_error` told."""
    for family in families:
        try:
            yield from _family_pieces(family)
        except Exception as error:
            on_error(error)


def _family_pieces(family: Family) -> Iterator[bytes]:
    text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [f"# HELP {family.name} {text}\n# TYPE {family.name} {family.kind}\n"]
    name = family.name
    for sample in family.samples:
        lines.append(f"{name}{sample.suffix}{_labels(sample)} {_number(sample.value)}\n")
        if len(lines) >= PIECE_LINES:
            yield "".join(lines).encode("utf-8", "replace")
            lines.clear()
    if lines:
        yield "".join(lines).encode("utf-8", "replace")


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in sample.labels]) + "}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


def _number(value: float) -> str:
    if isinstance(value, int) or value == int_or_none(value):
        return str(int(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def int_or_none(value: float) -> int | None:
    """Return `value` as a whole number where it is one that a float holds exactly."""
    return int(value) if abs(value) < 2**53 and value == math.floor(value) else None


class _One(Collector):
    """What the library's writer takes for a registry: one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """Return the family."""
        return (self._metric,)


def openmetrics_pieces(families: Iterable[Family], on_error: OnError = _raise) -> Iterator[bytes]:
    """Yield OpenMetrics 1.0; a family that cannot be written is left out, and `on_error` told."""
    seen: set[str] = set()
    for family in families:
        try:
            metric = _metric(family, seen)
        except Exception as error:
            on_error(error)
            continue
        text: bytes = exposition.generate_latest(_One(metric))  # type: ignore[no-untyped-call] # it has no types
        yield text.removesuffix(_END.encode())
    yield _END.encode()


def _metric(family: Family, seen: set[str]) -> Metric:
    is_counter = family.kind == "counter"
    name = family.name.removesuffix("_total") if is_counter else family.name
    kind: str = family.kind
    if name in seen and is_counter:  # a gauge of that name; two families must not share one
        name, kind, is_counter = family.name, "unknown", False
    seen.add(name)
    metric = Metric(name, family.help, kind)
    for sample in family.samples:
        suffix = "_total" if is_counter else sample.suffix
        metric.add_sample(name + suffix, dict(sample.labels), float(sample.value))
    return metric
