"""From http to https: the URL stays the same but for scheme and port."""

from __future__ import annotations

import pytest
from front_bench import MakeBench

from trailboss.plugins.http.message import Request
from trailboss.plugins.http.redirect import redirect_plain, secure_url


@pytest.mark.parametrize(
    ("host", "path", "query", "port", "url"),
    [
        ("example.test", "/", "", 443, "https://example.test/"),
        ("example.test:8080", "/a%2Fb", "c=d?e", 443, "https://example.test/a%2Fb?c=d?e"),
        ("example.test:80", "/", "", 8443, "https://example.test:8443/"),
        ("example.test:", "/", "", 443, "https://example.test/"),
        ("192.0.2.1:80", "//x", "", 443, "https://192.0.2.1//x"),
        ("[2001:db8::1]:80", "/", "", 443, "https://[2001:db8::1]/"),
        ("[2001:db8::1]", "/", "", 8443, "https://[2001:db8::1]:8443/"),
        ("example.test", "*", "", 443, "https://example.test"),
    ],
)
def test_the_url(host: str, path: str, query: str, port: int, url: str) -> None:
    """Names, addresses of both kinds, ports, the path as it was written."""
    assert secure_url(Request("GET", path, path, query, "1.1", [], host), port) == url


def test_only_plain_requests_are_redirected(make_bench: MakeBench) -> None:
    """The connection is kept, and no worker sees the request; one that came by https does."""
    bench = make_bench()
    bench.front.handler = redirect_plain(bench.echo, 443)
    client = bench.connect()
    client.send(b"POST /x?y HTTP/1.1\r\nHost: a:80\r\nContent-Length: 1\r\n\r\nz" * 2)
    assert client.received.count(b"HTTP/1.1 308 Permanent Redirect\r\n") == 2
    assert client.received.count(b"\r\nLocation: https://a/x?y\r\n") == 2
    assert client.received.count(b"\r\nStrict-Transport-Security: max-age=31536000;") == 2
    assert bench.echo.requests == []
    assert not client.ended
    request = Request("GET", "/", "/", "", "1.1", [], "a", scheme="https")
    seen = []
    redirect_plain(lambda *given: seen.append(given), 443)(request, None)  # type: ignore[arg-type]
    assert seen == [(request, None)]
