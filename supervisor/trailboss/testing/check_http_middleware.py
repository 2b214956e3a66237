"""What every HTTP middleware has to pass, whatever it does to the requests it is meant for.

`make` returns a middleware, given the services. The checks send it requests it has no business with (a GET of a page, a
POST, a stream) and hold it to its contract: one answer, unharmed, back-pressure and departures told on, nothing kept. No
connection, no clock and no trio are needed. A test file needs no more than::

    @pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
    def test_middleware(check):
        check_http_middleware(lambda services: MyMiddleware(), check)

:class:`MiddlewareBench` is of use for the tests of what a middleware does besides.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from typing import Final

from trailboss.plugins.http.contract import MiddlewareServices
from trailboss.plugins.http.message import Body, Handler, HeaderList, Middleware, Request, Responder
from trailboss.testing.fake_responder import FakeResponder

__all__ = ["HTTP_MIDDLEWARE_CHECKS", "MiddlewareBench", "check_http_middleware", "make_request"]

MakeMiddleware = Callable[[MiddlewareServices], Middleware]
Check = Callable[[MakeMiddleware], None]

_TURNS_MAX: Final = 10_000


def make_request(
    target: str = "/page",
    method: str = "GET",
    headers: HeaderList = (),
    body: bytes = b"",
    remote_addr: str = "127.0.0.1",
    version: str = "1.1",
    started: float = 0.0,
) -> Request:
    """Return a request as the front makes it."""
    path, _, query = target.partition("?")
    return Request(
        method,
        target,
        path,
        query,
        version,
        [(b"Host", b"example.org"), *headers],
        "example.org",
        remote_addr,
        40_000,
        Body(body),
        started,
    )


class MiddlewareBench:
    """A middleware between a client and a handler, both played by the test; the handler keeps what it gets."""

    def __init__(self, make: MakeMiddleware, answer: Handler | None = None) -> None:
        #: The reactor's time; a test may move it.
        self.now = 100.0
        #: What the middleware wants to go on with.
        self.soon: list[Callable[[], None]] = []
        #: Records of the access log, as (message, fields).
        self.records: list[tuple[str, dict[str, object]]] = []
        #: Whether records go anywhere.
        self.logs = True
        #: What reached the handler.
        self.requests: list[Request] = []
        self.responders: list[Responder] = []
        self._answer = answer
        self.services = MiddlewareServices(lambda: self.now, self._call_soon, lambda: self.logs, self._log)
        self.handler = make(self.services)(self._handle)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def _log(self, message: str, /, **fields: object) -> None:
        self.records.append((message, fields))

    def _handle(self, request: Request, responder: Responder) -> None:
        self.requests.append(request)
        self.responders.append(responder)
        if self._answer is not None:
            self._answer(request, responder)

    def begin(self, request: Request) -> FakeResponder:
        """Send a request; what the handler does with it is up to the test."""
        client = FakeResponder(request.method)
        self.handler(request, client)
        return client

    def settle(self, turns: int = _TURNS_MAX) -> None:
        """Run what the middleware wants to go on with, at most so many turns of it."""
        for _ in range(turns):
            if not self.soon:
                return
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()
        if turns == _TURNS_MAX:
            raise AssertionError(f"the middleware is not done after {turns} turns")

    def exchange(self, request: Request) -> FakeResponder:
        """Send a request and let everything come to its end."""
        client = self.begin(request)
        self.settle()
        return client

    @property
    def responder(self) -> Responder:
        """The responder that the handler got last."""
        return self.responders[-1]


def check_http_middleware(make: MakeMiddleware, *checks: Check) -> None:
    """Run `checks` (all without an argument) on middleware that `make` returns. Raises AssertionError."""
    for check in checks or HTTP_MIDDLEWARE_CHECKS:
        check(make)


_PAGE: Final = [
    (b"Content-Type", b"application/x-page"),
    (b"X-One", b"1"),
    (b"Set-Cookie", b"a=1"),
    (b"Set-Cookie", b"b=2"),
]


def _kept(client: FakeResponder, headers: HeaderList) -> None:
    for name, value in headers:
        assert (name, value) in client.headers, f"{name!r}: {value!r} is lost"


def _requests() -> list[Request]:
    return [
        make_request(),
        make_request("/page?a=1&b=%20", "HEAD"),
        make_request("/page", "POST", [(b"Content-Type", b"text/plain")], b"hello"),
        make_request("/page", "DELETE"),
        make_request("*", "OPTIONS"),
        make_request(version="1.0"),
        make_request(headers=[(b"X-%d" % number, b"\xff\xfe \xe9") for number in range(99)]),
        make_request("/%zz/%00%2f%2e%2e", headers=[(b"Range", b"bytes=0-"), (b"Cookie", b"=;=;")]),
    ]


def every_request_is_answered_once(make: MakeMiddleware) -> None:
    """Whatever is asked, the handler is called at most once, and there is one answer."""
    for request in _requests():
        bench = MiddlewareBench(make, lambda _, responder: responder.respond(200, _PAGE, b"page"))
        client = bench.exchange(request)
        assert len(bench.requests) <= 1, f"{request} reached the handler {len(bench.requests)} times"
        assert client.finished, f"{request} was not answered"


def an_answer_comes_through(make: MakeMiddleware) -> None:
    """Status, headers and body of a whole answer are the handler's; a middleware may add headers."""
    for status in (200, 201, 404, 500):
        bench = MiddlewareBench(
            make,
            lambda _, responder, status=status: responder.respond(status, _PAGE, b"page"),  # type: ignore[misc]
        )
        client = bench.exchange(make_request())
        assert (client.status, client.body) == (status, b"page")
        assert client.complete
        _kept(client, _PAGE)


def a_late_answer_comes_through(make: MakeMiddleware) -> None:
    """Nothing is said before the handler says something, and two requests at a time do not mix."""
    bench = MiddlewareBench(make)
    clients = [bench.begin(make_request(f"/page/{number}")) for number in range(2)]
    bench.settle()
    assert [client.calls for client in clients] == [[], []]
    assert [request.target for request in bench.requests] == ["/page/0", "/page/1"]
    bench.responders[1].respond(200, _PAGE, b"one")
    bench.responders[0].head(404, _PAGE)
    bench.responders[0].data(b"zero")
    bench.responders[0].end()
    bench.settle()
    assert [(client.status, client.body, client.complete) for client in clients] == [
        (404, b"zero", True),
        (200, b"one", True),
    ]


def a_stream_stays_a_stream(make: MakeMiddleware) -> None:
    """Each part reaches the client before the next is there; trailers and interim answers come along."""
    bench = MiddlewareBench(make)
    client = bench.begin(make_request())
    bench.responder.inform(103, [(b"Link", b"</a.css>; rel=preload")])
    assert [status for status, _ in client.interim] == [103]
    bench.responder.head(200, _PAGE)
    assert (client.started, client.finished) == (True, False)
    for number in range(5):
        bench.responder.data(b"part %d " % number)
        bench.settle()
        assert client.body == b"".join(b"part %d " % earlier for earlier in range(number + 1))
    bench.responder.end([(b"X-Sum", b"5")])
    bench.settle()
    assert client.complete
    assert client.trailers == [(b"X-Sum", b"5")]
    _kept(client, _PAGE)


def a_known_length_is_kept_or_dropped(make: MakeMiddleware) -> None:
    """The length that is announced is the length that is sent, also for HEAD; a large body arrives whole."""
    content = bytes(range(256)) * 4096
    bench = MiddlewareBench(make)
    client = bench.begin(make_request())
    bench.responder.head(200, _PAGE, length=len(content))
    for offset in range(0, len(content), 100_000):
        bench.responder.data(content[offset : offset + 100_000])
    bench.responder.end()
    bench.settle()
    assert client.complete
    assert client.body == content
    client = bench.begin(make_request(method="HEAD"))
    bench.responder.head(200, _PAGE, length=4)
    bench.responder.end()
    bench.settle()
    assert client.complete
    assert client.length in (4, None)


def back_pressure_is_told(make: MakeMiddleware) -> None:
    """A client that takes nothing is seen by the handler, as is the moment when it takes more."""
    bench = MiddlewareBench(make)
    client = bench.begin(make_request())
    told: list[str] = []
    bench.responder.on_ready = lambda: told.append("ready")
    bench.responder.head(200, _PAGE)
    bench.responder.data(b"one")
    bench.settle()
    seen = [bench.responder.wants_more]
    client.stall()
    seen.append(bench.responder.wants_more)
    client.flow()
    bench.settle()
    seen.append(bench.responder.wants_more)
    assert seen == [True, False, True]
    assert told == ["ready"]
    bench.responder.end()
    bench.settle()
    assert client.complete


def a_departure_is_told(make: MakeMiddleware) -> None:
    """The handler hears once that the client has gone, before the head and after; what it says then is not heard."""
    for is_started in (False, True):
        bench = MiddlewareBench(make)
        client = bench.begin(make_request())
        told: list[str] = []
        bench.responder.on_gone = lambda told=told: told.append("gone")
        if is_started:
            bench.responder.head(200, _PAGE)
            bench.responder.data(b"one")
            bench.settle()
        client.leave()
        bench.settle()
        assert told == ["gone"]
        assert bench.responder.finished, "the handler does not see that the request has ended"
        before = list(client.calls)
        if is_started:
            bench.responder.data(b"two")
            bench.responder.end()
        else:
            bench.responder.respond(200, _PAGE, b"page")
        bench.settle()
        assert client.calls == before
        assert told == ["gone"]


def failures_come_through(make: MakeMiddleware) -> None:
    """The server's own answers reach the client; a stream that breaks is cut and never looks complete."""
    bench = MiddlewareBench(make)
    client = bench.begin(make_request())
    bench.responder.fail(503, "queue full", retry_after=1)
    bench.settle()
    assert client.finished
    assert client.status == 503
    for way in ("fail", "abort"):
        client = bench.begin(make_request())
        bench.responder.head(200, _PAGE)
        bench.responder.data(b"one")
        if way == "fail":
            bench.responder.fail(502, "the worker died")
        else:
            bench.responder.abort()
        bench.settle()
        assert client.cut, f"{way} does not cut the connection"
    client = bench.begin(make_request())
    bench.responder.abort()
    bench.settle()
    assert client.cut


def files_are_sent_and_closed(make: MakeMiddleware) -> None:
    """A part of a file arrives whole, and its descriptor is closed, whether the client stays or goes."""
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 50_000)
        file.flush()
        before = len(os.listdir("/proc/self/fd"))
        for goes in (False, True):
            bench = MiddlewareBench(make)
            client = bench.begin(make_request())
            bench.responder.head(200, _PAGE, length=400_000)
            if goes:
                client.leave()
            bench.responder.file(os.dup(file.fileno()), 5, 400_000)
            bench.responder.end()
            bench.settle()
            assert client.body == (b"" if goes else (b"5678901234" * 40_000))
            assert client.finished
            assert client.complete is not goes
            assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays open"


def nothing_is_kept(make: MakeMiddleware) -> None:
    """After its answer nothing refers to a request any more."""
    bench = MiddlewareBench(make, lambda _, responder: responder.respond(200, _PAGE, b"page"))
    for _ in range(50):
        assert bench.exchange(make_request()).finished
    bench.requests.clear()
    bench.responders.clear()
    gc.collect()
    kept = [thing for thing in gc.get_objects() if type(thing) is Request]
    assert not [request for request in kept if request.target == "/page" and request.remote_port == 40_000]


HTTP_MIDDLEWARE_CHECKS: Final[tuple[Check, ...]] = (
    every_request_is_answered_once,
    an_answer_comes_through,
    a_late_answer_comes_through,
    a_stream_stays_a_stream,
    a_known_length_is_kept_or_dropped,
    back_pressure_is_told,
    a_departure_is_told,
    failures_come_through,
    files_are_sent_and_closed,
    nothing_is_kept,
)
