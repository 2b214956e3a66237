"""Who is at the other end of a local connection: uid and pid, as the kernel tells.

Unix sockets say it themselves (SO_PEERCRED). For TCP on loopback the kernel is asked for the client's socket: by
sock_diag, one netlink message and its answer, or where that is not possible by reading /proc/net/tcp and tcp6. An entry
counts only while it is ESTABLISHED and has an inode: a closed one shows uid 0. The check is made once per connection.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

__all__ = ["Peer", "SocketDiagnosis", "SocketOwners", "peer_from_proc", "tcp_peer", "unix_peer"]

_ESTABLISHED: Final = 1
_SOCK_DIAG_BY_FAMILY: Final = 20
_NETLINK_SOCK_DIAG: Final = 4
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_NO_COOKIE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end; `pid` is 0 and `inode` the socket's where only the socket is known."""

    uid: int
    pid: int = 0
    inode: int = 0


def unix_peer(sock: socket.socket) -> Peer:
    """Return who connected the unix socket `sock`. Raises OSError."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid=uid, pid=pid)


@dataclass(frozen=True, slots=True)
class _Endpoints:
    """The connection as the client's socket sees it: its own end first."""

    own: IPv4Address | IPv6Address
    own_port: int
    other: IPv4Address | IPv6Address
    other_port: int


def _endpoints(sock: socket.socket) -> _Endpoints:
    own, own_port = sock.getpeername()[:2]
    other, other_port = sock.getsockname()[:2]
    return _Endpoints(_plain(own), own_port, _plain(other), other_port)


def _plain(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


class SocketDiagnosis:
    """The kernel's socket directory over netlink; opened at first use, one per server."""

    # nlmsghdr, inet_diag_req_v2 with its inet_diag_sockid (linux/netlink.h, linux/inet_diag.h).
    _REQUEST = struct.Struct("=IHHIIBBBBI4s16s16sI2I")
    # inet_diag_msg: family, state, timer, retrans, sockid, expires, rqueue, wqueue, uid, inode.
    _ANSWER = struct.Struct("=BBBB4s16s16sI2IIIIII")

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = 0

    def find(self, sock: socket.socket) -> Peer | None:
        """Return the owner of the client's end of the TCP connection `sock`; None if it is not established any more.

        Raises OSError where the kernel does not offer this.
        """
        ends = _endpoints(sock)
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
            )
            self._socket.settimeout(0.2)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        family = socket.AF_INET if isinstance(ends.own, IPv4Address) else socket.AF_INET6
        ports = struct.pack("!HH", ends.own_port, ends.other_port)
        self._socket.send(
            self._REQUEST.pack(
                *(self._REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0),
                *(family, socket.IPPROTO_TCP, 0, 0, 1 << _ESTABLISHED),
                *(ports, ends.own.packed.ljust(16, b"\0"), ends.other.packed.ljust(16, b"\0")),
                *(0, _NO_COOKIE, _NO_COOKIE),
            )
        )
        while True:
            data = self._socket.recv(8192)
            _, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
            if sequence == self._sequence:
                return self._read(kind, data[16:], ports)

    def _read(self, kind: int, body: bytes, ports: bytes) -> Peer | None:
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", body)
            if -code == errno.ENOENT:
                return None
            raise OSError(-code, os.strerror(-code))
        _, state, _, _, found_ports, *_rest = self._ANSWER.unpack_from(body)
        uid, inode = _rest[-2:]
        if state != _ESTABLISHED or inode == 0 or found_ports != ports:
            return None
        return Peer(uid=uid, inode=inode)

    def close(self) -> None:
        """Close the netlink socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def tcp_peer(sock: socket.socket, diagnosis: SocketDiagnosis) -> Peer | None:
    """Return who is at the other end of a loopback connection; None where nobody (any more) can be named."""
    try:
        return diagnosis.find(sock)
    except (OSError, ValueError, struct.error):  # also an answer of another form than the one asked for
        diagnosis.close()
    try:
        return peer_from_proc(sock)
    except (OSError, ValueError, IndexError, struct.error):
        return None


def peer_from_proc(sock: socket.socket, proc: str = "/proc/self/net") -> Peer | None:
    """Find the client's end of `sock` in /proc/net/tcp and tcp6; None unless ESTABLISHED with an inode."""
    ends = _endpoints(sock)
    for name in ("tcp", "tcp6"):
        wanted = (
            f" {_proc_end(ends.own, ends.own_port, name)} {_proc_end(ends.other, ends.other_port, name)} "
        )
        try:
            text = Path(proc, name).read_text(encoding="ascii")
        except FileNotFoundError:
            continue
        position = text.find(wanted)
        if position >= 0:
            line = text[position : text.find("\n", position)]
            return _read_proc_line(line)
    return None


def _proc_end(address: IPv4Address | IPv6Address, port: int, name: str) -> str:
    packed = address.packed
    if name == "tcp6" and isinstance(address, IPv4Address):
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _read_proc_line(line: str) -> Peer | None:
    fields = re.split(r"\s+", line.strip())
    # local, remote, state, queues, timer, retransmits, uid, timeout, inode
    state, uid, inode = int(fields[2], 16), int(fields[6]), int(fields[8])
    return Peer(uid=uid, inode=inode) if state == _ESTABLISHED and inode else None


class SocketOwners:
    """Which process holds a socket. One look at /proc, some milliseconds, serves all connections that came before it."""

    def __init__(self, scan: Callable[[], dict[int, int]] | None = None) -> None:
        self._scan = socket_owners if scan is None else scan
        self._owners: dict[int, int] = {}
        self._scanned_at = float("-inf")

    def find(self, inode: int, accepted_at: float) -> int:
        """Return the pid of a process that holds the socket `inode`, 0 if none is found.

        `accepted_at`: when its connection was accepted, in seconds of ``time.monotonic()``.
        """
        if self._scanned_at <= accepted_at:
            self._scanned_at = time.monotonic()
            self._owners = self._scan()
        return self._owners.get(inode, 0)


def socket_owners() -> dict[int, int]:
    """Return inode → pid of every open socket that may be seen; of several owners the process with the lowest number."""
    owners: dict[int, int] = {}
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        folder = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(folder)
        except OSError:  # ended meanwhile, or not ours to look at
            continue
        for number in numbers:
            try:
                target = os.readlink(f"{folder}/{number}")
            except OSError:  # closed meanwhile
                continue
            if target.startswith("socket:["):
                owners[int(target[8:-1])] = pid
    return owners
