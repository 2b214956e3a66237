"""proto3 messages from tables: a small codec for the few messages that Python workers need.

A message is a `Message` table of `Field`s; its value is a plain dict with every field in it: zero values for what
was absent, None for absent `optional` and message fields, lists for repeated ones, dicts for maps. Rules of the
format that matter: unknown fields are skipped (groups included), the last scalar wins, messages merge, a map
entry is a message {1 key, 2 value} in which a missing part is empty, a negative int is a 10-byte varint, zero
values are not written unless the field is `optional`. Malformed input, text that is no UTF-8, and what is beyond the
limits of size and depth raise MessageError and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from trailboss_worker.protocol.errors import LocalProtocolError, MessageError

DEPTH_MAX = 32
SIZE_BYTES_MAX = 128 * 1024 * 1024

VARINT, FIXED64, BYTES, GROUP_START, GROUP_END, FIXED32 = range(6)

# Scalar kind -> wire type and zero value.
_SCALARS: dict[str, tuple[int, object]] = {
    "int32": (VARINT, 0),
    "int64": (VARINT, 0),
    "uint32": (VARINT, 0),
    "uint64": (VARINT, 0),
    "bool": (VARINT, False),
    "fixed32": (FIXED32, 0),
    "float": (FIXED32, 0.0),
    "fixed64": (FIXED64, 0),
    "double": (FIXED64, 0.0),
    "string": (BYTES, ""),
    "bytes": (BYTES, b""),
}
_FIXED_LAYOUTS = {"fixed32": "<I", "float": "<f", "fixed64": "<Q", "double": "<d"}
_FIELD_NUMBER_MAX = 2**29 - 1
_MASK64 = 2**64 - 1


class Field(NamedTuple):
    """One field. `kind` is a scalar kind, "message" or "map" (text keys; `message` is the value's table)."""

    number: int
    name: str
    kind: str
    repeated: bool = False
    optional: bool = False
    message: Message | None = None
    map_value: str = "string"


class Message:
    """The table of one message type: decode and encode are methods of it."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = {field.number: field for field in fields}
        self._tags: dict[int, Field] = {}
        self._ordered = tuple(sorted(fields))
        for field in fields:
            wire_type = _SCALARS[field.kind][0] if field.kind in _SCALARS else BYTES
            if field.repeated and wire_type != BYTES:
                raise ValueError(
                    f"{name}.{field.name}: repeated numbers (they may be packed) are not supported"
                )
            self._tags[field.number << 3 | wire_type] = field

    def __repr__(self) -> str:
        return f"<Message {self.name}>"

    def default(self) -> dict[str, Any]:
        """The value of an empty message."""
        return {field.name: _zero(field) for field in self._ordered}

    def decode(
        self, data: bytes, *, depth_max: int = DEPTH_MAX, size_max: int = SIZE_BYTES_MAX
    ) -> dict[str, Any]:
        """The value that `data` holds. Raises MessageError."""
        if len(data) > size_max:
            raise MessageError(f"{self.name} of {len(data)} bytes; the limit is {size_max}")
        value = self.default()
        self._merge(value, data, 0, len(data), depth_max)
        return value

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """The bytes of a value; absent keys are absent fields. Raises LocalProtocolError for an unknown key."""
        parts: list[bytes] = []
        known = 0
        for field in self._ordered:
            if field.name in value:
                known += 1
                _encode_field(field, value[field.name], parts)
        if known != len(value):
            raise LocalProtocolError(f"{self.name} has no field {sorted(set(value) - set(self.default()))}")
        return b"".join(parts)

    def _merge(self, value: dict[str, Any], data: bytes, position: int, stop: int, depth: int) -> None:
        """Reads the fields in data[position:stop] into `value`."""
        if depth < 0:
            raise MessageError(f"{self.name} nested too deeply")
        tags = self._tags
        while position < stop:
            tag, position = _read_tag(data, position, stop)
            field = tags.get(tag)
            if field is None:
                position = _skip(data, position, stop, tag, depth)
            elif tag & 7 != BYTES:
                value[field.name], position = _read_number(field.kind, data, position, stop)
            else:
                length, position = _read_varint(data, position, stop)
                end = position + length
                if end > stop:
                    raise MessageError(f"{self.name}.{field.name} is longer than what holds it")
                self._set(value, field, data, position, end, depth)
                position = end

    def _set(
        self, value: dict[str, Any], field: Field, data: bytes, start: int, end: int, depth: int
    ) -> None:
        """Stores a length-delimited field."""
        name = field.name
        if field.kind == "map":
            key, item = _read_map_entry(field, data, start, end, depth - 1)
            value[name][key] = item
        elif field.kind == "message":
            assert field.message is not None
            if field.repeated or value[name] is None:
                target = field.message.default()
                field.message._merge(target, data, start, end, depth - 1)
                if field.repeated:
                    value[name].append(target)
                else:
                    value[name] = target
            else:
                field.message._merge(value[name], data, start, end, depth - 1)
        else:
            item = data[start:end] if field.kind == "bytes" else _text(field, data[start:end])
            if field.repeated:
                value[name].append(item)
            else:
                value[name] = item


def _zero(field: Field) -> object:
    if field.kind == "map":
        return {}
    if field.repeated:
        return []
    if field.optional or field.kind == "message":
        return None
    return _SCALARS[field.kind][1]


def _text(field: Field, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MessageError(f"{field.name} is no UTF-8") from None


def _read_varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """An unsigned 64-bit number and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            raise MessageError("a number ends inside a message")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                raise MessageError("a number of more than 64 bits")
            return result, position
    raise MessageError("a number of more than ten bytes")


def _read_tag(data: bytes, position: int, stop: int) -> tuple[int, int]:
    tag, position = _read_varint(data, position, stop)
    if not 0 < tag >> 3 <= _FIELD_NUMBER_MAX:
        raise MessageError(f"field number {tag >> 3}")
    return tag, position


def _read_number(kind: str, data: bytes, position: int, stop: int) -> tuple[object, int]:
    layout = _FIXED_LAYOUTS.get(kind)
    if layout is not None:
        end = position + struct.calcsize(layout)
        if end > stop:
            raise MessageError("a number ends inside a message")
        return struct.unpack_from(layout, data, position)[0], end
    raw, position = _read_varint(data, position, stop)
    if kind == "bool":
        return raw != 0, position
    if kind in ("int32", "uint32"):
        raw &= 0xFFFFFFFF
        return (raw - 2**32 if kind == "int32" and raw >= 2**31 else raw), position
    return (raw - 2**64 if kind == "int64" and raw >= 2**63 else raw), position


def _read_map_entry(field: Field, data: bytes, position: int, stop: int, depth: int) -> tuple[str, Any]:
    """Key and value of a map entry; what is missing is empty, what comes twice counts once."""
    entry = _entry_table(field).default()
    _entry_table(field)._merge(entry, data, position, stop, depth)
    item = entry["value"]
    if item is None:
        assert field.message is not None
        item = field.message.default()
    return entry["key"], item


_entry_tables: dict[Field, Message] = {}


def _entry_table(field: Field) -> Message:
    """The message {1 key, 2 value} of a map's entries; a table is made once per map field."""
    table = _entry_tables.get(field)
    if table is None:
        value_kind = "message" if field.message is not None else field.map_value
        table = Message(
            f"{field.name} entry",
            Field(1, "key", "string"),
            Field(2, "value", value_kind, message=field.message),
        )
        _entry_tables[field] = table
    return table


def _skip(data: bytes, position: int, stop: int, tag: int, depth: int) -> int:
    """The position behind an unknown field, groups included."""
    groups = [0]  # field numbers of the open groups, innermost last; 0 stands for the message itself
    while True:
        wire_type = tag & 7
        if wire_type == GROUP_START:
            if len(groups) > depth:
                raise MessageError("groups nested too deeply")
            groups.append(tag >> 3)
        elif wire_type == GROUP_END:
            if groups.pop() != tag >> 3:
                raise MessageError("a group that was not opened ends")
        else:
            position = _skip_value(data, position, stop, wire_type)
        if len(groups) == 1:
            return position
        tag, position = _read_tag(data, position, stop)


def _skip_value(data: bytes, position: int, stop: int, wire_type: int) -> int:
    if wire_type == VARINT:
        return _read_varint(data, position, stop)[1]
    if wire_type == BYTES:
        length, position = _read_varint(data, position, stop)
    elif wire_type in (FIXED32, FIXED64):
        length = 4 if wire_type == FIXED32 else 8
    else:
        raise MessageError(f"wire type {wire_type}")
    if position + length > stop:
        raise MessageError("a field is longer than what holds it")
    return position + length


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_field(field: Field, value: Any, parts: list[bytes]) -> None:
    kind = field.kind
    if kind == "map":
        entry_table = _entry_table(field)
        for key, item in value.items():
            # Both parts are written even when they are empty, as every protobuf library does.
            entry: list[bytes] = []
            _encode_value(entry_table.fields[1], key, entry)
            _encode_value(entry_table.fields[2], item, entry)
            _encode_delimited(field.number, b"".join(entry), parts)
    elif field.repeated:
        for item in value:
            _encode_value(field, item, parts)
    elif value is None:
        if not field.optional and kind != "message":
            raise LocalProtocolError(f"{field.name} cannot be None")
    elif field.optional or kind == "message" or not _is_zero(kind, value):
        _encode_value(field, value, parts)


def _is_zero(kind: str, value: Any) -> bool:
    if kind in ("float", "double"):
        return value == 0 and struct.pack("<d", value) == bytes(8)  # -0.0 is written
    return bool(value == _SCALARS[kind][1])


def _encode_value(field: Field, value: Any, parts: list[bytes]) -> None:
    kind = field.kind
    if kind == "string":
        _encode_delimited(field.number, value.encode("utf-8"), parts)
    elif kind == "bytes":
        _encode_delimited(field.number, bytes(value), parts)
    elif kind == "message":
        assert field.message is not None
        _encode_delimited(field.number, field.message.encode(value), parts)
    elif kind in _FIXED_LAYOUTS:
        parts.append(_varint(field.number << 3 | _SCALARS[kind][0]))
        parts.append(struct.pack(_FIXED_LAYOUTS[kind], value))
    else:
        parts.append(_varint(field.number << 3 | VARINT))
        parts.append(_varint(_checked_int(field, int(value)) & _MASK64))


def _encode_delimited(number: int, raw: bytes, parts: list[bytes]) -> None:
    parts.append(_varint(number << 3 | BYTES) + _varint(len(raw)))
    parts.append(raw)


_INT_RANGES = {
    "int32": (-(2**31), 2**31),
    "int64": (-(2**63), 2**63),
    "uint32": (0, 2**32),
    "uint64": (0, 2**64),
    "bool": (0, 2),
}


def _checked_int(field: Field, value: int) -> int:
    low, high = _INT_RANGES[field.kind]
    if not low <= value < high:
        raise LocalProtocolError(f"{field.name}: {value} does not fit {field.kind}")
    return value
