"""HPACK THAT REMEMBERS: the library's encoder and decoder, asked only for what has not been said before.

Requests of one client and answers to it repeat themselves, and a block of fields that changes no table means the same as
long as the table is the same. So the decoder keeps such blocks with their fields, the encoder keeps each field with its
bytes, and both forget everything when their table changes. Both memories are small and belong to one connection.

The encoder puts a field into the table when it comes a second time. What never repeats (lengths, cookies, identifiers) then
never pushes out what does, and no secret of an answer that came once is in a table that an attacker could compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from hpack import Decoder, Encoder
from hpack.hpack import encode_integer
from hpack.struct import HeaderTuple

__all__ = ["RememberingDecoder", "RememberingEncoder", "WithholdingDecoder"]

Field = tuple[bytes, bytes]

BLOCKS_MAX: Final = 64
BLOCK_BYTES_MAX: Final = 256
FIELDS_MAX: Final = 128
FIELD_BYTES_MAX: Final = 256
#: Never in a table, however often they come (RFC 7541, 7.1.3).
_SECRET: Final = frozenset((b"set-cookie", b"authorization", b"proxy-authorization", b"www-authenticate"))


class RememberingDecoder(Decoder):
    """A decoder; blocks that changed nothing are decoded once."""

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self._known: dict[bytes, Iterable[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Return the fields of a block. Raises HPACKError. The result must not be changed."""
        key = bytes(data)
        known = self._known.get(key)
        if known is not None:
            return known
        table = self.header_table
        entries = table.dynamic_entries
        # A new entry is always the first one, and another object as long as we hold on to the one before.
        first, count, size = entries[0] if entries else None, len(entries), table.maxsize
        fields = super().decode(data, raw)
        if (entries[0] if entries else None) is not first or (len(entries), table.maxsize) != (count, size):
            self._known.clear()
        elif len(key) <= BLOCK_BYTES_MAX:
            if len(self._known) >= BLOCKS_MAX:
                self._known.clear()
            self._known[key] = fields
        return fields


class WithholdingDecoder(RememberingDecoder):
    """A decoder that keeps the fields of the block it was given last, and says that there were none.

    The library has opinions about fields that no configuration takes from it (Content-Length, `:status`), and ends the
    connection over each; RFC 9113, 8.1.1 has the request reset and no other. What it does not see it cannot object to.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        #: What the last block said; must not be changed.
        self.fields: Sequence[Field] = ()

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Keep the fields of a block and return none. Raises HPACKError."""
        fields = super().decode(data, raw)
        self.fields = fields if isinstance(fields, list) else list(fields)
        return ()


class RememberingEncoder(Encoder):
    """An encoder; fields that come again are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Field, bytes] = {}
        self._seen: set[Field] = set()

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        """Return the block for fields of bytes."""
        known = self._known
        parts = []
        if self.table_size_changes:  # `resized` forgets a change that is followed by the same size once more
            parts.append(self._encode_table_size_change())
            self.header_table.resized = False
            known.clear()
        for field in headers:
            part = known.get(field)
            parts.append(part if part is not None else self._encode_field(field))
        return b"".join(parts)

    def _encode_field(self, field: Field) -> bytes:
        name, value = field
        found = self.header_table.search(name, value)
        if found is not None and found[2] is not None:
            if len(self._known) >= FIELDS_MAX:
                self._known.clear()
            part = self._known[field] = self._encode_indexed(found[0])
            return part
        if field in self._seen and name not in _SECRET:
            self._seen.discard(field)
            self._known.clear()  # every index moves
            return self.add(field, sensitive=False, huffman=True)
        if len(name) + len(value) <= FIELD_BYTES_MAX:
            if len(self._seen) >= FIELDS_MAX:
                self._seen.clear()
            self._seen.add(field)
        if name in _SECRET:
            return self.add(field, sensitive=True)
        return _literal(found[0] if found is not None else 0, name, value)


def _literal(index: int, name: bytes, value: bytes) -> bytes:
    """A field that stays out of the table (RFC 7541, 6.2.2); its name is that of `index`, unless that is 0."""
    if index:
        return bytes(encode_integer(index, 4)) + bytes(encode_integer(len(value), 7)) + value
    return b"\x00" + bytes(encode_integer(len(name), 7)) + name + bytes(encode_integer(len(value), 7)) + value
