"""What the server and systemd say to each other, apart from the plugin: datagrams, and units for one installation."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence

__all__ = ["send_notification"]


def send_notification(notify: socket.socket, address: str, text: str, fds: Sequence[int] = ()) -> None:
    """Send one datagram, with descriptors where there are any, to systemd's socket `address`. Raises OSError."""
    place = f"\0{address[1:]}" if address.startswith("@") else address
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    notify.sendmsg([text.encode()], rights, 0, place)
