"""Relays: how frames get to a worker and back. Pipes by default, or a socket the worker connects to.

With ``pipes`` the frames travel on the child's stdin and stdout. With ``unix://path`` and ``tcp://host:port`` one
listener serves all workers (RR_RELAY is one value for all): a worker connects, the server says its pid first, the
worker answers with its own (wire protocol 2.3), and the connection goes to the child that this process belongs to,
found by session id, so that a shell wrapper around PHP works too.

Every connection has its own handshake with its own deadline. A silent, lying or garbage-talking client costs its own
connection and nothing else; a process that is no child of ours gets no worker's place.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from trailboss.accepting import Acceptor
from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.socket_file import AddressError, remove_stale
from trailboss.workers.stuck import Speaker, speaker_of
from trailboss_worker.protocol.control import check_handshake, encode_pid
from trailboss_worker.protocol.errors import RemoteProtocolError
from trailboss_worker.protocol.frames import FrameDecoder

__all__ = ["RelayAddress", "RelayError", "RelayHub", "parse_relay"]

log = logger("server")

#: A client has so long to finish its handshake, in seconds; a connection of a booting worker has its boot_timeout.
HANDSHAKE_SECONDS_MAX = 10.0
#: A handshake may be complete before its worker's spawn has been reported; it is kept for so long.
EARLY_SECONDS_MAX = 1.0
#: Unfinished handshakes at the same time; more are closed at once.
PENDING_MAX = 1024


class RelayError(Exception):
    """The relay cannot be set up; the text names key, value and remedy."""


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """A parsed ``server.relay``."""

    kind: str  #: "pipes", "unix" or "tcp"
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def exported(self) -> str:
        """What goes into RR_RELAY: a form that the PHP SDK can use (it fails on an empty host, and is IPv4 only)."""
        if self.kind == "unix":
            return f"unix://{self.path}"
        if self.kind == "tcp":
            return f"tcp://{self.host or '127.0.0.1'}:{self.port}"
        return "pipes"


def parse_relay(value: str) -> RelayAddress:
    """Parse ``server.relay``. Raises RelayError for anything but pipes, unix://path and tcp://host:port."""
    if value in ("", "pipes"):
        return RelayAddress("pipes")
    scheme, separator, rest = value.partition("://")
    if separator and scheme == "unix" and rest:
        return RelayAddress("unix", path=rest)
    if separator and scheme == "tcp":
        host, colon, port = rest.rpartition(":")
        if colon and port.isascii() and port.isdigit() and len(port) <= 5 and 0 <= int(port) < 65536:
            return RelayAddress("tcp", host=host.lower(), port=int(port))
    raise RelayError(f"server.relay: {value!r} is no relay; use pipes, unix://path or tcp://host:port")


class RelayHub:
    """The listener of a socket relay; `open` before the first worker is spawned, `close` after the last has gone."""

    def __init__(self, reactor: Reactor, address: RelayAddress) -> None:
        self._reactor = reactor
        self.address = address
        self._socket: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._pending: dict[int, _Greeting] = {}
        #: Children that wait for their connection, by session id.
        self._expected: dict[int, Callable[[int, bytes, Speaker], None]] = {}
        #: Complete handshakes that nobody expects yet, by session id.
        self._early: dict[int, _Greeting] = {}

    def open(self, *, mode: int = 0o600) -> None:
        """Bind and listen. Raises RelayError naming the address, the reason and what to do."""
        address = self.address
        listener: socket.socket | None = None
        try:
            if address.kind == "unix":
                remove_stale(address.path, f"server.relay: {address.exported}")
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(address.path)
                os.chmod(address.path, mode)
            else:
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address.host or "127.0.0.1", address.port))
                if not address.port:
                    self.address = RelayAddress("tcp", address.host or "127.0.0.1", listener.getsockname()[1])
        except AddressError as error:
            raise RelayError(str(error)) from error
        except OSError as error:
            if listener is not None:
                listener.close()
            raise RelayError(
                f"server.relay: cannot listen on {address.exported}: {error.strerror or error}; "
                "choose another address or stop the process that uses it"
            ) from error
        listener.setblocking(False)
        listener.listen(1024)
        self._socket = listener
        self._acceptor = Acceptor(listener, self._reactor, self._admit, self._complain)

    def close(self) -> None:
        """Stop listening, drop unfinished handshakes, remove the socket file."""
        if self._socket is not None:
            assert self._acceptor is not None
            self._acceptor.close()
            self._socket.close()
            self._socket = None
            if self.address.kind == "unix":
                try:
                    os.unlink(self.address.path)
                except OSError:
                    pass
        for greeting in list(self._pending.values()):
            greeting.close()

    def expect(self, session: int, attach: Callable[[int, bytes, Speaker], None]) -> None:
        """Call ``attach(fd, rest, speaker)`` once when a process of `session` has shaken hands; the fd is then the caller's.

        `rest` is what the worker said behind its hello: nothing, if it keeps to the protocol.
        """
        early = self._early.pop(session, None)
        if early is not None:
            self._pending.pop(early.fd, None)
            attach(*early.release())
        else:
            self._expected[session] = attach

    def forget(self, session: int) -> None:
        """The child of `session` is not waiting any more."""
        self._expected.pop(session, None)

    def is_expected(self, pid: int) -> bool:
        """Whether `pid` belongs to a child that waits for its connection."""
        return _session_of(pid) in self._expected

    @property
    def expects_any(self) -> bool:
        """Whether any child waits for its connection."""
        return bool(self._expected)

    def _admit(self, connection: socket.socket, _address: object) -> None:
        if len(self._pending) >= PENDING_MAX:
            connection.close()
        else:
            self._greet(connection)

    def _complain(self, event: str, reason: str) -> None:
        log.error(event, relay=self.address.exported, reason=reason)

    def _greet(self, connection: socket.socket) -> None:
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = _Greeting(self._reactor, connection, self)
        self._pending[greeting.fd] = greeting
        try:
            greeting.begin()
        except Exception:
            greeting.close()
            raise

    def greeted(self, greeting: _Greeting, claimed_pid: int) -> None:
        """A handshake is complete: find whose it is."""
        pid = greeting.peer_pid()
        if not pid and greeting.is_held_by(claimed_pid):
            pid = claimed_pid
        session = _session_of(pid)
        attach = self._expected.pop(session, None)
        if attach is not None:
            self._pending.pop(greeting.fd, None)
            attach(*greeting.release())
            return
        if not session or session in self._early:
            self._turn_away(greeting, pid, claimed_pid)
            return
        self._early[session] = greeting
        self._reactor.wheel.add(
            self._reactor.now + EARLY_SECONDS_MAX, lambda _now: self._turn_away(greeting, pid, claimed_pid)
        )

    def _turn_away(self, greeting: _Greeting, pid: int, claimed_pid: int) -> None:
        if not greeting.is_done:
            log.warning(
                "a relay connection belongs to no worker that is expected", pid=pid, claimed_pid=claimed_pid
            )
            greeting.close()

    def dropped(self, greeting: _Greeting) -> None:
        """A handshake failed; the connection is closed."""
        self._pending.pop(greeting.fd, None)
        for session, early in list(self._early.items()):
            if early is greeting:
                del self._early[session]


class _Greeting:
    """One connection until its handshake is complete."""

    def __init__(self, reactor: Reactor, connection: socket.socket, hub: RelayHub) -> None:
        self._reactor = reactor
        self._connection = connection
        self._hub = hub
        self._decoder = FrameDecoder(64 * 1024)
        self._done = False
        self._greeted = False
        self._speaker = Speaker(0)
        self.fd = connection.fileno()

    @property
    def is_done(self) -> bool:
        """Whether the connection was given away or closed."""
        return self._done

    def begin(self) -> None:
        """Speak first, then listen."""
        self._reactor.register(self.fd, self._on_readable, None, lambda _error: self.close())
        self._reactor.wheel.add(self._reactor.touch() + HANDSHAKE_SECONDS_MAX, self._on_deadline)
        try:
            self._connection.send(encode_pid(os.getpid()))
        except OSError:
            self.close()

    def peer_pid(self) -> int:
        """Pid of the peer as the kernel knows it (unix sockets), 0 on TCP."""
        if self._connection.family != socket.AF_UNIX:
            return 0
        data = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", data)[0])

    def is_held_by(self, pid: int) -> bool:
        """Whether the other end of this TCP connection is a descriptor of process `pid`, as it claims.

        Yes where the machine does not tell: no /proc, or a process that we may not look into.
        """
        try:
            inode = _tcp_inode(self._connection.getpeername(), self._connection.getsockname())
            if not inode:
                return False
            names = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            return True
        except OSError:
            return not os.path.exists("/proc/net/tcp")
        for name in names:
            try:
                if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{inode}]":
                    return True
            except OSError:
                continue
        return False

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._decoder.feed(data)
        if self._greeted:
            if self._decoder.buffered > 65536:
                self.close()
            return
        try:
            frame = self._decoder.next_frame()
            if frame is None:
                return
            pid = check_handshake(frame)
            self._speaker = speaker_of(pid, frame)
            self._greeted = True
        except RemoteProtocolError as error:
            log.warning("a relay connection sent no handshake and was closed", error=str(error))
            self.close()
            return
        self._hub.greeted(self, pid)

    def release(self) -> tuple[int, bytes, Speaker]:
        """Give the connection away, with what lies unread behind the hello, and who said that."""
        self._done = True
        self._reactor.unregister(self.fd)
        return self._connection.detach(), self._decoder.pending_bytes(256), self._speaker

    def _on_deadline(self, _now: float) -> None:
        if self._done or self._greeted:
            return
        pid = self.peer_pid()
        if self._hub.is_expected(pid) if pid else self._hub.expects_any:
            # A worker connects first and boots then; its own boot_timeout decides, its end closes the connection.
            self._reactor.wheel.add(self._reactor.now + HANDSHAKE_SECONDS_MAX, self._on_deadline)
            return
        log.warning("a relay connection stayed silent and was closed", seconds=HANDSHAKE_SECONDS_MAX)
        self.close()

    def close(self) -> None:
        """Close the connection; harmless when done already."""
        if not self._done:
            self._done = True
            self._reactor.unregister(self.fd)
            self._connection.close()
            self._hub.dropped(self)


def _session_of(pid: int) -> int:
    """Session id of a process, 0 if there is none such."""
    try:
        return os.getsid(pid) if pid > 0 else 0
    except OSError:
        return 0


def _tcp_inode(local: tuple[str, int], remote: tuple[str, int]) -> str:
    """Inode of the socket of this machine that is bound to `local` and connected to `remote`; "" if there is none."""
    ours, theirs = map(_as_in_proc, (local, remote))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                for line in file:
                    fields = line.split()
                    # In tcp6 a mapped IPv4 address has 24 digits in front of the ones that tcp shows.
                    if fields[1].endswith(ours) and fields[2].endswith(theirs) and fields[9] != "0":
                        return fields[9]
        except FileNotFoundError:
            if table == "/proc/net/tcp":
                raise
    return ""


def _as_in_proc(address: tuple[str, int]) -> str:
    number: int = struct.unpack("=I", socket.inet_aton(address[0]))[0]
    return f"{number:08X}:{address[1]:04X}"
