"""One HTTP/2 client: answers of every kind, bodies, windows, departures, deadlines, and the stop."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from front_bench import Bench, MakeBench
from h2.errors import ErrorCodes
from h2_bench import Client, Fields, RawClient, get, window_update
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Request, Responder

LAST = (1 << 31) - 1


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


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer(make_bench: MakeBench) -> None:
    """The handler sees what the client asked, the client what the handler answered."""
    bench = make_bench()
    client = Client(bench)
    number = client.ask(
        get(b"/a/b?c=d", (b"x-one", b"1"), (b"cookie", b"a=b"), (b"cookie", b"c=d"), method=b"POST"), b"hello"
    )
    result = client.results[number]
    assert (result.status, result.body, result.ended, result.reset) == (200, b"hello", True, None)
    assert result.headers[b"content-type"] == b"text/plain"
    assert result.headers[b"content-length"] == b"5"
    assert result.headers[b"date"].endswith(b" GMT")
    request = bench.echo.seen[0]
    assert (request.method, request.target, request.path, request.query) == (
        "POST",
        "/a/b?c=d",
        "/a/b",
        "c=d",
    )
    assert (request.version, request.scheme, request.host) == ("2.0", "http", "a")
    assert (request.remote_addr, request.remote_port) == ("192.0.2.1", 4711)
    assert request.header(b"cookie") == b"a=b; c=d"
    assert request.header(b"host") == b"a"
    assert [name for name, _ in request.headers].count(b"cookie") == 1


def test_many_requests_of_one_connection(make_bench: MakeBench) -> None:
    """A hundred requests at once are answered, each with its own body, in whatever order."""
    later = Later()
    bench = make_bench(later)
    client = Client(bench)
    numbers = [client.ask(get(b"/%d" % n, method=b"POST"), b"%d" % n) for n in range(100)]
    assert len(later.held) == 100
    for request, responder in reversed(later.held):
        responder.respond(200, [], request.body.bytes() + b"!")
    client.turn()
    assert [client.results[n].body for n in numbers] == [b"%d!" % n for n in range(100)]
    assert all(client.results[n].ended for n in numbers)


@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 3_000_000])
def test_bodies_of_every_size(make_bench: MakeBench, size: int) -> None:
    """A body arrives whole, in memory or in a file, and comes back whole."""
    bench = make_bench(per_body=50_000)
    client = Client(bench)
    body = os.urandom(size)
    number = client.ask(get(method=b"PUT"), body if size else None)
    assert client.results[number].body == body
    assert client.results[number].ended


def test_the_byte_stream_may_be_split_anywhere(make_bench: MakeBench) -> None:
    """Two requests, one with body and trailers, come through whatever the pieces."""
    recorder = RawClient(make_bench(), begin=False)
    ack = SettingsFrame(0)
    ack.flags.add("ACK")
    data = DataFrame(3, b"hello")
    trailers = recorder.request(1)  # fills the encoder's table, as an honest client does
    recorder.encoder = type(recorder.encoder)()
    whole = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + SettingsFrame(0).serialize()
        + ack.serialize()
        + recorder.request(1, get(b"/first"))
        + recorder.request(3, get(b"/second", method=b"POST"), "END_HEADERS")
        + data.serialize()
        + recorder.request(3, [(b"x-sum", b"1")])
    )
    assert trailers
    for split in range(1, len(whole)):
        bench = make_bench()
        client = RawClient(bench, begin=False)
        client.send(whole[:split])
        client.send(whole[split:])
        assert bench.echo.requests == [("GET", "/first", b""), ("POST", "/second", b"hello")], split
        assert client.results[1].ended
        assert client.results[3].ended
        bench.close()


def test_one_byte_at_a_time(make_bench: MakeBench) -> None:
    """The slowest honest client is served."""
    bench = make_bench()
    client = RawClient(bench, begin=False)
    ack = SettingsFrame(0)
    ack.flags.add("ACK")
    whole = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + SettingsFrame(0).serialize()
        + ack.serialize()
        + client.request(1)
    )
    for byte in whole:
        client.send(bytes((byte,)))
    assert client.results[1].status == 200


def test_continue_is_sent_before_the_body(make_bench: MakeBench) -> None:
    """Who waits for 100 gets it, and then the answer."""
    client = Client(make_bench())
    number = client.protocol.get_next_available_stream_id()
    client.protocol.send_headers(number, get(b"/", (b"expect", b"100-continue"), method=b"POST"))
    client.turn()
    assert client.results[number].interim == [100]
    client.protocol.send_data(number, b"hello", end_stream=True)
    client.turn()
    assert (client.results[number].status, client.results[number].body) == (200, b"hello")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refused_request_costs_no_other(make_bench: MakeBench) -> None:
    """Too long a head is 431 on its stream; the next request of the connection is answered."""
    bench = make_bench(limits=Limits(head_bytes=1000))
    client = Client(bench)
    number = client.ask(get(b"/", (b"x", b"y" * 1200)))
    result = client.results[number]
    assert (result.status, result.headers[b"trailboss-reason"]) == (431, b"the head is too long")
    assert client.results[client.ask(get())].status == 200
    assert bench.front.counters.refusals == 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(make_bench: MakeBench, announced: bool) -> None:
    """413 as soon as it is known, and the stream is closed for what follows."""
    client = Client(make_bench(limits=Limits(body_bytes=10_000)))
    more = ((b"content-length", b"10001"),) if announced else ()
    number = client.protocol.get_next_available_stream_id()
    client.protocol.send_headers(number, get(b"/", *more, method=b"POST"))
    if not announced:
        client.protocol.send_data(number, bytes(10_001))
    client.turn()
    result = client.results[number]
    assert (result.status, result.ended, result.reset) == (413, True, ErrorCodes.NO_ERROR)
    assert client.results[client.ask(get())].status == 200


def test_a_malformed_request_is_reset(make_bench: MakeBench) -> None:
    """What breaks the rules of HTTP/2 costs its stream."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1, get(b"/", (b"Upper", b"case"))) + client.request(3))
    assert client.results[1].reset == ErrorCodes.PROTOCOL_ERROR
    assert client.results[3].status == 200
    assert len(bench.echo.requests) == 1


POSTED = "END_HEADERS"
SHORT = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("fields", "flags", "rest"),
    [
        (get(b"/", SHORT), (), []),
        (get(b"/", SHORT, method=b"POST"), (POSTED,), [(b"abc", True)]),
        (get(b"/", SHORT, method=b"POST"), (POSTED,), [(b"abcdef", True)]),
        (get(b"/", SHORT, method=b"POST"), (POSTED,), [(b"abc", False), (b"def", False)]),
        (get(b"/", SHORT, method=b"POST"), (POSTED,), [(b"", True)]),
        (get(b"/", SHORT, method=b"HEAD"), (POSTED,), [(b"abc", True)]),
        (get(b"/", SHORT, method=b"POST"), (POSTED,), [(b"abc", False), [(b"x", b"y")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b":path", b"/")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b":status", b"100")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b"Upper", b"y")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b"x", b" y")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b"x", b"a\nb")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b"connection", b"close")]]),
        (get(method=b"POST"), (POSTED,), [(b"abc", False), [(b"content-length", b"x"), (b"a b", b"")]]),
        (get(b"/", (b":status", b"100")), (), []),
        ([(b":status", b"100")], (), []),
        ([(b":status", b"103")], (POSTED,), []),
        (get(b"/", (b"te", b"gzip")), (), []),
        (get(b"/", (b"transfer-encoding", b"chunked")), (), []),
    ],
)
def test_a_malformed_request_costs_its_stream_alone(
    make_bench: MakeBench, fields: Fields, flags: tuple[str, ...], rest: list[tuple[bytes, bool] | Fields]
) -> None:
    """Heads, lengths and trailers that lie reset their stream; those before and behind are answered (RFC 9113, 8.1.1)."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1, get(method=b"POST"), POSTED))
    wrong = client.request(3, fields, *flags)
    for part in rest:
        if isinstance(part, list):
            wrong += client.request(3, part)
        else:
            frame = DataFrame(3, part[0], flags=["END_STREAM"] if part[1] else [])
            wrong += frame.serialize()
    client.send(wrong + client.request(5))
    end = DataFrame(1, b"hello", flags=["END_STREAM"])
    client.send(end.serialize())
    assert client.results[3].reset == ErrorCodes.PROTOCOL_ERROR
    assert [client.results[number].status for number in (1, 5)] == [200, 200]
    assert sorted(body for _, _, body in bench.echo.requests) == [b"", b"hello"]
    assert (client.goaways, client.ended, bench.front.in_flight) == ([], False, 0)


@pytest.mark.parametrize("split", [False, True])
def test_trailers_that_end_nothing_cost_their_stream(make_bench: MakeBench, split: bool) -> None:
    """A second head without END_STREAM is malformed, also in two pieces; what it said of the table still counts."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1, get(method=b"POST"), POSTED))
    block = client.encoder.encode([(b"x-new", b"value"), (b"x-more", b"value")])
    if split:
        frames = [HeadersFrame(1, block[:5]), ContinuationFrame(1, block[5:], flags=["END_HEADERS"])]
    else:
        frames = [HeadersFrame(1, block, flags=["END_HEADERS"])]
    client.send(b"".join(frame.serialize() for frame in frames))
    client.send(client.request(3, get(b"/", (b"x-new", b"value"))))
    assert client.results[1].reset == ErrorCodes.PROTOCOL_ERROR
    assert client.results[3].status == 200
    assert bench.echo.seen[0].header(b"x-new") == b"value"
    assert client.goaways == []


@pytest.mark.parametrize(
    "length", [b"", b"x", b"+5", b"5_0", b"0x5", b"5, 5", "٥".encode(), b"\xb2", b"9" * 5000]
)
def test_a_length_that_is_no_number_is_answered(make_bench: MakeBench, length: bytes) -> None:
    """400, or 413 for what would be too much; the connection stays."""
    client = RawClient(make_bench())
    client.send(
        client.request(1, get(b"/", (b"content-length", length), method=b"POST"), POSTED) + client.request(3)
    )
    assert client.results[1].status == (413 if length[:1] == b"9" else 400)
    assert client.results[3].status == 200
    assert client.goaways == []


def test_a_body_that_is_too_large_at_its_very_end(make_bench: MakeBench) -> None:
    """The frame that crosses the limit is the last one: 413, and no other stream suffers."""
    client = Client(make_bench(limits=Limits(body_bytes=10_000)))
    number = client.ask(get(method=b"POST"), bytes(10_001))
    assert (client.results[number].status, client.results[number].reset) == (413, None)
    assert client.results[client.ask(get())].status == 200
    assert client.goaways == []


def test_too_many_streams_are_refused(make_bench: MakeBench) -> None:
    """REFUSED_STREAM for those beyond, so that the client may try again; the others are served."""
    later = Later()
    bench = make_bench(later)
    bench.front.http2.max_concurrent_streams = 3
    client = RawClient(bench)
    settings = client.frames[0]
    assert isinstance(settings, SettingsFrame)
    assert settings.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 3
    client.send(b"".join(client.request(number) for number in (1, 3, 5, 7, 9)))
    assert [client.result(number).reset for number in (1, 3, 5, 7, 9)] == [None, None, None, 7, 7]
    later.held[0][1].respond(200, [], b"")
    client.send(client.request(11))
    assert len(later.held) == 4


# --- answers ----------------------------------------------------------------------------------------------------------


def parts(responder: Responder) -> None:
    """Answer in parts of unknown number."""
    responder.inform(103, [(b"Link", b"</a>")])
    responder.head(200, [(b"A", b"b"), (b"Connection", b"close"), (b"Transfer-Encoding", b"chunked")])
    responder.data(b"hello ")
    responder.data(b"")
    responder.data(b"world")
    responder.end([(b"Sum", b"1")])


def test_parts_and_trailers(make_bench: MakeBench) -> None:
    """Interim head, head, parts and trailers; nothing about connections is sent."""
    client = Client(make_bench(calling(parts)))
    result = client.results[client.ask(get())]
    assert (result.interim, result.status, result.body) == ([103], 200, b"hello world")
    assert (result.trailers, result.ended) == ([(b"sum", b"1")], True)
    assert result.headers[b"a"] == b"b"
    assert not {b"connection", b"transfer-encoding", b"content-length"} & set(result.headers)


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_answers_without_a_body(make_bench: MakeBench, method: bytes, status: int) -> None:
    """Whole or in parts, no body leaves; the length of a HEAD's answer is told."""

    def whole(to: Responder) -> None:
        to.respond(status, [], b"hello")

    def in_parts(to: Responder) -> None:
        to.head(status, [], length=5)
        to.data(b"hello")
        to.end()

    for answer in (whole, in_parts):
        client = Client(make_bench(calling(answer)))
        result = client.results[client.ask(get(method=method))]
        assert (result.status, result.body, result.ended) == (status, b"", True)
        assert result.headers.get(b"content-length") == (b"5" if method == b"HEAD" else None)


@pytest.mark.parametrize("sizes", [(5, 5), (12,), (), (11, 1)])
def test_a_body_that_is_not_as_long_as_announced_cuts_the_stream(
    make_bench: MakeBench, sizes: tuple[int, ...]
) -> None:
    """Shorter or longer: the client sees an end that is no end of an answer, on this stream alone."""

    def answer(to: Responder) -> None:
        to.head(200, [], length=11)
        for size in sizes:
            to.data(b"x" * size)
        to.end()

    client = RawClient(make_bench(calling(answer)))
    client.send(client.request(1))
    assert client.results[1].reset == ErrorCodes.INTERNAL_ERROR
    assert not client.goaways
    assert not client.ended


def test_a_header_that_would_break_out_is_not_sent(make_bench: MakeBench) -> None:
    """A line break in a value is 500, whoever wrote it."""
    client = Client(make_bench(calling(lambda to: to.respond(200, [(b"A", b"b\r\nc: d")], b"x"))))
    assert client.results[client.ask(get())].status == 500


def test_a_handler_that_fails_costs_its_request(make_bench: MakeBench) -> None:
    """500 for one stream; the connection stays."""

    def handler(request: Request, responder: Responder) -> None:
        if request.path == "/bad":
            raise LookupError
        responder.respond(200, [], b"")

    client = Client(make_bench(handler))
    assert client.results[client.ask(get(b"/bad"))].status == 500
    assert client.results[client.ask(get())].status == 200


def test_whoever_calls_too_late_changes_nothing(make_bench: MakeBench) -> None:
    """A responder is deaf once its request is over."""
    later = Later()
    client = Client(make_bench(later))
    number = client.ask(get())
    responder = later.held[0][1]
    responder.respond(200, [], b"one")
    for call in (
        lambda: responder.respond(200, [], b"two"),
        lambda: responder.data(b"x"),
        lambda: responder.end(),
        lambda: responder.fail(500, "no"),
        lambda: responder.abort(),
        lambda: responder.inform(103, []),
    ):
        call()
    client.turn()
    assert (client.results[number].body, client.results[number].ended) == (b"one", True)
    assert client.bench.front.in_flight == 0


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_stalled_stream_holds_up_no_other(make_bench: MakeBench) -> None:
    """A stream whose window is used up waits; the one beside it gets its answer."""
    later = Later()
    client = Client(make_bench(later))
    client.acknowledges = False
    slow, quick = client.ask(get(b"/slow")), client.ask(get(b"/quick"))
    client.protocol.increment_flow_control_window(10_000_000)
    client.turn()
    later.held[0][1].respond(200, [], bytes(300_000))
    later.held[1][1].respond(200, [], b"here")
    client.turn()
    assert len(client.results[slow].body) == 65_535
    assert not client.results[slow].ended
    assert (client.results[quick].body, client.results[quick].ended) == (b"here", True)
    client.protocol.increment_flow_control_window(300_000, slow)
    client.turn()
    assert (len(client.results[slow].body), client.results[slow].ended) == (300_000, True)


def test_back_pressure_reaches_the_source_and_goes_away(make_bench: MakeBench) -> None:
    """`wants_more` is False while a stream's share is full; `on_ready` is called when there is room."""
    from trailboss.plugins.http.unsent import AnswerAccount

    later = Later()
    account = AnswerAccount(100_000, 1 << 20, 100_000, 1 << 20)
    bench = make_bench(later, answers=account)
    client = Client(bench)
    client.acknowledges = False
    number = client.ask(get())
    responder = later.held[0][1]
    responder.head(200, [])
    sent = 0
    while responder.wants_more:
        responder.data(bytes(10_000))
        sent += 10_000
        assert sent < 1_000_000
    client.turn()
    assert later.ready == []
    client.acknowledges = True
    client.protocol.increment_flow_control_window(1_000_000)
    client.protocol.increment_flow_control_window(1_000_000, number)
    client.turn()
    assert (later.ready, responder.wants_more) == ([0], True)
    responder.end()
    client.turn()
    assert (len(client.results[number].body), client.results[number].ended) == (sent, True)
    assert (account.memory_bytes, account.file_bytes) == (0, 0)


def test_files_are_sent_in_pieces(make_bench: MakeBench) -> None:
    """A part of a file arrives as it is; its descriptor is closed."""
    content = os.urandom(1_000_000)

    def answer(to: Responder) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            to.head(200, [], length=999_990)
            to.file(os.dup(file.fileno()), 10, 999_990)
        to.end()

    before = len(os.listdir("/proc/self/fd"))
    bench = make_bench(calling(answer))
    client = Client(bench)
    assert client.results[client.ask(get())].body == content[10:]
    bench.close()
    client.sock.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_that_shrinks_cuts_its_stream(make_bench: MakeBench) -> None:
    """What was announced cannot be sent: the stream is reset and its source told."""
    later = Later()
    client = Client(make_bench(later))
    number = client.ask(get())
    responder = later.held[0][1]
    responder.head(200, [], length=500_000)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100_000))
        file.flush()
        responder.file(os.dup(file.fileno()), 0, 500_000)
        client.turn()
    assert client.results[number].reset == ErrorCodes.INTERNAL_ERROR
    assert later.gone == [0]


def test_windows_of_one_byte(make_bench: MakeBench) -> None:
    """A client that opens its window byte by byte gets its answer byte by byte, as long as it does not overdo it."""
    client = RawClient(make_bench(calling(lambda to: to.respond(200, [], b"hello"))), begin=False)
    settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings.serialize() + client.request(1))
    assert (client.results[1].status, client.results[1].body) == (200, b"")
    for count in range(1, 6):
        client.send(window_update(1, 1))
        assert client.results[1].body == b"hello"[:count]
    assert client.results[1].ended


# --- departures -------------------------------------------------------------------------------------------------------


def test_a_reset_stream_is_a_client_that_has_gone(make_bench: MakeBench) -> None:
    """Whoever works on it is told; the connection and its other streams go on."""
    later = Later()
    bench = make_bench(later)
    client = Client(bench)
    first, second = client.ask(get()), client.ask(get())
    client.protocol.reset_stream(first, ErrorCodes.CANCEL)
    client.turn()
    assert later.gone == [0]
    assert later.held[0][1].finished
    assert bench.front.in_flight == 1
    later.held[1][1].respond(200, [], b"x")
    client.turn()
    assert client.results[second].ended


def test_a_client_that_goes_takes_all_its_requests_along(make_bench: MakeBench) -> None:
    """Every handler is told, bodies that were arriving are let go."""
    later = Later()
    bench = make_bench(later, per_body=10)
    client = Client(bench)
    client.ask(get())
    client.ask(get())
    number = client.protocol.get_next_available_stream_id()
    client.protocol.send_headers(number, get(method=b"POST"))
    client.protocol.send_data(number, bytes(1000))
    client.turn()
    assert bench.spool.files == 1
    client.sock.close()
    bench.settle()
    assert sorted(later.gone) == [0, 1]
    assert (bench.spool.files, bench.front.in_flight, len(bench.front.connections)) == (0, 0, 0)


def test_a_client_that_says_goodbye_gets_its_answers(make_bench: MakeBench) -> None:
    """After the client's GOAWAY the requests under way are answered, then the connection ends."""
    later = Later()
    client = RawClient(make_bench(later))
    client.send(client.request(1) + GoAwayFrame(0).serialize())
    assert not client.ended
    later.held[0][1].respond(200, [], b"x")
    client.send(b"")
    assert (client.results[1].body, client.ended) == (b"x", True)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed(make_bench: MakeBench) -> None:
    """GOAWAY without an error, after the time for idle connections; pings do not prolong it."""
    bench = make_bench(limits=Limits(idle_timeout_seconds=5))
    client = RawClient(bench)
    client.send(client.request(1))
    bench.advance(4.5)
    client.take()
    assert not client.goaways
    bench.advance(1)
    client.take()
    assert client.goaways == [(0, 1)]
    assert client.ended


def test_a_client_that_never_begins(make_bench: MakeBench) -> None:
    """No preface, or no acknowledgement of the settings, within the time for heads."""
    for data in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()):
        bench = make_bench(limits=Limits(head_timeout_seconds=2))
        client = RawClient(bench, begin=False)
        client.send(data)
        bench.advance(3)
        client.take()
        assert client.goaways == [(ErrorCodes.SETTINGS_TIMEOUT, 0)]
        assert client.ended
        assert bench.front.counters.timeouts == 1


def test_a_head_that_does_not_end(make_bench: MakeBench) -> None:
    """A head without its end costs the connection after the time for heads."""
    bench = make_bench(limits=Limits(head_timeout_seconds=2))
    client = RawClient(bench)
    client.send(client.request(1, None, "END_STREAM"))
    bench.advance(3)
    client.take()
    assert client.goaways == [(ErrorCodes.PROTOCOL_ERROR, 0)]
    assert client.ended


def test_a_body_that_is_too_slow(make_bench: MakeBench) -> None:
    """408 on its stream; the connection stays."""
    bench = make_bench(limits=Limits(body_grace_seconds=1, body_bytes_per_second=1000))
    client = Client(bench)
    number = client.protocol.get_next_available_stream_id()
    client.protocol.send_headers(number, get(method=b"POST"))
    client.protocol.send_data(number, bytes(500))
    client.turn()
    bench.advance(1.2)
    client.turn()
    assert client.result(number).status == 0
    bench.advance(1)
    client.turn()
    assert (client.results[number].status, client.results[number].reset) == (408, ErrorCodes.NO_ERROR)
    assert client.results[client.ask(get())].status == 200


def test_an_answer_that_is_not_taken(make_bench: MakeBench) -> None:
    """A stream without a window for too long is cut, and only that one."""
    later = Later()
    bench = make_bench(later, limits=Limits(write_timeout_seconds=2))
    client = Client(bench)
    client.acknowledges = False
    number = client.ask(get())
    client.protocol.increment_flow_control_window(1_000_000)
    client.turn()
    later.held[0][1].head(200, [])
    later.held[0][1].data(bytes(100_000))
    client.turn()
    bench.advance(1)
    client.turn()
    assert client.results[number].reset is None
    bench.advance(2)
    client.turn()
    assert client.results[number].reset == ErrorCodes.INTERNAL_ERROR
    assert later.gone == [0]
    other = client.ask(get())
    later.held[1][1].respond(200, [], b"x")
    client.turn()
    assert client.results[other].ended


def test_a_client_that_reads_nothing(make_bench: MakeBench) -> None:
    """Windows wide open and a socket that is full: reading stops, what waits is bounded, then the connection is cut."""
    later = Later()
    bench = make_bench(later, limits=Limits(write_timeout_seconds=2))
    client = RawClient(bench)
    client.send(
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: LAST}).serialize()
        + window_update(0, LAST - 65_535)
        + b"".join(client.request(2 * n + 1) for n in range(50))
    )
    client.reading = False
    for _, responder in later.held:
        responder.respond(200, [], bytes(200_000))
    bench.settle()
    assert client.connection.unsent_bytes < 600_000
    bench.advance(3)
    assert client.connection.closed
    assert bench.front.answers.memory_bytes == 0


# --- the stop ---------------------------------------------------------------------------------------------------------


def test_the_stop_loses_no_request(make_bench: MakeBench) -> None:
    """First the news, then the last stream that was taken; what crossed the news is answered, what came later refused."""
    later = Later()
    bench = make_bench(later)
    client = RawClient(bench)
    client.send(client.request(1))
    bench.front.draining = True
    bench.front.close_idle(bench.reactor.now)
    client.take()
    assert client.goaways == [(0, LAST)]
    client.send(client.request(3))
    assert len(later.held) == 2
    bench.advance(0.3)
    bench.front.close_idle(bench.reactor.now)
    client.take()
    assert client.goaways == [(0, LAST), (0, 3)]
    client.send(client.request(5))
    assert client.results[5].reset == ErrorCodes.REFUSED_STREAM
    assert bench.front.open_count == 1
    for _, responder in later.held:
        responder.respond(200, [], b"done")
    bench.settle()
    client.take()
    assert [client.results[n].body for n in (1, 3)] == [b"done", b"done"]
    assert client.ended
    assert bench.front.open_count == 0


def test_idle_connections_leave_at_the_stop(make_bench: MakeBench) -> None:
    """Nothing under way: news, last word, end."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1))
    bench.front.draining = True
    bench.front.close_idle(bench.reactor.now)
    bench.advance(0.3)
    bench.front.close_idle(bench.reactor.now)
    client.take()
    assert client.goaways == [(0, LAST), (0, 1)]
    assert client.ended


def test_an_answer_that_ends_the_connection(make_bench: MakeBench) -> None:
    """`fail(close=True)`: the answer arrives, with a GOAWAY."""
    bench = make_bench(calling(lambda to: to.fail(503, "stopping", retry_after=1, close=True)))
    client = RawClient(bench)
    client.send(client.request(1))
    assert (client.results[1].status, client.results[1].headers[b"retry-after"]) == (503, b"1")
    assert client.goaways == [(0, 1)]
    assert client.ended


# --- h2c --------------------------------------------------------------------------------------------------------------


def test_prior_knowledge_on_a_plain_connection(make_bench: MakeBench) -> None:
    """The preface makes an HTTP/1 connection one of HTTP/2, wherever it is split, where h2c is on."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
    for split in range(1, len(preface)):
        bench = make_bench()
        bench.front.http2.h2c = True
        client = bench.connect()
        client.send(preface[:split])
        client.send(preface[split:])
        assert client.received[3:4] == b"\x04", split  # SETTINGS
        assert not client.ended
        assert len(bench.front.connections) == 1
        bench.close()


@pytest.mark.parametrize("h2c", [True, False])
def test_the_preface_is_no_request_otherwise(make_bench: MakeBench, h2c: bool) -> None:
    """Without h2c, or behind a request of HTTP/1, it is a version that is not spoken: 505."""
    bench = make_bench()
    bench.front.http2.h2c = h2c
    client = bench.connect()
    if h2c:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"HTTP/1.1 505 " in client.received
    assert client.ended


def test_a_wrong_preface_ends_the_connection(make_bench: MakeBench) -> None:
    """What begins like HTTP/2 and is not."""
    bench = make_bench()
    client = RawClient(bench, begin=False)
    client.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
    assert client.goaways == [(ErrorCodes.PROTOCOL_ERROR, 0)]
    assert client.ended


def test_a_reset_after_the_end_changes_nothing(make_bench: MakeBench) -> None:
    """A client may reset what it has just got."""
    bench: Bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1))
    client.send(RstStreamFrame(1).serialize() + client.request(3))
    assert client.results[3].status == 200


@pytest.mark.parametrize("name", ["send_headers", "send_data", "end_stream", "receive_data", "reset_stream"])
def test_a_failure_inside_costs_one_connection(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the library might raise: GOAWAY, everybody is told, nothing is left, others go on."""
    later = Later()
    bench = make_bench(later, limits=Limits(body_grace_seconds=1))
    client, other = RawClient(bench), RawClient(bench)
    client.send(client.request(1) + client.request(3) + client.request(5))
    protocol = client.connection._protocol

    def fail(*_words: object, **_pairs: object) -> None:
        raise RuntimeError(name)

    if name == "reset_stream":
        client.send(client.request(7, get(method=b"POST"), "END_HEADERS"))
    monkeypatch.setattr(protocol, name, fail)
    if name == "reset_stream":
        bench.advance(2)
    elif name == "receive_data":
        client.send(client.request(7))
    else:
        later.held[0][1].respond(200, [], b"x")
        later.held[1][1].head(200, [])
        later.held[1][1].end()
    client.send(b"")
    assert [code for code, _ in client.goaways] == [ErrorCodes.INTERNAL_ERROR]
    assert client.ended
    assert bench.front.in_flight == 0
    assert 2 in later.gone
    other.send(other.request(1))
    later.held[-1][1].respond(200, [], b"y")
    other.send(b"")
    assert other.results[1].body == b"y"
