"""Heads and chunks: the table of raw requests, every cut of them, generated ones against h11, and the parsers alone."""

from __future__ import annotations

import random
import re

import h11
import pytest
from front_bench import MakeBench
from raw_requests import CASES, RawRequest

from trailboss.plugins.http.h1 import CHUNKED, ChunkDecoder, HeadParser, Refusal, encode_headers, status_line
from trailboss.plugins.http.limits import Limits

STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
#: How many generated requests, and the seed: some by default, a million in the long tier.
GENERATED = [
    pytest.param(20_000, 20261124, id="20k"),
    *(
        pytest.param(100_000, seed, id=f"100k-{seed}", marks=[pytest.mark.long, pytest.mark.timeout(900)])
        for seed in range(10)
    ),
]


def answers(received: bytes, heads: list[str]) -> list[int]:
    """Return the statuses of a stream of answers, each with Content-Length; `heads` are methods of requests, for HEAD."""
    statuses = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        assert separator
        found = STATUS.match(head)
        assert found is not None
        if found[1] == b"100":  # asked for by Expect, where the body was not there yet
            received = rest
            continue
        statuses.append(int(found[1]))
        length = int(re.search(rb"\r\nContent-Length: ([0-9]+)", head)[1])  # type: ignore[index]
        without_body = len(statuses) <= len(heads) and heads[len(statuses) - 1] == "HEAD"
        received = rest if without_body else rest[length:]
    return statuses


def check(make_bench: MakeBench, case: RawRequest, pieces: list[bytes]) -> None:
    """Send `pieces` and compare what comes of them with the verdict."""
    bench = make_bench()
    client = bench.connect()
    for piece in pieces:
        client.send(piece)
    methods = [method for method, _, _ in bench.echo.requests]
    assert list(case.statuses) == answers(client.received, methods)
    assert case.statuses.count(200) == len(bench.echo.requests)
    assert "/next" not in [target for _, target, _ in bench.echo.requests][: 1 if case.is_open else None]
    if case.bodies:
        assert list(case.bodies) == [body for _, _, body in bench.echo.requests]
    assert case.is_open is not client.ended


def test_the_table_is_large_and_names_are_unique() -> None:
    """At least 200 cases, both ways, each with a name of its own."""
    assert len(CASES) >= 200
    assert len(CASES) == len({case.name for case in CASES})
    assert 100 <= sum(case.is_open for case in CASES) <= len(CASES) - 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_raw_request(make_bench: MakeBench, case: RawRequest) -> None:
    """Each raw request comes to its verdict, and what stands behind a refused one is never answered."""
    check(make_bench, case, [case.data])


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < 400], ids=lambda case: case.name)
def test_a_raw_request_byte_by_byte(make_bench: MakeBench, case: RawRequest) -> None:
    """The verdict does not depend on how the bytes are cut."""
    check(make_bench, case, [case.data[index : index + 1] for index in range(len(case.data))])
    for cut in range(1, len(case.data), 1 + len(case.data) // 8):
        check(make_bench, case, [case.data[:cut], case.data[cut:]])


# --- generated requests against h11 -----------------------------------------------------------------------------------

METHODS = [b"GET", b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"DELETE"]
TARGETS = [b"/", b"/a?b=c", b"/%41", b"http://a.example/x", b"*", b"/a#b", b"/\xc3", b"a", b"/a b"]
ENDS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b"\n\n"]
LENGTHS = [b"5", b"5", b"5", b"0", b"05", b"+5", b"5_0", b"0x5", b"5, 5", b"6", b"-1", b"", "٥".encode()]
ENCODINGS = [b"chunked"] * 5 + [
    b"Chunked",
    b"gzip",
    b"chunked, chunked",
    b"identity",
    b" chunked ",
    b"xchunked",
]
FIELDS = [
    b"Accept: */*",
    b"A: b",
    b"A:b",
    b"A : b",
    b" A: b",
    b"A: \x00",
    b"A: \xe4",
    b"A\xe4: b",
    b"A",
    b"A: b\r\n c",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Expect: 100-continue",
    b"Host: b",
    b"Upgrade: x",
]
CHUNK_STREAMS = [
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n",
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
    b"0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"0_5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"6\r\nhello\r\n0\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
]


def generate(rng: random.Random) -> bytes:
    """Return one to three requests, most of them good, with a flaw here and there."""
    data = b""
    for _ in range(rng.choice((1, 1, 2, 3))):
        bad = rng.random() < 0.4
        pick = (lambda options: rng.choice(options)) if bad else (lambda options: options[0])
        end = pick(ENDS)
        lines = [
            rng.choice(METHODS)
            + b" "
            + pick(TARGETS)
            + b" "
            + pick([b"HTTP/1.1"] * 9 + [b"HTTP/1.0", b"HTTP/1.2"])
        ]
        lines += [b"Host: a.example"] * pick([1] * 9 + [0, 2])
        lines += [rng.choice(FIELDS) for _ in range(pick([1, 0, 1, 2]))] if bad else []
        body = b""
        kind = rng.choice(("", "length", "chunks", "both" if bad else ""))
        if kind in ("length", "both"):
            lines.append(b"Content-Length: " + pick(LENGTHS))
            body = b"hello"
        if kind in ("chunks", "both"):
            lines.append(b"Transfer-Encoding: " + pick(ENCODINGS))
            body = pick(CHUNK_STREAMS)
        rng.shuffle(fields := lines[1:])
        data += b"".join(line + (end if rng.random() < 0.2 else b"\r\n") for line in [lines[0], *fields])
        data += pick(ENDS) + body
    if rng.random() < 0.1:
        position = rng.randrange(len(data))
        data = (
            data[:position]
            + bytes((rng.choice(b"\r\n \t\x00:;,5x\xff"),))
            + data[position + rng.randrange(2) :]
        )
    return data


def h11_reading(data: bytes) -> tuple[list[tuple[str, str, bytes]], bool]:
    """Return the complete requests that h11 finds, and whether it refuses what follows."""
    found: list[tuple[str, str, bytes]] = []
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    body = b""
    request: h11.Request | None = None
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return found, True
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            found.append((request.method.decode(), request.target.decode("latin-1"), body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return found, False
            connection.start_next_cycle()
        else:
            return found, False


@pytest.mark.parametrize(("count", "seed"), GENERATED)
def test_generated_requests_are_read_as_h11_reads_them(make_bench: MakeBench, count: int, seed: int) -> None:
    """What is answered are the first of the requests that h11 finds, with the same bodies; only a refusal ends earlier."""
    rng = random.Random(seed)
    bench = make_bench()
    agreed = refused = stricter = 0
    for number in range(count):
        data = generate(rng)
        bench.echo.requests.clear()
        client = bench.connect()
        client.send(data)
        ours = bench.echo.requests
        theirs, they_refuse = h11_reading(data)
        client.connection.close()
        bench.settle()
        client.sock.close()
        if data.startswith(b"\r\n") or b"\r\n\r\n\r\n" in data:
            continue  # an empty line before a request: we ignore one, h11 none
        assert ours == theirs[: len(ours)], (number, data)
        refusals = [
            status for status in answers(client.received, [method for method, _, _ in ours]) if status != 200
        ]
        if len(ours) < len(theirs) or they_refuse:
            # Never left waiting, so that nobody in front can take what follows for the rest of something.
            assert len(refusals) == 1 or client.ended or not they_refuse, (number, data)
        if len(ours) < len(theirs):
            assert len(refusals) == 1, (number, data)
            stricter += 1
        elif refusals:
            refused += 1
        else:
            agreed += 1
        assert client.ended or not refusals
    assert agreed > count // 4
    assert refused > count // 20
    assert stricter > 100


# --- the parsers alone ------------------------------------------------------------------------------------------------


def head(*lines: bytes) -> bytes:
    """Return a head of these lines."""
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_a_request_has_what_its_head_said() -> None:
    """Method, target, path, query, version, host and headers come out as they were written, values stripped."""
    parser = HeadParser(Limits(), "local:80", "192.0.2.1", 4711)
    request = parser.parse(
        head(
            b"PUT /a%20b/?x=1?y HTTP/1.1",
            b"hOsT: A.example:81",
            b"X: \t y z \t",
            b"Cookie: a=1",
            b"cookie: b=2",
            b"X: w",
        ),
        5.0,
    )
    assert (request.method, request.target, request.version) == ("PUT", "/a%20b/?x=1?y", "1.1")
    assert (request.path, request.query, request.host) == ("/a%20b/", "x=1?y", "A.example:81")
    assert (request.remote_addr, request.remote_port, request.scheme, request.started) == (
        "192.0.2.1",
        4711,
        "http",
        5.0,
    )
    assert request.headers == [
        (b"hOsT", b"A.example:81"),
        (b"X", b"y z"),
        (b"Cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"X", b"w"),
    ]
    assert request.header(b"x") == b"y z, w"
    assert request.header(b"cookie") == b"a=1; b=2"
    assert request.header(b"y") is None
    assert (parser.length, parser.keep_alive, parser.expects_continue) == (0, True, False)


def test_one_parser_serves_many_requests() -> None:
    """Nothing of a request is left when the next one is parsed, whatever kind it is of."""
    parser = HeadParser(Limits(), "local:80")
    for _ in range(3):
        request = parser.parse(
            head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 5", b"Expect: 100-continue"), 0.0
        )
        assert (parser.length, parser.expects_continue, request.host) == (5, True, "a")
        request = parser.parse(
            head(b"GET / HTTP/1.1", b"Host: b", b"Upgrade: x", b"Connection: upgrade"), 0.0
        )
        assert (parser.length, parser.expects_continue, request.host) == (0, False, "b")
        request = parser.parse(head(b"POST / HTTP/1.1", b"Host: b", b"Transfer-Encoding: chunked"), 0.0)
        assert (parser.length, parser.keep_alive, len(request.headers)) == (CHUNKED, True, 2)
        assert parser.parse(head(b"GET / HTTP/1.1", b"Host:"), 0.0).host == "local:80"


def test_the_authority_of_the_target_wins_over_host() -> None:
    """With an absolute target its authority is the host, also in the headers that others see."""
    request = HeadParser(Limits()).parse(
        head(b"GET http://b.example:81/x?y HTTP/1.1", b"hOST: a.example", b"A: b"), 0.0
    )
    assert (request.host, request.path, request.query) == ("b.example:81", "/x", "y")
    assert request.headers == [(b"hOST", b"b.example:81"), (b"A", b"b")]


def test_a_request_of_http_1_0_without_host_has_the_listeners_address() -> None:
    """There is always a host to build an absolute URI from."""
    parser = HeadParser(Limits(), "192.0.2.9:8080")
    assert parser.parse(head(b"GET / HTTP/1.0"), 0.0).host == "192.0.2.9:8080"
    assert parser.keep_alive is False


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_are_decoded_whatever_the_cuts(size: int) -> None:
    """Content, its size and what follows are the same for any cut."""
    decoder = ChunkDecoder(Limits())
    stream = b"5;x=y\r\nhello\r\n1\r\n \r\n00000A\r\n0123456789\r\n0\r\nA: b\r\n\r\nNEXT"
    content = b""
    for start in range(0, len(stream), size):
        content += b"".join(decoder.feed(stream[start : start + size]))
        if decoder.finished:
            rest = decoder.rest + stream[start + size :]
            break
    assert (content, rest, decoder.size) == (b"hello 0123456789", b"NEXT", 16)


def test_a_refusal_says_why() -> None:
    """The reason names the flaw in words for the one who wrote the client."""
    with pytest.raises(Refusal, match="Host is given twice") as caught:
        HeadParser(Limits()).parse(head(b"GET / HTTP/1.1", b"Host: a", b"Host: a"), 0.0)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "header",
    [
        (b"A", b"b\r\nC: d"),
        (b"A", b"b\n"),
        (b"A\r\nB", b"c"),
        (b"A", b"b\r"),
        (b"A", b"\x00"),
        (b"A\x00", b"b"),
    ],
)
def test_an_answer_cannot_be_split(header: tuple[bytes, bytes]) -> None:
    """A header that would break out of its line is never written."""
    with pytest.raises(ValueError, match="line break or a zero byte"):
        encode_headers([(b"Ok", b"fine"), header])


def test_status_lines() -> None:
    """A known status has its words, an unknown one none, and what is no status is refused."""
    assert status_line(404) == b"HTTP/1.1 404 Not Found\r\n"
    assert status_line(599) == b"HTTP/1.1 599 \r\n"
    for status in (0, 99, 100, 199, 600, 99999, -1):
        with pytest.raises(ValueError, match="no status"):
            status_line(status)
