"""Frames of the goridge protocol: decode a stream, decode a buffer in one call, encode.

This is the module to import. It reads frames with the C codec where that can be imported and with
`frames_reference` where it cannot (no compiler when it was installed, an older Python, or
TRAILBOSS_PURE_PYTHON=1 in the environment); the behaviour is the same, `codec_name` tells which one works.
Headers are written by `struct` and `zlib` in both cases: their work is C already, and a call into the codec
plus copying its result out costs more than it saves.
"""

from __future__ import annotations

import os  # for one environment variable; nothing here does I/O
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trailboss_worker.protocol.errors import FrameError
from trailboss_worker.protocol.frames_reference import (
    CONTROL,
    DEFAULT_PAYLOAD_CAP,
    ERROR,
    GOB,
    HEADER_SIZE_MAX,
    HEADER_SIZE_MIN,
    JSON,
    MSGPACK,
    OPTION_COUNT_MAX,
    PAYLOAD_LENGTH_MAX,
    PING,
    PONG,
    PROTO,
    RAW,
    STOP,
    STREAM,
    Buffer,
    Frame,
    FrameFields,
    check_encodable,
)

__all__ = [
    "CONTROL",
    "DEFAULT_PAYLOAD_CAP",
    "ERROR",
    "GOB",
    "HEADER_SIZE_MAX",
    "HEADER_SIZE_MIN",
    "JSON",
    "MSGPACK",
    "OPTION_COUNT_MAX",
    "PAYLOAD_LENGTH_MAX",
    "PING",
    "PONG",
    "PROTO",
    "RAW",
    "STOP",
    "STREAM",
    "Buffer",
    "Frame",
    "FrameBatch",
    "FrameDecoder",
    "FrameError",
    "FrameFields",
    "codec_fallback_reason",
    "codec_name",
    "decode_batch",
    "encode_frame",
    "encode_header",
]

_fallback_reason: str | None = None

if TYPE_CHECKING:
    from trailboss_worker.protocol.frames_native import FrameBatch, FrameDecoder, decode_batch
elif os.environ.get("TRAILBOSS_PURE_PYTHON") == "1":
    from trailboss_worker.protocol.frames_reference import FrameBatch, FrameDecoder, decode_batch

    _fallback_reason = "TRAILBOSS_PURE_PYTHON=1 is set"
else:
    try:
        from trailboss_worker.protocol.frames_native import FrameBatch, FrameDecoder, decode_batch
    except ImportError as error:
        from trailboss_worker.protocol.frames_reference import FrameBatch, FrameDecoder, decode_batch

        _fallback_reason = str(error)

_pack_head = struct.Struct("<BBI").pack
_pack_tails = tuple(struct.Struct(f"<IBB{count}I").pack for count in range(OPTION_COUNT_MAX + 1))
_crc32 = zlib.crc32


def codec_name() -> str:
    """ "C" or "python": which implementation reads frames in this process."""
    return "C" if _fallback_reason is None else "python"


def codec_fallback_reason() -> str | None:
    """Why the plain Python codec is in use; None while the C codec is."""
    return _fallback_reason


def encode_header(
    payload_length: int, *, flags: int = 0, stream: int = 0, options: Sequence[int] = ()
) -> bytes:
    """The header of a frame whose payload follows. Raises LocalProtocolError for what a header cannot say."""
    count = len(options)
    try:
        head = _pack_head(0x13 + count, flags, payload_length)
        return head + _pack_tails[count](_crc32(head), stream, 0, *options)
    except (struct.error, IndexError):
        check_encodable(payload_length, flags, stream, options)
        raise


def encode_frame(payload: bytes, *, flags: int = 0, stream: int = 0, options: Sequence[int] = ()) -> bytes:
    """A whole frame, to be sent with one write. Raises LocalProtocolError for what a header cannot say."""
    count = len(options)
    try:
        head = _pack_head(0x13 + count, flags, len(payload))
        return head + _pack_tails[count](_crc32(head), stream, 0, *options) + payload
    except (struct.error, IndexError):
        check_encodable(len(payload), flags, stream, options)
        raise
