"""A page to put the example middleware in front of; any WSGI application does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with a page; `/slow` takes its time, so that the log says so."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.6)
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"Hello from Python {sys.version_info[0]}.{sys.version_info[1]}\n".encode()]
