"""What all connections of the web server share: limits, the handler, bodies, the clock of the Date header, the counts.

A Front knows no socket. Connections come and go in `connections`; `in_flight` counts requests that a handler has and has
not ended, whether their client is still there or not, so a drain waits for the workers too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Protocol

from trailboss.figures import FINE_BOUNDS, Histogram
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Handler, Request, Responder
from trailboss.plugins.http.refusals import Refusals
from trailboss.plugins.http.spool import Spool
from trailboss.plugins.http.unsent import AnswerAccount
from trailboss.reactor import Reactor

__all__ = ["Counters", "Front", "Http2", "Member"]


class Member(Protocol):
    """One client, whatever it speaks and however far it has come."""

    @property
    def is_leaving(self) -> bool:
        """Whether everything is sent and only the client's departure is waited for."""

    def close_if_idle(self, quiet_since: float) -> None:
        """Close unless something is under way, or something has happened after `quiet_since`."""

    def close(self) -> None:
        """End the connection now."""


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    connections: int = 0  #: accepted
    turned_away: int = 0  #: closed at once, http.limits.max_connections
    requests: int = 0  #: handed to the handler
    refusals: int = 0  #: requests that were not
    timeouts: int = 0  #: connections ended for their slowness
    handshakes_failed: int = 0  #: TLS handshakes that were no good


@dataclass(slots=True)
class Http2:
    """What HTTP/2 connections share besides."""

    #: Whether a plain connection may begin with HTTP/2 (by prior knowledge).
    h2c: bool = False
    max_concurrent_streams: int = 128
    floods: int = 0  #: connections ended because they asked for too much
    #: When each complaint was logged last.
    complained_at: dict[str, float] = field(default_factory=dict)


class Front:
    """State shared by the connections of one web server; all of it belongs to the reactor."""

    def __init__(
        self,
        reactor: Reactor,
        limits: Limits,
        spool: Spool,
        handler: Handler,
        answers: AnswerAccount | None = None,
    ) -> None:
        self.reactor = reactor
        self.limits = limits
        self.spool = spool
        #: What clients have not taken yet.
        self.answers = answers if answers is not None else AnswerAccount()
        self.handler = handler
        self.connections: set[Member] = set()
        self.in_flight = 0
        #: Answers end their connection from now on.
        self.draining = False
        #: Called while draining whenever a request or a connection has ended.
        self.on_progress: Callable[[], None] | None = None
        self.counters = Counters()
        self.http2 = Http2()
        #: From a request's complete head to the end of its answer, in seconds.
        self.latency = Histogram(FINE_BOUNDS)
        self.refusals = Refusals(lambda: reactor.now)
        self.date_line = b""
        self.date_until = 0.0

    def refresh_date(self) -> None:
        """Write the Date header anew; it holds until `date_until`."""
        wall = time.time()
        self.date_line = f"Date: {formatdate(wall, usegmt=True)}\r\n".encode()
        self.date_until = self.reactor.now + 1.0 - wall % 1.0

    def refuse_requests(self, reason: str) -> None:
        """Answer every further request with 503 and end its connection."""

        def refuse(request: Request, responder: Responder) -> None:
            self.refusals.add(503, reason, request.method, request.path)
            responder.fail(503, reason, retry_after=1, close=True)

        self.handler = refuse

    def close_idle(self, quiet_since: float) -> None:
        """Close connections between two requests on which nothing has happened after `quiet_since`."""
        for connection in list(self.connections):
            connection.close_if_idle(quiet_since)

    @property
    def open_count(self) -> int:
        """Connections on which somebody may still get an answer."""
        return sum(1 for connection in self.connections if not connection.is_leaving)

    def close_all(self) -> None:
        """Close every connection, whatever is under way."""
        for connection in list(self.connections):
            connection.close()
