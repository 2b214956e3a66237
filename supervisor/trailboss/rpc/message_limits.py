"""How much memory a protobuf argument may turn into: a look at its elements before the parser sees it.

Two bytes on the wire are enough for an empty message in a repeated field, which costs about a hundred bytes once
parsed; a frame at its limit would become gigabytes. So arguments above a threshold are walked first, field by field,
following the generated descriptors, and refused when they hold too many elements. Small arguments, that is nearly all
of them, are not walked.
"""

from __future__ import annotations

from typing import Final, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

__all__ = ["check_message_size", "count_elements"]

#: Arguments up to this many bytes are parsed without a look.
WALK_ABOVE_BYTES: Final = 256 * 1024
#: Most fields of all levels together in one argument.
ELEMENTS_MAX: Final = 200_000
#: Deeper messages are left to the parser, which has its own limit (100 levels).
_LEVELS_MAX: Final = 100


def check_message_size(kind: type[Message], data: bytes) -> str:
    """Return what is wrong with the size of `data` as a message of `kind`, or ""."""
    if len(data) <= WALK_ABOVE_BYTES:
        return ""
    if count_elements(cast(Descriptor, kind.DESCRIPTOR), data, ELEMENTS_MAX) > ELEMENTS_MAX:
        return f"a message with more than {ELEMENTS_MAX} elements"
    return ""


def count_elements(descriptor: Descriptor, data: bytes, limit: int) -> int:
    """Return how many fields `data` holds, those of nested messages included; stops above `limit`.

    Bytes that are no message end the count of that level: the parser will refuse them.
    """
    count = 0
    tables: dict[Descriptor, dict[int, Descriptor]] = {}
    todo: list[tuple[Descriptor, int, int, int]] = [(descriptor, 0, len(data), 0)]
    while todo and count <= limit:
        message, position, end, level = todo.pop()
        nested = tables.get(message)
        if nested is None:
            nested = tables[message] = _nested_messages(message)
        while position < end and count <= limit:
            count += 1
            tag, position = _varint(data, position, end)
            wire_type = tag & 7
            if wire_type == 0:
                _, position = _varint(data, position, end)
            elif wire_type == 1:
                position += 8
            elif wire_type == 5:
                position += 4
            elif wire_type == 2:
                length, position = _varint(data, position, end)
                inner = nested.get(tag >> 3)
                if inner is not None and length and level < _LEVELS_MAX and position + length <= end:
                    todo.append((inner, position, position + length, level + 1))
                position += length
            else:
                break
    return count


def _nested_messages(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return field number -> message of every field that holds messages."""
    return {
        field.number: field.message_type
        for field in descriptor.fields
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None
    }


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return (value, position behind it); a varint that does not end gives (7, end), which no field has."""
    byte = data[position] if position < end else 0xFF
    if byte < 0x80:
        return byte, position + 1
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    return 7, end
