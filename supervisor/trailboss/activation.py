"""SOCKETS THAT SYSTEMD HAS OPENED: taken over from LISTEN_FDS once, at the start, and found again by name.

The protocol (sd_listen_fds(3)): descriptors from 3 on, LISTEN_FDS says how many, LISTEN_PID for which process, and
LISTEN_FDNAMES their names (the socket unit's FileDescriptorName=, by default the unit's own name). Whoever takes them
removes the variables and marks the descriptors close-on-exec, so no worker inherits either.

`systemd:NAME` in an address is every passed socket of that name; `systemd` alone is every one that no address names.
Such a socket is systemd's: it is closed with the server, its file is never removed, and connections wait in it from one
start to the next.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Final

from trailboss.socket_file import AddressError

__all__ = ["PassedSockets", "take_passed_sockets"]

FIRST_DESCRIPTOR: Final = 3
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
#: More are hardly meant, and a wrong number must not close half the process.
SOCKETS_MAX: Final = 1024


@dataclass(slots=True)
class PassedSockets:
    """Descriptors and their names, in order; `claim` hands each out once."""

    found: list[tuple[str, int]] = field(default_factory=list)
    #: Why there are none although variables say that there should be some.
    excuse: str = ""
    #: Names that were handed out.
    claimed: set[str] = field(default_factory=set)

    def find(self, name: str, what: str, named: Iterable[str] = ()) -> list[tuple[str, int]]:
        """Return names and descriptors of those called `name`, or with "" of those that are not in `named`.

        `what` is the key and address for messages. Raises AddressError where there is none.
        """
        others = set(named)
        mine = [item for item in self.found if (item[0] == name if name else item[0] not in others)]
        if not mine:
            raise AddressError(f"{what}: {self._missing(name)}")
        return mine

    def claim(self, name: str, what: str, named: Iterable[str] = ()) -> list[socket.socket]:
        """Return what `find` finds as listening, non-blocking sockets, once. Raises AddressError."""
        mine = self.find(name, what, named)
        sockets: list[socket.socket] = []
        try:
            for passed_name, fd in mine:
                sockets.append(_listening_socket(fd, passed_name, what))
        except AddressError:
            for sock in sockets:
                sock.close()
            raise
        self.found = [item for item in self.found if item not in mine]
        self.claimed.update(passed_name for passed_name, _ in mine)
        return sockets

    def _missing(self, name: str) -> str:
        if self.excuse:
            return self.excuse
        names = ", ".join(sorted({passed for passed, _ in self.found} | self.claimed))
        if not names:
            return (
                "no socket was passed to this process; start it by a systemd socket unit (see examples/systemd), "
                "or write host:port"
            )
        if not name:
            return f"every passed socket has an address of its own ({names}); remove this one"
        return (
            f"no socket of that name was passed, only: {names}; correct it, or set FileDescriptorName={name}"
        )

    def close_rest(self) -> list[str]:
        """Close what nobody has claimed; return the names."""
        rest, self.found = self.found, []
        for _, fd in rest:
            os.close(fd)
        return [name for name, _ in rest]


def take_passed_sockets(environ: MutableMapping[str, str]) -> PassedSockets:
    """Take over what LISTEN_FDS says and remove the variables; empty where nothing was passed to this process."""
    pid, count_text, names_text = (environ.get(name, "") for name in VARIABLES[:3])
    for name in VARIABLES:
        environ.pop(name, None)
    if not count_text:
        return PassedSockets()
    if not (count_text.isascii() and count_text.isdigit()) or not 0 < int(count_text) <= SOCKETS_MAX:
        return PassedSockets(
            excuse=f"LISTEN_FDS is {count_text!r}, which is no number of sockets; start by systemd"
        )
    if pid != str(os.getpid()):
        return PassedSockets(
            excuse=f"the sockets were passed to process {pid or '(none)'}, this one is {os.getpid()}; "
            "let ExecStart= run trailboss itself, without a shell or launcher between (or with exec)"
        )
    count = int(count_text)
    names = names_text.split(":") if names_text else []
    found = []
    for index in range(count):
        fd = FIRST_DESCRIPTOR + index
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue  # LISTEN_FDS says more than there is
        found.append((names[index] if index < len(names) else "unknown", fd))
    return PassedSockets(found)


def _listening_socket(fd: int, name: str, what: str) -> socket.socket:
    """Return the descriptor as a socket. Raises AddressError where it is none that connections come from."""
    remedy = "the socket unit needs ListenStream= with a port, address or path, and Accept=no"
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        raise AddressError(f"{what}: descriptor {fd} ({name}) is no socket; {remedy}") from None
    try:
        listens = sock.type is socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise AddressError(f"{what}: descriptor {fd} ({name}) does not accept connections; {remedy}")
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise AddressError(f"{what}: descriptor {fd} ({name}): {error.strerror}; {remedy}") from None
    except AddressError:
        sock.close()
        raise
    return sock
