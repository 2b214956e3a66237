"""Who is calling: RPC peers matched to the processes this supervisor has started.

Every worker and every on_init command leads a session of its own, and what it starts stays in that session unless it
leaves on purpose; so a peer is recognised by the session id of its process, wrappers and children included. Where that
cannot tell (a child in a session of its own, a peer without a pid), the token does that each of them has in its
environment: TRAILBOSS_TOKEN, for `trailboss.Authenticate`. Only a digest of it is kept here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, replace

from trailboss.container.contract import Caller, CallerRole

__all__ = ["TOKEN_VARIABLE", "Callers", "new_token"]

#: Where a worker or an on_init command finds its token.
TOKEN_VARIABLE = "TRAILBOSS_TOKEN"


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class _Known:
    role: CallerRole
    pool: str
    digest: bytes
    booting: bool


class Callers:
    """Sessions by number. `lookup` is one system call and one dictionary access; called once per connection."""

    def __init__(self) -> None:
        self._sessions: dict[int, _Known] = {}
        self._tokens: dict[bytes, int] = {}

    def add(self, session: int, role: CallerRole, pool: str = "", token: str = "") -> None:
        """Note a process that was just started as leader of `session`; a worker counts as booting for now."""
        digest = _digest(token) if token else b""
        self._sessions[session] = _Known(role, pool, digest, role is CallerRole.WORKER)
        if digest:
            self._tokens[digest] = session

    def ready(self, session: int) -> None:
        """The worker has finished its handshake."""
        known = self._sessions.get(session)
        if known is not None:
            known.booting = False

    def discard(self, session: int) -> None:
        """The process has been reaped; its number may be used by anybody from now on, its token by nobody."""
        known = self._sessions.pop(session, None)
        if known is not None:
            self._tokens.pop(known.digest, None)

    def lookup(self, pid: int, uid: int) -> Caller:
        """Say who the process `pid` of user `uid` is; pid 0 stands for unknown."""
        if pid > 0:
            try:
                session = os.getsid(pid)
            except OSError:
                session = 0
            known = self._sessions.get(session)
            if known is not None:
                return Caller(known.role, known.pool, pid, uid, known.booting, session)
        return Caller(CallerRole.OPERATOR, "", pid, uid)

    def authenticate(self, token: str, caller: Caller) -> Caller | None:
        """Say who `caller` is by the token it shows; None for a token that nobody has (any more)."""
        session = self._tokens.get(_digest(token))
        if session is None:
            return None
        known = self._sessions[session]
        return Caller(known.role, known.pool, caller.pid, caller.uid, known.booting, session, True)

    def refresh(self, caller: Caller) -> Caller:
        """Look again whether the process that an authenticated caller belongs to is still booting."""
        known = self._sessions.get(caller.session)
        return replace(caller, booting=known.booting if known is not None else False)

    def is_booting(self, pid: int) -> bool:
        """Whether `pid` belongs to a worker that has not finished its handshake (asked per refused call only)."""
        try:
            known = self._sessions.get(os.getsid(pid))
        except OSError:
            return False
        return known is not None and known.booting
