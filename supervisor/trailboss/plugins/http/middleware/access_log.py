"""One record for each answer, with RoadRunner's keys, or one line in the `common` or `combined` format.

The record is built when the answer ends, and only where records of level info go anywhere; that is asked at the beginning
of each request, and where they do not, the request passes through as if this file did not exist. A client that leaves
before its answer began is logged with status 499, as nginx does.

Where the log takes it, a record is written as JSON right here: the text of a known record costs a tenth of what a general
encoder needs for it. Records are written up to BATCH_SECONDS after the answer, many at a time, which halves the cost again.

Times: `start` and `request_time` are unix nanoseconds, like `ts`; `elapsed` is in whole milliseconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.connection import failure
from trailboss.plugins.http.contract import MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder

__all__ = ["AccessLog", "Style", "make_access_log"]

CLIENT_GONE: Final = 499
ADDRESSES_MAX: Final = 4096
#: So many records are written at once, and none waits for longer; the time is rounded up to the next tick of the wheel.
BATCH_RECORDS: Final = 128
BATCH_SECONDS: Final = 0.02
#: Longest text of one field taken from a header, in characters.
_TEXT_LENGTH_MAX: Final = 8192
_UNSAFE: Final = re.compile(r'[\x00-\x1f"\\\x7f-\U0010ffff]')


OnFailure = Callable[[Request, Responder, Exception], None]
"""Answers a request whose handler has raised."""


class Style(Enum):
    """How much a record says."""

    SHORT = "http log"
    LONG = "http access log"
    COMMON = "common"
    COMBINED = "combined"


class AccessLog:
    """Logs every answer."""

    def __init__(
        self, style: Style, services: MiddlewareServices, on_failure: OnFailure | None = None
    ) -> None:
        """`on_failure` gets the request over which a handler has raised; None: the exception goes on."""
        self._services = services
        self._on_failure = on_failure
        self._style = style
        #: Answers of which the record is still to be written: with status, bytes of both bodies, and when it ended.
        self._waiting: list[tuple[Request, int, int, int, float]] = []
        #: What `remote_address` says, by host and port.
        self._addresses: dict[tuple[str, int], str] = {}
        is_quick = services.access_lines is not None
        self._write = {
            Style.SHORT: self._queue if is_quick else self._write_short,
            Style.LONG: self._queue if is_quick else self._write_long,
            Style.COMMON: self._write_common,
            Style.COMBINED: self._write_combined,
        }[style]

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that logs the answers of `next_handler`."""
        logs_info, write, on_failure = self._services.logs_info, self._write, self._on_failure

        def handle(request: Request, responder: Responder) -> None:
            if logs_info():
                responder = _LoggedResponder(responder, request, write)
            try:
                next_handler(request, responder)
            except Exception as error:
                if on_failure is None:
                    raise
                on_failure(request, responder, error)

        return handle

    def _write_short(self, request: Request, status: int, read_bytes: int, sent_bytes: int) -> None:
        elapsed_seconds = max(0.0, self._services.clock() - request.started)
        self._services.access_log(
            "http log",
            status=status,
            method=request.method,
            URI=request.target,
            URL=_url(request),
            remote_address=_remote_address(request),
            read_bytes=read_bytes,
            write_bytes=sent_bytes,
            start=time.time_ns() - int(elapsed_seconds * 1e9),
            elapsed=int(elapsed_seconds * 1e3),
            **({"request_id": request.id} if request.id else {}),
        )

    def _write_long(self, request: Request, status: int, read_bytes: int, sent_bytes: int) -> None:
        elapsed_seconds = max(0.0, self._services.clock() - request.started)
        now_ns = time.time_ns()
        self._services.access_log(
            "http access log",
            status=status,
            method=request.method,
            URI=request.target,
            URL=_url(request),
            remote_address=_remote_address(request),
            query=request.query,
            content_len=read_bytes,
            host=request.host,
            user_agent=_text(request, b"user-agent"),
            referer=_text(request, b"referer"),
            time_local=_local_time(now_ns // 1_000_000_000),
            request_time=now_ns,
            read_bytes=read_bytes,
            write_bytes=sent_bytes,
            start=now_ns - int(elapsed_seconds * 1e9),
            elapsed=int(elapsed_seconds * 1e3),
            **({"request_id": request.id} if request.id else {}),
        )

    def _queue(self, request: Request, status: int, read_bytes: int, sent_bytes: int) -> None:
        """Take note of an answer; its record is written with others."""
        waiting = self._waiting
        waiting.append((request, status, read_bytes, sent_bytes, self._services.clock()))
        if len(waiting) == 1:
            if self._services.call_later is not None:
                self._services.call_later(BATCH_SECONDS, self._flush)
            else:
                self._services.call_soon(self._flush)
        elif len(waiting) >= BATCH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting or self._services.access_lines is None:
            return
        now, now_ns = self._services.clock(), time.time_ns()
        is_short = self._style is Style.SHORT
        describe = self._short if is_short else self._long
        message = "http log" if is_short else "http access log"
        records = []
        for request, status, read_bytes, sent_bytes, answered in waiting:
            fields = describe(
                request,
                status,
                read_bytes,
                sent_bytes,
                now_ns - int((now - answered) * 1e9),
                max(0.0, answered - request.started),
            )
            records.append((message, fields if "\x7f" not in fields else fields.replace("\x7f", "\\u007f")))
        self._services.access_lines(records)

    def _short(
        self,
        request: Request,
        status: int,
        read_bytes: int,
        sent_bytes: int,
        at_ns: int,
        elapsed_seconds: float,
    ) -> str:
        """What `_write_short` says, as JSON; `at_ns` is when the answer ended."""
        target = _quote(request.target)
        address = (request.remote_addr, request.remote_port)
        return (
            f'{{"status":{status},"method":{_quote(request.method)},"URI":{target},'
            f'"URL":{target if request.target[:1] == "/" else _quote(_url(request))},'
            f'"remote_address":{self._addresses.get(address) or self._quote_address(address)},'
            f'"read_bytes":{read_bytes},"write_bytes":{sent_bytes},'
            f'"start":{at_ns - int(elapsed_seconds * 1e9)},'
            f'"elapsed":{int(elapsed_seconds * 1e3)}{_quoted_id(request) if request.id else ""}}}'
        )

    def _quote_address(self, address: tuple[str, int]) -> str:
        """The address of a client as a JSON text, remembered for its next requests."""
        if len(self._addresses) >= ADDRESSES_MAX:
            self._addresses.clear()
        self._addresses[address] = quoted = _quote(_address(*address))
        return quoted

    def _long(
        self,
        request: Request,
        status: int,
        read_bytes: int,
        sent_bytes: int,
        at_ns: int,
        elapsed_seconds: float,
    ) -> str:
        """What `_write_long` says, as JSON; `at_ns` is when the answer ended."""
        return (
            f'{{"status":{status},"method":{_quote(request.method)},"URI":{_quote(request.target)},'
            f'"URL":{_quote(_url(request))},"remote_address":{_quote(_remote_address(request))},'
            f'"query":{_quote(request.query)},"content_len":{read_bytes},"host":{_quote(request.host)},'
            f'"user_agent":{_quote(_text(request, b"user-agent"))},'
            f'"referer":{_quote(_text(request, b"referer"))},'
            f'"time_local":"{_local_time(at_ns // 1_000_000_000)}","request_time":{at_ns},'
            f'"read_bytes":{read_bytes},"write_bytes":{sent_bytes},'
            f'"start":{at_ns - int(elapsed_seconds * 1e9)},"elapsed":{int(elapsed_seconds * 1e3)}'
            f"{_quoted_id(request)}}}"
        )

    def _write_common(self, request: Request, status: int, read_bytes: int, sent_bytes: int) -> None:
        self._services.access_log(_common_line(request, status, sent_bytes))

    def _write_combined(self, request: Request, status: int, read_bytes: int, sent_bytes: int) -> None:
        referer, agent = _text(request, b"referer") or "-", _text(request, b"user-agent") or "-"
        line = _common_line(request, status, sent_bytes)
        self._services.access_log(f'{line} "{_escape(referer)}" "{_escape(agent)}"')


_Write = Callable[[Request, int, int, int], None]
"""Takes a request, the status of its answer, and the bytes of both bodies."""


class _LoggedResponder(ResponderWrapper):
    """Counts one answer."""

    __slots__ = ("_bodiless", "_read_bytes", "_request", "_sent_bytes", "_status", "_write", "on_gone")

    #: Told by this object; what the inner one calls is `_gone`.
    on_gone: Callable[[], None] | None

    def __init__(self, inner: Responder, request: Request, write: _Write) -> None:
        self.inner = inner
        self._request = request
        #: None as soon as the record is written.
        self._write: _Write | None = write
        self._read_bytes = request.body.size  # the body is let go before the record is written
        self._status = 0
        self._sent_bytes = 0
        self._bodiless = request.method == "HEAD"
        self.on_gone = None
        inner.on_gone = self._gone

    def _gone(self) -> None:
        self._log(self._status or CLIENT_GONE, self._sent_bytes)
        if self.on_gone is not None:
            self.on_gone()

    def _log(self, status: int, sent_bytes: int) -> None:
        write, self._write = self._write, None
        if write is not None:
            write(self._request, status, self._read_bytes, sent_bytes)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Remember the status."""
        if not self._status:
            self._status = status
            self._bodiless = self._bodiless or status in (204, 304)
        self.inner.head(status, headers, length=length)

    def data(self, chunk: bytes) -> None:
        """Count a part."""
        if not self._bodiless:
            self._sent_bytes += len(chunk)
        self.inner.data(chunk)

    def file(self, fd: int, offset: int, count: int) -> None:
        """Count a part of a file."""
        if not self._bodiless:
            self._sent_bytes += count
        self.inner.file(fd, offset, count)

    def end(self, trailers: HeaderList = ()) -> None:
        """Send the end, then log."""
        self.inner.end(trailers)
        self._log(self._status, self._sent_bytes)

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send the answer, then log."""
        self.inner.respond(status, headers, body)
        self._log(status, 0 if self._bodiless or status in (204, 304) else len(body))

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Send the answer of the server itself, then log; a broken answer keeps the status it began with."""
        self.inner.fail(status, reason, retry_after=retry_after, close=close)
        whole = not self._status and not self._bodiless
        self._log(self._status or status, len(failure(reason)[1]) if whole else self._sent_bytes)

    def abort(self) -> None:
        """Cut the connection, then log what was sent."""
        self.inner.abort()
        self._log(self._status or CLIENT_GONE, self._sent_bytes)


def _quoted_id(request: Request) -> str:
    return f',"request_id":{_quote(request.id)}' if request.id else ""


def _url(request: Request) -> str:
    if request.target[:1] == "/":
        return request.target
    return f"{request.path}?{request.query}" if request.query else request.path


def _remote_address(request: Request) -> str:
    return _address(request.remote_addr, request.remote_port)


def _address(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(request: Request, name: bytes) -> str:
    value = request.header(name)
    return "" if value is None else value[:_TEXT_LENGTH_MAX].decode("utf-8", "backslashreplace")


def _common_line(request: Request, status: int, sent_bytes: int) -> str:
    when = _local_time(int(time.time()))
    address = _escape(request.remote_addr) or "-"
    line = f"{request.method} {request.target} HTTP/{request.version}"
    return f'{address} - - [{when}] "{_escape(line)}" {status} {sent_bytes or "-"}'


def _escape(text: str) -> str:
    """Return `text` with everything written out that could end its field or the line."""
    return _UNSAFE.sub(
        lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape")), text
    )


@lru_cache(maxsize=4)
def _local_time(seconds: int) -> str:
    """Return a unix time as 24/Nov/2026:13:00:00 +0000; the names of months do not follow the locale."""
    local = time.localtime(seconds)
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[
        local.tm_mon - 1
    ]
    return f"{local.tm_mday:02d}/{month}/{local.tm_year}:{time.strftime('%H:%M:%S %z', local)}"


def make_access_log(
    config: HttpConfig, services: MiddlewareServices, on_failure: OnFailure | None = None
) -> AccessLog:
    """Return the access log that `http.access_logs` and `http.access_log_format` ask for."""
    style = {"common": Style.COMMON, "combined": Style.COMBINED}.get(config.access_log_format)
    return AccessLog(style or (Style.LONG if config.access_logs else Style.SHORT), services, on_failure)
