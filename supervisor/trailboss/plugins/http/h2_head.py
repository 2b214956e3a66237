"""HTTP/2 HEADS WITHOUT A CONNECTION: fields to a Request with the strictness of the HTTP/1 parser, answers to fields. Pure.

What HTTP/1 and HTTP/2 have in common is refused alike, with the same statuses, so a worker cannot tell which one a request
came by except from its version. Beyond that RFC 9113, 8.2 and 8.3 hold: names in lower case, no field about the connection,
the pseudo-fields complete, once, in front, and `:authority` and Host of one opinion. Cookies that were split are joined.

A request is described by its fields alone; which of them an attacker could make two servers read in two ways is the
measure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from trailboss.plugins.http.h1 import EncodedHeaders, Refusal, check_authority
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import HeaderList, Request

__all__ = ["Malformed", "RequestHead", "answer_fields", "check_trailers", "read_head", "trailer_fields"]

Fields = list[tuple[bytes, bytes]]

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PATH: Final = re.compile(rb'/[!"$-~]*')
_LINE_BREAK: Final = re.compile(rb"[\r\n\x00]")
#: About the connection, which HTTP/2 has frames for (RFC 9113, 8.2.2).
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_SPECIAL: Final = _CONNECTION_FIELDS | {b"host", b"content-length", b"cookie", b"te", b"expect"}
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
#: Those that the HTTP/1 parser knows, without CONNECT.
_METHODS: Final = {
    name.encode(): name
    for name in [
        "GET",
        "POST",
        "HEAD",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "QUERY",
        "COPY",
        "LOCK",
        "MKCOL",
        "MOVE",
        "PROPFIND",
        "PROPPATCH",
        "SEARCH",
        "UNLOCK",
        "BIND",
        "REBIND",
        "UNBIND",
        "ACL",
        "REPORT",
        "MKACTIVITY",
        "CHECKOUT",
        "MERGE",
        "M-SEARCH",
        "NOTIFY",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "PURGE",
        "MKCALENDAR",
        "LINK",
        "UNLINK",
        "SOURCE",
    ]
}
_LENGTH_DIGITS_MAX: Final = 18
#: What a field costs besides its bytes (RFC 9113, 6.5.2).
_FIELD_OVERHEAD: Final = 32
#: The request line of HTTP/1 around method and target.
_LINE_OVERHEAD: Final = len(" " + " HTTP/2.0")
MEMORY_MAX: Final = 1024
_REMEMBERED_LENGTH_MAX: Final = 64

_good_names: set[bytes] = set()
_lower_names: dict[bytes, bytes] = {}


class Malformed(Refusal):
    """A request that breaks the rules of HTTP/2 itself, so that nothing of its stream is believed any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


class RequestHead(NamedTuple):
    """A checked head."""

    request: Request
    #: Content-Length, or None where it was not announced.
    length: int | None
    #: Whether the client waits for 100 before it sends the body.
    expects_continue: bool


def read_head(
    fields: HeaderList,
    ended: bool,
    limits: Limits,
    now: float,
    remote_addr: str = "127.0.0.1",
    remote_port: int = 0,
    scheme: str = "http",
) -> RequestHead:
    """Return the request that `fields` mean; `ended`: there is no body. Raises Refusal, Malformed among them."""
    pseudo: dict[bytes, bytes] = {}
    headers: Fields = []
    cookies: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    expectation: bytes | None = None
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + _FIELD_OVERHEAD
        if name[:1] == b":":
            if headers or cookies or name in pseudo or name not in _PSEUDO:
                raise Malformed("a pseudo-field that is unknown, given twice, or not in front")
            pseudo[name] = value
            continue
        if name not in _good_names:
            _check_name(name)
        if not _is_value(value):
            raise Malformed("a header value with a control character, or white space around it")
        if name in _SPECIAL:
            if name == b"cookie":
                cookies.append(value)
                continue
            if name == b"host":
                if host is not None:
                    raise Refusal(400, "Host is given twice")
                host = value
            elif name == b"content-length":
                if length is not None:
                    raise Refusal(400, "the length of the body is given twice")
                length = _check_length(value, limits)
            elif name == b"expect":
                expectation = value
            elif name != b"te":
                raise Malformed(f"{name.decode()} has no place in HTTP/2")
            elif value.lower() != b"trailers":
                raise Malformed("TE other than trailers")
        headers.append((name, value))
    if ended and length:  # whoever believed it would wait for the body
        raise Malformed("a body was announced, and there is none")
    if cookies:
        headers.append((b"cookie", cookies[0] if len(cookies) == 1 else b"; ".join(cookies)))
    if size > limits.head_bytes:
        raise Refusal(431, "the head is too long")
    method, target = _check_method_and_target(pseudo, limits)
    authority = pseudo.get(b":authority")
    host_text = _check_host(authority, host)
    if host is None:
        headers.insert(0, (b"host", authority or b""))
    if len(headers) > limits.header_count or len(cookies) > limits.header_count:
        raise Refusal(431, "too many headers")
    if expectation is not None and expectation.lower() != b"100-continue":
        raise Refusal(417, "an expectation other than 100-continue")
    if method == "TRACE" and not ended:
        raise Refusal(400, "a TRACE request with a body")
    path, _, query = target.partition("?")
    request = Request(
        method,
        target,
        path,
        query,
        "2.0",
        headers,
        host_text,
        remote_addr,
        remote_port,
        started=now,
        scheme=scheme,
    )
    return RequestHead(request, length, expectation is not None and not ended)


def _check_name(name: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise Malformed("a header name that is no token in lower case")
    if len(name) <= _REMEMBERED_LENGTH_MAX:
        if len(_good_names) >= MEMORY_MAX:
            _good_names.clear()
        _good_names.add(name)


def _is_value(value: bytes) -> bool:
    return _CONTROL.search(value) is None and value == value.strip(b" \t")


def _check_length(value: bytes, limits: Limits) -> int:
    if not value.isdigit():
        raise Refusal(400, "Content-Length is not a number")
    digits = value.lstrip(b"0") or b"0"
    if len(digits) > _LENGTH_DIGITS_MAX or int(digits) > limits.body_bytes:
        raise Refusal(413, "the body is larger than http.max_request_size")
    return int(digits)


def _check_method_and_target(pseudo: dict[bytes, bytes], limits: Limits) -> tuple[str, str]:
    method_bytes = pseudo.get(b":method", b"")
    method = _METHODS.get(method_bytes)
    if method is None:
        if method_bytes == b"CONNECT":
            raise Refusal(501, "CONNECT is for proxies")
        if _TOKEN.fullmatch(method_bytes) is None:
            raise Malformed("no method, or one that is no token")
        raise Refusal(501, "the method is not known")
    if pseudo.get(b":scheme", b"").lower() not in (b"http", b"https"):
        raise Malformed("a scheme other than http and https")
    path = pseudo.get(b":path", b"")
    if len(method_bytes) + len(path) + _LINE_OVERHEAD > limits.request_line_bytes:
        raise Refusal(414, "the request line is too long")
    if _PATH.fullmatch(path) is None and not (path == b"*" and method == "OPTIONS"):
        raise Malformed("a path that does not begin with a slash, or holds what does not belong there")
    return method, path.decode("ascii")


def _check_host(authority: bytes | None, host: bytes | None) -> str:
    if authority is None:
        if host is None:
            raise Refusal(400, "there is no Host")
        return check_authority(host) if host else ""
    if host is not None and host.lower() != authority.lower():
        raise Malformed(":authority and Host say different things")
    return check_authority(authority)


def check_trailers(fields: HeaderList, limits: Limits) -> None:
    """Check the trailers of a request, which are dropped. Raises Refusal."""
    if sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields) > limits.head_bytes:
        raise Refusal(431, "the trailers are too long")
    for name, value in fields:
        if _NAME.fullmatch(name) is None or name in _CONNECTION_FIELDS or not _is_value(value):
            raise Malformed("not a trailer")


# --- answers ----------------------------------------------------------------------------------------------------------


def answer_fields(status: int, date: bytes, headers: HeaderList, length: int | None = None) -> Fields:
    """Return the fields of an answer; an interim one has no date. Raises ValueError where they cannot be sent."""
    if not 100 <= status <= 599 or status == 101:
        raise ValueError(f"{status} is no status of an answer")
    fields = [(b":status", b"%d" % status)]
    if date:
        fields.append((b"date", date))
    fields += trailer_fields(headers)
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
    return fields


def trailer_fields(headers: HeaderList) -> Fields:
    """Return `headers` with their names in lower case and without those about the connection. Raises ValueError.

    The result must not be changed.
    """
    if type(headers) is EncodedHeaders:
        if headers.fields is None:
            headers.fields = _lower_fields(headers)
        return headers.fields
    return _lower_fields(headers)


def _lower_fields(headers: HeaderList) -> Fields:
    fields = []
    for name, value in headers:
        lower = _lower_names.get(name)
        if lower is None:
            lower = _lower_name(name)
        if _LINE_BREAK.search(value) is not None:
            raise ValueError("a header holds a line break or a zero byte")
        if lower not in _CONNECTION_FIELDS:
            fields.append((lower, value.strip(b" \t")))
    return fields


def _lower_name(name: bytes) -> bytes:
    lower = name.lower()
    if _NAME.fullmatch(lower) is None:
        raise ValueError("a header name is no token")
    if len(name) <= _REMEMBERED_LENGTH_MAX:
        if len(_lower_names) >= MEMORY_MAX:
            _lower_names.clear()
        _lower_names[name] = lower
    return lower
