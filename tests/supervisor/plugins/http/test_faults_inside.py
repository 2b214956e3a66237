"""An exception anywhere between a connection and the pool costs one request: raised once at each call, one after the other.

The connection, the chain and the exchange are the real ones; the pool is played. A bomb counts the calls of a middleware's
methods, or of the functions that the exchange is made of, and goes off at the n-th; n grows until a run is over without it.
Whatever n is: the client has a whole answer or sees a cut, the next request is answered, nothing of the first one is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
import structlog
from front_bench import Bench, Client

from trailboss.config.schema import HttpConfig, UploadsConfig
from trailboss.plugins.http import exchange as exchange_module
from trailboss.plugins.http.contract import MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.exchange import Exchange
from trailboss.plugins.http.message import Handler, HeaderList, Middleware, Request, Responder
from trailboss.plugins.http.middleware.chain import build_chain
from trailboss.plugins.http.unsent import AnswerAccount
from trailboss.workers.lane import FileBody, OnOutcome, OnPart, Ticket
from trailboss.workers.outcome import Answer, ExecFailed, SoftError, WorkerDied
from trailboss_worker.protocol.frames import JSON

END = Answer(0, b"", b"")


def head(status: int = 200, **headers: str) -> bytes:
    """Context of an answer."""
    return json.dumps(
        {"status": status, "headers": {name: [value] for name, value in headers.items()}}
    ).encode()


class Bomb:
    """Goes off at one call."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.went_off = ""

    def tick(self, name: str) -> None:
        """A call; raises at the n-th."""
        self.calls += 1
        if self.calls == self.at:
            self.went_off = name
            raise RuntimeError(f"the bomb in {name}")


class PlayedPool:
    """Holds what was submitted; a Ticket is real, its pool is this."""

    debug = False

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.cancelled: list[Ticket] = []

    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
        on_part: OnPart | None = None,
    ) -> Ticket | None:
        assert on_part is not None
        ticket = Ticket(self, context, body, flags, on_outcome, label, on_part)  # type: ignore[arg-type]
        self.tickets.append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        self.cancelled.append(ticket)
        return False


class Worker:
    """What a worker does with the ticket; as a lane, it stops after a cancel and ends once."""

    def __init__(self, ticket: Ticket, turn: Callable[[], None]) -> None:
        self.ticket = ticket
        self.turn = turn
        self.paused = False

    def part(self, context: bytes, body: bytes) -> None:
        """One frame of a stream. A lane that was told to pause hands out nothing more."""
        if not self.ticket.cancelled and not self.paused:
            self.ticket.parts += 1
            self.paused = self.ticket.on_part(JSON, context, body) is False
        self.turn()

    def end(self, outcome: Answer | ExecFailed = END) -> None:
        """The last word."""
        self.ticket.on_outcome(outcome)
        self.turn()


def whole(worker: Worker) -> None:
    """One answer."""
    worker.end(Answer(JSON, head(200, X="y"), b"whole"))


def with_trailers(worker: Worker) -> None:
    """The less usual kind of it."""
    worker.end(Answer(JSON, head(200, Trailer="X-Sum", **{"X-Sum": "1"}), b"body"))


def bad(worker: Worker) -> None:
    """One that is refused."""
    worker.end(Answer(JSON, head(99), b"x"))


def stream(worker: Worker) -> None:
    """An interim answer, a stream, trailers."""
    worker.part(head(103, Link="</a>"), b"")
    worker.part(head(200, Trailer="X-Sum"), b"a" * 1000)
    for _ in range(3):
        worker.part(b"", b"b" * 1000)
    worker.end(Answer(JSON, head(200, **{"X-Sum": "1"}), b"c"))


def broken_stream(worker: Worker) -> None:
    """A stream whose worker dies."""
    worker.part(head(200), b"a" * 1000)
    worker.end(WorkerDied("it died", pid=1, cause="exit"))


def died(worker: Worker) -> None:
    """No answer."""
    worker.end(WorkerDied("it died", pid=1, cause="exit"))


def soft(worker: Worker) -> None:
    """An error of the application."""
    worker.end(SoftError("no"))


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\ncontent\r\n'
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
)
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = (
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%b"
    % (len(FORM), FORM)
)
REQUESTS = {"get": GET, "head": GET.replace(b"GET", b"HEAD"), "form": POST}
ANSWERS: dict[str, Callable[[Worker], None]] = {
    function.__name__: function for function in (whole, with_trailers, bad, stream, broken_stream, died, soft)
}


class Bombed(ResponderWrapper):
    """A third party's Responder with the bomb in each of its calls."""

    __slots__ = ("bomb",)

    def __init__(self, inner: Responder, bomb: Bomb) -> None:
        super().__init__(inner)
        self.bomb = bomb

    def inform(self, status: int, headers: HeaderList) -> None:
        self.bomb.tick("inform")
        self.inner.inform(status, headers)
        self.bomb.tick("behind inform")

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        self.bomb.tick("head")
        self.inner.head(status, headers, length=length)
        self.bomb.tick("behind head")

    def data(self, chunk: bytes) -> None:
        self.bomb.tick("data")
        self.inner.data(chunk)
        self.bomb.tick("behind data")

    def end(self, trailers: HeaderList = ()) -> None:
        self.bomb.tick("end")
        self.inner.end(trailers)
        self.bomb.tick("behind end")

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        self.bomb.tick("respond")
        self.inner.respond(status, headers, body)
        self.bomb.tick("behind respond")

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        self.bomb.tick("fail")
        self.inner.fail(status, reason, retry_after=retry_after, close=close)
        self.bomb.tick("behind fail")


def bombed_middleware(bomb: Bomb) -> Middleware:
    """A middleware with the bomb before, in and behind its handler."""

    def wrap(next_handler: Handler) -> Handler:
        def handle(request: Request, responder: Responder) -> None:
            bomb.tick("handle")
            next_handler(request, Bombed(responder, bomb))
            bomb.tick("behind handle")

        return handle

    return wrap


class Entry:
    """An entry point that needs no module."""

    name = "bombed"
    value = "nowhere:bombed"

    def __init__(self, middleware: Middleware) -> None:
        self.middleware = middleware

    def load(self) -> object:
        """Return the factory."""
        return lambda _config, _services: self.middleware


INNARDS = (
    "parse_head",
    "check_length",
    "has_no_body",
    "parse_trailers",
    "form_kind",
    "refusal_of",
    "MultipartForm",
    "Uploads",
    "_Conversation.submit",
    "_Conversation._context",
    "_Conversation._respond",
    "_Conversation._begin_stream",
    "_Conversation._send",
    "_Conversation._end_stream",
    "_Conversation._may_retry",
)


def bomb_the_exchange(bomb: Bomb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the bomb before and behind every function that the exchange is made of."""
    for path in INNARDS:
        owner: Any = exchange_module
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)

        monkeypatch.setattr(owner, name, bombed(getattr(owner, name), path, bomb))


def bombed(inner: Callable[..., Any], path: str, bomb: Bomb) -> Callable[..., Any]:
    """The function with the bomb before and behind it."""

    def call(*args: Any, **keys: Any) -> Any:
        bomb.tick(path)
        result = inner(*args, **keys)
        bomb.tick(f"behind {path}")
        return result

    return call


class Run:
    """One request with a bomb, and the next one without."""

    def __init__(self, place: str, bomb: Bomb, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = HttpConfig(
            address=("127.0.0.1:0",),
            middleware=("bombed",) if place == "third party" else (),
            uploads=UploadsConfig(dir=str(folder)),
        )
        self.pool = PlayedPool()
        self.folder = folder
        self.bench = Bench(answers=AnswerAccount())
        exchange = Exchange(self.pool, config, self.bench.reactor)
        services = MiddlewareServices(
            lambda: 0.0, self.bench.reactor.call_soon, lambda: True, access_lines=lambda records: None
        )
        middleware = bombed_middleware(bomb)
        innermost: Handler = exchange
        if place == "built in":  # without the shield that third parties get
            innermost = middleware(exchange)
        entry: Any = Entry(middleware)
        self.bench.front.handler = build_chain(config, services, innermost, [entry])
        if place == "exchange":
            bomb_the_exchange(bomb, monkeypatch)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bench.close()

    def serve(self, client: Client, data: bytes, answer: Callable[[Worker], None]) -> None:
        """Send a request and let the workers answer whatever was submitted, retries included."""
        done = len(self.pool.tickets)
        client.send(data)
        while done < len(self.pool.tickets):
            ticket = self.pool.tickets[done]
            done += 1
            answer(Worker(ticket, self.bench.settle))
        self.bench.settle()
        client.take()


def judge(received: bytes, method: str, ended: bool) -> None:
    """A whole answer, nothing more; or the connection has ended, and what came does not look whole."""
    if not received:
        assert ended
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(received)
    while True:
        event = client.next_event()
        if isinstance(event, h11.EndOfMessage):
            assert client.trailing_data[0] == b""
            return
        if event is h11.NEED_DATA:
            assert ended, f"neither whole nor cut: {received!r}"
            return
        assert isinstance(event, (h11.InformationalResponse, h11.Response, h11.Data)), event


def bombs(limit: int = 500) -> Iterator[Bomb]:
    """Bombs that go off later and later, until one does not."""
    for at in range(1, limit):
        bomb = Bomb(at)
        yield bomb
        if not bomb.went_off:
            return
    raise AssertionError("the calls do not end")


@pytest.mark.parametrize("place", ["third party", "built in", "exchange"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", REQUESTS)
def test_an_exception_costs_one_request(
    place: str, answer: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call of every part of the way."""
    places = set()
    for bomb in bombs():
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as records:
            with Run(place, bomb, tmp_path, patch) as run:
                first, second = run.bench.connect(), run.bench.connect()
                run.serve(first, REQUESTS[kind], ANSWERS[answer])
                places.add(bomb.went_off)
                judge(first.received, "HEAD" if kind == "head" else "GET", first.ended)
                assert run.bench.front.in_flight == 0
                assert list(tmp_path.iterdir()) == []
                bomb.at = 0
                run.serve(second, GET, whole)
                judge(second.received, "GET", second.ended)
                assert second.received.startswith(b"HTTP/1.1 200 ")
                assert run.bench.reactor.failures == 0
            assert run.bench.front.connections == set()
            if bomb.went_off:
                assert [record for record in records if "bomb" in str(record.get("exc_info"))] or any(
                    record["log_level"] == "error" for record in records
                )
    assert len(places) >= 3
