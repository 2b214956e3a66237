"""Configured headers and CORS, by the semantics of rs/cors."""

from __future__ import annotations

import pytest

from trailboss.config.schema import CorsConfig, HeadersConfig, HttpConfig
from trailboss.plugins.http.contract import MiddlewareError
from trailboss.plugins.http.middleware.fields import with_vary
from trailboss.plugins.http.middleware.headers import ConfiguredHeaders, CrossOrigin, make_headers
from trailboss.plugins.http.middleware.request_id import RequestIds
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request
from trailboss.testing.fake_responder import FakeResponder

ORIGIN = (b"Origin", b"https://app.example.org")
PREFLIGHT_VARY = (b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


def bench_for(config: HeadersConfig) -> MiddlewareBench:
    """Return a bench whose handler answers with a page."""
    return MiddlewareBench(
        lambda services: ConfiguredHeaders(config),
        lambda _, responder: responder.respond(
            200, [(b"Content-Type", b"text/html"), (b"X-Mine", b"1")], b"page"
        ),
    )


def ask(config: CorsConfig, *headers: tuple[bytes, bytes], method: str = "GET") -> FakeResponder:
    """Return the answer to a request under these rules."""
    return bench_for(HeadersConfig(cors=config)).exchange(make_request(method=method, headers=headers))


def preflight(
    config: CorsConfig, origin: bytes = ORIGIN[1], method: bytes = b"GET", wanted: bytes = b""
) -> dict[bytes, bytes]:
    """Return the headers of the answer to a preflight."""
    headers = [(b"Origin", origin), (b"Access-Control-Request-Method", method)]
    if wanted:
        headers.append((b"Access-Control-Request-Headers", wanted))
    client = ask(config, *headers, method="OPTIONS")
    assert (client.status, client.body) == (config.options_success_status, b"")
    return dict(client.headers)


def test_request_headers_replace_the_clients() -> None:
    """A worker can rely on a configured header: the client cannot add a value to it."""
    bench = bench_for(HeadersConfig(request={"X-Env": "prod", "X-Two": "b"}))
    bench.exchange(make_request(headers=[(b"x-env", b"evil"), (b"X-Other", b"1"), (b"X-ENV", b"worse")]))
    assert bench.requests[0].headers == [
        (b"Host", b"example.org"),
        (b"X-Other", b"1"),
        (b"X-Env", b"prod"),
        (b"X-Two", b"b"),
    ]


def test_response_headers_are_added() -> None:
    """Beside the worker's own as in RoadRunner; where there may be only one, the worker's stays."""
    bench = bench_for(
        HeadersConfig(response={"X-Mine": "2", "content-type": "text/plain", "X-Frame-Options": "DENY"})
    )
    assert bench.exchange(make_request()).headers == [
        (b"Content-Type", b"text/html"),
        (b"X-Mine", b"1"),
        (b"X-Mine", b"2"),
        (b"X-Frame-Options", b"DENY"),
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("X-A", "1\r\nX-B: 2"), ("X-A", "\0"), ("X A", "1"), ("", "1"), ("X:A", "1")]
)
@pytest.mark.parametrize("side", ["request", "response"])
def test_headers_that_would_break_the_head_are_refused(side: str, name: str, value: str) -> None:
    """At the start, in words."""
    config = HttpConfig(address=("127.0.0.1:0",), headers=HeadersConfig(**{side: {name: value}}))
    with pytest.raises(MiddlewareError, match=r"^http\.headers: "):
        make_headers(config, MiddlewareBench(lambda services: lambda handler: handler).services)


def test_a_preflight_never_reaches_a_worker() -> None:
    """It is answered with what is allowed, for as long as configured."""
    config = CorsConfig(
        allowed_origin=("https://app.example.org",),
        allowed_methods=("PUT", "delete"),
        allowed_headers=("X-Token", "content-type"),
        allow_credentials=True,
        max_age=600,
        options_success_status=204,
    )
    bench = bench_for(HeadersConfig(cors=config))
    asked = [
        ORIGIN,
        (b"Access-Control-Request-Method", b"DELETE"),
        (b"Access-Control-Request-Headers", b"content-type,x-token"),
    ]
    client = bench.exchange(make_request(method="OPTIONS", headers=asked))
    assert bench.requests == []
    assert client.status == 204
    assert client.headers == [
        PREFLIGHT_VARY,
        (b"Access-Control-Allow-Origin", b"https://app.example.org"),
        (b"Access-Control-Allow-Methods", b"DELETE"),
        (b"Access-Control-Allow-Headers", b"content-type,x-token"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Max-Age", b"600"),
    ]


@pytest.mark.parametrize(
    ("origin", "method", "wanted"),
    [
        (b"https://evil.example", b"PUT", b""),
        (b"", b"PUT", b""),
        (b"https://app.example.org.evil", b"PUT", b""),
        (b"http://app.example.org", b"PUT", b""),
        (b"null", b"PUT", b""),
        (b"https://app.example.org", b"GET", b""),
        (b"https://app.example.org", b"PUT", b"x-secret"),
        (b"https://app.example.org", b"PUT", b"x-token,x-secret"),
        (b"https://app.example.org", b"PUT", b"x-token," * 5000),
    ],
)
def test_a_preflight_that_is_not_allowed(origin: bytes, method: bytes, wanted: bytes) -> None:
    """It is answered too, with nothing allowed."""
    config = CorsConfig(
        allowed_origin=("https://app.example.org",), allowed_methods=("PUT",), allowed_headers=("x-token",)
    )
    assert preflight(config, origin, method, wanted) == dict([PREFLIGHT_VARY])


def test_options_without_a_preflight_is_an_ordinary_request() -> None:
    """Only Access-Control-Request-Method makes a preflight."""
    bench = bench_for(HeadersConfig(cors=CorsConfig()))
    client = bench.exchange(make_request(method="OPTIONS", headers=[ORIGIN]))
    assert (len(bench.requests), client.body) == (1, b"page")
    assert client.header(b"access-control-allow-origin") == b"*"


def test_an_actual_request() -> None:
    """Allowed: who may read, and what; Vary is there in any case, merged with the worker's."""
    config = CorsConfig(
        allowed_origin=("https://app.example.org",), exposed_headers=("X-A", "X-B"), allow_credentials=True
    )
    client = ask(config, ORIGIN)
    assert client.headers[2:] == [
        (b"Access-Control-Allow-Origin", b"https://app.example.org"),
        (b"Access-Control-Expose-Headers", b"X-A, X-B"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Vary", b"Origin"),
    ]
    for headers, method in (([], "GET"), ([(b"Origin", b"https://evil.example")], "GET"), ([ORIGIN], "PUT")):
        client = ask(config, *headers, method=method)
        assert client.headers[2:] == [(b"Vary", b"Origin")]
        assert client.body == b"page"


@pytest.mark.parametrize(
    ("config", "origin", "allowed"),
    [
        (CorsConfig(), b"https://any.example", b"*"),
        (CorsConfig(allowed_origin=("*",)), b"null", b"*"),
        (CorsConfig(allowed_origin=("https://a.example", "*")), b"https://b.example", b"*"),
        (
            CorsConfig(allowed_origin=("https://*.example.org",)),
            b"https://a.example.org",
            b"https://a.example.org",
        ),
        (CorsConfig(allowed_origin=("https://*.example.org",)), b"https://example.org", None),
        (CorsConfig(allowed_origin=("https://a*a.example",)), b"https://a.example", None),
        (CorsConfig(allowed_origin=("HTTPS://A.example",)), b"https://a.Example", b"https://a.Example"),
        (CorsConfig(allowed_origin=(" https://a.example ",)), b"https://a.example", b"https://a.example"),
        (
            CorsConfig(allowed_origin_regex=r"^https://[a-z]+\.example$"),
            b"https://abc.example",
            b"https://abc.example",
        ),
        (CorsConfig(allowed_origin_regex=r"^https://[a-z]+\.example$"), b"https://1.example", None),
        (CorsConfig(allowed_origin=("*",), allowed_origin_regex=r"^x$"), b"https://a.example", None),
        (CorsConfig(allowed_origin=("https://a.example",)), b"https://a.example\xff", None),
    ],
)
def test_origins(config: CorsConfig, origin: bytes, allowed: bytes | None) -> None:
    """Exact, with one wildcard, any, or by a regular expression that overrides the list."""
    assert ask(config, (b"Origin", origin)).header(b"access-control-allow-origin") == allowed
    assert preflight(config, origin).get(b"Access-Control-Allow-Origin") == allowed


def test_defaults_of_methods_and_headers() -> None:
    """GET, POST and HEAD; the headers every form can send."""
    assert b"Access-Control-Allow-Origin" in preflight(
        CorsConfig(), method=b"POST", wanted=b"content-type, X-Requested-With"
    )
    assert b"Access-Control-Allow-Origin" not in preflight(CorsConfig(), method=b"PATCH")
    assert b"Access-Control-Allow-Origin" not in preflight(CorsConfig(), wanted=b"authorization")
    assert b"Access-Control-Allow-Origin" in preflight(
        CorsConfig(allowed_headers=("*",)), wanted=b"authorization,x"
    )


def test_what_the_worker_says_about_origins_makes_way() -> None:
    """Two Access-Control-Allow-Origin headers would make browsers refuse the answer."""
    bench = MiddlewareBench(
        lambda services: ConfiguredHeaders(HeadersConfig(cors=CorsConfig())),
        lambda _, responder: responder.respond(
            200,
            [
                (b"access-control-allow-origin", b"https://other.example"),
                (b"Vary", b"Cookie"),
                (b"vary", b"Accept"),
            ],
            b"",
        ),
    )
    client = bench.exchange(make_request(headers=[ORIGIN]))
    assert client.headers == [(b"Access-Control-Allow-Origin", b"*"), (b"Vary", b"Cookie, Accept, Origin")]


def test_a_regex_that_cannot_be_read_fails_the_start() -> None:
    """In one sentence that names the key."""
    with pytest.raises(ValueError, match="allowed_origin_regex"):
        CrossOrigin(CorsConfig(allowed_origin_regex="("))


def test_vary() -> None:
    """One header, no name twice, and `*` says everything."""
    assert with_vary([], b"Origin") == [(b"Vary", b"Origin")]
    assert with_vary([(b"vary", b"ORIGIN")], b"Origin") == [(b"vary", b"ORIGIN")]
    assert with_vary([(b"Vary", b"*")], b"Origin") == [(b"Vary", b"*")]
    assert with_vary([(b"Vary", b"")], b"Origin") == [(b"Vary", b"Origin")]


def test_the_servers_own_answers_have_them_too() -> None:
    """A script may read why it was refused, and the id to ask for; one that ends the connection goes out as it is."""
    config = HeadersConfig(response={"X-Said": "1"}, cors=CorsConfig())
    for middleware, expected in (
        (ConfiguredHeaders(config), {(b"X-Said", b"1"), (b"Access-Control-Allow-Origin", b"*")}),
        (RequestIds(), {(b"X-Request-Id", b"abc")}),
    ):
        bench = MiddlewareBench(lambda services, middleware=middleware: middleware)
        asked = [ORIGIN, (b"X-Request-Id", b"abc")]
        client = bench.begin(make_request(headers=asked))
        bench.responder.fail(503, "queue full", retry_after=1)
        assert (client.status, client.body) == (503, b"queue full\n")
        assert {*expected, (b"trailboss-reason", b"queue full"), (b"Retry-After", b"1")} <= set(
            client.headers
        )
        client = bench.begin(make_request(headers=asked))
        bench.responder.fail(503, "draining", close=True)
        assert client.failure == (503, "draining", None, True)


def test_request_ids() -> None:
    """A sensible id is kept, anything else replaced; worker, log and client see the same one."""
    bench = MiddlewareBench(
        lambda services: RequestIds(),
        lambda _, responder: responder.respond(200, [(b"x-request-id", b"worker")], b""),
    )
    client = bench.exchange(make_request(headers=[(b"X-Request-ID", b"abc-123")]))
    assert bench.requests[0].id == "abc-123"
    assert client.headers == [(b"X-Request-Id", b"abc-123")]
    ids = set()
    for given in (None, b"", b"a b", b"a" * 129, b"x\xff", b"<script>", b"-a", b"a, b"):
        headers = [] if given is None else [(b"X-Request-Id", given)]
        client = bench.exchange(make_request(headers=headers))
        request = bench.requests[-1]
        assert client.headers == [(b"X-Request-Id", request.id.encode())]
        assert request.header(b"x-request-id") == request.id.encode()
        assert len(request.id) == 32
        ids.add(request.id)
    assert len(ids) == 8
