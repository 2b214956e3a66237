"""Conditions and ranges, from the rules of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.plugins.http.middleware.ranges import (
    Selection,
    format_date,
    parse_date,
    parse_ranges,
    select,
)
from trailboss.testing.check_http_middleware import make_request

NOW = 1_700_000_000
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = b"Tue, 14 Nov 2023 22:13:19 GMT"
LATER = b"Tue, 14 Nov 2023 22:13:21 GMT"
WHOLE = Selection(200, 0, 1000)


def chosen(*headers: tuple[bytes, bytes], method: str = "GET", etag: bytes = b'"a"') -> Selection:
    """Return what a request with these headers gets of a file of 1000 bytes."""
    return select(make_request(method=method, headers=headers), 1000, etag, NOW)


@pytest.mark.parametrize(
    ("value", "selection"),
    [
        (b"bytes=0-0", (206, 0, 1)),
        (b"bytes=0-499", (206, 0, 500)),
        (b"bytes=500-", (206, 500, 500)),
        (b"bytes=-1", (206, 999, 1)),
        (b"bytes=-5000", (206, 0, 1000)),
        (b"bytes=999-5000", (206, 999, 1)),
        (b"BYTES = 1-2", (206, 1, 2)),
        (b"bytes=0-99,100-199", (206, 0, 200)),
        (b"bytes=100-199, 0-120", (206, 0, 200)),
        (b"bytes=0-9,5000-", (206, 0, 10)),
        (b"bytes=1000-", (416, 0, 0)),
        (b"bytes=5000-6000", (416, 0, 0)),
        (b"bytes=-0", (416, 0, 0)),
        (b"bytes=999999999999999999-", (416, 0, 0)),
        (b"bytes=0-9,20-29", None),
        (b"bytes=2-1", None),
        (b"bytes=-", None),
        (b"bytes=", None),
        (b"bytes", None),
        (b"bytes=a-b", None),
        (b"bytes=+1-2", None),
        (b"bytes=1_0-20", None),
        (b"bytes=\xd9\xa5-", None),
        (b"bytes=--1", None),
        (b"bytes=0-1-2", None),
        (b"bytes=0-9;x", None),
        (b"bytes=0 - 9", None),
        (b"items=0-9", None),
        (b"bytes=" + b"9" * 5000 + b"-", None),
        (b"bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(17)), None),
    ],
)
def test_ranges(value: bytes, selection: tuple[int, int, int] | None) -> None:
    """One stretch is served, nothing of the file is 416, everything else is the whole file."""
    assert parse_ranges(value, 1000) == selection


@given(st.binary(max_size=60), st.integers(1, 10_000))
def test_no_range_leads_out_of_the_file(text: bytes, size: int) -> None:
    """Whatever a client writes, what is served lies in the file."""
    selection = parse_ranges(b"bytes=" + text, size)
    if selection is not None and selection.status == 206:
        assert selection.offset >= 0
        assert 0 < selection.length <= size - selection.offset


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=8))
def test_several_ranges_are_one_stretch_or_the_whole(pairs: list[tuple[int, int]]) -> None:
    """What is served as one stretch is exactly what was asked for."""
    size = 100
    selection = parse_ranges(b"bytes=" + b",".join(b"%d-%d" % pair for pair in pairs), size)
    wanted = {place for first, last in pairs for place in range(first, last + 1) if place < size}
    if any(first > last for first, last in pairs):
        assert selection is None
    elif not wanted:
        assert selection == Selection(416, 0, 0)
    elif selection is None:
        assert len(wanted) < max(wanted) - min(wanted) + 1
    else:
        assert wanted == set(range(selection.offset, selection.offset + selection.length))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"If-None-Match", b'"a"')], 304),
        ([(b"if-none-match", b'W/"a"')], 304),
        ([(b"If-None-Match", b'"b", W/"c" , "a"')], 304),
        ([(b"If-None-Match", b'"b"'), (b"If-None-Match", b'"a"')], 304),
        ([(b"If-None-Match", b"*")], 304),
        ([(b"If-None-Match", b'"b"')], 200),
        ([(b"If-None-Match", b"a")], 200),
        ([(b"If-None-Match", b'"a')], 200),
        ([(b"If-None-Match", b'"b"'), (b"If-Modified-Since", DATE)], 200),
        ([(b"If-None-Match", b'"a"'), (b"If-Modified-Since", EARLIER)], 304),
        ([(b"If-Modified-Since", DATE)], 304),
        ([(b"If-Modified-Since", LATER)], 304),
        ([(b"If-Modified-Since", EARLIER)], 200),
        ([(b"If-Modified-Since", b"Tuesday, 14-Nov-23 22:13:20 GMT")], 304),
        ([(b"If-Modified-Since", b"Tue Nov 14 22:13:20 2023")], 304),
        ([(b"If-Modified-Since", b"yesterday")], 200),
        ([(b"If-Modified-Since", b"")], 200),
        ([(b"If-Match", b'"a"')], 200),
        ([(b"If-Match", b"*")], 200),
        ([(b"If-Match", b'W/"a"')], 412),
        ([(b"If-Match", b'"b"')], 412),
        ([(b"If-Match", b'"b"'), (b"If-None-Match", b'"a"')], 412),
        ([(b"If-Unmodified-Since", EARLIER)], 412),
        ([(b"If-Unmodified-Since", DATE)], 200),
        ([(b"If-Match", b'"a"'), (b"If-Unmodified-Since", EARLIER)], 200),
    ],
)
def test_conditions(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """The order of the questions is the RFC's, for GET and HEAD alike."""
    assert chosen(*headers).status == status
    assert chosen(*headers, method="HEAD").status == status


@pytest.mark.parametrize(
    ("guard", "status"),
    [
        (b'"a"', 206),
        (b'"b"', 200),
        (b'W/"a"', 200),
        (DATE, 206),
        (EARLIER, 200),
        (LATER, 200),
        (b"nonsense", 200),
    ],
)
def test_if_range(guard: bytes, status: int) -> None:
    """A part is served only of the very file the client has a part of."""
    assert chosen((b"Range", b"bytes=0-9"), (b"If-Range", guard)).status == status


def test_a_weak_etag_never_holds_a_range() -> None:
    """Parts of two files that are only alike must not be put together."""
    asked = ((b"Range", b"bytes=0-9"), (b"If-Range", b'W/"a"'))
    assert chosen(*asked, etag=b'W/"a"') == WHOLE
    assert chosen((b"If-Match", b'W/"a"'), etag=b'W/"a"').status == 412
    assert chosen((b"If-None-Match", b'"a"'), etag=b'W/"a"').status == 304


def test_head_and_empty_files_have_no_ranges() -> None:
    """A Range counts for GET, and for files that have bytes."""
    assert chosen((b"Range", b"bytes=0-9"), method="HEAD") == WHOLE
    empty = select(make_request(headers=[(b"Range", b"bytes=0-9")]), 0, b"", NOW)
    assert empty == Selection(200, 0, 0)


def test_dates_go_both_ways() -> None:
    """What is written can be read, and what cannot be read is nothing."""
    assert format_date(NOW) == DATE
    for seconds in (0, 1, NOW, 4_102_444_800):
        assert parse_date(format_date(seconds)) == seconds
    for bad in (b"", b"x" * 100, b"\xff\xfe", b"Tue, 99 Foo 2023 99:99:99 GMT", b"0", b"Tue, 14 Nov 2023"):
        assert parse_date(bad) in (None, parse_date(b"Tue, 14 Nov 2023"))


@given(st.binary(max_size=64))
def test_no_date_raises(text: bytes) -> None:
    """Any bytes are a date or none."""
    assert isinstance(parse_date(text), int | None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"If-Match", b"If-None-Match", b"If-Range", b"Range"]), st.binary(max_size=40)
        )
    )
)
def test_no_header_raises(headers: list[tuple[bytes, bytes]]) -> None:
    """Any headers select something that is in the file."""
    selection = chosen(*headers)
    assert selection.status in (200, 206, 304, 412, 416)
    assert selection.offset + selection.length <= 1000
