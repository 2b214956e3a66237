"""What applications keep: rules for names, what may be done to what, limits that hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.metrics import CollectorSpec, collector_problem
from trailboss.plugins.metrics.collectors import (
    COLLECTORS_MAX,
    LABEL_VALUE_LENGTH_MAX,
    WINDOW_SECONDS,
    WINDOW_VALUES,
    CollectorError,
    Collectors,
    Window,
)


def collectors(max_series: int = 100, max_samples: int = 10_000) -> Collectors:
    """A few of each kind."""
    made = Collectors(max_series, max_samples)
    made.declare(CollectorSpec("orders", "counter", "Orders.", ("shop",)))
    made.declare(CollectorSpec("hits", "counter"))
    made.declare(CollectorSpec("heat", "gauge"))
    made.declare(CollectorSpec("wait", "histogram", buckets=(1.0, 2.0), namespace="app", subsystem="db"))
    made.declare(CollectorSpec("size", "summary", objectives={0.5: 0.05, 0.99: 0.001}))
    return made


def lines(made: Collectors, now: float = 0.0) -> dict[str, float]:
    """What a scrape shows."""
    return {
        family.name
        + sample.suffix
        + "".join(f",{name}={value}" for name, value in sample.labels): sample.value
        for family in made.families(now)
        for sample in family.samples
    }


def test_values_go_where_they_belong() -> None:
    """Each verb on each kind that has it; series without labels are there from the start."""
    made = collectors()
    assert {"hits": 0, "heat": 0, "app_db_wait_count": 0}.items() <= lines(made).items()

    made.add("orders", 2, ["a"])
    made.add("orders", 3, ["a"])
    made.add("hits", 1.5, [])
    made.set("heat", 10, [])
    made.add("heat", 5, [])
    made.sub("heat", 1, [])
    made.observe("wait", 1.0, [], 0.0)
    made.observe("wait", 5.0, [], 0.0)
    for value in (1.0, 2.0, 3.0):
        made.observe("size", value, [], 0.0)

    expected = {
        "orders,shop=a": 5.0,
        "hits": 1.5,
        "heat": 14.0,
        "app_db_wait_bucket,le=1": 1,
        "app_db_wait_bucket,le=2": 1,
        "app_db_wait_bucket,le=+Inf": 2,
        "app_db_wait_sum": 6.0,
        "app_db_wait_count": 2,
        "size,quantile=0.5": 2.0,
        "size,quantile=0.99": 3.0,
        "size_sum": 6.0,
        "size_count": 3,
    }
    assert lines(made) == expected


@pytest.mark.parametrize(
    ("verb", "name", "value", "labels", "text"),
    [
        ("add", "nobody", 1, [], "undefined collector nobody, try first Declare the desired collector"),
        ("sub", "nobody", 1, [], "undefined collector nobody"),
        ("add", "orders", 1, [], "required labels for collector `orders`: shop"),
        ("add", "orders", 1, ["a", "b"], "inconsistent label cardinality: collector `orders` has 1 labels"),
        ("add", "hits", 1, ["a"], "collector `hits` has 0 labels, but there are 1 values"),
        ("add", "hits", -1, [], "counter hits cannot decrease in value: -1"),
        ("add", "hits", math.nan, [], "no finite number"),
        ("set", "heat", math.inf, [], "no finite number"),
        ("add", "wait", 1, [], "does not support method `Add`: it is a histogram"),
        ("sub", "hits", 1, [], "does not support method `Sub`: it is a counter"),
        ("set", "size", 1, [], "does not support method `Set`: it is a summary"),
        ("add", "orders", 1, ["x" * (LABEL_VALUE_LENGTH_MAX + 1)], "more than 256 characters"),
    ],
)
def test_calls_that_are_refused(verb: str, name: str, value: float, labels: list[str], text: str) -> None:
    """The error says what is wrong, and nothing has changed."""
    made = collectors()
    before = lines(made)

    with pytest.raises(CollectorError) as caught:
        getattr(made, verb)(name, value, labels)

    assert text in str(caught.value)
    assert str(lines(made)) == str(before)


def test_observing_what_has_no_distribution_is_refused() -> None:
    """Observe is for histograms and summaries."""
    with pytest.raises(CollectorError, match="does not support method `Observe`: it is a gauge"):
        collectors().observe("heat", 1.0, [], 0.0)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (CollectorSpec("", "counter"), "needs a name"),
        (CollectorSpec("a", "meter"), "unknown collector type 'meter'"),
        (CollectorSpec("1a", "counter"), "no name of a metric"),
        (CollectorSpec("a b", "counter"), "no name of a metric"),
        (CollectorSpec("ä", "counter"), "no name of a metric"),
        (CollectorSpec("a\n", "counter"), "no name of a metric"),
        (CollectorSpec("a" * 201, "counter"), "no name of a metric"),
        (CollectorSpec("phase", "gauge", namespace="trailboss"), "server's own metrics"),
        (CollectorSpec("rr_http_request_total", "counter"), "server's own metrics"),
        (CollectorSpec("a", "counter", "x" * 1001), "help text"),
        (CollectorSpec("a", "counter", labels=("b", "b")), "named twice"),
        (CollectorSpec("a", "counter", labels=("__b",)), "no name of a label"),
        (CollectorSpec("a", "counter", labels=("b-c",)), "no name of a label"),
        (CollectorSpec("a", "counter", labels=tuple(f"l{n}" for n in range(17))), "more than 16 labels"),
        (CollectorSpec("a", "histogram", labels=("le",)), "cannot have a label le"),
        (CollectorSpec("a", "summary", labels=("quantile",)), "cannot have a label quantile"),
        (CollectorSpec("a", "histogram", buckets=(2.0, 1.0)), "do not ascend"),
        (CollectorSpec("a", "histogram", buckets=(1.0, 1.0)), "do not ascend"),
        (CollectorSpec("a", "histogram", buckets=(1.0, math.nan)), "no number"),
        (CollectorSpec("a", "histogram", buckets=tuple(map(float, range(101)))), "more than 100 buckets"),
        (CollectorSpec("a", "summary", objectives={1.5: 0.1}), "no quantile"),
    ],
)
def test_declarations_that_are_refused(spec: CollectorSpec, text: str) -> None:
    """What Prometheus would choke on, and what is the server's own, is refused with a remedy."""
    problem = collector_problem(spec)

    assert problem is not None
    assert text in problem[0]
    assert problem[1]
    with pytest.raises(CollectorError):
        collectors().declare(spec)


def test_labels_le_and_an_infinite_bucket_where_they_are_allowed() -> None:
    """A gauge may have a label `le`; a histogram may name the bucket that is always there."""
    made = collectors()
    made.declare(CollectorSpec("a", "gauge", labels=("le",)))
    made.declare(CollectorSpec("b", "histogram", buckets=(1.0, math.inf)))

    assert [name for name in lines(made) if name.startswith("b_bucket")] == [
        "b_bucket,le=1",
        "b_bucket,le=+Inf",
    ]


def test_declaring_again() -> None:
    """The same is no error; another under the same name says where it differs, in words that PHP looks for."""
    made = collectors()
    made.add("orders", 1, ["a"])
    made.declare(CollectorSpec("orders", "counter", "Orders.", ("shop",)))
    assert lines(made)["orders,shop=a"] == 1.0

    with pytest.raises(
        CollectorError, match=r"tried to register existing collector .* differs in help, labels"
    ):
        made.declare(CollectorSpec("orders", "counter", "Other.", ("town",)))

    made.unregister("orders")
    made.declare(CollectorSpec("orders", "counter", "Other.", ("town",)))
    with pytest.raises(CollectorError, match="undefined collector nobody"):
        made.unregister("nobody")


@pytest.mark.parametrize(
    "spec",
    [
        CollectorSpec("app_db_wait", "gauge"),
        CollectorSpec("app_db_wait_count", "gauge"),
        CollectorSpec("db_wait_bucket", "counter", namespace="app"),
    ],
)
def test_names_that_would_collide(spec: CollectorSpec) -> None:
    """Two collectors never write lines of the same name."""
    with pytest.raises(CollectorError, match="is taken by the collector `wait`"):
        collectors().declare(spec)


def test_a_bomb_of_labels_ends_at_its_limit() -> None:
    """10,000 values for one label: a hundred series, the rest refused, the known ones still served."""
    made = collectors(max_series=100)
    errors = set()
    for number in range(10_000):
        try:
            made.add("orders", 1, [f"user-{number}"])
        except CollectorError as error:
            errors.add(str(error))
    made.add("orders", 1, ["user-7"])

    assert made.refused == 9_900
    assert errors == {
        "collector `orders` has 100 series already (metrics.max_series); use labels with few values"
    }
    assert lines(made)["orders,shop=user-7"] == 2.0
    assert sum(name.startswith("orders") for name in lines(made)) == 100


def test_all_lines_together_are_bounded() -> None:
    """Histograms with many labels fill the budget; unregistering gives it back."""
    made = Collectors(max_series=1000, max_samples=50)
    made.declare(CollectorSpec("a", "histogram", labels=("b",), buckets=tuple(map(float, range(1, 8)))))
    for number in range(5):
        made.observe("a", 1.0, [str(number)], 0.0)
    with pytest.raises(CollectorError, match=r"metrics\.max_samples"):
        made.observe("a", 1.0, ["5"], 0.0)
    with pytest.raises(CollectorError, match=r"metrics\.max_samples"):
        made.declare(CollectorSpec("c", "gauge"))

    assert (made.samples, len(lines(made)), len(made)) == (50, 50, 1)
    made.unregister("a")
    made.declare(CollectorSpec("c", "gauge"))
    assert (made.samples, len(made)) == (1, 1)


def test_the_number_of_collectors_is_bounded() -> None:
    """One more than a thousand is refused."""
    made = Collectors(10, 10_000)
    for number in range(COLLECTORS_MAX):
        made.declare(CollectorSpec(f"c{number}", "gauge"))

    with pytest.raises(CollectorError, match="1000 collectors already"):
        made.declare(CollectorSpec("more", "gauge"))


def test_names_of_the_configuration_are_found_in_any_case() -> None:
    """RoadRunner turns them to lower case, so a client may write either."""
    made = collectors()
    made.add("HITS", 1, [])

    assert lines(made)["hits"] == 1.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=700), st.floats(0, 1))
def test_quantiles_are_values_that_were_seen(values: list[float], share: float) -> None:
    """A summary knows its last values exactly, and sums of all."""
    window = Window()
    for value in values:
        window.observe(value, 0.0)
    recent = sorted(values[-WINDOW_VALUES:])

    assert window.quantiles([0.0, share, 1.0], 0.0)[0::2] == [recent[0], recent[-1]]
    found = window.quantiles([share], 0.0)[0]
    assert sum(value <= found for value in recent) >= share * len(recent) - 1e-6
    assert window.count == len(values)
    assert window.total == pytest.approx(sum(values), abs=1e-3)


def test_old_values_are_no_longer_counted() -> None:
    """After ten minutes without values there is no quantile."""
    window = Window()
    window.observe(1.0, 100.0)

    assert window.quantiles([0.5], 100.0 + WINDOW_SECONDS) == [1.0]
    assert math.isnan(window.quantiles([0.5], 100.5 + WINDOW_SECONDS)[0])
