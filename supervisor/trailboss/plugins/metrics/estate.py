"""The estate of applications' metrics: collectors and their values on their way to the server that replaces this one.

Before the new server is in charge it hears which collectors there are. The values follow at the change, before anybody
can scrape the new one, so that counters go on where they were; what workers of the old server still count follows when
they have ended. Pure: bytes are the business of :mod:`trailboss.parcels`, sums that of the collectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from trailboss.metrics import CollectorSpec
from trailboss.parcels import ParcelRefused
from trailboss.plugins.metrics.collectors import (
    CollectorShare,
    NumberShare,
    Series,
    ValuesShare,
    WindowShare,
)

__all__ = ["ESTATE_VERSION", "SERIES_MAX", "pack_shares", "read_shares"]

#: Of what is written below; a server hands over to one that has the same version.
ESTATE_VERSION: Final = 1
#: So many series make a parcel; those of summaries with a full window have some 8 KB each.
SERIES_MAX: Final = 500

_TEXTS: Final = ("name", "kind", "help", "namespace", "subsystem")


def pack_shares(shares: Sequence[CollectorShare]) -> list[object]:
    """Return the written form of shares."""
    return [
        {
            **{name: getattr(share.spec, name) for name in _TEXTS},
            "labels": list(share.spec.labels),
            "buckets": [float(bound) for bound in share.spec.buckets],
            "objectives": [[float(key), float(value)] for key, value in share.spec.objectives.items()],
            "declared": share.declared,
            "series": [[list(key), _pack_series(series)] for key, series in share.series.items()],
        }
        for share in shares
    ]


def _pack_series(series: Series) -> list[object]:
    match series:
        case NumberShare(value, was_set):
            return ["number", float(value), was_set]
        case ValuesShare(counts, total):
            return ["values", list(counts), float(total)]
        case WindowShare(count, total, recent):
            return ["window", count, float(total), [list(pair) for pair in recent]]


def read_shares(content: object) -> list[CollectorShare]:
    """Return shares from their written form. Raises ParcelRefused."""
    if not isinstance(content, list):
        raise ParcelRefused("it is no list of collectors")
    return [_read_share(row) for row in content]


def _read_share(row: object) -> CollectorShare:
    match row:
        case {
            "labels": list() as labels,
            "buckets": list() as buckets,
            "objectives": list() as objectives,
            "declared": bool() as declared,
            "series": list() as series,
        }:
            texts = {name: row.get(name) for name in _TEXTS}  # type: ignore[attr-defined] # the pattern says it is a mapping
            if all(isinstance(text, str) for text in (*texts.values(), *labels)):
                spec = CollectorSpec(
                    **texts,
                    labels=tuple(labels),
                    buckets=tuple(map(_number, buckets)),
                    objectives=dict(_pair(item) for item in objectives),
                )
                return CollectorShare(spec, declared, dict(_read_series(item) for item in series))
    raise ParcelRefused("what is told of a collector makes no sense")


def _read_series(item: object) -> tuple[tuple[str, ...], Series]:
    match item:
        case [list() as key, ["number", float() as value, bool() as was_set]] if not math.isnan(value):
            return _key(key), NumberShare(value, was_set)
        case [list() as key, ["values", list() as counts, float() as total]]:
            return _key(key), ValuesShare(tuple(map(_count, counts)), total)
        case [list() as key, ["window", int() as count, float() as total, list() as recent]]:
            return _key(key), WindowShare(_count(count), total, tuple(map(_pair, recent)))
    raise ParcelRefused("a series of a collector makes no sense")


def _key(values: list[object]) -> tuple[str, ...]:
    texts = tuple(value for value in values if isinstance(value, str))
    if len(texts) != len(values):
        raise ParcelRefused("a label of a collector is no text")
    return texts


def _pair(item: object) -> tuple[float, float]:
    match item:
        case [first, second]:
            return _number(first), _number(second)
    raise ParcelRefused("a pair of numbers is expected")


def _number(value: object) -> float:
    if type(value) is not float or math.isnan(value):
        raise ParcelRefused("a number of a collector is none")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ParcelRefused("a count of a collector is none")
    return value
