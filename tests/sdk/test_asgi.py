"""The ASGI gateway as a process of its own, talked to as the server does."""

from __future__ import annotations

import base64
import json
import pathlib
import signal
import time

import pytest

from trailboss_worker.protocol.control import encode_pid
from trailboss_worker.protocol.frames import ERROR, JSON, PROTO, STREAM
from trailboss_worker.protocol.payload import encode_payload, split_payload

from ..support.http_dialogue import STOP_FRAME, ask, read_answer, request

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
HOST = "http://example.org:8080"
DEADLINE_SECONDS = 20.0


@pytest.fixture
def app_log(tmp_path):
    """Where the applications write what only they can know."""
    path = tmp_path / "app.log"
    path.touch()
    return path


@pytest.fixture
def launch(serve_command, app_log):
    """Start a gateway for one application of the test module."""

    def launch(target="asgi_apps:paths", *options, relay="pipes"):
        words = ("asgi", target, "--chdir", str(PROGRAMS), *options)
        return serve_command(*words, relay=relay, APP_LOG=str(app_log))

    return launch


@pytest.fixture
def start(launch):
    """The same, hands shaken."""

    def start(*words, **more):
        worker = launch(*words, **more)
        worker.shake_hands()
        return worker

    return start


def wait_log(path, text):
    """The log of the application, once it is this."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while path.read_text() != text:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.002)


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


@pytest.mark.parametrize("relay", ["pipes", "unix", "tcp"])
def test_requests_and_answers(start, relay):
    """An answer that is complete at once is one frame; the next request follows; a stop ends it all."""
    worker = start(relay=relay)
    for _ in range(3):
        worker.send(request(f"{HOST}/hello"))
        frame = worker.frame()
        assert (frame.flags, frame.stream) == (JSON, 0)
        context, body = split_payload(frame)
        assert json.loads(context) == {"status": 200, "headers": {"content-type": ["text/plain"]}}
        assert body == b"hello"
    assert ask(worker, f"{HOST}/large").body == bytes(3_000_000)
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    assert worker.stderr() == ""


@pytest.mark.parametrize("dialect", [JSON, PROTO])
def test_the_scope(start, app_log, dialect):
    """Everything of the HTTP scope is there, bytes where bytes belong; then the body, then the disconnect."""
    worker = start("asgi_apps:show")
    answer = ask(
        worker,
        f"{HOST}/a%20b/%C3%BC%2F?q=1%2F2&r",
        method="POST",
        body=b"name=value",
        headers={"Content-Type": [b"a/b"], "X-Text": ["grüß".encode(), b"2"]},
        attributes={"trace": [b"abc"]},
        dialect=dialect,
    )
    seen = json.loads(answer.body)
    assert seen["event"] == {"type": "http.request", "body": b64("name=value"), "more_body": False}
    headers = sorted(seen["scope"].pop("headers"))
    assert headers == sorted(
        [
            [b64("host"), b64("example.org:8080")],
            [b64("content-type"), b64("a/b")],
            [b64("x-text"), b64("grüß")],
            [b64("x-text"), b64("2")],
        ]
    )
    assert seen["scope"] == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/a b/ü/",
        "raw_path": b64("/a%20b/%C3%BC%2F"),
        "query_string": b64("q=1%2F2&r"),
        "root_path": "",
        "client": ["192.0.2.7", 0],
        "server": ["example.org", 8080],
        "state": {},
        "extensions": {
            "http.response.early_hint": {},
            "http.response.pathsend": {},
            "http.response.trailers": {},
            "trailboss.attributes": {"trace": "abc"},
        },
    }
    wait_log(app_log, "http.disconnect\n")


@pytest.mark.parametrize("path", ["/shop/cart", "/cart"])
def test_an_application_below_a_prefix(start, path):
    """--root-path is root_path and part of the path, whether the proxy in front left it there or not."""
    worker = start("asgi_apps:show", "--root-path", "/shop")
    scope = json.loads(ask(worker, f"{HOST}{path}").body)["scope"]
    assert (scope["root_path"], scope["path"]) == ("/shop", "/shop/cart")


def test_shapes_of_answers(start):
    """Parts are sent as they come; pairs of headers may be lists, bodies any bytes."""
    worker = start()
    assert ask(worker, f"{HOST}/chunks").parts == [b"one", b"two", b"three"]
    for _ in range(2):
        answer = ask(worker, f"{HOST}/lists")
        assert (answer.headers, answer.body) == ({"set-cookie": ["a=1", "b=2"]}, b"listed")
    answer = ask(worker, f"{HOST}/many")
    assert answer.body == b"".join(b"%d," % number for number in range(40))
    assert 1 <= answer.pings <= 7


def test_a_part_is_sent_before_the_next_is_made(start, app_log):
    """The first part is here while the application still waits for something before the second."""
    worker = start()
    worker.send(request(f"{HOST}/slow"))
    frame = worker.frame()
    assert (frame.stream & STREAM, split_payload(frame)[1]) == (STREAM, b"one")
    pathlib.Path(f"{app_log}.go").touch()
    assert read_answer(worker).parts == [b"two"]


def test_a_large_answer_comes_in_parts_with_its_length(start):
    """Nobody has to hold all of it."""
    answer = ask(start(), f"{HOST}/large")
    assert answer.header("content-length") == "3000000"
    assert max(map(len, answer.parts)) == 256 * 1024


def test_a_server_that_does_not_read_slows_the_application(start, app_log):
    """`send` waits until the pipe has taken the data, so that nothing piles up in the worker."""
    worker = start()
    worker.send(request(f"{HOST}/flood"))
    frame = worker.frame()
    assert len(split_payload(frame)[1]) == 256 * 1024
    worker.is_silent(0.2)
    assert app_log.read_text().count("sent") < 5
    assert len(read_answer(worker).body) == 40_000_000 - 256 * 1024


@pytest.mark.parametrize("relay", ["pipes", "unix"])
def test_a_client_that_goes_is_noticed_by_sending(start, app_log, relay):
    """After a STOP send raises an OSError, receive says http.disconnect, and nothing of it is in the log."""
    worker = start(relay=relay)
    worker.send(request(f"{HOST}/endless"))
    for _ in range(3):
        worker.frame()
    worker.send(STOP_FRAME)
    answer = read_answer(worker)
    assert (answer.flags[-1], answer.parts[-1]) == (0, b"")
    wait_log(app_log, "send raised ClientGone: http.disconnect\n")
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert ask(worker, f"{HOST}/chunks").body == b"onetwothree"
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""


def test_a_client_that_goes_is_noticed_by_listening(start, app_log):
    """receive() returns http.disconnect at once, with nothing sent and no ping."""
    worker = start()
    worker.send(request(f"{HOST}/listen"))
    assert split_payload(worker.frame())[1] == b"begun"
    worker.send(STOP_FRAME)
    assert read_answer(worker).parts == [b""]
    wait_log(app_log, "http.disconnect\n")
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_background_tasks_go_on_beside_the_next_request(start, app_log):
    """What follows the answer holds up neither the next request nor is it cut off at the end."""
    worker = start()
    assert ask(worker, f"{HOST}/background").body == b"done"
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert app_log.read_text() == ""
    worker.send_stop()
    pathlib.Path(f"{app_log}.go").touch()
    assert worker.exit_code() == 0
    assert app_log.read_text() == "background done\n"


@pytest.mark.parametrize("way", ["timer", "thread", "descriptor", "executor"])
def test_an_idle_worker_hears_of_everything_else(start, app_log, way):
    """Between two requests timers, threads, descriptors and executors of the application are served as ever."""
    worker = start()
    for _ in range(3):
        assert ask(worker, f"{HOST}/hello").body == b"hello"
    assert ask(worker, f"{HOST}/later/{way}").body == b"answered"
    pathlib.Path(f"{app_log}.go").touch()
    wait_log(app_log, f"{way}\n")
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0


def test_early_hints(start):
    """They are an interim answer before the real one."""
    answer = ask(start(), f"{HOST}/hint")
    assert answer.informed == [(103, {"Link": ["</a.css>; rel=preload", "</b.js>; rel=preload"]})]
    assert (answer.status, answer.body) == (200, b"hinted")


def test_trailers(start):
    """Trailers are headers that the header Trailer names; they wait for the end of the body."""
    answer = ask(start(), f"{HOST}/trailers")
    assert answer.parts == [b"ab"]
    assert answer.headers == {
        "content-type": ["text/plain"],
        "trailer": ["x-sum, x-more"],
        "x-sum": ["2"],
        "x-more": ["3"],
    }


def test_announced_trailers(start):
    """Where the header Trailer is there from the beginning the body need not wait; they go with the last frame."""
    answer = ask(start(), f"{HOST}/announced-trailers")
    assert answer.parts == [b"a", b"b", b""]
    assert answer.headers == {"trailer": ["x-sum"]}
    assert answer.last_headers == {"x-sum": ["2"]}


def test_sending_a_path(start):
    """A file is sent by its name: in large parts with its length, a small one at once."""
    worker = start()
    answer = ask(worker, f"{HOST}/path")
    assert (answer.header("content-length"), answer.body) == ("700000", b"y" * 700_000)
    assert ask(worker, f"{HOST}/small-path").parts == [b"y" * 70]


@pytest.mark.parametrize("path", ["/raise", "/raise-started"])
def test_an_exception_is_a_500(start, path):
    """The client gets 500, standard error the traceback, and the worker lives on."""
    worker = start()
    answer = ask(worker, f"{HOST}{path}")
    assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    text = worker.wait_stderr("ValueError: on purpose")
    assert text.startswith(f"GET {path} failed:\nTraceback (most recent call last):\n")
    assert "trailboss_worker" not in text
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_a_cancelled_application_is_a_500(start):
    """CancelledError out of an application is its failure, not the worker's end."""
    worker = start()
    assert ask(worker, f"{HOST}/cancel").status == 500
    worker.wait_stderr("CancelledError")
    assert ask(worker, f"{HOST}/hello").body == b"hello"


@pytest.mark.parametrize(
    ("path", "text"), [("/raise-late", "in the middle"), ("/return-late", "returned before its answer")]
)
def test_half_an_answer_is_cut(start, path, text):
    """Once a part is out the server is told by an ERROR frame to cut the answer, not to end it."""
    worker = start()
    worker.send(request(f"{HOST}{path}"))
    worker.frame()
    frame = worker.frame()
    assert frame.flags == ERROR
    assert b"in the middle of an answer" in frame.payload
    worker.wait_stderr(text)
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_no_answer_is_a_500(start):
    """An application that returns without an answer is told so in the log."""
    worker = start()
    assert ask(worker, f"{HOST}/return").status == 500
    worker.wait_stderr("GET /return: the application returned before its answer was complete")


def test_an_exception_after_the_answer_is_logged(start):
    """The client has its answer; the log has the rest."""
    worker = start()
    assert ask(worker, f"{HOST}/raise-after").body == b"fine"
    worker.wait_stderr("GET /raise-after failed after its answer:")
    assert ask(worker, f"{HOST}/hello").body == b"hello"


def test_each_request_has_context_variables_of_its_own(start):
    """Nothing set by one request is seen by the next."""
    worker = start()
    assert [ask(worker, f"{HOST}/variable").body for _ in range(3)] == [b"unset"] * 3


def test_an_application_runs_in_a_task_from_its_first_step(start):
    """The current task is there at once and stays the same; timeouts work before and after the first wait."""
    worker = start()
    for _ in range(2):
        assert ask(worker, f"{HOST}/task").body == b"one task, timed out twice"


def test_sys_exit_ends_the_worker(start):
    """What is no Exception ends the process without an answer."""
    worker = start()
    worker.send(request(f"{HOST}/exit"))
    assert worker.exit_code() == 7


@pytest.mark.parametrize(
    "wrong",
    [
        "twice",
        "no-start",
        "unknown",
        "websocket",
        "line-break",
        "status",
        "text",
        "hint",
        "trailers",
        "no-file",
    ],
)
def test_wrong_events_are_a_500(start, wrong):
    """What is no answer never reaches the server; the log says what it was."""
    worker = start("asgi_apps:wrong")
    assert ask(worker, f"{HOST}/?{wrong}").status == 500
    worker.wait_stderr("Error: ")


def test_events_after_the_answer_are_refused(start):
    """The answer stays as it was."""
    worker = start("asgi_apps:wrong")
    assert ask(worker, f"{HOST}/?after").body == b"x"
    worker.wait_stderr("RuntimeError: http.response.body after the answer was complete")


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
    worker = start("asgi_apps:show")
    for size in (1, 7, 16, 17, 100, 1000):
        data = request(f"{HOST}/cut/{size}", method="POST", body=b"b" * 300)
        for begin in range(0, len(data), size):
            worker.send(data[begin : begin + size])
        assert json.loads(read_answer(worker).body)["scope"]["path"] == f"/cut/{size}"
        assert ask(worker, f"{HOST}/whole/{size}").status == 200


def test_a_handshake_between_requests(start):
    """It may come at any time, also together with a request."""
    worker = start()
    assert worker.shake_hands() == worker.process.pid
    worker.send(encode_pid(1) + request(f"{HOST}/hello"))
    assert worker.frame().flags & 1
    assert read_answer(worker).body == b"hello"


# Lifespan


def test_startup_comes_before_the_handshake(launch, app_log):
    """A worker that says it is ready has started; its state is in every scope; shutdown follows the last request."""
    worker = launch("asgi_apps:living")
    wait_log(app_log, "started\n")
    assert worker.is_silent(0.1)
    worker.shake_hands()
    for _ in range(2):  # each request has a copy
        assert json.loads(ask(worker, f"{HOST}/").body) == {"pool": "open"}
    worker.send_stop()
    assert worker.exit_code() == 0
    assert app_log.read_text() == "started\nstopped\n"


def test_shutdown_follows_a_signal(start, app_log):
    """SIGTERM ends the worker after the request at hand, by way of shutdown."""
    worker = start("asgi_apps:living")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert app_log.read_text() == "started\nstopped\n"


def test_shutdown_follows_the_end_of_the_server(start, app_log):
    """A server that is gone is an end like any other."""
    worker = start("asgi_apps:living")
    worker.close_relay()
    assert worker.exit_code() == 0
    assert app_log.read_text() == "started\nstopped\n"


def test_sigterm_lets_the_request_finish(start, app_log):
    """A signal in the middle of a request ends the worker after its answer."""
    worker = start()
    worker.send(request(f"{HOST}/slow"))
    assert split_payload(worker.frame())[1] == b"one"
    worker.signal(signal.SIGTERM)
    pathlib.Path(f"{app_log}.go").touch()
    assert read_answer(worker).parts == [b"two"]
    assert worker.exit_code() == 0


def test_a_startup_that_fails_is_the_start_error(launch):
    """The application's own message is on standard error, once, before any handshake; exit code 1."""
    worker = launch("asgi_apps:refusing")
    assert worker.exit_code() == 1
    assert worker.stderr() == ("trailboss-worker: asgi_apps:refusing did not start: the database is down\n")
    assert worker.rest() == b""


def test_a_shutdown_that_fails_is_said(start):
    """It is in the log; the end is in order all the same."""
    worker = start("asgi_apps:failing_stop")
    worker.send_stop()
    assert worker.exit_code() == 0
    assert "the application's shutdown failed: the database is down" in worker.stderr()


def test_an_application_without_lifespan(start, launch):
    """It is served all the same, unless lifespan was asked for."""
    assert ask(start("asgi_apps:paths"), f"{HOST}/hello").body == b"hello"
    worker = launch("asgi_apps:paths", "--lifespan", "on")
    assert worker.exit_code() == 1
    assert "NotImplementedError: no lifespan here" in worker.stderr()


def test_lifespan_can_be_switched_off(start, app_log):
    """Then the application never hears of it."""
    worker = start("asgi_apps:living", "--lifespan=off")
    assert json.loads(ask(worker, f"{HOST}/").body) == {}
    worker.send_stop()
    assert worker.exit_code() == 0
    assert app_log.read_text() == ""


def test_a_lifespan_that_crashes_later_is_said(start):
    """Requests are answered all the same."""
    worker = start("asgi_apps:crashing")
    worker.wait_stderr("RuntimeError: lifespan crashed")
    assert ask(worker, f"{HOST}/hello").body == b"hello"
    worker.send_stop()
    assert worker.exit_code() == 0


def test_a_factory_runs_inside_the_loop(start):
    """As it does in other servers."""
    assert ask(start("asgi_apps:make", "--factory"), f"{HOST}/hello").body == b"hello"


def test_wrong_usage(serve_command):
    """A lifespan mode that does not exist is refused with exit code 2."""
    worker = serve_command("asgi", "asgi_apps", "--lifespan", "maybe")
    assert worker.exit_code() == 2
    assert "--lifespan is auto, on or off" in worker.stderr()
