"""Which names the status page answers to. Pure.

A page in the browser of somebody who may reach this port could otherwise read it: its own name, resolved to this very
address, makes the browser think that both are one site. An address cannot be such a name, nor can localhost.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

__all__ = ["Hosts"]


class Hosts:
    """Addresses, localhost, this machine's own name, the host in `status.address`, and what `status.hosts` adds."""

    def __init__(self, bound: str, more: Sequence[str] = (), own_name: str | None = None) -> None:
        own = socket.gethostname() if own_name is None else own_name
        self._any = "*" in more
        self._names = {_lower(name) for name in (bound, own, own.partition(".")[0], *more) if name}

    def allows(self, host: str | None) -> bool:
        """Say whether a Host header is right; a request without one comes from no browser."""
        if host is None or self._any:
            return True
        name = _without_port(_lower(host))
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @staticmethod
    def refusal(host: str | None) -> str:
        """Return what the one who asked is told."""
        shown = "".join(char if " " < char <= "~" else "?" for char in (host or "")[:100])
        return (
            f"this page is not for the name {shown}: ask for it by an address, by localhost, "
            "or list the name in status.hosts\n"
        )


def _lower(name: str) -> str:
    return name.lower().removesuffix(".")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
