"""HTTP/1 WITHOUT A SOCKET: bytes of a head to a Request, bytes of a chunked body to its content, answers to bytes.

The rule is that of RFC 9112 read strictly: whatever two servers might read in two ways is refused, and a refusal ends
the connection, so that nothing behind it is ever read as a request. Most heads are plain and read by the C code of
`native`. All others llhttp (httptools) parses, with none of its leniencies; this file checks what llhttp leaves open: the
request line as a whole, folded lines, Host, the framing headers, numbers, sizes. Bodies and chunks are counted here, since llhttp has no limit for extensions.

A HeadParser belongs to one connection and is used for all its requests. After `parse` its attributes tell how the body
is framed and what becomes of the connection.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

import httptools

from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import EMPTY_BODY, HeaderList, Request
from trailboss.plugins.http.native import HeadReader

__all__ = [
    "CHUNKED",
    "ChunkDecoder",
    "EncodedHeaders",
    "HeadParser",
    "Refusal",
    "check_incomplete_head",
    "encode_chunk",
    "encode_headers",
    "encode_last_chunk",
    "interim_status_line",
    "reason_phrase",
    "status_line",
]

_read_head: Final = HeadReader.read
_found: Final = HeadReader.found
#: Stands for the length of a body whose end its chunks tell.
CHUNKED: Final = -1

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb') ([!"$-~]+) HTTP/1\.([01])\r\n')
_OTHER_VERSION: Final = re.compile(_TOKEN + rb" [!-~]+ HTTP/([0-9])\.([0-9])\r\n")
_ORIGIN_FORM: Final = 0x2F  # "/"
_ABSOLUTE_FORM: Final = re.compile(rb"(https?)://([^/?#]*)([/?].*)?", re.IGNORECASE)
#: RFC 3986 host and port; without the comma, which joins the values of headers given twice.
_AUTHORITY: Final = re.compile(
    rb"(?:(?:[0-9A-Za-z._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?"
)
#: Trailers are read and thrown away, so there need not be room for many.
TRAILER_BYTES_MAX: Final = 8192
_LENGTH_DIGITS_MAX: Final = 18
_SPECIAL: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;|\Z)")
_CHUNK_SIZE_DIGITS_MAX: Final = 15
_FIELD_LINE: Final = re.compile(_TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*")
_EXTENSION: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
#: Of the names and values of methods, the few that nearly every request has.
_METHODS: Final = {
    name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
}


class Refusal(Exception):
    """A request that is not read any further: the status of the answer, and the reason for people."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HeadParser:
    """Parses the heads of one connection's requests.

    After `parse`: `length` is the size of the body in bytes or CHUNKED; `keep_alive` says whether the client wants
    another request on this connection; `expects_continue` whether it waits for 100 before it sends the body.
    """

    __slots__ = (
        "_headers",
        "_host",
        "_host_bytes",
        "_limits",
        "_local",
        "_parser",
        "_reader",
        "_remote_addr",
        "_remote_port",
        "_scheme",
        "expects_continue",
        "keep_alive",
        "length",
        "on_header",
    )

    def __init__(
        self,
        limits: Limits,
        local: str = "localhost",
        remote_addr: str = "127.0.0.1",
        remote_port: int = 0,
        scheme: str = "http",
    ) -> None:
        self._limits = limits
        self._local = local
        self._remote_addr = remote_addr
        self._remote_port = remote_port
        self._scheme = scheme
        self._host_bytes = b""
        self._host = ""
        self._headers: list[tuple[bytes, bytes]] = []
        add = self._headers.append

        def on_header(name: bytes, value: bytes) -> None:
            add((name, value.rstrip(b" \t")))

        # A closure, since it runs once a header; httptools looks for it by this name.
        self.on_header = on_header
        self._parser: httptools.HttpRequestParser | None = None
        self._reader = HeadReader(limits)
        self.length = 0
        self.keep_alive = True
        self.expects_continue = False

    @property
    def ends(self) -> tuple[str, str, int]:
        """The listener's own address, and host and port of the client."""
        return self._local, self._remote_addr, self._remote_port

    def parse(self, head: bytes, now: float) -> Request:
        """Return the request of a complete head, its empty line included. Raises Refusal."""
        return self.parse_plain(head, now) or self.parse_any(head, now)

    def parse_plain(self, head: bytes, now: float) -> Request | None:
        """Return the request of exactly one plain head; None for any other bytes, about which nothing is said."""
        reader = self._reader
        if not _read_head(head, len(head), reader.limits, reader.memory):
            return None
        method_size, target_size, path_size, host_offset, host_size, self.length, keep_alive = _found(
            reader.view
        )
        self.keep_alive = keep_alive == 1
        self.expects_continue = False
        start = method_size + 1
        path = target = head[start : start + target_size].decode()
        query = ""
        if path_size != target_size:
            path = target[:path_size]
            query = target[path_size + 1 :]
        host_bytes = head[host_offset : host_offset + host_size]
        if host_bytes == self._host_bytes:
            host = self._host
        else:
            self._host_bytes = host_bytes
            host = self._host = host_bytes.decode()
        return Request(
            _METHODS[head[:method_size]],
            target,
            path,
            query,
            "1.1",
            None,
            host,
            self._remote_addr,
            self._remote_port,
            EMPTY_BODY,
            now,
            self._scheme,
            head,
        )

    def parse_any(self, head: bytes, now: float) -> Request:
        """As `parse`, by the reference alone. Raises Refusal."""
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise _bad_request_line(head)
        method_bytes, target_bytes, minor = line.groups()
        method = _METHODS.get(method_bytes)
        if method is None:
            if method_bytes == b"CONNECT":
                raise Refusal(501, "CONNECT is for proxies")
            method = method_bytes.decode("ascii")
        if line.end() - 2 > self._limits.request_line_bytes:
            raise Refusal(414, "the request line is too long")
        if b"\r\n " in head or b"\r\n\t" in head:
            raise Refusal(400, "a header is folded")
        headers = self._parse_headers(head)
        version_1_1 = minor == b"1"
        host = self._examine(headers, version_1_1)
        target = target_bytes.decode("ascii")
        if target_bytes[0] == _ORIGIN_FORM:
            path, _, query = target.partition("?")
        else:
            path, query, authority = self._other_form(method_bytes, target_bytes)
            if authority is not None:
                host = authority
                headers = _with_host(headers, authority)
        if not version_1_1:
            self.keep_alive = False
            self.expects_continue = False
        if self.length and method_bytes == b"TRACE":
            raise Refusal(400, "a TRACE request with a body")
        return Request(
            method,
            target,
            path,
            query,
            "1.1" if version_1_1 else "1.0",
            headers,
            host or self._local,
            self._remote_addr,
            self._remote_port,
            started=now,
            scheme=self._scheme,
        )

    def _parse_headers(self, head: bytes) -> list[tuple[bytes, bytes]]:
        collected = self._headers
        collected.clear()
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = (
                None  # it wants to see no further request; to us an Upgrade is a header like others
            )
        except httptools.HttpParserInvalidMethodError:
            raise Refusal(501, "the method is not known") from None
        except httptools.HttpParserError as error:
            raise _refusal_of(str(error)) from None
        headers = collected.copy()
        if len(headers) > self._limits.header_count:
            raise Refusal(431, "too many headers")
        return headers

    def _examine(self, headers: list[tuple[bytes, bytes]], version_1_1: bool) -> str:
        """Work out framing and connection from the headers; return the checked Host, "" where there is none."""
        self.length = 0
        self.keep_alive = True
        self.expects_continue = False
        host: str | None = None
        lengths = encodings = 0
        for name, value in headers:
            key = name.lower()
            if key not in _SPECIAL:
                continue
            if key == b"host":
                if host is not None:
                    raise Refusal(400, "Host is given twice")
                host = self._host if value == self._host_bytes else self._check_host(value)
            elif key == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = not _has_token(value, b"close")
            elif key == b"content-length":
                lengths += 1
                self.length = self._check_length(value)
            elif key == b"transfer-encoding":
                encodings += 1
                self._check_encoding(value, version_1_1)
            else:
                if value.lower() != b"100-continue" and version_1_1:
                    raise Refusal(417, "an expectation other than 100-continue")
                self.expects_continue = True
        if lengths or encodings:
            self._check_framing(lengths, encodings)
        if host is None:
            if version_1_1:
                raise Refusal(400, "there is no Host")
            return ""
        return host

    def _check_host(self, value: bytes) -> str:
        if not value:
            return ""
        host = check_authority(value)
        self._host_bytes = value
        self._host = host
        return host

    def _check_length(self, value: bytes) -> int:
        if not value.isdigit():  # of bytes: ASCII digits and nothing else
            raise Refusal(400, "Content-Length is not a number")
        digits = value.lstrip(b"0")
        if len(digits) > _LENGTH_DIGITS_MAX or int(digits or b"0") > self._limits.body_bytes:
            raise Refusal(413, "the body is larger than http.max_request_size")
        return int(digits or b"0")

    def _check_encoding(self, value: bytes, version_1_1: bool) -> None:
        if not version_1_1:
            raise Refusal(400, "Transfer-Encoding in HTTP/1.0")
        if value.lower() != b"chunked":
            codings = [coding.strip(b" \t").lower() for coding in value.split(b",")]
            if codings[-1] == b"chunked" and codings.count(b"chunked") == 1 and all(codings):
                raise Refusal(501, "a Transfer-Encoding other than chunked")
            raise Refusal(400, "a Transfer-Encoding that does not end the body")

    def _check_framing(self, lengths: int, encodings: int) -> None:
        if lengths + encodings > 1:
            raise Refusal(400, "the length of the body is given twice")
        if encodings:
            self.length = CHUNKED
        if self.length:
            self._parser = None  # bodies are counted by us, so llhttp never sees this one's

    def _other_form(self, method: bytes, target: bytes) -> tuple[str, str, str | None]:
        """Return path, query and authority of a target that does not begin with a slash."""
        if target == b"*":
            if method != b"OPTIONS":
                raise Refusal(400, "the target * belongs to OPTIONS")
            return "*", "", None
        found = _ABSOLUTE_FORM.fullmatch(target)
        if found is None:
            raise Refusal(400, "a target that is neither a path nor an http URL")
        authority = check_authority(found[2])
        path, _, query = (found[3] or b"/").decode("ascii").partition("?")
        return path or "/", query, authority


def _refusal_of(llhttp_reason: str) -> Refusal:
    if llhttp_reason.startswith("Invalid method"):
        return Refusal(501, "the method is not known")
    if "overflow" in llhttp_reason:  # of a Content-Length above 64 bits
        return Refusal(413, "the body is larger than http.max_request_size")
    return Refusal(400, llhttp_reason)


def check_authority(value: bytes) -> str:
    """Return host and port as text. Raises Refusal for anything else than `host` or `host:port`."""
    found = _AUTHORITY.fullmatch(value)
    if found is None or (found[1] and int(found[1]) > 65535):
        raise Refusal(400, "not a host and port")
    return value.decode("ascii")


def _with_host(headers: list[tuple[bytes, bytes]], host: str) -> list[tuple[bytes, bytes]]:
    """Give Host the value of the target, which wins (RFC 9112, 3.2.2), so that nobody sees two truths."""
    return [(name, host.encode() if name.lower() == b"host" else value) for name, value in headers]


def _has_token(value: bytes, token: bytes) -> bool:
    return any(part.strip(b" \t").lower() == token for part in value.split(b","))


def _bad_request_line(head: bytes) -> Refusal:
    version = _OTHER_VERSION.match(head)
    if version is not None and version.groups() not in ((b"1", b"0"), (b"1", b"1")):
        return Refusal(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return Refusal(400, "not a request line")


def check_incomplete_head(data: bytes | bytearray, start: int, checked: int, limits: Limits) -> None:
    """Refuse what can never become a good head. Raises Refusal; returns where the rest has to be waited for.

    The head begins at `start`; up to `checked` it has been looked at before, so that many small pieces cost no more than
    a few large ones.
    """
    line_end = data.find(b"\r\n", start, start + limits.request_line_bytes + 2)
    if line_end < 0:
        if len(data) - start > limits.request_line_bytes + 1:
            raise Refusal(414, "the request line is too long")
    elif line_end + 2 > checked and _REQUEST_LINE.match(data, start) is None:
        raise _bad_request_line(bytes(data[start : line_end + 2]))
    if len(data) - start > limits.head_bytes:
        raise Refusal(431, "the head is too long")
    if data.count(b"\n", checked) != data.count(b"\r\n", max(0, checked - 1)):
        raise Refusal(400, "a line that does not end in CR LF")


class ChunkDecoder:
    """Takes a chunked body apart. `feed` returns content; `finished` is set at the end, `rest` holds what follows.

    Trailers are checked like headers and thrown away; extensions are counted and thrown away.
    """

    __slots__ = (
        "_buffer",
        "_extension_left",
        "_left",
        "_limits",
        "_state",
        "_trailer_left",
        "finished",
        "rest",
        "size",
    )

    _SIZE, _CONTENT, _CONTENT_END, _TRAILERS = range(4)

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = self._SIZE
        self._buffer = b""
        self._left = 0
        self._extension_left = limits.chunk_extension_bytes
        self._trailer_left = min(limits.head_bytes, TRAILER_BYTES_MAX)
        #: Bytes of content so far.
        self.size = 0
        self.finished = False
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the parts of content in `data`. Raises Refusal."""
        parts: list[bytes] = []
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        position = 0
        while not self.finished:
            if self._state == self._CONTENT:
                part = data[position : position + self._left]
                if not part:
                    return parts
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    return parts
                self._state = self._CONTENT_END
            if self._state == self._CONTENT_END:
                if len(data) - position < 2:
                    self._keep(data, position, b"\r\n")
                    return parts
                if data[position : position + 2] != b"\r\n":
                    raise Refusal(400, "a chunk is longer than its size")
                position += 2
                self._state = self._SIZE
            end = data.find(b"\r\n", position)
            if end < 0:
                self._keep_line(data, position)
                return parts
            line = data[position:end]
            position = end + 2
            if self._state == self._SIZE:
                self._begin_chunk(line)
            else:
                self._on_trailer(line)
        self.rest = data[position:]
        return parts

    def _keep(self, data: bytes, position: int, expected: bytes) -> None:
        self._buffer = data[position:]
        if not expected.startswith(self._buffer):
            raise Refusal(400, "a chunk is longer than its size")

    def _keep_line(self, data: bytes, position: int) -> None:
        """Keep the beginning of a line, unless it is wrong or too long already."""
        line = self._buffer = data[position:]
        if b"\n" in line or b"\r" in line[:-1]:
            raise Refusal(400, "a line that does not end in CR LF")
        if self._state == self._TRAILERS:
            if len(line) > self._trailer_left:
                raise Refusal(431, "the trailers are too long")
        elif len(line) > _CHUNK_SIZE_DIGITS_MAX + 1 + self._extension_left:
            raise Refusal(400, "chunk extensions are too long, or a size is")

    def _begin_chunk(self, line: bytes) -> None:
        found = _CHUNK_SIZE.match(line)
        if found is None:
            raise Refusal(400, "not the size of a chunk")
        self._extension_left -= len(line) - found.end(1)
        if self._extension_left < 0:
            raise Refusal(400, "chunk extensions are too long")
        if _EXTENSION.fullmatch(line, found.end(1)) is None:
            raise Refusal(400, "a chunk extension with a control character")
        size = int(found[1], 16)
        self.size += size
        if self.size > self._limits.body_bytes:
            raise Refusal(413, "the body is larger than http.max_request_size")
        self._left = size
        self._state = self._CONTENT if size else self._TRAILERS

    def _on_trailer(self, line: bytes) -> None:
        if not line:
            self.finished = True
            return
        self._trailer_left -= len(line) + 2
        if self._trailer_left < 0:
            raise Refusal(431, "the trailers are too long")
        if _FIELD_LINE.fullmatch(line) is None:
            raise Refusal(400, "not a trailer")


# --- answers ----------------------------------------------------------------------------------------------------------


def reason_phrase(status: int) -> str:
    """Return the usual words for a status; "" for one that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


_STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode() for status in range(200, 600)
}


def status_line(status: int) -> bytes:
    """Return the status line of a final answer; its version is always 1.1. Raises ValueError beyond 200 to 599."""
    try:
        return _STATUS_LINES[status]
    except KeyError:
        raise ValueError(f"{status} is no status of an answer") from None


def interim_status_line(status: int) -> bytes:
    """Return the status line of an interim answer. Raises ValueError for anything but 100 to 199 without 101."""
    if not 100 <= status <= 199 or status == 101:
        raise ValueError(f"{status} is no status of an interim answer")
    return f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode()


class EncodedHeaders(tuple[tuple[bytes, bytes], ...]):  # noqa: SLOT001 - a tuple has no room for a slot
    """Headers that have been checked, and their lines with them; for those that are sent many times, or read as lines."""

    lines: bytes
    #: The same as HTTP/2 has them, as soon as somebody has worked them out.
    fields: list[tuple[bytes, bytes]] | None = None

    @classmethod
    def of_lines(cls, lines: bytes) -> EncodedHeaders:
        """Take `NAME: VALUE` lines apart."""
        headers = cls(
            [
                (name, value)
                for name, _, value in [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]
            ]
        )
        headers.lines = lines
        return headers

    @classmethod
    def of(cls, headers: HeaderList) -> EncodedHeaders:
        """Encode headers. Raises ValueError as encode_headers does."""
        encoded = cls(headers)
        encoded.lines = encode_headers(headers)
        return encoded


def encode_headers(headers: HeaderList) -> bytes:
    """Return header lines. Raises ValueError where a name or value would break out of its line."""
    if type(headers) is EncodedHeaders:
        return headers.lines
    lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
    count = len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\x00" in lines:
        raise ValueError("a header holds a line break or a zero byte")
    return lines


def encode_chunk(data: bytes) -> bytes:
    """Return one chunk of a body; `data` must not be empty, since that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_last_chunk(trailers: HeaderList = ()) -> bytes:
    """Return the end of a chunked body."""
    return b"0\r\n" + encode_headers(trailers) + b"\r\n" if trailers else b"0\r\n\r\n"
