"""The envelope of the RPC port: one frame per request, one frame per answer.

Options are the sequence number (any u32, echoed) and the length of the method name; the payload is the name
and then the encoded argument or result. Flags name the codec; an answer repeats the codec of its request and
sets ERROR when the rest of the payload is an error text. This file knows envelopes and codec bits; what the
bytes of an argument mean is the method's business. CONTROL, ERROR and stream bits of a request mean nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from trailboss_worker.protocol.errors import LocalProtocolError, RpcFrameError
from trailboss_worker.protocol.frames import (
    ERROR,
    GOB,
    JSON,
    MSGPACK,
    PROTO,
    RAW,
    Frame,
    encode_frame,
)

SEQUENCE_MAX = 2**32 - 1

# In the order in which an answer picks its codec when a request has more than one bit set.
_CODECS = ((PROTO, "proto"), (JSON, "json"), (RAW, "raw"), (MSGPACK, "msgpack"), (GOB, "gob"))
_CODEC_BITS = PROTO | JSON | RAW | MSGPACK | GOB
_CODEC_FLAGS = {name: bit for bit, name in _CODECS}

# All 256 flag bytes -> the codec and the bit an answer carries. No codec bit: upstream answers with GOB.
_CODEC_NAMES: tuple[str | None, ...] = tuple(
    next((name for bit, name in _CODECS if flags & bit), None) for flags in range(256)
)
_ANSWER_FLAGS = tuple(next((bit for bit, _ in _CODECS if flags & bit), GOB) for flags in range(256))


class RpcRequest(NamedTuple):
    """One call: sequence number, `service.Method`, flags as received, encoded argument."""

    sequence: int
    method: str
    flags: int
    argument: bytes


class RpcReply(NamedTuple):
    """One answer: `body` is the encoded result, or an error text in UTF-8 when `is_error`."""

    sequence: int
    method: str
    flags: int
    is_error: bool
    body: bytes

    @property
    def error_text(self) -> str:
        """The error text of an error answer."""
        return self.body.decode("utf-8", "replace")


def decode_request(frame: Frame) -> RpcRequest:
    """The call in a frame. Raises RpcFrameError(close=True): such a frame cannot be answered."""
    sequence, method, rest = _split(frame)
    return RpcRequest(sequence, method, frame.flags, rest)


def decode_reply(frame: Frame) -> RpcReply:
    """The answer in a frame. Raises RpcFrameError(close=True) for what is none."""
    sequence, method, rest = _split(frame)
    return RpcReply(sequence, method, frame.flags, bool(frame.flags & ERROR), rest)


def request_codec(flags: int) -> str | None:
    """The codec of a call: "proto", "json", "raw", "msgpack" or "gob"; None when no codec bit is set."""
    return _CODEC_NAMES[flags & 0xFF]


def codec_flag(codec: str) -> int:
    """The flag bit of a codec name. Raises KeyError."""
    return _CODEC_FLAGS[codec]


def encode_request(sequence: int, method: str, argument: bytes, flags: int) -> bytes:
    """A call. `flags` is one codec bit; raises LocalProtocolError for none."""
    if not flags & _CODEC_BITS:
        raise LocalProtocolError(f"a call of {method} without a codec")
    return _encode(sequence, method, argument, flags)


def encode_reply(request: RpcRequest, result: bytes) -> bytes:
    """The answer to a call; `result` is encoded with the codec of the call."""
    return _encode(request.sequence, request.method, result, _ANSWER_FLAGS[request.flags & 0xFF])


def encode_error(request: RpcRequest, text: str) -> bytes:
    """The error answer to a call."""
    flags = _ANSWER_FLAGS[request.flags & 0xFF] | ERROR
    return _encode(request.sequence, request.method, text.encode("utf-8", "replace"), flags)


def _split(frame: Frame) -> tuple[int, str, bytes]:
    options = frame.options
    if len(options) != 2:
        raise RpcFrameError(
            f"an RPC frame has two options, sequence number and length of the method name; here are {len(options)}",
            close=True,
        )
    sequence, cut = options
    payload = frame.payload
    if cut > len(payload):
        raise RpcFrameError(f"a method name of {cut} bytes in a payload of {len(payload)}", close=True)
    try:
        return sequence, payload[:cut].decode("utf-8"), payload[cut:]
    except UnicodeDecodeError:
        raise RpcFrameError("a method name that is no UTF-8", close=True) from None


def _encode(sequence: int, method: str, rest: bytes, flags: int) -> bytes:
    name = method.encode("utf-8")
    return encode_frame(name + rest, flags=flags, options=(sequence, len(name)))
