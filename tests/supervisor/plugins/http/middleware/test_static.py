"""Static files: what is served, what goes on to the worker, and that nothing outside the folder ever is served."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trailboss.config.schema import HttpConfig, StaticConfig
from trailboss.plugins.http.contract import MiddlewareError
from trailboss.plugins.http.middleware.chain import build_chain
from trailboss.plugins.http.middleware.files import Folder, PathProblem, content_type, decode_path
from trailboss.plugins.http.middleware.static import FileNames, StaticFiles, make_static
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request
from trailboss.testing.fake_responder import FakeResponder

SECRET = b"root:x:0:0: the secret"
CSS = b"body { color: black }\n"
MTIME = 1_700_000_000
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files, and secrets all around and inside it."""
    root = tmp_path / "public"
    (root / "css").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".well-known").mkdir()
    (root / "folder.d").mkdir()
    contents = {
        "css/app.css": CSS,
        "big.bin": bytes(range(256)) * 1024,
        "empty.txt": b"",
        "index.html": b"<p>hello",
        "UPPER.CSS": CSS,
        "with space é.txt": b"space",
        "percent%2e.txt": b"percent",
        "a..b.txt": b"dots",
        "noextension": SECRET,
        "index.php": SECRET,
        "index.PHP": SECRET,
        "index.php.bak": SECRET,
        "index.php~": SECRET,
        "lib.phar": SECRET,
        "page.phtml": SECRET,
        "back\\slash.txt": SECRET,
        ".env": SECRET,
        ".htaccess": SECRET,
        ".git/config.txt": SECRET,
        ".well-known/security.txt": b"contact",
        ".well-known/.hidden.txt": SECRET,
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    for outside in (tmp_path / "secret.txt", tmp_path / "public2.txt", tmp_path / "secret"):
        outside.write_bytes(SECRET)
    (tmp_path / "publicsibling").mkdir()
    (tmp_path / "publicsibling" / "secret.txt").write_bytes(SECRET)
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "relative.txt").symlink_to("../secret.txt")
    (root / "chain.txt").symlink_to("link.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "sibling").symlink_to(tmp_path / "publicsibling")
    (root / "passwd.txt").symlink_to("/etc/passwd")
    (root / "self.txt").symlink_to("/proc/self/environ")
    (root / "loop.txt").symlink_to("loop.txt")
    (root / "dangling.txt").symlink_to("nowhere.txt")
    (root / "inside.css").symlink_to("css/app.css")
    (root / "hidden.css").symlink_to(".env")
    os.mkfifo(root / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket.txt"))
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (MTIME, MTIME))
    return root


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Each test closes what it opened."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def make_bench(root: Path, **settings: Any) -> MiddlewareBench:
    """Return a bench whose worker answers 404 with a body of its own."""
    config = StaticConfig(dir=str(root), **settings)
    return MiddlewareBench(
        lambda services: StaticFiles(config), lambda _, responder: responder.respond(404, [], b"worker")
    )


def get(
    root: Path, target: str, *headers: tuple[bytes, bytes], method: str = "GET", **settings: Any
) -> FakeResponder:
    """Return the answer to one request."""
    return make_bench(root, **settings).exchange(make_request(target, method, headers))


def is_workers(client: FakeResponder) -> bool:
    """Say whether a worker was asked."""
    return (client.status, client.body) == (404, b"worker")


# --- what is served ------------------------------------------------------------------------------------------------------


def test_a_file_is_served_in_one_write(root: Path) -> None:
    """Small files go out with their head; type, date and the offer of ranges are there."""
    client = get(root, "/css/app.css?v=3")
    assert (client.status, client.body, client.calls) == (200, CSS, ["respond"])
    assert client.headers == [
        (b"Content-Type", b"text/css; charset=utf-8"),
        (b"Vary", b"Accept-Encoding"),
        (b"Last-Modified", DATE),
        (b"Accept-Ranges", b"bytes"),
    ]


def test_a_large_file_goes_through_the_kernel(root: Path) -> None:
    """Nothing of it is read here."""
    client = get(root, "/big.bin")
    assert client.calls == ["head", "file", "end"]
    assert (client.length, client.body) == (262_144, bytes(range(256)) * 1024)
    assert client.header(b"content-type") == b"application/octet-stream"


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("/index.html", b"<p>hello"),
        ("/empty.txt", b""),
        ("/UPPER.CSS", CSS),
        ("/with%20space%20%C3%A9.txt", b"space"),
        ("/with%20space%20\xc3\xa9.txt", b"space"),
        ("/percent%252e.txt", b"percent"),
        ("/a..b.txt", b"dots"),
        ("//css//app.css", CSS),
        ("/./css/./app.css", CSS),
        ("/css/%61pp.css", CSS),
        ("/inside.css", CSS),
        ("/.well-known/security.txt", b"contact"),
    ],
)
def test_paths_that_name_a_file(root: Path, target: str, content: bytes) -> None:
    """Decoded once; links that stay inside are followed."""
    client = get(root, target)
    assert (client.status, client.body) == (200, content)


@pytest.mark.parametrize(
    "target",
    [
        "/", "/css", "/css/", "/folder.d", "/folder.d/", "/css/app.css/", "/nothing.css", "/noextension", "/.", "/css/.",
        "/index.php", "/index.PHP", "/index.php.bak", "/index.php~", "/lib.phar", "/page.phtml", "/index.php/x.css",
        "/.env", "/.htaccess", "/.git/config.txt", "/.well-known/.hidden.txt", "/%2eenv", "/.git%2fconfig.txt",
        "/css%2fapp.css", "/back%5cslash.txt", "/fifo.txt", "/socket.txt", "/loop.txt", "/dangling.txt",
        "/link.txt", "/relative.txt", "/chain.txt", "/out/secret.txt", "/sibling/secret.txt", "/passwd.txt", "/self.txt",
        "/css/app.css.", "/css/app.css%20", "/" + "a" * 300 + ".css", "/" + "a/" * 3000 + "b.css", "/app.cs%zz",
    ],
)  # fmt: skip
def test_everything_else_goes_to_the_worker(root: Path, target: str) -> None:
    """A miss is the worker's, and so is what must not be served."""
    assert is_workers(get(root, target))


def test_a_link_inside_the_folder_is_the_owners_word(root: Path) -> None:
    """Whoever links a hidden file under another name inside the folder means to serve it."""
    assert get(root, "/hidden.css").body == SECRET


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"])
def test_other_methods_go_to_the_worker(root: Path, method: str) -> None:
    """Files are read, not written."""
    assert is_workers(get(root, "/css/app.css", method=method))


def test_what_configuration_allows(root: Path) -> None:
    """Forbidden wins over allowed; PHP and hidden files are served for whoever asks for it."""
    assert is_workers(get(root, "/css/app.css", forbid=(".css",)))
    assert is_workers(get(root, "/UPPER.CSS", forbid=("css",)))
    assert is_workers(get(root, "/css/app.css", allow=(".txt",)))
    assert get(root, "/empty.txt", allow=(".txt",)).status == 200
    assert is_workers(get(root, "/css/app.css", allow=(".css",), forbid=(".CSS",)))
    assert get(root, "/index.php", serve_php=True).body == SECRET
    assert get(root, "/index.php", allow=(".php",)).body == SECRET
    assert is_workers(get(root, "/index.php", serve_php=True, forbid=(".php",)))
    assert is_workers(get(root, "/lib.phar", allow=(".php",)))
    assert get(root, "/.env", serve_dotfiles=True).body == SECRET
    assert get(root, "/.git/config.txt", serve_dotfiles=True).body == SECRET


def test_configured_headers(root: Path) -> None:
    """On files only: a page of the worker gets none of them."""
    bench = make_bench(
        root, response={"Cache-Control": "max-age=60", "content-type": "text/plain"}, request={"X-A": "1"}
    )
    client = bench.exchange(make_request("/css/app.css"))
    assert client.headers[:2] == [(b"Cache-Control", b"max-age=60"), (b"content-type", b"text/plain")]
    client = bench.exchange(make_request("/nothing.css"))
    assert client.headers == []
    assert bench.requests[0].headers == [(b"Host", b"example.org")]


def test_head(root: Path) -> None:
    """The head of the answer to a GET, without its body."""
    for target in ("/css/app.css", "/big.bin"):
        whole, head = get(root, target), get(root, target, method="HEAD")
        assert (head.body, head.status, head.length) == (b"", 200, len(whole.body))
        assert head.headers == whole.headers
        assert head.complete


# --- conditions and ranges ---------------------------------------------------------------------------------------------


def test_ranges(root: Path) -> None:
    """Parts of small and large files; what lies behind the end does not exist."""
    whole = (root / "big.bin").read_bytes()
    for text, first, last in ((b"0-9", 0, 9), (b"1000-", 1000, 262_143), (b"-70000", 192_144, 262_143)):
        client = get(root, "/big.bin", (b"Range", b"bytes=" + text))
        assert (client.status, client.body) == (206, whole[first : last + 1])
        assert client.header(b"content-range") == b"bytes %d-%d/262144" % (first, last)
        assert client.length == last - first + 1
    client = get(root, "/big.bin", (b"Range", b"bytes=262144-"))
    assert (client.status, client.body) == (416, b"")
    assert client.header(b"content-range") == b"bytes */262144"
    assert client.header(b"content-type") is None
    assert get(root, "/big.bin", (b"Range", b"bytes=0-1,5-6")).status == 200


def test_not_modified(root: Path) -> None:
    """The date, or the ETag where there is one; the answer has no body and no type, but what caches need."""
    client = get(root, "/css/app.css", (b"If-Modified-Since", DATE), response={"Cache-Control": "max-age=60"})
    assert (client.status, client.body) == (304, b"")
    assert client.headers == [
        (b"Cache-Control", b"max-age=60"),
        (b"Vary", b"Accept-Encoding"),
        (b"Last-Modified", DATE),
    ]
    assert get(root, "/css/app.css", (b"If-Unmodified-Since", b"Tue, 14 Nov 2023 22:13:19 GMT")).status == 412


def test_strong_etags_come_from_the_content(root: Path) -> None:
    """The same content has the same ETag wherever and whenever it was written; a changed one never has."""
    (root / "copy.css").write_bytes(CSS)
    bench = make_bench(root, calculate_etag=True)
    etags = [
        bench.exchange(make_request(target)).header(b"etag") for target in ("/css/app.css", "/copy.css") * 2
    ]
    assert len(set(etags)) == 1
    assert etags[0] is not None
    assert etags[0].startswith(b'"')
    client = bench.exchange(make_request("/css/app.css", headers=[(b"If-None-Match", etags[0])]))
    assert (client.status, client.header(b"etag")) == (304, etags[0])
    (root / "css" / "app.css").write_bytes(CSS.replace(b"black", b"white"))
    os.utime(root / "css" / "app.css", (MTIME, MTIME))
    client = bench.exchange(make_request("/css/app.css", headers=[(b"If-None-Match", etags[0])]))
    assert client.status == 200
    asked = [(b"Range", b"bytes=0-3"), (b"If-Range", etags[0])]
    assert bench.exchange(make_request("/copy.css", headers=asked)).status == 206
    assert bench.exchange(make_request("/css/app.css", headers=asked)).status == 200


def test_etags_of_large_files_and_weak_ones_come_from_size_and_time(root: Path) -> None:
    """Neither is read for it."""
    (root / "huge.bin").write_bytes(b"x" * 1_100_000)
    client = get(root, "/huge.bin", calculate_etag=True, method="HEAD")
    etag = client.header(b"etag")
    assert etag is not None
    assert etag.startswith(b'"')
    weak = get(root, "/css/app.css", calculate_etag=True, weak=True).header(b"etag")
    assert weak is not None
    assert weak.startswith(b'W/"')
    assert get(root, "/css/app.css", (b"If-None-Match", weak), calculate_etag=True, weak=True).status == 304
    assert get(root, "/css/app.css").header(b"etag") is None


# --- compressed siblings -------------------------------------------------------------------------------------------------


def test_compressed_siblings(root: Path) -> None:
    """The best one the client takes; each has an ETag of its own; all say that the answer varies."""
    for suffix in ("gz", "br", "zst"):
        (root / "css" / f"app.css.{suffix}").write_bytes(suffix.encode())
    etags = set()
    for accepted, coding, content in (
        (b"gzip, br, zstd", b"zstd", b"zst"),
        (b"gzip, br", b"br", b"br"),
        (b"gzip, br;q=0.1", b"gzip", b"gz"),
        (b"identity", None, CSS),
    ):
        client = get(root, "/css/app.css", (b"Accept-Encoding", accepted), calculate_etag=True)
        assert (client.body, client.header(b"content-encoding")) == (content, coding)
        assert client.header(b"content-type") == b"text/css; charset=utf-8"
        assert client.header(b"vary") == b"Accept-Encoding"
        etags.add(client.header(b"etag"))
    assert len(etags) == 4
    (root / "css" / "app.css.zst").unlink()
    assert (
        get(root, "/css/app.css", (b"Accept-Encoding", b"zstd, gzip;q=0.1")).header(b"content-encoding")
        == b"gzip"
    )
    client = get(root, "/css/app.css", (b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=0-3"))
    assert (client.status, client.body, client.header(b"content-encoding")) == (206, CSS[:4], None)


def test_a_sibling_is_held_to_the_same_rules(root: Path, tmp_path: Path) -> None:
    """A sibling that leads outside is none; files of types that are compressed already have none."""
    (root / "css" / "app.css.gz").symlink_to(tmp_path / "secret.txt")
    (root / "big.bin.gz").write_bytes(b"never")
    for target in ("/css/app.css", "/big.bin"):
        client = get(root, target, (b"Accept-Encoding", b"gzip"))
        assert client.header(b"content-encoding") is None
        assert client.status == 200


def test_gzip_around_static(root: Path) -> None:
    """In the chain a text file is compressed on its way out, a sibling is left as it is."""
    (root / "page.html").write_bytes(b"<p>hello" * 1000)
    (root / "large.html").write_bytes(b"<p>hello" * 100_000)
    config = HttpConfig(address=(":0",), middleware=("static", "gzip"), static=StaticConfig(dir=str(root)))
    bench = MiddlewareBench(lambda services: lambda innermost: build_chain(config, services, innermost, ()))
    for target in ("/page.html", "/large.html"):
        client = bench.exchange(make_request(target, headers=[(b"Accept-Encoding", b"gzip")]))
        assert client.header(b"content-encoding") == b"gzip"
        assert client.header(b"accept-ranges") is None
        assert client.complete
    (root / "page.html.gz").write_bytes(b"sibling" * 1000)
    client = bench.exchange(make_request("/page.html", headers=[(b"Accept-Encoding", b"gzip")]))
    assert client.body == b"sibling" * 1000
    assert client.header(b"content-encoding") == b"gzip"
    assert [fields["status"] for _, fields in bench.records] == [200, 200, 200]


# --- nothing outside -----------------------------------------------------------------------------------------------------


def traversal_payloads(count: int) -> list[str]:
    """Return so many different attempts to leave the folder, from a fixed seed."""
    ups = [
        "..",
        "%2e%2e",
        ".%2e",
        "%2e.",
        "%2E%2E",
        "%252e%252e",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "....",
        "..;",
        "..%00",
        "..%0d%0a",
        "%uff0e%uff0e",
        "..%20",
        "%20..",
        "...",
    ]
    slashes = [
        "/",
        "%2f",
        "%2F",
        "\\",
        "%5c",
        "%5C",
        "//",
        "/./",
        "%252f",
        "%c0%af",
        "%c1%9c",
        "/css/../",
        "\\/",
        "%2f%2f",
        ";/",
        "?/",
    ]
    goals = [
        "secret.txt", "secret", "public2.txt", "publicsibling/secret.txt", "etc/passwd", "etc/passwd.txt", "etc/hosts%00.css",
        "secret.txt%00.css", "secret.txt%00", "secret.txt/.", "secret.txt?.css", "secret.txt%23.css", "proc/self/environ",
    ]  # fmt: skip
    starts = [
        "/",
        "/css/",
        "//",
        "/css//",
        "/out/",
        "/sibling/",
        "/./",
        "/css/app.css/",
        "/%2f",
        "\\",
        "/nothing/",
        "/.git/",
    ]
    chance = random.Random(8)
    payloads: dict[str, None] = {}
    while len(payloads) < count:
        climb = "".join(chance.choice(ups) + chance.choice(slashes) for _ in range(chance.randint(1, 9)))
        payloads[chance.choice(starts) + climb + chance.choice(goals)] = None
    return list(payloads)


def fixed_payloads(root: Path) -> list[str]:
    """Return those that are known by name."""
    up = "../" * 12
    return [
        f"/{up}etc/passwd", f"/css/{up}etc/passwd", f"{root.parent}/secret.txt", f"/{root.parent}/secret.txt",
        f"//{root.parent}/secret.txt", f"file://{root.parent}/secret.txt", "/../secret.txt", "/..%2fsecret.txt",
        "/..%5csecret.txt", "/css/..%2f..%2fsecret.txt", "/%2e%2e/secret.txt", "/.%2e/secret.txt", "/..\\secret.txt",
        "/css/app.css/../../../secret.txt", "/link.txt", "/chain.txt", "/relative.txt", "/out/secret.txt",
        "/out/../secret.txt", "/sibling/secret.txt", "/sibling/../secret.txt", "/out/public/../secret.txt",
        "/out/public/link.txt", "/self.txt", "/passwd.txt", "/../publicsibling/secret.txt", "/../public2.txt",
        "/css/%00/../../secret.txt", "/secret.txt%00.css", "/..%00/secret.txt", "/%2e%2e%2fsecret.txt",
        "/....//....//secret.txt", "/..;/secret.txt", "/%252e%252e%252fsecret.txt", "/..%c0%afsecret.txt",
        "/%c0%ae%c0%ae/secret.txt", "/css/../../secret.txt", "/./../secret.txt", "/../public/../secret.txt", "..", "/..",
        "/../", "*", "", "../secret.txt", "secret.txt", "/\ud800.txt", "/secret.txt\x00", "/\u2025/secret.txt",
        "/css/..", "/%2e%2e", "/%2e%2e/", "/.../secret.txt", "/ ../secret.txt", "/.. /secret.txt", "/~root/secret.txt",
    ]  # fmt: skip


def test_no_traversal_payload_leaves_the_folder(root: Path) -> None:
    """More than 500 attempts, over two settings and two methods: no byte of a secret, and every one is answered."""
    payloads = fixed_payloads(root) + traversal_payloads(600)
    assert len(set(payloads)) > 640
    benches = [make_bench(root), make_bench(root, serve_dotfiles=True, serve_php=True, calculate_etag=True)]
    refused = 0
    for number, payload in enumerate(payloads):
        for bench in benches:
            for accepted in ((), ((b"Accept-Encoding", b"gzip"),)):
                client = bench.exchange(make_request(payload, "GET" if number % 7 else "HEAD", accepted))
                assert client.finished
                assert SECRET not in client.body, payload
                assert b"root:" not in client.body, payload
                assert client.status in (403, 404) or client.body in (CSS, b""), payload
                refused += client.status == 403
    assert refused > 500


def test_refused_paths_are_told_so(root: Path) -> None:
    """Plain attempts are refused at once, as in RoadRunner, and never reach a worker."""
    for target in (
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..\\secret.txt",
        "/a.css%00",
        "/css/..",
    ):
        bench = make_bench(root)
        client = bench.exchange(make_request(target))
        assert (client.status, bench.requests) == (403, [])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.sampled_from("./%2ef5cCE0\\;a~ \x00ü"), max_size=24))
def test_no_path_decodes_to_one_that_climbs(text: str) -> None:
    """Whatever is decoded has no empty part, no `.`, no `..`, no NUL and no way to begin at the root."""
    relative = decode_path("/" + text)
    if isinstance(relative, bytes):
        parts = relative.split(b"/")
        assert not {b"", b".", b".."} & set(parts)
        assert b"\0" not in relative
        assert b"\\" not in relative
    else:
        assert isinstance(relative, PathProblem)


def test_a_file_that_is_replaced_by_a_link_is_not_served(root: Path, tmp_path: Path) -> None:
    """What was a file a moment ago and is a link outside now is judged by what was opened."""
    bench = make_bench(root)
    assert bench.exchange(make_request("/css/app.css")).body == CSS
    (root / "css" / "app.css").unlink()
    (root / "css" / "app.css").symlink_to(tmp_path / "secret.txt")
    assert is_workers(bench.exchange(make_request("/css/app.css")))
    (root / "css").rename(root / "old")
    (root / "css").symlink_to(tmp_path / "publicsibling")
    assert is_workers(bench.exchange(make_request("/css/secret.txt")))


def test_the_folder_may_be_a_link_to_the_newest_release(tmp_path: Path) -> None:
    """After a switch the new files are served, without a restart."""
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "a.txt").write_text(release)
    current = tmp_path / "current"
    current.symlink_to("one")
    bench = make_bench(current)
    assert bench.exchange(make_request("/a.txt")).body == b"one"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(current)
    assert bench.exchange(make_request("/a.txt")).body == b"two"


def test_links_may_lead_to_named_folders(root: Path, tmp_path: Path) -> None:
    """As Laravel's public/storage does: below the folder that was named, and nowhere else."""
    storage = tmp_path / "storage" / "app" / "public"
    storage.mkdir(parents=True)
    (storage / "image.png").write_bytes(b"png")
    (storage / "link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "storage" / "app" / "secret.txt").write_bytes(SECRET)
    (root / "storage").symlink_to(storage)
    assert is_workers(get(root, "/storage/image.png"))
    allowed = {"links_to": (str(storage),)}
    assert get(root, "/storage/image.png", **allowed).body == b"png"
    assert get(root, "/css/app.css", **allowed).body == CSS
    for target in ("/storage/link.txt", "/link.txt", "/out/secret.txt", "/out/storage/app/secret.txt"):
        assert is_workers(get(root, target, **allowed))
    assert get(root, "/storage/../secret.txt", **allowed).status == 403


def test_open_by_path_touches_nothing_outside(root: Path, tmp_path: Path) -> None:
    """A path outside, a FIFO or a folder is not even opened for reading."""
    folder = Folder(str(root))
    for path in (
        tmp_path / "secret.txt",
        root / "fifo.txt",
        root / "css",
        root / "link.txt",
        root / "nothing.txt",
    ):
        assert folder.open_absolute(os.fsencode(path)) is None
    assert folder.open_absolute(b"/etc/\0") is None
    opened = folder.open_absolute(os.fsencode(root / "css" / "app.css"))
    assert opened is not None
    assert os.pread(opened.fd, 100, 0) == CSS
    os.close(opened.fd)


def test_running_out_of_descriptors_is_no_miss(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's 404 would be a lie; the client is told to come again."""
    import errno

    bench = make_bench(root)

    def no_more(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", no_more)
    client = bench.exchange(make_request("/css/app.css"))
    monkeypatch.undo()
    assert client.failure is not None
    assert (client.failure.status, client.failure.retry_after, bench.requests) == (503, 1, [])


def test_names() -> None:
    """Extensions as RoadRunner takes them: the last one, in lower case."""
    names = FileNames(StaticConfig(dir="."))
    for name, extension in (
        ("a/b.CSS", ".css"),
        ("jquery.min.js", ".js"),
        ("x.tar.gz", ".gz"),
        (".well-known/a.txt", ".txt"),
    ):
        assert names.extension(name.encode()) == extension
    for name in (
        "a",
        "a.",
        ".a",
        "a/.b/c.css",
        "b/.well-known/a.txt",
        "x.php.js",
        "x.php7",
        "X.PhP5",
        "x.phps",
        "x.pht",
    ):
        assert names.extension(name.encode()) is None


@pytest.mark.parametrize(
    "name",
    [
        ".php",
        ".PHP",
        ".php.bak",
        ".phtml~",
        ".a.php",
        ".git/a.php",
        ".a/.php.txt",
        "..php",
        "a.php",
        "a.PHP.bak",
    ],
)
def test_hidden_php_is_php(name: str) -> None:
    """Whoever lets hidden files be served has not asked for PHP sources; who asks for both gets them."""
    assert FileNames(StaticConfig(dir=".", serve_dotfiles=True)).extension(name.encode()) is None
    both = FileNames(StaticConfig(dir=".", serve_dotfiles=True, serve_php=True))
    assert both.extension(name.encode()) is not None


def test_types_do_not_depend_on_the_machine() -> None:
    """Browsers refuse modules and styles of the wrong type."""
    kinds = {
        ".js": b"text/javascript; charset=utf-8",
        ".mjs": b"text/javascript; charset=utf-8",
        ".wasm": b"application/wasm",
        ".svg": b"image/svg+xml",
        ".woff2": b"font/woff2",
        ".json": b"application/json",
        ".unknown": b"application/octet-stream",
    }
    assert {extension: content_type(extension) for extension in kinds} == kinds


def test_what_cannot_be_set_up(root: Path) -> None:
    """A missing section, a missing folder, a header that cannot be: one sentence each."""
    services = make_bench(root).services
    for static, words in (
        (None, "http.static"),
        (StaticConfig(dir=str(root / "nothing")), "is not a folder"),
        (StaticConfig(dir=str(root), response={"a b": "c"}), "no header name"),
    ):
        with pytest.raises(MiddlewareError, match=words):
            make_static(HttpConfig(address=(":0",), static=static), services)
