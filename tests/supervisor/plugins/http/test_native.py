"""Plain messages in C: what they find plain means the same to the reference, and everything works without them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from front_bench import MakeBench
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_requests import CASES
from test_h1 import check

from trailboss.plugins.http.answer import AnswerHead, parse_head, parse_plain, parse_reference
from trailboss.plugins.http.context import ContextWriter
from trailboss.plugins.http.h1 import HeadParser, encode_headers
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Request
from trailboss.plugins.http.native import BUFFER_BYTES, is_native
from trailboss_worker.protocol.frames import JSON, MSGPACK, PROTO

PROJECT = Path(__file__).parents[4]
HEADS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a/b?c=%41&d[]=e HTTP/1.1\r\n",
    b"DELETE /x HTTP/1.1\r\n",
    b"GET http://a/ HTTP/1.1\r\n",
    b"GET /a HTTP/1.0\r\n",
]
LINES = [
    b"Host: a.example:80",
    b"Host: 127.0.0.1",
    b"host:\tb ",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"content-length: 0005",
    b"Connection: keep-alive",
    b"Connection: Close",
    b"Connection: keep-alive, x-a",
    b"Keep-Alive: 5",
    b"Cookie: a=b; c=d",
    b"Cookie: a=b; a=c",
    b"cookie: a=%41; b",
    b"Content-Type: text/html",
    b"Content-Type: multipart/form-data; boundary=x",
    b"X-A: b\tc",
    b'x-QUOTED: "a\\b"',
    b"x-a: \xc3\xa9",
    b"under_score: 1",
    b"Proxy: x",
    b"TE: trailers",
    b"Upgrade-Insecure-Requests: 1",
    b"Empty:",
    b"Expect: 100-continue",
    b"Transfer-Encoding: chunked",
]
ANSWERS = [
    b'{"status":200,"headers":{"Content-Type":["text\\/plain"],"A":["b"," c "]}}',
    b'{"status":404,"headers":[]}',
    b'{"headers":{"Content-Length":["5"],"Date":["x"],"X":["\\"\\\\"]},"status":500}',
    b'{"status":204}',
]


def load_compare() -> ModuleType:
    """The program that tools/test_native runs over what a fuzzer found."""
    spec = importlib.util.spec_from_file_location("compare_http", PROJECT / "native" / "compare_http.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load_compare()
needs_native = pytest.mark.skipif(not is_native, reason="installed without the C code")


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """A text with a few bytes changed, cut out or put in, mostly none."""
    data = bytearray(draw(texts))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        else:
            data[at:at] = draw(
                st.one_of(st.binary(max_size=3), st.sampled_from([b"\r\n", b" ", b",", b"%", b'"']))
            )
    return bytes(data)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head of a few lines, nearly always with a Host."""
    lines = draw(st.lists(st.sampled_from(LINES), max_size=6))
    first = [] if draw(st.integers(0, 9)) == 0 else [LINES[0]]
    return draw(st.sampled_from(HEADS)) + b"".join(line + b"\r\n" for line in first + lines) + b"\r\n"


@needs_native
@settings(max_examples=1000, deadline=None)
@given(mutated(heads()), st.sampled_from(compare.LIMITS))
def test_plain_heads_mean_the_same(data: bytes, limits: Limits) -> None:
    """A head that C finds plain is the same request and the same context to llhttp, our checks and our encoder."""
    assert compare.head_difference(data, limits) in (None, "")


@needs_native
@settings(max_examples=1000, deadline=None)
@given(mutated(st.sampled_from(ANSWERS)))
def test_plain_answers_mean_the_same(data: bytes) -> None:
    """An answer that C finds plain is the same head to the reference."""
    assert compare.answer_difference(data) in (None, "")


@needs_native
def test_usual_messages_are_plain() -> None:
    """What browsers, clients of APIs and PHP send is read by C, so the comparisons compare something."""
    folder = PROJECT / "native" / "corpus_http"
    plain = {path.name for path in folder.iterdir() if compare.head_difference(path.read_bytes()) == ""}

    assert {"head_browser", "head_form", "head_json_body", "head_last", "head_twice"} <= plain
    assert [""] * len(ANSWERS) == [compare.answer_difference(answer) for answer in ANSWERS]


def test_the_table_holds_without_c(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each raw request comes to the same verdict where the reference reads every head."""
    monkeypatch.setattr(HeadParser, "parse_plain", lambda self, head, now: None)
    for case in CASES:
        check(make_bench, case, [case.data])


def test_everything_works_without_c() -> None:
    """With TRAILBOSS_PURE_PYTHON=1 nothing is plain, and requests, contexts and answers are what they were."""
    program = (
        "from test_native import *\n"
        "assert not is_native\n"
        "writer, request = ContextWriter(), HeadParser(Limits()).parse(HEADS[1] + LINES[0] + b'\\r\\n\\r\\n', 1.0)\n"
        "print(request, request.headers, writer.plain_json(request), parse_head(ANSWERS[0], JSON))\n"
    )
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    said = [
        subprocess.run(
            [sys.executable, "-c", program.replace("assert not", "assert" if pure == "0" else "assert not")],
            env={**os.environ, "TRAILBOSS_PURE_PYTHON": pure, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for pure in ["0", "1"][0 if is_native else 1 :]
    ]

    assert "POST /a/b" in said[0]
    assert said[0] == said[-1]


def plain_request() -> Request:
    """A request with a plain head, a header twice."""
    head = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nX-Two:  2\t\r\nx-one: 3\r\n\r\n"
    return HeadParser(Limits()).parse(head, 1.0)


def test_headers_are_made_when_somebody_asks() -> None:
    """A header can be looked up without the list, and the list can be changed afterwards."""
    request = plain_request()

    assert request.header(b"x-two") == b"2"
    assert request.header(b"x-one") == b"1, 3"
    assert request.header(b"x-none") is None
    assert request.headers == [(b"Host", b"a"), (b"X-One", b"1"), (b"X-Two", b"2"), (b"x-one", b"3")]
    request.headers.append((b"X-None", b"4"))
    assert request.header(b"x-none") == b"4"


def test_a_changed_request_is_told_as_changed() -> None:
    """What a middleware does to a request reaches the worker, however the context is written."""
    writer = ContextWriter()
    head = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-One: 1\r\n\r\n"
    added, replaced, moved, marked = (HeadParser(Limits()).parse(head, 1.0) for _ in range(4))
    added.headers.append((b"X-Two", b"2"))
    replaced.headers = [(b"X-Three", b"3")]
    moved.remote_addr, moved.scheme = "192.0.2.7", "https"
    marked.attributes["note"] = ["a"]

    assert b'"headers":{"X-One":["1"],"X-Two":["2"]}' in (writer.plain_json(added) or b"")
    assert b'"headers":{"X-Three":["3"]}' in (writer.plain_json(replaced) or b"")
    assert b'{"remoteAddr":"192.0.2.7",' in (writer.plain_json(moved) or b"")
    assert b'"uri":"https://a/a?b=c"' in (writer.plain_json(moved) or b"")
    assert b'"attributes":{"note":"a"}}' in (writer.plain_json(marked) or b"")


def test_long_messages_are_left_to_the_reference() -> None:
    """A context or an answer that does not fit into the buffer of the C code is whole all the same."""
    value = b"a" * BUFFER_BYTES
    request = HeadParser(Limits()).parse(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: %b\r\n\r\n" % value, 1.0)

    assert b'{"X-Long":["%b"]}' % value in (ContextWriter().plain_json(request) or b"")
    assert parse_head(b'{"status":200,"headers":{"A":["%b"]}}' % value, JSON).headers == ((b"A", value),)


def test_codecs_other_than_json_are_left_to_the_reference() -> None:
    """The flags of an answer decide how it is read, not its looks."""
    assert parse_plain(ANSWERS[0], PROTO) is None
    assert parse_plain(ANSWERS[0], MSGPACK) is None


def test_a_checked_head_has_its_lines() -> None:
    """Whoever read it: the headers of an answer are a tuple of pairs, and encode to their lines."""
    expected = AnswerHead(200, ((b"Content-Type", b"text/plain"), (b"A", b"b"), (b"A", b"c")))
    for head in (parse_head(ANSWERS[0], JSON), parse_reference(ANSWERS[0], JSON)):
        assert head == expected
        assert encode_headers(head.headers) == b"Content-Type: text/plain\r\nA: b\r\nA: c\r\n"
        assert encode_headers(list(head.headers)) == encode_headers(head.headers)
