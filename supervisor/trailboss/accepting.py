"""Accepting on the reactor: one listening socket, and whoever connects is handed on.

What goes wrong with one newcomer costs that newcomer and no other: an exception out of a callback would cost the listening
socket, which nobody opens again. When there are no descriptors left the socket is left alone for a moment instead of being
asked in a loop. Complaints are logged once a minute.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from trailboss.reactor import Reactor

__all__ = ["Acceptor", "Complaints"]

#: Connections accepted before others on the data plane get their turn.
ACCEPTS_PER_TURN: Final = 64
#: Pause after accept has failed for lack of descriptors or memory.
BACK_OFF_SECONDS: Final = 0.1
#: The same complaint is logged once in this time.
COMPLAINT_SECONDS: Final = 60.0

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts until `close`. `admit` gets each new socket, non-blocking, and its peer's address; it may raise.

    `complain(event, reason)` logs, on the channel of whoever owns the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        admit: Callable[[socket.socket, object], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._reactor = reactor
        self._admit = admit
        self._complain = complain
        self._complaints = Complaints()
        self._closed = False
        reactor.register(self._fd, self._on_readable)

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._closed

    def close(self) -> None:
        """Accept nothing more; the socket is its owner's to close, after this. May be called again."""
        if not self._closed:
            self._closed = True
            self._reactor.unregister(self._fd)

    def accept(self, most: int) -> None:
        """Accept who has connected, at most so many."""
        for _ in range(most):
            if self._closed:
                return
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._back_off(error)
                    return
                continue  # the peer was gone before it was accepted
            try:
                sock.setblocking(False)
                self._admit(sock, address)
            except Exception as error:
                sock.close()
                self._say(
                    "a connection could not be taken",
                    str(error) or type(error).__name__,
                    ("not taken", type(error)),
                )

    def _on_readable(self) -> None:
        self.accept(ACCEPTS_PER_TURN)

    def _back_off(self, error: OSError) -> None:
        self._say("no connection can be accepted for now", error.strerror or "", "no room")
        self._reactor.pause_read(self._fd, True)
        self._reactor.wheel.add(self._reactor.now + BACK_OFF_SECONDS, self._go_on)

    def _go_on(self, _now: float) -> None:
        if not self._closed:
            self._reactor.pause_read(self._fd, False)

    def _say(self, event: str, reason: str, key: object) -> None:
        if self._complaints.is_due(key, self._reactor.now):
            self._complain(event, reason)


@dataclass(slots=True)
class Complaints:
    """Which complaints were logged lately, by key."""

    _logged_at: dict[object, float] = field(default_factory=dict)

    def is_due(self, key: object, now: float) -> bool:
        """Say whether to log `key` now; then it is not due for a minute."""
        last = self._logged_at.get(key)
        if last is not None and now - last < COMPLAINT_SECONDS:
            return False
        if len(self._logged_at) > 1000:
            self._logged_at.clear()
        self._logged_at[key] = now
        return True
