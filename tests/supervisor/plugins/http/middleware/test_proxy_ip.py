"""The client's address behind proxies: what proxies say is believed, what clients say is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.plugins.http.message import Request
from trailboss.plugins.http.middleware.proxy_ip import (
    ProxyAddresses,
    TrustedSubnets,
    parse_address,
    parse_forwarded,
)
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request

TRUSTED = ("127.0.0.0/8", "10.0.0.0/8", "fd00::/8")


def seen(
    headers: list[tuple[bytes, bytes]], peer: str = "127.0.0.1", trusted: tuple[str, ...] = TRUSTED
) -> Request:
    """Return the request as the worker sees it."""
    bench = MiddlewareBench(lambda services: ProxyAddresses(TrustedSubnets(trusted)))
    bench.begin(make_request(headers=headers, remote_addr=peer))
    return bench.requests[0]


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (b"203.0.113.7", "203.0.113.7"),
        (b"6.6.6.6, 203.0.113.7", "203.0.113.7"),
        (b"6.6.6.6, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        (b"6.6.6.6,203.0.113.7,10.1.1.1,127.0.0.9", "203.0.113.7"),
        (b"10.3.3.3, 10.2.2.2, 10.1.1.1", "10.3.3.3"),
        (b"203.0.113.7:4711", "203.0.113.7"),
        (b"[2001:DB8::1]:4711", "2001:db8::1"),
        (b"2001:db8:0:0::1", "2001:db8::1"),
        (b"::ffff:203.0.113.7", "203.0.113.7"),
        (b"203.0.113.7, ::ffff:10.0.0.1", "203.0.113.7"),
        (b"203.0.113.7, unknown", "127.0.0.1"),
        (b"6.6.6.6, unknown, 10.1.1.1", "10.1.1.1"),
        (b"6.6.6.6, 203.0.113.7,", "127.0.0.1"),
        (b"", "127.0.0.1"),
        (b"localhost", "127.0.0.1"),
        (b"203.0.113.007", "127.0.0.1"),
        (b"0x7f.1", "127.0.0.1"),
        (b"fe80::1%eth0", "127.0.0.1"),
        (b"203.0.113.7:http", "127.0.0.1"),
        (b"\xd9\xa1.2.3.4", "127.0.0.1"),
        (b"<script>", "127.0.0.1"),
    ],
)
def test_x_forwarded_for(value: bytes, address: str) -> None:
    """The right-most address that is no trusted proxy counts; reading stops at what is no address."""
    request = seen([(b"X-Forwarded-For", value)])
    assert request.remote_addr == address
    assert request.remote_port == (40_000 if address == "127.0.0.1" else 0)


def test_headers_that_come_twice_are_one_list() -> None:
    """A proxy may append a header of its own instead of extending the client's."""
    assert (
        seen([(b"x-forwarded-for", b"6.6.6.6"), (b"X-FORWARDED-FOR", b"203.0.113.7")]).remote_addr
        == "203.0.113.7"
    )


def test_a_long_list_costs_little() -> None:
    """Only the hops nearest to us are read."""
    value = b"6.6.6.6," * 5000 + b"10.0.0.1"
    assert seen([(b"X-Forwarded-For", value)]).remote_addr == "6.6.6.6"
    value = b"6.6.6.6," + b",".join([b"10.0.0.1"] * 5000)
    assert seen([(b"X-Forwarded-For", value)]).remote_addr == "10.0.0.1"


@pytest.mark.parametrize(
    ("value", "address", "scheme"),
    [
        (b"for=203.0.113.7", "203.0.113.7", "http"),
        (b"for=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7", "https"),
        (b'For="[2001:db8::1]:47011"; Proto="HTTPS"', "2001:db8::1", "https"),
        (b"for=6.6.6.6;proto=https, for=203.0.113.7;proto=http", "203.0.113.7", "http"),
        (b"for=6.6.6.6, for=203.0.113.7, for=10.0.0.1;proto=https", "203.0.113.7", "http"),
        (b"for=203.0.113.7, for=_hidden", "127.0.0.1", "http"),
        (b"for=unknown", "127.0.0.1", "http"),
        (b'for="unclosed, for=203.0.113.7', "127.0.0.1", "http"),
        (b"proto=https", "127.0.0.1", "http"),
        (b'for="6.6.6.6\\", for=203.0.113.7"', "127.0.0.1", "http"),
        (b"for=203.0.113.7;proto=gopher", "203.0.113.7", "http"),
    ],
)
def test_forwarded(value: bytes, address: str, scheme: str) -> None:
    """The same rule for RFC 7239; the scheme is that of the same hop."""
    request = seen([(b"Forwarded", value)])
    assert (request.remote_addr, request.scheme) == (address, scheme)


@pytest.mark.parametrize("name", [b"X-Real-IP", b"True-Client-IP", b"CF-Connecting-IP"])
def test_headers_with_one_address(name: bytes) -> None:
    """They count where there is no list."""
    assert seen([(name, b"203.0.113.7")]).remote_addr == "203.0.113.7"
    assert seen([(name, b"203.0.113.7, 1.1.1.1")]).remote_addr == "127.0.0.1"
    listed = [(name, b"6.6.6.6"), (b"X-Forwarded-For", b"203.0.113.7")]
    assert seen(listed).remote_addr == "203.0.113.7"


def test_the_order_of_the_headers() -> None:
    """X-Forwarded-For before Forwarded, which clients may send past proxies that do not know it; then the single ones."""
    assert (
        seen([(b"Forwarded", b"for=6.6.6.6"), (b"X-Forwarded-For", b"203.0.113.7")]).remote_addr
        == "203.0.113.7"
    )
    assert (
        seen([(b"CF-Connecting-IP", b"6.6.6.6"), (b"X-Real-IP", b"203.0.113.7")]).remote_addr == "203.0.113.7"
    )
    assert seen([(b"X-Real-IP", b"6.6.6.6"), (b"Forwarded", b"for=203.0.113.7")]).remote_addr == "203.0.113.7"
    # A list that says nothing does not hand the word to headers that anybody may have written.
    assert seen([(b"X-Forwarded-For", b"unknown"), (b"X-Real-IP", b"6.6.6.6")]).remote_addr == "127.0.0.1"


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::9", "11.0.0.1", "nonsense"])
def test_strangers_are_not_believed(peer: str) -> None:
    """Who is no trusted proxy changes neither address nor scheme."""
    headers = [
        (b"X-Forwarded-For", b"6.6.6.6"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=6.6.6.6"),
    ]
    request = seen(headers, peer)
    assert (request.remote_addr, request.remote_port, request.scheme) == (peer, 40_000, "http")


@pytest.mark.parametrize("peer", ["", "10.9.9.9", "fd00::5", "::ffff:10.9.9.9"])
def test_trusted_peers(peer: str) -> None:
    """A peer on a unix socket is on this machine; IPv4 in IPv6 is IPv4."""
    assert seen([(b"X-Forwarded-For", b"203.0.113.7")], peer).remote_addr == "203.0.113.7"


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        (b"https", "https"),
        (b"HTTPS", "https"),
        (b"https, http", "http"),
        (b"http,https", "https"),
        (b"ftp", "http"),
    ],
)
def test_the_scheme(value: bytes, scheme: str) -> None:
    """The nearest proxy's word on the scheme counts."""
    assert seen([(b"X-Forwarded-Proto", value)]).scheme == scheme


def test_without_networks_nothing_is_done() -> None:
    """As in RoadRunner, the middleware does nothing without http.trusted_subnets."""
    assert seen([(b"X-Forwarded-For", b"6.6.6.6")], trusted=()).remote_addr == "127.0.0.1"


@given(
    st.lists(
        st.tuples(st.sampled_from([b"X-Forwarded-For", b"Forwarded", b"X-Real-IP"]), st.binary(max_size=50))
    )
)
def test_any_header_leaves_an_address(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever is sent, the address is one, and nothing raises."""
    request = seen(headers)
    assert parse_address(request.remote_addr.encode()) == request.remote_addr


@given(st.binary(max_size=80))
def test_forwarded_never_raises(value: bytes) -> None:
    """Any bytes are elements or nothing."""
    assert isinstance(parse_forwarded(value), list | None)


@given(
    st.lists(st.ip_addresses().map(str), max_size=6),
    st.ip_addresses().map(str).filter(lambda a: not a.startswith(("10.", "127.", "fd"))),
)
def test_what_a_client_invents_stands_further_left(invented: list[str], real: str) -> None:
    """However long a list a client sends, the address its proxy saw is the one that counts."""
    expected = parse_address(real.encode())
    if expected is None or expected in TrustedSubnets(TRUSTED):
        return
    assert (
        seen([(b"X-Forwarded-For", ", ".join([*invented, real, "10.0.0.1"]).encode())]).remote_addr
        == expected
    )
