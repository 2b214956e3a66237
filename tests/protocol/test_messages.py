"""Jobs and HTTP messages, form trees, and the sentences about broken streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.messages import http_pb2
from trailboss_worker.protocol import frames, http_message, jobs_message
from trailboss_worker.protocol.errors import (
    FrameError,
    LocalProtocolError,
    MessageError,
    RemoteProtocolError,
    escaped,
    likely_cause,
)
from trailboss_worker.protocol.http_message import HttpAnswer, HttpRequest
from trailboss_worker.protocol.jobs_message import JobAnswer, JobContext
from trailboss_worker.protocol.payload import split_payload

from .support import BY_NAME, FORM_CASES, SCENARIOS, names, only_frame, raw

# --- jobs --------------------------------------------------------------------------------------------------------


def test_recorded_job_context() -> None:
    """The recorded context is decoded, and encoding its fields gives the same bytes."""
    context, body = split_payload(only_frame(BY_NAME["hand_jobs_request"]))

    expected = JobContext("id-1", "App\\Ping", "memory", {"h": ["v"]}, "test", "unknown", {})
    assert expected == jobs_message.decode_job_context(context)
    assert context == jobs_message.encode_job_context("id-1", "App\\Ping", "memory", {"h": ["v"]}, "test")
    assert body == b'{"v":1}'


@given(
    st.tuples(*[st.text()] * 4),
    st.dictionaries(st.text(), st.lists(st.text())),
    st.text(min_size=1),
    st.integers(0, 2**63 - 1),
)
def test_job_context_round_trip(
    texts: tuple[str, ...], headers: dict[str, list[str]], queue: str, offset: int
) -> None:
    """Whatever the texts are, the context is JSON and says what it was given."""
    job_id, job, driver, pipeline = texts
    context = jobs_message.encode_job_context(
        *(job_id, job, driver, headers, pipeline, queue), offset=offset, topic=queue
    )

    json.loads(context)
    expected = JobContext(job_id, job, driver, headers, pipeline, queue, {"offset": offset, "topic": queue})
    assert expected == jobs_message.decode_job_context(context)


def test_job_context_that_cannot_be_sent() -> None:
    """Half a character would kill a PHP worker: it is refused before it is sent."""
    with pytest.raises(LocalProtocolError):
        jobs_message.encode_job_context("\ud800", "j", "memory", None, "p")


@pytest.mark.parametrize(
    "context",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id":"1"}',
        b'{"id":1,"job":"j"}',
        b'{"id":"1","job":"j","headers":{"a":"b"}}',
        b'{"id":"1","job":"j","headers":[1]}',
    ],
)
def test_malformed_job_context(context: bytes) -> None:
    """A context without id, job or proper headers is refused."""
    with pytest.raises(MessageError):
        jobs_message.decode_job_context(context)


def test_sparse_job_context() -> None:
    """What old servers leave out is unknown; null headers are none."""
    context = b'{"id":"1","job":"j","headers":null,"x":2}'

    assert JobContext(
        "1", "j", "unknown", {}, "unknown", "unknown", {"x": 2}
    ) == jobs_message.decode_job_context(context)


RECORDED_ANSWERS = {
    "php_jobs_resp_success": (JobAnswer("no_error"), jobs_message.encode_job_answer_no_error()),
    "php_jobs_resp_ack": (JobAnswer("ack"), jobs_message.encode_job_answer_ack()),
    "php_jobs_resp_error": (
        JobAnswer("error", "oops", True, 10, {"attempts": ["1"]}),
        jobs_message.encode_job_answer_error("oops", True, 10, {"attempts": ["1"]}),
    ),
    "php_jobs_resp_nack": (JobAnswer("nack", "no"), jobs_message.encode_job_answer_nack("no")),
    "php_jobs_resp_requeue": (
        JobAnswer("requeue", "later", True, 5, {"attempts": ["2"]}),
        jobs_message.encode_job_answer_requeue("later", 5, {"attempts": ["2"]}),
    ),
}


@pytest.mark.parametrize("name", RECORDED_ANSWERS)
def test_recorded_job_answers(name: str) -> None:
    """Recorded answers are understood, and ours are the same bytes."""
    answer, ours = RECORDED_ANSWERS[name]
    _, body = split_payload(only_frame(BY_NAME[name]))

    assert answer == jobs_message.decode_job_answer(body)
    assert body == ours


@pytest.mark.parametrize(
    "body", [*jobs_message.ACK_BODIES, b'{"type": 2, "data": [1], "more": null}', b'{"data":{},"type":0}']
)
def test_acks(body: bytes) -> None:
    """An ack is an ack, known by its bytes or parsed; its data do not matter."""
    expected = "ack" if b"2" in body else "no_error"

    assert JobAnswer(expected) == jobs_message.decode_job_answer(body)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"null",
            b"[]",
            b"{}",
            b"ok",
            b'{"type":"2"}',
            b'{"type":true}',
            b'{"type":2.0}',
            b'{"type":9,"data":[]}',
            b'{"type":-1}',
        ),
        *(b'{"type":1}', b'{"type":3,"data":[]}', b'{"type":4,"data":null}', b'{"type":4,"data":"x"}'),
        *(
            b'{"type":4,"data":{"delay_seconds":%s}}' % bad
            for bad in (b"true", b"-1", b"1.5", b"1e3", b'"5"', b"NaN", b"9" * 30, b"null")
        ),
        *(
            b'{"type":4,"data":{"headers":%s}}' % bad
            for bad in (b'[{"a":["b"]}]', b'{"a":"b"}', b'{"a":[1]}', b'"x"', b'{"a":null}')
        ),
        *(
            b'{"type":1,"data":{"requeue":1}}',
            b'{"type":3,"data":{"message":7}}',
            b'{"type":3,"data":' + b"[" * 9999,
        ),
    ],
)
def test_malformed_job_answers(body: bytes) -> None:
    """A malformed answer is the worker's fault, whatever is wrong with it."""
    with pytest.raises(RemoteProtocolError):
        jobs_message.decode_job_answer(body)


# --- HTTP --------------------------------------------------------------------------------------------------------

texts = st.text(max_size=10)
value_lists = st.dictionaries(texts, st.lists(st.binary(max_size=6), min_size=1, max_size=3), max_size=3)
text_lists = st.dictionaries(texts, st.lists(texts.map(str.encode), min_size=1, max_size=3), max_size=3)
one_value = st.dictionaries(texts, st.lists(texts.map(str.encode), min_size=1, max_size=1), max_size=3)


def requests(
    header: st.SearchStrategy[Any], single: st.SearchStrategy[Any]
) -> st.SearchStrategy[HttpRequest]:
    """Requests with header values and single values of some kind."""
    uploads = st.sampled_from([b"", b'{"file":{"name":"a.txt","size":3}}'])
    return st.builds(
        HttpRequest, texts, texts, texts, texts, header, single, texts, st.booleans(), uploads, single
    )


@given(requests(value_lists, value_lists))
def test_proto_request_round_trip(request: HttpRequest) -> None:
    """The protobuf dialect carries every byte; google's classes read the same."""
    context = http_message.encode_request_context(request, frames.PROTO)

    assert request == http_message.decode_request_context(context, frames.PROTO)
    theirs = http_pb2.Request.FromString(context)
    assert request.uri == theirs.uri
    assert request.header == {name: list(theirs.header[name].value) for name in theirs.header}
    assert theirs.SerializeToString(deterministic=True) == http_pb2.Request.FromString(
        http_message.encode_request_proto(http_message.decode_request_proto(theirs.SerializeToString()))
    ).SerializeToString(deterministic=True)


@given(requests(text_lists, one_value))
def test_json_request_round_trip(request: HttpRequest) -> None:
    """The JSON dialect carries all text, with the keys that PHP requires."""
    context = http_message.encode_request_context(request, frames.JSON)

    assert request == http_message.decode_request_context(context, frames.JSON)
    assert request == http_message.decode_request_context(context, 0)
    keys = "remoteAddr protocol method uri headers cookies rawQuery parsed uploads attributes"
    assert keys.split() == list(json.loads(context))


@pytest.mark.parametrize("name", ["http_proto_request", "http_proto_upload"])
def test_recorded_http_requests(name: str) -> None:
    """What a PHP application saw of the recorded contexts is what we read from them."""
    scenario = next(scenario for scenario in SCENARIOS if scenario["name"] == name)
    decoder = frames.FrameDecoder()
    decoder.feed(bytes.fromhex(scenario["steps"][2]["hex"]))
    frame = decoder.next_frames()[0]
    context, body = split_payload(frame)
    request = http_message.decode_request_context(context, frame.flags)
    saw = scenario["php_saw_request"][0]

    assert [saw[key] for key in ("remoteAddr", "protocol", "method", "uri", "parsed")] == [
        *(request.remote_addr, request.protocol, request.method, request.uri, request.parsed),
    ]
    assert (saw["headers"] or {}) == {
        key: [v.decode() for v in values] for key, values in request.header.items()
    }
    assert (saw["cookies"] or {}) == {key: values[0].decode() for key, values in request.cookies.items()}
    assert (saw["uploads"] or None) == json.loads(request.uploads or b"null")
    assert json.loads(saw["body"] or "[]") == json.loads(body or b"[]")
    assert request == http_message.decode_request_context(
        http_message.encode_request_proto(request), frames.PROTO
    )


def test_recorded_json_request() -> None:
    """The recorded JSON context is written back byte by byte, keys in the same order."""
    frame = only_frame(BY_NAME["hand_http_json_request"])
    context, _ = split_payload(frame)

    assert context == http_message.encode_request_json(
        http_message.decode_request_context(context, frame.flags)
    )


@pytest.mark.parametrize("name", [n for n in names("http") if "response" in n or "hints" in n])
def test_recorded_http_answers(name: str) -> None:
    """Recorded answers are read in their dialect, and written back to contexts that mean the same."""
    frame = only_frame(BY_NAME[name])
    context, _ = split_payload(frame)
    answer = http_message.decode_answer_context(context, frame.flags)

    assert answer is not None
    assert answer.status == (103 if "hints" in name else 200)
    assert context == http_message.encode_answer_proto(*answer) or not frame.flags & frames.PROTO
    json_context = http_message.encode_answer_json(*answer)
    assert answer == http_message.decode_answer_context(json_context, 0)
    assert answer == http_message.decode_answer_context(json_context, frames.JSON)


def test_answer_codecs() -> None:
    """An empty context needs no codec; another codec than the two is refused; no headers may be `[]`."""
    assert [http_message.decode_answer_context(b"", flags) for flags in (0, frames.PROTO, frames.GOB)] == [
        None
    ] * 3
    with pytest.raises(MessageError, match="unknown codec 0x20"):
        http_message.decode_answer_context(b"x", frames.GOB)
    assert HttpAnswer(204, {}) == http_message.decode_answer_context(b'{"status":204,"headers":[]}', 0)
    assert HttpAnswer(0, {}) == http_message.decode_answer_context(b"{}", 0)


@pytest.mark.parametrize(
    "context",
    [
        b"[]",
        b"x",
        b'{"status":"200"}',
        b'{"status":true}',
        b'{"status":200,"headers":{"A":"b"}}',
        b'{"headers":3}',
        b'{"headers":{"A":[1]}}',
    ],
)
def test_malformed_answers(context: bytes) -> None:
    """Answers that say nothing sensible are the worker's fault."""
    with pytest.raises(MessageError):
        http_message.decode_answer_context(context, 0)


@pytest.mark.parametrize(
    "context", [b"[]", b"{}", b'{"parsed":1}', b'{"parsed":true,"remoteAddr":1}', b"\xff"]
)
def test_malformed_requests(context: bytes) -> None:
    """Request contexts that lack what PHP requires are refused, in either dialect."""
    for flags in (frames.JSON, 0):
        with pytest.raises(MessageError):
            http_message.decode_request_context(context, flags)


def test_json_request_of_an_old_server() -> None:
    """Attributes that are no texts become JSON texts; missing maps are empty."""
    context = (
        b'{"remoteAddr":"::1","protocol":"HTTP/1.1","method":"GET","uri":"/","rawQuery":"","parsed":false,'
        b'"uploads":{"f":{"name":"a"}},"attributes":{"n":5,"t":"x"}}'
    )
    request = http_message.decode_request_context(context, frames.JSON)

    assert request.attributes == {"n": [b"5"], "t": [b"x"]}
    assert (request.header, request.cookies, request.uploads) == ({}, {}, b'{"f":{"name":"a"}}')


def test_unsendable_http_text() -> None:
    """Half a character in a JSON context is refused before it is sent."""
    with pytest.raises(LocalProtocolError):
        http_message.encode_form_tree({"\ud800": "x"})


# --- form trees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FORM_CASES)))
def test_recorded_forms(number: int) -> None:
    """The recorded forms split into the recorded keys and give the recorded tree, or are refused."""
    case = FORM_CASES[number]

    assert case["keys"] == [http_message.split_form_key(name) for name, _ in case["in"]]
    if "err" in case:
        with pytest.raises(http_message.FormTreeError) as caught:
            http_message.build_form_tree(case["in"])
        assert case["err"] == str(caught.value)
    else:
        tree = http_message.build_form_tree(case["in"])
        assert case["out"] == tree
        assert case["out"] == json.loads(http_message.encode_form_tree(tree))


def test_form_edges() -> None:
    """Names of too many keys are ignored, an empty form is an empty object, spaces never count."""
    deep = "a" + "[b]" * 127
    assert http_message.build_form_tree([(deep, ["1"]), ("c", ["2"])]) == {"c": "2"}
    assert "a" in http_message.build_form_tree([("a" + "[b]" * 126, ["1"])])
    assert http_message.encode_form_tree({}) == b"{}"
    assert http_message.split_form_key("a[ ]") == ["a", ""]
    assert http_message.build_form_tree([("a[]", ["x"]), ("a[]", [])]) == {"a": ["x"]}
    assert http_message.build_form_tree([("a[b]", ["1"]), ("a[]", [])]) == {"a": {"b": "1"}}
    for fields in ([("a[]", ["x"]), ("a[b]", ["1"])], [("a[b]", ["1"]), ("a[]", ["x"])]):
        with pytest.raises(http_message.FormTreeError):
            http_message.build_form_tree(fields)


def test_upload_tree() -> None:
    """Files follow the same keys; under a plain key the first one counts, and a file is no branch."""
    first: dict[str, object] = {"name": "1"}
    second: dict[str, object] = {"name": "2"}

    assert http_message.build_upload_tree([("f", [first, second])]) == {"f": first}
    assert http_message.build_upload_tree([("f[]", [first, second])]) == {"f": [first, second]}
    assert http_message.build_upload_tree([("f[a]", [first]), ("f[b]", [second])]) == {
        "f": {"a": first, "b": second}
    }
    with pytest.raises(http_message.FormTreeError):
        http_message.build_upload_tree([("f", [first]), ("f[name]", [second])])


@given(
    st.lists(
        st.tuples(st.text("ab[] ", max_size=8), st.lists(st.sampled_from(["", "x", "y"]), max_size=2)),
        max_size=5,
    )
)
def test_any_form(fields: list[tuple[str, list[str]]]) -> None:
    """Any form gives a tree that JSON can say, or the one error there is."""
    try:
        tree = http_message.build_form_tree(fields)
    except http_message.FormTreeError:
        return
    assert tree == json.loads(http_message.encode_form_tree(tree))


# --- causes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("excerpt", "phrase"),
    [
        (raw(BY_NAME["hand_garbage_php_warning"]), "PHP warning"),
        (raw(BY_NAME["hand_garbage_utf8_bom"]), "byte order mark"),
        (raw(BY_NAME["hand_garbage_newline_prefix"]), "blank lines"),
        (raw(BY_NAME["hand_could_not_open"]), "cannot open the script"),
        (b"\nFatal error: Uncaught Exception: x in /a.php:3", "fatal error"),
        (b"PHP Parse error:  syntax error, unexpected end of file", "syntax error"),
        (b"Notice: Undefined index", "PHP warning or notice"),
        (b"<br />\n<b>hi</b>", "HTML"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"<?php echo 1;", "PHP source"),
        (b"Traceback (most recent call last):\n  File", "Python traceback"),
        (b"python3: can't open file '/x.py': [Errno 2]", "Python cannot open"),
        (b"array(1) {\n  [0]=>\n  int(1)\n}\n", "var_dump"),
        (b'string(3) "abc"', "var_dump"),
        (b"#!/usr/bin/env php\n", "shebang"),
        (b"sh: 1: foo: command not found", "shell error"),
        (b"   \n\n\n      ", "blank lines"),
        (b"hello from a worker", "text printed on stdout"),
        (b"GET / HTTP/1.1\r\nHost: x", "another protocol"),
        (b"panic: runtime error", "Go panic"),
        (bytes(range(128, 160)), "binary data"),
        (b"", "binary data"),
    ],
)
def test_likely_causes(excerpt: bytes, phrase: str) -> None:
    """The bytes where a frame should be become a sentence that says what to look for."""
    assert phrase in likely_cause(excerpt, "bad_crc")
    assert phrase in str(FrameError("bad_crc", "", excerpt))


def test_error_texts() -> None:
    """Every code has a text of its own, one line of printable ASCII around the quoted bytes."""
    garbage = b'\x00\xff\n"\\' + b"x" * 1000
    found = {
        code: str(FrameError(code, "payload", garbage))
        for code in ("bad_crc", "version", "header_len", "too_large", "file_not_found", "truncated")
    }

    assert len(set(found.values())) == 6
    assert all(text.isascii() and text.isprintable() and len(text) < 1500 for text in found.values())
    assert "inside the payload" in found["truncated"]
    assert len(FrameError("bad_crc", "", garbage).excerpt) == 256
    assert escaped(b'a"\\\n\x80') == '"a\\x22\\x5c\\x0a\\x80"'
