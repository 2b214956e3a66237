"""Conditional requests and ranges: what of a file a client gets. Pure.

The order of the questions is that of RFC 9110, 13.2.2. One range is served; several that make one stretch are served as
that stretch, and several apart get the whole file, which a server may always answer: a multipart answer is more work for
both sides than it saves, and has been a way to make servers work. A Range that cannot be read is no Range.
"""

from __future__ import annotations

import calendar
import re
from email.utils import formatdate, parsedate_tz
from functools import lru_cache
from typing import Final, NamedTuple

from trailboss.plugins.http.message import Request

__all__ = ["Selection", "format_date", "parse_date", "parse_ranges", "select"]

_RANGES_MAX: Final = 16
_RANGE: Final = re.compile(rb"[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*")
_ETAG: Final = re.compile(rb'[ \t]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)')


class Selection(NamedTuple):
    """What to answer: 200, 206, 304, 412 or 416, and for the first two which part of the file."""

    status: int
    offset: int
    length: int


def select(request: Request, size: int, etag: bytes, modified_seconds: int) -> Selection:
    """Decide what `request` gets of a file of `size` bytes with this ETag (b"" for none) and time (unix, whole seconds)."""
    conditions: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name[:2] in _FIRST_LETTERS:
            lowered = name.lower()
            if lowered in _CONDITIONS:
                earlier = conditions.get(lowered)
                conditions[lowered] = value if earlier is None else earlier + b", " + value
    whole = Selection(200, 0, size)
    if not conditions:
        return whole
    status = _precondition(conditions, etag, modified_seconds)
    if status:
        return Selection(status, 0, 0)
    wanted = conditions.get(b"range")
    if wanted is None or request.method != "GET" or not size:
        return whole
    guard = conditions.get(b"if-range")
    if guard is not None and not _range_holds(guard, etag, modified_seconds):
        return whole
    return parse_ranges(wanted, size) or whole


_CONDITIONS: Final = frozenset(
    {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range"}
)
_FIRST_LETTERS: Final = frozenset({b"if", b"If", b"IF", b"iF", b"ra", b"Ra", b"RA", b"rA"})


def _precondition(conditions: dict[bytes, bytes], etag: bytes, modified_seconds: int) -> int:
    match = conditions.get(b"if-match")
    if match is not None:
        if not _etag_listed(match, etag, weakly=False):
            return 412
    else:
        unmodified_since = parse_date(conditions.get(b"if-unmodified-since"))
        if unmodified_since is not None and modified_seconds > unmodified_since:
            return 412
    none_match = conditions.get(b"if-none-match")
    if none_match is not None:
        return 304 if _etag_listed(none_match, etag, weakly=True) else 0
    modified_since = parse_date(conditions.get(b"if-modified-since"))
    return 304 if modified_since is not None and modified_seconds <= modified_since else 0


def _etag_listed(listed: bytes, etag: bytes, weakly: bool) -> bool:
    if listed.strip() == b"*":
        return True
    if not etag or (not weakly and etag.startswith(b"W/")):
        return False
    opaque = etag.removeprefix(b"W/")
    position = 0
    while position < len(listed):
        match = _ETAG.match(listed, position)
        if match is None:
            return False
        if match[2] == opaque and (weakly or not match[1]):
            return True
        position = match.end()
    return False


def _range_holds(guard: bytes, etag: bytes, modified_seconds: int) -> bool:
    guard = guard.strip()
    if guard.startswith((b'"', b"W/")):
        return bool(etag) and guard == etag and not etag.startswith(b"W/")
    return parse_date(guard) == modified_seconds


def parse_ranges(value: bytes, size: int) -> Selection | None:
    """Return what a Range header asks for: one stretch, 416 where nothing of it exists, None for the whole file."""
    unit, equals, text = value.partition(b"=")
    if not equals or unit.strip().lower() != b"bytes":
        return None
    parts = text.split(b",")
    if len(parts) > _RANGES_MAX:
        return None
    stretches: list[tuple[int, int]] = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        if match is None or not (match[1] or match[2]):
            return None
        if not match[1]:
            first, last = max(0, size - int(match[2])), size - 1
        else:
            first, last = int(match[1]), int(match[2]) if match[2] else size - 1
            if match[2] and first > last:
                return None
            last = min(last, size - 1)
        if first < size and first <= last:
            stretches.append((first, last))
    if not stretches:
        return Selection(416, 0, 0)
    stretches.sort()
    begin, end = stretches[0]
    for first, last in stretches[1:]:
        if first > end + 1:
            return None
        end = max(end, last)
    return Selection(206, begin, end - begin + 1)


@lru_cache(maxsize=1024)
def format_date(seconds: int) -> bytes:
    """Return a unix time as HTTP writes it."""
    return formatdate(seconds, usegmt=True).encode()


@lru_cache(maxsize=1024)
def parse_date(value: bytes | None) -> int | None:
    """Return the unix time of an HTTP date; None for none, or for what cannot be read."""
    if not value or len(value) > 64:
        return None
    try:
        parsed = parsedate_tz(value.decode("ascii"))
        if parsed is None:
            return None
        return calendar.timegm((*parsed[:6], 0, 0, 0)) - (parsed[9] or 0)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
