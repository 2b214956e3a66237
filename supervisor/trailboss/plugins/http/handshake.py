"""FROM A CONNECTED SOCKET TO A CONNECTION OVER TLS: the handshake of each client, one at a time and within its time.

A Handshake is a member of `front.connections` like the connection it becomes: it counts for max_connections, is closed
with the rest, and has the time limit of a head. Nothing of OpenSSL is made for a client before its first bytes are there,
so half-open ones cost little; how much a client may send is bounded by OpenSSL, message by message.

Cryptography takes a millisecond a client where everything else here takes microseconds, so handshakes stand in a line of
their own (`TlsEntrance`): some every turn of the reactor, at least one, while requests go on in between.

Who speaks HTTP to this port gets an answer in HTTP that says so; whatever else is no TLS gets an alert. After either the
client is left a little time to read it: a connection that is closed with unread bytes is reset, and that may overtake it.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from trailboss.certificates import Certificates
from trailboss.log import logger
from trailboss.plugins.http.connection import Connection
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.limits import LINGER_SECONDS
from trailboss.plugins.http.tls import TlsChannel, TlsSocket

__all__ = ["Handshake", "TlsEntrance"]

log = logger("http")

#: A ClientHello is a few hundred bytes, with many or large keys a few thousand; certificates of a client come later.
RECEIVE_BYTES: Final = 16 * 1024
PLAIN_HTTP: Final = "a plain HTTP request was sent to the HTTPS port; write https:// in the address"


class Begun(Protocol):
    """A connection that has been made."""

    def begin(self) -> None:
        """Look at what came along with the handshake; there is no readiness event for it."""

    def close(self) -> None:
        """End the connection now."""


class MakeConnection(Protocol):
    """Makes a connection of one protocol, which takes over the socket."""

    def __call__(
        self, front: Front, sock: TlsSocket, local: str, remote_addr: str, remote_port: int, /, *, scheme: str
    ) -> Begun: ...


class TlsEntrance:
    """What the handshakes of one server share: the certificates, and whose turn it is.

    `protocols`: what is made where the client agrees upon a protocol other than HTTP/1, by its name in ALPN.
    """

    def __init__(
        self,
        front: Front,
        certificates: Certificates,
        protocols: Mapping[str, MakeConnection] = MappingProxyType({}),
    ) -> None:
        self.front = front
        self.certificates = certificates
        self.protocols = protocols
        self._line: deque[Handshake] = deque()

    def admit(self, sock: socket.socket, local: str, host: str, port: int) -> None:
        """Begin with a connected, non-blocking socket; it is taken over. Raises OSError."""
        Handshake(self, sock, local, host, port)

    def stand_in_line(self, handshake: Handshake) -> None:
        """Call `handshake.go_on` when it is its turn."""
        self._line.append(handshake)
        if len(self._line) == 1:
            self.front.reactor.call_soon(self._serve)

    def _serve(self) -> None:
        line, reactor = self._line, self.front.reactor
        while line:
            handshake = line[0]
            try:
                handshake.go_on()
            except Exception as error:  # costs this client and no other
                log.error("a TLS handshake failed in an unforeseen way", exc_info=error)
                handshake.close()
            line.popleft()
            if line and reactor.late:
                reactor.call_soon(self._serve)
                return


class Handshake:
    """One client on its way in; becomes a connection of the protocol that was agreed upon."""

    __slots__ = (
        "__weakref__",
        "_channel",
        "_done",
        "_entrance",
        "_fd",
        "_in_line",
        "_leaving",
        "_peer",
        "_reactor",
        "_since",
        "_sock",
        "_unsent",
        "closed",
        "front",
    )

    def __init__(self, entrance: TlsEntrance, sock: socket.socket, local: str, host: str, port: int) -> None:
        self.front = front = entrance.front
        self.closed = False
        self._entrance = entrance
        self._reactor = reactor = front.reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._peer = (local, host, port)
        self._channel: TlsChannel | None = None
        self._done = False
        self._unsent = b""
        self._in_line = False
        self._leaving = False
        self._since = reactor.now
        reactor.register(self._fd, self._on_readable, self._on_writable, self._on_error)
        front.connections.add(self)
        reactor.wheel.add(self._since + front.limits.head_timeout_seconds, self._on_too_late)

    def _on_readable(self) -> None:
        if self._leaving:
            self._throw_away()
        elif not self._in_line:
            self._in_line = True
            self._entrance.stand_in_line(self)

    def _on_writable(self) -> None:
        if self._flush() and not self.closed and not self._leaving:
            self._in_line = True
            self._entrance.stand_in_line(self)

    def go_on(self) -> None:
        """Take the next step; called by the entrance."""
        self._in_line = False
        if self.closed or self._leaving or self._unsent:
            return
        if self._done:
            self._become_connection()
            return
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        self._since = self._reactor.now
        self._take(data)

    def _take(self, data: bytes) -> None:
        channel = self._channel
        if channel is None:
            if data[:1].isalpha():
                self._answer_in_http()
                return
            channel = self._channel = TlsChannel(self._entrance.certificates.context)
        try:
            self._done = channel.handshake(data)
        except OSError as error:  # of ssl
            self._fail(channel, error)
            return
        if not self._send(channel.take()):
            return
        if self._done:
            self._become_connection()

    def _become_connection(self) -> None:
        front, channel = self.front, self._channel
        assert channel is not None
        self._step_aside()
        sock = TlsSocket(self._sock, channel, self._reactor)
        local, host, port = self._peer
        make = self._entrance.protocols.get(channel.alpn, Connection)
        try:
            connection = make(front, sock, local, host, port, scheme="https")
        except Exception:
            sock.close()
            raise
        if sock.has_input:
            try:
                connection.begin()
            except Exception:  # the reactor contains what happens at its own events
                connection.close()
                raise

    def _answer_in_http(self) -> None:
        self._step_aside()
        local, host, port = self._peer
        Connection(self.front, self._sock, local, host, port).refuse(400, PLAIN_HTTP)

    def _step_aside(self) -> None:
        """Leave socket and place to another object."""
        self.closed = True
        self._channel = None
        self._reactor.unregister(self._fd)
        self.front.connections.discard(self)

    def _fail(self, channel: TlsChannel, error: OSError) -> None:
        self.front.counters.handshakes_failed += 1
        reason = (error.reason if isinstance(error, ssl.SSLError) else None) or str(error)
        log.debug("a TLS handshake failed", remote_address=self._peer[1], reason=reason)
        self._channel = None
        if not self._send(channel.take()):
            self.close()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._leaving = True
        self._since = now = self._reactor.now
        self._reactor.wheel.add(now + LINGER_SECONDS, self._on_gone_too_late)

    def _throw_away(self) -> None:
        try:
            if not self._sock.recv(RECEIVE_BYTES):
                self.close()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()

    def _send(self, data: bytes) -> bool:
        """Send; False where something is left, or the client has gone."""
        if not data:
            return True
        self._unsent = data
        return self._flush() and not self.closed

    def _flush(self) -> bool:
        if self._unsent:
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return False
        self._reactor.want_write(self._fd, bool(self._unsent))
        return not self._unsent

    def _on_too_late(self, _now: float) -> None:
        if not self.closed and not self._leaving:
            self.front.counters.timeouts += 1
            self.close()

    def _on_gone_too_late(self, _now: float) -> None:
        self.close()

    def _on_error(self, _error: BaseException) -> None:
        self.close()

    # --- what the front asks of every connection ----------------------------------------------------------------------

    @property
    def is_leaving(self) -> bool:
        """Whether only the client's departure is waited for."""
        return self._leaving

    def close_if_idle(self, quiet_since: float) -> None:
        """Close where nothing was received after `quiet_since`."""
        if self._since <= quiet_since:
            self.close()

    def close(self) -> None:
        """End it now."""
        if self.closed:
            return
        self._step_aside()
        self._unsent = b""
        self._sock.close()
        if self.front.on_progress is not None:
            self.front.on_progress()
