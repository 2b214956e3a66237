"""Every answer that the front makes itself says why, when, and that the connection ends; then it ends."""

from __future__ import annotations

import re

import pytest
from front_bench import Bench, MakeBench

from trailboss.plugins.http.limits import Limits

LONG = b"x" * 300
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: a\n\n"),
        (400, POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        (413, POST + b"Content-Length: 99999999\r\n\r\n"),
        (413, POST + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n"),
        (414, b"GET /" + LONG * 9 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (417, POST + b"Expect: nothing\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 11 + b"\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: %b\r\n" % LONG) * 8 + b"\r\n"),
        (501, b"NONSENSE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    ],
)
def test_refusals(make_bench: MakeBench, status: int, data: bytes) -> None:
    """Before the handler: nothing of the request went on, nothing behind it is read."""
    limits = Limits(request_line_bytes=2000, head_bytes=2000, header_count=10, body_bytes=1_000_000)
    bench: Bench = make_bench(limits=limits)
    client = bench.connect()
    client.send(data + b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n")
    judge(client.received, status)
    assert client.ended
    assert bench.echo.requests == []
    assert bench.front.counters.refusals == 1


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"GET / HT", b"head_timeout"), (POST + b"Content-Length: 9\r\n\r\nx", b"body_rate")],
)
def test_refusals_for_time(make_bench: MakeBench, sent: bytes, reason: bytes) -> None:
    """A slow client hears which limit it was."""
    bench = make_bench()
    client = bench.connect()
    client.send(sent)
    bench.advance(11)
    client.take()
    judge(client.received, 408)
    assert reason in client.received
    assert client.ended


def test_refusals_of_the_drain(make_bench: MakeBench) -> None:
    """After the drain a kept connection is told so, and when to try again."""
    bench = make_bench()
    client = bench.connect()
    bench.front.draining = True
    bench.front.refuse_requests("the server is stopping")
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    judge(client.received, 503)
    assert b"\r\nRetry-After: 1\r\n" in client.received
    assert client.ended


def judge(answer: bytes, status: int) -> None:
    """Hold an answer to what each of them has."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator
    assert head.startswith(b"HTTP/1.1 %d " % status)
    headers = [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[1:]]
    values = dict(headers)
    assert len(values) == len(headers)
    assert values[b"Connection"] == b"close"
    assert int(values[b"Content-Length"]) == len(body)
    assert values[b"trailboss-reason"] == body.rstrip(b"\n")
    assert re.fullmatch(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", values[b"Date"])
