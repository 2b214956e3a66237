"""One client: answers of every framing, order, deadlines, back-pressure, departures, and what a broken handler costs."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import pytest
import structlog
from front_bench import Bench, Client, MakeBench
from live_server import PATIENCE

from trailboss.plugins.http.connection import Connection
from trailboss.plugins.http.limits import Limits, Waiting, deadline
from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.unsent import AnswerAccount

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Later:
    """A handler that keeps every request for the test to answer."""

    held: list[tuple[Request, Responder]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)

    def __call__(self, request: Request, responder: Responder) -> None:
        """Handler."""
        number = len(self.held)
        responder.on_gone = lambda: self.gone.append(number)
        responder.on_ready = lambda: self.ready.append(number)
        self.held.append((request, responder))


def calling(answer: Callable[[Responder], None]) -> Callable[[Request, Responder], None]:
    """Return a handler that answers at once with `answer`."""
    return lambda _request, responder: answer(responder)


def as_h11_sees(
    received: bytes, method: str = "GET", ended: bool = False
) -> tuple[int, dict[bytes, bytes], bytes, list[tuple[bytes, bytes]]]:
    """Return status, headers (lower case), body and trailers of one answer, judged by h11; fails where h11 does."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(received)
    if ended:
        client.receive_data(b"")
    body = b""
    response: h11.Response | None = None
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            assert client.trailing_data[0] == b""
            return response.status_code, dict(response.headers), body, list(event.headers)
        else:
            assert isinstance(event, h11.InformationalResponse), event


def one_answer(make_bench: MakeBench, answer: Callable[[Responder], None], data: bytes = GET) -> Client:
    """Send one request to a handler that answers with `answer`."""
    client = make_bench(calling(answer)).connect()
    client.send(data)
    return client


# --- framings ---------------------------------------------------------------------------------------------------------


def parts(responder: Responder) -> None:
    """Answer in parts of unknown number."""
    responder.head(200, [(b"A", b"b")])
    responder.data(b"hello ")
    responder.data(b"")
    responder.data(b"world")
    responder.end()


def test_a_whole_answer_is_one_piece(make_bench: MakeBench) -> None:
    """`respond` gives status, Date, headers, length and body, and the connection stays."""
    client = one_answer(make_bench, lambda to: to.respond(201, [(b"A", b"b")], b"hello"))
    status, headers, body, _ = as_h11_sees(client.received)
    assert (status, headers[b"a"], headers[b"content-length"], body) == (201, b"b", b"5", b"hello")
    assert headers[b"date"].endswith(b" GMT")
    assert b"connection" not in headers
    assert not client.ended


def test_parts_are_chunked(make_bench: MakeBench) -> None:
    """Without a length an HTTP/1.1 client gets chunks; an empty part is not the end."""
    client = one_answer(make_bench, parts)
    status, headers, body, _ = as_h11_sees(client.received)
    assert (status, headers[b"transfer-encoding"], body) == (200, b"chunked", b"hello world")
    assert not client.ended


def test_parts_end_with_the_connection_for_http_1_0(make_bench: MakeBench) -> None:
    """An HTTP/1.0 client gets the bytes and the end of the connection."""
    client = one_answer(make_bench, parts, GET_1_0)
    assert client.received.endswith(b"\r\nConnection: close\r\n\r\nhello world")
    assert b"chunked" not in client.received
    assert client.ended


def test_parts_of_known_length(make_bench: MakeBench) -> None:
    """A length that is known is announced."""

    def answer(to: Responder) -> None:
        to.head(200, [], length=11)
        to.data(b"hello ")
        to.data(b"world")
        to.end()

    client = one_answer(make_bench, answer)
    _, headers, body, _ = as_h11_sees(client.received)
    assert (headers[b"content-length"], body) == (b"11", b"hello world")
    assert not client.ended


@pytest.mark.parametrize("sizes", [(5, 5), (12,), (), (11, 1)])
def test_a_body_that_is_not_as_long_as_announced_cuts_the_connection(
    make_bench: MakeBench, sizes: tuple[int, ...]
) -> None:
    """Shorter or longer: the client sees an end that is no end of an answer."""

    def answer(to: Responder) -> None:
        to.head(200, [], length=11)
        for size in sizes:
            to.data(b"x" * size)
        to.end()

    client = one_answer(make_bench, answer)
    assert client.ended
    assert client.received.partition(b"\r\n\r\n")[2] in (b"", b"x" * 10, b"x" * 11)
    if client.received:
        with pytest.raises((h11.RemoteProtocolError, AssertionError)):
            as_h11_sees(client.received + b"?" * (sum(sizes) == 12 or sum(sizes) == 11), ended=True)


def test_trailers(make_bench: MakeBench) -> None:
    """Trailers come behind the last chunk."""

    def answer(to: Responder) -> None:
        to.head(200, [(b"Trailer", b"X")])
        to.data(b"hello")
        to.end([(b"X", b"y")])

    client = one_answer(make_bench, answer)
    assert as_h11_sees(client.received)[2:] == (b"hello", [(b"x", b"y")])


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(make_bench: MakeBench, status: int) -> None:
    """204 and 304 have no body and no length, however they are answered; the connection goes on."""
    for answer in (
        lambda to: to.respond(status, [], b"hello"),
        lambda to: (to.head(status, [], length=5), to.data(b"hello"), to.end()),
    ):
        client = one_answer(make_bench, answer)
        assert b"ontent-" not in client.received.replace(b"Content-Type", b"")
        assert b"chunked" not in client.received
        assert client.received.endswith(b"\r\n\r\n")
        assert not client.ended


def test_head_has_the_length_but_no_body(make_bench: MakeBench) -> None:
    """HEAD gets what GET would, without the body, in each way of answering."""
    for answer, length in (
        (lambda to: to.respond(200, [], b"hello"), b"5"),
        (lambda to: (to.head(200, [], length=7), to.end()), b"7"),
        (parts, None),
    ):
        client = one_answer(make_bench, answer, HEAD)
        status, headers, body, _ = as_h11_sees(client.received, "HEAD")
        assert (status, headers.get(b"content-length"), body) == (200, length, b"")
        assert not client.ended


def test_early_hints(make_bench: MakeBench) -> None:
    """An interim answer comes first; an HTTP/1.0 client gets none."""

    def answer(to: Responder) -> None:
        to.inform(103, [(b"Link", b"</a>")])
        to.respond(200, [], b"hello")
        to.inform(103, [])

    client = one_answer(make_bench, answer)
    assert client.received.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert as_h11_sees(client.received)[2] == b"hello"
    assert one_answer(make_bench, answer, GET_1_0).received.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("status", [101, 200, 99])
def test_what_is_no_interim_answer(make_bench: MakeBench, status: int) -> None:
    """`inform` takes 100 to 199 without 101; anything else is a mistake of the handler, answered 500."""
    client = one_answer(make_bench, lambda to: to.inform(status, []))
    assert as_h11_sees(client.received)[0] == 500


@pytest.mark.parametrize("framing", ["length", "chunked", "1.0"])
def test_a_file_is_sent_by_the_kernel(make_bench: MakeBench, framing: str) -> None:
    """A part of a file stands where it belongs in the body, and its descriptor is closed."""
    content = os.urandom(3_000_000)
    descriptors: list[int] = []

    def answer(to: Responder) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            descriptors.append(os.dup(file.fileno()))
        to.head(200, [], length=len(content) - 100 + 4 if framing == "length" else None)
        to.data(b"<<")
        to.file(descriptors[0], 100, len(content) - 100)
        to.data(b">>")
        to.end()

    client = one_answer(make_bench, answer, GET_1_0 if framing == "1.0" else GET)
    client.bench.settle()
    client.take()
    body = client.received.partition(b"\r\n\r\n")[2] if framing == "1.0" else as_h11_sees(client.received)[2]
    assert body == b"<<" + content[100:] + b">>"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


def test_a_file_that_got_shorter_cuts_the_connection(make_bench: MakeBench) -> None:
    """The announced length cannot be kept, so the client must see it."""
    descriptors: list[int] = []

    def answer(to: Responder) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 10)
            file.flush()
            descriptors.append(os.dup(file.fileno()))
        to.head(200, [], length=20)
        to.file(descriptors[0], 0, 20)
        to.end()

    client = one_answer(make_bench, answer)
    client.bench.settle()
    client.take()
    assert client.ended
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_names_its_reason(make_bench: MakeBench) -> None:
    """`fail` answers with a trailboss-reason of printable characters, Retry-After where asked, and stays or closes."""
    client = one_answer(make_bench, lambda to: to.fail(503, "queue full\r\nX: ü", retry_after=1))
    status, headers, body, _ = as_h11_sees(client.received)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert headers[b"trailboss-reason"] == b"queue full??X: ?"
    assert body == b"queue full??X: ?\n"
    assert not client.ended
    client = one_answer(make_bench, lambda to: to.fail(503, "draining", close=True))
    assert as_h11_sees(client.received)[1][b"connection"] == b"close"
    assert client.ended


def test_a_failure_behind_the_head_cuts_the_connection(make_bench: MakeBench) -> None:
    """An answer that has begun never looks complete when it is not, for HTTP/1.0 either."""

    def answer(to: Responder) -> None:
        to.head(200, [])
        to.data(b"hello")
        to.fail(502, "the worker died")

    for data in (GET, GET_1_0):
        client = one_answer(make_bench, answer, data)
        assert client.ended
        assert b"0\r\n\r\n" not in client.received
        assert b"502" not in client.received


def test_abort_before_anything_was_sent(make_bench: MakeBench) -> None:
    """The client gets nothing but the end."""
    client = one_answer(make_bench, lambda to: to.abort())
    assert client.ended
    assert client.received == b""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_that_raises_costs_its_request_only(make_bench: MakeBench, when: str) -> None:
    """Nothing answered yet: 500, and the connection goes on. Answered already: nothing happens."""

    def handler(request: Request, responder: Responder) -> None:
        if request.path == "/bad":
            if when == "after":
                responder.respond(200, [], b"fine")
            raise RuntimeError("a bug")
        responder.respond(200, [], b"good")

    client = make_bench(handler).connect()
    client.send(GET.replace(b"/ ", b"/bad ") + GET)
    assert client.received.count(b"HTTP/1.1 500" if when == "before" else b"fine") == 1
    assert client.received.endswith(b"good")
    assert not client.ended


@pytest.mark.parametrize(
    "answer",
    [
        lambda to: to.respond(200, [(b"A", b"b\r\nC: d")], b"x"),
        lambda to: to.head(200, [(b"A\n", b"b")]),
        lambda to: to.respond(99999, [], b"x"),
        lambda to: to.head(0, []),
        lambda to: to.respond(100, [], b""),
        lambda to: to.data(b"x"),
        lambda to: to.end(),
    ],
)
def test_an_answer_that_cannot_be_is_500(make_bench: MakeBench, answer: Callable[[Responder], None]) -> None:
    """Headers that break out of their line, impossible statuses and parts out of order never reach a client."""
    client = one_answer(make_bench, answer)
    status, headers, _, _ = as_h11_sees(client.received)
    assert status == 500
    assert b"c" not in headers


def test_bad_trailers_cut_the_connection(make_bench: MakeBench) -> None:
    """The head is out, so there is no other way to say it."""

    def answer(to: Responder) -> None:
        to.head(200, [])
        to.end([(b"A", b"b\r\n\r\nHTTP/1.1 200 OK")])

    client = one_answer(make_bench, answer)
    assert client.ended
    assert b"0\r\n" not in client.received


def test_a_late_call_does_not_touch_the_next_answer(make_bench: MakeBench) -> None:
    """Whoever answers twice, or after the end, is not heard."""
    later = Later()
    client = make_bench(later).connect()
    client.send(GET + GET)
    first = later.held[0][1]
    first.respond(200, [], b"first")
    assert len(later.held) == 2
    for call in (
        lambda: first.respond(200, [], b"again"),
        lambda: first.fail(500, "again"),
        lambda: first.head(200, []),
        lambda: first.data(b"again"),
        lambda: first.end(),
        lambda: first.inform(103, []),
        lambda: first.abort(),
    ):
        call()
    later.held[1][1].respond(200, [], b"second")
    client.bench.settle()
    received = client.take()
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b"again" not in received
    assert received.endswith(b"second")
    assert not client.ended


def test_a_second_answer_to_a_begun_one_cuts_the_connection(make_bench: MakeBench) -> None:
    """Two heads for one request can only be wrong."""

    def answer(to: Responder) -> None:
        to.head(200, [])
        to.data(b"x")
        to.respond(200, [], b"y")

    assert one_answer(make_bench, answer).ended


# --- order, pipelines, reading ahead ----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order_one_at_a_time(make_bench: MakeBench) -> None:
    """The second request reaches the handler when the first is answered."""
    later = Later()
    client = make_bench(later).connect()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3)))
    for number in range(3):
        assert [request.path for request, _ in later.held] == [f"/{index}" for index in range(number + 1)]
        later.held[number][1].respond(200, [], b"%d;" % number)
    client.bench.settle()
    assert [part[0:1] for part in client.take().split(b"\r\n\r\n")[1:]] == [b"0", b"1", b"2"]


def test_a_long_pipeline_takes_turns(make_bench: MakeBench) -> None:
    """Hundreds of requests in one piece are all answered."""
    bench = make_bench()
    client = bench.connect()
    client.send(GET * 500)
    assert client.received.count(b"HTTP/1.1 200 OK") == 500
    assert len(bench.echo.requests) == 500


def test_reading_ahead_is_bounded(make_bench: MakeBench) -> None:
    """While a request is worked on, a bounded part of what follows is taken; afterwards everything is answered."""
    later = Later()
    bench = make_bench(later)
    client = bench.connect()
    client.send(GET)
    sent = 0
    flood = GET * 20_000
    client.sock.setblocking(False)
    for _ in range(1000):
        try:
            sent += client.sock.send(flood[sent : sent + 8192])
        except BlockingIOError:
            break
        bench.settle()
    else:
        raise AssertionError("everything was taken")
    assert len(client.connection._buffer) <= 2 * 64 * 1024
    answered = 0
    while answered < len(later.held):
        later.held[answered][1].respond(200, [], b"x")
        answered += 1
        bench.settle()
        client.take()
        while sent < len(flood):
            try:
                sent += client.sock.send(flood[sent : sent + 8192])
            except BlockingIOError:
                break
            bench.settle()
    assert answered == 20_001


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_request_is_handled_when_its_body_is_complete(make_bench: MakeBench) -> None:
    """A handler never waits for a client."""
    bench = make_bench()
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab")
    client.send(b"cd")
    assert bench.echo.requests == []
    client.send(b"ef" + GET)
    assert [body for _, _, body in bench.echo.requests] == [b"abcdef", b""]


def test_continue_is_sent_where_the_body_is_going_to_be_read(make_bench: MakeBench) -> None:
    """100 comes once, when the head is good and the body not there; a refused request gets the refusal instead."""
    bench = make_bench()
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"ab")
    assert client.received.count(b"HTTP/1.1 ") == 2
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    client = make_bench(limits=Limits(body_bytes=1)).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.received.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_goes_to_a_file_and_comes_out_whole(make_bench: MakeBench, chunked: bool) -> None:
    """What does not fit into memory is spooled; content and size are right, and the file is gone afterwards."""
    bench = make_bench(per_body=1000)
    client = bench.connect()
    body = os.urandom(500_000)
    if chunked:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 50_000):
            client.send(b"%x\r\n%b\r\n" % (50_000, body[start : start + 50_000]))
            assert bench.spool.files == 1
            assert bench.spool.memory_bytes == 0
        client.send(b"0\r\n\r\n")
    else:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert [content for _, _, content in bench.echo.requests] == [body]
    assert bench.echo.seen[0].body.size == len(body)
    assert bench.spool.files == 0


def test_a_body_that_cannot_be_kept_is_500(make_bench: MakeBench) -> None:
    """No folder for the file: an answer, not a broken connection, and nothing leaks."""
    bench = make_bench(per_body=10)
    bench.spool.folder = "/nonexistent/folder"
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
    assert client.received.startswith(b"HTTP/1.1 500 ")
    assert client.ended
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)
    assert client.received.startswith(b"HTTP/1.1 500 ")


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_the_table_of_deadlines() -> None:
    """Each state has the deadline of the configuration; a body's moves with what has arrived, an answer has none."""
    limits = Limits(
        head_timeout_seconds=1, idle_timeout_seconds=2, body_grace_seconds=3, body_bytes_per_second=100
    )
    assert deadline(Waiting.HEAD, 10, 0, limits) == 11
    assert deadline(Waiting.REQUEST, 10, 0, limits) == 12
    assert deadline(Waiting.BODY, 10, 0, limits) == 13
    assert deadline(Waiting.BODY, 10, 250, limits) == 15.5
    assert deadline(Waiting.ANSWER, 10, 0, limits) == float("inf")
    assert deadline(Waiting.DEPARTURE, 10, 0, limits) == 12
    assert deadline(Waiting.BODY, 10, 0, Limits(body_bytes_per_second=0)) == float("inf")


def test_a_client_that_sends_nothing(make_bench: MakeBench) -> None:
    """A fresh connection without a byte is closed after head_timeout, without an answer."""
    bench = make_bench()
    client = bench.connect()
    bench.advance(9.8)
    client.take()
    assert not client.ended
    bench.advance(0.4)
    assert client.take() == b""
    assert client.ended


def test_a_slow_head(make_bench: MakeBench) -> None:
    """A head that drips is refused after head_timeout, counted from its first byte on a kept connection."""
    bench = make_bench()
    client = bench.connect()
    client.send(GET)
    before = len(client.received)
    bench.advance(60)
    client.send(b"G")
    for _ in range(9):
        bench.advance(1)
        client.send(b"E")
        assert len(client.received) == before
    bench.advance(1.2)
    assert client.take()[before:].startswith(b"HTTP/1.1 408 ")
    assert client.ended


def test_a_slow_body(make_bench: MakeBench) -> None:
    """A body below the least rate is refused after the grace; one above it may take as long as it needs."""
    bench = make_bench(limits=Limits(body_bytes_per_second=1000))
    slow, steady = bench.connect(), bench.connect()
    for client in (slow, steady):
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n")
    for _ in range(29):
        slow.send(b"x" * 100)
        steady.send(b"x" * 1000)
        bench.advance(1)
    assert slow.take().startswith(b"HTTP/1.1 408 ")
    assert slow.ended
    assert steady.received == b""
    steady.send(b"x" * 1000)
    assert steady.take().startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection(make_bench: MakeBench) -> None:
    """A kept connection is closed after idle_timeout; each request begins the time anew."""
    bench = make_bench()
    client = bench.connect()
    for _ in range(4):
        client.send(GET)
        bench.advance(70)
        client.take()
        assert not client.ended
    bench.advance(6)
    client.take()
    assert client.ended
    assert client.received.count(b"HTTP/1.1 200") == 4


def test_an_answer_may_take_its_time(make_bench: MakeBench) -> None:
    """While a handler has the request, no limit of the front applies."""
    later = Later()
    client = make_bench(later).connect()
    client.send(GET)
    client.bench.advance(1000)
    client.take()
    assert not client.ended
    later.held[0][1].respond(200, [], b"late")
    client.bench.settle()
    assert client.take().endswith(b"late")
    client.bench.advance(74)
    client.take()
    assert not client.ended


def test_a_client_that_takes_nothing(make_bench: MakeBench) -> None:
    """After write_timeout without progress the connection is cut; with progress it may be as slow as it likes."""
    later = Later()
    bench = make_bench(later)
    stalled, slow = bench.connect(), bench.connect()
    for client in (stalled, slow):
        client.sock.sendall(GET)
    bench.settle()
    for _, responder in later.held:
        responder.respond(200, [], b"x" * 3_000_000)
    bench.settle()
    got = 0
    for _ in range(12):
        bench.advance(10)
        got += len(slow.sock.recv(50_000))
        bench.settle()
    assert stalled.connection.closed
    assert not slow.connection.closed
    assert later.gone == []  # the answers had ended for their handler
    assert bench.front.counters.timeouts == 1


# --- back-pressure ----------------------------------------------------------------------------------------------------


def test_a_source_is_told_to_pause_and_to_go_on(make_bench: MakeBench) -> None:
    """`wants_more` is False while too much is unsent; `on_ready` is called when there is room, and everything arrives."""
    later = Later()
    bench = make_bench(later, answers=AnswerAccount(200_000, 1 << 20, 0, 0))
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    responder = later.held[0][1]
    responder.head(200, [])
    sent = 0
    while responder.wants_more:
        responder.data(b"%07d\n" % sent * 1000)
        sent += 1
        assert sent < 10_000
    assert bench.front.answers.memory_bytes < 300_000
    assert later.ready == []
    while not responder.wants_more:
        client.received += client.sock.recv(30_000)
        bench.settle()
    assert later.ready == [0]
    responder.data(b"last")
    responder.end()
    bench.settle()
    client.take()
    body = as_h11_sees(client.received)[2]
    assert body == b"".join(b"%07d\n" % number * 1000 for number in range(sent)) + b"last"


def test_a_source_that_fails_when_it_shall_go_on(make_bench: MakeBench) -> None:
    """Its answer is cut and it is told that the client has gone, for it would wait for ever."""
    later = Later()
    bench = make_bench(later, answers=AnswerAccount(1000, 1000, 0, 0))
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    responder = later.held[0][1]

    def fail() -> None:
        raise RuntimeError("broken")

    responder.on_ready = fail
    responder.head(200, [])
    while responder.wants_more:
        responder.data(b"x" * 50_000)
    with structlog.testing.capture_logs() as records:
        client.take()
        bench.settle()
        client.take()
    assert client.ended
    assert later.gone == [0]
    assert [record["event"] for record in records] == ["a handler failed"]


def test_a_slow_client_does_not_hold_its_source(make_bench: MakeBench) -> None:
    """Megabytes are taken from the source at once, in memory and in a file, and arrive whole, framing included."""
    later = Later()
    bench = make_bench(later, answers=AnswerAccount(200_000, 1 << 20, 64 << 20, 64 << 20))
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    responder = later.held[0][1]
    responder.head(200, [])
    for number in range(400):
        responder.data(b"%07d\n" % number * 2000)
        assert responder.wants_more
    responder.end([(b"X-Sum", b"1")])
    assert responder.finished
    answers = bench.front.answers
    assert answers.files == 1
    assert answers.memory_bytes <= 200_000
    assert answers.file_bytes > 5_000_000
    bench.settle()
    client.take()
    _, _, body, trailers = as_h11_sees(client.received)
    assert body == b"".join(b"%07d\n" % number * 2000 for number in range(400))
    assert trailers == [(b"x-sum", b"1")]
    client.received = b""
    client.send(GET)
    later.held[1][1].respond(200, [], b"next")
    bench.settle()
    assert as_h11_sees(client.take())[2] == b"next"


def test_an_endless_stream_waits_for_its_client(make_bench: MakeBench) -> None:
    """When the file has its size the source shall pause; read to its end, the file is given back and it begins anew."""
    later = Later()
    bench = make_bench(later, answers=AnswerAccount(50_000, 1 << 20, 1_000_000, 64 << 20))
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    responder = later.held[0][1]
    responder.head(200, [])
    answers = bench.front.answers
    sent = 0
    for round_ in range(1, 4):
        while responder.wants_more:
            responder.data(b"%07d\n" % sent * 1000)
            sent += 1
            assert sent < 10_000
        assert answers.file_bytes <= 1_000_000
        assert answers.memory_bytes <= 100_000
        while not responder.wants_more:
            client.received += client.sock.recv(100_000)
            bench.settle()
        assert len(later.ready) == round_
        bench.settle()
        client.take()
        assert (answers.files, answers.file_bytes) == (0, 0)
    responder.end()
    bench.settle()
    body = as_h11_sees(client.take())[2]
    assert body == b"".join(b"%07d\n" % number * 1000 for number in range(sent))


@pytest.mark.parametrize("folder", ["", "/nonexistent/folder"])
def test_a_whole_answer_that_cannot_be_kept_is_cut(make_bench: MakeBench, folder: str) -> None:
    """Where neither memory nor file have room the client sees a cut, others have what was kept for them."""
    later = Later()
    room = 3_000_000 if not folder else 0
    bench = make_bench(later, answers=AnswerAccount(0, 0, 64 << 20, room, folder))
    clients = [bench.connect() for _ in range(2)]
    for client in clients:
        client.sock.sendall(GET)
        bench.settle()
    with structlog.testing.capture_logs() as records:
        for _, responder in later.held:
            responder.respond(200, [], b"x" * 3_000_000)
    bench.settle()
    kept = 1 if room else 0
    assert bench.front.answers.lost == 2 - kept
    assert [record["event"] for record in records] == ["answers for slow clients cannot be kept"]
    if kept:
        clients[0].take()
        assert len(as_h11_sees(clients[0].received)[2]) == 3_000_000
    clients[1].take()
    assert clients[1].ended
    assert len(clients[1].received) < 3_000_000


def test_a_client_that_goes_leaves_no_file(make_bench: MakeBench) -> None:
    """What waits in a file for a client is given up with it, whether its source has ended or not."""
    later = Later()
    bench = make_bench(later, answers=AnswerAccount(1000, 1000, 64 << 20, 64 << 20))
    clients = [bench.connect() for _ in range(2)]
    for client in clients:
        client.sock.sendall(GET)
        bench.settle()
    later.held[0][1].respond(200, [], b"x" * 3_000_000)
    later.held[1][1].head(200, [])
    later.held[1][1].data(b"x" * 3_000_000)
    assert bench.front.answers.files == 2
    for client in clients:
        client.sock.close()
    bench.settle()
    assert bench.front.answers.files == 0
    assert later.gone == [1]


# --- departures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_goes_ends_its_request(make_bench: MakeBench, begun: bool) -> None:
    """The handler is told once; what it sends afterwards is thrown away, and nothing is left of the request."""
    later = Later()
    bench = make_bench(later)
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
    request, responder = later.held[0]
    if begun:
        responder.head(200, [])
        responder.data(b"x")
        bench.settle()
    client.sock.close()
    bench.settle()
    assert later.gone == [0]
    assert responder.finished
    assert bench.front.in_flight == 0
    assert bench.spool.memory_bytes == 0
    responder.data(b"y")
    responder.end()
    responder.fail(500, "x")
    bench.settle()
    assert later.gone == [0]
    assert request.body.size == 2


def test_a_client_that_goes_in_the_middle_of_its_body(make_bench: MakeBench) -> None:
    """What has arrived is thrown away; no handler hears of it."""
    bench = make_bench(per_body=10)
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n" + b"x" * 100)
    assert bench.spool.files == 1
    client.sock.close()
    bench.settle()
    assert bench.spool.files == 0
    assert bench.echo.requests == []
    assert bench.front.connections == set()


def test_a_client_that_closes_its_side_early_still_gets_an_answer_that_was_made(
    make_bench: MakeBench,
) -> None:
    """An answer that is on its way when the client ends its sending side is sent to the end."""
    later = Later()
    bench = make_bench(later)
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    later.held[0][1].respond(200, [], b"x" * 2_000_000)
    client.sock.shutdown(1)
    bench.settle()
    client.take()
    assert len(as_h11_sees(client.received)[2]) == 2_000_000
    assert client.ended


def ending_its_side(bench: Bench, request: bytes) -> Client:
    """Return a client that has sent `request` and said that nothing follows."""
    client = bench.connect()
    client.sock.sendall(request)
    bench.settle()
    client.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    return client


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_client_that_closes_its_side_waits_for_its_answer(
    make_bench: MakeBench, version: str, size: int
) -> None:
    """The answer comes whole, however late; an HTTP/1.1 client was asked by 100 whether it is there."""
    later = Later()
    bench = make_bench(later)
    client = ending_its_side(bench, GET if version == "1.1" else GET_1_0)
    bench.advance(100)
    assert client.take() == (b"HTTP/1.1 100 Continue\r\n\r\n" if version == "1.1" else b"")
    assert (later.gone, client.ended) == ([], False)
    later.held[0][1].respond(200, [], b"x" * size)
    bench.settle()
    client.take()
    assert len(as_h11_sees(client.received)[2]) == size
    assert client.ended
    assert bench.front.connections == set()


@pytest.mark.parametrize("length", [None, 2_000_005])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_its_side_in_a_stream_gets_all_of_it(
    make_bench: MakeBench, length: int | None, version: str
) -> None:
    """The rest of the parts, the end and the trailers follow, in a framing that is still right."""
    later = Later()
    bench = make_bench(later)
    client = bench.connect()
    client.sock.sendall(GET if version == "1.1" else GET_1_0)
    bench.settle()
    responder = later.held[0][1]
    responder.head(200, [], length=length)
    responder.data(b"first")
    bench.settle()
    client.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    responder.data(b"x" * 2_000_000)
    bench.settle()
    responder.end()
    bench.settle()
    client.take()
    assert as_h11_sees(client.received, ended=True)[2] == b"first" + b"x" * 2_000_000
    assert (client.ended, later.gone, bench.front.in_flight) == (True, [], 0)


def test_a_quiet_stream_may_end_behind_the_question(make_bench: MakeBench) -> None:
    """The zero that asked whether the client is there becomes part of the last chunk's size."""
    later = Later()
    bench = make_bench(later)
    client = bench.connect()
    client.sock.sendall(GET)
    bench.settle()
    responder = later.held[0][1]
    responder.head(200, [])
    bench.settle()
    client.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    assert client.take().endswith(b"\r\n\r\n0")
    responder.end([(b"Sum", b"1")])
    bench.settle()
    assert as_h11_sees(client.take())[2:] == (b"", [(b"sum", b"1")])
    assert client.ended


@pytest.mark.parametrize(
    "rest", [b"", b"GET /half HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_pipeline_of_a_client_that_closes_its_side(make_bench: MakeBench, rest: bytes) -> None:
    """All whole requests are answered, in order; what is left of the last one is thrown away."""
    later = Later()
    bench = make_bench(later)
    client = ending_its_side(bench, GET * 3 + rest)
    for number in range(3):
        later.held[number][1].respond(200, [], b"%d" % number)
        bench.settle()
        client.take()
    answers = client.received.split(b"HTTP/1.1 200 OK")
    assert [answer[-1:] for answer in answers[1:]] == [b"0", b"1", b"2"]
    assert (len(later.held), client.ended, bench.front.connections) == (3, True, set())
    assert bench.spool.memory_bytes == 0


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_closes_its_side_and_leaves_later_has_gone(
    make_bench: MakeBench, started: bool
) -> None:
    """The handler hears of it when the rest of the connection ends too."""
    later = Later()
    bench = make_bench(later)
    client = ending_its_side(bench, GET)
    if started:
        later.held[0][1].head(200, [])
        bench.settle()
    assert later.gone == []
    client.sock.close()
    bench.settle()
    assert (later.gone, bench.front.in_flight, bench.front.connections) == ([0], 0, set())


@pytest.mark.parametrize("started", [False, True])
def test_a_client_of_tcp_that_has_left_is_noticed_at_once(make_bench: MakeBench, started: bool) -> None:
    """Its kernel says no more than that one side is closed, until it is asked."""
    later = Later()
    bench = make_bench(later)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    Connection(bench.front, near, "local:80", "192.0.2.1", 4711)
    far.sendall(GET)
    assert select.select([near], [], [], 10 * PATIENCE)[0]
    bench.settle()
    if started:
        later.held[0][1].head(200, [])
        bench.settle()
        assert select.select([far], [], [], 10 * PATIENCE)[0]
        far.recv(1000)
    far.close()
    ends = time.monotonic() + 10 * PATIENCE
    while not later.gone:
        assert time.monotonic() < ends
        bench.settle()
    assert (later.gone, bench.front.in_flight, bench.front.connections) == ([0], 0, set())


def test_a_refused_client_that_still_sends_gets_the_refusal(make_bench: MakeBench) -> None:
    """What it sends is read and thrown away for a while, so that no reset overtakes the answer."""
    bench = make_bench(limits=Limits(body_bytes=1000))
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 100_000)
    assert client.received.startswith(b"HTTP/1.1 413 ")
    assert not client.connection.closed
    bench.advance(2.2)
    assert client.connection.closed


# --- the end of the server --------------------------------------------------------------------------------------------


def test_draining_ends_connections_with_their_answers(make_bench: MakeBench) -> None:
    """From then on every answer says close, begun ones included; idle connections are closed when told."""
    later = Later()
    bench = make_bench(later)
    busy, idle, begun = bench.connect(), bench.connect(), bench.connect()
    idle.send(GET)
    later.held[0][1].respond(200, [], b"x")
    busy.send(GET)
    bench.front.draining = True
    bench.front.close_idle(bench.reactor.now)
    bench.settle()
    idle.take()
    begun.take()
    assert idle.ended
    assert begun.ended
    assert not busy.ended
    later.held[1][1].respond(200, [], b"y")
    bench.settle()
    assert as_h11_sees(busy.take())[1][b"connection"] == b"close"
    assert busy.ended


def test_a_front_that_refuses_answers_503_and_closes(make_bench: MakeBench) -> None:
    """The last ones that come get an honest answer."""
    bench = make_bench()
    client = bench.connect()
    bench.front.refuse_requests("the server is stopping")
    client.send(GET + GET)
    status, headers, _, _ = as_h11_sees(client.received)
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
    assert headers[b"trailboss-reason"] == b"the server is stopping"
    assert client.ended
    assert bench.echo.requests == []


def test_counts(make_bench: MakeBench) -> None:
    """Requests, refusals and what is in flight are counted."""
    later = Later()
    bench: Bench = make_bench(later)
    client = bench.connect()
    client.send(GET)
    assert (bench.front.in_flight, bench.front.counters.requests) == (1, 1)
    later.held[0][1].respond(200, [], b"")
    assert bench.front.in_flight == 0
    client.send(b"x\r\n\r\n")
    assert bench.front.counters.refusals == 1


@pytest.mark.parametrize(
    "end",
    [
        lambda responder: responder.respond(200, [], b"x"),
        lambda responder: (responder.head(200, []), responder.end()),
        lambda responder: responder.fail(500, "x"),
    ],
    ids=["respond", "end", "fail"],
)
def test_an_ended_answer_lets_go_of_its_callbacks(
    make_bench: MakeBench, end: Callable[[Responder], object]
) -> None:
    """Whoever waits for its end usually refers to it; a cycle would keep request and answer until the next collection."""
    later = Later()
    bench = make_bench(later)
    bench.connect().send(GET)
    _, responder = later.held[0]
    assert responder.on_gone is not None
    end(responder)
    assert responder.on_gone is None
    assert responder.on_ready is None
