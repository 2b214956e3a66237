"""SYSTEMD'S FILE DESCRIPTOR STORE: listening sockets that outlive the server, so that a crash refuses no connection.

A socket in the store stays open when the server is gone, however it went; who connects waits in the kernel's queue. The
next start of the unit gets it back by LISTEN_FDS under the name it was stored by, and takes it over where the configuration
still has that address. systemd empties the store by itself when the unit is stopped for good.

A name is `trailboss-PLUGIN-ADDRESS`, the address as the configuration writes it, with what a name cannot have as %XX.

The store is used where the unit permits it (FileDescriptorStoreMax=): systemd says so in FDSTORE from version 254 on; before
that the unit says so itself, by TRAILBOSS_FDSTORE=1. Without either nothing is sent, since systemd would complain.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import quote

from trailboss.activation import PassedSockets
from trailboss.handover import Offer, Passed, remove_file
from trailboss.log import logger
from trailboss.systemd import send_notification

__all__ = ["SocketStore", "store_name"]

log = logger("systemd")

PREFIX: Final = "trailboss-"
#: systemd takes 255 characters.
NAME_CHARACTERS_MAX: Final = 200
KINDS: Final = ("http", "rpc", "status", "metrics")
#: To see whether the file of a stored unix socket still leads to a listener.
PROBE_SECONDS: Final = 1.0


def store_name(kind: str, key: str) -> str:
    """Return the name of a plugin's socket in the store; a very long address is there as its SHA-256."""
    name = f"{PREFIX}{kind}-{quote(key, safe='/[]')}"
    if len(name) <= NAME_CHARACTERS_MAX:
        return name
    return f"{PREFIX}{kind}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()}"


class SocketStore:
    """Puts sockets into the store and takes them out. Nothing here raises: what fails is logged once."""

    def __init__(self, address: str) -> None:
        """`address`: systemd's socket for notifications."""
        self._address = address
        self._complained = False
        #: What came back from it at the start and is not in use yet.
        self._found: dict[str, Passed] = {}

    @classmethod
    def of_unit(cls, environ: Mapping[str, str]) -> SocketStore | None:
        """Return the store of the unit that runs this process, None where there is none."""
        address, most = environ.get("NOTIFY_SOCKET", ""), environ.get("FDSTORE", "")
        permitted = most != "0" if most else environ.get("TRAILBOSS_FDSTORE", "") == "1"
        return cls(address) if address and permitted else None

    def take(self, passed: PassedSockets) -> None:
        """Take what has come back from the store out of `passed`, for plugins to claim.

        What is no listening socket, and a unix socket whose file has gone, is closed here: that address is bound anew.
        Blocks for a moment where there is a unix socket, to see whether its file leads to it.
        """
        mine = [item for item in passed.found if _is_ours(item[0])]
        passed.found = [item for item in passed.found if not _is_ours(item[0])]
        for name, fd in mine:
            problem, path, inode = _examine(fd)
            if not problem and name not in self._found:
                self._found[name] = Passed("", "", fd, path, inode)
            else:
                self._drop(name, fd, problem or "another one has the same name")

    def claim(self, kind: str, key: str) -> Passed | None:
        """Return the socket that the store had for this address, once, or None."""
        found = self._found.pop(store_name(kind, key), None)
        return None if found is None else replace(found, kind=kind, key=key)

    def keep(self, offer: Offer) -> bool:
        """Put a socket into the store, where it may be already; False where that was not possible."""
        name = store_name(offer.kind, offer.key)
        return self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", offer.sock)

    def forget(self, kind: str, key: str) -> None:
        """Take a socket out of the store; systemd closes its descriptor. Does nothing where it is not there."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={store_name(kind, key)}")

    def drop_unclaimed(self) -> None:
        """Close what the configuration has no address for any more, also in the store."""
        found, self._found = self._found, {}
        for name, item in found.items():
            self._drop(name, item.fd, "the configuration does not have that address")
            if item.path:
                remove_file(item.path, item.inode)

    def _drop(self, name: str, fd: int, reason: str) -> None:
        log.warning("a stored socket is closed", name=name, reason=reason)
        os.close(fd)
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, text: str, sock: socket.socket | None = None) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                send_notification(notify, self._address, text, [sock.fileno()] if sock is not None else ())
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "the descriptor store cannot be reached; a crash of the server closes its sockets",
                    socket=self._address,
                    reason=error.strerror,
                )
            return False
        return True


def _is_ours(name: str) -> bool:
    return name.startswith(tuple(f"{PREFIX}{kind}-" for kind in KINDS))


def _examine(fd: int) -> tuple[str, str, tuple[int, int]]:
    """Say what is wrong with a descriptor, "" for nothing, and file and inode of a unix socket."""
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        return f"it is no socket: {error.strerror}", "", (0, 0)
    with sock:
        listens = sock.type is socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens:
            return "it does not accept connections", "", (0, 0)
        name = sock.getsockname()
        if sock.family is not socket.AF_UNIX:
            return "", "", (0, 0)
    path = name if isinstance(name, str) else os.fsdecode(name)
    try:
        found = os.lstat(path)
    except OSError as error:
        return f"its file {path} is not there: {error.strerror}", path, (0, 0)
    if not stat.S_ISSOCK(found.st_mode) or not _answers(path):
        return f"another file is at {path}", path, (0, 0)
    return "", path, (found.st_dev, found.st_ino)


def _answers(path: str) -> bool:
    """Whether a listener is behind the file: the file of a dead server is not that of a socket which is open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # a full queue is a listener's too
    return True
