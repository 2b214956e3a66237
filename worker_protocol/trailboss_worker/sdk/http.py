"""HTTP requests one at a time: `while (request := worker.wait_request()) is not None: worker.respond(200, b"hello")`.

`HttpWorker` and `Request` are for programs that need no framework; the WSGI and ASGI gateways stand on the
same `HttpLine`, a Worker whose everyday path is short: a frame's first 16 bytes (header and one option) repeat
themselves, so a header that was checked once is found again in a dictionary, and a request that came with one
read needs no decoder. Everything unusual (handshakes, cut frames, stopping) takes the Worker's own way.

Texts in a context are UTF-8, or Latin-1 where the client sent bytes that are none (wire protocol 3.1). WSGI and
ASGI speak of bytes, so they get the UTF-8 of such a text. A request in the protobuf dialect (RoadRunner) is
answered in that dialect.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader, BytesIO, FileIO
from json import JSONDecoder
from json.encoder import encode_basestring
from typing import Any, Union

from trailboss_worker.protocol import frames
from trailboss_worker.protocol.errors import LocalProtocolError, MessageError, RemoteProtocolError
from trailboss_worker.sdk.relay import Relay
from trailboss_worker.sdk.worker import READ_BYTES_MAX, Payload, Worker, _State

#: An answer up to this size travels as one frame; a larger one in parts, so that nobody has to hold all of it.
WHOLE_BYTES_MAX = 1024 * 1024
PART_BYTES = 256 * 1024
READ_BYTES = 64 * 1024
#: A request beyond this is read past the decoder, whose buffers would hold it several times.
LARGE_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
#: Headers of frames and contexts of answers that are remembered; each table is emptied when it is full.
REMEMBERED_MAX = 512
REMEMBERED_CONTEXT_BYTES_MAX = 4096

#: Headers about the connection, which is the server's business; applications written for others set them.
CONNECTION_HEADERS = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
)

HeaderValue = Union[str, Sequence[str]]  # noqa: UP007 - evaluated at run time by Python 3.9
Chunk = Union[bytes, bytearray, memoryview, str]  # noqa: UP007

_IDLE = _State.IDLE
_BUSY = _State.BUSY
_HEAD_BYTES = 16
_FILE = struct.Struct("<IQ")
_MSG_CMSG_CLOEXEC = 0x40000000  # socket has no name for it
_F_SETPIPE_SZ = 1031  # fcntl has the names from Python 3.10 on
_F_GETPIPE_SZ = 1032
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_VALUES = re.compile("[\r\n\0]")

_scan_json = JSONDecoder().scan_once  # type: ignore[attr-defined]  # what decode() calls, in C


class BodyFile(BufferedReader):
    """A body that lies in a file of the server; its length is that of the body."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(FileIO(descriptor, "rb"), READ_BYTES)
        self._size = size

    def __len__(self) -> int:
        return self._size


class HttpLine(Worker):
    """A Worker with a short way for requests and answers that are whole. `take` and `give` instead of the loop's verbs.

    With `files` a large body may come as a BodyFile, which its taker closes.
    """

    def __init__(
        self, relay: Relay | None = None, *, handle_signals: bool = True, files: bool = False
    ) -> None:
        super().__init__(relay, handle_signals=handle_signals)
        self._takes_files = files and self._relay.files_fd >= 0
        self._files_socket: Any = None
        self._read_fd = self._relay.read_fd
        self._write_fd = self._relay.write_fd
        self._heads_seen: dict[bytes, tuple[int, int, int]] = {}
        self._heads_made: dict[tuple[int, int, int], bytes] = {}
        self._untidy = True  # bytes or frames may be waiting inside: the first read brings the handshake

    def take(self) -> tuple[bytes, bytes, int] | None:
        """Context, body and flags of the next request; None when the worker should end. As `wait_payload`."""
        while True:
            data = b""
            if not (self._untidy or self._stopping) and self._state is _IDLE:
                ready = self._poll.poll()
                if len(ready) == 1 and ready[0][0] == self._read_fd:
                    data = self._relay.receive(READ_BYTES)
                    known = self._heads_seen.get(data[:_HEAD_BYTES])
                    if known is not None and known[0] == len(data):
                        self._state = _BUSY
                        if self._stopping:  # a signal came since the look above
                            self._took_last = True  # type: ignore[unreachable]
                        cut = known[1]
                        return data[_HEAD_BYTES:cut], data[cut:], known[2]
                    if not data:
                        self._over = True
                        return None
            taken = self._take_unusual(data)
            if taken is not None or self._over:
                return taken

    def take_nowait(self) -> tuple[bytes, bytes, int] | None:
        """As `take` when something is there to be read; None when more is needed, or when `ended` is true."""
        if not (self._untidy or self._stopping) and self._state is _IDLE:
            try:
                data = os.read(self._read_fd, READ_BYTES)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            known = self._heads_seen.get(data[:_HEAD_BYTES])
            if known is not None and known[0] == len(data):
                self._state = _BUSY
                cut = known[1]
                return data[_HEAD_BYTES:cut], data[cut:], known[2]
            if not data:
                self._over = True
                return None
            return self._take_carefully(data)
        return self._take_carefully(b"")

    @property
    def is_over(self) -> bool:
        """The server is gone, or has told this worker to stop."""
        return self._over

    @property
    def may_have_more(self) -> bool:
        """Bytes or control frames wait inside, so that the descriptor says nothing about them."""
        return self._untidy

    def listen(self) -> bool:
        """Take what the server says while a request is being answered; False when nobody wants the answer any more."""
        self._listen_inside_stream()
        self._untidy = True
        return not (self._over or self._stream_refused)

    def give(self, context: bytes, body: bytes, flags: int) -> None:
        """Answer the request at hand with one frame."""
        if self._state is not _BUSY:
            self.respond(body, context, flags)
            return
        cut = len(context)
        total = cut + len(body)
        head = self._heads_made.get((flags, cut, total))
        if head is None:
            head = self._make_head(flags, cut, total)
        if total > READ_BYTES or self._over:
            self._send(head, context, body)
        else:
            frame = head + context + body
            try:
                written = os.write(self._write_fd, frame)
            except OSError:
                written = 0
            if written != len(frame):
                self._send(frame[written:])
        self._state = _IDLE

    def give_in_parts(self, context: bytes, body: bytes, flags: int) -> None:
        """Answer with a body too large for one frame; stops where the client has gone."""
        view = memoryview(body)
        for start in range(0, len(view), PART_BYTES):
            if not self.respond_part(view[start : start + PART_BYTES], b"" if start else context, flags):
                break
        self.respond()

    def _payload_of(self, frame: frames.Frame) -> Payload | None:
        if len(frame.options) != 2 or not self._takes_files:
            return super()._payload_of(frame)
        if frame.options[0] != len(frame.payload):
            raise RemoteProtocolError("a request whose body is a file has a context and nothing else")
        body: Any = self._receive_file(frame.options[1])
        if body is None:
            self._over = True
            return None
        return Payload(frame.payload, body, frame.flags)

    def _receive_file(self, wanted: int) -> BodyFile | None:
        """The file of that number, which has been sent before its request; None when the server has gone meanwhile."""
        import socket

        if self._files_socket is None:
            self._files_socket = socket.socket(fileno=self._relay.files_fd)
        while True:
            space = socket.CMSG_SPACE(4)
            data, messages, _, _ = self._files_socket.recvmsg(_FILE.size, space, _MSG_CMSG_CLOEXEC)
            if not data:
                return None
            if len(data) != _FILE.size or len(messages) != 1 or len(messages[0][2]) != 4:
                raise RemoteProtocolError("an open file was announced, but did not come")
            number, size = _FILE.unpack(data)
            body = BodyFile(int.from_bytes(messages[0][2], sys.byteorder), size)
            if number == wanted:
                return body
            body.close()  # its request never came

    def close(self) -> None:
        """Close the relay and give the signals back; a second call does nothing."""
        if self._files_socket is not None:
            self._files_socket.detach()  # the descriptor is the relay's
            self._files_socket = None
        super().close()

    def _take_unusual(self, data: bytes) -> tuple[bytes, bytes, int] | None:
        """The next request where it did not come in one piece; None when there is none, after a handshake for example."""
        if int.from_bytes(data[2:6], "little") > LARGE_BYTES:
            return self._take_large(data)
        taken = self._take_carefully(data)
        if taken is None and self._decoder.buffered and not self._over:
            return self._take_carefully(b"", None)  # the rest of a frame that has begun
        return taken

    def _take_carefully(self, data: bytes, timeout_ms: int | None = 0) -> tuple[bytes, bytes, int] | None:
        if data:
            self._decoder.feed(data)
        self._stream_refused = False  # it may have come in the middle of an answer that was no stream
        payload = self._receive(timeout_ms)
        self._untidy = bool(self._decoder.buffered or self._postponed)
        if payload is not None and data and not self._untidy:
            self._remember_head(data, payload)
        return payload

    def _take_large(self, data: bytes) -> tuple[bytes, bytes, int] | None:
        """The request of a large frame that these bytes begin; its body is copied once. As `take`."""
        flags = data[1]
        total = int.from_bytes(data[2:6], "little")
        cut = int.from_bytes(data[12:_HEAD_BYTES], "little")
        begun = len(data) - _HEAD_BYTES
        is_payload = not flags & (frames.CONTROL | frames.ERROR) and data[10] == 0
        if not (is_payload and cut <= begun < total and data.startswith(self._make_head(flags, cut, total))):
            return self._take_carefully(data)
        widen_pipe(self._read_fd)
        body = BytesIO()
        body.write(memoryview(data)[_HEAD_BYTES + cut :])
        missing = total - begun
        while missing:
            part = self._relay.receive(min(missing, READ_BYTES_MAX))
            if not part:
                self._over = True
                return None
            body.write(part)
            missing -= len(part)
        if not self._accept():
            return self._take_carefully(b"")
        return data[_HEAD_BYTES : _HEAD_BYTES + cut], body.getvalue(), flags

    def _remember_head(self, data: bytes, payload: Payload) -> None:
        """Remember the head of a frame if these bytes are that frame, and that frame alone."""
        cut = len(payload.context)
        total = cut + len(payload.body)
        head = data[:_HEAD_BYTES]
        if len(data) == _HEAD_BYTES + total and head == self._make_head(payload.flags, cut, total):
            if len(self._heads_seen) >= REMEMBERED_MAX:
                self._heads_seen.clear()
            self._heads_seen[head] = (len(data), _HEAD_BYTES + cut, payload.flags)

    def _make_head(self, flags: int, cut: int, total: int) -> bytes:
        head = self._heads_made.get((flags, cut, total))
        if head is None:
            head = frames.encode_header(total, flags=flags, options=(cut,))
            if len(self._heads_made) >= REMEMBERED_MAX:
                self._heads_made.clear()
            self._heads_made[flags, cut, total] = head
        return head


def widen_pipe(descriptor: int) -> None:
    """Let more be on its way at once: fewer switches between the processes. Does nothing where that cannot be."""
    import fcntl

    try:
        if fcntl.fcntl(descriptor, _F_GETPIPE_SZ) < PIPE_BYTES:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # a socket, another system, or the user's share of pipe memory is used up


# Contexts of requests


def decode_context(context: bytes, flags: int) -> dict[str, Any]:
    """The context of a request as the JSON dialect has it, whichever dialect it came in. Raises MessageError.

    Values of the protobuf dialect are bytes; they come as UTF-8 texts, as Latin-1 where they are none.
    """
    if flags & frames.PROTO:
        return _from_proto(context)
    try:
        value, _ = _scan_json(context.decode("utf-8"), 0)
    except (ValueError, StopIteration, RecursionError) as error:
        raise MessageError(f"a request's context is no JSON: {error!r}") from None
    if type(value) is not dict:
        raise MessageError("a request's context is no JSON object")
    return value


def _from_proto(context: bytes) -> dict[str, Any]:
    from trailboss_worker.protocol.http_message import decode_request_proto

    request = decode_request_proto(context)
    return {
        "remoteAddr": request.remote_addr,
        "protocol": request.protocol,
        "method": request.method,
        "uri": request.uri,
        "headers": {name: [text_of(value) for value in values] for name, values in request.header.items()},
        "cookies": {name: text_of(b",".join(values)) for name, values in request.cookies.items()},
        "rawQuery": request.raw_query,
        "parsed": request.parsed,
        "uploads": decode_context(request.uploads, 0) if request.uploads else None,
        "attributes": {name: text_of(values[0]) for name, values in request.attributes.items() if values},
    }


def text_of(value: bytes) -> str:
    """Bytes of a header as a context has them: UTF-8, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """What `text_of` was made of, as long as that was UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def split_uri(uri: str) -> tuple[str, str, str]:
    """Scheme, authority and undecoded path of an absolute URI without its query: `http`, `host:80`, `/a%20b`.

    The path of `OPTIONS *` is `*`; one that is missing is `/`.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "http", uri
    rest = rest.partition("?")[0]
    authority, slash, path = rest.partition("/")
    if slash:
        return scheme, authority, "/" + path
    if authority.endswith("*"):
        return scheme, authority[:-1], "*"
    return scheme, authority, "/"


def split_authority(authority: str, scheme: str) -> tuple[str, str]:
    """Host (an IPv6 address without brackets) and port; where the port is missing that of the scheme."""
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdigit():
        host, port = authority.rstrip(":"), "443" if scheme == "https" else "80"
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, port


_DIGITS = "0123456789abcdefABCDEF"
_HEX = {high + low: chr(int(high + low, 16)) for high in _DIGITS for low in _DIGITS}


def unquote(path: str) -> str:
    """A path decoded to a text whose characters stand for bytes; what is no valid escape stays as it is."""
    first, *rest = path.split("%")
    parts = [first]
    for piece in rest:
        character = _HEX.get(piece[:2])
        parts += ("%", piece) if character is None else (character, piece[2:])
    return "".join(parts)


# Contexts of answers


class HeaderError(ValueError):
    """A status or header that HTTP cannot carry; the text names it."""


def encode_answer(status: int, headers: Iterable[tuple[str, str]], flags: int) -> bytes:
    """The context of an answer in the dialect of the flags. Raises HeaderError.

    Names and values are texts whose characters stand for bytes (Latin-1), as in WSGI. Headers about the
    connection are left out: that is between the server and its client.
    """
    if not isinstance(status, int) or not 100 <= status <= 599:
        raise HeaderError(f"{status!r} is no status of an answer: 100 to 599")
    grouped: dict[str, list[str]] = {}
    for name, value in headers:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise HeaderError(f"names and values of headers are str, not {name!r}: {value!r}")
        if not _NAME.fullmatch(name):
            raise HeaderError(f"{name!r} is no name of a header")
        if _NOT_IN_VALUES.search(value):
            raise HeaderError(f"the value of the header {name} has a line break or a zero byte: {value!r}")
        if name.lower() in CONNECTION_HEADERS:
            continue
        grouped.setdefault(name, []).append(value if value.isascii() else _value_text(name, value))
    if flags & frames.PROTO:
        from trailboss_worker.protocol.http_message import encode_answer_proto

        return encode_answer_proto(
            status, {name: [bytes_of(value) for value in values] for name, values in grouped.items()}
        )
    text = ",".join(
        [
            f"{encode_basestring(name)}:[{','.join(map(encode_basestring, values))}]"
            for name, values in grouped.items()
        ]
    )
    return f'{{"status":{status:d},"headers":{{{text}}}}}'.encode()


def _value_text(name: str, value: str) -> str:
    try:
        return text_of(value.encode("latin-1"))
    except UnicodeEncodeError:
        raise HeaderError(
            f"the value of the header {name} has characters beyond Latin-1: {value!r}"
        ) from None


# A program's own loop


class Request:
    """One request. `headers` maps names, as `Content-Type`, to lists of values; Host is in `uri`.

    `body` is what was sent; where `parsed` is true the server took a form apart, and `form()` and `uploads` have it.
    """

    __slots__ = (
        *("attributes", "body", "cookies", "flags", "headers", "method", "parsed", "protocol"),
        *("query", "remote_addr", "uploads", "uri"),
    )

    def __init__(self, context: Mapping[str, Any], body: bytes, flags: int) -> None:
        self.method: str = context["method"]
        self.uri: str = context["uri"]
        self.protocol: str = context["protocol"]
        self.remote_addr: str = context["remoteAddr"]
        self.query: str = context["rawQuery"]
        self.headers: dict[str, list[str]] = context.get("headers") or {}
        self.cookies: dict[str, str] = context.get("cookies") or {}
        self.attributes: dict[str, str] = context.get("attributes") or {}
        self.uploads: dict[str, Any] = context.get("uploads") or {}
        self.parsed: bool = context["parsed"]
        self.body = body
        self.flags = flags

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.uri} from {self.remote_addr}>"

    @property
    def path(self) -> str:
        """The path, as it was sent (not decoded)."""
        return split_uri(self.uri)[2]

    @property
    def host(self) -> str:
        """The Host header: name and, where it was sent, port."""
        return split_uri(self.uri)[1]

    @property
    def scheme(self) -> str:
        """http or https."""
        return split_uri(self.uri)[0]

    def header(self, name: str) -> str | None:
        """The value of a header whatever the case of its name, repeated ones joined; None where there is none."""
        wanted = name.lower()
        for key, values in self.headers.items():
            if key.lower() == wanted:
                return ("; " if wanted == "cookie" else ", ").join(values)
        return None

    def form(self) -> dict[str, Any]:
        """The fields of a form that the server has parsed: `a[b][]` is {"a": {"b": [...]}}. Raises MessageError."""
        return decode_context(self.body, 0) if self.parsed and self.body else {}


class HttpWorker:
    """Receives requests and answers each exactly once. Blocking; belongs to one thread.

    The server parses forms unless `http.raw_body` is true. Raises RelayError when there is no relay.
    """

    def __init__(self, relay: Relay | None = None, *, handle_signals: bool = True) -> None:
        self._line = HttpLine(relay, handle_signals=handle_signals)
        self._request: Request | None = None

    def __enter__(self) -> HttpWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def worker(self) -> Worker:
        """The Worker underneath."""
        return self._line

    def wait_request(self) -> Request | None:
        """The next request, however long it takes; None when the worker should end.

        A request that makes no sense is answered with an error here. Raises LocalProtocolError when the previous
        one has not been answered.
        """
        while True:
            taken = self._line.take()
            if taken is None:
                return None
            context, body, flags = taken
            try:
                self._request = Request(decode_context(context, flags), body, flags)
            except (MessageError, KeyError) as error:
                self._line.error(f"a request that makes no sense: {error}")
                continue
            return self._request

    def respond(
        self, status: int = 200, body: Chunk = b"", headers: Mapping[str, HeaderValue] | None = None
    ) -> None:
        """Answer the request at hand. Raises HeaderError for what HTTP cannot carry; then it is not answered yet."""
        context, flags = self._context(status, headers)
        self._line.respond(body, context, flags)
        self._request = None

    def inform(self, status: int, headers: Mapping[str, HeaderValue] | None = None) -> None:
        """Send an interim answer, such as 103 with links; the real one follows. Raises HeaderError."""
        if not 102 <= status <= 199:
            raise HeaderError(f"{status} is no status of an interim answer: 102 to 199")
        context, flags = self._context(status, headers)
        self._line.respond_part(b"", context, flags)

    def stream(
        self,
        chunks: Iterable[Chunk],
        status: int = 200,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> bool:
        """Answer with all chunks, each sent as soon as it is there; False when the client went away before the end.

        What the iterable raises comes out here; `error` is the answer still to be given then.
        """
        context, flags = self._context(status, headers)
        iterator = iter(chunks)
        first = True
        wanted = True
        for chunk in iterator:
            wanted = self._line.respond_part(chunk, context if first else b"", flags)
            first = False
            if not wanted:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
                break
        self._line.respond(b"", context if first else b"", flags if first else 0)
        self._request = None
        return wanted

    def error(self, text: str) -> None:
        """Say that the request failed: the client gets the server's own error page, the text goes to the log."""
        self._line.error(text)
        self._request = None

    def close(self) -> None:
        """Close the relay and give the signals back; a second call does nothing."""
        self._line.close()

    def _context(self, status: int, headers: Mapping[str, HeaderValue] | None) -> tuple[bytes, int]:
        if self._request is None:
            raise LocalProtocolError("there is no request to answer; each one is answered exactly once")
        flags = self._request.flags & (frames.PROTO | frames.JSON) or frames.JSON
        return encode_answer(status, _pairs(headers or {}), flags), flags


def _pairs(headers: Mapping[str, HeaderValue]) -> Iterable[tuple[str, str]]:
    """One pair for each value; texts beyond ASCII are sent as UTF-8."""
    for name, values in headers.items():
        for value in (values,) if isinstance(values, str) else values:
            yield name, value if value.isascii() else value.encode("utf-8").decode("latin-1")
