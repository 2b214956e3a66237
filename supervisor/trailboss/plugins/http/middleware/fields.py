"""Header lists: looking up and merging, for every middleware alike. Pure.

A header list is never changed in place, since whoever made it may send it again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from trailboss.plugins.http.message import HeaderList

__all__ = ["encode_fields", "find_field", "with_vary", "without_fields"]


def find_field(headers: HeaderList, name: bytes) -> bytes | None:
    """Return the first value of `name` (lower case), or None."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def without_fields(headers: HeaderList, names: Container[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers whose names (lower case) are not among `names`."""
    return [field for field in headers if field[0].lower() not in names]


def with_vary(headers: HeaderList, *names: bytes) -> list[tuple[bytes, bytes]]:
    """Return `headers` with one Vary header that also names each of `names`; `Vary: *` says it all."""
    listed: list[bytes] = []
    for key, value in headers:
        if key.lower() == b"vary":
            listed += [part.strip() for part in value.split(b",") if part.strip()]
    if not listed:
        return [*without_fields(headers, (b"vary",)), (b"Vary", b", ".join(names))]
    if b"*" in listed:
        return list(headers)
    known = {part.lower() for part in listed}
    missing = [name for name in names if name.lower() not in known]
    if not missing:
        return list(headers)
    return [*without_fields(headers, (b"vary",)), (b"Vary", b", ".join(listed + missing))]


def encode_fields(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return configured headers as bytes. Raises ValueError, in words, for what may not stand in a head."""
    encoded = []
    for name, value in fields.items():
        if not name or not all(
            char.isascii() and (char.isalnum() or char in "!#$%&'*+-.^_`|~") for char in name
        ):
            raise ValueError(f"{name!r} is no header name")
        raw = value.strip().encode()
        if any((byte < 32 and byte != 9) or byte == 127 for byte in raw):
            raise ValueError(f"the value of {name} holds a control character")
        encoded.append((name.encode(), raw))
    return encoded
