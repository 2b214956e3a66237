"""From http to https: what a plain listener answers where `http.ssl.redirect` is set.

308 keeps method and body. Strict-Transport-Security comes with it, as RoadRunner has it; browsers heed that header only over
TLS (RFC 6797, 8.1), so whoever wants it remembered sets it under http.headers.response too.
"""

from __future__ import annotations

from typing import Final

from trailboss.plugins.http.message import Handler, Request, Responder

__all__ = ["redirect_plain", "secure_url"]

HSTS: Final = b"max-age=31536000; includeSubDomains; preload"
HTTPS_PORT: Final = 443


def redirect_plain(handler: Handler, port: int) -> Handler:
    """Return a handler that sends plain requests to the same URL at `port` by https, the others to `handler`."""

    def redirecting(request: Request, responder: Responder) -> None:
        if request.scheme == "https":
            handler(request, responder)
            return
        headers = [
            (b"Location", secure_url(request, port).encode("ascii")),
            (b"Strict-Transport-Security", HSTS),
            (b"Content-Type", b"text/plain; charset=utf-8"),
        ]
        responder.respond(308, headers, b"this site is served by https\n")

    return redirecting


def secure_url(request: Request, port: int) -> str:
    """Return the URL of a request with https in front and `port` in place of its own."""
    host = request.host  # checked: a name, or an address in brackets, and perhaps a port
    host = host[: host.index("]") + 1] if host.startswith("[") else host.partition(":")[0]
    place = host if port == HTTPS_PORT else f"{host}:{port}"
    path = "" if request.path == "*" else request.path
    return f"https://{place}{path}{'?' + request.query if request.query else ''}"
