"""Who is calling: RPC peers matched to the processes this supervisor has started.

Every worker and every on_init command leads a session of its own, and what it starts stays in that session unless it
leaves on purpose; so a peer is recognised by the session id of its process, wrappers and children included.
"""

from __future__ import annotations

import os

from trailboss.container.contract import Caller, CallerRole

__all__ = ["Callers"]


class Callers:
    """Sessions by number. `lookup` is one system call and one dictionary access; called once per connection."""

    def __init__(self) -> None:
        self._sessions: dict[int, tuple[CallerRole, str]] = {}
        self._booting: set[int] = set()

    def add(self, session: int, role: CallerRole, pool: str = "") -> None:
        """Note a process that was just started as leader of `session`; a worker counts as booting for now."""
        self._sessions[session] = (role, pool)
        if role is CallerRole.WORKER:
            self._booting.add(session)

    def ready(self, session: int) -> None:
        """The worker has finished its handshake."""
        self._booting.discard(session)

    def discard(self, session: int) -> None:
        """The process has been reaped; its number may be used by anybody from now on."""
        self._sessions.pop(session, None)
        self._booting.discard(session)

    def lookup(self, pid: int, uid: int) -> Caller:
        """Say who the process `pid` of user `uid` is; pid 0 stands for unknown."""
        if pid > 0:
            try:
                session = os.getsid(pid)
            except OSError:
                session = 0
            found = self._sessions.get(session)
            if found is not None:
                role, pool = found
                return Caller(role, pool, pid, uid, session in self._booting)
        return Caller(CallerRole.OPERATOR, "", pid, uid)

    def is_booting(self, pid: int) -> bool:
        """Whether `pid` belongs to a worker that has not finished its handshake (asked per refused call only)."""
        try:
            return os.getsid(pid) in self._booting
        except OSError:
            return False
