"""PARCELS: what a server keeps in memory, on its way to the server that replaces it.

After an upgrade the old server has things that the new one should go on with: jobs, pipelines, metrics. A plugin offers
them as an :class:`Estate`, parcel by parcel; each is taken out of the plugin, sent over the channel of the upgrade, and
answered. Each parcel has one owner at every moment: the old server until the new one has taken it in as a whole, the new
one from then on. The old one puts a parcel back when it is refused or when the new one has gone without an answer, and for
no other reason: one that waits for its answer is nobody else's business.

The channel carries lines, and a parcel's line is followed by its body, which is msgpack:

    old to new    go | parcel NUMBER PART LENGTH
    new to old    ready {"takes": {PART: VERSION}} | failed TEXT | taken NUMBER | refused NUMBER TEXT

Everything a sender is in the middle of is kept in it, so that a cancelled call can be taken up by a later one.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgpack
import trio

from trailboss.log import logger

__all__ = [
    "PARCEL_BYTES",
    "PARCEL_BYTES_MAX",
    "Arrival",
    "BadChannel",
    "Decoder",
    "Estate",
    "Go",
    "Parcel",
    "ParcelRefused",
    "Sender",
    "answer_line",
    "pack",
    "unpack",
]

log = logger("container")

#: What a parcel should have; one thing that is larger travels alone.
PARCEL_BYTES: Final = 64 * 1024
PARCEL_BYTES_MAX: Final = 1 << 30
#: Longest line of the channel.
LINE_BYTES_MAX: Final = 64 * 1024
_TEXT_CHARACTERS_MAX: Final = 2000
_RECEIVE_BYTES: Final = 256 * 1024


class ParcelRefused(Exception):
    """Nothing of a parcel was taken in; the text says why, for people."""


class BadChannel(Exception):
    """What came over the channel is not what was agreed on; nothing more can be understood."""


@dataclass(eq=False, slots=True)
class Parcel:
    """Something taken out of a plugin. `content` consists of what msgpack knows; `items` is for people."""

    content: object
    items: int
    #: Called, once, where it cannot be delivered: everything is as if it had not been taken out.
    put_back: Callable[[], None]


class Estate(Protocol):
    """What a plugin has that a successor should go on with, and the way in for what a predecessor had."""

    def declarations(self) -> Parcel | None:
        """Return what there is by name, without its content; delivered before the successor is in charge."""
        ...

    def next_parcel(self) -> Parcel | None:
        """Take out the next part, or return None where there is nothing now."""
        ...

    async def receive(self, content: object) -> int:
        """Take in the content of a parcel as a whole; return its items. Raises ParcelRefused: then nothing of it is."""
        ...


def pack(content: object) -> bytes:
    """Return the body of a parcel. Raises ParcelRefused for what cannot travel."""
    try:
        body: bytes = msgpack.packb(content, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError) as error:
        raise ParcelRefused(f"it cannot be written: {error}") from error
    if len(body) > PARCEL_BYTES_MAX:
        raise ParcelRefused(f"it is longer than {PARCEL_BYTES_MAX} bytes")
    return body


def unpack(body: bytes) -> object:
    """Return the content of a body. Raises ParcelRefused where it is none."""
    try:
        content: object = msgpack.unpackb(body, unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException) as error:
        raise ParcelRefused(f"it cannot be read: {str(error) or type(error).__name__}") from error
    return content


# --- the side of the successor --------------------------------------------------------------------------------------


class Go(NamedTuple):
    """The predecessor has let go."""


class Arrival(NamedTuple):
    """A parcel that is there as a whole."""

    number: int
    part: str
    body: bytes


class Decoder:
    """What a successor reads: bytes in, :class:`Go` and :class:`Arrival` out."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, str, int] | None = None  # of the parcel whose body comes

    def feed(self, data: bytes) -> None:
        """Take in what was read."""
        self._buffer += data

    def next_message(self) -> Go | Arrival | None:
        """Return the next message, or None where there is no whole one. Raises BadChannel."""
        if self._head is None:
            line = _take_line(self._buffer)
            if line is None:
                return None
            if line == b"go":
                return Go()
            self._head = _read_head(line)
        number, part, length = self._head
        if len(self._buffer) < length:
            return None
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        self._head = None
        return Arrival(number, part, body)


def _take_line(buffer: bytearray) -> bytes | None:
    end = buffer.find(b"\n", 0, LINE_BYTES_MAX)
    if end < 0:
        if len(buffer) >= LINE_BYTES_MAX:
            raise BadChannel(f"a line longer than {LINE_BYTES_MAX} bytes")
        return None
    line = bytes(memoryview(buffer)[:end])
    del buffer[: end + 1]
    return line


def _read_head(line: bytes) -> tuple[int, str, int]:
    words = line.split(b" ")
    if len(words) != 4 or words[0] != b"parcel":
        raise BadChannel(f"an unknown line: {line[:100]!r}")
    number, length = _number(words[1]), _number(words[3])
    if number is None or length is None or not words[2].isalpha():
        raise BadChannel(f"a wrong parcel line: {line[:100]!r}")
    if length > PARCEL_BYTES_MAX:
        raise BadChannel(f"a parcel of {length} bytes, more than {PARCEL_BYTES_MAX}")
    return number, words[2].decode(), length


def _number(word: bytes) -> int | None:
    return int(word) if word.isdigit() and len(word) <= 18 else None


# --- the side of the predecessor ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _UnderWay:
    number: int
    part: str
    parcel: Parcel


class Sender:
    """Sends parcels to the successor and waits for its answers; one parcel is under way at a time.

    `takes`: parts that the successor takes, with their versions; a part whose parcel it has refused is taken out.
    """

    def __init__(self, channel: socket.socket, takes: Mapping[str, int]) -> None:
        self._channel = channel
        self._takes = dict(takes)
        self._lock = trio.Lock()
        self._out = bytearray()
        self._in = bytearray()
        self._under_way: _UnderWay | None = None
        self._number = 0
        #: The successor has gone, or says what nobody understands.
        self.gone = False

    def takes(self, part: str, version: int) -> bool:
        """Whether parcels of `part` can be sent."""
        return self._takes.get(part) == version

    def on_the_way(self, part: str) -> int:
        """How many items of `part` have been sent and not been answered."""
        under_way = self._under_way
        return under_way.parcel.items if under_way is not None and under_way.part == part else 0

    async def deliver(self, part: str, version: int, next_parcel: Callable[[], Parcel | None]) -> int:
        """Send parcels as long as there are any and the successor takes them; return how many items it has taken.

        Afterwards `takes` says whether it still does. On cancellation: a parcel that is under way stays so; the next call
        goes on with it.
        """
        items = 0
        async with self._lock:
            begun = self._under_way
            finished = await self._finish()
            if begun is not None and begun.part == part:
                items += finished
            while self.takes(part, version) and (parcel := next_parcel()) is not None:
                self._begin(part, parcel)
                items += await self._finish()
        return items

    def let_go(self) -> None:
        """Put the successor in charge."""
        with suppress(OSError):  # it has gone: nothing can be done about that any more
            self._channel.send(b"go\n")

    def close(self) -> None:
        """Close the channel; what is under way is not put back, since it may arrive."""
        self._channel.close()

    def _begin(self, part: str, parcel: Parcel) -> None:
        try:
            body = pack(parcel.content)
        except ParcelRefused as refused:
            self._put_back(part, parcel, str(refused))
            return
        self._number += 1
        self._under_way = _UnderWay(self._number, part, parcel)
        self._out += b"parcel %d %s %d\n" % (self._number, part.encode(), len(body))
        self._out += body

    async def _finish(self) -> int:
        """Bring to its end what is under way; return how many items were taken."""
        await trio.lowlevel.checkpoint()
        under_way = self._under_way
        if under_way is None:
            return 0
        await self._send_out()
        answer = await self._hear()
        self._under_way = None
        if answer == b"taken %d" % under_way.number:
            return under_way.parcel.items
        word, _, rest = answer.partition(b" ")
        if word == b"refused":
            self._put_back(under_way.part, under_way.parcel, _text(rest))
            return 0
        self.gone = True
        reason = f"it answers {answer[:100]!r}" if answer else "it has gone"
        self._put_back(under_way.part, under_way.parcel, reason)
        self._takes.clear()
        return 0

    def _put_back(self, part: str, parcel: Parcel, reason: str) -> None:
        self._takes.pop(part, None)
        parcel.put_back()
        log.error("the new server does not take over what this one has in memory", part=part, reason=reason)

    async def _send_out(self) -> None:
        while self._out:
            try:
                sent = self._channel.send(self._out)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._channel)
            except OSError:  # what it has said before is still to be read
                self._out.clear()
            else:
                del self._out[:sent]

    async def _hear(self) -> bytes:
        """Return the next line; an empty one when there will be none."""
        while b"\n" not in self._in:
            try:
                data = self._channel.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._channel)
                continue
            except OSError:
                return b""
            if not data or len(self._in) > LINE_BYTES_MAX:
                return b""
            self._in += data
        line, _, rest = self._in.partition(b"\n")
        self._in = bytearray(rest)
        return bytes(line)


def _text(words: bytes) -> str:
    """Return the text after the number of a refusal."""
    try:
        return str(json.loads(words.partition(b" ")[2]))[:_TEXT_CHARACTERS_MAX]
    except ValueError:
        return "it does not say why"


def answer_line(number: int, refusal: str = "") -> bytes:
    """Return the successor's answer to a parcel."""
    if not refusal:
        return b"taken %d\n" % number
    return f"refused {number} {json.dumps(refusal[:_TEXT_CHARACTERS_MAX])}\n".encode()
