"""Configured headers and cross-origin rules (CORS).

Request headers from the configuration replace the client's of the same name, so that a worker can rely on them. Response
headers are added to the worker's, as in RoadRunner, except those that may stand only once: there the worker's own wins.

Cross-origin rules have the semantics of rs/cors: a preflight (OPTIONS with Access-Control-Request-Method) is answered here
and never reaches a worker; it and every other request get Access-Control headers when origin, method and headers are
allowed, and Vary in any case. What is said here about cross-origin access replaces what the worker says.
"""

from __future__ import annotations

import re
from typing import Final

from trailboss.config.schema import CorsConfig, HeadersConfig, HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import HeaderEditor, MiddlewareError, MiddlewareServices
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.fields import encode_fields, with_vary, without_fields

__all__ = ["ConfiguredHeaders", "CrossOrigin", "make_headers"]

log = logger("http")

#: Two of these in one answer make it unreadable or ambiguous.
_SINGLE: Final = frozenset(
    {
        b"age",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-location",
        b"content-range",
        b"content-type",
        b"etag",
        b"expires",
        b"last-modified",
        b"location",
        b"retry-after",
        b"x-content-type-options",
        b"x-frame-options",
    }
)
_METHODS_DEFAULT: Final = ("GET", "POST", "HEAD")
_HEADERS_DEFAULT: Final = ("accept", "content-type", "x-requested-with")
_PREFLIGHT_VARY: Final = (b"Origin", b"Access-Control-Request-Method", b"Access-Control-Request-Headers")
_REQUESTED_LENGTH_MAX: Final = 8192


class CrossOrigin:
    """Who may read what from another origin; pure."""

    def __init__(self, config: CorsConfig) -> None:
        """Raises ValueError for a regular expression that cannot be read."""
        origins = [origin.strip().lower() for origin in config.allowed_origin if origin.strip()]
        self._pattern: re.Pattern[str] | None = None
        if config.allowed_origin_regex:
            try:
                self._pattern = re.compile(config.allowed_origin_regex)
            except re.error as error:
                raise ValueError(f"cors.allowed_origin_regex cannot be read: {error}") from error
        self._any_origin = self._pattern is None and (not origins or "*" in origins)
        self._origins = frozenset(origin for origin in origins if "*" not in origin)
        self._wildcards = [origin.split("*", 1) for origin in origins if "*" in origin]
        methods = [method.strip().upper() for method in config.allowed_methods if method.strip()]
        self._methods = frozenset(methods or _METHODS_DEFAULT)
        names = [name.strip().lower() for name in config.allowed_headers if name.strip()]
        self._any_header = "*" in names
        self._headers = frozenset(names or _HEADERS_DEFAULT) | {"origin"}
        self._credentials = config.allow_credentials
        self._exposed = ", ".join(name.strip() for name in config.exposed_headers if name.strip()).encode()
        self._max_age = b"%d" % config.max_age if config.max_age > 0 else b""
        self.success_status = config.options_success_status
        self._debug = config.debug

    def preflight(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer to a preflight; only Vary where it is refused."""
        fields = [(b"Vary", b", ".join(_PREFLIGHT_VARY))]
        origin = request.header(b"origin") or b""
        method = request.header(b"access-control-request-method") or b""
        wanted = request.header(b"access-control-request-headers") or b""
        if not self._allows_origin(origin, request):
            return fields
        if not self._allows_method(method.decode("latin-1"), request) or not self._allows_headers(
            wanted, request
        ):
            return fields
        fields.append(self._allow_origin(origin))
        fields.append((b"Access-Control-Allow-Methods", method))
        if wanted:
            fields.append((b"Access-Control-Allow-Headers", wanted))
        if self._credentials:
            fields.append((b"Access-Control-Allow-Credentials", b"true"))
        if self._max_age:
            fields.append((b"Access-Control-Max-Age", self._max_age))
        return fields

    def actual(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return the Access-Control headers of an answer to any other request; Vary is the caller's."""
        origin = request.header(b"origin") or b""
        if not self._allows_origin(origin, request) or not self._allows_method(request.method, request):
            return []
        fields = [self._allow_origin(origin)]
        if self._exposed:
            fields.append((b"Access-Control-Expose-Headers", self._exposed))
        if self._credentials:
            fields.append((b"Access-Control-Allow-Credentials", b"true"))
        return fields

    def _allow_origin(self, origin: bytes) -> tuple[bytes, bytes]:
        return b"Access-Control-Allow-Origin", b"*" if self._any_origin else origin

    def _allows_origin(self, origin: bytes, request: Request) -> bool:
        if not origin:
            return False
        if self._any_origin:
            return True
        text = origin.decode("latin-1")
        if self._pattern is not None:
            allowed = self._pattern.search(text) is not None
        else:
            lowered = text.lower()
            allowed = lowered in self._origins or any(
                len(lowered) >= len(before) + len(after)
                and lowered.startswith(before)
                and lowered.endswith(after)
                for before, after in self._wildcards
            )
        if not allowed and self._debug:
            log.info("cross-origin request refused: origin", origin=text, uri=request.target)
        return allowed

    def _allows_method(self, method: str, request: Request) -> bool:
        allowed = method == "OPTIONS" or method in self._methods
        if not allowed and self._debug:
            log.info("cross-origin request refused: method", method=method, uri=request.target)
        return allowed

    def _allows_headers(self, wanted: bytes, request: Request) -> bool:
        if self._any_header or not wanted:
            return True
        if len(wanted) > _REQUESTED_LENGTH_MAX:
            return False
        names = [name.strip().lower() for name in wanted.decode("latin-1").split(",")]
        refused = [name for name in names if name and name not in self._headers]
        if refused and self._debug:
            log.info("cross-origin request refused: headers", headers=refused, uri=request.target)
        return not refused


class ConfiguredHeaders:
    """Adds what `http.headers` says."""

    def __init__(self, config: HeadersConfig) -> None:
        """Raises ValueError, in words, for headers or rules that cannot be."""
        self._request = encode_fields(config.request)
        self._request_names = frozenset(name.lower() for name, _ in self._request)
        self._response = encode_fields(config.response)
        self._cors = CrossOrigin(config.cors) if config.cors is not None else None

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that adds headers on both ways."""
        added, names, response, cors = self._request, self._request_names, self._response, self._cors

        def handle(request: Request, responder: Responder) -> None:
            cross: list[tuple[bytes, bytes]] = []
            if cors is not None:
                if request.method == "OPTIONS" and request.header(b"access-control-request-method"):
                    responder.respond(cors.success_status, cors.preflight(request), b"")
                    return
                cross = cors.actual(request)
            if added:
                request.headers = without_fields(request.headers, names) + added
            if response or cors is not None:
                responder = _EditedResponder(responder, response, cross, cors is not None)
            next_handler(request, responder)

        return handle


class _EditedResponder(HeaderEditor):
    """Adds the configured headers and those of CORS."""

    __slots__ = ("_added", "_cross", "_varies")

    def __init__(self, inner: Responder, added: HeaderList, cross: HeaderList, varies: bool) -> None:
        self.inner = inner
        self._added = added
        self._cross = cross
        self._varies = varies

    def edit(self, status: int, headers: HeaderList) -> HeaderList:
        """Return the headers with ours."""
        present = {name.lower() for name, _ in headers}
        edited = list(headers)
        if self._cross:
            edited = without_fields(edited, {name.lower() for name, _ in self._cross}) + list(self._cross)
        edited += [
            field
            for field in self._added
            if field[0].lower() not in present or field[0].lower() not in _SINGLE
        ]
        return with_vary(edited, b"Origin") if self._varies else edited


def make_headers(config: HttpConfig, services: MiddlewareServices) -> ConfiguredHeaders:
    """Return the middleware `headers`. Raises MiddlewareError."""
    try:
        return ConfiguredHeaders(config.headers)
    except ValueError as error:
        raise MiddlewareError(f"http.headers: {error}") from error
