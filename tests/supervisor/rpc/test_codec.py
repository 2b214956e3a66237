"""Arguments and results: Go's habits, zero values, limits, and that nothing but CodecError comes out."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.container.contract import RpcMethod, raw
from trailboss.messages import jobs_pb2
from trailboss.rpc.codec import (
    CONTAINER_BYTES_MAX,
    DEPTH_MAX,
    SCALAR_BYTES_MAX,
    CodecError,
    decode_argument,
    encode_result,
    struct,
)
from trailboss.rpc.message_limits import ELEMENTS_MAX, WALK_ABOVE_BYTES, check_message_size, count_elements


def method(argument: type[object] | None = None, result: type[object] | None = None) -> RpcMethod:
    return RpcMethod("test.Method", lambda _a, _c: None, argument=argument, result=result)


@pytest.mark.parametrize(
    ("kind", "zero"),
    [(None, None), (str, ""), (bool, False), (int, 0), (float, 0.0), (bytes, b""), (list, []), (dict, {})],
)
@pytest.mark.parametrize(
    ("codec", "data"), [("json", b""), ("json", b"null"), ("msgpack", b""), ("msgpack", b"\xc0")]
)
def test_an_empty_argument_is_the_zero_value(kind: Any, zero: object, codec: str, data: bytes) -> None:
    """Nothing and null give the zero value of the declared type, as in Go."""
    assert zero == decode_argument(method(kind), codec, data)


@pytest.mark.parametrize(
    ("kind", "codec", "data", "value"),
    [
        (str, "json", b'"a\\u017e"', "až"),
        (str, "json", b'  "x"', "x"),
        (float, "json", b"1", 1.0),
        (float, "json", b"1.5", 1.5),
        (bytes, "json", b'"aGk="', b"hi"),
        (bytes, "msgpack", b"\xa2hi", b"hi"),
        (bytes, "raw", b"\x00\xff", b"\x00\xff"),
        (str, "msgpack", b"\xc4\x02hi", "hi"),
        (None, "json", b"[1,2]", [1, 2]),
        (None, "json", b'"\xff"', "\ufffd"),
    ],
)
def test_arguments_become_values_of_their_type(kind: Any, codec: str, data: bytes, value: object) -> None:
    """Each codec gives the declared type."""
    assert value == decode_argument(method(kind, raw if kind is bytes else None), codec, data)


@pytest.mark.parametrize(
    ("kind", "codec", "data", "text"),
    [
        (str, "json", b"[]", "json: cannot unmarshal array into a value of type string"),
        (str, "json", b"true", "json: cannot unmarshal bool into a value of type string"),
        (int, "json", b"true", "json: cannot unmarshal bool into a value of type number"),
        (bytes, "json", b'"!"', "illegal base64 data"),
        (bytes, "json", b"1", "cannot unmarshal number into a value of type bytes"),
        (str, "json", b'"', "json: "),
        (None, "json", b"NaN", "invalid value NaN"),
        (None, "json", b"1" * 500, "more than 20 digits"),
        (None, "msgpack", b"\xc1", "msgpack: "),
        (None, "msgpack", b"\x01\x01", "msgpack: "),
        (None, "proto", b"", "message type is not a proto"),
        (None, "raw", b"x", "unknown Raw payload type"),
        (None, "gob", b"x", "GOB is not supported"),
        (None, None, b"x", "unknown decoder used in frame"),
        (jobs_pb2.Empty, "json", b"{}", "takes and gives protobuf messages"),
        (jobs_pb2.Empty, "msgpack", b"\x80", "takes and gives protobuf messages"),
        (jobs_pb2.Empty, "raw", b"", "unknown Raw payload type"),
        (jobs_pb2.Empty, None, b"", "unknown decoder used in frame"),
        (jobs_pb2.Empty, "proto", b"\xff\xff", "cannot parse invalid wire-format data"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    kind: Any, codec: str | None, data: bytes, text: str
) -> None:
    """Wrong types, wrong codecs and broken data are CodecErrors whose text says what is wrong."""
    with pytest.raises(CodecError) as caught:
        decode_argument(method(kind), codec, data)
    assert text in str(caught.value)


def test_keys_of_an_object_match_in_any_case() -> None:
    """Go matches JSON keys without regard to case, an exact match first; so do nested objects and msgpack."""
    argument = decode_argument(method(dict), "json", b'{"NAME":"a","name":"b","Collector":{"TYPE":"c"}}')
    assert isinstance(argument, dict)
    assert argument["name"] == "b"
    assert argument.get("NAME") == "a"
    assert argument["collector"]["type"] == "c"
    assert argument.get("absent", "d") == "d"
    with pytest.raises(KeyError):
        argument["absent"]
    assert decode_argument(method(dict), "msgpack", b"\x81\xa4Name\xa1x")["name"] == "x"  # type: ignore[index]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("levels", [10_000, 100_000])
def test_deep_nesting_is_refused(codec: str, levels: int) -> None:
    """Ten thousand levels are refused in every codec, whatever the parser's own limit is."""
    data = b"[" * levels + b"]" * levels if codec == "json" else b"\x91" * levels + b"\x90"
    with pytest.raises(CodecError):
        decode_argument(method(), codec, data)


def test_nesting_up_to_the_limit_is_fine_and_one_more_is_not() -> None:
    """The depth limit is exact."""
    decode_argument(method(), "json", b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    with pytest.raises(CodecError):
        decode_argument(method(), "json", b"[" * (DEPTH_MAX + 1) + b"1" + b"]" * (DEPTH_MAX + 1))


def test_brackets_inside_a_string_are_text() -> None:
    """A long log line full of brackets is no nesting."""
    line = "[" * 5000 + "{" * 5000
    assert line == decode_argument(method(str), "json", json.dumps(line).encode())


def test_deep_protobuf_is_refused() -> None:
    """Ten thousand nested groups or messages end in a CodecError."""
    groups = b"\x0b" * 10_000 + b"\x0c" * 10_000
    with pytest.raises(CodecError):
        decode_argument(method(jobs_pb2.Empty), "proto", groups)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("json", b"[" + b"1," * CONTAINER_BYTES_MAX + b"1]"),
        ("json", b'"' + b"x" * SCALAR_BYTES_MAX + b'"'),
        ("msgpack", b"\xdd\x00\x10\x00\x00" + b"\x90" * 2**20),
        ("msgpack", b"\xdb" + (SCALAR_BYTES_MAX + 1).to_bytes(4, "big") + b"x" * (SCALAR_BYTES_MAX + 1)),
    ],
)
def test_oversized_arguments_are_refused_before_they_are_parsed(codec: str, data: bytes) -> None:
    """What would multiply in memory has a small limit, plain text a larger one."""
    with pytest.raises(CodecError) as caught:
        decode_argument(method(), codec, data)
    assert "at most" in str(caught.value)


def test_a_message_of_too_many_elements_is_refused() -> None:
    """Two bytes a job would become gigabytes: counted before the parser sees them."""
    data = b"\x0a\x00" * (ELEMENTS_MAX + 10)
    assert "more than" in check_message_size(jobs_pb2.PushBatchRequest, data)
    with pytest.raises(CodecError):
        decode_argument(method(jobs_pb2.PushBatchRequest, jobs_pb2.Empty), "proto", data)


def test_large_ordinary_messages_pass_the_count() -> None:
    """A batch of large jobs is far below the limit, and every field of every level is counted."""
    batch = jobs_pb2.PushBatchRequest(
        jobs=[
            jobs_pb2.Job(job="a", id="b", payload=b"x" * 4000, options=jobs_pb2.Options(delay=3))
            for _ in range(100)
        ]
    )
    data = batch.SerializeToString()
    assert len(data) > WALK_ABOVE_BYTES
    assert check_message_size(jobs_pb2.PushBatchRequest, data) == ""
    descriptor: Any = jobs_pb2.PushBatchRequest.DESCRIPTOR
    assert count_elements(descriptor, data, 10_000) == 100 * 6


@given(st.binary(max_size=200))
def test_counting_ends_on_any_bytes(data: bytes) -> None:
    """Counting never raises and never counts more than there are bytes."""
    descriptor: Any = jobs_pb2.PushBatchRequest.DESCRIPTOR
    assert 0 <= count_elements(descriptor, data, 1000) <= 4 * len(data) + 1


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (True, b"true"),
        (None, b"null"),
        ("<&>\u2028", b'"\\u003c\\u0026\\u003e\\u2028"'),
        ("ž", '"ž"'.encode()),
        (b"hi", b'"aGk="'),
        (raw(b"hi"), b'"aGk="'),
        (["a", 1, 0.5], b'["a",1,0.5]'),
        (struct(pid=1), b'{"pid":1}'),
        ("\ud800x", '"\ufffdx"'.encode()),
        ("abc", b'"abc"'),
    ],
)
def test_json_results_look_like_gos(result: object, text: bytes) -> None:
    """Escapes, base64, compact form."""
    assert text == encode_result("json", result)


def test_msgpack_results_have_gos_field_names() -> None:
    """A struct's keys are capitalised in msgpack, those of an ordinary map are not."""
    data = encode_result("msgpack", struct(workers=[struct(pid=1, CPUPercent=0.5)], detail={"a": raw(b"x")}))
    assert msgpack.unpackb(data) == {"Workers": [{"Pid": 1, "CPUPercent": 0.5}], "Detail": {"a": b"x"}}


@pytest.mark.parametrize(
    ("codec", "result"),
    [
        ("json", float("nan")),
        ("json", object()),
        ("msgpack", object()),
        ("msgpack", 2**70),
        ("raw", "text"),
        ("proto", "text"),
        ("gob", True),
        (None, True),
    ],
)
def test_results_that_cannot_travel_are_errors(codec: str | None, result: object) -> None:
    """A result that the codec cannot carry is a CodecError, not a crash."""
    with pytest.raises(CodecError):
        encode_result(codec, result)


def test_a_circular_result_is_an_error() -> None:
    """Even a result that contains itself ends in an error answer."""
    loop: list[object] = []
    loop.append(loop)
    for codec in ("json", "msgpack"):
        with pytest.raises(CodecError):
            encode_result(codec, loop)


@given(
    st.sampled_from([None, str, bool, int, float, bytes, list, dict, jobs_pb2.PushRequest]),
    st.sampled_from(["json", "msgpack", "raw", "proto", "gob", None]),
    st.binary(max_size=300) | st.text(alphabet='{}[]":,\\truefals0123e', max_size=60).map(str.encode),
)
def test_any_bytes_give_a_value_or_a_codec_error(kind: Any, codec: str | None, data: bytes) -> None:
    """Whatever arrives, the outcome is a value of the declared type or a CodecError with a text."""
    try:
        value = decode_argument(method(kind), codec, data)
    except CodecError as error:
        value = error
    assert kind is None or isinstance(value, (kind, CodecError))
    assert str(value) or not isinstance(value, CodecError)
