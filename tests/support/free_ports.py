"""Ports for servers of tests that nobody else takes between the look and the server's own bind."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["free_port"]

#: Below lie those of well-known services.
PORT_MIN = 10_000
_chance = random.SystemRandom()  # not the seeded one: each test would begin with the same ports


def free_port() -> int:
    """Return a port on loopback that nobody uses, and that the system gives to no outgoing connection by itself.

    One that the system has found (a bind to port 0) may be the local end of any client's connection a moment later.
    """
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except OSError:  # a container without it: the kernel's default
        low, high = 32_768, 60_999
    ports = [port for port in range(PORT_MIN, 65_536) if not low <= port <= high]
    for port in [*_chance.sample(ports, min(len(ports), 200)), 0]:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise AssertionError("no port on 127.0.0.1 is free")
