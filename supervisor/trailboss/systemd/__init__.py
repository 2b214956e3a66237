"""What the server and systemd say to each other, apart from the plugin: datagrams, and units for one installation."""

from __future__ import annotations

import socket

__all__ = ["send_notification"]


def send_notification(notify: socket.socket, address: str, text: str) -> None:
    """Send one datagram to systemd's socket `address`. Raises OSError."""
    notify.sendto(text.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
