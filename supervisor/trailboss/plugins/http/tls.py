"""TLS BEHIND THE LOOKS OF A SOCKET: TlsChannel does no I/O, TlsSocket puts one between a connection and its socket.

A connection object works on either kind of socket with the same code; TlsSocket keeps these promises:

- `recv` decrypts all that has arrived with it. No plaintext ever waits behind it, so readiness of the descriptor is
  enough to go by.
- As long as ciphertext is unsent, the caller is left with at least one byte to send: the last byte of what was encrypted
  counts as not taken, and is skipped when it is offered again. So the caller's queue stays the only one, and its rules
  about stalls, back-pressure and the end hold as they are.
- `shutdown` sends close_notify before the end of the TCP stream. `close` alone sends nothing: what was cut looks cut.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trailboss.reactor import Reactor

__all__ = ["TlsChannel", "TlsSocket"]

#: Plaintext in one record; more never fits (RFC 8446, 5.1).
RECORD_BYTES: Final = 16 * 1024
#: Plaintext encrypted before the kernel is asked to take it.
PIECE_BYTES: Final = 8 * RECORD_BYTES
#: Plaintext taken by one call; others want their turn.
SEND_BYTES: Final = 1 << 18
#: Ciphertext that nobody has asked for (answers to key updates, alerts) and that the client does not take.
UNASKED_BYTES_MAX: Final = 64 * 1024


class TlsChannel:
    """The server's side of one TLS connection, bytes in and bytes out."""

    __slots__ = ("_incoming", "_object", "_outgoing", "ended")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        #: The client has said that it sends nothing more.
        self.ended = False

    def handshake(self, data: bytes) -> bool:
        """Go on with what has arrived; True when it is complete. Raises ssl.SSLError; `take` has the alert then."""
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @property
    def alpn(self) -> str:
        """The protocol that was agreed upon, or ""."""
        return self._object.selected_alpn_protocol() or ""

    @property
    def has_input(self) -> bool:
        """Whether ciphertext waits that has not been looked at; it may be an incomplete record."""
        return self._incoming.pending > 0

    def decrypt(self, data: bytes) -> bytes:
        """Return all content of what has arrived so far, b"" where a record is incomplete. Raises ssl.SSLError."""
        incoming, read, pending = self._incoming, self._object.read, self._object.pending
        incoming.write(data)
        parts: list[bytes] = []
        try:
            while True:
                part = read(RECORD_BYTES)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
                if not incoming.pending and not pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt `data`; `take` has it. Raises ssl.SSLError."""
        write = self._object.write
        sent = write(data)
        if sent < len(data):
            view = memoryview(data)
            while sent < len(data):
                sent += write(view[sent:])

    def end(self) -> None:
        """Say that nothing more follows (close_notify); `take` has it."""
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it waits for the client's; what is needed is written

    def take(self) -> bytes:
        """Return the ciphertext that is to be sent."""
        return self._outgoing.read()

    @property
    def has_output(self) -> bool:
        """Whether `take` has something."""
        return self._outgoing.pending > 0

    @property
    def output_size(self) -> int:
        """How many bytes `take` has."""
        return self._outgoing.pending


class TlsSocket:
    """A connected, non-blocking socket whose handshake is complete; see the module's text for what it promises."""

    __slots__ = ("_channel", "_owed", "_reactor", "_said_farewell", "_sock", "_unasked", "_unsent")

    def __init__(self, sock: socket.socket, channel: TlsChannel, reactor: Reactor) -> None:
        self._sock = sock
        self._channel = channel
        self._reactor = reactor
        self._unsent: memoryview | bytes = b""
        #: How much of that TLS has to say on its own account; the rest is part of an answer, which may be slow.
        self._unasked = 0
        #: 1 where the first byte that is offered next is encrypted already.
        self._owed = 0
        self._said_farewell = False

    def fileno(self) -> int:
        """The descriptor."""
        return self._sock.fileno()

    @property
    def alpn(self) -> str:
        """The protocol that was agreed upon, or ""."""
        return self._channel.alpn

    @property
    def has_input(self) -> bool:
        """Whether something came along with the handshake that `recv` has to look at."""
        return self._channel.has_input

    # --- in -----------------------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return what has arrived, a little more than `size` at most; b"": the client sends nothing more.

        After `shutdown` it is returned as it comes, for throwing away. Raises BlockingIOError, OSError.
        """
        channel = self._channel
        if channel.ended and not self._said_farewell:
            return b""
        try:
            data = self._sock.recv(size)
        except BlockingIOError:
            if not channel.has_input or self._said_farewell:
                raise
            data = b""
        else:
            if not data or self._said_farewell:
                return data
        try:
            content = channel.decrypt(data)
        finally:
            if channel.has_output:  # an alert, the answer to a key update
                self._unasked += channel.output_size
                self._flush()
        if self._unasked > UNASKED_BYTES_MAX:
            raise ConnectionAbortedError("the client takes nothing of what it makes TLS say")
        if content or channel.ended:
            return content
        raise BlockingIOError

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt and send; return how much was taken. Raises BlockingIOError where nothing was, OSError."""
        if self._unsent and not self._flush():
            raise BlockingIOError
        if not data:
            return 0
        taken, self._owed = self._owed, 0
        end = min(len(data), SEND_BYTES)
        if end <= PIECE_BYTES and not taken:
            self._channel.encrypt(data if end == len(data) else memoryview(data)[:end])
            return self._count(end)
        view = memoryview(data)
        while taken < end:
            stop = min(taken + PIECE_BYTES, end)
            self._channel.encrypt(view[taken:stop])
            taken = stop
            if not self._flush():
                break
        return self._count(taken)

    def _count(self, taken: int) -> int:
        if self._flush():
            return taken
        self._owed = 1
        if taken == 1:
            raise BlockingIOError
        return taken - 1

    def sendmsg(self, pieces: Sequence[bytes]) -> int:
        """Send several pieces as one; return how much was taken of them together. Raises as `send`."""
        size = sum(map(len, pieces))
        if size <= PIECE_BYTES:
            return self.send(b"".join(pieces))
        # The first record gets a part of the large piece, too; the rest is sent without being copied.
        first, body = pieces[0], b"".join(pieces[1:]) if len(pieces) > 2 else pieces[1]
        begin = first + body[:RECORD_BYTES]
        taken = self.send(begin)
        if taken == len(begin):
            try:
                taken += self.send(memoryview(body)[RECORD_BYTES:])
            except BlockingIOError:
                pass
        return taken

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send a part of a file, as os.sendfile does; 0 where the file has ended. Raises as `send`."""
        if self._unsent and not self._flush():
            raise BlockingIOError
        taken = 0
        while taken < count:
            data = os.pread(fd, min(count - taken, PIECE_BYTES), offset + taken)
            if not data:
                break
            try:
                sent = self.send(data)
            except BlockingIOError:
                if not taken:
                    raise
                break
            taken += sent
            if sent < len(data):
                break
        return taken

    def _flush(self) -> bool:
        """Send ciphertext; True where none is left."""
        channel = self._channel
        unsent = self._unsent
        if channel.has_output:
            more = channel.take()
            unsent = bytes(unsent) + more if unsent else more
        while unsent:
            try:
                sent = self._sock.send(unsent)
            except (BlockingIOError, InterruptedError):
                self._unsent = unsent
                return False
            if sent == len(unsent):
                break
            unsent = memoryview(unsent)[sent:]
        self._unsent = b""
        self._unasked = 0
        return True

    # --- the end ------------------------------------------------------------------------------------------------------

    def farewell(self) -> None:
        """Say that nothing more follows, as far as the kernel takes it now. Raises OSError."""
        if not self._said_farewell:
            self._said_farewell = True
            self._channel.end()
        self._flush()

    def shutdown(self, how: int) -> None:
        """Say that nothing more follows, and end the sending side; asks to be written again where that has no room."""
        self.farewell()
        if self._unsent:
            self._reactor.want_write(self.fileno(), True)
            return
        self._sock.shutdown(how)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Set an option of the socket."""
        self._sock.setsockopt(level, name, value)

    def close(self) -> None:
        """Close the socket, and say nothing."""
        self._sock.close()
