"""The client's address behind proxies: believed from `http.trusted_subnets` only, and only as far as their word goes.

Each proxy appends the address it was called from to X-Forwarded-For, so the right-most entry was written by the proxy that
calls us, and everything a client invents stands further left. Read from the right, the first address that is not itself a trusted proxy is
the client; reading stops at the first entry that is no address. RoadRunner takes the left-most, which any client can set.

The headers are looked at in this order, and the first that is there decides: X-Forwarded-For, Forwarded, X-Real-IP,
True-Client-IP, CF-Connecting-IP. RoadRunner begins with Forwarded, which few proxies write and most pass on from the client
as it is. The scheme follows X-Forwarded-Proto, else the `proto` of Forwarded, under the same condition.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import MiddlewareServices
from trailboss.plugins.http.message import Handler, Request, Responder

__all__ = ["ProxyAddresses", "TrustedSubnets", "make_proxy_ip_parser", "parse_address", "parse_forwarded"]

_HOPS_MAX: Final = 64
_SINGLE: Final = (b"x-real-ip", b"true-client-ip", b"cf-connecting-ip")
_NAMES: Final = frozenset({b"x-forwarded-for", b"forwarded", b"x-forwarded-proto", *_SINGLE})
#: First letters of the names above, so that most headers cost one look.
_INITIALS: Final = frozenset(b"xXfFtTcC")
_CACHE_MAX: Final = 4096
_PAIR: Final = re.compile(
    rb"""[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]*))[ \t]*(;|,|$)""", re.DOTALL
)


class TrustedSubnets:
    """Says whether an address belongs to a trusted proxy."""

    def __init__(self, subnets: Iterable[str]) -> None:
        """Raises ValueError for what is no network."""
        self._networks = [ipaddress.ip_network(subnet, strict=False) for subnet in subnets]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        trusted = self._known.get(address)
        if trusted is None:
            trusted = self._look_up(address)
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            self._known[address] = trusted
        return trusted

    def _look_up(self, address: str) -> bool:
        parsed = _parse(
            address or "127.0.0.1"
        )  # a peer on a unix socket has no address, and is on this machine
        return parsed is not None and any(parsed in network for network in self._networks)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_address(raw: bytes) -> str | None:
    """Return the address of one entry, without port and brackets and in its shortest form; None where it is none."""
    text = raw.strip().decode("latin-1")
    if len(text) > 64:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)) or ":" not in text:
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    address = _parse(text)
    return None if address is None else str(address)


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def parse_forwarded(value: bytes) -> list[dict[bytes, bytes]] | None:
    """Return the elements of a Forwarded header (RFC 7239); None where it cannot be read to its end."""
    elements: list[dict[bytes, bytes]] = [{}]
    position = 0
    while position < len(value):
        match = _PAIR.match(value, position)
        if match is None:
            return None
        quoted = match[2]
        elements[-1][match[1].lower()] = match[3] if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
        if match[4] == b",":
            elements.append({})
        position = match.end()
    return elements


class ProxyAddresses:
    """Puts the client's address and scheme in place of the proxy's."""

    def __init__(self, trusted: TrustedSubnets) -> None:
        self._trusted = trusted

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that corrects requests; without trusted networks there is nothing to correct."""
        if not self._trusted:
            return next_handler
        trusted = self._trusted

        def handle(request: Request, responder: Responder) -> None:
            if request.remote_addr in trusted:
                self.correct(request)
            next_handler(request, responder)

        return handle

    def correct(self, request: Request) -> None:
        """Correct a request that came from a trusted proxy."""
        said: dict[bytes, bytes] = {}
        for name, value in request.headers:
            if name and name[0] in _INITIALS:
                lowered = name.lower()
                if lowered in _NAMES:
                    earlier = said.get(lowered)
                    said[lowered] = value if earlier is None else earlier + b"," + value
        if not said:
            return
        client, scheme = self._client(said)
        if client is not None and client != request.remote_addr:
            request.remote_addr = client
            request.remote_port = 0
        told = said.get(b"x-forwarded-proto")
        if told is not None:
            scheme = told.rpartition(b",")[2].strip()
        lowered = scheme.lower()
        if lowered in (b"http", b"https"):
            request.scheme = lowered.decode()

    def _client(self, said: dict[bytes, bytes]) -> tuple[str | None, bytes]:
        """Return the client's address, None to leave the peer's, and the scheme Forwarded tells."""
        entries = said.get(b"x-forwarded-for")
        if entries is not None:
            return self._first_untrusted(entries.split(b",")[-_HOPS_MAX:])[0], b""
        forwarded = said.get(b"forwarded")
        if forwarded is not None:
            elements = (parse_forwarded(forwarded) or [])[-_HOPS_MAX:]
            client, hops = self._first_untrusted([element.get(b"for", b"") for element in elements])
            return client, elements[-hops].get(b"proto", b"") if hops else b""
        for name in _SINGLE:
            if name in said:
                return parse_address(said[name]), b""
        return None, b""

    def _first_untrusted(self, entries: Sequence[bytes]) -> tuple[str | None, int]:
        """Return the right-most address that is no trusted proxy, and its number counted from the right."""
        client = None
        hops = 0
        for entry in reversed(entries):
            address = parse_address(entry)
            if address is None:
                break
            client = address
            hops += 1
            if address not in self._trusted:
                break
        return client, hops


def make_proxy_ip_parser(config: HttpConfig, services: MiddlewareServices) -> ProxyAddresses:
    """Return the middleware `proxy_ip_parser`."""
    return ProxyAddresses(TrustedSubnets(config.trusted_subnets))
