"""Every middleware that comes with Trailboss keeps the contract; the contract suite sees those that break it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trailboss.config.schema import CorsConfig, HeadersConfig, HttpConfig, SendfileConfig, StaticConfig
from trailboss.plugins.http.contract import HeaderEditor, MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Middleware, Request, Responder
from trailboss.plugins.http.middleware.access_log import AccessLog, Style
from trailboss.plugins.http.middleware.chain import BUILT_IN, build_chain
from trailboss.testing.check_http_middleware import (
    HTTP_MIDDLEWARE_CHECKS,
    Check,
    a_departure_is_told,
    a_known_length_is_kept_or_dropped,
    a_late_answer_comes_through,
    a_stream_stays_a_stream,
    an_answer_comes_through,
    back_pressure_is_told,
    check_http_middleware,
    every_request_is_answered_once,
    failures_come_through,
    files_are_sent_and_closed,
    nothing_is_kept,
)


def make_config(folder: Path, middleware: tuple[str, ...] = ()) -> HttpConfig:
    """Return a configuration in which every middleware has something to do."""
    return HttpConfig(
        address=("127.0.0.1:0",),
        middleware=middleware,
        trusted_subnets=("127.0.0.0/8",),
        static=StaticConfig(dir=str(folder), calculate_etag=True, response={"X-Static": "1"}),
        sendfile=SendfileConfig(root=str(folder)),
        headers=HeadersConfig(
            request={"X-Asked": "1"}, response={"X-Said": "1"}, cors=CorsConfig(allowed_origin=("*",))
        ),
    )


@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_middleware_keeps_the_contract(name: str, check: Check, tmp_path: Path) -> None:
    """Alone, each passes every check."""
    check_http_middleware(lambda services: BUILT_IN[name](make_config(tmp_path), services), check)


@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("style", Style)
def test_the_access_log_keeps_the_contract(style: Style, check: Check) -> None:
    """So does the access log, whatever it writes."""
    check_http_middleware(lambda services: AccessLog(style, services), check)


@pytest.mark.parametrize("check", HTTP_MIDDLEWARE_CHECKS, ids=lambda check: check.__name__)
def test_the_whole_chain_keeps_the_contract(check: Check, tmp_path: Path) -> None:
    """All of them at once do, in either order."""

    def make(services: MiddlewareServices, order: Callable[[list[str]], list[str]]) -> Middleware:
        config = make_config(tmp_path, tuple(order(sorted(BUILT_IN))))
        return lambda innermost: build_chain(config, services, innermost, ())

    check_http_middleware(lambda services: make(services, sorted), check)
    check_http_middleware(lambda services: make(services, lambda names: names[::-1]), check)


class _Broken(ResponderWrapper):
    """Base of the wrappers that break the contract."""

    __slots__ = ()


class _EatsTrailers(_Broken):
    def end(self, trailers: HeaderList = ()) -> None:
        self.inner.end()


class _Buffers(_Broken):
    __slots__ = ("_parts",)

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        self._parts: list[bytes] = []
        self.inner.head(status, headers, length=length)

    def data(self, chunk: bytes) -> None:
        self._parts.append(chunk)

    def end(self, trailers: HeaderList = ()) -> None:
        self.inner.data(b"".join(self._parts))
        self.inner.end(trailers)


class _KeepsLength(_Broken):
    def data(self, chunk: bytes) -> None:
        self.inner.data(chunk + b"!")


class _HidesPressure(_Broken):
    @property
    def wants_more(self) -> bool:  # type: ignore[override]
        return True


class _HidesDepartures(_Broken):
    @property
    def on_gone(self) -> Callable[[], None] | None:
        return None

    @on_gone.setter
    def on_gone(self, callback: Callable[[], None] | None) -> None:
        pass


class _CompletesBroken(_Broken):
    def abort(self) -> None:
        self.inner.end()


class _LeavesOpen(_Broken):
    def file(self, fd: int, offset: int, count: int) -> None:
        self.inner.data(os.pread(fd, count, offset))


class _DropsCookies(HeaderEditor):
    __slots__ = ()

    def edit(self, status: int, headers: HeaderList) -> HeaderList:
        return list(dict(headers).items())


def _answers_never(next_handler: Handler) -> Handler:
    return lambda request, responder: None


def _answers_twice(next_handler: Handler) -> Handler:
    def handle(request: Request, responder: Responder) -> None:
        next_handler(request, responder)
        next_handler(request, responder)

    return handle


def _answers_early(next_handler: Handler) -> Handler:
    def handle(request: Request, responder: Responder) -> None:
        responder.inform(103, ())
        next_handler(request, responder)

    return handle


def _keeps(next_handler: Handler) -> Handler:
    kept: list[Request] = []

    def handle(request: Request, responder: Responder) -> None:
        kept.append(request)
        next_handler(request, responder)

    return handle


def _wrap(wrapper: type[ResponderWrapper]) -> Middleware:
    return lambda next_handler: lambda request, responder: next_handler(request, wrapper(responder))


@pytest.mark.parametrize(
    ("middleware", "check"),
    [
        (_answers_never, every_request_is_answered_once),
        (_answers_twice, every_request_is_answered_once),
        (_answers_early, a_late_answer_comes_through),
        (_keeps, nothing_is_kept),
        (_wrap(_DropsCookies), an_answer_comes_through),
        (_wrap(_EatsTrailers), a_stream_stays_a_stream),
        (_wrap(_Buffers), a_stream_stays_a_stream),
        (_wrap(_KeepsLength), a_known_length_is_kept_or_dropped),
        (_wrap(_HidesPressure), back_pressure_is_told),
        (_wrap(_HidesDepartures), a_departure_is_told),
        (_wrap(_CompletesBroken), failures_come_through),
        (_wrap(_LeavesOpen), files_are_sent_and_closed),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_suite_sees_what_breaks_the_contract(middleware: Middleware, check: Check) -> None:
    """Each check fails for a middleware that breaks just its rule."""
    with pytest.raises(AssertionError):
        check(lambda services: middleware)
