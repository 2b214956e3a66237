"""ANSWER TO HEAD: nothing a worker says reaches a client unchecked.

A worker's application may copy what a stranger wrote into a header; what leaves here is one status from 100 to 599,
names that are tokens, values without control characters, and no word about framing or the connection, which are the
responder's. A Content-Length is believed only where it agrees with the body. Whatever does not fit is a BadAnswer: the
client gets a 502, the log one line, and no byte of it is sent.

Connection, Keep-Alive and the like are left out silently, as is a Transfer-Encoding of `chunked`: applications copy
them from answers they got elsewhere. Any other transfer coding means that the body is not what it seems.

Heads repeat themselves, so checked ones are remembered, by flags and context. Of the others most are plain, and the C code
of `native` reads them; only the reference refuses. All of this is pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from trailboss.plugins.http.h1 import EncodedHeaders
from trailboss.plugins.http.native import AnswerReader
from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.protocol.frames import GOB, MSGPACK, PROTO, RAW
from trailboss_worker.protocol.http_message import decode_answer_context
from trailboss_worker.protocol.limits import json_loads_limited, parse_digits

__all__ = [
    "EMPTY_HEAD",
    "AnswerHead",
    "BadAnswer",
    "check_length",
    "has_no_body",
    "parse_head",
    "parse_plain",
    "parse_reference",
    "parse_trailers",
]

Headers = tuple[tuple[bytes, bytes], ...]


class BadAnswer(Exception):
    """What a worker answered cannot be sent; the text says why, without quoting more than a few bytes."""


class AnswerHead(NamedTuple):
    """A checked head. `headers` hold nothing about framing."""

    status: int
    headers: Headers
    #: Content-Length as the worker announced it.
    length: int | None = None
    #: Headers that are to follow the body, as far as they are known now.
    trailers: Headers = ()
    #: Lower-case names that the worker announced as trailers.
    trailer_names: frozenset[bytes] = frozenset()
    #: The usual case: a final status whose answer has a body, without trailers.
    plain: bool = True


EMPTY_HEAD: Final = AnswerHead(200, ())
"""What an answer with an empty context means: only the body counts."""

CONTEXT_LENGTH_MAX: Final = 1 << 20
"""Bytes of a context; no client takes a head of that size."""
HEADERS_MAX: Final = 1000
MEMORY_MAX: Final = 1024
_REMEMBERED_LENGTH_MAX: Final = 1024
_LENGTH_MAX: Final = (1 << 62) - 1

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: Said by the responder, or meant for another connection.
_LEFT_OUT: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"date", b"server"}
)
#: Never trailers (RFC 9110 6.5.1): they say how to read the message, or must be known before its body.
_NO_TRAILERS: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"host",
        b"location",
        b"set-cookie",
        b"trailer",
        b"transfer-encoding",
        b"www-authenticate",
    }
    | _LEFT_OUT
)

#: Those that are no header like any other.
_SPECIAL: Final = _LEFT_OUT | {b"content-length", b"trailer", b"transfer-encoding"}
_OTHER_CODECS: Final = RAW | MSGPACK | GOB
_NO_JSON: Final = PROTO | _OTHER_CODECS

_reader: Final = AnswerReader()
_memory: dict[tuple[int, bytes], AnswerHead] = {}
_names: dict[str, tuple[bytes, bytes, bool]] = {}


def parse_head(context: bytes, flags: int) -> AnswerHead:
    """The head that a worker's context means. Raises BadAnswer."""
    key = (flags, context)
    head = _memory.get(key)
    if head is None:
        head = parse_plain(context, flags) or parse_reference(context, flags)
        if len(context) <= _REMEMBERED_LENGTH_MAX:
            if len(_memory) >= MEMORY_MAX:
                _memory.clear()
            _memory[key] = head
    return head


def parse_trailers(context: bytes, flags: int, names: frozenset[bytes], known: Headers) -> Headers:
    """Trailers of a stream: those in its last context, if it has one, else what the first had. Raises BadAnswer."""
    if not context:
        return known
    found = []
    for raw, values in _headers_of(context, flags)[1].items():
        name, lower, _ = _checked_name(raw)
        if lower in names:
            found += [(name, value) for value in _checked_values(name, values)]
    return tuple(found) or known


def check_length(head: AnswerHead, length: int) -> None:
    """Raises BadAnswer where a whole body of `length` bytes is not what the worker announced."""
    if head.length is not None and head.length != length:
        raise BadAnswer(f"Content-Length is {head.length}, but the body has {length} bytes")


def has_no_body(status: int, method: str) -> bool:
    """Whether an answer has no body, whatever the worker says."""
    return method == "HEAD" or status == 204 or status == 304


def parse_plain(context: bytes, flags: int) -> AnswerHead | None:
    """The head of a plain context in JSON; None for any other, about which nothing is said."""
    found = _reader.read(context) if not flags & _NO_JSON else None
    if found is None:
        return None
    status, length, lines = found
    headers = EncodedHeaders.of_lines(lines)
    if len(headers) > HEADERS_MAX:
        return None
    return AnswerHead(status, headers, length, plain=_has_plain_status(status))


def _has_plain_status(status: int) -> bool:
    return status >= 200 and status not in (204, 205, 304)


def parse_reference(context: bytes, flags: int) -> AnswerHead:
    """The head of any context, as Python reads it; remembers nothing. Raises BadAnswer."""
    if not context:
        return EMPTY_HEAD
    status, raw_headers = _headers_of(context, flags)
    headers: list[tuple[bytes, bytes]] = []
    lengths: list[bytes] = []
    announced: list[bytes] = []
    for raw, values in raw_headers.items():
        name, lower, special = _names.get(raw) or _checked_name(raw)
        for value in _checked_values(name, values):
            if not special:
                headers.append((name, value))
            elif lower == b"content-length":
                lengths.append(value)
            elif lower == b"trailer":
                announced.append(value)
            elif lower == b"transfer-encoding" and value.lower() not in (b"chunked", b"identity", b""):
                raise BadAnswer(f"Transfer-Encoding {_shown(value)}; only the server may code the body")
    if len(headers) > HEADERS_MAX:
        raise BadAnswer(f"{len(headers)} headers; the limit is {HEADERS_MAX}")
    length = _length(lengths)
    names = _trailer_names(announced) if announced else frozenset()
    if not names or status < 200:
        return AnswerHead(status, EncodedHeaders.of(headers), length, plain=_has_plain_status(status))
    trailers = tuple(pair for pair in headers if pair[0].lower() in names)
    headers = [pair for pair in headers if pair[0].lower() not in names]
    headers.append((b"Trailer", b", ".join(sorted(names))))
    return AnswerHead(status, tuple(headers), length, trailers, names, plain=False)


def _headers_of(context: bytes, flags: int) -> tuple[int, Mapping[str, object]]:
    """Status and headers, their values not looked at yet; what http_message says, without its copies for JSON."""
    if len(context) > CONTEXT_LENGTH_MAX:
        raise BadAnswer(f"a head of {len(context)} bytes; the limit is {CONTEXT_LENGTH_MAX}")
    status: object
    headers: object
    try:
        if flags & PROTO:
            answer = decode_answer_context(context, flags)
            status, headers = (200, {}) if answer is None else answer
        else:
            if flags & _OTHER_CODECS:
                raise BadAnswer(f"an answer of the unknown codec 0x{flags:02x}")
            value = json_loads_limited(context)
            if not isinstance(value, dict):
                raise BadAnswer("its context is no JSON object")
            status, headers = value.get("status"), value.get("headers")
    except MessageError as error:
        raise BadAnswer(str(error)) from None
    if type(status) is not int or not 100 <= status <= 599:
        raise BadAnswer(f"unknown status code from worker: {repr(status)[:40]}")
    if not isinstance(headers, dict):
        if headers is not None and headers != []:
            raise BadAnswer("its headers are no object")
        headers = {}
    return status, headers


def _checked_name(raw: str) -> tuple[bytes, bytes, bool]:
    """The name as it was written, in lower case, and whether it is special. Raises BadAnswer for what is no token."""
    known = _names.get(raw)
    if known is not None:
        return known
    if _TOKEN.fullmatch(raw) is None:
        raise BadAnswer(f"the header name {_shown(raw.encode('utf-8', 'replace'))} is no token")
    name = raw.encode("ascii")
    lower = name.lower()
    if len(_names) >= MEMORY_MAX:
        _names.clear()
    _names[raw] = known = (name, lower, lower in _SPECIAL)
    return known


def _checked_values(name: bytes, values: object) -> list[bytes]:
    """The values of a header without white space around them. Raises BadAnswer for control characters."""
    if type(values) is not list:
        raise BadAnswer(f"the header {name.decode()} has no list of values")
    found = []
    for value in values:
        if type(value) is str:
            value = value.encode()
        elif type(value) is not bytes:
            raise BadAnswer(f"the header {name.decode()} has a value that is no text")
        if _CONTROL.search(value) is not None:
            raise BadAnswer(
                f"the header {name.decode()} has a control character in its value {_shown(value)}"
            )
        found.append(value.strip(b" \t"))
    return found


def _length(values: list[bytes]) -> int | None:
    if not values:
        return None
    if len(values) > 1:
        raise BadAnswer(f"{len(values)} values of Content-Length")
    try:
        return parse_digits(values[0], _LENGTH_MAX)
    except MessageError as error:
        raise BadAnswer(f"Content-Length: {error}") from None


def _trailer_names(values: list[bytes]) -> frozenset[bytes]:
    names = frozenset(name.strip(b" \t").lower() for value in values for name in value.split(b","))
    for name in names:
        if name and _TOKEN.fullmatch(name.decode("latin-1")) is None:
            raise BadAnswer(f"Trailer names {_shown(name)}, which is no token")
    return names - _NO_TRAILERS - {b""}


def _shown(value: bytes) -> str:
    return repr(value[:40] + (b"..." if len(value) > 40 else b""))[1:]
