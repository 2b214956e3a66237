"""What the server and systemd say to each other, apart from the plugin: datagrams, and units for one installation."""

from __future__ import annotations

import socket
from collections.abc import Sequence

__all__ = ["send_notification"]


def send_notification(notify: socket.socket, address: str, text: str, fds: Sequence[int] = ()) -> None:
    """Send one datagram, with descriptors where there are any, to systemd's socket `address`. Raises OSError."""
    place = f"\0{address[1:]}" if address.startswith("@") else address
    if fds:
        socket.send_fds(notify, [text.encode()], list(fds), 0, place)
    else:
        notify.sendto(text.encode(), place)
