"""The stream of events behind the status page: one picture a second, made once, sent to everybody who looks.

While nobody looks nothing is made and no timer waits. Who does not keep up misses pictures, never delays others; who
takes nothing at all is dropped. Places are few, so that a crowd before the page leaves room for probes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.small_http import SmallConnection

__all__ = ["CLIENTS_MAX", "LivePage", "event_of"]

log = logger("status")

#: Half of the connections of the status port.
CLIENTS_MAX: Final = 32
INTERVAL_SECONDS: Final = 1.0


def event_of(name: str, value: Mapping[str, object]) -> bytes:
    """Return a value as one event of the stream; JSON has no bare line feed, so one `data:` line holds it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return f"event: {name}\ndata: {text}\n\n".encode("ascii")


class LivePage:
    """Everybody who looks now; `make` returns the event of this moment."""

    def __init__(
        self,
        reactor: Reactor,
        make: Callable[[float], bytes],
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._make = make
        self._interval_seconds = interval_seconds
        self._clients: set[SmallConnection] = set()
        self._timer_set = False

    def __len__(self) -> int:
        return len(self._clients)

    def join(self, connection: SmallConnection) -> None:
        """Send the picture of now, then one a second."""
        self._clients.add(connection)
        now = self._reactor.now
        event = self._event(now)
        if event:
            connection.push(event, now)
        if not self._timer_set:
            self._timer_set = True
            self._reactor.wheel.add(now + self._interval_seconds, self._tick)

    def leave(self, connection: SmallConnection) -> None:
        """Send it nothing any more."""
        self._clients.discard(connection)

    def _tick(self, now: float) -> None:
        self._timer_set = bool(self._clients)
        if not self._clients:
            return
        self._reactor.wheel.add(now + self._interval_seconds, self._tick)
        event = self._event(now)
        for connection in tuple(self._clients):
            if event:
                connection.push(event, now)

    def _event(self, now: float) -> bytes:
        try:
            return self._make(now)
        except Exception:
            log.exception("a picture for the status page cannot be made")
            return b""
