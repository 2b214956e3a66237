"""The clients of a run: browsers, a pusher of jobs, and a caller of the RPC port that never leaves it alone.

Each exchange ends in exactly one reply of :class:`trailboss.chaos.verdict.Reply`, judged to the last byte: an answer that
breaks off, or that is nobody's, is told apart from one that says why there is none.
"""

# ruff: noqa: ASYNC110  the other side is a process: it is asked, it tells nobody
from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from trailboss.chaos.client import CallFailed, Client, ConnectionGone
from trailboss.chaos.verdict import Outcome, Reply
from trailboss_worker.protocol import messages

__all__ = ["Head", "Load", "body_length", "parse_head", "push_argument"]

#: Longer than any worker may take in a run.
REQUEST_SECONDS_MAX = 15.0
#: Between two exchanges of one client.
PAUSE_SECONDS = 0.01
#: Between two rounds of the caller of the RPC port.
CALL_PAUSE_SECONDS = 0.02
#: Methods that answer in every phase, and with them those that go through the gate, so they wait while a server starts.
ALWAYS_ON: Final = tuple(
    (name, True) for name in ("trailboss.State", "rpc.Version", "informer.List", "resetter.List")
)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    status: int
    headers: dict[str, str]


def parse_head(data: bytes) -> Head:
    """Read the head of an HTTP/1.1 answer, without the empty line. Raises ValueError."""
    first, *lines = data.decode("latin-1").split("\r\n")
    version, code, *_ = [*first.split(" "), ""]
    if version != "HTTP/1.1" or not code.isdigit():
        raise ValueError(f"not an answer: {first[:60]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Head(int(code), headers)


def body_length(head: Head) -> int | None:
    """Return the length of the body; None for one in chunks, -1 for one that ends with the connection."""
    if head.status in (204, 304):
        return 0
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return None
    return int(head.headers.get("content-length", "-1"))


def push_argument(pipeline: str, name: str, payload: bytes) -> bytes:
    """The argument of jobs.Push."""
    job = {
        "job": name,
        "id": secrets.token_hex(8),
        "payload": payload,
        "headers": {},
        "options": {"pipeline": pipeline},
    }
    return messages.JOBS_PUSH_REQUEST.encode({"job": job})


@dataclass
class Load:
    """Clients until `stop`. `now` gives the seconds of the run, `reply` takes what they got."""

    now: Callable[[], float]
    reply: Callable[[Reply], None]
    http_port: int | None
    rpc_path: str
    paths: Sequence[str] = ("/",)
    clients: int = 4
    pipelines: Sequence[str] = ()
    job: str = "trailboss-chaos"
    payload: bytes = b"{}"
    #: (method, argument) of calls that go through the gate.
    gated: Sequence[tuple[str, object]] = ()
    #: Longest wait for an answer to a call: longer than the gate may let it wait.
    call_seconds: float = 10.0
    #: Statuses that the application gives when nothing is wrong.
    usual: set[int] = field(default_factory=set)
    #: Pushes that the server has acknowledged since `begin_life`.
    acknowledged: int = 0
    _busy: int = 0
    _paused: bool = False
    #: Closed at the end, whatever they are in the middle of.
    _streams: set[trio.SocketStream] = field(default_factory=set)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be all clients, until cancelled; then no connection is left open."""
        self._busy, self._paused = 0, False
        try:
            async with trio.open_nursery() as nursery:
                if self.http_port is not None:
                    for number in range(self.clients):
                        nursery.start_soon(self._browser, number)
                if self.pipelines:
                    nursery.start_soon(self._pusher)
                nursery.start_soon(self._caller, ALWAYS_ON)
                if self.gated:
                    nursery.start_soon(self._caller, self.gated)
                task_status.started()
        finally:
            for stream in self._streams:
                stream.socket.close()
            self._streams.clear()

    async def burst(self, pool: str, count: int) -> None:
        """Give `count` workers of a pool something to do at the same time."""
        async with trio.open_nursery() as nursery:
            for number in range(count):
                if pool == "http":
                    nursery.start_soon(self._ask_once, self.paths[number % len(self.paths)])
                elif self.pipelines:
                    nursery.start_soon(self._push_once, self.pipelines[number % len(self.pipelines)])

    async def _ask_once(self, path: str) -> None:
        began = self.now()
        outcome, text, stream = await self._ask(path, None)
        self.reply(Reply("http", began, self.now() - began, outcome, text))
        if stream is not None:
            await self._close(stream)

    async def _push_once(self, pipeline: str) -> None:
        outcome, client = await self._call(
            "push", None, "jobs.Push", push_argument(pipeline, self.job, self.payload)
        )
        self.acknowledged += outcome is Outcome.ANSWERED
        if client is not None:
            await self._close(client.stream)

    async def _close(self, stream: trio.SocketStream) -> None:
        self._streams.discard(stream)
        await trio.aclose_forcefully(stream)

    async def wait_rest(self) -> None:
        """Begin nothing new, and return when every client has its answer."""
        self._paused = True
        while self._busy:
            await trio.sleep(0.01)

    async def _turn(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if self._paused:
            await trio.sleep_forever()

    # --- HTTP ---

    async def _browser(self, number: int) -> None:
        stream: trio.SocketStream | None = None
        for path in itertools.islice(itertools.cycle(self.paths), number % len(self.paths), None):
            await self._turn(PAUSE_SECONDS)
            began = self.now()
            self._busy += 1
            try:
                outcome, text, stream = await self._ask(path, stream)
            finally:
                self._busy -= 1
            self.reply(Reply("http", began, self.now() - began, outcome, text))
            if outcome in (Outcome.UNREACHABLE, Outcome.CUT):
                await trio.sleep(0.05)

    async def _ask(
        self, path: str, stream: trio.SocketStream | None
    ) -> tuple[Outcome, str, trio.SocketStream | None]:
        """One request; returns what came of it, and the connection where it can be kept."""
        assert self.http_port is not None
        fresh = stream is None
        try:
            with trio.fail_after(REQUEST_SECONDS_MAX):
                if stream is None:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.http_port)
                    self._streams.add(stream)
                exchange = _Exchange(stream)
                try:
                    await exchange.send(path)
                    head = await exchange.head()
                except (trio.BrokenResourceError, EOFError):
                    if fresh or exchange.received:
                        raise
                    # A kept connection may be closed at any time; every browser then asks on a new one.
                    await self._close(stream)
                    return await self._ask(path, None)
                await exchange.body(head)
        except trio.TooSlowError:
            if stream is not None:
                await self._close(stream)
            return Outcome.SILENT, f"within {REQUEST_SECONDS_MAX:g} s", None
        except ValueError as error:
            assert stream is not None
            await self._close(stream)
            return Outcome.WRONG, str(error), None
        except (trio.BrokenResourceError, EOFError):
            assert stream is not None
            await self._close(stream)
            return Outcome.CUT, "", None
        except OSError:
            return Outcome.UNREACHABLE, "", None
        kept: trio.SocketStream | None = stream
        if head.headers.get("connection", "").lower() == "close" or body_length(head) == -1:
            await self._close(stream)
            kept = None
        return (*self._outcome(head), kept)

    def _outcome(self, head: Head) -> tuple[Outcome, str]:
        reason = head.headers.get("trailboss-reason")
        if reason is not None:
            by_worker = head.status in (502, 504) or head.status == 500
            return (Outcome.WORKER if by_worker else Outcome.REFUSED), f"{head.status} {reason}"
        if head.status < 500 or head.status in self.usual:
            return Outcome.ANSWERED, ""
        return Outcome.WRONG, f"status {head.status}"

    async def usual_statuses(self) -> None:
        """Ask each path once while nothing is wrong, to know what the application says then."""
        for path in self.paths:
            stream = await trio.open_tcp_stream("127.0.0.1", self.http_port or 0)
            try:
                exchange = _Exchange(stream)
                await exchange.send(path)
                head = await exchange.head()
                await exchange.body(head)
                if "trailboss-reason" not in head.headers:
                    self.usual.add(head.status)
            finally:
                await trio.aclose_forcefully(stream)

    # --- RPC ---

    async def _pusher(self) -> None:
        client: Client | None = None
        for pipeline in itertools.cycle(self.pipelines):
            await self._turn(2 * PAUSE_SECONDS)
            argument = push_argument(pipeline, self.job, self.payload)
            outcome, client = await self._call("push", client, "jobs.Push", argument)
            self.acknowledged += outcome is Outcome.ANSWERED

    async def _caller(self, calls: Sequence[tuple[str, object]]) -> None:
        client: Client | None = None
        for method, argument in itertools.cycle(calls):
            await self._turn(CALL_PAUSE_SECONDS)
            _, client = await self._call("rpc", client, method, argument)

    async def _call(
        self, who: str, client: Client | None, method: str, argument: object
    ) -> tuple[Outcome, Client | None]:
        """One call, on `client` or a new connection; returns what came of it, and the connection where it can be kept."""
        began = self.now()
        self._busy += 1
        outcome, text = Outcome.ANSWERED, ""
        try:
            if client is None:
                client = await Client.connect(self.rpc_path)
                self._streams.add(client.stream)
            await client.call(method, argument, self.call_seconds)
        except CallFailed as error:
            outcome, text = Outcome.REFUSED, str(error)
        except ConnectionGone:
            outcome = Outcome.UNREACHABLE if client is None else Outcome.CUT
        except trio.TooSlowError:
            outcome, text = Outcome.SILENT, f"{method} within {self.call_seconds:g} s"
        finally:
            self._busy -= 1
        if outcome in (Outcome.CUT, Outcome.SILENT) and client is not None:
            await self._close(client.stream)
            client = None
        if outcome in (Outcome.UNREACHABLE, Outcome.CUT):
            await trio.sleep(0.02)
        self.reply(Reply(who, began, self.now() - began, outcome, text))
        return outcome, client


class _Exchange:
    """One request and its answer. Raises BrokenResourceError, EOFError where it breaks off, ValueError for nonsense."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.received = bytearray()

    async def send(self, path: str) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: trailboss-chaos\r\n\r\n"
        await self._stream.send_all(request.encode("latin-1"))

    async def head(self) -> Head:
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            await self._more()
        head = parse_head(bytes(self.received[:end]))
        del self.received[: end + 4]
        return await self.head() if 100 <= head.status < 200 else head

    async def body(self, head: Head) -> None:
        length = body_length(head)
        if length is None:
            while await self._chunk():
                pass
        elif length >= 0:
            await self._skip(length)
        else:
            while data := await self._stream.receive_some(1 << 16):
                del data

    async def _chunk(self) -> int:
        while (end := self.received.find(b"\r\n")) < 0:
            await self._more()
        size = int(self.received[:end].split(b";")[0], 16)
        del self.received[: end + 2]
        await self._skip(size + 2)
        return size

    async def _skip(self, count: int) -> None:
        while count:
            if not self.received:
                await self._more()
            gone = min(count, len(self.received))
            del self.received[:gone]
            count -= gone

    async def _more(self) -> None:
        data = await self._stream.receive_some(1 << 16)
        if not data:
            raise EOFError
        self.received += data
