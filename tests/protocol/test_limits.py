"""Parsers for outside data: what is taken, what is refused, and that nothing else can happen."""

from __future__ import annotations

import json
import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss_worker.protocol import limits, msgpack_lite
from trailboss_worker.protocol.errors import MessageError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
msgpack_values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_round_trip(value: object) -> None:
    """Whatever JSON can say comes back as it was, written with or without escapes."""
    assert value == limits.json_loads_limited(json.dumps(value).encode(), depth_max=200)
    assert value == limits.json_loads_limited(json.dumps(value, ensure_ascii=False).encode(), depth_max=200)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"nul", b"{", b'{"a":1}x', b"\xef\xbb\xbf{}", b"\xff", b"'a'", b"[1,]", b"\x00", b'"\n"'),
        *(
            b"NaN",
            b"[Infinity]",
            b"-Infinity",
            b"1e999",
            b'{"a":-1e999}',
            b"01",
            b"+1",
            b"1_000",
            "１２".encode(),
        ),
        *(b'"\\ud800"', b'{"\\uDFFF":1}', b"9" * 100_000),
    ],
)
def test_json_refused(text: bytes) -> None:
    """Malformed texts, numbers that are none, and halves of characters are refused."""
    with pytest.raises(MessageError):
        limits.json_loads_limited(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":['])
def test_json_depth(opening: bytes) -> None:
    """Ten thousand levels are counted, not recursed into; brackets inside texts do not count."""
    with pytest.raises(MessageError, match="nested deeper"):
        limits.json_loads_limited(opening * 10_000)
    assert limits.json_loads_limited(b"[" * 64 + b"]" * 64) is not None
    with pytest.raises(MessageError, match="nested deeper"):
        limits.json_loads_limited(b"[" * 65 + b"]" * 65)
    text = "[{" * 500 + '"\\'
    assert limits.json_loads_limited(json.dumps({"a": text, "b": [[text]]}).encode()) == {
        "a": text,
        "b": [[text]],
    }


def test_json_wide_is_not_deep() -> None:
    """Many brackets side by side are fine."""
    assert limits.json_loads_limited(b"[" + b"[[]]," * 1000 + b"{}]") == [[[]]] * 1000 + [{}]


@pytest.mark.parametrize("load", [limits.json_loads_limited, limits.msgpack_loads_limited])
def test_size(load: object) -> None:
    """Larger than the limit is refused before it is looked at."""
    with pytest.raises(MessageError, match="the limit is 9"):
        load(b"x" * 10, size_max=9)  # type: ignore[operator] # both are functions of this signature


@given(msgpack_values)
def test_msgpack_round_trip(value: object) -> None:
    """The package and our fallback write and read the same bytes."""
    packed = msgpack.packb(value)

    assert packed == msgpack_lite.packb(value)
    assert packed == limits.msgpack_dumps(value)
    assert value == msgpack_lite.unpackb(packed)
    assert value == limits.msgpack_loads_limited(packed, depth_max=200)


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_msgpack_sizes(size: int) -> None:
    """Every form of a length is written as the package writes it."""
    for value in ("x" * size, b"x" * size, list(range(size)), {str(n): n for n in range(size)}):
        packed = msgpack.packb(value)
        assert packed == msgpack_lite.packb(value)
        assert value == msgpack_lite.unpackb(packed)


@settings(max_examples=500)
@given(st.binary(max_size=40))
def test_msgpack_garbage(data: bytes) -> None:
    """Garbage is a value or a MessageError, and the fallback takes nothing that the package refuses."""
    try:
        ours: object = msgpack_lite.unpackb(data)
    except MessageError:
        ours = MessageError
    try:
        limited: object = limits.msgpack_loads_limited(data)
    except MessageError:
        return
    assert repr(limited) == repr(ours)


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 10_000 + b"\xc0",
        b"\x81\xa1a" * 200 + b"\xc0",
        msgpack.packb(math.nan),
        msgpack.packb([math.inf]),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1)),
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\x90\xc0",
        b"\xa1\xff",
        b"\xc0\xc0",
        b"\xc1",
        b"",
    ],
)
def test_msgpack_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep, endless, not finite, extended or malformed data is refused, with the package and without."""
    with pytest.raises(MessageError):
        limits.msgpack_loads_limited(data)
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(MessageError):
        limits.msgpack_loads_limited(data)


def test_msgpack_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package cannot be imported the fallback does the work."""
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)

    assert limits.msgpack_dumps({"a": [1, None]}) == b"\x81\xa1a\x92\x01\xc0"
    assert limits.msgpack_loads_limited(b"\x81\xa1a\x92\x01\xc0") == {"a": [1, None]}


def test_msgpack_unpackable() -> None:
    """What msgpack cannot say is refused when writing."""
    for value, error in (
        (object(), TypeError),
        ({1, 2}, TypeError),
        (2**64, OverflowError),
        (-(2**63) - 1, OverflowError),
    ):
        with pytest.raises(error):
            msgpack_lite.packb(value)
    deep: list[object] = []
    for _ in range(600):
        deep = [deep]
    with pytest.raises(ValueError):
        msgpack_lite.packb(deep)


def test_parse_digits() -> None:
    """Digits, and nothing that Python's int would also take."""
    assert [limits.parse_digits(text, 200) for text in ("0", b"7", "200", bytearray(b"00010"))] == [
        0,
        7,
        200,
        10,
    ]
    for text in ("", "-1", "+1", " 1", "1 ", "1_0", "0x1", "1.0", "1e3", "٣", "201", "9" * 10_000):
        with pytest.raises(MessageError):
            limits.parse_digits(text, 200)
