"""Arguments in, results out: the codecs of an RPC call (wire protocol 4.3).

A call says by its codec bit how its argument travels, and the answer travels the same way. Plain methods speak JSON and
msgpack, methods whose argument and result are generated messages speak PROTO alone, and RAW is for byte strings. What
Go does to JSON is kept, because clients have seen nothing else: keys match without regard to case, an empty argument
is the zero value, `<`, `>` and `&` are escaped, byte strings are base64.

Nothing here trusts the bytes: sizes are checked before parsing, nesting is capped, and every way to fail is a
:class:`CodecError` whose text is the answer.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

import msgpack
from google.protobuf.message import DecodeError, EncodeError, Message

from trailboss.container.contract import RpcMethod, raw
from trailboss.rpc.message_limits import check_message_size
from trailboss_worker.protocol.rpc import request_codec

__all__ = [
    "ARGUMENT_CODEC",
    "CodecError",
    "Fields",
    "argument_decoder",
    "decode_argument",
    "encode_result",
    "struct",
]

#: Most levels of lists and objects in an argument.
DEPTH_MAX: Final = 64
#: Longest argument that may hold lists and objects: an empty list is one byte of msgpack and 64 bytes of memory.
CONTAINER_BYTES_MAX: Final = 256 * 1024
#: Longest argument that is one string, number or byte string.
SCALAR_BYTES_MAX: Final = 16 * 1024 * 1024

#: Codec of the argument for every flags byte; None where no codec bit is set.
ARGUMENT_CODEC: Final[tuple[str | None, ...]] = tuple(request_codec(flags) for flags in range(256))

#: Go's name of this step is in the text of its decoding errors; clients may look for it.
_DECODE: Final = "goridge_read_request_body: "


class CodecError(Exception):
    """An argument or a result does not fit its codec, its type or the limits; the text is the error answer."""


class struct(dict[str, object]):  # noqa: N801 - stands for a Go struct, beside `raw`
    """A result with fixed fields: in JSON its keys as they are, in msgpack capitalised, as Go writes its fields."""


class Fields(dict[str, object]):
    """An object from JSON or msgpack; keys are found without regard to case, an exact match first."""

    def get(self, key: str, default: object = None) -> object:
        """Return the value under `key` in any case, else `default`."""
        if key in self:
            return self[key]
        folded = key.casefold()
        for name, value in self.items():
            if name.casefold() == folded:
                return value
        return default

    def __missing__(self, key: str) -> object:
        absent = object()
        value = self.get(key, absent) if isinstance(key, str) else absent
        if value is absent:
            raise KeyError(key)
        return value


# --- arguments ------------------------------------------------------------------------------------------------------


def decode_argument(method: RpcMethod, codec: str | None, data: bytes) -> object:
    """Return the argument of a call of `method` whose codec is `codec`. Raises CodecError.

    Empty data and `null` are the zero value: an empty message, "", False, 0, b"", an empty dict or list by the declared
    type, None where the method declares none.
    """
    return argument_decoder(method)(codec, data)


class ArgumentDecoder(Protocol):
    """What `argument_decoder` gives: ``decoder(codec, data) -> argument``."""

    def __call__(self, codec: str | None, data: bytes, /) -> object:
        """Decode one argument. Raises CodecError."""


def argument_decoder(method: RpcMethod) -> ArgumentDecoder:
    """Return the decoder for arguments of `method`; made once, so that a call only decodes."""
    kind = method.argument
    if kind is not None and issubclass(kind, Message):
        return _message_decoder(method.name, kind)
    takes_raw = _is_bytes(kind) or _is_bytes(method.result)
    return _plain_decoder(kind, takes_raw)


def _message_decoder(name: str, kind: type[Message]) -> ArgumentDecoder:
    parse: Callable[[bytes], Message] = kind.FromString

    def decode(codec: str | None, data: bytes) -> object:
        if codec == "proto":
            check = check_message_size(kind, data)
            if check:
                raise CodecError(f"{_DECODE}proto: {check}")
            try:
                return parse(data)
            except (DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise CodecError(f"{_DECODE}proto: cannot parse invalid wire-format data") from error
        if codec == "raw":
            raise CodecError("unknown Raw payload type")
        if codec is None:
            raise CodecError(f"{_DECODE}unknown decoder used in frame")
        raise CodecError(f"{_DECODE}{name} takes and gives protobuf messages (codec PROTO), not {codec}")

    return decode


#: Arguments of most calls, which need no parser.
_COMMON_JSON: Final[Mapping[bytes, object]] = {b"true": True, b"false": False, b"null": None, b"": None}


def _plain_decoder(kind: type[object] | None, takes_raw: bool) -> ArgumentDecoder:
    fit = _fitter(kind)

    def decode(codec: str | None, data: bytes) -> object:
        if codec == "json":
            if kind is None and data in _COMMON_JSON:
                return _COMMON_JSON[data]
            return fit("json", _loads_json(kind, data))
        if codec == "msgpack":
            return fit("msgpack", _loads_msgpack(kind, data))
        if codec == "raw":
            if not takes_raw:
                raise CodecError("unknown Raw payload type")
            return fit("raw", data if _is_bytes(kind) else None)
        if codec == "proto":
            raise CodecError(f"{_DECODE}message type is not a proto")
        if codec == "gob":
            raise CodecError(f"{_DECODE}the codec GOB is not supported; use JSON, msgpack or PROTO")
        raise CodecError(f"{_DECODE}unknown decoder used in frame")

    return decode


def _loads_json(kind: type[object] | None, data: bytes) -> object:
    if not data:
        return None
    first = data.lstrip(b" \t\r\n")[:1] if data[:1] in b" \t\r\n" else data[:1]
    _check_size("json", data, first in b"[{" or kind in _CONTAINERS)
    try:
        value = _parse_json(data.decode("utf-8", "replace"))
    except RecursionError:
        raise CodecError(f"json: nested deeper than {DEPTH_MAX} levels") from None
    except ValueError as error:
        raise CodecError(f"json: {error}") from error
    if not _is_shallow(value):
        raise CodecError(f"json: nested deeper than {DEPTH_MAX} levels")
    return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"invalid value {text}")


def _parse_json_integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number with more than 20 digits")
    return int(text)


_parse_json: Callable[[str], object] = json.JSONDecoder(
    object_hook=Fields, parse_constant=_refuse_constant, parse_int=_parse_json_integer
).decode


def _loads_msgpack(kind: type[object] | None, data: bytes) -> object:
    if not data:
        return None
    is_text_or_number = data[0] in _MSGPACK_SCALARS
    _check_size("msgpack", data, not is_text_or_number)
    limit = len(data)
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            unicode_errors="replace",
            strict_map_key=True,
            object_pairs_hook=_fields_of_pairs,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=limit,
            max_map_len=limit,
            max_ext_len=limit,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise CodecError(f"msgpack: {str(error) or type(error).__name__}") from error
    if not _is_shallow(value):
        raise CodecError(f"msgpack: nested deeper than {DEPTH_MAX} levels")
    return cast(object, value)


#: First bytes of a msgpack value that is no list, map or extension: numbers, strings, byte strings, nil, booleans.
_MSGPACK_SCALARS: Final = (
    frozenset(range(0x80))
    | frozenset(range(0xA0, 0xC7))
    | frozenset(range(0xCA, 0xD4))
    | frozenset((0xD9, 0xDA, 0xDB))
    | frozenset(range(0xE0, 0x100))
)


def _fields_of_pairs(pairs: list[tuple[object, object]]) -> Fields:
    return Fields(
        (key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key), value)
        for key, value in pairs
    )


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return True
        level = below
    return False


def _check_size(codec: str, data: bytes, may_hold_containers: bool) -> None:
    limit = CONTAINER_BYTES_MAX if may_hold_containers else SCALAR_BYTES_MAX
    if len(data) > limit:
        raise CodecError(f"{codec}: an argument of {len(data)} bytes; at most {limit} are accepted")


_CONTAINERS: Final = (list, dict)
_KIND_NAMES: Final[tuple[tuple[type[object], str], ...]] = (
    (bool, "bool"),
    (int, "number"),
    (float, "number"),
    (str, "string"),
    (bytes, "bytes"),
    (list, "array"),
    (dict, "object"),
)


def _kind_name(value: object) -> str:
    return next((name for kind, name in _KIND_NAMES if isinstance(value, kind)), type(value).__name__)


def _is_bytes(kind: type[object] | None) -> bool:
    return kind is not None and issubclass(kind, bytes)


def _fitter(kind: type[object] | None) -> Callable[[str, object], object]:
    """Return ``fit(codec, value)``: the value as `kind`, the zero value for None. Raises CodecError."""
    if kind is None:
        return lambda _codec, value: value

    def mismatch(codec: str, value: object) -> CodecError:
        wanted = "bytes" if _is_bytes(kind) else dict(_KIND_NAMES).get(kind, kind.__name__)
        return CodecError(f"{codec}: cannot unmarshal {_kind_name(value)} into a value of type {wanted}")

    def fit(codec: str, value: object) -> object:
        if value is None:
            return kind()
        if _is_bytes(kind):
            return _fit_bytes(codec, value, mismatch)
        if isinstance(value, bool) and kind is not bool:
            raise mismatch(codec, value)
        if kind is float and isinstance(value, int):
            return _as_float(codec, value)
        if kind is str and isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if not isinstance(value, kind):
            raise mismatch(codec, value)
        return value

    return fit


def _as_float(codec: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise CodecError(f"{codec}: number {value} is too large") from error


def _fit_bytes(codec: str, value: object, mismatch: Callable[[str, object], CodecError]) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise mismatch(codec, value)
    if codec == "msgpack":
        return value.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodecError(f"{codec}: illegal base64 data") from error


# --- results --------------------------------------------------------------------------------------------------------


def encode_result(codec: str | None, result: object) -> bytes:
    """Return the bytes of `result` in the codec of the call. Raises CodecError for what the codec cannot carry."""
    if codec == "json":
        return _dumps_json(result)
    if codec == "proto":
        if not isinstance(result, Message):
            raise CodecError("message type is not a proto")
        try:
            return result.SerializeToString()
        except EncodeError as error:
            raise CodecError(f"proto: {error}") from error
    if codec == "msgpack":
        return _dumps_msgpack(result)
    if codec == "raw" and isinstance(result, bytes):
        return bytes(result)
    raise CodecError("unknown Raw payload type")


_dump = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    separators=(",", ":"),
    check_circular=True,
    default=lambda value: _json_default(value),
).encode

_ESCAPES: Final = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)


def _json_default(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"json: unsupported type: {type(value).__name__}")


def _dumps_json(result: object) -> bytes:
    if result is True:
        return b"true"
    if result is False:
        return b"false"
    try:
        text = _dump(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"json: the result cannot be encoded: {error}") from error
    if not text.isalnum():
        for char, escape in _ESCAPES:
            if char in text:
                text = text.replace(char, escape)
    try:
        return text.encode("utf-8")
    except (
        UnicodeEncodeError
    ):  # lone surrogates, from a JSON escape of a client; Go writes the replacement character
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def _dumps_msgpack(result: object) -> bytes:
    try:
        return cast(
            bytes, msgpack.packb(_capitalised(result, 0), use_bin_type=True, unicode_errors="replace")
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"msgpack: the result cannot be encoded: {error}") from error


def _capitalised(value: Any, depth: int) -> object:
    if depth > DEPTH_MAX:
        raise ValueError(f"nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, struct):
        return {key[:1].upper() + key[1:]: _capitalised(item, depth + 1) for key, item in value.items()}
    if isinstance(value, dict):
        return {key: _capitalised(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_capitalised(item, depth + 1) for item in value]
    return bytes(value) if isinstance(value, raw) else value
