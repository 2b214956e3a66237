"""The listening end: bind the RPC port with clear errors, accept, find out who is there, turn away who may not call.

Binding happens before anything that might call is started; from then on connections are accepted whatever the gate
says. Who may connect: the users in `allowed_uids`. On a unix socket the kernel names the peer; on loopback TCP the
client's socket is looked up. What goes wrong while accepting (no descriptor left, a peer gone again) never ends the
listener: it pauses and goes on.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final

from trailboss.accepting import Acceptor, Complaints
from trailboss.config.values import is_loopback, parse_address
from trailboss.container.contract import Caller
from trailboss.handover import Passed, remove_file
from trailboss.log import logger
from trailboss.rpc.address import AddressError, prepare_directory
from trailboss.rpc.connection import RpcConnection
from trailboss.rpc.peer import Peer, SocketDiagnosis, SocketOwners, tcp_peer, unix_peer
from trailboss.rpc.server import RpcServer
from trailboss.socket_file import explain_unix, remove_stale

__all__ = ["BoundSocket", "Listener", "bind", "inherit", "set_mode"]

log = logger("rpc")

BACKLOG: Final = 1024


@dataclass(slots=True)
class BoundSocket:
    """A bound, listening, non-blocking socket and where it is."""

    sock: socket.socket
    family: str  #: "unix" or "tcp"
    host: str  #: path or host
    port: int
    checks_peers: bool
    inode: tuple[int, int] = (0, 0)
    #: Its file is for another server to remove.
    given_away: bool = False

    def close(self) -> None:
        """Close the socket and remove its file, unless another server's file is there by now."""
        self.sock.close()
        if self.family == "unix" and not self.given_away:
            remove_file(self.host, self.inode)


def bind(listen: str, default_path: str, *, uid: int, shared: bool, allow_remote: bool) -> BoundSocket:
    """Bind `listen` (``tcp://host:port``, ``unix://path``, or "" for the unix socket `default_path`).

    `shared`: users other than `uid` may connect, so file modes let everybody through and the peer check decides.
    Raises AddressError, whose text names the key, the value and what to do.
    """
    if not listen:
        directory, name = os.path.split(default_path)
        own = os.path.basename(directory).startswith("trailboss") and name != ""
        prepare_directory(directory, uid, shared=shared, own_mode=own)
        return _bind_unix(default_path, f"rpc.listen (default) unix://{default_path}", shared=shared)
    try:
        scheme, host, port = parse_address(listen)
    except ValueError as error:
        raise AddressError(f"rpc.listen: {listen}: {error}; write tcp://host:port or unix://path") from None
    if scheme == "unix":
        return _bind_unix(host, f"rpc.listen: {listen}", shared=shared)
    return _bind_tcp(host, port, f"rpc.listen: {listen}", allow_remote=allow_remote)


def inherit(passed: Passed) -> BoundSocket:
    """Take a predecessor's socket into use; until this server is in charge it has been given away."""
    sock = passed.socket()
    if sock.family is socket.AF_UNIX:
        return BoundSocket(sock, "unix", passed.path, 0, True, passed.inode, given_away=True)
    host, port = sock.getsockname()[:2]
    return BoundSocket(sock, "tcp", host, port, is_loopback(host), given_away=True)


def set_mode(path: str, *, shared: bool) -> None:
    """Let everybody through to a socket that other users may call, or its owner alone. Raises OSError."""
    os.chmod(path, 0o666 if shared else 0o600)


def _bind_unix(path: str, what: str, *, shared: bool) -> BoundSocket:
    remove_stale(path, what)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind(path)
        # Nobody can connect before listen(), so there is no moment with the wrong mode.
        set_mode(path, shared=shared)
        sock.listen(BACKLOG)
        found = os.lstat(path)
    except OSError as error:
        sock.close()
        raise AddressError(explain_unix(what, path, error)) from error
    return BoundSocket(sock, "unix", path, 0, True, (found.st_dev, found.st_ino))


def _bind_tcp(host: str, port: int, what: str, *, allow_remote: bool) -> BoundSocket:
    if not is_loopback(host):
        if not allow_remote:
            raise AddressError(
                f"{what}: not a loopback address, so any machine could call; "
                "use 127.0.0.1 or a unix socket, or set rpc.allow_remote: true"
            )
        log.warning(
            "the RPC port is open to other machines, without authentication", address=f"{host}:{port}"
        )
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{what}: the host {host!r} is not known: {error}; write an IP address") from error
    # PHP connects by IPv4 where a name has both.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise AddressError(_explain_tcp(what, error)) from error
    bound_host, bound_port = sock.getsockname()[:2]
    return BoundSocket(sock, "tcp", bound_host, bound_port, is_loopback(bound_host))


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

    def __init__(self, bound: BoundSocket, server: RpcServer, allowed_uids: Collection[int]) -> None:
        self._bound = bound
        self._server = server
        self._reactor = server.reactor
        self._allowed_uids = frozenset(allowed_uids)
        self._diagnosis = SocketDiagnosis()
        self._owners = SocketOwners()
        self._complaints = Complaints()
        self._acceptor = Acceptor(bound.sock, self._reactor, self._admit, self._complain)

    def close(self) -> None:
        """Accept nothing more and release the address; open connections stay."""
        if not self._acceptor.closed:
            self._acceptor.close()
            self._bound.close()
            self._diagnosis.close()

    def give_up(self) -> None:
        """Accept nothing more and leave the address to a successor."""
        self._bound.given_away = True
        self.close()

    def _complain(self, event: str, reason: str) -> None:
        log.error(event, reason=reason)

    def _admit(self, sock: socket.socket, _address: object) -> None:
        server = self._server
        server.counters.connections += 1
        if len(server.connections) >= server.limits.connections:
            self._turn_away(sock, "limit", "rpc.max_connections is reached", -1)
            return
        peer = self._peer(sock)
        if peer is None:
            # Whoever connects only to see whether somebody answers has often left by now.
            sock.close()
            server.counters.turned_away += 1
            log.debug("an RPC connection was gone before its user could be found out")
            return
        if self._bound.checks_peers and peer.uid not in self._allowed_uids:
            self._turn_away(sock, ("uid", peer.uid), "its user may not call this server", peer.uid)
            return
        if self._bound.family == "tcp":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        find_caller = self._caller_finder(peer)
        connection = RpcConnection(server, sock, find_caller(), find_caller, server.connections.discard)
        server.connections.add(connection)

    def _peer(self, sock: socket.socket) -> Peer | None:
        if self._bound.family == "unix":
            return unix_peer(sock)
        return tcp_peer(sock, self._diagnosis) if self._bound.checks_peers else Peer(uid=-1)

    def _caller_finder(self, peer: Peer) -> Callable[[], Caller]:
        """Return what looks the caller up; over TCP its process is searched for when a call first asks again."""
        lookup = self._server.callers.lookup
        if peer.pid or not peer.inode:
            return partial(lookup, peer.pid, peer.uid)
        return _TcpCaller(lookup, peer, self._owners)

    def _turn_away(self, sock: socket.socket, key: object, reason: str, uid: int) -> None:
        sock.close()
        self._server.counters.turned_away += 1
        if self._complaints.is_due(key, self._reactor.now):
            log.warning("an RPC connection was turned away", reason=reason, uid=uid)


class _TcpCaller:
    """Finds the caller of a TCP connection: by uid at first, by process once a call depends on it."""

    def __init__(self, lookup: Callable[[int, int], Caller], peer: Peer, owners: SocketOwners) -> None:
        self._lookup = lookup
        self._peer = peer
        self._owners = owners
        self._accepted_at = time.monotonic()
        self._calls = 0
        self._pid = 0

    def __call__(self) -> Caller:
        if (
            self._calls == 1
        ):  # the first is made for every connection, the second for a call that depends on it
            self._pid = self._owners.find(self._peer.inode, self._accepted_at)
        self._calls += 1
        return self._lookup(self._pid, self._peer.uid)
