"""HTTP/2 heads: what is a request, what is refused and how, and that HTTP/1 and HTTP/2 agree."""

from __future__ import annotations

import pytest
from h2_bench import Fields, get

from trailboss.plugins.http.h1 import EncodedHeaders, HeadParser, Refusal
from trailboss.plugins.http.h2_head import (
    Malformed,
    answer_fields,
    check_trailers,
    read_head,
    trailer_fields,
)
from trailboss.plugins.http.limits import Limits

LIMITS = Limits(request_line_bytes=200, head_bytes=1000, header_count=5, body_bytes=1000)


def status_of(fields: Fields, *, ended: bool = True) -> int | str:
    """Return the status of the refusal, "malformed", or 0 for a good head."""
    try:
        read_head(fields, ended, LIMITS, 0.0)
    except Malformed:
        return "malformed"
    except Refusal as refusal:
        return refusal.status
    return 0


PSEUDO = dict(get())


def pseudo(**changes: bytes | None) -> Fields:
    """Return a request whose pseudo-fields are changed, or left out where the change is None."""
    merged = {**PSEUDO, **{b":" + name.encode(): value for name, value in changes.items()}}
    return [(name, value) for name, value in merged.items() if value is not None]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (get(), 0),
        (get(b"/a?b=c&d"), 0),
        (get(b"*", method=b"OPTIONS"), 0),
        (get(method=b"PROPFIND"), 0),
        (get(b"/", (b"te", b"trailers"), (b"expect", b"100-continue")), 0),
        (get(b"/", (b"host", b"A")), 0),
        (get(b"/", (b"content-length", b"0")), 0),
        (get(b"/", (b"content-length", b"1000")), "malformed"),  # it ends with its head
        (pseudo(scheme=b"https"), 0),
        (pseudo(authority=b"[::1]:80"), 0),
        ([*pseudo(authority=None), (b"host", b"a:80")], 0),
        # the pseudo-fields
        (pseudo(method=None), "malformed"),
        (pseudo(scheme=None), "malformed"),
        (pseudo(path=None), "malformed"),
        (pseudo(path=b""), "malformed"),
        (pseudo(path=b"a"), "malformed"),
        (pseudo(path=b"*"), "malformed"),
        (pseudo(path=b"/a#b"), "malformed"),
        (pseudo(path=b"/a b"), "malformed"),
        (pseudo(path=b"/\xff"), "malformed"),
        (pseudo(path=b"http://a/"), "malformed"),
        (pseudo(scheme=b"ftp"), "malformed"),
        (pseudo(method=b"G T"), "malformed"),
        (pseudo(method=b""), "malformed"),
        (pseudo(status=b"200"), "malformed"),
        (pseudo(protocol=b"websocket"), "malformed"),
        ([*get(), (b":path", b"/")], "malformed"),
        ([(b"a", b"b"), *get()], "malformed"),
        ([(b"cookie", b"b=c"), *get()], "malformed"),
        (pseudo(authority=None), 400),
        (pseudo(authority=b""), 400),
        (pseudo(authority=b"user@a"), 400),
        (pseudo(authority=b"a:99999"), 400),
        (pseudo(authority=b"a/b"), 400),
        (get(b"/", (b"host", b"b")), "malformed"),
        (get(b"/", (b"host", b"a"), (b"host", b"a")), 400),
        (pseudo(method=b"CONNECT", scheme=None, path=None), 501),
        (pseudo(method=b"FETCH"), 501),
        # fields
        (get(b"/", (b"Upper", b"")), "malformed"),
        (get(b"/", (b"", b"")), "malformed"),
        (get(b"/", (b"a b", b"")), "malformed"),
        (get(b"/", (b"a:b", b"")), "malformed"),
        (get(b"/", (b"a\xff", b"")), "malformed"),
        (get(b"/", (b"a", b"b\r\nc: d")), "malformed"),
        (get(b"/", (b"a", b"\x00")), "malformed"),
        (get(b"/", (b"a", b" b")), "malformed"),
        (get(b"/", (b"a", b"b\t")), "malformed"),
        (get(b"/", (b"connection", b"close")), "malformed"),
        (get(b"/", (b"keep-alive", b"1")), "malformed"),
        (get(b"/", (b"proxy-connection", b"close")), "malformed"),
        (get(b"/", (b"transfer-encoding", b"chunked")), "malformed"),
        (get(b"/", (b"upgrade", b"h2c")), "malformed"),
        (get(b"/", (b"te", b"gzip")), "malformed"),
        (get(b"/", (b"expect", b"more")), 417),
        # framing and sizes
        (get(b"/", (b"content-length", b"+1")), 400),
        (get(b"/", (b"content-length", b"")), 400),
        (get(b"/", (b"content-length", b"1"), (b"content-length", b"1")), 400),
        (get(b"/", (b"content-length", b"1001")), 413),
        (get(b"/", (b"content-length", b"1" * 5000)), 413),
        (get(b"/" + b"a" * 200), 414),
        (get(b"/", (b"a", b"b" * 1000)), 431),
        (get(b"/", *((b"a", b"b"),) * 5), 431),
        (get(b"/", *((b"cookie", b"b"),) * 6), 431),
    ],
)
def test_heads(fields: Fields, expected: int | str) -> None:
    """Each kind of head has its answer."""
    assert status_of(fields) == expected


def test_a_trace_has_no_body() -> None:
    """TRACE with a body is refused as in HTTP/1."""
    assert (status_of(get(method=b"TRACE")), status_of(get(method=b"TRACE"), ended=False)) == (0, 400)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET", b"/", []),
        (b"PURGE", b"/a%20b?c=d", [(b"x-a", b"1")]),
        (b"FETCH", b"/", []),
        (b"CONNECT", b"/", []),
        (b"POST", b"/", [(b"content-length", b"5")]),
        (b"POST", b"/", [(b"content-length", b"2000")]),
        (b"POST", b"/", [(b"content-length", b"5"), (b"content-length", b"5")]),
        (b"GET", b"/", [(b"expect", b"nothing")]),
        (b"GET", b"/" + b"a" * 300, []),
        (b"GET", b"/", [(b"a", b"b")] * 6),
        (b"GET", b"/", [(b"a", b"b" * 2000)]),
        (b"OPTIONS", b"*", []),
    ],
)
def test_both_versions_agree(method: bytes, target: bytes, headers: Fields) -> None:
    """The same request by HTTP/1 and by HTTP/2 is the same Request, or the same refusal."""
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    head = b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, target, lines)
    old: object
    new: object
    try:
        one = HeadParser(LIMITS).parse(head, 0.0)
        if len(head) > LIMITS.head_bytes:
            raise Refusal(431, "the head is too long")
        old = (one.method, one.target, one.path, one.query, one.host, one.header(b"x-a"))
    except Refusal as refusal:
        old = refusal.status
    try:
        two = read_head(get(target, *headers, method=method), False, LIMITS, 0.0).request
        new = (two.method, two.target, two.path, two.query, two.host, two.header(b"x-a"))
    except Refusal as refusal:
        new = refusal.status
    assert old == new


def test_trailers_are_checked() -> None:
    """No pseudo-fields, nothing about the connection, not too much."""
    check_trailers([(b"x-sum", b"1")], LIMITS)
    for fields in ([(b":path", b"/")], [(b"Upper", b"")], [(b"connection", b"close")], [(b"a", b"\n")]):
        with pytest.raises(Malformed):
            check_trailers(fields, LIMITS)
    with pytest.raises(Refusal, match="too long"):
        check_trailers([(b"a", b"b" * 2000)], LIMITS)


def test_answers_are_in_lower_case_and_without_the_connection() -> None:
    """Names are lowered, what belongs to HTTP/1 is left out, the length comes last."""
    assert answer_fields(
        200, b"now", [(b"X-A", b" b "), (b"Connection", b"close"), (b"Keep-Alive", b"1")], 5
    ) == [(b":status", b"200"), (b"date", b"now"), (b"x-a", b"b"), (b"content-length", b"5")]
    assert answer_fields(103, b"", [(b"Link", b"</a>")]) == [(b":status", b"103"), (b"link", b"</a>")]


def test_headers_that_are_sent_often_are_lowered_once() -> None:
    """The headers of an answer that the server remembers are worked out the first time; nobody changes them."""
    headers = EncodedHeaders.of([(b"X-A", b"b"), (b"Connection", b"close")])
    first = trailer_fields(headers)
    answer_fields(200, b"now", headers, 5)
    assert first == [(b"x-a", b"b")]
    assert trailer_fields(headers) is first


@pytest.mark.parametrize("status", [0, 99, 101, 600])
def test_a_status_that_is_none(status: int) -> None:
    """ValueError, which is a 500."""
    with pytest.raises(ValueError, match="status"):
        answer_fields(status, b"", [])


@pytest.mark.parametrize(
    "pair", [(b"a", b"b\r\nc: d"), (b"a", b"\x00"), (b"a\n", b""), (b"a b", b""), (b"", b"")]
)
def test_fields_that_break_out(pair: tuple[bytes, bytes]) -> None:
    """ValueError for what a proxy behind us might read as two headers."""
    with pytest.raises(ValueError, match="header"):
        trailer_fields([pair])
