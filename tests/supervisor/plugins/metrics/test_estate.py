"""Metrics on their way to the next server: nothing is counted twice, nothing is lost, nothing senseless is read."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.metrics import CollectorSpec
from trailboss.parcels import ParcelRefused, pack, unpack
from trailboss.plugins.metrics.collectors import Collectors
from trailboss.plugins.metrics.estate import pack_shares, read_shares

SPECS = (
    CollectorSpec("orders", "counter", "Orders.", ("shop",)),
    CollectorSpec("busy", "gauge", "Busy.", ("shop",), namespace="app", subsystem="x"),
    CollectorSpec("wait", "histogram", "Wait.", ("shop",), (1.0, 2.0)),
    CollectorSpec("size", "summary", "Size.", ("shop",), (), {0.5: 0.05, 0.99: 0.001}),
)


def collectors(*, declared: bool = True, max_series: int = 100) -> Collectors:
    """One of each kind."""
    made = Collectors(max_series, 10_000)
    for spec in SPECS:
        made.declare(spec, by_application=declared)
    return made


def lines(made: Collectors, now: float = 0.0) -> dict[str, float]:
    """What a scrape shows."""
    return {
        f"{family.name}{sample.suffix}{sample.labels}": sample.value
        for family in made.families(now)
        for sample in family.samples
    }


def move(old: Collectors, new: Collectors, series_max: int = 500, now: float = 0.0) -> list[str]:
    """Everything, through the bytes of parcels; returns the problems."""
    problems: list[str] = []
    while shares := old.take_out(series_max, now):
        problems += new.take_in(read_shares(unpack(pack(pack_shares(shares)))), now)
    return problems


CALLS = st.lists(
    st.tuples(
        st.booleans(),  # whether the old server gets it
        st.sampled_from(["orders", "busy", "wait", "size"]),
        st.integers(0, 5).map(float),  # whole numbers add up exactly
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=30,
)


@given(rounds=st.lists(CALLS, max_size=4), series_max=st.integers(1, 5))
def test_the_sum_is_what_one_server_would_have(rounds: list[object], series_max: int) -> None:
    """Both servers count, values move again and again: at the end the new one shows what one server alone would."""
    old, new, alone = collectors(), Collectors(100, 10_000), collectors()
    now = 0.0
    move(old, new, series_max)
    for calls in rounds:
        for to_old, name, value, shop in calls:  # type: ignore[attr-defined] # drawn by CALLS
            now += 1.0
            for made in (old if to_old else new, alone):
                if name in ("orders", "busy"):
                    made.add(name, value, [shop])
                else:
                    made.observe(name, value, [shop], now)
        assert move(old, new, series_max, now) == []
    assert lines(new, now) == lines(alone, now)


def test_a_gauge_that_was_set_keeps_the_newest_value() -> None:
    """What the new server has set stays; otherwise the old one's replaces, now and later."""
    old, new = collectors(), collectors()
    old.set("busy", 5, ["a"])
    old.set("busy", 6, ["b"])
    new.set("busy", 1, ["a"])
    assert move(old, new) == []
    old.set("busy", 7, ["b"])
    assert move(old, new) == []
    assert [value for name, value in lines(new).items() if name.startswith("app_x_busy")] == [1, 7]


def test_what_is_put_back_counts_again() -> None:
    """A parcel that could not be delivered changes nothing in the end."""
    old = collectors()
    old.add("orders", 3, ["a"])
    old.observe("wait", 1.5, ["a"], 0.0)
    old.observe("size", 1.5, ["a"], 0.0)
    before = lines(old)
    shares = old.take_out(100, 1.0)
    old.add("orders", 2, ["a"])
    assert old.take_in(shares, 2.0) == []
    after = lines(old)
    key = "orders(('shop', 'a'),)"
    assert after == {**before, key: before[key] + 2}


def test_the_configuration_of_the_new_server_decides() -> None:
    """A collector that it has no more is left out, one that differs too, and what does not fit is told."""
    old = collectors(declared=False)
    old.add("orders", 1, ["a"])
    gone = Collectors(100, 10_000)
    assert (move(old, gone), lines(gone)) == ([], {})
    other = Collectors(100, 10_000)
    other.declare(CollectorSpec("orders", "counter", "Orders of another kind.", ("shop",)))
    old.add("orders", 1, ["a"])
    assert move(old, other) == ["the collector `orders` differs in help"]
    small = collectors(max_series=1)
    old.add("orders", 1, ["a"])
    old.add("orders", 1, ["b"])
    problems = move(old, small)
    assert len(problems) == 1
    assert "metrics.max_series" in problems[0]


def test_a_collector_without_values_is_told_once() -> None:
    """It exists in the new server although nobody has used it, and then there is nothing left to tell."""
    old, new = collectors(), Collectors(100, 10_000)
    assert move(old, new) == []
    assert len(new) == len(SPECS)
    assert old.take_out(100, 0.0) == []


ROW = {
    "name": "x",
    "kind": "counter",
    "help": "",
    "namespace": "",
    "subsystem": "",
    "labels": [],
    "buckets": [],
    "objectives": [],
    "declared": True,
    "series": [[[], ["number", 1.0, False]]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1},
        {"labels": [1]},
        {"buckets": ["1"]},
        {"objectives": [[0.5]]},
        {"declared": 1},
        {"series": [[[], ["number", 1, False]]]},
        {"series": [[[], ["number", float("nan"), False]]]},
        {"series": [[[1], ["number", 1.0, False]]]},
        {"series": [[[], ["values", [-1], 1.0]]]},
        {"series": [[[], ["window", 1, 1.0, [[1.0]]]]]},
        {"series": [[[], ["other", 1.0]]]},
    ],
)
def test_collectors_that_make_no_sense(change: dict[str, object]) -> None:
    """Each is refused; without the change it is read."""
    assert len(read_shares([ROW])) == 1
    with pytest.raises(ParcelRefused):
        read_shares([{**ROW, **change}])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*ROW]), inner),
    max_leaves=8,
)


@given(change=st.dictionaries(st.sampled_from([*ROW]), ANYTHING), anything=ANYTHING)
def test_no_content_does_harm(change: dict[str, object], anything: object) -> None:
    """Whatever is read is taken in or told as a problem; everything else is refused."""
    for content in (anything, [{**ROW, **change}]):
        with suppress(ParcelRefused):
            made = Collectors(100, 10_000)
            made.take_in(read_shares(content), 0.0)
            assert len(list(made.families(0.0))) == len(made)
