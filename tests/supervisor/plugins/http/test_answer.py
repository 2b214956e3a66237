"""What workers answer: good heads, and a table of hostile answers of which no byte may reach a client."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.answer import (
    AnswerHead,
    BadAnswer,
    check_length,
    has_no_body,
    parse_head,
    parse_trailers,
)
from trailboss.plugins.http.exchange import Exchange
from trailboss.plugins.http.message import HeaderList, Request, Responder
from trailboss.workers.lane import FileBody, OnOutcome, OnPart, Ticket
from trailboss.workers.outcome import Answer
from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.protocol.frames import JSON, PROTO, RAW
from trailboss_worker.protocol.http_message import (
    decode_answer_context,
    encode_answer_json,
    encode_answer_proto,
)

SUPPORT = str(Path(__file__).resolve().parents[3] / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

from hostile_answers import hostile_answers, in_json  # noqa: E402  the lines above make it findable

HOSTILE = hostile_answers()


def test_the_table_is_long_enough() -> None:
    """There are at least 300 hostile answers, all different."""
    assert len(HOSTILE) >= 300
    assert len({row[1:] for row in HOSTILE}) == len(HOSTILE)


class Recorder:
    """A responder that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.wants_more = True
        self.on_ready: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None
        self.started = False
        self.finished = False

    def inform(self, status: int, headers: HeaderList) -> None:
        self.calls.append(("inform", status, list(headers)))

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        self.started = True
        self.calls.append(("head", status, list(headers), length))

    def data(self, chunk: bytes) -> None:
        self.calls.append(("data", chunk))

    def file(self, fd: int, offset: int, count: int) -> None:
        self.calls.append(("file", fd, offset, count))

    def end(self, trailers: HeaderList = ()) -> None:
        self.calls.append(("end", list(trailers)))

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        self.calls.append(("respond", status, list(headers), body))

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        self.calls.append(("fail", status, reason))

    def abort(self) -> None:
        self.calls.append(("abort",))


class OneAnswer:
    """A pool whose only worker answers what it is given, in one piece or as a stream."""

    debug = False

    def __init__(self, flags: int, context: bytes, body: bytes, *, stream: bool) -> None:
        self.answer = Answer(flags, context, body)
        self.stream = stream

    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
        on_part: OnPart | None = None,
    ) -> Ticket | None:
        if self.stream:
            assert on_part is not None
            on_part(*self.answer)
            on_part(JSON, b"", b"more")
            on_outcome(Answer(0, b"", b""))
        else:
            on_outcome(self.answer)
        return None


def request(method: str = "GET") -> Request:
    """A small request."""
    return Request(method, "/a", "/a", "", "1.1", [(b"Host", b"x")], "x")


def exchange(pool: OneAnswer, method: str = "GET") -> tuple[list[tuple[object, ...]], list[str]]:
    """What the responder is told, and the events in the log."""
    responder = Recorder()
    checked: Responder = responder
    with structlog.testing.capture_logs() as records:
        Exchange(pool, HttpConfig(address=("127.0.0.1:0",)))(request(method), checked)
    return responder.calls, [str(record["event"]) for record in records]


@pytest.mark.parametrize(("name", "flags", "context", "body"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_hostile_answers(name: str, flags: int, context: bytes, body: bytes) -> None:
    """A hostile answer is a 502 and one log line, and nothing else is sent."""
    calls, events = exchange(OneAnswer(flags, context, body, stream=False))
    assert calls == [("fail", 502, "bad answer")]
    assert events == ["bad answer from a worker"]


#: What only shows when the body is whole: a stream with these is cut at its end (test_exchange).
LENGTHS_OF_STREAMS = ("Content-Length '6'", "interim", "'99999999999999999999'")


@pytest.mark.parametrize(
    ("name", "flags", "context", "body"),
    [row for row in HOSTILE if not any(text in row[0] for text in LENGTHS_OF_STREAMS)],
    ids=[row[0] for row in HOSTILE if not any(text in row[0] for text in LENGTHS_OF_STREAMS)],
)
def test_hostile_streams(name: str, flags: int, context: bytes, body: bytes) -> None:
    """The same as the first part of a stream: a 502, and no part of it is sent."""
    calls, events = exchange(OneAnswer(flags, context, body, stream=True))
    assert events == ["bad answer from a worker"] or events == ["answer cut short"]
    assert calls == [("fail", 502, "bad answer")] or calls[-1] == ("abort",)


@pytest.mark.parametrize(
    ("context", "flags", "expected"),
    [
        (b"", 0, AnswerHead(200, ())),
        (b"", RAW, AnswerHead(200, ())),
        (b"{}", 0, None),
        (b'{"status":200,"headers":{}}', JSON, AnswerHead(200, ())),
        (b'{"status":201,"headers":[]}', 0, AnswerHead(201, ())),
        (b'{"status":404}', 0, AnswerHead(404, ())),
        (b'{"status":599,"headers":null}', 0, AnswerHead(599, ())),
        (in_json(200, {"x-a": ["1", " 2\t"]}), JSON, AnswerHead(200, ((b"x-a", b"1"), (b"x-a", b"2")))),
        (in_json(200, {"X-A": ["ä\tb"]}), JSON, AnswerHead(200, ((b"X-A", "ä\tb".encode()),))),
        (encode_answer_proto(200, {"X-A": [b"\xe4"]}), PROTO, AnswerHead(200, ((b"X-A", b"\xe4"),))),
        (in_json(200, {"Content-Length": ["5"]}), JSON, AnswerHead(200, (), 5)),
        (in_json(200, {"Content-Length": [" 007 "]}), JSON, AnswerHead(200, (), 7)),
        (
            in_json(200, {"Connection": ["close"], "Keep-Alive": ["a"], "Date": ["x"]}),
            JSON,
            AnswerHead(200, ()),
        ),
        (in_json(200, {"Transfer-Encoding": ["Chunked"], "Server": ["x"]}), JSON, AnswerHead(200, ())),
        (in_json(103, {"Link": ["</a>"]}), JSON, AnswerHead(103, ((b"Link", b"</a>"),), plain=False)),
        (in_json(204, {}), JSON, AnswerHead(204, (), plain=False)),
    ],
)
def test_good_heads(context: bytes, flags: int, expected: AnswerHead | None) -> None:
    """Good answers are heads without a word about framing; the second time they come from memory."""
    for _ in range(2):
        if expected is None:
            with pytest.raises(BadAnswer):
                parse_head(context, flags)
        else:
            assert parse_head(context, flags) == expected


def test_trailers() -> None:
    """Headers named in Trailer move behind the body; those that may not stay where they are."""
    headers = {"Trailer": ["X-Sum, Content-Type", "x-late"], "X-Sum": ["1"], "Content-Type": ["text/plain"]}
    head = parse_head(in_json(200, headers), JSON)
    assert head.headers == ((b"Content-Type", b"text/plain"), (b"Trailer", b"x-late, x-sum"))
    assert head.trailers == ((b"X-Sum", b"1"),)
    assert head.trailer_names == {b"x-sum", b"x-late"}
    assert not head.plain


def test_trailers_of_a_stream() -> None:
    """The last context of a stream may hold the trailers; only those announced are taken, and they are checked."""
    names = frozenset({b"x-sum"})
    known = ((b"X-Sum", b"1"),)
    late = in_json(200, {"X-Sum": ["2"], "X-Other": ["3"]})
    assert parse_trailers(b"", 0, names, known) == known
    assert parse_trailers(late, JSON, names, known) == ((b"X-Sum", b"2"),)
    assert parse_trailers(in_json(200, {}), JSON, names, known) == known
    with pytest.raises(BadAnswer):
        parse_trailers(in_json(200, {"X-Sum": ["a\r\nb"]}), JSON, names, known)


def test_a_status_that_is_text_is_shown_as_such() -> None:
    """What is wrong with it could not be seen otherwise."""
    with pytest.raises(BadAnswer, match="unknown status code from worker: '200'"):
        parse_head(b'{"status":"200"}', JSON)


def test_length_has_to_agree() -> None:
    """A whole body has the length that was announced, if one was."""
    check_length(AnswerHead(200, (), 5), 5)
    check_length(AnswerHead(200, ()), 5)
    with pytest.raises(BadAnswer, match="4 bytes"):
        check_length(AnswerHead(200, (), 5), 4)


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [(200, "GET", False), (200, "HEAD", True), (204, "GET", True), (304, "POST", True), (404, "GET", False)],
)
def test_answers_without_a_body(status: int, method: str, expected: bool) -> None:
    """HEAD, 204 and 304."""
    assert has_no_body(status, method) is expected


TEXTS = st.text(max_size=12)


@given(status=st.integers(-10, 1100), headers=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3), max_size=4))
def test_whatever_passes_is_clean(status: int, headers: dict[str, list[str]]) -> None:
    """Any answer is refused or gives a head in which nothing can split a message."""
    values = {name: [value.encode("utf-8", "replace") for value in found] for name, found in headers.items()}
    try:
        head = parse_head(encode_answer_json(status, values), JSON)
    except BadAnswer:
        return
    assert 100 <= head.status <= 599
    for name, value in head.headers:
        assert name
        assert not set(name) & set(b' \t\r\n\0:,;"')
        assert not set(value) & set(b"\r\n\0")
        assert value == value.strip(b" \t")


@given(
    status=st.integers(-10, 1100),
    headers=st.one_of(
        st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3), max_size=4),
        st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(st.one_of(TEXTS, st.integers())), st.none())),
        st.sampled_from([None, [], "x", 5, [1]]),
    ),
)
def test_json_is_read_as_the_reference_reads_it(status: int, headers: object) -> None:
    """What http_message refuses is refused, and what it reads has the same values here."""
    context = json.dumps({"status": status, "headers": headers}).encode("utf-8", "surrogatepass")
    try:
        expected = decode_answer_context(context, JSON)
    except MessageError:
        expected = None
    try:
        head = parse_head(context, JSON)
    except BadAnswer:
        return
    assert expected is not None
    assert head.status == expected.status
    names = {name for name, _ in head.headers}
    for name in names:
        values = [value.strip(b" \t") for value in expected.headers[name.decode()]]
        assert [value for other, value in head.headers if other == name] == values
