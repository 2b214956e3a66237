"""REQUEST TO CONTEXT: what a worker is told about a request (wire protocol 3.1.3), written as fast as Python can.

`describe` says what belongs into a context and what does not: hop-by-hop headers, `Host` (it is in the URI), `Proxy`
and, unless allowed, names with underscores stay here; the URI is always absolute and valid, whatever the target was;
cookies are decoded. :mod:`trailboss_worker.protocol.http_message` encodes that, in either dialect. It is the reference.

Nearly every request is plain: no header twice, an ordinary target. For those the C code of `native` writes the same text
from the bytes of the head. Where a middleware has taken or changed the headers, or the C code is not there, `ContextWriter`
puts it together from pieces that are remembered: the beginning by client, method and host, each header by its bytes.
What carries secrets (cookies, credentials) or is long is never remembered, and a memory that is full is emptied.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring as _quoted
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from trailboss.plugins.http.message import Request
from trailboss.plugins.http.native import ContextBuffer
from trailboss_worker.protocol.http_message import HttpRequest, encode_request_json, encode_request_proto

__all__ = ["ContextWriter", "absolute_uri", "canonical_name", "decode_cookies", "describe"]

#: Headers between two neighbours, not from one end to the other (RFC 9110 7.6.1), and the one that CGI programs take
#: for their proxy's address. Host and Transfer-Encoding are told in other ways.
WITHHELD: Final = frozenset(
    {
        b"connection",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: Their values are not kept in memory longer than their request.
_SECRET: Final = frozenset({b"authorization", b"cookie", b"x-api-key", b"x-csrf-token", b"x-xsrf-token"})
#: Connection options that name no header of the request that would otherwise reach the worker.
_PLAIN_OPTIONS: Final = frozenset(
    {b"", b"close", b"keep-alive", b"upgrade", b"te", b"trailer", b"http2-settings"}
)

MEMORY_MAX: Final = 4096
"""Entries of each memory; a full one is emptied."""

_REMEMBERED_LENGTH_MAX: Final = 256
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN_ENDING: Final = b'"parsed":false,"uploads":null,"attributes":{}}'
#: A target that is a valid reference as it stands. Brackets in a query are no reserved use of theirs but everybody's.
_PLAIN_TARGET: Final = re.compile(
    r"/(?:[\w\-.~:/@!$&'()*+,;=]++|%[0-9A-Fa-f]{2})*+(?:\?(?:[\w\-.~:/?@!$&'()*+,;=\[\]]++|%[0-9A-Fa-f]{2})++)?",
    re.ASCII,
)
_HOST: Final = re.compile(
    r"((?:[\w\-.~!$&'()*+;=]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?", re.ASCII
)
_STRAY_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: Cookies as nearly all clients send them: nothing to decode, nothing to escape.
_PLAIN_COOKIES: Final = re.compile(
    rb"""[\w!#$%&'*+\-.^`|~]+=[^\x00-\x20\x7f-\xff"%+;\\]*+(?:; [\w!#$%&'*+\-.^`|~]+=[^\x00-\x20\x7f-\xff"%+;\\]*+)*+""",
    re.ASCII,
)
_COOKIE_VALUE: Final = re.compile(rb'[^\x00-\x1f\x7f";\\]*')

Entry = tuple[str, str]
_DROP: Final[Entry] = ("", "")
#: The request needs the reference: this header says something about the others.
_UNUSUAL: Final[Entry] = ("!", "")


def canonical_name(name: bytes) -> str:
    """The name as RoadRunner's workers know it: `X-Request-Id`."""
    text = name.decode("latin-1")
    return "-".join(part.capitalize() for part in text.split("-")) if _TOKEN.fullmatch(text) else text


def absolute_uri(request: Request) -> str:
    """Scheme, host, path and query, always a valid URI: what is not allowed in one is percent-encoded."""
    base = f"{request.scheme}://{_valid_host(request.host)}"
    path = request.path if request.path.startswith("/") else ""
    encoded = quote(_whole_percents(path), safe="-._~:/@!$&'()*+,;=%")
    if not request.query:
        return base + encoded
    query = quote(_whole_percents(request.query), safe="-._~:/?@!$&'()*+,;=%[]")
    return f"{base}{encoded or '/'}?{query}"


def decode_cookies(header: bytes) -> dict[str, bytes]:
    """Cookies by name, decoded like the values of a query; one that does not decode is left out, the last one wins."""
    found: dict[str, bytes] = {}
    for piece in header.split(b";"):
        name, equals, value = piece.strip(b" \t").partition(b"=")
        text = name.decode("latin-1")
        if not equals or not _TOKEN.fullmatch(text):
            continue
        if len(value) > 1 and value[:1] == b'"' == value[-1:]:
            value = value[1:-1]
        if not _COOKIE_VALUE.fullmatch(value):
            continue
        if b"%" in value or b"+" in value:
            if _STRAY_PERCENT.search(value):
                continue
            value = unquote_to_bytes(value.replace(b"+", b" "))
        found[text] = value
    return found


def describe(
    request: Request,
    *,
    parsed: bool = False,
    uploads: bytes = b"",
    underscores: bool = False,
    utf8: bool = True,
) -> HttpRequest:
    """What the worker is told about `request`. With `utf8`, bytes that are no UTF-8 are taken as Latin-1."""
    withheld = WITHHELD | _named_in_connection(request)
    header: dict[str, list[bytes]] = {}
    for name, value in request.headers:
        if name.lower() not in withheld and (underscores or b"_" not in name):
            header.setdefault(canonical_name(name), []).append(_utf8(value) if utf8 else value)
    cookies = decode_cookies(request.header(b"cookie") or b"")
    return HttpRequest(
        remote_addr=request.remote_addr,
        protocol="HTTP/" + request.version,
        method=request.method,
        uri=absolute_uri(request),
        header=header,
        cookies={name: [_utf8(value) if utf8 else value] for name, value in cookies.items()},
        raw_query=request.query.replace("\r", "").replace("\n", ""),
        parsed=parsed,
        uploads=uploads,
        attributes={
            name: [value.encode("utf-8", "replace") for value in values]
            for name, values in request.attributes.items()
        },
    )


class ContextWriter:
    """Writes contexts; one for a server, so that what it remembers serves every connection."""

    __slots__ = (
        "_any_native",
        "_beginnings",
        "_forms",
        "_headers",
        "_plain_native",
        "_secrets",
        "_underscores",
    )

    def __init__(self, *, underscores: bool = False, forms: bool = True) -> None:
        """`underscores`: let names with underscores pass. `forms`: a form is not plain, somebody has to parse it."""
        self._underscores = underscores
        self._forms = forms
        self._plain_native = ContextBuffer(underscores=underscores, forms=not forms)
        self._any_native = ContextBuffer(underscores=underscores, forms=True)
        self._beginnings: dict[tuple[str, str, str, str, str], bytes] = {}
        self._headers: dict[tuple[bytes, bytes], Entry] = {}
        #: Canonical names of the headers whose values are not remembered.
        self._secrets: dict[bytes, str] = {}

    def plain_json(self, request: Request) -> bytes | None:
        """The context of a request whose body goes to the worker as it is; None for one that is not plain."""
        if request.head:
            context = self.write_plain(request)
            if context is not None:
                return context
        return self._from_pieces(request, '"parsed":false,"uploads":null,', may_be_form=not self._forms)

    def write_plain(self, request: Request) -> bytes | None:
        """The context of a request with a plain head, written in C; None where C cannot."""
        ending = _PLAIN_ENDING
        if request.attributes:
            ending = f'"parsed":false,"uploads":null,"attributes":{_attributes_json(request.attributes)}}}'.encode()
        return self._plain_native.write(
            self._beginning_of(request), request.target, request.query, request.head, ending
        )

    def _from_pieces(self, request: Request, about_body: str, *, may_be_form: bool) -> bytes | None:
        """The context, put together; None where the reference is needed, or for a form where there may be none."""
        target = request.target
        if _PLAIN_TARGET.fullmatch(target) is None:
            return None
        remembered = self._headers
        found: dict[str, str] = {}
        cookies = "{}"
        for pair in request.headers:
            entry = remembered.get(pair)
            if entry is None:
                entry = self._entry(pair)
            name = entry[0]
            if not name:
                continue
            if name in found or entry is _UNUSUAL:
                return None
            found[name] = entry[1]
            if name == "Cookie":
                cookies = _cookies_json(pair[1])
        if not may_be_form and "form" in found.get("Content-Type", "").lower():
            return None
        attributes = _attributes_json(request.attributes) if request.attributes else "{}"
        text = (
            f'{target}","headers":{{{",".join(found.values())}}},"cookies":{cookies},'
            f'"rawQuery":"{request.query}",{about_body}"attributes":{attributes}}}'
        )
        return self._beginning_of(request) + text.encode()

    def json(self, request: Request, *, parsed: bool = False, uploads: bytes = b"") -> bytes:
        """The context of any request in the JSON dialect."""
        told = uploads.decode("utf-8", "replace") or "null"
        about_body = f'"parsed":{"true" if parsed else "false"},"uploads":{told},'
        if request.head:
            attributes = _attributes_json(request.attributes) if request.attributes else "{}"
            ending = f'{about_body}"attributes":{attributes}}}'.encode()
            context = self._any_native.write(
                self._beginning_of(request), request.target, request.query, request.head, ending
            )
            if context is not None:
                return context
        return self._from_pieces(request, about_body, may_be_form=True) or encode_request_json(
            describe(request, parsed=parsed, uploads=uploads, underscores=self._underscores)
        )

    def proto(self, request: Request, *, parsed: bool = False, uploads: bytes = b"") -> bytes:
        """The context of any request in the protobuf dialect; bytes are what they were."""
        return encode_request_proto(
            describe(request, parsed=parsed, uploads=uploads, underscores=self._underscores, utf8=False)
        )

    def _beginning_of(self, request: Request) -> bytes:
        """The context up to the target."""
        key = (request.remote_addr, request.version, request.method, request.scheme, request.host)
        return self._beginnings.get(key) or self._beginning(key)

    def _beginning(self, key: tuple[str, str, str, str, str]) -> bytes:
        remote_addr, version, method, scheme, host = key
        text = (
            f'{{"remoteAddr":{_quoted(remote_addr)},"protocol":"HTTP/{version}","method":{_quoted(method)},'
            f'"uri":"{scheme}://{_valid_host(host)}'
        ).encode()
        if len(text) <= 2 * _REMEMBERED_LENGTH_MAX:
            if len(self._beginnings) >= MEMORY_MAX:
                self._beginnings.clear()
            self._beginnings[key] = text
        return text

    def _entry(self, pair: tuple[bytes, bytes]) -> Entry:
        """Canonical name, and name with value as JSON members."""
        raw, value = pair
        name = self._secrets.get(raw)
        if name is not None:
            return name, f'"{name}":[{_quoted(_text(value))}]'
        lower = raw.lower()
        if lower == b"connection" and not _options(value) <= _PLAIN_OPTIONS:
            return _UNUSUAL
        if lower in WITHHELD or (b"_" in raw and not self._underscores):
            entry = _DROP
        else:
            name = canonical_name(raw)
            entry = (name, f"{_quoted(name)}:[{_quoted(_text(value))}]")
            if lower == b"content-type" and b"boundary" in value:
                return entry  # never the same again
        if lower in _SECRET:
            if len(self._secrets) < MEMORY_MAX:
                self._secrets[raw] = entry[0]
        elif len(raw) + len(value) <= _REMEMBERED_LENGTH_MAX:
            if len(self._headers) >= MEMORY_MAX:
                self._headers.clear()
            self._headers[pair] = entry
        return entry


def _valid_host(host: str) -> str:
    """`host` if it can stand in a URI; PSR-7 libraries end their worker over one that cannot."""
    match = _HOST.fullmatch(host)
    if match is None or int(match[2] or 0) > 65535:
        return "localhost"
    return match[1] if match[2] == "" else host


def _whole_percents(text: str) -> bytes:
    raw = text.replace("\r", "").replace("\n", "").encode("utf-8", "replace")
    return _STRAY_PERCENT.sub(b"%25", raw) if b"%" in raw else raw


def _options(value: bytes) -> frozenset[bytes]:
    return frozenset(option.strip(b" \t").lower() for option in value.split(b","))


def _named_in_connection(request: Request) -> frozenset[bytes]:
    value = request.header(b"connection")
    return _options(value) - _PLAIN_OPTIONS if value else frozenset()


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _utf8(value: bytes) -> bytes:
    return _text(value).encode("utf-8")


def _attributes_json(attributes: dict[str, list[str]]) -> str:
    first = [(name, values[0]) for name, values in attributes.items() if values]
    members = [
        f"{_quoted(name)}:{_quoted(value.encode('utf-8', 'replace').decode())}" for name, value in first
    ]
    return "{" + ",".join(members) + "}"


def _cookies_json(header: bytes) -> str:
    if _PLAIN_COOKIES.fullmatch(header) is not None:
        pairs = dict([piece.split("=", 1) for piece in header.decode().split("; ")])
        return "{" + ",".join([f'"{name}":"{value}"' for name, value in pairs.items()]) + "}"
    cookies = decode_cookies(header)
    return "{" + ",".join(f"{_quoted(name)}:{_quoted(_text(value))}" for name, value in cookies.items()) + "}"
