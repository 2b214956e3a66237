"""Which commands run a Python application behind the web server, and what such applications need. Pure.

WSGI and ASGI frameworks parse forms and uploads themselves, so the workers of such a pool need every body as it was
sent, whatever `http.raw_body` says. An ASGI application may hope for a websocket, which there is none yet: it is told so,
and its client as well, instead of being handed a plain GET that it answers with something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from trailboss.plugins.http.message import Handler, Request, Responder
from trailboss.plugins.http.refusals import Refusals

__all__ = ["NO_WEBSOCKETS", "gateway_of", "wants_raw_body", "without_websockets"]

#: Why the opening of a websocket is answered with 501.
NO_WEBSOCKETS: Final = "websockets are not available"

_GATEWAYS: Final = ("wsgi", "asgi")
_COMMAND: Final = "trailboss-worker"
_MODULE: Final = "trailboss_worker"
_PYTHON: Final = re.compile(r"(python|pypy)[0-9.]*")


def wants_raw_body(command: Sequence[str]) -> bool:
    """Whether a pool's command is `trailboss-worker wsgi` or `asgi`, in whatever way it is started."""
    return gateway_of(command) != ""


def without_websockets(handler: Handler, refusals: Refusals | None = None) -> Handler:
    """Answer whoever asks for a websocket with 501; everything else goes to `handler`."""

    def handle(request: Request, responder: Responder) -> None:
        wanted = request.header(b"upgrade")
        if wanted is None or b"websocket" not in wanted.lower():
            handler(request, responder)
            return
        if refusals is not None:
            refusals.add(501, NO_WEBSOCKETS, request.method, request.path, "")
        responder.fail(501, NO_WEBSOCKETS)

    return handle


def gateway_of(command: Sequence[str]) -> str:
    """Which gateway a pool's command runs: wsgi, asgi, or "" for something else.

    Also `/path/to/trailboss-worker asgi app`, `python3 -X dev -m trailboss_worker wsgi app` and
    `python3 .../trailboss_worker/bootstrap.py wsgi app`.
    """
    if not command:
        return ""
    program = os.path.basename(command[0])
    if program == _COMMAND:
        return _gateway(command[1]) if len(command) > 1 else ""
    if not _PYTHON.fullmatch(program):
        return ""
    for index, word in enumerate(command[1:-1], 1):
        is_ours = (
            (word == _MODULE and command[index - 1] == "-m")
            or os.path.basename(word) == _COMMAND
            or word.endswith(f"{_MODULE}/bootstrap.py")
        )
        if is_ours:
            return _gateway(command[index + 1])
    return ""


def _gateway(word: str) -> str:
    return word if word in _GATEWAYS else ""
