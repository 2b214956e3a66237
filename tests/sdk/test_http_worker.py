"""HttpWorker: requests without a framework, as a process of its own."""

from __future__ import annotations

import json

import pytest

from trailboss_worker.protocol.frames import ERROR, JSON, PROTO
from trailboss_worker.protocol.payload import encode_payload

from ..support.http_dialogue import STOP_FRAME, ask, read_answer, request

HOST = "http://example.org"


@pytest.fixture
def app_log(tmp_path):
    """Where the program writes what only it can know."""
    path = tmp_path / "app.log"
    path.touch()
    return path


@pytest.fixture
def worker(serve_program, app_log):
    """The program, hands shaken."""
    worker = serve_program("http_worker.py", APP_LOG=str(app_log))
    worker.shake_hands()
    return worker


@pytest.mark.parametrize("dialect", [JSON, PROTO])
def test_a_request(worker, dialect):
    """Everything the server says of a request is there, in both dialects, answered in the same."""
    answer = ask(
        worker,
        f"{HOST}:81/show?q=1",
        method="POST",
        body="bödy".encode(),
        headers={"Accept": [b"a", b"b"], "Cookie": [b"c=1", b"d=2"]},
        cookies={"c": [b"1"], "d": [b"2"]},
        attributes={"trace": [b"abc"]},
        dialect=dialect,
    )
    assert answer.flags == [dialect]
    assert answer.headers == {"Content-Type": ["application/json"], "X-Many": ["1", "ü"]}
    assert json.loads(answer.body) == {
        "method": "POST",
        "uri": f"{HOST}:81/show?q=1",
        "scheme": "http",
        "host": "example.org:81",
        "query": "q=1",
        "protocol": "HTTP/1.1",
        "remote_addr": "192.0.2.7",
        "accept": "a, b",
        "missing": None,
        "cookie": "c=1; d=2",
        "cookies": {"c": "1", "d": "2"},
        "attributes": {"trace": "abc"},
        "parsed": False,
        "uploads": {},
        "form": {},
        "body": "bödy",
    }


@pytest.mark.parametrize("dialect", [JSON, PROTO])
def test_a_form_that_the_server_parsed(worker, dialect):
    """Its fields and its files come as trees."""
    uploads = b'{"file":{"name":"a.txt","error":0}}'
    body = b'{"a":{"b":["1","2"]}}'
    answer = ask(
        worker, f"{HOST}/show", method="POST", body=body, parsed=True, uploads=uploads, dialect=dialect
    )
    seen = json.loads(answer.body)
    assert (seen["form"], seen["uploads"]) == (json.loads(body), json.loads(uploads))


def test_streams(worker):
    """Every chunk is a frame, the head goes with the first."""
    answer = ask(worker, f"{HOST}/stream")
    assert (answer.status, answer.headers) == (201, {"X-A": ["b"]})
    assert answer.parts == [b"%d," % number for number in range(12)] + [b""]
    answer = ask(worker, f"{HOST}/stream-nothing")
    assert (answer.status, answer.parts) == (200, [b""])
    assert ask(worker, f"{HOST}/nowhere").status == 404


def test_a_client_that_goes_ends_the_stream(worker, app_log):
    """The iterable is closed and the next request taken."""
    worker.send(request(f"{HOST}/endless"))
    worker.frame()
    worker.send(STOP_FRAME)
    assert read_answer(worker).parts[-1] == b""
    assert ask(worker, f"{HOST}/nowhere").status == 404
    assert app_log.read_text() == "closed\n"


def test_interim_answers(worker):
    """103 comes before the real answer."""
    answer = ask(worker, f"{HOST}/inform")
    assert answer.informed == [(103, {"Link": ["</a.css>"]})]
    assert (answer.status, answer.body) == (204, b"")


def test_an_error(worker):
    """The text goes to the server as an ERROR frame, and the worker lives on."""
    worker.send(request(f"{HOST}/error"))
    frame = worker.frame()
    assert (frame.flags, frame.payload) == (ERROR, b"on purpose")
    assert ask(worker, f"{HOST}/nowhere").status == 404


def test_wrong_answers_are_refused(worker):
    """The program hears of it and may answer otherwise, once."""
    assert ask(worker, f"{HOST}/wrong").body == b"in the end"
    text = worker.wait_stderr("there is no request to answer")
    assert text.count("refused: ") == 4


def test_a_request_that_makes_no_sense(worker):
    """The program never sees it."""
    worker.send(encode_payload(b"nonsense", b"", JSON))
    assert worker.frame().flags == ERROR
    assert ask(worker, f"{HOST}/nowhere").status == 404


def test_the_end(worker):
    """A stop ends the loop; exit code 0."""
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr() == ""
