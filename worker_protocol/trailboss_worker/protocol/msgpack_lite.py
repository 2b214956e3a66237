"""msgpack in plain Python: what `limits` uses where the msgpack package is not installed.

Covers what RPC arguments and contexts consist of: nil, booleans, integers, 64-bit floats, text, bytes, lists and
maps whose keys are text or bytes. Extension types are refused. Reading keeps its own stack instead of
recursing, so nesting costs memory in proportion to the input and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from trailboss_worker.protocol.errors import MessageError

# First byte -> struct format of a number that follows.
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
# First byte -> (what follows, struct format of its length).
_SIZED = {
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}
_SIZES = ((">B", 2**8), (">H", 2**16), (">I", 2**32))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def packb(value: object) -> bytes:
    """One msgpack object. Raises TypeError for other types, OverflowError for integers beyond 64 bits."""
    parts: list[bytes] = []
    _pack(value, parts.append, 0)
    return b"".join(parts)


def unpackb(data: bytes) -> object:
    """The value of exactly one msgpack object. Raises MessageError."""
    reader = _Reader(data)
    # One entry per open container: the container, how many values are missing, the key waiting for its value.
    stack: list[list[object]] = []
    while True:
        value, children = reader.item()
        if children:
            stack.append([value, children, _NO_KEY])
            continue
        while stack:
            if not _close_value(stack[-1], value):
                break
            value = stack.pop()[0]
        else:
            if reader.position != len(data):
                raise MessageError(f"{len(data) - reader.position} bytes after the msgpack object")
            return value


_NO_KEY = object()


def _close_value(entry: list[object], value: object) -> bool:
    """Puts a finished value into the innermost open container; tells whether that container is whole now."""
    container, missing, key = entry
    assert isinstance(missing, int)
    if isinstance(container, list):
        container.append(value)
    elif key is _NO_KEY:
        if not isinstance(value, (str, bytes)):
            raise MessageError(f"a msgpack map key that is neither text nor bytes ({type(value).__name__})")
        entry[2] = value
    else:
        assert isinstance(container, dict)
        container[key] = value
        entry[2] = _NO_KEY
    entry[1] = missing - 1
    return missing == 1


class _Reader:
    """Reads item after item: a finished value, or an empty container and the number of values that follow."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        start = self.position
        if size > len(self.data) - start:
            raise MessageError("msgpack data ends inside an object")
        self.position = start + size
        return self.data[start : self.position]

    def number(self, layout: str) -> int | float:
        value: int | float = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def item(self) -> tuple[object, int]:
        first = self.take(1)[0]
        if first < 0x80:
            return first, 0
        if first >= 0xE0:
            return first - 256, 0
        if first < 0xC0:
            kind, size = _short_form(first)
            return self.sized(kind, size)
        if first in _CONSTANTS:
            return _CONSTANTS[first], 0
        if first in _NUMBERS:
            return self.number(_NUMBERS[first]), 0
        if first in _SIZED:
            kind, layout = _SIZED[first]
            return self.sized(kind, int(self.number(layout)))
        raise MessageError(f"a msgpack extension type (0x{first:02x})")

    def sized(self, kind: str, size: int) -> tuple[object, int]:
        if kind == "bin":
            return self.take(size), 0
        if kind == "str":
            try:
                return self.take(size).decode("utf-8"), 0
            except UnicodeDecodeError:
                raise MessageError("msgpack text that is no UTF-8") from None
        values = size if kind == "array" else 2 * size
        if values > len(self.data) - self.position:  # every value takes a byte at least
            raise MessageError("msgpack data ends inside an object")
        return ([] if kind == "array" else {}), values


def _short_form(first: int) -> tuple[str, int]:
    if first < 0x90:
        return "map", first & 0x0F
    if first < 0xA0:
        return "array", first & 0x0F
    return "str", first & 0x1F


def _pack(value: object, emit: Callable[[bytes], None], depth: int) -> None:
    if depth > 512:
        raise ValueError("msgpack value nested deeper than 512 levels")
    if value is None:
        emit(b"\xc0")
    elif isinstance(value, bool):
        emit(b"\xc3" if value else b"\xc2")
    elif isinstance(value, int):
        emit(_packed_int(value))
    elif isinstance(value, float):
        emit(b"\xcb" + struct.pack(">d", value))
    elif isinstance(value, str):
        raw = value.encode("utf-8")
        emit(_packed_size(len(raw), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + raw)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        emit(_packed_size(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value)
    elif isinstance(value, (list, tuple)):
        emit(_packed_size(len(value), 0x90, 16, (0, 0xDC, 0xDD)))
        for child in value:
            _pack(child, emit, depth + 1)
    elif isinstance(value, dict):
        emit(_packed_size(len(value), 0x80, 16, (0, 0xDE, 0xDF)))
        for key, child in value.items():
            _pack(key, emit, depth + 1)
            _pack(child, emit, depth + 1)
    else:
        raise TypeError(f"msgpack has no {type(value).__name__}")


def _packed_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    for first, layout, low, high in (
        (0xCC, ">B", 0, 2**8),
        (0xCD, ">H", 0, 2**16),
        (0xCE, ">I", 0, 2**32),
        (0xCF, ">Q", 0, 2**64),
        (0xD0, ">b", -(2**7), 0),
        (0xD1, ">h", -(2**15), 0),
        (0xD2, ">i", -(2**31), 0),
        (0xD3, ">q", -(2**63), 0),
    ):
        if low <= value < high:
            return bytes((first,)) + struct.pack(layout, value)
    raise OverflowError(f"msgpack has no integer as large as {value}")


def _packed_size(size: int, short: int, short_below: int, firsts: tuple[int, int, int]) -> bytes:
    """The head of text, bytes, list or map; `firsts` are the first bytes of the 8, 16 and 32-bit forms (0: none)."""
    if size < short_below:
        return bytes((short | size,))
    for first, (layout, below) in zip(firsts, _SIZES):  # noqa: B905 - strict= needs Python 3.10
        if first and size < below:
            return bytes((first,)) + struct.pack(layout, size)
    raise OverflowError(f"msgpack has no object of {size} bytes or items")
