"""Both formats, held against the parsers of Prometheus's own library."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from trailboss.figures import Histogram
from trailboss.metrics import Family, Sample, counter, gauge, histogram
from trailboss.plugins.metrics.exposition import accepts_gzip
from trailboss.plugins.metrics.render import PIECE_LINES, openmetrics_pieces, text_pieces, wants_openmetrics


def text(families: Iterable[Family]) -> str:
    """The old format."""
    return b"".join(text_pieces(families)).decode()


def openmetrics(families: Iterable[Family]) -> str:
    """The new one."""
    return b"".join(openmetrics_pieces(families)).decode()


def distribution(*values: float) -> Histogram:
    """A histogram with two bounds."""
    figures = Histogram((0.5, 1.0))
    for value in values:
        figures.observe(value)
    return figures


FAMILIES = [
    counter("rr_http_uptime_seconds", "Uptime in seconds", 12.5),
    counter("rr_http_request_total", "Requests.", {(("status", "200"),): 3, (("status", "404"),): 1}),
    gauge("heat", 'A "quoted"\nhelp with a \\.', {(("a", 'x"y\\z\n'),): -1.5}),
    histogram("wait_seconds", "Waiting.", {(("pool", "http"),): distribution(0.2, 0.7, 9.0)}),
    Family(
        "size",
        "summary",
        "Sizes.",
        [Sample("", (("quantile", "0.5"),), math.nan), Sample("_sum", (), 0), Sample("_count", (), 0)],
    ),
]


def test_the_text_format_keeps_names_as_they_are() -> None:
    """A counter without `_total` is one all the same."""
    assert text(FAMILIES) == (
        "# HELP rr_http_uptime_seconds Uptime in seconds\n"
        "# TYPE rr_http_uptime_seconds counter\n"
        "rr_http_uptime_seconds 12.5\n"
        "# HELP rr_http_request_total Requests.\n"
        "# TYPE rr_http_request_total counter\n"
        'rr_http_request_total{status="200"} 3\n'
        'rr_http_request_total{status="404"} 1\n'
        '# HELP heat A "quoted"\\nhelp with a \\\\.\n'
        "# TYPE heat gauge\n"
        'heat{a="x\\"y\\\\z\\n"} -1.5\n'
        "# HELP wait_seconds Waiting.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{pool="http",le="0.5"} 1\n'
        'wait_seconds_bucket{pool="http",le="1"} 2\n'
        'wait_seconds_bucket{pool="http",le="+Inf"} 3\n'
        'wait_seconds_sum{pool="http"} 9.9\n'
        'wait_seconds_count{pool="http"} 3\n'
        "# HELP size Sizes.\n"
        "# TYPE size summary\n"
        'size{quantile="0.5"} NaN\n'
        "size_sum 0\n"
        "size_count 0\n"
    )


def test_openmetrics_is_what_its_parser_accepts() -> None:
    """There every counter ends in `_total`, and the text in EOF."""
    written = openmetrics(FAMILIES)
    families = {family.name: family for family in parse_openmetrics(written)}

    assert written.endswith("# EOF\n")
    assert written.count("# EOF") == 1
    assert families["rr_http_uptime_seconds"].type == "counter"
    assert families["rr_http_uptime_seconds"].samples[0].name == "rr_http_uptime_seconds_total"
    assert [sample.value for sample in families["rr_http_request"].samples] == [3.0, 1.0]
    assert families["heat"].samples[0].labels == {"a": 'x"y\\z\n'}


def test_a_counter_whose_short_name_is_taken() -> None:
    """OpenMetrics knows no two families `orders`; the counter keeps its name, and its type is not told."""
    families = [gauge("orders", "Now.", 1), counter("orders_total", "Ever.", 2)]
    parsed = {family.name: family.type for family in parse_openmetrics(openmetrics(families))}

    assert parsed == {"orders": "gauge", "orders_total": "unknown"}


_VALUES = st.floats() | st.integers(-(2**70), 2**70)
_TEXTS = st.text(max_size=20)


@given(st.lists(st.tuples(_TEXTS, _TEXTS, _VALUES), max_size=10, unique_by=lambda item: item[:2]), _TEXTS)
def test_any_label_value_comes_back(rows: list[tuple[str, str, float]], help_text: str) -> None:
    """Whatever applications put into labels, the parsers read the same again, and nothing else."""
    rows = [
        (one.encode("utf-8", "replace").decode(), two.encode("utf-8", "replace").decode(), value)
        for one, two, value in rows
    ]
    family = gauge("g", help_text, {(("a", one), ("b", two)): value for one, two, value in rows})
    expected = [
        ({"a": one, "b": two}, value)
        for one, two, value in {(one, two): (one, two, value) for one, two, value in rows}.values()
    ]

    for parsed in (parse_text(text([family])), parse_openmetrics(openmetrics([family]))):
        samples = [sample for found in parsed for sample in found.samples]
        assert [sample.labels for sample in samples] == [labels for labels, _ in expected]
        for sample, (_, value) in zip(samples, expected, strict=True):
            assert sample.value == pytest.approx(float(value), nan_ok=True)


def test_a_long_family_comes_in_pieces() -> None:
    """No piece is much longer than the others, so that other work has its turn in between."""
    family = gauge("g", "", {(("n", str(number)),): number for number in range(2 * PIECE_LINES + 10)})
    pieces = list(text_pieces([family]))

    assert len(pieces) == 3
    assert len(b"".join(pieces).splitlines()) == 2 * PIECE_LINES + 12


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text; version=1.0.0", True),
        (
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
                "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
            ),
            True,
        ),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.8", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
    ],
)
def test_who_gets_openmetrics(accept: str, expected: bool) -> None:
    """Those who ask for it at least as much as for the other format."""
    assert wants_openmetrics(accept) is expected


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip; q=0", False),
        ("identity", False),
        ("*", True),
    ],
)
def test_who_gets_gzip(accept_encoding: str, expected: bool) -> None:
    """Those who say so."""
    assert accepts_gzip(accept_encoding) is expected
