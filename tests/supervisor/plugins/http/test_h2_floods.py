"""HTTP/2 clients that mean harm: each flood ends its own connection, within bounds, and says so once."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest
from front_bench import MakeBench
from h2.errors import ErrorCodes
from h2_bench import PREFACE, RawClient, frames_of, get, window_update
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
)
from structlog.testing import capture_logs

from trailboss.plugins.http.limits import Limits

CALM = int(ErrorCodes.ENHANCE_YOUR_CALM)
LAST = (1 << 31) - 1


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of any kind."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def flood(make_bench: MakeBench, data: bytes, times: int, limits: Limits | None = None) -> RawClient:
    """Send `data` so many times; another client is served meanwhile and afterwards."""
    bench = make_bench(limits=limits)
    other, client = RawClient(bench), RawClient(bench)
    pieces = max(1, times // 10)
    for number in range(10):
        client.send(data * pieces)
        other.send(other.request(2 * number + 1))
        assert other.results[2 * number + 1].status == 200
    assert not other.ended
    return client


PING = PingFrame(0, b"12345678").serialize()
SETTINGS = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 70_000}).serialize()


@pytest.mark.parametrize(
    "frame",
    [
        PING,
        raw(6, 1, 0, b"12345678"),  # acknowledgements of pings that never were
        SettingsFrame(0).serialize(),
        SETTINGS,
        raw(4, 1, 0),  # acknowledgements of settings
        PriorityFrame(1, depends_on=0, stream_weight=1).serialize(),
        raw(0xBB, 0, 0, b"x"),
        raw(0x10, 0, 0, b"\0\0\0\1u=1"),
        window_update(0, 1),
        DataFrame(1, b"").serialize(),
        DataFrame(1, b"x").serialize(),
        DataFrame(1, b"", flags=("PADDED",), pad_length=255).serialize(),
    ],
)
def test_frames_that_ask_for_nothing(make_bench: MakeBench, frame: bytes) -> None:
    """Every kind, 20,000 times: GOAWAY with ENHANCE_YOUR_CALM, long before the end."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(1, get(method=b"POST"), "END_HEADERS"))
    for _ in range(20):
        client.send(frame * 1000)
    assert [code for code, _ in client.goaways] == [CALM]
    assert client.ended
    assert bench.front.http2.floods == 1
    assert bench.front.in_flight == 0


def test_rapid_reset(make_bench: MakeBench) -> None:
    """A request and its reset, a hundred thousand times: a few hundred reach the handler (CVE-2023-44487)."""
    bench = make_bench(lambda _request, _responder: None)
    client = RawClient(bench)
    number = 1
    while not client.ended and number < 200_000:
        data = b""
        for _ in range(100):
            data += client.request(number) + RstStreamFrame(number, 8).serialize()
            number += 2
        client.send(data)
    assert [code for code, _ in client.goaways] == [CALM]
    assert bench.front.counters.requests < 400
    assert bench.front.in_flight == 0


def test_resets_of_a_patient_client_are_no_flood(make_bench: MakeBench) -> None:
    """Somebody who gives up ten requests a second, for a minute, is served."""
    bench = make_bench(lambda _request, _responder: None)
    client = RawClient(bench)
    number = 1
    for _ in range(60):
        for _ in range(8):
            client.send(client.request(number) + RstStreamFrame(number, 8).serialize())
            number += 2
        bench.advance(1)
    assert not client.goaways


@pytest.mark.parametrize("piece", [b"", b"x" * 16_000])
def test_a_head_without_end(make_bench: MakeBench, piece: bytes) -> None:
    """CONTINUATION for ever, empty or full: bounded, and over soon (CVE-2024-27316)."""
    client = RawClient(make_bench())
    client.send(raw(1, 0, 1, b"\x00\x01a\x7f\xe1\xff\x03"))
    for _ in range(1000):
        client.send(ContinuationFrame(1, piece).serialize())
        if client.ended:
            break
    assert [code for code, _ in client.goaways] == [CALM]
    assert client.ended


def test_a_bomb_of_fields(make_bench: MakeBench) -> None:
    """A few kilobytes that stand for a hundred megabytes are given up after the limit."""
    bench = make_bench()
    client = RawClient(bench)
    # one field of 4000 bytes into the table, then 16,000 references to it
    bomb = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 12_000
    tracemalloc.start()
    client.send(raw(1, 5, 1, bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [code for code, _ in client.goaways] == [CALM]
    assert peak < 4 << 20
    assert bench.echo.requests == []


def test_settings_that_nobody_knows(make_bench: MakeBench) -> None:
    """Thousands of made-up settings are not remembered."""
    client = RawClient(make_bench())
    payload = b"".join(struct.pack(">HI", 1000 + number, 1) for number in range(2700))
    before = len(client.connection._protocol.remote_settings)
    client.send(raw(4, 0, 0, payload))
    assert len(client.connection._protocol.remote_settings) == before
    assert frames_of(client, SettingsFrame)[-1].flags  # acknowledged
    client.send(client.request(1))
    assert client.results[1].status == 200


def test_a_huge_table_is_not_used(make_bench: MakeBench) -> None:
    """What a client offers as room for our fields is taken up to 4096 bytes."""
    client = RawClient(make_bench())
    client.send(SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 1 << 30}).serialize())
    assert client.connection._protocol.encoder.header_table_size == 4096
    client.decoder.max_allowed_table_size = 1 << 30
    client.send(client.request(1))
    assert client.results[1].status == 200


def test_streams_beyond_the_limit_for_ever(make_bench: MakeBench) -> None:
    """Whoever goes on opening streams that are refused is cut off."""
    bench = make_bench(lambda _request, _responder: None)
    client = RawClient(bench)
    number = 1
    while not client.ended and number < 100_000:
        client.send(b"".join(client.request(number + 2 * more) for more in range(50)))
        number += 100
    assert [code for code, _ in client.goaways] == [CALM]
    assert bench.front.counters.requests == 128


def test_malformed_requests_for_ever(make_bench: MakeBench) -> None:
    """Each is reset; after some hundreds the connection ends."""
    client = RawClient(make_bench())
    number = 1
    while not client.ended and number < 100_000:
        client.send(b"".join(client.request(number + 2 * more, get(b"no")) for more in range(50)))
        number += 100
    assert [code for code, _ in client.goaways] == [CALM]


def test_bodies_that_lie_for_ever(make_bench: MakeBench) -> None:
    """A body longer than its Content-Length costs its stream; some hundreds of them cost the connection."""
    client = RawClient(make_bench())
    number = 1
    while not client.ended and number < 100_000:
        fields = get(b"/", (b"content-length", b"1"), method=b"POST")
        body = DataFrame(number, bytes(300), flags=["END_STREAM"]).serialize()
        client.send(client.request(number, fields, "END_HEADERS") + body)
        number += 2
    assert [code for code, _ in client.goaways] == [CALM]
    assert client.results[1].reset == ErrorCodes.PROTOCOL_ERROR


def test_data_for_a_closed_stream_for_ever(make_bench: MakeBench) -> None:
    """Some of it was on its way; more than a window of it is none."""
    bench = make_bench(limits=Limits(body_bytes=1000))
    client = RawClient(bench)
    client.send(client.request(1, get(b"/", method=b"POST"), "END_HEADERS"))
    data = DataFrame(1, bytes(16_000)).serialize()
    client.send(data * 60)
    assert client.results[1].status == 413
    assert not client.goaways
    for _ in range(100):
        client.send(data * 60)
    assert client.ended


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (raw(0, 0, 1, b"")[:9].replace(b"\0\0\0", b"\xff\xff\xff", 1), ErrorCodes.FRAME_SIZE_ERROR),
        (window_update(0, LAST), ErrorCodes.FLOW_CONTROL_ERROR),
        (raw(8, 0, 0, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
        (raw(8, 0, 0, b"\0"), ErrorCodes.FRAME_SIZE_ERROR),
        (raw(0, 0, 0, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (raw(0, 8, 1, b"\xff"), ErrorCodes.PROTOCOL_ERROR),
        (raw(5, 4, 1, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
        (raw(9, 4, 103), ErrorCodes.PROTOCOL_ERROR),
        (raw(4, 0, 0, b"\0\4\xff\xff\xff\xff"), ErrorCodes.FLOW_CONTROL_ERROR),
        (raw(1, 5, 2, b"\x82"), ErrorCodes.PROTOCOL_ERROR),
        (raw(1, 5, 1, b"\xff\xff"), ErrorCodes.PROTOCOL_ERROR),
    ],
)
def test_frames_that_end_the_connection(make_bench: MakeBench, frame: bytes, code: ErrorCodes) -> None:
    """A wrong frame is answered with GOAWAY; what came before it is served."""
    bench = make_bench()
    client = RawClient(bench)
    client.send(client.request(101) + frame)
    assert [found for found, _ in client.goaways] == [code]
    assert client.ended
    assert len(bench.echo.requests) == 1
    assert bench.front.http2.floods == 0


def test_the_window_of_a_stream_that_overflows(make_bench: MakeBench) -> None:
    """Too large a window costs the stream, whoever works on it is told."""
    gone = []

    def handler(_request: object, responder: object) -> None:
        responder.on_gone = lambda: gone.append(1)  # type: ignore[attr-defined]

    bench = make_bench(handler)
    client = RawClient(bench)
    client.send(client.request(1) + window_update(1, LAST))
    assert client.results[1].reset == ErrorCodes.FLOW_CONTROL_ERROR
    assert (gone, client.ended) == ([1], False)


def test_slow_bodies_beyond_all_patience(make_bench: MakeBench) -> None:
    """A whole set of slow bodies, time after time: refused one by one, then the connection ends."""
    bench = make_bench(
        limits=Limits(body_grace_seconds=1, body_bytes_per_second=1000, write_timeout_seconds=99)
    )
    client = RawClient(bench)
    number = 1
    while not client.ended and number < 3000:
        for _ in range(128):
            client.send(client.request(number, get(method=b"POST"), "END_HEADERS"))
            number += 2
        bench.advance(1.2)
        client.send(b"")
    assert client.results[1].status == 408
    assert [code for code, _ in client.goaways] == [CALM]
    assert bench.front.counters.timeouts > 200


def test_the_first_frame_has_to_be_settings(make_bench: MakeBench) -> None:
    """Anything else behind the preface is a wrong preface."""
    client = RawClient(make_bench(), begin=False)
    client.send(PREFACE + PING)
    assert client.goaways == [(ErrorCodes.PROTOCOL_ERROR, 0)]


def test_dribbled_windows(make_bench: MakeBench) -> None:
    """A window opened byte by byte, a hundred thousand times (CVE-2019-9511)."""
    bench = make_bench(lambda _request, responder: responder.respond(200, [], bytes(200_000)))
    client = RawClient(bench, begin=False)
    client.send(
        PREFACE
        + SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}).serialize()
        + client.request(1)
    )
    for _ in range(1000):
        client.send(window_update(1, 1) * 100)
        if client.ended:
            break
    assert [code for code, _ in client.goaways] == [CALM]
    assert bench.front.answers.memory_bytes == 0


def test_complaints_are_logged_once_a_minute(make_bench: MakeBench) -> None:
    """A thousand floods are one line; a minute later there may be another."""
    bench = make_bench()
    with capture_logs() as records:
        for _ in range(20):
            RawClient(bench).send(PING * 1000)
        bench.advance(61)
        RawClient(bench).send(PING * 1000)
    complaints = [record for record in records if "asked too much" in record["event"]]
    assert [record["floods"] for record in complaints] == [1, 21]


def test_a_flood_takes_turns(make_bench: MakeBench) -> None:
    """Thousands of frames that have arrived at once are not handled in one turn."""
    bench = make_bench()
    client = RawClient(bench)
    client.sock.send(b"".join(client.request(2 * number + 1) for number in range(1000)))
    bench.reactor._turn_ends = time.perf_counter()  # it is somebody else's turn already
    bench.reactor.dispatch(bench.reactor._epoll.poll(0, 128))
    assert 0 < bench.front.counters.requests <= 32
    bench.reactor._turn_ends = float("inf")
    client.send(b"")
    assert bench.front.counters.requests == 1000


def test_long_heads_take_turns(make_bench: MakeBench) -> None:
    """Heads that take milliseconds to unpack are handled one a turn when it is late."""
    bench = make_bench()
    client = RawClient(bench)
    long = get(b"/", (b"a", b"b" * 12_000))
    client.sock.send(
        b"".join(client.request(2 * number + 1, [*long, (b"n", b"%d" % number)]) for number in range(4))
    )
    bench.reactor._turn_ends = time.perf_counter()
    bench.reactor.dispatch(bench.reactor._epoll.poll(0, 128))
    assert bench.front.counters.requests == 1
    bench.reactor._turn_ends = float("inf")
    client.send(b"")
    assert bench.front.counters.requests == 4


def test_memory_of_a_connection_that_lives_long(make_bench: MakeBench) -> None:
    """Thousands of requests on one connection leave nothing behind."""
    bench = make_bench(lambda _request, responder: responder.respond(200, [], b"x"))
    client = RawClient(bench)

    def ask(number: int) -> None:
        client.send(b"".join(client.request(number + 2 * more) for more in range(100)))
        client.results.clear()
        client.frames.clear()

    for number in range(1, 6001, 200):
        ask(number)
    tracemalloc.start()
    for number in range(6001, 8001, 200):
        ask(number)
    first = tracemalloc.get_traced_memory()[0]
    for number in range(8001, 10_001, 200):
        ask(number)
    growth = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert growth < 100_000
