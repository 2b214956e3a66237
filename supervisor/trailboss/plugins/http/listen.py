"""The listening end: bind the addresses of `http.address` and `http.ssl.address` with clear errors, accept what comes.

Binding happens when the workers are ready, so a client that gets a connection gets an answer. What goes wrong while
accepting (no descriptor left, a peer gone again) never ends a listener: it pauses and goes on. Beyond
`http.limits.max_connections` a connection is closed at once, and that is logged once a minute.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trailboss.accepting import Acceptor, Complaints
from trailboss.activation import PassedSockets
from trailboss.config.values import parse_http_address
from trailboss.handover import Handover, Offer, Passed, remove_file
from trailboss.log import logger
from trailboss.plugins.http.connection import Connection
from trailboss.plugins.http.front import Front
from trailboss.socket_file import AddressError, explain_unix, remove_stale

if TYPE_CHECKING:
    from trailboss.plugins.http.handshake import TlsEntrance

__all__ = ["AddressError", "BoundSocket", "Listener", "bind", "bind_all", "expect_passed"]

log = logger("http")

BACKLOG: Final = 4096
#: A silent client is asked for a sign of life after this time, so that one that has vanished is noticed.
KEEPALIVE_IDLE_SECONDS: Final = 60
#: So many bytes of an answer wait in the kernel beyond those on the way. Without it the kernel takes megabytes for each client
#: that does not read, which no limit of ours would count.
NOT_SENT_BYTES: Final = 256 * 1024

#: After the last newcomer was turned away handshakes under way have this long to be completed.
HANDSHAKE_SECONDS: Final = 0.05
SO_ATTACH_FILTER: Final = 26
_BPF: Final = struct.Struct("=HBBI")


@dataclass(slots=True)
class BoundSocket:
    """A bound, listening, non-blocking socket and where it is."""

    sock: socket.socket
    #: host:port or unix:path as it came out, a port of 0 replaced by the one that was found.
    address: str
    #: The file to be removed in the end; "" where there is none or it is somebody else's.
    path: str = ""
    inode: tuple[int, int] = (0, 0)
    #: The file of a socket that is to become ours: not yet to be removed, but to be named to a successor.
    future_path: str = ""
    #: It was made here; one of systemd's goes on without us.
    own: bool = True
    #: What a successor finds it by.
    kind: str = "http"
    key: str = ""

    def turn_away(self) -> None:
        """Let nobody connect any more; who has connected can still be accepted.

        Closing a listening socket resets whoever came since the last accept. So the file of a unix socket goes first, and
        a TCP socket drops SYNs from now on: who comes in the last moments is refused when his next SYN meets no listener.
        """
        if self.path:
            self._remove_file()
        elif self.own and self.sock.family is not socket.AF_UNIX:
            with suppress(OSError):  # a kernel without filters: as it always was
                _drop_syns(self.sock)

    def close(self) -> None:
        """Close the socket and remove its file, unless another server's file is there by now."""
        self.sock.close()
        self._remove_file()

    def give_away(self) -> None:
        """Leave file and filters alone from now on: another server has the socket too, or systemd keeps it for the next one."""
        self.own, self.path = False, ""

    def _remove_file(self) -> None:
        if self.path:
            remove_file(self.path, self.inode)
            self.path = ""


def _drop_syns(sock: socket.socket) -> None:
    """Attach a filter to a listening socket that drops segments with SYN, and lets the rest of handshakes begun pass."""
    import ctypes  # for the stop alone

    load_flags = _BPF.pack(0x30, 0, 0, 13)  # a byte of the TCP header
    is_syn = _BPF.pack(0x45, 0, 1, 0x02)
    program = load_flags + is_syn + _BPF.pack(0x06, 0, 0, 0) + _BPF.pack(0x06, 0, 0, 0xFFFFFFFF)
    memory = ctypes.create_string_buffer(program)  # the kernel copies it
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_FILTER,
        struct.pack("@HP", len(program) // _BPF.size, ctypes.addressof(memory)),
    )


def bind_all(
    keys: Iterable[tuple[str, Iterable[str]]], passed: PassedSockets, handover: Handover | None = None
) -> list[tuple[str, BoundSocket]]:
    """Bind every address of every key, passed sockets included; return each with its key. Raises AddressError: none is.

    What a predecessor has listened on is taken over as it is.

    Blocks for as long as names are looked up.
    """
    addresses = [(key, address) for key, values in keys for address in values]
    names = _names(addresses)
    bound: list[tuple[str, BoundSocket]] = []
    try:
        for key, address in addresses:
            scheme, name, _ = _parse(address, key)
            if scheme == "systemd":
                what = f"{key}: {address}"
                passed_names = [found for found, _ in passed.find(name, what, names)]
                sockets = passed.claim(name, what, names)
                bound += [
                    (key, _adopt(sock, found)) for found, sock in zip(passed_names, sockets, strict=True)
                ]
                continue
            inherited = handover.claim("http", address) if handover is not None else None
            bound.append((key, bind(address, key) if inherited is None else _inherit(inherited, handover)))
    except AddressError:
        for _, item in bound:
            item.close()
        raise
    for name in passed.close_rest():
        log.warning("a socket that systemd has passed is not used", name=name)
    return bound


def expect_passed(keys: Iterable[tuple[str, Iterable[str]]], passed: PassedSockets) -> None:
    """See that every address of systemd has its socket, before anything is started. Raises AddressError."""
    addresses = [(key, address) for key, values in keys for address in values]
    names = _names(addresses)
    for key, address in addresses:
        scheme, name, _ = _parse(address, key)
        if scheme == "systemd":
            passed.find(name, f"{key}: {address}", names)


def _names(addresses: Iterable[tuple[str, str]]) -> list[str]:
    return [address.removeprefix("systemd:") for _, address in addresses if address.startswith("systemd:")]


def _parse(address: str, key: str) -> tuple[str, str, int]:
    try:
        return parse_http_address(address)
    except ValueError as error:
        raise AddressError(f"{key}: {address}: {error}; write host:port or unix:/path") from None


def bind(address: str, key: str = "http.address") -> BoundSocket:
    """Bind one address of the configuration's `key`, `host:port` or `unix:path`. Raises AddressError."""
    scheme, host, port = _parse(address, key)
    if scheme == "unix":
        return _bind_unix(host, f"{key}: {address}", address)
    return _bind_tcp(host, port, f"{key}: {address}", address)


def _adopt(sock: socket.socket, name: str) -> BoundSocket:
    """Take a socket of systemd into use."""
    return BoundSocket(sock, _address_of(sock), own=False, kind="systemd", key=name)


def _inherit(passed: Passed, handover: Handover | None) -> BoundSocket:
    """Take a predecessor's socket into use. It is our own only when this server is in charge."""
    sock = passed.socket()
    bound = BoundSocket(sock, _address_of(sock), "", passed.inode, passed.path, own=False, key=passed.key)

    def become_own() -> None:
        bound.own, bound.path = True, passed.path

    if handover is not None and handover.is_successor:
        handover.on_in_charge.append(become_own)
    else:  # it has come out of systemd's store
        become_own()
    return bound


def _address_of(sock: socket.socket) -> str:
    if sock.family is socket.AF_UNIX:
        name = sock.getsockname()
        return f"unix:{name if isinstance(name, str) else name.decode(errors='replace')}"
    _prepare_tcp(sock)
    return _tcp_address(sock)


def _bind_unix(path: str, what: str, key: str) -> BoundSocket:
    remove_stale(path, what)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind(path)
        # As open as a port of this machine is; the folder may say more. Nobody can connect before listen().
        os.chmod(path, 0o666)
        sock.listen(BACKLOG)
        found = os.lstat(path)
    except OSError as error:
        sock.close()
        raise AddressError(explain_unix(what, path, error)) from error
    return BoundSocket(sock, f"unix:{path}", path, (found.st_dev, found.st_ino), key=key)


def _bind_tcp(host: str, port: int, what: str, key: str) -> BoundSocket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{what}: the host {host!r} is not known: {error}; write an IP address") from error
    # An empty host is every interface: the IPv6 socket takes IPv4 as well. A name that has both means IPv4.
    wanted = socket.AF_INET6 if not host else socket.AF_INET
    family, kind, protocol, _, place = min(found, key=lambda entry: entry[0] is not wanted)
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        if family is not socket.AF_INET6 or host:
            raise AddressError(_explain_tcp(what, error)) from error
        return _bind_tcp("0.0.0.0", port, what, key)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not host else 1)
        _prepare_tcp(sock)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL and not host and family is socket.AF_INET6:
            return _bind_tcp("0.0.0.0", port, what, key)  # a machine without IPv6
        raise AddressError(_explain_tcp(what, error)) from error
    return BoundSocket(sock, _tcp_address(sock), key=key)


def _prepare_tcp(sock: socket.socket) -> None:
    """Set what accepted sockets inherit."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


def _tcp_address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _explain_tcp(what: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{what}: the port is in use; stop the program that has it or choose another port"
    if error.errno == errno.EACCES:
        return f"{what}: no permission to use this port; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what}: this machine does not have that address; change the host"
    return f"{what}: {error.strerror or error}; change the address"


class Listener:
    """Accepts the connections of one bound socket until `close`. Lives on the reactor."""

    def __init__(self, bound: BoundSocket, front: Front, entrance: TlsEntrance | None = None) -> None:
        """`entrance`: clients speak TLS here."""
        self.address = bound.address
        self.speaks_tls = entrance is not None
        self._entrance = entrance
        self._bound = bound
        self._front = front
        self._reactor = front.reactor
        self._local = "localhost" if bound.address.startswith("unix:") else bound.address
        self._complaints = Complaints()
        self._acceptor = Acceptor(bound.sock, self._reactor, self._admit, self._complain)

    def close(self) -> None:
        """Accept nothing more and release the address; open connections stay."""
        if not self._acceptor.closed:
            self._acceptor.close()
            self._bound.close()

    def offer(self) -> Offer:
        """Return what a successor can take over."""
        bound = self._bound
        path = bound.path or bound.future_path
        return Offer(bound.kind, bound.key, bound.sock, self._give_up, path, bound.inode, bound.give_away)

    def _give_up(self) -> None:
        self._bound.give_away()
        self.close()

    def turn_away(self) -> None:
        """Let nobody connect any more, as far as that can be had."""
        if not self._acceptor.closed:
            self._bound.turn_away()

    def accept_waiting(self) -> None:
        """Accept whoever has connected already, all of them; closing the socket would reset those connections."""
        if not self._acceptor.closed:
            self._reactor.touch()
            self._acceptor.accept(2 * BACKLOG)

    def _admit(self, sock: socket.socket, address: object) -> None:
        front = self._front
        front.counters.connections += 1
        if len(front.connections) >= front.limits.connections:
            sock.close()
            front.counters.turned_away += 1
            event = "connections are turned away, http.limits.max_connections is reached"
            if self._complaints.is_due(event, self._reactor.now):
                self._complain(event, "")
            return
        host, port = _peer(address)
        if self._entrance is None:
            Connection(front, sock, self._local, host, port)
        else:
            self._entrance.admit(sock, self._local, host, port)

    def _complain(self, event: str, reason: str) -> None:
        log.warning(event, address=self.address, reason=reason)


def _peer(address: object) -> tuple[str, int]:
    """Return host and port of a client. Behind a unix socket is somebody of this machine."""
    if not isinstance(address, tuple):
        return "127.0.0.1", 0
    host = str(address[0])
    return host.removeprefix("::ffff:") if "." in host else host, int(address[1])
