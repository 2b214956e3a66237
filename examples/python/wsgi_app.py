"""A WSGI application without a framework. Start it from this folder with `trailboss serve --wsgi wsgi_app`.

Then http://127.0.0.1:8000/ answers, /clock streams a line a second, and /raise shows where a traceback goes: to the
server's log, while the client gets a 500 and the worker lives on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

TEXT = [("Content-Type", "text/plain; charset=utf-8")]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request."""
    path = environ["PATH_INFO"]
    if path == "/":
        name = parse_qs(environ["QUERY_STRING"]).get("name", ["world"])[0]
        start_response("200 OK", TEXT)
        return [f"Hello {name}, from Python (process {os.getpid()})\n".encode()]
    if path == "/clock":
        start_response("200 OK", TEXT)
        return clock(10)
    if path == "/raise":
        raise RuntimeError("this traceback is in the server's log")
    start_response("404 Not Found", TEXT)
    return [b"There is no such page.\n"]


def clock(ticks: int) -> Iterator[bytes]:
    """Every chunk is sent as soon as it is yielded; when the client goes the generator is closed."""
    for tick in range(ticks):
        yield f"{tick + 1} of {ticks}: {time.strftime('%H:%M:%S')}\n".encode()
        if tick + 1 < ticks:
            time.sleep(1)
