"""The example of third-party middleware does what it says, and keeps the contract."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import GROUP, MiddlewareError, MiddlewareServices
from trailboss.plugins.http.message import Middleware
from trailboss.plugins.http.middleware.chain import build_chain
from trailboss.testing.check_http_middleware import (
    HTTP_MIDDLEWARE_CHECKS,
    Check,
    MiddlewareBench,
    check_http_middleware,
    make_request,
)

EXAMPLE = Path(__file__).parents[5] / "examples" / "http_middleware"
CONFIG = HttpConfig(address=("127.0.0.1:0",), middleware=("server_timing",))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("trailboss_example_server_timing")
    sys.modules.pop("trailboss_example_server_timing", None)


def entry_point() -> metadata.EntryPoint:
    """The entry point of the example, as its pyproject.toml declares it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return metadata.EntryPoint("server_timing", project["entry-points"][GROUP]["server_timing"], GROUP)


def with_section(services: MiddlewareServices, section: object) -> MiddlewareServices:
    """Return services of a server whose configuration has this section."""
    return MiddlewareServices(
        services.clock,
        services.call_soon,
        services.logs_info,
        services.access_log,
        lambda name, kind: section,  # type: ignore[arg-type, return-value]
    )


@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
def test_the_example_keeps_the_contract(example: Any, check: Check) -> None:
    """Every check of the suite, by its entry point and in a chain."""

    def make(services: MiddlewareServices) -> Middleware:
        return lambda innermost: build_chain(CONFIG, services, innermost, (entry_point(),))

    check_http_middleware(make, check)


def test_the_time_is_told(example: Any) -> None:
    """In the head, in milliseconds, under the configured name; whole answers and streams alike."""

    def make(services: MiddlewareServices) -> Middleware:
        section = example.ServerTimingConfig(metric="php", slow=0.2)
        return lambda innermost: build_chain(
            CONFIG, with_section(services, section), innermost, (entry_point(),)
        )

    bench = MiddlewareBench(make)
    bench.now = 100.25
    client = bench.begin(make_request(started=100.0))
    bench.responder.respond(200, [(b"X-A", b"1")], b"")
    assert client.headers == [(b"X-A", b"1"), (b"Server-Timing", b"php;dur=250.0")]
    client = bench.begin(make_request(started=100.2))
    bench.responder.head(200, [])
    bench.now = 200.0
    bench.responder.end()
    assert client.headers == [(b"Server-Timing", b"php;dur=50.0")]


def test_a_bad_name_fails_the_start(example: Any) -> None:
    """With the middleware's own sentence."""
    services = with_section(
        MiddlewareBench(lambda services: lambda handler: handler).services,
        example.ServerTimingConfig(metric="a;b"),
    )
    with pytest.raises(MiddlewareError, match=r"^server_timing\.metric: 'a;b' is no metric name"):
        build_chain(CONFIG, services, lambda request, responder: None, (entry_point(),))
