"""The section `metrics`: what it says, and what can never be scraped."""

from __future__ import annotations

import pytest

from .conftest import Folder

HEAD = 'version: "3"\n'


def test_collectors_in_roadrunners_form(folder: Folder) -> None:
    """A file of RoadRunner's is read as it is."""
    config = folder.load(
        HEAD
        + "metrics:\n"
        + "  address: 127.0.0.1:9100\n"
        + "  collect:\n"
        + "    app_metric: {type: histogram, help: Hi., labels: [type], buckets: [0.1, 0.5, 1], namespace: a}\n"
        + "    size: {type: summary, objectives: {0.5: 0.05, 0.99: 0.001}, subsystem: s}\n"
    ).metrics

    assert config is not None
    assert config.address == "127.0.0.1:9100"
    metric, size = config.collect["app_metric"], config.collect["size"]
    assert (metric.type, metric.help, metric.labels, metric.namespace) == ("histogram", "Hi.", ("type",), "a")
    assert metric.buckets == (0.1, 0.5, 1.0)
    assert size.objectives == {"0.5": 0.05, "0.99": 0.001}
    assert (config.max_series, config.max_samples) == (1000, 20_000)


def test_the_address_has_a_default(folder: Folder) -> None:
    """RoadRunner's port."""
    config = folder.load(HEAD + "metrics: {}\n").metrics

    assert config is not None
    assert config.address == "127.0.0.1:2112"


@pytest.mark.parametrize(
    ("collector", "text"),
    [
        ("a: {type: meter}", 'metrics.collect.a.type: not a known value "meter"'),
        ("a: {help: x}", "metrics.collect.a.type: the key is required"),
        ("a: {type: gauge, label: [x]}", "metrics.collect.a.label: unknown key; did you mean labels?"),
        ("a-b: {type: gauge}", "metrics.collect.a-b: 'a-b' is no name of a metric"),
        ("a: {type: histogram, buckets: [2, 1]}", "metrics.collect.a: the buckets do not ascend"),
        ("a: {type: gauge, labels: [x, x]}", "metrics.collect.a: a label is named twice"),
        ("a: {type: histogram, labels: [le]}", "metrics.collect.a: a histogram cannot have a label le"),
        (
            "a: {type: summary, objectives: {x: 0.1}}",
            "metrics.collect.a.objectives: an objective that is no quantile",
        ),
        ("a: {type: summary, objectives: {2: 0.1}}", "metrics.collect.a: an objective that is no quantile"),
        (
            "rr_http_x: {type: gauge}",
            "metrics.collect.rr_http_x: rr_http_x is a name of the server's own metrics",
        ),
    ],
)
def test_mistakes_have_their_line(folder: Folder, collector: str, text: str) -> None:
    """One mistake is one line, with the place and a remedy."""
    (line,) = folder.refuse(f"{HEAD}metrics:\n  collect:\n    {collector}\n")

    assert line.startswith(f".rr.yaml:4: {text}")
    assert "; " in line
