"""The Python applications of ``tools/bench http``: hello in WSGI and ASGI, and a stream of 100 MiB."""

from __future__ import annotations

from typing import Any

BODY = b"Hello, world!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
RAW_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
PART = b"x" * (256 * 1024)


def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    """Say hello; a body that came is read."""
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter([PART] * 400)
    if environ["REQUEST_METHOD"] == "POST":
        while environ["wsgi.input"].read(1 << 20):
            pass
    start_response("200 OK", HEADERS)
    return [BODY]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Say hello."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": RAW_HEADERS})
    await send({"type": "http.response.body", "body": BODY})
