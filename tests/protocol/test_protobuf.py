"""Our protobuf codec against the generated classes of google's, message by message."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.messages import applogger_pb2, common_pb2, http_pb2, jobs_pb2, status_pb2
from trailboss_worker.protocol import messages, protobuf_lite
from trailboss_worker.protocol.errors import LocalProtocolError, MessageError
from trailboss_worker.protocol.protobuf_lite import Field, Message

from .support import VECTORS, only_frame

# Table -> generated class. Every table must be here (test_every_table_is_compared).
PAIRS: dict[Message, Any] = {
    messages.HTTP_REQUEST: http_pb2.Request,
    messages.HTTP_RESPONSE: http_pb2.Response,
    messages.HTTP_HEADER_VALUE: http_pb2.HeaderValue,
    messages.JOBS_HEADER_VALUE: jobs_pb2.HeaderValue,
    messages.JOBS_OPTIONS: jobs_pb2.Options,
    messages.JOBS_JOB: jobs_pb2.Job,
    messages.JOBS_PUSH_REQUEST: jobs_pb2.PushRequest,
    messages.JOBS_PUSH_BATCH_REQUEST: jobs_pb2.PushBatchRequest,
    messages.JOBS_DECLARE_REQUEST: jobs_pb2.DeclareRequest,
    messages.JOBS_PIPELINES: jobs_pb2.Pipelines,
    messages.JOBS_EMPTY: jobs_pb2.Empty,
    messages.JOBS_STAT: jobs_pb2.Stat,
    messages.JOBS_STATS: jobs_pb2.Stats,
    messages.COMMON_STATUS: common_pb2.Status,
    messages.STATUS_REQUEST: status_pb2.Request,
    messages.STATUS_RESPONSE: status_pb2.Response,
    messages.APPLOGGER_LOG_ATTRS: applogger_pb2.LogAttrs,
    messages.APPLOGGER_LOG_ENTRY: applogger_pb2.LogEntry,
    messages.APPLOGGER_RESPONSE: applogger_pb2.Response,
}
every_pair = pytest.mark.parametrize(
    ("table", "generated"), PAIRS.items(), ids=lambda value: getattr(value, "name", "")
)

NUMBERS = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "string": st.text(max_size=20),
    "bytes": st.binary(max_size=20),
}


def values_of(table: Message) -> st.SearchStrategy[dict[str, Any]]:
    """Values of a message, some fields absent."""
    optional = {field.name: value_of(field) for field in table.fields.values()}
    return st.fixed_dictionaries({}, optional=optional)


def value_of(field: Field) -> st.SearchStrategy[Any]:
    """Values of one field."""
    inner = (
        values_of(field.message)
        if field.message is not None
        else NUMBERS[field.kind if field.kind != "map" else "string"]
    )
    if field.kind == "map":
        return st.dictionaries(st.text(max_size=5), inner, max_size=3)
    return st.lists(inner, max_size=3) if field.repeated else inner


def generated_of(generated: Any, table: Message, value: dict[str, Any]) -> Any:
    """The generated class's object of a value."""
    target = generated()
    for field in table.fields.values():
        if field.name not in value:
            continue
        item = value[field.name]
        place = getattr(target, field.name)
        if field.kind == "map" and field.message is not None:
            for key, inner in item.items():
                place[key].CopyFrom(generated_of(type(place[key]), field.message, inner))
        elif field.kind == "map":
            place.update(item)
        elif field.kind == "message" and field.repeated:
            for inner in item:
                place.append(generated_of(type(place.add()), field.message, inner))  # type: ignore[arg-type]
                del place[-2]
        elif field.kind == "message":
            place.CopyFrom(generated_of(type(place), field.message, item))  # type: ignore[arg-type]
            place.SetInParent()
        elif field.repeated:
            place.extend(item)
        else:
            setattr(target, field.name, item)
    return target


def plain(table: Message, target: Any) -> dict[str, Any]:
    """A generated object as the plain value that our codec gives."""
    value: dict[str, Any] = {}
    for field in table.fields.values():
        item = getattr(target, field.name)
        if field.kind == "map":
            value[field.name] = {
                key: plain(field.message, item[key]) if field.message else item[key] for key in item
            }
        elif field.kind == "message" and field.message is not None:
            if field.repeated:
                value[field.name] = [plain(field.message, inner) for inner in item]
            else:
                value[field.name] = plain(field.message, item) if target.HasField(field.name) else None
        else:
            value[field.name] = list(item) if field.repeated else item
    return value


def test_every_table_is_compared() -> None:
    """No table of ours escapes the comparison (Any is part of common.v1.Status)."""
    tables = {value for value in vars(messages).values() if isinstance(value, Message)}

    assert tables - {messages.ANY} == set(PAIRS)


@every_pair
def test_tables_equal_descriptors(table: Message, generated: Any) -> None:
    """Names, numbers and package of the tables are those of the generated messages."""
    descriptor = generated.DESCRIPTOR

    assert table.name == descriptor.full_name
    assert {n: f.name for n, f in table.fields.items()} == {
        n: f.name for n, f in descriptor.fields_by_number.items()
    }


@every_pair
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_codecs_agree(table: Message, generated: Any, data: st.DataObject) -> None:
    """Either codec reads what the other wrote, and both read the same value."""
    value = data.draw(values_of(table))
    target = generated_of(generated, table, value)
    ours = table.encode(value)
    theirs = target.SerializeToString()

    assert plain(table, target) == plain(table, generated.FromString(ours))
    assert plain(table, target) == table.decode(theirs)
    assert len(ours) == len(theirs)


@every_pair
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_codecs_agree_on_damage(table: Message, generated: Any, data: st.DataObject) -> None:
    """What we read from damaged bytes google's codec reads alike; what it refuses we refuse.

    The other way round it is laxer: it skips fields of the number 0, which the format forbids. And it leaves out map
    entries that hold a field it does not know (they stay among the unknown fields), where we skip that field.
    """
    damaged = bytearray(table.encode(data.draw(values_of(table))) + table.encode(data.draw(values_of(table))))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        theirs: Any = plain(table, generated.FromString(bytes(damaged)))
    except DecodeError:
        theirs = None
    try:
        ours = table.decode(bytes(damaged))
    except MessageError:
        return
    assert theirs is not None
    assert_alike(table, theirs, ours)


def assert_alike(table: Message, theirs: Any, ours: Any) -> None:
    """Equal but for the maps: there, what google's codec shows we show as well."""
    for field in table.fields.values():
        left, right = theirs[field.name], ours[field.name]
        if field.kind == "map":
            assert left.keys() <= right.keys()
        elif field.message is None or left is None or right is None:
            assert left == right
        elif field.repeated:
            assert len(left) == len(right)
            for one, other in zip(left, right, strict=True):
                assert_alike(field.message, one, other)
        else:
            assert_alike(field.message, left, right)


CALLS = {
    "jobs.Push": messages.JOBS_PUSH_REQUEST,
    "jobs.PushBatch": messages.JOBS_PUSH_BATCH_REQUEST,
    "jobs.Declare": messages.JOBS_DECLARE_REQUEST,
    "jobs.Pause": messages.JOBS_PIPELINES,
    "jobs.Resume": messages.JOBS_PIPELINES,
    "app.WarningWithContext": messages.APPLOGGER_LOG_ENTRY,
}


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS if v["category"] == "rpc-sdk" and v["decoded"]["method"] in CALLS],
    ids=lambda vector: vector["name"],
)
def test_calls_of_the_php_sdk(vector: dict[str, Any]) -> None:
    """What official PHP packages send is read alike by both codecs."""
    table = CALLS[vector["decoded"]["method"]]
    argument = bytes.fromhex(vector["decoded"]["args_hex"])

    assert only_frame(vector).payload.endswith(argument)
    assert plain(table, PAIRS[table].FromString(argument)) == table.decode(argument)
    assert table.decode(argument) == table.decode(table.encode(table.decode(argument)))


ODD = Message(
    "test.Odd",
    Field(1, "plain", "uint32"),
    Field(2, "maybe", "int64", optional=True),
    Field(3, "ratio", "float"),
    Field(4, "exact", "double"),
    Field(5, "four", "fixed32"),
    Field(6, "eight", "fixed64"),
    Field(7, "text", "string", optional=True),
)


def test_kinds_that_the_messages_lack() -> None:
    """Optional fields are written even when they are zero, the others are not; fixed widths work."""
    assert ODD.encode({"maybe": 0, "text": "", "plain": 0, "ratio": 0.0}) == bytes.fromhex("10003a00")
    value = {
        "plain": 7,
        "maybe": -1,
        "ratio": 0.5,
        "exact": -0.0,
        "four": 2**32 - 1,
        "eight": 2**64 - 1,
        "text": None,
    }
    assert str(value) == str(ODD.decode(ODD.encode(value)))
    assert ODD.decode(b"") == ODD.default()
    assert ODD.default()["maybe"] is None
    assert repr(ODD) == "<Message test.Odd>"


@pytest.mark.parametrize(
    "value",
    [{"plain": -1}, {"plain": 2**32}, {"maybe": 2**63}, {"unknown": 1}, {"plain": None}],
)
def test_unencodable(value: dict[str, object]) -> None:
    """What a field cannot hold is refused when writing."""
    with pytest.raises(LocalProtocolError):
        ODD.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        "08",
        "0880",
        "08ffffffffffffffffff7f",
        "08ffffffffffffffffffff01",
        "00",
        "0f",
        "15",
        "150000",
        "3a05",
        "3a01ff",
        "0c",
        "4b",
        "4b54",
        "1d0000",
        "2900000000",
    ],
)
def test_malformed(data: str) -> None:
    """Numbers, lengths, texts and groups that are cut or wrong are refused."""
    with pytest.raises(MessageError):
        ODD.decode(bytes.fromhex(data))


def test_unknown_fields_are_skipped() -> None:
    """Unknown fields of every wire type are skipped, groups with their content; a wrong wire type is unknown."""
    unknown = "f80601f10600000000000000fffa0603616263fd0600000000fb0608013bfa0601613cfc060a0161"

    assert ODD.decode(bytes.fromhex(unknown + "0805")) == {**ODD.default(), "plain": 5}


def test_map_entry_without_value() -> None:
    """A part that a map entry lacks is empty, for texts and for messages."""
    assert messages.JOBS_DECLARE_REQUEST.decode(bytes.fromhex("0a030a0161" + "0a03120162"))["pipeline"] == {
        "a": "",
        "": "b",
    }
    assert messages.HTTP_RESPONSE.decode(bytes.fromhex("12030a0161"))["headers"] == {"a": {"value": []}}


def test_limits() -> None:
    """Depth and size are limited, for known messages, for maps, and for unknown groups."""
    nested = Message("test.Nested")
    nested.__init__("test.Nested", Field(1, "inner", "message", message=nested))  # type: ignore[misc] # ties the knot
    data = b""
    for _ in range(40):
        data = protobuf_lite._varint(0x0A) + protobuf_lite._varint(len(data)) + data
    with pytest.raises(MessageError, match="nested"):
        nested.decode(data)
    assert nested.decode(data, depth_max=50)["inner"] is not None
    with pytest.raises(MessageError, match="nested"):
        ODD.decode(b"\x4b" * 100)
    with pytest.raises(MessageError, match="limit"):
        ODD.decode(b"x" * 11, size_max=10)
    with pytest.raises(ValueError, match="repeated numbers"):
        Message("test.Bad", Field(1, "numbers", "int64", repeated=True))
