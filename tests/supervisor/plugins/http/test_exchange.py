"""Requests to contexts, outcomes to answers: the innermost handler with a pool and a responder that are played."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trailboss.config.schema import HeadersConfig, HttpConfig, PoolConfig, UploadsConfig
from trailboss.plugins.http.context import ContextWriter, canonical_name, decode_cookies, describe
from trailboss.plugins.http.exchange import Exchange
from trailboss.plugins.http.message import Body, Request
from trailboss.testing.fake_responder import Failure, FakeResponder
from trailboss.workers.lane import FILE_PIECE_SIZE, Exec, FileBody, Lane, OnOutcome, OnPart, Ticket
from trailboss.workers.outcome import (
    Answer,
    ExecFailed,
    ExecTimeout,
    Outcome,
    PoolClosed,
    PoolDegraded,
    QueueFull,
    QueueTimeout,
    SoftError,
    WorkerDied,
)
from trailboss_worker.protocol.frames import JSON, PROTO
from trailboss_worker.protocol.http_message import (
    decode_request_json,
    decode_request_proto,
    encode_answer_proto,
    encode_request_json,
)


class PlayedPool:
    """A pool whose workers are the test."""

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug
        self.tickets: list[Ticket] = []
        self.waiting = False
        self.cancelled: list[Ticket] = []
        self.killed: list[float] = []

    def submit(
        self,
        context: bytes,
        body: bytes | FileBody,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
        on_part: OnPart | None = None,
    ) -> Ticket | None:
        assert on_part is not None
        ticket = Ticket(self, context, body, flags, on_outcome, label, on_part)  # type: ignore[arg-type]
        self.tickets.append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        self.cancelled.append(ticket)
        if self.waiting:
            ticket.on_outcome(ExecFailed("withdrawn"))
        return self.waiting

    def lane_of(self, exec_: Exec) -> Lane | None:
        self.killed.append(0.0)
        return None

    @property
    def ticket(self) -> Ticket:
        """The exec submitted last."""
        return self.tickets[-1]

    def answer(self, status: int = 200, headers: object = None, body: bytes = b"", flags: int = JSON) -> None:
        """The worker answers in one piece, or ends its stream."""
        self.ticket.on_outcome(Answer(flags, head(status, headers), body))

    def end(self, outcome: Outcome) -> None:
        """What else comes of it."""
        self.ticket.on_outcome(outcome)

    def part(self, body: bytes, status: int = 200, headers: object = None) -> bool:
        """The worker sends a part."""
        self.ticket.parts += 1
        return self.ticket.cancelled or self.ticket.on_part(JSON, head(status, headers), body)


def head(status: int, headers: object = None) -> bytes:
    """Context of an answer."""
    return json.dumps({"status": status, "headers": headers or {}}).encode()


END = Answer(0, b"", b"")


class Scene:
    """One exchange with its pool; each `ask` is a request."""

    def __init__(self, *, debug: bool = False, raw_body: bool | None = None, **keys: object) -> None:
        self.pool = PlayedPool(debug=debug)
        config = HttpConfig(address=("127.0.0.1:0",), **keys)  # type: ignore[arg-type]
        self.exchange = Exchange(self.pool, config, raw_body=raw_body)

    def ask(
        self,
        method: str = "GET",
        target: str = "/a",
        headers: dict[str, str] | None = None,
        body: bytes | Body = b"",
    ) -> FakeResponder:
        """A request; the responder that waits for its answer."""
        responder = FakeResponder(method)
        self.exchange(make_request(method, target, headers, body), responder)
        return responder

    def told(self) -> dict[str, object]:
        """The context that the worker was given last."""
        value: dict[str, object] = json.loads(self.pool.ticket.context)
        return value


def make_request(
    method: str = "GET",
    target: str = "/a",
    headers: dict[str, str] | list[tuple[bytes, bytes]] | None = None,
    body: bytes | Body = b"",
) -> Request:
    """A request as the front makes it."""
    path, _, query = target.partition("?")
    pairs = (
        headers
        if isinstance(headers, list)
        else [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    )
    return Request(
        method,
        target,
        path,
        query,
        "1.1",
        [(b"Host", b"example.org"), *pairs],
        "example.org",
        "10.0.0.1",
        4000,
        body if isinstance(body, Body) else Body(body),
    )


# --- what the worker is told ------------------------------------------------------------------------------------------


def test_small_get() -> None:
    """A plain request is told with all keys, in RoadRunner's order, without Host."""
    scene = Scene()
    scene.ask(target="/a/b?c[]=1&d=%20", headers={"accept-encoding": "gzip", "X-request-ID": '"1"\\'})
    assert list(scene.told().items()) == [
        ("remoteAddr", "10.0.0.1"),
        ("protocol", "HTTP/1.1"),
        ("method", "GET"),
        ("uri", "http://example.org/a/b?c[]=1&d=%20"),
        ("headers", {"Accept-Encoding": ["gzip"], "X-Request-Id": ['"1"\\']}),
        ("cookies", {}),
        ("rawQuery", "c[]=1&d=%20"),
        ("parsed", False),
        ("uploads", None),
        ("attributes", {}),
    ]
    assert (scene.pool.ticket.flags, scene.pool.ticket.body, scene.pool.ticket.label) == (
        JSON,
        b"",
        "GET /a/b",
    )


def test_headers_that_stay_here() -> None:
    """Hop-by-hop headers, Proxy, those named in Connection and names with underscores do not reach a worker."""
    scene = Scene()
    withheld = {
        "Connection": "keep-alive, X-Secret",
        "X-Secret": "1",
        "Keep-Alive": "5",
        "Proxy-Connection": "x",
        "Proxy-Authorization": "x",
        "Proxy-Authenticate": "x",
        "Proxy": "http://evil",
        "TE": "trailers",
        "Trailer": "X",
        "Transfer-Encoding": "chunked",
        "Upgrade": "h2c",
        "X_Real_Ip": "1",
        "Content_Length": "5",
    }
    scene.ask(headers={**withheld, "X-Kept": "1"})
    assert scene.told()["headers"] == {"X-Kept": ["1"]}
    del withheld["Connection"], withheld["X-Secret"]
    scene.ask(headers={**withheld, "Connection": "close", "X-Kept": "1"})
    assert scene.told()["headers"] == {"X-Kept": ["1"]}


def test_underscores_allowed() -> None:
    """Names with underscores pass where the configuration says so."""
    scene = Scene(headers=HeadersConfig(underscores="allow"))
    scene.ask(headers={"X_A": "1"})
    assert scene.told()["headers"] == {"X_a": ["1"]}


def test_repeated_headers_and_latin1() -> None:
    """Values under one name are a list in order of arrival; bytes that are no UTF-8 are Latin-1."""
    scene = Scene()
    pairs = [(b"X-A", b"1"), (b"x-b", "\u00e4".encode()), (b"x-a", b"\xe4")]
    scene.exchange(make_request(headers=pairs), FakeResponder())
    assert scene.told()["headers"] == {"X-A": ["1", "\u00e4"], "X-B": ["\u00e4"]}


@pytest.mark.parametrize(
    ("target", "host", "uri"),
    [
        ("/", "a:80", "http://a:80/"),
        ("/a?", "a", "http://a/a"),
        ("//evil/x", "a", "http://a//evil/x"),
        ('/a"b|c^d', "a", "http://a/a%22b%7Cc%5Ed"),
        ("/%zz%4", "a", "http://a/%25zz%254"),
        ("/a?b=%zz&c=|", "a", "http://a/a?b=%25zz&c=%7C"),
        ("/[a]?[b]", "a", "http://a/%5Ba%5D?[b]"),
        ("*", "a", "http://a"),
        ("/", "", "http://localhost/"),
        ("/", "a:99999", "http://localhost/"),
        ("/", "a:", "http://a/"),
        ("/", "[::1]:8080", "http://[::1]:8080/"),
        ("/", "a b", "http://localhost/"),
        ("/", "a@b", "http://localhost/"),
        ("/\r\nx", "a", "http://a/x"),
        ("/\u00e4", "a", "http://a/%C3%A4"),
    ],
)
def test_uri_is_always_valid(target: str, host: str, uri: str) -> None:
    """Whatever was asked for, the worker gets a URI that its library can read."""
    scene = Scene()
    request = make_request(target=target)
    request.host = host
    scene.exchange(request, FakeResponder())
    assert scene.told()["uri"] == uri


def test_absolute_target() -> None:
    """An absolute-form target is told as the same URI."""
    scene = Scene()
    request = make_request(target="/a?b")
    request.target = "http://example.org/a?b"
    scene.exchange(request, FakeResponder())
    assert scene.told()["uri"] == "http://example.org/a?b"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"a=1; b=2", {"a": b"1", "b": b"2"}),
        (b"a=1; a=2", {"a": b"2"}),
        (b"a=%41+%2B", {"a": b"A +"}),
        (b"a=%4; b=%zz; c=1", {"c": b"1"}),
        (b'a="q"; b="', {"a": b"q"}),
        (b"a; =b; ;; c=", {"c": b""}),
        (b"a b=1; c=\x01; d=\\", {}),
        (b"a=b=c", {"a": b"b=c"}),
        (b"a=\xc3\xa4; b=%E4", {"a": b"\xc3\xa4", "b": b"\xe4"}),
        (b"", {}),
    ],
)
def test_cookies(header: bytes, expected: dict[str, bytes]) -> None:
    """Cookies are decoded, those that do not decode are dropped, the last one wins."""
    assert decode_cookies(header) == expected


def test_cookies_in_the_context() -> None:
    """Cookies reach the worker by name; the header stays as well."""
    scene = Scene()
    scene.ask(headers={"Cookie": 'a=%22; b="x"'})
    assert scene.told()["cookies"] == {"a": '"', "b": "x"}
    assert scene.told()["headers"] == {"Cookie": ['a=%22; b="x"']}


def test_attributes() -> None:
    """What middleware has to say reaches the worker; of several values the first."""
    scene = Scene()
    request = make_request()
    request.attributes["traceparent"] = ["00-1", "2"]
    scene.exchange(request, FakeResponder())
    assert scene.told()["attributes"] == {"traceparent": "00-1"}


def test_protobuf_dialect() -> None:
    """With codec proto the context is RoadRunner's message, header bytes as they came."""
    scene = Scene(codec="proto")
    scene.exchange(make_request(headers=[(b"x-a", b"\xe4"), (b"Cookie", b"c=%E4")]), FakeResponder())
    assert scene.pool.ticket.flags == PROTO
    told = decode_request_proto(scene.pool.ticket.context)
    assert told.uri == "http://example.org/a"
    assert told.header == {"X-A": [b"\xe4"], "Cookie": [b"c=%E4"]}
    assert told.cookies == {"c": [b"\xe4"]}


def test_canonical_names() -> None:
    """Names are written as Go does."""
    names = [b"content-type", b"X-REQUEST-ID", b"dnt", b"a--b", b"x-1a", b"no token"]
    assert [canonical_name(name) for name in names] == [
        "Content-Type",
        "X-Request-Id",
        "Dnt",
        "A--B",
        "X-1a",
        "no token",
    ]


TOKENS = st.text("abcXYZ019-_!~", min_size=1, max_size=8).map(str.encode)
NAMES = st.one_of(
    TOKENS,
    st.sampled_from(
        [
            b"Connection",
            b"Cookie",
            b"cookie",
            b"Content-Type",
            b"Proxy",
            b"te",
            b"Close",
            b"Accept",
            b"upgrade",
        ]
    ),
)
COOKIES = st.lists(st.text('ab=%+;" \\4_\xe4', max_size=6), max_size=4).map(
    lambda found: "; ".join(found).encode()
)
VALUES = st.one_of(
    COOKIES,
    st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte > 31 and byte != 127)),
    st.sampled_from(
        [
            b"close",
            b"keep-alive, a",
            b"a=1; b=%41",
            b'x="\\"',
            b"application/json",
            b"multipart/form-data",
            b"\t",
        ]
    ),
)
TARGETS = st.text("/ab?&=%20[]|\"'^;:@~", max_size=14).map(lambda text: "/" + text)


ATTRIBUTES = st.dictionaries(
    st.text('ab-"', max_size=4), st.lists(st.text(max_size=4), max_size=2), max_size=2
)


@settings(max_examples=400, deadline=None)
@example(
    headers=[(b"Connection", b"close"), (b"Close", b"1")],
    target="/",
    host="a",
    method="GET",
    underscores=False,
    attributes={},
    parsed=False,
    uploads=b"",
)
@example(
    headers=[(b"Connection", b"keep-alive, x-a"), (b"X-A", b"1")],
    target="/",
    host="a",
    method="GET",
    underscores=False,
    attributes={},
    parsed=False,
    uploads=b"",
)
@example(
    headers=[(b"Cookie", b"a=1; b=2; a=3"), (b"X_A", b"1")],
    target="/?",
    host="a",
    method="GET",
    underscores=False,
    attributes={},
    parsed=False,
    uploads=b"",
)
@given(
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=8),
    target=TARGETS,
    host=st.sampled_from(["example.org", "a:8080", "[::1]", "", "a:"]),
    method=st.sampled_from(["GET", "POST", "X'Y", "HEAD"]),
    underscores=st.booleans(),
    attributes=ATTRIBUTES,
    parsed=st.booleans(),
    uploads=st.sampled_from([b"", b'{"a":{"name":"\xc3\xa4"}}']),
)
def test_short_way_is_the_long_way(
    headers: list[tuple[bytes, bytes]],
    target: str,
    host: str,
    method: str,
    underscores: bool,
    attributes: dict[str, list[str]],
    parsed: bool,
    uploads: bytes,
) -> None:
    """The context from remembered pieces is byte for byte the one of the reference, the second time as well."""
    request = make_request(method, target, headers)
    request.host = host
    request.attributes.update(attributes)
    for forms in (False, True):
        writer = ContextWriter(underscores=underscores, forms=forms)
        expected = encode_request_json(describe(request, underscores=underscores))
        for _ in range(2):
            written = writer.plain_json(request)
            if written is not None:
                assert written == expected
        expected = encode_request_json(
            describe(request, parsed=parsed, uploads=uploads, underscores=underscores)
        )
        assert writer.json(request, parsed=parsed, uploads=uploads) == expected
    assert "Host" not in decode_request_json(expected).header


def test_most_requests_take_the_short_way() -> None:
    """A browser's request and a JSON post are plain; a form and a repeated header are not."""
    writer = ContextWriter()
    browser = {"User-Agent": "Mozilla/5.0", "Accept": "*/*", "Cookie": "a=1", "Connection": "keep-alive"}
    assert writer.plain_json(make_request(target="/a?b=1", headers=browser)) is not None
    assert writer.plain_json(make_request("POST", headers={"Content-Type": "application/json"})) is not None
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert writer.plain_json(make_request("POST", headers=form)) is None
    assert ContextWriter(forms=False).plain_json(make_request("POST", headers=form)) is not None
    assert writer.plain_json(make_request(headers=[(b"a", b"1"), (b"A", b"2")])) is None


def test_memories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, values and hosts that a client makes up do not add up, and secrets are not remembered at all."""
    monkeypatch.setattr("trailboss.plugins.http.context.MEMORY_MAX", 50)
    writer = ContextWriter()
    long = make_request("M" * 4000)
    long.host = "h" * 4000
    assert writer.plain_json(long) is not None
    assert not writer._beginnings
    for number in range(300):
        request = make_request(
            headers={f"X-{number}": "a", "Authorization": f"b{number}", "Cookie": f"c={number}"}
        )
        request.host = f"h{number}"
        assert writer.plain_json(request) is not None
    assert len(writer._headers) <= 50
    assert len(writer._beginnings) <= 50
    assert not any(name in (b"Authorization", b"Cookie") for name, _ in writer._headers)


# --- bodies -----------------------------------------------------------------------------------------------------------

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_raw_body() -> None:
    """A body that is no form reaches the worker as it is."""
    scene = Scene()
    scene.ask("POST", headers={"Content-Type": "application/json"}, body=b'{"a":1}')
    assert scene.pool.ticket.body == b'{"a":1}'
    assert scene.told()["parsed"] is False


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_body_not_read(method: str) -> None:
    """Bodies of HEAD and OPTIONS do not reach the worker, forms neither."""
    scene = Scene()
    for headers in ({}, FORM, {"X": "1"}):
        scene.ask(method, headers=headers, body=b"a=1")
        assert scene.pool.ticket.body == b""
        assert scene.told()["parsed"] is False


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        ("POST", b"a[b]=1", b'{"a":{"b":"1"}}'),
        ("PUT", b"a=1", b'{"a":"1"}'),
        ("PATCH", b"", b"{}"),
        ("DELETE", b"a=1", b"{}"),
        ("GET", b"", b"{}"),
    ],
)
def test_urlencoded_form(method: str, body: bytes, expected: bytes) -> None:
    """A form becomes a tree, of POST, PUT and PATCH alone."""
    scene = Scene()
    scene.ask(method, headers=FORM, body=body)
    assert scene.pool.ticket.body == expected
    assert scene.told()["parsed"] is True


@pytest.mark.parametrize(("configured", "given"), [(True, None), (False, True), (True, True)])
def test_raw_forms(configured: bool, given: bool | None) -> None:
    """With raw_body, configured or given for workers in Python, a form is left as it is."""
    scene = Scene()
    scene.exchange = Exchange(scene.pool, HttpConfig(address=("a:1",), raw_body=configured), raw_body=given)
    scene.ask("POST", headers=FORM, body=b"a=%zz")
    assert scene.pool.ticket.body == b"a=%zz"
    assert scene.told()["parsed"] is False


@pytest.mark.parametrize(("body", "status"), [(b"a=%zz", 400), (b"a&" * 20_000, 413)])
def test_refused_form(body: bytes, status: int) -> None:
    """A form that cannot be read is refused before a worker sees it."""
    scene = Scene()
    responder = scene.ask("POST", headers=FORM, body=body)
    assert responder.failure is not None
    assert responder.failure.status == status
    assert scene.pool.tickets == []


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def multipart(size: int = 5) -> bytes:
    """A form of a field and a file."""
    return (
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="n.txt"\r\nContent-Type: text/plain\r\n\r\n'
        + b"x" * size
        + b"\r\n--b--\r\n"
    )


def spooled(content: bytes) -> Body:
    """A body in an unlinked file."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return Body(file=os.dup(file.fileno()), size=len(content))


def endings() -> list[tuple[str, Callable[[Scene], None]]]:
    """Every way in which a request ends."""
    return [
        ("answered", lambda scene: scene.pool.answer(body=b"ok")),
        ("bad answer", lambda scene: scene.pool.answer(status=0)),
        ("worker died", lambda scene: scene.pool.end(WorkerDied("dead"))),
        ("timeout", lambda scene: scene.pool.end(ExecTimeout("late"))),
        ("queue full", lambda scene: scene.pool.end(QueueFull("full"))),
        ("soft error", lambda scene: scene.pool.end(SoftError("no"))),
    ]


@pytest.mark.parametrize(("name", "ending"), endings(), ids=[name for name, _ in endings()])
def test_uploads_are_removed(tmp_path: Path, name: str, ending: Callable[[Scene], None]) -> None:
    """An uploaded file is there while the worker has the request, and gone however that ends."""
    scene = Scene(uploads=UploadsConfig(dir=str(tmp_path)))
    with structlog.testing.capture_logs():
        responder = scene.ask("POST", headers=MULTIPART, body=multipart())
        told = scene.told()
        assert told["parsed"] is True
        assert scene.pool.ticket.body == b'{"a":"1"}'
        uploads = told["uploads"]
        assert isinstance(uploads, dict)
        assert Path(uploads["f"]["tmpName"]).read_bytes() == b"xxxxx"
        ending(scene)
    assert responder.finished
    assert list(tmp_path.iterdir()) == []


def test_uploads_outlast_a_stream(tmp_path: Path) -> None:
    """Files stay until the stream has ended."""
    scene = Scene(uploads=UploadsConfig(dir=str(tmp_path)))
    scene.ask("POST", headers=MULTIPART, body=multipart())
    scene.pool.part(b"1")
    assert len(list(tmp_path.iterdir())) == 1
    scene.pool.end(END)
    assert list(tmp_path.iterdir()) == []


def test_uploads_of_a_client_that_left(tmp_path: Path) -> None:
    """Files stay while the worker has them, also when nobody waits for the answer."""
    scene = Scene(uploads=UploadsConfig(dir=str(tmp_path)))
    responder = scene.ask("POST", headers=MULTIPART, body=multipart())
    responder.leave()
    assert len(list(tmp_path.iterdir())) == 1
    scene.pool.answer()
    assert list(tmp_path.iterdir()) == []


def test_broken_multipart_leaves_nothing(tmp_path: Path) -> None:
    """A form that breaks off behind its file is refused and its file removed."""
    scene = Scene(uploads=UploadsConfig(dir=str(tmp_path)))
    responder = scene.ask("POST", headers=MULTIPART, body=multipart()[:-5])
    assert responder.failure is not None
    assert responder.failure.status == 400
    assert list(tmp_path.iterdir()) == []
    assert scene.pool.tickets == []


class Turns:
    """The part of a reactor that gives others their turn."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)


def long_form(
    tmp_path: Path, turns: Turns, *, leave: bool = False, spool: bool = True
) -> tuple[Scene, FakeResponder, int]:
    """A form of a megabyte, read turn by turn; how many turns it took."""
    scene = Scene()
    config = HttpConfig(address=("a:1",), uploads=UploadsConfig(dir=str(tmp_path)))
    scene.exchange = Exchange(scene.pool, config, turns)  # type: ignore[arg-type]
    content = multipart(1_000_000)
    body = spooled(content) if spool else Body(content)
    responder = scene.ask("POST", headers=MULTIPART, body=body)
    count = 0
    while turns.waiting:
        count += 1
        if leave:
            responder.leave()
        turns.waiting.pop(0)()
    body.close()
    return scene, responder, count


@pytest.mark.parametrize("spool", [True, False])
def test_long_form_in_turns(tmp_path: Path, spool: bool) -> None:
    """A long form is read in slices, wherever it lies; others have their turn in between."""
    scene, _, count = long_form(tmp_path, Turns(), spool=spool)
    assert count >= 10
    uploads = scene.told()["uploads"]
    assert isinstance(uploads, dict)
    assert uploads["f"]["size"] == 1_000_000
    scene.pool.answer()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("damage", "status"), [("cut", 400), ("closed", 500)])
def test_long_form_that_cannot_be_read(tmp_path: Path, damage: str, status: int) -> None:
    """A long form that turns out broken, or whose file cannot be read, is refused and leaves nothing."""
    turns = Turns()
    scene = Scene()
    config = HttpConfig(address=("a:1",), uploads=UploadsConfig(dir=str(tmp_path)))
    scene.exchange = Exchange(scene.pool, config, turns)  # type: ignore[arg-type]
    form = multipart(1_000_000)
    body = spooled(form[:-8] if damage == "cut" else form)
    responder = scene.ask("POST", headers=MULTIPART, body=body)
    file = body.file
    assert file is not None
    if damage == "closed":
        writer, reader = os.pipe()
        os.dup2(reader, file)  # a pipe cannot be read at a position
        os.close(reader)
        os.close(writer)
    with structlog.testing.capture_logs():
        while turns.waiting:
            turns.waiting.pop(0)()
    assert responder.failure is not None
    assert responder.failure.status == status
    assert scene.pool.tickets == []
    assert list(tmp_path.iterdir()) == []
    body.close()


def test_form_whose_file_cannot_be_read() -> None:
    """An urlencoded form that cannot be read back is an internal error."""
    scene = Scene()
    body = spooled(b"a=1")
    body.size = 100
    with structlog.testing.capture_logs() as records:
        responder = scene.ask("POST", headers=FORM, body=body)
    assert responder.failure == Failure(500, "internal error", None, False)
    assert [record["event"] for record in records] == ["a request's body could not be read back"]
    body.close()


def test_labels_are_short() -> None:
    """What people are shown of a request is its method and the beginning of its path."""
    scene = Scene()
    scene.ask(target="/" + "a" * 5000)
    assert scene.pool.ticket.label == "GET /" + "a" * 199 + "..."


def test_client_leaves_during_a_long_form(tmp_path: Path) -> None:
    """Nothing is submitted for a client that has gone by then, and nothing is left."""
    scene, _, count = long_form(tmp_path, Turns(), leave=True)
    assert count == 1
    assert scene.pool.tickets == []
    assert list(tmp_path.iterdir()) == []


def test_body_from_a_file() -> None:
    """A spooled body is read back; one that cannot be is an internal error."""
    scene = Scene()
    body = spooled(b"x" * 100)
    scene.ask("POST", body=body)
    assert scene.pool.ticket.body == b"x" * 100
    assert isinstance(scene.pool.ticket.body, bytes)
    body.size = 200
    with structlog.testing.capture_logs() as records:
        responder = scene.ask("POST", body=body)
    assert responder.failure == Failure(500, "internal error", None, False)
    assert len(records) == 1
    body.close()


def test_long_body_from_a_file() -> None:
    """A long body stays in its file, under a descriptor of its own that is closed with the outcome."""
    before = len(os.listdir("/proc/self/fd"))
    scene = Scene()
    content = os.urandom(1000) * 2000
    body = spooled(content)
    responder = scene.ask("POST", body=body)
    body.close()  # the front does that when the client goes
    sent = scene.pool.ticket.body
    assert isinstance(sent, FileBody)
    assert len(sent) == 2_000_000
    assert sent.piece(0) + sent.piece(FILE_PIECE_SIZE) == content[: 2 * FILE_PIECE_SIZE]
    scene.pool.answer()
    assert responder.complete
    with pytest.raises(OSError, match="descriptor"):
        sent.piece(0)
    assert len(os.listdir("/proc/self/fd")) == before


# --- answers ----------------------------------------------------------------------------------------------------------


def test_plain_answer() -> None:
    """An answer is sent in one call, framing headers left out."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.answer(201, {"X-A": ["1", "2"], "Content-Length": ["4"], "Connection": ["close"]}, b"body")
    assert responder.calls == ["respond"]
    assert (responder.status, responder.headers, responder.body) == (
        201,
        [(b"X-A", b"1"), (b"X-A", b"2")],
        b"body",
    )


def test_answer_without_a_context() -> None:
    """Only the body counts then, whatever the flags."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.end(Answer(0, b"", b"body"))
    assert (responder.status, responder.headers, responder.body) == (200, [], b"body")


def test_answer_in_the_other_dialect() -> None:
    """Answers are read by their flags, not by what was asked."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.end(Answer(PROTO, encode_answer_proto(202, {"X-A": [b"1"]}), b"body"))
    assert (responder.status, responder.body) == (202, b"body")


@pytest.mark.parametrize(
    ("headers", "body", "length"),
    [
        ({"Content-Length": ["7"]}, b"", 7),
        ({}, b"seven b", 7),
        ({}, b"", None),
        ({"Content-Length": ["9"]}, b"x", 9),
    ],
)
def test_head(headers: dict[str, list[str]], body: bytes, length: int | None) -> None:
    """HEAD gets the head, with the length the body would have, and no body."""
    scene = Scene()
    responder = scene.ask("HEAD")
    scene.pool.answer(200, headers, body)
    assert (responder.status, responder.length, responder.body) == (200, length, b"")
    assert responder.complete


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("stream", [False, True])
def test_statuses_without_a_body(status: int, stream: bool) -> None:
    """A body that may not be is dropped, and the answer is still good."""
    scene = Scene()
    responder = scene.ask()
    if stream:
        scene.pool.part(b"body", status)
        scene.pool.part(b"more", status)
        scene.pool.end(END)
    else:
        scene.pool.answer(status, {"Content-Length": ["4"]}, b"body")
    assert (responder.status, responder.body) == (status, b"")
    assert responder.complete


def test_trailers() -> None:
    """Headers named in Trailer follow the body."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.answer(200, {"Trailer": ["X-Sum"], "X-Sum": ["1"], "X-A": ["2"]}, b"body")
    assert responder.trailers == [(b"X-Sum", b"1")]
    assert responder.headers == [(b"X-A", b"2"), (b"Trailer", b"x-sum")]
    assert (responder.body, responder.length) == (b"body", None)


@pytest.mark.parametrize("stream", [False, True])
def test_early_hints(stream: bool) -> None:
    """An interim answer goes out at once, its headers do not stay; 101 is ignored."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.part(b"dropped", 103, {"Link": ["</a>"]})
    scene.pool.part(b"", 101, {"Upgrade": ["x"]})
    assert responder.interim == [(103, [(b"Link", b"</a>")])]
    assert not responder.started
    if stream:
        scene.pool.part(b"body", 201)
        scene.pool.end(END)
    else:
        scene.pool.answer(201, {}, b"body")
    assert (responder.status, responder.headers, responder.body) == (201, [], b"body")
    assert responder.complete


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("status", "body"), [(101, b""), (101, b"x"), (103, b"x"), (100, b"x"), (199, b"x")])
def test_an_interim_status_is_no_head_of_a_body(status: int, body: bytes, repeated: bool) -> None:
    """A body that follows without a head of its own, streamed with the status once or each time, is refused, once."""
    scene = Scene()
    with structlog.testing.capture_logs() as records:
        responder = scene.ask()
        scene.pool.part(body, status, {"Upgrade": ["x"]})
        if repeated:
            scene.pool.part(b"more", status, {"Upgrade": ["x"]})
        else:
            scene.pool.ticket.on_part(JSON, b"", b"more")
        scene.pool.end(END)
    assert responder.failure is not None
    assert (responder.failure.status, responder.failure.reason) == (502, "bad answer")
    assert b"x" not in responder.body
    assert [record["event"] for record in records] == ["bad answer from a worker"]


def test_interim_answers_without_end() -> None:
    """A worker that sends nothing else is refused, once, before they fill the memory."""
    scene = Scene()
    responder = scene.ask()
    for _ in range(1000):
        scene.pool.part(b"", 103, {"Link": ["</a>"]})
    scene.pool.end(END)
    assert len(responder.interim) == 64
    assert responder.failure is not None
    assert (responder.failure.status, responder.failure.reason) == (502, "bad answer")


# --- streams ----------------------------------------------------------------------------------------------------------


def test_stream() -> None:
    """The head is sent with the first part, contexts of later parts are ignored, the end ends."""
    scene = Scene()
    responder = scene.ask()
    assert scene.pool.part(b"1", 201, {"X-A": ["1"]})
    assert (responder.status, responder.length) == (201, None)
    assert scene.pool.part(b"2", 500, {"X-B": ["\r\n"]})
    scene.pool.answer(0, {}, b"3")
    assert (responder.status, responder.headers, responder.body) == (201, [(b"X-A", b"1")], b"123")
    assert responder.complete


def test_stream_with_its_length() -> None:
    """A stream that announces its length and keeps it is sent with it."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.part(b"12", 200, {"Content-Length": ["4"]})
    scene.pool.part(b"34")
    scene.pool.end(END)
    assert (responder.length, responder.body) == (4, b"1234")
    assert responder.complete


@pytest.mark.parametrize("parts", [[b"12", b"345"], [b"1234", b"5"], [b"12"], [b""]])
def test_stream_that_breaks_its_length(parts: list[bytes]) -> None:
    """A stream that is longer or shorter than announced is cut, with one line in the log."""
    scene = Scene()
    responder = scene.ask()
    with structlog.testing.capture_logs() as records:
        for part in parts:
            scene.pool.part(part, 200, {"Content-Length": ["4"]})
        scene.pool.end(END)
    assert responder.cut
    assert [record["event"] for record in records] == ["answer cut short"]


@pytest.mark.parametrize("outcome", [WorkerDied("dead"), SoftError("no"), ExecTimeout("late")])
def test_stream_that_breaks_off(outcome: ExecFailed) -> None:
    """A stream whose worker fails is cut, never ended as if it were whole."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.part(b"1")
    with structlog.testing.capture_logs():
        scene.pool.end(outcome)
    assert responder.cut
    assert not responder.complete
    assert len(scene.pool.tickets) == 1


def test_back_pressure() -> None:
    """While the client takes no more the worker is paused; it goes on when the client does."""
    scene = Scene()
    responder = scene.ask()
    assert scene.pool.part(b"1") is True
    responder.stall()
    assert scene.pool.part(b"2") is False
    scene.pool.ticket.paused = True
    responder.flow()
    assert scene.pool.ticket.paused is False
    assert scene.pool.part(b"3") is True


@pytest.mark.parametrize("late", [False, True])
def test_trailers_of_a_stream(late: bool) -> None:
    """Trailers of a stream come with its first context or with its last."""
    scene = Scene()
    responder = scene.ask()
    first = {"Trailer": ["X-Sum"]} if late else {"Trailer": ["X-Sum"], "X-Sum": ["1"]}
    scene.pool.part(b"1", 200, first)
    scene.pool.answer(200, {"X-Sum": ["1"]} if late else {}, b"2")
    assert responder.trailers == [(b"X-Sum", b"1")]
    assert responder.body == b"12"


def test_bad_trailers_of_a_stream() -> None:
    """Trailers that would break the message cut it."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.part(b"1", 200, {"Trailer": ["X-Sum"]})
    with structlog.testing.capture_logs():
        scene.pool.answer(200, {"X-Sum": ["a\r\nb"]})
    assert responder.cut


def test_bad_stream_is_stopped() -> None:
    """A stream that begins badly is refused, and its worker told to stop."""
    scene = Scene()
    responder = scene.ask()
    with structlog.testing.capture_logs():
        scene.pool.part(b"1", 0)
    assert responder.failure == Failure(502, "bad answer", None, False)
    assert scene.pool.cancelled == [scene.pool.ticket]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (QueueFull("x"), Failure(503, "queue full", 1, False)),
        (QueueTimeout("x"), Failure(503, "queue timeout", 1, False)),
        (PoolDegraded("x"), Failure(503, "no workers", 1, False)),
        (PoolClosed("x"), Failure(503, "draining", 1, True)),
        (ExecTimeout("x"), Failure(504, "exec timeout", None, False)),
        (WorkerDied("x"), Failure(502, "worker died", None, False)),
        (ExecFailed("x"), Failure(500, "internal error", None, False)),
    ],
)
def test_refusals(outcome: ExecFailed, failure: Failure) -> None:
    """Each way of having no answer has its status; a code of the user's replaces all of them."""
    scene = Scene()
    responder = scene.ask("POST")
    scene.pool.end(outcome)
    assert responder.failure == failure
    scene = Scene(internal_error_code=599)
    responder = scene.ask("POST")
    scene.pool.end(outcome)
    assert responder.failure == failure._replace(status=599)


@pytest.mark.parametrize(("debug", "body"), [(False, b""), (True, b"broken")])
def test_soft_error(debug: bool, body: bytes) -> None:
    """An error of the application goes to the log, and to the client only in debug mode."""
    scene = Scene(debug=debug)
    responder = scene.ask()
    with structlog.testing.capture_logs() as records:
        scene.pool.end(SoftError("broken"))
    assert (responder.status, responder.body) == (500, body)
    assert responder.header(b"trailboss-reason") == b"worker error"
    assert [record["text"] for record in records] == ["broken"]


def test_soft_error_with_a_code() -> None:
    """internal_error_code holds for errors of the application too."""
    scene = Scene(internal_error_code=520)
    responder = scene.ask()
    with structlog.testing.capture_logs():
        scene.pool.end(SoftError("broken"))
    assert responder.status == 520


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_retry(method: str) -> None:
    """A GET or HEAD whose worker died goes to another worker, once, with the same payload."""
    scene = Scene()
    responder = scene.ask(method)
    scene.pool.end(WorkerDied("dead"))
    assert responder.calls == []
    assert [ticket.context for ticket in scene.pool.tickets] == [scene.pool.ticket.context] * 2
    scene.pool.end(WorkerDied("dead"))
    assert responder.failure == Failure(502, "worker died", None, False)
    assert len(scene.pool.tickets) == 2


def test_retry_succeeds() -> None:
    """The client sees nothing of the death."""
    scene = Scene()
    responder = scene.ask()
    scene.pool.end(WorkerDied("dead"))
    scene.pool.answer(200, {}, b"ok")
    assert responder.body == b"ok"
    assert responder.complete


def test_no_retry() -> None:
    """Nothing is done twice that may not be: other methods, after an interim answer, when switched off, for nobody."""
    scene = Scene()
    scene.ask("POST")
    scene.pool.end(WorkerDied("dead"))
    scene.ask()
    scene.pool.part(b"", 103)
    scene.pool.end(WorkerDied("dead"))
    scene.ask().leave()
    scene.pool.end(WorkerDied("dead"))
    scene.ask()
    scene.pool.end(ExecTimeout("late"))
    assert len(scene.pool.tickets) == 4
    scene = Scene(retry=False)
    scene.ask()
    scene.pool.end(WorkerDied("dead"))
    assert len(scene.pool.tickets) == 1


def test_requests_leave_no_cycles() -> None:
    """What a request took is free when it is over, without the garbage collector."""
    scene = Scene()

    def course(end: Callable[[], None]) -> None:
        scene.ask("POST", body=b"x")
        end()
        scene.pool.tickets.clear()

    def stream() -> None:
        scene.pool.part(b"1")
        scene.pool.end(END)

    ends: list[Callable[[], None]] = [
        scene.pool.answer,
        stream,
        lambda: scene.pool.end(QueueFull("x")),
        lambda: scene.pool.end(WorkerDied("x")),
    ]
    for end in ends:
        course(end)
    gc.collect()
    gc.disable()
    try:
        for end in ends:
            course(end)
        assert gc.collect() == 0
    finally:
        gc.enable()


# --- clients that leave -----------------------------------------------------------------------------------------------


def test_client_leaves_the_queue() -> None:
    """A request that waits is withdrawn."""
    scene = Scene()
    scene.pool.waiting = True
    responder = scene.ask()
    responder.leave()
    assert scene.pool.cancelled == [scene.pool.ticket]
    assert responder.finished


@pytest.mark.parametrize(("on_disconnect", "killed"), [("finish", 0), ("stop", 1)])
def test_client_leaves_a_running_request(on_disconnect: str, killed: int) -> None:
    """The worker finishes within its limits, or within stream_timeout; its answer then ends the matter."""
    scene = Scene(on_disconnect=on_disconnect)
    responder = scene.ask()
    responder.leave()
    assert scene.pool.ticket.cancelled
    assert len(scene.pool.killed) == killed
    scene.pool.answer(200, {}, b"late")
    assert responder.finished


@pytest.mark.parametrize("begun", [False, True])
def test_client_leaves_a_stream(begun: bool) -> None:
    """The stream is told to stop; what still comes is no answer, and nobody is told of it."""
    scene = Scene(pool=replace(PoolConfig(), stream_timeout=7.0))
    responder = scene.ask()
    if begun:
        scene.pool.part(b"1")
    responder.leave()
    assert scene.pool.ticket.cancelled
    assert scene.pool.ticket.stream_timeout == 7.0
    scene.pool.part(b"2")
    scene.pool.end(END)
    assert responder.calls == (["head", "data"] if begun else [])
    assert responder.body == (b"1" if begun else b"")


def test_responder_is_let_go_before_its_last_call() -> None:
    """During the last call a connection may begin with its next request: nothing is touched afterwards."""
    scene = Scene()
    seen: list[object] = []

    class Eager(FakeResponder):
        def respond(self, *arguments: object) -> None:
            seen.append((self.on_gone, self.on_ready))
            self.on_gone = next_request

    def next_request() -> None:
        pass

    responder = Eager()
    scene.exchange(make_request(), responder)
    scene.pool.answer()
    assert seen == [(None, None)]
    assert responder.on_gone is next_request


Headers = dict[str, list[str]]

STATUSES = st.sampled_from([0, 99, 100, 101, 103, 200, 204, 205, 304, 404, 500, 599, 600])
NO_HEADERS: Headers = {}
HEADERS = st.sampled_from(
    [
        NO_HEADERS,
        {"Content-Length": ["4"]},
        {"Content-Length": ["0"]},
        {"Content-Length": ["+4"]},
        {"Trailer": ["X-Sum"], "X-Sum": ["1"]},
        {"X-A": ["a\r\nb"]},
        {"Transfer-Encoding": ["chunked"], "Connection": ["close"], "Date": ["x"]},
    ]
)
BODIES = st.sampled_from([b"", b"1234", b"12"])
STEPS = st.one_of(
    st.tuples(st.just("part"), STATUSES, HEADERS, BODIES),
    st.tuples(st.sampled_from(["leave", "stall", "flow"]), st.just(0), st.just(NO_HEADERS), st.just(b"")),
)
ENDS = st.one_of(
    st.tuples(STATUSES, HEADERS, BODIES),
    st.sampled_from([WorkerDied("x"), SoftError("x"), ExecTimeout("x"), QueueFull("x"), END]),
)


@settings(max_examples=500, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    steps=st.lists(STEPS, max_size=6),
    ends=st.lists(ENDS, min_size=2, max_size=2),
    on_disconnect=st.sampled_from(["finish", "stop"]),
)
def test_any_course_ends_once(
    method: str,
    steps: list[tuple[str, int, Headers, bytes]],
    ends: list[tuple[int, Headers, bytes] | Answer | ExecFailed],
    on_disconnect: str,
) -> None:
    """Whatever workers and clients do: the responder's contract is kept, and every request comes to its one end."""
    scene = Scene(on_disconnect=on_disconnect)
    with structlog.testing.capture_logs() as records:
        responder = scene.ask(method)
        for step, status, headers, body in steps:
            if step == "part":
                scene.pool.part(body, status, headers)
            else:
                getattr(responder, step)()
        for number, end in enumerate(ends, 1):
            if isinstance(end, (Answer, ExecFailed)):
                scene.pool.end(end)
            else:
                scene.pool.answer(*end)
            if len(scene.pool.tickets) == number:
                break  # not handed to another worker
    assert responder.finished
    assert len(scene.pool.tickets) <= 2
    assert (len(scene.pool.tickets) == 2) <= (method != "POST")
    assert len(records) <= 1
    if responder.complete and not scene.pool.ticket.parts:
        assert responder.length is None or method == "HEAD" or len(responder.body) == responder.length
