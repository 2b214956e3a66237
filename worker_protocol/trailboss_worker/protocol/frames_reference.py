"""The goridge frame in plain Python: executable specification, test oracle and fallback.

A stream is frame after frame, without preamble, separator or padding:

    byte 0       version (1) in the high nibble, header length in words (HL, 3..13) in the low one
    byte 1       flags
    bytes 2-5    payload length, u32 little-endian
    bytes 6-9    CRC-32 (zlib's) over bytes 0-5
    byte 10      stream bits
    byte 11      reserved
    then         HL-3 options, u32 little-endian each, then the payload

The order of the checks matters (wire protocol 1.5): everything a reader can know is known with the 12th
byte, so garbage never makes it wait for the bytes that a random length announces. `frames` is the module
to import; it offers the same names and uses the C codec where it can. Written to be read, not to be fast.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union

from trailboss_worker.protocol.errors import EXCERPT_BYTES_MAX, FrameError, LocalProtocolError

# Flags, byte 1. Test them by mask, never by equality.
CONTROL = 0x01
RAW = 0x04
JSON = 0x08
MSGPACK = 0x10
GOB = 0x20
ERROR = 0x40
PROTO = 0x80

# Stream bits, byte 10.
STREAM = 0x01
STOP = 0x02
PING = 0x04
PONG = 0x08

HEADER_SIZE_MIN = 12
HEADER_SIZE_MAX = 52
OPTION_COUNT_MAX = 10
PAYLOAD_LENGTH_MAX = 2**32 - 1
DEFAULT_PAYLOAD_CAP = 128 * 1024 * 1024
FILE_NOT_FOUND_TEXT = b"Could not op"
# After an error a decoder keeps this much of what still arrives, for the log only.
DIAGNOSTIC_BYTES_MAX = 64 * 1024

Buffer = Union[bytes, bytearray, memoryview]  # noqa: UP007 - evaluated at run time by Python 3.9
FrameFields = tuple[int, int, tuple[int, ...], int, int]  # flags, stream, options, payload start and length


class Frame(NamedTuple):
    """One frame: flags (byte 1), stream bits (byte 10), options, payload."""

    flags: int
    stream: int
    options: tuple[int, ...]
    payload: bytes


class FrameDecoder:
    """Turns the bytes of one stream into frames; one decoder per stream.

    `feed` only stores, `next_frame` works. After the first `FrameError` the stream is dead: every further
    `next_frame` raises the same error, and what is fed is kept (64 KiB) for diagnostics only.
    """

    __slots__ = ("_buffer", "_eof", "_error", "_payload_cap", "_strict_version")

    def __init__(self, payload_cap: int = DEFAULT_PAYLOAD_CAP, strict_version: bool = True) -> None:
        self._payload_cap = payload_cap
        self._strict_version = strict_version
        self._buffer = bytearray()
        self._eof = False
        self._error: FrameError | None = None

    def feed(self, data: Buffer) -> None:
        """Stores what was received. Raises LocalProtocolError after `feed_eof`."""
        if self._eof:
            raise LocalProtocolError("bytes after the end of the stream")
        if self._error is None:
            self._buffer += data
        else:
            self._buffer += data[: max(0, DIAGNOSTIC_BYTES_MAX - len(self._buffer))]

    def feed_eof(self) -> None:
        """Says that no more bytes will come."""
        self._eof = True

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None when more bytes are needed. Raises FrameError."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        code, _, fields = probe(self._buffer, 0, self._payload_cap, self._strict_version)
        if code is None and fields is None and self._eof and self._buffer:
            code = "truncated"
        if code is not None:
            place = truncation_place(self._buffer) if code == "truncated" else place_of(code)
            self._error = FrameError(code, place, self.pending_bytes(EXCERPT_BYTES_MAX))
            raise self._error
        if fields is None:
            return None
        flags, stream, options, start, length = fields
        payload = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return Frame(flags, stream, options, payload)

    def next_frames(self) -> list[Frame]:
        """Every whole frame there is. A FrameError is raised only when there is no frame before it."""
        frames: list[Frame] = []
        while True:
            try:
                frame = self.next_frame()
            except FrameError:
                if frames:
                    return frames
                raise
            if frame is None:
                return frames
            frames.append(frame)

    @property
    def missing(self) -> int:
        """Bytes until the next frame, or its 12-byte head, is whole; 0 when there is a frame or an error."""
        if self._error is not None:
            return 0
        return probe(self._buffer, 0, self._payload_cap, self._strict_version)[1]

    @property
    def buffered(self) -> int:
        """Bytes received and not yet given out."""
        return len(self._buffer)

    @property
    def at_clean_eof(self) -> bool:
        """Whether the stream ended between two frames and everything was read."""
        return self._eof and self._error is None and not self._buffer

    def pending_bytes(self, limit: int = EXCERPT_BYTES_MAX) -> bytes:
        """What lies unread, at most `limit` bytes of it, for diagnostics."""
        return bytes(self._buffer[:limit])


class FrameBatch:
    """The frames found in one buffer by `decode_batch`: offsets into it, no copies."""

    __slots__ = ("_fields", "consumed", "error", "missing")

    def __init__(self) -> None:
        self._fields: list[FrameFields] = []
        self.missing = 0
        self.consumed = 0
        self.error: str | None = None

    @property
    def count(self) -> int:
        """How many whole frames there are."""
        return len(self._fields)

    def frame(self, index: int) -> FrameFields:
        """Flags, stream bits, options, payload start and payload length of one frame."""
        if not 0 <= index < len(self._fields):
            raise IndexError(index)
        return self._fields[index]

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[FrameFields]:
        return iter(self._fields)


def decode_batch(
    buffer: Buffer,
    payload_cap: int = DEFAULT_PAYLOAD_CAP,
    strict_version: bool = True,
    batch: FrameBatch | None = None,
) -> FrameBatch:
    """Finds every whole frame in `buffer`; reuses `batch` when one is given."""
    batch = FrameBatch() if batch is None else batch
    batch._fields = []
    position = 0
    while True:
        batch.error, batch.missing, fields = probe(buffer, position, payload_cap, strict_version)
        if fields is None:
            batch.consumed = position
            return batch
        batch._fields.append(fields)
        position = fields[3] + fields[4]


def probe(
    buffer: Buffer, position: int, payload_cap: int, strict_version: bool
) -> tuple[str | None, int, FrameFields | None]:
    """Looks at the frame that starts at `position`: (error code, missing bytes, fields of a whole frame)."""
    available = len(buffer) - position
    if available < HEADER_SIZE_MIN:
        return None, HEADER_SIZE_MIN - available, None
    head = bytes(buffer[position : position + HEADER_SIZE_MIN])
    if head == FILE_NOT_FOUND_TEXT:
        return "file_not_found", 0, None
    first, flags, length, crc, stream, _reserved = struct.unpack("<BBIIBB", head)
    if crc != zlib.crc32(head[:6]):
        return "bad_crc", 0, None
    if strict_version and first >> 4 != 1:
        return "version", 0, None
    words = first & 0x0F
    if not 3 <= words <= 13:
        return "header_len", 0, None
    if length > payload_cap:
        return "too_large", 0, None
    total = 4 * words + length
    if available < total:
        return None, total - available, None
    options = struct.unpack_from(f"<{words - 3}I", buffer, position + HEADER_SIZE_MIN)
    return None, 0, (flags, stream, options, position + 4 * words, length)


def place_of(code: str) -> str:
    """Which part of a frame an error of this kind is in."""
    return "header" if code in ("version", "header_len", "too_large") else ""


def truncation_place(tail: Buffer) -> str:
    """Which part of a frame the stream ended in; `tail` is what came of the frame (1 byte or more)."""
    if len(tail) < HEADER_SIZE_MIN:
        return "header"
    return "options" if len(tail) < 4 * (tail[0] & 0x0F) else "payload"


def encode_header(
    payload_length: int, *, flags: int = 0, stream: int = 0, options: Sequence[int] = ()
) -> bytes:
    """The header of a frame whose payload follows. Raises LocalProtocolError for what a header cannot say."""
    check_encodable(payload_length, flags, stream, options)
    head = struct.pack("<BBI", 0x10 | (3 + len(options)), flags, payload_length)
    return head + struct.pack(f"<IBB{len(options)}I", zlib.crc32(head), stream, 0, *options)


def encode_frame(payload: bytes, *, flags: int = 0, stream: int = 0, options: Sequence[int] = ()) -> bytes:
    """A whole frame, to be sent with one write. Raises LocalProtocolError for what a header cannot say."""
    return encode_header(len(payload), flags=flags, stream=stream, options=options) + payload


def check_encodable(payload_length: int, flags: int, stream: int, options: Sequence[int]) -> None:
    """Raises LocalProtocolError, naming the field, for values that do not fit the header."""
    if len(options) > OPTION_COUNT_MAX:
        raise LocalProtocolError(f"{len(options)} options; a frame holds at most {OPTION_COUNT_MAX}")
    if not 0 <= payload_length <= PAYLOAD_LENGTH_MAX:
        raise LocalProtocolError(
            f"a payload of {payload_length} bytes; a frame holds at most {PAYLOAD_LENGTH_MAX}"
        )
    if not 0 <= flags <= 0xFF:
        raise LocalProtocolError(f"flags {flags} do not fit a byte")
    if not 0 <= stream <= 0xFF:
        raise LocalProtocolError(f"stream bits {stream} do not fit a byte")
    for option in options:
        if not 0 <= option <= 0xFFFFFFFF:
            raise LocalProtocolError(f"option {option} does not fit 32 bits")
