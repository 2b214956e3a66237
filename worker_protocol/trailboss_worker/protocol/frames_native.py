"""The goridge frame on top of the C codec (`trailboss_worker._frame`): what `frames` uses where it can.

The C side judges bytes and finds offsets in memory that Python owns; the Python side keeps the stream's
tail and slices payloads. Two shapes of buffer: while whatever was fed holds whole frames, the received
`bytes` object itself is read in place; the beginning of a larger frame that is cut moves to a bytearray
that grows as data arrives, never by the declared length, and goes away with that frame. `_need` is the number of buffered bytes below which looking
again is pointless, so feeding a large payload piece by piece costs nothing per piece.

The behaviour is that of `frames_reference`, held to it by differential tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from trailboss_worker._frame import ffi, lib
from trailboss_worker.protocol.errors import EXCERPT_BYTES_MAX, FrameError, LocalProtocolError
from trailboss_worker.protocol.frames_reference import (
    DEFAULT_PAYLOAD_CAP,
    DIAGNOSTIC_BYTES_MAX,
    HEADER_SIZE_MAX,
    HEADER_SIZE_MIN,
    Buffer,
    Frame,
    FrameFields,
    place_of,
    truncation_place,
)

_ERROR_CODES = (None, "bad_crc", "version", "header_len", "too_large", "file_not_found")
_CAP_MAX = 2**64 - 1

# Up to this many unread bytes are joined with the next chunk instead of opening a bytearray for them.
TAIL_BYTES_MAX = 4096

_probe = lib.trailboss_frame_probe
_walk = lib.trailboss_frame_walk
_new_tuple = tuple.__new__

# Header length in words -> reader of the options of such a header.
_OPTION_READERS = tuple(struct.Struct(f"<{max(0, words - 3)}I").unpack_from for words in range(16))

# struct trailboss_frame as native/frame.h lays it out: no padding, the machine's byte order.
_RECORD = struct.Struct("=QIBBBB10I")
if _RECORD.size != ffi.sizeof("struct trailboss_frame"):  # pragma: no cover - a build for another machine
    raise ImportError("trailboss_worker._frame was built with another record layout")


class FrameDecoder:
    """Turns the bytes of one stream into frames; one decoder per stream.

    `feed` only stores, `next_frame` works. After the first `FrameError` the stream is dead: every further
    `next_frame` raises the same error, and what is fed is kept (64 KiB) for diagnostics only.
    """

    __slots__ = (
        *("_batch", "_buffer", "_end", "_eof", "_error", "_need", "_payload_cap"),
        *("_position", "_record", "_size", "_strict_version"),
    )

    def __init__(self, payload_cap: int = DEFAULT_PAYLOAD_CAP, strict_version: bool = True) -> None:
        self._payload_cap = min(payload_cap, _CAP_MAX)
        self._strict_version = strict_version
        self._buffer: bytes | bytearray = b""
        self._position = 0  # where the unread bytes start
        self._size = 0  # where they end
        self._need = HEADER_SIZE_MIN
        self._eof = False
        self._error: FrameError | None = None
        self._record = ffi.new("struct trailboss_frame *")
        self._end = ffi.new("struct trailboss_frame_end *")
        self._batch: FrameBatch | None = None

    def feed(self, data: Buffer) -> None:
        """Stores what was received. Raises LocalProtocolError after `feed_eof`."""
        if self._eof:
            raise LocalProtocolError("bytes after the end of the stream")
        if self._position == self._size and self._error is None:
            self._buffer = data = data if type(data) is bytes else bytes(data)
            self._position = 0
            self._size = len(data)
        else:
            self._append(data)

    def feed_eof(self) -> None:
        """Says that no more bytes will come."""
        self._eof = True

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None when more bytes are needed. Raises FrameError."""
        position = self._position
        size = self._size
        if size - position < self._need or self._error is not None:
            self._check_nothing_failed()
            return None
        buffer = self._buffer
        end = self._end
        if type(buffer) is bytes:
            total = _probe(buffer, size, position, self._payload_cap, self._strict_version, self._record, end)
        else:
            # A bytearray (it starts with the frame) cannot be lent to C without locking its size: copy the head.
            head = bytes(buffer[:HEADER_SIZE_MAX])
            total = _probe(head, len(head), 0, self._payload_cap, self._strict_version, self._record, end)
            if total == -2 and len(head) + end.missing <= size - position:
                total = len(head) + end.missing
        if total < 0:
            self._note_incomplete(total)
            return None

        words = buffer[position] & 0x0F
        stop = position + total
        start = position + 4 * words
        # A copy through a view, because slicing a bytearray first would copy a large payload twice.
        payload = buffer[start:stop] if type(buffer) is bytes else bytes(memoryview(buffer)[start:stop])
        frame: Frame = _new_tuple(
            Frame,
            (
                buffer[position + 1],
                buffer[position + 10],
                _OPTION_READERS[words](buffer, position + 12),
                payload,
            ),
        )
        self._consume_to(stop)
        return frame

    def next_frames(self) -> list[Frame]:
        """Every whole frame there is. A FrameError is raised only when there is no frame before it."""
        frames: list[Frame] = []
        buffer = self._buffer
        if type(buffer) is bytes and self._size - self._position >= self._need and self._error is None:
            batch = self._batch
            if batch is None:
                batch = self._batch = FrameBatch()
            batch.scan(buffer, self._position, self._payload_cap, self._strict_version)
            for start, length, flags, stream, option_count, _reserved, *options in batch.records():
                payload = buffer[start : start + length]
                frames.append(_new_tuple(Frame, (flags, stream, tuple(options[:option_count]), payload)))
            self._consume_to(self._position + batch.consumed)
        while True:
            if self._size - self._position < self._need and frames:
                return frames
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
        available = self._size - self._position
        if available >= self._need:
            head = bytes(self._buffer[self._position : self._position + HEADER_SIZE_MAX])
            total = _probe(
                head, len(head), 0, self._payload_cap, self._strict_version, self._record, self._end
            )
            if total != -2:
                return 0
            return max(0, len(head) + int(self._end.missing) - available)
        return self._need - available

    @property
    def buffered(self) -> int:
        """Bytes received and not yet given out."""
        return self._size - self._position

    @property
    def at_clean_eof(self) -> bool:
        """Whether the stream ended between two frames and everything was read."""
        return self._eof and self._error is None and self._position == self._size

    def pending_bytes(self, limit: int = EXCERPT_BYTES_MAX) -> bytes:
        """What lies unread, at most `limit` bytes of it, for diagnostics."""
        return bytes(self._buffer[self._position : min(self._size, self._position + limit)])

    def _append(self, data: Buffer) -> None:
        """Adds to unread bytes."""
        if self._error is not None:
            data = data[: max(0, DIAGNOSTIC_BYTES_MAX - (self._size - self._position))]
        unread = self._size - self._position
        if isinstance(self._buffer, bytearray):
            self._buffer += data
        elif unread <= TAIL_BYTES_MAX and unread + len(data) >= self._need:
            # A short tail and the chunk that completes it: one copy, and all of it can be read in place.
            self._buffer = self._buffer[self._position : self._size] + data
        else:
            buffer = bytearray(memoryview(self._buffer)[self._position : self._size])
            buffer += data
            self._buffer = buffer
        self._position = 0
        self._size = unread + len(data)

    def _consume_to(self, position: int) -> None:
        """Marks everything before `position` as read; an empty buffer lets go of its memory at once."""
        self._need = HEADER_SIZE_MIN
        if position == self._size:
            self._buffer = b""
            self._position = self._size = 0
        elif isinstance(self._buffer, bytearray):
            self._buffer = bytes(memoryview(self._buffer)[position:])
            self._position = 0
            self._size -= position
        else:
            self._position = position

    def _check_nothing_failed(self) -> None:
        """Raises what makes it certain that no frame will come; returns when more bytes may bring one."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._eof and self._position != self._size:
            tail = self.pending_bytes(HEADER_SIZE_MAX)
            raise self._failed(FrameError("truncated", truncation_place(tail), self.pending_bytes()))

    def _note_incomplete(self, result: int) -> None:
        """Acts on what the probe said instead of a size: remembers how much is needed, or fails for good."""
        if result == -2:
            # The head is valid now, so this many bytes, and no fewer, make the next look worth while.
            available = self._size - self._position
            seen = available if type(self._buffer) is bytes else min(available, HEADER_SIZE_MAX)
            self._need = seen + int(self._end.missing)
            self._check_nothing_failed()
            return
        code = _ERROR_CODES[self._end.error]
        assert code is not None
        raise self._failed(FrameError(code, place_of(code), self.pending_bytes()))

    def _failed(self, error: FrameError) -> FrameError:
        self._error = error
        return error


class FrameBatch:
    """The frames found in one buffer by `decode_batch`: offsets in a C array, no copies.

    A batch may be used again and again; its array grows to the largest number of frames ever seen.
    """

    __slots__ = ("_capacity", "_end", "_records", "_view", "consumed", "count", "error", "missing")

    def __init__(self, capacity: int = 512) -> None:
        self._end = ffi.new("struct trailboss_frame_end *")
        self._allocate(max(1, capacity))
        self.count = 0
        self.missing = 0
        self.consumed = 0
        self.error: str | None = None

    def frame(self, index: int) -> FrameFields:
        """Flags, stream bits, options, payload start and payload length of one frame."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return _fields(*_RECORD.unpack_from(self._view, index * _RECORD.size))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[FrameFields]:
        for record in self.records():
            yield _fields(*record)

    def records(self) -> Iterator[tuple[int, ...]]:
        """The raw records: payload start, length, flags, stream, option count, reserved, ten option places."""
        return _RECORD.iter_unpack(self._view[: self.count * _RECORD.size])

    def scan(self, buffer: Buffer, position: int, payload_cap: int, strict_version: bool) -> None:
        """Fills the batch from `buffer`, starting at `position`: one C call unless the array has to grow."""
        # bytes are lent to C as they are; other buffers need a handle that locks their size for a moment.
        data: Any = buffer if type(buffer) is bytes else ffi.from_buffer(buffer)
        end = self._end
        size = len(buffer)
        cap = min(payload_cap, _CAP_MAX)
        count = _walk(data, size, position, cap, strict_version, self._records, self._capacity, end)
        consumed = end.consumed
        while count == self._capacity:
            self._grow()
            start = position + consumed
            room = self._capacity - count
            count += _walk(data, size, start, cap, strict_version, self._records + count, room, end)
            consumed += end.consumed
        self.count = count
        self.consumed = consumed
        self.missing = end.missing
        self.error = _ERROR_CODES[end.error]

    def _allocate(self, capacity: int) -> None:
        self._capacity = capacity
        self._records = ffi.new("struct trailboss_frame[]", capacity)
        self._view = ffi.buffer(self._records)

    def _grow(self) -> None:
        old = self._view
        self._allocate(self._capacity * 4)
        self._view[: len(old)] = old[:]


def decode_batch(
    buffer: Buffer,
    payload_cap: int = DEFAULT_PAYLOAD_CAP,
    strict_version: bool = True,
    batch: FrameBatch | None = None,
) -> FrameBatch:
    """Finds every whole frame in `buffer`; reuses `batch` when one is given."""
    if batch is None:
        batch = FrameBatch()
    batch.scan(buffer, 0, payload_cap, strict_version)
    return batch


def encode_header_native(payload_length: int, flags: int, stream: int, options: tuple[int, ...]) -> bytes:
    """A header written by C. Raises LocalProtocolError where C refuses (it cannot be handed a non-u32)."""
    header = ffi.new("uint8_t[]", HEADER_SIZE_MAX)
    size = lib.trailboss_frame_encode_header(header, flags, stream, options, len(options), payload_length)
    if size < 0:
        raise LocalProtocolError("more than 10 options, or a payload above 2^32-1 bytes")
    return bytes(ffi.buffer(header, size))


def _fields(
    start: int, length: int, flags: int, stream: int, option_count: int, _reserved: int, *options: int
) -> FrameFields:
    return flags, stream, options[:option_count], start, length
