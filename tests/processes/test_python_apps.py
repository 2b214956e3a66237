"""`trailboss serve --wsgi` and `--asgi` from outside: large bodies, start errors, reloading, error pages."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..interop.live import WAIT_SECONDS, Live, free_port, live, run_trailboss, wait_for

PROGRAMS = Path(__file__).resolve().parent / "programs"
MEGABYTE = 1 << 20


@contextmanager
def serving(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[tuple[Live, int]]:
    """A server of an application, and its port."""
    port = free_port()
    words = ("serve", *arguments, "--bind", f"127.0.0.1:{port}", "-o", "rpc.enabled=false")
    with live(folder, "", *words, env=env) as server:
        server.application_fails = True
        yield server, port


def ask(port: int, path: str = "/", body: object = None, length: int = 0) -> tuple[int, bytes]:
    """Status and body of the answer to a request; `body` may be an iterable of `length` bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        headers = {"Content-Length": str(length)} if length else {}
        connection.request("GET" if body is None else "POST", path, body, headers)  # type: ignore[arg-type]
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask_with(port: int, headers: dict[str, str], path: str = "/") -> object:
    """The JSON that a GET with these headers is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def peak_kilobytes(pid: int) -> int:
    """The most memory a process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_huge_upload_costs_no_memory(tmp_path: Path, kind: str) -> None:
    """300 MB reach the application whole, and neither the server nor the worker ever holds them; nothing stays."""
    block = os.urandom(MEGABYTE)
    count = 300
    digest = hashlib.md5()
    for _ in range(count):
        digest.update(block)
    words = (f"--{kind}", f"python_apps:digest_{kind}", "--chdir", str(PROGRAMS), "--workers", "1")
    with serving(tmp_path, *words, "-o", f"http.uploads.dir={tmp_path}") as (server, port):
        small = json.loads(ask(port, body=b"abc")[1])
        before = peak_kilobytes(server.process.pid)
        status, text = ask(port, body=(block for _ in range(count)), length=count * MEGABYTE)
        assert status == 200, server.stderr
        large = json.loads(text)
        assert large["size"] == large["announced"] == count * MEGABYTE
        assert large["digest"] == digest.hexdigest()
        assert large["peak"] - small["peak"] < 4096
        assert peak_kilobytes(server.process.pid) - before < 16 * 1024
        assert sorted(os.listdir(tmp_path)) == ["stderr", "stdout"]


BROKEN = """
def deep():
    import a_module_that_nobody_has


deep()
"""


def start_broken(folder: Path, *more: str, file: bool = False) -> subprocess.CompletedProcess[str]:
    """Try to serve an application that cannot be imported with three workers, by flags or from a file."""
    (folder / "broken.py").write_text(BROKEN)
    bind = f"127.0.0.1:{free_port()}"
    if not file:
        words = ("--wsgi", "broken", "--workers", "3", "--bind", bind, "-o", "rpc.enabled=false")
        return run_trailboss(folder, "serve", *words, *more)
    (folder / ".rr.yaml").write_text(
        'version: "3"\nrpc: {enabled: false}\nserver: {command: trailboss-worker wsgi broken}\n'
        f"http: {{address: '{bind}', pool: {{num_workers: 3}}}}\n"
    )
    return run_trailboss(folder, "serve", *more)


@pytest.mark.parametrize("file", [False, True], ids=["flags", "file"])
def test_an_import_error_is_said_once(tmp_path: Path, file: bool) -> None:
    """The traceback of an application that cannot be imported is in the log once, whatever the number of workers."""
    done = start_broken(tmp_path, file=file)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1, done.stderr
    assert done.stderr.count("import a_module_that_nobody_has") == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("exit code 1: ModuleNotFoundError: No module named 'a_module_that_nobody_has'"), last


def test_an_import_error_where_the_log_is_elsewhere(tmp_path: Path) -> None:
    """Who does not see the log gets the traceback with the start error, readable, once."""
    done = start_broken(tmp_path, "-o", "logs.output=server.log,")
    assert done.returncode == 1
    first, *rest = done.stderr.strip().splitlines()
    assert "3 workers ready" in first
    assert rest[0] == "trailboss-worker: cannot load the application broken:"
    assert rest[1] == "Traceback (most recent call last):"
    assert rest[-1] == "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"
    assert (tmp_path / "server.log").read_text().count("Traceback (most recent call last)") == 1


# --- development --------------------------------------------------------------------------------------------------


class Editor:
    """Changes files as somebody does who works on them: never twice within the resolution of compiled files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._times = int(time.time()) - 1000

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text(text)
        self._times += 10
        os.utime(beside, (self._times, self._times))
        beside.rename(path)


SHOWING = """
import helper

def app(environ, start_response):
    start_response("200 OK", [])
    return [helper.TEXT]
"""


def test_a_change_reaches_the_browser(tmp_path: Path) -> None:
    """A changed file brings new workers; a broken one leaves the old ones and says why; ignored ones change nothing."""
    editor = Editor(tmp_path)
    editor.write("site.d/app.py", SHOWING)
    editor.write("site.d/helper.py", "TEXT = b'one'\n")
    editor.write("site.d/node_modules/a.py", "")
    folder = tmp_path / "site.d"
    words = ("--wsgi", "app:app", "--chdir", str(folder), "--workers", "2", "--reload")
    with serving(tmp_path, *words) as (server, port):
        wait_for(lambda: "watching for changes" in server.stderr, "the watch")
        assert ask(port) == (200, b"one")

        editor.write("site.d/node_modules/a.py", "X = 1\n")
        editor.write("site.d/notes.txt", "nothing\n")
        editor.write("site.d/helper.py", "TEXT = b'two'\n")
        wait_for(
            lambda: server.stderr.count("\treloaded\t") == 1,
            server.stderr,
        )
        assert {ask(port) for _ in range(4)} == {(200, b"two")}

        editor.write("site.d/helper.py", "TEXT = = b'three'\n")
        wait_for(lambda: "not reloaded: the old workers go on" in server.stderr, server.stderr)
        assert {ask(port) for _ in range(4)} == {(200, b"two")}
        assert server.stderr.count("SyntaxError: invalid syntax\t") == 1

        editor.write("site.d/helper.py", "from later.part import TEXT\n")
        editor.write("site.d/later/part.py", "TEXT = b'four'\n")
        wait_for(lambda: ask(port) == (200, b"four"), server.stderr)
        wait_for(lambda: server.stderr.count("\treloaded\t") >= 2, server.stderr)
        seen = server.stderr.count("\treloading\t")
        editor.write("site.d/later/part.py", "TEXT = b'five'\n")
        wait_for(
            lambda: ask(port) == (200, b"five"), f"a change in a folder that is new ({seen}): {server.stderr}"
        )
        assert "node_modules" not in server.stderr
        assert "notes.txt" not in server.stderr


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_errors_in_the_browser(tmp_path: Path, kind: str) -> None:
    """With --dev an error is a page with the place it was raised at, everything escaped; a warning says so."""
    words = (f"--{kind}", f"python_apps:failing_{kind}", "--chdir", str(PROGRAMS))
    with serving(tmp_path, *words, "--dev") as (server, port):
        for path in ("/", "/late" if kind == "wsgi" else "/framework"):
            status, page = ask(port, f"{path}?<script>alert(1)</script>")
            assert status == 500
            text = page.decode()
            assert "<h1>ValueError: &lt;script&gt;alert(1)&lt;/script&gt;</h1>" in text
            assert "<script>" not in text
            assert "python_apps.py<span>, line " in text
            assert f"in</span> failing_{kind}" in text
            assert "<mark>" in text
        if kind == "asgi":
            assert ask(port, "/handled") == (500, b"the framework's own page")
        assert "DEVELOPMENT MODE" in server.stderr
        assert server.stderr.count("worker ready") == 1


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_no_errors_in_the_browser_unasked(tmp_path: Path, kind: str) -> None:
    """Without --dev the client learns nothing, whatever the environment says."""
    words = (f"--{kind}", f"python_apps:failing_{kind}", "--chdir", str(PROGRAMS), "--workers", "1")
    with serving(tmp_path, *words, env={"TRAILBOSS_DEV": "1"}) as (server, port):
        assert ask(port, "/?secret") == (500, b"Internal Server Error\n")
        assert "DEVELOPMENT MODE" not in server.stderr


@pytest.mark.php
def test_errors_of_php_in_the_browser(tmp_path: Path) -> None:
    """With --dev the text of a failing script and the death of a dying one are shown, escaped."""
    if shutil.which("php") is None:
        pytest.skip("needs php-cli")
    worker = Path(__file__).resolve().parent.parent / "php" / "http_worker.php"
    port = free_port()
    (tmp_path / ".rr.yaml").write_text(
        f'version: "3"\nrpc: {{enabled: false}}\nserver: {{command: [php, "{worker}"]}}\n'
        f"http: {{address: '127.0.0.1:{port}', raw_body: true}}\n"
    )
    with live(tmp_path, "", "serve", "--dev") as server:
        status, page = ask(port, "/error?<i>")
        assert status == 500, server.stderr
        assert "<h1>500: worker error</h1>" in page.decode()
        assert "<pre>the application said no</pre>" in page.decode()
        assert "<i>" not in page.decode()
        status, page = ask(port, "/die", b"x", 1)
        assert status == 502, server.stderr
        assert "<h1>502: worker died</h1>" in page.decode()


def test_a_websocket_is_refused(tmp_path: Path) -> None:
    """An ASGI application never sees the opening of a websocket; the client learns why; the connection goes on."""
    words = ("--asgi", "python_apps:digest_asgi", "--chdir", str(PROGRAMS), "--workers", "1")
    with serving(tmp_path, *words) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        opening = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}
        connection.request("GET", "/ws", headers={**opening, "Sec-WebSocket-Version": "13"})
        response = connection.getresponse()
        assert response.status == 501
        assert response.headers["trailboss-reason"] == "websockets are not available"
        assert response.read() == b"websockets are not available\n"
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
        connection.close()


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "10.0.0.0/8"], ids=["trusted", "not trusted"])
def test_behind_a_proxy(tmp_path: Path, kind: str, trusted: str) -> None:
    """Address and scheme are the client's where the proxy is trusted, else the peer's; the prefix is the mount point."""
    port = free_port()
    command = f"trailboss-worker {kind} python_apps:origin_{kind} --chdir {PROGRAMS} --root-path /shop"
    (tmp_path / ".rr.yaml").write_text(
        f'version: "3"\nrpc: {{enabled: false}}\nserver: {{command: "{command}"}}\n'
        f"http: {{address: '127.0.0.1:{port}', middleware: [proxy_ip_parser], trusted_subnets: ['{trusted}'], "
        "pool: {num_workers: 1}}\n"
    )
    said = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Host": "shop.example.org"}
    believed = ["203.0.113.9", "https"] if trusted.startswith("127.") else ["127.0.0.1", "http"]
    path = "/a" if kind == "wsgi" else "/shop/a"
    with live(tmp_path, "", "serve"):
        assert ask_with(port, said, "/shop/a") == [*believed, "shop.example.org", "/shop", path]


def test_a_large_body_goes_to_another_worker(tmp_path: Path) -> None:
    """A GET whose worker died while it read its body from a file is given to another one, with all of the body."""
    body = os.urandom(3 * MEGABYTE)
    words = ("--wsgi", "python_apps:dying_wsgi", "--chdir", str(PROGRAMS), "--workers", "2")
    with serving(tmp_path, *words, env={"MARKER": str(tmp_path / "died")}) as (server, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        connection.request("GET", "/", body)
        response = connection.getresponse()
        said = json.loads(response.read())
        connection.close()
        assert said["size"] == len(body)
        assert said["digest"] == hashlib.md5(body).hexdigest()
        assert server.stderr.count("worker died") == 1
