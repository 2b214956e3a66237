"""WHAT AN HTTP/2 CLIENT MAY ASK OF US: bytes to whole frames, and patience that floods use up. Pure.

The library h2 knows the protocol; it does not know when to stop. So each frame passes here first: one that is longer than
allowed is refused before it is buffered, a head in many pieces is counted, and every frame that makes work without being
a request costs patience: pings, settings, resets, priorities, window updates, data without content. Patience comes back
with time and with answers that are taken, so an honest client never runs out of it. Whoever does is told
ENHANCE_YOUR_CALM, and only their own connection ends.

The prices are those of the known attacks: rapid reset (CVE-2023-44487), CONTINUATION (CVE-2024-27316), and the ping,
settings, reset, priority, empty frame, dribble and window floods of 2019 (CVE-2019-9511 to 9518).
"""

from __future__ import annotations

from typing import Final

from h2.errors import ErrorCodes

__all__ = ["FrameGate", "Violation", "known_settings"]

#: RFC 9113, 6.5.2, and the one of RFC 8441.
KNOWN_SETTINGS: Final = frozenset((1, 2, 3, 4, 5, 6, 8))

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8

FRAME_HEAD_BYTES: Final = 9
#: The least a server has to take, and what we take: RFC 9113, 6.5.2.
FRAME_BYTES_MAX: Final = 16_384

#: CONTINUATION frames of one head; h2 itself gives up a little later, with another code.
CONTINUATIONS_MAX: Final = 60
#: Patience at the start, the most there can be, and what comes back in a second.
PATIENCE: Final = 1000.0
PATIENCE_PER_SECOND: Final = 33.0
#: The price of each kind of frame; a kind that nobody knows costs as much as a PRIORITY.
PRICES: Final = {
    PRIORITY: 1.0,
    RST_STREAM: 4.0,
    SETTINGS: 10.0,
    PING: 2.0,
    GOAWAY: 50.0,
    WINDOW_UPDATE: 0.25,
    CONTINUATION: 1.0,
}
PRICE_UNKNOWN: Final = 1.0
#: DATA without content that does not end its stream, and with so little content that the frame costs more than it.
PRICE_EMPTY: Final = 5.0
PRICE_SMALL: Final = 0.1
SMALL_BYTES: Final = 256
#: A request that was refused before a handler saw it, or that broke the rules.
PRICE_REFUSED: Final = 4.0
#: A frame for a stream that we have closed: on its way when we did, but not for ever.
PRICE_LATE: Final = 0.25
#: Earned by an answer, and by each frame of one that is worth its WINDOW_UPDATEs.
EARNED_BY_ANSWER: Final = 1.0
EARNED_BY_DATA: Final = 2.0
EARNING_BYTES: Final = 512


class Violation(Exception):
    """The connection has to end: the code for the GOAWAY, and the reason for people."""

    def __init__(self, code: ErrorCodes, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def known_settings(frame: bytearray) -> bytearray:
    """Return a SETTINGS frame without the settings that nobody knows; the library would remember each of them."""
    kept = b"".join(
        bytes(frame[at : at + 6])
        for at in range(FRAME_HEAD_BYTES, len(frame), 6)
        if int.from_bytes(frame[at : at + 2], "big") in KNOWN_SETTINGS
    )
    if len(frame) % 6 != FRAME_HEAD_BYTES % 6 or len(kept) == len(frame) - FRAME_HEAD_BYTES:
        return frame  # as it was; what is wrong with it is the library's to say
    return bytearray(len(kept).to_bytes(3, "big")) + frame[3:FRAME_HEAD_BYTES] + kept


class FrameGate:
    """Looks at one connection's frames. `kind` and `stream` are those of the last one that `size_of_next` let pass."""

    __slots__ = (
        "_block",
        "_block_bytes_max",
        "_head_stream",
        "_parts",
        "_patience",
        "_since",
        "_started",
        "head_since",
        "kind",
        "stream",
    )

    def __init__(self, head_bytes: int, now: float) -> None:
        #: A head may be twice as long as allowed, so that it can be read and answered with 431.
        self._block_bytes_max = 2 * head_bytes
        self._block = self._parts = 0
        self._head_stream = 0
        self._patience = PATIENCE
        self._since = now
        self._started = False
        #: When the head began whose end is missing; None where there is none.
        self.head_since: float | None = None
        self.kind = -1
        self.stream = 0

    def size_of_next(self, buffer: bytearray, position: int, now: float) -> int:
        """Return the size of the frame at `position`, 0 while it is not complete. Raises Violation."""
        if len(buffer) - position < FRAME_HEAD_BYTES:
            return 0
        length = (buffer[position] << 16) | (buffer[position + 1] << 8) | buffer[position + 2]
        kind = buffer[position + 3]
        flags = buffer[position + 4]
        if length > FRAME_BYTES_MAX:
            raise Violation(ErrorCodes.FRAME_SIZE_ERROR, "a frame is larger than SETTINGS_MAX_FRAME_SIZE")
        if not self._started and (kind != SETTINGS or flags & ACK):
            raise Violation(ErrorCodes.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if len(buffer) - position < FRAME_HEAD_BYTES + length:
            return 0
        self._started = True
        self.kind = kind
        self.stream = int.from_bytes(buffer[position + 5 : position + 9], "big") & 0x7FFFFFFF
        if kind == HEADERS or self._head_stream:
            self._on_head_part(kind, flags, length, now)
        elif kind == DATA:
            if length < SMALL_BYTES or flags & PADDED:
                self._on_small_data(buffer, position, length, flags, now)
        elif flags & ACK and kind in (PING, SETTINGS):
            self.spend(PRICE_UNKNOWN, now)
        else:
            self.spend(PRICES.get(kind, PRICE_UNKNOWN), now)
        return FRAME_HEAD_BYTES + length

    def _on_head_part(self, kind: int, flags: int, length: int, now: float) -> None:
        if kind == CONTINUATION:
            self.spend(PRICES[CONTINUATION] if length else PRICE_EMPTY, now)
            self._parts += 1
            if self._parts > CONTINUATIONS_MAX:
                raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "a head in too many pieces")
        elif self._head_stream:
            raise Violation(ErrorCodes.PROTOCOL_ERROR, "a frame in the middle of a head")
        self._block += length
        if self._block > self._block_bytes_max:
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "a head is too long")
        if flags & END_HEADERS:
            self._block = self._parts = self._head_stream = 0
            self.head_since = None
        elif not self._head_stream:
            self._head_stream = self.stream
            self.head_since = now

    def _on_small_data(self, buffer: bytearray, position: int, length: int, flags: int, now: float) -> None:
        if flags & PADDED and length:
            length = max(0, length - 1 - buffer[position + FRAME_HEAD_BYTES])
        if flags & END_STREAM or length >= SMALL_BYTES:
            return
        self.spend(PRICE_SMALL if length else PRICE_EMPTY, now)

    def spend(self, price: float, now: float) -> None:
        """Use up patience. Raises Violation when there is none left."""
        patience = self._patience + (now - self._since) * PATIENCE_PER_SECOND
        self._since = now
        patience = min(patience, PATIENCE) - price
        self._patience = patience
        if patience < 0:
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def earn(self, amount: float) -> None:
        """Give patience back."""
        self._patience += amount
