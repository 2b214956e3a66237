"""Compression: what is compressed, what is not, and that a stream stays one."""

from __future__ import annotations

import gzip
import importlib.util
import os
import tempfile
import zlib

import pytest

from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.middleware.encodings import COMPRESSORS, choose_encoding, is_compressible
from trailboss.plugins.http.middleware.gzip import MINIMUM_BYTES, SLICE_BYTES, Compression
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request

TEXT = b"All work and no play makes Jack a dull boy. " * 400
HTML = (b"Content-Type", b"text/html; charset=utf-8")
CODINGS = ["gzip", "zstd", "br"]


def decode(coding: bytes | None, body: bytes) -> bytes:
    """Return what a client makes of a body; also of one that has not ended."""
    if coding is None:
        return body
    if coding == b"gzip":
        return zlib.decompressobj(31).decompress(body)
    if coding == b"zstd":
        import zstandard

        return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(body))
    import brotli

    return bytes(brotli.Decompressor().process(body))


def asking(accepted: str = "gzip", method: str = "GET", version: str = "1.1") -> Request:
    """Return a request of a client that takes these codings."""
    return make_request(method=method, version=version, headers=[(b"Accept-Encoding", accepted.encode())])


def bench_for(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> MiddlewareBench:
    """Return a bench whose handler gives this answer."""

    def answer(request: Request, responder: Responder) -> None:
        responder.respond(status, headers, body)

    return MiddlewareBench(lambda services: Compression(services.call_soon), answer)


@pytest.fixture(params=CODINGS)
def coding(request: pytest.FixtureRequest) -> str:
    """Each coding there is a library for; the others skip visibly."""
    name = str(request.param)
    if name not in COMPRESSORS:
        module = {"zstd": "zstandard", "br": "brotli"}[name]
        assert importlib.util.find_spec(module) is None
        pytest.skip(f"needs {module}")
    return name


def test_a_text_is_compressed_in_one_write(coding: str) -> None:
    """A small answer stays one call, with a weak ETag, Vary, and no promise of ranges."""
    headers = [HTML, (b"ETag", b'"abc"'), (b"Accept-Ranges", b"bytes"), (b"Vary", b"Cookie"), (b"X-A", b"1")]
    client = bench_for(200, headers, TEXT).exchange(asking(coding))
    assert client.calls == ["respond"]
    assert client.headers == [
        HTML,
        (b"ETag", b'W/"abc"'),
        (b"X-A", b"1"),
        (b"Vary", b"Cookie, Accept-Encoding"),
        (b"Content-Encoding", coding.encode()),
    ]
    assert decode(coding.encode(), client.body) == TEXT
    assert len(client.body) < len(TEXT) / 4


@pytest.mark.parametrize(
    ("status", "headers", "body", "varies"),
    [
        (200, [HTML], TEXT[: MINIMUM_BYTES - 1], True),
        (200, [HTML, (b"Content-Encoding", b"br")], TEXT, False),
        (200, [HTML, (b"Content-Range", b"bytes 0-9/10")], TEXT, False),
        (200, [HTML, (b"Cache-Control", b"public, No-Transform")], TEXT, False),
        (206, [HTML], TEXT, False),
        (200, [(b"Content-Type", b"image/png")], TEXT, False),
        (200, [(b"Content-Type", b"application/octet-stream")], TEXT, False),
        (200, [(b"Content-Type", b"text/event-stream")], TEXT, False),
        (200, [], TEXT, False),
        (204, [HTML], b"", False),
        (304, [HTML, (b"ETag", b'"abc"')], b"", False),
    ],
)
def test_what_is_not_worth_it_or_not_allowed(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, varies: bool
) -> None:
    """Everything else comes through as it was; Vary stands wherever another client might get other bytes."""
    client = bench_for(status, headers, body).exchange(asking())
    assert client.body == body
    assert client.headers == headers + ([(b"Vary", b"Accept-Encoding")] if varies else [])


@pytest.mark.parametrize(
    "accepted", ["", "identity", "gzip;q=0", "*;q=0", "deflate", "gzip;q=x", "identity, gzip;q=0.5"]
)
def test_a_client_that_does_not_take_it(accepted: str) -> None:
    """The client decides; caches learn of it by Vary."""
    client = bench_for(200, [HTML], TEXT).exchange(asking(accepted))
    assert client.body == TEXT
    assert client.headers == [HTML, (b"Vary", b"Accept-Encoding")]


def test_head_has_no_coding() -> None:
    """A HEAD is answered without work, and says that the answer varies."""
    bench = MiddlewareBench(lambda services: Compression(services.call_soon))
    client = bench.begin(asking(method="HEAD"))
    bench.responder.head(200, [HTML], length=len(TEXT))
    bench.responder.end()
    assert client.complete
    assert (client.length, client.headers) == (len(TEXT), [HTML, (b"Vary", b"Accept-Encoding")])


def test_a_stream_is_readable_part_by_part(coding: str) -> None:
    """What a worker has sent so far, the client can read, before the end and after it."""
    bench = MiddlewareBench(lambda services: Compression(services.call_soon))
    client = bench.begin(asking(coding))
    bench.responder.head(200, [HTML])
    sent = b""
    for number in range(20):
        part = b"part %d, " % number
        bench.responder.data(part)
        sent += part
        assert decode(coding.encode(), client.body) == sent
    bench.responder.end([(b"X-Sum", b"1")])
    assert decode(coding.encode(), client.body) == sent
    assert client.complete
    assert client.trailers == [(b"X-Sum", b"1")]


def test_a_known_length_is_not_announced() -> None:
    """A compressed body has another length than the plain one."""
    bench = MiddlewareBench(lambda services: Compression(services.call_soon))
    client = bench.begin(asking())
    bench.responder.head(200, [HTML], length=len(TEXT))
    bench.responder.data(TEXT)
    bench.responder.end()
    assert client.length is None
    assert gzip.decompress(client.body) == TEXT


@pytest.mark.parametrize("stalls", [False, True])
def test_a_large_body_goes_slice_by_slice_and_then_whole(stalls: bool) -> None:
    """Between two slices everybody else has a turn; nothing of the answer waits here for a client that stalls."""
    body = os.urandom(SLICE_BYTES) * 10
    bench = bench_for(200, [HTML], body)
    client = bench.begin(asking())
    if stalls:
        client.stall()
    bench.settle(3)
    assert not client.started
    bench.settle()
    assert client.complete
    assert client.length in (None, len(client.body))
    assert gzip.decompress(client.body) == body


def test_a_client_that_leaves_while_its_answer_is_compressed() -> None:
    """The rest of the work is not done, and nothing is sent."""
    bench = bench_for(200, [HTML], os.urandom(SLICE_BYTES) * 10)
    client = bench.begin(asking())
    bench.settle(3)
    client.leave()
    bench.settle()
    assert (client.started, client.body) == (False, b"")


def test_a_large_part_holds_back_its_source() -> None:
    """While a part waits here the source is asked to pause, and told when to go on."""
    bench = MiddlewareBench(lambda services: Compression(services.call_soon))
    client = bench.begin(asking())
    told: list[str] = []
    bench.responder.on_ready = lambda: told.append("ready")
    bench.responder.head(200, [HTML])
    body = os.urandom(SLICE_BYTES * 3 + 1)
    bench.responder.data(body)
    seen = [bench.responder.wants_more]
    bench.settle()
    seen.append(bench.responder.wants_more)
    assert (seen, told) == ([False, True], ["ready"])
    assert decode(b"gzip", client.body) == body
    bench.responder.end()
    assert client.complete


def test_files_are_compressed_as_well() -> None:
    """A file on its way through is read slice by slice, and closed; one that shrinks cuts the answer."""
    content = os.urandom(50_000) * 5
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        before = len(os.listdir("/proc/self/fd"))
        bench = MiddlewareBench(lambda services: Compression(services.call_soon))
        for count, complete in ((len(content), True), (len(content) + 1, False)):
            client = bench.begin(asking())
            bench.responder.head(200, [HTML], length=count)
            bench.responder.file(os.open(file.name, os.O_RDONLY), 0, count)
            bench.responder.end()
            bench.settle()
            assert client.complete is complete
            assert client.cut is not complete
            assert len(os.listdir("/proc/self/fd")) == before
        assert gzip.decompress(bench_client_body(bench, file.name, len(content))) == content


def bench_client_body(bench: MiddlewareBench, path: str, count: int) -> bytes:
    """Return the body of one more exchange with the file at `path`."""
    client = bench.begin(asking())
    bench.responder.head(200, [HTML], length=count)
    bench.responder.file(os.open(path, os.O_RDONLY), 0, count)
    bench.responder.end()
    bench.settle()
    return client.body


@pytest.mark.parametrize("kind", ["body", "file"])
def test_a_client_that_leaves_a_stalled_answer_ends_it(kind: str) -> None:
    """Nothing waits for a client that has gone: the request comes to its end, the file is closed."""
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(SLICE_BYTES * 4))
        file.flush()
        before = len(os.listdir("/proc/self/fd"))
        bench = MiddlewareBench(lambda services: Compression(services.call_soon))
        client = bench.begin(asking())
        bench.responder.head(200, [HTML])
        client.stall()
        if kind == "file":
            bench.responder.file(os.dup(file.fileno()), 0, SLICE_BYTES * 4)
        else:
            bench.responder.data(os.urandom(SLICE_BYTES * 4))
        bench.responder.end()
        bench.settle()
        assert not client.complete
        client.leave()
        bench.settle()
        assert client.finished
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_failing_stream_is_cut() -> None:
    """A broken answer never ends as if it were whole, however much of it waits."""
    for way in ("fail", "abort"):
        bench = MiddlewareBench(lambda services: Compression(services.call_soon))
        client = bench.begin(asking())
        bench.responder.head(200, [HTML])
        bench.responder.data(os.urandom(SLICE_BYTES * 4))
        if way == "fail":
            bench.responder.fail(502, "the worker died")
        else:
            bench.responder.abort()
        bench.settle()
        assert client.cut


@pytest.mark.parametrize(
    ("accepted", "offered", "chosen"),
    [
        (b"gzip, deflate, br, zstd", ("zstd", "br", "gzip"), "zstd"),
        (b"gzip, deflate, br", ("zstd", "br", "gzip"), "br"),
        (b"GZIP", ("br", "gzip"), "gzip"),
        (b"x-gzip", ("br", "gzip"), "gzip"),
        (b"br;q=0.5, gzip;q=0.8", ("br", "gzip"), "gzip"),
        (b"br;q=0, *", ("br", "gzip"), "gzip"),
        (b"*", ("br", "gzip"), "br"),
        (b"*;q=0.1, gzip;q=0.2", ("br", "gzip"), "gzip"),
        (b"gzip ; q=1.0", ("gzip",), "gzip"),
        (b"gzip;q=0.000", ("gzip",), ""),
        (b"gzip;q=2", ("gzip",), ""),
        (b"gzip;q=nan", ("gzip",), ""),
        (b"\xff\xfe,,;;=", ("gzip",), ""),
        (b"identity;q=0", ("gzip",), ""),
        (None, ("gzip",), ""),
    ],
)
def test_negotiation(accepted: bytes | None, offered: tuple[str, ...], chosen: str) -> None:
    """The client's weights count first, then our order; what cannot be read is not accepted."""
    assert choose_encoding(accepted, offered) == chosen


def test_types() -> None:
    """Texts and structured formats are worth it, pictures, archives and event streams are not."""
    for kind in (b"text/css", b"application/json", b"image/svg+xml", b"application/problem+json; a=b"):
        assert is_compressible(kind)
    for kind in (b"image/jpeg", b"application/zip", b"text/event-stream", b"", b"video/mp4", b"font/woff2"):
        assert not is_compressible(kind)
