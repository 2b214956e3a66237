"""An identifier for each request, for the worker, the log and the client alike.

A sensible `X-Request-Id` of the client (or of a proxy) is kept, so that one id follows a request through all its servers;
anything else is replaced. It is no secret and proves nothing.
"""

from __future__ import annotations

import os
import random
import re
from typing import Final

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import HeaderEditor, MiddlewareServices
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.fields import without_fields

__all__ = ["RequestIds", "make_request_id"]

_SENSIBLE: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
_NAME: Final = b"X-Request-Id"
_NAMES: Final = frozenset({b"x-request-id"})


class RequestIds:
    """Gives every request an id."""

    def __init__(self) -> None:
        self._bits = random.Random(os.urandom(16)).getrandbits

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that sets `Request.id` and both X-Request-Id headers."""
        bits = self._bits

        def handle(request: Request, responder: Responder) -> None:
            given = request.header(b"x-request-id")
            if given is not None and _SENSIBLE.fullmatch(given):
                value = given
            else:
                value = b"%032x" % bits(128)
                request.headers = [*without_fields(request.headers, _NAMES), (_NAME, value)]
            request.id = value.decode("ascii")
            next_handler(request, _IdentifiedResponder(responder, value))

        return handle


class _IdentifiedResponder(HeaderEditor):
    """Tells the client the id; the worker's own X-Request-Id makes way."""

    __slots__ = ("_value",)

    def __init__(self, inner: Responder, value: bytes) -> None:
        self.inner = inner
        self._value = value

    def edit(self, status: int, headers: HeaderList) -> HeaderList:
        """Return the headers with the id."""
        return [*without_fields(headers, _NAMES), (_NAME, self._value)]


def make_request_id(config: HttpConfig, services: MiddlewareServices) -> RequestIds:
    """Return the middleware `request_id`."""
    return RequestIds()
