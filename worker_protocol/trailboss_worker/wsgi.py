"""`trailboss-worker wsgi module:application`: a WSGI application (PEP 3333), one request at a time.

Order of the start: the relay, the import, then the handshake: a worker that says it is ready is. A request's environ is
a copy of a template that was made for its scheme and Host, plus the request's own; names of headers become keys once.

A list, a tuple, or a first chunk as long as Content-Length says is the whole answer and travels as one frame. Anything
else is sent chunk by chunk as it comes, none held back, and ends early where the client has gone. An exception is a
500 with its traceback on standard error; once a part of the answer is out, the server is told to cut it instead, so
that nobody takes half an answer for a whole one. `close()` is called in every case, after the answer is out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from types import TracebackType
from typing import Any, Union

from trailboss_worker.application import (
    FAILED_BODY,
    FAILED_HEADERS,
    FORM_PARSED,
    ApplicationOptions,
    complain,
    load_application,
    prepare_development,
    print_failure,
    settle_memory,
    shown_failure,
)
from trailboss_worker.protocol.errors import MessageError, ProtocolError
from trailboss_worker.protocol.frames import JSON, PROTO
from trailboss_worker.sdk.http import (
    PART_BYTES,
    REMEMBERED_CONTEXT_BYTES_MAX,
    REMEMBERED_MAX,
    WHOLE_BYTES_MAX,
    BodyFile,
    HeaderError,
    HttpLine,
    bytes_of,
    decode_context,
    encode_answer,
    split_authority,
    split_uri,
    unquote,
)
from trailboss_worker.sdk.relay import RelayError, open_relay

Environ = dict[str, Any]
Body = Union[bytes, BodyFile]  # noqa: UP007 - evaluated at run time by Python 3.9
Headers = list[tuple[str, str]]
ExcInfo = Union[  # noqa: UP007 - evaluated at run time by Python 3.9
    tuple[type[BaseException], BaseException, TracebackType], tuple[None, None, None], None
]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def run_wsgi(options: ApplicationOptions) -> int:
    """Serve the application until the server or a signal ends it; gives the exit code."""
    try:
        relay = open_relay()
    except RelayError as error:
        return complain(str(error))
    dev = prepare_development()
    try:
        application = load_application(options)
    except Exception as error:
        print_failure(f"trailboss-worker: cannot load the application {options.target}:", error)
        return 1
    settle_memory()
    Response.dev = dev
    line = HttpLine(relay, files=True)
    try:
        serve(line, application, options.root_path)
    except ProtocolError as error:
        return complain(str(error))
    finally:
        line.close()
    return 0


def serve(line: HttpLine, application: Application, root_path: str = "") -> None:
    """Answer requests until the line ends. Raises RemoteProtocolError when the server speaks another protocol."""
    take = line.take
    answer = Gateway(line, application, root_path).answer
    while True:
        taken = take()
        if taken is None:
            return
        answer(*taken)
        del taken  # a large body must not stay until the next one is there


class Gateway:
    """Answers one request after the other."""

    __slots__ = ("_application", "_build_environ", "_contexts", "_line")

    def __init__(self, line: HttpLine, application: Application, root_path: str = "") -> None:
        self._line = line
        self._application = application
        self._build_environ = EnvironBuilder(root_path).build
        self._contexts: dict[tuple[Any, ...], bytes] = {}

    def answer(self, context: bytes, body: Body, flags: int) -> None:
        """Call the application and send what it gives."""
        line = self._line
        try:
            environ = self._build_environ(context, body, flags)
        except (MessageError, LookupError, TypeError, AttributeError) as error:
            line.error(f"a request that makes no sense: {error!r}")
            return
        response = Response(line, self._contexts, flags, environ["REQUEST_METHOD"])
        result: Any = None
        try:
            result = self._application(environ, response.start_response)
            kind = type(result)
            if (kind is list or kind is tuple) and not response.begun and response.status is not None:
                data = result[0] if len(result) == 1 else b"".join(result)
                if type(data) is bytes and len(data) <= WHOLE_BYTES_MAX:
                    line.give(response.context(), data, response.dialect)
                else:
                    response.whole(data)
            else:
                response.send_all(result)
        except Exception as error:
            response.failed(error, environ)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                _close(close, environ)
            if isinstance(body, BodyFile):
                body.close()


def _close(close: Callable[[], object], environ: Environ) -> None:
    """The answer is out: what goes wrong now is for the log alone."""
    try:
        close()
    except Exception as error:
        print_failure(f"{_described(environ)}: close() failed after the answer:", error)


def _described(environ: Environ) -> str:
    return f"{environ['REQUEST_METHOD']} {environ['SCRIPT_NAME']}{environ['PATH_INFO']}"


class Response:
    """The answer to one request: start_response, write, and what sends it."""

    __slots__ = ("_contexts", "_line", "_method", "_over", "begun", "dialect", "headers", "status")
    #: Errors are shown in the browser.
    dev = False

    def __init__(
        self, line: HttpLine, contexts: dict[tuple[Any, ...], bytes], flags: int, method: str
    ) -> None:
        self._line = line
        self._contexts = contexts
        self._method = method
        self.dialect = PROTO if flags & PROTO else JSON
        self.status: str | None = None
        self.headers: Headers = []
        self.begun = False  # the head is out, nothing can be taken back
        self._over = False  # nothing more is to be sent: complete, or the client has gone

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo = None
    ) -> Callable[[bytes], None]:
        """PEP 3333: say the head of the answer; again only with exc_info, which is raised if the head is out."""
        if exc_info is not None:
            try:
                if self.begun and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise AssertionError("start_response was called before, and not with exc_info now")
        self.status = status
        self.headers = headers if type(headers) is list else list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333, for applications of old: send now."""
        if not isinstance(data, bytes):
            raise TypeError(f"write() takes bytes, not {type(data).__name__}")
        if data:
            self._send_part(data)

    def context(self) -> bytes:
        """The context that says status and headers. Raises HeaderError, AssertionError."""
        status = self.status
        if status is None:
            raise AssertionError("the application has not called start_response")
        headers = self.headers
        try:
            key = (self.dialect, status, *headers)
            known = self._contexts.get(key)
        except TypeError:  # pairs that are lists, or no pairs at all
            headers = [(name, value) for name, value in headers]
            key = (self.dialect, status, *headers)
            known = self._contexts.get(key)
        if known is not None:
            return known
        context = encode_answer(status_code(status), headers, self.dialect)
        if len(context) <= REMEMBERED_CONTEXT_BYTES_MAX:
            if len(self._contexts) >= REMEMBERED_MAX:
                self._contexts.clear()
            self._contexts[key] = context
        return context

    def whole(self, body: bytes) -> None:
        """Send an answer that is complete; a large one in parts, with its length."""
        if not isinstance(body, bytes):
            raise TypeError(f"an application gives bytes, not {type(body).__name__}")
        if len(body) <= WHOLE_BYTES_MAX:
            self._line.give(self.context(), body, self.dialect)
        else:
            if self.content_length() is None:
                self.headers = [*self.headers, ("Content-Length", str(len(body)))]
            context = self.context()
            self.begun = True
            if self._method == "HEAD":
                self._line.give(context, b"", self.dialect)
            else:
                self._line.give_in_parts(context, body, self.dialect)
        self.begun = self._over = True

    def send_all(self, result: Iterable[bytes]) -> None:
        """Send chunk by chunk. Raises what the application raises."""
        chunks = result.parts() if type(result) is FileWrapper else iter(result)
        remaining: int | None = None
        for chunk in chunks:
            if not isinstance(chunk, bytes):
                raise TypeError(f"an application gives bytes, not {type(chunk).__name__}")
            if not chunk:
                continue
            if self._over or remaining == 0:
                break  # the client has gone, or there is more than Content-Length has announced
            if remaining is None and not self.begun:
                remaining = self.content_length()
            if remaining is not None:
                chunk = chunk[:remaining]
                remaining -= len(chunk)
            if remaining == 0 and not self.begun:
                self.whole(chunk)
            else:
                self._send_part(chunk)
        self._end()

    def content_length(self) -> int | None:
        """What the application has announced; None for nothing, or for something that is no number."""
        for name, value in self.headers:
            if len(name) == 14 and name.lower() == "content-length":
                return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
        return None

    def failed(self, error: Exception, environ: Environ) -> None:
        """Log the error; answer 500, or let the server cut what has begun."""
        gone = self._over
        if not gone:
            self._over = True
            if self.begun:
                self._line.error(f"{type(error).__name__} in the middle of an answer")
            else:
                self.begun = True
                headers, body = FAILED_HEADERS, FAILED_BODY
                if self.dev:
                    headers, body = shown_failure(error, _described(environ))
                self._line.respond(body, encode_answer(500, headers, self.dialect), self.dialect)
        print_failure(f"{_described(environ)} failed{' after its answer' if gone else ''}:", error)

    def _send_part(self, data: bytes) -> None:
        if self._over:
            return
        context = b"" if self.begun else self.context()
        self.begun = True
        for start in range(0, len(data), PART_BYTES):
            part = data if len(data) <= PART_BYTES else data[start : start + PART_BYTES]
            if not self._line.respond_part(part, context if start == 0 else b"", self.dialect):
                self._line.respond()
                self._over = True
                return

    def _end(self) -> None:
        if self._over:
            return
        if self.begun:
            self._line.respond()
        else:
            self._line.give(self.context(), b"", self.dialect)
        self.begun = self._over = True


def status_code(status: str) -> int:
    """The number in `200 OK`. Raises HeaderError."""
    if not isinstance(status, str):
        raise HeaderError(f"the status is a str such as '200 OK', not {status!r}")
    digits = status[:3]
    if not (digits.isascii() and digits.isdigit() and len(digits) == 3 and status[3:4] in ("", " ")):
        raise HeaderError(f"the status begins with three digits, as in '200 OK', not {status!r}")
    return int(digits)


class FileWrapper:
    """`wsgi.file_wrapper`: a file as the answer, sent in large parts whatever block size was asked for."""

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        self._file = file
        self._block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts(self._block_size))

    def parts(self, size: int = PART_BYTES) -> Iterator[bytes]:
        """The rest of the file in parts of so many bytes."""
        while True:
            data = self._file.read(size)
            if not data:
                return
            yield data


#: The beginning of a context as Trailboss writes it: who asks, how, and where. It is the same for all requests of a client.
_BEGINNING = re.compile(
    rb'\{"remoteAddr":"([^"\\]*)","protocol":"([^"\\]*)","method":"([^"\\]*)","uri":"(\w+://[^"\\/?*]*)/'
)


class EnvironBuilder:
    """Makes the environ of each request from its context.

    What the beginning of a context says is remembered as a half-made environ, so that of most requests only the rest is
    read. A context of another form, or of another server, is read as a whole; both ways give the same.
    """

    def __init__(self, root_path: str = "", errors: Any = None) -> None:
        self._root = root_path.rstrip("/")
        self._common: Environ = {
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr if errors is None else errors,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "SERVER_SOFTWARE": "Trailboss",
            "SCRIPT_NAME": self._root,
        }
        self._templates: dict[bytes, Environ] = {}
        self._keys: dict[str, str] = {"Content-Type": "CONTENT_TYPE", "Content-Length": "", "Proxy": ""}

    def build(self, context: bytes, body: Body, flags: int) -> Environ:
        """The environ of one request. Raises MessageError, LookupError or TypeError for a context that is none."""
        # Texts of an ASCII context without escapes are ASCII, which is what nearly all are: nothing to convert.
        plain = not flags & PROTO and context.isascii() and b"\\u" not in context
        cut = context.find(b"/", context.find(b"://") + 3) if plain else 0
        template = self._templates.get(context[:cut]) or self._make_template(context[:cut])
        if template is None:
            value = decode_context(context, flags)
            uri: str = value["uri"] if plain else _latin1(value["uri"])
            start = uri.find("/", uri.find("://") + 3)
            environ = self._environ_of(value, uri[:start] if start > 0 else uri)
            if start > 0:
                target = uri[start:]
                path = target.partition("?")[0]
            else:
                target = path = split_uri(uri)[2]
        else:
            value = decode_context(b'{"uri":"' + context[cut:], flags)
            environ = template.copy()
            target = value["uri"]
            path = target.partition("?")[0]
        environ["REQUEST_URI"] = target
        environ["PATH_INFO"] = path if "%" not in path else unquote(path)
        environ["QUERY_STRING"] = value["rawQuery"] if plain else _latin1(value["rawQuery"])
        environ["wsgi.input"] = BytesIO(body) if type(body) is bytes else body
        headers = value["headers"] or {}
        keys = self._keys
        for name, values in headers.items():
            key = keys.get(name)
            if key is None:
                key = self._make_key(name)
            if key:
                text = values[0] if len(values) == 1 else _join(name, values)
                environ[key] = text if plain else _latin1(text)
        if body or "Content-Length" in headers:
            environ["CONTENT_LENGTH"] = str(len(body))
        if value["parsed"]:
            raise MessageError(FORM_PARSED)
        attributes = value.get("attributes")
        if attributes:
            environ["trailboss.attributes"] = attributes
        if self._root:
            self._strip_root(environ)
        return environ

    def _strip_root(self, environ: Environ) -> None:
        """A proxy in front may have taken the prefix away or left it: PATH_INFO is without it either way."""
        path: str = environ["PATH_INFO"]
        if path == self._root or path.startswith(self._root + "/"):
            environ["PATH_INFO"] = path[len(self._root) :]

    def _environ_of(self, value: dict[str, Any], origin: str) -> Environ:
        """The half of an environ that the beginning of a context decides."""
        scheme, authority, _ = split_uri(origin)
        host, port = split_authority(authority, scheme)
        return {
            **self._common,
            "wsgi.url_scheme": scheme,
            "HTTP_HOST": authority,
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "REQUEST_METHOD": value["method"],
            "SERVER_PROTOCOL": value["protocol"],
            "REMOTE_ADDR": value["remoteAddr"],
        }

    def _make_template(self, beginning: bytes) -> Environ | None:
        """What is to be remembered of a context that begins like this; None where it has to be read as a whole."""
        match = _BEGINNING.fullmatch(beginning + b"/")
        if match is None:
            return None
        address, protocol, method, origin = (group.decode("ascii") for group in match.groups())
        template = self._environ_of({"method": method, "protocol": protocol, "remoteAddr": address}, origin)
        if len(self._templates) >= REMEMBERED_MAX:  # clients choose the Host
            self._templates.clear()
        self._templates[beginning] = template
        return template

    def _make_key(self, name: str) -> str:
        """The key of a header, "" for one that is left out: Proxy would become the HTTP_PROXY of libraries."""
        text = name.upper().replace("-", "_")
        if text in ("CONTENT_LENGTH", "PROXY"):
            key = ""
        elif text == "CONTENT_TYPE":
            key = text
        else:
            key = "HTTP_" + text
        if len(self._keys) >= REMEMBERED_MAX:  # clients choose the names
            self._keys.clear()
            self._keys.update({"Content-Length": "", "Proxy": ""})
        self._keys[name] = key
        return key


def _join(name: str, values: list[str]) -> str:
    return ("; " if name in ("Cookie", "cookie") else ", ").join(values)


def _latin1(text: str) -> str:
    """A text as WSGI has it: each character stands for one byte of its UTF-8."""
    return bytes_of(text).decode("latin-1")
