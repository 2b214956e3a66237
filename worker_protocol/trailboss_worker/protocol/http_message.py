"""HTTP on the wire: the contexts of requests and answers in both dialects, and form trees.

RoadRunner from 2024.1 on sends protobuf contexts (flags 0x80), older ones JSON (0x08); a worker answers in the
dialect it was asked in. Answers are accepted by their flags: PROTO means protobuf, JSON or no codec means JSON,
and an empty context needs no codec at all. Header, cookie and attribute values are bytes here, because HTTP does
not promise UTF-8; the JSON dialect replaces what is none.

A form or its files arrive in the worker as a tree: `a[b][]` is key a, key b, and a list. Conflicts between fields
are decided by the order of first appearance (wire protocol 3.1.4), never by the order of a hash table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from trailboss_worker.protocol.errors import LocalProtocolError, MessageError
from trailboss_worker.protocol.frames import CONTROL, ERROR, JSON, PROTO
from trailboss_worker.protocol.limits import json_loads_limited
from trailboss_worker.protocol.messages import HTTP_REQUEST, HTTP_RESPONSE

FORM_KEYS_MAX = 127

Values = Mapping[str, Sequence[bytes]]

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class FormTreeError(MessageError):
    """The fields of a form contradict each other; the request is refused."""


class HttpRequest(NamedTuple):
    """The context of a request; the meaning of the fields is that of wire protocol 3.1.3.

    `header`, `cookies` and `attributes` map a name to a list of values. `uploads` is JSON text, empty for none.
    """

    remote_addr: str
    protocol: str
    method: str
    uri: str
    header: Mapping[str, Sequence[bytes]]
    cookies: Mapping[str, Sequence[bytes]]
    raw_query: str
    parsed: bool
    uploads: bytes
    attributes: Mapping[str, Sequence[bytes]]


class HttpAnswer(NamedTuple):
    """The context of an answer: status and headers (name to list of values)."""

    status: int
    headers: Mapping[str, Sequence[bytes]]


def encode_request_context(request: HttpRequest, dialect: int = PROTO) -> bytes:
    """The context of a request; `dialect` is PROTO or JSON, and also the flags of its frame."""
    return encode_request_json(request) if dialect == JSON else encode_request_proto(request)


def encode_request_proto(request: HttpRequest) -> bytes:
    """The context of a request in the protobuf dialect."""
    value: dict[str, Any] = request._asdict()
    for name in ("header", "cookies", "attributes"):
        value[name] = _wrapped(value[name])
    return HTTP_REQUEST.encode(value)


def encode_request_json(request: HttpRequest) -> bytes:
    """The context of a request in the JSON dialect, keys in RoadRunner's order."""
    members = (
        ("remoteAddr", request.remote_addr),
        ("protocol", request.protocol),
        ("method", request.method),
        ("uri", request.uri),
        ("headers", _texts(request.header)),
        ("cookies", {name: _joined(values) for name, values in request.cookies.items()}),
        ("rawQuery", request.raw_query),
        ("parsed", request.parsed),
    )
    text = ",".join(f'"{name}":{_encoder.encode(value)}' for name, value in members)
    attributes = {name: _text(values[0]) for name, values in request.attributes.items() if values}
    uploads = request.uploads.decode("utf-8", "replace") or "null"
    return _utf8(f'{{{text},"uploads":{uploads},"attributes":{_encoder.encode(attributes)}}}')


def decode_request_context(context: bytes, flags: int) -> HttpRequest:
    """The context of a request, by its flags; where they name neither dialect, JSON if it is JSON."""
    if flags & PROTO:
        return decode_request_proto(context)
    if flags & JSON or context[:1] == b"{":
        return decode_request_json(context)
    return decode_request_proto(context)


def decode_request_proto(context: bytes) -> HttpRequest:
    """The context of a request in the protobuf dialect. Raises MessageError."""
    value = HTTP_REQUEST.decode(context)
    for name in ("header", "cookies", "attributes"):
        value[name] = _unwrapped(value[name])
    return HttpRequest(**value)


def decode_request_json(context: bytes) -> HttpRequest:
    """The context of a request in the JSON dialect. Raises MessageError."""
    value = json_loads_limited(context)
    if not isinstance(value, dict):
        raise MessageError("a request's context is no JSON object")
    parsed = value.get("parsed")
    if not isinstance(parsed, bool):
        raise MessageError("'parsed' is neither true nor false")
    uploads = value.get("uploads")
    return HttpRequest(
        remote_addr=_member(value, "remoteAddr"),
        protocol=_member(value, "protocol"),
        method=_member(value, "method"),
        uri=_member(value, "uri"),
        header=_byte_lists(value.get("headers"), "headers"),
        cookies=_scalars(value.get("cookies"), "cookies"),
        raw_query=_member(value, "rawQuery"),
        parsed=parsed,
        uploads=_utf8(_encoder.encode(uploads)) if uploads else b"",
        attributes=_scalars(value.get("attributes"), "attributes"),
    )


def encode_answer_proto(status: int, headers: Values) -> bytes:
    """The context of an answer in the protobuf dialect."""
    return HTTP_RESPONSE.encode({"status": status, "headers": _wrapped(headers)})


def encode_answer_json(status: int, headers: Values) -> bytes:
    """The context of an answer in the JSON dialect."""
    return _utf8(f'{{"status":{status:d},"headers":{_encoder.encode(_texts(headers))}}}')


def decode_answer_context(context: bytes, flags: int) -> HttpAnswer | None:
    """Status and headers of an answer, or None when the context is empty (only the body counts then).

    Raises MessageError for a codec that is neither PROTO nor JSON nor none, and for malformed contexts.
    """
    if not context:
        return None
    if flags & PROTO:
        value = HTTP_RESPONSE.decode(context)
        return HttpAnswer(value["status"], _unwrapped(value["headers"]))
    if flags & ~(JSON | CONTROL | ERROR | 0x02):
        raise MessageError(f"an HTTP answer of the unknown codec 0x{flags:02x}")
    return _decode_answer_json(context)


def _decode_answer_json(context: bytes) -> HttpAnswer:
    value = json_loads_limited(context)
    if not isinstance(value, dict):
        raise MessageError("an answer's context is no JSON object")
    status = value.get("status", 0)
    if isinstance(status, bool) or not isinstance(status, int):
        raise MessageError("an answer whose 'status' is no whole number")
    return HttpAnswer(status, _byte_lists(value.get("headers"), "headers"))


def split_form_key(name: str) -> list[str]:
    """The keys in a field's name: `a[b][]` is a, b and the empty key. Spaces count nowhere."""
    keys = [""]
    after = ""  # the bracket right before this character, if there is one
    for character in name:
        if character == " ":
            continue
        if character == "[":
            after = "["
        elif character == "]":
            if after == "[":
                keys.append("")
            after = "]"
        elif after:
            keys.append(character)
            after = ""
        else:
            keys[-1] += character
    return keys


def build_form_tree(fields: Iterable[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """The tree of a form; `fields` in order of first appearance, each with its values in order of arrival.

    Raises FormTreeError where two fields contradict each other. A name of more than 127 keys is ignored.
    """
    return _build_tree(fields, last=True)


def build_upload_tree(fields: Iterable[tuple[str, Sequence[dict[str, object]]]]) -> dict[str, Any]:
    """The tree of the files of a form: the same rules, but of several files under one key the first counts."""
    return _build_tree(fields, last=False)


def encode_form_tree(tree: Mapping[str, Any]) -> bytes:
    """A tree as the body (or the uploads) that a worker gets; `{}` for an empty one."""
    return _utf8(_encoder.encode(tree))


def _build_tree(fields: Iterable[tuple[str, Sequence[Any]]], *, last: bool) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, values in fields:
        keys = split_form_key(name)
        if len(keys) > FORM_KEYS_MAX:
            continue
        is_list = len(keys) > 1 and keys[-1] == ""
        if is_list:
            keys.pop()
        leaf: Any = list(values) if is_list or not values else values[-1 if last else 0]
        branch = tree
        for key in keys[:-1]:
            branch = _branch(branch, key)
        _set_leaf(branch, keys[-1], leaf)
    return tree


def _branch(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The branch under a key, made where there is none; it replaces an empty value, nothing else."""
    existing = tree.get(key)
    if isinstance(existing, _Branch):
        return existing
    if key in tree and not _is_empty(existing):
        raise FormTreeError(f"invalid multiple values to key '{key}' in tree")
    branch = _Branch()
    tree[key] = branch
    return branch


def _set_leaf(tree: dict[str, Any], key: str, leaf: Any) -> None:
    """Puts a value under a key; an empty one never replaces anything, another never replaces a branch."""
    if key not in tree:
        tree[key] = leaf
    elif _is_empty(leaf):
        return
    elif isinstance(tree[key], _Branch):
        raise FormTreeError(f"invalid multiple values to key '{key}' in tree")
    else:
        tree[key] = leaf


class _Branch(dict):  # type: ignore[type-arg] # a plain dict, told apart from a file's entry, which is one too
    pass


def _is_empty(leaf: object) -> bool:
    return leaf in ("", [])


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _joined(values: Sequence[bytes]) -> str:
    return ",".join(map(_text, values))


def _texts(values: Values) -> dict[str, list[str]]:
    return {name: [_text(item) for item in items] for name, items in values.items()}


def _wrapped(values: Values) -> dict[str, dict[str, Sequence[bytes]]]:
    return {name: {"value": items} for name, items in values.items()}


def _unwrapped(values: dict[str, dict[str, list[bytes]]]) -> dict[str, list[bytes]]:
    return {name: item["value"] for name, item in values.items()}


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"text that UTF-8 cannot hold: {error.reason}") from None


def _member(value: dict[str, object], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise MessageError(f"{name!r} is no text")
    return text


def _object(value: object, name: str) -> dict[str, object]:
    """An object; null and PHP's empty list mean an empty one."""
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise MessageError(f"{name!r} is no object")
    return value


def _byte_lists(value: object, name: str) -> dict[str, list[bytes]]:
    out: dict[str, list[bytes]] = {}
    for key, items in _object(value, name).items():
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise MessageError(f"{key!r} in {name!r} is no list of texts")
        out[key] = [item.encode("utf-8") for item in items]
    return out


def _scalars(value: object, name: str) -> dict[str, list[bytes]]:
    """An object of scalars as lists of one value: text as it is, anything else as JSON text."""
    return {
        key: [(item if isinstance(item, str) else _encoder.encode(item)).encode("utf-8")]
        for key, item in _object(value, name).items()
    }
