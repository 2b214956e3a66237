"""`trailboss-worker asgi module:application`: an ASGI 3 application (HTTP and lifespan), one request at a time.

Everything runs on one asyncio loop that lives as long as the process. Lifespan's startup is over before the server's
handshake is answered, so a worker that says it is ready is; its shutdown follows the last request. The relay's
descriptor wakes the loop; each request is a task of its own, with its own context variables. What an application still
does after its answer (background tasks) goes on beside the next request, and is waited for before the end.

An answer that is complete at once travels as one frame. `send` returns when the pipe has taken what it was given, so a
slow client slows the application and nothing piles up; when the client has gone it raises ClientGone, an OSError, as
ASGI 2.4 says, and `receive` gives http.disconnect. There is no websocket scope: the server has none to pass on.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any

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
from trailboss_worker.protocol.errors import LocalProtocolError, MessageError, ProtocolError
from trailboss_worker.protocol.frames import JSON, PROTO
from trailboss_worker.sdk.http import (
    PART_BYTES,
    REMEMBERED_CONTEXT_BYTES_MAX,
    REMEMBERED_MAX,
    WHOLE_BYTES_MAX,
    BodyFile,
    HttpLine,
    bytes_of,
    decode_context,
    encode_answer,
    split_authority,
    split_uri,
    unquote,
)
from trailboss_worker.sdk.relay import Relay, RelayError, after_written, open_relay
from trailboss_worker.sdk.signals import default_in_children

Message = MutableMapping[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_WRITE_PARTS_MAX = 16


class ClientGone(OSError):
    """The client has gone; there is nobody to send to."""


def run_asgi(options: ApplicationOptions) -> int:
    """Serve the application until the server or a signal ends it; gives the exit code."""
    try:
        relay = open_relay()
    except RelayError as error:
        return complain(str(error))
    default_in_children()
    return asyncio.run(_live(relay, options))


async def _live(taken: Relay, options: ApplicationOptions) -> int:
    Gateway.exchanges = ShowingExchange if prepare_development() else Exchange
    try:
        application = load_application(options)
    except Exception as error:
        print_failure(f"trailboss-worker: cannot load the application {options.target}:", error)
        return 1
    lifespan = Lifespan(application, options.lifespan)
    failure = await lifespan.startup()
    if failure is not None:
        return complain(f"{options.target} did not start: {failure}")
    settle_memory()
    relay = AsyncRelay(taken)
    gateway = Gateway(
        HttpLine(relay, handle_signals=False, files=True),
        relay,
        application,
        lifespan.state,
        options.root_path,
    )
    try:
        await gateway.serve()
    except ProtocolError as error:
        return complain(str(error))
    finally:
        await lifespan.shutdown()
        gateway.close()
    return 0


class AsyncRelay(Relay):
    """A relay that never blocks: what the kernel does not take at once follows, and `drain` waits for it."""

    __slots__ = ("_drained", "_was_blocking", "unsent")

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay.kind, relay.read_fd, relay.write_fd, relay.files_fd)
        self.unsent: list[bytes] = []
        self._drained: asyncio.Future[None] | None = None
        self._was_blocking = os.get_blocking(self.write_fd)
        # Reading too: what made the descriptor readable may have been read by the time its callback runs.
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    def send(self, *parts: bytes) -> None:
        """Take all parts; raises BrokenPipeError or ConnectionResetError when the server is gone."""
        if self.unsent:
            self.unsent += parts
            return
        self.unsent = self._write([part for part in parts if part])
        if self.unsent:
            asyncio.get_running_loop().add_writer(self.write_fd, self._flush)

    async def drain(self) -> None:
        """Wait until nothing is unsent."""
        while self.unsent:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def close(self) -> None:
        """Close both descriptors; a second call does nothing."""
        if self.write_fd != -1 and self._was_blocking:
            os.set_blocking(self.read_fd, True)
            os.set_blocking(self.write_fd, True)
        super().close()

    def _write(self, parts: list[bytes]) -> list[bytes]:
        while parts:
            try:
                parts = after_written(parts, os.writev(self.write_fd, parts[:_WRITE_PARTS_MAX]))
            except BlockingIOError:
                break
        return parts

    def _flush(self) -> None:
        try:
            self.unsent = self._write(self.unsent)
        except OSError:
            self.unsent = []  # the server is gone, which reading will tell
        if not self.unsent:
            asyncio.get_running_loop().remove_writer(self.write_fd)
            if self._drained is not None:
                self._drained.set_result(None)
                self._drained = None


class LoopWait:
    """Waits for the next request in the loop's place, where the loop has nothing else to wait for.

    A turn of asyncio's loop costs as much as the rest of a short request. When nothing is ready, no timer runs and nobody
    but us has a descriptor in its selector, all that can happen is a request, or something that writes into the loop's own
    wake-up socket: a signal, another thread. So both are waited for here, and the loop gets its turn for anything but a
    request. A loop that is not asyncio's own, or in debug mode, is always asked itself.
    """

    __slots__ = ("_fd", "_loop", "_map", "_poll", "_ready", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop: Any = loop
        self._fd = fd
        self._ready = getattr(loop, "_ready", None)
        self._scheduled = getattr(loop, "_scheduled", None)
        selector, wake = getattr(loop, "_selector", None), getattr(loop, "_ssock", None)
        own = self._ready is not None and self._scheduled is not None and hasattr(loop, "_stopping")
        self._poll: select.poll | None = None
        if own and selector is not None and wake is not None and not loop.get_debug():
            self._map = selector.get_map()
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._poll.register(wake.fileno(), select.POLLIN)

    def for_requests_alone(self) -> bool:
        """Wait until a request, or the end of the relay, can be read; False where the loop has to have its turn first."""
        poll = self._poll
        if poll is None or self._ready or self._scheduled or len(self._map) != 2 or self._loop._stopping:
            return False
        ready = poll.poll()
        return len(ready) == 1 and ready[0][0] == self._fd


class Gateway:
    """Takes requests from the line and starts a task for each."""

    exchanges: type[Exchange]

    def __init__(
        self,
        line: HttpLine,
        relay: AsyncRelay,
        application: Application,
        state: dict[str, Any],
        root_path: str,
    ) -> None:
        self._line = line
        self._relay = relay
        self._application = application
        self._scopes = ScopeBuilder(root_path, state)
        self._contexts: dict[tuple[Any, ...], bytes] = {}
        self._current: Exchange | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._waits = LoopWait(self._loop, line.fileno())

    async def serve(self) -> None:
        """Answer requests until the line ends. Raises RemoteProtocolError when the server speaks another protocol."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_reader(self._line.fileno(), self._on_readable)
        try:
            await self._ended.wait()
        finally:
            loop.remove_reader(self._line.fileno())
        if self._failure is not None:
            raise self._failure
        await self._relay.drain()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Close the line."""
        self._line.close()

    def _on_stop_signal(self) -> None:
        self._line.request_stop()
        if self._current is None:
            self._take()

    def _on_readable(self) -> None:
        if self._current is None:
            self._take()
            while self._current is None and self._waits.for_requests_alone():
                self._take()
            return
        try:
            wanted = self._line.listen()
        except ProtocolError as error:
            self._fail(error)
            return
        if not wanted:
            self._current.lose_client()
            if self._line.is_over:
                asyncio.get_running_loop().remove_reader(self._line.fileno())

    def _take(self) -> None:
        """Start the next request if it is here; see whether the line has ended."""
        try:
            taken = self._line.take_nowait()
        except ProtocolError as error:
            self._fail(error)
            return
        if taken is None:
            if self._line.ended:
                self._ended.set()
            return
        context, body, flags = taken
        try:
            scope = self._scopes.build(context, flags)
        except (MessageError, LookupError, TypeError, AttributeError) as error:
            self._line.error(f"a request that makes no sense: {error!r}")
            self.over()
            return
        self._current = exchange = self.exchanges(
            self, self._line, self._relay, self._contexts, scope, body, flags
        )
        task = _start_task(self._run(exchange, scope), self._loop)
        if not task.done():
            exchange.task = task
            self._tasks.add(task)

    async def _run(self, exchange: Exchange, scope: Scope) -> None:
        try:
            await self._application(scope, exchange.receive, exchange.send)
        except (Exception, asyncio.CancelledError) as error:
            exchange.failed(error)
        else:
            exchange.returned()
        finally:
            exchange.close_body()
            if (
                exchange.task is not None
            ):  # here, not in a callback of the task: that would be a turn of the loop
                self._tasks.discard(exchange.task)

    def over(self) -> None:
        """The answer is complete: the next request may come, or be here already."""
        self._current = None
        if self._line.stopping or self._line.may_have_more:
            asyncio.get_running_loop().call_soon(self._take_if_idle)

    def _take_if_idle(self) -> None:
        if self._current is None and not self._ended.is_set():
            self._take()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._ended.set()


class Exchange:
    """One request and its answer: `receive` and `send` of the application."""

    __slots__ = (
        *(
            "_awaits_trailers",
            "_begun",
            "_body",
            "_contexts",
            "_dialect",
            "_end",
            "_gateway",
            "_gone",
            "_held",
            "_line",
        ),
        *("_over", "_relay", "_scope", "_start", "_trailers", "_unread", "task"),
    )

    def __init__(
        self,
        gateway: Gateway,
        line: HttpLine,
        relay: AsyncRelay,
        contexts: dict[tuple[Any, ...], bytes],
        scope: Scope,
        body: bytes | BodyFile,
        flags: int,
    ) -> None:
        #: What runs the application, once it is known that it did not end at once.
        self.task: asyncio.Task[None] | None = None
        self._gateway = gateway
        self._line = line
        self._relay = relay
        self._contexts = contexts
        self._scope = scope
        self._body: bytes | BodyFile | None = body
        self._unread = len(body)
        self._dialect = PROTO if flags & PROTO else JSON
        self._start: Message | None = None  # http.response.start, until its head is out
        self._begun = False  # the head is out
        self._over = False  # the answer is complete, as far as it will ever be
        self._gone = False  # the client did not wait for it
        self._end: asyncio.Future[None] | None = None  # somebody waits for either of them
        self._awaits_trailers = False
        self._held: list[bytes] | None = (
            None  # the body, where trailers will follow that are not announced yet
        )
        self._trailers: list[tuple[bytes, bytes]] = []

    async def receive(self) -> Message:
        """The body, whole, one in a file in pieces; then http.disconnect, once the answer is complete or the client gone."""
        body = self._body
        if body is not None and not self._gone:
            if type(body) is bytes:
                self._body = None
                return {"type": "http.request", "body": body, "more_body": False}
            return self._read_piece(body)
        while not (self._over or self._gone):
            if self._end is None:
                self._end = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._end)
        return {"type": "http.disconnect"}

    def _read_piece(self, body: bytes | BodyFile) -> Message:
        assert isinstance(body, BodyFile)
        data = body.read(min(PART_BYTES, self._unread))
        self._unread -= len(data)
        if not (data and self._unread):
            self.close_body()
        return {"type": "http.request", "body": data, "more_body": self._body is not None}

    def close_body(self) -> None:
        """Let go of a body in a file, read or not."""
        body, self._body = self._body, None
        if isinstance(body, BodyFile):
            body.close()

    async def send(self, message: Message) -> None:
        """Take one event of the answer. Raises ClientGone; HeaderError or RuntimeError for one that is wrong here."""
        kind = message["type"]
        if self._gone:
            raise ClientGone("the client has gone")
        if self._over:
            raise RuntimeError(f"{kind} after the answer was complete")
        if kind == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            if self._start is not None or self._begun:
                raise RuntimeError("a second http.response.start")
            self._start = message
            if message.get("trailers", False):
                self._awaits_trailers = True
                names = {bytes(name).lower() for name, _ in message.get("headers", ())}
                self._held = None if b"trailer" in names else []
        elif kind == "http.response.early_hint":
            self._send_early_hint(message["links"])
        elif kind == "http.response.pathsend":
            await self._send_path(message["path"])
        elif kind == "http.response.trailers":
            self._take_trailers(message)
        else:
            raise RuntimeError(f"{kind} is no event of an HTTP answer")
        if self._relay.unsent:
            await self._relay.drain()

    def lose_client(self) -> None:
        """The server says that nobody wants the rest. The answer is ended, whatever the application still does."""
        if not self._over:
            self._gone = True
            if self._begun:
                self._finish(b"", b"", 0)
            else:
                self._wake()

    def returned(self) -> None:
        """The application is done; it should have answered."""
        if not self._over:
            self._give_up("returned before its answer was complete")
            if not self._gone:
                text = "the application returned before its answer was complete"
                print(f"{self._described()}: {text}", file=sys.stderr, flush=True)

    def failed(self, error: BaseException) -> None:
        """Log the error; answer 500, or let the server cut what has begun."""
        after = self._over
        if not after:
            self._give_up(f"failed: {type(error).__name__}")
        if not (self._gone and _stems_from_client_gone(error)):
            print_failure(f"{self._described()} failed{' after its answer' if after else ''}:", error)

    def _give_up(self, text: str) -> None:
        if self._begun:
            self._line.error(f"the application {text} in the middle of an answer")
            self._over = True
            self._wake()
            self._gateway.over()
        else:
            self._finish(encode_answer(500, FAILED_HEADERS, self._dialect), FAILED_BODY, self._dialect)

    def _described(self) -> str:
        return f"{self._scope['method']} {self._scope['path']}"

    async def _send_body(self, body: bytes, more: bool) -> None:
        if type(body) is not bytes:
            body = bytes(body)
        if self._held is not None:
            self._held.append(body)
            return
        if self._awaits_trailers:
            more = True  # the answer ends with them
        if not more and len(body) <= WHOLE_BYTES_MAX:
            if self._begun:
                self._finish(b"", body, 0)
            else:
                self._finish(self._context(), body, self._dialect)
            return
        if not body and not self._begun:  # for the head's sake
            await self._send_part(b"")
        length = None if more else len(body)
        for start in range(0, len(body), PART_BYTES):
            await self._send_part(body[start : start + PART_BYTES], length)
        if not more:
            self._finish(b"", b"", 0)

    async def _send_part(self, data: bytes, length: int | None = None) -> None:
        """Send a part; with the first one goes the head, and the length where it is known."""
        context = b"" if self._begun else self._context(length)
        self._begun = True
        if not self._line.respond_part(data, context, self._dialect):
            self.lose_client()
        if self._gone:
            raise ClientGone("the client has gone")
        if self._relay.unsent:
            await self._relay.drain()

    def _send_early_hint(self, links: Iterable[bytes]) -> None:
        if self._start is not None or self._begun:
            raise RuntimeError("http.response.early_hint after http.response.start")
        pairs = [("Link", bytes(link).decode("latin-1")) for link in links]
        self._line.respond_part(b"", encode_answer(103, pairs, self._dialect), self._dialect)

    async def _send_path(self, path: str) -> None:
        with open(path, "rb") as file:  # noqa: ASYNC230 - nothing but this request wants the loop
            size = os.fstat(file.fileno()).st_size
            data = file.read(PART_BYTES)
            if len(data) == size and not self._begun:
                self._finish(self._context(), data, self._dialect)
                return
            while data:
                await self._send_part(data, size)
                data = file.read(PART_BYTES)
        self._finish(b"", b"", 0)

    def _take_trailers(self, message: Message) -> None:
        """HTTP trailers are headers of a context that the header Trailer of the first one names.

        An answer that is on its way already has them in its last context, one that was held back in its only one.
        """
        if not self._awaits_trailers:
            raise RuntimeError("http.response.trailers were not announced by http.response.start")
        self._trailers += [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        if message.get("more_trailers", False):
            return
        if self._begun:
            pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._trailers]
            self._finish(encode_answer(200, pairs, self._dialect) if pairs else b"", b"", self._dialect)
            return
        assert self._start is not None
        headers = [*self._start.get("headers", ()), *self._trailers]
        if self._held is not None and self._trailers:
            headers.append((b"trailer", b", ".join([name for name, _ in self._trailers])))
        self._start = {**self._start, "headers": headers}
        self._finish(self._context(), b"".join(self._held or ()), self._dialect)

    def _context(self, length: int | None = None) -> bytes:
        """The context that says status and headers. Raises RuntimeError, HeaderError."""
        start = self._start
        if start is None:
            raise RuntimeError("the body of an answer without http.response.start")
        headers = start.get("headers", ())
        if length is not None and not any(bytes(name).lower() == b"content-length" for name, _ in headers):
            headers = [*headers, (b"content-length", b"%d" % length)]
        try:
            key = (self._dialect, start["status"], *headers)
            known = self._contexts.get(key)
        except TypeError:  # pairs that are lists
            key = (self._dialect, start["status"], *((bytes(name), bytes(value)) for name, value in headers))
            known = self._contexts.get(key)
        if known is not None:
            return known
        pairs = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]
        context = encode_answer(start["status"], pairs, self._dialect)
        if len(context) <= REMEMBERED_CONTEXT_BYTES_MAX:
            if len(self._contexts) >= REMEMBERED_MAX:
                self._contexts.clear()
            self._contexts[key] = context
        return context

    def _finish(self, context: bytes, body: bytes, flags: int) -> None:
        self._line.give(context, body, flags)
        self._begun = self._over = True
        self._wake()
        self._gateway.over()

    def _wake(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)


class ShowingExchange(Exchange):
    """Development mode: an error is shown in the browser.

    Frameworks answer 500 themselves and raise the error afterwards, so such an answer is held back until they return.
    """

    __slots__ = ("_refusal",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._refusal: bytes | None = None

    async def _send_body(self, body: bytes, more: bool) -> None:
        if self._start is not None and self._start["status"] == 500 and not self._begun and not more:
            self._refusal = bytes(body)
            return
        await super()._send_body(body, more)

    def returned(self) -> None:
        self._answer_held()
        super().returned()

    def failed(self, error: BaseException) -> None:
        if self._begun or self._over or not isinstance(error, Exception):
            self._answer_held()
        else:
            headers, body = shown_failure(error, self._described())
            self._finish(encode_answer(500, headers, self._dialect), body, self._dialect)
        super().failed(error)

    def _answer_held(self) -> None:
        body, self._refusal = self._refusal, None
        if body is not None and not self._over:
            self._finish(self._context(), body, self._dialect)


def _start_task(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
    """A task that has begun already: an application that never waits is done before this returns.

    That is two turns of the loop fewer for a plain answer. It is a task like any other all the same, also during its
    first step, so timeouts, cancel scopes and whatever else asks for the current task work in there.
    """
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, eager_start=True)
    # Before Python 3.12 a task asks the loop for its first step: what it asks for is done at once instead.
    asked: list[Any] = []
    loop.call_soon = lambda *step, context=None: asked.append((step, context))  # type: ignore[assignment]
    try:
        task = asyncio.Task(coroutine, loop=loop)
    finally:
        del loop.call_soon
    for step, context in asked:
        context.run(*step)
    return task


def _stems_from_client_gone(error: BaseException) -> bool:
    """Whether the error is, or was raised because of, the client that has gone: nobody's mistake."""
    seen: BaseException | None = error
    for _ in range(32):
        if seen is None:
            return False
        if isinstance(seen, (ClientGone, asyncio.CancelledError)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class ScopeBuilder:
    """Makes the scope of each request from its context."""

    def __init__(self, root_path: str, state: dict[str, Any]) -> None:
        self._root = root_path.rstrip("/")
        self._state = state
        self._common: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "root_path": self._root,
        }
        self._templates: dict[str, tuple[Scope, tuple[bytes, bytes]]] = {}
        self._names: dict[str, bytes] = {}

    def build(self, context: bytes, flags: int) -> Scope:
        """The scope of one request. Raises MessageError, LookupError or TypeError for a context that is none."""
        value = decode_context(context, flags)
        if value["parsed"]:
            raise MessageError(FORM_PARSED)
        uri: str = value["uri"]
        start = uri.find("/", uri.find("://") + 3)
        origin = uri[:start] if start > 0 else uri
        found = self._templates.get(origin)
        template, host = self._make_template(origin) if found is None else found
        path = uri[start:].partition("?")[0] if start > 0 else split_uri(uri)[2]
        scope = template.copy()
        version = value["protocol"][5:]
        scope["http_version"] = "2" if version == "2.0" else version
        scope["method"] = value["method"]
        scope["raw_path"] = raw_path = bytes_of(path)
        if "%" in path:
            path = unquote(raw_path.decode("latin-1")).encode("latin-1").decode("utf-8", "replace")
        root = self._root
        if root and not (path == root or path.startswith(root + "/")):
            path = root + path  # the proxy in front has taken the prefix away; here it belongs to the path
        scope["path"] = path
        scope["query_string"] = bytes_of(value["rawQuery"])
        scope["client"] = (value["remoteAddr"], 0)
        scope["headers"] = headers = [host]
        names = self._names
        for name, values in (value["headers"] or {}).items():
            key = names.get(name)
            if key is None:
                key = self._make_name(name)
            for text in values:
                headers.append((key, text.encode()))
        scope["state"] = self._state.copy()
        scope["extensions"] = {
            "http.response.early_hint": {},
            "http.response.pathsend": {},
            "http.response.trailers": {},
        }
        attributes = value.get("attributes")
        if attributes:
            scope["extensions"]["trailboss.attributes"] = attributes
        return scope

    def _make_template(self, origin: str) -> tuple[Scope, tuple[bytes, bytes]]:
        scheme, authority, _ = split_uri(origin)
        host, port = split_authority(authority, scheme)
        template = {**self._common, "scheme": scheme, "server": (host, int(port))}
        made = template, (b"host", bytes_of(authority))
        if len(self._templates) >= REMEMBERED_MAX:  # clients choose the Host
            self._templates.clear()
        self._templates[origin] = made
        return made

    def _make_name(self, name: str) -> bytes:
        key = bytes_of(name.lower())
        if len(self._names) >= REMEMBERED_MAX:  # clients choose the names
            self._names.clear()
        self._names[name] = key
        return key


class Lifespan:
    """The application's startup and shutdown. `state` is what startup put there, for the scope of each request."""

    def __init__(self, application: Application, mode: str = "auto") -> None:
        self._application = application
        self._mode = mode
        self.state: dict[str, Any] = {}
        self._events: deque[Message] = deque()
        self._told = asyncio.Event()
        self._answered = asyncio.Event()
        self._failure: str | None = None
        self._supported = False
        self._complete = False  # startup is
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> str | None:
        """Run the startup; gives the reason when it failed. An application without lifespan is left alone."""
        if self._mode == "off":
            return None
        self._tell("lifespan.startup")
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._answered.wait()
        return self._failure

    async def shutdown(self) -> None:
        """Run the shutdown, if there was a startup; what fails is said on standard error."""
        if self._task is None or not self._supported or self._failure is not None or self._task.done():
            return
        self._answered.clear()
        self._tell("lifespan.shutdown")
        await self._answered.wait()
        self._say_failure()

    def _say_failure(self) -> None:
        if self._failure is not None:
            complain(f"the application's shutdown failed: {self._failure}")

    def _tell(self, kind: str) -> None:
        self._events.append({"type": kind})
        self._told.set()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._application(scope, self._receive, self._send)
        except Exception as error:
            self._raised(error)
        finally:
            self._answered.set()

    def _raised(self, error: Exception) -> None:
        """An exception before any answer means `no lifespan here`; afterwards it is one."""
        if self._failure is not None:
            return  # said already
        if self._complete or self._mode == "on":
            print_failure("the application's lifespan failed:", error)
        if not self._complete and self._mode == "on":
            self._failure = f"{type(error).__name__}: {error}"

    async def _receive(self) -> Message:
        while not self._events:
            self._told.clear()
            await self._told.wait()
        return self._events.popleft()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        self._supported = True
        if kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failure = message.get("message", "") or "no reason given"
        elif kind == "lifespan.startup.complete":
            self._complete = True
        elif kind != "lifespan.shutdown.complete":
            raise LocalProtocolError(f"{kind} is no event of lifespan")
        self._answered.set()
