"""An ASGI application without a framework. Start it from this folder with `trailboss serve --asgi asgi_app`.

Then http://127.0.0.1:8000/ answers, and `curl -N http://127.0.0.1:8000/events` shows server-sent events until it is
interrupted. The startup of its lifespan is over before the server says that it is ready.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one request, or live through startup and shutdown."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["path"] == "/":
        age = time.monotonic() - scope["state"]["started"]
        await respond(send, 200, f"Hello from process {os.getpid()}, {age:.0f} s after its start\n")
    elif scope["path"] == "/events":
        await events(send)
    else:
        await respond(send, 404, "There is no such page.\n")


async def lifespan(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Open what requests share; they find it in their scope's state."""
    await receive()
    scope["state"]["started"] = time.monotonic()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print(f"process {os.getpid()} closes what it has opened")
    await send({"type": "lifespan.shutdown.complete"})


async def respond(send: Send, status: int, text: str) -> None:
    """A whole answer."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def events(send: Send) -> None:
    """Server-sent events until the client goes, when `send` raises an OSError."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    number = 0
    while True:
        number += 1
        event = f"id: {number}\ndata: {time.strftime('%H:%M:%S')}\n\n"
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await asyncio.sleep(1)
