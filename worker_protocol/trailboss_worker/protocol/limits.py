"""Parsers for text and data from outside, each with its limits in front.

A peer chooses what it sends, so nothing of it may decide how deep we recurse, how much we allocate or what a
number looks like: sizes are compared first, nesting is counted on the raw bytes before a recursive parser
sees them, NaN and infinities are refused (JSON has neither), and text becomes a number only if it consists
of ASCII digits. Everything that does not fit raises MessageError, never anything else. msgpack is imported
when it is first needed and replaced by a small codec of our own where it is not installed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Union

from trailboss_worker.protocol.errors import MessageError

DEPTH_MAX = 64
SIZE_BYTES_MAX = 128 * 1024 * 1024

Text = Union[bytes, bytearray, memoryview, str]  # noqa: UP007 - evaluated at run time by Python 3.9

_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_JSON_BRACKETS = re.compile(rb"[\[\]{}]")
_JSON_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def json_loads_limited(data: bytes, depth_max: int = DEPTH_MAX, size_max: int = SIZE_BYTES_MAX) -> object:
    """The value of a JSON text in UTF-8. Raises MessageError for anything malformed or beyond the limits."""
    if len(data) > size_max:
        raise MessageError(f"JSON text of {len(data)} bytes; the limit is {size_max}")
    if data.count(b"[") + data.count(b"{") > depth_max:
        _check_json_depth(data, depth_max)
    try:
        value: object = _JSON_DECODER.decode(data.decode("utf-8"))
        if _JSON_SURROGATE.search(data) is not None:
            # Half of a surrogate pair parses, but the text could never be written out again.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise MessageError(f"invalid JSON: {error}") from None
    return value


def msgpack_loads_limited(data: bytes, depth_max: int = DEPTH_MAX, size_max: int = SIZE_BYTES_MAX) -> object:
    """The value of one msgpack object. Raises MessageError; extension types and NaN are refused."""
    if len(data) > size_max:
        raise MessageError(f"msgpack data of {len(data)} bytes; the limit is {size_max}")
    try:
        value = _msgpack_functions()[1](data)
    except MessageError:
        raise
    except Exception as error:
        # The msgpack package raises a dozen types here, among them bare ValueError and TypeError.
        raise MessageError(f"invalid msgpack: {type(error).__name__}: {error}") from None
    _check_value(value, depth_max)
    return value


def msgpack_dumps(value: object) -> bytes:
    """One msgpack object: text as str, bytes as bin. Raises TypeError for what msgpack cannot say."""
    return _msgpack_functions()[0](value)


def parse_digits(text: Text, maximum: int) -> int:
    """The number that `text` spells in ASCII digits, 0 to `maximum`; no sign, space, underscore or exponent."""
    raw = text.encode("ascii", "replace") if isinstance(text, str) else bytes(text)
    if not raw.isdigit():
        raise MessageError(f"not a number of digits only: {raw[:32]!r}")
    if len(raw.lstrip(b"0")) > len(str(maximum)) or int(raw) > maximum:
        raise MessageError(f"number above {maximum}: {raw[:32]!r}")
    return int(raw)


def _check_json_depth(data: bytes, depth_max: int) -> None:
    """Counts brackets outside strings. What is no JSON at all is left to the parser, which sees it first."""
    depth = 0
    for bracket in _JSON_BRACKETS.findall(_JSON_STRING.sub(b"", data)):
        if bracket in b"[{":
            depth += 1
            if depth > depth_max:
                raise MessageError(f"JSON nested deeper than {depth_max} levels")
        else:
            depth -= 1


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number out of range: {text[:32]}")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


_JSON_DECODER = json.JSONDecoder(parse_float=_finite_float, parse_constant=_refuse)


def _check_value(value: object, depth_max: int) -> None:
    """Walks a parsed value without recursion: plain types, finite numbers, bounded depth."""
    pending: list[tuple[object, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, (list, dict)):
            if depth >= depth_max:
                raise MessageError(f"msgpack nested deeper than {depth_max} levels")
            if isinstance(item, dict):
                pending.extend((key, depth + 1) for key in item)
                item = list(item.values())
            pending.extend((child, depth + 1) for child in item)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise MessageError("a msgpack number that is not finite")
        elif item is not None and not isinstance(item, (bool, int, str, bytes)):
            raise MessageError(f"a msgpack extension type ({type(item).__name__})")


def _msgpack_functions() -> tuple[Callable[[object], bytes], Callable[[bytes], Any]]:
    """Pack and unpack of the msgpack package, or of the fallback; looked up when first needed."""
    try:
        import msgpack
    except ImportError:
        from trailboss_worker.protocol import msgpack_lite

        return msgpack_lite.packb, msgpack_lite.unpackb
    return msgpack.packb, msgpack.unpackb
