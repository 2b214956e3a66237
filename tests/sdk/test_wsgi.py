"""The WSGI gateway as a process of its own, talked to as the server does."""

from __future__ import annotations

import hashlib
import json
import pathlib
import signal
import threading

import pytest

from trailboss_worker.protocol.control import encode_pid
from trailboss_worker.protocol.frames import ERROR, JSON, PROTO, STREAM
from trailboss_worker.protocol.payload import encode_payload, split_payload
from trailboss_worker.sdk.http import split_authority, split_uri, unquote

from ..support.http_dialogue import STOP_FRAME, ask, read_answer, request

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
HOST = "http://example.org:8080"


@pytest.fixture
def app_log(tmp_path):
    """Where the applications write what only they can know."""
    path = tmp_path / "app.log"
    path.touch()
    return path


@pytest.fixture
def start(serve_command, app_log):
    """Start a gateway for one application of the test module, hands shaken."""

    def start(target="wsgi_apps:paths", *options, relay="pipes", **environment):
        worker = serve_command(
            *("wsgi", target, "--chdir", str(PROGRAMS), *options),
            relay=relay,
            APP_LOG=str(app_log),
            **environment,
        )
        worker.shake_hands()
        return worker

    return start


def shown(worker, uri=f"{HOST}/", **more):
    """The environ that the application saw."""
    answer = ask(worker, uri, **more)
    assert answer.status == 200, worker.stderr()
    return json.loads(answer.body)


def test_a_request_and_its_answer(start):
    """A list of one chunk is one frame with status, headers and body; the next request follows."""
    worker = start()
    for _ in range(3):
        worker.send(request(f"{HOST}/hello"))
        frame = worker.frame()
        assert frame.flags == JSON
        assert frame.stream == 0
        context, body = split_payload(frame)
        assert json.loads(context) == {"status": 200, "headers": {"Content-Type": ["text/plain"]}}
        assert body == b"hello"
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    assert worker.stderr() == ""


@pytest.mark.parametrize("relay", ["pipes", "unix", "tcp"])
def test_every_relay(start, relay):
    """Answers whole and in parts travel over every relay."""
    worker = start(relay=relay)
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert ask(worker, f"{HOST}/many").body == b"".join(b"%d," % number for number in range(40))
    assert ask(worker, f"{HOST}/large").body == bytes(3_000_000)


def test_the_environ(start):
    """Every key of PEP 3333 is there and says what was asked."""
    seen = shown(
        start("wsgi_apps:show"),
        f"{HOST}/a%20b/%C3%BC?q=1%2F2&r",
        method="POST",
        body=b"name=value",
        headers={
            "Content-Type": [b"application/x-www-form-urlencoded"],
            "Content-Length": [b"10"],
            "Accept": [b"text/html", b"*/*"],
            "Cookie": [b"a=1", b"b=2"],
            "X-Request-Id": [b"7"],
            "Proxy": [b"http://evil.example"],
        },
    )
    assert seen == {
        "REQUEST_METHOD": "POST",
        "REQUEST_URI": "/a%20b/%C3%BC?q=1%2F2&r",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/ü".encode().decode("latin-1"),
        "QUERY_STRING": "q=1%2F2&r",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": "10",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "Trailboss",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "example.org:8080",
        "HTTP_ACCEPT": "text/html, */*",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_REQUEST_ID": "7",
        "wsgi.version": [1, 0],
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "input": "name=value",
        "attributes": None,
    }


def test_one_environ_does_not_leak_into_the_next(start):
    """What one request brought is gone with it, whatever it was made from."""
    worker = start("wsgi_apps:show")
    shown(worker, method="POST", body=b"x", headers={"X-Secret": [b"1"], "Content-Type": [b"text/plain"]})
    seen = shown(worker)
    assert {"HTTP_X_SECRET", "CONTENT_TYPE", "CONTENT_LENGTH"} & seen.keys() == set()
    assert seen["input"] == ""


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://example.org/", ("https", "example.org", "443", "example.org", "/")),
        ("http://example.org", ("http", "example.org", "80", "example.org", "/")),
        ("http://[::1]:81/x", ("http", "::1", "81", "[::1]:81", "/x")),
        ("http://[::1]/x", ("http", "::1", "80", "[::1]", "/x")),
        ("http://h//a//b", ("http", "h", "80", "h", "//a//b")),
        ("http://h/%zz%4", ("http", "h", "80", "h", "/%zz%4")),
    ],
)
def test_where_the_request_went(start, uri, expected):
    """Scheme, host, port and path come from the URI, whatever its shape."""
    seen = shown(start("wsgi_apps:show"), uri)
    keys = ("wsgi.url_scheme", "SERVER_NAME", "SERVER_PORT", "HTTP_HOST", "PATH_INFO")
    assert tuple(seen[key] for key in keys) == expected


def test_options_for_the_server_as_a_whole(start):
    """`OPTIONS *` has the path `*`."""
    assert shown(start("wsgi_apps:show"), "http://h*", method="OPTIONS")["PATH_INFO"] == "*"


def test_text_beyond_ascii_comes_as_bytes(start):
    """Headers, path and query that are UTF-8 are texts whose characters are those bytes, in both dialects."""
    worker = start("wsgi_apps:show")
    for dialect in (JSON, PROTO):
        seen = shown(
            worker, "http://h/ü?ü", headers={"X-Text": ["grüß".encode()]}, dialect=dialect, raw_query="ü"
        )
        assert seen["HTTP_X_TEXT"].encode("latin-1") == "grüß".encode()
        assert seen["PATH_INFO"].encode("latin-1") == "/ü".encode()
        assert seen["QUERY_STRING"].encode("latin-1") == "ü".encode()


def test_attributes_are_passed_on(start):
    """What middleware of the server attached is in `trailboss.attributes`."""
    seen = shown(start("wsgi_apps:show"), attributes={"trace": [b"abc"]})
    assert seen["attributes"] == {"trace": "abc"}


@pytest.mark.parametrize("path", ["/shop/cart", "/cart"])
def test_an_application_below_a_prefix(start, path):
    """--root-path is SCRIPT_NAME, and not in PATH_INFO whether the proxy in front left it in the path or not."""
    seen = shown(start("wsgi_apps:show", "--root-path", "/shop"), f"{HOST}{path}")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/shop", "/cart")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_environ_is_valid(start, method):
    """wsgiref's validator finds nothing to complain about."""
    worker = start("wsgi_apps:validated")
    answer = ask(worker, f"{HOST}/p%20q?x", method=method, body=b"body", headers={"Content-Type": [b"a/b"]})
    assert answer.status == 200, worker.stderr()
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


@pytest.mark.parametrize(
    "path", ["/hello", "/several", "/chunks", "/many", "/measured", "/nothing", "/write"]
)
def test_the_protocol_is_kept(start, path):
    """wsgiref's validator sees every iterable used and closed as the standard says."""
    worker = start("wsgi_apps:validated_paths")
    assert ask(worker, f"{HOST}{path}").status == 200, worker.stderr()
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


def test_shapes_of_answers(start, app_log):
    """Lists and tuples are one frame; other iterables one frame a chunk, empty ones left out, and are closed."""
    worker = start()
    assert ask(worker, f"{HOST}/several").parts == [b"abc"]
    assert (ask(worker, f"{HOST}/empty").status, ask(worker, f"{HOST}/empty").parts) == (204, [b""])
    assert ask(worker, f"{HOST}/nothing").parts == [b""]
    assert ask(worker, f"{HOST}/chunks").parts == [b"one", b"two", b"three", b""]
    assert ask(worker, f"{HOST}/write").parts == [b"written ", b"and returned", b""]
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert app_log.read_text() == "chunks closed\nchunks closed\n"


def test_a_chunk_as_long_as_announced_is_the_whole_answer(start, app_log):
    """What frameworks give, an iterable of one chunk with Content-Length, travels as one frame."""
    worker = start()
    assert ask(worker, f"{HOST}/measured").parts == [b"12345"]
    assert ask(worker, f"{HOST}/too-much").parts == [b"12345"]
    assert ask(worker, f"{HOST}/too-much-in-parts").parts == [b"123", b"45", b""]
    ask(worker, f"{HOST}/hello")
    assert app_log.read_text() == "measured closed\ntoo much closed\nparts closed\n"


def test_odd_types_are_taken(start):
    """Subclasses of str and bytes, lists as pairs and any iterable of them: other servers take them, too."""
    worker = start()
    for _ in range(2):
        answer = ask(worker, f"{HOST}/odd")
        assert (answer.status, answer.headers, answer.body) == (200, {"X-A": ["a", "b"]}, b"odd")


def test_a_chunk_is_sent_before_the_next_is_made(start, app_log):
    """The first chunk is here while the application still waits for something before the second."""
    worker = start()
    worker.send(request(f"{HOST}/slow"))
    frame = worker.frame()
    assert (frame.stream & STREAM, split_payload(frame)[1]) == (STREAM, b"one")
    pathlib.Path(f"{app_log}.go").touch()
    assert read_answer(worker).parts == [b"two", b""]


def test_streams_ping_on_pipes(start):
    """A long stream asks every fifth frame whether anybody still listens, unless the last question is open still."""
    answer = ask(start(), f"{HOST}/many")
    assert answer.body == b"".join(b"%d," % number for number in range(40))
    assert 1 <= answer.pings <= 7


@pytest.mark.parametrize("relay", ["pipes", "unix"])
def test_a_client_that_goes_ends_the_stream(start, app_log, relay):
    """After a STOP the iterable is closed, one empty frame ends the answer, and the worker takes the next request."""
    worker = start(relay=relay)
    worker.send(request(f"{HOST}/endless"))
    for _ in range(3):
        worker.frame()
    worker.send(STOP_FRAME)
    answer = read_answer(worker)
    assert (answer.flags[-1], answer.parts[-1]) == (0, b"")
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert app_log.read_text() == "endless closed\n"
    assert worker.stderr() == ""


@pytest.mark.parametrize("path", ["/large", "/large-given"])
def test_a_large_answer_comes_in_parts_with_its_length(start, path):
    """Nobody has to hold all of a large answer; its length is announced once."""
    answer = ask(start(), f"{HOST}{path}")
    assert answer.body == bytes(3_000_000)
    assert max(map(len, answer.parts)) == 256 * 1024
    assert answer.header("content-length") == "3000000"


def test_the_head_of_a_large_answer(start):
    """HEAD gets the length without the parts."""
    answer = ask(start(), f"{HOST}/large", method="HEAD")
    assert (answer.header("content-length"), answer.parts) == ("3000000", [b""])


def test_the_file_wrapper(start):
    """A file is sent in large parts, whatever block size was asked for, and closed."""
    answer = ask(start(), f"{HOST}/file")
    assert [len(part) for part in answer.parts] == [262144, 262144, 175712, 0]


def test_an_exception_is_a_500(start):
    """The client gets 500, standard error the traceback, and the worker lives on."""
    worker = start()
    answer = ask(worker, f"{HOST}/raise")
    assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    text = worker.wait_stderr("ValueError: on purpose")
    assert text.startswith("GET /raise failed:\nTraceback (most recent call last):\n")
    assert "trailboss_worker" not in text
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_an_exception_before_the_first_chunk_is_a_500(start, app_log):
    """Until something was sent start_response can be taken back; the iterable is closed."""
    worker = start()
    assert ask(worker, f"{HOST}/raise-before-chunk").status == 500
    worker.wait_stderr("ZeroDivisionError")
    assert ask(worker, f"{HOST}/hello").status == 200
    assert app_log.read_text() == "raising closed\n"


def test_an_exception_in_the_middle_cuts_the_answer(start):
    """Once a part is out the server is told by an ERROR frame to cut the answer, not to end it."""
    worker = start()
    worker.send(request(f"{HOST}/raise-late"))
    assert split_payload(worker.frame())[1] == b"first"
    frame = worker.frame()
    assert (frame.flags, frame.payload) == (ERROR, b"RuntimeError in the middle of an answer")
    worker.wait_stderr("RuntimeError: in the middle")
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_start_response_with_exc_info(start):
    """With exc_info the head is replaced while it can be, and the exception raised when it cannot."""
    worker = start()
    answer = ask(worker, f"{HOST}/replace")
    assert (answer.status, answer.header("x-replaced"), answer.body) == (404, "yes", b"replaced")
    worker.send(request(f"{HOST}/replace-late"))
    assert split_payload(worker.frame())[1] == b"out"
    assert worker.frame().flags == ERROR
    worker.wait_stderr("LookupError: too late")


def test_start_response_twice_is_refused(start):
    """A second call without exc_info is an error of the application."""
    worker = start()
    assert ask(worker, f"{HOST}/twice").status == 500
    worker.wait_stderr("AssertionError: start_response was called before")


def test_a_close_that_raises_is_logged(start):
    """The answer is out by then and stays as it is."""
    worker = start()
    assert ask(worker, f"{HOST}/close-raises").body == b"fine"
    worker.wait_stderr("GET /close-raises: close() failed after the answer:")
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_sys_exit_ends_the_worker(start):
    """What is no Exception ends the process without an answer; the server deals with that."""
    worker = start()
    worker.send(request(f"{HOST}/exit"))
    assert worker.exit_code() == 7


def test_what_is_said_goes_to_standard_error(start):
    """wsgi.errors and print end up in the server's log, not in the answer."""
    worker = start()
    assert ask(worker, f"{HOST}/errors").body == b"said"
    assert worker.wait_stderr("printed") == "a word to the log\nand more\nprinted\n"


@pytest.mark.parametrize("dialect", [JSON, PROTO])
def test_headers_of_answers(start, dialect):
    """Repeated ones are kept apart, those about the connection left out, bytes sent as they are; in both dialects."""
    worker = start()
    for _ in range(2):  # made, and remembered
        answer = ask(worker, f"{HOST}/headers", dialect=dialect)
        assert answer.flags == [dialect]
        headers = {"Set-Cookie": ["a=1", "b=2"], "X-Text": ["grüß"], "X-Utf8": ["grüß"]}
        assert answer.headers == headers


@pytest.mark.parametrize(
    "wrong",
    [
        *("status", "status-number", "status-range", "line-break", "zero", "name", "empty-name"),
        *("bytes", "beyond", "triple", "number", "dict", "none"),
    ],
)
def test_a_wrong_head_is_a_500(start, wrong):
    """What HTTP cannot carry never reaches the server; the log says what it was."""
    worker = start("wsgi_apps:wrong")
    assert ask(worker, f"{HOST}/?{wrong}").status == 500
    worker.wait_stderr("Error: ")


@pytest.mark.parametrize("how", ["list", "several", "generator", "none"])
def test_text_as_a_body_is_a_500(start, how):
    """An application gives bytes."""
    worker = start("wsgi_apps:wrong_chunk")
    assert ask(worker, f"{HOST}/?{how}").status == 500
    worker.wait_stderr("TypeError")


def test_a_parsed_form_is_refused_with_the_remedy(start):
    """A server that parses forms would leave the framework with an empty one: it is told what to set."""
    worker = start()
    worker.send(request(f"{HOST}/hello", method="POST", body=b"{}", parsed=True))
    frame = worker.frame()
    assert frame.flags == ERROR
    assert b"http.raw_body" in frame.payload
    assert ask(worker, f"{HOST}/hello").body == b"hello"


@pytest.mark.parametrize("context", [b"", b"{", b"[]", b"{}", b'{"uri":1}', b"\xff"])
def test_a_context_that_makes_no_sense(start, context):
    """It is answered with an error frame, and the worker lives on."""
    worker = start()
    worker.send(encode_payload(context, b"body", JSON))
    assert worker.frame().flags == ERROR
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_requests_cut_anywhere(start):
    """The short way and the decoder's way give the same, and one does not disturb the other."""
    worker = start("wsgi_apps:show")
    for size in (1, 7, 16, 17, 100, 1000):
        data = request(f"{HOST}/cut/{size}", method="POST", body=b"b" * 300)
        for begin in range(0, len(data), size):
            worker.send(data[begin : begin + size])
        assert json.loads(read_answer(worker).body)["PATH_INFO"] == f"/cut/{size}"
        assert shown(worker, f"{HOST}/whole/{size}")["PATH_INFO"] == f"/whole/{size}"


def test_a_handshake_between_requests(start):
    """It may come at any time."""
    worker = start()
    for _ in range(3):
        assert ask(worker, f"{HOST}/hello").body == b"hello"
        assert worker.shake_hands() == worker.process.pid


@pytest.mark.parametrize("relay", ["pipes", "unix"])
def test_large_bodies(start, relay):
    """Bodies of some megabytes are there whole, in whatever pieces they come, and small ones in between."""
    worker = start("wsgi_apps:measure", relay=relay)
    for size in (262_000, 262_200, 3_000_000):
        body = bytes(range(256)) * (size // 256) + b"end"
        data = request(f"{HOST}/", method="POST", body=body)
        sender = threading.Thread(target=worker.send, args=(data,))
        sender.start()
        seen = json.loads(read_answer(worker).body)
        sender.join()
        assert seen == [str(len(body)), hashlib.sha256(body).hexdigest()]
        assert json.loads(ask(worker, method="POST", body=b"small").body)[0] == "5"


def test_a_large_body_in_odd_pieces(start):
    """Its frame may begin in the middle of anything."""
    worker = start("wsgi_apps:measure")
    body = b"x" * 300_000
    for first in (1, 11, 15, 16, 17, 60, 200, 70_000):
        data = encode_pid(1) + request(f"{HOST}/", method="POST", body=body)
        worker.send(data[:first])
        worker.is_silent(0.01)
        sender = threading.Thread(target=worker.send, args=(data[first:],))
        sender.start()
        assert worker.frame().flags & 1
        assert json.loads(read_answer(worker).body)[0] == "300000"
        sender.join()
        worker.send(request(f"{HOST}/", method="POST", body=body)[:first])
        worker.is_silent(0.01)
        worker.send(request(f"{HOST}/", method="POST", body=body)[first:])
        assert json.loads(read_answer(worker).body)[0] == "300000"


def test_the_server_dies_in_the_middle_of_a_large_body(start):
    """The worker ends, with exit code 0 and nothing to say."""
    worker = start("wsgi_apps:measure")
    worker.send(request(f"{HOST}/", method="POST", body=b"x" * 300_000)[:100_000])
    worker.close_relay()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


def test_sigterm_lets_the_request_finish(start, app_log):
    """A signal in the middle of a request ends the worker after its answer."""
    worker = start()
    worker.send(request(f"{HOST}/slow"))
    assert split_payload(worker.frame())[1] == b"one"
    worker.signal(signal.SIGTERM)
    pathlib.Path(f"{app_log}.go").touch()
    assert read_answer(worker).parts == [b"two", b""]
    assert worker.exit_code() == 0


def test_sigterm_while_idle(start):
    """A waiting worker leaves at once, with exit code 0."""
    worker = start()
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["broken_import:app"], "RuntimeError: this module is broken"),
        (["no_such_module"], "ModuleNotFoundError: No module named 'no_such_module'"),
        (["wsgi_apps:nothing"], "has no 'nothing'"),
        (["broken_syntax"], "SyntaxError"),
        (["wsgi_apps:not_callable"], "wsgi_apps:not_callable is no application but int"),
        (["wsgi_apps:not_callable", "--factory"], "wsgi_apps:not_callable is no factory but int"),
        (["handlers"], "has neither 'application' nor 'app'; name the application: handlers:NAME"),
    ],
)
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_an_application_that_cannot_be_loaded(serve_command, tmp_path, kind, words, text):
    """The reason is on standard error, once, before the handshake; exit code 1."""
    (tmp_path / "broken_syntax.py").write_text("def broken(:\n")
    worker = serve_command(kind, *words, "--chdir", str(PROGRAMS), "--pythonpath", str(tmp_path))
    assert worker.exit_code() == 1
    stderr = worker.stderr()
    assert stderr.count(text) == 1
    assert f"trailboss-worker: cannot load the application {words[0]}:\n" in stderr
    assert "trailboss_worker/" not in stderr
    assert "importlib" not in stderr
    assert worker.rest() == b""


@pytest.mark.parametrize(
    "words", [["wsgi_apps"], ["wsgi_apps:Factory.make", "--factory"], ["--factory", "wsgi_apps:Factory.make"]]
)
def test_ways_to_name_an_application(start, words):
    """A module alone, an attribute of an attribute, a factory."""
    assert ask(start(*words), f"{HOST}/hello").body == b"hello"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "an application is written MODULE or MODULE:NAME"),
        (["module:"], "an application is written MODULE or MODULE:NAME"),
        (["a", "b"], "one application is enough"),
        (["a", "--chdir"], "--chdir needs a value"),
        (["a", "--root-path=x"], "--root-path begins with a slash"),
        (["a", "--lifespan=on"], "unknown option '--lifespan=on'"),
        (["a", "--nonsense"], "unknown option '--nonsense'"),
    ],
)
def test_wrong_usage(serve_command, words, text):
    """The command line is refused with exit code 2."""
    worker = serve_command("wsgi", *words)
    assert worker.exit_code() == 2
    assert text in worker.stderr()


def test_unquote():
    """Escapes become the characters of their bytes, what is none stays."""
    assert unquote("/a%2Fb%2fc%C3%bc%zz%4%") == "/a/b/c\u00c3\u00bc%zz%4%"
    for number in range(256):
        assert unquote(f"%{number:02x}") == unquote(f"%{number:02X}") == chr(number)


def test_parts_of_a_uri():
    """Odd ones included."""
    assert split_uri("http://h?x/y") == ("http", "h", "/")
    assert split_uri("/only/path?q") == ("http", "", "/only/path")
    assert split_authority("", "http") == ("", "80")
    assert split_authority("h:", "https") == ("h", "443")
