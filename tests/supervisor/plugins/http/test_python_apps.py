"""Which commands run a Python application, and so get bodies as they were sent."""

from __future__ import annotations

import pytest

from trailboss.plugins.http.python_apps import wants_raw_body


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
