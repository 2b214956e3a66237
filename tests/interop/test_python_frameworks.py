"""Flask, Starlette, FastAPI and Django behind `trailboss serve --wsgi` and `--asgi`, looked at as a browser does.

Each framework's application has the same routes (tests/interop/programs/*_site.py), so the same tests hold for all.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import unquote, urlencode

import pytest

from .live import PROGRAMS, WAIT_SECONDS, Live, free_port, live, wait_for

LARGE = bytes(range(256)) * 12_000  # 3 MB: more than one frame and more than any pipe

#: name -> (flag, target, package that must be there)
SITES = {
    "flask": ("--wsgi", "flask_site", ("flask",)),
    "django-wsgi": ("--wsgi", "django_site:wsgi", ("django",)),
    "django-asgi": ("--asgi", "django_site:asgi", ("django",)),
    "starlette": (
        "--asgi",
        "starlette_site:app",
        ("starlette", "fastapi", "python_multipart", "itsdangerous"),
    ),
}


class Answer:
    """What the client got."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        try:
            self.body = response.read()
        finally:
            response.close()

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> object:
        """The body as JSON."""
        return json.loads(self.body)


class Browser:
    """A client that keeps its connection and its cookies."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        self.cookies: dict[str, str] = {}

    def begin(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Send a request and return the answer as soon as its head is there."""
        sent = dict(headers or {})
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.connection.request(method, path, body, sent)
        response = self.connection.getresponse()
        for line in response.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
        return response

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and read the whole answer."""
        return Answer(self.begin(method, path, body, headers))

    def post_form(self, path: str, fields: list[tuple[str, str]], **headers: str) -> Answer:
        """Send a form as browsers do."""
        sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        return self.ask(path, "POST", urlencode(fields).encode(), sent)

    def upload(self, path: str, name: str, content: bytes, note: str) -> Answer:
        """Send a file and a field as browsers do."""
        boundary = b"----trailboss-test"
        parts = [
            b'Content-Disposition: form-data; name="note"\r\n\r\n' + note.encode(),
            b'Content-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" + content,
        ]
        body = (
            b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
            + b"--"
            + boundary
            + b"--\r\n"
        )
        return self.ask(
            path, "POST", body, {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
        )

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class Site:
    """A running application."""

    def __init__(self, name: str, server: Live, port: int, files: Path) -> None:
        self.name = name
        self.server = server
        self.port = port
        self.files = files
        self._log = server.folder / "server.log"

    @property
    def log(self) -> str:
        """The server's log so far, with what the workers wrote to standard error."""
        return self._log.read_text()


@contextmanager
def running(
    name: str, folder: Path, flag: str, target: str, *more: str, packages: tuple[str, ...] = ()
) -> Iterator[Site]:
    """Serve a site with two workers from files of its own."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} from PyPI")
    files = folder / "files"
    files.mkdir()
    (files / "style.css").write_text("body { color: teal }\n")
    (files / "large.bin").write_bytes(LARGE)
    environment = {"SITE_FILES": str(files)}
    if target.startswith("django"):
        made = subprocess.run(
            [sys.executable, str(PROGRAMS / "django_site.py")],
            env={**os.environ, **environment},
            timeout=60,
            capture_output=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
    port = free_port()
    words = (
        *("serve", flag, target, "--chdir", str(PROGRAMS), "--bind", f"127.0.0.1:{port}", "--workers", "2"),
        *("-o", f"rpc.listen=unix://{folder}/rpc.sock", "-o", f"logs.output={folder}/server.log", *more),
    )
    with live(folder, f"unix://{folder}/rpc.sock", *words, env=environment) as server:
        yield Site(name, server, port, files)


@pytest.fixture(scope="module", params=list(SITES))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One of the sites, for all tests of this module."""
    flag, target, packages = SITES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with running(request.param, folder, flag, target, packages=packages) as started:
        yield started


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    """A client without cookies."""
    client = Browser(site.port)
    yield client
    client.close()


def test_a_page(browser: Browser) -> None:
    """A page has its text and its length; the query is decoded."""
    for _ in range(5):
        answer = browser.ask("/?name=J%C3%BCrgen+B")
        assert (answer.status, answer.text.partition(",")[0]) == (200, "hello Jürgen B")
        assert answer.headers["Content-Length"] == str(len(answer.body))


def test_the_head_of_a_page(browser: Browser) -> None:
    """HEAD has the headers of GET and no body; the connection goes on."""
    answer = browser.ask("/", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert browser.ask("/").status == 200


def test_a_page_that_is_not_there(browser: Browser) -> None:
    """404 is the framework's own."""
    assert browser.ask("/no/such/page").status == 404


def test_a_form(browser: Browser) -> None:
    """Fields arrive in order, repeated ones too, whatever characters they have."""
    answer = browser.post_form("/form", [("a", "1"), ("b[]", "x y&z"), ("b[]", "ü€"), ("empty", "")])
    fields = answer.json["fields"]  # type: ignore[index]
    assert fields == {"a": ["1"], "b[]": ["x y&z", "ü€"], "empty": [""]}


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_an_upload(browser: Browser, size: int) -> None:
    """A file arrives byte for byte, beside a field."""
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    answer = browser.upload("/upload", "naïve.bin", content, "a note")
    assert answer.status == 200, answer.text
    assert answer.json == {
        "name": "naïve.bin",
        "sha": hashlib.sha256(content).hexdigest(),
        "size": size,
        "note": "a note",
    }


def test_json_both_ways(browser: Browser) -> None:
    """A JSON document comes back as it was."""
    value = {"text": "ü€😀", "list": [1, 2.5, None], "nested": {"a": True}}
    answer = browser.ask("/json", "POST", json.dumps(value).encode(), {"Content-Type": "application/json"})
    assert answer.json == value


def test_a_chunked_body(site: Site) -> None:
    """A body without a length arrives whole."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=WAIT_SECONDS)
    pieces = [b'{"a":', b'"' + b"x" * 100_000, b'"}']
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/json", iter(pieces), headers, encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == {"a": "x" * 100_000}
    connection.close()


def test_a_session(browser: Browser, site: Site) -> None:
    """A cookie carries the session from one worker to the other; another browser has one of its own."""
    seen = [browser.ask("/count", "POST").json for _ in range(6)]
    assert [answer["count"] for answer in seen] == [1, 2, 3, 4, 5, 6]  # type: ignore[index]
    other = Browser(site.port)
    assert other.ask("/count", "POST").json["count"] == 1  # type: ignore[index]
    other.close()


def test_a_stream(browser: Browser, site: Site) -> None:
    """The first part is here before the second was made."""
    go = site.files / "go"
    go.unlink(missing_ok=True)
    response = browser.begin("GET", "/stream?name=me")
    assert response.readline() == b"first for me\n"
    assert response.headers["Content-Length"] is None
    go.touch()
    assert response.read() == b"second\n"


def test_a_file(browser: Browser) -> None:
    """A file of some megabytes arrives whole, with its length."""
    answer = browser.ask("/file")
    assert answer.headers["Content-Length"] == str(len(LARGE))
    assert answer.body == LARGE


def test_an_exception(browser: Browser, site: Site) -> None:
    """The client gets 500, the log the traceback, and the workers are those they were."""
    assert browser.ask("/raise").status == 500
    wait_for(lambda: "on purpose" in site.log, "the traceback in the log")
    assert browser.ask("/").status == 200


@pytest.mark.parametrize("site", ["flask", "django-wsgi", "django-asgi"], indirect=True)
def test_an_exception_in_the_middle(site: Site) -> None:
    """An answer that broke off looks broken off, and the server goes on."""
    _see_it_break_off(site)


def _see_it_break_off(site: Site) -> None:
    browser = Browser(site.port)
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        browser.ask("/raise-late")
    browser.close()
    browser = Browser(site.port)
    assert browser.ask("/").status == 200
    browser.close()


def test_where_the_request_went(browser: Browser, site: Site) -> None:
    """Host, scheme, address and an encoded path are what the client sent."""
    answer = browser.ask("/where/a%20b/%C3%BC?x=%26")
    seen = answer.json
    assert isinstance(seen, dict)
    assert unquote(seen.pop("url")) == f"http://127.0.0.1:{site.port}/where/a b/ü?x=&"
    assert seen == {
        "rest": "a b/ü",
        "remote": "127.0.0.1",
        "scheme": "http",
    }


@pytest.mark.parametrize("site", ["flask", "starlette"], indirect=True)
def test_a_static_file(browser: Browser, site: Site) -> None:
    """The framework's own static files, with conditional requests."""
    answer = browser.ask("/static/style.css")
    assert (answer.status, answer.text) == (200, "body { color: teal }\n")
    assert answer.headers["Content-Type"].startswith("text/css")
    again = browser.ask("/static/style.css", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert browser.ask("/static/style.css").status == 200


@pytest.mark.parametrize("site", ["starlette"], indirect=True)
def test_middleware_and_lifespan(browser: Browser, site: Site) -> None:
    """State of the startup reaches requests; middleware around the application works."""
    answer = browser.ask("/")
    assert answer.text == "hello nobody, pool open"
    assert answer.headers["X-Stamp"] == "stamped"
    assert (site.files / "site.log").read_text().count("startup") >= 2


@pytest.mark.parametrize("site", ["starlette"], indirect=True)
def test_a_client_that_leaves_ends_the_events(site: Site) -> None:
    """Server-sent events stop, and their generator is closed, when the client goes."""
    log = site.files / "site.log"
    before = log.read_text().count("events closed")
    browser = Browser(site.port)
    response = browser.begin("GET", "/events")
    assert response.readline() == b"data: 0\n"
    response.close()
    browser.close()
    wait_for(lambda: log.read_text().count("events closed") == before + 1, "the generator closed")


@pytest.mark.parametrize("site", ["django-wsgi", "django-asgi"], indirect=True)
def test_the_admin(browser: Browser) -> None:
    """Log in to Django's admin, look at the users, add one, log out: cookies, CSRF, forms, redirects."""
    answer = browser.ask("/admin/")
    assert answer.status == 302
    login = answer.headers["Location"]
    token = _csrf_token(browser.ask(login).text)
    fields = [
        ("csrfmiddlewaretoken", token),
        ("username", "admin"),
        ("password", "wrong"),
        ("next", "/admin/"),
    ]
    assert "Please enter the correct username" in browser.post_form(login, fields).text
    fields[2] = ("password", "secret")
    answer = browser.post_form(login, fields)
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/")
    page = browser.ask("/admin/").text
    assert "Site administration" in page

    token = _csrf_token(browser.ask("/admin/auth/user/add/").text)
    name = f"user{time.monotonic_ns()}"
    new = [
        ("username", name),
        ("usable_password", "true"),
        ("password1", "a8b3Xq-71"),
        ("password2", "a8b3Xq-71"),
    ]
    answer = browser.post_form("/admin/auth/user/add/", [("csrfmiddlewaretoken", token), *new])
    assert answer.status == 302, answer.text
    assert name in browser.ask("/admin/auth/user/").text

    token = _csrf_token(browser.ask("/admin/").text)
    assert browser.post_form("/admin/logout/", [("csrfmiddlewaretoken", token)]).status == 200
    assert browser.ask("/admin/").status == 302


def _csrf_token(page: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert found is not None, page
    return found[1]


@pytest.mark.parametrize(("flag", "target"), [("--wsgi", "django_site:wsgi"), ("--asgi", "django_site:asgi")])
def test_the_admins_static_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, target: str
) -> None:
    """Django's handler for static files, as in development."""
    monkeypatch.setenv("SITE_DEBUG", "1")
    with running("django", tmp_path, flag, target, packages=("django",)) as site:
        browser = Browser(site.port)
        answer = browser.ask("/static/admin/css/base.css")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css")
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert b"--primary" in answer.body
        browser.close()


def test_a_new_django_project(tmp_path: Path) -> None:
    """What startproject makes is served by one flag; its static files come from the server, without a worker."""
    if importlib.util.find_spec("django") is None:
        pytest.skip("needs django from PyPI")
    settings = tmp_path / "myproject" / "settings.py"

    def manage(*words: str) -> None:
        made = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "DJANGO_SUPERUSER_PASSWORD": "secret"},
            timeout=60,
            capture_output=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr

    manage("-m", "django", "startproject", "myproject", ".")
    settings.write_text(settings.read_text() + 'STATIC_ROOT = BASE_DIR / "public" / "static"\n')
    manage("manage.py", "migrate", "--verbosity", "0")
    manage("manage.py", "collectstatic", "--noinput", "--verbosity", "0")
    manage("manage.py", "createsuperuser", "--noinput", "--username", "admin", "--email", "a@example.org")
    static = ("-o", "http.middleware=static", "-o", "http.static.dir=public")
    with running("new", tmp_path, "--wsgi", "myproject.wsgi", "--chdir", str(tmp_path), *static) as site:
        browser = Browser(site.port)
        login = browser.ask("/admin/").headers["Location"]
        page = browser.ask(login).text
        style = re.search(r'href="(/static/admin/css/base[^"]*)"', page)
        assert style is not None
        answer = browser.ask(style[1])
        assert (answer.status, answer.body) == (200, (tmp_path / "public" / style[1][1:]).read_bytes())
        fields = [("csrfmiddlewaretoken", _csrf_token(page)), ("username", "admin"), ("password", "secret")]
        answer = browser.post_form(login, [*fields, ("next", "/admin/")])
        assert (answer.status, answer.headers["Location"]) == (302, "/admin/")
        assert "Site administration" in browser.ask("/admin/").text
        browser.close()


def test_fastapi(tmp_path: Path) -> None:
    """Parameters, models, validation, dependencies, threads, uploads, background tasks, exceptions."""
    packages = ("fastapi", "python_multipart", "itsdangerous")
    with running("fastapi", tmp_path, "--asgi", "starlette_site:api", packages=packages) as site:
        browser = Browser(site.port)
        answer = browser.ask("/items/7?q=x", headers={"X-Tenant": "me"})
        assert answer.json == {"item": 7, "q": "x", "tenant": "me"}
        assert browser.ask("/items/seven").status == 422
        assert browser.ask("/sync").json == {"thread": True}
        item = json.dumps({"name": "tea", "price": 2}).encode()
        answer = browser.ask("/items", "POST", item, {"Content-Type": "application/json"})
        assert answer.json == {"name": "tea", "price": 2.0}
        log = site.files / "site.log"
        wait_for(lambda: "created tea" in log.read_text(), "the background task")
        assert browser.upload("/upload", "a.bin", b"abc", "n").json["size"] == 3  # type: ignore[index]
        assert browser.ask("/openapi.json").json["info"]["title"] == "FastAPI"  # type: ignore[index]
        assert browser.ask("/raise").status == 500
        wait_for(lambda: "fastapi on purpose" in site.log, "the traceback in the log")
        browser.close()
        _see_it_break_off(site)
    # The worker whose answer broke off was replaced; the other one ended in order.
    assert "shutdown" in log.read_text()


def test_a_factory_on_a_socket_file(tmp_path: Path) -> None:
    """--factory, and an application behind a unix socket."""
    path = tmp_path / "http.sock"
    with (
        running(
            "flask",
            tmp_path,
            "--wsgi",
            "flask_site:create_app",
            "--factory",
            "--bind",
            f"unix:{path}",
            packages=("flask",),
        ),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(WAIT_SECONDS)
        client.connect(str(path))
        client.sendall(b"GET /?name=file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            assert answer.read().endswith(b"\r\n\r\nhello file")


@pytest.mark.parametrize(("flag", "target"), [("--wsgi", "wsgi_app"), ("--asgi", "asgi_app")])
def test_no_request_is_lost(tmp_path: Path, flag: str, target: str) -> None:
    """Under load, workers that retire after 50 requests and three resets cost no client anything."""
    examples = Path(__file__).resolve().parent.parent.parent / "examples" / "python"
    words = ("--chdir", str(examples), "-o", "http.pool.max_jobs=50", "-o", "logs.level=warn")
    seen: Counter[int] = Counter()
    over = threading.Event()
    with running("example", tmp_path, flag, target, *words) as site:

        def ask_on() -> None:
            browser = Browser(site.port)
            while not over.is_set():
                seen[browser.ask("/").status] += 1
            browser.close()

        with ThreadPoolExecutor(4) as clients:
            futures = [clients.submit(ask_on) for _ in range(4)]
            try:
                with site.server.rpc() as client:
                    for count in (200, 400, 600):
                        wait_for(lambda count=count: seen.total() >= count, f"{count} answers")  # type: ignore[misc]
                        assert client.call("resetter.Reset", "http") is True
                wait_for(lambda: seen.total() >= 1000, "1000 answers")
            finally:
                over.set()
            for future in futures:
                future.result(WAIT_SECONDS)
        assert "worker died" not in site.log
    assert seen.keys() == {200}


def test_an_import_error_is_the_start_error(tmp_path: Path) -> None:
    """The start fails with exit code 1 and the traceback of the application."""
    (tmp_path / "broken.py").write_text("import a_module_that_nobody_has\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trailboss", "serve", "--wsgi", "broken", "--workers", "2"),
            *("--bind", f"127.0.0.1:{free_port()}", "-o", f"rpc.listen=unix://{tmp_path}/rpc.sock"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in done.stderr + done.stdout


FAILING = {
    "flask": "import flask\napp = flask.Flask('a')\n@app.get('/')\ndef view():\n    raise LookupError('<b>lost</b>')\n",
    "fastapi": "import fastapi\napp = fastapi.FastAPI()\n@app.get('/')\ndef view():\n    raise LookupError('<b>lost</b>')\n",
    "starlette": (
        "from starlette.applications import Starlette\nfrom starlette.routing import Route\n"
        "async def view(request):\n    raise LookupError('<b>lost</b>')\napp = Starlette(routes=[Route('/', view)])\n"
    ),
}


@pytest.mark.parametrize("framework", FAILING)
def test_errors_in_the_browser(tmp_path: Path, framework: str) -> None:
    """With --dev an error that the framework would keep to itself is shown with the view it was raised in."""
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}")
    (tmp_path / "failing.py").write_text(FAILING[framework])
    port = free_port()
    words = ("serve", "--wsgi" if framework == "flask" else "--asgi", "failing:app", "--dev")
    with live(tmp_path, "", *words, "--bind", f"127.0.0.1:{port}", "-o", "rpc.enabled=false") as server:
        server.application_fails = True
        browser = Browser(port)
        answer = browser.ask("/")
        browser.close()
        assert answer.status == 500
        assert "<h1>LookupError: &lt;b&gt;lost&lt;/b&gt;</h1>" in answer.text
        assert "failing.py<span>, line" in answer.text
        assert "in</span> view" in answer.text
