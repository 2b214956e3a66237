"""Files that a worker names: sent from below the root, and from nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trailboss.config.schema import HttpConfig, SendfileConfig
from trailboss.plugins.http.contract import MiddlewareError
from trailboss.plugins.http.middleware.sendfile import SendFile, make_sendfile
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request
from trailboss.testing.fake_responder import FakeResponder

SECRET = b"the secret"
LARGE = bytes(range(256)) * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files, a link out of it, and a secret beside it."""
    root = tmp_path / "files"
    root.mkdir()
    (root / "small.txt").write_bytes(b"small file")
    (root / "large.bin").write_bytes(LARGE)
    (root / "two words.pdf").write_bytes(b"%PDF")
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "folder").mkdir()
    os.mkfifo(root / "fifo")
    for name in ("small.txt", "large.bin"):
        os.utime(root / name, (1_700_000_000, 1_700_000_000))
    return root


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Each test closes what it opened."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def answer(
    root: Path,
    *headers: tuple[bytes, bytes],
    status: int = 200,
    asked: tuple[tuple[bytes, bytes], ...] = (),
    method: str = "GET",
) -> FakeResponder:
    """Return what the client gets where the worker answers with these headers."""
    bench = MiddlewareBench(
        lambda services: SendFile(str(root)),
        lambda _, responder: responder.respond(status, list(headers), b"worker's body"),
    )
    return bench.exchange(make_request(method=method, headers=asked))


def named(root: Path, name: str) -> tuple[bytes, bytes]:
    """Return the header that names a file by its path."""
    return b"X-Sendfile", os.fsencode(root / name)


def test_a_small_file_replaces_the_body(root: Path) -> None:
    """The worker's other headers stay, its body and the header itself do not."""
    client = answer(
        root, (b"Content-Disposition", b"attachment"), named(root, "small.txt"), (b"Set-Cookie", b"a=1")
    )
    assert client.calls == ["respond"]
    assert (client.status, client.body) == (200, b"small file")
    assert client.headers == [
        (b"Content-Disposition", b"attachment"),
        (b"Set-Cookie", b"a=1"),
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Last-Modified", b"Tue, 14 Nov 2023 22:13:20 GMT"),
        (b"Accept-Ranges", b"bytes"),
    ]


def test_a_large_file_goes_through_the_kernel(root: Path) -> None:
    """With the type the worker says."""
    client = answer(root, (b"content-type", b"video/mp4"), named(root, "large.bin"))
    assert client.calls == ["head", "file", "end"]
    assert (client.length, client.body) == (len(LARGE), LARGE)
    assert client.header(b"content-type") == b"video/mp4"


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ((b"x-sendfile", b"small.txt"), b"small file"),
        ((b"X-Accel-Redirect", b"/small.txt"), b"small file"),
        ((b"x-accel-redirect", b"/two%20words.pdf?a=1"), b"%PDF"),
        ((b"X-Accel-Redirect", b"/./small.txt"), b"small file"),
    ],
)
def test_ways_to_name_a_file(root: Path, header: tuple[bytes, bytes], content: bytes) -> None:
    """By a path, or by a URL path below the root."""
    assert answer(root, header).body == content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-Sendfile", b"ROOT/../secret.txt"),
        (b"X-Sendfile", b"ROOT/link.txt"),
        (b"X-Sendfile", b"../secret.txt"),
        (b"X-Sendfile", b"link.txt"),
        (b"X-Sendfile", b"/etc/passwd"),
        (b"X-Sendfile", b"/proc/self/environ"),
        (b"X-Sendfile", b"ROOT/folder"),
        (b"X-Sendfile", b"ROOT/fifo"),
        (b"X-Sendfile", b"fifo"),
        (b"X-Sendfile", b"ROOT/nothing"),
        (b"X-Sendfile", b"ROOT/small.txt\x00"),
        (b"X-Sendfile", b""),
        (b"X-Sendfile", b"ROOTsecret"),
        (b"X-Accel-Redirect", b"/../secret.txt"),
        (b"X-Accel-Redirect", b"/%2e%2e/secret.txt"),
        (b"X-Accel-Redirect", b"/link.txt"),
        (b"X-Accel-Redirect", b"small.txt"),
        (b"X-Accel-Redirect", b"//etc/passwd"),
        (b"X-Accel-Redirect", b"/"),
        (b"X-Accel-Redirect", b""),
        (b"X-Accel-Redirect", b"\xff\xfe"),
    ],
)
def test_nothing_outside_is_sent(root: Path, name: bytes, value: bytes) -> None:
    """A file that is not there and one that must not be sent look the same; the worker's body is not sent either."""
    client = answer(root, (name, value.replace(b"ROOT", os.fsencode(root))))
    assert client.failure is not None
    assert client.failure.status == 404
    assert client.parts == []
    assert os.fsdecode(value) not in client.failure.reason or not value


def test_ranges_and_conditions(root: Path) -> None:
    """As for static files, with the worker's ETag and date where it gives them."""
    client = answer(root, named(root, "large.bin"), asked=((b"Range", b"bytes=5-9"),))
    assert (client.status, client.body, client.header(b"content-range")) == (
        206,
        LARGE[5:10],
        b"bytes 5-9/262144",
    )
    client = answer(root, named(root, "large.bin"), (b"ETag", b'"v1"'), asked=((b"If-None-Match", b'"v1"'),))
    assert (client.status, client.body, client.header(b"etag")) == (304, b"", b'"v1"')
    date = b"Wed, 15 Nov 2023 00:00:00 GMT"
    client = answer(
        root, named(root, "small.txt"), (b"Last-Modified", date), asked=((b"If-Modified-Since", date),)
    )
    assert (client.status, client.header(b"last-modified")) == (304, date)
    client = answer(root, named(root, "small.txt"), asked=((b"Range", b"bytes=100-"),))
    assert (client.status, client.header(b"content-range")) == (416, b"bytes */10")


def test_other_statuses_and_methods_get_the_whole_file(root: Path) -> None:
    """A range of an error page means nothing."""
    asked = ((b"Range", b"bytes=0-1"), (b"If-Modified-Since", b"Wed, 15 Nov 2023 00:00:00 GMT"))
    client = answer(root, named(root, "small.txt"), status=404, asked=asked)
    assert (client.status, client.body) == (404, b"small file")
    client = answer(root, named(root, "small.txt"), asked=asked, method="POST")
    assert (client.status, client.body) == (200, b"small file")
    client = answer(root, named(root, "small.txt"), method="HEAD")
    assert (client.length, client.body, client.complete) == (10, b"", True)


@pytest.mark.parametrize("name", ["small.txt", "large.bin", "nothing"])
@pytest.mark.parametrize("way", ["end", "fail", "abort", "file"])
def test_a_streaming_worker_may_name_a_file_too(root: Path, name: str, way: str) -> None:
    """What it streams afterwards is dropped, however it ends; the connection hears of the end only then."""
    bench = MiddlewareBench(lambda services: SendFile(str(root)))
    client = bench.begin(make_request())
    bench.responder.head(200, [named(root, name)])
    bench.responder.data(b"dropped")
    if name == "nothing":
        assert client.failure is not None
    else:
        assert (client.finished, bench.responder.finished) == (False, False)
    if way == "fail":
        bench.responder.fail(502, "the worker died")
    elif way == "abort":
        bench.responder.abort()
    else:
        if way == "file":
            bench.responder.file(os.open(root / "small.txt", os.O_RDONLY), 0, 5)
        bench.responder.end([(b"X-Sum", b"1")])
    assert client.finished
    assert bench.responder.finished
    assert client.trailers == []
    if name != "nothing":
        assert client.complete
        assert client.body == (root / name).read_bytes()


def test_conditions_hold_for_streams(root: Path) -> None:
    """An answer without a body is one here as well."""
    bench = MiddlewareBench(lambda services: SendFile(str(root)))
    client = bench.begin(make_request(headers=[(b"If-None-Match", b"*")]))
    bench.responder.head(200, [named(root, "small.txt")], length=7)
    bench.responder.data(b"dropped")
    bench.responder.end()
    assert (client.status, client.body, client.complete) == (304, b"", True)


def test_without_a_root_it_is_the_working_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So files of the application can be sent, and /etc/passwd cannot; a root that is no folder fails the start."""
    services = MiddlewareBench(lambda services: SendFile(str(root))).services
    monkeypatch.chdir(root)
    middleware = make_sendfile(HttpConfig(address=(":0",)), services)
    client = FakeResponder()
    middleware(lambda _, responder: responder.respond(200, [(b"X-Sendfile", b"small.txt")], b""))(
        make_request(), client
    )
    assert client.body == b"small file"
    with pytest.raises(MiddlewareError, match="is not a folder"):
        make_sendfile(
            HttpConfig(address=(":0",), sendfile=SendfileConfig(root=str(root / "nothing"))), services
        )
