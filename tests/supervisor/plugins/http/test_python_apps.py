"""Which commands run a Python application, and so get bodies as they were sent."""

from __future__ import annotations

import pytest

from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.python_apps import NO_WEBSOCKETS, wants_raw_body, without_websockets
from trailboss.plugins.http.refusals import Refusals


@pytest.mark.parametrize(
    "command",
    [
        "trailboss-worker wsgi app",
        "trailboss-worker asgi app:app --factory",
        "/opt/venv/bin/trailboss-worker wsgi app",
        "python3 -m trailboss_worker wsgi app",
        "/opt/venv/bin/python3.12 -X dev -m trailboss_worker asgi app",
        "python /usr/lib/trailboss_worker/bootstrap.py wsgi app",
        "python /opt/venv/bin/trailboss-worker asgi app",
    ],
)
def test_gateways(command):
    """However it is started, a gateway gets raw bodies."""
    assert wants_raw_body(command.split()) is True


@pytest.mark.parametrize(
    "command",
    [
        "",
        "trailboss-worker",
        "trailboss-worker jobs handler:handle",
        "trailboss-worker echo wsgi",
        "php worker.php wsgi",
        "python3 app.py wsgi",
        "python3 -m trailboss_worker jobs wsgi:asgi",
        "python3 -m trailboss_worker",
        "python3 trailboss_worker wsgi",
        "pythonic -m trailboss_worker wsgi app",
    ],
)
def test_everything_else(command):
    """No other worker does by itself."""
    assert wants_raw_body(command.split()) is False


class Answered(Responder):
    """Notes how a request was refused."""

    def __init__(self) -> None:
        self.refused: list[tuple[int, str]] = []

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        self.refused.append((status, reason))


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ([(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")], True),
        ([(b"X-A", b"1"), (b"upgrade", b"h2c, WebSocket")], True),
        ([(b"Upgrade", b"h2c")], False),
        ([(b"Upgrade-Insecure-Requests", b"1")], False),
        ([(b"X-Upgrd", b"websocket")], False),
        ([], False),
    ],
)
def test_websockets_are_refused(headers: list[tuple[bytes, bytes]], refused: bool) -> None:
    """Who asks for a websocket is told that there is none, and it is noted; everything else passes."""
    passed: list[Request] = []
    refusals = Refusals(lambda: 0.0)
    handle = without_websockets(lambda request, _responder: passed.append(request), refusals)
    responder = Answered()
    handle(Request("GET", "/ws", "/ws", "", "1.1", headers, "example.org"), responder)
    assert responder.refused == ([(501, NO_WEBSOCKETS)] if refused else [])
    assert len(passed) == (0 if refused else 1)
    assert refusals.total == (1 if refused else 0)
