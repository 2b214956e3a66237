"""Access logs: RoadRunner's keys, the common formats, and that nobody pays for a log nobody reads."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import MiddlewareServices
from trailboss.plugins.http.message import Body
from trailboss.plugins.http.middleware.access_log import (
    BATCH_RECORDS,
    BATCH_SECONDS,
    AccessLog,
    Style,
    make_access_log,
)
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request

SHORT_KEYS = "status method URI URL remote_address read_bytes write_bytes start elapsed"
LONG_KEYS = (
    "status method URI URL remote_address query content_len host user_agent referer time_local request_time "
    "read_bytes write_bytes start elapsed"
)


def bench_for(style: Style = Style.SHORT) -> MiddlewareBench:
    """Return a bench around an access log."""
    return MiddlewareBench(lambda services: AccessLog(style, services))


def test_the_short_record_has_the_keys_octane_reads() -> None:
    """Message `http log`; elapsed in whole milliseconds, start in unix nanoseconds."""
    bench = bench_for()
    before = time.time_ns()
    bench.begin(make_request("/a%20b?x=1", "POST", body=b"hello", started=99.8765))
    bench.responder.respond(201, [], b"created")
    ((message, fields),) = bench.records
    assert message == "http log"
    assert list(fields) == SHORT_KEYS.split()
    start = fields.pop("start")
    assert isinstance(start, int)
    assert abs(start - before + 123_500_000) < 5_000_000_000
    assert fields == {
        "status": 201,
        "method": "POST",
        "URI": "/a%20b?x=1",
        "URL": "/a%20b?x=1",
        "remote_address": "127.0.0.1:40000",
        "read_bytes": 5,
        "write_bytes": 7,
        "elapsed": 123,
    }


def test_the_long_record_says_more() -> None:
    """Message `http access log`, chosen by http.access_logs."""
    config = HttpConfig(address=("127.0.0.1:0",), access_logs=True)
    bench = MiddlewareBench(lambda services: make_access_log(config, services))
    headers = [(b"User-Agent", b"test/1 \xff"), (b"Referer", b"https://example.org/")]
    request = make_request("/p?q=1", headers=headers, remote_addr="2001:db8::1")
    request.id = "abc"
    bench.begin(request)
    bench.responder.respond(200, [], b"x")
    ((message, fields),) = bench.records
    assert message == "http access log"
    assert list(fields) == [*LONG_KEYS.split(), "request_id"]
    assert fields["query"] == "q=1"
    assert fields["host"] == "example.org"
    assert fields["user_agent"] == "test/1 \\xff"
    assert fields["referer"] == "https://example.org/"
    assert fields["remote_address"] == "[2001:db8::1]:40000"
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}", str(fields["time_local"]))
    assert fields["request_id"] == "abc"


def test_common_and_combined_lines() -> None:
    """One line each; what could end a field or the line is written out."""
    headers = [(b"User-Agent", b'evil" 200 0\r\n1.2.3.4 \\ \x1b[31m \xc3\xa9'), (b"Referer", b"/from")]
    lines = []
    for style in (Style.COMMON, Style.COMBINED):
        bench = bench_for(style)
        bench.begin(make_request('/a"b', headers=headers))
        bench.responder.respond(404, [], b"gone")
        lines.append(bench.records[0][0])
        assert bench.records[0][1] == {}
    stamp = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    assert re.fullmatch(rf'127\.0\.0\.1 - - {stamp} "GET /a\\x22b HTTP/1\.1" 404 4', lines[0])
    assert lines[1].startswith(lines[0][:20])
    assert lines[1].endswith(r' 404 4 "/from" "evil\x22 200 0\x0d\x0a1.2.3.4 \x5c \x1b[31m \xc3\xa9"')
    bench = bench_for(Style.COMBINED)
    bench.begin(make_request())
    bench.responder.respond(204, [], b"")
    assert bench.records[0][0].endswith(' 204 - "-" "-"')


def test_nothing_is_done_where_nobody_reads() -> None:
    """Without level info the handler gets the very Responder of the connection."""
    bench = bench_for()
    bench.logs = False
    client = bench.begin(make_request())
    assert bench.responder is client
    bench.responder.respond(200, [], b"x")
    assert bench.records == []
    bench.logs = True
    bench.begin(make_request())
    bench.responder.respond(200, [], b"x")
    assert len(bench.records) == 1


def test_streams_are_counted() -> None:
    """What was sent is the sum of parts and files; nothing is logged before the end."""
    bench = bench_for()
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        bench.begin(make_request())
        bench.responder.head(200, [])
        bench.responder.data(b"abc")
        bench.responder.file(os.dup(file.fileno()), 2, 5)
        assert bench.records == []
        bench.now = 107.5
        bench.responder.end()
    fields = bench.records[0][1]
    assert (fields["status"], fields["write_bytes"], fields["elapsed"]) == (200, 8, 107_500)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
def test_answers_without_a_body_send_nothing(method: str, status: int) -> None:
    """Bytes that are dropped are not counted."""
    bench = bench_for()
    bench.begin(make_request(method=method))
    bench.responder.head(status, [])
    bench.responder.data(b"abc")
    bench.responder.end()
    bench.begin(make_request(method=method))
    bench.responder.respond(status, [], b"" if status != 200 else b"abc")
    assert [fields["write_bytes"] for _, fields in bench.records] == [0, 0]


def test_a_spooled_body_is_counted_although_it_is_let_go_first() -> None:
    """The connection closes the body with the answer, before the record is written."""
    bench = bench_for()
    with tempfile.TemporaryFile() as file:
        request = make_request(method="POST")
        request.body = Body(file=os.dup(file.fileno()), size=5_000_000)
        bench.begin(request)
        request.body.close()
        bench.responder.respond(200, [], b"")
    assert bench.records[0][1]["read_bytes"] == 5_000_000


def test_every_end_is_logged_once() -> None:
    """Failures with their status, broken answers with the one they began with, clients that left early with 499."""
    bench = bench_for()
    bench.begin(make_request())
    bench.responder.fail(503, "queue full")
    bench.begin(make_request())
    bench.responder.head(200, [])
    bench.responder.data(b"part")
    bench.responder.fail(502, "the worker died")
    bench.begin(make_request())
    bench.responder.head(206, [])
    bench.responder.abort()
    client = bench.begin(make_request())
    client.leave()
    bench.responder.respond(200, [], b"late")
    client = bench.begin(make_request())
    bench.responder.head(200, [])
    client.leave()
    bench.responder.end()
    assert [fields["status"] for _, fields in bench.records] == [503, 200, 206, 499, 200]
    assert [fields["write_bytes"] for _, fields in bench.records] == [len("queue full\n"), 4, 0, 0, 0]


def test_an_answer_of_the_server_to_head_has_no_body() -> None:
    """Its reason is in the headers alone."""
    bench = bench_for()
    bench.begin(make_request(method="HEAD"))
    bench.responder.fail(503, "queue full")
    assert bench.records[0][1]["write_bytes"] == 0


HOSTILE = [
    '/a"b\\c',
    "/line\r\nbreak",
    "/\x00\x1b[31m\x7f",
    "/\u2028\u202e",
    "/é日本",
    "/" + "a" * 9000,
    "http://x/y?z=1",
    "*",
]


def in_lines(style: Style, send: Callable[[MiddlewareBench], None]) -> list[tuple[str, str]]:
    """Return the records that the quick way hands over."""
    lines: list[tuple[str, str]] = []

    def make(services: MiddlewareServices) -> AccessLog:
        return AccessLog(style, replace(services, access_lines=lines.extend))

    bench = MiddlewareBench(make)
    send(bench)
    assert bench.records == []
    return lines


@pytest.mark.parametrize("style", [Style.SHORT, Style.LONG])
@pytest.mark.parametrize("target", HOSTILE)
def test_the_quick_way_says_the_same(style: Style, target: str) -> None:
    """Key by key in the same order; one line of ASCII, whatever a client wrote."""
    headers = [
        (b"User-Agent", b'"},{\r\n\x7f\xff' + b"x" * 20_000),
        (b"Referer", target.encode("utf-8", "replace")),
    ]

    def send(bench: MiddlewareBench) -> None:
        request = make_request(target, "POST", headers, b"body", started=99.9)
        request.id = "id-1"
        bench.begin(request)
        bench.responder.respond(404, [], b"no")
        bench.settle()

    ((message, fields),) = in_lines(style, send)
    slow = bench_for(style)
    send(slow)
    ((expected_message, expected),) = slow.records
    assert message == expected_message
    assert fields.isascii()
    assert not re.search("[\x00-\x1f\x7f]", fields)
    parsed = json.loads(fields)
    assert list(parsed) == list(expected)
    for key in ("start", "request_time", "time_local"):
        parsed.pop(key, None), expected.pop(key, None)
    assert parsed == expected


def test_records_wait_a_moment_for_others() -> None:
    """The first of a batch asks for a moment, the last that there is room for ends it; times are those of the answers."""
    lines: list[tuple[str, str]] = []
    asked: list[tuple[float, Callable[[], None]]] = []
    now = [100.0]

    def make(services: MiddlewareServices) -> AccessLog:
        return AccessLog(
            Style.LONG,
            replace(
                services,
                access_lines=lines.extend,
                call_later=lambda seconds, flush: asked.append((seconds, flush)),
                clock=lambda: now[0],
            ),
        )

    def answer(count: int) -> None:
        for _ in range(count):
            bench.begin(make_request(started=99.5))
            bench.responder.respond(200, [], b"")

    bench = MiddlewareBench(make)
    answer(2)
    assert [seconds for seconds, _ in asked] == [BATCH_SECONDS]
    assert lines == []
    now[0] = 107.0
    before_ns = time.time_ns()
    asked[0][1]()
    first, second = (json.loads(fields) for _, fields in lines)
    assert 500 == first["elapsed"] == second["elapsed"]
    assert 0 <= first["request_time"] - (before_ns - 7_000_000_000) < 5_000_000_000
    assert first["request_time"] - first["start"] == 500_000_000

    answer(BATCH_RECORDS)
    assert len(lines) == 2 + BATCH_RECORDS
    asked[1][1]()
    assert len(lines) == 2 + BATCH_RECORDS


def test_a_batch_is_handed_over_together() -> None:
    """Where nothing can be done later, nothing waits longer than the batch of the reactor it came from."""
    turns: list[int] = []

    def send(bench: MiddlewareBench) -> None:
        for number in range(3):
            bench.begin(make_request(f"/{number}"))
            bench.responder.respond(200, [], b"")
        turns.append(len(bench.soon))
        bench.settle()
        bench.begin(make_request("/3"))
        bench.responder.respond(200, [], b"")
        bench.settle()

    lines = in_lines(Style.SHORT, send)
    assert turns == [1]
    assert [json.loads(fields)["URI"] for _, fields in lines] == ["/0", "/1", "/2", "/3"]


@pytest.mark.parametrize(("name", "end"), [("common", " 200 1"), ("combined", ' 200 1 "-" "-"')])
def test_the_format_is_chosen_by_its_key(name: Literal["common", "combined"], end: str) -> None:
    """http.access_log_format, whatever http.access_logs says."""
    config = HttpConfig(address=("127.0.0.1:0",), access_logs=True, access_log_format=name)
    bench = MiddlewareBench(lambda services: make_access_log(config, services))
    bench.begin(make_request())
    bench.responder.respond(200, [], b"x")
    assert bench.records[0][0].endswith(end)
