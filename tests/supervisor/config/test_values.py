"""Texts of single values: durations, addresses, numbers, unquoted YAML scalars."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.config.tree import core_scalar
from trailboss.config.values import (
    check_address,
    check_listen,
    check_relay,
    format_duration,
    is_loopback,
    parse_address,
    parse_duration,
    parse_integer,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("300ms", 0.3),
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("1h2m3.5s", 3723.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("10µs", 10e-6),
        ("10μs", 10e-6),
        ("10us", 10e-6),
        ("7ns", 7e-9),
        ("+1s", 1.0),
        ("-1s", -1.0),
        (" 5s ", 5.0),
    ],
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    """Every unit of Go's syntax gives its seconds."""
    assert seconds == pytest.approx(parse_duration(text), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("60", "a duration without a unit"),
        ("1.5", "a duration without a unit"),
        ("", "not a duration"),
        ("s", "not a duration"),
        ("10 s", "not a duration"),
        ("10sec", "not a duration"),
        ("1d", "not a duration"),
        ("٣s", "not a duration"),
        ("1s" * 200, "not a duration"),
        ("9999999h", "a duration of more than 292 years"),
        ("1e9s", "not a duration"),
    ],
)
def test_other_texts_are_no_durations(text: str, what: str) -> None:
    """A text that is no duration says what is missing, without repeating the text."""
    with pytest.raises(ValueError) as caught:
        parse_duration(text)

    assert what == str(caught.value)


@given(st.integers(min_value=0, max_value=10**15).map(lambda nanoseconds: nanoseconds / 1e9))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    """format_duration and parse_duration are inverse up to a nanosecond."""
    assert math.isclose(seconds, parse_duration(format_duration(seconds)), rel_tol=1e-9, abs_tol=1e-9)


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """No text makes parse_duration raise anything but ValueError."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert math.isfinite(seconds)


@pytest.mark.parametrize("text", ["", " 1", "1_000", "٣", "1.0", "0x10", "--1", "9" * 20, "1" * 100_000])
def test_only_ascii_digits_are_integers(text: str) -> None:
    """int() would take underscores, blanks, other scripts, and quadratic time; parse_integer takes none of them."""
    with pytest.raises(ValueError, match="not a whole number"):
        parse_integer(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:6001", ("tcp", "127.0.0.1", 6001)),
        ("tcp://:6001", ("tcp", "", 6001)),
        ("tcp://[::1]:6001", ("tcp", "::1", 6001)),
        ("localhost:80", ("tcp", "localhost", 80)),
        ("unix:///run/rr.sock", ("unix", "/run/rr.sock", 0)),
        ("unix://rr.sock", ("unix", "rr.sock", 0)),
    ],
)
def test_addresses_are_split(text: str, address: tuple[str, str, int]) -> None:
    """An address gives scheme, host or path, and port."""
    assert address == parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "udp://127.0.0.1:1",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:http",
        "tcp://::1:6001",
        "tcp://user@host:1",
        "unix://",
        "unix:///" + "x" * 107,
        "unix:///a\x00b",
        "",
    ],
)
def test_bad_addresses_are_refused(text: str) -> None:
    """An address that no socket can have is a ValueError that does not repeat it."""
    with pytest.raises(ValueError) as caught:
        parse_address(text)

    assert not text or text not in str(caught.value)


def test_checks_of_address_keys_differ() -> None:
    """rpc.listen needs a scheme, relay also takes pipes, a public address takes no unix socket."""
    assert check_listen("") is None
    assert check_listen("127.0.0.1:6001") is not None
    assert check_relay("pipes") is None
    assert check_relay("") is not None
    assert check_address("127.0.0.1:1") is None
    assert check_address("unix:///a") is not None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_hosts(host: str, expected: bool) -> None:
    """Only loopback addresses are loopback; an empty host is every interface."""
    assert expected is is_loopback(host)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("On", "On"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-11-01", "2026-11-01"),
        ("0o7", 7),
        ("010", 10),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("-5", -5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("null", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("9" * 30, float("9" * 30)),
        ("9" * 5000, "9" * 5000),
        ("=", "="),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    """The core schema of YAML 1.2 decides, none of YAML 1.1's surprises."""
    found = core_scalar(text)

    assert (value, type(value)) == (found, type(found))
